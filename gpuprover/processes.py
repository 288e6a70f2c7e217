"""This package's processes: what keeps their memory to themselves, how helpers are started, and again.

A helper is ``python -m MODULE``: it never imports the caller's ``__main__``, so that scripts without a guard,
standard input and notebooks may start one, and nothing is forked or pickled. It talks over sockets that it
inherits. Its first call is :func:`harden`.
"""

from __future__ import annotations

import ctypes
import os
import random
import resource
import signal
import site
import subprocess
import sys
import sysconfig
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from gpuprover import folders, memory
from gpuprover.errors import DeviceError

TAIL_BYTES = 4096
"""The last bytes of a helper's standard output and error that an error quotes."""
_TOO_MUCH = 1 << 16

_PR_SET_PDEATHSIG, _PR_GET_DUMPABLE, _PR_SET_DUMPABLE = 1, 3, 4
_LEAN = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Environment of helpers: NumPy's linear algebra is not used there, and its threads take memory."""


# In a helper ----------------------------------------------------------------------------------------


def harden(parent: int | None = None) -> None:
    """Keeps this process's memory out of files and out of other processes' sight.

    For processes that are gpuprover's own, each helper and each command; whoever uses the library decides for
    its own. No core file; not dumpable, which also keeps other processes of the same user from reading its
    memory; exceptions that nobody catches print where they happened, not their text, which may hold secrets.

    Args:
        parent: the process that started this one. If its thread that did so ends, this process is killed; if
            it has ended already, this process ends here.
    """
    memory.prepare()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_DUMPABLE, 0)
    sys.excepthook = _print_place
    threading.excepthook = lambda args: _print_place(args.exc_type, args.exc_value, args.exc_traceback)
    sys.unraisablehook = lambda args: _print_place(args.exc_type, args.exc_value, args.exc_traceback)
    if parent is not None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # It may have ended before the line above, and then no signal comes.
        if os.getppid() != parent:
            os._exit(0)


def is_dumpable() -> bool:
    """Whether a core file of this process could be written, and others of its user could read its memory."""
    return _prctl(_PR_GET_DUMPABLE, 0) != 0


def _prctl(option: int, value: int) -> int:
    """Linux alone has it; elsewhere a helper is as other processes are."""
    if sys.platform != "linux":
        return -1
    arguments = [ctypes.c_ulong(x) for x in (value, 0, 0, 0)]
    return int(ctypes.CDLL(None).prctl(ctypes.c_int(option), *arguments))


def _print_place(kind: type[BaseException], value: BaseException | None, trace: TracebackType | None) -> None:
    frames = traceback.extract_tb(trace)
    where = f" in {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    with suppress(Exception):
        print(f"{kind.__name__}{where}", file=sys.stderr, flush=True)


# Starting one -----------------------------------------------------------------------------------------


