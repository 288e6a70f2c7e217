"""The number-theoretic transform in eight lanes: how it is cut, and the tables that it reads.

What is done to columns and rows: :mod:`gpuprover.cpu.kernels.ntt_lanes`.
"""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from gpuprover import forks
from gpuprover.cpu.compiled import Kernels
from gpuprover.cpu.layout import (
    BLOCK_BYTES,
    FACTOR,
    LANES,
    NOTHING,
    POWERS,
    Blocks,
    LaneField,
    has_lanes,
    lane_blocks,
    lane_form,
    power_blocks,
    splats,
)
from gpuprover.job import Job
from gpuprover.limbs import Words, address
from gpuprover.polynomial import Coset, Direction, Domain, Order

_kernels = Kernels("ntt_lanes")

SMALLEST, LARGEST = 8, 30
"""log₂ of the domains: of smaller ones the constants take longer, of larger ones values grow too large."""
LOG_BRIEF = 16
"""A pass over so many elements takes a few milliseconds at most."""
LOG_ROW = 10
"""log₂ of a row's blocks: 640 kB with their twiddles."""
LARGEST_LOG_ROW = 12
LOG_BUFFER = 10
"""Likewise for the columns that are taken together."""


_tables: dict[tuple[str, int], Blocks] = {}
_lock = threading.Lock()


def _twiddles(domain: Domain) -> Blocks:
    """uint64[≥ size / 8, limbs, 8]: block h + j holds ω_{16h}^(8j … 8j + 7), for every power of two h."""
    params, log_n = domain.field, domain.log_n
    blocks = 1 << (log_n - 3)
    key = params.name, domain.family
    table = _tables.get(key)
    if table is not None and len(table) >= blocks:
        return table
    with _lock:
        table = _tables.get(key)
        have = 0 if table is None else len(table).bit_length() - 1
        if table is None or len(table) < blocks:
            grown = np.empty((blocks, lane_form(params).limbs, LANES), dtype=np.uint64)
            if table is not None:
                grown[: len(table)] = table
            p, steps = params.modulus, []
            for s in range(log_n - 3):
                root = domain.root_of_unity(s + 4)
                steps += [pow(root, k, p) for k in range(LANES)] + [pow(root, LANES, p)] * LANES
            packed = lane_blocks(params, steps)
            _kernels.grow_table(LaneField(params), address(grown), address(packed), have, log_n - 3)
            _tables[key] = table = grown
    return table


@forks.in_child
def _in_child() -> None:
    global _lock
    _lock = threading.Lock()


def drop_tables() -> None:
    """Gives the twiddle tables' memory back."""
    with _lock:
        _tables.clear()


def block_bytes(domain: Domain) -> int:
    """Bytes of the table, and of the working copy, for a domain."""
    return lane_form(domain.field).limbs * 8 << domain.log_n


def buffer_bytes(domain: Domain, threads: int) -> int:
    """Bytes of all threads' buffers in :func:`to_coset`."""
    return threads * _split(domain, threads, together=False).buffer * BLOCK_BYTES


def reversed_steps(bits: int) -> list[int]:
    """rev(i + 1) − rev(i) by the count of trailing ones of i, for the reversal of ``bits`` bits.

    i -> i + 1 clears t trailing ones and sets the next bit: so does rev(i), at the other end.
    """
    return [(1 << (bits - 1 - t)) - sum(1 << (bits - 1 - s) for s in range(t)) for t in range(bits)]


def supports(domain: Domain) -> bool:
    return SMALLEST <= domain.log_n <= LARGEST and has_lanes(domain.field)


def _reverse(i: int, bits: int) -> int:
    return int(format(i, f"0{bits}b")[::-1], 2)


_powers = lru_cache(maxsize=64)(power_blocks)
"""For scaling in natural order."""


@lru_cache(maxsize=64)
def _reversed_factors(domain: Domain, factor: int, base: int, together: bool) -> Blocks:
    """For scaling by factor·base^rev(i) in bit-reversed order; see the kernel ``rows``.

    One block for each of a group's transposed blocks; the factor; the base from group to group, by reversed
    number; its powers for the steps from one reversed number to the next.

    Place (group, lane, c) has rev = rev(c)·n/8 + rev(lane)·n/64 + rev(group). With groups ``together`` in
    natural order it is (lane, group, c), with lanes reversed: rev(c)·n/8 + 8·rev(group) + lane.
    """
    p, log_n = domain.field.modulus, domain.log_n
    bits = log_n - 6
    inner = []
    for c in range(LANES):
        far = _reverse(c, 3) << (log_n - 3)
        lanes = [lane if together else _reverse(lane, 3) << (log_n - 6) for lane in range(LANES)]
        inner += [pow(base, far + lane, p) for lane in lanes]
    outer = pow(base, LANES, p) if together else base
    steps = [pow(outer, jump, p) for jump in reversed_steps(bits)]
    return np.concatenate(
        [lane_blocks(domain.field, inner), splats(domain.field, [factor, outer, *steps, 1])]
    )


@lru_cache(maxsize=8)
def _small_roots(domain: Domain) -> Blocks:
    p, eighth = domain.field.modulus, domain.root_of_unity(3)
    return splats(domain.field, [eighth, eighth * eighth % p, pow(eighth, 3, p)])


class _Split(NamedTuple):
    """A vector as a matrix of blocks, and what is worked on at once.

    Attributes:
        rows, pitch: the matrix's number of rows, and the distance between them.
        width: columns that are taken together.
        parts: rows that are taken together.
    """

    rows: int
    pitch: int
    width: int
    parts: int

    @property
    def buffer(self) -> int:
        """Blocks in a buffer of columns and their factors."""
        return (self.rows + 1) * self.width


