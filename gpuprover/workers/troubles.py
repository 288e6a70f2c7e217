"""Failures of a supervisor's steps: logged without a flood, counted, and reported while they last."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from gpuprover.errors import code_location
from gpuprover.processes import Backoff

STUMBLES = 3
"""Steps of the supervisor that may fail in a row before it says so."""
STUMBLE_SECONDS = (0.01, 2.0, 1.0, 0.2)
"""Pauses between steps that fail, as :class:`Backoff` takes them."""
QUIET_SECONDS = 10.0
"""Seconds between two lines in the log about the same thing."""
MOST_TOLD = 100
"""Things that are remembered as told; beyond, all are forgotten."""

log = logging.getLogger("gpuprover.workers")


class Troubles:
    """The failures of one supervisor, whose thread alone calls this.

    Attributes:
        stumbles: parts of steps that have failed since the last step that ended well.
        problem: what fails, once it has failed several times in a row; else empty.
    """

    def __init__(self) -> None:
        self.stumbles = 0
        self.problem = ""
        self._told: dict[str, tuple[float, int]] = {}
        self._pauses = Backoff(*STUMBLE_SECONDS)

    def tell(self, level: int, about: str, line: str) -> None:
        """Logs a line, unless there was one about the same a moment ago; the next one says how many."""
        now = time.monotonic()
        last, left_out = self._told.get(about, (-QUIET_SECONDS, 0))
        if now - last < QUIET_SECONDS:
            self._told[about] = last, left_out + 1
            return
        if len(self._told) > MOST_TOLD:
            self._told.clear()
        self._told[about] = now, 0
        log.log(level, "%s", f"{line} ({left_out} more like this)" if left_out else line)

    def stumble(self, what: str, error: Exception) -> None:
        """Counts and logs what nobody expected: without a supervisor no proof would be made any more."""
        self.stumbles += 1
        line = f"{what}: {type(error).__name__} in {code_location(error.__traceback__)}"
        self.tell(logging.ERROR, what, line)
        if self.stumbles >= STUMBLES:
            self.problem = f"{line}; it is tried again"

    def guarded(
        self, what: str, action: Callable[[], None], instead: Callable[[], None] = lambda: None
    ) -> None:
        """Runs a part of a step whose failure should not keep the others from being done."""
        try:
            action()
        except Exception as error:
            self.stumble(what, error)
            instead()

    def steady(self) -> None:
        """Forgets past failures: a step has ended well."""
        self.stumbles, self.problem = 0, ""
        self._pauses.reset()

    def pause(self) -> float:
        """Seconds until the next step, after one that failed."""
        return self._pauses.next()
