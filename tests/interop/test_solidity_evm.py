"""The exported contract, compiled by solc and run in an Ethereum virtual machine."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpuprover.curves import BN254
from gpuprover.solidity import export_calldata, export_verifier

HERE = Path(__file__).resolve().parent
CASES = pytest.mark.parametrize(
    "case", [("multiplier", BN254), ("nopublic", BN254)], indirect=True, ids=["public", "nopublic"]
)


def words(calldata: str) -> list[str]:
    """The call's words as the ABI lays them out: all static, but for an empty last array."""
    found = re.findall(r"0x([0-9a-f]{64})", calldata)
    return found if not calldata.endswith("[]") else [*found, f"{9 * 32:064x}", f"{0:064x}"]


def run_contract(node: Path, source: str, calls: list[list[str]]) -> dict[str, Any]:
    done = subprocess.run(
        [node, HERE / "evm.mjs", HERE.parents[1] / ".node"],
        input=json.dumps({"source": source, "calls": calls}),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr  # solc's warnings count too
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def altered(call: list[str], index: int, by: int) -> list[str]:
    call = list(call)
    call[index] = f"{(int(call[index], 16) + by) % 2**256:064x}"
    return call


@CASES
def test_contract(case: Any, node: Path, oracle: Any) -> None:
    theirs = oracle("groth16.prove", case.contributed_key, case.witness)
    vkey = oracle("zKey.exportVerificationKey", case.contributed_key)
    calldata = export_calldata(theirs["publicSignals"], theirs["proof"])
    call = words(calldata)
    calls, expected = [call], [True]
    for index in (0, 3, 7):  # a point off its curve
        calls.append(altered(call, index, 1))
        expected.append(False)
    calls.append(altered(call, 1, BN254.q))  # a coordinate out of range
    expected.append(False)
    if theirs["publicSignals"]:
        calls += [
            altered(call, -1, 1),
            altered(call, -1, BN254.r),
        ]  # another signal, and an alias of the right one
        expected += [False, False]
    assert run_contract(node, export_verifier(vkey), calls)["results"] == expected


@CASES
def test_calldata_equals_snarkjs(case: Any, oracle: Any) -> None:
    theirs = oracle("groth16.prove", case.contributed_key, case.witness)
    proof, public = theirs["proof"], theirs["publicSignals"]
    assert export_calldata(public, proof) == oracle("groth16.exportSolidityCallData", proof, public)


def test_256_public_signals_fit(
    compile_circuit: Callable[..., Any], node: Path, oracle: Any, tmp_path: Path
) -> None:
    import gpuprover

    compiled = compile_circuit("public256", BN254)
    zkey, wtns = tmp_path / "k.zkey", tmp_path / "w.wtns"
    inputs = {"values": [str(i) for i in range(256)], "sum": str(sum(i * i for i in range(256)))}
    gpuprover.setup(compiled.r1cs, zkey, insecure=True)
    oracle("wtns.calculate", inputs, compiled.wasm, wtns)
    theirs = oracle("groth16.prove", zkey, wtns)
    vkey = oracle("zKey.exportVerificationKey", zkey)
    call = words(export_calldata(theirs["publicSignals"], theirs["proof"]))
    outcome = run_contract(node, export_verifier(vkey), [call, altered(call, -1, 1)])
    assert outcome["results"] == [True, False]
    assert outcome["bytes"] <= 24576
