"""The kernels of :mod:`gpuprover.cpu.point_transform`: multiples of many points, and butterflies."""

from __future__ import annotations

import numpy as np

from gpuprover.cpu.kernels.curve import (
    NEGATE,
    add_affine,
    add_pairs,
    copy_point,
    double,
    identity,
    recode,
    store_xyzz,
)
from gpuprover.cpu.kernels.field import load, negate_if
from gpuprover.cpu.kernels.jit import jit
from gpuprover.cpu.layout import COMBINED, STOPPED


@jit
def multiples(
    F, points, scalars, beta, n, table, digits, p_index, q_index, o_index, prefix, kinds, out, stop
):
    """XYZZ out[i] = k0·(x, y) + k1·(βx, −y) for affine points (x, y) and scalars of two words.

    Args:
        scalars: flat, k0 and k1 of each point.
        table: room for (COMBINED + 1)·n affine points.
        digits: int8[2n, > 128 + COMBINED_WIDTH].
        p_index, q_index, o_index: int64[n]; kinds: uint8[n]; prefix: room for n elements.
    """
    b = load(F, beta, 0)
    for i in range(n):
        copy_point(F, points, i, table, i)
        p_index[i], q_index[i], o_index[i] = i, i, COMBINED * n + i
    # (2d + 1)·points[i] at d·n + i, and the doubles behind them.
    add_pairs(F, table, p_index, table, q_index, table, o_index, n, prefix, kinds)
    for d in range(1, COMBINED):
        for i in range(n):
            p_index[i], q_index[i], o_index[i] = (d - 1) * n + i, COMBINED * n + i, d * n + i
        add_pairs(F, table, p_index, table, q_index, table, o_index, n, prefix, kinds)
    for i in range(n):
        if i & 63 == 0 and stop[0] != 0:
            return STOPPED
        length = max(recode(scalars, 2, 2 * i, digits), recode(scalars, 2, 2 * i + 1, digits))
        acc = identity(F)
        for k in range(length - 1, -1, -1):
            acc = double(F, acc)
            digit = np.int64(digits[2 * i, k])
            if digit != 0:
                at = (abs(digit) >> 1) * n + i
                acc = add_affine(
                    F, acc, load(F, table, 2 * at), negate_if(load(F, table, 2 * at + 1), digit >> 63)
                )
            digit = np.int64(digits[2 * i + 1, k])
            if digit != 0:
                at = (abs(digit) >> 1) * n + i
                y = negate_if(load(F, table, 2 * at + 1), ~(digit >> 63))
                acc = add_affine(F, acc, load(F, table, 2 * at) * b, y)
        store_xyzz(F, out, i, acc)
    return 0


@jit
def butterflies(F, points, others, half, lo, hi, p_index, q_index, o_index, prefix, kinds):
    """(points[l], points[l + half]) = (points[l] + t, points[l] − t) for butterflies [lo, hi), all affine.

    Butterfly b has l = 2·half·(b // half) + b % half, and t = others[b − lo].
    """
    n = hi - lo
    for sign in (NEGATE, 0):
        for i in range(n):
            b = lo + i
            lower = 2 * half * (b // half) + b % half
            p_index[i], q_index[i] = lower, i + sign
            o_index[i] = lower + half if sign else lower
        add_pairs(F, points, p_index, others, q_index, points, o_index, n, prefix, kinds)
