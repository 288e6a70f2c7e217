"""The exported contract, compiled by solc and run in an Ethereum virtual machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpuprover.curves import BN254
from gpuprover.systems.groth16.solidity import export_calldata, export_verifier
from tests.support.evm import COMPILERS, OPTIMISED, Contract, altered, run_contracts, words

CASES = pytest.mark.parametrize(
    "case", [("multiplier", BN254), ("nopublic", BN254)], indirect=True, ids=["public", "nopublic"]
)


def call_of(calldata: str) -> list[str]:
    """The call's words as the ABI lays them out: all static, but for an empty last array."""
    found = words(calldata)
    return found if not calldata.endswith("[]") else [*found, f"{9 * 32:064x}", f"{0:064x}"]


def run_contract(
    node: Path,
    source: str,
    calls: list[list[str]],
    compiler: str = "solc",
    settings: dict[str, Any] = OPTIMISED,
    gas: int | None = None,
) -> dict[str, Any]:
    (outcome,) = run_contracts(node, [Contract(source, calls, gas)], compiler, settings)
    return outcome


@CASES
def test_contract(case: Any, node: Path, oracle: Any) -> None:
    theirs = oracle("groth16.prove", case.contributed_key, case.witness)
    vkey = oracle("zKey.exportVerificationKey", case.contributed_key)
    calldata = export_calldata(theirs["publicSignals"], theirs["proof"])
    call = call_of(calldata)
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


def ways() -> Iterator[Any]:
    """(compiler, pipeline, whether optimised); the oldest compiler has one pipeline.

    Without optimiser, and through the IR, the stack is short first: the rest is slow.
    """
    for compiler in COMPILERS:
        for pipeline in ("legacy",) if compiler == "solc-oldest" else ("legacy", "viaIR"):
            hard = compiler == "solc-oldest" or pipeline == "viaIR"
            for optimised in (True, False):
                marks = () if hard and not optimised else (pytest.mark.slow,)
                yield pytest.param(compiler, pipeline, optimised, marks=marks)


@pytest.mark.parametrize(("compiler", "pipeline", "optimised"), list(ways()))
def test_every_compiler_that_the_pragma_allows(
    make_case: Any, node: Path, oracle: Any, compiler: str, pipeline: str, optimised: bool
) -> None:
    settings = {"optimizer": {"enabled": optimised}} | ({"viaIR": True} if pipeline == "viaIR" else {})
    # Without public signals, the array of them is another one: the newest compiler tries both.
    for name in ("multiplier", "nopublic") if compiler == "solc" else ("multiplier",):
        case = make_case(name, BN254)
        theirs = oracle("groth16.prove", case.contributed_key, case.witness)
        vkey = oracle("zKey.exportVerificationKey", case.contributed_key)
        call = call_of(export_calldata(theirs["publicSignals"], theirs["proof"]))
        outcome = run_contract(node, export_verifier(vkey), [call, altered(call, 0, 1)], compiler, settings)
        assert outcome["version"].startswith(COMPILERS[compiler])
        assert outcome["results"] == [True, False]


def test_gas(make_case: Any, node: Path, oracle: Any) -> None:
    """What the contract's documentation says: how much is enough, and that too little gives false."""
    case = make_case("multiplier", BN254)
    theirs = oracle("groth16.prove", case.contributed_key, case.witness)
    source = export_verifier(oracle("zKey.exportVerificationKey", case.contributed_key))
    call = call_of(export_calldata(theirs["publicSignals"], theirs["proof"]))
    enough = 200_000 + 7_000 * len(theirs["publicSignals"])
    off_curve = altered(call, 0, 1)
    outcome = run_contract(node, source, [call, off_curve], gas=enough)
    assert outcome["results"] == [True, False]
    assert outcome["used"][1] > 0.95 * enough  # the precompile takes what it was given
    assert run_contract(node, source, [call], gas=150_000)["results"] == [False]


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
    call = call_of(export_calldata(theirs["publicSignals"], theirs["proof"]))
    outcome = run_contract(node, export_verifier(vkey, allow_insecure=True), [call, altered(call, -1, 1)])
    assert outcome["results"] == [True, False]
    assert outcome["bytes"] <= 24576
