"""The kernels of vector.py in eight lanes, for the ranges [lo, hi) of blocks of eight elements.

Elements stand in memory with radix 2^256, and products in lanes are divided by 2^260: a factor is
shifted by four bits on loading, where it is not a constant.
"""

from __future__ import annotations

import numpy as np

from gpuprover.cpu.kernels.field import load, load_u32, plain, store, zero
from gpuprover.cpu.kernels.jit import jit
from gpuprover.cpu.kernels.lanes import (
    lanes_inverses,
    lanes_one,
    lanes_select,
    lanes_zero,
)
from gpuprover.cpu.kernels.lanes_memory import load_lanes, store_words
from gpuprover.cpu.kernels.loose import (
    carried,
    gather_at,
    gather_words,
    lane_power,
    lowest,
    minus,
    plus,
    times,
    zero_mask,
)
from gpuprover.cpu.layout import OUTSIDE, STOPPED


@jit
def pointwise(F, operation, a, b, c, out, lo, hi):
    """out[i] = a[i] ∘ b[i] with ∘ one of ADD, SUB, MUL, or a[i]·b[i] − c[i]; out may be one of them."""
    for k in range(lo, hi):
        x = gather_words(F, a, 8 * k, 1, 0)
        if operation >= 2:
            x = times(gather_words(F, b, 8 * k, 1, 4), x)
            if operation == 3:
                x = minus(x, gather_words(F, c, 8 * k, 1, 0), 1)
        else:
            y = gather_words(F, b, 8 * k, 1, 0)
            x = plus(x, y) if operation == 0 else minus(x, y, 1)
        store_words(out, 8 * k, 1, lowest(x))


@jit
def scale(F, a, out, factors, powers, lo, hi):
    """out[i] = a[i]·factor·base^i, or a[i]·factor without ``powers``; out may be a.

    ``factors``: see :func:`gpuprover.cpu.layout.power_blocks`.
    """
    current, step = load_lanes(F, factors, 0), load_lanes(F, factors, 1)
    if powers:
        current = carried(times(lane_power(F, step, lo), current))
    for k in range(lo, hi):
        store_words(out, 8 * k, 1, lowest(times(gather_words(F, a, 8 * k, 1, 0), current)))
        if powers:
            current = carried(times(current, step))


@jit
def batch_inverse(F, a, out, factors, lo, hi):
    """out[i] = 1/a[i], 0 for 0, with one inversion (Montgomery's trick in every lane); out must not be a.

    ``factors``: 2^−8 in lanes, since words are taken for elements with radix 2^260.
    """
    total = lanes_one(F)
    for k in range(lo, hi):
        store_words(out, 8 * k, 1, total)
        x = gather_words(F, a, 8 * k, 1, 0)
        total = carried(times(total, lanes_select(zero_mask(x), lanes_one(F), x)))
    total, _, _ = lanes_inverses(F, total, lanes_one(F))
    total = carried(times(total, load_lanes(F, factors, 0)))
    for k in range(hi - 1, lo - 1, -1):
        x = gather_words(F, a, 8 * k, 1, 0)
        nothing = zero_mask(x)
        y = lowest(times(gather_words(F, out, 8 * k, 1, 0), total))
        total = carried(times(total, lanes_select(nothing, lanes_one(F), x)))
        store_words(out, 8 * k, 1, lanes_select(nothing, lanes_zero(F), y))


@jit
def spmv(F, outs, matrices, matrix_stride, rows, row_stride, columns, column_stride, values, value_stride,
         scalars, n_scalars, n_rows, waiting, products, strict, lo, hi, row_lo, row_hi, stop):  # fmt: skip
    """See :func:`gpuprover.cpu.kernels.vector.spmv`; products are made of eight entries that wait for it.

    ``waiting``: int64[3, 8]; ``products``: eight elements.
    """
    G = plain(F)
    nothing = zero(G)
    row_hi = min(row_hi, n_rows)
    count = 0
    k = lo
    while True:
        if k & 0xFFFF == 0 and stop[0] != 0:
            return STOPPED
        last = k >= hi
        if not last:
            row = load_u32(rows + k * row_stride)
            column = load_u32(columns + k * column_stride)
            matrix = load_u32(matrices + k * matrix_stride)
            if row >= n_rows or column >= n_scalars or matrix >= len(outs):
                return OUTSIDE
            if row_lo <= row < row_hi:
                # Written in any case, and kept if the scalar is not 0: which it is, no branch can foresee.
                x = scalars + 32 * column
                waiting[0, count] = x
                waiting[1, count] = values + k * value_stride
                waiting[2, count] = outs[matrix] + 32 * row
                count += np.int64(load(G, x, 0) != nothing)
            elif strict:
                return 0
            k += 1
        if count == 8 or (last and count > 0):
            for i in range(count, 8):
                waiting[0, i], waiting[1, i] = waiting[0, 0], waiting[1, 0]
            at = waiting.ctypes.data
            product = times(gather_at(F, at, 4), gather_at(F, at + 64, 0))
            store_words(products, 0, 1, lowest(product))
            for i in range(count):
                out = waiting[2, i]
                store(out, 0, load(G, out, 0) + load(G, products, i))
            count = 0
        if last:
            return 1
