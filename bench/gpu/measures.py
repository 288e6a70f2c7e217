"""Transforms, multi-scalar multiplications and proofs on a GPU, beside the CPU on all its threads; checked.

Sums take the same few points again and again, so that the CPU can tell what comes out: Σ s[i]·P[i mod m] is
Σ t[j]·P[j] with t[j] the sum of the s[i], i ≡ j mod m.
"""

from __future__ import annotations

import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import gpuprover
from gpuprover.backend import Backend
from gpuprover.circuits import Circuit, bits_circuit, chain_circuit
from gpuprover.cuda import residency
from gpuprover.cuda.device import MAIN, Device, launch_each
from gpuprover.cuda.msm_plan import MsmPlan, Tuning, mixed_addition
from gpuprover.curves import CurveParams, Group, curve_by_name
from gpuprover.devices import open_backend
from gpuprover.errors import ProverError
from gpuprover.job import Job
from gpuprover.limbs import Words, generator, ints_to_words, words_to_ints
from gpuprover.polynomial import Direction, Domain

from ..measure import Contestant, Failed, Sample, Variant, fastest, measure, run_process, timed
from ..operations import FULL_WIDTH, KINDS, full_width
from ..peers import python_command
from ..proofs import CHAIN_ROOM
from ..rows import OURS, SEED, Row, significant, spread
from . import rates
from .cases import TUNINGS

CUDA = "cuda"
COLD_LIMIT = 120.0
ONCE_DISTINCT = 12
MANY, MANY_SECONDS = 200, 0.02
"""Transforms between two waits, at most; and for how long, about."""


@dataclass
class Machine:
    """What the measurements of one process share.

    Attributes:
        device: what the backend ``cuda`` works on.
        folder: for keys and witnesses, which later calls find again.
        multiplier: wide multiplications a second, by a row of this machine; None where there is none yet.
        threads: threads of the CPU.
    """

    device: Device
    folder: Path
    threads: int
    multiplier: float | None = None
    kept: dict[Any, Any] = field(default_factory=dict)

    def backend(self, device: str, curve: CurveParams) -> Backend:
        return open_backend(device, curve, Job(threads=self.threads))

    def keep(self, key: Any, make: Callable[[], Any]) -> Any:
        """``make()``, once for all cases with this key in turn; only the newest is kept."""
        if key not in self.kept:
            self.kept.clear()
            self.kept[key] = make()
        return self.kept[key]

    def share(self, products: float, wide: int, seconds: float) -> Row:
        """How much of the multiplier so many products of ``wide`` wide multiplications took."""
        if self.multiplier is None:
            return {}
        return {"share": significant(products * wide / seconds / self.multiplier)}


class _Collected:
    """Takes rows in place of a file: a case's rows are written together, by another process."""

    def __init__(self) -> None:
        self.all: list[Row] = []

    def add(self, *rows: Row) -> None:
        self.all += rows


def _measured(contest: list[Contestant], rounds: int, job: Job) -> list[Row]:
    rows = _Collected()
    measure(contest, rounds, rows, job)  # type: ignore[arg-type]
    return rows.all


@contextmanager
def _profile(device: Any) -> Iterator[dict[str, float]]:
    """Seconds by kernel of what is launched in the block, each launch awaited; by the device's own clock."""
    seconds: dict[str, float] = defaultdict(float)
    real, clock = device.launch, hasattr(device, "mark")

    def launch(program: Any, kernel: str, *words: Any, **options: Any) -> None:
        device.synchronize()
        stream = options.get("stream", MAIN)
        begun = device.mark(stream) if clock else time.perf_counter()
        real(program, kernel, *words, **options)
        if clock:
            seconds[kernel] += device.seconds(begun, device.mark(stream))
        else:
            device.synchronize()
            seconds[kernel] += time.perf_counter() - begun

    device.launch, device.run = launch, partial(launch_each, device)
    try:
        yield seconds
    finally:
        del device.launch, device.run


def _kernels(seconds: Mapping[str, float]) -> Row:
    """The longest first."""
    named = sorted(seconds.items(), key=lambda entry: -entry[1])
    return {"kernels": {name: significant(value) for name, value in named}}


def wide_multiplications(limbs: int) -> int:
    """Of a product with a twiddle factor that has its quotient, in elements of so many 64-bit limbs."""
    n = 2 * limbs
    return n * n + n * (n + 1) // 2


def environment(machine: Machine) -> list[Row]:
    from gpuprover.cuda.probe import survey

    found = {"operation": "environment", "device": CUDA, "driver": survey().driver}
    return [{**found, **machine.device.describe()}]


