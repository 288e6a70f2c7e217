"""Tests with the marker ``gpu``, and compute-sanitizer: what runs in processes of its own kind."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

from gpuprover.curves import CURVES

from ..measure import Failed
from ..rows import Row
from . import journal
from .cases import BITS, Sizes
from .processes import PACKAGE, ROOT, Late, Worker, start, stop
from .rates import Skipped

CUDA = "cuda"
STARTS = 6
"""Of one shard of the tests: it starts again after a test that killed its process, or lost the device."""
TEST_LIMIT = 90
"""Seconds for a test, where pytest-timeout is installed."""
SHOWN = 20
"""Failures in a row; the others stand in the journal."""
POLL_SECONDS = 0.05


# Tests ---------------------------------------------------------------------------------------------


def _shard(by: str, file: Path, log: IO[str], options: list[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pytest", str(ROOT / "tests"), "-m", "gpu", "-q"]
    # Not the project's own options: they ask for plugins that a bare machine may lack.
    command += ["-p", f"{PACKAGE}.journal", "-p", "no:cacheprovider", "-o", "addopts="]
    command += ["-o", f"timeout={TEST_LIMIT}", *options]
    names = {journal.JOURNAL: str(file), journal.SHARD: by, "GPUPROVER_REQUIRE": "gpu"}
    return start(command, log, names, cwd=ROOT)


def run_tests(file: Path, shards: int, limit: float, log: IO[str], options: list[str]) -> Row:
    """The row of all tests; ``file`` keeps the outcomes, from which a later call goes on.

    Raises:
        Late: not all are done after ``limit`` seconds.
        Skipped: there are no tests in this installation.
    """
    if not (ROOT / "tests" / "conftest.py").exists():
        raise Skipped("the tests are not part of an installation; run them in a checkout")
    end = time.monotonic() + limit
    left = {f"{k}/{shards}/{os.getpid()}": STARTS for k in range(shards)}
    running: dict[str, subprocess.Popen[bytes]] = {}
    codes: dict[str, int] = {}
    try:
        while left:
            for by in left.keys() - running.keys():
                running[by] = _shard(by, file, log, options)
            time.sleep(POLL_SECONDS)
            for by in [by for by, process in running.items() if process.poll() is not None]:
                code = codes[by] = running.pop(by).returncode
                left[by] -= 1
                died = [t for t, r in journal.read(file).items() if (r["outcome"], r["by"]) == ("begun", by)]
                for test in died:
                    journal.write(file, by, test, "failed", f"its process died ({code})")
                # 2: interrupted, as by a lost device; 0, 1, 5: done, with failures, with nothing to do.
                if left[by] == 0 or (code in (0, 1, 5) and not died):
                    del left[by]
            if left and time.monotonic() > end:
                raise Late
    finally:
        for process in running.values():
            stop(process)
    return _row([*journal.read(file).values()], [*codes.values()])


def _row(records: list[dict[str, str]], codes: list[int]) -> Row:
    counts = {o: sum(r["outcome"] == o for r in records) for o in ("passed", "failed", "skipped")}
    failures = [{"test": r["test"], "says": r["says"]} for r in records if r["outcome"] == "failed"]
    row: Row = {"operation": "tests", "mode": "once", **counts, "failures": failures[:SHOWN]}
    odd = [code for code in codes if code not in (0, 1, 5)]
    if failures:
        row["error"] = f"{counts['failed']} tests failed, {failures[0]['test']}: {failures[0]['says']}"
    elif odd:
        row["error"] = f"pytest ended with exit code {odd[0]}"
    elif not counts["passed"]:
        row["error"] = f"no test passed, {counts['skipped']} were skipped"
    return row


# compute-sanitizer --------------------------------------------------------------------------------------


def find_sanitizer() -> str:
    """Its path. Raises Skipped where it is not."""
    found = shutil.which("compute-sanitizer")
    places = [*Path("/usr/local").glob("cuda*/bin/compute-sanitizer")]
    places += Path("/opt/nvidia").glob("**/compute-sanitizer/compute-sanitizer")
    found = found or next(map(str, places), None)
    if found is None:
        raise Skipped("compute-sanitizer is not on PATH, nor where CUDA's toolkit puts it")
    return found


_SUMMARY = re.compile(r"(?:ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard)")


def run_sanitizer(tool: str, sizes: Sizes, folder: Path, log: IO[str], limit: float) -> Row:
    """The row of a transform, a multiplication and a proof under one of the tools.

    Raises:
        Late, Failed: as :meth:`Worker.ask`; the message holds what the tool said.
    """
    command, report = find_sanitizer(), folder / f"{tool}.log"
    report.unlink(missing_ok=True)
    prefix = [command, "--tool", tool, "--log-file", str(report)]
    worker = Worker(folder, 1, log, prefix)
    end = time.monotonic() + limit
    log_ntt, log_msm, log_proof = sizes.sanitizer
    curve = CURVES[0].name
    small: list[tuple[str, dict[str, Any]]] = [
        ("ntt", {"curve": curve, "log": log_ntt}),
        ("msm", {"curve": curve, "group": "G1", "log": log_msm, "scalars": "full width", "distinct": 3}),
        ("proof", {"curve": curve, "circuit": BITS, "log": log_proof, "cold": False}),
    ]
    try:
        for kind, arguments in small:
            request = {"kind": kind, "arguments": {**arguments, "rounds": 1, "cpu": False}}
            worker.ask({**request, "multiplier": None}, end - time.monotonic())
        worker.finish(end - time.monotonic())
    except Failed as failure:
        raise Failed(f"{failure}; {_complaint(report) or 'the tool said nothing'}") from None
    finally:
        worker.close()
    text = report.read_text(errors="replace") if report.exists() else ""
    found = _SUMMARY.search(text)
    row: Row = {"operation": f"sanitizer {tool}", "mode": "once", "found": None}
    if found is None:
        return {**row, "error": _complaint(report) or "it wrote no summary"}
    row["found"] = int(found[1] or found[2])
    if row["found"]:
        row["error"] = f"{row['found']} found; the first: {_complaint(report)}"
    return row


def _complaint(report: Path) -> str:
    """The first line that the tool wrote, after its own name."""
    lines = report.read_text(errors="replace").splitlines() if report.exists() else []
    said = (line.lstrip("= ").strip() for line in lines)
    return next((line for line in said if line and not line.startswith("COMPUTE-SANITIZER")), "")
