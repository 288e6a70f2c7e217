"""What every request passes: an id, a trace, headers of the answer, a line in the log; and nothing leaks.

An id comes with ``X-Request-Id`` or is drawn here, and stands in the answer, in its problem document and in
the log. ``traceparent`` is read as W3C's Trace Context has it, and answered with ``traceresponse``.
"""

from __future__ import annotations

import errno
import logging
import re
import secrets
import time
import uuid
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass

from h11 import LocalProtocolError
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpuprover.errors import code_location
from gpuprover.logs import bound
from gpuprover.service.problems import MEDIA_TYPE, Problem
from gpuprover.service.shares import Turns, tenant_of

log = logging.getLogger("gpuprover.service")
access_log = logging.getLogger("gpuprover.service.access")

PROBES = ("/healthz", "/readyz", "/metrics")
"""Asked every few seconds by machines: what is well is not worth a line."""
POLLED = ("/", "/v1/status", "/status")
"""Asked every second by status pages: what is well is not worth a line, what is refused is."""
MAX_PATH = 200
"""Characters of a path in the log; clients choose them."""
KIND = "gpuprover.kind"
"""Where a request's scope has the kind of the error that it was answered with."""
CLIENT_GONE = 499
"""In logs and metrics: the client did not wait for its answer."""

MAX_HEADERS = 100
MAX_QUERY = 8 << 10
NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._\-]{1,128}")
_TRACE = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")

Observer = Callable[[str, int, float], None]
"""Called after each request: its route (``GET /v1/status``), status, seconds."""


@dataclass(frozen=True)
class RequestContext:
    """A request's id, and where it belongs in a trace; lower-case hexadecimal digits."""

    request_id: str
    trace_id: str
    span_id: str
    flags: str

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Of the answer."""
        trace = f"00-{self.trace_id}-{self.span_id}-{self.flags}"
        return [
            (b"x-request-id", self.request_id.encode()),
            (b"traceresponse", trace.encode()),
            (b"x-content-type-options", b"nosniff"),
        ]


current: ContextVar[RequestContext | None] = ContextVar("gpuprover-request", default=None)
"""The request that is being answered, if any."""


def read_context(headers: dict[bytes, bytes]) -> RequestContext:
    """From the headers, as far as they are well-formed."""
    given = headers.get(b"x-request-id", b"").decode("latin-1")
    request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
    trace_id, flags = secrets.token_hex(16), "00"
    match = _TRACE.fullmatch(headers.get(b"traceparent", b"").decode("latin-1").strip())
    if match is not None:
        version, trace, parent, given_flags, more = match.groups()
        valid = version != "ff" and not (version == "00" and more)
        if valid and trace.strip("0") and parent.strip("0"):
            trace_id, flags = trace, f"{int(given_flags, 16) & 1:02x}"
    return RequestContext(request_id, trace_id, secrets.token_hex(8), flags)


class Surroundings:
    """The outermost middleware of ours."""

    def __init__(self, app: ASGIApp, observe: Observer) -> None:
        self.app, self._observe = app, observe
        self._turns = Turns()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        context = read_context(dict(scope["headers"]))
        token = current.set(context)
        try:
            with bound(request_id=context.request_id, trace_id=context.trace_id):
                await self._answer(context, scope, receive, send)
        finally:
            current.reset(token)

    async def _answer(self, context: RequestContext, scope: Scope, receive: Receive, send: Send) -> None:
        begun, status = time.perf_counter(), 0
        method = str(scope["method"])
        # As GET, whatever route it is, but for the body.
        bare = method == "HEAD"
        if bare:
            scope = {**scope, "method": "GET"}

        async def answer(message: Message) -> None:
            nonlocal status
            if bare and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *context.headers]
                if not any(name == b"cache-control" for name, _ in message["headers"]):
                    message["headers"].append((b"cache-control", b"no-store"))
            await send(message)

        try:
            await self._turns.take(tenant_of((scope.get("client") or ("",))[0]))
            problem = framing(scope)
            if problem is None:
                await self.app(scope, receive, answer)
            else:
                await _refuse(answer, context, problem)
        except (ClientDisconnect, LocalProtocolError):
            # The latter: it has sent what is no HTTP meanwhile, and that was answered already.
            status = CLIENT_GONE
        except Exception as error:
            problem = exhausted(error)
            if problem is not None:
                log.warning("a request fails: %s", problem.detail)
            else:
                # Of an unexpected exception only kind and place: its text may hold values of a witness.
                where = code_location(error.__traceback__)
                log.error("%s in %s; this is a bug in gpuprover", type(error).__name__, where)
                problem = Problem(500, "InternalError", "a fault of the service; its log says where")
            scope[KIND] = problem.kind
            if status == 0:
                await _refuse(answer, context, problem)
        finally:
            seconds = time.perf_counter() - begun
            route = getattr(scope.get("route"), "path", None)
            status = status or CLIENT_GONE
            self._observe(f"{scope['method']} {route or 'unknown'}", status, seconds)
            path = bytes(scope.get("raw_path") or b"").decode("ascii", "backslashreplace")[:MAX_PATH]
            event = {
                "client": (scope.get("client") or [None])[0],
                "method": method,
                "route": route,
                "path": path,
                "status": status,
                "kind": scope.get(KIND),
                "seconds": round(seconds, 6),
            }
            quiet = (route in PROBES and status < 500) or (route in POLLED and status < 400)
            level = logging.DEBUG if quiet else logging.INFO
            access_log.log(level, "%s %s %d", method, path, status, extra={"event": event})


def framing(scope: Scope) -> Problem | None:
    """What is wrong with a request before it has a route. Where a server in front might see another end of
    its body than we do, the connection ends with the answer (RFC 9112, 6.1)."""
    names = [name for name, _ in scope["headers"]]
    if b"transfer-encoding" in names and (b"content-length" in names or scope["http_version"] == "1.0"):
        return Problem(
            400,
            "InvalidInput",
            "Transfer-Encoding: expected none beside Content-Length, nor in HTTP/1.0",
            {"Connection": "close"},
        )
    if len(names) > MAX_HEADERS:
        detail = f"{len(names)} headers, expected at most {MAX_HEADERS}"
        return Problem(431, "HeadersTooLarge", detail, {"Connection": "close"})
    if len(scope["query_string"]) > MAX_QUERY:
        detail = f"a query of {len(scope['query_string'])} bytes, expected at most {MAX_QUERY}"
        return Problem(414, "UriTooLong", detail)
    return None


def exhausted(error: Exception) -> Problem | None:
    """The answer where the machine had no room, which is no bug of ours."""
    if isinstance(error, OSError) and error.errno in NO_DESCRIPTORS:
        return Problem(503, "DeviceError", "too many files are open; try again")
    if isinstance(error, MemoryError):
        return Problem(503, "OutOfMemory", "the service lacks memory; try again")
    return None


async def _refuse(send: Send, context: RequestContext, problem: Problem) -> None:
    body = problem.body(context.request_id)
    given = {"content-type": MEDIA_TYPE, "content-length": str(len(body)), **problem.headers}
    headers = [(name.lower().encode(), value.encode()) for name, value in given.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