class Child:
    """A helper that :func:`spawn` started."""

    def __init__(self, process: subprocess.Popen[bytes], output: int) -> None:
        self._process, self._output = process, output

    @property
    def pid(self) -> int:
        return self._process.pid

    def ended(self) -> bool:
        """Whether it has; from then on no process is left of it."""
        return self._process.poll() is not None

    def wait(self, timeout: float) -> bool:
        """Waits for its end, that many seconds -> whether it has ended."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)
        return self.ended()

    def terminate(self) -> None:
        """Asks it to end."""
        self._process.terminate()

    def kill(self) -> None:
        """Ends it, stopped or not."""
        self._process.kill()

    @property
    def killed(self) -> bool:
        """Whether it was ended from outside: by whoever may, or by the system for want of memory."""
        return self._process.poll() in (-signal.SIGKILL, -signal.SIGTERM)

    @property
    def status(self) -> int | None:
        """Its exit code, or the negative number of the signal that ended it; None while it runs."""
        return self._process.poll()

    def output(self) -> str:
        """The last lines that it wrote, of at most 4 KiB."""
        with suppress(OSError):
            size = os.fstat(self._output).st_size
            tail = os.pread(self._output, TAIL_BYTES, max(0, size - TAIL_BYTES))
            return tail.decode("utf-8", "replace").strip()
        return ""

    def trim(self) -> None:
        """Forgets what it wrote, if that is much; to be called now and then."""
        with suppress(OSError):
            if os.fstat(self._output).st_size > _TOO_MUCH:
                os.ftruncate(self._output, 0)

    def ending(self) -> str:
        """How it ended, in words."""
        code = self._process.poll()
        if code is None:
            return "still runs"
        return f"was ended by {_signal_name(-code)}" if code < 0 else f"ended with status {code}"

    def describe(self) -> str:
        """How it ended, in words, with the last line that it wrote, which may name files of this machine."""
        lines = self.output().splitlines()
        return f"{self.ending()}: {lines[-1].strip()}" if lines else self.ending()

    def close(self) -> None:
        """Lets go what is kept of it; it has to have ended."""
        if self._output >= 0:
            os.close(self._output)
            self._output = -1


def _signal_name(number: int) -> str:
    with suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def spawn(
    module: str, *arguments: str, fds: Sequence[int] = (), env: Mapping[str, str] | None = None
) -> Child:
    """Starts ``python -m module arguments`` with this interpreter and this very gpuprover.

    It gets the descriptors ``fds`` under their numbers and no others, no standard input, a session of its own
    (a terminal's Ctrl-C reaches only the process in front), and nothing is imported from the current folder.
    What it writes to standard output and error is kept in memory: :meth:`Child.output`. Neither arguments nor
    ``env`` may hold secrets, since other processes can read them.

    If the helper hardens itself, it dies with the thread that calls this: that has to outlive it.

    Raises:
        DeviceError: the system starts no process.
    """
    if not sys.executable:
        raise DeviceError(f"{module}: cannot be started: this interpreter does not know its own path")
    command = [sys.executable, "-P", *(["-s"] if sys.flags.no_user_site else []), "-m", module, *arguments]
    output = private_file()
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=fds,
            close_fds=True,
            start_new_session=True,
            env={**_environment(os.environ), **folders.for_children(), **_LEAN, **(env or {})},
        )
    except OSError as error:
        os.close(output)
        raise DeviceError(f"{module}: cannot be started: {error.strerror or error}") from None
    return Child(process, output)


def _environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """What a helper sees: the caller's environment, and where this gpuprover lies."""
    isolated = sys.flags.ignore_environment
    env = {k: v for k, v in inherited.items() if not (isolated and k.startswith("PYTHON"))}
    # An empty entry would stand for the current folder.
    path = [entry for entry in env.pop("PYTHONPATH", "").split(os.pathsep) if entry]
    root = str(Path(__file__).resolve().parents[1])
    # A folder of installed packages is searched anyway, after the standard library and not before it.
    installed = {sysconfig.get_path(name) for name in ("purelib", "platlib")} | {site.getusersitepackages()}
    if root not in {str(Path(folder).resolve()) for folder in installed} and root not in path:
        path.insert(0, root)
    if path:
        env["PYTHONPATH"] = os.pathsep.join(path)
    return env


# Memory that is handed over -----------------------------------------------------------------------------


def private_file(pieces: Iterable[bytes | bytearray | memoryview] = ()) -> int:
    """A descriptor of a file without a name, with these bytes: in memory, or else unlinked and of mode 0600.

    Writes append to it. The caller closes it.

    Raises:
        DeviceError: there is no memory, or no space, for it.
    """
    import fcntl

    try:
        descriptor = _unnamed()
        try:
            for piece in pieces:
                view = memoryview(piece)
                view = view.cast("B") if view.nbytes else view[:0]
                while view:
                    view = view[os.write(descriptor, view[: 1 << 26]) :]
            flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_APPEND)
        except BaseException:
            os.close(descriptor)
            raise
    except OSError as error:
        raise DeviceError(f"memory for another process: {error.strerror or error}") from None
    return descriptor


def _unnamed() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("gpuprover", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:  # pragma: no cover - Linux has memfd_create
        return os.dup(file.fileno())


# Starting one again ---------------------------------------------------------------------------------------


class Backoff:
    """Seconds to wait before the next try: ``first``, then ``factor`` times as long each, at most ``cap``.

    ``jitter`` spreads them, by that share up and down, so that what failed together is not retried together.
    """

    def __init__(
        self,
        first: float = 0.1,
        factor: float = 2.0,
        cap: float = 10.0,
        jitter: float = 0.2,
        *,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._first, self._factor, self._cap, self._jitter = first, factor, cap, jitter
        self._uniform, self._wait = uniform, first

    def next(self) -> float:
        """How long to wait before this try."""
        wait = min(self._wait, self._cap)
        self._wait = min(self._wait * self._factor, self._cap)
        return wait * self._uniform(1 - self._jitter, 1 + self._jitter)

    def reset(self) -> None:
        """After a success."""
        self._wait = self._first
