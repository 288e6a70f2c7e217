"""The way of a proof through the engine: seat, key, device, memory, run, and what happens when one fails.

Decisions about devices and memory are :class:`gpuprover.scheduler.Scheduler`'s; runs are an
:class:`gpuprover.executor.Executor`'s. Between them the dispatcher knows which jobs there are and what each
waits for, and sees to it that each is answered once, with a proof or with one typed error:

- *Key* (:mod:`.loading`). A job whose circuit is not loaded, or whose file has changed, waits for the load;
  others do not.
- *Shared proof* (:mod:`.sharing`). Where proofs are kept, a job with the witness of one that is being proved
  waits for that one.
- *Device* (:mod:`.device_queue`). The scheduler's queue.
- *Room* (:mod:`.headroom`). Above the watermark a run that the scheduler has started is held back while
  caches shrink.
- *Run* (:mod:`.runs`). Out of memory: it keeps its resources for ``retry_delay`` seconds, and then comes down
  the scheduler's ladder. A GPU fails: the CPU takes over, if it may. The worker dies: again, three times at
  most.

Nothing here sleeps or has a thread: whoever owns the dispatcher calls :meth:`Dispatcher.step` when it says,
and when :attr:`Dispatcher.wake` is set. All other methods may be called from any thread.
"""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from gpuprover import memory
from gpuprover.caching import Cache
from gpuprover.config import EngineSettings
from gpuprover.engine.device_queue import DeviceQueue
from gpuprover.engine.directory import CircuitFiles
from gpuprover.engine.entrance import Entrance
from gpuprover.engine.headroom import Headroom
from gpuprover.engine.loading import Loading
from gpuprover.engine.offer import Offer
from gpuprover.engine.proof_job import JobState, ProofJob
from gpuprover.engine.records import CircuitLoaded, Snapshot, Steps, Work
from gpuprover.engine.runs import Owner, Runs
from gpuprover.engine.seats import Seats
from gpuprover.engine.sharing import SharedProofs, proof_name
from gpuprover.engine.timers import Timers
from gpuprover.errors import (
    Aborted,
    Cancelled,
    ProverError,
    Timeout,
)
from gpuprover.executor import Executor, KeyChanged, KeyInfo
from gpuprover.memory import MIB, LeakAlarm, Watermark
from gpuprover.proving import ProofResult
from gpuprover.scheduler import Scheduler, Times
from gpuprover.witness_source import WitnessSource

log = logging.getLogger("gpuprover.engine")

KEY_CHANGES = 3
"""Changes of a key's file under runs that have begun, of one job, after which it fails."""
UNBOUNDED = 1 << 62
"""The scheduler's own limit: the queue is bounded before it."""


