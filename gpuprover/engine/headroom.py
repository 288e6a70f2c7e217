"""Memory between what is held and the limit: what proofs may take, and which of them wait until less is held.

Above the watermark a proof that was to start is held back while caches shrink: until the processes hold less,
until waiting is of no use as nothing runs, or for as long as the settings say. Then it goes on, as what is
admitted has a place below the limit by its estimate.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Generic, TypeVar

from gpuprover.engine.records import Steps
from gpuprover.engine.timers import Timers
from gpuprover.memory import CODE_BYTES, MIB, LeakAlarm, Watermark

log = logging.getLogger("gpuprover.engine")

SETTLE_SECONDS = 0.5
"""Seconds after which what a shrink has freed is seen: workers say every now and then what they hold."""
SAMPLE_SECONDS = 10.0
"""Seconds between two samples for the leak alarm."""

T = TypeVar("T")
"""A run that may be held back; hashed by identity."""


class Headroom(Generic[T]):
    """Memory that is held, the room beside it for proofs, and the runs that are held back.

    Not for several threads at once: its owner has the lock.

    Args:
        limit: bytes for the processes and the proofs together.
        wait: the most seconds that a run is held back; 0: none is.
        usage: bytes that count against the limit, now.
        watermark: when too much is held.
        alarm: is fed with what is held, from :meth:`watch` on; what it says is logged.
        timers: the owner's timers.
        look: called when :meth:`release` is to be called.
        steps: counts shrinks and alarms.
        clock: seconds that never go backwards.

    Attributes:
        room: bytes that proofs may take of the host, as measured last.
    """

    def __init__(
        self,
        limit: int,
        wait: float,
        usage: Callable[[], int],
        watermark: Watermark,
        alarm: LeakAlarm,
        timers: Timers,
        look: Callable[[], None],
        steps: Steps,
        clock: Callable[[], float],
    ) -> None:
        self._limit, self._wait, self._usage = limit, wait, usage
        self._watermark, self._alarm, self._timers = watermark, alarm, timers
        self._look, self._steps, self._clock = look, steps, clock
        self.room = self._most_room = 0
        self._since: dict[T, float] = {}
        self._looking = self._shrink = self._watching = False
        self._shrunk = float("-inf")
        timers.after(0.0, self._sample)

    @property
    def waiting(self) -> int:
        """The number of runs that are held back."""
        return len(self._since)

    # Room ------------------------------------------------------------------------------

    def measure(self, offered: int | None, idle: bool) -> bool:
        """Measures what proofs may take of the host -> whether :attr:`room` has changed, by a MiB at least.

        Args:
            offered: bytes, where the executor counts them itself; None: the limit less what is held at rest.
            idle: nothing runs; otherwise memory at rest cannot be seen.
        """
        if offered is None and not idle:
            return False
        room = offered if offered is not None else max(0, self._limit - self._usage() - CODE_BYTES)
        if abs(room - self.room) < MIB:
            return False
        self.room, self._most_room = room, max(room, self._most_room)
        return True

    @property
    def may_grow(self) -> bool:
        """Whether there was more room once, as there may be again after a shrink."""
        return self.room < self._most_room

    def shrink_soon(self) -> None:
        """Has the owner give up memory that only makes things faster, unless it did so a moment ago."""
        now = self._clock()
        if now >= self._shrunk + SETTLE_SECONDS:
            self._shrink, self._shrunk = True, now
            self._steps.counters["shrinks"] += 1

    def take_shrink(self) -> bool:
        """Whether to shrink now; says so once."""
        shrink, self._shrink = self._shrink, False
        return shrink

    # Waiting ---------------------------------------------------------------------------

    def hold(self, who: T) -> bool:
        """Whether somebody who was to start is held back, until :meth:`release` says so."""
        if not self._wait or not self._crowded():
            return False
        self._since[who] = self._clock()
        self.shrink_soon()
        self._look_again()
        return True

    def leave(self, who: T) -> None:
        """Has somebody be held back no more, if he is."""
        self._since.pop(who, None)

    def release(self, running: bool) -> T | None:
        """The next who may start now, as there is room or waiting is of no more use; None: nobody.

        Args:
            running: something runs, which may give memory back.
        """
        for who, since in self._since.items():
            now = self._clock()
            of_use = running or now < self._shrunk + SETTLE_SECONDS
            if of_use and now < since + self._wait and self._crowded():
                break
            del self._since[who]
            return who
        self._look_again()
        return None

    def _crowded(self) -> bool:
        return self._watermark.excess(self._usage()) > 0

    def _look_again(self) -> None:
        """Has the owner look at who is held back, in a moment."""
        if self._since and not self._looking:
            self._looking = True
            left = min(self._since.values()) + self._wait - self._clock()
            self._timers.after(min(SETTLE_SECONDS, max(0.0, left)), self._looked)

    def _looked(self) -> None:
        self._looking = False
        self._look()

    # Leaks -----------------------------------------------------------------------------

    def watch(self) -> None:
        """Has the alarm fed from now on."""
        self._watching = True

    def _sample(self) -> None:
        self._timers.after(SAMPLE_SECONDS, self._sample)
        if not self._watching:
            return
        held = self._usage()
        rate = self._alarm.feed(self._clock(), held)
        if rate is not None:
            self._steps.counters["leak_alarms"] += 1
            event = {"step": "leak_alarms", "rate": rate, "held": held}
            log.warning("memory keeps growing by %.0f MB a minute", rate, extra={"event": event})
