"""ZKIR 2.0: a memory of elements that grows, and instructions whose operands are places in it."""

from __future__ import annotations

from typing import Any

from gpuprover.errors import MalformedFile, UnsupportedFile
from gpuprover.midnight.encoding import Reader, Writer, tagged
from gpuprover.midnight.ir.circuit import NATIVE, Circuit, Input, Instruction, step
from gpuprover.midnight.ir.codec import (
    ALIGNMENT,
    U32,
    Fields,
    Kind,
    Language,
    Place,
    element_of_hex,
    hex_of_element,
    items,
    many,
    named,
    number,
    option,
    text,
)
from gpuprover.midnight.ir.hashing import check_hash
from gpuprover.midnight.profile import V6

TAG = V6.circuit_tag
GENERIC_TAG = "ir-source[v2-generic]"
"""Files that name a minor version."""
MAX_INPUTS = 1 << 20

INDEX = U32
IMMEDIATE = Kind(
    Reader.scalar,
    Writer.compact,
    lambda value, place: element_of_hex(text(value, place), place.fail),
    hex_of_element,
)
OPERATIONS: dict[str, Fields] = {
    "assert": {"cond": INDEX},
    "cond_select": {"bit": INDEX, "a": INDEX, "b": INDEX},
    "constrain_bits": {"var": INDEX, "bits": U32},
    "constrain_eq": {"a": INDEX, "b": INDEX},
    "constrain_to_boolean": {"var": INDEX},
    "copy": {"var": INDEX},
    "declare_pub_input": {"var": INDEX},
    "pi_skip": {"guard": option(INDEX), "count": U32},
    "ec_add": {"a_x": INDEX, "a_y": INDEX, "b_x": INDEX, "b_y": INDEX},
    "ec_mul": {"a_x": INDEX, "a_y": INDEX, "scalar": INDEX},
    "ec_mul_generator": {"scalar": INDEX},
    "hash_to_curve": {"inputs": many(INDEX)},
    "load_imm": {"imm": IMMEDIATE},
    "div_mod_power_of_two": {"var": INDEX, "bits": U32},
    "reconstitute_field": {"divisor": INDEX, "modulus": INDEX, "bits": U32},
    "output": {"var": INDEX},
    "transient_hash": {"inputs": many(INDEX)},
    "persistent_hash": {"alignment": ALIGNMENT, "inputs": many(INDEX)},
    "test_eq": {"a": INDEX, "b": INDEX},
    "add": {"a": INDEX, "b": INDEX},
    "mul": {"a": INDEX, "b": INDEX},
    "neg": {"a": INDEX},
    "not": {"a": INDEX},
    "less_than": {"a": INDEX, "b": INDEX, "bits": U32},
    "public_input": {"guard": option(INDEX)},
    "private_input": {"guard": option(INDEX)},
}
"""Operations in the order of their codes; fields in the order of binary files."""
LANGUAGE = Language(OPERATIONS)
APPENDS = {
    **dict.fromkeys(
        ("cond_select", "copy", "load_imm", "reconstitute_field", "transient_hash", "test_eq"), 1
    ),
    **dict.fromkeys(("add", "mul", "neg", "not", "less_than", "public_input", "private_input"), 1),
    **dict.fromkeys(("ec_add", "ec_mul", "ec_mul_generator", "hash_to_curve", "div_mod_power_of_two"), 2),
    "persistent_hash": 2,
}
"""Elements that an operation appends to the memory; those that are not here append none."""
_NOT_PLACES = frozenset({"bits", "count", "imm", "alignment"})


def read_binary(data: bytes, path: str) -> Circuit:
    """A ``.bzkir``.

    Raises:
        MalformedFile: damaged, or an operand that lies behind the memory's end.
        UnsupportedFile: another tag or another version.
    """
    tag, reader = tagged(data, (TAG, GENERIC_TAG), path)
    if tag == GENERIC_TAG:
        _check_version(path, 2, reader.byte("minor version"))
    num_inputs = reader.compact("num_inputs")
    committed = reader.boolean("do_communications_commitment")
    instructions = tuple(LANGUAGE.read(reader, index) for index in range(reader.count("instructions")))
    reader.end("circuit")
    return _checked(num_inputs, committed, instructions, path)


def write_binary(circuit: Circuit) -> bytes:
    """The ``.bzkir`` of a circuit."""
    writer = Writer(TAG).compact(len(circuit.inputs)).boolean(circuit.do_communications_commitment)
    writer.vector(circuit.instructions, lambda found: LANGUAGE.write(writer, found))
    return bytes(writer)


def parse_document(document: dict[str, Any], path: str) -> Circuit:
    """The content of a ``.zkir``. Raises as :func:`read_binary` does."""
    names = ("version", "do_communications_commitment", "num_inputs", "instructions")
    place = Place(path, "circuit")
    named(document, place, names)
    committed = document["do_communications_commitment"]
    if not isinstance(committed, bool):
        place.of("do_communications_commitment").fail("expected true or false")
    num_inputs = number(document["num_inputs"], place.of("num_inputs"))
    found = items(document["instructions"], place.of("instructions"))
    instructions = tuple(LANGUAGE.parse(item, path, i) for i, item in enumerate(found))
    version = document["version"]
    _check_version(path, version["major"], version["minor"])
    return _checked(num_inputs, committed, instructions, path)


def document(circuit: Circuit) -> dict[str, Any]:
    """The content of the ``.zkir`` of a circuit."""
    return {
        "version": {"major": 2, "minor": 0},
        "do_communications_commitment": circuit.do_communications_commitment,
        "num_inputs": len(circuit.inputs),
        "instructions": [LANGUAGE.dump(found) for found in circuit.instructions],
    }


def _check_version(path: str, major: int, minor: int) -> None:
    if (major, minor) != (2, 0):
        raise UnsupportedFile(path, "version", f"{major}.{minor} of ZKIR, expected 2.0, 3.0 or 3.1")


def _checked(num_inputs: int, committed: bool, instructions: tuple[Instruction, ...], path: str) -> Circuit:
    if num_inputs > MAX_INPUTS:
        raise UnsupportedFile(path, "num_inputs", f"expected at most {MAX_INPUTS} inputs")
    size = num_inputs
    for index, instruction in enumerate(instructions):
        for name, value in instruction.fields.items():
            if name in _NOT_PLACES or value is None:
                continue
            for place in value if isinstance(value, tuple) else (value,):
                if place >= size:
                    part = f"{step(index, instruction.op)}: {name}"
                    raise MalformedFile(path, part, f"index out of bounds: {place}, of {size}")
        if instruction.op == "persistent_hash":
            check_hash(instruction, index, path)
        size += APPENDS.get(instruction.op, 0)
    inputs = (Input("", NATIVE),) * num_inputs
    return Circuit((2, 0), inputs, (), committed, instructions, path)
