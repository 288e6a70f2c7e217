"""Helper processes: what they inherit, what they keep to themselves, how they end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gpuprover
from gpuprover.errors import DeviceError
from gpuprover.processes import TAIL_BYTES, Backoff, Child, private_file, spawn

ROOT = str(Path(gpuprover.__file__).resolve().parents[1])
SECRET = "4815162342"
HELPERS = {
    "tells": """
        import json, os, socket, sys
        import gpuprover
        channel = socket.socket(fileno=int(sys.argv[1]))
        channel.sendall(json.dumps({
            "arguments": sys.argv[2:], "gpuprover": gpuprover.__file__, "stdin": sys.stdin.read(),
            "session": os.getsid(0) == os.getpid(), "main": sys.modules["__main__"].__file__,
            "descriptors": sorted(int(fd) for fd in os.listdir("/proc/self/fd")), "env": dict(os.environ),
            "path": sys.path,
        }).encode())
    """,
    "hardens": """
        import json, os, resource, socket, sys, time
        from gpuprover import memory
        from gpuprover.processes import harden, is_dumpable
        channel = socket.socket(fileno=int(sys.argv[1]))
        harden(int(sys.argv[2]))
        memory.reset_peak()
        low = memory.peak()
        block = bytearray(64 << 20)
        high = memory.peak()
        del block
        memory.reset_peak()
        channel.sendall(json.dumps({
            "pid": os.getpid(), "core": resource.getrlimit(resource.RLIMIT_CORE), "dumpable": is_dumpable(),
            "peaks": [low, high, memory.peak()],
        }).encode())
        time.sleep(60)
    """,
    "fails": f"""
        import threading
        from gpuprover.processes import harden
        harden()
        class Broken:
            def __del__(self):
                raise ValueError("{SECRET}")
        Broken()
        def broken():
            raise KeyError("{SECRET}")
        thread = threading.Thread(target=broken)
        thread.start()
        thread.join()
        raise RuntimeError("{SECRET}")
    """,
    "talks": """
        import sys
        for i in range(int(sys.argv[1])):
            print("line", i)
        print("the last line", file=sys.stderr)
        sys.exit(7)
    """,
    "parent": """
        import socket, sys, time
        from gpuprover.processes import spawn
        import os
        spawn("hardens", sys.argv[1], str(os.getpid()), fds=[int(sys.argv[1])])
        time.sleep(60)
    """,
}


@pytest.fixture
def helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of modules that spawned processes find."""
    folder = tmp_path / "helpers"
    folder.mkdir()
    for name, text in HELPERS.items():
        lines = text.splitlines()
        (folder / f"{name}.py").write_text("\n".join(line[8:] for line in lines))
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}")
    return folder


@pytest.fixture
def started() -> Any:
    """Children that are ended after the test."""
    children: list[Child] = []

    def start(*arguments: Any, **options: Any) -> Child:
        child = spawn(*arguments, **options)
        children.append(child)
        return child

    yield start
    for child in children:
        child.kill()
        assert child.wait(30)
        child.close()


Start = Callable[..., Child]


