"""The containers of circom and snarkjs: what is read, what is refused and with which words."""

from __future__ import annotations

import itertools
import os
import random
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpuprover.circuits import bits_circuit, chain_circuit, poseidon_circuit
from gpuprover.curves import BLS12_381, BN254, CURVES, CurveParams, Group
from gpuprover.errors import InvalidInput, MalformedFile, ProverError, UnsupportedFile
from gpuprover.formats import ptau
from gpuprover.formats import r1cs as module
from gpuprover.formats.binfile import BinFile
from gpuprover.formats.ptau import read_ptau
from gpuprover.formats.r1cs import read_r1cs, write_r1cs
from gpuprover.formats.wtns import read_witness, write_witness
from gpuprover.limbs import g1_to_words, ints_to_words, words_to_g1, words_to_g2, words_to_ints
from gpuprover.systems.groth16 import key as keys
from gpuprover.systems.groth16.key import load_key
from tests.support.containers import edit, pack, put, reordered, unpack
from tests.support.paths import VECTORS

READERS: dict[str, Callable[[Any], Any]] = {
    "wtns": read_witness,
    "r1cs": read_r1cs,
    "zkey": load_key,
    "ptau": read_ptau,
}
MAIN_SECTION = {"wtns": 2, "r1cs": 2, "zkey": 2, "ptau": 2}

both_curves = pytest.mark.parametrize("curve", CURVES, ids=lambda c: c.name)
all_formats = pytest.mark.parametrize("kind", list(READERS))


def vector(curve: CurveParams, suffix: str) -> bytes:
    return (VECTORS / f"chain5.{curve.name}.{suffix}").read_bytes()


def refused(
    read: Callable[[Any], Any], data: Any, words: str, kind: type[ProverError] = MalformedFile
) -> ProverError:
    with pytest.raises(kind, match=words) as caught:
        read(data)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 600
    return caught.value


# The container -------------------------------------------------------------------


@all_formats
def test_damaged_containers(kind: str, tmp_path: Path) -> None:
    read, data = READERS[kind], vector(BN254, kind)
    magic, version, sections = unpack(data)
    refused(read, b"", "the file is empty")
    refused(read, data[:11], "has 11 bytes")
    refused(read, b"\x7fELF" + data[4:], r"starts with '\w+', found '\\x7fELF'")
    refused(read, pack(magic, 9, sections), "version 9", UnsupportedFile)
    refused(read, data[:-1], "truncated")
    refused(read, data + b"\0", "1 bytes follow the last section")
    refused(
        read,
        pack(magic, version, [*sections, sections[0]]),
        r"section \d+ \([\w ]+\): stands in the file twice",
    )
    refused(read, data[:8] + struct.pack("<I", 2**32 - 1) + data[12:], "declares 4294967295 sections")
    refused(read, data[:8] + struct.pack("<I", len(sections) + 1) + data[12:], "ends before section")
    refused(read, data[:16] + struct.pack("<Q", 2**63) + data[24:], "declares 9223372036854775808 bytes")
    refused(read, tmp_path, "a folder", InvalidInput)
    (tmp_path / "empty").touch()
    error = refused(read, tmp_path / "empty", "the file is empty")
    assert str(tmp_path / "empty") in str(error)


@all_formats
def test_missing_sections_are_named(kind: str) -> None:
    magic, version, sections = unpack(vector(BN254, kind))
    optional = {("zkey", 10), ("r1cs", 3), ("ptau", 7)}
    for i, (number, _) in enumerate(sections):
        damaged = pack(magic, version, sections[:i] + sections[i + 1 :])
        if (kind, number) in optional:
            READERS[kind](damaged)
        else:
            refused(READERS[kind], damaged, rf"section {number} \([\w ]+\): missing")


@all_formats
@both_curves
def test_every_truncation_is_refused(kind: str, curve: CurveParams) -> None:
    data = vector(curve, kind)
    for size in range(0, len(data), 1 if len(data) < 1000 else 97):
        refused(READERS[kind], data[:size], ".")


@all_formats
def test_sections_of_any_length_are_refused_but_the_right_one(kind: str) -> None:
    _, _, sections = unpack(vector(BN254, kind))
    for number, content in sections:
        if (kind, number) == ("ptau", 7):  # the contributions' details are not read
            continue
        for other in (b"", content[:-1], content + b"\0", content + b"\0" * 8, content * 2):
            if other != content:
                refused(READERS[kind], edit(vector(BN254, kind), number, lambda _, o=other: o), "section")


