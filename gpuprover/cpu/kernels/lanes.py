"""Eight field elements at a time: AVX-512 IFMA on 52-bit limbs, as Numba values.

An element of eight lanes is a tuple of <8 × i64> vectors, limb by limb, in Montgomery form
with radix 2^(52·L); ranges are lazy: a product of a and b is below p·(1 + a·b/(p²·capacity)),
capacity = 2^(52·L)/p, which is 84 for BN254 and 2^35 for BLS12-381. Limbs are in [0, 2^52).

Bases stand in memory with radix 2^(64·limbs). To turn them into the lanes' form would take a
product a coordinate; instead they are taken for points of an isomorphic curve, (u²·x, u³·y) with u a
power of two, for which a shift of a few bits will do (:class:`LaneForm`). The formulas of
addition do not contain b, so they hold there too, and only sums are ever mapped back.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import lru_cache, reduce
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.datamodel import models
from numba.core.extending import intrinsic, lower_builtin, register_model
from numba.core.registry import cpu_target
from numba.core.typing.templates import AbstractTemplate, infer_global, signature

from gpuprover.cpu.kernels.field import I64, ElementType, FieldType, inverse, plain, zero
from gpuprover.cpu.kernels.jit import inline
from gpuprover.cpu.layout import BOUND, INDEX_BITS, LANES, LIMB_BITS, LIMB_MASK, NOWHERE, LaneForm, lane_form
from gpuprover.curves import FieldParams

V = ir.VectorType(I64, LANES)


class LaneFieldType(FieldType):
    """The Numba type of a :class:`LaneField`."""

    def __init__(self, params: FieldParams, degree: int) -> None:
        super().__init__(params, degree)
        self.name = f"LaneField[{params.name}, {degree}]"


class LanesType(types.Type):
    """The Numba type of eight elements."""

    def __init__(self, params: FieldParams, degree: int) -> None:
        self.params, self.degree = params, degree
        super().__init__(name=f"Lanes[{params.name}, {degree}]")


def _limbs_of(f: FieldParams) -> int:
    return lane_form(f).limbs


def _llvm(t: LanesType) -> Any:
    prime = ir.LiteralStructType([V] * _limbs_of(t.params))
    return prime if t.degree == 1 else ir.LiteralStructType([prime, prime])


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: LanesType) -> None:
        super().__init__(dmm, fe_type, _llvm(fe_type))


register_model(LaneFieldType)(models.OpaqueModel)


# Limbs ---------------------------------------------------------------------------------------

Limbs = list[Any]


def _splat(c: int) -> Any:
    return ir.Constant(V, [c & ((1 << 64) - 1)] * LANES)


def _constant(value: int, n: int) -> Limbs:
    """A constant below 2^(52n + 12) as limbs, the top one taking what is left."""
    return [
        _splat((value >> (LIMB_BITS * i)) & (LIMB_MASK if i < n - 1 else (1 << 64) - 1)) for i in range(n)
    ]


def _take(b: ir.IRBuilder, x: Any) -> Limbs:
    return [b.extract_value(x, i) for i in range(len(x.type.elements))]


def _make(b: ir.IRBuilder, parts: list[Any]) -> Any:
    result = ir.Constant(ir.LiteralStructType([p.type for p in parts]), ir.Undefined)
    for i, p in enumerate(parts):
        result = b.insert_value(result, p, i)
    return result


def _carry(b: ir.IRBuilder, t: Limbs) -> Limbs:
    """Signed carries: limbs into [0, 2^52), the top one keeps the sign."""
    out = list(t)
    for i in range(len(t) - 1):
        out[i + 1] = b.add(out[i + 1], b.ashr(out[i], _splat(LIMB_BITS)))
        out[i] = b.and_(out[i], _splat(LIMB_MASK))
    return out


@lru_cache(maxsize=1)
def _has_ifma() -> bool:
    """Whether the CPU that is compiled for multiplies 52-bit limbs in lanes.

    Elsewhere the same is written out in plain instructions, which any CPU has: slowly, so that the lanes'
    code can be tested there.
    """
    features = str(cpu_target.target_context.codegen().magic_tuple()[2]).split(",")
    return "+avx512ifma" in features


def _multiply_add(b: ir.IRBuilder, half: str, acc: Any, x: Any, y: Any) -> Any:
    """acc + the low (``l``) or high (``h``) 52 bits of the product of the lowest 52 bits of x and y."""
    name = f"llvm.x86.avx512.vpmadd52{half}.uq.512" if _has_ifma() else f"gpuprover.madd52{half}"
    function = b.module.globals.get(name) or ir.Function(b.module, ir.FunctionType(V, [V, V, V]), name)
    if not _has_ifma() and not function.blocks:
        function.linkage = "linkonce_odr"
        function.attributes.add("noinline")
        inner = ir.IRBuilder(function.append_basic_block())
        to, p, q = function.args
        p, q = inner.and_(p, _splat(LIMB_MASK)), inner.and_(q, _splat(LIMB_MASK))
        if half == "l":
            part = inner.and_(inner.mul(p, q), _splat(LIMB_MASK))
        else:
            wide = ir.VectorType(ir.IntType(128), LANES)
            product = inner.mul(inner.zext(p, wide), inner.zext(q, wide))
            part = inner.trunc(inner.lshr(product, ir.Constant(wide, [LIMB_BITS] * LANES)), V)
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
    low = b.and_(index, _splat(LANES - 1))
    for lane in range(LANES):
        at = ir.Constant(ir.IntType(32), lane)
        chosen = b.insert_element(chosen, b.extract_element(table, b.extract_element(low, at)), at)
    return chosen


def _reduction_step(b: ir.IRBuilder, f: FieldParams, acc: Limbs, ps: Limbs) -> Limbs:
    """(acc + m·p)/2^52 with m such that it divides; acc has n + 1 limbs, unnormalised, and the result n."""
    n = len(acc) - 1
    zero = _splat(0)
    m = _multiply_add(b, "l", zero, acc[0], _splat(-pow(f.modulus, -1, 1 << LIMB_BITS)))
    for j in range(1, n):
        acc[j] = _multiply_add(b, "l", acc[j], m, ps[j])
    for j in range(n):
        acc[j + 1] = _multiply_add(b, "h", acc[j + 1], m, ps[j])
    # m·p's lowest 52 bits make those of acc[0] zero: what they carry is acc[0]/2^52, rounded up.
    acc[1] = b.add(acc[1], b.lshr(b.add(acc[0], _splat(LIMB_MASK)), _splat(LIMB_BITS)))
    return acc[1:]


def _product(b: ir.IRBuilder, f: FieldParams, *factors: tuple[Limbs, Limbs]) -> Limbs:
    """Σ x·y over pairs of factors, with one reduction: below p·(1 + Σ x·y/(p²·capacity))."""
    n = len(factors[0][0])
    ps = _constant(f.modulus, n)
    acc: Limbs = [_splat(0)] * n
    for i in range(n):
        acc = [*acc, _splat(0)]
        for x, y in factors:
            for j in range(n):
                acc[j] = _multiply_add(b, "l", acc[j], x[j], y[i])
            for j in range(n):
                acc[j + 1] = _multiply_add(b, "h", acc[j + 1], x[j], y[i])
        acc = _reduction_step(b, f, acc, ps)
    return _carry(b, acc)


def _mul(b: ir.IRBuilder, f: FieldParams, x: Limbs, y: Limbs) -> Limbs:
    name = f"gpuprover.mul8.{f.name}"
    function = b.module.globals.get(name)
    if function is None:
        kind = ir.LiteralStructType([V] * len(x))
        function = ir.Function(b.module, ir.FunctionType(kind, [kind, kind]), name)
        function.linkage = "linkonce_odr"
        function.attributes.add("alwaysinline" if len(x) <= 5 else "noinline")
        inner = ir.IRBuilder(function.append_basic_block())
        p, q = function.args
        inner.ret(_make(inner, _product(inner, f, (_take(inner, p), _take(inner, q)))))
    return _take(b, b.call(function, [_make(b, x), _make(b, y)]))


def _add(b: ir.IRBuilder, x: Limbs, y: Limbs) -> Limbs:
    return _carry(b, [b.add(p, q) for p, q in zip(x, y, strict=True)])


def _sub(b: ir.IRBuilder, f: FieldParams, k: int, x: Limbs, *ys: Limbs) -> Limbs:
    """x − Σ ys + k·p."""
    return _carry(b, _sum(b, f, k, x, *ys))


def _sub_if(b: ir.IRBuilder, f: FieldParams, k: int, x: Limbs) -> Limbs:
    """x − k·p where that is not negative."""
    d = _carry(b, [b.sub(p, c) for p, c in zip(x, _constant(k * f.modulus, len(x)), strict=True)])
    negative = b.icmp_signed("<", d[-1], _splat(0))
    return [b.select(negative, p, q) for p, q in zip(x, d, strict=True)]


@lru_cache
def _multiples(f: FieldParams) -> list[int]:
    """Entry q: the largest multiple of p that is at most q·2^bits; for :func:`_reduce`."""
    table = [(q << f.bits) // f.modulus * f.modulus for q in range(LANES)]
    # The quotient is read off limbs that have not been carried, a few units of the top limb too high.
    slack = 4 << (LIMB_BITS * (_limbs_of(f) - 1))
    assert all((q << f.bits) - m > slack for q, m in enumerate(table) if q)
    return table


def _reduce(b: ir.IRBuilder, f: FieldParams, x: Limbs) -> Limbs:
    """A value in [0, 8·2^bits), limbs not carried, -> below 2^bits + p, which is below 3p."""
    n = len(x)
    quotient = b.ashr(x[-1], _splat(f.bits - LIMB_BITS * (n - 1)))
    out = []
    for i, limb in enumerate(x):
        entries = [m >> (LIMB_BITS * i) & (LIMB_MASK if i < n - 1 else -1) for m in _multiples(f)]
        out.append(b.sub(limb, _choose(b, entries, quotient)))
    return _carry(b, out)


def _sum(b: ir.IRBuilder, f: FieldParams, k: int, x: Limbs, *ys: Limbs) -> Limbs:
    """x − Σ ys + k·p, limbs not carried."""
    out = [b.add(p, c) for p, c in zip(x, _constant(k * f.modulus, len(x)), strict=True)]
    for y in ys:
        out = [b.sub(p, q) for p, q in zip(out, y, strict=True)]
    return out


# Both degrees: lists of one or two lists of limbs ---------------------------------------------


def _components(b: ir.IRBuilder, t: LanesType, x: Any) -> list[Limbs]:
    return [_take(b, x)] if t.degree == 1 else [_take(b, part) for part in _take(b, x)]


def _assemble(b: ir.IRBuilder, parts: list[Limbs]) -> Any:
    made = [_make(b, part) for part in parts]
    return made[0] if len(made) == 1 else _make(b, made)


def _lanes_mul(b: ir.IRBuilder, f: FieldParams, x: list[Limbs], y: list[Limbs]) -> list[Limbs]:
    """Below 2p. Degree 1: for x·y <= 84p². Degree 2: for x < 10p, y < 4p.

    Degree 2 takes four products, as many multiplications as Karatsuba's three: two share a reduction.
    """
    if len(x) == 1:
        return [_mul(b, f, x[0], y[0])]
    minus = _sub(b, f, 4, [_splat(0)] * len(y[1]), y[1])
    return [_product(b, f, (x[0], y[0]), (x[1], minus)), _product(b, f, (x[0], y[1]), (x[1], y[0]))]


def _lanes_square(b: ir.IRBuilder, f: FieldParams, x: list[Limbs]) -> list[Limbs]:
    """Below 2.2p for x < 5p (degree 1: < 6p); below 1.2p for x < 1.2p."""
    if len(x) == 1:
        return [_mul(b, f, x[0], x[0])]
    c0 = _mul(b, f, _add(b, x[0], x[1]), _sub(b, f, BOUND, x[0], x[1]))
    return [c0, _mul(b, f, _add(b, x[0], x[0]), x[1])]


@infer_global(operator.mul)
class _Mul(AbstractTemplate):
    def generic(self, args: Any, kws: Any) -> Any:
        if len(args) == 2 and isinstance(args[0], LanesType) and args[0] == args[1]:
            return signature(args[0], *args)
        return None


@lower_builtin(operator.mul, LanesType, LanesType)
def _lower_mul(context: Any, b: Any, sig: Any, args: Any) -> Any:
    t = sig.return_type
    if t.degree == 1:
        return _assemble(b, _lanes_mul(b, t.params, *(_components(b, t, a) for a in args)))
    name = f"gpuprover.mul8x2.{t.params.name}"
    function = b.module.globals.get(name)
    if function is None:
        kind = _llvm(t)
        function = ir.Function(b.module, ir.FunctionType(kind, [kind, kind]), name)
        function.linkage = "linkonce_odr"
        function.attributes.add("noinline")
        inner = ir.IRBuilder(function.append_basic_block())
        p, q = (_components(inner, t, a) for a in function.args)
        inner.ret(_assemble(inner, _lanes_mul(inner, t.params, p, q)))
    return b.call(function, args)


@intrinsic
def lanes_square(typingctx: Any, x: Any) -> Any:
    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        return _assemble(b, _lanes_square(b, x.params, _components(b, x, args[0])))

    return x(x), codegen


def _map_components(b: ir.IRBuilder, t: LanesType, emit: Callable[..., Limbs], *args: Any) -> Any:
    """``emit(*limbs)`` on each component of elements of type t."""
    columns = zip(*(_components(b, t, a) for a in args), strict=True)
    return _assemble(b, [emit(*parts) for parts in columns])


@intrinsic
def lanes_sub(typingctx: Any, x: Any, y: Any, k: Any) -> Any:
    """x − y + k·p, for y <= k·p; k is a literal."""
    if not isinstance(k, types.IntegerLiteral) or not isinstance(x, LanesType):
        return None

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        return _map_components(b, x, lambda *parts: _sub(b, x.params, k.literal_value, *parts), *args[:2])

    return x(x, y, k), codegen


@intrinsic
def lanes_sub2(typingctx: Any, x: Any, y: Any, z: Any, k: Any) -> Any:
    """x − y − z + k·p, for y + z <= k·p; k is a literal."""
    if not isinstance(k, types.IntegerLiteral) or not isinstance(x, LanesType):
        return None

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        return _map_components(b, x, lambda *parts: _sub(b, x.params, k.literal_value, *parts), *args[:3])

    return x(x, y, z, k), codegen


@intrinsic
def lanes_sub_if(typingctx: Any, x: Any, k: Any) -> Any:
    """x − k·p where that is not negative; k is a literal."""
    if not isinstance(k, types.IntegerLiteral) or not isinstance(x, LanesType):
        return None

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        return _map_components(b, x, lambda part: _sub_if(b, x.params, k.literal_value, part), args[0])

    return x(x, k), codegen


@intrinsic
def lanes_sub_reduced(typingctx: Any, x: Any, y: Any) -> Any:
    """x − y below 2^bits + p, for x < 3p and y < 3p."""
    if not isinstance(x, LanesType):
        return None

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        return _map_components(b, x, lambda *parts: _reduce(b, x.params, _sum(b, x.params, 3, *parts)), *args)

    return x(x, y), codegen


@intrinsic
def lanes_sub2_reduced(typingctx: Any, x: Any, y: Any, z: Any) -> Any:
    """x − y − z below 2^bits + p, for x < 1.5p and y + z < 5p."""
    if not isinstance(x, LanesType):
        return None

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        return _map_components(b, x, lambda *parts: _reduce(b, x.params, _sum(b, x.params, 5, *parts)), *args)

    return x(x, y, z), codegen


@intrinsic
def lanes_add(typingctx: Any, x: Any, y: Any) -> Any:
    """x + y."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        return _map_components(b, x, lambda p, q: _add(b, p, q), *args)

    return x(x, y), codegen


