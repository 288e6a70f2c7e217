"""FFLONK's verification keys and proofs as documents."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpuprover.curves import BLS12_381, BN254, Group
from gpuprover.errors import MalformedFile, UnsupportedFile
from gpuprover.limbs import generator, negative
from gpuprover.plonkish.documents import KNOWN_TAU
from gpuprover.systems.fflonk.documents import (
    PROOF_SCHEMA,
    Evaluations,
    Proof,
    VerificationKey,
    parse_proof,
    parse_verification_key,
    proof_to_json,
)
from tests.support.plonk import sample

R, Q = BN254.r, BN254.q


QUIRKS = sample("quirks", "fflonk")


def document(name: str) -> Any:
    return {"vkey": QUIRKS.verification_key, "proof": QUIRKS.proof}[name]


def test_documents_of_snarkjs_byte_for_byte(data_dir: Path) -> None:
    folder = data_dir / "plonk" / "fixed"
    paths = [*folder.rglob("*.fflonk.b-fixed.proof.json"), data_dir / "plonk" / "poseidon2.fflonk.proof.json"]
    assert len(paths) > 8
    for path in paths:
        text = path.read_text()
        assert json.dumps(proof_to_json(parse_proof(json.loads(text), BN254), BN254), indent=1) == text
        vkey = path.with_name(path.name.replace("b-fixed.", "").replace("proof", "vkey")).read_text()
        assert json.dumps(parse_verification_key(json.loads(vkey)).document, indent=1) == vkey


def test_own_documents_byte_for_byte() -> None:
    """Three public signals; all of a strict parser's demands are met."""
    proof, vkey = QUIRKS.proof_text, QUIRKS.verification_key_text
    parsed = parse_proof(json.loads(proof), BN254, strict=True)
    assert json.dumps(proof_to_json(parsed, BN254), indent=1) == proof
    key = parse_verification_key(json.loads(vkey))
    assert json.dumps(key.document, indent=1) == vkey
    assert (key.protocol, key.curve, key.n_public, key.warnings) == ("fflonk", BN254, 3, ())


def test_the_schema_names_what_is_written() -> None:
    written = proof_to_json(parse_proof(document("proof"), BN254), BN254)
    assert PROOF_SCHEMA["title"] == "FflonkProof"
    assert PROOF_SCHEMA["required"] == [*written]
    for group in ("polynomials", "evaluations"):
        assert [*PROOF_SCHEMA["properties"][group]["properties"]] == [*written[group]]


def test_digest_and_equality_are_of_the_values() -> None:
    written = document("vkey")
    key = parse_verification_key(written)
    numbers = {name: int(v) if isinstance(v, str) and v.isdecimal() else v for name, v in written.items()}
    again = parse_verification_key(numbers, "elsewhere")
    assert again == key
    assert hash(again) == hash(key)
    assert again.digest == key.digest
    others = [
        replace(key, n_public=2),
        replace(key, power=7),
        replace(key, constants=key.constants._replace(k1=5)),
        replace(key, c0=negative(BN254, key.c0)),
        replace(key, tau_g2=generator(BN254, Group.G2)),
    ]
    assert len({k.digest for k in (key, *others)}) == len(set(others) | {key}) == 6
    assert key != written


def test_proofs_are_equal_by_value() -> None:
    proof = parse_proof(document("proof"), BN254)
    assert proof == parse_proof(document("proof"), BN254)
    assert proof != replace(proof, inv=1)
    assert proof != replace(proof, points=proof.points[::-1])
    assert proof != replace(proof, evaluations=proof.evaluations._replace(t2w=0))
    assert proof != "proof"
    nothing = Proof(np.zeros_like(proof.points), Evaluations(*[0] * 15), 0)
    assert parse_proof(proof_to_json(nothing, BN254), BN254) == nothing


@pytest.fixture
def key() -> VerificationKey:
    return parse_verification_key(document("vkey"))


def test_what_is_left_out_or_written_otherwise() -> None:
    proof = document("proof")
    parsed = parse_proof(proof, BN254)
    bare = {name: proof[name] for name in ("polynomials", "evaluations")}
    assert parse_proof(bare, BN254) == parsed
    points = {name: [int(c) for c in p[:2]] for name, p in proof["polynomials"].items()}
    values = {name: hex(int(v)) for name, v in proof["evaluations"].items()}
    other = {"polynomials": points, "evaluations": values}
    assert parse_proof(other, BN254) == parsed
    with pytest.raises(MalformedFile, match="decimal text without leading zeros"):
        parse_proof(other, BN254, strict=True)
    vkey = document("vkey")
    del vkey["curve"]
    assert parse_verification_key(vkey) == parse_verification_key(document("vkey"))


