"""The kernels of columns.py in eight lanes, for ranges of blocks of eight rows.

Elements stand in memory with radix 2^256, and products in lanes are divided by 2^260. So one factor of a
product of two elements is shifted by four bits, which takes it from below α·p to below 16α·p, and that has to
be below the capacity 2^260/p (35.3 for BLS12-381's scalars, 84.6 for BN254's). The product of x < α·p,
shifted, and y < β·p is below (1 + 16αβ/capacity)·p. A scalar that is a factor is in the lanes' form instead,
and nothing is shifted: the product with x < α·p is below (1 + α/capacity)·p.

Formulas: ranges are known before anything is computed, and :mod:`gpuprover.cpu.columns` says at which steps
a value is carried or brought below 1.2p (``level``). Recurrences: a product of 16p and 1.83p is below 1.83p.
"""

from __future__ import annotations

from gpuprover.cpu.kernels.field import load, plain, store
from gpuprover.cpu.kernels.jit import inline, jit
from gpuprover.cpu.kernels.lanes import lanes_select, lanes_zero
from gpuprover.cpu.kernels.lanes_memory import load_lanes, store_lanes, store_words
from gpuprover.cpu.kernels.loose import (
    carried,
    gather_words,
    lowest,
    minus,
    plus,
    settle,
    shifted,
    times,
    times_both,
    zero_mask,
)
from gpuprover.cpu.layout import ADD, LOAD, LOOSE, MUL, SCALE, SETTLED, STOPPED, SUB


@inline
def _kept(x, level):
    if level == SETTLED:
        x = settle(x)
    if level != LOOSE:
        x = carried(x)
    return x


@jit
def evaluate(F, code, reads, operands, outs, copy, size, lo, hi, stop):
    """A formula's steps on the blocks [lo, hi) of eight rows, ``size`` at a time.

    Args:
        code: int64[steps, 6]: operation, target, a, b, c, level. LOAD reads column a; ADD, SUB (a − b + c,
            c being a multiple of p), MUL and SCALE (b being in the lanes' form) take operands; STORE leaves a
            in result ``target``.
        reads: int64[reads, 3]: address, length, and the first row's place in the column, from 0.
        operands: int64[scalars + registers, 2]: addresses and distances in bytes, of blocks in lanes.
        outs: int64, addresses of the results.
        copy: room for 8·size elements as words.
    """
    G = plain(F)
    start = lo
    while start < hi:  # a range with this step could raise
        if stop[0] != 0:
            return STOPPED
        count = min(size, hi - start)
        for step in range(len(code)):
            operation, target, level = code[step, 0], code[step, 1], code[step, 5]
            if operation == LOAD:
                column, length = reads[code[step, 2], 0], reads[code[step, 2], 1]
                at = (8 * start + reads[code[step, 2], 2]) % length
                distance = 1
                if at + 8 * count <= length:
                    column += 32 * at
                elif length == 1:
                    distance = 0
                else:
                    for i in range(8 * count):
                        store(copy, i, load(G, column, at))
                        at += 1
                        if at == length:
                            at = 0
                    column = copy
                out = operands[target, 0]
                for k in range(count):
                    store_lanes(out, k, gather_words(F, column, 8 * k * distance, distance, 0))
                continue
            a, from_a = operands[code[step, 2], 0], operands[code[step, 2], 1]
            b, from_b = operands[code[step, 3], 0], operands[code[step, 3], 1]
            if operation == MUL:
                out = operands[target, 0]
                for k in range(count):
                    x = shifted(load_lanes(F, a + k * from_a, 0), 4)
                    store_lanes(out, k, _kept(times(x, load_lanes(F, b + k * from_b, 0)), level))
            elif operation == ADD:
                out = operands[target, 0]
                for k in range(count):
                    x = plus(load_lanes(F, a + k * from_a, 0), load_lanes(F, b + k * from_b, 0))
                    store_lanes(out, k, _kept(x, level))
            elif operation == SUB:
                out = operands[target, 0]
                c = load_lanes(F, operands[code[step, 4], 0], 0)
                for k in range(count):
                    x = plus(load_lanes(F, a + k * from_a, 0), c)
                    store_lanes(out, k, _kept(minus(x, load_lanes(F, b + k * from_b, 0), 0), level))
            elif operation == SCALE:
                out = operands[target, 0]
                factor = load_lanes(F, b, 0)
                for k in range(count):
                    store_lanes(out, k, _kept(times(load_lanes(F, a + k * from_a, 0), factor), level))
            else:
                out = outs[target] + 256 * start
                for k in range(count):
                    store_words(out, 8 * k, 1, lowest(load_lanes(F, a + k * from_a, 0)))
        start += size
    return 0


