"""Field elements to a point of Jubjub, as Midnight's ``hash_to_curve`` does it, in plain integers.

A Poseidon sponge gives two elements. Each is mapped to a curve y² = x³ + Ax + B (Shallue, van de Woestijne,
as RFC 9380 has it in section 6.6.1), from there to the Montgomery and the Edwards form, and its multiple by 8
is taken; the result is the sum of the two points. Signs of roots do not matter: that of y follows from u.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpuprover.curves import BLS12_381
from gpuprover.midnight.jubjub import COFACTOR, Point, add, multiply
from gpuprover.midnight.poseidon import sponge

R = BLS12_381.r
Z = R - 2
MONTGOMERY_A, SCALE = 40962, -40964 % R
"""J and K of the Montgomery curve K·y² = x³ + J·x² + x."""
A = 0x739E8ACF6E7266E8976220A0378A232820535E745E639334C50D34DCD4C20942
B = 0x6AE5CA3C3F667667F4C60001B55614B0BBF51483FF8366AC7120C33B4C6628E1
THIRD = MONTGOMERY_A * pow(3, -1, R) % R
SPONGE_OF_UNKNOWN_LENGTH = 1 << 64
_GENERATOR, _TWO_ADICITY = 7, 32


def is_square(v: int) -> bool:
    """Whether an element below r has a square root; 0 has."""
    return pow(v, (R - 1) // 2, R) <= 1


def square_root(v: int) -> int:
    """The root of a square that the algorithm of Tonelli and Shanks finds from the non-residue 7."""
    odd = (R - 1) >> _TWO_ADICITY
    c, x, t, m = pow(_GENERATOR, odd, R), pow(v, (odd + 1) // 2, R), pow(v, odd, R), _TWO_ADICITY
    if t == 0:
        return 0
    while t != 1:
        i, square = 0, t
        while square != 1:
            square, i = square * square % R, i + 1
        c = pow(c, 1 << (m - i - 1), R)
        x, c, m = x * c % R, c * c % R, i
        t = t * c % R
    return x


def _g(x: int) -> int:
    return (x * x * x + A * x + B) % R


def _sign(v: int) -> int:
    """1 for an odd element."""
    return v & 1


def _inverse(v: int) -> int:
    """1/v, and 0 for 0."""
    return pow(v, R - 2, R)


def _even_root(v: int) -> int:
    root = square_root(v)
    return R - root if _sign(root) else root


C1 = _g(Z)
C2 = -Z * pow(2, -1, R) % R
C3 = _even_root(-_g(Z) * (3 * Z * Z + 4 * A) % R)
C4 = -4 * _g(Z) * pow(3 * Z * Z + 4 * A, -1, R) % R


def map_to_curve(u: int) -> Point:
    """The point of the prime-order subgroup for an element below r."""
    t = u * u * C1 % R
    t1, t2 = (1 - t) % R, (1 + t) % R
    t3 = _inverse(t1 * t2 % R)
    t4 = u * t1 * t3 * C3 % R
    x = (C2 - t4) % R
    if not is_square(_g(x)):
        x = (C2 + t4) % R
        if not is_square(_g(x)):
            x = (pow(t2 * t2 * t3, 2, R) * C4 + Z) % R
    y = square_root(_g(x))
    if _sign(u) != _sign(y):
        y = -y % R
    x, y = (x * SCALE - THIRD) % R, y * SCALE % R
    inverse = _inverse((x + 1) * y % R)
    edwards = inverse * (x + 1) * x % R, (inverse * y * (x - 1) % R if inverse else 1)
    return multiply(edwards, COFACTOR)


def hash_to_curve(values: Sequence[int]) -> Point:
    """The point of the prime-order subgroup for elements below r, any number of them."""
    u, v, _ = sponge([*values, len(values)], SPONGE_OF_UNKNOWN_LENGTH)
    return add(map_to_curve(u), map_to_curve(v))
