"""Proofs in envelopes, and the bodies of requests and answers."""

from __future__ import annotations

import pytest

from gpuprover.errors import MalformedFile, ProverError, UnsupportedFile
from gpuprover.midnight.envelopes import (
    CheckRequest,
    KeyMaterial,
    ProveRequest,
    read_check_reply,
    read_check_request,
    read_proof,
    read_prove_request,
    write_check_reply,
    write_check_request,
    write_proof,
    write_proof_reply,
    write_prove_request,
)
from gpuprover.midnight.preimage import read_preimage
from tests.support.midnight import SMALL

HELLO = read_preimage((SMALL / "hello.preimage").read_bytes())
FIELDS = (SMALL / "hello.preimage").read_bytes().removeprefix(b"midnight:proof-preimage:")
CHECK = b"midnight:(proof-preimage-versioned,option(wrapped-ir)):\1"
PROVE = b"midnight:(proof-preimage-versioned,option(proving-data),option(fr-bls)):\1"


def test_the_ledger_s_envelope_is_that_of_official_proofs() -> None:
    official = (SMALL / "hello.official.proof").read_bytes()
    proof = read_proof(official, "a proof")
    assert len(proof) == 2912
    assert write_proof(proof) == official


def test_an_answer_s_envelope() -> None:
    data = write_proof_reply(b"abc")
    assert data == b"midnight:proof-versioned:\1\x0cabc"
    assert read_proof(data) == b"abc"


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        (
            b"midnight:proof-versioned:\2\x0cabc",
            UnsupportedFile,
            r"version of the proof: expected 1 .*found 2",
        ),
        (b"midnight:proof-versioned:\1\x0cab", MalformedFile, "proof: expected 3 bytes, found 2"),
        (b"midnight:proof[v5]:\x0cabcd", MalformedFile, "proof: 1 bytes behind its end"),
        (b"midnight:proof[v4]:\x0cabc", UnsupportedFile, r"got 'midnight:proof\[v4\]:'"),
        (b"abc", MalformedFile, "got 3 bytes without a tag"),
    ],
)
def test_other_envelopes(data: bytes, kind: type[ProverError], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        read_proof(data)
    assert caught.value.role == "proof"


@pytest.mark.parametrize("circuit", [None, (SMALL / "hello.bzkir").read_bytes()])
def test_requests_for_a_check(circuit: bytes | None) -> None:
    end = (
        b"\0"
        if circuit is None
        else b"\1" + bytes([(len(circuit) << 2 | 1) & 0xFF, len(circuit) >> 6]) + circuit
    )
    body = CHECK + FIELDS + end
    request = read_check_request(body)
    assert request == CheckRequest(HELLO, circuit)
    assert write_check_request(request) == body


def test_requests_for_a_proof() -> None:
    material = KeyMaterial(b"p" * 70, b"v", b"")
    body = PROVE + FIELDS + b"\1" + b"\x19\1" + b"p" * 70 + b"\4v" + b"\0" + b"\1\x14"
    request = read_prove_request(body)
    assert request == ProveRequest(HELLO, material, 5)
    assert write_prove_request(request) == body
    alone = PROVE + FIELDS + b"\0\0"
    assert read_prove_request(alone) == ProveRequest(HELLO, None, None)
    assert write_prove_request(ProveRequest(HELLO, None, None)) == alone
    for end in range(len(PROVE), len(body)):
        with pytest.raises(MalformedFile) as caught:
            read_prove_request(body[:end])
        assert caught.value.role == "body"


@pytest.mark.parametrize("read", [read_check_request, read_prove_request, read_check_reply])
def test_other_bodies(read) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UnsupportedFile, match=r"expected header tag 'midnight:.*:', got 'midnight:other:'$"):
        read(b"midnight:other:")


def test_other_versions_of_preimages() -> None:
    with pytest.raises(UnsupportedFile, match=r"version of the preimage: expected 1 .*found 0, at byte 55"):
        read_check_request(CHECK[:-1] + b"\0" + FIELDS + b"\0")


@pytest.mark.parametrize("skips", [[], [None], [None, 3, None, 2**64 - 1]])
def test_answers_to_a_check(skips: list[int | None]) -> None:
    assert read_check_reply(write_check_reply(skips)) == skips


def test_an_answer_to_a_check_in_bytes() -> None:
    assert write_check_reply([None, 3]) == b"midnight:vec(option(u64)):\x08\0\1\x0c"
    with pytest.raises(MalformedFile, match=r"skipped: expected an integer below 2\^64"):
        read_check_reply(b"midnight:vec(option(u64)):\4\1\x17" + b"\xff" * 9)


def test_no_text_has_a_value() -> None:
    request = ProveRequest(HELLO, KeyMaterial(b"key", b"key", b"key"), 123456789)
    assert repr(request) == ("ProveRequest(preimage=Preimage(key_location='hello'), material=KeyMaterial())")
