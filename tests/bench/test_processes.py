"""Memory of processes by role: samples, CSV, pictures, documents; runs with a stand-in for the engine."""

from __future__ import annotations

import csv
import json
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gpuprover.bench import documents, drawings, engine_command, network, processes
from gpuprover.bench.measure import Failed
from gpuprover.bench.processes import Plan, Sample, Sampler, by_role
from gpuprover.bench.rows import Rows, read_rows

import gpuprover
from gpuprover.errors import InvalidInput
from gpuprover.job import Job
from tests.support.paths import TESTS, VECTORS
from tests.support.running import Run

STAND_IN = TESTS / "support" / "node_stand_in.py"
PNG = b"\x89PNG\r\n"
MIB = 1 << 20

CHILD = """
import sys, time
size = int(sys.argv[1])
held = bytearray(size)
held[::4096] = b"x" * len(held[::4096])
print("ready", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def child() -> Iterator[Callable[[int, str], subprocess.Popen[str]]]:
    """Starts a process that holds so many bytes, under a command line that names a module."""
    started = []

    def begin(size: int, module: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(size), module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


# Looking at processes ----------------------------------------------------------------


def test_roles_and_memory_are_seen_from_outside(child: Callable[[int, str], subprocess.Popen[str]]) -> None:
    big, small = child(64 * MIB, "gpuprover.workers"), child(MIB, "gpuprover.verifier")
    with Sampler(interval=0.02) as sampler:
        sampler.watch("node", os.getpid())
        deadline = time.monotonic() + 20
        while len({s.time for s in sampler.samples}) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        found = {sample.pid: sample for sample in sampler.look()}
    assert found[os.getpid()].role == "main"
    worker, verifier = found[big.pid], found[small.pid]
    assert (worker.role, verifier.role) == ("prover", "verifier")
    assert (worker.node, worker.gpu) == ("node", None)
    assert worker.rss > 64 * MIB > verifier.rss
    assert worker.private is not None
    assert worker.pss is not None
    assert 64 * MIB < worker.private <= worker.pss <= worker.rss <= (worker.peak or 0)
    roles = by_role([worker, verifier])
    assert roles["prover"]["processes"] == 1
    assert roles["prover"]["pss"] == worker.pss == worker.held


def test_a_process_that_ended_is_no_longer_sampled(
    child: Callable[[int, str], subprocess.Popen[str]],
) -> None:
    process = child(MIB, "gpuprover.workers")
    with Sampler(interval=10) as sampler:
        sampler.watch("node", os.getpid())
        assert process.pid in {s.pid for s in sampler.look()}
        process.communicate()
        assert process.pid not in {s.pid for s in sampler.look()}
        assert processes.family(process.pid) == []


def test_where_no_shares_can_be_seen_resident_memory_stands() -> None:
    hidden = Sample(0.0, "node", "prover", 1, 5 * MIB, None, None, 6 * MIB, None)
    assert hidden.held == 5 * MIB
    assert by_role([hidden]) == {"prover": {"processes": 1, "rss": 5 * MIB, "peak": 6 * MIB}}


def test_a_mapped_file_that_two_processes_share_is_one_copy(
    tmp_path: Path, child: Callable[[int, str], subprocess.Popen[str]]
) -> None:
    file = tmp_path / "key"
    file.write_bytes(bytes(8 * MIB))
    program = (
        "import mmap, sys\n"
        "with open(sys.argv[1], 'rb') as f: m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)\n"
        "print(sum(m[::4096]), flush=True)\n"
        "sys.stdin.readline()\n"
    )
    others = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        for other in others:
            assert other.stdout is not None
            other.stdout.readline()
        shares = [processes.mapped(other.pid, file) for other in others]
        assert shares == [4 * MIB, 4 * MIB]
        assert processes.mapped(os.getpid(), file) == 0
    finally:
        for other in others:
            other.communicate()
    assert processes.mapped(others[0].pid, file) is None


def test_gpu_memory_is_summed_over_gpus_for_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    running = {0: [(os.getpid(), 3 * MIB), (7, MIB)], 1: [(os.getpid(), 2 * MIB), (8, None)]}
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda i: i,
        nvmlDeviceGetComputeRunningProcesses=lambda i: [
            SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in running[i]
        ],
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert processes.gpu_bytes() == {os.getpid(): 5 * MIB, 7: MIB, 8: 0}
    sampler = Sampler()
    sampler.watch("node", os.getpid())
    assert {sample.pid: sample.gpu for sample in sampler.look()}[os.getpid()] == 5 * MIB
    # A driver that fails is as good as none.
    monkeypatch.setattr(nvml, "nvmlInit", lambda: 1 / 0)
    assert processes.gpu_bytes() == {}


def test_a_start_that_compiles_has_an_empty_cache_of_its_own(plan: Plan) -> None:
    with processes._started_as("first use", plan) as environment:
        folder = Path(environment["GPUPROVER_CACHE_DIR"])
        assert folder.is_dir()
        (folder / "compiled").touch()
    assert not folder.exists()
    with processes._started_as("warm", plan) as environment:
        assert environment == {}


def test_files_are_evicted_from_memory(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "file"
    file.parent.mkdir()
    file.write_bytes(os.urandom(4 * MIB))
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
    processes.evict([tmp_path / "folder", tmp_path / "absent"])
    assert file.read_bytes()[:1] is not None
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert len(mapped) == 4 * MIB


def test_csv_and_picture_of_samples(tmp_path: Path) -> None:
    samples = [
        Sample(t / 10, node, role, pid, size * MIB, size * MIB, MIB, size * MIB, None)
        for t in range(20)
        for node in ("one", "two", "three")
        for pid, (role, size) in enumerate((("main", 30), ("verifier", 50), ("prover", 5 * t)), 1)
        if role != "prover" or node != "two"
    ]
    processes.write_csv(samples, tmp_path / "samples.csv")
    with (tmp_path / "samples.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(samples)
    assert lines[0] == {
        "time": "0.0", "node": "one", "role": "main", "pid": "1", "rss": str(30 * MIB), "pss": str(30 * MIB),
        "private": str(MIB), "peak": str(30 * MIB), "gpu": "",
    }  # fmt: skip
    drawings.draw_memory(samples, [(0.5, "one", "ready")], "a title", tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(PNG)


# Whole runs ------------------------------------------------------------------------


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node without an engine: it starts processes under the engine's names, and its proofs are empty."""
    monkeypatch.setattr(processes, "SETTLE", 0.05)
    monkeypatch.setattr(processes, "PROGRAM", [str(STAND_IN)])
    # Libraries stay in memory for the other tests.
    monkeypatch.setattr(processes, "evict", list)


