"""SHA-256 in circuits beside hashlib; its rows satisfy the gates, and nothing else in them does."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

import pytest

from gpuprover.limbs import ints_to_words, words_to_ints
from gpuprover.midnight.circuit import sha256_chip
from gpuprover.midnight.circuit.native import Native
from gpuprover.midnight.circuit.table import Cell
from gpuprover.midnight.circuit.tape import run_reference
from tests.support.midnight_table import Laid


def laid(length: int, newer: bool = False) -> Laid:
    def build(native: Native) -> Sequence[Cell]:
        return sha256_chip.sha256(native, [native.assign(native.tape.input()) for _ in range(length)])

    return Laid(["sha2_256"], build, newer)


def test_constants_are_those_of_the_standard() -> None:
    assert sha256_chip.START[0] == 0x6A09E667
    assert sha256_chip.START[7] == 0x5BE0CD19
    assert sha256_chip.ADDENDS[:2] == (0x428A2F98, 0x71374491)
    assert sha256_chip.ADDENDS[-1] == 0xC67178F2


@pytest.mark.parametrize(("length", "newer"), [(0, False), (55, True), (56, False)])
def test_digests(length: int, newer: bool, rng: random.Random) -> None:
    circuit = laid(length, newer)
    message = rng.randbytes(length)
    assert bytes(circuit.results([*message])) == hashlib.sha256(message).digest()
    ones = [255] * length
    assert words_to_ints(circuit.values(ones)) == run_reference(circuit.tape, ones)


def test_the_table_holds_and_every_cell_counts(rng: random.Random) -> None:
    circuit = laid(3)
    values = circuit.values([*b"abc"])
    advice = circuit.table(values)
    assert circuit.violations(advice) == []
    # Cells of bytes and sums of bytes are the native chip's.
    own = [cell for cell in circuit.layout.cells.tolist() if cell[1] > 16]
    for column, row, _ in rng.sample(own, 12):
        (before,) = words_to_ints(advice[column, row : row + 1])
        advice[column, row] = ints_to_words([before ^ rng.choice([1, 2, 1 << 20])], 4)
        assert circuit.violations(advice), f"A{column}[{row}]"
        advice[column, row] = ints_to_words([before], 4)
