"""The HTTP service: routes, errors, limits, what is kept and what is never told."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from gpuprover import logs
from gpuprover.errors import (
    DeviceError,
    MalformedFile,
    OutOfMemory,
    ProofGenerationFailed,
    ProverError,
    Timeout,
    WitnessMismatch,
)
from gpuprover.executor import KeyInfo, Lost
from gpuprover.proving import ProofResult
from gpuprover.service import core, models, routes, server
from gpuprover.service.bodies import Budget, Pace
from gpuprover.service.client import Client
from gpuprover.service.problems import problem_of
from gpuprover.service.results import Attempt, Results
from gpuprover.systems import system
from gpuprover.systems.system import system_named
from gpuprover.witness_source import WitnessInputs
from tests.support.plonk import OWN
from tests.support.service_stage import (
    CHAIN,
    LARGE,
    LOST,
    SECONDS,
    SLOW,
    SUCCEED,
    WRONG,
    Executor,
    Stage,
    proof,
    stage,
)

SHAPE = ["id", "state", "circuit_id", "proof", "public_signals", "device", "timings", "error"]
PROOFS = "/v1/circuits/chain/proofs"
WITNESS = {"Content-Type": "application/octet-stream"}
VERIFICATION_KEYS = {
    "groth16": Path(f"{CHAIN}.vkey.json"),
    **{name: OWN / f"adds.{name}.vkey.json" for name in ("plonk", "fflonk")},
    "midnight": Path(CHAIN).parent / "midnight" / "hello.verifier",
}
"""One of each proof system."""
ALONE = {"tenant_share": 1}
"""For tests of limits of all tenants together."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """For tests that leave nothing behind."""
    with stage(tmp_path_factory.mktemp("circuits")) as found:
        yield found


def until(condition: Any) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it does not come to that"
        time.sleep(0.01)


def problem(response: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    """The document of an error, its form checked."""
    assert (response.status_code, response.json().get("kind")) == (status, kind), response.text
    assert response.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = response.json()
    assert document["status"] == status
    assert document["request_id"] == response.headers["x-request-id"]
    assert document["type"].startswith("urn:gpuprover:problem:")
    assert "\n" not in document["detail"]
    if status in (429, 503):
        assert 1 <= int(response.headers["retry-after"]) <= 60
    return document


def end_open(found: Stage) -> None:
    """Ends what runs, and what runs then, until nothing is open."""

    def ended() -> bool:
        found.executor.end_all()
        return not found.service.results.open

    until(ended)


# Proofs ----------------------------------------------------------------------------------------


def test_a_proof_at_once(shared: Stage) -> None:
    answer = shared.post(wait=SECONDS)
    assert answer.status_code == 200
    document = answer.json()
    assert list(document) == SHAPE
    made = proof()
    assert document == {
        "id": document["id"],
        "state": "succeeded",
        "circuit_id": "chain",
        "proof": made.proof,
        "public_signals": made.public_signals,
        "device": "cpu",
        "timings": made.timings,
        "error": None,
    }
    assert answer.headers["location"] == f"/v1/proofs/{document['id']}"
    assert answer.headers["preference-applied"] == "wait=30"
    assert answer.headers["cache-control"] == "no-store"
    assert shared.get(answer.headers["location"]).json() == document


def test_a_proof_later(shared: Stage) -> None:
    answer = shared.post(SLOW)
    assert answer.status_code == 202
    assert list(answer.json()) == SHAPE
    where = answer.headers["location"]
    until(lambda: shared.get(where).json()["state"] == "running")
    pending = shared.get(where)
    assert pending.json() | {"id": ""} == {
        "id": "",
        "state": "running",
        "circuit_id": "chain",
        "proof": None,
        "public_signals": None,
        "device": "cpu",
        "timings": {},
        "error": None,
    }
    assert pending.headers["retry-after"] == "1"
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(shared.get, where, headers={"Prefer": "respond-async, wait=25"})
        time.sleep(0.1)
        assert not waiting.done()
        shared.executor.end_all()
        assert waiting.result(SECONDS).json()["state"] == "succeeded"


def test_too_short_a_wait_is_a_202(shared: Stage) -> None:
    begun = time.monotonic()
    answer = shared.post(SLOW, wait=1)
    assert answer.status_code == 202
    assert time.monotonic() - begun >= 1
    shared.executor.end_all()


def test_cancelling(shared: Stage) -> None:
    where = shared.post(SLOW).headers["location"]
    cancelled = shared.client.delete(where)
    assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
    error = cancelled.json()["error"]
    assert (error["kind"], error["status"]) == ("Aborted", 409)
    assert shared.client.delete(where).json() == cancelled.json() == shared.get(where).json()
    assert not shared.executor.runs
    done = shared.post(wait=SECONDS).headers["location"]
    problem(shared.client.delete(done), 409, "AlreadyEnded")
    assert shared.get(done).json()["state"] == "succeeded"
    for method in ("GET", "DELETE"):
        problem(shared.client.request(method, f"/v1/proofs/{'0' * 32}"), 404, "ProofNotFound")


def test_a_cancelled_proof_is_a_409_for_whoever_waits(shared: Stage) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(shared.post, SLOW, wait=SECONDS)
        until(lambda: shared.executor.runs)
        (record,) = shared.service.results.open
        assert shared.client.delete(f"/v1/proofs/{record.id}").status_code == 200
        problem(waiting.result(SECONDS), 409, "Aborted")


def test_a_witness_that_does_not_satisfy_is_a_422(shared: Stage) -> None:
    answer = shared.post(WRONG, wait=SECONDS)
    document = problem(answer, 422, "UnsatisfiedWitness")
    later = shared.get(answer.headers["location"])
    assert (later.status_code, later.json()["state"]) == (200, "failed")
    assert later.json()["id"] == document["proof_id"]
    assert later.json()["error"] == {k: document[k] for k in ("type", "title", "status", "detail", "kind")}


def test_its_own_time_limit_is_a_504(shared: Stage) -> None:
    problem(shared.post(SLOW, wait=SECONDS, params={"timeout": 0.2}), 504, "Timeout")
    assert not shared.executor.runs


def test_priority_timeout_and_tenant_reach_the_prover(shared: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    submit = shared.prover.submit

    def spy(*args: Any, **options: Any) -> Any:
        asked.append((args, options))
        return submit(*args, **options)

    monkeypatch.setattr(shared.prover, "submit", spy)
    shared.post(wait=SECONDS, params={"priority": -7, "timeout": 12.5})
    shared.post(wait=SECONDS)
    assert asked == [
        (("chain", SUCCEED), {"timeout": 12.5, "priority": -7, "queue": "refuse", "tenant": "127.0.0.1"}),
        (("chain", SUCCEED), {"timeout": None, "priority": 0, "queue": "refuse", "tenant": "127.0.0.1"}),
    ]


def test_inputs_go_to_the_circuits_own_program_and_nowhere_else(shared: Stage) -> None:
    inputs = {"a": "3", "b": [1, "0x2"]}
    answer = shared.client.post(PROOFS, json={"inputs": inputs}, headers={"Prefer": "wait=30"})
    assert answer.status_code == 200
    witness = shared.executor.requests[-1].witness
    assert isinstance(witness, WitnessInputs)
    assert json.loads(witness.inputs) == inputs
    assert witness.program == str(shared.prover.settings.circuit_keys_path / "chain.wasm")
    count = len(shared.executor.requests)
    for body in (
        {"inputs": inputs, "wasm": "/etc/passwd"},
        {"inputs": inputs, "fuel": 1},
        {"inputs": "/etc/passwd"},
        {"inputs": [1]},
        {},
        [],
        "/etc/passwd",
    ):
        problem(shared.client.post(PROOFS, json=body), 400, "InvalidInput")
    assert len(shared.executor.requests) == count


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", "InvalidInput"),
        (b"{", "MalformedFile"),
        (b'{"inputs": {"a": NaN}}', "MalformedFile"),
        (b'{"inputs": {"a": 1, "a": 2}}', "MalformedFile"),
        (b'{"inputs": ' + b"[" * 300 + b"]" * 300 + b"}", "MalformedFile"),
        (b'{"inputs": {"a": ' + b"7" * 500 + b"}}", "MalformedFile"),
        (b'\xff\xfe{"inputs": {}}', "MalformedFile"),
    ],
)
def test_json_that_is_none_is_a_400(shared: Stage, body: bytes, kind: str) -> None:
    answer = shared.client.post(PROOFS, content=body, headers={"Content-Type": "application/json"})
    problem(answer, 400, kind)


@pytest.mark.parametrize(
    ("params", "headers"),
    [
        ({"priority": "1001"}, {}),
        ({"priority": "high"}, {}),
        ({"timeout": "0"}, {}),
        ({"timeout": "nan"}, {}),
        ({"timeout": "inf"}, {}),
        ({}, {"Idempotency-Key": "two words"}),
        ({}, {"Idempotency-Key": "x" * 256}),
    ],
)
def test_bad_parameters_are_a_400(shared: Stage, params: dict[str, str], headers: dict[str, str]) -> None:
    problem(shared.post(params=params, headers=headers), 400, "InvalidInput")


def test_what_is_not_there_is_a_404(shared: Stage) -> None:
    for name in ("mint", "..", "%2e%2e", "chain.zkey", "%00", "x" * 1000, "..%2f..%2fetc"):
        answer = shared.client.post(f"/v1/circuits/{name}/proofs", content=SUCCEED, headers=WITNESS)
        no_path = "%2f" in name or name == ".."  # what a client, or the server, takes for another path
        document = problem(answer, 404, "NotFound" if no_path else "CircuitNotFound")
        assert str(shared.prover.settings.circuit_keys_path) not in document["detail"]
    problem(shared.post(circuit="checked", wait=SECONDS), 404, "CircuitNotFound")
    problem(shared.get("/v2/circuits"), 404, "NotFound")
    for path, allowed in {
        "/v1/circuits": "GET, HEAD",
        "/v1/proofs/x": "GET, DELETE, HEAD",
        "/": "GET, HEAD",
        "/v1/verify": "POST",
    }.items():
        answer = shared.client.put(path)
        problem(answer, 405, "MethodNotAllowed")
        assert answer.headers["allow"] == allowed


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {**WITNESS, "Content-Encoding": "gzip"},
    ],
)
def test_bodies_of_other_types_are_a_415(shared: Stage, headers: dict[str, str]) -> None:
    problem(shared.client.post(PROOFS, content=SUCCEED, headers=headers), 415, "UnsupportedMediaType")
    problem(shared.client.post("/v1/verify", content=SUCCEED, headers=headers), 415, "UnsupportedMediaType")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MalformedFile("<witness>", "header", "truncated", role="witness"), 400),
        (MalformedFile("/keys/c.zkey", "header", "truncated"), 500),
        (WitnessMismatch("3 values", path="<bytes>", role="witness", more="of /keys/c.zkey"), 400),
        (OutOfMemory("it does not fit"), 503),
        (DeviceError("cuda:0 is lost"), 503),
        (ProofGenerationFailed("its worker died three times"), 500),
        (Timeout("time limit reached"), 504),
    ],
)
def test_errors_have_statuses_and_show_no_paths(error: ProverError, status: int) -> None:
    found = problem_of(error)
    assert (found.status, found.kind) == (status, error.kind)
    assert "/keys" not in found.detail
    assert ("Retry-After" in found.headers) == (status == 503)


# Limits ----------------------------------------------------------------------------------------


def test_a_full_queue_is_a_429_and_costs_nothing(tmp_path: Path) -> None:
    with stage(tmp_path / "c", settings=ALONE, threads=1, queue_limit=2) as found:
        found.executor.prompt = False  # what waits for its key is in the queue
        accepted = [found.post(SLOW) for _ in range(2)]
        assert [answer.status_code for answer in accepted] == [202, 202]
        held = found.service.budget.used
        refused = found.post(headers={"Idempotency-Key": "again"})
        problem(refused, 429, "QueueFull")
        assert found.service.budget.used == held == 2 * len(SLOW)
        assert len(found.service.results.open) == 2
        found.executor.answer_load()
        end_open(found)
        # What was refused may be sent again under the same key.
        assert found.post(wait=SECONDS, headers={"Idempotency-Key": "again"}).status_code == 200
        assert found.service.budget.used == 0


def test_bodies_are_bounded_each_and_together(tmp_path: Path) -> None:
    mib = 1 << 20
    with stage(tmp_path / "c", settings={**ALONE, "body_limit": 2, "body_memory": 4}) as found:

        def chunks(size: int) -> Iterator[bytes]:
            for _ in range(size >> 16):
                yield bytes(1 << 16)

        for content in (bytes(2 * mib + 1), chunks(3 * mib)):
            problem(found.client.post(PROOFS, content=content, headers=WITNESS), 413, "BodyTooLarge")
        big = {"inputs": {"a": ["1"] * (1 << 16)}}
        problem(found.client.post(PROOFS, json=big), 413, "BodyTooLarge")
        assert found.service.budget.used == 0
        # Three that wait or run take all: each as long as it is, to the byte.
        for _ in range(3):
            assert found.post(SLOW).status_code == 202
        assert found.service.budget.used == 3 * len(SLOW)
        with found.service.budget.reserve() as others:
            others.grow(3 * mib)
            problem(found.client.post(PROOFS, content=bytes(2 * mib), headers=WITNESS), 429, "QueueFull")
        end_open(found)
        assert found.service.budget.used == 0


def test_a_length_that_is_no_number_is_a_400(shared: Stage) -> None:
    host, port = shared.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), SECONDS) as raw:
        raw.sendall(
            f"POST {PROOFS} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/octet-stream\r\n"
            f"Content-Length: 99999999999999999999\r\n\r\n".encode()
        )
        assert raw.recv(100).split(b"\r\n")[0].split()[1] in (b"400", b"413")


def test_a_body_that_comes_too_slowly_is_a_408(shared: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared.service, "pace", Pace(0.3, 16 << 10))

    def drop_by_drop(count: int, pause: float) -> Iterator[bytes]:
        for _ in range(count):
            yield b"drop"
            time.sleep(pause)

    for count, pause in ((1, 0.8), (8, 0.1)):
        answer = shared.client.post(PROOFS, content=drop_by_drop(count, pause), headers=WITNESS)
        problem(answer, 408, "RequestTimeout")
    assert shared.service.budget.used == 0


def test_reservations_are_given_back_whatever_happens() -> None:
    budget = Budget(10)
    with pytest.raises(ZeroDivisionError), budget.reserve() as one:
        one.grow(7)
        one.hand_on()
        raise ZeroDivisionError
    assert budget.used == 0
    with budget.reserve() as one:
        one.grow(7)
        one.hand_on()
    assert budget.used == 7
    one.release()
    assert budget.used == 0


def test_many_clients_at_once_lose_nothing(tmp_path: Path) -> None:
    with stage(tmp_path / "c", settings=ALONE, queue_limit=16) as found:
        crowd(found, 150)


@pytest.mark.slow
def test_a_thousand_clients_at_once_lose_nothing(tmp_path: Path) -> None:
    with stage(tmp_path / "c", settings=ALONE, queue_limit=100) as found:
        crowd(found, 1000)


def crowd(found: Stage, count: int) -> None:
    """All of them ask at once: each gets 200, 202 or 429, and what was accepted is proved."""

    async def ask(client: httpx.AsyncClient, i: int) -> httpx.Response:
        headers = {**WITNESS, **({"Prefer": "wait=20"} if i % 2 else {})}
        return await client.post(PROOFS, content=SUCCEED, headers=headers)

    async def all_of_them() -> tuple[list[httpx.Response], list[Any]]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=found.url, timeout=120, limits=limits, trust_env=False
        ) as client:
            answers = await asyncio.gather(*(ask(client, i) for i in range(count)))
            places = [answer.headers["location"] for answer in answers if answer.status_code == 202]
            later = [
                (await client.get(place, headers={"Prefer": "wait=20"})).json()["state"] for place in places
            ]
            return answers, later

    server._allow_descriptors()
    answers, later = asyncio.run(all_of_them())
    statuses = [answer.status_code for answer in answers]
    assert len(statuses) == count
    assert set(statuses) <= {200, 202, 429}
    assert later == ["succeeded"] * statuses.count(202)
    assert statuses.count(200) > 0
    accepted = statuses.count(200) + statuses.count(202)
    status = found.get("/v1/status").json()
    assert status["counters"]["succeeded"] == accepted == status["results"]
    assert status["counters"]["refused"] == statuses.count(429)
    assert (status["body_bytes"], status["queued_jobs"], status["active_jobs"]) == (0, 0, 0)


# Idempotency -------------------------------------------------------------------------------------


def test_the_same_request_is_the_same_proof(shared: Stage) -> None:
    key = {"Idempotency-Key": "one"}
    first = shared.post(SLOW, headers=key)
    count = len(shared.executor.requests)
    assert shared.post(SLOW, headers=key).headers["location"] == first.headers["location"]
    for other in ({"witness": SUCCEED}, {"witness": SLOW, "params": {"priority": -1}}):
        problem(shared.post(headers=key, **other), 409, "IdempotencyConflict")
    assert (
        shared.post(SLOW, headers={"Idempotency-Key": "two"}).headers["location"] != first.headers["location"]
    )
    shared.executor.end_all()
    done = shared.post(SLOW, headers=key, wait=SECONDS)
    assert (done.status_code, done.json()["id"]) == (200, first.json()["id"])
    assert len(shared.executor.requests) == count + 1


def test_two_at_once_are_one_proof(shared: Stage) -> None:
    before = len(shared.executor.requests)
    with ThreadPoolExecutor(8) as pool:
        headers = {"Idempotency-Key": "many at once".replace(" ", "-")}
        answers = list(pool.map(lambda _: shared.post(wait=SECONDS, headers=headers), range(8)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(shared.executor.requests) == before + 1


def test_who_waits_for_a_request_that_is_refused_is_told_the_same(shared: Stage) -> None:
    async def both() -> list[Any]:
        begin = asyncio.Event()

        async def refuse() -> Any:
            await begin.wait()
            raise OutOfMemory("no")

        one = asyncio.create_task(shared.service.submit_once(("", "key"), b"same", refuse))
        await asyncio.sleep(0)
        two = asyncio.create_task(shared.service.submit_once(("", "key"), b"same", refuse))
        await asyncio.sleep(0)
        begin.set()
        return await asyncio.gather(one, two, return_exceptions=True)

    assert [str(error) for error in shared.on_loop(both())] == ["no", "no"]
    assert ("", "key") not in shared.service.results.attempts


# Clients that go away --------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, "kept"])
def test_who_goes_away_while_waiting_cancels_what_nobody_can_ask_for(shared: Stage, key: str | None) -> None:
    headers = {} if key is None else {"Idempotency-Key": key}
    with httpx.Client(base_url=shared.url, trust_env=False) as client, pytest.raises(httpx.ReadTimeout):
        client.post(PROOFS, content=SLOW, headers={**WITNESS, **headers, "Prefer": "wait=30"}, timeout=0.5)
    if key is None:
        until(lambda: not shared.service.results.open)
        assert shared.service.results.latest[0]["state"] == "cancelled"
    else:
        time.sleep(0.2)
        assert len(shared.service.results.open) == 1
        shared.executor.end_all()
        assert shared.post(SLOW, wait=SECONDS, headers=headers).status_code == 200


def test_half_a_body_leaves_nothing(shared: Stage, caplog: pytest.LogCaptureFixture) -> None:
    host, port = shared.url.removeprefix("http://").split(":")
    with caplog.at_level(logging.INFO), socket.create_connection((host, int(port)), SECONDS) as raw:
        raw.sendall(
            f"POST {PROOFS} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/octet-stream\r\n"
            "Content-Length: 1000\r\n\r\nhalf".encode()
        )
        until(lambda: shared.service.budget.used == len("half"))
        raw.close()
        until(lambda: shared.service.budget.used == 0)
        until(lambda: " 499" in caplog.text)


# What is kept ------------------------------------------------------------------------------------


class FakeJob:
    def __init__(self, name: str, outcome: ProofResult | ProverError) -> None:
        from gpuprover.engine import JobState

        self.id, self.circuit, self.outcome = name, "c", outcome
        self.state = JobState.SUCCEEDED if isinstance(outcome, ProofResult) else JobState.FAILED
        self.started = self.finished = 1.0
        self.device, self.protocol = "cpu", None

    def add_done_callback(self, callback: Any) -> None:
        callback(self)

    def wait(self, timeout: float) -> ProofResult:
        if isinstance(self.outcome, ProverError):
            raise self.outcome
        return self.outcome


def test_results_expire_by_age_number_and_bytes() -> None:
    async def main() -> None:
        now = 0.0
        results = Results(100.0, 3, max_bytes=110_000, clock=lambda: now)
        budget = Budget(100)

        async def add(name: str, outcome: ProofResult | ProverError, key: str | None = None) -> None:
            whose = None if key is None else ("", key)
            if whose is not None:
                made = asyncio.get_running_loop().create_future()
                results.attempts[whose] = Attempt(b"", made)
            with budget.reserve() as reservation:
                reservation.grow(10)
                reservation.hand_on()
                record = results.add(FakeJob(name, outcome), reservation, whose)  # type: ignore[arg-type]
            await record.ended.wait()

        def kept() -> str:
            return "".join(name for name in "abcdefg" if results.get(name) is not None)

        await add("a", proof(), "key")
        now = 50.0
        await add("b", Timeout("late"))
        assert kept() == "ab"
        now = 100.0
        assert kept() == "b"
        assert results.attempts == {}
        for name in "cde":
            await add(name, proof())
        assert kept() == "cde"
        await add("f", proof(["7" * 77] * 300))
        assert kept() == "def"
        await add("g", proof(["7" * 77] * 300))
        assert kept() == "g", "two of them are too much; the last one stays"
        assert budget.used == 0
        assert [latest["id"] for latest in results.latest] == list("gfedcba")
        now = 1000.0
        assert kept() == ""
        assert len(results) == 0

    asyncio.run(main())


def test_a_large_result_arrives_whole(shared: Stage) -> None:
    document = shared.post(LARGE, wait=SECONDS).json()
    assert document["public_signals"] == ["7" * 77] * 100_000


# Circuits and verification ---------------------------------------------------------------------


def test_circuits(shared: Stage) -> None:
    shared.client.post("/v1/circuits/chain/unload")
    # A proof that has just been answered may still hold its key.
    until(lambda: not shared.get("/v1/circuits/chain").json()["loaded"])
    chain = {"id": "chain", "loaded": False}
    listed = shared.get("/v1/circuits").json()
    assert listed == {"circuits": [chain, {"id": "checked", "loaded": False}]}
    details = {**chain, "protocol": "groth16", "curve": "bn128", "public_signals": 2}
    assert shared.get("/v1/circuits/chain").json() == details
    loaded = shared.client.post("/v1/circuits/chain/load", params={"timeout": 20})
    assert (loaded.status_code, loaded.json()) == (200, details | {"loaded": True})
    until(lambda: shared.get("/v1/circuits/chain").json()["loaded"])
    assert shared.get("/v1/status").json()["loaded_circuits"] == ["chain"]
    assert shared.client.post("/v1/circuits/chain/unload").json() == details
    assert shared.client.post("/v1/circuits/chain/unload").json() == details
    problem(shared.client.post("/v1/circuits/checked/load"), 404, "CircuitNotFound")
    for path in ("", "/verification-key"):
        problem(shared.get(f"/v1/circuits/mint{path}"), 404, "CircuitNotFound")
    problem(shared.client.post("/v1/circuits/mint/unload"), 404, "CircuitNotFound")


def test_the_verification_key_is_snarkjs_s(shared: Stage) -> None:
    expected = json.loads(Path(f"{CHAIN}.vkey.json").read_text())
    expected.pop("vk_alphabeta_12", None)
    for name in ("chain", "checked"):
        assert shared.get(f"/v1/circuits/{name}/verification-key").json() == expected


def statement() -> dict[str, Any]:
    return {
        "public_signals": json.loads(Path(f"{CHAIN}.public.json").read_text()),
        "proof": json.loads(Path(f"{CHAIN}.proof.json").read_text()),
    }


def test_a_long_verification_key_is_written_as_a_short_one() -> None:
    """Whatever lists its system's document has."""
    points = [["1", "2", "1"]] * 3
    document = {"protocol": "other", "nPublic": 3, "Qm": points, "é": {"k": [1, None]}, "IC": [], "last": "x"}
    assert routes._written(document) == json.dumps(document).encode()


