"""Advice tables as files, and as witnesses in place of a preimage.

A file has, plain or compressed by xz: ``MNADVv1\\n``; u32 LE k, number of columns C, usable rows u, n = 2^k;
then C·u scalars of 32 bytes, little-endian and canonical, column by column, of rows 0..u−1. The other rows
are blinding, which whoever proves draws. A table is secret: no message and no repr holds a value of one.
"""

from __future__ import annotations

import lzma
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from gpuprover.curves import BLS12_381, CurveParams
from gpuprover.errors import InvalidInput, MalformedFile, about
from gpuprover.formats.wtns import Allocate, Witness
from gpuprover.job import Job
from gpuprover.limbs import Words, first_not_below
from gpuprover.witness_source import Packed, WitnessSource

MAGIC = b"MNADVv1\n"
MAX_K, MAX_COLUMNS = 25, 64
_HEADER = struct.Struct("<IIII")
_XZ = b"\xfd7zXZ\0"
_LZMA_MEMORY = 256 << 20
_SCALAR = BLS12_381.scalar


@dataclass(frozen=True, eq=False)
class Advice:
    """An advice table.

    Attributes:
        k: log2 of the number of rows n.
        usable: rows that hold a witness.
        columns: uint64[C, n, 4], canonical; 0 from row ``usable`` on.
        source: where it came from, for messages.
    """

    k: int
    usable: int
    columns: Words = field(repr=False)
    source: str = "<advice>"


@about("witness")
def read_advice(data: bytes, source: str = "<advice>") -> Advice:
    """A table from its file's bytes.

    Raises:
        MalformedFile: another kind of file, truncated, sizes that do not fit, a value that is not below r.
    """

    def bad(part: str, problem: str) -> MalformedFile:
        return MalformedFile(source, part, problem)

    compressed = data[: len(_XZ)] == _XZ
    size = len(MAGIC) + _HEADER.size
    head = _inflated(data, size, bad) if compressed else data[:size]
    if head[: len(MAGIC)] != MAGIC:
        raise bad("header", "expected an advice table, which begins with MNADVv1")
    if len(head) != size:
        raise bad("header", "truncated")
    k, count, usable, n = _HEADER.unpack_from(head, len(MAGIC))
    if not 1 <= k <= MAX_K or n != 1 << k:
        raise bad("header", f"expected k from 1 to {MAX_K} and n = 2^k, found k = {k} and n = {n}")
    if not 1 <= count <= MAX_COLUMNS or not 1 <= usable < n:
        raise bad("header", f"expected 1 to {MAX_COLUMNS} columns and usable rows below n")
    expected = size + count * usable * _SCALAR.bytes
    content = _inflated(data, expected + 1, bad) if compressed else data
    if len(content) != expected:
        more = f"{len(content)}" if len(content) < expected or not compressed else "more"
        raise bad("values", f"expected {expected} bytes for {count} columns of {usable} rows, found {more}")
    values = np.frombuffer(content, dtype="<u8", offset=size).reshape(-1, _SCALAR.limbs)
    wrong = first_not_below(values, BLS12_381.r)
    if wrong >= 0:
        column, row = divmod(wrong, usable)
        raise bad("values", f"column {column}, row {row}: not below the prime of {_SCALAR.name}")
    columns = np.zeros((count, n, _SCALAR.limbs), dtype=np.uint64)
    columns[:, :usable] = values.reshape(count, usable, _SCALAR.limbs)
    return Advice(k, usable, columns, source)


def _inflated(data: bytes, limit: int, bad: Callable[[str, str], MalformedFile]) -> bytes:
    """At most ``limit`` bytes of what is compressed."""
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_LZMA_MEMORY)
    found = bytearray()
    try:
        found += decompressor.decompress(data, limit)
        while len(found) < limit and not decompressor.eof and not decompressor.needs_input:
            found += decompressor.decompress(b"", limit - len(found))
    except (lzma.LZMAError, MemoryError):
        raise bad("compression", "expected a stream of xz, found damaged data") from None
    return bytes(found)


def write_advice(advice: Advice) -> bytes:
    """The file's bytes, not compressed."""
    count, n, _ = advice.columns.shape
    head = MAGIC + _HEADER.pack(advice.k, count, advice.usable, n)
    return head + np.ascontiguousarray(advice.columns[:, : advice.usable], dtype="<u8").tobytes()


@dataclass(repr=False, frozen=True)
class AdviceSource(WitnessSource):
    """A table and its public inputs, as a witness of a proof that is made in this process.

    Attributes:
        advice: the table.
        public: the public inputs, below r.
    """

    advice: Advice
    public: Sequence[int]

    def load(self, curve: CurveParams, job: Job, memory_limit: int | None, allocate: Allocate) -> Witness:
        raise InvalidInput("witness: expected the values of a circuit's wires, found an advice table")

    def owned(self, curve: Callable[[], CurveParams], content: bool) -> WitnessSource:
        return self

    def packed(self) -> Packed:
        raise InvalidInput("witness: an advice table goes to no other process; expected a preimage")
