"""The devices by name, and the backends that serve them: the only module that knows which there are.

Backends are named as text and imported when they are first opened: a process pays for those that it uses.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuprover import forks
from gpuprover.backend import Backend
from gpuprover.curves import CurveParams, FieldParams, Group
from gpuprover.errors import DeviceError, InvalidInput, brief
from gpuprover.job import Job
from gpuprover.limbs import Words

_REGISTRY: dict[str, str] = {
    "cpu": "gpuprover.cpu.backend:CpuBackend",
    "reference": "gpuprover.naive:NaiveBackend",
}
"""Device name -> module:class; the class is called with (curve, job)."""

_GPUS: dict[str, str] = {
    "cuda": "gpuprover.cuda.gpus",
}
"""Family of devices, ``cuda:0`` and so on -> the module that finds them and opens their backends."""

_ENCODED = "gpuprover.cpu.encoded_points"


def device_names() -> list[str]:
    """The devices that :func:`open_backend` takes, ``auto`` first; a family stands for all of its devices."""
    return ["auto", *(n for n in _REGISTRY if n != "reference"), *_GPUS]


def is_gpu(name: str) -> bool:
    """Whether a device has memory of its own, and may fail where the CPU does not."""
    return name.partition(":")[0] in _GPUS


def resolve_device(device: str) -> str:
    """The device's own name for a request: ``cuda`` is the freest usable GPU, ``cuda:0`` say.

    ``auto`` is the CPU here; for a proof or a set-up, :func:`gpuprover.api.place` decides.

    Raises:
        DeviceError: the device is known and cannot be had; the message says why, and what to do.
        InvalidInput: no such device.
    """
    if not isinstance(device, str):
        raise InvalidInput(f"device: expected a name, found {type(device).__name__}")
    if device == "auto":
        return "cpu"
    if device in _REGISTRY:
        return device
    if is_gpu(device):
        name: str = _family(device).resolve(device)
        return name
    raise InvalidInput(f"device: expected one of {', '.join(device_names())}; found {brief(device)!r}")


def try_device(device: str) -> int:
    """Opens a GPU by its own name, and moves some bytes there and back -> bytes that proofs may take of it.

    Raises:
        DeviceError, OutOfMemory: it does not start, or does not do that.
    """
    room: int = _family(device).try_device(device)
    return room


def found_gpus() -> list[Any]:
    """The GPUs of every family, those that cannot be used included: records with name, model, architecture,
    total, free, problem and advice."""
    return [gpu for family in _GPUS for gpu in _family(family).gpus()]


def cpu_path_name() -> str:
    """Which of the CPU's code paths runs: ``ifma`` or ``portable``."""
    name: str = import_module("gpuprover.cpu.path").cpu_path().name
    return name


def use_images(curves: Sequence[CurveParams] | None = None) -> bool:
    """Lets the CPU's kernels come from images of compiled code, by default those of all curves.

    A process that calls this first thing is small and ready at once: it imports no Numba unless it needs a
    kernel that is in no image. Whether there is one for each curve; ``python -m gpuprover.cpu.bake`` makes
    those that are missing.
    """
    there: bool = import_module("gpuprover.cpu.image").use(curves)
    return there


def keccak256(data: bytes) -> bytes:
    """The 32 bytes of Ethereum's hash, by the CPU's kernel; see :func:`gpuprover.keccak.keccak256`."""
    digest: bytes = import_module("gpuprover.cpu.keccak").keccak256(data)
    return digest


def points_from_coordinates(curve: CurveParams, group: Group, coordinates: Words) -> tuple[Words, int]:
    """Affine points as a file holds them, canonical uint64[n, words] -> Montgomery words, and the index of
    the first that has a coordinate >= q or is off the curve, or −1. Infinity is all zeros.

    With an index, the words are of no use. Whether points are in their subgroup is not looked at.
    """
    found: tuple[Words, int] = import_module(_ENCODED).from_coordinates(curve, group, coordinates)
    return found


def points_from_x(curve: CurveParams, xs: Words, larger: list[bool]) -> tuple[Words, int]:
    """Points of G1 by x, canonical uint64[n, limbs], and whether y is the larger of two roots -> Montgomery
    uint64[n, words], and the index of the first x that is >= q or of no point, or −1.

    With an index, the words are of no use. For curves with q ≡ 3 (mod 4).
    """
    found: tuple[Words, int] = import_module(_ENCODED).from_x(curve, xs, larger)
    return found