X = object()
"""Stands for: remove the field."""


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (X, "missing"),
        ("12", "expected a list"),
        (["1", "2", "1", "1"], "found 4 entries"),
        (["1", "1", "1"], "not on the curve"),
        (["1", "2", "2"], "third has to be 1"),
        (["1", str(Q + 2), "1"], "not below the base prime"),
        ({"x": "1"}, "expected a list"),
    ],
)
@pytest.mark.parametrize("name", ["C1", "C2", "W1", "W2"])
def test_bad_points(name: str, value: Any, problem: str) -> None:
    proof = document("proof")
    proof["polynomials"][name] = value
    if value is X:
        del proof["polynomials"][name]
    with pytest.raises(MalformedFile, match=problem) as caught:
        parse_proof(proof, BN254, "proof.json")
    assert str(caught.value).startswith(f"proof.json: polynomials.{name}: ")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (X, "missing"),
        (str(R), "not below the prime of"),
        (R + 1, "not below the prime of"),
        ("-1", "expected an integer"),
        ("x", "expected an integer"),
        (True, "expected an integer"),
        (1.0, "expected an integer"),
        (["1"], "expected an integer, found a list"),
        (None, "expected an integer"),
    ],
)
@pytest.mark.parametrize("name", [*Evaluations._fields, "inv"])
def test_bad_values(name: str, value: Any, problem: str) -> None:
    proof = document("proof")
    proof["evaluations"][name] = value
    if value is X:
        del proof["evaluations"][name]
    with pytest.raises(MalformedFile, match=problem) as caught:
        parse_proof(proof, BN254, "proof.json")
    assert str(caught.value).startswith(f"proof.json: evaluations.{name}: ")
    assert caught.value.role == "proof"


def test_documents_of_another_kind() -> None:
    proof, vkey = document("proof"), document("vkey")
    other: Any
    for other in ([], "x", 5, None):
        with pytest.raises(MalformedFile, match="expected an FFLONK proof"):
            parse_proof(other, BN254)
        with pytest.raises(MalformedFile, match="expected an FFLONK verification key"):
            parse_verification_key(other)
        for name in ("polynomials", "evaluations"):
            with pytest.raises(MalformedFile, match=f"{name}: expected an object"):
                parse_proof({**proof, name: other}, BN254)
    with pytest.raises(UnsupportedFile, match="protocol: expected 'fflonk', found \"plonk\""):
        parse_proof({**proof, "protocol": "plonk"}, BN254)
    with pytest.raises(UnsupportedFile, match="protocol"):
        parse_verification_key({**vkey, "protocol": "groth16"})
    with pytest.raises(UnsupportedFile, match="curve: expected bn128"):
        parse_proof({**proof, "curve": "bls12381"}, BN254)
    with pytest.raises(UnsupportedFile, match="curve: FFLONK is over BN254 only"):
        parse_verification_key({**vkey, "curve": BLS12_381.snarkjs_name})


OMEGA = BN254.scalar.root_of_unity(6)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        *((name, X, "missing") for name in ("nPublic", "power", "k1", "k2", "w", "w3", "w4", "w8", "wr")),
        ("X_2", X, "missing"),
        ("C0", X, "missing"),
        ("protocol", X, "missing"),
        ("nPublic", "3", "expected a whole number"),
        ("nPublic", -1, "expected a whole number"),
        ("nPublic", True, "expected a whole number"),
        ("nPublic", 63, "63 public signals on 2\\^6 rows, 2 of which"),
        ("power", 2, "whole number from 3 to 26"),
        ("power", 27, "whole number from 3 to 26"),
        ("power", 6.0, "expected a whole number"),
        ("power", 7, "root of unity of order 2\\^7"),
        ("k1", "0", "so that positions of wires coincide"),
        ("k1", str(R), "not below the prime"),
        ("k1", str(OMEGA), "so that positions of wires coincide"),
        ("k2", "0", "so that positions of wires coincide"),
        ("k2", str(OMEGA), "so that positions of wires coincide"),
        ("k2", str(2 * OMEGA % R), "so that positions of wires coincide"),
        ("w", "1", "the root of unity of order"),
        ("w3", "1", "third root"),
        ("w3", "5", "third root"),
        ("w4", str(R - 1), "root of unity of order 4"),
        ("w8", str(BN254.scalar.root_of_unity(2)), "root of unity of order 8"),
        ("wr", "1", "third root of the domain's"),
        ("X_2", [["0", "0"], ["1", "0"], ["0", "0"]], "infinity, which no sound key has"),
        ("X_2", [["1", "0"], ["1", "0"], ["1", "0"]], "not on the twist"),
        ("C0", ["0", "1", "0"], "infinity, which no sound key has"),
        ("C0", ["1", "1", "1"], "not on the curve"),
    ],
)
def test_bad_verification_keys(name: str, value: Any, problem: str) -> None:
    vkey = document("vkey")
    vkey[name] = value
    if value is X:
        del vkey[name]
    with pytest.raises(MalformedFile, match=problem) as caught:
        parse_verification_key(vkey, "vkey.json")
    # The root of unity depends on the power.
    part = "w" if (name, value) == ("power", 7) else name
    part = "k2" if (name, value) in (("k2", str(2 * OMEGA % R)),) else part
    assert str(caught.value).startswith(f"vkey.json: {part}: ")
    assert caught.value.role == "verification key"


def test_a_known_tau_is_told_of(key: VerificationKey) -> None:
    one = generator(BN254, Group.G2)
    minus_one = parse_verification_key({**document("vkey"), "X_2": g2_negative()}).tau_g2
    for tau_g2 in (one, minus_one):
        assert replace(key, tau_g2=tau_g2).warnings == (KNOWN_TAU,)


def g2_negative() -> list[list[str]]:
    point = BN254.group(Group.G2).generator
    assert point is not None
    x, y = point
    return [[str(c) for c in x], [str(Q - c) for c in y], ["1", "0"]]  # type: ignore[union-attr]
