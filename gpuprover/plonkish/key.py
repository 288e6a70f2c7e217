"""What proving keys of PLONK and FFLONK hold alike: sizes, additions, wires, polynomials, powers of τ.

Scalars in these files are Montgomery words. A polynomial stands as its n coefficients and then its values
on the subgroup of order 4n; the latter follow from the former and are never read, so that their pages stay
on the disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpuprover.backend import Backend
from gpuprover.curves import CurveParams, Group
from gpuprover.errors import MalformedFile
from gpuprover.formats.binfile import BinFile, Cursor
from gpuprover.formats.points import checked_point
from gpuprover.limbs import Words, first_not_below, generator, words_to_field
from gpuprover.polynomial import Domain

SMALLEST_DOMAIN = 8
EVALUATIONS = 4
"""A polynomial's values stand for so many times as many points as the domain has."""
COLUMNS = ("A", "B", "C")
"""The wires of a gate."""
ADDITIONS, WIRE_A, WIRE_B, WIRE_C = 3, 4, 5, 6
"""Sections that both systems number alike."""
CIRCUIT_SECTIONS = {
    ADDITIONS: "additions",
    WIRE_A: "wires A",
    WIRE_B: "wires B",
    WIRE_C: "wires C",
}

_SCAN_BLOCK = 1 << 16


class Sizes(NamedTuple):
    """A circuit's sizes.

    Attributes:
        signals: wires' values: 0, those of the witness but the constant, and one for each addition.
        n_public: public signals.
        domain_size: rows, a power of two.
        additions: signals that are sums of two others.
        gates: rows that are gates, those for public signals included.
    """

    signals: int
    n_public: int
    domain_size: int
    additions: int
    gates: int

    @property
    def n_vars(self) -> int:
        """Values of a witness."""
        return self.signals - self.additions


def addition_dtype(curve: CurveParams) -> np.dtype[Any]:
    """A record of section 3: left and right signal (u32), their factors (uint64[limbs], Montgomery)."""
    limbs = (curve.scalar.limbs,)
    return np.dtype(
        [("left", "<u4"), ("right", "<u4"), ("left_factor", "<u8", limbs), ("right_factor", "<u8", limbs)]
    )


@dataclass(frozen=True, eq=False)
class Wiring:
    """The gates' wires. Arrays are read-only views of the file.

    Attributes:
        sizes: the circuit's sizes.
        additions: records of :func:`addition_dtype`; record i makes signal n_vars + i of two before it.
        maps: for each of the columns A, B, C the signals of its gates, uint32[gates].
        k1, k2: position i of the columns is ω^i, k1·ω^i, k2·ω^i.
    """

    sizes: Sizes
    additions: NDArray[Any] = field(repr=False)
    maps: tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint32]] = field(repr=False)
    k1: int
    k2: int


class KeySizes:
    """What a proving key says of its sizes, by the wiring that it has."""

    wiring: Wiring

    @property
    def sizes(self) -> Sizes:
        return self.wiring.sizes

    @property
    def constraints(self) -> int:
        return self.sizes.gates

    @property
    def n_public(self) -> int:
        return self.sizes.n_public

    @property
    def n_vars(self) -> int:
        return self.sizes.n_vars

    @property
    def domain_size(self) -> int:
        return self.sizes.domain_size


def describe(key: Any) -> dict[str, Any]:
    """A proving key of either system as ``zkey info`` describes it, as JSON."""
    return {
        "protocol": key.protocol,
        "curve": key.curve.name,
        "constraints": key.constraints,
        "variables": key.n_vars,
        "public_signals": key.n_public,
        "domain_size": key.domain_size,
        "additions": key.sizes.additions,
    }


