"""The memory of one GPU: a pool with a limit, an arena for each proof, keys that stay between proofs.

Whoever needs memory takes it from an :class:`Allocator`: the device itself, the :class:`Pool` of a GPU, or
the :class:`Arena` of a proof, which is one allocation of the pool and asks the device for nothing meanwhile.
Parts of keys lie in the pool as :class:`Resident` entries. Those that no proof uses are given up when memory
is needed elsewhere: tables of multiples first, then what was used longest ago.
"""

from __future__ import annotations

import threading
import weakref
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from gpuprover.cuda.device import MAIN, Address, Allocator, Device, Mark
from gpuprover.errors import DeviceError, OutOfMemory

T = TypeVar("T")

MIB = 1 << 20
ALIGNMENT = 256
KEPT = 4
"""What was released goes back to the device before another size is taken, if it is more than a quarter of the
limit. A prediction."""
SHARE = 0.95
"""The share of free memory that a pool takes at most: launches need some, too. A prediction."""


def aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


class Source(Allocator, Protocol):
    """An allocator that takes memory back from a finaliser, too."""

    def discard(self, address: Address) -> None:
        """:meth:`release`, later; may be called at any moment in any thread."""
        ...


class Block:
    """Device memory that is given back by :meth:`free`, or when nobody refers to it any more."""

    __slots__ = ("__weakref__", "_address", "_source")

    def __init__(self, source: Source, size: int) -> None:
        self._source = source
        self._address: Address | None = None
        self._address = source.allocate(size)

    @property
    def address(self) -> Address:
        """Where it lies.

        Raises:
            ValueError: it has been given back.
        """
        if self._address is None:
            raise ValueError("this memory of the device has been given back")
        return self._address

    def swap(self, other: Block) -> None:
        """Each takes the other's memory; both are of one size."""
        self._source, other._source = other._source, self._source
        self._address, other._address = other._address, self._address

    def free(self) -> None:
        """Gives it back; once more does nothing."""
        address, self._address = self._address, None
        if address is not None:
            self._source.release(address)

    def __del__(self) -> None:
        if self._address is not None:
            self._source.discard(self._address)


class Pool:
    """What one process may take of a GPU's memory.

    The limit is hard: what a caller set, and never more than a share of what is free on the device, where
    other processes work too. What is released is kept for the next allocation of its size: neither asks the
    device for anything then, or waits for it. It goes back to the device when other sizes need the room.

    Attributes:
        used: bytes that are allocated.
        kept: bytes that were released, and that the pool still has.
        peak: the most that both have been together.
        lock: held by whoever changes what lies in the pool; reentrant.
        reclaim: called where memory is missing; gives something up and returns True, or returns False.
    """

    def __init__(self, device: Device, limit: int | None = None) -> None:
        self.device = device
        self.used = self.kept = self.peak = 0
        self.reclaim: Callable[[], bool] = lambda: False
        self._setting = limit
        self._sizes: dict[Address, int] = {}
        self._free: dict[int, list[Address]] = {}
        self._discarded: deque[Address] = deque()
        self.lock = threading.RLock()

    @property
    def held(self) -> int:
        """Bytes of the device that the pool has."""
        return self.used + self.kept

    @property
    def limit(self) -> int:
        """Bytes that may be taken in all, now."""
        room = self.held + int(SHARE * self.device.free_memory())
        return room if self._setting is None else min(self._setting, room)

    @property
    def available(self) -> int:
        """Bytes that could still be taken."""
        with self.lock:
            self._collect()
            return max(0, self.limit - self.used)

    def allocate(self, size: int) -> Address:
        """See :class:`Allocator`; gives idle entries up for it.

        Work of the device's main stream may still be on its way there. Another stream has to wait for that
        one.
        """
        size = aligned(size)
        with self.lock:
            self._collect()
            address = self._again(size)
            if address is None:
                address = self._new(size)
            self._sizes[address] = size
            self.used += size
            self.peak = max(self.peak, self.held)
            return address

    def _again(self, size: int) -> Address | None:
        """What was released last of this size."""
        addresses = self._free.get(size)
        if not addresses or self.device.lost:
            return None
        self.kept -= size
        return addresses.pop()

    def _new(self, size: int) -> Address:
        if self.kept > self.limit // KEPT:
            self.trim()
        while True:
            left = max(0, self.limit - self.held)
            if size <= left:
                try:
                    return self.device.allocate(size)
                except OutOfMemory:  # another process was faster, or what is free lies in pieces
                    if not (self.trim() or self.reclaim()):
                        raise
            elif not (self.trim() or self.reclaim()):
                raise OutOfMemory(needs(self.device.name, "an allocation", size, left))

    def release(self, address: Address) -> None:
        """See :class:`Allocator`; side streams have done what they were asked for there."""
        with self.lock:
            size = self._sizes.pop(address)
            self.used -= size
            self.kept += size
            self._free.setdefault(size, []).append(address)
            if self.device.lost:
                self.trim()

    def trim(self) -> bool:
        """Gives what was released back to the device, after all of its work; False if there is nothing."""
        with self.lock:
            some = bool(self.kept)
            while self._free:
                size, addresses = self._free.popitem()
                for address in addresses:
                    self.kept -= size
                    # A device that is lost has lost its memory; why is known already.
                    with suppress(DeviceError):
                        self.device.release(address)
            return some

    def discard(self, address: Address) -> None:
        self._discarded.append(address)

    def _collect(self) -> None:
        while self._discarded:
            self.release(self._discarded.popleft())

    def collect(self) -> None:
        """Takes back what finalisers have left."""
        with self.lock:
            self._collect()