@pytest.fixture
def plan(tmp_path: Path, stand_in: None) -> Plan:
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "large.zkey").write_bytes(bytes(MIB))
    return Plan(keys, "large", "chain 2^4", workers=2, threads=2, proofs=3, verifications=20)


STATEMENT = {"proof": {"by": "somebody"}, "public_signals": ["1"]}


def test_every_policy_gets_a_row(plan: Plan, tmp_path: Path) -> None:
    rows = Rows(tmp_path / "rows.jsonl")
    watched = processes.measure(plan, ["cold", "warm"], rows, Job(), tmp_path / "log", STATEMENT)
    rows.close()
    found = {(row["mode"], row["start"]): row for row in rows.all}
    assert list(found) == [(policy, how) for how in ("cold", "warm") for policy in ("eager", "lazy", "off")]
    assert not [row for row in rows.all if "error" in row]
    eager, off = found["eager", "warm"], found["off", "warm"]
    assert eager["after"]["prover"]["processes"] == 2
    assert "prover" not in off["after"]
    # The first, one for each of two workers, three in turn.
    assert (eager["proofs"], eager["verifications"]) == (6, 21)
    assert (eager["first_proof_s"], eager["next_proof_s"], eager["verification_s"]) == (0.5, 0.5, 0.001)
    assert "first_proof_s" not in off
    assert off["verifications"] == 21
    assert "next_proof_s" not in found["eager", "cold"]
    assert {s.node for s in watched.samples} == {"eager", "lazy", "off"}
    assert {what for _, node, what in watched.events if node == "eager"} == {
        "ready",
        "first proof",
        "proofs",
        "first verification",
        "verifications",
    }
    text = "\n".join(documents.policies_table(read_rows([rows.path])))
    assert "| `lazy` |" in text
    assert "500 ms (500 ms)" in text


