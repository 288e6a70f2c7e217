"""A window's bucket sums on any processor: batches of affine additions, one after the other.

Entries sorted by bucket are taken a segment at a time; neighbours of one bucket are paired again
and again, at most log₂ n rounds, each round of a segment with a single inversion. A segment's
working set fits the second-level cache, and a bucket that holds half of all points is as quick as any
other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpuprover.cpu.compiled import Kernels
from gpuprover.cpu.layout import Field
from gpuprover.limbs import address

_kernels = Kernels("buckets")

SEGMENT_BYTES = 1 << 18
"""Bytes of points summed at a time, with as much again twice beside them."""
STRANDS = 128
"""Running sums side by side in a reduction."""


class Costs(NamedTuple):
    """What a window costs beside one affine addition for each entry, in affine additions (bench/results)."""

    entry: float
    """Sorting an entry."""
    bucket: float
    """A bucket's share of the reduction."""
    window: float
    """What does not grow with the window."""


class Buckets:
    """Scratch of one thread for windows of up to ``half`` buckets over any of ``fields``."""

    COSTS = Costs(entry=0.06, bucket=2.6, window=0)

    def __init__(self, fields: Sequence[Field], entries: int, half: int) -> None:
        strands = min(half, STRANDS)
        segment = max(segment_points(F) for F in fields)
        batch = max(segment, 2 * strands)
        words = max(2 * F.words for F in fields)
        self._room = np.empty(3 * SEGMENT_BYTES // 8, dtype=np.uint64)
        self._table = np.empty((4 * strands + half) * words, dtype=np.uint64)
        self._kinds = np.empty(batch, dtype=np.uint8)
        self._key = np.empty(segment, dtype=np.uint32)
        self._indices = (np.empty(batch, np.int64), np.empty(batch, np.int64), np.empty(batch, np.int64))

    @staticmethod
    def bytes(fields: Sequence[Field], entries: int, half: int) -> int:
        """Memory of such a scratch."""
        words = max(2 * F.words for F in fields)
        batch = max(2 * STRANDS, max(segment_points(F) for F in fields))
        return 3 * SEGMENT_BYTES + 8 * words * (4 * STRANDS + half) + 29 * batch

    def sum(
        self,
        F: Field,
        bases: int,
        starts: NDArray[np.int64],
        entries: NDArray[np.uint32],
        n: int,
        out: int,
        stop: NDArray[np.uint8],
    ) -> None:
        """XYZZ at ``out`` = Σ (b + 1)·(sum of bucket b), whose entries are entries[starts[b]:starts[b + 1]].

        There are len(starts) − 2 buckets and n entries: an index, with a sign in bit 31. ``bases`` is the
        address of affine points.
        """
        words, room, half = 2 * F.words, address(self._table), len(starts) - 2
        strands = min(half, STRANDS)
        self._table[4 * strands * words : (4 * strands + half) * words] = 0
        _kernels.accumulate(
            F, bases, starts, entries, room + 8 * 4 * strands * words,
            address(self._room), self._kinds[: segment_points(F)], self._key, *self._indices, stop,
        )  # fmt: skip
        _kernels.reduce(F, room, half, strands, self._kinds, *self._indices, out, stop)


def segment_points(F: Field) -> int:
    """Points of a segment."""
    return 1 << (SEGMENT_BYTES // (16 * F.words)).bit_length() - 1
