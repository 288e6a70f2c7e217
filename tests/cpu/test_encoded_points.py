"""Points and scalars of other tools' files, beside plain integers."""

from __future__ import annotations

import random

import numpy as np
import pytest

from gpuprover import devices
from gpuprover.curves import BLS12_381, PAIRING_CURVES, CurveParams, Group
from gpuprover.limbs import (
    field_to_words,
    generator,
    ints_to_words,
    points_to_words,
    words_to_ints,
    words_to_points,
)
from gpuprover.reference import group as group_law

every_group = pytest.mark.parametrize(
    ("curve", "group"),
    [(curve, group) for curve in PAIRING_CURVES for group in Group],
    ids=lambda value: getattr(value, "name", ""),
)


def multiples(curve: CurveParams, group: Group, count: int) -> list:
    """The first multiples of the generator, and infinity."""
    law = group_law(curve, group)
    return [law.scalar_mul(curve.group(group).generator, i) for i in range(count)]


@every_group
def test_coordinates_there_and_back(curve: CurveParams, group: Group) -> None:
    points = multiples(curve, group, 5)
    flat = [c for point in points for c in curve.group(group).coordinates(point)]
    canonical = ints_to_words(flat, curve.base.limbs).reshape(len(points), -1)
    words, bad = devices.points_from_coordinates(curve, group, canonical)
    assert bad == -1
    assert words_to_points(curve, group, words) == points
    assert np.array_equal(devices.coordinates_of_points(curve, words), canonical)


@every_group
@pytest.mark.parametrize("at", [0, 2, 4])
def test_the_first_bad_point_is_named(curve: CurveParams, group: Group, at: int) -> None:
    points = multiples(curve, group, 6)[1:]
    flat = [list(curve.group(group).coordinates(point)) for point in points]
    for value in ((flat[at][0] + 1) % curve.q, curve.q, curve.q + 1):
        wrong = [list(row) for row in flat]
        wrong[at][0] = value
        canonical = ints_to_words([c for row in wrong for c in row], curve.base.limbs)
        assert devices.points_from_coordinates(curve, group, canonical.reshape(len(points), -1))[1] == at


@pytest.mark.parametrize("curve", PAIRING_CURVES, ids=lambda curve: curve.name)
def test_points_by_x_and_sign(curve: CurveParams) -> None:
    points = multiples(curve, Group.G1, 20)[1:]
    xs = ints_to_words([x for x, _ in points], curve.base.limbs)
    signs = [y > curve.q - y for _, y in points]
    assert len(set(signs)) == 2
    words, bad = devices.points_from_x(curve, xs, signs)
    assert bad == -1
    assert np.array_equal(words, points_to_words(curve, Group.G1, points))
    assert devices.points_from_x(curve, xs[:0], [])[1] == -1


@pytest.mark.parametrize("curve", PAIRING_CURVES, ids=lambda curve: curve.name)
def test_an_x_of_no_point_is_named(curve: CurveParams, rng: random.Random) -> None:
    q = curve.q

    def no_point(x: int) -> bool:
        return pow(x**3 + curve.b, (q - 1) // 2, q) == q - 1

    bad = next(x for x in iter(lambda: rng.randrange(q), None) if no_point(x))
    xs = [curve.g1[0]] * 9
    for value in (bad, q):
        xs[7] = value
        assert devices.points_from_x(curve, ints_to_words(xs, curve.base.limbs), [False] * 9)[1] == 7


def test_the_first_value_that_is_not_reduced(rng: random.Random) -> None:
    field = BLS12_381.scalar
    values = [rng.randrange(field.modulus) for _ in range(100)]
    words = field_to_words(field, values)
    assert devices.first_not_reduced(field, words) == -1
    assert devices.first_not_reduced(field, words[:0]) == -1
    for value in (field.modulus, 2**256 - 1):
        words[63] = ints_to_words([value], field.limbs)
        assert devices.first_not_reduced(field, words) == 63
    words[63] = ints_to_words([field.modulus - 1], field.limbs)
    assert devices.first_not_reduced(field, words) == -1
    assert words_to_ints(words[63:64]) == [field.modulus - 1]


def test_strided_words_are_taken() -> None:
    curve = BLS12_381
    canonical = devices.coordinates_of_points(curve, np.tile(generator(curve, Group.G1), (4, 1)))
    strided = np.repeat(canonical, 2, axis=1)[:, ::2]
    words, bad = devices.points_from_coordinates(curve, Group.G1, strided)
    assert bad == -1
    assert np.array_equal(words, np.tile(generator(curve, Group.G1), (4, 1)))
