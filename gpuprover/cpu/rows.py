"""Sums of many short rows of points, and many multiplications in step, on any processor.

Both are batches of affine additions with shared inversions (:func:`gpuprover.cpu.kernels.curve.add_pairs`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gpuprover.cpu.buckets import SEGMENT_BYTES, segment_points
from gpuprover.cpu.compiled import Kernels
from gpuprover.cpu.layout import HALF, PRODUCTS, Field
from gpuprover.limbs import Words, address

_kernels, _buckets = Kernels("rows"), Kernels("buckets")


class RowSums:
    """Scratch of one thread for up to ``rows`` rows with up to ``entries`` entries in all."""

    def __init__(self, F: Field, rows: int, entries: int) -> None:
        segment = segment_points(F)
        self._field = F
        self._room = np.empty(3 * SEGMENT_BYTES // 8, dtype=np.uint64)
        self._kinds, self._key = np.empty(segment, dtype=np.uint8), np.empty(segment, dtype=np.uint32)
        self._indices = (
            np.empty(segment, np.int64),
            np.empty(segment, np.int64),
            np.empty(segment, np.int64),
        )

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
        out[:] = 0
        _buckets.accumulate(
            self._field, bases, starts, entries, address(out),
            address(self._room), self._kinds, self._key, *self._indices, stop,
        )  # fmt: skip


class Products:
    """Scratch of one thread for up to :data:`PRODUCTS` multiplications in step."""

    def __init__(self, F: Field) -> None:
        self._field = F
        self._room = np.empty((HALF + 1) * PRODUCTS * 2 * F.words, dtype=np.uint64)
        self._kinds = np.empty(PRODUCTS, dtype=np.uint8)
        self._indices = (
            np.empty(PRODUCTS, np.int64),
            np.empty(PRODUCTS, np.int64),
            np.empty(PRODUCTS, np.int64),
        )

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
        _kernels.multiply(
            self._field, bases, entries, digits,
            address(self._room), self._kinds, *self._indices, address(out), stop,
        )  # fmt: skip
