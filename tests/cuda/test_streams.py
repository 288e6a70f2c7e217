"""Work on several streams: as late as it may be done, each kind of stream before the other, and at random.

Every case of :data:`CASES` has the CPU's result under every :class:`fake_cupy.Schedule`. Whatever gives work
to a stream beside the main one needs a case: ``test_a_sample_under_every_schedule`` fails without.
"""

from __future__ import annotations

import ast
import random
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpuprover.cuda
from gpuprover.cuda import backend as backend_module
from gpuprover.cuda import cupy_device, probe
from gpuprover.cuda import residency as residency
from gpuprover.cuda.backend import CudaBackend
from gpuprover.cuda.cupy_device import CupyDevice
from gpuprover.cuda.device import MAIN, OnStream
from gpuprover.cuda.msm import Msm
from gpuprover.cuda.msm_plan import TUNING, MsmPlan
from gpuprover.cuda.residency import Residency
from gpuprover.curves import BN254, Group
from gpuprover.devices import open_backend
from gpuprover.job import Job
from gpuprover.limbs import Words, ints_to_words, words_to_ints
from gpuprover.polynomial import Coset, Direction, Domain, Order
from gpuprover.systems.groth16.key import load_key
from tests.support import cuda_midnight, cuda_plonk, cuda_proofs, fake_cupy
from tests.support.fake_cupy import Machine, Schedule
from tests.support.plonk import sample as plonk_sample
from tests.support.samples import combination, cpu_points, plain, point_words, random_logs

pytestmark = [pytest.mark.kernels_offline, pytest.mark.usefixtures("quick_sums")]
CURVE = BN254
PACKAGE = Path(str(gpuprover.cuda.__file__)).parent
STREAM_AT = {"launch": None, "run": 2, "write": 2, "read": 2, "fill": 3, "copy": 3}
"""Methods of a device that take a stream, and which of their arguments it is; None: only by name."""
DEVICES = ("cupy_device.py", "device.py", "rehearsal.py")
MAIN_LATE = Schedule.LATE, Schedule.SIDES_FIRST
SEEDS = 3
"""Of random schedules, where they are not a sample."""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes with which a small proof goes through what a large one does."""
    monkeypatch.setattr(probe, "_lost", {})
    monkeypatch.setattr(cupy_device, "load_cubin", lambda program, *_: fake_cupy.fake_cubin(program))
    monkeypatch.setattr(backend_module, "OnStream", fake_cupy.Told)
    monkeypatch.setattr(cupy_device, "CHUNK", 1 << 12)
    # Three slices of every sum: the third one lies where the first was.
    monkeypatch.setattr(residency, "SHORTEST_SLICE", 43)
    monkeypatch.setattr(residency, "SHORTEST_TABLE", 1)


class Watched(CupyDevice):
    """Remembers which functions gave work to streams beside the main one, theirs or the device's."""

    def __init__(self, machine: Machine) -> None:
        self.working: set[str] = set()
        self.machine = machine
        super().__init__(0)


def _watch(name: str) -> Any:
    real, at = getattr(CupyDevice, name), STREAM_AT[name]

    def method(self: Watched, *arguments: Any, **options: Any) -> Any:
        stream = options.get("stream", MAIN)
        if at is not None and len(arguments) > at:
            stream = arguments[at]
        frame = sys._getframe(1)
        if isinstance(frame.f_locals.get("self"), OnStream):
            stream, frame = frame.f_locals["stream"], frame.f_back or frame
        if stream != MAIN:
            self.working.add(f"{Path(frame.f_code.co_filename).name} {frame.f_code.co_name}")
        return real(self, *arguments, **options)

    return method


for _name in STREAM_AT:
    if hasattr(CupyDevice, _name):
        setattr(Watched, _name, _watch(_name))


