"""Tapes by a kernel: the values of a circuit's table, about 0.1 µs for an operation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gpuprover.cpu import layout
from gpuprover.cpu.compiled import Kernels
from gpuprover.cpu.layout import Field
from gpuprover.curves import FieldParams
from gpuprover.limbs import Words, address

_kernels, _vector = Kernels("tape"), Kernels("vector")


def run(params: FieldParams, code: NDArray[np.int64], pool: Words, tables: Words, values: Words) -> None:
    """See :func:`gpuprover.devices.run_tape`."""
    if not values.flags.c_contiguous or not tables.flags.c_contiguous:
        raise ValueError("expected contiguous words")
    F = Field(params)
    factors = np.array(pool, dtype=np.uint64, order="C")
    pool = np.ascontiguousarray(pool)
    _kernels.check(code, len(values), len(pool))
    _vector.convert(F, layout.TO_MONTGOMERY, address(factors), address(factors), 0, len(factors))
    flat = tables.reshape(-1)
    _kernels.run(
        F, code, address(pool), address(factors), flat, address(flat), values.reshape(-1), address(values),
    )  # fmt: skip
