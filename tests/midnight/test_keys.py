"""Keys of both lines: official files byte for byte, and one line for each damage."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gpuprover.curves import BLS12_381, Group
from gpuprover.errors import MalformedFile, OutOfMemory, ProverError, UnsupportedFile
from gpuprover.limbs import points_to_words
from gpuprover.midnight import keys
from gpuprover.midnight.architecture import Architecture
from gpuprover.midnight.encoding import Writer, tagged
from gpuprover.midnight.keys import (
    read_prover_key,
    read_verifier_key,
    write_prover_key,
    write_verifier_key,
)
from gpuprover.midnight.profile import PROFILES, V6, V7
from tests.support.midnight import SMALL, data_folder

PROVER = (SMALL / "increment.prover").read_bytes()
V6_KEY, V7_KEY = ((SMALL / f"{name}.verifier").read_bytes() for name in ("hello", "t8c"))
V6_TAG, V7_TAG = "verifier-key[v6]", "verifier-key[v7]"
PROVER_TAG, PROVER_V7_TAG = V6.prover_tag, V7.prover_tag
FOLDERS = ("data", "keys", "data08")


def content(data: bytes, tag: str) -> bytes:
    """What is behind tag and length."""
    _, reader = tagged(data, [tag], "a file")
    return bytes(reader.sized("content"))


def wrapped(body: bytes, tag: str) -> bytes:
    return bytes(Writer(tag).sized(body))


# Verifier keys ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(SMALL.glob("*.verifier")), ids=lambda path: path.stem)
def test_verifier_keys_byte_for_byte(path: Path) -> None:
    key = read_verifier_key(path.read_bytes(), str(path), subgroup=True)
    assert write_verifier_key(key) == path.read_bytes()


@pytest.mark.parametrize("folder", FOLDERS)
def test_all_verifier_keys_byte_for_byte(folder: str) -> None:
    paths = sorted(data_folder(folder).glob("*.verifier"))
    assert paths
    for path in paths:
        assert write_verifier_key(read_verifier_key(path.read_bytes(), str(path))) == path.read_bytes()


def test_what_verifier_keys_say() -> None:
    old, new = read_verifier_key(V6_KEY, "old"), read_verifier_key(V7_KEY, "new")
    assert (old.profile, new.profile) == (V6, V7)
    assert old.architecture == Architecture(frozenset({"poseidon"}), 1)
    assert new.architecture == Architecture(frozenset(), 4)
    assert (old.k, old.max_bit_len, old.n_public) == (6, 8, 13)
    assert (new.k, new.max_bit_len, new.n_public) == (9, 8, 7)
    assert (old.fixed.shape, old.permutation.shape) == ((19, 12), (8, 12))
    assert (new.fixed.shape, new.permutation.shape) == ((17, 12), (8, 12))
    assert (old.source, new.source) == ("old", "new")


def test_chips_have_their_places() -> None:
    for data, profile in ((V6_KEY, V6), (V7_KEY, V7)):
        key = read_verifier_key(data)
        for i, chip in enumerate(profile.chips):
            other = replace(key, architecture=Architecture(frozenset({chip}), 1))
            written = content(write_verifier_key(other), profile.verifier_tag)
            assert list(written[4 : 4 + len(profile.chips)]) == [
                int(j == i) for j in range(len(profile.chips))
            ]
            assert read_verifier_key(write_verifier_key(other)).architecture == other.architecture
    old = read_verifier_key(V6_KEY)
    with pytest.raises(UnsupportedFile, match=r"no p256 in keys 'verifier-key\[v6\]'"):
        write_verifier_key(replace(old, architecture=Architecture(frozenset({"p256"}), 1)))


def _at(place: int, *values: int) -> Callable[[bytes], bytes]:
    return lambda body: body[:place] + bytes(values) + body[place + len(values) :]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_at(0, 2), "format version: expected 1 for 'verifier-key[v6]', found 2"),
        (_at(5, 2), "architecture, poseidon: expected 0 or 1, at byte 5"),
        (_at(15, 0), "range columns: expected 1 to 16, at byte 15"),
        (_at(16, 0), "largest bit length: expected 1 to 31, found 0, at byte 16"),
        (_at(17, 64), "public inputs: expected fewer than the 2^6 rows, found 64, at byte 27"),
        (_at(21, 4), "key version: expected 3, found 4, at byte 21"),
        (_at(22, 0), "k: expected 1 to 25, found 0, at byte 22"),
        (_at(22, 26), "k: expected 1 to 25, found 26, at byte 22"),
        (_at(23, 0), "fixed columns: expected 1 to 512, found 0, at byte 23"),
        (_at(26, 1), "fixed columns: expected 1 to 512, found 16777235, at byte 23"),
        (_at(23, 27), "commitments: expected 27 points of 48 bytes and others, found 1296 bytes, at byte 27"),
        (lambda body: body[:-1], "commitments: expected 19 points of 48 bytes and others, found 1295 bytes"),
        (lambda body: body[:20], "public inputs: expected 4 bytes, found 3, at byte 17"),
        (_at(27 + 48 * 18, 0), "commitment of fixed column 18: the point is not compressed"),
        (_at(27 + 48 * 20, 0x9F), "commitment of permuted column 1: a coordinate is not below"),
    ],
)
def test_damaged_verifier_keys(change: Callable[[bytes], bytes], message: str) -> None:
    data = wrapped(change(content(V6_KEY, V6_TAG)), V6_TAG)
    with pytest.raises(ProverError) as caught:
        read_verifier_key(data, "a key")
    assert caught.value.message.startswith(f"a key: {message}"), caught.value.message
    assert caught.value.role == "verification key"


def test_the_newer_line_says_k_twice() -> None:
    data = wrapped(_at(18, 8)(content(V7_KEY, V7_TAG)), V7_TAG)
    with pytest.raises(MalformedFile, match="k: expected 8 as before, found 9, at byte 24"):
        read_verifier_key(data)
    with pytest.raises(UnsupportedFile, match=r"format version: expected 2 .*, found 1"):
        read_verifier_key(wrapped(_at(0, 1)(content(V7_KEY, V7_TAG)), V7_TAG))


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        (V6_KEY.replace(b"v6", b"v5"), UnsupportedFile, "got 'midnight:verifier-key[v5]:'"),
        (PROVER, UnsupportedFile, "got 'midnight:prover-key[v7](ir-source[v2]):'"),
        (V6_KEY[len("midnight:") :], MalformedFile, "without a tag"),
        (V6_KEY + b"\0", MalformedFile, "verifier key: 1 bytes behind its end"),
        (V6_KEY[:-1], MalformedFile, "key: expected 1323 bytes, found 1322"),
        (wrapped(bytes(50_001), V6_TAG), MalformedFile, "length: expected at most 50000 bytes"),
    ],
)
def test_other_files_as_verifier_keys(data: bytes, kind: type[ProverError], message: str) -> None:
    with pytest.raises(kind) as caught:
        read_verifier_key(data, "a key")
    assert message in caught.value.message


def outside() -> np.ndarray:
    """A point of the curve outside the subgroup."""
    x = 4
    q = BLS12_381.q
    y = pow(x**3 + BLS12_381.b, (q + 1) // 4, q)
    assert (y * y - x**3 - BLS12_381.b) % q == 0
    return points_to_words(BLS12_381, Group.G1, [(x, y)])[0]


def test_points_outside_the_subgroup_are_found_on_request() -> None:
    key = read_verifier_key(V6_KEY)
    fixed = key.fixed.copy()
    fixed[3] = outside()
    data = write_verifier_key(replace(key, fixed=fixed))
    assert np.array_equal(read_verifier_key(data).fixed, fixed)
    with pytest.raises(MalformedFile, match="commitment of fixed column 3: not in the subgroup"):
        read_verifier_key(data, subgroup=True)


# Prover keys -----------------------------------------------------------------------------------


def same_but_for_compression(ours: bytes, theirs: bytes) -> bool:
    """Whether two prover keys have the same tag and, decompressed, the same content."""
    tags = [tag for profile in PROFILES for tag in profile.prover_tags]
    (tag, a), (other, b) = tagged(ours, tags, "ours"), tagged(theirs, tags, "theirs")
    first, second = (bytes(reader.sized("content")) for reader in (a, b))
    if first[:2] == b"\x1f\x8b":
        first, second = gzip.decompress(first), gzip.decompress(second)
    return tag == other and first == second


def belong_together(path: Path) -> None:
    """A prover key, beside the circuit's file and the verifier key; and written again."""
    data = path.read_bytes()
    key = read_prover_key(data, str(path))
    verifier = read_verifier_key(path.with_suffix(".verifier").read_bytes())
    assert key.circuit == path.with_suffix(".bzkir").read_bytes()
    assert key.profile is verifier.profile
    assert (key.k, key.max_bit_len) == (verifier.k, verifier.max_bit_len)
    assert np.array_equal(key.fixed_commitments, verifier.fixed)
    assert np.array_equal(key.permutation_commitments, verifier.permutation)
    assert key.fixed.shape == (len(verifier.fixed), 1 << key.k, 4)
    assert key.permutation.shape == (len(verifier.permutation), 1 << key.k, 4)
    assert same_but_for_compression(write_prover_key(key), data)


