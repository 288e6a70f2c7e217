"""Points and scalars as files of other tools hold them, to and from the words of kernels.

A file's points are coordinates in canonical form, or one coordinate and a sign
(:mod:`gpuprover.formats.compressed`). Single points are quick enough in Python's integers; keys and
parameters have thousands.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from gpuprover.cpu import layout
from gpuprover.cpu.compiled import Kernels
from gpuprover.cpu.layout import Field
from gpuprover.curves import CurveParams, FieldParams, Group
from gpuprover.limbs import Words, address, field_to_words, ints_to_words, negative, words_to_ints

_curve, _roots, _vector = Kernels("curve"), Kernels("roots"), Kernels("vector")
_WINDOW = 4


@lru_cache(maxsize=16)
def _field(params: FieldParams, degree: int = 1) -> Field:
    return Field(params, degree)


def first_not_reduced(params: FieldParams, words: Words) -> int:
    """See :func:`gpuprover.devices.first_not_reduced`."""
    words = np.ascontiguousarray(words)
    first: int = _vector.first_out_of_range(
        _field(params), address(words), 0, words.size // max(1, params.limbs)
    )
    return first


def from_coordinates(curve: CurveParams, group: Group, coordinates: Words) -> tuple[Words, int]:
    """See :func:`gpuprover.devices.points_from_coordinates`."""
    params = curve.group(group)
    points = np.array(coordinates, dtype=np.uint64, order="C").reshape(-1, params.words)
    start, base = address(points), _field(curve.base)
    bad = first_not_reduced(curve.base, points)
    if bad >= 0:
        return points, bad // (2 * params.degree)
    _vector.convert(base, layout.TO_MONTGOMERY, start, start, 0, points.size // curve.base.limbs)
    coefficient = field_to_words(curve.base, params.b)
    F = _field(curve.base, params.degree)
    first: int = _curve.first_off_curve(F, start, address(coefficient), 0, len(points))
    return points, first


def to_coordinates(curve: CurveParams, points: Words) -> Words:
    """See :func:`gpuprover.devices.coordinates_of_points`."""
    found = np.array(points, dtype=np.uint64, order="C")
    at, n = address(found), found.size // curve.base.limbs
    _vector.convert(_field(curve.base), layout.FROM_MONTGOMERY, at, at, 0, n)
    return found


def from_x(curve: CurveParams, xs: Words, larger: list[bool]) -> tuple[Words, int]:
    """See :func:`gpuprover.devices.points_from_x`."""
    limbs, q, n = curve.base.limbs, curve.q, len(xs)
    points = np.zeros((n, 2 * limbs), dtype=np.uint64)
    points[:, :limbs] = xs
    F, start = _field(curve.base), address(points)
    bad = first_not_reduced(curve.base, points)
    if bad >= 0:
        return points, bad // 2
    _vector.convert(F, layout.TO_MONTGOMERY, start, start, 0, 2 * n)
    exponent = ints_to_words([(q + 1) // 4], limbs).reshape(-1)
    windows = -(-((q + 1) // 4).bit_length() // _WINDOW)
    coefficient, found = field_to_words(curve.base, [curve.b]), np.zeros(n, dtype=np.uint8)
    _roots.lift(F, start, address(coefficient), exponent, windows, found, 0, n)
    if not found.all():
        return points, int(np.argmin(found))
    roots = words_to_ints(to_coordinates(curve, points[:, limbs:]))
    for i, (y, sign) in enumerate(zip(roots, larger, strict=True)):
        if (y > q - y) != sign:
            points[i] = negative(curve, points[i])
    return points, -1
