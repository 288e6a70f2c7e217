"""Evaluations on a domain to evaluations on a coset, eight butterflies at a time.

The transform is linear, so data keep their Montgomery form: only twiddles and scale factors
are in the lanes' form (radix 2^260), in which a product leaves the other factor's form alone.

In memory a block is eight consecutive elements, limb by limb. Stages of distance 8 and more pair
whole blocks. Those of distance 4, 2 and 1 pair elements of one block; eight blocks are
transposed, so that they pair vectors again. Both transforms use the forward table: a
forward transform in place of the inverse yields the coefficients in the order of −k, and
likewise the evaluations at the end, which are written back in reverse.

Ranges (Harvey, "Faster arithmetic for number-theoretic transforms", 2014): below 2p between the
stages of the first transform, below 4p between those of the second; one conditional
subtraction a butterfly.
"""

from __future__ import annotations

import threading
from functools import partial

import numpy as np
from numpy.typing import NDArray

from gpuprover.cpu.field import load, store
from gpuprover.cpu.jit import inline, jit
from gpuprover.cpu.lanes import (
    LANES,
    LIMB_BITS,
    LIMB_MASK,
    LaneField,
    lane_form,
    lanes_add,
    lanes_sub,
    lanes_sub_if,
    load_lanes,
    load_words,
    store_lanes,
    store_words,
    transpose_lanes,
)
from gpuprover.curves import FieldParams
from gpuprover.job import Job
from gpuprover.limbs import Words, address
from gpuprover.polynomial import Domain

SMALLEST = 12
"""log₂ of the smallest domain; below it there is nothing to gain."""
LOG_CACHED = 11
"""log₂ of the blocks that are taken through all their stages at once: 640 kB with their twiddles."""
Blocks = NDArray[np.uint64]


@inline
def _frequency(F, data, table, h, lo, hi):
    """Butterflies [lo, hi) of distance h, in blocks: (a, b) -> (a + b, (a − b)·w), all below 2p."""
    for t in range(lo, hi):
        j = t & (h - 1)
        i = 2 * (t - j) + j
        a, b = load_lanes(F, data, i), load_lanes(F, data, i + h)
        store_lanes(data, i, lanes_sub_if(lanes_add(a, b), 2))
        store_lanes(data, i + h, lanes_sub(a, b, 2) * load_lanes(F, table, h + j))


@inline
def _time(F, data, table, h, lo, hi):
    """Butterflies [lo, hi) of distance h, in blocks: (a, b) -> (a + b·w, a − b·w), all below 4p."""
    for t in range(lo, hi):
        j = t & (h - 1)
        i = 2 * (t - j) + j
        a = lanes_sub_if(load_lanes(F, data, i), 2)
        b = load_lanes(F, data, i + h) * load_lanes(F, table, h + j)
        store_lanes(data, i, lanes_add(a, b))
        store_lanes(data, i + h, lanes_sub(a, b, 2))


@jit
def _stage(F, data, table, h, lo, hi, in_time):
    if in_time:
        _time(F, data, table, h, lo, hi)
    else:
        _frequency(F, data, table, h, lo, hi)


@inline
def _down(a, b):
    """A butterfly without a twiddle, below 2p."""
    return lanes_sub_if(lanes_add(a, b), 2), lanes_sub_if(lanes_sub(a, b, 2), 2)


@inline
def _down_by(a, b, w):
    return lanes_sub_if(lanes_add(a, b), 2), lanes_sub(a, b, 2) * w


@inline
def _up(a, b):
    """A butterfly without a twiddle, from below 2p to below 2p."""
    return lanes_sub_if(lanes_add(a, b), 2), lanes_sub_if(lanes_sub(a, b, 2), 2)


@inline
def _up_by(a, b, w):
    c = b * w
    return lanes_sub_if(lanes_add(a, c), 2), lanes_sub_if(lanes_sub(a, c, 2), 2)


