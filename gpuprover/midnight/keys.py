"""Midnight's verifier and prover keys, of both lines.

A verifier key has a circuit's architecture and commitments to its fixed columns and to its permutation. A
prover key has the circuit itself, the same commitments, and the columns' values; the older line keeps all of
that compressed. Neither holds a constraint system: it follows from the architecture.

Whether points lie in their subgroup is looked at on request; all else is checked by the readers.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, NoReturn

import numpy as np

from gpuprover import devices
from gpuprover.curves import BLS12_381, Group
from gpuprover.errors import MalformedFile, OutOfMemory, UnsupportedFile, about
from gpuprover.job import Job
from gpuprover.limbs import Words
from gpuprover.midnight.architecture import Architecture
from gpuprover.midnight.encoding import Buffer, Reader, Writer, tag_of, tagged
from gpuprover.midnight.points import (
    COORDINATE_BYTES,
    G1_BYTES,
    SCALAR_BYTES,
    BadPoint,
    read_compressed,
    read_points,
    write_compressed,
    write_points,
)
from gpuprover.midnight.profile import PROFILES, Profile, profile_of_prover_tag, profile_of_verifier_tag

MAX_K = 25
"""The logarithm of the most rows: that of the largest parameters there are."""
MAX_VERIFIER_KEY = 50_000
"""Bytes of a verifier key behind its tag and length."""
MAX_COLUMNS = 512
"""Fixed columns of a key, and permuted ones."""
MAX_CIRCUIT = 16 << 20
"""Bytes of a circuit in a prover key."""
_KEY_VERSION = 3
_MOST_RANGE_COLUMNS = 16
_MOST_BITS = 32
"""Bits of values in the range table are fewer."""
_LIMBS = BLS12_381.scalar.limbs
_KEY_HEAD = 6
_GZIP = b"\x1f\x8b"
_GZIP_HEADER = _GZIP + bytes([8, 0, 0, 0, 0, 0, 0, 0xFF])
"""Deflated, without flags or time, on no system in particular."""
_LEVEL = 6
_MOST_INFLATED = 1032
"""Bytes that a byte of compressed data can become: zlib's documentation, "maximum compression factor"."""
_PIECE = 1 << 16
_MOST_TRIES = 1000
"""Places where a key part may begin that are looked at."""
_GENERIC = 0xFF
"""The first byte of a relation that has a circuit with its tag."""


@dataclass(frozen=True, eq=False)
class VerifierKey:
    """A ``.verifier`` file.

    Attributes:
        profile: the line of the network.
        architecture: the circuit's chips and range columns.
        max_bit_len: bits of the largest values in the range table.
        n_public: public inputs.
        k: the logarithm of the number of rows.
        fixed: commitments of fixed columns, uint64[F, g1_words].
        permutation: commitments of the permutation's columns, uint64[P, g1_words].
        source: the file's name for messages.
    """

    profile: Profile
    architecture: Architecture
    max_bit_len: int
    n_public: int
    k: int
    fixed: Words = field(repr=False)
    permutation: Words = field(repr=False)
    source: str


@dataclass(frozen=True, eq=False)
class ProverKey:
    """A ``.prover`` file.

    Attributes:
        profile: the line of the network.
        max_bit_len: bits of the largest values in the range table.
        k: the logarithm of the number of rows.
        circuit: the circuit's ``.bzkir`` file.
        fixed_commitments, permutation_commitments: as those of the verifier key.
        fixed: fixed columns, Montgomery uint64[F, n, limbs].
        permutation: the permutation's columns, Montgomery uint64[P, n, limbs].
        source: the file's name for messages.
    """

    profile: Profile
    max_bit_len: int
    k: int
    circuit: bytes = field(repr=False)
    fixed_commitments: Words = field(repr=False)
    permutation_commitments: Words = field(repr=False)
    fixed: Words = field(repr=False)
    permutation: Words = field(repr=False)
    source: str


# Verifier keys ---------------------------------------------------------------------------------


