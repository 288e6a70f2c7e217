"""Eight pairs in lanes: the operators at their bounds, and products against the portable path."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from gpuprover import reference
from gpuprover.cpu import pairing
from gpuprover.cpu.kernels.extension_lanes import lanes_scale
from gpuprover.cpu.kernels.jit import jit
from gpuprover.cpu.kernels.lanes_memory import load_lanes, store_lanes
from gpuprover.cpu.kernels.pairing import multiply_by_xi, squared
from gpuprover.cpu.layout import LANES, LIMB_BITS, LIMB_MASK, LaneField, lane_form
from gpuprover.cpu.path import cpu_path, path_named
from gpuprover.curves import CurveParams, Group
from gpuprover.job import Job
from gpuprover.limbs import Words, address, g1_to_words, words_to_g1
from tests.support.samples import curve_point, point_words, spec, to_words, whole_order

pytestmark = pytest.mark.skipif(cpu_path().name != "ifma", reason="this CPU lacks AVX-512 IFMA")

LANES_PATH, PORTABLE_PATH = (path_named(name, "of this test") for name in ("ifma", "portable"))

OPERATIONS = 7


@jit
def _operations(L, E, x, y, out, n):
    for i in range(n):
        a, b = load_lanes(E, x, i), load_lanes(E, y, i)
        store_lanes(out, OPERATIONS * i, a + b)
        store_lanes(out, OPERATIONS * i + 1, a - b)
        store_lanes(out, OPERATIONS * i + 2, -a)
        store_lanes(out, OPERATIONS * i + 3, multiply_by_xi(a))
        store_lanes(out, OPERATIONS * i + 4, squared(a))
        store_lanes(out, OPERATIONS * i + 5, a * b)
        store_lanes(out, OPERATIONS * i + 6, lanes_scale(a, load_lanes(L, y, 2 * i)))


def _blocks(values: list[tuple[int, int]], limbs: int) -> Words:
    """Pairs of integers, eight to a block, as they stand -> uint64[n/8, 2·limbs, 8]."""
    rows = [[(part >> (LIMB_BITS * i)) & LIMB_MASK for part in v for i in range(limbs)] for v in values]
    array = np.array(rows, dtype=np.uint64).reshape(-1, LANES, 2 * limbs)
    return np.ascontiguousarray(array.transpose(0, 2, 1))


def _integers(blocks: Words, limbs: int) -> list[tuple[int, int]]:
    rows = blocks.transpose(0, 2, 1).reshape(-1, 2, limbs)
    return [
        tuple(sum(int(v) << (LIMB_BITS * i) for i, v in enumerate(part)) for part in row)  # type: ignore[misc]
        for row in rows
    ]


def test_operators_at_their_bounds(curve: CurveParams, rng: random.Random) -> None:
    """Every value up to 2^bits + p is allowed, and none above comes back."""
    f, F = curve.base, reference.fq2(curve)
    q, limbs = f.modulus, lane_form(f).limbs
    bound = (1 << f.bits) + q
    edges = [
        0,
        1,
        q - 1,
        q,
        q + 1,
        2 * q - 1,
        (1 << f.bits) - 1,
        1 << f.bits,
        bound - 1,
        rng.randrange(bound),
    ]
    pairs = [*itertools.product(edges, edges)]
    cases = [(a, rng.choice(pairs)) for a in pairs for _ in range(4)]
    cases += [(a, b) for a in pairs[-11:] for b in pairs[-11:]]
    cases += [cases[0]] * (-len(cases) % LANES)
    x, y = (_blocks([case[k] for case in cases], limbs) for k in (0, 1))
    n = len(x)
    out = np.zeros((n, OPERATIONS, 2 * limbs, LANES), dtype=np.uint64)
    _operations(LaneField(f), LaneField(f, 2), address(x), address(y), address(out), n)
    results = [_integers(out[:, k], limbs) for k in range(OPERATIONS)]
    shrink = pow(2, -LIMB_BITS * limbs, q)

    def times(a: tuple[int, ...], b: tuple[int, ...]) -> list[int]:
        """In Montgomery form."""
        return [c * shrink % q for c in F.mul((a[0] % q, a[1] % q), (b[0] % q, b[1] % q))]

    for i, (a, b) in enumerate(cases):
        expected = [
            [a[0] + b[0], a[1] + b[1]],
            [a[0] - b[0], a[1] - b[1]],
            [-a[0], -a[1]],
            [curve.pairing.xi[0] * a[0] - a[1], curve.pairing.xi[0] * a[1] + a[0]],
            times(a, a),
            times(a, b),
            times(a, (b[0], 0)),
        ]
        got = [result[i] for result in results]
        assert all(part < bound for value in got for part in value), (a, b)
        assert [[part % q for part in v] for v in got] == [[part % q for part in v] for v in expected], (a, b)


def _pairs(curve: CurveParams, rng: random.Random, n: int) -> tuple[Words, Words]:
    """n pairs whose product is 1."""
    left, right = ([rng.randrange(-9, 9) or 7 for _ in range(n - 1)] for _ in range(2))
    rest = sum(a * b for a, b in zip(left, right, strict=True))
    # The last pair's logarithms multiply to −rest; neither is 0.
    while rest == 0:
        left[0] += 1
        rest += right[0]
    return point_words(curve, Group.G1, [*left, -1]), point_words(curve, Group.G2, [*right, rest])


@pytest.mark.parametrize("n", [pairing.WORTHWHILE - 1, pairing.WORTHWHILE, 7, 8, 9, 63, 64, 65, 130])
def test_numbers_of_pairs(curve: CurveParams, rng: random.Random, n: int) -> None:
    """Filled up to eight, in chunks, with kept points and without."""
    P, Q = _pairs(curve, rng, n)
    wrong = P.copy()
    wrong[rng.randrange(n)] = point_words(curve, Group.G1, [100])[0]
    job = Job(threads=2)
    for path in LANES_PATH, PORTABLE_PATH:
        for fixed in (0, 1, 3):
            assert pairing.pairing_check(curve, P, Q, fixed, path, job)
            assert not pairing.pairing_check(curve, wrong, Q, fixed, path, job)


def test_eight_lanes_are_one_loop(curve: CurveParams, rng: random.Random) -> None:
    """Each lane's value is that of the portable loop, pair by pair."""
    P, Q = _pairs(curve, rng, 11)
    q, job = curve.q, Job(threads=1)
    lanes = pairing._miller_of_many(curve, P, Q, job.stop)
    assert lanes is not None
    for lane in range(LANES):
        minus = g1_to_words(curve, [(x, q - y) for x, y in words_to_g1(curve, P[lane::LANES])])
        lines = pairing._lines_of(curve, np.ascontiguousarray(Q[lane::LANES]), job.stop)
        assert lines is not None
        alone = pairing._miller(curve, minus, lines)
        assert pairing._is_one(curve, np.concatenate([lanes[lane : lane + 1], alone]))
        same = pairing._miller(curve, np.ascontiguousarray(P[lane::LANES]), lines)
        assert pairing._is_one(curve, lanes[lane : lane + 1]) == pairing._is_one(curve, same)


