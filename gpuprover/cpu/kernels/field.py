"""Elements of Fq, Fr and Fq2 as Numba values that live in registers.

A :class:`Field` is a compile-time argument: its Numba type carries the modulus, so a kernel
``f(F, …)`` is compiled once per field and caches on disk (a closure over a modulus would
not). An element of a prime field is one LLVM integer of 64·limbs bits in Montgomery form;
an element of Fq2 = Fq[u]/(u² + 1) is a pair of them. ``+ - *``, unary ``-``, ``==`` and
``!=`` work on both, so curve.py is written once for G1 and G2.

Arrays are passed to kernels as addresses (``int64``): a kernel then has one compiled form
for mapped, unaligned, read-only and own memory alike. The caller keeps the arrays alive.

Ranges: every operation takes and returns canonical values in [0, p).

Multiplication is word-wise Montgomery (CIOS; Koç, Acar, Kaliski, "Analyzing and Comparing
Montgomery Multiplication Algorithms", 1996) without the extra carry word, which a modulus
with a spare top bit does not need.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import cached_property
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.core.extending import (
    NativeValue,
    intrinsic,
    lower_builtin,
    register_model,
    typeof_impl,
    unbox,
)
from numba.core.typing.templates import AbstractTemplate, infer_global, signature

from gpuprover.cpu.kernels.inversion import emit_inverse, join, shared_function, split
from gpuprover.cpu.layout import Field
from gpuprover.curves import FieldParams

I64, I128 = ir.IntType(64), ir.IntType(128)
WORD_MASK = (1 << 64) - 1


class FieldType(types.Type):
    """The Numba type of a :class:`Field`: all of it is known when a kernel is compiled."""

    def __init__(self, params: FieldParams, degree: int) -> None:
        self.params, self.degree = params, degree
        super().__init__(name=f"Field[{params.name}, {degree}]")


class ElementType(types.Type):
    """The Numba type of an element of one field."""

    def __init__(self, params: FieldParams, degree: int) -> None:
        self.params, self.degree = params, degree
        super().__init__(name=f"Element[{params.name}, {degree}]")


def _llvm(t: FieldType | ElementType) -> Any:
    prime = ir.IntType(64 * t.params.limbs)
    return prime if t.degree == 1 else ir.LiteralStructType([prime, prime])


def give_type(kind: type[Field], numba_type: type[FieldType]) -> None:
    """Has Numba take objects of class ``kind``, but not of its subclasses, for ``numba_type``.

    A subclass whose own kernels are not imported yet is refused with a TypeError: with the type of its
    parent, code for the parent would be compiled in its place.
    """

    def type_of(value: Field) -> FieldType:
        if type(value) is not kind:
            raise TypeError(f"{value.name}: the kernels for it are not imported")
        return numba_type(value.params, value.degree)

    found = cached_property(type_of)
    found.__set_name__(kind, "_numba_type_")
    kind._numba_type_ = found


give_type(Field, FieldType)


@typeof_impl.register(Field)
def _typeof_field(value: Field, context: Any) -> FieldType:
    return value._numba_type_


@register_model(FieldType)
class _FieldModel(models.OpaqueModel):
    pass


@register_model(ElementType)
class _ElementModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: ElementType) -> None:
        super().__init__(dmm, fe_type, _llvm(fe_type))


@unbox(FieldType)
def _unbox_field(typ: FieldType, obj: Any, c: Any) -> NativeValue:
    return NativeValue(c.context.get_dummy_value())


# The prime field, in LLVM ---------------------------------------------------------------


def _reduce_once(b: ir.IRBuilder, t: Any, p: int) -> Any:
    """[0, 2p) -> [0, p). The difference fits in a signed integer, so its sign decides."""
    d = b.sub(t, t.type(p))
    return b.select(b.icmp_signed("<", d, t.type(0)), t, d)


def _prime_add(b: ir.IRBuilder, f: FieldParams, x: Any, y: Any) -> Any:
    return _reduce_once(b, b.add(x, y), f.modulus)


def _prime_sub(b: ir.IRBuilder, f: FieldParams, x: Any, y: Any) -> Any:
    d = b.sub(x, y)
    return b.add(d, b.select(b.icmp_signed("<", d, d.type(0)), d.type(f.modulus), d.type(0)))


def _prime_neg(b: ir.IRBuilder, f: FieldParams, x: Any) -> Any:
    return b.select(b.icmp_unsigned("==", x, x.type(0)), x, b.sub(x.type(f.modulus), x))


def _montgomery_product(b: ir.IRBuilder, f: FieldParams, *factors: tuple[Any, Any]) -> Any:
    """Σ x·y·R⁻¹ mod p over one or two pairs (x, y), unrolled. Products and sums of words are 128-bit.

    None overflows: for k pairs the rows' sum stays below (k + 1)·p, and the result below 2p, as p < R/3 and
    factors of two pairs may be p itself.
    """
    n = f.limbs
    rows = [(split(b, x, n), split(b, y, n)) for x, y in factors]
    ps = [I64((f.modulus >> (64 * i)) & WORD_MASK) for i in range(n)]

    def multiply_add(left: Any, right: Any, *addends: Any) -> tuple[Any, Any]:
        wide = b.mul(b.zext(left, I128), b.zext(right, I128))
        for addend in addends:
            wide = b.add(wide, b.zext(addend, I128))
        return b.trunc(b.lshr(wide, I128(64)), I64), b.trunc(wide, I64)

    t: list[Any] = [I64(0)] * n
    for i in range(n):
        carries = []
        for xs, ys in rows:
            carry, t[0] = multiply_add(xs[0], ys[i], t[0])
            carries.append(carry)
        m = b.mul(t[0], I64(f.n0))
        carry_p, _ = multiply_add(m, ps[0], t[0])
        for j in range(1, n):
            tj = t[j]
            for k, (xs, ys) in enumerate(rows):
                carries[k], tj = multiply_add(xs[j], ys[i], tj, carries[k])
            carry_p, t[j - 1] = multiply_add(m, ps[j], tj, carry_p)
        t[n - 1] = carry_p
        for carry in carries:
            t[n - 1] = b.add(t[n - 1], carry)
    return _reduce_once(b, join(b, t), f.modulus)


def _prime_mul(b: ir.IRBuilder, f: FieldParams, *factors: Any) -> Any:
    """x·y, or x·y + z·t."""
    # Six-word products are shared functions: inlined, they triple the code and save nothing.
    attribute = "alwaysinline" if f.limbs <= 4 else "noinline"

    def body(inner: ir.IRBuilder, *xs: Any) -> Any:
        return _montgomery_product(inner, f, *zip(xs[::2], xs[1::2], strict=True))

    return shared_function(b, f"gpuprover.mul{len(factors)}.{f.name}", factors, body, attribute)


_PRIME: dict[str, Callable[..., Any]] = {
    "add": _prime_add,
    "sub": _prime_sub,
    "mul": _prime_mul,
    "neg": _prime_neg,
}


# Both degrees ---------------------------------------------------------------------------


def _pair(b: ir.IRBuilder, kind: Any, c0: Any, c1: Any) -> Any:
    return b.insert_value(b.insert_value(ir.Constant(kind, ir.Undefined), c0, 0), c1, 1)


def _extension_mul(b: ir.IRBuilder, f: FieldParams, x: Any, y: Any) -> Any:
    """(x0·y0 − x1·y1) + (x0·y1 + x1·y0)·u, each sum of products reduced once.

    P. Longa, "Efficient algorithms for large prime characteristic fields and their application to bilinear
    pairings" (2022, IACR ePrint 2022/367), section 3.
    """
    x0, x1 = b.extract_value(x, 0), b.extract_value(x, 1)
    y0, y1 = b.extract_value(y, 0), b.extract_value(y, 1)
    minus_x1 = b.sub(x1.type(f.modulus), x1)
    c0 = _prime_mul(b, f, x0, y0, minus_x1, y1)
    return _pair(b, x.type, c0, _prime_mul(b, f, x0, y1, x1, y0))


def _extension_square(b: ir.IRBuilder, f: FieldParams, x: Any) -> Any:
    """(x0 + x1)(x0 − x1) + 2·x0·x1·u: two products."""
    x0, x1 = b.extract_value(x, 0), b.extract_value(x, 1)
    c0 = _prime_mul(b, f, _prime_add(b, f, x0, x1), _prime_sub(b, f, x0, x1))
    half = _prime_mul(b, f, x0, x1)
    return _pair(b, x.type, c0, _prime_add(b, f, half, half))


def _emit(b: ir.IRBuilder, operation: str, t: ElementType, *args: Any) -> Any:
    f = t.params
    if t.degree == 1:
        if operation == "square":
            return _prime_mul(b, f, args[0], args[0])
        return _PRIME[operation](b, f, *args)
    if operation == "mul":
        name, product = f"gpuprover.product2.{f.name}", _extension_mul
        return shared_function(b, name, args, lambda inner, *xs: product(inner, f, *xs), "noinline")
    if operation == "square":
        name, square = f"gpuprover.square2.{f.name}", _extension_square
        return shared_function(b, name, args, lambda inner, *xs: square(inner, f, *xs), "noinline")
    parts = [_PRIME[operation](b, f, *(b.extract_value(a, i) for a in args)) for i in (0, 1)]
    return _pair(b, args[0].type, *parts)


def _equal(b: ir.IRBuilder, t: ElementType, x: Any, y: Any) -> Any:
    if t.degree == 1:
        return b.icmp_unsigned("==", x, y)
    halves = [b.icmp_unsigned("==", b.extract_value(x, i), b.extract_value(y, i)) for i in (0, 1)]
    return b.and_(*halves)


def _register_operator(op: Any, arity: int, operation: str, comparison: bool = False) -> None:
    @infer_global(op)
    class Operator(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            first = args[0]
            if len(args) != arity or not isinstance(first, ElementType) or any(a != first for a in args):
                return None
            return signature(types.boolean if comparison else first, *args)

    @lower_builtin(op, *[ElementType] * arity)
    def lower(context: Any, b: Any, sig: Any, args: Any) -> Any:
        if comparison:
            equal = _equal(b, sig.args[0], *args)
            return equal if operation == "eq" else b.not_(equal)
        return _emit(b, operation, sig.return_type, *args)


_register_operator(operator.add, 2, "add")
_register_operator(operator.sub, 2, "sub")
_register_operator(operator.mul, 2, "mul")
_register_operator(operator.neg, 1, "neg")
_register_operator(operator.eq, 2, "eq", comparison=True)
_register_operator(operator.ne, 2, "ne", comparison=True)


# Functions on elements ------------------------------------------------------------------


@intrinsic
def square(typingctx: Any, x: Any) -> Any:
    """x²."""
    if not isinstance(x, ElementType):
        return None
    return x(x), lambda context, b, sig, args: _emit(b, "square", x, args[0])


@intrinsic
def times(typingctx: Any, x: Any, y: Any) -> Any:
    """x·y by a call of one function, for kernels of many products that are not worth much code each."""
    if not isinstance(x, ElementType) or x != y or x.degree != 1:
        return None

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        def body(inner: ir.IRBuilder, left: Any, right: Any) -> Any:
            return _montgomery_product(inner, x.params, (left, right))

        return shared_function(b, f"gpuprover.times.{x.params.name}", tuple(args), body, "noinline")

    return x(x, y), codegen


@intrinsic
def prefetch(typingctx: Any, address: Any) -> Any:
    """Asks for the cache line at ``address``, for reading soon."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        pointer = ir.IntType(8).as_pointer()
        i32 = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, i32, i32, i32])
        function = b.module.globals.get("llvm.prefetch.p0") or ir.Function(b.module, kind, "llvm.prefetch.p0")
        b.call(function, [b.inttoptr(args[0], pointer), i32(0), i32(2), i32(1)])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def negate_if(typingctx: Any, x: Any, flag: Any) -> Any:
    """−x where the integer ``flag`` is not zero, else x; without a branch, since signs are random."""
    if not isinstance(x, ElementType) or not isinstance(flag, types.Integer):
        return None

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        value, condition = args
        return b.select(b.icmp_signed("!=", condition, condition.type(0)), _emit(b, "neg", x, value), value)

    return x(x, flag), codegen