@about("verification key")
def read_verifier_key(data: Buffer, path: str = "verifier key", *, subgroup: bool = False) -> VerifierKey:
    """A verifier key's file.

    Args:
        subgroup: whether to check that points are in the subgroup.

    Raises:
        MalformedFile, UnsupportedFile: names the field.
    """
    tag, outer = tagged(data, [profile.verifier_tag for profile in PROFILES], path)
    profile = profile_of_verifier_tag(tag)
    assert profile is not None
    start, length = outer.at, outer.compact("length")
    if length > MAX_VERIFIER_KEY:
        outer.fail("length", f"expected at most {MAX_VERIFIER_KEY} bytes", start)
    reader = Reader(outer.view(length, "key"), path)
    outer.end("verifier key")
    version = reader.fixed(4, "format version")
    if version != profile.stdlib_version:
        raise UnsupportedFile(
            path, "format version", f"expected {profile.stdlib_version} for '{tag}', found {version}"
        )
    chips = frozenset(chip for chip in profile.chips if reader.boolean(f"architecture, {chip}"))
    range_columns = reader.byte("range columns")
    if not 1 <= range_columns <= _MOST_RANGE_COLUMNS:
        reader.fail("range columns", f"expected 1 to {_MOST_RANGE_COLUMNS}", reader.at - 1)
    stated = _bits(reader) if profile.states_max_bit_len else None
    early = None if profile.states_max_bit_len else _log_rows(reader)
    n_public = reader.fixed(4, "public inputs")
    k, fixed = _key_head(reader)
    if early not in (None, k):
        reader.fail("k", f"expected {early} as before, found {k}", reader.at - _KEY_HEAD + 1)
    if n_public >> k:
        reader.fail("public inputs", f"expected fewer than the 2^{k} rows, found {n_public}")
    points, rest = divmod(reader.left, COORDINATE_BYTES)
    if rest or points <= fixed:
        reader.fail("commitments", f"expected {fixed} points of {COORDINATE_BYTES} bytes and others, found "
                    f"{reader.left} bytes")  # fmt: skip
    if points - fixed > MAX_COLUMNS:
        reader.fail("commitments", f"expected at most {MAX_COLUMNS} permuted columns")
    found = _commitments(path, read_compressed, reader.view(reader.left, "commitments"), fixed)
    if subgroup:
        _check_subgroup(path, found, fixed)
    return VerifierKey(
        profile,
        Architecture(chips, range_columns),
        k - 1 if stated is None else stated,
        n_public,
        k,
        found[:fixed],
        found[fixed:],
        path,
    )


def write_verifier_key(key: VerifierKey) -> bytes:
    """The file of a verifier key.

    Raises:
        UnsupportedFile: keys of this line have no such chip.
    """
    profile, architecture = key.profile, key.architecture
    others = sorted(architecture.chips.difference(profile.chips))
    if others:
        raise UnsupportedFile(key.source, "architecture", f"no {others[0]} in keys '{profile.verifier_tag}'")
    body = Writer().fixed(profile.stdlib_version, 4)
    for chip in profile.chips:
        body.boolean(chip in architecture.chips)
    body.byte(architecture.range_columns)
    body.byte(key.max_bit_len if profile.states_max_bit_len else key.k)
    body.fixed(key.n_public, 4)
    _write_key_head(body, key.k, len(key.fixed))
    body.raw(write_compressed(key.fixed)).raw(write_compressed(key.permutation))
    return bytes(Writer(profile.verifier_tag).sized(body.data))


def _bits(reader: Reader) -> int:
    start, bits = reader.at, reader.byte("largest bit length")
    if not 1 <= bits < _MOST_BITS:
        reader.fail("largest bit length", f"expected 1 to {_MOST_BITS - 1}, found {bits}", start)
    return bits


def _log_rows(reader: Reader) -> int:
    start, k = reader.at, reader.byte("k")
    if not 1 <= k <= MAX_K:
        reader.fail("k", f"expected 1 to {MAX_K}, found {k}", start)
    return k


