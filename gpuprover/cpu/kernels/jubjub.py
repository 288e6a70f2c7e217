"""The kernel of :mod:`gpuprover.cpu.jubjub`: twisted Edwards curves −x² + y² = 1 + d·x²·y².

Points are in extended coordinates (X : Y : Z : T) with T = XY/Z, all elements in Montgomery form. Source:
Hisil, Wong, Carter, Dawson, "Twisted Edwards Curves Revisited", ASIACRYPT 2008, sections 3.1 and 3.3.
"""

from __future__ import annotations

import numpy as np

from gpuprover.cpu.kernels.field import bare_one, inverse, load, one, r_squared, square, store, zero
from gpuprover.cpu.kernels.jit import inline, jit

_ONE = np.uint64(1)


@inline
def doubled(x, y, z):
    """2·(X : Y : Z), with its T."""
    a, b, c = square(x), square(y), square(z)
    e, g, h = square(x + y) - a - b, b - a, -(a + b)
    f = g - (c + c)
    return e * f, g * h, f * g, e * h


@inline
def added(x, y, z, t, total, difference, product):
    """(X : Y : Z : T) + (u, v), given v + u, v − u and 2d·u·v."""
    a, b, c, d = (y - x) * difference, (y + x) * total, t * product, z + z
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f, g * h, f * g, e * h


@jit
def multiply(F, point, scalar, bits, d, out):
    """out = scalar·point.

    Args:
        point, out: the addresses of two canonical coordinates.
        scalar: uint64[⌈bits/64⌉].
        bits: bits of the scalar that count, all its ones among them.
        d: the address of the curve's coefficient, in Montgomery form.
    """
    u, v = load(F, point, 0) * r_squared(F), load(F, point, 1) * r_squared(F)
    coefficient = load(F, d, 0)
    total, difference, product = v + u, v - u, (coefficient + coefficient) * u * v
    x, y, z, t = zero(F), one(F), one(F), zero(F)
    for i in range(bits - 1, -1, -1):
        x, y, z, t = doubled(x, y, z)
        if scalar[i >> 6] >> np.uint64(i & 63) & _ONE:
            x, y, z, t = added(x, y, z, t, total, difference, product)
    affine = inverse(z) * bare_one(F)
    store(out, 0, x * affine)
    store(out, 1, y * affine)
