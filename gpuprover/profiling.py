"""Where a proof's time and memory go, the first time and after, and in words what to change.

:func:`observe` makes a few proofs and writes down what the system counts meanwhile; :func:`advise` applies
rules to that record alone, so that each is tested with figures that no machine has to show.
"""

from __future__ import annotations

import mmap
import os
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpuprover import api, calibration, memory
from gpuprover.demand import UNLIMITED, Budget, MemoryPlan
from gpuprover.devices import cpu_path_name, is_gpu, open_backend
from gpuprover.errors import InvalidInput
from gpuprover.job import Event, Job, Progress
from gpuprover.machine import (
    available_cpus,
    cgroup_cpu_quota,
    cgroup_memory_limit,
    cgroup_throttled,
)
from gpuprover.proving import ProofResult
from gpuprover.scheduler.placement import format_seconds, format_size
from gpuprover.systems.system import ProvingKey

LONGEST_SINGLE = 30.0
"""Seconds of CPU time above which a proof is not made with one thread too."""
NOTED = 0.05
"""Share of a proof's time below which nothing is said of what takes it."""
SLOW_KEY = 0.25
"""Share of a warm proof's time above which the first reading of the key from the disk is mentioned."""
POOR_GAIN = 1.2
"""A proof with all its threads that is not so many times faster than with one wastes them."""
GOOD_SHARE = 0.6
"""A proof uses its n threads well if it is at least GOOD_SHARE·n times as fast as on one."""
STARVED = 0.8
"""Threads for which less than this share of a CPU each is left have neighbours."""
NEAR = 0.9
"""Share of a container's memory above which a proof is near its end."""
FASTER = 1.1
"""A device is proposed if it is predicted to be so many times faster."""
FIXED_PHASES = ("check key header", "blinding", "verify")
"""What a proof of any size takes."""


@dataclass(frozen=True)
class ProfiledRun:
    """One proof, and what the system counted from its beginning to its end.

    Attributes:
        seconds, cpu: wall time, and CPU time of all threads.
        phases: seconds by phase.
        before, peak, after: bytes of resident memory, mapped pages of the key among them.
        major_faults: pages that had to be read from a disk.
        read_bytes: read from a disk.
        throttled: seconds for which a CPU quota held the container up.
        swapped: bytes of this process in swap, at the end.
        others: CPU seconds that others used of this process's CPUs, what a host took away included.
    """

    seconds: float
    cpu: float
    phases: Mapping[str, float]
    before: int
    peak: int
    after: int
    major_faults: int = 0
    read_bytes: int = 0
    throttled: float = 0.0
    swapped: int = 0
    others: float = 0.0


@dataclass(frozen=True)
class Prediction:
    """Seconds that a proof is predicted to take on a device; ``problem`` says why it cannot be used."""

    device: str
    seconds: float
    measured: bool
    problem: str = ""


@dataclass(frozen=True)
class Observed:
    """All that advice is formed from.

    Attributes:
        constraints, key_bytes: the key's constraints, and bytes of its file.
        key_read: bytes that proofs read of it.
        touch, touch_again: seconds to touch every page of the key, before the first proof and at the end.
        touch_read: bytes that the first touching read from a disk.
        first: the first proof of this process.
        warm: those after it, at least one.
        single: one with one thread; None where that would take too long, or there is one thread anyway.
        device, threads: what the proofs ran with.
        cpus, quota: CPUs that this process may use, of a container's quota as many; that quota in CPUs.
        host_cpus: CPUs that this process may run on, whatever its quota.
        path, ifma: the CPU's code path, and whether the CPU has AVX-512 IFMA.
        compiled: files of machine code that the first proof added to the cache; None without a cache.
        plan, plan_within: bytes of a proof as it would like, and as it was under its memory limit.
        container: bytes that the container may take, None without a limit.
        predictions: predicted times on the devices of this machine.
    """

    constraints: int
    key_bytes: int
    key_read: int
    touch: float
    touch_again: float
    touch_read: int
    first: ProfiledRun
    warm: tuple[ProfiledRun, ...]
    single: ProfiledRun | None
    device: str
    threads: int
    cpus: int
    quota: float | None
    host_cpus: int
    path: str
    ifma: bool
    compiled: int | None
    plan: int
    plan_within: int
    container: int | None
    predictions: tuple[Prediction, ...]

    @property
    def next(self) -> float:
        """Median seconds of a warm proof."""
        return statistics.median(run.seconds for run in self.warm)

    @property
    def phases(self) -> dict[str, tuple[float, float]]:
        """Phase -> seconds in the first proof, median of those after; ``other`` is what is in no phase."""
        names = dict.fromkeys(name for run in (self.first, *self.warm) for name in run.phases)

        def spent(run: ProfiledRun, name: str) -> float:
            if name == "other":
                return max(0.0, run.seconds - sum(run.phases.values()))
            return run.phases.get(name, 0.0)

        return {
            name: (spent(self.first, name), statistics.median(spent(run, name) for run in self.warm))
            for name in (*names, "other")
        }

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "next": self.next, "phases": self.phases}


