"""Jubjub in integers: the group's laws, the subgroup, and points that are not in it."""

from __future__ import annotations

import random

from gpuprover.midnight import jubjub
from gpuprover.midnight.jubjub import COFACTOR, GENERATOR, NEUTRAL, ORDER, D, Point, R, add, multiply, negate


def add_by_definition(p: Point, q: Point) -> Point:
    product = D * p[0] * q[0] * p[1] * q[1]
    x = (p[0] * q[1] + p[1] * q[0]) * pow(1 + product, -1, R)
    y = (p[1] * q[1] + p[0] * q[0]) * pow(1 - product, -1, R)
    return x % R, y % R


def test_addition_by_its_definition(rng: random.Random) -> None:
    points = [NEUTRAL, (0, R - 1), GENERATOR, negate(GENERATOR)]
    points += [multiply(GENERATOR, rng.randrange(ORDER)) for _ in range(3)]
    for p in points:
        assert jubjub.on_curve(p)
        for q in points:
            assert add(p, q) == add_by_definition(p, q)


def test_multiples(rng: random.Random) -> None:
    assert multiply(GENERATOR, 0) == multiply(GENERATOR, ORDER) == NEUTRAL
    assert multiply(GENERATOR, 1) == GENERATOR
    assert multiply(GENERATOR, ORDER - 1) == negate(GENERATOR)
    for p in (NEUTRAL, (0, R - 1), GENERATOR, add(GENERATOR, (0, R - 1))):
        for scalar in (0, 1, 2, 8, ORDER - 1, ORDER, ORDER + 1, 8 * ORDER, rng.randrange(1 << 256)):
            assert multiply(p, scalar) == jubjub.multiply_in_integers(p, scalar), scalar
    total = NEUTRAL
    for scalar in range(1, 9):
        total = add(total, GENERATOR)
        assert multiply(GENERATOR, scalar) == total
    a, b = rng.randrange(ORDER), rng.randrange(ORDER)
    assert add(multiply(GENERATOR, a), multiply(GENERATOR, b)) == multiply(GENERATOR, a + b)


def test_subgroup_and_roots(rng: random.Random) -> None:
    p = multiply(GENERATOR, rng.randrange(1, ORDER))
    assert multiply(jubjub.root(p), COFACTOR) == p
    assert jubjub.in_subgroup(jubjub.root(p))
    of_order_two = (0, R - 1)
    assert jubjub.on_curve(of_order_two)
    assert not jubjub.is_valid(of_order_two)
    assert not jubjub.is_valid(add(p, of_order_two))
    assert not jubjub.is_valid((p[0], p[1] + 1))
    assert jubjub.is_valid(NEUTRAL)
