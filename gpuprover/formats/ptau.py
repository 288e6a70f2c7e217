"""Powers of tau (.ptau): the universal first phase of a Groth16 setup.

Sections: 1 header, 2 τ^i·G1 (2·2^power − 1 points), 3 τ^i·G2, 4 α·τ^i·G1, 5 β·τ^i·G1
(2^power each), 6 β·G2, 7 contributions; ``snarkjs powersoftau prepare phase2`` adds the
same in Lagrange form: 12 τ in G1, 13 τ in G2, 14 α·τ, 15 β·τ. Each of those holds a block
of 2^p points for every p from 0 to power (section 12 to power + 1); the block of p starts
at point 2^p − 1. Points are affine Montgomery words.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpuprover.curves import PAIRING_CURVES, CurveParams
from gpuprover.errors import InvalidInput, UnsupportedFile
from gpuprover.formats.binfile import BinFile, Bytes, Source
from gpuprover.limbs import Words

HEADER, TAU_G1, TAU_G2, ALPHA_TAU_G1, BETA_TAU_G1, BETA_G2, CONTRIBUTIONS = range(1, 8)
LAGRANGE_TAU_G1, LAGRANGE_TAU_G2, LAGRANGE_ALPHA_TAU_G1, LAGRANGE_BETA_TAU_G1 = range(12, 16)
SECTIONS = {
    HEADER: "header",
    TAU_G1: "tau in G1",
    TAU_G2: "tau in G2",
    ALPHA_TAU_G1: "alpha tau in G1",
    BETA_TAU_G1: "beta tau in G1",
    BETA_G2: "beta in G2",
    CONTRIBUTIONS: "contributions",
    LAGRANGE_TAU_G1: "Lagrange tau in G1",
    LAGRANGE_TAU_G2: "Lagrange tau in G2",
    LAGRANGE_ALPHA_TAU_G1: "Lagrange alpha tau in G1",
    LAGRANGE_BETA_TAU_G1: "Lagrange beta tau in G1",
}
VERSION = 1
MAX_POWER = 28
IN_G2 = {TAU_G2, BETA_G2, LAGRANGE_TAU_G2}


@dataclass(frozen=True)
class PowersOfTau:
    """A mapped powers-of-tau file.

    Attributes:
        power: it serves circuits of up to 2^power rows.
        ceremony_power: that of the ceremony it was cut from.
        contributions: number of contributions and beacons.
        prepared: whether it has the Lagrange sections that a circuit's setup needs.
    """

    path: str
    curve: CurveParams
    power: int
    ceremony_power: int
    contributions: int
    prepared: bool
    _file: BinFile

    def points(self, section: int) -> Words:
        """A whole section: uint64[n, g1_words or g2_words], read-only and perhaps unaligned."""
        words = self.curve.g2_words if section in IN_G2 else self.curve.g1_words
        view: Words = self._file.view(section).view("<u8").reshape(-1, words)
        return view

    def lagrange(self, section: int, log_n: int) -> Words:
        """The 2^log_n Lagrange points over the domain of that size, from a section 12 to 15."""
        start = (1 << log_n) - 1
        return self.points(section)[start : start + (1 << log_n)]

    def lagrange_bases(self, log_n: int) -> list[Words]:
        """:meth:`lagrange` of τ in G1, τ in G2, ατ and βτ in G1."""
        sections = LAGRANGE_TAU_G1, LAGRANGE_TAU_G2, LAGRANGE_ALPHA_TAU_G1, LAGRANGE_BETA_TAU_G1
        return [self.lagrange(section, log_n) for section in sections]

    def bytes_from(self, section: int, start: int, size: int) -> Bytes:
        """``size`` bytes from byte ``start`` of a section on, past its end too; fewer at the file's end."""
        offset = self._file.find(section).offset + start
        return self._file.data[offset : offset + size]

    def require(self, log_n: int, circuit: str) -> None:
        """Raises InvalidInput unless the file serves a circuit of a domain of 2^log_n."""
        if log_n > self.power:
            raise InvalidInput(
                f"{self.path}: power {self.power} is too small for {circuit}, which needs power >= {log_n}"
            )
        if not self.prepared:
            raise InvalidInput(
                f"{self.path}: not prepared for phase 2: sections 12 to 15 (Lagrange points) are missing; "
                f"make it with: snarkjs powersoftau prepare phase2 {self.path} prepared.ptau"
            )


def read_ptau(source: Source) -> PowersOfTau:
    """Maps a powers-of-tau file and checks its header and the size of every section.

    Raises:
        InvalidInput: the file cannot be opened.
        MalformedFile: truncated or inconsistent.
        UnsupportedFile: another version or curve.
    """
    file = BinFile(source, "ptau", range(1, VERSION + 1), SECTIONS)
    header = file.cursor(HEADER)
    size, q = header.prime("the base field's prime")
    power = header.u32("the power")
    ceremony_power = header.u32("the ceremony's power")
    header.end()
    curve = next((c for c in PAIRING_CURVES if c.q == q), None)
    if curve is None:
        known = ", ".join(c.name for c in PAIRING_CURVES)
        raise UnsupportedFile(file.path, header.part, f"base prime of no known curve ({known})")
    if size != curve.base.bytes:
        header.fail(f"elements of {size} bytes, expected {curve.base.bytes} for {curve.name}")
    if not 1 <= power <= MAX_POWER:
        header.fail(f"power {power}, expected 1 to {MAX_POWER}")

    n = 1 << power
    counts = {TAU_G1: 2 * n - 1, TAU_G2: n, ALPHA_TAU_G1: n, BETA_TAU_G1: n, BETA_G2: 1}
    lagrange = {
        LAGRANGE_TAU_G1: 4 * n - 1,
        LAGRANGE_TAU_G2: 2 * n - 1,
        LAGRANGE_ALPHA_TAU_G1: 2 * n - 1,
        LAGRANGE_BETA_TAU_G1: 2 * n - 1,
    }
    prepared = any(section in file for section in lagrange)
    for section, count in (counts | lagrange if prepared else counts).items():
        words = curve.g2_words if section in IN_G2 else curve.g1_words
        file.exactly(section, 8 * words * count, f"{count} points of {8 * words} bytes")
    contributions = 0
    if CONTRIBUTIONS in file:
        contributions = file.cursor(CONTRIBUTIONS).u32("the number of contributions")
    return PowersOfTau(file.path, curve, power, ceremony_power, contributions, prepared, file)
