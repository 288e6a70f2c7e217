"""Multiples of a key's points: the same proofs, made when they pay, gone with the key."""

from __future__ import annotations

import gc
import random
from pathlib import Path
from typing import Any

import pytest

from gpuprover import api
from gpuprover.cpu import multiples
from gpuprover.cpu.backend import CpuBackend
from gpuprover.cpu.path import cpu_path
from gpuprover.curves import CurveParams, Group
from gpuprover.demand import KeyHeader
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


def header(n: int) -> KeyHeader:
    return KeyHeader(8, n, 1, 8, 4 * n, n, n)


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
    expected = backend.msm(backend.prepare_bases(group, words), ints_to_words(scalars, curve.scalar.limbs))
    owner = Owner()
    with backend.proof(header(len(scalars)), owner):
        bases = backend.prepare_bases(group, words)
        assert (bases.parts, len(bases)) == (multiples.PARTS, len(scalars))
        assert backend.msm(bases, ints_to_words(scalars, curve.scalar.limbs)) == expected
        assert backend.msm(bases, backend.upload(ints_to_words(scalars, curve.scalar.limbs))) == expected
    assert backend.prepare_bases(group, words).parts == 1


def test_made_after_some_proofs_and_gone_with_the_key(
    curve: CurveParams, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multiples, "FREE", 2)
    backend, owner = CpuBackend(curve, Job(threads=1)), Owner()
    words = to_words(curve, Group.G1, some_points(curve, Group.G1, rng))
    seen = []
    for _ in range(4):
        with backend.proof(header(len(words)), owner):
            seen.append(backend.prepare_bases(Group.G1, words))
    assert [b.parts for b in seen] == [1, 1, multiples.PARTS, multiples.PARTS]
    assert seen[2].words is seen[3].words
    before = len(multiples._kept)
    del owner
    gc.collect()
    assert len(multiples._kept) == before - 1


def test_not_where_they_do_not_pay_or_do_not_fit(curve: CurveParams, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiples, "FREE", 0)
    backend, owner = CpuBackend(curve, Job(threads=1)), Owner()
    small, words = header(16), to_words(curve, Group.G1, [curve.g1])
    need = multiples.PARTS * (2 * small.g1_points + 4 * small.g2_points) * curve.base.bytes

    def parts(shape: KeyHeader) -> int:
        with backend.proof(shape, owner):
            return backend.prepare_bases(Group.G1, words).parts

    assert parts(header(multiples.LARGEST + 1)) == 1
    plan = backend.plan(small, None)
    for room, expected in ((need - 1, 1), (need, multiples.PARTS)):
        backend.plan(small, plan.tables + plan.arena + room)
        assert parts(small) == expected


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
