"""PLONK's verifier: proofs of snarkjs, and everything that can be changed in them."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gpuprover.backend import Backend
from gpuprover.caching import Cache
from gpuprover.curves import BLS12_381, BN254, CurveParams, Group
from gpuprover.devices import open_backend
from gpuprover.errors import MalformedFile
from gpuprover.job import Job
from gpuprover.limbs import negative
from gpuprover.plonkish.verification import public_part, vanishing_at
from gpuprover.systems.plonk import verifier
from gpuprover.systems.plonk.documents import (
    EVALUATIONS,
    POINTS,
    Proof,
    parse_proof,
    parse_verification_key,
    sample_proof,
)
from tests.support.plonk import PLONK, Sample, sample
from tests.support.samples import curve_point, to_words


def cpu(curve: CurveParams) -> Backend:
    return open_backend("cpu", curve, Job(threads=1))


class Case:
    """A proof that holds."""

    def __init__(self, given: Sample) -> None:
        self.key = parse_verification_key(given.verification_key)
        self.public = [int(x) for x in given.public]
        self.proof = parse_proof(given.proof, given.curve)
        self.backend = cpu(given.curve)

    def holds(self, proof: Proof | None = None, public: list[int] | None = None) -> bool:
        public = self.public if public is None else public
        return verifier.verify(self.key, public, proof or self.proof, self.backend)


@pytest.fixture(scope="module")
def quirks() -> Case:
    return Case(sample("quirks"))


@pytest.mark.parametrize("name", PLONK)
def test_own_proofs(name: str) -> None:
    given = sample(name)
    case, expected = Case(given), given.challenges
    found = verifier.challenges(case.key, case.public, case.proof)
    assert found._asdict() == {name: expected[name] for name in found._fields}
    assert case.holds()
    if case.public:
        assert not case.holds(public=[*case.public[:-1], (case.public[-1] + 1) % given.curve.r])


def test_proofs_of_snarkjs(data_dir: Path) -> None:
    folder = data_dir / "plonk" / "fixed"
    keys = sorted(folder.rglob("*.plonk.vkey.json"))
    assert len(keys) > 8
    for path in keys:
        name = path.name.removesuffix(".plonk.vkey.json")
        assert Case(Sample(path.parent, name, "plonk")).holds(), path


@pytest.mark.slow
def test_the_reference_agrees() -> None:
    """Pairings by definition take a second each."""
    case = Case(sample("one-gate"))
    case.backend = open_backend("reference", BN254, Job())
    assert case.holds()
    first, *rest = case.proof.evaluations
    assert not case.holds(replace(case.proof, evaluations=(first + 1, *rest)))


def test_every_change_of_a_point(quirks: Case, rng: random.Random) -> None:
    points = quirks.proof.points
    random_point = to_words(BN254, Group.G1, [curve_point(BN254, Group.G1, rng)])[0]
    for i, name in enumerate(POINTS):
        other = points[(i + 1) % len(points)]
        for row in (other, negative(BN254, points[i]), np.zeros_like(points[i]), random_point):
            changed = points.copy()
            changed[i] = row
            assert not quirks.holds(replace(quirks.proof, points=changed)), name


@pytest.mark.parametrize("i", range(len(EVALUATIONS)))
def test_every_change_of_a_value(i: int, quirks: Case) -> None:
    values = [*quirks.proof.evaluations]
    for value in ((values[i] + 1) % BN254.r, 0, values[(i + 1) % len(values)]):
        changed = [*values]
        changed[i] = value
        assert not quirks.holds(replace(quirks.proof, evaluations=tuple(changed)))


def test_public_signals_belong_to_the_proof(quirks: Case) -> None:
    public = quirks.public
    for other in ([*public[1:], public[0]], [0] * 3, [(x + 1) % BN254.r for x in public]):
        assert not quirks.holds(public=other)


def test_samples_and_other_keys(quirks: Case) -> None:
    assert not quirks.holds(sample_proof(quirks.key))
    other = parse_verification_key(sample("adds").verification_key)
    k = quirks.key
    for key in (
        replace(k, commitments={**k.commitments, "S3": other.commitments["S3"]}),
        replace(k, power=6),
        replace(k, k1=5),
        replace(k, tau_g2=sample_tau()),
    ):
        assert not verifier.verify(key, quirks.public, quirks.proof, quirks.backend)


def sample_tau() -> np.ndarray:
    return to_words(BN254, Group.G2, [BN254.group(Group.G2).generator])[0]


def test_a_challenge_in_the_domain(quirks: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would divide by 0: the proof is false."""
    monkeypatch.setattr(
        verifier, "challenges", lambda *_: verifier.Challenges(2, 3, 4, BN254.scalar.root_of_unity(5), 6)
    )
    assert not quirks.holds()


