"""The optimal ate pairing of both curves, and the subgroup tests that its endomorphisms give.

Tower: Fq2 = Fq[u]/(u² + 1), Fq6 = Fq2[v]/(v³ − ξ) as tuples of three, Fq12 = Fq6[w]/(w² − v)
as tuples of two. Steps:

1. Lines: for each point of G2, the Miller loop's line coefficients in homogeneous
   coordinates (Aranha, Karabina, Longa, Gebotys, López, "Faster explicit formulas for computing
   pairings over ordinary curves", 2010, section 4); kept for points that come again, as
   those of a verification key do. Where the multiples end tells whether the point is in its
   subgroup (:func:`gpuprover.cpu.pairing.subgroup_check`), so that test costs nothing.
2. Miller loop for many pairs at once: one squaring of Fq12 a step. With AVX-512 IFMA, points that are not
   kept go eight at a time, by the same formulas, into eight products.
3. Final exponentiation: easy part, then for BN Scott, Benger, Charlemagne, Dominguez Perez,
   Kachisa, "On the final exponentiation…" (2009), for BLS12 Hayashida, Hayasaka, Teruya,
   "Efficient final exponentiation via cyclotomic structure…" (2020), which is a cube
   of the reduced pairing; squarings by Granger and Scott (2010), section 3.2. Only
   equality with 1 is ever asked, so the cube is as good.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.core import types
from numba.core.extending import overload

from gpuprover.cpu.kernels import curve
from gpuprover.cpu.kernels.extension_lanes import into_lanes, lanes_scale, lanes_square_shared, lanes_times_xi
from gpuprover.cpu.kernels.field import (
    ElementType,
    element_bytes,
    inverse,
    load,
    one,
    pair,
    part,
    plain,
    square,
    store,
    zero,
)
from gpuprover.cpu.kernels.jit import inline, jit
from gpuprover.cpu.kernels.lanes import (
    LanesType,
    canonical,
    lanes_one,
    lanes_splat,
    lanes_zero,
)
from gpuprover.cpu.kernels.lanes_memory import (
    load_elements,
    load_lanes,
    store_elements,
    store_lanes,
    vector_bytes,
)
from gpuprover.cpu.layout import DOUBLE, LINE, ROOM, STOPPED
from gpuprover.curves import PAIRING_CURVES

# The tower ---------------------------------------------------------------------------------


def multiply_by_xi(x: Any) -> Any:
    """ξ·x."""
    raise TypeError("only for compiled code")


@overload(multiply_by_xi)
def _multiply_by_xi(x):
    if isinstance(x, LanesType):
        return lambda x: lanes_times_xi(x)
    if not isinstance(x, ElementType) or x.degree != 2:
        return None
    xi = next(c.pairing.xi for c in PAIRING_CURVES if c.base.name == x.params.name)
    if xi == (1, 1):
        return lambda x: pair(part(x, 0) - part(x, 1), part(x, 0) + part(x, 1))
    if xi == (9, 1):

        def nine_plus_u(x):
            t = x + x
            t = t + t
            t = t + t + x
            return pair(part(t, 0) - part(x, 1), part(t, 1) + part(x, 0))

        return nine_plus_u
    raise types.errors.TypingError(f"no multiplication by ξ = {xi}")


def squared(x: Any) -> Any:
    """x², of one element or of eight."""
    raise TypeError("only for compiled code")


@overload(squared)
def _squared(x):
    return (lambda x: lanes_square_shared(x)) if isinstance(x, LanesType) else (lambda x: square(x))


@inline
def conjugate(x):
    return pair(part(x, 0), -part(x, 1))


@inline
def scale(x, k):
    """x·k for k in Fq."""
    return pair(part(x, 0) * k, part(x, 1) * k)


@inline
def add6(a, b):
    return (a[0] + b[0], a[1] + b[1], a[2] + b[2])


@inline
def sub6(a, b):
    return (a[0] - b[0], a[1] - b[1], a[2] - b[2])


@inline
def neg6(a):
    return (-a[0], -a[1], -a[2])


@inline
def by_v(a):
    return (multiply_by_xi(a[2]), a[0], a[1])


@inline
def mul6(a, b):
    v0, v1, v2 = a[0] * b[0], a[1] * b[1], a[2] * b[2]
    c0 = v0 + multiply_by_xi((a[1] + a[2]) * (b[1] + b[2]) - v1 - v2)
    c1 = (a[0] + a[1]) * (b[0] + b[1]) - v0 - v1 + multiply_by_xi(v2)
    c2 = (a[0] + a[2]) * (b[0] + b[2]) - v0 - v2 + v1
    return (c0, c1, c2)


@inline
def mul6_by_01(a, b0, b1):
    """a·(b0 + b1·v)."""
    v0, v1 = a[0] * b0, a[1] * b1
    c0 = multiply_by_xi((a[1] + a[2]) * b1 - v1) + v0
    c1 = (a[0] + a[1]) * (b0 + b1) - v0 - v1
    return (c0, c1, (a[0] + a[2]) * b0 - v0 + v1)


@inline
def inverse6(a):
    c0 = square(a[0]) - multiply_by_xi(a[1] * a[2])
    c1 = multiply_by_xi(square(a[2])) - a[0] * a[1]
    c2 = square(a[1]) - a[0] * a[2]
    t = inverse(multiply_by_xi(a[2] * c1 + a[1] * c2) + a[0] * c0)
    return (c0 * t, c1 * t, c2 * t)


@inline
def one12(F):
    return ((one(F), zero(F), zero(F)), (zero(F), zero(F), zero(F)))


@inline
def mul12(a, b):
    v0, v1 = mul6(a[0], b[0]), mul6(a[1], b[1])
    c1 = sub6(sub6(mul6(add6(a[0], a[1]), add6(b[0], b[1])), v0), v1)
    return (add6(v0, by_v(v1)), c1)


@inline
def square12(a):
    v0 = mul6(a[0], a[1])
    c0 = sub6(sub6(mul6(add6(a[0], a[1]), add6(a[0], by_v(a[1]))), v0), by_v(v0))
    return (c0, add6(v0, v0))


@inline
def conjugate12(a):
    return (a[0], neg6(a[1]))


@inline
def inverse12(a):
    t = inverse6(sub6(mul6(a[0], a[0]), by_v(mul6(a[1], a[1]))))
    return (mul6(a[0], t), neg6(mul6(a[1], t)))


@inline
def frobenius12(F, a, powers):
    """a^q; ``powers`` holds ξ^(k(q − 1)/6) for k < 6."""
    x, y = a
    return (
        (conjugate(x[0]), conjugate(x[1]) * load(F, powers, 2), conjugate(x[2]) * load(F, powers, 4)),
        (
            conjugate(y[0]) * load(F, powers, 1),
            conjugate(y[1]) * load(F, powers, 3),
            conjugate(y[2]) * load(F, powers, 5),
        ),
    )


@inline
def _square4(a, b):
    """(a + b·s)² with s² = ξ."""
    t0, t1 = square(a), square(b)
    return multiply_by_xi(t1) + t0, square(a + b) - t0 - t1


@inline
def _thrice_minus_twice(t, z):
    d = t - z
    return d + d + t


@inline
def _thrice_plus_twice(t, z):
    s = t + z
    return s + s + t


@inline
def cyclotomic_square(a):
    """a² for a of the cyclotomic subgroup."""
    (z0, z4, z3), (z2, z1, z5) = a
    t0, t1 = _square4(z0, z1)
    t2, t3 = _square4(z2, z3)
    t4, t5 = _square4(z4, z5)
    return (
        (_thrice_minus_twice(t0, z0), _thrice_minus_twice(t2, z4), _thrice_minus_twice(t4, z3)),
        (_thrice_plus_twice(multiply_by_xi(t5), z2), _thrice_plus_twice(t1, z1), _thrice_plus_twice(t3, z5)),
    )


@inline
def _power12(a, exponent):
    """a^exponent for a of the cyclotomic subgroup, exponent a uint64 > 0."""
    result = a
    top = 63
    while (exponent >> np.uint64(top)) & np.uint64(1) == 0:
        top -= 1
    for bit in range(top - 1, -1, -1):
        result = cyclotomic_square(result)
        if (exponent >> np.uint64(bit)) & np.uint64(1):
            result = mul12(result, a)
    return result


# 1. Lines ------------------------------------------------------------------------------------


@inline
def _double_step(t, three_b):
    """Twice t (homogeneous, all coordinates times four), and the tangent."""
    x, y, z = t
    a, b, c = x * y, squared(y), squared(z)
    e = three_b * c
    f = e + e + e
    g = b + f
    h = squared(y + z) - b - c
    xx = squared(x)
    ee = squared(e)
    ee = ee + ee + ee
    ee = ee + ee
    ab = a * (b - f)
    bh = b * h
    bh = bh + bh
    return (ab + ab, squared(g) - ee - ee, bh + bh), (-h, xx + xx + xx, e - b)


@inline
def _add_step(t, x2, y2):
    """t and the affine point, added, and the chord."""
    x, y, z = t
    theta, lam = y - y2 * z, x - x2 * z
    c, d = squared(theta), squared(lam)
    e = lam * d
    f, g = z * c, x * d
    h = e + f - g - g
    return (lam * h, theta * (g - h) - e * y, z * e), (lam, -theta, theta * x2 - lam * y2)


@inline
def _store3(out, i, x):
    store(out, 3 * i, x[0])
    store(out, 3 * i + 1, x[1])
    store(out, 3 * i + 2, x[2])


@inline
def untwisted_frobenius(F, x, y, frobenius):
    """ψ(x, y): Frobenius, carried over to the twist."""
    return conjugate(x) * load(F, frobenius, 0), conjugate(y) * load(F, frobenius, 1)


@jit
def lines(F, points, n, digits, constants, is_bn, out, per_point, stop):
    """The lines of n affine points; the first point outside the subgroup, −1 or :data:`STOPPED`.

    ``constants``: 3b', then the two factors of ψ. The formulas are right but for T = ±Q, T of order
    two and T = 0, which the multiples of a point of order r never are; Z is 0 from there on.
    """
    three_b = load(F, constants, 0)
    frobenius = constants + 2 * 8 * _limbs(F)
    for i in range(n):
        if stop[0] != 0:
            return STOPPED
        lines = out + i * per_point * LINE * 2 * 8 * _limbs(F)
        x, y = load(F, points, 2 * i), load(F, points, 2 * i + 1)
        t = (x, y, one(F))
        k = 0
        for j in range(len(digits) - 2, -1, -1):
            t, line = _double_step(t, three_b)
            _store3(lines, k, line)
            k += 1
            if digits[j] != 0:
                t, line = _add_step(t, x, y if digits[j] > 0 else -y)
                _store3(lines, k, line)
                k += 1
        x, y = untwisted_frobenius(F, x, y, frobenius)
        if is_bn:
            t, line = _add_step(t, x, y)
            _store3(lines, k, line)
            x, y = untwisted_frobenius(F, x, y, frobenius)
            t, line = _add_step(t, x, -y)
            _store3(lines, k + 1, line)
            x, y = untwisted_frobenius(F, x, y, frobenius)
        # BN: (6x + 2)Q + ψQ − ψ²Q = −ψ³Q. BLS12 with x < 0: −xQ = −ψQ.
        if t[2] == zero(F) or t[0] != x * t[2] or t[1] != -y * t[2]:
            return i
    return -1


def _limbs(F: Any) -> int:
    raise TypeError("only for compiled code")


@overload(_limbs)
def _limbs_overload(F):
    limbs = F.params.limbs
    return lambda F: limbs


# 2. and 3. -------------------------------------------------------------------------------------


@inline
def _multiply_by_line(f, c0, c1, c2, is_d_twist):
    if is_d_twist:  # c0 + (c1 + c2·v)·w
        v0 = (f[0][0] * c0, f[0][1] * c0, f[0][2] * c0)
        v1 = mul6_by_01(f[1], c1, c2)
        cross = mul6_by_01(add6(f[0], f[1]), c0 + c1, c2)
    else:  # (c2 + c1·v) + c0·v·w
        v0 = mul6_by_01(f[0], c2, c1)
        v1 = (multiply_by_xi(f[1][2] * c0), f[1][0] * c0, f[1][1] * c0)
        cross = mul6_by_01(add6(f[0], f[1]), c2, c1 + c0)
    return (add6(v0, by_v(v1)), sub6(sub6(cross, v0), v1))


@inline
def _apply_lines(F, Q, f, g1, n, lines, per_point, k, is_d_twist):
    """Multiplies f by line k of each of n points, taken at the points of G1."""
    for i in range(n):
        at = 3 * (i * per_point + k)
        c0 = scale(load(Q, lines, at), load(F, g1, 2 * i + 1))
        c1 = scale(load(Q, lines, at + 1), load(F, g1, 2 * i))
        f = _multiply_by_line(f, c0, c1, load(Q, lines, at + 2), is_d_twist)
    return f


@inline
def _hard_part_bn(Q, f, seed, powers):
    f1 = _power12(f, seed)
    f2 = _power12(f1, seed)
    f3 = _power12(f2, seed)
    fq = frobenius12(Q, f, powers)
    fq2 = frobenius12(Q, fq, powers)
    y0 = mul12(mul12(fq, fq2), frobenius12(Q, fq2, powers))
    f2q = frobenius12(Q, f2, powers)
    y1 = conjugate12(f)
    y2 = frobenius12(Q, f2q, powers)
    y3 = conjugate12(frobenius12(Q, f1, powers))
    y4 = conjugate12(mul12(f1, f2q))
    y5 = conjugate12(f2)
    y6 = conjugate12(mul12(f3, frobenius12(Q, f3, powers)))
    # y0·y1²·y2⁶·y3¹²·y4¹⁸·y5³⁰·y6³⁶
    t0 = mul12(mul12(cyclotomic_square(y6), y4), y5)
    t1 = mul12(mul12(y3, y5), t0)
    t0 = mul12(t0, y2)
    t1 = cyclotomic_square(mul12(cyclotomic_square(t1), t0))
    t0 = mul12(t1, y1)
    t1 = mul12(t1, y0)
    return mul12(cyclotomic_square(t0), t1)


@inline
def _hard_part_bls(Q, f, seed, powers):
    """f^((x − 1)²(x + q)(x² + q² − 1) + 3) for x = −seed."""
    a = conjugate12(mul12(_power12(f, seed), f))
    a = conjugate12(mul12(_power12(a, seed), a))
    b = mul12(conjugate12(_power12(a, seed)), frobenius12(Q, a, powers))
    c = _power12(_power12(b, seed), seed)
    bq2 = frobenius12(Q, frobenius12(Q, b, powers), powers)
    c = mul12(mul12(c, bq2), conjugate12(b))
    return mul12(c, mul12(cyclotomic_square(f), f))


@inline
def _load12(Q, address, i):
    x = (load(Q, address, 6 * i), load(Q, address, 6 * i + 1), load(Q, address, 6 * i + 2))
    return x, (load(Q, address, 6 * i + 3), load(Q, address, 6 * i + 4), load(Q, address, 6 * i + 5))


@jit
def miller_loop(F, Q, g1, n, lines, per_point, digits, is_bn, out):
    """out = the Miller loops' product over n pairs, in Fq12. F is Fq, Q is Fq2."""
    f = one12(Q)
    k = 0
    for i in range(len(digits) - 2, -1, -1):
        f = square12(f)
        f = _apply_lines(F, Q, f, g1, n, lines, per_point, k, is_bn)
        k += 1
        if digits[i] != 0:
            f = _apply_lines(F, Q, f, g1, n, lines, per_point, k, is_bn)
            k += 1
    if is_bn:
        f = _apply_lines(F, Q, f, g1, n, lines, per_point, k, is_bn)
        f = _apply_lines(F, Q, f, g1, n, lines, per_point, k + 1, is_bn)
    else:
        f = conjugate12(f)
    for i in range(2):
        for j in range(3):
            store(out, 3 * i + j, f[i][j])


