"""A real service, and clients that mean it no good."""

from __future__ import annotations

import http.client
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PATIENCE = 120.0
"""Seconds for a start, in which a worker may compile."""


class Target:
    """``gpuprover serve`` as a process.

    Attributes:
        log: its standard error.
    """

    def __init__(self, process: subprocess.Popen[str], port: int, log: Path) -> None:
        self.process, self.port, self.log = process, port, log

    @property
    def pid(self) -> int:
        return self.process.pid

    def connect(self, source: str = "127.0.0.1", timeout: float = 30.0) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout, source_address=(source, 0))

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        source: str = "127.0.0.1",
        timeout: float = 60.0,
    ) -> tuple[int, bytes]:
        """Status and body of the answer, on a connection of its own."""
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.port, timeout=timeout, source_address=(source, 0)
        )
        try:
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def raw(self, data: bytes, timeout: float = 10.0) -> bytes:
        """What comes back until the service closes the connection, or is silent for so long."""
        with self.connect(timeout=timeout) as connection:
            with suppress(OSError):
                connection.sendall(data)
            found = b""
            with suppress(OSError):
                while piece := connection.recv(1 << 16):
                    found += piece
            return found

    def memory(self, name: str = "VmRSS") -> int:
        """Bytes that the front process holds; ``VmHWM``: at most since :meth:`reset`."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) << 10
        raise AssertionError(name)

    def reset(self) -> None:
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def children(self) -> list[int]:
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()

    def cpu(self) -> float:
        """Seconds that the front process has run for, all its threads together."""
        total = 0
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            with suppress(OSError):  # it has ended
                total += int((task / "schedstat").read_text().split()[0])
        return total / 1e9

    @contextmanager
    def probed(self, path: str = "/healthz", source: str = "127.0.0.9") -> Iterator[list[float]]:
        """Asks all the time, over one connection -> for each answer, the seconds that the service ran for
        meanwhile. On a machine of its own the answer takes no longer; on ours others run, too."""
        took: list[float] = []
        stop = threading.Event()

        def probe() -> None:
            connection = http.client.HTTPConnection(
                "127.0.0.1", self.port, timeout=60, source_address=(source, 0)
            )
            while not stop.is_set():
                begun = self.cpu()
                connection.request("GET", path)
                answer = connection.getresponse()
                answer.read()
                assert answer.status == 200
                took.append(self.cpu() - begun)
                time.sleep(0.01)
            connection.close()

        thread = threading.Thread(target=probe)
        thread.start()
        try:
            yield took
        finally:
            stop.set()
            thread.join()


@contextmanager
def target(
    folder: Path, keys: Path, *options: str, files: int | None = None, ready: bool = True, **settings: Any
) -> Iterator[Target]:
    """A service of its own; ``files``: how many it may have open."""

    def limit() -> None:
        if files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    log = folder / "log"
    variables = {k: v for k, v in os.environ.items() if not k.startswith("PROVER_")}
    with log.open("w") as errors:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "gpuprover", "serve", "--json", "--port", "0"),
                *("--circuit-keys-path", str(keys), *arguments, *options),
            ],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=variables | {"PROVER_LOG": "json"},
            preexec_fn=limit,
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, log.read_text()
        found = Target(process, int(json.loads(line)["url"].rsplit(":", 1)[1]), log)
        end = time.monotonic() + PATIENCE
        while ready and found.request("GET", "/readyz")[0] != 200:
            assert time.monotonic() < end
            time.sleep(0.1)
        yield found
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(40)
        finally:
            process.kill()
            process.communicate()


def filled(head: bytes, unit: bytes, tail: bytes, size: int) -> bytes:
    """Of about ``size`` bytes."""
    return head + unit * max(1, (size - len(head) - len(tail)) // len(unit)) + tail


def hostile_bodies(size: int, seed: int) -> Iterator[tuple[str, str, bytes]]:
    """Bodies of JSON that cost more than they should -> family, route, body."""
    rng = random.Random(seed)
    units = {
        "empty lists": b"[],",
        "empty objects": b"{},",
        "small objects": b'{"a":{}},',
        "floats": b"1.5,",
        "integers": b"1000,",
        "digits": b"7,",
        "texts": b'"ab",',
        "wide texts": '"Ā",'.encode(),
        "elements": b'"' + b"7" * 76 + b'",',
        "nulls": b"null,",
        "nested": b"[[[[[[[[]]]]]]]],",
    }
    routes: dict[str, tuple[bytes, bytes]] = {
        "/v1/circuits/chain/proofs": (b'{"inputs":{"a":[', b"0]}}"),
        "/v1/verify": (b'{"circuit_id":"chain","public_signals":[', b'1],"proof":{}}'),
        "/v1/verify/batch": (b'{"circuit_id":"chain","proofs":[', b"0]}"),
        "/input/chain": (b'{"a":[', b"0]}"),
    }
    for name, unit in units.items():
        for route, (head, tail) in routes.items():
            yield name, route, filled(head, unit, tail, size)
    names = b",".join(b'"%x":0' % i for i in range(size // 9))
    for route, (head, tail) in {
        "/v1/circuits/chain/proofs": (b'{"inputs":{', b"}}"),
        "/v1/verify": (b'{"circuit_id":"chain","public_signals":[],"proof":{', b"}}"),
        "/v1/verify/batch": (b'{"circuit_id":"chain","proofs":[],', b"}"),
        "/input/chain": (b"{", b"}"),
    }.items():
        yield "names", route, head + names + tail
        yield "a name twice", route, head + names + b',"0":1' + tail
    for route in routes:
        yield "one text", route, b'"' + b"a" * (size - 2) + b'"'
        yield "one number", route, b"7" * size
        yield "backslashes", route, b'{"a":"' + b"\\\\" * (size // 2) + b'"}'
        yield "quotes", route, b'"' * size
        yield "open brackets", route, b"[" * size
        yield "spaces", route, b" " * size
        yield "newlines", route, b"\n" * size + b"x"
        yield "no JSON", route, rng.randbytes(size)
        yield "no UTF-8", route, b'{"a":"' + b"\xff" * size + b'"}'
        yield "zeros", route, bytes(size)


def in_threads(count: int, work: Callable[[int], None]) -> list[threading.Thread]:
    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(count)]
    for thread in threads:
        thread.start()
    return threads
