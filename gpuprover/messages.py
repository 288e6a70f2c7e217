"""Messages between processes: JSON objects in frames over a stream socket, with file descriptors if need be.

A frame is its length in bytes (32 bits, little-endian) and as many bytes of UTF-8 JSON, an object. The other
side is not trusted: a length beyond the limit is refused, a length within it is not believed before so many
bytes have come, and what :func:`gpuprover.formats.json_files.parse_json` refuses in a file is refused here.
Nothing is ever unpickled. Over a Unix socket a frame may carry descriptors (SCM_RIGHTS), with its first byte.

Where both sides share a secret, a frame is followed by a tag (:class:`Seal`), and one whose tag does not hold
is refused before anything looks into it.
"""

from __future__ import annotations

import array
import hashlib
import hmac
import json
import math
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from gpuprover.errors import EXIT_RESOURCES, InvalidInput, MalformedFile, ProverError, Timeout
from gpuprover.formats.json_files import MAX_DEPTH, parse_json

MAX_FRAME = 32 << 20
"""Bytes of a frame's JSON, unless a channel says less."""
PIECE = 1 << 16
"""Bytes that are read at once: the memory that an announced length takes before its bytes come."""

_HEADER = struct.Struct("<I")
_COUNTER = struct.Struct("<Q")
TAG_BYTES = 32
_MAX_BITS = 1300
"""The most bits of an integer in a message: below the digits that the other side's parser takes."""


class BrokenMessage(ProverError):
    """The other side sent what is no message; nothing more can be received from it."""

    exit_code = EXIT_RESOURCES


class ConnectionLost(ProverError):
    """The other side closed the connection, or died."""

    exit_code = EXIT_RESOURCES


class AccessDenied(ProverError):
    """The other side is not whom it should be, or does not take us for one of its own."""


def encode(document: dict[str, Any], limit: int = MAX_FRAME) -> bytes:
    """A frame that every :class:`Channel` with this limit can receive.

    Raises:
        InvalidInput: the document holds what JSON has no form for (NaN, bytes, names that are no text),
            numbers of some 400 digits, lists in lists 256 deep, or is too long.
    """
    _check(document, 0)
    body = json.dumps(document, allow_nan=False, separators=(",", ":")).encode()
    if len(body) > limit:
        raise InvalidInput(f"message: {len(body)} bytes, expected at most {limit}")
    return _HEADER.pack(len(body)) + body


def _check(value: object, depth: int) -> None:
    if isinstance(value, str) or value is None:
        return
    if isinstance(value, int):
        if value.bit_length() > _MAX_BITS:
            raise InvalidInput(f"message: an integer of {value.bit_length()} bits, expected {_MAX_BITS}")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidInput("message: a number that is not finite, expected JSON")
    elif depth >= MAX_DEPTH:
        raise InvalidInput(f"message: nested too deeply, expected at most {MAX_DEPTH} levels")
    elif isinstance(value, dict):
        for name, entry in value.items():
            if not isinstance(name, str):
                raise InvalidInput("message: a name that is no text, expected JSON")
            _check(entry, depth + 1)
    elif isinstance(value, list | tuple):
        for entry in value:
            _check(entry, depth + 1)
    else:
        raise InvalidInput(f"message: a value of type {type(value).__name__}, expected JSON")


class Seal:
    """The tags of the frames that go one way over one connection: HMAC-SHA256 over their number and their
    bytes.

    Args:
        key: the key of this direction of this connection alone; then no frame can be repeated, left
            out, moved, or sent back.
    """

    def __init__(self, key: bytes) -> None:
        self._key, self._count = key, 0

    def tag(self, *parts: bytes | bytearray) -> bytes:
        """The tag of the next frame, 32 bytes."""
        mac = hmac.new(self._key, _COUNTER.pack(self._count), hashlib.sha256)
        for part in parts:
            mac.update(part)
        self._count += 1
        return mac.digest()


