"""Rows of a benchmark: one JSON object a line, with all that is needed to repeat the measurement.

A row is one contestant of one measurement. Its fields:

=================  ==================================================================================
operation          ``field mul``, ``ntt``, ``msm G1``, ``groth16 prove``, …
implementation     ``gpuprover``, or a peer's name
device, path,      of ours: the backend, the CPU's path (``ifma``, ``portable``) and the most threads
threads
mode               ``warm``: called in this process, key loaded. ``cold``: a whole process. ``first use``:
                   a whole process that compiles everything. ``once``: one call, not repeated
curve, log,        what is computed: 2^log elements or points, the kind of scalars; or a circuit
scalars, circuit
cpu, wall          seconds over the rounds: ``median_s``, ``q1_s``, ``q3_s``, ``min_s``, ``max_s``, ``rounds``
memory_limit       MiB that ours was allowed (``--memory-limit``), where it was bounded
phases             median seconds by phase
peak               bytes of resident memory at the peak, of whole processes
faster             of a peer: how many times faster each of ours was, round by round, in the same run
start, ready_s,    of ``processes`` and ``network``, where ``mode`` is an engine's policy: how it was started
first_proof_s, …   (``warm``, ``cold``, ``first use``); seconds until it was ready, of its first proof and
                   verification, of later ones (medians)
before, after, …   of those: role of processes -> their number, sums of ``rss``, ``pss``, ``private`` and
                   ``gpu`` bytes, the largest ``peak``
copies,            of ``key copies``: copies of a key's bytes that all workers hold, as mapped pages, and as
copies_in_all      all that their PSS grows by
skipped, error     why there are no figures
per_second, unit   a rate, of rows whose operation begins with ``rate``
share              the part of a GPU's measured multiplier rate that the work's products took
clients, proofs    of ``service load``, ``service burst``, ``service memory``: clients at once; proofs made
statuses,          answers to their requests by HTTP status; accepted proofs by the state they ended in;
outcomes, lost     requests and proofs that nothing was heard of any more
throughput,        proofs a second; seconds from a request to its proof, as ``wall`` has them, and
latency            ``p99_s``
memory, growth,    of the service's processes, bytes by role: medians over the second fifth of the proofs
…_per_1000_proofs  (``early``) and over the last one (``late``), the peak; what became more
kernels            seconds by kernel on a GPU, each launch awaited
launches           of a whole proof, beside the host's part of it; the device ``nothing`` does nothing
warps, clock_mhz   of a rate: those of a multiprocessor; what it ran at just afterwards, where NVML tells
left, metrics      tests that were not run; what Nsight Compute counted, by its names
case, tree, gpu,   of ``make gpu``: the case's name, a hash of the sources that it measures, the GPU and the
driver, …          versions of what drives it
run, seed,         origin: rows of one ``run`` were measured side by side; ``commit`` ends with ``+``
commit, version,   where tracked files differ from it
processor, …, time
=================  ==================================================================================
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gpuprover.errors import InvalidInput, MalformedFile
from gpuprover.machine import processor_name

SEED = 20240613
"""The seed of every random scalar and point."""

ROOT = Path(__file__).resolve().parent.parent
"""The checkout, or the folder that an installation put ``gpuprover.bench`` into."""

OURS = "gpuprover"

Row = dict[str, Any]


def in_checkout() -> bool:
    """Whether this is a checkout of the repository, and not an installed copy."""
    return (ROOT / ".git").exists() and (ROOT / "bench" / "rows.py").exists()


def cpu_model() -> str:
    """The processor's name, and whether it has AVX-512 IFMA."""
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        info = ""
    return f"{processor_name()}{', IFMA' if 'avx512ifma' in info else ''}"


def commit() -> str:
    """The checkout's commit, with ``+`` if tracked files differ from it; ``unknown`` outside a checkout.

    A copy of the files without their history is told its commit by the variable ``GPUPROVER_COMMIT``.
    """
    if not in_checkout():
        return os.environ.get("GPUPROVER_COMMIT") or "unknown"
    try:
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results")
        return _git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(*args: str) -> str:
    command = ["git", "-C", str(ROOT), *args]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


def default_output() -> Path:
    """Named by date and commit: under ``bench/results`` of a checkout, else in ``bench-results`` here."""
    folder = ROOT / "bench" / "results" if in_checkout() else Path("bench-results")
    return folder / f"{time.strftime('%Y-%m-%d-%H%M%S', time.gmtime())}-{commit().rstrip('+')}.jsonl"