@pytest.mark.parametrize("path", sorted(SMALL.glob("*.prover")), ids=lambda path: path.stem)
def test_prover_keys(path: Path) -> None:
    belong_together(path)


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS)
def test_all_prover_keys(folder: str) -> None:
    paths = sorted(data_folder(folder).glob("*.prover"))
    assert paths
    for path in paths:
        belong_together(path)


def test_prover_keys_of_the_newer_line_byte_for_byte() -> None:
    for path in sorted(data_folder("data08").glob("*.prover")):
        assert write_prover_key(read_prover_key(path.read_bytes(), str(path))) == path.read_bytes()


CONTENT = gzip.decompress(content(PROVER, PROVER_TAG))
RELATION = 2, len(CONTENT) - 6 - 96 * 27 - 8 - 27 * (4 + 32 * 32)
"""Where the circuit is in the content: increment has k = 5, 19 fixed and 8 permuted columns."""
HEAD = RELATION[1]
COLUMNS = HEAD + 6 + 96 * 27


def packed(body: bytes) -> bytes:
    return wrapped(gzip.compress(body, 1), PROVER_TAG)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_at(0, 0), "largest bit length: expected 1 to 31, found 0, at byte 0"),
        (_at(1, 26), "k: expected 1 to 25, found 26, at byte 1"),
        (_at(1, 6), "content: expected a circuit, and commitments and columns behind it"),
        (_at(HEAD, 4), "content: expected a circuit, and commitments and columns behind it"),
        (_at(HEAD + 2, 20), "content: expected a circuit, and commitments and columns behind it"),
        (_at(COLUMNS + 3, 20), "content: expected a circuit, and commitments and columns behind it"),
        (lambda body: body[:-1], "content: expected 30407 bytes by its counts, found"),
        (lambda body: body + b"\0", "content: expected 30407 bytes by its counts, found more"),
        (_at(HEAD + 6, 0x20), "commitment of fixed column 0: flags in an uncompressed coordinate"),
        (_at(HEAD + 6 + 96 * 20 + 95, 0), "commitment of permuted column 1: not on the curve"),
        (_at(COLUMNS + 4 + 1028 * 2 + 3, 31), "fixed column 2: expected 32 values, found 31"),
        (_at(COLUMNS + 4 + 1028 * 2 + 4 + 32 * 5 + 31, 255), "fixed column 2: row 5 is not below the prime"),
        (
            _at(COLUMNS + 4 + 1028 * 19 + 3, 9),
            "permuted columns: expected 8 as there are commitments, found 9",
        ),
        (_at(len(CONTENT) - 1, 255), "permuted column 7: row 31 is not below the prime"),
    ],
)
def test_damaged_prover_keys(change: Callable[[bytes], bytes], message: str) -> None:
    with pytest.raises(ProverError) as caught:
        read_prover_key(packed(change(CONTENT)), "a key")
    assert caught.value.message.startswith(f"a key: {message}"), caught.value.message
    assert caught.value.role == "key"