@dataclass(frozen=True)
class Advice:
    """What to change: ``about`` one of threads, cpu, device, memory, key, cache, start, size."""

    about: str
    text: str


# Watching -------------------------------------------------------------------------------


def observe(
    zkey: str,
    witness: str,
    *,
    proofs: int,
    device: str,
    threads: int,
    memory_limit: int | None,
    compiled: Callable[[], int | None],
    progress: Callable[[Progress], None] | None = None,
    cancel: Event | None = None,
) -> Observed:
    """Makes the first proof of this process, ``proofs`` more and one with one thread.

    ``compiled`` counts the files of machine code in the cache; None where there is no cache.

    Raises:
        ProverError: what :func:`gpuprover.api.prove` raises.
    """
    if proofs < 1:
        raise InvalidInput(f"proofs: expected a whole number of at least 1, found {proofs!r}")
    job = Job(threads=threads, cancel=cancel, progress=progress)
    key = api.load_key(zkey)
    touch, touch_read = _first_touch(zkey, job)
    ran_on = device

    def prove(count: int) -> ProfiledRun:
        nonlocal ran_on
        run, ran_on = _profiled(
            lambda: api.prove(
                key,
                witness,
                device=device,
                threads=count,
                memory_limit=memory_limit,
                progress=progress,
                cancel=cancel,
            )
        )
        return run

    files = compiled()
    first = prove(threads)
    added = compiled()
    warm = tuple(prove(threads) for _ in range(proofs))
    brief = statistics.median(run.cpu for run in warm) < LONGEST_SINGLE
    single = prove(1) if threads > 1 and brief and not is_gpu(ran_on) else None
    plan, within = _plans(key, job, memory_limit)
    return Observed(
        constraints=key.constraints,
        key_bytes=key.size,
        key_read=plan.key,
        touch=touch,
        touch_again=touch_pages(zkey, job),
        touch_read=touch_read,
        first=first,
        warm=warm,
        single=single,
        device=ran_on,
        threads=threads,
        cpus=available_cpus(),
        quota=cgroup_cpu_quota(),
        host_cpus=len(_own_cpus()),
        path=cpu_path_name(),
        ifma="avx512ifma" in _cpu_flags(),
        compiled=None if files is None or added is None else added - files,
        plan=plan.total,
        plan_within=within.total,
        container=cgroup_memory_limit(),
        predictions=_predictions(key, threads),
    )


def _first_touch(path: str, job: Job) -> tuple[float, int]:
    """Seconds to touch every page of a key, and bytes that had to be read from a disk for that."""
    read = _disk_reads()
    with job.phase("read key"):
        took = touch_pages(path, job)
    return took, _disk_reads() - read


