"""One proof where it was placed, and the keys for it: the same code in the caller's process and in a worker.

A :class:`Runner` is what every executor (:mod:`gpuprover.executor`) has at its end: it maps the key of a
request, proves and verifies.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from gpuprover import forks
from gpuprover.caching import Cache
from gpuprover.demand import UNLIMITED, Budget, MemoryPlan
from gpuprover.devices import is_gpu, open_backend
from gpuprover.errors import DeviceError, OutOfMemory, ProofGenerationFailed, ProverError, about, shortage
from gpuprover.executor import KeyChanged, KeyInfo, ProofRequest
from gpuprover.formats.files import Identity, identity_of
from gpuprover.job import Event, Job, Progress
from gpuprover.proving import Placed, ProofResult, prove_placed
from gpuprover.systems.system import ProvingKey, load_key, system_named

SMALLEST_BUDGET = 1 << 20
"""Bytes at which the search for a GPU's leanest plan ends."""


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
                protocol=key.protocol,
                curve=key.curve.name,
                constraints=key.constraints,
                n_public=key.n_public,
                n_vars=key.n_vars,
                host_parts=system_named(key.protocol).host_parts,
                plans=plans,
                verification_key=key.vk.document,
                digest=key.vk.digest,
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
            if identity_of(request.path) != request.identity:
                raise KeyChanged(
                    "the file has changed since the proof was planned", path=request.path, role="key"
                )
            with self._using(request.path, request.identity, job) as key:
                return prove_placed(key, request.witness, _placed(request), job)
        except ProverError:
            raise
        except Exception as error:
            short = shortage(error)
            if short is not None:
                raise type(short)(f"while proving: {short.message}", path=request.path, role="key") from None
            # Of an unexpected exception only its kind: its text may hold values of the witness.
            raise ProofGenerationFailed(
                f"{type(error).__name__} while proving; this is a bug in gpuprover",
                path=request.path,
                role="key",
            ) from None


def _placed(request: ProofRequest) -> Placed:
    gpu, bytes_ = is_gpu(request.device), request.budget
    budget = Budget(device=bytes_) if gpu else Budget(host=bytes_)
    return Placed(request.device, request.host_parts, budget=budget)


def _plans(device: str, key: ProvingKey, job: Job) -> tuple[MemoryPlan, ...]:
    """Memory of a proof on a device, the best plan first.

    On a GPU one without tables follows, and the leanest; on a CPU that of a proof on one thread, and the one
    of the leanest demand.
    """
    backend = open_backend(device, key.curve, job)
    best = backend.plan(key.demand, UNLIMITED)
    plans = [best]
    if not is_gpu(device):
        one = open_backend(device, key.curve, Job(threads=1))
        *_, leanest = key.demand.choices
        for demand in (key.demand, leanest):
            found = one.plan(demand, UNLIMITED)
            if found.total < plans[-1].total:
                plans.append(found)
        return tuple(plans)
    budget = best.key + best.arena
    while budget > SMALLEST_BUDGET:
        try:
            found = backend.plan(key.demand, Budget(device=budget))
        except OutOfMemory:
            break
        # All in one step without tables, then in slices: only the last of those is of use.
        if len(plans) == 3:
            plans.pop()
        if found != plans[-1]:
            plans.append(found)
        budget = (found.key + found.tables + found.arena) * 3 // 4
    return tuple(plans)