def _split(domain: Domain, threads: int, together: bool) -> _Split:
    log_blocks = domain.log_n - 3
    log_row = min(LARGEST_LOG_ROW, max(LOG_ROW, (log_blocks + 1) // 2))
    log_threads = (threads - 1).bit_length()
    if together:
        log_row -= 2
        if log_blocks > log_row + 2:
            log_row = max(0, min(log_row, log_blocks - 3 - log_threads))
        else:
            log_row = log_blocks
    else:
        log_row = max(3, min(log_row, log_blocks - (log_threads if domain.log_n > 10 else 0)))
    rows, pitch = 1 << (log_blocks - log_row), 1 << log_row
    width = max(4, (1 << LOG_BUFFER) // rows)
    width = max(1, min(width, pitch, max(4, pitch >> log_threads)))
    return _Split(rows, pitch, width, LANES if together and rows > 1 else 1)


Scale = tuple[int, int]
"""(factor, base): element i is multiplied by factor·base^i."""


def _mode(scale: Scale) -> int:
    factor, base = scale
    return POWERS if base != 1 else FACTOR if factor != 1 else NOTHING


def _transform(
    v: Words,
    domain: Domain,
    job: Job,
    *,
    down: bool,
    up: bool,
    mirrored: bool,
    together: bool = False,
    first: Scale = (1, 1),
    middle: Scale = (1, 1),
    last: Scale = (1, 1),
) -> None:
    """The stages by frequency (``down``), by time (``up``), or both, in place.

    Elements are scaled by place before those by frequency (``first``) and after those by time (``last``), and
    by reversed place where order is bit-reversed (``middle``). ``mirrored``: the input is taken in the order
    of −i; ``together``: the output of the stages by frequency is to be in natural order.
    """
    params, n = domain.field, domain.size
    F = LaneField(params)
    rows, pitch, width, parts = split = _split(domain, job.threads, together)
    table_blocks = _twiddles(domain)
    limbs = lane_form(params).limbs
    small = _small_roots(domain)
    work_blocks = np.empty((n // LANES, limbs, LANES), dtype=np.uint64)
    words, table, work = address(v), address(table_blocks), address(work_blocks)
    apart = n // LANES // LANES if together else 0
    # The elements whose mirror images are not in one piece.
    images = (
        [-i % n for i in range(LANES)]
        if down
        else [i and (3 << (i.bit_length() - 1)) - 1 - i for i in range(64)]
    )
    head = v[images]
    # A few pieces for each thread, as one may be slower; but a piece should take longer than handing it out.
    pieces = 1 if job.threads == 1 else job.threads * max(1, min(4, n >> 17))

    def ranges(count: int) -> list[tuple[int, int]]:
        return job.ranges(count, largest=-(-count // pieces))

    def buffer(blocks: int) -> Blocks:
        return np.empty((blocks, limbs, LANES), dtype=np.uint64)

    def columns_down(r: tuple[int, int]) -> None:
        room, factors = buffer(split.buffer), _powers(params, *first)
        _kernels.columns_down(
            F, words, address(head), work, address(room), table, address(factors), rows, pitch, width,
            mirrored, _mode(first), r[0], r[1], job.stop,
        )  # fmt: skip

    def columns_up(r: tuple[int, int]) -> None:
        room, factors = buffer(split.buffer), _powers(params, *last)
        _kernels.columns_up(
            F, work, words, address(room), table, address(factors), rows, pitch, width, _mode(last),
            r[0], r[1], job.stop,
        )  # fmt: skip

    order = np.array([_reverse(i, 3) * apart if together else i for i in range(LANES)], dtype=np.int64)

    def whole_rows(r: tuple[int, int]) -> None:
        room, factors = buffer(LANES), _reversed_factors(domain, *middle, together)
        _kernels.rows(
            F, work, words, address(head), table, address(small), address(factors), order,
            address(room), pitch, parts, apart, domain.log_n - 6, down, up, mirrored,
            _mode(middle), r[0], r[1], job.stop,
        )  # fmt: skip

    tiles, brief = ranges(pitch // width), domain.log_n <= LOG_BRIEF
    if down:
        job.map(columns_down, tiles, brief=brief)
    job.map(whole_rows, ranges(rows // parts), brief=brief)
    if up:
        job.map(columns_up, tiles, brief=brief)


def ntt(v: Words, domain: Domain, direction: Direction, order: Order, coset: Coset | int, job: Job) -> None:
    """See :meth:`gpuprover.backend.Backend.ntt`."""
    p = domain.field.modulus
    g = domain.shift(coset)
    inverse = direction is Direction.INVERSE
    before = (1, 1) if inverse else (1, g)
    after = (pow(domain.size, -1, p), pow(g, -1, p)) if inverse else (1, 1)
    if order is Order.REVERSED_TO_NATURAL:
        _transform(v, domain, job, down=False, up=True, mirrored=inverse, middle=before, last=after)
    else:
        natural = order is Order.NATURAL_TO_NATURAL
        _transform(
            v,
            domain,
            job,
            down=True,
            up=False,
            mirrored=inverse,
            together=natural,
            first=before,
            middle=after,
        )


def to_coset(v: Words, domain: Domain, job: Job) -> None:
    """Evaluations on ⟨ω⟩ -> evaluations on g·⟨ω⟩, in place, both in natural order; see ntt.py."""
    scale = (pow(domain.size, -1, domain.field.modulus), domain.coset_generator)
    _transform(v, domain, job, down=True, up=True, mirrored=True, middle=scale)
