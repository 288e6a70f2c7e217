"""The ledger's format: every value's one form, and everything else refused in one line."""

from __future__ import annotations

import random

import pytest

from gpuprover.curves import BLS12_381
from gpuprover.errors import MalformedFile, UnsupportedFile
from gpuprover.midnight.encoding import Alternatives, Atom, Reader, Writer, tag_of, tagged

R = BLS12_381.r


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"),
        (1, "04"),
        (63, "fc"),
        (64, "0101"),
        (16383, "fdff"),
        (16384, "02000100"),
        (2**30 - 1, "feffffff"),
        (2**30, "0300000040"),
        (2**32 - 1, "03ffffffff"),
        (2**64 - 1, "13" + "ff" * 8),
        (2**248, "73" + "00" * 31 + "01"),
    ],
)
def test_compact_integers(value: int, encoded: str) -> None:
    assert bytes(Writer().compact(value)).hex() == encoded
    reader = Reader(bytes.fromhex(encoded), "a file")
    assert reader.compact("value", 256) == value
    reader.end("value")


def test_compact_integers_of_every_length(rng: random.Random) -> None:
    for bits in range(1, 257):
        value = rng.getrandbits(bits) | 1 << (bits - 1)
        reader = Reader(bytes(Writer().compact(value)), "a file")
        assert reader.compact("value", bits) == value
        reader.at = 0
        with pytest.raises(
            MalformedFile, match=rf"value: expected an integer below 2\^{bits - 1}, at byte 0"
        ):
            reader.compact("value", bits - 1)


@pytest.mark.parametrize(
    "encoded",
    [
        "0100",
        "fd00",
        "02000000",
        "fe000000",
        "03ffffff3f",
        "03ffffff00",
        "0700000040" + "00",
        "0b00000000ff00",
    ],
)
def test_longer_forms_are_refused(encoded: str) -> None:
    with pytest.raises(MalformedFile, match="value: an integer in more bytes than it needs, at byte 0"):
        Reader(bytes.fromhex(encoded), "a file").compact("value", 256)


@pytest.mark.parametrize("encoded", ["", "01", "0200", "03ffff", "73" + "00" * 31])
def test_short_integers_are_refused(encoded: str) -> None:
    with pytest.raises(MalformedFile, match=r"a file: value: expected [0-9]+ bytes?, found"):
        Reader(bytes.fromhex(encoded), "a file").compact("value", 256)


@pytest.mark.parametrize("value", [-1, 1 << 536])
def test_integers_that_no_form_has(value: int) -> None:
    with pytest.raises(ValueError, match="at most 67 bytes"):
        Writer().compact(value)


def test_scalars_are_below_r() -> None:
    assert Reader(bytes(Writer().compact(R - 1)), "a file").scalar("x") == R - 1
    with pytest.raises(MalformedFile, match="x: a scalar is not below the prime") as caught:
        Reader(bytes(Writer().compact(R)), "a file").scalar("x")
    assert str(R) not in caught.value.message


def test_fields_in_their_order() -> None:
    writer = Writer("a-tag").byte(7).fixed(0x1234, 2).fixed(0x1234, 4, "big").boolean(True)
    writer.scalars([5, R - 1]).option(None, writer.compact).option(9, writer.compact).string("näme").sized(
        b"xy"
    )
    tag, reader = tagged(bytes(writer), ["other", "a-tag"], "a file")
    assert tag == "a-tag"
    assert (reader.byte("b"), reader.fixed(2, "f"), reader.fixed(4, "f", "big")) == (7, 0x1234, 0x1234)
    assert reader.boolean("yes")
    assert reader.vector(reader.scalar, "scalars") == (5, R - 1)
    assert reader.option(reader.compact, "none") is None
    assert reader.option(reader.compact, "nine") == 9
    assert reader.string("name") == "näme"
    assert bytes(reader.sized("content")) == b"xy"
    reader.end("all")


@pytest.mark.parametrize(
    ("encoded", "read", "problem"),
    [
        ("02", "boolean", "expected 0 or 1"),
        ("0c41", "string", "expected 3 bytes, found 1"),
        ("08ff41", "string", "expected text in UTF-8"),
        ("04", "count", "expected at most 0 items"),
        ("c1", "alignment", "a sequence of one segment"),
        ("c5", "alignment", "expected at most 0 segments"),
        ("42", "alignment", "expected an atom"),
        ("c2c000", "alignment", "found a sequence"),
        ("8500", "alignment", "expected at most 1 alternatives"),
        ("81" * 40, "alignment", "deep"),
        ("2100", "alignment", "more bytes than it needs"),
        ("208100", "alignment", "more bytes than it needs"),
        ("20", "alignment", "expected 1 byte, found none"),
    ],
)
def test_damaged_fields(encoded: str, read: str, problem: str) -> None:
    with pytest.raises(MalformedFile, match=f"a file: part: .*{problem}.*, at byte [0-9]+$"):
        getattr(Reader(bytes.fromhex(encoded), "a file"), read)("part")


def test_bytes_behind_the_end() -> None:
    with pytest.raises(MalformedFile, match="key: 2 bytes behind its end, at byte 0"):
        Reader(b"ab", "a file").end("key")


FOUR = (Atom("bytes", 32),) * 4


@pytest.mark.parametrize(
    ("alignment", "encoded"),
    [
        (FOUR, "c42001200120012001"),
        ((), "c0"),
        ((Atom("field"),), "41"),
        ((Atom("compress"),), "40"),
        ((Atom("bytes", 31),), "1f"),
        ((Atom("bytes", 4096),), "208001"),
        ((Atom("bytes", (1 << 20) - 1),), "3fffff"),
        ((Alternatives((FOUR, (Atom("field"),))), Atom("bytes", 1)), "c282c4200120012001200141" + "01"),
    ],
)
def test_alignments(alignment: tuple, encoded: str) -> None:
    assert bytes(Writer().alignment(alignment)).hex() == encoded
    reader = Reader(bytes.fromhex(encoded), "a file")
    assert reader.alignment("alignment") == alignment
    reader.end("alignment")


def test_lengths_that_alignments_cannot_have() -> None:
    with pytest.raises(ValueError, match=r"below 2\^20"):
        Writer().alignment((Atom("bytes", 1 << 20),))


@pytest.mark.parametrize(
    ("data", "tag"),
    [
        (b"midnight:proof[v5]:abc", "proof[v5]"),
        (b"midnight:", None),
        (b"midnight:no end", None),
        (b"midnight:" + b"x" * 300 + b":", None),
        (b"midnight:\xff:", None),
        (b"midnight:\n:", None),
        (b"", None),
        (b"Midnight:a:", None),
    ],
)
def test_tags(data: bytes, tag: str | None) -> None:
    assert tag_of(data) == tag


def test_other_tags_are_named() -> None:
    with pytest.raises(UnsupportedFile) as caught:
        tagged(b"midnight:verifier-key[v5]:", ["verifier-key[v6]", "verifier-key[v7]"], "a file")
    assert caught.value.message == (
        "a file: tag: expected header tag 'midnight:verifier-key[v6]:' or 'midnight:verifier-key[v7]:', "
        "got 'midnight:verifier-key[v5]:'"
    )
    for data, got in ((b"", "nothing"), (b"secret", "6 bytes without a tag")):
        with pytest.raises(MalformedFile, match=f"got {got}$"):
            tagged(data, ["a"], "a file")