def read_sizes(header: Cursor, curve: CurveParams, reserved: int) -> Sizes:
    """The sizes that stand behind the primes; ``reserved`` rows at the end belong to no gate."""
    signals = header.u32("the number of signals")
    n_public = header.u32("the number of public signals")
    domain_size = header.u32("the domain size")
    additions = header.u32("the number of additions")
    gates = header.u32("the number of gates")
    sizes = Sizes(signals, n_public, domain_size, additions, gates)
    largest = curve.scalar.two_adicity - 2
    if domain_size & (domain_size - 1) or not SMALLEST_DOMAIN <= domain_size <= 1 << largest:
        header.fail(
            f"domain size {domain_size}, expected a power of two from {SMALLEST_DOMAIN} to 2^{largest}"
        )
    if gates > domain_size - reserved:
        header.fail(f"{gates} gates, expected at most {domain_size - reserved} on {domain_size} rows")
    if n_public > gates:
        header.fail(f"{n_public} public signals, expected at most {gates}: each has a gate")
    if additions > signals or sizes.n_vars < n_public + 1:
        header.fail(
            f"{signals} signals, expected at least {additions + n_public + 1}: "
            "additions, public signals and the constant"
        )
    return sizes


def read_scalar(header: Cursor, curve: CurveParams, name: str) -> int:
    """A scalar of the header -> an integer in [0, r)."""
    words = header.bytes(curve.scalar.bytes, name).view("<u8").reshape(1, -1)
    if first_not_below(words, curve.r) >= 0:
        header.fail(f"{name} is not below the prime of {curve.scalar.name}")
    return words_to_field(curve.scalar, words)[0]


def read_shifts(header: Cursor, curve: CurveParams, domain_size: int) -> tuple[int, int]:
    """k1 and k2: the three columns' positions differ."""
    k1, k2 = (read_scalar(header, curve, name) for name in ("k1", "k2"))
    r = curve.r
    for name, value in (("k1", k1), ("k2", k2), ("k2/k1", k2 * pow(k1, -1, r) if k1 else 0)):
        if value % r == 0 or pow(value, domain_size, r) == 1:
            header.fail(f"{name} is 0 or a root of unity of the domain, so that positions of wires coincide")
    return k1, k2


def read_point(header: Cursor, curve: CurveParams, group: Group, name: str, infinity: str = "") -> Words:
    """A point of the header on its curve, uint64[words]; see :func:`checked_point`."""
    words = header.bytes(8 * group.words(curve), name).view("<u8")
    try:
        return checked_point(curve, group, words, infinity=infinity)
    except ValueError as error:
        header.fail(f"{name}: {error}")


def read_wiring(file: BinFile, curve: CurveParams, sizes: Sizes, k1: int, k2: int) -> Wiring:
    """Sections 3 to 6, every index and factor checked."""
    record = addition_dtype(curve)
    content = file.exactly(
        ADDITIONS, sizes.additions * record.itemsize, f"{sizes.additions} records of {record.itemsize} bytes"
    )
    additions = content.view(record)
    _check_additions(file, curve, sizes, additions)
    a, b, c = (_wires(file, section, sizes) for section in (WIRE_A, WIRE_B, WIRE_C))
    return Wiring(sizes, additions, (a, b, c), k1, k2)


def _wires(file: BinFile, section: int, sizes: Sizes) -> NDArray[np.uint32]:
    content = file.exactly(section, 4 * sizes.gates, f"{sizes.gates} signals of 4 bytes")
    signals: NDArray[np.uint32] = content.view("<u4")
    part = file.name(section)
    for start in range(0, sizes.gates, _SCAN_BLOCK):
        block = signals[start : start + _SCAN_BLOCK]
        if int(block.max()) >= sizes.signals:
            row = int(np.argmax(block >= sizes.signals))
            file.fail(
                part, f"gate {start + row}: signal {block[row]}, expected below {sizes.signals}, their number"
            )
    first = signals[: sizes.n_public]
    wanted = np.arange(1, sizes.n_public + 1) if section == WIRE_A else np.zeros(sizes.n_public)
    wrong = np.flatnonzero(first != wanted)
    if len(wrong):
        row = int(wrong[0])
        problem = f"gate {row} of a public signal: signal {first[row]}, expected {int(wanted[row])}"
        file.fail(part, problem)
    return signals


