"""``gpuprover doctor`` and ``warmup``: what this machine offers, what is used and why."""

from __future__ import annotations

import os
import platform
import sys
from argparse import Namespace
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuprover.cli.console import format_bytes, format_seconds
from gpuprover.cli.context import Context, job_of
from gpuprover.config import Settings
from gpuprover.errors import EXIT_OK, EXIT_RESOURCES, DeviceError, InvalidInput, ProverError
from gpuprover.machine import available_cpus, cgroup_cpu_quota, cgroup_memory_limit, machine_memory

if TYPE_CHECKING:
    from gpuprover.cuda.probe import FoundGpu

FEATURES = ("adx", "bmi2", "avx2", "avx512f", "avx512ifma", "asimd", "sve")
"""CPU features that matter to a prover, as Linux names them."""

Record = dict[str, Any]


def run(args: Namespace, context: Context) -> int:
    import gpuprover

    sections: list[tuple[str, Callable[[], Record]]] = [
        ("python", _python),
        ("cpu", lambda: _cpu(context.settings)),
        ("memory", lambda: _memory(context.settings)),
        ("gpu", _gpu),
        ("device", lambda: _device(context.settings)),
        ("placement", lambda: _placement(context.settings)),
        ("cache", _cache),
        ("packages", _packages),
    ]
    record: Record = {"gpuprover": gpuprover.__version__}
    for name, look in sections:
        try:
            record[name] = look()
        except Exception as error:  # a doctor reports what fails, and goes on
            record[name] = {"problem": f"{type(error).__name__}: {error}"}
    record["problems"] = problems = _problems(record, context.settings)
    context.console.answer(record, _text(record, context))
    if not args.check:
        return EXIT_OK
    for problem in problems:
        context.console.warn(f"this cannot prove: {problem}")
    return EXIT_RESOURCES if problems else EXIT_OK


def _problems(record: Record, settings: Settings) -> list[str]:
    """What would keep a proof from being made here, with these settings."""
    from gpuprover.curves import CURVES
    from gpuprover.devices import open_backend, resolve_device
    from gpuprover.job import Job

    problems = [f"{name}: {part['problem']}" for name, part in record.items() if "problem" in part]
    try:
        resolve_device(settings.device)
        # The CPU's backend verifies every proof. A GPU is not opened: that takes memory, and a second.
        open_backend("cpu", CURVES[0], Job(threads=1))
    except ProverError as error:
        problems.append(error.message)
    if record["cache"].get("folder") is None:
        problems.append("no folder for compiled code can be used")
    return problems


