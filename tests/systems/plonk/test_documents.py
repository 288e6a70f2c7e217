"""PLONK's documents: as snarkjs writes them, and nothing else is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpuprover.curves import BLS12_381, BN254, Group
from gpuprover.errors import MalformedFile, UnsupportedFile
from gpuprover.limbs import words_to_g2
from gpuprover.plonkish.documents import KNOWN_TAU
from gpuprover.systems.plonk.documents import (
    EVALUATIONS,
    POINTS,
    parse_proof,
    parse_verification_key,
    proof_to_json,
    sample_proof,
)
from gpuprover.systems.plonk.key import load_key, read_verification_key
from tests.support.plonk import PLONK, sample


@pytest.mark.parametrize("name", PLONK)
def test_documents_of_snarkjs(name: str) -> None:
    """Read and written again they have the same bytes; keys have the documents that snarkjs exports."""
    given = sample(name)
    proof = parse_proof(given.proof, given.curve, strict=True)
    assert json.dumps(proof_to_json(proof, given.curve), indent=1) == given.proof_text
    vk = parse_verification_key(given.verification_key)
    assert json.dumps(vk.document, indent=1) == given.verification_key_text
    key = load_key(given.key)
    assert key.vk == vk == read_verification_key(given.key)
    assert key.vk.digest == vk.digest
    assert (vk.n_public, vk.warnings) == (len(given.public), ())


def test_documents_of_larger_circuits(data_dir: Path) -> None:
    paths = sorted((data_dir / "plonk" / "fixed").rglob("*.plonk.vkey.json"))
    assert len(paths) > 8
    for path in paths:
        text = path.read_text()
        vk = parse_verification_key(json.loads(text))
        assert json.dumps(vk.document, indent=1) == text
        text = path.with_name(path.name.replace("vkey", "b-fixed.proof")).read_text()
        assert json.dumps(proof_to_json(parse_proof(json.loads(text), vk.curve), vk.curve), indent=1) == text


def refused(parse: Any, document: dict[str, Any], part: str, problem: str) -> None:
    with pytest.raises((MalformedFile, UnsupportedFile), match=problem) as caught:
        parse(document)
    assert caught.value.part == part


@pytest.mark.parametrize("name", EVALUATIONS)
def test_values_of_proofs(name: str) -> None:
    given = sample("quirks")

    def parse(document: dict[str, Any]) -> object:
        return parse_proof(document, BN254)

    for value in (int(given.proof[name]) + BN254.r, BN254.r, str(BN254.r)):
        refused(parse, {**given.proof, name: value}, name, "not below the prime")
    for value in (None, [], "-1", "1.5", -1, True, ""):
        refused(parse, {**given.proof, name: value}, name, "expected an integer")
    rest = {key: value for key, value in given.proof.items() if key != name}
    refused(parse, rest, name, "missing")
    # A number in place of its text is read, but not where text is asked for.
    number = {**given.proof, name: int(given.proof[name])}
    assert parse(number) == parse(given.proof)
    for loose in (number[name], "0" + given.proof[name]):
        with pytest.raises(MalformedFile, match="decimal text"):
            parse_proof({**given.proof, name: loose}, BN254, strict=True)


@pytest.mark.parametrize("name", POINTS)
def test_points_of_proofs(name: str) -> None:
    given = sample("quirks")
    x, y, _ = given.proof[name]

    def parse(document: dict[str, Any]) -> object:
        return parse_proof(document, BN254)

    refused(parse, {**given.proof, name: [x, str(int(y) + 1), "1"]}, name, "not on the curve")
    refused(parse, {**given.proof, name: [str(int(x) + BN254.q), y, "1"]}, name, "not below the base prime")
    refused(parse, {**given.proof, name: [x, y, "2"]}, name, "affine")
    refused(parse, {**given.proof, name: "1"}, name, "expected a list of 3")
    infinity = {**given.proof, name: ["0", "1", "0"]}
    assert proof_to_json(parse_proof(infinity, BN254), BN254) == infinity


def test_protocols_and_curves_of_proofs() -> None:
    given = sample("quirks").proof
    bare = {key: value for key, value in given.items() if key not in ("protocol", "curve")}
    assert parse_proof(bare, BN254) == parse_proof(given, BN254)
    for part, value in (("protocol", "fflonk"), ("curve", "bls12381")):
        refused(lambda d: parse_proof(d, BN254), {**given, part: value}, part, "expected")
    refused(lambda d: parse_proof(d, BLS12_381), given, "curve", "expected 'bls12381'|expected bls12381")


@pytest.mark.parametrize(
    ("part", "value", "problem"),
    [
        ("protocol", "groth16", "expected 'plonk'"),
        ("curve", "secp256k1", "expected"),
        ("nPublic", -1, "whole number"),
        ("nPublic", 129, "129 public signals on 2\\^7 rows"),
        ("nPublic", "3", "whole number"),
        ("power", 2, "whole number from 3"),
        ("power", 27, "whole number from 3 to 26"),
        ("k1", "0", "coincide"),
        ("k1", "1", "coincide"),
        ("k2", "2", "coincide"),
        ("w", "1", "root of unity of order"),
        ("X_2", [["0", "0"], ["1", "0"], ["0", "0"]], "infinity"),
        ("Qm", ["1", "1", "1"], "not on the curve"),
        ("S3", None, "expected a list"),
    ],
)
def test_verification_keys(part: str, value: Any, problem: str) -> None:
    document = {**sample("quirks").verification_key, part: value}
    refused(
        parse_verification_key, document, "k2" if problem == "coincide" and part == "k2" else part, problem
    )


def test_keys_with_a_tau_that_is_known() -> None:
    given = sample("quirks")
    vk = parse_verification_key(given.verification_key)
    point = BN254.group(Group.G2).generator
    document = {
        **given.verification_key,
        "X_2": [[str(c) for c in point[0]], [str(c) for c in point[1]], ["1", "0"]],
    }
    known = parse_verification_key(document)
    assert known.warnings == (KNOWN_TAU,)
    assert known != vk
    assert words_to_g2(BN254, known.tau_g2) == [point]


def test_a_sample_can_be_written() -> None:
    vk = parse_verification_key(sample("bls-small").verification_key)
    proof = sample_proof(vk)
    assert parse_proof(proof_to_json(proof, vk.curve), vk.curve, strict=True) == proof
