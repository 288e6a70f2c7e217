"""Midnight's proofs on the emulated device, under a fixed seed: the CPU's, to the byte."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache

from gpuprover.cuda.residency import Residency
from gpuprover.curves import BLS12_381
from gpuprover.demand import Budget
from gpuprover.devices import open_backend
from gpuprover.formats.wtns import ordinary
from gpuprover.job import Job
from gpuprover.systems.midnight import prover
from gpuprover.systems.midnight.key import ProvingKey, load_key
from gpuprover.systems.midnight.witness import Statement, read_witness
from gpuprover.witness_source import WitnessFile
from tests.support.cuda_proofs import backend_on
from tests.support.midnight import SMALL

SEED = bytes(range(32))


def key(name: str) -> ProvingKey:
    """A key of its own for every call: its residents are nobody else's."""
    return load_key(SMALL / f"{name}.prover", SMALL)


@lru_cache
def statement(name: str) -> Statement:
    """What the circuit's preimage says."""
    source = WitnessFile(SMALL / f"{name}.preimage")
    return read_witness(key(name), source, Job(threads=1), None, ordinary)


@lru_cache
def expected(name: str) -> bytes:
    """The CPU's proof, which verifies."""
    loaded, cpu = key(name), open_backend("cpu", BLS12_381, Job(threads=1))
    proof = prover.prove(loaded, statement(name), cpu, SEED)
    return prover.checked(loaded, statement(name), statement(name).public, proof, cpu).data


def prove(
    name: str,
    loaded: ProvingKey,
    gpu: Residency,
    host_parts: Collection[str] = (),
    budget: int | None = None,
) -> bytes:
    backend = backend_on(gpu, BLS12_381, Job(threads=1), host_parts)
    return prover.prove(loaded, statement(name), backend, SEED, Budget(device=budget)).data
