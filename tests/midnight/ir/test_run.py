"""Execution of circuits: public inputs of real statements, and every way in which one does not hold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpuprover.errors import UnsatisfiedWitness, UnsupportedFile, from_record, to_record
from gpuprover.midnight import jubjub
from gpuprover.midnight.encoding import Atom
from gpuprover.midnight.ir.circuit import Circuit
from gpuprover.midnight.ir.failure import FailedCheck, element_text, explain
from gpuprover.midnight.ir.files import n_public, read_circuit
from gpuprover.midnight.ir.hashing import aligned_bytes
from gpuprover.midnight.ir.machine_v3 import decode, encode
from gpuprover.midnight.ir.run import run
from gpuprover.midnight.poseidon import R, poseidon_hash
from gpuprover.midnight.preimage import Preimage, read_preimage
from tests.support.midnight import SMALL, data_folder, public_inputs
from tests.support.zkir import NATIVE, circuit_v2, circuit_v3, op, preimage

BYTES32, POINT, SCALAR = "Bytes<32>", "Point<Jubjub>", "Scalar<Jubjub>"
G = jubjub.GENERATOR


# Real statements --------------------------------------------------------------------------------


def check_statement(file: Path) -> None:
    """A preimage's public inputs are those that the network's own prover had, and so are the skips."""
    circuit = read_circuit((file.parent / f"{file.name.split('.')[0]}.bzkir").read_bytes())
    found = read_preimage(file.read_bytes())
    execution = run(circuit, found)
    expected = file.with_suffix(".pis.json")
    assert execution.public_inputs == public_inputs(expected)
    assert len(execution.public_inputs) == n_public(circuit)
    document = json.loads(expected.read_text())
    if isinstance(document, dict):
        assert execution.skips == document["check"]
    assert execution.inputs[: len(found.inputs) + 1] == [*found.inputs, found.binding_input]
    assert ", inputs" not in repr(execution)
    changed = replace(found, public_transcript_inputs=(*found.public_transcript_inputs, 1))
    with pytest.raises(FailedCheck, match="Transcripts not fully consumed"):
        run(circuit, changed)
    if circuit.do_communications_commitment:
        assert found.communications_commitment is not None
        value, randomness = found.communications_commitment
        assert execution.inputs[len(found.inputs) + 1] == value
        assert execution.inputs[-1] == randomness
        changed = replace(found, communications_commitment=(value, randomness + 1))
        with pytest.raises(FailedCheck, match="Communications commitment mismatch"):
            run(circuit, changed)


@pytest.mark.parametrize("file", sorted(SMALL.glob("*.preimage")), ids=lambda path: path.stem)
def test_small_statements(file: Path) -> None:
    check_statement(file)


@pytest.mark.parametrize("folder", ["data", "keys", "data08"])
def test_statements(folder: str) -> None:
    """Statements that the network's prover proved, of all architectures and every operation of ZKIR 2.0."""
    found = sorted(data_folder(folder).glob("*.preimage"))
    assert found
    for file in found:
        check_statement(file)


# Failures ---------------------------------------------------------------------------------------

Failing = tuple[Circuit, Preimage, int | None, str, str]
"""Circuit, preimage, the instruction, what is said without values, and with them."""
SECRET = 0x012C
"""300, in texts 2c01."""


