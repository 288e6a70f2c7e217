"""A proof that was asked for: what its owner sees of it, and can do."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import suppress
from enum import StrEnum
from typing import Any

from gpuprover.errors import Cancelled, InvalidInput, ProverError, ShuttingDown, Timeout
from gpuprover.job import Progress
from gpuprover.proving import ProofResult

log = logging.getLogger("gpuprover.engine")

MAX_SECONDS = 1e9


def require_process(pid: int) -> None:
    """Has a process use its own provers alone.

    Threads do not come along in a fork: locks stay as they were at that moment, and nobody answers any more.

    Raises:
        ShuttingDown: ``pid`` is another process.
    """
    if os.getpid() != pid:
        raise ShuttingDown(
            f"the prover belongs to process {pid}, from which this one was forked; make one after the fork"
        )


def seconds(value: object, name: str) -> float:
    """A time to wait, as locks and events take it: infinite ones become years, negative ones none.

    Raises:
        InvalidInput: it is no number.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or value != value:
        raise InvalidInput(f"{name}: expected a number of seconds, found {type(value).__name__}")
    assert isinstance(value, int | float)
    return float(min(max(value, 0), MAX_SECONDS))


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class ProofJob:
    """A proof that a :class:`gpuprover.Prover` makes.

    Whoever holds the job holds its result: the prover forgets both, and the witness, when the job has ended.

    Attributes:
        id: 32 hexadecimal digits, drawn at random.
        circuit: its name.
        protocol: the proof system's name; None until the circuit's key is known.
        priority: higher ones go first.
        state: ``queued`` until a device has it, ``running``, and then one of the other three for good. A job
            that ran and is to be tried again is still ``running``.
        submitted, started, finished: seconds since the epoch; None before.
        device: that it runs on, or ran on last; None before.
        attempts: runs so far; more than one after a death, a failing device or a lack of memory.
        devices: that it ran on, one for each run.
        placement: why it runs there, in words.
        progress: the last one; None before.
        error: why it failed or was cancelled; None otherwise.
    """

    def __init__(
        self,
        circuit: str,
        priority: int = 0,
        progress: Callable[[Progress], None] | None = None,
        owner: object = None,
    ) -> None:
        self.id = uuid.uuid4().hex
        self.circuit, self.priority = circuit, priority
        self.protocol: str | None = None
        self.state = JobState.QUEUED
        self.submitted = time.time()
        self.started: float | None = None
        self.finished: float | None = None
        self.device: str | None = None
        self.attempts = 0
        self.devices: tuple[str, ...] = ()
        self.placement = ""
        self.progress: Progress | None = None
        self.error: ProverError | None = None
        self._result: ProofResult | None = None
        self._pid = os.getpid()
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[ProofJob], None]] = []
        self._report = progress
        self._owner = owner  # a prover that nobody holds is closed, but not under its jobs
        self._cancel: Callable[[ProofJob], bool] | None = None

    def __repr__(self) -> str:
        return f"<ProofJob {self.id} of {self.circuit}: {self.state.value}>"

    def done(self) -> bool:
        return self._ended.is_set()

    def cancel(self) -> bool:
        """Whether it was still open. It ends at once; what runs for it ends within 200 ms of work."""
        require_process(self._pid)
        cancel = self._cancel
        return cancel is not None and cancel(self)

    def wait(self, timeout: float | None = None) -> ProofResult:
        """The result.

        Args:
            timeout: seconds; the job goes on when they are over.

        Raises:
            Timeout: it is not done yet, or ran out of its own time.
            Aborted: it was cancelled.
            ShuttingDown: this process was forked before the job had ended.
            InvalidInput: ``timeout`` is no number.
            ProverError: why it failed.
        """
        if not self._ended.is_set():
            require_process(self._pid)
        if not self._ended.wait(None if timeout is None else seconds(timeout, "timeout")):
            raise Timeout(f"the proof is not done after {timeout} s; its job goes on")
        if self._result is not None:
            return self._result
        assert self.error is not None
        # Raised as often as somebody asks: frames of those who asked before are let go.
        raise self.error.with_traceback(None)

    def __await__(self) -> Generator[Any, None, ProofResult]:
        """:meth:`wait` for tasks. A task that is cancelled meanwhile does not cancel the job."""
        return self._wait().__await__()

    async def _wait(self) -> ProofResult:
        loop = asyncio.get_running_loop()
        ended = loop.create_future()

        def wake() -> None:
            if not ended.done():
                ended.set_result(None)

        def notify(job: ProofJob) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(wake)

        self.add_done_callback(notify)
        try:
            await ended
        finally:
            self.remove_done_callback(notify)
        return self.wait(0)

    def add_done_callback(self, callback: Callable[[ProofJob], None]) -> None:
        """Has ``callback(job)`` called once it has ended, soon, from a thread of the prover; now if it has.

        It must return soon, and what it raises is logged and ignored.
        """
        require_process(self._pid)
        with self._lock:
            if not self._ended.is_set():
                self._callbacks.append(callback)
                return
        self._call(callback)

    def remove_done_callback(self, callback: Callable[[ProofJob], None]) -> None:
        require_process(self._pid)
        with self._lock, suppress(ValueError):
            self._callbacks.remove(callback)

    # What the engine calls -----------------------------------------------------------

    def _reported(self, progress: Progress) -> None:
        self.progress = progress
        if self._report is None or self.done():
            return
        try:
            self._report(progress)
        except Exception as error:
            self._report = None
            log.warning("a progress callback raised %s, and is called no more", type(error).__name__)

    def _finish(self, outcome: ProofResult | ProverError) -> None:
        """Ends the job, unless it has ended."""
        with self._lock:
            if self._ended.is_set():
                return
            if isinstance(outcome, ProofResult):
                self._result, self.state = outcome, JobState.SUCCEEDED
            else:
                self.error = outcome
                cancelled = isinstance(outcome, Cancelled)
                self.state = JobState.CANCELLED if cancelled else JobState.FAILED
            self.finished = time.time()
            self._cancel = self._report = None
            self._ended.set()

    def _notify(self) -> None:
        with self._lock:
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            self._call(callback)
        self._owner = None

    def _call(self, callback: Callable[[ProofJob], None]) -> None:
        try:
            callback(self)
        except Exception as error:
            log.warning("a callback of job %s raised %s", self.id, type(error).__name__)