def _address(b: ir.IRBuilder, kind: Any, size: int, address: Any, index: Any) -> Any:
    return b.inttoptr(b.add(address, b.mul(index, I64(size))), kind.as_pointer())


@intrinsic
def load(typingctx: Any, F: Any, address: Any, index: Any) -> Any:
    """Element ``index`` of an array at ``address``; any alignment."""
    if not isinstance(F, FieldType):
        return None
    element = ElementType(F.params, F.degree)

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        prime = ir.IntType(64 * F.params.limbs)
        size = F.params.bytes
        if F.degree == 1:
            return b.load(_address(b, prime, size, args[1], args[2]), align=1)
        first = b.mul(args[2], I64(2))
        parts = [b.load(_address(b, prime, size, args[1], b.add(first, I64(i))), align=1) for i in (0, 1)]
        return _pair(b, _llvm(element), *parts)

    return element(F, types.int64, types.int64), codegen


@intrinsic(prefer_literal=True)
def frame_room(typingctx: Any, F: Any, count: Any) -> Any:
    """The address of room for so many elements, a literal, in the function's frame."""
    if not isinstance(F, FieldType) or not isinstance(count, types.IntegerLiteral):
        return None
    words = ir.ArrayType(I64, count.literal_value * F.params.limbs * F.degree)

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        return b.ptrtoint(cgutils.alloca_once(b, words), I64)

    return types.int64(F, count), codegen


