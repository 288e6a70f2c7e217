"""The exported contract and calldata of PLONK as text; tests/interop compiles and runs them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from gpuprover.curves import BLS12_381, BN254
from gpuprover.errors import InvalidInput, MalformedFile, UnsupportedFile
from gpuprover.formats.snarkjs_json import g2_to_json
from gpuprover.systems.plonk.solidity import export_calldata, export_verifier
from tests.support.plonk import sample

QUIRKS, NONE = sample("quirks"), sample("nopub-8gates")


def constants(source: str) -> dict[str, int]:
    return {name: int(value, 0) for name, value in re.findall(r"constant (\w+) = (\w+);", source)}


def test_contract_holds_the_key() -> None:
    key = QUIRKS.verification_key
    source = export_verifier(key)
    found = constants(source)
    assert (found["Q"], found["R"], found["POWER"]) == (BN254.q, BN254.r, key["power"])
    for name in ("Qm", "Ql", "Qr", "Qo", "Qc", "S1", "S2", "S3"):
        point = [found[f"{name.upper()}_{part}"] for part in "XY"]
        assert point == [int(x) for x in key[name][:2]]
    (x0, x1), (y0, y1), _ = ([int(part) for part in pair] for pair in key["X_2"])
    assert [found[f"NEG_X2_{part}"] for part in ("X1", "X0", "Y1", "Y0")] == [
        x1,
        x0,
        BN254.q - y1,
        BN254.q - y0,
    ]
    assert (found["SIZE_INVERSE"] << key["power"]) % BN254.r == 1
    assert "uint256[3] calldata _pubSignals" in source
    assert "$" not in source


def test_contract_without_public_signals_takes_an_empty_array() -> None:
    source = export_verifier(NONE.verification_key)
    assert "uint256[] calldata _pubSignals" in source
    assert "if (_pubSignals.length != 0) return false;" in source


def test_points_at_infinity_cost_no_multiplication() -> None:
    """Ql, Qr and Qc of this key are."""
    found = constants(source := export_verifier(NONE.verification_key))
    assert (found["QR_X"], found["QR_Y"]) == (0, 0)
    assert "QM_X, QM_Y" in source
    assert "QR_X, QR_Y" not in source


def test_calldata() -> None:
    text = export_calldata(QUIRKS.public, QUIRKS.proof)
    proof, signals = re.fullmatch(r"\[(.*)\]\[(.*)\]", text).groups()  # type: ignore[union-attr]
    assert re.fullmatch(r'"0x[0-9a-f]{64}", "0x[0-9a-f]{64}"(,"0x[0-9a-f]{64}"){22}', proof)
    assert [int(x.strip('"'), 16) for x in signals.split(",")] == [int(x) for x in QUIRKS.public]
    assert export_calldata([], NONE.proof).endswith("][]")


@pytest.mark.parametrize("change", [{"nPublic": -1}, {"power": 29}, {"S1": ["1", "3", "1"]}, {"w": "1"}])
def test_damaged_keys_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(MalformedFile):
        export_verifier({**QUIRKS.verification_key, **change})


def test_insecure_keys_are_refused() -> None:
    key = {**QUIRKS.verification_key, "X_2": g2_to_json(BN254.g2)}
    with pytest.raises(InvalidInput, match="insecure"):
        export_verifier(key)
    assert "contract PlonkVerifier" in export_verifier(key, True)


def test_other_curves_are_refused() -> None:
    other = sample("bls-small")
    assert other.curve is BLS12_381
    with pytest.raises(UnsupportedFile, match="BN254"):
        export_verifier(other.verification_key)
    with pytest.raises(UnsupportedFile, match="BN254"):
        export_calldata(other.public, other.proof)


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(MalformedFile, match="signal 0"):
        export_calldata([str(BN254.r)], QUIRKS.proof)
    with pytest.raises(MalformedFile, match="eval_b"):
        export_calldata(["1"], {**QUIRKS.proof, "eval_b": str(BN254.r)})
