"""Single curve points in files and documents: whether they lie on their curve."""

from __future__ import annotations

import numpy as np

from gpuprover.curves import AffineG1, AffineG2, CurveParams, Group
from gpuprover.limbs import Words, words_to_g1, words_to_g2, words_to_ints


def on_curve_g1(curve: CurveParams, point: AffineG1) -> bool:
    """Whether y² = x³ + b; infinity is on every curve. Coordinates in [0, q)."""
    if point is None:
        return True
    x, y = point
    return (y * y - x * x * x - curve.b) % curve.q == 0


def on_curve_g2(curve: CurveParams, point: AffineG2) -> bool:
    """Whether y² = x³ + b′ over Fq2; infinity is on every curve. Coordinates in [0, q)."""
    if point is None:
        return True
    q, (x, y) = curve.q, point

    def mul(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
        return (a[0] * b[0] - a[1] * b[1]) % q, (a[0] * b[1] + a[1] * b[0]) % q

    y2, x3 = mul(y, y), mul(mul(x, x), x)
    return all((y2[i] - x3[i] - curve.b_twist[i]) % q == 0 for i in (0, 1))


def checked_point(curve: CurveParams, group: Group, words: Words, *, infinity: str = "") -> Words:
    """A point of a file, Montgomery words of any shape and alignment -> a copy, uint64[words], on its curve.

    Args:
        infinity: a clause that says why the point at infinity is refused; "" where it is good.

    Raises:
        ValueError: it is not; the message says what is wrong.
    """
    row = np.array(words, dtype=np.uint64).reshape(group.words(curve))
    if any(v >= curve.q for v in words_to_ints(row.reshape(-1, curve.base.limbs))):
        raise ValueError(f"a coordinate is not below the base prime of {curve.name}")
    if group is Group.G1:
        if not on_curve_g1(curve, words_to_g1(curve, row)[0]):
            raise ValueError(f"not on the curve {curve.name}")
    elif not on_curve_g2(curve, words_to_g2(curve, row)[0]):
        raise ValueError(f"not on the twist of {curve.name}")
    if infinity and not row.any():
        raise ValueError(f"the point at infinity, {infinity}")
    return row
