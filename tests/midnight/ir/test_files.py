"""Circuits' files: both forms of both versions, there and back, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpuprover.errors import MalformedFile, ProverError, UnsupportedFile
from gpuprover.midnight.architecture import Architecture
from gpuprover.midnight.encoding import Atom
from gpuprover.midnight.ir import codec, v2, v3
from gpuprover.midnight.ir.codec import element_of_hex, hex_of_element
from gpuprover.midnight.ir.files import (
    architecture_of,
    circuit_document,
    n_public,
    profile_of,
    read_circuit,
    write_circuit,
)
from gpuprover.midnight.profile import V6, V7
from tests.support.midnight import SMALL, data_folder
from tests.support.zkir import NATIVE, circuit_v2, circuit_v3, op


def normal(value: Any) -> Any:
    """A document with every immediate written the one way that we write it."""
    if isinstance(value, dict):
        return {name: _immediate(item) if name == "imm" else normal(item) for name, item in value.items()}
    if isinstance(value, list):
        return [normal(item) for item in value]
    if isinstance(value, str) and value.lstrip("-").startswith("0x"):
        return "0x" + _immediate(value)
    return value


def _immediate(text: str) -> str:
    def fail(problem: str) -> Any:
        raise AssertionError(problem)

    return hex_of_element(element_of_hex(text, fail))


def check_round_trips(binary: Path) -> None:
    data = binary.read_bytes()
    circuit = read_circuit(data, binary.name)
    assert write_circuit(circuit) == data
    document = circuit_document(circuit)
    assert read_circuit(json.dumps(document).encode()) == circuit
    source = binary.with_suffix(".zkir")
    if source.exists():
        assert read_circuit(source.read_bytes()) == circuit
        assert document == normal(json.loads(source.read_text()))


@pytest.mark.parametrize("binary", sorted(SMALL.glob("*.bzkir")), ids=lambda path: path.stem)
def test_small_circuits_there_and_back(binary: Path) -> None:
    check_round_trips(binary)


@pytest.mark.parametrize("folder", ["data", "keys", "data08"])
def test_circuits_there_and_back(folder: str) -> None:
    """Circuits of real contracts, the ledger's own, and circuits with every operation."""
    found = sorted(data_folder(folder).glob("*.bzkir"))
    assert found
    for binary in found:
        check_round_trips(binary)


@pytest.mark.parametrize(
    ("name", "chips", "public"),
    [
        ("hello", {"poseidon"}, 13),
        ("fallible", {"poseidon"}, 37),
        ("compact_is_odd", {"poseidon"}, 43),
        ("t8c", set(), 7),
    ],
)
def test_what_follows_from_a_circuit(name: str, chips: set[str], public: int) -> None:
    circuit = read_circuit((SMALL / f"{name}.bzkir").read_bytes(), name)
    profile = V7 if circuit.version[0] == 3 else V6
    assert profile_of(circuit) is profile
    assert architecture_of(circuit) == Architecture(frozenset(chips), profile.range_columns)
    assert n_public(circuit) == public


def test_chips_by_operations_and_types() -> None:
    for fields, chips in (
        (op("ec_mul_generator", scalar=0), {"jubjub"}),
        (op("hash_to_curve", inputs=[0]), {"jubjub", "poseidon"}),
        (op("persistent_hash", alignment=[], inputs=[]), {"sha2_256"}),
        (op("mul", a=0, b=0), set()),
    ):
        assert architecture_of(circuit_v2(1, fields)).chips == chips
    given = op("public_input", guard=None, kind="Point<Secp256k1>", output="%p")
    assert architecture_of(circuit_v3({}, given)).chips == {"secp256k1"}
    both = circuit_v3({"%s": "Scalar<Jubjub>", "%c": "Base<Curve25519>"}, committed=True)
    assert architecture_of(both).chips == {"jubjub", "curve25519", "poseidon"}


# Every operation -------------------------------------------------------------------------------


def an_instruction(operations: Any, name: str) -> dict[str, Any]:
    """The operation with fields of ZKIR 3 that its kinds allow."""
    samples = {
        v3.NAME: "%new",
        v3.OPERAND: "0x2a",
        codec.U32: 300,
        v3.TYPE: "Bytes<33>",
        codec.ALIGNMENT: [
            {"tag": "atom", "value": {"length": 70, "tag": "bytes"}},
            {"tag": "option", "value": [[{"tag": "atom", "value": {"tag": "field"}}], []]},
            {"tag": "atom", "value": {"tag": "compress"}},
        ],
    }
    fields = {}
    for field, kind in operations[name].items():
        if kind in samples:
            fields[field] = samples[kind]
        elif field == "guard":
            fields[field] = "0x01"
        elif field == "encoding":
            fields[field] = ["0x00", "0xff01"]
        elif field == "outputs":
            fields[field] = ["%new", "%newer"]
        else:
            fields[field] = ["%x", "0x03"]
    return {"op": name, **fields}


