"""One proof: where it runs, and each step of it, whatever the proof system."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

from gpuprover import memory
from gpuprover.backend import Backend
from gpuprover.curves import CurveParams
from gpuprover.demand import UNLIMITED, Budget, MemoryPlan
from gpuprover.devices import (
    distrust,
    found_gpus,
    host_memory,
    is_gpu,
    open_backend,
    refused_gpu,
    resolve_device,
)
from gpuprover.errors import DeviceError, MalformedFile, OutOfMemory, UnsatisfiedWitness
from gpuprover.formats.files import Pathish
from gpuprover.job import Job
from gpuprover.systems.system import Proof, ProvingKey, is_proving_key, load_key, system_named
from gpuprover.witness_source import WitnessSource

T = TypeVar("T")


@dataclass(frozen=True)
class ProofResult:
    """A proof and how it came about.

    Attributes:
        proof: the protocol's document as snarkjs writes it; numbers are decimal strings.
        public_signals: decimal strings.
        timings: seconds by phase, those of a device that failed included.
        device: the device that made it, the CPU if another one failed.
        memory: resident bytes ``before``, at the ``peak`` and ``after``; mapped pages of the key count.
        warnings: sentences that the proof's user has to read.
    """

    proof: dict[str, Any]
    public_signals: list[str]
    timings: dict[str, float]
    device: str
    memory: dict[str, int]
    warnings: tuple[str, ...] = field(default=())


@contextmanager
def refusing_memory(what: str) -> Iterator[None]:
    """Turns the machine's refusal of memory, wherever it comes, into OutOfMemory."""
    try:
        yield
    except MemoryError as error:
        raise OutOfMemory(f"the machine refused memory for {what}: {error}") from None


def prove_placed(
    key: ProvingKey | Pathish,
    witness: WitnessSource,
    placed: Placed,
    job: Job,
    *,
    memory_limit: int | None = None,
) -> ProofResult:
    """:func:`gpuprover.prove` where somebody else has placed it: no other device takes over.

    ``memory_limit`` is as there; who places several proofs in one process bounds their sum, and gives none.
    The proof is verified, and its blinding is random.
    """
    return make_proof(key, witness, job, lambda *_: placed, device=placed.device, memory_limit=memory_limit)


def make_proof(
    key: ProvingKey | Pathish,
    witness: WitnessSource,
    job: Job,
    placed_for: Callable[[ProvingKey, int | None], Placed],
    *,
    device: str,
    memory_limit: int | None,
    verify: bool = True,
    blinding: Any = None,
) -> ProofResult:
    """The way of every proof.

    Args:
        placed_for: (key, bytes of the host's memory or None) -> where the proof runs.
        device: the device that was asked for, whose memory the witness is made ready for.
        memory_limit: MiB for the whole process, the mapped key not counted.
        verify: verify the proof before it is returned; otherwise check every point of the key.
        blinding: fixed blinding, as the system takes it; random by default.
    """
    before = memory.resident()
    memory.reset_peak()
    with refusing_memory("the proof"):
        if is_proving_key(key):
            loaded = key
        else:
            with job.phase("load key"):
                loaded = load_key(cast(Pathish, key))
        system = system_named(loaded.protocol)
        if blinding is not None:
            blinding = system.check_blinding(blinding)
        values = system.read_witness(loaded, witness, job, memory_limit, partial(host_memory, device))
        system.check_witness(loaded, values)
        # Once: what is verified is what the caller gets.
        public = system.public_signals(loaded, values)

        def limit() -> int | None:
            """Bytes that the limit leaves for a proof, whose plan counts its witness."""
            left = memory.budget(memory_limit)
            return None if left is None else left + values.nbytes

        def run(backend: Backend) -> Proof:
            left = limit()
            # The limit is on this process: how much of a GPU is taken is between its pool and what is free.
            budget = Budget(placed.budget.host if left is None else left, placed.budget.device)
            backend.plan(loaded.demand, budget)  # refused before any work
            with job.phase("check key header"):
                system.check_key(loaded, backend)
            if not verify:
                system.check_every_point(loaded, backend)
            # Every run draws its own blinding: a failed GPU's memory reveals nothing of this proof.
            proof = system.prove(loaded, values, backend, blinding, budget)
            if not verify:
                return system.in_subgroups(loaded, proof, backend)
            return system.checked(loaded, values, public, proof, backend)

        placed = placed_for(loaded, limit())
        proof, ran_on, warnings = run_placed(placed, loaded.curve, job, run)
    job.check()
    after = memory.resident()
    # The system counts in lumps: its peak may lack the last pages.
    peak = max(before, memory.peak(), after)
    return ProofResult(
        proof=system.write_proof(proof, loaded.curve),
        public_signals=[str(x) for x in public],
        timings=dict(job.timings),
        device=ran_on,
        memory={"before": before, "peak": peak, "after": after},
        warnings=(*loaded.warnings, *warnings),
    )


