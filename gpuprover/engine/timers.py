"""Actions that are due at a time, for an owner who has a clock and says when to look at it."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count

SPARE = 32
"""Cancelled timers beyond half of all that may lie about before they are swept out."""


class Timer:
    """An action that happens once, unless it is cancelled; :meth:`Timers.after` makes one."""

    __slots__ = ("_action", "_timers")

    def __init__(self, timers: Timers, action: Callable[[], None]) -> None:
        self._timers = timers
        self._action: Callable[[], None] | None = action

    @property
    def waits(self) -> bool:
        """Whether it has neither happened nor been cancelled."""
        return self._action is not None

    def cancel(self) -> None:
        """Calls it off, if it has not happened; what the action refers to is let go at once."""
        if self._action is not None:
            self._action = None
            self._timers._sweep()

    def _happen(self) -> None:
        action, self._action = self._action, None
        if action is not None:
            action()


class Timers:
    """Timers in the order in which they are due; at the same time, in the order in which they were made.

    Not for several threads at once: its owner has the lock.

    Args:
        clock: seconds that never go backwards.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = count()
        self._cancelled = 0

    def __len__(self) -> int:
        """Entries that are held, cancelled ones among them."""
        return len(self._heap)

    def after(self, seconds: float, action: Callable[[], None]) -> Timer:
        """Has :meth:`run_due` call ``action`` once, after so many seconds."""
        timer = Timer(self, action)
        heapq.heappush(self._heap, (self._clock() + seconds, next(self._order), timer))
        return timer

    def run_due(self) -> None:
        """Calls every action that is due. An exception of one ends the call; the others are due still."""
        now = self._clock()
        while self._heap and self._heap[0][0] <= now:
            self._pop()._happen()

    def left(self) -> float | None:
        """Seconds until the next action is due, at least 0; None: there is none."""
        while self._heap and not self._heap[0][2].waits:
            self._pop()
        return max(0.0, self._heap[0][0] - self._clock()) if self._heap else None

    def _pop(self) -> Timer:
        timer = heapq.heappop(self._heap)[2]
        self._cancelled -= not timer.waits
        return timer

    def _sweep(self) -> None:
        """Counts a timer that was cancelled; drops all of them where they are many."""
        self._cancelled += 1
        if self._cancelled > len(self._heap) // 2 + SPARE:
            self._heap = [entry for entry in self._heap if entry[2].waits]
            heapq.heapify(self._heap)
            self._cancelled = 0
