"""The PLONK verifier: eprint 2019/953, section 8.3, as snarkjs has it.

A proof claims two openings: of the linearisation D + v·A + v²·B + … at ξ, and of Z at ξω. Both, and those
of many proofs at once, are checked under random weights of the verifier's own
(:mod:`gpuprover.commitments.kzg`), where snarkjs takes a hash of the proof.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gpuprover.backend import Backend
from gpuprover.caching import Cache
from gpuprover.commitments import kzg
from gpuprover.commitments.transcript import Keccak256Transcript
from gpuprover.curves import Group
from gpuprover.limbs import Words
from gpuprover.plonkish.verification import outside, parsed, public_part, vanishing_at
from gpuprover.systems.plonk.documents import COMMITMENTS, POINTS, Proof, VerificationKey, parse_proof

BATCH = 512
"""Proofs checked by one product; bounds the memory of a batch."""
KEYS = 64
"""Keys whose points are known to be in their subgroups."""

_keys: Cache[VerificationKey, bool] = Cache(KEYS)


class Challenges(NamedTuple):
    """What the transcript draws; with u left out, which only contracts need."""

    beta: int
    gamma: int
    alpha: int
    xi: int
    v: int


def first_challenges(
    key: VerificationKey, transcript: Keccak256Transcript, public: Sequence[int], wires: Words
) -> tuple[int, int]:
    """β and γ, from the commitments to the wires, uint64[3, g1_words]."""
    transcript.absorb_points(np.stack([key.commitments[name] for name in COMMITMENTS]))
    transcript.absorb_scalars(*public)
    transcript.absorb_points(wires)
    beta = transcript.challenge()
    transcript.absorb_scalars(beta)
    return beta, transcript.challenge()


def challenges(key: VerificationKey, public: Sequence[int], proof: Proof) -> Challenges:
    """The challenges of a proof."""
    transcript = Keccak256Transcript(key.curve)
    beta, gamma = first_challenges(key, transcript, public, proof.points[:3])
    transcript.absorb_scalars(beta, gamma)
    transcript.absorb_points(proof.point("Z"))
    alpha = transcript.challenge()
    transcript.absorb_scalars(alpha)
    transcript.absorb_points(proof.points[4:7])
    xi = transcript.challenge()
    transcript.absorb_scalars(xi, *proof.evaluations)
    return Challenges(beta, gamma, alpha, xi, transcript.challenge())


class Linearisation(NamedTuple):
    """What prover and verifier multiply polynomials and commitments with.

    Attributes:
        weights: factors of Qm, Ql, Qr, Qo, Qc, Z, S3, T1, T2, T3, A, B, C, S1, S2.
        value: what their sum is at ξ.
    """

    weights: tuple[int, ...]
    value: int


def linearisation(
    key: VerificationKey, c: Challenges, evaluations: Sequence[int], public: Sequence[int]
) -> Linearisation | None:
    """The opening at ξ; None where ξ is in the domain, so that nothing can be said."""
    r, n = key.curve.r, 1 << key.power
    a, b, o, s1, s2, zw = evaluations
    zh = vanishing_at(c.xi, n, r)
    if not zh:
        return None
    omega = key.curve.scalar.root_of_unity(key.power)
    first, pi = public_part(c.xi, zh, n, omega, public, r)
    e2 = (a + c.beta * c.xi + c.gamma) * (b + c.beta * key.k1 * c.xi + c.gamma) % r
    e2 = c.alpha * e2 * (o + c.beta * key.k2 * c.xi + c.gamma) % r
    e3 = c.alpha * (a + c.beta * s1 + c.gamma) * (b + c.beta * s2 + c.gamma) * zw % r
    e4 = c.alpha * c.alpha * first % r
    xi_n = (zh + 1) % r
    v = kzg.powers(c.v, 6, r)
    weights = (
        *(a * b % r, a, b, o, 1),
        (e2 + e4) % r,
        -e3 * c.beta % r,
        *(-zh % r, -zh * xi_n % r, -zh * xi_n * xi_n % r),
        *v[1:],
    )
    constant = pi - e3 * (o + c.gamma) - e4
    opened = sum(x * y for x, y in zip(v[1:], (a, b, o, s1, s2), strict=True))
    return Linearisation(weights, (opened - constant) % r)


def _openings(key: VerificationKey, public: Sequence[int], proof: Proof) -> list[kzg.Opening] | None:
    """What the proof claims, or None for one that cannot hold."""
    c = challenges(key, public, proof)
    found = linearisation(key, c, proof.evaluations, public)
    if found is None:
        return None
    k, r = key.commitments, key.curve.r
    committed = [
        *(k[name] for name in ("Qm", "Ql", "Qr", "Qo", "Qc")),
        proof.point("Z"),
        k["S3"],
        *(proof.point(name) for name in ("T1", "T2", "T3", "A", "B", "C")),
        *(k[name] for name in ("S1", "S2")),
    ]
    shifted = c.xi * key.curve.scalar.root_of_unity(key.power) % r
    return [
        kzg.Opening(np.stack(committed), found.weights, c.xi, found.value, proof.point("Wxi")),
        kzg.Opening(proof.point("Z")[None], (1,), shifted, proof.evaluations[-1], proof.point("Wxiw")),
    ]


def _check_key(key: VerificationKey, backend: Backend, source: str) -> None:
    if _keys.get(key) is not None:
        return
    points = np.stack([key.commitments[name] for name in COMMITMENTS])
    bad = backend.points.first_bad_point(Group.G1, points)
    if bad >= 0:
        raise outside(source, "verification key", COMMITMENTS[bad])
    if backend.points.first_bad_point(Group.G2, key.tau_g2[None]) >= 0:
        raise outside(source, "verification key", "X_2")
    _keys.put(key, True, 1)


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
    _check_key(key, backend, key_source)
    bad = backend.points.first_bad_point(Group.G1, proof.points)
    if bad >= 0:
        raise outside(proof_source, "proof", POINTS[bad])
    openings = _openings(key, public, proof)
    return openings is not None and kzg.check(backend.points, key.tau_g2, openings)


def verify_batch(
    key: VerificationKey, statements: Sequence[tuple[Sequence[int], Proof]], backend: Backend
) -> list[bool]:
    """For each (public signals, proof) whether it holds. A point outside its subgroup makes a proof false.

    Raises:
        MalformedFile: a point of the key lies outside its subgroup.
    """
    _check_key(key, backend, "verification key")
    results = [False] * len(statements)
    for start in range(0, len(statements), BATCH):
        claims: list[tuple[int, list[kzg.Opening]]] = []
        for i, (public, proof) in enumerate(statements[start : start + BATCH], start):
            backend.job.check()
            if backend.points.first_bad_point(Group.G1, proof.points) >= 0:
                continue
            openings = _openings(key, public, proof)
            if openings is not None:
                claims.append((i, openings))
        holds = kzg.check_each(backend.points, key.tau_g2, [openings for _, openings in claims])
        for (i, _), value in zip(claims, holds, strict=True):
            results[i] = value
    return results


def verify_documents(
    key: VerificationKey, statements: Sequence[tuple[object, object]], backend: Backend
) -> list[bool]:
    """As :func:`verify_batch`, for pairs of documents (public signals, proof); a damaged one is False."""
    good = list(parsed(key.curve, key.n_public, statements, parse_proof))
    results = [False] * len(statements)
    holds = verify_batch(key, [statement for _, statement in good], backend)
    for (i, _), value in zip(good, holds, strict=True):
        results[i] = value
    return results
