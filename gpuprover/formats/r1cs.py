"""Constraint systems (.r1cs): for every row i, ⟨A_i, w⟩ · ⟨B_i, w⟩ = ⟨C_i, w⟩.

Sections: 1 header, 2 constraints, 3 wire-to-label map; 4 and 5, custom gates, belong to
PLONK circuits. Wires are numbered 0 (the constant 1), public outputs, public inputs,
private inputs, the rest. A constraint is three linear combinations, each a count (u32)
and as many terms of wire (u32) and coefficient (n8 bytes, canonical).

Source: https://github.com/iden3/r1csfile/blob/master/doc/r1cs_bin_format.md
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gpuprover import memory
from gpuprover.curves import CurveParams
from gpuprover.errors import UnsupportedFile, WitnessMismatch
from gpuprover.formats.binfile import BinFile, Source, write_binfile
from gpuprover.formats.files import Pathish
from gpuprover.formats.wtns import Witness
from gpuprover.limbs import Words, first_not_below

if TYPE_CHECKING:
    from gpuprover.backend import Backend

HEADER, CONSTRAINTS, LABELS, GATE_LIST, GATE_USES = 1, 2, 3, 4, 5
SECTIONS = {
    HEADER: "header",
    CONSTRAINTS: "constraints",
    LABELS: "wire labels",
    GATE_LIST: "custom gates",
    GATE_USES: "custom gate uses",
}
VERSION = 1

_CHECK_EVERY = 1 << 16
LOOP_BYTES = 3 * 48
"""Memory of the parsing loop's lists for each constraint: two entries and an integer a combination."""


@dataclass(frozen=True)
class SparseRows:
    """One matrix of a constraint system, row by row (CSR).

    Row i has the terms k in [starts[i], starts[i+1]); a wire may occur in it more than once.

    Attributes:
        starts: int64[rows + 1], from 0 to nnz.
        wires: uint32[nnz], in [0, n_wires).
        values: uint64[nnz, limbs], canonical, in [0, r).
    """

    starts: NDArray[np.int64]
    wires: NDArray[np.uint32]
    values: Words

    @property
    def rows(self) -> int:
        return len(self.starts) - 1

    @property
    def nnz(self) -> int:
        return len(self.wires)

    def row_index(self) -> NDArray[np.uint32]:
        """uint32[nnz]: the row of every term."""
        return np.repeat(np.arange(self.rows, dtype=np.uint32), np.diff(self.starts))


@dataclass(frozen=True)
class R1CS:
    """A constraint system over a curve's scalar field.

    Attributes:
        n_wires: of them wire 0 is 1, then come ``n_pub_out`` outputs, ``n_pub_in`` and ``n_prv_in`` inputs.
        n_labels: signals in the source program.
        a, b, c: the three matrices, of equally many rows.
        labels: uint64[n_wires], the source signal of every wire; None if unknown.
        source: where it came from, for messages.
    """

    curve: CurveParams
    n_wires: int
    n_pub_out: int
    n_pub_in: int
    n_prv_in: int
    n_labels: int
    a: SparseRows
    b: SparseRows
    c: SparseRows
    labels: NDArray[np.uint64] | None = field(default=None, repr=False)
    source: str = "<r1cs>"

    @property
    def n_constraints(self) -> int:
        return self.a.rows

    @property
    def n_public(self) -> int:
        """Public signals: outputs and inputs, wire 0 not counted."""
        return self.n_pub_out + self.n_pub_in

    @property
    def nbytes(self) -> int:
        """Memory of the matrices."""
        return sum(m.starts.nbytes + m.wires.nbytes + m.values.nbytes for m in self.matrices)

    @property
    def matrices(self) -> tuple[SparseRows, SparseRows, SparseRows]:
        return self.a, self.b, self.c


