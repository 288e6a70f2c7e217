"""FFLONK's challenges, and what a verifier divides by."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from gpuprover.curves import BN254
from gpuprover.systems.fflonk.documents import VerificationKey, parse_proof, parse_verification_key
from gpuprover.systems.fflonk.rounds import Divisors, Transcript, point_of
from tests.support.plonk import FFLONK, Sample, sample

R = BN254.r


QUIRKS = parse_verification_key(sample("quirks", "fflonk").verification_key)


def compare(given: Sample) -> None:
    """The challenges of a proof with those that snarkjs drew."""
    key = parse_verification_key(given.verification_key)
    proof = parse_proof(given.proof, BN254)
    c1, c2, w1, _ = proof.points
    transcript = Transcript()
    beta, gamma = transcript.beta_gamma(key, [int(x) for x in given.public], c1)
    seed = transcript.seed(gamma, c2)
    alpha = transcript.alpha(seed, proof.evaluations)
    y, xi = transcript.y(alpha, w1), point_of(seed)
    found = {"beta": beta, "gamma": gamma, "xiSeed": seed, "xi": xi, "alpha": alpha, "y": y}
    assert found == given.challenges
    assert Divisors(key, xi, y).inverse() == proof.inv


@pytest.mark.parametrize("name", FFLONK)
def test_challenges_of_own_proofs(name: str) -> None:
    compare(sample(name, "fflonk"))


def test_challenges_of_snarkjs(data_dir: Path) -> None:
    paths = sorted((data_dir / "plonk" / "fixed").rglob("*.fflonk.b-fixed.challenges.json"))
    assert len(paths) > 8
    for path in paths:
        compare(Sample(path.parent, path.name.split(".")[0], "fflonk"))


def all_divisors(key: VerificationKey, seed: int, y: int) -> list[int]:
    """Everything that a contract divides by, factor by factor."""
    k, omega, n = key.constants, key.domain.omega, key.domain.size
    xi = pow(seed, 24, R)
    xiw = xi * omega
    h0, h1, h2 = seed**3, seed**6, seed**8
    h3 = h2 * k.wr
    s0, s1 = [h0 * k.w8**i for i in range(8)], [h1 * k.w4**i for i in range(4)]
    s2, s3 = [h2 * k.w3**i for i in range(3)], [h3 * k.w3**i for i in range(3)]
    found = [xi**n - 1, y**4 - xi, (y**3 - xi) * (y**3 - xiw)]
    found += [8 * h0**6 * s0[7 * i % 8] * (y - s0[i]) for i in range(8)]
    found += [4 * h1**2 * s1[3 * i % 4] * (y - s1[i]) for i in range(4)]
    found += [3 * h2 * (xi - xiw) * s2[2 * i % 3] * (y - s2[i]) for i in range(3)]
    found += [3 * h3 * (xiw - xi) * s3[2 * i % 3] * (y - s3[i]) for i in range(3)]
    return found + [n * (xi - omega**i) for i in range(max(1, key.n_public))]


@pytest.mark.parametrize("n_public", [0, 1, 3])
def test_inv_is_of_the_contracts_product(n_public: int, rng: random.Random) -> None:
    """For random challenges, and each inverse that is taken from it is one."""
    key = replace(QUIRKS, n_public=n_public)
    seed, y = rng.randrange(R), rng.randrange(R)
    xi, n, omega = point_of(seed), key.domain.size, key.domain.omega
    product = 1
    for factor in all_divisors(key, seed, y):
        product = product * factor % R
    divisors = Divisors(key, xi, y)
    inv = divisors.inverse()
    assert inv * product % R == 1
    found = divisors.inverses(inv)
    assert found is not None
    pairs = [(found.xi, xi), (found.vanishing, xi**n - 1), (found.m1, y**4 - xi)]
    pairs += [(found.m2, (y**3 - xi) * (y**3 - xi * omega)), (divisors.m0, pow(y**8 - xi, -1, R))]
    pairs += [(x, n * (xi - omega**i)) for i, x in enumerate(found.lagrange)]
    assert len(found.lagrange) == max(1, n_public)
    assert all(a * b % R == 1 for a, b in pairs)
    for wrong in (0, 1, inv + 1, R - inv):
        assert divisors.inverses(wrong) is None


def test_challenges_for_which_a_divisor_is_zero() -> None:
    """They have no inv."""
    key = QUIRKS
    omega, k, s = key.domain.omega, key.constants, 5
    xi = point_of(s)
    bad = [(0, 7), (1, 7), (omega, 7), (pow(omega, 63, R), 7)]
    bad += [(xi, s**3 * k.w8**5 % R), (xi, s**6 * k.w4**3 % R), (xi, s**8 * k.w3 % R), (xi, s**8 * k.wr % R)]
    for x, y in bad:
        divisors = Divisors(key, x, y)
        assert divisors.inverses(1) is None
        with pytest.raises(ValueError, match="not invertible"):
            divisors.inverse()
