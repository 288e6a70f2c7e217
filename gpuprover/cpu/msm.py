"""Multi-scalar multiplication: Pippenger's buckets, filled by batches of affine additions.

Σ s_i·P_i in phases (n points, windows of c bits, W windows, A = one affine addition):

1. Recode: s_i + Σ_w 2^(cw + c − 1) turns every digit into a signed one in [−2^(c−1), 2^(c−1))
   without a carry to hand on; the top window stays unsigned. Cost: one pass.
2. Order: indices sorted by the highest window their scalar reaches. Zeros drop out, a
   one lives in window 0 only, small values in the low windows.
3. Per window, sort the entries by bucket (counting sort): two passes over n digits.
4. Per window, add up every bucket: neighbours are paired again and again, at most
   log₂ n rounds, each round of a segment with a single inversion: n·A. A segment's
   working set fits the second-level cache, and a bucket that holds half of all points is
   as quick as any other.
5. Per window, Σ d·B_d by running sums on many strands at once: 2^c·A.
6. Horner over the windows: 256 doublings.

Sources: Pippenger's method as in Bernstein, Doumen, Lange, Oosterwijk, "Faster batch forgery
identification" (2012), section 4; shared inversions by Montgomery's trick (Montgomery,
"Speeding the Pollard and elliptic curve methods of factorization", 1987, section 10.3.1).
The window comes from the cost model
:func:`choose_window`, fed with the scalars' real bit lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpuprover.cpu import curve
from gpuprover.cpu.batch import add_batch, scratch_point, take_base
from gpuprover.cpu.curve import copy_point, is_infinity, load_xyzz, store_xyzz
from gpuprover.cpu.field import Field, element_bytes, plain, prefetch, store, zero
from gpuprover.cpu.jit import inline, jit
from gpuprover.cpu.lanes import LaneField
from gpuprover.job import Job
from gpuprover.limbs import Words, ints_to_words

SEGMENT_BYTES = 1 << 19
"""Bytes of points summed at a time (half on the portable path), with as much again twice beside them."""
STRANDS = 256
"""Running sums side by side in a reduction (half as many on the portable path)."""
REDUCTION_COST = 2.6
"""A bucket's share of the reduction, in affine additions (two, and the strands' overhead)."""
SORT_COST = 0.06
"""Sorting an entry of a window, in affine additions."""
MAX_WINDOW = 16


# Kernels -----------------------------------------------------------------------------------


@jit
def _bit_lengths(scalars, words, n, counts, lengths):
    """Histogram of the scalars' bit lengths, and each length."""
    for i in range(n):
        b = curve.scalar_bits(scalars, words, i)
        counts[b] += 1
        lengths[i] = b


@jit
def _recode(scalars, words, n, offset, out):
    """out[i] = scalars[i] + offset, on words; no overflow by the choice of the windows."""
    for i in range(n):
        carry = np.uint64(0)
        for k in range(words):
            a = scalars[i * words + k]
            s = a + offset[k]
            c1 = np.uint64(1) if s < a else np.uint64(0)
            t = s + carry
            c2 = np.uint64(1) if t < s else np.uint64(0)
            out[i * words + k] = t
            carry = c1 | c2


