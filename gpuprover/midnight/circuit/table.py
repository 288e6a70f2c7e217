"""The table of a circuit: which cell holds what, and how cells are tied to each other.

Values stand in regions, which a floor planner places one after the other: a region begins where all columns
that it touches are free. Fixed columns, selectors and copies follow from the circuit; advice cells hold
values of a tape.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpuprover import devices
from gpuprover.curves import BLS12_381
from gpuprover.limbs import Words, ints_to_words
from gpuprover.midnight.architecture import Architecture
from gpuprover.midnight.circuit.tape import Tape, spread, tables
from gpuprover.midnight.constraint_system import ConstraintSystem, constraint_system, delta_power, domain

CONSTANTS = "F9"
"""The column of region constants."""
RANGE_TAG, RANGE_TABLE = 10, (11, 12)
SPREAD_TABLE = (13, 14, 15)
PUBLIC = "I1"
_FIRST_SELECTOR = 13
_BASIC = ("arith", "12_minus_34", "par_add", "pow2range")
_SELECTORS = {
    "jubjub": ("double", "cond_add", "mem"),
    "sha2_256": (
        *("lookup", "maj", "half_ch", "Sigma0", "Sigma1", "sigma0", "sigma1"),
        *("d11_11_10", "d10_9_11_2", "d7_12_2_5_6", "d12_1x3_7_3_4_3", "addmod"),
    ),
    "poseidon": ("full", "partial"),
}


class Cell(NamedTuple):
    """A cell of the table and the value that it holds.

    Attributes:
        column: its name, as constraint systems have it: A0, F9, I1.
        row: its row.
        value: the value's number on the tape.
    """

    column: str
    row: int
    value: int


def selectors(architecture: Architecture) -> dict[str, int]:
    """Selector -> its fixed column."""
    names = [*_BASIC]
    for chip, own in _SELECTORS.items():
        if chip in architecture.chips:
            names += own
    first = _FIRST_SELECTOR + (len(SPREAD_TABLE) if "sha2_256" in architecture.chips else 0)
    return {name: first + i for i, name in enumerate(names)}


class Region:
    """Cells that keep their distances; offsets are rows of the region.

    A region is written first and then placed; afterwards its cells have rows.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        self._advice: list[tuple[int, int, int]] = []
        self._fixed: list[tuple[int, int, int]] = []
        self._copies: list[tuple[int, int, Cell]] = []
        self._values: dict[tuple[int, int], int] = {}
        self.start = -1

    def put(self, column: int, offset: int, value: int) -> None:
        """Advice: the cell holds the value."""
        self._advice.append((column, offset, value))
        self._values[column, offset] = value

    def copy(self, column: int, offset: int, source: Cell) -> None:
        """Advice: the cell holds the source's value, and is tied to it."""
        self.put(column, offset, source.value)
        self._copies.append((column, offset, source))

    def tie(self, column: int, offset: int, source: Cell) -> None:
        """The cell, which was written, is tied to the source."""
        self._copies.append((column, offset, source))

    def fix(self, column: int, offset: int, element: int) -> None:
        """Fixed column: the cell holds the element."""
        self._fixed.append((column, offset, element))

    def enable(self, selector: str, offset: int) -> None:
        """The selector is 1 on the row."""
        self._fixed.append((self._table.selectors[selector], offset, 1))

    def place(self) -> Region:
        """Finds rows for the region."""
        self._table._place(self)
        return self

    def cell(self, column: int, offset: int) -> Cell:
        """An advice cell of a placed region."""
        return Cell(f"A{column}", self.start + offset, self._values[column, offset])


