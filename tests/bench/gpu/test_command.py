"""``make gpu`` without a GPU: order, deadline, resumption, failures; whole runs on the emulated device."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gpuprover.bench import rows
from gpuprover.bench.gpu import cases, checks, command, journal, measures, preparing, processes, rates
from gpuprover.bench.gpu import worker as worker_module
from gpuprover.bench.measure import Failed

from gpuprover.cpu import warm
from gpuprover.cuda import compile, cupy_device, gpus
from gpuprover.cuda import residency as gpu_module
from gpuprover.cuda.device import Program
from gpuprover.cuda.msm_plan import Tuning
from gpuprover.cuda.probe import FoundGpu, Survey
from gpuprover.cuda.source import programs, sources
from gpuprover.curves import BN254, CURVES, Group
from gpuprover.errors import EXIT_INVALID, EXIT_OK
from tests.support import fake_cupy
from tests.support.emulator import EmulatedDevice
from tests.support.paths import ROOT, TESTS
from tests.support.running import Run

pytestmark = pytest.mark.kernels_offline
REHEARSAL = TESTS / "rehearsal"

Row = dict[str, Any]
Answer = Callable[[str, Mapping[str, Any]], Row]


# With a worker that answers at once -------------------------------------------------------------


class Scripted:
    """In place of a process that launches kernels."""

    asked: list[str]
    limits: dict[str, float]
    answer: Answer

    def __init__(self, *_: object) -> None:
        pass

    def ask(self, request: Mapping[str, Any], limit: float) -> Row:
        kind = str(request["kind"])
        if kind == "environment":
            return {
                "rows": [{"operation": kind, "name": "Imagined GPU", "driver": "1", "architecture": "sm_90"}]
            }
        Scripted.limits[kind] = limit
        Scripted.asked.append(kind)
        return Scripted.answer(kind, request)

    def close(self) -> None:
        pass


class Nothing:
    """In place of what compiles: all is there."""

    said, row, complete = "", None, True

    def look(self) -> list[str]:
        return []

    def there(self, need: cases.Need) -> bool:
        return True

    def close(self) -> None:
        pass


def good(kind: str, request: Mapping[str, Any]) -> Row:
    words = request["arguments"]
    if kind == "rate":
        row = {"operation": f"rate {words['name']}", "per_second": 2.0, "unit": "things"}
        return {"rows": [{**row, "wall": rows.spread([0.5])}]}
    return {"rows": [{"operation": kind, "wall": rows.spread([0.5]), "multiplier": request["multiplier"]}]}


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> type[Scripted]:
    Scripted.asked, Scripted.limits, Scripted.answer = [], {}, staticmethod(good)
    monkeypatch.setattr(command, "Worker", Scripted)
    monkeypatch.setattr(command, "Cubins", lambda *_: Nothing())
    monkeypatch.setattr(command, "HostCode", lambda *_: Nothing())
    row = {"operation": "tests", "passed": 1, "left": 0}
    monkeypatch.setattr(command, "run_tests", lambda *_, **options: row)
    monkeypatch.setattr(command, "run_sanitizer", lambda *_: {"operation": "sanitizer", "found": 0})
    monkeypatch.setattr(command, "run_profiler", lambda **_: {"operation": "profile", "metrics": {}})
    return Scripted


@pytest.fixture
def gpu(tmp_path: Path) -> Callable[..., int]:
    def run(*arguments: object) -> int:
        folders = ["--output", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
        return command.main([*folders, "--sizes", "tiny", *map(str, arguments)])

    return run


def written(tmp_path: Path) -> list[Row]:
    lines = (tmp_path / "out" / "rows.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["operation"] != "environment"]


def names(tmp_path: Path) -> list[str]:
    return [row["case"] for row in written(tmp_path)]


def planned(sizes: str = "tiny") -> list[str]:
    """What a run does whose tests leave nothing over."""
    return [case.name for case in cases.plan(cases.SIZES[sizes]) if case.name != cases.REST]


def test_cases_have_names_of_their_own_and_come_in_order() -> None:
    for sizes in cases.SIZES.values():
        plan = [case.name for case in cases.plan(sizes)]
        assert len(set(plan)) == len(plan)
        assert plan[:2] == ["rate wide multiplies", "rate wide rows"]
    at = {case.name: i for i, case in enumerate(cases.plan(cases.SIZES["full"]))}
    # First figures of every operation, then tests and tools, then the large sizes.
    figures = [f"{what} 2^20" for what in ("ntt bn254", "proof bits bn254", "proof chain bn254")]
    figures += [f"msm {group} bn254 2^20 full width" for group in ("G1", "G2")]
    assert max(at[name] for name in figures) < at["tests"] < at["sanitizer memcheck"]
    larger = [
        i for name, i in at.items() if re.search(r"2\^2[2-6]|, .*(runs|rounds)|profile|bls12-381 2", name)
    ]
    assert at["tests"] < at["sanitizer racecheck"] < min(larger)
    # What decides about constants comes before what takes minutes.
    plan = [case for case in cases.plan(cases.SIZES["full"]) if case.kind == "proof"]
    minutes = [at[case.name] for case in plan if case.seconds > 60]
    decides = r", (runs|tile|block|. rounds)|profile|rate"
    assert max(i for name, i in at.items() if re.search(decides, name)) < min(minutes)
    first = list(cases.plan(cases.SIZES["full"]))[: at["tests"]]
    assert sum(case.seconds for case in first) < 90
    last = r"2\^26|G2 bls|rest|proof \w+ bn254 2\^24"
    assert [name for name in at if re.search(last, name)] == [*at][-10:]


def test_what_cases_need_has_a_name_that_compiles_it() -> None:
    assert {*cases.CPU_STEPS} == {*warm.steps(BN254)}
    for case in cases.plan(cases.SIZES["full"]):
        needs = {(need.kind, need.step) for need in case.needs}
        assert needs
        if case.kind in ("tests", "proof", "sanitizer"):
            assert (cases.CPU_CODE, "") in needs
        if case.kind == "rate":
            assert cases.CPU_CODE not in {kind for kind, _ in needs}
    kinds = {step for case in cases.plan(cases.SIZES["full"]) for _, _, step in case.needs}
    assert kinds <= {"", *cases.CPU_STEPS}


def test_predictions_follow_what_was_measured() -> None:
    small, large, other = (
        cases.Case(name, kind, s) for name, kind, s in [("a", "k", 2), ("b", "k", 8), ("c", "l", 8)]
    )
    assert cases.corrected(large, []) == 8
    assert cases.corrected(large, [(small, 1.0)]) == 4
    assert cases.corrected(large, [(small, 1.0), (large, 9.0)]) == 8
    assert cases.corrected(other, [(small, 1.0)]) == 8
    # One odd case does not decide alone.
    assert cases.corrected(large, [(small, 0.001)]) == 2
    assert cases.corrected(large, [(small, 1e6)]) == 32


def test_neither_failures_nor_what_is_not_there_change_a_prediction(
    scripted: type[Scripted], gpu: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor do tests that this installation does not have keep a run from its end."""

    def answer(kind: str, request: Mapping[str, Any]) -> Row:
        if kind == "ntt":
            raise Failed("wrong")
        return {"skipped": "not here"} if kind == "msm" else good(kind, request)

    def missing(*_: object, **options: object) -> Row:
        raise rates.Skipped("no tests")

    scripted.answer = staticmethod(answer)
    monkeypatch.setattr(command, "run_tests", missing)
    assert gpu() == EXIT_INVALID
    found = {row["case"]: row["predicted_s"] for row in written(tmp_path) if "predicted_s" in row}
    plan = {case.name: case for case in cases.plan(cases.SIZES["tiny"])}
    for name in ("ntt bls12-381 2^5", "msm G1 bls12-381 2^5 full width"):
        assert found[name] == round(plan[name].seconds, 1)
    assert found["proof bits bls12-381 2^3"] < plan["proof bits bls12-381 2^3"].seconds


