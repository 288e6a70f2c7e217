"""The kernel of :mod:`gpuprover.cpu.tape`: the operations of a tape, one after the other.

Values are canonical. A product of a factor in Montgomery form and a value is canonical, so that linear
combinations need no conversion; operations with many products convert what they read and write.
"""

from __future__ import annotations

import numpy as np

from gpuprover.cpu.kernels.field import (
    bare_one,
    frame_room,
    inverse,
    load,
    one,
    r_squared,
    store,
    times,
    zero,
)
from gpuprover.cpu.kernels.jit import inline, jit
from gpuprover.cpu.kernels.poseidon import permute
from gpuprover.cpu.layout import (
    ADICITY,
    BITS,
    COMBINE,
    DECOMPOSE,
    EDWARDS_D,
    EIGHTH,
    GATE,
    HALF_ODD,
    HALVES,
    INVERSE,
    IS_SQUARE,
    JUBJUB_ADD,
    JUBJUB_EIGHTH,
    JUBJUB_MULTIPLY,
    LESS,
    MOST_BITS,
    NONZERO,
    ODD_ROOT,
    OUTSIDE,
    POSEIDON,
    SELECT,
    SPREAD_LIMBS,
    SQUARE_ROOT,
    WORD_SUM,
)

WORDS = 4
U64 = np.uint64
FULL, PARTIAL, STEP = 8, 60, 6
"""Rounds of the permutation with three S-boxes and with one, and how many of the latter are in one row."""
ROUNDS = FULL + PARTIAL
CELLS = FULL * 6 + PARTIAL // STEP * (2 + STEP) + 3


# Integers ------------------------------------------------------------------------------------


@inline
def bit_field(values, x, start, count, out):
    """values[out] = (values[x] >> start) mod 2^count."""
    word, shift = start >> 6, U64(start & 63)
    for j in range(WORDS):
        w = U64(0)
        if word + j < WORDS:
            w = values[WORDS * x + word + j] >> shift
            if shift != U64(0) and word + j + 1 < WORDS:
                w |= values[WORDS * x + word + j + 1] << (U64(64) - shift)
        left = count - 64 * j
        if left <= 0:
            w = U64(0)
        elif left < 64:
            w &= (U64(1) << U64(left)) - U64(1)
        values[WORDS * out + j] = w


@inline
def small(values, x, start, count):
    """(values[x] >> start) mod 2^count, of at most 64 bits."""
    word, shift = start >> 6, U64(start & 63)
    w = U64(0)
    if word < WORDS:
        w = values[WORDS * x + word] >> shift
        if shift != U64(0) and word + 1 < WORDS:
            w |= values[WORDS * x + word + 1] << (U64(64) - shift)
    return w if count >= 64 else w & ((U64(1) << U64(count)) - U64(1))


@inline
def set_word(values, out, w):
    values[WORDS * out] = w
    for j in range(1, WORDS):
        values[WORDS * out + j] = U64(0)


@inline
def is_nonzero(values, x):
    found = U64(0)
    for j in range(WORDS):
        found |= values[WORDS * x + j]
    return found != U64(0)


@inline
def is_less(values, x, y):
    for j in range(WORDS - 1, -1, -1):
        if values[WORDS * x + j] != values[WORDS * y + j]:
            return values[WORDS * x + j] < values[WORDS * y + j]
    return False


@inline
def copy_value(values, x, out):
    for j in range(WORDS):
        values[WORDS * out + j] = values[WORDS * x + j]


@inline
def clear_low(values, out, count):
    """values[out] −= values[out] mod 2^count."""
    for j in range(WORDS):
        left = count - 64 * j
        if left >= 64:
            values[WORDS * out + j] = U64(0)
        elif left > 0:
            values[WORDS * out + j] &= ~((U64(1) << U64(left)) - U64(1))


# Words of SHA-256 ----------------------------------------------------------------------------


@inline
def spread(w):
    """Bit i of 32 goes to bit 2i."""
    w &= U64(0xFFFFFFFF)
    w = (w | (w << U64(16))) & U64(0x0000FFFF0000FFFF)
    w = (w | (w << U64(8))) & U64(0x00FF00FF00FF00FF)
    w = (w | (w << U64(4))) & U64(0x0F0F0F0F0F0F0F0F)
    w = (w | (w << U64(2))) & U64(0x3333333333333333)
    return (w | (w << U64(1))) & U64(0x5555555555555555)


