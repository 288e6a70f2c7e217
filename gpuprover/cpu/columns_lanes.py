"""Columns and polynomials in eight lanes: columns.py's tasks on blocks of eight rows, coefficients or ranges.

A formula gets steps of its own here. Columns are loaded into registers, since loading transposes. Values are
lazy: each step's result is known to be below a multiple of p before anything is computed, and is carried
or reduced only where the next product could not take it (:func:`steps`). What lanes compute:
:mod:`gpuprover.cpu.kernels.columns_lanes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import ceil
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpuprover.columns import Formula, Op, allocate
from gpuprover.cpu.compiled import Kernels
from gpuprover.cpu.layout import (
    BLOCK_BYTES,
    CARRIED,
    LANES,
    LIMB_BITS,
    LIMBS,
    LOAD,
    LOOSE,
    SCALE,
    SETTLED,
    Blocks,
    LaneField,
    raw_splats,
    splats,
)
from gpuprover.curves import FieldParams
from gpuprover.job import Job
from gpuprover.limbs import Words, address, field_to_words, words_to_field

_kernels = Kernels("columns_lanes")

REGISTER_BYTES = 24 << 10
"""What a formula's registers may take of a first-level cache of 32 or 48 KiB."""
LEAST_BLOCKS, MOST_BLOCKS = 4, 16
"""Blocks of eight rows that are taken together."""
FAR = 24
"""Steps after which a column is loaded again rather than kept: then few registers do. A prediction."""

LARGEST = 16.0
"""The multiple of p below which values stay."""
CARRIED_LIMBS, MOST_LIMBS, MOST_SHIFTED = 1 / 32, 16.0, 2.0
"""Sizes of limbs, in units of 2^57, below which a product's are: of carried ones, of any, of shifted ones."""


class Steps(NamedTuple):
    """A formula for lanes.

    Attributes:
        code: int64[steps, 6], see the kernel ``evaluate``.
        scalars: the operands that are the same in all rows: a scalar's number, and whether it is to be in the
            lanes' form; or minus k, and False, for k·p.
        registers: blocks in lanes that are needed besides.
    """

    code: NDArray[np.int64]
    scalars: tuple[tuple[int, bool], ...]
    registers: int