def opened(schedule: Schedule, seed: int = 0) -> tuple[Machine, Watched]:
    machine = Machine(schedule=schedule, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        machine.install(patch)
        return machine, Watched(machine)


def calls_with_streams(path: Path) -> set[str]:
    """Functions of a module that hand a stream, and not just the main one, to a device."""
    found: set[str] = set()

    def look(node: ast.AST, function: str) -> None:
        if isinstance(node, ast.FunctionDef):
            function = node.name
        name = getattr(node.func, "attr", None) if isinstance(node, ast.Call) else None
        if isinstance(node, ast.Call) and name in STREAM_AT:
            at = STREAM_AT[name]
            streams = [word.value for word in node.keywords if word.arg == "stream"]
            streams += [] if at is None else node.args[at : at + 1]
            if any(getattr(stream, "id", "") != "MAIN" for stream in streams):
                found.add(f"{path.name} {function}")
        for child in ast.iter_child_nodes(node):
            look(child, function)

    if path.name not in DEVICES:
        look(ast.parse(path.read_text()), "")
    return found


# Cases -----------------------------------------------------------------------------------------


@lru_cache
def layouts() -> tuple[tuple[residency.Layout, int, int], ...]:
    """All that a proof with the larger key may have, the best first."""
    demand = load_key(cuda_proofs.larger(CURVE)[0]).demand
    gpu = cuda_proofs.opened()
    backend = cuda_proofs.backend_on(gpu, CURVE, Job(threads=1))

    def rehearse(layout: residency.Layout) -> int:
        return backend._arena_bytes(demand, layout)

    return (*residency.layouts(demand, gpu.device, (), rehearse, 1 << 40, (), shared=False),)


def least() -> int:
    """The smallest budget of a proof."""
    return min(held + arena for _, held, arena in layouts())


def proof(device: Watched, budget: int | None = None, times: int = 1) -> None:
    data, witness = cuda_proofs.larger(CURVE)
    gpu, key = Residency(device), load_key(data)
    for _ in range(times):
        assert cuda_proofs.prove(key, witness, gpu, budget=budget) == cuda_proofs.expected(data)
    assert gpu.leaked == 0


def whole_proof(device: Watched) -> None:
    proof(device)


def proofs_with_tables(device: Watched) -> None:
    """Of a key that comes again; short ones, as they are made on the main stream alone."""
    proof(device, 3 * sum(layouts()[0][1:]), times=3)


def leanest_proof(device: Watched) -> None:
    proof(device, least())


def every_layout(device: Watched) -> None:
    assert len({layout for layout, _, _ in layouts()}) > 8
    for layout in layouts():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(residency, "layouts", lambda *_, layout=layout, **__: iter([layout]))
            proof(device)


def proofs_of_several_threads(device: Watched) -> None:
    """One key with all of it on the device, one whose points are sent, and one in the leanest layout."""
    data, witness = cuda_proofs.larger(CURVE)
    gpu = Residency(device)
    ample = sum(layouts()[0][1:])
    several = [(load_key(data), budget) for budget in (ample, (2 * least() + ample) // 3, least())]
    found: list[Any] = []
    all_asked = threading.Barrier(len(several))
    waited = threading.local()
    real = Msm.finish

    def finish(self: Msm, *begun: Any) -> Any:
        if isinstance(self.device, OnStream) and not hasattr(waited, "once"):  # and not a rehearsal
            waited.once = all_asked.wait(15)
        return real(self, *begun)

    def run(key: Any, budget: int | None) -> None:
        try:
            found.extend(cuda_proofs.prove(key, witness, gpu, budget=budget) for _ in range(2))
        except BaseException as error:
            found.append(error)

    threads = [threading.Thread(target=run, args=one) for one in several]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Msm, "finish", finish)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [cuda_proofs.expected(data)] * 6
    assert gpu.leaked == 0
    if device.machine.schedule in MAIN_LATE:
        assert device.machine.together == len(several), "no proof waits for another's work"


def within(another: Callable[[], None], first: Callable[[], None]) -> None:
    """Makes ``another`` proof when the ``first`` has asked for all but its sums."""
    real = CudaBackend.msm_many

    def msm_many(self: CudaBackend, requests: Any, *meanwhile: Any) -> Any:
        if isinstance(self._device, OnStream):  # not a rehearsal
            patch.undo()
            another()
        return real(self, requests, *meanwhile)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CudaBackend, "msm_many", msm_many)
        first()


def proofs_that_share_tables(device: Watched) -> None:
    """One makes the tables of a key that comes again, and another uses them before they are made."""
    data, witness = cuda_proofs.larger(CURVE)
    gpu, key = Residency(device), load_key(data)
    budget = 3 * sum(layouts()[0][1:])

    def prove() -> None:
        assert cuda_proofs.prove(key, witness, gpu, budget=budget) == cuda_proofs.expected(data)

    def with_what_is_there() -> None:
        there = gpu.residents.of(key)
        assert any(residency.has_multiples(entry.kind) for entry in there)
        prove()
        assert gpu.residents.of(key) == there

    prove()
    device.machine.together = 0
    within(with_what_is_there, prove)
    if device.machine.schedule in MAIN_LATE:
        assert device.machine.together == 2, "each has a main stream of its own"


def proofs_in_memory_of_others(device: Watched) -> None:
    """Whichever streams a proof gets, what was in its memory is wiped before, and not later."""
    data, witness = cuda_proofs.larger(CURVE)
    gpu, key, machine = Residency(device), load_key(data), device.machine

    def prove() -> None:
        assert cuda_proofs.prove(key, witness, gpu) == cuda_proofs.expected(data)

    def run_in_turns() -> None:
        # Each stream of its own accord: that of the new proof first, and those of the others then.
        for streams in (own, *gpu._streams):
            for stream in streams:
                machine.handles[device._streams[stream]].force()

    within(prove, prove)
    assert len(gpu._streams) == 2
    gpu._streams.reverse()
    own = gpu._streams[-1]
    within(run_in_turns, prove)


def points_of(groups: Sequence[Group], sums: Sequence[Words]) -> list[Any]:
    return [plain(CURVE, group, s) for group, s in zip(groups, sums, strict=True)]


def sums(device: Watched) -> None:
    """Of several groups and plans, with bases there and bases that are sent; one after another."""
    rng = random.Random(1)
    device.properties = replace(device.properties, multiprocessors=4)
    for n, at_once, rounds in ((0, 1, 0), (5, 5, 0), (5, 2, 0), (4, 4, 2)):
        # Several groups' points in one slice are a proof's.
        groups = (Group.G1,) if n > at_once else (Group.G1, Group.G2)
        # With few runs, no trees: they are summed up in the cases of proofs.
        tuning = replace(TUNING, block=32, shortest=1, rounds=rounds, runs=64)
        # Additions in pairs are for buckets that several points fall into: of a table of some windows.
        plan = MsmPlan(CURVE, groups, at_once, 4, 8 if rounds else 1, tuning)
        assert plan.rounds == rounds
        logs = [random_logs(rng, n) for _ in groups]
        scalars = [rng.randrange(CURVE.r) for _ in range(n)]
        msm, words = Msm(device, CURVE, cpu_points(CURVE)), ints_to_words(scalars, CURVE.scalar.limbs)
        at, side = device.allocate(words.nbytes), device.new_stream()
        device.write(at, words)
        points = [point_words(CURVE, g, k) for g, k in zip(groups, logs, strict=True)]
        want = [combination(CURVE, g, k, scalars) for g, k in zip(groups, logs, strict=True)]
        if n > at_once or not n:
            slices = msm.sum_slices(plan, [*zip(groups, points, strict=True)], [(at, n)], side)[0]
            assert points_of(groups, slices) == want
        if n <= at_once:
            bases = [msm.bases(plan, g, p) for g, p in zip(groups, points, strict=True)]
            # A proof has sorts and reductions of others beside each other as well.
            sorts, last = (device.new_stream(), device.new_stream()) if rounds or not n else (MAIN, None)
            digits = msm.digits(plan, at, n, stream=sorts)
            begun = [msm.sum(b, digits, side if b.group is Group.G2 else MAIN, last) for b in bases]
            assert points_of(groups, msm.finish(*([s] for s in begun))) == want
            msm.release(digits, *bases)
        device.release(at)


def alone(device: Watched) -> None:
    """Sums and transforms outside of a proof, whose memory goes and comes between them."""
    rng, gpu = random.Random(2), Residency(device)
    backend, cpu = (
        cuda_proofs.backend_on(gpu, CURVE, Job(threads=1)),
        open_backend("cpu", CURVE, Job(threads=1)),
    )
    n, domain = 32, Domain(CURVE.scalar, 5)
    logs = random_logs(rng, n)
    points = point_words(CURVE, Group.G1, logs)
    bases = backend.prepare_bases(Group.G1, points)
    sent = replace(bases, plan=replace(bases.plan, n=11, depth=1), block=None, points=points)
    for _ in range(2):
        scalars = [rng.randrange(CURVE.r) for _ in range(n)]
        words, want = ints_to_words(scalars, CURVE.scalar.limbs), combination(CURVE, Group.G1, logs, scalars)
        v, w = backend.upload(words), cpu.upload(words)
        for held in (bases, sent):
            assert plain(CURVE, Group.G1, backend.msm(held, v)) == want
        for order in (Order.NATURAL_TO_NATURAL, Order.NATURAL_TO_REVERSED):
            backend.ntt(v, domain, Direction.FORWARD, order, Coset.ODD)
            cpu.ntt(w, domain, Direction.FORWARD, order, Coset.ODD)
        assert np.array_equal(backend.download(v), cpu.download(w))
        # Scratch and vectors of one operation are those of the next one.
        values, x = words_to_ints(backend.download(v)), rng.randrange(CURVE.r)
        for _ in range(2):
            quotient, remainder = backend.divide(v, x)
            (at_x,), rest = backend.values_at([(v, x)]), words_to_ints(backend.download(remainder))
            assert rest == [at_x] == [sum(c * pow(x, i, CURVE.r) for i, c in enumerate(values)) % CURVE.r]
            ratios = backend.running_product(v, v)
            assert words_to_ints(backend.download(ratios)) == [1] * (n + 1)
            backend.free(quotient, remainder, ratios)
        backend.free(v)
    backend.free(bases)


def proofs_of_gates(device: Watched) -> None:
    """PLONK's and FFLONK's, whose requests of one SRS are sorted beside sums; then with tables."""
    for protocol in cuda_plonk.SYSTEMS:
        which = plonk_sample("one-gate", protocol)
        gpu, key = Residency(device), cuda_plonk.key(which)
        for _ in range(2):
            assert cuda_plonk.prove(which, key, gpu) == which.proof
        assert gpu.leaked == 0


def leanest_proofs_of_gates(device: Watched) -> None:
    """With points and columns that are sent, and cosets in chunks."""
    for protocol in cuda_plonk.SYSTEMS:
        which, gpu = plonk_sample("adds", protocol), Residency(device)
        key, backend = cuda_plonk.key(which), cuda_proofs.backend_on(gpu, CURVE)
        *_, demand = key.demand.choices

        def rehearse(layout: residency.Layout, backend: CudaBackend = backend, demand: Any = demand) -> int:
            return backend._arena_bytes(demand, layout)

        found = residency.layouts(demand, device, (), rehearse, 1 << 40, (), shared=False)
        budget = min(held + arena for _, held, arena in found)
        assert cuda_plonk.prove(which, key, gpu, budget=budget) == which.proof
        assert gpu.leaked == 0


def proof_of_midnight(device: Watched) -> None:
    """Whose columns are committed as the host has them, and sent a second time for their polynomials."""
    gpu, key = Residency(device), cuda_midnight.key("hello")
    assert cuda_midnight.prove("hello", key, gpu) == cuda_midnight.expected("hello")
    assert gpu.leaked == 0


SAMPLE: list[Callable[[Watched], None]] = [whole_proof, leanest_proof, sums, alone]
AT_ONCE: list[Callable[[Watched], None]] = [proofs_that_share_tables, proofs_in_memory_of_others]
CASES = [
    *(*SAMPLE, *AT_ONCE, proofs_with_tables, every_layout, proofs_of_several_threads),
    *(proofs_of_gates, leanest_proofs_of_gates, proof_of_midnight),
]


@pytest.mark.parametrize(
    "schedule", [Schedule.SIDES_FIRST, Schedule.MAIN_FIRST, Schedule.RANDOM], ids=lambda s: s.name.lower()
)
def test_a_sample_under_every_schedule(schedule: Schedule, rng: random.Random) -> None:
    """And with that, whoever passes a stream to the device does so with another one than the main."""
    seen: set[str] = set()
    for case in SAMPLE:
        machine, device = opened(schedule, rng.randrange(1 << 32))
        case(device)
        assert machine.beside, f"{case.__name__} uses no side stream"
        seen |= device.working
    wanted = set().union(*map(calls_with_streams, PACKAGE.glob("*.py")))
    assert len(wanted) > 3
    assert wanted <= seen, "what works on side streams needs a case in SAMPLE"


@pytest.mark.parametrize("case", AT_ONCE, ids=lambda case: case.__name__)
def test_several_proofs_at_once(case: Callable[[Watched], None]) -> None:
    case(opened(Schedule.LATE)[1])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
@pytest.mark.parametrize("schedule", Schedule, ids=lambda s: s.name.lower())
def test_every_case_under_every_schedule(
    schedule: Schedule, case: Callable[[Watched], None], rng: random.Random
) -> None:
    for _ in range(SEEDS if schedule is Schedule.RANDOM else 1):
        machine, device = opened(schedule, rng.randrange(1 << 32))
        machine.threads = case is proofs_of_several_threads
        case(device)
