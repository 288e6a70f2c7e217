"""Other users' code in folders of compiled code, damage, no room, what is left of commands: in processes."""

from __future__ import annotations

import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpuprover.cpu import bake, image
from gpuprover.cpu.sources import store
from gpuprover.curves import BN254
from gpuprover.folders import CACHE_VARIABLE
from gpuprover.processes import is_dumpable
from tests.support.running import Run

ATTACKER, VICTIM = 3000, 2000
as_root = pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("setpriv") is None, reason="only root becomes other users, by setpriv"
)

KERNEL = """
import sys
import numpy as np
from gpuprover.cpu.kernels.curve import first_off_curve
from gpuprover.cpu.layout import Field
from gpuprover.curves import BN254
point = np.array([[5] * 8], dtype=np.uint64)
print(first_off_curve(Field(BN254.base), point.ctypes.data, point.ctypes.data, 0, 1))
"""
"""One kernel, which takes a second or two to compile."""
PLANT = """
import os, sys
from pathlib import Path
class Planted:
    def __reduce__(self):
        return os.system, (f"id -u > {sys.argv[2]}",)
import pickle
folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
for name in sys.argv[3:]:
    path = folder / name
    path.unlink(missing_ok=True)
    path.write_bytes(pickle.dumps(Planted()))
    path.chmod(0o644)
"""


def become(user: int, *arguments: object) -> list[str]:
    """The command of another user, who may read this Python, wherever it is, and write nothing of others."""
    reads = ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"] if user else []
    return [
        *("setpriv", "--reuid", str(user), "--regid", str(user), "--clear-groups", *reads, "--"),
        *map(str, arguments),
    ]


def surroundings(**environment: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("GPUPROVER_", "XDG_"))}
    return {**kept, "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1", **environment}


def command(user: int, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        become(user, *arguments),
        env=surroundings(**environment),
        cwd="/",
        capture_output=True,
        text=True,
        timeout=250,
    )


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder like /tmp, for temporary files of all users."""
    folder = Path("/tmp") / f"gpuprover-attack-{os.getpid()}"
    folder.mkdir()
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def names(shared: Path) -> list[str]:
    """Files in which the kernel is kept."""
    done = command(0, sys.executable, "-c", KERNEL, GPUPROVER_CACHE_DIR=str(shared / "first"))
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
    (found,) = [path for path in (shared / "first").iterdir() if path.is_dir()]
    return [found.name, *(path.name for path in found.glob("*.nbc"))]


Stage = Callable[[Path, list[str], Path], None]


def plant(user: int, folder: Path, names: list[str], trace: Path) -> None:
    done = command(user, sys.executable, "-c", PLANT, folder, trace, *names[1:])
    assert done.returncode == 0, done.stderr


def _writable_folder(shared: Path, names: list[str], trace: Path) -> None:
    """The user's own, which anybody may write."""
    folder = shared / "cache" / names[0]
    folder.mkdir(parents=True)
    for path in (folder.parent, folder):
        os.chown(path, VICTIM, VICTIM)
        path.chmod(0o777)
    plant(ATTACKER, folder, names, trace)


def _made_first(shared: Path, names: list[str], trace: Path) -> None:
    """The cache was somebody else's before the user came, with the user's own open folder behind a link."""
    trap = shared / "trap"
    trap.mkdir()
    os.chown(trap, VICTIM, VICTIM)
    trap.chmod(0o1777)
    plant(ATTACKER, trap, names, trace)
    made = command(ATTACKER, "sh", "-c", f"mkdir {shared}/cache && ln -s {trap} {shared}/cache/{names[0]}")
    assert made.returncode == 0


def _temporary_made_first(shared: Path, names: list[str], trace: Path) -> None:
    """No cache can be made, and the folder among temporary files is somebody else's."""
    _made_first(shared, names, trace)
    (shared / "cache").rename(shared / f"gpuprover-{VICTIM}")
    (shared / "cache").touch()


def _link_to_own(shared: Path, names: list[str], trace: Path) -> None:
    """A link of somebody else's, to files of the user's own that somebody else wrote: unpacked, say."""
    unpacked = shared / "unpacked"
    plant(VICTIM, unpacked / names[0], names, trace)
    for path in (unpacked, unpacked / names[0]):
        path.chmod(0o700)
    assert command(ATTACKER, "ln", "-s", unpacked, shared / "cache").returncode == 0


STAGES: dict[str, Stage] = {
    "anybody may write it": _writable_folder,
    "somebody made it first": _made_first,
    "somebody made the other first": _temporary_made_first,
    "somebody's link": _link_to_own,
}


