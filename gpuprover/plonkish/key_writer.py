"""Proving keys of PLONK and FFLONK (.zkey), written section by section: what both hold alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from gpuprover.backend import Backend, Form, Vector
from gpuprover.formats.binfile import BinFileWriter, SectionWriter
from gpuprover.formats.zkey import HEADER, IDENTIFIERS, PROTOCOL
from gpuprover.limbs import Words, field_to_words
from gpuprover.plonkish.gates import SELECTORS, Gates
from gpuprover.plonkish.key import (
    ADDITIONS,
    EVALUATIONS,
    WIRE_A,
    WIRE_B,
    WIRE_C,
    addition_dtype,
    polynomial_bytes,
)
from gpuprover.plonkish.setup import K1, K2, Powers, permutation, positions
from gpuprover.polynomial import Direction, Domain

_BLOCK = 1 << 14
"""Rows that are written at once."""


class KeyWriter:
    """Writes the sections of a key that both systems have, in any order.

    Args:
        names: what the system calls its sections, for progress.
        reserved: rows at the end of the domain that belong to no gate.

    Each selector of the gates is taken out of them when it has been written.
    """

    def __init__(
        self,
        out: BinFileWriter,
        names: Mapping[int, str],
        gates: Gates,
        domain: Domain,
        reserved: int,
        backend: Backend,
    ) -> None:
        self._out, self._names, self._backend = out, names, backend
        self._gates, self._domain, self._reserved = gates, domain, reserved
        self._maps, self._curve = (gates.a, gates.b, gates.c), backend.curve

    @contextmanager
    def section(self, section: int, size: int) -> Iterator[SectionWriter]:
        """A section of so many bytes, as a phase of the job."""
        with self._backend.job.phase(self._names[section]), self._out.section(section, size) as writer:
            yield writer

    def protocol(self, name: str) -> None:
        with self.section(PROTOCOL, 4) as section:
            section.u32(IDENTIFIERS[name])

    def header(self, rest: Sequence[Words]) -> None:
        """Section 2; what follows k1 and k2 is the system's."""
        curve, gates = self._curve, self._gates
        k1_k2 = field_to_words(curve.scalar, [K1, K2])
        size = sum(4 + p.bytes for p in (curve.base, curve.scalar)) + 5 * 4
        with self.section(HEADER, size + k1_k2.nbytes + sum(words.nbytes for words in rest)) as section:
            for prime in (curve.base, curve.scalar):
                section.u32(prime.bytes)
                section.integer(prime.modulus, prime.bytes)
            section.u32(gates.n_vars, gates.n_public, self._domain.size, gates.additions, gates.count)
            for words in (k1_k2, *rest):
                section.write(words.astype("<u8", copy=False))

    def circuit(self) -> None:
        """Sections 3 to 6: additions and wires."""
        gates, record = self._gates, addition_dtype(self._curve)
        with self.section(ADDITIONS, gates.additions * record.itemsize) as section:
            for start in range(0, gates.additions, _BLOCK):
                some = slice(start, min(start + _BLOCK, gates.additions))
                block = np.empty(some.stop - start, dtype=record)
                block["left"], block["right"] = gates.left[some], gates.right[some]
                block["left_factor"], block["right_factor"] = (
                    gates.left_factors[some],
                    gates.right_factors[some],
                )
                section.write(block)
        for kind, signals in ((WIRE_A, gates.a), (WIRE_B, gates.b), (WIRE_C, gates.c)):
            with self.section(kind, signals.nbytes) as section:
                section.write(signals.astype("<u4", copy=False))

    def polynomials(
        self, sections: Mapping[int, tuple[str, ...]], done: Callable[[str, Vector, Words], None]
    ) -> None:
        """The sections of selectors and of S1, S2, S3, in the order given.

        Args:
            sections: names of the polynomials in each section; case does not matter.
            done: called with the name of each, its coefficients, which live only until it returns, and its
                values on the domain.
        """
        backend = self._backend
        sigma: list[Words] = []
        for kind, names in sections.items():
            with self.section(kind, len(names) * polynomial_bytes(self._curve, self._domain.size)) as section:
                for name in names:
                    if name.lower() in SELECTORS:
                        values = self._padded(self._gates.selectors.pop(name.lower()))
                    else:
                        sigma = sigma or sigma_columns(backend, self._domain, self._maps, self._reserved)
                        values = sigma.pop(0)
                    coefficients = self._polynomial(section, values)
                    done(name, coefficients, values)
                    backend.free(coefficients)
                    backend.job.check()

    def _padded(self, values: Words) -> Words:
        padded = np.zeros((self._domain.size, values.shape[1]), dtype=np.uint64)
        padded[: len(values)] = values
        return padded

    def _polynomial(self, section: SectionWriter, values: Words) -> Vector:
        """Writes a polynomial of these values on the domain, Montgomery; returns its coefficients."""
        backend = self._backend
        v = backend.upload(values, Form.MONTGOMERY)
        v = backend.ntt(v, self._domain, Direction.INVERSE)
        section.write(backend.download(v, Form.MONTGOMERY))
        for block in evaluations(backend, self._domain, v, values):
            section.write(block)
        return v

    def lagrange(self, kind: int) -> None:
        """The Lagrange polynomials of the public signals' rows, of the first row at least."""
        job, count = self._backend.job, max(1, self._gates.n_public)
        with self.section(kind, count * polynomial_bytes(self._curve, self._domain.size)) as section:
            for i, pieces in enumerate(lagrange_polynomials(self._backend, self._domain, count)):
                for piece in pieces:
                    section.write(piece)
                job.check()
                job.report((i + 1) / count)

    def powers(self, kind: int, powers: Powers) -> None:
        """The section of the points τ^i·G1."""
        done, size = 0, 8 * self._curve.g1_words
        with self.section(kind, powers.count * size) as section:
            for block in powers.blocks():
                section.write(block.astype("<u8", copy=False))
                done += len(block)
                self._backend.job.check()
                self._backend.job.report(done / powers.count)


