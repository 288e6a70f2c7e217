"""The group law of y² = x³ + b (a = 0), once for G1 (over Fq) and G2 (over Fq2).

In memory a point is affine, x then y, and infinity is all zeros. In registers a point is
XYZZ: (X, Y, ZZ, ZZZ) with x = X/ZZ, y = Y/ZZZ, ZZ³ = ZZZ², and ZZ = 0 for infinity
(EFD, "XYZZ coordinates for short Weierstrass curves": add-2008-s, madd-2008-s,
dbl-2008-s-1). Long sums use affine additions with one inversion for a whole batch,
:func:`add_pairs`: six products an addition where XYZZ takes ten.

Every function is complete: equal points, opposite points and infinity are right.
"""

from __future__ import annotations

import numpy as np

from gpuprover.cpu.kernels.field import inverse, is_canonical, load, negate_if, one, square, store, zero
from gpuprover.cpu.kernels.jit import inline, jit
from gpuprover.cpu.layout import COMBINED, COMBINED_WIDTH

NEGATE = 0x80000000
"""Bit 31 of a point index: take the point's negative."""
INDEX_MASK = 0x7FFFFFFF

_ADD, _DOUBLE, _TAKE_P, _TAKE_Q, _INFINITY = 0, 1, 2, 3, 4


# XYZZ ------------------------------------------------------------------------------------


@inline
def identity(F):
    return (zero(F), zero(F), zero(F), zero(F))


@inline
def from_affine(F, x, y):
    if x == zero(F) and y == zero(F):
        return (zero(F), zero(F), zero(F), zero(F))
    return (x, y, one(F), one(F))


@inline
def double(F, p):
    """2p: nine products."""
    x, y, zz, zzz = p
    u = y + y
    v = square(u)
    w = u * v
    s = x * v
    xx = square(x)
    m = xx + xx + xx
    x3 = square(m) - s - s
    return (x3, m * (s - x3) - w * y, v * zz, w * zzz)


@inline
def add(F, p, q):
    """p + q: fourteen products."""
    x1, y1, zz1, zzz1 = p
    x2, y2, zz2, zzz2 = q
    if zz1 == zero(F):
        return q
    if zz2 == zero(F):
        return p
    u1, u2 = x1 * zz2, x2 * zz1
    s1, s2 = y1 * zzz2, y2 * zzz1
    d, r = u2 - u1, s2 - s1
    if d == zero(F):
        if r == zero(F):
            return double(F, p)
        return identity(F)
    dd = square(d)
    ddd = d * dd
    v = u1 * dd
    x3 = square(r) - ddd - v - v
    return (x3, r * (v - x3) - s1 * ddd, zz1 * zz2 * dd, zzz1 * zzz2 * ddd)


@inline
def add_affine(F, p, x2, y2):
    """p + (x2, y2): ten products."""
    x1, y1, zz1, zzz1 = p
    if x2 == zero(F) and y2 == zero(F):
        return p
    if zz1 == zero(F):
        return (x2, y2, one(F), one(F))
    d, r = x2 * zz1 - x1, y2 * zzz1 - y1
    if d == zero(F):
        if r == zero(F):
            return double(F, p)
        return identity(F)
    dd = square(d)
    ddd = d * dd
    v = x1 * dd
    x3 = square(r) - ddd - v - v
    return (x3, r * (v - x3) - y1 * ddd, zz1 * dd, zzz1 * ddd)


@inline
def load_xyzz(F, address, i):
    return (
        load(F, address, 4 * i),
        load(F, address, 4 * i + 1),
        load(F, address, 4 * i + 2),
        load(F, address, 4 * i + 3),
    )


@inline
def store_xyzz(F, address, i, p):
    store(address, 4 * i, p[0])
    store(address, 4 * i + 1, p[1])
    store(address, 4 * i + 2, p[2])
    store(address, 4 * i + 3, p[3])


@inline
def scalar_bit(scalars, words, i, bit):
    """Bit ``bit`` of scalar ``i`` of a flat uint64 array with ``words`` words each."""
    return (scalars[i * words + (bit >> 6)] >> (bit & 63)) & 1


