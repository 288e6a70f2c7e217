"""KZG commitments over a toy set-up whose τ is known, and the proofs of snarkjs."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from gpuprover.backend import Backend, Term, Vector
from gpuprover.commitments import kzg
from gpuprover.commitments.kzg import Factor, Opening, Request
from gpuprover.curves import BN254, CURVES, CurveParams, Group, curve_by_name
from gpuprover.devices import open_backend
from gpuprover.job import Job
from gpuprover.limbs import Words, g2_to_words, generator, ints_to_words, words_to_ints, words_to_points
from gpuprover.polynomial import Domain
from tests.commitments.test_transcript import CASES, point
from tests.support import cuda_proofs
from tests.support.samples import spec


@dataclass
class Stage:
    """A backend with powers of a known τ, and polynomials on it."""

    backend: Backend
    rng: random.Random
    size: int = 20
    """Powers of τ."""

    def __post_init__(self) -> None:
        curve = self.curve = self.backend.curve
        self.tau = self.scalar()
        self.srs_points = self.multiples(Group.G1, kzg.powers(self.tau, self.size, curve.r))
        self.srs = self.backend.prepare_bases(Group.G1, self.srs_points)
        self.tau_g2 = self.multiples(Group.G2, [self.tau])[0]

    def scalar(self) -> int:
        return self.rng.randrange(1, self.curve.r)

    def multiples(self, group: Group, scalars: list[int]) -> Words:
        words = ints_to_words(scalars, self.curve.scalar.limbs)
        return self.backend.fixed_base_mul(group, generator(self.curve, group), words)

    def polynomials(self, *lengths: int) -> tuple[list[list[int]], list[Vector]]:
        values = [[self.scalar() for _ in range(n)] for n in lengths]
        limbs = self.curve.scalar.limbs
        return values, [self.backend.upload(ints_to_words(p, limbs)) for p in values]

    def commit(self, *vectors: Vector) -> Words:
        return kzg.commit(self.backend, self.srs, vectors)

    def prove(self, *requests: Request) -> Words:
        return kzg.prove(self.backend, self.srs, requests)

    def check(self, *openings: Opening) -> bool:
        return kzg.check(self.backend.points, self.tau_g2, openings)

    def openings(self, count: int) -> list[Opening]:
        """True ones, each of one polynomial that is no constant."""
        values, vectors = self.polynomials(*(self.rng.randrange(2, self.size + 1) for _ in range(count)))
        points = [self.scalar() for _ in range(count)]
        proofs = self.prove(*(Request([v], [1], x) for v, x in zip(vectors, points, strict=True)))
        opened = [kzg.value(p, x, self.curve.r) for p, x in zip(values, points, strict=True)]
        rows = zip(self.commit(*vectors), points, opened, proofs, strict=True)
        return [Opening(row.reshape(1, -1), [1], x, y, proof) for row, x, y, proof in rows]


@pytest.fixture(
    params=[("reference", BN254, 6), *(("cpu", curve, 20) for curve in CURVES)],
    ids=lambda row: f"{row[0]}-{row[1].name}",
)
def stage(rng: random.Random, request: pytest.FixtureRequest) -> Stage:
    device, curve, size = request.param
    return Stage(open_backend(device, curve, Job(threads=1)), rng, size)


@pytest.fixture
def fast(curve: CurveParams, rng: random.Random) -> Stage:
    return Stage(open_backend("cpu", curve, Job(threads=1)), rng)


# Prover and verifier -----------------------------------------------------------------------


def test_commitments_are_values_at_tau(stage: Stage) -> None:
    """Of polynomials of many lengths, the empty one and 0 among them."""
    values, vectors = stage.polynomials(stage.size, 1, 0, 4)
    found = words_to_points(stage.curve, Group.G1, stage.commit(*vectors))
    E, r = spec(stage.curve, Group.G1), stage.curve.r
    assert found == [E.scalar_mul(stage.curve.g1, kzg.value(p, stage.tau, r)) for p in values]
    assert stage.commit().shape == (0, stage.curve.g1_words)


def test_openings(stage: Stage) -> None:
    """Several polynomials folded at one point, and one of them at another one, as PLONK has them."""
    r, v = stage.curve.r, stage.scalar()
    values, vectors = stage.polynomials(stage.size, 3, stage.size - 1)
    x, y = stage.scalar(), stage.scalar()
    weights = kzg.powers(v, 3, r)
    proofs = stage.prove(Request(vectors, weights, x), Request(vectors[2:], [1], y))
    commitments = stage.commit(*vectors)
    opened = sum(w * kzg.value(p, x, r) for w, p in zip(weights, values, strict=True)) % r
    first = Opening(commitments, weights, x, opened, proofs[0])
    second = Opening(commitments[2:], [1], y, kzg.value(values[2], y, r), proofs[1])
    points = words_to_points(stage.curve, Group.G1, proofs)
    E = spec(stage.curve, Group.G1)
    quotient = (kzg.value(values[2], stage.tau, r) - second.value) * pow(stage.tau - y, -1, r) % r
    assert points[1] == E.scalar_mul(stage.curve.g1, quotient)
    limbs = [words_to_ints(stage.backend.download(vector)) for vector in vectors]
    assert limbs == values, "polynomials stay"
    assert stage.check(first, second)


def test_false_openings_are_refused(fast: Stage) -> None:
    curve, r = fast.curve, fast.curve.r
    one, other = fast.openings(2)
    assert fast.check(one)
    assert fast.check(one, other)
    assert fast.check()
    swapped = one._replace(commitments=other.commitments), other._replace(commitments=one.commitments)
    for false in (
        (one._replace(value=(one.value + 1) % r),),
        (one._replace(point=(one.point + 1) % r),),
        (one._replace(proof=other.proof),),
        (one._replace(proof=generator(curve, Group.G1)),),
        (one._replace(weights=[2]),),
        (one._replace(commitments=np.zeros_like(one.commitments)),),
        swapped,
        # Errors that would cancel out without random weights.
        (one._replace(value=(one.value + 1) % r), other._replace(value=(other.value - 1) % r)),
    ):
        assert not fast.check(*false)
    assert not kzg.check(fast.backend.points, generator(curve, Group.G2), [one]), "another τ"
    with pytest.raises(ValueError, match="1 commitments and 2 weights"):
        fast.check(one._replace(weights=[1, 0]), other)


def test_the_false_ones_of_many_are_found(fast: Stage) -> None:
    openings = fast.openings(9)
    claims = [openings[:2], openings[2:3], [], openings[3:5], openings[5:6], openings[6:]]
    assert kzg.check_each(fast.backend.points, fast.tau_g2, claims) == [True] * 6
    for i in (1, 8):
        openings[i] = openings[i]._replace(value=openings[i].value ^ 1)
    claims = [openings[:2], openings[2:3], [], openings[3:5], openings[5:6], openings[6:]]
    found = kzg.check_each(fast.backend.points, fast.tau_g2, claims)
    assert found == [False, True, True, True, True, False]
    assert kzg.check_each(fast.backend.points, fast.tau_g2, []) == []


@pytest.mark.kernels_offline
def test_a_device_makes_the_same_proofs(fast: Stage, quick_sums: None) -> None:
    """On the emulated device, from vectors, bases and quotients that lie there."""
    cuda = cuda_proofs.backend_on(cuda_proofs.opened(), fast.curve)
    srs = cuda.prepare_bases(Group.G1, fast.srs_points)
    values, vectors = fast.polynomials(fast.size, 3, fast.size - 1)
    there = [cuda.upload(ints_to_words(p, fast.curve.scalar.limbs)) for p in values]
    weights, x, y = [1, 5, 25], fast.scalar(), fast.scalar()
    sets = [[Factor(1, x)], [Factor(2, y)], [Factor(3, x), Factor(1, y)]]
    found = []
    for backend, bases, given in ((fast.backend, fast.srs, vectors), (cuda, srs, there)):
        f = kzg.quotient_of_sets(backend, given, sets, y)
        proofs = kzg.prove(backend, bases, [Request(given, weights, x), Request([f], [1], y)])
        found.append(np.concatenate([proofs, kzg.commit(backend, bases, [*given, f])]))
    assert np.array_equal(*found)


# Several points ----------------------------------------------------------------------------


def test_sets_of_points(stage: Stage) -> None:
    """Polynomials at one, two and three points each: one quotient and one opening, as Midnight has them."""
    r = stage.curve.r
    values, vectors = stage.polynomials(stage.size, 5, stage.size - 2)
    points = [stage.scalar() for _ in range(3)]
    sets = [points[:1], points[:2], points]
    factors = [[Factor(1, x) for x in some] for some in sets]
    y, x, w = (stage.scalar() for _ in range(3))
    f = kzg.quotient_of_sets(stage.backend, vectors, factors, y)
    weights = kzg.powers(w, 4, r)
    commitments = stage.commit(*vectors, f)
    (proof,) = stage.prove(Request([*vectors, f], weights, x))

    # The verifier: values of the polynomials at x and at their points, and of f from them.
    opened = [kzg.value(p, x, r) for p in values]
    total = 0
    for j, (p, some) in enumerate(zip(values, sets, strict=True)):
        rest = kzg.interpolate(some, [kzg.value(p, s, r) for s in some], r)
        z = kzg.vanishing(factors[j], x, r)
        total += pow(y, j, r) * (opened[j] - kzg.value(rest, x, r)) * pow(z, -1, r)
    combined = sum(w * v for w, v in zip(weights, [*opened, total], strict=True)) % r
    assert stage.check(Opening(commitments, weights, x, combined, proof))
    if stage.backend.name != "reference":  # whose pairings take a second
        assert not stage.check(Opening(commitments, weights, x, (combined + 1) % r, proof))


def test_division_by_products(stage: Stage) -> None:
    """By X^3 − a and X^2 − b: what the quotient leaves has a lower degree, and the polynomial stays."""
    r = stage.curve.r
    (p,), (vector,) = stage.polynomials(stage.size)
    factors = [Factor(3, stage.scalar()), Factor(2, stage.scalar())]
    quotient = words_to_ints(stage.backend.download(kzg.divide(stage.backend, vector, factors)))
    assert len(quotient) == stage.size - 5
    assert words_to_ints(stage.backend.download(vector)) == p
    # p − quotient·Z has a degree below 5: the values at 5 points say all of it.
    xs = [stage.scalar() for _ in range(5)]

    def rest(x: int) -> int:
        return (kzg.value(p, x, r) - kzg.value(quotient, x, r) * kzg.vanishing(factors, x, r)) % r

    coefficients = kzg.interpolate(xs, [rest(x) for x in xs], r)
    for _ in range(5):
        x = stage.scalar()
        assert rest(x) == kzg.value(coefficients, x, r)
    same = kzg.divide(stage.backend, vector, [])
    stage.backend.free(same)
    assert words_to_ints(stage.backend.download(vector)) == p
    assert words_to_ints(stage.backend.download(stage.backend.combine([Term(vector)]))) == p


# Small polynomials -------------------------------------------------------------------------


def test_small_polynomials(rng: random.Random) -> None:
    r = BN254.r
    assert kzg.powers(5, 4, 7) == [1, 5, 4, 6]
    assert kzg.powers(5, 0, 7) == []
    assert kzg.value([], 3, r) == 0
    assert kzg.vanishing([], 3, r) == 1
    for n in range(6):
        coefficients = [rng.randrange(r) for _ in range(n)]
        xs = rng.sample(range(100), n)
        ys = [sum(c * x**i for i, c in enumerate(coefficients)) % r for x in xs]
        assert [kzg.value(coefficients, x, r) for x in xs] == ys
        assert kzg.interpolate(xs, ys, r) == coefficients
    with pytest.raises(ValueError, match="equal points"):
        kzg.interpolate([1, 2, 1 + r], [1, 2, 1], r)


# Proofs of snarkjs -------------------------------------------------------------------------


def lagrange(curve: CurveParams, key: dict[str, Any], count: int, x: int) -> tuple[int, list[int]]:
    """x^n − 1, and the first Lagrange polynomials at x."""
    domain, r = Domain(curve.scalar, key["power"]), curve.r
    zh = (pow(x, domain.size, r) - 1) % r
    roots = kzg.powers(domain.omega, count, r)
    return zh, [root * zh * pow(domain.size * (x - root), -1, r) % r for root in roots]


def plonk_openings(case: dict[str, Any]) -> tuple[CurveParams, Words, list[Opening]]:
    """What a proof of snarkjs' PLONK claims: its fifth round, with the challenges that the case has."""
    proof, key, r = case["proof"], case["vkey"], curve_by_name(case["vkey"]["curve"]).r
    curve = curve_by_name(key["curve"])
    beta, gamma, alpha, xi, v = (
        int(case["challenges"][name]) for name in ("beta", "gamma", "alpha", "xi", "v")
    )
    a, b, c, s1, s2, zw = (int(proof[f"eval_{name}"]) for name in ("a", "b", "c", "s1", "s2", "zw"))
    k1, k2, n = int(key["k1"]), int(key["k2"]), 1 << key["power"]
    public = [int(value) for value in case["public"]]
    zh, L = lagrange(curve, key, max(1, len(public)), xi)
    pi = -sum(value * at_xi for value, at_xi in zip(public, L, strict=False))
    e2 = alpha * (a + beta * xi + gamma) * (b + beta * k1 * xi + gamma) * (c + beta * k2 * xi + gamma)
    e3 = alpha * (a + beta * s1 + gamma) * (b + beta * s2 + gamma) * zw
    e4 = alpha**2 * L[0]
    combined = {
        "Qm": a * b, "Ql": a, "Qr": b, "Qo": c, "Qc": 1, "Z": e2 + e4, "S3": -e3 * beta,
        "T1": -zh, "T2": -zh * pow(xi, n, r), "T3": -zh * pow(xi, 2 * n, r),
        "A": v, "B": v**2, "C": v**3, "S1": v**4, "S2": v**5,
    }  # fmt: skip
    commitments = np.stack([point(curve, {**key, **proof}[name]) for name in combined])
    value = e4 + e3 * (c + gamma) - pi + v * a + v**2 * b + v**3 * c + v**4 * s1 + v**5 * s2
    first = Opening(commitments, [*combined.values()], xi, value % r, point(curve, proof["Wxi"]))
    shifted = xi * Domain(curve.scalar, key["power"]).omega % r
    z = point(curve, proof["Z"]).reshape(1, -1)
    return curve, g2(curve, key), [first, Opening(z, [1], shifted, zw, point(curve, proof["Wxiw"]))]


