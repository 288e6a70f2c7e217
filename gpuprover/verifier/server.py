"""The verifier's server: many connections, a bounded queue, a few threads that verify.

One thread reads each connection, so that a slow client delays nobody; ``threads`` others verify. What is held
for clients is bounded: connections, requests that wait, unanswered requests of one connection, bytes of
messages that are read or wait, bytes of keys. Where the limit is on bytes or on one connection's requests,
its reader waits, and the client with it; the others are answered with QueueFull. A client that stops within
a message, or takes no answers, is dropped.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from gpuprover import memory
from gpuprover.errors import (
    CircuitNotFound,
    InvalidInput,
    MalformedFile,
    OutOfMemory,
    ProofGenerationFailed,
    ProverError,
    QueueFull,
    ShuttingDown,
    Timeout,
    to_record,
)
from gpuprover.messages import BrokenMessage, Channel, ConnectionLost
from gpuprover.verifier.address import Listener
from gpuprover.verifier.keys import LoadedKey

T = TypeVar("T")

PROTOCOL = 1
MAX_NAME = 200

SMALL_MESSAGE = 1 << 16
"""Bytes up to which a message is read at once: whatever waits, a question of a few lines is answered."""
TRIM_BYTES = 16 << 20
"""Of long messages after which, when nothing is to be done, the system gets back what malloc keeps."""
STALL_SECONDS = 15.0
"""A client that sends nothing for so long within a message, or takes nothing of an answer, is dropped."""


@dataclass(frozen=True)
class Limits:
    """What a verifier holds for its clients at most.

    Attributes:
        threads: verifications at once.
        connections: beyond, a client gets QueueFull and is disconnected.
        waiting: requests that wait; beyond, they are answered QueueFull.
        outstanding: unanswered requests of one connection; beyond, nothing more is read from it.
        buffered: bytes of messages that wait or are being read; a single one may be longer.
        keys: bytes of the messages that keys came in.
        grace: seconds that running and waiting requests get after SIGTERM.
    """

    threads: int = 1
    connections: int = 128
    waiting: int = 1024
    outstanding: int = 64
    buffered: int = 16 << 20
    keys: int = 128 << 20
    grace: float = 20.0


class _Budget:
    """Bytes of messages. One message is admitted at any size once nothing else is held."""

    def __init__(self, limit: int) -> None:
        self._limit, self._held = limit, 0
        self._changed, self._turn = threading.Condition(), threading.Lock()

    def take(self, size: int, stopped: threading.Event) -> None:
        """Waits for room, in the order of the callers. Raises ShuttingDown where there will be none."""
        with self._turn, self._changed:
            while self._held and self._held + size > self._limit:
                if stopped.is_set():
                    raise ShuttingDown("the verifier is shutting down")
                self._changed.wait(0.2)
            self._held += size

    def give(self, size: int) -> None:
        with self._changed:
            self._held -= size
            self._changed.notify_all()

    @property
    def held(self) -> int:
        return self._held


@dataclass(eq=False)
class _Connection:
    """A client, the names it gave to keys, and how much of it waits."""

    channel: Channel
    local: bool
    """On this machine under this user: it may end the server."""
    owner: bool
    """Who started the server: names that it gives are everybody's, and the server ends with it."""
    outstanding: threading.Semaphore
    names: dict[str, _Holding] = field(default_factory=dict)


@dataclass(frozen=True)
class _Holding:
    key: LoadedKey
    size: int


@dataclass(frozen=True)
class _Request:
    connection: _Connection
    number: object
    work: Callable[[], dict[str, Any]]
    held: int


