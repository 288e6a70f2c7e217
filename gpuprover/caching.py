"""Things that are worth keeping, within a number of bytes: loaded keys, proofs, answers of the verifier.

A :class:`Cache` forgets what was used longest ago, never what is in use or pinned, and makes a thing once
however many threads ask for it at the same time. Secrets enter a cache's keys through :func:`keyed_digest`.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, fields
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Generic, TypeVar

from gpuprover import forks
from gpuprover.errors import Cancelled, Timeout

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

WAIT_SECONDS = 600.0
POLL_SECONDS = 0.05
DIGEST_BYTES = 32


@dataclass(frozen=True)
class CacheStatistics:
    """What a cache holds, and what it has done so far.

    Attributes:
        entries, bytes: what is kept now.
        capacity: bytes that it may keep; pinned entries and those in use may exceed them.
        pinned: entries that are pinned.
        hits, misses: look-ups that found something, and that did not.
        waits: look-ups that waited for what another thread was making.
        evictions: entries that made room for others, or did not fit alone.
        expired: entries that became too old.
    """

    entries: int
    bytes: int
    capacity: int
    pinned: int
    hits: int
    misses: int
    waits: int
    evictions: int
    expired: int

    def as_dict(self) -> dict[str, int]:
        return asdict(self)

    @classmethod
    def total(cls, caches: Iterable[CacheStatistics]) -> CacheStatistics:
        """Of several caches together, such as those of several processes."""
        columns = [list(column) for column in zip(*map(astuple, caches), strict=True)]
        return cls(*map(sum, columns or [[]] * len(fields(cls))))


class _Entry(Generic[V]):
    __slots__ = ("size", "users", "value")

    def __init__(self, value: V, size: int, users: int = 0) -> None:
        self.value, self.size, self.users = value, size, users


class _Flight(Generic[V]):
    """Something that is being made. Without entry and error at its end, whoever waits tries anew."""

    def __init__(self, users: int = 0) -> None:
        self.thread, self.done = threading.get_ident(), threading.Event()
        self.users = users
        self.entry: _Entry[V] | None = None
        self.error: BaseException | None = None


class Cache(Generic[K, V]):
    """Keeps values by key, within ``capacity`` bytes, for at most ``lifetime`` seconds each.

    All methods may be called from any thread. Values are made, and forgotten ones are freed, while no lock is
    held: nobody waits for another key.

    Args:
        capacity: bytes; with 0 nothing is kept beyond its use, but for what is pinned.
        lifetime: seconds from making a value to forgetting it; None for no such limit.
        clock: seconds that only grow.
    """

    def __init__(
        self, capacity: int, *, lifetime: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._capacity, self._lifetime, self._clock = capacity, lifetime, clock
        self._pins: set[K] = set()
        self._hits = self._misses = self._waits = self._evictions = self._expired = 0
        self._begin()
        forks.in_child(self._begin)

    def _begin(self) -> None:
        """Empty. In a forked process too: who was at it or used something there will not come back."""
        self._lock = threading.Lock()
        self._entries: dict[K, _Entry[V]] = {}
        self._idle: OrderedDict[K, None] = OrderedDict()  # what may be evicted, used longest ago first
        self._expiry: OrderedDict[K, float] = OrderedDict()  # oldest first: all live equally long
        self._flights: dict[K, _Flight[V]] = {}
        self._bytes = 0

    def get(self, key: K) -> V | None:
        """What is kept under the key, or None."""
        with self._lock:
            old = self._expire()
            entry = self._find(key)
            self._misses += entry is None
        del old
        return None if entry is None else entry.value

    def put(self, key: K, value: V, size: int) -> None:
        """Keeps a value of ``size`` bytes in place of what there was."""
        with self._lock:
            old = [*self._expire(), *self._insert(key, _Entry(value, size))]
        del old

    def get_or_make(
        self,
        key: K,
        make: Callable[[], V],
        size: Callable[[V], int],
        *,
        timeout: float = WAIT_SECONDS,
        check: Callable[[], None] | None = None,
    ) -> V:
        """What is kept under the key, or ``make()``, called once for all threads that ask meanwhile.

        A failure reaches all of them and is not kept. If it is the cancellation or the deadline of the one
        that makes, another one of them makes it.

        Args:
            size: the value's bytes.
            timeout: seconds to wait for another thread.
            check: called every 50 ms of such a wait; raises to end it, as ``Job.check`` does.

        Raises:
            Timeout: another thread was still making it.
            RuntimeError: ``make`` has asked for its own key.
        """
        return self._obtain(key, make, size, 0, timeout, check).value

    @contextmanager
    def using(
        self,
        key: K,
        make: Callable[[], V],
        size: Callable[[V], int],
        *,
        timeout: float = WAIT_SECONDS,
        check: Callable[[], None] | None = None,
    ) -> Iterator[V]:
        """:meth:`get_or_make` for the time of a block, in which the entry is not evicted."""
        entry = self._obtain(key, make, size, 1, timeout, check)
        try:
            yield entry.value
        finally:
            self._leave(key, entry)

    def pin(self, key: K) -> None:
        """Whatever is kept under the key, now or later, is not evicted, until :meth:`unpin`."""
        with self._lock:
            self._pins.add(key)
            self._idle.pop(key, None)

    def unpin(self, key: K) -> None:
        with self._lock:
            self._pins.discard(key)
            entry = self._entries.get(key)
            old = [] if entry is None else self._settle(key, entry)
        del old

    def drop(self, key: K) -> bool:
        """Forgets what is kept under the key -> whether there was something.

        Whoever uses it now keeps it; what is being made will not be kept. A pin stays, for what comes next.
        """
        with self._lock:
            self._flights.pop(key, None)
            old = self._remove(key)
        return old is not None

    def shrink(self, to_bytes: int) -> int:
        """Forgets what was used longest ago until at most ``to_bytes`` are kept -> bytes forgotten.

        What is pinned or in use stays.
        """
        with self._lock:
            before = self._bytes
            old = [*self._expire(), *self._evict(to_bytes)]
            freed = before - self._bytes
        del old
        return freed

    def clear(self) -> None:
        """Forgets everything, as :meth:`drop` does."""
        with self._lock:
            self._flights.clear()
            old = [self._remove(key) for key in list(self._entries)]
        del old

    @property
    def statistics(self) -> CacheStatistics:
        with self._lock:
            old = self._expire()
            found = CacheStatistics(
                entries=len(self._entries),
                bytes=self._bytes,
                capacity=self._capacity,
                pinned=len(self._pins & self._entries.keys()),
                hits=self._hits,
                misses=self._misses,
                waits=self._waits,
                evictions=self._evictions,
                expired=self._expired,
            )
        del old
        return found

    def _obtain(
        self,
        key: K,
        make: Callable[[], V],
        size: Callable[[V], int],
        users: int,
        timeout: float,
        check: Callable[[], None] | None,
    ) -> _Entry[V]:
        deadline = time.monotonic() + timeout
        while True:
            with self._lock:
                old = self._expire()
                entry = self._find(key, users)
                flight = self._flights.get(key)
                if entry is None and flight is None:
                    self._misses += 1
                    mine = self._flights[key] = _Flight(users=users)
                elif entry is None and flight is not None:
                    if flight.thread == threading.get_ident():
                        raise RuntimeError(f"to make {key!r}, {key!r} is asked for")
                    self._waits += 1
                    flight.users += users
            del old
            if entry is not None:
                return entry
            if flight is None:
                return self._make(key, mine, make, size)
            made = self._wait(key, flight, users, deadline, check)
            if made is not None:
                return made

    def _make(self, key: K, flight: _Flight[V], make: Callable[[], V], size: Callable[[V], int]) -> _Entry[V]:
        try:
            value = make()
            entry = _Entry(value, size(value))
        except BaseException as error:
            if isinstance(error, Exception) and not isinstance(error, Cancelled | Timeout):
                flight.error = error
            with self._lock:
                if self._flights.get(key) is flight:
                    del self._flights[key]
            flight.done.set()
            raise
        with self._lock:
            entry.users = flight.users
            flight.entry = entry
            old: list[_Entry[V]] = []
            if self._flights.get(key) is flight:
                del self._flights[key]
                old = self._insert(key, entry)
        flight.done.set()
        del old
        return entry

    def _wait(
        self,
        key: K,
        flight: _Flight[V],
        users: int,
        deadline: float,
        check: Callable[[], None] | None,
    ) -> _Entry[V] | None:
        try:
            while not flight.done.wait(max(0.0, min(POLL_SECONDS, deadline - time.monotonic()))):
                if check is not None:
                    check()
                if time.monotonic() >= deadline:
                    raise Timeout("what another thread was making was not ready in time")
        except BaseException:
            if users:
                with self._lock:
                    flight.users -= users
                    entry = flight.entry
                if entry is not None:
                    self._leave(key, entry)
            raise
        if flight.error is not None:
            raise flight.error
        return flight.entry

    def _leave(self, key: K, entry: _Entry[V]) -> None:
        with self._lock:
            entry.users -= 1
            old = self._settle(key, entry) if self._entries.get(key) is entry else []
        del old

    # With the lock held. What these return is freed by the caller, without the lock.

    def _find(self, key: K, users: int = 0) -> _Entry[V] | None:
        entry = self._entries.get(key)
        if entry is not None:
            self._hits += 1
            entry.users += users
            if entry.users:
                self._idle.pop(key, None)
            elif key in self._idle:
                self._idle.move_to_end(key)
        return entry

    def _insert(self, key: K, entry: _Entry[V]) -> list[_Entry[V]]:
        before = self._remove(key)
        old = [] if before is None else [before]
        self._entries[key] = entry
        self._bytes += entry.size
        if self._lifetime is not None:
            self._expiry[key] = self._clock() + self._lifetime
        return old + self._settle(key, entry)

    def _settle(self, key: K, entry: _Entry[V]) -> list[_Entry[V]]:
        """After a change of what may be evicted."""
        if not entry.users and key not in self._pins:
            self._idle[key] = None
            if entry.size > self._capacity:  # it would only drive others out
                self._idle.move_to_end(key, last=False)
        return self._evict(self._capacity)

    def _evict(self, to_bytes: int) -> list[_Entry[V]]:
        old = []
        while self._bytes > to_bytes and self._idle:
            entry = self._remove(next(iter(self._idle)))
            assert entry is not None
            self._evictions += 1
            old.append(entry)
        return old

    def _expire(self) -> list[_Entry[V]]:
        old: list[_Entry[V]] = []
        if not self._expiry:
            return old
        now = self._clock()
        while self._expiry:
            key, expires = next(iter(self._expiry.items()))
            if expires > now:
                break
            entry = self._remove(key)
            assert entry is not None
            self._expired += 1
            old.append(entry)
        return old

    def _remove(self, key: K) -> _Entry[V] | None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry.size
            self._idle.pop(key, None)
            self._expiry.pop(key, None)
        return entry


@lru_cache(maxsize=1)
def _secret() -> bytes:
    """Drawn by each process, and never written anywhere."""
    return os.urandom(DIGEST_BYTES)


def keyed_digest(*parts: bytes | bytearray | memoryview | str | int | Any) -> bytes:
    """32 bytes that stand for the parts, in this process alone.

    BLAKE2b under a key that the process drew at random: who sees a digest cannot try out which witness it
    belongs to. Different sequences of parts have different digests.

    Args:
        parts: text, integers, None, or anything whose bytes lie in one piece, as an array's.
    """
    state = blake2b(key=_secret(), digest_size=DIGEST_BYTES)
    for part in parts:
        if part is None or isinstance(part, str | int):
            kind, data = type(part).__name__, memoryview(str(part).encode("utf-8", "surrogatepass"))
        else:
            view = memoryview(part)
            kind, data = "bytes", view.cast("B") if view.nbytes else memoryview(b"")
        state.update(f"{kind}:{data.nbytes}:".encode())
        state.update(data)
    return state.digest()
