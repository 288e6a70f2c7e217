"""What documents of PLONK and FFLONK share: named points and scalars, as snarkjs writes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gpuprover.curves import CurveParams, Group
from gpuprover.formats.json_files import shown
from gpuprover.formats.snarkjs_json import MAX_PUBLIC, DocumentReader, g1_to_json
from gpuprover.limbs import Words, g1_to_words, g2_to_words, generator, words_to_g1
from gpuprover.plonkish.key import SMALLEST_DOMAIN


def points_to_json(curve: CurveParams, points: Mapping[str, Words]) -> dict[str, Any]:
    """Points of G1, uint64[words], by name -> their lists of decimal strings."""
    rows = words_to_g1(curve, np.stack(list(points.values())))
    return {name: g1_to_json(point) for name, point in zip(points, rows, strict=True)}


def read_points(reader: DocumentReader, curve: CurveParams, names: Sequence[str]) -> dict[str, Words]:
    """Points of G1 on their curve, infinity included; raises MalformedFile."""
    points = [reader.g1(curve, name, reader.field(name)) for name in names]
    return dict(zip(names, g1_to_words(curve, points), strict=True))


def read_scalar(reader: DocumentReader, curve: CurveParams, name: str) -> int:
    """An integer in [0, r); raises MalformedFile."""
    return reader.scalar(curve, name, reader.field(name))


def read_count(reader: DocumentReader, name: str, largest: int, least: int = 0) -> int:
    """A whole number in [least, largest]; raises MalformedFile."""
    value = reader.field(name)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= largest:
        reader.fail(name, f"expected a whole number from {least} to {largest}, found {shown(value)}")
    return value


def read_sizes(reader: DocumentReader, curve: CurveParams) -> tuple[int, int]:
    """``nPublic``, and ``power``, log₂ of the domain size; raises MalformedFile."""
    n_public = read_count(reader, "nPublic", MAX_PUBLIC)
    least = SMALLEST_DOMAIN.bit_length() - 1
    power = read_count(reader, "power", curve.scalar.two_adicity - 2, least)
    if n_public > 1 << power:
        reader.fail("nPublic", f"{n_public} public signals on 2^{power} rows")
    return n_public, power


def read_shifts(reader: DocumentReader, curve: CurveParams, power: int) -> tuple[int, int]:
    """``k1`` and ``k2``: wires' positions differ; raises MalformedFile."""
    k1, k2 = (read_scalar(reader, curve, name) for name in ("k1", "k2"))
    r = curve.r
    for name, value in (("k1", k1), ("k2", k2), ("k2/k1", k2 * pow(k1, -1, r) if k1 else 0)):
        if value % r == 0 or pow(value, 1 << power, r) == 1:
            part = name.partition("/")[0]
            reader.fail(part, f"{name} is 0 or a root of unity, so that positions of wires coincide")
    return k1, k2


def read_root(reader: DocumentReader, curve: CurveParams, power: int) -> int:
    """``w``, the primitive 2^power-th root of unity that the domain is made of; raises MalformedFile."""
    w = read_scalar(reader, curve, "w")
    expected = curve.scalar.root_of_unity(power)
    if w != expected:
        reader.fail("w", f"expected {expected}, the root of unity of order 2^{power}, found {w}")
    return w


def digest(document: Mapping[str, Any]) -> str:
    """SHA-256 in hex of a document's values, however it was written."""
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_tau(reader: DocumentReader, curve: CurveParams) -> Words:
    """``X_2``, which is τ·G2, on its curve and not infinity; raises MalformedFile."""
    point = reader.g2(curve, "X_2", reader.field("X_2"))
    if point is None:
        reader.fail("X_2", "the point at infinity, which no sound key has")
    row: Words = g2_to_words(curve, [point])[0]
    return row


KNOWN_TAU = (
    "the key's powers of tau have a tau of 1 or -1, which everybody knows: "
    "whoever likes can make proofs of false statements for it"
)


def key_warnings(curve: CurveParams, tau_g2: Words) -> tuple[str, ...]:
    """Sentences that whoever trusts a key with this τ·G2 has to read."""
    g2 = generator(curve, Group.G2)
    half = curve.group(Group.G2).degree * curve.base.limbs  # words of a coordinate
    return (KNOWN_TAU,) if np.array_equal(tau_g2[:half], g2[:half]) else ()
