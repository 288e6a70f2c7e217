"""Eight field elements at a time: AVX-512 IFMA on 52-bit limbs, as Numba values.

An element of eight lanes is a tuple of <8 × i64> vectors, limb by limb, or a pair of them in an extension
field. Form and ranges: :mod:`gpuprover.cpu.kernels.limbs`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.datamodel import models
from numba.core.extending import intrinsic, lower_builtin, register_model
from numba.core.typing.templates import AbstractTemplate, infer_global, signature

from gpuprover.cpu.kernels.field import I64, ElementType, FieldType, give_type, inverse, plain, zero
from gpuprover.cpu.kernels.jit import inline
from gpuprover.cpu.kernels.limbs import (
    Limbs,
    V,
    add,
    bit_mask,
    constant,
    difference,
    limbs_of,
    make,
    multiply,
    product,
    reduce_limbs,
    shuffle,
    splat,
    subtract,
    subtract_if,
    take,
    zero_lanes,
)
from gpuprover.cpu.layout import BOUND, LANES, LIMB_BITS, LIMB_MASK, LaneField, LaneForm, lane_form
from gpuprover.curves import FieldParams


class LaneFieldType(FieldType):
    """The Numba type of a :class:`LaneField`."""

    def __init__(self, params: FieldParams, degree: int) -> None:
        super().__init__(params, degree)
        self.name = f"LaneField[{params.name}, {degree}]"


give_type(LaneField, LaneFieldType)


class LanesType(types.Type):
    """The Numba type of eight elements."""

    def __init__(self, params: FieldParams, degree: int) -> None:
        self.params, self.degree = params, degree
        super().__init__(name=f"Lanes[{params.name}, {degree}]")


def _llvm(t: LanesType) -> Any:
    prime = ir.LiteralStructType([V] * limbs_of(t.params))
    return prime if t.degree == 1 else ir.LiteralStructType([prime, prime])


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: LanesType) -> None:
        super().__init__(dmm, fe_type, _llvm(fe_type))


register_model(LaneFieldType)(models.OpaqueModel)


# Both degrees: lists of one or two lists of limbs ---------------------------------------------


def components(b: ir.IRBuilder, t: LanesType, x: Any) -> list[Limbs]:
    """The limbs of an element's components, one or two."""
    return [take(b, x)] if t.degree == 1 else [take(b, part) for part in take(b, x)]


def assemble(b: ir.IRBuilder, parts: list[Limbs]) -> Any:
    """The element of these components."""
    made = [make(b, part) for part in parts]
    return made[0] if len(made) == 1 else make(b, made)


def _multiply_components(b: ir.IRBuilder, f: FieldParams, x: list[Limbs], y: list[Limbs]) -> list[Limbs]:
    """Below 2p. Degree 1: for x·y <= 84p². Degree 2: for x < 10p, y < 4p.

    Degree 2 takes four products, as many multiplications as Karatsuba's three: two share a reduction.
    """
    if len(x) == 1:
        return [multiply(b, f, x[0], y[0])]
    minus = subtract(b, f, 4, [splat(0)] * len(y[1]), y[1])
    return [product(b, f, (x[0], y[0]), (x[1], minus)), product(b, f, (x[0], y[1]), (x[1], y[0]))]


def square_components(b: ir.IRBuilder, f: FieldParams, x: list[Limbs]) -> list[Limbs]:
    """Below 2.2p for x < 5p (degree 1: < 6p); below 1.2p for x < 1.2p."""
    if len(x) == 1:
        return [multiply(b, f, x[0], x[0])]
    c0 = multiply(b, f, add(b, x[0], x[1]), subtract(b, f, BOUND, x[0], x[1]))
    return [c0, multiply(b, f, add(b, x[0], x[0]), x[1])]


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
        return assemble(b, _multiply_components(b, t.params, *(components(b, t, a) for a in args)))
    name = f"gpuprover.mul8x2.{t.params.name}"
    function = b.module.globals.get(name)
    if function is None:
        kind = _llvm(t)
        function = ir.Function(b.module, ir.FunctionType(kind, [kind, kind]), name)
        function.linkage = "linkonce_odr"
        function.attributes.add("noinline")
        inner = ir.IRBuilder(function.append_basic_block())
        p, q = (components(inner, t, a) for a in function.args)
        inner.ret(assemble(inner, _multiply_components(inner, t.params, p, q)))
    return b.call(function, args)


@intrinsic
def lanes_square(typingctx: Any, x: Any) -> Any:
    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        return assemble(b, square_components(b, x.params, components(b, x, args[0])))

    return x(x), codegen


