"""The way of a proof through the engine: queue, key, admission, runs, and what happens when one fails.

Decisions about devices and memory are :class:`gpuprover.scheduler.Scheduler`'s; runs are an
:class:`gpuprover.executor.Executor`'s. Between them this module keeps order: which jobs there are, what each
waits for, and that each is answered once, with a proof or with one typed error:

- *Key.* A job whose circuit is not loaded, or whose file has changed, waits for the load; others do not.
- *Twin.* Where proofs are kept, a job with the witness of one that is being proved waits for that one.
- *Device.* The scheduler's queue.
- *Room.* Above the watermark a run that the scheduler has started is held back while caches shrink: until the
  processes hold less, until waiting is of no use as nothing runs, or for ``admission_wait`` seconds. Then it
  goes on, as what is admitted has a place below the limit by its estimate. A proof that does not fit there,
  and might if the processes held as little as they once did, is tried again after a shrink before it is
  refused.
- *Run.* Out of memory: it keeps its resources for ``retry_delay`` seconds, and then comes down the
  scheduler's ladder. A GPU fails: the CPU takes over, if it may. The worker dies: again, three times at most.

Nothing here sleeps or has a thread: whoever owns the dispatcher calls :meth:`Dispatcher.step` when it says,
and when :attr:`Dispatcher.wake` is set. All other methods may be called from any thread.
"""

from __future__ import annotations

import copy
import heapq
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import Any

from gpuprover import memory
from gpuprover.api import ProofResult, WitnessLike
from gpuprover.caching import Cache, keyed_digest
from gpuprover.config import EngineSettings
from gpuprover.devices import is_gpu
from gpuprover.engine.directory import CircuitFiles
from gpuprover.engine.job import JobState, ProofJob
from gpuprover.engine.places import Places
from gpuprover.errors import (
    EXIT_RESOURCES,
    Aborted,
    Cancelled,
    CircuitNotFound,
    DeviceError,
    OutOfMemory,
    ProofGenerationFailed,
    ProverError,
    QueueFull,
    ShuttingDown,
    Timeout,
)
from gpuprover.executor import (
    Executor,
    KeyChanged,
    KeyInfo,
    Lost,
    ProofRequest,
    budget_of,
    threads_of,
)
from gpuprover.formats.files import identity_of
from gpuprover.memory import MIB, LeakAlarm, Watermark
from gpuprover.scheduler import Degrade, Device, JobShape, Outcome, Run, Scheduler, Ticket, Times, Verdict

log = logging.getLogger("gpuprover.engine")

SETTLE_SECONDS = 0.5
"""After which what a shrink has freed is seen; workers say every now and then what they hold."""
SAMPLE_SECONDS = 10.0
"""Between two samples for the leak alarm."""
LOSSES = 3
"""Of a worker while it loads a key; and how often a key's file may change under a proof that has begun."""
RELOAD_SECONDS = 0.2
PRELOAD_SECONDS = 5.0
"""After which a circuit to preload is tried again whose load failed for want of something."""
UNBOUNDED = 1 << 62
"""For the scheduler's own limit: the queue is bounded before it."""

COUNTERS = (
    "submitted",
    "succeeded",
    "failed",
    "cancelled",
    "refused",
    "turned_away",
    "timeouts",
    "retries_alone",
    "retries_no_tables",
    "retries_chunked",
    "retries_on_cpu",
    "device_failures",
    "losses",
    "reloads",
    "load_failures",
    "joined",
    "waits_for_memory",
    "shrinks",
    "leak_alarms",
)
"""What is counted, from 0 on. A proof that the CPU takes over counts in ``retries_on_cpu``, whatever the
reason; ``refused`` are those that found the queue full, ``turned_away`` those that found the prover shutting
down; ``joined`` those that waited for a twin."""

Loaded = Callable[["KeyInfo | ProverError"], None]


@dataclass(eq=False)
class _Circuit:
    """What is known of a circuit. ``generation`` counts contents of its file; the scheduler takes each for
    another circuit, as its key is another one. ``kinds``: of devices that could be used when it was loaded.
    """

    name: str
    files: CircuitFiles
    info: KeyInfo | None = None
    loading: bool = False
    pinned: bool = False
    preloaded: bool = False
    generation: int = 0
    kinds: frozenset[str] = frozenset()
    losses: int = 0
    problem: ProverError | None = None
    waiting: list[_Work] = field(default_factory=list)
    loaders: list[Loaded] = field(default_factory=list)

    @property
    def label(self) -> str:
        return f"{self.name}#{self.generation}"


