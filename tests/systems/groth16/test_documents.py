"""Verification keys, proofs and public signals as documents."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpuprover.curves import BLS12_381, BN254, CURVES, CurveParams, Group
from gpuprover.errors import MalformedFile, ProverError, UnsupportedFile
from gpuprover.formats.json_files import read_json
from gpuprover.formats.snarkjs_json import g1_to_json, g2_to_json, parse_public_signals
from gpuprover.systems.groth16.documents import (
    Proof,
    parse_proof,
    parse_verification_key,
    proof_to_json,
    verification_key_to_json,
)
from gpuprover.systems.groth16.key import load_key
from tests.support.paths import VECTORS

both_curves = pytest.mark.parametrize("curve", CURVES, ids=lambda c: c.name)


def document(curve: CurveParams, name: str) -> Any:
    return json.loads((VECTORS / f"chain5.{curve.name}.{name}.json").read_text())


@both_curves
def test_verification_key(curve: CurveParams) -> None:
    key = load_key(VECTORS / f"chain5.{curve.name}.zkey")
    parsed = parse_verification_key(document(curve, "vkey"))
    assert parsed == key.vk
    assert parsed.n_public == 2
    assert key.verification_key == document(curve, "vkey")


@both_curves
def test_digest_is_of_the_values(curve: CurveParams) -> None:
    """However a key is written; any other value gives another digest."""
    written = document(curve, "vkey")
    key = parse_verification_key(written)
    bare = key.document
    assert bare == {name: value for name, value in written.items() if name != "vk_alphabeta_12"}
    assert parse_verification_key(bare).digest == key.digest
    numbers = json.loads(json.dumps(written).replace('"1"', "1"))
    assert parse_verification_key(numbers).digest == key.digest
    other = replace(key, ic=np.stack([*key.ic[:-1], key.alpha1]))
    swapped = replace(key, gamma2=key.delta2, delta2=key.gamma2)
    assert len({k.digest for k in (key, other, swapped)}) == 3


def test_verification_keys_of_snarkjs(data_dir: Path) -> None:
    """The document of each key, pairing included, byte for byte; proofs and signals are read."""
    paths = sorted((data_dir / "groth16").glob("*.groth16.zkey"))
    assert paths
    for path in paths:
        expected = path.with_suffix("").with_suffix(".groth16.vkey.json").read_text()
        key = load_key(path)
        assert json.dumps(key.verification_key, indent=1) == expected
        assert parse_verification_key(json.loads(expected)) == key.vk
        name = path.name.split(".")[0]
        for proof in sorted(path.parent.glob(f"{name}.*.proof.json")):
            parse_proof(read_json(proof), key.curve, str(proof))
        signals = read_json(path.parent / f"{name}.public.json")
        assert len(parse_public_signals(signals, key.curve, key.n_public)) == key.n_public


@both_curves
def test_proof_round_trip(curve: CurveParams) -> None:
    proof = parse_proof(document(curve, "proof"), curve)
    assert proof_to_json(proof, curve) == document(curve, "proof")
    nothing = Proof(*(np.zeros(group.words(curve), np.uint64) for group in (Group.G1, Group.G2, Group.G1)))
    assert parse_proof(proof_to_json(nothing, curve), curve) == nothing


def test_points_at_infinity_stand_as_in_snarkjs() -> None:
    assert g1_to_json(None) == ["0", "1", "0"]
    assert g2_to_json(None) == [["0", "0"], ["1", "0"], ["0", "0"]]


@both_curves
def test_what_other_tools_write_is_read(curve: CurveParams) -> None:
    original = document(curve, "proof")
    expected = parse_proof(original, curve)
    bare = {name: original[name] for name in ("pi_a", "pi_b", "pi_c")}
    assert parse_proof(bare, curve) == expected

    def numbers(value: Any) -> Any:
        return [numbers(v) for v in value] if isinstance(value, list) else int(value)

    assert parse_proof({name: numbers(value) for name, value in bare.items()}, curve) == expected
    short = {name: value[:2] for name, value in bare.items()}
    assert parse_proof(short, curve) == expected


def test_curve_defaults_to_bn254() -> None:
    key = document(BN254, "vkey")
    del key["curve"], key["vk_alphabeta_12"]
    assert parse_verification_key(key).curve == BN254


X = object()
"""Stands for: remove the field."""

POINT_PROBLEMS = [
    (X, "missing"),
    ("12", "expected a list"),
    ([], "found 0 entries"),
    (["1", "2", "1", "1"], "found 4 entries"),
    (["1", "x", "1"], "expected integers"),
    (["1", None, "1"], "expected integers"),
    (["1", -2, "1"], "expected integers"),
    (["1", 2.0, "1"], "expected integers"),
    (["1", True, "1"], "expected integers"),
    (["1", "9" * 5000, "1"], "expected integers"),
    (["1", "1", "1"], "not on the curve"),
    (["1", "2", "2"], "third has to be 1"),
    (["1", "2", "0"], "third has to be 1"),
    (["0", "0", "1"], "not on the curve"),
    ([str(BN254.q + 1), "2", "1"], "not below the base prime"),
    (["1", str(2**300), "1"], "not below the base prime"),
]


@pytest.mark.parametrize(("value", "problem"), POINT_PROBLEMS)
@pytest.mark.parametrize("field", ["pi_a", "pi_c"])
def test_bad_g1_points(field: str, value: Any, problem: str) -> None:
    proof = document(BN254, "proof")
    if value is X:
        del proof[field]
    else:
        proof[field] = value
    with pytest.raises(MalformedFile, match=problem) as caught:
        parse_proof(proof, BN254, "proof.json")
    assert str(caught.value).startswith(f"proof.json: {field}: ")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda b: b[0], "expected a list of"),
        (lambda b: [b[0], b[1], b[2], b[2]], "expected a list of 3 pairs"),
        (lambda b: [b[0], b[1][:1], b[2]], "expected a list of 2"),
        (lambda b: [b[0][::-1], b[1], b[2]], "not on the twist"),
        (lambda b: [b[0], b[1], ["1", "1"]], "third has to be"),
        (lambda b: [b[0], b[1], ["0", "0"]], "third has to be"),
        (lambda b: [b[0], b[1], "1"], "expected a list of 2"),
        (lambda b: [[str(BN254.q), "0"], b[1], b[2]], "not below the base prime"),
        (lambda b: {"x": b[0]}, "expected a list of 3"),
    ],
)
def test_bad_g2_points(change: Any, problem: str) -> None:
    proof = document(BN254, "proof")
    proof["pi_b"] = change(proof["pi_b"])
    with pytest.raises(MalformedFile, match=problem) as caught:
        parse_proof(proof, BN254, "proof.json")
    assert str(caught.value).startswith("proof.json: pi_b: ")


def test_documents_of_another_kind() -> None:
    proof, key = document(BN254, "proof"), document(BN254, "vkey")
    for other in ([], "x", 5, None):
        with pytest.raises(MalformedFile, match="expected a Groth16 proof"):
            parse_proof(other, BN254)
        with pytest.raises(MalformedFile, match="expected a Groth16 verification key"):
            parse_verification_key(other)
    with pytest.raises(UnsupportedFile, match="protocol: expected 'groth16', found \"plonk\""):
        parse_proof(proof | {"protocol": "plonk"}, BN254)
    with pytest.raises(UnsupportedFile, match="protocol"):
        parse_verification_key(key | {"protocol": ["groth16"]})
    for curve in ("bls12381", "secp256k1", 5, None):
        with pytest.raises(UnsupportedFile, match="curve: expected bn128"):
            parse_proof(proof | {"curve": curve}, BN254)
    with pytest.raises(UnsupportedFile, match="expected bn128 or bls12381"):
        parse_verification_key(key | {"curve": "secp256k1"})
    with pytest.raises(ProverError):
        parse_verification_key(proof)
    with pytest.raises(MalformedFile, match=r"not on the curve|not below"):
        parse_proof({**proof, "curve": "bls12381"}, BLS12_381)


@pytest.mark.parametrize(
    "field", ["vk_alpha_1", "vk_beta_2", "vk_gamma_2", "vk_delta_2", "IC", "nPublic", "protocol"]
)
def test_incomplete_verification_keys(field: str) -> None:
    key = document(BN254, "vkey")
    del key[field]
    with pytest.raises(MalformedFile, match=f"{field}: missing"):
        parse_verification_key(key)


def test_inconsistent_verification_keys() -> None:
    key = document(BN254, "vkey")
    for n_public in (1, 3):
        with pytest.raises(MalformedFile, match=f"IC: 3 points, expected {n_public + 1}"):
            parse_verification_key(key | {"nPublic": n_public})
    for bad in ("2", 2.0, True, -1, 2**40):
        with pytest.raises(MalformedFile, match="nPublic: expected a whole number"):
            parse_verification_key(key | {"nPublic": bad})
    for name in ("vk_alpha_1", "vk_beta_2", "vk_gamma_2", "vk_delta_2"):
        infinity = g1_to_json(None) if name == "vk_alpha_1" else g2_to_json(None)
        with pytest.raises(MalformedFile, match=f"{name}: the point at infinity"):
            parse_verification_key(key | {name: infinity})
    damaged = copy.deepcopy(key)
    damaged["IC"][2][0] = "3"
    with pytest.raises(MalformedFile, match=r"IC\[2\]: the point is not on the curve"):
        parse_verification_key(damaged)
    damaged["IC"] = {"0": 1}
    with pytest.raises(MalformedFile, match="IC: expected a list"):
        parse_verification_key(damaged)


@both_curves
def test_public_signals(curve: CurveParams) -> None:
    r = curve.r
    assert parse_public_signals(["0", 1, str(r - 1), "0x10"], curve, 4) == [0, 1, r - 1, 16]
    assert parse_public_signals([], curve) == []
    for bad, problem in (
        ({"a": 1}, "expected a list"),
        ("12", "expected a list"),
        (["1"], "1 signals, expected 2"),
        (["1", str(r)], "signal 1: not below the prime"),
        (["x", "1"], 'signal 0: expected an integer, found "x"'),
        ([-1, 1], "signal 0: expected an integer"),
        ([1, 1.5], "signal 1: expected an integer"),
    ):
        with pytest.raises(MalformedFile, match=problem):
            parse_public_signals(bad, curve, 2)


def test_exported_document_is_complete() -> None:
    key = load_key(VECTORS / "chain5.bn254.zkey")
    exported = verification_key_to_json(key.vk)
    assert list(exported) == [
        "protocol",
        "curve",
        "nPublic",
        "vk_alpha_1",
        "vk_beta_2",
        "vk_gamma_2",
        "vk_delta_2",
        "vk_alphabeta_12",
        "IC",
    ]
