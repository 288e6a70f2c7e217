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

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np

from gpuprover import reference
from gpuprover.backend import Form
from gpuprover.cuda.device import MAIN, Address, Device, Program, Properties, Stream
from gpuprover.curves import AffinePoint as HostPoint
from gpuprover.curves import CurveParams, Group
from gpuprover.errors import DeviceError, InvalidInput, OutOfMemory
from gpuprover.job import Job
from gpuprover.limbs import Words, words_to_field

MERGE_HEADS, SUM_RUNS, SUM_TREE, FINISH_SETS = range(4)
"""Steps of the kernel combine, as in kernels/msm.cu."""
ALIGNMENT = 256
WARP = 32
BLOCK = 128
"""Lanes of a block of the kernels over points."""
PAIRING = 256
"""Lanes of a block of add_pairs, as in kernels/pairs.cu."""
TREE = 32
"""Threads of a block that sums a tree; in G2 a thread is two lanes."""

MAX_WINDOW = 24
LARGEST_LOW = 12
"""Bits of a bucket's number that the second level of the sort tells apart, at most."""
MAX_ROWS = 1 << 31
"""Rows of a table: an entry has 31 bits for one."""
MAX_ENTRIES = 1 << 32


@dataclass(frozen=True)
class Costs:
    """What the cost model knows of a device: predictions, until rows of a benchmark stand here.

    Attributes:
        clock: cycles a second.
        multiplier: lanes of wide multiplications that a multiprocessor takes in a cycle.
        share: of the multiplier's rate that additions reach.
        entry: seconds for recoding and sorting an entry, times multiprocessors.
        launch: seconds from one launch to the next.
        doubling: seconds for the host's doubling of a point in G1.
    """

    clock: float = 1.98e9
    multiplier: int = 32
    share: float = 0.7
    entry: float = 2.6e-9
    launch: float = 4e-6
    doubling: float = 5e-6


@dataclass(frozen=True)
class Tuning:
    """Sizes that change speed and memory and never the result; predictions, too.

    Attributes:
        block: threads of a block over scalars or entries.
        tile: entries that a block sorts by their low bits.
        shortest: entries that a thread adds up, at least.
        runs: threads that the reduction of buckets shall have.
        span: points that a block adds up in a tree; a power of 2.
        inversions: points that share an inversion.
        segments: threads that accumulate; None: as many as the device holds at once.
        rounds: of additions in pairs before the accumulation, at most; each halves the points of a bucket.
        piece: seconds of predicted work in one launch, after which cancellation is looked at.
    """

    block: int = 256
    tile: int = 8192
    shortest: int = 8
    runs: int = 1 << 15
    span: int = 64
    inversions: int = 16
    segments: int | None = None
    rounds: int = 0
    piece: float = 0.05


COSTS = Costs()
TUNING = Tuning()


def _pairs_program(curve: CurveParams, group: Group) -> Program:
    return Program(curve, "pairs.cu", (("GROUP", group.name[1]),))


class Allocator(Protocol):
    def allocate(self, size: int) -> Address: ...

    def release(self, address: Address) -> None: ...


# Plans ------------------------------------------------------------------------------------------


def windows_for(curve: CurveParams, c: int) -> int:
    """The fewest digits in (−2^(c−1), 2^(c−1)] that reach every integer up to (r − 1)/2."""
    count, largest = 0, 0
    while largest < (curve.r - 1) // 2:
        largest += 1 << (c * count + c - 1)
        count += 1
    return count


def point_bytes(curve: CurveParams, group: Group) -> int:
    """Of an affine point; an XYZZ one takes twice that."""
    return 8 * group.words(curve)


def _lanes(group: Group) -> int:
    """Lanes of a warp that hold a point together."""
    return 1 if group is Group.G1 else 2


def fixed_multiples(curve: CurveParams) -> list[int]:
    """What a point is multiplied by for the table of the kernel multiply_fixed: d·2^(8w), mod r."""
    return [(d << 8 * w) % curve.r for w in range(curve.scalar.bytes) for d in range(1, 256)]