def answer(end: socket.socket) -> dict[str, Any]:
    end.settimeout(60)
    data = b""
    while True:
        data += end.recv(1 << 16)
        try:
            found: dict[str, Any] = json.loads(data)
        except ValueError:
            assert data, "it said nothing"
            continue
        return found


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def eventually(condition: Callable[[], bool], seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def test_a_child_inherits_what_it_is_given_and_nothing_else(
    helpers: Path, started: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "cwd"
    elsewhere.mkdir()
    for name in ("json", "numpy", "gpuprover", "tells"):
        (elsewhere / f"{name}.py").write_text("raise SystemExit('imported from the current folder')")
    monkeypatch.chdir(elsewhere)
    mine, theirs = socket.socketpair()
    secret = os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(secret, True)
    with mine, theirs:
        fd = theirs.fileno()
        child = started("tells", str(fd), "a", "b c", fds=[fd], env={"EXTRA": "1"})
        found = answer(mine)
    os.close(secret)
    assert child.wait(30)
    assert found["arguments"] == ["a", "b c"]
    assert found["gpuprover"] == gpuprover.__file__
    assert found["main"] == str(helpers / "tells.py")
    assert found["stdin"] == ""
    assert found["session"]
    assert {0, 1, 2, fd} < set(found["descriptors"])
    assert len(found["descriptors"]) == 5, "and the one that it lists them with"
    assert found["env"]["EXTRA"] == "1"
    assert found["env"]["PYTHONPATH"].split(os.pathsep) == [ROOT, str(helpers)]
    assert not {"", str(elsewhere)} & set(found["path"])


def test_an_isolated_interpreter_starts_isolated_children() -> None:
    program = (
        "import json, os; from gpuprover.processes import _environment; "
        "print(json.dumps(_environment(os.environ)))"
    )
    env = {**os.environ, "PYTHONPATH": "/nonexistent", "PYTHONSTARTUP": "/nonexistent"}
    out = subprocess.run([sys.executable, "-I", "-c", program], env=env, capture_output=True, check=True)
    seen = json.loads(out.stdout)
    assert "PYTHONSTARTUP" not in seen
    assert "/nonexistent" not in seen.get("PYTHONPATH", "")


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_hardened_process_leaves_no_core_and_still_counts_its_memory(helpers: Path, started: Start) -> None:
    mine, theirs = socket.socketpair()
    with mine, theirs:
        child = started("hardens", str(theirs.fileno()), str(os.getpid()), fds=[theirs.fileno()])
        found = answer(mine)
    assert found["core"] == [0, 0]
    assert found["dumpable"] is False
    (limits,) = (
        line for line in Path(f"/proc/{child.pid}/limits").read_text().splitlines() if "core" in line
    )
    assert limits.split()[4:6] == ["0", "0"]
    low, high, after = found["peaks"]
    assert high > low + (60 << 20)
    assert after < high - (60 << 20)


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_hardened_process_dies_with_its_parent(helpers: Path, started: Start) -> None:
    mine, theirs = socket.socketpair()
    with mine, theirs:
        parent = started("parent", str(theirs.fileno()), fds=[theirs.fileno()])
        theirs.close()
        pid = answer(mine)["pid"]
        assert not is_gone(pid)
        parent.kill()
        # Its end of the socket closes with it.
        assert mine.recv(1) == b""
    assert eventually(lambda: is_gone(pid))


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_process_whose_parent_has_ended_already_ends(helpers: Path, started: Start) -> None:
    mine, theirs = socket.socketpair()
    with mine, theirs:
        child = started("hardens", str(theirs.fileno()), str(os.getppid()), fds=[theirs.fileno()])
        theirs.close()
        assert mine.recv(1) == b""
        assert child.wait(30)
        assert child.describe() == "ended with status 0"


def test_errors_of_a_hardened_process_tell_where_and_not_what(helpers: Path, started: Start) -> None:
    child = started("fails")
    assert child.wait(30)
    said = child.output()
    assert SECRET not in said
    assert [line.split()[0] for line in said.splitlines()] == ["ValueError", "KeyError", "RuntimeError"]
    assert f"{helpers / 'fails.py'}:" in child.describe()
    assert child.describe().startswith("ended with status 1: RuntimeError in ")


def test_the_end_of_what_a_child_wrote_is_kept(helpers: Path, started: Start) -> None:
    child = started("talks", "20000")
    assert child.wait(30)
    assert child.describe() == "ended with status 7: the last line"
    assert "line 19999" in child.output()
    assert len(child.output()) <= TAIL_BYTES
    child.trim()
    assert child.output() == ""


def test_a_child_that_was_killed_says_by_what(helpers: Path, started: Start) -> None:
    mine, theirs = socket.socketpair()
    with mine, theirs:
        child = started("hardens", str(theirs.fileno()), str(os.getpid()), fds=[theirs.fileno()])
        answer(mine)
    assert not child.ended()
    assert child.describe() == "still runs"
    os.kill(child.pid, signal.SIGSTOP)
    child.kill()
    assert child.wait(30)
    assert child.describe() == "was ended by SIGKILL"


@pytest.mark.parametrize("path", ["", "/nonexistent/python"])
def test_what_cannot_be_started_is_a_device_error(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(sys, "executable", path)
    with pytest.raises(DeviceError, match=r"gpuprover\.workers: cannot be started"):
        spawn("gpuprover.workers")
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_private_memory_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    fd = private_file([b"abc", bytearray(b"de"), memoryview(b"fgh")])
    try:
        assert os.pread(fd, 100, 0) == b"abcdefgh"
        assert os.fstat(fd).st_nlink == 0
        assert not os.get_inheritable(fd)
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, b"i")
        assert os.pread(fd, 100, 0) == b"abcdefghi"
    finally:
        os.close(fd)
    assert list(tmp_path.iterdir()) == []


def test_backoff_grows_to_its_cap_and_starts_again() -> None:
    backoff = Backoff(1.0, 3.0, 10.0, 0.0)
    assert [backoff.next() for _ in range(4)] == [1.0, 3.0, 9.0, 10.0]
    backoff.reset()
    assert backoff.next() == 1.0
    spread = [Backoff(1.0, jitter=0.2).next() for _ in range(200)]
    assert 0.8 <= min(spread) < 0.9 < 1.1 < max(spread) <= 1.2