@inline
def gathered(w):
    """Bit 2i goes to bit i; odd bits are dropped."""
    w &= U64(0x5555555555555555)
    w = (w | (w >> U64(1))) & U64(0x3333333333333333)
    w = (w | (w >> U64(2))) & U64(0x0F0F0F0F0F0F0F0F)
    w = (w | (w >> U64(4))) & U64(0x00FF00FF00FF00FF)
    w = (w | (w >> U64(8))) & U64(0x0000FFFF0000FFFF)
    return (w | (w >> U64(16))) & U64(0xFFFFFFFF)


@inline
def turned(w, amount):
    """64 bits turned to the right by amount mod 64, or shifted for an amount of 64 and more."""
    a = U64(amount & 63)
    if a == U64(0):
        return w
    if amount >= 64:
        return w >> a
    return (w >> a) | (w << (U64(64) - a))


# Powers and roots ----------------------------------------------------------------------------


@inline
def raised(F, x, tables, exponent):
    """x, in Montgomery form, to the power that stands in the tables as it is."""
    out = one(F)
    started = False
    for w in range(WORDS - 1, -1, -1):
        bits = tables[WORDS * exponent + w]
        for i in range(63, -1, -1):
            if started:
                out = times(out, out)
            if (bits >> U64(i)) & U64(1) != U64(0):
                out = times(out, x)
                started = True
    return out


@inline
def square_root(F, x, tables, tables_at):
    """The root of x, in Montgomery form, that the algorithm of Tonelli and Shanks finds; 0 where there is none.

    ``tables`` has g^t in Montgomery form, and (t − 1)/2 as it is, g being a non-residue and t the odd part of
    p − 1.
    """
    unit, nothing = one(F), zero(F)
    w = raised(F, x, tables, HALF_ODD)
    y = times(w, x)
    t = times(y, w)
    c, m = load(F, tables_at, ODD_ROOT), np.int64(tables[WORDS * ADICITY])
    if t == nothing:
        return nothing
    while t != unit:
        i, s = 0, t
        while s != unit and i < m:
            s = times(s, s)
            i += 1
        if i >= m:
            return nothing
        for _ in range(m - i - 1):
            c = times(c, c)
        y = times(y, c)
        c = times(c, c)
        t = times(t, c)
        m = i
    return y


@inline
def has_root(F, x, tables):
    """Whether x, in Montgomery form, is a square: whether x^t is 0 or has an order below 2^twos."""
    w = raised(F, x, tables, HALF_ODD)
    t = times(times(w, w), x)
    for _ in range(np.int64(tables[WORDS * ADICITY]) - 1):
        t = times(t, t)
    return t == one(F) or t == zero(F)


# Jubjub --------------------------------------------------------------------------------------


@inline
def doubled(x, y, z):
    """2·(x : y : z) in extended coordinates; a = −1."""
    a, b, c = times(x, x), times(y, y), times(z, z)
    e, g, h = times(x + y, x + y) - a - b, b - a, -(a + b)
    f = g - (c + c)
    return times(e, f), times(g, h), times(f, g), times(e, h)


@inline
def added(x, y, z, t, total, difference, product):
    """(x : y : z : t) + the point (u, v), of which v + u, v − u and 2d·u·v are given."""
    a, b, c, d = times(y - x, difference), times(y + x, total), times(t, product), z + z
    e, f, g, h = b - a, d - c, d + c, b + a
    return times(e, f), times(g, h), times(f, g), times(e, h)


