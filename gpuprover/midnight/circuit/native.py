"""The native chip: arithmetic, bits and ranges of elements of the scalar field.

Each method lays out the rows of one operation, as the network's own circuits have them, cell by cell: keys
depend on it. A row of the ``arith`` selector says c₀·A0 + … + c₄·A4 + q·A0' + m₁·A0·A1 + m₂·A0·A2 + k = 0,
A0' being A0 of the next row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from gpuprover.curves import BLS12_381
from gpuprover.midnight.circuit.table import RANGE_TAG, Cell, Region, Table

R = BLS12_381.r
Terms = Sequence[tuple[int, Cell]]
_FIRST_COEFFICIENT, _COLUMNS = 4, 5


class Native:
    """The chip of the older line, with one range column.

    Args:
        table: what the rows go to.
    """

    def __init__(self, table: Table) -> None:
        self.table, self.tape = table, table.tape

    # Rows --------------------------------------------------------------------------------

    def row(
        self,
        region: Region,
        offset: int,
        coefficients: Sequence[int],
        *,
        next_: int = 0,
        m1: int = 0,
        m2: int = 0,
        k: int = 0,
    ) -> None:
        """The fixed cells of an ``arith`` row."""
        for i in range(_COLUMNS):
            element = coefficients[i] if i < len(coefficients) else 0
            region.fix(_FIRST_COEFFICIENT + i, offset, element % R)
        for column, element in enumerate((next_, m1, m2, k)):
            region.fix(column, offset, element % R)
        region.enable("arith", offset)

    # Values ------------------------------------------------------------------------------

    def const(self, element: int) -> Cell:
        """The cell of a constant."""
        return self.table.constant(element)

    def assign(self, value: int) -> Cell:
        """A cell of a value, tied to nothing."""
        region = self.table.region()
        region.put(0, 0, value)
        return region.place().cell(0, 0)

    def assign_many(self, values: Sequence[int]) -> list[Cell]:
        """Cells of several values, five in a row."""
        if not values:
            return []
        region = self.table.region()
        for i, value in enumerate(values):
            region.put(i % _COLUMNS, i // _COLUMNS, value)
        region.place()
        return [region.cell(i % _COLUMNS, i // _COLUMNS) for i in range(len(values))]

    # Arithmetic --------------------------------------------------------------------------

    def addmul(
        self,
        x: tuple[int, Cell],
        y: tuple[int, Cell],
        z: tuple[int, Cell],
        k: int = 0,
        m1: int = 0,
        m2: int = 0,
    ) -> Cell:
        """a·x + b·y + c·z + k + m1·x·y + m2·x·z."""
        region = self.table.region()
        for column, (_, cell) in enumerate((x, y, z)):
            region.copy(column, 0, cell)
        a, b, c = ((factor, cell.value) for factor, cell in (x, y, z))
        result = self.tape.gate(a, b, c, k, m1, m2)
        region.put(4, 0, result)
        self.row(region, 0, (x[0], y[0], z[0], 0, -1), m1=m1, m2=m2, k=k)
        return region.place().cell(4, 0)

    def lincomb(self, terms: Terms, k: int = 0) -> Cell:
        """k + Σ coefficient·cell."""
        kept = [(c % R, cell) for c, cell in terms if c % R]
        return self._lincomb(kept, k) if kept else self.const(k)

    def _lincomb(self, terms: Terms, k: int) -> Cell:
        """Rows of four terms, the running result in A0."""
        rows = [terms[i : i + 4] for i in range(0, len(terms), 4)]
        running: list[int] = []
        for i in reversed(range(len(rows))):
            flat = [(c, cell.value) for c, cell in rows[i]]
            if running:
                flat.append((1, running[-1]))
            running.append(self.tape.combine(flat, k if i == 0 else 0))
        running.reverse()
        region = self.table.region()
        for i, row in enumerate(rows):
            region.put(0, i, running[i])
            for j, (_, cell) in enumerate(row):
                region.put(1 + j, i, cell.value)
            last = i == len(rows) - 1
            self.row(region, i, (-1, *(c for c, _ in row)), next_=0 if last else 1, k=0 if i else k)
        for i, row in enumerate(rows):
            for j, (_, cell) in enumerate(row):
                region.tie(1 + j, i, cell)
        return region.place().cell(0, 0)

    def add(self, x: Cell, y: Cell) -> Cell:
        return self.lincomb([(1, x), (1, y)])

    def neg(self, x: Cell) -> Cell:
        return self.lincomb([(-1, x)])

    def addc(self, x: Cell, c: int) -> Cell:
        """x + c, and x itself for c = 0."""
        return self.lincomb([(1, x)], c) if c % R else x

    def mulc(self, x: Cell, c: int) -> Cell:
        """c·x, and no row for c = 0 or 1."""
        if c % R == 0:
            return self.const(0)
        return x if c % R == 1 else self.lincomb([(c, x)])

    def mul(self, x: Cell, y: Cell) -> Cell:
        unit = self.const(1)
        if x == unit:
            return y
        if y == unit:
            return x
        return self.addmul((0, x), (0, y), (0, x), m1=1)

    def select(self, c: Cell, x: Cell, y: Cell) -> Cell:
        """x if c is 1, y if it is 0."""
        return self.addmul((0, c), (0, x), (1, y), m1=1, m2=-1)

    # Bits --------------------------------------------------------------------------------

    def assign_bit(self, value: int) -> Cell:
        """A cell of a value that is constrained to be 0 or 1."""
        region = self.table.region()
        region.put(0, 0, value)
        region.put(1, 0, value)
        self.row(region, 0, (-1,), m1=1)
        region.place()
        self.table.equal(region.cell(1, 0), region.cell(0, 0))
        return region.cell(0, 0)

    def to_bit(self, x: Cell) -> Cell:
        """x, known to be 0 or 1."""
        known = self.table.bound(x)
        if known is not None and known <= 2:
            return x
        self.table.bound(x, 2)
        bit = self.assign_bit(self.tape.nonzero(x.value))
        self.table.equal(x, bit)
        return bit

    def as_native(self, x: Cell, limit: int = 2) -> Cell:
        """A bit or, with a limit of 256, a byte as an element: its bound is known."""
        self.table.bound(x, limit)
        return x

    def logical_not(self, b: Cell) -> Cell:
        return self.lincomb([(-1, b)], 1)

    def logical_and(self, b: Cell, c: Cell) -> Cell:
        return self.mul(b, c)

    def logical_or(self, b: Cell, c: Cell) -> Cell:
        return self.addmul((1, b), (1, c), (0, b), m1=-1)

    def bit_equal(self, a: Cell, b: Cell) -> Cell:
        return self.addmul((-1, a), (-1, b), (0, a), k=1, m1=2)

    # Inverses and comparisons ------------------------------------------------------------

    def _inverse_region(self, x: Cell) -> Region:
        region = self.table.region()
        region.put(0, 0, x.value)
        region.put(1, 0, self.tape.inverse(x.value))
        self.row(region, 0, (0,), m1=1, k=-1)
        return region.place()

    def assert_non_zero(self, x: Cell) -> Cell:
        """1/x."""
        region = self._inverse_region(x)
        self.table.equal(x, region.cell(0, 0))
        return region.cell(1, 0)

    def inverse(self, x: Cell) -> Cell:
        """1/x, as an operation of its own."""
        region = self._inverse_region(x)
        self.table.equal_bounded(x, region.cell(0, 0))
        return region.cell(1, 0)

    def is_equal(self, x: Cell, y: Cell) -> Cell:
        difference = self.tape.combine([(1, x.value), (-1, y.value)])
        result = self._is_zero_value(difference)
        region = self.table.region()
        region.put(0, 0, self.tape.inverse(difference, 1))
        region.copy(1, 0, x)
        region.copy(2, 0, y)
        region.put(4, 0, result)
        self.row(region, 0, (0, 0, 0, 0, 1), m1=1, m2=-1, k=-1)
        found = region.place().cell(4, 0)
        product = self.addmul((0, found), (0, x), (0, y), m1=1, m2=-1)
        self.table.equal(product, self.const(0))
        return found

    def _is_zero_value(self, value: int) -> int:
        return self.tape.combine([(-1, self.tape.nonzero(value))], 1)

    def is_equal_const(self, x: Cell, c: int) -> Cell:
        difference = self.tape.combine([(1, x.value)], -c) if c % R else x.value
        region = self.table.region()
        region.put(0, 0, self.tape.inverse(difference, 1))
        region.copy(1, 0, x)
        region.put(4, 0, self._is_zero_value(difference))
        self.row(region, 0, (-c, 0, 0, 0, 1), m1=1, k=-1)
        found = region.place().cell(4, 0)
        product = self.addmul((-c, found), (0, x), (0, x), m1=1)
        self.table.equal(product, self.const(0))
        return found

    def is_zero(self, x: Cell) -> Cell:
        return self.is_equal_const(x, 0)

    def inv0(self, x: Cell) -> Cell:
        """1/x, and 0 for 0."""
        z = self.is_zero(x)
        nothing, unit = self.const(0), self.const(1)
        t = self.select(z, unit, x)
        return self.select(z, nothing, self.assert_non_zero(t))

    # Ranges ------------------------------------------------------------------------------

    def decompose(self, value: int, sizes: Sequence[int]) -> tuple[Cell, list[Cell]]:
        """(the whole, its limbs), limbs from the lowest, each below 2^size by the range table."""
        region = self.table.region()
        if not sizes:
            region.put(0, 0, value)
            self.row(region, 0, (-1,))
            return region.place().cell(0, 0), []
        limbs, rests = self.tape.decompose(value, sizes)
        shift = 0
        for i, size in enumerate(sizes):
            region.put(0, i, rests[i])
            region.put(1, i, limbs[i])
            coefficients = (-1, 1 << shift if size else 0)
            self.row(region, i, coefficients, next_=0 if i == len(sizes) - 1 else 1)
            region.enable("pow2range", i)
            region.fix(RANGE_TAG, i, size)
            self.table.limb_sizes.add(size)
            shift += size
        region.place()
        return region.cell(0, 0), [region.cell(1, i) for i in range(len(sizes))]

    def split(self, x: Cell, bits: int, size: int) -> list[Cell]:
        """x in limbs of ``size`` bits, the last one shorter."""
        rest = bits % size
        whole, limbs = self.decompose(x.value, [size] * (bits // size) + ([rest] if rest else []))
        self.table.equal(x, whole)
        return limbs

    def optimal(self, bits: int) -> list[int]:
        """Limbs by which a value is shown to have so many bits."""
        most = self.table.max_bit_len
        odd = bits % most
        return ([odd] if odd else []) + [most] * (bits // most)

    def assign_less(self, value: int, bits: int) -> Cell:
        """A cell of a value that is below 2^bits."""
        return self.decompose(value, self.optimal(bits))[0]

    def less_than_power(self, x: Cell, bits: int) -> None:
        """x < 2^bits."""
        self.table.equal(x, self.assign_less(x.value, bits))

    def assert_less(self, x: Cell, limit: int) -> None:
        """x < limit; no row where that is known."""
        known = self.table.bound(x)
        if known is not None and known <= limit:
            return
        self.table.bound(x, limit)
        bits = limit.bit_length() - 1
        if limit == 1 << bits:
            self.less_than_power(x, bits)
            return
        bit = self.assign_bit(self.tape.less(x.value, self.tape.constant(1 << bits)))
        shifted = self.addc(x, (1 << bits) - limit)
        self.less_than_power(self.select(bit, x, shifted), bits)

    def sign(self, x: Cell) -> Cell:
        """x mod 2, and 0 for 0."""
        low = self.assign_bit(self.tape.bits(x.value, 0, 1))
        half = self.assign(self.tape.bits(x.value, 1, 254))
        self.assert_less(half, (R + 1) // 2)
        whole = self.lincomb([(1, low), (2, half)])
        self.table.equal_bounded(x, whole)
        other = self.logical_not(self.is_zero(x))
        return self.logical_and(other, low)

    def to_bits(self, x: Cell, bits: int, canonical: bool) -> list[Cell]:
        """x in bits from the lowest; ``canonical``: of 255 bits only those of x itself, not of x + r."""
        limbs = self.split(x, bits, 1)
        if canonical and bits == 255:
            sign = self.sign(x)
            self.table.equal(limbs[0], sign)
        return limbs

    def from_bits(self, bits: Sequence[Cell]) -> Cell:
        natives = [self.as_native(bit) for bit in bits]
        return self.lincomb([(1 << i, bit) for i, bit in enumerate(natives)])

    def to_bytes(self, x: Cell, count: int) -> list[Cell]:
        """x in bytes from the lowest; all 32 only in their canonical form."""
        if count <= 31:
            return self.split(x, 8 * count, 8)
        bits = self.to_bits(x, 255, canonical=True)
        groups = [bits[i : i + 8] for i in range(0, 255, 8)]
        return [self.lincomb([(1 << j, bit) for j, bit in enumerate(group)]) for group in groups]

    def from_bytes(self, data: Sequence[Cell]) -> Cell:
        """Σ 256^i·byte."""
        natives = [self.as_native(byte, 256) for byte in data]
        return self.lincomb([(1 << 8 * i, byte) for i, byte in enumerate(natives)])

    def from_be_bytes(self, data: Sequence[Cell]) -> Cell:
        """A word of four bytes, the highest first."""
        return self.from_bytes([*reversed(data)])

    def less_than(self, x: Cell, y: Cell, bits: int) -> Cell:
        """Whether x < y, both below 2^bits."""
        self.assert_less(x, 1 << bits)
        self.assert_less(y, 1 << bits)
        b = self.assign_bit(self.tape.less(x.value, y.value))
        self.as_native(b)
        p, q = self.mul(x, b), self.mul(y, b)
        z = self.lincomb([(2, q), (-1, b), (1, x), (-2, p), (-1, y)])
        self.less_than_power(z, bits)
        return b


class NativeOfFour(Native):
    """The chip of the newer line: four range columns, and sums that leave out what adds nothing."""

    _RANGES = 4

    def lincomb(self, terms: Terms, k: int = 0) -> Cell:
        nothing = self.const(0)
        kept = [(c % R, cell) for c, cell in terms if c % R and cell != nothing]
        if not kept:
            return self.const(k)
        if len(kept) == 1 and kept[0][0] == 1 and k % R == 0:
            return kept[0][1]
        return self._lincomb(kept, k)

    def decompose(self, value: int, sizes: Sequence[int]) -> tuple[Cell, list[Cell]]:
        """Four limbs in a row; a size of 0 stands for none."""
        region = self.table.region()
        if not sizes:
            region.put(0, 0, value)
            self.row(region, 0, (-1,))
            return region.place().cell(0, 0), []
        limbs, rests = self.tape.decompose(value, sizes)
        count, shift = len(sizes) // self._RANGES, 0
        for i in range(count):
            here = range(self._RANGES * i, self._RANGES * (i + 1))
            region.put(0, i, rests[here[0]])
            coefficients = [-1]
            for j, at in enumerate(here):
                region.put(1 + j, i, limbs[at])
                coefficients.append(1 << shift if sizes[at] else 0)
                shift += sizes[at]
            self.row(region, i, coefficients, next_=0 if i == count - 1 else 1)
            region.enable("pow2range", i)
            region.fix(RANGE_TAG, i, sizes[here[0]])
            self.table.limb_sizes |= {sizes[at] for at in here}
        region.place()
        found = [
            region.cell(1 + at % self._RANGES, at // self._RANGES) for at, size in enumerate(sizes) if size
        ]
        return region.cell(0, 0), found

    def _padded(self, sizes: Sequence[int]) -> list[int]:
        return [*sizes, *([0] * (-len(sizes) % self._RANGES))]

    def split(self, x: Cell, bits: int, size: int) -> list[Cell]:
        full, rest = self._padded([size] * (bits // size)), bits % size
        whole, limbs = self.decompose(x.value, full + (self._padded([rest]) if rest else []))
        self.table.equal(x, whole)
        return limbs

    def optimal(self, bits: int) -> list[int]:
        return [size for row in _fewest_rows(bits, self.table.max_bit_len) for size in self._padded(row)]

    def assign_limbs(self, values: Sequence[int], size: int) -> list[Cell]:
        """Cells of values below 2^size, four in a region."""
        found = []
        for i in range(0, len(values), self._RANGES):
            region, here = self.table.region(), values[i : i + self._RANGES]
            for j in range(self._RANGES):
                region.put(1 + j, 0, here[j] if j < len(here) else self.tape.constant(0))
            region.enable("pow2range", 0)
            region.fix(RANGE_TAG, 0, size)
            self.table.limb_sizes |= {size} if len(here) == self._RANGES else {0, size}
            region.place()
            found += [region.cell(1 + j, 0) for j in range(len(here))]
        return found

    def to_byte(self, x: Cell) -> Cell:
        """x, known to be below 256."""
        known = self.table.bound(x)
        if known is not None and known <= 256:
            return x
        self.table.bound(x, 256)
        byte = self.assign_less(x.value, 8)
        self.table.equal_bounded(x, byte)
        return byte


@lru_cache(maxsize=4096)
def _fewest_rows(bits: int, most: int) -> tuple[tuple[int, ...], ...]:
    """Rows of one to four equal limbs for so many bits: the first shortest of all."""
    if not bits:
        return ()
    best: tuple[tuple[int, ...], ...] | None = None
    for count in range(1, 5):
        for size in range(most, 0, -1):
            if bits < count * size:
                continue
            found = (*_fewest_rows(bits - count * size, most), (size,) * count)
            if best is None or len(found) < len(best):
                best = found
    assert best is not None
    return best


NativeChip = Callable[[Table], Native]
