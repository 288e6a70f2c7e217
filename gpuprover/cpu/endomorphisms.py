"""Endomorphisms of both groups, as constants: the untwisted Frobenius ψ of G2, and (βx, y) of G1.

Pairings end with ψ, subgroup tests compare multiples with what these maps make of a point
(:func:`gpuprover.cpu.pairing.subgroup_check`). All is plain integers, computed from a curve's record.
"""

from __future__ import annotations

from functools import lru_cache

from gpuprover.curves import CurveParams
from gpuprover.limbs import Words, field_to_words

Fq2 = tuple[int, int]
"""c0 + c1·u."""


def fq2_power(c: CurveParams, base: Fq2, exponent: int) -> Fq2:
    """base^exponent, for an exponent of at least 0."""
    q = c.q
    result = (1, 0)
    for bit in bin(exponent)[2:]:
        a, b = result
        result = ((a * a - b * b) % q, 2 * a * b % q)
        if bit == "1":
            a, b = result
            result = ((a * base[0] - b * base[1]) % q, (a * base[1] + b * base[0]) % q)
    return result


def _fq2_inverse(c: CurveParams, x: Fq2) -> Fq2:
    n = pow(x[0] * x[0] + x[1] * x[1], -1, c.q)
    return x[0] * n % c.q, -x[1] * n % c.q


def fq2_words(c: CurveParams, values: list[Fq2]) -> Words:
    """Montgomery words uint64[2n, limbs], c0 before c1."""
    return field_to_words(c.base, [part for value in values for part in value])


@lru_cache
def twist_frobenius(c: CurveParams) -> tuple[Fq2, Fq2]:
    """The factors of ψ(x, y) = (x̄·γx, ȳ·γy)."""
    gx, gy = fq2_power(c, c.pairing.xi, (c.q - 1) // 3), fq2_power(c, c.pairing.xi, (c.q - 1) // 2)
    return (gx, gy) if c.pairing.twist == "D" else (_fq2_inverse(c, gx), _fq2_inverse(c, gy))


@lru_cache
def g1_endomorphism(c: CurveParams) -> int:
    """β with β³ = 1 such that (βx, y) = −seed²·(x, y) on the subgroup of a BLS12 curve."""
    beta = next(b for b in (pow(g, (c.q - 1) // 3, c.q) for g in range(2, 99)) if b != 1)
    x, y = c.g1
    want = _plain_multiple(c, c.g1, c.pairing.seed**2)
    for candidate in (beta, beta * beta % c.q):
        if (candidate * x % c.q, -y % c.q) == want:
            return candidate
    raise AssertionError(f"{c.name}: no endomorphism found")


def _plain_multiple(c: CurveParams, point: tuple[int, int], k: int) -> tuple[int, int]:
    """k·point on G1 by the textbook, for a constant."""
    q, result = c.q, None
    for bit in bin(k)[2:]:
        for other in (result, point if bit == "1" else None):
            if result is None or other is None:
                result = result or other
                continue
            (x1, y1), (x2, y2) = result, other
            slope = 3 * x1 * x1 * pow(2 * y1, -1, q) if result == other else (y2 - y1) * pow(x2 - x1, -1, q)
            x3 = (slope * slope - x1 - x2) % q
            result = (x3, (slope * (x1 - x3) - y1) % q)
    assert result is not None
    return result
