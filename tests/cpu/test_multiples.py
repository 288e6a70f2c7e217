"""Multiples of a key's points: the same proofs, made when they pay, gone with the key."""

from __future__ import annotations

import gc
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpuprover import api
from gpuprover.cpu import multiples
from gpuprover.cpu.backend import CpuBackend
from gpuprover.cpu.path import cpu_path
from gpuprover.curves import CurveParams, Group
from gpuprover.demand import UNLIMITED, Budget, Demand, KeyBases
from gpuprover.errors import UnsatisfiedWitness
from gpuprover.job import Job
from gpuprover.limbs import ints_to_words
from tests.support.samples import curve_point, field_edges, generator, spec, to_words

PATHS = ["ifma", "portable"] if cpu_path().name == "ifma" else ["portable"]


class Owner:
    pass


def some_points(curve: CurveParams, group: Group, rng: random.Random) -> list[Any]:
    """Infinity, equal and opposite points, one outside the subgroup where there are such."""
    P = generator(curve, group)
    return [None, P, spec(curve, group).neg(P), curve_point(curve, group, rng)]


def demand(curve: CurveParams, group: Group, n: int) -> Demand:
    """Of one sum of n points, and vectors of 8 elements."""
    bases = KeyBases("points", group, n)
    return Demand("test", curve, n, (), (bases,), (), (), (("points",),), lambda *_: None)


@pytest.mark.parametrize("path", PATHS)
def test_sums_are_the_same(
    curve: CurveParams, group: Group, path: str, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scalars and points of every kind, those that carry out of a part included."""
    monkeypatch.setenv("PROVER_CPU_PATH", path)
    monkeypatch.setattr(multiples, "FREE", 0)
    scalars = [*field_edges(curve.r), (1 << 64) - 1, (1 << 128) - (1 << 64), curve.r - (1 << 64)]
    scalars += [rng.randrange(curve.r) for _ in range(20)]
    points = some_points(curve, group, rng)
    words = to_words(curve, group, [rng.choice(points) for _ in scalars])
    backend = CpuBackend(curve, Job(threads=2))
    factors = ints_to_words(scalars, curve.scalar.limbs)
    expected = backend.msm(backend.prepare_bases(group, words), factors)
    owner = Owner()
    with backend.session(demand(curve, group, len(scalars)), owner, UNLIMITED):
        bases = backend.bases("points", words)
        assert (bases.parts, len(bases)) == (multiples.parts(len(scalars)), len(scalars))
        for given in (factors, backend.upload(factors)):
            assert np.array_equal(backend.msm(bases, given), expected)
    assert backend.prepare_bases(group, words).parts == 1


@pytest.mark.parametrize("count", [4, 8, 16, 32])
def test_any_number_of_parts(
    curve: CurveParams, group: Group, count: int, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multiples, "FREE", 0)
    monkeypatch.setattr(multiples, "PARTS", ((multiples.LARGEST, count),))
    scalars = [*field_edges(curve.r), *(rng.randrange(curve.r) for _ in range(9))]
    words = to_words(curve, group, [rng.choice(some_points(curve, group, rng)) for _ in scalars])
    backend, factors = CpuBackend(curve, Job(threads=2)), ints_to_words(scalars, curve.scalar.limbs)
    with backend.session(demand(curve, group, len(scalars)), Owner(), UNLIMITED):
        bases = backend.bases("points", words)
        assert bases.parts == count
        got = backend.msm(bases, factors)
    assert np.array_equal(got, backend.msm(backend.prepare_bases(group, words), factors))


def test_points_that_keys_share_count_their_sums(curve: CurveParams, rng: random.Random) -> None:
    """A second key finds the multiples that the first one's proof was worth, and they go with the points."""
    backend, n = CpuBackend(curve, Job(threads=1)), 300
    words = to_words(curve, Group.G1, [curve.g1] * n)
    shared = KeyBases("points", Group.G1, n, sums=2, shared="powers of some s")
    asked = replace(demand(curve, Group.G1, n), bases=(shared,))
    seen = []
    for owner in (Owner(), Owner()):
        with backend.session(asked, owner, UNLIMITED):
            seen.append(backend.bases("points", words).parts)
    assert seen == [1, 16]
    assert multiples.free(n) == 3
    name = id(words)
    assert name in multiples._kept
    del words
    gc.collect()
    assert name not in multiples._kept


def test_made_after_some_proofs_and_gone_with_the_key(
    curve: CurveParams, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, owner = CpuBackend(curve, Job(threads=1)), Owner()
    words = to_words(curve, Group.G1, some_points(curve, Group.G1, rng))
    seen = []
    for _ in range(4):
        with backend.session(demand(curve, Group.G1, len(words)), owner, UNLIMITED):
            seen.append(backend.bases("points", words))
    assert [b.parts for b in seen] == [1, 32, 32, 32]
    assert seen[1].words is seen[3].words
    name = id(owner)
    assert name in multiples._kept
    del owner
    gc.collect()
    assert name not in multiples._kept


def test_not_where_they_do_not_pay_or_do_not_fit(curve: CurveParams, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiples, "FREE", 0)
    backend, owner = CpuBackend(curve, Job(threads=1)), Owner()
    small, words = demand(curve, Group.G1, 16), to_words(curve, Group.G1, [curve.g1])
    need = 32 * small.point_bytes

    def parts(asked: Demand, room: int | None = None) -> int:
        with backend.session(asked, owner, Budget(room)):
            return backend.bases("points", words).parts

    assert parts(demand(curve, Group.G1, multiples.LARGEST + 1)) == 1
    plan = backend.plan(small, UNLIMITED)
    for room, expected in ((need - 1, 1), (need, 32)):
        assert parts(small, plan.tables + plan.arena + room) == expected


def test_whole_proofs(curve: CurveParams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpuprover.circuits import chain_circuit

    chain_circuit(60, curve).write(tmp_path / "c.r1cs", tmp_path / "c.wtns")
    api.setup(tmp_path / "c.r1cs", tmp_path / "c.zkey", insecure=True)
    key = api.load_key(tmp_path / "c.zkey")
    witness = tmp_path / "c.wtns"
    without = api.prove(key, witness, blinding=(3, 5))
    monkeypatch.setattr(multiples, "FREE", 0)
    for _ in range(2):
        assert api.prove(key, witness, blinding=(3, 5)).proof == without.proof
    values = [int(x) for x in range(key.n_vars)]
    with pytest.raises(UnsatisfiedWitness):
        api.prove(key, [1, *values[1:]])