@intrinsic
def lanes_one(typingctx: Any, F: Any) -> Any:
    t = LanesType(F.params, F.degree)

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        n = _limbs_of(F.params)
        unit = _constant((1 << (LIMB_BITS * n)) % F.params.modulus, n)
        return _assemble(b, [unit] if F.degree == 1 else [unit, [_splat(0)] * n])

    return t(F), codegen


@intrinsic
def lanes_zero(typingctx: Any, F: Any) -> Any:
    t = LanesType(F.params, F.degree)
    n = _limbs_of(F.params)
    return t(F), lambda c, b, sig, args: _assemble(b, [[_splat(0)] * n] * F.degree)


def _zero_lanes(b: ir.IRBuilder, limbs: Limbs, value: int = 0) -> Any:
    """Whether a lane's limbs are those of ``value``, lane by lane."""
    differing = None
    for limb, c in zip(limbs, _constant(value, len(limbs)), strict=True):
        d = b.xor(limb, c) if value else limb
        differing = d if differing is None else b.or_(differing, d)
    return b.icmp_unsigned("==", differing, _splat(0))


def _bit_mask(b: ir.IRBuilder, lanes: Any) -> Any:
    return b.zext(b.bitcast(lanes, ir.IntType(LANES)), I64)


@intrinsic
def lanes_all_zero(typingctx: Any, x: Any) -> Any:
    """Bit mask of the lanes whose limbs are all zero."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        result = None
        for part in _components(b, x, args[0]):
            zero = _zero_lanes(b, part)
            result = zero if result is None else b.and_(result, zero)
        return _bit_mask(b, result)

    return types.int64(x), codegen


@intrinsic
def lanes_multiple_of_p(typingctx: Any, x: Any) -> Any:
    """Bit mask of the lanes that are 0 or p, which below 2p are those that are 0 in the field."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        result = None
        for part in _components(b, x, args[0]):
            multiple = b.or_(_zero_lanes(b, part), _zero_lanes(b, part, x.params.modulus))
            result = multiple if result is None else b.and_(result, multiple)
        return _bit_mask(b, result)

    return types.int64(x), codegen


