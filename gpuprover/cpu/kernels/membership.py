"""The kernels of :mod:`gpuprover.cpu.membership`: multiples compared with images under an endomorphism."""

from __future__ import annotations

from gpuprover.cpu.kernels.field import load
from gpuprover.cpu.kernels.jit import jit
from gpuprover.cpu.kernels.pairing import untwisted_frobenius


@jit
def first_other_g1(F, points, multiples, constants, lo, hi):
    """First i with (βx, −y) ≠ multiples[i − lo], for points (x, y)."""
    beta = load(F, constants, 0)
    for i in range(lo, hi):
        x, y = load(F, points, 2 * i), load(F, points, 2 * i + 1)
        k = i - lo
        if x * beta != load(F, multiples, 2 * k) or -y != load(F, multiples, 2 * k + 1):
            return i
    return -1


@jit
def first_other_g2(F, points, multiples, frobenius, negative, lo, hi):
    """First i with ±ψ(points[i]) ≠ multiples[i − lo]."""
    for i in range(lo, hi):
        x, y = untwisted_frobenius(F, load(F, points, 2 * i), load(F, points, 2 * i + 1), frobenius)
        k = i - lo
        if x != load(F, multiples, 2 * k) or (-y if negative else y) != load(F, multiples, 2 * k + 1):
            return i
    return -1
