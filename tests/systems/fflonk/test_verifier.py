"""FFLONK's verifier: proofs of snarkjs, and everything that can be changed in them."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpuprover.backend import Backend
from gpuprover.caching import Cache
from gpuprover.curves import BN254, Group
from gpuprover.devices import open_backend
from gpuprover.errors import MalformedFile
from gpuprover.job import Job
from gpuprover.limbs import negative
from gpuprover.systems.fflonk import verifier
from gpuprover.systems.fflonk.documents import (
    POLYNOMIALS,
    Evaluations,
    Proof,
    VerificationKey,
    parse_proof,
    parse_verification_key,
    proof_to_json,
)
from gpuprover.systems.fflonk.rounds import Transcript
from gpuprover.systems.fflonk.verifier import sample_proof
from tests.support.plonk import FFLONK, Sample, sample
from tests.support.samples import curve_point, to_words

R, Q = BN254.r, BN254.q


@dataclass(frozen=True)
class Case:
    """A proof that holds."""

    key: VerificationKey
    public: list[int]
    document: dict[str, Any]

    @property
    def proof(self) -> Proof:
        return parse_proof(self.document, BN254)


def case(given: Sample) -> Case:
    key = parse_verification_key(given.verification_key)
    return Case(key, [int(x) for x in given.public], given.proof)


def own(name: str) -> Case:
    return case(sample(name, "fflonk"))


@pytest.fixture
def backend() -> Backend:
    return open_backend("cpu", BN254, Job(threads=1))


@pytest.fixture(scope="module")
def quirks() -> Case:
    return own("quirks")


def holds(given: Case, backend: Backend, **changes: Any) -> bool:
    """With another proof or other public signals."""
    changed = {"public": given.public, "proof": given.proof, **changes}
    return verifier.verify(given.key, changed["public"], changed["proof"], backend)


@pytest.mark.parametrize("name", FFLONK)
def test_own_proofs(name: str, backend: Backend) -> None:
    given = own(name)
    assert holds(given, backend)
    if given.public:
        assert not holds(given, backend, public=[*given.public[:-1], (given.public[-1] + 1) % R])


def test_proofs_of_snarkjs(data_dir: Path, backend: Backend) -> None:
    paths = sorted((data_dir / "plonk" / "fixed").rglob("*.fflonk.b-fixed.proof.json"))
    assert len(paths) > 8
    for path in paths:
        assert holds(case(Sample(path.parent, path.name.split(".")[0], "fflonk")), backend), path


@pytest.mark.slow
def test_the_reference_agrees() -> None:
    """Pairings by definition take a second each."""
    given, backend = own("one-gate"), open_backend("reference", BN254, Job())
    assert holds(given, backend)
    assert not holds(given, backend, proof=replace(given.proof, inv=1))


def test_every_change_of_a_point(quirks: Case, backend: Backend, rng: random.Random) -> None:
    points = quirks.proof.points
    random_point = to_words(BN254, Group.G1, [curve_point(BN254, Group.G1, rng)])[0]
    for i in range(len(POLYNOMIALS)):
        others = [points[j] for j in range(len(points)) if j != i]
        for other in (*others, negative(BN254, points[i]), np.zeros_like(points[i]), random_point):
            changed = points.copy()
            changed[i] = other
            assert not holds(quirks, backend, proof=replace(quirks.proof, points=changed)), POLYNOMIALS[i]


@pytest.mark.parametrize("name", Evaluations._fields)
def test_every_change_of_a_value(name: str, quirks: Case, backend: Backend) -> None:
    proof = quirks.proof
    for value in ((getattr(proof.evaluations, name) + 1) % R, 0, 1):
        changed = replace(proof, evaluations=proof.evaluations._replace(**{name: value}))
        assert not holds(quirks, backend, proof=changed)


def test_values_in_other_places(quirks: Case, backend: Backend) -> None:
    values = quirks.proof.evaluations
    for i in range(len(values) - 1):
        swapped = [*values]
        swapped[i], swapped[i + 1] = swapped[i + 1], swapped[i]
        assert not holds(quirks, backend, proof=replace(quirks.proof, evaluations=Evaluations(*swapped)))


def test_inv_belongs_to_the_proof(quirks: Case, backend: Backend) -> None:
    """As in the contract, though the opening does not depend on it."""
    inv = quirks.proof.inv
    for wrong in (0, 1, (inv + 1) % R, R - inv):
        assert not holds(quirks, backend, proof=replace(quirks.proof, inv=wrong))


def test_public_signals_belong_to_the_proof(quirks: Case, backend: Backend) -> None:
    public = quirks.public
    for other in ([*public[1:], public[0]], [0] * 3, [(x + 1) % R for x in public]):
        assert not holds(quirks, backend, public=other)


@pytest.mark.parametrize("name", ["quirks", "one-gate"])
def test_a_sample_is_looked_at_in_full_and_does_not_hold(name: str, backend: Backend) -> None:
    """A verifier that has seen it has compiled all that it needs."""
    given = own(name)
    found = sample_proof(given.key)
    public = [0] * given.key.n_public
    assert verifier.claim(given.key, public, found) is not None
    assert not holds(given, backend, public=public, proof=found)
    assert parse_proof(proof_to_json(found, BN254), BN254) == found


def test_other_keys(quirks: Case, backend: Backend) -> None:
    other = own("adds").key
    for key in (
        replace(quirks.key, c0=other.c0),
        replace(quirks.key, power=7, constants=other.constants),
        replace(quirks.key, constants=quirks.key.constants._replace(k1=5)),
        replace(quirks.key, tau_g2=parse_verification_key(known_tau()).tau_g2),
    ):
        assert not verifier.verify(key, quirks.public, quirks.proof, backend)


def known_tau() -> dict[str, Any]:
    point: Any = BN254.group(Group.G2).generator
    return {
        **sample("quirks", "fflonk").verification_key,
        "X_2": [[str(c) for c in pair] for pair in (*point, (1, 0))],
    }


@pytest.mark.parametrize(
    ("method", "value"),
    [("seed", 1), ("seed", 0), ("y", 0)],
    ids=["xi in the domain", "xi = 0", "y = 0"],
)
def test_unlikely_challenges(
    method: str, value: int, quirks: Case, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those for which something would be divided by 0 make a proof false, and no error."""
    monkeypatch.setattr(Transcript, method, lambda *_: value)
    assert not holds(quirks, backend)


