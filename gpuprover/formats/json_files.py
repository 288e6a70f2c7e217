"""JSON documents from strangers, and to files that must not end half-written."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from gpuprover.errors import MalformedFile
from gpuprover.formats.files import Pathish, open_regular, os_problem, write_atomic

MAX_JSON_BYTES = 256 << 20
"""Beyond any input or verification key; bounds what a wrong path can make us read."""
MAX_DIGITS = 400
"""Of a number in a document; the widest field element here has 116 decimal digits."""

MAX_DEPTH = 256
"""Of arrays and objects in each other. Python's parser recurses, and crashes the process where somebody
raised the recursion limit, as py_ecc does."""

_STRING_OR_BRACKET = re.compile(r'"[^"\\]*(?:\\.?[^"\\]*)*(?:"|\Z)|[\[\]{}]', re.DOTALL)
_HEX = re.compile(f"0[xX][0-9a-fA-F]{{1,{MAX_DIGITS}}}")


def read_json(path: Pathish) -> Any:
    """A document's content. Numbers are int or float, objects dict.

    Raises:
        InvalidInput: the file cannot be opened.
        MalformedFile: not UTF-8, not JSON, a name twice in one object, numbers of more than 400
            digits, NaN, nested deeper than 256, more than 256 MiB.
    """
    file, size = open_regular(path)
    with file:
        if size > MAX_JSON_BYTES:
            raise MalformedFile(path, "document", f"{size} bytes, expected JSON of at most {MAX_JSON_BYTES}")
        try:
            data = file.read(MAX_JSON_BYTES + 1)
        except OSError as error:
            raise os_problem(path, error, "read") from None
    return parse_json(data, str(path))


def parse_json(data: bytes | str, source: str) -> Any:
    """As :func:`read_json`, from text; ``source`` starts the messages."""

    def fail(problem: str) -> NoReturn:
        raise MalformedFile(source, "document", problem)

    def integer(text: str) -> int:
        if len(text) > MAX_DIGITS:
            fail(f"a number of {len(text)} digits, expected at most {MAX_DIGITS}")
        return int(text)

    def constant(text: str) -> NoReturn:
        fail(f"{text} is not JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            fail(f"the name {shown(twice)} stands twice in one object")
        return result

    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
        if not text.strip():
            fail("the file is empty, expected JSON")
        if _deeper_than(MAX_DEPTH, text):
            fail(f"nested too deeply, expected at most {MAX_DEPTH} levels")
        return json.loads(text, parse_int=integer, parse_constant=constant, object_pairs_hook=unique)
    except UnicodeDecodeError as error:
        fail(f"byte {error.start} is not UTF-8, expected JSON")
    except json.JSONDecodeError as error:
        fail(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}")


def _deeper_than(limit: int, text: str) -> bool:
    if text.count("[") + text.count("{") <= limit:
        return False
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        token = match[0]
        if token in "[{":
            depth += 1
            if depth > limit:
                return True
        elif token in "]}":
            depth -= 1
    return False


def dump_json(document: Any) -> bytes:
    """A document as snarkjs lays it out: one space of indentation, no newline at the end."""
    return json.dumps(document, indent=1).encode()


def write_json(path: Pathish, document: Any) -> None:
    """Writes a document as snarkjs does, atomically."""
    with write_atomic(path) as file:
        file.write(dump_json(document))


_KINDS: dict[type, str] = {dict: "an object", list: "a list", tuple: "a list"}


def shown(value: object, limit: int = 40) -> str:
    """A document's value as a message may show it: short, printable, never a whole witness."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"an integer of {value.bit_length()} bits"
    plain = value is None or isinstance(value, str | int | float | bool)
    text = json.dumps(value) if plain else _KINDS.get(type(value), type(value).__name__)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def parse_integer(value: object) -> int | None:
    """A non-negative integer written as a number, a decimal string or a 0x string; None if it is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value if value >= 0 else None
    if isinstance(value, str):
        if value.isascii() and value.isdecimal():
            return int(value) if len(value) <= MAX_DIGITS else None
        if _HEX.fullmatch(value):
            return int(value, 16)
    return None
