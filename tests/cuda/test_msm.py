"""Multi-scalar multiplication on the emulated device, phase by phase and whole, against the specification.

Sums of multiples of the generator have the right answer in one multiplication (``samples.combination``).
"""

from __future__ import annotations

import random
import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest

from gpuprover.backend import Form
from gpuprover.cuda.device import Address, Properties
from gpuprover.cuda.msm import Digits, Msm
from gpuprover.cuda.msm_plan import (
    TUNING,
    MsmPlan,
    choose_plan,
    mixed_addition,
    paired_addition,
    predicted_seconds,
    windows_for,
)
from gpuprover.curves import BN254, CURVES, AffinePoint, CurveParams, Group, curve_by_name
from gpuprover.devices import open_backend
from gpuprover.errors import Cancelled, DeviceError, InvalidInput, OutOfMemory
from gpuprover.job import Job
from gpuprover.limbs import Words, field_to_words, ints_to_words
from tests.support.emulator import EmulatedDevice, Faults
from tests.support.samples import (
    POINT_KINDS,
    SCALAR_KINDS,
    combination,
    cpu_points,
    curve_point,
    plain,
    point,
    point_words,
    random_logs,
    spec,
    square_root,
    to_words,
)

pytestmark = pytest.mark.kernels_offline

SMALL = replace(TUNING, block=64, tile=512, shortest=1, runs=4, span=4, inversions=3, segments=24)
"""Sizes with which a few points go through what millions do: many tiles, buckets in pieces, deep trees."""
H200 = Properties("NVIDIA H200", "sm_90", 132, 2048, 227 << 10, 141 << 30)


@pytest.fixture
def device(curve: CurveParams) -> EmulatedDevice:
    """Threads and blocks in order for one curve, in reverse for the other."""
    return EmulatedDevice(reversed=curve is not BN254)


def put(device: EmulatedDevice, words: Words) -> Address:
    address = device.allocate(max(1, words.nbytes))
    device.write(address, words)
    return address


def points_of(plan: MsmPlan, sums: Sequence[Words]) -> list[AffinePoint]:
    """Sums in the plan's groups."""
    return [plain(plan.curve, g, s) for g, s in zip(plan.groups, sums, strict=True)]


def run(
    device: EmulatedDevice, plan: MsmPlan, points: Sequence[Words], scalars: Sequence[int]
) -> list[AffinePoint]:
    """Σ scalars[i]·points[i] for bases in the plan's groups; nothing stays allocated."""
    msm, used = Msm(device, plan.curve, cpu_points(plan.curve)), device.used
    address = put(device, ints_to_words(scalars, plan.curve.scalar.limbs))
    bases = [msm.bases(plan, g, p) for g, p in zip(plan.groups, points, strict=True)]
    digits = msm.digits(plan, address, len(scalars))
    results = points_of(plan, msm.finish(*([msm.sum(b, digits)] for b in bases)))
    msm.release(*bases, digits)
    device.release(address)
    assert device.used == used
    return results


def check(
    device: EmulatedDevice, plan: MsmPlan, logs: Sequence[int], scalars: Sequence[int], about: Any = None
) -> None:
    (group,) = plan.groups
    (got,) = run(device, plan, [point_words(plan.curve, group, logs)], scalars)
    assert got == combination(plan.curve, group, logs, scalars), about


# Digits -----------------------------------------------------------------------------------------


def entries(device: EmulatedDevice, digits: Digits) -> list[tuple[int, int, int, int]]:
    """(row, i, set, digit) of every entry, in order."""
    plan, n = digits.plan, digits.points
    starts = np.empty(plan.buckets + 1, np.uint32)
    device.read(starts, digits.starts)
    values = np.empty(int(starts[-1]), np.uint32)
    device.read(values, digits.sorted)
    found = []
    for bucket in range(plan.buckets):
        assert starts[bucket] <= starts[bucket + 1]
        for value in map(int, values[starts[bucket] : starts[bucket + 1]]):
            row, i = divmod(value & 0x7FFFFFFF, n)
            kind, size = divmod(bucket, 1 << (plan.c - 1))
            found.append((row, i, kind, -(size + 1) if value >> 31 else size + 1))
    return found


