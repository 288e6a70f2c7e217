"""Proofs that nobody verifies, and blinding that is not random: neither gives the witness away unnoticed."""

from __future__ import annotations

import dataclasses
import inspect
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpuprover
from gpuprover.curves import BLS12_381, BN254, CurveParams, Group
from gpuprover.executor import ProofRequest
from gpuprover.systems.groth16 import prover
from gpuprover.systems.groth16.key import B1, B2, A, H, ProvingKey, load_key
from tests.support.containers import edit, put
from tests.support.paths import VECTORS
from tests.support.samples import curve_point, from_words, plain, row, spec, to_words


def _outside(curve: CurveParams, group: Group) -> Any:
    """A point whose order has nothing in common with r."""
    rng = random.Random(5)
    while True:
        found = spec(curve, group).scalar_mul(curve_point(curve, group, rng), curve.r)
        if found is not None:
            return found


def _key(curve: CurveParams, section: int, group: Group, place: int) -> tuple[ProvingKey, Path]:
    """A key with such a point added to one of a section."""
    stem = VECTORS / f"chain5.{curve.name}"
    whole = Path(f"{stem}.zkey").read_bytes()
    key = load_key(whole)
    points = {A: key.a, B1: key.b1, B2: key.b2, H: key.h}[section]
    (old,) = from_words(curve, group, np.array(points[place : place + 1]))
    new = to_words(curve, group, [spec(curve, group).add(old, _outside(curve, group))])
    data = edit(whole, section, put(place * new.nbytes, new.tobytes()))
    return load_key(data), Path(f"{stem}.wtns")


@pytest.mark.parametrize(
    ("curve", "section", "group"),
    [(BLS12_381, A, Group.G1), (BLS12_381, B1, Group.G1), (BLS12_381, H, Group.G1), (BLS12_381, B2, Group.G2),
     (BN254, B2, Group.G2)],
    ids=lambda x: getattr(x, "name", x),
)  # fmt: skip
@pytest.mark.parametrize("verify", [True, False])
def test_a_hostile_key_makes_no_proof(curve: CurveParams, section: int, group: Group, verify: bool) -> None:
    """A point of small order would show wires modulo that order in an unverified proof."""
    key, witness = _key(curve, section, group, 2)
    for _ in range(2):
        with pytest.raises(gpuprover.MalformedFile, match=r"point 2 is off the curve"):
            gpuprover.prove(key, witness, verify=verify)


def test_the_points_of_a_key_are_looked_at_once(curve: CurveParams, monkeypatch: pytest.MonkeyPatch) -> None:
    stem, looked = VECTORS / f"chain5.{curve.name}", []
    real = ProvingKey.check_points

    def counted(self: ProvingKey, backend: Any) -> None:
        looked.append(id(self))
        real(self, backend)

    monkeypatch.setattr(ProvingKey, "check_points", counted)
    one, two = (gpuprover.load_key(f"{stem}.zkey") for _ in range(2))
    for key in (one, one, two, one, two):
        result = gpuprover.prove(key, f"{stem}.wtns", verify=False)
        assert gpuprover.verify(key.vk, result.public_signals, result.proof)
    assert looked == [id(one), id(two)]
    gpuprover.prove(one, f"{stem}.wtns")
    assert len(looked) == 2


@pytest.mark.parametrize("part", ["a", "b", "c"])
def test_the_points_of_an_unverified_proof_are_in_their_subgroups(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a key whose points have changed after they were looked at."""
    curve, real = BLS12_381, prover.prove

    def moved(*arguments: Any) -> Any:
        proof, group = real(*arguments), Group.G2 if part == "b" else Group.G1
        point = spec(curve, group).add(plain(curve, group, getattr(proof, part)), _outside(curve, group))
        return dataclasses.replace(proof, **{part: row(curve, group, point)})

    monkeypatch.setattr(prover, "prove", moved)
    stem = VECTORS / "chain5.bls12-381"
    with pytest.raises(gpuprover.MalformedFile, match="changed since they were checked"):
        gpuprover.prove(f"{stem}.zkey", f"{stem}.wtns", verify=False)


# Blinding -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blinding", [(0, 0), (7, 11), [1, 2]])
def test_fixed_blinding_is_loud(blinding: Any) -> None:
    stem = VECTORS / "chain5.bn254"
    with pytest.warns(gpuprover.InsecureBlindingWarning, match="gives the witness away") as caught:
        gpuprover.prove(f"{stem}.zkey", f"{stem}.wtns", blinding=blinding)
    assert [Path(w.filename) for w in caught] == [Path(__file__)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gpuprover.prove(f"{stem}.zkey", f"{stem}.wtns")
        with pytest.raises(gpuprover.InsecureBlindingWarning):
            gpuprover.prove(f"{stem}.zkey", f"{stem}.wtns", blinding=blinding)


@pytest.mark.parametrize(
    "blinding", [(1,), (1, 2, 3), (-1, 2), (1.0, 2), (True, 2), ("1", "2"), "12", 5, {1: 2, 3: 4}, b"12"]
)
def test_blinding_that_is_none(blinding: Any) -> None:
    stem = VECTORS / "chain5.bn254"
    with pytest.raises(gpuprover.InvalidInput, match="blinding"):
        gpuprover.prove(f"{stem}.zkey", f"{stem}.wtns", blinding=blinding)


def test_only_the_library_takes_it() -> None:
    """Neither an engine, nor a request to a worker, nor a command, nor the service."""
    from gpuprover.cli.parser import build_parser
    from gpuprover.service import models

    for method in ("prove", "aprove", "submit", "asubmit"):
        assert "blinding" not in inspect.signature(getattr(gpuprover.Prover, method)).parameters
    assert "blinding" not in {f.name for f in dataclasses.fields(ProofRequest)}
    assert "blinding" not in build_parser().format_help()
    bodies = [m for m in vars(models).values() if isinstance(m, type) and hasattr(m, "model_fields")]
    assert bodies
    assert not any("blinding" in body.model_fields for body in bodies)
