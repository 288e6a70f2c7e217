"""The Groth16 verifier: one proof, or many at once.

e(π_a, π_b) = e(α, β)·e(Σ x_i·IC_i, γ)·e(π_c, δ), checked as one product of four pairings. The
lines of β, γ and δ are kept by the backend between calls.

A batch draws 128-bit random weights ρ and checks Π e(ρ_i·π_a,i, π_b,i) against the weighted
sums of the other three: n + 3 pairings with one final exponentiation (Bellare, Garay,
Rabin, "Fast batch verification for modular exponentiation and digital signatures", 1998,
small exponents test). A batch that fails is halved until the false proofs stand alone.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Sequence

from gpuprover.backend import Backend, Group
from gpuprover.curves import AffineG1, CurveParams
from gpuprover.errors import MalformedFile
from gpuprover.formats.groth16_json import Proof, VerificationKey
from gpuprover.limbs import Words, g1_to_words, g2_to_words, ints_to_words

WEIGHT_BITS = 128
BATCH = 128
"""Proofs checked by one product; bounds the memory of a batch."""
FEW_SIGNALS = 4
"""Up to so many public signals, double-and-add beats setting up buckets."""


class _KeyCache:
    """Keys whose points have been checked, with their IC as words."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: dict[VerificationKey, Words] = {}
        self._lock = threading.Lock()

    def get(self, key: VerificationKey, backend: Backend, source: str) -> Words:
        """The key's IC as words, after a check of all of its points."""
        with self._lock:
            ic = self._entries.pop(key, None)
        if ic is None:
            ic = _checked_ic(key, backend, source)
        with self._lock:
            self._entries[key] = ic
            while len(self._entries) > self._size:
                del self._entries[next(iter(self._entries))]
        return ic


def _checked_ic(key: VerificationKey, backend: Backend, source: str) -> Words:
    curve = key.curve
    ic = g1_to_words(curve, key.ic)
    names = ["vk_beta_2", "vk_gamma_2", "vk_delta_2"]
    bad = backend.first_bad_point(Group.G2, g2_to_words(curve, [key.beta2, key.gamma2, key.delta2]))
    if bad >= 0:
        raise MalformedFile(source, names[bad], "the point is outside the subgroup of order r")
    if backend.first_bad_point(Group.G1, g1_to_words(curve, [key.alpha1])) >= 0:
        raise MalformedFile(source, "vk_alpha_1", "the point is outside the subgroup of order r")
    bad = backend.first_bad_point(Group.G1, ic)
    if bad >= 0:
        raise MalformedFile(source, f"IC[{bad}]", "the point is outside the subgroup of order r")
    return ic


_keys = _KeyCache(64)


def _negative(curve: CurveParams, point: AffineG1) -> AffineG1:
    return None if point is None else (point[0], -point[1] % curve.q)


def _check_subgroups(proofs: Sequence[Proof], backend: Backend, sources: Sequence[str]) -> None:
    """Raises MalformedFile for the first proof with a point outside its subgroup."""
    curve = backend.curve
    g1 = g1_to_words(curve, [point for proof in proofs for point in (proof.a, proof.c)])
    bad = backend.first_bad_point(Group.G1, g1)
    if bad >= 0:
        part = ("pi_a", "pi_c")[bad % 2]
        raise MalformedFile(sources[bad // 2], part, "the point is outside the subgroup of order r")
    bad = backend.first_bad_point(Group.G2, g2_to_words(curve, [proof.b for proof in proofs]))
    if bad >= 0:
        raise MalformedFile(sources[bad], "pi_b", "the point is outside the subgroup of order r")


def _input_point(key: VerificationKey, ic: Words, scalars: Sequence[int], backend: Backend) -> AffineG1:
    """Σ scalars[i]·IC_i."""
    if len(scalars) <= FEW_SIGNALS + 1:
        return backend.linear_combination(Group.G1, key.ic, scalars)  # type: ignore[return-value]
    words = ints_to_words(scalars, key.curve.scalar.limbs)
    return backend.msm(backend.prepare_bases(Group.G1, ic), words)  # type: ignore[return-value]


def verify(
    key: VerificationKey,
    public: Sequence[int],
    proof: Proof,
    backend: Backend,
    *,
    key_source: str = "verification key",
    proof_source: str = "proof",
) -> bool:
    """Whether the proof holds for the public signals (integers in [0, r), n_public of them).

    Raises:
        MalformedFile: a point of key or proof lies outside its subgroup.
    """
    curve = key.curve
    ic = _keys.get(key, backend, key_source)
    _check_subgroups([proof], backend, [proof_source])
    x = _input_point(key, ic, [1, *public], backend)
    return backend.pairing_check(
        [_negative(curve, proof.a), key.alpha1, x, proof.c], [proof.b, key.beta2, key.gamma2, key.delta2]
    )


def verify_batch(
    key: VerificationKey, statements: Sequence[tuple[Sequence[int], Proof]], backend: Backend
) -> list[bool]:
    """For each (public signals, proof) whether it holds. A point outside its subgroup makes a proof false.

    Raises:
        MalformedFile: a point of the key lies outside its subgroup.
    """
    ic = _keys.get(key, backend, "verification key")
    results: list[bool] = []
    for start in range(0, len(statements), BATCH):
        results += _verify_part(key, ic, statements[start : start + BATCH], backend)
    return results


def _verify_part(
    key: VerificationKey, ic: Words, statements: Sequence[tuple[Sequence[int], Proof]], backend: Backend
) -> list[bool]:
    if not statements:
        return []
    backend.job.check()
    try:
        _check_subgroups([proof for _, proof in statements], backend, ["proof"] * len(statements))
        holds = _batch_holds(key, ic, statements, backend)
    except MalformedFile:
        holds = False
    if holds or len(statements) == 1:
        return [holds] * len(statements)
    half = len(statements) // 2
    return _verify_part(key, ic, statements[:half], backend) + _verify_part(
        key, ic, statements[half:], backend
    )


def _batch_holds(
    key: VerificationKey, ic: Words, statements: Sequence[tuple[Sequence[int], Proof]], backend: Backend
) -> bool:
    curve = key.curve
    r = curve.r
    weights = [secrets.randbits(WEIGHT_BITS) | 1 for _ in statements]
    sums = [sum(weights) % r]
    for i in range(key.n_public):
        sums.append(sum(w * public[i] for w, (public, _) in zip(weights, statements, strict=True)) % r)
    x = _input_point(key, ic, sums, backend)
    proofs = [proof for _, proof in statements]
    words = ints_to_words(weights, curve.scalar.limbs)
    c = backend.msm(backend.prepare_bases(Group.G1, g1_to_words(curve, [p.c for p in proofs])), words)
    alpha = backend.linear_combination(Group.G1, [key.alpha1], [sums[0]])
    weighted = [
        _negative(curve, backend.linear_combination(Group.G1, [p.a], [w]))  # type: ignore[arg-type]
        for p, w in zip(proofs, weights, strict=True)
    ]
    g1: list[AffineG1] = [*weighted, alpha, x, c]  # type: ignore[list-item]
    return backend.pairing_check(g1, [*(p.b for p in proofs), key.beta2, key.gamma2, key.delta2])
