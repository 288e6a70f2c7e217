"""Elements to points in circuits beside plain integers."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from gpuprover.curves import BLS12_381
from gpuprover.midnight import curve_map
from gpuprover.midnight.circuit import curve_map_chip
from gpuprover.midnight.circuit.native import Native
from gpuprover.midnight.circuit.table import Cell
from tests.support.midnight_table import Laid

R = BLS12_381.r
CHIPS = ("jubjub", "poseidon")


@pytest.mark.parametrize(("count", "newer"), [(0, False), (3, True)])
def test_points_of_elements(count: int, newer: bool, rng: random.Random) -> None:
    def build(native: Native) -> Sequence[Cell]:
        inputs = [native.assign(native.tape.input()) for _ in range(count)]
        return curve_map_chip.hash_to_curve(native, inputs)

    circuit = Laid(CHIPS, build, newer)
    for _ in range(2):
        inputs = [rng.randrange(R) for _ in range(count)]
        assert tuple(circuit.results(inputs)) == curve_map.hash_to_curve(inputs)
    assert circuit.violations(circuit.table(circuit.values(inputs))) == []


def test_the_map_of_every_kind_of_element(rng: random.Random) -> None:
    """Each of the three candidates is taken, and exceptional elements, whose denominators are 0, hold too."""

    def build(native: Native) -> Sequence[Cell]:
        return curve_map_chip.map_to_curve(native, native.assign(native.tape.input()))

    circuit = Laid(CHIPS, build)
    exceptional = [u for c in (1, -1) if (u := curve_map.square_root(c * pow(curve_map.C1, -1, R) % R))]
    for u in (0, 1, R - 1, *exceptional, *(rng.randrange(R) for _ in range(8))):
        assert tuple(circuit.results([u])) == curve_map.map_to_curve(u)
        assert circuit.violations(circuit.table(circuit.values([u]))) == []
