"""A window's bucket sums, eight buckets side by side: AVX-512 IFMA.

How chunks, rounds and the reduction go: :mod:`gpuprover.cpu.kernels.buckets_lanes`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gpuprover.cpu.buckets import Costs
from gpuprover.cpu.compiled import Kernels
from gpuprover.cpu.layout import LANES, Field, lane_form
from gpuprover.limbs import address

_kernels = Kernels("buckets_lanes")

SEGMENT_BYTES = 1 << 18
"""Bytes of points summed at a time."""
GROUPS_BITS = 4
"""2^this vectors of running sums side by side in a reduction."""
SHORTEST, LONGEST = 32, 256
"""Entries of a chunk at most, by how many a bucket has in the mean."""


class Buckets:
    """Scratch of one thread for windows of up to ``half`` buckets over any of ``fields``."""

    COSTS = Costs(entry=0.2, bucket=2.5, window=2000)

    def __init__(self, fields: Sequence[Field], entries: int, half: int) -> None:
        shape = _Shape(fields, entries, half)
        self._room = np.empty(shape.room // 8, dtype=np.uint64)
        self._prefix = np.empty(shape.prefix // 8, dtype=np.uint64)
        self._flags = np.empty(shape.batch, dtype=np.int64)
        self._places = tuple(np.empty(shape.batch, dtype=np.uint32) for _ in range(3))
        self._index = np.empty((2, shape.capacity, LANES), dtype=np.uint32)
        self._lengths = np.empty((2, shape.capacity), dtype=np.uint32)
        self._by_length = np.empty(LONGEST + 2, dtype=np.int64)
        self._chunks = tuple(np.empty(shape.chunks, dtype=np.uint32) for _ in range(3))
        # Level by level, one of each pair is read and the other written.
        self._runs = tuple(np.empty(shape.sums, dtype=np.uint32) for _ in range(2))
        self._first = tuple(np.empty(shape.sums + 1, dtype=np.int64) for _ in range(2))
        self._sums = tuple(np.empty(shape.sums * shape.words, dtype=np.uint64) for _ in range(2))
        self._identity = np.arange(max(half, shape.sums), dtype=np.uint32)

    @staticmethod
    def bytes(fields: Sequence[Field], entries: int, half: int) -> int:
        """Memory of such a scratch."""
        s = _Shape(fields, entries, half)
        small = 20 * s.batch + 72 * s.capacity + 12 * s.chunks + 24 * (s.sums + 1) + 4 * (half + s.sums)
        return s.room + s.prefix + small + 16 * s.sums * s.words

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
        count = len(starts) - 2
        shape, vector = _Shape([F], n, count), point_vector_bytes(F)
        table = 1 << shape.table_bits
        self._room[: table // LANES * vector // 8] = 0
        p, q, o = self._places
        room, prefix, capacity = address(self._room), address(self._prefix), segment_vectors(F)
        segment = table // LANES + (1 << shape.groups_bits) + 1
        bucket, begin, length = self._chunks
        runs, first = self._identity, starts
        for level in itertools.count():
            sums, cut_runs, cut_first = self._sums[level & 1], self._runs[level & 1], self._first[level & 1]
            chunks, cut = _kernels.cut_into_chunks(
                runs,
                first,
                shape.longest,
                count,
                0,
                self._by_length,
                bucket,
                begin,
                length,
                cut_runs,
                cut_first,
            )
            _kernels.sum_chunks(
                F, bases, entries, chunks, bucket, begin, length,
                room, shape.table_bits, shape.groups_bits, segment, capacity, prefix, self._flags, p, q,
                self._index, self._lengths, address(sums), stop,
            )  # fmt: skip
            if not cut:
                break
            runs, first, count, bases, entries = cut_runs, cut_first, cut, address(sums), self._identity
        _kernels.reduce_buckets(
            F, room, shape.table_bits, shape.groups_bits, prefix, self._flags, p, q, o, out, stop
        )


def point_vector_bytes(F: Field) -> int:
    """Bytes of a vector of eight points."""
    return 2 * LANES * 8 * lane_form(F.params).limbs * F.degree


def segment_vectors(F: Field) -> int:
    """Vectors of a segment."""
    return max(LONGEST, SEGMENT_BYTES // point_vector_bytes(F))


class _Shape:
    """Sizes of a scratch: ``room`` and ``prefix`` in bytes, ``words`` of a point, the rest in things."""

    def __init__(self, fields: Sequence[Field], entries: int, half: int) -> None:
        widest = max(map(point_vector_bytes, fields))
        self.words = max(2 * F.words for F in fields)
        self.table_bits = max(half.bit_length() - 1, 3)
        self.groups_bits = min(GROUPS_BITS, (self.table_bits - 2) // 2)
        # Twice the mean, so that few buckets are cut.
        self.longest = min(LONGEST, max(SHORTEST, 1 << (2 * (entries // half)).bit_length()))
        self.capacity = max(map(segment_vectors, fields))
        groups = 1 << self.groups_bits
        self.batch = max(self.capacity, 2 * groups)
        self.room = ((1 << self.table_bits) // LANES + groups + 1) * widest
        self.room += max(segment_vectors(F) * point_vector_bytes(F) for F in fields)
        self.prefix = max(max(segment_vectors(F), 2 * groups) * point_vector_bytes(F) // 2 for F in fields)
        # A run of m entries is cut into at most m/longest + 1 chunks, more than one only for m > longest.
        self.chunks = min(half, entries) + entries // SHORTEST + 1
        self.sums = 2 * entries // SHORTEST + 1
