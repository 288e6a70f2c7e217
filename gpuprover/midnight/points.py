"""Points in Midnight's files: two coordinates, big-endian, or one and a sign.

A coordinate has three spare bits on top (:mod:`gpuprover.formats.compressed`): whether the point is
compressed, whether it is the one at infinity, and the sign of y.
"""

from __future__ import annotations

import numpy as np

from gpuprover import devices
from gpuprover.curves import BLS12_381, Group
from gpuprover.formats.compressed import COMPRESSED, INFINITY, LARGER, compress_g1, decompress_g1
from gpuprover.limbs import Words
from gpuprover.midnight.encoding import Buffer

COORDINATE_BYTES = BLS12_381.base.bytes
SCALAR_BYTES = BLS12_381.scalar.bytes
G1_BYTES, G2_BYTES = 2 * COORDINATE_BYTES, 4 * COORDINATE_BYTES
"""Bytes of uncompressed points; a compressed point of G1 has :data:`COORDINATE_BYTES`."""
_LIMBS = BLS12_381.base.limbs
_FLAGS = COMPRESSED | INFINITY | LARGER
_IDENTITY = bytes([INFINITY])


class BadPoint(ValueError):
    """A point is none, in a few words that say why.

    Attributes:
        index: the point's.
    """

    def __init__(self, index: int, problem: str) -> None:
        super().__init__(problem)
        self.index = index


def read_points(group: Group, data: Buffer) -> Words:
    """Uncompressed points -> uint64[n, words], on their curve; the subgroup is not looked at.

    Raises:
        BadPoint: a point is not on the curve, or not in its one form.
    """
    size = 2 * COORDINATE_BYTES * BLS12_381.group(group).degree
    raw = np.frombuffer(data, dtype=np.uint8).reshape(-1, size)
    heads = raw[:, 0] & _FLAGS
    coordinates = _in_memory(group, raw)
    # Infinity's flag is the only one that may be set, with nothing else.
    infinite = heads == INFINITY
    if infinite.any():
        for i in np.flatnonzero(infinite).tolist():
            if raw[i].tobytes() != _IDENTITY + bytes(size - 1):
                raise BadPoint(i, "a point at infinity has other bits")
        coordinates[infinite] = 0
    odd = (heads != 0) & ~infinite
    if odd.any():
        raise BadPoint(int(np.argmax(odd)), "flags in an uncompressed coordinate")
    # (0, 0) stands for infinity in memory, and is no point of the curve.
    nothing = ~coordinates[:, :_LIMBS].any(axis=1) & ~infinite
    if nothing.any():
        for i in np.flatnonzero(nothing).tolist():
            if not coordinates[i].any():
                raise BadPoint(i, f"not on the curve {BLS12_381.name}")
    points, bad = devices.points_from_coordinates(BLS12_381, group, coordinates)
    if bad >= 0:
        raise BadPoint(bad, _reason(coordinates[bad]))
    return points


def write_points(group: Group, points: Words) -> bytes:
    """uint64[n, words] -> uncompressed points."""
    words = BLS12_381.group(group).words
    points = np.ascontiguousarray(points, dtype=np.uint64).reshape(-1, words)
    coordinates = devices.coordinates_of_points(BLS12_381, points)
    raw = _in_file(group, coordinates)
    raw[~points.any(axis=1), 0] = INFINITY
    return raw.tobytes()


def read_compressed(data: Buffer) -> Words:
    """Compressed points of G1 -> uint64[n, g1_words], on their curve; the subgroup is not looked at.

    Raises:
        BadPoint: a point is not on the curve, or not in its one form.
    """
    raw = np.frombuffer(data, dtype=np.uint8).reshape(-1, COORDINATE_BYTES)
    points = np.zeros((len(raw), BLS12_381.g1_words), dtype=np.uint64)
    heads = raw[:, 0] & _FLAGS
    usual = np.flatnonzero((heads & (COMPRESSED | INFINITY)) == COMPRESSED)
    for i in np.flatnonzero((heads & (COMPRESSED | INFINITY)) != COMPRESSED).tolist():
        points[i] = _decompressed(i, raw[i].tobytes())
    bare = raw[usual].copy()
    bare[:, 0] &= 0xFF ^ _FLAGS
    xs = bare.reshape(-1, _LIMBS, 8)[:, ::-1, ::-1].copy().view("<u8").reshape(-1, _LIMBS)
    found, bad = devices.points_from_x(BLS12_381, xs, ((heads[usual] & LARGER) != 0).tolist())
    if bad >= 0:
        index = int(usual[bad])
        _decompressed(index, raw[index].tobytes())
        raise AssertionError("a point is refused by one of two ways to read it")
    points[usual] = found
    return points


def write_compressed(points: Words) -> bytes:
    """uint64[n, g1_words] -> compressed points."""
    return b"".join(compress_g1(BLS12_381, point) for point in points)


def _decompressed(index: int, data: bytes) -> Words:
    try:
        return decompress_g1(BLS12_381, data)
    except ValueError as error:
        raise BadPoint(index, str(error)) from None


def _reason(coordinates: Words) -> str:
    values = coordinates.astype("<u8").tobytes()
    size = COORDINATE_BYTES
    for at in range(0, len(values), size):
        if int.from_bytes(values[at : at + size], "little") >= BLS12_381.q:
            return f"a coordinate is not below the base prime of {BLS12_381.name}"
    return f"not on the curve {BLS12_381.name}"


def _in_memory(group: Group, raw: np.ndarray) -> Words:
    """Big-endian coordinates -> canonical words; those of Fq2 are turned: files have u's factor first."""
    degree = BLS12_381.group(group).degree
    words = raw.reshape(-1).view(">u8").reshape(-1, 2, degree, _LIMBS)[:, :, ::-1, ::-1]
    return words.astype("<u8", order="C").reshape(len(raw), 2 * degree * _LIMBS)


def _in_file(group: Group, coordinates: Words) -> np.ndarray:
    degree = BLS12_381.group(group).degree
    words = coordinates.reshape(-1, 2, degree, _LIMBS)[:, :, ::-1, ::-1].astype(">u8", order="C")
    return words.view(np.uint8).reshape(len(coordinates), 2 * degree * COORDINATE_BYTES)
