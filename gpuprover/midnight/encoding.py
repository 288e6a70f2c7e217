"""Midnight's ledger format: the primitives that its keys, circuits, preimages and proofs are written in.

All data begin with a tag that names their type and version. Integers are compact, in the way of SCALE: the
low two bits of the first byte tell the length. Each value has one form; everything else is refused.
Messages name the file, the field, its place and what was expected there, and never a value: what is read
may be a witness.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, NoReturn, TypeVar, Union

from gpuprover.curves import BLS12_381
from gpuprover.errors import MalformedFile, UnsupportedFile

Buffer = bytes | bytearray | memoryview
"""Bytes that are read. A slice of a memoryview is no copy."""

PREFIX = b"midnight:"
MAX_TAG = 200
"""Characters of a tag, with its prefix, that are looked at."""
SCALAR_TAG = "fr-bls"
"""The name of the scalar field in composed tags."""
_SHOWN = 80
_MODULUS = BLS12_381.r
_SCALAR_BITS = 8 * BLS12_381.scalar.bytes
_MAX_DEPTH = 16
"""Alternatives within alternatives."""
_LIMITS = (1 << 6, 1 << 14, 1 << 30)
"""Compact integers below these take one, two and four bytes."""
_MOST_BYTES = 67
"""Bytes of the longest compact integer, behind its first."""

T = TypeVar("T")


# Alignments ------------------------------------------------------------------------------------


class Atom(NamedTuple):
    """One value of aligned data.

    Attributes:
        kind: ``bytes``, ``field`` or ``compress``.
        length: bytes of the kind ``bytes``; 0 otherwise.
    """

    kind: str
    length: int = 0


class Alternatives(NamedTuple):
    """Data aligned in one of several ways.

    Attributes:
        choices: alignments.
    """

    choices: tuple[Alignment, ...]


Alignment = tuple[Union[Atom, "Alternatives"], ...]
"""How field elements are cut into bytes: segments in their order."""

_MAX_FLAGGED = 1 << 20


# Reading ---------------------------------------------------------------------------------------


class Reader:
    """Fields one after the other.

    Every method takes the field's name, for messages.

    Attributes:
        data: all bytes.
        path: the file's name for messages.
        at: the place of the next byte.
    """

    def __init__(self, data: Buffer, path: str, at: int = 0) -> None:
        self.data, self.path, self.at = data, path, at

    def fail(self, field: str, problem: str, at: int | None = None) -> NoReturn:
        """Raises MalformedFile for the field at a place, by default the current one."""
        place = self.at if at is None else at
        raise MalformedFile(self.path, field, f"{problem}, at byte {place}")

    @property
    def left(self) -> int:
        """Bytes that were not read yet."""
        return len(self.data) - self.at

    def view(self, count: int, field: str) -> memoryview:
        """The next bytes, without a copy."""
        if count > self.left:
            self.fail(field, f"expected {count} bytes, found {self.left}")
        self.at += count
        return memoryview(self.data)[self.at - count : self.at]

    def take(self, count: int, field: str) -> bytes:
        """The next bytes."""
        return bytes(self.view(count, field))

    def byte(self, field: str) -> int:
        """An integer of one byte."""
        if self.at >= len(self.data):
            self.fail(field, "expected 1 byte, found none")
        self.at += 1
        return self.data[self.at - 1]

    def fixed(self, size: int, field: str, order: str = "little") -> int:
        """An integer of ``size`` bytes, ``little`` or ``big`` first."""
        return int.from_bytes(self.view(size, field), "big" if order == "big" else "little")

    def boolean(self, field: str) -> bool:
        """One byte, 0 or 1."""
        start, value = self.at, self.byte(field)
        if value > 1:
            self.fail(field, "expected 0 or 1", start)
        return value == 1

    def compact(self, field: str, bits: int = 32) -> int:
        """A compact integer below 2^bits."""
        start, first = self.at, self.byte(field)
        mode = first & 3
        if mode == 0 and bits >= 6:  # most of them
            return first >> 2
        if mode < 3:
            size = (0, 1, 3)[mode]
            value = (int.from_bytes(self.view(size, field), "little") << 8 | first) >> 2
            minimal = mode == 0 or value >= _LIMITS[mode - 1]
        else:
            size = (first >> 2) + 4
            if size * 8 > bits + 7:
                self.fail(field, f"expected an integer below 2^{bits}", start)
            value = int.from_bytes(self.view(size, field), "little")
            minimal = value >= _LIMITS[2] and value >> 8 * (size - 1) != 0
        if not minimal:
            self.fail(field, "an integer in more bytes than it needs", start)
        if value >> bits:
            self.fail(field, f"expected an integer below 2^{bits}", start)
        return value

    def scalar(self, field: str) -> int:
        """A compact integer below r."""
        start, value = self.at, self.compact(field, _SCALAR_BITS)
        if value >= _MODULUS:
            self.fail(field, f"a scalar is not below the prime of {BLS12_381.scalar.name}", start)
        return value

    def count(self, field: str) -> int:
        """A number of items, each of which takes at least one byte."""
        start, value = self.at, self.compact(field)
        if value > self.left:
            self.fail(field, f"expected at most {self.left} items in the bytes that are left", start)
        return value

    def vector(self, read: Callable[[str], T], field: str) -> tuple[T, ...]:
        """A count, and so many items."""
        return tuple(read(field) for _ in range(self.count(field)))

    def option(self, read: Callable[[str], T], field: str) -> T | None:
        """0, or 1 and a value."""
        return read(field) if self.boolean(field) else None

    def sized(self, field: str) -> memoryview:
        """A length, and so many bytes, without a copy."""
        return self.view(self.compact(field), field)

    def string(self, field: str) -> str:
        """A length, and so many bytes of UTF-8."""
        start, content = self.at, bytes(self.sized(field))
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            self.fail(field, "expected text in UTF-8", start)

    def alignment(self, field: str, depth: int = 0) -> Alignment:
        """An alignment."""
        start = self.at
        x, y, value = self._flagged(field)
        if not (x and y):
            return (self._segment(x, y, value, field, depth, start),)
        if value == 1:
            self.fail(field, "a sequence of one segment that says so", start)
        if value > self.left:
            self.fail(field, f"expected at most {self.left} segments in the bytes that are left", start)
        found = []
        for _ in range(value):
            start = self.at
            found.append(self._segment(*self._flagged(field), field, depth, start))
        return tuple(found)

    def _segment(
        self, x: bool, y: bool, value: int, field: str, depth: int, start: int
    ) -> Atom | Alternatives:
        if not x and not y:
            return Atom("bytes", value)
        if not x:
            if value > 1:
                self.fail(field, "expected an atom: bytes, compress or field", start)
            return Atom("field" if value else "compress")
        if y:
            self.fail(field, "expected an atom or alternatives, found a sequence", start)
        if depth == _MAX_DEPTH:
            self.fail(field, f"alternatives within alternatives, more than {_MAX_DEPTH} deep", start)
        if value > self.left:
            self.fail(field, f"expected at most {self.left} alternatives in the bytes that are left", start)
        return Alternatives(tuple(self.alignment(field, depth + 1) for _ in range(value)))

    def _flagged(self, field: str) -> tuple[bool, bool, int]:
        start, first = self.at, self.byte(field)
        value = first & 0x1F
        if first & 0x20:
            second = self.byte(field)
            value |= (second & 0x7F) << 5
            if second & 0x80:
                value |= self.byte(field) << 12
                if value < 1 << 12:
                    self.fail(field, "an integer in more bytes than it needs", start)
            elif value < 1 << 5:
                self.fail(field, "an integer in more bytes than it needs", start)
        return bool(first & 0x80), bool(first & 0x40), value

    def end(self, what: str) -> None:
        """Raises MalformedFile for bytes behind the last field of ``what``."""
        if self.left:
            self.fail(what, f"{self.left} bytes behind its end")


def tag_of(data: Buffer) -> str | None:
    """The tag that data begin with; None if they begin with none."""
    head = bytes(data[:MAX_TAG])
    end = head.find(b":", len(PREFIX))
    if not head.startswith(PREFIX) or end < 0:
        return None
    tag = head[len(PREFIX) : end]
    return tag.decode("ascii") if tag.isascii() and tag.decode("ascii").isprintable() else None


def tagged(data: Buffer, tags: Sequence[str], path: str) -> tuple[str, Reader]:
    """The tag of data, and a reader of what follows it.

    Raises:
        UnsupportedFile: another tag; the message names both.
        MalformedFile: no tag at all.
    """
    found = tag_of(data)
    wanted = " or ".join(f"'{_whole(tag)}'" for tag in tags)
    if found is None:
        # Data without a tag may be anything, a secret, too.
        got = f"{len(data)} bytes without a tag" if data else "nothing"
        raise MalformedFile(path, "tag", f"expected header tag {wanted}, got {got}")
    if found not in tags:
        raise UnsupportedFile(path, "tag", f"expected header tag {wanted}, got '{_whole(found)[:_SHOWN]}'")
    return found, Reader(data, path, len(_whole(found)))


def _whole(tag: str) -> str:
    return f"{PREFIX.decode()}{tag}:"


# Writing ---------------------------------------------------------------------------------------


class Writer:
    """Fields one after the other; each method returns the writer.

    Attributes:
        data: what was written.
    """

    def __init__(self, tag: str | None = None) -> None:
        self.data = bytearray() if tag is None else bytearray(_whole(tag).encode("ascii"))

    def __bytes__(self) -> bytes:
        return bytes(self.data)

    def raw(self, data: Buffer) -> Writer:
        """Bytes as they are."""
        self.data += data
        return self

    def byte(self, value: int) -> Writer:
        """An integer of one byte."""
        self.data.append(value)
        return self

    def fixed(self, value: int, size: int, order: str = "little") -> Writer:
        """An integer of ``size`` bytes, ``little`` or ``big`` first."""
        return self.raw(value.to_bytes(size, "big" if order == "big" else "little"))

    def boolean(self, value: bool) -> Writer:
        """One byte, 0 or 1."""
        return self.byte(int(value))

    def compact(self, value: int) -> Writer:
        """A compact integer, also a scalar.

        Raises:
            ValueError: it is negative, or has more than 67 bytes.
        """
        if value < 0 or value >> 8 * _MOST_BYTES:
            raise ValueError("expected an integer of at most 67 bytes")
        for mode, (limit, size) in enumerate(zip(_LIMITS, (1, 2, 4), strict=True)):
            if value < limit:
                return self.fixed(value << 2 | mode, size)
        size = (value.bit_length() + 7) // 8
        return self.byte((size - 4) << 2 | 3).fixed(value, size)

    def vector(self, values: Sequence[T], write: Callable[[T], object]) -> Writer:
        """A count, and so many items."""
        self.compact(len(values))
        for value in values:
            write(value)
        return self

    def scalars(self, values: Iterable[int]) -> Writer:
        """A count, and so many compact integers."""
        return self.vector(list(values), self.compact)

    def option(self, value: T | None, write: Callable[[T], object]) -> Writer:
        """0, or 1 and a value."""
        self.boolean(value is not None)
        if value is not None:
            write(value)
        return self

    def sized(self, data: Buffer) -> Writer:
        """A length, and so many bytes."""
        return self.compact(len(data)).raw(data)

    def string(self, value: str) -> Writer:
        """A length, and so many bytes of UTF-8."""
        return self.sized(value.encode("utf-8"))

    def alignment(self, value: Alignment) -> Writer:
        """An alignment.

        Raises:
            ValueError: a length or a count is 2^20 or more.
        """
        if len(value) != 1:
            self._flagged(True, True, len(value))
        for segment in value:
            if isinstance(segment, Alternatives):
                self._flagged(True, False, len(segment.choices))
                for choice in segment.choices:
                    self.alignment(choice)
            elif segment.kind == "bytes":
                self._flagged(False, False, segment.length)
            else:
                self._flagged(False, True, int(segment.kind == "field"))
        return self

    def _flagged(self, x: bool, y: bool, value: int) -> None:
        if not 0 <= value < _MAX_FLAGGED:
            raise ValueError("alignment: expected lengths and counts below 2^20")
        flags = x << 7 | y << 6
        if value < 1 << 5:
            self.byte(flags | value)
            return
        self.byte(flags | 0x20 | value & 0x1F)
        if value < 1 << 12:
            self.byte(value >> 5)
        else:
            self.byte(0x80 | value >> 5 & 0x7F).byte(value >> 12)
