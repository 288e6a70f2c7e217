"""The entrance of a prover: it is open or closed, and whoever enters takes a seat in the queue."""

from __future__ import annotations

from contextlib import AbstractContextManager

from gpuprover.engine.records import Steps
from gpuprover.engine.seats import Seats
from gpuprover.errors import ProverError, QueueFull, ShuttingDown, Timeout


class Entrance:
    """See the module. Seats may be taken from any thread.

    Args:
        seats: the queue's.
        lock: the owner's; held by whoever calls :meth:`require_open` or :meth:`close`.
        steps: counts those who did not get in.

    Attributes:
        open: whether jobs are taken.
    """

    def __init__(self, seats: Seats, lock: AbstractContextManager[bool], steps: Steps) -> None:
        self.open = True
        self._seats, self._lock, self._counters = seats, lock, steps.counters

    def take_seat(self, wait: bool, timeout: float, tenant: str = "") -> None:
        """Takes a seat in the queue.

        Raises:
            QueueFull: there is none, or none for this tenant, and ``wait`` is false.
            Timeout: none became free in time.
            ShuttingDown: nothing is taken any more.
        """
        self._enter()
        try:
            self._seats.acquire(timeout if wait else 0, tenant)
        except Timeout as error:
            raise self._full(wait, error) from None

    async def atake_seat(self, wait: bool, timeout: float, tenant: str = "") -> None:
        """:meth:`take_seat` for tasks."""
        self._enter()
        try:
            await self._seats.aacquire(timeout if wait else 0, tenant)
        except Timeout as error:
            raise self._full(wait, error) from None

    def require_open(self) -> None:
        """Raises ShuttingDown if nothing is taken any more."""
        if not self.open:
            raise ShuttingDown("the prover is shutting down, and takes no more work")

    def close(self) -> None:
        """Nothing is taken from now on."""
        self.open = False

    def _enter(self) -> None:
        with self._lock:
            self._counters["turned_away"] += not self.open
            self.require_open()

    def _full(self, wait: bool, error: Timeout) -> ProverError:
        with self._lock:
            self._counters["timeouts" if wait else "refused"] += 1
        return error if wait else QueueFull(error.message)
