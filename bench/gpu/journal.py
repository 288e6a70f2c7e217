"""A plugin of pytest: tests in shards, outcomes on the disk one by one, an end where the device is lost.

``GPUPROVER_JOURNAL`` names the file of outcomes, a JSON object a line; tests that stand in it are left out.
``GPUPROVER_SHARD`` is k/n/run: every n-th test from the k-th on. Shards share the file, and sign their lines.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

JOURNAL, SHARD = "GPUPROVER_JOURNAL", "GPUPROVER_SHARD"
Records = dict[str, dict[str, Any]]
OPEN = ("waiting", "begun")
"""Outcomes of tests that are to be run."""
LONGEST = 300
"""Characters of a failure's line."""


def read(path: Path) -> Records:
    """Test -> the last line about it; a torn line is passed over."""
    outcomes = {}
    if path.exists():
        for line in path.read_text(errors="replace").splitlines():
            try:
                record = json.loads(line)
                outcomes[str(record["test"])] = record
            except (ValueError, KeyError, TypeError):
                continue
    return outcomes


def _line(by: str, test: str, outcome: str, says: str = "") -> str:
    return json.dumps({"test": test, "outcome": outcome, "says": says[:LONGEST], "by": by}) + "\n"


def _append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write(path: Path, by: str, test: str, outcome: str, says: str = "") -> None:
    _append(path, _line(by, test, outcome, says))


def forget(path: Path, outcome: str) -> None:
    """Tests with this outcome are to be run again; modules that could not be imported, read again."""
    again = [(r["by"], test) for test, r in read(path).items() if r["outcome"] == outcome]
    if again:
        lines = (_line(by, test, "waiting" if "::" in test else "forgotten") for by, test in again)
        _append(path, "".join(lines))


def _says(report: Any) -> str:
    """The line of a report that tells most."""
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else str(report.longrepr)
    errors = [line[1:] for line in text.splitlines() if line.startswith("E  ")]
    return " ".join((errors[-1] if errors else text).split())


def _device_is_lost() -> bool:
    """After an error that no call of this process gets over."""
    if "cupy" not in sys.modules:
        return False
    from cupy.cuda import runtime

    from gpuprover.cuda import probe
    from gpuprover.cuda.gpus import gpus

    try:
        runtime.deviceSynchronize()
    except RuntimeError:
        return True
    return any(probe.lost(gpu.name) is not None for gpu in gpus())


def _function(test: str) -> str:
    """The test without its parameters."""
    return test.partition("[")[0]


class Journal:
    def __init__(self, path: Path, by: str) -> None:
        self._path, self._by = path, by
        self._shard, self._shards = map(int, by.split("/")[:2])
        self._worst: dict[str, tuple[str, str]] = {}
        self._session: Any = None

    def pytest_sessionstart(self, session: Any) -> None:
        self._session = session

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        done = read(self._path)
        mine = [
            item
            for i, item in enumerate(items)
            if i % self._shards == self._shard
            and (item.nodeid not in done or done[item.nodeid]["outcome"] in OPEN)
        ]
        if len(mine) < len(items):
            kept = set(map(id, mine))
            config.hook.pytest_deselected(items=[item for item in items if id(item) not in kept])
        # What is like a test that failed comes last: it may kill this process, too, and hide the rest.
        failed = {_function(test) for test, record in done.items() if record["outcome"] == "failed"}
        items[:] = sorted(mine, key=lambda item: _function(item.nodeid) in failed)
        new = [item.nodeid for item in items if item.nodeid not in done]
        if new:
            _append(self._path, "".join(_line(self._by, test, "waiting") for test in new))

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            write(self._path, self._by, report.nodeid, "failed", _says(report))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        write(self._path, self._by, nodeid, "begun")

    def pytest_runtest_logreport(self, report: Any) -> None:
        held = self._worst.get(report.nodeid, ("passed", ""))
        if report.failed or (report.skipped and held[0] == "passed"):
            held = (report.outcome, _says(report))
        self._worst[report.nodeid] = held
        if report.when == "teardown":
            write(self._path, self._by, report.nodeid, *self._worst.pop(report.nodeid))
            if held[0] == "failed" and _device_is_lost():
                self._session.shouldstop = "the device is lost"


def pytest_configure(config: Any) -> None:
    config.pluginmanager.register(Journal(Path(os.environ[JOURNAL]), os.environ[SHARD]))
