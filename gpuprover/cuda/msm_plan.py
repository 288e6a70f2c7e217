"""Plans of multi-scalar multiplications on a device: windows, tables, predicted times, memory.

Pure functions of sizes and of a device's properties. The phases that a plan is about are at the head of
:mod:`gpuprover.cuda.msm`, which carries plans out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from gpuprover.cuda.device import Properties
from gpuprover.curves import CurveParams, Group
from gpuprover.errors import InvalidInput, OutOfMemory

ALIGNMENT = 256
"""Pieces of an allocation begin at multiples of so many bytes."""
WARP = 32
MAX_WINDOW = 24
LARGEST_LOW = 12
"""Bits of a bucket's number that the second level of the sort tells apart, at most."""
MAX_ROWS = 1 << 31
"""Rows of a table: an entry has 31 bits for one."""
MAX_ENTRIES = 1 << 32


@dataclass(frozen=True)
class Costs:
    """The cost model's figures of a device: predictions, until rows of a benchmark stand here.

    Attributes:
        clock: cycles a second.
        multiplier: lanes of wide multiplications that a multiprocessor takes in a cycle.
        share: the part of the multiplier's rate that additions reach.
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
        runs: threads of the reduction of buckets.
        span: points that a block adds up in a tree; a power of 2.
        inversions: points that share an inversion.
        segments: threads that accumulate; None: as many as the device holds at once.
        rounds: most rounds of additions in pairs before the accumulation; each halves a bucket's points.
        ahead: whether a point is asked for while the one before it is added; the first GPU decides.
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
    ahead: bool = False
    piece: float = 0.05


COSTS = Costs()
TUNING = Tuning()


def windows_for(curve: CurveParams, c: int) -> int:
    """The fewest digits in (−2^(c−1), 2^(c−1)] that reach every integer up to (r − 1)/2."""
    count, largest = 0, 0
    while largest < (curve.r - 1) // 2:
        largest += 1 << (c * count + c - 1)
        count += 1
    return count


def point_bytes(curve: CurveParams, group: Group) -> int:
    """Bytes of an affine point; an XYZZ one takes twice as many."""
    return 8 * group.words(curve)


def lanes_of(group: Group) -> int:
    """Lanes of a warp that hold a point together."""
    return 1 if group is Group.G1 else 2


@dataclass(frozen=True)
class MsmPlan:
    """How sums of up to ``n`` points at a time are done.

    Attributes:
        groups: the groups of the bases that share digits, one for each bases.
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
        """Rounds of additions in pairs: as many as leave buckets a point on average; places fit 31 bits."""
        if self.places(1) >= MAX_ROWS:
            return 0
        return min(self.tuning.rounds, max(0, (self.n * self.windows // self.buckets).bit_length() - 1))

    def places(self, rounds: int) -> int:
        """Places of points after so many rounds, at most; see kernels/pairs.cu."""
        places = self.n * self.windows
        for _ in range(rounds):
            places = (places + self.buckets) // 2
        return places

    def table_bytes(self, group: Group) -> int:
        return self.depth * self.n * point_bytes(self.curve, group)

    def digits_bytes(self) -> int:
        """Bytes of a Digits once it is made."""
        return digit_pieces(self, self.n).size

    def sort_bytes(self, properties: Properties) -> int:
        """Bytes beside it, while it is made."""
        return sort_pieces(self, self.n, scalars_of_block(self, self.n, properties)).size

    def sum_bytes(self, group: Group, properties: Properties) -> int:
        """Bytes of one sum on the way, at most."""
        threads = properties.multiprocessors * properties.threads // lanes_of(group)
        launches = accumulations(self, group, properties)
        return sum_pieces(self, group, segments_for(self, self.n, launches * threads)).size

    def bytes(self, properties: Properties) -> int:
        """The bytes of all of the above, with the tables, for sums that run at the same time."""
        sums = sum(self.table_bytes(g) + self.sum_bytes(g, properties) for g in self.groups)
        return sums + self.digits_bytes() + self.sort_bytes(properties)


def mixed_addition(curve: CurveParams, group: Group) -> int:
    """Wide multiplications of an XYZZ point + an affine one: 6 products, 2 squares, a sum of two products."""
    product, square, pair = _multiplications(curve, group)
    return 6 * product + 2 * square + pair


def paired_addition(curve: CurveParams, group: Group) -> int:
    """Wide multiplications of two affine points' sum that shares an inversion: 5 products and a square."""
    product, square, _ = _multiplications(curve, group)
    return 5 * product + square


def full_addition(curve: CurveParams, group: Group) -> int:
    """Wide multiplications of two XYZZ points' sum: 10 products, 2 squares, a sum of two products."""
    product, square, pair = _multiplications(curve, group)
    return 10 * product + 2 * square + pair


def _multiplications(curve: CurveParams, group: Group) -> tuple[int, int, int]:
    """Wide multiplications of a product, a square, two products' sum: kernels/field.cuh, fp2_lanes.cuh."""
    limbs = 2 * curve.base.limbs
    rows = limbs * limbs
    if group is Group.G1:
        return 2 * rows, rows + limbs * (limbs + 1) // 2, 3 * rows
    return 6 * rows, 4 * rows, 12 * rows


def _rate(properties: Properties) -> float:
    """Wide multiplications a second that additions reach."""
    return COSTS.share * COSTS.multiplier * COSTS.clock * properties.multiprocessors


def predicted_seconds(plan: MsmPlan, properties: Properties) -> float:
    """Seconds of one Digits and a sum for each group, one after another, for random scalars. A prediction."""
    entries = plan.n * plan.windows
    seconds = entries * COSTS.entry / properties.multiprocessors
    for group in plan.groups:
        full = full_addition(plan.curve, group)
        runs = plan.buckets // plan.run
        seconds += _accumulate_seconds(plan, group, properties)
        seconds += full * 2 * (plan.buckets + runs) / _rate(properties)
        # What waits for one addition after another, at a warp's pace on its scheduler of four.
        chain = 2 * plan.run + 2 * plan.c + runs.bit_length()
        seconds += chain * full * 4 / (COSTS.multiplier / 32) / COSTS.clock / lanes_of(group)
        seconds += 20 * COSTS.launch
        seconds += plan.c * (plan.sets - 1) * COSTS.doubling * (1 if group is Group.G1 else 3)
    return seconds


def _accumulate_seconds(plan: MsmPlan, group: Group, properties: Properties) -> float:
    left = plan.n * plan.windows >> plan.rounds
    pairs = sum(pairs_seconds(plan, group, k, properties) for k in range(plan.rounds))
    return pairs + left * mixed_addition(plan.curve, group) / _rate(properties)


def pairs_seconds(plan: MsmPlan, group: Group, k: int, properties: Properties) -> float:
    """Seconds of the round after k others, without the inversions of its blocks, which run side by side."""
    return (plan.n * plan.windows >> (k + 1)) * paired_addition(plan.curve, group) / _rate(properties)


@lru_cache(maxsize=256)
def accumulations(plan: MsmPlan, group: Group, properties: Properties) -> int:
    """Launches that the accumulation is cut into."""
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
    :meth:`~gpuprover.cuda.msm.Msm.sum_slices` takes as many at a time.

    Args:
        groups: the groups of the bases that will share digits.
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


class Pieces:
    """Parts of one allocation, by name."""

    def __init__(self, sizes: dict[str, int]) -> None:
        self.offsets: dict[str, int] = {}
        self.size = 0
        for name, size in sizes.items():
            self.offsets[name] = self.size
            self.size += -(-size // ALIGNMENT) * ALIGNMENT

    def at(self, start: int) -> dict[str, int]:
        return {name: start + offset for name, offset in self.offsets.items()}


def scalars_of_block(plan: MsmPlan, n: int, properties: Properties) -> int:
    """Scalars that a block recodes: enough blocks to fill the device with threads, if n allows."""
    return plan.tuning.block * max(1, min(16, n // (properties.multiprocessors * properties.threads)))


def most_tiles(plan: MsmPlan, n: int) -> int:
    """Tiles that the second level of the sort has, at most: one of each bin is not full."""
    return n * plan.windows // plan.tuning.tile + plan.bins


@lru_cache(maxsize=256)
def digit_pieces(plan: MsmPlan, n: int) -> Pieces:
    """The memory of :class:`~gpuprover.cuda.msm.Digits` of n scalars."""
    return Pieces({"sorted": 4 * n * plan.windows, "starts": 4 * (plan.buckets + 1)})


@lru_cache(maxsize=256)
def sort_pieces(plan: MsmPlan, n: int, share: int) -> Pieces:
    """The scratch of their sort, whose blocks recode ``share`` scalars each."""
    entries = n * plan.windows
    sizes = {
        "counts": 4 * plan.bins,
        "bins": 4 * (plan.bins + 1),
        "tiles": 4 * (plan.bins + 1),
        "bin places": 4 * plan.bins * -(-n // share),
        "bucket places": 4 * most_tiles(plan, n) << plan.low,
        "keys": 2 * entries,
        "values": 4 * entries,
    }
    return Pieces(sizes)


def segments_for(plan: MsmPlan, n: int, threads: int) -> int:
    """Threads that accumulate: no more than get the shortest segment each."""
    return max(1, min(threads, -(-n * plan.windows // plan.tuning.shortest)))


@lru_cache(maxsize=256)
def sum_pieces(plan: MsmPlan, group: Group, segments: int) -> Pieces:
    """The scratch of one sum."""
    xyzz = 2 * point_bytes(plan.curve, group)
    runs = plan.buckets // plan.run
    merged = -(-segments * lanes_of(group) // WARP)
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
    return Pieces(sizes)