def _python() -> Record:
    return {
        "version": platform.python_version(),
        "implementation": platform.python_implementation(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "machine": platform.machine(),
    }


def _cpu(settings: Settings) -> Record:
    model, flags = _cpu_model()
    return {
        "model": model,
        "features": [name for name in FEATURES if name in flags],
        "cpus": os.cpu_count(),
        "usable": available_cpus(),
        "quota": cgroup_cpu_quota(),
        "threads": settings.threads,
        "threads_from": settings.sources.get("threads", "machine"),
        **_cpu_path(),
    }


def _cpu_model() -> tuple[str, set[str]]:
    model, flags = platform.processor() or platform.machine(), set[str]()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return model, flags
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            model = value.strip()
        elif name.strip() in ("flags", "Features"):
            flags = set(value.split())
            break
    return model, flags


def _cpu_path() -> Record:
    """The arithmetic that the ``cpu`` backend uses here, and why."""
    from gpuprover.cpu.path import cpu_path
    from gpuprover.errors import ProverError

    try:
        path = cpu_path()
    except ProverError as error:
        return {"path": None, "why": error.message}
    return {"path": path.name, "why": path.reason}


def _memory(settings: Settings) -> Record:
    total, available = machine_memory()
    address_space = None
    try:
        import resource

        soft = resource.getrlimit(resource.RLIMIT_AS)[0]
        address_space = None if soft == resource.RLIM_INFINITY else soft
    except ImportError:
        pass
    return {
        "total": total,
        "available": available,
        "container_limit": cgroup_memory_limit(),
        "address_space_limit": address_space,
        "limit_mib": settings.memory_limit,
        "limit_from": settings.sources.get("memory_limit", "machine"),
    }


def _gpu() -> Record:
    """The GPUs of this machine, which of them can be used, and why not."""
    from gpuprover.cuda.probe import survey

    found = survey()
    return {
        "found": [_gpu_record(gpu) for gpu in found.gpus],
        "driver": found.driver,
        "driver_cuda": _dotted(found.driver_cuda),
        "cupy": found.cupy,
        "nvrtc": _dotted(found.nvrtc),
        "why": found.problem,
        "advice": found.advice,
    }


def _gpu_record(gpu: FoundGpu) -> Record:
    return {
        "name": gpu.name,
        "uuid": gpu.uuid,
        "model": gpu.model,
        "architecture": gpu.architecture,
        "memory": gpu.total,
        "memory_free": gpu.free,
        "usable": gpu.usable,
        "why": gpu.problem,
        "advice": gpu.advice,
    }


def _dotted(version: tuple[int, int] | None) -> str | None:
    return None if version is None else "{}.{}".format(*version)


def _device(settings: Settings) -> Record:
    """What ``--device`` comes to here, and what the others would."""
    from gpuprover.devices import device_names, resolve_device

    def outcome(name: str) -> str:
        try:
            return resolve_device(name)
        except ProverError as error:
            return f"refused: {error.message}"

    return {
        "requested": settings.device,
        "from": settings.sources.get("device", "machine"),
        "used": outcome(settings.device),
        "known": {name: outcome(name) for name in device_names() if name != "auto"},
    }


def _placement(settings: Settings) -> Record:
    """What ``auto`` expects a proof to take on each device, and why."""
    from gpuprover import calibration
    from gpuprover.systems import system as systems

    machine = calibration.devices(settings.threads)
    works = [
        calibration.work_name(name, curve)
        for name in systems.names()
        for curve in systems.system_named(name).curves
    ]
    return {"times": calibration.describe(calibration.load(), machine, works)}


def _cache() -> Record:
    from gpuprover.cpu.image import open_image
    from gpuprover.cpu.sources import store
    from gpuprover.curves import CURVES
    from gpuprover.folders import places

    found, folder = places(), store().folder
    passed_over = [*found.doubts, *found.problems]
    if folder is None:
        why = "; ".join(["no folder can be used: set GPUPROVER_CACHE_DIR to one that can", *passed_over])
        return {"folder": None, "why": why, "passed_over": passed_over}
    files = store().files()
    beside = list(folder.parent.iterdir())
    return {
        "folder": str(folder),
        "passed_over": passed_over,
        "writable": found.writable is not None,
        "files": len(files),
        "bytes": sum(files.values()),
        "stale": len([p for p in beside if p.name.startswith("numba-") and p != folder]),
        "images": [curve.name for curve in CURVES if open_image(curve) is not None],
        "cubins": _cubins(folder.parent),
    }


def _cubins(cache: Path) -> int:
    """CUDA kernels compiled for GPUs, by this user or before."""
    from gpuprover.cuda.compile import built_folders

    return sum(len(list(f.glob("*.cubin"))) for f in (*cache.glob("cubin-*"), *built_folders()))


def _packages() -> Record:
    names = ("numpy", "numba", "llvmlite", "wasmtime", "rich", "nvidia-ml-py", "nvidia-cuda-nvrtc")
    return {name: _version(name) for name in names}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _text(record: Record, context: Context) -> str:
    """The record for people."""
    out: list[tuple[str, str]] = [("gpuprover", str(record["gpuprover"]))]
    writers: dict[str, Callable[[Record], str]] = {
        "python": lambda r: f"{r['implementation']} {r['version']}, {r['platform']}\n{r['executable']}",
        "cpu": _cpu_text,
        "memory": _memory_text,
        "gpu": _gpu_text,
        "device": _device_text,
        "placement": lambda r: "\n".join(r["times"]),
        "cache": _cache_text,
        "packages": lambda r: ", ".join(f"{n} {v}" if v else f"{n} not installed" for n, v in r.items()),
    }
    for name, write in writers.items():
        part = record[name]
        out.append((name, f"problem: {part['problem']}" if "problem" in part else write(part)))
    return context.console.table(out)


def _cpu_text(r: Record) -> str:
    quota = f", quota {r['quota']:g} CPUs" if r["quota"] else ""
    return "\n".join(
        [
            f"{r['model']} ({', '.join(r['features']) or 'no special features'})",
            f"{r['cpus']} CPUs, {r['usable']} usable{quota}; "
            f"{r['threads']} threads (from {_source(r['threads_from'])})",
            f"path: {r['path']} ({r['why']})",
        ]
    )


def _source(name: str) -> str:
    return {"machine": "the machine", "argument": "the command line"}.get(name, name)


def _memory_text(r: Record) -> str:
    parts = [f"{format_bytes(r['total'])} in all" if r["total"] else "size unknown"]
    if r["available"]:
        parts.append(f"{format_bytes(r['available'])} available")
    if r["container_limit"]:
        parts.append(f"the container's limit is {format_bytes(r['container_limit'])}")
    if r["address_space_limit"]:
        parts.append(f"ulimit -v is {format_bytes(r['address_space_limit'])}")
    limit = f"{r['limit_mib']} MiB (from {_source(r['limit_from'])})" if r["limit_mib"] else "none set"
    return ", ".join(parts) + f"\nlimit for one proof: {limit}"


def _gpu_text(r: Record) -> str:
    lines = []
    for gpu in r["found"]:
        free = f" ({format_bytes(gpu['memory_free'])} free)" if gpu["memory_free"] is not None else ""
        lines.append(
            f"{gpu['name']}: {gpu['model']}, {gpu['architecture']}, {format_bytes(gpu['memory'])}{free}"
            if gpu["usable"]
            else f"{gpu['name']}: {gpu['model']}, not usable: {_why(gpu)}"
        )
    if not r["found"]:
        lines.append(f"none: {_why(r)}")
    if r["driver_cuda"]:
        parts = [f"driver {r['driver']}" if r["driver"] else "driver", f"for CUDA {r['driver_cuda']}"]
        made = [f"CuPy {r['cupy']}" if r["cupy"] else "no CuPy"]
        made.append(f"NVRTC {r['nvrtc']}" if r["nvrtc"] else "no NVRTC")
        lines.append(", ".join([" ".join(parts), *made]))
    return "\n".join(lines)


def _why(r: Record) -> str:
    return "; ".join(filter(None, [r["why"], r["advice"]]))


def _device_text(r: Record) -> str:
    lines = [f"{r['requested']} (from {_source(r['from'])}) -> {r['used']}"]
    for name, used in r["known"].items():
        refused = used.startswith("refused")
        lines.append(f"{name}: {'not available' if refused else 'available' if used == name else used}")
    return "\n".join(lines)


def _cache_text(r: Record) -> str:
    if r["folder"] is None:
        return f"none: {r['why']}"
    state = (
        f"{r['files']} files, {format_bytes(r['bytes'])}" if r["files"] else "empty: run `gpuprover warmup`"
    )
    stale = f"; {r['stale']} folders of other versions beside it" if r["stale"] else ""
    cubins = f"\n{r['cubins']} cubins of CUDA kernels" if r["cubins"] else ""
    images = f"\nimages of compiled kernels: {', '.join(r['images'])}" if r["images"] else ""
    instead = "".join(f"\n{problem}" for problem in r["passed_over"])
    writable = "" if r["writable"] else ", not writable"
    return f"{r['folder']}\n{state}{writable}{stale}{images}{cubins}{instead}"


def warmup(args: Namespace, context: Context) -> int:
    import time

    from gpuprover.curves import CURVES, curve_by_name

    curves = None
    if args.curve is not None:
        try:
            curves = [curve_by_name(args.curve)]
        except KeyError:
            known = ", ".join(curve.name for curve in CURVES)
            raise InvalidInput(f"--curve: expected one of {known}; found {args.curve!r}") from None
    gpu = _usable_gpu(context.settings.device)
    begun = time.perf_counter()
    with context.work("compile") as limits:
        from gpuprover.cpu import warmup as compile_everything

        job = job_of(limits)
        compile_everything(curves=curves, job=job)
        if gpu is not None:
            from gpuprover.cuda.gpus import open_device
            from gpuprover.cuda.source import proving_programs

            with job.phase(f"compile for {gpu}"):
                open_device(gpu).prepare([p for curve in curves or CURVES for p in proving_programs(curve)])
    seconds = time.perf_counter() - begun
    cache = _cache()
    text = f"compiled in {format_seconds(seconds)}, cache: {_cache_text(cache)}"
    record = {
        "ok": True,
        "seconds": round(seconds, 3),
        "timings": {phase: round(value, 3) for phase, value in job.timings.items()},
        "cache": cache,
    }
    context.console.answer(record, text)
    return EXIT_OK


def _usable_gpu(device: str) -> str | None:
    """The GPU that proofs on ``device`` would use. Raises DeviceError where one was asked for by name."""
    from gpuprover.devices import is_gpu, resolve_device

    if device == "auto":
        try:
            return resolve_device("cuda")
        except DeviceError:
            return None
    name = resolve_device(device)
    return name if is_gpu(name) else None
