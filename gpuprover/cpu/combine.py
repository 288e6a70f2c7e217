"""Many small point computations at once: multiples of one point, and sparse sums of points.

They are what a set-up needs, and all of it is batches of affine additions with shared
inversions (:mod:`gpuprover.cpu.batch`), on either path. A multiple of a fixed point is a sum of
one entry for each window of a table. In a sparse sum, terms by ±1 are added as they are, which
most of a circuit's are; the others are multiplied first, many in step, by windows of four bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpuprover.cpu import curve
from gpuprover.cpu.batch import add_batch, double_batch, scratch_point, take_base
from gpuprover.cpu.buckets import accumulate
from gpuprover.cpu.curve import copy_point, store_xyzz
from gpuprover.cpu.field import Field, element_bytes, load, prefetch, store, zero
from gpuprover.cpu.jit import inline, jit
from gpuprover.cpu.msm import Points, recode, signed_digit
from gpuprover.job import Job
from gpuprover.limbs import Words, address, ints_to_words

BATCH = 2048
"""Multiples of a fixed point that share one inversion."""
MAX_FIXED_WINDOW = 13
"""A window's 2^12 points stay in a second-level cache while a batch goes through it."""
PRODUCTS = 1024
"""Multiplications in step, each with a table of :data:`HALF` points."""
WIDTH = 4
HALF = 1 << (WIDTH - 1)
TERMS = 1 << 13
"""Terms of sparse sums that a thread takes at once."""
SEGMENT = 1 << 12
"""Points that are summed with shared inversions."""


@jit
def _table(F, point, c, w, out):
    """XYZZ out[d − 1] = d·2^(cw)·point for d in [1, 2^(c−1)]."""
    base = curve.from_affine(F, load(F, point, 0), load(F, point, 1))
    for _ in range(c * w):
        base = curve.double(F, base)
    multiple = base
    for d in range(1 << (c - 1)):
        store_xyzz(F, out, d, multiple)
        multiple = curve.add(F, multiple, base)


@jit
def _into_scratch(S, points, entries, n, out):
    """out[i] = ±points[entries[i]], from the files' form into the form of scratch; out may be points."""
    for i in range(n):
        take_base(S, points, np.int64(entries[i]), out, i)


@jit
def _out_of_scratch(S, scratch, n, out):
    """Affine points from the form of scratch into the files' form."""
    for i in range(n):
        x, y = scratch_point(S, scratch, i)
        store(out, 2 * i, x)
        store(out, 2 * i + 1, y)


@jit
def _windows(
    S,
    table,
    own,
    recoded,
    words,
    windows,
    c,
    first,
    n,
    results,
    prefix,
    kinds,
    p_index,
    q_index,
    o_index,
    stop,
):
    """results[i] = scalar_(first + i)·point for i < n, scalars recoded in windows of c bits; all in scratch.

    With ``own``, every i has its own point: table[i] at first, of which the other multiples, d·point in
    table[(d − 1)·n + i], are made here. Otherwise table[w·2^(c−1) + d − 1] is d·2^(cw)·point, the same
    for all. One kernel for both, as it is the additions that take time to compile.
    """
    half = 1 << (c - 1)
    size = 2 * element_bytes(S)
    multiples = half if own else 1
    for d in range(2, multiples + 1):
        if d == 2:
            for i in range(n):
                copy_point(S, table, i, table, n + i)
            double_batch(S, table + n * size, n, prefix, kinds, p_index)
        else:
            for i in range(n):
                p_index[i], q_index[i], o_index[i] = (d - 2) * n + i, i, (d - 1) * n + i
            add_batch(S, table, p_index, table, q_index, table, o_index, n, prefix, kinds)
    for w in range(windows - 1, -1, -1):
        if stop[0] != 0:
            return
        if own and w < windows - 1:
            for _ in range(c):
                double_batch(S, results, n, prefix, kinds, p_index)
        pairs = 0
        if w == windows - 1:
            # The top digit has no sign.
            for i in range(n):
                d = signed_digit(recoded, words, first + i, c * w, c, False)
                if d != 0:
                    copy_point(S, table, (d - 1) * n + i if own else w * half + d - 1, results, i)
                else:
                    store(results, 2 * i, zero(S))
                    store(results, 2 * i + 1, zero(S))
            continue
        for i in range(n):
            d = signed_digit(recoded, words, first + i, c * w, c, True)
            if d != 0:
                entry = (abs(d) - 1) * n + i if own else w * half + abs(d) - 1
                p_index[pairs], o_index[pairs] = i, i
                q_index[pairs] = entry + (0 if d > 0 else 0x80000000)
                pairs += 1
                for line in range(0, size, 64):
                    prefetch(table + entry * size + line)
        add_batch(S, results, p_index, table, q_index, results, o_index, pairs, prefix, kinds)