class Table:
    """A table that is being laid out.

    Attributes:
        architecture: its chips.
        max_bit_len: bits of the largest limbs.
        tape: how its values are computed.
        selectors: selector -> fixed column.
        rows: the end of the lowest region that touches an advice column or a selector.
    """

    def __init__(self, architecture: Architecture, max_bit_len: int) -> None:
        self.architecture, self.max_bit_len = architecture, max_bit_len
        self.tape = Tape()
        self.selectors = selectors(architecture)
        self.rows = 0
        self.limb_sizes: set[int] = set()
        """Sizes of limbs that are looked up."""
        self.uses_spread_table = False
        self.public: list[Cell] = []
        """Cells of the public inputs, in order."""
        self._marks: dict[int, int] = {}
        self._advice: list[tuple[int, int, int]] = []
        self._fixed: dict[tuple[int, int], int] = {}
        self._copies: list[tuple[str, int, str, int]] = []
        self._constants: dict[int, Cell] = {}
        self._bounds: dict[tuple[str, int], int] = {}

    # Regions -----------------------------------------------------------------------------

    def region(self) -> Region:
        """A new region, to be written and placed."""
        return Region(self)

    def _place(self, region: Region) -> None:
        # Fixed columns are numbered behind the advice columns.
        touched = {column for column, _, _ in region._advice}
        touched |= {_FIXED + column for column, _, _ in region._fixed}
        height = 1 + max(offset for part in (region._advice, region._fixed) for _, offset, _ in part)
        start = max(self._marks.get(column, 0) for column in touched)
        self._marks.update(dict.fromkeys(touched, start + height))
        region.start = start
        self._advice += [(column, start + offset, value) for column, offset, value in region._advice]
        self._fixed.update({(c, start + offset): element for c, offset, element in region._fixed})
        for column, offset, source in region._copies:
            self._copies.append((f"A{column}", start + offset, source.column, source.row))
        if any(column < _FIXED or column >= _FIXED + _FIRST_SELECTOR for column in touched):
            self.rows = max(self.rows, start + height)

    def equal(self, left: Cell, right: Cell) -> None:
        """A copy constraint."""
        self._copies.append((left.column, left.row, right.column, right.row))

    def constant(self, element: int) -> Cell:
        """The cell of a constant: one for each that there is, in the order of first use."""
        element %= BLS12_381.r
        found = self._constants.get(element)
        if found is None:
            row = len(self._constants)
            found = Cell(CONSTANTS, row, self.tape.constant(element))
            self._constants[element] = found
        return found

    # Bounds ------------------------------------------------------------------------------

    def bound(self, cell: Cell, limit: int | None = None) -> int | None:
        """What the cell's value is known to be below; with a limit, that is made known first."""
        name = cell.column, cell.row
        known = self._bounds.get(name)
        if limit is not None and (known is None or limit < known):
            self._bounds[name] = known = limit
        return known

    def equal_bounded(self, left: Cell, right: Cell) -> None:
        """A copy constraint of cells whose bounds hold for each other."""
        known = self.bound(left)
        if known is not None:
            self.bound(right, known)
        known = self.bound(right)
        if known is not None:
            self.bound(left, known)
        self.equal(left, right)

    # The end -----------------------------------------------------------------------------

    def range_rows(self) -> list[tuple[int, int]]:
        """(tag, value) of the range table."""
        used = [t for t in range(self.max_bit_len + 1) if t == 0 or t in self.limb_sizes]
        return [(t, value) for t in used for value in range(1 << t)]

    def spread_rows(self) -> list[tuple[int, int, int]]:
        """(bits, plain, spread) of SHA-256's table; [] if it is not used."""
        if not self.uses_spread_table:
            return []
        sizes = (2, 3, 4, 5, 6, 7, 9, 10, 11, 12)
        return [(0, 0, 0), *((n, v, spread(v)) for n in sizes for v in range(1 << n))]

    @property
    def needed_rows(self) -> int:
        """Rows that hold something."""
        tables = 1 + max(self.limb_sizes, default=0), len(self.spread_rows())
        ranges = sum(1 << t for t in {0, *self.limb_sizes} if t <= self.max_bit_len)
        return max(self.rows, ranges, *tables, len(self._constants), len(self.public))

    def layout(self, k: int) -> Layout:
        """The finished table of 2^k rows."""
        system = constraint_system(self.architecture)
        fixed = dict(self._fixed)
        fixed |= {(9, cell.row): element for element, cell in self._constants.items()}
        fixed |= {(RANGE_TAG, row): e for (column, row), e in self._fixed.items() if column == RANGE_TAG}
        copies = [*self._copies]
        copies += [(cell.column, cell.row, PUBLIC, row) for row, cell in enumerate(self.public)]
        places = sorted(fixed)
        return Layout(
            k=k,
            system=system,
            rows=self.rows,
            n_public=len(self.public),
            tape=self.tape,
            cells=np.array(self._advice, dtype=np.int64).reshape(-1, 3),
            fixed_places=np.array(places, dtype=np.int64).reshape(-1, 2),
            fixed_values=ints_to_words([fixed[place] for place in places], BLS12_381.scalar.limbs),
            tables=(
                *_columns(RANGE_TABLE, self.range_rows()),
                *(_columns(SPREAD_TABLE, self.spread_rows())),
            ),
            copies=copies,
        )


_FIXED = 1000


def _columns(
    columns: Sequence[int], rows: Sequence[Sequence[int]]
) -> Iterator[tuple[int, NDArray[np.uint64]]]:
    if rows:
        values = np.array(rows, dtype=np.uint64)
        yield from ((column, values[:, i]) for i, column in enumerate(columns))


