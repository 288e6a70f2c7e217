"""The verifier's server: what clients ask, a bounded queue, and a few threads that verify.

One thread has all connections (:mod:`gpuprover.verifier.connections`) and answers what takes no time;
``threads`` others verify; one more parses long messages, the shortest first. Requests wait by connection, and
connections take turns; so do proofs and batches, of which a part is verified at a time, so that a long batch
delays a single proof by one part at most. A connection has its share of places in the queue and of bytes for
keys, whatever others take.

No request ends a thread: what cannot be answered is said to be so, or else its connection ends. A thread that
dies all the same is started again, and ``hello`` and ``status`` report one that is missing.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    to_record,
)
from gpuprover.messages import AccessDenied, BrokenMessage, encode, parse_frame
from gpuprover.verifier.address import Listener
from gpuprover.verifier.connections import SMALL_MESSAGE, Connection, Connections, Limits, Message
from gpuprover.verifier.keys import LoadedKey
from gpuprover.verifier.secret import Handshake, nonce, parse_nonce
from gpuprover.version import VERSION

T = TypeVar("T")

PROTOCOL = 1
MAX_NAME = 200
MAX_NUMBER = (1 << 63) - 1
"""The largest absolute value of a request's id."""
MAX_VALUES = 1 << 21
"""In one message: each takes some 60 to 100 bytes, however short it is written."""
MAX_STATEMENTS = 1 << 16
"""The most statements of a batch in one message."""
SLICE, SLICE_ALONE = 256, 64
"""Statements of a batch that are verified before others have their turn; the second where one thread does
all, and proofs wait for it. Good ones take 0.5 ms each then, and bad ones among them 9 ms (measured by
hand)."""
TRIM_BYTES = 16 << 20
"""Bytes of long messages after which an idle verifier gives back what malloc keeps."""
RETRY_SECONDS = 0.5
"""Between two looks at threads that are missing."""
FLUSH_SECONDS = 2.0
"""At the end, for clients to take the last answers."""

Work = Callable[[], dict[str, Any] | None]
"""What a request asks for -> the answer, or None if there is more to do."""


@dataclass(frozen=True)
class _Holding:
    """A key under a name. ``owner`` is the connection that loaded it, None if the server was started with
    it."""

    key: LoadedKey
    size: int
    owner: Connection | None


@dataclass
class _Client:
    """What a connection's names mean, and the secret's proof that is expected of it."""

    names: dict[str, _Holding] = field(default_factory=dict)
    held: int = 0
    handshake: Handshake | None = None


@dataclass(frozen=True)
class _Request:
    connection: Connection
    number: int
    work: Work
    message: Message


class _Lane:
    """Requests that wait; connections take turns."""

    def __init__(self) -> None:
        self._queues: dict[Connection, deque[_Request]] = {}
        self.waiting = 0

    def put(self, request: _Request) -> None:
        self._queues.setdefault(request.connection, deque()).append(request)
        self.waiting += 1

    def take(self) -> _Request:
        connection = next(iter(self._queues))
        queue = self._queues.pop(connection)
        request = queue.popleft()
        if queue:
            self._queues[connection] = queue
        self.waiting -= 1
        return request

    def of(self, connection: Connection) -> int:
        return len(self._queues.get(connection, ()))

    def remove(self, connection: Connection) -> deque[_Request]:
        """Takes out all of a connection."""
        queue = self._queues.pop(connection, deque())
        self.waiting -= len(queue)
        return queue


