"""Folders of compiled code: what counts, what does not, what is used instead; damage, no room, races."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpuprover import folders
from gpuprover.folders import CACHE_VARIABLE, SOLE_VARIABLE, Store, places

OTHER = 12345
only_root = pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files of this test's own; nothing is known of places."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    folder.chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    for name, value in (("_keys", {}), ("_told", set()), ("_own", {})):
        monkeypatch.setattr(folders, name, value)
    monkeypatch.delenv(SOLE_VARIABLE, raising=False)
    folders._places.cache_clear()
    return folder


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "above" / "user" / "cache"
    monkeypatch.setenv(CACHE_VARIABLE, str(path))
    return path


@pytest.fixture
def told() -> Iterator[list[str]]:
    """The warnings."""
    texts: list[str] = []
    with folders.warnings_to(texts.append):
        yield texts
    folders.remove_private()


@pytest.fixture
def store(root: Path) -> Store:
    """With a file in it, of either kind."""
    made = Store("code")
    assert made.write("plain", b"of the user")
    assert made.write_signed("signed", b"of the user")
    folders._places.cache_clear()
    folders._keys.clear()
    return made


def forget() -> None:
    """As in another process."""
    folders._places.cache_clear()
    folders._keys.clear()
    folders._told.clear()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777], ids=oct)
def test_what_is_made_is_this_users_alone(root: Path, told: list[str], umask: int) -> None:
    before = os.umask(umask)
    try:
        assert Store("code").write("plain", b"code")
        assert Store("code").write_signed("signed", b"code")
    finally:
        os.umask(before)
    above = root.parent.parent
    made = [above, *above.rglob("*")]
    assert {mode(path) for path in made if path.is_dir()} == {0o700}
    assert {mode(path) for path in made if path.is_file()} == {0o600}
    assert Store("code").read("plain") == Store("code").read_signed("signed") == b"code"
    assert told == []


# What does not count ----------------------------------------------------------------------------


def _moved(path: Path) -> Path:
    return path.rename(path.with_name(f"{path.name}-moved"))


def _linked(path: Path, owner: int | None = None) -> None:
    path.symlink_to(_moved(path))
    if owner is not None:
        os.lchown(path, owner, -1)


def _at(path: str, change: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda root: change((root / path).resolve() if path.startswith("..") else root / path)


FOLDERS: dict[str, Callable[[Path], object]] = {
    "anybody may write it": _at("", lambda path: path.chmod(0o777)),
    "a group may write it": _at("", lambda path: path.chmod(0o770)),
    "anybody may add to it": _at("", lambda path: path.chmod(0o1777)),
    "anybody may write what is in it": _at("code", lambda path: path.chmod(0o702)),
    "anybody may add to what is in it": _at("code", lambda path: path.chmod(0o1777)),
    "what is in it is a link": _at("code", _linked),
    "anybody may rename it": _at("..", lambda path: path.chmod(0o777)),
    "a group may rename what it is in": _at("../..", lambda path: path.chmod(0o775)),
}
GIVEN_AWAY: dict[str, Callable[[Path], object]] = {
    "another user's": _at("", lambda path: os.chown(path, OTHER, -1)),
    "what is in it is another user's": _at("code", lambda path: os.chown(path, OTHER, -1)),
    "in another user's": _at("..", lambda path: os.chown(path, OTHER, -1)),
    "further down in another user's": _at("../..", lambda path: os.chown(path, OTHER, -1)),
    "another user's link": _at("", lambda path: _linked(path, OTHER)),
    "behind another user's link": _at("..", lambda path: _linked(path, OTHER)),
}


@pytest.mark.parametrize("change", [*FOLDERS, *(pytest.param(name, marks=only_root) for name in GIVEN_AWAY)])
def test_a_folder_that_others_could_have_written(
    root: Path, store: Store, told: list[str], change: str
) -> None:
    """Nothing of it is read, nothing is added, a warning names it, and another folder serves."""
    assert store.read("plain") == store.read_signed("signed") == b"of the user"
    before = sorted(path for path in root.parent.parent.rglob("*"))
    (FOLDERS | GIVEN_AWAY)[change](root)
    forget()
    added = {*root.parent.parent.rglob("*")} - {*before}
    assert store.read("plain") is store.read_signed("signed") is None
    made = [store.write("plain", b"new"), store.write_signed("signed", b"new")]
    if "in it" in change:  # the cache as a whole is good, and this part of it is not
        assert made == [False, False]
    else:
        assert made == [True, True]
        assert store.read("plain") == store.read_signed("signed") == b"new"
        assert places().writable not in (None, root)
        assert str(places().writable) in told[0]
        assert folders.for_children() == {CACHE_VARIABLE: str(places().writable)}
    assert len(told) in (1, 2)
    assert all(str(root.parent.parent) in text for text in told)
    assert {*root.parent.parent.rglob("*")} <= {*before} | added


FILES: dict[str, Callable[[Path], object]] = {
    "anybody may write it": lambda path: path.chmod(0o602),
    "a group may write it": lambda path: path.chmod(0o620),
    "a link": _linked,
    "another name of it": lambda path: os.link(path, path.with_name("another")),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path, 0o600)),
    "a folder": lambda path: (path.unlink(), path.mkdir(0o700)),
    "a device": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    "nothing": lambda path: path.unlink(),
    "another user's": lambda path: os.chown(path, OTHER, -1),
}


@pytest.mark.parametrize("change", [*[*FILES][:-1], pytest.param([*FILES][-1], marks=only_root)])
@pytest.mark.parametrize("file", ["plain", "signed"])
def test_a_file_that_others_could_have_written(
    root: Path, store: Store, told: list[str], file: str, change: str
) -> None:
    """It is not read, a warning names it, and it can be made anew."""
    path = root / "code" / file
    FILES[change](path)
    read, write = (store.read, store.write) if file == "plain" else (store.read_signed, store.write_signed)
    assert read(file) is None
    assert ["" if change == "nothing" else str(path)] == [
        text.removeprefix("compiled code is not used: ").split(" ")[0] for text in told or [""]
    ]
    if change != "a folder":
        assert write(file, b"new")
        assert read(file) == b"new"


def test_what_counts(root: Path, store: Store, told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder like /tmp, behind a link of one's own, by a path from the current folder and back."""
    root.parent.chmod(0o1777)
    link = root.parent.parent / "link"
    link.symlink_to("user")
    (root.parent / "absolute").symlink_to(root)
    monkeypatch.chdir(root.parent.parent)
    for name in (str(root), "user/cache", str(link / "cache"), "user/../link/absolute", "user/absolute/"):
        forget()
        monkeypatch.setenv(CACHE_VARIABLE, name)
        assert store.read("plain") == store.read_signed("signed") == b"of the user", name
        assert places().doubts == ()
    assert told == []