@dataclass(eq=False)
class _Work:
    """An open job.

    Attributes:
        queued: it has a place in the bounded queue.
        content: a keyed digest of the witness, where proofs are kept.
        info: what its ticket was made with.
        twin: the job whose proof it waits for.
        died: which GPU's process died under it, in words, if it has not run elsewhere since.
    """

    job: ProofJob
    circuit: _Circuit
    witness: WitnessLike | None = field(repr=False)
    submitted: float
    content: bytes | None = None
    tenant: str = field(default="", repr=False)
    queued: bool = True
    info: KeyInfo | None = None
    ticket: Ticket | None = None
    active: _Active | None = None
    key: bytes | None = None
    twin: _Work | None = None
    followers: list[_Work] = field(default_factory=list)
    deadline: float | None = None
    replans: int = 0
    shrunk: bool = False
    died: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(eq=False)
class _Active:
    """A run of the scheduler's: held back, with the executor, or (``problem``) out of memory a moment ago."""

    id: int
    run: Run
    work: _Work
    since: float
    launched: bool = False
    problem: OutOfMemory | None = None


class Dispatcher:
    """See the module.

    Args:
        executor: where runs happen; not started yet.
        settings: of the prover.
        times: predicted seconds, for the scheduler.
        check: called, in any thread, for a circuit that was loaded; raises if its files do not fit together.
        preload: circuits that are loaded when the executor is started, and stay loaded.
        relief: what more to do for memory, from the thread that steps, than to shrink executor and proofs.
        clock: seconds that never go backwards.
        held: bytes that this process holds and that count against the limit.
        watermark: by default that of the settings.

    Attributes:
        wake: set when there is something to do for :meth:`step`.
        slots: places in the queue. Whoever submits has taken one; it is given back here.
        proofs: those that are kept.
        counters: by the names of :data:`COUNTERS`.
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
        self.slots = Places(settings.queue_limit, settings.tenant_queue_limit)
        self.proofs: Cache[bytes, ProofResult] = Cache(
            settings.proof_cache * MIB, lifetime=settings.cache_ttl, clock=clock
        )
        self.observers: list[Callable[[ProofJob], None]] = []
        self.counters: Counter[str] = Counter(dict.fromkeys(COUNTERS, 0))
        self._executor, self._settings, self._preload = executor, settings, tuple(preload)
        self._check, self._relief, self._clock, self._held = check, relief, clock, held
        self._limit = settings.memory_limit * MIB
        self._watermark = watermark or Watermark(self._limit, settings.memory_watermark)
        self._leaks = LeakAlarm(settings.leak_alarm)
        self._scheduler = Scheduler([], times, clock, limit=UNBOUNDED, overtaking=settings.overtaking_limit)
        self._lock = threading.RLock()
        self._idle = threading.Condition(self._lock)
        self._started, self._accepting = False, True
        self._stopped: ProverError | None = None
        self._circuits: dict[str, _Circuit] = {}
        self._open: dict[str, _Work] = {}
        self._tickets: dict[int, _Work] = {}
        self._active: dict[int, _Active] = {}
        self._flights: dict[bytes, _Work] = {}
        self._unplaced: list[_Work] = []
        self._held_back: list[_Active] = []
        self._looking = False
        self._devices: dict[str, Device] = {}
        self._placed: set[str] = set()
        self._ids, self._order = count(1), count()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._deadlines: list[tuple[float, int, str]] = []
        # Appended to without the lock: an executor may call from where it holds one of its own.
        self._events: deque[Callable[[], None]] = deque()
        self._launches: deque[tuple[_Active, ProofRequest]] = deque()
        self._ended: list[ProofJob] = []
        self._dirty = False
        self._shrink = False
        self._shrunk = self._sampled = float("-inf")
        self._room = self._most_room = 0

    # What the prover calls -------------------------------------------------------------

    def start(self) -> None:
        """Starts the executor, if it has not been, and loads what is to be preloaded."""
        with self._lock:
            self._require_open()
            if self._started:
                return
            self._executor.start(self._changed)
            self._started = True
            for files in self._preload:
                circuit = self._circuit(files)
                circuit.pinned = circuit.preloaded = True
                self._load(circuit)

    def take_place(self, wait: bool, timeout: float, tenant: str = "") -> None:
        """Takes a place in the queue.

        Raises:
            QueueFull: there is none, or none for this tenant, and ``wait`` is false.
            Timeout: none became free in time.
            ShuttingDown: nothing is taken any more.
        """
        self._turn_away()
        try:
            self.slots.acquire(timeout if wait else 0, tenant)
        except Timeout as error:
            raise self._full(wait, error) from None

    async def atake_place(self, wait: bool, timeout: float, tenant: str = "") -> None:
        """:meth:`take_place` for tasks."""
        self._turn_away()
        try:
            await self.slots.aacquire(timeout if wait else 0, tenant)
        except Timeout as error:
            raise self._full(wait, error) from None

    def _turn_away(self) -> None:
        with self._lock:
            self.counters["turned_away"] += not self._accepting
            self._require_open()

    def _full(self, wait: bool, error: Timeout) -> ProverError:
        with self._lock:
            self.counters["timeouts" if wait else "refused"] += 1
        return error if wait else QueueFull(error.message)

    def submit(
        self,
        job: ProofJob,
        files: CircuitFiles,
        witness: WitnessLike,
        timeout: float,
        content: bytes | None = None,
        tenant: str = "",
    ) -> None:
        """Takes a job that has a place in the queue, to be answered within ``timeout`` seconds.

        ``tenant`` is whose place it has.

        Raises:
            ShuttingDown: no more are taken; the place is the caller's still.
        """
        self.start()
        with self._lock:
            self._require_open()
            now = self._clock()
            work = _Work(job, self._circuit(files), witness, now, content, tenant, deadline=now + timeout)
            self._open[job.id] = work
            job._cancel = self.cancel
            heapq.heappush(self._deadlines, (now + timeout, next(self._order), job.id))
            self.counters["submitted"] += 1
            self._admit(work)
            self._advance()
        self._flush()
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

    def load(self, files: CircuitFiles, pin: bool, loaded: Loaded) -> None:
        """Loads a circuit that is not, and pins it; ``loaded``, called from any thread, returns soon."""
        self.start()
        with self._lock:
            self._require_open()
            circuit = self._circuit(files)
            more = pin and not circuit.pinned
            circuit.pinned |= pin
            if circuit.info is not None and not more and self._is_ready(circuit):
                info = circuit.info
            else:
                circuit.loaders.append(loaded)
                self._load(circuit)
                return
        loaded(info)

    def unload(self, name: str) -> bool:
        """Whether it was loaded. Proofs that run or wait are made nevertheless."""
        with self._lock:
            circuit = self._circuits.get(name)
            if circuit is None or circuit.info is None:
                return False
            path, circuit.info, circuit.pinned = circuit.info.path, None, False
        self._executor.unload(path)
        return True

    def drain(self, timeout: float | None) -> bool:
        """Takes no more jobs, and waits for those that there are -> whether all have ended."""
        with self._lock:
            self._accepting = False
            return self._idle.wait_for(lambda: not self._open, timeout)

    def abort(self, error: ProverError, *, running: bool) -> None:
        """Takes no more jobs, and ends those that wait, and with ``running`` all."""
        with self._lock:
            self._accepting = False
            for work in list(self._open.values()):
                if running or work.active is None or not work.active.launched:
                    self._abandon(work, error)
        self.wake.set()

    def stop(self, error: ProverError) -> None:
        """:meth:`step` is to be called no more; the executor is the caller's to close."""
        self.abort(error, running=True)
        with self._lock:
            self._stopped = error
            for circuit in self._circuits.values():
                self._answer_loaders(circuit, error)
        self.wake.set()

    def step(self) -> float | None:
        """Does what is due -> seconds until it is to be called again at the latest; None: never again."""
        with self._lock:
            self._advance()
            shrink, self._shrink = self._shrink, False
            self._sample()
            ended, self._ended = self._ended, []
            now = self._clock()
            if len(self._deadlines) > 4 * len(self._open) + 64:
                self._deadlines = [entry for entry in self._deadlines if entry[2] in self._open]
                heapq.heapify(self._deadlines)
            due = [heap[0][0] for heap in (self._timers, self._deadlines) if heap]
            delay = max(0.0, min([*due, self._sampled + SAMPLE_SECONDS]) - now)
            stopped = self._stopped is not None
        self._flush()
        for job in ended:
            for observer in self.observers:
                job._call(observer)
            job._notify()
        if shrink and not stopped:
            # Collecting garbage takes a while: nobody shall wait for the lock meanwhile.
            self._executor.shrink()
            self.proofs.shrink(0)
            self._relief()
        return None if stopped else delay

    def snapshot(self) -> Snapshot:
        with self._lock:
            runs = Counter(run.placement.device for run in self._scheduler.running)
            running = sum(work.job.state is JobState.RUNNING for work in self._open.values())
            preloads = [circuit for circuit in self._circuits.values() if circuit.preloaded]
            return Snapshot(
                accepting=self._accepting,
                started=self._started,
                preloaded=all(circuit.generation > 0 for circuit in preloads),
                running=running,
                queued=len(self._open) - running,
                loaded=tuple(sorted(c.name for c in self._circuits.values() if c.info is not None)),
                problems=tuple(
                    f"{circuit.name}: {circuit.problem.told}"
                    for circuit in self._circuits.values()
                    if circuit.problem is not None
                ),
                failures=tuple(c.problem for c in preloads if c.problem is not None),
                devices=tuple((device, runs[device.name]) for device in self._devices.values()),
                held=self._usage(),
                counters=dict(self.counters),
            )

    def info(self, files: CircuitFiles) -> KeyInfo | None:
        """What is known of a circuit whose file has not changed."""
        with self._lock:
            circuit = self._circuits.get(files.name)
            known = circuit is not None and circuit.files == files and self._is_current(circuit)
            return circuit.info if circuit is not None and known else None

    # Keys ------------------------------------------------------------------------------

    def _require_open(self) -> None:
        if not self._accepting:
            raise ShuttingDown("the prover is shutting down, and takes no more work")

    def _circuit(self, files: CircuitFiles) -> _Circuit:
        circuit = self._circuits.setdefault(files.name, _Circuit(files.name, files))
        circuit.files = files
        return circuit

    def _is_current(self, circuit: _Circuit) -> bool:
        info = circuit.info
        if info is None or info.path != circuit.files.zkey:
            return False
        try:
            return identity_of(info.path) == info.identity
        except ProverError:
            return False

    def _is_ready(self, circuit: _Circuit) -> bool:
        """Whether it is current, and planned for on every kind of device that can be used: one may have come
        back since it was loaded."""
        info = circuit.info
        planned = info is not None and self._kinds() <= circuit.kinds | info.plans.keys()
        return planned and self._is_current(circuit)

    def _kinds(self) -> frozenset[str]:
        return frozenset(device.kind for device in self._devices.values() if not device.problem)

    def _admit(self, work: _Work) -> None:
        if self._is_ready(work.circuit):
            self._enqueue(work)
        else:
            work.circuit.waiting.append(work)
            self._load(work.circuit)

    def _load(self, circuit: _Circuit) -> None:
        if circuit.loading:
            return
        files, old = circuit.files, circuit.info
        if files.zkey is None:
            self._loaded(
                circuit, CircuitNotFound(f"circuit {circuit.name!r} has no key", more=f"but {files.vkey}")
            )
            return
        circuit.loading, circuit.info = True, None
        if old is not None and (old.path != files.zkey or not _still(old)):
            self._tell("reloads", circuit, "the file of the key has changed")
            if old.path != files.zkey:
                self._executor.unload(old.path)
        self._executor.load(files.zkey, circuit.pinned, partial(self._load_ended, circuit, files))

    def _load_ended(
        self, circuit: _Circuit, files: CircuitFiles, outcome: KeyInfo | ProverError | Lost
    ) -> None:
        """In any thread."""
        if isinstance(outcome, KeyInfo):
            try:
                self._check(files)
            except ProverError as error:
                outcome = error
        self._post(partial(self._loaded, circuit, outcome))

    def _loaded(self, circuit: _Circuit, outcome: KeyInfo | ProverError | Lost) -> None:
        circuit.loading = False
        if self._stopped is not None:
            return
        if isinstance(outcome, Lost):
            circuit.losses += 1
            self._tell("losses", circuit, f"the key was being loaded: {outcome}")
            if circuit.losses < LOSSES:
                self._after(RELOAD_SECONDS * 2**circuit.losses, partial(self._load, circuit))
                return
            outcome = ProofGenerationFailed(
                f"circuit {circuit.name!r}: {LOSSES} times what loaded its key died: {outcome}"
            )
        circuit.losses = 0
        waiting, circuit.waiting = circuit.waiting, []
        if isinstance(outcome, KeyInfo):
            if circuit.info is None or circuit.info.identity != outcome.identity:
                circuit.generation += 1
            circuit.info, circuit.kinds, circuit.problem = outcome, self._kinds(), None
            for work in waiting:
                self._enqueue(work)
        else:
            circuit.problem = outcome
            self._tell("load_failures", circuit, outcome.message)
            for work in waiting:
                self._end(work, outcome)
            if circuit.preloaded and outcome.exit_code == EXIT_RESOURCES:
                # Nothing is wrong with the file: without this it would be missing until a proof asks for it.
                self._after(PRELOAD_SECONDS, partial(self._load, circuit))
        self._answer_loaders(circuit, outcome)

    def _answer_loaders(self, circuit: _Circuit, outcome: KeyInfo | ProverError) -> None:
        loaders, circuit.loaders = circuit.loaders, []
        for loaded in loaders:
            loaded(outcome)

    # The queue -------------------------------------------------------------------------

    def _enqueue(self, work: _Work) -> None:
        """To the scheduler, unless the proof is kept or being made."""
        info = work.circuit.info
        if work.job.id not in self._open:
            return
        if info is None:
            self._admit(work)
            return
        work.info = info
        if work.content is not None and work.key is None:
            key = keyed_digest(info.digest, repr(info.identity), work.content)
            kept = self.proofs.get(key)
            if kept is not None:
                self._end(work, copy.deepcopy(kept))
                return
            twin = self._flights.get(key)
            if twin is not None:
                work.twin = twin
                twin.followers.append(work)
                self.counters["joined"] += 1
                return
            self._flights[key], work.key = work, key
        if not self._devices:
            self._unplaced.append(work)
            return
        self._measure()
        try:
            ticket = self._scheduler.submit(
                self._shape(info),
                circuit=work.circuit.label,
                priority=work.job.priority,
                tenant=work.tenant,
                since=work.submitted,
            )
        except ProverError as error:
            self._no_place(work, error)
            return
        work.ticket, self._tickets[ticket.id] = ticket, work
        self._dirty = True

    def _shape(self, info: KeyInfo) -> JobShape:
        """What the scheduler takes, with the plans for what the settings let prove.

        Raises:
            DeviceError: that cannot be used.
        """
        shape, setting = info.shape, self._settings.device
        if setting == "auto":
            return shape
        asked = [device for device in self._devices.values() if setting in (device.kind, device.name)]
        plans = {kind: plans for kind, plans in shape.plans.items() if is_gpu(kind) == is_gpu(setting)}
        if not plans or all(device.problem for device in asked):
            problem = asked[0].problem if asked else ""
            raise DeviceError(problem or f"device {setting!r} is not available to the prover")
        return replace(shape, plans=plans)

    def _no_place(self, work: _Work, error: ProverError) -> None:
        """No device could take it, as things are."""
        self._forget_ticket(work)
        assert work.info is not None
        try:
            self._shape(work.info)
        except DeviceError as problem:
            error = problem
        if isinstance(error, OutOfMemory) and not work.shrunk and self._room < self._most_room:
            work.shrunk = True
            self._request_shrink()
            self._after(SETTLE_SECONDS, partial(self._enqueue, work))
            return
        self._end(work, error)

    def _forget_ticket(self, work: _Work) -> None:
        if work.ticket is not None:
            del self._tickets[work.ticket.id]
            work.ticket = None

    def _abandon(self, work: _Work, error: ProverError) -> None:
        """Ends a job wherever it is."""
        if work in work.circuit.waiting:
            work.circuit.waiting.remove(work)
        if work in self._unplaced:
            self._unplaced.remove(work)
        if work.twin is not None:
            work.twin.followers.remove(work)
        if work.ticket is not None:
            self._scheduler.cancel(work.ticket)
            self._dirty = True
        active = work.active
        if active is not None and active.launched and active.problem is None:
            self._executor.cancel(active.id)
        elif active is not None:
            self._finished(active, Outcome.FAILED, error)
        self._end(work, error)

    def _end(self, work: _Work, outcome: ProofResult | ProverError) -> None:
        """The one answer of a job."""
        job = work.job
        if self._open.pop(job.id, None) is None:
            return
        if isinstance(outcome, ProofResult) and work.warnings:
            outcome = replace(outcome, warnings=(*outcome.warnings, *work.warnings))
        self._leave_queue(work)
        self._forget_ticket(work)
        job._finish(outcome)
        self.counters[job.state.value] += 1
        self.counters["timeouts"] += isinstance(outcome, Timeout)
        self._ended.append(job)
        work.witness = None
        if work.key is not None:
            self._land(work, work.key, outcome)
        if not self._open:
            self._idle.notify_all()

    def _land(self, work: _Work, key: bytes, outcome: ProofResult | ProverError) -> None:
        """What becomes of those who waited for the same proof."""
        del self._flights[key]
        if isinstance(outcome, ProofResult):
            self.proofs.put(key, copy.deepcopy(outcome), _size(outcome))
        followers, work.followers = work.followers, []
        for other in followers:
            other.twin = None
            if isinstance(outcome, Cancelled | Timeout):
                self._enqueue(other)  # the first of them goes ahead now
            else:
                self._end(other, copy.deepcopy(outcome) if isinstance(outcome, ProofResult) else outcome)

    def _leave_queue(self, work: _Work) -> None:
        if work.queued:
            work.queued = False
            self.slots.release(work.tenant)

    # Runs ------------------------------------------------------------------------------

    def _begin(self, run: Run) -> None:
        work = self._tickets[run.ticket.id]
        active = work.active = _Active(next(self._ids), run, work, self._clock())
        self._active[active.id] = active
        if self._watermark.excess(self._usage()) <= 0 or not self._settings.admission_wait:
            self._launch(active)
            return
        self._tell("waits_for_memory", work, "the prover's processes hold more than the watermark")
        self._held_back.append(active)
        self._request_shrink()
        self._look_again()

    def _request_shrink(self) -> None:
        now = self._clock()
        if now >= self._shrunk + SETTLE_SECONDS:
            self._shrink, self._shrunk = True, now
            self.counters["shrinks"] += 1

    def _look_again(self) -> None:
        """At what is held back, in a moment."""
        if self._held_back and not self._looking:
            self._looking = True
            left = min(active.since for active in self._held_back) + self._settings.admission_wait
            self._after(min(SETTLE_SECONDS, max(0.0, left - self._clock())), self._looked)

    def _looked(self) -> None:
        self._looking, self._dirty = False, True

    def _let_go(self) -> None:
        """Launches those held back for which there is room, or for which waiting is of no more use."""
        for active in list(self._held_back):
            now = self._clock()
            others = any(other.launched for other in self._active.values())
            of_use = others or now < self._shrunk + SETTLE_SECONDS
            waits = of_use and now < active.since + self._settings.admission_wait
            if waits and self._watermark.excess(self._usage()) > 0:
                break
            self._held_back.remove(active)
            self._launch(active)
        self._look_again()

    def _launch(self, active: _Active) -> None:
        work, placement = active.work, active.run.placement
        assert work.info is not None
        assert work.witness is not None
        assert work.deadline is not None
        if not _still(work.info):
            self._replan(active)
            return
        job, now = work.job, self._clock()
        request = ProofRequest(
            id=active.id,
            zkey=work.info.path,
            identity=work.info.identity,
            witness=work.witness,
            device=placement.device,
            threads=threads_of(placement),
            host_parts=placement.host_groups,
            budget=budget_of(placement),
            timeout=max(0.001, work.deadline - now),
        )
        active.launched = True
        self._leave_queue(work)
        if work.died and not is_gpu(placement.device):
            self._tell("retries_on_cpu", work, work.died)
            work.warnings = (*work.warnings, f"{work.died}; the CPU took over")
            work.died = ""
        job.state, job.device, job.placement = JobState.RUNNING, placement.device, placement.reason
        job.started = job.started or time.time()
        job.attempts += 1
        job.devices += (placement.device,)
        self._launches.append((active, request))

    def _flush(self) -> None:
        """Hands runs to the executor. Without the lock, as long witnesses are copied."""
        while self._launches:
            try:
                active, request = self._launches.popleft()
            except IndexError:  # another thread was quicker
                return
            self._executor.prove(request, self._run_ended, active.work.job._reported)
            with self._lock:
                # It was cancelled before the executor had it.
                if self._active.get(active.id) is not active or active.work.job.id not in self._open:
                    self._executor.cancel(active.id)

    def _run_ended(self, request: ProofRequest, outcome: ProofResult | ProverError | Lost) -> None:
        """In any thread."""
        self._post(partial(self._settle, request.id, outcome))

    def _settle(self, request: int, outcome: ProofResult | ProverError | Lost) -> None:
        active = self._active.get(request)
        if active is None:
            return
        device = active.run.placement.device
        if isinstance(outcome, ProofResult):
            self._finished(active, Outcome.SUCCEEDED, outcome)
        elif isinstance(outcome, Lost):
            if active.work.job.id in self._open:
                self._tell("losses", active.work, str(outcome))
            problem = ProofGenerationFailed(f"what made the proof died {LOSSES} times, at last so: {outcome}")
            self._finished(active, Outcome.LOST, problem)
        elif isinstance(outcome, KeyChanged):
            self._replan(active)
        elif isinstance(outcome, OutOfMemory) and active.work.job.id in self._open:
            active.problem = outcome
            self._after(self._settings.retry_delay, partial(self._out_of_memory, active))
        elif isinstance(outcome, DeviceError) and is_gpu(device):
            self._tell("device_failures", active.work, outcome.message)
            self._finished(active, Outcome.DEVICE_FAILED, outcome)
        else:
            self._finished(active, Outcome.FAILED, outcome)

    def _out_of_memory(self, active: _Active) -> None:
        if active.problem is not None and self._active.get(active.id) is active:
            self._finished(active, Outcome.OUT_OF_MEMORY, active.problem)

    def _finished(self, active: _Active, outcome: Outcome, result: ProofResult | ProverError) -> None:
        """Gives a run's resources back; what becomes of the job is the scheduler's verdict."""
        self._drop(active)
        work, ticket = active.work, active.run.ticket
        verdict = self._scheduler.finished(active.run, outcome)
        if verdict is Verdict.DELIVER:
            self._end(work, result)
        elif verdict is Verdict.RETRY and isinstance(result, ProverError):
            if outcome is Outcome.LOST:
                # What the process wrote last stays in the log.
                device = active.run.placement.device
                work.died = f"{device}: its process died under the proof" if is_gpu(device) else ""
                return
            self._tell(f"retries_{ticket.level.name.lower()}", work, result.message)
            if ticket.level is Degrade.ON_CPU:
                work.warnings = (*work.warnings, f"{result.told}; the CPU took over")

    def _drop(self, active: _Active) -> None:
        del self._active[active.id]
        active.work.active, self._dirty = None, True
        if active in self._held_back:
            self._held_back.remove(active)

    def _replan(self, active: _Active) -> None:
        """The key's file is another one: the job waits for the new key."""
        work = active.work
        self._drop(active)
        self._scheduler.finished(active.run, Outcome.FAILED)
        self._forget_ticket(work)
        if work.job.id not in self._open:
            return
        work.replans += active.launched
        if work.replans > LOSSES:
            self._end(work, KeyChanged("the file keeps changing", path=work.circuit.files.zkey, role="key"))
        else:
            self._admit(work)

    # Devices and memory ----------------------------------------------------------------

    def _changed(self) -> None:
        """In any thread."""
        self._post(self._look)

    def _look(self) -> None:
        """What the executor offers now, as far as it may be used."""
        setting, found = self._settings.device, {}
        for device in self._executor.devices:
            if device.kind == "cpu" or setting in ("auto", device.kind, device.name):
                found[device.name] = device
        for name in self._placed - found.keys():
            self._lose(name)
        before, self._devices = self._devices, found
        self._measure()
        for name, device in found.items():
            # What cannot be used anyway need not be told with every placement.
            if device.problem and setting == "auto" and name not in self._placed:
                continue
            if before.get(name) != device:
                self._scheduler.update(self._bounded(device))
                self._placed.add(name)
                self._dirty = True
        if found:
            unplaced, self._unplaced = self._unplaced, []
            for work in unplaced:
                self._enqueue(work)

    def _lose(self, name: str) -> None:
        """A device is gone, and what ran there with it."""
        log.warning("%s is gone", name)
        self._placed.remove(name)
        self._dirty = True
        for run in self._scheduler.device_lost(name):
            work = self._tickets.get(run.ticket.id)
            if work is not None and work.active is not None:
                self._executor.cancel(work.active.id)
                self._drop(work.active)

    def _usage(self) -> int:
        return self._held() + (self._executor.memory() if self._started else 0)

    def _measure(self) -> None:
        """What proofs may take of the host: as its executor says, or the limit less what is held at rest."""
        host = next((device for device in self._devices.values() if device.kind == "cpu"), None)
        if host is None:
            return
        if host.memory is not None:
            room = host.memory
        elif self._active:
            return
        else:
            room = max(0, self._limit - self._usage() - memory.CODE_BYTES)
        if abs(room - self._room) >= MIB:
            self._room, self._most_room = room, max(room, self._most_room)
            self._scheduler.update(self._bounded(host))
            self._dirty = True

    def _bounded(self, device: Device) -> Device:
        return replace(device, memory=self._room) if device.kind == "cpu" else device

    def _sample(self) -> None:
        now = self._clock()
        if now < self._sampled + SAMPLE_SECONDS:
            return
        self._sampled = now
        rate = self._leaks.feed(now, self._usage()) if self._started else None
        if rate is not None:
            self.counters["leak_alarms"] += 1
            log.warning(
                "memory keeps growing by %.0f MB a minute",
                rate,
                extra={"event": {"step": "leak_alarms", "rate": rate, "held": self._usage()}},
            )

    # Order -----------------------------------------------------------------------------

    def _post(self, event: Callable[[], None]) -> None:
        self._events.append(event)
        self.wake.set()

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (self._clock() + seconds, next(self._order), action))

    def _advance(self) -> None:
        """Everything that can be done now. With the lock held."""
        while True:
            while self._events:
                self._events.popleft()()
            now = self._clock()
            while self._timers and self._timers[0][0] <= now:
                heapq.heappop(self._timers)[2]()
            while self._deadlines and self._deadlines[0][0] <= now:
                work = self._open.get(heapq.heappop(self._deadlines)[2])
                if work is not None:
                    self._abandon(work, self._too_late(work, now))
            if not self._dirty:
                if self._events:
                    continue
                return
            self._dirty = False
            if self._scheduler.waiting:
                self._measure()
            starts, refused = self._scheduler.poll()
            for ticket, error in refused:
                self._no_place(self._tickets[ticket.id], error)
            self._let_go()
            for run in starts:
                self._begin(run)

    def _too_late(self, work: _Work, now: float) -> Timeout:
        active = work.active
        if active is not None and active.problem is not None:
            what = f"after it ran out of memory: {active.problem.told}"
        elif active is not None and active.launched:
            what = f"while it ran on {active.run.placement.device}"
        elif work.ticket is not None:
            what = "before a device was free"
        elif work.twin is not None:
            what = "while another job made the same proof"
        else:
            what = "while its key was loaded"
        return Timeout(f"time limit reached after {now - work.submitted:.1f} s, {what}")

    def _tell(self, step: str, what: _Work | _Circuit, why: str) -> None:
        """Counts a step and logs it, in one line, with nothing of a witness."""
        self.counters[step] += 1
        job = what.job.id if isinstance(what, _Work) else None
        circuit = what.circuit.name if isinstance(what, _Work) else what.name
        event: dict[str, Any] = {"step": step, "circuit": circuit, "job": job, "why": why}
        level = logging.INFO if step == "reloads" else logging.WARNING
        where = f"circuit {circuit}, job {job}" if job else f"circuit {circuit}"
        log.log(level, "%s: %s: %s", step, where, why, extra={"event": event})


@dataclass(frozen=True)
class Snapshot:
    """What a status needs of the dispatcher, at one moment.

    Attributes:
        preloaded: whether all circuits to preload are loaded.
        problems: of circuits whose key could not be loaded, and was not since; without paths.
        failures: the errors of those to preload among them.
        devices: each with the proofs that run there.
        held: bytes that count against the limit.
    """

    accepting: bool
    started: bool
    preloaded: bool
    running: int
    queued: int
    loaded: tuple[str, ...]
    problems: tuple[str, ...]
    failures: tuple[ProverError, ...]
    devices: tuple[tuple[Device, int], ...]
    held: int
    counters: dict[str, int]


def _still(info: KeyInfo) -> bool:
    try:
        return identity_of(info.path) == info.identity
    except ProverError:
        return False


def _size(result: ProofResult) -> int:
    """Bytes that a kept proof takes, about."""
    return 4096 + sum(len(signal) + 64 for signal in result.public_signals)
