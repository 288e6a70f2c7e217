"""A Poseidon sponge of width 3 by a kernel: about 20 µs for a permutation, and 10 µs for the call."""

from __future__ import annotations

from gpuprover.cpu.compiled import Kernels
from gpuprover.cpu.layout import Field
from gpuprover.curves import FieldParams
from gpuprover.limbs import Words, address

_kernels = Kernels("poseidon")


def sponge(field: FieldParams, state: Words, values: Words, constants: Words, full_rounds: int) -> Words:
    """The state after all values, two at a time, each pair followed by the permutation.

    Args:
        field: elements, of four words.
        state: canonical uint64[3, 4]; stays as it is.
        values: canonical uint64[n, 4], C-contiguous.
        constants: Montgomery uint64[3·rounds + 9, 4]: of each round, then the matrix by rows.
        full_rounds: rounds with three S-boxes; half of them come first.

    Returns:
        Canonical uint64[3, 4].
    """
    out = state.copy()
    _kernels.sponge(
        Field(field), address(out), address(values), len(values), address(constants),
        full_rounds // 2, len(constants) // 3 - 3,
    )  # fmt: skip
    return out
