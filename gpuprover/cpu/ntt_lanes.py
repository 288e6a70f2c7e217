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

import threading
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from gpuprover.cpu.field import prefetch
from gpuprover.cpu.jit import inline, jit
from gpuprover.cpu.lanes import (
    LANES,
    LaneField,
    lane_form,
    lanes_one,
    load_lanes,
    store_lanes,
    store_words,
    transpose_lanes,
)
from gpuprover.cpu.loose import (
    BLOCK_BYTES,
    Blocks,
    carried,
    gather_words,
    has_lanes,
    lane_blocks,
    lane_power,
    lowest,
    minus,
    plus,
    settle,
    splats,
    times,
    times_both,
)
from gpuprover.cpu.vector_lanes import power_blocks
from gpuprover.curves import FieldParams
from gpuprover.job import Job
from gpuprover.limbs import Words, address
from gpuprover.polynomial import Coset, Direction, Domain, Order

SMALLEST, LARGEST = 8, 30
"""log₂ of the domains: of smaller ones the constants take longer, of larger ones values grow too large."""
LOG_ROW = 10
"""log₂ of a row's blocks: 640 kB with their twiddles."""
LARGEST_LOG_ROW = 12
LOG_BUFFER = 10
"""Likewise for the columns that are taken together."""

NOTHING, FACTOR, POWERS = 0, 1, 2
"""Scaling: none, by one factor, by a factor and powers of a base."""


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
        for start in range(first, first + rows * width, h * width):
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
        for start in range(first, first + rows * width, 4 * s):
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
def _columns_down(F, words, head, work, buffer, table, factors, rows, pitch, width, mirrored, scaling,
                  lo, hi, stop):  # fmt: skip
    """The long stages by frequency, from a vector in natural order to ``work``; tiles [lo, hi) of columns.

    ``mirrored``: element i is taken from −i mod n, the first eight from ``head``. ``scaling``: NOTHING,
    FACTOR or POWERS, with ``factors`` from :func:`power_blocks`. ``buffer``: (rows + 1)·width blocks.
    """
    n = 8 * rows * pitch
    for tile in range(lo, hi):
        if stop[0] != 0:
            return
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


@jit
def _columns_up(F, work, words, buffer, table, factors, rows, pitch, width, scaling, lo, hi, stop):
    """The long stages by time, from ``work`` to a vector in natural order; see :func:`_columns_down`."""
    for tile in range(lo, hi):
        if stop[0] != 0:
            return
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


@jit
def _rows(F, work, words, head, table, small, factors, order, room, size, parts, apart, bits,
          down, up, mirrored, scaling, lo, hi, stop):  # fmt: skip
    """The short stages by frequency, scaling, the short stages by time; rows [lo, hi) of ``size`` blocks.

    Eight blocks of ``work``, 64 elements, are transposed at a time: group g's are ``order[lane]`` blocks from
    8g. The group's number has ``bits`` bits, and its place in ``words`` is 64g. With ``apart`` the result is
    in natural order: the group's blocks are that far from each other, from g on, all in one row, or in
    ``parts`` = 8 rows that are taken together, and eight neighbours of the result are written at once.

    ``down``, ``up``: whether there are stages by frequency, by time; the vector is read here without the
    former, and written here without the latter. ``mirrored``: it is read as in :func:`_columns_down`, but
    from bit-reversed order, the first 64 elements from ``head``. ``factors``: see :func:`_reversed_factors`.
    """
    for row in range(lo, hi):
        if stop[0] != 0:
            return
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


# Tables ------------------------------------------------------------------------------------------------


@jit
def _grow_table(F, table, steps, first, last):
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


_tables: dict[str, Blocks] = {}
_lock = threading.Lock()


def _twiddles(params: FieldParams, log_n: int) -> Blocks:
    """uint64[≥ 2^log_n / 8, limbs, 8]: block h + j holds ω_{16h}^(8j … 8j + 7), for every power of two h."""
    blocks = 1 << (log_n - 3)
    table = _tables.get(params.name)
    if table is not None and len(table) >= blocks:
        return table
    with _lock:
        table = _tables.get(params.name)
        have = 0 if table is None else len(table).bit_length() - 1
        if table is None or len(table) < blocks:
            grown = np.empty((blocks, lane_form(params).limbs, LANES), dtype=np.uint64)
            if table is not None:
                grown[: len(table)] = table
            p, steps = params.modulus, []
            for s in range(log_n - 3):
                root = params.root_of_unity(s + 4)
                steps += [pow(root, k, p) for k in range(LANES)] + [pow(root, LANES, p)] * LANES
            packed = lane_blocks(params, steps)
            _grow_table(LaneField(params), address(grown), address(packed), have, log_n - 3)
            _tables[params.name] = table = grown
    return table


