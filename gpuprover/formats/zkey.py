"""Groth16 proving keys (.zkey), as snarkjs writes them.

Sections: 1 protocol, 2 header, 3 IC, 4 coefficients, 5 A, 6 B1, 7 B2, 8 C, 9 H,
10 contributions. Points are affine Montgomery words, infinity all zeros. A coefficient
record is (matrix u32: 0 for A, 1 for B; constraint u32; signal u32; value), its value
standing as c·R² mod r. The rows after the circuit's own bind the constant and each public
signal in A. H holds the Lagrange points of the odd coset, scaled by Z(τ)/δ.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gpuprover.curves import CURVES, CurveParams, Group
from gpuprover.errors import MalformedFile, UnsupportedFile, about
from gpuprover.formats.binfile import BinFile, BinFileWriter, Cursor, SectionWriter, Source, write_binfile
from gpuprover.formats.files import Pathish
from gpuprover.formats.groth16_json import VerificationKey, verification_key_to_json
from gpuprover.formats.key_warnings import key_warnings
from gpuprover.formats.points import checked_point
from gpuprover.limbs import Words, first_not_below

if TYPE_CHECKING:
    from gpuprover.backend import Backend
    from gpuprover.demand import KeyHeader

PROTOCOL, HEADER, IC, COEFFICIENTS, A, B1, B2, C, H, CONTRIBUTIONS = range(1, 11)
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
VERSION = 1
GROTH16 = 1
PROTOCOLS = {1: "groth16", 2: "plonk", 10: "fflonk"}

_SCAN_BLOCK = 1 << 16
_CIRCUIT_HASH = 64


def _part(section: int) -> str:
    return f"section {section} ({SECTIONS[section]})"


def coefficient_dtype(curve: CurveParams) -> np.dtype[Any]:
    """A record of section 4: matrix, constraint, signal (u32), value (uint64[limbs], c·R² mod r)."""
    return np.dtype(
        [("matrix", "<u4"), ("constraint", "<u4"), ("signal", "<u4"), ("value", "<u8", (curve.scalar.limbs,))]
    )


@dataclass(frozen=True)
class KeyPoints:
    """The single points of a key's header, on their curves: uint64[words]."""

    alpha1: Words
    beta1: Words
    beta2: Words
    gamma2: Words
    delta1: Words
    delta2: Words


@dataclass(frozen=True)
class Contribution:
    """One step of the key's phase-2 ceremony, as the file tells it: nothing of it is proven here.

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
        constraints: of the circuit, the rows for public signals not counted.
        circuit_hash: 64 bytes that the ceremony started from; empty if the file has none.
        contributions: to phase 2, as many as the file claims.
        size: of the file, in bytes.
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
        cursor.bytes(_CIRCUIT_HASH + 4, "the number of contributions")
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
        """Sentences that whoever uses the key has to read (:mod:`gpuprover.formats.key_warnings`)."""
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

    @property
    def plan_header(self) -> KeyHeader:
        """What :meth:`~gpuprover.backend.Backend.plan` asks for."""
        from gpuprover.demand import KeyHeader

        return KeyHeader(
            domain_size=self.domain_size,
            n_vars=self.n_vars,
            n_public=self.n_public,
            n_coefficients=len(self.coefficients),
            g1_points=2 * self.n_vars + len(self.c) + self.domain_size,
            g2_points=self.n_vars,
            largest_msm=max(self.n_vars, self.domain_size),
        )

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
            with backend.job.part(i, len(sections)):
                bad = backend.points.first_bad_point(Group.G2 if in_g2 else Group.G1, points)
            if bad >= 0:
                problem = f"point {bad} is off the curve, outside the subgroup or out of range"
                raise MalformedFile(self.path, name, problem, role="key")


@about("key")
def load_key(source: Source) -> ProvingKey:
    """Maps a proving key and checks its structure, its header points and its coefficients.

    The points of sections 3 and 5 to 9 are not looked at (:meth:`ProvingKey.check_points` does).

    Raises:
        InvalidInput: the file cannot be opened.
        MalformedFile: truncated, inconsistent sizes, values out of range, header points off their curve.
        UnsupportedFile: another version, protocol or curve.
    """
    file, header, curve = _open_header(source)
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
        protocol=PROTOCOLS[GROTH16],
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
    file, header, curve = _open_header(source)
    n_public = _sizes(header)[1]
    points = _header_points(header, curve)
    header.end()
    ic = _checked_ic(file.path, curve, _points(file, IC, n_public + 1, curve.g1_words))
    return VerificationKey(curve, points.alpha1, points.beta2, points.gamma2, points.delta2, ic)


@about("key")
def read_curve(source: Source) -> CurveParams:
    """The curve that a key is over. Raises as :func:`load_key`."""
    return _open_header(source)[2]


def _open_header(source: Source) -> tuple[BinFile, Cursor, CurveParams]:
    """The file, a Groth16 key, and its header from behind the primes on."""
    file = BinFile(source, "zkey", range(1, VERSION + 1), SECTIONS)
    protocol = file.cursor(PROTOCOL)
    identifier = protocol.u32("the protocol id")
    protocol.end()
    if identifier != GROTH16:
        found = f"a {PROTOCOLS[identifier]} key" if identifier in PROTOCOLS else f"protocol id {identifier}"
        raise UnsupportedFile(file.path, file.name(PROTOCOL), f"expected a groth16 key, found {found}")
    header = file.cursor(HEADER)
    return file, header, _curve(file, header)


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
            ic[i] = checked_point(curve, Group.G1, row, infinity=True)
        except ValueError as error:
            raise MalformedFile(path, _part(IC), f"point {i}: {error}", role="key") from None
    return ic


def _curve(file: BinFile, header: Cursor) -> CurveParams:
    base_size, q = header.prime("the base field's prime")
    scalar_size, r = header.prime("the scalar field's prime")
    for curve in CURVES:
        if (curve.q, curve.r) == (q, r):
            if (base_size, scalar_size) != (curve.base.bytes, curve.scalar.bytes):
                header.fail(
                    f"elements of {base_size} and {scalar_size} bytes, expected "
                    f"{curve.base.bytes} and {curve.scalar.bytes} for {curve.name}"
                )
            return curve
    known = ", ".join(c.name for c in CURVES)
    raise UnsupportedFile(file.path, header.part, f"primes of no known curve ({known})")


def _header_points(header: Cursor, curve: CurveParams) -> KeyPoints:
    def point(name: str, group: Group) -> Words:
        try:
            return checked_point(curve, group, header.bytes(8 * group.words(curve), name).view("<u8"))
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
    circuit_hash = cursor.bytes(_CIRCUIT_HASH, "the circuit hash").tobytes()
    count = cursor.u32("the number of contributions")
    rest, least = len(file.view(CONTRIBUTIONS)) - cursor.position, _contribution_bytes(curve)
    if count * least > rest:
        whole = rest // least
        cursor.fail(f"ends within contribution {whole + 1} of {count}")
    if not count:
        cursor.end()
    return circuit_hash, count


def _contribution_bytes(curve: CurveParams) -> int:
    """Of a contribution without parameters: four points, a transcript's hash, kind, length of parameters."""
    return 8 * (3 * curve.g1_words + curve.g2_words) + 64 + 4 + 4


