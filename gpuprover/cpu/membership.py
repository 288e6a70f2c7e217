"""Subgroup tests of many points: the multiples of :mod:`gpuprover.cpu.pairing`'s tests, many in step.

A test compares k·P, for one k of 64 to 128 bits, with the image of P under an endomorphism. With a
thousand points in step the multiple costs a tenth of what it does alone; for a few points the inversions
that they would share cost more than they save.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gpuprover.cpu.combine import Spare, multiply
from gpuprover.cpu.compiled import Kernels
from gpuprover.cpu.endomorphisms import fq2_words, g1_endomorphism, twist_frobenius
from gpuprover.cpu.msm import Points
from gpuprover.curves import CurveParams, Group
from gpuprover.job import Job
from gpuprover.limbs import address, field_to_words, ints_to_words

_kernels = Kernels("membership")

WORTHWHILE = 24
"""Points from which on the tests are quicker in step."""
_WORDS = 3
"""A window more than 128 bits."""


def subgroup_check_in_step(
    c: CurveParams, group: Group, points: Points, job: Job
) -> Callable[[tuple[int, int]], int]:
    """A function (lo, hi) -> first point on the curve but outside the subgroup, or −1; hi − lo <= PRODUCTS.

    G2: ψ(P) = (t − 1)·P, t the trace: with ψ² − tψ + q = 0 this gives (q + 1 − t)·P = #E(Fq)·P = 0, and
    #E(Fq) shares only r with the twist's order. G1, of a BLS12 curve: (βx, y) = −x²·P. Sources:
    :func:`gpuprover.cpu.pairing.subgroup_check`.
    """
    F, source = points.plain, points.words
    value = c.trace - 1 if group is Group.G2 else c.pairing.seed**2
    scalar, longest = ints_to_words([abs(value)], _WORDS), abs(value).bit_length()
    if group is Group.G2:
        constants = fq2_words(c, list(twist_frobenius(c)))
    else:
        constants = field_to_words(c.base, [g1_endomorphism(c)])
    spare = Spare(lambda: points.path.products(points.field))

    def check(bounds: tuple[int, int]) -> int:
        lo, hi = bounds
        multiples = np.empty((hi - lo, source.shape[1]), dtype=np.uint64)
        entries = np.arange(lo, hi, dtype=np.uint32)
        with spare.one() as space:
            multiply(space, points, entries, np.repeat(scalar, hi - lo, axis=0), longest, multiples, job)
        if group is Group.G1:
            return int(
                _kernels.first_other_g1(F, address(source), address(multiples), address(constants), lo, hi)
            )
        return int(
            _kernels.first_other_g2(
                F, address(source), address(multiples), address(constants), value < 0, lo, hi
            )
        )

    return check
