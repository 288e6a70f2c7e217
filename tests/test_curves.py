"""The curves' records against published constants and against what defines them."""

from __future__ import annotations

import math
import random
from importlib import import_module

import pytest

from gpuprover import reference
from gpuprover.curves import BLS12_381, BN254, CURVES, CurveParams, FieldParams, Group, curve_by_name
from gpuprover.polynomial import Coset, Domain
from tests.support.samples import curve_point, has_cofactor, whole_order

FIELDS = [field for c in CURVES for field in (c.base, c.scalar)]


@pytest.fixture(params=FIELDS, ids=lambda f: f.name)
def field(request: pytest.FixtureRequest) -> FieldParams:
    return request.param


def is_probable_prime(n: int) -> bool:
    """Miller–Rabin with the first twelve primes as bases: enough for numbers nobody chose to fool it."""
    d, s = n - 1, 0
    while d % 2 == 0:
        d, s = d // 2, s + 1
    for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37):
        x = pow(base, d, n)
        if x in (1, n - 1):
            continue
        if not any((x := x * x % n) == n - 1 for _ in range(s - 1)):
            return False
    return True


def test_moduli_as_published() -> None:
    # EIP-197 and draft-irtf-cfrg-pairing-friendly-curves-11, section 4.2.1.
    assert BN254.q == 21888242871839275222246405745257275088696311157297823662689037894645226208583
    assert BN254.r == 21888242871839275222246405745257275088548364400416034343698204186575808495617
    assert BLS12_381.q == int(
        "1a0111ea397fe69a4b1ba7b6434bacd764774b84f38512bf6730d2a0f6b0f6241eabfffeb153ffffb9feffffffffaaab", 16
    )
    assert BLS12_381.r == int("73eda753299d7d483339d80809a1d80553bda402fffe5bfeffffffff00000001", 16)


def test_cofactors_as_published() -> None:
    assert BN254.cofactor == 1
    assert BLS12_381.cofactor == 0x396C8C005555E1568C00AAAB0000AAAB


def test_parameters_of_py_ecc() -> None:
    fields = pytest.importorskip("py_ecc.fields")
    for curve, package, FQ in (
        (BN254, "bn128", fields.bn128_FQ),
        (BLS12_381, "bls12_381", fields.bls12_381_FQ),
    ):
        theirs = import_module(f"py_ecc.{package}.{package}_curve")
        assert curve.q == FQ.field_modulus
        assert curve.r == theirs.curve_order
        assert curve.b == theirs.b.n
        assert curve.g1 == tuple(c.n for c in theirs.G1)
        assert curve.g2 == tuple(tuple(x if isinstance(x, int) else x.n for x in c.coeffs) for c in theirs.G2)
        assert curve.group(Group.G2).b == tuple(x if isinstance(x, int) else x.n for x in theirs.b2.coeffs)


def test_moduli_are_prime(field: FieldParams) -> None:
    assert is_probable_prime(field.modulus)


def test_montgomery_constants(field: FieldParams) -> None:
    p, bits = field.modulus, 64 * field.limbs
    assert 1 << (bits - 64) < p < 1 << bits
    assert (1 << bits) % p == field.R
    assert field.R * field.R_inverse % p == 1
    assert (field.n0 * p + 1) % (1 << 64) == 0
    for x in (0, 1, p - 1, 12345):
        assert field.from_montgomery(field.to_montgomery(x)) == x
    assert field.to_montgomery(1) == field.R


def test_roots_of_unity(field: FieldParams) -> None:
    p = field.modulus
    assert (p - 1) % (1 << field.two_adicity) == 0
    assert (p - 1) >> field.two_adicity & 1
    for log_n in range(field.two_adicity + 1):
        omega = field.root_of_unity(log_n)
        assert pow(omega, 1 << log_n, p) == 1
        assert log_n == 0 or pow(omega, 1 << (log_n - 1), p) == p - 1
        assert log_n == 0 or omega * omega % p == field.root_of_unity(log_n - 1)
    for log_n in (-1, field.two_adicity + 1):
        with pytest.raises(ValueError):
            field.root_of_unity(log_n)


def test_roots_of_unity_of_circom() -> None:
    # ffjavascript 0.3.1: (await buildBn128()).Fr.w[28], (await buildBls12381()).Fr.w[32].
    bn254 = 19103219067921713944291392827692070036145651957329286315305642004821462161904
    bls12_381 = 937917089079007706106976984802249742464848817460758522850752807661925904159
    assert (BN254.scalar.two_adicity, BN254.scalar.root_of_unity(28)) == (28, bn254)
    assert (BLS12_381.scalar.two_adicity, BLS12_381.scalar.root_of_unity(32)) == (32, bls12_381)


