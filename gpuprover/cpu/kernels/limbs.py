"""Eight values side by side as 52-bit limbs: what emits LLVM for AVX-512 IFMA.

A value of eight lanes is a list of <8 × i64> vectors, limb by limb, the lowest first. Field elements among
them are in Montgomery form with radix 2^(52·L); ranges are lazy: a product of a and b is below
p·(1 + a·b/(p²·capacity)), capacity = 2^(52·L)/p, which is 84 for BN254 and 2^35 for BLS12-381. Limbs are in
[0, 2^52) unless a function says otherwise.

Nothing here is a Numba value: :mod:`gpuprover.cpu.kernels.lanes` makes operators of it, and
:mod:`gpuprover.cpu.kernels.lanes_memory` loads and stores.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from llvmlite import ir
from numba.core.registry import cpu_target

from gpuprover.cpu.kernels.field import I64
from gpuprover.cpu.layout import LANES, LIMB_BITS, LIMB_MASK, lane_form
from gpuprover.curves import FieldParams

V = ir.VectorType(I64, LANES)
Limbs = list[Any]


def limbs_of(f: FieldParams) -> int:
    """Limbs of an element of the field."""
    return lane_form(f).limbs


def splat(c: int) -> Any:
    """The constant, mod 2^64, in every lane of a vector."""
    return ir.Constant(V, [c & ((1 << 64) - 1)] * LANES)


def constant(value: int, n: int) -> Limbs:
    """A constant below 2^(52n + 12) as limbs, the top one taking what is left."""
    return [splat((value >> (LIMB_BITS * i)) & (LIMB_MASK if i < n - 1 else (1 << 64) - 1)) for i in range(n)]


def take(b: ir.IRBuilder, x: Any) -> Limbs:
    """The parts of an LLVM structure."""
    return [b.extract_value(x, i) for i in range(len(x.type.elements))]


def make(b: ir.IRBuilder, parts: list[Any]) -> Any:
    """The LLVM structure of these parts."""
    result = ir.Constant(ir.LiteralStructType([p.type for p in parts]), ir.Undefined)
    for i, p in enumerate(parts):
        result = b.insert_value(result, p, i)
    return result


def carry(b: ir.IRBuilder, t: Limbs) -> Limbs:
    """Signed carries: limbs into [0, 2^52), the top one keeps the sign."""
    out = list(t)
    for i in range(len(t) - 1):
        out[i + 1] = b.add(out[i + 1], b.ashr(out[i], splat(LIMB_BITS)))
        out[i] = b.and_(out[i], splat(LIMB_MASK))
    return out


@lru_cache(maxsize=1)
def _has_ifma() -> bool:
    """Whether the CPU that is compiled for multiplies 52-bit limbs in lanes.

    Elsewhere the same is written out in plain instructions, which any CPU has: slowly, so that the lanes'
    code can be tested there.
    """
    features = str(cpu_target.target_context.codegen().magic_tuple()[2]).split(",")
    return "+avx512ifma" in features


def multiply_add(b: ir.IRBuilder, half: str, acc: Any, x: Any, y: Any) -> Any:
    """acc + the low (``l``) or high (``h``) 52 bits of the product of the lowest 52 bits of x and y."""
    name = f"llvm.x86.avx512.vpmadd52{half}.uq.512" if _has_ifma() else f"gpuprover.madd52{half}"
    function = b.module.globals.get(name) or ir.Function(b.module, ir.FunctionType(V, [V, V, V]), name)
    if not _has_ifma() and not function.blocks:
        function.linkage = "linkonce_odr"
        function.attributes.add("noinline")
        inner = ir.IRBuilder(function.append_basic_block())
        to, p, q = function.args
        p, q = inner.and_(p, splat(LIMB_MASK)), inner.and_(q, splat(LIMB_MASK))
        if half == "l":
            part = inner.and_(inner.mul(p, q), splat(LIMB_MASK))
        else:
            wide = ir.VectorType(ir.IntType(128), LANES)
            whole = inner.mul(inner.zext(p, wide), inner.zext(q, wide))
            part = inner.trunc(inner.lshr(whole, ir.Constant(wide, [LIMB_BITS] * LANES)), V)
        inner.ret(inner.add(to, part))
    return b.call(function, [acc, x, y])


def _choose(b: ir.IRBuilder, entries: list[int], index: Any) -> Any:
    """In each lane the entry that the lowest three bits of the lane's index name."""
    table = ir.Constant(V, entries)
    if _has_ifma():
        name = "llvm.x86.avx512.permvar.di.512"
        function = b.module.globals.get(name) or ir.Function(b.module, ir.FunctionType(V, [V, V]), name)
        return b.call(function, [table, index])
    chosen = ir.Constant(V, ir.Undefined)
    low = b.and_(index, splat(LANES - 1))
    for lane in range(LANES):
        at = ir.Constant(ir.IntType(32), lane)
        chosen = b.insert_element(chosen, b.extract_element(table, b.extract_element(low, at)), at)
    return chosen