def failures_v2() -> Iterator[Failing]:
    one = preimage(SECRET)
    yield circuit_v2(1), preimage(1, 2), None, *twice("Expected 1 inputs, received 2")
    used_up = "Transcripts not fully consumed"
    yield (
        circuit_v2(1),
        preimage(1, public=(5,)),
        None,
        f"{used_up}: 0 of 1 public transcript outputs",
        used_up,
    )
    yield circuit_v2(1), preimage(1, private=(5,)), None, f"{used_up}: 0 of 1 private transcript", used_up
    declared = [op("declare_pub_input", var=0), op("pi_skip", count=1)]
    mismatch = "Public transcript input mismatch for input 0"
    both = f"{mismatch}; expected: Some(09), computed: Some(2c01)"
    yield circuit_v2(1, *declared), preimage(SECRET, declared=(9,)), 1, mismatch, both
    none = f"{mismatch}; expected: None, computed: Some(-)"
    yield circuit_v2(1, *declared), preimage(0), 1, mismatch, none
    yield circuit_v2(1, op("pi_skip", count=1)), one, 0, *twice("a group of 1 public inputs, of which 0")
    out = op("public_input", guard=None)
    yield circuit_v2(1, out, out), preimage(1, public=(7,)), 1, *twice("Ran out of public transcript outputs")
    private = op("private_input", guard=None)
    yield circuit_v2(1, private), one, 0, *twice("Ran out of private transcript outputs")
    yield circuit_v2(1, committed=True), one, None, *twice("Expected communications commitment")
    wrong = preimage(1, commitment=(5, 6))
    yield circuit_v2(1, committed=True), wrong, None, *twice("Communications commitment mismatch")
    bound = "Bit bound failed: a value is not 8-bit", "Bit bound failed: 2c01 is not 8-bit"
    yield circuit_v2(1, op("copy", var=0), op("constrain_bits", var=1, bits=8)), one, 1, *bound
    yield circuit_v2(1, op("less_than", a=0, b=0, bits=8)), one, 0, *bound
    yield circuit_v2(1, op("constrain_bits", var=0, bits=255)), one, 0, *twice("Excessive bit bound")
    yield circuit_v2(1, op("assert", cond=0)), preimage(0), 0, *twice("Failed direct assertion")
    boolean = "Expected boolean", "Expected boolean, found: 2c01"
    for fields in (
        op("assert", cond=0),
        op("cond_select", bit=0, a=0, b=0),
        op("constrain_to_boolean", var=0),
        op("not", a=0),
        op("pi_skip", guard=0, count=0),
        op("public_input", guard=0),
        op("private_input", guard=0),
    ):
        yield circuit_v2(1, fields), one, 0, *boolean
    equal = "Failed equality constraint", "Failed equality constraint: 2c01 != 01"
    yield circuit_v2(2, op("constrain_eq", a=0, b=1)), preimage(SECRET, 1), 0, *equal
    count = twice("Excessive bit count")
    yield circuit_v2(1, op("div_mod_power_of_two", var=0, bits=249)), one, 0, *count
    again = op("reconstitute_field", divisor=0, modulus=1, bits=249)
    yield circuit_v2(2, again), preimage(1, 1), 0, *count
    again = op("reconstitute_field", divisor=0, modulus=1, bits=8)
    yield circuit_v2(2, again), preimage(1, SECRET), 0, *bound
    largest = R - 1
    overflow = preimage(largest >> 8, (largest & 255) + 1)
    yield circuit_v2(2, again), overflow, 0, *twice("Reconstituted element overflows field")
    curve = "Elliptic curve point not on curve", "Elliptic curve point not on curve: (2c01, 01)"
    point = preimage(SECRET, 1)
    yield circuit_v2(2, op("ec_mul", a_x=0, a_y=1, scalar=1)), point, 0, *curve
    yield circuit_v2(2, op("ec_add", a_x=0, a_y=1, b_x=0, b_y=1)), point, 0, *curve
    order_two = preimage(0, R - 1)
    yield circuit_v2(2, op("ec_mul", a_x=0, a_y=1, scalar=1)), order_two, 0, curve[0], curve[0]
    byte = [{"tag": "atom", "value": {"length": 1, "tag": "bytes"}}]
    fits = "Inputs did not match alignment", "Inputs did not match alignment (inputs: [2c01]"
    yield circuit_v2(1, op("persistent_hash", alignment=byte, inputs=[0])), one, 0, *fits