def test_domains(curve: CurveParams) -> None:
    field = curve.scalar
    for log_n in (0, 1, 5, field.two_adicity):
        domain = Domain(field, log_n)
        assert domain.size == 1 << log_n
        # g lies outside ⟨ω⟩: the vanishing polynomial has no zero on the coset.
        assert pow(domain.coset_generator, domain.size, field.modulus) != 1
        if log_n < field.two_adicity:
            assert pow(domain.coset_generator, 2, field.modulus) == domain.omega
    with pytest.raises(ValueError):
        Domain(field, field.two_adicity + 1)


def test_domains_of_other_generators() -> None:
    """halo2's roots of unity, ROOT_OF_UNITY of Fr in the crates halo2curves and bls12_381."""
    bn254 = 0x03DDB9F5166D18B798865EA93DD31F743215CF6DD39329C8D34F1ED960C37C9C
    bls12_381 = 0x16A2A19EDFE81F20D09B681922C813B4B63683508C2280B93829971F439F0D2B
    for curve, root in ((BN254, bn254), (BLS12_381, bls12_381)):
        field = curve.scalar
        largest, small = Domain(field, field.two_adicity, 7), Domain(field, 8, 7)
        assert largest.omega == small.family == root
        assert small.omega == pow(root, 1 << (field.two_adicity - 8), field.modulus)
        assert small.coset_generator**2 % field.modulus == small.omega
        assert pow(largest.coset_generator, largest.size, field.modulus) != 1
        assert Domain(field, 8, field.non_residue).omega == Domain(field, 8).omega != small.omega
        assert [small.shift(c) for c in (Coset.NONE, Coset.ODD, -1)] == [
            1, small.coset_generator, field.modulus - 1,
        ]  # fmt: skip
        with pytest.raises(ValueError, match="generator 4 "):
            Domain(field, 4, 4)
        with pytest.raises(ValueError, match="coset"):
            small.shift(field.modulus)


def test_generators_have_order_r(curve: CurveParams) -> None:
    assert reference.g1(curve).in_subgroup(curve.g1)
    assert reference.g2(curve).in_subgroup(curve.g2)


def test_orders_behind_the_subgroup_tests(curve: CurveParams, rng: random.Random) -> None:
    """What pairing.subgroup_check relies on, with orders from the trace and points of the whole curves."""
    q, r, t, x = curve.q, curve.r, curve.trace, curve.pairing.seed
    order, twist = whole_order(curve, Group.G1), whole_order(curve, Group.G2)
    for E, group, n in (
        (reference.g1(curve), Group.G1, order),
        (reference.g2(curve), Group.G2, twist),
    ):
        P = curve_point(curve, group, rng)
        assert E.scalar_mul(P, n) is None
        assert has_cofactor(curve, group) is (n != r)
    # A relation of ψ, coefficients from the lowest, puts P into the kernel of its norm, and so of r alone.
    relations = {
        "BN": [[x + 1, x, x, -2 * x], [6 * x + 2, 1, -1, 1]],
        "BLS12": [[-x, 1]],
    }
    for relation in relations[curve.pairing.family]:
        while len(relation) > 2:
            top = relation.pop()  # ψ² = tψ − q
            relation[-1] += t * top
            relation[-2] -= q * top
        a, b = relation
        assert math.gcd(a * a + a * b * t + b * b * q, twist) == r
    if curve.pairing.family == "BN":
        assert order == r
    else:
        # (βx, y) = −x²P puts P into the kernel of x⁴ − x² + 1.
        assert x**4 - x**2 + 1 == r


def test_tower_is_irreducible(curve: CurveParams) -> None:
    # x⁶ − ξ is irreducible over Fq2 if ξ is neither a square nor a cube there.
    F = reference.fq2(curve)
    order = curve.q**2 - 1
    assert reference.power(F, curve.pairing.xi, order // 2) != F.one
    assert reference.power(F, curve.pairing.xi, order // 3) != F.one


def test_embedding_degree_is_twelve(curve: CurveParams) -> None:
    assert (curve.q**12 - 1) % curve.r == 0
    assert all((curve.q**k - 1) % curve.r for k in (1, 2, 3, 4, 6))


def test_words_of_points() -> None:
    assert (BN254.g1_words, BN254.g2_words) == (8, 16)
    assert (BLS12_381.g1_words, BLS12_381.g2_words) == (12, 24)


def test_names() -> None:
    for name in ("bn254", "BN254", "bn128"):
        assert curve_by_name(name) is BN254
    for name in ("bls12-381", "BLS12_381", "bls12381"):
        assert curve_by_name(name) is BLS12_381
    with pytest.raises(KeyError):
        curve_by_name("bls12-377")
