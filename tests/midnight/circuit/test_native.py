"""Operations of the native chips of both lines: results in integers, and rows that hold for nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from gpuprover.curves import BLS12_381
from gpuprover.limbs import ints_to_words, words_to_ints
from gpuprover.midnight.circuit.native import Native, NativeOfFour
from gpuprover.midnight.circuit.poseidon_chip import poseidon_hash
from gpuprover.midnight.circuit.table import Cell
from gpuprover.midnight.poseidon import poseidon_hash as hash_of
from tests.support.midnight_table import Laid

R = BLS12_381.r
LINES = pytest.mark.parametrize("newer", [False, True], ids=["older", "newer"])

Build = Callable[[Native, list[Cell]], Sequence[Cell]]
Meaning = Callable[..., list[int]]

OPERATIONS: dict[str, tuple[Build, Meaning]] = {
    "addmul": (
        lambda n, c: [n.addmul((2, c[0]), (3, c[1]), (-1, c[2]), 7, 5, -2)],
        lambda x, y, z: [2 * x + 3 * y - z + 7 + 5 * x * y - 2 * x * z],
    ),
    "lincomb": (
        lambda n, c: [n.lincomb([(i - 4, c[i % 3]) for i in range(9)], 11), n.lincomb([(0, c[0])], 6)],
        lambda x, y, z: [sum((i - 4) * (x, y, z)[i % 3] for i in range(9)) + 11, 6],
    ),
    "sums": (
        lambda n, c: [
            n.add(c[0], c[1]),
            n.neg(c[0]),
            n.addc(c[0], 3),
            n.addc(c[0], 0),
            n.add(c[0], n.const(0)),
        ],
        lambda x, y, z: [x + y, -x, x + 3, x, x],
    ),
    "products": (
        lambda n, c: [
            *(n.mul(c[0], c[1]), n.mul(n.const(1), c[2]), n.mul(c[2], n.const(1))),
            *(n.mulc(c[0], f) for f in (0, 1, -5)),
        ],
        lambda x, y, z: [x * y, z, z, 0, x, -5 * x],
    ),
    "comparisons": (
        lambda n, c: [
            n.is_equal(c[0], c[1]),
            n.is_equal(c[0], c[0]),
            n.is_zero(c[2]),
            n.is_equal_const(c[1], 1),
        ],
        lambda x, y, z: [x == y, 1, z == 0, y == 1],
    ),
    "inverse or nothing": (lambda n, c: [n.inv0(c[0])], lambda x, y, z: [pow(x, -1, R) if x else 0]),
    "sign": (lambda n, c: [n.sign(c[0])], lambda x, y, z: [x % 2]),
    "bits": (
        lambda n, c: [n.from_bits(n.to_bits(c[0], 255, True)[100:]), n.to_bits(c[0], 255, True)[3]],
        lambda x, y, z: [x >> 100, x >> 3 & 1],
    ),
    "bytes": (
        lambda n, c: [n.from_bytes(n.to_bytes(c[1], 32)), n.to_bytes(c[1], 32)[31], n.to_bytes(c[1], 32)[7]],
        lambda x, y, z: [y, y >> 248, y >> 56 & 255],
    ),
    "logic": (
        lambda n, c: [
            f(*(n.to_bit(n.is_zero(x)) for x in c[:2]))
            for f in (n.logical_and, n.logical_or, n.bit_equal, lambda a, b: n.select(a, b, c[2]))
        ],
        lambda x, y, z: [
            x == 0 and y == 0,
            x == 0 or y == 0,
            (x == 0) == (y == 0),
            (y == 0) if x == 0 else z,
        ],
    ),
}
CORNERS = [(0, 0, 0), (1, 1, 1), (R - 1, 1, 0), (0, R - 1, 5), ((R - 1) // 2, (R + 1) // 2, R - 2)]


def given(build: Build, inputs: int = 3) -> Callable[[Native], Sequence[Cell]]:
    return lambda native: build(native, native.assign_many([native.tape.input() for _ in range(inputs)]))


def holds(circuit: Laid, inputs: Sequence[int]) -> bool:
    return not circuit.violations(circuit.table(circuit.values(inputs)))


@LINES
@pytest.mark.parametrize("name", OPERATIONS)
def test_results(name: str, newer: bool, rng: random.Random) -> None:
    build, meaning = OPERATIONS[name]
    circuit = Laid([], given(build), newer)
    for inputs in (*CORNERS, tuple(rng.randrange(R) for _ in range(3))):
        assert circuit.results(inputs) == [int(v) % R for v in meaning(*inputs)], inputs
        assert holds(circuit, inputs), inputs


REFUSED: dict[str, tuple[Build, list[tuple[int, ...]], list[tuple[int, ...]]]] = {
    "non-zero": (lambda n, c: [n.assert_non_zero(c[0])], [(1,), (R - 1,)], [(0,)]),
    "inverse": (lambda n, c: [n.inverse(c[0])], [(1,), (R - 1,)], [(0,)]),
    "bit": (lambda n, c: [n.to_bit(c[0])], [(0,), (1,)], [(2,), (R - 1,)]),
    "8 bits": (lambda n, c: n.to_bits(c[0], 8, False), [(0,), (255,)], [(256,), (R - 1,)]),
    "no bits": (lambda n, c: n.to_bits(c[0], 0, False), [(0,)], [(1,), (R - 1,)]),
    "3 bytes": (lambda n, c: n.to_bytes(c[0], 3), [(0,), ((1 << 24) - 1,)], [(1 << 24,), (R - 1,)]),
    "a power": (lambda n, c: _less(n, c, 1 << 11), [(0,), (2047,)], [(2048,), (R - 1,)]),
    "a limit": (lambda n, c: _less(n, c, 1000), [(0,), (511,), (512,), (999,)], [(1000,), (1023,), (R - 1,)]),
    "comparison": (
        lambda n, c: [n.less_than(c[0], c[1], 8)],
        [(3, 5), (5, 3), (5, 5), (0, 255), (255, 0)],
        [(256, 5), (5, 256), (R - 1, 5)],
    ),
}


def _less(native: Native, cells: list[Cell], limit: int) -> list[Cell]:
    native.assert_less(cells[0], limit)
    rows = native.table.rows
    native.assert_less(cells[0], limit + 1)
    assert native.table.rows == rows, "what is known takes no row"
    return []


@LINES
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_constrained_holds_for_nothing_else(name: str, newer: bool) -> None:
    build, good, bad = REFUSED[name]
    circuit = Laid([], given(build, len(good[0])), newer)
    assert all(holds(circuit, inputs) for inputs in good)
    assert not any(holds(circuit, inputs) for inputs in bad)


@LINES
def test_comparisons(newer: bool) -> None:
    for bits in (4, 20, 250):
        circuit = Laid([], given(lambda n, c, b=bits: [n.less_than(c[0], c[1], b)], 2), newer)  # type: ignore[misc]
        most = (1 << bits) - 1
        for inputs in ((0, 0), (0, most), (most, 0), (most, most), (most - 1, most), (most, most - 1)):
            assert circuit.results(inputs) == [int(inputs[0] < inputs[1])]
            assert holds(circuit, inputs)


@LINES
def test_every_cell_counts(newer: bool, rng: random.Random) -> None:
    def build(native: Native, cells: list[Cell]) -> list[Cell]:
        return [cell for operation, _ in OPERATIONS.values() for cell in operation(native, cells)]

    circuit = Laid([], given(build), newer)
    advice = circuit.table(circuit.values([rng.randrange(1, R) for _ in range(3)]))
    assert circuit.violations(advice) == []
    # The inverse of nothing, where a cell is compared with itself, may be anything, and so may the limbs that
    # fill a row of four.
    taken = []
    for column, row, value in circuit.layout.cells.tolist():
        (element,) = words_to_ints(advice[column, row : row + 1])
        if not (column == 0 and element == 1) and not (newer and column > 0 and element == 0):
            taken.append((column, row, value))
    for column, row, _ in rng.sample(taken, 25):
        (before,) = words_to_ints(advice[column, row : row + 1])
        advice[column, row] = ints_to_words([(before + 1) % R], 4)
        assert circuit.violations(advice), f"A{column}[{row}]"
        advice[column, row] = ints_to_words([before], 4)


def test_the_bits_of_another_form_of_an_element_do_not_hold() -> None:
    """x and x + r have the same value and other parities; x + r has 255 bits for small x."""
    circuit = Laid([], given(lambda n, c: n.to_bits(c[0], 255, True), 1))
    values = circuit.values([6])
    cells = {(c, row): value for c, row, value in circuit.layout.cells.tolist()}
    # The decomposition follows the row of the input: rests in A0, bits in A1.
    for i in range(255):
        rest, bit = ((6 + R) >> i << i) % R, (6 + R) >> i & 1
        values[[cells[0, 1 + i], cells[1, 1 + i]]] = ints_to_words([rest, bit], 4)
    found = circuit.violations(circuit.table(values))
    assert found
    assert all("copy" in violation for violation in found), "rows hold, and only the parity is another"


def test_limbs_of_the_newer_line_take_the_fewest_rows() -> None:
    def rows(bits: int) -> list[int]:
        found: list[int] = []

        def build(native: Native) -> list[Cell]:
            found.extend(native.optimal(bits))
            return []

        Laid([], build, newer=True)
        return found

    assert rows(8) == [8, 0, 0, 0]
    assert rows(32) == [8, 8, 8, 8]
    assert rows(14) == [7, 7, 0, 0]
    assert rows(11) == [3, 0, 0, 0, 8, 0, 0, 0]
    assert rows(0) == []
    assert sum(rows(255)) == 255


def test_bytes_that_are_assigned() -> None:
    def build(native: Native) -> Sequence[Cell]:
        assert isinstance(native, NativeOfFour)
        found = native.assign_limbs([native.tape.input() for _ in range(5)], 8)
        return [*found, native.to_byte(native.assign(native.tape.input()))]

    circuit = Laid([], build, newer=True)
    assert holds(circuit, [0, 1, 2, 255, 255, 255])
    for i in range(6):
        inputs = [256 if j == i else 9 for j in range(6)]
        assert not holds(circuit, inputs), i


@LINES
@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_poseidon(count: int, newer: bool, rng: random.Random) -> None:
    circuit = Laid(["poseidon"], given(lambda n, c: [poseidon_hash(n, c)], count), newer)
    inputs = [rng.choice([0, 1, R - 1, rng.randrange(R)]) for _ in range(count)]
    assert circuit.results(inputs) == [hash_of(inputs)]
    advice = circuit.table(circuit.values(inputs))
    assert circuit.violations(advice) == []
    if count == 2 and not newer:
        for column, row, _ in rng.sample(circuit.layout.cells.tolist(), 25):
            (before,) = words_to_ints(advice[column, row : row + 1])
            advice[column, row] = ints_to_words([(before + 1) % R], 4)
            assert circuit.violations(advice), f"A{column}[{row}]"
            advice[column, row] = ints_to_words([before], 4)