class Dispatcher:
    """See the module.

    Args:
        executor: where runs happen; not started yet.
        settings: the prover's settings.
        times: predicted seconds, for the scheduler.
        check: called, in any thread, for a circuit that was loaded; raises if its files do not fit together.
        preload: circuits that are loaded when the executor is started, and stay loaded.
        relief: what more to do for memory, from the thread that steps, than to shrink executor and proofs.
        clock: seconds that never go backwards.
        held: bytes that this process holds and that count against the limit.
        watermark: when too much is held; that of the settings by default.

    Attributes:
        wake: set when there is something to do for :meth:`step`.
        entrance: where whoever submits takes a seat in the queue.
        seats: these seats; they are given back here.
        observers: called with each job that has ended, before its own callbacks.
    """

    def __init__(
        self,
        executor: Executor,
        settings: EngineSettings,
        times: Times,
        *,
        check: Callable[[CircuitFiles], object] = lambda files: None,
        relief: Callable[[], object] = memory.trim,
        preload: Sequence[CircuitFiles] = (),
        clock: Callable[[], float] = time.monotonic,
        held: Callable[[], int] = memory.resident_anonymous,
        watermark: Watermark | None = None,
    ) -> None:
        self.wake = threading.Event()
        self.seats = Seats(settings.queue_limit, settings.tenant_queue_limit)
        self.observers: list[Callable[[ProofJob], None]] = []
        self._executor, self._settings, self._preload = executor, settings, tuple(preload)
        self._relief, self._clock, self._held = relief, clock, held
        self._lock = threading.RLock()
        self._idle = threading.Condition(self._lock)
        self._started = False
        self._stopped: ProverError | None = None
        # Rooms of their own, under the lock.
        self._steps, self._timers, self._offer = Steps(), Timers(clock), Offer(settings.device)
        self.entrance = Entrance(self.seats, self._lock, self._steps)
        self._shared: SharedProofs[Work] = SharedProofs(settings.proof_cache * MIB, settings.cache_ttl, clock)
        self._loading = Loading(
            executor, check, lambda: self._offer.kinds, self._post, self._timers, self._steps
        )
        limit = settings.memory_limit * MIB
        self._headroom: Headroom[Work] = Headroom(
            limit,
            settings.admission_wait,
            self._usage,
            watermark or Watermark(limit, settings.memory_watermark),
            LeakAlarm(settings.leak_alarm),
            self._timers,
            self._poll_soon,
            self._steps,
            clock,
        )
        self._scheduler = Scheduler([], times, clock, limit=UNBOUNDED, overtaking=settings.overtaking_limit)
        self._runs = Runs(
            executor,
            self._scheduler,
            self._headroom,
            self._timers,
            self._steps,
            settings.retry_delay,
            clock,
            Owner(
                lock=self._lock,
                post=self._post,
                is_open=lambda work: work.job.id in self._open,
                leave_queue=self._leave_queue,
                end=self._end,
                key_changed=self._key_changed,
                look=self._poll_soon,
            ),
        )
        self._queue = DeviceQueue(
            self._offer,
            self._scheduler,
            self._headroom,
            self._timers,
            idle=lambda: not self._runs.by_id,
            lose=self._runs.lose,
            again=self._enqueue,
            end=self._end,
        )
        self._open: dict[str, Work] = {}
        # Appended to without the lock: an executor may call from where it holds one of its own.
        self._events: deque[Callable[[], None]] = deque()
        self._ended: list[ProofJob] = []

    @property
    def counters(self) -> Counter[str]:
        """Step, of :data:`gpuprover.engine.records.COUNTERS` -> how often it has happened so far."""
        return self._steps.counters

    @property
    def proofs(self) -> Cache[bytes, ProofResult]:
        """Proofs that are kept; for any thread."""
        return self._shared.kept

    # What the prover calls -------------------------------------------------------------

    def start(self) -> None:
        """Starts the executor, if it has not been, and loads what is to be preloaded."""
        with self._lock:
            self.entrance.require_open()
            if self._started:
                return
            self._executor.start(self._changed)
            self._started = True
            self._headroom.watch()
            for files in self._preload:
                self._loading.preload(files)

    def submit(
        self,
        job: ProofJob,
        files: CircuitFiles,
        witness: WitnessSource,
        timeout: float,
        content: bytes | None = None,
        tenant: str = "",
    ) -> None:
        """Takes a job that has a seat in the queue, to be answered within ``timeout`` seconds.

        ``tenant`` is whose seat it has.

        Raises:
            ShuttingDown: no more are taken; the seat is the caller's still.
        """
        self.start()
        with self._lock:
            self.entrance.require_open()
            now = self._clock()
            work = Work(job, self._loading.circuit(files), witness, now, now + timeout, content, tenant)
            work.limit = self._timers.after(timeout, partial(self._expire, work))
            self._open[job.id] = work
            job._cancel = self.cancel
            self.counters["submitted"] += 1
            self._admit(work)
            self._advance()
        self._runs.flush()
        self.wake.set()

    def cancel(self, job: ProofJob) -> bool:
        """Whether it was still open."""
        with self._lock:
            work = self._open.get(job.id)
            if work is None:
                return False
            self._abandon(work, Aborted("the proof was cancelled by its caller"))
        self.wake.set()
        return True

    def load(self, files: CircuitFiles, pin: bool, loaded: CircuitLoaded) -> None:
        """Loads a circuit that is not, and pins it; ``loaded``, called from any thread, returns soon."""
        self.start()
        with self._lock:
            self.entrance.require_open()
            info = self._loading.load(files, pin, loaded)
        if info is not None:
            loaded(info)

    def unload(self, name: str) -> bool:
        """Whether it was loaded. Proofs that run or wait are made nevertheless."""
        with self._lock:
            path = self._loading.forget(name)
        if path is not None:
            self._executor.unload(path)
        return path is not None

    def drain(self, timeout: float | None) -> bool:
        """Takes no more jobs, and waits for those that there are -> whether all have ended."""
        with self._lock:
            self.entrance.close()
            return self._idle.wait_for(lambda: not self._open, timeout)

    def abort(self, error: ProverError, *, running: bool) -> None:
        """Takes no more jobs, and ends those that wait, and with ``running`` all."""
        with self._lock:
            self.entrance.close()
            for work in list(self._open.values()):
                if running or not work.launched:
                    self._abandon(work, error)
        self.wake.set()

    def stop(self, error: ProverError) -> None:
        """:meth:`step` is to be called no more; the executor is the caller's to close."""
        self.abort(error, running=True)
        with self._lock:
            self._stopped = error
            self._loading.stop(error)
        self.wake.set()

    def step(self) -> float | None:
        """Does what is due -> seconds until it is to be called again at the latest; None: never again."""
        with self._lock:
            self._advance()
            shrink = self._headroom.take_shrink()
            ended, self._ended = self._ended, []
            delay = self._timers.left()
            stopped = self._stopped is not None
        self._runs.flush()
        for job in ended:
            for observer in self.observers:
                job._call(observer)
            job._notify()
        if shrink and not stopped:
            # Collecting garbage takes a while: nobody should wait for the lock meanwhile.
            self._executor.shrink()
            self.proofs.shrink(0)
            self._relief()
        return None if stopped else delay

    def snapshot(self) -> Snapshot:
        with self._lock:
            runs = Counter(run.placement.device for run in self._scheduler.running)
            running = sum(work.job.state is JobState.RUNNING for work in self._open.values())
            return Snapshot(
                accepting=self.entrance.open,
                started=self._started,
                preloaded=self._loading.preloaded,
                running=running,
                queued=len(self._open) - running,
                loaded=self._loading.loaded,
                problems=self._loading.problems,
                failures=self._loading.failures,
                devices=tuple((device, runs[device.name]) for device in self._offer.devices.values()),
                held=self._usage(),
                counters=dict(self.counters),
            )

    def info(self, files: CircuitFiles) -> KeyInfo | None:
        """The circuit's ``KeyInfo``, if its file has not changed."""
        with self._lock:
            return self._loading.info(files)

    def keys(self) -> dict[str, KeyInfo]:
        """What is known of the circuits that are loaded, by name."""
        with self._lock:
            return self._loading.keys

    # From the queue to the scheduler ---------------------------------------------------

    def _admit(self, work: Work) -> None:
        """Has a job wait for its key, if it has to."""
        if self._loading.is_ready(work.circuit):
            self._enqueue(work)
        else:
            self._loading.wait(work.circuit, work, partial(self._key_came, work))

    def _key_came(self, work: Work, outcome: KeyInfo | ProverError) -> None:
        if isinstance(outcome, ProverError):
            self._end(work, outcome)
        else:
            self._enqueue(work)

    def _enqueue(self, work: Work) -> None:
        """Hands a job to the scheduler, unless its proof is kept or being made."""
        if work.job.id not in self._open:
            return
        info = work.circuit.info
        if info is None:
            self._admit(work)
            return
        work.info, work.job.protocol = info, info.protocol
        if work.content is not None and not self._shared.makes(work):
            name = proof_name(info, work.content)
            kept = self._shared.find(name)
            if kept is not None:
                self._end(work, kept)
                return
            if self._shared.join(name, work):
                self.counters["joined"] += 1
                return
        self._queue.submit(work, info)

    # Ends ------------------------------------------------------------------------------

    def _expire(self, work: Work) -> None:
        seconds = self._clock() - work.submitted
        self._abandon(work, Timeout(f"time limit reached after {seconds:.1f} s, {self._whereabouts(work)}"))

    def _whereabouts(self, work: Work) -> str:
        if work.problem is not None:
            return f"after it ran out of memory: {work.problem.told}"
        if work.run is not None and work.launched:
            return f"while it ran on {work.run.placement.device}"
        if work.ticket is not None:
            return "before a device was free"
        if self._shared.waits(work):
            return "while another job made the same proof"
        return "while its key was loaded"

    def _abandon(self, work: Work, error: ProverError) -> None:
        """Ends a job wherever it is."""
        self._loading.leave(work.circuit, work)
        self._shared.leave(work)
        self._queue.leave(work)
        self._runs.abandon(work, error)
        self._end(work, error)

    def _end(self, work: Work, outcome: ProofResult | ProverError) -> None:
        """The one answer of a job."""
        job = work.job
        if self._open.pop(job.id, None) is None:
            return
        if isinstance(outcome, ProofResult) and work.warnings:
            outcome = replace(outcome, warnings=(*outcome.warnings, *work.warnings))
        self._leave_queue(work)
        self._queue.forget(work)
        if work.limit is not None:
            work.limit.cancel()
        job._finish(outcome)
        self.counters[job.state.value] += 1
        self.counters["timeouts"] += isinstance(outcome, Timeout)
        self._ended.append(job)
        work.witness = None
        if self._shared.makes(work):
            self._share(work, outcome)
        if not self._open:
            self._idle.notify_all()

    def _share(self, work: Work, outcome: ProofResult | ProverError) -> None:
        """Keeps a proof, and gives it, or the error, to those who waited for it."""
        sharers = self._shared.end(work)
        if isinstance(outcome, ProofResult) and work.info is not None and work.content is not None:
            # By the key that it was made with, which may have come after the job.
            self._shared.keep(proof_name(work.info, work.content), outcome)
        for other in sharers:
            if isinstance(outcome, Cancelled | Timeout):
                self._enqueue(other)  # the first of them goes ahead now
            else:
                self._end(other, copy.deepcopy(outcome) if isinstance(outcome, ProofResult) else outcome)

    def _leave_queue(self, work: Work) -> None:
        if work.queued:
            work.queued = False
            self.seats.release(work.tenant)

    def _key_changed(self, work: Work) -> None:
        """The key's file is another one: the job waits for the new key."""
        self._queue.forget(work)
        if work.job.id not in self._open:
            return
        if work.replans > KEY_CHANGES:
            self._end(work, KeyChanged("the file keeps changing", path=work.circuit.files.key, role="key"))
        else:
            self._admit(work)

    def _usage(self) -> int:
        """Bytes that count against the limit."""
        return self._held() + (self._executor.memory() if self._started else 0)

    # Order -----------------------------------------------------------------------------

    def _changed(self) -> None:
        """The executor offers other devices; in any thread."""
        self._post(lambda: self._queue.update(self._executor.devices))

    def _post(self, event: Callable[[], None]) -> None:
        """Has a function called under the lock, soon; in any thread."""
        self._events.append(event)
        self.wake.set()

    def _poll_soon(self) -> None:
        self._queue.due = True

    def _advance(self) -> None:
        """Does everything that can be done now. With the lock held."""
        while True:
            while self._events:
                self._events.popleft()()
            self._timers.run_due()
            if not self._queue.due:
                if self._events:
                    continue
                return
            starts = self._queue.poll()
            self._runs.release()
            for work, run in starts:
                self._runs.begin(work, run)