def test_copies_of_a_key_are_counted(plan: Plan, tmp_path: Path) -> None:
    rows = Rows(tmp_path / "rows.jsonl")
    processes.measure_copies(plan, "small", rows, Job(), tmp_path / "log")
    rows.close()
    (row,) = rows.all
    # The stand-in maps nothing.
    assert (row["proving"], row["copies"], row["key_bytes"]) == (2, 0.0, MIB)
    assert abs(row["copies_in_all"]) < 1


def test_a_verifier_is_measured_killed_and_measured_again(tmp_path: Path) -> None:
    for kind in ("proof", "public", "vkey"):
        document = (VECTORS / f"chain5.bn254.{kind}.json").read_text()
        (tmp_path / f"chain.{kind}.json").write_text(document)
    (tmp_path / "chain.zkey").touch()
    (tmp_path / "chain.wtns").touch()
    statement = {
        "proof": json.loads((tmp_path / "chain.proof.json").read_text()),
        "public_signals": json.loads((tmp_path / "chain.public.json").read_text()),
    }
    plan = Plan(tmp_path, "chain", "chain 2^4", workers=1, threads=1, proofs=1, verifications=5)
    rows = Rows(tmp_path / "rows.jsonl")
    processes.measure_verifier(plan, ["warm"], rows, Job(), statement)
    wrong = {**statement, "public_signals": ["1"] * len(statement["public_signals"])}
    processes.measure_verifier(plan, ["warm"], rows, Job(), wrong)
    rows.close()
    good, bad = rows.all
    assert good["verifications"] == 6
    assert 0 < good["verification_s"] <= good["recovery_s"]
    assert MIB < good["after"]["verifier"]["private"] <= good["after"]["verifier"]["peak"]
    assert "a proof does not hold" in bad["error"]
    assert "| warm |" in "\n".join(documents.verifier_table(read_rows([rows.path])))


def test_a_node_that_does_not_start_is_a_row_with_the_reason(plan: Plan, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    plan.keys.rename(broken)
    rows = Rows(tmp_path / "rows.jsonl")
    log = tmp_path / "log"
    changed = Plan(broken, "large", "chain 2^4", 2, 2, 3, 20, policies=["off"])
    processes.measure(changed, ["warm"], rows, Job(), log, STATEMENT)
    rows.close()
    assert "cannot start" in rows.all[0]["error"]


def test_a_node_has_a_real_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "SETTLE", 0.2)
    engine_command.make_circuit(tmp_path, "large", 5, Job())
    plan = Plan(tmp_path, "large", "chain 2^5", 1, 1, proofs=1, verifications=2, policies=["eager", "off"])
    made = gpuprover.prove(plan.zkey, plan.witness, threads=1)
    statement = {"proof": made.proof, "public_signals": made.public_signals}
    rows = Rows(tmp_path / "rows.jsonl")
    watched = processes.measure(plan, ["warm"], rows, Job(), tmp_path / "log", statement)
    rows.close()
    eager, off = rows.all
    assert "error" not in eager, eager
    assert "error" not in off, off
    assert (eager["proofs"], eager["verifications"]) == (3, 3)
    assert eager["after"]["prover"]["processes"] == eager["after"]["verifier"]["processes"] == 1
    # What proves holds more than what asks for it.
    assert eager["after"]["main"]["rss"] < eager["after"]["prover"]["rss"]
    assert "prover" not in {sample.role for sample in watched.samples if sample.node == "off"}
    for pid in {sample.pid for sample in watched.samples}:
        assert processes.family(pid) == []


def test_a_proof_that_does_not_hold_is_no_figure(plan: Plan, tmp_path: Path) -> None:
    rows = Rows(tmp_path / "rows.jsonl")
    wrong = {**STATEMENT, "proof": {"by": "nobody"}}
    changed = Plan(plan.keys, "large", "", 2, 2, 3, 20, policies=["off"])
    processes.measure(changed, ["warm"], rows, Job(), tmp_path / "log", wrong)
    rows.close()
    assert "21 of 21 verifications said no" in rows.all[0]["error"]