@jit
def _place(L, E, g1, g2, first, frobenius, elements, rows):
    """Pairs first … first + 7 in lanes: Q, ψQ, ψ²Q, T = Q, and P. ``elements``: room for 8·6 of Fq2."""
    F, Q = plain(L), plain(E)
    for lane in range(8):
        i = first + lane
        x, y = load(Q, g2, 2 * i), load(Q, g2, 2 * i + 1)
        for j in range(3):
            store(elements, 8 * 2 * j + lane, scale(x, into_lanes(F)))
            store(elements, 8 * (2 * j + 1) + lane, scale(y, into_lanes(F)))
            x, y = untwisted_frobenius(Q, x, y, frobenius)
    for j in range(6):
        store_lanes(rows, j, load_elements(E, elements + 8 * j * element_bytes(Q)))
    store_lanes(rows, 6, load_lanes(E, rows, 0))
    store_lanes(rows, 7, load_lanes(E, rows, 1))
    store_lanes(rows, 8, lanes_one(E))
    for lane in range(8):
        for j in range(2):
            store(elements, 8 * j + lane, load(F, g1, 2 * (first + lane) + j) * into_lanes(F))
    for j in range(2):
        store_lanes(rows, 18 + j, load_elements(L, elements + 8 * j * element_bytes(F)))