@pytest.mark.parametrize("name", v3.OPERATIONS)
def test_every_operation_of_version_3_there_and_back(name: str) -> None:
    """Also those that cannot be executed here: one of them keeps all that it says."""
    unsupported = op("nth", bytes="0x00", index=0, output="%byte")
    circuit = circuit_v3({"%x": NATIVE}, an_instruction(v3.OPERATIONS, name), unsupported, minor=1)
    assert read_circuit(write_circuit(circuit)) == circuit
    assert read_circuit(json.dumps(circuit_document(circuit)).encode()) == circuit
    assert circuit_document(circuit)["instructions"][0] == an_instruction(v3.OPERATIONS, name)


@pytest.mark.parametrize(
    "name", [*v3.FIXED_TYPES, "Bytes<0>", "Bytes<64>", "Bytes<70000>", "Bytes<4294967295>"]
)
def test_every_type_there_and_back(name: str) -> None:
    circuit = circuit_v3({"%x": name}, outputs=(name,), minor=1)
    assert read_circuit(write_circuit(circuit)) == circuit


def test_codes_of_operations() -> None:
    """As the network's files have them, at both ends and where a version ends."""
    assert len(v2.OPERATIONS) == 26
    for code, name in (
        (0x00, "assert"),
        (0x0C, "load_imm"),
        (0x11, "persistent_hash"),
        (0x19, "private_input"),
    ):
        assert list(v2.OPERATIONS)[code] == name
    assert len(v3.OPERATIONS) == 45
    for code, name in (
        (0, "encode"),
        (16, "bytes32_into_low_high"),
        (33, "output"),
        (34, "slice"),
        (44, "reverse"),
    ):
        assert list(v3.OPERATIONS)[code] == name
    circuit = circuit_v2(1, op("pi_skip", guard=0, count=70), op("pi_skip", count=1))
    body = bytes.fromhex("04 00 08 07 01 00 1901 07 00 04")
    assert write_circuit(circuit) == b"midnight:ir-source[v2]:" + body


def test_immediates_and_alignments() -> None:
    circuit = circuit_v2(0, op("load_imm", imm="-02"), op("load_imm", imm=""), op("load_imm", imm="0D00"))
    assert [found["imm"] for found in circuit.instructions] == [v2_r() - 2, 0, 13]
    atoms = [
        {"tag": "atom", "value": {"length": 32, "tag": "bytes"}},
        {"tag": "atom", "value": {"tag": "field"}},
    ]
    fields = op("persistent_hash", alignment=atoms, inputs=[0, 0, 0])
    assert circuit_v2(1, fields).instructions[0]["alignment"] == (Atom("bytes", 32), Atom("field"))
    negative = circuit_v3({}, op("add", a="-0x02", b="0x05", output="%x"))
    assert negative.instructions[0]["a"] == v2_r() - 2


def v2_r() -> int:
    return 0x73EDA753299D7D483339D80809A1D80553BDA402FFFE5BFEFFFFFFFF00000001


# What is refused --------------------------------------------------------------------------------


def refusals_v2() -> Iterator[tuple[type[ProverError], str, dict[str, Any]]]:
    base = circuit_document(circuit_v2(2, op("add", a=0, b=1)))

    def of(*instructions: dict[str, Any]) -> dict[str, Any]:
        return {**base, "instructions": list(instructions)}

    yield MalformedFile, "instruction 0 (add): b: index out of bounds: 2, of 2", of(op("add", a=0, b=2))
    yield MalformedFile, "(hash_to_curve): inputs: index out", of(op("hash_to_curve", inputs=[0, 9]))
    yield MalformedFile, "(pi_skip): guard: index out", of(op("pi_skip", guard=2, count=0))
    yield MalformedFile, "expected a field 'b'", of(op("add", a=0))
    yield MalformedFile, "a field that is not known: c", of(op("add", a=0, b=0, c=0))
    yield MalformedFile, "expected an integer below 2^32", of(op("add", a=True, b=0))
    yield MalformedFile, "expected an integer below 2^32", of(op("constrain_bits", var=0, bits=1 << 32))
    yield MalformedFile, "expected hexadecimal digits", of(op("load_imm", imm="1"))
    yield MalformedFile, "expected an element below r", of(op("load_imm", imm="ff" * 32))
    yield MalformedFile, "expected an element below r", of(op("load_imm", imm="00" * 33))
    yield UnsupportedFile, "an operation that is not known: nand", of(op("nand", a=0))
    yield MalformedFile, "with a text 'op'", of({"a": 0})
    yield MalformedFile, "instruction 0: expected an object", {**base, "instructions": [7]}
    bytes32 = {"tag": "atom", "value": {"length": 32, "tag": "bytes"}}
    hashed = op("persistent_hash", alignment=[bytes32], inputs=[0])
    yield MalformedFile, "expected 2 inputs by the alignment, found 1", of(hashed)
    compressed = [{"tag": "atom", "value": {"tag": "compress"}}]
    yield UnsupportedFile, "cannot be hashed", of(op("persistent_hash", alignment=compressed, inputs=[0]))
    yield (
        MalformedFile,
        "expected an atom",
        of(op("persistent_hash", alignment=[{"tag": "atom", "value": {"tag": "bytes"}}], inputs=[0])),
    )
    yield UnsupportedFile, "num_inputs: expected at most", {**base, "num_inputs": 1 << 21}
    yield (
        MalformedFile,
        "do_communications_commitment: expected true or false",
        {
            **base,
            "do_communications_commitment": 1,
        },
    )
    yield UnsupportedFile, "2.1 of ZKIR", {**base, "version": {"major": 2, "minor": 1}}
    yield UnsupportedFile, "expected major version 2 or 3", {**base, "version": {"major": 4, "minor": 0}}
    yield MalformedFile, "version: expected an object", {**base, "version": "2.0"}
    yield MalformedFile, "a field that is not known: more", {**base, "more": 1}


