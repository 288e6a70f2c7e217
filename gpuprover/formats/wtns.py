"""Witness files (.wtns): the values of a circuit's wires.

Sections: 1 header (n8: u32, prime: n8 bytes, count: u32), 2 values (count × n8 bytes,
canonical, little-endian). A witness is secret: its values appear in no message and no
repr, and a file written here can be read by its owner only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gpuprover.curves import CurveParams, FieldParams
from gpuprover.errors import MalformedFile, about
from gpuprover.formats.binfile import BinFile, Source, write_binfile
from gpuprover.formats.files import Pathish
from gpuprover.limbs import Words, first_not_below

HEADER, VALUES = 1, 2
SECTIONS = {HEADER: "header", VALUES: "values"}
VERSION = 2


@dataclass(frozen=True)
class Witness:
    """The wires' values.

    Attributes:
        curve: whose scalar field the values lie in.
        values: uint64[n, limbs], canonical, all below r, values[0] = 1; nobody else's, so that they stay so.
        source: where it came from, for messages.
    """

    curve: CurveParams
    values: Words = field(repr=False, compare=False)
    source: str = "<witness>"

    def __len__(self) -> int:
        return len(self.values)

    @property
    def nbytes(self) -> int:
        return self.values.nbytes


Allocate = Callable[[int], NDArray[np.uint8]]
"""Memory of the host for a witness: so many bytes, at least 1, of arbitrary contents."""


def ordinary(size: int) -> NDArray[np.uint8]:
    """Memory as NumPy has it; see :data:`Allocate`."""
    return np.empty(size, dtype=np.uint8)


def own_words(words: Words, allocate: Allocate) -> Words:
    """A copy of uint64[n, limbs], n >= 0, that its owner alone can write to; read-only."""
    if not words.size:
        return words.copy(order="C")
    own: Words = allocate(words.nbytes).view(np.uint64).reshape(words.shape)
    own[...] = words
    own.flags.writeable = False
    return own


@about("witness")
def read_witness(source: Source, allocate: Allocate = ordinary) -> Witness:
    """Reads and checks a witness, given as a path or as the file's bytes.

    Args:
        allocate: where the values are copied to.
    Raises:
        InvalidInput, MalformedFile, UnsupportedFile: see :class:`~gpuprover.formats.binfile.BinFile`;
            also when a value is not below the field's prime, or wire 0 is not 1.
    """
    file = BinFile(source, "wtns", range(1, VERSION + 1), SECTIONS)
    header = file.cursor(HEADER)
    size, prime = header.prime("the field prime")
    count = header.u32("the number of values")
    header.end()
    curve = file.curve_of_scalars(file.name(HEADER), prime)
    if size != curve.scalar.bytes:
        header.fail(f"values of {size} bytes, expected {curve.scalar.bytes} for {curve.name}")
    content = file.exactly(VALUES, count * size, f"{count} values of {size} bytes")
    # A copy: the file, or the caller's buffer, may change after the check.
    values = own_words(content.view("<u8").reshape(count, curve.scalar.limbs), allocate)
    check_witness_values(values, curve, file.path, file.name(VALUES))
    return Witness(curve, values, file.path)


def check_witness_values(values: Words, curve: CurveParams, source: str, part: str) -> None:
    """Every value below r, and wire 0 equal to 1. Raises MalformedFile."""
    if len(values) == 0:
        raise MalformedFile(source, part, "no values, expected at least wire 0, which is 1")
    bad = first_not_below(values, curve.r)
    if bad >= 0:
        raise MalformedFile(source, part, f"value {bad} is not below the prime of {curve.scalar.name}")
    if values[0, 0] != 1 or values[0, 1:].any():
        raise MalformedFile(source, part, "value 0 has to be 1, the constant wire")


def witness_bytes(field: FieldParams, values: Words) -> bytes:
    """The same file as bytes."""
    header = field.bytes.to_bytes(4, "little") + field.modulus.to_bytes(field.bytes, "little")
    header += len(values).to_bytes(4, "little")
    content = np.ascontiguousarray(values, dtype="<u8")
    parts: list[bytes | memoryview] = [b"wtns", *(n.to_bytes(4, "little") for n in (VERSION, 2))]
    for kind, size, data in ((HEADER, len(header), header), (VALUES, content.nbytes, content.data)):
        parts += [kind.to_bytes(4, "little"), size.to_bytes(8, "little"), data]
    return b"".join(parts)


def write_witness(path: Pathish, field: FieldParams, values: Words) -> None:
    """Writes canonical uint64[n, limbs] as a .wtns file of mode 0600, atomically."""
    with write_binfile(path, "wtns", VERSION, 2, secret=True) as out:
        with out.section(HEADER, 8 + field.bytes) as section:
            section.u32(field.bytes)
            section.integer(field.modulus, field.bytes)
            section.u32(len(values))
        with out.section(VALUES, len(values) * field.bytes) as section:
            section.write(values.astype("<u8", copy=False))
