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
5. The host adds Σ 2^(cg)·S_g over the sets, if there are several.

Full tables (D = W) leave one set; without tables (D = 1) there are W. One Digits, the result of 1 and 2,
serves every bases of one plan: Groth16's A and B in G1 and B in G2 share theirs.

Sources: Pippenger's method as in Bernstein, Doumen, Lange, Oosterwijk, "Faster batch forgery
identification" (2012), section 4; precomputed multiples: Brickell, Gordon, McCurley, Wilson, "Fast
exponentiation with precomputation" (1992); shared inversions by Montgomery's trick.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from gpuprover.backend import Form, PointMath
from gpuprover.cuda.device import MAIN, Address, Allocator, Device, Launch, Program, Stream
from gpuprover.cuda.msm_launches import (
    BLOCK,
    PAIRING,
    accumulator_bytes,
    digits_program,
    pairing_bytes,
    pairs_program,
    sort_launches,
    sum_launches,
    sums_program,
)
from gpuprover.cuda.msm_plan import (
    TUNING,
    MsmPlan,
    lanes_of,
    point_bytes,
)
from gpuprover.curves import CurveParams, Group
from gpuprover.errors import DeviceError
from gpuprover.job import Job
from gpuprover.limbs import Words


def fixed_multiples(curve: CurveParams) -> list[int]:
    """What a point is multiplied by for the table of the kernel multiply_fixed: d·2^(8w), mod r."""
    return [(d << 8 * w) % curve.r for w in range(curve.scalar.bytes) for d in range(1, 256)]


class Bases(NamedTuple):
    """Points on the device with their multiples: ``plan.depth`` rows of ``n`` affine points."""

    plan: MsmPlan
    group: Group
    n: int
    address: Address


class Digits(NamedTuple):
    """Scalars as entries in the order of buckets.

    Attributes:
        n: the number of scalars.
        points: the number of bases, of which further ones than n take no part.
        memory: the address of all that stays.
        sorted: the address of u32[entries]: row·points + i, the sign in the highest bit.
        starts: the address of u32[plan.buckets + 1]: where buckets begin, and the number of entries.
        stream: the stream whose work makes them.
        scratch: that work's memory, where it is kept until the digits are released.
    """

    plan: MsmPlan
    n: int
    points: int
    memory: Address
    sorted: int
    starts: int
    stream: Stream
    scratch: Address | None = None


class Sum(NamedTuple):
    """A sum on its way: ``plan.sets`` XYZZ points at ``address``, once the stream gets there."""

    plan: MsmPlan
    group: Group
    stream: Stream
    address: Address
    scratch: Address | None


# The driver --------------------------------------------------------------------------------------


