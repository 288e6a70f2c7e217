"""Folders for what this package compiles, and then runs: nothing that others could have put there is used.

A folder counts if it and every folder above it belong to this user or to root, and nobody else may write
them. Above the cache's own folders a sticky one such as /tmp will do: there, entries stay their owners'. A
link on the way has to belong to them as well, and leads to a path that is looked at from its beginning. Every
look goes down by descriptors, and files are opened, and made, in the folder that was looked at: whoever
renames or links in between is met by the same questions. A file has to be regular, under one name, and owned
likewise.

What root has made for others (in a container's image) is read. What is unpickled has a MAC as well, under a
key that only this user can read: :meth:`Store.read_signed`. A folder that does not count is passed over with
a warning; :func:`places` says what is used instead.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import hashlib
import hmac
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

CACHE_VARIABLE = "GPUPROVER_CACHE_DIR"
SOLE_VARIABLE = "GPUPROVER_SOLE_USER"
"""``1``: nobody but this user and root runs programs here, as in most containers. Folders above the cache's
own may then be writable by others, as volumes of Kubernetes are."""
LARGEST = 1 << 26
"""Bytes of a file that is read, unless its kind has larger ones; images have a few MiB."""

_KEY_FILE, _KEY_BYTES, _MAC_BYTES = "key", 32, 32
_MAX_LINKS = 40
_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_STEP = _FOLDER | getattr(os, "O_PATH", 0)
"""With it a folder on the way need not be readable."""


class Untrusted(OSError):
    """A folder or a file that somebody else could have put there, or may change; says which and why."""


# Warnings -------------------------------------------------------------------------------------------


def _log(text: str) -> None:
    import logging  # where there is something to say, and not before

    logging.getLogger("gpuprover.cache").warning(text)


_tell: Callable[[str], None] = _log
_told: set[str] = set()


@contextmanager
def warnings_to(tell: Callable[[str], None] | None) -> Iterator[None]:
    """Within it ``tell`` gets this module's warnings; None: the logger ``gpuprover.cache``, as by default."""
    global _tell
    before, _tell = _tell, tell or _log
    try:
        yield
    finally:
        _tell = before


def warn(text: str) -> None:
    """Tells it, once in a process, to whom :func:`warnings_to` says."""
    if text not in _told:
        _told.add(text)
        _tell(text)


# Looking --------------------------------------------------------------------------------------------


def _fault(state: os.stat_result, *, sticky: bool = False) -> str:
    """What is wrong with owner or mode, in words; with ``sticky``, a folder may be shared as /tmp is."""
    user = os.geteuid()
    if state.st_uid not in (0, user):
        return f"belongs to user {state.st_uid}, expected user {user} or root"
    shared = sticky and (state.st_mode & stat.S_ISVTX or os.environ.get(SOLE_VARIABLE) == "1")
    if state.st_mode & _OTHERS and not shared:
        return f"may be written by others (mode {stat.S_IMODE(state.st_mode):04o}): chmod go-w"
    return ""


def _enter(above: int, name: str, make: bool) -> int:
    """Opens a folder. Raises OSError, for a link as well: ENOTDIR or ELOOP."""
    try:
        return os.open(name, _STEP, dir_fd=above)
    except FileNotFoundError:
        if not make:
            raise
    with suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=above)
        os.chmod(name, 0o700, dir_fd=above)  # whatever the umask
    return os.open(name, _STEP, dir_fd=above)


def _link(above: int, name: str, place: str) -> str | None:
    """Where a link leads; None for what is none. Raises Untrusted for a link that others could change."""
    state = os.stat(name, dir_fd=above, follow_symlinks=False)
    if not stat.S_ISLNK(state.st_mode):
        return None
    if state.st_uid not in (0, os.geteuid()):
        raise Untrusted(f"{place} is a link of user {state.st_uid}")
    return os.readlink(name, dir_fd=above)


