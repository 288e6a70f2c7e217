"""Jubjub in a circuit: additions of points, one in a row, each with a bit that says whether it is done.

A row holds a point q, a point p, a bit, their sum q + bit·p and the product of all coordinates. In a
multiplication the next row's q is twice the sum. Points from outside are shown to be in the subgroup of prime
order as eight times a point of the curve.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpuprover.midnight.circuit.native import Native
from gpuprover.midnight.circuit.table import Cell
from gpuprover.midnight.circuit.tape import ROW_CELLS
from gpuprover.midnight.jubjub import COFACTOR, GENERATOR

Point = tuple[Cell, Cell]
BIT, SUM, SQUARE, PRODUCT = 4, 5, 7, 8
"""Columns of a row behind those of q and p: the sum has two."""
_EIGHT = tuple(int(bit) for bit in f"{COFACTOR:b}"[::-1])


def generator(native: Native) -> Point:
    """The generator of the subgroup."""
    return native.const(GENERATOR[0]), native.const(GENERATOR[1])


def point(native: Native, x: Cell, y: Cell) -> Point:
    """The point with these coordinates, as one of the subgroup."""
    found = point_value(native, x.value, y.value)
    for given, own in zip((x, y), found, strict=True):
        native.table.equal_bounded(given, own)
    return found


def point_value(native: Native, x: int, y: int) -> Point:
    """A point of the subgroup with coordinates that are numbers of values, tied to nothing."""
    root = native.tape.jubjub_eighth((x, y))
    region = native.table.region()
    region.enable("mem", 0)
    for column, coordinate in enumerate(root):
        region.put(column, 0, coordinate)
    region.place()
    return times_eight(native, (region.cell(0, 0), region.cell(1, 0)))


def on_curve(native: Native, x: Cell, y: Cell) -> Point:
    """A point that is shown to be on the curve, by copies of its coordinates."""
    region = native.table.region()
    region.enable("mem", 0)
    region.copy(0, 0, x)
    region.copy(1, 0, y)
    region.place()
    return x, y


def times_eight(native: Native, p: Point) -> Point:
    """8·p, in the subgroup for any p of the curve."""
    return multiply(native, [native.const(bit) for bit in _EIGHT], p)


def add(native: Native, p: Point, q: Point) -> Point:
    """p + q."""
    always = native.const(1)
    first = native.tape.jubjub_add((p[0].value, p[1].value), (q[0].value, q[1].value))
    region = native.table.region()
    region.enable("cond_add", 0)
    for column, cell in enumerate((*p, *q, always)):
        region.copy(column, 0, cell)
    for column, value in zip((SUM, SUM + 1, PRODUCT), range(first, first + 3), strict=True):
        region.put(column, 0, value)
    region.place()
    return region.cell(SUM, 0), region.cell(SUM + 1, 0)


def multiply(native: Native, bits: Sequence[Cell], p: Point) -> Point:
    """p times the number with these bits, the lowest first; at least one."""
    neutral = native.const(0), native.const(1)
    first = native.tape.jubjub_multiply((p[0].value, p[1].value), [bit.value for bit in reversed(bits)])
    region = native.table.region()
    for column, cell in enumerate(neutral):
        region.copy(column, 0, cell)
    for row, bit in enumerate(reversed(bits)):
        qx, qy, sx, sy, square, product = range(first + ROW_CELLS * row, first + ROW_CELLS * (row + 1))
        if row > 0:
            region.put(0, row, qx)
            region.put(1, row, qy)
        region.copy(2, row, p[0])
        region.copy(3, row, p[1])
        region.copy(BIT, row, bit)
        region.enable("cond_add", row)
        region.put(SUM, row, sx)
        region.put(SUM + 1, row, sy)
        region.put(PRODUCT, row, product)
        if row < len(bits) - 1:
            region.enable("double", row)
            region.put(SQUARE, row, square)
    region.place()
    last = len(bits) - 1
    return region.cell(SUM, last), region.cell(SUM + 1, last)
