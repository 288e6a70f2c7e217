"""Groth16 proving keys (.zkey), written section by section.

:class:`KeyWriter` writes the container. :class:`KeySections` is what a set-up writes with: it takes points in
blocks, makes the coefficients' section from the circuit, and hashes what snarkjs's circuit hash covers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuprover.backend import Backend, Form
from gpuprover.curves import CurveParams, Group
from gpuprover.formats.binfile import BinFileWriter, SectionWriter, write_binfile
from gpuprover.formats.files import Pathish
from gpuprover.formats.r1cs import R1CS, SparseRows, row_blocks
from gpuprover.formats.zkey import HEADER, IDENTIFIERS, PROTOCOL, VERSION
from gpuprover.limbs import Words, ints_to_words
from gpuprover.systems.groth16.documents import NAME
from gpuprover.systems.groth16.key import (
    B1,
    B2,
    CIRCUIT_HASH,
    COEFFICIENTS,
    CONTRIBUTIONS,
    IC,
    SECTIONS,
    A,
    C,
    H,
    KeyPoints,
    coefficient_dtype,
)

BLOCK_TERMS = 1 << 16
"""Terms or points handled at once: some MB, and often enough a report of progress."""


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

    @property
    def file_bytes(self) -> int:
        """Bytes of the file, with its header and those of its sections."""
        return 12 + sum(12 + self.section_bytes(section) for section in SECTIONS)


def key_layout(r1cs: R1CS, log_n: int) -> KeyLayout:
    """The layout of a circuit's key over a domain of 2^log_n."""
    coefficients = r1cs.a.nnz + r1cs.b.nnz + r1cs.n_public + 1
    return KeyLayout(r1cs.curve, r1cs.n_wires, r1cs.n_public, 1 << log_n, coefficients)


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


class KeySections:
    """Writes a key's sections and hashes what snarkjs's circuit hash covers, in its order."""

    def __init__(self, path: Pathish, r1cs: R1CS, log_n: int, points: KeyPoints, backend: Backend) -> None:
        self._r1cs, self._backend, self._curve = r1cs, backend, r1cs.curve
        self._layout = key_layout(r1cs, log_n)
        self._open = write_zkey(path, self._layout, points)
        self._hash = blake2b(digest_size=64)
        for g1, g2 in (
            ((points.alpha1, points.beta1), (points.beta2, points.gamma2)),
            ((points.delta1,), (points.delta2,)),
        ):
            self._hash.update(_uncompressed(backend, Group.G1, np.stack(g1)))
            self._hash.update(_uncompressed(backend, Group.G2, np.stack(g2)))

    def __enter__(self) -> KeySections:
        self._writer: KeyWriter = self._open.__enter__()
        return self

    def __exit__(self, *exception: Any) -> bool | None:
        return self._open.__exit__(*exception)

    def points(self, section: int, blocks: Iterable[Words], hashed: Iterable[Words] | None = None) -> None:
        """A section of points; ``hashed`` stand for them in the circuit hash."""
        group = Group.G2 if section == B2 else Group.G1
        words = group.words(self._curve)
        count = self._layout.section_bytes(section) // (8 * words)
        self._hash.update((count - 1 if section == H else count).to_bytes(4, "big"))

        def watched(done: int = 0) -> Iterator[Words]:
            for block in blocks:
                yield block
                if hashed is None:
                    self._hash.update(_uncompressed(self._backend, group, block))
                done += len(block)
                self._backend.job.check()
                self._backend.job.report(done / count)

        with self._backend.job.phase(SECTIONS[section]):
            self._writer.points(section, watched())
            for block in hashed or ():
                self._hash.update(_uncompressed(self._backend, group, block))
                self._backend.job.check()

    def coefficients(self) -> None:
        with self._backend.job.phase(SECTIONS[COEFFICIENTS]):
            self._writer.coefficients(self._coefficient_blocks())

    def _coefficient_blocks(self) -> Iterator[NDArray[Any]]:
        """Row by row A's terms, then B's; last the rows of the public signals."""
        r1cs, record = self._r1cs, coefficient_dtype(self._curve)
        a, b, rows = r1cs.a, r1cs.b, r1cs.n_constraints

        def fill(
            block: NDArray[Any], to: Any, index: int, row: Any, matrix: SparseRows, terms: slice
        ) -> None:
            block["matrix"][to], block["constraint"][to] = index, row
            block["signal"][to], block["value"][to] = matrix.wires[terms], self._twice(matrix.values[terms])

        for first, stop in row_blocks([a.starts, b.starts], BLOCK_TERMS):
            if stop == first + 1:  # perhaps a long one
                for index, matrix in enumerate((a, b)):
                    begin, end = int(matrix.starts[first]), int(matrix.starts[stop])
                    for at in range(begin, end, BLOCK_TERMS):
                        block = np.empty(min(BLOCK_TERMS, end - at), dtype=record)
                        fill(block, slice(None), index, first, matrix, slice(at, at + len(block)))
                        yield block
            else:
                a_starts, b_starts = (m.starts[first : stop + 1] - m.starts[first] for m in (a, b))
                block = np.empty(int(a_starts[-1] + b_starts[-1]), dtype=record)
                for index, (matrix, before) in enumerate(((a, b_starts[:-1]), (b, a_starts[1:]))):
                    terms = slice(int(matrix.starts[first]), int(matrix.starts[stop]))
                    lengths = np.diff(matrix.starts[first : stop + 1])
                    row = np.repeat(np.arange(first, stop, dtype=np.uint32), lengths)
                    fill(block, np.arange(len(row)) + np.repeat(before, lengths), index, row, matrix, terms)
                yield block
            self._backend.job.check()
            self._backend.job.report(stop / rows)
        public = np.zeros(r1cs.n_public + 1, dtype=record)
        public["signal"] = np.arange(len(public))
        public["constraint"] = rows + public["signal"]
        public["value"] = ints_to_words([self._curve.scalar.R**2 % self._curve.r], self._curve.scalar.limbs)
        yield public

    def _twice(self, values: Words) -> Words:
        """c -> c·R² mod r: the Montgomery form of the Montgomery form."""
        if len(values) == 0:
            return values
        for _ in range(2):
            v = self._backend.upload(values)
            values = self._backend.download(v, Form.MONTGOMERY)
            self._backend.free(v)
        return values

    def finish(self) -> bytes:
        """Section 10; returns the circuit hash."""
        circuit_hash = self._hash.digest()
        self._writer.contributions(circuit_hash)
        return circuit_hash


def in_blocks(rows: Words) -> Iterator[Words]:
    """Rows, ``BLOCK_TERMS`` at a time."""
    for start in range(0, len(rows), BLOCK_TERMS):
        yield rows[start : start + BLOCK_TERMS]


def _uncompressed(backend: Backend, group: Group, points: Words) -> bytes:
    """Points as the ecosystem hashes them: canonical big-endian coordinates, of Fq2 the second part first."""
    width = 8 * backend.curve.base.limbs * backend.curve.group(group).degree
    canonical = backend.points.canonical_coordinates(points).astype("<u8", copy=False)
    return canonical.view(np.uint8).reshape(-1, width)[:, ::-1].tobytes()
