"""Jubjub in circuits beside plain integers; rows satisfy the gates."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from gpuprover.curves import BLS12_381
from gpuprover.limbs import ints_to_words, words_to_ints
from gpuprover.midnight import jubjub
from gpuprover.midnight.circuit import jubjub_chip
from gpuprover.midnight.circuit.native import Native
from gpuprover.midnight.circuit.table import Cell
from tests.support.midnight_table import Laid

R = BLS12_381.r


def laid(bits: int, newer: bool = False) -> Laid:
    """Points p and q, a number: p + q, number·p, number·G."""

    def build(native: Native) -> Sequence[Cell]:
        tape = native.tape
        cells = native.assign_many([tape.input() for _ in range(4)])
        p, q = (jubjub_chip.point(native, *cells[i : i + 2]) for i in (0, 2))
        scalar = native.to_bits(native.assign(tape.input()), bits, canonical=True)
        return [
            *jubjub_chip.add(native, p, q),
            *jubjub_chip.multiply(native, scalar, p),
            *jubjub_chip.multiply(native, scalar, jubjub_chip.generator(native)),
        ]

    return Laid(["jubjub"], build, newer)


def drawn(rng: random.Random) -> jubjub.Point:
    return jubjub.multiply(jubjub.GENERATOR, rng.randrange(jubjub.ORDER))


@pytest.mark.parametrize(("bits", "newer"), [(1, False), (255, False), (7, True)])
def test_sums_and_multiples(bits: int, newer: bool, rng: random.Random) -> None:
    circuit = laid(bits, newer)
    p = drawn(rng)
    for other in (drawn(rng), p, jubjub.negate(p), jubjub.NEUTRAL):
        n = rng.choice([0, 1, rng.randrange(min(R, 1 << bits))])
        expected = (jubjub.add(p, other), jubjub.multiply(p, n), jubjub.multiply(jubjub.GENERATOR, n))
        assert circuit.results([*p, *other, n]) == [x for point in expected for x in point]


def test_the_table_holds_and_every_cell_counts(rng: random.Random) -> None:
    circuit = laid(9)
    inputs = [*drawn(rng), *drawn(rng), rng.randrange(512)]
    advice = circuit.table(circuit.values(inputs))
    assert circuit.violations(advice) == []
    for column, row, _ in rng.sample(circuit.layout.cells.tolist(), 20):
        (before,) = words_to_ints(advice[column, row : row + 1])
        advice[column, row] = ints_to_words([(before + 1) % R], 4)
        assert circuit.violations(advice), f"A{column}[{row}]"
        advice[column, row] = ints_to_words([before], 4)


def test_points_that_are_none_do_not_hold(rng: random.Random) -> None:
    circuit = laid(1)
    p = drawn(rng)
    for bad in ((p[0], (p[1] + 1) % R), (0, R - 1), (0, 0)):
        assert circuit.violations(circuit.table(circuit.values([*bad, *p, 1])))


def test_a_point_of_values_is_tied_to_nothing(rng: random.Random) -> None:
    circuit = Laid(
        ["jubjub"],
        lambda native: jubjub_chip.point_value(native, native.tape.input(), native.tape.input()),
        newer=True,
    )
    p = drawn(rng)
    assert circuit.results([*p]) == [*p]
    assert circuit.layout.rows == 5
