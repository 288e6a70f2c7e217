"""Keys of a circuit, made from its instructions and the network's parameters."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gpuprover.backend import Backend, Form
from gpuprover.curves import Group
from gpuprover.limbs import Words
from gpuprover.midnight.circuit.synthesis import choose, layout_of
from gpuprover.midnight.circuit.table import Layout
from gpuprover.midnight.ir.circuit import Circuit
from gpuprover.midnight.ir.files import architecture_of, n_public, profile_of, write_circuit
from gpuprover.midnight.keys import ProverKey, VerifierKey, write_prover_key, write_verifier_key
from gpuprover.midnight.srs import Srs


class Size(NamedTuple):
    """The size of a circuit's table.

    Attributes:
        k: the logarithm of the number of rows.
        max_bit_len: bits of the largest entries of its range table.
    """

    k: int
    max_bit_len: int


class Keys(NamedTuple):
    """Both files of a circuit."""

    prover: bytes
    verifier: bytes


def size_of(circuit: Circuit) -> Size:
    """The smallest table that the circuit fits.

    Raises:
        UnsupportedFile: an operation or a type that cannot be proven here, or more rows than there are
            parameters for.
    """
    return Size(*choose(circuit))


def keys(circuit: Circuit, srs: Srs, backend: Backend) -> Keys:
    """The ``.prover`` and the ``.verifier`` file, byte for byte as the network's tools write them.

    Args:
        srs: parameters of as many rows as :func:`size_of` says.

    Raises:
        UnsupportedFile: see :func:`size_of`.
        ValueError: parameters of another size.
    """
    k, max_bit_len = size_of(circuit)
    if srs.k != k:
        raise ValueError(f"parameters of 2^{srs.k} rows for a circuit of 2^{k}")
    layout, profile = layout_of(circuit, k, max_bit_len), profile_of(circuit)
    fixed, sigma = committed(layout, srs, backend)
    proving = ProverKey(
        profile=profile,
        max_bit_len=max_bit_len,
        k=k,
        circuit=write_circuit(circuit),
        fixed_commitments=fixed[0],
        permutation_commitments=sigma[0],
        fixed=fixed[1],
        permutation=sigma[1],
        source=circuit.path,
    )
    verifying = VerifierKey(
        profile=profile,
        architecture=architecture_of(circuit),
        max_bit_len=max_bit_len,
        n_public=n_public(circuit),
        k=k,
        fixed=fixed[0],
        permutation=sigma[0],
        source=circuit.path,
    )
    return Keys(write_prover_key(proving), write_verifier_key(verifying))


def committed(layout: Layout, srs: Srs, backend: Backend) -> list[tuple[Words, Words]]:
    """(commitments, columns in Montgomery form) of the fixed columns, and of σ."""
    bases = backend.prepare_bases(Group.G1, srs.lagrange)
    found = []
    for columns in (layout.fixed, layout.sigma):
        sums = backend.msm_many([([bases], column) for column in columns])
        stored = []
        for column in columns:
            values = backend.upload(column)
            stored.append(backend.download(values, Form.MONTGOMERY))
            backend.free(values)
        found.append((np.array([point for (point,) in sums], dtype=np.uint64), np.array(stored)))
    backend.free(bases)
    return found