def _map_components(b: ir.IRBuilder, t: LanesType, emit: Callable[..., Limbs], *args: Any) -> Any:
    """``emit(*limbs)`` on each component of elements of type t."""
    columns = zip(*(components(b, t, a) for a in args), strict=True)
    return assemble(b, [emit(*parts) for parts in columns])


@intrinsic
def lanes_sub(typingctx: Any, x: Any, y: Any, k: Any) -> Any:
    """x − y + k·p, for y <= k·p; k is a literal."""
    if not isinstance(k, types.IntegerLiteral) or not isinstance(x, LanesType):
        return None

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        return _map_components(b, x, lambda *parts: subtract(b, x.params, k.literal_value, *parts), *args[:2])

    return x(x, y, k), codegen


@intrinsic
def lanes_sub2(typingctx: Any, x: Any, y: Any, z: Any, k: Any) -> Any:
    """x − y − z + k·p, for y + z <= k·p; k is a literal."""
    if not isinstance(k, types.IntegerLiteral) or not isinstance(x, LanesType):
        return None

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        return _map_components(b, x, lambda *parts: subtract(b, x.params, k.literal_value, *parts), *args[:3])

    return x(x, y, z, k), codegen


@intrinsic
def lanes_sub_if(typingctx: Any, x: Any, k: Any) -> Any:
    """x − k·p where that is not negative; k is a literal."""
    if not isinstance(k, types.IntegerLiteral) or not isinstance(x, LanesType):
        return None

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        return _map_components(b, x, lambda part: subtract_if(b, x.params, k.literal_value, part), args[0])

    return x(x, k), codegen


@intrinsic
def lanes_sub_reduced(typingctx: Any, x: Any, y: Any) -> Any:
    """x − y below 2^bits + p, for x < 3p and y < 3p."""
    if not isinstance(x, LanesType):
        return None

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        return _map_components(
            b, x, lambda *parts: reduce_limbs(b, x.params, difference(b, x.params, 3, *parts)), *args
        )

    return x(x, y), codegen


@intrinsic
def lanes_sub2_reduced(typingctx: Any, x: Any, y: Any, z: Any) -> Any:
    """x − y − z below 2^bits + p, for x < 1.5p and y + z < 5p."""
    if not isinstance(x, LanesType):
        return None

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        return _map_components(
            b, x, lambda *parts: reduce_limbs(b, x.params, difference(b, x.params, 5, *parts)), *args
        )

    return x(x, y, z), codegen


@intrinsic
def lanes_add(typingctx: Any, x: Any, y: Any) -> Any:
    """x + y."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        return _map_components(b, x, lambda p, q: add(b, p, q), *args)

    return x(x, y), codegen


@intrinsic
def lanes_one(typingctx: Any, F: Any) -> Any:
    t = LanesType(F.params, F.degree)

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        n = limbs_of(F.params)
        unit = constant((1 << (LIMB_BITS * n)) % F.params.modulus, n)
        return assemble(b, [unit] if F.degree == 1 else [unit, [splat(0)] * n])

    return t(F), codegen


@intrinsic
def lanes_zero(typingctx: Any, F: Any) -> Any:
    t = LanesType(F.params, F.degree)
    n = limbs_of(F.params)
    return t(F), lambda c, b, sig, args: assemble(b, [[splat(0)] * n] * F.degree)


@intrinsic
def lanes_all_zero(typingctx: Any, x: Any) -> Any:
    """Bit mask of the lanes whose limbs are all zero."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        result = None
        for part in components(b, x, args[0]):
            zero = zero_lanes(b, part)
            result = zero if result is None else b.and_(result, zero)
        return bit_mask(b, result)

    return types.int64(x), codegen


