"""What clients have in common, divided so that one of them leaves room for the next.

A tenant is whoever has one token or, where there are none, one address; IPv6 counts by the 64 bits that a
network hands out as one.
"""

from __future__ import annotations

import asyncio
import contextvars
import ipaddress
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")

AT_ONCE = 4
"""Requests that begin before the event loop looks at everything else."""


def tenant_of(address: str) -> str:
    """The tenant that an address belongs to, where nobody has a token."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((found.packed[:8] + bytes(8), 64)))
    return str(found)


class _Line:
    """Tasks that wait, of each tenant in the order in which they came. Of one event loop."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def join(self, tenant: str) -> asyncio.Future[None]:
        """What is done when it is this one's turn."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(turn)
        return turn

    def call(self, may: Callable[[str], bool] = lambda tenant: True) -> str | None:
        """Has the first tenant that ``may`` take its turn, after which it is the last one -> that tenant.

        None if there is none. Who does not wait any more is passed over.
        """
        while (tenant := next(filter(may, self._waiting), None)) is not None:
            turns = self._waiting[tenant]
            turn = turns.popleft()
            if turns:
                self._waiting.move_to_end(tenant)
            else:
                del self._waiting[tenant]
            if not turn.done():
                turn.set_result(None)
                return tenant
        return None


class Turns:
    """Requests begin a few at a time, those of each tenant in turn, and in between the event loop looks at
    everything else. Hundreds that are there at once would otherwise all be answered before another client's
    next byte is read, again and again.

    Of one event loop.
    """

    def __init__(self) -> None:
        self._line = _Line()
        self._next_is_due = False

    async def take(self, tenant: str) -> None:
        """Returns when it is this tenant's turn."""
        loop = asyncio.get_running_loop()
        turn = self._line.join(tenant)
        if not self._next_is_due:
            self._next_is_due = True
            loop.call_soon(self._next)
        await turn

    def _next(self) -> None:
        self._next_is_due = False
        begun = 0
        while begun < AT_ONCE and self._line.call() is not None:
            begun += 1
        if self._line:
            self._next_is_due = True
            asyncio.get_running_loop().call_soon(self._next)


class TenantThreads:
    """Threads for calls that may block. Tenants take turns, and one has at most ``each`` of them at once.

    Of one event loop.
    """

    def __init__(self, threads: int, each: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._free, self._each = threads, each
        self._running: Counter[str] = Counter()
        self._line = _Line()

    @property
    def running(self) -> int:
        """Calls."""
        return self._running.total()

    async def call(self, tenant: str, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """What the function returns; called in a thread, in the caller's context."""
        loop = asyncio.get_running_loop()
        turn = self._line.join(tenant)
        self._next()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._ended(tenant)
            raise
        call = partial(contextvars.copy_context().run, function, *args, **kwargs)

        def ended(_: Future[T]) -> None:
            # From the thread. A task that is cancelled does not end the call, which keeps its place.
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._ended, tenant)

        try:
            future = self._pool.submit(call)
        except BaseException:
            self._ended(tenant)
            raise
        future.add_done_callback(ended)
        return await asyncio.wrap_future(future)

    def _ended(self, tenant: str) -> None:
        self._free += 1
        self._running[tenant] -= 1
        if not self._running[tenant]:
            del self._running[tenant]
        self._next()

    def _next(self) -> None:
        """Begins what may begin, of each tenant in turn."""
        while self._free:
            tenant = self._line.call(lambda one: self._running[one] < self._each)
            if tenant is None:
                return
            self._free -= 1
            self._running[tenant] += 1

    def shutdown(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
