"""Powers of τ as a ceremony or a set-up leaves them, and checks of many points by sums under random weights.

That every point lies in its group says nothing of what it is a point of. Sums under weights of 128 bits do:
what passes is wrong with odds of 2^−120 or so (Bellare, Garay, Rabin, "Fast batch verification for modular
exponentiation and digital signatures", 1998, small exponents test).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import numpy as np

from gpuprover.backend import Backend, Vector
from gpuprover.curves import CurveParams, Group
from gpuprover.limbs import Words, generator, words_to_ints

WEIGHT_BITS = 128
"""Bits of a random weight: whole words of 64."""
_SMALL = 1 << 14
"""Secrets up to this, of either sign, are found by trying all."""
_BLOCK = 1 << 16
_FEW = 256
"""Points of which a sum is computed as they stand, without the buckets of a long one."""

NO_POWERS = (
    "tau, alpha or beta of {path} is 1 or another known number: nobody has contributed to this ceremony, "
    "and anyone can forge proofs for a key that is made from it"
)
UNCLAIMED = (
    "{path} names no contribution: if nobody contributed, whoever made it can forge proofs for a key that "
    "is made from it"
)


def random_weights(count: int, curve: CurveParams) -> Words:
    """Random integers of 128 bits: uint64[count, limbs]."""
    filled = WEIGHT_BITS // 64
    words = np.zeros((count, curve.scalar.limbs), dtype=np.uint64)
    random = np.frombuffer(secrets.token_bytes(8 * filled * count), dtype="<u8")
    words[:, :filled] = random.reshape(count, filled)
    return words


class Sums:
    """Sums of points under weights, and products of pairings.

    Attributes:
        curve: the backend's curve.
        backend: what computes them.
        g1, g2: the generators, uint64[words].
    """

    def __init__(self, backend: Backend) -> None:
        self.curve, self.backend = backend.curve, backend
        self.g1, self.g2 = (generator(self.curve, group) for group in (Group.G1, Group.G2))
        self._done, self._of = 0, 1

    def sum(self, group: Group, points: Words, scalars: Words | Vector) -> Words:
        """Σ scalars[i]·points[i] for canonical scalars, or a vector."""
        if len(points) <= _FEW:
            words = scalars if isinstance(scalars, np.ndarray) else self.backend.download(scalars)
            return self.backend.points.linear_combination(group, points, words_to_ints(words))
        bases = self.backend.prepare_bases(group, points, 0)
        with self.backend.job.subphase(min(self._done, self._of - 1), self._of):
            result = self.backend.msm(bases, scalars)
        self._done += 1
        self.backend.free(bases)
        self.backend.job.check()
        return result

    @contextmanager
    def phase(self, name: str, sums: int) -> Iterator[None]:
        """A phase of so many sums, for its progress."""
        self._done, self._of = 0, sums
        with self.backend.job.phase(name):
            yield

    def times(self, point: Words, factor: int) -> Words:
        """factor·point in G1."""
        return self.backend.points.linear_combination(Group.G1, point[None], [factor])

    def equal(self, left: Sequence[tuple[Words, Words]], right: Sequence[tuple[Words, Words]]) -> bool:
        """Whether the products of e(p, q) over both sides are equal."""
        pairs = [*left, *((self.times(p, -1), q) for p, q in right)]
        g1, g2 = zip(*pairs, strict=True)
        return self.backend.points.pairing_check(np.stack(g1), np.stack(g2))


def check_powers(
    points: Words, tau_g2: Words, backend: Backend, refuse: Callable[[Group, str], NoReturn]
) -> None:
    """Whether points are τ^i·G1 for the τ of τ·G2.

    Args:
        points: uint64[n, g1_words], at least two; they may be any words.
        tau_g2: uint64[g2_words], any words.
        refuse: raises for points of a group that are not what they should be, and for the reason.
    """
    curve, sums = backend.curve, Sums(backend)
    with backend.job.phase("check powers of tau"):
        if backend.points.first_bad_point(Group.G2, tau_g2[None]) >= 0:
            refuse(Group.G2, "tau is off the curve, outside the subgroup or out of range")
        if not tau_g2.any():
            refuse(Group.G2, "tau is 0, which no ceremony gives")
        for start in range(0, len(points), _BLOCK):
            some = points[start : start + _BLOCK]
            bad = backend.points.first_bad_point(Group.G1, some)
            if bad >= 0:
                at = start + bad
                refuse(Group.G1, f"point {at} is off the curve, outside the subgroup or out of range")
            backend.job.report(start / len(points) / 2)
        if not np.array_equal(points[0], sums.g1):
            refuse(Group.G1, "point 0 is not the generator")
        w = random_weights(len(points) - 1, curve)
        lower, upper = (sums.sum(Group.G1, some, w) for some in (points[:-1], points[1:]))
        if not sums.equal([(upper, sums.g2)], [(lower, tau_g2)]):
            refuse(Group.G1, "not the powers of one tau, that of the point in G2")


def is_root_of_unity(powers: Words, curve: CurveParams) -> bool:
    """Whether the τ of τ^i·G1, uint64[n, g1_words], is ±1 or a root of unity of order 2^k, 2^k < n."""
    x = powers[:, : curve.base.limbs]
    # τ^(2^k) = ±1 shows at one of the places 1, 2, 4, ...; what follows are squares.
    places = [1 << k for k in range(len(x).bit_length()) if 1 << k < len(x)]
    return bool((x[places] == x[:1]).all(axis=1).any())


def are_small(points: Sequence[Words], backend: Backend) -> list[bool]:
    """For points in G1, uint64[g1_words], whether their logarithm is a small number, of either sign."""
    curve = backend.curve
    numbers = np.zeros((_SMALL, curve.scalar.limbs), dtype=np.uint64)
    numbers[:, 0] = np.arange(1, _SMALL + 1)
    multiples = backend.fixed_base_mul(Group.G1, generator(curve, Group.G1), numbers)
    x = multiples[:, : curve.base.limbs]
    return [bool((x == point[: curve.base.limbs]).all(axis=1).any()) for point in points]
