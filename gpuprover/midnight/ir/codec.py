"""How fields of instructions stand in both kinds of files, JSON and binary.

A kind of field is a record of four functions, and an operation a list of named fields; everything that reads
and writes circuits follows from the tables of operations.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from gpuprover.curves import BLS12_381
from gpuprover.errors import MalformedFile, UnsupportedFile
from gpuprover.midnight.encoding import Alignment, Alternatives, Atom, Reader, Writer
from gpuprover.midnight.ir.circuit import Instruction, step

R = BLS12_381.r
MAX_DEPTH = 16
"""Alternatives within alternatives of an alignment."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_HEX = re.compile(r"(-?)(?:0[xX])?((?:[0-9a-fA-F]{2})*)")


class Place(NamedTuple):
    """Where in a JSON document a value stands, for messages."""

    path: str
    part: str

    def fail(self, problem: str, more: str = "") -> NoReturn:
        """Raises MalformedFile."""
        raise MalformedFile(self.path, self.part, problem, more=more)

    def of(self, part: str) -> Place:
        """A part of it."""
        return Place(self.path, f"{self.part}: {part}" if self.part else part)


class Kind(NamedTuple):
    """One kind of field.

    Attributes:
        read, write: in binary files.
        parse, dump: in JSON.
        optional: whether JSON may leave it out.
    """

    read: Callable[[Reader, str], Any]
    write: Callable[[Writer, Any], object]
    parse: Callable[[Any, Place], Any]
    dump: Callable[[Any], Any]
    optional: bool = False


Fields = Mapping[str, Kind]
"""An operation's fields, in the order of binary files."""


def number(value: Any, place: Place, bits: int = 32) -> int:
    """A JSON number that is an integer below 2^bits."""
    if type(value) is not int or not 0 <= value < 1 << bits:
        place.fail(f"expected an integer below 2^{bits}")
    return value


def text(value: Any, place: Place) -> str:
    """A JSON text that can be written as UTF-8."""
    if not isinstance(value, str) or _SURROGATE.search(value):
        place.fail("expected a text")
    return value


def items(value: Any, place: Place) -> list[Any]:
    """A JSON list."""
    if not isinstance(value, list):
        place.fail("expected a list")
    return value


def named(value: Any, place: Place, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Any]:
    """A JSON object with these names and no others."""
    if not isinstance(value, dict):
        place.fail("expected an object")
    for name in required:
        if name not in value:
            place.fail(f"expected a field '{name}'")
    for name in value:
        if name not in required and name not in optional:
            place.fail("a field that is not known:", more=name)
    return value


def many(kind: Kind) -> Kind:
    """A list of one kind."""
    return Kind(
        lambda reader, field: reader.vector(lambda name: kind.read(reader, name), field),
        lambda writer, values: writer.vector(values, lambda value: kind.write(writer, value)),
        lambda value, place: tuple(
            kind.parse(item, place.of(str(i))) for i, item in enumerate(items(value, place))
        ),
        lambda values: [kind.dump(value) for value in values],
    )


def pair(kind: Kind) -> Kind:
    """Two of one kind."""

    def parse(value: Any, place: Place) -> tuple[Any, ...]:
        if len(items(value, place)) != 2:
            place.fail("expected a list of two")
        return tuple(kind.parse(item, place.of(str(i))) for i, item in enumerate(value))

    def write(writer: Writer, values: Sequence[Any]) -> None:
        for value in values:
            kind.write(writer, value)

    return Kind(
        lambda reader, field: (kind.read(reader, field), kind.read(reader, field)),
        write,
        parse,
        lambda values: [kind.dump(value) for value in values],
    )


def option(kind: Kind) -> Kind:
    """One kind, or nothing, which JSON may leave out."""
    return Kind(
        lambda reader, field: reader.option(lambda name: kind.read(reader, name), field),
        lambda writer, value: writer.option(value, lambda found: kind.write(writer, found)),
        lambda value, place: None if value is None else kind.parse(value, place),
        lambda value: None if value is None else kind.dump(value),
        optional=True,
    )


# Elements -------------------------------------------------------------------------------------


def element_of_hex(digits: str, fail: Callable[[str], NoReturn]) -> int:
    """An element below r from hexadecimal of its little-endian bytes; a minus sign negates it."""
    match = _HEX.fullmatch(digits)
    if match is None:
        fail("expected hexadecimal digits of bytes")
    data = bytes.fromhex(match[2])
    value = int.from_bytes(data, "little")
    if len(data) > BLS12_381.scalar.bytes or value >= R:
        fail("expected an element below r")
    return -value % R if match[1] else value


