"""Midnight's prover: proofs of both lines, from preimages and from tables, on every backend."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gpuprover.backend import Backend
from gpuprover.curves import BLS12_381
from gpuprover.demand import UNLIMITED, Budget
from gpuprover.devices import open_backend
from gpuprover.errors import MalformedFile, OutOfMemory, UnsatisfiedWitness, WitnessMismatch
from gpuprover.job import Job
from gpuprover.limbs import words_to_ints
from gpuprover.systems.midnight import prover
from gpuprover.systems.midnight.key import ProvingKey, load_key
from gpuprover.systems.midnight.verifier import verify, verify_many
from gpuprover.systems.midnight.witness import Statement
from tests.support.midnight import SMALL, advice_table, data_folder, public_inputs

SEED = b"midnight" * 4
LARGER = {"data": ["note"], "keys": ["schnorr", "zsign", "t000", "t011", "t100", "t110", "tmbl"]}
LARGER["data08"] = ["t8d", "t8j"]


@pytest.fixture(scope="module")
def backend() -> Backend:
    return open_backend("cpu", BLS12_381, Job(threads=2))


def key_in(folder: Path, name: str, parameters: Path = SMALL) -> ProvingKey:
    return load_key(folder / f"{name}.prover", parameters)


def table_of(folder: Path, name: str) -> Statement:
    """The official table and its public inputs."""
    k, usable = advice_table(folder / f"{name}.advice.bin.xz")
    advice = np.zeros((len(usable), 1 << k, 4), dtype=np.uint64)
    advice[:, : usable.shape[1]] = usable
    return Statement(tuple(public_inputs(folder / f"{name}.pis.json")), advice, name)


@pytest.mark.parametrize("name", ["hello", "fallible", "increment"])
def test_proofs_hold(name: str, backend: Backend) -> None:
    key, statement = key_in(SMALL, name), table_of(SMALL, name)
    proof = prover.prove(key, statement, backend)
    again = prover.prove(key, statement, backend)
    assert proof.data != again.data
    public = list(statement.public)
    assert prover.checked(key, statement, public, proof, backend) is proof
    assert prover.in_subgroups(key, again, backend) is again
    assert verify(key.vk, public, again, backend)
    assert not verify(key.vk, [*public[:-1], public[-1] + 1], proof, backend)


@pytest.mark.parametrize("name", ["t8a", "t8c", "compact_is_odd"])
def test_proofs_of_the_newer_line(name: str, backend: Backend) -> None:
    folder = data_folder("data08")
    key, statement = key_in(folder, name, data_folder()), table_of(folder, name)
    proof = prover.prove(key, statement, backend)
    public = list(statement.public)
    assert verify(key.vk, public, proof, backend)
    # In the older line's order the same polynomials are no proof.
    older = replace(key.vk.key, profile=replace(key.vk.key.profile, sets_by_size=False, instance_first=True))
    assert not verify(replace(key.vk, key=older), public, proof, backend)


@pytest.mark.slow
def test_larger_circuits(backend: Backend) -> None:
    found = []
    for part, names in LARGER.items():
        for name in names:
            folder = data_folder(part)
            key, statement = key_in(folder, name, data_folder()), table_of(folder, name)
            found.append((key.vk, statement.public, prover.prove(key, statement, backend)))
    assert verify_many(found, backend) == [True] * len(found)


def test_a_seed_makes_the_same_bytes_in_whole_and_in_chunks(backend: Backend) -> None:
    key, statement = key_in(SMALL, "hello"), table_of(SMALL, "hello")
    whole = prover.prove(key, statement, backend, SEED)
    assert prover.prove(key, statement, backend, SEED) == whole
    demands = [*key.demand.choices]
    assert [demand.chunks for demand in demands] == [1, 4]
    plans = [backend.plan(replace(demand, leaner=None), UNLIMITED) for demand in demands]
    assert plans[1].arena < plans[0].arena
    tight = plans[1].arena + plans[1].tables
    assert prover.prove(key, statement, backend, SEED, Budget(host=tight)) == whole
    with pytest.raises(OutOfMemory):
        prover.prove(key, statement, backend, SEED, Budget(host=tight - 1))


@pytest.mark.slow
def test_the_reference_makes_the_same_bytes(backend: Backend) -> None:
    key, statement = key_in(SMALL, "increment"), table_of(SMALL, "increment")
    naive = open_backend("reference", BLS12_381, Job())
    assert prover.prove(key, statement, naive, SEED) == prover.prove(key, statement, backend, SEED)


# What does not hold ------------------------------------------------------------------------------


def changed(statement: Statement, column: int, row: int) -> Statement:
    advice = statement.advice.copy()
    advice[column, row, 0] ^= np.uint64(1)
    return replace(statement, advice=advice)


def test_what_a_table_breaks_is_named(backend: Backend) -> None:
    key, statement = key_in(SMALL, "hello"), table_of(SMALL, "hello")
    public = list(statement.public)

    def refused(given: Statement, said: list[int]) -> str:
        with pytest.raises(UnsatisfiedWitness) as caught:
            prover.checked(key, given, said, prover.prove(key, given, backend), backend)
        message = str(caught.value)
        assert not any(str(x) in message for x in words_to_ints(statement.advice[0][:30]) if x > 10**6)
        return message

    # A cell of Poseidon's rows breaks a gate or its trash constraint, one that only copies tie a copy.
    assert "does not hold on row" in refused(changed(statement, 3, 10), public)
    other = [*public]
    other[1] += 1
    message = refused(replace(statement, public=tuple(other)), other)
    assert "differs from row" in message
    assert "I1" in message


def test_a_lookup_that_does_not_hold_is_named(backend: Backend) -> None:
    folder = data_folder("keys")
    key, statement = key_in(folder, "licstatus", data_folder()), table_of(folder, "licstatus")
    ranges = np.flatnonzero(words_to_ints(key.layout.fixed[10]))
    broken = statement.advice.copy()
    broken[1, ranges[0], 0] = 999
    with pytest.raises(UnsatisfiedWitness, match=f"lookup 0 does not hold on row {ranges[0]}"):
        prover.prove(key, replace(statement, advice=broken), backend)


def test_tables_of_other_shapes_are_refused(backend: Backend) -> None:
    key, statement = key_in(SMALL, "hello"), table_of(SMALL, "hello")
    with pytest.raises(WitnessMismatch, match="columns"):
        prover.prove(key, replace(statement, advice=statement.advice[:-1]), backend)
    with pytest.raises(WitnessMismatch, match="expected 13 public inputs, found 12"):
        prover.prove(key, replace(statement, public=statement.public[:-1]), backend)


def test_a_key_whose_parts_do_not_belong_together(backend: Backend) -> None:
    """Commitments of another circuit of the same shape: every gate holds, and no proof does."""
    key, other = (key_in(SMALL, name) for name in ("hello", "fallible"))
    statement = table_of(SMALL, "hello")
    mixed = replace(key.vk.key, fixed=other.vk.key.fixed)
    key = replace(key, vk=replace(key.vk, key=mixed))
    with pytest.raises(MalformedFile, match="do not belong together"):
        public = list(statement.public)
        prover.checked(key, statement, public, prover.prove(key, statement, backend), backend)
