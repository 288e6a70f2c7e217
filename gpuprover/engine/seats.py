"""The bounded queue's places, and the share of them that one tenant may have."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from gpuprover.backpressure import BackpressureController
from gpuprover.errors import Timeout


class Seats:
    """Places for threads and tasks, in the order in which they came.

    Args:
        limit: places that there are.
        share: of them, those that one tenant may have; who is no tenant (``""``) may have all.

    Raises:
        Timeout: from both ways to take one: there was none in time, and none was taken; ``timeout`` of 0 does
            not wait, and None waits for as long as it takes.
    """

    def __init__(self, limit: int, share: int) -> None:
        self._all, self._share = BackpressureController(limit), share
        self._lock = threading.Lock()
        # Of tenants that have places or wait for one, with the number of both.
        self._own: dict[str, BackpressureController] = {}
        self._users: Counter[str] = Counter()

    @property
    def active(self) -> int:
        """Places that are taken."""
        return self._all.active

    @property
    def tenants(self) -> int:
        """That have places, or wait for one."""
        return len(self._own)

    def acquire(self, timeout: float | None = None, tenant: str = "") -> None:
        """Takes a place. Blocks the thread: tasks use :meth:`aacquire`."""
        end = _end(timeout)
        with self._entered(tenant) as own:
            if own is not None:
                with self._told("the queue is full for this client", "of its proofs", own, timeout):
                    own.acquire(timeout)
            with self._returned(own), self._told("the queue is full", "proofs", self._all, timeout):
                self._all.acquire(_left(end))

    async def aacquire(self, timeout: float | None = None, tenant: str = "") -> None:
        """:meth:`acquire` for tasks."""
        end = _end(timeout)
        with self._entered(tenant) as own:
            if own is not None:
                with self._told("the queue is full for this client", "of its proofs", own, timeout):
                    await own.aacquire(timeout)
            with self._returned(own), self._told("the queue is full", "proofs", self._all, timeout):
                await self._all.aacquire(_left(end))

    def release(self, tenant: str = "") -> None:
        """Gives a place of a tenant back.

        Raises:
            InvalidInput: none is taken.
        """
        self._all.release()
        if tenant:
            self._own[tenant].release()
            self._leave(tenant)

    @contextmanager
    def _entered(self, tenant: str) -> Iterator[BackpressureController | None]:
        """The tenant's own places, which are there until it has left; where something fails, it has."""
        if not tenant:
            yield None
            return
        with self._lock:
            own = self._own.setdefault(tenant, BackpressureController(self._share))
            self._users[tenant] += 1
        try:
            yield own
        except BaseException:
            self._leave(tenant)
            raise

    @staticmethod
    @contextmanager
    def _returned(own: BackpressureController | None) -> Iterator[None]:
        try:
            yield
        except BaseException:
            if own is not None:
                own.release()
            raise

    @staticmethod
    @contextmanager
    def _told(what: str, whose: str, places: BackpressureController, timeout: float | None) -> Iterator[None]:
        try:
            yield
        except Timeout:
            late = f", and none of them began in {timeout:.1f} s" if timeout else ""
            raise Timeout(f"{what}: {places.max_concurrent} {whose} wait{late}") from None

    def _leave(self, tenant: str) -> None:
        with self._lock:
            self._users[tenant] -= 1
            if not self._users[tenant]:
                del self._users[tenant], self._own[tenant]


def _end(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


def _left(end: float | None) -> float | None:
    return None if end is None else max(0.0, end - time.monotonic())
