"""This process's memory, as the operating system counts it, and limits on it."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path

from gpuprover.errors import InvalidInput, OutOfMemory

MIB = 1 << 20
CODE_BYTES = 52 << 20
"""Numba and the compiled kernels, which are loaded when first used, and memory that malloc keeps."""

_STATUS = Path("/proc/self/status")


def _status_bytes(field: str) -> int | None:
    with suppress(OSError, ValueError, IndexError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    return None


def _lifetime_peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident() -> int:
    """Bytes of resident memory, mapped files included."""
    value = _status_bytes("VmRSS")
    return value if value is not None else _lifetime_peak()


def resident_anonymous() -> int:
    """Bytes of resident memory that no file backs: what counts against a limit."""
    value = _status_bytes("RssAnon")
    return value if value is not None else resident()


def reset_peak() -> None:
    """Starts a new peak where Linux allows it; elsewhere the peak is the process's."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Bytes of the largest resident memory since :func:`reset_peak`."""
    value = _status_bytes("VmHWM")
    return value if value is not None else _lifetime_peak()


def budget(limit: int | None) -> int | None:
    """Bytes that a limit in MiB leaves beyond what the process holds and its code takes; None for no limit.

    Raises:
        InvalidInput: the limit is no whole number of at least 1.
    """
    if limit is None:
        return None
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise InvalidInput(f"memory_limit: expected MiB as a whole number of at least 1, found {limit!r}")
    return max(0, limit * MIB - resident_anonymous() - CODE_BYTES)


def require(need: int, budget: int | None, what: str) -> None:
    """Raises OutOfMemory if ``what``, which takes ``need`` bytes, does not fit the budget in bytes."""
    if budget is not None and need > budget:
        raise OutOfMemory(
            f"memory limit: {what} needs {-(-need // MIB)} MiB, the limit leaves {budget // MIB} MiB"
        )
