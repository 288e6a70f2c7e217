"""What FFLONK's prover and verifier compute alike, in integers: challenges, and what is divided by.

ξ = s^24 for the challenge s. Its eighth roots are s³·w8^i, its fourth roots s⁶·w4^i, its third roots s⁸·w3^i;
the third roots of ξω are s⁸·wr·w3^i. The committed polynomials C0, C1 and C2 are known on these sets, on
which M0 = X⁸ − ξ, M1 = X⁴ − ξ and M2 = (X³ − ξ)·(X³ − ξω) vanish.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

from gpuprover.commitments.kzg import Factor, powers, vanishing
from gpuprover.commitments.transcript import Keccak256Transcript
from gpuprover.limbs import Words
from gpuprover.polynomial import Domain
from gpuprover.systems.fflonk.documents import CURVE, Evaluations, VerificationKey


class Transcript:
    """The challenges of one proof, each from what it depends on. The methods are called in their order.

    Points are uint64[g1_words], public signals integers in [0, r).
    """

    def __init__(self) -> None:
        self._hash = Keccak256Transcript(CURVE)

    def beta_gamma(self, key: VerificationKey, public: Sequence[int], c1: Words) -> tuple[int, int]:
        """β and γ of the permutation."""
        self._hash.absorb_points(key.c0)
        self._hash.absorb_scalars(*public)
        self._hash.absorb_points(c1)
        beta = self._hash.challenge()
        self._hash.absorb_scalars(beta)
        return beta, self._hash.challenge()

    def seed(self, gamma: int, c2: Words) -> int:
        """s, of which ξ is a power."""
        self._hash.absorb_scalars(gamma)
        self._hash.absorb_points(c2)
        return self._hash.challenge()

    def alpha(self, seed: int, evaluations: Evaluations) -> int:
        """α, which folds the polynomials."""
        self._hash.absorb_scalars(seed, *evaluations)
        return self._hash.challenge()

    def y(self, alpha: int, w1: Words) -> int:
        """y, at which they are opened."""
        self._hash.absorb_scalars(alpha)
        self._hash.absorb_points(w1)
        return self._hash.challenge()


def point_of(seed: int) -> int:
    """ξ."""
    return pow(seed, 24, CURVE.r)


def sets(domain: Domain, xi: int) -> tuple[list[Factor], list[Factor], list[Factor]]:
    """M0, M1 and M2, as factors."""
    shifted = xi * domain.omega % CURVE.r
    return [Factor(8, xi)], [Factor(4, xi)], [Factor(3, xi), Factor(3, shifted)]


class Inverses(NamedTuple):
    """One over what a verifier divides by, mod r.

    Attributes:
        xi: 1/ξ.
        vanishing: 1/(ξ^n − 1).
        m1, m2: 1/M1(y), 1/M2(y).
        lagrange: 1/(n·(ξ − ω^i)) for i below the number of public signals, at least one.
    """

    xi: int
    vanishing: int
    m1: int
    m2: int
    lagrange: list[int]

    def weights(self, alpha: int, m0: int) -> list[int]:
        """1, α·M0(y)/M1(y) and α²·M0(y)/M2(y), by which C0, C1 and C2 are opened at y."""
        r = CURVE.r
        return [1, alpha * m0 * self.m1 % r, alpha**2 * m0 * self.m2 % r]


class Divisors:
    """What a verifier divides by, for ξ and y in [0, r).

    The inverse of their product is the proof's ``inv``. A contract divides by more: it interpolates point by
    point, on m points h·w^i of a set by m·h^(m−1)·w^(−i)·(y − h·w^i), and on those of M2 by ±(ξ − ξω) too.
    With h^m = x these multiply to a constant, a power of x and y^m − x, and all of it to

        −8⁸·4⁴·3⁶·ω²·(1 − ω)⁶ · ξ²⁰ · (ξ^n − 1) · M0·M1²·M2² · Π n·(ξ − ω^i)   with M0, M1, M2 at y.

    Attributes:
        m0: M0(y).
    """

    def __init__(self, key: VerificationKey, xi: int, y: int) -> None:
        r, domain = CURVE.r, key.domain
        n = domain.size
        self.m0, m1, m2 = (vanishing(factors, y, r) for factors in sets(domain, xi))
        rest = _constant(domain) * pow(xi, 19, r) * self.m0 * m1 * m2 % r
        lagrange = (n * (xi - root) % r for root in powers(domain.omega, max(1, key.n_public), r))
        self._factors = [rest, xi, pow(xi, n, r) - 1, m1, m2, *lagrange]
        self._products = list(accumulate(self._factors, lambda a, b: a * b % r))

    def inverse(self) -> int:
        """``inv``. Raises ValueError if a factor is 0, for which odds are about n/r."""
        inv: int = pow(self._products[-1], -1, CURVE.r)
        return inv

    def inverses(self, inv: int) -> Inverses | None:
        """Each inverse, from that of the product; None if it is not that."""
        r = CURVE.r
        if self._products[-1] * inv % r != 1:
            return None
        found = []
        for factor, product in zip(self._factors[:0:-1], self._products[-2::-1], strict=True):
            found.append(inv * product % r)
            inv = inv * factor % r
        xi, zh, m1, m2, *lagrange = reversed(found)
        return Inverses(xi, zh, m1, m2, lagrange)


@lru_cache(maxsize=64)
def _constant(domain: Domain) -> int:
    r, omega = CURVE.r, domain.omega
    return -(8**8) * 4**4 * 3**6 * omega**2 * pow(1 - omega, 6, r) % r
