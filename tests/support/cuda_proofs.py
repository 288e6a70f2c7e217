"""Proofs on the emulated device for the CUDA backend's tests: small keys, fixed blinding, the CPU's proof."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gpuprover
from gpuprover.circuits import bits_circuit
from gpuprover.cuda.backend import CudaBackend
from gpuprover.cuda.residency import Residency
from gpuprover.curves import CurveParams
from gpuprover.demand import Budget
from gpuprover.devices import open_backend
from gpuprover.formats.wtns import Witness, read_witness
from gpuprover.job import Job
from gpuprover.systems.groth16 import prover
from gpuprover.systems.groth16.documents import Proof
from gpuprover.systems.groth16.key import ProvingKey, load_key
from tests.support.emulator import EmulatedDevice
from tests.support.paths import VECTORS

BLINDING = (7, 11)


def chain_key(curve: CurveParams) -> ProvingKey:
    """A key of its own for every call: its residents are nobody else's."""
    return load_key(VECTORS / f"chain5.{curve.name}.zkey")


def chain_witness(curve: CurveParams) -> Witness:
    return read_witness(VECTORS / f"chain5.{curve.name}.wtns")


@lru_cache
def larger(curve: CurveParams) -> tuple[bytes, Witness]:
    """A key's file and a witness, most of whose values are 0 or 1."""
    circuit = bits_circuit(100, curve, seed=3)
    with TemporaryDirectory() as name:
        r1cs, wtns, zkey = (Path(name) / f"c.{kind}" for kind in ("r1cs", "wtns", "zkey"))
        circuit.write(r1cs, wtns)
        gpuprover.setup(r1cs, zkey, insecure=True)
        return zkey.read_bytes(), read_witness(wtns.read_bytes())


@lru_cache
def expected(source: bytes | CurveParams) -> Proof:
    """The CPU's proof for the key of :func:`larger` or :func:`chain_key`."""
    if isinstance(source, bytes):
        key = load_key(source)
        (witness,) = (w for data, w in [larger(key.curve)] if data == source)
    else:
        key, witness = chain_key(source), chain_witness(source)
    return prover.prove(key, witness, open_backend("cpu", key.curve, Job(threads=1)), BLINDING)


def backend_on(
    gpu: Residency,
    curve: CurveParams,
    job: Job | None = None,
    host_parts: Collection[str] = (),
) -> CudaBackend:
    job = job or Job(threads=1)
    return CudaBackend(curve, job, gpu, open_backend("cpu", curve, job), host_parts)


def prove(
    key: ProvingKey,
    witness: Witness,
    gpu: Residency,
    job: Job | None = None,
    host_parts: Collection[str] = (),
    budget: int | None = None,
) -> Proof:
    backend = backend_on(gpu, key.curve, job, host_parts)
    return prover.prove(key, witness, backend, BLINDING, Budget(device=budget))


def opened(memory: int = 1 << 30, limit: int | None = None, **options: Any) -> Residency:
    return Residency(EmulatedDevice(memory=memory, **options), limit)


def device_of(gpu: Residency) -> EmulatedDevice:
    assert isinstance(gpu.device, EmulatedDevice)
    return gpu.device
