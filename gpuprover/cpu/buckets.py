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

from gpuprover.cpu import curve
from gpuprover.cpu.curve import add_pairs, copy_point, is_infinity, store_xyzz
from gpuprover.cpu.field import Field, element_bytes, load, prefetch, store, zero
from gpuprover.cpu.jit import jit
from gpuprover.limbs import address

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


@jit
def accumulate(F, bases, starts, entries, buckets, room, kinds, key, p_index, q_index, out_index, stop):
    """Adds the sorted entries into affine buckets; bucket b has those in [starts[b], starts[b + 1]).

    ``room`` holds three segments' points; ``kinds`` is as long as a segment.
    """
    segment = len(kinds)
    size = segment * 2 * element_bytes(F)
    first, second, prefix = room, room + size, room + 2 * size
    total = starts[len(starts) - 2]
    bucket = 0
    position = 0
    while position < total:
        if stop[0] != 0:
            return
        m = min(segment, total - position)
        # Round 0 gathers from the bases: all lines are asked for before the first is used.
        for i in range(m):
            at = bases + np.int64(entries[position + i] & np.uint32(0x7FFFFFFF)) * 2 * element_bytes(F)
            for line in range(0, 2 * element_bytes(F), 64):
                prefetch(at + line)
        out, pairs, i = 0, 0, 0
        more = False
        while i < m:
            while position + i >= starts[bucket + 1]:
                bucket += 1
            key[out] = bucket
            more |= out > 0 and key[out - 1] == bucket
            if i + 1 < m and position + i + 1 < starts[bucket + 1]:
                p_index[pairs] = entries[position + i]
                q_index[pairs] = entries[position + i + 1]
                out_index[pairs] = out
                pairs += 1
                i += 2
            else:
                copy_point(F, bases, np.int64(entries[position + i]), first, out)
                i += 1
            out += 1
        add_pairs(F, bases, p_index, bases, q_index, first, out_index, pairs, prefix, kinds)
        position += m
        # Further rounds pair what stands side by side.
        source, target = first, second
        m = out
        while more:
            out, pairs, i = 0, 0, 0
            more = False
            while i < m:
                k = key[i]
                if i + 1 < m and key[i + 1] == k:
                    p_index[pairs] = i
                    q_index[pairs] = i + 1
                    out_index[pairs] = out
                    pairs += 1
                    i += 2
                else:
                    copy_point(F, source, i, target, out)
                    i += 1
                key[out] = k
                more |= out > 0 and key[out - 1] == k
                out += 1
            add_pairs(F, source, p_index, source, q_index, target, out_index, pairs, prefix, kinds)
            source, target = target, source
            m = out
        # A bucket may have begun in an earlier segment.
        pairs = 0
        for i in range(m):
            b = key[i]
            if is_infinity(F, buckets, b):
                copy_point(F, source, i, buckets, b)
            else:
                p_index[pairs], q_index[pairs], out_index[pairs] = b, i, b
                pairs += 1
        if pairs > 0:
            add_pairs(F, buckets, p_index, source, q_index, buckets, out_index, pairs, prefix, kinds)


@jit
def _reduce(F, room, count, strands, kinds, p_index, q_index, out_index, out, stop):
    """XYZZ out[0] = Σ (b + 1)·bucket[b] for b < count = strands·length.

    Strand k holds buckets [k·length, (k + 1)·length): ``run`` is their sum so far, from the
    top down, and ``total`` the sum of all values of ``run``, which is Σ (j + 1)·bucket. A step
    adds a bucket to every run and the previous run to every total, in one batch.
    ``room`` holds runs, totals and prefixes (4·strands points), then the buckets.
    """
    length = count // strands
    prefix = room + 4 * strands * element_bytes(F)
    base = 4 * strands
    for k in range(strands):
        copy_point(F, room, base + k * length + length - 1, room, k)
        store(room, 2 * (strands + k), zero(F))
        store(room, 2 * (strands + k) + 1, zero(F))
    for k in range(strands):
        p_index[strands + k], q_index[strands + k], out_index[strands + k] = strands + k, k, strands + k
    for j in range(length - 2, -1, -1):
        if stop[0] != 0:
            return
        for k in range(strands):
            p_index[k], q_index[k], out_index[k] = k, base + k * length + j, k
        add_pairs(F, room, p_index, room, q_index, room, out_index, 2 * strands, prefix, kinds)
    total = curve.identity(F)
    run = curve.identity(F)
    weighted = curve.identity(F)
    for k in range(strands - 1, -1, -1):
        x, y = load(F, room, 2 * k), load(F, room, 2 * k + 1)
        # The last run has not been added to its total yet.
        total = curve.add_affine(F, total, x, y)
        x_total, y_total = load(F, room, 2 * (strands + k)), load(F, room, 2 * (strands + k) + 1)
        total = curve.add_affine(F, total, x_total, y_total)
        if k > 0:
            run = curve.add_affine(F, run, x, y)
            weighted = curve.add(F, weighted, run)
    steps = length
    while steps > 1:
        weighted = curve.double(F, weighted)
        steps >>= 1
    store_xyzz(F, out, 0, curve.add(F, total, weighted))


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
        accumulate(
            F, bases, starts, entries, room + 8 * 4 * strands * words,
            address(self._room), self._kinds[: segment_points(F)], self._key, *self._indices, stop,
        )  # fmt: skip
        _reduce(F, room, half, strands, self._kinds, *self._indices, out, stop)


def segment_points(F: Field) -> int:
    """Points of a segment."""
    return 1 << (SEGMENT_BYTES // (16 * F.words)).bit_length() - 1