@inline
def multiply(F, at, code, bits, count, u, v, d, out):
    """Rows of a multiplication of (u, v), bits most significant first, six values for each.

    A row's point q is twice the last row's sum, at first neutral; its sum s is q, plus (u, v) for a bit of 1.
    Values: q.x, q.y, s.x, s.y, s.x², q.x·q.y·u·v. One inversion serves all rows: first the six places hold
    q and s in projective coordinates.
    """
    into, plainly = r_squared(F), bare_one(F)
    u, v = times(u, into), times(v, into)
    both = times(u, v)
    total, difference, product = v + u, v - u, times(d + d, both)
    prefixes = frame_room(F, 512)
    x, y, z, t = zero(F), one(F), one(F), zero(F)
    denominators = one(F)
    for i in range(count):
        row = out + 6 * i
        if i > 0:
            x, y, z, t = doubled(x, y, z)
        store(at, row, x)
        store(at, row + 1, y)
        store(at, row + 4, z)
        store(prefixes, 2 * i, denominators)
        denominators = times(denominators, z)
        if load(F, at, code[bits + i]) != zero(F):
            x, y, z, t = added(x, y, z, t, total, difference, product)
        store(at, row + 2, x)
        store(at, row + 3, y)
        store(at, row + 5, z)
        store(prefixes, 2 * i + 1, denominators)
        denominators = times(denominators, z)
    rest = inverse(denominators)
    for i in range(count - 1, -1, -1):
        row = out + 6 * i
        over = times(load(F, prefixes, 2 * i + 1), rest)
        rest = times(rest, load(F, at, row + 5))
        sx, sy = times(load(F, at, row + 2), over), times(load(F, at, row + 3), over)
        over = times(load(F, prefixes, 2 * i), rest)
        rest = times(rest, load(F, at, row + 4))
        qx, qy = times(load(F, at, row), over), times(load(F, at, row + 1), over)
        store(at, row, times(qx, plainly))
        store(at, row + 1, times(qy, plainly))
        store(at, row + 2, times(sx, plainly))
        store(at, row + 3, times(sy, plainly))
        store(at, row + 4, times(times(sx, sx), plainly))
        store(at, row + 5, times(times(times(qx, qy), both), plainly))


@inline
def sum_of_points(F, at, a, b, c, e, d, out):
    """values[out], values[out + 1] = (a, b) + (c, e); values[out + 2] = a·b·c·e."""
    into, plainly = r_squared(F), bare_one(F)
    x, y, u, v = (
        times(load(F, at, a), into),
        times(load(F, at, b), into),
        times(load(F, at, c), into),
        times(load(F, at, e), into),
    )
    product = times(times(x, y), times(u, v))
    t = times(d, product)
    more, less = one(F) + t, one(F) - t
    over = times(inverse(times(more, less)), plainly)
    store(at, out, times(times(times(x, v) + times(u, y), less), over))
    store(at, out + 1, times(times(times(y, v) + times(x, u), more), over))
    store(at, out + 2, times(product, plainly))


@inline
def eighth(F, at, a, b, d, tables, out):
    """values[out], values[out + 1] = the point of the subgroup of which (a, b) is eight times."""
    into, plainly = r_squared(F), bare_one(F)
    u, v = times(load(F, at, a), into), times(load(F, at, b), into)
    total, difference, product = v + u, v - u, times(d + d, times(u, v))
    x, y, z, t = zero(F), one(F), one(F), zero(F)
    started = False
    for w in range(WORDS - 1, -1, -1):
        bits = tables[WORDS * EIGHTH + w]
        for i in range(63, -1, -1):
            if started:
                x, y, z, t = doubled(x, y, z)
            if (bits >> U64(i)) & U64(1) != U64(0):
                x, y, z, t = added(x, y, z, t, total, difference, product)
                started = True
    over = times(inverse(z), plainly)
    store(at, out, times(x, over))
    store(at, out + 1, times(y, over))


# Poseidon ------------------------------------------------------------------------------------


