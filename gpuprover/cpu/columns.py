"""Columns and polynomials on the CPU: how vectors are cut into tasks, and how results are put together.

A formula's program runs on blocks of rows that are small enough for all its registers to stay in the
first-level cache: an instruction is a loop over a block, so that reading it costs little. Columns are read
where they lie. Sums of polynomials are formulas, too.

Values, divisions and running products are recurrences. A task takes one range of a vector, or eight in lanes,
and begins as if nothing were before them; what follows from the ranges before is a factor or a summand, of
which the host computes one for each range.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from gpuprover.columns import Expression, Formula, Op, challenge, column, compile_formula, constant
from gpuprover.cpu import columns_lanes
from gpuprover.cpu.compiled import Kernels
from gpuprover.cpu.layout import LANES, Field, LaneField
from gpuprover.curves import FieldParams
from gpuprover.job import BRIEF, Job
from gpuprover.limbs import Words, address, field_to_words, words_to_field

_kernels = Kernels("columns")

REGISTER_BYTES = 20 << 10
"""What a formula's registers may take of a first-level cache of 32 KiB."""
LEAST_ROWS, MOST_ROWS = 16, 128
"""Rows that are taken together."""
SMALLEST_PIECE = 1 << 12
"""Elements below which no further thread is worth its start."""
SHORTEST_RANGE = 64
"""Rows of a range below which lanes are not worth theirs."""
FEW_COLUMNS = 64
"""A division of so many columns or more is shared by columns, not by ranges of rows."""
FEW_THREADS = 2
"""So many do no better than one where all but the last range have to be gone through twice."""

Read = tuple[Words, int]
"""A column, and the place in it of row 0, from any number of rows before it to any number after."""
Part = tuple[Words, int, int]
"""(coefficients, scalar, shift): see :class:`gpuprover.backend.Term`."""


