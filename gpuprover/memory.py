"""This process's memory, as the operating system counts it, and limits on it."""

from __future__ import annotations

import gc
import os
import resource
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakSet

from gpuprover.errors import InvalidInput, OutOfMemory, brief
from gpuprover.machine import CgroupMemory, cgroup_memory

MIB = 1 << 20
MB = 10**6
CODE_BYTES = 52 << 20
"""Numba and the compiled kernels, which are loaded when first used, and memory that malloc keeps."""

_PROC = Path("/proc")


@dataclass(frozen=True)
class MemoryUsage:
    """What a process holds now, in bytes; None where the system does not say it.

    Attributes:
        rss: resident memory, shared pages and mapped files included.
        pss: the same, but a page that n processes share counts as an n-th of one. Linux only.
        private: resident pages that no other process has. Linux only.
        external: resident pages of files and shared memory: mapped keys, libraries. Linux only.
        heap_used, heap_total: what malloc has given out, and what it holds; arrays are in it, Python's small
            objects are not. Of glibc, and of this process only.
        gpu_pool: taken from the pools of GPUs; of this process only.
    """

    rss: int
    pss: int | None = None
    private: int | None = None
    external: int | None = None
    heap_used: int | None = None
    heap_total: int | None = None
    gpu_pool: int | None = None

    def as_dict(self) -> dict[str, int | None]:
        return asdict(self)


def memory_usage() -> MemoryUsage:
    """What this process holds. Takes a millisecond or so, and longer where gigabytes are resident."""
    used, total = _heap()
    return MemoryUsage(
        resident(),
        *_shares("self"),
        heap_used=used,
        heap_total=total,
        gpu_pool=sum(pool.used for pool in list(_pools)),
    )


def usage_of(pid: int) -> MemoryUsage | None:
    """What another process holds, as far as this one may see it; None if there is no such process.

    ``pss`` and ``private`` of a process that is not dumpable only root sees: it has to tell them itself.
    """
    rss = _kilobytes(f"{pid}/status").get("VmRSS")
    return None if rss is None else MemoryUsage(rss, *_shares(str(pid)))


def peak_of(pid: int) -> int | None:
    """Bytes of the largest resident memory that another process has had; None if there is no such process."""
    return _kilobytes(f"{pid}/status").get("VmHWM")


def _shares(process: str) -> tuple[int | None, int | None, int | None]:
    """pss, private and external of a process in /proc."""
    rollup, status = _kilobytes(f"{process}/smaps_rollup"), _kilobytes(f"{process}/status")
    private = [rollup.get(name) for name in ("Private_Clean", "Private_Dirty", "Private_Hugetlb")]
    external = [status.get(name) for name in ("RssFile", "RssShmem")]
    return rollup.get("Pss"), _sum(private), _sum(external)