@jit
def _ends_right(E, g2, first, frobenius, elements, rows, is_bn):
    """Whether the multiples of eight points end as those of a point in the subgroup; see :func:`lines`."""
    Q = plain(E)
    for j in range(3):
        store_elements(Q, elements + 8 * j * element_bytes(Q), load_lanes(E, rows, 6 + j))
    for lane in range(8):
        x, y = load(Q, g2, 2 * (first + lane)), load(Q, g2, 2 * (first + lane) + 1)
        for _ in range(3 if is_bn else 1):
            x, y = untwisted_frobenius(Q, x, y, frobenius)
        # T's coordinates have the lanes' radix on both sides, so they need not be brought out of it.
        tx, ty = canonical(load(Q, elements, lane)), canonical(load(Q, elements, 8 + lane))
        z = canonical(load(Q, elements, 16 + lane))
        if z == zero(Q) or tx != x * z or ty != -y * z:
            return False
    return True


@jit
def miller_in_lanes(L, E, g1, g2, groups, steps, constants, is_bn, rows, elements, out, stop):
    """out[lane] = the Miller loops' product over pairs lane, lane + 8, …, times an element of Fq.

    1 if all of g2 are in their subgroup, 0 if not, or :data:`STOPPED`. Pairs are finite, or P alone is
    infinite. L is Fq and E is Fq2, in lanes. ``constants`` are those of :func:`lines`, ``rows`` is room for
    :data:`ROOM` elements of Fq2 in lanes for each group of eight pairs. Lines are used as they are made.
    """
    Q = plain(E)
    frobenius = constants + 2 * element_bytes(plain(L))
    size = ROOM * vector_bytes(E)
    three_b = lanes_splat(E, scale(load(Q, constants, 0), into_lanes(plain(L))))
    for g in range(groups):
        _place(L, E, g1, g2, 8 * g, frobenius, elements, rows + g * size)
    nothing = lanes_zero(E)
    f = ((lanes_one(E), nothing, nothing), (nothing, nothing, nothing))
    for s in steps:
        if stop[0] != 0:
            return STOPPED
        if s == DOUBLE:
            f = square12(f)
        for g in range(groups):
            at = rows + g * size
            t = (load_lanes(E, at, 6), load_lanes(E, at, 7), load_lanes(E, at, 8))
            if s == DOUBLE:
                t, line = _double_step(t, three_b)
            else:
                j = 2 * (abs(s) - 1)
                y = load_lanes(E, at, j + 1)
                t, line = _add_step(t, load_lanes(E, at, j), y if s > 0 else -y)
            store_lanes(at, 6, t[0])
            store_lanes(at, 7, t[1])
            store_lanes(at, 8, t[2])
            c0 = lanes_scale(line[0], load_lanes(L, at, 19))
            c1 = lanes_scale(line[1], load_lanes(L, at, 18))
            f = _multiply_by_line(f, c0, c1, line[2], is_bn)
    for g in range(groups):
        if not _ends_right(E, g2, 8 * g, frobenius, elements, rows + g * size, is_bn):
            return 0
    # The lanes' radix is a factor of Fq, which the final exponentiation makes 1.
    for i in range(2):
        for j in range(3):
            store_elements(Q, elements, f[i][j])
            for lane in range(8):
                c = canonical(load(Q, elements, lane))
                store(out, 6 * lane + 3 * i + j, -c if i == 1 and not is_bn else c)
    return 1