@jit
def value(F, v, powers, out, lo, hi):
    """Σ v[8k + lane]·x^(8(k − lo)) over the blocks k in [lo, hi), in two chains, each over half of them.

    ``powers``: x⁸ in the lanes' form. ``out``: sixteen elements, eight of the first half, and eight of the
    second one, in which k counts from lo + (hi − lo)/2.
    """
    half = (hi - lo) >> 1
    middle = lo + half
    x = load_lanes(F, powers, 0)
    a, b = lanes_zero(F), lanes_zero(F)
    for k in range(hi - 1, middle + half - 1, -1):
        b = gather_words(F, v, 8 * k, 1, 0)
    for k in range(half - 1, -1, -1):
        a, b = times_both(a, x, b, x)
        a = plus(a, gather_words(F, v, 8 * (lo + k), 1, 0))
        b = plus(b, gather_words(F, v, 8 * (middle + k), 1, 0))
    store_words(out, 0, 1, lowest(a))
    store_words(out, 8, 1, lowest(b))


@jit
def divide(F, v, quotient, root, degree, carry, room, row_lo, rows, column_lo, column_hi, apart, write,
           stop):  # fmt: skip
    """The recurrence of columns.divide in eight lanes, on rows [row_lo, row_lo + rows) of a range of columns.

    Args:
        root: in the lanes' form.
        apart: elements between lanes. 1: lanes are eight columns, and column_hi − column_lo is a multiple of
            eight. rows·degree: they are eight ranges of rows, of which the first one's is given.
        carry: what counts as the quotient's row after the last one: elements by column and, where lanes are
            ranges, by lane. Replaced by the first row.
        room: 320 bytes for every block of columns.
        write: whether the quotient is written, too.
    """
    width = 8 if apart == 1 else 1
    blocks = (column_hi - column_lo) // width
    factor = load_lanes(F, root, 0)
    for k in range(blocks):
        at = column_lo + 8 * k if apart == 1 else 8 * (column_lo + k)
        store_lanes(room, k, gather_words(F, carry, at, 1, 0))
    for row in range(row_lo + rows - 1, row_lo - 1, -1):
        if row & 0xFF == 0 and stop[0] != 0:
            return STOPPED
        for k in range(blocks):
            j = row * degree + column_lo + width * k
            x = plus(times(load_lanes(F, room, k), factor), gather_words(F, v, j + degree, apart, 0))
            store_lanes(room, k, x)
            if write:
                store_words(quotient, j, apart, lowest(x))
    for k in range(blocks):
        at = column_lo + 8 * k if apart == 1 else 8 * (column_lo + k)
        store_words(carry, at, 1, lowest(load_lanes(F, room, k)))
    return 0


@jit
def products(F, numerators, denominators, out, totals, one, lo, length, stop):
    """columns.products for eight ranges of ``length`` elements, one after the other from ``lo``.

    ``one``: 2^256 in every lane. ``totals``: eight elements of the numerators, eight of the denominators.
    """
    above, below = load_lanes(F, one, 0), load_lanes(F, one, 0)
    for j in range(length):
        if j & 0xFFF == 0 and stop[0] != 0:
            return STOPPED
        x = gather_words(F, denominators, lo + j, length, 0)
        nothing = zero_mask(x)
        y = gather_words(F, numerators, lo + j, length, 4)
        u, w = times_both(y, above, shifted(x, 4), below)
        above = lanes_select(nothing, lanes_zero(F), carried(u))
        below = lanes_select(nothing, below, carried(w))
        store_words(out, lo + j + 1, length, lowest(above))
    store_words(totals, 0, 1, lowest(above))
    store_words(totals, 8, 1, lowest(below))
    return 0


@jit
def quotients(F, denominators, out, factors, lo, length, stop):
    """columns.quotients for eight ranges; ``factors``: an element for each of them."""
    current = gather_words(F, factors, 0, 1, 0)
    for j in range(length - 1, -1, -1):
        if j & 0xFFF == 0 and stop[0] != 0:
            return STOPPED
        x = gather_words(F, denominators, lo + j, length, 0)
        nothing = zero_mask(x)
        y, w = times_both(gather_words(F, out, lo + j + 1, length, 4), current, shifted(x, 4), current)
        store_words(out, lo + j + 1, length, lowest(y))
        current = lanes_select(nothing, current, carried(w))
    return 0