def drop_tables() -> None:
    """Gives the twiddle tables' memory back."""
    with _lock:
        _tables.clear()


def block_bytes(domain: Domain) -> int:
    """Bytes of the table, and of the working copy, for a domain."""
    return lane_form(domain.field).limbs * 8 << domain.log_n


def buffer_bytes(domain: Domain, threads: int) -> int:
    """Bytes of all threads' buffers in :func:`to_coset`."""
    return threads * _split(domain, threads, together=False).buffer * BLOCK_BYTES


def reversed_steps(bits: int) -> list[int]:
    """rev(i + 1) − rev(i) by the count of trailing ones of i, for the reversal of ``bits`` bits.

    i -> i + 1 clears t trailing ones and sets the next bit: so does rev(i), at the other end.
    """
    return [(1 << (bits - 1 - t)) - sum(1 << (bits - 1 - s) for s in range(t)) for t in range(bits)]


def supports(domain: Domain) -> bool:
    return SMALLEST <= domain.log_n <= LARGEST and has_lanes(domain.field)


def _reverse(i: int, bits: int) -> int:
    return int(format(i, f"0{bits}b")[::-1], 2)


_powers = lru_cache(maxsize=64)(power_blocks)
"""For scaling in natural order."""


@lru_cache(maxsize=64)
def _reversed_factors(domain: Domain, factor: int, base: int, together: bool) -> Blocks:
    """For scaling by factor·base^rev(i) in bit-reversed order; see :func:`_rows`.

    One block for each of a group's transposed blocks; the factor; the base from group to group, by reversed
    number; its powers for the steps from one reversed number to the next.

    Place (group, lane, c) has rev = rev(c)·n/8 + rev(lane)·n/64 + rev(group). With groups ``together`` in
    natural order it is (lane, group, c), with lanes reversed: rev(c)·n/8 + 8·rev(group) + lane.
    """
    p, log_n = domain.field.modulus, domain.log_n
    bits = log_n - 6
    inner = []
    for c in range(LANES):
        far = _reverse(c, 3) << (log_n - 3)
        lanes = [lane if together else _reverse(lane, 3) << (log_n - 6) for lane in range(LANES)]
        inner += [pow(base, far + lane, p) for lane in lanes]
    outer = pow(base, LANES, p) if together else base
    steps = [pow(outer, jump, p) for jump in reversed_steps(bits)]
    return np.concatenate(
        [lane_blocks(domain.field, inner), splats(domain.field, [factor, outer, *steps, 1])]
    )


@lru_cache(maxsize=8)
def _small_roots(params: FieldParams) -> Blocks:
    p, eighth = params.modulus, params.root_of_unity(3)
    return splats(params, [eighth, eighth * eighth % p, pow(eighth, 3, p)])


class _Split(NamedTuple):
    """A vector as a matrix of blocks, and what is worked on at once.

    Attributes:
        rows, pitch: of the matrix.
        width: columns that are taken together.
        parts: rows that are taken together.
    """

    rows: int
    pitch: int
    width: int
    parts: int

    @property
    def buffer(self) -> int:
        """Blocks in a buffer of columns and their factors."""
        return (self.rows + 1) * self.width


