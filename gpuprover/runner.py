"""One proof where it was placed, and the keys for it: the same code in the caller's process and in a worker.

An engine says what and where in a :class:`ProofRequest`, and gets a ``ProofResult`` or a ``ProverError``.
What it has to know of a circuit to decide that is a :class:`KeyInfo`. Neither needs the key itself: an engine
whose proofs are made in workers maps no key and compiles nothing.

An :class:`Executor` is where runners are: in threads of this process, in worker processes, on other machines.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Protocol

from gpuprover import calibration, forks
from gpuprover.api import Placed, ProofResult, WitnessLike, load_key, prove_placed
from gpuprover.caching import Cache, CacheStatistics
from gpuprover.curves import Group, curve_by_name
from gpuprover.demand import MemoryPlan
from gpuprover.devices import is_gpu, open_backend
from gpuprover.errors import (
    DeviceError,
    InvalidInput,
    OutOfMemory,
    ProofGenerationFailed,
    ProverError,
    about,
)
from gpuprover.formats.files import os_problem
from gpuprover.formats.groth16_json import digest, verification_key_points
from gpuprover.formats.zkey import ProvingKey
from gpuprover.job import Event, Job, Progress
from gpuprover.memory import MemoryUsage
from gpuprover.scheduler import Device, JobShape, Placement

SMALLEST_BUDGET = 1 << 20
"""Bytes at which the search for a GPU's leanest plan ends."""


_SHORT = (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOBUFS, errno.ETOOMANYREFS, errno.EPERM)
_FULL = (errno.ENOSPC, errno.EDQUOT)


def shortage(error: BaseException) -> ProverError | None:
    """What the system has refused, if that is what an exception is about: no bug, and no secret."""
    if isinstance(error, MemoryError):
        return OutOfMemory("the machine refused memory")
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return OutOfMemory("the machine refused a thread")
    if isinstance(error, OSError) and error.errno is not None:
        what = os.strerror(error.errno)
        if error.errno == errno.ENOMEM:
            return OutOfMemory(f"the machine refused memory: {what}")
        if error.errno in _FULL:
            return DeviceError(f"no space left on the disk: {what}")
        if error.errno in _SHORT:
            return DeviceError(f"the machine refused a resource: {what}")
        return DeviceError(f"the system refused: {what}")
    return None


class KeyChanged(InvalidInput):
    """The key's file is not the one that the proof was planned with: plan again."""


class Identity(NamedTuple):
    """Which file a path named, and which content of it: a file that is replaced or written has another."""

    device: int
    inode: int
    modified: int
    size: int


def identity_of(path: str) -> Identity:
    """Raises InvalidInput if there is no such file."""
    try:
        info = os.stat(path)
    except OSError as error:
        raise os_problem(path, error, "read") from None
    return Identity(info.st_dev, info.st_ino, info.st_mtime_ns, info.st_size)


@dataclass(frozen=True)
class KeyInfo:
    """What is known of a circuit without its key.

    Attributes:
        path: of the ``.zkey``, and
        identity: which content of it this is of.
        curve: its name.
        plans: memory of a proof by kind of device, the best first; what the runner has devices for.
        verification_key: snarkjs's document, without e(α, β), and
        digest: of it.
        warnings: sentences that whoever uses the key has to read.
    """

    path: str
    identity: Identity
    curve: str
    constraints: int
    n_public: int
    n_vars: int
    plans: Mapping[str, tuple[MemoryPlan, ...]]
    verification_key: dict[str, Any] = field(repr=False)
    digest: str
    warnings: tuple[str, ...]

    @property
    def shape(self) -> JobShape:
        """What the scheduler takes."""
        work = calibration.groth16(curve_by_name(self.curve))
        return JobShape(work, self.constraints, dict(self.plans), (Group.G2.value,))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> KeyInfo:
        plans = {kind: tuple(MemoryPlan(**p) for p in plans) for kind, plans in document["plans"].items()}
        identity, warnings = Identity(*document["identity"]), tuple(document["warnings"])
        return cls(**{**document, "plans": plans, "identity": identity, "warnings": warnings})


