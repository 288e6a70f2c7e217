"""Integers and points to and from little-endian 64-bit words, the layout files and devices share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import cast

import numpy as np
from numpy.typing import NDArray

from gpuprover.curves import AffineG1, AffineG2, AffinePoint, CurveParams, FieldParams, Group

Words = NDArray[np.uint64]


def ints_to_words(values: Iterable[int], limbs: int) -> Words:
    """Non-negative integers below 2^(64·limbs) -> uint64[n, limbs].

    Raises:
        OverflowError: a value is negative or too large.
    """
    size = 8 * limbs
    data = b"".join(int(v).to_bytes(size, "little") for v in values)
    return np.frombuffer(data, dtype="<u8").reshape(-1, limbs).copy()


def words_to_ints(words: Words) -> list[int]:
    """uint64[n, limbs] (any alignment, read-only or not) -> n integers."""
    rows = np.ascontiguousarray(words)
    size = rows.shape[1] * 8
    data = rows.tobytes()
    return [int.from_bytes(data[i : i + size], "little") for i in range(0, len(data), size)]


def field_to_words(field: FieldParams, values: Iterable[int]) -> Words:
    """Integers (reduced mod p) -> Montgomery words uint64[n, limbs]."""
    return ints_to_words((field.to_montgomery(v % field.modulus) for v in values), field.limbs)


def words_to_field(field: FieldParams, words: Words) -> list[int]:
    """Montgomery words uint64[n, limbs] -> integers in [0, p)."""
    return [field.from_montgomery(v) for v in words_to_ints(words)]


def g1_to_words(curve: CurveParams, points: Sequence[AffineG1]) -> Words:
    """:func:`points_to_words` in G1: uint64[n, 2·limbs], Montgomery x, y."""
    return points_to_words(curve, Group.G1, points)


def g2_to_words(curve: CurveParams, points: Sequence[AffineG2]) -> Words:
    """:func:`points_to_words` in G2: uint64[n, 4·limbs], Montgomery x0, x1, y0, y1."""
    return points_to_words(curve, Group.G2, points)


def words_to_g1(curve: CurveParams, words: Words) -> list[AffineG1]:
    """Inverse of :func:`g1_to_words`."""
    return cast(list[AffineG1], words_to_points(curve, Group.G1, words))


def words_to_g2(curve: CurveParams, words: Words) -> list[AffineG2]:
    """Inverse of :func:`g2_to_words`."""
    return cast(list[AffineG2], words_to_points(curve, Group.G2, words))


def points_to_words(curve: CurveParams, group: Group, points: Iterable[AffinePoint]) -> Words:
    """Affine points of one group -> uint64[n, words], Montgomery form; infinity is all zeros."""
    params = curve.group(group)
    flat = [c for point in points for c in params.coordinates(point)]
    return field_to_words(curve.base, flat).reshape(-1, params.words)


def words_to_points(curve: CurveParams, group: Group, words: Words) -> list[AffinePoint]:
    """Inverse of :func:`points_to_words`."""
    params = curve.group(group)
    flat, n = words_to_field(curve.base, words.reshape(-1, curve.base.limbs)), 2 * params.degree
    return [params.point(flat[i : i + n]) for i in range(0, len(flat), n)]


@lru_cache
def generator(curve: CurveParams, group: Group) -> Words:
    """The group's generator as a point of uint64[words], read-only."""
    words = points_to_words(curve, group, [curve.group(group).generator]).reshape(-1)
    words.flags.writeable = False
    return words


def negative(curve: CurveParams, point: Words) -> Words:
    """−P of an affine point in G1, uint64[g1_words] -> the same; infinity stays."""
    limbs = curve.base.limbs
    (y,) = words_to_ints(point[limbs:].reshape(1, -1))
    out = point.copy()
    if y:
        out[limbs:] = ints_to_words([curve.q - y], limbs)[0]
    return out


def first_not_below(words: Words, bound: int) -> int:
    """Index of the first row of uint64[n, limbs] whose value is >= bound, or −1.

    Works in blocks, so that a mapped file is not copied whole.
    """
    limbs = words.shape[1]
    bound_words = [(bound >> (64 * i)) & 0xFFFFFFFFFFFFFFFF for i in range(limbs)]
    block = 1 << 16
    for start in range(0, len(words), block):
        rows = words[start : start + block]
        below = np.zeros(len(rows), dtype=bool)
        equal = np.ones(len(rows), dtype=bool)
        for i in reversed(range(limbs)):
            limit = np.uint64(bound_words[i])
            below |= equal & (rows[:, i] < limit)
            equal &= rows[:, i] == limit
        if not below.all():
            return start + int(np.argmin(below))
    return -1


def address(array: NDArray[np.generic]) -> int:
    """Where an array's data begin; the caller keeps the array alive."""
    return int(array.__array_interface__["data"][0])
