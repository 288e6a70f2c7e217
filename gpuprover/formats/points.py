"""Single curve points in files: decoded to plain integers and checked to lie on their curve."""

from __future__ import annotations

from gpuprover.curves import AffineG1, AffineG2, CurveParams
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


def decode_g1(curve: CurveParams, words: Words) -> AffineG1:
    """Montgomery words uint64[g1_words] -> host point. Raises ValueError, saying what is wrong."""
    _check_coordinates(curve, words)
    point = words_to_g1(curve, words)[0]
    if not on_curve_g1(curve, point):
        raise ValueError(f"not on the curve {curve.name}")
    return point


def decode_g2(curve: CurveParams, words: Words) -> AffineG2:
    """Montgomery words uint64[g2_words] -> host point. Raises ValueError, saying what is wrong."""
    _check_coordinates(curve, words)
    point = words_to_g2(curve, words)[0]
    if not on_curve_g2(curve, point):
        raise ValueError(f"not on the twist of {curve.name}")
    return point


def _check_coordinates(curve: CurveParams, words: Words) -> None:
    if any(v >= curve.q for v in words_to_ints(words.reshape(-1, curve.base.limbs))):
        raise ValueError(f"a coordinate is not below the base prime of {curve.name}")