@intrinsic
def lanes_rotate(typingctx: Any, x: Any, k: Any) -> Any:
    """Lane i is lane (i + k) mod 8 of x; k is a literal."""
    if not isinstance(k, types.IntegerLiteral):
        return None
    indices = [(i + k.literal_value) % LANES for i in range(LANES)]

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        return _map_components(b, x, lambda part: [_shuffle(b, v, v, indices) for v in part], args[0])

    return x(x, k), codegen


@intrinsic
def lanes_first(typingctx: Any, x: Any) -> Any:
    """Lane 0 as an element, for lanes below 2^(64·limbs); not reduced."""
    element = ElementType(x.params, x.degree)

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        wide = ir.IntType(64 * x.params.limbs)
        values = []
        for part in _components(b, x, args[0]):
            value = wide(0)
            for i, limb in enumerate(part):
                lane = b.zext(b.extract_element(limb, ir.IntType(32)(0)), wide)
                value = b.or_(value, b.shl(lane, wide(LIMB_BITS * i)))
            values.append(value)
        return values[0] if x.degree == 1 else _make(b, values)

    return element(x), codegen


@intrinsic
def lanes_splat(typingctx: Any, F: Any, x: Any) -> Any:
    """The element x in every lane, its bits as they stand."""
    t = LanesType(F.params, F.degree)

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        n = _limbs_of(F.params)
        values = [args[1]] if F.degree == 1 else [b.extract_value(args[1], i) for i in (0, 1)]
        parts = []
        for value in values:
            limbs = []
            for i in range(n):
                start = LIMB_BITS * i
                bits = b.lshr(value, value.type(start)) if start < value.type.width else value.type(0)
                limb = b.and_(b.trunc(bits, I64), I64(LIMB_MASK))
                first = b.insert_element(ir.Constant(V, ir.Undefined), limb, ir.IntType(32)(0))
                limbs.append(_shuffle(b, first, first, [0] * LANES))
            parts.append(limbs)
        return _assemble(b, parts)

    return t(F, x), codegen


