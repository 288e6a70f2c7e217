"""Floor planner, constants, bounds and the permutation, by small tables that are worked out by hand."""

from __future__ import annotations

import pytest

from gpuprover.curves import BLS12_381
from gpuprover.limbs import words_to_ints
from gpuprover.midnight.architecture import Architecture
from gpuprover.midnight.circuit.table import CONSTANTS, Cell, Table, TooManyRows, selectors
from gpuprover.midnight.constraint_system import constraint_system, delta_power, domain

R = BLS12_381.r
PLAIN = Architecture(frozenset(), 1)


def table(most_rows: int = 1 << 25) -> Table:
    return Table(PLAIN, 8, most_rows)


def cells(found: Table, *places: tuple[int, int]) -> list[Cell]:
    """A region with these advice cells, each of a new input."""
    region = found.region()
    for column, offset in places:
        region.put(column, offset, found.tape.input())
    region.place()
    return [region.cell(*place) for place in places]


def test_a_region_begins_where_all_its_columns_are_free() -> None:
    found = table()
    rows = [
        cells(found, *places)[0].row
        for places in (
            [(0, 0), (1, 2)],  # three rows of both columns
            [(2, 0)],  # beside it
            [(1, 0), (2, 0)],  # below the first
            [(2, 0)],
            [(0, 0)],  # the gap in column 0 that the third region left open
            [(0, 0), (1, 0), (2, 0)],
        )
    ]
    assert rows == [0, 0, 3, 4, 3, 5]
    assert found.rows == 6


def test_fixed_columns_and_selectors_take_place_but_fixed_columns_no_rows() -> None:
    found = table()
    for _ in range(3):
        region = found.region()
        region.fix(3, 0, 5)
        region.place()
    assert found.rows == 0
    region = found.region()
    region.fix(3, 0, 5)
    region.enable("arith", 0)
    assert region.place().start == 3
    assert found.rows == 4
    for row, (column, element) in enumerate([(3, 5)] * 4):
        assert words_to_ints(found.layout(6).fixed[column][row : row + 1]) == [element]
    assert words_to_ints(found.layout(6).fixed[selectors(PLAIN)["arith"]])[:5] == [0, 0, 0, 1, 0]


def test_constants_have_one_cell_each_in_the_order_of_first_use() -> None:
    found = table()
    assert [found.constant(c).row for c in (7, 0, 7, -1, R, R - 1)] == [0, 1, 0, 2, 1, 2]
    column = found.layout(6).fixed[int(CONSTANTS[1:])]
    assert words_to_ints(column)[:4] == [7, 0, R - 1, 0]
    assert found.needed_rows == 3


def test_bounds_only_shrink_and_are_shared_by_cells_that_are_tied() -> None:
    found = table()
    x, y, z = cells(found, (0, 0), (1, 0), (2, 0))
    assert found.bound(x) is None
    assert [found.bound(x, limit) for limit in (256, 1000, 2)] == [256, 256, 2]
    found.bound(y, 256)
    found.equal_bounded(y, x)
    assert (found.bound(x), found.bound(y)) == (2, 2)
    found.equal_bounded(x, z)
    assert found.bound(z) == 2
    found.equal(z, cells(found, (0, 0))[0])
    assert len(found.layout(6).tied) == 3


def test_the_permutation_swaps_successors_of_cells_that_no_cycle_has_joined() -> None:
    found = table()
    a, b, c, d = cells(found, (0, 0), (0, 1), (1, 0), (1, 1))
    for left, right in ((a, b), (c, d), (b, a), (a, c), (d, b)):
        found.equal(left, right)
    layout = found.layout(6)
    names = constraint_system(PLAIN).permutation
    at = [names.index(cell.column) * 64 + cell.row for cell in (a, b, c, d)]
    leads = {at.index(i): at.index(int(layout.mapping.flat[i])) for i in at}
    # a-b and c-d are joined by a-c: a goes where c went, to d, and c to b. The rest is known already.
    assert leads == {0: 3, 3: 2, 2: 1, 1: 0}
    sigma, omega = layout.sigma, domain(6).omega
    for i, target in enumerate([at[leads[j]] for j in range(4)]):
        place, row = divmod(at[i], 64)
        expected = delta_power(target // 64) * pow(omega, target % 64, R) % R
        assert words_to_ints(sigma[place, row : row + 1]) == [expected]
    untouched = names.index("A2"), 5
    expected = delta_power(untouched[0]) * pow(omega, 5, R) % R
    assert words_to_ints(sigma[untouched[0], 5:6]) == [expected]


def test_more_rows_than_were_meant_are_refused() -> None:
    found = table(most_rows=2)
    cells(found, (0, 0), (0, 1))
    with pytest.raises(TooManyRows):
        cells(found, (0, 0))


def test_values_want_as_many_inputs_as_the_tape_has() -> None:
    found = table()
    cells(found, (0, 0), (1, 0))
    layout = found.layout(6)
    assert words_to_ints(layout.values([3, R - 1])) == [3, R - 1]
    with pytest.raises(ValueError, match="1 inputs for a tape of 2"):
        layout.values([3])
    assert layout.nbytes >= layout.cells.nbytes + layout.code.nbytes
