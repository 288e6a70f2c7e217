"""Permuted lookups: the order of inputs and table by which a lookup is shown.

A' is a permutation of the inputs with equal values side by side, T' one of the table with T'_i = A'_i on the
first row of each run of equal values. Source: "The halo2 Book", lookup argument. Elsewhere any order will do:
T' stays what T is wherever it can, so that their difference is short.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gpuprover.limbs import Words


class NotInTable(ValueError):
    """An input is not in the table.

    Attributes:
        row: the first such row.
    """

    def __init__(self, row: int) -> None:
        super().__init__(f"row {row}: the input is not in the table")
        self.row = row


def permuted(inputs: Words, table: Words) -> tuple[Words, Words]:
    """A' and T' of as many inputs as the table has rows: uint64[u, limbs], in any form that is unique.

    Raises:
        NotInTable: an input is not in the table.
    """
    order = _sorted(inputs)
    a = inputs[order]
    first = np.ones(len(a), dtype=bool)
    first[1:] = (a[1:] != a[:-1]).any(axis=1)
    runs = a[first]

    rows = _sorted(table)
    t = table[rows]
    at = _found(runs, t)
    if (at < 0).any():
        missing = {row.tobytes() for row in runs[at < 0]}
        raise NotInTable(next(i for i, row in enumerate(inputs) if row.tobytes() in missing))
    # Rows of the table whose values begin no run, in place where no run begins; the others fill the rest.
    free = np.ones(len(t), dtype=bool)
    free[rows[at]] = False
    permuted_table = table.copy()
    permuted_table[first] = runs
    permuted_table[~first & ~free] = table[first & free]
    return a, permuted_table


def _sorted(values: Words) -> NDArray[np.intp]:
    """An order in which equal rows are neighbours: by the lowest word, or by all where two share it."""
    order = np.argsort(values[:, 0], kind="stable")
    ordered = values[order]
    same = ordered[1:, 0] == ordered[:-1, 0]
    if (same & (ordered[1:] != ordered[:-1]).any(axis=1)).any():
        # Two values share their lowest word: seldom among folded values, common among others.
        return np.lexsort(values.T[::-1])
    return order


def _found(wanted: Words, values: Words) -> NDArray[np.intp]:
    """For each of the sorted, distinct rows the first equal one among sorted rows, or −1."""
    low = np.searchsorted(values[:, 0], wanted[:, 0], side="left")
    at = np.minimum(low, len(values) - 1)
    found = np.where((values[at] == wanted).all(axis=1), at, -1)
    for i in np.flatnonzero(found < 0):
        high = np.searchsorted(values[:, 0], wanted[i, 0], side="right")
        equal = np.flatnonzero((values[low[i] : high] == wanted[i]).all(axis=1))
        if len(equal):
            found[i] = low[i] + equal[0]
    return found
