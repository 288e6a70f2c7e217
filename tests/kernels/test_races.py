"""Every kernel on a device that sees races, unwritten and foreign memory, with threads in random order.

Controls show that it would see them: whichever barrier of the kernels is taken out, a race is found. What
this cannot show are races in branches that these sizes do not take.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest

from gpuprover.backend import Form
from gpuprover.cuda import msm_plan
from gpuprover.cuda.device import Program
from gpuprover.cuda.msm import Msm
from gpuprover.cuda.msm_plan import MsmPlan, windows_for
from gpuprover.cuda.residency import Residency
from gpuprover.curves import BN254, CURVES, CurveParams, FieldParams, Group
from gpuprover.limbs import Words, field_to_words, ints_to_words
from gpuprover.polynomial import Domain
from gpuprover.systems.groth16.key import load_key
from tests.cuda import test_columns, test_sparse
from tests.cuda.test_msm import SMALL, check, put
from tests.cuda.test_ntt import OtherCoset, Split, check_all
from tests.support import cuda_proofs, emulator
from tests.support.emulator import WatchedDevice
from tests.support.samples import POINT_KINDS, cpu_points, point_words, random_logs

# Watched programs take a compiler some seconds, and minutes on a machine that does much else.
pytestmark = [pytest.mark.kernels_offline, pytest.mark.timeout(1200)]

SOURCES = {path.name: path.read_text() for path in (emulator.ROOT / "kernels").glob("*.cu")}
KERNEL = re.compile(r"^KERNEL(?:\s+__launch_bounds__\([^)]*\))?\s+(\w+)\(", re.MULTILINE)


def vectors(device: WatchedDevice, curve: CurveParams, rng: random.Random) -> None:
    field, n = curve.scalar, 200
    given = [field_to_words(field, [rng.randrange(field.modulus) for _ in range(n)]) for _ in range(3)]
    a, b, c = (put(device, words) for words in given)
    out = device.allocate(n * field.bytes)
    launch = partial(device.launch, Program(curve, "vector.cu"))
    for operation in range(3):
        launch("pointwise", 3, 33, operation, a, b, a, 1, n)
    launch("multiply_subtract", 3, 33, a, b, c, 0, n)
    for operation in range(2):
        launch("convert", 3, 33, operation, a, a, 0, n)
    launch("scale_powers", 3, 33, a, b, 2, n)
    launch("batch_inverse", 3, 33, a, out, 0, n)


def products(device: WatchedDevice, curve: CurveParams, rng: random.Random) -> None:
    """Rows of one chunk and of two levels, in slices."""
    rows, lengths = test_sparse.SHAPES["a row of two levels"]()
    entries = test_sparse.random_entries(rng, curve.r, lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_sparse, "EmulatedDevice", lambda **_: device)
        for resident in (True, False):
            test_sparse.check(curve, rng, rows, entries, resident=resident, size=64)


def transforms(device: WatchedDevice, curve: CurveParams, rng: random.Random, compact: bool = False) -> None:
    """In one pass and in several; cosets in the table and outside of it, where other kernels scale."""
    for domain_type in (Domain, OtherCoset):
        splits = [Split((2,)), Split((7,)), Split((4, 4), 7)] if not compact else []
        for s in (*splits, Split((3, 4, 3), 6, compact)):
            check_all(device, domain_type(curve.scalar, s.log_n), s, rng)


def digits(device: WatchedDevice, curve: CurveParams, rng: random.Random) -> None:
    """Blocks of two warps, bins of several tiles, and more bins than a block has threads."""
    sums = Msm(device, curve, cpu_points(curve))
    for n, c, form in ((150, 5, Form.CANONICAL), (70, 8, Form.MONTGOMERY)):
        scalars = [rng.choice((3, rng.randrange(curve.r))) for _ in range(n)]
        words = (field_to_words if form is Form.MONTGOMERY else _canonical)(curve.scalar, scalars)
        plan = MsmPlan(curve, (Group.G1,), n, c, 1, replace(SMALL, tile=128))
        sums.release(sums.digits(plan, put(device, words), n, form))


def _canonical(field: FieldParams, values: list[int]) -> Words:
    return ints_to_words(values, field.limbs)


def sums(device: WatchedDevice, curve: CurveParams, rng: random.Random, group: Group) -> None:
    """Tables, long and short buckets, heads over several warps, trees of several blocks, special points."""
    for depth, c, segments in ((3, 5, 24), (1, 4, 70), (windows_for(curve, 8), 8, 24)):
        n = 40
        plan = MsmPlan(curve, (group,), n, c, depth, replace(SMALL, segments=segments, runs=32))
        scalars = [rng.choice((1, 1, rng.randrange(curve.r))) for _ in range(n)]
        check(device, plan, random_logs(rng, n), scalars)
    plan = MsmPlan(curve, (group,), 30, 8, 2, replace(SMALL, shortest=2))
    for kind in POINT_KINDS.values():
        check(device, plan, kind(rng, 30), [rng.choice((0, 1, 3 << 200)) for _ in range(30)])
    # Any points will do for a table.
    table = np.tile(point_words(curve, group, random_logs(rng, 8)), (255 * curve.scalar.bytes // 8 + 1, 1))
    scalars = [0, 1, *(rng.randrange(curve.r) for _ in range(40))]
    out = device.allocate(len(scalars) * 8 * group.words(curve))
    at = put(device, ints_to_words(scalars, curve.scalar.limbs))
    Msm(device, curve, cpu_points(curve)).multiples(group, put(device, table), at, len(scalars), out)


def pairs(device: WatchedDevice, curve: CurveParams, rng: random.Random, group: Group) -> None:
    """Several blocks and places a thread; special points."""
    n = 33
    plan = MsmPlan(curve, (group,), n, 4, 1, replace(SMALL, rounds=2, shortest=3))
    check(device, plan, random_logs(rng, n), [rng.randrange(curve.r) for _ in range(n)])
    for kind in POINT_KINDS.values():
        check(device, plan, kind(rng, n), [rng.choice((0, 1, 3 << 200)) for _ in range(n)])


def rates(device: WatchedDevice, curve: CurveParams, rng: random.Random) -> None:
    blocks, threads, rounds = 2, 40, 3
    n = blocks * threads
    launch = partial(device.launch, Program(curve, "rates.cu"))
    given = put(device, field_to_words(curve.scalar, [rng.randrange(curve.r) for _ in range(8 * n)]))
    points = put(device, point_words(curve, Group.G1, random_logs(rng, 16)))
    index = put(device, np.array([rng.randrange(n) for _ in range(n)], np.uint32))
    out = device.allocate(4 * n * curve.g1_words * 8)
    launch("nothing", 1, 32)
    for kernel in (
        "wide_multiplies",
        "wide_rows",
        "double_multiplies",
        "products_fq",
        "products_fr",
        "squares_fq",
    ):
        launch(kernel, blocks, threads, given, out, rounds)
    launch("additions_g1", blocks, threads, points, 16, out, rounds)
    launch("copy_quads", blocks, threads, given, out, 2 * n)
    for kernel in ("gather_64", "gather_128"):
        launch(kernel, blocks, threads, given, index, out, n)


def columns(device: WatchedDevice, curve: CurveParams, rng: random.Random) -> None:
    """Several blocks, tiles and levels of each operation."""
    stage = test_columns.Stage(curve, rng, device)
    for registers in (600, 63):
        test_columns.test_formulas(stage, registers)
    test_columns.test_sums_of_shifted_vectors(stage, 17)
    test_columns.test_powers(stage, 31)
    test_columns.test_powers_in_reversed_order(stage, 4)
    test_columns.test_places(stage)
    test_columns.test_polynomials_on_a_coset(stage, 50)
    test_columns.test_signals(stage, 30)
    test_columns.test_values_at_points(stage, (99, 40))
    for n, degree in ((150, 1), (61, 2), (45, 9)):
        test_columns.test_division(stage, n, degree)
    test_columns.test_running_products(stage, 150)


Work = Callable[[WatchedDevice, CurveParams, random.Random], None]
"""Launches all kernels of a file, and checks what most of them compute."""
WORK: dict[str, tuple[str, Work]] = {
    "vectors": ("vector.cu", vectors),
    "sparse products": ("sparse.cu", products),
    "transforms": ("ntt.cu", transforms),
    "compact transforms": ("ntt.cu", partial(transforms, compact=True)),
    "columns": ("columns.cu", columns),
    "digits": ("digits.cu", digits),
    "sums in G1": ("msm.cu", partial(sums, group=Group.G1)),
    "sums in G2": ("msm.cu", partial(sums, group=Group.G2)),
    "pairs in G1": ("pairs.cu", partial(pairs, group=Group.G1)),
    "pairs in G2": ("pairs.cu", partial(pairs, group=Group.G2)),
    "rates": ("rates.cu", rates),
}
BARRIER = re.compile(r"__sync(?:threads|warp)\(\);")
CURVE = {curve.name: curve for curve in CURVES}
BARRIERS = [
    (name, k)
    for name in ("transforms", "columns", "digits", "sums in G1", "pairs in G1")
    for k in range(len(BARRIER.findall(SOURCES[WORK[name][0]])))
]


def slow_but(fast: set[tuple[Any, ...]], all_of_them: Iterable[tuple[Any, ...]]) -> list[Any]:
    """A program takes a compiler some seconds: few of them are for the fast tests."""
    return [pytest.param(*v, marks=[] if v in fast else [pytest.mark.slow]) for v in all_of_them]


@pytest.mark.parametrize(("name", "which"), slow_but({("digits", "bn254")}, product(WORK, CURVE)))
def test_no_kernel_races(name: str, which: str, seed: str, rng: random.Random) -> None:
    source, work = WORK[name]
    device = WatchedDevice(seed=seed)
    work(device, CURVE[which], rng)
    assert set(device.kernels) >= set(KERNEL.findall(SOURCES[source]))


def test_every_kernel_is_watched() -> None:
    assert {source for source, _ in WORK.values()} == set(SOURCES)
    for source, text in SOURCES.items():
        assert len(KERNEL.findall(text)) == len(re.findall(r"^KERNEL", text, re.MULTILINE)), source
        assert not BARRIER.search(text) or source in {WORK[name][0] for name, _ in BARRIERS}, source


@pytest.mark.slow
def test_no_race_in_whole_proofs(curve: CurveParams, seed: str, quick_sums: None) -> None:
    """What one launch leaves for another, in two proofs: the second one with what is kept of the key."""
    device = WatchedDevice(seed=seed)
    key, gpu = cuda_proofs.chain_key(curve), Residency(device)
    for _ in range(2):
        assert cuda_proofs.prove(key, cuda_proofs.chain_witness(curve), gpu) == cuda_proofs.expected(curve)


@pytest.mark.slow
def test_no_race_in_a_proof_with_pairs(seed: str, quick_sums: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(msm_plan, "TUNING", replace(msm_plan.TUNING, rounds=2))
    data, witness = cuda_proofs.larger(BN254)
    device = WatchedDevice(seed=seed)
    assert cuda_proofs.prove(load_key(data), witness, Residency(device)) == cuda_proofs.expected(data)
    assert "add_pairs" in device.kernels


# Controls: what is seen --------------------------------------------------------------------


@pytest.fixture
def altered(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Puts another text in the place of a file of kernels/."""
    real = emulator.sources

    def alter(source: str, text: str) -> None:
        monkeypatch.setattr(emulator, "sources", lambda curve: {**real(curve), source: text})
        emulator.library.cache_clear()

    yield alter
    emulator.library.cache_clear()


@pytest.mark.parametrize(("name", "k"), slow_but({("digits", 3)}, BARRIERS))
def test_no_barrier_can_go(
    name: str, k: int, altered: Callable[[str, str], None], seed: str, rng: random.Random
) -> None:
    """Without any one of the barriers there is a race, which is found."""
    source, work = WORK[name]
    text = SOURCES[source]
    found = [*BARRIER.finditer(text)][k]
    altered(source, text[: found.start()] + text[found.end() :])
    with pytest.raises(AssertionError, match=r"race in \w+ memory: .*:\d+"):
        work(WatchedDevice(seed=seed), BN254, rng)
