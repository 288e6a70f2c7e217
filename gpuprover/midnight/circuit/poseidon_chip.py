"""Poseidon in a circuit: a permutation in twenty rows, six partial rounds in one of them.

The gates hold a row's constants in fixed columns. Those of six partial rounds are merged: the rounds are
linear but for the last element's powers, so that a row's constants come to one for each of its results.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from gpuprover.curves import BLS12_381
from gpuprover.midnight.circuit.native import Native
from gpuprover.midnight.circuit.table import Cell
from gpuprover.midnight.circuit.tape import PARTIAL_STEP, poseidon_rows
from gpuprover.midnight.poseidon import RATE, ROUNDS, WIDTH, constants

R = BLS12_381.r


@lru_cache(maxsize=64)
def _merged(first: int) -> tuple[int, ...]:
    """Constants of six partial rounds: of the new x and y, of z before S-boxes 2 to 6, of the new z."""
    added, matrix = constants()
    x, z = [0, 0], []
    for i in range(first, first + PARTIAL_STEP):
        state = [(row[0] * x[0] + row[1] * x[1] + c) % R for row, c in zip(matrix, added[i + 1], strict=True)]
        x = state[:2]
        z.append(state[2])
    return (*x, *z)


def permutation(native: Native, state: Sequence[Cell]) -> list[Cell]:
    """The permuted state."""
    added, _ = constants()
    region, tape = native.table.region(), native.tape
    cell = tape.poseidon(*(x.value for x in state))
    region.enable("par_add", 0)
    for j in range(WIDTH):
        region.copy(j, 0, state[j])
        region.fix(4 + j, 0, added[0][j])
    for row, (first, count) in enumerate(poseidon_rows(), 1):
        for j in range(WIDTH):
            region.put(j, row, cell + j)
        cell += WIDTH
        if count == 1:
            region.enable("full", row)
            for j in range(WIDTH):
                region.put(WIDTH + j, row, cell + j)
                region.fix(j, row, added[first + 1][j] if first + 1 < ROUNDS else 0)
            cell += WIDTH
        elif count:
            region.enable("partial", row)
            for j in range(count - 1):
                region.put(WIDTH + j, row, cell + j)
            for j, element in enumerate(_merged(first)):
                region.fix(j, row, element)
            cell += count - 1
    region.place()
    return [region.cell(j, row) for j in range(WIDTH)]


def poseidon_hash(native: Native, inputs: Sequence[Cell]) -> Cell:
    """Poseidon over a list of elements, whose number is in the first state."""
    nothing = native.const(0)
    state = [nothing, nothing, native.const(len(inputs))]
    return absorb(native, state, inputs)[0]


def absorb(native: Native, state: Sequence[Cell], inputs: Sequence[Cell]) -> list[Cell]:
    """The state after all inputs, two before each permutation."""
    found = [*state]
    for i in range(0, len(inputs), RATE):
        for j, x in enumerate(inputs[i : i + RATE]):
            found[j] = native.add(found[j], x)
        found = permutation(native, found)
    return found