@inline
def scalar_bits(scalars, words, i):
    """Bit length of scalar ``i``."""
    for k in range(words - 1, -1, -1):
        w = scalars[i * words + k]
        if w != 0:
            n = 64 * k
            while w != 0:
                w >>= 1
                n += 1
            return n
    return 0


@inline
def multiply(F, p, scalars, words, i):
    """scalars[i]·p by double-and-add from the top bit."""
    acc = identity(F)
    for bit in range(scalar_bits(scalars, words, i) - 1, -1, -1):
        acc = double(F, acc)
        if scalar_bit(scalars, words, i, bit):
            acc = add(F, acc, p)
    return acc


@jit
def normalise(F, source, out, prefix, n):
    """n XYZZ points -> affine points, with one inversion. ``prefix`` has room for n elements."""
    total = one(F)
    for i in range(n):
        store(prefix, i, total)
        zzz = load(F, source, 4 * i + 3)
        if zzz != zero(F):
            total = total * zzz
    total = inverse(total)
    for i in range(n - 1, -1, -1):
        x, y, zz, zzz = load_xyzz(F, source, i)
        if zzz == zero(F):
            store(out, 2 * i, zero(F))
            store(out, 2 * i + 1, zero(F))
            continue
        t = load(F, prefix, i) * total  # 1/ZZZ
        total = total * zzz
        z = t * zz  # ZZ/ZZZ = 1/z
        store(out, 2 * i, x * square(z))
        store(out, 2 * i + 1, y * t)


# Batches of affine additions ---------------------------------------------------------------


@inline
def _load_y(F, base, index):
    return negate_if(load(F, base, 2 * (index & INDEX_MASK) + 1), index & NEGATE)


@inline
def copy_point(F, source, index, out, o):
    """out[o] = ±source[index]."""
    store(out, 2 * o, load(F, source, 2 * (index & INDEX_MASK)))
    store(out, 2 * o + 1, _load_y(F, source, index))


@inline
def is_infinity(F, base, i):
    return load(F, base, 2 * i) == zero(F) and load(F, base, 2 * i + 1) == zero(F)


@jit
def add_pairs(F, ps, p_index, qs, q_index, out, out_index, n, prefix, kinds):
    """out[out_index[k]] = ±ps[p_index[k]] ± qs[q_index[k]] for k < n, all affine, with one inversion.

    Indices are int64 with :data:`NEGATE` as the sign. Pairs are written from the last to the
    first: ``out`` may overlap the inputs if no pair's output is an input of an earlier pair.
    ``prefix`` has room for n elements, ``kinds`` is uint8[≥ n].
    """
    # 1. Denominators x2 − x1 (2y for equal points) and their running product.
    total = one(F)
    nothing = zero(F)
    for k in range(n):
        p, q = p_index[k], q_index[k]
        x1, x2 = load(F, ps, 2 * (p & INDEX_MASK)), load(F, qs, 2 * (q & INDEX_MASK))
        d = x2 - x1
        kind = _ADD
        if x1 == nothing or x2 == nothing or d == nothing:
            y1, y2 = _load_y(F, ps, p), _load_y(F, qs, q)
            if x2 == nothing and y2 == nothing:
                kind = _TAKE_P
            elif x1 == nothing and y1 == nothing:
                kind = _TAKE_Q
            elif d == nothing:
                if y1 == y2 and y1 != nothing:
                    kind = _DOUBLE
                    d = y1 + y1
                else:
                    kind = _INFINITY
        kinds[k] = kind
        if kind <= _DOUBLE:
            store(prefix, k, total)
            total = total * d
    # 2. One inversion. 3. Back again: each denominator's inverse, and the chord or tangent.
    total = inverse(total)
    for k in range(n - 1, -1, -1):
        p, q, o = p_index[k], q_index[k], out_index[k]
        kind = kinds[k]
        if kind <= _DOUBLE:
            x1, y1 = load(F, ps, 2 * (p & INDEX_MASK)), _load_y(F, ps, p)
            x2, y2 = load(F, qs, 2 * (q & INDEX_MASK)), _load_y(F, qs, q)
            t = load(F, prefix, k) * total
            if kind == _ADD:
                total = total * (x2 - x1)
                slope = (y2 - y1) * t
            else:
                total = total * (y1 + y1)
                xx = square(x1)
                slope = (xx + xx + xx) * t
            x3 = square(slope) - x1 - x2
            store(out, 2 * o, x3)
            store(out, 2 * o + 1, slope * (x1 - x3) - y1)
        elif kind == _TAKE_P:
            copy_point(F, ps, p, out, o)
        elif kind == _TAKE_Q:
            copy_point(F, qs, q, out, o)
        else:
            store(out, 2 * o, nothing)
            store(out, 2 * o + 1, nothing)