def _key_head(reader: Reader) -> tuple[int, int]:
    """k and the number of fixed columns."""
    start, version = reader.at, reader.byte("key version")
    if version != _KEY_VERSION:
        raise UnsupportedFile(
            reader.path, "key version", f"expected {_KEY_VERSION}, found {version}, at byte {start}"
        )
    k = _log_rows(reader)
    start, fixed = reader.at, reader.fixed(4, "fixed columns")
    if not 1 <= fixed <= MAX_COLUMNS:
        reader.fail("fixed columns", f"expected 1 to {MAX_COLUMNS}, found {fixed}", start)
    return k, fixed


def _write_key_head(writer: Writer, k: int, fixed: int) -> None:
    writer.byte(_KEY_VERSION).byte(k).fixed(fixed, 4)


def _commitments(path: str, read: Callable[[Buffer], Words], data: Buffer, fixed: int) -> Words:
    try:
        return read(data)
    except BadPoint as error:
        raise MalformedFile(path, _commitment_name(error.index, fixed), str(error)) from None


def _commitment_name(index: int, fixed: int) -> str:
    if index < fixed:
        return f"commitment of fixed column {index}"
    return f"commitment of permuted column {index - fixed}"


def _check_subgroup(path: str, points: Words, fixed: int) -> None:
    bad = devices.open_backend("cpu", BLS12_381, Job(threads=1)).points.first_bad_point(Group.G1, points)
    if bad >= 0:
        raise MalformedFile(path, _commitment_name(bad, fixed), "not in the subgroup of order r")


# Prover keys -----------------------------------------------------------------------------------


@about("key")
def read_prover_key(
    data: Buffer, path: str = "prover key", *, subgroup: bool = False, limit: int | None = None
) -> ProverKey:
    """A prover key's file.

    Args:
        subgroup: whether to check that commitments are in the subgroup.
        limit: bytes that the key may have once it is decompressed; default: what its counts allow.

    Raises:
        MalformedFile, UnsupportedFile: names the field.
        OutOfMemory: the key is larger than the limit.
    """
    tags = [tag for profile in PROFILES for tag in profile.prover_tags]
    tag, outer = tagged(data, tags, path)
    profile = profile_of_prover_tag(tag)
    assert profile is not None
    content = outer.sized("content")
    outer.end("prover key")
    head = _Source(content, path)
    max_bit_len, k, relation = _relation(head, profile, tag)
    at, fixed, permuted = _key_part(head, k, relation)
    n = 1 << k
    columns = at + _KEY_HEAD + G1_BYTES * (fixed + permuted)
    size = 4 + SCALAR_BYTES * n
    total = columns + 8 + (fixed + permuted) * size
    if limit is not None and total > limit:
        raise OutOfMemory(f"the key has {total} bytes, expected at most {limit}", path=path)
    whole = head.all(total)
    circuit = bytes(whole[relation.start : at if relation.end is None else relation.end])
    commitments = _commitments(path, partial(read_points, Group.G1), whole[at + _KEY_HEAD : columns], fixed)
    if subgroup:
        _check_subgroup(path, commitments, fixed)
    return ProverKey(
        profile,
        max_bit_len,
        k,
        relation.prefix + circuit,
        commitments[:fixed],
        commitments[fixed:],
        _columns(path, whole, columns, fixed, n, "fixed column"),
        _columns(path, whole, columns + 4 + fixed * size, permuted, n, "permuted column"),
        path,
    )


def write_prover_key(key: ProverKey) -> bytes:
    """The file of a prover key, compressed as those of its line are.

    Raises:
        UnsupportedFile: keys of this line have no such circuit.
    """
    profile, circuit_tag = key.profile, tag_of(key.circuit)
    tag = f"{_TAG_START}{circuit_tag}{_TAG_END}"
    if tag not in profile.prover_tags:
        raise UnsupportedFile(key.source, "circuit", f"no circuits '{circuit_tag}' in keys {profile.name}")
    body = Writer()
    if profile.states_max_bit_len:
        body.byte(key.max_bit_len)
    body.byte(key.k)
    if not profile.states_max_bit_len:
        body.sized(key.circuit)
    elif tag == profile.prover_tag:
        body.raw(key.circuit[len(bytes(Writer(circuit_tag))) :])
    else:
        body.byte(_GENERIC).sized(key.circuit)
    _write_key_head(body, key.k, len(key.fixed))
    body.raw(write_points(Group.G1, key.fixed_commitments))
    body.raw(write_points(Group.G1, key.permutation_commitments))
    for columns in (key.fixed, key.permutation):
        body.fixed(len(columns), 4, "big")
        for values in columns:
            body.fixed(len(values), 4, "big").raw(np.ascontiguousarray(values, dtype="<u8").tobytes())
    content: Buffer = body.data
    if profile.compressed_prover_keys:
        content = _compressed(content)
    return bytes(Writer(tag).sized(content))


