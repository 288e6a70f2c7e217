"""SHA-256 in a circuit: words of 32 bits beside their spread forms, in which bit i stands at place 2i.

A sum of up to three spread words has the words' exclusive or in its even bits and, of three, their majority
in its odd ones. A lookup ties each limb of a word to its spread form. Rows, and the order of copies, are
those of the network's own circuits.

Source: FIPS 180-4, section 6.2. The gates' texts have the powers of four of each rotation.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import NamedTuple

from gpuprover.midnight.circuit.native import Native
from gpuprover.midnight.circuit.table import Cell, Region
from gpuprover.midnight.circuit.tape import spread

BLOCK, LENGTH_BYTES, WORDS, ROUNDS = 64, 8, 8, 64
MASK = 0x5555555555555555
"""The spread form of a word of ones."""
WORD_BITS, CARRY_BITS = 32, 3

COLUMNS = (6, 0, 7, 1, 2, 3, 4, 5)
"""Advice columns as the chip uses them: two lookups of a plain and a spread limb, and four others."""
RESULT, LEFT, RIGHT, LAST = COLUMNS[4:]
SUMMANDS = ((LEFT, 0), (RIGHT, 0), (LEFT, 1), (RIGHT, 1), (RESULT, 2), (LEFT, 2), (RIGHT, 2))
"""Where the summands of an addition stand."""
OPERAND_PLACES = {
    "Sigma0": SUMMANDS[:4],
    "Sigma1": ((LEFT, 0), (RIGHT, 0), (LEFT, 1), (RIGHT, 1), (LEFT, 2)),
    "sigma": ((LEFT, 0), (RIGHT, 0), (RESULT, 1), (LEFT, 1), (RIGHT, 1), (RESULT, 2), (LEFT, 2), (RIGHT, 2)),
}
"""Where the spread limbs of a word stand that is turned."""

HALF_LIMBS = (11, 11, 10)
A_LIMBS = (10, 9, 11, 2)
E_LIMBS = (7, 12, 2, 5, 6)
LOOKUPS = 5
"""Of limbs with the rows of a sum, beside that of the carry."""
WORD_LIMBS = (12, 1, 1, 1, 7, 3, 4, 3)
TURNS = {"Sigma0": (2, 13, 22), "Sigma1": (6, 11, 25), "sigma0": (7, 18, 64 + 3), "sigma1": (17, 19, 64 + 10)}
"""Rotations to the right; from 64 on, shifts."""


def _primes(count: int) -> list[int]:
    found: list[int] = []
    n = 2
    while len(found) < count:
        if all(n % p for p in found):
            found.append(n)
        n += 1
    return found


def _cube_root(n: int) -> int:
    """⌊n^(1/3)⌋."""
    root = 1 << -(-n.bit_length() // 3)
    while root**3 > n:
        root = (2 * root + n // root**2) // 3
    return root


START = tuple(isqrt(p << 64) % (1 << 32) for p in _primes(WORDS))
"""The first state: bits of the roots of primes."""
ADDENDS = tuple(_cube_root(p << 96) % (1 << 32) for p in _primes(ROUNDS))
"""Constants of the rounds: bits of the cube roots of primes."""


class Word(NamedTuple):
    """A word's cells.

    Attributes:
        plain, whole: the word and its spread form; some have no cell for the latter.
        value: the number of the spread form's value.
        limbs: the spread forms of its limbs, from the highest, where it has been taken apart.
    """

    plain: Cell
    whole: Cell | None
    value: int
    limbs: tuple[Cell, ...]


def sha256(native: Native, data: Sequence[Cell]) -> list[Cell]:
    """The 32 bytes of the hash of bytes."""
    return Sha256(native).hash(data)


class Sha256:
    """The chip over a native chip's table."""

    def __init__(self, native: Native) -> None:
        self.native, self.table, self.tape = native, native.table, native.tape

    def hash(self, data: Sequence[Cell]) -> list[Cell]:
        """See :func:`sha256`."""
        native = self.native
        self.table.uses_spread_table = True
        state = self._start()
        end, nothing = native.const(128), native.const(0)
        length = [native.const(byte) for byte in (8 * len(data)).to_bytes(LENGTH_BYTES, "big")]
        zeros = -(len(data) + 1 + LENGTH_BYTES) % BLOCK
        padded = [*data, end, *[nothing] * zeros, *length]
        for i in range(0, len(padded), BLOCK):
            state = self._block(state, padded[i : i + BLOCK])
        return [byte for word in state for byte in reversed(native.to_bytes(word.plain, 4))]

    def _start(self) -> list[Word]:
        native, found = self.native, []
        for i, word in enumerate(START):
            plain = native.const(word)
            whole = native.const(spread(word)) if i not in (3, 7) else None
            sizes, limbs, shift = {0: A_LIMBS, 4: E_LIMBS}.get(i, ()), [], WORD_BITS
            for size in sizes:
                shift -= size
                limbs.append(native.const(spread((word >> shift) % (1 << size))))
            value = self.tape.constant(spread(word))
            found.append(Word(plain, whole, value, tuple(limbs)))
        return found

    def _block(self, old: list[Word], data: list[Cell]) -> list[Word]:
        words = [self.native.from_be_bytes(data[i : i + 4]) for i in range(0, BLOCK, 4)]
        schedule = [self._word(word) for word in words]
        for i in range(16, ROUNDS):
            low, high = self._turned("sigma0", schedule[i - 15]), self._turned("sigma1", schedule[i - 2])
            schedule.append(self._word(schedule[i - 16].plain, schedule[i - 7].plain, low, high))
        a, b, c, d, e, f, g, h = old
        for addend, word in zip(ADDENDS, schedule, strict=True):
            k, w = self.native.const(addend), word.plain
            sigma, majority = self._turned("Sigma0", a), self._majority(a, b, c)
            other, choice = self._turned("Sigma1", e), self._choice(e, f, g)
            first = self._prepared_a(h.plain, other, choice, k, w, sigma, majority)
            second = self._prepared_e(d.plain, h.plain, other, choice, k, w)
            a, b, c, d, e, f, g, h = first, a, b, c, second, e, f, g
        new = (a, b, c, d, e, f, g, h)
        return [
            (self._prepared_a if i < WORDS // 2 else self._prepared_e)(x.plain, y.plain)
            for i, (x, y) in enumerate(zip(old, new, strict=True))
        ]

    # Rows --------------------------------------------------------------------------------

    def _lookup(self, region: Region, row: int, place: int, size: int, limb: int, wide: int) -> None:
        """A limb beside its spread form, by lookup 0 or 1 of the row."""
        region.enable("lookup", row)
        region.fix(place, row, size)
        region.put(COLUMNS[2 * place], row, limb)
        region.put(COLUMNS[2 * place + 1], row, wide)

    def _split_sum(self, region: Region, total: int, row: int, odd: bool) -> int:
        """The even or the odd bits of a sum, shown by limbs of both halves in three rows; -> their value."""
        halves = self.tape.halves(total)
        region.enable("d11_11_10", row + 1)
        for place, half in enumerate(reversed(halves) if odd else halves):
            limbs, wide, _ = self.tape.spread_limbs(half, HALF_LIMBS)
            for i, size in enumerate(HALF_LIMBS):
                self._lookup(region, row + i, place, size, limbs[i], wide[i])
        main = halves[1 if odd else 0]
        region.put(RESULT, row, main)
        return main

    def _majority(self, a: Word, b: Word, c: Word) -> Cell:
        region = self.table.region()
        region.enable("maj", 1)
        cells = [_whole(word) for word in (a, b, c)]
        for (column, row), cell in zip(SUMMANDS, cells, strict=False):
            region.copy(column, row, cell)
        self._split_sum(region, self.tape.word_sum([(cell.value, 0) for cell in cells]), 0, odd=True)
        return region.place().cell(RESULT, 0)

    def _choice(self, e: Word, f: Word, g: Word) -> Cell:
        """(e and f) + (not e and g)."""
        mask = self.native.const(MASK)
        chosen, left, right = _whole(e), _whole(f), _whole(g)
        region = self.table.region()
        for row in (1, 4):
            region.enable("half_ch", row)
        region.copy(LEFT, 0, chosen)
        region.copy(RESULT, 4, chosen)
        region.copy(RIGHT, 0, left)
        region.copy(RIGHT, 3, right)
        complement = self.tape.combine([(-1, chosen.value)], MASK)
        region.put(LEFT, 3, complement)
        region.put(LEFT, 4, complement)
        region.put(RIGHT, 4, mask.value)
        first, second = (
            self._split_sum(region, self.tape.word_sum([(x, 0), (y.value, 0)]), row, odd=True)
            for row, x, y in ((0, chosen.value, left), (3, complement, right))
        )
        region.put(RESULT, 1, first)
        region.put(LEFT, 1, second)
        region.put(RIGHT, 1, self.tape.word_sum([(first, 0), (second, 0)]))
        cell, equal = region.place().cell, self.table.equal
        equal(cell(LEFT, 4), cell(LEFT, 3))
        equal(cell(RIGHT, 4), mask)
        equal(cell(RESULT, 1), cell(RESULT, 0))
        equal(cell(LEFT, 1), cell(RESULT, 3))
        return cell(RIGHT, 1)

    def _turned(self, name: str, word: Word) -> Cell:
        """The sum mod 2 of three rotations or shifts."""
        region = self.table.region()
        region.enable(name, 1)
        places = OPERAND_PLACES.get(name, OPERAND_PLACES["sigma"])
        for (column, row), limb in zip(places, word.limbs, strict=True):
            region.copy(column, row, limb)
        # Each bit of a word is two of its spread form.
        turns = [(word.value, 2 * turn if turn < 64 else 64 + 2 * (turn - 64)) for turn in TURNS[name]]
        self._split_sum(region, self.tape.word_sum(turns), 0, odd=False)
        return region.place().cell(RESULT, 0)

    def _sum(self, region: Region, summands: Sequence[Cell], nothing: Cell) -> int:
        """The sum mod 2^32 of up to seven words; -> its value."""
        region.enable("addmod", 1)
        cells = [*summands, *[nothing] * (len(SUMMANDS) - len(summands))]
        for (column, row), cell in zip(SUMMANDS, cells, strict=True):
            region.copy(column, row, cell)
        total = self.tape.word_sum([(cell.value, 0) for cell in summands])
        carry = self.tape.bits(total, WORD_BITS, CARRY_BITS)
        _, _, wide = self.tape.spread_limbs(carry, ())
        self._lookup(region, 2, 1, CARRY_BITS, carry, wide)
        found = self.tape.bits(total, 0, WORD_BITS)
        region.put(RESULT, 0, found)
        return found

    def _prepared(self, selector: str, sizes: Sequence[int], summands: Sequence[Cell]) -> Word:
        """A sum of words, taken apart: lookups of its limbs, two in a row, a limb of one bit without one."""
        nothing = self.native.const(0)
        region = self.table.region()
        region.enable(selector, 1)
        value = self._sum(region, summands, nothing)
        limbs, wide, whole = self.tape.spread_limbs(value, sizes)
        places: list[tuple[int, int]] = []
        looked_up, bits = 0, 0
        for size, limb, spread_limb in zip(sizes, limbs, wide, strict=True):
            if size == 1:
                region.put(LAST, bits, limb)
                places.append((LAST, bits))
                bits += 1
                continue
            row, place = divmod(looked_up, 2)
            self._lookup(region, row, place, size, limb, spread_limb)
            places.append((COLUMNS[2 * place + 1], row))
            looked_up += 1
        if looked_up < LOOKUPS:
            zero = nothing.value
            self._lookup(region, 2, 0, 0, zero, zero)
        if bits == 0:
            region.put(RESULT, 1, whole)
        region.place()
        return Word(
            region.cell(RESULT, 0),
            None if bits else region.cell(RESULT, 1),
            whole,
            tuple(region.cell(*place) for place in places),
        )

    def _prepared_a(self, *summands: Cell) -> Word:
        return self._prepared("d10_9_11_2", A_LIMBS, summands)

    def _prepared_e(self, *summands: Cell) -> Word:
        return self._prepared("d7_12_2_5_6", E_LIMBS, summands)

    def _word(self, *summands: Cell) -> Word:
        """A word of the message's schedule."""
        return self._prepared("d12_1x3_7_3_4_3", WORD_LIMBS, summands)


def _whole(word: Word) -> Cell:
    assert word.whole is not None
    return word.whole
