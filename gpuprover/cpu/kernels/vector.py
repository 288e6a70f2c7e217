"""Vectors over the scalar field: pointwise operations, powers, inverses, sparse products.

Kernels work on the half-open range [lo, hi) of arrays given by address, so that a caller
can share a vector among threads. All elements are Montgomery unless said otherwise.
"""

from __future__ import annotations

from gpuprover.cpu.kernels.field import (
    bare_one,
    inverse,
    is_canonical,
    load,
    load_u32,
    one,
    r_squared,
    store,
    zero,
)
from gpuprover.cpu.kernels.jit import inline, jit
from gpuprover.cpu.layout import OUTSIDE, STOPPED


@jit
def pointwise(F, operation, a, b, out, lo, hi):
    """out[i] = a[i] ∘ b[i] with ∘ one of ADD, SUB, MUL; out may be a or b."""
    if operation == 0:
        for i in range(lo, hi):
            store(out, i, load(F, a, i) + load(F, b, i))
    elif operation == 1:
        for i in range(lo, hi):
            store(out, i, load(F, a, i) - load(F, b, i))
    else:
        for i in range(lo, hi):
            store(out, i, load(F, a, i) * load(F, b, i))


@jit
def multiply_subtract(F, a, b, c, lo, hi):
    """a[i] = a[i]·b[i] − c[i]."""
    for i in range(lo, hi):
        store(a, i, load(F, a, i) * load(F, b, i) - load(F, c, i))


@jit
def convert(F, operation, a, out, lo, hi):
    """Into Montgomery form or out of it; out may be a."""
    factor = r_squared(F) if operation == 0 else bare_one(F)
    for i in range(lo, hi):
        store(out, i, load(F, a, i) * factor)


@jit
def append_combinations(F, values, known, left, left_stride, right, right_stride, left_factors, right_factors,
                        factor_stride, count, stop):  # fmt: skip
    """values[known + i] = left_factors[i]·values[left[i]] + right_factors[i]·values[right[i]], in order.

    Indices are uint32 and lie, as the factors do, the given numbers of bytes apart. They may be a mapped
    file's, which somebody may be writing: each is read once, and looked at before it is used. Returns
    :data:`OUTSIDE` for one that is not before its element, :data:`STOPPED`, or 0.
    """
    for i in range(count):
        if i & 0xFFFF == 0 and stop[0] != 0:
            return STOPPED
        a = load_u32(left + i * left_stride)
        b = load_u32(right + i * right_stride)
        if a >= known + i or b >= known + i:
            return OUTSIDE
        x = load(F, left_factors + i * factor_stride, 0) * load(F, values, a)
        y = load(F, right_factors + i * factor_stride, 0) * load(F, values, b)
        store(values, known + i, x + y)
    return 0


@jit
def first_out_of_range(F, a, lo, hi):
    """The first i in [lo, hi) with a[i] >= p, or −1."""
    for i in range(lo, hi):
        if not is_canonical(load(F, a, i)):
            return i
    return -1


@inline
def power(F, x, exponent):
    """x^exponent for an int64 exponent >= 0."""
    y = one(F)
    while exponent > 0:
        if exponent & 1:
            y = y * x
        x = x * x
        exponent >>= 1
    return y


@jit
def scale_powers(F, a, constants, lo, hi):
    """a[i] = a[i]·factor·base^i; ``constants`` holds factor and base."""
    base = load(F, constants, 1)
    current = load(F, constants, 0) * power(F, base, lo)
    for i in range(lo, hi):
        store(a, i, load(F, a, i) * current)
        current = current * base


@jit
def scale_powers_reversed(F, a, constants, steps, log_n, lo, hi):
    """a[i] = a[i]·factor·base^rev(i), rev reversing log_n bits.

    ``steps`` holds log_n elements: base^(rev(i + 1) − rev(i)) by the count of trailing ones of i.
    """
    reverse = 0
    for bit in range(log_n):
        if (lo >> bit) & 1:
            reverse |= 1 << (log_n - 1 - bit)
    current = load(F, constants, 0) * power(F, load(F, constants, 1), reverse)
    for i in range(lo, hi):
        store(a, i, load(F, a, i) * current)
        ones = 0
        while (i >> ones) & 1:
            ones += 1
        if ones < log_n:
            current = current * load(F, steps, ones)


@jit
def batch_inverse(F, a, out, lo, hi):
    """out[i] = 1/a[i], 0 for 0, with one inversion (Montgomery's trick); out must not be a."""
    total = one(F)
    nothing = zero(F)
    for i in range(lo, hi):
        store(out, i, total)
        x = load(F, a, i)
        if x != nothing:
            total = total * x
    total = inverse(total)
    for i in range(hi - 1, lo - 1, -1):
        x = load(F, a, i)
        if x == nothing:
            store(out, i, nothing)
        else:
            store(out, i, load(F, out, i) * total)
            total = total * x


@jit
def spmv(F, outs, matrices, matrix_stride, rows, row_stride, columns, column_stride, values, value_stride,
         scalars, n_scalars, n_rows, strict, lo, hi, row_lo, row_hi, stop):  # fmt: skip
    """outs[matrix][row] += value·scalar over the entries [lo, hi) with row in [row_lo, row_hi).

    ``outs``: int64, the addresses of the matrices' results. Indices are uint32 and lie, as the values do, the
    given numbers of bytes apart; values are c·R², scalars canonical, so products are Montgomery. Zero scalars
    cost a look. Indices are a mapped file's, which somebody may be writing: each is read once, and looked at
    before it is used. Returns 0, with the work half done, if ``strict`` and another row occurs,
    :data:`OUTSIDE` or :data:`STOPPED`, else 1.
    """
    row_hi = min(row_hi, n_rows)
    nothing = zero(F)
    for k in range(lo, hi):
        if k & 0xFFFF == 0 and stop[0] != 0:
            return STOPPED
        row = load_u32(rows + k * row_stride)
        column = load_u32(columns + k * column_stride)
        matrix = load_u32(matrices + k * matrix_stride)
        if row >= n_rows or column >= n_scalars or matrix >= len(outs):
            return OUTSIDE
        if row < row_lo or row >= row_hi:
            if strict:
                return 0
            continue
        x = load(F, scalars, column)
        if x != nothing:
            out = outs[matrix]
            store(out, row, load(F, out, row) + load(F, values + k * value_stride, 0) * x)
    return 1