class Frames:
    """Frames out of the bytes that come. It has no socket and waits for nothing.

    Args:
        limit: bytes of the longest frame.

    Attributes:
        seal: the other side's tags, which its frames have from the next one on.
    """

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self.limit = limit
        self.seal: Seal | None = None
        self._header, self._body = bytearray(), bytearray()
        self._size: int | None = None

    @property
    def begun(self) -> bool:
        """Whether a part of a frame has come, and its rest has not."""
        return bool(self._header)

    @property
    def size(self) -> int:
        """Bytes that the frame being received has by its header; 0 before the header has come."""
        return self._size or 0

    @property
    def wanted(self) -> int:
        """How many bytes may be fed next: never beyond the frame's end, nor beyond :data:`PIECE`."""
        if self._size is None:
            return _HEADER.size - len(self._header)
        whole = self._size + (0 if self.seal is None else TAG_BYTES)
        return min(PIECE, whole - len(self._body))

    def feed(self, data: bytes) -> bytes | None:
        """Takes at most :attr:`wanted` bytes -> the frame's JSON once it is whole.

        Raises:
            BrokenMessage: the length is beyond the limit, or the tag does not hold.
        """
        if self._size is None:
            self._header += data
            if len(self._header) == _HEADER.size:
                (size,) = _HEADER.unpack(self._header)
                if not 0 < size <= self.limit:
                    raise BrokenMessage(f"message: {size} bytes announced, expected 1 to {self.limit}")
                self._size = size
            return None
        self._body += data
        if self.wanted:
            return None
        header, body, size = self._header, self._body, self._size
        self._header, self._body, self._size = bytearray(), bytearray(), None
        if self.seal is None:
            return bytes(body)
        tag = bytes(body[size:])
        del body[size:]
        if not hmac.compare_digest(tag, self.seal.tag(header, body)):
            raise BrokenMessage("message: its tag does not hold, expected one under the shared secret")
        return bytes(body)


def parse_frame(body: bytes) -> dict[str, Any]:
    """The document in a frame.

    Raises:
        BrokenMessage: it is no JSON object, or one that :func:`parse_json` refuses.
    """
    try:
        document = parse_json(body, "message")
    except MalformedFile as error:
        raise BrokenMessage(error.message) from None
    except RecursionError:
        raise BrokenMessage("message: nested too deeply") from None
    if not isinstance(document, dict):
        raise BrokenMessage("message: expected a JSON object")
    return document