def refusals_v3() -> Iterator[tuple[type[ProverError], str, dict[str, Any]]]:
    inputs = {"%n": NATIVE, "%b": "Bytes<32>", "%p": "Point<Jubjub>", "%s": "Scalar<Jubjub>"}
    base = circuit_document(circuit_v3(inputs))

    def of(*instructions: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {**base, "instructions": list(instructions), **more}

    yield MalformedFile, "variable not found: %q", of(op("assert", cond="%q"))
    yield MalformedFile, "(copy): variable not found: %q", of(op("copy", val="%q", output="%q"))
    yield MalformedFile, "has a value already: %n", of(op("copy", val="%n", output="%n"))
    yield (
        MalformedFile,
        "has a value already: %x",
        of(op("into_coordinates", point="%p", outputs=["%x", "%x"])),
    )
    yield MalformedFile, "begins with %", of(op("copy", val="%n", output="x"))
    yield MalformedFile, "begins with %, or hexadecimal", of(op("assert", cond="n"))
    yield MalformedFile, "begins with %, or hexadecimal", of(op("assert", cond="0x"))
    yield MalformedFile, "expected hexadecimal digits", of(op("assert", cond="0x1"))
    yield MalformedFile, "expected a list of two", of(op("into_coordinates", point="%p", outputs=["%x"]))
    yield (
        UnsupportedFile,
        "not known: Point<Pallas>",
        of(op("private_input", guard=None, kind="Point<Pallas>", output="%x")),
    )
    long = op("private_input", guard=None, kind="Bytes<4294967296>", output="%x")
    yield UnsupportedFile, "not known: Bytes<4294967296>", of(long)
    yield MalformedFile, "expected a text", of(op("copy", val="%n", output="%\ud800"))
    yield UnsupportedFile, "3.2 of ZKIR", {**base, "version": {"major": 3, "minor": 2}}
    for fields, text in (
        (op("add", a="%n", b="%p", output="%x"), "Unsupported addition: Native + JubjubPoint"),
        (op("add", a="%b", b="%b", output="%x"), "Unsupported addition: Bytes32 + Bytes32"),
        (op("mul", a="%p", b="%p", output="%x"), "Unsupported multiplication: JubjubPoint x JubjubPoint"),
        (op("test_eq", a="%n", b="%b", output="%x"), "Unsupported test_eq: Native == Bytes32"),
        (op("constrain_eq", a="%s", b="%n"), "Unsupported constrain_eq: JubjubScalar == Native"),
        (op("cond_select", bit="%n", a="%s", b="%p", output="%x"), "Unsupported cond_select"),
        (op("cond_select", bit="%b", a="%n", b="%n", output="%x"), "cannot convert Bytes32 to Native"),
        (op("neg", a="%b", output="%x"), "Unsupported negation of Bytes32"),
        (op("inv", a="%p", output="%x"), "Unsupported inversion of JubjubPoint"),
        (op("encode", input="%p", outputs=["%x"]), "Unexpected output length of encode instruction"),
        (
            op("ec_mul", a="%p", scalar="%n", output="%x"),
            "Unsupported EC multiplication: JubjubPoint x Native",
        ),
        (op("ec_mul_generator", scalar="%n", output="%x"), "for scalar of type Native"),
        (
            op("into_coordinates", point="%n", outputs=["%x", "%y"]),
            "Unsupported coordinate extraction of Native",
        ),
        (op("from_coordinates", inputs=["%n", "%s"], output="%x"), "on (Native, JubjubScalar)"),
        (op("into_bytes32", input="%b", output="%x"), "Unsupported into_bytes32 for Bytes32"),
        (op("from_bytes32", bytes="%n", kind=NATIVE, output="%x"), "cannot convert Native to Bytes32"),
        (op("from_bytes32", bytes="%b", kind="Scalar<Jubjub>", output="%x"), "Unsupported from_bytes32"),
        (op("reverse_bytes", bytes="%n", output="%x"), "cannot convert Native to Bytes32"),
        (op("transient_hash", inputs=["%n", "%b"], output="%x"), "cannot convert Bytes32 to Native"),
        (op("impact", guard="%n", inputs=["%p"]), "cannot convert JubjubPoint to Native"),
        (op("div_mod_power_of_two", val="%n", bits=1, outputs=["%x"]), "requires exactly 2 outputs"),
        (op("public_input", guard="%b", kind=NATIVE, output="%x"), "cannot convert Bytes32 to Native"),
        (op("output", vals=["%n"]), "signature declares 0 return values but instruction has 1"),
    ):
        yield MalformedFile, f"instruction 0 ({fields['op']}): ", of(fields)
        yield MalformedFile, text, of(fields)
    yield (
        MalformedFile,
        "Output position 0: signature declares Native",
        of(op("output", vals=["%b"]), outputs=[NATIVE]),
    )
    alone = circuit_document(circuit_v3({"%n": NATIVE}))
    point = op("from_coordinates", inputs=["%n", "%n"], output="%p")
    yield UnsupportedFile, "no chip for them", {**alone, "instructions": [point]}


@pytest.mark.parametrize(("error", "text", "document"), [*refusals_v2(), *refusals_v3()])
def test_documents_that_are_refused(error: type[ProverError], text: str, document: dict[str, Any]) -> None:
    with pytest.raises(error) as caught:
        read_circuit(json.dumps(document).encode(), "here.zkir")
    assert text in caught.value.message
    assert caught.value.message.startswith("here.zkir: ")
    assert caught.value.role == "circuit"


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (b"midnight:ir-source[v9]:", UnsupportedFile, "midnight:ir-source[v9]"),
        (b"midnight:", MalformedFile, "tag"),
        (b"", MalformedFile, "document"),
        (b"[]", MalformedFile, "expected a JSON object"),
        (b"midnight:ir-source[v2-generic]:\x01\x00\x00\x00", UnsupportedFile, "2.1 of ZKIR"),
        (b"midnight:ir-source[v2]:\x00\x00\x04\x1a\x00", MalformedFile, "expected an operation below 26"),
        (b"midnight:ir-source[v2]:\x00\x00\x04\x00", MalformedFile, "instruction 0 (assert): cond"),
        (b"midnight:ir-source[v2]:\x00\x00\x08\x00", MalformedFile, "expected at most 1 items"),
        (b"midnight:ir-source[v2]:\x00\x02\x00", MalformedFile, "expected 0 or 1"),
        (b"midnight:ir-source[v2]:\x00\x00\x00\x00", MalformedFile, "1 bytes behind its end"),
        (b"midnight:ir-source[v3-generic]:\x02\x00\x00\x00\x00", UnsupportedFile, "3.2 of ZKIR"),
        (b"midnight:ir-source[v3-generic]:\x00\x04\x08%x\x10\x00\x00\x00", MalformedFile, "a type's code"),
        (b"midnight:ir-source[v3-generic]:\x00\x04\x04x\x00\x00\x00\x00", MalformedFile, "begins with %"),
        (
            b"midnight:ir-source[v3-generic]:\x00\x00\x04\x0f\x80\x00\x00",
            MalformedFile,
            "has a code of its own",
        ),
        (
            b"midnight:ir-source[v3-generic]:\x00\x00\x00\x00\x04\x01\x02",
            MalformedFile,
            "expected 0 for a name",
        ),
        (b"midnight:ir-source[v3-generic]:\x00\x00\x00\x00\x04\x01\x00\x100x01", MalformedFile, "announced"),
    ],
)
def test_binary_files_that_are_refused(data: bytes, error: type[ProverError], text: str) -> None:
    with pytest.raises(error) as caught:
        read_circuit(data, "here.bzkir")
    assert text in caught.value.message


def test_the_generic_tag_of_version_2() -> None:
    """Later files of ZKIR 2.0 name their minor version."""
    old = (SMALL / "hello.bzkir").read_bytes()
    new = old.replace(b"ir-source[v2]:", b"ir-source[v2-generic]:\0")
    assert read_circuit(new) == read_circuit(old)
