"""What this package and its kernels agree on: fields as arguments, forms in memory, constants.

Nothing here needs Numba: a process whose kernels come from an image (:mod:`gpuprover.cpu.image`) never
imports it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuprover.curves import FieldParams

# Fields ------------------------------------------------------------------------------------


class Field:
    """A prime field (degree 1) or its quadratic extension by u² = −1 (degree 2), as an argument of kernels.

    Attributes:
        words: uint64 words of an element in memory; in degree 2 the real part comes first.
    """

    _numba_type_: Any
    """What Numba takes a field for: the kernels give it to this class and to its subclass, once imported."""

    def __init__(self, params: FieldParams, degree: int = 1) -> None:
        self.params, self.degree = params, degree
        self.words = params.limbs * degree

    @property
    def name(self) -> str:
        """What tells the kernels for this field from those for others."""
        return f"{type(self).__name__}[{self.params.name}, {self.degree}]"


# Eight lanes -------------------------------------------------------------------------------

LANES = 8
LIMB_BITS = 52
LIMB_MASK = (1 << LIMB_BITS) - 1
BOUND = 5
"""A base's coordinates are below (BOUND − 1)·p when loaded; squares take values below BOUND·p."""
INDEX_BITS = 0x7FFFFFFF
"""Of a base's index as uint32; the bit above says that the base is to be negated."""
NOWHERE = 0xFFFFFFFF
"""The index of the point at infinity."""


@dataclass(frozen=True)
class LaneForm:
    """How a field's elements stand in lanes.

    Attributes:
        limbs: 52-bit limbs.
        e: the isomorphism's u = 2^e.
        reductions: single-limb Montgomery steps on loading a base.
        shift_x, shift_y: bits by which a base's coordinates are shifted to the left before them.
    """

    limbs: int
    e: int
    reductions: int
    shift_x: int
    shift_y: int


