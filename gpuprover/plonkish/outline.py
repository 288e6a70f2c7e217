"""Sizes of a key that a set-up would make, from its circuit's gates."""

from __future__ import annotations

from gpuprover.backend import Backend
from gpuprover.curves import CurveParams
from gpuprover.formats.r1cs import R1CS
from gpuprover.plonkish.gates import SELECTORS, gates_of
from gpuprover.plonkish.key import COLUMNS, Sizes, addition_dtype, polynomial_bytes
from gpuprover.plonkish.setup import domain_for


def sizes_of(r1cs: R1CS, keep_zeros: bool, reserved: int, backend: Backend) -> Sizes:
    """The sizes of a circuit's key.

    Args:
        keep_zeros: see :func:`~gpuprover.plonkish.gates.gates_of`.
        reserved: rows at the end of the domain that belong to no gate.

    Raises:
        UnsupportedFile: its domain would be larger than keys can be over this curve.
    """
    gates = gates_of(r1cs, keep_zeros, backend)
    n = domain_for(r1cs, gates.count, reserved).size
    return Sizes(gates.n_vars, gates.n_public, n, gates.additions, gates.count)


def key_bytes(curve: CurveParams, sizes: Sizes, sections: int, powers: int, rest: int) -> int:
    """Bytes of a key's file.

    Args:
        sections: the number of its sections.
        powers: the number of its points τ^i·G1.
        rest: bytes of what one system's header and sections have beyond the other's.
    """
    header = sum(4 + field.bytes for field in (curve.base, curve.scalar)) + 5 * 4 + 2 * curve.scalar.bytes
    polynomials = len(SELECTORS) + len(COLUMNS) + max(1, sizes.n_public)
    return (
        12
        + 12 * sections
        + 4
        + header
        + sizes.additions * addition_dtype(curve).itemsize
        + len(COLUMNS) * 4 * sizes.gates
        + polynomials * polynomial_bytes(curve, sizes.domain_size)
        + powers * 8 * curve.g1_words
        + rest
    )