@inline
def _middle(F, data, small, inner, first, current, steps, lo, hi):
    """Last three stages of the first transform, scaling, first three of the second; groups of 64 elements.

    ``small``: ω₈, ω₄, ω₈³ in every lane. ``inner``: eight blocks of factors by place in the group; ``first``:
    likewise for group 0. ``current``: the factor of group lo; ``steps``: from a group's to the next one's.
    """
    w1, w2, w3 = load_lanes(F, small, 0), load_lanes(F, small, 1), load_lanes(F, small, 2)
    scale = load_lanes(F, current, 0)
    for group in range(lo, hi):
        at = 8 * group
        x0, x1, x2, x3, x4, x5, x6, x7 = transpose_lanes(
            (
                load_lanes(F, data, at),
                load_lanes(F, data, at + 1),
                load_lanes(F, data, at + 2),
                load_lanes(F, data, at + 3),
                load_lanes(F, data, at + 4),
                load_lanes(F, data, at + 5),
                load_lanes(F, data, at + 6),
                load_lanes(F, data, at + 7),
            )
        )
        x0, x4 = _down(x0, x4)
        x1, x5 = _down_by(x1, x5, w1)
        x2, x6 = _down_by(x2, x6, w2)
        x3, x7 = _down_by(x3, x7, w3)
        x0, x2 = _down(x0, x2)
        x1, x3 = _down_by(x1, x3, w2)
        x4, x6 = _down(x4, x6)
        x5, x7 = _down_by(x5, x7, w2)
        x0, x1 = _down(x0, x1)
        x2, x3 = _down(x2, x3)
        x4, x5 = _down(x4, x5)
        x6, x7 = _down(x6, x7)

        factors = first if group == 0 else inner
        x0 = x0 * load_lanes(F, factors, 0) * scale
        x1 = x1 * load_lanes(F, factors, 1) * scale
        x2 = x2 * load_lanes(F, factors, 2) * scale
        x3 = x3 * load_lanes(F, factors, 3) * scale
        x4 = x4 * load_lanes(F, factors, 4) * scale
        x5 = x5 * load_lanes(F, factors, 5) * scale
        x6 = x6 * load_lanes(F, factors, 6) * scale
        x7 = x7 * load_lanes(F, factors, 7) * scale
        ones = 0
        while (group >> ones) & 1:
            ones += 1
        scale = scale * load_lanes(F, steps, ones)

        x0, x1 = _up(x0, x1)
        x2, x3 = _up(x2, x3)
        x4, x5 = _up(x4, x5)
        x6, x7 = _up(x6, x7)
        x0, x2 = _up(x0, x2)
        x1, x3 = _up_by(x1, x3, w2)
        x4, x6 = _up(x4, x6)
        x5, x7 = _up_by(x5, x7, w2)
        x0, x4 = _up(x0, x4)
        x1, x5 = _up_by(x1, x5, w1)
        x2, x6 = _up_by(x2, x6, w2)
        x3, x7 = _up_by(x3, x7, w3)
        y0, y1, y2, y3, y4, y5, y6, y7 = transpose_lanes((x0, x1, x2, x3, x4, x5, x6, x7))
        store_lanes(data, at, y0)
        store_lanes(data, at + 1, y1)
        store_lanes(data, at + 2, y2)
        store_lanes(data, at + 3, y3)
        store_lanes(data, at + 4, y4)
        store_lanes(data, at + 5, y5)
        store_lanes(data, at + 6, y6)
        store_lanes(data, at + 7, y7)


@jit
def _cached_part(F, data, table, size, start, small, inner, first, current, steps, stop):
    """All short stages of blocks [start, start + size), and what lies between the transforms."""
    if stop[0] != 0:
        return
    lo, hi = start >> 1, (start + size) >> 1
    h = size >> 1
    while h >= 1:
        _frequency(F, data, table, h, lo, hi)
        h >>= 1
    _middle(F, data, small, inner, first, current, steps, start >> 3, (start + size) >> 3)
    h = 1
    while h < size:
        _time(F, data, table, h, lo, hi)
        h *= 2


@jit
def _to_blocks(F, words, data, lo, hi):
    for i in range(lo, hi):
        store_lanes(data, i, load_words(F, words, i))


@jit
def _from_blocks(F, data, words, n, lo, hi, room):
    """words[(n − i) mod n] = data[i], canonical, for blocks [lo, hi); ``room`` holds eight elements."""
    for k in range(lo, hi):
        x = lanes_sub_if(lanes_sub_if(load_lanes(F, data, k), 2), 1)
        if k > 0:
            store_words(words, n - 8 * k, -1, x)
            continue
        store_words(room, 0, 1, x)
        for j in range(8):
            store(words, (n - j) % n, load(F, room, j))


# Tables ------------------------------------------------------------------------------------------------


