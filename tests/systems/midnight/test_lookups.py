"""The order of permuted lookups."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from gpuprover.systems.midnight.lookups import NotInTable, permuted


def words(values: list[tuple[int, int]]) -> np.ndarray:
    """Elements of four words, of which two are given: the lowest and the highest."""
    return np.array([(low, 0, 0, high) for low, high in values], dtype=np.uint64).reshape(-1, 4)


def check(inputs: np.ndarray, table: np.ndarray) -> int:
    """Looks at what the argument shows; the number of rows where T' is not T."""
    a, t = permuted(inputs, table)
    rows = [Counter(row.tobytes() for row in x) for x in (inputs, a, table, t)]
    assert rows[0] == rows[1]
    assert rows[2] == rows[3]
    for i in range(len(a)):
        assert (a[i] == t[i]).all() or (i and (a[i] == a[i - 1]).all())
    return int((t != table).any(axis=1).sum())


@pytest.mark.parametrize("highs", [1, 3])
def test_random_lookups(highs: int, rng: random.Random) -> None:
    for n in (1, 2, 7, 64, 200):
        table = [(rng.randrange(40), rng.randrange(highs)) for _ in range(n)]
        inputs = [rng.choice(table) for _ in range(n)]
        check(words(inputs), words(table))


def test_a_table_that_is_looked_up_in_few_places_stays_mostly() -> None:
    table = words([(i, 0) for i in range(256)])
    inputs = words([(7 * (i % 3), 0) for i in range(256)])
    assert check(inputs, table) <= 6


@pytest.mark.parametrize("missing", [(5, 0), (3, 2)])
def test_an_input_that_is_not_in_the_table_is_named(missing: tuple[int, int]) -> None:
    table = [(i, i % 2) for i in range(4)] * 2
    inputs = [*table[:6], missing, missing]
    with pytest.raises(NotInTable, match="row 6") as caught:
        permuted(words(inputs), words(table))
    assert caught.value.row == 6
