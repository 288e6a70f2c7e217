"""Calls to a verifier that runs somewhere: from many threads, over one connection, renewed when it breaks."""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from gpuprover.errors import (
    CircuitNotFound,
    DeviceError,
    InsecureKeyWarning,
    InvalidInput,
    MalformedFile,
    ProverError,
    ShuttingDown,
    Timeout,
    from_record,
)
from gpuprover.messages import MAX_FRAME, AccessDenied, Channel, ConnectionLost, encode
from gpuprover.verifier.address import connect, parse_address, stays_here
from gpuprover.verifier.secret import authenticate, read_secret

if TYPE_CHECKING:
    from gpuprover.systems.system import VerificationKey

    KeyLike = VerificationKey | Mapping[str, Any]

log = logging.getLogger("gpuprover.verifier")

Statement = tuple[Sequence[int | str], Mapping[str, Any]]

PROTOCOL = 1
CALL_SECONDS = 120.0
"""A call's time unless it says another; a first verification may have to compile its code."""
CONNECT_SECONDS = 5.0
START_SECONDS = 30.0
"""Seconds from a connection to the verifier's first answer, unless told otherwise."""
HEARTBEAT_SECONDS = 30.0
"""A verifier that owes answers and does not even answer a question of its health for so long is given up,
unless told otherwise."""
PINGS = 4
"""Questions of its health in that time."""
FIRST_DELAY, LONGEST_DELAY = 0.05, 2.0
"""Seconds before another attempt: doubled each time, from and to."""
TRIES = 6
"""Attempts to connect or to start, without an answer, after which the calls that wait fail."""
RARE_DELAY = 10.0
"""Seconds between further attempts, where the verifier is needed and nobody waits for it."""
SENDS = 10
"""A call that goes down with so many verifiers fails."""
STEADY_SECONDS = 5.0
"""A connection that held so long was a good one: the next attempt comes without delay."""

PART = 512
"""Statements of a batch in one message: what the verifier checks with one product."""
PART_BYTES = 1 << 20
WINDOW = 4
"""Parts of one batch that are on their way."""


@dataclass(frozen=True)
class VerifierStatus:
    """How a verifier is.

    Attributes:
        state: ``ready``, ``starting`` (also after it died), ``failing`` (it cannot be had, and is tried
            again), ``idle`` (it was not needed yet) or ``closed``.
        pid: the process's id; None where there is none.
        restarts: processes or connections after the first.
        uptime: seconds.
        threads: verifications that it makes at once.
        missing_threads: threads that the system does not grant it for now.
        connections, waiting, running: clients, and requests that wait or are worked on.
        buffered: bytes of long messages that wait or are being read.
        keys: name -> digest; curve and number of public signals once it is checked.
        counters: verified (valid and invalid ones together), valid, invalid; failed and refused requests;
            evicted and dropped connections; failures and faults.
        memory: bytes of the process: private, pss, rss, peak.
        problem: why it cannot be had, or None.
    """

    state: str
    pid: int | None = None
    restarts: int = 0
    uptime: float = 0.0
    threads: int = 0
    missing_threads: int = 0
    connections: int = 0
    waiting: int = 0
    running: int = 0
    buffered: int = 0
    keys: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)
    memory: Mapping[str, int | None] = field(default_factory=dict)
    problem: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class _Call:
    """A request, until it is answered: it is sent again on every new connection."""

    number: int
    frame: bytes
    future: Future[dict[str, Any]] = field(default_factory=Future)
    sends: int = 0


@dataclass(frozen=True)
class _Key:
    digest: str
    document: dict[str, Any]


