"""Small circuits of Midnight's chips, laid out, filled and held against the identities of their tables."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np

from gpuprover.backend import Form
from gpuprover.columns import compile_formula
from gpuprover.curves import BLS12_381
from gpuprover.devices import open_backend
from gpuprover.job import Job
from gpuprover.limbs import Words, words_to_ints
from gpuprover.midnight.architecture import Architecture
from gpuprover.midnight.circuit.native import Native, NativeOfFour
from gpuprover.midnight.circuit.synthesis import smallest_k
from gpuprover.midnight.circuit.table import PUBLIC, Cell, Layout, Table


class Laid:
    """A circuit in its table.

    Args:
        chips: those of its architecture.
        build: lays it out, and returns cells whose values are of interest.
        newer: whether the native chip is that of the newer line.
    """

    def __init__(
        self, chips: Collection[str], build: Callable[[Native], Sequence[Cell]], newer: bool = False
    ) -> None:
        table = Table(Architecture(frozenset(chips), 4 if newer else 1), 8)
        native = NativeOfFour(table) if newer else Native(table)
        self.cells = build(native)
        self.tape = table.tape
        self.layout: Layout = table.layout(smallest_k(table))

    def values(self, inputs: Sequence[int]) -> Words:
        """The tape's values, by the compiled machine."""
        return self.layout.values(inputs)

    def results(self, inputs: Sequence[int]) -> list[int]:
        """What the cells of interest hold."""
        return words_to_ints(self.values(inputs)[[cell.value for cell in self.cells]])

    def table(self, values: Words) -> Words:
        """Advice columns with these values, uint64[columns, n, 4]."""
        found = np.zeros((self.layout.system.advice, 1 << self.layout.k, 4), dtype=np.uint64)
        cells = self.layout.cells
        found[cells[:, 0], cells[:, 1]] = values[cells[:, 2]]
        return found

    def violations(self, advice: Words) -> list[str]:
        """Gates, lookups and copies that do not hold, in words; public inputs are what is tied to them."""
        system, job = self.layout.system, Job(threads=1)
        backend = open_backend("cpu", BLS12_381, job)
        words = {f"A{i}": column for i, column in enumerate(advice)}
        words |= {f"F{i}": column for i, column in enumerate(self.layout.fixed)}
        columns = {name: backend.upload(column, Form.CANONICAL) for name, column in words.items()}
        words[PUBLIC] = np.zeros_like(advice[0])
        for a, i, b, j in self.layout.copies:
            if b == PUBLIC:
                words[PUBLIC][j] = words[a][i]
        gates = [*system.gates]
        gates += [trash.selector * e for trash in system.trash for e in trash.constraints]
        sides = [side for lookup in system.lookups for side in lookup]
        wanted = [*gates, *(e for side in sides for e in side)]
        rows = [
            backend.download(v, Form.CANONICAL) for v in backend.evaluate(compile_formula(wanted), columns)
        ]
        found = [f"gate {i}" for i in range(len(gates)) if rows[i].any()]
        rest, usable = iter(rows[len(gates) :]), system.usable(self.layout.k)
        tuples = [{row.tobytes() for row in _beside([next(rest) for _ in side], usable)} for side in sides]
        found += [
            f"lookup {i}"
            for i, pair in enumerate(zip(tuples[::2], tuples[1::2], strict=True))
            if pair[0] - pair[1]
        ]
        for a, i, b, j in self.layout.copies:
            if (words[a][i] != words[b][j]).any():
                found.append(f"copy of {b}[{j}] in {a}[{i}]")
        return found


def _beside(columns: list[Words], rows: int) -> Words:
    return np.ascontiguousarray(np.concatenate([column[:rows] for column in columns], axis=1))