@inline
def _equals(values, words, k, value, low):
    """Whether values[k] is ``low`` + 2^64·(the words of ``value`` above its lowest)."""
    same = values[k * words] == low
    for j in range(1, words):
        same &= values[k * words + j] == value[j]
    return same


@inline
def _negative(modulus, values, words, k, out, o):
    """out[o] = modulus − values[k], for a value in [0, modulus]."""
    borrow = np.uint64(0)
    for j in range(words):
        v = values[k * words + j]
        d = modulus[j] - v
        out[o * words + j] = d - borrow
        borrow = np.uint64(1) if v > modulus[j] or d < borrow else np.uint64(0)


@jit
def _split(columns, values, modulus, nothing, words, starts, lo, hi, unit_starts, units, other_starts, others,
           factors, bits):  # fmt: skip
    """Sorts the terms of rows [lo, hi) into those by ±1 and other ones; terms by zero drop out.

    ``units`` and ``others`` get columns with their signs, ``factors`` the other terms' positive factors,
    the shorter ones, and ``bits`` their lengths. ``nothing`` is zero, in words, and the modulus is odd.
    Returns how many ``others`` there are.
    """
    one, other = 0, 0
    minus = np.uint32(0x80000000)
    for i in range(lo, hi):
        unit_starts[i - lo], other_starts[i - lo] = one, other
        for k in range(starts[i], starts[i + 1]):
            if _equals(values, words, k, nothing, np.uint64(1)):
                units[one] = columns[k]
                one += 1
            elif _equals(values, words, k, modulus, modulus[0] - np.uint64(1)):
                units[one] = columns[k] | minus
                one += 1
            elif not _equals(values, words, k, nothing, np.uint64(0)):
                _negative(modulus, values, words, k, factors, other)
                positive = curve.scalar_bits(values, words, k)
                negative = curve.scalar_bits(factors, words, other)
                others[other] = columns[k] | minus
                if positive <= negative:
                    others[other] = columns[k]
                    for j in range(words):
                        factors[other * words + j] = values[k * words + j]
                bits[other] = min(positive, negative)
                other += 1
    unit_starts[hi - lo], other_starts[hi - lo] = one, other
    return other


@dataclass(frozen=True)
class FixedBase:
    """A point's multiples d·2^(cw) for d in [1, 2^(c−1)], window by window, in the form of scratch."""

    points: Points
    c: int
    windows: int


