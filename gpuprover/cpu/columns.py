"""Columns and polynomials on the CPU: how vectors are cut into tasks, and how results are put together.

A formula's program runs on blocks of rows that are small enough for all its registers to stay in the
first-level cache: an instruction is a loop over a block, so that reading it costs little. Columns are read
where they lie. Sums of polynomials are formulas, too.

Values, divisions and running products are recurrences. Each thread takes one range of a vector, and begins
as if nothing were before it; what follows from the ranges before it is a factor or a summand, of which the
host computes one for each range.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from gpuprover.columns import Expression, Formula, Program, challenge, column, compile_formula, constant
from gpuprover.cpu.compiled import Kernels
from gpuprover.cpu.layout import Field
from gpuprover.curves import FieldParams
from gpuprover.job import Job
from gpuprover.limbs import Words, address, field_to_words, words_to_field

_kernels = Kernels("columns")

REGISTER_BYTES = 20 << 10
"""What a formula's registers may take of a first-level cache of 32 KiB."""
LEAST_BLOCK, LARGEST_BLOCK = 16, 128
"""Rows that are taken together."""
SMALLEST_PIECE = 1 << 12
"""Elements below which no further thread is worth its start."""
FEW_THREADS = 2
"""So many do no better than one where all but the last range have to be gone through twice."""


class Read:
    """A column as a kernel reads it: ``offset`` is the place of row 0."""

    def __init__(self, words: Words, offset: int = 0) -> None:
        self.words, self.offset = words, offset % max(1, len(words))


def _block(program: Program, element: int) -> int:
    rows = REGISTER_BYTES // (element * max(1, program.registers))
    return max(LEAST_BLOCK, min(LARGEST_BLOCK, 1 << max(0, rows.bit_length() - 1)))


