"""Why a proof does not hold: the first gate that a witness breaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn

import numpy as np

from gpuprover.backend import Backend, Form
from gpuprover.columns import column, compile_formula
from gpuprover.errors import MalformedFile, UnsatisfiedWitness
from gpuprover.formats.wtns import Witness
from gpuprover.limbs import Words
from gpuprover.plonkish import wires
from gpuprover.plonkish.key import Wiring, domain_of
from gpuprover.polynomial import Coset

SELECTORS = ("Qm", "Ql", "Qr", "Qo", "Qc")
"""Polynomials of the gates: of a·b, a, b, c, and the constants."""

GATE = (
    column("a") * column("b") * column("Qm")
    + column("a") * column("Ql")
    + column("b") * column("Qr")
    + column("c") * column("Qo")
    + column("Qc")
)
"""What is 0 on every row, once Qc has the public signals taken away."""
_GATE = compile_formula([GATE + column("PI")])


def broken_gate(
    wiring: Wiring, selectors: Mapping[str, Words], w: Words, public: Sequence[int], backend: Backend
) -> int | None:
    """The first row whose gate does not hold, or None.

    Args:
        selectors: coefficients, Montgomery uint64[n, limbs], of :data:`SELECTORS`.
        w: the witness, canonical uint64[n_vars, limbs].
        public: the public signals.
    """
    sizes = wiring.sizes
    domain = domain_of(backend.curve, sizes)
    found = dict(zip("abc", wires.columns(wiring, w, backend), strict=True))
    padded = np.zeros((sizes.domain_size, backend.curve.scalar.limbs), dtype=np.uint64)
    for name in SELECTORS:
        coefficients = backend.upload(selectors[name], Form.MONTGOMERY)
        (found[name],) = backend.extend(coefficients, domain, [Coset.NONE])
        backend.free(coefficients)
    short = wires.public_column(public, backend)
    padded[: len(public)] = backend.download(short)
    found["PI"] = backend.upload(padded)
    (rest,) = backend.evaluate(_GATE, found)
    wrong = np.flatnonzero(backend.download(rest).any(axis=1))
    backend.free(rest, short, *found.values())
    return int(wrong[0]) if len(wrong) else None


def raise_why(
    path: str,
    wiring: Wiring,
    selectors: Mapping[str, Words],
    witness: Witness,
    public: Sequence[int],
    backend: Backend,
) -> NoReturn:
    """Why a proof with a key whose points are good does not hold.

    Raises:
        UnsatisfiedWitness: names the first gate that the witness breaks.
        MalformedFile: there is none, so that the key's parts do not belong together.
    """
    with backend.job.phase("check gates"), wires.indices_of(path):
        row = broken_gate(wiring, selectors, witness.values, public, backend)
    if row is not None:
        raise UnsatisfiedWitness(
            f"the witness does not satisfy the circuit: gate {row} of {wiring.sizes.gates} does not hold",
            path=witness.source,
            role="witness",
            more=f"of {path}; no proof was made",
        )
    raise MalformedFile(
        path,
        "polynomials",
        "every gate holds, but the proof does not: the permutation or the commitments belong to another "
        "circuit (gpuprover zkey check tells which); no proof was made",
        role="key",
    )
