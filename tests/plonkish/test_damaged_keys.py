"""Damaged keys of PLONK and FFLONK: every section, every kind of field.

A key is refused when it is loaded, with its file and the section, or it makes no proof that does not hold.
What is inside of its ranges and still wrong, only a look at the whole key finds (``zkey check``); a proof is
verified before anybody gets it.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

import gpuprover
from gpuprover.curves import BN254
from gpuprover.errors import (
    MalformedFile,
    ProverError,
    UnsatisfiedWitness,
    UnsupportedFile,
    WitnessMismatch,
)
from gpuprover.systems.fflonk import key as fflonk
from gpuprover.systems.plonk import key as plonk
from tests.support.containers import edit, pack, unpack
from tests.support.plonk import sample

MODULES: dict[str, ModuleType] = {"plonk": plonk, "fflonk": fflonk}
SCALAR, POINT = 32, 64
q, r = (prime.to_bytes(32, "little") for prime in (BN254.q, BN254.r))

both = pytest.mark.parametrize("protocol", MODULES)


class Layout(NamedTuple):
    """Where what lies in a key.

    Attributes:
        header: name -> offset and size of each field of section 2.
        polynomials: sections of polynomials whose coefficients are read -> how many each has.
        ignored: sections of which only the size counts.
    """

    header: dict[str, tuple[int, int]]
    polynomials: dict[int, int]
    ignored: tuple[int, ...]
    powers: int


def fields(*sizes: tuple[str, int]) -> dict[str, tuple[int, int]]:
    found, at = {}, 0
    for name, size in sizes:
        found[name] = at, size
        at += size
    return found


COUNTS = ("signals", "public", "domain", "additions", "gates")
PRIMES = (("base size", 4), ("q", 32), ("scalar size", 4), ("r", 32))
COMMON = (*PRIMES, *((name, 4) for name in COUNTS), ("k1", SCALAR), ("k2", SCALAR))
LAYOUTS = {
    "plonk": Layout(
        fields(*COMMON, *((name, POINT) for name in plonk.COMMITMENTS), ("X_2", 2 * POINT)),
        {section: len(names) for section, names in plonk.POLYNOMIALS.items()},
        (plonk.LAGRANGE,),
        plonk.POWERS,
    ),
    "fflonk": Layout(
        fields(*COMMON, *((w, SCALAR) for w in ("w3", "w4", "w8", "wr")), ("X_2", 2 * POINT), ("C0", POINT)),
        {section: len(names) for section, names in fflonk.POLYNOMIALS.items()},
        (fflonk.LAGRANGE, fflonk.C0),
        fflonk.POWERS,
    ),
}


@pytest.fixture
def refused(protocol: str, tmp_path: Path) -> Callable[..., ProverError]:
    """Asserts that a key is refused with its path and the section, if one is named; gives the error."""

    def check(data: bytes, section: int | None = None) -> ProverError:
        path = tmp_path / "damaged.zkey"
        path.write_bytes(data)
        with pytest.raises((MalformedFile, UnsupportedFile)) as caught:
            MODULES[protocol].load_key(path)
        error = caught.value
        assert (error.path, error.role) == (str(path), "key")
        assert error.part.startswith("section " if section is None else f"section {section} ("), error
        assert error.message.isprintable()
        return error

    return check


def key_of(protocol: str, name: str = "adds") -> bytes:
    return sample(name, protocol).key.read_bytes()


def changed(data: bytes, section: int, at: int, new: bytes) -> bytes:
    def change(content: bytearray) -> None:
        content[at : at + len(new)] = new

    return edit(data, section, change)


def flipped(data: bytes, section: int, at: int, bit: int) -> bytes:
    def change(content: bytearray) -> None:
        content[at] ^= 1 << bit

    return edit(data, section, change)


# Refused when loaded ------------------------------------------------------------------------------


@both
def test_sections_of_another_size(protocol: str, refused: Callable[..., ProverError]) -> None:
    data = key_of(protocol)
    magic, version, sections = unpack(data)
    for i, (number, content) in enumerate(sections):
        short = (content[:-1], content[: len(content) // 2], b"") if content else ()
        for other in (*short, content + b"\0", content + bytes(64)):
            if (number, other) == (fflonk.C0, content[: len(content) // 2]) and protocol == "fflonk":
                continue  # as many coefficients as a set-up writes where the highest are 0
            refused(edit(data, number, lambda _, other=other: other), number)
        refused(pack(magic, version, sections[:i] + sections[i + 1 :]), number)
        refused(pack(magic, version, [*sections, (number, content)]), number)


@both
def test_truncated_files(protocol: str, tmp_path: Path) -> None:
    data, path = key_of(protocol, "one-gate"), tmp_path / "truncated.zkey"
    for size in range(0, len(data), 61):
        path.write_bytes(data[:size])
        with pytest.raises(MalformedFile) as caught:
            MODULES[protocol].load_key(path)
        assert caught.value.path == str(path)


@both
def test_bits_of_every_field_of_the_header(protocol: str, refused: Callable[..., ProverError]) -> None:
    """But for counts that fit to the sections, and k1 and k2, whose values are free."""
    data, layout = key_of(protocol, "duplicates"), LAYOUTS[protocol]
    header = dict(unpack(data)[2])[2]
    assert sum(size for _, size in layout.header.values()) == len(header)
    accepted = set()
    for name, (start, size) in layout.header.items():
        for at in range(start, start + size, max(1, size // 8)):
            damaged = flipped(data, 2, at, at % 8)
            try:
                MODULES[protocol].load_key(damaged)
            except ProverError:
                refused(damaged)
            else:
                accepted.add(name)
    assert accepted <= {"signals", "public", "k1", "k2"}


@both
def test_counts_that_fit_to_nothing(protocol: str, refused: Callable[..., ProverError]) -> None:
    data, layout = key_of(protocol), LAYOUTS[protocol]
    header = dict(unpack(data)[2])[2]
    for name in COUNTS:
        at, _ = layout.header[name]
        (old,) = struct.unpack_from("<I", header, at)
        for count in {0, old // 2, old - 1, old + 1, 2 * old, 1 << 31, 2**32 - 1} - {old}:
            damaged = changed(data, 2, at, struct.pack("<I", count))
            # More signals, and none public in place of one, fit to the sections.
            if (name == "signals" and count > old) or (name, old, count) == ("public", 1, 0):
                MODULES[protocol].load_key(damaged)
            else:
                refused(damaged)


@both
def test_values_of_the_header_out_of_range(protocol: str, refused: Callable[..., ProverError]) -> None:
    data, layout = key_of(protocol), LAYOUTS[protocol]
    for name, (at, size) in layout.header.items():
        if size == SCALAR and name not in ("q", "r"):
            for value in (r, b"\xff" * SCALAR, bytes(SCALAR)):
                error = refused(changed(data, 2, at, value), 2)
                assert name in error.message
        elif size >= POINT:
            for value in (q, b"\xff" * SCALAR):
                for coordinate in range(at, at + size, SCALAR):
                    error = refused(changed(data, 2, coordinate, value), 2)
                    assert name in error.message


@both
def test_wires_and_additions_out_of_range(protocol: str, refused: Callable[..., ProverError]) -> None:
    data, layout = key_of(protocol), LAYOUTS[protocol]
    header = dict(unpack(data)[2])[2]
    signals, n_public, _, additions, gates = (
        struct.unpack_from("<I", header, layout.header[name][0])[0] for name in COUNTS
    )
    for section in (4, 5, 6):
        for row in (0, n_public, gates - 1):
            for signal in (signals, 2**31, 2**32 - 1):
                refused(changed(data, section, 4 * row, struct.pack("<I", signal)), section)
        refused(changed(data, section, 0, struct.pack("<I", 2)), section)  # a public signal's row
    record = 8 + 2 * SCALAR
    for i in (0, additions - 1):
        own = signals - additions + i
        for at in (0, 4):
            for signal in (own, own + 1, 2**32 - 1):
                refused(changed(data, 3, record * i + at, struct.pack("<I", signal)), 3)
        for at in (8, 8 + SCALAR):
            for value in (r, b"\xff" * SCALAR):
                refused(changed(data, 3, record * i + at, value), 3)


@both
def test_coefficients_and_powers_out_of_range(protocol: str, refused: Callable[..., ProverError]) -> None:
    data, layout = key_of(protocol), LAYOUTS[protocol]
    n = struct.unpack_from("<I", dict(unpack(data)[2])[2], layout.header["domain"][0])[0]
    for section, count in layout.polynomials.items():
        for i in range(count):
            for row in (0, n - 1):
                at = SCALAR * (5 * n * i + row)
                for value in (r, b"\xff" * SCALAR):
                    refused(changed(data, section, at, value), section)
    refused(changed(data, layout.powers, 0, bytes(POINT)), layout.powers)
    refused(flipped(data, layout.powers, 3, 1), layout.powers)


@both
def test_protocols_are_not_mistaken(protocol: str, refused: Callable[..., ProverError]) -> None:
    for number in (0, 1, 3, 2 if protocol == "fflonk" else 10, 2**32 - 1):
        refused(changed(key_of(protocol), 1, 0, struct.pack("<I", number)), 1)


# Refused by a proof's verification -----------------------------------------------------------------


def in_range(protocol: str) -> Iterator[tuple[str, bytes, bool]]:
    """(what is changed, a key with it, whether it can matter), where no range is left."""
    data, layout = key_of(protocol, "duplicates"), LAYOUTS[protocol]
    sections = dict(unpack(data)[2])
    n = struct.unpack_from("<I", sections[2], layout.header["domain"][0])[0]
    yield "fewer public signals", changed(data, 2, layout.header["public"][0], bytes(4)), True
    yield "more signals", flipped(data, 2, layout.header["signals"][0], 6), True
    for name in ("k1", "k2"):
        yield name, flipped(data, 2, layout.header[name][0], 3), True
    for section, count in layout.polynomials.items():
        for i in range(count):
            size = 5 * n * SCALAR
            yield f"coefficient, {section}", flipped(data, section, size * i + SCALAR, 0), True
            yield f"value, {section}", flipped(data, section, size * i + SCALAR * n, 0), False
    for section in layout.ignored:
        yield f"section {section}", flipped(data, section, 5, 0), False
    for section in (4, 5, 6):
        row = len(sections[section]) // 4 - 1
        (signal,) = struct.unpack_from("<I", sections[section], 4 * row)
        other = struct.pack("<I", 2 if signal != 2 else 3)
        yield f"wire, {section}", changed(data, section, 4 * row, other), True
    if sections[3]:
        yield "factor", flipped(data, 3, 8, 0), True
    first = sections[layout.powers][:POINT]
    yield "off the curve", flipped(data, layout.powers, POINT + 1, 0), True
    yield "another point", changed(data, layout.powers, POINT, first), True
    yield "infinity", changed(data, layout.powers, 2 * POINT, bytes(POINT)), True


def outcome(protocol: str, data: bytes, tmp_path: Path) -> bool:
    """Whether a key makes a proof, which then holds for the untouched key, or a typed error."""
    given, path = sample("duplicates", protocol), tmp_path / "damaged.zkey"
    path.write_bytes(data)
    try:
        result = gpuprover.prove(path, given.witness, threads=1)
    except (MalformedFile, UnsatisfiedWitness, WitnessMismatch):
        return False
    assert gpuprover.verify(given.verification_key, result.public_signals, result.proof)
    return True


@both
@pytest.mark.slow
def test_values_in_their_ranges_make_no_wrong_proof(protocol: str, tmp_path: Path) -> None:
    for what, data, matters in in_range(protocol):
        assert outcome(protocol, data, tmp_path) is not matters, what


@both
def test_some_values_in_their_ranges_make_no_wrong_proof(protocol: str, tmp_path: Path) -> None:
    found = random.Random(protocol).sample([case for case in in_range(protocol) if case[2]], 2)
    for what, data, _ in found:
        assert not outcome(protocol, data, tmp_path), what