def test_verification(shared: Stage) -> None:
    def verify(**changes: Any) -> httpx.Response:
        return shared.client.post("/v1/verify", json={"circuit_id": "checked", **statement(), **changes})

    assert verify().json() == {"valid": True}
    signals = statement()["public_signals"]
    assert verify(public_signals=[str(int(signals[0]) + 1), *signals[1:]]).json() == {"valid": False}
    assert verify(public_signals=[int(s) for s in signals]).json() == {"valid": True}
    problem(verify(public_signals=signals[1:]), 400, "MalformedFile")
    problem(verify(proof={"pi_a": []}), 400, "MalformedFile")
    of_another = problem(verify(proof=statement()["proof"] | {"protocol": "plonk"}), 400, "UnsupportedFile")
    assert of_another["role"] == "proof"
    problem(verify(circuit_id="mint"), 404, "CircuitNotFound")


@pytest.mark.parametrize(
    "changes",
    [
        # The library would open files of these names.
        {"proof": f"{CHAIN}.proof.json"},
        {"public_signals": f"{CHAIN}.public.json"},
        {"verification_key": f"{CHAIN}.vkey.json"},
        {"public_signals": [1.5]},
        {"public_signals": [True]},
        {"public_signals": [None]},
        {"circuit_id": 3},
    ],
)
def test_verification_takes_documents_and_nothing_else(shared: Stage, changes: dict[str, Any]) -> None:
    asked = {"circuit_id": "checked", **statement(), **changes}
    document = problem(shared.client.post("/v1/verify", json=asked), 400, "InvalidInput")
    assert str(CHAIN) not in document["detail"]


