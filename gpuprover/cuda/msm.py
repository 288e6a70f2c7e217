"""Multi-scalar multiplication on a device: Pippenger's buckets over precomputed multiples of fixed bases.

Σ s_i·P_i in phases, for n points, W windows of c bits, a table of D rows, and G = ⌈W/D⌉ sets of 2^(c−1)
buckets:

0. Table, once for a set of bases: row j holds 2^(cGj)·P_i. D·n affine points; c·G doublings for each.
1. Recode: s or r − s, whichever is smaller, in signed digits. The digit of window w = jG + g adds point
   (j, i) to a bucket of set g. Zeros drop out.
2. Sort the entries by bucket: counting sort, high bits first. Two passes over the scalars, two over the
   entries.
3. Accumulate: every thread takes equally many entries, wherever buckets begin and end; up to n·W mixed
   additions. What a thread has of a bucket that began before it is its head; trees merge the heads.
   With ``Tuning.rounds``, rounds of affine additions in pairs come first, whose divisions share inversions:
   each halves the points of every bucket.
4. Σ k·B_k in each set: short running sums, then a tree that adds up what each bit of the index takes.
   2·G·2^(c−1) additions, and some 20 + c more one after another.
5. The host adds Σ 2^(cg)·S_g over the sets.

Full tables (D = W) leave one set; without tables (D = 1) there are W. One Digits, the result of 1 and 2,
serves every bases of one plan: Groth16's A and B in G1 and B in G2 share theirs.

Sources: Pippenger's method as in Bernstein, Doumen, Lange, Oosterwijk, "Faster batch forgery
identification" (2012), section 4; precomputed multiples: Brickell, Gordon, McCurley, Wilson, "Fast
exponentiation with precomputation" (1992); shared inversions by Montgomery's trick.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from gpuprover import reference
from gpuprover.backend import Form
from gpuprover.cuda.device import MAIN, Address, Allocator, Device, Program, Stream
from gpuprover.cuda.msm_plan import (
    TUNING,
    WARP,
    MsmPlan,
    accumulations,
    digit_pieces,
    lanes_of,
    most_tiles,
    pairs_seconds,
    point_bytes,
    scalars_of_block,
    segments_for,
    sort_pieces,
    sum_pieces,
)
from gpuprover.curves import AffinePoint as HostPoint
from gpuprover.curves import CurveParams, Group
from gpuprover.errors import DeviceError
from gpuprover.job import Job
from gpuprover.limbs import Words, words_to_field

MERGE_HEADS, SUM_RUNS, SUM_TREE, FINISH_SETS = range(4)
"""Steps of the kernel combine, as in kernels/msm.cu."""
BLOCK = 128
"""Lanes of a block of the kernels over points."""
PAIRING = 256
"""Lanes of a block of add_pairs, as in kernels/pairs.cu."""
TREE = 32
"""Threads of a block that sums a tree; in G2 a thread is two lanes."""


def _pairs_program(curve: CurveParams, group: Group) -> Program:
    return Program(curve, "pairs.cu", (("GROUP", group.name[1]),))


def fixed_multiples(curve: CurveParams) -> list[int]:
    """What a point is multiplied by for the table of the kernel multiply_fixed: d·2^(8w), mod r."""
    return [(d << 8 * w) % curve.r for w in range(curve.scalar.bytes) for d in range(1, 256)]


@dataclass(frozen=True)
class Bases:
    """Points on the device with their multiples: ``plan.depth`` rows of ``n`` affine points."""

    plan: MsmPlan
    group: Group
    n: int
    address: Address


@dataclass(frozen=True)
class Digits:
    """Scalars as entries in the order of buckets.

    Attributes:
        sorted: u32[entries]: row·n + i, the sign in the highest bit.
        starts: u32[plan.buckets + 1]: where buckets begin; the last is the number of entries.
        stream: of the work that makes them.
        scratch: of that work, where it is kept until the digits are released.
    """

    plan: MsmPlan
    n: int
    memory: Address
    sorted: int
    starts: int
    stream: Stream
    scratch: Address | None = None


@dataclass
class Sum:
    """A sum on its way: ``plan.sets`` XYZZ points at ``address``, once the stream gets there."""

    plan: MsmPlan
    group: Group
    stream: Stream
    address: Address
    scratch: Address | None


class _Kernels(NamedTuple):
    """Those of a group, and the lanes of theirs that hold a point together."""

    program: Program
    lanes: int


# The driver --------------------------------------------------------------------------------------


class Msm:
    """Multi-scalar multiplications on one device over one curve.

    What the methods return is made by work that the streams may still have before them. Memory is released
    while work on it is pending only where the main stream alone uses it; another stream that gets such memory
    waits for the main one.
    """

    def __init__(
        self, device: Device, curve: CurveParams, job: Job | None = None, allocator: Allocator | None = None
    ) -> None:
        """``allocator`` stands in for the device's own allocations."""
        self.device, self.curve, self.job = device, curve, job or Job(threads=1)
        self.memory: Allocator = allocator or device
        self._digits_program, *sums = self.programs(curve)
        self._sums_programs = dict(zip(Group, sums, strict=True))

    @staticmethod
    def programs(curve: CurveParams) -> list[Program]:
        """All that :class:`Msm` launches, for :meth:`Device.prepare`."""
        return [
            Program(curve, "digits.cu"),
            *(Program(curve, "msm.cu", (("GROUP", group.name[1]),)) for group in Group),
        ]

    def _allocate(self, stream: Stream, *sizes: int) -> list[Address]:
        """Memory for work of a stream, in so many pieces.

        It may have been given back with work of the main stream on it still to be done. Other work of that
        stream comes after it by itself; another stream waits.
        """
        found: list[Address] = []
        try:
            for size in sizes:
                found.append(self.memory.allocate(size))
            if stream != MAIN:
                self.device.wait(stream, MAIN)
        except BaseException:
            for address in found:
                self.memory.release(address)
            raise
        return found

    # Bases -------------------------------------------------------------------------------------

    def bases(self, plan: MsmPlan, group: Group, points: Words | Address, n: int | None = None) -> Bases:
        """A copy of affine points with their table, on the main stream.

        Args:
            points: uint64[n, words] on the host, or n of them on the device.
        """
        size = point_bytes(self.curve, group)
        count = len(points) if isinstance(points, np.ndarray) else n
        assert count is not None
        assert count <= plan.n
        (address,) = self._allocate(MAIN, max(1, plan.depth * count * size))
        try:
            if isinstance(points, np.ndarray):
                self._write(address, points, MAIN)
            elif count:
                self.device.copy(address, points, count * size)
            if count:
                self._fill_table(plan, group, count, address)
        except BaseException:
            self.memory.release(address)
            raise
        return Bases(plan, group, count, address)

    def _write(self, to: int, points: Words, stream: Stream) -> None:
        """In pieces, since the host's array may be a strided view and a long one; by the job's threads."""
        row = 8 * points.shape[1]

        def send(bounds: tuple[int, int]) -> None:
            lo, hi = bounds
            self.device.write(to + lo * row, np.ascontiguousarray(points[lo:hi]), stream)

        pieces = self.job.ranges(len(points), smallest=1 << 15, largest=1 << 18)
        if len(pieces) > 1:
            self.job.map(send, pieces)
        else:
            self.job.check()
            send(pieces[0])

    def _fill_table(self, plan: MsmPlan, group: Group, n: int, table: int) -> None:
        size, doublings = point_bytes(self.curve, group), plan.c * plan.sets
        for row in range(1, plan.depth):
            start = table + (row - 1) * n * size

            def launch(lo: int, hi: int, start: int = start) -> tuple[int, ...]:
                return start, start + n * size, lo, hi, doublings

            self._in_shares("multiply_row", group, n, plan.tuning.inversions, launch)

    def _in_shares(
        self,
        kernel: str,
        group: Group,
        n: int,
        inversions: int,
        arguments: Callable[[int, int], tuple[int, ...]],
        shared: int = 0,
    ) -> None:
        """Launches a kernel on ranges of [0, n) whose threads invert once for up to so many points.

        Their share and scratch follow the ``arguments`` for a range.
        """
        if not n:
            return
        program, size = self._sums_programs[group], point_bytes(self.curve, group)
        threads = self._resident(program, kernel, shared) // lanes_of(group)
        share = max(1, min(inversions, -(-n // threads)))
        blocks = -(-min(threads, -(-n // share)) * lanes_of(group) // BLOCK)
        at_once = share * blocks * BLOCK // lanes_of(group)
        (scratch,) = self._allocate(MAIN, 3 * at_once * size // 2)
        try:
            for lo in range(0, n, at_once):
                self.job.check()
                given = arguments(lo, min(n, lo + at_once))
                self.device.launch(program, kernel, blocks, BLOCK, *given, share, scratch, shared=shared)
        finally:
            self.memory.release(scratch)

    def multiples(self, group: Group, table: int, scalars: int, n: int, out: int) -> None:
        """n multiples of one point, affine, on the main stream.

        Args:
            table: address of the multiples that :func:`fixed_multiples` names, affine.
            scalars: address of canonical ones.
        """
        words = self.curve.scalar.limbs
        self._in_shares(
            "multiply_fixed",
            group,
            n,
            TUNING.inversions,
            lambda lo, hi: (table, scalars, words, out, lo, hi),
            shared=self._accumulator_bytes(group),
        )

    def _resident(self, program: Program, kernel: str, shared: int = 0) -> int:
        """Lanes that the device holds at once."""
        blocks = self.device.resident_blocks(program, kernel, BLOCK, shared)
        return self.device.properties.multiprocessors * blocks * BLOCK

    # Scalars -----------------------------------------------------------------------------------

    def digits(
        self,
        plan: MsmPlan,
        scalars: int,
        n: int,
        form: Form = Form.CANONICAL,
        words: int | None = None,
        stream: Stream = MAIN,
    ) -> Digits:
        """Phases 1 and 2 for n scalars at an address of the device, which the main stream has put there.

        Args:
            form: CANONICAL, uint64[n, words] of values below r; or MONTGOMERY, uint64[n, limbs].
            stream: on another than the main one, scratch is kept until the digits are released.
        """
        assert n <= plan.n
        assert form in (Form.CANONICAL, Form.MONTGOMERY)
        kept = digit_pieces(plan, n)
        share = scalars_of_block(plan, n, self.device.properties)
        parts = sort_pieces(plan, n, share) if n else None
        memory, *scratch = self._allocate(stream, kept.size, *([parts.size] if parts else []))
        held = scratch[0] if scratch and stream != MAIN else None
        result = Digits(plan, n, memory, **kept.at(memory), stream=stream, scratch=held)
        try:
            if parts is not None:
                at = parts.at(scratch[0])
                self._sort(result, scalars, form, words or self.curve.scalar.limbs, share, at, stream)
            else:
                self.device.fill(result.starts, 0, 4 * (plan.buckets + 1), stream)
        except BaseException:
            if stream != MAIN:
                with suppress(DeviceError):
                    self.device.synchronize()
            for address in (memory, *scratch):
                self.memory.release(address)
            raise
        if stream == MAIN:
            for address in scratch:
                self.memory.release(address)
        return result

    def _sort(
        self,
        out: Digits,
        scalars: int,
        form: Form,
        words: int,
        share: int,
        at: dict[str, int],
        stream: Stream,
    ) -> None:
        """Into ``out``, with scratch ``at`` the parts of :func:`sort_pieces`."""
        plan, n, block = out.plan, out.n, out.plan.tuning.block
        counts, bins, tiles, keys, values = (at[k] for k in ("counts", "bins", "tiles", "keys", "values"))
        bin_places, bucket_places = at["bin places"], at["bucket places"]
        recoding: tuple[int, ...] = (scalars, words, int(form is Form.MONTGOMERY), n, share)
        recoding += (plan.c, plan.windows, plan.sets, plan.low, plan.bins)
        blocks, cut, tile = -(-n // share), most_tiles(plan, n), plan.tuning.tile
        for_bins, for_buckets, for_scan = 4 * plan.bins, 4 << plan.low, 4 * (WARP + 1)

        def launch(kernel: str, blocks: int, shared: int, *arguments: int) -> None:
            self.device.launch(
                self._digits_program, kernel, blocks, block, *arguments, shared=shared, stream=stream
            )

        self.job.check()
        self.device.fill(counts, 0, 4 * plan.bins, stream)
        self.device.fill(out.starts, 0, 4 * plan.buckets, stream)
        launch("count_bins", blocks, for_bins, *recoding, counts, bin_places)
        launch("place_bins", 1, for_scan, counts, plan.bins, tile, bins, tiles)
        launch("scatter_bins", blocks, for_bins, *recoding, bins, bin_places, keys, values)
        in_tiles = bins, tiles, plan.bins, tile, plan.low, out.starts, bucket_places
        launch("count_buckets", cut, for_buckets, keys, *in_tiles)
        launch("place_buckets", plan.bins, for_scan, bins, plan.bins, plan.low, out.starts)
        launch("scatter_buckets", cut, for_buckets, keys, values, *in_tiles, out.sorted)

    # Sums --------------------------------------------------------------------------------------

    def sum(
        self, bases: Bases, digits: Digits, stream: Stream = MAIN, reductions: Stream | None = None
    ) -> Sum:
        """Phases 3 and 4, the latter on a stream of its own if there is one.

        Where another stream than the main one has a part in it, scratch is kept until :meth:`finish`, and the
        digits have to be.
        """
        plan, group = digits.plan, bases.group
        assert (plan.c, plan.depth, digits.n) == (bases.plan.c, bases.plan.depth, bases.n)
        last = stream if reductions is None else reductions
        size = plan.sets * 2 * point_bytes(self.curve, group)
        if digits.n == 0:
            (out,) = self._allocate(last, size)
            self.device.fill(out, 0, size, last)
            return Sum(plan, group, last, out, None)
        launches = accumulations(plan, group, self.device.properties)
        lanes = self._resident(self._sums_programs[group], "accumulate", self._accumulator_bytes(group))
        segments = plan.tuning.segments or segments_for(plan, digits.n, launches * lanes // lanes_of(group))
        parts = sum_pieces(plan, group, segments)
        out, scratch = self._allocate(stream, size, parts.size)
        try:
            if digits.stream not in (stream, MAIN):
                self.device.wait(stream, digits.stream)
            at = parts.at(scratch)
            self._accumulate(*self._paired(bases, digits, stream, at), stream, at, segments, launches)
            if last != stream:
                self.device.wait(last, stream)
            kernels = _Kernels(self._sums_programs[group], lanes_of(group))
            self._merge(kernels, last, at, segments)
            self._reduce(plan, kernels, digits, last, at, out)
        except BaseException:
            with suppress(DeviceError):
                self.device.synchronize()
            self.memory.release(scratch)
            self.memory.release(out)
            raise
        if last != MAIN:
            return Sum(plan, group, last, out, scratch)
        self.memory.release(scratch)
        return Sum(plan, group, last, out, None)

    def _paired(
        self, bases: Bases, digits: Digits, stream: Stream, at: dict[str, int]
    ) -> tuple[Bases, Digits]:
        """What is left to accumulate after the rounds of additions in pairs."""
        plan, group = digits.plan, bases.group
        if not plan.rounds:
            return bases, digits
        program, lanes = _pairs_program(self.curve, group), lanes_of(group)
        shared = 2 * PAIRING * 8 * self.curve.base.limbs
        resident = self.device.resident_blocks(program, "add_pairs", PAIRING, shared)
        resident *= self.device.properties.multiprocessors
        points, entries = int(bases.address), digits.sorted
        for k in range(plan.rounds):
            seconds = pairs_seconds(plan, group, k, self.device.properties)
            launches = max(1, round(seconds / plan.tuning.piece))
            needed = -(-plan.places(k + 1) // plan.tuning.shortest)
            blocks = max(1, min(launches * resident, -(-needed * lanes // PAIRING)))
            threads, out = blocks * PAIRING // lanes, at[f"pairs {k % 2}"]
            common = points, entries, digits.starts, plan.buckets, k, threads
            for piece in range(launches):
                first, end = blocks * piece // launches, blocks * (piece + 1) // launches
                if first < end:
                    self.job.check()
                    self.device.launch(
                        program, "add_pairs", end - first, PAIRING, *common, first * PAIRING // lanes, out,
                        shared=shared, stream=stream,
                    )  # fmt: skip
            points, entries = out, 0
        self.device.launch(
            program, "list_pairs", resident, PAIRING, digits.starts, plan.buckets, plan.rounds,
            at["list starts"], at["list"], stream=stream,
        )  # fmt: skip
        left = replace(digits, sorted=at["list"], starts=at["list starts"])
        return replace(bases, address=Address(points)), left

    def _accumulator_bytes(self, group: Group) -> int:
        """Shared memory of a block of accumulate: an XYZZ point a thread."""
        return BLOCK // lanes_of(group) * 2 * point_bytes(self.curve, group)

    def _accumulate(
        self, bases: Bases, digits: Digits, stream: Stream, at: dict[str, int], segments: int, launches: int
    ) -> None:
        plan, group = digits.plan, bases.group
        threads = BLOCK // lanes_of(group)
        blocks = -(-segments // threads)
        for k in range(launches):
            first, end = blocks * k // launches, blocks * (k + 1) // launches
            if first < end:
                self.job.check()
                self.device.launch(
                    self._sums_programs[group], "accumulate", end - first, BLOCK,
                    bases.address, digits.sorted, digits.starts, plan.buckets, segments, plan.tuning.shortest,
                    first * threads, at["sums"], at["heads"], at["head keys"],
                    shared=self._accumulator_bytes(group), stream=stream,
                )  # fmt: skip

    def _combine(
        self, of: _Kernels, stream: Stream, step: int, threads: int,
        a: int, b: int, c: int, index: int, keys: int, count: int, size: int, block: int = BLOCK,
    ) -> None:  # fmt: skip
        self.job.check()
        self.device.launch(
            of.program, "combine", -(-threads * of.lanes // block), block,
            step, a, b, c, index, keys, count, size, stream=stream,
        )  # fmt: skip

    def _merge(self, of: _Kernels, stream: Stream, at: dict[str, int], count: int) -> None:
        """Heads by warps, then what is left of them, until it is one warp. The two arrays take turns."""
        heads, keys, merged, merged_keys = (at[k] for k in ("heads", "head keys", "merged", "merged keys"))
        warp = WARP // of.lanes
        while True:
            self._combine(
                of, stream, MERGE_HEADS, count, heads, at["sums"], merged, keys, merged_keys, count, 0
            )
            if count <= warp:
                return
            count = -(-count // warp)
            heads, keys, merged, merged_keys = merged, merged_keys, heads, keys

    def _reduce(
        self, plan: MsmPlan, of: _Kernels, digits: Digits, stream: Stream, at: dict[str, int], out: int
    ) -> None:
        plain, weighted = at["plain"], at["weighted"]
        total = plan.buckets // plan.run
        runs = total // plan.sets
        self._combine(
            of, stream, SUM_RUNS, total, plain, weighted, at["sums"], digits.starts, 0, total, plan.run
        )
        bits, block = 0, TREE * of.lanes
        while runs >> bits > 1:
            span = min(plan.tuning.span, runs >> bits)
            blocks = (total >> bits) // span * (bits + 2)
            self._combine(
                of, stream, SUM_TREE, blocks * TREE, plain, weighted, 0, 0, 0, bits, span, block=block
            )
            bits += span.bit_length() - 1
        self._combine(
            of,
            stream,
            FINISH_SETS,
            plan.sets * TREE,
            plain,
            weighted,
            out,
            0,
            0,
            runs,
            plan.run,
            block=block,
        )

    # Results -----------------------------------------------------------------------------------

    def finish(self, sums: Sequence[Sum]) -> HostPoint:
        """Phase 5: waits for sums of one group and plan, adds them up and frees them. Infinity for none."""
        points: list[Any] = []
        try:
            if not sums:
                return None
            plan, group = sums[0].plan, sums[0].group
            host = _HostPoints(reference.fq(self.curve) if group is Group.G1 else reference.fq2(self.curve))
            for s in sums:
                assert (s.plan, s.group) == (plan, group)
                words = np.empty(plan.sets * 2 * group.words(self.curve), dtype=np.uint64)
                self.device.read(words, s.address, s.stream)
                flat: list[Any] = [*words_to_field(self.curve.base, words.reshape(-1, self.curve.base.limbs))]
                if group is Group.G2:
                    flat = [*zip(flat[::2], flat[1::2], strict=True)]
                found = [tuple(flat[k : k + 4]) for k in range(0, len(flat), 4)]
                # Set by set, so that the doublings are done once.
                points = [host.add(p, q) for p, q in zip(points, found, strict=True)] if points else found
            point = points.pop()
            while points:
                for _ in range(plan.c):
                    point = host.double(point)
                point = host.add(point, points.pop())
            result: HostPoint = host.affine(point)
            return result
        finally:
            for s in sums:
                self.memory.release(s.address)
                if s.scratch is not None:
                    self.memory.release(s.scratch)

    def sum_slices(
        self,
        plan: MsmPlan,
        bases: Sequence[tuple[Group, Words]],
        scalars: int,
        copies: Stream,
        form: Form = Form.CANONICAL,
        words: int | None = None,
    ) -> list[HostPoint]:
        """Sums of the same scalars with bases that stay on the host and come in slices of ``plan.n`` points.

        While the device works on a slice, the next is on its way.

        Args:
            bases: arrays of the same number of affine points.
            scalars: address of as many scalars on the device; ``form`` and ``words`` as in :meth:`digits`.
            copies: a stream beside the main one, for the slices on their way.
        """
        assert plan.depth == 1
        n = len(bases[0][1])
        row = 8 * (words or self.curve.scalar.limbs)
        starts = range(0, n, plan.n)
        room = sum(point_bytes(self.curve, group) * plan.n for group, _ in bases)
        staged: list[Address] = []
        results: list[list[Sum]] = [[] for _ in bases]
        finished: list[HostPoint] = []

        def send(k: int) -> list[Bases]:
            sent, to = [], int(staged[k % 2])
            for group, points in bases:
                slice_ = points[starts[k] : starts[k] + plan.n]
                self._write(to, slice_, copies)
                sent.append(Bases(plan, group, len(slice_), Address(to)))
                to += plan.n * point_bytes(self.curve, group)
            return sent

        try:
            staged += self._allocate(copies, *[room] * min(2, max(1, len(starts))))
            slices = send(0) if n else []
            for k, start in enumerate(starts):
                self.device.wait(copies, MAIN)
                self.device.wait(MAIN, copies)
                digits = self.digits(plan, scalars + start * row, slices[0].n, form, words)
                try:
                    for i, part in enumerate(slices):
                        results[i].append(self.sum(part, digits))
                finally:
                    self.release(digits)
                if k + 1 < len(starts):
                    slices = send(k + 1)
            while results:
                finished.append(self.finish(results.pop(0)))
            return finished
        except BaseException:
            # Slices may be on their way. After the last sum nothing is.
            with suppress(DeviceError):
                self.device.synchronize()
            raise
        finally:
            for address in staged:
                self.memory.release(address)
            for s in (s for pending in results for s in pending):
                self.memory.release(s.address)

    def release(self, *handles: Bases | Digits) -> None:
        """Gives back their memory; of digits, once other streams than the main one are done with them."""
        for handle in handles:
            self.memory.release(handle.address if isinstance(handle, Bases) else handle.memory)
            if isinstance(handle, Digits) and handle.scratch is not None:
                self.memory.release(handle.scratch)


class _HostPoints:
    """XYZZ points over plain integers; the formulas of kernels/curve.cuh."""

    def __init__(self, field: reference.Field) -> None:
        self.field = field

    def double(self, p: tuple[Any, ...]) -> tuple[Any, ...]:
        F = self.field
        x, y, zz, zzz = p
        u = F.add(y, y)
        v = F.mul(u, u)
        w, s, xx = F.mul(u, v), F.mul(x, v), F.mul(x, x)
        m = F.add(F.add(xx, xx), xx)
        x = F.sub(F.mul(m, m), F.add(s, s))
        y = F.sub(F.mul(m, F.sub(s, x)), F.mul(w, y))
        return x, y, F.mul(v, zz), F.mul(w, zzz)

    def add(self, p: tuple[Any, ...], q: tuple[Any, ...]) -> tuple[Any, ...]:
        F = self.field
        x1, y1, zz1, zzz1 = p
        x2, y2, zz2, zzz2 = q
        if zz1 == F.zero:
            return q
        if zz2 == F.zero:
            return p
        u, s = F.mul(x1, zz2), F.mul(y1, zzz2)
        d, r = F.sub(F.mul(x2, zz1), u), F.sub(F.mul(y2, zzz1), s)
        if d == F.zero and r == F.zero:
            return self.double(p)
        dd = F.mul(d, d)
        ddd, v = F.mul(d, dd), F.mul(u, dd)
        x = F.sub(F.sub(F.mul(r, r), ddd), F.add(v, v))
        y = F.sub(F.mul(r, F.sub(v, x)), F.mul(s, ddd))
        return x, y, F.mul(F.mul(zz1, zz2), dd), F.mul(F.mul(zzz1, zzz2), ddd)

    def affine(self, p: tuple[Any, ...]) -> Any:
        """(x, y), or None."""
        F = self.field
        x, y, zz, zzz = p
        if zz == F.zero:
            return None
        t = F.inverse(zzz)
        by_z = F.mul(zz, t)
        return F.mul(x, F.mul(by_z, by_z)), F.mul(y, t)