def test_damaged_compression() -> None:
    body = content(PROVER, PROVER_TAG)
    for damaged, message in (
        (body[:-1], "the compressed data have no end"),
        (body[:-20], "bytes by its counts, found"),
        (body[:-8] + b"\0" + body[-7:], "the compressed data are damaged"),
        (body + b"more", "4 bytes behind the compressed data"),
        (body[:2] + b"\xff" + body[3:], "the compressed data are damaged"),
    ):
        with pytest.raises(MalformedFile, match=message):
            read_prover_key(wrapped(damaged, PROVER_TAG))


def test_a_bomb_is_not_decompressed() -> None:
    # 24 MB of zeros: a circuit without end, and columns without end.
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    zeros = bytes(1 << 20)
    data = (
        packer.compress(CONTENT[:HEAD]) + b"".join(packer.compress(zeros) for _ in range(24)) + packer.flush()
    )
    with pytest.raises(MalformedFile, match="expected a circuit, and commitments"):
        read_prover_key(wrapped(data, PROVER_TAG))
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    data = packer.compress(CONTENT) + b"".join(packer.compress(zeros) for _ in range(24)) + packer.flush()
    with pytest.raises(MalformedFile, match="content: expected 30407 bytes by its counts, found more"):
        read_prover_key(wrapped(data, PROVER_TAG))
    # Places where a key could begin, and does not, one after the other.
    data = CONTENT[:2] + b"\3\5\x13\0\0\0" * (1 << 16) + CONTENT[HEAD:]
    with pytest.raises(MalformedFile, match="expected a circuit, and commitments"):
        read_prover_key(packed(data))
    # 2^25 rows by its counts, in a file that cannot hold them.
    large = bytearray(CONTENT)
    large[1] = large[HEAD + 1] = 25
    large[COLUMNS + 4 : COLUMNS + 8] = struct.pack(">I", 1 << 25)
    with pytest.raises(MalformedFile, match=r"content: expected [0-9]+ bytes by its counts, found 30407"):
        read_prover_key(packed(bytes(large)))


