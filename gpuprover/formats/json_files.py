"""JSON documents from strangers, and to files that must not end half-written.

A document is parsed by Python's scanner, in slices of at most 128 KiB that end at a comma: one call of the
scanner for a body of 32 MiB would hold the interpreter, and with it a service's event loop, for seconds.
NumPy finds the commas and the depth. Time is linear in the length; the first error ends the work; what the
result takes is bounded before anything is parsed (:func:`parsed_size_bound`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

from gpuprover.errors import MalformedFile
from gpuprover.formats.files import Pathish, open_regular, os_problem, read_pipe, write_atomic

MAX_JSON_BYTES = 256 << 20
"""Beyond any input or verification key; bounds what a wrong path can make us read."""
MAX_DIGITS = 400
"""The most digits of a number in a document; the widest field element here has 116 decimal digits."""
MAX_DEPTH = 256
"""The most arrays and objects in each other. Python's parser recurses, and crashes the process where somebody
raised the recursion limit, as py_ecc does."""
MAX_VALUES = 1 << 24
"""The most commas and brackets of a document, which are no fewer than its values."""
MAX_CONTAINERS = 1 << 22
"""Arrays and objects of a document. The garbage collector visits all of them in one go."""
MAX_NAMES = 1 << 20
"""The most names of one object."""
MAX_TEXT = 1 << 21
"""Bytes between two commas of a document longer than a slice: of one text, mostly."""

_SLICE = 1 << 17
_BOM = b"\xef\xbb\xbf"
_STRING_OR_BRACKET = re.compile(r'"[^"\\]*(?:\\.?[^"\\]*)*(?:"|\Z)|[\[\]{}]', re.DOTALL)
_HEX = re.compile(f"0[xX][0-9a-fA-F]{{1,{MAX_DIGITS}}}")


def read_json(path: Pathish, *, pipe: bool = False) -> Any:
    """A document's content. Numbers are int or float, objects dict.

    ``pipe`` allows the path of a pipe, which :func:`~gpuprover.formats.files.read_pipe` reads.

    Raises:
        InvalidInput: the file cannot be opened.
        MalformedFile: more than 256 MiB, or what :func:`parse_json` refuses.
    """
    if pipe and (piped := read_pipe(path, MAX_JSON_BYTES)) is not None:
        return parse_json(piped, str(path))
    file, size = open_regular(path)
    with file:
        if size > MAX_JSON_BYTES:
            raise MalformedFile(path, "document", f"{size} bytes, expected JSON of at most {MAX_JSON_BYTES}")
        try:
            data = file.read(size + 1)  # as much memory is asked for at once
        except OSError as error:
            raise os_problem(path, error, "read") from None
    return parse_json(data, str(path))


def parsed_size_bound(data: bytes) -> int:
    """Bytes that :func:`parse_json` takes at most for this text, beside the text, its result included.

    Found by counting, in time linear in the length and without holding the interpreter for long. Lists of
    short values cost most: ``[],`` 27 bytes for each of its own, ``{"":0},`` 45; strings of 77 digits 3.
    """
    step = 1 << 20
    counts = dict.fromkeys((b",", b"[", b"{", b"]", b"}", b":", b'"', b"[]", b"{}"), 0)
    ascii_only = True
    for start in range(0, len(data), step):
        piece = data[start : start + step]
        for token in counts:
            counts[token] += piece.count(token)
        ascii_only = ascii_only and piece.isascii() and b"\\u" not in piece
    # An empty container cut in two, or an escape, at an edge of a piece: once for each edge.
    edges = len(data) // step
    wide = not ascii_only or any(b"\\" in data[i - 1 : i + 1] for i in range(step, len(data), step))
    lists, objects, names, texts = counts[b"["], counts[b"{"], counts[b":"], (counts[b'"'] + 1) // 2
    filled_lists, filled_objects = lists - counts[b"[]"], objects - counts[b"{}"]
    # What follows a comma, or comes first: a place in a list or an object, and a number's 32 bytes. Brackets
    # within texts only make it more: each of them adds no less than it takes away.
    values = 1 + counts[b","] + filled_lists + filled_objects
    places = 48 * values
    containers = 32 * (lists + objects + filled_lists + filled_objects)
    # A table of names is filled to between a third and two thirds, and grows while the old one is there.
    tables = 108 * names
    # The smallest text takes 64 bytes; beyond ASCII 88, and up to 4 bytes for each of its own.
    characters = len(data) * (4 if wide else 1)
    strings = texts * (64 if wide else 32) + characters
    # Of one slice: its text in copies, the arrays that find its commas and brackets, names with their values.
    scratch = min(len(data), MAX_TEXT) * (16 if wide else 6) + (1 << 14) + 64 * edges
    marks = lists + objects + counts[b"]"] + counts[b"}"] + counts[b","]
    scratch += 48 * min(marks, _SLICE) + 160 * min(names, _SLICE // 4)
    return places + containers + tables + strings + scratch


def parse_json(
    data: bytes | str, source: str, *, max_values: int = MAX_VALUES, max_containers: int = MAX_CONTAINERS
) -> Any:
    """As :func:`read_json`, from text; ``source`` starts the messages.

    No call of Python's scanner holds the interpreter for longer than a text of 2 MiB takes.

    Args:
        max_values: commas and brackets, which is no less than the values.
        max_containers: arrays and objects.

    Raises:
        MalformedFile: not UTF-8, not JSON, a name twice in one object, integers of more than 400 digits, NaN,
            nested deeper than 256, more values or containers than may be, 2^20 names in one object, or
            2 MiB without a comma.
    """
    if isinstance(data, str):
        try:
            data = data.encode()
        except UnicodeEncodeError:
            raise MalformedFile(source, "document", "half of a surrogate pair, expected JSON") from None
    return _Document(data, source, max_values, max_containers).parse()


class _Slice(NamedTuple):
    """A part of the text between two commas.

    Attributes:
        start, end: where its text lies; the comma that ends it, if one does, stands at ``end``.
        closing: places of the brackets that close what was open at its start.
        opened: brackets that it opens and leaves open, outermost first.
    """

    start: int
    end: int
    closing: list[int]
    opened: bytes


class _Document:
    """One text on its way to values."""

    def __init__(self, data: bytes, source: str, max_values: int, max_containers: int) -> None:
        self.data, self.source = data, source
        self.max_values, self.max_containers = max_values, max_containers

    def fail(self, problem: str) -> NoReturn:
        raise MalformedFile(self.source, "document", problem)

    def parse(self) -> Any:
        if not self.data.strip() or self.data.strip() == _BOM:
            self.fail("the file is empty, expected JSON")
        first = len(_BOM) if self.data.startswith(_BOM) else 0
        if len(self.data) <= min(_SLICE, self.max_values, self.max_containers):
            text = self._text(first, len(self.data))
            if _deeper_than(MAX_DEPTH, text):
                self._too_deep()
            return self._scan(text, first)
        return self._parse_slices(first)

    def _parse_slices(self, first: int) -> Any:
        root: list[Any] = []
        """Of one element, as soon as its beginning is parsed."""
        open_: list[Any] = []
        """The arrays and objects that are open, outermost first."""
        try:
            for part in self._slices(first):
                begin = part.start
                for close in part.closing:
                    self._extend(root, open_, begin, close, b"")
                    if self.data[close] != ord("]" if isinstance(open_.pop(), list) else "}"):
                        self._malformed("Expecting ',' delimiter", close)
                    begin = close + 1
                self._extend(root, open_, begin, part.end, part.opened)
            if open_:
                self._malformed("Expecting ',' delimiter", len(self.data))
            return root[0]
        except BaseException:
            discard(root)
            raise

    def _extend(self, root: list[Any], open_: list[Any], begin: int, end: int, opened: bytes) -> None:
        """Parses a run of elements, or of names with values, into the innermost of what is open."""
        data = self.data
        closers = opened.translate(_CLOSERS)[::-1].decode()
        if not open_:
            if root:
                if rest := data[begin:end].lstrip(_SPACE):
                    self._malformed("Extra data", end - len(rest))
                return
            root.append(self._scan(self._text(begin, end) + closers, begin))
            inner = root[0]
            depth = len(opened)
            if depth:
                open_.append(inner)
                depth -= 1
        else:
            top, depth = open_[-1], len(opened)
            # After a bracket that closes comes the end of what it stands in, or a comma and more.
            if begin and data[begin - 1] in b"]}":
                rest = data[begin:end].lstrip(_SPACE)
                begin = end - len(rest)
                if not rest:
                    return
                if rest[:1] != b",":
                    self._malformed("Expecting ',' delimiter", begin)
                begin += 1
            brackets = "[]" if isinstance(top, list) else "{}"
            inner = self._scan(brackets[0] + self._text(begin, end) + closers + brackets[1], begin, 1)
            if not inner:
                self._malformed(_expected(top), end)
            if isinstance(top, list):
                top.extend(inner)
            else:
                if not top.keys().isdisjoint(inner):
                    self._twice(next(name for name in inner if name in top))
                if len(top) + len(inner) > MAX_NAMES:
                    self.fail(f"more than {MAX_NAMES} names in one object")
                top.update(inner)
        for _ in range(depth):
            inner = inner[-1] if isinstance(inner, list) else inner[next(reversed(inner))]
            open_.append(inner)
        if opened and not inner:
            self._malformed(_expected(inner), end)

    def _slices(self, start: int) -> Iterator[_Slice]:
        """Cuts the text at commas outside of its strings, and counts what is in it."""
        import numpy as np

        data, depth, values, containers = self.data, 0, 1, 0
        length = _SLICE
        while start < len(data):
            window = data[start : start + length]
            last = start + length >= len(data)
            if b"\\" in window:
                # Escapes can hide quotes. A backslash outside of a string fails in the scanner.
                window = window.replace(b"\\\\", b"__").replace(b'\\"', b"__")
            codes = np.frombuffer(window, dtype=np.uint8)
            outside = np.cumsum(codes == ord('"'), dtype=np.uint8) & 1 == 0
            commas = np.flatnonzero((codes == ord(",")) & outside)
            if len(commas) and length > _SLICE:
                # A longer window is for a long text, and ends with it.
                last, end = False, int(commas[0])
            elif last:
                end = len(window)
            elif len(commas):
                end = int(commas[-1])
            elif length < MAX_TEXT:
                length *= 2
                continue
            else:
                self.fail(f"{MAX_TEXT} bytes without a comma outside of texts")
            codes, outside = codes[:end], outside[:end]
            folded = codes | 0x20  # which makes [ and ] to { and }, and nothing else to them
            is_bracket = ((folded == ord("{")) | (folded == ord("}"))) & outside
            if length > _SLICE and np.count_nonzero(is_bracket) > 2 * MAX_DEPTH:
                if np.count_nonzero(is_bracket & (folded == ord("{"))) > MAX_DEPTH:
                    self._too_deep()
                self.fail(f"more than {2 * MAX_DEPTH} brackets without a comma between them")
            brackets = np.flatnonzero(is_bracket)
            opens = folded[brackets] == ord("{")
            depths = depth + np.cumsum(np.where(opens, 1, -1).astype(np.int8), dtype=np.int32)
            if len(depths) and depths.max() > MAX_DEPTH:
                self._too_deep()
            opened = int(np.count_nonzero(opens))
            containers += opened
            values += opened + int(np.count_nonzero(commas <= end))
            if values > self.max_values:
                self.fail(f"more than {self.max_values} values")
            if containers > self.max_containers:
                self.fail(f"more than {self.max_containers} arrays and objects")
            lowest = np.minimum(np.minimum.accumulate(depths), depth)
            closing = brackets[np.diff(lowest, prepend=depth) < 0]
            if len(closing) > depth:
                self._malformed("Extra data" if depth else "Expecting value", start + int(closing[depth]))
            after = np.minimum.accumulate(depths[::-1])[::-1]
            # What the end of the text leaves open stays so: the scanner says what is missing, and where.
            left_open = [] if last else brackets[opens & (depths == after)].tolist()
            kinds = bytes(window[i] for i in left_open)
            yield _Slice(start, start + end, (closing + start).tolist(), kinds)
            depth = int(depths[-1]) if len(depths) else depth
            if depth == 0 and not last:
                self._malformed("Extra data", start + end)
            start += end + 1
            length = _SLICE
            if start == len(data) and not last:
                self._malformed("Expecting value", start)

    def _text(self, begin: int, end: int) -> str:
        try:
            return self.data[begin:end].decode()
        except UnicodeDecodeError as error:
            self.fail(f"byte {begin + error.start} is not UTF-8, expected JSON")

    def _scan(self, text: str, begin: int, added: int = 0) -> Any:
        """Python's scanner on a text whose character ``added`` stands at byte ``begin``."""
        try:
            return json.loads(
                text,
                parse_int=self._integer,
                parse_float=self._float,
                parse_constant=self._constant,
                object_pairs_hook=self._unique,
            )
        except json.JSONDecodeError as error:
            before = text[added : max(added, error.pos)].encode()
            self._malformed(error.msg, min(begin + len(before), len(self.data)))

    def _malformed(self, problem: str, at: int) -> NoReturn:
        line, column = self._place(at)
        self.fail(f"not JSON: {problem} at line {line}, column {column}")

    def _place(self, at: int) -> tuple[int, int]:
        """Line and column, from 1, of a byte."""
        first = len(_BOM) if self.data.startswith(_BOM) else 0
        line, column = 1, 1
        for start in range(first, at, _SLICE):
            piece = self.data[start : min(at, start + _SLICE)]
            if newlines := piece.count(b"\n"):
                line, column = line + newlines, 1
                piece = piece[piece.rindex(b"\n") + 1 :]
            column += len(piece.translate(None, _CONTINUATIONS))
        return line, column

    def _too_deep(self) -> NoReturn:
        self.fail(f"nested too deeply, expected at most {MAX_DEPTH} levels")

    def _integer(self, text: str) -> int:
        if len(text) > MAX_DIGITS:
            self.fail(f"a number of {len(text)} digits, expected at most {MAX_DIGITS}")
        return int(text)

    def _float(self, text: str) -> float:
        if len(text) > MAX_DIGITS:
            self.fail(f"a number of {len(text)} characters, expected at most {MAX_DIGITS}")
        return float(text)

    def _constant(self, text: str) -> NoReturn:
        self.fail(f"{text} is not JSON")

    def _unique(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            seen = set[str]()
            for name, _ in pairs:
                if name in seen:
                    self._twice(name)
                seen.add(name)
        return result

    def _twice(self, name: str) -> NoReturn:
        self.fail(f"the name {shown(name)} stands twice in one object")


def _expected(inside: Any) -> str:
    """As Python's scanner says it, of what should stand before a comma."""
    what = "value" if isinstance(inside, list) else "property name enclosed in double quotes"
    return f"Expecting {what}"


_SPACE = b" \t\n\r"
_CLOSERS = bytes.maketrans(b"[{", b"]}")
_CONTINUATIONS = bytes(range(0x80, 0xC0))


def discard(document: Any) -> None:
    """Empties a document's long arrays and objects a few values at a time; nobody else may hold it.

    Millions of values that are forgotten together hold the interpreter for as long as their freeing takes.
    """
    pending = [document]
    while pending:
        node = pending[-1]
        if isinstance(node, list) and node:
            some = node[-_AT_ONCE:]
            del node[-_AT_ONCE:]
        elif isinstance(node, dict) and node:
            some = [node.popitem()[1] for _ in range(min(_AT_ONCE, len(node)))]
        else:
            pending.pop()
            continue
        pending += [child for child in some if type(child) in (list, dict) and len(child) > _SHORT]


_SHORT = 64
_AT_ONCE = 1 << 12


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
    # An empty list has a line of its own there: public signals of a circuit without any.
    return b"[\n]" if document == [] else json.dumps(document, indent=1).encode()


def write_json(path: Pathish, document: Any) -> None:
    """Writes a document as snarkjs does, atomically."""
    with write_atomic(path) as file:
        file.write(dump_json(document))


_KINDS: dict[type, str] = {dict: "an object", list: "a list", tuple: "a list"}


def shown(value: object, limit: int = 40) -> str:
    """A document's value as a message may show it: short, printable, never a whole witness."""
    if isinstance(value, str):
        value = value[: limit + 1]
    elif isinstance(value, int) and value.bit_length() > 64:
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