def _lanes_of(params: FieldParams, values: list[int]) -> Blocks:
    """Integers mod p, eight to a block, in the lanes' form -> uint64[len/8, limbs, 8]."""
    limbs = lane_form(params).limbs
    radix = 1 << (LIMB_BITS * limbs)
    scaled = [v * radix % params.modulus for v in values]
    rows = [[(v >> (LIMB_BITS * i)) & LIMB_MASK for v in scaled] for i in range(limbs)]
    return np.ascontiguousarray(np.array(rows, dtype=np.uint64).reshape(limbs, -1, LANES).transpose(1, 0, 2))


def _splats(params: FieldParams, values: list[int]) -> Blocks:
    """Each value in all lanes of a block of its own."""
    return _lanes_of(params, [v for value in values for v in [value] * LANES])


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
            packed = _lanes_of(params, steps)
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


def reversed_steps(bits: int) -> list[int]:
    """rev(i + 1) − rev(i) by the count of trailing ones of i, for the reversal of ``bits`` bits.

    i -> i + 1 clears t trailing ones and sets the next bit: so does rev(i), at the other end.
    """
    return [(1 << (bits - 1 - t)) - sum(1 << (bits - 1 - s) for s in range(t)) for t in range(bits)]


def supports(domain: Domain) -> bool:
    return domain.log_n >= SMALLEST and domain.field.limbs == 4


def to_coset(v: Words, domain: Domain, job: Job) -> None:
    """Evaluations on ⟨ω⟩ -> evaluations on g·⟨ω⟩, in place, both in natural order; see ntt.py."""
    params, log_n, n = domain.field, domain.log_n, domain.size
    p, g = params.modulus, domain.coset_generator
    F = LaneField(params)
    table_blocks = _twiddles(params, log_n)
    table = address(table_blocks)
    blocks = n // LANES
    work = np.empty((blocks, lane_form(params).limbs, LANES), dtype=np.uint64)
    data = address(work)

    def reverse(i: int, bits: int) -> int:
        return int(format(i, f"0{bits}b")[::-1], 2)

    # The first transform leaves n·c_{−k} at place rev(k), to be scaled by g^(n − k)/n, and by 1/n for k = 0.
    # With 64 places to a group, rev(64s + q) = rev(s) + rev₆(q)·n/64.
    inverse_g = pow(g, -1, p)
    places = [pow(inverse_g, reverse(q, 6) << (log_n - 6), p) for q in range(64)]
    by_vector = [places[8 * lane + e] for e in range(LANES) for lane in range(LANES)]
    inner = _lanes_of(params, by_vector)
    first = _lanes_of(params, [pow(g, -n, p), *by_vector[1:]])
    outer_bits = log_n - 6
    factor = pow(g, n, p) * pow(n, -1, p) % p
    jumps = reversed_steps(outer_bits)
    steps = _splats(params, [*(pow(inverse_g, jump, p) for jump in jumps), 1])
    eighth = params.root_of_unity(3)
    small = _splats(params, [eighth, eighth * eighth % p, pow(eighth, 3, p)])

    size = min(blocks, 1 << LOG_CACHED)
    while size > 8 and blocks // size < job.threads:
        size //= 2
    pieces = job.ranges(blocks // 2, smallest=1 << 8, largest=1 << 17)

    def cached(part: int) -> None:
        start = part * size
        current = _splats(params, [factor * pow(inverse_g, reverse(start >> 3, outer_bits), p) % p])
        _cached_part(
            F, data, table, size, start, address(small), address(inner), address(first), address(current),
            address(steps), job.stop,
        )  # fmt: skip

    def stage(h: int, in_time: bool, bounds: tuple[int, int]) -> None:
        _stage(F, data, table, h, bounds[0], bounds[1], in_time)

    long = [size << s for s in range((blocks // size).bit_length() - 1)]
    everything = job.ranges(blocks, smallest=1 << 8, largest=1 << 17)
    job.map(lambda r: _to_blocks(F, address(v), data, r[0], r[1]), everything)
    for h in reversed(long):
        job.map(partial(stage, h, False), pieces)
    job.map(cached, range(blocks // size))
    for h in long:
        job.map(partial(stage, h, True), pieces)
    room = np.empty((LANES, params.limbs), dtype=np.uint64)
    job.map(lambda r: _from_blocks(F, data, address(v), n, r[0], r[1], address(room)), everything)
