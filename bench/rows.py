"""Rows of a benchmark: one JSON object a line, with all that is needed to repeat the measurement."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def cpu_model() -> str:
    """The processor's name, and whether it has AVX-512 IFMA."""
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    name = next(
        (line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")), ""
    )
    return f"{name or platform.machine()}{', IFMA' if 'avx512ifma' in info else ''}"


def commit() -> str:
    """The checkout's commit, with ``+`` if files differ from it; ``unknown`` outside a checkout."""
    try:
        return _git("rev-parse", "--short=12", "HEAD") + ("+" if _git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(*args: str) -> str:
    command = ["git", "-C", str(ROOT), *args]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


class Rows:
    """Appends rows to a file and shows them; a row is flushed as soon as it is measured."""

    def __init__(self, path: Path | None) -> None:
        import numba

        from gpuprover.cpu.path import cpu_path

        self._path = path
        self._common = {
            "commit": commit(),
            "processor": cpu_model(),
            "processors": os.cpu_count(),
            "path": cpu_path().name,
            "python": platform.python_version(),
            "numba": numba.__version__,
        }
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, operation: str, **figures: Any) -> None:
        assert not figures.keys() & self._common.keys()
        row = {"operation": operation, **figures, **self._common, "load": round(os.getloadavg()[0], 2)}
        row["time"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        shown = ", ".join(f"{k} {v}" for k, v in figures.items())
        print(f"{operation}: {shown}", file=sys.stderr, flush=True)
        if self._path is not None:
            with self._path.open("a") as out:
                out.write(json.dumps(row) + "\n")


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median, minimum and maximum, in seconds."""
    return {
        "median_s": round(statistics.median(seconds), 5),
        "min_s": round(min(seconds), 5),
        "max_s": round(max(seconds), 5),
    }


def cpu_seconds(call: Callable[[], object]) -> float:
    """CPU time of this process, all threads, for one call."""
    begun = time.process_time()
    call()
    return time.process_time() - begun


def command_seconds(command: Sequence[str], environment: dict[str, str] | None = None) -> tuple[float, float]:
    """(CPU, wall) seconds of a whole process and its children.

    Raises:
        RuntimeError: it ended with an error.
    """
    begun = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ, **(environment or {})}
    )
    assert process.stderr is not None
    tail = process.stderr.read()[-300:]
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command[0]}: exit code {process.returncode}: {tail.decode(errors='replace')}")
    return usage.ru_utime + usage.ru_stime, time.perf_counter() - begun