def _open_folder(path: Path, name: str = "", *, make: bool = False) -> int:
    """A descriptor of the folder ``path``, or of its folder ``name``, once all on the way is looked at.

    Neither of the two may be shared, and ``name`` may be no link. ``make``: what is missing is made, for this
    user alone.

    Raises:
        Untrusted: it may not be used.
        OSError: it is not there, or cannot be made or opened.
    """
    waiting = [*reversed((*path.absolute().parts[1:], *filter(None, [name])))]
    own, links = (1 if name else 0), 0
    place, folder = "/", os.open("/", _STEP)  # whose owner owns this program as well: not looked at
    try:
        while waiting:
            step = waiting.pop()
            try:
                below = _enter(folder, step, make)
            except OSError as error:
                if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                    raise
                target = _link(folder, step, os.path.join(place, step))
                links += 1
                if target is None or links > _MAX_LINKS or len(waiting) < own:
                    raise
                waiting += reversed(Path(target).parts)
                if not target.startswith("/"):
                    continue
                step = waiting.pop()
                below = os.open("/", _STEP)
            os.close(folder)
            folder, place = below, os.path.normpath(os.path.join(place, step))
            if place != "/" and (fault := _fault(os.fstat(folder), sticky=len(waiting) > own)):
                raise Untrusted(f"{place} {fault}")
        return folder
    except BaseException:
        os.close(folder)
        raise


def _open_file(folder: int, file: str, place: Path) -> int:
    """A descriptor of a file in an open folder. Raises Untrusted, or OSError where there is none."""
    # Without O_NONBLOCK a pipe would be waited for.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(file, flags, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise Untrusted(f"{place} is no regular file") from None
        raise
    state = os.fstat(descriptor)
    fault = _fault(state)
    if not stat.S_ISREG(state.st_mode):
        fault = "is no regular file"
    elif state.st_nlink > 1:
        fault = "has another name elsewhere"
    if fault:
        os.close(descriptor)
        raise Untrusted(f"{place} {fault}")
    return descriptor


def _content(descriptor: int, largest: int = LARGEST) -> bytes:
    """A file's bytes; closes it. Raises OSError, for one that is too large as well."""
    with open(descriptor, "rb") as file:
        size = os.fstat(descriptor).st_size
        if size > largest:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        return file.read(size)


def open_file(path: Path) -> int:
    """A descriptor of a file that only this user, or root, could have put there.

    Raises:
        Untrusted: somebody else could.
        OSError: it is not there, or cannot be opened.
    """
    folder = _open_folder(path.parent)
    try:
        return _open_file(folder, path.name, path)
    finally:
        os.close(folder)


def read_file(path: Path) -> bytes:
    """The bytes of such a file, at most 64 MiB. Raises as :func:`open_file` does."""
    return _content(open_file(path))


def write_file(path: Path, data: bytes) -> None:
    """Makes such a file, or replaces it, whole or not at all; for this user alone, as folders that it makes.

    Raises as :func:`open_file` does.
    """
    _put(path.parent, "", path.name, data)


def _put(path: Path, name: str, file: str, data: bytes) -> None:
    folder = _open_folder(path, name, make=True)
    try:
        _replace(folder, file, data)
    finally:
        os.close(folder)


def _replace(folder: int, file: str, data: bytes) -> None:
    """Writes a file beside, and puts it into its place. Raises OSError, and leaves nothing then."""
    part = f".{secrets.token_hex(8)}.part"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(part, flags, 0o600, dir_fd=folder)
    try:
        with open(descriptor, "wb") as output:
            os.fchmod(descriptor, 0o600)  # whatever the umask
            output.write(data)
        os.rename(part, file, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(OSError):
            os.unlink(part, dir_fd=folder)
        raise


# Where ----------------------------------------------------------------------------------------------


class Places(NamedTuple):
    """Folders for compiled code.

    Attributes:
        readable: where it is looked for, in this order.
        writable: which of them takes what is made; None where none does.
        doubts: why folders that would come first are not used, since others could have written them.
        problems: why further ones are not used, or not written.
    """

    readable: tuple[Path, ...]
    writable: Path | None
    doubts: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def cache_root() -> Path:
    """``GPUPROVER_CACHE_DIR``, or gpuprover's folder in the user's cache folder."""
    explicit = os.environ.get(CACHE_VARIABLE)
    if explicit:
        return Path(explicit)
    base, home = os.environ.get("XDG_CACHE_HOME"), os.path.expanduser("~")
    if not base and home == "~":  # a user whom the system does not know
        return Path(tempfile.gettempdir()) / f"gpuprover-{os.geteuid()}"
    return (Path(base) if base else Path(home) / ".cache") / "gpuprover"


def places() -> Places:
    """This process's folders: :func:`cache_root`, else one that its user's processes share, else its own.

    The shared one is ``gpuprover-UID`` in the folder for temporary files. The process's own lies there, too,
    and is removed at its end. Of a folder that others could have written a warning tells; one that can be
    read and not written keeps its place, and another takes what is made.
    """
    return _places(cache_root().absolute(), os.geteuid(), os.environ.get(SOLE_VARIABLE) == "1")


@lru_cache(maxsize=8)
def _places(root: Path, user: int, sole: bool) -> Places:
    found: list[Path] = []
    problems: list[str] = []
    doubts: list[str] = []

    def usable(path: Path) -> bool:
        try:
            folder = _open_folder(path, make=True)
        except Untrusted as error:
            doubts.append(str(error) if str(error).startswith(f"{path} ") else f"{path}: {error}")
            return False
        except OSError as error:
            problems.append(f"{path}: {error.strerror or error}")
            return False
        found.append(path)
        try:
            if os.access(".", os.W_OK, dir_fd=folder):
                return True
        finally:
            os.close(folder)
        problems.append(f"{path} cannot be written")
        return False

    writable = root if usable(root) else None
    if writable is None:
        try:
            temporary = Path(tempfile.gettempdir())
        except FileNotFoundError as error:
            problems.append(error.strerror or str(error))
        else:
            shared = temporary / f"gpuprover-{user}"
            if usable(shared):
                writable = shared
            elif (own := _private(temporary)) is not None:
                writable = own if usable(own) else None
                if writable is None:
                    remove_private()
    if doubts:
        instead = f"is kept in {writable}" if writable else "is made anew by every process"
        warn(f"a folder is not used: {'; '.join(doubts[:2])}; compiled code {instead}")
    return Places(tuple(found), writable, tuple(doubts), tuple(problems))


_own: dict[int, tuple[Path, int]] = {}
"""By process: its own folder, and a descriptor by which it is locked as long as the process lives."""


def _private(temporary: Path) -> Path | None:
    """This process's own folder, made if need be; those of processes that were killed are removed."""
    if os.getpid() in _own:
        return _own[os.getpid()][0]
    prefix = f"gpuprover-{os.geteuid()}-process-"
    with suppress(OSError):
        for old in temporary.glob(f"{prefix}*"):
            _remove_unlocked(old)
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=temporary))
        descriptor = os.open(path, _FOLDER)
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _own[os.getpid()] = path, descriptor
        atexit.register(remove_private)
        return path
    return None