def _contribution_name(parameters: bytes) -> str | None:
    """Parameters are (type u8, length u8, bytes)*, type 1 the name; a beacon's type 2 is one bare byte."""
    if len(parameters) < 2 or parameters[0] != 1:
        return None
    name = parameters[2 : 2 + parameters[1]].decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "�" for c in name)


@dataclass(frozen=True)
class KeyLayout:
    """The counts from which every section's size follows."""

    curve: CurveParams
    n_vars: int
    n_public: int
    domain_size: int
    n_coefficients: int

    def section_bytes(self, section: int) -> int:
        g1, g2 = 8 * self.curve.g1_words, 8 * self.curve.g2_words
        return {
            PROTOCOL: 4,
            HEADER: 8 + self.curve.base.bytes + self.curve.scalar.bytes + 12 + 3 * g1 + 3 * g2,
            IC: (self.n_public + 1) * g1,
            COEFFICIENTS: 4 + self.n_coefficients * coefficient_dtype(self.curve).itemsize,
            A: self.n_vars * g1,
            B1: self.n_vars * g1,
            B2: self.n_vars * g2,
            C: (self.n_vars - self.n_public - 1) * g1,
            H: self.domain_size * g1,
            CONTRIBUTIONS: _CIRCUIT_HASH + 4,
        }[section]


class KeyWriter:
    """Writes a key section by section, in any order; sections 1 and 2 come first by themselves."""

    def __init__(self, out: BinFileWriter, layout: KeyLayout, points: KeyPoints) -> None:
        self._out, self._layout, curve = out, layout, layout.curve
        with self._section(PROTOCOL) as section:
            section.u32(GROTH16)
        with self._section(HEADER) as section:
            for prime in (curve.base, curve.scalar):
                section.u32(prime.bytes)
                section.integer(prime.modulus, prime.bytes)
            section.u32(layout.n_vars, layout.n_public, layout.domain_size)
            for point in (
                points.alpha1, points.beta1, points.beta2, points.gamma2, points.delta1, points.delta2,
            ):  # fmt: skip
                section.write(point.astype("<u8", copy=False))

    @contextmanager
    def _section(self, section: int) -> Iterator[SectionWriter]:
        with self._out.section(section, self._layout.section_bytes(section)) as writer:
            yield writer

    def coefficients(self, blocks: Iterable[NDArray[Any]]) -> None:
        """Section 4: arrays of :func:`coefficient_dtype`, together ``n_coefficients`` long."""
        with self._section(COEFFICIENTS) as section:
            section.u32(self._layout.n_coefficients)
            for block in blocks:
                section.write(block)

    def points(self, section: int, blocks: Iterable[Words]) -> None:
        """Section 3 or 5 to 9: arrays of affine Montgomery points."""
        with self._section(section) as writer:
            for block in blocks:
                writer.write(block.astype("<u8", copy=False))

    def contributions(self, circuit_hash: bytes) -> None:
        """Section 10, of a key without contributions."""
        with self._section(CONTRIBUTIONS) as section:
            section.write(circuit_hash)
            section.u32(0)


@contextmanager
def write_zkey(path: Pathish, layout: KeyLayout, points: KeyPoints) -> Iterator[KeyWriter]:
    """A new proving key without contributions that takes the place of ``path`` when the block ends well."""
    with write_binfile(path, "zkey", VERSION, 10) as out:
        yield KeyWriter(out, layout, points)