@lru_cache
def lane_form(f: FieldParams) -> LaneForm:
    """The form with the smallest shifts whose loaded coordinates stay below (BOUND − 1)·p.

    A loaded x is x·2^(64·limbs + shift − 52·reductions), which has to be u²·x·2^(52·L); y likewise with u³.
    """
    limbs = -(-(f.bits + 5) // LIMB_BITS)
    excess = LIMB_BITS * limbs - 64 * f.limbs
    for reductions in range(3):
        for e in range(0, -64, -1):
            shift_x = 2 * e + excess + LIMB_BITS * reductions
            shift_y = 3 * e + excess + LIMB_BITS * reductions
            room = LIMB_BITS * limbs - f.bits
            if shift_x < 0 or shift_y < 0 or max(shift_x, shift_y) > room:
                continue
            largest = max(shift_x, shift_y)
            loaded = 2.0 ** (largest - LIMB_BITS * reductions) + (1 if reductions else 0)
            if loaded <= BOUND - 1:
                return LaneForm(limbs, e, reductions, shift_x, shift_y)
    raise ValueError(f"no lane form for {f.name}")


def ranges_hold(field: FieldParams) -> bool:
    """Whether points with such coordinates may be taken eight at a time.

    In lanes coordinates are below 2^bits + p, and the ranges that kernels state need that to be below 2.4p.
    """
    return 10 * (1 << field.bits) < 14 * field.modulus


class LaneField(Field):
    """A field whose elements kernels take eight at a time, as their argument."""


Blocks = NDArray[np.uint64]
"""Elements in lanes: uint64[n, limbs, 8]."""
LIMBS = 5
BLOCK_BYTES = 8 * LANES * LIMBS


def has_lanes(field: FieldParams) -> bool:
    """Whether the field's elements are of four words, and of :data:`LIMBS` limbs in lanes."""
    return field.limbs == 4 and lane_form(field).limbs == LIMBS


def lane_blocks(params: FieldParams, values: list[int]) -> Blocks:
    """Integers mod p, eight to a block, in the lanes' form -> uint64[len/8, limbs, 8]."""
    limbs = lane_form(params).limbs
    radix = 1 << (LIMB_BITS * limbs)
    scaled = [v * radix % params.modulus for v in values]
    rows = [[(v >> (LIMB_BITS * i)) & LIMB_MASK for v in scaled] for i in range(limbs)]
    return np.ascontiguousarray(np.array(rows, dtype=np.uint64).reshape(limbs, -1, LANES).transpose(1, 0, 2))


def raw_splats(params: FieldParams, values: list[int]) -> Blocks:
    """Each integer below 2^260, as it stands, in all lanes of a block of its own."""
    limbs = lane_form(params).limbs
    rows = [[(v >> (LIMB_BITS * i)) & LIMB_MASK for i in range(limbs)] for v in values]
    return np.repeat(np.array(rows, dtype=np.uint64).reshape(len(values), limbs, 1), LANES, axis=2)


def splats(params: FieldParams, values: list[int]) -> Blocks:
    """Each value in all lanes of a block of its own."""
    return lane_blocks(params, [v for value in values for v in [value] * LANES])


def power_blocks(params: FieldParams, factor: int, base: int) -> Blocks:
    """factor·base^i for i = 0 … 7, and base^8 in all lanes: what the kernel ``vector_lanes.scale`` takes."""
    p = params.modulus
    powers = [factor * pow(base, i, p) % p for i in range(LANES)]
    return lane_blocks(params, powers + [pow(base, LANES, p)] * LANES)


# What kernels return --------------------------------------------------------------------------

STOPPED = -2
"""A kernel has ended early, because its ``stop`` was set: nothing that it wrote may be used."""
OUTSIDE = -3
"""A kernel has met an index that lies outside of an array; it has not followed it."""

# Constants of single kernels -----------------------------------------------------------------

PRODUCTS = 1024
"""Multiplications in step, each with a table of :data:`HALF` points."""
WIDTH = 4
"""Bits of a window of a multiplication."""
HALF = 1 << (WIDTH - 1)

COMBINED_WIDTH = 4
"""Bits of a window of a sum of a few multiples."""
COMBINED = 1 << (COMBINED_WIDTH - 2)
"""Odd multiples of each point of such a sum."""

LINE = 3
"""Elements of Fq2 in one line of the pairing."""
DOUBLE = 0
"""A step of the Miller loop that doubles; others add point |s| − 1 of Q, ψQ and ψ²Q, negated for s < 0."""
ROOM = 10
"""Elements of Fq2 that a group of eight pairs has in lanes: three affine points, T, and P's coordinates."""

ADD, SUB, MUL, MULTIPLY_SUBTRACT = 0, 1, 2, 3
"""Pointwise operations; the last one in lanes only."""
STORE, LOAD, SCALE = 3, 4, 5
"""Steps of formulas, beside the first three of these: see the kernels ``evaluate``."""
LOOSE, CARRIED, SETTLED = 0, 1, 2
"""How a formula's step in lanes leaves its result: as it is, with limbs carried, or below 1.2p besides."""
TO_MONTGOMERY, FROM_MONTGOMERY = 0, 1
NOTHING, FACTOR, POWERS = 0, 1, 2
"""Scaling of a transform: none, by one factor, by a factor and powers of a base."""

# Tapes ---------------------------------------------------------------------------------------

COMBINE, GATE, INVERSE, NONZERO, LESS, BITS, SELECT, SQUARE_ROOT, IS_SQUARE, DECOMPOSE, POSEIDON = range(11)
WORD_SUM, HALVES, SPREAD_LIMBS, JUBJUB_ADD, JUBJUB_EIGHTH, JUBJUB_MULTIPLY = range(11, 17)
"""Operations of a tape; a test compares them with those of the circuits."""
MOST_BITS = 256
"""Bits of a scalar that a tape multiplies by, at most."""
POSEIDON_TABLE = 213
"""Elements of Poseidon's constants, which a tape's tables begin with."""
ODD_ROOT, HALF_ODD, ADICITY, EDWARDS_D, EIGHTH = range(POSEIDON_TABLE, POSEIDON_TABLE + 5)
"""Places of the rest: g^t in Montgomery form, (t − 1)/2, s, for r − 1 = 2^s·t; Jubjub's d in Montgomery form,
and 1/8 modulo its prime order."""
