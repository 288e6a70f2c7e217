"""Groth16 proving keys (.zkey), as snarkjs writes them.

Sections: 1 protocol, 2 header, 3 IC, 4 coefficients, 5 A, 6 B1, 7 B2, 8 C, 9 H,
10 contributions. Points are affine Montgomery words, infinity all zeros. A coefficient
record is (matrix u32: 0 for A, 1 for B; constraint u32; signal u32; value), its value
standing as c·R² mod r. The rows after the circuit's own bind the constant and each public
signal in A. H holds the Lagrange points of the odd coset, scaled by Z(τ)/δ.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpuprover.backend import Backend
from gpuprover.curves import CurveParams, Group
from gpuprover.demand import Demand
from gpuprover.errors import MalformedFile, about
from gpuprover.formats.binfile import BinFile, Cursor, Source
from gpuprover.formats.points import checked_point
from gpuprover.formats.zkey import HEADER, PROTOCOL, open_header
from gpuprover.limbs import Words, first_not_below
from gpuprover.systems.groth16.documents import NAME, VerificationKey, verification_key_to_json
from gpuprover.systems.groth16.key_warnings import key_warnings

IC, COEFFICIENTS, A, B1, B2, C, H, CONTRIBUTIONS = range(3, 11)
SECTIONS = {
    PROTOCOL: "protocol",
    HEADER: "Groth16 header",
    IC: "IC points",
    COEFFICIENTS: "coefficients",
    A: "A points",
    B1: "B1 points",
    B2: "B2 points",
    C: "C points",
    H: "H points",
    CONTRIBUTIONS: "contributions",
}

_SCAN_BLOCK = 1 << 16
CIRCUIT_HASH = 64
"""Bytes of the hash that a ceremony starts from."""


def _part(section: int) -> str:
    return f"section {section} ({SECTIONS[section]})"


def coefficient_dtype(curve: CurveParams) -> np.dtype[Any]:
    """A record of section 4: matrix, constraint, signal (u32), value (uint64[limbs], c·R² mod r)."""
    return np.dtype(
        [("matrix", "<u4"), ("constraint", "<u4"), ("signal", "<u4"), ("value", "<u8", (curve.scalar.limbs,))]
    )


class KeyPoints(NamedTuple):
    """The single points of a key's header, on their curves: uint64[words]."""

    alpha1: Words
    beta1: Words
    beta2: Words
    gamma2: Words
    delta1: Words
    delta2: Words


@dataclass(frozen=True)
class Contribution:
    """One step of the key's phase-2 ceremony, as the file claims it: nothing of it is proven here.

    Attributes:
        kind: 0 for a person's contribution, 1 for a beacon.
        name: what the contributor called it, as printable text.
        delta1: uint64[1, g1_words], δ in G1 after it; its values are not looked at.
    """

    kind: int
    name: str | None
    delta1: Words = field(repr=False)


