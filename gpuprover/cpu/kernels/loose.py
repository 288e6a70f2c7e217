"""Sums and products of eight lanes that leave carries for later; whole vectors in and out of memory.

A loose value has signed 64-bit limbs of any size below 2^62; the number that they make is what
counts, and is not negative. Sums are vertical additions then. Only a product needs limbs below 2^52, of its
first factor: it carries that one, and its own result is loose again, limbs below 2^57. The
second factor has its limbs carried and is below 1.04p: a power that is made by products, of which each is
below p plus the product over the capacity (84.6p for BN254, 35.3p for BLS12-381's scalars); twiddles end
below p/(1 − 1/35.3) = 1.03p. The first factor is below 33p, and then the product is below
(1 + 33·1.04/35.3)p < 2p.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.extending import intrinsic

from gpuprover.cpu.kernels.field import I64
from gpuprover.cpu.kernels.jit import inline
from gpuprover.cpu.kernels.lanes import LaneFieldType, LanesType, lanes_one
from gpuprover.cpu.kernels.limbs import (
    Limbs,
    carry,
    constant,
    limbs_of,
    make,
    multiply_add,
    reduction_step,
    splat,
    subtract_if,
    take,
    transpose,
    words_to_limbs,
)
from gpuprover.cpu.layout import LANES, LIMB_BITS
from gpuprover.curves import FieldParams


def _is_prime(x: Any) -> bool:
    return isinstance(x, LanesType) and x.degree == 1


@intrinsic
def plus(typingctx: Any, x: Any, y: Any) -> Any:
    """x + y."""
    if not _is_prime(x):
        return None

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        pairs = zip(take(b, args[0]), take(b, args[1]), strict=True)
        return make(b, [b.add(p, q) for p, q in pairs])

    return x(x, x), codegen


@intrinsic
def minus(typingctx: Any, x: Any, y: Any, k: Any) -> Any:
    """x − y + k·p, for y <= k·p; k is a literal."""
    if not _is_prime(x) or not isinstance(k, types.IntegerLiteral):
        return None

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        xs, ys = take(b, args[0]), take(b, args[1])
        multiple = constant(k.literal_value * x.params.modulus, len(xs))
        triples = zip(xs, ys, multiple, strict=True)
        return make(b, [b.sub(b.add(p, c), q) for p, q, c in triples])

    return x(x, x, k), codegen


@intrinsic
def shifted(typingctx: Any, x: Any, bits: Any) -> Any:
    """x·2^bits; bits is a literal, and limbs are small enough for it."""
    if not _is_prime(x) or not isinstance(bits, types.IntegerLiteral):
        return None

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        return make(b, [b.shl(limb, splat(bits.literal_value)) for limb in take(b, args[0])])

    return x(x, bits), codegen


@intrinsic
def carried(typingctx: Any, x: Any) -> Any:
    """The same number with limbs in [0, 2^52)."""
    if not _is_prime(x):
        return None
    return x(x), lambda context, b, sig, args: make(b, carry(b, take(b, args[0])))


def _products(b: ir.IRBuilder, f: FieldParams, *pairs: tuple[Limbs, Limbs]) -> list[Limbs]:
    """Loose products of loose and carried factors, limb by limb in turns: each waits on its own results."""
    carried = [(carry(b, x), y) for x, y in pairs]
    n = len(pairs[0][0])
    ps = constant(f.modulus, n)
    sums: list[Limbs] = [[splat(0)] * n for _ in pairs]
    for i in range(n):
        for k, (x, y) in enumerate(carried):
            acc = [*sums[k], splat(0)]
            for j in range(n):
                acc[j] = multiply_add(b, "l", acc[j], x[j], y[i])
            for j in range(n):
                acc[j + 1] = multiply_add(b, "h", acc[j + 1], x[j], y[i])
            sums[k] = acc
        for k in range(len(carried)):
            sums[k] = reduction_step(b, f, sums[k], ps)
    return sums


@intrinsic
def times(typingctx: Any, x: Any, y: Any) -> Any:
    """x·y, below 2p, for a loose x < 33p and a carried y < 1.04p."""
    if not _is_prime(x):
        return None

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        return make(b, _products(b, x.params, (take(b, args[0]), take(b, args[1])))[0])

    return x(x, x), codegen


@intrinsic
def times_both(typingctx: Any, x1: Any, y1: Any, x2: Any, y2: Any) -> Any:
    """(x1·y1, x2·y2), both as :func:`times`, in less time than one after the other."""
    if not _is_prime(x1):
        return None
    result = types.UniTuple(x1, 2)

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        parts = [take(b, a) for a in args]
        first, second = _products(b, x1.params, (parts[0], parts[1]), (parts[2], parts[3]))
        return context.make_tuple(b, result, [make(b, first), make(b, second)])

    return result(x1, x1, x1, x1), codegen


def _settle(b: ir.IRBuilder, f: FieldParams, x: Limbs) -> Limbs:
    """x − q·p below 2p, with q = ⌊top limb·⌊capacity⌋/2^52⌋ (Barrett).

    For want of a multiply-subtract, q·(2^260 − p) is added, and q·2^260 subtracted from what passes the top.
    """
    n = len(x)
    whole = 1 << (LIMB_BITS * n)
    x = carry(b, x)
    q = multiply_add(b, "h", splat(0), x[-1], splat(whole // f.modulus))
    x.append(b.sub(splat(0), q))
    for j, c in enumerate(constant(whole - f.modulus, n)):
        x[j] = multiply_add(b, "l", x[j], q, c)
        x[j + 1] = multiply_add(b, "h", x[j + 1], q, c)
    x[n - 1] = b.add(x[n - 1], b.shl(x[n], splat(LIMB_BITS)))
    return x[:n]


@intrinsic
def settle(typingctx: Any, x: Any) -> Any:
    """The same mod p, below 2p, for x below the capacity."""
    if not _is_prime(x):
        return None
    return x(x), lambda context, b, sig, args: make(b, _settle(b, x.params, take(b, args[0])))


@intrinsic
def lowest(typingctx: Any, x: Any) -> Any:
    """The same mod p, in [0, p) and with its limbs carried, for x below the capacity."""
    if not _is_prime(x):
        return None

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        settled = carry(b, _settle(b, x.params, take(b, args[0])))
        return make(b, subtract_if(b, x.params, 1, settled))

    return x(x), codegen


def _gathered(b: ir.IRBuilder, f: FieldParams, starts: list[Any], align: int, shift: int) -> Limbs:
    quarter = ir.VectorType(I64, 4)
    rows = [b.load(b.inttoptr(at, quarter.as_pointer()), align=align) for at in starts]
    mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), list(range(LANES)))
    pairs = [b.shuffle_vector(rows[k], rows[k + 4], mask) for k in range(4)]
    return words_to_limbs(b, transpose(b, pairs), shift, limbs_of(f))


@intrinsic
def gather_words(typingctx: Any, F: Any, address: Any, i: Any, stride: Any, shift: Any) -> Any:
    """Elements i, i + stride, … i + 7·stride of a vector of four-word elements, times 2^shift (a literal)."""
    if not isinstance(F, LaneFieldType) or F.degree != 1 or F.params.limbs != 4:
        return None
    if not isinstance(shift, types.IntegerLiteral):
        return None
    t = LanesType(F.params, 1)

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        starts = []
        for k in range(LANES):
            index = b.add(args[2], b.mul(args[3], I64(k)))
            starts.append(b.add(args[1], b.mul(index, I64(32))))
        return make(b, _gathered(b, F.params, starts, 8, shift.literal_value))

    return t(F, types.int64, types.int64, types.int64, shift), codegen


@intrinsic
def gather_at(typingctx: Any, F: Any, addresses: Any, shift: Any) -> Any:
    """The elements at eight addresses, which need not be aligned, times 2^shift (a literal)."""
    if not isinstance(F, LaneFieldType) or F.degree != 1 or F.params.limbs != 4:
        return None
    if not isinstance(shift, types.IntegerLiteral):
        return None
    t = LanesType(F.params, 1)

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        starts = []
        for k in range(LANES):
            at = b.inttoptr(b.add(args[1], I64(8 * k)), I64.as_pointer())
            starts.append(b.load(at, align=8))
        return make(b, _gathered(b, F.params, starts, 1, shift.literal_value))

    return t(F, types.int64, shift), codegen


@intrinsic
def zero_mask(typingctx: Any, x: Any) -> Any:
    """Bit mask of the lanes that are 0, for values in [0, p) with carried limbs."""
    if not _is_prime(x):
        return None

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        first, *others = take(b, args[0])
        for limb in others:
            first = b.or_(first, limb)
        mask = b.icmp_unsigned("==", first, splat(0))
        return b.zext(b.bitcast(mask, ir.IntType(LANES)), I64)

    return types.int64(x), codegen


@inline
def lane_power(F, x, exponent):
    """x^exponent, carried and below 1.1p, for a carried x < p and an int64 exponent >= 0."""
    y = lanes_one(F)
    while exponent > 0:
        if exponent & 1:
            y = carried(times(y, x))
        x = carried(times(x, x))
        exponent >>= 1
    return y