@jit
def _order_by_top(lengths, n, c, windows, reach, order):
    """order = indices of non-zero scalars, highest reaching first; reach[w] = how many reach window w.

    Digits below window w add up to at most 2^(cw)·(2^(c−1) − 1)/(2^c − 1) >= 2^(cw)/3 for c >= 2: a
    scalar under cw − 1 bits hands nothing on to window w.
    """
    for i in range(n):
        if lengths[i]:
            top = min((lengths[i] + 1) // c, windows - 1)
            reach[top] += 1
    position = np.zeros(windows, dtype=np.int64)
    total = 0
    for w in range(windows - 1, -1, -1):
        position[w] = total
        total += reach[w]
        reach[w] = total
    for i in range(n):
        if lengths[i]:
            top = min((lengths[i] + 1) // c, windows - 1)
            order[position[top]] = i
            position[top] += 1


@inline
def signed_digit(recoded, words, i, shift, c, signed):
    """Digit of scalar i at bit ``shift``; signed digits lie in [−2^(c−1), 2^(c−1))."""
    k = shift >> 6
    b = shift & 63
    v = recoded[i * words + k] >> np.uint64(b)
    if b + c > 64 and k + 1 < words:
        v |= recoded[i * words + k + 1] << np.uint64(64 - b)
    d = np.int64(v & np.uint64((1 << c) - 1))
    return d - (1 << (c - 1)) if signed else d


@jit
def _sort_window(recoded, words, order, lo, hi, shift, c, signed, starts, entries):
    """Entries (index and sign) of order[lo:hi] by bucket |digit| − 1.

    Bucket b ends up in entries[starts[b]:starts[b + 1]].
    """
    buckets = 1 << (c - 1)
    starts[:] = 0
    for k in range(lo, hi):
        d = signed_digit(recoded, words, order[k], shift, c, signed)
        if d != 0:
            starts[abs(d) + 1] += 1
    # starts[b + 2] counts bucket b; prefix sums make starts[b + 1] its first place …
    for b in range(1, buckets + 2):
        starts[b] += starts[b - 1]
    for k in range(lo, hi):
        i = order[k]
        d = signed_digit(recoded, words, i, shift, c, signed)
        if d != 0:
            place = starts[abs(d)]
            entries[place] = i if d > 0 else i | np.int64(0x80000000)
            starts[abs(d)] = place + 1
    # … and after placing, starts[b + 1] is the end of bucket b, so starts[b] its beginning.
    starts[0] = 0


@jit
def accumulate(B, F, bases, starts, entries, buckets, room, kinds, key, p_index, q_index, out_index, stop):
    """Adds the sorted entries into affine buckets; bucket b has those in [starts[b], starts[b + 1]).

    B and F are the field as bases and as scratch hold its elements.
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
                take_base(F, bases, np.int64(entries[position + i]), first, out)
                i += 1
            out += 1
        add_batch(B, bases, p_index, bases, q_index, first, out_index, pairs, prefix, kinds)
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
            add_batch(F, source, p_index, source, q_index, target, out_index, pairs, prefix, kinds)
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
            add_batch(F, buckets, p_index, source, q_index, buckets, out_index, pairs, prefix, kinds)


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
        add_batch(F, room, p_index, room, q_index, room, out_index, 2 * strands, prefix, kinds)
    G = plain(F)
    total = curve.identity(G)
    run = curve.identity(G)
    weighted = curve.identity(G)
    for k in range(strands - 1, -1, -1):
        x, y = scratch_point(F, room, k)
        # The last run has not been added to its total yet.
        total = curve.add_affine(G, total, x, y)
        x_total, y_total = scratch_point(F, room, strands + k)
        total = curve.add_affine(G, total, x_total, y_total)
        if k > 0:
            run = curve.add_affine(G, run, x, y)
            weighted = curve.add(G, weighted, run)
    steps = length
    while steps > 1:
        weighted = curve.double(G, weighted)
        steps >>= 1
    store_xyzz(G, out, 0, curve.add(G, total, weighted))


@jit
def _horner(F, sums, windows, c, parts, out):
    """XYZZ out[0] = Σ 2^(cw)·sums[w·parts + part]."""
    acc = curve.identity(F)
    for w in range(windows - 1, -1, -1):
        for _ in range(c):
            acc = curve.double(F, acc)
        for part in range(parts):
            acc = curve.add(F, acc, load_xyzz(F, sums, w * parts + part))
    store_xyzz(F, out, 0, acc)


# The driver ----------------------------------------------------------------------------------


def choose_window(counts: NDArray[np.int64]) -> int:
    """The window width that the cost model finds cheapest for scalars with these bit lengths.

    ``counts[b]`` scalars have b bits. In affine additions: each window costs one for every
    scalar that reaches it, and REDUCTION_COST for every bucket.
    """
    longest = int(np.flatnonzero(counts)[-1])
    reach = counts[::-1].cumsum()[::-1]  # reach[b]: scalars of at least b bits
    best, best_cost = 2, float("inf")
    for c in range(2, MAX_WINDOW + 1):
        windows = -(-(longest + 1) // c)
        entries = sum(int(reach[max(1, c * w - 1)]) for w in range(windows))
        cost = entries * (1 + SORT_COST) + windows * (1 << (c - 1)) * REDUCTION_COST
        if cost < best_cost:
            best, best_cost = c, cost
    return best


class _Workspace:
    """Scratch of one thread: sorted entries, segment buffers, buckets; ``words`` of the widest point."""

    def __init__(self, entries: int, buckets: int, words: int, segment: int) -> None:
        strands = min(buckets, STRANDS)
        batch = max(segment, 2 * strands)
        self.entries = np.empty(entries, dtype=np.uint32)
        self.starts = np.empty(buckets + 2, dtype=np.int64)
        self.room = np.empty(3 * SEGMENT_BYTES // 8, dtype=np.uint64)
        self.buckets = np.empty((4 * strands + buckets, words), dtype=np.uint64)
        self.kinds = np.empty(batch, dtype=np.uint8)
        self.key = np.empty(segment, dtype=np.uint32)
        self.indices = (np.empty(batch, np.int64), np.empty(batch, np.int64), np.empty(batch, np.int64))


def workspace_bytes(words: int, n: int) -> int:
    """Scratch of one thread for n points of ``words`` words, at the widest window."""
    buckets = min(1 << (MAX_WINDOW - 1), n)
    return 3 * SEGMENT_BYTES + 8 * words * (4 * min(STRANDS, buckets) + buckets) + 8 * buckets + 4 * n


@dataclass(frozen=True)
class Points:
    """Affine points in memory: uint64[n, 2·field.words], any alignment.

    Attributes:
        plain: the coordinates' field.
        field, scratch: the same field as the chosen path takes bases and keeps partial sums.
        segment, strands: the batch sizes that the path is fastest with.
    """

    plain: Field
    field: Field
    scratch: Field
    words: Words
    segment: int
    strands: int

    @classmethod
    def of(cls, plain: Field, words: Words, path: str) -> Points:
        """``path``: see :mod:`gpuprover.cpu.path`."""
        segment = 1 << (SEGMENT_BYTES // (16 * plain.words)).bit_length() - 1
        if path == "portable":
            return cls(plain, plain, plain, words, segment // 2, STRANDS // 2)
        bases, scratch = (LaneField(plain.params, plain.degree, raw=raw) for raw in (True, False))
        return cls(plain, bases, scratch, words, segment, STRANDS)

    def __len__(self) -> int:
        return len(self.words)


def address(array: NDArray[np.generic]) -> int:
    """Where an array's data begin; the caller keeps the array alive."""
    return int(array.__array_interface__["data"][0])


def recode(scalars: Words, windows: int, c: int) -> Words:
    """Phase 1 for canonical, contiguous uint64[n, limbs] -> flat words for :func:`signed_digit`.

    windows·c must exceed the scalars' bits.
    """
    n, limbs = scalars.shape
    value = sum(1 << (c * w + c - 1) for w in range(windows - 1))
    recoded = np.empty(n * limbs, dtype=np.uint64)
    _recode(scalars.reshape(-1), limbs, n, ints_to_words([value], limbs)[0], recoded)
    return recoded


def msm(bases: Sequence[Points], scalars: Words, job: Job) -> list[Words]:
    """Σ scalars[i]·points[i] for each of several bases of equal length.

    Args:
        bases: any mix of G1 and G2 points of one curve.
        scalars: canonical, C-contiguous, aligned uint64[n, limbs].
    Returns:
        One affine point uint64[2·F.words] per bases.
    """
    n, limbs = scalars.shape
    results = [np.zeros(2 * b.field.words, dtype=np.uint64) for b in bases]
    if n == 0 or not bases:
        return results
    flat = scalars.reshape(-1)
    counts = np.zeros(64 * limbs + 1, dtype=np.int64)
    lengths = np.empty(n, dtype=np.uint16)
    _bit_lengths(flat, limbs, n, counts, lengths)
    if counts[0] == n:
        return results
    counts[0] = 0
    longest = int(np.flatnonzero(counts)[-1])
    c = choose_window(counts)
    windows = -(-(longest + 1) // c)
    half = 1 << (c - 1)

    recoded = recode(scalars, windows, c)
    reach = np.zeros(windows, dtype=np.int64)
    order = np.empty(int(counts.sum()), dtype=np.uint32)
    _order_by_top(lengths, n, c, windows, reach, order)
    del lengths

    # More threads than windows: a window's entries are split, each part with its own buckets.
    parts = max(1, min(-(-job.threads // windows), n // (4 * half) or 1))
    tasks = [(w, part) for w in range(windows) for part in range(parts) if reach[w]]
    widest = max(b.field.words for b in bases)
    segment = max(b.segment for b in bases)
    spare: list[_Workspace] = []
    sums = [np.zeros((windows * parts, 4 * b.field.words), dtype=np.uint64) for b in bases]

    def run(task: tuple[int, int]) -> None:
        w, part = task
        lo, hi = (int(reach[w]) * part // parts, int(reach[w]) * (part + 1) // parts)
        try:
            space = spare.pop()
        except IndexError:
            space = _Workspace(-(-int(reach[0]) // parts) + 1, half, 2 * widest, segment)
        signed = w < windows - 1
        _sort_window(recoded, limbs, order, lo, hi, c * w, c, signed, space.starts, space.entries)
        for points, total in zip(bases, sums, strict=True):
            F, words = points.scratch, 2 * points.field.words
            # The same memory serves both groups; rows of this group are laid out from its start.
            strands = min(half, points.strands)
            table = space.buckets.reshape(-1)[: (4 * strands + half) * words]
            table[4 * strands * words :] = 0
            room = address(table)
            buckets = room + 8 * 4 * strands * words
            accumulate(
                points.field, F, address(points.words), space.starts, space.entries, buckets,
                address(space.room), space.kinds[: points.segment], space.key, *space.indices, job.stop,
            )  # fmt: skip
            out = address(total) + 8 * 4 * F.words * (w * parts + part)
            _reduce(F, room, half, strands, space.kinds, *space.indices, out, job.stop)
        spare.append(space)

    job.map(run, tasks, progress=True)
    for points, total, result in zip(bases, sums, results, strict=True):
        F = points.plain
        scratch = np.empty((6, F.words), dtype=np.uint64)
        _horner(F, address(total), windows, c, parts, address(scratch))
        curve.normalise(F, address(scratch), address(result), address(scratch[4:]), 1)
    return results
