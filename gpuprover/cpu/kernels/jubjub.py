"""The kernel of :mod:`gpuprover.cpu.jubjub`: twisted Edwards curves −x² + y² = 1 + d·x²·y².

Points are in extended coordinates (X : Y : Z : T) with T = XY/Z, all elements in Montgomery form. Source:
Hisil, Wong, Carter, Dawson, "Twisted Edwards Curves Revisited", ASIACRYPT 2008, sections 3.1 and 3.3.
"""

from __future__ import annotations

import numpy as np

from gpuprover.cpu.kernels.field import bare_one, inverse, load, one, r_squared, store, times, zero
from gpuprover.cpu.kernels.jit import inline, jit

_ONE = np.uint64(1)


@inline
def doubled(x, y, z):
    """2·(X : Y : Z), with its T."""
    a, b, c = times(x, x), times(y, y), times(z, z)
    e, g, h = times(x + y, x + y) - a - b, b - a, -(a + b)
    f = g - (c + c)
    return times(e, f), times(g, h), times(f, g), times(e, h)


@inline
def added(x, y, z, t, total, difference, product):
    """(X : Y : Z : T) + (u, v), given v + u, v − u and 2d·u·v."""
    a, b, c, d = times(y - x, difference), times(y + x, total), times(t, product), z + z
    e, f, g, h = b - a, d - c, d + c, b + a
    return times(e, f), times(g, h), times(f, g), times(e, h)


@jit
def multiply(F, point, scalar, bits, d, out):
    """out = scalar·point.

    Args:
        point, out: the addresses of two canonical coordinates.
        scalar: uint64[⌈bits/64⌉].
        bits: bits of the scalar that count, all its ones among them.
        d: the address of the curve's coefficient, in Montgomery form.
    """
    u, v = times(load(F, point, 0), r_squared(F)), times(load(F, point, 1), r_squared(F))
    coefficient = load(F, d, 0)
    total, difference, product = v + u, v - u, times(times(coefficient + coefficient, u), v)
    x, y, z, t = zero(F), one(F), one(F), zero(F)
    for i in range(bits - 1, -1, -1):
        x, y, z, t = doubled(x, y, z)
        if scalar[i >> 6] >> np.uint64(i & 63) & _ONE:
            x, y, z, t = added(x, y, z, t, total, difference, product)
    affine = times(inverse(z), bare_one(F))
    store(out, 0, times(x, affine))
    store(out, 1, times(y, affine))
