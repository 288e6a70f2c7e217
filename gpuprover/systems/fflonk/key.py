"""FFLONK proving keys (.zkey), as snarkjs writes them.

Sections: 1 protocol, 2 header, 3 additions, 4 to 6 wires, 7 to 11 the gates' polynomials Ql, Qr, Qm, Qo, Qc,
12 to 14 the permutation's S1, S2, S3, 15 Lagrange polynomials, 16 the points τ^i·G1, 17 the coefficients of
C0, which are those of the eight polynomials in turn and are not read. See :mod:`gpuprover.plonkish.key`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from gpuprover.backend import Backend
from gpuprover.curves import CurveParams, Group
from gpuprover.demand import Demand
from gpuprover.errors import UnsupportedFile, about
from gpuprover.formats.binfile import BinFile, Source
from gpuprover.formats.zkey import HEADER, PROTOCOL, open_header
from gpuprover.limbs import Words
from gpuprover.plonkish import key as shared
from gpuprover.plonkish.key import CIRCUIT_SECTIONS, Sizes, Wiring
from gpuprover.systems.fflonk.documents import (
    CURVE,
    NAME,
    OTHER_CURVE,
    RESERVED,
    Constants,
    VerificationKey,
)

QL, QR, QM, QO, QC, S1, S2, S3, LAGRANGE, POWERS, C0 = range(7, 18)
POLYNOMIALS: dict[int, tuple[str, ...]] = {
    QL: ("Ql",),
    QR: ("Qr",),
    QM: ("Qm",),
    QO: ("Qo",),
    QC: ("Qc",),
    S1: ("S1",),
    S2: ("S2",),
    S3: ("S3",),
}
"""The name of the polynomial in each section."""
SECTIONS = {
    PROTOCOL: "protocol",
    HEADER: "FFLONK header",
    **CIRCUIT_SECTIONS,
    **{section: name for section, (name,) in POLYNOMIALS.items()},
    LAGRANGE: "Lagrange polynomials",
    POWERS: "powers of tau",
    C0: "C0",
}
MULTIPLE, MORE_POWERS = 9, 18
"""A domain of n elements has 9n + 18 powers of τ."""
_INTERLEAVED = 8


def part(section: int) -> str:
    """How messages call a section."""
    return f"section {section} ({SECTIONS[section]})"


@dataclass(frozen=True, eq=False)
class ProvingKey(shared.KeySizes):
    """A mapped FFLONK proving key. Arrays are read-only, often unaligned views of the file.

    Attributes:
        path: where it came from, for messages.
        wiring: the gates' wires.
        polynomials: coefficients by the names of :data:`POLYNOMIALS`, uint64[domain_size, limbs], Montgomery.
        powers: τ^i·G1, uint64[9·domain_size + 18, g1_words].
        vk: the verification key.
        size: bytes of the file.
    """

    path: str
    wiring: Wiring
    polynomials: Mapping[str, Words] = field(repr=False)
    powers: Words = field(repr=False)
    vk: VerificationKey
    size: int
    file: BinFile = field(repr=False)

    @property
    def protocol(self) -> str:
        return NAME

    @property
    def curve(self) -> CurveParams:
        return CURVE

    @property
    def warnings(self) -> tuple[str, ...]:
        return self.vk.warnings

    @property
    def verification_key(self) -> dict[str, Any]:
        """The document that ``snarkjs zkey export verificationkey`` writes."""
        return self.vk.document

    @cached_property
    def demand(self) -> Demand:
        """The demand of a proof with the key."""
        from gpuprover.systems.fflonk.prover import demand_of

        return demand_of(self)

    def check_header_points(self, backend: Backend) -> None:
        """Raises MalformedFile if a header point is outside the prime-order subgroup."""
        for group, name, point in ((Group.G2, "X_2", self.vk.tau_g2), (Group.G1, "C0", self.vk.c0)):
            shared.check_points(self.path, part(HEADER), group, point[None], backend, first=name)

    def check_points(self, backend: Backend) -> None:
        """Every point of the key: range, curve, subgroup. Raises MalformedFile naming the culprit."""
        self.check_header_points(backend)
        shared.check_points(self.path, part(POWERS), Group.G1, self.powers, backend)


@about("key")
def load_key(source: Source) -> ProvingKey:
    """Maps a proving key and checks its structure, its wires, its coefficients and its header's points.

    The powers of τ are not looked at (:meth:`ProvingKey.check_points` does), values on the larger subgroup
    and C0's coefficients are never read, and whether the parts belong together is not known.

    Raises:
        InvalidInput: the file cannot be opened.
        MalformedFile: truncated, inconsistent sizes, values out of range, header points off their curve.
        UnsupportedFile: another version, protocol or curve.
    """
    header = _header(source)
    file, sizes, vk = header.file, header.sizes, header.vk
    n = sizes.domain_size
    shared.check_lagrange(file, CURVE, sizes, LAGRANGE)
    _check_c0(file, n)
    return ProvingKey(
        path=file.path,
        wiring=shared.read_wiring(file, CURVE, sizes, vk.constants.k1, vk.constants.k2),
        polynomials=shared.read_polynomials(file, CURVE, n, POLYNOMIALS),
        powers=shared.read_powers(file, CURVE, POWERS, MULTIPLE * n + MORE_POWERS),
        vk=vk,
        size=len(file.data),
        file=file,
    )


@about("key")
def read_verification_key(source: Source) -> VerificationKey:
    """The verification key alone: of a large file only the header is read.

    Raises:
        InvalidInput, MalformedFile, UnsupportedFile: as :func:`load_key`, for that section.
    """
    return _header(source).vk


class _Header(NamedTuple):
    file: BinFile
    sizes: Sizes
    vk: VerificationKey


def _header(source: Source) -> _Header:
    file, header, curve = open_header(source, NAME, SECTIONS)
    if curve != CURVE:
        raise UnsupportedFile(file.path, header.part, f"a key over {curve.name}: {OTHER_CURVE}")
    sizes = shared.read_sizes(header, curve, RESERVED)
    k1, k2 = shared.read_shifts(header, curve, sizes.domain_size)
    roots = (shared.read_scalar(header, curve, name) for name in ("w3", "w4", "w8", "wr"))
    constants = Constants(k1, k2, *roots)
    power = sizes.domain_size.bit_length() - 1
    bad = constants.bad_root(power)
    if bad:
        header.fail(": ".join(bad))
    tau_g2 = shared.read_point(header, curve, Group.G2, "X_2", infinity="which no sound key has")
    c0 = shared.read_point(header, curve, Group.G1, "C0", infinity="which no sound key has")
    header.end()
    return _Header(file, sizes, VerificationKey(sizes.n_public, power, constants, tau_g2, c0))


def _check_c0(file: BinFile, domain_size: int) -> None:
    """The size of C0's section: a power of two of coefficients, fewer than 8n where the highest are 0."""
    scalars, rest = divmod(len(file.view(C0)), CURVE.scalar.bytes)
    if rest or scalars & (scalars - 1) or not 0 < scalars <= _INTERLEAVED * domain_size:
        file.exactly(
            C0, _INTERLEAVED * domain_size * CURVE.scalar.bytes, f"{_INTERLEAVED} × {domain_size} scalars"
        )