def _profiled(prove: Callable[[], ProofResult]) -> tuple[ProfiledRun, str]:
    """A proof with what the system counted meanwhile, and the device that made it."""
    reads, throttled = _disk_reads(), cgroup_throttled()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
    busy = _busy_seconds()
    wall, cpu = time.perf_counter(), time.process_time()
    result = prove()
    cpu = time.process_time() - cpu
    run = ProfiledRun(
        seconds=time.perf_counter() - wall,
        cpu=cpu,
        phases=result.timings,
        before=result.memory["before"],
        peak=result.memory["peak"],
        after=result.memory["after"],
        major_faults=resource.getrusage(resource.RUSAGE_SELF).ru_majflt - faults,
        read_bytes=_disk_reads() - reads,
        throttled=cgroup_throttled() - throttled,
        swapped=_kernel_count(Path("/proc/self/status"), "VmSwap") * 1024,
        others=max(0.0, _busy_seconds() - busy - cpu),
    )
    return run, result.device


def touch_pages(path: str, job: Job) -> float:
    """Seconds to touch every page of a file once, mapped anew."""
    page, step = mmap.PAGESIZE, 1 << 26
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        begun = time.perf_counter()
        view = np.frombuffer(mapped, dtype=np.uint8)
        for start in range(0, len(view), step):
            job.check()
            view[start : start + step : page].max()
        took = time.perf_counter() - begun
        del view  # the mapping cannot be closed before
    return took


def _plans(key: ProvingKey, job: Job, memory_limit: int | None) -> tuple[MemoryPlan, MemoryPlan]:
    """A proof on the CPU without a limit, and within the one there is."""
    backend = open_backend("cpu", key.curve, job)
    within = backend.plan(key.demand, Budget(host=memory.budget(memory_limit)))
    return backend.plan(key.demand, UNLIMITED), within


def _predictions(key: ProvingKey, threads: int) -> tuple[Prediction, ...]:
    times, work = calibration.load(), calibration.work_name(key.protocol, key.curve)
    found = []
    for device in calibration.devices(threads):
        if device.problem:
            found.append(Prediction(device.name, 0.0, False, device.problem))
        else:
            seconds = times.seconds(work, device, key.constraints, threads if device.kind == "cpu" else 1)
            found.append(Prediction(device.name, seconds, times.measured(work, device)))
    return tuple(found)


def _kernel_count(path: Path, name: str) -> int:
    """A number that the kernel lists under a name; 0 where it does not."""
    try:
        for line in path.read_text(encoding="ascii", errors="replace").splitlines():
            field, _, value = line.partition(":")
            if field == name:
                return int(value.split()[0])
    except (OSError, ValueError, IndexError):
        pass
    return 0


def _disk_reads() -> int:
    return _kernel_count(Path("/proc/self/io"), "read_bytes")


def _own_cpus() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _busy_seconds(stat: Path = Path("/proc/stat")) -> float:
    """CPU seconds that anybody has used of this process's CPUs, and that a host took away."""
    mine = {f"cpu{i}" for i in _own_cpus()}
    ticks = 0
    try:
        for line in stat.read_text(encoding="ascii", errors="replace").splitlines():
            name, *values = line.split()
            if name in mine:
                user, nice, system, _idle, _waiting, *others = map(int, values[:8])
                ticks += user + nice + system + sum(others)
    except (OSError, ValueError):
        return 0.0
    return ticks / os.sysconf("SC_CLK_TCK")


def _cpu_flags() -> set[str]:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "flags":
                return set(value.split())
    except OSError:
        pass
    return set()


# Rules ----------------------------------------------------------------------------------


def advise(o: Observed) -> list[Advice]:
    """What to change, the most costly things about the first proof last; empty if nothing stands out."""
    return [advice for rule in RULES if (advice := rule(o)) is not None]


def _throttled(o: Observed) -> Advice | None:
    held = statistics.median(run.throttled for run in o.warm)
    if held <= NOTED * o.next:
        return None
    quota = f" of {o.quota:g} CPUs" if o.quota else ""
    threads = max(1, int(o.quota)) if o.quota else max(1, o.threads - 1)
    return Advice(
        "cpu",
        f"the container's CPU quota{quota} held each proof up for {format_seconds(held)} of "
        f"{format_seconds(o.next)}: raise the quota, or give the proof --threads {threads} so that it does "
        "not spend the quota at once and wait",
    )


