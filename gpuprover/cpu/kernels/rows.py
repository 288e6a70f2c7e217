"""The kernel of :mod:`gpuprover.cpu.rows`: batches of additions with shared inversions."""

from __future__ import annotations

import numpy as np

from gpuprover.cpu.kernels.curve import add_pairs, copy_point
from gpuprover.cpu.kernels.field import element_bytes, store, zero
from gpuprover.cpu.kernels.jit import jit
from gpuprover.cpu.layout import HALF, STOPPED, WIDTH


@jit
def multiply(F, bases, entries, digits, room, kinds, p_index, q_index, o_index, out, stop):
    """out[i] = scalar_i·(±bases[entries[i]]), digits[w] being digit w of all the scalars.

    ``room``: (HALF + 1)·n points; d times point i stands at (d − 1)·n + i.
    """
    windows, n = digits.shape
    prefix = room + HALF * n * 2 * element_bytes(F)
    for i in range(n):
        copy_point(F, bases, np.int64(entries[i]), room, i)
        store(out, 2 * i, zero(F))
        store(out, 2 * i + 1, zero(F))
    for d in range(2, HALF + 1):
        for i in range(n):
            p_index[i], q_index[i], o_index[i] = (d - 2) * n + i, i, (d - 1) * n + i
        add_pairs(F, room, p_index, room, q_index, room, o_index, n, prefix, kinds)
    for i in range(n):
        o_index[i] = i
    for w in range(windows - 1, -1, -1):
        if stop[0] != 0:
            return STOPPED
        if w < windows - 1:
            for _ in range(WIDTH):
                add_pairs(F, out, o_index, out, o_index, out, o_index, n, prefix, kinds)
        pairs = 0
        for i in range(n):
            d = np.int64(digits[w, i])
            if d != 0:
                p_index[pairs] = i
                q_index[pairs] = (abs(d) - 1) * n + i + (0 if d > 0 else 0x80000000)
                pairs += 1
        add_pairs(F, out, p_index, room, q_index, out, p_index, pairs, prefix, kinds)
    return 0
