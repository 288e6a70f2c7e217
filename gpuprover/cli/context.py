"""What every command gets: settings, console, signals; and how failures become exit codes."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, TypedDict

from gpuprover.cli.console import Console
from gpuprover.config import Settings
from gpuprover.display import Display
from gpuprover.errors import EXIT_RESOURCES, Cancelled, OutOfMemory, ProverError, code_location

if TYPE_CHECKING:
    from gpuprover.job import Job

GRACE_SECONDS = 0.5
DEBUG_VARIABLE = "GPUPROVER_DEBUG"
"""When set, an unexpected exception shows its traceback."""


class InternalError(ProverError):
    """A fault of ours; the message names the place in the code and none of the data."""

    exit_code = EXIT_RESOURCES


class Interrupts:
    """SIGINT, SIGTERM and SIGHUP end the command.

    Inside :meth:`gently` a first signal sets :attr:`event`, which running work
    notices within 200 ms; what has not ended half a second later (a compilation, a system
    call), and everything outside such work, is interrupted by KeyboardInterrupt. Outside
    the main thread signals are left alone. Handlers are put back on exit.
    """

    def __init__(self) -> None:
        self.event = threading.Event()
        self._gentle = False
        self._previous: dict[int, Any] = {}
        self._hook = sys.unraisablehook

    def __enter__(self) -> Interrupts:
        self._hook, sys.unraisablehook = sys.unraisablehook, self._ignored
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                number = getattr(signal, name, None)
                # Ignored by the parent (nohup, a shell's background job): stays ignored.
                if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._previous[number] = signal.signal(number, self._signalled)
            if hasattr(signal, "SIGALRM"):
                self._previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._expired)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if hasattr(signal, "setitimer") and self._previous:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
        sys.unraisablehook = self._hook

    def _ignored(self, problem: sys.UnraisableHookArgs) -> None:
        # An interrupt within a finaliser is lost there, with a traceback; another one follows.
        if not issubclass(problem.exc_type, KeyboardInterrupt):
            self._hook(problem)

    @contextmanager
    def gently(self) -> Iterator[None]:
        """The block watches :attr:`event` itself, and what it has finished stays valid."""
        self._gentle = True
        try:
            yield
        finally:
            self._gentle = False
            if hasattr(signal, "setitimer") and self._previous:
                signal.setitimer(signal.ITIMER_REAL, 0)

    def ignore(self) -> None:
        """From now on signals do nothing: the command is ending anyway."""
        for number in self._previous:
            signal.signal(number, signal.SIG_IGN)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        first = not self.event.is_set()
        self.event.set()
        if self._gentle and first and hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS, GRACE_SECONDS)
        else:
            raise KeyboardInterrupt

    def _expired(self, number: int, frame: FrameType | None) -> None:
        # Repeats until the work has ended: an exception inside a callback may get lost.
        raise KeyboardInterrupt


def as_prover_error(error: BaseException, interrupts: Interrupts) -> ProverError:
    """Any failure as one of ours: what a user can act on, never the data."""
    if interrupts.event.is_set() or isinstance(error, KeyboardInterrupt):
        return Cancelled("interrupted; no output was written")
    if isinstance(error, ProverError):
        return error
    if isinstance(error, MemoryError):
        return OutOfMemory("the machine refused memory; free some, or set --memory-limit or fewer --threads")
    if isinstance(error, OSError):
        from gpuprover.formats.files import os_problem

        name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else "a file"
        if error.errno == errno.ENOMEM:
            return OutOfMemory(f"{name}: the machine refused memory")
        if error.errno is not None:
            return os_problem(name, error, "read or write")
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exception(error)
    return InternalError(
        f"{type(error).__name__} in {code_location(error.__traceback__)}; this is a bug in gpuprover: "
        f"run again with {DEBUG_VARIABLE}=1 for the details (they may show secret inputs) and report it"
    )


class Limits(TypedDict):
    """The keyword arguments that every long call of the library takes."""

    device: str
    threads: int
    memory_limit: int | None
    progress: Display
    cancel: threading.Event


def job_of(limits: Limits) -> Job:
    """A job under these limits, for work that is called step by step."""
    from gpuprover.job import Job

    return Job(threads=limits["threads"], cancel=limits["cancel"], progress=limits["progress"])


@dataclass(frozen=True)
class Context:
    """One command's surroundings. ``own_process``: nothing else has run here, and nothing else will."""

    settings: Settings
    console: Console
    interrupts: Interrupts
    own_process: bool = False

    @contextmanager
    def work(self, title: str) -> Iterator[Limits]:
        """Shows progress and takes signals gently while a long call runs."""
        settings = self.settings
        with self.console.progress(title) as display, self.interrupts.gently():
            yield Limits(
                device=settings.device,
                threads=settings.threads,
                memory_limit=settings.memory_limit,
                progress=display,
                cancel=self.interrupts.event,
            )