def test_the_small_network_exchanges_proofs(plan: Plan, tmp_path: Path) -> None:
    rows = Rows(tmp_path / "rows.jsonl")
    shape = network.Shape(plan.keys, "large", "chain 2^4", rounds=2, threads=2)
    sampler = network.run(shape, rows, Job(), tmp_path / "log")
    rows.close()
    found = {row["node"]: row for row in rows.all}
    assert list(found) == [member.name for member in network.MEMBERS]
    counts = {name: (row["proofs"], row["verifications"]) for name, row in found.items()}
    assert counts["coordinator"] == (8, 4)
    assert counts["prover-1"] == (2, 4)
    assert counts["passive"] == counts["seed"] == counts["idle-2"] == (0, 6)
    assert found["coordinator"]["after"]["prover"]["processes"] == 2
    assert {row["mode"] for row in rows.all} == {"eager", "lazy", "off"}
    assert {sample.node for sample in sampler.samples} == set(found)
    assert "| passive | `off` | 0 | 6 |" in "\n".join(documents.network_table(read_rows([rows.path])))


def test_a_network_ends_with_all_its_processes(plan: Plan, tmp_path: Path) -> None:
    rows = Rows(tmp_path / "rows.jsonl")
    members = [network.Member("seed", "off"), network.Member("prover", "eager", proofs=1)]
    shape = network.Shape(plan.keys, "large", "", 1, 1, members=members)
    sampler = network.run(shape, rows, Job(), tmp_path / "log")
    rows.close()
    for pid in {sample.pid for sample in sampler.samples}:
        assert processes.family(pid) == []


def test_commands_write_rows_samples_and_pictures(run: Run, tmp_path: Path, stand_in: None) -> None:
    common = ("--log", 5, "--threads", 2, "--work", tmp_path / "keys", "--output", tmp_path / "out", "--json")
    small = ("--workers", 1, "--proofs", 1, "--verifications", 2, "--policies", "eager,off")
    answer = run("bench", "processes", *small, *common).answer
    assert answer["ok"] is True
    # Two policies and the verifier, cold and warm; copies of the key.
    assert answer["count"] == 7
    assert Path(answer["picture"]).read_bytes().startswith(PNG)
    assert len(Path(answer["samples"]).read_text().splitlines()) > 1
    answer = run("bench", "network", "--rounds", 1, *common).answer
    assert (answer["ok"], answer["count"]) == (True, len(network.MEMBERS))
    # Reports pass over rows without seconds.
    rows = [tmp_path / "out" / "processes.jsonl", tmp_path / "out" / "network.jsonl"]
    assert run("bench", "report", *rows, "--output", tmp_path / "report.html").code == 0
    document = tmp_path / "a.md"
    document.write_text(
        "# A\n<!-- rows: policies -->\n<!-- end -->\nand\n<!-- rows: network -->\noutdated\n<!-- end -->\n"
    )
    given = [word for path in rows for word in ("--rows", path)]
    assert run("bench", "fill", document, *given, "--json").answer["ok"] is True
    text = document.read_text()
    assert "| `eager` |" in text
    assert "| coordinator |" in text
    assert "outdated" not in text
    assert run("bench", "fill", document, *given).code == 0
    assert document.read_text() == text