class Server:
    """A verifier's server. :meth:`run` serves until SIGTERM, ``shutdown``, or the end of its owner."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._budget = _Budget(limits.buffered)
        # One proof, or a key; and batches, which take long. A thread takes from them by turns.
        self._queues: tuple[deque[_Request], deque[_Request]] = deque(), deque()
        self._turn = False
        self._running = self._passed = 0
        self._changed = threading.Condition()
        self._stopping, self._stopped = threading.Event(), threading.Event()
        self._names: dict[str, _Holding] = {}
        self._connections: set[_Connection] = set()
        self._listeners: list[Listener] = []
        self._owners: list[socket.socket] = []
        self._counters = dict.fromkeys(("verified", "valid", "invalid", "failed", "refused"), 0)
        self._started = time.monotonic()
        self._wake_read, self._wake_write = os.pipe()
        for end in (self._wake_read, self._wake_write):
            os.set_blocking(end, False)

    # Before it runs ------------------------------------------------------------------

    def listen(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def own(self, connection: socket.socket) -> None:
        """A connection to whoever started this process: the server ends when it does."""
        self._owners.append(connection)

    def load(self, name: str, document: object, source: str) -> LoadedKey:
        """Loads a key that everybody may use by this name.

        Raises:
            MalformedFile, UnsupportedFile: the document is damaged, or a point is outside its subgroup.
        """
        key = LoadedKey(document, source=source)
        key.prepare()
        self._names[_name(name)] = _Holding(key, 0)
        return key

    def digests(self) -> dict[str, str]:
        """Name -> digest of the keys that everybody may use."""
        with self._changed:
            return {name: holding.key.digest for name, holding in self._names.items()}

    # Running ---------------------------------------------------------------------

    def run(self) -> int:
        """Serves until the end; returns the exit code, 0. Outside the main thread signals are left alone."""
        selector = selectors.DefaultSelector()
        selector.register(self._wake_read, selectors.EVENT_READ)
        for listener in self._listeners:
            selector.register(listener.socket, selectors.EVENT_READ, listener)
        workers = [
            threading.Thread(target=self._work, name=f"verify-{i}", daemon=True)
            for i in range(self._limits.threads)
        ]
        for worker in workers:
            worker.start()
        try:
            with self._signals():
                for owner in self._owners:
                    self._connect(owner, local=True, owner=True)
                while not self._stopping.is_set():
                    for key, _ in selector.select():
                        if key.data is None:
                            self._stopping.set()
                        else:
                            self._accept(key.data)
                for listener in self._listeners:
                    listener.close()
                self._drain()
        finally:
            self._stopping.set()
            self._stopped.set()
            selector.close()
            for listener in self._listeners:
                listener.close()
            with self._changed:
                self._changed.notify_all()
            for connection in list(self._connections):
                connection.channel.close()
        return 0

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM, SIGINT and SIGHUP stop the server; what was set for them is put back."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        # The wake-up is all that a handler has to do; it comes as a byte.
        before = {number: signal.signal(number, lambda *_: None) for number in numbers}
        wakeup = signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)

    def stop(self) -> None:
        """No new work from now on; :meth:`run` returns when what waits and runs is done."""
        with suppress(OSError):
            os.write(self._wake_write, b"x")

    def _drain(self) -> None:
        deadline = time.monotonic() + self._limits.grace
        with self._changed:
            while (self._waiting or self._running) and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(min(left, 0.5))

    # Connections -----------------------------------------------------------------------

    def _accept(self, listener: Listener) -> None:
        try:
            connection, _ = listener.socket.accept()
        except OSError:  # gone again, or no descriptor left: the next one may do better
            time.sleep(0.01)
            return
        if len(self._connections) < self._limits.connections:
            self._connect(connection, local=listener.address.path is not None, owner=False)
            return
        channel = Channel(connection)
        with suppress(ProverError):
            full = QueueFull(f"the verifier has {self._limits.connections} connections, as many as it takes")
            channel.send({"id": None, "error": to_record(full)}, timeout=0.1)
        channel.close()

    def _connect(self, connection: socket.socket, *, local: bool, owner: bool) -> None:
        client = _Connection(Channel(connection), local, owner, threading.Semaphore(self._limits.outstanding))
        with self._changed:
            self._connections.add(client)
        threading.Thread(target=self._read, args=(client,), name="read", daemon=True).start()

    def _read(self, client: _Connection) -> None:
        """Takes one connection's requests until it ends."""
        held = 0

        def admit(size: int) -> None:
            nonlocal held
            if size > SMALL_MESSAGE:
                self._budget.take(size, self._stopped)
                held = size

        try:
            while True:
                document = self._receive(client.channel, admit)
                client.outstanding.acquire()
                taken, held = held, 0
                self._handle(client, document, taken)
                del document
        except BrokenMessage as error:
            self._answer(client, None, error)
        except (ConnectionLost, ShuttingDown, Timeout):
            pass
        finally:
            self._budget.give(held)
            self._disconnect(client)

    @staticmethod
    def _receive(channel: Channel, admit: Callable[[int], None]) -> dict[str, Any]:
        """The next message, however long it takes to begin. Raises Timeout if it stops in its middle."""
        before = -1
        while True:
            try:
                return channel.receive(STALL_SECONDS, admit)[0]
            except Timeout:
                if channel.within_message:
                    if channel.received == before:
                        raise
                    before = channel.received

    def _disconnect(self, client: _Connection) -> None:
        client.channel.close()
        with self._changed:
            self._connections.discard(client)
            client.names.clear()
        if client.owner:
            self.stop()

    def _answer(self, client: _Connection, number: object, result: dict[str, Any] | ProverError) -> None:
        if isinstance(result, ProverError):
            answer = {"id": number, "error": to_record(result)}
        else:
            answer = {"id": number, "result": result}
        try:
            client.channel.send(answer, timeout=STALL_SECONDS)
        except (ConnectionLost, Timeout):
            client.channel.close()

    # Requests --------------------------------------------------------------------------

    def _handle(self, client: _Connection, document: dict[str, Any], held: int) -> None:
        """Answers a request, or lets it wait for a thread that verifies."""
        number = document.get("id")
        result = self._guarded(lambda: self._begin(client, number, document, held))
        if result is not None:
            self._budget.give(held)
            self._answer(client, number, result)
            client.outstanding.release()
            if document.get("op") == "shutdown" and not isinstance(result, ProverError):
                self.stop()

    def _begin(
        self, client: _Connection, number: object, document: dict[str, Any], held: int
    ) -> dict[str, Any] | None:
        """The answer to a request, or None if it waits."""
        operation = document.get("op")
        handler = _OPERATIONS.get(operation) if isinstance(operation, str) else None
        if handler is None:
            raise InvalidInput(f"request: expected as its op one of {', '.join(_OPERATIONS)}")
        if not isinstance(number, int):
            raise InvalidInput("request: expected a whole number as its id")
        answer = handler(self, client, document, held or SMALL_MESSAGE)
        if not callable(answer):
            return answer
        with self._changed:
            if self._stopping.is_set():
                raise ShuttingDown("the verifier is shutting down")
            waiting = self._waiting
            if waiting >= self._limits.waiting:
                self._counters["refused"] += 1
                raise QueueFull(f"{waiting} requests wait for the verifier; try again later")
            self._queues[operation == "verify_batch"].append(_Request(client, number, answer, held))
            self._changed.notify()
        return None

    @property
    def _waiting(self) -> int:
        return sum(map(len, self._queues))

    def _work(self) -> None:
        """Verifies what waits, until the server has stopped."""
        while True:
            with self._changed:
                while not self._waiting:
                    if self._stopped.is_set():
                        return
                    self._changed.wait()
                self._turn = not self._turn
                request = (self._queues[self._turn] or self._queues[not self._turn]).popleft()
                self._running += 1
            client = request.connection
            if not client.channel.closed:
                result = self._guarded(request.work)
                self._budget.give(request.held)
                if isinstance(result, ProverError):
                    self._count(failed=1)
                self._answer(client, request.number, result)
            else:
                self._budget.give(request.held)
            client.outstanding.release()
            passed = request.held
            del request, client
            with self._changed:
                self._running -= 1
                self._passed += passed
                idle = not self._waiting and not self._running
                trim = idle and self._passed >= TRIM_BYTES
                if trim:
                    self._passed = 0
                self._changed.notify_all()
            if trim:
                memory.trim()

    @staticmethod
    def _guarded(work: Callable[[], T]) -> T | ProverError:
        try:
            return work()
        except ProverError as error:
            return error
        except MemoryError:
            return OutOfMemory("the machine refused memory for a verification")
        except Exception as error:
            # A fault of ours: one request fails, and nothing else. The text might hold what the client sent.
            return ProofGenerationFailed(f"the verifier failed: {type(error).__name__}")

    def _count(self, **amounts: int) -> None:
        with self._changed:
            for name, amount in amounts.items():
                self._counters[name] += amount

    def _hello(self, client: _Connection, document: dict[str, Any], size: int) -> dict[str, Any]:
        version = sys.modules["gpuprover"].__version__
        ready = not self._stopping.is_set()
        return {"protocol": PROTOCOL, "version": version, "pid": os.getpid(), "ready": ready}

    def _load(self, client: _Connection, document: dict[str, Any], size: int) -> Callable[[], dict[str, Any]]:
        name = _name(document.get("name"))
        expected = document.get("digest")
        if not isinstance(expected, str):
            raise InvalidInput("load: expected the key's digest")
        key = LoadedKey(document.get("verification_key"), expected)
        key = self._known(key.digest) or key
        holding = _Holding(key, size)
        with self._changed:
            held = sum(h.size for c in self._connections for h in c.names.values())
            if held + size > self._limits.keys:
                raise QueueFull(f"the verifier holds keys of {held} bytes, as many as it takes")
            before = client.names.get(name)
            self._bind(client, name, holding)

        def prepare() -> dict[str, Any]:
            try:
                key.prepare()
            except ProverError:
                with self._changed:
                    if client.names.get(name) is holding:
                        self._bind(client, name, before)
                raise
            return {"digest": key.digest, "warnings": list(key.warnings)}

        return prepare

    def _bind(self, client: _Connection, name: str, holding: _Holding | None) -> None:
        """What a client's name means from now on, None for nothing; with the lock held."""
        for names in (client.names, self._names) if client.owner else (client.names,):
            if holding is not None:
                names[name] = holding
            else:
                names.pop(name, None)

    def _unload(self, client: _Connection, document: dict[str, Any], size: int) -> dict[str, Any]:
        name = _name(document.get("name"))
        with self._changed:
            if name not in client.names:
                raise CircuitNotFound(f"{name}: this client loaded no verification key of that name")
            self._bind(client, name, None)
        return {"unloaded": name}

    def _known(self, digest: object) -> LoadedKey | None:
        with self._changed:
            for names in (self._names, *(client.names for client in self._connections)):
                for holding in names.values():
                    if holding.key.digest == digest:
                        return holding.key
        return None

    def _key(self, client: _Connection, document: dict[str, Any]) -> LoadedKey:
        digest, name = document.get("digest"), document.get("name")
        if digest is not None:
            key = self._known(digest)
            if key is None:
                raise CircuitNotFound(f"no verification key of digest {str(digest)[:64]} is loaded")
            return key
        name = _name(name)
        with self._changed:
            holding = client.names.get(name) or self._names.get(name)
        if holding is None:
            raise CircuitNotFound(f"{name}: no verification key of that name is loaded")
        return holding.key

    def _verify(
        self, client: _Connection, document: dict[str, Any], size: int
    ) -> Callable[[], dict[str, Any]]:
        key = self._key(client, document)
        public, proof = document.get("public"), document.get("proof")

        def verify() -> dict[str, Any]:
            valid = key.verify(public, proof)
            self._count(verified=1, valid=int(valid), invalid=int(not valid))
            return {"valid": valid}

        return verify

    def _verify_batch(
        self, client: _Connection, document: dict[str, Any], size: int
    ) -> Callable[[], dict[str, Any]]:
        key = self._key(client, document)
        entries = document.get("statements")
        if not isinstance(entries, list):
            raise MalformedFile("statements", "document", "expected a list of pairs")
        statements = [tuple(e) if isinstance(e, list) and len(e) == 2 else (None, None) for e in entries]

        def verify() -> dict[str, Any]:
            valid = key.verify_batch(statements)
            self._count(verified=len(valid), valid=sum(valid), invalid=len(valid) - sum(valid))
            return {"valid": valid}

        return verify

    def _status(self, client: _Connection, document: dict[str, Any], size: int) -> dict[str, Any]:
        with self._changed:
            keys = {name: holding.key.describe() for name, holding in (self._names | client.names).items()}
            return {
                **self._hello(client, document, size),
                "uptime": round(time.monotonic() - self._started, 3),
                "threads": self._limits.threads,
                "connections": len(self._connections),
                "waiting": self._waiting,
                "running": self._running,
                "buffered": self._budget.held,
                "keys": keys,
                "counters": dict(self._counters),
                "memory": _memory(),
            }

    def _shutdown(self, client: _Connection, document: dict[str, Any], size: int) -> dict[str, Any]:
        if not client.local:
            raise InvalidInput("shutdown: not over TCP")
        return {}  # and once it is answered, the server stops


def _memory() -> dict[str, int | None]:
    """What this process holds, in bytes. It says so itself, since one that is not dumpable hides it."""
    usage = memory.memory_usage()
    return {"private": usage.private, "pss": usage.pss, "rss": usage.rss, "peak": memory.peak()}


def _name(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME or not value.isprintable():
        raise InvalidInput(f"name: expected a text of 1 to {MAX_NAME} printable characters")
    return value


_Answer = dict[str, Any] | Callable[[], dict[str, Any]]
_OPERATIONS: dict[str, Callable[[Server, _Connection, dict[str, Any], int], _Answer]] = {
    "hello": Server._hello,
    "load": Server._load,
    "unload": Server._unload,
    "verify": Server._verify,
    "verify_batch": Server._verify_batch,
    "status": Server._status,
    "shutdown": Server._shutdown,
}
