"""A bound on how much runs at once, for threads and tasks together; and what is a fair share of the rest."""

from __future__ import annotations

import asyncio
import math
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from gpuprover import forks
from gpuprover.errors import InvalidInput, Timeout, brief

T = TypeVar("T")


class _Waiter:
    """Somebody who waits. ``wake`` may be called by any thread; it raises RuntimeError if nobody is there."""

    __slots__ = ("granted", "wake")

    def __init__(self, wake: Callable[[], object]) -> None:
        self.wake = wake
        self.granted = False


class BackpressureController:
    """Lets at most ``max_concurrent`` in at once; the others wait, and come in the order in which they came.

    Threads and tasks of any number of event loops share one order. Whoever gives up waiting, by timeout,
    cancellation or Ctrl-C, passes its turn on. A place may be given back by another thread than the one that
    took it. Who takes a second place while it holds one waits for itself, where ``max_concurrent`` is 1::

        limit = BackpressureController(4)
        limit.run(prover.prove, "transfer", witness)
        with limit: ...
        async with limit: ...

    Raises:
        InvalidInput: ``max_concurrent`` is no whole number of at least 1.
    """

    def __init__(self, max_concurrent: int) -> None:
        if isinstance(max_concurrent, bool) or not isinstance(max_concurrent, int) or max_concurrent < 1:
            raise InvalidInput(
                f"max_concurrent: expected a whole number of at least 1, found {brief(max_concurrent)}"
            )
        self._max = max_concurrent
        self._inherited = self._active = 0
        self._in_child()
        forks.in_child(self._in_child)

    def _in_child(self) -> None:
        """All places are free in a forked process; one that its thread holds may still be given back."""
        self._lock = threading.Lock()
        self._inherited += self._active
        self._active = 0
        self._waiters: OrderedDict[_Waiter, None] = OrderedDict()

    @property
    def max_concurrent(self) -> int:
        return self._max

    @property
    def active(self) -> int:
        """Places that are taken."""
        return self._active

    @property
    def waiting(self) -> int:
        """Threads and tasks that wait for one."""
        return len(self._waiters)

    def acquire(self, timeout: float | None = None) -> None:
        """Takes a place, and waits for one if need be. Blocks the thread: tasks use :meth:`aacquire`.

        Args:
            timeout: seconds to wait; None for as long as it takes, 0 for not at all.

        Raises:
            Timeout: no place became free in time; none was taken.
        """
        woken = threading.Event()
        waiter = self._enter(woken.set)
        if waiter is None:
            return
        try:
            woken.wait(timeout)
        except BaseException:
            self._abandon(waiter)
            raise
        if not self._withdraw(waiter):
            raise _late(timeout)

    async def aacquire(self, timeout: float | None = None) -> None:
        """:meth:`acquire` for tasks."""
        loop = asyncio.get_running_loop()
        woken = loop.create_future()

        def resume() -> None:
            if not woken.done():
                woken.set_result(None)

        waiter = self._enter(lambda: loop.call_soon_threadsafe(resume))
        if waiter is None:
            return
        try:
            await asyncio.wait([woken], timeout=timeout)
        except BaseException:
            self._abandon(waiter)
            raise
        if not self._withdraw(waiter):
            raise _late(timeout)

    def release(self) -> None:
        """Gives a place back, to the one who has waited longest.

        Raises:
            InvalidInput: none is taken.
        """
        self._pass_on()

    def run(self, function: Callable[..., T], /, *arguments: Any, **options: Any) -> T:
        """``function(...)`` in a place of its own."""
        with self:
            return function(*arguments, **options)

    async def arun(self, function: Callable[..., Awaitable[T]], /, *arguments: Any, **options: Any) -> T:
        """``await function(...)`` in a place of its own."""
        async with self:
            return await function(*arguments, **options)

    def __enter__(self) -> BackpressureController:
        self.acquire()
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    async def __aenter__(self) -> BackpressureController:
        await self.aacquire()
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.release()

    def _enter(self, wake: Callable[[], object]) -> _Waiter | None:
        """None if a place was free; it is taken then."""
        with self._lock:
            # While somebody waits no place is free: each is handed on, not put back.
            if self._active < self._max:
                self._active += 1
                return None
            waiter = _Waiter(wake)
            self._waiters[waiter] = None
            return waiter

    def _withdraw(self, waiter: _Waiter) -> bool:
        """Stops waiting -> whether the waiter had a place by then, which is now its caller's."""
        with self._lock:
            self._waiters.pop(waiter, None)
            granted, waiter.granted = waiter.granted, False
            return granted

    def _abandon(self, waiter: _Waiter) -> None:
        if self._withdraw(waiter):
            self._pass_on()

    def _pass_on(self) -> None:
        """Hands a place to the next, or puts it back."""
        while True:
            with self._lock:
                if not self._active and self._inherited:
                    self._inherited -= 1
                    return
                if not self._active:
                    raise InvalidInput("release: nothing is acquired")
                if not self._waiters:
                    self._active -= 1
                    return
                waiter, _ = self._waiters.popitem(last=False)
                waiter.granted = True
            try:
                waiter.wake()
                return
            except RuntimeError:  # its event loop was closed
                if not self._withdraw(waiter):
                    return


def room(free: int, own: int, share: float) -> int:
    """Units that one of several users may have more: its own are ``share / (1 - share)`` of the free ones.

    A user alone gets ``share`` of all; at a half, n greedy ones get equal parts and leave one free: dynamic
    thresholds, after Choudhury and Hahne, IEEE/ACM Transactions on Networking 6 (1998).

    Args:
        free: units that nobody has.
        own: units that the user has already.
        share: above 0, at most 1; with 1 it may have all.
    """
    return min(free, max(0, math.ceil(round(share * free - (1 - share) * own, 6))))


def _late(timeout: float | None) -> Timeout:
    return Timeout(f"no place became free within {timeout} s")
