"""Shows the progress of long work on a stream: a live display, JSON lines, or a few plain lines.

======================  =====================================================================
the stream is           what is written
======================  =====================================================================
a terminal              rich's live display: the phases that are done, a bar for the current
                        one; nothing before 0.4 s, and it disappears at the end
something else, JSON    ``{"phase": …, "fraction": …, "elapsed": …}``, at most ten lines a
                        second, always with the start and the end of each phase
something else          a plain line for a phase that took 2 s or more, and one every 10 s of
                        a phase that still runs; quick work writes nothing
======================  =====================================================================
"""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from gpuprover.job import Progress

LIVE_DELAY = 0.4
"""Seconds of work before the live display appears: quick work does not flicker."""
JSON_INTERVAL = 0.1
PLAIN_MINIMUM = 2.0
PLAIN_INTERVAL = 10.0


class Display(Protocol):
    """A progress callback that is also a context manager around the work."""

    def __call__(self, progress: Progress) -> None: ...
    def __enter__(self) -> Display: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Silent:
    """Shows nothing."""

    def __call__(self, progress: Progress) -> None:
        return None

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class JsonLines(Silent):
    """One JSON object a line.

    A phase may consist of several pieces of work that each end with 1: only its last 1 is written.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._written = 0.0
        self._latest: Progress | None = None

    def __call__(self, progress: Progress) -> None:
        latest, self._latest = self._latest, progress
        if latest is None or progress.phase != latest.phase:
            self._finish(latest)
            self._write(progress)
        elif progress.fraction < 1.0 and progress.elapsed - self._written >= JSON_INTERVAL:
            self._write(progress)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._finish(self._latest)

    def _finish(self, latest: Progress | None) -> None:
        if latest is not None and latest.fraction >= 1.0:
            self._write(latest)

    def _write(self, progress: Progress) -> None:
        self._written = progress.elapsed
        record = {
            "phase": progress.phase,
            "fraction": round(progress.fraction, 4),
            "elapsed": round(progress.elapsed, 3),
        }
        # A reader that went away ends the reports, not the work.
        with suppress(OSError, ValueError):
            print(json.dumps(record), file=self._stream, flush=True)


class PlainLines(Silent):
    """A few lines for a log."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._phase = ""
        self._begun = self._spoken = self._latest = 0.0

    def __call__(self, progress: Progress) -> None:
        if progress.phase != self._phase:
            self._finish(progress.elapsed)
            self._phase, self._begun, self._spoken = progress.phase, progress.elapsed, progress.elapsed
        elif progress.fraction < 1.0 and progress.elapsed - self._spoken >= PLAIN_INTERVAL:
            self._spoken = progress.elapsed
            taken = progress.elapsed - self._begun
            self._say(f"{progress.phase}: {100 * progress.fraction:.0f} % after {taken:.0f} s")
        self._latest = progress.elapsed

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._finish(self._latest)

    def _finish(self, now: float) -> None:
        if self._phase and now - self._begun >= PLAIN_MINIMUM:
            self._say(f"{self._phase}: done in {now - self._begun:.1f} s")

    def _say(self, line: str) -> None:
        with suppress(OSError, ValueError):
            print(line, file=self._stream, flush=True)


class Live(Silent):
    """rich's live display, started late and by a timer, so that long compilations show it too."""

    def __init__(self, stream: TextIO, title: str) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._rich: RichProgress | None = None
        self._closed = False
        self._current = title
        self._reported = False
        # By phase: the fraction, or None where it is not known; the bar then pulses.
        self._fractions: dict[str, float | None] = {title: None}
        self._tasks: dict[str, TaskID] = {}
        self._timer = threading.Timer(LIVE_DELAY, self._start)
        self._timer.daemon = True

    def __enter__(self) -> Display:
        self._timer.start()
        return self

    def __call__(self, progress: Progress) -> None:
        phase, fraction = progress.phase, progress.fraction
        with self._lock:
            if phase != self._current:
                previous, self._current = self._current, phase
                self._leave(previous)
            # A phase may consist of several pieces of work: 1 is its end only if the next phase begins.
            self._fractions[phase] = fraction if 0.0 < fraction < 1.0 else None
            self._reported = True
            self._show(phase)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        with self._lock:
            self._closed = True
            if self._rich is not None:
                self._rich.stop()

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            SpinnerColumn,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
        )

        with self._lock:
            if self._closed:
                return
            self._rich = Progress(
                SpinnerColumn(finished_text="[green]✓"),
                TextColumn("{task.description}"),
                BarColumn(bar_width=32),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                console=Console(file=self._stream),
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            for phase in self._fractions:
                self._show(phase)
            self._rich.start()

    def _leave(self, phase: str) -> None:
        """The phase has ended, or was only the title of work that had not reported yet."""
        if not self._reported:
            del self._fractions[phase]
            if self._rich is not None:
                self._rich.remove_task(self._tasks.pop(phase))
            return
        self._fractions[phase] = 1.0
        self._show(phase)

    def _show(self, phase: str) -> None:
        if self._rich is None:
            return
        if phase not in self._tasks:
            self._tasks[phase] = self._rich.add_task(phase, total=None)
        fraction = self._fractions[phase]
        total = None if fraction is None else 1.0
        self._rich.update(self._tasks[phase], total=total, completed=fraction or 0.0)


def display(stream: TextIO, *, title: str, as_json: bool = False, quiet: bool = False) -> Display:
    """The display that suits the stream; see the table above.

    Args:
        stream: usually ``sys.stderr``.
        title: what is shown until the first phase is reported.
        as_json: JSON lines where the stream is no terminal.
        quiet: nothing at all.
    """
    if quiet:
        return Silent()
    if stream.isatty():
        return Live(stream, title)
    return JsonLines(stream) if as_json else PlainLines(stream)
