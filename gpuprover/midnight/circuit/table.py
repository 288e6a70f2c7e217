"""The table of a circuit: which cell holds what, and how cells are tied to each other.

Values stand in regions, which a floor planner places one after the other: a region begins where all columns
that it touches are free. Fixed columns, selectors and copies follow from the circuit; advice cells hold
values of a tape.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
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
        """Finds rows for the region. Raises TooManyRows."""
        self._table._place(self)
        return self

    def cell(self, column: int, offset: int) -> Cell:
        """An advice cell of a placed region."""
        return Cell(f"A{column}", self.start + offset, self._values[column, offset])


class TooManyRows(Exception):
    """A circuit is larger than what its table was meant for."""


class Table:
    """A table that is being laid out.

    Args:
        most_rows: regions that end below are refused.

    Attributes:
        architecture: its chips.
        max_bit_len: bits of the largest limbs.
        tape: how its values are computed.
        selectors: selector -> fixed column.
        rows: the end of the lowest region that touches an advice column or a selector.
    """

    def __init__(self, architecture: Architecture, max_bit_len: int, most_rows: int = 1 << 25) -> None:
        self.architecture, self.max_bit_len = architecture, max_bit_len
        self._most_rows = most_rows
        self.tape = Tape()
        self.selectors = selectors(architecture)
        self.rows = 0
        self.range_check_rows = 0
        """Rows of limbs whose number depends on ``max_bit_len``."""
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
        if start + height > self._most_rows:
            raise TooManyRows
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
        return max(self.rows, len(self.range_rows()), self._other_rows)

    @property
    def least_rows(self) -> int:
        """Rows that are needed with limbs of any length.

        Fewer limbs shorten regions and move nothing else, so that at most all rows of limbs can be saved.
        """
        return max(self.rows - self.range_check_rows, self._other_rows)

    @property
    def _other_rows(self) -> int:
        return max(len(self.spread_rows()), len(self._constants), len(self.public))

    def layout(self, k: int) -> Layout:
        """The finished table of 2^k rows."""
        system, limbs = constraint_system(self.architecture), BLS12_381.scalar.limbs
        fixed = self._fixed | {(9, cell.row): element for element, cell in self._constants.items()}
        # A table has few different elements, and few different columns.
        elements = {element: i for i, element in enumerate(dict.fromkeys(fixed.values()))}
        names = {name: j for j, name in enumerate(system.permutation)}
        copies = [(names[a], i, names[b], j) for a, i, b, j in self._copies]
        copies += [(names[cell.column], cell.row, names[PUBLIC], i) for i, cell in enumerate(self.public)]
        tape = self.tape
        numbers, constants = zip(*tape.constants, strict=True) if tape.constants else ((), ())
        return Layout(
            k=k,
            system=system,
            rows=self.rows,
            n_public=len(self.public),
            code=np.array(tape.code, dtype=np.int64),
            pool=ints_to_words(tape.pool, limbs),
            constant_values=np.array(numbers, dtype=np.int64),
            constants=ints_to_words(constants, limbs),
            inputs=np.array(tape.inputs, dtype=np.int64),
            size=tape.size,
            cells=np.array(self._advice, dtype=np.int64).reshape(-1, 3),
            fixed_cells=np.array(
                [(column, row, elements[element]) for (column, row), element in fixed.items()], dtype=np.int64
            ).reshape(-1, 3),
            elements=ints_to_words(elements, limbs),
            tables=(
                *_columns(RANGE_TABLE, self.range_rows()),
                *_columns(SPREAD_TABLE, self.spread_rows()),
            ),
            tied=np.array(copies, dtype=np.int64).reshape(-1, 4),
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
        code, pool, size: the tape by which its values are computed: int64[c], canonical uint64[p, limbs], and
            the number of values.
        constant_values, constants: values that are constants, int64[q], and what they are, canonical
            uint64[q, limbs].
        inputs: values that a statement gives, int64[i].
        cells: (column, row, value) of advice cells, int64[m, 3].
        fixed_cells: (column, row, place in ``elements``) of fixed cells, int64[f, 3].
        elements: canonical uint64[e, limbs].
        tables: (fixed column, values from row 0), of the tables.
        tied: (place among the permuted columns, row, place, row) of copy constraints, in order, int64[t, 4].
    """

    k: int
    system: ConstraintSystem = field(repr=False)
    rows: int
    n_public: int
    code: NDArray[np.int64] = field(repr=False)
    pool: Words = field(repr=False)
    constant_values: NDArray[np.int64] = field(repr=False)
    constants: Words = field(repr=False)
    inputs: NDArray[np.int64] = field(repr=False)
    size: int
    cells: NDArray[np.int64] = field(repr=False)
    fixed_cells: NDArray[np.int64] = field(repr=False)
    elements: Words = field(repr=False)
    tables: tuple[tuple[int, NDArray[np.uint64]], ...] = field(repr=False)
    tied: NDArray[np.int64] = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        arrays = [v for v in vars(self).values() if isinstance(v, np.ndarray)]
        return sum(a.nbytes for a in (*arrays, *(values for _, values in self.tables)))

    @property
    def copies(self) -> Iterator[tuple[str, int, str, int]]:
        """(column, row, column, row) of copy constraints, in order."""
        names = self.system.permutation
        return ((names[a], i, names[b], j) for a, i, b, j in self.tied.tolist())

    @property
    def fixed(self) -> Words:
        """Fixed columns, canonical uint64[F, n, limbs]; made anew each time."""
        found = np.zeros((self.system.fixed, 1 << self.k, BLS12_381.scalar.limbs), dtype=np.uint64)
        column, row, place = self.fixed_cells.T
        found[column, row] = self.elements[place]
        for name, values in self.tables:
            # Rows behind a table repeat its first row, which is 0.
            found[name, : len(values), 0] = values
        return found

    @property
    def mapping(self) -> NDArray[np.int64]:
        """Where σ leads: place·n + row for each place among the permuted columns and row, int64[m, n]."""
        n, columns = 1 << self.k, len(self.system.permutation)
        next_ = list(range(columns * n))
        # Cells of one cycle have one representative; the smaller cycle is given the other's.
        cycle = list(next_)
        members: dict[int, list[int]] = {}
        for left_column, left_row, right_column, right_row in self.tied.tolist():
            left, right = left_column * n + left_row, right_column * n + right_row
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
        return np.array(next_, dtype=np.int64).reshape(columns, n)

    @property
    def sigma(self) -> Words:
        """The permutation's columns: δ^j·ω^i of the cell that σ leads to, canonical uint64[m, n, limbs].

        They are made anew each time.
        """
        r, n, limbs = BLS12_381.r, 1 << self.k, BLS12_381.scalar.limbs
        omega, mapping = domain(self.k).omega, self.mapping
        words = np.empty((len(mapping), n, limbs), dtype=np.uint64)
        powers = [1] * n
        for i in range(1, n):
            powers[i] = powers[i - 1] * omega % r
        for j in range(len(mapping)):
            delta = delta_power(j)
            words[j] = ints_to_words((delta * x % r for x in powers), limbs)
        place, row = np.divmod(mapping, n)
        found: Words = words[place, row]
        return found

    def values(self, inputs: Sequence[int]) -> Words:
        """All values of the tape for what a statement gives, canonical uint64[size, limbs].

        Raises:
            ValueError: another number of inputs.
        """
        if len(inputs) != len(self.inputs):
            raise ValueError(f"{len(inputs)} inputs for a tape of {len(self.inputs)}")
        values = np.zeros((self.size, BLS12_381.scalar.limbs), dtype=np.uint64)
        values[self.constant_values] = self.constants
        values[self.inputs] = ints_to_words(inputs, BLS12_381.scalar.limbs)
        devices.run_tape(BLS12_381, self.code, self.pool, tables(), values)
        return values


def advice(layout: Layout, inputs: Sequence[int]) -> Words:
    """The advice columns for what a statement gives, canonical uint64[columns, n, limbs].

    Rows behind the usable ones are 0.
    """
    values = layout.values(inputs)
    found = np.zeros((layout.system.advice, 1 << layout.k, BLS12_381.scalar.limbs), dtype=np.uint64)
    found[layout.cells[:, 0], layout.cells[:, 1]] = values[layout.cells[:, 2]]
    return found
