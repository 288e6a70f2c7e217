"""The specification against independent libraries, published values and the laws it must obey."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpuprover import reference
from gpuprover.curves import BLS12_381, BN254, CurveParams, Group
from gpuprover.formats.wtns import read_witness
from gpuprover.limbs import words_to_field, words_to_g1, words_to_g2, words_to_ints
from gpuprover.systems.groth16.key import load_key
from tests.support.paths import VECTORS
from tests.support.samples import (
    curve_point,
    fast_dft,
    field_edges,
    generator,
    has_cofactor,
    point,
    random_logs,
    spec,
)

LIBRARIES = {BN254.name: "py_ecc.optimized_bn128", BLS12_381.name: "py_ecc.optimized_bls12_381"}


@pytest.fixture
def library(curve: CurveParams) -> Any:
    """py_ecc's module for the curve."""
    return pytest.importorskip(LIBRARIES[curve.name])


def integers(value: Any) -> Any:
    """JSON's decimal strings as nested tuples of integers."""
    return int(value) if isinstance(value, str) else tuple(integers(v) for v in value)


def to_py_ecc(library: Any, group: Group, P: Any) -> Any:
    """A projective point of py_ecc."""
    F = library.FQ if group is Group.G1 else library.FQ2
    if P is None:
        return F.one(), F.one(), F.zero()
    return F(P[0]), F(P[1]), F.one()


def from_py_ecc(library: Any, P: Any) -> Any:
    if library.is_inf(P):
        return None
    x, y = library.normalize(P)
    if isinstance(x, library.FQ):
        return int(x), int(y)
    return tuple(map(int, x.coeffs)), tuple(map(int, y.coeffs))


def fq12_to_py_ecc(curve: CurveParams, library: Any, a: Any) -> Any:
    """The tower's element in py_ecc's basis 1, w, …, w¹¹, where w⁶ = ξ = xi[0] + u."""
    assert curve.pairing.xi[1] == 1
    coefficients = [0] * 12
    for k, half in enumerate(a):
        for j, (c0, c1) in enumerate(half):
            coefficients[2 * j + k] = (c0 - curve.pairing.xi[0] * c1) % curve.q
            coefficients[2 * j + k + 6] = c1
    return library.FQ12(coefficients)


def tower(curve: CurveParams) -> list[Any]:
    return [reference.fq(curve), reference.fq2(curve), reference.fq6(curve), reference.fq12(curve)]


def random_element(field: Any, rng: random.Random) -> Any:
    """Often with zero, one or p − 1 among its coefficients."""
    if isinstance(field, reference.PrimeField):
        p = field.modulus
        return rng.choice([rng.randrange(p), rng.randrange(p), 0, 1, p - 1])
    return tuple(random_element(field.base, rng) for _ in range(field.degree))


# Fields -----------------------------------------------------------------------


def test_prime_field(curve: CurveParams) -> None:
    for p in (curve.q, curve.r):
        F = reference.PrimeField(p)
        for a in field_edges(p):
            for b in field_edges(p):
                assert F.add(a, b) == (a + b) % p
                assert F.sub(a, b) == (a - b) % p
                assert F.mul(a, b) == a * b % p
            assert F.add(a, F.neg(a)) == 0
            assert F.mul(a, F.inverse(a)) == (1 if a else 0)


def test_field_laws(curve: CurveParams, rng: random.Random) -> None:
    for F in tower(curve):
        for _ in range(20):
            a, b, c = (random_element(F, rng) for _ in range(3))
            assert F.add(a, b) == F.add(b, a)
            assert F.mul(a, b) == F.mul(b, a)
            assert F.mul(F.mul(a, b), c) == F.mul(a, F.mul(b, c))
            assert F.mul(a, F.add(b, c)) == F.add(F.mul(a, b), F.mul(a, c))
            assert F.sub(a, b) == F.add(a, F.neg(b))
            assert F.mul(a, F.one) == a
            assert F.mul(a, F.inverse(a)) == (F.zero if a == F.zero else F.one)
        assert F.inverse(F.zero) == F.zero
        assert F.embed(-1) == F.neg(F.one)


def test_adjoined_roots(curve: CurveParams) -> None:
    _, F2, F6, F12 = tower(curve)
    u, v, w = (0, 1), (F2.zero, F2.one, F2.zero), (F6.zero, F6.one)
    assert F2.mul(u, u) == F2.embed(-1)
    assert F6.mul(v, F6.mul(v, v)) == (curve.pairing.xi, F2.zero, F2.zero)
    assert F12.mul(w, w) == (v, F6.zero)


