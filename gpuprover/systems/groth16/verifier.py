"""The Groth16 verifier: one proof, or many at once.

e(π_a, π_b) = e(α, β)·e(Σ x_i·IC_i, γ)·e(π_c, δ), checked as one product of four pairings. The
lines of β, γ and δ are kept by the backend between calls. The pairing check looks at the subgroup of
π_b, too.

A batch draws random weights ρ of 127 bits and checks Π e(ρ_i·π_a,i, π_b,i) against the weighted
sums of the other three: n + 3 pairings with one final exponentiation (Bellare, Garay,
Rabin, "Fast batch verification for modular exponentiation and digital signatures", 1998,
small exponents test). A batch that fails is halved until the false proofs stand alone; the weights
stay, since no proof depends on them. What is done to points of G1, subgroup tests and multiples by weights,
is done to all of a batch at once.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from operator import mul
from typing import NamedTuple

import numpy as np

from gpuprover.backend import Backend, PointMath
from gpuprover.caching import Cache
from gpuprover.curves import Group
from gpuprover.errors import MalformedFile, UnsupportedFile
from gpuprover.formats.snarkjs_json import parse_public_signals
from gpuprover.limbs import Words, ints_to_words, negative
from gpuprover.systems.groth16.documents import Proof, VerificationKey, parse_proof

WEIGHT_BITS = 127
"""A false proof passes a check with odds of at most 2^−127; up to ten checks look at it."""
BATCH = 512
"""Proofs checked by one product; bounds the memory of a batch."""
BUCKETS = 256
"""Points from which on a sum is cheaper with buckets than with a multiple of each point."""
FEW_SIGNALS = 4
"""Up to so many public signals, double-and-add beats setting up buckets."""
MANY_SIGNALS = 1024
"""Up to so many, multiples of IC are kept with the key: 2 MB for BN254, 3 MB for BLS12-381."""
DIGIT_BITS = 8
KEYS = 64
"""Keys that are kept; each counts as one, whatever its size."""


class _Checked(NamedTuple):
    """A key whose points have been checked: β, γ and δ, and IC, as words.

    With ``digits`` > 1, ic[i·digits + j] is 2^(8j)·IC_i: then all bytes of all signals go into the same 255
    buckets.
    """

    g2: Words
    ic: Words
    digits: int


def _outside(source: str, role: str, part: str) -> MalformedFile:
    return MalformedFile(source, part, "the point is outside the subgroup of order r", role=role)


def _check_key(key: VerificationKey, points: PointMath, source: str) -> _Checked:
    g2 = np.stack([key.beta2, key.gamma2, key.delta2])
    bad = points.first_bad_point(Group.G2, g2)
    if bad >= 0:
        raise _outside(source, "verification key", ("vk_beta_2", "vk_gamma_2", "vk_delta_2")[bad])
    if points.first_bad_point(Group.G1, key.alpha1[None]) >= 0:
        raise _outside(source, "verification key", "vk_alpha_1")
    bad = points.first_bad_point(Group.G1, key.ic)
    if bad >= 0:
        raise _outside(source, "verification key", f"IC[{bad}]")
    return _Checked(g2, key.ic, 1)


def _shifted_multiples(points: Words, digits: int, math: PointMath) -> Words:
    """2^(8j)·points[i] at i·digits + j."""
    n, words = points.shape
    out = np.empty((n, digits, words), dtype=np.uint64)
    starts, columns = np.arange(n + 1), np.arange(n, dtype=np.uint32)
    factor = np.tile(ints_to_words([1 << DIGIT_BITS], math.curve.scalar.limbs), (n, 1))
    for j in range(digits):
        out[:, j] = points
        points = math.sparse_combination(Group.G1, points, starts, columns, factor)
    return out.reshape(-1, words)


_keys: Cache[VerificationKey, _Checked] = Cache(KEYS)


def _checked_key(key: VerificationKey, backend: Backend, source: str) -> _Checked:
    """The key, its points checked once. One that comes again gets its multiples of IC."""
    checked = _keys.get(key)
    if checked is None:
        checked = _check_key(key, backend.points, source)
    elif checked.digits == 1 and FEW_SIGNALS < key.n_public <= MANY_SIGNALS:
        digits = -(-key.curve.scalar.bits // DIGIT_BITS)
        checked = _Checked(checked.g2, _shifted_multiples(checked.ic, digits, backend.points), digits)
    else:
        return checked
    _keys.put(key, checked, 1)
    return checked


def _input_point(key: VerificationKey, checked: _Checked, scalars: Sequence[int], backend: Backend) -> Words:
    """Σ scalars[i]·IC_i for scalars in [0, r)."""
    if len(scalars) <= FEW_SIGNALS + 1:
        return backend.points.linear_combination(Group.G1, key.ic, scalars)
    words = ints_to_words(scalars, key.curve.scalar.limbs)
    if checked.digits > 1:
        words = words.astype("<u8").view(np.uint8)[:, : checked.digits].astype(np.uint64).reshape(-1, 1)
    return backend.msm(backend.prepare_bases(Group.G1, checked.ic), words)


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
    curve = key.curve
    checked = _checked_key(key, backend, key_source)
    bad = backend.points.first_bad_point(Group.G1, np.stack([proof.a, proof.c]))
    if bad >= 0:
        raise _outside(proof_source, "proof", ("pi_a", "pi_c")[bad])
    x = _input_point(key, checked, [1, *public], backend)
    g1 = np.stack([negative(curve, proof.a), key.alpha1, x, proof.c])
    b = proof.b[None]
    holds = backend.points.pairing_check(g1, np.concatenate([b, checked.g2]), fixed=len(checked.g2))
    if not holds and backend.points.first_bad_point(Group.G2, b) >= 0:
        raise _outside(proof_source, "proof", "pi_b")
    return holds


def verify_batch(
    key: VerificationKey, statements: Sequence[tuple[Sequence[int], Proof]], backend: Backend
) -> list[bool]:
    """For each (public signals, proof) whether it holds. A point outside its subgroup makes a proof false.

    Raises:
        MalformedFile: a point of the key lies outside its subgroup.
    """
    checked = _checked_key(key, backend, "verification key")
    results: list[bool] = []
    for start in range(0, len(statements), BATCH):
        results += _Batch(key, checked, statements[start : start + BATCH], backend).results()
    return results


def verify_documents(
    key: VerificationKey, statements: Sequence[tuple[object, object]], backend: Backend
) -> list[bool]:
    """As :func:`verify_batch`, for pairs of documents (public signals, proof); a damaged one is False."""
    good: list[tuple[int, tuple[list[int], Proof]]] = []
    for i, (signals, document) in enumerate(statements):
        try:
            public = parse_public_signals(signals, key.curve, key.n_public)
            good.append((i, (public, parse_proof(document, key.curve))))
        except (MalformedFile, UnsupportedFile):
            continue
    results = [False] * len(statements)
    holds = verify_batch(key, [statement for _, statement in good], backend)
    for (i, _), value in zip(good, holds, strict=True):
        results[i] = value
    return results


def _rows(points: Sequence[Words], words: int) -> Words:
    """Points uint64[words], perhaps none -> uint64[n, words]."""
    return np.array(points, dtype=np.uint64).reshape(-1, words)


class _Batch:
    """Proofs of one key under their weights, which serve every part of the batch that has to be checked."""

    def __init__(
        self,
        key: VerificationKey,
        checked: _Checked,
        statements: Sequence[tuple[Sequence[int], Proof]],
        backend: Backend,
    ) -> None:
        self._key, self._checked, self._backend = key, checked, backend
        self._all = len(statements)
        curve = key.curve
        # All of π_a, then all of π_c, so that both share what is done for many points at once.
        g1 = _rows([*(p.a for _, p in statements), *(p.c for _, p in statements)], curve.g1_words)
        outside = {i % self._all for i in self._outside(g1)}
        self._chosen = [i for i in range(self._all) if i not in outside]
        self._b = _rows([statements[i][1].b for i in self._chosen], curve.g2_words)
        self._public = [statements[i][0] for i in self._chosen]
        n = len(self._chosen)
        # One proof alone has nothing that it could cancel out with.
        self._weights = [1] if n == 1 else [secrets.randbits(WEIGHT_BITS) + 1 for _ in range(n)]
        weights = ints_to_words(self._weights, curve.scalar.limbs)
        points = g1[[*self._chosen, *(self._all + i for i in self._chosen)]]
        # Few π_c are multiplied with π_a; of many, buckets make sums under the weights.
        count = 2 * n if n < BUCKETS else n
        weighted = backend.points.sparse_combination(
            Group.G1,
            points[:count],
            np.arange(count + 1),
            np.arange(count, dtype=np.uint32),
            np.concatenate([weights, weights])[:count],
        )
        self._a = weighted[:n]
        if n < BUCKETS:
            self._c, self._c_factors = weighted[n:], ints_to_words([1] * n, curve.scalar.limbs)
        else:
            self._c, self._c_factors = points[n:], weights

    def _outside(self, points: Words) -> set[int]:
        """The points of G1 that are outside the subgroup."""
        found, ranges = set(), [(0, len(points))]
        while ranges:
            lo, hi = ranges.pop()
            bad = self._backend.points.first_bad_point(Group.G1, points[lo:hi])
            if bad >= 0:
                found.add(lo + bad)
                # The rest in halves: each point is then looked at a few times, however many are bad.
                first = lo + bad + 1
                middle = (first + hi) // 2
                ranges += [(i, j) for i, j in ((first, middle), (middle, hi)) if i < j]
        return found

    def results(self) -> list[bool]:
        """For each proof whether it holds."""
        holds = [False] * self._all
        for i, value in zip(self._chosen, self._part(0, len(self._chosen)), strict=True):
            holds[i] = value
        return holds

    def _part(self, lo: int, hi: int) -> list[bool]:
        self._backend.job.check()
        if lo == hi:
            return []
        holds = self._all_hold(lo, hi)
        if holds or hi - lo == 1:
            return [holds] * (hi - lo)
        middle = (lo + hi) // 2
        return self._part(lo, middle) + self._part(middle, hi)

    def _all_hold(self, lo: int, hi: int) -> bool:
        key, backend = self._key, self._backend
        curve, weights = key.curve, self._weights[lo:hi]
        sums = [sum(weights) % curve.r]
        for column in zip(*self._public[lo:hi], strict=True):
            sums.append(sum(map(mul, weights, column)) % curve.r)
        x = _input_point(key, self._checked, sums, backend)
        alpha = backend.points.linear_combination(Group.G1, key.alpha1[None], [sums[0]])
        c = self._sum_of_c(lo, hi)
        sides = [negative(curve, point) for point in (alpha, x, c)]
        g1 = np.concatenate([self._a[lo:hi], sides])
        g2 = np.concatenate([self._b[lo:hi], self._checked.g2])
        return backend.points.pairing_check(g1, g2, fixed=len(self._checked.g2))

    def _sum_of_c(self, lo: int, hi: int) -> Words:
        """Σ ρ_i·π_c,i for i in [lo, hi)."""
        backend, points, factors = self._backend, self._c[lo:hi], self._c_factors[lo:hi]
        if hi - lo >= BUCKETS:
            return backend.msm(backend.prepare_bases(Group.G1, points), factors)
        starts, columns = np.array([0, hi - lo]), np.arange(hi - lo, dtype=np.uint32)
        return backend.points.sparse_combination(Group.G1, points, starts, columns, factors).reshape(-1)
