"""Connections: how many there may be, who loses one for another, and how long they may take for what."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

from gpuprover.errors import code_location
from gpuprover.service.bodies import Pace
from gpuprover.service.shares import tenant_of

log = logging.getLogger("gpuprover.service")

SWEEP_SECONDS = 1.0
RETRY_SECONDS = 0.25
"""Seconds before the next try after the system had no room for a connection."""
BREATH = 16
"""Connections that are accepted before the loop does something else."""
SMALL, FIRST, LARGE = 1 << 10, 4 << 10, 64 << 10
"""Bytes that are taken in at once: more and more as long as that is quick. h11 makes objects of each chunk of
a body, and chunks may have one byte."""
QUICK = 0.001
"""Seconds of this thread."""
RESERVE = 16
"""Descriptors at least that no connection takes: keys, workers and logs need some."""


def descriptors() -> int:
    """The number from which on descriptors are not for connections."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return 1 << 30
    return max(8, soft - max(RESERVE, min(256, soft // 8)))


def _tell(error: Exception) -> None:
    """Kind and place: a text may hold what is secret."""
    log.error(
        "%s in %s; this is a bug in gpuprover", type(error).__name__, code_location(error.__traceback__)
    )


class _Counted:
    """A transport that knows how much it was given to send."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport, self.given = transport, 0
        self.write_to = transport.write

    def write(self, data: bytes) -> None:
        self.given += len(data)
        self.write_to(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    @property
    def sent(self) -> int:
        """Bytes that the system has taken."""
        return self.given - self._transport.get_write_buffer_size()


class Connections:
    """Those of one service. Of one event loop.

    Args:
        limit: how many there may be.
        head: seconds for the headers of a request.
        pace: the slowest that a client may read an answer.
        ceiling: descriptors that the process may have; by default :func:`descriptors`.
    """

    def __init__(self, limit: int, head: float, pace: Pace, ceiling: int | None = None) -> None:
        self._limit, self._head, self._pace = limit, head, pace
        self._room = limit
        """Connections that there may be now, by what the system has room for."""
        self._ceiling = descriptors() if ceiling is None else ceiling
        self._of: dict[str, OrderedDict[Connection, None]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    # Beginning and end -----------------------------------------------------------------

    def add(self, connection: Connection) -> None:
        self._of.setdefault(connection.tenant, OrderedDict())[connection] = None
        self._count += 1

    def discard(self, connection: Connection) -> None:
        own = self._of.get(connection.tenant)
        if own is not None and connection in own:
            del own[connection]
            self._count -= 1
            if not own:
                del self._of[connection.tenant]

    async def accept(self, listener: socket.socket, make: Callable[[], asyncio.Protocol]) -> None:
        """Takes in connections until it is cancelled, whatever the system says."""
        loop = asyncio.get_running_loop()
        while True:
            for _ in range(BREATH):
                try:
                    connection, address = await loop.sock_accept(listener)
                except ConnectionAbortedError:
                    continue
                except OSError as error:
                    # No room; or what has befallen the connection, which Linux tells here (accept(2)).
                    log.warning("no connection could be accepted: %s", error.strerror)
                    await asyncio.sleep(RETRY_SECONDS)
                    continue
                try:
                    if self._admit(connection, str(address[0])):
                        await loop.connect_accepted_socket(make, connection)
                except Exception as error:
                    # This one ends. Without the loop nobody would be heard any more.
                    connection.close()
                    if not isinstance(error, OSError):
                        _tell(error)
            await asyncio.sleep(0)

    def _admit(self, connection: socket.socket, address: str) -> bool:
        """Whether it may stay. One of the tenant with the most makes room for it."""
        scarce = connection.fileno() >= self._ceiling
        if scarce:
            # Its number alone does not tell: whoever comes next gets the low one of the connection that goes.
            self._room = min(self._room, self._count)
        if self._count < self._room and not scarce:
            return True
        tenant = tenant_of(address)
        most = max(self._of.values(), key=len, default=OrderedDict[Connection, None]())
        own = len(self._of.get(tenant, ()))
        # A tenant may not drop its own work for more of it, but what only lies about.
        given_up = next((one for one in most if one.idle), None)
        if given_up is None and len(most) > own + 1:
            given_up = next((one for one in most if one.receiving), next(iter(most)))
        if given_up is None:
            log.warning("%d connections are open, and another one was refused", self._count)
            connection.close()
            return False
        log.warning("%d connections are open: an idle one made room for another one", self._count)
        given_up.drop()
        return True

    # Time ------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Ends those that are too slow, until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                self._sweep(loop.time())
            except Exception as error:
                _tell(error)

    def _sweep(self, now: float) -> None:
        for own in list(self._of.values()):
            for connection in list(own):
                if connection.is_late(now, self._head) or connection.is_slow(now, self._pace):
                    connection.drop()
        self._look_at_room()

    def _look_at_room(self) -> None:
        """As many as ever, once no descriptor is among those that are kept for others."""
        if all(one.descriptor < self._ceiling for own in self._of.values() for one in own):
            self._room = self._limit


class Connection(H11Protocol):
    """uvicorn's, with an eye on the clock."""

    tenant = ""

    def __init__(self, *args: Any, connections: Connections, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._all = connections
        self._head_since: float | None = None
        self._mark: tuple[float, int] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        counted = _Counted(cast(asyncio.Transport, transport))
        super().connection_made(cast(asyncio.Transport, counted))
        self._counted, self._raw = counted, cast(Any, transport)
        self._raw.max_size = FIRST
        self._head_since = self.loop.time()
        self.tenant = tenant_of(self.client[0] if self.client else "")
        self._all.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        begun = time.thread_time()
        super().data_received(data)
        took, size = time.thread_time() - begun, self._raw.max_size
        self._raw.max_size = max(SMALL, size // 2) if took > QUICK else min(LARGE, size * 2)
        if not self.idle:
            self._head_since = None
        elif self._head_since is None:
            self._head_since = self.loop.time()

    @property
    def descriptor(self) -> int:
        """-1 once it is closed."""
        return int(self._raw.get_extra_info("socket").fileno())

    @property
    def idle(self) -> bool:
        """No request is here as a whole, or is being answered."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def receiving(self) -> bool:
        """A body is on its way."""
        return not self.idle and self.cycle.more_body

    def is_late(self, now: float, seconds: float) -> bool:
        """Whether the headers should be here by now."""
        return self.idle and self._head_since is not None and now - self._head_since > seconds

    def is_slow(self, now: float, pace: Pace) -> bool:
        """Whether an answer is read more slowly than may be. To be asked again and again."""
        if not self._raw.get_write_buffer_size():
            self._mark = None
        elif self._mark is None:
            self._mark = now, self._counted.sent
        elif now - self._mark[0] >= pace.pause:
            then, sent = self._mark
            self._mark = now, self._counted.sent
            return self._counted.sent - sent < pace.rate * (now - then)
        return False

    def drop(self) -> None:
        with suppress(OSError):
            self._raw.abort()