@intrinsic
def load_u32(typingctx: Any, address: Any) -> Any:
    """The uint32 at ``address``, any alignment, as int64."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        pointer = b.inttoptr(args[0], ir.IntType(32).as_pointer())
        return b.zext(b.load(pointer, align=1), I64)

    return types.int64(types.int64), codegen


@intrinsic
def store(typingctx: Any, address: Any, index: Any, x: Any) -> Any:
    """Writes element ``index`` of an array at ``address``; any alignment."""
    if not isinstance(x, ElementType):
        return None

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        prime = ir.IntType(64 * x.params.limbs)
        size = x.params.bytes
        if x.degree == 1:
            b.store(args[2], _address(b, prime, size, args[0], args[1]), align=1)
        else:
            first = b.mul(args[1], I64(2))
            for i in (0, 1):
                part = b.extract_value(args[2], i)
                b.store(part, _address(b, prime, size, args[0], b.add(first, I64(i))), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, x), codegen


def _constant(name: str, doc: str, value: Callable[[FieldParams], int]) -> Any:
    def constant(typingctx, F):
        if not isinstance(F, FieldType):
            return None
        element = ElementType(F.params, F.degree)

        def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
            c0 = ir.IntType(64 * F.params.limbs)(value(F.params))
            return c0 if F.degree == 1 else _pair(b, _llvm(element), c0, c0.type(0))

        return element(F), codegen

    constant.__name__, constant.__doc__ = name, doc
    return intrinsic(constant)


zero = _constant("zero", "0.", lambda f: 0)
one = _constant("one", "1, in Montgomery form.", lambda f: f.R)
r_squared = _constant(
    "r_squared", "x·r_squared(F) brings an integer into Montgomery form.", lambda f: f.R**2 % f.modulus
)
bare_one = _constant("bare_one", "x·bare_one(F) takes x out of Montgomery form.", lambda f: 1)


@intrinsic
def plain(typingctx: Any, F: Any) -> Any:
    """The same field without what a path adds to its type, so that its functions are compiled once."""
    if not isinstance(F, FieldType):
        return None
    return FieldType(F.params, F.degree)(F), lambda context, b, sig, args: context.get_dummy_value()


@intrinsic
def element_bytes(typingctx: Any, F: Any) -> Any:
    """Bytes of an element in memory, a constant."""
    if not isinstance(F, FieldType):
        return None
    return types.int64(F), lambda context, b, sig, args: I64(F.params.bytes * F.degree)


@intrinsic
def word(typingctx: Any, x: Any, index: Any) -> Any:
    """64-bit word ``index`` of an element of a prime field, as it stands."""
    if not isinstance(x, ElementType) or x.degree != 1:
        return None

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        value, i = args
        return b.trunc(b.lshr(value, b.mul(b.zext(i, value.type), value.type(64))), I64)

    return types.uint64(x, types.uint64), codegen


@intrinsic
def is_canonical(typingctx: Any, x: Any) -> Any:
    """Whether the words that were read hold values below p."""
    if not isinstance(x, ElementType):
        return None

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        parts = [args[0]] if x.degree == 1 else [b.extract_value(args[0], i) for i in (0, 1)]
        below = [b.icmp_unsigned("<", part, part.type(x.params.modulus)) for part in parts]
        return below[0] if x.degree == 1 else b.and_(*below)

    return types.boolean(x), codegen


@intrinsic
def part(typingctx: Any, x: Any, index: Any) -> Any:
    """Component 0 or 1 (a literal) of an element of Fq2."""
    if not isinstance(x, ElementType) or x.degree != 2 or not isinstance(index, types.IntegerLiteral):
        return None
    i = index.literal_value
    return ElementType(x.params, 1)(x, index), lambda context, b, sig, args: b.extract_value(args[0], i)


@intrinsic
def pair(typingctx: Any, c0: Any, c1: Any) -> Any:
    """c0 + c1·u."""
    if not isinstance(c0, ElementType) or c0.degree != 1 or c0 != c1:
        return None
    result = ElementType(c0.params, 2)
    return result(c0, c1), lambda context, b, sig, args: _pair(b, _llvm(result), *args)


def _prime_inverse(b: ir.IRBuilder, f: FieldParams, x: Any) -> Any:
    def body(inner: ir.IRBuilder, value: Any) -> Any:
        return emit_inverse(inner, f, value)

    return shared_function(b, f"gpuprover.inverse.{f.name}", (x,), body, "noinline")


@intrinsic
def inverse(typingctx: Any, x: Any) -> Any:
    """1/x, and 0 for 0, in variable time; see inversion.py."""
    if not isinstance(x, ElementType):
        return None
    f = x.params

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        if x.degree == 1:
            return _prime_inverse(b, f, args[0])
        c0, c1 = b.extract_value(args[0], 0), b.extract_value(args[0], 1)
        t = _prime_inverse(b, f, _prime_mul(b, f, c0, c0, c1, c1))  # 1/((c0 + c1·u)(c0 − c1·u))
        return _pair(b, args[0].type, _prime_mul(b, f, c0, t), _prime_neg(b, f, _prime_mul(b, f, c1, t)))

    return x(x), codegen