@lru_cache(maxsize=64)
def steps(formula: Formula, params: FieldParams) -> Steps:
    """The formula's steps with loads and levels.

    Bounds are in multiples of p, with what the kernels say of products. Where an operand is too large for a
    product, the step that has made it is told to leave it smaller: what was concluded before remains true.
    """
    capacity = 2.0 ** (LIMB_BITS * LIMBS) / params.modulus
    n_reads, first = len(formula.reads), len(formula.reads) + len(formula.scalars)
    bounds: dict[int, float] = dict.fromkeys(range(first), 1.0)
    limbs: dict[int, float] = dict.fromkeys(range(first), CARRIED_LIMBS)
    levels: dict[int, int] = {}
    scalars: dict[tuple[int, bool], int] = {}
    lines: list[tuple[int, int, int, int, int]] = []  # operation, value or result, three operands
    made: list[int | None] = []
    loads: dict[int, tuple[int, int]] = {}  # column -> what it was last loaded as, and when that was used
    uses: list[list[int]] = []
    results: dict[int, list[int]] = {}
    for i, value in enumerate(formula.results):
        results.setdefault(value, []).append(i)

    def constant(number: int, in_lanes: bool) -> int:
        """A scalar as an operand: −1 and below, until registers have their places."""
        return ~scalars.setdefault((number, in_lanes), len(scalars))

    def operand(value: int) -> int:
        """A value as an operand; columns are loaded when they are needed, and not long ago."""
        if n_reads <= value < first:
            return constant(value - n_reads, False)
        if value >= n_reads:
            return value
        if value not in loads or len(lines) - loads[value][1] > FAR:
            loads[value] = first + len(formula.steps) + len(lines), 0
            lines.append((LOAD, loads[value][0], value, 0, 0))
            made.append(loads[value][0])
            uses.append([])
        loads[value] = loads[value][0], len(lines)
        return loads[value][0]

    def line(operation: int, target: int, *operands: int) -> None:
        lines.append((operation, target, *operands, *[0] * (3 - len(operands))))  # type: ignore[arg-type]
        made.append(None if operation == Op.STORE else target)
        uses.append([x for x in operands if x >= 0])

    def keep(value: int, level: int) -> None:
        if level == SETTLED:
            bounds[value] = 1.01 + bounds[value] * (1 - int(capacity) / capacity)
        limbs[value] = CARRIED_LIMBS
        levels[value] = max(level, levels.get(value, LOOSE))

    def store(value: int) -> None:
        for result in results.get(value, ()):
            at = operand(value)
            line(Op.STORE, result, at, at)

    def product(value: int, x: int, y: int) -> None:
        if bounds[x] > bounds[y]:
            x, y = y, x
        if 16 * bounds[x] > 0.99 * capacity:
            keep(x, SETTLED)
        if limbs[x] > MOST_SHIFTED:
            keep(x, CARRIED)
        if limbs[y] > CARRIED_LIMBS:
            keep(y, CARRIED)
        if 1 + 16 * bounds[x] * bounds[y] / capacity > LARGEST:
            keep(y, SETTLED)
        line(Op.MUL, value, operand(x), operand(y))
        bounds[value], limbs[value] = 1 + 16 * bounds[x] * bounds[y] / capacity, 1.0

    for value in range(first):
        store(value)
    for i, (op, a, b) in enumerate(formula.steps):
        value = first + i
        if op is Op.MUL:
            if n_reads <= a < first:
                a, b = b, a
            if n_reads <= b < first:
                line(SCALE, value, operand(a), constant(b - n_reads, True))
                bounds[value], limbs[value] = 1 + bounds[a] / capacity, 1.0
            else:
                product(value, a, b)
        elif op is Op.ADD:
            line(op, value, operand(a), operand(b))
            bounds[value], limbs[value] = bounds[a] + bounds[b], limbs[a] + limbs[b]
        else:
            multiple = ceil(bounds[b])
            line(op, value, operand(a), operand(b), constant(-multiple, False))
            bounds[value] = bounds[a] + multiple
            limbs[value] = limbs[a] + limbs[b] + CARRIED_LIMBS
        if bounds[value] > LARGEST:
            keep(value, SETTLED)
        elif limbs[value] > MOST_LIMBS:
            keep(value, CARRIED)
        store(value)

    registers, count = allocate(made, uses)

    def place(x: int) -> int:
        return ~x if x < 0 else len(scalars) + registers[x]

    rows = []
    for operation, target, a, b, c in lines:
        if operation == LOAD:
            rows.append((LOAD, place(target), a, 0, 0, LOOSE))
        elif operation == Op.STORE:
            rows.append((operation, target, place(a), place(b), 0, LOOSE))
        else:
            level = levels.get(target, LOOSE)
            rows.append((operation, place(target), place(a), place(b), ~c if c < 0 else 0, level))
    return Steps(np.array(rows, dtype=np.int64).reshape(-1, 6), tuple(scalars), count)