@intrinsic
def lanes_select(typingctx: Any, mask: Any, x: Any, y: Any) -> Any:
    """x in the lanes of the bit mask, y elsewhere."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        bits = b.bitcast(b.trunc(args[0], ir.IntType(LANES)), ir.VectorType(ir.IntType(1), LANES))
        xs, ys = _components(b, x, args[1]), _components(b, x, args[2])
        return _assemble(
            b,
            [[b.select(bits, p, q) for p, q in zip(a, c, strict=True)] for a, c in zip(xs, ys, strict=True)],
        )

    return x(types.int64, x, y), codegen


# Memory ----------------------------------------------------------------------------------------


def _vector_at(b: ir.IRBuilder, address: Any, offset: int) -> Any:
    return b.inttoptr(b.add(address, I64(offset)), V.as_pointer())


def _shuffle(b: ir.IRBuilder, x: Any, y: Any, indices: list[int]) -> Any:
    mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), indices)
    return b.shuffle_vector(x, y, mask)


def _transpose(b: ir.IRBuilder, rows: Limbs) -> Limbs:
    """8×8 transposition in three rounds of two-vector shuffles; of four rows, each half as a 4×4 matrix."""
    for distance in (1, 2, 4)[: 3 if len(rows) == LANES else 2]:
        out: Limbs = [None] * len(rows)
        for i in range(len(rows)):
            if i & distance:
                continue
            j = i | distance
            low = [k if not k & distance else LANES + (k ^ distance) for k in range(LANES)]
            high = [k ^ distance if not k & distance else LANES + k for k in range(LANES)]
            out[i] = _shuffle(b, rows[i], rows[j], low)
            out[j] = _shuffle(b, rows[i], rows[j], high)
        rows = out
    return rows


def _block_offsets(words: int) -> list[int]:
    """Where blocks of eight words begin that cover ``words`` words; the last may overlap the one before."""
    return [min(at, words - LANES) for at in range(0, words, LANES)]


def _words_to_limbs(b: ir.IRBuilder, words: Limbs, shift: int, n: int) -> Limbs:
    """The value shifted left by ``shift`` bits, as n limbs."""
    out = []
    for j in range(n):
        start = LIMB_BITS * j - shift
        limb = None
        for i, w in enumerate(words):
            offset = 64 * i - start
            if offset <= -64 or offset >= LIMB_BITS:
                continue
            piece = b.shl(w, _splat(offset)) if offset > 0 else b.lshr(w, _splat(-offset)) if offset else w
            limb = piece if limb is None else b.or_(limb, piece)
        out.append(b.and_(limb, _splat(LIMB_MASK)) if limb is not None else _splat(0))
    return out


def _limbs_to_words(b: ir.IRBuilder, limbs: Limbs, n: int) -> Limbs:
    out = []
    for i in range(n):
        word = None
        for j, limb in enumerate(limbs):
            offset = LIMB_BITS * j - 64 * i
            if offset <= -LIMB_BITS or offset >= 64:
                continue
            piece = (
                b.shl(limb, _splat(offset))
                if offset > 0
                else b.lshr(limb, _splat(-offset))
                if offset
                else limb
            )
            word = piece if word is None else b.or_(word, piece)
        out.append(word)
    return out


@intrinsic
def gather_bases(typingctx: Any, F: Any, base: Any, indices: Any) -> Any:
    """(x, y) of eight bases in the files' form, negated where bit 31 of the index is set; below 2^bits + p.

    ``indices`` is the address of eight uint32. Infinity, all zeros, stays so; :data:`NOWHERE` stands for it.
    """
    t = LanesType(F.params, F.degree)
    result = types.UniTuple(t, 2)

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        f = F.params
        form = lane_form(f)
        per_point = 2 * F.degree * f.limbs
        narrow = b.inttoptr(args[2], ir.VectorType(ir.IntType(32), LANES).as_pointer())
        index = b.zext(b.load(narrow, align=4), V)
        nowhere = b.icmp_unsigned("==", index, _splat(NOWHERE))
        offsets = b.mul(b.and_(index, _splat(INDEX_BITS)), _splat(8 * per_point))
        offsets = b.select(nowhere, _splat(0), offsets)
        starts = [b.add(args[1], b.extract_element(offsets, ir.IntType(32)(k))) for k in range(LANES)]
        words: dict[int, Any] = {}
        for at in _block_offsets(per_point):
            rows = [b.load(_vector_at(b, start, 8 * at), align=1) for start in starts]
            for k, column in enumerate(_transpose(b, rows)):
                words[at + k] = column
        x_words = reduce(b.or_, (words[k] for k in range(per_point // 2)))
        y_words = reduce(b.or_, (words[k] for k in range(per_point // 2, per_point)))
        no_y = b.icmp_unsigned("==", y_words, _splat(0))
        infinite = b.or_(nowhere, b.and_(no_y, b.icmp_unsigned("==", x_words, _splat(0))))
        minus = b.icmp_unsigned("!=", b.and_(index, _splat(INDEX_BITS + 1)), _splat(0))
        zero = [_splat(0)] * form.limbs
        ps = _constant(f.modulus, form.limbs)

        def coordinate(first: int, shift: int, signed: bool) -> Limbs:
            column = [words[first + k] for k in range(f.limbs)]
            limbs = _words_to_limbs(b, column, shift, form.limbs)
            for _ in range(form.reductions):
                limbs = _carry(b, _reduction_step(b, f, [*limbs, _splat(0)], ps))
            if signed:
                negated = _sum(b, f, BOUND - 1, zero, limbs)
                limbs = [b.select(minus, q, p) for p, q in zip(limbs, negated, strict=True)]
            return [b.select(infinite, _splat(0), p) for p in _reduce(b, f, limbs)]

        xs = [coordinate(k * f.limbs, form.shift_x, False) for k in range(F.degree)]
        ys = [coordinate((F.degree + k) * f.limbs, form.shift_y, True) for k in range(F.degree)]
        # A damaged key may hold (x, 0): a y of p keeps it from being taken for infinity.
        odd = b.and_(no_y, b.not_(infinite))
        ys[0] = [b.select(odd, c, y) for c, y in zip(ps, ys[0], strict=True)]
        return context.make_tuple(b, result, [_assemble(b, xs), _assemble(b, ys)])

    return result(F, types.int64, types.int64), codegen


@intrinsic
def load_lanes(typingctx: Any, F: Any, address: Any, i: Any) -> Any:
    """Element ``i`` of an array of eight-lane elements, limb by limb."""
    t = LanesType(F.params, F.degree)

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        n = _limbs_of(F.params)
        start = b.add(args[1], b.mul(args[2], I64(64 * n * F.degree)))
        parts = [
            [b.load(_vector_at(b, start, 64 * (n * k + j)), align=8) for j in range(n)]
            for k in range(F.degree)
        ]
        return _assemble(b, parts)

    return t(F, types.int64, types.int64), codegen


@intrinsic
def store_lanes(typingctx: Any, address: Any, i: Any, x: Any) -> Any:
    """Writes element ``i`` of an array of eight-lane elements."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        n = _limbs_of(x.params)
        start = b.add(args[0], b.mul(args[1], I64(64 * n * x.degree)))
        for k, limbs in enumerate(_components(b, x, args[2])):
            for j, limb in enumerate(limbs):
                b.store(limb, _vector_at(b, start, 64 * (n * k + j)), align=8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, x), codegen