def test_a_point_outside_in_each_lane(curve: CurveParams, rng: random.Random) -> None:
    """Also of an order prime to r, and of a small one, where the multiples come to nothing on the way."""
    E, n = spec(curve, Group.G2), 11
    P, Q = _pairs(curve, rng, n)
    job = Job(threads=1)
    assert pairing._miller_of_many(curve, P, Q, job.stop) is not None
    outside = curve_point(curve, Group.G2, rng)
    cofactor = whole_order(curve, Group.G2) // curve.r
    prime = 10069 if curve.pairing.family == "BN" else 13
    orders = [E.scalar_mul(outside, k) for k in (1, curve.r, curve.r * (cofactor // prime))]
    kinds = [point for point in orders if point is not None]
    for i in range(n):
        for bad in kinds:
            points = Q.copy()
            points[i] = to_words(curve, Group.G2, [bad])[0]
            assert pairing._miller_of_many(curve, P, points, job.stop) is None
            assert not pairing.pairing_check(curve, P, points, 0, LANES_PATH, job)


def test_infinity_among_many(curve: CurveParams, rng: random.Random) -> None:
    """A pair with infinity counts as 1, but the subgroup of its other point is looked at."""
    P, Q = _pairs(curve, rng, 12)
    job = Job(threads=1)
    nothing = np.zeros_like(P[:1]), np.zeros_like(Q[:1])
    outside = to_words(curve, Group.G2, [curve_point(curve, Group.G2, rng)])
    for at in (0, 5, 12):
        with_p = np.insert(P, at, nothing[0], axis=0)
        assert pairing.pairing_check(curve, with_p, np.insert(Q, at, Q[3], axis=0), 0, LANES_PATH, job)
        assert not pairing.pairing_check(curve, with_p, np.insert(Q, at, outside, axis=0), 0, LANES_PATH, job)
        assert pairing.pairing_check(
            curve, np.insert(P, at, P[3], axis=0), np.insert(Q, at, nothing[1], axis=0), 0, LANES_PATH, job
        )
