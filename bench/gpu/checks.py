"""Tests with the marker ``gpu``, and compute-sanitizer: what runs in processes of its own kind."""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from gpuprover.curves import CURVES

from ..measure import Failed
from ..operations import FULL_WIDTH
from ..rows import Row
from . import journal
from .cases import BITS, Sizes
from .processes import PACKAGE, ROOT, Late, Worker, start, stop
from .rates import Skipped

TESTS = (
    "tests/gpu",
    "tests/test_backend.py",
    "tests/test_backend_columns.py",
    "tests/test_changing_data.py",
    "tests/systems/groth16/test_setup.py",
)
"""What holds tests with the marker ``gpu``: other modules need packages that a bare machine lacks."""
STARTS, DEATHS = 6, 2
"""Of one shard of the tests: it starts again after a test lost the device, or killed its process."""
TEST_LIMIT, START_LIMIT = 20.0, 60.0
"""Seconds for a test, unless told otherwise, and from a shard's start to its first one; then it hangs."""
SHOWN = 20
"""Failures in a row; the others stand in the journal."""
POLL_SECONDS = 0.1
LOGGED = 1 << 16
"""Characters of a tool's report that go into the log: files of the folder of keys stay on the machine."""


# Tests ---------------------------------------------------------------------------------------------


class _Shard:
    """Every n-th test, in a process after the other."""

    def __init__(self, by: str, file: Path, log: IO[str], options: list[str], patience: float) -> None:
        self.by, self._file, self._patience = by, file, patience
        self._command = [sys.executable, "-m", "pytest", *(str(ROOT / name) for name in TESTS)]
        self._command += ["-m", "gpu", "-q"]
        # Not the project's own options: they ask for plugins that a bare machine may lack.
        self._command += ["-p", f"{PACKAGE}.journal", "-p", "no:cacheprovider", "-o", "addopts="]
        self._command += ["--continue-on-collection-errors", *options]
        self._log = log
        self._deaths = self._starts = 0
        self.problem: str | None = None
        """Why it ended before its tests did."""
        self.start()

    def start(self) -> None:
        names = {journal.JOURNAL: str(self._file), journal.SHARD: self.by, "GPUPROVER_REQUIRE": "gpu"}
        names["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # whatever else a machine has installed
        self.process = start(self._command, self._log, names, cwd=ROOT)
        self._starts += 1
        self._since, self._seen = time.monotonic(), self._outcomes(journal.read(self._file))
        self._before, self._begun = self._seen, False

    def _outcomes(self, records: journal.Records) -> dict[str, str]:
        return {test: r["outcome"] for test, r in records.items() if r["by"] == self.by}

    def look(self, records: journal.Records) -> bool:
        """Ends it where it hangs, and starts it again where that is worth it; whether it goes on."""
        code, now = self.process.poll(), time.monotonic()
        if code is not None:
            records = journal.read(self._file)  # with all that it wrote
        outcomes = self._outcomes(records)
        if outcomes != self._seen:
            new = {test for test, o in outcomes.items() if o != "waiting" and self._before.get(test) != o}
            self._begun |= any("::" in test for test in new)  # others are modules that cannot be imported
            self._since, self._seen = now, outcomes
        hangs = code is None and now - self._since > (self._patience if self._begun else START_LIMIT)
        if code is None and not hangs:
            return True
        if hangs:
            with suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGABRT)  # pytest writes into the log where it is
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(1)
            stop(self.process)
        died = [test for test, r in self._outcomes(journal.read(self._file)).items() if r == "begun"]
        for test in died:
            says = f"it took more than {self._patience:.0f} s" if hangs else f"its process died ({code})"
            journal.write(self._file, self.by, test, "failed", says)
        # 0, 1, 5: done, with failures, with nothing to do; 2: interrupted, as by a lost device.
        if not died and code in (0, 1, 5):
            return False
        self._deaths += bool(died) or code != 2
        if self._begun and self._deaths < DEATHS and self._starts < STARTS:
            self.start()
            return True
        what = "hung" if hangs else f"ended with exit code {code}"
        self.problem = f"shard {self.by.partition('/')[0]} of the tests {what}"
        return False


