"""Groth16 proving keys (.zkey), written section by section."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from gpuprover.curves import CurveParams
from gpuprover.formats.binfile import BinFileWriter, SectionWriter, write_binfile
from gpuprover.formats.files import Pathish
from gpuprover.formats.zkey import HEADER, IDENTIFIERS, PROTOCOL, VERSION
from gpuprover.limbs import Words
from gpuprover.systems.groth16.documents import NAME
from gpuprover.systems.groth16.key import (
    B1,
    B2,
    CIRCUIT_HASH,
    COEFFICIENTS,
    CONTRIBUTIONS,
    IC,
    A,
    C,
    H,
    KeyPoints,
    coefficient_dtype,
)


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
            CONTRIBUTIONS: CIRCUIT_HASH + 4,
        }[section]


class KeyWriter:
    """Writes a key section by section, in any order; sections 1 and 2 come first by themselves."""

    def __init__(self, out: BinFileWriter, layout: KeyLayout, points: KeyPoints) -> None:
        self._out, self._layout, curve = out, layout, layout.curve
        with self._section(PROTOCOL) as section:
            section.u32(IDENTIFIERS[NAME])
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
