"""The exported contract and calldata of FFLONK as text; tests/interop compiles and runs them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from gpuprover.curves import BLS12_381, BN254
from gpuprover.errors import InvalidInput, MalformedFile, UnsupportedFile
from gpuprover.formats.snarkjs_json import g2_to_json
from gpuprover.systems.fflonk.solidity import export_calldata, export_verifier
from tests.support.plonk import sample

QUIRKS, NONE = sample("quirks", "fflonk"), sample("nopub-8gates", "fflonk")


def test_contract_holds_the_key() -> None:
    key = QUIRKS.verification_key
    source = export_verifier(key)
    found = {name: int(value, 0) for name, value in re.findall(r"constant (\w+) = (\w+);", source)}
    assert (found["Q"], found["R"], found["POWER"]) == (BN254.q, BN254.r, key["power"])
    assert [found["C0_X"], found["C0_Y"]] == [int(x) for x in key["C0"][:2]]
    (x0, x1), (y0, y1), _ = ([int(part) for part in pair] for pair in key["X_2"])
    assert [found[f"X2_{part}"] for part in ("X1", "X0", "Y1", "Y0")] == [x1, x0, y1, y0]
    assert found["SHIFT_INVERSE"] * (int(key["w"]) - 1) % BN254.r == 1
    assert "uint256[3] calldata pubSignals" in source
    assert "$" not in source


def test_contract_without_public_signals_takes_one_word() -> None:
    source = export_verifier(NONE.verification_key)
    assert "uint256[1] calldata pubSignals" in source
    assert "iszero(calldataload(pubSignals))" in source


def test_calldata() -> None:
    text = export_calldata(QUIRKS.public, QUIRKS.proof)
    proof, signals = re.fullmatch(r"\[(.*)\],\[(.*)\]", text).groups()  # type: ignore[union-attr]
    assert re.fullmatch(r"0x[0-9a-f]{64}, 0x[0-9a-f]{64}(,0x[0-9a-f]{64}){22}", proof)
    assert int(proof[-64:], 16) == int(QUIRKS.proof["evaluations"]["inv"])
    assert [int(x, 16) for x in signals.split(",")] == [int(x) for x in QUIRKS.public]
    assert export_calldata([], NONE.proof).endswith("],[]")


@pytest.mark.parametrize("change", [{"nPublic": -1}, {"power": 29}, {"C0": ["1", "3", "1"]}, {"wr": "1"}])
def test_damaged_keys_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(MalformedFile):
        export_verifier({**QUIRKS.verification_key, **change})


def test_insecure_keys_are_refused() -> None:
    key = {**QUIRKS.verification_key, "X_2": g2_to_json(BN254.g2)}
    with pytest.raises(InvalidInput, match="insecure"):
        export_verifier(key)
    assert "contract FflonkVerifier" in export_verifier(key, True)


def test_other_curves_are_refused() -> None:
    with pytest.raises(UnsupportedFile, match="BN254"):
        export_verifier({**QUIRKS.verification_key, "curve": BLS12_381.snarkjs_name})
    with pytest.raises(UnsupportedFile, match="BN254"):
        export_calldata(QUIRKS.public, {**QUIRKS.proof, "curve": BLS12_381.snarkjs_name})


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(MalformedFile, match="signal 0"):
        export_calldata([str(BN254.r)], QUIRKS.proof)
    values = {**QUIRKS.proof["evaluations"], "inv": str(BN254.r)}
    with pytest.raises(MalformedFile, match="inv"):
        export_calldata(["1"], {**QUIRKS.proof, "evaluations": values})