# Sums of a few multiples --------------------------------------------------------------------


@inline
def recode(scalars, words, i, digits):
    """Scalar ``i`` as Σ digits[i, k]·2^k -> how many of them count.

    Digits are odd and below 2^(COMBINED_WIDTH − 1) in absolute value, or 0, as are the COMBINED_WIDTH − 1
    after one that is not (Solinas, "Efficient arithmetic on Koblitz curves", 2000, width-w NAF).
    """
    for k in range(digits.shape[1]):
        digits[i, k] = 0
    end, top = 64 * words, scalar_bits(scalars, words, i)
    k, carry, length = 0, 0, 0
    while k < top or carry != 0:
        bit = np.int64(scalar_bit(scalars, words, i, k)) if k < end else 0
        if (bit + carry) & 1 == 0:
            k += 1
            continue
        value = carry
        for j in range(COMBINED_WIDTH):
            if k + j < end:
                value += np.int64(scalar_bit(scalars, words, i, k + j)) << j
        carry = value >> (COMBINED_WIDTH - 1)
        digits[i, k] = value - (carry << COMBINED_WIDTH)
        length = k + 1
        k += COMBINED_WIDTH
    return length


@jit
def linear_combination(F, points, scalars, words, n, table, digits, p_index, q_index, o_index, prefix, kinds,
                       out):  # fmt: skip
    """XYZZ out[0] = Σ scalars[i]·points[i] of a few affine points; scalars are flat canonical words.

    All share the doublings: Straus, "Addition chains of vectors" (1964).

    Args:
        table: room for COMBINED + 1 affine points for each of the n.
        digits: int8[n, > 64·words + COMBINED_WIDTH].
        p_index, q_index, o_index: int64[n]; kinds: uint8[n]; prefix: room for n elements.
    """
    length = 0
    for i in range(n):
        length = max(length, recode(scalars, words, i, digits))
        copy_point(F, points, i, table, i)
        p_index[i], q_index[i], o_index[i] = i, i, COMBINED * n + i
    # (2d + 1)·points[i] at d·n + i, and the doubles behind them.
    add_pairs(F, table, p_index, table, q_index, table, o_index, n, prefix, kinds)
    for d in range(1, COMBINED):
        for i in range(n):
            p_index[i], q_index[i], o_index[i] = (d - 1) * n + i, COMBINED * n + i, d * n + i
        add_pairs(F, table, p_index, table, q_index, table, o_index, n, prefix, kinds)
    acc = identity(F)
    for k in range(length - 1, -1, -1):
        acc = double(F, acc)
        for i in range(n):
            digit = np.int64(digits[i, k])
            if digit != 0:
                at = (abs(digit) >> 1) * n + i
                y = negate_if(load(F, table, 2 * at + 1), digit >> 63)
                acc = add_affine(F, acc, load(F, table, 2 * at), y)
    store_xyzz(F, out, 0, acc)


# Checks --------------------------------------------------------------------------------------


@jit
def suffix_sums(F, points, n, out):
    """Row i of the XYZZ rows ``out`` is Σ points[j] over j >= i."""
    total = identity(F)
    for i in range(n - 1, -1, -1):
        total = add_affine(F, total, load(F, points, 2 * i), load(F, points, 2 * i + 1))
        store_xyzz(F, out, i, total)


@jit
def first_off_curve(F, points, coefficient, lo, hi):
    """First i in [lo, hi) with a coordinate >= q or y² ≠ x³ + b, infinity excepted; −1 if none."""
    b = load(F, coefficient, 0)
    for i in range(lo, hi):
        x, y = load(F, points, 2 * i), load(F, points, 2 * i + 1)
        if not (is_canonical(x) and is_canonical(y)):
            return i
        if x == zero(F) and y == zero(F):
            continue
        if square(y) != square(x) * x + b:
            return i
    return -1
