"""Bodies of requests: in memory only, each below a limit, and all together; none of them too slow."""

from __future__ import annotations

import asyncio
import io
from collections import Counter
from dataclasses import dataclass
from types import TracebackType

from starlette.requests import Request

from gpuprover.backpressure import room
from gpuprover.service.problems import Problem

MAX_JSON = 32 << 20


@dataclass(frozen=True)
class Pace:
    """How slow a client may be: with a body, and with reading an answer.

    Attributes:
        pause: seconds, once or in all beyond what the rate allows.
        rate: bytes a second.
    """

    pause: float
    rate: int


class Budget:
    """Bytes that all bodies may take together, in shares of their tenants (:func:`shares.room`). Of one event
    loop."""

    def __init__(self, limit: int, share: float = 1.0) -> None:
        self.limit, self.used, self._share = limit, 0, share
        self._of: Counter[str] = Counter()

    def reserve(self, tenant: str = "") -> Reservation:
        return Reservation(self, tenant)

    def check(self, tenant: str, more: int, size: int) -> None:
        """Raises a Problem if a request of ``size`` bytes cannot have ``more`` of them: 413 if it never
        could, 429 if there is no room now."""
        if size > self.limit * self._share:
            raise Problem(
                413,
                "BodyTooLarge",
                f"a body that takes {size} bytes of memory, expected at most {int(self.limit * self._share)}",
            )
        if more > room(self.limit - self.used, self._of[tenant], self._share):
            raise Problem(429, "QueueFull", "the witnesses that wait take all memory there is for them")

    def add(self, tenant: str, size: int) -> None:
        self.used += size
        self._of[tenant] += size
        if not self._of[tenant]:
            del self._of[tenant]


class Reservation:
    """What one request has taken; given back at the end of the block, unless it was handed on before."""

    def __init__(self, budget: Budget, tenant: str) -> None:
        self._budget, self._tenant, self.bytes = budget, tenant, 0
        self._handed_on = False

    def check(self, size: int) -> None:
        """Whether it might grow to ``size`` bytes now; takes nothing.

        Raises:
            Problem: 413, it never could; 429, there is no room now.
        """
        if size > self.bytes:
            self._budget.check(self._tenant, size - self.bytes, size)

    def grow(self, size: int) -> None:
        """To ``size`` bytes.

        Raises:
            Problem: as :meth:`check`.
        """
        self.check(size)
        if size > self.bytes:
            self._budget.add(self._tenant, size - self.bytes)
            self.bytes = size

    def shrink(self, size: int) -> None:
        """To ``size`` bytes, if it has more."""
        if size < self.bytes:
            self._budget.add(self._tenant, size - self.bytes)
            self.bytes = size

    def hand_on(self) -> None:
        """The block's end gives nothing back: somebody else calls :meth:`release`."""
        self._handed_on = True

    def release(self) -> None:
        self._budget.add(self._tenant, -self.bytes)
        self.bytes = 0

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._handed_on or kind is not None:
            self.release()


async def read_body(request: Request, limit: int, reservation: Reservation, pace: Pace) -> bytes:
    """A request's body. The reservation grows with what has come: what is only announced takes nothing from
    others.

    Args:
        limit: bytes.

    Raises:
        Problem: 400, its length is no number, or it is empty; 408, it comes too slowly; 413, it is too long;
            429, there is no room now.
        ClientDisconnect: the client went away.
    """

    def check(size: int) -> None:
        if size > limit:
            raise Problem(413, "BodyTooLarge", f"a body of more than {limit} bytes, expected a shorter one")

    length = request.headers.get("content-length")
    if length is not None:
        if not (length.isascii() and length.isdigit() and len(length) < 20):
            raise Problem(400, "InvalidInput", "Content-Length: expected a number of bytes")
        check(int(length))
        reservation.check(int(length))
    # Its value is this very buffer, without a copy, once nothing is appended any more.
    buffer = io.BytesIO()
    chunks = request.stream().__aiter__()
    loop = asyncio.get_running_loop()
    begun = loop.time()
    while True:
        latest = min(loop.time(), begun + buffer.tell() / pace.rate) + pace.pause
        try:
            async with asyncio.timeout_at(latest):
                chunk = await anext(chunks)
        except StopAsyncIteration:
            break
        except TimeoutError:
            raise Problem(408, "RequestTimeout", "the body comes too slowly") from None
        size = buffer.tell() + len(chunk)
        check(size)
        reservation.grow(size)
        buffer.write(chunk)
    if not buffer.tell():
        raise Problem(400, "InvalidInput", "the body is empty")
    return buffer.getvalue()


def media_type(request: Request, *accepted: str) -> str:
    """The body's type.

    Raises:
        Problem: 415, it is none of those that are accepted, or compressed.
    """
    found = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if found not in accepted:
        raise Problem(
            415,
            "UnsupportedMediaType",
            f"Content-Type: expected {' or '.join(accepted)}, found {found[:80]!r}",
        )
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise Problem(415, "UnsupportedMediaType", "Content-Encoding: expected none")
    return found