# Where it runs -----------------------------------------------------------------------------------


class Placed(NamedTuple):
    """Where something runs.

    Attributes:
        device: the device's own name: ``cpu``, ``cuda:0``.
        host_parts: what the CPU computes of a proof while a GPU does the rest, by name.
        warnings: sentences that say why it is not where one would expect it.
        takeover: whether the CPU takes over from a GPU that fails.
        budget: bytes of the device's memory that it may take, and of the host's where no limit says so.
    """

    device: str
    host_parts: frozenset[str] = frozenset()
    warnings: tuple[str, ...] = ()
    takeover: bool = False
    budget: Budget = UNLIMITED


def place(device: str, key: ProvingKey, job: Job, budget: int | None) -> Placed:
    """Where a proof with a key runs. ``auto`` asks the scheduler, and nothing else does.

    ``budget``: bytes of the host's memory that the proof may take.

    Raises:
        DeviceError: the device that was asked for cannot be had.
        OutOfMemory: no device holds the proof.
    """
    if device != "auto":
        return Placed(resolve_device(device))
    if not any(gpu.problem is None for gpu in found_gpus()):
        refused = refused_gpu()
        # Small circuits would not be on a GPU anyway.
        if refused is None or not _is_large(key):
            return Placed("cpu")
        return Placed("cpu", warnings=(f"{refused}; the CPU proves instead",))
    from gpuprover import calibration
    from gpuprover.scheduler import JobShape, choose

    demand = key.demand
    cpu = open_backend("cpu", key.curve, job)
    plans = {
        "cpu": tuple(cpu.plan(choice, UNLIMITED) for choice in demand.choices),
        "cuda": (_least_on_gpu(key),),
    }
    work = calibration.work_name(key.protocol, key.curve)
    shape = JobShape(work, key.constraints, plans, system_named(key.protocol).host_parts)
    chosen = choose("auto", shape, calibration.devices(job.threads, budget), calibration.load())
    return Placed(chosen.device, chosen.host_parts, takeover=True)


def _is_large(key: ProvingKey) -> bool:
    from gpuprover.scheduler import TIERS, tier_of

    return tier_of(key.constraints) is TIERS[-1]


def _least_on_gpu(key: ProvingKey) -> MemoryPlan:
    """The least that a GPU has to hold: bases are sent in slices where there is no more.

    The device's own plan is made when it is open; the choice does not wait for that.
    """
    from gpuprover.rehearsal import vectors_of

    *_, leanest = key.demand.choices
    # The witness and its digits lie there, too.
    elements = vectors_of(leanest) + 2 * leanest.witness
    return MemoryPlan(key=0, tables=0, arena=elements * key.curve.scalar.bytes, host=0)


def run_placed(
    placed: Placed, curve: CurveParams, job: Job, work: Callable[[Backend], T]
) -> tuple[T, str, tuple[str, ...]]:
    """``work`` where it was placed, or on the CPU if that takes over.

    Returns:
        the result, the device that made it, warnings.
    """
    name, warnings = placed.device, placed.warnings
    suspect = False
    try:
        backend = open_backend(name, curve, job, placed.host_parts)
        return work(backend), name, warnings
    except (DeviceError, OutOfMemory) as error:
        if not placed.takeover or not is_gpu(name):
            raise
        problem = error.message
    except (UnsatisfiedWitness, MalformedFile):
        # A GPU that computes wrongly looks the same: the CPU decides.
        if not is_gpu(name):
            raise
        suspect, problem = True, f"{name}: it made a wrong proof from a good key and witness"
    job.resume()
    result = work(open_backend("cpu", curve, job))
    if suspect:
        distrust(name, problem)
        if not placed.takeover:
            raise DeviceError(problem)
    return result, "cpu", (*warnings, f"{problem}; the CPU took over")
