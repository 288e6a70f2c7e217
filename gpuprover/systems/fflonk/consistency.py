"""Whether all of an FFLONK key belongs together, to a circuit and to powers of tau."""

from __future__ import annotations

import numpy as np

from gpuprover.backend import Backend, Vector
from gpuprover.commitments.powers import Sums
from gpuprover.curves import Group
from gpuprover.formats.files import Pathish
from gpuprover.formats.zkey import HEADER
from gpuprover.limbs import Words
from gpuprover.plonkish import consistency as shared
from gpuprover.plonkish.consistency import KeyParts, first_difference
from gpuprover.plonkish.key_writer import interleaved
from gpuprover.systems.fflonk.documents import RESERVED
from gpuprover.systems.fflonk.key import C0, LAGRANGE, POLYNOMIALS, POWERS, ProvingKey
from gpuprover.systems.fflonk.setup import IN_C0, KEEP_ZEROS, commitment
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
        tau_g2=key.vk.tau_g2,
        reserved=RESERVED,
        keep_zeros=KEEP_ZEROS,
        warnings=key.warnings,
    )

    sums = Sums(backend)

    def commit(v: Vector, first: int) -> Words:
        return sums.sum(Group.G1, key.powers[first : first + len(v)], v)

    def check_c0(_: Vector | None) -> None:
        in_c0 = [key.polynomials[name] for name in IN_C0]
        stored = key.file.view(C0).view("<u8").reshape(-1, key.curve.scalar.limbs)
        at = 0
        for block in interleaved(in_c0):
            some = stored[at : at + len(block)]
            row = first_difference(some, block[: len(some)])
            if row >= 0:
                parts.refuse(C0, f"coefficient {at + row} is not that of sections 7 to 14")
            # A shorter section leaves out the highest coefficients.
            if block[len(some) :].any():
                parts.refuse(C0, f"{len(stored)} coefficients, expected more: the next ones are not 0")
            at += len(block)
        if not np.array_equal(commitment(in_c0, commit, backend), key.vk.c0):
            parts.refuse(HEADER, "C0 is not the commitment to sections 7 to 14")

    checked, unchecked, warnings = shared.check_key(parts, circuit, powers, backend, budget, {}, check_c0)
    return KeyCheck(tuple(checked), tuple(unchecked), tuple(warnings))