@all_formats
def test_other_sections_are_ignored(kind: str) -> None:
    magic, version, sections = unpack(vector(BN254, kind))
    READERS[kind](pack(magic, version, [(99, b"abc"), *sections]))


def test_views_are_read_only_and_bytes_are_accepted(tmp_path: Path) -> None:
    data = vector(BN254, "wtns")
    for source in (data, bytearray(data), memoryview(data)):
        values = read_witness(source).values
        assert not values.flags.writeable
        with pytest.raises(ValueError):
            values[0, 0] = 5
    file = BinFile(data, "wtns", range(1, 3), {})
    assert file.path == "<.wtns bytes>"


def test_a_mapped_file_survives_its_deletion(tmp_path: Path) -> None:
    path = tmp_path / "w.wtns"
    path.write_bytes(vector(BN254, "wtns"))
    witness = read_witness(path)
    path.unlink()
    assert words_to_ints(witness.values)[0] == 1


# Witnesses -----------------------------------------------------------------------


@both_curves
def test_witness_round_trip(curve: CurveParams, tmp_path: Path) -> None:
    r = curve.r
    values = [1, 0, r - 1, 2**64, 12345]
    write_witness(tmp_path / "w.wtns", curve.scalar, ints_to_words(values, curve.scalar.limbs))
    witness = read_witness(tmp_path / "w.wtns")
    assert words_to_ints(witness.values) == values
    assert (witness.curve, len(witness), witness.source) == (curve, 5, str(tmp_path / "w.wtns"))
    assert stat.S_IMODE(os.stat(tmp_path / "w.wtns").st_mode) == 0o600
    assert (
        words_to_ints(read_witness(reordered((tmp_path / "w.wtns").read_bytes(), lambda s: s[::-1])).values)
        == values
    )


def test_witness_is_not_shown() -> None:
    witness = read_witness(vector(BN254, "wtns"))
    secret = words_to_ints(witness.values)[-1]
    assert secret > 1000
    assert str(secret) not in repr(witness) + str(witness)
    assert "values" not in repr(witness)


@both_curves
def test_damaged_witnesses(curve: CurveParams) -> None:
    data, size = vector(curve, "wtns"), curve.scalar.bytes
    r_bytes = curve.r.to_bytes(size, "little")
    refused(read_witness, edit(data, 1, put(4, b"\x03")), "of no known curve", UnsupportedFile)
    refused(read_witness, edit(data, 1, put(4, curve.q.to_bytes(48, "little")[:size])), ".", ProverError)
    refused(read_witness, edit(data, 1, put(0, struct.pack("<I", 31))), "a size of 31 bytes")
    refused(read_witness, edit(data, 1, put(0, struct.pack("<I", 2**31))), "a size of 2147483648")
    refused(
        read_witness, edit(data, 1, put(4 + size, struct.pack("<I", 2**32 - 1))), r"\(4294967295 values of 32"
    )
    refused(
        read_witness, edit(data, 2, put(3 * size, r_bytes)), r"section 2 \(values\): value 3 is not below"
    )
    refused(read_witness, edit(data, 2, put(7 * size, b"\xff" * size)), "value 7 is not below")
    refused(read_witness, edit(data, 2, put(0, b"\x02")), "value 0 has to be 1")
    refused(read_witness, edit(data, 2, put(size - 1, b"\x01")), "value 0 has to be 1")
    none = edit(edit(data, 1, put(4 + size, bytes(4))), 2, lambda _: b"")
    refused(read_witness, none, "no values")


# Constraint systems --------------------------------------------------------------


@both_curves
@pytest.mark.parametrize(
    "make", [lambda c: chain_circuit(9, c), lambda c: bits_circuit(10, c), poseidon_circuit]
)
def test_r1cs_round_trip(curve: CurveParams, make: Any, tmp_path: Path) -> None:
    r1cs = make(curve).r1cs
    write_r1cs(tmp_path / "c.r1cs", r1cs)
    data = (tmp_path / "c.r1cs").read_bytes()
    for source in (tmp_path / "c.r1cs", reordered(data, lambda s: s[::-1])):
        again = read_r1cs(source)
        for name in (
            "curve",
            "n_wires",
            "n_pub_out",
            "n_pub_in",
            "n_prv_in",
            "n_labels",
            "n_constraints",
            "n_public",
        ):
            assert getattr(again, name) == getattr(r1cs, name), name
        for mine, theirs in zip(again.matrices, r1cs.matrices, strict=True):
            np.testing.assert_array_equal(mine.starts, theirs.starts)
            np.testing.assert_array_equal(mine.wires, theirs.wires)
            np.testing.assert_array_equal(mine.values, theirs.values)
    write_r1cs(tmp_path / "again.r1cs", read_r1cs(tmp_path / "c.r1cs"))
    assert (tmp_path / "again.r1cs").read_bytes() == data


