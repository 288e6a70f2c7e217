"""The verifier, alone and in batches, on keys and proofs that a simulator made from secrets it knows."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from gpuprover.backend import Backend
from gpuprover.caching import Cache
from gpuprover.cpu import membership
from gpuprover.curves import CurveParams, Group
from gpuprover.devices import open_backend
from gpuprover.errors import MalformedFile
from gpuprover.job import Job
from gpuprover.limbs import Words
from gpuprover.systems.groth16 import verifier
from gpuprover.systems.groth16.documents import Proof, VerificationKey
from tests.support.samples import (
    curve_point,
    field_edges,
    has_cofactor,
    plain,
    point_words,
    row,
    spec,
    whole_order,
)

Statement = tuple[list[int], Proof]


@dataclass(frozen=True)
class Simulator:
    """A key whose secrets are known, so that any statement has proofs."""

    backend: Backend
    alpha: int
    beta: int
    gamma: int
    delta: int
    ic: list[int]

    @property
    def curve(self) -> CurveParams:
        return self.backend.curve

    def _times(self, group: Group, k: int) -> Words:
        return self.backend.points.linear_combination(group, point_words(self.curve, group, [1]), [k])

    def key(self) -> VerificationKey:
        g2 = [self._times(Group.G2, k) for k in (self.beta, self.gamma, self.delta)]
        ic = np.stack([self._times(Group.G1, k) for k in self.ic])
        return VerificationKey(self.curve, self._times(Group.G1, self.alpha), *g2, ic)

    def rest(self, public: list[int]) -> int:
        """What the right side holds besides C, as a logarithm."""
        x = self.ic[0] + sum(p * k for p, k in zip(public, self.ic[1:], strict=True))
        return self.alpha * self.beta + x * self.gamma

    def prove(self, public: list[int], a: int, b: int) -> Statement:
        """The proof with these logarithms of A and B."""
        c = (a * b - self.rest(public)) * pow(self.delta, -1, self.curve.r)
        return public, Proof(
            self._times(Group.G1, a), self._times(Group.G2, b), self._times(Group.G1, c % self.curve.r)
        )


def simulator(curve: CurveParams, rng: random.Random, n_public: int) -> Simulator:
    backend = open_backend("cpu", curve, Job(threads=2))
    secrets = [rng.randrange(1, curve.r) for _ in range(4)]
    return Simulator(backend, *secrets, [rng.randrange(1, curve.r) for _ in range(n_public + 1)])


def statements(s: Simulator, rng: random.Random, n: int) -> list[Statement]:
    r = s.curve.r
    signals = [rng.randrange(r) for _ in range(n * (len(s.ic) - 1))]
    rows = [signals[i::n] for i in range(n)]
    return [s.prove(row, rng.randrange(1, r), rng.randrange(1, r)) for row in rows]


def shifted(curve: CurveParams, group: Group, words: Words, by: Any) -> Words:
    """A point uint64[words] plus one of the whole curve in plain integers."""
    return row(curve, group, spec(curve, group).add(plain(curve, group, words), by))


def outside_g2(curve: CurveParams, rng: random.Random) -> dict[str, Any]:
    E = spec(curve, Group.G2)
    any_point = curve_point(curve, Group.G2, rng)
    cofactor = whole_order(curve, Group.G2) // curve.r
    return {
        "any": any_point,
        "in the cofactor's part": E.scalar_mul(any_point, curve.r),
        "of order 10069 or 13": E.scalar_mul(
            any_point, curve.r * (cofactor // (10069 if curve.pairing.family == "BN" else 13))
        ),
    }


def test_one_bad_proof_at_each_position(curve: CurveParams, rng: random.Random) -> None:
    s = simulator(curve, rng, 2)
    key, good = s.key(), statements(s, rng, 7)
    assert verifier.verify_batch(key, good, s.backend) == [True] * 7
    public, proof = good[0]
    bad: list[Statement] = [
        ([(public[0] + 1) % curve.r, public[1]], proof),
        (public, replace(proof, a=proof.c)),
        (public, replace(proof, b=key.beta2)),
        (public, replace(proof, c=np.zeros_like(proof.c))),
    ]
    for i in range(7):
        statement = bad[i % len(bad)]
        assert not verifier.verify(key, *statement, s.backend)
        batch = [*good[:i], statement, *good[i + 1 :]]
        assert verifier.verify_batch(key, batch, s.backend) == [k != i for k in range(7)]


def test_points_of_g2_outside_the_subgroup(curve: CurveParams, rng: random.Random) -> None:
    s = simulator(curve, rng, 1)
    key, good = s.key(), statements(s, rng, 3)
    for name, point in outside_g2(curve, rng).items():
        if point is None:
            continue
        for public, proof in good:
            for b in (row(curve, Group.G2, point), shifted(curve, Group.G2, proof.b, point)):
                with pytest.raises(MalformedFile, match=r"pi_b.*subgroup"):
                    verifier.verify(key, public, replace(proof, b=b), s.backend)
        for i in range(3):
            batch = list(good)
            public, proof = good[i]
            batch[i] = (public, replace(proof, b=shifted(curve, Group.G2, proof.b, point)))
            assert verifier.verify_batch(key, batch, s.backend) == [k != i for k in range(3)], name
        for part in ("beta2", "gamma2", "delta2"):
            with pytest.raises(MalformedFile, match=rf"vk_{part[:-1]}_2.*subgroup"):
                outside: Any = {part: row(curve, Group.G2, point)}
                verifier.verify(replace(key, **outside), *good[0], s.backend)


def test_points_of_g1_outside_the_subgroup(curve: CurveParams, rng: random.Random) -> None:
    if not has_cofactor(curve, Group.G1):
        return
    s = simulator(curve, rng, 1)
    key, good = s.key(), statements(s, rng, 4)
    E = spec(curve, Group.G1)
    small = E.scalar_mul(curve_point(curve, Group.G1, rng), curve.r)
    for part in ("a", "c"):
        batch = list(good)
        for i in (1, 3):
            public, proof = good[i]
            point = shifted(curve, Group.G1, getattr(proof, part), small)
            batch[i] = (public, replace(proof, **{part: point}))
            with pytest.raises(MalformedFile, match=rf"pi_{part}.*subgroup"):
                verifier.verify(key, *batch[i], s.backend)
        assert verifier.verify_batch(key, batch, s.backend) == [True, False, True, False]


def test_batches_with_many_points_outside_g1(curve: CurveParams, rng: random.Random) -> None:
    """In batches that are tested in step: at each position, and everywhere."""
    if not has_cofactor(curve, Group.G1):
        return
    n = membership.WORTHWHILE // 2 + 1
    s = simulator(curve, rng, 1)
    key, good = s.key(), statements(s, rng, n)
    E = spec(curve, Group.G1)
    small = E.scalar_mul(curve_point(curve, Group.G1, rng), curve.r)
    bad = [
        (public, replace(proof, **{part: shifted(curve, Group.G1, getattr(proof, part), small)}))
        for i, (public, proof) in enumerate(good)
        for part in ("ac"[i % 2],)
    ]
    for i in range(n):
        batch = [*good[:i], bad[i], *good[i + 1 :]]
        assert verifier.verify_batch(key, batch, s.backend) == [k != i for k in range(n)]
    assert verifier.verify_batch(key, bad, s.backend) == [False] * n
    assert verifier.verify_batch(key, [*bad[:-1], good[-1]], s.backend) == [False] * (n - 1) + [True]


@pytest.mark.parametrize("n", [1, 2, 5, 9, 30])
def test_sizes_of_batches(curve: CurveParams, rng: random.Random, n: int) -> None:
    """One proof goes without a weight, few go one by one, more in step."""
    s = simulator(curve, rng, 1)
    key, good = s.key(), statements(s, rng, n)
    assert verifier.verify_batch(key, good, s.backend) == [True] * n
    for i in {0, n // 2, n - 1}:
        public, proof = good[i]
        for statement in (
            ([(public[0] + 1) % curve.r], proof),
            (public, replace(proof, a=key.alpha1)),
            (public, replace(proof, c=proof.a)),
            (public, replace(proof, b=row(curve, Group.G2, curve_point(curve, Group.G2, rng)))),
        ):
            batch = [*good[:i], statement, *good[i + 1 :]]
            assert verifier.verify_batch(key, batch, s.backend) == [k != i for k in range(n)]


def test_sums_with_buckets(curve: CurveParams, rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a batch that are long enough for buckets, and shorter ones under the same weights."""
    monkeypatch.setattr(verifier, "BUCKETS", 4)
    s = simulator(curve, rng, 1)
    key, good = s.key(), statements(s, rng, 9)
    assert verifier.verify_batch(key, good, s.backend) == [True] * 9
    for i in range(9):
        public, proof = good[i]
        batch = [*good[:i], (public, replace(proof, c=proof.a)), *good[i + 1 :]]
        assert verifier.verify_batch(key, batch, s.backend) == [k != i for k in range(9)]


