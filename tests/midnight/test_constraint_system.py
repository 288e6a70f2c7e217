"""Constraint systems from their text, and the shape of proofs that follows."""

from __future__ import annotations

import itertools

import pytest

from gpuprover.errors import UnsupportedFile
from gpuprover.midnight.architecture import Architecture
from gpuprover.midnight.constraint_system import constraint_system, domain, parse, text_of
from gpuprover.midnight.profile import V6, V7
from gpuprover.systems.midnight.argument import argument
from gpuprover.systems.midnight.documents import proof_bytes
from tests.support.midnight import data_folder

ALL = [
    frozenset(chip for chip, on in zip(("jubjub", "poseidon", "sha2_256"), bits, strict=True) if on)
    for bits in itertools.product((0, 1), repeat=3)
]
# Advice, fixed, gates, lookups, trash, advice queries, permuted columns, degree, blinding rows, sets of
# products, points, evaluations, bytes of a proof: as the network's own code has them.
OLD = [
    (5, 17, 5, 1, 0, 8, 8, 5, 5, 3, 18, 48, 2528),
    (8, 32, 22, 3, 0, 24, 9, 5, 5, 3, 27, 90, 4336),
    (8, 19, 11, 1, 1, 11, 8, 5, 6, 3, 22, 54, 2912),
    (8, 34, 28, 3, 1, 24, 9, 5, 6, 3, 28, 93, 4480),
    (9, 20, 12, 1, 0, 12, 10, 5, 5, 4, 23, 60, 3152),
    (9, 35, 29, 3, 0, 25, 10, 5, 5, 4, 29, 98, 4688),
    (9, 22, 18, 1, 1, 12, 10, 5, 6, 4, 24, 63, 3296),
    (9, 37, 35, 3, 1, 25, 10, 5, 6, 4, 30, 101, 4832),
]
NEW_BYTES = [3440, 5248, 3824, 5392, 4064, 5600, 4208, 5744]


@pytest.mark.parametrize(("chips", "expected"), [*zip(ALL, OLD, strict=True)])
def test_numbers_of_the_older_line(chips: frozenset[str], expected: tuple[int, ...]) -> None:
    shape = argument(V6, Architecture(chips, 1))
    s = shape.system
    found = (
        *(s.advice, s.fixed, len(s.gates), len(s.lookups), len(s.trash), len(s.advice_queries)),
        *(len(s.permutation), s.degree, s.blinding, len(s.sets)),
        *(len(shape.committed) + 2, len(shape.evaluated), proof_bytes(shape)),
    )
    assert found == expected
    assert s.instance == 2
    assert s.usable(6) == 64 - s.blinding - 1


@pytest.mark.parametrize(("chips", "size"), [*zip(ALL, NEW_BYTES, strict=True)])
def test_proofs_of_the_newer_line(chips: frozenset[str], size: int) -> None:
    shape = argument(V7, Architecture(chips, 4))
    assert proof_bytes(shape) == size
    sizes = [len(s.rotations) for s in shape.sets]
    assert sizes == sorted(sizes)
    older = argument(V6, Architecture(chips, 1))
    # The empty instance column is opened first in the one and behind the advice columns in the other.
    assert older.opened[0] == ("I0", 0)
    assert shape.opened.index(("I0", 0)) == len(shape.system.advice_queries)


def test_texts_are_those_of_the_networks_code() -> None:
    for chips in ALL:
        name = "-".join(
            f"{short}{int(chip in chips)}" for short, chip in zip("jps", sorted(ALL[-1]), strict=True)
        )
        for folder, end, columns in (("data", "", 1), ("data08", ".r4", 4)):
            expected = (data_folder(folder) / "cs" / f"{name}{end}.cs.txt").read_text()
            assert text_of(Architecture(chips, columns)) == expected
    whole = (data_folder() / "note.cs.txt").read_text()
    assert constraint_system(Architecture(frozenset({"poseidon", "sha2_256"}), 1)).whole_text(13) == whole


def test_blinding_rows_follow_from_the_queries() -> None:
    assert parse((data_folder("data08") / "cs" / "p1-sha512.mbl14.txt").read_text()).blinding == 8


def test_other_chips_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedFile, match="secp256k1"):
        constraint_system(Architecture(frozenset({"poseidon", "secp256k1"}), 4))
    with pytest.raises(UnsupportedFile, match="expected 1 to 4, found 5"):
        constraint_system(Architecture(frozenset(), 5))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "PinnedConstraintSystem",
        "PinnedConstraintSystem { gates: [Sum(] }",
        "PinnedConstraintSystem { gates: [] } more",
        "PinnedConstraintSystem { gates: [§] }",
    ],
)
def test_texts_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="constraint system"):
        parse(text)


def test_the_domain_of_rows_has_halo2s_root() -> None:
    rows = domain(6)
    assert rows.omega == 0x45AF6345EC055E4D14A1E27164D8FDBD2D967F4BE2F951558140D032F0A9EE53
