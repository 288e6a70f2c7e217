"""Eight field elements at a time, into and out of memory.

Elements of lanes have two forms in memory: limb by limb, eight lanes to a limb (``load_lanes``,
``store_lanes``), and as the words that scalar code and files have, one element after the other.

Bases stand in memory with radix 2^(64·limbs). To turn them into the lanes' form would take a
product a coordinate; instead they are taken for points of an isomorphic curve, (u²·x, u³·y) with u a
power of two, for which a shift of a few bits will do (:class:`gpuprover.cpu.layout.LaneForm`). The formulas
of addition do not contain b, so they hold there too, and only sums are ever mapped back.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.extending import intrinsic

from gpuprover.cpu.kernels.field import I64, FieldType
from gpuprover.cpu.kernels.lanes import LanesType, assemble, components
from gpuprover.cpu.kernels.limbs import (
    Limbs,
    V,
    carry,
    constant,
    difference,
    limbs_of,
    limbs_to_words,
    make,
    reduce_limbs,
    reduction_step,
    splat,
    take,
    transpose,
    words_to_limbs,
)
from gpuprover.cpu.layout import BOUND, INDEX_BITS, LANES, NOWHERE, lane_form


def _vector_at(b: ir.IRBuilder, address: Any, offset: int) -> Any:
    return b.inttoptr(b.add(address, I64(offset)), V.as_pointer())


def _block_offsets(words: int) -> list[int]:
    """Where blocks of eight words begin that cover ``words`` words; the last may overlap the one before."""
    return [min(at, words - LANES) for at in range(0, words, LANES)]


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
        nowhere = b.icmp_unsigned("==", index, splat(NOWHERE))
        offsets = b.mul(b.and_(index, splat(INDEX_BITS)), splat(8 * per_point))
        offsets = b.select(nowhere, splat(0), offsets)
        starts = [b.add(args[1], b.extract_element(offsets, ir.IntType(32)(k))) for k in range(LANES)]
        words: dict[int, Any] = {}
        for at in _block_offsets(per_point):
            rows = [b.load(_vector_at(b, start, 8 * at), align=1) for start in starts]
            for k, column in enumerate(transpose(b, rows)):
                words[at + k] = column
        x_words = reduce(b.or_, (words[k] for k in range(per_point // 2)))
        y_words = reduce(b.or_, (words[k] for k in range(per_point // 2, per_point)))
        no_y = b.icmp_unsigned("==", y_words, splat(0))
        infinite = b.or_(nowhere, b.and_(no_y, b.icmp_unsigned("==", x_words, splat(0))))
        minus = b.icmp_unsigned("!=", b.and_(index, splat(INDEX_BITS + 1)), splat(0))
        zero = [splat(0)] * form.limbs
        ps = constant(f.modulus, form.limbs)

        def coordinate(first: int, shift: int, signed: bool) -> Limbs:
            column = [words[first + k] for k in range(f.limbs)]
            limbs = words_to_limbs(b, column, shift, form.limbs)
            for _ in range(form.reductions):
                limbs = carry(b, reduction_step(b, f, [*limbs, splat(0)], ps))
            if signed:
                negated = difference(b, f, BOUND - 1, zero, limbs)
                limbs = [b.select(minus, q, p) for p, q in zip(limbs, negated, strict=True)]
            return [b.select(infinite, splat(0), p) for p in reduce_limbs(b, f, limbs)]

        xs = [coordinate(k * f.limbs, form.shift_x, False) for k in range(F.degree)]
        ys = [coordinate((F.degree + k) * f.limbs, form.shift_y, True) for k in range(F.degree)]
        # A damaged key may hold (x, 0): a y of p keeps it from being taken for infinity.
        odd = b.and_(no_y, b.not_(infinite))
        ys[0] = [b.select(odd, c, y) for c, y in zip(ps, ys[0], strict=True)]
        return context.make_tuple(b, result, [assemble(b, xs), assemble(b, ys)])

    return result(F, types.int64, types.int64), codegen


@intrinsic
def load_lanes(typingctx: Any, F: Any, address: Any, i: Any) -> Any:
    """Element ``i`` of an array of eight-lane elements, limb by limb."""
    t = LanesType(F.params, F.degree)

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        n = limbs_of(F.params)
        start = b.add(args[1], b.mul(args[2], I64(64 * n * F.degree)))
        parts = [
            [b.load(_vector_at(b, start, 64 * (n * k + j)), align=8) for j in range(n)]
            for k in range(F.degree)
        ]
        return assemble(b, parts)

    return t(F, types.int64, types.int64), codegen


@intrinsic
def store_lanes(typingctx: Any, address: Any, i: Any, x: Any) -> Any:
    """Writes element ``i`` of an array of eight-lane elements."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        n = limbs_of(x.params)
        start = b.add(args[0], b.mul(args[1], I64(64 * n * x.degree)))
        for k, limbs in enumerate(components(b, x, args[2])):
            for j, limb in enumerate(limbs):
                b.store(limb, _vector_at(b, start, 64 * (n * k + j)), align=8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, x), codegen


@intrinsic
def vector_bytes(typingctx: Any, F: Any) -> Any:
    """Bytes of an eight-lane element in memory, a constant."""
    return types.int64(F), lambda context, b, sig, args: I64(64 * limbs_of(F.params) * F.degree)


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
        for k, part in enumerate(components(b, x, args[2])):
            for w, column in enumerate(limbs_to_words(b, part, limbs)):
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
            parts.append(words_to_limbs(b, columns, 0, limbs_of(F.params)))
        return assemble(b, parts)

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
        return make(b, words_to_limbs(b, transpose(b, pairs), 0, limbs_of(F.params)))

    return t(F, types.int64, types.int64), codegen


@intrinsic
def store_words(typingctx: Any, address: Any, i: Any, stride: Any, x: Any) -> Any:
    """Writes eight canonical elements as four words each, to elements i, i + stride, i + 2·stride, …"""
    if not isinstance(x, LanesType) or x.degree != 1 or x.params.limbs != 4:
        return None

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        columns = limbs_to_words(b, take(b, args[3]), 4)
        quarter = ir.VectorType(I64, 4)
        for k, row in enumerate(transpose(b, columns)):
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
        values = [take(b, b.extract_value(args[0], i)) for i in range(LANES)]
        columns = [transpose(b, list(limb)) for limb in zip(*values, strict=True)]
        results = [make(b, [column[i] for column in columns]) for i in range(LANES)]
        return context.make_tuple(b, xs, results)

    return xs(xs), codegen
