"""A dispatcher on a stage: an executor whose runs end when a test says so, and a clock that a test moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpuprover.caching import CacheStatistics
from gpuprover.config import EngineSettings, load_engine_settings
from gpuprover.demand import MemoryPlan
from gpuprover.engine.directory import CircuitFiles
from gpuprover.engine.dispatch import Dispatcher
from gpuprover.engine.proof_job import ProofJob
from gpuprover.engine.records import COUNTERS
from gpuprover.errors import Cancelled, ProverError
from gpuprover.executor import Done, KeyInfo, Lost, ProofRequest, WorkerStatus
from gpuprover.formats.files import identity_of
from gpuprover.job import Progress
from gpuprover.memory import CODE_BYTES, MIB, Watermark
from gpuprover.proving import ProofResult
from gpuprover.scheduler import DeviceInfo
from gpuprover.witness_source import WitnessBytes

GIB = 1 << 30


class FakeTimes:
    """Four seconds on one thread of the CPU, three on two, which is all that pays; half a second on a GPU."""

    def seconds(
        self, work: str, device: DeviceInfo, constraints: int, threads: int, part: str | None = None
    ) -> float:
        return 2.0 + 2.0 / threads if device.kind == "cpu" else 0.5

    def measured(self, work: str, device: DeviceInfo) -> bool:
        return True


def cpu(threads: int = 4, **changes: Any) -> DeviceInfo:
    return replace(DeviceInfo("cpu", "cpu", "processor", "portable", threads), **changes)


def gpu(index: int = 0, **changes: Any) -> DeviceInfo:
    return replace(DeviceInfo(f"cuda:{index}", "cuda", "GPU", "sm_90", memory=8 * GIB), **changes)


def result(device: str = "cpu", number: int = 0) -> ProofResult:
    return ProofResult(
        proof={"number": number},
        public_signals=[str(number)],
        timings={"msm": 1.0},
        device=device,
        memory={"before": 1, "peak": 3, "after": 2},
    )


@dataclass(eq=False)
class Started:
    """A request that runs."""

    request: ProofRequest
    done: Done
    progress: Callable[[Progress], None] | None
    cancelled: bool = False


class FakeExecutor:
    """Takes everything, and does nothing by itself. What a test has not ended runs."""

    def __init__(self, *devices: DeviceInfo) -> None:
        self.offered = list(devices)
        self.started = self.closed = False
        self.changed: Callable[[], None] = lambda: None
        self.loads: list[tuple[str, bool, Callable[[KeyInfo | ProverError | Lost], None]]] = []
        self.loaded: list[str] = []
        self.unloaded: list[str] = []
        self.runs: list[Started] = []
        self.requests: list[ProofRequest] = []
        self.held = self.shrinks = 0
        self.arena: dict[str, int] = {}
        self.problem = ""
        self.prompt = True
        """Loads are answered at once."""

    def start(self, changed: Callable[[], None]) -> None:
        assert not self.started
        self.started, self.changed = True, changed
        changed()

    @property
    def devices(self) -> list[DeviceInfo]:
        return list(self.offered)

    def offer(self, *devices: DeviceInfo) -> None:
        self.offered = list(devices)
        self.changed()

    def load(self, path: str, pin: bool, done: Callable[[KeyInfo | ProverError | Lost], None]) -> None:
        assert self.started
        self.loaded.append(path)
        self.loads.append((path, pin, done))
        if self.prompt:
            self.answer_load()

    def answer_load(self, outcome: ProverError | Lost | None = None) -> None:
        path, _, done = self.loads.pop(0)
        done(self.info(path) if outcome is None else outcome)

    def info(self, path: str) -> KeyInfo:
        arena = self.arena.get(Path(path).stem, 256 * MIB)
        return KeyInfo(
            path=path,
            identity=identity_of(path),
            protocol="groth16",
            curve="bn254",
            constraints=1 << 14,
            n_public=1,
            n_vars=1 << 14,
            host_parts=frozenset({"G2"}),
            plans={
                "cpu": (MemoryPlan(0, 0, arena, 0),),
                "cuda": (
                    MemoryPlan(MIB, 4 * MIB, arena, 0),
                    MemoryPlan(MIB, 0, arena, 0),
                    MemoryPlan(MIB // 4, 0, arena // 4, 0),
                ),
            },
            verification_key={},
            digest=Path(path).read_text(),
            warnings=(),
        )

    def unload(self, path: str) -> None:
        self.unloaded.append(path)

    def prove(
        self, request: ProofRequest, done: Done, progress: Callable[[Progress], None] | None = None
    ) -> None:
        assert all(run.request.id != request.id for run in self.runs)
        self.requests.append(request)
        self.runs.append(Started(request, done, progress))

    def end(self, run: Started, outcome: ProofResult | ProverError | Lost | None = None) -> None:
        self.runs.remove(run)
        run.done(run.request, result(run.request.device) if outcome is None else outcome)

    def cancel(self, request_id: int) -> None:
        for run in self.runs:
            if run.request.id == request_id:
                run.cancelled = True

    def end_cancelled(self) -> None:
        for run in [run for run in self.runs if run.cancelled]:
            self.end(run, Cancelled("cancelled by the caller"))

    def shrink(self) -> None:
        self.shrinks += 1

    def keys(self) -> CacheStatistics:
        return CacheStatistics.total(())

    def workers(self) -> list[WorkerStatus]:
        return []

    def memory(self) -> int:
        return self.held

    def close(self, grace: float) -> None:
        self.closed = True
        for run in list(self.runs):
            self.end(run, Lost("closed"))


class Stage:
    """A dispatcher with three circuits, ``a``, ``b`` and ``c``; nothing happens but by the test's hand."""

    def __init__(self, folder: Path, *devices: DeviceInfo, held: int = 0, **settings: Any) -> None:
        defaults = {"memory_limit": 8192, "threads": 4, "queue_limit": 64, "proof_cache": 0}
        self.settings: EngineSettings = load_engine_settings(defaults | settings, environment={})
        self.now = 1000.0
        self.held = held
        self.executor = FakeExecutor(*(devices or (cpu(),)))
        self.files = {}
        for name in "abc":
            path = folder / f"{name}.zkey"
            path.write_text(f"key {name}")
            self.files[name] = CircuitFiles(name, str(path), None, None)
        self.dispatcher = Dispatcher(
            self.executor,
            self.settings,
            FakeTimes(),
            clock=lambda: self.now,
            held=lambda: self.held,
            relief=lambda: None,
            watermark=Watermark(
                self.settings.memory_limit * MIB, self.settings.memory_watermark, lambda: None
            ),
        )

    def submit(
        self, circuit: str = "a", *, priority: int = 0, timeout: float = 600.0, content: bytes | None = None
    ) -> ProofJob:
        job = ProofJob(circuit, priority)
        self.dispatcher.entrance.take_seat(False, timeout)
        self.dispatcher.submit(job, self.files[circuit], WitnessBytes(b"witness"), timeout, content)
        self.step()
        return job

    def step(self) -> None:
        """What is due now."""
        self.dispatcher.wake.set()
        while self.dispatcher.wake.is_set():
            self.dispatcher.wake.clear()
            self.dispatcher.step()

    def after(self, seconds: float) -> None:
        """Time passes, and what falls due on the way is done when it is due."""
        end = self.now + seconds
        while True:
            self.step()
            delay = self.dispatcher.step()
            if delay is None or self.now + delay > end:
                break
            self.now += max(delay, 1e-6)
        self.now = end
        self.step()

    def run_of(self, job: ProofJob) -> Started:
        """The only run of a job."""
        runs = [run for run in self.executor.runs if run.progress == job._reported]
        assert len(runs) == 1, f"{len(runs)} runs of {job}"
        return runs[0]

    def end(self, job: ProofJob, outcome: ProofResult | ProverError | Lost | None = None) -> None:
        """Ends its run; one that succeeds takes as long as it was predicted to."""
        run = self.run_of(job)
        if outcome is None or isinstance(outcome, ProofResult):
            self.now = max(self.now, self._ends(run))
        self.executor.end(run, outcome)
        self.step()

    def _ends(self, run: Started) -> float:
        """When the scheduler expects it to end."""
        placed = self.dispatcher._runs.by_id[run.request.id].run
        assert placed is not None
        return placed.ends

    def counted(self, **expected: int) -> None:
        """All counters, exactly: those that are not named are 0."""
        assert set(expected) <= set(COUNTERS)
        assert {k: v for k, v in self.dispatcher.counters.items() if v} == {
            k: v for k, v in expected.items() if v
        }

    def quiet(self) -> None:
        """Nothing is left of any job."""
        dispatcher = self.dispatcher
        assert not self.executor.runs
        assert not dispatcher._open
        assert not len(dispatcher._queue)
        assert not dispatcher._runs.by_id
        assert not len(dispatcher._shared)
        assert not dispatcher._headroom.waiting
        assert not dispatcher._scheduler.running
        assert dispatcher._scheduler.waiting == 0
        assert dispatcher.seats.active == 0
        assert not dispatcher._loading.waiting
        for load in dispatcher._scheduler._loads.values():
            assert (load.threads, load.own, load.pinned, load.proofs, load.alone) == (0, 0, 0, 0, False)


ROOM = CODE_BYTES
"""Bytes that the engine leaves for code beside what is held."""
