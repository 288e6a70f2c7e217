"""Groth16 against snarkjs in both directions: keys, witnesses, proofs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gpuprover
from gpuprover.circuits import merkle_circuit, poseidon_circuit
from gpuprover.curves import BN254, CURVES, CurveParams
from gpuprover.errors import UnsatisfiedWitness

IDS = [curve.name for curve in CURVES]


def raised(signals: list[str], by: int = 1) -> list[str]:
    """Other public signals."""
    return [str(int(signals[0]) + by), *signals[1:]]


def test_setup_equals_snarkjs_byte_for_byte(case: Any, tmp_path: Path) -> None:
    ours = tmp_path / "ours.zkey"
    gpuprover.setup(case.compiled.r1cs, ours, ptau=case.ptau)
    assert ours.read_bytes() == case.snarkjs_key.read_bytes()
    assert gpuprover.load_key(ours).contributions == 0


def test_verification_key_equals_snarkjs(case: Any, oracle: Any) -> None:
    ours = gpuprover.load_key(case.contributed_key).verification_key
    assert json.loads(json.dumps(ours)) == oracle("zKey.exportVerificationKey", case.contributed_key)


def test_our_proof_verifies_with_snarkjs(case: Any, oracle: Any) -> None:
    key = gpuprover.load_key(case.contributed_key)
    assert (key.curve, key.contributions) == (case.curve, 1)
    result = gpuprover.prove(key, case.witness)
    vkey = key.verification_key
    assert gpuprover.verify(vkey, result.public_signals, result.proof)
    assert oracle("groth16.verify", vkey, result.public_signals, result.proof) is True
    if result.public_signals:
        other = raised(result.public_signals)
        assert oracle("groth16.verify", vkey, other, result.proof) is False
        assert not gpuprover.verify(vkey, other, result.proof)


def test_snarkjs_proof_verifies_with_us(case: Any, oracle: Any) -> None:
    theirs = oracle("groth16.prove", case.contributed_key, case.witness)
    vkey = oracle("zKey.exportVerificationKey", case.contributed_key)
    proof, public = theirs["proof"], theirs["publicSignals"]
    assert gpuprover.verify(vkey, public, proof)
    assert gpuprover.prove(case.contributed_key, case.witness).public_signals == public
    swapped = {**proof, "pi_a": proof["pi_c"], "pi_c": proof["pi_a"]}
    assert not gpuprover.verify(vkey, public, swapped)


def test_prove_from_inputs(case: Any, oracle: Any) -> None:
    key = gpuprover.load_key(case.contributed_key)
    result = gpuprover.prove(key, {"inputs": case.inputs, "wasm": case.compiled.wasm})
    assert oracle("groth16.verify", key.verification_key, result.public_signals, result.proof) is True


@pytest.mark.parametrize("curve", CURVES, ids=lambda c: c.name)
def test_256_public_signals(
    curve: CurveParams, compile_circuit: Callable[..., Any], oracle: Any, tmp_path: Path
) -> None:
    """Over a key of our own making, which snarkjs proves and verifies with too."""
    compiled = compile_circuit("public256", curve)
    zkey, wtns = tmp_path / "k.zkey", tmp_path / "w.wtns"
    inputs = {"values": [str(i) for i in range(256)], "sum": str(sum(i * i for i in range(256)))}
    gpuprover.setup(compiled.r1cs, zkey, insecure=True)
    oracle("wtns.calculate", inputs, compiled.wasm, wtns)
    key = gpuprover.load_key(zkey)
    assert key.n_public == 256
    ours = gpuprover.prove(key, wtns)
    assert oracle("groth16.verify", key.verification_key, ours.public_signals, ours.proof) is True
    theirs = oracle("groth16.prove", zkey, wtns)
    assert theirs["publicSignals"] == ours.public_signals == inputs["values"]
    assert gpuprover.verify(key.verification_key, theirs["publicSignals"], theirs["proof"])


@pytest.mark.parametrize("curve", CURVES, ids=lambda c: c.name)
def test_circuits_of_our_builder(curve: CurveParams, oracle: Any, tmp_path: Path) -> None:
    """snarkjs reads our .r1cs and .wtns, and proves and verifies with our key."""
    r1cs, wtns, zkey = (tmp_path / f"c.{suffix}" for suffix in ("r1cs", "wtns", "zkey"))
    poseidon_circuit(curve).write(r1cs, wtns)
    assert oracle("r1cs.info", r1cs)["nConstraints"] > 200
    assert oracle("wtns.check", r1cs, wtns) is True
    gpuprover.setup(r1cs, zkey, insecure=True)
    vkey = oracle("zKey.exportVerificationKey", zkey)
    theirs = oracle("groth16.prove", zkey, wtns)
    assert oracle("groth16.verify", vkey, theirs["publicSignals"], theirs["proof"]) is True
    assert gpuprover.verify(vkey, theirs["publicSignals"], theirs["proof"])


@pytest.mark.parametrize("case", [("multiplier", curve) for curve in CURVES], indirect=True, ids=IDS)
def test_command_lines(case: Any, snarkjs: Callable[..., Any], tmp_path: Path) -> None:
    """The files of the one command line are the arguments of the other."""

    def ours(*args: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "gpuprover", *map(str, args)], capture_output=True, text=True
        )

    proof, public, vkey, inputs = (tmp_path / f"{n}.json" for n in ("proof", "public", "vkey", "input"))
    inputs.write_text(json.dumps(case.inputs))
    done = ours("fullprove", inputs, case.compiled.wasm, case.contributed_key, proof, public)
    assert done.returncode == 0, done.stderr
    done = ours("zkey", "export", "verificationkey", case.contributed_key, vkey)
    assert done.returncode == 0, done.stderr
    assert "OK!" in snarkjs("groth16", "verify", vkey, public, proof).stdout

    snarkjs("groth16", "prove", case.contributed_key, case.witness, proof, public)
    assert ours("verify", vkey, public, proof).returncode == 0
    public.write_text(json.dumps(raised(json.loads(public.read_text()))))
    assert ours("verify", vkey, public, proof).returncode == 1
    assert "Invalid proof" in snarkjs("groth16", "verify", vkey, public, proof).stdout


def test_wrong_witness_is_refused_where_snarkjs_is_silent(case: Any, oracle: Any, tmp_path: Path) -> None:
    data = bytearray(case.witness.read_bytes())
    data[-case.curve.scalar.bytes] ^= 1  # the lowest byte of the last wire
    damaged = tmp_path / "damaged.wtns"
    damaged.write_bytes(data)
    assert oracle("wtns.check", case.compiled.r1cs, damaged) is False
    with pytest.raises(UnsatisfiedWitness):
        gpuprover.prove(case.contributed_key, damaged)


@pytest.mark.slow
def test_ceremony_of_a_larger_circuit(oracle: Any, tmp_path: Path) -> None:
    """A ptau of power 11 with a beacon, two contributions to the key; snarkjs checks the whole ceremony."""
    r1cs, wtns = tmp_path / "c.r1cs", tmp_path / "c.wtns"
    merkle_circuit(4, BN254).write(r1cs, wtns)
    powers = [tmp_path / f"{i}.ptau" for i in range(4)]
    oracle("powersOfTau.newAccumulator", "bn128", 11, powers[0])
    oracle("powersOfTau.contribute", powers[0], powers[1], "tests", "no secret at all")
    oracle("powersOfTau.beacon", powers[1], powers[2], "tests", "00" * 31 + "01", 10)
    oracle("powersOfTau.preparePhase2", powers[2], powers[3])
    keys = [tmp_path / f"{i}.zkey" for i in range(3)]
    gpuprover.setup(r1cs, keys[0], ptau=powers[3])
    oracle("zKey.newZKey", r1cs, powers[3], tmp_path / "theirs.zkey")
    assert keys[0].read_bytes() == (tmp_path / "theirs.zkey").read_bytes()
    oracle("zKey.contribute", keys[0], keys[1], "first", "no secret at all")
    oracle("zKey.beacon", keys[1], keys[2], "last", "00" * 31 + "02", 10)
    assert oracle("zKey.verifyFromR1cs", r1cs, powers[3], keys[2]) is True
    key = gpuprover.load_key(keys[2])
    assert key.contributions == 2
    result = gpuprover.prove(key, wtns)
    assert oracle("groth16.verify", key.verification_key, result.public_signals, result.proof) is True