@pytest.mark.parametrize("size", [1, 4, 30])
def test_r1cs_blocks_do_not_show(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Constraints are read and written in blocks; a longer one makes a block of its own."""
    r1cs = bits_circuit(40, seed=1).r1cs
    write_r1cs(tmp_path / "whole.r1cs", r1cs)
    monkeypatch.setattr(module, "_TERMS", size)
    monkeypatch.setattr(module, "_ROWS", size)
    again = read_r1cs(tmp_path / "whole.r1cs")
    for mine, theirs in zip(again.matrices, r1cs.matrices, strict=True):
        for name in ("starts", "wires", "values"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
    write_r1cs(tmp_path / "blocks.r1cs", again)
    assert (tmp_path / "blocks.r1cs").read_bytes() == (tmp_path / "whole.r1cs").read_bytes()


def test_row_blocks() -> None:
    """Blocks follow each other, and all but single rows keep within rows and terms."""
    rng = np.random.default_rng(3)
    starts = [np.cumsum([0, *rng.integers(0, 5, 60), 50, 0, 0, *rng.integers(0, 3, 9)]) for _ in range(2)]
    for size in (1, 7, 40, 1000):
        for first, last in ((0, None), (3, 64), (5, 5)):
            blocks = list(module.row_blocks(starts, size, first, last))
            bounds = [first, *(stop for _, stop in blocks)]
            assert blocks == list(itertools.pairwise(bounds))
            assert bounds[-1] == (72 if last is None else last)
            for a, b in blocks:
                fits = b - a <= size and sum(s[b] - s[a] for s in starts) <= size
                assert fits or b == a + 1


def constraint_bytes(size: int, *combinations: list[tuple[int, int]]) -> bytes:
    return b"".join(
        struct.pack("<I", len(terms))
        + b"".join(struct.pack("<I", w) + v.to_bytes(size, "little") for w, v in terms)
        for terms in combinations
    )


@both_curves
def test_r1cs_rows_of_all_lengths(curve: CurveParams) -> None:
    """Empty combinations, repeated wires and long rows, against the definition."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    rows = [
        [
            [(rng.randrange(9), rng.randrange(curve.r)) for _ in range(rng.choice((0, 0, 1, 2, 40)))]
            for _ in range(3)
        ]
        for _ in range(20)
    ]
    data = edit(vector(curve, "r1cs"), 1, put(4 + 32 + 24, struct.pack("<I", len(rows))))
    data = edit(data, 1, put(4 + 32, struct.pack("<I", 9)))
    data = edit(data, 3, lambda _: bytes(72))
    data = edit(data, 2, lambda _: b"".join(constraint_bytes(32, *row) for row in rows))
    r1cs = read_r1cs(data)
    for m, matrix in enumerate(r1cs.matrices):
        assert matrix.rows == len(rows)
        values = words_to_ints(matrix.values)
        for i, row in enumerate(rows):
            terms = range(matrix.starts[i], matrix.starts[i + 1])
            assert [(int(matrix.wires[k]), values[k]) for k in terms] == row[m]
            assert all(matrix.row_index()[k] == i for k in terms)


@both_curves
def test_damaged_r1cs(curve: CurveParams) -> None:
    data = vector(curve, "r1cs")
    counts = 4 + 32
    refused(read_r1cs, edit(data, 1, put(4, b"\x05")), "of no known curve", UnsupportedFile)
    refused(read_r1cs, edit(data, 1, put(counts, struct.pack("<I", 2))), "2 wires, expected at least 3")
    refused(
        read_r1cs,
        edit(data, 1, put(counts + 24, struct.pack("<I", 6))),
        "cannot hold|ends before constraint 5",
    )
    refused(
        read_r1cs, edit(data, 1, put(counts + 24, struct.pack("<I", 4))), "bytes follow the last constraint"
    )
    refused(
        read_r1cs, edit(data, 1, put(counts + 24, struct.pack("<I", 2**32 - 1))), "cannot hold 4294967295"
    )
    refused(read_r1cs, edit(data, 2, put(0, struct.pack("<I", 2**32 - 1))), "truncated")
    refused(
        read_r1cs, edit(data, 2, put(4, struct.pack("<I", 8))), "A of constraint 0: wire 8, expected below 8"
    )
    refused(
        read_r1cs, edit(data, 2, put(8, curve.r.to_bytes(32, "little"))), "A of constraint 0: coefficient not"
    )
    refused(read_r1cs, edit(data, 2, lambda b: b[:-4]), "cut off")
    magic, version, sections = unpack(data)
    gates = [*sections, (4, struct.pack("<I", 0)), (5, struct.pack("<I", 1))]
    refused(read_r1cs, pack(magic, version, gates), "custom gates", UnsupportedFile)
    read_r1cs(pack(magic, version, [*gates[:-1], (5, struct.pack("<I", 0))]))