def test_a_limit_is_kept() -> None:
    assert read_prover_key(PROVER, limit=len(CONTENT)).k == 5
    with pytest.raises(OutOfMemory, match="the key has 30407 bytes, expected at most 30406"):
        read_prover_key(PROVER, "a key", limit=len(CONTENT) - 1)


def small_key(circuit: bytes, profile=V6) -> keys.ProverKey:  # type: ignore[no-untyped-def]
    key = read_prover_key(PROVER)
    return replace(key, profile=profile, circuit=circuit, max_bit_len=8 if profile is V6 else key.k - 1)


@pytest.mark.parametrize(
    ("circuit", "profile"),
    [
        (b"midnight:ir-source[v2-generic]:" + b"\1abc", V6),
        (b"midnight:ir-source[v2]:" + b"\3\5\0\0\0\3\5\x13\0\0\0" * 9, V6),
        (b"midnight:ir-source[v3-generic]:" + b"\3\5\x13\0\0\0" * 99, V7),
        (b"midnight:ir-source[v2]:" + bytes(200_000), V6),
        (b"midnight:ir-source[v3-generic]:" + bytes(200_000), V7),
    ],
)
def test_circuits_of_every_kind_and_length(circuit: bytes, profile) -> None:  # type: ignore[no-untyped-def]
    key = small_key(circuit, profile)
    data = write_prover_key(key)
    again = read_prover_key(data)
    assert (again.circuit, again.profile) == (circuit, profile)
    assert (again.k, again.max_bit_len) == (key.k, key.max_bit_len)
    for name in ("fixed", "permutation", "fixed_commitments", "permutation_commitments"):
        assert np.array_equal(getattr(again, name), getattr(key, name))
    assert write_prover_key(again) == data


def test_keys_of_the_newer_line_may_be_compressed() -> None:
    data = write_prover_key(small_key(b"midnight:ir-source[v3-generic]:abc", V7))
    plain = content(data, PROVER_V7_TAG)
    again = read_prover_key(wrapped(gzip.compress(plain), PROVER_V7_TAG))
    assert write_prover_key(again) == data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_at(0, 26), "k: expected 1 to 25, found 26, at byte 0"),
        (_at(1, 3, 255, 255, 255, 255), "circuit: expected at most 16777216 bytes, at byte 1"),
        (_at(2, ord("M")), "circuit: expected one of 'ir-source[v3-generic]', as the key's tag says"),
        (_at(36, 4), "key version: expected 3, found 4, at byte 36"),
        (_at(37, 6), "k: expected 5 as before, found 6, at byte 37"),
        (_at(38, 20), "fixed columns: no 20 columns of 2^5 values behind the commitments"),
        (lambda body: body[:-1], "content: expected"),
        (lambda body: body + b"\0", "content: expected"),
    ],
)
def test_damaged_keys_of_the_newer_line(change: Callable[[bytes], bytes], message: str) -> None:
    data = write_prover_key(small_key(b"midnight:ir-source[v3-generic]:abc", V7))
    with pytest.raises(ProverError) as caught:
        read_prover_key(wrapped(change(content(data, PROVER_V7_TAG)), PROVER_V7_TAG), "a key")
    assert caught.value.message.startswith(f"a key: {message}"), caught.value.message


def test_circuits_that_keys_of_a_line_do_not_have() -> None:
    with pytest.raises(UnsupportedFile, match=r"circuit: no circuits 'ir-source\[v3-generic\]' in keys v6"):
        write_prover_key(small_key(b"midnight:ir-source[v3-generic]:"))
    generic = V6.prover_tags[1]
    with pytest.raises(MalformedFile, match="circuit: expected ff before a circuit with its tag, at byte 2"):
        read_prover_key(wrapped(content(PROVER, PROVER_TAG), generic))


def test_points_of_prover_keys_outside_the_subgroup() -> None:
    key = read_prover_key(PROVER, subgroup=True)
    commitments = key.permutation_commitments.copy()
    commitments[2] = outside()
    data = write_prover_key(replace(key, permutation_commitments=commitments))
    with pytest.raises(MalformedFile, match="commitment of permuted column 2: not in the subgroup"):
        read_prover_key(data, subgroup=True)


def test_reprs_are_short() -> None:
    assert len(repr(read_prover_key(PROVER))) < 2000
    assert "fixed=" not in repr(read_verifier_key(V6_KEY))
