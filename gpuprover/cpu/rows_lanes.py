"""Sums of many short rows of points, and many multiplications in step, eight at a time: AVX-512 IFMA.

Rows are cut and summed like buckets (:mod:`gpuprover.cpu.buckets_lanes`). Multiplications
stand eight to a vector of points, with a table of the first multiples of each.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gpuprover.cpu.buckets_lanes import point_vector_bytes, segment_vectors
from gpuprover.cpu.compiled import Kernels
from gpuprover.cpu.layout import HALF, LANES, NOWHERE, PRODUCTS, Field
from gpuprover.limbs import Words, address

_kernels, _buckets = Kernels("rows_lanes"), Kernels("buckets_lanes")

LONGEST = 32
"""Entries of a chunk of a row at most."""


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
        self._by_length = np.empty(LONGEST + 2, dtype=np.int64)
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
        while True:
            cut_runs, cut_first = self._runs[level & 1], self._first[level & 1]
            chunks, cut = _buckets.cut_into_chunks(
                runs, first, LONGEST, count, slot, self._by_length, bucket, begin, length, cut_runs, cut_first
            )
            # No chunk belongs to a bucket of a table: the room is all segment.
            _buckets.sum_chunks(
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
        self._lanes = np.empty(HALF + 1, dtype=np.int64)
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
        _kernels.multiply(
            self._field, bases, self._entries, digits,
            address(self._room), address(self._prefix), self._flags, p, q, o, self._lanes, address(out), stop,
        )  # fmt: skip
