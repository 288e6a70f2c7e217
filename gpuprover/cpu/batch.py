"""Batches of affine additions on the path that the machine has: one at a time, or eight in lanes.

The functions that msm.py calls take a field that says which. Points in scratch memory are in
the path's own form, which only this module and lanes.py know: for lanes, coordinates below
BOUND·p of an isomorphic curve (see lanes.py); infinity is all zeros in every form.

In lanes, a batch goes as in :func:`gpuprover.cpu.curve.add_pairs`, with eight running
products, whose ends share one scalar inversion. Lanes with equal, opposite or infinite
points are found by cheap tests that may err on the safe side, and then sorted out one by one.
Ranges, in p, with coordinates below 5: differences below 10, products below 4, sums of two
coordinates and a square below 12.4, which two conditional subtractions of 5 bring back.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.core.extending import overload

from gpuprover.cpu.curve import add_pairs, copy_point
from gpuprover.cpu.field import element_bytes, inverse, load, negate_if, one, plain, store, zero
from gpuprover.cpu.jit import inline
from gpuprover.cpu.lanes import (
    LaneFieldType,
    canonical,
    gather_points,
    into_x,
    into_y,
    inverse_factor,
    lanes_add,
    lanes_maybe_zero,
    lanes_one,
    lanes_select,
    lanes_square,
    lanes_sub,
    lanes_sub2,
    lanes_sub_if,
    lanes_zero,
    load_elements,
    load_lanes,
    out_of_x,
    out_of_y,
    scatter_points,
    store_elements,
    store_lanes,
)


@inline
def _invert(F, total, room):
    """1/total in every lane, with one scalar inversion. ``room``: scratch for 24 elements."""
    size = 8 * element_bytes(F)
    values, products = room, room + size
    store_elements(F, values, total)
    acc = one(F)
    for i in range(8):
        v = canonical(load(F, values, i))
        store(values, i, v)
        store(products, i, acc)
        acc = acc * v
    acc = inverse(acc)
    for i in range(7, -1, -1):
        v = load(F, values, i)
        store(values, i, load(F, products, i) * acc * inverse_factor(F))
        acc = acc * v
    return load_elements(F, values)


@inline
def _classify(F, x1, y1, x2, y2, inf1, inf2, maybe, tail, room, kinds, at):
    """Writes the masks of a group's special lanes."""
    size = 8 * element_bytes(F)
    store_elements(F, room, x1)
    store_elements(F, room + size, x2)
    store_elements(F, room + 2 * size, y1)
    store_elements(F, room + 3 * size, y2)
    doubles, take_p, take_q, infinite = 0, 0, 0, 0
    for i in range(8):
        bit = 1 << i
        if tail & bit:
            continue
        if inf2 & bit:
            take_p |= bit
        elif inf1 & bit:
            take_q |= bit
        elif maybe & bit and canonical(load(F, room, i)) == canonical(load(F, room + size, i)):
            a, b = canonical(load(F, room + 2 * size, i)), canonical(load(F, room + 3 * size, i))
            if a == b and a != zero(F):
                doubles |= bit
            else:
                infinite |= bit
    kinds[at] = 1
    kinds[at + 1] = doubles
    kinds[at + 2] = take_p
    kinds[at + 3] = take_q
    kinds[at + 4] = infinite
    kinds[at + 5] = tail