@dataclass(frozen=True)
class ProofRequest:
    """A proof to make, and where.

    Attributes:
        id: the engine's, unique among its requests.
        zkey: path of the key.
        identity: of the file that was planned with; a run that finds another one is refused.
        witness: as :func:`gpuprover.prove` takes it. Secret.
        device: ``cpu``, ``cuda:0``, ...
        threads: of the CPU, at least 1.
        host_groups: groups whose sums the CPU computes beside a GPU.
        budget: bytes of the device's memory that it may take, on a GPU with its part of the key; None: what
            it finds.
        timeout: seconds from the start of the run.
    """

    id: int
    zkey: str
    identity: Identity
    witness: WitnessLike = field(repr=False)
    device: str = "cpu"
    threads: int = 1
    host_groups: tuple[str, ...] = ()
    budget: int | None = None
    timeout: float | None = None

    @property
    def placed(self) -> Placed:
        groups = frozenset(Group(name) for name in self.host_groups)
        return Placed(self.device, groups, budget=self.budget)


def budget_of(placement: Placement) -> int | None:
    """What a proof may take of its device: of a GPU what it finds, until it has run out of memory once.

    Of the host only a lean plan says it; such a proof keeps no multiples of the key's points.
    """
    bounded = placement.step if placement.kind == "cpu" else placement.level
    return placement.shared + placement.own if bounded else None


def threads_of(placement: Placement) -> int:
    """Of the CPU, at least 1. Lean plans are for one thread, see :class:`Runner`."""
    return 1 if placement.kind == "cpu" and placement.step else max(1, placement.threads)