def run_tests(
    file: Path,
    shards: int,
    limit: float,
    log: IO[str],
    options: list[str],
    *,
    patience: float = TEST_LIMIT,
    again: bool = False,
) -> Row:
    """The row of all tests; what ``limit`` seconds do not suffice for is ``left``.

    A test that takes more than ``patience`` seconds hangs, and is ended.
    ``file`` keeps the outcomes, from which a later call goes on; with ``again`` what failed runs once more.

    Raises:
        Skipped: there are no tests in this installation.
    """
    if not all((ROOT / name).exists() for name in TESTS):
        raise Skipped("the tests are not part of an installation; run them in a checkout")
    if again:
        journal.forget(file, "failed")
    end = time.monotonic() + limit
    run = os.getpid()
    all_ = [_Shard(f"{k}/{shards}/{run}", file, log, options, patience) for k in range(shards)]
    running = [*all_]
    try:
        while running and time.monotonic() < end:
            time.sleep(POLL_SECONDS)
            records = journal.read(file)
            running = [shard for shard in running if shard.look(records)]
    finally:
        for shard in running:
            stop(shard.process)
    problems = [shard.problem for shard in all_ if shard.problem is not None]
    return _row([*journal.read(file).values()], problems)


def _row(records: list[dict[str, str]], problems: list[str]) -> Row:
    counts = {o: sum(r["outcome"] == o for r in records) for o in ("passed", "failed", "skipped")}
    counts["left"] = sum(r["outcome"] in ("begun", "waiting") for r in records)
    failures = [{"test": r["test"], "says": r["says"]} for r in records if r["outcome"] == "failed"]
    row: Row = {"operation": "tests", "mode": "once", **counts, "failures": failures[:SHOWN]}
    said = [f"{len(failures)} tests failed, {r['test']}: {r['says']}" for r in failures[:1]] + problems[:1]
    if said and counts["left"]:
        said.append(f"{counts['left']} tests were not run")
    if not said and not counts["passed"] and not counts["left"]:
        said.append(f"no test passed, {counts['skipped']} were skipped")
    if said:
        row["error"] = "; ".join(said)
    return row


# compute-sanitizer --------------------------------------------------------------------------------------


def _find(name: str, *places: str) -> str:
    """A tool's path. Raises Skipped where it is not."""
    found = [path for place in places for path in sorted(Path("/").glob(place))]
    if path := shutil.which(name) or next(map(str, reversed(found)), None):
        return path
    raise Skipped(f"{name} is not on PATH, nor where CUDA's toolkit puts it")


def find_sanitizer() -> str:
    """The path of compute-sanitizer. Raises Skipped where it is not."""
    return _find(
        "compute-sanitizer",
        "opt/nvidia/**/compute-sanitizer/compute-sanitizer",
        "usr/local/cuda*/bin/compute-sanitizer",
    )


def find_profiler() -> str:
    """The path of Nsight Compute's command. Raises Skipped where it is not."""
    return _find("ncu", "opt/nvidia/nsight-compute/*/ncu", "usr/local/cuda*/bin/ncu")


def _under(
    prefix: list[str],
    requests: list[tuple[str, dict[str, Any]]],
    report: Path,
    log: IO[str],
    limit: float,
) -> str:
    """What a tool writes about a worker that it watches; into the log, too.

    Args:
        prefix: the tool's command, which writes into ``report``, in the folder of keys.

    Raises:
        Failed: as :meth:`Worker.ask`, or there was no end; the message holds what the tool said.
    """
    report.unlink(missing_ok=True)
    worker, end = Worker(report.parent, 1, log, prefix), time.monotonic() + limit
    problem: str | None = None
    try:
        for kind, arguments in requests:
            request = {"kind": kind, "arguments": arguments, "multiplier": None}
            worker.ask(request, end - time.monotonic())
        worker.finish(end - time.monotonic())
    except (Failed, Late) as failure:
        problem = str(failure) or f"took more than {limit:.0f} s"
    finally:
        worker.close()
    text = report.read_text(errors="replace") if report.exists() else ""
    log.write(text[:LOGGED])
    log.flush()
    if problem is not None:
        raise Failed(f"{problem}; {_complaint(text) or 'the tool said nothing'}")
    return text