def add_pairs_in_lanes(F, ps, p_index, qs, q_index, out, out_index, n, prefix, kinds):
    """:func:`gpuprover.cpu.curve.add_pairs`, eight at a time.

    ``prefix`` has room for one eight-lane element a group of eight pairs. In ``kinds`` a group has eight
    bytes: whether it is special, then the lanes that double, take p, take q, cancel or do not exist.
    """
    groups = (n + 7) >> 3
    for k in range(n, 8 * groups):
        p_index[k], q_index[k], out_index[k] = 0, 0, 0
    pi, qi, oi = p_index.ctypes.data, q_index.ctypes.data, out_index.ctypes.data
    scratch = np.empty(8 * 4 * element_bytes(F) // 8, dtype=np.uint64)
    room = scratch.ctypes.data
    unit = lanes_one(F)
    total = unit
    for g in range(groups):
        x1, y1, inf1 = gather_points(F, ps, pi + 64 * g)
        x2, y2, inf2 = gather_points(F, qs, qi + 64 * g)
        d = lanes_sub(x2, x1, 5)
        tail = 0
        if 8 * g + 8 > n:
            tail = (0xFF << (n - 8 * g)) & 0xFF
        maybe = lanes_maybe_zero(d, 10)
        kinds[8 * g] = 0
        if inf1 | inf2 | maybe | tail:
            _classify(plain(F), x1, y1, x2, y2, inf1, inf2, maybe, tail, room, kinds, 8 * g)
            d = lanes_select(np.int64(kinds[8 * g + 1]), lanes_add(y1, y1), d)
            ones = np.int64(kinds[8 * g + 2] | kinds[8 * g + 3] | kinds[8 * g + 4] | kinds[8 * g + 5])
            d = lanes_select(ones, unit, d)
        store_lanes(prefix, g, total)
        total = d * total
    total = _invert(plain(F), total, room)
    for g in range(groups - 1, -1, -1):
        x1, y1, inf1 = gather_points(F, ps, pi + 64 * g)
        x2, y2, inf2 = gather_points(F, qs, qi + 64 * g)
        d = lanes_sub(x2, x1, 5)
        rise = lanes_sub(y2, y1, 5)
        skip = 0
        if kinds[8 * g]:
            doubles = np.int64(kinds[8 * g + 1])
            d = lanes_select(doubles, lanes_add(y1, y1), d)
            ones = np.int64(kinds[8 * g + 2] | kinds[8 * g + 3] | kinds[8 * g + 4] | kinds[8 * g + 5])
            d = lanes_select(ones, unit, d)
            if doubles:
                xx = lanes_square(x1)
                rise = lanes_select(doubles, lanes_add(lanes_add(xx, xx), xx), rise)
        t = load_lanes(F, prefix, g) * total
        total = d * total
        slope = rise * t
        x3 = lanes_sub_if(lanes_sub_if(lanes_sub2(lanes_square(slope), x1, x2, 10), 5), 5)
        y3 = lanes_sub_if(lanes_sub(lanes_sub(x1, x3, 5) * slope, y1, 5), 5)
        if kinds[8 * g]:
            x3 = lanes_select(np.int64(kinds[8 * g + 2]), x1, x3)
            y3 = lanes_select(np.int64(kinds[8 * g + 2]), y1, y3)
            x3 = lanes_select(np.int64(kinds[8 * g + 3]), x2, x3)
            y3 = lanes_select(np.int64(kinds[8 * g + 3]), y2, y3)
            nothing = lanes_zero(F)
            x3 = lanes_select(np.int64(kinds[8 * g + 4]), nothing, x3)
            y3 = lanes_select(np.int64(kinds[8 * g + 4]), nothing, y3)
            skip = np.int64(kinds[8 * g + 5])
        scatter_points(F, out, oi + 64 * g, x3, y3, skip)
    # Keeps the room: Numba frees an array after the last use that it sees, and an address is none.
    scratch[0] = 0


def double_in_lanes(F, points, n, prefix, kinds, index):
    """:func:`double_batch`, eight at a time; ranges as for an addition. ``kinds`` is not used."""
    groups = (n + 7) >> 3
    # The last group's lanes beyond n repeat the last point, and are not written.
    for k in range(8 * groups):
        index[k] = min(k, n - 1)
    i = index.ctypes.data
    scratch = np.empty(8 * 4 * element_bytes(F) // 8, dtype=np.uint64)
    unit = lanes_one(F)
    total = unit
    for g in range(groups):
        _, y, infinite = gather_points(F, points, i + 64 * g)
        store_lanes(prefix, g, total)
        total = lanes_select(infinite, unit, lanes_add(y, y)) * total
    total = _invert(plain(F), total, scratch.ctypes.data)
    for g in range(groups - 1, -1, -1):
        x, y, infinite = gather_points(F, points, i + 64 * g)
        t = load_lanes(F, prefix, g) * total
        total = lanes_select(infinite, unit, lanes_add(y, y)) * total
        xx = lanes_square(x)
        slope = lanes_add(lanes_add(xx, xx), xx) * t
        x3 = lanes_sub_if(lanes_sub_if(lanes_sub2(lanes_square(slope), x, x, 10), 5), 5)
        y3 = lanes_sub_if(lanes_sub(lanes_sub(x, x3, 5) * slope, y, 5), 5)
        skip = infinite
        if 8 * g + 8 > n:
            skip |= (0xFF << (n - 8 * g)) & 0xFF
        scatter_points(F, points, i + 64 * g, x3, y3, skip)
    # See add_pairs_in_lanes.
    scratch[0] = 0


# One name for both paths ---------------------------------------------------------------------------


def add_batch(
    F: Any,
    ps: Any,
    p_index: Any,
    qs: Any,
    q_index: Any,
    out: Any,
    out_index: Any,
    n: Any,
    prefix: Any,
    kinds: Any,
) -> None:
    """out[out_index[k]] = ±ps[p_index[k]] ± qs[q_index[k]]; see :func:`gpuprover.cpu.curve.add_pairs`.

    Index arrays and kinds have room for n rounded up to a multiple of eight.
    """
    raise TypeError("only for compiled code")


@overload(add_batch)
def _add_batch(F, ps, p_index, qs, q_index, out, out_index, n, prefix, kinds):
    return add_pairs_in_lanes if isinstance(F, LaneFieldType) else add_pairs.py_func


def double_batch(F: Any, points: Any, n: Any, prefix: Any, kinds: Any, index: Any) -> None:
    """points[i] = 2·points[i] for i < n, none of order two. ``index`` is room as for :func:`add_batch`."""
    raise TypeError("only for compiled code")


@overload(double_batch)
def _double_batch(F, points, n, prefix, kinds, index):
    if isinstance(F, LaneFieldType):
        return double_in_lanes

    def double(F, points, n, prefix, kinds, index):
        for i in range(n):
            index[i] = i
        add_pairs(F, points, index, points, index, points, index, n, prefix, kinds)

    return double


def take_base(F: Any, bases: Any, index: Any, out: Any, o: Any) -> None:
    """out[o] = ±bases[index], from the files' form into the form of scratch."""
    raise TypeError("only for compiled code")


@overload(take_base)
def _take_base(F, bases, index, out, o):
    if not isinstance(F, LaneFieldType):
        return lambda F, bases, index, out, o: copy_point(F, bases, index, out, o)

    def take(F, bases, index, out, o):
        i = index & 0x7FFFFFFF
        y = negate_if(load(F, bases, 2 * i + 1), index & 0x80000000)
        store(out, 2 * o, load(F, bases, 2 * i) * into_x(F))
        store(out, 2 * o + 1, y * into_y(F))

    return take


def scratch_point(F: Any, scratch: Any, i: Any) -> Any:
    """(x, y) of scratch[i], in Montgomery form and canonical."""
    raise TypeError("only for compiled code")


@overload(scratch_point)
def _scratch_point(F, scratch, i):
    if not isinstance(F, LaneFieldType):
        return lambda F, scratch, i: (load(F, scratch, 2 * i), load(F, scratch, 2 * i + 1))
    return lambda F, scratch, i: (
        canonical(load(F, scratch, 2 * i)) * out_of_x(F),
        canonical(load(F, scratch, 2 * i + 1)) * out_of_y(F),
    )