@dataclass(frozen=True)
class MsmPlan:
    """How sums of up to ``n`` points at a time are done.

    Attributes:
        groups: those of the bases that share digits, one for each.
        c: bits of a window.
        depth: rows of the tables.
    """

    curve: CurveParams
    groups: tuple[Group, ...]
    n: int
    c: int
    depth: int
    tuning: Tuning = field(default=TUNING, repr=False)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.curve.name, len(self.groups), self.n, self.c, self.depth))

    def __post_init__(self) -> None:
        if not (2 <= self.c <= MAX_WINDOW and 1 <= self.depth <= self.windows and self.n >= 0):
            raise InvalidInput(f"msm: no plan has c = {self.c}, depth = {self.depth}, n = {self.n}")
        if self.depth * self.n >= MAX_ROWS or self.windows * self.n >= MAX_ENTRIES:
            raise InvalidInput(f"msm: {self.n} points at a time are too many for {self.windows} windows")

    @cached_property
    def windows(self) -> int:
        return windows_for(self.curve, self.c)

    @cached_property
    def sets(self) -> int:
        """Sets of buckets."""
        return -(-self.windows // self.depth)

    @cached_property
    def buckets(self) -> int:
        return self.sets << (self.c - 1)

    @cached_property
    def low(self) -> int:
        """Bits of a bucket's number that are left to the second level of the sort."""
        return min(self.c - 1, LARGEST_LOW, self.buckets.bit_length() // 2)

    @cached_property
    def bins(self) -> int:
        return self.buckets >> self.low

    @cached_property
    def run(self) -> int:
        """Buckets that one thread adds up first; a power of 2."""
        wanted = max(1, self.buckets // self.tuning.runs)
        return min(1 << (self.c - 1), max(4, 1 << (wanted.bit_length() - 1)))

    @cached_property
    def rounds(self) -> int:
        """Of additions in pairs: as many as leave buckets a point on average; places fit 31 bits."""
        if self.places(1) >= MAX_ROWS:
            return 0
        return min(self.tuning.rounds, max(0, (self.n * self.windows // self.buckets).bit_length() - 1))

    def places(self, rounds: int) -> int:
        """Of points after so many rounds, at most; see kernels/pairs.cu."""
        places = self.n * self.windows
        for _ in range(rounds):
            places = (places + self.buckets) // 2
        return places

    def table_bytes(self, group: Group) -> int:
        return self.depth * self.n * point_bytes(self.curve, group)

    def digits_bytes(self) -> int:
        """Of a Digits once it is made."""
        return _digit_parts(self, self.n).size

    def sort_bytes(self, properties: Properties) -> int:
        """Beside it, while it is made."""
        return _sort_parts(self, self.n, _share(self, self.n, properties)).size

    def sum_bytes(self, group: Group, properties: Properties) -> int:
        """Of one sum on the way, at most."""
        threads = properties.multiprocessors * properties.threads // _lanes(group)
        launches = _launches(self, group, properties)
        return _sum_parts(self, group, _segments(self, self.n, launches * threads)).size

    def bytes(self, properties: Properties) -> int:
        """All of the above, with the tables, and with sums that run at the same time."""
        sums = sum(self.table_bytes(g) + self.sum_bytes(g, properties) for g in self.groups)
        return sums + self.digits_bytes() + self.sort_bytes(properties)


def mixed_addition(curve: CurveParams, group: Group) -> int:
    """Wide multiplications of an XYZZ point + an affine one: 6 products, 2 squares, a sum of two products."""
    product, square, pair = _multiplications(curve, group)
    return 6 * product + 2 * square + pair


def paired_addition(curve: CurveParams, group: Group) -> int:
    """Of two affine points whose division shares an inversion: 5 products and a square."""
    product, square, _ = _multiplications(curve, group)
    return 5 * product + square


def full_addition(curve: CurveParams, group: Group) -> int:
    """Of two XYZZ points."""
    product, square, pair = _multiplications(curve, group)
    return 10 * product + 2 * square + pair


def _multiplications(curve: CurveParams, group: Group) -> tuple[int, int, int]:
    """Of a product, a square, a sum of two products; see kernels/field.cuh and fp2_lanes.cuh."""
    limbs = 2 * curve.base.limbs
    rows = limbs * limbs
    if group is Group.G1:
        return 2 * rows, rows + limbs * (limbs + 1) // 2, 3 * rows
    return 6 * rows, 4 * rows, 12 * rows


def _rate(properties: Properties) -> float:
    """Wide multiplications a second that additions reach."""
    return COSTS.share * COSTS.multiplier * COSTS.clock * properties.multiprocessors


def predicted_seconds(plan: MsmPlan, properties: Properties) -> float:
    """One Digits and a sum for each group, one after another, for random scalars. A prediction."""
    entries = plan.n * plan.windows
    seconds = entries * COSTS.entry / properties.multiprocessors
    for group in plan.groups:
        full = full_addition(plan.curve, group)
        runs = plan.buckets // plan.run
        seconds += _accumulate_seconds(plan, group, properties)
        seconds += full * 2 * (plan.buckets + runs) / _rate(properties)
        # What waits for one addition after another, at a warp's pace on its scheduler of four.
        chain = 2 * plan.run + 2 * plan.c + runs.bit_length()
        seconds += chain * full * 4 / (COSTS.multiplier / 32) / COSTS.clock / _lanes(group)
        seconds += 20 * COSTS.launch
        seconds += plan.c * (plan.sets - 1) * COSTS.doubling * (1 if group is Group.G1 else 3)
    return seconds


def _accumulate_seconds(plan: MsmPlan, group: Group, properties: Properties) -> float:
    left = plan.n * plan.windows >> plan.rounds
    pairs = sum(_pairs_seconds(plan, group, k, properties) for k in range(plan.rounds))
    return pairs + left * mixed_addition(plan.curve, group) / _rate(properties)


def _pairs_seconds(plan: MsmPlan, group: Group, k: int, properties: Properties) -> float:
    """Of the round after k others; the inversions of its blocks, which run side by side, are left out."""
    return (plan.n * plan.windows >> (k + 1)) * paired_addition(plan.curve, group) / _rate(properties)


@lru_cache(maxsize=256)
def _launches(plan: MsmPlan, group: Group, properties: Properties) -> int:
    """Into which accumulation is cut."""
    return max(1, round(_accumulate_seconds(plan, group, properties) / plan.tuning.piece))


def choose_plan(
    curve: CurveParams,
    groups: Sequence[Group],
    n: int,
    available: int,
    properties: Properties,
    keep: bool = True,
) -> MsmPlan:
    """The plan that the cost model finds fastest within ``available`` bytes.

    Where ``n`` points do not fit, tables are given up first; then the plan's ``n`` is smaller, and
    :meth:`Msm.sum_slices` takes as many at a time.

    Args:
        groups: of the bases that will share digits.
        keep: whether bases stay for many sums; if not, they get no tables.
    Raises:
        OutOfMemory: not even a few points at a time fit.
    """
    points = max(1, n)
    while True:
        best, best_seconds = None, float("inf")
        for plan in _candidates(curve, tuple(groups), points, keep and points >= n):
            # Slices come into two places in turns.
            staged = 0 if points >= n else sum(plan.table_bytes(g) for g in groups)
            if plan.bytes(properties) + staged > available:
                continue
            seconds = predicted_seconds(plan, properties)
            if seconds < best_seconds:
                best, best_seconds = plan, seconds
        if best is not None:
            return best
        if points <= 256:
            raise OutOfMemory(f"msm: {available} bytes of device memory do not hold {points} points' sum")
        points = -(-points // 2)


def _candidates(curve: CurveParams, groups: tuple[Group, ...], n: int, tables: bool) -> Iterator[MsmPlan]:
    for c in range(2, MAX_WINDOW + 1):
        windows = windows_for(curve, c)
        depths = {-(-windows // sets) for sets in range(1, windows + 1)} if tables else {1}
        for depth in sorted(depths):
            if depth * n < MAX_ROWS and windows * n < MAX_ENTRIES:
                yield MsmPlan(curve, groups, n, c, depth)


# Memory -----------------------------------------------------------------------------------------


class _Layout:
    """Parts of one allocation, by name."""

    def __init__(self, sizes: dict[str, int]) -> None:
        self.offsets: dict[str, int] = {}
        self.size = 0
        for name, size in sizes.items():
            self.offsets[name] = self.size
            self.size += -(-size // ALIGNMENT) * ALIGNMENT

    def at(self, start: int) -> dict[str, int]:
        return {name: start + offset for name, offset in self.offsets.items()}


def _share(plan: MsmPlan, n: int, properties: Properties) -> int:
    """Scalars of a block: enough blocks to fill the device with threads, if n allows."""
    return plan.tuning.block * max(1, min(16, n // (properties.multiprocessors * properties.threads)))


def _tiles(plan: MsmPlan, n: int) -> int:
    return n * plan.windows // plan.tuning.tile + plan.bins


@lru_cache(maxsize=256)
def _digit_parts(plan: MsmPlan, n: int) -> _Layout:
    return _Layout({"sorted": 4 * n * plan.windows, "starts": 4 * (plan.buckets + 1)})


@lru_cache(maxsize=256)
def _sort_parts(plan: MsmPlan, n: int, share: int) -> _Layout:
    entries = n * plan.windows
    sizes = {
        "counts": 4 * plan.bins,
        "bins": 4 * (plan.bins + 1),
        "tiles": 4 * (plan.bins + 1),
        "bin places": 4 * plan.bins * -(-n // share),
        "bucket places": 4 * _tiles(plan, n) << plan.low,
        "keys": 2 * entries,
        "values": 4 * entries,
    }
    return _Layout(sizes)


def _segments(plan: MsmPlan, n: int, threads: int) -> int:
    """Threads that accumulate: no more than get the shortest segment."""
    return max(1, min(threads, -(-n * plan.windows // plan.tuning.shortest)))


@lru_cache(maxsize=256)
def _sum_parts(plan: MsmPlan, group: Group, segments: int) -> _Layout:
    xyzz = 2 * point_bytes(plan.curve, group)
    runs = plan.buckets // plan.run
    merged = -(-segments * _lanes(group) // WARP)
    pairs = {"list starts": 4 * (plan.buckets + 1), "list": 4 * plan.places(plan.rounds)}
    # Two rounds take turns.
    pairs |= {f"pairs {k}": xyzz // 2 * plan.places(k + 1) for k in range(min(2, plan.rounds))}
    sizes = {
        "sums": xyzz * plan.buckets,
        "plain": xyzz * runs,
        "weighted": xyzz * runs,
        "heads": xyzz * segments,
        "merged": xyzz * merged,
        "head keys": 4 * segments,
        "merged keys": 4 * merged,
        **(pairs if plan.rounds else {}),
    }
    return _Layout(sizes)


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
        threads = self._resident(program, kernel, shared) // _lanes(group)
        share = max(1, min(inversions, -(-n // threads)))
        blocks = -(-min(threads, -(-n // share)) * _lanes(group) // BLOCK)
        at_once = share * blocks * BLOCK // _lanes(group)
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
        kept = _digit_parts(plan, n)
        share = _share(plan, n, self.device.properties)
        parts = _sort_parts(plan, n, share) if n else None
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
        """Into ``out``, with scratch ``at`` the parts of :func:`_sort_parts`."""
        plan, n, block = out.plan, out.n, out.plan.tuning.block
        counts, bins, tiles, keys, values = (at[k] for k in ("counts", "bins", "tiles", "keys", "values"))
        bin_places, bucket_places = at["bin places"], at["bucket places"]
        recoding: tuple[int, ...] = (scalars, words, int(form is Form.MONTGOMERY), n, share)
        recoding += (plan.c, plan.windows, plan.sets, plan.low, plan.bins)
        blocks, cut, tile = -(-n // share), _tiles(plan, n), plan.tuning.tile
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
        launches = _launches(plan, group, self.device.properties)
        lanes = self._resident(self._sums_programs[group], "accumulate", self._accumulator_bytes(group))
        segments = plan.tuning.segments or _segments(plan, digits.n, launches * lanes // _lanes(group))
        parts = _sum_parts(plan, group, segments)
        out, scratch = self._allocate(stream, size, parts.size)
        try:
            if digits.stream not in (stream, MAIN):
                self.device.wait(stream, digits.stream)
            at = parts.at(scratch)
            self._accumulate(*self._paired(bases, digits, stream, at), stream, at, segments, launches)
            if last != stream:
                self.device.wait(last, stream)
            kernels = _Kernels(self._sums_programs[group], _lanes(group))
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
        program, lanes = _pairs_program(self.curve, group), _lanes(group)
        shared = 2 * PAIRING * 8 * self.curve.base.limbs
        resident = self.device.resident_blocks(program, "add_pairs", PAIRING, shared)
        resident *= self.device.properties.multiprocessors
        points, entries = int(bases.address), digits.sorted
        for k in range(plan.rounds):
            seconds = _pairs_seconds(plan, group, k, self.device.properties)
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
        return BLOCK // _lanes(group) * 2 * point_bytes(self.curve, group)

    def _accumulate(
        self, bases: Bases, digits: Digits, stream: Stream, at: dict[str, int], segments: int, launches: int
    ) -> None:
        plan, group = digits.plan, bases.group
        threads = BLOCK // _lanes(group)
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
