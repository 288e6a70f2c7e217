"""Compiled multiples on twisted Edwards curves over both scalar fields, beside addition by its definition."""

from __future__ import annotations

import random

import pytest

from gpuprover import devices
from gpuprover.curves import CURVES, CurveParams


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.name)
def test_multiples_by_the_definition(curve: CurveParams, rng: random.Random) -> None:
    """On a curve through a random point; scalars below 20, one after the other."""
    p = curve.r
    x, y = rng.randrange(1, p), rng.randrange(1, p)
    d = (y * y - x * x - 1) * pow(x * x * y * y, -1, p) % p
    total = (0, 1)
    for scalar in range(20):
        assert devices.edwards_multiple(curve, d, (x, y), scalar) == total
        product = d * total[0] * x * total[1] * y
        u = (total[0] * y + total[1] * x) * pow(1 + product, -1, p)
        v = (total[1] * y + total[0] * x) * pow(1 - product, -1, p)
        total = u % p, v % p
