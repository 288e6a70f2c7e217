"""The contract between an engine and where its proofs are made.

An :class:`Executor` makes proofs that were placed already: in threads of this process
(:class:`gpuprover.engine.local.LocalExecutor`), in worker processes (:class:`gpuprover.workers.WorkerPool`),
on other machines. It has no policy:

- Each request has one end, and each load: its callback is called once, with a result, a ``ProverError`` or
  :class:`Lost`. Lost is no failure of the proof: its caller may ask again.
- Methods may be called from any thread, and return soon: they wait for no proof and no process, though the
  bytes of a witness may be copied. Callbacks come from any thread, also before the method has returned.
- After :meth:`~Executor.close` no proof begins; requests and loads that come then are answered all the same.

An engine says what to prove and where in a :class:`ProofRequest`. To decide that it has to know the
:class:`KeyInfo` of a circuit, never the key: an engine whose proofs are made in workers maps no key and
compiles nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from gpuprover import calibration
from gpuprover.caching import CacheStatistics
from gpuprover.curves import curve_by_name
from gpuprover.demand import MemoryPlan
from gpuprover.errors import InvalidInput, ProverError
from gpuprover.formats.files import Identity
from gpuprover.job import Progress
from gpuprover.memory import MemoryUsage
from gpuprover.proving import ProofResult
from gpuprover.scheduler import DeviceInfo, JobShape, Placement
from gpuprover.witness_source import WitnessSource


@dataclass(frozen=True)
class KeyInfo:
    """A circuit as an engine knows it, without its key.

    Attributes:
        path: the key's file.
        identity: the file's identity when it was read.
        protocol: the proof system's name.
        curve: the curve's name.
        constraints: the number of rows of the key's circuit.
        n_public: the number of public signals.
        n_vars: the number of wires, the constant 1 among them.
        host_parts: what a CPU can compute of a proof beside a GPU, by name.
        plans: memory that a proof takes, by kind of device (``cpu``, ``cuda``), the best plan first; of the
            kinds that whoever loaded the key has.
        verification_key: snarkjs's document, without e(α, β).
        digest: SHA-256 of ``verification_key``.
        warnings: sentences that whoever uses the key has to read.
    """

    path: str
    identity: Identity
    protocol: str
    curve: str
    constraints: int
    n_public: int
    n_vars: int
    host_parts: frozenset[str]
    plans: Mapping[str, tuple[MemoryPlan, ...]]
    verification_key: dict[str, Any] = field(repr=False)
    digest: str
    warnings: tuple[str, ...]

    @property
    def shape(self) -> JobShape:
        """The circuit as the scheduler takes it."""
        work = calibration.work_name(self.protocol, curve_by_name(self.curve))
        return JobShape(work, self.constraints, dict(self.plans), self.host_parts)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "host_parts": sorted(self.host_parts)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> KeyInfo:
        plans = {kind: tuple(MemoryPlan(**p) for p in plans) for kind, plans in document["plans"].items()}
        identity, warnings = Identity(*document["identity"]), tuple(document["warnings"])
        parts = frozenset(document["host_parts"])
        known = {"identity": identity, "plans": plans, "host_parts": parts, "warnings": warnings}
        return cls(**{**document, **known})


@dataclass(frozen=True)
class ProofRequest:
    """A proof to make, and where.

    Attributes:
        id: the engine's number for it, unique among its requests.
        path: the key's file.
        identity: of the file that was planned with; a run that finds another one is refused.
        witness: what the caller gave. Secret.
        device: ``cpu``, ``cuda:0``, ...
        threads: threads of the CPU, at least 1.
        host_parts: parts of the proof that the CPU computes beside a GPU, by name (``G2``).
        budget: bytes of the device's memory that it may take, on a GPU with its part of the key; None: what
            it finds.
        timeout: seconds from the start of the run.
    """

    id: int
    path: str
    identity: Identity
    witness: WitnessSource = field(repr=False)
    device: str = "cpu"
    threads: int = 1
    host_parts: frozenset[str] = frozenset()
    budget: int | None = None
    timeout: float | None = None


def budget_of(placement: Placement) -> int | None:
    """Bytes that a proof may take of its device; None: as many as it finds.

    A GPU's memory is bounded after the proof has run out of it once, the host's by a lean plan alone; such a
    proof keeps no multiples of the key's points.
    """
    bounded = placement.step if placement.kind == "cpu" else placement.level
    return placement.shared + placement.own if bounded else None


def threads_of(placement: Placement) -> int:
    """Threads of the CPU for a run, at least 1. A lean plan on the CPU is one for one thread."""
    return 1 if placement.kind == "cpu" and placement.step else max(1, placement.threads)


class KeyChanged(InvalidInput):
    """The key's file is not the one that the proof was planned with: plan again."""


