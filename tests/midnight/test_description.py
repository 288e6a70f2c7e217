"""What files are, and that nothing of a witness is in it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from gpuprover.errors import MalformedFile, ProverError, UnsupportedFile
from gpuprover.midnight.description import describe
from gpuprover.midnight.envelopes import (
    CheckRequest,
    KeyMaterial,
    ProveRequest,
    write_check_reply,
    write_check_request,
    write_proof_reply,
    write_prove_request,
)
from gpuprover.midnight.preimage import Preimage, read_preimage, write_preimage
from tests.support.midnight import SMALL

HELLO = {
    suffix: (SMALL / f"hello.{suffix}").read_bytes() for suffix in ("prover", "verifier", "bzkir", "preimage")
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "hello.verifier",
            {
                "kind": "verifier key",
                "tag": "verifier-key[v6]",
                "line": "v6",
                "chips": ["poseidon"],
                "range_columns": 1,
                "max_bit_len": 8,
                "k": 6,
                "public_inputs": 13,
                "fixed_columns": 19,
                "permuted_columns": 8,
            },
        ),
        ("t8c.verifier", {"kind": "verifier key", "line": "v7", "chips": [], "range_columns": 4, "k": 9}),
        ("hello.prover", {"kind": "prover key", "line": "v6", "k": 6, "fixed_columns": 19}),
        ("hello.bzkir", {"kind": "circuit", "version": [2, 0], "inputs": 1, "instructions": 20}),
        ("hello.zkir", {"kind": "circuit", "version": [2, 0], "communications_commitment": True}),
        ("t8c.bzkir", {"kind": "circuit", "tag": "ir-source[v3-generic]", "version": [3, 0]}),
        ("hello.official.proof", {"kind": "proof", "tag": "proof[v5]", "proof_bytes": 2912}),
        ("bls_midnight_2p5", {"kind": "parameters", "k": 5, "published": True}),
        (
            "hello.preimage",
            {"kind": "preimage", "key_location": "hello", "inputs": 1, "public_transcript_inputs": 11},
        ),
    ],
)
def test_files_are_described(name: str, expected: dict) -> None:
    data = (SMALL / name).read_bytes()
    found = describe(data, name)
    assert {key: found.get(key) for key in expected} == expected
    assert found["bytes"] == len(data)
    json.dumps(found)
    if found["kind"] != "preimage":
        assert found["sha256"] == hashlib.sha256(data).hexdigest()


def test_a_prover_key_s_circuit_is_described() -> None:
    found = describe(HELLO["prover"], "a key")["circuit"]
    assert found["sha256"] == hashlib.sha256(HELLO["bzkir"]).hexdigest()
    assert found["instructions"] == 20


def test_requests_and_answers_are_described() -> None:
    preimage = read_preimage(HELLO["preimage"])
    body = write_check_request(CheckRequest(preimage, HELLO["bzkir"]))
    found = describe(body, "a body")
    assert found["kind"] == "request for a check"
    assert found["circuit"]["instructions"] == 20
    material = KeyMaterial(HELLO["prover"], HELLO["verifier"], HELLO["bzkir"])
    found = describe(write_prove_request(ProveRequest(preimage, material, 5)), "a body")
    assert [found[name]["kind"] for name in ("prover", "verifier", "circuit")] == [
        "prover key",
        "verifier key",
        "circuit",
    ]
    assert found["replaces_binding_input"]
    found = describe(write_prove_request(ProveRequest(preimage, None, None)), "a body")
    assert "prover" not in found
    assert describe(write_check_reply([None, 3]), "an answer")["skipped"] == [None, 3]
    assert describe(write_proof_reply(b"abc"), "an answer")["proof_bytes"] == 3


def test_nothing_is_said_of_a_witness() -> None:
    """Neither values nor a hash, by which few values could be told apart."""
    secret = 918273645546372819
    preimage = Preimage((secret,), (secret,), (secret,), (secret,), secret, (secret, secret), "circuit")
    for data in (
        write_preimage(preimage),
        write_check_request(CheckRequest(preimage, None)),
        write_prove_request(ProveRequest(preimage, None, secret)),
    ):
        text = json.dumps(describe(data, "a file"))
        assert str(secret) not in text
        assert f"{secret:x}" not in text
        assert hashlib.sha256(data).hexdigest() not in text


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        (b"", MalformedFile, "expected a file that begins with 'midnight:'"),
        (b"abcd", MalformedFile, "expected a file that begins with 'midnight:'"),
        (b"[]", MalformedFile, "expected a file that begins with 'midnight:'"),
        (b"midnight:transaction[v9]:", UnsupportedFile, "no kind of file with the tag 'transaction[v9]'"),
        (b"midnight:proof[v5]:", MalformedFile, "proof: expected 1 byte, found none"),
        (b'{"version": 7}', ProverError, "version"),
    ],
)
def test_other_data(data: bytes, kind: type[ProverError], message: str) -> None:
    with pytest.raises(kind) as caught:
        describe(data, "a file")
    assert message in caught.value.message


@pytest.mark.parametrize(
    "path",
    sorted(p for p in SMALL.iterdir() if p.suffix in {".verifier", ".bzkir", ".zkir"}),
    ids=lambda p: p.name,
)
def test_damage_is_one_line(path: Path) -> None:
    data = path.read_bytes()
    for end in range(0, len(data), max(1, len(data) // 9)):
        with pytest.raises(ProverError) as caught:
            describe(data[:end], "a file")
        assert "\n" not in caught.value.message