def rate(machine: Machine, name: str, curve: str, seconds: float) -> list[Row]:
    measured = rates.measure(machine.device, curve_by_name(curve), name, seconds, machine.folder)
    return [{**measured, "implementation": OURS, "device": CUDA}]


# Transforms --------------------------------------------------------------------------------


def ntt(machine: Machine, curve: str, log: int, rounds: int, cpu: bool) -> list[Row]:
    """A forward transform, in place, of a vector that is there; natural order to natural order."""
    params = curve_by_name(curve)
    domain, rng = Domain(params.scalar, log), np.random.default_rng(SEED)
    words = full_width(params, 1 << log, rng)
    shape: Row = {"operation": "ntt", "curve": curve, "log": log, "order": "natural"}
    backends = {name: machine.backend(name, params) for name in (CUDA, "cpu")}
    vectors = {name: backend.upload(words) for name, backend in backends.items()}
    for name, backend in backends.items():
        backend.ntt(vectors[name], domain, Direction.FORWARD)
    if not np.array_equal(backends[CUDA].download(vectors[CUDA]), backends["cpu"].download(vectors["cpu"])):
        raise Failed(f"ntt {curve} 2^{log}: the GPU's values differ from the CPU's")

    def on_gpu(times: int = 1) -> None:
        for _ in range(times):
            backends[CUDA].ntt(vectors[CUDA], domain, Direction.FORWARD)
        machine.device.synchronize()

    # Many without a wait between them: a wait's own precision is no better than some of these times.
    times = max(1, min(MANY, int(MANY_SECONDS / (timed(on_gpu).wall or 1.0))))

    def run() -> Sample:
        sample = fastest(lambda: on_gpu(times))
        return Sample((sample.cpu or 0.0) / times, (sample.wall or 0.0) / times)

    contest = [_contestant(shape, Variant(CUDA, None), run)]
    if cpu:
        call = partial(backends["cpu"].ntt, vectors["cpu"], domain, Direction.FORWARD)
        contest.append(_contestant(shape, _all_threads(machine), partial(fastest, call)))
    rows = _measured(contest, rounds, Job(threads=1))
    with _profile(machine.device) as kernels:
        on_gpu()
    products = log * (1 << log) / 2
    wide = wide_multiplications(params.scalar.limbs)
    rows[0] |= _kernels(kernels) | machine.share(products, wide, rows[0]["wall"]["median_s"])
    backends[CUDA].free(vectors[CUDA])
    return rows


def _all_threads(machine: Machine) -> Variant:
    from gpuprover.cpu.path import cpu_path

    return Variant("cpu", cpu_path().name, machine.threads)


def _contestant(shape: Row, variant: Variant, run: Callable[[], Sample]) -> Contestant:
    fields = {**shape, "implementation": OURS, "mode": "warm", "checked": True, **variant.fields}
    return Contestant(str(shape), fields, run)


# Multi-scalar multiplications ----------------------------------------------------------------


def _distinct(machine: Machine, params: CurveParams, group: Group, log: int) -> Words:
    scalars = full_width(params, 1 << log, np.random.default_rng(SEED))
    return machine.backend("cpu", params).fixed_base_mul(group, generator(params, group), scalars)


def _folded(params: CurveParams, scalars: Words, m: int) -> Words:
    """t[j] = Σ scalars[i] over i ≡ j mod m, reduced; m divides the length, which is at most m·2^31."""
    halves = scalars.view(np.uint32).reshape(-1, m, 2 * params.scalar.limbs)
    sums = words_to_ints(halves.sum(axis=0, dtype=np.uint64).reshape(-1, 1))
    k = 2 * params.scalar.limbs
    totals = (sum(x << 32 * i for i, x in enumerate(sums[j * k : j * k + k])) % params.r for j in range(m))
    return ints_to_words(totals, params.scalar.limbs)


def msm(
    machine: Machine,
    curve: str,
    group: str,
    log: int,
    scalars: str,
    rounds: int,
    cpu: bool,
    distinct: int,
    tables: bool = True,
    tuning: str = "",
) -> list[Row]:
    """Bases prepared, with multiples in up to half of the free memory, and scalars on the device.

    ``tuning``: one of :data:`.cases.TUNINGS`.
    """
    with _tuned(TUNINGS[tuning] if tuning else {}):
        return _msm(machine, curve, group, log, scalars, rounds, cpu, distinct, tables, tuning)


