"""Tapes: how the values of a circuit's table are computed from what a statement gives, as data.

A tape is made once for a circuit, while its table is laid out. Values are elements of the scalar field,
numbered in the order in which they arise: constants, inputs, and the results of operations, whose operands
have smaller numbers. There are no jumps, so that a tape runs the same way for every witness.

:func:`run_reference` is what the operations mean; :func:`gpuprover.devices.run_tape` runs them compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from gpuprover.curves import BLS12_381
from gpuprover.limbs import Words, field_to_words, ints_to_words
from gpuprover.midnight import jubjub
from gpuprover.midnight.jubjub import NEUTRAL, Point
from gpuprover.midnight.poseidon import FIRST_PARTIAL, LAST_PARTIAL, ROUNDS, constant_words, constants

R = BLS12_381.r
WORD = 1 << 64
PARTIAL_STEP = 6
"""Partial rounds in a row of the table."""


class Op(IntEnum):
    """Operations: the words behind their code in a tape, ``out`` being the first result.

    Attributes:
        COMBINE: out, constant, count, (coefficient, x) ... -> constant + Σ coefficient·x.
        GATE: out, x, y, z, a, b, c, k, m1, m2 -> a·x + b·y + c·z + k + m1·x·y + m2·x·z.
        INVERSE: out, x, otherwise -> 1/x, or ``otherwise`` for 0.
        NONZERO: out, x -> 1 unless x is 0.
        LESS: out, x, y -> whether x < y, as integers.
        BITS: out, x, start, count -> (x >> start) mod 2^count.
        SELECT: out, c, x, y -> x if c is not 0, else y.
        SQUARE_ROOT: out, x -> a root, as Tonelli and Shanks find it from the generator 7; 0 without one.
        IS_SQUARE: out, x -> whether x is a square.
        DECOMPOSE: out, x, count, size ... -> for each limb, from the lowest: the limb, and x without those
            below it.
        POSEIDON: out, x, y, z -> the cells of a permutation, see :func:`poseidon_cells`.
        WORD_SUM: out, count, (x, amount) ... -> the sum, mod 2^64, of lowest words, each turned to the right by
            amount < 64 or shifted to the right by amount − 64.
        HALVES: out, x -> the 32 even bits of the lowest word, and the 32 odd ones.
        SPREAD_LIMBS: out, x, count, size ... -> for each limb of the lowest word, from the highest: the limb,
            and its :func:`spread`; then that of the word's lowest 32 bits.
        JUBJUB_ADD: out, x, y, u, v -> the two coordinates of (x, y) + (u, v), and x·y·u·v.
        JUBJUB_EIGHTH: out, x, y -> the point of the prime-order subgroup of which (x, y) is eight times.
        JUBJUB_MULTIPLY: out, count, u, v, bit ... -> the rows of a multiplication, see
            :func:`multiplication_cells`.

    Coefficients and constants are places in the pool. Points of Jubjub are on the curve; what an operation
    makes of others is of no use.
    """

    COMBINE = 0
    GATE = 1
    INVERSE = 2
    NONZERO = 3
    LESS = 4
    BITS = 5
    SELECT = 6
    SQUARE_ROOT = 7
    IS_SQUARE = 8
    DECOMPOSE = 9
    POSEIDON = 10
    WORD_SUM = 11
    HALVES = 12
    SPREAD_LIMBS = 13
    JUBJUB_ADD = 14
    JUBJUB_EIGHTH = 15
    JUBJUB_MULTIPLY = 16


class Term(NamedTuple):
    """coefficient·value."""

    coefficient: int
    value: int


class Tape:
    """A tape that is being written.

    Attributes:
        code: operations and operands, one after the other.
        pool: elements of the field that operations name by their places.
        constants: (value's number, element) of values that are the same for all witnesses.
        inputs: numbers of the values that a statement gives, in order.
        size: how many values there are.
    """

    def __init__(self) -> None:
        self.code: list[int] = []
        self.pool: list[int] = []
        self.constants: list[tuple[int, int]] = []
        self.inputs: list[int] = []
        self.size = 0
        self._places: dict[int, int] = {}
        self._constants: dict[int, int] = {}

    def _new(self, count: int = 1) -> int:
        first = self.size
        self.size += count
        return first

    def place(self, element: int) -> int:
        """The place of an element in the pool."""
        element %= R
        if element not in self._places:
            self._places[element] = len(self.pool)
            self.pool.append(element)
        return self._places[element]

    def _emit(self, op: Op, *operands: int, results: int = 1) -> int:
        out = self._new(results)
        self.code += (op, out, *operands)
        return out

    # Values ------------------------------------------------------------------------------

    def constant(self, element: int) -> int:
        """A value that is the same for all witnesses."""
        element %= R
        if element not in self._constants:
            self._constants[element] = value = self._new()
            self.constants.append((value, element))
        return self._constants[element]

    def input(self) -> int:
        """The next value that a statement gives."""
        value = self._new()
        self.inputs.append(value)
        return value

    def combine(self, terms: Sequence[tuple[int, int]], constant: int = 0) -> int:
        """constant + Σ coefficient·value over (coefficient, value)."""
        flat = [x for c, value in terms for x in (self.place(c), value)]
        return self._emit(Op.COMBINE, self.place(constant), len(terms), *flat)

    def gate(
        self,
        x: tuple[int, int],
        y: tuple[int, int],
        z: tuple[int, int],
        constant: int = 0,
        xy: int = 0,
        xz: int = 0,
    ) -> int:
        """a·x + b·y + c·z + constant + xy·x·y + xz·x·z for (a, x), (b, y), (c, z)."""
        values = (x[1], y[1], z[1])
        factors = (x[0], y[0], z[0], constant, xy, xz)
        return self._emit(Op.GATE, *values, *(self.place(f) for f in factors))

    def inverse(self, x: int, otherwise: int = 0) -> int:
        """1/x, or ``otherwise`` for x = 0."""
        return self._emit(Op.INVERSE, x, self.place(otherwise))

    def nonzero(self, x: int) -> int:
        """1 unless x is 0."""
        return self._emit(Op.NONZERO, x)

    def less(self, x: int, y: int) -> int:
        """Whether x < y as integers: 1 or 0."""
        return self._emit(Op.LESS, x, y)

    def bits(self, x: int, start: int, count: int) -> int:
        """(x >> start) mod 2^count; count <= 255."""
        return self._emit(Op.BITS, x, start, count)

    def select(self, c: int, x: int, y: int) -> int:
        """x if c is not 0, else y."""
        return self._emit(Op.SELECT, c, x, y)

    def square_root(self, x: int) -> int:
        """A root of x; 0 if it has none."""
        return self._emit(Op.SQUARE_ROOT, x)

    def is_square(self, x: int) -> int:
        """Whether x is a square, 0 included."""
        return self._emit(Op.IS_SQUARE, x)

    def decompose(self, x: int, sizes: Sequence[int]) -> tuple[list[int], list[int]]:
        """(limbs of these sizes, x without the limbs below each), from the lowest limb."""
        if not sizes:
            return [], []
        first = self._emit(Op.DECOMPOSE, x, len(sizes), *sizes, results=2 * len(sizes))
        found = range(first, first + 2 * len(sizes))
        return [*found[::2]], [*found[1::2]]

    def poseidon(self, x: int, y: int, z: int) -> int:
        """The first of the cells of a permutation, :data:`POSEIDON_CELLS` in all."""
        return self._emit(Op.POSEIDON, x, y, z, results=POSEIDON_CELLS)

    def word_sum(self, terms: Sequence[tuple[int, int]]) -> int:
        """The sum, mod 2^64, over (value, amount): 64-bit words turned to the right, from 64 on shifted."""
        return self._emit(Op.WORD_SUM, len(terms), *(x for term in terms for x in term))

    def halves(self, x: int) -> tuple[int, int]:
        """(even bits, odd bits) of a 64-bit word."""
        first = self._emit(Op.HALVES, x, results=2)
        return first, first + 1

    def spread_limbs(self, x: int, sizes: Sequence[int]) -> tuple[list[int], list[int], int]:
        """(limbs of these sizes from the highest, their spread forms, the spread form of the 32-bit word)."""
        first = self._emit(Op.SPREAD_LIMBS, x, len(sizes), *sizes, results=2 * len(sizes) + 1)
        last = first + 2 * len(sizes)
        return [*range(first, last, 2)], [*range(first + 1, last, 2)], last

    def jubjub_add(self, p: tuple[int, int], q: tuple[int, int]) -> int:
        """The first of three: the coordinates of p + q, and the product of all four."""
        return self._emit(Op.JUBJUB_ADD, *p, *q, results=3)

    def jubjub_eighth(self, p: tuple[int, int]) -> tuple[int, int]:
        """p over 8 in the subgroup of prime order."""
        first = self._emit(Op.JUBJUB_EIGHTH, *p, results=2)
        return first, first + 1

    def jubjub_multiply(self, p: tuple[int, int], bits: Sequence[int]) -> int:
        """The first of six values for each bit of the scalar, from the highest; 256 bits at most."""
        return self._emit(Op.JUBJUB_MULTIPLY, len(bits), *p, *bits, results=ROW_CELLS * len(bits))


# Poseidon's cells ------------------------------------------------------------------------------


def poseidon_rows() -> list[tuple[int, int]]:
    """For rows 1 to 19 of a permutation: (the first round of the row, rounds in it); the last has none."""
    full = [*range(FIRST_PARTIAL), *range(LAST_PARTIAL + 1, ROUNDS)]
    partial = range(FIRST_PARTIAL, LAST_PARTIAL + 1, PARTIAL_STEP)
    rows = [(i, 1) for i in full] + [(i, PARTIAL_STEP) for i in partial]
    return [*sorted(rows), (ROUNDS, 0)]


def poseidon_cells(state: Sequence[int]) -> list[int]:
    """The cells of a permutation's rows 1 to 19, row by row.

    A row begins with the three elements of the state. Behind them a full round has their cubes, and six
    partial rounds have the last element before each S-box but the first.
    """
    added, matrix = constants()
    cells = []
    x = [(s + c) % R for s, c in zip(state, added[0], strict=True)]

    def advance(i: int, raised: list[int]) -> list[int]:
        after = added[i + 1] if i + 1 < ROUNDS else (0, 0, 0)
        return [
            (sum(m * v for m, v in zip(row, raised, strict=True)) + c) % R
            for row, c in zip(matrix, after, strict=True)
        ]

    for first, count in poseidon_rows():
        cells += x
        if count == 1:
            cells += [pow(v, 3, R) for v in x]
            x = advance(first, [pow(v, 5, R) for v in x])
        for i in range(first, first + count) if count > 1 else ():
            if i > first:
                cells.append(x[2])
            x = advance(i, [x[0], x[1], pow(x[2], 5, R)])
    return cells


POSEIDON_CELLS = sum(3 + (3 if n == 1 else max(0, n - 1)) for _, n in poseidon_rows())


# Jubjub's cells, and words ---------------------------------------------------------------------

ROW_CELLS = 6
"""Values of a row of a multiplication."""


def multiplication_cells(p: Point, bits: Sequence[int]) -> list[int]:
    """For each bit, from the highest: q.x, q.y, s.x, s.y, s.x², q.x·q.y·p.x·p.y.

    q is twice the sum of the row before, at first neutral; the row's own sum s is q + bit·p.
    """
    cells: list[int] = []
    q = NEUTRAL
    for bit in bits:
        s = jubjub.add(q, p) if bit else q
        cells += (*q, *s, s[0] * s[0] % R, q[0] * q[1] * p[0] * p[1] % R)
        q = jubjub.add(s, s)
    return cells


def spread(x: int) -> int:
    """Bit i goes to bit 2i."""
    return int(f"{x:b}", 4)


@lru_cache(maxsize=1)
def tables() -> Words:
    """What operations have to know, uint64[218, 4]: Poseidon's constants, in Montgomery form; 7^t, likewise,
    (t − 1)/2 and s, for r − 1 = 2^s·t; Jubjub's d in Montgomery form; 1/8 modulo its prime order."""
    s = BLS12_381.scalar.two_adicity
    t = (R - 1) >> s
    root, d = field_to_words(BLS12_381.scalar, [pow(7, t, R), jubjub.D])
    plain = ints_to_words([(t - 1) // 2, s, pow(jubjub.COFACTOR, -1, jubjub.ORDER)], 4)
    return np.vstack([constant_words(), root, plain[:2], d, plain[2:]])


# Meaning ---------------------------------------------------------------------------------------


def run_reference(tape: Tape, inputs: Sequence[int]) -> list[int]:
    """All values for what a statement gives, by integers in [0, r).

    Raises:
        ValueError: another number of inputs.
    """
    if len(inputs) != len(tape.inputs):
        raise ValueError(f"{len(inputs)} inputs for a tape of {len(tape.inputs)}")
    values = [0] * tape.size
    for value, element in [*tape.constants, *zip(tape.inputs, inputs, strict=True)]:
        values[value] = element
    code, pool, at = tape.code, tape.pool, 0
    while at < len(code):
        op, out = Op(code[at]), code[at + 1]
        results, at = _run(op, code, at + 2, pool, values)
        values[out : out + len(results)] = results
    return values


def _run(
    op: Op, code: Sequence[int], at: int, pool: Sequence[int], values: Sequence[int]
) -> tuple[list[int], int]:
    """An operation's results, and where the next one begins."""
    if op is Op.COMBINE:
        constant, count = code[at : at + 2]
        terms = code[at + 2 : at + 2 + 2 * count]
        total = sum(pool[c] * values[x] for c, x in zip(terms[::2], terms[1::2], strict=True))
        return [(pool[constant] + total) % R], at + 2 + 2 * count
    if op is Op.GATE:
        x, y, z = (values[i] for i in code[at : at + 3])
        a, b, c, k, xy, xz = (pool[i] for i in code[at + 3 : at + 9])
        return [(a * x + b * y + c * z + k + xy * x * y + xz * x * z) % R], at + 9
    x = values[code[at]]
    if op is Op.INVERSE:
        return [pow(x, -1, R) if x else pool[code[at + 1]]], at + 2
    if op is Op.NONZERO:
        return [int(x != 0)], at + 1
    if op is Op.LESS:
        return [int(x < values[code[at + 1]])], at + 2
    if op is Op.BITS:
        return [(x >> code[at + 1]) % (1 << code[at + 2])], at + 3
    if op is Op.SELECT:
        return [values[code[at + 1]] if x else values[code[at + 2]]], at + 3
    if op is Op.SQUARE_ROOT:
        return [square_root(x)], at + 1
    if op is Op.IS_SQUARE:
        return [int(pow(x, (R - 1) // 2, R) != R - 1)], at + 1
    if op is Op.DECOMPOSE:
        count, found, shift = code[at + 1], [], 0
        for size in code[at + 2 : at + 2 + count]:
            found += [(x >> shift) % (1 << size), x >> shift << shift]
            shift += size
        return found, at + 2 + count
    if op is Op.POSEIDON:
        return poseidon_cells([values[i] for i in code[at : at + 3]]), at + 3
    if op.name.startswith("JUBJUB"):
        return _run_jubjub(op, code, at, values)
    return _run_words(op, code, at, values)


def _run_words(op: Op, code: Sequence[int], at: int, values: Sequence[int]) -> tuple[list[int], int]:
    """Operations on words of 64 bits."""
    if op is Op.WORD_SUM:
        total, end = 0, at + 1 + 2 * code[at]
        for x, amount in zip(code[at + 1 : end : 2], code[at + 2 : end : 2], strict=True):
            word, shift = values[x] % WORD, amount % 64
            total += (word >> shift) + (word << (64 - shift) if amount < 64 and shift else 0) % WORD
        return [total % WORD], end
    x = values[code[at]] % WORD
    if op is Op.HALVES:
        bits = f"{x:064b}"
        return [int(bits[1::2], 2), int(bits[::2], 2)], at + 1
    assert op is Op.SPREAD_LIMBS
    sizes = code[at + 2 : at + 2 + code[at + 1]]
    found, shift = [], sum(sizes)
    for size in sizes:
        shift -= size
        limb = (x >> shift) % (1 << size)
        found += [limb, spread(limb % (1 << 32))]
    return [*found, spread(x % (1 << 32))], at + 2 + len(sizes)


def _run_jubjub(op: Op, code: Sequence[int], at: int, values: Sequence[int]) -> tuple[list[int], int]:
    """Operations on points."""
    if op is Op.JUBJUB_MULTIPLY:
        count, u, v = code[at : at + 3]
        bits = [values[i] for i in code[at + 3 : at + 3 + count]]
        return multiplication_cells((values[u], values[v]), bits), at + 3 + count
    x, y = (values[i] for i in code[at : at + 2])
    if op is Op.JUBJUB_EIGHTH:
        return [*jubjub.root((x, y))], at + 2
    assert op is Op.JUBJUB_ADD
    u, v = (values[i] for i in code[at + 2 : at + 4])
    return [*jubjub.add((x, y), (u, v)), x * y * u * v % R], at + 4


def square_root(x: int) -> int:
    """The root that the algorithm of Tonelli and Shanks finds, begun from the generator 7; 0 without one."""
    s = BLS12_381.scalar.two_adicity
    t = (R - 1) >> s
    w = pow(x, (t - 1) // 2, R)
    root, rest, c, m = w * x % R, w * w * x % R, pow(7, t, R), s
    if not rest:
        return 0
    while rest != 1:
        i, square = 0, rest
        while square != 1 and i < m:
            square, i = square * square % R, i + 1
        if i >= m:
            return 0
        for _ in range(m - i - 1):
            c = c * c % R
        root, c, m = root * c % R, c * c % R, i
        rest = rest * c % R
    return root
