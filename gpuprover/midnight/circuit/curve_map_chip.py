"""Elements to a point of Jubjub in a circuit, step by step as :mod:`gpuprover.midnight.curve_map` has it.

Roots are values that the circuit does not fix: any sign satisfies it. Tables of the network's own prover have
those that the algorithm of Tonelli and Shanks finds, and so have these.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpuprover.midnight.circuit import jubjub_chip
from gpuprover.midnight.circuit.jubjub_chip import Point
from gpuprover.midnight.circuit.native import Native
from gpuprover.midnight.circuit.poseidon_chip import absorb
from gpuprover.midnight.circuit.table import Cell
from gpuprover.midnight.curve_map import (
    C1,
    C2,
    C3,
    C4,
    NON_RESIDUE,
    SCALE,
    SPONGE_OF_UNKNOWN_LENGTH,
    THIRD,
    A,
    B,
    Z,
)


def hash_to_curve(native: Native, inputs: Sequence[Cell]) -> Point:
    """The point of the subgroup for elements."""
    nothing, capacity = native.const(0), native.const(SPONGE_OF_UNKNOWN_LENGTH)
    u, v, _ = absorb(native, [nothing, nothing, capacity], [*inputs, native.const(len(inputs))])
    p = map_to_curve(native, u)
    return jubjub_chip.add(native, p, map_to_curve(native, v))


def map_to_curve(native: Native, u: Cell) -> Point:
    """The point of the subgroup for an element."""
    t1 = native.mulc(native.mul(u, u), C1)
    t2 = native.addc(t1, 1)
    t1 = native.lincomb([(-1, t1)], 1)
    t3 = native.inv0(native.mul(t1, t2))
    t4 = native.mulc(native.mul(native.mul(u, t1), t3), C3)
    x1 = native.lincomb([(-1, t4)], C2)
    first = _is_square(native, _g(native, x1))
    x2 = native.addc(t4, C2)
    second = _is_square(native, _g(native, x2))
    second = native.logical_and(second, native.logical_not(first))
    x3 = native.mul(native.mul(t2, t2), t3)
    x3 = native.addc(native.mulc(native.mul(x3, x3), C4), Z)
    x = native.select(second, x2, native.select(first, x1, x3))
    y = _root(native, _g(native, x))
    same = native.bit_equal(native.sign(u), native.sign(y))
    y = native.select(same, y, native.neg(y))
    return jubjub_chip.times_eight(native, _edwards(native, x, y))


def _edwards(native: Native, x: Cell, y: Cell) -> Point:
    """From y² = x³ + Ax + B by the Montgomery curve to the Edwards curve."""
    x, y = native.addc(native.mulc(x, SCALE), -THIRD), native.mulc(y, SCALE)
    above = native.addc(x, 1)
    inverse = native.inv0(native.mul(above, y))
    u = native.mul(native.mul(inverse, above), x)
    v = native.mul(inverse, y)
    v = native.mul(v, native.addc(x, -1))
    exceptional = native.is_zero(inverse)
    v = native.select(exceptional, native.const(1), v)
    return jubjub_chip.on_curve(native, u, v)


def _g(native: Native, x: Cell) -> Cell:
    """x³ + Ax + B."""
    square = native.addc(native.mul(x, x), A)
    return native.addc(native.mul(square, x), B)


def _root(native: Native, x: Cell) -> Cell:
    """A root of a square."""
    root = native.assign(native.tape.square_root(x.value))
    native.table.equal_bounded(native.mul(root, root), x)
    return root


def _is_square(native: Native, x: Cell) -> Cell:
    """Whether x is a square: x is one, or its multiple by a non-residue is."""
    bit = native.assign_bit(native.tape.is_square(x.value))
    other = native.mulc(x, NON_RESIDUE)
    _root(native, native.select(bit, x, other))
    return bit
