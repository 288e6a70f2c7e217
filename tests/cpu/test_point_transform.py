"""Fourier transforms of points, beside their definition."""

from __future__ import annotations

import random

import numpy as np
import pytest

from gpuprover.cpu import point_transform
from gpuprover.curves import BLS12_381, AffinePoint, Group
from gpuprover.errors import Cancelled
from gpuprover.job import Job
from gpuprover.limbs import points_to_words, words_to_points
from gpuprover.polynomial import Domain
from gpuprover.reference import group as group_law

LAW = group_law(BLS12_381, Group.G1)


def transformed(points: list[AffinePoint], root: int, factor: int) -> list[AffinePoint]:
    n, r = len(points), BLS12_381.r
    rows = []
    for i in range(n):
        total: AffinePoint = None
        for j, point in enumerate(points):
            total = LAW.add(total, LAW.scalar_mul(point, factor * pow(root, i * j, r) % r))
        rows.append(total)
    return rows


@pytest.mark.parametrize("log_n", [0, 1, 2, 3])
@pytest.mark.parametrize("factor", [1, 12345678901234567890])
def test_a_transform_is_its_definition(
    log_n: int, factor: int, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(point_transform, "BLOCK", 3)
    g = BLS12_381.g1
    points = [LAW.scalar_mul(g, rng.randrange(BLS12_381.r)) for _ in range(1 << log_n)]
    if log_n == 3:
        # Infinity, equal and opposite points, which sums have to tell apart.
        points[2], points[4], points[5] = None, points[0], LAW.neg(points[1])
    root = Domain(BLS12_381.scalar, log_n, 7).omega
    words = points_to_words(BLS12_381, Group.G1, points)
    given = words.copy()
    found = point_transform.transform_points(BLS12_381, words, root, factor, Job(threads=2))
    assert words_to_points(BLS12_381, Group.G1, found) == transformed(points, root, factor)
    assert np.array_equal(words, given)


def test_a_transform_back_gives_the_points(rng: random.Random) -> None:
    n, r = 64, BLS12_381.r
    points = [LAW.scalar_mul(BLS12_381.g1, rng.randrange(r)) for _ in range(n)]
    root = Domain(BLS12_381.scalar, 6, 7).omega
    words = points_to_words(BLS12_381, Group.G1, points)
    there = point_transform.transform_points(BLS12_381, words, root, 1, Job())
    back = point_transform.transform_points(BLS12_381, there, pow(root, -1, r), pow(n, -1, r), Job())
    assert np.array_equal(back, words)
    assert not np.array_equal(there, words)


@pytest.mark.parametrize(("n", "order"), [(3, 4), (4, 2), (4, 8), (0, 1)])
def test_other_numbers_of_points_are_refused(n: int, order: int) -> None:
    root = Domain(BLS12_381.scalar, order.bit_length() - 1, 7).omega
    points = np.zeros((n, BLS12_381.g1_words), dtype=np.uint64)
    with pytest.raises(ValueError, match="root of unity"):
        point_transform.transform_points(BLS12_381, points, root, 1, Job())


def test_a_transform_ends_when_its_job_does() -> None:
    job = Job()
    job.stop[0] = 1
    points = points_to_words(BLS12_381, Group.G1, [BLS12_381.g1] * 4)
    with pytest.raises(Cancelled):
        point_transform.transform_points(BLS12_381, points, Domain(BLS12_381.scalar, 2, 7).omega, 5, job)