# Powers of tau -------------------------------------------------------------------


@both_curves
def test_ptau(curve: CurveParams) -> None:
    file = read_ptau(reordered(vector(curve, "ptau"), lambda s: s[::-1]))
    assert (file.curve, file.power, file.ceremony_power, file.contributions) == (curve, 3, 3, 0)
    assert file.prepared
    assert words_to_g1(curve, file.points(ptau.TAU_G1)[:1]) == [curve.g1]
    assert file.lagrange(ptau.LAGRANGE_TAU_G1, 4).shape == (16, curve.g1_words)
    assert file.lagrange(ptau.LAGRANGE_TAU_G2, 3).shape == (8, curve.g2_words)
    # Σ L_i = 1.
    from gpuprover.reference import g1

    assert g1(curve).msm(words_to_g1(curve, file.lagrange(ptau.LAGRANGE_TAU_G1, 2)), [1] * 4) == curve.g1


@both_curves
def test_unfit_ptau(curve: CurveParams) -> None:
    data = vector(curve, "ptau")
    magic, version, sections = unpack(data)
    file = read_ptau(data)
    file.require(3, "circuit.r1cs")
    with pytest.raises(InvalidInput, match=r"power 3 is too small for circuit.r1cs, which needs power >= 4"):
        file.require(4, "circuit.r1cs")
    unprepared = read_ptau(pack(magic, version, [s for s in sections if s[0] < 12]))
    with pytest.raises(InvalidInput, match="not prepared for phase 2"):
        unprepared.require(3, "circuit.r1cs")
    refused(read_ptau, edit(data, 1, put(4, b"\x05")), "of no known curve", UnsupportedFile)
    size = curve.base.bytes
    refused(read_ptau, edit(data, 1, put(4 + size, struct.pack("<I", 60))), "power 60, expected 1 to 28")
    refused(
        read_ptau, edit(data, 1, put(4 + size, struct.pack("<I", 28))), r"section 2 \(tau in G1\): expected"
    )


# Proving keys --------------------------------------------------------------------


@both_curves
def test_zkey(curve: CurveParams) -> None:
    for data in (vector(curve, "zkey"), reordered(vector(curve, "zkey"), lambda s: s[::-1])):
        key = load_key(data)
        assert (key.protocol, key.curve) == ("groth16", curve)
        assert (key.n_vars, key.n_public, key.domain_size, key.constraints) == (8, 2, 8, 5)
        assert (key.contributions, len(key.circuit_hash)) == (0, 64)
        assert (len(key.a), len(key.b1), len(key.b2), len(key.c), len(key.h), len(key.ic)) == (
            8,
            8,
            8,
            5,
            8,
            3,
        )
        assert key.b2.shape[1] == curve.g2_words
        assert (len(key.coefficients), key.coefficients.dtype.itemsize) == (13, 12 + curve.scalar.bytes)
        assert key.coefficients["constraint"].tolist()[-3:] == [5, 6, 7]
        assert [m.entries for m in key.demand.matrices] == [13]


@both_curves
def test_key_of_a_ceremony_is_initial(curve: CurveParams) -> None:
    key = load_key(vector(curve, "initial.zkey"))
    g2 = words_to_g2(curve, np.stack([key.header.gamma2, key.header.delta2]))
    assert g2 == [curve.g2, curve.g2]
    assert key.contributions == 0


def contribution(curve: CurveParams, kind: int, parameters: bytes) -> bytes:
    points = bytes(8 * (3 * curve.g1_words + curve.g2_words))
    return points + bytes(64) + struct.pack("<II", kind, len(parameters)) + parameters


