"""The bounded queue's seats, and what of them one tenant may have."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from gpuprover.backpressure import BackpressureController, room
from gpuprover.errors import Timeout


class Seats:
    """Seats for threads and tasks, in the order in which they came.

    A tenant has at most ``each`` of them. One that does not wait leaves some to others besides: it may have
    more of them only as far as :func:`gpuprover.backpressure.room` says, for the share that was set. Whoever
    is no tenant (``""``) may have all.

    Args:
        limit: seats that there are.
        each: seats that one tenant may have.

    Attributes:
        share: share of the seats, for :func:`room`, in (0, 1]; with 1 only ``each`` bounds a tenant.

    Raises:
        Timeout: from both ways to take one: there was none in time, and none was taken; ``timeout`` of 0 does
            not wait, and None waits for as long as it takes.
    """

    def __init__(self, limit: int, each: int) -> None:
        self._all, self._limit, self._each = BackpressureController(limit), limit, each
        self.share = 1.0
        self._lock = threading.Lock()
        # Of tenants that have seats or wait for one, with the number of both.
        self._own: dict[str, BackpressureController] = {}
        self._users: Counter[str] = Counter()
        self._trying = threading.Lock()

    @property
    def active(self) -> int:
        """Seats that are taken."""
        return self._all.active

    @property
    def tenants(self) -> int:
        """Tenants that have seats, or wait for one."""
        return len(self._own)

    def acquire(self, timeout: float | None = None, tenant: str = "") -> None:
        """Takes a seat. Blocks the thread: tasks use :meth:`aacquire`."""
        if timeout == 0:
            self._try(tenant)
            return
        end = _end(timeout)
        with self._entered(tenant) as own:
            if own is not None:
                with self._said(self._full_for_one(), timeout):
                    own.acquire(timeout)
            with self._returned(own), self._said(self._full(), timeout):
                self._all.acquire(_left(end))

    async def aacquire(self, timeout: float | None = None, tenant: str = "") -> None:
        """:meth:`acquire` for tasks."""
        if timeout == 0:
            self._try(tenant)
            return
        end = _end(timeout)
        with self._entered(tenant) as own:
            if own is not None:
                with self._said(self._full_for_one(), timeout):
                    await own.aacquire(timeout)
            with self._returned(own), self._said(self._full(), timeout):
                await self._all.aacquire(_left(end))

    def release(self, tenant: str = "") -> None:
        """Gives a seat of a tenant back.

        Raises:
            InvalidInput: none is taken.
        """
        self._all.release()
        if tenant:
            self._own[tenant].release()
            self._leave(tenant)

    # The rule --------------------------------------------------------------------------

    def _try(self, tenant: str) -> None:
        """Takes a seat now, or says why not."""
        # One after the other, so that what is looked at is what is taken.
        with self._trying, self._entered(tenant) as own:
            if own is not None:
                free = self._limit - self._all.active
                if free > 0 and not room(free, own.active, self.share):
                    raise Timeout("as many proofs of this client wait as may")
                with self._said(self._full_for_one(), 0):
                    own.acquire(0)
            with self._returned(own), self._said(self._full(), 0):
                self._all.acquire(0)

    def _full(self) -> str:
        return f"the queue is full: {self._limit} proofs wait"

    def _full_for_one(self) -> str:
        return f"the queue is full for this client: {self._each} of its proofs wait"

    # Who has what ----------------------------------------------------------------------

    @contextmanager
    def _entered(self, tenant: str) -> Iterator[BackpressureController | None]:
        """The tenant's own seats, which are there until it has left; where something fails, it has."""
        if not tenant:
            yield None
            return
        with self._lock:
            own = self._own.setdefault(tenant, BackpressureController(self._each))
            self._users[tenant] += 1
        try:
            yield own
        except BaseException:
            self._leave(tenant)
            raise

    @staticmethod
    @contextmanager
    def _returned(own: BackpressureController | None) -> Iterator[None]:
        """Gives a tenant's own seat back where something fails."""
        try:
            yield
        except BaseException:
            if own is not None:
                own.release()
            raise

    @staticmethod
    @contextmanager
    def _said(full: str, timeout: float | None) -> Iterator[None]:
        """Has a Timeout say what is full."""
        try:
            yield
        except Timeout:
            late = f", and none of them began in {timeout:.1f} s" if timeout else ""
            raise Timeout(f"{full}{late}") from None

    def _leave(self, tenant: str) -> None:
        with self._lock:
            self._users[tenant] -= 1
            if not self._users[tenant]:
                del self._users[tenant], self._own[tenant]


def _end(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


def _left(end: float | None) -> float | None:
    return None if end is None else max(0.0, end - time.monotonic())