def failures_v3() -> Iterator[Failing]:
    def on(kind: str, *instructions: dict[str, Any]) -> Circuit:
        return circuit_v3({"%x": kind}, *instructions)

    one = preimage(SECRET)
    few = "Not enough raw inputs: ran out at index 0 while decoding input 0"
    yield on(BYTES32), one, None, few, few.replace("input 0", '"%x"')
    yield on(NATIVE), preimage(1, 2), None, *twice("Expected 1 raw inputs, received 2")
    decoded = "Failed to decode a value of "
    texts = f"{decoded}{BYTES32}", f"Failed to decode [2c01, 2c01] as {BYTES32}"
    yield on(BYTES32), preimage(SECRET, SECRET), None, *texts
    yield on(BYTES32), preimage(1 << 248, 0), None, texts[0], "Failed to decode"
    texts = f"{decoded}{POINT}", f"Failed to decode [2c01, 01] as {POINT}"
    yield on(POINT), preimage(SECRET, 1), None, *texts
    yield on(POINT), preimage(0, R - 1), None, texts[0], "Failed to decode"
    yield on(SCALAR), preimage(jubjub.ORDER), None, f"{decoded}{SCALAR}", "Failed to decode"
    boolean = "Expected boolean", "Expected boolean, found: 2c01"
    for fields in (
        op("assert", cond="%x"),
        op("cond_select", bit="%x", a="0x00", b="0x01", output="%y"),
        op("constrain_to_boolean", val="%x"),
        op("not", a="%x", output="%y"),
        op("impact", guard="%x", inputs=[]),
        op("public_input", guard="%x", kind=BYTES32, output="%y"),
        op("private_input", guard="%x", kind=POINT, output="%y"),
    ):
        yield on(NATIVE, fields), one, 0, *boolean
    yield on(NATIVE, op("assert", cond="%x")), preimage(0), 0, *twice("Failed direct assertion")
    bound = "Bit bound failed: a value is not 8-bit", "Bit bound failed: 2c01 is not 8-bit"
    yield on(NATIVE, op("constrain_bits", val="%x", bits=8)), one, 0, *bound
    yield on(NATIVE, op("less_than", a="0x01", b="%x", bits=8, output="%y")), one, 0, *bound
    excessive = op("less_than", a="%x", b="%x", bits=255, output="%y")
    yield on(NATIVE, excessive), one, 0, *twice("Excessive bit bound")
    split = op("div_mod_power_of_two", val="%x", bits=249, outputs=["%q", "%r"])
    yield on(NATIVE, split), one, 0, *twice("Excessive bit count")
    again = op("reconstitute_field", divisor="%x", modulus="0xff", bits=8, output="%y")
    yield on(NATIVE, again), preimage((R - 1) >> 8), 0, *twice("Reconstituted element overflows field")
    equal = "Equality constraint failed", "Equality constraint failed: 2c01 != 01"
    yield on(NATIVE, op("constrain_eq", a="%x", b="0x01")), one, 0, *equal
    inverse = twice("cannot invert zero")
    yield on(NATIVE, op("inv", a="%x", output="%y")), preimage(0), 0, *inverse
    yield on(SCALAR, op("inv", a="%x", output="%y")), preimage(0), 0, *inverse
    low_high = op("bytes32_from_low_high", inputs=["%x", "%x"], output="%y")
    yield on(NATIVE, low_high), one, 0, *twice("Bytes32FromLowHigh: low operand must fit in 31 bytes")
    point = op("from_coordinates", inputs=["%x", "0x01"], output="%y")
    built = "Cannot build a Jubjub point", "Cannot build a Jubjub point from (2c01, 01)"
    circuit = circuit_v3({"%x": NATIVE, "%p": POINT}, point)
    yield circuit, preimage(SECRET, *G), 0, *built
    declared = op("impact", guard="0x01", inputs=["0x07", "%x"])
    mismatch = "Public transcript input mismatch for input 1"
    texts = mismatch, f"{mismatch}; expected: Some(09), computed: Some(2c01)"
    yield on(NATIVE, declared), preimage(SECRET, declared=(7, 9)), 0, *texts
    for name in ("public", "private"):
        given = op(f"{name}_input", guard=None, kind=BYTES32, output="%y")
        yield on(NATIVE, given), preimage(1, public=(1,), private=(1,)), 0, *twice(f"Ran out of {name}")
    given = op("public_input", guard=None, kind=SCALAR, output="%y")
    texts = f"{decoded}{SCALAR}", "Failed to decode"
    yield on(NATIVE, given), preimage(1, public=(jubjub.ORDER,)), 0, *texts


