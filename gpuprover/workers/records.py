"""Records of the supervisor of workers: its settings, requests, processes and slots."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from gpuprover.caching import CacheStatistics
from gpuprover.errors import ProverError
from gpuprover.executor import Done, ProofRequest, WorkerStatus
from gpuprover.job import Progress
from gpuprover.memory import MemoryUsage
from gpuprover.messages import Channel
from gpuprover.processes import Backoff, Child
from gpuprover.settings import WORKER_BYTES
from gpuprover.workers.wire import Parcel

Report = Callable[[Progress], None]


@dataclass(frozen=True)
class PoolSettings:
    """Resources that a :class:`WorkerPool` may use, and its patience.

    Those that are settings of a prover have their names and units: MiB and seconds.

    Attributes:
        threads: threads of the CPU, for all workers together; each request says how many it takes.
        min_workers, max_workers: CPU workers that are kept, from 0, and that there may be, from 1.
        gpus: names of GPUs to prove on, one worker each; None: all that can be used; (): none.
        gpu_proofs: the most proofs at once on a GPU; None: as many as its memory holds.
        memory_limit: MiB for workers, this process and proofs together; None for no limit.
        key_cache: MiB of mapped keys that one worker keeps.
        warm: load what proofs with a pinned key run before the first one comes.
        max_proofs_per_worker: a worker that has made so many is replaced.
        worker_memory: MiB; a worker that holds more private memory while it does nothing is replaced, on a
            GPU one that holds so much more than at its start; None: never.
        worker_wait: seconds that proofs wait for a worker while none starts for want of something, before
            they fail.
        idle_timeout: seconds without work after which workers beyond the minimum end.
        heartbeat_timeout: seconds after which a worker that says nothing is taken for dead.
        init_timeout: seconds that may pass between two steps of a worker's start.
        stall_timeout: seconds after which a worker with proofs that neither reports on them nor computes is
            taken for dead.
        response_time: seconds for a worker to answer a cancellation, or to notice that a time limit is
            reached.
        backoff: (first, factor, cap, jitter) of the delay before a worker is started again.
        rest: the same of the delay before a GPU is tried again that has failed under several processes in a
            row.
    """

    threads: int = 1
    min_workers: int = 1
    max_workers: int = 1
    gpus: tuple[str, ...] | None = None
    gpu_proofs: int | None = None
    memory_limit: int | None = None
    key_cache: int = 1 << 20
    warm: bool = False
    max_proofs_per_worker: int = 500
    worker_memory: int | None = None
    worker_wait: float = 300.0
    idle_timeout: float = 60.0
    heartbeat_timeout: float = 15.0
    init_timeout: float = 120.0
    stall_timeout: float = 120.0
    response_time: float = 5.0
    backoff: tuple[float, float, float, float] = (0.1, 2.0, 10.0, 0.2)
    rest: tuple[float, float, float, float] = (60.0, 2.0, 600.0, 0.0)


@dataclass(eq=False)
class OpenRequest:
    """A request that was taken and has not ended.

    Attributes:
        parcel: the message for the worker; closed at the end.
        worker: where it runs; None while it waits for one.
        due: when it is ended by force, with ``error``; None: never.
    """

    request: ProofRequest
    parcel: Parcel
    done: Done
    progress: Report | None
    worker: Worker | None = None
    due: float | None = None
    error: ProverError | None = None


@dataclass(eq=False)
class Worker:
    """One process. Times are those of ``time.monotonic``.

    Attributes:
        born: when it was started.
        heard: when it last said anything.
        moved: when its start or its proofs last went on.
        idle_since: when it last ended something.
        pins: keys that it keeps.
        ready: it has started.
        runs: what it proves, by id.
        surveys: it looks for GPUs when it starts.
        cpu: seconds that it has computed.
        proofs: proofs made or failed.
        memory: what it holds, as it said last.
        keys: its cache of keys, as it said last.
        at_rest: bytes that it held when it did nothing.
        base: bytes of ``at_rest`` that a worker on a GPU had from the start: CUDA's own.
        stopping: it was asked to end, and takes no more requests.
        leave: when it is killed if it has not ended.
        wear: why another one should take its turn; empty without a reason.
        fault: what is wrong with it; empty if nothing is.
        told: ``fault`` as strangers may read it, without paths and what others wrote; empty: as it is.
        failed: it said itself why it cannot start.
        failed_device: the failure of its GPU has been counted.
    """

    slot: Slot
    child: Child
    channel: Channel
    connection: socket.socket
    born: float
    heard: float
    moved: float
    idle_since: float
    pins: set[str]
    ready: bool = False
    runs: dict[int, OpenRequest] = field(default_factory=dict)
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
        """Whether it takes requests."""
        return self.ready and not self.stopping


@dataclass(eq=False)
class Slot:
    """Where one worker is at a time: ``cpu-0``, ``cuda:0``.

    Attributes:
        worker: the one that proves; None where none runs now.
        successor: starts to take the worker's turn.
        again: the earliest time of the next start.
        failures: failed starts in a row.
        failing: when the first of them was.
        faults: failures in a row, up to the last, that are the workers' own: they would fail again.
        device_failures: processes in a row that failed with the device.
        backoff: delays before the next start.
        rest: delays before the device is tried again, after too many failures of it.
        restarts, silent, recycled: as :class:`WorkerStatus` has them.
        closing: it ends with its worker.
        problem: why nothing runs there, as strangers may read it.
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
    """Bytes that no file backs."""
    return usage.rss - (usage.external or 0)


def status_of(slot: Slot) -> WorkerStatus:
    """The status of a slot's worker."""
    worker = slot.worker
    if worker is None:
        state = "waiting"
    elif worker.stopping:
        state = "stopping"
    elif not worker.ready:
        state = "starting"
    else:
        state = "busy" if worker.runs else "idle"
    return WorkerStatus(
        name=slot.name,
        pid=None if worker is None else worker.child.pid,
        device=slot.device,
        state=state,
        jobs=() if worker is None else tuple(worker.runs),
        proofs=0 if worker is None else worker.proofs,
        restarts=slot.restarts,
        silent=slot.silent,
        recycled=slot.recycled,
        memory=None if worker is None else worker.memory,
        problem=slot.problem if worker is None or not worker.ready else "",
    )