def _remove_unlocked(path: Path) -> None:
    with suppress(OSError):
        folder = _open_folder(path)
        os.close(folder)
        descriptor = os.open(path, _FOLDER)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(descriptor)


def remove_private() -> None:
    """Removes this process's own folder, if it has one; for an end without the interpreter's."""
    own = _own.pop(os.getpid(), None)
    if own is not None:
        shutil.rmtree(own[0], ignore_errors=True)
        with suppress(OSError):
            os.close(own[1])


def for_children() -> dict[str, str]:
    """What the environment of a helper process needs, so that it uses the folder that this one uses."""
    found = places()
    if found.writable is None or cache_root().absolute() in found.readable:
        return {}
    return {CACHE_VARIABLE: str(found.writable)}


# Files ----------------------------------------------------------------------------------------------


class Store:
    """Files of one kind of compiled code, in folders of this name in all :func:`places`.

    ``largest``: bytes of a file that is read.
    """

    def __init__(self, name: str, largest: int = LARGEST) -> None:
        self.name, self._largest = name, largest

    @property
    def folder(self) -> Path | None:
        """Where files are made, or else looked for; None where there is no place for either."""
        found = places()
        root = found.writable or next(iter(found.readable), None)
        return root and root / self.name

    def made(self) -> Path | None:
        """The folder for files, once it is there; None, after a warning, where it cannot be written."""
        root = self._root()
        try:
            if root is not None:
                os.close(_open_folder(root, self.name, make=True))
                return root / self.name
        except OSError as error:
            self._cannot_keep(error)
        return None

    def files(self) -> dict[str, int]:
        """Names and sizes in bytes of what is there."""
        found: dict[str, int] = {}
        for root in places().readable:
            with suppress(OSError):
                folder = _open_folder(root, self.name)
                try:
                    listed = os.open(".", _FOLDER, dir_fd=folder)
                    try:
                        names = os.listdir(listed)
                    finally:
                        os.close(listed)
                    for name in names:
                        state = os.stat(name, dir_fd=folder, follow_symlinks=False)
                        if stat.S_ISREG(state.st_mode):
                            found.setdefault(name, state.st_size)
                finally:
                    os.close(folder)
        return found

    def open(self, file: str) -> int | None:
        """A descriptor of a file; None if there is none that may be used."""
        return next(self._opened(file, places().readable), (None, None))[1]

    def _opened(self, file: str, roots: tuple[Path, ...]) -> Iterator[tuple[Path, int]]:
        for root in roots:
            try:
                folder = _open_folder(root, self.name)
                try:
                    descriptor = _open_file(folder, file, root / self.name / file)
                finally:
                    os.close(folder)
            except Untrusted as error:
                warn(f"compiled code is not used: {error}")
            except OSError:
                continue
            else:
                yield root, descriptor

    def read(self, file: str) -> bytes | None:
        """A file's bytes; None if there is none that may be used."""
        with suppress(OSError):
            descriptor = self.open(file)
            return None if descriptor is None else _content(descriptor, self._largest)
        return None

    def write(self, file: str, data: bytes) -> bool:
        """Makes a file, or replaces one, whole or not at all -> whether it is there.

        That there is no room, say, costs a warning: what was compiled serves without being kept.
        """
        root = self._root()
        if root is None:
            return False
        try:
            _put(root, self.name, file, data)
        except OSError as error:
            self._cannot_keep(error)
            return False
        return True

    def _root(self) -> Path | None:
        """Where files are made. A warning says why it is not where they are looked for first."""
        found = places()
        if found.problems and not found.doubts:  # which a warning has told
            kept = f"kept in {found.writable}" if found.writable else "not kept, and compiled each time"
            warn(f"compiled code is {kept}: {'; '.join(found.problems)}")
        return found.writable

    def _cannot_keep(self, error: OSError) -> None:
        why = error.strerror or str(error)
        warn(f"{self.folder}: compiled code cannot be kept there, and is compiled anew each time: {why}")

    def remove(self, file: str) -> None:
        """Removes a file that this user has made, if it is there."""
        root = places().writable
        with suppress(OSError):
            if root is not None:
                folder = _open_folder(root, self.name)
                try:
                    os.unlink(file, dir_fd=folder)
                finally:
                    os.close(folder)

    @contextmanager
    def locked(self, file: str) -> Iterator[None]:
        """One process of this user at a time, where files can be locked."""
        root, descriptor = places().writable, -1
        with suppress(OSError):
            if root is not None:
                descriptor = _locked(root, self.name, file)
        try:
            yield
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    # What is unpickled ----------------------------------------------------------------------------

    def read_signed(self, file: str) -> bytes | None:
        """What :meth:`write_signed` wrote, in a process of this user; None for anything else, or damaged."""
        for root, descriptor in self._opened(file, places().readable):
            with suppress(OSError):
                data = _content(descriptor, self._largest)
                key = _key(root)
                if key is None:
                    continue
                body = data[_MAC_BYTES:]
                if hmac.compare_digest(data[:_MAC_BYTES], self._mac(key, file, body)):
                    return body
        return None

    def write_signed(self, file: str, data: bytes) -> bool:
        """As :meth:`write`, with a MAC of name and bytes in front."""
        root = places().writable
        try:
            key = root and (_key(root) or _make_key(root))
        except OSError as error:
            self._cannot_keep(error)
            return False
        return self.write(file, self._mac(key, file, data) + data if key else data)

    def _mac(self, key: bytes, file: str, data: bytes) -> bytes:
        """BLAKE2b under the key, of folder, file and bytes."""
        mac = hashlib.blake2b(f"{self.name}\0{file}\0".encode(), key=key, digest_size=_MAC_BYTES)
        mac.update(data)
        return mac.digest()