def twice(text: str) -> tuple[str, str]:
    return text, text


@pytest.mark.parametrize(("circuit", "found", "index", "short", "official"), [*failures_v2(), *failures_v3()])
def test_failures(circuit: Circuit, found: Preimage, index: int | None, short: str, official: str) -> None:
    """The instruction is named; values stand only in the text that is asked for."""
    with pytest.raises(UnsatisfiedWitness) as caught:
        run(circuit, found)
    failure = caught.value
    assert isinstance(failure, FailedCheck)
    assert failure.index == index
    assert failure.op == ("" if index is None else circuit.instructions[index].op)
    start = "" if index is None else f"instruction {index} ({failure.op}): "
    assert explain(failure).startswith(start + short)
    assert explain(failure, values=True).startswith(start + official)
    for text in (explain(failure), failure.message, failure.told, repr(failure), str(to_record(failure))):
        assert element_text(SECRET) not in text
        assert str(SECRET) not in text
    restored = from_record(to_record(failure))
    assert type(restored) is UnsatisfiedWitness
    assert explain(restored, values=True) == explain(failure)


@pytest.mark.parametrize(
    ("circuit", "text"),
    [
        (
            circuit_v3({}, op("assert", cond="0x00"), op("keccak256", alignment=[], inputs=[], output="%x")),
            "instruction 1 (keccak256): keccak256 is not supported",
        ),
        (
            circuit_v3({}, op("load_constant", kind="Bool", encoding=["0x01"], output="%x"), minor=1),
            "instruction 0 (load_constant): load_constant is not supported",
        ),
        (
            circuit_v3({"%p": "Point<Secp256k1>"}),
            "input 0: values of type Point<Secp256k1> are not supported",
        ),
        (circuit_v3({}, outputs=("Bytes<7>",)), "output 0: values of type Bytes<7> are not supported"),
        (
            circuit_v3({}, op("private_input", guard=None, kind="Base<Curve25519>", output="%x")),
            "instruction 0 (private_input): values of type Base<Curve25519> are not supported",
        ),
    ],
)
def test_what_cannot_be_executed_is_refused_by_name(circuit: Circuit, text: str) -> None:
    with pytest.raises(UnsupportedFile) as caught:
        run(circuit, preimage(1, 2, 3, 4, 5))
    assert text in caught.value.message


# Values -----------------------------------------------------------------------------------------


def values_of(circuit: Circuit, found: Preimage) -> list[int]:
    """What the circuit declares, in a statement whose transcript is made to fit."""
    count = n_public(circuit) - 1
    for i in range(count + 1):
        try:
            return run(circuit, found).public_inputs[1:]
        except FailedCheck as failure:
            if f"mismatch for input {i};" not in failure.official:
                raise
            digits = failure.official.rsplit("Some(", 1)[1].rstrip(")").strip("-")
            value = int.from_bytes(bytes.fromhex(digits), "little")
            found = replace(found, public_transcript_inputs=(*found.public_transcript_inputs, value))
    raise AssertionError


def declared(*names: str) -> dict[str, Any]:
    return op("impact", guard="0x01", inputs=list(names))


def encoded(name: str, count: int) -> dict[str, Any]:
    return op("encode", input=name, outputs=[f"{name}.{i}" for i in range(count)])


