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
:func:`choose_split`, fed with the scalars' real bit lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpuprover.cpu.buckets import Costs
from gpuprover.cpu.compiled import Kernels
from gpuprover.cpu.layout import Field
from gpuprover.cpu.path import CpuPath
from gpuprover.errors import InvalidInput
from gpuprover.job import Job
from gpuprover.limbs import Words, address, ints_to_words

_kernels, _curve = Kernels("msm"), Kernels("curve")

MAX_WINDOW = 16
EXTENSION = 2.4
"""An addition in G2, in additions in G1."""
BRIEF_COST = 1 << 12
"""Additions that take a few milliseconds at most."""
SMALLEST_PIECE = 1 << 13
"""Scalars below which a pass over them is not shared among threads."""


class Split(NamedTuple):
    """How a sum is cut into tasks: windows of ``c`` bits, the entries of each in ``parts``."""

    c: int
    parts: int

    def windows(self, longest: int) -> int:
        """For scalars of at most ``longest`` bits."""
        return -(-(longest + 1) // self.c)


def top_window(bits: int, c: int, windows: int) -> int:
    """The highest window that a scalar of so many bits reaches.

    Digits below window w add up to at most 2^(cw)·(2^(c−1) − 1)/(2^c − 1) >= 2^(cw)/3 for c >= 2: a
    scalar under cw − 1 bits hands nothing on to window w.
    """
    return min((bits + 1) // c, windows - 1)


def choose_split(counts: NDArray[np.int64], costs: Costs, threads: int) -> Split:
    """What the cost model finds cheapest for scalars with these bit lengths.

    ``counts[b]`` scalars have b bits. In affine additions, each window costs one and its sorting for every
    scalar that reaches it, and each part of it a reduction. Threads share that evenly, but for some of the
    last tasks.
    """
    longest = int(np.flatnonzero(counts)[-1])
    reach = counts[::-1].cumsum()[::-1]  # reach[b]: scalars of at least b bits
    best, best_cost = Split(2, 1), float("inf")
    for c in range(2, MAX_WINDOW + 1):
        windows = -(-(longest + 1) // c)
        entries = [int(reach[max(1, c * w - 1)]) * (1 + costs.entry) for w in range(windows)]
        reduction = (1 << (c - 1)) * costs.bucket + costs.window
        for parts in range(1, max(2, threads + 1)):
            cost = (sum(entries) + windows * parts * reduction) / threads
            if threads > 1:
                cost += (entries[0] / parts + reduction) / 16
            if cost < best_cost:
                best, best_cost = Split(c, parts), cost
    return best


@dataclass(frozen=True)
class Points:
    """Affine points in memory: uint64[n, 2·plain.words], any alignment.

    Attributes:
        plain: the coordinates' field.
        path: the path that they are worked on.
        parts: how many of the words' points stand for one: itself and multiples of it.
    """

    plain: Field
    words: Words
    path: CpuPath
    parts: int = 1

    @cached_property
    def field(self) -> Field:
        """The coordinates' field as the path's kernels take it."""
        return self.path.coordinates(self.plain)

    def __len__(self) -> int:
        return len(self.words) // self.parts

    def first(self, n: int) -> Points:
        """The first n points."""
        return self if n == len(self) else replace(self, words=self.words[: n * self.parts])


class _Workspace:
    """Scratch of one thread: a window's sorted entries and its buckets."""

    def __init__(self, path: CpuPath, fields: Sequence[Field], entries: int, half: int) -> None:
        self.entries = np.empty(entries, dtype=np.uint32)
        self.digits = np.empty(entries, dtype=np.int32)
        self.starts = np.empty(half + 2, dtype=np.int64)
        self.buckets = path.buckets(fields, entries, half)


def workspace_bytes(path: CpuPath, plain: Sequence[Field], n: int) -> int:
    """Scratch of one thread for n points over any of the fields, at the widest window that pays."""
    half = min(1 << (MAX_WINDOW - 1), 1 << max(1, n.bit_length() - 1))
    return 8 * n + 8 * half + 64 + path.buckets.bytes([path.coordinates(F) for F in plain], n, half)


def request_bytes(n: int, scalar_bytes: int) -> int:
    """What a sum of n points holds beside its bases and scalars: recoded scalars, their order."""
    return n * (scalar_bytes + 6)


def recode(scalars: Words, windows: int, c: int, job: Job | None = None) -> Words:
    """Phase 1 for canonical, contiguous uint64[n, limbs] -> flat words for the kernel ``signed_digit``.

    windows·c must exceed the scalars' bits.
    """
    n, limbs = scalars.shape
    offset = ints_to_words([sum(1 << (c * w + c - 1) for w in range(windows - 1))], limbs)[0]
    recoded, flat = np.empty(n * limbs, dtype=np.uint64), scalars.reshape(-1)
    if job is None:
        _kernels.recode(flat, limbs, 0, n, offset, recoded)
    else:
        job.map(
            lambda r: _kernels.recode(flat, limbs, r[0], r[1], offset, recoded),
            job.ranges(n, smallest=SMALLEST_PIECE),
        )
    return recoded


class Task(NamedTuple):
    """One part of one window, for the bases in ``share``; the cost is in affine additions in G1."""

    cost: float
    window: int
    part: int
    share: range


class Sum:
    """One set of scalars with the bases that they multiply, on the way through the phases."""

    def __init__(self, bases: Sequence[Points], scalars: Words, job: Job, split: Split | None = None) -> None:
        """Phases 1 and 2; by the cost model's split if none is given.

        Raises:
            InvalidInput: a scalar fills all bits of its words.
        """
        self._bases, self._stop = bases, job.stop
        self.fields = [b.field for b in bases]
        self.tasks: list[Task] = []
        n, self._limbs = scalars.shape
        ranges = job.ranges(n, smallest=SMALLEST_PIECE)
        counts = np.zeros((len(ranges), 64 * self._limbs + 1), dtype=np.int64)
        lengths, flat = np.empty(n, dtype=np.uint16), scalars.reshape(-1)
        job.map(
            lambda k: _kernels.bit_lengths(flat, self._limbs, *ranges[k], counts[k], lengths),
            range(len(ranges)),
            brief=ranges.brief,
        )
        counts[:, 0] = 0
        total = counts.sum(axis=0)
        if not bases or not total.any():
            return
        longest, costs = int(np.flatnonzero(total)[-1]), bases[0].path.buckets.COSTS
        if longest == 64 * self._limbs:  # no room for the carry of signed digits
            raise InvalidInput(
                f"scalars: expected integers below 2^{longest - 1}, found one of {longest} bits"
            )
        self.path = bases[0].path
        self.split = split or choose_split(total, costs, job.threads)
        self.half = 1 << (self.split.c - 1)
        self._windows = self.split.windows(longest)
        self._recoded = recode(scalars, self._windows, self.split.c, job)

        tops = np.array(
            [top_window(b, self.split.c, self._windows) for b in range(len(total))], dtype=np.int64
        )
        # Places in the order: by window from the highest down, then by range.
        by_window = np.zeros((self._windows, len(ranges)), dtype=np.int64)
        for k in range(len(ranges)):
            np.add.at(by_window[:, k], tops, counts[k])
        places = by_window[::-1].ravel().cumsum().reshape(by_window.shape)[::-1]
        self._reach = places[:, -1].copy()
        places = places - by_window
        self._order = np.empty(int(total.sum()), dtype=np.uint32)
        job.map(
            lambda k: _kernels.order_by_top(lengths, *ranges[k], tops, places[:, k].copy(), self._order),
            range(len(ranges)),
            brief=ranges.brief,
        )
        parts = self.split.parts
        self._totals = [np.zeros((self._windows * parts, 4 * b.plain.words), dtype=np.uint64) for b in bases]
        # Few tasks for many threads: every base sorts for itself.
        together = range(len(bases))
        shares = [together] if 2 * job.threads <= self._windows else [range(k, k + 1) for k in together]
        for w in range(self._windows):
            entries = self._reach[w] / parts
            if entries:
                sums = entries + self.half * costs.bucket + costs.window
                for share in shares:
                    cost = entries * costs.entry + sums * sum(
                        EXTENSION ** (bases[k].plain.degree - 1) for k in share
                    )
                    self.tasks += [Task(cost, w, part, share) for part in range(parts)]

    @property
    def entries(self) -> int:
        """The most that a task has."""
        return -(-int(self._reach[0]) // self.split.parts) + 1

    def run(self, task: Task, space: _Workspace) -> None:
        """Phases 3 to 5."""
        c, parts = self.split
        _, window, part, share = task
        lo, hi = (int(self._reach[window]) * k // parts for k in (part, part + 1))
        starts = space.starts[: self.half + 2]
        _kernels.sort_window(
            self._recoded, self._limbs, self._order, lo, hi, c * window, c, window < self._windows - 1,
            starts, space.entries, space.digits,
        )  # fmt: skip
        for k in share:
            points, out = self._bases[k], address(self._totals[k][window * parts + part])
            space.buckets.sum(
                points.field, address(points.words), starts, space.entries, hi - lo, out, self._stop
            )

    def results(self) -> list[Words]:
        """Phase 6: one affine point uint64[2·F.words] per bases."""
        found = []
        for k, points in enumerate(self._bases):
            F = points.plain
            result = np.zeros(2 * F.words, dtype=np.uint64)
            if self.tasks:
                room = np.empty((6, F.words), dtype=np.uint64)
                c, parts = self.split
                _kernels.horner(F, address(self._totals[k]), self._windows, c, parts, address(room))
                _curve.normalise(F, address(room), address(result), address(room[4:]), 1)
            found.append(result)
        return found


def msm(
    requests: Sequence[tuple[Sequence[Points], Words]], job: Job, split: Split | None = None
) -> list[list[Words]]:
    """Σ scalars[i]·points[i] for each of several bases of equal length, request by request.

    With several threads, the tasks of all requests are shared among them, the longest first.

    Args:
        requests: bases, any mix of G1 and G2 points of one curve, with canonical, C-contiguous,
            aligned scalars uint64[n, limbs].
        split: a split in place of the cost model's choice, to measure that.
    Returns:
        For each request one affine point uint64[2·F.words] per bases.
    """
    if job.threads == 1 and len(requests) > 1:
        # Nothing to gain, and memory for one at a time is enough.
        results = []
        for i, request in enumerate(requests):
            with job.subphase(i, len(requests)):
                results += msm([request], job, split)
        return results
    sums = [Sum(bases, scalars, job, split) for bases, scalars in requests]
    busy = [s for s in sums if s.tasks]
    if busy:
        fields = list(dict.fromkeys(F for s in busy for F in s.fields))
        entries, half = max(s.entries for s in busy), max(s.half for s in busy)
        path = busy[0].path
        spare: list[_Workspace] = []

        def run(entry: tuple[Task, Sum]) -> None:
            task, s = entry
            try:
                space = spare.pop()
            except IndexError:
                space = _Workspace(path, fields, entries, half)
            s.run(task, space)
            spare.append(space)

        tasks = [(task, s) for s in busy for task in s.tasks]
        tasks.sort(key=lambda entry: -entry[0].cost)
        job.map(run, tasks, progress=True, brief=tasks[0][0].cost <= BRIEF_COST)
    return [s.results() for s in sums]
