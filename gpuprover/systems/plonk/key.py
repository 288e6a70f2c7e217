"""PLONK proving keys (.zkey), as snarkjs writes them.

Sections: 1 protocol, 2 header, 3 additions, 4 to 6 wires, 7 to 11 the gates' polynomials Qm, Ql, Qr, Qo,
Qc, 12 the permutation's S1, S2, S3, 13 Lagrange polynomials, 14 the points τ^i·G1. See
:mod:`gpuprover.plonkish.key`. There is no ceremony of the circuit's own: the key follows from the circuit
and the powers of tau.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from gpuprover.backend import Backend
from gpuprover.curves import CurveParams, Group
from gpuprover.demand import Demand
from gpuprover.errors import about
from gpuprover.formats.binfile import BinFile, Source
from gpuprover.formats.zkey import HEADER, PROTOCOL, open_header
from gpuprover.limbs import Words
from gpuprover.plonkish import key as shared
from gpuprover.plonkish.key import CIRCUIT_SECTIONS, Sizes, Wiring
from gpuprover.systems.plonk.documents import COMMITMENTS, NAME, VerificationKey

QM, QL, QR, QO, QC, SIGMA, LAGRANGE, POWERS = range(7, 15)
SECTIONS = {
    PROTOCOL: "protocol",
    HEADER: "PLONK header",
    **CIRCUIT_SECTIONS,
    QM: "Qm",
    QL: "Ql",
    QR: "Qr",
    QO: "Qo",
    QC: "Qc",
    SIGMA: "S1, S2, S3",
    LAGRANGE: "Lagrange polynomials",
    POWERS: "powers of tau",
}
POLYNOMIALS: dict[int, tuple[str, ...]] = {
    QM: ("Qm",),
    QL: ("Ql",),
    QR: ("Qr",),
    QO: ("Qo",),
    QC: ("Qc",),
    SIGMA: ("S1", "S2", "S3"),
}
"""Names of the polynomials in each section, in order."""
MORE_POWERS = 6
"""Powers of τ beyond the domain size."""


def part(section: int) -> str:
    """How messages call a section."""
    return f"section {section} ({SECTIONS[section]})"


@dataclass(frozen=True, eq=False)
class ProvingKey(shared.KeySizes):
    """A mapped PLONK proving key. Arrays are read-only, often unaligned views of the file.

    Attributes:
        path: where it came from, for messages.
        wiring: the gates' wires.
        polynomials: coefficients by the names of :data:`COMMITMENTS`, uint64[domain_size, limbs], Montgomery.
        powers: τ^i·G1, uint64[domain_size + 6, g1_words].
        commitments: those of the polynomials, as the header says; on their curve.
        tau_g2: τ·G2, on its curve.
        size: bytes of the file.
    """

    path: str
    curve: CurveParams
    wiring: Wiring
    polynomials: Mapping[str, Words] = field(repr=False)
    powers: Words = field(repr=False)
    commitments: Mapping[str, Words] = field(repr=False)
    tau_g2: Words = field(repr=False)
    size: int
    file: BinFile = field(repr=False)

    @property
    def protocol(self) -> str:
        return NAME

    @property
    def warnings(self) -> tuple[str, ...]:
        return self.vk.warnings

    @cached_property
    def vk(self) -> VerificationKey:
        """The verification key."""
        return _key(self.curve, self.sizes, self.wiring.k1, self.wiring.k2, self.commitments, self.tau_g2)

    @property
    def verification_key(self) -> dict[str, Any]:
        """The document that ``snarkjs zkey export verificationkey`` writes."""
        return self.vk.document

    @cached_property
    def demand(self) -> Demand:
        """The demand of a proof with the key."""
        from gpuprover.systems.plonk.prover import demand_of

        return demand_of(self)

    def check_header_points(self, backend: Backend) -> None:
        """Raises MalformedFile if a header point is outside the prime-order subgroup."""
        g1 = np.stack([self.commitments[name] for name in COMMITMENTS])
        for group, names, points in (
            (Group.G1, " ".join(COMMITMENTS), g1),
            (Group.G2, "X_2", self.tau_g2[None]),
        ):
            shared.check_points(self.path, part(HEADER), group, points, backend, first=names)

    def check_points(self, backend: Backend) -> None:
        """Every point of the key: range, curve, subgroup. Raises MalformedFile naming the culprit."""
        self.check_header_points(backend)
        shared.check_points(self.path, part(POWERS), Group.G1, self.powers, backend)


@about("key")
def load_key(source: Source) -> ProvingKey:
    """Maps a proving key and checks its structure, its wires, its coefficients and its header's points.

    The powers of τ are not looked at (:meth:`ProvingKey.check_points` does), values on the larger subgroup
    are never read, and whether the parts belong together is not known.

    Raises:
        InvalidInput: the file cannot be opened.
        MalformedFile: truncated, inconsistent sizes, values out of range, header points off their curve.
        UnsupportedFile: another version, protocol or curve.
    """
    file, curve, sizes, shifts, commitments, tau_g2 = _header(source)
    n = sizes.domain_size
    shared.check_lagrange(file, curve, sizes, LAGRANGE)
    return ProvingKey(
        path=file.path,
        curve=curve,
        wiring=shared.read_wiring(file, curve, sizes, *shifts),
        polynomials=shared.read_polynomials(file, curve, n, POLYNOMIALS),
        powers=shared.read_powers(file, curve, POWERS, n + MORE_POWERS),
        commitments=commitments,
        tau_g2=tau_g2,
        size=len(file.data),
        file=file,
    )


@about("key")
def read_verification_key(source: Source) -> VerificationKey:
    """The verification key alone: of a large file only the header is read.

    Raises:
        InvalidInput, MalformedFile, UnsupportedFile: as :func:`load_key`, for that section.
    """
    _, curve, sizes, (k1, k2), commitments, tau_g2 = _header(source)
    return _key(curve, sizes, k1, k2, commitments, tau_g2)


def _header(
    source: Source,
) -> tuple[BinFile, CurveParams, Sizes, tuple[int, int], dict[str, Words], Words]:
    file, header, curve = open_header(source, NAME, SECTIONS)
    sizes = shared.read_sizes(header, curve, reserved=0)
    shifts = shared.read_shifts(header, curve, sizes.domain_size)
    commitments = {name: shared.read_point(header, curve, Group.G1, name) for name in COMMITMENTS}
    tau_g2 = shared.read_point(header, curve, Group.G2, "X_2", infinity="which no sound key has")
    header.end()
    return file, curve, sizes, shifts, commitments, tau_g2


def _key(
    curve: CurveParams, sizes: Sizes, k1: int, k2: int, commitments: Mapping[str, Words], tau_g2: Words
) -> VerificationKey:
    power = sizes.domain_size.bit_length() - 1
    return VerificationKey(curve, sizes.n_public, power, k1, k2, commitments, tau_g2)