def hex_of_element(value: int) -> str:
    """Little-endian bytes in hexadecimal, as few as there can be, but at least one."""
    return value.to_bytes(max(1, (value.bit_length() + 7) // 8), "little").hex()


# Alignments -----------------------------------------------------------------------------------


def _parse_alignment(value: Any, place: Place, depth: int = 0) -> Alignment:
    return tuple(_parse_segment(item, place.of(str(i)), depth) for i, item in enumerate(items(value, place)))


def _parse_segment(value: Any, place: Place, depth: int) -> Atom | Alternatives:
    segment = named(value, place, ("tag", "value"))
    if segment["tag"] == "option":
        if depth == MAX_DEPTH:
            place.fail(f"alternatives within alternatives, more than {MAX_DEPTH} deep")
        choices = items(segment["value"], place)
        return Alternatives(tuple(_parse_alignment(choice, place, depth + 1) for choice in choices))
    if segment["tag"] != "atom":
        place.fail("expected the tag 'atom' or 'option'")
    atom = named(segment["value"], place, ("tag",), ("length",))
    if atom["tag"] == "bytes" and "length" in atom:
        return Atom("bytes", number(atom["length"], place, 20))
    if atom["tag"] not in ("field", "compress"):
        place.fail("expected an atom: bytes with their length, field or compress")
    return Atom(atom["tag"])


def _dump_alignment(alignment: Alignment) -> list[Any]:
    found: list[Any] = []
    for segment in alignment:
        if isinstance(segment, Alternatives):
            found.append({"tag": "option", "value": [_dump_alignment(choice) for choice in segment.choices]})
        elif segment.kind == "bytes":
            found.append({"tag": "atom", "value": {"length": segment.length, "tag": "bytes"}})
        else:
            found.append({"tag": "atom", "value": {"tag": segment.kind}})
    return found


U32 = Kind(Reader.compact, Writer.compact, number, int)
ALIGNMENT = Kind(Reader.alignment, Writer.alignment, _parse_alignment, _dump_alignment)


# Instructions ---------------------------------------------------------------------------------


class Language:
    """The operations of a version, and how their instructions stand in files.

    Attributes:
        fields: of each operation, in the order of binary files; operations are in the order of their codes.
    """

    def __init__(self, fields: Mapping[str, Fields]) -> None:
        self.fields = fields
        self._names = tuple(fields)
        self._codes = {name: code for code, name in enumerate(fields)}

    def read(self, reader: Reader, index: int) -> Instruction:
        """The next instruction of a binary file."""
        start, code = reader.at, reader.byte(f"instruction {index}")
        if code >= len(self._names):
            reader.fail(f"instruction {index}", f"expected an operation below {len(self._names)}", start)
        op = self._names[code]
        where = step(index, op)
        fields = {name: kind.read(reader, f"{where}: {name}") for name, kind in self.fields[op].items()}
        return Instruction(op, fields)

    def write(self, writer: Writer, instruction: Instruction) -> None:
        """Writes what :meth:`read` reads."""
        writer.byte(self._codes[instruction.op])
        for name, kind in self.fields[instruction.op].items():
            kind.write(writer, instruction[name])

    def parse(self, value: Any, path: str, index: int) -> Instruction:
        """An instruction of a JSON document."""
        place = Place(path, f"instruction {index}")
        op = value.get("op") if isinstance(value, dict) else None
        if not isinstance(op, str):
            place.fail("expected an object with a text 'op'")
        if op not in self.fields:
            raise UnsupportedFile(path, place.part, "an operation that is not known:", more=op)
        fields = self.fields[op]
        place = Place(path, step(index, op))
        required = [name for name, kind in fields.items() if not kind.optional]
        named(value, place, ["op", *required], list(fields))
        found = {name: kind.parse(value.get(name), place.of(name)) for name, kind in fields.items()}
        return Instruction(op, found)

    def dump(self, instruction: Instruction) -> dict[str, Any]:
        """The JSON of an instruction."""
        fields = self.fields[instruction.op]
        return {"op": instruction.op, **{name: kind.dump(instruction[name]) for name, kind in fields.items()}}
