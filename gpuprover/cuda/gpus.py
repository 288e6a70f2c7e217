"""The GPUs by name: which ``cuda`` means, and one open device for each, kept for the life of the process."""

from __future__ import annotations

import threading
from collections.abc import Collection
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gpuprover import forks
from gpuprover.backend import Backend
from gpuprover.config import gpu_memory_limit
from gpuprover.cuda import probe
from gpuprover.cuda.allocation import Pool
from gpuprover.cuda.device import Device
from gpuprover.cuda.probe import FoundGpu, Survey, mark_lost
from gpuprover.cuda.source import proving_programs
from gpuprover.curves import CurveParams
from gpuprover.errors import DeviceError, InvalidInput
from gpuprover.job import Job
from gpuprover.memory import count_pool

if TYPE_CHECKING:
    from gpuprover.cuda.residency import Residency

__all__ = ["gpus", "mark_lost", "open_backend", "open_device", "present", "resolve", "try_device"]
TRY_WORDS = 1024

_open: dict[str, Device] = {}
_loaded: dict[tuple[str, str], Device] = {}
_shared: dict[str, Residency] = {}
_lock = threading.Lock()
_seen: set[str] = set()
"""The GPUs that this process has asked CUDA about."""


@forks.in_child
def _in_child() -> None:
    """CUDA serves no process that was forked after its driver was asked anything."""
    global _lock
    _lock = threading.Lock()
    for name in _seen:
        mark_lost(name, "this process was forked from one that uses CUDA; start it anew, or fork before that")


@lru_cache(maxsize=1)
def _survey() -> Survey:
    """As the process found the machine; only free memory and lost devices change."""
    return probe.survey()


def _judged() -> list[FoundGpu]:
    found = _survey().gpus
    _seen.update(gpu.name for gpu in found)
    return [probe.judged(gpu) for gpu in found]


def present() -> bool:
    """Whether the machine has an NVIDIA driver at all."""
    return _survey().driver_cuda is not None


def gpus() -> list[FoundGpu]:
    """All GPUs that this process sees, with what is free and what has failed by now."""
    return [probe.refreshed(gpu) for gpu in _judged()]


def resolve(name: str) -> str:
    """``cuda:N`` for ``cuda:N``, or for ``cuda``, which is the usable GPU with most free memory.

    Raises:
        DeviceError: it cannot be used; the message says why and what to do.
        InvalidInput: no such name.
    """
    family, colon, number = name.partition(":")
    if colon and not (number.isascii() and number.isdigit() and str(int(number)) == number):
        raise InvalidInput(f"device: expected {family} or {family}:0, say; found {name[:40]!r}")
    found = _judged()
    asked = [gpu for gpu in found if name in (family, gpu.name)]
    usable = [gpu for gpu in asked if gpu.usable]
    if len(usable) > 1:
        usable = [probe.refreshed(gpu) for gpu in usable]
        return max(usable, key=lambda gpu: gpu.total if gpu.free is None else gpu.free).name
    if usable:
        return usable[0].name
    if asked:
        why = [asked[0].problem, asked[0].advice]
    elif found:
        why = ["found " + ", ".join(f"{gpu.name} ({gpu.model})" for gpu in found)]
    else:
        why = [_survey().problem, _survey().advice]
    raise DeviceError(f"device {name!r} is not available: {'; '.join(filter(None, why))}")


def open_device(name: str) -> Device:
    """The device ``cuda:N``, the same one each time.

    Raises:
        DeviceError: it does not start, or failed before.
    """
    from gpuprover.cuda.cupy_device import CupyDevice

    failed = probe.lost(name)
    if failed is not None:
        raise DeviceError(f"{name}: not used any more: {failed}")
    _seen.add(name)
    with _lock:
        if name not in _open:
            _open[name] = CupyDevice(int(name.partition(":")[2]))
        return _open[name]


def pinned(name: str, size: int) -> NDArray[np.uint8] | None:
    """So many bytes of page-locked memory of the host, at least 1, for a GPU that this process has open.

    That is ``cuda:N``, or any for another name; None where none is open, or has such memory. The bytes are
    overwritten once nobody refers to them.
    """
    with _lock:
        opened = [device for gpu, device in _open.items() if name == gpu or ":" not in name]
    for device in opened:
        with suppress(DeviceError):
            if (memory := device.pinned(size)) is not None:
                return memory
    return None


def try_device(name: str) -> int:
    """Has the device ``cuda:N`` take some bytes and give them back -> bytes that a pool may take of it.

    Raises:
        DeviceError, OutOfMemory: it does not start, has no memory, or gives back others.
    """
    device = open_device(name)
    sent = np.arange(TRY_WORDS, dtype=np.uint64)
    back = np.zeros_like(sent)
    address = device.allocate(sent.nbytes)
    try:
        device.write(address, sent)
        device.read(back, address)
    finally:
        with suppress(DeviceError):
            device.release(address)
    if not np.array_equal(sent, back):
        raise DeviceError(f"{name}: its memory gives back other bytes than it was given")
    return Pool(device, gpu_memory_limit()).limit


def open_backend(
    name: str,
    curve: CurveParams,
    job: Job,
    host: Backend,
    host_parts: Collection[str] = (),
) -> Backend:
    """A backend on the device ``cuda:N``; those of one device share its memory and the keys in it.

    ``host``: the CPU's backend, which computes the sums of the groups named by ``host_parts`` meanwhile. The
    first backend of a curve compiles its kernels where they were not built before.
    """
    from gpuprover.cuda.backend import CudaBackend
    from gpuprover.cuda.residency import Residency

    device = open_device(name)
    if _loaded.get((name, curve.name)) is not device:
        with job.phase("load kernels"):
            device.prepare(proving_programs(curve), job.check)
        _loaded[name, curve.name] = device
    with _lock:
        if name not in _shared or _shared[name].device is not device:
            _shared[name] = Residency(device, gpu_memory_limit())
            count_pool(_shared[name].pool)
        return CudaBackend(curve, job, _shared[name], host, host_parts)
