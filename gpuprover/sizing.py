"""Proofs that a machine makes in an hour and memory for them, by the common formula and by measured times.

The formula that capacity guides of proof servers give is

    proofs an hour = cores / "proofs per core" × 3600 / seconds of a proof

so that 8 cores, 2 "proofs per core" and 15 s make 960. It divides by what it calls proofs per core: that is
the number of cores that one proof occupies, called ``cores_per_proof`` here. What else the formula does not
know comes with every estimate, in words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

from gpuprover.calibration import Calibration
from gpuprover.demand import MemoryPlan
from gpuprover.machine import available_cpus, cgroup_memory_limit, machine_memory
from gpuprover.memory import MIB
from gpuprover.scheduler import TIERS, DeviceInfo, Tier
from gpuprover.scheduler.placement import format_seconds, format_size
from gpuprover.settings import WORKER_BYTES

HOUR = 3600.0
BUSY = 0.7
"""Share of the highest rate to plan for: at all of it, a queue of requests that come at random has no end."""
SMALLEST_TIER = 512 * MIB
"""Where the lowest tier of memory begins; the others begin where the one before ends."""
ONE_THREAD = 0.05
"""Share of a proof's time on one thread above which a caution is due."""
FIXED = 0.25
"""Share of a proof's time that the smallest proof takes too, above which a caution is due."""
CACHED = 1.0
"""Share of the last cache that proofs side by side take, above which a caution is due."""


@dataclass(frozen=True)
class Machine:
    """What the formula does not ask of a machine.

    Attributes:
        cpus: that this process may use, as the system counts them.
        siblings: CPUs that share one core with simultaneous multithreading; 1 without.
        cache: bytes of the last-level cache, 0 if unknown.
        memory: bytes that processes may take: the machine's, or the container's if less; 0 if unknown.
    """

    cpus: int
    siblings: int = 1
    cache: int = 0
    memory: int = 0


