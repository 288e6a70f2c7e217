"""One run's limits and reports: threads, cancellation, deadline, progress, phase timings.

This is the project's only threading mechanism. Kernels are compiled with ``nogil`` and
take ranges; :meth:`Job.map` runs them on at most ``threads`` Python threads, while the
calling thread stays responsive to cancellation, to the deadline and to Ctrl-C.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from itertools import pairwise
from queue import Empty, SimpleQueue
from typing import Generic, NamedTuple, Protocol, TypeVar, cast

import numpy as np

from gpuprover import forks
from gpuprover.config import default_threads
from gpuprover.errors import Aborted, Cancelled, InvalidInput, OutOfMemory, Timeout, brief

T = TypeVar("T")
R = TypeVar("R")

POLL_SECONDS = 0.05
MOST_THREADS = 1 << 16
LARGEST_PIECE = 1 << 20
"""Elements of a range; at 20 to 40 ns each, tens of milliseconds."""
BRIEF = 8
"""Smallest pieces that are worth a thread: ranges of at most so many take a few milliseconds at most."""


class Progress(NamedTuple):
    """What a progress callback receives: phase name, fraction of it done in [0, 1], seconds since start."""

    phase: str
    fraction: float
    elapsed: float


class Event(Protocol):
    """What ``cancel`` must offer; ``threading.Event`` does."""

    def is_set(self) -> bool: ...


class Job:
    """The limits of one run, and what it reports.

    Args:
        threads: at most this many threads work at once; default: :func:`gpuprover.config.default_threads`.
        cancel: an event; once set, the run raises :class:`Cancelled` within 200 ms of work.
        timeout: seconds from now after which the run raises :class:`Timeout`.
        progress: called with :class:`Progress` from the thread that runs the job.

    Attributes:
        stop: uint8[1]; kernels return early once it is non-zero.
        timings: seconds by phase, in the order in which phases were first entered.
    """

    def __init__(
        self,
        *,
        threads: int | None = None,
        cancel: Event | None = None,
        timeout: float | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise InvalidInput(f"threads: expected a whole number of at least 1, found {brief(threads)}")
        if threads is not None and threads > MOST_THREADS:
            raise InvalidInput(f"threads: expected at most {MOST_THREADS}")
        if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, int | float)):
            raise InvalidInput(f"timeout: expected seconds, found {type(timeout).__name__}")
        if timeout is not None and not 0 <= timeout < 1e12 and timeout != math.inf:  # NaN is neither
            raise InvalidInput("timeout: expected seconds, at least 0")
        if cancel is not None and not callable(getattr(cancel, "is_set", None)):
            raise InvalidInput(f"cancel: expected an event, found {type(cancel).__name__}")
        if progress is not None and not callable(progress):
            raise InvalidInput(f"progress: expected a function, found {type(progress).__name__}")
        self.threads = threads if threads is not None else default_threads()
        self.stop = np.zeros(1, dtype=np.uint8)
        self.timings: dict[str, float] = {}
        self._cancel = cancel
        self._start = time.perf_counter()
        self._deadline = None if timeout is None else self._start + timeout
        self._progress = progress
        self._phase = ""
        self._span = (0.0, 1.0)
        self._pool: ThreadPoolExecutor | None = None
        self._generation = forks.generation()

    def check(self) -> None:
        """Raises Cancelled or Timeout if the run has to end, and Aborted in a forked process."""
        if self._generation != forks.generation():
            self.stop[0] = 1
            raise Aborted("a run does not go on in a process that was forked meanwhile: begin it there anew")
        if self._cancel is not None and self._cancel.is_set():
            self.stop[0] = 1
            raise Cancelled("cancelled by the caller")
        if self._deadline is not None and time.perf_counter() > self._deadline:
            self.stop[0] = 1
            raise Timeout(f"time limit reached after {time.perf_counter() - self._start:.1f} s")

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times a phase and reports its start and end."""
        self.check()
        outer, self._phase = self._phase, name
        outer_span, self._span = self._span, (0.0, 1.0)
        begun = time.perf_counter()
        self.report(0.0)
        try:
            yield
            self.report(1.0)
        finally:
            self.timings[name] = self.timings.get(name, 0.0) + time.perf_counter() - begun
            self._phase, self._span = outer, outer_span

    @contextmanager
    def subphase(self, i: int, n: int) -> Iterator[None]:
        """Within it, a report of 0 to 1 counts as the i-th of n equal parts of the phase."""
        low, width = outer = self._span
        self._span = (low + width * i / n, width / n)
        try:
            yield
            self.report(1.0)
        finally:
            self._span = outer

    def resume(self) -> None:
        """After a failure that the run survives: kernels run again, unless the run has to end anyway."""
        self.check()
        self.stop[0] = 0

    def report(self, fraction: float) -> None:
        """Tells how much of the current phase, or subphase, is done, in [0, 1]."""
        if self._progress is not None and self._phase:
            low, width = self._span
            self._progress(Progress(self._phase, low + width * fraction, time.perf_counter() - self._start))

    def map(
        self, function: Callable[[T], R], items: Iterable[T], *, progress: bool = False, brief: bool = False
    ) -> list[R]:
        """``[function(i) for i in items]`` on at most ``threads`` threads, results in order.

        With ``progress``, the share of items that are done is reported. ``brief`` says that each item takes a
        few milliseconds at most: one alone, or all of a job with one thread, run in the calling thread then,
        as :class:`Ranges` of few elements do.

        The first exception ends the run and is raised, after what runs has returned.
        ``function`` must release the GIL for long work, return soon after ``stop`` becomes
        non-zero, and call no ``map`` itself.
        """
        self.check()
        todo, brief = list(items), brief or (isinstance(items, Ranges) and items.brief)
        unlimited = self._cancel is None and self._deadline is None
        if (brief and self.threads == 1) or (len(todo) == 1 and (brief or unlimited)):
            return self._here(function, todo, progress)
        if self._pool is None:
            # Lives as long as the job: its threads end when it is collected.
            self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="gpuprover")
        results: dict[int, R] = {}
        queue, ended = iter(enumerate(todo)), SimpleQueue[_End[R]]()
        taking, over = threading.Lock(), threading.Event()

        def take() -> tuple[int, T] | None:
            with taking:
                return None if over.is_set() or self._cancelled() else next(queue, None)

        def work() -> None:
            mine = take()
            while mine is not None:
                i, item = mine
                try:
                    end = _End(i, result=function(item))
                except BaseException as error:
                    ended.put(_End(i, error=error))
                    return
                mine = take()
                ended.put(end)

        started: list[Future[None]] = []
        try:
            for _ in range(min(self.threads, len(todo))):
                started.append(_submit(self._pool, work))
            while len(results) < len(todo):
                end = None
                with suppress(Empty):
                    end = ended.get(timeout=POLL_SECONDS)
                if end is None:
                    # Outside of a handler: an error would have the queue's as its context, with these frames.
                    self.check()
                    continue
                if end.error is not None:
                    try:
                        raise end.error
                    finally:
                        # An error that is reached from its own frames keeps the job's threads until a
                        # collection.
                        del end
                results[end.item] = end.result
                self.check()
                if progress:
                    self.report(len(results) / len(todo))
        except BaseException:
            self.stop[0] = 1
            over.set()
            if self._generation == forks.generation():  # else the threads are another process's
                wait(started)
                while not ended.empty():
                    ended.get_nowait()
            raise
        return [results[i] for i in range(len(todo))]

    def _here(self, function: Callable[[T], R], todo: list[T], progress: bool) -> list[R]:
        """:meth:`map` in the calling thread."""
        results: list[R] = []
        for item in todo:
            if results:
                self.check()
            results.append(function(item))
            if progress:
                self.report(len(results) / len(todo))
        return results

    def _cancelled(self) -> bool:
        return self._cancel is not None and self._cancel.is_set()

    def ranges(self, n: int, *, smallest: int = 1, largest: int = LARGEST_PIECE) -> Ranges:
        """[0, n) in pieces of nearly equal size, for :meth:`map`.

        One for each thread, but none shorter than ``smallest`` (if n is not), and none longer
        than ``largest``: a kernel that looks at no flag has to end soon after a cancellation.
        """
        pieces = max(1, min(self.threads, n // max(1, smallest)), -(-n // largest))
        bounds = [n * i // pieces for i in range(pieces + 1)]
        return Ranges(pairwise(bounds), brief=smallest > 1 and n <= BRIEF * smallest)


class Ranges(list[tuple[int, int]]):
    """Ranges of elements, each as (first, end).

    Attributes:
        brief: to go through all of them takes a few milliseconds at most; known where the smallest piece is.
    """

    def __init__(self, ranges: Iterable[tuple[int, int]], *, brief: bool) -> None:
        super().__init__(ranges)
        self.brief = brief


class _End(Generic[R]):
    """The end of one item."""

    __slots__ = ("_result", "error", "item")

    def __init__(self, item: int, *, result: R | None = None, error: BaseException | None = None) -> None:
        self.item, self.error, self._result = item, error, result

    @property
    def result(self) -> R:
        return cast("R", self._result)


def _submit(pool: ThreadPoolExecutor, work: Callable[[], None]) -> Future[None]:
    try:
        return pool.submit(work)
    except RuntimeError as error:
        if str(error) != "can't start new thread":
            raise
        raise OutOfMemory("the machine refused a thread") from None
