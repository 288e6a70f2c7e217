"""Integers and points to words and back."""

from __future__ import annotations

import random

import numpy as np
import pytest

from gpuprover.curves import CurveParams, Group
from gpuprover.limbs import (
    field_to_words,
    first_not_below,
    g1_to_words,
    ints_to_words,
    words_to_field,
    words_to_ints,
)
from tests.support.samples import (
    field_edges,
    from_words,
    point,
    point_words,
    random_logs,
    to_words,
    unaligned,
)


@pytest.mark.parametrize("limbs", [1, 4, 6])
def test_integers_round_trip(limbs: int, rng: random.Random) -> None:
    top = (1 << 64 * limbs) - 1
    values = [0, 1, top, top - 1, 1 << 63, *(rng.randrange(top) for _ in range(20))]
    words = ints_to_words(values, limbs)
    assert words.shape == (len(values), limbs)
    assert words.dtype == np.uint64
    assert words.flags.writeable
    assert words_to_ints(words) == values
    assert words_to_ints(unaligned(words)) == values
    assert words_to_ints(words[::3]) == values[::3]


def test_words_are_little_endian() -> None:
    words = ints_to_words([1 + (2 << 64) + (3 << 128)], 4)
    assert words.tolist() == [[1, 2, 3, 0]]
    assert words.tobytes()[:9] == b"\x01" + bytes(7) + b"\x02"


def test_no_integers() -> None:
    assert ints_to_words([], 4).shape == (0, 4)
    assert words_to_ints(np.zeros((0, 4), np.uint64)) == []


@pytest.mark.parametrize("value", [-1, 1 << 256])
def test_integers_out_of_range(value: int) -> None:
    with pytest.raises(OverflowError):
        ints_to_words([0, value], 4)


def test_field_elements(curve: CurveParams) -> None:
    for field in (curve.base, curve.scalar):
        values = field_edges(field.modulus)
        words = field_to_words(field, values)
        assert words_to_ints(words) == [v * (1 << 64 * field.limbs) % field.modulus for v in values]
        assert words_to_field(field, words) == values
        assert words_to_field(field, field_to_words(field, [-1, field.modulus])) == [field.modulus - 1, 0]


def test_points_round_trip(curve: CurveParams, group: Group, rng: random.Random) -> None:
    points = [None, *(point(curve, group, k) for k in (1, -1, *random_logs(rng, 5))), None]
    words = to_words(curve, group, points)
    assert words.shape == (9, group.words(curve))
    assert not words[0].any()
    assert words[1].any()
    assert from_words(curve, group, words) == points
    assert from_words(curve, group, unaligned(words)) == points
    assert to_words(curve, group, []).shape == (0, group.words(curve))
    assert from_words(curve, group, words[:0]) == []


def test_points_with_a_zero_coordinate_are_not_infinity(curve: CurveParams) -> None:
    points = [(0, 5), (5, 0)]
    assert from_words(curve, Group.G1, g1_to_words(curve, points)) == points


def test_layout_of_points(curve: CurveParams) -> None:
    q, limbs = curve.base, curve.base.limbs
    (x0, x1), (y0, y1) = curve.g2
    words = point_words(curve, Group.G2, [1]).reshape(4, limbs)
    assert words_to_ints(words) == [q.to_montgomery(c) for c in (x0, x1, y0, y1)]
    words = point_words(curve, Group.G1, [1]).reshape(2, limbs)
    assert words_to_ints(words) == [q.to_montgomery(c) for c in curve.g1]


def test_first_not_below(curve: CurveParams) -> None:
    r, limbs = curve.r, curve.scalar.limbs
    good = [0, 1, r - 1, r - (1 << 64), r >> 64 << 64]
    assert first_not_below(ints_to_words(good, limbs), r) == -1
    assert first_not_below(np.zeros((0, limbs), np.uint64), r) == -1
    for bad in (r, r + 1, r + (1 << 64), (1 << 64 * limbs) - 1):
        for at in range(len(good) + 1):
            words = ints_to_words([*good[:at], bad, *good[at:], bad], limbs)
            assert first_not_below(unaligned(words), r) == at


def test_first_not_below_in_a_later_block(curve: CurveParams) -> None:
    words = np.zeros((200_000, curve.scalar.limbs), np.uint64)
    words[150_000] = ints_to_words([curve.r], curve.scalar.limbs)[0]
    assert first_not_below(words, curve.r) == 150_000