@dataclass(frozen=True)
class ProvingKey:
    """A mapped Groth16 proving key. Arrays are read-only, often unaligned views of the file.

    Attributes:
        path: where it came from, for messages.
        header: the header's points.
        ic: uint64[n_public + 1, g1_words].
        coefficients: records of :func:`coefficient_dtype`, constraint < domain_size, signal < n_vars.
        a, b1: uint64[n_vars, g1_words]; b2: uint64[n_vars, g2_words].
        c: uint64[n_vars − n_public − 1, g1_words]; h: uint64[domain_size, g1_words].
        constraints: the circuit's constraints, the rows for public signals not counted.
        circuit_hash: 64 bytes that the ceremony started from; empty if the file has none.
        contributions: contributions to phase 2, as many as the file claims.
        size: bytes of the file.
    """

    path: str
    protocol: str
    curve: CurveParams
    n_vars: int
    n_public: int
    domain_size: int
    constraints: int
    header: KeyPoints
    ic: Words = field(repr=False)
    coefficients: NDArray[Any] = field(repr=False)
    a: Words = field(repr=False)
    b1: Words = field(repr=False)
    b2: Words = field(repr=False)
    c: Words = field(repr=False)
    h: Words = field(repr=False)
    circuit_hash: bytes = field(repr=False)
    contributions: int
    size: int
    _file: BinFile = field(repr=False)

    @property
    def log_domain(self) -> int:
        return self.domain_size.bit_length() - 1

    @cached_property
    def ceremony(self) -> tuple[Contribution, ...]:
        """The contributions that the file claims, in order; read when asked for.

        Raises:
            MalformedFile: the section is damaged.
        """
        if not self.contributions:
            return ()
        cursor, curve = self._file.cursor(CONTRIBUTIONS), self.curve
        cursor.bytes(CIRCUIT_HASH + 4, "the number of contributions")
        found = []
        for i in range(self.contributions):
            what = f"contribution {i + 1} of {self.contributions}"
            points = cursor.bytes(_contribution_bytes(curve) - 8, what)
            kind = cursor.u32(what)
            parameters = cursor.bytes(cursor.u32(what), what).tobytes()
            delta1 = points[: 8 * curve.g1_words].view("<u8").reshape(1, -1)
            found.append(Contribution(kind, _contribution_name(parameters), delta1))
        cursor.end()
        return tuple(found)

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """Sentences that whoever uses the key has to read (:mod:`gpuprover.systems.groth16.key_warnings`)."""
        h = self.header
        return key_warnings(
            self.curve,
            alpha1=h.alpha1,
            beta1=h.beta1,
            beta2=h.beta2,
            gamma2=h.gamma2,
            delta1=h.delta1,
            delta2=h.delta2,
            ic=self.ic,
            contributions=self.contributions,
        )

    @cached_property
    def vk(self) -> VerificationKey:
        """The verification key; IC is copied and checked to be on the curve.

        Raises:
            MalformedFile: an IC point is off the curve.
        """
        h = self.header
        ic = _checked_ic(self.path, self.curve, self.ic)
        return VerificationKey(self.curve, h.alpha1, h.beta2, h.gamma2, h.delta2, ic)

    @cached_property
    def verification_key(self) -> dict[str, Any]:
        """The document that ``snarkjs zkey export verificationkey`` writes; computes a pairing once."""
        return verification_key_to_json(self.vk)

    @cached_property
    def demand(self) -> Demand:
        """The demand of a proof with the key."""
        from gpuprover.systems.groth16.prover import demand_of

        return demand_of(self)

    def point_sections(self) -> Iterator[tuple[str, bool, Words]]:
        """The arrays of points: (name for messages, whether in G2, words)."""
        sections = {IC: self.ic, A: self.a, B1: self.b1, B2: self.b2, C: self.c, H: self.h}
        for section, points in sections.items():
            yield _part(section), section == B2, points

    def check_header_subgroups(self, backend: Backend) -> None:
        """Raises MalformedFile if a header point is outside the prime-order subgroup."""
        h = self.header
        g1 = {"alpha1": h.alpha1, "beta1": h.beta1, "delta1": h.delta1}
        g2 = {"beta2": h.beta2, "gamma2": h.gamma2, "delta2": h.delta2}
        for group, names, words in (
            (Group.G1, list(g1), np.stack(list(g1.values()))),
            (Group.G2, list(g2), np.stack(list(g2.values()))),
        ):
            bad = backend.points.first_bad_point(group, words)
            if bad >= 0:
                problem = f"{names[bad]} is outside the subgroup of order r"
                raise MalformedFile(self.path, _part(HEADER), problem, role="key")

    def check_points(self, backend: Backend) -> None:
        """Every point of every section: range, curve, subgroup. Raises MalformedFile naming the culprit."""
        self.check_header_subgroups(backend)
        sections = list(self.point_sections())
        for i, (name, in_g2, points) in enumerate(sections):
            with backend.job.subphase(i, len(sections)):
                bad = backend.points.first_bad_point(Group.G2 if in_g2 else Group.G1, points)
            if bad >= 0:
                problem = f"point {bad} is off the curve, outside the subgroup or out of range"
                raise MalformedFile(self.path, name, problem, role="key")


