"""Where a verifier listens: the path of a Unix socket, or a host and a port."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from gpuprover.config import whole_number
from gpuprover.errors import DeviceError, InvalidInput
from gpuprover.messages import ConnectionLost

BACKLOG = 128
_PATH_BYTES = 100
"""Of a Unix socket's path, with room below the 108 that Linux has."""


class Address(NamedTuple):
    """``path`` of a Unix socket, or else ``host`` and ``port`` of TCP."""

    path: str | None = None
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        if self.path is not None:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def unix_address(path: str) -> Address:
    """The Unix socket at a path.

    Raises:
        InvalidInput: the path is empty or too long for a socket.
    """
    length = len(os.fsencode(path))
    if not 0 < length <= _PATH_BYTES or "\0" in path:
        raise InvalidInput(f"socket: a path of {length} bytes, expected 1 to {_PATH_BYTES}")
    return Address(path=path)


def tcp_address(text: str) -> Address:
    """``HOST:PORT``, ``[IPv6]:PORT``.

    Raises:
        InvalidInput: it is neither.
    """
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not bare or (":" in bare and bare == host):
        raise InvalidInput(f"address: expected HOST:PORT, found {text[:60]!r}")
    return Address(host=bare, port=whole_number(port, f"port of {host}", low=0, high=65535))


def parse_address(text: str) -> Address:
    """A path, which has a slash in it, or ``HOST:PORT``.

    Raises:
        InvalidInput: it is neither.
    """
    return unix_address(text) if "/" in text else tcp_address(text)


def connect(address: Address, timeout: float) -> socket.socket:
    """A connection to whoever listens.

    Raises:
        ConnectionLost: nobody does, or not within that many seconds.
    """
    try:
        if address.path is None:
            return socket.create_connection((address.host, address.port), timeout)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(timeout)
            connection.connect(address.path)
        except BaseException:
            connection.close()
            raise
        return connection
    except OSError as error:
        raise ConnectionLost(f"{address}: no verifier answers: {error.strerror or error}") from None


class Listener:
    """A listening socket.

    A Unix socket is its user's alone (mode 0600), in a folder that nobody else writes to; one that a dead
    process left is replaced, and it is removed on close.

    Raises:
        InvalidInput: the folder is no place for it, or something else is at the path.
        DeviceError: the system refuses the address.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self._identity: tuple[int, ...] | None = None
        try:
            if address.path is not None:
                self.socket = self._unix(Path(address.path))
            else:
                family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
                self.socket = socket.create_server(
                    (address.host, address.port), family=family, backlog=BACKLOG
                )
                self.address = address._replace(port=self.socket.getsockname()[1])
        except OSError as error:
            raise DeviceError(f"{address}: cannot listen: {error.strerror or error}") from None
        self.socket.setblocking(False)

    def _unix(self, path: Path) -> socket.socket:
        folder = path.parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = folder.stat()
        shared = info.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not info.st_mode & stat.S_ISVTX
        if shared or info.st_uid not in (0, os.getuid()):
            raise InvalidInput(f"{path}: others may write to this folder, expected one of this user's own")
        _remove_stale(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # The socket is created with its final mode: no other thread of this process makes files meanwhile.
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
            listener.listen(BACKLOG)
        except BaseException:
            listener.close()
            raise
        finally:
            os.umask(before)
        self._identity = _identity(path)
        return listener

    def close(self) -> None:
        self.socket.close()
        if self.address.path is not None:
            with suppress(OSError):
                if _identity(Path(self.address.path)) == self._identity:
                    os.unlink(self.address.path)


def _identity(path: Path) -> tuple[int, ...]:
    info = path.lstat()
    # A file system may give the number of a removed file to the next one at once.
    return info.st_dev, info.st_ino, info.st_ctime_ns


def _remove_stale(path: Path) -> None:
    """Removes a socket on which nobody listens. Raises InvalidInput for anything else at the path."""
    try:
        info = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(info.st_mode):
        raise InvalidInput(f"{path}: exists and is no socket")
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    probe.settimeout(1.0)
    try:
        probe.connect(str(path))
    except (ConnectionRefusedError, FileNotFoundError):
        with suppress(FileNotFoundError):
            path.unlink()
        return
    except OSError as error:
        raise InvalidInput(f"{path}: a socket that cannot be used: {error.strerror or error}") from None
    finally:
        probe.close()
    raise InvalidInput(f"{path}: another process listens there")
