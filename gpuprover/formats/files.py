"""Opening files that strangers made, and replacing files that people depend on.

Reading: only regular files are opened (a FIFO would hang, a device never end), and what the system refuses
becomes one line that names the path. A caller who has secrets to hand over may name a pipe where
:func:`read_pipe` is asked: it is read within bounds of size and time. Writing: everything goes to a temporary
file in the target's folder, is synced, and then takes the target's place, so that a reader sees the old file
or the whole new one.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from gpuprover.errors import DeviceError, InvalidInput, OutOfMemory, ProverError

Pathish = str | os.PathLike[str]

PIPE_SECONDS = 600.0
"""A pipe may be silent for so long: whoever writes into it may compute first."""
_PIECE = 1 << 20

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_NO_RESOURCES = {errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENFILE}


def as_path(path: object, what: str = "path") -> Path:
    """A usable Path from a caller's argument. Raises InvalidInput for anything that is none."""
    if not isinstance(path, str | os.PathLike):
        raise InvalidInput(f"{what}: expected a file path, found {type(path).__name__}")
    try:
        text = os.fspath(path)
    except TypeError:  # its __fspath__ gives something else
        raise InvalidInput(f"{what}: expected a file path, found {type(path).__name__}") from None
    if not isinstance(text, str):
        text = os.fsdecode(text)
    if not text:
        raise InvalidInput(f"{what}: expected a file path, found an empty string")
    if "\0" in text:
        raise InvalidInput(f"{what}: a file path cannot contain a zero byte")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise InvalidInput(f"{what}: a file path cannot contain half a character (a surrogate)") from None
    return Path(text)


def os_problem(path: object, error: OSError, action: str) -> ProverError:
    """The typed error for what the operating system refused."""
    if error.errno in _NO_SPACE:
        return DeviceError(f"cannot {action}: no space left on the disk", path=path)
    if error.errno == errno.ENOMEM:
        return OutOfMemory(f"cannot {action}: {error.strerror}", path=path)
    if error.errno in _NO_RESOURCES:
        return DeviceError(f"cannot {action}: {error.strerror}", path=path)
    return InvalidInput(f"cannot {action}: {error.strerror or type(error).__name__}", path=path)


class Identity(NamedTuple):
    """Which file a path named, and which content of it: a file that is replaced or written has another.

    Attributes:
        device, inode: the file's numbers in the system.
        modified: nanoseconds since the epoch.
        size: bytes.
    """

    device: int
    inode: int
    modified: int
    size: int


def identity_of(path: Pathish) -> Identity:
    """The identity of the file that a path names now; symbolic links are followed.

    Raises:
        InvalidInput: there is no such file.
    """
    try:
        info = os.stat(path)
    except OSError as error:
        raise os_problem(path, error, "read") from None
    return Identity(info.st_dev, info.st_ino, info.st_mtime_ns, info.st_size)


def open_regular(path: Pathish) -> tuple[BinaryIO, int]:
    """Opens a regular file for reading -> (file, size in bytes).

    Raises:
        InvalidInput: missing, a folder, a device or FIFO, no permission.
    """
    path = as_path(path)
    try:
        # Non-blocking: opening a FIFO without a writer must not hang before it can be refused.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise os_problem(path, error, "read") from None
    try:
        info = os.fstat(descriptor)
    except OSError as error:  # pragma: no cover - a descriptor just opened
        os.close(descriptor)
        raise os_problem(path, error, "read") from None
    if not stat.S_ISREG(info.st_mode):
        os.close(descriptor)
        found = "a folder" if stat.S_ISDIR(info.st_mode) else "a device or pipe"
        raise InvalidInput(f"expected a regular file, found {found}", path=path)
    return os.fdopen(descriptor, "rb"), info.st_size


def read_pipe(path: Pathish, limit: int, *, silence: float = PIPE_SECONDS) -> bytes | None:
    """What a pipe holds until its other end is closed; None if ``path`` names none.

    ``/dev/stdin``, a process substitution or a FIFO: what is in it never lies on a disk. Memory is taken as
    bytes come.

    Args:
        limit: bytes.
        silence: seconds that may pass without a byte.

    Raises:
        InvalidInput: no permission, more than the limit, nothing, or silence.
    """
    path = as_path(path)
    try:
        if not stat.S_ISFIFO(os.stat(path).st_mode):
            return None
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None  # whoever opens it as a file says what is wrong
    content = bytearray()
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        heard = time.monotonic()
        while True:
            # In short steps: a signal's handler is heard between them.
            if not poll.poll(200):
                if time.monotonic() - heard > silence:
                    raise InvalidInput(f"nothing came from the pipe for {silence:g} s", path=path)
                continue
            try:
                piece = os.read(descriptor, _PIECE)
            except BlockingIOError:  # somebody else reads from it, too
                continue
            if not piece:
                break
            heard = time.monotonic()
            content += piece
            if len(content) > limit:
                raise InvalidInput(f"more than {limit} bytes came from the pipe", path=path)
    except OSError as error:
        raise os_problem(path, error, "read") from None
    finally:
        os.close(descriptor)
    if not content:
        raise InvalidInput("the pipe is empty", path=path)
    return bytes(content)


@contextmanager
def write_atomic(path: Pathish, *, secret: bool = False) -> Iterator[BinaryIO]:
    """A binary file that takes the place of ``path`` when the block ends well.

    Until then it is a temporary file of mode 0600 in the same folder; it is removed when the
    block raises. The final mode follows the umask, or stays 0600 if ``secret`` (witnesses).
    A symbolic link is written through; an existing device or pipe is written directly.

    Raises:
        InvalidInput: the folder is missing or not writable, or ``path`` is a folder.
        DeviceError: the disk is full or failing.
    """
    target = as_path(path)
    try:
        real = Path(os.path.realpath(target))
        # Of the path as it is given: /dev/stdout leads to a pipe, whose real path is none.
        existing = os.stat(target).st_mode
    except FileNotFoundError:
        existing = stat.S_IFREG
    except OSError as error:
        raise os_problem(target, error, "write") from None
    if stat.S_ISDIR(existing):
        raise InvalidInput("cannot write: it is a folder", path=target)
    if not stat.S_ISREG(existing):
        try:
            with target.open("wb") as device:
                yield device
        except OSError as error:
            raise os_problem(target, error, "write") from None
        return

    try:
        descriptor, temporary = tempfile.mkstemp(".tmp", f".{real.name[:100]}.", real.parent)
    except OSError as error:
        raise os_problem(target, error, "write") from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if not secret:
                os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, real)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise os_problem(target, error, "write") from None
        raise


def _umask() -> int:
    # There is no way to read it but to set it; for that instant new files get fewer rights, not more.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