@jit
def product_is_one(Q, factors, n, seed, powers, is_bn):
    """Whether the product of n values of :func:`miller_loop` is 1 after the final exponentiation."""
    f = one12(Q)
    for i in range(n):
        f = mul12(f, _load12(Q, factors, i))
    f = mul12(conjugate12(f), inverse12(f))
    f = mul12(frobenius12(Q, frobenius12(Q, f, powers), powers), f)
    f = _hard_part_bn(Q, f, seed, powers) if is_bn else _hard_part_bls(Q, f, seed, powers)
    unit = one(Q)
    nothing = zero(Q)
    rest = f[0][1] == nothing and f[0][2] == nothing
    return f[0][0] == unit and rest and f[1][0] == nothing and f[1][1] == nothing and f[1][2] == nothing


# Subgroup tests ------------------------------------------------------------------------------------


@jit
def first_outside_g1(F, points, beta, scalar, words, lo, hi, stop):
    """First i with (βx, y) ≠ −scalar·(x, y), −1 if there is none, or :data:`STOPPED`."""
    for i in range(lo, hi):
        if stop[0] != 0:
            return STOPPED
        x, y = load(F, points, 2 * i), load(F, points, 2 * i + 1)
        if x == zero(F) and y == zero(F):
            continue
        p = curve.multiply(F, curve.from_affine(F, x, y), scalar, words, 0)
        p = curve.add_affine(F, p, x * load(F, beta, 0), y)
        if p[2] != zero(F):
            return i
    return -1


