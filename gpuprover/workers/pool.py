"""The supervisor: an :class:`~gpuprover.executor.Executor` whose proofs are made in worker processes.

One thread owns everything: it starts workers, listens to them, and keeps the time. Public methods leave it a
message and return; what others may look at it publishes as a whole. Callbacks are called from it.

Workers live in slots (:mod:`.slots`); CPU workers run one proof at a time, those of GPUs as many as they are
given. The death of a worker makes its requests :class:`~gpuprover.executor.Lost`, each once: a request is
forgotten before its end is told, and what comes for one that is not known is dropped.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from typing import Any

from gpuprover import folders, memory
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
from gpuprover.executor import Done, KeyInfo, Loaded, Lost, ProofRequest, WorkerStatus
from gpuprover.job import Progress
from gpuprover.memory import MIB, MemoryUsage
from gpuprover.proving import ProofResult
from gpuprover.scheduler import DeviceInfo
from gpuprover.workers.found import FoundDevices
from gpuprover.workers.loads import Load, Loads
from gpuprover.workers.records import OpenRequest, PoolSettings, Report, Worker, own_bytes, status_of
from gpuprover.workers.slots import EXIT_SECONDS, REAP_SECONDS, Slots
from gpuprover.workers.troubles import STUMBLES, Troubles
from gpuprover.workers.wire import Parcel, result_from_json

TICK_SECONDS = 1.0
"""Seconds between two looks at everything, where nothing happens."""
BUSY_SECONDS = 0.05
"""Seconds of computing between two signs of life that count as work: more than it takes to give them."""
LATE_SECONDS = 1.0
"""If this process was stopped itself so long, silent workers are given the time again."""
MESSAGES_AT_ONCE = 100

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
        self._published: tuple[list[DeviceInfo], list[WorkerStatus], int, CacheStatistics] = (
            [], [], 0, self._past_keys,
        )  # fmt: skip
        # From here on: the supervisor's thread alone.
        self._changed: Callable[[], None] = lambda: None
        self._troubles, self._found = Troubles(), FoundDevices(settings)
        self._slots = Slots(
            settings, self._found, self._troubles, lambda: self._pinned, self._register, self._forget
        )
        self._loads: Loads[Worker] = Loads(self._ask_to_load, self._load_ended)
        self._runs: dict[int, OpenRequest] = {}
        self._waiting: dict[str, deque[OpenRequest]] = {}
        self._pinned: set[str] = set()
        self._calls: list[Callable[[], None]] = []
        self._own = 0
        self._ticked = 0.0
        self._closing: float | None = None

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
    def devices(self) -> list[DeviceInfo]:
        return list(self._published[0])

    def workers(self) -> list[WorkerStatus]:
        return list(self._published[1])

    def memory(self) -> int:
        return self._published[2]

    @property
    def problem(self) -> str:
        return self._troubles.problem or self._problem

    def keys(self) -> CacheStatistics:
        return self._published[3]

    def load(self, path: str, pin: bool, done: Loaded) -> None:
        where = os.path.abspath(path)
        self._post(lambda: self._loads.take(where, pin, done), lambda: done(_shutting_down()))

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

        self._post(lambda: self._take(OpenRequest(request, parcel, done, progress)), refuse)

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
            while self._closing is None or self._slots.left:
                self._troubles.guarded("a step of the supervisor", self._step)
                stumbles = self._troubles.stumbles
                if stumbles:
                    if self._closing is not None and stumbles > STUMBLES * STUMBLES:
                        break  # nobody should wait for ever for what cannot end well
                    time.sleep(self._troubles.pause())
        finally:
            early = self._closing is None
            self._end()
            if early:
                self._problem = "the supervisor of workers has ended"
                _log.critical("%s: this is a bug", self._problem)

    def _end(self) -> None:
        """Leaves nothing behind and no caller without an answer, whatever has happened."""
        with self._lock:
            self._closed = True
        self._slots.end("its supervisor ended")
        for run in list(self._runs.values()):
            with suppress(Exception):
                self._finish(run, Lost("its supervisor ended"))
        with suppress(Exception):
            self._abandon("its supervisor ended")
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
        now, stumbles = time.monotonic(), self._troubles.stumbles
        if now - before - wait > LATE_SECONDS:
            # This process was stopped itself: who was silent meanwhile need not be dead.
            for worker in self._slots.workers():
                worker.heard = worker.moved = now
        # First what the engine says: the death of a worker after a cancellation is no loss.
        while self._commands:
            self._troubles.guarded("a command of the engine", *self._commands.popleft())
        for key, _ in events:
            if key.fileobj is self._ear:
                with suppress(BlockingIOError):
                    self._ear.recv(4096)
            elif key.data.connection.fileno() >= 0:
                worker = key.data
                self._troubles.guarded(
                    "a message of a worker",
                    partial(self._listen, worker, now),
                    partial(self._slots.fail, worker, "what it said was not understood", now),
                )
        for part in (self._tick, self._resize, self._assign):
            self._troubles.guarded(f"the supervisor's {part.__name__.strip('_')}", partial(part, now))
        if self._troubles.stumbles == stumbles:
            self._troubles.steady()
        self._publish()
        self._call()

    def _call(self) -> None:
        calls, self._calls = self._calls, []
        for call in calls:
            try:
                call()
            except Exception as error:
                _log.error("a callback of the worker pool failed: %s", type(error).__name__)

    def _register(self, worker: Worker) -> None:
        self._selector.register(worker.connection, selectors.EVENT_READ, worker)

    def _forget(self, worker: Worker, why: str) -> None:
        """Ends the work of a worker that is gone. Its counts stay."""
        gone = replace(worker.keys, entries=0, bytes=0, capacity=0, pinned=0)
        self._past_keys = CacheStatistics.total([self._past_keys, gone])
        with suppress(OSError, KeyError, ValueError):
            self._selector.unregister(worker.connection)
        lost = Lost(f"{worker.slot.name}: {why}")
        for run in list(worker.runs.values()):
            self._finish(run, run.error if isinstance(run.error, Cancelled) else lost)
        self._loads.lost(worker, lost)

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
                self._slots.gone(worker, error.message, now)
                return
            why, told = f"the process {worker.child.describe()}", f"the process {worker.child.ending()}"
            self._slots.gone(worker, why, now, told)
        except (AttributeError, KeyError, TypeError, ValueError):
            worker.fault = "it said what no worker says"
            self._slots.gone(worker, worker.fault, now)

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
        slot, own = worker.slot, DeviceInfo(**message["device"])
        found = [DeviceInfo(**record) for record in message["devices"] or ()]
        worker.memory = MemoryUsage(**message["memory"])
        worker.ready, worker.idle_since = True, now
        worker.base = 0 if slot.device == "cpu" else own_bytes(worker.memory)
        slot.failures, slot.faults, slot.problem = 0, 0, ""
        if self._found.found(slot.device, own, found):
            worker.wear = "it has in memory what looks for GPUs"
        for path in self._pinned - worker.pins:
            self._pin_in(worker, path)
        for path in worker.pins - self._pinned:
            worker.pins.discard(path)
            self._slots.send(worker, {"type": "unload", "path": path})

    def _remember(self, worker: Worker, usage: dict[str, int | None]) -> None:
        worker.memory = MemoryUsage(**usage)  # type: ignore[arg-type]
        if worker.open and not worker.runs:
            worker.at_rest = own_bytes(worker.memory)
            mark = self._settings.worker_memory
            if mark is not None and worker.at_rest > mark * MIB + worker.base:
                worker.wear = worker.wear or f"it holds {worker.at_rest >> 20} MiB at rest"

    def _hear_done(self, worker: Worker, message: dict[str, Any], now: float) -> None:
        run = worker.runs.get(message["id"])
        if run is None:
            return
        worker.proofs += 1
        worker.moved = worker.idle_since = now
        outcome: ProofResult | ProverError
        if "result" in message:
            outcome = result_from_json(message["result"])
            self._slots.proved(worker.slot)
        else:
            outcome = from_record(message["error"])
        self._finish(run, outcome)
        if worker.proofs >= self._settings.max_proofs_per_worker:
            worker.wear = worker.wear or f"it has made {worker.proofs} proofs"
        if isinstance(outcome, DeviceError) and worker.slot.device != "cpu":
            if not worker.fault:
                worker.fault, worker.told = outcome.message, outcome.told
            self._slots.device_failed(worker, worker.told or worker.fault, now)
            self._slots.stop(worker, now)
        if worker.stopping and not worker.runs and worker.leave is None:
            worker.leave = now + EXIT_SECONDS

    def _hear_loaded(self, worker: Worker, message: dict[str, Any], now: float) -> None:
        worker.idle_since = now
        known = "key" in message
        answer = KeyInfo.from_json(message["key"]) if known else from_record(message["error"])
        self._loads.answered(worker, message["id"], answer)

    # Keys -----------------------------------------------------------------------------------

    def _load(self) -> None:
        """Asks for what is to be loaded, of those workers that are there."""
        problem = self._found.failure
        if problem is not None:
            self._loads.end(problem)
        else:
            self._loads.ask({device.kind for device in self._found.usable()}, self._loader)

    def _loader(self, kind: str) -> Worker | None:
        """The worker that loads a key for devices of a kind: the one with the fewest proofs."""
        able = [w for w in self._slots.workers() if w.open and self._found.kind(w.slot.device) == kind]
        return min(able, key=lambda worker: len(worker.runs), default=None)

    def _ask_to_load(self, worker: Worker, number: int, path: str, pin: bool) -> None:
        if pin:
            worker.pins.add(path)
        self._slots.send(worker, {"type": "load", "id": number, "path": path, "pin": pin})

    def _load_ended(self, load: Load[Worker], outcome: KeyInfo | ProverError | Lost) -> None:
        if isinstance(outcome, KeyInfo) and load.pin:
            self._pinned.add(load.path)
            for worker in self._slots.workers():
                if worker.open and load.path not in worker.pins:
                    self._pin_in(worker, load.path)
        self._calls.append(partial(load.done, outcome))

    def _pin_in(self, worker: Worker, path: str) -> None:
        """Has a worker keep a key; what it answers nobody waits for."""
        self._ask_to_load(worker, 0, path, True)

    def _unload(self, path: str) -> None:
        self._pinned.discard(path)
        for worker in self._slots.workers():
            worker.pins.discard(path)
        self._broadcast({"type": "unload", "path": path})

    def _broadcast(self, message: dict[str, Any]) -> None:
        for worker in self._slots.workers():
            if worker.open:
                self._slots.send(worker, message)

    # Runs -----------------------------------------------------------------------------------

    def _take(self, run: OpenRequest) -> None:
        if run.request.id in self._runs:
            run.parcel.close()
            problem = ProofGenerationFailed(f"request {run.request.id} runs already")
            self._calls.append(partial(run.done, run.request, problem))
            return
        self._runs[run.request.id] = run
        self._wait(run)

    def _wait(self, run: OpenRequest, first: bool = False) -> None:
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

    def _finish(self, run: OpenRequest, outcome: ProofResult | ProverError | Lost) -> None:
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
            run.error, run.due = error, time.monotonic() + self._settings.response_time
            self._slots.send(run.worker, {"type": "cancel", "id": number})

    def _assign(self, now: float) -> None:
        """Gives what waits to workers that are ready."""
        self._load()
        for device, waiting in self._waiting.items():
            problem = self._found.problem_of(device)
            while waiting and problem is not None:
                self._finish(waiting[0], problem)
            for worker in self._able(device):
                if not waiting:
                    break
                self._give(worker, waiting.popleft(), now)

    def _able(self, device: str) -> Iterator[Worker]:
        """Workers that can take a run; one of a GPU again and again. A successor waits for its turn."""
        for slot in self._slots:
            worker = slot.worker
            while slot.device == device and worker is not None and worker.open:
                if device == "cpu" and worker.runs:
                    break
                yield worker

    def _give(self, worker: Worker, run: OpenRequest, now: float) -> None:
        worker.moved = worker.moved if worker.runs else now
        run.worker, worker.runs[run.request.id] = worker, run
        run.due = run.error = None
        timeout = run.request.timeout
        if timeout is not None:
            run.due = now + timeout + self._settings.response_time
            run.error = Timeout(f"time limit of {timeout:g} s reached, and its worker did not notice")
        self._slots.send(worker, run.parcel.message, run.parcel.fds)

    # Time -----------------------------------------------------------------------------------

    def _patience(self, now: float) -> float:
        """Seconds until something has to be looked at."""
        times = [now + TICK_SECONDS]
        times += [run.due for run in self._runs.values() if run.due is not None]
        times += self._slots.times(now)
        if self._closing is not None:
            times.append(self._closing)
        if self._commands:
            return 0.0
        return max(0.0, min(times) - now)

    def _tick(self, now: float) -> None:
        """Does what is due because time has passed."""
        for run in list(self._runs.values()):
            if run.due is not None and run.due <= now and run.request.id in self._runs:
                worker, error = run.worker, run.error
                assert error is not None
                self._finish(run, error)
                if worker is not None:
                    worker.fault = f"run {run.request.id} did not stop: {error}"
                    if worker in worker.slot.workers():
                        self._slots.device_failed(worker, "a proof on it did not stop", now)
                        self._slots.gone(worker, worker.fault, now)
        self._slots.look(now)
        if now - self._ticked >= TICK_SECONDS:
            self._ticked = now
            self._own = memory.resident_anonymous()
            self._slots.trim()
        if self._closing is not None and self._closing <= now:
            for worker in self._slots.workers():
                self._slots.gone(worker, "the time to end is over", now)

    def _resize(self, now: float) -> None:
        waiting = len(self._waiting.get("cpu", ()))
        self._slots.resize(waiting, bool(self._loads), self._loads.busy, now)

    # Closing --------------------------------------------------------------------------------

    def _begin_closing(self, grace: float) -> None:
        now = time.monotonic()
        self._closing = now + grace
        self._abandon("the pool was closed before it began")
        self._slots.close(now)

    def _abandon(self, why: str) -> None:
        """Ends what waits."""
        for run in [run for run in self._runs.values() if run.worker is None]:
            self._finish(run, Lost(why))
        self._loads.end(Lost(why))

    # What others see ------------------------------------------------------------------------

    def _publish(self) -> None:
        workers = [status_of(slot) for slot in self._slots]
        held = sum(own_bytes(w.memory) if w.memory else 0 for w in self._slots.workers())
        before = self._published
        keys = CacheStatistics.total([self._past_keys, *(w.keys for w in self._slots.workers())])
        was, self._problem = self._problem, self._ill()
        devices = self._found.offered(self._slots.room(self._own))
        self._published = devices, workers, held, keys
        if self._published[:2] != before[:2] or self._problem != was:
            self._calls.append(self._changed)

    def _ill(self) -> str:
        """Why no proof can be made; empty while workers are ready, or start as they should."""
        if self._troubles.problem:
            return self._troubles.problem
        if any(worker.open for worker in self._slots.workers()):
            return ""
        failing = [slot for slot in self._slots if slot.failures]
        return f"{failing[0].name}: {failing[0].problem}" if failing else ""


def _shutting_down() -> ShuttingDown:
    return ShuttingDown("the worker pool is closed")


__all__ = ["PoolSettings", "WorkerPool"]