@pytest.mark.slow
@as_root
@pytest.mark.parametrize("victim", [VICTIM, 0], ids=["user", "root"])
@pytest.mark.parametrize("stage", STAGES)
def test_code_of_another_user_is_not_run(shared: Path, names: list[str], stage: str, victim: int) -> None:
    """The kernel is compiled, with one warning; a second process finds it where the first has put it."""
    trace = shared / "trace"
    STAGES[stage](shared, names, trace)
    variables = {CACHE_VARIABLE: str(shared / "cache"), "TMPDIR": str(shared)}
    if (stage, victim) == ("somebody made the other first", 0):
        (shared / f"gpuprover-{VICTIM}").rename(shared / "gpuprover-0")
    for _ in range(2):
        done = command(victim, sys.executable, "-c", KERNEL, **variables)
        assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
        assert not trace.exists()
        (line,) = done.stderr.splitlines()
        assert str(shared) in line
    assert not list(shared.glob("gpuprover-*-process-*")), "it went with its process"


FLIP = """
import os, sys, time
folder, evil, end = sys.argv[1], sys.argv[2], time.time() + float(sys.argv[3])
flips = 0
while time.time() < end:
    try:
        os.rename(folder, folder + "-away")
        os.rename(evil, folder)
        time.sleep(0.003)
        os.rename(folder, evil)
        os.rename(folder + "-away", folder)
        time.sleep(0.003)
        flips += 1
    except OSError:
        time.sleep(0.001)
print(flips)
"""
LOOK = """
import sys, time
from gpuprover import folders
folders.warnings_to(lambda text: None).__enter__()
store, end, found = folders.Store(sys.argv[1]), time.time() + float(sys.argv[2]), set()
while time.time() < end:
    found.add(store.read("file"))
    found.add(store.read_signed("signed"))
    store.write("another", b"of the user")
found.discard(None)
print(sorted(found))
"""