class Channel:
    """Messages over one connected stream socket, which it owns from now on.

    Any number of threads may send, and one at a time receive, also while others send; any may close.

    Args:
        connection: a Unix or TCP socket.
        limit: bytes of the longest frame that is received.
        max_fds: so many file descriptors may come with a message; none by default. Further ones are refused.
    """

    def __init__(self, connection: socket.socket, *, limit: int = MAX_FRAME, max_fds: int = 0) -> None:
        self._socket = connection
        self._socket.setblocking(False)
        self._unix = connection.family == getattr(socket, "AF_UNIX", None)
        if not self._unix:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # Otherwise nobody would ever learn of a machine that went away without a word.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._max_fds = max_fds
        self._sending, self._receiving = threading.RLock(), threading.RLock()
        self._closed = False
        # It keeps what has come of a frame: a receive that runs out of time can be repeated.
        self._frames = Frames(limit)
        self._seal: Seal | None = None
        self._descriptors: list[int] = []
        self._refusal: ProverError | None = None

    @property
    def closed(self) -> bool:
        return self._closed

    def secure(self, ours: Seal, theirs: Seal) -> None:
        """From the next frame on, each carries a tag: those that are sent of ``ours``, the others of
        ``theirs``."""
        self._seal, self._frames.seal = ours, theirs

    # Sending -----------------------------------------------------------------------

    def send(
        self, document: dict[str, Any], fds: Sequence[int] = (), *, timeout: float | None = None
    ) -> None:
        """Sends one message. The file descriptors stay the caller's.

        Raises:
            InvalidInput: the document cannot be sent (:func:`encode`), or descriptors over TCP.
            ConnectionLost: nobody receives any more.
            Timeout: the other side took less than the message in that many seconds; the channel is closed.
        """
        self.send_frame(encode(document), fds, timeout=timeout)

    def send_frame(self, frame: bytes, fds: Sequence[int] = (), *, timeout: float | None = None) -> None:
        """As :meth:`send`, for what :func:`encode` returned."""
        if fds and not self._unix:
            raise InvalidInput("message: file descriptors need a Unix socket")
        deadline = _deadline(timeout)
        with self._sending:
            view = memoryview(frame if self._seal is None else frame + self._seal.tag(frame))
            attached: list[tuple[int, int, array.array[int]]] = []
            if fds:
                attached = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
            while view:
                self._check_open()
                try:
                    sent = self._socket.sendmsg([view], attached) if attached else self._socket.send(view)
                except BlockingIOError:
                    if not self._wait(select.POLLOUT, deadline):
                        self._shut()
                        raise Timeout(f"message: not taken by the other side in {timeout} s") from None
                    continue
                except OSError as error:
                    raise _lost(error) from None
                view, attached = view[sent:], []

    # Receiving ---------------------------------------------------------------------

    def receive(self, timeout: float | None = None) -> tuple[dict[str, Any], list[int]]:
        """The next message, and its descriptors, which are the caller's to close.

        Args:
            timeout: seconds for the whole message. What has come of it by then is kept for the next call.

        Raises:
            Timeout: no whole message came in time.
            ConnectionLost: the other side closed the connection, perhaps within a message.
            BrokenMessage: the bytes are no message. Every further call raises it again.
        """
        deadline = _deadline(timeout)
        descriptors: list[int] = []
        try:
            with self._receiving:
                if self._refusal is not None:
                    raise self._refusal
                body = None
                while body is None:
                    body = self._frames.feed(self._read(self._frames.wanted, deadline))
                descriptors, self._descriptors = self._descriptors, []
            # Without the lock: whoever closes the channel does not wait for what others have to parse.
            return parse_frame(body), descriptors
        except BrokenMessage as error:
            self._refusal = error
            _close_all(descriptors)
            with self._receiving:
                self._drop_descriptors()
            raise

    def _read(self, count: int, deadline: float | None) -> bytes:
        """1 to ``count`` bytes."""
        while True:
            self._check_open()
            try:
                data = self._read_some(count)
            except BlockingIOError:
                if not self._wait(select.POLLIN, deadline):
                    raise Timeout("message: none came in time") from None
                continue
            except OSError as error:
                raise _lost(error) from None
            if not data:
                raise ConnectionLost(
                    "the other side closed the connection"
                    + (" within a message" if self._frames.begun else "")
                )
            return data

    def _read_some(self, count: int) -> bytes:
        if not self._unix:
            return self._socket.recv(count)
        room = socket.CMSG_SPACE(4 * self._max_fds) if self._max_fds else 0
        data, attached, flags, _ = self._socket.recvmsg(count, room, socket.MSG_CMSG_CLOEXEC)
        for level, kind, content in attached:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                numbers = array.array("i")
                numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
                self._descriptors += numbers
        if flags & socket.MSG_CTRUNC or len(self._descriptors) > self._max_fds:
            raise BrokenMessage(f"message: expected at most {self._max_fds} file descriptors")
        return data

    # Both --------------------------------------------------------------------------

    def _wait(self, event: int, deadline: float | None) -> bool:
        """Whether the socket is ready, or has come to its end, before the deadline."""
        poll = select.poll()
        poll.register(self._socket, event)
        if deadline is None:
            return bool(poll.poll())
        return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))

    def _check_open(self) -> None:
        if self._closed:
            raise ConnectionLost("the connection is closed")

    def _shut(self) -> None:
        """Ends both directions: whoever waits in another thread wakes up."""
        self._closed = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _drop_descriptors(self) -> None:
        _close_all(self._descriptors)
        self._descriptors = []

    def close(self) -> None:
        """Ends the connection. Threads that send or receive get ConnectionLost. May be called again."""
        self._shut()
        with self._sending, self._receiving:
            self._drop_descriptors()
            self._socket.close()


def _close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        with suppress(OSError):
            os.close(descriptor)


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


def _lost(error: OSError) -> ConnectionLost:
    return ConnectionLost(f"the connection broke: {error.strerror or error}")
