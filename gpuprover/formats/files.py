"""Opening files that strangers made, and replacing files that people depend on.

Reading: only regular files are opened (a FIFO would hang, a device never end), and what
the system refuses becomes one line that names the path. Writing: everything goes to a
temporary file in the target's folder, is synced, and then takes the target's place, so
that a reader sees the old file or the whole new one.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from gpuprover.errors import DeviceError, InvalidInput, OutOfMemory, ProverError

Pathish = str | os.PathLike[str]

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_NO_RESOURCES = {errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENFILE}


def as_path(path: object, what: str = "path") -> Path:
    """A usable Path from a caller's argument. Raises InvalidInput for anything that is none."""
    if not isinstance(path, str | os.PathLike):
        raise InvalidInput(f"{what}: expected a file path, found {type(path).__name__}")
    text = os.fspath(path)
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
        return DeviceError(f"{path}: cannot {action}: no space left on the disk")
    if error.errno == errno.ENOMEM:
        return OutOfMemory(f"{path}: cannot {action}: {error.strerror}")
    if error.errno in _NO_RESOURCES:
        return DeviceError(f"{path}: cannot {action}: {error.strerror}")
    return InvalidInput(f"{path}: cannot {action}: {error.strerror or error}")


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
        raise InvalidInput(f"{path}: expected a regular file, found {found}")
    return os.fdopen(descriptor, "rb"), info.st_size


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
        existing = real.stat().st_mode if real.exists() else stat.S_IFREG
    except OSError as error:
        raise os_problem(target, error, "write") from None
    if stat.S_ISDIR(existing):
        raise InvalidInput(f"{target}: cannot write: it is a folder")
    if not stat.S_ISREG(existing):
        try:
            with real.open("wb") as device:
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