def test_lagrange_polynomials_at_a_point(rng: random.Random) -> None:
    """Against their definition: the polynomial that is 1 at one root of unity and 0 at the others."""
    r, n = BN254.r, 8
    omega, xi = BN254.scalar.root_of_unity(3), rng.randrange(BN254.r)

    def lagrange(i: int) -> int:
        value = 1
        for j in range(n):
            if j != i:
                value = value * (xi - pow(omega, j, r)) * pow(pow(omega, i, r) - pow(omega, j, r), -1, r) % r
        return value

    for count in (0, 1, 5):
        public = [rng.randrange(r) for _ in range(count)]
        first, pi = public_part(xi, vanishing_at(xi, n, r), n, omega, public, r)
        assert first == lagrange(0)
        assert pi == -sum(x * lagrange(i) for i, x in enumerate(public)) % r


def test_points_outside_their_subgroup(rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    """snarkjs looks at no subgroup: a point of a small order would pass."""
    monkeypatch.setattr(verifier, "_keys", Cache(4))
    case = Case(sample("bls-small"))
    outside = to_words(BLS12_381, Group.G1, [curve_point(BLS12_381, Group.G1, rng)])[0]
    for i, name in enumerate(POINTS):
        points = case.proof.points.copy()
        points[i] = outside
        with pytest.raises(MalformedFile, match=f"{name}: the point is outside the subgroup") as caught:
            case.holds(replace(case.proof, points=points))
        assert caught.value.role == "proof"
        assert verifier.verify_batch(
            case.key,
            [(case.public, replace(case.proof, points=points)), (case.public, case.proof)],
            case.backend,
        ) == [False, True]
    monkeypatch.setattr(verifier, "_keys", Cache(4))
    g2 = to_words(BLS12_381, Group.G2, [curve_point(BLS12_381, Group.G2, rng)])[0]
    for key, name in (
        (replace(case.key, tau_g2=g2), "X_2"),
        (replace(case.key, commitments={**case.key.commitments, "Qr": outside}), "Qr"),
    ):
        with pytest.raises(MalformedFile, match=f"{name}: the point is outside the subgroup") as caught:
            verifier.verify(key, case.public, case.proof, case.backend)
        assert caught.value.role == "verification key"


def test_batches(quirks: Case, rng: random.Random) -> None:
    good = (sample("quirks").public, sample("quirks").proof)
    public, document = good
    first = EVALUATIONS[0]
    bad = [
        (public, {**document, first: str((int(document[first]) + 1) % BN254.r)}),
        ([*public[:-1], str((int(public[-1]) + 1) % BN254.r)], document),
        (public[:-1], document),
        (public, {**document, first: str(int(document[first]) + BN254.r)}),
        (public, {**document, "A": ["1", "1", "1"]}),
        (public, {}),
        (None, document),
    ]
    statements = [good, *bad, good, good]
    rng.shuffle(statements)
    expected = [statement is good for statement in statements]
    assert verifier.verify_documents(quirks.key, statements, quirks.backend) == expected
    assert verifier.verify_documents(quirks.key, [], quirks.backend) == []