def test_power(curve: CurveParams, rng: random.Random) -> None:
    F = reference.fq2(curve)
    a = (rng.randrange(curve.q), 7)
    assert reference.power(F, a, 0) == F.one
    assert reference.power(F, a, 5) == F.mul(a, F.mul(F.mul(a, a), F.mul(a, a)))
    assert F.mul(reference.power(F, a, -3), reference.power(F, a, 3)) == F.one
    assert reference.power(F, a, curve.q) == (a[0], curve.q - a[1])


def test_fq2_and_fq12_of_py_ecc(curve: CurveParams, library: Any, rng: random.Random) -> None:
    F = reference.fq2(curve)
    for _ in range(10):
        a, b = random_element(F, rng), random_element(F, rng)
        product = library.FQ2(a) * library.FQ2(b)
        assert F.mul(a, b) == tuple(map(int, product.coeffs))
        if a != F.zero:
            assert F.inverse(a) == tuple(map(int, library.FQ2(a).inv().coeffs))
    F = reference.fq12(curve)
    for _ in range(5):
        a, b = random_element(F, rng), random_element(F, rng)
        theirs = [fq12_to_py_ecc(curve, library, x) for x in (a, b)]
        assert fq12_to_py_ecc(curve, library, F.mul(a, b)) == theirs[0] * theirs[1]


# Curves -----------------------------------------------------------------------


def test_addition_of_py_ecc(curve: CurveParams, group: Group, library: Any, rng: random.Random) -> None:
    E = spec(curve, group)
    points = [None, *(point(curve, group, k) for k in (1, -1, 2, -2, *random_logs(rng, 3)))]
    for P in points:
        for Q in points:
            theirs = library.add(to_py_ecc(library, group, P), to_py_ecc(library, group, Q))
            assert E.add(P, Q) == from_py_ecc(library, theirs)


def test_multiplication_of_py_ecc(curve: CurveParams, group: Group, library: Any, rng: random.Random) -> None:
    E, G = spec(curve, group), generator(curve, group)
    for k in (0, 1, 2, 3, curve.r - 1, curve.r, curve.r + 1, rng.randrange(curve.r), 1 << 300):
        theirs = library.multiply(to_py_ecc(library, group, G), k)
        assert E.scalar_mul(G, k) == from_py_ecc(library, theirs)
        assert E.scalar_mul(G, -k) == E.neg(E.scalar_mul(G, k))
    assert E.scalar_mul(None, 5) is None


def test_published_multiples() -> None:
    # EIP-196's generator doubled, as in the vectors of Ethereum's bn256Add and bn256ScalarMul.
    two = (
        1368015179489954701390400359078579693043519447331113978918064868415326638035,
        9918110051302171585080402603319702774565515993150576347155970296011118125764,
    )
    assert reference.g1(BN254).add((1, 2), (1, 2)) == two


def test_group_laws(curve: CurveParams, group: Group, rng: random.Random) -> None:
    E = spec(curve, group)
    P, Q, S = (point(curve, group, k) for k in random_logs(rng, 3))
    assert E.add(E.add(P, Q), S) == E.add(P, E.add(Q, S))
    assert E.add(P, E.neg(P)) is None
    assert E.add(P, None) == P == E.add(None, P)
    assert E.neg(None) is None
    assert E.scalar_mul(E.scalar_mul(P, 12), 5) == E.scalar_mul(P, 60)
    assert all(E.on_curve(X) for X in (P, Q, S, E.add(P, Q), None))


def test_msm_of_the_definition(curve: CurveParams, group: Group) -> None:
    E = spec(curve, group)
    points = [point(curve, group, k) for k in (3, 5, 0, -3)]
    assert E.msm(points, [2, 7, 9, 1]) == point(curve, group, 2 * 3 + 7 * 5 - 3)
    assert E.msm([], []) is None
    with pytest.raises(ValueError):
        E.msm(points, [1])


def test_subgroups(curve: CurveParams, group: Group, rng: random.Random) -> None:
    E = spec(curve, group)
    assert E.in_subgroup(None)
    assert E.in_subgroup(point(curve, group, rng.randrange(1, 500)))
    outside = curve_point(curve, group, rng)
    assert E.on_curve(outside)
    assert E.in_subgroup(outside) is not has_cofactor(curve, group)
    x, y = point(curve, group, 9)
    assert not E.on_curve((y, x))
    assert not E.in_subgroup((y, x))