def read_r1cs(source: Source, budget: int | None = None, check: Callable[[], None] = lambda: None) -> R1CS:
    """Reads and checks a constraint system, given as a path or as the file's bytes.

    Args:
        budget: bytes that reading may take; the mapped file does not count.
        check: called often; ends the reading by an exception (:meth:`gpuprover.job.Job.check`).

    Raises:
        InvalidInput: the file cannot be opened.
        MalformedFile: truncated, inconsistent counts, wires or coefficients out of range.
        UnsupportedFile: another version or field, or custom gates.
        OutOfMemory: it would take more than the budget.
    """
    file = BinFile(source, "r1cs", range(1, VERSION + 1), SECTIONS)
    header = file.cursor(HEADER)
    size, prime = header.prime("the field prime")
    n_wires, n_pub_out, n_pub_in, n_prv_in = (
        header.u32(f"the number of {what}")
        for what in ("wires", "public outputs", "public inputs", "private inputs")
    )
    n_labels = header.u64("the number of labels")
    n_constraints = header.u32("the number of constraints")
    header.end()
    curve = file.curve_of_scalars(file.name(HEADER), prime)
    if size != curve.scalar.bytes:
        header.fail(f"coefficients of {size} bytes, expected {curve.scalar.bytes} for {curve.name}")
    named = 1 + n_pub_out + n_pub_in + n_prv_in
    if n_wires < named:
        header.fail(f"{n_wires} wires, expected at least {named}: the constant, outputs and inputs")
    if GATE_USES in file and file.cursor(GATE_USES).u32("the number of custom gate uses"):
        raise UnsupportedFile(
            file.path, file.name(GATE_USES), "custom gates are of PLONK circuits, expected plain constraints"
        )
    labels = None
    if LABELS in file:
        labels = file.exactly(LABELS, 8 * n_wires, f"{n_wires} labels of 8 bytes").view("<u8")

    need = _reading_bytes(len(file.view(CONSTRAINTS)), n_constraints, curve)
    memory.require(need, budget, f"reading {file.path}")
    a, b, c = _constraints(file, curve, n_constraints, n_wires, check)
    return R1CS(curve, n_wires, n_pub_out, n_pub_in, n_prv_in, n_labels, a, b, c, labels, file.path)


def _reading_bytes(size: int, constraints: int, curve: CurveParams) -> int:
    """What :func:`_constraints` takes at its peak for a section of ``size`` bytes."""
    term = 4 + curve.scalar.bytes
    terms = max(0, size - 12 * constraints) // term
    # All terms, their split into matrices with the largest twice, their matrix; a flag for each word.
    arrays = terms * (3 * term + 1) + size // 4
    return arrays + constraints * (LOOP_BYTES + 3 * 16)


def _constraints(
    file: BinFile, curve: CurveParams, count: int, n_wires: int, check: Callable[[], None]
) -> list[SparseRows]:
    part, content = file.name(CONSTRAINTS), file.view(CONSTRAINTS)
    combinations = 3 * count
    if len(content) % 4 or len(content) < 4 * combinations:
        file.fail(part, f"{len(content)} bytes cannot hold {count} constraints: truncated?")

    # Lengths vary, so where each combination begins is known only after the one before it. A plain
    # loop over u32 words does it at 60 ns a combination; all other work is on whole arrays.
    words = content.data.cast("I") if sys.byteorder == "little" else content.view("<u4")
    stride = 1 + 2 * curve.scalar.limbs
    counts, heads, position = [0] * combinations, [0] * combinations, 0
    end = len(words)
    for i in range(combinations):
        if i % _CHECK_EVERY == 0:
            check()
        if position >= end:
            file.fail(part, f"ends before constraint {i // 3} of {count}: truncated?")
        terms = words[position]
        heads[i] = position
        counts[i] = terms
        position += 1 + stride * terms
    if position != end:
        found = "bytes follow the last constraint" if position < end else "the last constraint is cut off"
        file.fail(part, f"{found}: expected {4 * position} bytes, found {len(content)}")

    # Without the counts, what is left are the terms, one after another.
    terms_only = np.ones(end, dtype=bool)
    terms_only[heads] = False
    record = np.dtype([("wire", "<u4"), ("value", "<u8", (curve.scalar.limbs,))])
    terms = content.view("<u4")[terms_only].view(record)
    lengths = np.array(counts, dtype=np.int64).reshape(count, 3)
    which = np.repeat(np.tile(np.arange(3, dtype=np.uint8), count), lengths.ravel())

    matrices = []
    for m, name in enumerate("ABC"):
        check()
        mine = terms[which == m]
        starts = np.zeros(count + 1, dtype=np.int64)
        np.cumsum(lengths[:, m], out=starts[1:])
        matrix = SparseRows(starts, np.ascontiguousarray(mine["wire"]), np.ascontiguousarray(mine["value"]))
        _check_ranges(file, part, name, matrix, curve, n_wires)
        matrices.append(matrix)
    return matrices


