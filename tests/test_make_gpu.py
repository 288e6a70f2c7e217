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
from pathlib import Path
from typing import Any

import pytest
from gpuprover.bench import rows
from gpuprover.bench.gpu import cases, checks, command, journal, processes
from gpuprover.bench.measure import Failed

from gpuprover.errors import EXIT_INVALID, EXIT_OK
from running import Run

pytestmark = pytest.mark.kernels_offline
ROOT = Path(__file__).resolve().parents[1]
REHEARSAL = ROOT / "tests" / "rehearsal"

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
    monkeypatch.setattr(command._Run, "warm", lambda self: None)
    monkeypatch.setattr(command._Run, "build", lambda self: None)
    monkeypatch.setattr(command, "run_tests", lambda *_: {"operation": "tests", "passed": 1})
    monkeypatch.setattr(command, "run_sanitizer", lambda *_: {"operation": "sanitizer", "found": 0})
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


def test_cases_have_names_of_their_own_and_come_in_order() -> None:
    for sizes in cases.SIZES.values():
        plan = list(cases.plan(sizes))
        assert len({case.name for case in plan}) == len(plan)
        kinds = [case.kind for case in plan]
        assert kinds.index("tests") > max(i for i, kind in enumerate(kinds) if kind == "rate")
        assert [case.name for case in plan[:2]] == ["rate wide multiplies", "rate wide rows"]
    last = [case.name for case in cases.plan(cases.SIZES["full"])][-7:]
    assert last[0] == "ntt bn254 2^26"
    assert all("2^26" in name or "G2 bls12-381" in name for name in last)