@intrinsic
def vector_bytes(typingctx: Any, F: Any) -> Any:
    """Bytes of an eight-lane element in memory, a constant."""
    return types.int64(F), lambda context, b, sig, args: I64(64 * _limbs_of(F.params) * F.degree)


@intrinsic
def is_prime_field(typingctx: Any, F: Any) -> Any:
    """Whether F is of degree 1, a constant."""
    return types.boolean(F), lambda context, b, sig, args: ir.IntType(1)(F.degree == 1)


@intrinsic
def copy_word(typingctx: Any, source: Any, target: Any) -> Any:
    """Copies the 64-bit word at one address to another."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        a, c = (b.inttoptr(x, I64.as_pointer()) for x in args)
        b.store(b.load(a, align=8), c, align=8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def store_elements(typingctx: Any, F: Any, address: Any, x: Any) -> Any:
    """Writes the eight elements one after the other, as words, for scalar code; values below 2^(64·limbs)."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        limbs, degree = F.params.limbs, F.degree
        pointer = I64.as_pointer()
        for k, part in enumerate(_components(b, x, args[2])):
            for w, column in enumerate(_limbs_to_words(b, part, limbs)):
                for lane in range(LANES):
                    offset = 8 * ((lane * degree + k) * limbs + w)
                    at = b.inttoptr(b.add(args[1], I64(offset)), pointer)
                    b.store(b.extract_element(column, ir.IntType(32)(lane)), at, align=8)
        return context.get_dummy_value()

    return types.void(F, types.int64, x), codegen


