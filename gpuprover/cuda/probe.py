"""What GPUs there are, which can be used, and why not; without a CUDA context, which would cost memory.

The driver's library says which CUDA it runs, CuPy lists the devices that this process may see, in CUDA's
order, and NVML (nvidia-ml-py) says how much memory is free beside what other processes hold.

Drivers and releases: NVIDIA, CUDA Compatibility, "Minor Version Compatibility", table 1: CUDA 12 runs on
drivers from 525 on, CUDA 13 on drivers from 580 on.
https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
"""

from __future__ import annotations

import ctypes
import os
import warnings
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID

from gpuprover.cuda.compile import Nvrtc, built_folders, find_nvrtc

DRIVERS = {13: 580, 12: 525}
"""CUDA release -> the oldest driver that runs it; there is an extra for each, ``cuda13`` and ``cuda12``."""
OLDEST = 70
"""Compute capability. Since Volta the threads of a warp proceed one by one, as the kernels expect."""
_PACKAGES = ("cupy-cuda13x", "cupy-cuda12x", "cupy")
_KERNEL_DRIVER = Path("/proc/driver/nvidia/version")
_PROHIBITED = 2  # cudaComputeModeProhibited
_NO_DEVICE = 100  # cudaErrorNoDevice


@dataclass(frozen=True)
class FoundGpu:
    """One GPU, or one MIG instance, that this process sees.

    Attributes:
        name: ``cuda:0``, say.
        uuid: ``GPU-...``, of a MIG instance its own, ``MIG-...``, as CUDA_VISIBLE_DEVICES takes them; empty
            where neither CUDA nor NVML tells.
        architecture: ``sm_90``, say.
        total: bytes of memory, of an instance its own.
        free: bytes that other processes leave, and this one; None where NVML does not tell.
        problem: why it cannot be used, None if it can.
        advice: what to do about it.
        bus: its place on the PCI bus, by which CUDA and NVML agree on it. CuPy's UUIDs end at a zero byte.
    """

    name: str
    uuid: str
    model: str
    architecture: str
    total: int
    free: int | None
    problem: str | None = None
    advice: str | None = None
    bus: str = ""

    @property
    def usable(self) -> bool:
        return self.problem is None


@dataclass(frozen=True)
class Survey:
    """The GPUs, and what is needed to use them.

    Attributes:
        driver: NVIDIA's version, such as ``580.65.06``; None where NVML does not tell.
        driver_cuda: the newest CUDA that the driver runs, such as (13, 0); None without a driver.
        cupy: its version, None where it is not installed.
        nvrtc: the version of CUDA of the compiler, None where it is missing.
        problem: why no GPU can be used, None if one can.
        advice: what to do about it.
    """

    gpus: tuple[FoundGpu, ...] = ()
    driver: str | None = None
    driver_cuda: tuple[int, int] | None = None
    cupy: str | None = None
    nvrtc: tuple[int, int] | None = None
    problem: str | None = None
    advice: str | None = None


# Devices that failed ---------------------------------------------------------------------------------

_lost: dict[str, str] = {}


def mark_lost(name: str, problem: str) -> None:
    """``cuda:0``, say, is used no more by this process; the first reason is kept."""
    _lost.setdefault(name, problem)


def lost(name: str) -> str | None:
    """Why a device is used no more, None if nothing is known against it."""
    return _lost.get(name)


# The survey --------------------------------------------------------------------------------------------


class _Unusable(Exception):
    """Why, and what to do about it."""

    def __init__(self, problem: str, advice: str | None = None) -> None:
        self.problem, self.advice = problem, advice