@contextmanager
def _tuned(changes: Mapping[str, Any]) -> Iterator[None]:
    """Plans that are made in the block have these sizes in place of their own."""
    if unknown := changes.keys() - {field.name for field in fields(Tuning)}:
        raise rates.Skipped(f"sums have no tuning called {', '.join(sorted(unknown))}")
    plans: Any = residency
    real = plans.choose_plan

    def choose(*given: Any) -> MsmPlan:
        plan: MsmPlan = real(*given)
        return replace(plan, tuning=replace(plan.tuning, **changes))

    plans.choose_plan = choose
    plans._choose.cache_clear()
    try:
        yield
    finally:
        plans.choose_plan = real
        plans._choose.cache_clear()


def _msm(
    machine: Machine,
    curve: str,
    group: str,
    log: int,
    scalars: str,
    rounds: int,
    cpu: bool,
    distinct: int,
    tables: bool,
    tuning: str,
) -> list[Row]:
    params, which = curve_by_name(curve), Group(group)
    m = 1 << min(distinct, log)
    few = machine.keep((curve, group, m), lambda: _distinct(machine, params, which, min(distinct, log)))
    words = KINDS[scalars](params, 1 << log, np.random.default_rng(SEED + 1))
    host = machine.backend("cpu", params)
    expected = host.msm(host.prepare_bases(which, few), _folded(params, words, m))
    points = np.tile(few, ((1 << log) // m, 1))

    operation = f"msm {group}" + ("" if tables else ", no tables") + (f", {tuning}" if tuning else "")
    shape: Row = {"operation": operation, "curve": curve, "log": log, "scalars": scalars}
    gpu = machine.backend(CUDA, params)
    budget = machine.device.free_memory() // 2 if tables else 0
    begun = time.perf_counter()
    bases, vector = gpu.prepare_bases(which, points, budget), gpu.upload(words)
    machine.device.synchronize()
    prepared = time.perf_counter() - begun
    try:
        on_gpu = partial(gpu.msm, bases, vector)
        if not np.array_equal(on_gpu(), expected):
            raise Failed(f"msm {group} {curve} 2^{log}, {scalars}: the GPU's sum is not the CPU's")
        contest = [_contestant(shape, Variant(CUDA, None), partial(fastest, on_gpu))]
        if cpu:
            call = partial(host.msm, host.prepare_bases(which, points), words)
            contest.append(_contestant(shape, _all_threads(machine), partial(fastest, call)))
        rows = _measured(contest, rounds, Job(threads=1))
        with _profile(machine.device) as kernels:
            on_gpu()
    finally:
        gpu.free(vector, bases)
    plan = bases.plan
    rows[0] |= {"window": plan.c, "windows": plan.windows, "depth": plan.depth}
    rows[0] |= _kernels(kernels) | {"prepare_s": significant(prepared)}
    # A mixed addition for each digit, of which few are zero; rounds of pairs are made of others.
    if scalars == FULL_WIDTH and not getattr(plan.tuning, "rounds", 0):
        additions = plan.windows * (1 << log)
        rows[0] |= machine.share(additions, mixed_addition(params, which), rows[0]["wall"]["median_s"])
    return rows


def once(machine: Machine, operation: str, curve: str, log: int) -> list[Row]:
    """A transform or a multi-scalar multiplication in G1, unmeasured: what a profiler looks at."""
    params, rng = curve_by_name(curve), np.random.default_rng(SEED)
    gpu, words = machine.backend(CUDA, params), full_width(params, 1 << log, rng)
    vector = gpu.upload(words)
    if operation == "ntt":
        gpu.ntt(vector, Domain(params.scalar, log), Direction.FORWARD)
    else:
        few = min(log, ONCE_DISTINCT)
        points = np.tile(_distinct(machine, params, Group.G1, few), ((1 << log) >> few, 1))
        gpu.msm(gpu.prepare_bases(Group.G1, points, machine.device.free_memory() // 2), vector)
    machine.device.synchronize()
    return []


# Proofs ----------------------------------------------------------------------------------------

BLINDING = {"groth16": 2, "plonk": 11, "fflonk": 9}
"""Values that blind a proof."""
MAKERS: dict[str, Callable[[int, CurveParams], Circuit]] = {"chain": chain_circuit, "bits": bits_circuit}


def proof(
    machine: Machine,
    curve: str,
    circuit: str,
    log: int,
    rounds: int,
    cpu: bool,
    cold: bool = True,
    protocol: str = "groth16",
) -> list[Row]:
    """A whole proof, key loaded, by the GPU and by the CPU; then by a process of its own on the GPU."""
    params, name = curve_by_name(curve), f"{circuit} 2^{log}"
    stem = machine.folder / f"{'' if protocol == 'groth16' else protocol + '_'}{circuit}_{log}.{curve}"
    zkey, wtns = stem.with_suffix(f".{curve}.zkey"), stem.with_suffix(f".{curve}.wtns")
    rows: list[Row] = []
    if not (zkey.exists() and wtns.exists()):
        rows.append(_set_up(machine, params, circuit, log, zkey, wtns, protocol))
    machine.kept.clear()
    key = gpuprover.load_key(zkey)
    blinding = tuple(range(3, 3 + BLINDING[protocol]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gpuprover.InsecureBlindingWarning)
        proofs = [gpuprover.prove(key, wtns, device=d, blinding=blinding).proof for d in (CUDA, "cpu")]
    if proofs[0] != proofs[1]:
        raise Failed(f"proof {name} {curve}: with one blinding the GPU's proof is not the CPU's")
    shape: Row = {"operation": f"{protocol} prove", "curve": curve, "circuit": name, "implementation": OURS}
    shape |= {"constraints": key.constraints, "domain": key.demand.domains[0].size, "checked": True}

    def warm(variant: Variant) -> Contestant:
        def run() -> Sample:
            done: list[gpuprover.ProofResult] = []
            threads = variant.threads if variant.device == "cpu" else machine.threads
            sample = timed(
                lambda: done.append(gpuprover.prove(key, wtns, device=variant.device, threads=threads))
            )
            return sample._replace(phases=done[0].timings)

        return Contestant(name, {**shape, "mode": "warm", **variant.fields}, run)

    on_gpu = Variant(CUDA, None)
    contest = [warm(on_gpu)] + ([warm(_all_threads(machine))] if cpu else [])
    measured = _measured(contest, rounds, Job(threads=1))
    with _profile(machine.device) as kernels:
        gpuprover.prove(key, wtns, device=CUDA)
    measured[0] |= _kernels(kernels)
    if cold:
        measured.append({**shape, **on_gpu.fields, **_cold(machine, zkey, wtns)})
    return rows + measured


def _cold(machine: Machine, zkey: Path, wtns: Path) -> Row:
    """Our command line on the GPU, once: its files are in the system's cache, its kernels compiled."""
    outputs = [str(machine.folder / f"{kind}.json") for kind in ("proof", "public")]
    command = [*python_command(), "prove", str(zkey), str(wtns), *outputs, "--quiet", "--device", CUDA]
    sample, _ = run_process(command, check=lambda: None, limit=COLD_LIMIT)
    row: Row = {"mode": "cold", "peak": sample.peak}
    return {**row, "cpu": spread([sample.cpu or 0.0]), "wall": spread([sample.wall or 0.0])}


def _set_up(
    machine: Machine, params: CurveParams, circuit: str, log: int, zkey: Path, wtns: Path, protocol: str
) -> Row:
    """Makes a circuit that fills the domain of 2^log, its witness and its key."""
    r1cs = zkey.with_suffix(".r1cs")
    constraints = (1 << log) - min(CHAIN_ROOM, 1 << log >> 3)
    MAKERS[circuit](max(4, constraints), params).write(r1cs, wtns)
    row: Row = {"operation": "setup", "implementation": OURS, "mode": "once", "device": "cuda"}

    def made(device: str) -> Sample:
        return timed(
            lambda: gpuprover.setup(
                r1cs, zkey, protocol=protocol, insecure=True, device=device, threads=machine.threads
            )
        )

    try:
        sample = made(CUDA)
        gpuprover.prove(zkey, wtns, device="cpu", threads=machine.threads)
    except ProverError as error:
        # Whatever is wrong with it, proofs can still be measured.
        row |= {"device": "cpu", "instead": f"of the GPU: {error.message}"}
        sample = made("cpu")
    r1cs.unlink()
    row |= {"circuit": f"{circuit} 2^{log}", "curve": params.name, "threads": machine.threads}
    row |= {} if protocol == "groth16" else {"protocol": protocol}
    return {**row, "cpu": spread([sample.cpu or 0.0]), "wall": spread([sample.wall or 0.0])}


KINDS_OF_CASES: dict[str, Callable[..., list[Row]]] = {
    "environment": environment,
    "rate": rate,
    "ntt": ntt,
    "msm": msm,
    "once": once,
    "proof": proof,
}