class Server:
    """A verifier's server. :meth:`run` serves until SIGTERM, ``shutdown``, or the end of its owner.

    Args:
        secret: what clients over TCP have to know; None asks nothing of them.
    """

    def __init__(self, limits: Limits, *, secret: bytes | None = None) -> None:
        self._limits, self._secret = limits, secret
        self._connections = Connections(limits, self._handle, self._gone, self._tend, secret=secret)
        self._changed = threading.Condition()
        # One proof, or a key; and what takes long. A thread takes from them by turns.
        self._lanes = _Lane(), _Lane()
        self._turn = False
        self._running, self._running_long, self._passed = 0, 0, 0
        self._long: list[tuple[Connection, Message]] = []
        """Messages to be parsed by the thread for long ones."""
        self._parsing = False
        self._threads: dict[str, threading.Thread] = {}
        self._missing = 0
        self._tended = float("-inf")
        self._stop_asked, self._stopping, self._stopped = (threading.Event() for _ in range(3))
        self._names: dict[str, _Holding] = {}
        self._digests: dict[str, list[_Holding]] = {}
        self._keys_held = 0
        self._owners: list[socket.socket] = []
        self._counters = dict.fromkeys(("verified", "valid", "invalid", "failed", "refused"), 0)
        self._faults = 0
        self._started = time.monotonic()

    # Before it runs ------------------------------------------------------------------

    def listen(self, listener: Listener) -> None:
        self._connections.listen(listener)

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
        holding = _Holding(key, 0, None)
        self._names[_name(name)] = holding
        self._digests.setdefault(key.digest, []).append(holding)
        return key

    def digests(self) -> dict[str, str]:
        """Name -> digest of the keys that everybody may use."""
        with self._changed:
            return {name: holding.key.digest for name, holding in self._names.items()}

    # Running ---------------------------------------------------------------------

    def run(self, started: Callable[[], None] = lambda: None) -> int:
        """Serves until the end; returns the exit code, 0. Outside the main thread signals are left alone.

        Args:
            started: called once signals are heard and clients can connect.
        """
        connections = self._connections
        try:
            with self._signals():
                connections.start()
                self._tend()
                for owner in self._owners:
                    connections.connect(owner, local=True, owner=True, may_end=True, peer="owner")
                started()
                while not self._stop_asked.is_set():
                    connections.step(RETRY_SECONDS if self._missing else float("inf"))
                self._stopping.set()
                connections.stop_listening()
                deadline = time.monotonic() + self._limits.grace
                while self._busy and (left := deadline - time.monotonic()) > 0:
                    connections.step(left)
                deadline = min(deadline, time.monotonic() + FLUSH_SECONDS)
                while connections.unsent and (left := deadline - time.monotonic()) > 0:
                    connections.step(left)
        finally:
            self._stopping.set()
            self._stopped.set()
            with self._changed:
                self._changed.notify_all()
            connections.close()
        return 0

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM, SIGINT and SIGHUP stop the server; what was set for them is put back."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        before = {number: signal.signal(number, lambda *_: self._stop_asked.set()) for number in numbers}
        wakeup = signal.set_wakeup_fd(self._connections.wake_descriptor, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)

    def stop(self) -> None:
        """No new work from now on; :meth:`run` returns when what waits and runs is done."""
        self._stop_asked.set()
        self._connections.wake()

    @property
    def _busy(self) -> bool:
        with self._changed:
            return bool(self._waiting or self._running or self._long or self._parsing)

    # Threads -----------------------------------------------------------------------------

    def _tend(self) -> None:
        """Starts threads that are missing; now and then, from the loop."""
        now = time.monotonic()
        if now - self._tended < RETRY_SECONDS or self._stopped.is_set():
            return
        self._tended = now
        wanted = {f"verify-{i}": self._work for i in range(self._limits.threads)} | {"parse": self._parse}
        missing = 0
        for name, function in wanted.items():
            thread = self._threads.get(name)
            if thread is not None and thread.is_alive():
                continue
            thread = threading.Thread(target=self._lasting, args=(function,), name=name, daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the system has none left, for now
                missing += 1
                continue
            self._threads[name] = thread
        self._missing = missing

    def _lasting(self, function: Callable[[], None]) -> None:
        """Runs a thread's function, and again if it fails: it returns at the server's end."""
        while not self._stopped.is_set():
            try:
                function()
            except BaseException:
                self._faults += 1
                time.sleep(0.01)

    def _work(self) -> None:
        """Verifies what waits, until the server has stopped."""
        while (taken := self._next()) is not None:
            request, long = taken
            try:
                self._perform(request, long)
            finally:
                self._performed(request, long)
                del request, taken

    def _next(self) -> tuple[_Request, bool] | None:
        """The next request and whether it may take long; waits for it. None at the end."""
        with self._changed:
            while True:
                if self._stopped.is_set():
                    return None
                self._turn = not self._turn
                for long in (self._turn, not self._turn):
                    # A thread is left for what takes no time.
                    if self._lanes[long].waiting and not (
                        long and self._running_long >= max(1, self._limits.threads - 1)
                    ):
                        self._running += 1
                        self._running_long += long
                        return self._lanes[long].take(), long
                self._changed.wait()

    def _perform(self, request: _Request, long: bool) -> None:
        """Does what a request asks for, or a part of it, and answers it."""
        answered = False
        try:
            if request.connection.closed:
                return
            result = self._guarded(request.work)
            if result is None:
                with self._changed:
                    self._lanes[long].put(request)
                answered = True
                return
            if isinstance(result, ProverError):
                self._count(failed=1)
            self._answer(request.connection, request.number, result, request.message)
            answered = True
        finally:
            if not answered:
                self._connections.answer(request.connection, None, request.message)

    def _performed(self, request: _Request, long: bool) -> None:
        with self._changed:
            self._running -= 1
            self._running_long -= long
            self._passed += request.message.held
            idle = not self._waiting and not self._running
            trim = idle and self._passed >= TRIM_BYTES
            if trim:
                self._passed = 0
            self._changed.notify_all()
        if self._stop_asked.is_set():
            self._connections.wake()
        if trim:
            memory.trim()

    def _parse(self) -> None:
        """Parses long messages, until the server has stopped."""
        while True:
            with self._changed:
                while not self._long:
                    if self._stopped.is_set():
                        return
                    self._changed.wait()
                i = min(range(len(self._long)), key=lambda i: len(self._long[i][1].body))
                connection, message = self._long.pop(i)
                self._parsing = True
            try:
                if connection.closed:
                    self._connections.answer(connection, None, message)
                else:
                    self._take(connection, message)
            finally:
                with self._changed:
                    self._parsing = False
                self._connections.parsed(connection)
                del connection, message

    # Requests --------------------------------------------------------------------------

    def _handle(self, connection: Connection, message: Message) -> None:
        """Takes a message that has come, in the loop's thread."""
        if connection.state is None:
            connection.state = _Client()
        if len(message.body) <= SMALL_MESSAGE:
            self._take(connection, message)
            return
        # Nothing more is read from it before: what it asks for next may need the key that is in here.
        connection.parsing = True
        with self._changed:
            self._long.append((connection, message))
            self._changed.notify_all()

    def _take(self, connection: Connection, message: Message) -> None:
        """Parses a message, and answers it or lets it wait for a thread that verifies."""
        handed_on = False
        try:
            number: int | None = None
            result: dict[str, Any] | ProverError | None
            try:
                document = _parsed(message.body)
                number = _number(document)
                if number is None:
                    result = InvalidInput("request: expected as its id a whole number of at most 63 bits")
                else:
                    known = number
                    result = self._guarded(lambda: self._begin(connection, known, document, message))
            except (BrokenMessage, MemoryError) as error:
                broken = error if isinstance(error, ProverError) else OutOfMemory("message: no memory for it")
                self._last_answer(connection, broken, message)
                handed_on = True
                return
            if result is None:
                handed_on = True
                return
            if isinstance(result, AccessDenied):
                self._last_answer(connection, result, message)
            else:
                self._answer(connection, number, result, message)
            handed_on = True
            if isinstance(result, dict) and document.get("op") == "shutdown":
                self.stop()
        finally:
            if not handed_on:
                self._connections.answer(connection, None, message)

    def _answer(
        self,
        connection: Connection,
        number: int | None,
        result: dict[str, Any] | ProverError,
        message: Message,
    ) -> None:
        """Answers a request; if the answer cannot be written, by saying so."""
        field = {"error": to_record(result)} if isinstance(result, ProverError) else {"result": result}
        try:
            frame = encode({"id": number, **field})
        except Exception:
            failed = ProofGenerationFailed("the verifier's answer cannot be written")
            frame = encode({"id": number, "error": to_record(failed)})
        self._connections.answer(connection, frame, message)

    def _last_answer(self, connection: Connection, problem: ProverError, message: Message) -> None:
        """Says why nothing more is taken from a connection, and ends it once that is sent."""
        connection.closing = True
        self._answer(connection, None, problem, message)

    def _begin(
        self, connection: Connection, number: int, document: dict[str, Any], message: Message
    ) -> dict[str, Any] | None:
        """The answer to a request, or None if it waits."""
        operation = document.get("op")
        if operation == "authenticate":
            return self._authenticate(connection, document)
        if not connection.trusted:
            raise AccessDenied("the verifier has a secret, and answers only clients that share it")
        handler = _OPERATIONS.get(operation) if isinstance(operation, str) else None
        if handler is None:
            raise InvalidInput(f"request: expected as its op one of {', '.join(_OPERATIONS)}")
        answer = handler(self, connection, document, message.held or SMALL_MESSAGE)
        if not callable(answer):
            return answer
        long = operation == "verify_batch" or len(message.body) > SMALL_MESSAGE
        with self._changed:
            if self._stopping.is_set():
                raise ShuttingDown("the verifier is shutting down")
            waiting, own = self._waiting, sum(lane.of(connection) for lane in self._lanes)
            if waiting >= self._limits.waiting and own >= self._limits.waiting // self._limits.connections:
                self._counters["refused"] += 1
                raise QueueFull(f"{waiting} requests wait for the verifier; try again later")
            self._lanes[long].put(_Request(connection, number, answer, message))
            self._changed.notify_all()
        return None

    @property
    def _waiting(self) -> int:
        return sum(lane.waiting for lane in self._lanes)

    def _gone(self, connection: Connection) -> None:
        """Forgets a connection that has ended."""
        with self._changed:
            client = connection.state or _Client()
            for name in list(client.names):
                self._bind(connection, name, None)
            left = [request for lane in self._lanes for request in lane.remove(connection)]
            left_long = [message for other, message in self._long if other is connection]
            self._long = [entry for entry in self._long if entry[0] is not connection]
        for message in (*(request.message for request in left), *left_long):
            self._connections.answer(connection, None, message)
        if connection.owner:
            self.stop()

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

    def _authenticate(self, connection: Connection, document: dict[str, Any]) -> dict[str, Any] | None:
        """Both steps of :mod:`gpuprover.verifier.secret`; the answer to the second has a tag already."""
        client: _Client = connection.state
        if self._secret is None:
            raise InvalidInput("authenticate: this verifier has no secret")
        if connection.trusted:
            raise AccessDenied("authenticate: expected once, at the start of a connection over TCP")
        if client.handshake is None:
            theirs, ours = parse_nonce(document.get("nonce")), nonce()
            if theirs is None:
                raise AccessDenied("authenticate: expected a nonce of 32 bytes in hexadecimal")
            client.handshake = Handshake(self._secret, theirs, ours)
            return {"nonce": ours.hex(), "proof": client.handshake.proof("verifier")}
        if not client.handshake.proves("client", document.get("proof")):
            raise AccessDenied("the client does not know the secret that this verifier has")
        connection.frames.seal = client.handshake.seal("client")
        connection.seal = client.handshake.seal("verifier")
        connection.frames.limit, connection.trusted = self._limits.message, True
        return {}

    def _hello(self, connection: Connection, document: dict[str, Any], size: int) -> dict[str, Any]:
        ready = not self._stopping.is_set() and not self._missing
        return {
            "protocol": PROTOCOL,
            "version": VERSION,
            "pid": os.getpid(),
            "ready": ready,
            "missing_threads": self._missing,
        }

    def _load(self, connection: Connection, document: dict[str, Any], size: int) -> Work:
        name = _name(document.get("name"))
        expected = document.get("digest")
        if not isinstance(expected, str) or len(expected) > MAX_NAME:
            raise InvalidInput("load: expected the key's digest")
        key = LoadedKey(document.get("verification_key"), expected)
        holding = _Holding(key, size, connection)
        limits, client = self._limits, connection.state
        with self._changed:
            own = client.held + size
            share = own <= limits.keys // limits.connections
            room = self._keys_held + size <= limits.keys and (connection.owner or own <= limits.keys // 4)
            if not (share or room):
                raise QueueFull(f"the verifier holds keys of {self._keys_held} bytes, as many as it takes")
            if connection.closed:
                raise ShuttingDown("the connection has ended")
            before = client.names.get(name)
            self._bind(connection, name, holding)

        def prepare() -> dict[str, Any]:
            try:
                key.prepare()
            except ProverError:
                with self._changed:
                    if client.names.get(name) is holding:
                        self._bind(connection, name, before)
                raise
            return {"digest": key.digest, "warnings": list(key.warnings)}

        return prepare

    def _bind(self, connection: Connection, name: str, holding: _Holding | None) -> None:
        """What a connection's name means from now on, None for nothing; with the lock held."""
        client: _Client = connection.state
        before = client.names.pop(name, None)
        if before is not None:
            self._keys_held -= before.size
            client.held -= before.size
            self._digests[before.key.digest].remove(before)
            if not self._digests[before.key.digest]:
                del self._digests[before.key.digest]
        if holding is not None:
            client.names[name] = holding
            self._keys_held += holding.size
            client.held += holding.size
            self._digests.setdefault(holding.key.digest, []).append(holding)
        if connection.owner:
            if holding is not None:
                self._names[name] = holding
            else:
                self._names.pop(name, None)

    def _unload(self, connection: Connection, document: dict[str, Any], size: int) -> dict[str, Any]:
        name = _name(document.get("name"))
        with self._changed:
            if name not in connection.state.names:
                raise CircuitNotFound(f"{name}: this client loaded no verification key of that name")
            self._bind(connection, name, None)
        return {"unloaded": name}

    def _key(self, connection: Connection, document: dict[str, Any]) -> LoadedKey:
        digest, name = document.get("digest"), document.get("name")
        with self._changed:
            if digest is not None:
                # What another connection says is a key's digest counts once it is checked.
                for holding in self._digests.get(digest, ()) if isinstance(digest, str) else ():
                    if holding.key.ready or holding.owner is connection:
                        return holding.key
                raise CircuitNotFound(f"no verification key of digest {str(digest)[:64]} is loaded")
            name = _name(name)
            found = connection.state.names.get(name) or self._names.get(name)
        if found is None:
            raise CircuitNotFound(f"{name}: no verification key of that name is loaded")
        return found.key

    def _verify(self, connection: Connection, document: dict[str, Any], size: int) -> Work:
        key = self._key(connection, document)
        public, proof = document.get("public"), document.get("proof")

        def verify() -> dict[str, Any]:
            valid = key.verify(public, proof)
            self._count(verified=1, valid=int(valid), invalid=int(not valid))
            return {"valid": valid}

        return verify

    def _verify_batch(self, connection: Connection, document: dict[str, Any], size: int) -> Work:
        key = self._key(connection, document)
        entries = document.get("statements")
        if not isinstance(entries, list):
            raise MalformedFile("statements", "document", "expected a list of pairs", role="proof")
        if len(entries) > MAX_STATEMENTS:
            raise InvalidInput(
                f"statements: {len(entries)}, expected at most {MAX_STATEMENTS} in one message"
            )
        results: list[bool] = []
        size_of_part = SLICE if self._limits.threads > 1 else SLICE_ALONE

        def verify_some() -> dict[str, Any] | None:
            part = entries[len(results) : len(results) + size_of_part]
            pairs = [tuple(e) if isinstance(e, list) and len(e) == 2 else (None, None) for e in part]
            valid = key.verify_batch(pairs)
            self._count(verified=len(valid), valid=sum(valid), invalid=len(valid) - sum(valid))
            results.extend(valid)
            return {"valid": results} if len(results) == len(entries) else None

        return verify_some

    def _status(self, connection: Connection, document: dict[str, Any], size: int) -> dict[str, Any]:
        with self._changed:
            names = self._names | connection.state.names
            keys = {name: holding.key.describe() for name, holding in names.items()}
            return {
                **self._hello(connection, document, size),
                "uptime": round(time.monotonic() - self._started, 3),
                "threads": self._limits.threads,
                "connections": self._connections.count,
                "waiting": self._waiting,
                "running": self._running,
                "buffered": self._connections.held,
                "keys": keys,
                "counters": self._counters | self._connections.counters | {"thread_faults": self._faults},
                "memory": _memory(),
            }

    def _shutdown(self, connection: Connection, document: dict[str, Any], size: int) -> dict[str, Any]:
        if not connection.local:
            raise InvalidInput("shutdown: not over TCP")
        if not connection.may_end:
            raise InvalidInput("shutdown: not by this user")
        return {}  # and once it is answered, the server stops


def _memory() -> dict[str, int | None]:
    """What this process holds, in bytes. It says so itself, since one that is not dumpable hides it."""
    usage = memory.memory_usage()
    return {"private": usage.private, "pss": usage.pss, "rss": usage.rss, "peak": memory.peak()}


def _parsed(body: bytes) -> dict[str, Any]:
    """A message's document; BrokenMessage for what is none, or takes much more memory than it is long."""
    values = sum(map(body.count, (b",", b"[", b"{")))
    if values > MAX_VALUES:
        raise BrokenMessage(f"message: {values} values, expected at most {MAX_VALUES}")
    return parse_frame(body)


def _number(document: dict[str, Any]) -> int | None:
    number = document.get("id")
    if not isinstance(number, int) or isinstance(number, bool):
        return None
    return number if -MAX_NUMBER <= number <= MAX_NUMBER else None


def _name(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME or not value.isprintable():
        raise InvalidInput(f"name: expected a text of 1 to {MAX_NAME} printable characters")
    return value


_Answer = dict[str, Any] | Work
_OPERATIONS: dict[str, Callable[[Server, Connection, dict[str, Any], int], _Answer]] = {
    "hello": Server._hello,
    "load": Server._load,
    "unload": Server._unload,
    "verify": Server._verify,
    "verify_batch": Server._verify_batch,
    "status": Server._status,
    "shutdown": Server._shutdown,
}
