"""Points in files: each has one form, and what is none is named."""

from __future__ import annotations

import random

import numpy as np
import pytest

from gpuprover.curves import BLS12_381, Group
from gpuprover.formats.compressed import compress_g1
from gpuprover.limbs import generator, points_to_words
from gpuprover.midnight.points import (
    BadPoint,
    read_compressed,
    read_points,
    write_compressed,
    write_points,
)
from gpuprover.reference import group as group_law

Q = BLS12_381.q
SIZES = {Group.G1: 96, Group.G2: 192}
every_group = pytest.mark.parametrize("group", list(Group), ids=lambda group: group.value)


def some_points(group: Group, rng: random.Random, count: int = 6) -> np.ndarray:
    law, g = group_law(BLS12_381, group), BLS12_381.group(group).generator
    points = [law.scalar_mul(g, rng.randrange(BLS12_381.r)) for _ in range(count)]
    points[2] = None
    return points_to_words(BLS12_381, group, points)


@every_group
def test_uncompressed_points(group: Group, rng: random.Random) -> None:
    points = some_points(group, rng)
    data = write_points(group, points)
    assert len(data) == 6 * SIZES[group]
    assert data[2 * SIZES[group] : 3 * SIZES[group]] == b"\x40" + bytes(SIZES[group] - 1)
    assert np.array_equal(read_points(group, data), points)
    assert read_points(group, b"").shape == (0, BLS12_381.group(group).words)


def test_the_generator_in_bytes() -> None:
    x, y = BLS12_381.g1
    assert write_points(Group.G1, generator(BLS12_381, Group.G1)) == x.to_bytes(48, "big") + y.to_bytes(
        48, "big"
    )
    (x0, x1), (y0, y1) = BLS12_381.g2
    data = b"".join(v.to_bytes(48, "big") for v in (x1, x0, y1, y0))
    assert write_points(Group.G2, generator(BLS12_381, Group.G2)) == data


@every_group
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda p: b"\xc0" + bytes(len(p) - 1), "flags in an uncompressed coordinate"),
        (lambda p: bytes([p[0] | 0x20]) + p[1:], "flags in an uncompressed coordinate"),
        (lambda p: bytes([p[0] | 0x80]) + p[1:], "flags in an uncompressed coordinate"),
        (lambda p: bytes([p[0] | 0x40]) + p[1:], "a point at infinity has other bits"),
        (lambda p: b"\x40" + bytes(len(p) - 2) + b"\1", "a point at infinity has other bits"),
        (lambda p: bytes(len(p)), "not on the curve"),
        (lambda p: p[:-1] + bytes([p[-1] ^ 1]), "not on the curve"),
        (lambda p: p[:-48] + Q.to_bytes(48, "big"), "a coordinate is not below"),
    ],
)
def test_other_uncompressed_points(group: Group, change, problem: str, rng: random.Random) -> None:  # type: ignore[no-untyped-def]
    data, size = write_points(group, some_points(group, rng)), SIZES[group]
    with pytest.raises(BadPoint, match=problem) as caught:
        read_points(group, data[: 4 * size] + change(data[4 * size : 5 * size]) + data[5 * size :])
    assert caught.value.index == 4


def test_compressed_points(rng: random.Random) -> None:
    points = some_points(Group.G1, rng, 20)
    data = write_compressed(points)
    assert data == b"".join(compress_g1(BLS12_381, point) for point in points)
    assert np.array_equal(read_compressed(data), points)
    assert read_compressed(b"").shape == (0, BLS12_381.g1_words)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda p: bytes([p[0] & 0x7F]) + p[1:], "not compressed"),
        (lambda p: b"\xe0" + bytes(47), "a point at infinity has other bits"),
        (lambda p: b"\xc0" + bytes(46) + b"\1", "a point at infinity has other bits"),
        (lambda p: bytes([0x80 | Q >> 376]) + (Q & (1 << 376) - 1).to_bytes(47, "big"), "not below"),
        (lambda p: b"\x80" + bytes(46) + b"\1", "not on the curve"),
    ],
)
def test_other_compressed_points(change, problem: str, rng: random.Random) -> None:  # type: ignore[no-untyped-def]
    data = write_compressed(some_points(Group.G1, rng))
    with pytest.raises(BadPoint, match=problem) as caught:
        read_compressed(data[: 4 * 48] + change(data[4 * 48 : 5 * 48]) + data[5 * 48 :])
    assert caught.value.index == 4