@dataclass(frozen=True)
class Memory:
    """Bytes to provision.

    Attributes:
        basis: where ``proof`` comes from, in words.
        proof: bytes of one proof, least and most.
        key: bytes that proofs read of the mapped key, once for all processes; 0 if no key is known.
        process: bytes of each process beside its proof.
        watermark: share of a limit at which new proofs begin to wait.
        at_once: proofs at once, each in a process.
        total: all of it, least and most.
        limit_mib: what to give ``--memory-limit``: the most without the key, below the watermark.
    """

    basis: str
    proof: tuple[int, int]
    key: int
    process: int
    watermark: float
    at_once: int = 1

    def times(self, at_once: int) -> Memory:
        """The same for so many proofs at once."""
        return replace(self, at_once=at_once)

    @property
    def total(self) -> tuple[int, int]:
        low, high = (self.key + self.at_once * (self.process + size) for size in self.proof)
        return low, high

    @property
    def limit_mib(self) -> int:
        return -(-int((self.total[1] - self.key) / self.watermark) // MIB)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "total": self.total, "limit_mib": self.limit_mib}


@dataclass(frozen=True)
class Choice:
    """One way to use a machine: proofs side by side, each with some threads.

    Attributes:
        device: ``cpu``, ``cuda:0``, ...
        at_once: proofs side by side.
        threads: threads of each proof; 0 on a GPU.
        seconds: predicted for a proof.
        per_hour: proofs that end in an hour, if those side by side do not slow each other down.
        formula: what the formula makes of the time of one proof alone on all cores.
    """

    device: str
    at_once: int
    threads: int
    seconds: float
    per_hour: float
    formula: float


@dataclass(frozen=True)
class Estimate:
    """An answer of ``gpuprover estimate``.

    Attributes:
        per_hour: proofs an hour.
        cores, cores_per_proof, proof_time: what the formula was given.
        at_once: whole proofs side by side.
        memory: bytes to provision; one entry for each tier that is possible.
        choices: ways to use the machine by measured times, the best first; empty without them.
        origin: where measured times come from.
        cautions: where the formula misleads, in words.
    """

    per_hour: float
    cores: int
    cores_per_proof: int
    proof_time: float
    at_once: int
    memory: tuple[Memory, ...]
    choices: tuple[Choice, ...] = ()
    origin: str = ""
    cautions: tuple[str, ...] = ()


def by_formula(cores: int, cores_per_proof: int, proof_time: float) -> float:
    """Proofs an hour: ``cores / cores_per_proof * 3600 / proof_time``."""
    return cores / cores_per_proof * HOUR / proof_time


# Memory -------------------------------------------------------------------------------


def tier_memory(tier: Tier, watermark: float) -> Memory:
    """One proof by the table that people know: 0.5 to 1, 1 to 4, 4 to 16 GiB."""
    i = TIERS.index(tier)
    least = TIERS[i - 1].memory if i else SMALLEST_TIER
    size = f"up to {tier.largest:,.0f}" if tier.largest != inf else f"above {TIERS[i - 1].largest:,.0f}"
    return Memory(f"{tier.name}, {size} constraints", (least, tier.memory), 0, 0, watermark)


def plan_memory(plan: MemoryPlan, watermark: float, basis: str = "this key's plan") -> Memory:
    """One proof by a key's own plan on the CPU; of the key's file counts what proofs read."""
    size = plan.tables + plan.arena + plan.host
    return Memory(basis, (size, size), plan.key, WORKER_BYTES, watermark)


# By the formula -----------------------------------------------------------------------


def estimate(
    cores: int, cores_per_proof: int, proof_time: float, memory: Sequence[Memory], machine: Machine
) -> Estimate:
    """The formula's answer, with its cautions; all arguments positive."""
    at_once = max(1, cores // cores_per_proof)
    return Estimate(
        by_formula(cores, cores_per_proof, proof_time),
        cores,
        cores_per_proof,
        proof_time,
        at_once,
        tuple(memory),
        cautions=(
            *_formula_cautions(cores, cores_per_proof, proof_time),
            "a proof's time holds for the threads and the neighbours that it was measured with: measure it "
            f"with {_count(cores_per_proof, 'thread')} while {_count(at_once, 'proof')} "
            f"{'runs' if at_once == 1 else 'run side by side'}; neighbours share memory bandwidth and "
            "caches, and a part of each proof runs on one thread",
            "a time does not scale with the circuit: small ones take their fixed cost, whatever their size",
            "a GPU is no number of cores: it has a rate and a memory of its own",
            "--measured uses the times of this machine instead",
            *_memory_cautions(memory, machine),
        ),
    )


def _formula_cautions(cores: int, cores_per_proof: int, proof_time: float) -> list[str]:
    rate = by_formula(cores, cores_per_proof, proof_time)
    at_once = cores // cores_per_proof
    out = []
    if cores_per_proof > 1:
        shared = cores * HOUR / proof_time
        out.append(
            f'the formula divides by "proofs per core": {cores_per_proof} is the number of cores that a '
            f"proof occupies. {cores_per_proof} proofs on each core would not make "
            f"{shared * cores_per_proof:,.0f} an hour but at most {shared:,.0f}, if "
            f"{format_seconds(proof_time)} is with one core"
        )
    if at_once == 0:
        out.append(
            f"a proof that occupies {cores_per_proof} cores takes longer on {cores} than the time given"
        )
    elif cores % cores_per_proof:
        out.append(
            f"{_count(cores % cores_per_proof, 'core')} of {cores} "
            f"{'is' if cores % cores_per_proof == 1 else 'are'} left over: {_count(at_once, 'whole proof')} "
            f"at once make {at_once * HOUR / proof_time:,.0f} an hour"
        )
    out.append(
        "it is the rate of a machine that is never idle: where requests come at random times, the queue "
        f"grows without end there; plan for {BUSY:.0%} of it, {BUSY * rate:,.0f} an hour"
    )
    return out


def _memory_cautions(memory: Sequence[Memory], machine: Machine) -> list[str]:
    out = []
    if not any(m.key for m in memory):
        out.append(
            "memory is by the table for keys that nobody has seen; --zkey and --r1cs give a key's own plan, "
            "which is often far less"
        )
    least = min(memory, key=lambda m: m.total[0])
    if not machine.memory or least.total[0] <= machine.memory:
        return out
    fit = max(0, int((machine.memory - least.key) // (least.process + least.proof[0])))
    return [
        *out,
        f"memory, not cores, is the limit here: {_count(least.at_once, 'proof')} at once need "
        f"{format_size(least.total[0])}, there are {format_size(machine.memory)}: enough for {fit}",
    ]


# By measured times --------------------------------------------------------------------


def choices(
    times: Calibration,
    work: str,
    devices: Sequence[DeviceInfo],
    constraints: int,
    cores: int,
    at_once: int | None,
) -> list[Choice]:
    """Ways to use the devices, those with most proofs an hour first.

    Args:
        devices: the usable ones.
        cores: CPUs for proofs on the CPU.
        at_once: so many proofs side by side on the CPU; None: 1, 2, 4, ... up to one for each core.
    """
    found = []
    for device in devices:
        if device.kind != "cpu":
            took = times.seconds(work, device, constraints, 1)
            found.append(Choice(device.name, 1, 0, took, HOUR / took, HOUR / took))
            continue
        alone = times.seconds(work, device, constraints, cores)
        steps = {1 << i for i in range(cores.bit_length())} | {cores}
        for n in sorted(steps) if at_once is None else [at_once]:
            threads = max(1, cores // n)
            took = times.seconds(work, device, constraints, threads)
            running = min(n, cores)
            found.append(
                Choice(
                    device.name, n, threads, took, running * HOUR / took, by_formula(cores, threads, alone)
                )
            )
    return sorted(found, key=lambda c: -c.per_hour)


def measured(
    times: Calibration,
    work: str,
    devices: Sequence[DeviceInfo],
    constraints: int,
    cores: int,
    at_once: int | None,
    memory: Sequence[Memory],
    machine: Machine,
) -> Estimate:
    """An estimate by the times that this machine's calibration has; ``memory`` is for one proof at a time."""
    found = choices(times, work, devices, constraints, cores, at_once)
    best = found[0]
    provisioned = [m.times(best.at_once) for m in memory]
    device = next(d for d in devices if d.name == best.device)
    cpu = next((d for d in devices if d.kind == "cpu"), None)
    alone = times.seconds(work, cpu, constraints, cores) if cpu is not None else best.seconds
    said = [] if cpu is None else _cpu_cautions(times, work, cpu, constraints, cores, found, memory, machine)
    return Estimate(
        best.per_hour,
        cores,
        max(1, best.threads),
        alone,
        best.at_once,
        tuple(provisioned),
        tuple(found),
        times.entry(work, device).origin,
        (
            *said,
            *_gpu_cautions(times, work, devices, cpu, constraints, cores),
            f"it is the rate of a machine that is never idle: plan for {BUSY:.0%} of it, "
            f"{BUSY * best.per_hour:,.0f} an hour",
            *([] if times.measured(work, device) else [_unmeasured(times, work, device)]),
            *_memory_cautions(provisioned, machine),
        ),
    )


def _unmeasured(times: Calibration, work: str, device: DeviceInfo) -> str:
    return (
        f"nobody has measured {device.name} here: its times are of {times.entry(work, device).origin}; "
        "run `gpuprover bench --calibrate`"
    )


def _cpu_cautions(
    times: Calibration,
    work: str,
    cpu: DeviceInfo,
    constraints: int,
    cores: int,
    found: Sequence[Choice],
    memory: Sequence[Memory],
    machine: Machine,
) -> list[str]:
    one, all_ = (times.seconds(work, cpu, constraints, n) for n in (1, cores))
    out = []
    if cores > 1:
        # From seconds with one and with two threads: what no thread shares.
        alone = max(0.0, 2 * times.seconds(work, cpu, constraints, 2) - one)
        many = max((c for c in found if c.device == cpu.name), key=lambda c: c.at_once)
        if alone > ONE_THREAD * all_:
            out.append(
                f"{format_seconds(alone)} of a proof run on one thread: {cores} cores make it "
                f"{one / all_:.2g} times as fast, not {cores} times. The formula with the time of one proof "
                f"alone ({format_seconds(all_)}) and {many.threads} core{'s' * (many.threads != 1)} a proof "
                f"says {many.formula:,.0f} an hour; {_count(many.at_once, 'proof')} side by side make "
                f"{many.per_hour:,.0f}"
            )
        arena = max((m.proof[1] for m in memory if m.key), default=0)
        if machine.cache and many.at_once * arena > CACHED * machine.cache:
            out.append(
                f"proofs side by side share memory bandwidth: {_count(many.at_once, 'proof')} work on "
                f"{format_size(many.at_once * arena)}, the last cache holds {format_size(machine.cache)}; "
                "the times are of proofs alone, so that side by side they make somewhat fewer"
            )
    smallest = times.entry(work, cpu).rows[0][0]
    floor = times.seconds(work, cpu, smallest, 1)
    if floor > FIXED * one:
        out.append(
            f"{format_seconds(floor)} of {format_seconds(one)} a proof takes whatever the circuit's size: a "
            "circuit half as large does not make twice as many"
        )
    if machine.siblings > 1:
        out.append(
            f"{machine.siblings} CPUs share each core: the second adds less to a core than a core; a "
            "calibration with all threads has that in it, the formula does not"
        )
    if cores > machine.cpus:
        out.append(f"this machine has {_count(machine.cpus, 'CPU')}: times with {cores} are extrapolated")
    return out


def _gpu_cautions(
    times: Calibration,
    work: str,
    devices: Sequence[DeviceInfo],
    cpu: DeviceInfo | None,
    constraints: int,
    cores: int,
) -> list[str]:
    out = []
    for gpu in devices:
        if gpu.kind == "cpu" or cpu is None:
            continue
        there, here = times.seconds(work, gpu, constraints, 1), times.seconds(work, cpu, constraints, cores)
        out.append(
            f"the formula knows no GPU: a proof takes {format_seconds(there)} on {gpu.name}"
            + ("" if times.measured(work, gpu) else " (a prediction)")
            + f", {format_seconds(here)} on {_count(cores, 'core')}; both work side by side"
        )
    return out


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


# The machine --------------------------------------------------------------------------


def machine(root: Path = Path("/sys/devices/system/cpu")) -> Machine:
    """What the system says of this machine."""
    siblings = _text(root / "cpu0/topology/thread_siblings_list")
    sizes = {
        int(_text(folder / "level") or 0): _text(folder / "size")
        for folder in sorted((root / "cpu0/cache").glob("index*"))
    }
    known = [amount for amount in (machine_memory()[0], cgroup_memory_limit()) if amount is not None]
    return Machine(
        available_cpus(),
        max(1, _listed(siblings)),
        _cache_size(sizes[max(sizes)]) if sizes else 0,
        min(known, default=0),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _listed(text: str) -> int:
    """CPUs in a list as the kernel writes it: ``0,4`` or ``0-1``."""
    count = 0
    for part in text.split(","):
        low, _, high = part.partition("-")
        if low.isdigit():
            count += int(high) - int(low) + 1 if high.isdigit() else 1
    return count


def _cache_size(text: str) -> int:
    unit = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:], 0)
    return int(text[:-1]) * unit if unit and text[:-1].isdigit() else 0
