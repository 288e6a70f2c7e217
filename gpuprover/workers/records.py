"""What the supervisor of workers keeps: its settings, and what it knows of runs, keys and processes."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from gpuprover.caching import CacheStatistics
from gpuprover.errors import ProverError
from gpuprover.executor import Done, KeyInfo, Loaded, Lost, ProofRequest, WorkerStatus
from gpuprover.job import Progress
from gpuprover.memory import MemoryUsage
from gpuprover.messages import Channel
from gpuprover.processes import Backoff, Child
from gpuprover.settings import WORKER_BYTES
from gpuprover.workers.wire import Parcel

Report = Callable[[Progress], None]


@dataclass(frozen=True)
class PoolSettings:
    """What a :class:`WorkerPool` may use, and how patient it is. Bytes and seconds.

    Attributes:
        threads: of the CPU, for all workers together; each request says how many it takes.
        min_workers, max_workers: CPU workers that are kept, from 0, and that there may be, from 1.
        gpus: names of GPUs to prove on, one worker each; None: all that can be used; (): none.
        gpu_proofs: at most so many at once on a GPU; None: as many as its memory holds.
        memory_limit: for workers, this process and proofs together; None for no limit.
        key_bytes: mapped keys that one worker keeps.
        warm: with a pinned key, load what proofs with it run before the first one comes.
        max_proofs: a worker that has made so many is replaced.
        memory_mark: a worker that holds more private memory while it does nothing is replaced, on a GPU one
            that holds so much more than at its start; None: never.
        wait: proofs wait so long for a worker while none starts for want of something, before they fail.
        idle: after so long without work, workers beyond the minimum end.
        heartbeat: a worker that is silent so long is taken for dead.
        init: so long may pass between two steps of a worker's start.
        stall: a worker with proofs that neither reports on them nor computes so long is taken for dead.
        grace: for a worker to answer a cancellation, or to notice that a time limit is reached.
        backoff: (first, factor, cap, jitter) of the delay before a worker is started again;
        rest: of that before a GPU is tried again that has failed under several processes in a row.
    """

    threads: int = 1
    min_workers: int = 1
    max_workers: int = 1
    gpus: tuple[str, ...] | None = None
    gpu_proofs: int | None = None
    memory_limit: int | None = None
    key_bytes: int = 1 << 40
    warm: bool = False
    max_proofs: int = 500
    memory_mark: int | None = None
    wait: float = 300.0
    idle: float = 60.0
    heartbeat: float = 15.0
    init: float = 120.0
    stall: float = 120.0
    grace: float = 5.0
    backoff: tuple[float, float, float, float] = (0.1, 2.0, 10.0, 0.2)
    rest: tuple[float, float, float, float] = (60.0, 2.0, 600.0, 0.0)


@dataclass(eq=False)
class Run:
    """A request that was taken and has not ended; at ``due`` it is ended by force, with ``error``."""

    request: ProofRequest
    parcel: Parcel
    done: Done
    progress: Report | None
    worker: Worker | None = None
    due: float | None = None
    error: ProverError | None = None


@dataclass(eq=False)
class Load:
    """A key to load.

    ``asked``: for each kind of device that has not answered, the worker that was asked, if there was one yet.
    """

    path: str
    pin: bool
    done: Loaded
    asked: dict[str, Worker | None] | None = None
    found: list[KeyInfo] = field(default_factory=list)
    problem: ProverError | Lost | None = None
    tries: int = 0


@dataclass(eq=False)
class Worker:
    """One process.

    Attributes:
        heard, moved: when it last said anything, and when its start or its proofs last went on.
        cpu: seconds that it has computed.
        pins: keys that it keeps.
        surveys: it looks for GPUs when it starts.
        at_rest: bytes that it held when it did nothing.
        base: of them, what a worker on a GPU had from the start: CUDA's own.
        stopping: it was asked to end, and takes no more runs.
        leave: when it is killed if it has not ended.
        wear: why another one shall take its place.
        fault: what is wrong with it; and as strangers may read it, if that is another text,
        told: without paths and what others wrote.
        failed: it said itself why it cannot start.
        failed_device: the failure of its GPU has been counted.
    """

    place: Place
    child: Child
    channel: Channel
    connection: socket.socket
    born: float
    heard: float
    moved: float
    idle_since: float
    pins: set[str]
    ready: bool = False
    runs: dict[int, Run] = field(default_factory=dict)
    loads: dict[int, str] = field(default_factory=dict)
    surveys: bool = False
    cpu: float = 0.0
    proofs: int = 0
    memory: MemoryUsage | None = None
    keys: CacheStatistics = field(default_factory=lambda: CacheStatistics.total(()))
    at_rest: int = WORKER_BYTES
    base: int = 0
    stopping: bool = False
    leave: float | None = None
    wear: str = ""
    fault: str = ""
    told: str = ""
    failed: bool = False
    failed_device: bool = False

    @property
    def open(self) -> bool:
        return self.ready and not self.stopping


@dataclass(eq=False)
class Place:
    """Where one worker is at a time.

    Attributes:
        successor: starts to take the worker's turn.
        again: the earliest time of the next start.
        failures: of starts, in a row, the first at ``failing``; ``faults`` of them, in a row up to the
            last, are the workers' own: they would fail again.
        device_failures: processes in a row that failed with the device, see ``DEVICE_TRIES``.
        rest: before the device is tried again, after too many of them.
        closing: it ends with its worker.
    """

    name: str
    device: str
    backoff: Backoff
    rest: Backoff
    worker: Worker | None = None
    successor: Worker | None = None
    again: float = 0.0
    failures: int = 0
    failing: float = 0.0
    faults: int = 0
    device_failures: int = 0
    restarts: int = 0
    silent: int = 0
    recycled: int = 0
    closing: bool = False
    problem: str = ""

    def workers(self) -> list[Worker]:
        return [worker for worker in (self.worker, self.successor) if worker is not None]


def own_bytes(usage: MemoryUsage) -> int:
    """What no file backs."""
    return usage.rss - (usage.external or 0)


def status_of(place: Place) -> WorkerStatus:
    worker = place.worker
    if worker is None:
        state = "waiting"
    elif worker.stopping:
        state = "stopping"
    elif not worker.ready:
        state = "starting"
    else:
        state = "busy" if worker.runs else "idle"
    return WorkerStatus(
        name=place.name,
        pid=None if worker is None else worker.child.pid,
        device=place.device,
        state=state,
        jobs=() if worker is None else tuple(worker.runs),
        proofs=0 if worker is None else worker.proofs,
        restarts=place.restarts,
        silent=place.silent,
        recycled=place.recycled,
        memory=None if worker is None else worker.memory,
        problem=place.problem if worker is None or not worker.ready else "",
    )
