"""The exported contract and calldata as text; tests/interop compiles and runs them."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gpuprover.curves import BLS12_381, BN254, CurveParams, Group
from gpuprover.errors import MalformedFile, UnsupportedFile
from gpuprover.formats.snarkjs_json import g1_to_json, g2_to_json
from gpuprover.limbs import generator
from gpuprover.systems.groth16 import solidity
from gpuprover.systems.groth16.documents import Proof, proof_to_json
from gpuprover.systems.groth16.solidity import export_calldata


def export_verifier(key: dict[str, Any]) -> str:
    return solidity.export_verifier(key, allow_insecure=True)


def verification_key(curve: CurveParams, n_public: int) -> dict[str, Any]:
    """Generators everywhere, so that anybody could forge proofs for it."""
    return {
        "protocol": "groth16",
        "curve": curve.snarkjs_name,
        "nPublic": n_public,
        "vk_alpha_1": g1_to_json(curve.g1),
        **{f"vk_{name}_2": g2_to_json(curve.g2) for name in ("beta", "gamma", "delta")},
        "IC": [g1_to_json(curve.g1)] * n_public + [g1_to_json(None)],
    }


def generators(curve: CurveParams) -> Proof:
    g1, g2 = generator(curve, Group.G1), generator(curve, Group.G2)
    return Proof(g1, g2, g1)


def test_contract_holds_the_key() -> None:
    source = export_verifier(verification_key(BN254, 3))
    (x0, x1), (y0, y1) = BN254.g2
    constants = dict(re.findall(r"constant (\w+) = (\d+);", source))
    assert int(constants["R"]) == BN254.r
    for name in ("BETA", "GAMMA", "DELTA"):
        found = [int(constants[f"NEG_{name}_{part}"]) for part in ("X1", "X0", "Y1", "Y0")]
        assert found == [x1, x0, BN254.q - y1, BN254.q - y0]
    ic = re.findall(r'hex"([0-9a-f]{128})"', source)
    assert ic == [f"{1:064x}{2:064x}"] * 3 + ["0" * 128]
    assert "uint256[3] calldata input" in source
    assert "{" * 2 not in source


def test_contract_without_public_signals_takes_an_empty_array() -> None:
    source = export_verifier(verification_key(BN254, 0))
    assert "uint256[] calldata input" in source
    assert "if (input.length != 0) return false;" in source


def test_calldata() -> None:
    (x0, x1), (y0, y1) = BN254.g2
    proof = proof_to_json(replace(generators(BN254), c=np.zeros(BN254.g1_words, dtype=np.uint64)), BN254)
    text = export_calldata(["7", str(BN254.r - 1)], proof)
    words = [int(w, 16) for w in re.findall(r"0x([0-9a-f]{64})", text)]
    assert words == [1, 2, x1, x0, y1, y0, 0, 0, 7, BN254.r - 1]
    assert export_calldata([], proof).endswith(",[]")


@pytest.mark.parametrize(
    "change", [{"nPublic": 5}, {"IC": []}, {"vk_beta_2": [["1", "2"], ["3", "4"], ["1", "0"]]}]
)
def test_damaged_keys_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(MalformedFile):
        export_verifier({**verification_key(BN254, 1), **change})


def test_other_curves_are_refused() -> None:
    with pytest.raises(UnsupportedFile, match="BN254"):
        export_verifier(verification_key(BLS12_381, 1))
    proof = proof_to_json(generators(BLS12_381), BLS12_381)
    with pytest.raises(UnsupportedFile, match="BN254"):
        export_calldata(["1"], proof)


def test_signals_out_of_range_are_refused() -> None:
    proof = proof_to_json(generators(BN254), BN254)
    with pytest.raises(MalformedFile, match="signal 0"):
        export_calldata([str(BN254.r)], proof)
