"""Midnight's verifier on official proofs of both lines."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from gpuprover.backend import Backend
from gpuprover.curves import BLS12_381
from gpuprover.devices import open_backend
from gpuprover.errors import MalformedFile
from gpuprover.job import Job
from gpuprover.midnight.envelopes import read_proof
from gpuprover.midnight.keys import read_verifier_key
from gpuprover.midnight.profile import V6, V7
from gpuprover.systems.midnight.documents import Proof, VerificationKey, proof_bytes, sample_proof, take_apart
from gpuprover.systems.midnight.verifier import challenges, verify, verify_documents, verify_many
from tests.support.midnight import SMALL, data_folder, public_inputs

STATEMENTS = ["hello", "fallible", "increment", "t8c", "compact_is_odd", "compact_is_odd.off"]
OTHERS = {
    "data": ["note"],
    "keys": ["schnorr", "deactivate", "zsign", "t000", "t011", "t100", "t110", "tmbl"],
}
OTHERS["data08"] = ["t8a", "t8a.off", "t8d", "t8j"]


@pytest.fixture(scope="module")
def backend() -> Backend:
    return open_backend("cpu", BLS12_381, Job(threads=1))


def key_of(folder: Path, name: str) -> VerificationKey:
    path = folder / f"{name.partition('.')[0]}.verifier"
    return VerificationKey(read_verifier_key(path.read_bytes(), str(path)))


def statement(folder: Path, name: str) -> tuple[VerificationKey, list[int], Proof]:
    key = key_of(folder, name)
    data = (folder / f"{name}.official.proof").read_bytes()
    raw = read_proof(data) if data.startswith(b"midnight:") else data
    return key, public_inputs(folder / f"{name}.pis.json"), Proof(raw)


@pytest.mark.parametrize("name", STATEMENTS)
def test_official_proofs(name: str, backend: Backend) -> None:
    key, public, proof = statement(SMALL, name)
    assert verify(key, public, proof, backend)
    for i in (0, len(public) // 2, len(public) - 1):
        changed = [*public]
        changed[i] = (changed[i] + 1) % BLS12_381.r
        assert not verify(key, changed, proof, backend)


def test_more_official_proofs(backend: Backend) -> None:
    found = [statement(data_folder(folder), name) for folder, names in OTHERS.items() for name in names]
    assert verify_many(found, backend) == [True] * len(found)


def test_every_evaluation_and_every_point_counts(backend: Backend) -> None:
    """A proof with one scalar changed, or one point exchanged for another, does not hold."""
    key, public, proof = statement(SMALL, "increment")
    points = 48 * len(key.argument.committed)
    changed = []
    for i in range(len(key.argument.evaluated)):
        data = bytearray(proof.data)
        data[points + 32 * i] ^= 1
        changed.append(bytes(data))
    for i in range(len(key.argument.committed)):
        data = bytearray(proof.data)
        other = proof.data[-48:]
        data[48 * i : 48 * i + 48] = other
        changed.append(bytes(data))
    assert verify_many([(key, public, Proof(data)) for data in changed], backend) == [False] * len(changed)


@pytest.mark.parametrize(("name", "other"), [("hello", V7), ("t8c", V6)])
def test_the_other_lines_order_is_refused(name: str, other: object, backend: Backend) -> None:
    key, public, proof = statement(SMALL, name)
    wrong = VerificationKey(replace(key.key, profile=other))
    assert proof_bytes(wrong.argument) == len(proof.data)
    assert not verify(wrong, public, proof, backend)


def test_challenges_are_those_of_the_network() -> None:
    vectors = json.loads((SMALL / "vectors.json").read_text())
    key, public, proof = statement(SMALL, "hello")
    found = vectors["hello"]
    assert int(found["vk_transcript_repr"], 16) == key.transcript_hash
    first, opening = challenges(key, public, take_apart(key.argument, proof.data))
    got = {name: hex(value) for name, value in (first._asdict() | opening._asdict()).items()}
    expected = found["proofs"]["official.proof"]["challenges"]
    assert got == {name: hex(int(value, 16)) for name, value in expected.items()}


def test_more_challenges() -> None:
    vectors = json.loads((SMALL / "vectors.json").read_text())
    for name, found in vectors.items():
        key = key_of(data_folder(), name)
        public = [int(x) for x in found["public_inputs"]]
        for ending, made in found["proofs"].items():
            path = data_folder() / f"{name}.{ending}"
            if not path.is_file():
                continue
            data = path.read_bytes()
            raw = read_proof(data) if data.startswith(b"midnight:") else data
            first, opening = challenges(key, public, take_apart(key.argument, raw))
            got = first._asdict() | opening._asdict()
            assert got == {label: int(value, 16) for label, value in made["challenges"].items()}


@pytest.mark.parametrize("name", ["t8c", "compact_is_odd"])
def test_transcript_hashes_of_the_newer_line(name: str) -> None:
    official = int((SMALL / f"{name}.vkhash.txt").read_text(), 16)
    assert key_of(SMALL, name).transcript_hash == official


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda d: d[:-1], "expected 2912 bytes, found 2911"),
        (lambda d: d + b"\0", "expected 2912 bytes, found 2913"),
        (lambda d: bytes([d[0] & 0x7F]) + d[1:], "A0: the point is not compressed"),
        (lambda d: bytes([0x9A]) + bytes([0xFF]) * 47 + d[48:], "A0: "),
        (lambda d: d[: 48 * 20] + bytes([0xFF]) * 32 + d[48 * 20 + 32 :], "I0 at rotation 0: a scalar"),
    ],
)
def test_damaged_proofs_say_where(change: object, problem: str, backend: Backend) -> None:
    key, public, proof = statement(SMALL, "hello")
    with pytest.raises(MalformedFile) as caught:
        verify(key, public, Proof(change(proof.data)), backend)
    assert problem in str(caught.value)


def test_documents(backend: Backend) -> None:
    key, public, proof = statement(SMALL, "fallible")
    signals = [str(x) for x in public]
    good = {"protocol": "midnight", "curve": "bls12381", "proof": proof.data.hex()}
    other = {**good, "proof": sample_proof(key).data.hex()}
    found = verify_documents(
        key,
        [
            (signals, good),
            (signals, other),
            (signals, {**good, "proof": "zz"}),
            (signals[1:], good),
            (signals, good),
        ],
        backend,
    )
    assert found == [True, False, False, False, True]