def test_engines_that_do_not_start_are_told(
    run: Run, tmp_path: Path, stand_in: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "PROGRAM", ["-c", "import sys; sys.exit('no engine')"])
    monkeypatch.setattr(engine_command, "measure_verifier", lambda *_: None)
    common = ("--log", 4, "--threads", 1, "--work", tmp_path, "--output", tmp_path, "--json")
    ran = run("bench", "processes", "--policies", "off", *common)
    assert ran.answer["ok"] is False
    assert all("no engine" in reason for reason in ran.answer["errors"])
    assert "no engine" in ran.err
    ran = run("bench", "network", *common)
    assert ran.code == 3
    assert "seed: " in ran.answer["error"]["message"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["processes", "--policies", "keen"], "--policies: expected some of eager,lazy,off"),
        (["processes", "--log", "40"], "--log"),
        (["processes", "--workers", "0"], "--workers"),
        (["network", "--rounds", "x"], "--rounds"),
        (["fill", "/no/such.md", "--rows", "/no/such.jsonl"], "cannot read"),
    ],
)
def test_arguments_that_cannot_be_are_refused(
    run: Run, arguments: list[str], said: str, tmp_path: Path
) -> None:
    output = [] if arguments[0] == "fill" else ["--output", tmp_path]
    ran = run("bench", *arguments, *output)
    assert ran.code == 2
    assert said in ran.err


# Documents ----------------------------------------------------------------------------


def row(operation: str, **fields: Any) -> dict[str, Any]:
    return {"operation": operation, "implementation": "gpuprover", "run": "a", **fields}


def test_goals_say_what_was_met() -> None:
    rows = [
        row("processes", mode="eager", start="warm", verifications=1001, ready_s=1.0,
            after={"verifier": {"private": 150 * MIB}}),
        row("processes", mode="off", start="warm", verifications=1001, ready_s=2.0,
            after={"verifier": {"private": 250 * MIB}}),
        row("verifier", start="warm", verifications=1001, ready_s=0.5,
            after={"verifier": {"private": 90 * MIB}}),
        row("key copies", key_bytes=1_000_000, proving=2, copies=1.0, copies_in_all=9.0),
        row("key copies", run="b", key_bytes=120_000_000, proving=2, copies=1.0, copies_in_all=1.5),
    ]  # fmt: skip
    text = documents.goals_table(rows)
    verdicts = [line.split("|")[1:5] for line in text[2:]]
    assert [(a.strip(), d.strip()) for a, _, _, d in verdicts] == [
        ("verifier, private, after 1,001 verifications", "met, dream too"),
        ("verifier, ready, warm", "met"),
        ("verifier, private, after 1,001 verifications, `eager`", "met"),
        ("verifier, private, after 1,001 verifications, `off`", "missed"),
        ("node that proves nothing, ready", "missed"),
        ("its proving processes", "met"),
        ("copies of a key of 120 MB that 2 workers hold: mapped pages", "met"),
        ("copies of a key of 120 MB that 2 workers hold: all that they grow by", "missed"),
    ]


def test_tables_are_of_the_newest_run_without_failures() -> None:
    rows = [
        row("network", node="old", mode="off", proofs=0, verifications=1, after={}),
        row("network", run="b", node="new", mode="off", proofs=0, verifications=1, after={}),
        row("network", run="c", node="failed", error="why"),
    ]
    text = "\n".join(documents.network_table(rows))
    assert "new" in text
    assert "old" not in text
    assert "failed" not in text


def test_a_document_without_rows_says_so_and_a_wrong_name_is_refused() -> None:
    text = "<!-- rows: network -->\n<!-- end -->\n"
    assert documents.NOTHING in documents.filled(text, [], "a.md")
    with pytest.raises(InvalidInput, match="no table is named 'nothing'"):
        documents.filled("<!-- rows: nothing -->\n<!-- end -->\n", [], "a.md")
    with pytest.raises(InvalidInput, match="no block"):
        documents.filled("text", [], "a.md")


def test_circuits_are_made_once(tmp_path: Path) -> None:
    engine_command.make_circuit(tmp_path, "c", 5, Job())
    made = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert {path.name for path in made} == {"c.zkey", "c.wtns", "c.vkey.json"}
    engine_command.make_circuit(tmp_path, "c", 5, Job())
    assert made == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert json.loads((tmp_path / "c.vkey.json").read_text())["protocol"] == "groth16"


def test_a_node_that_fails_says_why(plan: Plan, tmp_path: Path) -> None:
    with Sampler() as sampler:
        node = processes.Node("off", plan.settings("off"), tmp_path / "log", sampler)
        with node, pytest.raises(Failed, match="this node proves nothing"):
            node.ask(do="prove", circuit="large", witness="w")
