"""Opening and replacing files; JSON documents."""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
import time
from pathlib import Path

import pytest

from gpuprover.errors import DeviceError, InvalidInput, MalformedFile, ProverError
from gpuprover.formats.files import as_path, open_regular, read_pipe, write_atomic
from gpuprover.formats.json_files import parse_integer, parse_json, read_json, shown, write_json


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_write_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    target = tmp_path / "out.bin"
    target.write_bytes(b"old")
    with write_atomic(target) as file:
        file.write(b"new content")
        assert target.read_bytes() == b"old", "visible before it is complete"
        (temporary,) = set(tmp_path.iterdir()) - {target}
        assert mode(temporary) == 0o600
    assert target.read_bytes() == b"new content"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_final_mode_follows_the_umask_unless_secret(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with write_atomic(tmp_path / "plain") as file:
            file.write(b"x")
        with write_atomic(tmp_path / "secret", secret=True) as file:
            file.write(b"x")
        assert os.umask(umask) == umask, "the umask was changed"
    finally:
        os.umask(before)
    assert mode(tmp_path / "plain") == 0o666 & ~umask
    assert mode(tmp_path / "secret") == 0o600


@pytest.mark.parametrize("failure", [RuntimeError("stop"), KeyboardInterrupt()])
def test_failure_keeps_the_old_file(tmp_path: Path, failure: BaseException) -> None:
    target = tmp_path / "out.bin"
    target.write_bytes(b"old")
    with pytest.raises(type(failure)), write_atomic(target) as file:
        file.write(b"half")
        raise failure
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_full_disk_is_a_device_error(tmp_path: Path) -> None:
    with (
        pytest.raises(DeviceError, match="no space left on the disk"),
        write_atomic(tmp_path / "out") as file,
    ):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="no /dev/fd here")
def test_a_pipe_is_written_through_its_descriptor() -> None:
    """As /dev/stdout names it: its real path, pipe:[4242], is none."""
    reader, writer = os.pipe()
    try:
        with write_atomic(f"/dev/fd/{writer}", secret=True) as file:
            file.write(b"a witness")
        assert os.read(reader, 100) == b"a witness"
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_full_device(tmp_path: Path) -> None:
    link = tmp_path / "out"
    link.symlink_to("/dev/full")
    with pytest.raises(DeviceError, match="no space"), write_atomic(link) as file:
        file.write(b"x" * 100_000)
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode), "the device was replaced"


def test_a_device_is_written_not_replaced() -> None:
    with write_atomic("/dev/null") as file:
        file.write(b"gone")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    with write_atomic(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for bad, reason in (
        (tmp_path, "folder"),
        (tmp_path / "no" / "out", "No such"),
        (tmp_path / "file" / "x", "."),
    ):
        with pytest.raises(InvalidInput, match=reason) as caught, write_atomic(bad):
            pytest.fail("entered")
        assert str(bad) in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_no_permission(tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    with pytest.raises(InvalidInput, match="Permission denied"), write_atomic(folder / "out"):
        pytest.fail("entered")
    (tmp_path / "unreadable").touch(mode=0o200)
    with pytest.raises(InvalidInput, match="Permission denied"):
        open_regular(tmp_path / "unreadable")


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for bad, reason in (
        (tmp_path / "missing", "No such file"),
        (tmp_path, "a folder"),
        (tmp_path / "fifo", "a device or pipe"),
        (Path("/dev/zero"), "a device or pipe"),
    ):
        with pytest.raises(InvalidInput, match=reason) as caught:
            open_regular(bad)
        assert str(bad) in str(caught.value)


def test_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    """In many pieces, from a writer that takes its time."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    def write() -> None:
        with fifo.open("wb", buffering=0) as file:
            for piece in (b"a", b"b" * 300_000, b"c"):
                time.sleep(0.05)
                file.write(piece)

    thread = threading.Thread(target=write)
    thread.start()
    assert read_pipe(fifo, 1 << 20) == b"a" + b"b" * 300_000 + b"c"
    thread.join()


def test_pipes_are_bounded(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    try:
        os.write(writer, b"x" * 2000)
        with pytest.raises(InvalidInput, match="more than 1000 bytes"):
            read_pipe(f"/dev/fd/{reader}", 1000)
        with pytest.raises(InvalidInput, match=r"nothing came from the pipe for 0\.1 s"):
            read_pipe(f"/dev/fd/{reader}", 1000, silence=0.1)
    finally:
        os.close(writer)
    with pytest.raises(InvalidInput, match="the pipe is empty"):
        read_pipe(f"/dev/fd/{reader}", 1000)
    os.close(reader)
    for other in (tmp_path, tmp_path / "missing", Path("/dev/null")):
        assert read_pipe(other, 1000) is None


@pytest.mark.parametrize("bad", ["", "a\0b", 5, None, ["x"]])
def test_arguments_that_are_no_paths(bad: object) -> None:
    with pytest.raises(InvalidInput):
        as_path(bad)


# JSON --------------------------------------------------------------------------


def test_json_round_trip(tmp_path: Path) -> None:
    document = {"a": ["1", 2, {"ü": None}], "b": True}
    write_json(tmp_path / "x.json", document)
    assert read_json(tmp_path / "x.json") == document
    assert (tmp_path / "x.json").read_text() == json.dumps(document, indent=1)
    write_json(tmp_path / "x.json", [])  # as snarkjs writes no public signals
    assert (tmp_path / "x.json").read_text() == "[\n]"


def test_json_with_a_byte_order_mark() -> None:
    assert parse_json(b"\xef\xbb\xbf[1]", "x") == [1]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "is empty"),
        (b"  \n", "is empty"),
        (b"{", "not JSON: .* line 1"),
        (b"[1,]", "not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[NaN]", "NaN is not JSON"),
        (b"[-Infinity]", "Infinity is not JSON"),
        (b'{"a": 1, "b": 2, "a": 3}', 'the name "a" stands twice'),
        (b"[" * 1_000_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b"1" * 5000, "5000 digits"),
        (b"[-" + b"1" * 100_000 + b"]", "100001 digits"),
        (b'"\\ud800', "not JSON"),
    ],
)
def test_json_that_is_refused(text: bytes, problem: str) -> None:
    with pytest.raises(MalformedFile, match=problem) as caught:
        parse_json(text, "input.json")
    assert str(caught.value).startswith("input.json: document: ")
    assert len(str(caught.value)) <= 600


def test_json_file_errors_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    for path in (tmp_path / "x.json", tmp_path, tmp_path / "none.json"):
        with pytest.raises(ProverError) as caught:
            read_json(path)
        assert str(path) in str(caught.value)


def test_integers_in_documents() -> None:
    good = {"0": 0, "007": 7, "0x1F": 31, 12: 12, str(2**255): 2**255}
    assert {key: parse_integer(key) for key in good} == good
    bad = ["", " 1", "1 ", "-1", "+1", "1.0", "1e3", "0x", "٣", "1_000", "9" * 401, -1, 1.0, True, None, [1]]
    assert [parse_integer(value) for value in bad] == [None] * len(bad)


def test_shown_is_short_and_printable() -> None:
    assert shown("a\nb\x1b[31m") == r'"a\nb\u001b[31m"'
    assert len(shown("x" * 1000)) == 40
    assert (shown([1, 2, 3]), shown({"a": 1})) == ("a list", "an object")
