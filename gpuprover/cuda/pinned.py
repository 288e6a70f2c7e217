"""Page-locked memory of the host, for data that a GPU takes from where they lie, without a copy in between.

Witnesses lie there. An array's memory is overwritten with zeros as soon as nobody refers to it any more, and
serves the next one of its size then.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from bisect import bisect_right
from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

UNIT = 64 << 10
"""Sizes are multiples of so many bytes."""
MOST = 1 << 30
"""Bytes that one pool pins at once; larger witnesses lie in ordinary memory. A prediction."""


class PinnedPool:
    """Arrays in page-locked memory; any number of threads.

    Args:
        allocate: size -> address of so many bytes; None where the system pins no more.
        free: gives that back.
        limit: bytes that may be pinned at once.

    Attributes:
        held: bytes that are pinned, in use or not.
    """

    def __init__(
        self, allocate: Callable[[int], int | None], free: Callable[[int], None], limit: int = MOST
    ) -> None:
        self.held = 0
        self._allocate, self._give_back, self._limit = allocate, free, limit
        self._free: dict[int, list[int]] = {}
        self._starts: list[int] = []
        self._used: list[tuple[int, weakref.ref[ctypes.Array[ctypes.c_ubyte]]]] = []
        self._unused: deque[tuple[int, int]] = deque()
        self._lock = threading.Lock()

    def take(self, size: int) -> NDArray[np.uint8] | None:
        """``size`` bytes, at least 1, that are zero or were never used; None where no more may be pinned."""
        room = -(-size // UNIT) * UNIT
        with self._lock:
            self._collect()
            free = self._free.get(room)
            start = free.pop() if free else self._new(room)
            if start is None:
                return None
            memory = (ctypes.c_ubyte * size).from_address(start)
            unused = self._unused

            def wipe(_: object) -> None:
                # At any moment, in any thread: nothing here waits for anybody.
                ctypes.memset(start, 0, size)
                unused.append((start, room))

            at = bisect_right(self._starts, start)
            self._starts.insert(at, start)
            self._used.insert(at, (size, weakref.ref(memory, wipe)))
            return np.ctypeslib.as_array(memory)

    def holder(self, start: int, size: int) -> object | None:
        """What keeps a range of memory as it is; None if the range is no part of an array of this pool."""
        if not self._used:
            return None
        with self._lock:
            at = bisect_right(self._starts, start) - 1
            if at < 0:
                return None
            length, memory = self._used[at]
            return memory() if start + size <= self._starts[at] + length else None

    def _new(self, room: int) -> int | None:
        while self.held + room > self._limit:
            if not self._give_up():
                return None
        while (start := self._allocate(room)) is None:
            if not self._give_up():
                return None
        self.held += room
        return start

    def _give_up(self) -> bool:
        """Unpins memory that nobody uses; False if there is none."""
        for room, free in self._free.items():
            if free:
                self._give_back(free.pop())
                self.held -= room
                return True
        return False

    def _collect(self) -> None:
        """Takes back what arrays that are gone have left."""
        while self._unused:
            start, room = self._unused.popleft()
            at = bisect_right(self._starts, start) - 1
            del self._starts[at], self._used[at]
            self._free.setdefault(room, []).append(start)