@pytest.mark.slow
@as_root
def test_folders_that_are_exchanged_all_the_time(shared: Path) -> None:
    """In a folder that anybody may write, where a statement of ours says that nobody does."""
    shared.chmod(0o777)
    cache, evil = shared / "cache", shared / "evil"
    environment = {CACHE_VARIABLE: str(cache), "GPUPROVER_SOLE_USER": "1", "TMPDIR": str(shared)}
    make = 'from gpuprover.folders import Store; s = Store("code"); assert s.write("file", b"of the user")'
    made = command(
        VICTIM,
        sys.executable,
        "-c",
        f'{make}; assert s.write_signed("signed", b"of the user")',
        **environment,
    )
    assert made.returncode == 0, made.stderr
    alone = command(VICTIM, sys.executable, "-c", LOOK, "code", "0.1", **environment)
    assert alone.stdout == "[b'of the user']\n", alone.stderr
    planted = f"mkdir -p {evil}/code && cp -r /etc/hostname {evil}/code/file && chmod -R a+rwX {evil}"
    assert command(ATTACKER, "sh", "-c", planted).returncode == 0
    attacker = subprocess.Popen(
        become(ATTACKER, sys.executable, "-c", FLIP, cache, evil, "6"),
        env=surroundings(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        done = command(VICTIM, sys.executable, "-c", LOOK, "code", "5", **environment)
    finally:
        out, _ = attacker.communicate(timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(out) > 20
    # Its own code or, where it made its folder anew in between, none: never the attacker's.
    assert done.stdout in ("[b'of the user']\n", "[]\n")


# What root has made for others ------------------------------------------------------------------------

IMAGES = """
import sys
from gpuprover.devices import use_images
from gpuprover.curves import BN254
print(use_images([BN254]), "numba" in sys.modules)
"""


@pytest.mark.slow
@as_root
@pytest.mark.skipif(image.machine() is None, reason="no images on this machine")
def test_images_that_root_has_made_serve_everybody(shared: Path, names: list[str]) -> None:
    """As in a container's image that root builds and another user runs: read, not written, no pickle."""
    bake.bake_missing(BN254)
    name, folder = image.image_name(BN254), store().folder
    assert name is not None
    assert folder is not None
    baked = shared / "baked"
    (baked / store().name).mkdir(parents=True)
    shutil.copyfile(folder / name, baked / store().name / name)
    plant(0, baked / store().name, names, shared / "trace")
    (baked / "key").write_bytes(bytes(32))
    for path in [baked, *baked.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    environment = {CACHE_VARIABLE: str(baked), "TMPDIR": str(shared)}
    done = command(VICTIM, sys.executable, "-c", IMAGES, **environment)
    assert (done.stdout, done.stderr) == ("True False\n", "")
    # What no image has goes to a folder of the user's own.
    for _ in range(2):
        done = command(VICTIM, sys.executable, "-c", KERNEL, **environment)
        assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
        assert not (shared / "trace").exists()
    assert done.stderr == "", "the second process found what the first has compiled"
    assert (shared / f"gpuprover-{VICTIM}" / names[0] / names[1]).stat().st_uid == VICTIM


# Damage, no room --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "another's", "no key"])
def test_damaged_code_is_compiled_anew(tmp_path: Path, damage: str) -> None:
    environment = {**os.environ, CACHE_VARIABLE: str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}

    def run() -> Path:
        done = subprocess.run(
            [sys.executable, "-c", KERNEL], env=environment, capture_output=True, text=True, timeout=250
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")
        (path,) = tmp_path.glob("*/*.nbc")
        return path

    path = run()
    whole = path.read_bytes()
    if damage == "flipped":
        # In the middle of LLVM's code, which would end the process.
        middle = len(whole) // 2
        path.write_bytes(
            whole[:middle] + bytes(x ^ 0x5A for x in whole[middle : middle + 8]) + whole[middle + 8 :]
        )
    elif damage == "another's":
        path.write_bytes(pickle.dumps((None, None)))
    elif damage == "no key":
        (tmp_path / "key").write_bytes(b"")
    else:
        path.write_bytes(whole[: 100 if damage == "cut" else 0])
    changed = path.stat().st_mtime_ns
    assert run().stat().st_mtime_ns > changed
    changed = path.stat().st_mtime_ns
    assert run().stat().st_mtime_ns == changed, "mended by the first run"


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["a limit on files", "a full disk", "a disk that cannot be written"])
def test_no_room_costs_one_warning(tmp_path: Path, limit: str) -> None:
    cache, script = tmp_path / "cache", f'exec "{sys.executable}" -c "$KERNEL"'
    cache.mkdir(mode=0o700)
    if limit == "a limit on files":
        script = f"ulimit -f 8; {script}"
    else:
        if os.getuid() != 0 or shutil.which("unshare") is None:
            pytest.skip("only root mounts")
        options = "size=16k,mode=700" if "full" in limit else "size=16k,mode=700,ro"
        script = f"mount -t tmpfs -o {options} none {cache} && {script}"
    environment = {**os.environ, CACHE_VARIABLE: str(cache), "KERNEL": KERNEL, "TMPDIR": str(tmp_path)}
    shell = ["sh", "-c", script] if "limit" in limit else ["unshare", "-m", "sh", "-c", script]
    done = subprocess.run(shell, env=environment, capture_output=True, text=True, timeout=250)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
    (line,) = done.stderr.splitlines()
    assert str(cache) in line


# What is left of a command ----------------------------------------------------------------------------

ENDED = """
import resource, sys
from gpuprover.cli import main
from gpuprover.processes import is_dumpable
sys.argv[0] = "gpuprover"
main()
print(is_dumpable(), *resource.getrlimit(resource.RLIMIT_CORE))
"""
WAITING = "import sys; print('ready', flush=True); sys.stdin.read()"


@pytest.mark.parametrize("arguments", [["worker"], ["prove", "a", "b"]], ids=" ".join)
def test_a_command_cannot_be_dumped(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDED, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.splitlines()[-1:] == ["False 0 0"], done.stderr


def test_a_program_that_uses_the_library_stays_as_it_is(run: Run) -> None:
    """Its owner decides for it; `processes.harden` is there."""
    before = is_dumpable()
    assert run("doctor", "--json").code == 0
    assert is_dumpable() == before


def _dumps(*arguments: str, folder: Path) -> bool:
    """Whether a process that is hit by SIGSEGV is dumped, as the system tells its parent."""

    def unlimited() -> None:
        hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
        resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))

    child = subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        preexec_fn=unlimited,
    )
    with child:
        assert child.stdin is not None
        assert child.stdout is not None
        if "gpuprover" in arguments:
            child.stdin.write(b"no job\n")  # it answers when it is ready
            child.stdin.flush()
        assert child.stdout.readline()
        child.send_signal(signal.SIGSEGV)
        ended = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        assert ended.si_status == signal.SIGSEGV
        child.wait()
    return ended.si_code == os.CLD_DUMPED


def test_a_command_that_crashes_leaves_no_core(tmp_path: Path) -> None:
    assert not _dumps("-m", "gpuprover", "worker", folder=tmp_path)
    assert not list(tmp_path.glob("*core*"))
    if not _dumps("-c", WAITING, folder=tmp_path):
        pytest.skip("here no process leaves a core")


@pytest.mark.slow
@as_root
def test_another_process_of_the_user_cannot_read_a_commands_memory(tmp_path: Path) -> None:
    def readable(*arguments: str) -> bool:
        child = subprocess.Popen(
            become(VICTIM, sys.executable, *arguments),
            env=surroundings(TMPDIR="/tmp"),
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        with child:
            assert child.stdin is not None
            assert child.stdout is not None
            if "gpuprover" in arguments:
                child.stdin.write(b"no job\n")
                child.stdin.flush()
            assert child.stdout.readline()
            opened = command(VICTIM, sys.executable, "-c", f"open('/proc/{child.pid}/mem', 'rb')")
            child.kill()
        return opened.returncode == 0

    assert readable("-c", WAITING), "the test shows nothing"
    assert not readable("-m", "gpuprover", "worker")