def reduction_step(b: ir.IRBuilder, f: FieldParams, acc: Limbs, ps: Limbs) -> Limbs:
    """(acc + m·p)/2^52 with m such that it divides; acc has n + 1 limbs, unnormalised, and the result n."""
    n = len(acc) - 1
    zero = splat(0)
    m = multiply_add(b, "l", zero, acc[0], splat(-pow(f.modulus, -1, 1 << LIMB_BITS)))
    for j in range(1, n):
        acc[j] = multiply_add(b, "l", acc[j], m, ps[j])
    for j in range(n):
        acc[j + 1] = multiply_add(b, "h", acc[j + 1], m, ps[j])
    # m·p's lowest 52 bits make those of acc[0] zero: what they carry is acc[0]/2^52, rounded up.
    acc[1] = b.add(acc[1], b.lshr(b.add(acc[0], splat(LIMB_MASK)), splat(LIMB_BITS)))
    return acc[1:]


def product(b: ir.IRBuilder, f: FieldParams, *factors: tuple[Limbs, Limbs]) -> Limbs:
    """Σ x·y over pairs of factors, with one reduction: below p·(1 + Σ x·y/(p²·capacity))."""
    n = len(factors[0][0])
    ps = constant(f.modulus, n)
    acc: Limbs = [splat(0)] * n
    for i in range(n):
        acc = [*acc, splat(0)]
        for x, y in factors:
            for j in range(n):
                acc[j] = multiply_add(b, "l", acc[j], x[j], y[i])
            for j in range(n):
                acc[j + 1] = multiply_add(b, "h", acc[j + 1], x[j], y[i])
        acc = reduction_step(b, f, acc, ps)
    return carry(b, acc)


def multiply(b: ir.IRBuilder, f: FieldParams, x: Limbs, y: Limbs) -> Limbs:
    """x·y as :func:`product`, by one function of the module."""
    name = f"gpuprover.mul8.{f.name}"
    function = b.module.globals.get(name)
    if function is None:
        kind = ir.LiteralStructType([V] * len(x))
        function = ir.Function(b.module, ir.FunctionType(kind, [kind, kind]), name)
        function.linkage = "linkonce_odr"
        function.attributes.add("alwaysinline" if len(x) <= 5 else "noinline")
        inner = ir.IRBuilder(function.append_basic_block())
        p, q = function.args
        inner.ret(make(inner, product(inner, f, (take(inner, p), take(inner, q)))))
    return take(b, b.call(function, [make(b, x), make(b, y)]))


def add(b: ir.IRBuilder, x: Limbs, y: Limbs) -> Limbs:
    """x + y."""
    return carry(b, [b.add(p, q) for p, q in zip(x, y, strict=True)])


def subtract(b: ir.IRBuilder, f: FieldParams, k: int, x: Limbs, *ys: Limbs) -> Limbs:
    """x − Σ ys + k·p."""
    return carry(b, difference(b, f, k, x, *ys))


def subtract_if(b: ir.IRBuilder, f: FieldParams, k: int, x: Limbs) -> Limbs:
    """x − k·p where that is not negative."""
    d = carry(b, [b.sub(p, c) for p, c in zip(x, constant(k * f.modulus, len(x)), strict=True)])
    negative = b.icmp_signed("<", d[-1], splat(0))
    return [b.select(negative, p, q) for p, q in zip(x, d, strict=True)]