def _check_ranges(
    file: BinFile, part: str, name: str, matrix: SparseRows, curve: CurveParams, n_wires: int
) -> None:
    def where(term: int) -> str:
        return f"{name} of constraint {int(np.searchsorted(matrix.starts, term, side='right')) - 1}"

    if matrix.nnz and int(matrix.wires.max()) >= n_wires:
        term = int(np.argmax(matrix.wires >= n_wires))
        file.fail(part, f"{where(term)}: wire {matrix.wires[term]}, expected below {n_wires}")
    term = first_not_below(matrix.values, curve.r)
    if term >= 0:
        file.fail(part, f"{where(term)}: coefficient not below the prime of {curve.scalar.name}")


def write_r1cs(path: Pathish, r1cs: R1CS) -> None:
    """Writes a constraint system as circom does, atomically."""
    scalar, count = r1cs.curve.scalar, r1cs.n_constraints
    labels = r1cs.labels if r1cs.labels is not None else np.arange(r1cs.n_wires, dtype=np.uint64)
    content = _constraint_words(r1cs)
    with write_binfile(path, "r1cs", VERSION, 3) as out:
        with out.section(HEADER, 4 + scalar.bytes + 4 * 4 + 8 + 4) as section:
            section.u32(scalar.bytes)
            section.integer(scalar.modulus, scalar.bytes)
            section.u32(r1cs.n_wires, r1cs.n_pub_out, r1cs.n_pub_in, r1cs.n_prv_in)
            section.u64(r1cs.n_labels)
            section.u32(count)
        with out.section(CONSTRAINTS, content.nbytes) as section:
            section.write(content)
        with out.section(LABELS, 8 * r1cs.n_wires) as section:
            section.write(labels.astype("<u8", copy=False))


def _constraint_words(r1cs: R1CS) -> NDArray[np.uint32]:
    """The constraints section as u32 words."""
    count, stride = r1cs.n_constraints, 1 + 2 * r1cs.curve.scalar.limbs
    lengths = np.stack([np.diff(m.starts) for m in r1cs.matrices], axis=1)
    sizes = (1 + stride * lengths).ravel()
    heads = np.cumsum(sizes) - sizes
    words = np.zeros(int(sizes.sum()), dtype="<u4")
    words[heads] = lengths.ravel()
    is_term = np.ones(len(words), dtype=bool)
    is_term[heads] = False
    terms = np.empty((int(lengths.sum()), stride), dtype="<u4")
    which = np.repeat(np.tile(np.arange(3, dtype=np.uint8), count), lengths.ravel())
    for m, matrix in enumerate(r1cs.matrices):
        rows = np.flatnonzero(which == m)
        terms[rows, 0] = matrix.wires
        terms[rows, 1:] = np.ascontiguousarray(matrix.values, dtype="<u8").view("<u4")
    words[is_term] = terms.ravel()
    return words


def check_witness(r1cs: R1CS, witness: Witness, backend: Backend) -> int | None:
    """The first constraint that the witness does not satisfy, or None if it satisfies all.

    Raises:
        WitnessMismatch: another field, or another number of wires.
    """
    from gpuprover.backend import Form

    if witness.curve != r1cs.curve:
        raise WitnessMismatch(
            f"{witness.source}: values over the scalar field of {witness.curve.name}, "
            f"expected that of {r1cs.curve.name} for {r1cs.source}"
        )
    if len(witness) != r1cs.n_wires:
        raise WitnessMismatch(
            f"{witness.source}: {len(witness)} values, expected {r1cs.n_wires}, the wires of {r1cs.source}"
        )
    if r1cs.n_constraints == 0:
        return None
    products = []
    for m in r1cs.matrices:
        single = np.zeros(m.nnz, dtype=np.uint32)
        matrix = backend.prepare_matrices(1, m.rows, single, m.row_index(), m.wires, m.values, Form.CANONICAL)
        products += backend.spmv(matrix, witness.values)
        backend.free(matrix)
    a, b, c = products
    difference = backend.multiply_subtract_in_place(a, b, c)
    wrong = backend.download(difference, Form.MONTGOMERY).any(axis=1)
    backend.free(a, b, c)
    return int(np.argmax(wrong)) if wrong.any() else None