def fflonk_openings(case: dict[str, Any]) -> tuple[CurveParams, Words, list[Opening]]:
    proof, key, r = case["proof"], case["vkey"], curve_by_name(case["vkey"]["curve"]).r
    curve = curve_by_name(key["curve"])
    at = {name: int(value) for name, value in proof["evaluations"].items()}
    beta, gamma, xi, alpha, y = (
        int(case["challenges"][name]) for name in ("beta", "gamma", "xi", "alpha", "y")
    )
    k1, k2 = int(key["k1"]), int(key["k2"])
    public = [int(value) for value in case["public"]]
    zh, L = lagrange(curve, key, max(1, len(public)), xi)
    pi = -sum(value * at_xi for value, at_xi in zip(public, L, strict=False))
    a, b, c, z = at["a"], at["b"], at["c"], at["z"]
    inverse = pow(zh, -1, r)
    t0 = (at["ql"] * a + at["qr"] * b + at["qm"] * a * b + at["qo"] * c + at["qc"] + pi) * inverse
    t1 = L[0] * (z - 1) * inverse
    t2 = (a + beta * xi + gamma) * (b + beta * k1 * xi + gamma) * (c + beta * k2 * xi + gamma) * z
    t2 -= (
        (a + beta * at["s1"] + gamma)
        * (b + beta * at["s2"] + gamma)
        * (c + beta * at["s3"] + gamma)
        * at["zw"]
    )
    shifted = xi * Domain(curve.scalar, key["power"]).omega % r
    sets = [[Factor(8, xi)], [Factor(4, xi)], [Factor(3, xi), Factor(3, shifted)]]
    pairs = zip((z, t1, t2 * inverse), (at["zw"], at["t1w"], at["t2w"]), strict=True)
    lines = [kzg.interpolate([xi, shifted], pair, r) for pair in pairs]
    rests = [
        [at[name] for name in ("ql", "qr", "qo", "qm", "qc", "s1", "s2", "s3")],
        [a, b, c, t0],
        [*(line[0] for line in lines), *(line[1] for line in lines)],
    ]
    m = [kzg.vanishing(factors, y, r) for factors in sets]
    weights = [pow(alpha, j, r) * m[0] * pow(m[j], -1, r) for j in range(3)]
    value = sum(w * kzg.value(rest, y, r) for w, rest in zip(weights, rests, strict=True)) % r
    names = {"C0": key, **dict.fromkeys(("C1", "C2", "W1"), proof["polynomials"])}
    commitments = np.stack([point(curve, document[name]) for name, document in names.items()])
    proof_point = point(curve, proof["polynomials"]["W2"])
    return curve, g2(curve, key), [Opening(commitments, [*weights, -m[0]], y, value, proof_point)]


def g2(curve: CurveParams, key: dict[str, Any]) -> Words:
    (x0, x1), (y0, y1), _ = (tuple(map(int, pair)) for pair in key["X_2"])
    return g2_to_words(curve, [((x0, x1), (y0, y1))])[0]


CLAIMS = {"plonk": plonk_openings, "fflonk": fflonk_openings}


@pytest.mark.parametrize("name", [name for name in CASES if name.endswith("lonk")])
def test_proofs_of_snarkjs(name: str) -> None:
    """The openings that their verifiers check hold, and change with every value that is opened."""
    curve, tau_g2, openings = CLAIMS[name.rsplit(".", 1)[1]](CASES[name])
    points = open_backend("cpu", curve, Job(threads=1)).points
    assert kzg.check(points, tau_g2, openings)
    for i, opening in enumerate(openings):
        others = [*openings[:i], opening._replace(value=opening.value ^ 1), *openings[i + 1 :]]
        assert not kzg.check(points, tau_g2, others)