def _sum(values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _kilobytes(name: str) -> dict[str, int]:
    """The lines ``Name: n kB`` of a file in /proc, in bytes; {} if it cannot be read."""
    found = {}
    with suppress(OSError):
        for line in (_PROC / name).read_text(encoding="ascii", errors="replace").splitlines():
            words = line.split()
            if len(words) == 3 and words[2] == "kB" and words[1].isdigit():
                found[words[0].removesuffix(":")] = int(words[1]) * 1024
    return found


@lru_cache(maxsize=1)
def _c_library() -> Any:
    import ctypes

    with suppress(OSError):
        return ctypes.CDLL(None)
    return None


@lru_cache(maxsize=1)
def _mallinfo() -> Any:
    """glibc's mallinfo2, from 2.33 on; None elsewhere."""
    import ctypes

    class Mallinfo(ctypes.Structure):
        _fields_ = [
            (name, ctypes.c_size_t)
            for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
        ]

    function = getattr(_c_library(), "mallinfo2", None)
    if function is not None:
        function.restype, function.argtypes = Mallinfo, []
    return function


def _heap() -> tuple[int | None, int | None]:
    """What malloc has given out, and what it holds."""
    mallinfo = _mallinfo()
    if mallinfo is None:
        return None, None
    found = mallinfo()
    # Large pieces are mapped one by one (hblkhd), and stand outside the arenas.
    return found.uordblks + found.hblkhd, found.arena + found.hblkhd


class _Pool(Protocol):
    @property
    def used(self) -> int: ...


_pools: WeakSet[Any] = WeakSet()


def count_pool(pool: _Pool) -> None:
    """From now on ``pool.used`` bytes are part of this process's ``gpu_pool``, for the life of the pool."""
    _pools.add(pool)


def trim() -> int:
    """Collects garbage and hands back what malloc keeps for later -> bytes that became free."""
    before = resident_anonymous()
    gc.collect()
    function = getattr(_c_library(), "malloc_trim", None)
    if function is not None:
        function(0)
    return max(0, before - resident_anonymous())


def _lifetime_peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident() -> int:
    """Bytes of resident memory, mapped files included."""
    value = _kilobytes("self/status").get("VmRSS")
    return value if value is not None else _lifetime_peak()


def resident_anonymous() -> int:
    """Bytes of resident memory that no file backs: what counts against a limit."""
    value = _kilobytes("self/status").get("RssAnon")
    return value if value is not None else resident()


_clear_refs: int | None = None


def prepare() -> None:
    """Keeps open what :func:`reset_peak` needs, and what a process that is not dumpable may not open.

    To be called before prctl(PR_SET_DUMPABLE); once more does nothing.
    """
    global _clear_refs
    if _clear_refs is None:
        with suppress(OSError):
            _clear_refs = os.open(_PROC / "self/clear_refs", os.O_WRONLY | os.O_CLOEXEC)


def reset_peak() -> None:
    """Starts a new peak where Linux allows it; elsewhere the peak is the process's."""
    with suppress(OSError):
        if _clear_refs is None:
            (_PROC / "self/clear_refs").write_text("5")
        else:
            os.write(_clear_refs, b"5")


def peak() -> int:
    """Bytes of the largest resident memory since :func:`reset_peak`."""
    value = _kilobytes("self/status").get("VmHWM")
    return value if value is not None else _lifetime_peak()


def budget(limit: int | None) -> int | None:
    """Bytes that a limit in MiB leaves beyond what the process holds and its code takes; None for no limit.

    Raises:
        InvalidInput: the limit is no whole number of at least 1.
    """
    if limit is None:
        return None
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise InvalidInput(f"memory_limit: expected MiB, a whole number of at least 1, found {brief(limit)}")
    return max(0, limit * MIB - resident_anonymous() - CODE_BYTES)


def require(need: int, budget: int | None, what: str) -> None:
    """Raises OutOfMemory if ``what``, which takes ``need`` bytes, does not fit the budget in bytes."""
    if budget is not None and need > budget:
        raise OutOfMemory(
            f"memory limit: {what} needs {-(-need // MIB)} MiB, the limit leaves {budget // MIB} MiB"
        )


class LeakAlarm:
    """Says once when memory keeps growing faster than a limit.

    What a proof takes comes and goes, so that growth is that of the floor: the lowest amount of each fifth of
    the window. It alarms when the floor has risen from each fifth to the next, by half of the limit at least,
    and by the limit over all of them; a key that is loaded once raises it once. After an alarm the floor must
    grow more slowly than the limit over a whole window before there can be another.

    Args:
        limit: MB (10^6 bytes) a minute.
        window: seconds that are looked back on.

    Attributes:
        rate: MB a minute by which the floor grew over the last window; None before there was a whole one.
        alarms: how many there were.
    """

    PARTS = 5

    def __init__(self, limit: float, window: float = 300.0) -> None:
        self.rate: float | None = None
        self.alarms = 0
        self._limit, self._part = limit, window / self.PARTS
        self._floors: deque[float] = deque(maxlen=self.PARTS)
        self._now: tuple[int, float] | None = None
        self._armed = True

    def feed(self, time: float, amount: int) -> float | None:
        """An amount in bytes at a time in seconds -> MB a minute if it is an alarm, else None.

        Times only grow. A gap in which nothing was fed for a fifth of the window starts anew.
        """
        part = int(time // self._part)
        if self._now is None or part > self._now[0] + 1:
            self._floors.clear()
            self._now, self.rate = (part, amount), None
            return None
        if part == self._now[0]:
            self._now = part, min(self._now[1], amount)
            return None
        self._floors.append(self._now[1])
        self._now = part, amount
        return self._judge() if len(self._floors) == self.PARTS else None

    def _judge(self) -> float | None:
        to_rate = 60 / self._part / MB
        rates = [(b - a) * to_rate for a, b in pairwise(self._floors)]
        self.rate = sum(rates) / len(rates)
        if self.rate <= self._limit:
            self._armed = True
        elif self._armed and min(rates) > self._limit / 2:
            self._armed = False
            self.alarms += 1
            return self.rate
        return None


class Watermark:
    """Whether there is room for another proof: below a share of the limit, and of the container's limit.

    Args:
        limit: bytes that the prover's processes may hold; None for no limit but the container's.
        mark: the share from which on new proofs wait.
        container: what the control group holds and may hold, now; None where there is none.
    """

    def __init__(
        self,
        limit: int | None,
        mark: float,
        container: Callable[[], CgroupMemory | None] = cgroup_memory,
    ) -> None:
        self._limit, self._mark, self._container = limit, mark, container

    def excess(self, held: int) -> int:
        """Bytes to free before another proof starts, if the prover's processes hold ``held``; 0 for none."""
        marks = [] if self._limit is None else [held - int(self._mark * self._limit)]
        group = self._container()
        if group is not None:
            marks.append(group.used - int(self._mark * group.limit))
        return max(0, *marks, 0)