@lru_cache
def _multiples(f: FieldParams) -> list[int]:
    """Entry q: the largest multiple of p that is at most q·2^bits; for :func:`reduce_limbs`."""
    table = [(q << f.bits) // f.modulus * f.modulus for q in range(LANES)]
    # The quotient is read off limbs that have not been carried, a few units of the top limb too high.
    slack = 4 << (LIMB_BITS * (limbs_of(f) - 1))
    assert all((q << f.bits) - m > slack for q, m in enumerate(table) if q)
    return table


def reduce_limbs(b: ir.IRBuilder, f: FieldParams, x: Limbs) -> Limbs:
    """A value in [0, 8·2^bits), limbs not carried, -> below 2^bits + p, which is below 3p."""
    n = len(x)
    quotient = b.ashr(x[-1], splat(f.bits - LIMB_BITS * (n - 1)))
    out = []
    for i, limb in enumerate(x):
        entries = [m >> (LIMB_BITS * i) & (LIMB_MASK if i < n - 1 else -1) for m in _multiples(f)]
        out.append(b.sub(limb, _choose(b, entries, quotient)))
    return carry(b, out)


def difference(b: ir.IRBuilder, f: FieldParams, k: int, x: Limbs, *ys: Limbs) -> Limbs:
    """x − Σ ys + k·p, limbs not carried."""
    out = [b.add(p, c) for p, c in zip(x, constant(k * f.modulus, len(x)), strict=True)]
    for y in ys:
        out = [b.sub(p, q) for p, q in zip(out, y, strict=True)]
    return out


def zero_lanes(b: ir.IRBuilder, limbs: Limbs, value: int = 0) -> Any:
    """Whether a lane's limbs are those of ``value``, lane by lane."""
    differing = None
    for limb, c in zip(limbs, constant(value, len(limbs)), strict=True):
        d = b.xor(limb, c) if value else limb
        differing = d if differing is None else b.or_(differing, d)
    return b.icmp_unsigned("==", differing, splat(0))


def bit_mask(b: ir.IRBuilder, lanes: Any) -> Any:
    """A truth value for each lane -> an i64 with bit i for lane i."""
    return b.zext(b.bitcast(lanes, ir.IntType(LANES)), I64)


def shuffle(b: ir.IRBuilder, x: Any, y: Any, indices: list[int]) -> Any:
    """Lane i is lane indices[i] of x and y, one behind the other."""
    mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), indices)
    return b.shuffle_vector(x, y, mask)


def transpose(b: ir.IRBuilder, rows: Limbs) -> Limbs:
    """8×8 transposition in three rounds of two-vector shuffles; of four rows, each half as a 4×4 matrix."""
    for distance in (1, 2, 4)[: 3 if len(rows) == LANES else 2]:
        out: Limbs = [None] * len(rows)
        for i in range(len(rows)):
            if i & distance:
                continue
            j = i | distance
            low = [k if not k & distance else LANES + (k ^ distance) for k in range(LANES)]
            high = [k ^ distance if not k & distance else LANES + k for k in range(LANES)]
            out[i] = shuffle(b, rows[i], rows[j], low)
            out[j] = shuffle(b, rows[i], rows[j], high)
        rows = out
    return rows


def words_to_limbs(b: ir.IRBuilder, words: Limbs, shift: int, n: int) -> Limbs:
    """The value shifted left by ``shift`` bits, as n limbs."""
    out = []
    for j in range(n):
        start = LIMB_BITS * j - shift
        limb = None
        for i, w in enumerate(words):
            offset = 64 * i - start
            if offset <= -64 or offset >= LIMB_BITS:
                continue
            piece = b.shl(w, splat(offset)) if offset > 0 else b.lshr(w, splat(-offset)) if offset else w
            limb = piece if limb is None else b.or_(limb, piece)
        out.append(b.and_(limb, splat(LIMB_MASK)) if limb is not None else splat(0))
    return out


def limbs_to_words(b: ir.IRBuilder, limbs: Limbs, n: int) -> Limbs:
    """The value as n words of 64 bits."""
    out = []
    for i in range(n):
        word = None
        for j, limb in enumerate(limbs):
            offset = LIMB_BITS * j - 64 * i
            if offset <= -LIMB_BITS or offset >= 64:
                continue
            piece = (
                b.shl(limb, splat(offset)) if offset > 0 else b.lshr(limb, splat(-offset)) if offset else limb
            )
            word = piece if word is None else b.or_(word, piece)
        out.append(word)
    return out