def _split(domain: Domain, threads: int, together: bool) -> _Split:
    log_blocks = domain.log_n - 3
    log_row = min(LARGEST_LOG_ROW, max(LOG_ROW, (log_blocks + 1) // 2))
    log_threads = (threads - 1).bit_length()
    if together:
        log_row -= 2
        if log_blocks > log_row + 2:
            log_row = max(0, min(log_row, log_blocks - 3 - log_threads))
        else:
            log_row = log_blocks
    else:
        log_row = max(3, min(log_row, log_blocks - (log_threads if domain.log_n > 10 else 0)))
    rows, pitch = 1 << (log_blocks - log_row), 1 << log_row
    width = max(4, (1 << LOG_BUFFER) // rows)
    width = max(1, min(width, pitch, max(4, pitch >> log_threads)))
    return _Split(rows, pitch, width, LANES if together and rows > 1 else 1)


Scale = tuple[int, int]
"""(factor, base): element i is multiplied by factor·base^i."""


def _mode(scale: Scale) -> int:
    factor, base = scale
    return POWERS if base != 1 else FACTOR if factor != 1 else NOTHING


def _transform(
    v: Words,
    domain: Domain,
    job: Job,
    *,
    down: bool,
    up: bool,
    mirrored: bool,
    together: bool = False,
    first: Scale = (1, 1),
    middle: Scale = (1, 1),
    last: Scale = (1, 1),
) -> None:
    """The stages by frequency (``down``), by time (``up``), or both, in place.

    Elements are scaled by place before those by frequency (``first``) and after those by time (``last``), and
    by reversed place where order is bit-reversed (``middle``). ``mirrored``: the input is taken in the order
    of −i; ``together``: the output of the stages by frequency is to be in natural order.
    """
    params, n = domain.field, domain.size
    F = LaneField(params)
    rows, pitch, width, parts = split = _split(domain, job.threads, together)
    table_blocks = _twiddles(params, domain.log_n)
    limbs = lane_form(params).limbs
    small = _small_roots(params)
    work_blocks = np.empty((n // LANES, limbs, LANES), dtype=np.uint64)
    words, table, work = address(v), address(table_blocks), address(work_blocks)
    apart = n // LANES // LANES if together else 0
    # The elements whose mirror images are not in one piece.
    images = (
        [-i % n for i in range(LANES)]
        if down
        else [i and (3 << (i.bit_length() - 1)) - 1 - i for i in range(64)]
    )
    head = v[images]
    # A few pieces for each thread, as one may be slower; but a piece should take longer than handing it out.
    pieces = 1 if job.threads == 1 else job.threads * max(1, min(4, n >> 17))

    def ranges(count: int) -> list[tuple[int, int]]:
        return job.ranges(count, largest=-(-count // pieces))

    def buffer(blocks: int) -> Blocks:
        return np.empty((blocks, limbs, LANES), dtype=np.uint64)

    def columns_down(r: tuple[int, int]) -> None:
        room, factors = buffer(split.buffer), _powers(params, *first)
        _columns_down(
            F, words, address(head), work, address(room), table, address(factors), rows, pitch, width,
            mirrored, _mode(first), r[0], r[1], job.stop,
        )  # fmt: skip

    def columns_up(r: tuple[int, int]) -> None:
        room, factors = buffer(split.buffer), _powers(params, *last)
        _columns_up(
            F, work, words, address(room), table, address(factors), rows, pitch, width, _mode(last),
            r[0], r[1], job.stop,
        )  # fmt: skip

    order = np.array([_reverse(i, 3) * apart if together else i for i in range(LANES)], dtype=np.int64)

    def whole_rows(r: tuple[int, int]) -> None:
        room, factors = buffer(LANES), _reversed_factors(domain, *middle, together)
        _rows(
            F, work, words, address(head), table, address(small), address(factors), order,
            address(room), pitch, parts, apart, domain.log_n - 6, down, up, mirrored,
            _mode(middle), r[0], r[1], job.stop,
        )  # fmt: skip

    tiles = ranges(pitch // width)
    if down:
        job.map(columns_down, tiles)
    job.map(whole_rows, ranges(rows // parts))
    if up:
        job.map(columns_up, tiles)


def ntt(v: Words, domain: Domain, direction: Direction, order: Order, coset: Coset, job: Job) -> None:
    """See :meth:`gpuprover.backend.Backend.ntt`."""
    p = domain.field.modulus
    g = 1 if coset is Coset.NONE else domain.coset_generator
    inverse = direction is Direction.INVERSE
    before = (1, 1) if inverse else (1, g)
    after = (pow(domain.size, -1, p), pow(g, -1, p)) if inverse else (1, 1)
    if order is Order.REVERSED_TO_NATURAL:
        _transform(v, domain, job, down=False, up=True, mirrored=inverse, middle=before, last=after)
    else:
        natural = order is Order.NATURAL_TO_NATURAL
        _transform(
            v,
            domain,
            job,
            down=True,
            up=False,
            mirrored=inverse,
            together=natural,
            first=before,
            middle=after,
        )


def to_coset(v: Words, domain: Domain, job: Job) -> None:
    """Evaluations on ⟨ω⟩ -> evaluations on g·⟨ω⟩, in place, both in natural order; see ntt.py."""
    scale = (pow(domain.size, -1, domain.field.modulus), domain.coset_generator)
    _transform(v, domain, job, down=True, up=True, mirrored=True, middle=scale)