def test_y_in_a_set(quirks: Case, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    k, seed = quirks.key.constants, 5
    monkeypatch.setattr(Transcript, "seed", lambda *_: seed)
    for y in (seed**3, seed**3 * k.w8, seed**6 * k.w4, seed**8 * k.w3, seed**8 * k.wr):
        monkeypatch.setattr(Transcript, "y", lambda *_, y=y: y % R)
        assert not holds(quirks, backend)


def test_points_off_the_curve(
    quirks: Case, backend: Backend, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Documents have none; proofs and keys of other origin are looked at, too."""
    monkeypatch.setattr(verifier, "_sound", Cache(4))
    points = quirks.proof.points.copy()
    points[2, 0] ^= np.uint64(1)
    with pytest.raises(MalformedFile, match=r"polynomials\.W1: the point is outside the subgroup") as caught:
        holds(quirks, backend, proof=replace(quirks.proof, points=points))
    assert caught.value.role == "proof"
    outside = to_words(BN254, Group.G2, [curve_point(BN254, Group.G2, rng)])[0]
    off = quirks.key.c0.copy()
    off[0] ^= np.uint64(1)
    for key, name in ((replace(quirks.key, tau_g2=outside), "X_2"), (replace(quirks.key, c0=off), "C0")):
        for call in (
            lambda key=key: verifier.verify(key, quirks.public, quirks.proof, backend),
            lambda key=key: verifier.verify_batch(key, [], backend),
        ):
            with pytest.raises(MalformedFile, match=f"{name}: the point is outside the subgroup") as caught:
                call()
            assert caught.value.role == "verification key"


def test_batches(quirks: Case, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The false ones among good ones are found, and damaged ones are false, in more than one pairing."""
    monkeypatch.setattr(verifier, "BATCH", 4)
    public, good = [str(x) for x in quirks.public], quirks.document
    bad = [copy.deepcopy(good) for _ in range(5)]
    bad[0]["evaluations"]["inv"] = "1"
    bad[1]["evaluations"]["a"] = str(int(good["evaluations"]["a"]) ^ 1)
    bad[2]["polynomials"]["W2"] = good["polynomials"]["W1"]
    bad[3]["polynomials"]["C1"] = ["1", "1", "1"]
    bad[4]["evaluations"]["a"] = str(int(good["evaluations"]["a"]) + R)
    statements: list[tuple[object, object]] = [(public, good)]
    for document in bad:
        statements += [(public, document), (public, good)]
    statements += [(public[:2], good), (["1", *public[1:]], good), (public, {**good, "curve": "bls12381"})]
    expected = [True, *[False, True] * 5, False, False, False]
    assert verifier.verify_documents(quirks.key, statements, backend) == expected
    assert verifier.verify_documents(quirks.key, [], backend) == []


def test_errors_that_would_cancel_out(quirks: Case, backend: Backend) -> None:
    """Two false openings, one with W2 + P and one with W2 − P: only random weights tell."""
    proof, points = quirks.proof, backend.points
    pair = []
    for sign in (1, -1):
        changed = proof.points.copy()
        changed[3] = points.linear_combination(Group.G1, proof.points[[3, 0]], [1, sign])
        pair.append((quirks.public, replace(proof, points=changed)))
    assert verifier.verify_batch(quirks.key, pair, backend) == [False, False]
    good = (quirks.public, proof)
    assert verifier.verify_batch(quirks.key, [*pair, good], backend) == [False, False, True]