def needs(device: str, what: str, need: int, left: int) -> str:
    """The line that says how much memory is missing."""
    return f"{device}: {what} needs {-(-need // MIB)} MiB of device memory, {left // MIB} MiB are left"


class Arena:
    """A range of memory with first-fit allocations of multiples of 256 bytes.

    Attributes:
        extent: bytes from the start to the end of the furthest allocation so far.
        held: bytes that are allocated.
        start, size: the range's first address and bytes.
    """

    def __init__(self, start: int, size: int) -> None:
        self.start, self.size = start, size
        self.extent = self.held = 0
        self._taken: list[tuple[int, int]] = []
        self._open = True
        self._discarded: deque[Address] = deque()

    def allocate(self, size: int) -> Address:
        """The first gap that is large enough.

        Raises:
            OutOfMemory: there is none; which means that the proof was planned too small.
        """
        while self._discarded:
            self.release(self._discarded.popleft())
        size, at = aligned(size), 0
        place = 0
        for begin, end in self._taken:
            if begin - at >= size:
                break
            place, at = place + 1, end
        if not self._open or at + size > self.size:
            raise OutOfMemory(f"the arena of a proof: no {size} bytes beside {self.held} of {self.size}")
        self._taken.insert(place, (at, at + size))
        self.extent, self.held = max(self.extent, at + size), self.held + size
        return Address(self.start + at)

    def release(self, address: Address) -> None:
        if not self._open:
            return
        at = address - self.start
        begin, end = self._taken.pop(bisect_left(self._taken, (at, 0)))
        assert begin == at
        self.held -= end - at

    def discard(self, address: Address) -> None:
        self._discarded.append(address)

    def close(self) -> int:
        """Takes back all that is left -> how many bytes that was. Further calls of release do nothing."""
        while self._discarded:
            self.release(self._discarded.popleft())
        self._open = False
        return self.held


class Scope:
    """An allocator for one piece of work; what it has not given back at the end, the scope does."""

    def __init__(self, source: Allocator) -> None:
        self._source = source
        self._taken: set[Address] = set()

    def allocate(self, size: int) -> Address:
        address = self._source.allocate(size)
        self._taken.add(address)
        return address

    def release(self, address: Address) -> None:
        self._taken.remove(address)
        self._source.release(address)

    def __enter__(self) -> Scope:
        return self

    def __exit__(self, *exception: object) -> None:
        while self._taken:
            self._source.release(self._taken.pop())


class Within:
    """An allocator whose first allocation is a place that is there already; others come from elsewhere."""

    def __init__(self, place: Address, source: Allocator) -> None:
        self._place, self._source = place, source
        self._first = True

    def allocate(self, size: int) -> Address:
        if self._first:
            self._first = False
            return self._place
        return self._source.allocate(size)

    def release(self, address: Address) -> None:
        if address != self._place:
            self._source.release(address)