def describe(key: ProvingKey) -> dict[str, Any]:
    """The key as ``zkey info`` describes it, as JSON; contributions are the file's claims."""
    return {
        "protocol": key.protocol,
        "curve": key.curve.name,
        "constraints": key.constraints,
        "variables": key.n_vars,
        "public_signals": key.n_public,
        "domain_size": key.domain_size,
        "contributions": key.contributions,
        "ceremony": [{"name": c.name, "beacon": c.kind == 1} for c in key.ceremony],
    }


@about("key")
def load_key(source: Source) -> ProvingKey:
    """Maps a proving key and checks its structure, its header points and its coefficients.

    The points of sections 3 and 5 to 9 are not looked at (:meth:`ProvingKey.check_points` does).

    Raises:
        InvalidInput: the file cannot be opened.
        MalformedFile: truncated, inconsistent sizes, values out of range, header points off their curve.
        UnsupportedFile: another version, protocol or curve.
    """
    file, header, curve = open_header(source, NAME, SECTIONS)
    n_vars, n_public, domain_size = _sizes(header)
    points = _header_points(header, curve)
    header.end()
    if n_vars < n_public + 1:
        header.fail(f"{n_vars} variables, expected at least {n_public + 1}: public signals and the constant")
    if domain_size & (domain_size - 1) or not 1 < domain_size <= 1 << curve.scalar.two_adicity:
        header.fail(f"domain size {domain_size}, expected a power of two up to 2^{curve.scalar.two_adicity}")

    g1, g2 = curve.g1_words, curve.g2_words
    coefficients = _coefficients(file, curve)
    last = _check_coefficients(file, curve, coefficients, n_vars, domain_size)
    circuit_hash, contributions = _claims(file, curve)
    return ProvingKey(
        path=file.path,
        protocol=NAME,
        curve=curve,
        n_vars=n_vars,
        n_public=n_public,
        domain_size=domain_size,
        # The last row binds the last public signal, or the constant.
        constraints=max(0, last - n_public),
        header=points,
        ic=_points(file, IC, n_public + 1, g1),
        coefficients=coefficients,
        a=_points(file, A, n_vars, g1),
        b1=_points(file, B1, n_vars, g1),
        b2=_points(file, B2, n_vars, g2),
        c=_points(file, C, n_vars - n_public - 1, g1),
        h=_points(file, H, domain_size, g1),
        circuit_hash=circuit_hash,
        contributions=contributions,
        size=len(file.data),
        _file=file,
    )


@about("key")
def read_verification_key(source: Source) -> VerificationKey:
    """The verification key alone: of a large file only the header and the IC points are read.

    Raises:
        InvalidInput, MalformedFile, UnsupportedFile: as :func:`load_key`, for those two sections.
    """
    file, header, curve = open_header(source, NAME, SECTIONS)
    n_public = _sizes(header)[1]
    points = _header_points(header, curve)
    header.end()
    ic = _checked_ic(file.path, curve, _points(file, IC, n_public + 1, curve.g1_words))
    return VerificationKey(curve, points.alpha1, points.beta2, points.gamma2, points.delta2, ic)


def _sizes(header: Cursor) -> tuple[int, int, int]:
    """Variables, public signals, domain size."""
    n_vars = header.u32("the number of variables")
    n_public = header.u32("the number of public signals")
    domain_size = header.u32("the domain size")
    return n_vars, n_public, domain_size


def _points(file: BinFile, kind: int, count: int, words: int) -> Words:
    content = file.exactly(kind, 8 * words * count, f"{count} points of {8 * words} bytes")
    view: Words = content.view("<u8").reshape(count, words)
    return view


