"""Where a verifier listens: the path of a Unix socket, or a host and a port; and who is at the other end.

Whoever answers decides what holds, so that a client has to know whom it asks. Over a Unix socket the system
says under which user the other process runs. Over TCP a shared secret does
(:mod:`gpuprover.verifier.secret`); without one, both sides stay on this machine unless they are told
otherwise.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
import struct
import sys
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from gpuprover.errors import DeviceError, InvalidInput
from gpuprover.messages import AccessDenied, ConnectionLost
from gpuprover.settings import whole_number

BACKLOG = 128
_CREDENTIALS = struct.Struct("3i")
_PATH_BYTES = 100
"""The most bytes of a Unix socket's path, with room below the 108 that Linux has."""


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


def stays_here(address: Address) -> bool:
    """Whether an address is one of this machine alone, as far as its text says."""
    return address.path is not None or address.host == "localhost" or _is_loopback(address.host)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def trusted_users(others: Collection[int] = ()) -> frozenset[int]:
    """User ids that a Unix socket's other end may have: this process's, root's, and others that are named."""
    return frozenset({os.geteuid(), 0, *others})


def peer_user(connected: socket.socket) -> int | None:
    """The user id of the process at the other end of a Unix socket, as it was when it connected or listened;
    None where the system does not say."""
    if sys.platform != "linux":
        return None
    raw = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(raw)[1])


def connect(
    address: Address, timeout: float, *, users: Collection[int] = (), anywhere: bool = True
) -> socket.socket:
    """A connection to whoever listens.

    Args:
        users: who may listen on a Unix socket, besides this user and root.
        anywhere: TCP may lead to another machine.

    Raises:
        ConnectionLost: nobody listens, or not within that many seconds.
        AccessDenied: another user does, or could have put another socket there; or another machine.
    """
    try:
        if address.path is None:
            connection = socket.create_connection((address.host, address.port), timeout)
            if not anywhere and not _is_loopback(str(connection.getpeername()[0])):
                connection.close()
                raise AccessDenied(f"{address}: another machine, expected this one, or a shared secret")
            return connection
        trusted = trusted_users(users)
        _check_place(Path(address.path), trusted)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(timeout)
            connection.connect(address.path)
            user = peer_user(connection)
            if user is not None and user not in trusted:
                raise AccessDenied(f"{address}: user {user} listens there, expected {_users(trusted)}")
        except BaseException:
            connection.close()
            raise
        return connection
    except OSError as error:
        raise ConnectionLost(f"{address}: no verifier answers: {error.strerror or error}") from None


def _check_place(path: Path, trusted: Collection[int]) -> None:
    """Raises AccessDenied if somebody else owns a socket or its folder, or may replace it; OSError if it is
    not there."""
    info = path.lstat()
    if not stat.S_ISSOCK(info.st_mode):
        raise AccessDenied(f"{path}: no socket, expected that of a verifier")
    if info.st_uid not in trusted:
        raise AccessDenied(f"{path}: a socket of user {info.st_uid}, expected one of {_users(trusted)}")
    folder = path.parent.stat()
    if folder.st_uid not in trusted or _writable_by_others(folder):
        raise AccessDenied(f"{path}: others may write to its folder, expected one of {_users(trusted)} alone")


def _users(trusted: Collection[int]) -> str:
    return " or ".join(f"user {user}" for user in sorted(trusted))


def _writable_by_others(folder: os.stat_result) -> bool:
    """In a folder with the sticky bit, nobody removes or renames what is another's."""
    return bool(folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH)) and not folder.st_mode & stat.S_ISVTX


class Listener:
    """A listening socket.

    A Unix socket is its user's alone (mode 0600), in a folder that nobody else writes to; one that a dead
    process left is replaced, and it is removed on close.

    Args:
        users: ids of users who may connect to a Unix socket besides this one and root; with any, its mode is
            0666, and whoever else connects is turned away.
        anywhere: a TCP address may be one that other machines reach.

    Raises:
        InvalidInput: the folder is no place for it, or something else is at the path; other machines reach
            the address.
        DeviceError: the system refuses the address.
    """

    def __init__(self, address: Address, *, users: Collection[int] = (), anywhere: bool = False) -> None:
        self.address = address
        self._trusted = trusted_users(users)
        self._enders = {f"user {user}" for user in trusted_users()} if users else None
        self._mode = 0o666 if users else 0o600
        self._identity: tuple[int, ...] | None = None
        try:
            if address.path is not None:
                self.socket = self._unix(Path(address.path))
            else:
                self.socket = self._tcp(anywhere)
                self.address = address._replace(port=self.socket.getsockname()[1])
        except OSError as error:
            raise DeviceError(f"{address}: cannot listen: {error.strerror or error}") from None
        self.socket.setblocking(False)

    def admitted(self, connected: socket.socket) -> str | None:
        """Who has connected: a user, an IPv4 address, the network of an IPv6 one. None for one who may not.

        Raises:
            OSError: the connection has ended.
        """
        if self.address.path is None:
            host = str(connected.getpeername()[0])
            return ":".join(host.split(":")[:4]) if ":" in host else host
        user = peer_user(connected)
        return f"user {user}" if user is None or user in self._trusted else None

    def may_end(self, peer: str) -> bool:
        """Whether a peer that was admitted may end the verifier: this user and root, not those that are named
        besides."""
        return self.address.path is not None and (self._enders is None or peer in self._enders)

    def _tcp(self, anywhere: bool) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.address.host else socket.AF_INET
        listener = socket.create_server(
            (self.address.host, self.address.port), family=family, backlog=BACKLOG
        )
        if not anywhere and not _is_loopback(str(listener.getsockname()[0])):
            listener.close()
            raise InvalidInput(
                f"--listen {self.address}: other machines reach it, expected a loopback address, "
                "--secret-file for clients that share a secret, or --insecure"
            )
        return listener

    def _unix(self, path: Path) -> socket.socket:
        folder = path.parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = folder.stat()
        if _writable_by_others(info) or info.st_uid not in (0, os.getuid()):
            raise InvalidInput(f"{path}: others may write to this folder, expected one of this user's own")
        _remove_stale(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # The socket is created with its final mode: no other thread of this process makes files meanwhile.
        before = os.umask(0o777 & ~self._mode)
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