def evaluate(
    F: LaneField,
    formula: Formula,
    reads: NDArray[np.int64],
    scalars: Sequence[int],
    outs: NDArray[np.int64],
    blocks: int,
    job: Job,
) -> None:
    """The formula on the first ``blocks`` blocks of rows; see :class:`gpuprover.cpu.columns.Columns`."""
    p, limbs = F.params.modulus, LIMBS
    prepared = steps(formula, F.params)
    radix = {False: F.params.R, True: pow(2, LIMB_BITS * limbs, p)}
    values = [-i * p if i < 0 else scalars[i] * radix[form] % p for i, form in prepared.scalars]
    packed = raw_splats(F.params, values)
    registers, first = prepared.registers, len(values)
    size = max(LEAST_BLOCKS, min(MOST_BLOCKS, REGISTER_BYTES // (BLOCK_BYTES * max(1, registers))))

    def run(piece: tuple[int, int]) -> None:
        room = np.empty((registers * size, limbs, LANES), dtype=np.uint64)
        copy = np.empty((size * LANES, F.params.limbs), dtype=np.uint64)
        operands = np.zeros((first + registers, 2), dtype=np.int64)
        operands[:first, 0] = address(packed) + BLOCK_BYTES * np.arange(first)
        operands[first:, 0] = address(room) + BLOCK_BYTES * size * np.arange(registers)
        operands[first:, 1] = BLOCK_BYTES
        _kernels.evaluate(F, prepared.code, reads, operands, outs, address(copy), size, *piece, job.stop)

    job.map(run, job.ranges(blocks, smallest=size))


def values(F: LaneField, v: Words, x: int, lo: int, hi: int) -> int:
    """Σ v[i]·x^(i − 8·lo) over the blocks [lo, hi) of eight coefficients, of which there is at least one."""
    p = F.params.modulus
    out = np.zeros((2 * LANES, F.params.limbs), dtype=np.uint64)
    power = splats(F.params, [pow(x, LANES, p)])
    _kernels.value(F, address(v), address(power), address(out), lo, hi)
    found = words_to_field(F.params, out)
    second = pow(x, LANES * ((hi - lo) >> 1), p)
    total = 0
    for a, b in zip(reversed(found[:LANES]), reversed(found[LANES:]), strict=True):
        total = (total * x + a + b * second) % p
    return total


def divide_columns(
    F: LaneField,
    arrays: tuple[int, int],
    root: int,
    degree: int,
    carry: Words,
    rows: int,
    columns: tuple[int, int],
    job: Job,
) -> None:
    """The recurrence on the first ``rows`` rows of columns that are a multiple of eight in number.

    Args:
        arrays: addresses of the dividend and the quotient.
        carry: uint64[degree, limbs], row ``rows`` of the quotient.
    """
    factor, copy = splats(F.params, [root]), carry.copy()
    for lo in range(columns[0], columns[1], LANES * MOST_BLOCKS):
        hi = min(lo + LANES * MOST_BLOCKS, columns[1])
        room: Blocks = np.empty((MOST_BLOCKS, LIMBS, LANES), dtype=np.uint64)
        _kernels.divide(
            F, *arrays, address(factor), degree, address(copy), address(room), 0, rows, lo, hi,
            1, True, job.stop,
        )  # fmt: skip


def divide_ranges(
    F: LaneField,
    arrays: tuple[int, int],
    root: int,
    degree: int,
    carry: Sequence[int],
    length: int,
    job: Job,
) -> None:
    """The recurrence on eight times as many ranges of ``length`` rows as there are threads, from row 0.

    Every range is gone through twice: what the one below it begins with is known after the first time.
    ``carry``: the row of the quotient after the last range; see also :func:`divide_columns`.
    """
    p, count = F.params.modulus, job.threads
    factor = splats(F.params, [root])
    carries = np.zeros((count, degree * LANES, F.params.limbs), dtype=np.uint64)

    def run(piece: int, write: bool) -> None:
        room: Blocks = np.empty((degree, LIMBS, LANES), dtype=np.uint64)
        _kernels.divide(
            F, *arrays, address(factor), degree, address(carries[piece]), address(room),
            piece * LANES * length, length, 0, degree, length * degree, write, job.stop,
        )  # fmt: skip

    job.map(lambda piece: run(piece, False), range(count))
    passed = pow(root, length, p)
    current = list(carry)
    for piece in reversed(range(count)):
        first = words_to_field(F.params, carries[piece])  # by column and lane
        into = [0] * (degree * LANES)
        for lane in reversed(range(LANES)):
            for column in range(degree):
                at = column * LANES + lane
                into[at] = current[column]
                current[column] = (first[at] + passed * current[column]) % p
        carries[piece] = field_to_words(F.params, into)
    job.map(lambda piece: run(piece, True), range(count))


def products(
    F: LaneField, arrays: tuple[int, int, int], totals: Words, lo: int, length: int, job: Job
) -> None:
    """Products of eight ranges; ``totals``: uint64[16, limbs]. See the kernel."""
    one = raw_splats(F.params, [F.params.R])
    _kernels.products(F, *arrays, address(totals), address(one), lo, length, job.stop)


def quotients(F: LaneField, arrays: tuple[int, int], factors: Words, lo: int, length: int, job: Job) -> None:
    """The way back; ``factors``: uint64[8, limbs]. See the kernel."""
    _kernels.quotients(F, *arrays, address(factors), lo, length, job.stop)
