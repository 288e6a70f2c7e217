"""The sectioned container that circom's binary files share (.r1cs, .wtns, .zkey, .ptau).

    magic: 4 bytes | version: u32 | sections: u32 | { type: u32 | size: u64 | size bytes }*

All integers are little-endian, and sections stand in any order. A file is mapped, never
read whole, and no declared size or count is believed before it is held against the real
size: what a header claims allocates nothing.

Source: iden3's binary file format, https://github.com/iden3/r1csfile/blob/master/doc/r1cs_bin_format.md
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from gpuprover.curves import CURVES, CurveParams
from gpuprover.errors import DeviceError, MalformedFile, UnsupportedFile, about
from gpuprover.formats.files import Pathish, open_regular, os_problem, write_atomic

Bytes = NDArray[np.uint8]
Source = Pathish | bytes | bytearray | memoryview

_ROLES = {"zkey": "key", "wtns": "witness", "r1cs": "circuit", "ptau": "powers of tau"}
_HEADER = struct.Struct("<4sII")
_SECTION = struct.Struct("<IQ")
MAX_SECTIONS = 1024
"""No format here has more than 16; a damaged count must not make a long loop."""


class Section(NamedTuple):
    """Where a section's content lies, in bytes from the start of the file."""

    type: int
    offset: int
    size: int


class BinFile:
    """A mapped container, its section table checked against the file's real size.

    Args:
        source: a path, or the file's bytes.
        magic: the four letters the format starts with, e.g. ``"zkey"``.
        versions: the versions that can be read.
        names: what the format calls its sections, by type; used in messages.

    Attributes:
        path: the path, or ``<bytes>``: the name that messages start with.
        role: what such files are to us, for errors.
        data: uint8[size], read-only; a view of the mapping, which lives as long as any view of it.
        sections: the sections, in the order of the file.

    Raises:
        InvalidInput: the file cannot be opened.
        MalformedFile: no such file format, truncated, duplicate sections, trailing bytes.
        UnsupportedFile: another version.
    """

    def __init__(self, source: Source, magic: str, versions: range, names: Mapping[int, str]) -> None:
        self.role = _ROLES.get(magic, "")
        with about(self.role):
            self.path, self.data = open_mapped(source, f".{magic}")
        self.magic, self.names = magic, names
        self.version, self.sections = self._section_table(versions)

    def name(self, section: int) -> str:
        """How messages call a section, e.g. ``section 4 (coefficients)``."""
        known = self.names.get(section)
        return f"section {section} ({known})" if known else f"section {section}"

    def _section_table(self, versions: range) -> tuple[int, list[Section]]:
        size = len(self.data)
        if size < _HEADER.size:
            what = "the file is empty" if size == 0 else f"the file has {size} bytes"
            self.fail("header", f"{what}, expected a {self.magic} file of at least {_HEADER.size} bytes")
        magic, version, count = _HEADER.unpack_from(self.data.data)
        if magic != self.magic.encode():
            self.fail("header", f"expected a file that starts with {self.magic!r}, found {_printable(magic)}")
        if version not in versions:
            known = str(versions[0]) if len(versions) == 1 else f"{versions[0]} to {versions[-1]}"
            raise UnsupportedFile(self.path, "header", f"version {version}, expected {known}", role=self.role)
        if count > MAX_SECTIONS:
            self.fail("header", f"declares {count} sections, expected at most {MAX_SECTIONS}")
        position, sections = _HEADER.size, list[Section]()
        for i in range(count):
            if size - position < _SECTION.size:
                self.fail("section table", f"the file ends before section {i + 1} of {count}: truncated?")
            kind, length = _SECTION.unpack_from(self.data.data, position)
            position += _SECTION.size
            if length > size - position:
                self.fail(
                    self.name(kind),
                    f"declares {length} bytes, but only {size - position} follow in the file: truncated?",
                )
            if any(s.type == kind for s in sections):
                self.fail(self.name(kind), "stands in the file twice, expected once")
            sections.append(Section(kind, position, length))
            position += length
        if position != size:
            self.fail("end of file", f"{size - position} bytes follow the last section, expected none")
        return version, sections

    def __contains__(self, section: int) -> bool:
        return any(s.type == section for s in self.sections)

    def find(self, section: int) -> Section:
        """The section of that type. Raises MalformedFile if there is none."""
        for s in self.sections:
            if s.type == section:
                return s
        self.fail(self.name(section), "missing from the file")

    def view(self, section: int) -> Bytes:
        """A section's bytes, a read-only view of the mapping."""
        s = self.find(section)
        return self.data[s.offset : s.offset + s.size]

    def exactly(self, section: int, size: int, reason: str) -> Bytes:
        """A section's bytes, if there are ``size`` of them. ``reason`` says why, e.g. ``"5 points"``."""
        content = self.view(section)
        if len(content) != size:
            self.fail(self.name(section), f"expected {size} bytes ({reason}), found {len(content)}")
        return content

    def cursor(self, section: int) -> Cursor:
        """Reads a section from its start, field by field."""
        return Cursor(self, section)

    def fail(self, part: str, problem: str) -> NoReturn:
        raise MalformedFile(self.path, part, problem, role=self.role)

    def curve_of_scalars(self, part: str, modulus: int) -> CurveParams:
        """The curve whose scalar field has this modulus. Raises UnsupportedFile."""
        for curve in CURVES:
            if curve.r == modulus:
                return curve
        known = ", ".join(c.name for c in CURVES)
        problem = f"field prime {modulus:#x} is of no known curve ({known})"
        raise UnsupportedFile(self.path, part, problem, role=self.role)


