"""Many small point computations at once: multiples of one point, and sparse sums of points.

They are what a set-up needs. A multiple of a fixed point is a sum of one entry for each window of a
table. In a sparse sum, terms by ±1 are added as they are, which most of a circuit's are; the others
are multiplied first, many in step, by windows of four bits.

The sums and the products in step are written once for any processor (:mod:`rows`) and once for
AVX-512 IFMA (:mod:`rows_lanes`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from gpuprover.cpu.compiled import Kernels
from gpuprover.cpu.layout import PRODUCTS, WIDTH, Field
from gpuprover.cpu.msm import Points, recode
from gpuprover.cpu.path import CpuPath
from gpuprover.cpu.rows import Products
from gpuprover.cpu.rows_lanes import Products as ProductsInLanes
from gpuprover.job import Job
from gpuprover.limbs import Words, address, ints_to_words

_kernels, _curve = Kernels("combine"), Kernels("curve")

BATCH = 2048
"""Multiples of a fixed point that a thread takes at once."""
MAX_FIXED_WINDOW = 13
"""20 tables of 2^12 points stay in the last-level cache."""
TERMS = 1 << 13
"""Terms of sparse sums that a thread takes at once."""

T = TypeVar("T")


class Spare(Generic[T]):
    """Scratches that threads take in turns; as many are made as are in use at once."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._free: list[T] = []

    @contextmanager
    def one(self) -> Iterator[T]:
        try:
            scratch = self._free.pop()
        except IndexError:
            scratch = self._make()
        yield scratch
        self._free.append(scratch)


class FixedBase(NamedTuple):
    """A point's multiples d·2^(cw) for d in [1, 2^(c−1)], window by window."""

    points: Points
    c: int
    windows: int


def fixed_base_window(n: int, bits: int) -> int:
    """The window width that is cheapest for n multiples of a point by scalars of so many bits."""
    costs = {c: -(-(bits + 1) // c) * (n + (1 << c)) for c in range(2, MAX_FIXED_WINDOW + 1)}
    return min(costs, key=costs.__getitem__)


def fixed_base(F: Field, point: Words, c: int, bits: int, path: CpuPath, job: Job) -> FixedBase:
    """The table for an affine point uint64[1, 2·F.words] and scalars of so many bits."""
    windows, half = -(-(bits + 1) // c), 1 << (c - 1)
    points = Points(F, np.empty((windows * half, 2 * F.words), dtype=np.uint64), path)

    def build(w: int) -> None:
        out = address(points.words[w * half :])
        wide = np.empty((half, 4 * F.words), dtype=np.uint64)
        prefix = np.empty((half, F.words), dtype=np.uint64)
        _kernels.table(F, address(point), c, w, address(wide))
        _curve.normalise(F, address(wide), out, address(prefix), half)

    job.map(build, range(windows))
    return FixedBase(points, c, windows)


def fixed_base_mul(base: FixedBase, scalars: Words, job: Job) -> Words:
    """scalars[i]·point -> affine uint64[n, 2·F.words]; scalars are canonical uint64[n, limbs], contiguous."""
    n, limbs = scalars.shape
    points, windows = base.points, base.windows
    out = np.empty((n, points.words.shape[1]), dtype=np.uint64)
    if n == 0:
        return out
    recoded, block = recode(scalars, windows, base.c), min(n, BATCH)
    spare = Spare(lambda: points.path.row_sums(points.field, block, block * windows))

    def run(bounds: tuple[int, int]) -> None:
        lo, hi = bounds
        starts = np.empty(hi - lo + 2, dtype=np.int64)
        entries = np.empty((hi - lo) * windows, dtype=np.uint32)
        digits = np.empty((windows, hi - lo), dtype=np.int16)
        _kernels.digits(recoded, limbs, lo, hi, base.c, digits)
        _kernels.entries(digits, 1 << (base.c - 1), starts, entries)
        with spare.one() as sums:
            sums.sum(address(points.words), starts, entries, out[lo:hi], job.stop)

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

    Raises:
        IndexError: a column is not below the number of points.
    """
    n_rows, limbs = len(starts) - 1, values.shape[1]
    words = points.words.shape[1]
    out = np.empty((n_rows, words), dtype=np.uint64)
    flat = np.ascontiguousarray(values, dtype=np.uint64).reshape(-1)
    modulus_words, nothing = ints_to_words([modulus, 0], limbs)
    starts = np.ascontiguousarray(starts, dtype=np.int64)
    columns = np.ascontiguousarray(columns, dtype=np.uint32)
    ranges = _row_ranges(starts)
    most_rows = max((hi - lo for lo, hi in ranges), default=0)
    most_terms = max((int(starts[hi] - starts[lo]) for lo, hi in ranges), default=0)
    row_sums = Spare(lambda: points.path.row_sums(points.field, most_rows, most_rows + most_terms))
    in_step = Spare(lambda: points.path.products(points.field))

    def run(bounds: tuple[int, int]) -> None:
        lo, hi = bounds
        n = int(starts[hi] - starts[lo])
        unit_starts, other_starts = (np.zeros(hi - lo + 2, dtype=np.int64) for _ in range(2))
        units, others = (np.empty(n, dtype=np.uint32) for _ in range(2))
        factors, bits = np.empty((n, limbs), dtype=np.uint64), np.empty(n, dtype=np.int64)
        count = _kernels.split(
            columns, len(points.words), flat, modulus_words, nothing, limbs, starts, lo, hi,
            unit_starts, units, other_starts, others, factors.reshape(-1), bits,
        )  # fmt: skip
        with row_sums.one() as sums:
            if count == 0:
                sums.sum(address(points.words), unit_starts, units, out[lo:hi], job.stop)
                return
            # A row's products and its sum of terms by ±1 are what is added in the end.
            parts = np.empty((count + hi - lo, words), dtype=np.uint64)
            sums.sum(address(points.words), unit_starts, units, parts[count:], job.stop)
            order = np.argsort(bits[:count], kind="stable")
            with in_step.one() as space:
                for first in range(0, count, PRODUCTS):
                    some = order[first : first + PRODUCTS]
                    longest, those = int(bits[some[-1]]), parts[first : first + len(some)]
                    multiply(space, points, others[some], factors[some], longest, those, job)
            # Products stand by length.
            places = np.empty(count, dtype=np.uint32)
            places[order] = np.arange(count, dtype=np.uint32)
            entries = np.insert(places, other_starts[: hi - lo], np.arange(count, len(parts)))
            other_starts += np.arange(len(other_starts))
            sums.sum(address(parts), other_starts, entries, out[lo:hi], job.stop)

    job.map(run, ranges)
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


def multiply(
    space: Products | ProductsInLanes,
    points: Points,
    entries: NDArray[np.uint32],
    scalars: Words,
    longest: int,
    out: Words,
    job: Job,
) -> None:
    """out[i] = scalars[i]·(±points[entries[i]]), for at most PRODUCTS scalars of at most ``longest`` bits.

    Bit 31 of an entry is its sign. No point may have order two.
    """
    n, limbs = scalars.shape
    digits = np.empty((longest // WIDTH + 1, n), dtype=np.int16)
    _kernels.digits(recode(scalars, len(digits), WIDTH), limbs, 0, n, WIDTH, digits)
    space.multiply(address(points.words), entries, digits, out, job.stop)
