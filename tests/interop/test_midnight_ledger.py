"""Proofs of Midnight's circuits before the ledger's own verifier: that it accepts, and that it can refuse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import gpuprover
from gpuprover.midnight.advice import AdviceSource, read_advice
from tests.interop.conftest import Judge, Statement
from tests.support.midnight import SMALL, data_folder, public_inputs

ENVELOPE = b"midnight:proof[v5]:"
CIRCUITS = {
    "licstatus": 9,
    "tmbl": 10,
    "t000": 11,
    "schnorr": 11,
    "t100": 12,
    "t110": 12,
    "deactivate": 13,
    "zsign": 13,
    "t011": 14,
}
"""Of the test data, with k: those of the folder ``keys`` that the vectors do not have."""


def small(name: str, k: int) -> Statement:
    return Statement(SMALL / name, SMALL / f"bls_midnight_2p{k}")


def statement(name: str) -> Statement:
    """One of :data:`CIRCUITS`, or ``note``."""
    if name == "note":
        return Statement(data_folder() / name, data_folder() / "bls_midnight_2p13")
    return Statement(data_folder("keys") / name, data_folder() / f"bls_midnight_2p{CIRCUITS[name]}")


def raw(path: Path) -> bytes:
    """A proof of the data, without the ledger's envelope."""
    content = path.read_bytes()
    assert content.startswith(ENVELOPE)
    return content[len(ENVELOPE) + 2 :]


def flipped(proof: bytes, at: int) -> bytes:
    changed = bytearray(proof)
    changed[at] ^= 1
    return bytes(changed)


def ours(found: Statement) -> bytes:
    """A proof of this package's, from the preimage."""
    key = gpuprover.load_key(found.file("prover"), parameters=found.srs.parent)
    return bytes.fromhex(gpuprover.prove(key, found.file("preimage"), device="cpu").proof["proof"])


@pytest.mark.parametrize(("name", "k"), [("hello", 6), ("increment", 5), ("fallible", 6)])
def test_proof_is_accepted(judge: Judge, name: str, k: int) -> None:
    found = small(name, k)
    assert judge.accepts(found, ours(found))


def test_changed_proof_is_refused(judge: Judge) -> None:
    """One evaluation, the last before the opening's commitment."""
    found = small("increment", 5)
    proof = ours(found)
    assert not judge.accepts(found, flipped(proof, len(proof) - 48 - 32))


@pytest.mark.slow
@pytest.mark.parametrize("at", [0, 1500, -1])
def test_any_changed_part_is_refused(judge: Judge, at: int) -> None:
    found = small("hello", 6)
    assert not judge.accepts(found, flipped(ours(found), at))


@pytest.mark.slow
def test_proof_of_another_statement_is_refused(judge: Judge) -> None:
    """The judge itself: that it tells statements apart, and accepts what the ledger's prover made."""
    found = small("hello", 6)
    other = replace(found, binding=7)
    assert judge.accepts(other, judge.made(other))
    assert not judge.accepts(found, judge.made(other))
    assert judge.accepts(found, raw(found.file("official.proof")))
    assert not judge.accepts(other, ours(found))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["note", *CIRCUITS])
def test_proof_of_a_larger_circuit(judge: Judge, name: str) -> None:
    """From the table that the ledger's prover had."""
    found = statement(name)
    key = gpuprover.load_key(found.file("prover"), parameters=found.srs.parent)
    table = read_advice(found.file("advice.bin.xz").read_bytes(), name)
    made = gpuprover.prove(key, AdviceSource(table, public_inputs(found.file("pis.json"))), device="cpu")
    assert judge.accepts(found, bytes.fromhex(made.proof["proof"]))
