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
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.datamodel import models
from numba.core.extending import (
    NativeValue,
    intrinsic,
    lower_builtin,
    overload,
    register_model,
    typeof_impl,
    unbox,
)
from numba.core.typing.templates import AbstractTemplate, infer_global, signature

from gpuprover.cpu.inversion import emit_inverse, join, split
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


class Field:
    """A prime field (degree 1) or its quadratic extension by u² = −1 (degree 2), as an argument of kernels.

    Attributes:
        words: uint64 words of an element in memory; in degree 2 the real part comes first.
    """

    def __init__(self, params: FieldParams, degree: int = 1) -> None:
        self.params, self.degree = params, degree
        self.words = params.limbs * degree
        self._numba_type_ = FieldType(params, degree)


def _llvm(t: FieldType | ElementType) -> Any:
    prime = ir.IntType(64 * t.params.limbs)
    return prime if t.degree == 1 else ir.LiteralStructType([prime, prime])


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


def _montgomery_product(b: ir.IRBuilder, f: FieldParams, x: Any, y: Any) -> Any:
    """x·y·R⁻¹ mod p, unrolled. Products and sums of words are 128-bit; none overflows."""
    n = f.limbs
    xs, ys = split(b, x, n), split(b, y, n)
    ps = [I64((f.modulus >> (64 * i)) & WORD_MASK) for i in range(n)]

    def multiply_add(left: Any, right: Any, *addends: Any) -> tuple[Any, Any]:
        wide = b.mul(b.zext(left, I128), b.zext(right, I128))
        for addend in addends:
            wide = b.add(wide, b.zext(addend, I128))
        return b.trunc(b.lshr(wide, I128(64)), I64), b.trunc(wide, I64)

    t: list[Any] = [I64(0)] * n
    for y_word in ys:
        carry_x, t0 = multiply_add(xs[0], y_word, t[0])
        m = b.mul(t0, I64(f.n0))
        carry_p, _ = multiply_add(m, ps[0], t0)
        for j in range(1, n):
            carry_x, tj = multiply_add(xs[j], y_word, t[j], carry_x)
            carry_p, t[j - 1] = multiply_add(m, ps[j], tj, carry_p)
        t[n - 1] = b.add(carry_x, carry_p)
    return _reduce_once(b, join(b, t), f.modulus)


def _shared_function(
    b: ir.IRBuilder, name: str, args: tuple[Any, ...], body: Callable[..., Any], attribute: str
) -> Any:
    """Calls the module's function ``name``, which is defined on first use."""
    module = b.module
    function = module.globals.get(name)
    if function is None:
        kinds = [a.type for a in args]
        function = ir.Function(module, ir.FunctionType(kinds[0], kinds), name)
        function.linkage = "linkonce_odr"
        function.attributes.add(attribute)
        inner = ir.IRBuilder(function.append_basic_block())
        inner.ret(body(inner, *function.args))
    return b.call(function, args)


def _prime_mul(b: ir.IRBuilder, f: FieldParams, x: Any, y: Any) -> Any:
    # Six-word products are shared functions: inlined, they triple the code and save nothing.
    attribute = "alwaysinline" if f.limbs <= 4 else "noinline"
    return _shared_function(
        b,
        f"gpuprover.mul.{f.name}",
        (x, y),
        lambda inner, p, q: _montgomery_product(inner, f, p, q),
        attribute,
    )


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
    """Karatsuba with u² = −1: three products."""
    x0, x1 = b.extract_value(x, 0), b.extract_value(x, 1)
    y0, y1 = b.extract_value(y, 0), b.extract_value(y, 1)
    v0, v1 = _prime_mul(b, f, x0, y0), _prime_mul(b, f, x1, y1)
    cross = _prime_mul(b, f, _prime_add(b, f, x0, x1), _prime_add(b, f, y0, y1))
    c1 = _prime_sub(b, f, _prime_sub(b, f, cross, v0), v1)
    return _pair(b, x.type, _prime_sub(b, f, v0, v1), c1)


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
        name, product = f"gpuprover.mul2.{f.name}", _extension_mul
        return _shared_function(b, name, args, lambda inner, *xs: product(inner, f, *xs), "noinline")
    if operation == "square":
        name, square = f"gpuprover.square2.{f.name}", _extension_square
        return _shared_function(b, name, args, lambda inner, *xs: square(inner, f, *xs), "noinline")
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


@intrinsic
def _prime_inverse(typingctx: Any, x: Any) -> Any:
    """1/x, and 0 for 0, by a shared function."""
    if not isinstance(x, ElementType) or x.degree != 1:
        return None

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        def body(inner: ir.IRBuilder, value: Any) -> Any:
            return emit_inverse(inner, x.params, value)

        return _shared_function(b, f"gpuprover.inverse.{x.params.name}", args, body, "noinline")

    return x(x), codegen


def inverse(x: Any) -> Any:
    """1/x, and 0 for 0, in variable time; see inversion.py."""
    raise TypeError("only for compiled code")


@overload(inverse)
def _inverse(x):
    if not isinstance(x, ElementType):
        return None
    if x.degree == 2:

        def invert_pair(x):
            c0, c1 = part(x, 0), part(x, 1)
            n = inverse(square(c0) + square(c1))
            return pair(c0 * n, -(c1 * n))

        return invert_pair
    return lambda x: _prime_inverse(x)
