"""Sums of many short rows of points, and many multiplications in step, on any processor.

Both are batches of affine additions with shared inversions (:func:`gpuprover.cpu.curve.add_pairs`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gpuprover.cpu.buckets import SEGMENT_BYTES, accumulate, segment_points
from gpuprover.cpu.curve import add_pairs, copy_point
from gpuprover.cpu.field import Field, element_bytes, store, zero
from gpuprover.cpu.jit import jit
from gpuprover.limbs import Words, address

PRODUCTS = 1024
"""Multiplications in step, each with a table of :data:`HALF` points."""
WIDTH = 4
"""Bits of a window of a multiplication."""
HALF = 1 << (WIDTH - 1)


@jit
def _multiply(F, bases, entries, digits, room, kinds, p_index, q_index, o_index, out, stop):
    """out[i] = scalar_i·(±bases[entries[i]]), digits[w] being digit w of all the scalars.

    ``room``: (HALF + 1)·n points; d times point i stands at (d − 1)·n + i.
    """
    windows, n = digits.shape
    prefix = room + HALF * n * 2 * element_bytes(F)
    for i in range(n):
        copy_point(F, bases, np.int64(entries[i]), room, i)
        store(out, 2 * i, zero(F))
        store(out, 2 * i + 1, zero(F))
    for d in range(2, HALF + 1):
        for i in range(n):
            p_index[i], q_index[i], o_index[i] = (d - 2) * n + i, i, (d - 1) * n + i
        add_pairs(F, room, p_index, room, q_index, room, o_index, n, prefix, kinds)
    for i in range(n):
        o_index[i] = i
    for w in range(windows - 1, -1, -1):
        if stop[0] != 0:
            return
        if w < windows - 1:
            for _ in range(WIDTH):
                add_pairs(F, out, o_index, out, o_index, out, o_index, n, prefix, kinds)
        pairs = 0
        for i in range(n):
            d = np.int64(digits[w, i])
            if d != 0:
                p_index[pairs] = i
                q_index[pairs] = (abs(d) - 1) * n + i + (0 if d > 0 else 0x80000000)
                pairs += 1
        add_pairs(F, out, p_index, room, q_index, out, p_index, pairs, prefix, kinds)


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
        accumulate(
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
        _multiply(
            self._field, bases, entries, digits,
            address(self._room), self._kinds, *self._indices, address(out), stop,
        )  # fmt: skip