@dataclass(frozen=True, eq=False)
class Layout:
    """A circuit's table.

    Attributes:
        k: the logarithm of the number of rows.
        system: its constraint system.
        rows: rows that regions with advice columns or selectors take.
        n_public: public inputs.
        tape: how its values are computed.
        cells: (column, row, value) of advice cells, int64[m, 3].
        fixed_places, fixed_values: (column, row), int64[f, 2], and canonical uint64[f, limbs].
        tables: (fixed column, values from row 0), of the tables.
        copies: (column, row, column, row) of copy constraints, in order.
    """

    k: int
    system: ConstraintSystem = field(repr=False)
    rows: int
    n_public: int
    tape: Tape = field(repr=False)
    cells: NDArray[np.int64] = field(repr=False)
    fixed_places: NDArray[np.int64] = field(repr=False)
    fixed_values: Words = field(repr=False)
    tables: tuple[tuple[int, NDArray[np.uint64]], ...] = field(repr=False)
    copies: list[tuple[str, int, str, int]] = field(repr=False)

    @cached_property
    def fixed(self) -> Words:
        """Fixed columns, canonical uint64[F, n, limbs]."""
        found = np.zeros((self.system.fixed, 1 << self.k, BLS12_381.scalar.limbs), dtype=np.uint64)
        found[self.fixed_places[:, 0], self.fixed_places[:, 1]] = self.fixed_values
        for column, values in self.tables:
            # Rows behind a table repeat its first row, which is 0.
            found[column, : len(values), 0] = values
        return found

    @cached_property
    def mapping(self) -> NDArray[np.int64]:
        """Where σ leads: place·n + row for each place among the permuted columns and row, int64[m, n]."""
        n, names = 1 << self.k, {name: j for j, name in enumerate(self.system.permutation)}
        next_ = list(range(len(names) * n))
        # Cells of one cycle have one representative; the smaller cycle is given the other's.
        cycle = list(next_)
        members: dict[int, list[int]] = {}
        for left_column, left_row, right_column, right_row in self.copies:
            left, right = names[left_column] * n + left_row, names[right_column] * n + right_row
            a, b = cycle[left], cycle[right]
            if a == b:
                continue
            first, second = members.setdefault(a, [a]), members.setdefault(b, [b])
            if len(first) < len(second):
                a, b, first, second = b, a, second, first
            for cell in second:
                cycle[cell] = a
            first += second
            del members[b]
            next_[left], next_[right] = next_[right], next_[left]
        return np.array(next_, dtype=np.int64).reshape(len(names), n)

    @cached_property
    def sigma(self) -> Words:
        """The permutation's columns: δ^j·ω^i of the cell that σ leads to, canonical uint64[m, n, limbs]."""
        r, n, limbs = BLS12_381.r, 1 << self.k, BLS12_381.scalar.limbs
        omega = domain(self.k).omega
        positions = [delta_power(j) for j in range(len(self.mapping))]
        words = np.empty((n, len(positions), limbs), dtype=np.uint64)
        for i in range(n):
            words[i] = ints_to_words(positions, limbs)
            positions = [x * omega % r for x in positions]
        place, row = np.divmod(self.mapping, n)
        found: Words = words[row, place]
        return found

    @cached_property
    def _arrays(self) -> tuple[NDArray[np.int64], Words, list[int], Words]:
        """The tape's code; its pool, canonical uint64[p, limbs]; the constants' numbers, and their words."""
        limbs = BLS12_381.scalar.limbs
        numbers, elements = zip(*self.tape.constants, strict=True) if self.tape.constants else ((), ())
        code = np.array(self.tape.code, dtype=np.int64)
        return code, ints_to_words(self.tape.pool, limbs), [*numbers], ints_to_words(elements, limbs)

    def values(self, inputs: Sequence[int]) -> Words:
        """All values of the tape for what a statement gives, canonical uint64[size, limbs].

        Raises:
            ValueError: another number of inputs.
        """
        if len(inputs) != len(self.tape.inputs):
            raise ValueError(f"{len(inputs)} inputs for a tape of {len(self.tape.inputs)}")
        code, pool, numbers, constants = self._arrays
        values = np.zeros((self.tape.size, BLS12_381.scalar.limbs), dtype=np.uint64)
        values[numbers] = constants
        values[self.tape.inputs] = ints_to_words(inputs, BLS12_381.scalar.limbs)
        devices.run_tape(BLS12_381, code, pool, tables(), values)
        return values


def advice(layout: Layout, inputs: Sequence[int]) -> Words:
    """The advice columns for what a statement gives, canonical uint64[columns, n, limbs].

    Rows behind the usable ones are 0.
    """
    values = layout.values(inputs)
    found = np.zeros((layout.system.advice, 1 << layout.k, BLS12_381.scalar.limbs), dtype=np.uint64)
    found[layout.cells[:, 0], layout.cells[:, 1]] = values[layout.cells[:, 2]]
    return found