def test_all_that_fits_is_measured_once(
    scripted: type[Scripted], gpu: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu() == EXIT_OK
    plan = [case.name for case in cases.plan(cases.SIZES["tiny"])]
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
    assert [row["case"] for row in found] == [case.name for case in cases.plan(cases.SIZES["tiny"])]
    assert {row.get("error") for row in found if row["case"].startswith("msm")} == {"cuda:0: illegal address"}
    scripted.asked.clear()
    scripted.answer = staticmethod(good)
    assert gpu() == EXIT_OK
    assert scripted.asked == []
    assert gpu("--again") == EXIT_OK
    assert set(scripted.asked) == {"msm"}


def test_what_does_not_fit_the_time_is_left_for_the_next_call(
    scripted: type[Scripted], gpu: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The sanitizer is predicted to take longer than this; the tests, too, but what they do is kept.
    assert gpu("--deadline", 60) == EXIT_OK
    left = {f"sanitizer {tool}" for tool in cases.TOOLS}
    assert "3 cases are left for another call" in capsys.readouterr().out
    assert not left & set(names(tmp_path))
    assert "tests" in names(tmp_path)
    assert all(limit <= 60 for limit in scripted.limits.values())
    before = set(names(tmp_path))
    assert gpu() == EXIT_OK
    assert {row["case"] for row in written(tmp_path)} - before == left
    assert len(names(tmp_path)) == len(set(names(tmp_path)))


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
    assert row["error"] == f"took more than {command.LEAST_LIMIT:.0f} s"


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
import os, pytest
pytestmark = pytest.mark.gpu

@pytest.mark.parametrize("i", range(6))
def test_good(i): pass

def test_bad(): assert 1 == 2, "one is not two"

def test_skipped(): pytest.skip("device 'cuda' is not there")

def test_dies(): os._exit(9)

def test_after_it(): pass
"""


def test_outcomes_survive_a_test_that_kills_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = tmp_path / "tests"
    suite.mkdir()
    (suite / "conftest.py").write_text("")
    (suite / "test_suite.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    monkeypatch.setattr(checks, "ROOT", tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    with (out / "log.txt").open("a") as log:
        row = checks.run_tests(out / "j", 2, 60, log, [])
        assert (row["passed"], row["failed"], row["skipped"]) == (7, 2, 1)
        says = {entry["test"].rpartition("::")[2]: entry["says"] for entry in row["failures"]}
        assert "one is not two" in says["test_bad"]
        assert says["test_dies"] == "its process died (9)"
        assert row["error"].startswith("2 tests failed")
        # What is known is not run again.
        (suite / "test_suite.py").write_text(SUITE.replace("pass", "assert False"))
        assert checks.run_tests(out / "j", 2, 60, log, []) == row
        with pytest.raises(processes.Late):
            checks.run_tests(out / "other", 1, 0, log, [])


def test_a_journal_with_a_torn_line_is_read(tmp_path: Path) -> None:
    file = tmp_path / "j"
    journal.write(file, "0/1/1", "a", "begun")
    journal.write(file, "0/1/1", "a", "passed")
    journal.write(file, "0/1/1", "b", "begun")
    with file.open("a") as torn:
        torn.write('{"test": "c", "outc')
    assert {t: r["outcome"] for t, r in journal.read(file).items()} == {"a": "passed", "b": "begun"}


# compute-sanitizer ---------------------------------------------------------------------------------------

TOOL = """#!/bin/sh
# --tool NAME --log-file FILE COMMAND...
log=$4; shift 4
"$@"
code=$?
echo "========= COMPUTE-SANITIZER" > "$log"
{lines}
exit $code
"""


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
    lines: str, expected: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(TOOL.replace("{lines}", lines))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import sys, json\n"
        "for line in sys.stdin:\n"
        "    end = json.loads(line)['kind'] == 'end'\n"
        "    print(json.dumps({} if end else {'rows': []}), flush=True)\n"
        "    if end: break\n"
    )
    init = processes.Worker.__init__

    def scripted(self: processes.Worker, folder: Path, threads: int, log: Any, prefix: Any = ()) -> None:
        init(self, folder, threads, log, prefix)
        self._command = [*prefix, sys.executable, str(worker)]

    monkeypatch.setattr(processes.Worker, "__init__", scripted)
    with (tmp_path / "log").open("a") as log:
        row = checks.run_sanitizer("memcheck", cases.SIZES["tiny"], tmp_path, log, 30)
    assert expected.items() <= row.items()


# Whole runs on the emulated device ------------------------------------------------------------------------


def environment() -> dict[str, str]:
    """In which every Python process has an emulated GPU."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (REHEARSAL, ROOT)))}


def started(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    program = [sys.executable, "-m", "gpuprover.bench.gpu", "--sizes", "tiny", *arguments]
    folders = ["--output", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    return subprocess.Popen(
        [*program, *folders],
        cwd=ROOT,
        env=environment(),
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


def wait_for(condition: Callable[[], object], limit: float = 30.0) -> None:
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.02)


def lines(tmp_path: Path) -> int:
    path = tmp_path / "out" / "rows.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_loses_no_row_and_leaves_no_process(number: signal.Signals, tmp_path: Path) -> None:
    process = started(tmp_path, "--only", "rate")
    wait_for(lambda: lines(tmp_path) > 3)
    process.send_signal(number)
    code = process.wait(20)
    said = process.stdout.read() if process.stdout else ""
    assert code == (command.EXIT_STOPPED if number == signal.SIGTERM else -number), said
    wait_for(lambda: not workers(tmp_path))
    kept = names(tmp_path)
    assert kept
    second = started(tmp_path, "--only", "rate")
    said, _ = second.communicate(timeout=60)
    assert second.returncode == EXIT_OK, said
    rates = [case.name for case in cases.plan(cases.SIZES["tiny"]) if case.kind == "rate"]
    assert names(tmp_path) == ["cubins", *rates]
    assert names(tmp_path)[: len(kept)] == kept


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
    (row,) = worker.ask(rate("launches"), 60)["rows"]
    assert row["per_second"] > 0
    assert worker._process is not None
    os.kill(worker._process.pid, signal.SIGKILL)
    with pytest.raises(Failed, match="the process died: SIGKILL"):
        worker.ask(rate("launches"), 60)
    with pytest.raises(Failed, match="KeyError: 'no such rate'"):
        worker.ask(rate("no such rate"), 60)
    assert worker.ask(rate("launches"), 60)["rows"]
    with pytest.raises(processes.Late):
        worker.ask(rate("additions G1"), 0.0)
    wait_for(lambda: not workers(tmp_path))


def rehearsed(tmp_path: Path, *arguments: str) -> list[Row]:
    """The rows of a run; a second one finds nothing to do."""
    process = started(tmp_path, *arguments)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == EXIT_OK, said
    found = written(tmp_path)
    again = started(tmp_path, *arguments)
    again.communicate(timeout=60)
    assert again.returncode == EXIT_OK
    assert written(tmp_path) == found
    return found


def test_a_rehearsal(tmp_path: Path, run: Run) -> None:
    only = "wide rows,ntt bn254 2^4,msm G1 bn254 2^4 full width"
    found = rehearsed(tmp_path, "--only", only)
    measured = [(row["operation"], row["device"]) for row in found if "took_s" in row]
    assert measured == [
        ("rate wide rows", "cuda"),
        ("ntt", "cuda"),
        ("ntt", "cpu"),
        ("msm G1", "cuda"),
        ("msm G1", "cpu"),
        ("msm G1, no tables", "cuda"),
    ]
    on_gpu = [row for row in found if row["device"] == "cuda" and row["operation"] in ("ntt", "msm G1")]
    for row in on_gpu:
        assert sum(row["kernels"].values()) > 0
        assert row["checked"]
        assert row["share"] > 0
    assert on_gpu[1]["depth"] > 1
    made = run("bench", "report", tmp_path / "out" / "rows.jsonl", "--output", tmp_path / "r.html", "--json")
    assert made.code == EXIT_OK


@pytest.mark.slow
def test_the_whole_rehearsal(tmp_path: Path) -> None:
    """With proofs, and with the tests, of which the emulated device does the short ones."""
    tests = "upload or (byte_for_byte and one and bn254)"
    found = rehearsed(tmp_path, "--deadline", "1000", "--tests", tests)
    plan = [case.name for case in cases.plan(cases.SIZES["tiny"])]
    assert list(dict.fromkeys(row["case"] for row in found)) == ["cubins", *plan]
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
