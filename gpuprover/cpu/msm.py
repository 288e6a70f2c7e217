"""Multi-scalar multiplication: Pippenger's buckets, filled by batches of affine additions.

Σ s_i·P_i in phases (n points, windows of c bits, W windows, A = one affine addition):

1. Recode: s_i + Σ_w 2^(cw + c − 1) turns every digit into a signed one in [−2^(c−1), 2^(c−1))
   without a carry to hand on; the top window stays unsigned. Cost: one pass.
2. Order: indices sorted by the highest window their scalar reaches. Zeros drop out, a
   one lives in window 0 only, small values in the low windows.
3. Per window, sort the entries by bucket (counting sort): two passes over n digits.
4. Per window, add up every bucket by rounds of pairs that share an inversion: n·A.
5. Per window, Σ d·B_d by running sums on many strands at once: 2^c·A.
6. Horner over the windows: 256 doublings.

Phases 4 and 5 are written once for any processor (:mod:`buckets`) and once for AVX-512 IFMA
(:mod:`buckets_lanes`).

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

from gpuprover.cpu import buckets, buckets_lanes, curve
from gpuprover.cpu.buckets import Costs
from gpuprover.cpu.curve import load_xyzz, store_xyzz
from gpuprover.cpu.field import Field
from gpuprover.cpu.jit import inline, jit
from gpuprover.cpu.lanes import LaneField
from gpuprover.job import Job
from gpuprover.limbs import Words, address, ints_to_words

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
def _sort_window(recoded, words, order, lo, hi, shift, c, signed, starts, entries, digits):
    """Entries (index and sign) of order[lo:hi] by bucket |digit| − 1.

    Bucket b ends up in entries[starts[b]:starts[b + 1]].
    """
    buckets = 1 << (c - 1)
    starts[:] = 0
    for k in range(lo, hi):
        d = signed_digit(recoded, words, order[k], shift, c, signed)
        digits[k - lo] = d
        starts[abs(d) + 1] += 1
    starts[1] = 0  # the zeros
    # starts[b + 2] counts bucket b; prefix sums make starts[b + 1] its first place …
    for b in range(1, buckets + 2):
        starts[b] += starts[b - 1]
    for k in range(lo, hi):
        d = np.int64(digits[k - lo])
        if d != 0:
            place = starts[abs(d)]
            entries[place] = np.int64(order[k]) | (d >> 63 & 0x80000000)
            starts[abs(d)] = place + 1
    # … and after placing, starts[b + 1] is the end of bucket b, so starts[b] its beginning.
    starts[0] = 0


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


def choose_window(counts: NDArray[np.int64], costs: Costs) -> int:
    """The window width that the cost model finds cheapest for scalars with these bit lengths.

    ``counts[b]`` scalars have b bits. In affine additions, each window costs one and its sorting for every
    scalar that reaches it, and its reduction.
    """
    longest = int(np.flatnonzero(counts)[-1])
    reach = counts[::-1].cumsum()[::-1]  # reach[b]: scalars of at least b bits
    best, best_cost = 2, float("inf")
    for c in range(2, MAX_WINDOW + 1):
        windows = -(-(longest + 1) // c)
        entries = sum(int(reach[max(1, c * w - 1)]) for w in range(windows))
        cost = entries * (1 + costs.entry) + windows * ((1 << (c - 1)) * costs.bucket + costs.window)
        if cost < best_cost:
            best, best_cost = c, cost
    return best


@dataclass(frozen=True)
class Points:
    """Affine points in memory: uint64[n, 2·plain.words], any alignment.

    Attributes:
        plain: the coordinates' field.
        field, scratch: the same field as the chosen path takes bases and keeps partial sums.
    """

    plain: Field
    field: Field
    scratch: Field
    words: Words

    @classmethod
    def of(cls, plain: Field, words: Words, path: str) -> Points:
        """``path``: see :mod:`gpuprover.cpu.path`."""
        if path == "portable":
            return cls(plain, plain, plain, words)
        bases, scratch = (LaneField(plain.params, plain.degree, raw=raw) for raw in (True, False))
        return cls(plain, bases, scratch, words)

    def __len__(self) -> int:
        return len(self.words)


def _buckets(field: Field) -> type[buckets.Buckets] | type[buckets_lanes.Buckets]:
    return buckets_lanes.Buckets if isinstance(field, LaneField) else buckets.Buckets


class _Workspace:
    """Scratch of one thread: a window's sorted entries and its buckets."""

    def __init__(self, fields: Sequence[Field], entries: int, half: int) -> None:
        self.entries = np.empty(entries, dtype=np.uint32)
        self.digits = np.empty(entries, dtype=np.int32)
        self.starts = np.empty(half + 2, dtype=np.int64)
        self.buckets = _buckets(fields[0])(fields, entries, half)


def workspace_bytes(fields: Sequence[Field], n: int) -> int:
    """Scratch of one thread for n points, at the widest window that pays."""
    half = min(1 << (MAX_WINDOW - 1), 1 << max(1, n.bit_length() - 1))
    return 8 * n + 8 * half + 64 + _buckets(fields[0]).bytes(fields, n, half)


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
    results = [np.zeros(2 * b.plain.words, dtype=np.uint64) for b in bases]
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
    c = choose_window(counts, _buckets(bases[0].scratch).COSTS)
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
    fields = [b.scratch for b in bases]
    spare: list[_Workspace] = []
    sums = [np.zeros((windows * parts, 4 * b.plain.words), dtype=np.uint64) for b in bases]

    def run(task: tuple[int, int]) -> None:
        w, part = task
        lo, hi = (int(reach[w]) * part // parts, int(reach[w]) * (part + 1) // parts)
        try:
            space = spare.pop()
        except IndexError:
            space = _Workspace(fields, -(-int(reach[0]) // parts) + 1, half)
        _sort_window(
            recoded,
            limbs,
            order,
            lo,
            hi,
            c * w,
            c,
            w < windows - 1,
            space.starts,
            space.entries,
            space.digits,
        )
        for points, total in zip(bases, sums, strict=True):
            out = address(total) + 8 * 4 * points.plain.words * (w * parts + part)
            space.buckets.sum(
                points.scratch,
                address(points.words),
                space.starts,
                space.entries,
                out,
                job.stop,
            )
        spare.append(space)

    job.map(run, tasks, progress=True)
    for points, total, result in zip(bases, sums, results, strict=True):
        F = points.plain
        scratch = np.empty((6, F.words), dtype=np.uint64)
        _horner(F, address(total), windows, c, parts, address(scratch))
        curve.normalise(F, address(scratch), address(result), address(scratch[4:]), 1)
    return results
