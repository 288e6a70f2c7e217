"""Many small point computations at once: multiples of one point, and sparse sums of points.

Both end in affine points through shared inversions. They are what a set-up needs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gpuprover.cpu import curve
from gpuprover.cpu.curve import add_pairs, store_xyzz
from gpuprover.cpu.field import Field, element_bytes, load
from gpuprover.cpu.jit import jit
from gpuprover.cpu.msm import recode, signed_digit
from gpuprover.job import Job
from gpuprover.limbs import Words, address, ints_to_words

BATCH = 1024
"""Results that share one inversion."""
MAX_FIXED_WINDOW = 14
"""A table of 2^13 points for each window stays in a third-level cache."""


@jit
def _table(F, point, c, first, last, out):
    """XYZZ out[w·half + d − 1] = d·2^(cw)·point for d in [1, half], half = 2^(c−1), w in [first, last)."""
    half = 1 << (c - 1)
    base = curve.from_affine(F, load(F, point, 0), load(F, point, 1))
    for _ in range(c * first):
        base = curve.double(F, base)
    for w in range(first, last):
        multiple = base
        for d in range(half):
            store_xyzz(F, out, w * half + d, multiple)
            multiple = curve.add(F, multiple, base)
        for _ in range(c):
            base = curve.double(F, base)


@jit
def _multiples(F, table, recoded, words, windows, c, lo, hi, out, prefix, kinds, p_index, q_index, stop):
    """out[i] = scalar_i·point for i in [lo, hi), in batches that share inversions; out starts as infinity."""
    half = 1 << (c - 1)
    batch = len(kinds)
    start = lo
    while start < hi:
        if stop[0] != 0:
            return
        end = min(start + batch, hi)
        for w in range(windows):
            pairs = 0
            for i in range(start, end):
                d = signed_digit(recoded, words, i, c * w, c, w < windows - 1)
                if d != 0:
                    p_index[pairs] = i - start
                    q_index[pairs] = w * half + abs(d) - 1 + (0 if d > 0 else 0x80000000)
                    pairs += 1
            results = out + start * 2 * element_bytes(F)
            add_pairs(F, results, p_index, table, q_index, results, p_index, pairs, prefix, kinds)
        start = end


@jit
def _sparse(F, points, starts, columns, values, negatives, words, lo, hi, room, out, stop):
    """out[i − lo] = Σ values[k]·points[columns[k]] for k in row i; ``room`` holds 3·(hi − lo) points."""
    for i in range(lo, hi):
        if stop[0] != 0:
            return
        acc = curve.identity(F)
        for k in range(starts[i], starts[i + 1]):
            x, y = load(F, points, 2 * np.int64(columns[k])), load(F, points, 2 * np.int64(columns[k]) + 1)
            positive = curve.scalar_bits(values, words, k)
            negative = curve.scalar_bits(negatives, words, k)
            if positive == 1:
                acc = curve.add_affine(F, acc, x, y)
            elif negative == 1:
                acc = curve.add_affine(F, acc, x, -y)
            elif positive <= negative:
                acc = curve.add(F, acc, curve.multiply(F, curve.from_affine(F, x, y), values, words, k))
            else:
                acc = curve.add(F, acc, curve.multiply(F, curve.from_affine(F, x, -y), negatives, words, k))
        store_xyzz(F, room, i - lo, acc)
    curve.normalise(F, room, out, room + 4 * (hi - lo) * element_bytes(F), hi - lo)


def fixed_base_mul(F: Field, point: Words, scalars: Words, job: Job) -> Words:
    """scalars[i]·point -> affine uint64[n, 2·F.words]; scalars are canonical uint64[n, limbs], contiguous."""
    n, limbs = scalars.shape
    words = 2 * F.words
    out = np.zeros((n, words), dtype=np.uint64)
    if n == 0:
        return out
    bits = max(1, 64 * limbs - 1)
    costs = {c: -(-(bits + 1) // c) * (n + (1 << (c - 1)) * 2) for c in range(2, MAX_FIXED_WINDOW + 1)}
    c = min(costs, key=costs.__getitem__)
    windows = -(-(bits + 1) // c)
    half = 1 << (c - 1)
    recoded = recode(scalars, windows, c)
    table = np.empty((windows * half, words), dtype=np.uint64)
    wide = np.empty((windows * half, 2 * words), dtype=np.uint64)
    prefix = np.empty((windows * half, F.words), dtype=np.uint64)

    def build(w: int) -> None:
        _table(F, address(point), c, w, w + 1, address(wide))
        rows = slice(w * half, (w + 1) * half)
        curve.normalise(F, address(wide[rows]), address(table[rows]), address(prefix[rows]), half)

    job.map(build, range(windows))

    def run(bounds: tuple[int, int]) -> None:
        kinds = np.empty(BATCH, dtype=np.uint8)
        p_index, q_index = np.empty(BATCH, dtype=np.int64), np.empty(BATCH, dtype=np.int64)
        room = np.empty((BATCH, F.words), dtype=np.uint64)
        _multiples(
            F, address(table), recoded, limbs, windows, c, bounds[0], bounds[1],
            address(out), address(room), kinds, p_index, q_index, job.stop,
        )  # fmt: skip

    job.map(run, [(lo, min(lo + 16 * BATCH, n)) for lo in range(0, n, 16 * BATCH)])
    return out


def sparse_combination(
    F: Field,
    points: Words,
    starts: NDArray[np.int64],
    columns: NDArray[np.uint32],
    values: Words,
    modulus: int,
    job: Job,
) -> Words:
    """Row i: Σ values[k]·points[columns[k]] for k in [starts[i], starts[i + 1])
    -> affine uint64[rows, words].

    ``values`` are canonical below ``modulus``; a value near it is taken as its small negative.
    """
    rows, limbs = len(starts) - 1, values.shape[1]
    out = np.zeros((rows, 2 * F.words), dtype=np.uint64)
    flat = np.ascontiguousarray(values, dtype=np.uint64).reshape(-1)
    negatives = _negate(values, modulus).reshape(-1)
    starts = np.ascontiguousarray(starts, dtype=np.int64)
    columns = np.ascontiguousarray(columns, dtype=np.uint32)

    def run(bounds: tuple[int, int]) -> None:
        lo, hi = bounds
        room = np.empty((hi - lo, 6 * F.words), dtype=np.uint64)
        _sparse(
            F, address(points), starts, columns, flat, negatives, limbs, lo, hi,
            address(room), address(out[lo:hi]), job.stop,
        )  # fmt: skip

    job.map(run, [(lo, min(lo + BATCH, rows)) for lo in range(0, rows, BATCH)])
    return out


def _negate(values: Words, modulus: int) -> Words:
    """modulus − values on words, for values in [0, modulus]."""
    limbs = values.shape[1]
    limit = ints_to_words([modulus], limbs)[0]
    out = np.empty(values.shape, dtype=np.uint64)
    borrow = np.zeros(len(values), dtype=np.uint64)
    for i in range(limbs):
        v = values[:, i]
        d = limit[i] - v
        out[:, i] = d - borrow
        borrow = ((v > limit[i]) | (d < borrow)).astype(np.uint64)
    return out
