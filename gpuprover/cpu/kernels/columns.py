"""Columns and polynomials: formulas, values, divisions, running products; see :mod:`gpuprover.cpu.columns`.

As in vector.py, arrays are addresses of Montgomery elements, and ranges are half-open.
"""

from __future__ import annotations

from gpuprover.cpu.kernels.field import element_bytes, load, one, store, zero
from gpuprover.cpu.kernels.jit import inline, jit
from gpuprover.cpu.kernels.vector import power
from gpuprover.cpu.layout import ADD, MUL, STOPPED, SUB


@inline
def place_reads(F, reads, operands, room, size, start, count):
    """Leaves in ``operands`` where the reads of the rows [start, start + count) begin, and their distance.

    Columns are read where they lie, but for one that ends among these rows, and goes on at its start: that is
    copied to ``room``.
    """
    width = element_bytes(F)
    for j in range(len(reads)):
        base, length = reads[j, 0], reads[j, 1]
        at = (start + reads[j, 2]) % length
        if at + count <= length:
            operands[j, 0], operands[j, 1] = base + at * width, width
        elif length == 1:
            operands[j, 0], operands[j, 1] = base, 0
        else:
            copy = room + j * size * width
            operands[j, 0], operands[j, 1] = copy, width
            for i in range(count):
                store(copy, i, load(F, base, at))
                at += 1
                if at == length:
                    at = 0


@jit
def evaluate(F, code, reads, operands, outs, room, size, lo, hi, stop):
    """A formula's program on the rows [lo, hi), ``size`` at a time.

    Args:
        code: int64[steps, 4]: operation, target, a, b; see :class:`gpuprover.columns.Instruction`.
        reads: int64[reads, 3]: address, length, and the first row's place in the column, from 0.
        operands: int64[reads + scalars + registers, 2]: addresses and distances in bytes, those of reads to
            be filled in here. A register has room for ``size`` elements; scalars are at distance 0.
        outs: int64, addresses of the results.
        room: ``size`` elements for every read.
    """
    width = element_bytes(F)
    start = lo
    while start < hi:  # a range with this step could raise
        if stop[0] != 0:
            return STOPPED
        count = min(size, hi - start)
        place_reads(F, reads, operands, room, size, start, count)
        for step in range(len(code)):
            operation, target = code[step, 0], code[step, 1]
            a, from_a = operands[code[step, 2], 0], operands[code[step, 2], 1]
            b, from_b = operands[code[step, 3], 0], operands[code[step, 3], 1]
            if operation == MUL:
                out = operands[target, 0]
                for i in range(count):
                    store(out + i * width, 0, load(F, a + i * from_a, 0) * load(F, b + i * from_b, 0))
            elif operation == ADD:
                out = operands[target, 0]
                for i in range(count):
                    store(out + i * width, 0, load(F, a + i * from_a, 0) + load(F, b + i * from_b, 0))
            elif operation == SUB:
                out = operands[target, 0]
                for i in range(count):
                    store(out + i * width, 0, load(F, a + i * from_a, 0) - load(F, b + i * from_b, 0))
            else:
                out = outs[target] + start * width
                for i in range(count):
                    store(out + i * width, 0, load(F, a + i * from_a, 0))
        start += size
    return 0


@jit
def value(F, v, constants, out, lo, hi):
    """out[0] = Σ v[i]·x^(i − lo) over [lo, hi), in four chains; ``constants``: x, x⁴."""
    x, x4 = load(F, constants, 0), load(F, constants, 1)
    whole = (hi - lo) >> 2
    rest = zero(F)
    for i in range(hi - 1, lo + 4 * whole - 1, -1):
        rest = rest * x + load(F, v, i)
    a, b, c, d = zero(F), zero(F), zero(F), zero(F)
    for k in range(whole - 1, -1, -1):
        i = lo + 4 * k
        a = a * x4 + load(F, v, i)
        b = b * x4 + load(F, v, i + 1)
        c = c * x4 + load(F, v, i + 2)
        d = d * x4 + load(F, v, i + 3)
    store(out, 0, ((d * x + c) * x + b) * x + a + rest * power(F, x4, whole))


@jit
def divide(F, v, quotient, n, root, degree, carry, row_lo, row_hi, column_lo, column_hi, stop):
    """quotient[j] = v[j + degree] + root·quotient[j + degree], j = row·degree + column; the last row first.

    Args:
        n: elements of the quotient; v has ``degree`` more.
        root: the address of an element.
        carry: what counts as row ``row_hi`` of the quotient, an element for each column.
    """
    factor = load(F, root, 0)
    if degree == 1:
        current = load(F, carry, 0)
        for j in range(min(row_hi, n) - 1, row_lo - 1, -1):
            if j & 0xFFFF == 0 and stop[0] != 0:
                return STOPPED
            current = load(F, v, j + 1) + factor * current
            store(quotient, j, current)
        return 0
    for row in range(row_hi - 1, row_lo - 1, -1):
        if stop[0] != 0:
            return STOPPED
        for column in range(column_lo, column_hi):
            j = row * degree + column
            if j >= n:
                continue
            x = load(F, v, j + degree)
            if row == row_hi - 1:
                x = x + factor * load(F, carry, column)
            elif j + degree < n:
                x = x + factor * load(F, quotient, j + degree)
            store(quotient, j, x)
    return 0


@jit
def products(F, numerators, denominators, out, totals, lo, hi, stop):
    """out[i + 1] = the product of the numerators lo … i, and ``totals`` that of all, and of the denominators.

    A denominator 0 counts as 1, and its numerator as 0.
    """
    above, below = one(F), one(F)
    nothing = zero(F)
    for i in range(lo, hi):
        if i & 0xFFFF == 0 and stop[0] != 0:
            return STOPPED
        x = load(F, denominators, i)
        if x == nothing:
            above = nothing
        else:
            above = above * load(F, numerators, i)
            below = below * x
        store(out, i + 1, above)
    store(totals, 0, above)
    store(totals, 1, below)
    return 0


@jit
def quotients(F, denominators, out, factor, lo, hi, stop):
    """out[i + 1] ·= factor·(the product of the denominators i + 1 … hi − 1), for i in [lo, hi)."""
    current = load(F, factor, 0)
    nothing = zero(F)
    for i in range(hi - 1, lo - 1, -1):
        if i & 0xFFFF == 0 and stop[0] != 0:
            return STOPPED
        store(out, i + 1, load(F, out, i + 1) * current)
        x = load(F, denominators, i)
        if x != nothing:
            current = current * x
    return 0