def test_scalars_of_jubjub() -> None:
    """Arithmetic modulo the subgroup's order, and multiples of points."""
    a, b = jubjub.ORDER - 3, 0x1234567
    circuit = circuit_v3(
        {"%a": SCALAR, "%b": SCALAR, "%n": NATIVE},
        op("add", a="%a", b="%b", output="%sum"),
        op("mul", a="%a", b="%b", output="%product"),
        op("neg", a="%b", output="%minus"),
        op("inv", a="%b", output="%inverse"),
        op("jubjub_scalar_from_native", native="%n", output="%reduced"),
        op("ec_mul_generator", scalar="%product", output="%g"),
        op("ec_mul", a="%g", scalar="%inverse", output="%h"),
        op("test_eq", a="%a", b="%b", output="%equal"),
        op("cond_select", bit="%equal", a="%a", b="%minus", output="%chosen"),
        *(encoded(name, 1) for name in ("%sum", "%product", "%minus", "%inverse", "%reduced", "%chosen")),
        op("into_coordinates", point="%h", outputs=["%x", "%y"]),
        declared("%sum.0", "%product.0", "%minus.0", "%inverse.0", "%reduced.0", "%chosen.0", "%x", "%y"),
    )
    order = jubjub.ORDER
    assert values_of(circuit, preimage(a, b, R - 1)) == [
        *(b - 3, a * b % order, order - b, pow(b, -1, order), (R - 1) % order, order - b),
        *jubjub.multiply(G, a),
    ]


def test_typed_values_from_transcripts() -> None:
    """Encoded where they are taken, given to the table in that form, and absent where a guard is off."""
    p = jubjub.multiply(G, 5)
    kinds = {"%b": BYTES32, "%p": POINT, "%s": SCALAR, "%n": NATIVE}
    given = [
        op(f"{name}_input", guard=guard, kind=kind, output=f"{key}{name[1]}{guard}")
        for name in ("public", "private")
        for guard in (None, "0x01", "0x00")
        for key, kind in kinds.items()
    ]
    elements = (1 << 247, 255, *p, 77, R - 1)
    circuit = circuit_v3({}, *given)
    execution = run(circuit, preimage(public=elements * 2, private=elements * 2))
    absent = (0, 0, 0, 1, 0, 0)
    assert execution.inputs == [31337, *(elements * 2 + absent) * 2]
    assert execution.public_inputs == [31337]
    with pytest.raises(FailedCheck, match="Ran out of private"):
        run(circuit, preimage(public=elements * 2, private=(elements * 2)[:-1]))


def test_outputs_of_all_types_are_committed_to() -> None:
    kinds = {"%b": BYTES32, "%p": POINT, "%s": SCALAR, "%n": NATIVE}
    circuit = circuit_v3(kinds, op("output", vals=list(kinds)), outputs=tuple(kinds.values()), committed=True)
    raw = (3, 4, *G, 5, 6)
    commitment = poseidon_hash([777, *raw, *raw])
    execution = run(circuit, preimage(*raw, commitment=(commitment, 777)))
    assert execution.public_inputs == [31337, commitment]
    assert execution.inputs == [*raw, 31337, commitment, 777]
    with pytest.raises(FailedCheck, match="commitment mismatch"):
        run(circuit, preimage(*raw, commitment=(commitment, 778)))


def test_points_of_jubjub() -> None:
    p, q = jubjub.multiply(G, 3), jubjub.multiply(G, 4)
    circuit = circuit_v3(
        {"%p": POINT, "%q": POINT},
        op("add", a="%p", b="%q", output="%r"),
        op("neg", a="%p", output="%m"),
        op("add", a="%p", b="%m", output="%zero"),
        *(encoded(name, 2) for name in ("%r", "%m", "%zero")),
        declared("%r.0", "%r.1", "%m.0", "%m.1", "%zero.0", "%zero.1"),
    )
    expected = [*jubjub.multiply(G, 7), R - p[0], p[1], 0, 1]
    assert values_of(circuit, preimage(*p, *q)) == expected


def test_bytes() -> None:
    data = bytes(range(200, 232))
    low, high = int.from_bytes(data[:31], "little"), data[31]
    circuit = circuit_v3(
        {"%b": BYTES32, "%n": NATIVE},
        op("reverse_bytes", bytes="%b", output="%reversed"),
        op("from_bytes32", bytes="%reversed", kind=NATIVE, output="%backwards"),
        op("from_bytes32", bytes="%b", kind=NATIVE, output="%whole"),
        op("bytes32_into_low_high", bytes="%b", outputs=["%low", "%high"]),
        op("bytes32_from_low_high", inputs=["%low", "%high"], output="%again"),
        op("constrain_eq", a="%again", b="%b"),
        op("into_bytes32", input="%n", output="%bytes"),
        encoded("%bytes", 2),
        declared("%backwards", "%whole", "%low", "%high", "%bytes.0", "%bytes.1"),
    )
    assert values_of(circuit, preimage(low, high, R - 1)) == [
        *(int.from_bytes(data, "big") % R, int.from_bytes(data, "little") % R, low, high),
        *((R - 1) % (1 << 248), (R - 1) >> 248),
    ]


