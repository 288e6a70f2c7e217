"""The load test: what clients see and count, memory over proofs, the command; with a service's stand-in."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from gpuprover.bench import load
from gpuprover.bench.load import Connection, MemoryPoint, Tally, Target
from gpuprover.bench.measure import Failed
from gpuprover.bench.processes import Sample, Sampler
from gpuprover.bench.rows import read_rows

from gpuprover.errors import Cancelled, InvalidInput
from gpuprover.job import Job
from tests.support.paths import TESTS
from tests.support.running import Run
from tests.support.service_stand_in import StandIn

SCRIPT = TESTS / "support" / "service_stand_in.py"
PNG = b"\x89PNG\r\n"
MIB = 1 << 20


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def target(server: StandIn, mode: str = "prove") -> Target:
    return Target(server.url, "a circuit", mode.encode(), "secret-token")


def prove_times(aim: Target, count: int) -> Tally:
    """So many proofs of one client, one after the other."""

    async def run() -> Tally:
        tally, connection = Tally(), Connection(aim)
        for _ in range(count):
            await load.prove(connection, aim, tally)
        await connection.close()
        return tally

    return asyncio.run(run())


# Clients ------------------------------------------------------------------------------


def test_a_client_sends_what_the_service_takes(server: StandIn) -> None:
    tally = prove_times(target(server), 2)
    (path, headers), _ = server.requests
    assert path == "/v1/circuits/a%20circuit/proofs"
    assert headers["Content-Type"] == "application/octet-stream"
    assert headers["Prefer"].startswith("wait=")
    assert headers["Authorization"] == "Bearer secret-token"
    assert tally.statuses == {"200": 2}
    assert tally.outcomes == {"succeeded": 2}
    assert (len(tally.latencies), tally.lost) == (2, 0)
    assert "secret-token" not in repr(target(server))


@pytest.mark.parametrize(
    ("mode", "statuses", "outcomes", "proofs", "lost"),
    [
        ("later", {"202": 6}, {"succeeded": 6}, 6, 0),
        ("closing", {"200": 6}, {"succeeded": 6}, 6, 0),
        ("chunks", {"200": 6}, {"succeeded": 6}, 6, 0),
        ("refuse", {"429": 3, "200": 3}, {"succeeded": 3}, 3, 0),
        ("fail", {"200": 6}, {"failed": 6}, 0, 0),
        ("drop", {"200": 4, "lost": 2}, {"succeeded": 4}, 4, 2),
    ],
)
def test_answers_are_told_apart(
    server: StandIn, mode: str, statuses: Any, outcomes: Any, proofs: int, lost: int
) -> None:
    tally = prove_times(target(server, mode), 6)
    assert (tally.statuses, tally.outcomes) == (statuses, outcomes)
    assert (len(tally.latencies), tally.lost) == (proofs, lost)


def test_nobody_there_is_an_error_in_one_line() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(Failed, match="cannot connect 3 clients"):
        load.measure_burst(Target(f"http://127.0.0.1:{port}", "c", b""), 3)


@pytest.mark.parametrize("url", ["", "ftp://host", "http://", "http://host/path", "host:80"])
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(InvalidInput, match="--url"):
        Target(url, "c", b"")


# Measurements --------------------------------------------------------------------------


def test_a_level_has_throughput_and_latency(server: StandIn) -> None:
    row = load.measure_level(target(server), 4, 0.4, Job())
    assert (row["clients"], row["lost"]) == (4, 0)
    assert row["throughput"] * 0.4 <= row["proofs"]
    assert row["latency"]["min_s"] <= row["latency"]["median_s"] <= row["latency"]["p99_s"]
    assert row["latency"]["p99_s"] <= row["latency"]["max_s"]
    assert row["statuses"] == {"200": row["proofs"]}
    assert len(server.requests) == row["proofs"] + 4, "one of each client does not count"


def test_all_of_a_burst_are_answered(server: StandIn) -> None:
    row = load.measure_burst(target(server, "refuse"), 40)
    assert row["statuses"] == {"200": 20, "429": 20}
    assert (row["proofs"], row["lost"]) == (20, 0)


def test_a_run_is_cancelled(server: StandIn) -> None:
    cancel = threading.Event()
    timer = threading.Timer(0.3, cancel.set)
    timer.start()
    with pytest.raises(Cancelled):
        load.measure_level(target(server), 2, 600.0, Job(cancel=cancel))
    timer.join()


def test_memory_is_watched_while_proofs_are_made(server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "LOOK_SECONDS", 0.05)
    sampler = Sampler()
    sampler.watch("service", os.getpid())
    row, points = load.measure_memory(target(server), 2, 100, sampler, Job())
    assert 100 <= row["proofs"] <= 102
    assert points[0].proofs < 20
    assert points[-1].proofs == row["proofs"]
    assert row["memory"]["late"]["all"] > MIB
    assert abs(row["growth"]) < 64 * MIB


def point(proofs: int, **held: int) -> list[MemoryPoint]:
    return [
        MemoryPoint(proofs, Sample(proofs / 10, "service", role, 1, size * MIB, None, None, None, None))
        for role, size in held.items()
    ]


def test_growth_is_of_medians_after_the_beginning() -> None:
    points = [
        p for n in range(0, 1001, 10) for p in point(n, main=50 if n > 20 else 10, prover=100 + n // 100)
    ]
    points += point(900, main=500)  # one look among many
    found = load.growth(points)
    assert found["memory"]["early"] == {"main": 50 * MIB, "prover": 103 * MIB, "all": 153 * MIB}
    assert found["memory"]["late"]["all"] == 159 * MIB
    assert found["growth"] == 6 * MIB
    assert found["growth_per_1000_proofs"] == 10 * MIB
    assert load.growth(point(0, main=1)) == {}


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(n) for n in range(100, 0, -1)]
    assert load.percentile(values, 99) == 99
    assert load.percentile(values, 50) == 50
    assert load.percentile([7.0], 99) == 7


# The service as a process ----------------------------------------------------------------


def stand_in(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(load, "PROGRAM", (sys.executable, str(SCRIPT), *arguments))


def test_a_service_is_started_awaited_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    with load.service({"PROVER_X": "1"}, tmp_path / "log", Job()) as started:
        assert prove_times(Target(started.url, "c", b"prove"), 1).lost == 0
        assert Path(f"/proc/{started.pid}").exists()
    assert not Path(f"/proc/{started.pid}").exists()


def test_a_service_that_does_not_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "fails")
    with (
        pytest.raises(Failed, match="exit code 1: error: the folder of circuits cannot be read"),
        load.service({}, tmp_path / "log", Job()),
    ):
        pass


# The command ---------------------------------------------------------------------------


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return list(read_rows([folder / "service.jsonl"]))


def test_the_command_measures_a_service_of_its_own(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch)
    monkeypatch.setattr(load, "LOOK_SECONDS", 0.05)
    ran = run(
        *("bench", "service", "--clients", "1,3", "--seconds", "0.2", "--burst", "20", "--proofs", "100"),
        *("--log", "4", "--output", str(tmp_path), "--work", str(tmp_path / "work"), "--json"),
    )
    assert ran.code == 0
    assert ran.answer["ok"] is True
    rows = rows_of(tmp_path)
    assert [(row["operation"], row["clients"]) for row in rows] == [
        *(("service load", 1), ("service load", 3), ("service burst", 20), ("service memory", 4)),
    ]
    assert all(row["circuit"] == "chain 2^4" and row["commit"] and row["lost"] == 0 for row in rows)
    assert rows[3]["memory"]["peak"] > MIB
    assert (tmp_path / "service.png").read_bytes().startswith(PNG)
    with (tmp_path / "service.csv").open() as file:
        samples = list(csv.DictReader(file))
    assert {sample["role"] for sample in samples} == {"main"}
    assert int(samples[-1]["proofs"]) >= 100
    assert ran.answer["files"] == [str(tmp_path / f"service.{kind}") for kind in ("jsonl", "csv", "png")]


def asks(server: StandIn, folder: Path, witness: str) -> Sequence[str]:
    (folder / "w.wtns").write_text(witness)
    (folder / "token").write_text("abc\n")
    return (
        *("bench", "service", "--url", server.url, "--circuit", "c", "--witness", str(folder / "w.wtns")),
        *("--token-file", str(folder / "token"), "--clients", "2", "--seconds", "0.2", "--burst", "9"),
        *("--output", str(folder)),
    )


def test_the_command_measures_a_service_that_runs(server: StandIn, run: Run, tmp_path: Path) -> None:
    ran = run(*asks(server, tmp_path, "prove"))
    assert ran.code == 0
    assert "load, 2 clients" in ran.out
    assert "p99" in ran.out
    assert [row["url"] for row in rows_of(tmp_path)] == [server.url] * 2
    assert not (tmp_path / "service.csv").exists()
    assert all(headers["Authorization"] == "Bearer abc" for _, headers in server.requests)


def test_lost_proofs_are_an_exit_code(server: StandIn, run: Run, tmp_path: Path) -> None:
    ran = run(*asks(server, tmp_path, "drop"), "--json")
    assert ran.code == 3
    assert ran.answer["lost"] == sum(row["lost"] for row in rows_of(tmp_path)) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--url", "http://h:1"], "--url: expected --circuit NAME and --witness"),
        (["--circuit", "c"], "only with --url"),
        (["--clients", "0"], "--clients: expected a whole number from 1"),
        (["--seconds", "0"], "--seconds"),
        (["--url", "h", "--circuit", "c", "--witness", "w"], "--url: expected http"),
    ],
)
def test_arguments_are_checked_first(run: Run, tmp_path: Path, arguments: list[str], message: str) -> None:
    ran = run("bench", "service", "--output", str(tmp_path / "out"), *arguments)
    assert ran.code == 2
    assert message in ran.err
    assert not (tmp_path / "out").exists()


def test_rows_tell_nothing_of_the_witness_or_the_token(server: StandIn) -> None:
    row = load.measure_burst(target(server, "prove:12345678901"), 1)
    assert "12345678901" not in json.dumps(row)
    assert "secret-token" not in json.dumps(row)
