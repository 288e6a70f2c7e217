"""The optimal ate pairing of both curves, and the subgroup tests that its endomorphisms give.

Lines of each point of G2, kept for points that come again, as those of a verification key do; a Miller loop
for many pairs at once; one final exponentiation. Where a point's multiples end shows whether it is in its
subgroup, so that test costs nothing (:func:`subgroup_check`). Formulas and their sources:
:mod:`gpuprover.cpu.kernels.pairing`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from gpuprover.cpu.compiled import Kernels
from gpuprover.cpu.endomorphisms import fq2_power, fq2_words, g1_endomorphism, twist_frobenius
from gpuprover.cpu.layout import DOUBLE, LANES, LINE, ROOM, Field, LaneField, lane_form
from gpuprover.cpu.path import CpuPath
from gpuprover.curves import CurveParams, Group
from gpuprover.job import Job
from gpuprover.limbs import Words, address, field_to_words, generator, ints_to_words

_kernels = Kernels("pairing")

CHUNK = 64
"""Pairs that a thread takes at a time. One by one, their lines are 1.1 to 1.3 MB; lanes need 80 KB."""
WORTHWHILE = 5
"""Pairs from which on eight lanes are quicker."""


# Constants ----------------------------------------------------------------------------------------


@lru_cache
def _loop_digits(c: CurveParams) -> NDArray[np.int8]:
    """The loop count in non-adjacent form, lowest digit first."""
    n, digits = abs(c.pairing.loop_count), []
    while n:
        d = 2 - n % 4 if n % 2 else 0
        digits.append(d)
        n = (n - d) // 2
    return np.array(digits, dtype=np.int8)


@lru_cache
def _loop_steps(c: CurveParams) -> NDArray[np.int8]:
    """The steps of the kernel ``miller_in_lanes``."""
    steps = []
    for digit in _loop_digits(c)[-2::-1]:
        steps += [DOUBLE, int(digit)] if digit else [DOUBLE]
    return np.array(steps + ([2, -3] if c.pairing.family == "BN" else []), dtype=np.int8)


@lru_cache
def _constants(c: CurveParams) -> tuple[Words, Words]:
    """(3b', γx, γy) and ξ^(k(q − 1)/6) for k < 6."""
    three_b = tuple(3 * v % c.q for v in c.group(Group.G2).b)
    powers = [fq2_power(c, c.pairing.xi, k * (c.q - 1) // 6) for k in range(6)]
    return fq2_words(c, [three_b, *twist_frobenius(c)]), fq2_words(c, powers)  # type: ignore[list-item]


def _lines_of(c: CurveParams, points: Words, stop: NDArray[np.uint8]) -> Words | None:
    """The lines of affine, finite, contiguous points; None where one is outside the subgroup."""
    digits = _loop_digits(c)
    steps = len(digits) - 1 + int(np.count_nonzero(digits[:-1])) + (2 if c.pairing.family == "BN" else 0)
    lines = np.empty((len(points), steps, LINE * 2 * c.base.limbs), dtype=np.uint64)
    constants, _ = _constants(c)
    outside = _kernels.lines(
        Field(c.base, 2), address(points), len(points), digits, address(constants), c.pairing.family == "BN",
        address(lines), steps, stop,
    )  # fmt: skip
    return lines if outside < 0 else None


@lru_cache(maxsize=64)
def _kept_lines(c: CurveParams, points: bytes) -> Words | None:
    words = np.frombuffer(points, dtype=np.uint64).reshape(-1, c.g2_words).copy()
    return _lines_of(c, words, np.zeros(1, dtype=np.uint8))


def _miller(c: CurveParams, g1: Words, lines: Words) -> Words:
    """The Miller loops' product for affine points of G1, infinity among them, and as many points' lines."""
    finite = np.asarray(g1.any(axis=1))
    if not finite.all():
        g1, lines = g1[finite], lines[finite]
    out = np.empty((1, 12 * c.base.limbs), dtype=np.uint64)
    _kernels.miller_loop(
        Field(c.base), Field(c.base, 2), address(g1), len(g1), address(lines), lines.shape[1],
        _loop_digits(c), c.pairing.family == "BN", address(out),
    )  # fmt: skip
    return out


def _miller_of_many(c: CurveParams, g1: Words, g2: Words, stop: NDArray[np.uint8]) -> Words | None:
    """The Miller loops' product in eight factors, for finite points; None where one of g2 is outside."""
    L, E = LaneField(c.base), LaneField(c.base, 2)
    n = len(g1)
    groups = -(-n // LANES)
    # Pairs with P = (0, 0) fill up: their lines at P are k·w³ (k for an M-twist) with k in Fq2, which the
    # final exponentiation makes 1, w³ too: its square is ξ. For the generator, no k is 0.
    p, q = (np.zeros((LANES * groups, words), dtype=np.uint64) for words in (c.g1_words, c.g2_words))
    p[:n], q[:n], q[n:] = g1, g2, generator(c, Group.G2)
    constants, _ = _constants(c)
    rows = np.empty((groups, ROOM, 2 * lane_form(c.base).limbs, LANES), dtype=np.uint64)
    elements = np.empty((6 * LANES, E.words), dtype=np.uint64)
    out = np.empty((LANES, 6 * E.words), dtype=np.uint64)
    inside = _kernels.miller_in_lanes(
        L, E, address(p), address(q), groups, _loop_steps(c), address(constants), c.pairing.family == "BN",
        address(rows), address(elements), address(out), stop,
    )  # fmt: skip
    return out if inside else None


def _is_one(c: CurveParams, product: Words) -> bool:
    """Whether the product of the Miller loops' values, uint64[n, 12·limbs], gives 1 at the end."""
    _, powers = _constants(c)
    return bool(
        _kernels.product_is_one(
            Field(c.base, 2), address(product), len(product), np.uint64(abs(c.pairing.seed)), address(powers),
            c.pairing.family == "BN",
        )
    )  # fmt: skip


def pairing_check(c: CurveParams, g1: Words, g2: Words, fixed: int, path: CpuPath, job: Job) -> bool:
    """Whether all g2[i] are in their subgroup and Π e(g1[i], g2[i]) = 1.

    Points are affine, on their curves, g1 in its subgroup. The lines of the last ``fixed`` of g2 are kept.
    """
    if not len(g1):
        return True
    finite = np.asarray(g2.any(axis=1))
    varied = len(g1) - fixed
    kept = [varied + i for i in range(fixed) if finite[varied + i]]
    alone, many = np.flatnonzero(finite[:varied]), np.empty(0, dtype=np.int64)
    if path.lanes:
        pairs = np.asarray(g1[:varied].any(axis=1)) & finite[:varied]
        if np.count_nonzero(pairs) >= WORTHWHILE:
            alone, many = np.flatnonzero(finite[:varied] & ~pairs), np.flatnonzero(pairs)

    def one_by_one(chosen: NDArray[np.int64], last: list[int]) -> Words | None:
        found, points = _lines_of(c, g2[chosen], job.stop), g1[chosen]
        if last:
            extra = _kept_lines(c, g2[last].tobytes())
            if extra is None or found is None:
                return None
            found, points = np.concatenate([found, extra]), np.concatenate([points, g1[last]])
        return None if found is None else _miller(c, points, found)

    def in_lanes(chosen: NDArray[np.int64]) -> Words | None:
        return _miller_of_many(c, g1[chosen], g2[chosen], job.stop)

    tasks: list[Callable[[], Words | None]] = []
    if len(alone) or kept or not len(many):
        # The kept lines share the first chunk's squarings.
        tasks.append(partial(one_by_one, alone[:CHUNK], kept))
    tasks += [partial(one_by_one, alone[i : i + CHUNK], []) for i in range(CHUNK, len(alone), CHUNK)]
    tasks += [partial(in_lanes, many[i : i + CHUNK]) for i in range(0, len(many), CHUNK)]
    factors = [f for f in job.map(lambda task: task(), tasks) if f is not None]
    if len(factors) < len(tasks):
        return False
    return _is_one(c, np.concatenate(factors))


def subgroup_check(
    c: CurveParams, group: Group, F: Field, points: int, stop: NDArray[np.uint8]
) -> Callable[[tuple[int, int]], int]:
    """A function (lo, hi) -> first point on the curve but outside the subgroup, or −1.

    On the twist, ψ² − tψ + q = 0. A relation a(ψ)P = 0 makes the norm of a(ψ) in Z[ψ] a multiple of P's
    order, and where that norm has only r in common with the twist's order, it is a test. For BN, with seed x,
    x + 1 + xψ + xψ² − 2xψ³ is one, and so is what the Miller loop ends with, 6x + 2 + ψ − ψ² + ψ³; for BLS12,
    ψ − x. G1 is the whole curve for BN; for BLS12, (βx, y) = −x²P gives (x⁴ − x² + 1)·P = r·P = 0.
    Scott, "A note on group membership tests for G1, G2 and GT on BLS pairing-friendly curves" (2021);
    El Housni, Guillevic, Piellard, "Co-factor clearing and subgroup membership testing on pairing-friendly
    curves" (2022).
    """
    limbs = c.scalar.limbs
    if c.group(group).cofactor == 1:
        return lambda r: -1
    if group is Group.G2:
        assert c.pairing.family == "BN" or c.pairing.seed < 0
        frobenius = fq2_words(c, list(twist_frobenius(c)))
        scalar = ints_to_words([abs(c.pairing.seed)], limbs)[0]
        is_bn = c.pairing.family == "BN"
        return lambda r: _kernels.first_outside_g2(
            F, points, address(frobenius), scalar, limbs, is_bn, r[0], r[1], stop
        )
    beta = field_to_words(c.base, [g1_endomorphism(c)])
    square_seed = ints_to_words([c.pairing.seed**2], limbs)[0]
    return lambda r: _kernels.first_outside_g1(F, points, address(beta), square_seed, limbs, r[0], r[1], stop)