def test_contributions_are_counted_and_named() -> None:
    data = vector(BN254, "zkey")
    name = "Zoë\x1b[31m\n".encode()
    three = [
        contribution(BN254, 0, bytes([1, len(name)]) + name),
        contribution(BN254, 1, bytes([2, 10, 3, 2]) + b"\xaa\xbb"),
        contribution(BN254, 0, b""),
    ]
    key = load_key(edit(data, 10, lambda _: bytes(64) + struct.pack("<I", 3) + b"".join(three)))
    assert key.contributions == 3
    assert [c.kind for c in key.ceremony] == [0, 1, 0]
    assert [c.name for c in key.ceremony] == ["Zoë�[31m�", None, None]
    many = edit(data, 10, lambda _: bytes(64) + struct.pack("<I", 2**32 - 1) + b"".join(three))
    refused(load_key, many, r"section 10 \(contributions\): ends within contribution 4 of 4294967295")
    long = edit(data, 10, lambda _: bytes(64) + struct.pack("<I", 1) + three[0][:-1])
    refused(lambda data: load_key(data).ceremony, long, "ends within contribution 1 of 1")
    longer = edit(data, 10, lambda _: bytes(64) + struct.pack("<I", 1) + three[0] + b"\0")
    refused(lambda data: load_key(data).ceremony, longer, "1 bytes follow the last field")


def test_contributions_are_read_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of them are in no command's way that does not show them."""
    many = bytes(64) + struct.pack("<I", 5000) + contribution(BN254, 0, bytes([1, 2]) + b"ok") * 5000
    read: list[bytes] = []
    real = keys._contribution_name
    monkeypatch.setattr(keys, "_contribution_name", lambda p: read.append(p) or real(p))
    key = load_key(edit(vector(BN254, "zkey"), 10, lambda _: many))
    assert (key.contributions, len(key.warnings)) == (5000, 1)
    assert not read
    assert {c.name for c in key.ceremony} == {"ok"}
    assert len(read) == 5000


@pytest.mark.parametrize(
    ("protocol", "name"), [(2, "a plonk key"), (10, "a fflonk key"), (7, "protocol id 7")]
)
def test_other_protocols_are_refused_by_name(protocol: int, name: str) -> None:
    data = edit(vector(BN254, "zkey"), 1, put(0, struct.pack("<I", protocol)))
    refused(load_key, data, f"expected a groth16 key, found {name}", UnsupportedFile)


@both_curves
def test_damaged_zkey_headers(curve: CurveParams) -> None:
    data, size = vector(curve, "zkey"), curve.base.bytes
    counts = 4 + size + 4 + 32
    points = counts + 12
    refused(load_key, edit(data, 2, put(4, b"\x05")), "no known curve", UnsupportedFile)
    refused(load_key, edit(data, 2, put(4 + size + 4, b"\x05")), "no known curve", UnsupportedFile)
    for domain in (0, 1, 7, 12, 2**31 + 1):
        bad = edit(data, 2, put(counts + 8, struct.pack("<I", domain)))
        refused(load_key, bad, f"domain size {domain}, expected a power of two")
    refused(
        load_key, edit(data, 2, put(counts + 8, struct.pack("<I", 16))), r"section 9 \(H points\): expected"
    )
    refused(load_key, edit(data, 2, put(counts, struct.pack("<I", 2))), "2 variables, expected at least 3")
    refused(
        load_key,
        edit(data, 2, put(counts, struct.pack("<I", 2**32 - 1))),
        r"section \d \(\w+ points\): expected",
    )
    refused(
        load_key, edit(data, 2, put(counts + 4, struct.pack("<I", 3))), r"section 3 \(IC points\): expected"
    )

    g1, g2 = 8 * curve.g1_words, 8 * curve.g2_words
    offsets = {"alpha1": 0, "beta1": g1, "beta2": 2 * g1, "gamma2": 2 * g1 + g2, "delta1": 2 * g1 + 2 * g2}
    offsets["delta2"] = 3 * g1 + 2 * g2
    for name, offset in offsets.items():
        width = g1 if name.endswith("1") else g2
        at = points + offset
        refused(
            load_key,
            edit(data, 2, put(at, b"\xff" * size)),
            f"{name}: a coordinate is not below the base prime",
        )
        refused(load_key, edit(data, 2, put(at, bytes(size))), f"{name}: not on the (curve|twist)")
        refused(load_key, edit(data, 2, put(at, bytes(width))), f"{name}: the point at infinity")


