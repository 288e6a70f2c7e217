"""Points on the host: combinations, checks of many points, pairings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from gpuprover.cpu import combine, layout, membership, pairing
from gpuprover.cpu.compiled import Kernels
from gpuprover.cpu.layout import COMBINED, COMBINED_WIDTH, PRODUCTS, Field
from gpuprover.cpu.msm import Points
from gpuprover.cpu.path import path_for
from gpuprover.curves import CurveParams, Group
from gpuprover.job import Job
from gpuprover.limbs import Words, address, field_to_words, ints_to_words

_curve, _vector = Kernels("curve"), Kernels("vector")

SMALLEST_PIECE = 1 << 12
"""Elements below which a pointwise operation is not shared among threads."""


def own(words: Words) -> Words:
    """The same words, aligned, contiguous and writable; copied only if they are not."""
    return np.require(words, dtype=np.uint64, requirements=["C", "A", "W"])


class CpuPoints:
    """Implements :class:`gpuprover.backend.PointMath` with the kernels of this package."""

    def __init__(self, curve: CurveParams, job: Job) -> None:
        self.curve, self.job = curve, job
        self.path = path_for(curve)
        self._coordinates = {name: Field(curve.base, group.degree) for name, group in curve.groups.items()}

    def _bases(self, group: Group, points: Words) -> Points:
        if len(points) and not points.flags.c_contiguous:
            points = np.ascontiguousarray(points)
        return Points(self._coordinates[group], points, self.path)

    def linear_combination(self, group: Group, points: Words, scalars: Sequence[int]) -> Words:
        if len(points) != len(scalars):
            raise ValueError(f"{len(points)} points and {len(scalars)} scalars")
        F = self._coordinates[group]
        limbs = self.curve.scalar.limbs
        reduced = ints_to_words([s % self.curve.r for s in scalars], limbs).reshape(-1)
        n = len(points)
        # A point in four rows, scratch in one, the affine point, those that are given, their multiples, and
        # scratch for each.
        room = np.zeros((7 + n * (2 + 2 * (COMBINED + 1) + 1), F.words), dtype=np.uint64)
        room[7 : 7 + 2 * n].reshape(points.shape)[...] = points
        at, row = address(room), 8 * F.words
        given, table, prefix = (at + row * (7 + n * rows) for rows in (0, 2, 2 + 2 * (COMBINED + 1)))
        digits = np.empty((n, 64 * limbs + COMBINED_WIDTH + 1), dtype=np.int8)
        p_index, q_index, o_index = (np.empty(n, dtype=np.int64) for _ in range(3))
        kinds = np.empty(n, dtype=np.uint8)
        _curve.linear_combination(
            F, given, reduced, limbs, n, table, digits, p_index, q_index, o_index, prefix, kinds, at
        )
        _curve.normalise(F, at, at + 5 * row, at + 4 * row, 1)
        return room[5:7].reshape(-1)

    def affine(self, group: Group, points: Words) -> Words:
        F, n = self._coordinates[group], len(points)
        # Four rows for each point, scratch in one, and two for an affine point.
        room = np.empty((7 * n, F.words), dtype=np.uint64)
        room[: 4 * n].reshape(points.shape)[...] = points
        at, row = address(room), 8 * F.words
        _curve.normalise(F, at, at + 5 * n * row, at + 4 * n * row, n)
        return room[5 * n :].reshape(n, 2 * F.words)

    def sparse_combination(
        self,
        group: Group,
        points: Words,
        starts: NDArray[np.int64],
        columns: NDArray[np.uint32],
        values: Words,
    ) -> Words:
        bases = self._bases(group, points)
        return combine.sparse_combination(bases, starts, columns, values, self.curve.r, self.job)

    def suffix_sums(self, points: Words) -> Words:
        F, given = self._coordinates[Group.G1], own(points)
        sums = np.empty((len(points), 2 * points.shape[1]), dtype=np.uint64)
        _curve.suffix_sums(F, address(given), len(given), address(sums))
        return self.affine(Group.G1, sums)

    def canonical_coordinates(self, points: Words) -> Words:
        source, out = own(points), np.empty(points.shape, dtype=np.uint64)
        F, a, o = self._coordinates[Group.G1], address(source), address(out)
        ranges = self.job.ranges(points.size // self.curve.base.limbs, smallest=SMALLEST_PIECE)
        self.job.map(lambda r: _vector.convert(F, layout.FROM_MONTGOMERY, a, o, r[0], r[1]), ranges)
        return out

    def first_bad_point(self, group: Group, points: Words) -> int:
        if not points.flags.c_contiguous:
            points = np.ascontiguousarray(points)
        F = self._coordinates[group]
        c = self.curve
        coefficient = field_to_words(c.base, c.group(group).b)
        start = address(points)

        def on_curve(r: tuple[int, int]) -> int:
            return _curve.first_off_curve(F, start, address(coefficient), r[0], r[1])

        bad = self._first_bad(on_curve, len(points))
        # The subgroup test is for points of the curve.
        end = len(points) if bad < 0 else bad
        if end < membership.WORTHWHILE or c.group(group).cofactor == 1:
            check = pairing.subgroup_check(c, group, F, start, self.job.stop)
        else:
            check = membership.subgroup_check_in_step(c, group, self._bases(group, points), self.job)
        outside = self._first_bad(check, end)
        return bad if outside < 0 else outside

    def _first_bad(self, check: Callable[[tuple[int, int]], int], n: int) -> int:
        block = PRODUCTS
        found = self.job.map(check, [(lo, min(lo + block, n)) for lo in range(0, n, block)], progress=True)
        return min((i for i in found if i >= 0), default=-1)

    def pairing_check(self, g1: Words, g2: Words, fixed: int = 0) -> bool:
        if len(g1) != len(g2):
            raise ValueError(f"{len(g1)} points of G1 and {len(g2)} of G2")
        return pairing.pairing_check(self.curve, g1, g2, fixed, self.path, self.job)