def coordinates_of_points(curve: CurveParams, points: Words) -> Words:
    """Affine points of any group, out of Montgomery form: fresh words of the same shape."""
    found: Words = import_module(_ENCODED).to_coordinates(curve, points)
    return found


def first_not_reduced(field: FieldParams, words: Words) -> int:
    """Index of the first element of uint64[n, limbs] that is >= p, or −1."""
    first: int = import_module(_ENCODED).first_not_reduced(field, words)
    return first


def poseidon_sponge(
    curve: CurveParams, state: Words, values: Words, constants: Words, full_rounds: int
) -> Words:
    """The state of a Poseidon sponge over the curve's scalar field, by the CPU's kernel.

    State and values are canonical, constants in Montgomery form: :func:`gpuprover.cpu.poseidon.sponge`.
    """
    module = import_module("gpuprover.cpu.poseidon")
    after: Words = module.sponge(curve.scalar, state, values, constants, full_rounds)
    return after


def edwards_multiple(curve: CurveParams, d: int, point: tuple[int, int], scalar: int) -> tuple[int, int]:
    """scalar·point on −x² + y² = 1 + d·x²·y² over the curve's scalar field, by the CPU's kernel."""
    found: tuple[int, int] = import_module("gpuprover.cpu.jubjub").multiply(curve.scalar, d, point, scalar)
    return found


def transform_points(curve: CurveParams, points: Words, root: int, factor: int, job: Job) -> Words:
    """factor·Σ_j root^(ij)·points[j] for i < n, of points of G1, affine uint64[n, words] -> the same.

    n is a power of two and the order of ``root``; the curve is of the BLS12 family.
    """
    found: Words = import_module("gpuprover.cpu.point_transform").transform_points(
        curve, points, root, factor, job
    )
    return found


def run_tape(curve: CurveParams, code: NDArray[np.int64], pool: Words, tables: Words, values: Words) -> None:
    """Runs a tape of a circuit, by the CPU's kernel, which writes its results behind the values that are given.

    Args:
        curve: its scalar field is that of the values.
        code: operations and operands, int64[length], as :class:`gpuprover.midnight.circuit.tape.Op` has them.
        pool: elements that operations name, canonical uint64[p, limbs].
        tables: what operations have to know, uint64[t, limbs].
        values: uint64[size, limbs], canonical: constants and inputs at their places, zeros at others.

    Raises:
        IndexError: an operation would read or write outside of an array, or reads what comes later.
    """
    import_module("gpuprover.cpu.tape").run(curve.scalar, code, pool, tables, values)


def refused_gpu() -> str | None:
    """Why no GPU can be used on a machine that has one; None where one can, or there is no driver."""
    for family in _GPUS:
        if _family(family).present():
            try:
                resolve_device(family)
            except DeviceError as error:
                return error.message
    return None


def distrust(device: str, problem: str) -> None:
    """The GPU is used no more by this process."""
    _family(device).mark_lost(device, problem)


def open_backend(
    device: str,
    curve: CurveParams,
    job: Job,
    host_parts: Collection[str] = (),
) -> Backend:
    """The backend for a resolved or requested device name.

    ``host_parts``: names of groups whose sums a GPU leaves to the CPU, which computes them meanwhile.
    """
    name = resolve_device(device)
    if is_gpu(name):
        host = open_backend("cpu", curve, job)
        backend: Backend = _family(name).open_backend(name, curve, job, host, host_parts)
        return backend
    module, _, attribute = _REGISTRY[name].partition(":")
    with forks.settled:
        factory: Callable[[CurveParams, Job], Backend] = getattr(import_module(module), attribute)
    return factory(curve, job)


def host_memory(device: str, size: int) -> NDArray[np.uint8]:
    """So many bytes of the host's memory, at least 1, for what a proof on a device or on ``auto`` sends.

    For a GPU that this process has open they are page-locked: it takes data from there without another copy.
    """
    for family in _GPUS:
        if device == "auto" or device.partition(":")[0] == family:
            memory: NDArray[np.uint8] | None = _family(family).pinned(device, size)
            if memory is not None:
                return memory
    return np.empty(size, dtype=np.uint8)


def warm_up(device: str, curve: CurveParams, job: Job) -> None:
    """Loads what proofs over a curve run on a device, or compiles it, so that the first one is not slow."""
    if is_gpu(device):
        open_backend(device, curve, job)
    import_module("gpuprover.cpu").warmup([curve], job, proofs_only=True)


def _family(name: str) -> Any:
    return import_module(_GPUS[name.partition(":")[0]])