@intrinsic
def load_elements(typingctx: Any, F: Any, address: Any) -> Any:
    """Inverse of :func:`store_elements`."""
    t = LanesType(F.params, F.degree)

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        limbs, degree = F.params.limbs, F.degree
        parts = []
        for k in range(degree):
            columns = []
            for w in range(limbs):
                column = ir.Constant(V, ir.Undefined)
                for lane in range(LANES):
                    offset = 8 * ((lane * degree + k) * limbs + w)
                    at = b.inttoptr(b.add(args[1], I64(offset)), I64.as_pointer())
                    column = b.insert_element(column, b.load(at, align=8), ir.IntType(32)(lane))
                columns.append(column)
            parts.append(_words_to_limbs(b, columns, 0, _limbs_of(F.params)))
        return _assemble(b, parts)

    return t(F, types.int64), codegen


@intrinsic
def load_words(typingctx: Any, F: Any, address: Any, i: Any) -> Any:
    """Elements 8i … 8i + 7 of a vector of four-word elements of a prime field, as they stand."""
    if not isinstance(F, FieldType) or F.degree != 1 or F.params.limbs != 4:
        return None
    t = LanesType(F.params, 1)

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        start = b.add(args[1], b.mul(args[2], I64(8 * LANES * 4)))
        quarter = ir.VectorType(I64, 4)
        rows = []
        for k in range(LANES):
            at = b.inttoptr(b.add(start, I64(32 * k)), quarter.as_pointer())
            rows.append(b.load(at, align=8))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), list(range(LANES)))
        pairs = [b.shuffle_vector(rows[k], rows[k + 4], mask) for k in range(4)]
        return _make(b, _words_to_limbs(b, _transpose(b, pairs), 0, _limbs_of(F.params)))

    return t(F, types.int64, types.int64), codegen