def evaluate(
    params: FieldParams,
    formula: Formula,
    reads: Sequence[Read],
    scalars: Sequence[int],
    outs: Sequence[Words],
    job: Job,
) -> None:
    """The formula's results, for as many rows as ``outs`` have.

    Args:
        reads: those of the formula, in its order.
        scalars: as :meth:`Formula.scalar_values` returns them.
    """
    n, program = len(outs[0]) if outs else 0, formula.program
    F, width = Field(params), params.bytes
    size = _block(program, width)
    values = field_to_words(params, scalars)
    at = np.array([(address(r.words), len(r.words), r.offset) for r in reads], dtype=np.int64).reshape(-1, 3)
    results = np.array([address(out) for out in outs], dtype=np.int64)
    code = _code(formula)
    first = len(reads) + len(scalars)

    def run(rows: tuple[int, int]) -> None:
        room = np.empty((size * (len(reads) + program.registers), params.limbs), dtype=np.uint64)
        operands = np.zeros((first + program.registers, 2), dtype=np.int64)
        operands[len(reads) : first, 0] = address(values) + width * np.arange(len(scalars))
        operands[first:, 0] = address(room) + width * size * np.arange(
            len(reads), len(reads) + program.registers
        )
        operands[first:, 1] = width
        _kernels.evaluate(F, code, at, operands, results, address(room), size, *rows, job.stop)

    if n:
        job.map(run, job.ranges(n, smallest=max(size, SMALLEST_PIECE // max(1, len(code)))))


@lru_cache(maxsize=64)
def _code(formula: Formula) -> NDArray[np.int64]:
    """The program as the kernel takes it; a register is a target by its place among the operands."""
    first = len(formula.reads) + len(formula.scalars)
    rows = [
        (op, target if op is op.STORE else first + target, a, b)
        for op, target, a, b in formula.program.instructions
    ]
    return np.array(rows, dtype=np.int64).reshape(-1, 4)


Part = tuple[Words, int, int]
"""(coefficients, scalar, shift): see :class:`gpuprover.backend.Term`."""


def combine(params: FieldParams, terms: Sequence[Part], length: int, job: Job) -> Words:
    """See :meth:`gpuprover.backend.Backend.combine`. Between two ends of terms, a sum of columns."""
    job.check()
    r = params.modulus
    out = np.empty((length, params.limbs), dtype=np.uint64)
    ends = {0, length}
    for v, _, shift in terms:
        ends |= {min(max(0, end), length) for end in (shift, shift + len(v))}
    for lo, hi in pairwise(sorted(ends)):
        there = [
            (v[lo - shift : hi - shift], scalar % r)
            for v, scalar, shift in terms
            if shift <= lo and hi <= shift + len(v) and scalar % r
        ]
        if not there:
            out[lo:hi] = 0
        elif len(there) == 1 and there[0][1] == 1:
            out[lo:hi] = there[0][0]
        else:
            formula = _sum(tuple({1: 1, r - 1: -1}.get(scalar, 0) for _, scalar in there))
            scalars = formula.scalar_values({str(i): scalar for i, (_, scalar) in enumerate(there)}, r)
            evaluate(params, formula, [Read(v) for v, _ in there], scalars, [out[lo:hi]], job)
    return out


@lru_cache(maxsize=256)
def _sum(signs: tuple[int, ...]) -> Formula:
    """Σ ±column i, or times challenge i where the sign is 0."""
    total: Expression = constant(0)
    for i, sign in enumerate(signs):
        total = total + column(str(i)) * (sign or challenge(str(i)))
    formula = compile_formula([total])
    assert [read.column for read in formula.reads] == [str(i) for i in range(len(signs))]
    return formula


def values_at(params: FieldParams, queries: Sequence[tuple[Words, int]], job: Job) -> list[int]:
    """See :meth:`gpuprover.backend.Backend.values_at`; Horner's rule on ranges."""
    F, r = Field(params), params.modulus
    tasks = [
        (i, lo, hi)
        for i, (v, _) in enumerate(queries)
        for lo, hi in job.ranges(len(v), smallest=SMALLEST_PIECE)
    ]
    constants = [field_to_words(params, [x, pow(x, 4, r)]) for _, x in queries]
    found = np.zeros((len(tasks), params.limbs), dtype=np.uint64)

    def run(task: int) -> None:
        i, lo, hi = tasks[task]
        _kernels.value(F, address(queries[i][0]), address(constants[i]), address(found[task]), lo, hi)

    job.map(run, range(len(tasks)))
    values = [0] * len(queries)
    for (i, lo, _), part in zip(tasks, words_to_field(params, found), strict=True):
        values[i] = (values[i] + part * pow(queries[i][1], lo, r)) % r
    return values


def divide(params: FieldParams, v: Words, root: int, degree: int, job: Job) -> Words:
    """The quotient of :meth:`gpuprover.backend.Backend.divide`.

    Coefficients of equal place mod ``degree`` are a column. With many columns, each thread has some of them.
    With few, all but the last of the ranges of rows go twice through the recurrence: the first time for what
    the range below has to begin with.
    """
    n, limbs = max(0, len(v) - degree), params.limbs
    out = np.empty((n, limbs), dtype=np.uint64)
    if n == 0:
        job.check()
        return out
    F, rows, threads = Field(params), -(-n // degree), job.threads
    factor, nothing = field_to_words(params, [root]), np.zeros((degree, limbs), dtype=np.uint64)

    def run(piece: tuple[int, int], columns: tuple[int, int], carry: Words) -> None:
        arrays = address(v), address(out), n, address(factor), degree, address(carry)
        _kernels.divide(F, *arrays, *piece, *columns, job.stop)

    if degree >= threads or threads <= FEW_THREADS or n < SMALLEST_PIECE * threads:
        parts = min(threads, degree, max(1, n // SMALLEST_PIECE))
        bounds = [degree * i // parts for i in range(parts + 1)]
        job.map(lambda columns: run((0, rows), columns, nothing), list(pairwise(bounds)))
        return out
    pieces = job.ranges(rows)
    job.map(lambda piece: run(piece, (0, degree), nothing), pieces[1:])
    again: list[tuple[tuple[int, int], Words]] = []
    carry = [0] * degree
    for piece in reversed(pieces):
        if piece is not pieces[-1]:
            again.append((piece, field_to_words(params, carry)))
        lo, hi = piece
        if lo:
            first = words_to_field(params, out[lo * degree : (lo + 1) * degree])
            first += [0] * (degree - len(first))
            passed = pow(root, hi - lo, params.modulus)
            carry = [(x + passed * c) % params.modulus for x, c in zip(first, carry, strict=True)]
    job.map(lambda task: run(task[0], (0, degree), task[1]), again)
    return out


def running_product(
    params: FieldParams, numerators: Words, denominators: Words, start: int, job: Job
) -> Words:
    """See :meth:`gpuprover.backend.Backend.running_product`.

    Products of the numerators and of the denominators go forth, with one inversion for each range the
    denominators are taken out of them on the way back: four multiplications an element.
    """
    n, r = len(numerators), params.modulus
    F, a, b = Field(params), address(numerators), address(denominators)
    out = np.empty((n + 1, params.limbs), dtype=np.uint64)
    out[:1] = field_to_words(params, [start])
    pieces = job.ranges(n, smallest=SMALLEST_PIECE)
    totals = np.zeros((len(pieces), 2, params.limbs), dtype=np.uint64)
    job.map(
        lambda i: _kernels.products(F, a, b, address(out), address(totals[i]), *pieces[i]), range(len(pieces))
    )
    found = words_to_field(params, totals.reshape(-1, params.limbs))
    factors, before = [], start
    for above, below in zip(found[0::2], found[1::2], strict=True):
        factors.append(before * pow(below, -1, r) % r)
        before = factors[-1] * above % r
    words = field_to_words(params, factors)
    job.map(
        lambda i: _kernels.quotients(F, b, address(out), address(words[i]), *pieces[i]), range(len(pieces))
    )
    return out