_TAG_START, _TAG_END = "prover-key[v7](", ")"


class _Relation(NamedTuple):
    """Where a prover key's content has its circuit.

    Attributes:
        start: the place of its bytes.
        end: the place behind them; None: it does not say.
        prefix: what comes before them in the circuit's file.
    """

    start: int
    end: int | None
    prefix: bytes


class _Source:
    """A prover key's content: plain, or decompressed as far as was asked for.

    Attributes:
        path: the file's name for messages.
    """

    def __init__(self, content: memoryview, path: str) -> None:
        self.path = path
        self._stream = zlib.decompressobj(31) if bytes(content[:2]) == _GZIP else None
        self._rest: Buffer = b"" if self._stream is None else content
        self._have: Buffer = content if self._stream is None else b""

    def upto(self, count: int) -> Buffer:
        """All bytes so far: so many at least, or all that there are."""
        have = self._have
        if self._stream is not None and len(have) < count:
            # At least as many again, so that to ask for a little at a time costs no more than once for all.
            self._have = have = bytes(have) + self._inflate(max(count - len(have), len(have)))
        return have

    def all(self, total: int) -> memoryview:
        """The whole content.

        Raises:
            MalformedFile: it has not so many bytes.
        """
        possible = len(self._have) + _MOST_INFLATED * len(self._rest)
        if possible < total:
            found = "fewer" if self._rest else str(possible)
            self._fail(f"expected {total} bytes by its counts, found {found}")
        content = self.upto(total + 1)
        if len(content) != total:
            found = "more" if len(content) > total else str(len(content))
            self._fail(f"expected {total} bytes by its counts, found {found}")
        if self._stream is not None and not self._stream.eof:
            self._fail("the compressed data have no end")
        if self._stream is not None and self._stream.unused_data:
            self._fail(f"{len(self._stream.unused_data)} bytes behind the compressed data")
        return memoryview(content)

    def _inflate(self, count: int) -> bytes:
        assert self._stream is not None
        try:
            found = self._stream.decompress(self._rest, count)
        except zlib.error:
            self._fail("the compressed data are damaged")
        self._rest = self._stream.unconsumed_tail
        return found

    def _fail(self, problem: str) -> NoReturn:
        raise MalformedFile(self.path, "content", problem)


def _relation(head: _Source, profile: Profile, tag: str) -> tuple[int, int, _Relation]:
    """The largest bit length, k, and where the circuit is."""
    reader = Reader(head.upto(_PIECE), head.path)
    stated = _bits(reader) if profile.states_max_bit_len else None
    k = _log_rows(reader)
    max_bit_len = k - 1 if stated is None else stated
    circuit_tag = tag.removeprefix(_TAG_START).removesuffix(_TAG_END)
    prefix = bytes(Writer(circuit_tag))
    if stated is not None:
        if tag == profile.prover_tag:
            return max_bit_len, k, _Relation(reader.at, None, prefix)
        start = reader.at
        if reader.byte("circuit") != _GENERIC:
            reader.fail("circuit", "expected ff before a circuit with its tag", start)
    start, length = reader.at, reader.compact("circuit")
    if length > MAX_CIRCUIT:
        reader.fail("circuit", f"expected at most {MAX_CIRCUIT} bytes", start)
    begin = reader.at
    found = Reader(head.upto(begin + length), head.path, begin).view(length, "circuit")
    if bytes(found[: len(prefix)]) != prefix:
        reader.fail("circuit", f"expected one of '{circuit_tag}', as the key's tag says")
    return max_bit_len, k, _Relation(begin, begin + length, b"")