class Runner:
    """Makes proofs in this process, any number at once, and keeps the keys that it has mapped.

    Args:
        key_bytes: mapped keys beyond this are let go, those used longest ago first, but for pinned ones and
            those in use. Pages of a mapped key are the file's: it costs address space, and on a GPU memory.
        devices: what plans are made for: ``cpu``, names of GPUs.

    Attributes:
        keys: the mapped keys, by path and content.
    """

    def __init__(self, key_bytes: int = 1 << 40, devices: Sequence[str] = ("cpu",)) -> None:
        self.keys: Cache[tuple[str, Identity], ProvingKey] = Cache(key_bytes)
        self._devices = tuple(devices)
        self._current: dict[str, Identity] = {}
        self._pinned: set[str] = set()
        self._lock = threading.Lock()
        forks.in_child(self._in_child)

    def _in_child(self) -> None:
        self._lock = threading.Lock()

    @about("key")
    def load(self, path: str, *, pin: bool = False, job: Job | None = None) -> KeyInfo:
        """Maps a key, if it is not, and plans for it; ``pin``: it stays until :meth:`unload`.

        Raises:
            InvalidInput, MalformedFile, UnsupportedFile: see :func:`gpuprover.load_key`.
            OutOfMemory, DeviceError: no device of this runner could prove with it.
        """
        job = job or Job()
        identity = identity_of(path)
        if pin:
            with self._lock:
                self._pinned.add(path)
        with self._using(path, identity, job) as key:
            plans: dict[str, tuple[MemoryPlan, ...]] = {}
            problem: ProverError | None = None
            for name in self._devices:
                try:
                    found = _plans(name, key, job)
                except (OutOfMemory, DeviceError) as error:
                    problem = error
                else:
                    plans.setdefault("cuda" if is_gpu(name) else name, found)
            if not plans:
                raise problem or OutOfMemory("there is no device to plan for", path=path, role="key")
            return KeyInfo(
                path=path,
                identity=identity,
                curve=key.curve.name,
                constraints=key.constraints,
                n_public=key.n_public,
                n_vars=key.n_vars,
                plans=plans,
                verification_key=verification_key_points(key.vk),
                digest=digest(key.vk),
                warnings=key.warnings,
            )

    @contextmanager
    def _using(self, path: str, identity: Identity, job: Job) -> Iterator[ProvingKey]:
        """The key, mapped by whoever comes first. Of a path, the content that came last is kept."""
        name = path, identity
        with self._lock:
            before = self._current.get(path)
            self._current[path] = identity
            if before is not None and before != identity:
                self.keys.unpin((path, before))
                self.keys.drop((path, before))
            if path in self._pinned:
                self.keys.pin(name)
        with self.keys.using(name, lambda: load_key(path), lambda key: key.size, check=job.check) as key:
            yield key

    def unload(self, path: str) -> None:
        """Lets a key go, and what a GPU holds of it; proofs that run keep theirs until they end."""
        with self._lock:
            self._pinned.discard(path)
            identity = self._current.pop(path, None)
            if identity is not None:
                self.keys.unpin((path, identity))
                self.keys.drop((path, identity))

    def shrink(self) -> None:
        """Lets go of keys that nobody uses now and nobody has pinned."""
        self.keys.shrink(0)

    @about("key")  # of a witness, errors say so themselves
    def prove(
        self,
        request: ProofRequest,
        *,
        cancel: Event | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> ProofResult:
        """The proof, verified.

        Raises:
            KeyChanged: the key's file is not the one that was planned with.
            ProverError: see :func:`gpuprover.prove`; what is no ProverError comes as ProofGenerationFailed.
        """
        job = Job(threads=request.threads, cancel=cancel, timeout=request.timeout, progress=progress)
        try:
            if identity_of(request.zkey) != request.identity:
                raise KeyChanged(
                    "the file has changed since the proof was planned", path=request.zkey, role="key"
                )
            with self._using(request.zkey, request.identity, job) as key:
                return prove_placed(key, request.witness, request.placed, job)
        except ProverError:
            raise
        except Exception as error:
            short = shortage(error)
            if short is not None:
                raise type(short)(f"while proving: {short.message}", path=request.zkey, role="key") from None
            # Of an unexpected exception only its kind: its text may hold values of the witness.
            raise ProofGenerationFailed(
                f"{type(error).__name__} while proving; this is a bug in gpuprover",
                path=request.zkey,
                role="key",
            ) from None


def _plans(device: str, key: ProvingKey, job: Job) -> tuple[MemoryPlan, ...]:
    """Memory of a proof on a device, the best plan first.

    On a GPU one without tables follows, and the leanest; on a CPU that of a proof on one thread.
    """
    backend = open_backend(device, key.curve, job)
    best = backend.plan(key.plan_header, None)
    if not is_gpu(device):
        lean = open_backend(device, key.curve, Job(threads=1)).plan(key.plan_header, None)
        return (best, lean) if lean.total < best.total else (best,)
    plans = [best]
    budget = best.key + best.arena
    while budget > SMALLEST_BUDGET:
        try:
            found = backend.plan(key.plan_header, budget)
        except OutOfMemory:
            break
        # All in one step without tables, then in slices: only the last of those is of use.
        if len(plans) == 3:
            plans.pop()
        if found != plans[-1]:
            plans.append(found)
        budget = (found.key + found.tables + found.arena) * 3 // 4
    return tuple(plans)


class Lost(Exception):
    """A run came to no end: its worker or its device died. Says why, in words."""


@dataclass(frozen=True)
class WorkerStatus:
    """A place where runs happen.

    Attributes:
        name: ``cpu-0``, ``cuda:0``; ``local`` for threads of this process.
        pid: its process.
        device: that it proves on.
        state: ``starting``, ``idle``, ``busy``, ``stopping``, ``waiting`` (to be started again).
        jobs: ids of the requests that run there.
        proofs: made since it started.
        restarts: of this place, for any reason but recycling; and of them,
        silent: those of processes that lived, and said nothing.
        recycled: processes of this place that were replaced after many proofs, or for their memory.
        memory: as it last said; None before.
        problem: why it is not running; empty if it is.
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
"""Called once for each request, from any thread, and must return soon."""


class Executor(Protocol):
    """Where proofs are made. Methods may be called from any thread, and all but :meth:`close` return soon."""

    def start(self, changed: Callable[[], None]) -> None:
        """Starts what is needed, in the background; ``changed`` is called after each change of a status."""
        ...

    @property
    def devices(self) -> list[Device]:
        """What proofs may be placed on; ``proofs`` of each says how many at once. Empty until known."""
        ...

    def load(self, path: str, pin: bool, done: Callable[[KeyInfo | ProverError | Lost], None]) -> None:
        """Maps a key where proofs are made, and plans for it; pinned ones in every place, now and later."""
        ...

    def unload(self, path: str) -> None: ...

    def prove(
        self, request: ProofRequest, done: Done, progress: Callable[[Progress], None] | None = None
    ) -> None:
        """Runs a request at once, or as soon as a place for it has started."""
        ...

    def cancel(self, request_id: int) -> None:
        """Ends a run soon, by force if need be; ``done`` is called as for any other end."""
        ...

    def shrink(self) -> None:
        """Gives up memory that only makes things faster."""
        ...

    def workers(self) -> list[WorkerStatus]: ...

    @property
    def problem(self) -> str:
        """Why no proof can be made there now, but for a start that just goes on; empty without a reason."""
        ...

    def keys(self) -> CacheStatistics:
        """The caches of keys of all places together, as last known; counts since the start."""
        ...

    def memory(self) -> int:
        """Bytes that count against the limit: private memory of all places, as last known."""
        ...

    def close(self, grace: float) -> None:
        """Ends everything; runs get ``grace`` seconds, then they are Lost. Returns when nothing is left."""
        ...
