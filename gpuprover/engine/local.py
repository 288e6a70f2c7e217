"""Proofs in threads of this process: for small services, notebooks and tests, with nothing to start.

Nothing stands between a proof and its caller here: where the system kills one for memory, both are gone.
Admission keeps the sum of all proofs below the limit, so that no single one is given a limit.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from gpuprover import calibration
from gpuprover.caching import CacheStatistics
from gpuprover.devices import is_gpu
from gpuprover.errors import DeviceError, OutOfMemory, ProofGenerationFailed, ProverError, shortage
from gpuprover.executor import Done, KeyInfo, Loaded, Lost, ProofRequest, WorkerStatus
from gpuprover.job import Job, Progress
from gpuprover.memory import memory_usage
from gpuprover.proving import ProofResult
from gpuprover.runner import Runner
from gpuprover.scheduler import DeviceInfo

NAME = "local"
CANCEL_SECONDS = 2.0
"""Seconds for runs to notice that they are cancelled when all is closed: 0.2, unless one
compiles."""


class _LocalRun:
    """A request that runs; ``done`` is called once."""

    def __init__(self, request: ProofRequest, done: Done) -> None:
        self.request, self.cancel = request, threading.Event()
        self._done: Done | None = done
        self._lock = threading.Lock()

    def end(self, outcome: ProofResult | ProverError | Lost) -> None:
        with self._lock:
            done, self._done = self._done, None
        if done is not None:
            done(self.request, outcome)


class LocalExecutor:
    """A :class:`gpuprover.executor.Executor` over one :class:`Runner`, with a thread for each run.

    Args:
        threads: threads of the CPU, for all proofs together.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N``; with ``cpu`` nothing is asked of GPUs.
        key_bytes: bytes of mapped keys that are kept.
    """

    def __init__(self, threads: int, device: str = "auto", key_bytes: int = 1 << 40) -> None:
        self._threads, self._setting, self._key_bytes = threads, device, key_bytes
        self._lock = threading.Condition()
        self._runner: Runner | None = None
        self._problem: ProverError | None = None
        self._devices: list[DeviceInfo] = []
        self._runs: dict[int, _LocalRun] = {}
        self._loads = self._proofs = 0
        self._closed = False
        self._stop = threading.Event()
        self._changed: Callable[[], None] = lambda: None

    def start(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        if not _spawn(self._look, "gpuprover-start"):
            raise OutOfMemory("the machine refused a thread for the prover")

    def _look(self) -> None:
        """The devices to prove on; looked for again when a GPU has failed."""
        try:
            found = calibration.devices(self._threads)
        except Exception as error:
            problem = error if isinstance(error, ProverError) else shortage(error)
            with self._lock:
                self._problem = problem or DeviceError(f"{type(error).__name__} while looking for devices")
                self._lock.notify_all()
            self._changed()
            return
        if self._setting == "cpu":
            found = found[:1]
        with self._lock:
            if self._runner is None:
                names = [device.name for device in found if not device.problem]
                self._runner = Runner(self._key_bytes, names)
            self._devices = found
            self._lock.notify_all()
        self._changed()

    @property
    def devices(self) -> list[DeviceInfo]:
        with self._lock:
            return list(self._devices)

    def load(self, path: str, pin: bool, done: Loaded) -> None:
        def work() -> None:
            try:
                done(self._load(path, pin))
            finally:
                with self._lock:
                    self._loads -= 1
                    self._lock.notify_all()

        with self._lock:
            self._loads += 1
        if not _spawn(work, "gpuprover-load"):
            with self._lock:
                self._loads -= 1
            done(Lost("the interpreter is ending"))

    def _load(self, path: str, pin: bool) -> KeyInfo | ProverError | Lost:
        with self._lock:
            while self._runner is None and self._problem is None and not self._closed:
                self._lock.wait()
            runner, problem = self._runner, self._problem
        if problem is not None:
            return problem
        if runner is None:
            return Lost("the prover is closed")
        try:
            return runner.load(path, pin=pin, job=Job(threads=self._threads, cancel=self._stop))
        except ProverError as error:
            return error
        except Exception as error:
            return shortage(error) or ProofGenerationFailed(
                f"{type(error).__name__} while it was loaded; this is a bug in gpuprover",
                path=path,
                role="key",
            )

    def unload(self, path: str) -> None:
        if self._runner is not None:
            self._runner.unload(path)

    def prove(
        self, request: ProofRequest, done: Done, progress: Callable[[Progress], None] | None = None
    ) -> None:
        run = _LocalRun(request, done)
        with self._lock:
            runner = None if self._closed else self._runner
            if runner is not None:
                self._runs[request.id] = run
        if runner is None:
            run.end(Lost("the prover is closed"))
            return

        def work() -> None:
            try:
                outcome: ProofResult | ProverError = runner.prove(
                    request, cancel=run.cancel, progress=progress
                )
            except ProverError as error:
                outcome = error.with_traceback(None)
            with self._lock:
                del self._runs[request.id]
                self._proofs += isinstance(outcome, ProofResult)
                self._lock.notify_all()
            if isinstance(outcome, DeviceError) and is_gpu(request.device):
                self._look()
            run.end(outcome)

        if not _spawn(work, "gpuprover-proof"):
            with self._lock:
                del self._runs[request.id]
            run.end(Lost("the interpreter is ending"))

    def cancel(self, request_id: int) -> None:
        with self._lock:
            run = self._runs.get(request_id)
        if run is not None:
            run.cancel.set()

    def shrink(self) -> None:
        if self._runner is not None:
            self._runner.shrink()

    def workers(self) -> list[WorkerStatus]:
        with self._lock:
            jobs, proofs = tuple(self._runs), self._proofs
            state = (
                "stopping" if self._closed else "busy" if jobs else "idle" if self._devices else "starting"
            )
            problem = self._problem.message if self._problem is not None else ""
        devices = ", ".join(device.name for device in self.devices if not device.problem)
        return [WorkerStatus(NAME, os.getpid(), devices, state, jobs, proofs, 0, memory_usage(), problem)]

    @property
    def problem(self) -> str:
        with self._lock:
            return self._problem.message if self._problem is not None else ""

    def keys(self) -> CacheStatistics:
        return CacheStatistics.total(() if self._runner is None else (self._runner.keys.statistics,))

    def memory(self) -> int:
        """Nothing beyond what this process holds."""
        return 0

    def close(self, grace: float) -> None:
        with self._lock:
            self._closed = True
            self._lock.notify_all()
            self._drained(grace)
            self._stop.set()
            for run in self._runs.values():
                run.cancel.set()
            self._drained(CANCEL_SECONDS)
            left = list(self._runs.values())
        for run in left:
            run.end(Lost("it did not end when the prover was closed"))
        if self._runner is not None:
            self._runner.keys.clear()

    def _drained(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (self._runs or self._loads) and (left := end - time.monotonic()) > 0:
            self._lock.wait(left)


def _spawn(work: Callable[[], None], name: str) -> bool:
    """Whether it runs now, in a thread that does not keep the interpreter alive."""
    try:
        threading.Thread(target=work, name=name, daemon=True).start()
    except RuntimeError:  # the interpreter is ending, or the system gives no more threads
        return False
    return True