def fixed_base_window(n: int, bits: int) -> int:
    """The window width that is cheapest for n multiples of a point by scalars of so many bits."""
    costs = {c: -(-(bits + 1) // c) * (n + (1 << c)) for c in range(2, MAX_FIXED_WINDOW + 1)}
    return min(costs, key=costs.__getitem__)


def fixed_base(F: Field, point: Words, c: int, bits: int, path: str, job: Job) -> FixedBase:
    """The table for an affine point uint64[1, 2·F.words] and scalars of so many bits."""
    windows, half = -(-(bits + 1) // c), 1 << (c - 1)
    points = Points.of(F, np.empty((windows * half, 2 * F.words), dtype=np.uint64), path)

    def build(w: int) -> None:
        rows = address(points.words[w * half :])
        wide = np.empty((half, 4 * F.words), dtype=np.uint64)
        prefix = np.empty((half, F.words), dtype=np.uint64)
        _table(F, address(point), c, w, address(wide))
        curve.normalise(F, address(wide), rows, address(prefix), half)
        _into_scratch(points.scratch, rows, np.arange(half, dtype=np.uint32), half, rows)

    job.map(build, range(windows))
    return FixedBase(points, c, windows)


def fixed_base_mul(base: FixedBase, scalars: Words, job: Job) -> Words:
    """scalars[i]·point -> affine uint64[n, 2·F.words]; scalars are canonical uint64[n, limbs], contiguous."""
    n, limbs = scalars.shape
    words, table = base.points.words.shape[1], base.points.words
    out = np.empty((n, words), dtype=np.uint64)
    if n == 0:
        return out
    recoded = recode(scalars, base.windows, base.c)

    def run(bounds: tuple[int, int]) -> None:
        lo, hi = bounds
        kinds = np.empty(BATCH, dtype=np.uint8)
        p_index, q_index, o_index = (np.empty(BATCH, dtype=np.int64) for _ in range(3))
        scratch, prefix = (np.empty((BATCH, words), dtype=np.uint64) for _ in range(2))
        _windows(
            base.points.scratch, address(table), False, recoded, limbs, base.windows, base.c, lo, hi - lo,
            address(scratch), address(prefix), kinds, p_index, q_index, o_index, job.stop,
        )  # fmt: skip
        _out_of_scratch(base.points.scratch, address(scratch), hi - lo, address(out[lo:hi]))

    job.map(run, [(lo, min(lo + BATCH, n)) for lo in range(0, n, BATCH)])
    return out


def sparse_combination(
    points: Points,
    starts: NDArray[np.int64],
    columns: NDArray[np.uint32],
    values: Words,
    modulus: int,
    job: Job,
) -> Words:
    """Row i: Σ values[k]·points[columns[k]] for k in [starts[i], starts[i + 1])
    -> affine uint64[rows, words].

    ``values`` are canonical below ``modulus``; a value near it is taken as its small negative.
    No point may have order two, and none of the supported curves has such a point.
    """
    rows, limbs = len(starts) - 1, values.shape[1]
    words = points.words.shape[1]
    out = np.empty((rows, words), dtype=np.uint64)
    flat = np.ascontiguousarray(values, dtype=np.uint64).reshape(-1)
    modulus_words, nothing = ints_to_words([modulus, 0], limbs)
    starts = np.ascontiguousarray(starts, dtype=np.int64)
    columns = np.ascontiguousarray(columns, dtype=np.uint32)
    spare: list[Workspace] = []

    def run(bounds: tuple[int, int]) -> None:
        lo, hi = bounds
        n = int(starts[hi] - starts[lo])
        try:
            space = spare.pop()
        except IndexError:
            space = Workspace(words)
        unit_starts, other_starts = (np.empty(hi - lo + 2, dtype=np.int64) for _ in range(2))
        units, others = (np.empty(n, dtype=np.uint32) for _ in range(2))
        factors, bits = np.empty((n, limbs), dtype=np.uint64), np.empty(n, dtype=np.int64)
        count = _split(
            columns, flat, modulus_words, nothing, limbs, starts, lo, hi,
            unit_starts, units, other_starts, others, factors.reshape(-1), bits,
        )  # fmt: skip
        sums = np.zeros((hi - lo, words), dtype=np.uint64)
        space.add(points, points.words, unit_starts, units, sums, job)
        if count:
            order = np.argsort(bits[:count], kind="stable")
            products = np.empty((count, words), dtype=np.uint64)
            for first in range(0, count, PRODUCTS):
                some = order[first : first + PRODUCTS]
                longest, products_of = int(bits[some[-1]]), products[first : first + PRODUCTS]
                space.multiply(points, others[some], factors[some], longest, products_of, job)
            # Products stand by length; entries say where each term's is.
            entries = np.empty(count, dtype=np.uint32)
            entries[order] = np.arange(count, dtype=np.uint32)
            space.add(points, products, other_starts, entries, sums, job)
        _out_of_scratch(points.scratch, address(sums), hi - lo, address(out[lo:hi]))
        spare.append(space)

    job.map(run, _row_ranges(starts))
    return out


def _row_ranges(starts: NDArray[np.int64]) -> list[tuple[int, int]]:
    """The rows in ranges of at most TERMS rows and terms, or of one row."""
    ranges, lo, rows = [], 0, len(starts) - 1
    while lo < rows:
        fit = int(np.searchsorted(starts, starts[lo] + TERMS, side="right")) - 1
        hi = max(lo + 1, min(fit, lo + TERMS, rows))
        ranges.append((lo, hi))
        lo = hi
    return ranges


class Workspace:
    """Scratch of one thread for sparse sums of points of ``words`` words."""

    def __init__(self, words: int) -> None:
        most = max(SEGMENT, PRODUCTS)
        self.room = np.empty((3 * SEGMENT, words), dtype=np.uint64)
        self.table = np.empty(((HALF + 1) * PRODUCTS, words), dtype=np.uint64)
        self.kinds, self.key = np.empty(SEGMENT, dtype=np.uint8), np.empty(SEGMENT, dtype=np.uint32)
        self.indices = (np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.int64))

    def add(
        self,
        points: Points,
        source: Words,
        starts: NDArray[np.int64],
        entries: NDArray[np.uint32],
        sums: Words,
        job: Job,
    ) -> None:
        """sums[i] += Σ ±source[entries[k]] for k in [starts[i], starts[i + 1]); starts has one entry more."""
        accumulate(
            points.field, points.scratch, address(source), starts, entries, address(sums),
            address(self.room), self.kinds, self.key, *self.indices, job.stop,
        )  # fmt: skip

    def multiply(
        self,
        points: Points,
        entries: NDArray[np.uint32],
        scalars: Words,
        longest: int,
        out: Words,
        job: Job,
    ) -> None:
        """out[i] = scalars[i]·(±points[entries[i]]), for scalars of at most ``longest`` bits."""
        windows = longest // WIDTH + 1
        recoded = recode(scalars, windows, WIDTH)
        table, results = address(self.table), address(self.table[HALF * PRODUCTS :])
        _into_scratch(points.scratch, address(points.words), entries, len(entries), table)
        _windows(
            points.scratch, table, True, recoded, scalars.shape[1], windows, WIDTH, 0, len(entries),
            results, address(self.room), self.kinds, *self.indices, job.stop,
        )  # fmt: skip
        _out_of_scratch(points.scratch, results, len(entries), address(out))
