"""Answers for pages of any site: DApps ask a prover on their reader's machine.

Source: the Fetch standard, section "CORS protocol", and "Private Network Access" for its preflight.
"""

from __future__ import annotations

from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_AGE = 3600
"""Seconds for which a browser need not ask again."""
METHODS = b"GET, POST, OPTIONS"
EXPOSED = b"retry-after, x-request-id"
_VARY = (
    b"origin, access-control-request-method, access-control-request-headers, "
    b"access-control-request-private-network"
)


class AnyOrigin:
    """Lets pages of any origin read the answers of some paths. No cookie is ever asked for: a token comes in
    a header, which the page has to know.

    Args:
        paths: whole paths, or their beginnings where they end in a slash.
    """

    def __init__(self, app: ASGIApp, paths: Collection[str]) -> None:
        self.app = app
        self._paths = frozenset(path for path in paths if path == "/" or not path.endswith("/"))
        self._begin = tuple(path for path in paths if path != "/" and path.endswith("/"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http" or not (path in self._paths or path.startswith(self._begin)):
            await self.app(scope, receive, send)
            return
        given = dict(scope["headers"])
        origin = given.get(b"origin")
        if origin is None:
            await self.app(scope, receive, send)
            return
        allowed = [(b"access-control-allow-origin", origin), (b"vary", _VARY)]
        if scope["method"] == "OPTIONS" and b"access-control-request-method" in given:
            allowed += [
                (b"access-control-allow-methods", METHODS),
                (b"access-control-max-age", str(MAX_AGE).encode()),
                (b"content-length", b"0"),
            ]
            wanted = given.get(b"access-control-request-headers")
            if wanted is not None:
                allowed.append((b"access-control-allow-headers", wanted))
            if given.get(b"access-control-request-private-network") == b"true":
                allowed.append((b"access-control-allow-private-network", b"true"))
            await send({"type": "http.response.start", "status": 200, "headers": allowed})
            await send({"type": "http.response.body", "body": b""})
            return
        allowed.append((b"access-control-expose-headers", EXPOSED))

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *allowed]}
            await send(message)

        await self.app(scope, receive, answer)
