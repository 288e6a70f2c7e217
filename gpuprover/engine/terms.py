"""Terms on which a proof is asked for: deadline, priority, tenant, and whether it waits for a seat."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from gpuprover.errors import InvalidInput
from gpuprover.job import Progress
from gpuprover.settings import PRIORITIES

MAX_TENANT = 256
"""Characters."""
MAX_TIMEOUT = 1e9
"""Seconds."""


@dataclass(frozen=True)
class Terms:
    """The arguments of :meth:`gpuprover.Prover.prove` beside circuit and witness; checked.

    Attributes:
        deadline: when the proof has to be done, by ``time.monotonic``.
        priority: a higher one goes first among those of its tenant.
        wait: where the queue is full, it waits for a seat, else it is refused.
        tenant: the client that it is made for; empty for nobody in particular. No message or log has it.
        progress: called now and then, from any thread.
    """

    deadline: float
    priority: int = 0
    wait: bool = True
    tenant: str = field(default="", repr=False)
    progress: Callable[[Progress], None] | None = None

    @classmethod
    def checked(
        cls,
        timeout: float,
        priority: int,
        queue: str,
        tenant: str,
        progress: Callable[[Progress], None] | None,
    ) -> Terms:
        """The terms that a caller has given, from now on.

        Raises:
            InvalidInput: one of them cannot be used.
        """
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < MAX_TIMEOUT:
            raise InvalidInput(f"timeout: expected a positive number of seconds, found {timeout!r}")
        if isinstance(priority, bool) or not isinstance(priority, int) or abs(priority) > PRIORITIES:
            raise InvalidInput(
                f"priority: expected a whole number from -{PRIORITIES} to {PRIORITIES}, found {priority!r}"
            )
        if not isinstance(queue, str) or queue not in ("wait", "refuse"):
            raise InvalidInput(f"queue: expected 'wait' or 'refuse', found {queue!r}")
        if not isinstance(tenant, str) or len(tenant) > MAX_TENANT:
            raise InvalidInput(f"tenant: expected a text of at most {MAX_TENANT} characters")
        return cls(time.monotonic() + timeout, priority, queue == "wait", tenant, progress)

    @property
    def left(self) -> float:
        """Seconds until the deadline, at least 0."""
        return max(0.0, self.deadline - time.monotonic())