def test_false_proofs_do_not_cancel_out(curve: CurveParams, rng: random.Random) -> None:
    """Two proofs whose errors are opposite, and would go unseen in a sum without weights."""
    s = simulator(curve, rng, 1)
    key, good = s.key(), statements(s, rng, 8)
    E = spec(curve, Group.G1)
    batch = list(good)
    error = plain(curve, Group.G1, key.alpha1)
    for i, by in ((2, error), (6, E.neg(error))):
        public, proof = good[i]
        batch[i] = (public, replace(proof, c=shifted(curve, Group.G1, proof.c, by)))
    assert verifier.verify_batch(key, batch, s.backend) == [k not in (2, 6) for k in range(8)]


def test_infinity_in_proofs(curve: CurveParams, rng: random.Random) -> None:
    """Simulated proofs may have it; beside it, π_b is looked at all the same."""
    r = curve.r
    s = simulator(curve, rng, 1)
    key, public = s.key(), [rng.randrange(r)]
    _, no_a = s.prove(public, 0, rng.randrange(1, r))
    _, no_b = s.prove(public, rng.randrange(1, r), 0)
    _, no_c = s.prove(public, s.rest(public), 1)
    assert not any(point.any() for point in (no_a.a, no_b.b, no_c.c))
    good: list[Statement] = [(public, proof) for proof in (no_a, no_b, no_c)]
    for statement in good:
        assert verifier.verify(key, *statement, s.backend)
    assert verifier.verify_batch(key, good, s.backend) == [True] * 3
    outside = row(curve, Group.G2, curve_point(curve, Group.G2, rng))
    hidden: Statement = (public, replace(no_a, b=outside))
    with pytest.raises(MalformedFile, match=r"pi_b.*subgroup"):
        verifier.verify(key, *hidden, s.backend)
    assert verifier.verify_batch(key, [*good, hidden], s.backend) == [True, True, True, False]
    nothing = Proof(*(np.zeros_like(point) for point in (no_a.a, no_a.b, no_a.c)))
    assert not verifier.verify(key, public, nothing, s.backend)
    assert verifier.verify_batch(key, [good[0], (public, nothing)], s.backend) == [True, False]