def _check_additions(file: BinFile, curve: CurveParams, sizes: Sizes, records: NDArray[Any]) -> None:
    part = file.name(ADDITIONS)
    for start in range(0, len(records), _SCAN_BLOCK):
        block = records[start : start + _SCAN_BLOCK]
        own = sizes.n_vars + start + np.arange(len(block), dtype=np.int64)
        for name in ("left", "right"):
            late = np.flatnonzero(block[name] >= own)
            if len(late):
                i = int(late[0])
                problem = f"record {start + i}: {name} signal {block[name][i]}, expected below {own[i]}"
                file.fail(part, f"{problem}, the signal that it makes")
            bad = first_not_below(block[f"{name}_factor"], curve.r)
            if bad >= 0:
                file.fail(
                    part, f"record {start + bad}: {name} factor not below the prime of {curve.scalar.name}"
                )


def polynomial_bytes(curve: CurveParams, domain_size: int) -> int:
    """Bytes of a polynomial in a key: n coefficients, 4n values."""
    return (1 + EVALUATIONS) * domain_size * curve.scalar.bytes


def read_polynomials(
    file: BinFile, curve: CurveParams, domain_size: int, sections: Mapping[int, tuple[str, ...]]
) -> dict[str, Words]:
    """Coefficients by name, uint64[n, limbs], each checked to be below r.

    Args:
        sections: the names of the polynomials that stand in each section, in order.
    """
    size, found = polynomial_bytes(curve, domain_size), {}
    for section, names in sections.items():
        count = len(names)
        content = file.exactly(section, count * size, f"{count} × {1 + EVALUATIONS} × {domain_size} scalars")
        for i, name in enumerate(names):
            start = i * size
            words = content[start : start + domain_size * curve.scalar.bytes].view("<u8")
            found[name] = words.reshape(domain_size, curve.scalar.limbs)
            bad = first_not_below(found[name], curve.r)
            if bad >= 0:
                file.fail(
                    file.name(section),
                    f"coefficient {bad} of {name} is not below the prime of {curve.scalar.name}",
                )
    return found


def check_lagrange(file: BinFile, curve: CurveParams, sizes: Sizes, section: int) -> None:
    """The size of the Lagrange polynomials' section, of which nothing is read."""
    count = max(1, sizes.n_public)
    size = count * polynomial_bytes(curve, sizes.domain_size)
    file.exactly(section, size, f"{count} × {1 + EVALUATIONS} × {sizes.domain_size} scalars")


def read_powers(file: BinFile, curve: CurveParams, section: int, count: int) -> Words:
    """τ^i·G1, uint64[count, g1_words]; the first one is the generator, the others are not looked at."""
    words = curve.g1_words
    content = file.exactly(section, 8 * words * count, f"{count} points of {8 * words} bytes")
    points: Words = content.view("<u8").reshape(count, words)
    if not np.array_equal(points[0], generator(curve, Group.G1)):
        file.fail(file.name(section), "point 0 is not the generator of G1")
    return points


def check_points(
    path: str, part: str, group: Group, points: Words, backend: Backend, first: str = ""
) -> None:
    """Every point: range, curve, subgroup.

    Args:
        first: what the points are called, one by one, in a header; "" where they have numbers.

    Raises:
        MalformedFile: names the culprit.
    """
    bad = backend.points.first_bad_point(group, points)
    if bad >= 0:
        name = f"point {bad}" if not first else first.split()[bad]
        problem = f"{name} is off the curve, outside the subgroup or out of range"
        raise MalformedFile(path, part, problem, role="key")


def domain_of(curve: CurveParams, sizes: Sizes) -> Domain:
    return Domain(curve.scalar, sizes.domain_size.bit_length() - 1)
