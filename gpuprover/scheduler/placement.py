"""Placement: on which device one proof runs, with how many threads and how much memory, and why.

:func:`propose` says what a proof would be on one device, or why it cannot be there. :func:`place` takes the
device where it is predicted to end first, ties to the freest; :func:`choose` does so within what the user
asked for, and is all that the library calls.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import NamedTuple, Protocol

from gpuprover.demand import MemoryPlan
from gpuprover.errors import DeviceError, InvalidInput, OutOfMemory, ProverError

UNTRIED = 1 << 13
"""Constraints below which a GPU that nobody has measured is not tried: a prediction from published times of
sums of that many points, where launches alone take as long as a CPU."""
LOAD_RATE = 7e9
"""Bytes of a key a second to a GPU: a prediction, from what keys that stay there are published to save."""
TABLE_RATE = 1e10
"""Bytes of tables a second that a GPU computes: a prediction, from the multiplications of their doublings."""
SPLIT_GAIN = 1.1
"""A proof is split between GPU and host if that is predicted to make it so many times faster."""


class Tier(NamedTuple):
    """A class of circuits: at most so many constraints; bytes to reckon with while no plan is known."""

    name: str
    largest: float
    memory: int


TIERS = (
    Tier("simple", 999, 1 << 30),
    Tier("medium", 10_000, 4 << 30),
    Tier("complex", float("inf"), 16 << 30),
)


def tier_of(constraints: int) -> Tier:
    return next(tier for tier in TIERS if constraints <= tier.largest)


@dataclass(frozen=True)
class DeviceInfo:
    """What a machine offers.

    Attributes:
        name: ``cpu``, ``cuda:0``, ...
        kind: ``cpu`` or ``cuda``: what plans are made for.
        model: the processor's or the GPU's name, for which times are kept.
        path: the code that runs there (``ifma``, ``portable``, ``sm_90``), for which times are kept.
        threads: the CPU's threads; 0 on other devices.
        memory: bytes that proofs may take here, the least of limits and what is free; None: no limit known.
        proofs: the most proofs at once; None: as many as there is memory (and, on a CPU, threads) for.
        problem: why it cannot be used, and what to do about it; empty if it can.
        uuid: the GPU's or MIG instance's id, ``GPU-...`` or ``MIG-...``.
    """

    name: str
    kind: str
    model: str = ""
    path: str = ""
    threads: int = 0
    memory: int | None = None
    proofs: int | None = None
    problem: str = ""
    uuid: str = ""


@dataclass(frozen=True)
class JobShape:
    """What placement knows of a proof.

    Attributes:
        work: the name that its times are kept under, such as ``groth16 bn254``.
        constraints: the circuit's.
        plans: memory by kind of device, the best first (with all tables; without; in chunks). A kind that is
            missing cannot prove it; without any, the tier's memory is reckoned with on every kind.
        host_parts: parts that the host may do while a GPU does the rest, by name, such as ``G2``.
    """

    work: str
    constraints: int
    plans: Mapping[str, Sequence[MemoryPlan]] = field(default_factory=dict)
    host_parts: frozenset[str] = frozenset()

    @property
    def tier(self) -> Tier:
        return tier_of(self.constraints)

    def plans_for(self, kind: str) -> Sequence[MemoryPlan]:
        return self.plans.get(kind, ()) if self.plans else [MemoryPlan(0, 0, self.tier.memory, 0)]

    def __str__(self) -> str:
        return f"{self.tier.name} ({self.constraints:,} constraints)"


class Times(Protocol):
    """Predicted seconds; :mod:`gpuprover.calibration` has them."""

    def seconds(
        self, work: str, device: DeviceInfo, constraints: int, threads: int, part: str | None = None
    ) -> float:
        """Of a whole proof, or of a part of it, alone on the device."""
        ...

    def measured(self, work: str, device: DeviceInfo) -> bool:
        """Whether measurements of this very device stand behind them."""
        ...


class Degrade(IntEnum):
    """What a proof that ran out of memory is tried with next; each step includes those before it.

    ON_CPU is also what is left after a device that failed.
    """

    NONE = 0
    ALONE = 1
    NO_TABLES = 2
    CHUNKED = 3
    ON_CPU = 4


@dataclass(frozen=True)
class Placement:
    """Where and how a proof runs.

    Attributes:
        device, kind: name and kind of the :class:`DeviceInfo`.
        threads: CPU threads: of the proof, or of ``host_parts``; 0 for a GPU alone.
        plan: the memory that it may take, the one of index ``step`` among those for the kind.
        host_parts: parts that the CPU does while the GPU does the rest.
        host_memory: bytes of the host's memory that a proof on a GPU takes.
        seconds: predicted, ``loading`` of them for the key's way to the device.
        level: how far the proof has come down, for want of memory or of a device.
        reason: all of it in words.
    """

    device: str
    kind: str
    threads: int
    plan: MemoryPlan
    step: int
    host_parts: frozenset[str]
    host_memory: int
    seconds: float
    loading: float
    level: Degrade
    reason: str = ""

    @property
    def shared(self) -> int:
        """Bytes of the device's memory that proofs with one key share; none on a CPU, where it is mapped."""
        return 0 if self.kind == "cpu" else self.plan.key + self.plan.tables

    @property
    def own(self) -> int:
        """Bytes of the device's memory that this proof takes for itself."""
        plan = self.plan
        return plan.tables + plan.arena + plan.host if self.kind == "cpu" else plan.arena