def test_links_in_a_circle(root: Path, told: list[str]) -> None:
    root.parent.mkdir(parents=True)
    root.parent.parent.chmod(0o700)
    root.parent.chmod(0o700)
    root.symlink_to(root.parent / "cache")
    assert Store("code").write("plain", b"code")
    assert places().writable != root
    assert "Not a directory" in told[0]


def test_where_nobody_else_runs_programs(
    root: Path, store: Store, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders above may be anybody's to write, as volumes are; the cache's own may not, nor be another's."""
    root.parent.chmod(0o2777)
    monkeypatch.setenv(SOLE_VARIABLE, "1")
    assert store.read_signed("signed") == b"of the user"
    assert told == []
    root.chmod(0o770)
    forget()
    assert store.read_signed("signed") is None
    assert len(told) == 1


@only_root
def test_where_nobody_else_runs_programs_another_users_folder_is_another_users(
    root: Path, store: Store, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SOLE_VARIABLE, "1")
    os.chown(root, OTHER, -1)
    assert store.read_signed("signed") is None
    assert len(told) == 1


def test_a_folder_that_changes_after_the_look(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is opened, and made, is in the folder that was looked at, wherever that is by then."""
    folder, evil = root / "code", root / "evil"
    evil.mkdir()
    (evil / "plain").write_bytes(b"of somebody")
    (evil / "plain").chmod(0o600)

    def swapping(name: str) -> None:
        real = getattr(folders, name)

        def swap(*arguments: object) -> object:
            folder.rename(root / "away")
            evil.rename(folder)
            try:
                return real(*arguments)
            finally:
                folder.rename(evil)
                (root / "away").rename(folder)

        monkeypatch.setattr(folders, name, swap)

    swapping("_open_file")
    swapping("_replace")
    assert store.read("plain") == b"of the user"
    assert store.write("plain", b"new")
    assert store.read("plain") == b"new"
    assert (evil / "plain").read_bytes() == b"of somebody"


# Damage -----------------------------------------------------------------------------------------


def _flipped(at: int) -> Callable[[Path], object]:
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[at] ^= 1
        path.write_bytes(data)

    return damage


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: os.truncate(path, 0),
    "cut in its MAC": lambda path: os.truncate(path, 20),
    "cut short": lambda path: os.truncate(path, path.stat().st_size - 1),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "another first byte": _flipped(0),
    "another last byte": _flipped(-1),
    "too large": lambda path: os.truncate(path, folders.LARGEST + 1),
}


@pytest.mark.parametrize("change", DAMAGE)
@pytest.mark.parametrize("file", ["code/signed", "key"])
def test_damage_is_found(root: Path, store: Store, told: list[str], file: str, change: str) -> None:
    """And mended by whoever makes the file anew, without a word."""
    if (file, change) == ("key", "cut in its MAC"):
        change = "empty"
    DAMAGE[change](root / file)
    assert store.read_signed("signed") is None
    assert store.write_signed("signed", b"new")
    forget()
    assert store.read_signed("signed") == b"new"
    assert told == []


@pytest.mark.parametrize("change", ["readable", "lost", "a link"])
def test_a_key_that_others_could_know_is_none(root: Path, store: Store, change: str) -> None:
    key = root / "key"
    {"readable": lambda: key.chmod(0o640), "lost": key.unlink, "a link": lambda: _linked(key)}[change]()
    assert store.read_signed("signed") is None
    assert store.write_signed("signed", b"new")
    forget()
    assert store.read_signed("signed") == b"new"
    assert mode(key) == 0o600
    assert not key.is_symlink()


def test_another_files_bytes(root: Path, store: Store) -> None:
    """A file counts under its own name, in its own folder."""
    data = (root / "code" / "signed").read_bytes()
    store.write("renamed", data)
    Store("elsewhere").write("signed", data)
    assert store.read_signed("renamed") is Store("elsewhere").read_signed("signed") is None


# No room ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE])
def test_no_room_costs_a_warning(
    root: Path, store: Store, told: list[str], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(folders, "_replace", refuse)
    for i in range(3):
        assert not store.write(f"plain{i}", b"code")
        assert not store.write_signed(f"signed{i}", b"code")
    (text,) = told
    assert str(root / "code") in text
    assert os.strerror(number) in text


def test_a_limit_on_files_costs_a_warning(root: Path, store: Store, told: list[str]) -> None:
    """A real one; what was there stays, and nothing half-written is left."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        assert not store.write("plain", bytes(5000))
        assert not store.write_signed("new", bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert store.read("plain") == b"of the user"
    assert {*store.files()} == {"plain", "signed"}
    assert len(told) == 1


def test_no_room_for_a_key(root: Path, told: list[str]) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, before[1]))
    try:
        assert not Store("code").write_signed("new", b"code")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(told) == 1
    assert Store("code").write_signed("new", b"code")


# Instead ----------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_is_read(
    root: Path, store: Store, told: list[str], monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    """What it lacks goes to the folder for temporary files, and only then a word is said."""
    real = os.access

    def access(path: str, kind: int, *, dir_fd: int) -> bool:
        return real(path, kind, dir_fd=dir_fd) and not os.path.samestat(os.fstat(dir_fd), root.stat())

    monkeypatch.setattr(os, "access", access)
    assert store.read("plain") == store.read_signed("signed") == b"of the user"
    assert told == []
    assert store.write_signed("more", b"code")
    assert store.read_signed("more") == b"code"
    shared = temporary / f"gpuprover-{os.geteuid()}"
    assert places() == folders.Places((root, shared), shared, (), (f"{root} cannot be written",))
    assert told == [f"compiled code is kept in {shared}: {root} cannot be written"]
    assert {*store.files()} == {"plain", "signed", "more"}
    assert folders.for_children() == {}, "they look at both"


def test_no_home_and_no_folder_at_all(
    tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert Store("code").write("plain", b"code")
    assert places().writable == temporary / f"gpuprover-{os.geteuid()}"
    assert "Not a directory" in told[0]
    told.clear()
    forget()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    assert not Store("code").write("plain", b"code")
    assert not Store("code").write_signed("signed", b"code")
    assert Store("code").made() is Store("code").folder is Store("code").read("plain") is None
    assert places().writable is None
    assert len(told) == 1


def test_a_user_whom_the_system_does_not_know(
    told: list[str], monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    """As in a container that is run under any number: nothing is made in the current folder."""
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert Store("code").write("plain", b"code")
    assert places().writable == temporary / f"gpuprover-{os.geteuid()}"
    assert told == []


def _spoil(root: Path, temporary: Path) -> None:
    """Neither the cache nor the folder that the user's processes share can be used."""
    root.mkdir(parents=True, exist_ok=True)
    root.chmod(0o777)
    shared = temporary / f"gpuprover-{os.geteuid()}"
    shared.mkdir()
    shared.chmod(0o777)


def test_a_folder_of_the_process(root: Path, temporary: Path, told: list[str]) -> None:
    """Helpers use it too; it goes with the process; what killed ones left is removed, and no more."""
    _spoil(root, temporary)
    name = f"gpuprover-{os.geteuid()}-process-"
    left, held = temporary / f"{name}left", temporary / f"{name}held"
    for folder in (left, held):
        (folder / "code").mkdir(parents=True)
        folder.chmod(0o700)
    lock = os.open(held, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert Store("code").write_signed("file", b"code")
        own = places().writable
    finally:
        os.close(lock)
    assert own is not None
    assert own.parent == temporary
    assert mode(own) == 0o700
    assert folders.for_children() == {CACHE_VARIABLE: str(own)}
    assert sorted(temporary.glob(f"{name}*")) == sorted([own, held])
    assert len(told) == 1
    assert str(root) in told[0]
    assert str(own) in told[0]
    folders.remove_private()
    assert not own.exists()


PROCESS = """
import os, sys, tempfile
from gpuprover import folders
tempfile.tempdir = sys.argv[1]
assert folders.Store("code").write("file", b"code")
if not os.fork():
    sys.exit()
os.wait()
assert folders.Store("code").read("file") == b"code", "a child that ends takes nothing along"
print(folders.places().writable)
"""


def test_the_folder_of_a_process_goes_with_it(root: Path, temporary: Path) -> None:
    _spoil(root, temporary)
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, str(temporary)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "process-" in done.stdout
    assert not Path(done.stdout.strip()).exists()
    (line,) = done.stderr.splitlines()
    assert str(root) in line


def test_a_folder_for_temporary_files_that_others_could_have_written(
    root: Path, temporary: Path, told: list[str]
) -> None:
    _spoil(root, temporary)
    temporary.chmod(0o777)
    assert not Store("code").write("plain", b"code")
    assert places().writable is None
    assert "is made anew by every process" in told[0]
    assert len(told) == 1
    assert not list(temporary.glob("*process-*"))


def test_one_process_at_a_time(root: Path, store: Store) -> None:
    with store.locked("lock"):
        other = os.open(root / "code" / "lock", os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(other)
    with store.locked("lock"), store.locked("another"):
        pass