_SUMMARY = re.compile(r"(?:ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard)")


def run_sanitizer(tool: str, sizes: Sizes, folder: Path, log: IO[str], limit: float) -> Row:
    """The row of a transform, a multiplication and a proof under one of the tools. Raises Failed, Skipped."""
    report = folder / f"{tool}.log"
    prefix = [find_sanitizer(), "--tool", tool, "--log-file", str(report)]
    log_ntt, log_msm, log_proof = sizes.sanitizer
    common = {"curve": CURVES[0].name, "rounds": 1, "cpu": False}
    small: list[tuple[str, dict[str, Any]]] = [
        ("ntt", {**common, "log": log_ntt}),
        ("msm", {**common, "group": "G1", "log": log_msm, "scalars": FULL_WIDTH, "distinct": 3}),
        ("proof", {**common, "circuit": BITS, "log": log_proof, "cold": False}),
    ]
    text = _under(prefix, small, report, log, limit)
    found = _SUMMARY.search(text)
    row: Row = {"operation": f"sanitizer {tool}", "mode": "once", "found": None}
    if found is None:
        return {**row, "error": _complaint(text) or "it wrote no summary"}
    row["found"] = int(found[1] or found[2])
    if row["found"]:
        row["error"] = f"{row['found']} found; the first: {_complaint(text)}"
    return row


def _complaint(report: str) -> str:
    """The first line that the tool wrote, after its own name and progress."""
    said = (line.lstrip("= ").strip() for line in report.splitlines())
    return next((line for line in said if line and not line.startswith(("COMPUTE-SANITIZER", "PROF="))), "")


# Nsight Compute ------------------------------------------------------------------------------------------

SECTIONS = (
    "SpeedOfLight", "ComputeWorkloadAnalysis", "SchedulerStats", "WarpStateStats", "Occupancy", "LaunchStats",
    "MemoryWorkloadAnalysis",
)  # fmt: skip
KEPT = re.compile(
    r"gpu__time_duration|pipe_(fma|alu|fp64|lsu)|issue_(active|slot|stalled)|inst_issued|warps_active|warps_eligible|"
    r"registers_per_thread|(dram|lts|sm)__throughput"
)
"""Which metrics of a profile become part of the row; all of them stand in the log."""


def run_profiler(kernel: str, operation: str, size: int, folder: Path, log: IO[str], limit: float) -> Row:
    """The row of one launch of a kernel under Nsight Compute, clocks left alone. Raises Failed, Skipped."""
    report, curve = folder / f"{kernel}.csv", CURVES[0].name
    prefix = [find_profiler(), "--clock-control", "none", "--kernel-name", kernel, "--launch-count", "1"]
    prefix += ["--csv", "--page", "raw", "--print-units", "base", "--log-file", str(report)]
    prefix += [word for name in SECTIONS for word in ("--section", name)]
    arguments = {"operation": operation, "curve": curve, "log": size}
    text = _under(prefix, [("once", arguments)], report, log, limit)
    row: Row = {"operation": f"profile {kernel}", "mode": "once", "curve": curve, "log": size}
    metrics = read_profile(text)
    if not metrics:
        return {**row, "error": _complaint(text) or "it wrote no profile"}
    return {**row, "metrics": {name: value for name, value in metrics.items() if KEPT.search(name)}}


def read_profile(text: str) -> dict[str, float]:
    """Metric -> value of the first kernel in a table: a line of names, one of units, one a kernel."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    table = [*csv.reader(lines)]
    if len(table) < 3:
        return {}
    found = {}
    for name, value in zip(table[0], table[2], strict=False):
        with suppress(ValueError):
            found[name] = float(value.replace(",", ""))
    return found
