"""Settings: from arguments, else from ``PROVER_*`` variables, else from the machine.

One :class:`Settings` record holds what every command and service shares, and remembers
where each value came from, so that ``gpuprover doctor`` and error messages can say it. A
new setting is one field, one parser and one line in ``_PARSERS``.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gpuprover.errors import InvalidInput

ENVIRONMENT_PREFIX = "PROVER_"

MAX_THREADS = 4096


@dataclass(frozen=True)
class Settings:
    """What one run may use.

    Attributes:
        device: ``auto``, ``cpu``, ``cuda``, ...; lower case, not yet checked against the backends.
        threads: at most this many threads work at once; at least 1.
        memory_limit: MiB for one proof, or None for no limit but the machine's.
        sources: field name -> ``"argument"``, the variable's name, or ``"machine"``.
    """

    device: str = "auto"
    threads: int = 1
    memory_limit: int | None = None
    sources: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


def whole_number(text: str, where: str, *, low: int = 1, high: int = 1 << 40) -> int:
    """``text`` as an integer in [low, high].

    Raises:
        InvalidInput: it is not; the message names ``where``.
    """
    stripped = text.strip()
    if (
        not (stripped.isascii() and stripped.isdigit() and len(stripped) <= 20)
        or not low <= int(stripped) <= high
    ):
        raise InvalidInput(f"{where}: expected a whole number from {low} to {high}, found {text[:40]!r}")
    return int(stripped)


def seconds(text: str, where: str) -> float:
    """``text`` as a positive number of seconds.

    Raises:
        InvalidInput: it is not.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        raise InvalidInput(f"{where}: expected a positive number of seconds, found {text[:40]!r}")
    return value


def _device(text: str, where: str) -> str:
    name = text.strip().lower()
    if not name:
        raise InvalidInput(f"{where}: expected auto, cpu or cuda, found nothing")
    return name


_PARSERS: Mapping[str, Callable[[str, str], Any]] = {
    "device": _device,
    "threads": partial(whole_number, high=MAX_THREADS),
    "memory_limit": whole_number,
}


def load_settings(
    arguments: Mapping[str, str | None], environment: Mapping[str, str] | None = None
) -> Settings:
    """Settings from arguments (field name -> text, None where not given), environment, machine.

    Raises:
        InvalidInput: a value cannot be used; the message names the option or the variable.
    """
    environment = os.environ if environment is None else environment
    values: dict[str, Any] = {"device": "auto", "memory_limit": None}
    sources = dict.fromkeys(_PARSERS, "machine")
    for name, parse in _PARSERS.items():
        option, variable = "--" + name.replace("_", "-"), ENVIRONMENT_PREFIX + name.upper()
        text = arguments.get(name)
        if text is not None:
            values[name], sources[name] = parse(text, option), "argument"
        elif environment.get(variable, "").strip():
            values[name], sources[name] = parse(environment[variable], variable), variable
    if "threads" not in values:
        values["threads"] = available_cpus()
    return Settings(**values, sources=MappingProxyType(sources))


def default_threads() -> int:
    """``PROVER_THREADS``, else the CPUs that this process may use.

    Raises:
        InvalidInput: the variable is set to something else than a whole number of at least 1.
    """
    return load_settings({}).threads


def gpu_memory_limit() -> int | None:
    """Bytes of a GPU's memory that this process may take: ``PROVER_GPU_MEMORY_LIMIT`` in MiB; None without.

    Raises:
        InvalidInput: the variable is set to something else than a whole number of at least 1.
    """
    text = os.environ.get("PROVER_GPU_MEMORY_LIMIT", "")
    return whole_number(text, "PROVER_GPU_MEMORY_LIMIT") << 20 if text.strip() else None


def available_cpus() -> int:
    """CPUs in this process's affinity mask, or fewer where a container's CPU quota is lower; at least 1."""
    if hasattr(os, "sched_getaffinity"):
        cpus = len(os.sched_getaffinity(0))
    else:
        cpus = os.cpu_count() or 1
    quota = cgroup_cpu_quota()
    if quota is not None:
        cpus = min(cpus, max(1, int(quota + 0.5)))
    return max(1, cpus)


def processor_name() -> str:
    """The processor's model as the system calls it."""
    for line in (_read(Path("/proc/cpuinfo")) or "").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None


def _cgroup_folders(root: Path, process: Path, controller: str) -> list[Path]:
    """This process's cgroup folder and its parents, innermost first, for v2 and for v1's ``controller``."""
    folders: list[Path] = []
    for line in (_read(process / "cgroup") or "").splitlines():
        parts = line.split(":", 2)
        if len(parts) != 3:
            continue
        if parts[1] == "":
            base = root
        elif controller in parts[1].split(","):
            base = root / controller
        else:
            continue
        inner = base / parts[2].lstrip("/")
        folders += [inner, *(p for p in inner.parents if p == base or base in p.parents)]
    return folders


def cgroup_cpu_quota(root: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc/self")) -> float | None:
    """CPUs that the tightest enclosing control group grants (2.0 is two whole CPUs); None where none does."""
    quotas = []
    for folder in _cgroup_folders(root, process, "cpu"):
        v2 = (_read(folder / "cpu.max") or "").split()
        v1 = [_read(folder / "cpu.cfs_quota_us") or "", _read(folder / "cpu.cfs_period_us") or ""]
        for pair in (v2, v1):
            if len(pair) == 2 and pair[0].isdigit() and pair[1].isdigit() and int(pair[0]) and int(pair[1]):
                quotas.append(int(pair[0]) / int(pair[1]))
    return min(quotas, default=None)


@dataclass(frozen=True)
class CgroupMemory:
    """Bytes that a control group may hold, and holds now but for cached files, which the kernel drops."""

    limit: int
    used: int


def cgroup_memory(
    root: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc/self")
) -> CgroupMemory | None:
    """The enclosing control group with the least room; None where none has a limit."""
    found = []
    for folder in _cgroup_folders(root, process, "memory"):
        limit = min(_cgroup_memory_limits(folder), default=None)
        usage = _read(folder / "memory.current") or _read(folder / "memory.usage_in_bytes") or ""
        if limit is None or not usage.isdigit():
            continue
        # v1 counts the groups below under names of their own.
        lines = (line.split() for line in (_read(folder / "memory.stat") or "").splitlines())
        stat = {words[0]: int(words[1]) for words in lines if len(words) == 2 and words[1].isdigit()}
        files = sum(stat.get(f"total_{name}", stat.get(name, 0)) for name in ("active_file", "inactive_file"))
        found.append(CgroupMemory(limit, max(0, int(usage) - files)))
    return min(found, key=lambda group: group.limit - group.used, default=None)


def cgroup_memory_limit(
    root: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc/self")
) -> int | None:
    """Bytes that the tightest enclosing control group grants; None where none does."""
    folders = _cgroup_folders(root, process, "memory")
    return min((limit for folder in folders for limit in _cgroup_memory_limits(folder)), default=None)


def _cgroup_memory_limits(folder: Path) -> list[int]:
    texts = [_read(folder / name) or "" for name in ("memory.max", "memory.high", "memory.limit_in_bytes")]
    # v1 writes "no limit" as a number near 2^63.
    return [int(text) for text in texts if text.isdigit() and int(text) < 1 << 60]