class VerifierClient:
    """A verifier at an address: the path of a Unix socket or ``HOST:PORT``.

    Any number of threads may call. A verification has no side effects, so that a request which a broken
    connection left unanswered is simply sent again, after the keys that were loaded here.

    Args:
        secret_file: path of the secret that the verifier has, for TCP (:mod:`gpuprover.verifier.secret`);
            only a verifier that proves to know it is believed.
        insecure: ask a verifier on another machine without a secret. Whoever is on the way can then answer
            that a wrong proof holds.
        users: ids of users under whom a verifier on a Unix socket may run, besides this one and root.
        timeout: seconds for a call that says no other.
        heartbeat: seconds of silence after which a verifier is given up, and the next one asked.

    Raises:
        InvalidInput: the address is none, or is on another machine and there is no secret; the secret cannot
            be used. Whether somebody answers there shows at the first call.
    """

    def __init__(
        self,
        address: str,
        *,
        secret_file: str | os.PathLike[str] | None = None,
        insecure: bool = False,
        users: Collection[int] = (),
        timeout: float = CALL_SECONDS,
        heartbeat: float = HEARTBEAT_SECONDS,
    ) -> None:
        self._address = parse_address(address)
        self._secret = None if secret_file is None else read_secret(secret_file)
        self._insecure, self._users = insecure, frozenset(users)
        if self._secret is None and not insecure and not stays_here(self._address):
            raise InvalidInput(
                f"{self._address}: another machine, where anybody on the way could answer; expected "
                "secret_file, or insecure=True"
            )
        self._prepare(timeout, heartbeat)

    def _prepare(
        self,
        timeout: float = CALL_SECONDS,
        heartbeat: float = HEARTBEAT_SECONDS,
        start: float = START_SECONDS,
    ) -> None:
        self._timeout, self._heartbeat, self._start = timeout, heartbeat, start
        self._numbers = itertools.count(1)
        self._changed = threading.Condition()
        self._calls: dict[int, _Call] = {}
        self._own: dict[int, Future[dict[str, Any]]] = {}
        """Requests of this class itself, which belong to one connection."""
        self._keys: dict[str, _Key] = {}
        self._thread: threading.Thread | None = None
        self._channel: Channel | None = None
        self._unsent: deque[_Call] = deque()
        self._opened = 0
        self._answered = 0
        self._greeted = 0
        """Connections over which a verifier said what it is."""
        self._pid: int | None = None
        self._refusal: ProverError | None = None
        self._problem: ProverError | None = None
        """Why the verifier cannot be had, from the last of many attempts to the next that works."""
        self._wanted = False
        """Whether somebody waits for a connection, or for its keys."""
        self._closing = threading.Event()
        self._ready = threading.Event()

    def __enter__(self) -> VerifierClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Calls ---------------------------------------------------------------------------

    def load(
        self, name: str, verification_key: KeyLike, digest: str | None = None, *, timeout: float | None = None
    ) -> str:
        """Hands the verifier a key -> its digest. A name that is loaded already then means the new key.

        Args:
            verification_key: a :class:`VerificationKey`, or its document as snarkjs writes it.
            digest: the key's digest where it comes from; both sides compute it, and compare. Without it, an
                insecure key is an :class:`InsecureKeyWarning`.

        Raises:
            MalformedFile, UnsupportedFile: the key is damaged, or has another digest.
        """
        key = _checked_key(verification_key, digest)
        request = self._load_request(name, key)
        encode(request)  # a key that is too long for a message is refused at once
        with self._changed:
            before = self._keys.get(name)
            self._keys[name] = key
            if not self._eager and not self._busy:
                return key.digest  # goes to the verifier when it is started
        try:
            found = self._call(request, timeout).get("digest")
            if found != key.digest:
                raise MalformedFile(
                    "verification key", "digest", "the verifier found another one", role="verification key"
                )
        except BaseException:
            with self._changed:
                if before is None:
                    self._keys.pop(name, None)
                else:
                    self._keys[name] = before
            raise
        return key.digest

    def unload(self, name: str, *, timeout: float | None = None) -> None:
        """Forgets a key that was loaded here.

        Raises:
            CircuitNotFound: none of that name was.
        """
        with self._changed:
            if self._keys.pop(name, None) is None:
                raise CircuitNotFound(f"{name}: no verification key of that name is loaded")
            if not self._busy:
                return
        with suppress(CircuitNotFound):  # a verifier that was started meanwhile never had it
            self._call({"op": "unload", "name": name}, timeout)

    def verify(
        self,
        name: str,
        public_signals: Sequence[int | str],
        proof: Mapping[str, Any],
        *,
        timeout: float | None = None,
    ) -> bool:
        """Whether a proof holds, as :func:`gpuprover.verify` says.

        Args:
            name: a key that was loaded here, or that the verifier was started with.
            public_signals, proof: documents; paths are not read.
            timeout: seconds, for everything: the verifier may have to be started first.

        Raises:
            MalformedFile, UnsupportedFile: a document is damaged.
            CircuitNotFound: no key of that name.
            QueueFull, Timeout, ShuttingDown; ConnectionLost: there is no verifier, and none can be had.
        """
        request = {"op": "verify", **self._which(name), "public": public_signals, "proof": proof}
        try:
            call = self._new_call(request)
        except InvalidInput as error:
            raise MalformedFile("proof or public signals", "document", error.problem, role="proof") from None
        return self._result(call, timeout)["valid"] is True

    def verify_batch(
        self, name: str, statements: Iterable[Statement], *, timeout: float | None = None
    ) -> list[bool]:
        """For each (public signals, proof) whether it holds; a damaged one is False.

        Args:
            timeout: seconds for each part of some hundred statements.

        Raises:
            as :meth:`verify`.
        """
        return list(self.verify_stream(name, statements, timeout=timeout))

    def verify_stream(
        self, name: str, statements: Iterable[Statement], *, timeout: float | None = None
    ) -> Iterator[bool]:
        """As :meth:`verify_batch`, results in order as they come; few of the statements are held at once."""
        which = self._which(name)
        on_their_way: deque[tuple[_Call | None, int]] = deque()
        source = iter(statements)
        try:
            while part := list(itertools.islice(source, PART)):
                for sent in self._parts({"op": "verify_batch", **which}, part):
                    on_their_way.append(sent)
                    if len(on_their_way) >= WINDOW:
                        yield from self._part_result(on_their_way.popleft(), timeout)
            while on_their_way:
                yield from self._part_result(on_their_way.popleft(), timeout)
        finally:
            for call, _ in on_their_way:
                self._abandon(call)

    def status(self, *, timeout: float = 5.0) -> VerifierStatus:
        """How the verifier is.

        Raises:
            as :meth:`verify`.
        """
        answer = self._call({"op": "status"}, timeout)
        names = [f.name for f in fields(VerifierStatus) if f.name not in ("state", "restarts", "problem")]
        values = {name: answer[name] for name in names if name in answer}
        state = "ready" if self._ready.is_set() else "starting"
        return VerifierStatus(state, restarts=max(0, self._opened - 1), **values)

    def wait_ready(self, timeout: float) -> bool:
        """Waits until the verifier runs and has its keys -> whether it does within so many seconds."""
        with self._changed:
            self._wanted = True
            self._begin()
            self._changed.notify_all()
        return self._ready.wait(timeout)

    def close(self) -> None:
        """Ends the connection. Calls that wait get ShuttingDown. May be called again."""
        with self._changed:
            self._closing.set()
            self._changed.notify_all()
            channel, thread = self._channel, self._thread
        if channel is not None:
            channel.close()
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        self._fail_calls(ShuttingDown("the verifier's client was closed"))

    # What a subclass may do otherwise ----------------------------------------------------

    _eager = True
    """Whether the verifier is needed from the start, and not only from the first verification on."""
    _kept = False
    """Whether a connection that ended is renewed, and a silent one noticed, while nobody waits for an
    answer."""

    def _open(self) -> Channel:
        anywhere = self._insecure or self._secret is not None
        channel = Channel(connect(self._address, CONNECT_SECONDS, users=self._users, anywhere=anywhere))
        if self._secret is not None and self._address.path is None:
            try:
                authenticate(channel, self._secret, CONNECT_SECONDS)
            except BaseException:
                channel.close()
                raise
        return channel

    def _ended(self) -> None:
        """The connection that :meth:`_open` made has ended."""

    def _explained(self, problem: ProverError) -> ProverError:
        """What callers are told when there is no verifier."""
        return problem

    def _which(self, name: str) -> dict[str, Any]:
        with self._changed:
            key = self._keys.get(name)
        return {"name": name} if key is None else {"digest": key.digest}

    # One call ------------------------------------------------------------------------

    def _call(self, request: dict[str, Any], timeout: float | None) -> dict[str, Any]:
        return self._result(self._new_call(request), timeout)

    def _new_call(self, request: dict[str, Any], limit: int = MAX_FRAME) -> _Call:
        number = next(self._numbers)
        call = _Call(number, encode({"id": number, **request}, limit))
        with self._changed:
            if self._closing.is_set():
                raise ShuttingDown("the verifier's client was closed")
            self._begin()
            self._calls[number] = call
            self._unsent.append(call)
            self._wanted = True
            self._changed.notify_all()
        return call

    def _result(self, call: _Call, timeout: float | None) -> dict[str, Any]:
        limit = self._timeout if timeout is None else timeout
        try:
            return call.future.result(limit)
        except FutureTimeout:
            raise Timeout(f"the verifier did not answer within {limit:g} s") from None
        finally:
            self._abandon(call)

    def _abandon(self, call: _Call | None) -> None:
        if call is not None:
            with self._changed:
                self._calls.pop(call.number, None)

    def _parts(
        self, request: dict[str, Any], statements: Sequence[Statement]
    ) -> Iterator[tuple[_Call | None, int]]:
        """Sends statements in messages of a bounded length; one alone that cannot be sent is damaged."""
        alone = len(statements) == 1
        try:
            call = self._new_call({**request, "statements": statements}, MAX_FRAME if alone else PART_BYTES)
        except InvalidInput:
            if alone:
                yield None, 1
                return
            middle = len(statements) // 2
            yield from self._parts(request, statements[:middle])
            yield from self._parts(request, statements[middle:])
            return
        yield call, len(statements)

    def _part_result(self, part: tuple[_Call | None, int], timeout: float | None) -> list[bool]:
        call, count = part
        if call is None:
            return [False]
        valid = self._result(call, timeout)["valid"]
        if len(valid) != count:
            raise ConnectionLost(f"the verifier answered {len(valid)} statements of {count}")
        return [value is True for value in valid]

    # The connection --------------------------------------------------------------------

    @property
    def _busy(self) -> bool:
        """Whether there is a connection, or one is being made."""
        return self._thread is not None

    def _begin(self) -> None:
        """Starts what keeps up the connection; with the lock held.

        Raises:
            DeviceError: the system has no thread for it.
        """
        if self._thread is None and not self._closing.is_set():
            thread = threading.Thread(target=self._keep_up, name="gpuprover-verifier", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                raise DeviceError(f"verifier: no thread for it: {error}") from None
            self._thread = thread

    def _keep_up(self) -> None:
        """Connects, and again whenever the connection ends; whatever goes wrong, it ends only with the
        client."""
        failures, delay = 0, 0.0
        while True:
            with self._changed:
                self._changed.wait_for(self._closing.is_set, delay)
                if failures >= TRIES:
                    # One that cannot be had is tried at once when somebody waits for it, else seldom or
                    # never.
                    rest = RARE_DELAY - delay if self._kept else None
                    self._changed.wait_for(lambda: self._closing.is_set() or self._calls, rest)
                elif not self._kept:
                    self._changed.wait_for(lambda: self._closing.is_set() or self._wanted or self._calls)
                if self._closing.is_set():
                    return
                self._wanted = False
            began, answered, greeted = time.monotonic(), self._answered, self._greeted
            problem = self._attempt()
            held = self._greeted > greeted and time.monotonic() - began > STEADY_SECONDS
            if held or self._answered > answered:
                failures, delay = 0, 0.0
                continue
            failures += 1
            delay = min(LONGEST_DELAY, FIRST_DELAY * 2 ** (failures - 1))
            if isinstance(self._refusal or problem, AccessDenied):
                failures = TRIES  # another attempt would meet the same
            if failures >= TRIES:
                self._cannot_be_had(self._refusal or self._explained(problem))

    def _attempt(self) -> ProverError:
        """One connection, from its beginning to its end -> why it ended, or was none."""
        channel: Channel | None = None
        self._refusal = None
        try:
            channel = self._open()
            with self._changed:
                if self._closing.is_set():
                    return ShuttingDown("the verifier's client was closed")
                self._channel = channel
                self._opened += 1
            self._converse(channel)
        except ProverError as error:
            return error
        except OSError as error:
            return DeviceError(f"the verifier cannot be had: {error.strerror or type(error).__name__}")
        except Exception as error:  # no thread, no memory; the text might hold what was sent
            return DeviceError(f"the verifier cannot be had: {type(error).__name__}")
        finally:
            self._detach(channel)
        return ConnectionLost("the verifier ended")

    def _cannot_be_had(self, problem: ProverError) -> None:
        """Tells those who wait, the status, and once the log."""
        with self._changed:
            first, self._problem = self._problem is None, problem
        if self._kept and first and not self._closing.is_set():
            log.warning("%s; it is tried again", problem.message)
        self._fail_calls(problem)

    def _can_be_had(self) -> None:
        with self._changed:
            again, self._problem = self._problem is not None, None
        if self._kept and again:
            log.warning("the verifier can be had again")
        self._ready.set()

    def _detach(self, channel: Channel | None) -> None:
        with self._changed:
            self._channel = self._pid = None
            self._ready.clear()
        if channel is not None:
            channel.close()
        try:
            self._ended()
        except Exception as error:
            log.warning("the verifier's process cannot be waited for: %s", type(error).__name__)

    def _converse(self, channel: Channel) -> None:
        """One connection: greeting, keys, calls that wait; then until it ends."""
        receiver = threading.Thread(
            target=self._receive, args=(channel,), name="gpuprover-verifier-answers", daemon=True
        )
        receiver.start()
        try:
            hello = self._own_call(channel, {"op": "hello"}).result(self._start)
            if hello.get("protocol") != PROTOCOL:
                raise ConnectionLost(f"a verifier of another protocol, {hello.get('protocol')!r:.40}")
            with self._changed:
                keys = dict(self._keys)
                # In place of what was not sent before: all that is not answered.
                self._unsent = deque(self._calls.values())
                self._pid = hello.get("pid")
                self._greeted += 1
            loads = [self._own_call(channel, self._load_request(name, key)) for name, key in keys.items()]
            self._when_done(loads, self._can_be_had)
            self._send_calls(channel)
        except FutureTimeout:
            raise ConnectionLost("the verifier did not answer") from None
        finally:
            channel.close()
            receiver.join()

    @staticmethod
    def _when_done(futures: Sequence[Future[Any]], function: Callable[[], None]) -> None:
        """Calls a function once all futures are done, with whatever result."""
        left = itertools.count(1)

        def done(_: object) -> None:
            if next(left) > len(futures):
                function()

        for future in futures:
            future.add_done_callback(done)
        done(None)

    def _send_calls(self, channel: Channel) -> None:
        """Sends what is called, until the connection ends."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._unsent or channel.closed)
                if channel.closed:
                    return
                call = self._unsent.popleft()
                if call.number not in self._calls:  # the caller has given up
                    continue
                call.sends += 1
                if call.sends > SENDS:
                    del self._calls[call.number]
            if call.sends > SENDS:
                call.future.set_exception(ConnectionLost(f"{SENDS} verifiers ended before they had answered"))
            else:
                self._send(channel, call.frame)

    def _send(self, channel: Channel, frame: bytes) -> None:
        # Where it fails, the receiving thread sees the end of the connection, and the call is sent again.
        with suppress(ConnectionLost, Timeout):
            channel.send_frame(frame, timeout=self._heartbeat)

    def _own_call(self, channel: Channel, request: dict[str, Any]) -> Future[dict[str, Any]]:
        number = next(self._numbers)
        future: Future[dict[str, Any]] = Future()
        with self._changed:
            if channel.closed:  # and whoever receives has told those that were here before
                future.set_exception(ConnectionLost("the verifier ended"))
                return future
            self._own[number] = future
        self._send(channel, encode({"id": number, **request}))
        return future

    def _receive(self, channel: Channel) -> None:
        """Hands out answers until the connection ends, or the verifier is silent for too long."""
        try:
            self._receive_all(channel)
        finally:
            channel.close()
            with self._changed:
                own, self._own = self._own, {}
                self._changed.notify_all()
            for future in own.values():
                future.set_exception(self._refusal or ConnectionLost("the verifier ended"))

    def _receive_all(self, channel: Channel) -> None:
        heard, asked = time.monotonic(), False
        while True:
            # A verifier that is still starting may take its time.
            limit = self._heartbeat if self._pid is not None else max(self._heartbeat, self._start)
            try:
                answer, _ = channel.receive(self._heartbeat / PINGS)
            except Timeout:
                if not (self._calls or self._own or self._kept):
                    heard, asked = time.monotonic(), False
                elif time.monotonic() - heard > limit:
                    log.warning("the verifier has been silent for %.1f s, and is given up", limit)
                    return
                elif not asked:
                    asked = True
                    self._own_call(channel, {"op": "hello"})
                continue
            except ProverError:
                return
            heard, asked = time.monotonic(), False
            self._hand_out(answer)

    def _hand_out(self, answer: dict[str, Any]) -> None:
        number, result = answer.get("id"), answer.get("result")
        error = None if isinstance(result, dict) else from_record(answer.get("error"))
        if not isinstance(number, int):
            self._refusal = error
            return
        with self._changed:
            future = self._own.pop(number, None)
            call = self._calls.pop(number, None) if future is None else None
            if call is not None:
                future, self._answered = call.future, self._answered + 1
        if future is None:  # it was sent twice, or nobody waits any more
            return
        if isinstance(result, dict):
            future.set_result(result)
        else:
            future.set_exception(error)

    def _fail_calls(self, error: ProverError) -> None:
        with self._changed:
            calls, self._calls = self._calls, {}
        for call in calls.values():
            call.future.set_exception(error)

    @staticmethod
    def _load_request(name: str, key: _Key) -> dict[str, Any]:
        return {"op": "load", "name": name, "digest": key.digest, "verification_key": key.document}


def _checked_key(source: KeyLike, expected: str | None) -> _Key:
    from gpuprover.systems.system import is_verification_key, parse_verification_key

    key = source if is_verification_key(source) else parse_verification_key(source)
    if expected is None:  # who knows the digest has looked at the key where it comes from
        for sentence in key.warnings:
            warnings.warn(f"{key.source}: {sentence}", InsecureKeyWarning, stacklevel=3)
    found = key.digest
    if expected is not None and found != expected:
        problem = f"expected {expected[:64]}, found {found}: not the key it should be"
        raise MalformedFile("verification key", "digest", problem, role="verification key")
    return _Key(found, key.document)
