"""A curve without a pairing is a record like the others: Pallas and Vesta on two backends."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from gpuprover import reference
from gpuprover.backend import Backend, Form
from gpuprover.cpu.backend import CpuBackend
from gpuprover.cpu.layout import ranges_hold
from gpuprover.curves import BN254, CURVES, PAIRING_CURVES, CurveParams, Group
from gpuprover.job import Job
from gpuprover.limbs import (
    field_to_words,
    generator,
    ints_to_words,
    points_to_words,
    words_to_field,
    words_to_ints,
    words_to_points,
)
from gpuprover.naive import NaiveBackend
from gpuprover.polynomial import Coset, Direction, Domain
from tests.support.pasta import FP, FQ, PALLAS, VESTA

PASTA = [PALLAS, VESTA]


@pytest.fixture(params=PASTA, ids=lambda c: c.name)
def pasta(request: pytest.FixtureRequest) -> CurveParams:
    return request.param


@pytest.fixture(
    params=[
        "reference",
        pytest.param("cpu", marks=pytest.mark.slow),  # compiles kernels for two more fields
    ]
)
def backend(request: pytest.FixtureRequest, pasta: CurveParams) -> Backend:
    job = Job(threads=2)
    return NaiveBackend(pasta, job) if request.param == "reference" else CpuBackend(pasta, job)


def test_records(pasta: CurveParams) -> None:
    assert (pasta.cofactor, [*pasta.groups]) == (1, [Group.G1])
    assert pasta.group(Group.G1).words == pasta.g1_words == 8
    E = reference.group(pasta, Group.G1)
    assert E.in_subgroup(pasta.g1)
    assert not E.in_subgroup((pasta.g1[0], 3))
    for ask in (lambda: pasta.pairing, lambda: pasta.g2, lambda: pasta.g2_words):
        with pytest.raises(ValueError, match=f"^{pasta.name} has no "):
            ask()
    assert pasta not in PAIRING_CURVES


def test_all_curves_of_the_package_have_a_pairing() -> None:
    assert PAIRING_CURVES == CURVES


def test_generators_of_kimchi() -> None:
    """x = 1 on both curves: the generators that o1-labs/proof-systems takes."""
    for curve, y in (
        (PALLAS, 12418654782883325593414442427049395787963493412651469444558597405572177144507),
        (VESTA, 11426906929455361843568202299992114520848200991084027513389447476559454104162),
    ):
        assert reference.group(curve, Group.G1).in_subgroup((1, y))
        assert replace(curve, g1=(1, y)).group(Group.G1).generator == (1, y)


def test_roots_of_unity_of_the_pasta_curves() -> None:
    # 5^((p − 1)/2^32), the constants of zcash/pasta_curves.
    assert FP.root_of_unity(32) == 0x2BCE74DEAC30EBDA362120830561F81AEA322BF2B7BB7584BDAD6FABD87EA32F
    assert FQ.root_of_unity(32) == 0x2DE6A9B8746D3F589E5C4DFD492AE26E9BB97EA3C106F049A70E2C1102B6D05F


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"g1": (PALLAS.q - 1, 3)}, "the generator of G1 is off the curve"),
        ({"scalar": BN254.scalar}, "no curve over Fq has a multiple of r points"),
        ({"b": 6}, "the generator of G1 is off the curve"),
        ({"ate": BN254.ate}, "needs q ≡ 3"),
    ],
)
def test_a_record_that_contradicts_itself_is_none(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(AssertionError, match=reason):
        replace(PALLAS, **changes)


def test_a_pairing_of_another_curve_is_none() -> None:
    with pytest.raises(AssertionError, match="bn254: not of its family"):
        replace(BN254, ate=replace(BN254.pairing, seed=BN254.pairing.seed + 1))


def test_fields(backend: Backend, pasta: CurveParams, rng: random.Random) -> None:
    r, limbs = pasta.r, pasta.scalar.limbs
    x = [0, 1, r - 1, *(rng.randrange(r) for _ in range(13))]
    y = [rng.randrange(1, r) for _ in x]
    a, b = (backend.upload(ints_to_words(values, limbs)) for values in (x, y))

    def values(v: object) -> list[int]:
        return words_to_ints(backend.download(v))

    assert values(backend.add(a, b)) == [(i + j) % r for i, j in zip(x, y, strict=True)]
    assert values(backend.sub(a, b)) == [(i - j) % r for i, j in zip(x, y, strict=True)]
    assert values(backend.mul(a, b)) == [i * j % r for i, j in zip(x, y, strict=True)]
    assert values(backend.batch_inverse(b)) == [pow(j, -1, r) for j in y]
    assert words_to_field(pasta.scalar, backend.download(a, Form.MONTGOMERY)) == x
    domain = Domain(pasta.scalar, 4)
    v = backend.ntt(backend.upload(ints_to_words(x, limbs)), domain, Direction.FORWARD, coset=Coset.ODD)
    assert values(v) == reference.dft(pasta.scalar, x, domain.omega, domain.coset_generator)


def test_points(backend: Backend, pasta: CurveParams, rng: random.Random) -> None:
    E, r = reference.group(pasta, Group.G1), pasta.r
    logs = [1, 0, r - 1, 2, 2, *(rng.randrange(r) for _ in range(5))]
    scalars = [r - 1, 5, 1, 7, r - 7, *(rng.randrange(r) for _ in range(5))]
    host = [E.scalar_mul(pasta.g1, k) for k in logs]
    points, words = points_to_words(pasta, Group.G1, host), ints_to_words(scalars, pasta.scalar.limbs)
    assert words_to_points(pasta, Group.G1, points) == host
    total = points_to_words(
        pasta, Group.G1, [E.scalar_mul(pasta.g1, sum(k * s for k, s in zip(logs, scalars, strict=True)) % r)]
    )
    assert np.array_equal(backend.msm(backend.prepare_bases(Group.G1, points), words), total[0])
    assert np.array_equal(backend.points.linear_combination(Group.G1, points, scalars), total[0])
    multiples = backend.fixed_base_mul(Group.G1, generator(pasta, Group.G1), ints_to_words(logs, 4))
    assert np.array_equal(multiples, points)
    starts, columns = np.array([0, 0, len(logs)], dtype=np.int64), np.arange(len(logs), dtype=np.uint32)
    rows = backend.points.sparse_combination(Group.G1, points, starts, columns, words)
    assert np.array_equal(rows, np.concatenate([np.zeros_like(total), total]))
    assert backend.points.first_bad_point(Group.G1, points) == -1
    points[3, -1] ^= np.uint64(1)
    assert backend.points.first_bad_point(Group.G1, points) == 3
    assert np.array_equal(
        backend.points.canonical_coordinates(total),
        ints_to_words(words_to_field(pasta.base, total.reshape(-1, 4)), 4).reshape(1, -1),
    )


def test_eight_lanes_are_not_taken_for_ranges_that_nobody_stated(pasta: CurveParams) -> None:
    assert not ranges_hold(pasta.base)
    assert all(ranges_hold(curve.base) for curve in CURVES)
    assert CpuBackend(pasta, Job(threads=1)).path.name == "portable"


def test_words_of_both_fields(pasta: CurveParams) -> None:
    for field in (pasta.base, pasta.scalar):
        values = [0, 1, field.modulus - 1]
        assert words_to_field(field, field_to_words(field, values)) == values
