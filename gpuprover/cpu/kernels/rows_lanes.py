"""The kernel of :mod:`gpuprover.cpu.rows_lanes`: multiplications in step, eight to a vector of points."""

from __future__ import annotations

import numpy as np

from gpuprover.cpu.kernels.buckets_lanes import (
    add_vectors,
    write_bases,
)
from gpuprover.cpu.kernels.field import frame_room, load, plain, store
from gpuprover.cpu.kernels.jit import inline, jit
from gpuprover.cpu.kernels.lanes import (
    lanes_add,
    lanes_all_zero,
    lanes_inverses,
    lanes_one,
    lanes_select,
    lanes_square,
    lanes_sub,
    lanes_sub2_reduced,
    lanes_sub_reduced,
    lanes_zero,
)
from gpuprover.cpu.kernels.lanes_memory import gather_bases, load_lanes, store_lanes
from gpuprover.cpu.layout import HALF, STOPPED, WIDTH


@inline
def _double_one(F, room, i, prefix, k, inverse_here):
    """The second half of one doubling in :func:`_double_vectors`; -> what the inverse becomes."""
    x, y = load_lanes(F, room, 2 * i), load_lanes(F, room, 2 * i + 1)
    infinite = lanes_all_zero(y)
    t = load_lanes(F, prefix, k) * inverse_here
    d = lanes_select(infinite, lanes_one(F), lanes_add(y, y))
    xx = lanes_square(x)
    slope = lanes_add(lanes_add(xx, xx), xx) * t
    x3 = lanes_sub2_reduced(lanes_square(slope), x, x)
    y3 = lanes_sub_reduced(lanes_sub(x, x3, 3) * slope, y)
    store_lanes(room, 2 * i, lanes_select(infinite, x, x3))
    store_lanes(room, 2 * i + 1, lanes_select(infinite, y, y3))
    return d * inverse_here


@jit
def _double_vectors(F, room, first, n, prefix):
    """room[i] = 2·room[i] for n vectors from ``first`` on, with one inversion; none has order two."""
    u, v = lanes_one(F), lanes_one(F)
    for k in range(n):
        y = load_lanes(F, room, 2 * (first + k) + 1)
        d = lanes_select(lanes_all_zero(y), lanes_one(F), lanes_add(y, y))
        store_lanes(prefix, k, u)
        u, v = v, d * u
    u, v, _ = lanes_inverses(F, u, v)
    for k in range(n - 1, -1, -1):
        u, v = _double_one(F, room, first + k, prefix, k, v), u


@inline
def _choose(F, room, n, k, lanes, minus, target):
    """room[target] = ±d·(point k) lane by lane, as the bit masks lanes[d] say; infinity in other lanes."""
    x, y = lanes_zero(F), lanes_zero(F)
    for d in range(1, HALF + 1):
        if lanes[d]:
            at = (d - 1) * n + k
            x = lanes_select(lanes[d], load_lanes(F, room, 2 * at), x)
            y = lanes_select(lanes[d], load_lanes(F, room, 2 * at + 1), y)
    negated = lanes_sub_reduced(lanes_zero(F), y)
    store_lanes(room, 2 * target, x)
    store_lanes(room, 2 * target + 1, lanes_select(minus & ~lanes_all_zero(y), negated, y))


@jit
def multiply(F, bases, entries, digits, room, prefix, flags, p, q, o, lanes, out, stop):
    """out[i] = scalar_i·(±bases[entries[i]]), digits[w] being digit w of all the scalars.

    ``entries`` go on with :data:`NOWHERE` to a multiple of eight. The room has HALF + 2 places for every
    vector of points: d times vector k stands at (d − 1)·n + k, then the results, then what is added to them.
    ``lanes`` is scratch, HALF + 1 elements.
    """
    G = plain(F)
    windows, count = digits.shape
    n = (count + 7) >> 3
    results, chosen = HALF * n, (HALF + 1) * n
    eight = frame_room(F, 16)
    for k in range(n):
        x, y = gather_bases(F, bases, entries.ctypes.data + 32 * k)
        store_lanes(room, 2 * k, x)
        store_lanes(room, 2 * k + 1, y)
        store_lanes(room, 2 * (n + k), x)
        store_lanes(room, 2 * (n + k) + 1, y)
    _double_vectors(F, room, n, n, prefix)
    for d in range(3, HALF + 1):
        for k in range(n):
            p[k], q[k], o[k] = (d - 2) * n + k, k, (d - 1) * n + k
        add_vectors(F, room, p, q, o, n, prefix, flags, 0, 0, 0)
    for w in range(windows - 1, -1, -1):
        if stop[0] != 0:
            return STOPPED
        top = w == windows - 1
        if not top:
            for _ in range(WIDTH):
                _double_vectors(F, room, results, n, prefix)
        some = 0
        for k in range(n):
            for d in range(HALF + 1):
                lanes[d] = 0
            minus = 0
            for lane in range(min(8, count - 8 * k)):
                d = np.int64(digits[w, 8 * k + lane])
                lanes[abs(d)] |= 1 << lane
                minus |= (d >> 63 & 1) << lane
            # Scalars of endomorphisms have many digits that are 0 in all lanes.
            if top or lanes[0] != (1 << min(8, count - 8 * k)) - 1:
                _choose(F, room, n, k, lanes, minus, (results if top else chosen) + k)
                p[some], q[some] = results + k, chosen + k
                some += 1
        if not top and some:
            add_vectors(F, room, p, q, p, some, prefix, flags, 0, 0, 0)
    for k in range(n):
        write_bases(F, room, results + k, eight)
        for lane in range(min(8, count - 8 * k)):
            store(out, 2 * (8 * k + lane), load(G, eight, lane))
            store(out, 2 * (8 * k + lane) + 1, load(G, eight, 8 + lane))
    return 0
