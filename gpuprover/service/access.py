"""Who may ask: bearer tokens of a file, and, where there are none, no other site's pages."""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from gpuprover.errors import InvalidInput, ProverError
from gpuprover.formats.files import open_regular
from gpuprover.service.problems import Problem
from gpuprover.settings import PRIORITIES

log = logging.getLogger("gpuprover.service")

MAX_FILE = 1 << 20
SHORTEST = 16
LOOK_SECONDS = 1.0
"""Between two looks at the file."""

_TOKEN = re.compile(rf"([A-Za-z0-9\-._~+/]{{{SHORTEST},512}}=*)(?:[ \t]+priority=(\d{{1,4}}))?")
_AUTHORITY = re.compile(r"(\[[0-9A-Za-z:.%]*\]|[^\[\]:/?#@\\]*)(?::\d*)?")


@dataclass(frozen=True)
class Caller:
    """Who asks.

    Attributes:
        owner: whose Idempotency-Keys these are: the token's digest; empty without tokens.
        tenant: who shares with others (:mod:`shares`).
        priority: the highest that may be asked for.
    """

    owner: str
    tenant: str
    priority: int


class Tokens:
    """The tokens of a file: one a line, of at least 16 characters; blank lines and lines with ``#`` are none.
    ``priority=N`` after a token is the highest priority that its requests may ask for.

    A file without a token asks for none. Once it had one, everything without a token is refused for as long
    as the process lives: a file that somebody empties revokes tokens, and does not open the door. A file that
    cannot be read any more, or has a line that is no token, leaves those that were.

    Args:
        path: None for no file.
        clock: seconds that never go backwards.

    Raises:
        InvalidInput: the file cannot be read, or has a line that is no token.
    """

    def __init__(self, path: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self._digests: Mapping[bytes, int | None] = {}
        self._required = False
        self._identity: tuple[int, ...] | None = None
        self._looked = clock()
        if path is not None:
            self._identity = _identity(path)
            self._set(_read(path))

    def _set(self, digests: Mapping[bytes, int | None]) -> None:
        self._digests = digests
        self._required = self._required or bool(digests)

    @property
    def required(self) -> bool:
        self._look()
        return self._required

    def _look(self) -> None:
        now = self._clock()
        if self._path is None or now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        identity = _identity(self._path)
        if identity == self._identity:
            return
        self._identity = identity
        try:
            digests = _read(self._path)
        except ProverError as error:
            log.warning("the tokens stay as they were: %s", error.message)
            return
        self._set(digests)
        log.info("%d tokens read from %s", len(digests), self._path)

    def accept(self, token: str) -> bool:
        """Whether it is one of them. What is looked up is a digest, so that times tell nothing of a token."""
        self._look()
        return _digest(token) in self._digests

    def priority(self, token: str) -> int | None:
        """The priority that the token's line allows; None if it says nothing."""
        return self._digests.get(_digest(token))


def _digest(token: str) -> bytes:
    return sha256(token.encode("utf-8", "surrogateescape")).digest()


def _identity(path: Path) -> tuple[int, ...] | None:
    try:
        info = os.stat(path)
    except OSError:
        return None
    return info.st_dev, info.st_ino, info.st_mtime_ns, info.st_size


def _read(path: Path) -> Mapping[bytes, int | None]:
    file, size = open_regular(path)
    with file:
        text = file.read(MAX_FILE + 1) if size <= MAX_FILE else b""
    if not size <= MAX_FILE:
        raise InvalidInput(f"{path}: {size} bytes, expected at most {MAX_FILE}")
    digests: dict[bytes, int | None] = {}
    for i, line in enumerate(text.decode("utf-8", "replace").splitlines(), 1):
        token = line.strip()
        if not token or token.startswith("#"):
            continue
        match = _TOKEN.fullmatch(token)
        if match is None or int(match[2] or 0) > PRIORITIES:
            raise InvalidInput(
                f"{path}: line {i}: expected a token of {SHORTEST} to 512 letters, digits and -._~+/, and "
                f"after it nothing or priority=0 to priority={PRIORITIES}"
            )
        digests[_digest(match[1])] = None if match[2] is None else int(match[2])
    return digests


def is_loopback(host: str) -> bool:
    """Whether an address, or ``localhost``, is this machine's own."""
    name = host.strip("[]").partition("%")[0].lower()
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def check_site(headers: list[tuple[bytes, bytes]], *, local: bool) -> None:
    """Refuses what a browser sends for the page of another site. For services without tokens: there, whoever
    reaches the port is trusted, and a page must not borrow its reader's place.

    Args:
        headers: the request's headers, names in lower case.
        local: the service listens on a loopback address; then a ``Host`` has to name one, or else a name that
            its owner points here later would do (DNS rebinding).

    Raises:
        Problem: 403.
    """
    values = {name: value.decode("latin-1") for name, value in headers if name in (b"host", b"origin")}
    host, origin = values.get(b"host", ""), values.get(b"origin")
    authority = _AUTHORITY.fullmatch(host)
    if local and host and (authority is None or not is_loopback(authority[1])):
        raise Problem(
            403,
            "ForeignHost",
            "without tokens, a service on a loopback address answers to its own names only",
        )
    if origin is not None and (not host or origin.partition("://")[2] != host):
        raise Problem(403, "ForeignOrigin", "without tokens, pages of other sites may not use the service")
