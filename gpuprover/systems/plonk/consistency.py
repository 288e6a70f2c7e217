"""Whether all of a PLONK key belongs together, to a circuit and to powers of tau."""

from __future__ import annotations

import secrets

import numpy as np

from gpuprover.backend import Backend, Form, Vector
from gpuprover.commitments.powers import WEIGHT_BITS, Sums
from gpuprover.curves import Group
from gpuprover.formats.files import Pathish
from gpuprover.formats.zkey import HEADER
from gpuprover.plonkish import consistency as shared
from gpuprover.plonkish.consistency import KeyParts
from gpuprover.systems.plonk.documents import COMMITMENTS
from gpuprover.systems.plonk.key import LAGRANGE, POLYNOMIALS, POWERS, ProvingKey
from gpuprover.systems.plonk.setup import KEEP_ZEROS, RESERVED
from gpuprover.systems.system import KeyCheck


def check_whole_key(
    key: ProvingKey, circuit: Pathish | None, powers: Pathish | None, backend: Backend, budget: int | None
) -> KeyCheck:
    """All that can be looked at: the key by itself, beside its circuit, and beside powers of tau.

    Raises:
        MalformedFile: something does not belong together.
        OutOfMemory: it takes more than ``budget`` bytes.
    """
    key.check_header_points(backend)
    parts = KeyParts(
        path=key.path,
        file=key.file,
        curve=key.curve,
        wiring=key.wiring,
        coefficients=key.polynomials,
        sections=POLYNOMIALS,
        lagrange=LAGRANGE,
        powers=POWERS,
        points=key.powers,
        tau_g2=key.tau_g2,
        reserved=RESERVED,
        keep_zeros=KEEP_ZEROS,
        warnings=key.warnings,
    )
    fold = {name: 1 + secrets.randbits(WEIGHT_BITS) for name in COMMITMENTS}

    def check_commitments(folded: Vector) -> None:
        """One sum for all polynomials; only if it is wrong, one for each."""
        sums, points = Sums(backend), np.stack([key.commitments[name] for name in COMMITMENTS])
        expected = backend.points.linear_combination(Group.G1, points, [*fold.values()])
        if np.array_equal(sums.sum(Group.G1, key.powers[: len(folded)], folded), expected):
            return
        for name in COMMITMENTS:
            v = backend.upload(key.polynomials[name], Form.MONTGOMERY)
            found = sums.sum(Group.G1, key.powers[: len(folded)], v)
            backend.free(v)
            if not np.array_equal(found, key.commitments[name]):
                parts.refuse(HEADER, f"{name} is not the commitment to section {parts.section_of(name)}")

    checked, unchecked, warnings = shared.check_key(
        parts, circuit, powers, backend, budget, fold, check_commitments
    )
    return KeyCheck(tuple(checked), tuple(unchecked), tuple(warnings))
