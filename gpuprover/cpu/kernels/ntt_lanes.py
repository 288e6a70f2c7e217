"""The number-theoretic transform in eight lanes.

A transform takes two passes over memory. The vector, a matrix of ``rows`` × ``pitch`` blocks of eight
consecutive elements, goes through the stages of long distances by columns, a few at a time in a buffer that
fits the cache, and through the others by rows. Stages of distance 4, 2 and 1 pair elements of one block;
eight blocks are transposed, so that they pair vectors again.

Decimation in frequency goes from natural order to bit-reversed, decimation in time back (Gentleman, Sande
1966; Cooley, Tukey 1965). Where natural order is wanted at both ends, the rows that are transposed together
are those whose elements are neighbours in the result. An inverse transform is a forward one of the
elements in the order of −i (mod n): so one table serves both. Two stages are done at once (radix 4).

The transform is linear, so data keep their Montgomery form: only twiddles and scale factors
are in the lanes' form (radix 2^260), in which a product leaves the other factor's form alone.

Ranges (Harvey, "Faster arithmetic for number-theoretic transforms", 2014), with loose limbs (loose.py).
Frequency: inputs of two stages below 4p, sums of four below 16p, of which every second stage settles.
Time: nothing is settled, each stage adds 2p: from 9p at most, after the scaling between two
transforms and three stages without it, to 33p in the longest row; columns begin settled.
"""

from __future__ import annotations

import numpy as np

from gpuprover.cpu.kernels.field import prefetch
from gpuprover.cpu.kernels.jit import inline, jit
from gpuprover.cpu.kernels.lanes import (
    lanes_one,
)
from gpuprover.cpu.kernels.lanes_memory import load_lanes, store_lanes, store_words, transpose_lanes
from gpuprover.cpu.kernels.loose import (
    carried,
    gather_words,
    lane_power,
    lowest,
    minus,
    plus,
    settle,
    times,
    times_both,
)
from gpuprover.cpu.layout import BLOCK_BYTES, FACTOR, POWERS, STOPPED


