"""The machine that this process runs on: its CPUs and memory, and what control groups grant of them.

Control groups are read from /sys/fs/cgroup, version 2 or 1, the enclosing ones included; a file that is
missing or unreadable grants everything. No setting is looked at here.
"""

from __future__ import annotations

import operator
import os
import platform
from pathlib import Path
from typing import NamedTuple


def machine_memory() -> tuple[int | None, int | None]:
    """Bytes of memory that the machine has, and that are available now; None where it does not say."""
    found: dict[str, int] = {}
    for line in (_read(Path("/proc/meminfo")) or "").splitlines():
        words = line.split()
        if len(words) == 3 and words[1].isdigit():
            found[words[0]] = int(words[1]) * 1024
    total = found.get("MemTotal:")
    if total is None and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return total, found.get("MemAvailable:")


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
    quotas = [_cgroup_quota(folder) for folder in _cgroup_folders(root, process, "cpu")]
    return min((quota for quota in quotas if quota is not None), default=None)


class CgroupThrottling(NamedTuple):
    """What a control group's CPU quota has cost so far.

    Attributes:
        periods: periods of the quota in which something ran.
        throttled: those of them in which the quota was used up.
        seconds: time that threads waited for the next one.
    """

    periods: int
    throttled: int
    seconds: float


def cgroup_throttling(
    root: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc/self")
) -> CgroupThrottling | None:
    """Of the enclosing control group with the tightest quota; None where none has one."""
    found = []
    for folder in _cgroup_folders(root, process, "cpu"):
        quota = _cgroup_quota(folder)
        lines = (line.split() for line in (_read(folder / "cpu.stat") or "").splitlines())
        stat = {words[0]: int(words[1]) for words in lines if len(words) == 2 and words[1].isdigit()}
        if quota is not None and "nr_periods" in stat:
            # Microseconds in v2, nanoseconds in v1.
            waited = stat.get("throttled_usec", 0) / 1e6 + stat.get("throttled_time", 0) / 1e9
            found.append((quota, CgroupThrottling(stat["nr_periods"], stat.get("nr_throttled", 0), waited)))
    return min(found, key=operator.itemgetter(0))[1] if found else None


def _cgroup_quota(folder: Path) -> float | None:
    """CPUs that a control group grants."""
    v2 = (_read(folder / "cpu.max") or "").split()
    v1 = [_read(folder / "cpu.cfs_quota_us") or "", _read(folder / "cpu.cfs_period_us") or ""]
    for pair in (v2, v1):
        if len(pair) == 2 and pair[0].isdigit() and pair[1].isdigit() and int(pair[0]) and int(pair[1]):
            return int(pair[0]) / int(pair[1])
    return None


class CgroupMemory(NamedTuple):
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


def cgroup_throttled(root: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc/self")) -> float:
    """Seconds for which CPU quotas have held this process's control groups up; 0 where there are none."""
    worst = 0.0
    for folder in _cgroup_folders(root, process, "cpu"):
        for line in (_read(folder / "cpu.stat") or "").splitlines():
            name, _, value = line.partition(" ")
            # v2 counts microseconds, v1 nanoseconds.
            unit = {"throttled_usec": 1e-6, "throttled_time": 1e-9}.get(name)
            if unit is not None and value.isdigit():
                worst = max(worst, int(value) * unit)
    return worst


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