@intrinsic
def store_words(typingctx: Any, address: Any, i: Any, stride: Any, x: Any) -> Any:
    """Writes eight canonical elements as four words each, to elements i, i + stride, i + 2·stride, …"""
    if not isinstance(x, LanesType) or x.degree != 1 or x.params.limbs != 4:
        return None

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        columns = _limbs_to_words(b, _take(b, args[3]), 4)
        quarter = ir.VectorType(I64, 4)
        for k, row in enumerate(_transpose(b, columns)):
            for half in (0, 1):
                index = b.add(args[1], b.mul(args[2], I64(k + 4 * half)))
                at = b.inttoptr(b.add(args[0], b.mul(index, I64(32))), quarter.as_pointer())
                mask = ir.Constant(ir.VectorType(ir.IntType(32), 4), [4 * half + j for j in range(4)])
                b.store(b.shuffle_vector(row, row, mask), at, align=8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, x), codegen


@intrinsic
def transpose_lanes(typingctx: Any, xs: Any) -> Any:
    """A tuple of eight: lane j of result i is lane i of argument j."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        values = [_take(b, b.extract_value(args[0], i)) for i in range(LANES)]
        columns = [_transpose(b, list(limb)) for limb in zip(*values, strict=True)]
        results = [_make(b, [column[i] for column in columns]) for i in range(LANES)]
        return context.make_tuple(b, xs, results)

    return xs(xs), codegen


def _lane_factor(name: str, doc: str, power: Callable[[FieldParams, LaneForm], int]) -> Any:
    """A power of two as an integer mod p, in every lane: a factor that changes the form."""

    def factor(typingctx: Any, F: Any) -> Any:
        def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
            f, n = F.params, _limbs_of(F.params)
            c0 = _constant(pow(2, power(f, lane_form(f)), f.modulus), n)
            return _assemble(b, [c0] if F.degree == 1 else [c0, [_splat(0)] * n])

        return LanesType(F.params, F.degree)(F), codegen

    factor.__name__, factor.__doc__ = name, doc
    return intrinsic(factor)


files_x = _lane_factor(
    "files_x", "x in the lanes' form times this is x in the files'.", lambda f, m: 64 * f.limbs - 2 * m.e
)
files_y = _lane_factor("files_y", "Likewise for y.", lambda f, m: 64 * f.limbs - 3 * m.e)


# Between the forms, one element at a time --------------------------------------------------------


def _form_factor(name: str, doc: str, power: Callable[[FieldParams, LaneForm], int]) -> Any:
    """A power of two in Montgomery form with radix 2^(64·limbs)."""

    def factor(typingctx: Any, F: Any) -> Any:
        element = ElementType(F.params, F.degree)

        def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
            f = F.params
            value = pow(2, power(f, lane_form(f)), f.modulus) * f.R % f.modulus
            c0 = ir.IntType(64 * f.limbs)(value)
            return c0 if F.degree == 1 else _make(b, [c0, c0.type(0)])

        return element(F), codegen

    factor.__name__, factor.__doc__ = name, doc
    return intrinsic(factor)


def _excess(f: FieldParams, form: LaneForm) -> int:
    return LIMB_BITS * form.limbs - 64 * f.limbs


inverse_factor = _form_factor(
    "inverse_factor",
    "The inverse of a lane, computed as a scalar, times this is its inverse as a lane.",
    lambda f, m: 2 * _excess(f, m),
)


@intrinsic
def canonical(typingctx: Any, x: Any) -> Any:
    """A value below 8p that was read from lanes, in [0, p)."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        def reduced(value: Any) -> Any:
            for k in (4, 2, 1):
                multiple = value.type(k * x.params.modulus)
                value = b.select(b.icmp_unsigned("<", value, multiple), value, b.sub(value, multiple))
            return value

        if x.degree == 1:
            return reduced(args[0])
        return _make(b, [reduced(b.extract_value(args[0], i)) for i in (0, 1)])

    return x(x), codegen


# Inverses ----------------------------------------------------------------------------------------


@inline
def lanes_inverses(F, u, v):
    """(1/u, 1/v, whether any lane is zero) by one scalar inversion, below 1.3p for factors below 2p.

    Zeros, if any lane is zero.
    """
    G = plain(F)
    a = u * v
    b = a * lanes_rotate(a, 4)
    c = b * lanes_rotate(b, 2)
    d = c * lanes_rotate(c, 1)
    scalar = inverse(canonical(lanes_first(d))) * inverse_factor(G)
    t = lanes_splat(F, scalar) * lanes_rotate(c, 1)
    t = t * lanes_rotate(b, 2)
    t = t * lanes_rotate(a, 4)
    return t * v, t * u, scalar == zero(G)
