"""Why a proof does not hold: the first gate or copy constraint that a table breaks.

Lookups are looked at when their order is found (:mod:`.lookups`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gpuprover.backend import Backend, Form, Vector
from gpuprover.columns import compile_formula
from gpuprover.curves import BLS12_381
from gpuprover.limbs import ints_to_words
from gpuprover.midnight.constraint_system import delta_power
from gpuprover.midnight.constraint_system import domain as domain_of
from gpuprover.systems.midnight.argument import COMMITTED_INSTANCE, PUBLIC_INSTANCE, Argument

if TYPE_CHECKING:
    from gpuprover.systems.midnight.key import ProvingKey
    from gpuprover.systems.midnight.witness import Statement

_LIMBS = BLS12_381.scalar.limbs


def padded(backend: Backend, values: Sequence[int], n: int) -> Vector:
    """A column of n rows: the values, in [0, r), and zeros behind them."""
    words = np.zeros((n, _LIMBS), dtype=np.uint64)
    if values:
        words[: len(values)] = ints_to_words(values, _LIMBS)
    return backend.upload(words)


def broken_identity(
    key: ProvingKey, witness: Statement, public: Sequence[int], backend: Backend
) -> str | None:
    """The first gate or copy constraint that a table breaks, in words; None if there is none.

    Lookups have been looked at when their order was found.
    """
    shape, n = key.vk.argument, key.constraints
    usable = shape.system.usable(key.key.k)
    rows = {name: backend.upload(words, Form.MONTGOMERY) for name, words in key.parts.values.items()}
    for name, words in zip(shape.advice, witness.advice, strict=True):
        rows[name] = backend.upload(np.where(np.arange(n)[:, None] < usable, words, np.uint64(0)))
    rows[PUBLIC_INSTANCE] = padded(backend, public, n)
    try:
        gates = shape.system.gates
        terms = [*gates, *(trash.selector * c for trash in shape.system.trash for c in trash.constraints)]
        for i, term in enumerate(terms):
            (values,) = backend.evaluate(compile_formula([term]), rows)
            wrong = np.flatnonzero(backend.download(values)[:usable].any(axis=1))
            backend.free(values)
            if len(wrong):
                what = f"gate {i}" if i < len(gates) else f"trash constraint {i - len(gates)}"
                return f"{what} does not hold on row {int(wrong[0])}"
        return _broken_copy(shape, key, rows, backend)
    finally:
        backend.free(*rows.values())


def _broken_copy(
    shape: Argument, key: ProvingKey, rows: Mapping[str, Vector], backend: Backend
) -> str | None:
    """The first cell that differs from the one that σ leads to."""
    n, columns = key.constraints, shape.system.permutation
    values = [
        np.zeros((n, _LIMBS), dtype=np.uint64)
        if name == COMMITTED_INSTANCE
        else backend.download(rows[name], Form.MONTGOMERY)
        for name in columns
    ]
    omega = domain_of(key.key.k).omega
    places: dict[bytes, tuple[int, int]] = {}
    for j in range(len(columns)):
        position = backend.powers(n, omega, delta_power(j))
        words = backend.download(position, Form.MONTGOMERY)
        backend.free(position)
        places |= {row.tobytes(): (j, i) for i, row in enumerate(words)}
    for j, name in enumerate(columns):
        for i, row in enumerate(key.parts.values[f"S{j}"]):
            to = places.get(row.tobytes())
            if to is not None and to != (j, i) and not np.array_equal(values[j][i], values[to[0]][to[1]]):
                return f"row {i} of column {name} differs from row {to[1]} of column {columns[to[0]]}"
    return None