def test_hashes_of_aligned_bytes() -> None:
    """Both versions hash the same; an atom's stray bytes come first among elements and last in bytes."""
    atoms = [
        {"tag": "atom", "value": {"length": 33, "tag": "bytes"}},
        {"tag": "atom", "value": {"tag": "field"}},
        {"tag": "atom", "value": {"length": 0, "tag": "bytes"}},
        {"tag": "atom", "value": {"length": 3, "tag": "bytes"}},
    ]
    data = bytes(range(1, 34))
    elements = [int.from_bytes(data[31:], "little"), int.from_bytes(data[:31], "little"), R - 1, 5]
    digest = hashlib.sha256(data + (R - 1).to_bytes(32, "little") + b"\5\0\0").digest()
    halves = [digest[31], int.from_bytes(digest[:31], "little")]
    old = circuit_v2(
        4,
        op("persistent_hash", alignment=atoms, inputs=[0, 1, 2, 3]),
        *(op("declare_pub_input", var=var) for var in (4, 5)),
        op("pi_skip", count=2),
    )
    assert values_of(old, preimage(*elements)) == halves
    names = ["%a", "%b", "%c", "%d"]
    new = circuit_v3(
        dict.fromkeys(names, NATIVE),
        op("persistent_hash", alignment=atoms, inputs=names, output="%h"),
        op("bytes32_into_low_high", bytes="%h", outputs=["%low", "%high"]),
        declared("%high", "%low"),
    )
    assert values_of(new, preimage(*elements)) == halves


def test_bytes_of_elements() -> None:
    assert aligned_bytes((Atom("bytes", 31), Atom("bytes", 1)), [(1 << 248) - 1, 255]) == b"\xff" * 32
    assert aligned_bytes((Atom("bytes", 62),), [2, 1]) == bytes([1, *bytes(30), 2, *bytes(30)])
    assert aligned_bytes((Atom("bytes", 31),), [1 << 248]) is None
    assert aligned_bytes((Atom("bytes", 32),), [256, 0]) is None
    assert aligned_bytes((Atom("field"),), [7, 9]) == bytes([7, *bytes(31)]), "the rest is ignored"


def test_encodings_there_and_back() -> None:
    for value, kind in ((5, NATIVE), (bytes(range(32)), BYTES32), (G, POINT), (jubjub.ORDER - 1, SCALAR)):
        assert decode(encode(value), kind) == value


def test_groups_that_are_skipped() -> None:
    """ZKIR 2.0 keeps their values among the public inputs, ZKIR 3 has zeros there."""
    old = circuit_v2(
        2,
        op("declare_pub_input", var=1),
        op("declare_pub_input", var=1),
        op("pi_skip", guard=0, count=2),
        op("declare_pub_input", var=0),
        op("pi_skip", guard=None, count=1),
    )
    execution = run(old, preimage(0, 9, declared=(0,)))
    assert (execution.public_inputs, execution.skips) == ([31337, 9, 9, 0], [2, None])
    new = circuit_v3(
        {"%g": NATIVE, "%x": NATIVE},
        op("impact", guard="%g", inputs=["%x", "0x05"]),
        op("impact", guard="0x01", inputs=["%x"]),
    )
    execution = run(new, preimage(0, 9, declared=(9,)))
    assert (execution.public_inputs, execution.skips) == ([31337, 0, 0, 9], [2, None])
    execution = run(new, preimage(1, 9, declared=(9, 5, 9)))
    assert (execution.public_inputs, execution.skips) == ([31337, 9, 5, 9], [None, None])