@inline
def permutation(F, at, x, y, z, tables_at, out):
    """The cells of a permutation's rows: the state, then cubes of it, or the last element in later rounds."""
    into, plainly = r_squared(F), bare_one(F)
    trace = frame_room(F, 207)
    a, b, c = times(load(F, at, x), into), times(load(F, at, y), into), times(load(F, at, z), into)
    permute(F, a, b, c, tables_at, FULL // 2, ROUNDS, trace)
    i = 0
    while i <= ROUNDS:
        for j in range(3):
            store(at, out + j, times(load(F, trace, 3 * i + j), plainly))
        out += 3
        if i == ROUNDS:
            i += 1
        elif i < FULL // 2 or i >= ROUNDS - FULL // 2:
            for j in range(3):
                v = load(F, trace, 3 * i + j)
                store(at, out + j, times(times(times(v, v), v), plainly))
            out += 3
            i += 1
        else:
            for j in range(1, STEP):
                store(at, out + j - 1, times(load(F, trace, 3 * (i + j) + 2), plainly))
            out += STEP - 1
            i += STEP


# Tapes ---------------------------------------------------------------------------------------


@jit
def check(code, size, places):
    """0, or OUTSIDE.

    Results follow each other, operands come before the results, and nothing lies outside of its array.

    Args:
        code: int64[length].
        size: values.
        places: elements of the pool.
    """
    at, end, last = 0, code.size, 0
    while at < end:
        if at + 3 > end:
            return OUTSIDE
        op, out = code[at], code[at + 1]
        left = end - at - 2
        # Values: `many` of them from `first` on, each `step` words behind the last.
        first, many, step = at + 2, 1, 1
        pooled, distance, pools = 0, 1, 0
        results, words = 1, 1
        if op == COMBINE:
            if left < 2:
                return OUTSIDE
            many = code[at + 3]
            if many < 0 or 2 * many > left - 2:
                return OUTSIDE
            first, step, words = at + 5, 2, 2 + 2 * many
            pooled, distance, pools = at + 4, 2, many
            if code[at + 2] < 0 or code[at + 2] >= places:
                return OUTSIDE
        elif op == GATE:
            many, words, pooled, pools = 3, 9, at + 5, 6
        elif op == INVERSE:
            words, pooled, pools = 2, at + 3, 1
        elif op == LESS:
            many, words = 2, 2
        elif op == BITS:
            words = 3
            if left < 3 or code[at + 3] < 0 or code[at + 3] > 255 or code[at + 4] < 0 or code[at + 4] > 256:
                return OUTSIDE
        elif op == SELECT:
            many, words = 3, 3
        elif op == DECOMPOSE or op == SPREAD_LIMBS:
            if left < 2 or code[at + 3] < 0 or code[at + 3] > left - 2:
                return OUTSIDE
            count, total = code[at + 3], 0
            for i in range(count):
                bits = code[at + 4 + i]
                if bits < 0 or bits > 64:
                    return OUTSIDE
                total += bits
            if total > (256 if op == DECOMPOSE else 64):
                return OUTSIDE
            words, results = 2 + count, 2 * count
            if op == SPREAD_LIMBS:
                results += 1
        elif op == POSEIDON:
            many, words, results = 3, 3, CELLS
        elif op == WORD_SUM:
            if left < 1:
                return OUTSIDE
            many = code[at + 2]
            if many < 0 or 2 * many > left - 1:
                return OUTSIDE
            first, step, words = at + 3, 2, 1 + 2 * many
            for i in range(many):
                if code[at + 4 + 2 * i] < 0 or code[at + 4 + 2 * i] >= 128:
                    return OUTSIDE
        elif op == HALVES:
            results = 2
        elif op == JUBJUB_ADD:
            many, words, results = 4, 4, 3
        elif op == JUBJUB_EIGHTH:
            many, words, results = 2, 2, 2
        elif op == JUBJUB_MULTIPLY:
            if left < 1:
                return OUTSIDE
            bits = code[at + 2]
            if bits < 0 or bits > MOST_BITS or bits + 2 > left - 1:
                return OUTSIDE
            first, many, words, results = at + 3, bits + 2, bits + 3, 6 * bits
        elif op != NONZERO and op != SQUARE_ROOT and op != IS_SQUARE:
            return OUTSIDE
        if words > left or out < last or results > size - out:
            return OUTSIDE
        for i in range(many):
            x = code[first + i * step]
            if x < 0 or x >= out:
                return OUTSIDE
        for i in range(pools):
            x = code[pooled + i * distance]
            if x < 0 or x >= places:
                return OUTSIDE
        last = out + results
        at += 2 + words
    return 0


@jit
def run(F, code, pool, factors, tables, tables_at, values, at):
    """All operations of a tape that :func:`check` has found right.

    Args:
        code: int64[length]; see :class:`gpuprover.midnight.circuit.tape.Op`.
        pool, factors: addresses of the tape's elements, canonical and in Montgomery form.
        tables, tables_at: what operations have to know, uint64[4·n], and its address.
        values, at: all values, uint64[4·n], those that no operation makes being there, and their address.
    """
    into, plainly = r_squared(F), bare_one(F)
    here, end = 0, code.size
    while here < end:
        op, out, x = code[here], code[here + 1], code[here + 2]
        here += 2
        if op == COMBINE:
            count = code[here + 1]
            total = load(F, pool, x)
            here += 2
            for i in range(count):
                factor, value = load(F, factors, code[here + 2 * i]), load(F, at, code[here + 2 * i + 1])
                total = total + times(factor, value)
            store(at, out, total)
            here += 2 * count
        elif op == GATE:
            a, b, c = load(F, at, x), load(F, at, code[here + 1]), load(F, at, code[here + 2])
            total = load(F, pool, code[here + 6]) + times(load(F, factors, code[here + 3]), a)
            total = total + times(load(F, factors, code[here + 4]), b)
            total = total + times(load(F, factors, code[here + 5]), c)
            products = times(load(F, factors, code[here + 7]), b) + times(load(F, factors, code[here + 8]), c)
            store(at, out, total + times(products, times(a, into)))
            here += 9
        elif op == INVERSE:
            a = load(F, at, x)
            if a == zero(F):
                store(at, out, load(F, pool, code[here + 1]))
            else:
                store(at, out, times(inverse(times(a, into)), plainly))
            here += 2
        elif op == NONZERO:
            set_word(values, out, U64(1) if is_nonzero(values, x) else U64(0))
            here += 1
        elif op == LESS:
            set_word(values, out, U64(1) if is_less(values, x, code[here + 1]) else U64(0))
            here += 2
        elif op == BITS:
            bit_field(values, x, code[here + 1], code[here + 2], out)
            here += 3
        elif op == SELECT:
            copy_value(values, code[here + 1] if is_nonzero(values, x) else code[here + 2], out)
            here += 3
        elif op == SQUARE_ROOT:
            root = square_root(F, times(load(F, at, x), into), tables, tables_at)
            store(at, out, times(root, plainly))
            here += 1
        elif op == IS_SQUARE:
            set_word(values, out, U64(1) if has_root(F, times(load(F, at, x), into), tables) else U64(0))
            here += 1
        elif op == DECOMPOSE:
            count, shift = code[here + 1], 0
            here += 2
            for i in range(count):
                bits = code[here + i]
                set_word(values, out, small(values, x, shift, bits))
                copy_value(values, x, out + 1)
                clear_low(values, out + 1, shift)
                shift += bits
                out += 2
            here += count
        elif op == POSEIDON:
            permutation(F, at, x, code[here + 1], code[here + 2], tables_at, out)
            here += 3
        elif op == WORD_SUM:
            total = U64(0)
            for i in range(x):
                total += turned(values[WORDS * code[here + 1 + 2 * i]], code[here + 2 + 2 * i])
            set_word(values, out, total)
            here += 1 + 2 * x
        elif op == HALVES:
            w = values[WORDS * x]
            set_word(values, out, gathered(w))
            set_word(values, out + 1, gathered(w >> U64(1)))
            here += 1
        elif op == SPREAD_LIMBS:
            count, shift = code[here + 1], 0
            here += 2
            for i in range(count):
                shift += code[here + i]
            for i in range(count):
                shift -= code[here + i]
                w = small(values, x, shift, code[here + i])
                set_word(values, out, w)
                set_word(values, out + 1, spread(w))
                out += 2
            set_word(values, out, spread(values[WORDS * x]))
            here += count
        elif op == JUBJUB_ADD:
            d = load(F, tables_at, EDWARDS_D)
            sum_of_points(F, at, x, code[here + 1], code[here + 2], code[here + 3], d, out)
            here += 4
        elif op == JUBJUB_EIGHTH:
            eighth(F, at, x, code[here + 1], load(F, tables_at, EDWARDS_D), tables, out)
            here += 2
        else:
            u, v = load(F, at, code[here + 1]), load(F, at, code[here + 2])
            multiply(F, at, code, here + 3, x, u, v, load(F, tables_at, EDWARDS_D), out)
            here += 3 + x