class Msm:
    """Multi-scalar multiplications on one device over one curve.

    What the methods return is made by work that the streams may still have before them. Memory is released
    while work on it is pending only where the main stream alone uses it; another stream that gets such memory
    waits for the main one.
    """

    def __init__(
        self,
        device: Device,
        curve: CurveParams,
        points: PointMath,
        job: Job | None = None,
        allocator: Allocator | None = None,
    ) -> None:
        """``points`` adds up sets of buckets; ``allocator`` stands in for the device's own allocations."""
        self.device, self.curve, self.points, self.job = device, curve, points, job or Job(threads=1)
        self.memory: Allocator = allocator or device
        self._lanes: dict[Group, int] = {}

    @staticmethod
    def programs(curve: CurveParams) -> list[Program]:
        """All that :class:`Msm` launches, for :meth:`Device.prepare`."""
        return [digits_program(curve), *(sums_program(curve, group) for group in Group)]

    def _run(self, launches: Sequence[Launch], stream: Stream, *beginnings: int) -> None:
        """Launches on a stream; ``beginnings`` of SCALARS, BASES, DIGITS, SCRATCH and OUT."""
        self.device.run(launches, (0, *beginnings), stream, self.job.check)

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
        program, size = sums_program(self.curve, group), point_bytes(self.curve, group)
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
            shared=accumulator_bytes(self.curve, group),
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
        points: int | None = None,
    ) -> Digits:
        """Phases 1 and 2 for n scalars at an address of the device, which the main stream has put there.

        Args:
            points: the number of the bases that the sums are over, at least n; by default n.
            form: CANONICAL, uint64[n, words] of values below r; or MONTGOMERY, uint64[n, limbs].
            stream: on another than the main one, scratch is kept until the digits are released.
        """
        points = n if points is None else points
        assert n <= points <= plan.n
        assert form in (Form.CANONICAL, Form.MONTGOMERY)
        limbs = words or self.curve.scalar.limbs
        launches = sort_launches(plan, n, points, form, limbs, self.device.properties)
        sizes = (launches.kept, launches.scratch) if n else (launches.kept,)
        memory, *scratch = self._allocate(stream, *sizes)
        starts, held = memory + launches.starts, scratch[0] if scratch and stream != MAIN else None
        result = Digits(plan, n, points, memory, memory + launches.sorted, starts, stream, held)
        try:
            self.device.fill(starts, 0, 4 * (plan.buckets + 1), stream)
            if n:
                self.device.fill(scratch[0] + launches.counts, 0, 4 * plan.bins, stream)
                self._run(launches.sort, stream, scalars, 0, memory, scratch[0], 0)
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

    # Sums --------------------------------------------------------------------------------------

    def sum(
        self, bases: Bases, digits: Digits, stream: Stream = MAIN, reductions: Stream | None = None
    ) -> Sum:
        """Phases 3 and 4, the latter on a stream of its own if there is one.

        Where another stream than the main one has a part in it, scratch is kept until :meth:`finish`, and the
        digits have to be.
        """
        plan, group = digits.plan, bases.group
        assert (plan.c, plan.depth, digits.points) == (bases.plan.c, bases.plan.depth, bases.n)
        last = stream if reductions is None else reductions
        if digits.n == 0:
            size = plan.sets * 2 * point_bytes(self.curve, group)
            (out,) = self._allocate(last, size)
            self.device.fill(out, 0, size, last)
            return Sum(plan, group, last, out, None)
        properties = self.device.properties
        if group not in self._lanes:
            shared = accumulator_bytes(self.curve, group)
            self._lanes[group] = self._resident(sums_program(self.curve, group), "accumulate", shared)
        pairing = self._pairing(plan, group)
        launches = sum_launches(plan, group, digits.n, self._lanes[group], pairing, properties)
        out, scratch = self._allocate(stream, launches.out, launches.scratch)
        regions = 0, bases.address, digits.memory, scratch, out
        try:
            if digits.stream not in (stream, MAIN):
                self.device.wait(stream, digits.stream)
            self._run(launches.accumulate, stream, *regions)
            if last != stream:
                self.device.wait(last, stream)
            self._run(launches.reduce, last, *regions)
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

    def _pairing(self, plan: MsmPlan, group: Group) -> int:
        """Blocks of add_pairs that the device holds at once; 0 where there are no rounds of them."""
        if not plan.rounds:
            return 0
        program, shared = pairs_program(self.curve, group), pairing_bytes(self.curve)
        resident = self.device.resident_blocks(program, "add_pairs", PAIRING, shared)
        return resident * self.device.properties.multiprocessors

    # Results -----------------------------------------------------------------------------------

    def finish(self, *sums: Sequence[Sum]) -> list[Words]:
        """Phase 5 -> each sum as an affine point, uint64[words].

        Waits for them and frees them. A sum comes in pieces, one at least, of one group and plan. The sums
        of a group share an inversion.
        """
        try:
            found: dict[int, Words] = {}
            for group in Group:
                mine = [i for i, pieces in enumerate(sums) if pieces[0].group is group]
                if mine:
                    found.update(zip(mine, self._finish(group, [sums[i] for i in mine]), strict=True))
            return [found[i] for i in range(len(sums))]
        finally:
            for piece in (piece for pieces in sums for piece in pieces):
                self.memory.release(piece.address)
                if piece.scratch is not None:
                    self.memory.release(piece.scratch)

    def _finish(self, group: Group, sums: Sequence[Sequence[Sum]]) -> list[Words]:
        """Those of one group; Σ 2^(c·k)·S_k over the sets of each piece."""
        sets = [len(pieces) * pieces[0].plan.sets for pieces in sums]
        xyzz = np.empty((sum(sets), 2 * group.words(self.curve)), dtype=np.uint64)
        end = 0
        for piece in (piece for pieces in sums for piece in pieces):
            start, end = end, end + piece.plan.sets
            self.device.read(xyzz[start:end], piece.address, piece.stream)
        points, found, end = self.points.affine(group, xyzz), list[Words](), 0
        for pieces, count in zip(sums, sets, strict=True):
            start, end = end, end + count
            if count == 1:
                found.append(points[start])
                continue
            plan = pieces[0].plan
            assert all(piece.plan == plan for piece in pieces)
            weights = [1 << plan.c * k for k in range(plan.sets)] * len(pieces)
            found.append(self.points.linear_combination(group, points[start:end], weights))
        return found

    def sum_slices(
        self,
        plan: MsmPlan,
        bases: Sequence[tuple[Group, Words]],
        scalars: Sequence[tuple[int, int]],
        copies: Stream,
        form: Form = Form.CANONICAL,
        words: int | None = None,
    ) -> list[list[Words]]:
        """Sums with bases that stay on the host and come in slices of ``plan.n`` points, each sent once.

        While the device works on a slice, the next is on its way.

        Args:
            bases: arrays of the same number of affine points.
            scalars: address on the device and number of each of several, no more than points; ``form`` and
                ``words`` as in :meth:`digits`.
            copies: a stream beside the main one, for the slices on their way.

        Returns:
            for each of the scalars, the sum over each of the bases.
        """
        assert plan.depth == 1
        n = max((count for _, count in scalars), default=0)
        if not n:
            return [[np.zeros(g.words(self.curve), dtype=np.uint64) for g, _ in bases] for _ in scalars]
        row = 8 * (words or self.curve.scalar.limbs)
        starts = range(0, n, plan.n)
        room = sum(point_bytes(self.curve, group) * plan.n for group, _ in bases)
        staged: list[Address] = []
        results: list[list[Sum]] = [[] for _ in scalars for _ in bases]

        def send(k: int) -> list[Bases]:
            sent, to = [], int(staged[k % 2])
            for group, points in bases:
                slice_ = points[starts[k] : min(n, starts[k] + plan.n)]
                self._write(to, slice_, copies)
                sent.append(Bases(plan, group, len(slice_), Address(to)))
                to += plan.n * point_bytes(self.curve, group)
            return sent

        try:
            staged += self._allocate(copies, *[room] * min(2, len(starts)))
            slices = send(0)
            for k, start in enumerate(starts):
                self.device.wait(copies, MAIN)
                self.device.wait(MAIN, copies)
                for i, (at, count) in enumerate(scalars):
                    mine = min(slices[0].n, count - start)
                    # Of no scalars at all, too, there is a sum.
                    if mine <= 0 and start:
                        continue
                    digits = self.digits(plan, at + start * row, mine, form, words, points=slices[0].n)
                    try:
                        for j, part in enumerate(slices):
                            results[i * len(bases) + j].append(self.sum(part, digits))
                    finally:
                        self.release(digits)
                if k + 1 < len(starts):
                    slices = send(k + 1)
            begun, results = results, []
            found = self.finish(*begun)
            return [found[i : i + len(bases)] for i in range(0, len(found), len(bases))]
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
