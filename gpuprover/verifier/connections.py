"""The connections of a verifier: one thread reads and writes all of them, and no client can hold what all
share.

- Room. Messages up to :data:`SMALL_MESSAGE` are always read. The bytes of longer ones count as they come, not
  as they are announced, against ``Limits.buffered``, of which one connection gets half. What does not fit
  stays in the socket; one message at a time, the shortest first, may be read beyond the limit, so that all
  get through.
- Time. A message that has begun has to go on (``Limits.stall``) and to come at :data:`SLOWEST` bytes a
  second; one that holds room for which others wait has to come at :data:`SLOWEST_PRESSED`. So has whoever is
  answered to take it.
- Places. Where there are no more, a newcomer gets that of the connection that has been idle longest, of the
  peer with the most connections; of equals only an idle one has to go.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from gpuprover.errors import ProverError, QueueFull, to_record
from gpuprover.messages import MAX_FRAME, PIECE, BrokenMessage, Frames, Seal, encode
from gpuprover.verifier.address import Listener

SMALL_MESSAGE = 1 << 16
"""Bytes up to which a message is read at once: whatever waits, a question of a few lines is answered."""
UNTRUSTED_MESSAGE = 1 << 12
"""Bytes of a message from whoever has not shown yet that it knows the secret."""
UNTAKEN = 1 << 18
"""Bytes of answers that a client has not taken; beyond, nothing more is read from it."""
SLOWEST = 1 << 16
"""Bytes a second."""
SLOWEST_PRESSED = 1 << 18
PRESSED_SECONDS = 5.0
"""Seconds of reading before a message can be too slow for those that wait for its room."""
AGED_SECONDS = 10.0
"""A message that has waited so long for room is not passed by shorter ones any more."""
AUTHENTICATION_SECONDS = 5.0
PIECES = 4
"""Pieces of one connection that are read before the others have their turn."""
ACCEPTED = 16
ACCEPT_PAUSE = 0.2
"""Seconds without new connections after the system had no descriptor for one."""
TICK, LONG_TICK = 1.0, 30.0
"""Seconds between two looks at the clock, while something is under way and while nothing is."""


@dataclass(frozen=True)
class Limits:
    """What a verifier holds for its clients at most.

    Attributes:
        threads: verifications at once.
        connections: beyond, a newcomer takes the place of an idle one, or else gets QueueFull.
        waiting: requests that wait; beyond, those of a connection that has its share are answered QueueFull.
        outstanding: unanswered requests of one connection; beyond, nothing more is read from it.
        buffered: bytes of messages beyond :data:`SMALL_MESSAGE` that wait or are being read, one message
            aside.
        message: bytes of one message.
        keys: bytes of the messages that keys came in; a quarter of them for one connection.
        grace: seconds that running and waiting requests get after SIGTERM.
        idle: seconds after which a connection that asks nothing is closed.
        stall: seconds that a message may stand still, or an answer that is not taken.
    """

    threads: int = 1
    connections: int = 128
    waiting: int = 1024
    outstanding: int = 64
    buffered: int = 16 << 20
    message: int = MAX_FRAME
    keys: int = 128 << 20
    grace: float = 20.0
    idle: float = 600.0
    stall: float = 15.0


@dataclass(frozen=True)
class Message:
    """A message that has come whole.

    Attributes:
        body: its JSON.
        held: bytes of the shared room that are its until it is answered.
        beyond: it was read beyond the limit.
    """

    body: bytes
    held: int
    beyond: bool


@dataclass(eq=False)
class Connection:
    """A connected client. Only the thread of :meth:`Connections.run` changes it.

    Attributes:
        peer: who it is: a user, an address.
        local: over a Unix socket, whose peer the system tells.
        may_end: it may end the server.
        owner: who started the server; it keeps its place, and the server ends with it.
        trusted: it may ask; over TCP with a secret, only once it has shown that it knows it.
        parsing: a message of it is looked at elsewhere, and nothing more is read before that is done.
    """

    socket: socket.socket
    peer: str
    local: bool
    owner: bool
    trusted: bool
    may_end: bool
    frames: Frames = field(default_factory=Frames)
    seal: Seal | None = None
    state: Any = None
    closed: bool = False
    closing: bool = False
    parsing: bool = False
    outstanding: int = 0
    held: int = 0
    """Bytes of the shared room: of whole messages, and of the one that is coming."""
    coming: int = 0
    events: int = 0
    out: bytearray = field(default_factory=bytearray)
    active: float = 0.0
    """When it last asked something or was answered."""
    opened: float = 0.0
    began: float = 0.0
    """When the message that is coming began, later by the time in which it could not be read."""
    progress: float = 0.0
    read: int = 0
    paused: float | None = None
    blocked: float | None = None
    out_began: float = 0.0
    out_progress: float = 0.0
    out_taken: int = 0

    @property
    def idle(self) -> bool:
        return not (self.outstanding or self.frames.begun or self.out or self.parsing)


class Connections:
    """All connections, and the loop over them.

    Args:
        limits: see there.
        handle: called with every message that came whole, in this thread; it is answered once, by
            :meth:`answer`.
        gone: called with a connection that has ended.
        tend: called now and then, and after each message from another thread.
    """

    def __init__(
        self,
        limits: Limits,
        handle: Callable[[Connection, Message], None],
        gone: Callable[[Connection], None],
        tend: Callable[[], None],
        *,
        secret: bytes | None = None,
    ) -> None:
        self._limits, self._handle, self._gone, self._tend = limits, handle, gone, tend
        self._secret = secret
        self._selector = selectors.DefaultSelector()
        self._listeners: list[Listener] = []
        self._accepting = False
        self._accept_after = 0.0
        self._all: set[Connection] = set()
        self._blocked: set[Connection] = set()
        self._beyond: Connection | None = None
        """Whose message may come beyond the limit."""
        self._beyond_waits = False
        """Whether one that came so is not answered yet."""
        self._held = 0
        self._posted: deque[Callable[[], None]] = deque()
        self._wake_read, self._wake_write = os.pipe()
        for end in (self._wake_read, self._wake_write):
            os.set_blocking(end, False)
        self._thread: int | None = None
        self._looked = time.monotonic()
        self.counters = dict.fromkeys(("accept_failures", "evicted", "dropped", "faults"), 0)

    # For any thread --------------------------------------------------------------------

    @property
    def wake_descriptor(self) -> int:
        """Of a pipe: a byte written to it has :meth:`step` return."""
        return self._wake_write

    @property
    def count(self) -> int:
        return len(self._all)

    @property
    def held(self) -> int:
        """Bytes of the shared room that are taken."""
        return self._held

    def wake(self) -> None:
        with suppress(OSError):  # a full pipe wakes as well
            os.write(self._wake_write, b"\0")

    def answer(self, connection: Connection, frame: bytes | None, message: Message) -> None:
        """Sends the answer to a message; None ends the connection. Every message is answered once, whatever
        became of its connection."""
        if threading.get_ident() == self._thread:
            self._answered(connection, frame, message)
        else:
            self._posted.append(lambda: self._answered(connection, frame, message))
            self.wake()

    def parsed(self, connection: Connection) -> None:
        """Says that a connection for which ``parsing`` was set may be read again."""
        self._posted.append(lambda: self._parsed(connection))
        self.wake()

    # The loop's thread ------------------------------------------------------------------

    def listen(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def start(self) -> None:
        self._thread = threading.get_ident()
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._accept_again()

    def step(self, longest: float) -> None:
        """Waits for something to do, ``longest`` seconds at most, and does it."""
        busy = self._blocked or any(not (c.idle and c.trusted) for c in self._all)
        tick = min(TICK, self._limits.stall / 4) if busy else min(LONG_TICK, self._limits.idle / 4)
        if not self._accepting and self._listeners:
            tick = min(tick, max(0.0, self._accept_after - time.monotonic()))
        for key, events in self._selector.select(max(0.0, min(tick, longest))):
            if isinstance(key.data, Connection):
                self._guarded(key.data, events)
            elif isinstance(key.data, Listener):
                self._accept(key.data)
            else:
                with suppress(OSError):
                    os.read(self._wake_read, 4096)
        todo: list[Callable[[], None]] = []
        now = time.monotonic()
        if not self._accepting and now >= self._accept_after:
            todo.append(self._accept_again)
        if now - self._looked >= tick:
            self._looked = now
            todo.append(self._sweep)
        while self._posted:
            todo.append(self._posted.popleft())
        for function in (*todo, self._tend):
            try:
                function()
            except Exception:  # a fault of ours, or no memory: the loop goes on
                self.counters["faults"] += 1

    def stop_listening(self) -> None:
        self._accept_after = float("inf")
        self._accept_no_more()
        for listener in self._listeners:
            listener.close()

    @property
    def unsent(self) -> bool:
        """Whether some client has not taken all of its answers."""
        return bool(self._posted) or any(c.out for c in self._all)

    def close(self) -> None:
        self.stop_listening()
        for connection in list(self._all):
            self.drop(connection)
        self._selector.close()

    # Coming and going -----------------------------------------------------------------------

    def connect(
        self, connected: socket.socket, *, local: bool, owner: bool, peer: str, may_end: bool = False
    ) -> None:
        now = time.monotonic()
        connected.setblocking(False)
        trusted = local or self._secret is None
        connection = Connection(connected, peer, local, owner, trusted, may_end, opened=now, active=now)
        connection.frames.limit = self._limits.message if trusted else UNTRUSTED_MESSAGE
        self._all.add(connection)
        self._watch(connection)

    def _accept(self, listener: Listener) -> None:
        for _ in range(ACCEPTED):
            try:
                connected, _ = listener.socket.accept()
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                return
            except OSError as error:
                self.counters["accept_failures"] += 1
                if error.errno == errno.EMFILE and self._make_place(None):
                    continue
                # The listener would be ready all the while: it waits.
                self._accept_after = time.monotonic() + ACCEPT_PAUSE
                self._accept_no_more()
                return
            try:
                self._newcomer(listener, connected)
            except Exception:
                self.counters["faults"] += 1
                connected.close()

    def _newcomer(self, listener: Listener, connected: socket.socket) -> None:
        local = listener.address.path is not None
        peer = listener.admitted(connected)
        if peer is None:
            connected.close()
            return
        if not local:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if len(self._all) >= self._limits.connections and not self._make_place(peer):
            full = QueueFull(f"the verifier has {self._limits.connections} connections, as many as it takes")
            with suppress(OSError):
                connected.setblocking(False)
                connected.send(encode({"id": None, "error": to_record(full)}))
            connected.close()
            return
        self.connect(connected, local=local, owner=False, may_end=listener.may_end(peer), peer=peer)

    def _make_place(self, peer: str | None) -> bool:
        """Ends a connection in favour of a newcomer -> whether one could be.

        Args:
            peer: who comes; None if nobody knows, without a descriptor. Then a peer's only connection stays.
        """
        counts = Counter(c.peer for c in self._all if not c.owner)
        mine = 1 if peer is None else counts[peer]
        most, now = max(counts.values(), default=0), time.monotonic()

        def stands_still(c: Connection) -> bool:
            return c.idle or (not c.outstanding and c.frames.begun and now - c.began > self._limits.stall)

        # Nobody gets a place at the cost of a peer that has no more connections than itself.
        choice = [c for c in self._all if not c.owner and (c.peer == peer or counts[c.peer] > mine)]
        still = [c for c in choice if stands_still(c)]
        if not still and most > max(mine + 1, self._limits.connections // 2):
            still = [c for c in choice if counts[c.peer] == most]
        if not still:
            return False
        self.counters["evicted"] += 1
        self.drop(min(still, key=lambda c: (-counts[c.peer], c.active)))
        return True

    def _accept_no_more(self) -> None:
        if self._accepting:
            self._accepting = False
            for listener in self._listeners:
                with suppress(KeyError, ValueError):
                    self._selector.unregister(listener.socket)

    def _accept_again(self) -> None:
        self._accepting = True
        try:
            for listener in self._listeners:
                self._selector.register(listener.socket, selectors.EVENT_READ, listener)
        except Exception:
            # The system has no room to watch one: all are tried again, or it would be heard never more.
            self._accept_no_more()
            self._accept_after = time.monotonic() + ACCEPT_PAUSE
            raise

    def drop(self, connection: Connection) -> None:
        """Ends a connection at once."""
        if connection.closed:
            return
        connection.closed = True
        self._all.discard(connection)
        self._unwatch(connection)
        connection.socket.close()
        self._unblock(connection)
        self._give(connection, connection.coming)
        connection.coming = 0
        if self._beyond is connection:
            self._beyond = None
        self._gone(connection)
        self._look_at_blocked()

    def refuse(self, connection: Connection, problem: ProverError) -> None:
        """Says what is wrong with what came, and ends the connection."""
        connection.closing = True
        self._say(connection, encode({"id": None, "error": to_record(problem)}))

    # Reading -------------------------------------------------------------------------------

    def _guarded(self, connection: Connection, events: int) -> None:
        if connection.closed:  # since the selector has reported it
            return
        try:
            if events & selectors.EVENT_WRITE:
                self._write(connection)
            if events & selectors.EVENT_READ and not connection.closed:
                self._read(connection)
        except Exception:
            # A fault of ours, or no memory: this connection ends, and no other.
            self.counters["faults"] += 1
            self.drop(connection)

    def _read(self, connection: Connection) -> None:
        for _ in range(PIECES):
            if connection.closed or not self._may_read(connection):
                break
            frames = connection.frames
            try:
                data = connection.socket.recv(frames.wanted)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                data = b""
            if not data:
                self.drop(connection)
                return
            now = time.monotonic()
            if not frames.begun:
                connection.began, connection.read = now, 0
            connection.progress = now
            connection.read += len(data)
            if frames.size > SMALL_MESSAGE:
                self._take(connection, len(data))
            try:
                body = frames.feed(data)
            except BrokenMessage as error:
                self.refuse(connection, error)
                break
            if body is not None:
                self._came(connection, body)
        if not connection.closed:
            self._watch(connection)

    def _came(self, connection: Connection, body: bytes) -> None:
        beyond = self._beyond is connection
        if beyond:
            self._beyond, self._beyond_waits = None, True
        message = Message(body, connection.coming, beyond)
        connection.coming = 0
        connection.active = time.monotonic()
        connection.outstanding += 1
        self._handle(connection, message)

    def _ready(self, connection: Connection) -> bool:
        """Whether it may be read as far as it alone is concerned."""
        return not (
            connection.closed
            or connection.closing
            or connection.parsing
            or connection.outstanding >= self._limits.outstanding
            or len(connection.out) > UNTAKEN
        )

    def _may_read(self, connection: Connection) -> bool:
        ready = self._ready(connection)
        may = ready and self._has_room(connection)
        now = time.monotonic()
        if ready and not may and connection.blocked is None:
            connection.blocked = now
            self._blocked.add(connection)
            self._look_at_blocked()
            may = self._has_room(connection)
        # The time in which nothing is read from it is not the client's.
        if connection.frames.begun:
            if not may and connection.paused is None:
                connection.paused = now
            elif may and connection.paused is not None:
                connection.began += now - connection.paused
                connection.progress = now
                connection.paused = None
        return may

    def _has_room(self, connection: Connection) -> bool:
        frames = connection.frames
        if frames.size <= SMALL_MESSAGE or self._beyond is connection:
            return True
        more = frames.wanted
        if connection.coming + more <= SMALL_MESSAGE:
            return True
        limit = self._limits.buffered
        return self._held + more <= limit and connection.held + more <= limit // 2

    def _look_at_blocked(self) -> None:
        """Lets those read on for which there is room, and one for which there is none."""
        if not self._blocked:
            return
        if self._beyond is None and not self._beyond_waits:
            now = time.monotonic()

            def rank(c: Connection) -> tuple[bool, float]:
                since = now if c.blocked is None else c.blocked
                aged = now - since > AGED_SECONDS
                return not aged, since if aged else float(c.frames.size)

            self._beyond = min(filter(self._ready, self._blocked), key=rank, default=None)
        for connection in list(self._blocked):
            if self._has_room(connection):
                self._unblock(connection)
                if not connection.closed:
                    self._watch(connection)

    def _unblock(self, connection: Connection) -> None:
        self._blocked.discard(connection)
        connection.blocked = None

    def _take(self, connection: Connection, size: int) -> None:
        self._held += size
        connection.held += size
        connection.coming += size

    def _give(self, connection: Connection, size: int) -> None:
        self._held -= size
        connection.held -= size

    # Answering -----------------------------------------------------------------------------

    def _answered(self, connection: Connection, frame: bytes | None, message: Message) -> None:
        self._give(connection, message.held)
        if message.beyond:
            self._beyond_waits = False
        connection.outstanding -= 1
        connection.active = time.monotonic()
        if frame is None:
            self.drop(connection)
        elif not connection.closed:
            try:
                self._say(connection, frame)
            except Exception:  # no memory, say
                self.counters["faults"] += 1
                self.drop(connection)
        self._look_at_blocked()

    def _parsed(self, connection: Connection) -> None:
        connection.parsing = False
        if not connection.closed:
            self._watch(connection)

    def _say(self, connection: Connection, frame: bytes) -> None:
        if not connection.out:
            connection.out_began = connection.out_progress = time.monotonic()
            connection.out_taken = 0
        connection.out += frame
        if connection.seal is not None:
            connection.out += connection.seal.tag(frame)
        self._write(connection)
        if not connection.closed:
            self._watch(connection)

    def _write(self, connection: Connection) -> None:
        while connection.out:
            try:
                sent = connection.socket.send(memoryview(connection.out)[:PIECE])
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                self.drop(connection)
                return
            del connection.out[:sent]
            connection.out_progress = time.monotonic()
            connection.out_taken += sent
        if connection.closing and not connection.out:
            # What it has sent and nobody reads would make the system take the answer back.
            with suppress(OSError):
                connection.socket.shutdown(socket.SHUT_WR)
                for _ in range(PIECES):
                    if not connection.socket.recv(PIECE):
                        break
            self.drop(connection)
            return
        self._watch(connection)

    def _watch(self, connection: Connection) -> None:
        """Has the selector report what there may be to do with it."""
        events = selectors.EVENT_READ if self._may_read(connection) else 0
        events |= selectors.EVENT_WRITE if connection.out else 0
        if connection.closed or events == connection.events:
            return
        if not events:
            self._unwatch(connection)
        elif connection.events:
            self._selector.modify(connection.socket, events, connection)
        else:
            self._selector.register(connection.socket, events, connection)
        connection.events = events

    def _unwatch(self, connection: Connection) -> None:
        if connection.events:
            with suppress(KeyError, ValueError):
                self._selector.unregister(connection.socket)
        connection.events = 0

    # Time ----------------------------------------------------------------------------------

    def _sweep(self) -> None:
        now, pressed = time.monotonic(), bool(self._blocked)
        for connection in list(self._all):
            if not connection.closed and self._overdue(connection, now, pressed):
                self.counters["dropped"] += 1
                self.drop(connection)
        self._look_at_blocked()

    def _overdue(self, c: Connection, now: float, pressed: bool) -> bool:
        stall = self._limits.stall
        if not c.trusted and now - c.opened > AUTHENTICATION_SECONDS:
            return True
        if c.out:
            if now - c.out_progress > stall:
                return True
            if c.out_taken < (now - c.out_began - stall) * SLOWEST:
                return True
        if c.frames.begun and c.paused is None and c.blocked is None:
            took = now - c.began
            if now - c.progress > stall or c.read < (took - stall) * SLOWEST:
                return True
            if pressed and c.coming and took > PRESSED_SECONDS and c.read < took * SLOWEST_PRESSED:
                return True
        return c.idle and not c.owner and now - c.active > self._limits.idle
