"""The launches of a sort and of a sum, as data.

Launches follow from a plan, sizes and a device's properties; addresses only move the regions of memory that
they work in. So they are made once, and run for every proof (:class:`gpuprover.cuda.msm.Msm`). The phases are
numbered as in :mod:`gpuprover.cuda.msm`.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from gpuprover.backend import Form
from gpuprover.cuda.device import NUMBERS, At, Launch, Program, Properties, launch
from gpuprover.cuda.msm_plan import (
    WARP,
    MsmPlan,
    Pieces,
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
from gpuprover.curves import CurveParams, Group

SCALARS, BASES, DIGITS, SCRATCH, OUT = range(NUMBERS + 1, NUMBERS + 6)
"""Regions of memory that launches work in."""
MERGE_HEADS, SUM_RUNS, SUM_TREE, FINISH_SETS = range(4)
"""Steps of the kernel combine, as in kernels/msm.cu."""
BLOCK = 128
"""Lanes of a block of the kernels over points."""
PAIRING = 256
"""Lanes of a block of add_pairs, as in kernels/pairs.cu."""
TREE = 32
"""Threads of a block that sums a tree; in G2 a thread is two lanes."""
KEPT = 256
"""Lists of launches that a process remembers."""


def digits_program(curve: CurveParams) -> Program:
    return Program(curve, "digits.cu")


def sums_program(curve: CurveParams, group: Group) -> Program:
    return Program(curve, "msm.cu", (("GROUP", group.name[1]),))


def pairs_program(curve: CurveParams, group: Group) -> Program:
    return Program(curve, "pairs.cu", (("GROUP", group.name[1]),))


def accumulator_bytes(curve: CurveParams, group: Group) -> int:
    """Shared memory of a block of accumulate and of multiply_fixed: an XYZZ point a thread."""
    return BLOCK // lanes_of(group) * 2 * point_bytes(curve, group)


def pairing_bytes(curve: CurveParams) -> int:
    """Shared memory of a block of add_pairs."""
    return 2 * PAIRING * 8 * curve.base.limbs


# Phases 1 and 2 ----------------------------------------------------------------------------------


class SortLaunches(NamedTuple):
    """The launches of one sort.

    Attributes:
        kept: bytes of DIGITS.
        sorted, starts: where entries and buckets' beginnings lie in it.
        scratch: bytes of SCRATCH; 0 for no scalars.
        counts: a place in it with 4·plan.bins bytes, which are zero before, as all of ``starts`` are.
        sort: what makes DIGITS of SCALARS.
    """

    kept: int
    sorted: int
    starts: int
    scratch: int
    counts: int
    sort: tuple[Launch, ...]


@lru_cache(maxsize=KEPT)
def sort_launches(
    plan: MsmPlan, n: int, points: int, form: Form, words: int, properties: Properties
) -> SortLaunches:
    """Of n scalars; the others as :meth:`gpuprover.cuda.msm.Msm.digits` takes them."""
    kept = digit_pieces(plan, n)
    into = _places(DIGITS, kept)
    if not n:
        return SortLaunches(kept.size, into["sorted"].offset, into["starts"].offset, 0, 0, ())
    share = scalars_of_block(plan, n, properties)
    pieces = sort_pieces(plan, n, share)
    program, block, tile = digits_program(plan.curve), plan.tuning.block, plan.tuning.tile
    at = _places(SCRATCH, pieces)
    counts, bins, tiles, keys, values = (at[k] for k in ("counts", "bins", "tiles", "keys", "values"))
    bin_places, bucket_places = at["bin places"], at["bucket places"]
    blocks, cut = -(-n // share), most_tiles(plan, n)
    for_bins, for_buckets, for_scan = 4 * plan.bins, 4 << plan.low, 4 * (WARP + 1)
    recoding = At(SCALARS), words, int(form is Form.MONTGOMERY), n, points, share
    windows = plan.c, plan.windows, plan.sets, plan.low, plan.bins
    in_tiles = bins, tiles, plan.bins, tile, plan.low, into["starts"], bucket_places

    def step(kernel: str, blocks: int, shared: int, *arguments: int | At) -> Launch:
        return launch(program, kernel, blocks, block, *arguments, shared=shared)

    sort = (
        step("count_bins", blocks, for_bins, *recoding, *windows, counts, bin_places),
        step("place_bins", 1, for_scan, counts, plan.bins, tile, bins, tiles),
        step("scatter_bins", blocks, for_bins, *recoding, *windows, bins, bin_places, keys, values),
        step("count_buckets", cut, for_buckets, keys, *in_tiles),
        step("place_buckets", plan.bins, for_scan, bins, plan.bins, plan.low, into["starts"]),
        step("scatter_buckets", cut, for_buckets, keys, values, *in_tiles, into["sorted"]),
    )
    offsets = into["sorted"].offset, into["starts"].offset
    return SortLaunches(kept.size, *offsets, pieces.size, counts.offset, sort)


def _places(region: int, pieces: Pieces) -> dict[str, At]:
    return {name: At(region, offset) for name, offset in pieces.offsets.items()}


# Phases 3 and 4 ----------------------------------------------------------------------------------


class SumLaunches(NamedTuple):
    """The launches of one sum.

    Attributes:
        out: bytes of OUT, of ``plan.sets`` XYZZ points.
        scratch: bytes of SCRATCH.
        accumulate: phase 3 up to the heads, from BASES and DIGITS.
        reduce: what merges the heads, and phase 4.
    """

    out: int
    scratch: int
    accumulate: tuple[Launch, ...]
    reduce: tuple[Launch, ...]


@lru_cache(maxsize=KEPT)
def sum_launches(
    plan: MsmPlan, group: Group, n: int, lanes: int, pairing: int, properties: Properties
) -> SumLaunches:
    """For n > 0 bases with digits of the plan.

    Args:
        lanes: lanes of accumulate that the device holds at once.
        pairing: blocks of add_pairs that it holds at once; without rounds it does not matter.
    """
    times = accumulations(plan, group, properties)
    segments = plan.tuning.segments or segments_for(plan, n, times * lanes // lanes_of(group))
    pieces = sum_pieces(plan, group, segments)
    digits, at = _places(DIGITS, digit_pieces(plan, n)), _places(SCRATCH, pieces)
    points, entries, starts, paired = At(BASES), digits["sorted"], digits["starts"], []
    if plan.rounds:
        paired = _pair(plan, group, points, entries, starts, at, pairing, properties)
        points, entries, starts = at[f"pairs {(plan.rounds - 1) % 2}"], at["list"], at["list starts"]
    return SumLaunches(
        plan.sets * 2 * point_bytes(plan.curve, group),
        pieces.size,
        (*paired, *_accumulate(plan, group, points, entries, starts, at, segments, times)),
        (*_merge(plan, group, at, segments), *_reduce(plan, group, digits["starts"], at)),
    )


def _pair(
    plan: MsmPlan,
    group: Group,
    points: At,
    entries: At,
    starts: At,
    at: dict[str, At],
    resident: int,
    properties: Properties,
) -> list[Launch]:
    """Rounds of additions in pairs, and the list of what they leave."""
    program, lanes, made = pairs_program(plan.curve, group), lanes_of(group), []
    given: tuple[At, int | At] = points, entries
    for k in range(plan.rounds):
        times = max(1, round(pairs_seconds(plan, group, k, properties) / plan.tuning.piece))
        needed = -(-plan.places(k + 1) // plan.tuning.shortest)
        blocks = max(1, min(times * resident, -(-needed * lanes // PAIRING)))
        threads, out = blocks * PAIRING // lanes, at[f"pairs {k % 2}"]
        for first, count in _cut(blocks, times):
            place = *given, starts, plan.buckets, k, threads, first * PAIRING // lanes, out
            made.append(
                launch(program, "add_pairs", count, PAIRING, *place, shared=pairing_bytes(plan.curve))
            )
        given = out, 0
    listed = starts, plan.buckets, plan.rounds, at["list starts"], at["list"]
    return [*made, launch(program, "list_pairs", resident, PAIRING, *listed)]


def _accumulate(
    plan: MsmPlan,
    group: Group,
    points: At,
    entries: At,
    starts: At,
    at: dict[str, At],
    segments: int,
    times: int,
) -> list[Launch]:
    """Sums of segments of the entries, in so many launches."""
    program, shared = sums_program(plan.curve, group), accumulator_bytes(plan.curve, group)
    threads = BLOCK // lanes_of(group)
    given = points, entries, starts, plan.buckets, segments, plan.tuning.shortest, int(plan.tuning.ahead)
    out = at["sums"], at["heads"], at["head keys"]
    return [
        launch(program, "accumulate", count, BLOCK, *given, first * threads, *out, shared=shared)
        for first, count in _cut(-(-segments // threads), times)
    ]


def _cut(blocks: int, times: int) -> list[tuple[int, int]]:
    """(first, number) of the blocks of each launch; fewer launches where there are fewer blocks."""
    bounds = [blocks * k // times for k in range(times + 1)]
    return [(lo, hi - lo) for lo, hi in pairwise(bounds) if lo < hi]


def _combine(
    plan: MsmPlan, group: Group, step: int, threads: int, *arguments: int | At, block: int = BLOCK
) -> Launch:
    """A step of the kernel combine; its arguments are a, b, c, index, keys, count, size."""
    blocks = -(-threads * lanes_of(group) // block)
    return launch(sums_program(plan.curve, group), "combine", blocks, block, step, *arguments)


def _merge(plan: MsmPlan, group: Group, at: dict[str, At], count: int) -> list[Launch]:
    """Heads by warps, then what is left of them, until it is one warp. The two arrays take turns."""
    heads, keys, merged, merged_keys = (at[k] for k in ("heads", "head keys", "merged", "merged keys"))
    warp, made = WARP // lanes_of(group), []
    while True:
        arrays = heads, at["sums"], merged, keys, merged_keys
        made.append(_combine(plan, group, MERGE_HEADS, count, *arrays, count, 0))
        if count <= warp:
            return made
        count = -(-count // warp)
        heads, keys, merged, merged_keys = merged, merged_keys, heads, keys


def _reduce(plan: MsmPlan, group: Group, starts: At, at: dict[str, At]) -> list[Launch]:
    """Phase 4, into OUT."""
    plain, weighted = at["plain"], at["weighted"]
    total = plan.buckets // plan.run
    runs = total // plan.sets
    made = [_combine(plan, group, SUM_RUNS, total, plain, weighted, at["sums"], starts, 0, total, plan.run)]
    bits, block = 0, TREE * lanes_of(group)
    while runs >> bits > 1:
        span = min(plan.tuning.span, runs >> bits)
        blocks = (total >> bits) // span * (bits + 2)
        tree = plain, weighted, 0, 0, 0, bits, span
        made.append(_combine(plan, group, SUM_TREE, blocks * TREE, *tree, block=block))
        bits += span.bit_length() - 1
    last = plain, weighted, At(OUT), 0, 0, runs, plan.run
    return [*made, _combine(plan, group, FINISH_SETS, plan.sets * TREE, *last, block=block)]