class Rows:
    """Appends rows to a file, each on the disk as soon as it is measured, and keeps them in :attr:`all`.

    ``common`` are fields that all of them get.
    """

    def __init__(self, path: Path, common: Row | None = None) -> None:
        import numba

        from gpuprover import __version__

        self.path = path
        self.all: list[Row] = []
        self._common = {
            "run": f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.getpid()}",
            "seed": SEED,
            "commit": commit(),
            "version": __version__,
            "processor": cpu_model(),
            "processors": os.cpu_count(),
            "python": platform.python_version(),
            "numba": numba.__version__,
            **(common or {}),
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise InvalidInput(f"{path}: cannot write: {error.strerror}") from None

    def add(self, *rows: Row) -> None:
        """Rows of one call are written together."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        origin = {**self._common, "load": round(os.getloadavg()[0], 2), "time": now}
        full = [{**row, **origin} for row in rows]
        self._file.write("".join(json.dumps(row) + "\n" for row in full))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.all += full

    def close(self) -> None:
        self._file.close()


def significant(value: float) -> float:
    """Four significant digits: no measurement here has more."""
    return float(f"{value:.4g}")


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    q1, _, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return q1, q3


def spread(seconds: Sequence[float]) -> Row:
    """Median, quartiles, minimum and maximum in seconds, and the number of rounds."""
    q1, q3 = _quartiles(seconds)
    figures = {
        "median_s": statistics.median(seconds),
        "q1_s": q1,
        "q3_s": q3,
        "min_s": min(seconds),
        "max_s": max(seconds),
    }
    return {**{name: significant(value) for name, value in figures.items()}, "rounds": len(seconds)}


def times_faster(ours: Sequence[float], theirs: Sequence[float]) -> Row:
    """theirs / ours, round by round: median, quartiles, minimum and maximum; above 1 we are faster."""
    ratios = [b / a for a, b in zip(ours, theirs, strict=False) if a > 0]
    if not ratios:
        return {}
    q1, q3 = _quartiles(ratios)
    figures = {
        "median": statistics.median(ratios),
        "q1": q1,
        "q3": q3,
        "min": min(ratios),
        "max": max(ratios),
    }
    return {name: significant(value) for name, value in figures.items()}


# Reading -----------------------------------------------------------------------

_SMALL: Row = {"circuit": "merkle 1", "curve": "bn254"}
_OLD_OPERATIONS: dict[str, Row] = {
    "groth16 verify, warm": {"operation": "groth16 verify", "batch": 1},
    "groth16 verify, each of 1000": {"operation": "groth16 verify", "batch": 1000},
    "setup, insecure": {"operation": "setup"},
    "command line, small circuit, warm": {"operation": "groth16 prove", "mode": "cold", **_SMALL},
    "command line, small circuit, first use": {"operation": "groth16 prove", "mode": "first use", **_SMALL},
}


def _modern(row: Row, run: str) -> Row:
    """A row as today's benchmark would write it; rows written before it had peers have other names."""
    row = dict(row)
    operation = str(row["operation"])
    prefix = "groth16 prove, "
    if operation.startswith(prefix):
        row |= {"operation": "groth16 prove", "implementation": operation[len(prefix) :], "mode": "cold"}
        if "ours_over_theirs" in row:
            ratio = significant(1 / row.pop("ours_over_theirs"))
            ours = {name: row.get(name) for name in ("path", "threads")}
            row["faster"] = [{"device": "cpu", "mode": "warm", **ours, "cpu": {"median": ratio}}]
        row.pop("path", None)
    elif operation.startswith("ntt ") and "order" not in row and operation != "ntt to coset":
        row |= {"operation": "ntt", "order": "reversed", "direction": operation[4:]}
    else:
        row |= _OLD_OPERATIONS.get(operation, {})
    defaults: Row = {"implementation": OURS, "mode": "warm", "run": run}
    if row.get("implementation", OURS) == OURS:
        defaults["device"] = "cpu"
    return {**defaults, **row}


def read_rows(paths: Iterable[Path]) -> list[Row]:
    """The rows of several files, oldest first, under today's names.

    Raises:
        InvalidInput: a file cannot be read.
        MalformedFile: a line is no row.
    """
    rows: list[Row] = []
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise InvalidInput(f"{path}: cannot read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise MalformedFile(path, "rows", "expected JSON lines in UTF-8") from None
        for i, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if not isinstance(row, dict) or not isinstance(row["operation"], str):
                    raise ValueError
                rows.append(_modern(row, path.stem))
            except (ValueError, KeyError, TypeError, ZeroDivisionError):
                raise MalformedFile(
                    path, f"line {i}", "expected a row: an object with an operation"
                ) from None
    return sorted(rows, key=lambda row: str(row.get("time", "")))