def test_a_batch_is_answered_as_it_is_verified(shared: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    count = routes.FIRST_BATCH + routes.BATCH + 5
    go_on, sizes = threading.Event(), []

    def verify_batch(circuit: str, statements: list[Any]) -> list[bool]:
        if sizes:
            assert go_on.wait(SECONDS)
        sizes.append(len(statements))
        return [signals == ["1"] for signals, _ in statements]

    monkeypatch.setattr(shared.prover, "verify_batch", verify_batch)
    body = {
        "circuit_id": "chain",
        "proofs": [{"public_signals": [str(i % 2)], "proof": {}} for i in range(count)],
    }
    with shared.client.stream("POST", "/v1/verify/batch", json=body) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/x-ndjson"
        found = []
        for line in answer.iter_lines():
            found.append(json.loads(line))
            # The first ones are here, and the others are not verified yet.
            if len(found) == routes.FIRST_BATCH:
                assert sizes == [routes.FIRST_BATCH]
                go_on.set()
    assert found == [{"index": i, "valid": i % 2 == 1} for i in range(count)]
    assert sizes == [routes.FIRST_BATCH, routes.BATCH, 5]
    until(lambda: shared.service.budget.used == 0)


def test_a_batch_of_real_proofs(shared: Stage) -> None:
    wrong = statement() | {"public_signals": ["1", "2"]}
    damaged = statement() | {"proof": {}}
    body = {"circuit_id": "chain", "proofs": [statement(), wrong, damaged]}
    lines = shared.client.post("/v1/verify/batch", json=body).text.splitlines()
    assert [json.loads(line)["valid"] for line in lines] == [True, False, False]
    problem(
        shared.client.post("/v1/verify/batch", json=body | {"circuit_id": "mint"}), 404, "CircuitNotFound"
    )
    problem(shared.client.post("/v1/verify/batch", json=body | {"proofs": []}), 400, "InvalidInput")


def test_a_batch_that_breaks_says_so_in_its_last_line(shared: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def verify_batch(circuit: str, statements: list[Any]) -> list[bool]:
        if len(statements) > routes.FIRST_BATCH:
            raise Timeout("the verifier is busy")
        return [True] * len(statements)

    monkeypatch.setattr(shared.prover, "verify_batch", verify_batch)
    body = {"circuit_id": "chain", "proofs": [{"public_signals": [], "proof": {}}] * 70}
    lines = shared.client.post("/v1/verify/batch", json=body).text.splitlines()
    assert len(lines) == routes.FIRST_BATCH + 1
    error = json.loads(lines[-1])["error"]
    assert (error["kind"], error["status"]) == ("Timeout", 504)
    assert models.BatchVerdict(**json.loads(lines[-1])).error is not None


# State -------------------------------------------------------------------------------------------


def test_readiness_says_what_keeps_it_from_proving_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stage(tmp_path / "c", executor=quiet_executor()) as found:
        until(lambda: found.get("/readyz").status_code == 200)
        told = found.prover.get_status
        monkeypatch.setattr(found.prover, "get_status", lambda: replace(told(), ready=False))
        monkeypatch.setattr(core, "UNREADY_SECONDS", 3600.0)
        time.sleep(2 * core.STATUS_SECONDS)
        assert found.get("/readyz").status_code == 200, "workers may be starting again"
        monkeypatch.setattr(core, "UNREADY_SECONDS", 0.0)
        assert found.get("/readyz").status_code == 503
        monkeypatch.undo()
        until(lambda: found.get("/readyz").status_code == 200)


def test_readiness_waits_for_preload_and_for_nothing_after_it(tmp_path: Path) -> None:
    executor = quiet_executor()
    with stage(tmp_path / "c", executor=executor, preload_circuits=["chain"]) as found:
        until(lambda: executor.loads)
        assert found.get("/healthz").json() == {"status": "ok"}
        starting = found.get("/readyz")
        assert (starting.status_code, starting.json()) == (503, {"status": "starting"})
        waiting = found.post(SLOW)
        assert waiting.status_code == 202, "proofs queue before"
        executor.answer_load()
        until(lambda: found.get("/readyz").status_code == 200)
        executor.offer()  # all workers start again
        time.sleep(2 * core.STATUS_SECONDS)
        assert not found.get("/v1/status").json()["devices"]
        assert found.get("/readyz").json() == {"status": "ready"}
        assert found.post(SLOW).status_code == 202, "a POST queues meanwhile"
        found.service.draining = True
        drains = found.get("/readyz")
        assert (drains.status_code, drains.json()) == (503, {"status": "draining"})
        assert found.get("/healthz").status_code == 200
        problem(found.post(), 503, "ShuttingDown")
        problem(found.client.post("/v1/circuits/chain/load"), 503, "ShuttingDown")


def quiet_executor() -> Any:
    from tests.support.service_stage import Executor

    executor = Executor()
    executor.prompt = False
    return executor


def test_the_status_is_that_of_the_prover_and_more(shared: Stage) -> None:
    where = shared.post(wait=SECONDS).headers["location"]
    time.sleep(core.STATUS_SECONDS)
    status = shared.get("/v1/status").json()
    expected = set(shared.prover.get_status().as_dict())
    assert expected <= set(status)
    assert set(status) - expected == {
        "draining",
        "version",
        "uptime",
        "queue_limit",
        "results",
        "body_bytes",
        "latest_proofs",
        "circuits",
    }
    assert status["circuits"] == 2
    latest = status["latest_proofs"][0]
    assert where.endswith(latest["id"])
    assert (latest["circuit_id"], latest["protocol"]) == ("chain", "groth16")
    assert models.Status(**status).ready


def test_draining_ends_what_is_open_and_lets_it_be_fetched(tmp_path: Path) -> None:
    with stage(tmp_path / "c") as found, ThreadPoolExecutor(2) as pool:
        polled = found.post(SLOW)
        waiting = pool.submit(found.post, SLOW, wait=SECONDS)
        until(lambda: len(found.executor.runs) == 2)
        force = asyncio.run_coroutine_threadsafe(_event(), found.loop).result(SECONDS)
        drained = asyncio.run_coroutine_threadsafe(server.drain(found.service, force), found.loop)
        until(lambda: found.service.draining)
        problem(found.post(), 503, "ShuttingDown")
        assert found.get("/readyz").status_code == 503
        assert found.get(polled.headers["location"]).json()["state"] == "running"
        found.executor.end_all()
        assert waiting.result(SECONDS).json()["state"] == "succeeded"
        # It does not go before the one who polls has the proof.
        time.sleep(0.3)
        assert not drained.done()
        assert found.get(polled.headers["location"]).json()["state"] == "succeeded"
        drained.result(SECONDS)


def test_what_does_not_end_within_the_grace_is_aborted(tmp_path: Path) -> None:
    with stage(tmp_path / "c", grace_period=0.2) as found, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(found.post, SLOW, wait=SECONDS)
        until(lambda: found.executor.runs)
        force = asyncio.run_coroutine_threadsafe(_event(), found.loop).result(SECONDS)
        found.on_loop(server.drain(found.service, force))
        problem(waiting.result(SECONDS), 503, "ShuttingDown")


async def _event() -> asyncio.Event:
    return asyncio.Event()


# What every request passes -------------------------------------------------------------------------


def test_request_ids_come_and_go(shared: Stage) -> None:
    assert (
        shared.get("/healthz", headers={"X-Request-Id": "abc-1.2_3"}).headers["x-request-id"] == "abc-1.2_3"
    )
    for bad in ("", "two words", "x" * 129, "a;b"):
        found = shared.get("/healthz", headers={"X-Request-Id": bad}).headers["x-request-id"]
        assert found != bad
        assert len(found) == 32


TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (f"00-{TRACE}-{PARENT}-01", True),
        (f"cc-{TRACE}-{PARENT}-01-more", True),
        (f"00-{TRACE}-{PARENT}-01-more", False),
        (f"ff-{TRACE}-{PARENT}-01", False),
        (f"00-{TRACE.upper()}-{PARENT}-01", False),
        (f"00-{'0' * 32}-{PARENT}-01", False),
        (f"00-{TRACE}-{'0' * 16}-01", False),
        ("junk", False),
    ],
)
def test_traces_go_on(shared: Stage, given: str, taken: bool) -> None:
    version, trace, span, flags = (
        shared.get("/healthz", headers={"traceparent": given}).headers["traceresponse"].split("-")
    )
    assert (version, len(trace), len(span)) == ("00", 32, 16)
    assert span != PARENT
    assert (trace == TRACE, flags) == (taken, "01" if taken else "00")