def test_nothing_waits_for_code_that_it_does_not_need(
    scripted: type[Scripted], gpu: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(Nothing):
        """Sums are compiled last, once there is nothing else to do."""

        looks = 0

        def look(self) -> list[str]:
            self.looks += 1
            return []

        def there(self, need: cases.Need) -> bool:
            return need.step != "sums G1" or self.looks > 12

    monkeypatch.setattr(command, "HostCode", lambda *_: Slow())
    assert gpu("--only", "wide,ntt bn254,msm G1 bn254 2^4 full") == EXIT_OK
    found = names(tmp_path)
    assert found[:2] == ["rate wide multiplies", "rate wide rows"]
    # Transforms, of which one stands behind the sums in the plan.
    assert [name.split()[0] for name in found[2:5]] == ["ntt", "ntt", "ntt"]
    assert len(found) > 5
    assert {name.split()[0] for name in found[5:]} == {"msm"}


def test_all_that_fits_is_measured_once(
    scripted: type[Scripted], gpu: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu() == EXIT_OK
    plan = planned()
    assert names(tmp_path) == plan
    origin = {"gpu": "Imagined GPU", "driver": "1", "tree": command.tree()}
    assert all(origin.items() <= row.items() for row in written(tmp_path))
    # The measured rate goes to all that come after it.
    assert {row["multiplier"] for row in written(tmp_path) if row["operation"] == "ntt"} == {2.0}
    scripted.asked.clear()
    assert gpu() == EXIT_OK
    assert scripted.asked == []
    assert names(tmp_path) == plan
    assert "rows in" in capsys.readouterr().out


def test_a_failure_is_a_row_and_the_rest_goes_on(
    scripted: type[Scripted], gpu: Callable[..., int], tmp_path: Path
) -> None:
    def answer(kind: str, request: Mapping[str, Any]) -> Row:
        if kind == "msm":
            raise Failed("cuda:0: illegal address")
        return good(kind, request)

    scripted.answer = staticmethod(answer)
    assert gpu() == EXIT_INVALID
    found = written(tmp_path)
    assert [row["case"] for row in found] == planned()
    assert {row.get("error") for row in found if row["case"].startswith("msm")} == {"cuda:0: illegal address"}
    scripted.asked.clear()
    scripted.answer = staticmethod(good)
    assert gpu() == EXIT_OK
    assert scripted.asked == []
    assert gpu("--again") == EXIT_OK
    assert set(scripted.asked) == {"msm"}


def test_what_does_not_fit_the_time_is_left_for_the_next_call(
    scripted: type[Scripted],
    gpu: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Half of what a tool is predicted to take, and of the tests, of which a part is worth a third.
    monkeypatch.setattr(command._Run, "remaining", property(lambda self: 8.0))
    assert gpu() == EXIT_OK
    tools = [f"sanitizer {tool}" for tool in (*cases.EARLY_TOOLS, *cases.LATE_TOOLS)]
    left = {"tests", *tools, *(f"profile {kernel}" for kernel in cases.PROFILED)}
    assert f"{len(left) + 1} cases are left for another call" in capsys.readouterr().out
    assert not left & set(names(tmp_path))
    assert all(limit <= 8 for limit in scripted.limits.values())
    before = set(names(tmp_path))
    # What nearly fits is begun when nothing else is there.
    monkeypatch.setattr(command._Run, "remaining", property(lambda self: 11.0))
    assert gpu() == EXIT_OK
    assert {row["case"] for row in written(tmp_path)} - before == {n for n in left if "profile" in n}
    monkeypatch.undo()
    assert len(names(tmp_path)) == len(set(names(tmp_path)))


def test_tests_that_time_does_not_suffice_for_go_on_at_the_end_and_in_the_next_call(
    scripted: type[Scripted], gpu: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [7, 3, 0]
    limits = []

    def run(file: Path, shards: int, limit: float, *_: object, **options: object) -> Row:
        limits.append(limit)
        return {"operation": "tests", "passed": 1, "left": left.pop(0)}

    monkeypatch.setattr(command, "run_tests", run)
    assert gpu("--only", "tests") == EXIT_OK
    assert names(tmp_path) == ["tests", cases.REST]
    assert limits[0] == cases.TESTS_SECONDS < limits[1]
    assert gpu("--only", "tests") == EXIT_OK
    assert names(tmp_path) == ["tests", cases.REST, "tests"]
    assert gpu("--only", "tests") == EXIT_OK
    assert left == []


def test_a_case_that_the_deadline_cuts_off_leaves_no_row(
    scripted: type[Scripted], gpu: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [1e6]

    def late(kind: str, request: Mapping[str, Any]) -> Row:
        left[0] = 0.0
        raise processes.Late

    scripted.answer = staticmethod(late)
    monkeypatch.setattr(command._Run, "remaining", property(lambda self: left[0]))
    assert gpu("--only", "ntt") == EXIT_OK
    assert (names(tmp_path), len(scripted.asked)) == ([], 1)


def test_a_case_that_hangs_has_failed(
    scripted: type[Scripted], gpu: Callable[..., int], tmp_path: Path
) -> None:
    def late(kind: str, request: Mapping[str, Any]) -> Row:
        raise processes.Late

    scripted.answer = staticmethod(late)
    assert gpu("--only", "ntt bn254 2^4") == EXIT_INVALID
    (row,) = written(tmp_path)
    assert row["error"] == f"took more than {checks.TEST_LIMIT:.0f} s"


def test_code_that_could_not_be_compiled_in_advance_may_take_its_time(
    scripted: type[Scripted], gpu: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gpu("--only", "ntt bn254 2^4") == EXIT_OK
    for name in ("Cubins", "HostCode"):
        late = Nothing()
        late.complete = False
        with monkeypatch.context() as patch:
            patch.setattr(command, name, lambda *_, late=late: late)
            assert gpu("--only", f"ntt bn254 2^{5 if name == 'Cubins' else 6}") == EXIT_OK
        assert scripted.limits["ntt"] == checks.TEST_LIMIT + command.COMPILE_LIMIT


def test_rows_of_other_sources_or_gpus_do_not_count(
    scripted: type[Scripted], gpu: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gpu("--only", "ntt") == EXIT_OK
    count = len(scripted.asked)
    elsewhere = tmp_path / "elsewhere.jsonl"
    shutil.move(tmp_path / "out" / "rows.jsonl", elsewhere)
    assert gpu("--only", "ntt", "--resume", elsewhere) == EXIT_OK
    assert len(scripted.asked) == count
    monkeypatch.setattr(command, "tree", lambda: "another")
    assert gpu("--only", "ntt", "--resume", elsewhere) == EXIT_OK
    assert len(scripted.asked) == 2 * count


def test_a_torn_line_is_cut_off(scripted: type[Scripted], gpu: Callable[..., int], tmp_path: Path) -> None:
    assert gpu("--only", "ntt bn254 2^4") == EXIT_OK
    path = tmp_path / "out" / "rows.jsonl"
    with path.open("a") as file:
        file.write('{"operation": "nt')
    assert gpu("--only", "ntt") == EXIT_OK
    assert len(rows.read_rows([path])) == len(path.read_text().splitlines())


# Rows of a GPU in the report ------------------------------------------------------------------------


def test_the_report_takes_the_rows(
    scripted: type[Scripted],
    gpu: Callable[..., int],
    tmp_path: Path,
    run: Run,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert gpu() == EXIT_OK
    capsys.readouterr()
    made = run("bench", "report", tmp_path / "out" / "rows.jsonl", "--output", tmp_path / "r.html", "--json")
    assert made.code == EXIT_OK
    assert made.answer["count"] == len(written(tmp_path)) + 1


# Tests in shards ---------------------------------------------------------------------------------------

SUITE = """
import os, time, pytest
pytestmark = pytest.mark.gpu

@pytest.mark.parametrize("i", range(3))
def test_good(i): pass

def test_bad(): assert 1 == 2, "one is not two"

def test_skipped(): pytest.skip("device 'cuda' is not there")

@pytest.mark.parametrize("i", range(3))
def test_dies(i): time.sleep(100) if i == 2 else os._exit(9)

def test_after_it(): pass
"""


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of tests in place of ours, with a module that wants what is not installed."""
    folder = tmp_path / "suite"
    folder.mkdir()
    (folder / "conftest.py").write_text("")
    (folder / "test_suite.py").write_text(SUITE)
    (folder / "test_wants.py").write_text("import no_such_package")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    monkeypatch.setattr(checks, "ROOT", tmp_path)
    monkeypatch.setattr(checks, "TESTS", ("suite",))
    return folder


def test_outcomes_survive_tests_that_kill_their_process_or_hang(suite: Path, tmp_path: Path) -> None:
    file = tmp_path / "journal"
    with (tmp_path / "log.txt").open("a") as log:
        row = checks.run_tests(file, 1, 60, log, [])
        says = {entry["test"].rpartition("::")[2]: entry["says"] for entry in row["failures"]}
        assert "one is not two" in says["test_bad"]
        assert "no_such_package" in says["suite/test_wants.py"]
        assert says["test_dies[0]"] == says["test_dies[1]"] == "its process died (9)"
        # What came after the first death went before its like; the second one was the last.
        assert (row["passed"], row["failed"], row["skipped"], row["left"]) == (4, 4, 1, 1)
        assert row["error"].startswith("4 tests failed")
        assert row["error"].endswith("shard 0 of the tests ended with exit code 9; 1 tests were not run")
        # What is known is not run again; what hangs costs its limit.
        (suite / "test_suite.py").write_text(SUITE.replace("pass", "assert False"))
        row = checks.run_tests(file, 1, 60, log, [], patience=3.0)
        says = {entry["test"].rpartition("::")[2]: entry["says"] for entry in row["failures"]}
        assert says["test_dies[2]"] == "it took more than 3 s"
        assert (row["passed"], row["failed"], row["skipped"], row["left"]) == (4, 5, 1, 0)
    assert (
        "time.sleep(100)" in (tmp_path / "log.txt").read_text()
        or "in test_dies" in (tmp_path / "log.txt").read_text()
    )


def test_tests_in_shards_are_cut_off_and_run_again(suite: Path, tmp_path: Path) -> None:
    file = tmp_path / "journal"
    with (tmp_path / "log.txt").open("a") as log:
        row = checks.run_tests(file, 2, 0, log, [])
        assert (row["passed"], row["failed"], row["left"]) == (0, 0, 0)
        journal.write(file, "0/2/1", "suite/test_suite.py::test_bad", "waiting")
        row = checks.run_tests(file, 2, 60, log, ["-k", "good or bad or wants"])
        assert (row["passed"], row["failed"], row["left"]) == (3, 2, 0)
        by = {record["by"].split("/")[0] for record in journal.read(file).values()}
        assert by == {"0", "1"}
        (suite / "test_suite.py").write_text(SUITE.replace("assert 1 == 2", "assert True"))
        (suite / "test_wants.py").write_text("")
        row = checks.run_tests(file, 1, 60, log, ["-k", "good or bad"], again=True)
        assert (row["passed"], row["failed"], row["left"]) == (4, 0, 0)
        assert "error" not in row


def test_a_shard_that_begins_no_test_is_not_started_again(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (suite / "conftest.py").write_text(
        "import pytest\ndef pytest_sessionstart(): pytest.exit('no', returncode=2)"
    )
    started: list[object] = []
    real = checks.start
    monkeypatch.setattr(checks, "start", lambda *a, **k: started.append(a) or real(*a, **k))
    with (tmp_path / "log.txt").open("a") as log:
        row = checks.run_tests(tmp_path / "journal", 1, 60, log, [])
    assert row["error"] == "shard 0 of the tests ended with exit code 2"
    assert len(started) == 1


def test_a_lost_device_costs_a_start_and_no_test(suite: Path, tmp_path: Path) -> None:
    """The process ends itself after the test that lost it; the others run in the next one."""
    (suite / "test_wants.py").unlink()
    (suite / "conftest.py").write_text(
        "from gpuprover.bench.gpu import journal\nlost = []\njournal._device_is_lost = lambda: bool(lost)"
    )
    lines = ["import pytest, conftest", "pytestmark = pytest.mark.gpu"]
    lines += ["def test_a(): conftest.lost.append(1); assert False, 'illegal address'", "def test_b(): pass"]
    (suite / "test_suite.py").write_text("\n".join(lines))
    with (tmp_path / "log.txt").open("a") as log:
        row = checks.run_tests(tmp_path / "journal", 1, 60, log, [])
    assert (row["passed"], row["failed"], row["left"]) == (1, 1, 0)
    assert "test_a: AssertionError: illegal address" in row["error"]
    # Where asking the device is what hangs, that is a death, and what is left runs all the same.
    (suite / "conftest.py").write_text(
        "from gpuprover.bench.gpu import journal\nimport time\n"
        "journal._device_is_lost = lambda: time.sleep(100)"
    )
    (suite / "test_suite.py").write_text("\n".join(lines).replace("conftest.lost.append(1); ", ""))
    with (tmp_path / "log.txt").open("a") as log:
        row = checks.run_tests(tmp_path / "other", 1, 60, log, [], patience=3.0)
    assert (row["passed"], row["failed"], row["left"]) == (1, 1, 0)


def test_all_tests_with_the_marker_lie_where_they_are_looked_for(request: pytest.FixtureRequest) -> None:
    """In a run of all tests that says something of all of them."""
    places = [ROOT / name for name in checks.TESTS]
    assert all(place.exists() for place in places)
    marked = {item.path for item in request.session.items if item.get_closest_marker("gpu")}
    assert [path for path in marked if not any(path.is_relative_to(place) for place in places)] == []


def test_a_journal_with_a_torn_line_is_read(tmp_path: Path) -> None:
    file = tmp_path / "j"
    journal.write(file, "0/1/1", "a", "begun")
    journal.write(file, "0/1/1", "a", "passed")
    journal.write(file, "0/1/1", "b", "begun")
    with file.open("a") as torn:
        torn.write('{"test": "c", "outc')
    assert {t: r["outcome"] for t, r in journal.read(file).items()} == {"a": "passed", "b": "begun"}


# Clocks ------------------------------------------------------------------------------------------------


class Clocked:
    """A device whose kernels take a second by its own clock, and whose streams each have their own."""

    def __init__(self) -> None:
        self.now = {0: 0.0, 1: 0.0}
        self.waits = 0

    def launch(self, program: object, kernel: str, *words: object, stream: int = 0) -> None:
        self.now[stream] += 1

    def synchronize(self) -> None:
        self.waits += 1

    def mark(self, stream: int = 0) -> float:
        return self.now[stream]

    def seconds(self, start: float, end: float) -> float:
        return end - start


def test_kernels_are_timed_by_the_devices_clock() -> None:
    device = Clocked()
    with measures._profile(device) as seconds:
        for kernel, stream in (("a", 0), ("b", 1), ("a", 0)):
            device.launch(None, kernel, stream=stream)
    assert seconds == {"a": 2.0, "b": 1.0}
    assert device.waits == 3  # nothing else runs beside a kernel
    device.launch(None, "c")
    assert "c" not in seconds


def test_waits_of_a_measurement_do_not_nap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cupy_device, "SPIN_SECONDS", 0.0)
    monkeypatch.setattr(worker_module, "SPIN_SECONDS", 60.0)
    machine = fake_cupy.Machine()
    machine.install(monkeypatch)
    machine.lazy = 200  # queries until a stream is done
    naps: list[float] = []
    monkeypatch.setattr(cupy_device.time, "sleep", naps.append)
    gpu = FoundGpu("cuda:0", "0", "fake", "sm_90", 1 << 30, 1 << 30)
    monkeypatch.setattr(gpus, "_survey", lambda: Survey(gpus=(gpu,)))
    monkeypatch.setattr(gpus, "_open", {})
    device = worker_module._machine(tmp_path, 1).device
    address = device.allocate(256)
    device.fill(address, 0, 256)
    device.synchronize()
    assert naps == []
    device.release(address)


# Tunings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", cases.TUNINGS)
def test_sums_are_measured_with_another_tuning(name: str) -> None:
    changes, device = cases.TUNINGS[name], EmulatedDevice()
    if not changes.keys() <= {field.name for field in fields(Tuning)}:
        pytest.skip("this version has no such tuning: the case is passed over")

    def found() -> dict[str, Any]:
        plan = gpu_module.choose(BN254, (Group.G1,), 1 << 12, device.properties)
        return {field: getattr(plan.tuning, field) for field in changes}

    before = found()
    with measures._tuned(changes):
        assert found() == changes != before
    assert found() == before


def test_a_tuning_that_this_version_does_not_have_is_passed_over() -> None:
    with pytest.raises(rates.Skipped, match="no tuning called spam"), measures._tuned({"spam": 1}):
        raise AssertionError


# What is compiled meanwhile ------------------------------------------------------------------------------

ARCHITECTURE = "sm_90"
RATES = Program(BN254, rates.SOURCE)
PROGRAMS = [program for curve in CURVES for program in programs(curve)]


@pytest.fixture
def carried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of cubins that come with the sources; nothing else has any."""
    folder = tmp_path / "carried"
    folder.mkdir()
    monkeypatch.setattr(compile, "package_folder", lambda: folder)
    monkeypatch.setenv("GPUPROVER_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv(compile.CUBIN_VARIABLE, raising=False)
    return folder


def compiled(folder: Path, name: str) -> None:
    compile.write_cubin(folder / name, b"cubin")


def test_cubins_are_made_where_they_are_looked_for() -> None:
    assert compile.package_folder() == ROOT / preparing.CARRIED
    assert f"--output {preparing.CARRIED}\n" in (ROOT / "Makefile").read_text()
    assert f"/{preparing.CARRIED}/" in (ROOT / ".gitignore").read_text().splitlines()


def test_carried_cubins_are_found_and_nothing_is_compiled(
    carried: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for program in PROGRAMS:
        compiled(carried, compile.file_name(program, ARCHITECTURE))
    monkeypatch.setattr(preparing, "start", None)
    with (tmp_path / "log").open("a") as log:
        cubins = preparing.Cubins(ARCHITECTURE, None, 1, log)
    assert cubins.said == f"cubins: {len(PROGRAMS)} of {len(PROGRAMS)} are there"
    assert cubins.complete
    assert cubins.row is not None
    assert (cubins.row["cubins"], cubins.row["compiled"]) == (len(PROGRAMS), 0)


def test_what_is_missing_is_compiled_to_where_every_process_looks(
    carried: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvrtc = SimpleNamespace(version=(13, 0))
    monkeypatch.setattr(preparing, "find_nvrtc", {13: nvrtc}.get)
    compiled(carried, f"{compile.program_name(PROGRAMS[0])}.{ARCHITECTURE}.{'0' * 20}.cubin")
    process = SimpleNamespace(poll=lambda: None)
    commands: list[list[str]] = []
    monkeypatch.setattr(preparing, "start", lambda command, log: commands.append(command) or process)
    with (tmp_path / "log").open("a") as log:
        cubins = preparing.Cubins(ARCHITECTURE, 13, 3, log)
    said = f"cubins: 0 of {len(PROGRAMS)} are there; those in {carried} are of other sources: "
    assert said in cubins.said
    (command,) = commands
    folder = Path(command[command.index("--output") + 1])
    rates, others = (cases.Need(kind, "bn254") for kind in (cases.RATES_CODE, cases.CUDA_CODE))
    assert not cubins.there(rates)
    for program in programs(BN254):
        name = compile.file_name(program, ARCHITECTURE)
        compiled(folder, name)
        assert cubins.there(rates) is (folder / compile.file_name(RATES, ARCHITECTURE)).exists()
    assert cubins.there(others)
    assert not cubins.there(cases.Need(cases.CUDA_CODE, "bls12-381"))
    # No variable tells it, which only processes that are started later would have.
    for program in programs(BN254):
        assert compile.find_cubin(program, ARCHITECTURE, nvrtc) == b"cubin"
    cubins.look()
    assert cubins.row is None
    process.poll = lambda: 1
    cubins.look()
    assert cubins.row is not None
    assert cubins.row["error"].startswith("not all kernels could be compiled")
    assert cubins.there(cases.Need(cases.CUDA_CODE, "bls12-381"))
    assert not cubins.complete


def test_the_cpus_code_is_compiled_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tmp_path / "go"
    os.mkfifo(pipe)
    # A step, then the others once the test says so, of which the last fails.
    script = "import sys; print('hello', sys.argv[1], sep='\\n', flush=True)\n"
    script += f"open({str(pipe)!r}).read(); print(sys.argv[3]); sys.exit(3)"
    monkeypatch.setattr(preparing, "WARM", script)
    needs = tuple(cases.Need(cases.CPU_CODE, "bn254", step) for step in cases.CPU_STEPS[:3])
    with (tmp_path / "log").open("a") as log:
        host = preparing.HostCode([cases.Case("a", "ntt", 1, needs=needs)], 1, log)
        try:
            said: list[str] = []
            wait_for(lambda: said.extend(host.look()) or host.there(needs[0]))
            assert host.complete
            assert not host.there(needs[1])
            assert not host.there(cases.Need(cases.CPU_CODE, "bn254"))
            assert host.there(cases.Need(cases.CUDA_CODE, "bn254"))
            pipe.write_text("")  # lets it go on
            wait_for(lambda: said.extend(host.look()) or said)
            assert all(map(host.there, needs))
            assert said == ["the CPU's code was not compiled: bn254 sums G1: exit code 3, see log.txt"]
            assert not host.complete
        finally:
            host.close()


# compute-sanitizer ---------------------------------------------------------------------------------------

TOOL = """#!/bin/sh
# OPTION... --log-file FILE OPTION... COMMAND...
while [ "$1" != --log-file ]; do shift; done
log=$2; shift 2
while [ "${1#-}" != "$1" ]; do [ "$1" = --section ] && shift; shift; done
"$@"
code=$?
echo "========= COMPUTE-SANITIZER" > "$log"
{lines}
exit $code
"""


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Makes a tool that writes these lines once the worker under it has done nothing, for ever if told."""

    def make(name: str, lines: str, worker: str = "") -> None:
        path = tmp_path / name
        path.write_text(TOOL.replace("{lines}", lines))
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        program = tmp_path / "worker.py"
        program.write_text(
            f"import sys, json, time\n{worker}\n"
            "for line in sys.stdin:\n"
            "    end = json.loads(line)['kind'] == 'end'\n"
            "    print(json.dumps({} if end else {'rows': []}), flush=True)\n"
            "    if end: break\n"
        )
        init = processes.Worker.__init__

        def scripted(self: processes.Worker, folder: Path, threads: int, log: Any, prefix: Any = ()) -> None:
            init(self, folder, threads, log, prefix)
            self._command = [*prefix, sys.executable, str(program)]

        monkeypatch.setattr(processes.Worker, "__init__", scripted)

    return make


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ('echo "========= ERROR SUMMARY: 0 errors" >> "$log"', {"found": 0}),
        (
            'printf "========= Invalid __global__ write\\n========= ERROR SUMMARY: 2 errors\\n" >> "$log"',
            {"found": 2, "error": "2 found; the first: Invalid __global__ write"},
        ),
        ('echo "========= RACECHECK SUMMARY: 1 hazard displayed" >> "$log"', {"found": 1}),
        ('echo "========= Error: Device not supported" >> "$log"', {"error": "Error: Device not supported"}),
    ],
)
def test_what_the_sanitizer_says_is_a_row(
    lines: str, expected: Row, tmp_path: Path, tool: Callable[..., None]
) -> None:
    tool("compute-sanitizer", lines)
    with (tmp_path / "log").open("a") as log:
        row = checks.run_sanitizer("memcheck", cases.SIZES["tiny"], tmp_path, log, 30)
    assert expected.items() <= row.items()
    assert (tmp_path / "log").read_text().startswith("========= COMPUTE-SANITIZER\n=========")


def test_profiled_kernels_are_there() -> None:
    text = "".join(text for name, text in sources(BN254).items() if name.endswith(".cu"))
    assert all(re.search(rf"\b{kernel}\(", text) for kernel in cases.PROFILED)


PROFILE = """
==PROF== Disconnected
"ID","Kernel Name","Block Size","gpu__time_duration.sum","launch__registers_per_thread","l1tex__other"
"","","","ns","register/thread","byte"
"0","accumulate","(128, 1, 1)","1,234,567","116","7"
"""


def test_what_the_profiler_says_is_a_row(tmp_path: Path, tool: Callable[..., None]) -> None:
    tool("ncu", f"cat >> $log <<'END'\n{PROFILE}END")
    with (tmp_path / "log").open("a") as log:
        row = checks.run_profiler("accumulate", "msm", 4, tmp_path, log, 30)
        assert row["metrics"] == {"gpu__time_duration.sum": 1234567.0, "launch__registers_per_thread": 116.0}
        assert row["operation"] == "profile accumulate"
    assert "l1tex__other" in (tmp_path / "log").read_text()
    tool(
        "ncu", 'echo "==PROF== Connected" >> $log; echo "==ERROR== ERR_NVGPUCTRPERM - no permission" >> $log'
    )
    with (tmp_path / "log").open("a") as log:
        row = checks.run_profiler("accumulate", "msm", 4, tmp_path, log, 30)
    assert row["error"] == "ERROR== ERR_NVGPUCTRPERM - no permission"


def test_a_tool_that_hangs_is_ended(tmp_path: Path, tool: Callable[..., None]) -> None:
    for name, run in (
        ("compute-sanitizer", lambda log: checks.run_sanitizer("x", cases.SIZES["tiny"], tmp_path, log, 0.3)),
        ("ncu", lambda log: checks.run_profiler("x", "msm", 4, tmp_path, log, 0.3)),
    ):
        tool(name, "", worker="time.sleep(1000)")
        with (
            (tmp_path / "log").open("a") as log,
            pytest.raises(Failed, match=r"took more than 0 s; the tool said nothing"),
        ):
            run(log)


def test_tools_that_are_not_there_are_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checks.shutil, "which", lambda name: None)
    if not [*Path("/usr/local").glob("cuda*"), *Path("/opt").glob("nvidia")]:
        for find in (checks.find_sanitizer, checks.find_profiler):
            with pytest.raises(rates.Skipped, match="is not on PATH"):
                find()


# Whole runs on the emulated device ------------------------------------------------------------------------


def environment() -> dict[str, str]:
    """In which every Python process has an emulated GPU."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (REHEARSAL, ROOT)))}


def started(
    tmp_path: Path, *arguments: str, python: Path = Path(sys.executable), **environment_: str
) -> subprocess.Popen[str]:
    program = [str(python), "-m", "gpuprover.bench.gpu", "--sizes", "tiny", *arguments]
    folders = ["--output", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    return subprocess.Popen(
        [*program, *folders],
        cwd=ROOT,
        env={**environment(), **environment_},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def workers(tmp_path: Path) -> list[str]:
    """The command lines of processes that work for a run in this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if str(tmp_path / "work").encode() in words and b"--work" not in words:
            found.append(b" ".join(words).decode())
    return found


def wait_for(condition: Callable[[], object], limit: float = 120.0) -> None:
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.02)


def lines(tmp_path: Path) -> int:
    path = tmp_path / "out" / "rows.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def wait_for_lines(tmp_path: Path, count: int) -> None:
    wait_for(lambda: lines(tmp_path) >= count)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_without_a_device_it_ends_with_one_line(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["make", "gpu", f"PYTHON={sys.executable}", f"OUT={out}", f"WORK={tmp_path / 'work'}"]
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=hidden, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if not re.match(r"make(\[\d+\])?: \*\*\*", line)]
    assert len(said) == 1
    assert said[0].startswith("make gpu: device 'cuda' is not available: ")
    (row,) = rows.read_rows([out / "rows.jsonl"])
    assert row["error"] == said[0].removeprefix("make gpu: ")


def test_a_killed_run_loses_no_row_and_leaves_no_process(tmp_path: Path) -> None:
    rates = [case.name for case in cases.plan(cases.SIZES["tiny"]) if case.kind == "rate"]
    kept: list[str] = []
    for number in (signal.SIGTERM, signal.SIGKILL):
        process = started(tmp_path, "--only", "rate")
        wait_for_lines(tmp_path, len(kept) + 4)
        process.send_signal(number)
        code = process.wait(20)
        said = process.stdout.read() if process.stdout else ""
        assert code == (command.EXIT_STOPPED if number == signal.SIGTERM else -number), said
        wait_for(lambda: not workers(tmp_path))
        assert names(tmp_path)[: len(kept)] == kept
        kept = names(tmp_path)
    # The second run went on from the rows of the first.
    assert kept == ["cubins", *rates][: len(kept)]
    assert len(kept) <= len(rates)


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[processes.Worker]:
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    (tmp_path / "work").mkdir()
    with (tmp_path / "log").open("a") as log:
        worker = processes.Worker(tmp_path / "work", 1, log)
        yield worker
        worker.close()


def rate(name: str) -> Row:
    arguments = {"name": name, "curve": "bn254", "seconds": 0.0}
    return {"kind": "rate", "arguments": arguments, "multiplier": None}


def test_a_worker_that_dies_is_followed_by_another(worker: processes.Worker, tmp_path: Path) -> None:
    (row,) = worker.ask(rate("launches"), 200)["rows"]
    assert row["per_second"] > 0
    assert worker._process is not None
    os.kill(worker._process.pid, signal.SIGKILL)
    with pytest.raises(Failed, match="the process died: SIGKILL"):
        worker.ask(rate("launches"), 200)
    with pytest.raises(Failed, match="KeyError: 'no such rate'"):
        worker.ask(rate("no such rate"), 200)
    assert worker.ask(rate("launches"), 200)["rows"]
    with pytest.raises(processes.Late):
        worker.ask(rate("additions G1"), 0.0)
    wait_for(lambda: not workers(tmp_path))


def rehearsed(tmp_path: Path, *arguments: str, **options: Any) -> list[Row]:
    """The rows of a run; no case of it counts as hanging."""
    process = started(tmp_path, "--patience", "500", *arguments, **options)
    said, _ = process.communicate(timeout=900)
    log = (tmp_path / "out" / "log.txt").read_text()
    assert process.returncode == EXIT_OK, f"{said}\n{log[-3000:]}"
    return written(tmp_path)


def test_a_rehearsal_on_a_bare_machine(tmp_path: Path, run: Run) -> None:
    """Neither packages beyond what it is said to need, nor a network, nor make, nor git."""
    only = "wide rows,ntt bn254 2^4,msm G1 bn254 2^4 full width,tests"
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    for name in ("make", "git"):
        (hidden / name).write_text("#!/bin/sh\nexit 127\n")
        (hidden / name).chmod(0o755)
    bare = {"REHEARSAL_BARE": "1", "PATH": f"{hidden}:{os.environ['PATH']}"}
    found = rehearsed(tmp_path, "--only", only, "--tests", "upload and bn254", **bare)
    measured = [(row["operation"], row["device"]) for row in found if "took_s" in row]
    assert sorted(measured) == [
        ("msm G1", "cpu"),
        ("msm G1", "cuda"),
        ("ntt", "cpu"),
        ("ntt", "cuda"),
        ("rate wide rows", "cuda"),
        ("tests", "cuda"),
    ]
    on_gpu = {row["operation"]: row for row in found if row["device"] == "cuda"}
    for operation in ("ntt", "msm G1"):
        assert sum(on_gpu[operation]["kernels"].values()) > 0
        assert on_gpu[operation]["checked"]
        assert on_gpu[operation]["share"] > 0
    assert on_gpu["msm G1"]["depth"] > 1
    assert on_gpu["tests"]["passed"] > 3
    assert (on_gpu["tests"]["left"], on_gpu["tests"]["skipped"]) == (0, 0)
    made = run("bench", "report", tmp_path / "out" / "rows.jsonl", "--output", tmp_path / "r.html", "--json")
    assert made.code == EXIT_OK


def another_python() -> Path:
    """Python 3.12 or 3.13, on PATH or beside this one, else this one; each with venv and pip."""
    names = ("python3.12", "python3.13")
    found = [Path(path) for path in map(shutil.which, names) if path is not None]
    beside = Path(sys.base_prefix).parent
    found += [path for name in names for path in sorted(beside.glob(f"*/bin/{name}"))]
    for path in found:
        if subprocess.run([path, "-c", "import venv, ensurepip"], capture_output=True).returncode == 0:
            return path
    return Path(sys.executable)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_rehearsal_in_an_environment_of_its_own(tmp_path: Path) -> None:
    """The newest NumPy and Numba, pytest, hypothesis, and nothing else; the CPU's code is compiled there."""
    subprocess.run([another_python(), "-m", "venv", tmp_path / "env"], check=True, timeout=120)
    python = tmp_path / "env" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    packages = ["numpy", "numba", "pytest", "hypothesis"]
    if subprocess.run([*install, *packages], capture_output=True, timeout=600).returncode:
        pytest.skip("no index to install packages from")
    script = "import importlib.util as i, sys; print([n for n in sys.argv[1:] if i.find_spec(n)])"
    unwanted = ["httpx", "fastapi", "py_ecc", "wasmtime", "rich", "cupy", "pytest_timeout", "numpy"]
    said = subprocess.run([python, "-c", script, *unwanted], capture_output=True, text=True).stdout
    assert said == "['numpy']\n"
    only = ["--only", "wide rows,ntt bn254 2^4,tests", "--tests", "upload and bn254", "--deadline", "1500"]
    found = rehearsed(tmp_path, *only, python=python)
    assert {row["case"] for row in found} == {"cubins", "rate wide rows", "ntt bn254 2^4", "tests"}
    (row,) = (row for row in found if row["operation"] == "tests")
    assert (row["passed"] > 3, row["left"]) == (True, 0)
    version = subprocess.run([python, "--version"], capture_output=True, text=True).stdout.split()[1]
    assert {row["python"] for row in found} == {version}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_rehearsal_of_proofs_of_gates(tmp_path: Path) -> None:
    """Set-up, the CPU's proof under the same blinding, and a process of its own, in each system."""
    found = rehearsed(tmp_path, "--only", "proof plonk bn254,proof fflonk", "--deadline", "1000")
    for protocol in cases.OF_GATES:
        rows = [row for row in found if row["case"] == f"proof {protocol} bn254 2^3"]
        assert [(row["operation"], row["device"], row["mode"]) for row in rows] == [
            ("setup", "cuda", "once"),
            (f"{protocol} prove", "cuda", "warm"),
            (f"{protocol} prove", "cpu", "warm"),
            (f"{protocol} prove", "cuda", "cold"),
        ]
        assert rows[0]["protocol"] == protocol
        assert {"evaluate", "fold_onto_coset"} <= rows[1]["kernels"].keys()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_whole_rehearsal(tmp_path: Path) -> None:
    """With proofs, and with the tests, of which the emulated device does the short ones."""
    tests = "upload or (byte_for_byte and one and bn254)"
    found = rehearsed(tmp_path, "--deadline", "1000", "--tests", tests)
    assert {row["case"] for row in found} == {"cubins", *planned()}
    again = started(tmp_path, "--tests", tests)
    again.communicate(timeout=60)
    assert again.returncode == EXIT_OK
    assert written(tmp_path) == found
    (row,) = (row for row in found if row["operation"] == "tests")
    assert row["passed"] > 3
    assert row["skipped"] == 0
    proofs = [row for row in found if row["case"] == "proof chain bn254 2^3"]
    assert [(row["operation"], row["device"], row["mode"]) for row in proofs] == [
        ("setup", "cuda", "once"),
        ("groth16 prove", "cuda", "warm"),
        ("groth16 prove", "cpu", "warm"),
        ("groth16 prove", "cuda", "cold"),
    ]
    assert all(row["wall"]["median_s"] > 0 for row in proofs)
    assert proofs[1]["phases"]["msm"] > 0
    assert proofs[1]["kernels"]