def _too_many_threads(o: Observed) -> Advice | None:
    if is_gpu(o.device) or o.threads <= o.cpus:
        return None
    return Advice(
        "threads",
        f"{o.threads} threads on {o.cpus} CPU{'s' * (o.cpus != 1)} wait for each other: --threads {o.cpus}",
    )


def _threads_without_gain(o: Observed) -> Advice | None:
    # Neighbours hide what threads gain.
    if o.single is None or o.threads > o.cpus or _neighbours(o) is not None:
        return None
    gain = o.single.seconds / o.next
    if gain >= GOOD_SHARE * o.threads:
        return None
    rate = min(o.threads, o.cpus) * o.next / o.single.seconds
    few = "hardly faster" if gain < POOR_GAIN else f"only {gain:.2g} times as fast"
    return Advice(
        "threads",
        f"with {o.threads} threads a proof of this circuit is {few} than with one ({format_seconds(o.next)} "
        f"against {format_seconds(o.single.seconds)}): for throughput make {o.threads} proofs side by side "
        f"with --threads 1, about {rate:.2g} times as many",
    )


def _more_threads(o: Observed) -> Advice | None:
    if is_gpu(o.device) or o.threads >= o.cpus or _threads_without_gain(o) is not None:
        return None
    return Advice(
        "threads", f"{o.threads} of {o.cpus} CPUs are used: --threads {o.cpus} makes a proof faster"
    )


def _neighbours(o: Observed) -> Advice | None:
    taken = statistics.median(run.others / run.seconds for run in o.warm)
    left = o.host_cpus - taken
    if left >= STARVED * min(o.threads, o.host_cpus) or is_gpu(o.device):
        return None
    return Advice(
        "cpu",
        f"other processes, or other guests of this host, used {taken:.1f} of {o.host_cpus} CPUs meanwhile: "
        f"{o.threads} threads had {max(0.0, left):.1f} for themselves. Give proofs CPUs of their own, or "
        "profile again when the machine is idle",
    )


def _portable(o: Observed) -> Advice | None:
    if is_gpu(o.device) or o.path != "portable":
        return None
    if o.ifma:
        return Advice(
            "cpu",
            "the portable path runs although this CPU has AVX-512 IFMA: unset PROVER_CPU_PATH; proofs take "
            "a third to a fifth of the time there",
        )
    return Advice(
        "cpu",
        "this CPU lacks AVX-512 IFMA: on one that has it (AMD Zen 4 and later, Intel Ice Lake servers and "
        "later) proofs take a third to a fifth of the time",
    )


def _other_device(o: Observed) -> Advice | None:
    usable = [p for p in o.predictions if not p.problem and p.device != o.device]
    best = min(usable, key=lambda p: p.seconds, default=None)
    if best is None or best.seconds * FASTER >= o.next:
        return None
    doubt = "" if best.measured else "; nobody has measured it here: run `gpuprover bench --calibrate` first"
    return Advice(
        "device",
        f"on {best.device} this proof is predicted to take {format_seconds(best.seconds)} instead of "
        f"{format_seconds(o.next)}: --device {best.device}{doubt}",
    )


def _unusable_gpu(o: Observed) -> Advice | None:
    # A machine without any GPU has one entry of the family's name.
    refused = next((p for p in o.predictions if p.problem and ":" in p.device), None)
    return (
        None if refused is None else Advice("device", f"{refused.device} cannot be used: {refused.problem}")
    )


def _not_calibrated(o: Observed) -> Advice | None:
    mine = next((p for p in o.predictions if p.device == o.device), None)
    if mine is None or mine.measured:
        return None
    return Advice(
        "device",
        f"{o.device} is not measured on this machine, so that placement and estimates use figures of other "
        f"machines (here {format_seconds(mine.seconds)} against {format_seconds(o.next)}): "
        "run `gpuprover bench --calibrate` once",
    )