class Resident:
    """Something that lies in the pool between proofs.

    Attributes:
        kind: what it is, as a key for lookups within its owner.
        bound: where on the host its data came from; None before.
        block: its memory.
        ready: the moment from which on anybody may work there; None if it has passed.
        value: what was made of it; None until it has been filled.
        table: whether it could do with less: it is given up before others.
        pins: proofs that use it now.
        gone: whether it has been given up.
    """

    def __init__(self, kind: Hashable, block: Block, size: int, table: bool) -> None:
        self.kind, self.block, self.size, self.table = kind, block, size, table
        self.ready: Mark | None = None
        self.value: Any = None
        self.bound: Hashable = None
        self.pins = 0
        self.used = 0
        self.gone = False
        self.lock = threading.Lock()

    def filled(self, device: Device, source: Hashable, make: Callable[[], T]) -> T:
        """The value that was made of a ``source``, such as data that begin at an address; made if it is not.

        What others make there, or have had there, is done before the main stream of ``device`` goes on.
        """
        with self.lock:
            if self.value is not None and self.bound != source:
                # Nobody keeps account of who reads it; which happens only where an owner's data have moved.
                self.value = None
                device.synchronize()
            if self.ready is not None:
                device.wait(MAIN, self.ready)
            if self.value is None:
                try:
                    self.value, self.bound = make(), source
                    self.ready = device.mark()
                except BaseException:
                    self.value = None
                    with suppress(DeviceError):
                        self.ready = device.mark()
                    raise
            found: T = self.value
            return found


class Residents:
    """All entries of a pool, by owner; :attr:`Pool.lock` guards them."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._entries: dict[int, list[Resident]] = {}
        self._owners: dict[int, weakref.ref[object]] = {}
        self._notes: dict[int, Any] = {}
        self._dead: deque[int] = deque()
        self._clock = 0

    def all(self) -> list[Resident]:
        with self._pool.lock:
            self._bury()
            return [entry for entries in self._entries.values() for entry in entries]

    def of(self, owner: object) -> list[Resident]:
        """The owner's entries, oldest first."""
        with self._pool.lock:
            self._bury()
            return list(self._entries.get(id(owner), ()))

    def add(self, owner: object, kind: Hashable, size: int, table: bool) -> Resident:
        """A new entry, pinned once and not filled. It goes when the owner does.

        Raises:
            OutOfMemory: there is no room, whatever else is given up.
        """
        with self._pool.lock:
            self._bury()
            entry = Resident(kind, Block(self._pool, size), aligned(size), table)
            entry.ready = self._pool.device.mark()  # see Pool.allocate
            key = id(owner)
            if key not in self._owners:
                self._owners[key] = weakref.ref(owner, lambda _: self._dead.append(key))
            self._entries.setdefault(key, []).append(entry)
            self.pin(entry)
            return entry

    def note(self, owner: object, what: Any) -> None:
        """Keeps something beside the owner's entries, as long as it has some."""
        with self._pool.lock:
            if id(owner) in self._owners:
                self._notes[id(owner)] = what

    def noted(self, owner: object) -> Any:
        """What :meth:`note` was given last; None for nothing."""
        with self._pool.lock:
            self._bury()
            return self._notes.get(id(owner))

    def pin(self, entry: Resident) -> None:
        """A proof uses the entry, until :meth:`unpin`."""
        with self._pool.lock:
            self._clock += 1
            entry.pins, entry.used = entry.pins + 1, self._clock

    def unpin(self, entry: Resident) -> None:
        with self._pool.lock:
            entry.pins -= 1

    def drop(self, entry: Resident) -> None:
        """Gives an entry up, and its memory back to the device; once more does nothing."""
        with self._pool.lock:
            for entries in self._entries.values():
                if entry in entries:
                    entries.remove(entry)
            self._forget(entry)
            self._pool.trim()

    def reclaim(self) -> bool:
        """Gives up one entry that no proof uses; False if there is none."""
        with self._pool.lock:
            idle = [entry for entry in self.all() if not entry.pins]
            if not idle:
                return False
            self.drop(min(idle, key=lambda entry: (not entry.table, entry.used)))
            return True

    def clear(self) -> None:
        """Gives up all that no proof uses: the device is lost, or is handed back."""
        while self.reclaim():
            pass
        self._pool.trim()

    def _forget(self, entry: Resident) -> None:
        entry.value, entry.gone = None, True
        entry.block.free()

    def _bury(self) -> None:
        """Gives up what dead owners have left."""
        while self._dead:
            key = self._dead.popleft()
            # A new owner may have the old one's id.
            if key in self._owners and self._owners[key]() is None:
                del self._owners[key]
                self._notes.pop(key, None)
                for entry in self._entries.pop(key, []):
                    self._forget(entry)
                self._pool.trim()
