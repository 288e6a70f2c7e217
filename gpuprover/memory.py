"""This process's memory, as the operating system counts it."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path

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