def _in_pieces(o: Observed) -> Advice | None:
    if o.plan_within >= o.plan:
        return None
    return Advice(
        "memory",
        f"under --memory-limit a proof works in {format_size(o.plan_within)} instead of "
        f"{format_size(o.plan)}, in smaller pieces: {format_size(o.plan - o.plan_within)} more let it run "
        "at full speed",
    )


def _swapping(o: Observed) -> Advice | None:
    swapped = max(run.swapped for run in (o.first, *o.warm))
    if not swapped:
        return None
    return Advice(
        "memory",
        f"{format_size(swapped)} of this process are in swap: the machine has too little memory for what "
        "runs on it; run fewer proofs at once, or give it more",
    )


def _dropped_pages(o: Observed) -> Advice | None:
    again = statistics.median(run.read_bytes for run in o.warm)
    if again < NOTED * o.key_read or not any(run.major_faults for run in o.warm):
        return None
    return Advice(
        "memory",
        f"each proof reads {format_size(int(again))} of the key from the disk again: its pages do not stay "
        f"in memory. Leave {format_size(o.key_read)} for the file cache; in a container it counts against "
        "the limit",
    )


def _near_container(o: Observed) -> Advice | None:
    peak = max(run.peak for run in (o.first, *o.warm))
    if o.container is None or peak < NEAR * o.container:
        return None
    return Advice(
        "memory",
        f"at its peak a proof holds {format_size(peak)} of the {format_size(o.container)} that the "
        "container may take: raise its limit, or set --memory-limit below "
        f"{max(1, int(NEAR * o.container) >> 20)}",
    )


def _slow_key(o: Observed) -> Advice | None:
    if o.touch_read < o.key_bytes / 2 or o.touch <= SLOW_KEY * o.next:
        return None
    rate = o.touch_read / o.touch / 1e6
    return Advice(
        "key",
        f"the key's {format_size(o.key_bytes)} came from the disk in {format_seconds(o.touch)} ({rate:,.0f} "
        f"MB a second), from memory they come in {format_seconds(o.touch_again)}: preload the circuit at "
        "start, keep the file on a faster disk, or leave it memory to stay in the file cache",
    )


def _compiled(o: Observed) -> Advice | None:
    extra = o.first.seconds - o.next
    if o.compiled is None:
        return Advice(
            "cache",
            "no folder for compiled code is writable, so that every process compiles anew "
            f"({format_seconds(extra)} here): set GPUPROVER_CACHE_DIR to one that is",
        )
    if not o.compiled:
        return None
    return Advice(
        "cache",
        f"the first proof compiled code, which cost {format_seconds(extra)}: run `gpuprover warmup` when "
        "the machine is set up, and keep GPUPROVER_CACHE_DIR between runs (in a container, on a volume)",
    )


def _start_up(o: Observed) -> Advice | None:
    extra = o.first.seconds - o.next
    if o.compiled != 0 or extra <= o.next:
        return None
    return Advice(
        "start",
        f"the first proof of a process takes {format_seconds(extra)} longer, to load the compiler and "
        "machine code: where proofs come one by one, keep the process (`gpuprover worker`, `create_prover`)",
    )


def _fixed_cost(o: Observed) -> Advice | None:
    fixed = sum(o.phases.get(name, (0.0, 0.0))[1] for name in FIXED_PHASES)
    if fixed <= 0.5 * o.next:
        return None
    return Advice(
        "size",
        f"{fixed / o.next:.0%} of a proof are what a circuit of any size takes (its own verification, most "
        "of all): several small statements in one circuit cost little more than one",
    )


RULES: Sequence[Callable[[Observed], Advice | None]] = (
    _throttled,
    _too_many_threads,
    _threads_without_gain,
    _more_threads,
    _neighbours,
    _portable,
    _other_device,
    _unusable_gpu,
    _not_calibrated,
    _in_pieces,
    _swapping,
    _dropped_pages,
    _near_container,
    _slow_key,
    _compiled,
    _start_up,
    _fixed_cost,
)
"""What goes on with every proof first, then what only the first one pays."""
