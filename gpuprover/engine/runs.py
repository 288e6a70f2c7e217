"""Runs of jobs: from the scheduler's start until it has their resources back.

A run may be held back for memory before it goes to the executor, and may keep its resources for a moment
after it ran out of memory. Reports of the executor come in any thread and are posted; a report of a run that
is not known any more says nothing.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import NamedTuple

from gpuprover.devices import is_gpu
from gpuprover.engine.headroom import Headroom
from gpuprover.engine.loading import is_current
from gpuprover.engine.proof_job import JobState
from gpuprover.engine.records import Steps, Work
from gpuprover.engine.timers import Timers
from gpuprover.errors import DeviceError, OutOfMemory, ProofGenerationFailed, ProverError
from gpuprover.executor import Executor, KeyChanged, Lost, ProofRequest, budget_of, threads_of
from gpuprover.proving import ProofResult
from gpuprover.scheduler import LOSSES, Assignment, Degrade, Outcome, Scheduler, Verdict


class Owner(NamedTuple):
    """What runs need of the jobs' owner.

    Attributes:
        lock: held whenever one of the functions here, or of :class:`Runs` but for ``flush``, is called.
        post: has a function called under the lock, soon; for any thread, without the lock.
        is_open: whether a job has no answer yet.
        leave_queue: called when a job's run goes to the executor.
        end: gives a job its answer.
        key_changed: called for a job whose run ended, or could not begin, since its key is another one.
        look: called when resources have come free.
    """

    lock: threading.RLock
    post: Callable[[Callable[[], None]], None]
    is_open: Callable[[Work], bool]
    leave_queue: Callable[[Work], None]
    end: Callable[[Work, ProofResult | ProverError], None]
    key_changed: Callable[[Work], None]
    look: Callable[[], None]


class Runs:
    """See the module.

    Args:
        executor: where runs happen.
        scheduler: what starts runs, and says what follows their ends.
        headroom: holds runs back.
        timers: the owner's timers.
        steps: counts losses, failures and retries.
        retry_delay: seconds for which a run that is out of memory keeps its resources.
        clock: seconds that never go backwards.
        owner: the jobs' owner.

    Attributes:
        by_id: the executor's number of each run -> its job.
    """

    def __init__(
        self,
        executor: Executor,
        scheduler: Scheduler,
        headroom: Headroom[Work],
        timers: Timers,
        steps: Steps,
        retry_delay: float,
        clock: Callable[[], float],
        owner: Owner,
    ) -> None:
        self._executor, self._scheduler, self._headroom = executor, scheduler, headroom
        self._timers, self._steps, self._clock, self._owner = timers, steps, clock, owner
        self._retry_delay = retry_delay
        self.by_id: dict[int, Work] = {}
        self._ids = count(1)
        self._launches: deque[tuple[Work, ProofRequest]] = deque()

    def begin(self, work: Work, run: Assignment) -> None:
        """Takes a run that the scheduler has started."""
        work.run, work.request_id = run, next(self._ids)
        self.by_id[work.request_id] = work
        if self._headroom.hold(work):
            self._tell("waits_for_memory", work, "the prover's processes hold more than the watermark")
        else:
            self._launch(work)

    def release(self) -> None:
        """Launches those who were held back and need not wait any more."""
        while True:
            running = any(work.launched for work in self.by_id.values())
            work = self._headroom.release(running)
            if work is None:
                return
            self._launch(work)

    def flush(self) -> None:
        """Hands runs to the executor. Without the lock, as long witnesses are copied."""
        while self._launches:
            try:
                work, request = self._launches.popleft()
            except IndexError:  # another thread was quicker
                return
            self._executor.prove(request, self._reported, work.job._reported)
            with self._owner.lock:
                # It was cancelled before the executor had it.
                if request.id not in self.by_id or not self._owner.is_open(work):
                    self._executor.cancel(request.id)

    def abandon(self, work: Work, error: ProverError) -> None:
        """Ends the run of a job that needs no proof any more, if it has one."""
        if work.launched and work.problem is None:
            self._executor.cancel(work.request_id)
        elif work.run is not None:
            self._finished(work, Outcome.FAILED, error)

    def lose(self, work: Work) -> None:
        """Forgets the run of a job whose device is gone, if it has one."""
        if work.run is not None:
            self._executor.cancel(work.request_id)
            self._drop(work)

    def _launch(self, work: Work) -> None:
        assert work.run is not None
        assert work.info is not None
        assert work.witness is not None
        if not is_current(work.info):
            self._key_changed(work)
            return
        job, placement = work.job, work.run.placement
        request = ProofRequest(
            id=work.request_id,
            path=work.info.path,
            identity=work.info.identity,
            witness=work.witness,
            device=placement.device,
            threads=threads_of(placement),
            host_parts=placement.host_parts,
            budget=budget_of(placement),
            timeout=max(0.001, work.deadline - self._clock()),
        )
        work.launched = True
        self._owner.leave_queue(work)
        if work.died and not is_gpu(placement.device):
            self._tell("retries_on_cpu", work, work.died)
            work.warnings = (*work.warnings, f"{work.died}; the CPU took over")
            work.died = ""
        job.state, job.device, job.placement = JobState.RUNNING, placement.device, placement.reason
        job.started = job.started or time.time()
        job.attempts += 1
        job.devices += (placement.device,)
        self._launches.append((work, request))

    def _reported(self, request: ProofRequest, outcome: ProofResult | ProverError | Lost) -> None:
        """In any thread."""
        self._owner.post(partial(self._settle, request.id, outcome))

    def _settle(self, request_id: int, outcome: ProofResult | ProverError | Lost) -> None:
        work = self.by_id.get(request_id)
        if work is None or work.run is None:
            return
        device = work.run.placement.device
        if isinstance(outcome, ProofResult):
            self._finished(work, Outcome.SUCCEEDED, outcome)
        elif isinstance(outcome, Lost):
            if self._owner.is_open(work):
                self._tell("losses", work, str(outcome))
            problem = ProofGenerationFailed(f"what made the proof died {LOSSES} times, at last so: {outcome}")
            self._finished(work, Outcome.LOST, problem)
        elif isinstance(outcome, KeyChanged):
            self._key_changed(work)
        elif isinstance(outcome, OutOfMemory) and self._owner.is_open(work):
            work.problem = outcome
            self._timers.after(self._retry_delay, partial(self._out_of_memory, request_id))
        elif isinstance(outcome, DeviceError) and is_gpu(device):
            self._tell("device_failures", work, outcome.message)
            self._finished(work, Outcome.DEVICE_FAILED, outcome)
        else:
            self._finished(work, Outcome.FAILED, outcome)

    def _out_of_memory(self, request_id: int) -> None:
        work = self.by_id.get(request_id)
        if work is not None and work.problem is not None:
            self._finished(work, Outcome.OUT_OF_MEMORY, work.problem)

    def _finished(self, work: Work, outcome: Outcome, result: ProofResult | ProverError) -> None:
        """Gives a run's resources back; what becomes of the job is the scheduler's verdict."""
        run = self._drop(work)
        verdict = self._scheduler.finished(run, outcome)
        if verdict is Verdict.DELIVER:
            self._owner.end(work, result)
        elif verdict is Verdict.RETRY and isinstance(result, ProverError):
            if outcome is Outcome.LOST:
                # What the process wrote last stays in the log.
                device = run.placement.device
                work.died = f"{device}: its process died under the proof" if is_gpu(device) else ""
                return
            self._tell(f"retries_{run.ticket.level.name.lower()}", work, result.message)
            if run.ticket.level is Degrade.ON_CPU:
                work.warnings = (*work.warnings, f"{result.told}; the CPU took over")

    def _key_changed(self, work: Work) -> None:
        work.replans += work.launched
        self._scheduler.finished(self._drop(work), Outcome.FAILED)
        self._owner.key_changed(work)

    def _drop(self, work: Work) -> Assignment:
        """Forgets a job's run: what its executor says of it from now on is not known any more."""
        run = work.run
        assert run is not None
        del self.by_id[work.request_id]
        self._headroom.leave(work)
        work.run, work.problem, work.launched = None, None, False
        self._owner.look()
        return run

    def _tell(self, step: str, work: Work, why: str) -> None:
        self._steps.tell(step, why, work.circuit.name, work.job.id)