class Columns:
    """The operations on vectors over one field.

    Vectors are Montgomery words uint64[n, limbs], aligned and contiguous.

    Args:
        lanes: the same field for eight lanes, where the path has them.
    """

    def __init__(self, params: FieldParams, lanes: LaneField | None, job: Job) -> None:
        self._params, self._field, self._lanes, self._job = params, Field(params), lanes, job

    def _in_lanes(self, n: int) -> int:
        """How many blocks of eight of n rows are taken in lanes."""
        return n // LANES if self._lanes is not None else 0

    def evaluate(
        self, formula: Formula, reads: Sequence[Read], scalars: Sequence[int], outs: Sequence[Words]
    ) -> None:
        """The formula's results, for as many rows as each of ``outs`` has.

        Args:
            reads: those of the formula, in its order.
            scalars: as :meth:`Formula.scalar_values` returns them.
        """
        self._job.check()
        n = len(outs[0]) if outs else 0
        if n == 0:
            return
        places = [(address(words), len(words), at % len(words)) for words, at in reads]
        at, results = (
            np.array(places, dtype=np.int64),
            np.array([address(out) for out in outs], dtype=np.int64),
        )
        blocks = self._in_lanes(n)
        if blocks and self._lanes is not None:
            columns_lanes.evaluate(self._lanes, formula, at, scalars, results, blocks, self._job)
        if LANES * blocks < n:
            self._evaluate_rows(formula, at, scalars, results, LANES * blocks, n)

    def _evaluate_rows(
        self,
        formula: Formula,
        reads: NDArray[np.int64],
        scalars: Sequence[int],
        outs: NDArray[np.int64],
        lo: int,
        hi: int,
    ) -> None:
        """See :meth:`evaluate`, on the rows [lo, hi)."""
        params, registers = self._params, formula.program.registers
        code, width, first = _code(formula), params.bytes, len(reads) + len(scalars)
        rows = REGISTER_BYTES // (width * max(1, registers))
        size = max(LEAST_ROWS, min(MOST_ROWS, rows))
        values = field_to_words(params, scalars)

        def run(piece: tuple[int, int]) -> None:
            room = np.empty((size * (len(reads) + registers), params.limbs), dtype=np.uint64)
            operands = np.zeros((first + registers, 2), dtype=np.int64)
            operands[len(reads) : first, 0] = address(values) + width * np.arange(len(scalars))
            operands[first:, 0] = address(room) + width * size * (len(reads) + np.arange(registers))
            operands[first:, 1] = width
            _kernels.evaluate(
                self._field, code, reads, operands, outs, address(room), size,
                lo + piece[0], lo + piece[1], self._job.stop,
            )  # fmt: skip

        self._job.map(run, self._job.ranges(hi - lo, smallest=max(size, SMALLEST_PIECE // len(code))))

    def combine(self, terms: Sequence[Part], length: int) -> Words:
        """See :meth:`gpuprover.backend.Backend.combine`: a sum of columns between any two ends of terms."""
        self._job.check()
        r = self._params.modulus
        out = np.empty((length, self._params.limbs), dtype=np.uint64)
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
                factors = {str(i): scalar for i, (_, scalar) in enumerate(there)}
                scalars = formula.scalar_values(factors, r)
                self.evaluate(formula, [(v, 0) for v, _ in there], scalars, [out[lo:hi]])
        return out

    def values_at(self, queries: Sequence[tuple[Words, int]]) -> list[int]:
        """See :meth:`gpuprover.backend.Backend.values_at`; Horner's rule on ranges."""
        r = self._params.modulus
        tasks: list[tuple[int, int, Callable[[], int]]] = []  # query, first coefficient, its range's value
        for i, (v, x) in enumerate(queries):
            blocks = self._in_lanes(len(v))
            if blocks and self._lanes is not None:
                for lo, hi in self._job.ranges(blocks, smallest=SMALLEST_PIECE // LANES):
                    part = partial(columns_lanes.values, self._lanes, v, x, lo, hi)
                    tasks.append((i, LANES * lo, part))
            rest = LANES * blocks
            for lo, hi in self._job.ranges(len(v) - rest, smallest=SMALLEST_PIECE):
                tasks.append((i, rest + lo, partial(self._value, v, x, rest + lo, rest + hi)))
        brief = all(_is_brief(len(v)) for v, _ in queries)
        found = self._job.map(lambda task: task[2](), tasks, brief=brief)
        values = [0] * len(queries)
        for (i, lo, _), part_value in zip(tasks, found, strict=True):
            values[i] = (values[i] + part_value * pow(queries[i][1], lo, r)) % r
        return values

    def _value(self, v: Words, x: int, lo: int, hi: int) -> int:
        """Σ v[i]·x^(i − lo) over [lo, hi)."""
        constants = field_to_words(self._params, [x, pow(x, 4, self._params.modulus)])
        out = np.zeros((1, self._params.limbs), dtype=np.uint64)
        _kernels.value(self._field, address(v), address(constants), address(out), lo, hi)
        return words_to_field(self._params, out)[0]

    # Division --------------------------------------------------------------------------------

    def divide(self, v: Words, root: int, degree: int) -> Words:
        """The quotient of :meth:`gpuprover.backend.Backend.divide`.

        Coefficients of equal place mod ``degree`` are a column, those of equal quotient a row. With many
        columns, each thread has some of them. With few, ranges of rows are gone through twice: the first time
        for what the range below has to begin with.
        """
        self._job.check()
        n = max(0, len(v) - degree)
        out = np.empty((n, self._params.limbs), dtype=np.uint64)
        rows, root = n // degree, root % self._params.modulus  # whole ones
        if self._lanes is not None and degree < FEW_COLUMNS:
            ranges = LANES * self._job.threads
            length = rows // ranges
            if length >= SHORTEST_RANGE:
                lower = ranges * length
                self._divide_rows(v, out, root, degree, lower)
                arrays, carry = (address(v), address(out)), self._row(out, degree, lower)
                columns_lanes.divide_ranges(self._lanes, arrays, root, degree, carry, length, self._job)
                return out
        if self._lanes is not None and degree >= FEW_COLUMNS and rows:
            lanes, whole = self._lanes, degree // LANES * LANES
            out[rows * degree :] = v[(rows + 1) * degree :]
            above = field_to_words(self._params, self._row(out, degree, rows))

            def run(r: tuple[int, int]) -> None:
                columns = (LANES * r[0], LANES * r[1])
                columns_lanes.divide_columns(
                    lanes, (address(v), address(out)), root, degree, above, rows, columns, self._job
                )

            self._job.map(run, self._job.ranges(whole // LANES))
            if whole < degree:
                self._divide(v, out, root, degree, (0, rows), (whole, degree), above)
            return out
        self._divide_rows(v, out, root, degree, 0)
        return out

    def _row(self, quotient: Words, degree: int, row: int) -> list[int]:
        """A row of the quotient, where it ends with zeros from there."""
        found = words_to_field(self._params, quotient[row * degree : (row + 1) * degree])
        return found + [0] * (degree - len(found))

    def _divide(
        self,
        v: Words,
        out: Words,
        root: int,
        degree: int,
        rows: tuple[int, int],
        columns: tuple[int, int],
        carry: Words,
    ) -> None:
        """One task's share; see the kernel."""
        factor = field_to_words(self._params, [root])
        arrays = address(v), address(out), len(out), address(factor), degree, address(carry)
        _kernels.divide(self._field, *arrays, *rows, *columns, self._job.stop)

    def _divide_rows(self, v: Words, out: Words, root: int, degree: int, lowest: int) -> None:
        """The rows from ``lowest`` to the last one."""
        job, rows = self._job, -(-len(out) // degree)
        nothing = np.zeros((degree, self._params.limbs), dtype=np.uint64)
        n, threads = (rows - lowest) * degree, job.threads
        if degree >= threads or threads <= FEW_THREADS or n < SMALLEST_PIECE * threads:
            parts = min(threads, degree, max(1, n // SMALLEST_PIECE))
            bounds = [degree * i // parts for i in range(parts + 1)]
            job.map(
                lambda columns: self._divide(v, out, root, degree, (lowest, rows), columns, nothing),
                list(pairwise(bounds)),
                brief=_is_brief(n),
            )
            return
        pieces = [(lowest + lo, lowest + hi) for lo, hi in job.ranges(rows - lowest)]
        whole = (0, degree)
        job.map(lambda piece: self._divide(v, out, root, degree, piece, whole, nothing), pieces[1:])
        again: list[tuple[tuple[int, int], Words]] = []
        carry = [0] * degree
        for lo, hi in reversed(pieces):
            if hi < rows:
                again.append(((lo, hi), field_to_words(self._params, carry)))
            if lo > lowest:
                passed = pow(root, hi - lo, self._params.modulus)
                carry = [x + passed * c for x, c in zip(self._row(out, degree, lo), carry, strict=True)]
        job.map(lambda task: self._divide(v, out, root, degree, task[0], whole, task[1]), again)

    # Running products --------------------------------------------------------------------------

    def running_product(self, numerators: Words, denominators: Words, start: int) -> Words:
        """See :meth:`gpuprover.backend.Backend.running_product`.

        Products of the numerators and of the denominators go forth; with one inversion for each range the
        denominators are taken out of them on the way back: four multiplications an element.
        """
        params, job, F, L = self._params, self._job, self._field, self._lanes
        n, r = len(numerators), params.modulus
        out = np.empty((n + 1, params.limbs), dtype=np.uint64)
        out[:1] = field_to_words(params, [start])
        a, b, o = address(numerators), address(denominators), address(out)
        length = self._in_lanes(n) // job.threads
        groups = job.threads if length >= SHORTEST_RANGE else 0  # of eight ranges of this length
        done = LANES * groups * length
        pieces = [(done + lo, done + hi) for lo, hi in job.ranges(n - done, smallest=SMALLEST_PIECE)]
        totals = np.zeros((groups + len(pieces), 2, LANES, params.limbs), dtype=np.uint64)

        def products(i: int) -> None:
            if i < groups and L is not None:
                at = LANES * length * i
                columns_lanes.products(L, (a, b, o), totals[i], at, length, job)
            else:
                room = np.zeros((2, params.limbs), dtype=np.uint64)
                _kernels.products(F, a, b, o, address(room), *pieces[i - groups], job.stop)
                totals[i, :, 0] = room

        job.map(products, range(len(totals)), brief=_is_brief(n))
        factors = np.zeros((len(totals), LANES, params.limbs), dtype=np.uint64)
        before = start
        for i, total in enumerate(totals):
            ranges = LANES if i < groups else 1
            tops, bottoms = (words_to_field(params, total[k, :ranges]) for k in (0, 1))
            found = []
            for above, below in zip(tops, bottoms, strict=True):
                found.append(before * pow(below, -1, r) % r)
                before = found[-1] * above % r
            factors[i, :ranges] = field_to_words(params, found)

        def quotients(i: int) -> None:
            if i < groups and L is not None:
                at = LANES * length * i
                columns_lanes.quotients(L, (b, o), factors[i], at, length, job)
            else:
                _kernels.quotients(F, b, o, address(factors[i]), *pieces[i - groups], job.stop)

        job.map(quotients, range(len(totals)), brief=_is_brief(n))
        return out


def _is_brief(elements: int) -> bool:
    """Whether to go through so many once takes a few milliseconds at most."""
    return elements <= BRIEF * SMALLEST_PIECE


@lru_cache(maxsize=64)
def _code(formula: Formula) -> NDArray[np.int64]:
    """The program as the kernel takes it; a register is a target by its place among the operands."""
    first = len(formula.reads) + len(formula.scalars)
    rows = [
        (op, target if op is Op.STORE else first + target, a, b)
        for op, target, a, b in formula.program.instructions
    ]
    return np.array(rows, dtype=np.int64).reshape(-1, 4)


@lru_cache(maxsize=256)
def _sum(signs: tuple[int, ...]) -> Formula:
    """Σ ±column i, or times challenge i where the sign is 0."""
    total: Expression = constant(0)
    for i, sign in enumerate(signs):
        total = total + column(str(i)) * (sign or challenge(str(i)))
    formula = compile_formula([total])
    assert [read.column for read in formula.reads] == [str(i) for i in range(len(signs))]
    return formula
