"""Attacks over HTTP on a real ``gpuprover serve``: bodies, headers, slowness, floods, exhaustion."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.hostile import Target, filled, hostile_bodies, in_threads, target
from tests.support.service_stage import CHAIN, circuits

pytestmark = pytest.mark.slow

MIB = 1 << 20
LONGEST_STALL = 0.1
"""Seconds of the service's own time in which the event loop does nothing else. On a busy machine, where a
probe may have its answer late, the shortest of three attempts counts: what holds the loop does so each time.
"""
ATTEMPTS = 3
LONGEST_TURN = 0.3
"""The same for several connections that are served in turns, and in the mean."""
GREEDY, VICTIM = "127.0.0.2", "127.0.0.3"
WITNESS = Path(f"{CHAIN}.wtns").read_bytes()
PROOFS = "/v1/circuits/chain/proofs"
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return circuits(tmp_path_factory.mktemp("keys") / "c")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("service")
    settings = {"memory_limit": 4096, "threads": 1, "rapidsnark": "on", "preload_circuits": "chain"}
    with target(folder, keys, **settings) as found:
        yield found
        assert not [line for line in found.lines() if "bug in gpuprover" in line]


def prove(found: Target, source: str = VICTIM, wait: int = 60) -> int:
    headers = {"Content-Type": "application/octet-stream", "Prefer": f"wait={wait}"}
    return found.request("POST", PROOFS, WITNESS, headers, source, timeout=90)[0]


def verify(found: Target, source: str = VICTIM) -> bytes:
    asked = {
        "circuit_id": "chain",
        "public_signals": json.loads(Path(f"{CHAIN}.public.json").read_text()),
        "proof": json.loads(Path(f"{CHAIN}.proof.json").read_text()),
    }
    return found.request("POST", "/v1/verify", json.dumps(asked).encode(), JSON, source)[1]


def fetchable(found: Target) -> None:
    """It is as it was before."""
    assert prove(found) == 200
    assert verify(found) == b'{"valid":true}'
    # Chunks of one byte cost 3 s of CPU time a megabyte: what clients have left there is still read.
    end = time.monotonic() + 150
    while json.loads(found.request("GET", "/v1/status")[1])["body_bytes"]:
        assert time.monotonic() < end
        time.sleep(0.1)


# Bodies ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "all_routes"), [(MIB // 4, True), (MIB, True), (31 * MIB, False)])
def test_no_body_costs_much_more_than_it_is_long(
    service: Target, seed: str, size: int, all_routes: bool
) -> None:
    rng = random.Random(seed)
    bodies: dict[str, list[tuple[str, bytes]]] = {}
    for name, route, body in hostile_bodies(size, rng.randrange(1 << 30)):
        if all_routes or not bodies.get(name) or rng.random() < 0.25:
            bodies.setdefault(name, [])[:] = (bodies.get(name, []) if all_routes else []) + [(route, body)]
    for name, found in bodies.items():
        for route, body in found:
            longest = []
            while len(longest) < ATTEMPTS and min(longest, default=1.0) >= LONGEST_STALL:
                service.request("POST", "/cancel")
                service.reset()
                before, begun = service.memory(), service.cpu()
                with service.probed() as stalls:
                    status, answer = service.request("POST", route, body, JSON, GREEDY, timeout=120)
                took, peak = service.cpu() - begun, service.memory("VmHWM") - before
                longest.append(max(stalls))
            what = (name, route, len(body), status, answer[-200:])
            # The circuit's program is none, which a proof that ends at once says.
            assert status in (202, 400, 409, 413) or b'"role": "witness program"' in answer, what
            assert min(longest) < LONGEST_STALL, what
            assert took < 1 + 3 * len(body) / MIB, what
            assert peak < min(16 * MIB + 45 * len(body), 160 * MIB + 2 * len(body)), what
    fetchable(service)


def test_heavy_json_of_one_client_leaves_threads_to_the_others(service: Target) -> None:
    heavy = filled(b'{"inputs":{"a":[', b'"' + b"7" * 76 + b'",', b"0]}}", 4 * MIB)
    statuses: Counter[int] = Counter()
    stop = threading.Event()

    def attack(_: int) -> None:
        while not stop.is_set():
            statuses[service.request("POST", PROOFS, heavy, JSON, GREEDY, timeout=120)[0]] += 1

    threads = in_threads(8, attack)
    time.sleep(1)
    slowest = 0.0
    for _ in range(8):
        begun = time.perf_counter()
        assert service.request("GET", "/v1/status", source=VICTIM)[0] == 200
        slowest = max(slowest, time.perf_counter() - begun)
        assert prove(service) == 200
        assert verify(service) == b'{"valid":true}'
    stop.set()
    for thread in threads:
        thread.join(120)
    assert statuses.keys() <= {202, 400, 429}
    assert slowest < 10, "it had to wait for a thread"
    fetchable(service)


def test_slow_bodies_lock_nobody_out(service: Target) -> None:
    limit = 512 * MIB
    held = []
    for _ in range(20):
        connection = service.connect(GREEDY)
        connection.sendall(
            f"POST {PROOFS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
            f"Content-Length: {limit}\r\n\r\n".encode()
        )
        held.append(connection)
    end = time.monotonic() + 10
    tried = 0
    while time.monotonic() < end:
        for connection in held:
            with suppress(OSError):
                connection.sendall(bytes(2000))
        assert prove(service) == 200
        assert verify(service) == b'{"valid":true}'
        tried += 1
    assert tried >= 3
    for connection in held:
        connection.close()
    fetchable(service)


# Heads -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + b"a:\r\n" * 100_000 + b"\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nCookie: " + b"a=b; " * 3000 + b"\r\n\r\n",
        b"GET /healthz?" + b"a&" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /v1/status?" + b"priority=1&" * 700 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /" + b"%61" * 5000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /" + b"a/" * 7000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20_000,
        b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\nPrefer: wait " + b" " * 12_000 + b"\r\n\r\n",
        f"POST {PROOFS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
        "Transfer-Encoding: chunked\r\n\r\n".encode()
        + b"1\r\nx\r\n" * 300_000
        + b"0\r\n\r\n",
        b"\r\n" * 200_000,
        bytes(300_000),
        b"GET / HTTP/1.1\r\n" * 20_000,
    ],
    ids=lambda data: data[:60].decode("latin-1").split("\r\n")[0],
)
def test_no_head_stops_the_loop(service: Target, data: bytes) -> None:
    stop = threading.Event()

    def attack(_: int) -> None:
        while not stop.is_set():
            with suppress(OSError), service.connect(GREEDY, timeout=1) as connection:
                connection.sendall(data)
                while connection.recv(1 << 16) and not stop.is_set():
                    pass

    longest: list[float] = []
    while len(longest) < ATTEMPTS and min(longest, default=10.0) >= 4 * LONGEST_TURN:
        stop.clear()
        with service.probed() as stalls:
            threads = in_threads(4, attack)
            time.sleep(4)
            stop.set()
            for thread in threads:
                thread.join(30)
        longest.append(max(stalls))
    # Four connections are served in turns, so that a probe may come after each of them.
    assert min(longest) < 4 * LONGEST_TURN
    assert sorted(stalls)[len(stalls) // 2] < LONGEST_TURN
    fetchable(service)


def test_mangled_requests_are_never_a_fault_of_the_service(service: Target, rng: random.Random) -> None:
    whole = [
        b"GET /v1/status?a=1&b=%20 HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\n\r\n",
        f"POST {PROOFS}?priority=0&timeout=5 HTTP/1.1\r\nHost: [::1]:80\r\nContent-Length: 4\r\n"
        "Content-Type: application/octet-stream\r\nIdempotency-Key: k\r\n\r\nwtns".encode(),
        b"POST /v1/verify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b'Content-Length: 56\r\n\r\n{"circuit_id":"chain","public_signals":["1"],"proof":{}}',
        b"DELETE /v1/proofs/0123 HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"1\r\na\r\n0\r\n\r\n",
    ]
    statuses: Counter[bytes] = Counter()
    for _ in range(1500):
        data = bytearray(rng.choice(whole))
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(len(data))
            kind = rng.randrange(4)
            if kind == 0:
                data[at] = rng.randrange(256)
            elif kind == 1:
                del data[at : at + rng.randrange(1, 9)]
            elif kind == 2:
                data[at:at] = rng.choice(
                    [b"\r\n", b"[", b"]", b"%", b"\0", b"://", b"9" * 20, b"\xff", b": "]
                )
            else:
                data[at:at] = data[at : at + 30]
        with suppress(OSError), service.connect(timeout=5) as connection:
            connection.sendall(bytes(data))
            connection.shutdown(socket.SHUT_WR)
            got = connection.recv(1 << 16)
            if got:
                statuses[got.split()[1]] += 1
                assert not got.split()[1].startswith(b"5"), (bytes(data), got)
    assert len(statuses) > 4
    fetchable(service)


# Connections -------------------------------------------------------------------------------------


def test_open_heads_end(tmp_path: Path, keys: Path) -> None:
    with target(tmp_path, keys, head_timeout=3, connection_limit=2000) as found:
        fetchable(found)
        before = found.memory()
        held = []
        for _ in range(1500):
            connection = found.connect(GREEDY)
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: local")
            held.append(connection)
        assert prove(found) == 200
        assert found.memory() - before < 64 * MIB
        for connection in held:
            connection.settimeout(20)
            with suppress(ConnectionResetError):
                assert connection.recv(1000) == b""
        assert prove(found) == 200


def test_without_descriptors_others_are_served_and_the_log_is_short(tmp_path: Path, keys: Path) -> None:
    with target(tmp_path, keys, files=96, threads=1, preload_circuits="chain") as found:
        fetchable(found)
        stop = threading.Event()
        held: list[socket.socket] = []

        def flood(_: int) -> None:
            while not stop.is_set():
                with suppress(OSError):
                    held.append(found.connect(GREEDY, timeout=2))
                if len(held) > 600:
                    held.pop(0).close()
                time.sleep(0.002)

        threads = in_threads(2, flood)
        time.sleep(2)
        begun, cpu = time.monotonic(), found.cpu()
        for _ in range(3):
            assert prove(found) == 200
            assert verify(found) == b'{"valid":true}'
        # What dies meanwhile is made again.
        for pid in found.children():
            os.kill(pid, signal.SIGKILL)
        end = time.monotonic() + 60
        proved = 0
        while proved < 3:
            assert time.monotonic() < end, found.lines()[-5:]
            with suppress(OSError, http.client.HTTPException):
                proved += prove(found) == 200
        assert verify(found) == b'{"valid":true}'
        share = (found.cpu() - cpu) / (time.monotonic() - begun)
        stop.set()
        for thread in threads:
            thread.join(10)
        for connection in held:
            connection.close()
        assert share < 0.9
        warnings = [line for line in found.lines() if '"level": "INFO"' not in line]
        assert len(warnings) < 120, warnings[-10:]
        assert not [line for line in warnings if "bug in gpuprover" in line]
        assert prove(found) == 200
