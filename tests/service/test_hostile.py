"""The HTTP service under clients that mean it no good: what one of them takes is not taken from others."""

from __future__ import annotations

import asyncio
import copy
import errno
import http.client
import io
import json
import logging
import os
import random
import resource
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gpuprover import logs
from gpuprover.errors import CircuitNotFound, DeviceError, MalformedFile
from gpuprover.service import connections, models, routes
from gpuprover.service.access import check_site
from gpuprover.service.bodies import Budget, Pace
from gpuprover.service.problems import Problem
from gpuprover.service.shares import AT_ONCE, TenantThreads, Turns, tenant_of
from tests.support.hostile import filled
from tests.support.service_stage import LARGE, SECONDS, SLOW, SUCCEED, Executor, Stage, stage

JSON = {"Content-Type": "application/json"}
WITNESS = {"Content-Type": "application/octet-stream"}
PROOFS = "/v1/circuits/chain/proofs"
OK = (200, 202)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """For tests that leave nothing behind."""
    with stage(tmp_path_factory.mktemp("circuits"), settings={"rapidsnark": True}) as found:
        yield found


def address(found: Stage) -> tuple[str, int]:
    host, port = found.url.removeprefix("http://").split(":")
    return host, int(port)


def connect(found: Stage, source: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(address(found), SECONDS, source_address=(source, 0))


def ask(
    found: Stage, method: str, path: str, body: Any = None, source: str = "127.0.0.1", **headers: str
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(*address(found), timeout=SECONDS, source_address=(source, 0))
    try:
        connection.request(method, path, body, {name.replace("_", "-"): v for name, v in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def raw(found: Stage, head: bytes) -> bytes:
    """All that comes back, until the service closes."""
    with connect(found) as connection:
        connection.sendall(head)
        got = b""
        while piece := connection.recv(1 << 16):
            got += piece
        return got


def until(condition: Any) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it does not come to that"
        time.sleep(0.01)


# Bodies ------------------------------------------------------------------------------------------


def parsed(model: type[models._Request], body: bytes) -> Any:
    """A body as a model; of inputs the text travels on, and is parsed where they are used."""
    if model is models.ProveRequest:
        return models.ProveRequest(inputs=json.loads(models.inputs_text(body)))
    return models.parse(model, body)


@pytest.mark.parametrize(
    ("model", "head", "unit", "tail"),
    [
        (models.VerifyRequest, b'{"circuit_id":"c","proof":{},"public_signals":[', b"[],", b"1]}"),
        (models.VerifyRequest, b'{"circuit_id":"c","proof":{},"public_signals":[', b"1.5,", b"1]}"),
        (models.VerifyRequest, b'{"circuit_id":"c","public_signals":[],"proof":{"a":[', b"[],", b"1]}}"),
        (models.VerifyBatchRequest, b'{"circuit_id":"c","proofs":[', b"0,", b"1]}"),
        (models.VerifyBatchRequest, b'{"circuit_id":"c","proofs":[', b"{},", b"{}]}"),
        (models.ProveRequest, b'{"inputs":[', b"[],", b"1]}"),
    ],
)
def test_the_first_error_of_a_body_ends_it(
    model: type[models._Request], head: bytes, unit: bytes, tail: bytes
) -> None:
    """A hundred thousand errors were collected, in 600 bytes for each byte of the body."""
    body = filled(head, unit, tail, 1 << 15)
    tracemalloc.start()
    try:
        with pytest.raises((Problem, MalformedFile)):
            parsed(model, body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 150 * len(body)


def test_bodies_are_checked_as_the_models_say(rng: random.Random) -> None:
    proof: dict[str, Any] = {"pi_a": ["1"], "pi_b": [["1", "2"]], "curve": "bn128"}
    good: list[tuple[type[models._Request], dict[str, Any]]] = [
        (models.ProveRequest, {"inputs": {"a": [1, "2", [3]]}}),
        (models.VerifyRequest, {"circuit_id": "c", "public_signals": ["1", 2], "proof": proof}),
        (
            models.VerifyBatchRequest,
            {"circuit_id": "c", "proofs": [{"public_signals": ["1", 2], "proof": proof}] * 3},
        ),
    ]
    strange = [None, True, 0, -1, 1.5, "", "x", [], [[]], {}, {"a": 1}, [1.5], [True], [None], ["1", {}]]
    accepted = 0
    for _ in range(600):
        model, document = rng.choice(good)
        document = json.loads(json.dumps(document))
        for _ in range(rng.randrange(3)):
            inner: Any = document
            while isinstance(inner, dict | list) and inner and rng.random() < 0.7:
                place = rng.choice(list(inner)) if isinstance(inner, dict) else rng.randrange(len(inner))
                if rng.random() < 0.4:
                    inner[place] = copy.deepcopy(rng.choice(strange))
                elif rng.random() < 0.2 and isinstance(inner, dict):
                    inner[rng.choice(["x", "inputs", "proof"])] = 1
                    del inner[place]
                    break
                inner = inner[place]
        expected = found = None
        with suppress(ValidationError):
            expected = model.model_validate(document)
        with suppress(Problem):
            found = parsed(model, json.dumps(document).encode())
        assert found == expected, document
        accepted += found is not None
    assert 100 < accepted < 500


def test_the_text_of_inputs_is_cut_out_of_its_body() -> None:
    inputs = {"a": ["1", {"inputs": ":}"}], "}": ":{"}
    text = json.dumps(inputs)
    for body in (
        f'{{"inputs":{text}}}',
        f' \n{{ "inputs" \t: {text} }}\r\n',
        f'{{"\\u0069nput\\u0073":{text}}}',
        f'\ufeff{{"inputs": {text}}}',
    ):
        assert json.loads(models.inputs_text(body.encode())) == inputs
    assert models.inputs_text(text.encode(), bare=True) == text.encode()
    for wrong in ("[]", "7", '"inputs"', '{"inputs": []}', '{"inputs": {}, "x": 1}', '{"input": {}}', "{}"):
        with pytest.raises(Problem) as caught:
            models.inputs_text(wrong.encode())
        assert caught.value.status == 400
    with pytest.raises(Problem):
        models.inputs_text(b"[]", bare=True)


def test_too_much_of_anything_is_refused() -> None:
    for model, body, status in [
        (models.VerifyBatchRequest, {"circuit_id": "c", "proofs": [0] * (models.MAX_BATCH + 1)}, 413),
        (models.VerifyRequest, {"circuit_id": "c", "public_signals": [], "proof": {"a": [1] * 300}}, 400),
    ]:
        with pytest.raises(Problem) as caught:
            parsed(model, json.dumps(body).encode())
        assert caught.value.status == status
    body = b'{"inputs":{"a":[' + b"[]," * models.MAX_CONTAINERS + b"0]}}"
    with pytest.raises(MalformedFile, match="more than"):
        models.inputs_text(body)


def test_json_counts_by_what_it_takes_once_it_is_parsed(tmp_path: Path) -> None:
    with stage(tmp_path / "c", settings={"json_memory": 16, "body_memory": 128}) as found:
        for unit, status in ((b'"' + b"7" * 77 + b'",', OK), (b"0,", [413]), (b"[],", [413])):
            body = filled(b'{"inputs":{"a":[', unit, b"0]}}", 400_000)
            assert ask(found, "POST", PROOFS, body, Content_Type="application/json")[0] in status
        until(lambda: found.service.budget.used == 0)


# Shares ------------------------------------------------------------------------------------------


def test_tenants_without_tokens_are_addresses() -> None:
    assert tenant_of("10.0.0.1") == tenant_of("::ffff:10.0.0.1") == "10.0.0.1"
    assert tenant_of("2001:db8::1") == tenant_of("2001:db8::ffff:2") != tenant_of("2001:db8:0:1::1")
    assert tenant_of("fe80::1%eth0") == tenant_of("fe80::2")
    assert tenant_of("") == ""


def test_an_announced_length_takes_nothing(tmp_path: Path) -> None:
    """One connection with a Content-Length of the whole budget made everybody else's requests a 429."""
    with stage(tmp_path / "c", settings={"body_memory": 4}) as found, connect(found, "127.0.0.2") as slow:
        slow.sendall(
            f"POST {PROOFS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
            f"Content-Length: {2 << 20}\r\n\r\n".encode()
        )
        slow.sendall(bytes(1000))
        until(lambda: found.service.budget.used == 1000)
        for source in ("127.0.0.1", "127.0.0.2"):
            body = bytes(1 << 20)
            assert ask(found, "POST", PROOFS, body, source, Content_Type=WITNESS["Content-Type"])[0] in OK
        # Nor does one that has sent a lot: the others have their part of the rest.
        slow.sendall(bytes((2 << 20) - 2000))
        until(lambda: found.service.budget.used > 1 << 20)
        assert ask(found, "POST", PROOFS, SUCCEED, Content_Type=WITNESS["Content-Type"])[0] in OK
    with pytest.raises(Problem) as caught:
        Budget(100, 0.5).reserve().grow(51)
    assert caught.value.status == 413, "there will never be room for it"


def test_one_tenant_leaves_places_in_the_queue(tmp_path: Path) -> None:
    executor = Executor()
    executor.prompt = False  # what waits for its key is in the queue
    with stage(tmp_path / "c", executor=executor, threads=1, queue_limit=8) as found:
        statuses = {
            source: [
                ask(found, "POST", PROOFS, SLOW, source, Content_Type=WITNESS["Content-Type"])[0]
                for _ in range(9)
            ]
            for source in ("127.0.0.1", "127.0.0.2", "127.0.0.3")
        }
        assert [one.count(202) for one in statuses.values()] == [4, 2, 1]
        assert {status for one in statuses.values() for status in one} == {202, 429}
        executor.answer_load()

        def ended() -> bool:
            executor.end_all()
            return not found.service.results.open

        until(ended)


def test_tenants_take_turns_with_threads() -> None:
    order: list[str] = []
    go_on = threading.Event()

    async def come_to(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < end
            await asyncio.sleep(0.005)

    def work(name: str) -> str:
        order.append(name)
        assert go_on.wait(SECONDS)
        return name

    async def main() -> None:
        threads = TenantThreads(3, 2, "test")
        greedy = [asyncio.create_task(threads.call("a", work, f"a{i}")) for i in range(6)]
        await come_to(lambda: len(order) >= 2)
        await asyncio.sleep(0.05)
        assert order == ["a0", "a1"], "one thread is left to the others"
        other = asyncio.create_task(threads.call("b", work, "b0"))
        await come_to(lambda: len(order) >= 3)
        assert order[2] == "b0"
        late = asyncio.create_task(threads.call("c", work, "c0"))
        gone = asyncio.create_task(threads.call("c", work, "c1"))
        await asyncio.sleep(0)
        gone.cancel()
        greedy[1].cancel()  # its thread works on
        await asyncio.sleep(0.05)
        assert threads.running == 3
        go_on.set()
        assert await asyncio.gather(*greedy, other, late, return_exceptions=True)
        assert order.index("c0") < order.index("a3")
        assert "c1" not in order
        with pytest.raises(ZeroDivisionError):
            await threads.call("a", lambda: 1 // 0)
        await come_to(lambda: not threads.running)
        assert (threads._free, bool(threads._line)) == (3, False)
        threads.shutdown()

    asyncio.run(main())


def test_status_answers_while_one_client_has_all_threads_that_it_may(
    shared: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    parse = models.parse

    def blocked(*args: Any) -> Any:
        assert go_on.wait(SECONDS)
        return parse(*args)

    monkeypatch.setattr("gpuprover.service.routes.parse", blocked)
    body = b'{"circuit_id":"checked","public_signals":[],"proof":{}}'
    answers: list[int] = []

    def verify(source: str) -> None:
        answers.append(ask(shared, "POST", "/v1/verify", body, source, Content_Type="application/json")[0])

    threads = [threading.Thread(target=verify, args=(source,)) for source in ["127.0.0.2"] * 6]
    for thread in threads:
        thread.start()
    until(lambda: shared.service.busy_reading)
    assert ask(shared, "GET", "/v1/status")[0] == 200
    assert (
        ask(shared, "POST", PROOFS, SUCCEED, Content_Type=WITNESS["Content-Type"], Prefer="wait=20")[0] == 200
    )
    # Another client's JSON has a thread, too.
    monkeypatch.setattr("gpuprover.service.routes.parse", parse)
    assert ask(shared, "POST", "/v1/verify", body, Content_Type="application/json")[0] == 400
    assert answers == []
    go_on.set()
    for thread in threads:
        thread.join(SECONDS)
    assert answers == [400] * 6


# Priorities --------------------------------------------------------------------------------------


def test_priorities_are_bounded_by_setting_and_token(shared: Stage, tmp_path: Path) -> None:
    def check(found: Stage, most: int, token: str = "") -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        for priority, status in ((-1000, OK), (most, OK), (most + 1, [403]), (1000, [403])):
            answer = found.post(headers=headers, params={"priority": priority})
            assert answer.status_code in status, (token, priority)
        assert answer.json()["kind"] == "PriorityTooHigh"

    check(shared, 0)
    ordinary, urgent = "an-ordinary-token", "a-token-of-somebody"
    (tmp_path / "tokens").write_text(f"{ordinary}\n{urgent}  priority=70\n")
    settings = {"tokens_file": tmp_path / "tokens", "priority_limit": 5}
    with stage(tmp_path / "c", settings=settings) as found:
        check(found, 5, ordinary)
        check(found, 70, urgent)


# Requests ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Host", "Origin"])
@pytest.mark.parametrize(
    "value",
    [
        *(
            "[::1",
            "http://[",
            "::1]",
            "[",
            "]",
            "[]",
            "[]:1",
            "a@localhost",
            "localhost:x",
            "http://[::1",
            "é",
        ),
        *("localhost/../x", "localhost#", "http://localhost:99999999999", "null", "//", "[fe80::1%25eth0]"),
    ],
)
def test_sites_that_are_none_are_refused(name: str, value: str) -> None:
    headers = [(b"host", b"localhost"), (b"origin", b"http://localhost")]
    headers = [(k, value.encode("latin-1") if k == name.lower().encode() else v) for k, v in headers]
    with pytest.raises(Problem) as caught:
        check_site(headers, local=True)
    assert caught.value.status == 403
    with pytest.raises(Problem):
        check_site([(b"origin", b"null")], local=False)


def test_no_header_is_a_fault_of_the_service(shared: Stage, rng: random.Random) -> None:
    names = [
        *(
            "Host",
            "Origin",
            "Prefer",
            "Idempotency-Key",
            "Content-Type",
            "Content-Length",
            "Content-Encoding",
        ),
        *("Authorization", "Cookie", "Traceparent", "X-Request-Id", "Accept", "Expect", "Upgrade", "Range"),
        *("Connection", "Transfer-Encoding", "If-None-Match", "Forwarded", "TE", "Referer"),
    ]
    pieces = [
        *("[", "::1", "]", "http://", "wait=", "9" * 30, "chunked", ";", ",", "=", '"', "\\", "%", "a" * 300),
        *("Bearer ", "Basic ", "\xff", "\xe9", "-1", "1e9", "0x1", "é", " ", "\t", "close", "websocket"),
        *("100-continue", "00-" + "a" * 32 + "-" + "b" * 16 + "-01", "q=", "*", "identity", "/"),
    ]
    for _ in range(150):
        name = rng.choice(names)
        value = "".join(rng.choice(pieces) for _ in range(rng.randrange(4))).strip()
        line = f"{name}: {value}\r\n"
        host = "" if name == "Host" else "Host: localhost\r\n"
        method, path = rng.choice([("GET", "/v1/status"), ("POST", "/v1/verify"), ("POST", PROOFS)])
        head = f"{method} {path} HTTP/1.1\r\n{host}{line}Connection: close\r\n\r\n"
        with connect(shared) as connection:
            connection.sendall(head.encode("latin-1"))
            connection.shutdown(socket.SHUT_WR)
            got = connection.recv(1 << 16)
        if got:  # it goes away without one where a body is announced that does not come
            assert got.split()[1][:1] in (b"1", b"2", b"4"), (head, got[:300])


@pytest.mark.parametrize(
    "head",
    [
        b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\n\r\n",
        b"POST %s HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + b"a: b\r\n" * 200 + b"\r\n",
    ],
)
def test_requests_whose_end_is_in_doubt_end_the_connection(shared: Stage, head: bytes) -> None:
    head = head.replace(b"%s", PROOFS.encode())
    got = raw(shared, head + b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert got.startswith(b"HTTP/1.1 4")
    assert got.count(b"HTTP/1.1 ") == 1, "what stood behind it is not a request"


def test_a_long_query_is_refused(shared: Stage) -> None:
    status, _ = ask(shared, "GET", "/v1/status?" + "&a" * 7000)
    assert status == 414
    with suppress(ConnectionError):
        assert ask(shared, "GET", "/v1/status?" + "&a" * 70_000)[0] in (400, 414)


@pytest.mark.parametrize("digits", ["601", "9" * 11, "9" * 5000, "0" * 5000 + "601"])
def test_a_wait_beyond_the_longest_is_the_longest(shared: Stage, digits: str) -> None:
    answer = shared.post(headers={"Prefer": f"wait={digits}"})
    assert (answer.status_code, answer.headers["preference-applied"]) == (200, "wait=600")


def test_a_preference_that_is_none_is_found_out_in_linear_time(shared: Stage) -> None:
    begun = time.thread_time()
    for preference in ("wait=" + "0" * 30_000 + ".", "wait" + " " * 30_000, "wait=" * 6000, ",wait " * 5000):
        assert routes._seconds(preference) is None
    assert time.thread_time() - begun < 0.5
    assert [routes._seconds(one) for one in ('wait="7"', "a; WAIT = 00", "wait=1.5", "x")] == [
        7,
        0,
        None,
        None,
    ]


# Connections -------------------------------------------------------------------------------------


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections are looked at often."""
    monkeypatch.setattr(connections, "SWEEP_SECONDS", 0.05)


@pytest.mark.usefixtures("brisk")
def test_connections_without_a_request_end(tmp_path: Path) -> None:
    settings = {"head_timeout": 0.2, "keep_alive": 0.3}
    with stage(tmp_path / "c", settings=settings) as found:
        answered = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        for first in (
            b"",
            b"GET /healthz HT",
            answered,
            answered + b"GET /",
            b"POST /healthz HTTP/1.1\r\nHost: a\r\n",
        ):
            with connect(found) as connection:
                connection.sendall(first)
                got = b""
                while piece := connection.recv(1000):
                    got += piece
            assert (b"200 OK" in got) == first.startswith(answered)
        # One byte now and then does not keep it.
        with connect(found) as connection, pytest.raises(OSError):
            for byte in answered:
                connection.sendall(bytes([byte]))
                time.sleep(0.05)
        # Nor a body that nobody wants.
        with connect(found) as connection:
            connection.sendall(
                f"POST {PROOFS}x HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n".encode()
            )
            end = time.monotonic() + SECONDS
            with pytest.raises(OSError):
                while time.monotonic() < end:
                    connection.sendall(b"x")
                    time.sleep(0.02)
        # A proof that takes longer than that is waited for.
        threading.Timer(0.5, found.executor.end_all).start()
        assert (
            ask(found, "POST", PROOFS, SLOW, Content_Type=WITNESS["Content-Type"], Prefer="wait=20")[0] == 200
        )


@pytest.mark.usefixtures("brisk")
def test_an_answer_that_is_not_read_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with stage(tmp_path / "c", settings={"pause_limit": 0.4}) as found:
        where = found.post(LARGE, wait=SECONDS).headers["location"]
        idle = []
        for _ in range(4):
            raw_socket = socket.socket()
            raw_socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw_socket.connect(address(found))
            raw_socket.sendall(f"GET {where} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            idle.append(raw_socket)
        server = found.connections()
        until(lambda: len(server) >= 4)
        held = max(one._raw.get_write_buffer_size() for own in server._of.values() for one in own)
        assert held < 512 << 10, "8 MB are handed over piece by piece"
        until(lambda: len(server) <= 1)
        for one in idle:
            one.close()
        assert found.get(where).json()["public_signals"] == ["7" * 77] * 100_000


@pytest.mark.usefixtures("brisk")
def test_the_tenant_with_the_most_connections_makes_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with stage(tmp_path / "c", settings={"connection_limit": 20}) as found:
        mine = connect(found, "127.0.0.5")
        greedy = [connect(found, "127.0.0.2") for _ in range(60)]
        until(lambda: len(found.connections()) <= 20)
        for _ in range(3):
            mine.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            got = b""
            while not got.endswith(b"}"):
                got += mine.recv(1000)
            assert b"200 OK" in got
        for source in ("127.0.0.1", "127.0.0.3"):
            assert ask(found, "GET", "/healthz", source=source)[0] == 200
        # Those that wait for an answer, too, if somebody else has few.
        for one in [*greedy, mine]:
            one.close()
        until(lambda: not found.connections())
        where = json.loads(ask(found, "POST", PROOFS, SLOW, Content_Type=WITNESS["Content-Type"])[1])["id"]
        until(lambda: not found.connections())
        waiting = []
        for i in range(20):
            waiting.append(connect(found, "127.0.0.2"))
            request = f"GET /v1/proofs/{where} HTTP/1.1\r\nHost: localhost\r\nPrefer: wait=60\r\n\r\n"
            waiting[-1].sendall(request.encode())
            until(lambda: sum(not one.idle for one in found.connections()._of.get("127.0.0.2", ())) > i)  # noqa: B023
        for _ in range(3):
            assert ask(found, "GET", "/healthz")[0] == 200
        for one in waiting:
            one.close()
        found.executor.end_all()
    assert "made room for another one" in caplog.text


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EPROTO, errno.EPERM, errno.ENETDOWN])
def test_what_the_system_refuses_to_accept_is_outlived(caplog: pytest.LogCaptureFixture, number: int) -> None:
    """asyncio's own loop wrote 100,000 lines in six seconds for want of descriptors."""
    tries = 0

    class Listener:
        def accept(self) -> Any:
            nonlocal tries
            tries += 1
            raise OSError(number, os.strerror(number))

        def gettimeout(self) -> float:
            return 0.0

        def fileno(self) -> int:
            return -1

    async def main() -> None:
        all_of_them = connections.Connections(10, 1.0, Pace(1.0, 1), 100)
        accepting = asyncio.create_task(all_of_them.accept(Listener(), asyncio.Protocol))  # type: ignore[arg-type]
        await asyncio.sleep(3.2 * connections.RETRY_SECONDS)
        assert not accepting.done()
        accepting.cancel()

    asyncio.run(main())
    assert 1 <= tries <= 4
    assert caplog.text.count(os.strerror(number)) == tries


def test_no_fault_ends_the_loops_over_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A service that accepts no more, or forgets its limits, would be deaf or full for good."""
    with stage(tmp_path / "c") as found:
        assert ask(found, "GET", "/healthz")[0] == 200
        monkeypatch.setattr(connections, "SWEEP_SECONDS", 0.05)
        monkeypatch.setattr(connections.Connections, "_look_at_room", lambda self: 1 // 0)
        monkeypatch.setattr(connections.Connections, "_admit", lambda self, *_: 1 // 0)
        with pytest.raises((OSError, http.client.HTTPException)):
            ask(found, "GET", "/healthz")
        until(lambda: caplog.text.count("ZeroDivisionError in gpuprover.service.connections") >= 2)
        monkeypatch.undo()
        assert ask(found, "GET", "/healthz")[0] == 200


def test_descriptors_are_left_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for soft, expected in ((64, 48), (1024, 896), (65536, 65280), (resource.RLIM_INFINITY, 1 << 30)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        assert connections.descriptors() == expected


def test_names_that_are_none_do_not_have_the_folder_read_each_time(
    shared: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = 0
    read = shared.prover.circuits

    def reading() -> list[str]:
        nonlocal readings
        readings += 1
        time.sleep(0.3)  # as of thousands of circuits
        return read()

    monkeypatch.setattr(shared.prover, "circuits", reading)
    monkeypatch.setattr(shared.service, "_names_at", -1e9)
    begun = time.monotonic()

    def ask(_: int) -> int:
        return shared.get("/v1/circuits/mint").status_code

    with ThreadPoolExecutor(32) as clients:
        asking = clients.map(ask, range(100))
        assert shared.post().status_code in OK, "what is there waits for no list"
        assert shared.get("/v1/status").status_code == 200
        assert set(asking) == {404}
    assert readings <= 2 + (time.monotonic() - begun)


def test_a_circuit_that_comes_is_found_at_once(shared: Stage) -> None:
    folder = Path(shared.prover.settings.circuit_keys_path)
    assert shared.get("/v1/circuits/late").status_code == 404
    (folder / "late.vkey.json").write_bytes((folder / "chain.vkey.json").read_bytes())
    try:
        assert shared.get("/v1/circuits/late").status_code == 200
    finally:
        (folder / "late.vkey.json").unlink()


def test_idle_connections_do_not_creep_into_the_descriptors_of_others() -> None:
    """The one that is dropped leaves a low number to whoever comes next, which says nothing of room."""
    used = set(range(10))
    all_of_them = connections.Connections(100, 1.0, Pace(1.0, 1), 20)

    class Newcomer:
        idle, receiving, tenant = True, False, "127.0.0.1"

        def __init__(self) -> None:
            self.descriptor = min(set(range(1000)) - used)
            used.add(self.descriptor)

        def fileno(self) -> int:
            return self.descriptor

        def close(self) -> None:
            used.discard(self.descriptor)

        def drop(self) -> None:
            self.close()
            all_of_them.discard(self)  # type: ignore[arg-type]

    def come(count: int) -> None:
        for _ in range(count):
            one = Newcomer()
            if all_of_them._admit(one, one.tenant):  # type: ignore[arg-type]
                all_of_them.add(one)  # type: ignore[arg-type]

    for _ in range(5):
        come(200)
        assert len(all_of_them) == 10
        assert len(used) == 20
        all_of_them._look_at_room()
    for found in list(all_of_them._of["127.0.0.1"])[:5]:
        found.drop()
    used -= set(range(5))  # others need fewer
    all_of_them._look_at_room()
    come(200)
    assert len(all_of_them) == 15


def test_a_circuit_is_there_though_its_folder_cannot_be_read(
    shared: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*args: Any, **options: Any) -> Any:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("gpuprover.engine.directory.os.listdir", exhausted)
    with pytest.raises(DeviceError, match="Too many open files"):
        shared.prover.circuits()
    assert shared.post().status_code in OK, "its name is known"
    monkeypatch.setattr(shared.service, "_names", frozenset())
    monkeypatch.setattr(shared.service, "_names_at", -1e9)
    assert shared.post().status_code in OK, "its files are there"
    answer = shared.post(circuit="mint")
    assert (answer.status_code, answer.json()["kind"]) == (503, "DeviceError")
    monkeypatch.setattr(shared.prover, "get_status", exhausted)
    time.sleep(0.25)
    assert shared.get("/v1/status").status_code == 503
    assert not isinstance(answer, CircuitNotFound)


# The loop ----------------------------------------------------------------------------------------


def test_requests_begin_a_few_at_a_time_and_tenants_take_turns() -> None:
    async def main() -> None:
        turns, begun, passes = Turns(), list[str](), 0

        async def request(tenant: str) -> None:
            await turns.take(tenant)
            begun.append(tenant)

        greedy = [asyncio.create_task(request("greedy")) for _ in range(100)]
        gone = asyncio.create_task(request("gone"))
        await asyncio.sleep(0)
        gone.cancel()
        modest = asyncio.create_task(request("modest"))
        while not modest.done():
            before = len(begun)
            await asyncio.sleep(0)
            passes += 1
            assert len(begun) - before <= AT_ONCE
        assert len(begun) <= 4 * AT_ONCE
        await asyncio.gather(*greedy)
        assert begun.count("greedy") == 100
        assert "gone" not in begun
        assert not turns._line

    asyncio.run(main())


def test_hundreds_of_requests_of_one_client_are_not_all_answered_before_one_of_another(shared: Stage) -> None:
    greedy = [connect(shared, "127.0.0.2") for _ in range(100)]
    try:
        for one in greedy:
            one.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50)
        assert ask(shared, "GET", "/healthz", source="127.0.0.3")[0] == 200
        answered = 0
        for one in greedy:
            one.setblocking(False)
            with suppress(BlockingIOError):
                answered += one.recv(1 << 20).count(b"HTTP/1.1 200")
        assert answered < 1500, "of 5000"
    finally:
        for one in greedy:
            one.close()


# The log -----------------------------------------------------------------------------------------


def test_lines_that_repeat_themselves_are_counted() -> None:
    stream, now = io.StringIO(), 0.0
    handler = logs._Handler(stream)
    handler._repetition = logs.Repetition(lambda: now)
    handler.setFormatter(logs._Json())
    logger = logging.getLogger("gpuprover.repetition")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)

    def lines() -> list[str]:
        found = [json.loads(line)["message"] for line in stream.getvalue().splitlines()]
        stream.seek(0)
        stream.truncate()
        return found

    try:
        for _ in range(1000):
            logger.error("no descriptor: %s", "EMFILE")
        assert lines() == ["no descriptor: EMFILE"]
        logger.error("no descriptor: %s", "ENFILE")
        assert lines() == ["no descriptor: ENFILE"], "other words are other news"
        for i in range(1000):
            logger.error("request %d fails", i)
        assert len(lines()) == logs.A_MINUTE
        for _ in range(1000):
            logger.info("done")
        assert len(lines()) == 1000, "what is no warning is not counted"
        now = logs.MINUTE
        logger.error("no descriptor: %s", "EMFILE")
        assert lines() == ["no descriptor: EMFILE (and 999 more like it before)"]
        logger.error("request %d fails", 5000)
        assert lines() == ["request 5000 fails (and 980 more like it before)"]
        for i in range(2000):
            logger.error(f"form {i}")
        assert len(handler._repetition._forms) <= logs.MAX_FORMS
        assert len(handler._repetition._words) <= logs.MAX_FORMS
        for error in (ValueError(), KeyError()):
            try:
                raise error
            except Exception:
                logger.exception("it fails")
        assert len(lines()[-2:]) == 2
    finally:
        logger.removeHandler(handler)