def _checked_ic(path: str, curve: CurveParams, rows: Words) -> Words:
    ic = np.empty(rows.shape, dtype=np.uint64)
    for i, row in enumerate(rows):
        try:
            ic[i] = checked_point(curve, Group.G1, row)
        except ValueError as error:
            raise MalformedFile(path, _part(IC), f"point {i}: {error}", role="key") from None
    return ic


def _header_points(header: Cursor, curve: CurveParams) -> KeyPoints:
    def point(name: str, group: Group) -> Words:
        try:
            words = header.bytes(8 * group.words(curve), name).view("<u8")
            return checked_point(curve, group, words, infinity="which no sound key has")
        except ValueError as error:
            header.fail(f"{name}: {error}")

    # The order of the file.
    return KeyPoints(
        alpha1=point("alpha1", Group.G1),
        beta1=point("beta1", Group.G1),
        beta2=point("beta2", Group.G2),
        gamma2=point("gamma2", Group.G2),
        delta1=point("delta1", Group.G1),
        delta2=point("delta2", Group.G2),
    )


def _coefficients(file: BinFile, curve: CurveParams) -> NDArray[Any]:
    content, record = file.view(COEFFICIENTS), coefficient_dtype(curve)
    if len(content) < 4:
        file.fail(file.name(COEFFICIENTS), "ends within the number of coefficients")
    count = int.from_bytes(content[:4].tobytes(), "little")
    file.exactly(COEFFICIENTS, 4 + count * record.itemsize, f"{count} records of {record.itemsize} bytes")
    return content[4:].view(record)


def _check_coefficients(
    file: BinFile, curve: CurveParams, records: NDArray[Any], n_vars: int, domain_size: int
) -> int:
    """Raises MalformedFile for an index or value out of range -> the largest constraint, or −1."""
    part, last = file.name(COEFFICIENTS), -1
    for start in range(0, len(records), _SCAN_BLOCK):
        block = records[start : start + _SCAN_BLOCK]
        for name, bound, what in (
            ("matrix", 2, "2"),
            ("constraint", domain_size, f"the domain size {domain_size}"),
            ("signal", n_vars, f"the number of variables {n_vars}"),
        ):
            column = block[name]
            largest = int(column.max())
            if largest >= bound:
                row = start + int(np.argmax(column >= bound))
                file.fail(part, f"record {row}: {name} {records[row][name]}, expected below {what}")
            if name == "constraint":
                last = max(last, largest)
        bad = first_not_below(block["value"], curve.r)
        if bad >= 0:
            file.fail(part, f"record {start + bad}: value not below the prime of {curve.scalar.name}")
    return last


def _claims(file: BinFile, curve: CurveParams) -> tuple[bytes, int]:
    """The circuit hash, and how many contributions are said to follow. They are read when asked for."""
    if CONTRIBUTIONS not in file:  # other tools leave it out; no prover needs it
        return b"", 0
    cursor = file.cursor(CONTRIBUTIONS)
    circuit_hash = cursor.bytes(CIRCUIT_HASH, "the circuit hash").tobytes()
    count = cursor.u32("the number of contributions")
    rest, least = len(file.view(CONTRIBUTIONS)) - cursor.position, _contribution_bytes(curve)
    if count * least > rest:
        whole = rest // least
        cursor.fail(f"ends within contribution {whole + 1} of {count}")
    if not count:
        cursor.end()
    return circuit_hash, count


def _contribution_bytes(curve: CurveParams) -> int:
    """Bytes of a contribution without parameters: four points, a hash, its kind, parameters' length."""
    return 8 * (3 * curve.g1_words + curve.g2_words) + 64 + 4 + 4


def _contribution_name(parameters: bytes) -> str | None:
    """Parameters are (type u8, length u8, bytes)*, type 1 the name; a beacon's type 2 is one bare byte."""
    if len(parameters) < 2 or parameters[0] != 1:
        return None
    name = parameters[2 : 2 + parameters[1]].decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "�" for c in name)