@intrinsic
def lanes_multiple_of_p(typingctx: Any, x: Any) -> Any:
    """Bit mask of the lanes that are 0 or p, which below 2p are those that are 0 in the field."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        result = None
        for part in components(b, x, args[0]):
            multiple = b.or_(zero_lanes(b, part), zero_lanes(b, part, x.params.modulus))
            result = multiple if result is None else b.and_(result, multiple)
        return bit_mask(b, result)

    return types.int64(x), codegen


@intrinsic
def lanes_rotate(typingctx: Any, x: Any, k: Any) -> Any:
    """Lane i is lane (i + k) mod 8 of x; k is a literal."""
    if not isinstance(k, types.IntegerLiteral):
        return None
    indices = [(i + k.literal_value) % LANES for i in range(LANES)]

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        return _map_components(b, x, lambda part: [shuffle(b, v, v, indices) for v in part], args[0])

    return x(x, k), codegen


@intrinsic
def lanes_first(typingctx: Any, x: Any) -> Any:
    """Lane 0 as an element, for lanes below 2^(64·limbs); not reduced."""
    element = ElementType(x.params, x.degree)

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        wide = ir.IntType(64 * x.params.limbs)
        values = []
        for part in components(b, x, args[0]):
            value = wide(0)
            for i, limb in enumerate(part):
                lane = b.zext(b.extract_element(limb, ir.IntType(32)(0)), wide)
                value = b.or_(value, b.shl(lane, wide(LIMB_BITS * i)))
            values.append(value)
        return values[0] if x.degree == 1 else make(b, values)

    return element(x), codegen


@intrinsic
def lanes_splat(typingctx: Any, F: Any, x: Any) -> Any:
    """The element x in every lane, its bits as they stand."""
    t = LanesType(F.params, F.degree)

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        n = limbs_of(F.params)
        values = [args[1]] if F.degree == 1 else [b.extract_value(args[1], i) for i in (0, 1)]
        parts = []
        for value in values:
            limbs = []
            for i in range(n):
                start = LIMB_BITS * i
                bits = b.lshr(value, value.type(start)) if start < value.type.width else value.type(0)
                limb = b.and_(b.trunc(bits, I64), I64(LIMB_MASK))
                first = b.insert_element(ir.Constant(V, ir.Undefined), limb, ir.IntType(32)(0))
                limbs.append(shuffle(b, first, first, [0] * LANES))
            parts.append(limbs)
        return assemble(b, parts)

    return t(F, x), codegen


@intrinsic
def lanes_select(typingctx: Any, mask: Any, x: Any, y: Any) -> Any:
    """x in the lanes of the bit mask, y elsewhere."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        bits = b.bitcast(b.trunc(args[0], ir.IntType(LANES)), ir.VectorType(ir.IntType(1), LANES))
        xs, ys = components(b, x, args[1]), components(b, x, args[2])
        return assemble(
            b,
            [[b.select(bits, p, q) for p, q in zip(a, c, strict=True)] for a, c in zip(xs, ys, strict=True)],
        )

    return x(types.int64, x, y), codegen


@intrinsic
def is_prime_field(typingctx: Any, F: Any) -> Any:
    """Whether F is of degree 1, a constant."""
    return types.boolean(F), lambda context, b, sig, args: ir.IntType(1)(F.degree == 1)


def _lane_factor(name: str, doc: str, power: Callable[[FieldParams, LaneForm], int]) -> Any:
    """A power of two as an integer mod p, in every lane: a factor that changes the form."""

    def factor(typingctx: Any, F: Any) -> Any:
        def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
            f, n = F.params, limbs_of(F.params)
            c0 = constant(pow(2, power(f, lane_form(f)), f.modulus), n)
            return assemble(b, [c0] if F.degree == 1 else [c0, [splat(0)] * n])

        return LanesType(F.params, F.degree)(F), codegen

    factor.__name__, factor.__doc__ = name, doc
    return intrinsic(factor)


files_x = _lane_factor(
    "files_x", "x in the lanes' form times this is x in the files'.", lambda f, m: 64 * f.limbs - 2 * m.e
)
files_y = _lane_factor("files_y", "Likewise for y.", lambda f, m: 64 * f.limbs - 3 * m.e)


# Between the forms, one element at a time --------------------------------------------------------


def form_factor(name: str, doc: str, power: Callable[[FieldParams, LaneForm], int]) -> Any:
    """A power of two in Montgomery form with radix 2^(64·limbs), as an intrinsic of a field."""

    def factor(typingctx: Any, F: Any) -> Any:
        element = ElementType(F.params, F.degree)

        def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
            f = F.params
            value = pow(2, power(f, lane_form(f)), f.modulus) * f.R % f.modulus
            c0 = ir.IntType(64 * f.limbs)(value)
            return c0 if F.degree == 1 else make(b, [c0, c0.type(0)])

        return element(F), codegen

    factor.__name__, factor.__doc__ = name, doc
    return intrinsic(factor)


def excess(f: FieldParams, form: LaneForm) -> int:
    """Bits by which the lanes' radix is longer than the words'."""
    return LIMB_BITS * form.limbs - 64 * f.limbs


inverse_factor = form_factor(
    "inverse_factor",
    "The inverse of a lane, computed as a scalar, times this is its inverse as a lane.",
    lambda f, m: 2 * excess(f, m),
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
        return make(b, [reduced(b.extract_value(args[0], i)) for i in (0, 1)])

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