def test_point_of_order_three() -> None:
    E = reference.g1(BLS12_381)
    assert E.on_curve((0, 2))
    assert not E.in_subgroup((0, 2))
    assert E.scalar_mul((0, 2), 3) is None


# Polynomials --------------------------------------------------------------------


def horner(coefficients: list[int], x: int, p: int) -> int:
    value = 0
    for c in reversed(coefficients):
        value = (value * x + c) % p
    return value


@pytest.mark.parametrize("log_n", range(6))
def test_dft_evaluates(curve: CurveParams, log_n: int, rng: random.Random) -> None:
    field, p, n = curve.scalar, curve.r, 1 << log_n
    omega, shift = field.root_of_unity(log_n), field.root_of_unity(log_n + 1)
    x = [rng.randrange(p) for _ in range(n)]
    for s in (1, shift):
        y = reference.dft(field, x, omega, s)
        assert y == [horner(x, s * pow(omega, j, p), p) for j in range(n)]
        assert reference.inverse_dft(field, y, omega, s) == x
        assert fast_dft(field, x, omega, s) == y


def test_dft_turns_products_into_cyclic_convolutions(curve: CurveParams, rng: random.Random) -> None:
    field, p, n = curve.scalar, curve.r, 8
    omega = field.root_of_unity(3)
    a, b = ([rng.randrange(p) for _ in range(n)] for _ in range(2))
    cyclic = [sum(a[i] * b[(k - i) % n] for i in range(n)) % p for k in range(n)]
    pairs = zip(reference.dft(field, a, omega), reference.dft(field, b, omega), strict=True)
    assert reference.inverse_dft(field, [x * y % p for x, y in pairs], omega) == cyclic


def test_bit_reverse() -> None:
    assert reference.bit_reverse([0]) == [0]
    assert reference.bit_reverse([0, 1]) == [0, 1]
    assert reference.bit_reverse(list(range(8))) == [0, 4, 2, 6, 1, 5, 3, 7]


# Pairings -----------------------------------------------------------------------


def test_untwisted_points_lie_on_the_curve(curve: CurveParams) -> None:
    F = reference.fq12(curve)
    E = reference.EllipticCurve(F, F.embed(curve.b), curve.r)
    P, Q = point(curve, Group.G2, 5), point(curve, Group.G2, 9)
    lifted = [reference.untwist(curve, X) for X in (P, Q, reference.g2(curve).add(P, Q))]
    assert all(map(E.on_curve, lifted))
    assert E.add(lifted[0], lifted[1]) == lifted[2]
    assert reference.untwist(curve, None) is None


def test_pairing_of_py_ecc(curve: CurveParams, library: Any) -> None:
    a, b = 5, 7
    P, Q = point(curve, Group.G1, a), point(curve, Group.G2, b)
    theirs = library.pairing(to_py_ecc(library, Group.G2, Q), to_py_ecc(library, Group.G1, P))
    ours = reference.pairing(curve, P, Q)
    if curve.pairing.loop_count < 0:
        # py_ecc takes the loop count's absolute value, which inverts the result.
        ours = reference.fq12(curve).inverse(ours)
    assert fq12_to_py_ecc(curve, library, ours) == theirs


def test_pairing_of_ffjavascript(curve: CurveParams) -> None:
    expected = integers(json.loads((VECTORS / "ffjavascript_pairing.json").read_text())[curve.name])
    e = reference.pairing(curve, point(curve, Group.G1, 5), point(curve, Group.G2, 7))
    assert reference.power(reference.fq12(curve), e, reference.circom_exponent(curve)) == expected


def test_pairing_is_bilinear_and_not_degenerate(curve: CurveParams) -> None:
    F = reference.fq12(curve)
    e = reference.pairing(curve, curve.g1, curve.g2)
    assert e != F.one
    assert reference.power(F, e, curve.r) == F.one
    other = reference.pairing(curve, point(curve, Group.G1, -6), point(curve, Group.G2, 11))
    assert other == reference.power(F, e, -66)
    assert reference.pairing(curve, None, curve.g2) == F.one
    assert reference.pairing(curve, curve.g1, None) == F.one