def test_no_value_of_a_witness_is_told(
    shared: Stage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "81985529216486895"

    def submit(*_: Any, **__: Any) -> Any:
        raise ValueError(f"invalid literal: {secret}")

    with caplog.at_level(logging.DEBUG):
        answers = [
            shared.client.post(PROOFS, json={"inputs": {"a": secret}}),
            shared.client.post(PROOFS, json={"inputs": {"a": secret}, "b": secret}),
            shared.client.post(PROOFS, json={"inputs": secret}),
            shared.client.post(
                PROOFS, content=f'{{"inputs": {secret}'.encode(), headers={"Content-Type": "application/json"}
            ),
            shared.post(secret.encode(), wait=5),
        ]
        monkeypatch.setattr(shared.prover, "submit", submit)
        failed = shared.post(secret.encode())
        answers.append(failed)
    document = problem(failed, 500, "InternalError")
    assert document["detail"] == "a fault of the service; its log says where"
    told = caplog.text + "".join(answer.text + str(answer.headers) for answer in answers)
    assert secret not in told
    assert "ValueError in gpuprover.service.core:" in told
    for record in caplog.records:
        assert secret not in str(vars(record))


@contextmanager
def logged(level: str | None = None) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """The lines that the log gets within the block."""
    lines = io.StringIO()
    root, level_of = logging.getLogger(), logging.getLogger("gpuprover").level
    try:
        logs.configure("json", lines, level=level)
        yield lambda: [json.loads(line) for line in lines.getvalue().splitlines()]
    finally:
        root.handlers[:] = [handler for handler in root.handlers if type(handler).__module__ != logs.__name__]
        logging.getLogger("gpuprover").setLevel(level_of)


def test_the_log_tells_of_requests_by_route_and_path(shared: Stage) -> None:
    with logged() as lines:
        shared.get("/v1/proofs/unknown?token=secret", headers={"X-Request-Id": "me"})
        shared.get("/v1/nothing/%0a" + "x" * 500)
        shared.client.head("/v1/circuits/chain")
        until(lambda: len(lines()) == 3)
        one, two, three = lines()
    assert {k: one[k] for k in ("method", "route", "path", "status", "kind", "request_id", "client")} == {
        "method": "GET",
        "route": "/v1/proofs/{proof_id}",
        "path": "/v1/proofs/unknown",
        "status": 404,
        "kind": "ProofNotFound",
        "request_id": "me",
        "client": "127.0.0.1",
    }
    assert one["message"] == "GET /v1/proofs/unknown 404"
    assert len(one["trace_id"]) == 32
    assert "route" not in two, "none has matched"
    assert two["path"].startswith("/v1/nothing/%0axxx")
    assert len(two["path"]) == 200
    assert (three["method"], three["route"], three["path"]) == (
        "HEAD",
        "/v1/circuits/{circuit_id}",
        "/v1/circuits/chain",
    )
    assert "secret" not in json.dumps([one, two, three])


def test_polls_and_probes_are_worth_no_line_but_in_debug(shared: Stage) -> None:
    polls = ("/", "/v1/status", "/healthz", "/readyz", "/metrics")
    with logged() as lines:
        for path in polls:
            shared.get(path)
        shared.client.post("/v1/status")
        until(lambda: lines() != [])
        assert [line["status"] for line in lines()] == [405], "what is refused is worth one"
    with logged("debug") as lines:
        for path in polls:
            shared.get(path)
        until(lambda: len(lines()) == len(polls))
        assert {line["level"] for line in lines()} == {"DEBUG"}


def test_each_proof_ends_in_one_line(shared: Stage) -> None:
    with logged() as lines:
        for witness in (SUCCEED, WRONG, LOST):
            shared.post(witness, wait=SECONDS, headers={"X-Request-Id": witness.decode()})
        shared.client.delete(shared.post(SLOW).headers["location"])

        def ends() -> dict[str, dict[str, Any]]:
            return {line["outcome"]: line for line in lines() if "outcome" in line}

        until(lambda: len(ends()) == 4)
        found, every = ends(), lines()
    assert sum("outcome" in line for line in every) == 4
    done = found["succeeded"]
    assert {k: done[k] for k in ("level", "circuit", "protocol", "device", "attempts", "request_id")} == {
        "level": "INFO",
        "circuit": "chain",
        "protocol": "groth16",
        "device": "cpu",
        "attempts": 1,
        "request_id": "succeed",
    }
    assert done["message"] == f"proof {done['job_id']} of circuit chain succeeded"
    assert done["waited"] >= 0
    assert done["proven"] >= 0
    rejected = found["rejected"]
    assert (rejected["level"], rejected["kind"], "why" in rejected) == ("INFO", "UnsatisfiedWitness", False)
    failed = found["failed"]
    assert (failed["level"], failed["kind"], failed["protocol"]) == ("WARNING", "DeviceError", "groth16")
    assert failed["why"] == "/keys/chain.zkey: cannot read: Input/output error"
    assert (found["cancelled"]["kind"], found["cancelled"]["level"]) == ("Aborted", "INFO")
    submitted = [line for line in every if line["message"].endswith("was submitted")]
    assert submitted[0]["job_id"] == done["job_id"]


def test_what_a_client_is_not_told_in_full_the_log_tells(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    with stage(folder) as found, logged() as lines:
        (folder / "checked.vkey.json").write_text("{")
        answer = found.get("/v1/circuits/checked")
        assert answer.status_code == 500
        assert str(folder) not in answer.text
        until(lambda: len(lines()) == 2)
        told = next(line for line in lines() if line["logger"] == "gpuprover.service")
        assert (told["level"], told["kind"], told["role"]) == ("WARNING", "MalformedFile", "verification key")
        assert told["message"].startswith(f"MalformedFile: {folder}/checked.vkey.json: document: ")
        assert told["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/healthz", "/readyz", "/metrics", "/version", "/openapi.json", "/v1/status", "/v1/circuits"),
        *("/v1/circuits/chain", "/v1/circuits/chain/verification-key", "/v1/proofs/none", "/nowhere"),
        "/v1/verify",
    ],
)
def test_head_is_get_without_a_body(shared: Stage, path: str) -> None:
    whole, head = shared.get(path), shared.client.head(path)
    assert (head.status_code, head.content) == (whole.status_code, b"")
    assert head.headers["content-type"] == whole.headers["content-type"]
    assert "content-length" in head.headers
    if path not in ("/metrics", "/v1/status") and whole.is_success:
        assert head.headers["content-length"] == str(len(whole.content))


