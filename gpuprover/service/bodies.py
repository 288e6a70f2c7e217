"""Bodies of requests: in memory only, each below a limit, and all together."""

from __future__ import annotations

import asyncio
import io
from types import TracebackType

from starlette.requests import Request

from gpuprover.service.problems import Problem

PAUSE_SECONDS = 30.0
"""A body may pause for so long, once or in all beyond what the slowest rate allows."""
SLOWEST = 16 << 10
"""Bytes a second."""
MAX_JSON = 32 << 20
"""Parsing holds the interpreter, and so the event loop: for a fraction of a second at this size."""
JSON_FACTOR = 8
"""Bytes that JSON takes once it is parsed, for each of its own: a list of short strings takes that."""


class Budget:
    """Bytes that all bodies may take together. Of one event loop."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0

    def reserve(self) -> Reservation:
        return Reservation(self)


class Reservation:
    """What one request has taken; given back at the end of the block, unless it was handed on before."""

    def __init__(self, budget: Budget) -> None:
        self._budget, self.bytes = budget, 0
        self._handed_on = False

    def grow(self, size: int) -> None:
        """To ``size`` bytes.

        Raises:
            Problem: 429, there is no room now.
        """
        more = size - self.bytes
        if more <= 0:
            return
        if self._budget.used + more > self._budget.limit:
            raise Problem(429, "QueueFull", "the witnesses that wait take all memory there is for them")
        self._budget.used += more
        self.bytes = size

    def hand_on(self) -> None:
        """The block's end gives nothing back: somebody else calls :meth:`release`."""
        self._handed_on = True

    def release(self) -> None:
        self._budget.used -= self.bytes
        self.bytes = 0

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._handed_on or kind is not None:
            self.release()


async def read_body(request: Request, limit: int, reservation: Reservation, factor: int = 1) -> bytes:
    """A request's body.

    Args:
        limit: bytes.
        factor: bytes to reserve for each.

    Raises:
        Problem: 400, its length is no number, or it is empty; 408, it comes too slowly; 413, it is too long;
            429, there is no room now.
        ClientDisconnect: the client went away.
    """

    def check(size: int) -> None:
        if size > limit:
            raise Problem(413, "BodyTooLarge", f"a body of more than {limit} bytes, expected a shorter one")
        reservation.grow(size * factor)

    length = request.headers.get("content-length")
    if length is not None:
        if not (length.isascii() and length.isdigit() and len(length) < 20):
            raise Problem(400, "InvalidInput", "Content-Length: expected a number of bytes")
        check(int(length))
    # Its value is this very buffer, without a copy, once nothing is appended any more.
    buffer = io.BytesIO()
    chunks = request.stream().__aiter__()
    loop = asyncio.get_running_loop()
    begun = loop.time()
    while True:
        latest = min(loop.time(), begun + buffer.tell() / SLOWEST) + PAUSE_SECONDS
        try:
            async with asyncio.timeout_at(latest):
                chunk = await anext(chunks)
        except StopAsyncIteration:
            break
        except TimeoutError:
            raise Problem(408, "RequestTimeout", "the body comes too slowly") from None
        check(buffer.tell() + len(chunk))
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
