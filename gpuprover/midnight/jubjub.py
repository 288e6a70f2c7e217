"""The curve Jubjub over the scalar field of BLS12-381: −x² + y² = 1 + d·x²·y².

Points are pairs (x, y) of canonical coordinates; the neutral element is (0, 1). The cofactor is 8; circuits
compute in the subgroup of prime order only. Source: Zcash protocol specification, section 5.4.9.3; formulas
of Hisil, Wong, Carter, Dawson, "Twisted Edwards Curves Revisited", ASIACRYPT 2008, section 3.
"""

from __future__ import annotations

from gpuprover import devices
from gpuprover.curves import BLS12_381

R = BLS12_381.r
"""Modulus of the coordinates."""
ORDER = 0x0E7DB4EA6533AFA906673B0101343B00A6682093CCC81082D0970E5ED6F72CB7
"""The prime order of the subgroup, of 252 bits."""
COFACTOR = 8
D = -10240 * pow(10241, -1, R) % R
SCALAR_BITS = 252

Point = tuple[int, int]
NEUTRAL: Point = (0, 1)
_Extended = tuple[int, int, int, int]
"""X, Y, Z, T with x = X/Z, y = Y/Z, xy = T/Z."""


def on_curve(point: Point) -> bool:
    """Whether coordinates below r satisfy the curve's equation."""
    x, y = point
    return (y * y - x * x - 1 - D * x * x * y * y) % R == 0


def in_subgroup(point: Point) -> bool:
    """Whether a point of the curve is in the subgroup of prime order."""
    return multiply(point, ORDER) == NEUTRAL


def is_valid(point: Point) -> bool:
    """Whether coordinates below r are those of a point in the subgroup of prime order."""
    return on_curve(point) and in_subgroup(point)


def add(p: Point, q: Point) -> Point:
    """p + q, whatever the two points are."""
    return _affine(_add(_extended(p), _extended(q)))


def negate(p: Point) -> Point:
    """−p."""
    return -p[0] % R, p[1]


def multiply(p: Point, scalar: int) -> Point:
    """scalar·p for a point of the curve and a scalar >= 0, by a kernel."""
    return devices.edwards_multiple(BLS12_381, D, p, scalar % (COFACTOR * ORDER))


def multiply_in_integers(p: Point, scalar: int) -> Point:
    """As :func:`multiply`, without a kernel: its specification."""
    total, base = _extended(NEUTRAL), _extended(p)
    for bit in bin(scalar)[2:]:
        total = _double(total)
        if bit == "1":
            total = _add(total, base)
    return _affine(total)


def root(p: Point) -> Point:
    """The point of the subgroup whose multiple by the cofactor is p, a point of the subgroup."""
    return multiply(p, pow(COFACTOR, -1, ORDER))


def _extended(p: Point) -> _Extended:
    return p[0], p[1], 1, p[0] * p[1] % R


def _affine(p: _Extended) -> Point:
    inverse = pow(p[2], -1, R)
    return p[0] * inverse % R, p[1] * inverse % R


def _add(p: _Extended, q: _Extended) -> _Extended:
    a = (p[1] - p[0]) * (q[1] - q[0]) % R
    b = (p[1] + p[0]) * (q[1] + q[0]) % R
    c = p[3] * q[3] % R * (2 * D) % R
    d = 2 * p[2] * q[2] % R
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % R, g * h % R, f * g % R, e * h % R


def _double(p: _Extended) -> _Extended:
    a, b, c = p[0] * p[0] % R, p[1] * p[1] % R, 2 * p[2] * p[2] % R
    e = (p[0] + p[1]) ** 2 - a - b
    g, h = b - a, -a - b
    f = g - c
    return e * f % R, g * h % R, f * g % R, e * h % R


GENERATOR: Point = multiply_in_integers(
    (0x62EDCBB8BF3787C88B0F03DDD60A8187CAF55D1B29BF81AFE4B3D35DF1A7ADFE, 11), COFACTOR
)
"""The generator of the subgroup."""