def test_damaged_coefficients() -> None:
    data = vector(BN254, "zkey")
    record = 12 + 32
    second = 4 + record
    refused(
        load_key, edit(data, 4, put(second, struct.pack("<I", 2))), "record 1: matrix 2, expected below 2"
    )
    refused(
        load_key,
        edit(data, 4, put(second + 4, struct.pack("<I", 8))),
        "record 1: constraint 8, expected below",
    )
    refused(
        load_key, edit(data, 4, put(second + 8, struct.pack("<I", 8))), "record 1: signal 8, expected below"
    )
    refused(load_key, edit(data, 4, put(second + 12, b"\xff" * 32)), "record 1: value not below")
    refused(
        load_key, edit(data, 4, put(0, struct.pack("<I", 2**32 - 1))), r"\(4294967295 records of 44 bytes\)"
    )
    empty = load_key(edit(data, 4, lambda _: bytes(4)))
    assert empty.constraints == 0


def off_curve(curve: CurveParams) -> bytes:
    return g1_to_words(curve, [(1, 1)]).tobytes()


def test_bad_ic_point_is_named_when_the_verification_key_is_asked_for() -> None:
    key = load_key(edit(vector(BN254, "zkey"), 3, put(64, off_curve(BN254))))
    with pytest.raises(MalformedFile, match=r"section 3 \(IC points\): point 1: not on the curve"):
        _ = key.vk


@pytest.mark.parametrize("section", [keys.IC, keys.A, keys.B1, keys.C, keys.H])
def test_check_points_names_the_culprit(section: int) -> None:
    from gpuprover.devices import open_backend
    from gpuprover.job import Job

    backend = open_backend("reference", BN254, Job(threads=1))
    data = vector(BN254, "zkey")
    load_key(data).check_points(backend)
    bad = load_key(edit(data, section, put(2 * 64, off_curve(BN254))))
    with pytest.raises(MalformedFile, match=rf"section {section} \(\w+ points\): point 2 is off"):
        bad.check_points(backend)


def test_header_points_outside_the_subgroup() -> None:
    """A point of the twist of order other than r, which only the subgroup check can find."""
    from gpuprover.devices import open_backend
    from gpuprover.job import Job
    from gpuprover.limbs import g2_to_words
    from gpuprover.reference import fq2, g2

    curve, F = BLS12_381, fq2(BLS12_381)
    q = curve.q
    x = 0
    while True:
        x += 1
        rhs = F.add(F.mul(F.mul((x, 0), (x, 0)), (x, 0)), curve.group(Group.G2).b)
        # A square root in Fq2, q = 3 (mod 4), by the norm.
        norm = pow(rhs[0] ** 2 + rhs[1] ** 2, (q + 1) // 4, q)
        half = (rhs[0] + norm) * pow(2, -1, q) % q
        y0 = pow(half, (q + 1) // 4, q)
        if y0 and F.mul(y := (y0, rhs[1] * pow(2 * y0, -1, q) % q), y) == rhs:
            break
    point = (x, 0), y
    assert g2(curve).on_curve(point)
    assert not g2(curve).in_subgroup(point)
    at = 4 + 48 + 4 + 32 + 12 + 2 * 96
    key = load_key(edit(vector(curve, "zkey"), 2, put(at, g2_to_words(curve, [point]).tobytes())))
    with pytest.raises(MalformedFile, match="beta2 is outside the subgroup"):
        key.check_header_subgroups(open_backend("reference", curve, Job(threads=1)))


def test_no_declared_size_is_allocated() -> None:
    """A header of a few bytes that declares 2^32 constraints or values takes no memory."""
    import tracemalloc

    cases = [
        (read_r1cs, edit(vector(BN254, "r1cs"), 1, put(4 + 32 + 24, struct.pack("<I", 2**32 - 1)))),
        (read_r1cs, edit(vector(BN254, "r1cs"), 1, put(4 + 32, struct.pack("<I", 2**32 - 1)))),
        (read_witness, edit(vector(BN254, "wtns"), 1, put(36, struct.pack("<I", 2**32 - 1)))),
        (load_key, edit(vector(BN254, "zkey"), 4, put(0, struct.pack("<I", 2**32 - 1)))),
        (read_ptau, edit(vector(BN254, "ptau"), 1, put(36, struct.pack("<I", 28)))),
    ]
    tracemalloc.start()
    try:
        for read, data in cases:
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            refused(read, data, ".")
            assert tracemalloc.get_traced_memory()[1] - before < 1 << 20
    finally:
        tracemalloc.stop()