def propose(
    shape: JobShape,
    device: DeviceInfo,
    times: Times,
    *,
    threads: int,
    host: DeviceInfo | None = None,
    level: Degrade = Degrade.NONE,
    loaded: bool = False,
) -> Placement | str:
    """A proof on a device of which nothing is taken, or why it cannot be there.

    ``threads`` of the CPU are free for it: beside a GPU, for parts that the ``host`` does meanwhile.
    ``loaded``: the key is there.
    """
    if device.problem:
        return device.problem
    on_cpu = device.kind == "cpu"
    if level is Degrade.ON_CPU and not on_cpu:
        return "it failed there"
    plans = shape.plans_for(device.kind)
    if not plans:
        return f"no backend for {device.kind} can prove it"
    first = 0 if level is Degrade.ON_CPU else min(max(0, level - Degrade.ALONE), len(plans) - 1)
    seconds = times.seconds(shape.work, device, shape.constraints, threads if on_cpu else 1)
    options = [
        Placement(
            device=device.name,
            kind=device.kind,
            threads=threads if on_cpu else 0,
            plan=plan,
            step=step,
            host_parts=frozenset(),
            host_memory=0 if on_cpu else plan.host,
            seconds=seconds,
            loading=0.0,
            level=level,
        )
        for step, plan in enumerate(plans[first:], first)
    ]
    here = [p for p in options if _holds(device, p.shared + p.own)]
    if not here:
        need = options[-1].shared + options[-1].own
        return f"needs {format_size(need)}, {format_size(device.memory or 0)} are free"
    if on_cpu:
        return here[0]
    if host is not None:
        need = here[-1].host_memory
        here = [p for p in here if _holds(host, p.host_memory)]
        if not here:
            return f"needs {format_size(need)} of the host, {format_size(host.memory or 0)} are free"
    found = here[0]
    if host is not None and threads and level is Degrade.NONE:
        splits = _splits(shape, device, times, threads, host, found)
        found = min([found, *splits], key=lambda p: p.seconds)
    loading = 0.0 if loaded else found.plan.key / LOAD_RATE + found.plan.tables / TABLE_RATE
    return replace(found, seconds=found.seconds + loading, loading=loading)


def _holds(device: DeviceInfo, size: int) -> bool:
    return device.memory is None or size <= device.memory


def _splits(
    shape: JobShape, device: DeviceInfo, times: Times, threads: int, host: DeviceInfo, whole: Placement
) -> Iterator[Placement]:
    """The proof with a part of it on the host, where both were measured and it is predicted to pay."""
    if not (times.measured(shape.work, device) and times.measured(shape.work, host)):
        return
    # A part takes less than the whole proof would; how much less is not worth a plan of its own.
    memory = whole.host_memory + max((p.tables + p.arena for p in shape.plans_for("cpu")[-1:]), default=0)
    for part in sorted(shape.host_parts) if _holds(host, memory) else ():
        there = whole.seconds - times.seconds(shape.work, device, shape.constraints, 1, part)
        here = times.seconds(shape.work, host, shape.constraints, threads, part)
        if max(there, here) * SPLIT_GAIN < whole.seconds:
            yield replace(
                whole,
                threads=threads,
                host_parts=frozenset([part]),
                host_memory=memory,
                seconds=max(there, here),
            )


def sift(
    shape: JobShape, devices: Sequence[DeviceInfo], times: Times, proposals: Sequence[Placement | str]
) -> tuple[list[Placement], list[str]]:
    """The placements to choose from, and in words why each other device is none."""
    out = [f"{d.name}: {p}" for d, p in zip(devices, proposals, strict=True) if isinstance(p, str)]
    found = [(d, p) for d, p in zip(devices, proposals, strict=True) if not isinstance(p, str)]
    if shape.constraints < UNTRIED and any(d.kind == "cpu" for d, _ in found):
        for d, p in list(found):
            if d.kind != "cpu" and not times.measured(shape.work, d):
                found.remove((d, p))
                out.append(f"{d.name}: below {UNTRIED:,} constraints it has to be measured first")
    return [p for _, p in found], out