class Lost(Exception):
    """A run came to no end: its worker or its device died. Says why, in words."""


@dataclass(frozen=True)
class WorkerStatus:
    """A worker, or the threads of this process, where runs happen.

    Attributes:
        name: ``cpu-0``, ``cuda:0``; ``local`` for threads of this process.
        pid: the process; None where none runs now.
        device: name of the device that it proves on.
        state: ``starting``, ``idle``, ``busy``, ``stopping``, ``waiting`` (to be started again).
        jobs: ids of the requests that run there.
        proofs: the number of proofs since the process started.
        restarts: starts of further processes of that name, for any reason but recycling.
        memory: what the process holds, as it said last; None before.
        problem: why nothing runs there; empty if it does.
        silent: restarts of processes that lived, and said nothing.
        recycled: processes of that name that were replaced after many proofs, or for their memory.
    """

    name: str
    pid: int | None
    device: str
    state: str
    jobs: tuple[int, ...]
    proofs: int
    restarts: int
    memory: MemoryUsage | None
    problem: str = ""
    silent: int = 0
    recycled: int = 0


Done = Callable[[ProofRequest, "ProofResult | ProverError | Lost"], None]
"""The end of a request: called once for each, from any thread; it must return soon."""

Loaded = Callable[["KeyInfo | ProverError | Lost"], None]
"""The end of a load: called once for each, from any thread; it must return soon."""


class Executor(Protocol):
    """Where proofs are made, see the module. All methods but :meth:`close` return soon."""

    def start(self, changed: Callable[[], None]) -> None:
        """Starts what is needed, in the background; called once.

        Args:
            changed: called, from any thread, after each change of :attr:`devices`, :meth:`workers` or
                :attr:`problem`; it must return soon.

        Raises:
            OutOfMemory, DeviceError: the system refuses what a start needs.
        """
        ...

    @property
    def devices(self) -> list[DeviceInfo]:
        """Devices that proofs may be placed on, and how many at once (``proofs``). Empty until known."""
        ...

    def load(self, path: str, pin: bool, done: Loaded) -> None:
        """Maps a key where proofs are made, and plans for it; a pinned one in every worker, now and later."""
        ...

    def unload(self, path: str) -> None:
        """Lets a key go, pinned or not; proofs that run keep theirs until they end."""
        ...

    def prove(
        self, request: ProofRequest, done: Done, progress: Callable[[Progress], None] | None = None
    ) -> None:
        """Runs a request at once, or as soon as a worker for it has started. ``progress``: called now and
        then, from any thread; it must return soon."""
        ...

    def cancel(self, request_id: int) -> None:
        """Ends a run soon, by force if need be; its ``done`` is called as for any other end. An id that is
        not known is ignored."""
        ...

    def shrink(self) -> None:
        """Gives up memory that only makes things faster."""
        ...

    def workers(self) -> list[WorkerStatus]:
        """How each worker is, as last known."""
        ...

    @property
    def problem(self) -> str:
        """Why no proof can be made there now, but for a start that just goes on; empty without a reason."""
        ...

    def keys(self) -> CacheStatistics:
        """The caches of keys of all workers together, as last known; counts since the start."""
        ...

    def memory(self) -> int:
        """Bytes that count against the limit: private memory of all workers, as last known."""
        ...

    def close(self, grace: float) -> None:
        """Ends everything; runs get ``grace`` seconds, then they are Lost. Returns when nothing is left."""
        ...
