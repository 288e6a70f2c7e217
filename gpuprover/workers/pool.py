"""The supervisor: an :class:`~gpuprover.executor.Executor` whose proofs are made in worker processes.

One thread owns everything: it starts workers, listens to them, and keeps the time. Public methods leave it a
message and return; what others may look at it publishes as a whole. Callbacks are called from it.

A place (``cpu-0``, ``cuda:0``) is where one worker is at a time, beside its successor while that starts. CPU
workers run one proof at a time, those of GPUs as many as they are given. The death of a worker makes its runs
:class:`~gpuprover.runner.Lost`, each once: a run is forgotten before its end is told, and what comes for one
that is not known is dropped.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

from gpuprover import folders, memory
from gpuprover.api import ProofResult
from gpuprover.caching import CacheStatistics
from gpuprover.errors import (
    Cancelled,
    DeviceError,
    ProofGenerationFailed,
    ProverError,
    ShuttingDown,
    Timeout,
    from_record,
    shortage,
)
from gpuprover.errors import place as place_of
from gpuprover.executor import Done, KeyInfo, Loaded, Lost, ProofRequest, WorkerStatus
from gpuprover.job import Progress
from gpuprover.memory import MemoryUsage
from gpuprover.messages import Channel
from gpuprover.processes import Backoff, Child, spawn
from gpuprover.scheduler import Device
from gpuprover.settings import WORKER_BYTES
from gpuprover.workers.records import (
    Load,
    Place,
    PoolSettings,
    Report,
    Run,
    Worker,
    own_bytes,
    status_of,
)
from gpuprover.workers.wire import Parcel, result_from_json

START_TRIES = 4
"""So often in a row a place's worker may fail to start by a fault of its own before callers are told; it is
tried on. What the system refuses and what kills workers may pass: then callers are told later (``wait``)."""
STUMBLES = 3
"""Steps of the supervisor that may fail in a row before it says so."""
STUMBLE_SECONDS = (0.01, 2.0, 1.0, 0.2)
"""Between steps that fail, as :class:`Backoff` takes it."""
QUIET_SECONDS = 10.0
"""Between two lines in the log about the same thing."""
DEVICE_TRIES = 3
"""So many processes in a row may end by a failure of their GPU, fail to start it, or die or hang with proofs
on it, before it rests."""
LOAD_TRIES = 3
"""So many workers may die while they load a key before its loader is told."""
STEADY_SECONDS = 10.0
"""A worker that has lived so long, or made a proof, has started well: its next start is not delayed."""
EXIT_SECONDS = 5.0
"""For a worker that has nothing to do to end."""
REAP_SECONDS = 0.2
KILLED_SECONDS = 10.0
"""For a killed process to be gone, after which it is left to the system: gigabytes take it moments."""
TICK_SECONDS = 1.0
BUSY_SECONDS = 0.05
"""Of computing between two signs of life: more than it takes to give them."""
LATE_SECONDS = 1.0
"""If this process was stopped itself so long, silent workers are given the time again."""
GRAIN = 16 << 20
"""Bytes in which memory for proofs is told: it does not change with every page."""
MESSAGES_AT_ONCE = 100
SURVEYS = 2
"""So many workers may look for GPUs; if they die of it, there are none."""

_log = logging.getLogger("gpuprover.workers")


class WorkerPool:
    """Worker processes as an executor; see :class:`gpuprover.executor.Executor` for its methods.

    The death of a worker loses no run without telling. If this process dies, its workers die with it.
    """

    def __init__(self, settings: PoolSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._commands: deque[tuple[Callable[[], None], Callable[[], None]]] = deque()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._problem = ""
        self._past_keys = CacheStatistics.total(())
        self._published: tuple[list[Device], list[WorkerStatus], int, CacheStatistics] = (
            [], [], 0, self._past_keys,
        )  # fmt: skip
        # From here on: the supervisor's thread alone.
        self._changed: Callable[[], None] = lambda: None
        self._places: list[Place] = []
        self._dying: list[tuple[Child, float]] = []
        self._runs: dict[int, Run] = {}
        self._waiting: dict[str, deque[Run]] = {}
        self._loads: dict[int, Load] = {}
        self._numbers = count(1)
        self._pinned: set[str] = set()
        self._machine: dict[str, Device] = {}
        self._surveys = 0 if settings.gpus == () else SURVEYS
        self._broken: dict[str, DeviceError] = {}
        self._calls: list[Callable[[], None]] = []
        self._own = 0
        self._ticked = 0.0
        self._closing: float | None = None
        self._stumbles = 0
        self._told: dict[str, tuple[float, int]] = {}
        self._stumbling = Backoff(*STUMBLE_SECONDS)

    # What an engine uses ------------------------------------------------------------------

    def start(self, changed: Callable[[], None]) -> None:
        with self._lock:
            if self._thread is not None or self._closed:
                raise RuntimeError("a worker pool is started once")
            self._changed = changed
            with ExitStack() as opened:
                try:
                    selector = opened.enter_context(selectors.DefaultSelector())
                    bell, ear = socket.socketpair()
                    opened.enter_context(bell)
                    opened.enter_context(ear)
                    for end in (bell, ear):
                        end.setblocking(False)
                    selector.register(ear, selectors.EVENT_READ)
                    self._selector, self._bell, self._ear = selector, bell, ear
                    thread = threading.Thread(target=self._main, name="gpuprover-workers", daemon=True)
                    thread.start()
                except (OSError, RuntimeError, MemoryError) as error:
                    raise shortage(error) or DeviceError(f"{type(error).__name__} in a start") from None
                opened.pop_all()
            self._thread = thread

    @property
    def devices(self) -> list[Device]:
        return list(self._published[0])

    def workers(self) -> list[WorkerStatus]:
        return list(self._published[1])

    def memory(self) -> int:
        return self._published[2]

    @property
    def problem(self) -> str:
        return self._problem

    def keys(self) -> CacheStatistics:
        return self._published[3]

    def load(self, path: str, pin: bool, done: Loaded) -> None:
        load = Load(os.path.abspath(path), pin, done)
        self._post(lambda: self._take_load(load), lambda: done(_shutting_down()))

    def unload(self, path: str) -> None:
        where = os.path.abspath(path)
        self._post(lambda: self._unload(where))

    def prove(self, request: ProofRequest, done: Done, progress: Report | None = None) -> None:
        """As the protocol says. The bytes of a witness are copied before this returns."""
        try:
            parcel = Parcel(request)
        except Exception as error:
            known = error if isinstance(error, ProverError) else shortage(error)
            # Of another one only its kind: its text may hold values of the witness.
            problem = known or ProofGenerationFailed(f"{type(error).__name__} while a witness was packed")
            self._post(
                lambda: self._calls.append(lambda: done(request, problem)), lambda: done(request, problem)
            )
            return

        def refuse() -> None:
            parcel.close()
            done(request, _shutting_down())

        self._post(lambda: self._take(Run(request, parcel, done, progress)), refuse)

    def cancel(self, request_id: int) -> None:
        self._post(lambda: self._cancel(request_id))

    def shrink(self) -> None:
        self._post(lambda: self._broadcast({"type": "shrink"}))

    def close(self, grace: float) -> None:
        with self._lock:
            thread, first, self._closed = self._thread, not self._closed, True
            if first:
                self._commands.append((lambda: self._begin_closing(grace), lambda: None))
                self._ring()
        if thread is None:
            self._refuse_all()
        elif thread is threading.current_thread():
            raise RuntimeError("a worker pool cannot be closed from its own callbacks")
        else:
            thread.join()

    def _post(self, command: Callable[[], None], refuse: Callable[[], None] = lambda: None) -> None:
        """Has the supervisor's thread run a command; after :meth:`close` it is refused instead."""
        with self._lock:
            taken = not self._closed
            if taken:
                self._commands.append((command, refuse))
                self._ring()
        if not taken:
            refuse()

    def _ring(self) -> None:
        if self._thread is not None:
            with suppress(OSError):  # it rings already, or nobody is there any more
                self._bell.send(b"!")

    def _refuse_all(self) -> None:
        while self._commands:
            self._commands.popleft()[1]()

    # The supervisor's thread --------------------------------------------------------------

    def _main(self) -> None:
        try:
            while self._closing is None or self._places or self._dying:
                try:
                    self._step()
                except Exception as error:
                    self._stumble("a step of the supervisor", error)
                if self._stumbles:
                    if self._closing is not None and self._stumbles > STUMBLES * STUMBLES:
                        break  # nobody shall wait for ever for what cannot end well
                    time.sleep(self._stumbling.next())
        finally:
            early = self._closing is None
            self._end()
            if early:
                self._problem = "the supervisor of workers has ended"
                _log.critical("%s: this is a bug", self._problem)

    def _stumble(self, what: str, error: Exception) -> None:
        """Logs what nobody expected, and goes on: without a supervisor no proof would be made any more."""
        self._stumbles += 1
        line = f"{what}: {type(error).__name__} in {place_of(error.__traceback__)}"
        self._tell(logging.ERROR, what, line)
        if self._stumbles >= STUMBLES:
            self._problem = f"{line}; it is tried again"

    def _tell(self, level: int, about: str, line: str) -> None:
        """Logs a line, unless there was one about the same a moment ago; the next one says how many."""
        now = time.monotonic()
        last, left_out = self._told.get(about, (-QUIET_SECONDS, 0))
        if now - last < QUIET_SECONDS:
            self._told[about] = last, left_out + 1
            return
        if len(self._told) > MESSAGES_AT_ONCE:
            self._told.clear()
        self._told[about] = now, 0
        _log.log(level, "%s", f"{line} ({left_out} more like this)" if left_out else line)

    def _guarded(
        self, what: str, action: Callable[[], None], instead: Callable[[], None] = lambda: None
    ) -> None:
        """Runs a part of a step whose failure shall not keep the others from being done."""
        try:
            action()
        except Exception as error:
            self._stumble(what, error)
            instead()

    def _end(self) -> None:
        """Leaves nothing behind and no caller without an answer, whatever has happened."""
        with self._lock:
            self._closed = True
        for worker in self._workers():
            with suppress(Exception):
                self._bury(worker, "its supervisor ended")
        for run in list(self._runs.values()):
            with suppress(Exception):
                self._finish(run, Lost("its supervisor ended"))
        with suppress(Exception):
            self._abandon("its supervisor ended")
        for child, _ in self._dying:
            with suppress(Exception):
                child.wait(KILLED_SECONDS)
                child.close()
        self._places, self._dying = [], []
        self._selector.close()
        self._bell.close()
        self._ear.close()
        self._refuse_all()
        with suppress(Exception):
            self._publish()
        self._call()

    def _step(self) -> None:
        before = time.monotonic()
        wait = self._patience(before)
        events = self._selector.select(wait)
        now, stumbles = time.monotonic(), self._stumbles
        if now - before - wait > LATE_SECONDS:
            # This process was stopped itself: who was silent meanwhile need not be dead.
            for worker in self._workers():
                worker.heard = worker.moved = now
        # First what the engine says: the death of a worker after a cancellation is no loss.
        while self._commands:
            self._guarded("a command of the engine", *self._commands.popleft())
        for key, _ in events:
            if key.fileobj is self._ear:
                with suppress(BlockingIOError):
                    self._ear.recv(4096)
            elif key.data.connection.fileno() >= 0:
                worker = key.data
                self._guarded(
                    "a message of a worker",
                    partial(self._listen, worker, now),
                    partial(self._fail, worker, "what it said was not understood", now),
                )
        for part in (self._tick, self._resize, self._assign):
            self._guarded(f"the supervisor's {part.__name__.strip('_')}", partial(part, now))
        if self._stumbles == stumbles:
            self._stumbles = 0
            self._stumbling.reset()
        self._publish()
        self._call()

    def _call(self) -> None:
        calls, self._calls = self._calls, []
        for call in calls:
            try:
                call()
            except Exception as error:
                _log.error("a callback of the worker pool failed: %s", type(error).__name__)

    def _fail(self, worker: Worker, why: str, now: float) -> None:
        if worker in worker.place.workers():
            worker.fault = worker.fault or why
            self._gone(worker, worker.fault, now)

    def _workers(self) -> list[Worker]:
        return [worker for place in self._places for worker in place.workers()]

    # Workers begin and end ------------------------------------------------------------------

    def _begin(self, place: Place, now: float) -> Worker | None:
        """Starts a process for a place; None if the system does not."""
        with ExitStack() as opened:
            try:
                mine, theirs = socket.socketpair()
                opened.enter_context(mine)
                with theirs:
                    number = theirs.fileno()
                    child = spawn("gpuprover.workers", str(number), str(os.getpid()), fds=[number])
                opened.callback(self._end_process, child)
                worker = Worker(place, child, Channel(mine), mine, now, now, now, now, set(self._pinned))
                self._selector.register(mine, selectors.EVENT_READ, worker)
            except Exception as error:
                known = error if isinstance(error, ProverError) else shortage(error)
                what = f"{type(error).__name__} in {place_of(error.__traceback__)}"
                why, told = (known.message, known.told) if known else (what, what)
                why = f"no process could be started: {why}"
                self._failed_to_start(place, why, f"no process could be started: {told}", now)
                self._tell(logging.WARNING, place.name, f"{place.name}: {why}")
                return None
            opened.pop_all()
        worker.surveys = place.name == "cpu-0" and self._surveys > 0
        settings = self._settings
        start = {
            "type": "start",
            "device": place.device,
            "threads": settings.threads,
            "key_bytes": settings.key_bytes,
            "pinned": sorted(self._pinned),
            "warm": settings.warm,
            "survey": worker.surveys,
        }
        self._send(worker, start)
        return worker

    def _send(self, worker: Worker, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Without waiting: a worker that has left its messages lying is at fault, and killed soon."""
        try:
            worker.channel.send(message, fds, timeout=0)
        except Exception as error:
            if not isinstance(error, ProverError):
                self._stumble("a message to a worker", error)
            worker.fault = worker.fault or "it takes no messages"
            worker.stopping, worker.leave = True, 0.0

    def _stop(self, worker: Worker, now: float) -> None:
        """Asks a worker to end when its runs have."""
        if worker.stopping:
            return
        worker.stopping = True
        if not worker.ready:
            worker.leave = now
            return
        if not worker.runs:
            worker.leave = now + EXIT_SECONDS
        self._send(worker, {"type": "stop"})

    def _bury(self, worker: Worker, why: str) -> None:
        """Ends a process, if it has not ended, and whatever it was doing."""
        place = worker.place
        if place.worker is worker:
            place.worker, place.successor = place.successor, None
        else:
            place.successor = None
        # What it has counted stays counted.
        gone = replace(worker.keys, entries=0, bytes=0, capacity=0, pinned=0)
        self._past_keys = CacheStatistics.total([self._past_keys, gone])
        with suppress(OSError, KeyError, ValueError):
            self._selector.unregister(worker.connection)
        self._end_process(worker.child, worker.channel)
        lost = Lost(f"{place.name}: {why}")
        for run in list(worker.runs.values()):
            self._finish(run, run.error if isinstance(run.error, Cancelled) else lost)
        for number, kind in worker.loads.items():
            load = self._loads.get(number)
            if load is not None and load.asked is not None:
                load.asked[kind], load.tries = None, load.tries + 1
                if load.tries >= LOAD_TRIES:
                    self._finish_load(number, lost)

    def _end_process(self, child: Child, channel: Channel | None = None) -> None:
        """Kills it; what does not go at once is looked after in each step, for a while."""
        try:
            if channel is not None:
                channel.close()
            child.kill()
            if child.wait(REAP_SECONDS):
                child.close()
                return
        except Exception as error:
            self._stumble("the end of a process", error)
        self._dying.append((child, time.monotonic() + KILLED_SECONDS))

    def _reap(self, now: float) -> None:
        """Forgets killed processes that have ended, and those that do not."""
        left = []
        for child, until in self._dying:
            try:
                if not child.ended() and until > now:
                    child.kill()
                    left.append((child, until))
                    continue
                child.close()
            except Exception as error:
                self._stumble("the end of a process", error)
                left += [(child, until)] if until > now else []
        self._dying = left

    def _gone(self, worker: Worker, why: str, now: float, told: str = "") -> None:
        """A process has ended, or has to. Its place goes on with its successor, or with a new one.

        ``told``: why, for a status, which strangers may read; else as it stands.
        """
        place, was_worker = worker.place, worker.place.worker is worker
        if not worker.stopping or worker.fault:
            told = worker.told or worker.fault or told or why
            why = worker.fault or why
            self._tell(logging.WARNING, place.name, f"{place.name}: process {worker.child.pid}: {why}")
            place.restarts += was_worker
            if worker.ready:
                place.problem = place.problem if place.again > now else told
                place.again = max(place.again, now + place.backoff.next())
            else:
                self._surveys -= worker.surveys
                own = worker.failed or not worker.child.killed
                self._failed_to_start(place, why, told, now, own=own)
        elif was_worker:
            place.recycled += bool(worker.wear)
        if worker.runs:
            self._device_failed(worker, told or why, now)
        self._bury(worker, why)
        if place.closing and not place.workers():
            self._places.remove(place)

    def _failed_to_start(self, place: Place, why: str, told: str, now: float, own: bool = False) -> None:
        """``told``: as for :meth:`_gone`; ``own``: by a fault of the worker's own, which would fail again."""
        place.failing = place.failing if place.failures else now
        place.failures += 1
        place.faults = place.faults + 1 if own else 0
        place.problem, place.again = told, max(place.again, now + place.backoff.next())
        ready = any(w.ready for w in self._workers() if w.place.device == place.device)
        if own and place.device != "cpu":
            self._count_failure(place, told, now)
        hopeless = place.faults >= START_TRIES or now - place.failing >= self._settings.wait
        if hopeless and not ready:
            self._broken[place.device] = DeviceError(
                f"{place.device}: {place.failures} times in a row no worker started", more=f"because {why}"
            )

    # What workers say -----------------------------------------------------------------------

    def _listen(self, worker: Worker, now: float) -> None:
        try:
            for _ in range(MESSAGES_AT_ONCE):
                message, _ = worker.channel.receive(0)
                worker.heard = now
                self._hear(worker, message, now)
        except Timeout:
            return
        except ProverError as error:
            ended = worker.child.wait(REAP_SECONDS)
            if not ended:
                self._gone(worker, error.message, now)
                return
            why, told = f"the process {worker.child.describe()}", f"the process {worker.child.ending()}"
            self._gone(worker, why, now, told)
        except (AttributeError, KeyError, TypeError, ValueError):
            worker.fault = "it said what no worker says"
            self._gone(worker, worker.fault, now)

    def _hear(self, worker: Worker, message: dict[str, Any], now: float) -> None:
        kind = message["type"]
        if kind == "alive":
            self._remember(worker, message["memory"])
            if message["keys"] is not None:
                worker.keys = CacheStatistics(**message["keys"])
            if message["cpu"] - worker.cpu > BUSY_SECONDS:
                worker.moved = now
            worker.cpu = message["cpu"]
        elif kind == "starting":
            worker.moved = now
        elif kind == "progress":
            worker.moved = now
            run = worker.runs.get(message["id"])
            if run is not None and run.progress is not None:
                step = Progress(message["phase"], message["fraction"], message["elapsed"])
                self._calls.append(partial(run.progress, step))
        elif kind == "done":
            self._hear_done(worker, message, now)
        elif kind == "loaded":
            self._hear_loaded(worker, message, now)
        elif kind == "hello":
            self._hear_hello(worker, message, now)
        elif kind == "refused":
            worker.stopping = True
            run = worker.runs.get(message["id"])
            if run is not None and isinstance(run.error, Cancelled):
                self._finish(run, run.error)
            elif run is not None:
                del worker.runs[run.request.id]
                self._wait(run, first=True)
        elif kind == "stopping":
            worker.stopping = True
            if not worker.runs:
                worker.leave = now + EXIT_SECONDS
        elif kind == "warning":
            folders.warn(message["text"])
        elif kind == "failed":
            error = from_record(message["error"])
            worker.fault, worker.told = error.message, error.told
            worker.failed = True

    def _hear_hello(self, worker: Worker, message: dict[str, Any], now: float) -> None:
        place, own = worker.place, Device(**message["device"])
        found = [Device(**record) for record in message["devices"] or ()]
        worker.memory = MemoryUsage(**message["memory"])
        worker.ready, worker.idle_since = True, now
        worker.base = 0 if place.device == "cpu" else own_bytes(worker.memory)
        place.failures, place.faults, place.problem = 0, 0, ""
        self._broken.pop(place.device, None)
        self._machine[place.device] = own
        if found:
            self._surveys = 0
            gpus = [device for device in found if device.kind != own.kind]
            for gpu in gpus:
                self._machine.setdefault(gpu.name, gpu)
            if any(not gpu.problem for gpu in gpus):
                worker.wear = "it has in memory what looks for GPUs"
        for path in self._pinned - worker.pins:
            self._pin_in(worker, path)
        for path in worker.pins - self._pinned:
            worker.pins.discard(path)
            self._send(worker, {"type": "unload", "path": path})

    def _remember(self, worker: Worker, usage: dict[str, int | None]) -> None:
        worker.memory = MemoryUsage(**usage)  # type: ignore[arg-type]
        if worker.open and not worker.runs:
            worker.at_rest = own_bytes(worker.memory)
            mark = self._settings.memory_mark
            if mark is not None and worker.at_rest > mark + worker.base:
                worker.wear = worker.wear or f"it holds {worker.at_rest >> 20} MiB at rest"

    def _hear_done(self, worker: Worker, message: dict[str, Any], now: float) -> None:
        run = worker.runs.get(message["id"])
        if run is None:
            return
        worker.proofs += 1
        worker.moved = worker.idle_since = now
        place = worker.place
        outcome: ProofResult | ProverError
        if "result" in message:
            outcome = result_from_json(message["result"])
            place.device_failures = 0
            place.backoff.reset()
            place.rest.reset()
        else:
            outcome = from_record(message["error"])
        self._finish(run, outcome)
        if worker.proofs >= self._settings.max_proofs:
            worker.wear = worker.wear or f"it has made {worker.proofs} proofs"
        if isinstance(outcome, DeviceError) and place.device != "cpu":
            if not worker.fault:
                worker.fault, worker.told = outcome.message, outcome.told
            self._device_failed(worker, worker.told or worker.fault, now)
            self._stop(worker, now)
        if worker.stopping and not worker.runs and worker.leave is None:
            worker.leave = now + EXIT_SECONDS

    def _device_failed(self, worker: Worker, told: str, now: float) -> None:
        """What is sticky in CUDA ends with the process: another one gets the device, a few times.

        Then the device rests, and after that one process tries it: if it starts, the device is used again,
        and rests at once, and longer, if it fails again before a proof is made.
        """
        place = worker.place
        # The proofs that ran there beside each other tell of one failure.
        if worker.failed_device or place.device == "cpu" or self._closing is not None:
            return
        worker.failed_device = True
        self._count_failure(place, told, now)

    def _count_failure(self, place: Place, told: str, now: float) -> None:
        place.device_failures += 1
        if place.device_failures >= DEVICE_TRIES:
            seconds = place.rest.next()
            place.again, place.problem = now + seconds, told
            self._machine[place.device] = replace(self._machine[place.device], problem=told)
            self._tell(
                logging.ERROR,
                f"{place.name} rests",
                f"{place.name}: it failed under {place.device_failures} processes in a row, and is tried "
                f"again in {seconds:.0f} s: {told}",
            )

    def _hear_loaded(self, worker: Worker, message: dict[str, Any], now: float) -> None:
        worker.idle_since = now
        number = message["id"]
        kind, load = worker.loads.pop(number, None), self._loads.get(number)
        if kind is None or load is None or load.asked is None:
            return
        del load.asked[kind]
        if "key" in message:
            load.found.append(KeyInfo.from_json(message["key"]))
        else:
            load.problem = from_record(message["error"])
        if not load.asked:
            self._finish_load(number, load.problem)

    # Keys -----------------------------------------------------------------------------------

    def _take_load(self, load: Load) -> None:
        self._loads[next(self._numbers)] = load

    def _ask(self, number: int, load: Load) -> None:
        """Asks a worker for each kind of device, if there is one; else this is called again."""
        usable = {d.kind for d in self._usable()}
        if not usable:
            if self._broken:
                self._finish_load(number, next(iter(self._broken.values())))
            return
        if load.asked is None:
            load.asked = dict.fromkeys(usable)
        for kind in [kind for kind, asked in load.asked.items() if asked is None]:
            if kind not in usable:
                del load.asked[kind]
                continue
            able = [w for w in self._workers() if w.open and self._machine[w.place.device].kind == kind]
            if able:
                worker = load.asked[kind] = min(able, key=lambda w: len(w.runs))
                worker.loads[number] = kind
                worker.pins |= {load.path} if load.pin else set()
                self._send(worker, {"type": "load", "id": number, "path": load.path, "pin": load.pin})
        if not load.asked:
            self._finish_load(number, load.problem)

    def _finish_load(self, number: int, problem: ProverError | Lost | None) -> None:
        load = self._loads.pop(number)
        outcome: KeyInfo | ProverError | Lost
        if load.found:
            plans = {kind: plans for info in load.found for kind, plans in info.plans.items()}
            outcome = replace(load.found[0], plans=plans)
            if load.pin:
                self._pinned.add(load.path)
                for worker in self._workers():
                    if worker.open and load.path not in worker.pins:
                        self._pin_in(worker, load.path)
        else:
            outcome = problem or Lost(f"{load.path}: no worker is left that could load it")
        self._calls.append(partial(load.done, outcome))

    def _pin_in(self, worker: Worker, path: str) -> None:
        worker.pins.add(path)
        self._send(worker, {"type": "load", "id": 0, "path": path, "pin": True})

    def _unload(self, path: str) -> None:
        self._pinned.discard(path)
        for worker in self._workers():
            worker.pins.discard(path)
        self._broadcast({"type": "unload", "path": path})

    def _broadcast(self, message: dict[str, Any]) -> None:
        for worker in self._workers():
            if worker.open:
                self._send(worker, message)

    # Runs -----------------------------------------------------------------------------------

    def _take(self, run: Run) -> None:
        if run.request.id in self._runs:
            run.parcel.close()
            problem = ProofGenerationFailed(f"request {run.request.id} runs already")
            self._calls.append(partial(run.done, run.request, problem))
            return
        self._runs[run.request.id] = run
        self._wait(run)

    def _wait(self, run: Run, first: bool = False) -> None:
        """Has a run wait for a worker, no longer than it may take."""
        run.worker, run.due = None, None
        timeout = run.request.timeout
        if timeout is not None:
            run.due = time.monotonic() + timeout
            run.error = Timeout(f"time limit of {timeout:g} s reached before a worker was ready")
        waiting = self._waiting.setdefault(run.request.device, deque())
        if first:
            waiting.appendleft(run)
        else:
            waiting.append(run)

    def _finish(self, run: Run, outcome: ProofResult | ProverError | Lost) -> None:
        """The only place where a run ends: what comes for it later is not known any more."""
        del self._runs[run.request.id]
        if run.worker is None:
            self._waiting[run.request.device].remove(run)
        else:
            del run.worker.runs[run.request.id]
        self._calls.append(partial(run.done, run.request, outcome))
        run.parcel.close()

    def _cancel(self, number: int) -> None:
        run = self._runs.get(number)
        if run is None or isinstance(run.error, Cancelled):
            return
        error = Cancelled("cancelled by the caller")
        if run.worker is None:
            self._finish(run, error)
        else:
            run.error, run.due = error, time.monotonic() + self._settings.grace
            self._send(run.worker, {"type": "cancel", "id": number})

    def _assign(self, now: float) -> None:
        """Gives what waits to workers that are ready."""
        for number, load in list(self._loads.items()):
            self._ask(number, load)
        for device, waiting in self._waiting.items():
            problem = self._problem_of(device)
            while waiting and problem is not None:
                self._finish(waiting[0], problem)
            for worker in self._able(device):
                if not waiting:
                    break
                self._give(worker, waiting.popleft(), now)

    def _able(self, device: str) -> Iterator[Worker]:
        """Workers that can take a run; one of a GPU again and again. A successor waits for its turn."""
        for place in self._places:
            worker = place.worker
            while place.device == device and worker is not None and worker.open:
                if device == "cpu" and worker.runs:
                    break
                yield worker

    def _problem_of(self, device: str) -> ProverError | None:
        """Why nothing can run there, now and soon."""
        if device in self._broken:
            return self._broken[device]
        if not self._known or any(usable.name == device for usable in self._usable()):
            return None
        known = self._machine.get(device)
        problem = known.problem if known is not None else ""
        return DeviceError(f"device {device!r}: {problem or 'there are no workers for it'}")

    def _give(self, worker: Worker, run: Run, now: float) -> None:
        worker.moved = worker.moved if worker.runs else now
        run.worker, worker.runs[run.request.id] = worker, run
        run.due = run.error = None
        timeout = run.request.timeout
        if timeout is not None:
            run.due = now + timeout + self._settings.grace
            run.error = Timeout(f"time limit of {timeout:g} s reached, and its worker did not notice")
        self._send(worker, run.parcel.message, run.parcel.fds)

    # Time -----------------------------------------------------------------------------------

    def _patience(self, now: float) -> float:
        """Seconds until something has to be looked at."""
        times = [now + TICK_SECONDS]
        times += [run.due for run in self._runs.values() if run.due is not None]
        times += [worker.leave for worker in self._workers() if worker.leave is not None]
        times += [place.again for place in self._places if place.worker is None]
        if self._dying:
            times.append(now + REAP_SECONDS)
        if self._closing is not None:
            times.append(self._closing)
        if self._commands:
            return 0.0
        return max(0.0, min(times) - now)

    def _tick(self, now: float) -> None:
        """What happens because time has passed."""
        for run in list(self._runs.values()):
            if run.due is not None and run.due <= now and run.request.id in self._runs:
                worker, error = run.worker, run.error
                assert error is not None
                self._finish(run, error)
                if worker is not None:
                    worker.fault = f"run {run.request.id} did not stop: {error}"
                    if worker in worker.place.workers():
                        self._device_failed(worker, "a proof on it did not stop", now)
                        self._gone(worker, worker.fault, now)
        for worker in self._workers():
            why = self._overdue(worker, now)
            if why:
                worker.fault = worker.fault or ("" if worker.stopping else why)
                worker.place.silent += worker.place.worker is worker and not worker.stopping
                self._gone(worker, why, now)
            elif worker.ready and now - worker.born > STEADY_SECONDS:
                worker.place.backoff.reset()
        for place in self._places:
            self._tend(place, now)
        self._reap(now)
        if now - self._ticked >= TICK_SECONDS:
            self._ticked = now
            self._own = memory.resident_anonymous()
            for worker in self._workers():
                worker.child.trim()
        if self._closing is not None and self._closing <= now:
            for worker in self._workers():
                self._gone(worker, "the time to end is over", now)

    def _overdue(self, worker: Worker, now: float) -> str:
        """Why a worker has to be killed, if it has."""
        settings = self._settings
        if worker.leave is not None and worker.leave <= now:
            return worker.fault or "it did not end"
        if worker.ready and now - worker.heard > settings.heartbeat:
            return f"it was silent for {settings.heartbeat:g} s"
        if not worker.ready and now - worker.moved > settings.init:
            return f"its start did not go on for {settings.init:g} s"
        if worker.runs and now - worker.moved > settings.stall:
            return f"it neither computed nor reported anything for {settings.stall:g} s"
        return ""

    def _tend(self, place: Place, now: float) -> None:
        """Starts what a place needs."""
        if place.closing or place.again > now:
            return
        worker = place.worker
        if worker is None:
            place.worker = self._begin(place, now)
        elif worker.wear and worker.open and place.successor is None:
            _log.info("%s: process %d is replaced: %s", place.name, worker.child.pid, worker.wear)
            if place.device == "cpu":
                place.successor = self._begin(place, now)
            else:  # what it holds of the GPU its successor would have to do without
                self._stop(worker, now)
        elif place.successor is not None and place.successor.ready:
            self._stop(worker, now)

    def _resize(self, now: float) -> None:
        """As many CPU workers as there is work for, and one for each GPU."""
        if self._closing is not None:
            return
        settings = self._settings
        for device in self._usable():
            if device.kind != "cpu" and all(place.device != device.name for place in self._places):
                self._add(device.name, device.name, now)
        mine = [place for place in self._places if place.device == "cpu" and not place.closing]
        work = len(self._waiting.get("cpu", ())) + (bool(self._loads) and not mine)
        free = sum(1 for p in mine if p.worker is None or not p.worker.runs)
        least = settings.min_workers if self._known else max(1, settings.min_workers)
        for _ in range(min(settings.max_workers, max(least, len(mine) + work - free)) - len(mine)):
            names = {place.name for place in self._places}
            self._add(next(name for i in count() if (name := f"cpu-{i}") not in names), "cpu", now)
        for place in reversed(mine[least:]):
            worker = place.worker
            if worker is None and place.failures and not work:
                self._places.remove(place)
                continue
            if worker is None or work or not worker.open or worker.runs or worker.loads:
                continue
            if now - worker.idle_since > settings.idle:
                place.closing = True
                for each in place.workers():
                    self._stop(each, now)

    def _add(self, name: str, device: str, now: float) -> None:
        place = Place(name, device, Backoff(*self._settings.backoff), Backoff(*self._settings.rest))
        self._places.append(place)
        self._tend(place, now)

    # Closing --------------------------------------------------------------------------------

    def _begin_closing(self, grace: float) -> None:
        now = time.monotonic()
        self._closing = now + grace
        self._abandon("the pool was closed before it began")
        for place in list(self._places):
            place.closing = True
            for worker in place.workers():
                self._stop(worker, now)
            if not place.workers():
                self._places.remove(place)

    def _abandon(self, why: str) -> None:
        """Ends what waits."""
        for run in [run for run in self._runs.values() if run.worker is None]:
            self._finish(run, Lost(why))
        for number in list(self._loads):
            self._finish_load(number, Lost(why))

    # What others see ------------------------------------------------------------------------

    @property
    def _known(self) -> bool:
        """Whether the machine's devices are."""
        return bool(self._machine) and not self._surveys

    def _usable(self) -> list[Device]:
        """Devices that proofs can be placed on."""
        chosen = self._settings.gpus
        return [
            device
            for name, device in self._machine.items()
            if self._known
            and not device.problem
            and name not in self._broken
            and (device.kind == "cpu" or chosen is None or name in chosen)
        ]

    def _publish(self) -> None:
        workers = [status_of(place) for place in self._places]
        held = sum(own_bytes(w.memory) if w.memory else 0 for w in self._workers())
        before = self._published
        keys = CacheStatistics.total([self._past_keys, *(w.keys for w in self._workers())])
        was, self._problem = self._problem, self._ill()
        self._published = (self._devices(), workers, held, keys)
        if self._published[:2] != before[:2] or self._problem != was:
            self._calls.append(self._changed)

    def _ill(self) -> str:
        """Why no proof can be made; empty while workers are ready, or start as they should."""
        if self._stumbles >= STUMBLES:
            return self._problem
        if any(worker.open for worker in self._workers()):
            return ""
        failing = [place for place in self._places if place.failures]
        return f"{failing[0].name}: {failing[0].problem}" if failing else ""

    def _devices(self) -> list[Device]:
        settings, chosen = self._settings, self._settings.gpus
        if not self._known:
            return [Device("cpu", "cpu", problem=error.told) for error in self._broken.values()]
        found = []
        for name, device in self._machine.items():
            if name in self._broken:
                device = replace(device, problem=self._broken[name].told)
            if device.kind == "cpu":
                device = replace(
                    device, threads=settings.threads, memory=self._room(), proofs=settings.max_workers
                )
            elif chosen is not None and name not in chosen:
                continue
            else:
                device = replace(device, proofs=settings.gpu_proofs)
            found.append(device)
        return found

    def _room(self) -> int | None:
        """Bytes of the limit that processes do not take for themselves."""
        settings = self._settings
        if settings.memory_limit is None:
            return None
        mine = [place.worker for place in self._places if place.worker is not None]
        taken = sum(max(worker.at_rest, WORKER_BYTES) for worker in mine)
        missing = settings.max_workers - sum(worker.place.device == "cpu" for worker in mine)
        room = settings.memory_limit - self._own - taken - max(0, missing) * WORKER_BYTES
        return max(0, room // GRAIN * GRAIN)


def _shutting_down() -> ShuttingDown:
    return ShuttingDown("the worker pool is closed")


__all__ = ["PoolSettings", "WorkerPool"]