def evaluations(backend: Backend, domain: Domain, coefficients: Vector, values: Words) -> Iterator[Words]:
    """A polynomial's values on the subgroup of order 4n, Montgomery, in blocks.

    Args:
        values: those on the domain, uint64[n, limbs], Montgomery: every fourth one.
    """
    root, r = domain.root_of_unity(domain.log_n + EVALUATIONS.bit_length() - 1), domain.field.modulus
    parts = [values]
    for j in range(1, EVALUATIONS):
        (v,) = backend.extend(coefficients, domain, [pow(root, j, r)])
        parts.append(backend.download(v, Form.MONTGOMERY))
        backend.free(v)
    yield from interleaved(parts)


def sigma_columns(
    backend: Backend, domain: Domain, maps: Sequence[NDArray[np.uint32]], reserved: int
) -> list[Words]:
    """The values of S1, S2 and S3 on the domain, uint64[n, limbs], Montgomery: see :func:`.permutation`."""
    values, columns = positions(backend, domain), []
    for leads_to in permutation(maps, domain.size, reserved):
        v = backend.gather(values, leads_to)
        columns.append(backend.download(v, Form.MONTGOMERY))
        backend.free(v)
    backend.free(values)
    return columns


def lagrange_polynomials(backend: Backend, domain: Domain, count: int) -> Iterator[list[Words]]:
    """The first ``count`` Lagrange polynomials as keys hold them: coefficients, then values, Montgomery."""
    n, r, limbs = domain.size, domain.field.modulus, domain.field.limbs
    first = np.zeros((n, limbs), dtype=np.uint64)
    first[:1] = field_to_words(domain.field, [1])
    values = np.empty((0, limbs), dtype=np.uint64)
    for i in range(count):
        # L_i(X) = 1/n·Σ (X/ω^i)^j, which is L_0(X/ω^i).
        v = backend.powers(n, pow(domain.omega, -i, r), pow(n, -1, r))
        if not i:
            values = np.concatenate(list(evaluations(backend, domain, v, first)))
        coefficients = backend.download(v, Form.MONTGOMERY)
        backend.free(v)
        turned = EVALUATIONS * (n - i)
        yield [coefficients, values[turned:], values[:turned]]


def interleaved(columns: Sequence[Words]) -> Iterator[Words]:
    """Row i of each column in turn, uint64[len(columns)·n, limbs], in blocks of whole turns."""
    for start in range(0, len(columns[0]), _BLOCK):
        block = np.stack([column[start : start + _BLOCK] for column in columns], axis=1)
        yield block.reshape(-1, block.shape[2])
