"""Keys against snarkjs: circuits whose private inputs circom drops, and keys with their ceremonies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import gpuprover
from gpuprover.curves import BN254
from gpuprover.formats.r1cs import read_r1cs
from gpuprover.systems.groth16 import key as zkey
from tests.support.containers import edit, unpack
from tests.support.running import Run

INPUTS = {
    "unused": {"a": "3", "unused": "4", "b": "5"},
    "alias": {"a": "6", "b": "6"},
    "constant": {"a": "15"},
    "idle": {"a": "1", "unused": ["2", "3", "4"], "shown": "5"},
}


@pytest.mark.parametrize(
    "level", ["--O1", *(pytest.param(level, marks=pytest.mark.slow) for level in ("--O0", "--O2"))]
)
@pytest.mark.parametrize("name", INPUTS)
def test_private_inputs_that_no_constraint_needs(
    name: str, level: str, compile_circuit: Any, ptau: Any, oracle: Any, run: Run, tmp_path: Path
) -> None:
    """circom's header counts them, although they have no wire; snarkjs does not mind."""
    compiled, powers = compile_circuit(name, BN254, level), ptau(BN254)
    r1cs = read_r1cs(compiled.r1cs)
    wtns, ours, theirs = tmp_path / "w.wtns", tmp_path / "ours.zkey", tmp_path / "theirs.zkey"
    oracle("wtns.calculate", INPUTS[name], compiled.wasm, wtns)
    assert run("wtns", "check", compiled.r1cs, wtns).code == 0
    oracle("zKey.newZKey", compiled.r1cs, powers, theirs)
    assert run("setup", compiled.r1cs, ours, "--ptau", powers).code == 0
    assert ours.read_bytes() == theirs.read_bytes()
    assert run("zkey", "verify", compiled.r1cs, powers, ours).code == 0
    assert gpuprover.prove(ours, wtns).public_signals == [
        str(x) for x in gpuprover.prove(theirs, wtns).public_signals
    ]
    if level != "--O0":  # where circom drops them
        assert r1cs.n_wires < 1 + r1cs.n_public + r1cs.n_prv_in


@pytest.mark.parametrize("case", [("multiplier", BN254)], indirect=True, ids=["multiplier"])
def test_zkey_verify_says_what_snarkjs_says(case: Any, oracle: Any, run: Run, tmp_path: Path) -> None:
    """Of a contributed key, and of one with two points of a section exchanged, for every section."""

    def verdicts(key: Path) -> tuple[bool, bool]:
        try:
            theirs = oracle("zKey.verifyFromR1cs", case.compiled.r1cs, case.ptau, key)
        except Exception:
            theirs = False
        return run("zkey", "verify", case.compiled.r1cs, case.ptau, key).code == 0, theirs

    assert verdicts(case.contributed_key) == (True, True)
    data = case.contributed_key.read_bytes()
    sections = dict(unpack(data)[2])
    for section in (zkey.IC, zkey.A, zkey.B1, zkey.B2, zkey.C, zkey.H):
        size = 8 * (BN254.g2_words if section == zkey.B2 else BN254.g1_words)
        points = [sections[section][at : at + size] for at in range(0, len(sections[section]), size)]
        i = next(i for i in range(1, len(points)) if points[i] != points[0])
        points[0], points[i] = points[i], points[0]
        changed = tmp_path / f"{section}.zkey"
        changed.write_bytes(edit(data, section, lambda _, points=points: b"".join(points)))
        assert verdicts(changed) == (False, False), zkey.SECTIONS[section]