def nothing_fits(shape: JobShape, devices: Sequence[DeviceInfo], out: Sequence[str]) -> ProverError:
    """The error for a proof that no device can take."""
    kind = DeviceError if all(device.problem for device in devices) else OutOfMemory
    return kind(f"{shape}: no device can prove it: {'; '.join(out) or 'there is none'}")


def explain(
    shape: JobShape, device: DeviceInfo, chosen: Placement, others: Sequence[Placement], out: Sequence[str]
) -> str:
    """A placement in words, for status, logs and ``doctor``."""
    where = device.name
    if chosen.kind == "cpu":
        where += f", {chosen.threads} thread{'s' if chosen.threads != 1 else ''}"
    free = "" if device.memory is None else f" of {format_size(device.memory)} free"
    where += f", {format_size(chosen.shared + chosen.own)}{free}"
    if chosen.host_parts:
        where += f", {' and '.join(sorted(chosen.host_parts))} on {chosen.threads} threads of the CPU"
    against = ", ".join(f"{format_seconds(p.seconds)} on {p.device}" for p in others)
    when = f"predicted {format_seconds(chosen.seconds)}{f' against {against}' if against else ''}"
    why = "failed elsewhere" if chosen.level is Degrade.ON_CPU else "out of memory"
    down = [f"{why} before: {chosen.level.name.lower().replace('_', ' ')}"] if chosen.level else []
    return f"{shape}: {'; '.join([where, when, *down, *(f'not {reason}' for reason in out)])}"


def format_size(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB" if size >= 1 << 30 else f"{-(-size // (1 << 20))} MiB"


def format_seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


def place(
    shape: JobShape,
    devices: Sequence[DeviceInfo],
    times: Times,
    *,
    level: Degrade = Degrade.NONE,
    loaded: Collection[str] = (),
) -> Placement:
    """Where one proof runs on a machine that does nothing else; ``loaded`` names the GPUs that have its key.

    Raises:
        OutOfMemory: no device holds it; the message says for each why not.
        DeviceError: no device can be used.
    """
    return _place(shape, devices, devices, times, level, loaded)


def choose(
    setting: str,
    shape: JobShape,
    devices: Sequence[DeviceInfo],
    times: Times,
    *,
    loaded: Collection[str] = (),
) -> Placement:
    """Where the library runs a proof.

    Args:
        setting: what ``--device`` says: ``auto``; a kind (``cuda``: the best GPU); or a name (``cuda:1``).
        shape: the proof's size, work and memory plans.
        devices: what the machine has, the CPU among them; those that cannot be used with their problem.
        times: :func:`gpuprover.calibration.load`.
        loaded: names of the GPUs that have its key.

    Raises:
        InvalidInput: no such device here.
        DeviceError: what was asked for cannot be used; the message is its problem.
        OutOfMemory: the proof does not fit where it may run.
    """
    asked = [d for d in devices if setting in ("auto", d.kind, d.name)]
    if not asked:
        known = ", ".join(dict.fromkeys(["auto", *(name for d in devices for name in (d.kind, d.name))]))
        raise InvalidInput(f"device: expected one of {known}; found {setting[:40]!r}")
    if all(d.problem for d in asked):
        raise DeviceError(f"device {setting!r} is not available: {asked[0].problem}")
    return _place(shape, asked, devices, times, Degrade.NONE, loaded)


def _place(
    shape: JobShape,
    devices: Sequence[DeviceInfo],
    machine: Sequence[DeviceInfo],
    times: Times,
    level: Degrade,
    loaded: Collection[str],
) -> Placement:
    host = next((d for d in machine if d.kind == "cpu"), None)
    threads = host.threads if host is not None else 0
    proposals = [
        propose(shape, d, times, threads=threads, host=host, level=level, loaded=d.name in loaded)
        for d in devices
    ]
    found, out = sift(shape, devices, times, proposals)
    if not found:
        raise nothing_fits(shape, devices, out)
    by_name = {d.name: d for d in devices}

    def free(name: str) -> float:
        memory = by_name[name].memory
        return float("inf") if memory is None else memory

    chosen, *others = sorted(found, key=lambda p: (p.seconds, -free(p.device)))
    return replace(chosen, reason=explain(shape, by_name[chosen.device], chosen, others, out))