def survey() -> Survey:
    """Looks at everything, in the order in which it is needed."""
    nvml = _open_nvml()
    found = Survey(driver=_driver_version(nvml))
    try:
        version = driver_cuda()
        if version is None:
            raise _no_driver()
        found = replace(found, driver_cuda=(version // 1000, version % 1000 // 10))
        if version < 1000 * min(DRIVERS):
            raise _Unusable(
                f"the NVIDIA driver is too old: it runs CUDA {_dotted(version)} at most",
                f"install driver {min(DRIVERS.values())} or newer",
            )
        extra = next(f"gpuprover[cuda{major}]" for major in DRIVERS if version >= 1000 * major)
        package = _cupy_package(extra)
        found = replace(found, cupy=_version(package))
        runtime, release = _runtime(version, package, extra)
        nvrtc = find_nvrtc(release)
        found = replace(found, nvrtc=None if nvrtc is None else nvrtc.version)
        gpus = tuple(_gpu(i, runtime, nvml, nvrtc, extra) for i in range(_count(runtime, nvml)))
        found = replace(found, gpus=gpus)
        if not any(gpu.usable for gpu in gpus):
            raise _Unusable(gpus[0].problem or "", gpus[0].advice)
    except _Unusable as why:
        return replace(found, problem=why.problem, advice=why.advice)
    return found


def driver_cuda() -> int | None:
    """The newest CUDA that the driver runs, 13000 for 13.0; None without a driver. Starts nothing."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
        version = ctypes.c_int()
        failed = library.cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return None if failed else version.value  # a toolkit's stub of the library fails


def _cuda_uuid(index: int) -> str | None:
    """What CUDA's device ``index`` is called, without a prefix; of a MIG instance the instance's own name.

    None where the driver does not say. Creates no context. CUDA Driver API, ``cuDeviceGetUuid_v2``.
    """
    device, found = ctypes.c_int(), (ctypes.c_ubyte * 16)()
    try:
        library = ctypes.CDLL("libcuda.so.1")
        failed = (
            library.cuInit(0)
            or library.cuDeviceGet(ctypes.byref(device), ctypes.c_int(index))
            or library.cuDeviceGetUuid_v2(ctypes.byref(found), device)
        )
    except (OSError, AttributeError):
        return None
    return None if failed else str(UUID(bytes=bytes(found)))


def _no_driver() -> _Unusable:
    if _KERNEL_DRIVER.exists():
        return _Unusable(
            "the machine has an NVIDIA driver, but its library libcuda.so.1 is not in reach",
            "in a container: start it with --gpus all (NVIDIA Container Toolkit)",
        )
    return _Unusable(
        "no NVIDIA driver on this machine",
        f"on a machine with an NVIDIA GPU, install driver {DRIVERS[13]} or newer",
    )


def _cupy_package(extra: str) -> str:
    """The one installed package of CuPy."""
    installed = [name for name in _PACKAGES if _version(name)]
    if not installed:
        raise _Unusable("CuPy is not installed", f"pip install '{extra}'")
    if len(installed) > 1:
        raise _Unusable(
            f"{' and '.join(installed)} are installed, and overwrite each other",
            f"pip uninstall -y {' '.join(installed)}, then pip install '{extra}'",
        )
    return installed[0]


def _runtime(version: int, package: str, extra: str) -> tuple[Any, int]:
    """CuPy's binding of CUDA's runtime, and the release that it is made for."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from cupy.cuda import runtime
        release = int(runtime.runtimeGetVersion()) // 1000
    except Exception as error:  # whatever a broken installation raises
        raise _Unusable(
            f"CuPy cannot be imported: {_first_line(error)}", f"pip install --force-reinstall '{extra}'"
        ) from None
    if release > version // 1000:
        raise _Unusable(
            f"CuPy is made for CUDA {release}, the driver runs CUDA {_dotted(version)} at most",
            f"pip uninstall -y {package}, then pip install '{extra}'; or update the driver to "
            f"{DRIVERS.get(release, 'one')} or newer",
        )
    return runtime, release


def _count(runtime: Any, nvml: Any) -> int:
    """How many GPUs this process sees, at least 1."""
    try:
        return int(runtime.getDeviceCount())
    except RuntimeError as error:
        if getattr(error, "status", None) != _NO_DEVICE:
            raise _Unusable(f"CUDA does not start: {_first_line(error)}", "see `nvidia-smi`") from None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        raise _Unusable(
            f"CUDA_VISIBLE_DEVICES={visible[:60]!r} shows no GPU to this process",
            "unset it, or set it to 0, or to a name of a GPU or MIG instance that `nvidia-smi -L` shows",
        )
    if any(_in_mig_mode(nvml, handle) for handle in _handles(nvml)):
        raise _Unusable(
            "the GPU is in MIG mode and has no instance for this process",
            "make one: nvidia-smi mig -cgi PROFILE -C",
        )
    raise _Unusable("the driver reports no GPU", "see `nvidia-smi`")


def _gpu(index: int, runtime: Any, nvml: Any, nvrtc: Nvrtc | None, extra: str) -> FoundGpu:
    name = f"cuda:{index}"
    try:
        properties = runtime.getDeviceProperties(index)
        bus = runtime.deviceGetPCIBusId(index)
    except RuntimeError as error:
        problem = f"it does not answer: {_first_line(error)}"
        return FoundGpu(name, "", "unknown", "unknown", 0, None, problem, "see `nvidia-smi`")
    capability = 10 * properties["major"] + properties["minor"]
    model = properties["name"].decode(errors="replace")
    gpu = FoundGpu(
        name,
        _identity(nvml, bus, _cuda_uuid(index), model),
        model,
        f"sm_{capability}",
        int(properties["totalGlobalMem"]),
        free=None,
        bus=bus,
    )
    try:
        _check(gpu, capability, properties["computeMode"], nvrtc, extra)
    except _Unusable as why:
        return replace(gpu, problem=why.problem, advice=why.advice)
    return refreshed(judged(gpu))


def _check(gpu: FoundGpu, capability: int, compute_mode: int, nvrtc: Nvrtc | None, extra: str) -> None:
    if compute_mode == _PROHIBITED:
        raise _Unusable("its compute mode is 'prohibited'", "nvidia-smi -c DEFAULT")
    if capability < OLDEST:
        raise _Unusable(f"its compute capability is {capability / 10}, {OLDEST / 10} or newer is needed")
    if any(True for folder in built_folders() for _ in folder.glob(f"*.{gpu.architecture}.*.cubin")):
        return
    if nvrtc is None:
        raise _Unusable("NVRTC, which compiles the kernels, is missing", f"pip install '{extra}'")
    if gpu.architecture not in nvrtc.architectures():
        # CUDA 13 left out what is older than Turing; what is newer than a compiler needs a newer one.
        other = "'gpuprover[cuda12]'" if capability < 75 else f"--upgrade '{extra}'"
        raise _Unusable(f"{nvrtc} does not compile for {gpu.architecture}", f"pip install {other}")


# NVML ---------------------------------------------------------------------------------------------------


def _open_nvml() -> Any:
    """The module ``pynvml``, ready; None where it is not installed or there is no driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # NVMLError, which only the module knows
        return None
    return pynvml


def _driver_version(nvml: Any) -> str | None:
    if nvml is None:
        return None
    with suppress(nvml.NVMLError):
        return _text(nvml.nvmlSystemGetDriverVersion())
    return None


def _handles(nvml: Any) -> list[Any]:
    if nvml is None:
        return []
    with suppress(nvml.NVMLError):
        return [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    return []


def _in_mig_mode(nvml: Any, handle: Any) -> bool:
    with suppress(nvml.NVMLError):
        return bool(nvml.nvmlDeviceGetMigMode(handle)[0])
    return False


def _identity(nvml: Any, bus: str, known: str | None, model: str) -> str:
    """A GPU's or instance's UUID; ``known``: by CUDA."""
    if nvml is not None:
        with suppress(nvml.NVMLError):
            handle = nvml.nvmlDeviceGetHandleByPciBusId(bus)
            if _in_mig_mode(nvml, handle):
                handle = _instance(nvml, handle, known)
            if handle is not None:
                return _text(nvml.nvmlDeviceGetUUID(handle))
    # CUDA's name of an instance is that of the GPU, "MIG" and the profile.
    return "" if known is None else f"{'MIG' if ' MIG ' in model else 'GPU'}-{known}"


def _instance(nvml: Any, whole: Any, known: str | None) -> Any:
    """NVML's handle of the one MIG instance of a GPU that this process sees; None if it is not found."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    names = [f"MIG-{known}"] * (known is not None)
    names += [name.strip() for name in named if name.strip().startswith("MIG-")]
    for name in names:
        with suppress(nvml.NVMLError):
            instance = nvml.nvmlDeviceGetHandleByUUID(name)
            parent = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(instance)
            if nvml.nvmlDeviceGetUUID(parent) == nvml.nvmlDeviceGetUUID(whole):
                return instance
    # Nobody has named one: then it is the first.
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(whole)):
        with suppress(nvml.NVMLError):
            return nvml.nvmlDeviceGetMigDeviceHandleByIndex(whole, index)
    return None


def _free(nvml: Any, gpu: FoundGpu) -> int | None:
    """Bytes free on a GPU or a MIG instance; None where NVML does not tell."""
    if nvml is None:
        return None
    with suppress(nvml.NVMLError):
        if gpu.uuid.startswith("MIG-"):
            instance = nvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
            return min(int(nvml.nvmlDeviceGetMemoryInfo(instance).free), gpu.total)
        handle = nvml.nvmlDeviceGetHandleByPciBusId(gpu.bus)
        # What is free of a whole GPU is not free for an instance of it.
        if not _in_mig_mode(nvml, handle):
            return int(nvml.nvmlDeviceGetMemoryInfo(handle).free)
    return None


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def refreshed(gpu: FoundGpu) -> FoundGpu:
    """The record with the memory that is free now."""
    return replace(gpu, free=_free(_open_nvml(), gpu)) if gpu.usable else gpu


def judged(gpu: FoundGpu) -> FoundGpu:
    """The record with what has happened to the GPU in this process."""
    failed = lost(gpu.name)
    if failed is None:
        return gpu
    return replace(
        gpu, problem=f"it failed earlier in this process: {failed}", advice="start the program again"
    )


# Text -----------------------------------------------------------------------------------------------------


def _version(package: str) -> str | None:
    from importlib import metadata  # a process without a GPU does without

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def _first_line(error: BaseException) -> str:
    lines = [line.strip(" =") for line in str(error).splitlines()]
    return next(filter(None, lines), type(error).__name__)