def scalar_edges(r: int) -> list[int]:
    near = [r - 1, r - 2, r // 2, r // 2 + 1, r // 2 - 1]
    powers = [(1 << k) + d for k in (1, 5, 31, 32, 63, 64, 128, 252) for d in (-1, 0, 1)]
    return [0, 1, 2, *near, *powers, (1 << 253) - 1, sum(1 << k for k in range(3, 250, 4))]


@pytest.mark.parametrize(("c", "depth"), [(4, 1), (7, 37), (13, 2), (16, 16)])
def test_entries_are_the_scalars(device: EmulatedDevice, curve: CurveParams, c: int, depth: int) -> None:
    r = curve.r
    rng = random.Random(c)
    scalars = [*scalar_edges(r), *(rng.randrange(r) for _ in range(60)), *[3 << 90] * 200]
    plan = MsmPlan(curve, (Group.G1,), len(scalars), c, depth, SMALL)
    field = curve.scalar
    for form, words in (
        (Form.CANONICAL, ints_to_words(scalars, field.limbs)),
        (Form.MONTGOMERY, field_to_words(field, scalars)),
    ):
        msm, address = Msm(device, curve, cpu_points(curve)), put(device, words)
        digits = msm.digits(plan, address, len(scalars), form)
        sums, count = defaultdict(int), defaultdict(int)
        for row, i, kind, digit in entries(device, digits):
            assert row < plan.depth
            sums[i] += digit << c * (row * plan.sets + kind)
            count[i] += 1
        assert [sums[i] % r for i in range(len(scalars))] == scalars
        assert [count[i] for i in (0, 1, 3)] == [0, 1, 1], "0, 1 and r − 1"
        msm.release(digits)


def test_scalars_of_few_words(curve: CurveParams, device: EmulatedDevice, rng: random.Random) -> None:
    for words in range(1, curve.scalar.limbs):
        scalars = [0, 1, (1 << 64 * words) - 1, *(rng.randrange(1 << 64 * words) for _ in range(30))]
        plan = MsmPlan(curve, (Group.G1,), len(scalars), 6, 1)
        msm, address = Msm(device, curve, cpu_points(curve)), put(device, ints_to_words(scalars, words))
        digits = msm.digits(plan, address, len(scalars), words=words)
        sums = defaultdict(int)
        for _, i, kind, digit in entries(device, digits):
            sums[i] += digit << 6 * kind
        assert [sums[i] for i in range(len(scalars))] == scalars


def test_windows_reach_every_scalar(curve: CurveParams) -> None:
    for c in range(2, 25):
        windows = windows_for(curve, c)
        for count, enough in ((windows, True), (windows - 1, False)):
            largest = sum(1 << (c * w + c - 1) for w in range(count))
            assert (largest >= curve.r // 2) == enough


# Tables -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("inversions", [1, 3])
def test_tables(
    curve: CurveParams, group: Group, device: EmulatedDevice, inversions: int, rng: random.Random
) -> None:
    """Row j holds 2^(c·sets·j)·P: affine and canonical, infinity where it was."""
    logs = [0, 1, 5, 0, -7, *random_logs(rng, 4), 0]
    plan = MsmPlan(
        curve, (group,), len(logs), 6, windows_for(curve, 6) // 2, replace(SMALL, inversions=inversions)
    )
    # One block of threads, so that some take several points.
    device.properties = replace(device.properties, multiprocessors=1, threads=128)
    msm, words = Msm(device, curve, cpu_points(curve)), point_words(curve, group, logs)
    bases = msm.bases(replace(plan, depth=3), group, words)
    step = 6 * replace(plan, depth=3).sets
    got = np.empty((3 * len(logs), words.shape[1]), np.uint64)
    device.read(got, bases.address)
    expected = [
        spec(curve, group).scalar_mul(point(curve, group, k), 1 << step * j) for j in range(3) for k in logs
    ]
    assert (got == to_words(curve, group, expected)).all()


# Sums -------------------------------------------------------------------------------------------

PLANS = [(4, 1), (5, 3), (6, 43), (9, 4)]
"""(c, depth): no tables, a short one, a full one, buckets of one entry."""


@pytest.mark.parametrize(("c", "depth"), PLANS)
def test_sums(
    curve: CurveParams, group: Group, device: EmulatedDevice, c: int, depth: int, rng: random.Random
) -> None:
    for n in (0, 1, 2, 33) if depth == 3 else (33,):
        scalars = [rng.choice((rng.randrange(curve.r), rng.choice(scalar_edges(curve.r)))) for _ in range(n)]
        plan = MsmPlan(curve, (group,), n, c, min(depth, windows_for(curve, c)), SMALL)
        check(device, plan, random_logs(rng, n), scalars, n)


@pytest.mark.parametrize("kind", SCALAR_KINDS)
def test_kinds_of_scalars(curve: CurveParams, kind: str, rng: random.Random) -> None:
    n = 40
    plan = MsmPlan(curve, (Group.G1,), n, 5, 6, replace(SMALL, ahead=kind == "random"))
    check(EmulatedDevice(), plan, random_logs(rng, n), SCALAR_KINDS[kind](rng, curve.r, n))


@pytest.mark.parametrize("kind", POINT_KINDS)
def test_kinds_of_points(
    curve: CurveParams, group: Group, device: EmulatedDevice, kind: str, rng: random.Random
) -> None:
    """Equal points, opposite ones and infinity meet in one bucket, and in one warp."""
    n = 30
    plan = MsmPlan(curve, (group,), n, 8, 2, replace(SMALL, shortest=2))
    check(device, plan, POINT_KINDS[kind](rng, n), [rng.choice((0, 1, 3 << 200)) for _ in range(n)])


@pytest.mark.parametrize(
    ("segments", "scalars"), [(1, "random"), (3, "half equal"), (70, "one"), (70, "random"), (1000, "one")]
)
def test_segments_and_heads(
    curve: CurveParams, device: EmulatedDevice, segments: int, scalars: str, rng: random.Random
) -> None:
    """Buckets in one segment and across hundreds; heads in several warps and levels."""
    n = 100
    plan = MsmPlan(curve, (Group.G1,), n, 7, 2, replace(SMALL, segments=segments))
    check(device, plan, random_logs(rng, n), SCALAR_KINDS[scalars](rng, curve.r, n))


def test_heads_in_g2(curve: CurveParams, device: EmulatedDevice, rng: random.Random) -> None:
    """A warp holds 16 points; here one bucket has 48 heads, and another begins in the middle of a warp."""
    n = 60
    plan = MsmPlan(curve, (Group.G2,), n, 8, 1, replace(SMALL, segments=60))
    check(device, plan, random_logs(rng, n), [1] * 9 + [2] * 48 + [3] * 3)


@pytest.mark.parametrize(
    ("which", "group", "rounds"),
    [
        pytest.param(c.name, g, n, marks=[] if (c, g, n) == (BN254, Group.G1, 2) else [pytest.mark.slow])
        for c, g, n in product(CURVES, Group, (1, 2, 5))
    ],
)
def test_pairs(which: str, group: Group, rounds: int, rng: random.Random) -> None:
    """Rounds of affine additions: every kind of points meets in pairs, and their sums in later ones.

    Buckets are empty, short, odd, or hold all points; threads share inversions over several warps and blocks,
    take several places, or none.
    """
    curve, n = curve_by_name(which), 33
    tuning = replace(SMALL, rounds=rounds, shortest=1 if rounds == 1 else 5)
    plan = MsmPlan(curve, (group,), n, 4, 1, tuning)
    assert plan.rounds == min(rounds, 2), "two points a bucket"
    device = EmulatedDevice(reversed=rounds == 2)
    check(device, plan, random_logs(rng, n), [rng.randrange(curve.r) for _ in range(n)])
    for kind in POINT_KINDS.values():
        check(device, plan, kind(rng, n), [rng.choice((0, 1, 3 << 200)) for _ in range(n)], kind)
    check(device, plan, random_logs(rng, n), [0] * n)
    full = replace(plan, n=9, depth=plan.windows)
    assert full.rounds == min(rounds, 5)
    check(device, full, random_logs(rng, 9), [rng.randrange(curve.r) for _ in range(9)])
    assert device.kernels.count("list_pairs") == len(POINT_KINDS) + 3


@pytest.mark.slow
def test_pairs_outside_of_the_subgroup(curve: CurveParams, group: Group, rng: random.Random) -> None:
    """Points with x = 0, which is no mark of infinity, and any others of the curve."""
    E = spec(curve, group)
    root = square_root(curve, group, E.b)
    zeros = [] if root is None else [(E.field.zero, root), (E.field.zero, E.field.neg(root))]
    points = [p for p in (*zeros, curve_point(curve, group, rng)) for _ in range(4)]
    rng.shuffle(points)
    n = len(points)
    plan = MsmPlan(curve, (group,), n, 2, 1, replace(SMALL, rounds=1))
    scalars = [rng.randrange(1, 4) for _ in range(n)]
    (got,) = run(EmulatedDevice(), replace(plan, n=n), [to_words(curve, group, points)], scalars)
    assert got == E.msm(points, scalars)


def test_pairs_come_in_pieces_and_take_no_more_than_planned(rng: random.Random) -> None:
    n, device = 40, EmulatedDevice()
    piece = paired_addition(BN254, Group.G1) * 1e-9
    plan = MsmPlan(BN254, (Group.G1,), n, 5, 1, replace(TUNING, rounds=1, piece=piece, shortest=1))
    check(device, plan, random_logs(rng, n), [rng.randrange(BN254.r) for _ in range(n)])
    assert device.kernels.count("add_pairs") > 2
    for rounds in (1, 2):
        plan, device = replace(plan, tuning=replace(TUNING, rounds=rounds)), EmulatedDevice()
        check(device, plan, random_logs(rng, n), [rng.randrange(BN254.r) for _ in range(n)])
        planned = plan.bytes(device.properties)
        assert device.peak <= planned + 8 * BN254.scalar.limbs * n
        assert planned > replace(plan, tuning=TUNING).bytes(device.properties) + plan.places(1) * 64


def test_pairs_are_planned_for_what_they_take() -> None:
    """A third less of a sum's multiplications, for room; none where a list's places do not fit 31 bits."""
    plan = choose_plan(BN254, (Group.G1,), 1 << 20, 1 << 37, H200)
    paired = replace(plan, tuning=replace(TUNING, rounds=3))
    assert (plan.rounds, paired.rounds) == (0, 3)
    assert predicted_seconds(paired, H200) < 0.85 * predicted_seconds(plan, H200)
    assert paired.bytes(H200) > plan.bytes(H200) + 64 * (paired.places(1) + paired.places(2))
    large = MsmPlan(BN254, (Group.G1,), (1 << 26) - 1, 4, 1, replace(TUNING, rounds=3))
    assert large.places(1) >= 1 << 31 > large.n
    assert large.rounds == 0


def test_against_the_specification_and_the_cpu(curve: CurveParams, group: Group, rng: random.Random) -> None:
    """300 points of which nobody knows the logarithm, at the sizes that a device would get."""
    n = 300 if group is Group.G1 else 60
    points = [
        *(point(curve, group, rng.randrange(curve.r)) for _ in range(8)),
        None,
        *(point(curve, group, k) for k in random_logs(rng, n - 9)),
    ]
    scalars = [rng.randrange(curve.r) for _ in range(n)]
    words = to_words(curve, group, points)
    (got,) = run(EmulatedDevice(), MsmPlan(curve, (group,), n, 8, 1), [words], scalars)
    cpu = open_backend("cpu", curve, Job(threads=1))
    theirs = cpu.msm(cpu.prepare_bases(group, words), ints_to_words(scalars, curve.scalar.limbs))
    assert got == plain(curve, group, theirs)
    few = slice(4, 12)
    (got,) = run(EmulatedDevice(), MsmPlan(curve, (group,), 8, 6, 2), [words[few]], scalars[few])
    assert got == spec(curve, group).msm(points[few], scalars[few])


def test_bases_that_share_digits(curve: CurveParams, rng: random.Random) -> None:
    """A and B in G1 and B in G2, the latter on a stream of its own, from h in Montgomery form."""
    n, device = 30, EmulatedDevice()
    groups = (Group.G1, Group.G1, Group.G2)
    plan = MsmPlan(curve, groups, n, 6, 2, SMALL)
    logs = [random_logs(rng, n) for _ in groups]
    scalars = [rng.randrange(curve.r) for _ in range(n)]
    msm, side = Msm(device, curve, cpu_points(curve)), device.new_stream()
    bases = [msm.bases(plan, g, point_words(curve, g, k)) for g, k in zip(groups, logs, strict=True)]
    address = put(device, field_to_words(curve.scalar, scalars))
    digits = msm.digits(plan, address, n, Form.MONTGOMERY)
    sums = [msm.sum(b, digits, side if b.group is Group.G2 else 0) for b in bases]
    got = points_of(plan, msm.finish(*([s] for s in sums)))
    assert got == [combination(curve, g, k, scalars) for g, k in zip(groups, logs, strict=True)]
    msm.release(digits, *bases)
    device.release(address)
    assert device.used == 0


@pytest.mark.parametrize(("c", "depth"), PLANS)
@pytest.mark.parametrize("n", [0, 1, 20])
def test_further_bases_take_no_part(
    device: EmulatedDevice, n: int, c: int, depth: int, rng: random.Random
) -> None:
    """Rows of a table are as long as there are bases, whatever the number of scalars."""
    curve, group, points = BN254, Group.G1, 27
    plan = MsmPlan(curve, (group,), points, c, min(depth, windows_for(curve, c)), SMALL)
    logs, scalars = random_logs(rng, points), [rng.randrange(curve.r) for _ in range(n)]
    msm = Msm(device, curve, cpu_points(curve))
    bases = msm.bases(plan, group, point_words(curve, group, logs))
    digits = msm.digits(plan, put(device, ints_to_words(scalars, curve.scalar.limbs)), n, points=points)
    got = points_of(plan, msm.finish([msm.sum(bases, digits)]))
    assert got == [combination(curve, group, logs[:n], scalars)]


@pytest.mark.parametrize("n", [0, 1, 16, 17, 40])
def test_slices(curve: CurveParams, n: int, rng: random.Random) -> None:
    """Bases on the host, 16 at a time; a strided, read-only view of them will do.

    They are sent once for several scalars, some of which are fewer.
    """
    device, groups = EmulatedDevice(), (Group.G1, Group.G2)
    plan = MsmPlan(curve, groups, 16, 6, 1, SMALL)
    logs = random_logs(rng, n)
    several = [[rng.randrange(curve.r) for _ in range(count)] for count in (n, n // 2, max(0, n - 1))]
    given = [(put(device, ints_to_words(scalars, curve.scalar.limbs)), len(scalars)) for scalars in several]
    bases = []
    for group in groups:
        words = np.repeat(point_words(curve, group, logs), 2, axis=0)
        words.flags.writeable = False
        bases.append((group, words[::2]))
    msm = Msm(device, curve, cpu_points(curve))
    assert msm.sum_slices(plan, bases, [], device.new_stream()) == []
    found = msm.sum_slices(plan, bases, given, device.new_stream())
    for scalars, sums in zip(several, found, strict=True):
        assert points_of(plan, sums) == [combination(curve, g, logs[: len(scalars)], scalars) for g in groups]
    for address, _ in given:
        device.release(address)
    assert device.used == 0


def test_bases_on_the_device(curve: CurveParams, device: EmulatedDevice, rng: random.Random) -> None:
    n, group = 10, Group.G1
    plan, logs = MsmPlan(curve, (group,), n, 6, 3, SMALL), random_logs(rng, n)
    msm, words = Msm(device, curve, cpu_points(curve)), point_words(curve, group, logs)
    address = put(device, words)
    scalars = put(device, ints_to_words([3] * n, curve.scalar.limbs))
    bases, digits = msm.bases(plan, group, address, n), msm.digits(plan, scalars, n)
    assert points_of(plan, msm.finish([msm.sum(bases, digits)])) == [combination(curve, group, logs, [3] * n)]


def test_work_comes_in_pieces_between_which_it_can_be_cancelled() -> None:
    """Launches of bounded length; a cancelled sum leaves nothing behind."""
    n, device, stop = 40, EmulatedDevice(), threading.Event()
    tuning = replace(SMALL, piece=mixed_addition(BN254, Group.G1) * 1e-9, segments=None)
    plan = MsmPlan(BN254, (Group.G1,), n, 5, 1, tuning)
    check(device, plan, [*range(n)], [BN254.r // 3 - k for k in range(n)])
    assert device.kernels.count("accumulate") > 2
    msm = Msm(device, BN254, cpu_points(BN254), Job(threads=1, cancel=stop))
    scalars = put(device, ints_to_words([*range(n)], 4))
    bases, digits = (
        msm.bases(plan, Group.G1, point_words(BN254, Group.G1, range(n))),
        msm.digits(plan, scalars, n),
    )
    used = device.used
    stop.set()
    with pytest.raises(Cancelled):
        msm.sum(bases, digits)
    assert device.used == used


def test_failures_leave_nothing_allocated(rng: random.Random) -> None:
    """Whatever allocation finds no memory, what had been allocated before is given back."""
    n, failures = 10, 0
    points = point_words(BN254, Group.G1, random_logs(rng, n))
    plan = MsmPlan(BN254, (Group.G1,), n, 6, 2, SMALL)
    for allocation in range(2, 20):
        device = EmulatedDevice(faults=Faults(allocation=allocation))
        scalars = put(device, ints_to_words([rng.randrange(BN254.r) for _ in range(n)], 4))
        msm, made, used = Msm(device, BN254, cpu_points(BN254)), [], device.used
        try:
            made.append(msm.bases(plan, Group.G1, points))
            made.append(msm.digits(plan, scalars, n))
            msm.finish([msm.sum(*made)])
            in_slices, side = replace(plan, n=4, depth=1), device.new_stream()
            msm.sum_slices(in_slices, [(Group.G1, points)], [(scalars, n)], side)
        except OutOfMemory:
            failures += 1
        msm.release(*made)
        assert device.used == used, allocation
    assert failures > 10
    device = EmulatedDevice(faults=Faults(launch=9))
    with pytest.raises(DeviceError):
        run(device, plan, [points], [5] * n)


# Plans ------------------------------------------------------------------------------------------


def test_plans_fit_what_is_available() -> None:
    """Less memory: shorter tables first, then fewer points at a time, then a refusal."""
    for curve in CURVES:
        for groups in ((Group.G1,), (Group.G1, Group.G1, Group.G2)):
            depths, points, seconds = [], [], []
            for log in range(37, 17, -1):
                try:
                    plan = choose_plan(curve, groups, 1 << 20, 1 << log, H200)
                except OutOfMemory:
                    break
                assert plan.bytes(H200) <= 1 << log
                depths.append(plan.depth)
                points.append(plan.n)
                seconds.append(predicted_seconds(plan, H200) / plan.n)
            assert depths[0] == windows_for(curve, choose_plan(curve, groups, 1 << 20, 1 << 37, H200).c)
            assert depths == sorted(depths, reverse=True)
            assert points == sorted(points, reverse=True)
            assert points[-1] < points[0] == 1 << 20
            assert seconds == sorted(seconds)
            assert all(d == 1 for d, n in zip(depths, points, strict=True) if n < 1 << 20)
            assert choose_plan(curve, groups, 1 << 20, 1 << 37, H200, keep=False).depth == 1


def test_sums_take_no_more_memory_than_planned(curve: CurveParams, group: Group, rng: random.Random) -> None:
    n = 20
    plan = MsmPlan(curve, (group,), n, 6, 3)
    device = EmulatedDevice()
    scalars = [rng.randrange(curve.r) for _ in range(n)]
    run(device, plan, [point_words(curve, group, random_logs(rng, n))], scalars)
    assert device.peak <= plan.bytes(device.properties) + 8 * curve.scalar.limbs * n


def test_impossible_plans_are_refused() -> None:
    for arguments in ((10, 1, 1), (10, 6, 0), (10, 6, 44), (1 << 31, 6, 1), (1 << 27, 8, 32)):
        with pytest.raises(InvalidInput):
            MsmPlan(BN254, (Group.G1,), *arguments)