def test_head_counts_as_get_and_leaves_the_connection_whole(shared: Stage) -> None:
    with socket.create_connection(("127.0.0.1", int(shared.url.rpartition(":")[2])), SECONDS) as connection:
        connection.sendall(b"HEAD /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        connection.sendall(b"GET /version HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        received = b""
        while piece := connection.recv(4096):
            received += piece
    first, _, rest = received.partition(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 200 OK")
    assert rest.startswith(b"HTTP/1.1 200 OK"), "no body is between them"
    assert b"unknown" not in shared.service.metrics.render()


def test_an_empty_folder_is_a_problem_in_the_status_and_one_that_is_gone_too(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    with stage(folder) as found:
        assert found.get("/v1/status").json()["problems"] == []
        for file in folder.iterdir():
            file.unlink()
        time.sleep(core.NAMES_SECONDS)
        status = found.get("/v1/status").json()
        assert (status["circuits"], status["problems"]) == (
            0,
            ["there are no circuits in the folder of keys"],
        )
        folder.rmdir()
        time.sleep(core.NAMES_SECONDS)
        (said,) = found.get("/v1/status").json()["problems"]
        assert said == "circuits: cannot read the folder of circuits: No such file or directory"
        gone = problem(found.get("/v1/circuits"), 500, "CircuitNotFound")
        assert gone["detail"] == said


def test_calls_that_block_do_not_block_the_loop(shared: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, names = threading.Event(), []

    def blocked(function: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            names.append(threading.current_thread().name)
            assert go_on.wait(SECONDS)
            return function(*args, **options)

        return call

    for name in ("submit", "verify", "load", "get_status"):
        monkeypatch.setattr(shared.prover, name, blocked(getattr(shared.prover, name)))
    monkeypatch.setattr(routes, "parse", blocked(routes.parse))
    body = {"circuit_id": "checked", **statement()}
    time.sleep(core.STATUS_SECONDS)
    with ThreadPoolExecutor(5) as pool:
        slow = [
            pool.submit(shared.post, wait=SECONDS),
            pool.submit(shared.client.post, "/v1/circuits/chain/load"),
            pool.submit(shared.get, "/v1/status"),
            pool.submit(shared.client.post, "/v1/verify", json=body),
        ]
        until(lambda: len(names) == 4)
        for _ in range(20):
            assert shared.get("/healthz").elapsed.total_seconds() < 5
        assert not any(answer.done() for answer in slow)
        go_on.set()
        assert [answer.result(SECONDS).status_code for answer in slow] == [200] * 4
    assert all(name.startswith("gpuprover-http") for name in names)


class Recorder:
    CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        self.told: list[Any] = []

    def render(self) -> bytes:
        return b"# nothing\n"

    def answered(self, route: str, status: int, seconds: float) -> None:
        assert seconds >= 0
        self.told.append((route, status))

    def verified(self, valid: int, invalid: int, seconds: float) -> None:
        self.told.append((valid, invalid))

    def not_verified(self, count: int = 1) -> None:
        self.told.append(count)


def test_metrics_are_told_and_shown(tmp_path: Path) -> None:
    recorder, listed = Recorder(), []

    def make(prover: Any, found: list[str]) -> Recorder:
        listed.extend(found)
        return recorder

    with stage(tmp_path / "c", metrics=make) as found:
        shown = found.get("/metrics")
        assert (shown.text, shown.headers["content-type"]) == ("# nothing\n", Recorder.CONTENT_TYPE)
        found.post(wait=SECONDS)
        found.client.post("/v1/verify", json={"circuit_id": "checked", **statement()})
        found.client.post("/v1/verify", json={"circuit_id": "checked", "public_signals": [], "proof": {}})
        found.get("/")
        found.get("/nope")
        until(lambda: len(recorder.told) == 8)
    requests = [one for one in recorder.told if isinstance(one, tuple) and isinstance(one[0], str)]
    assert requests == [
        ("GET /metrics", 200),
        ("POST /v1/circuits/{circuit_id}/proofs", 200),
        ("POST /v1/verify", 200),
        ("POST /v1/verify", 400),
        ("GET /", 200),
        ("GET unknown", 404),
    ]
    assert {route for route, _ in requests[:-1]} <= set(listed)
    assert (1, 0) in recorder.told
    assert 1 in recorder.told


# OpenAPI -----------------------------------------------------------------------------------------


def test_the_openapi_document_has_every_route_and_error(shared: Stage) -> None:
    document = shared.get("/openapi.json").json()
    assert sorted(document["paths"]) == [
        "/healthz",
        "/metrics",
        "/readyz",
        "/v1/circuits",
        "/v1/circuits/{circuit_id}",
        "/v1/circuits/{circuit_id}/load",
        "/v1/circuits/{circuit_id}/proofs",
        "/v1/circuits/{circuit_id}/unload",
        "/v1/circuits/{circuit_id}/verification-key",
        "/v1/proofs/{proof_id}",
        "/v1/status",
        "/v1/verify",
        "/v1/verify/batch",
        "/version",
    ]
    assert "HTTPValidationError" not in json.dumps(document)
    schemas = document["components"]["schemas"]
    assert list(schemas["ProofObject"]["properties"]) == SHAPE
    assert schemas["ProofObject"]["properties"]["proof"] == {
        "anyOf": [
            *({"$ref": f"#/components/schemas/{name.capitalize()}Proof"} for name in system.names()),
            {"type": "null"},
        ],
        "description": "Once it has succeeded.",
    }
    for name in system.names():
        assert schemas[f"{name.capitalize()}Proof"] == system_named(name).proof_schema
    create = document["paths"]["/v1/circuits/{circuit_id}/proofs"]["post"]
    assert sorted(map(int, create["responses"])) == [
        *(200, 202, 400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 500, 503, 504)
    ]
    assert set(create["requestBody"]["content"]) == {"application/octet-stream", "application/json"}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                if int(status) >= 400 and path != "/readyz":
                    assert list(response["content"]) == ["application/problem+json"], (path, status)
            if path.startswith("/v1/"):
                assert "401" in operation["responses"]
                assert operation["security"] == [{"HTTPBearer": []}, {}], "a token is taken, and not needed"


# Other proof systems -------------------------------------------------------------------------------

OTHER = system_named("groth16")._replace(
    name="other",
    proof_schema={
        "title": "OtherProof",
        "type": "object",
        "properties": {"protocol": {"const": "other"}, "rounds": {"type": "array"}},
        "required": ["protocol", "rounds"],
    },
)
UNDESCRIBED = OTHER._replace(name="undescribed", proof_schema=None)
OTHER_PROOF = {"protocol": "other", "curve": "bn128", "rounds": [["1", "2"], {"at": "7" * 77}], "n": 1 << 300}


class OtherExecutor(Executor):
    """Its keys are of another system, whose proofs have another form."""

    def info(self, path: str) -> KeyInfo:
        return replace(super().info(path), protocol="other", curve="bls12-381")

    def end(self, run: Any, outcome: ProofResult | ProverError | Lost | None = None) -> None:
        made = proof() if outcome is None else outcome
        super().end(run, replace(made, proof=OTHER_PROOF) if isinstance(made, ProofResult) else made)


def test_a_proof_of_any_system_comes_through(tmp_path: Path) -> None:
    with stage(tmp_path / "c", executor=OtherExecutor(), settings={"rapidsnark": True}) as found:
        before = found.get("/metrics").text
        with logged() as lines:
            made = found.post(wait=SECONDS).json()
            until(lambda: any("outcome" in line for line in lines()))
            (ended,) = [line for line in lines() if "outcome" in line]
        assert made["proof"] == OTHER_PROOF
        assert list(made) == SHAPE
        assert found.get(f"/v1/proofs/{made['id']}").json() == made
        with Client(found.url) as client:
            remote = client.prove("chain", SUCCEED)
            assert (remote.proof, remote.public_signals) == (OTHER_PROOF, ["33"])
        assert ended["protocol"] == "other"
        time.sleep(core.STATUS_SECONDS)
        assert found.get("/v1/status").json()["latest_proofs"][0]["protocol"] == "other"
        assert found.client.post("/input/chain", json={"a": 1}).status_code == 202
        until(lambda: found.get("/status").json()["status"] == "success")
        assert json.loads(found.get("/status").json()["proof"]) == OTHER_PROOF
        info = 'prover_circuit_info{circuit_id="chain",curve="%s",protocol="%s"} 1.0'
        assert info % ("bn128", "groth16") in before, "the files say so until the key is loaded"
        after = found.get("/metrics").text
        assert info % ("bls12381", "other") in after
        assert after.count('prover_circuit_info{circuit_id="chain"') == 1


def test_openapi_says_what_proofs_of_each_system_look_like(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(system._SYSTEMS, "other", f"{__name__}:OTHER")
    monkeypatch.setitem(system._SYSTEMS, "undescribed", f"{__name__}:UNDESCRIBED")
    with stage(tmp_path / "c") as found:
        schemas = found.get("/openapi.json").json()["components"]["schemas"]
    assert schemas["OtherProof"] == OTHER.proof_schema
    assert schemas["ProofObject"]["properties"]["proof"]["anyOf"] == [
        *(
            {"$ref": f"#/components/schemas/{name}Proof"}
            for name in ("Groth16", "Plonk", "Fflonk", "Midnight")
        ),
        {"$ref": "#/components/schemas/OtherProof"},
        {"type": "object", "additionalProperties": True},
        {"type": "null"},
    ]


@pytest.mark.parametrize("name", system.names())
def test_proofs_of_every_system_are_described_and_within_the_bound(name: str) -> None:
    found = system_named(name)
    path = VERIFICATION_KEYS[name]
    if path.suffix == ".json":
        key = system.parse_verification_key(json.loads(path.read_text()))
    else:
        key = system.read_verification_key(path)
    document = found.write_proof(found.sample_proof(key), key.curve)
    assert found.proof_schema is not None
    assert found.proof_schema["title"].lower().startswith(name)
    jsonschema.Draft202012Validator.check_schema(found.proof_schema)
    jsonschema.validate(document, found.proof_schema)
    assert set(document) == set(found.proof_schema["properties"])
    body = json.dumps({"circuit_id": "c", "public_signals": [], "proof": document}).encode()
    assert models.parse(models.VerifyRequest, body).proof == document


@pytest.mark.parametrize("protocol", [*system.names(), "plonk", "", None, 7])
def test_no_proof_is_larger_than_the_bound_whatever_system_it_names(
    shared: Stage, protocol: str | int | None
) -> None:
    rest = {"protocol": protocol, "curve": "bn128"}
    full, over = ({**rest, "evaluations": ["1"] * (models.MAX_PROOF - n)} for n in (3, 2))
    for path, body in (
        ("/v1/verify", {"circuit_id": "checked", "public_signals": ["1", "2"]}),
        ("/v1/verify/batch", {"circuit_id": "checked"}),
    ):

        def ask(document: Any, path: str = path, body: dict[str, Any] = body) -> httpx.Response:
            one = {"public_signals": ["1", "2"], "proof": document}
            return shared.client.post(path, json=body | ({"proofs": [one]} if "batch" in path else one))

        found = problem(ask(over), 400, "InvalidInput")
        assert found["detail"].endswith("expected a proof of at most 256 values")
        # One that is not too large is looked at by its system.
        answer = ask(full)
        assert answer.json() == {"index": 0, "valid": False} if "batch" in path else answer.status_code == 400
        assert "at most" not in answer.text


# rapidsnark ----------------------------------------------------------------------------------------


def test_rapidsnark_s_routes_are_not_there_unless_asked_for(shared: Stage) -> None:
    problem(shared.client.post("/input/chain", json={}), 404, "NotFound")


def test_rapidsnark_s_routes(tmp_path: Path) -> None:
    with stage(tmp_path / "c", settings={"rapidsnark": True}) as found:
        assert found.get("/status").json() == {"status": "ready"}
        problem(found.client.post("/cancel"), 409, "NotBusy")
        problem(found.client.post("/input/mint", json={"a": 1}), 404, "CircuitNotFound")
        problem(found.client.post("/input/chain", json=[1]), 400, "InvalidInput")
        assert found.get("/status").json() == {"status": "ready"}
        begun = found.client.post("/input/chain", json={"a": 1})
        assert (begun.status_code, begun.json()) == (202, {"status": "busy"})
        until(lambda: found.get("/status").json()["status"] != "busy")
        done = found.get("/status").json()
        assert done["status"] == "success"
        assert json.loads(done["proof"]) == proof().proof
        assert json.loads(done["pubData"]) == proof().public_signals
        found.executor.prompt = False
        found.client.post("/v1/circuits/chain/unload")
        assert found.client.post("/input/chain", json={"a": 1}).status_code == 202
        assert found.get("/status").json() == {"status": "busy"}
        problem(found.client.post("/input/chain", json={"a": 2}), 409, "Busy")
        cancelled = found.client.post("/cancel")
        assert (cancelled.status_code, cancelled.json()) == (200, {"status": "aborted"})
        assert found.get("/status").json() == {"status": "aborted"}
        problem(found.client.post("/cancel"), 409, "NotBusy")
