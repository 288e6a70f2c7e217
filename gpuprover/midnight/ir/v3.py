"""ZKIR 3: typed values with names, each written once.

Circuits of 3.0 and 3.1 are read whole. Less can be executed here (:func:`check_supported`): values of
BLS12-381's scalar field, of 32 bytes, points and scalars of Jubjub.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NoReturn

from gpuprover.errors import MalformedFile, UnsupportedFile
from gpuprover.midnight.encoding import Reader, Writer, tagged
from gpuprover.midnight.ir.circuit import (
    BYTES32,
    NATIVE,
    POINT,
    SCALAR,
    Circuit,
    Input,
    Instruction,
    Operand,
    step,
)
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
    option,
    pair,
    text,
)
from gpuprover.midnight.ir.hashing import check_hash
from gpuprover.midnight.profile import V7

TAG = V7.circuit_tag
MINOR_VERSIONS = (0, 1)
FIXED_TYPES = (
    *(NATIVE, BYTES32, POINT, SCALAR),
    *("Point<Secp256k1>", "Base<Secp256k1>", "Scalar<Secp256k1>"),
    *("Point<Secp256r1>", "Base<Secp256r1>", "Scalar<Secp256r1>"),
    *("Point<Curve25519>", "Base<Curve25519>", "Scalar<Curve25519>"),
    *("Bool", "Byte"),
)
"""Types in the order of their codes; the code after the last is that of ``Bytes<n>`` with its n."""
ENCODED_LENGTHS = {NATIVE: 1, BYTES32: 2, POINT: 2, SCALAR: 1}
"""Elements that a value takes where it is encoded, of the types that can be executed."""
_BYTES = re.compile(r"Bytes<(0|[1-9][0-9]{0,9})>")
_OFFICIAL = {NATIVE: "Native", BYTES32: "Bytes32", POINT: "JubjubPoint", SCALAR: "JubjubScalar"}


# Fields -----------------------------------------------------------------------------------------


def _name(value: str, fail: Any) -> str:
    if not value.startswith("%"):
        fail("expected a name that begins with %")
    return value


def _read_name(reader: Reader, field: str) -> str:
    start = reader.at
    return _name(reader.string(field), lambda problem: reader.fail(field, problem, start))


def _operand(value: str, fail: Any) -> Operand:
    if value.startswith("%"):
        return value
    digits = value.removeprefix("-")
    if not digits.startswith(("0x", "0X")) or len(digits) == 2:
        fail("expected a name that begins with %, or hexadecimal digits behind 0x")
    return element_of_hex(value, fail)


def _read_operand(reader: Reader, field: str) -> Operand:
    start = reader.at

    def fail(problem: str) -> NoReturn:
        reader.fail(field, problem, start)

    kind = reader.byte(field)
    if kind > 1:
        fail("expected 0 for a name or 1 for an immediate")
    value = reader.string(field)
    if value.startswith("%") != (kind == 0):
        fail("a name where an immediate was announced, or the other way round")
    return _operand(value, fail)


def _dump_operand(value: Operand) -> str:
    return value if isinstance(value, str) else f"0x{hex_of_element(value)}"


def _write_operand(writer: Writer, value: Operand) -> None:
    writer.byte(int(isinstance(value, int))).string(_dump_operand(value))


def _type(value: Any, place: Place) -> str:
    name = text(value, place)
    match = _BYTES.fullmatch(name)
    if name not in FIXED_TYPES and (match is None or int(match[1]) >> 32):
        raise UnsupportedFile(place.path, place.part, "a type that is not known:", more=name)
    return name


def _read_type(reader: Reader, field: str) -> str:
    start, code = reader.at, reader.byte(field)
    if code < len(FIXED_TYPES):
        return FIXED_TYPES[code]
    if code > len(FIXED_TYPES):
        reader.fail(field, f"expected a type's code, at most {len(FIXED_TYPES)}", start)
    length = reader.compact(field)
    if length == 32:
        reader.fail(field, f"{BYTES32} has a code of its own", start)
    return f"Bytes<{length}>"


def _write_type(writer: Writer, value: str) -> None:
    if value in FIXED_TYPES:
        writer.byte(FIXED_TYPES.index(value))
    else:
        writer.byte(len(FIXED_TYPES)).compact(int(value[len("Bytes<") : -1]))


NAME = Kind(
    _read_name, Writer.string, lambda value, place: _name(text(value, place), place.fail), lambda value: value
)
OPERAND = Kind(
    _read_operand,
    _write_operand,
    lambda value, place: _operand(text(value, place), place.fail),
    _dump_operand,
)
TYPE = Kind(_read_type, _write_type, _type, lambda value: value)


def _parse_immediate(value: Any, place: Place) -> int:
    found = _operand(text(value, place), place.fail)
    if isinstance(found, str):
        place.fail("expected hexadecimal digits behind 0x")
    return found


IMMEDIATE = Kind(Reader.scalar, Writer.compact, _parse_immediate, _dump_operand)
_HASH = {"alignment": ALIGNMENT, "inputs": many(OPERAND), "output": NAME}
_TWO = {"a": OPERAND, "b": OPERAND, "output": NAME}
_ONE = {"a": OPERAND, "output": NAME}
_GIVEN = {"guard": option(OPERAND), "type": TYPE, "output": NAME}
_LIST = {"inputs": many(OPERAND), "output": NAME}
OPERATIONS: dict[str, Fields] = {
    "encode": {"input": OPERAND, "outputs": many(NAME)},
    "assert": {"cond": OPERAND},
    "cond_select": {"bit": OPERAND, "a": OPERAND, "b": OPERAND, "output": NAME},
    "constrain_bits": {"val": OPERAND, "bits": U32},
    "constrain_eq": {"a": OPERAND, "b": OPERAND},
    "constrain_to_boolean": {"val": OPERAND},
    "copy": {"val": OPERAND, "output": NAME},
    "impact": {"guard": OPERAND, "inputs": many(OPERAND)},
    "ec_mul": {"a": OPERAND, "scalar": OPERAND, "output": NAME},
    "ec_mul_generator": {"scalar": OPERAND, "output": NAME},
    "hash_to_curve": _LIST,
    "into_coordinates": {"point": OPERAND, "outputs": pair(NAME)},
    "from_coordinates": {"inputs": pair(OPERAND), "output": NAME},
    "into_bytes32": {"input": OPERAND, "output": NAME},
    "from_bytes32": {"bytes": OPERAND, "type": TYPE, "output": NAME},
    "reverse_bytes": {"bytes": OPERAND, "output": NAME},
    "bytes32_into_low_high": {"bytes": OPERAND, "outputs": pair(NAME)},
    "bytes32_from_low_high": {"inputs": pair(OPERAND), "output": NAME},
    "div_mod_power_of_two": {"val": OPERAND, "bits": U32, "outputs": many(NAME)},
    "reconstitute_field": {"divisor": OPERAND, "modulus": OPERAND, "bits": U32, "output": NAME},
    "transient_hash": _LIST,
    "persistent_hash": _HASH,
    "keccak256": _HASH,
    "test_eq": _TWO,
    "add": _TWO,
    "mul": _TWO,
    "neg": _ONE,
    "inv": _ONE,
    "not": _ONE,
    "less_than": {"a": OPERAND, "b": OPERAND, "bits": U32, "output": NAME},
    "jubjub_scalar_from_native": {"native": OPERAND, "output": NAME},
    "public_input": _GIVEN,
    "private_input": _GIVEN,
    "output": {"vals": many(OPERAND)},
    # Of 3.1.
    "slice": {"bytes": OPERAND, "start": U32, "len": U32, "output": NAME},
    "nth": {"bytes": OPERAND, "index": U32, "output": NAME},
    "concat": _LIST,
    "load_constant": {"type": TYPE, "encoding": many(IMMEDIATE), "output": NAME},
    "sha512": _HASH,
    "and": _LIST,
    "or": _LIST,
    "xor": _LIST,
    "to_bytes": {"input": OPERAND, "output": NAME},
    "from_bytes": {"bytes": OPERAND, "type": TYPE, "output": NAME},
    "reverse": {"bytes": OPERAND, "output": NAME},
}
"""Operations in the order of their codes; fields in the order of binary files."""
LANGUAGE = Language(OPERATIONS)
UNSUPPORTED = frozenset(
    {"keccak256", *list(OPERATIONS)[list(OPERATIONS).index("slice") :]},
)
"""Operations that cannot be executed here."""


# Files -----------------------------------------------------------------------------------------


def read_binary(data: bytes, path: str) -> Circuit:
    """A ``.bzkir``.

    Raises:
        MalformedFile: damaged, a name that is not there or written twice, or types that do not fit.
        UnsupportedFile: another tag or another version.
    """
    _, reader = tagged(data, (TAG,), path)
    minor = reader.byte("minor version")
    _check_version(path, 3, minor)

    def an_input(field: str) -> Input:
        return Input(_read_name(reader, field), _read_type(reader, field))

    inputs = reader.vector(an_input, "inputs")
    outputs = reader.vector(lambda field: _read_type(reader, field), "outputs")
    committed = reader.boolean("do_communications_commitment")
    instructions = tuple(LANGUAGE.read(reader, index) for index in range(reader.count("instructions")))
    reader.end("circuit")
    return _checked(Circuit((3, minor), inputs, outputs, committed, instructions, path))


def write_binary(circuit: Circuit) -> bytes:
    """The ``.bzkir`` of a circuit."""
    writer = Writer(TAG).byte(circuit.version[1])
    writer.vector(circuit.inputs, lambda found: _write_type(writer.string(found.name), found.type))
    writer.vector(circuit.outputs, lambda found: _write_type(writer, found))
    writer.boolean(circuit.do_communications_commitment)
    writer.vector(circuit.instructions, lambda found: LANGUAGE.write(writer, found))
    return bytes(writer)


def parse_document(document: dict[str, Any], path: str) -> Circuit:
    """The content of a ``.zkir``. Raises as :func:`read_binary` does."""
    place = Place(path, "circuit")
    named(document, place, ("version", "do_communications_commitment", "inputs", "outputs", "instructions"))
    version = document["version"]
    _check_version(path, version["major"], version["minor"])
    committed = document["do_communications_commitment"]
    if not isinstance(committed, bool):
        place.of("do_communications_commitment").fail("expected true or false")
    inputs = []
    for i, item in enumerate(items(document["inputs"], place.of("inputs"))):
        where = place.of(f"input {i}")
        named(item, where, ("name", "type"))
        inputs.append(Input(NAME.parse(item["name"], where), _type(item["type"], where)))
    types = items(document["outputs"], place.of("outputs"))
    outputs = tuple(_type(item, place.of(f"output {i}")) for i, item in enumerate(types))
    found = items(document["instructions"], place.of("instructions"))
    instructions = tuple(LANGUAGE.parse(item, path, i) for i, item in enumerate(found))
    return _checked(Circuit((3, version["minor"]), tuple(inputs), outputs, committed, instructions, path))


def document(circuit: Circuit) -> dict[str, Any]:
    """The content of the ``.zkir`` of a circuit."""
    return {
        "version": {"major": circuit.version[0], "minor": circuit.version[1]},
        "do_communications_commitment": circuit.do_communications_commitment,
        "inputs": [{"name": found.name, "type": found.type} for found in circuit.inputs],
        "outputs": list(circuit.outputs),
        "instructions": [LANGUAGE.dump(found) for found in circuit.instructions],
    }


def _check_version(path: str, major: int, minor: int) -> None:
    if major != 3 or minor not in MINOR_VERSIONS:
        raise UnsupportedFile(path, "version", f"{major}.{minor} of ZKIR, expected 2.0, 3.0 or 3.1")


def _checked(circuit: Circuit) -> Circuit:
    _check_names(circuit)
    if unsupported(circuit) is None:
        types_of(circuit)
    return circuit


def entry_types(circuit: Circuit) -> set[str]:
    """The types by which values enter a circuit from outside; types of what it makes itself are not among
    them, and enable no chip."""
    given = [found for found in circuit.instructions if found.op in ("public_input", "private_input")]
    return {found.type for found in circuit.inputs} | {found["type"] for found in given}


# Names -------------------------------------------------------------------------------------------


def new_names(instruction: Instruction) -> tuple[str, ...]:
    """The names that an instruction gives values to."""
    one, several = instruction.fields.get("output"), instruction.fields.get("outputs", ())
    return tuple(several) if one is None else (one,)


def operands(instruction: Instruction) -> list[Operand]:
    """The values that an instruction takes."""
    found: list[Operand] = []
    for name, kind in OPERATIONS[instruction.op].items():
        value = instruction[name]
        if kind is OPERAND or (name == "guard" and value is not None):
            found.append(value)
        elif name in ("inputs", "vals"):
            found += value
    return found


def _check_names(circuit: Circuit) -> None:
    known: set[str] = set()

    def add(name: str, part: str) -> None:
        if name in known:
            raise MalformedFile(circuit.path, part, "a name that has a value already:", more=name)
        known.add(name)

    for i, found in enumerate(circuit.inputs):
        add(found.name, f"input {i}")
    for index, instruction in enumerate(circuit.instructions):
        part = step(index, instruction.op)
        for operand in operands(instruction):
            if isinstance(operand, str) and operand not in known:
                raise MalformedFile(circuit.path, part, "variable not found:", more=operand)
        for name in new_names(instruction):
            add(name, part)


# What is supported -------------------------------------------------------------------------------


def unsupported(circuit: Circuit) -> UnsupportedFile | None:
    """Why a circuit cannot be executed here, with the instruction or the type by name; None: it can."""

    def of_type(part: str, name: str) -> UnsupportedFile | None:
        if name in ENCODED_LENGTHS:
            return None
        return UnsupportedFile(circuit.path, part, f"values of type {name} are not supported")

    for i, found in enumerate(circuit.inputs):
        if error := of_type(f"input {i}", found.type):
            return error
    for i, name in enumerate(circuit.outputs):
        if error := of_type(f"output {i}", name):
            return error
    for index, instruction in enumerate(circuit.instructions):
        part = step(index, instruction.op)
        if instruction.op in UNSUPPORTED:
            return UnsupportedFile(circuit.path, part, f"{instruction.op} is not supported")
        if "type" in instruction.fields and (error := of_type(part, instruction["type"])):
            return error
    return None


def check_supported(circuit: Circuit) -> None:
    """Raises UnsupportedFile for a circuit with an operation or a type that cannot be executed here."""
    if (error := unsupported(circuit)) is not None:
        raise error


# Types -------------------------------------------------------------------------------------------

_FIELDS, _ALL = (NATIVE, SCALAR), (NATIVE, BYTES32, POINT, SCALAR)
_NAMES_OF_OPERATIONS = {
    "add": ("addition", "+", (NATIVE, POINT, SCALAR)),
    "mul": ("multiplication", "x", _FIELDS),
    "test_eq": ("test_eq", "==", _ALL),
    "constrain_eq": ("constrain_eq", "==", _ALL),
    "cond_select": ("cond_select", "?", _ALL),
}
"""Operation on two values of one type -> its name and sign in messages, and the types."""
_OF_ONE = {"neg": ("negation", (NATIVE, POINT, SCALAR)), "inv": ("inversion", _FIELDS)}


class _Typing:
    """The types of a circuit's names, found instruction by instruction."""

    def __init__(self, circuit: Circuit) -> None:
        self.circuit = circuit
        self.types = {found.name: found.type for found in circuit.inputs}
        self.part = ""

    def fail(self, problem: str) -> NoReturn:
        raise MalformedFile(self.circuit.path, self.part, problem)

    def of(self, operand: Operand) -> str:
        return self.types[operand] if isinstance(operand, str) else NATIVE

    def expect(self, wanted: str, operands: Sequence[Operand]) -> None:
        for operand in operands:
            if (found := self.of(operand)) != wanted:
                self.fail(f"cannot convert {_OFFICIAL[found]} to {_OFFICIAL[wanted]}")

    def results(self, instruction: Instruction, index: int) -> Sequence[str]:
        """The types of the values that the instruction makes."""
        op, fields = instruction.op, instruction.fields
        match op:
            case "add" | "mul" | "test_eq" | "constrain_eq" | "cond_select":
                noun, sign, types = _NAMES_OF_OPERATIONS[op]
                a, b = self.of(fields["a"]), self.of(fields["b"])
                if a != b or a not in types:
                    self.fail(f"Unsupported {noun}: {_OFFICIAL[a]} {sign} {_OFFICIAL[b]}")
                if op == "cond_select":
                    self.expect(NATIVE, (fields["bit"],))
                return () if op == "constrain_eq" else (NATIVE,) if op == "test_eq" else (a,)
            case "neg" | "inv":
                noun, types = _OF_ONE[op]
                found = self.of(fields["a"])
                if found not in types:
                    self.fail(f"Unsupported {noun} of {_OFFICIAL[found]}")
                return (found,)
            case "copy":
                return (self.of(fields["val"]),)
            case "encode":
                found = self.of(fields["input"])
                if len(fields["outputs"]) != ENCODED_LENGTHS[found]:
                    self.fail(f"Unexpected output length of encode instruction: {_OFFICIAL[found]}")
                return (NATIVE,) * ENCODED_LENGTHS[found]
            case "ec_mul":
                point, scalar = self.of(fields["a"]), self.of(fields["scalar"])
                if (point, scalar) != (POINT, SCALAR):
                    self.fail(f"Unsupported EC multiplication: {_OFFICIAL[point]} x {_OFFICIAL[scalar]}")
                return (POINT,)
            case "ec_mul_generator":
                if (scalar := self.of(fields["scalar"])) != SCALAR:
                    self.fail(f"Unsupported EcMulGenerator for scalar of type {_OFFICIAL[scalar]}")
                return (POINT,)
            case "into_coordinates":
                if (found := self.of(fields["point"])) != POINT:
                    self.fail(f"Unsupported coordinate extraction of {_OFFICIAL[found]}")
                return NATIVE, NATIVE
            case "from_coordinates":
                x, y = (self.of(operand) for operand in fields["inputs"])
                if (x, y) != (NATIVE, NATIVE):
                    self.fail(f"Unsupported `from_coordinates` on ({_OFFICIAL[x]}, {_OFFICIAL[y]})")
                return (POINT,)
            case "into_bytes32" | "bytes32_from_low_high":
                for operand in fields["inputs"] if op != "into_bytes32" else (fields["input"],):
                    if (found := self.of(operand)) != NATIVE:
                        self.fail(f"Unsupported into_bytes32 for {_OFFICIAL[found]}")
                return (BYTES32,)
            case "from_bytes32":
                if fields["type"] != NATIVE:
                    self.fail(f"Unsupported from_bytes32 for type {_OFFICIAL[fields['type']]}")
                self.expect(BYTES32, (fields["bytes"],))
                return (NATIVE,)
            case "reverse_bytes":
                self.expect(BYTES32, (fields["bytes"],))
                return (BYTES32,)
            case "bytes32_into_low_high":
                self.expect(BYTES32, (fields["bytes"],))
                return NATIVE, NATIVE
            case "public_input" | "private_input":
                if fields["guard"] is not None:
                    self.expect(NATIVE, (fields["guard"],))
                return (fields["type"],)
            case "output":
                self._output(fields["vals"])
                return ()
            case "persistent_hash":
                check_hash(instruction, index, self.circuit.path)
        # What is left takes native values only.
        self.expect(NATIVE, operands(instruction))
        match op:
            case "persistent_hash":
                return (BYTES32,)
            case "hash_to_curve":
                return (POINT,)
            case "jubjub_scalar_from_native":
                return (SCALAR,)
            case "div_mod_power_of_two":
                if len(fields["outputs"]) != 2:
                    self.fail("DivModPowerOfTwo requires exactly 2 outputs")
        return (NATIVE,) * len(new_names(instruction))

    def _output(self, values: Sequence[Operand]) -> None:
        declared = self.circuit.outputs
        if len(values) != len(declared):
            self.fail(
                f"Output: signature declares {len(declared)} return values but instruction has {len(values)}"
            )
        for i, (value, wanted) in enumerate(zip(values, declared, strict=True)):
            if (found := self.of(value)) != wanted:
                self.fail(
                    f"Output position {i}: signature declares {_OFFICIAL[wanted]} but operand has runtime"
                    f" type {_OFFICIAL[found]}"
                )


def types_of(circuit: Circuit) -> dict[str, str]:
    """The type of each name of a circuit that is supported.

    Raises:
        MalformedFile: an operation on types that it does not have, or outputs that are not those declared.
        UnsupportedFile: a point or a scalar of Jubjub in a circuit that has no chip for them.
    """
    enabled = {POINT, SCALAR} & entry_types(circuit) or any(
        found.op == "hash_to_curve" for found in circuit.instructions
    )
    typing = _Typing(circuit)
    for index, instruction in enumerate(circuit.instructions):
        typing.part = step(index, instruction.op)
        found = typing.results(instruction, index)
        if not enabled and not {POINT, SCALAR}.isdisjoint(found):
            problem = "no input is a point or a scalar of Jubjub, so that the circuit has no chip for them"
            raise UnsupportedFile(circuit.path, typing.part, problem)
        typing.types.update(zip(new_names(instruction), found, strict=True))
    return typing.types