def test_pairing_check(curve: CurveParams) -> None:
    def check(*logs: tuple[int, int]) -> bool:
        P = [point(curve, Group.G1, a) for a, _ in logs]
        Q = [point(curve, Group.G2, b) for _, b in logs]
        return reference.pairing_check(curve, P, Q)

    assert check()
    assert check((2, 3), (-6, 1))
    assert not check((2, 3), (-5, 1))
    assert check((2, 3), (0, 4), (1, -7), (1, 1))


@pytest.mark.parametrize("circuit", ["multiplier2", "sha256_1"])
def test_pairing_of_snarkjs(data_dir: Path, circuit: str) -> None:
    vk = json.loads((data_dir / "groth16" / f"{circuit}.groth16.vkey.json").read_text())
    alpha, beta = integers(vk["vk_alpha_1"])[:2], integers(vk["vk_beta_2"])[:2]
    e = reference.pairing(BN254, alpha, beta)
    k = reference.circom_exponent(BN254)
    assert reference.power(reference.fq12(BN254), e, k) == integers(vk["vk_alphabeta_12"])


# Groth16 ------------------------------------------------------------------------


def load(zkey: Path, wtns: Path) -> tuple[reference.Groth16Key, list[int]]:
    key, witness = load_key(zkey), read_witness(wtns)
    curve, fr = key.curve, key.curve.scalar
    matrices: tuple[list[tuple[int, int, int]], ...] = ([], [])
    c = key.coefficients
    values = [fr.from_montgomery(v) for v in words_to_field(fr, c["value"])]
    indices = (c[name].tolist() for name in ("matrix", "constraint", "signal"))
    for matrix, row, column, value in zip(*indices, values, strict=True):
        matrices[matrix].append((row, column, value))
    header = key.header
    alpha_1, beta_1, delta_1 = words_to_g1(curve, np.stack([header.alpha1, header.beta1, header.delta1]))
    beta_2, gamma_2, delta_2 = words_to_g2(curve, np.stack([header.beta2, header.gamma2, header.delta2]))
    return reference.Groth16Key(
        curve=curve,
        log_n=key.log_domain,
        n_public=key.n_public,
        matrix_a=matrices[0],
        matrix_b=matrices[1],
        alpha_1=alpha_1,
        beta_1=beta_1,
        beta_2=beta_2,
        gamma_2=gamma_2,
        delta_1=delta_1,
        delta_2=delta_2,
        ic=words_to_g1(curve, key.ic),
        a=words_to_g1(curve, key.a),
        b1=words_to_g1(curve, key.b1),
        b2=words_to_g2(curve, key.b2),
        c=words_to_g1(curve, key.c),
        h=words_to_g1(curve, key.h),
    ), words_to_ints(witness.values)


@pytest.mark.parametrize(("r", "s"), [(0, 0), (7, 11)])
def test_groth16_of_another_prover(data_dir: Path, r: int, s: int) -> None:
    folder = data_dir / "groth16"
    key, witness = load(folder / "multiplier2.groth16.zkey", folder / "multiplier2.wtns")
    expected = json.loads((folder / f"multiplier2.r{r}s{s}.proof.json").read_text())
    proof = reference.groth16_prove(key, witness, r, s)
    assert proof.a == integers(expected["pi_a"])[:2]
    assert proof.b == integers(expected["pi_b"])[:2]
    assert proof.c == integers(expected["pi_c"])[:2]


def test_groth16_verifies(curve: CurveParams) -> None:
    key, witness = load(VECTORS / f"chain5.{curve.name}.zkey", VECTORS / f"chain5.{curve.name}.wtns")
    public = witness[1 : key.n_public + 1]
    proof = reference.groth16_prove(key, witness, r=3, s=5)
    assert reference.groth16_verify(key, public, proof)
    assert not reference.groth16_verify(key, [public[0] + 1, *public[1:]], proof)
    assert not reference.groth16_verify(key, public, proof._replace(c=key.alpha_1))


def test_groth16_refuses_a_wrong_witness(curve: CurveParams) -> None:
    key, witness = load(VECTORS / f"chain5.{curve.name}.zkey", VECTORS / f"chain5.{curve.name}.wtns")
    wrong = [*witness[:-1], (witness[-1] + 1) % curve.r]
    proof = reference.groth16_prove(key, wrong, r=3, s=5)
    assert not reference.groth16_verify(key, wrong[1 : key.n_public + 1], proof)
