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
from gpuprover.cuda.gpu import Gpu
from gpuprover.curves import CurveParams, Group
from gpuprover.devices import open_backend
from gpuprover.formats.groth16_json import Proof
from gpuprover.formats.wtns import Witness, read_witness
from gpuprover.formats.zkey import ProvingKey, load_key
from gpuprover.groth16 import prover
from gpuprover.job import Job
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
    gpu: Gpu,
    curve: CurveParams,
    job: Job | None = None,
    host_groups: Collection[Group] = (),
    budget: int | None = None,
) -> CudaBackend:
    job = job or Job(threads=1)
    return CudaBackend(curve, job, gpu, open_backend("cpu", curve, job), host_groups, budget)


def prove(
    key: ProvingKey,
    witness: Witness,
    gpu: Gpu,
    job: Job | None = None,
    host_groups: Collection[Group] = (),
    budget: int | None = None,
) -> Proof:
    backend = backend_on(gpu, key.curve, job, host_groups, budget)
    return prover.prove(key, witness, backend, BLINDING)


def opened(memory: int = 1 << 30, limit: int | None = None, **options: Any) -> Gpu:
    return Gpu(EmulatedDevice(memory=memory, **options), limit)


def device_of(gpu: Gpu) -> EmulatedDevice:
    assert isinstance(gpu.device, EmulatedDevice)
    return gpu.device