@inline
def _psi(F, p, frobenius):
    """ψ of an XYZZ point."""
    x, y = untwisted_frobenius(F, p[0], p[1], frobenius)
    return (x, y, conjugate(p[2]), conjugate(p[3]))


@jit
def first_outside_g2(F, points, frobenius, scalar, words, is_bn, lo, hi, stop):
    """First i that pairing.subgroup_check's relation does not hold for, −1 or :data:`STOPPED`.

    ``scalar`` is |x|.
    """
    for i in range(lo, hi):
        if stop[0] != 0:
            return STOPPED
        x, y = load(F, points, 2 * i), load(F, points, 2 * i + 1)
        if x == zero(F) and y == zero(F):
            continue
        p = curve.multiply(F, curve.from_affine(F, x, y), scalar, words, 0)
        if is_bn:
            once = _psi(F, p, frobenius)
            twice = _psi(F, once, frobenius)
            xx, yy, zz, zzz = _psi(F, curve.double(F, twice), frobenius)
            total = curve.add(F, curve.add(F, once, twice), (xx, -yy, zz, zzz))
            p = curve.add_affine(F, curve.add(F, p, total), x, y)
        else:
            fx, fy = untwisted_frobenius(F, x, y, frobenius)
            p = curve.add_affine(F, p, fx, fy)
        if p[2] != zero(F):
            return i
    return -1
