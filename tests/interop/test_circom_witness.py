"""Witnesses of programs that circom compiled, against those of snarkjs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpuprover.curves import BN254, CurveParams
from gpuprover.errors import InvalidInput, Timeout, UnsatisfiedWitness
from gpuprover.formats.wtns import read_witness, write_witness
from gpuprover.limbs import words_to_ints
from gpuprover.witness import calculate_witness

Compile = Callable[[str, CurveParams], Any]


def test_file_equals_snarkjs_file(case: Any, oracle: Any, tmp_path: Path) -> None:
    curve, words = calculate_witness(case.compiled.wasm, case.inputs)
    ours = tmp_path / "ours.wtns"
    write_witness(ours, curve.scalar, words)
    assert curve is case.curve
    assert ours.read_bytes() == case.witness.read_bytes()
    assert oracle("wtns.check", case.compiled.r1cs, ours) is True


def test_altered_witness_is_refused_by_snarkjs(case: Any, oracle: Any, tmp_path: Path) -> None:
    """The check above can fail: the oracle is no rubber stamp."""
    words = read_witness(case.witness).values.copy()
    words[1, 0] ^= 1
    write_witness(tmp_path / "altered.wtns", case.curve.scalar, words)
    assert oracle("wtns.check", case.compiled.r1cs, tmp_path / "altered.wtns") is False


def test_buses_and_nested_names(compile_circuit: Compile, node: Path, tmp_path: Path) -> None:
    wasm = compile_circuit("bus", BN254).wasm
    nested = {"origin": {"x": "1", "y": "2"}, "points": [{"x": str(i), "y": str(i + 1)} for i in range(3)]}
    flat = {"origin.x": 1, "origin.y": 2}
    for i in range(3):
        flat |= {f"points[{i}].x": i, f"points[{i}].y": i + 1}
    _, words = calculate_witness(wasm, nested)
    assert words_to_ints(words) == words_to_ints(calculate_witness(wasm, flat)[1])
    # snarkjs does not know buses; circom's own script beside the program does.
    inputs, theirs = tmp_path / "input.json", tmp_path / "theirs.wtns"
    inputs.write_text(json.dumps(nested))
    subprocess.run([node, wasm.parent / "generate_witness.js", wasm, inputs, theirs], check=True, timeout=60)
    assert words_to_ints(words) == words_to_ints(read_witness(theirs).values)
    assert words_to_ints(words)[1] == (0 * 1 + 1 * 2 + 2 * 3) + 1 - 2 * 2


def test_missing_members_of_buses_are_named(compile_circuit: Compile) -> None:
    wasm = compile_circuit("bus", BN254).wasm
    given = {"origin": {"x": 1}, "points": [{"x": 1, "y": 1}, {"y": 1}, {"x": 1, "y": 1}]}
    with pytest.raises(InvalidInput, match=r"missing origin\.y, points\[1\]\.x$"):
        calculate_witness(wasm, given)
    with pytest.raises(InvalidInput, match=r"missing origin\.x, origin\.y$"):
        calculate_witness(wasm, {"points": [1, 2, 3, 4, 5, 6]})


def test_messages_of_a_circom_program(compile_circuit: Compile) -> None:
    wasm = compile_circuit("multiplier", BN254).wasm
    good = {"factors": [1, 2, 3, 4, 5], "pairs": [[1, 2], [3, 4]], "scale": 8}
    with pytest.raises(UnsatisfiedWitness, match=r"Error in template Chain_0 line: 11"):
        calculate_witness(wasm, {**good, "scale": 7})
    with pytest.raises(InvalidInput, match=r"missing pairs, scale$"):
        calculate_witness(wasm, {"factors": [1, 2, 3, 4, 5]})
    with pytest.raises(
        InvalidInput, match=r"pairs: expected 4 values, found 3; scales: the circuit has no such"
    ):
        calculate_witness(wasm, {"factors": [1, 2, 3, 4, 5], "pairs": [[1, 2], [3]], "scales": 8})
    with pytest.raises(Timeout, match="instructions"):
        calculate_witness(wasm, good, fuel=1000)


def test_a_constraint_that_fails_is_named(compile_circuit: Compile) -> None:
    wasm = compile_circuit("nopublic", BN254).wasm
    with pytest.raises(UnsatisfiedWitness, match="Hidden"):
        calculate_witness(wasm, {"a": 5, "b": 3, "c": 76})