def _key_part(head: _Source, k: int, relation: _Relation) -> tuple[int, int, int]:
    """The place behind the circuit, and the numbers of fixed and of permuted columns.

    Neither the length of a circuit of the older line nor the number of permuted columns is written down:
    what follows them is looked for.
    """
    room = _KEY_HEAD + 2 * MAX_COLUMNS * G1_BYTES + 8
    if relation.end is not None:
        data = head.upto(relation.end + room)
        reader = Reader(data, head.path, relation.end)
        stated, fixed = _key_head(reader)
        if stated != k:
            reader.fail("k", f"expected {k} as before, found {stated}", relation.end + 1)
        permuted = _permuted(data, relation.end, k, fixed)
        if permuted is None:
            reader.fail("fixed columns", f"no {fixed} columns of 2^{k} values behind the commitments")
        return relation.end, fixed, permuted
    pattern = re.compile(re.escape(bytes([_KEY_VERSION, k])) + rb"[\x00-\xff][\x00-\x02]\x00\x00")
    at, tries = relation.start, 0
    while at - relation.start <= MAX_CIRCUIT and tries < _MOST_TRIES:
        data = head.upto(at + room)
        found = pattern.search(data, at)
        if found is None:
            if len(head.upto(len(data) + _PIECE)) == len(data):
                break
            at = max(at, len(data) - _KEY_HEAD + 1)
            continue
        at, tries = found.start(), tries + 1
        data = head.upto(at + room)
        fixed = int.from_bytes(data[at + 2 : at + _KEY_HEAD], "little")
        permuted = _permuted(data, at, k, fixed)
        if permuted is not None:
            return at, fixed, permuted
        at += 1
    raise MalformedFile(head.path, "content", "expected a circuit, and commitments and columns behind it")


def _permuted(data: Buffer, at: int, k: int, fixed: int) -> int | None:
    """The number of permuted columns, for a key part at a place; None: there is none."""
    if not 1 <= fixed <= MAX_COLUMNS:
        return None
    # Behind the commitments are a number of columns and the number of values of the first one.
    mark = fixed.to_bytes(4, "big") + (1 << k).to_bytes(4, "big")
    start = at + _KEY_HEAD + G1_BYTES * (fixed + 1)
    count = min(MAX_COLUMNS, (len(data) - start - len(mark)) // G1_BYTES + 1)
    if count <= 0:
        return None
    raw = np.frombuffer(data, dtype=np.uint8)[start:]
    places = np.lib.stride_tricks.as_strided(raw, (count, len(mark)), (G1_BYTES, 1), writeable=False)
    matches = np.flatnonzero((places == np.frombuffer(mark, dtype=np.uint8)).all(axis=1))
    return int(matches[0]) + 1 if len(matches) else None


def _columns(path: str, whole: memoryview, at: int, count: int, n: int, what: str) -> Words:
    stated = int.from_bytes(whole[at : at + 4], "big")
    if stated != count:
        raise MalformedFile(path, f"{what}s", f"expected {count} as there are commitments, found {stated}")
    size = 4 + SCALAR_BYTES * n
    rows = np.frombuffer(whole, dtype=np.uint8, count=count * size, offset=at + 4).reshape(count, size)
    lengths = rows[:, :4].copy().view(">u4").reshape(-1)
    if (lengths != n).any():
        column = int(np.argmax(lengths != n))
        raise MalformedFile(path, f"{what} {column}", f"expected {n} values, found {lengths[column]}")
    values = np.ascontiguousarray(rows[:, 4:]).view("<u8").reshape(count, n, _LIMBS)
    bad = devices.first_not_reduced(BLS12_381.scalar, values)
    if bad >= 0:
        column, row = divmod(bad, n)
        raise MalformedFile(
            path, f"{what} {column}", f"row {row} is not below the prime of {BLS12_381.scalar.name}"
        )
    return values


def _compressed(content: Buffer) -> bytes:
    deflate = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    data = deflate.compress(content) + deflate.flush()
    end = zlib.crc32(content).to_bytes(4, "little") + (len(content) & 0xFFFFFFFF).to_bytes(4, "little")
    return _GZIP_HEADER + data + end