@pytest.mark.parametrize("n_public", [0, 1, verifier.FEW_SIGNALS, verifier.FEW_SIGNALS + 1, 40])
def test_numbers_of_signals(curve: CurveParams, rng: random.Random, n_public: int) -> None:
    """A key's first use, and later ones, for which many signals have multiples of IC."""
    s = simulator(curve, rng, n_public)
    key = s.key()
    for _ in range(4):
        public = [rng.choice([*field_edges(curve.r), rng.randrange(curve.r)]) for _ in range(n_public)]
        _, proof = s.prove(public, 3, rng.randrange(1, curve.r))
        assert verifier.verify(key, public, proof, s.backend)
        for i in {0, n_public // 2, n_public - 1} if n_public else ():
            other = [*public]
            other[i] = (other[i] + 1) % curve.r
            assert not verifier.verify(key, other, proof, s.backend)


def test_batches_in_parts(curve: CurveParams, rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    s = simulator(curve, rng, 1)
    key, good = s.key(), statements(s, rng, 11)
    monkeypatch.setattr(verifier, "BATCH", 4)
    bad = [3, 4, 10]
    batch = [
        (public, replace(p, c=np.zeros_like(p.c)) if i in bad else p) for i, (public, p) in enumerate(good)
    ]
    assert verifier.verify_batch(key, batch, s.backend) == [i not in bad for i in range(11)]


def test_a_key_serves_every_backend(curve: CurveParams, rng: random.Random) -> None:
    """What is kept of a key holds no backend's handles."""
    s = simulator(curve, rng, 6)
    key, [(public, proof)] = s.key(), statements(s, rng, 1)
    for _ in range(2):
        assert verifier.verify(key, public, proof, s.backend)
    other = open_backend("reference", curve, Job())
    kept = verifier._keys.get(key)
    assert kept is not None
    assert verifier._checked_key(key, other, "key") is kept
    x = [verifier._input_point(key, kept, [1, *public], b) for b in (s.backend, other)]
    assert np.array_equal(x[0], x[1])


def test_so_many_keys_are_kept_as_are_allowed(
    curve: CurveParams, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those used last; a key with a bad point is none of them."""
    kept: Cache[Any, Any] = Cache(2)
    monkeypatch.setattr(verifier, "_keys", kept)
    s = simulator(curve, rng, 1)
    first = s.key()
    second, third = (replace(first, gamma2=first.delta2), replace(first, delta2=first.gamma2))
    for key in (first, second, first, third):
        verifier._checked_key(key, s.backend, "key")
    assert [key for key in (first, second, third) if kept.get(key) is not None] == [first, third]
    bad = replace(first, beta2=row(curve, Group.G2, curve_point(curve, Group.G2, rng)))
    with pytest.raises(MalformedFile, match="vk_beta_2"):
        verifier._checked_key(bad, s.backend, "key")
    assert kept.get(bad) is None
