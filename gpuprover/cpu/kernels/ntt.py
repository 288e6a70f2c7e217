"""The kernels of :mod:`gpuprover.cpu.ntt`: stages, permutation, twiddles."""

from __future__ import annotations

from gpuprover.cpu.kernels.field import load, one, store
from gpuprover.cpu.kernels.jit import inline, jit
from gpuprover.cpu.layout import STOPPED


@inline
def _frequency_range(F, data, table, h, lo, hi, inverted):
    """Butterflies [lo, hi) of the stage of distance h: (a, b) -> (a + b, (a − b)·w)."""
    if h == 1:
        for t in range(lo, hi):
            a, b = load(F, data, 2 * t), load(F, data, 2 * t + 1)
            store(data, 2 * t, a + b)
            store(data, 2 * t + 1, a - b)
        return
    t = lo
    while t < hi:
        j = t & (h - 1)
        i = 2 * (t - j) + j
        count = min(h - j, hi - t)
        for k in range(count):
            a, b = load(F, data, i + k), load(F, data, i + k + h)
            store(data, i + k, a + b)
            if not inverted:
                store(data, i + k + h, (a - b) * load(F, table, h + j + k))
            elif j + k == 0:
                store(data, i + k + h, a - b)
            else:
                store(data, i + k + h, (b - a) * load(F, table, 2 * h - j - k))
        t += count


@inline
def _time_range(F, data, table, h, lo, hi, inverted):
    """Butterflies [lo, hi) of the stage of distance h: (a, b) -> (a + b·w, a − b·w)."""
    if h == 1:
        _frequency_range(F, data, table, h, lo, hi, inverted)
        return
    t = lo
    while t < hi:
        j = t & (h - 1)
        i = 2 * (t - j) + j
        count = min(h - j, hi - t)
        for k in range(count):
            a, b = load(F, data, i + k), load(F, data, i + k + h)
            if not inverted:
                b = b * load(F, table, h + j + k)
            elif j + k != 0:
                b = -(b * load(F, table, 2 * h - j - k))
            store(data, i + k, a + b)
            store(data, i + k + h, a - b)
        t += count


@jit
def stage(F, data, table, h, lo, hi, in_time, inverted):
    if in_time:
        _time_range(F, data, table, h, lo, hi, inverted)
    else:
        _frequency_range(F, data, table, h, lo, hi, inverted)


@jit
def block(F, data, table, start, size, in_time, inverted, stop):
    """All stages inside [start, start + size)."""
    if stop[0] != 0:
        return STOPPED
    lo, hi = start >> 1, (start + size) >> 1
    if in_time:
        h = 1
        while 2 * h <= size:
            _time_range(F, data, table, h, lo, hi, inverted)
            h *= 2
    else:
        h = size >> 1
        while h >= 1:
            _frequency_range(F, data, table, h, lo, hi, inverted)
            h >>= 1
    return 0


@jit
def reverse(F, data, log_n, lo, hi):
    """Swaps i and rev(i) for the i in [lo, hi) that are the smaller of the two."""
    for i in range(lo, hi):
        r = 0
        x = i
        for _ in range(log_n):
            r = (r << 1) | (x & 1)
            x >>= 1
        if i < r:
            a, b = load(F, data, i), load(F, data, r)
            store(data, i, b)
            store(data, r, a)


@jit
def fill_table(F, table, roots, first, last):
    """Entries of the stages h = 2^first … 2^(last−1); roots[s] = ω_{2^(s+1)}."""
    for s in range(first, last):
        h = 1 << s
        w = load(F, roots, s)
        current = one(F)
        for j in range(h):
            store(table, h + j, current)
            current = current * w