@inline
def _down_stages(F, data, first, rows, width, table, pitch, column):
    """All stages of distances rows/2 … 1 rows, by frequency, on rows of ``width`` blocks from ``first``.

    They are the columns from ``column`` of a matrix with ``pitch`` columns; below 4p in and out.
    """
    h = rows
    bits = 0
    while 1 << bits < rows:
        bits += 1
    if bits & 1:
        h >>= 1
        for r in range(h):
            for c in range(width):
                i = first + r * width + c
                k = i + h * width
                a, b = load_lanes(F, data, i), load_lanes(F, data, k)
                store_lanes(data, i, settle(plus(a, b)))
                w = load_lanes(F, table, (h + r) * pitch + column + c)
                store_lanes(data, k, times(minus(a, b, 4), w))
    while h >= 4:
        q = h >> 2
        s = q * width
        for block in range(rows // h):
            start = first + block * h * width
            for r in range(q):
                for c in range(width):
                    i = start + r * width + c
                    j = r * pitch + column + c
                    x0, x2 = load_lanes(F, data, i), load_lanes(F, data, i + 2 * s)
                    y0 = plus(x0, x2)
                    x1, x3 = load_lanes(F, data, i + s), load_lanes(F, data, i + 3 * s)
                    y1 = plus(x1, x3)
                    y2, y3 = times_both(
                        minus(x0, x2, 4),
                        load_lanes(F, table, 2 * q * pitch + j),
                        minus(x1, x3, 4),
                        load_lanes(F, table, 3 * q * pitch + j),
                    )
                    w = load_lanes(F, table, q * pitch + j)
                    store_lanes(data, i, settle(plus(y0, y1)))
                    store_lanes(data, i + 2 * s, plus(y2, y3))
                    z1, z3 = times_both(minus(y0, y1, 8), w, minus(y2, y3, 2), w)
                    store_lanes(data, i + s, z1)
                    store_lanes(data, i + 3 * s, z3)
        h = q


@inline
def _up_stages(F, data, first, rows, width, table, pitch, column):
    """All stages of distances 1 … rows/2 rows, by time; see :func:`_down_stages`. Each adds 2p."""
    q = 1
    while 4 * q <= rows:
        s = q * width
        for block in range(rows // (4 * q)):
            start = first + block * 4 * s
            for r in range(q):
                for c in range(width):
                    i = start + r * width + c
                    j = r * pitch + column + c
                    w = load_lanes(F, table, q * pitch + j)
                    x1, x3 = times_both(load_lanes(F, data, i + s), w, load_lanes(F, data, i + 3 * s), w)
                    x2 = load_lanes(F, data, i + 2 * s)
                    y2, y3 = times_both(
                        plus(x2, x3),
                        load_lanes(F, table, 2 * q * pitch + j),
                        minus(x2, x3, 2),
                        load_lanes(F, table, 3 * q * pitch + j),
                    )
                    x0 = load_lanes(F, data, i)
                    y0, y1 = plus(x0, x1), minus(x0, x1, 2)
                    store_lanes(data, i, plus(y0, y2))
                    store_lanes(data, i + s, plus(y1, y3))
                    store_lanes(data, i + 2 * s, minus(y0, y2, 2))
                    store_lanes(data, i + 3 * s, minus(y1, y3, 2))
        q *= 4
    if q < rows:
        for r in range(q):
            for c in range(width):
                i = first + r * width + c
                k = i + q * width
                a = load_lanes(F, data, i)
                b = times(load_lanes(F, data, k), load_lanes(F, table, (q + r) * pitch + column + c))
                store_lanes(data, i, plus(a, b))
                store_lanes(data, k, minus(a, b, 2))


@inline
def _prefetch_lines(start, length):
    for line in range(0, length, 64):
        prefetch(start + line)


@inline
def _load_eight(F, data, at):
    return (
        load_lanes(F, data, at),
        load_lanes(F, data, at + 1),
        load_lanes(F, data, at + 2),
        load_lanes(F, data, at + 3),
        load_lanes(F, data, at + 4),
        load_lanes(F, data, at + 5),
        load_lanes(F, data, at + 6),
        load_lanes(F, data, at + 7),
    )


@inline
def _store_eight(data, at, x):
    store_lanes(data, at, x[0])
    store_lanes(data, at + 1, x[1])
    store_lanes(data, at + 2, x[2])
    store_lanes(data, at + 3, x[3])
    store_lanes(data, at + 4, x[4])
    store_lanes(data, at + 5, x[5])
    store_lanes(data, at + 6, x[6])
    store_lanes(data, at + 7, x[7])


@inline
def _down_eight(F, room, small):
    """The last three stages by frequency on eight blocks: from below 4p to below 32p.

    ``small``: ω₈, ω₄, ω₈³ in every lane.
    """
    x0, x1, x2, x3, x4, x5, x6, x7 = _load_eight(F, room, 0)
    w1, w2, w3 = load_lanes(F, small, 0), load_lanes(F, small, 1), load_lanes(F, small, 2)
    x0, x4 = plus(x0, x4), minus(x0, x4, 4)
    x1, x5 = plus(x1, x5), minus(x1, x5, 4)
    x2, x6 = plus(x2, x6), minus(x2, x6, 4)
    x3, x7 = plus(x3, x7), minus(x3, x7, 4)
    x5, x7 = times_both(x5, w1, x7, w3)
    x6 = times(x6, w2)
    x0, x2 = plus(x0, x2), minus(x0, x2, 8)
    x1, x3 = plus(x1, x3), minus(x1, x3, 8)
    x4, x6 = plus(x4, x6), minus(x4, x6, 2)
    x5, x7 = plus(x5, x7), minus(x5, x7, 2)
    x3, x7 = times_both(x3, w2, x7, w2)
    x0, x1 = plus(x0, x1), minus(x0, x1, 16)
    x2, x3 = plus(x2, x3), minus(x2, x3, 2)
    x4, x5 = plus(x4, x5), minus(x4, x5, 4)
    x6, x7 = plus(x6, x7), minus(x6, x7, 4)
    _store_eight(room, 0, (x0, x1, x2, x3, x4, x5, x6, x7))


@inline
def _up_eight(F, room, small):
    """The first three stages by time on eight blocks: from below 1.1p to below 9p."""
    x0, x1, x2, x3, x4, x5, x6, x7 = _load_eight(F, room, 0)
    w1, w2, w3 = load_lanes(F, small, 0), load_lanes(F, small, 1), load_lanes(F, small, 2)
    x0, x1 = plus(x0, x1), minus(x0, x1, 2)
    x2, x3 = plus(x2, x3), minus(x2, x3, 2)
    x4, x5 = plus(x4, x5), minus(x4, x5, 2)
    x6, x7 = plus(x6, x7), minus(x6, x7, 2)
    x3, x7 = times_both(x3, w2, x7, w2)
    x0, x2 = plus(x0, x2), minus(x0, x2, 3)
    x1, x3 = plus(x1, x3), minus(x1, x3, 2)
    x4, x6 = plus(x4, x6), minus(x4, x6, 3)
    x5, x7 = plus(x5, x7), minus(x5, x7, 2)
    x5, x7 = times_both(x5, w1, x7, w3)
    x6 = times(x6, w2)
    x0, x4 = plus(x0, x4), minus(x0, x4, 5)
    x1, x5 = plus(x1, x5), minus(x1, x5, 2)
    x2, x6 = plus(x2, x6), minus(x2, x6, 2)
    x3, x7 = plus(x3, x7), minus(x3, x7, 2)
    _store_eight(room, 0, (x0, x1, x2, x3, x4, x5, x6, x7))


@inline
def _reversed_bits(i, bits):
    r = 0
    for _ in range(bits):
        r = (r << 1) | (i & 1)
        i >>= 1
    return r


@inline
def _column_factors(F, factors, width, column, pitch, room, at):
    """Leaves the factors of the first row's blocks in ``room``; returns that from a row to the next."""
    step = load_lanes(F, factors, 1)
    current = carried(times(lane_power(F, step, column), load_lanes(F, factors, 0)))
    for c in range(width):
        store_lanes(room, at + c, current)
        current = carried(times(current, step))
    return lane_power(F, step, pitch)


@jit
def columns_down(F, words, head, work, buffer, table, factors, rows, pitch, width, mirrored, scaling,
                  lo, hi, stop):  # fmt: skip
    """The long stages by frequency, from a vector in natural order to ``work``; tiles [lo, hi) of columns.

    ``mirrored``: element i is taken from −i mod n, the first eight from ``head``. ``scaling``: NOTHING,
    FACTOR or POWERS, with ``factors`` from layout.power_blocks. ``buffer``: (rows + 1)·width blocks.
    """
    n = 8 * rows * pitch
    for tile in range(lo, hi):
        if stop[0] != 0:
            return STOPPED
        column = tile * width
        powers = rows * width
        if scaling == POWERS:
            step = _column_factors(F, factors, width, column, pitch, buffer, powers)
            row_factor = lanes_one(F)
        for r in range(rows):
            for c in range(width):
                block = r * pitch + column + c
                source, place, stride = words, 8 * block, 1
                if mirrored and block > 0:
                    place, stride = n - 8 * block, -1
                elif mirrored:
                    source = head
                ahead = block + 8 * pitch if r + 8 < rows else block
                if mirrored:
                    ahead = n // 8 - ahead
                _prefetch_lines(words + 256 * ahead, 256)
                _prefetch_lines(table + BLOCK_BYTES * block, BLOCK_BYTES)
                x = gather_words(F, source, place, stride, 0)
                if scaling == FACTOR:
                    x = times(x, load_lanes(F, factors, 0))
                elif scaling == POWERS:
                    x = times(times(x, load_lanes(F, buffer, powers + c)), row_factor)
                store_lanes(buffer, r * width + c, x)
            if scaling == POWERS:
                row_factor = carried(times(row_factor, step))
        _down_stages(F, buffer, 0, rows, width, table, pitch, column)
        for r in range(rows):
            for c in range(width):
                store_lanes(work, r * pitch + column + c, load_lanes(F, buffer, r * width + c))
    return 0


@jit
def columns_up(F, work, words, buffer, table, factors, rows, pitch, width, scaling, lo, hi, stop):
    """The long stages by time, from ``work`` to a vector in natural order; see :func:`columns_down`."""
    for tile in range(lo, hi):
        if stop[0] != 0:
            return STOPPED
        column = tile * width
        powers = rows * width
        for r in range(rows):
            for c in range(width):
                block = r * pitch + column + c
                _prefetch_lines(work + BLOCK_BYTES * (block + 8 * pitch), BLOCK_BYTES)
                _prefetch_lines(table + BLOCK_BYTES * block, BLOCK_BYTES)
                x = load_lanes(F, work, block)
                store_lanes(buffer, r * width + c, settle(x))
        _up_stages(F, buffer, 0, rows, width, table, pitch, column)
        if scaling == POWERS:
            step = _column_factors(F, factors, width, column, pitch, buffer, powers)
            row_factor = lanes_one(F)
        for r in range(rows):
            for c in range(width):
                x = load_lanes(F, buffer, r * width + c)
                if scaling == FACTOR:
                    x = times(x, load_lanes(F, factors, 0))
                elif scaling == POWERS:
                    x = times(times(x, load_lanes(F, buffer, powers + c)), row_factor)
                store_words(words, 8 * (r * pitch + column + c), 1, lowest(x))
            if scaling == POWERS:
                row_factor = carried(times(row_factor, step))
    return 0


@jit
def rows(F, work, words, head, table, small, factors, order, room, size, parts, apart, bits,
          down, up, mirrored, scaling, lo, hi, stop):  # fmt: skip
    """The short stages by frequency, scaling, the short stages by time; rows [lo, hi) of ``size`` blocks.

    Eight blocks of ``work``, 64 elements, are transposed at a time: group g's are ``order[lane]`` blocks from
    8g. The group's number has ``bits`` bits, and its place in ``words`` is 64g. With ``apart`` the result is
    in natural order: the group's blocks are that far from each other, from g on, all in one row, or in
    ``parts`` = 8 rows that are taken together, and eight neighbours of the result are written at once.

    ``down``, ``up``: whether there are stages by frequency, by time; the vector is read here without the
    former, and written here without the latter. ``mirrored``: it is read as in :func:`columns_down`, but
    from bit-reversed order, the first 64 elements from ``head``. ``factors``: ntt_lanes._reversed_factors.
    """
    for row in range(lo, hi):
        if stop[0] != 0:
            return STOPPED
        start = row * size
        if down:
            for part in range(parts):
                _down_stages(F, work, part * apart + start, size, 1, table, 1, 0)
        groups = size * parts >> 3
        g0 = row * groups
        scale = load_lanes(F, factors, 8)
        if scaling == POWERS:
            scale = carried(times(lane_power(F, load_lanes(F, factors, 9), _reversed_bits(g0, bits)), scale))
        for g in range(g0, g0 + groups):
            at = g if apart else 8 * g
            if not down:
                source, place, stride = words, 64 * g, 1
                if mirrored and g == 0:
                    source = head
                elif mirrored:
                    top = 1
                    while 2 * top <= g:
                        top *= 2
                    place, stride = 64 * (3 * top - 1 - g) + 63, -1
                for c in range(8):
                    store_lanes(room, c, gather_words(F, source, place + c * stride, 8 * stride, 0))
            else:
                x = transpose_lanes(
                    (
                        load_lanes(F, work, at + np.int64(order[0])),
                        load_lanes(F, work, at + np.int64(order[1])),
                        load_lanes(F, work, at + np.int64(order[2])),
                        load_lanes(F, work, at + np.int64(order[3])),
                        load_lanes(F, work, at + np.int64(order[4])),
                        load_lanes(F, work, at + np.int64(order[5])),
                        load_lanes(F, work, at + np.int64(order[6])),
                        load_lanes(F, work, at + np.int64(order[7])),
                    )
                )
                _store_eight(room, 0, x)
                _down_eight(F, room, small)
            if scaling == FACTOR:
                for c in range(4):
                    x, y = load_lanes(F, room, c), load_lanes(F, room, c + 4)
                    x, y = times_both(x, scale, y, scale)
                    store_lanes(room, c, x)
                    store_lanes(room, c + 4, y)
            elif scaling == POWERS:
                for c in range(4):
                    x, y = load_lanes(F, room, c), load_lanes(F, room, c + 4)
                    x, y = times_both(x, load_lanes(F, factors, c), y, load_lanes(F, factors, c + 4))
                    x, y = times_both(x, scale, y, scale)
                    store_lanes(room, c, x)
                    store_lanes(room, c + 4, y)
                ones = 0
                while (g >> ones) & 1:
                    ones += 1
                scale = carried(times(scale, load_lanes(F, factors, 10 + ones)))
            if up:
                _up_eight(F, room, small)
                _store_eight(work, at, transpose_lanes(_load_eight(F, room, 0)))
            elif apart:
                place = 8 * _reversed_bits(g, bits)
                for c in range(8):
                    far = _reversed_bits(c, 3) << (bits + 3)
                    store_words(words, place + far, 1, lowest(load_lanes(F, room, c)))
            else:
                for c in range(8):
                    store_words(words, 64 * g + c, 8, lowest(load_lanes(F, room, c)))
        if up:
            _up_stages(F, work, start, size, 1, table, 1, 0)
    return 0


@jit
def grow_table(F, table, steps, first, last):
    """Blocks h … 2h − 1 of the stages h = 2^first … 2^(last−1) blocks: consecutive powers, eight to a block.

    ``steps``: for every stage the powers 0 to 7 of its root, then the eighth power in all lanes.
    """
    for s in range(first, last):
        h = 1 << s
        current = load_lanes(F, steps, 2 * s)
        step = load_lanes(F, steps, 2 * s + 1)
        for j in range(h):
            store_lanes(table, h + j, current)
            current = current * step