class Cursor:
    """Reads the fields of a section in order; what is missing is reported by the field's name."""

    def __init__(self, file: BinFile, section: int) -> None:
        self._file, self.part = file, file.name(section)
        self._data, self.position = file.view(section), 0

    def bytes(self, size: int, field: str) -> Bytes:
        rest = len(self._data) - self.position
        if size > rest:
            self.fail(f"ends within {field}: expected {size} bytes, {rest} are left")
        self.position += size
        return self._data[self.position - size : self.position]

    def u32(self, field: str) -> int:
        return int.from_bytes(self.bytes(4, field).tobytes(), "little")

    def u64(self, field: str) -> int:
        return int.from_bytes(self.bytes(8, field).tobytes(), "little")

    def integer(self, size: int, field: str) -> int:
        return int.from_bytes(self.bytes(size, field).tobytes(), "little")

    def prime(self, name: str) -> tuple[int, int]:
        """A length in bytes (u32) and a modulus of that length -> (length, modulus)."""
        size = self.u32(f"the size of {name}")
        if size % 8 or not 8 <= size <= 256:
            self.fail(f"{name}: a size of {size} bytes, expected a multiple of 8 up to 256")
        return size, self.integer(size, name)

    def end(self) -> None:
        """Raises MalformedFile if bytes are left."""
        rest = len(self._data) - self.position
        if rest:
            self.fail(f"{rest} bytes follow the last field, expected none")

    def fail(self, problem: str) -> NoReturn:
        self._file.fail(self.part, problem)


class BinFileWriter:
    """Writes a container front to back; every section's size is known before its content."""

    def __init__(self, file: BinaryIO, magic: str, version: int, sections: int) -> None:
        self._file, self._left = file, sections
        file.write(_HEADER.pack(magic.encode(), version, sections))

    @contextmanager
    def section(self, section: int, size: int) -> Iterator[SectionWriter]:
        """The next section, of exactly ``size`` bytes."""
        assert self._left > 0, "more sections than announced"
        self._left -= 1
        self._file.write(_SECTION.pack(section, size))
        writer = SectionWriter(self._file)
        yield writer
        assert writer.written == size, f"section {section}: wrote {writer.written} bytes of {size} announced"


class SectionWriter:
    """The content of one section."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.written = file, 0

    def write(self, data: bytes | memoryview | NDArray[np.generic]) -> None:
        """Appends bytes, or an array's content in C order."""
        view = np.ascontiguousarray(data).data if isinstance(data, np.ndarray) else memoryview(data)
        if view.nbytes:
            self._file.write(view.cast("B"))
            self.written += view.nbytes

    def u32(self, *values: int) -> None:
        self.write(struct.pack(f"<{len(values)}I", *values))

    def u64(self, *values: int) -> None:
        self.write(struct.pack(f"<{len(values)}Q", *values))

    def integer(self, value: int, size: int) -> None:
        self.write(value.to_bytes(size, "little"))


@contextmanager
def write_binfile(
    path: Pathish, magic: str, version: int, sections: int, *, secret: bool = False
) -> Iterator[BinFileWriter]:
    """A new container that takes the place of ``path`` when the block ends well."""
    with write_atomic(path, secret=secret) as file:
        writer = BinFileWriter(file, magic, version, sections)
        yield writer
        assert writer._left == 0, "fewer sections than announced"


def open_mapped(source: Source, what: str) -> tuple[str, Bytes]:
    if isinstance(source, bytes | bytearray | memoryview):
        view = memoryview(source)
        data = np.frombuffer(view, dtype=np.uint8) if view.nbytes else np.empty(0, dtype=np.uint8)
        data.flags.writeable = False
        return f"<{what} bytes>", data
    file, size = open_regular(source)
    with file:
        if size == 0:  # which cannot be mapped
            return str(source), np.empty(0, dtype=np.uint8)
        try:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError, OverflowError) as error:
            if isinstance(error, OSError):
                raise os_problem(source, error, "map") from None
            raise DeviceError("cannot map the file", path=source, more=f"({error})") from None
    return str(source), np.frombuffer(mapping, dtype=np.uint8)


def _printable(magic: bytes) -> str:
    return repr(magic.decode("ascii", "backslashreplace"))