def _locked(root: Path, name: str, file: str) -> int:
    """A descriptor by which the file, made if need be, is locked. Raises OSError."""
    folder = _open_folder(root, name, make=True)
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(file, flags, 0o600, dir_fd=folder)
    finally:
        os.close(folder)
    try:
        os.fchmod(descriptor, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


_keys: dict[Path, bytes] = {}


def _key(root: Path) -> bytes | None:
    """This user's key for what lies below ``root``; None if there is none that only this user can read."""
    if root not in _keys:
        with suppress(OSError):
            descriptor = open_file(root / _KEY_FILE)
            state = os.fstat(descriptor)
            data = _content(descriptor)
            if state.st_uid == os.geteuid() and not state.st_mode & 0o077 and len(data) == _KEY_BYTES:
                _keys[root] = data
    return _keys.get(root)


def _make_key(root: Path) -> bytes:
    """A new one, in place of one that is damaged; that of a process which was faster. Raises OSError."""
    lock = -1
    with suppress(OSError):  # a file system without locks
        lock = _locked(root, "", f"{_KEY_FILE}.lock")
    try:
        if _key(root) is None:
            key = secrets.token_bytes(_KEY_BYTES)
            write_file(root / _KEY_FILE, key)
            _keys[root] = key
        return _keys[root]
    finally:
        if lock >= 0:
            os.close(lock)
