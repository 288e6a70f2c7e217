"""FFLONK's proving keys: what is read of them, and every check."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

import numpy as np
import pytest

from gpuprover.backend import Backend
from gpuprover.curves import BN254, Group
from gpuprover.devices import open_backend
from gpuprover.errors import MalformedFile, UnsupportedFile
from gpuprover.formats.zkey import HEADER
from gpuprover.job import Job
from gpuprover.limbs import field_to_words, generator, words_to_field
from gpuprover.plonkish.key import describe
from gpuprover.systems.fflonk import key as keys
from gpuprover.systems.fflonk.documents import parse_verification_key
from gpuprover.systems.fflonk.key import load_key, read_verification_key
from gpuprover.systems.system import system_of_key
from tests.support.containers import edit, pack, put, unpack
from tests.support.plonk import FFLONK, sample
from tests.support.samples import curve_point, to_words

R = BN254.r
QUIRKS = sample("quirks", "fflonk")
DATA = QUIRKS.key.read_bytes()
SIZES, SHIFTS, ROOTS, TAU, COMMITMENT = 72, 92, 156, 284, 412
"""Offsets in the header: behind the primes, sizes as u32; k1, k2; w3, w4, w8, wr; X_2; C0."""


def mont(value: int) -> bytes:
    return field_to_words(BN254.scalar, [value]).tobytes()


@pytest.mark.parametrize("name", FFLONK)
def test_own_keys(name: str) -> None:
    given = sample(name, "fflonk")
    key = load_key(given.key)
    assert json.dumps(key.verification_key, indent=1) == given.verification_key_text
    assert key.vk == read_verification_key(given.key) == parse_verification_key(given.verification_key)
    assert (key.protocol, key.curve, key.size) == ("fflonk", BN254, given.key.stat().st_size)
    assert (key.n_public, key.warnings) == (len(given.public), ())
    assert system_of_key(given.key).name == "fflonk"


def test_keys_of_snarkjs(data_dir: Path) -> None:
    paths = sorted((data_dir / "plonk").rglob("*.fflonk.zkey"))
    assert len(paths) >= 8
    for path in paths:
        vkey = str(path).removesuffix("zkey") + "vkey.json"
        assert json.dumps(load_key(path).verification_key, indent=1) == Path(vkey).read_text()


def test_what_is_said_of_a_key() -> None:
    assert describe(load_key(QUIRKS.key)) == {
        "protocol": "fflonk",
        "curve": "bn254",
        "constraints": 49,
        "variables": load_key(QUIRKS.key).n_vars,
        "public_signals": 3,
        "domain_size": 64,
        "additions": load_key(QUIRKS.key).sizes.additions,
    }


def test_polynomials_are_the_coefficients_of_c0() -> None:
    """The last section has them in turn: so names and sections belong together."""
    key = load_key(QUIRKS.key)
    (content,) = [content for number, content in unpack(DATA)[2] if number == keys.C0]
    interleaved = words_to_field(BN254.scalar, np.frombuffer(content, dtype="<u8").reshape(-1, 4))
    for i, name in enumerate(("Ql", "Qr", "Qo", "Qm", "Qc", "S1", "S2", "S3")):
        assert words_to_field(BN254.scalar, key.polynomials[name]) == interleaved[i::8]
    assert len(key.powers) == 9 * 64 + 18


def refused(data: bytes, problem: str, kind: type[Exception] = MalformedFile) -> None:
    with pytest.raises(kind, match=problem) as caught:
        load_key(data)
    assert caught.value.role == "key"  # type: ignore[attr-defined]


def changed(section: int, offset: int, value: bytes) -> bytes:
    return edit(DATA, section, put(offset, value))


def test_other_systems_and_curves() -> None:
    refused(changed(1, 0, b"\2"), "expected a fflonk key, found a plonk key", UnsupportedFile)
    other = sample("bls-small").key.read_bytes()
    over_bls = edit(other, 1, put(0, b"\n"))
    refused(over_bls, "a key over bls12-381: FFLONK is over BN254 only", UnsupportedFile)


OMEGA = BN254.scalar.root_of_unity(6)


@pytest.mark.parametrize(
    ("offset", "value", "problem"),
    [
        (SIZES + 8, struct.pack("<I", 63), "domain size 63"),
        (SIZES + 8, struct.pack("<I", 4), "domain size 4"),
        (SIZES + 8, struct.pack("<I", 1 << 27), "domain size 134217728"),
        (SIZES + 8, struct.pack("<I", 0), "domain size 0"),
        (SIZES + 16, struct.pack("<I", 63), "63 gates, expected at most 62 on 64 rows"),
        (SIZES + 4, struct.pack("<I", 50), "50 public signals"),
        (SIZES, struct.pack("<I", 2), "signals, expected at least"),
        (SHIFTS, mont(0), "k1"),
        (SHIFTS, mont(OMEGA), "k1"),
        (SHIFTS + 32, mont(2 * OMEGA % R), "k2/k1"),
        (SHIFTS, R.to_bytes(32, "little"), "k1 is not below the prime"),
        (ROOTS, mont(1), "w3: expected a third root of unity"),
        (ROOTS, b"\xff" * 32, "w3 is not below the prime"),
        (ROOTS + 32, mont(1), "w4: expected"),
        (ROOTS + 64, mont(OMEGA), "w8: expected"),
        (ROOTS + 96, mont(1), "wr: expected a third root of the domain's"),
        (TAU, bytes(128), "X_2: the point at infinity"),
        (TAU, b"\1", "X_2: not on the twist"),
        (COMMITMENT, bytes(64), "C0: the point at infinity"),
        (COMMITMENT, b"\1", "C0: not on the curve"),
        (COMMITMENT, b"\xff" * 32, "C0: a coordinate is not below the base prime"),
    ],
)
def test_bad_headers(offset: int, value: bytes, problem: str) -> None:
    refused(changed(HEADER, offset, value), problem)
    with pytest.raises(MalformedFile, match=problem):
        read_verification_key(changed(HEADER, offset, value))


def test_bad_sections() -> None:
    limit = load_key(QUIRKS.key).sizes.signals
    refused(changed(4, 4 * 9, struct.pack("<I", limit)), r"section 4 \(wires A\): gate 9")
    refused(changed(5, 0, struct.pack("<I", 1)), r"section 5 \(wires B\): gate 0 of a public signal")
    refused(changed(3, 0, struct.pack("<I", limit)), r"section 3 \(additions\): record 0")
    for section, (name,) in keys.POLYNOMIALS.items():
        bad = changed(section, 32 * 5, R.to_bytes(32, "little"))
        refused(bad, rf"section {section} \({name}\): coefficient 5 of {name} is not below")
    refused(changed(keys.POWERS, 0, b"\1\1\1"), "point 0 is not the generator of G1")


def test_sections_of_another_length_are_refused() -> None:
    magic, version, sections = unpack(DATA)
    for i, (number, content) in enumerate(sections):
        for other in (b"", content[:-1], content + b"\0", content * 2):
            if other != content:
                refused(pack(magic, version, [*sections[:i], (number, other), *sections[i + 1 :]]), "section")


def test_a_c0_of_low_degree_is_shorter() -> None:
    """A power of two of coefficients, as few as there have to be; no proof looks at them."""
    for cut in (lambda b: b[: len(b) // 2], lambda b: b[:32]):
        assert load_key(edit(DATA, keys.C0, cut)).vk == load_key(DATA).vk
    refused(edit(DATA, keys.C0, lambda b: b[: 3 * 32]), r"section 17 \(C0\): expected 16384 bytes")


def test_missing_sections_are_named() -> None:
    magic, version, sections = unpack(DATA)
    for i, (number, _) in enumerate(sections):
        refused(
            pack(magic, version, sections[:i] + sections[i + 1 :]), rf"section {number} \([\w ,]+\): missing"
        )


def test_values_on_the_larger_subgroup_are_never_read() -> None:
    """They and the Lagrange polynomials may hold anything: their pages stay on the disk."""
    magic, version, sections = unpack(DATA)
    blank = []
    for number, content in sections:
        if number in keys.POLYNOMIALS:
            content = content[: 64 * 32] + b"\xff" * (len(content) - 64 * 32)
        if number in (keys.LAGRANGE, keys.C0):
            content = b"\xff" * len(content)
        blank.append((number, content))
    key, same = load_key(pack(magic, version, blank)), load_key(DATA)
    assert all(np.array_equal(key.polynomials[name], same.polynomials[name]) for name in same.polynomials)


def test_every_cut_is_refused() -> None:
    for size in range(0, len(DATA), 997):
        with pytest.raises(MalformedFile):
            load_key(DATA[:size])


def test_points_outside_the_subgroup(backend: Backend) -> None:
    """The twist has other points than those of G2; and any point of the file is looked at when asked."""
    outside = to_words(BN254, Group.G2, [curve_point(BN254, Group.G2, random.Random(7))])[0]
    key = load_key(changed(HEADER, TAU, outside.tobytes()))
    with pytest.raises(MalformedFile, match=r"section 2 \(FFLONK header\): X_2 is off the curve, outside"):
        key.check_header_points(backend)
    last = changed(keys.POWERS, 64 * (9 * 64 + 17), generator(BN254, Group.G1).tobytes()[:8])
    with pytest.raises(MalformedFile, match=r"section 16 \(powers of tau\): point 593 is off the curve"):
        load_key(last).check_points(backend)
    load_key(DATA).check_points(backend)


@pytest.fixture
def backend() -> Backend:
    return open_backend("cpu", BN254, Job(threads=1))
