"""The FFLONK verifier: one proof, or many at once.

A proof is one opening: C0 + q1·C1 + q2·C2 − M0(y)·f has the value R0(y) + q1·R1(y) + q2·R2(y) at y, where
R0, R1 and R2 are what C0, C1 and C2 leave mod M0, M1 and M2, known from the evaluations
(:mod:`gpuprover.systems.fflonk.rounds`), q1 = α·M0(y)/M1(y) and q2 = α²·M0(y)/M2(y). T0(ξ), T1(ξ) and T2(ξ)
are not in the proof: they follow from the circuit's identities, which so are checked. Source: Gabizon and
Williamson, "fflonk: a Fast-Fourier inspired verifier efficient version of PlonK", eprint 2021/1167.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from gpuprover.backend import Backend, PointMath
from gpuprover.caching import Cache
from gpuprover.commitments import kzg
from gpuprover.commitments.kzg import Opening
from gpuprover.curves import Group
from gpuprover.limbs import Words, generator
from gpuprover.plonkish.verification import outside, parsed
from gpuprover.polynomial import Domain
from gpuprover.systems.fflonk.documents import (
    CURVE,
    POLYNOMIALS,
    Evaluations,
    Proof,
    VerificationKey,
    parse_proof,
)
from gpuprover.systems.fflonk.rounds import Divisors, Inverses, Transcript, point_of

BATCH = 512
"""Proofs checked by one pairing; bounds the memory of a batch."""
KEYS = 64
"""Keys that are known to be sound."""

_sound: Cache[VerificationKey, bool] = Cache(KEYS)


def _check_key(key: VerificationKey, points: PointMath, source: str) -> None:
    """Raises MalformedFile for a point outside its subgroup; looks at a key once."""
    if _sound.get(key):
        return
    for name, group, point in (("X_2", Group.G2, key.tau_g2), ("C0", Group.G1, key.c0)):
        if points.first_bad_point(group, point[None]) >= 0:
            raise outside(source, "verification key", name)
    _sound.put(key, True, 1)


def verify(
    key: VerificationKey,
    public: Sequence[int],
    proof: Proof,
    backend: Backend,
    key_source: str = "verification key",
    proof_source: str = "proof",
) -> bool:
    """Whether the proof holds for the public signals (integers in [0, r), n_public of them).

    Raises:
        MalformedFile: a point of key or proof lies outside its subgroup.
    """
    points = backend.points
    _check_key(key, points, key_source)
    bad = points.first_bad_point(Group.G1, proof.points)
    if bad >= 0:
        raise outside(proof_source, "proof", f"polynomials.{POLYNOMIALS[bad]}")
    opening = claim(key, public, proof)
    return opening is not None and kzg.check(points, key.tau_g2, [opening])


def verify_batch(
    key: VerificationKey, statements: Sequence[tuple[Sequence[int], Proof]], backend: Backend
) -> list[bool]:
    """For each (public signals, proof) whether it holds. A point outside its subgroup makes a proof false.

    Raises:
        MalformedFile: a point of the key lies outside its subgroup.
    """
    points = backend.points
    _check_key(key, points, "verification key")
    results = [False] * len(statements)
    for start in range(0, len(statements), BATCH):
        claims: list[tuple[int, list[Opening]]] = []
        for i, (public, proof) in enumerate(statements[start : start + BATCH], start):
            backend.job.check()
            if points.first_bad_point(Group.G1, proof.points) < 0 and (opening := claim(key, public, proof)):
                claims.append((i, [opening]))
        holds = kzg.check_each(points, key.tau_g2, [claimed for _, claimed in claims])
        for (i, _), value in zip(claims, holds, strict=True):
            results[i] = value
    return results


def verify_documents(
    key: VerificationKey, statements: Sequence[tuple[object, object]], backend: Backend
) -> list[bool]:
    """As :func:`verify_batch`, for pairs of documents (public signals, proof); a damaged one is False."""
    good = list(parsed(CURVE, key.n_public, statements, parse_proof))
    results = [False] * len(statements)
    holds = verify_batch(key, [statement for _, statement in good], backend)
    for (i, _), value in zip(good, holds, strict=True):
        results[i] = value
    return results


class _Challenges(NamedTuple):
    beta: int
    gamma: int
    xi: int
    alpha: int
    y: int


def _challenges(key: VerificationKey, public: Sequence[int], proof: Proof) -> _Challenges:
    c1, c2, w1, _ = proof.points
    transcript = Transcript()
    beta, gamma = transcript.beta_gamma(key, public, c1)
    seed = transcript.seed(gamma, c2)
    alpha = transcript.alpha(seed, proof.evaluations)
    return _Challenges(beta, gamma, point_of(seed), alpha, transcript.y(alpha, w1))


def sample_proof(key: VerificationKey) -> Proof:
    """The generator and ones in place of a proof's points and values.

    For public signals that are all 0 its ``inv`` is right, so that a verifier goes all the way.
    """
    points = np.tile(generator(CURVE, Group.G1), (len(POLYNOMIALS), 1))
    proof = Proof(points, Evaluations(*[1] * len(Evaluations._fields)), 0)
    drawn = _challenges(key, [0] * key.n_public, proof)
    return replace(proof, inv=Divisors(key, drawn.xi, drawn.y).inverse())


def claim(key: VerificationKey, public: Sequence[int], proof: Proof) -> Opening | None:
    """The opening that a proof consists of; None for a proof whose ``inv`` is wrong, which does not hold.

    A challenge for which a divisor is 0 has no ``inv``; odds are about n/r.
    """
    drawn = _challenges(key, public, proof)
    divisors = Divisors(key, drawn.xi, drawn.y)
    inverses = divisors.inverses(proof.inv)
    if inverses is None:
        return None
    weights = inverses.weights(drawn.alpha, divisors.m0)
    rests = _remainders(key, public, proof.evaluations, drawn, inverses)
    value = sum(weight * rest for weight, rest in zip(weights, rests, strict=True)) % CURVE.r
    commitments: Words = np.concatenate([key.c0[None], proof.points[:3]])
    return Opening(commitments, [*weights, -divisors.m0], drawn.y, value, proof.points[3])


def _remainders(
    key: VerificationKey,
    public: Sequence[int],
    at: Evaluations,
    drawn: _Challenges,
    inverses: Inverses,
) -> tuple[int, int, int]:
    """R0(y), R1(y) and R2(y)."""
    r, domain, k = CURVE.r, key.domain, key.constants
    beta, gamma, xi, y = drawn.beta, drawn.gamma, drawn.xi, drawn.y
    a, b, c, z = at.a, at.b, at.c, at.z
    roots = kzg.powers(domain.omega, key.n_public, r)
    signals = zip(public, roots, inverses.lagrange[: key.n_public], strict=True)
    inputs = sum(x * root % r * inverse for x, root, inverse in signals)
    gate = at.ql * a + at.qr * b + at.qm * a % r * b + at.qo * c + at.qc
    # L_i(ξ) is (ξ^n − 1)·ω^(i−1)/(n·(ξ − ω^(i−1))).
    t0 = gate * inverses.vanishing - inputs
    t1 = (z - 1) * inverses.lagrange[0]
    shift = beta * xi
    before = (a + shift + gamma) * (b + k.k1 * shift + gamma) % r * (c + k.k2 * shift + gamma) % r
    after = (a + beta * at.s1 + gamma) * (b + beta * at.s2 + gamma) % r * (c + beta * at.s3 + gamma) % r
    t2 = (before * z - after * at.zw) * inverses.vanishing
    r0 = kzg.value((at.ql, at.qr, at.qo, at.qm, at.qc, at.s1, at.s2, at.s3), y, r)
    r1 = kzg.value((a, b, c, t0), y, r)
    # Mod X³ − x, z(X³) + X·T1(X³) + X²·T2(X³) has the coefficients z(x), T1(x), T2(x): for x = ξ and x = ξω,
    # between which R2 is linear in X³.
    here, there = kzg.value((z, t1, t2), y, r), kzg.value((at.zw, at.t1w, at.t2w), y, r)
    slope = (there - here) * inverses.xi % r * _inverse_of_step(domain)
    return r0, r1, (here + slope * (pow(y, 3, r) - xi)) % r


@lru_cache(maxsize=KEYS)
def _inverse_of_step(domain: Domain) -> int:
    """1/(ω − 1)."""
    return pow(domain.omega - 1, -1, CURVE.r)
