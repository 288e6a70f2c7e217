"""Sums of many short rows of points, and many multiplications in step, eight at a time: AVX-512 IFMA.

Rows are cut and summed like buckets (:mod:`gpuprover.cpu.buckets_lanes`). Multiplications
stand eight to a vector of points, with a table of the first multiples of each.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gpuprover.cpu.buckets_lanes import (
    add_vectors,
    cut_into_chunks,
    point_vector_bytes,
    segment_vectors,
    sum_chunks,
    write_bases,
)
from gpuprover.cpu.field import Field, element_bytes, load, plain, store
from gpuprover.cpu.jit import inline, jit
from gpuprover.cpu.lanes import (
    LANES,
    NOWHERE,
    gather_bases,
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
    load_lanes,
    store_lanes,
)
from gpuprover.cpu.rows import HALF, PRODUCTS, WIDTH
from gpuprover.limbs import Words, address

LONGEST = 32
"""Entries of a chunk of a row at most."""


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
def _multiply(F, bases, entries, digits, room, prefix, flags, p, q, o, out, stop):
    """out[i] = scalar_i·(±bases[entries[i]]), digits[w] being digit w of all the scalars.

    ``entries`` go on with :data:`NOWHERE` to a multiple of eight. The room has HALF + 2 places for every
    vector of points: d times vector k stands at (d − 1)·n + k, then the results, then what is added to them.
    """
    G = plain(F)
    windows, count = digits.shape
    n = (count + 7) >> 3
    results, chosen = HALF * n, (HALF + 1) * n
    scratch = np.empty(16 * element_bytes(F) // 8, dtype=np.uint64)
    eight = scratch.ctypes.data
    lanes = np.empty(HALF + 1, dtype=np.int64)
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
            return
        top = w == windows - 1
        if not top:
            for _ in range(WIDTH):
                _double_vectors(F, room, results, n, prefix)
        some = 0
        for k in range(n):
            lanes[:] = 0
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
    # Keeps the room: Numba frees an array after the last use that it sees, and an address is none.
    scratch[0] = 0


class RowSums:
    """Scratch of one thread for up to ``rows`` rows with up to ``entries`` entries in all."""

    def __init__(self, F: Field, rows: int, entries: int) -> None:
        self._field = F
        capacity, vector = segment_vectors(F), point_vector_bytes(F)
        self._room = np.empty(capacity * vector // 8, dtype=np.uint64)
        self._prefix = np.empty(capacity * vector // 16, dtype=np.uint64)
        self._flags = np.empty(capacity, dtype=np.int64)
        self._places = np.empty(capacity, dtype=np.uint32), np.empty(capacity, dtype=np.uint32)
        self._index = np.empty((2, capacity, LANES), dtype=np.uint32)
        self._lengths = np.empty((2, capacity), dtype=np.uint32)
        # A row of m entries, for m > LONGEST, is cut into fewer than 2·m/LONGEST chunks, and these again.
        cut, pieces = entries // LONGEST, entries // (LONGEST // 2)
        self._chunks = tuple(np.empty(rows + cut, dtype=np.uint32) for _ in range(3))
        self._rows = np.arange(rows, dtype=np.uint32) | np.uint32(0x80000000)
        self._runs = tuple(np.empty(cut + 1, dtype=np.uint32) for _ in range(2))
        self._first = tuple(np.empty(cut + 2, dtype=np.int64) for _ in range(2))
        self._sums = np.empty((rows + 2 * pieces, 2 * F.words), dtype=np.uint64)
        self._identity = np.arange(len(self._sums), dtype=np.uint32)

    def sum(
        self,
        bases: int,
        starts: NDArray[np.int64],
        entries: NDArray[np.uint32],
        out: Words,
        stop: NDArray[np.uint8],
    ) -> None:
        """out[i] = Σ of entries[starts[i]:starts[i + 1]], which are indices with a sign in bit 31.

        ``bases`` is the address of affine points; ``starts`` has len(out) + 2 elements, the last for scratch.
        """
        rows = slot = count = len(out)
        self._sums[:rows] = 0
        F, sums = self._field, address(self._sums)
        bucket, begin, length = self._chunks
        p, q = self._places
        runs, first, level = self._rows, starts, 0
        while not stop[0]:
            cut_runs, cut_first = self._runs[level & 1], self._first[level & 1]
            chunks, cut = cut_into_chunks(
                runs, first, LONGEST, count, slot, bucket, begin, length, cut_runs, cut_first
            )
            # No chunk belongs to a bucket of a table: the room is all segment.
            sum_chunks(
                F, bases, entries, chunks, bucket, begin, length,
                address(self._room), 3, 0, 0, segment_vectors(F), address(self._prefix), self._flags, p, q,
                self._index, self._lengths, sums, stop,
            )  # fmt: skip
            if not cut:
                break
            # Sums of a row's chunks lie side by side behind the rows, and are entries now.
            runs, first, count, level = cut_runs, cut_first, cut, level + 1
            bases, entries, slot = sums, self._identity, int(cut_first[cut])
        out[:] = self._sums[:rows]


class Products:
    """Scratch of one thread for up to :data:`PRODUCTS` multiplications in step."""

    def __init__(self, F: Field) -> None:
        self._field = F
        vectors, size = PRODUCTS // LANES, point_vector_bytes(F) // 8
        self._room = np.empty((HALF + 2) * vectors * size, dtype=np.uint64)
        self._prefix = np.empty(vectors * size // 2, dtype=np.uint64)
        self._flags = np.empty(vectors, dtype=np.int64)
        self._places = tuple(np.empty(vectors, dtype=np.uint32) for _ in range(3))
        self._entries = np.empty(PRODUCTS, dtype=np.uint32)

    def multiply(
        self,
        bases: int,
        entries: NDArray[np.uint32],
        digits: NDArray[np.int16],
        out: Words,
        stop: NDArray[np.uint8],
    ) -> None:
        """out[i] = Σ_w 2^(WIDTH·w)·digits[w, i]·(±base), for entries as in :meth:`RowSums.sum`.

        Digits are in [−HALF, HALF]. No point may have order two.
        """
        n = len(entries)
        p, q, o = self._places
        self._entries[:n], self._entries[n:] = entries, NOWHERE
        _multiply(
            self._field, bases, self._entries, digits,
            address(self._room), address(self._prefix), self._flags, p, q, o, address(out), stop,
        )  # fmt: skip
