"""Constraint systems (.r1cs): for every row i, ⟨A_i, w⟩ · ⟨B_i, w⟩ = ⟨C_i, w⟩.

Sections: 1 header, 2 constraints, 3 wire-to-label map; 4 and 5, custom gates, belong to
PLONK circuits. Wires are numbered 0 (the constant 1), public outputs, public inputs,
private inputs, the rest; private inputs that are in no constraint may have no wire. A
constraint is three linear combinations, each a count (u32) and as many terms of wire
(u32) and coefficient (n8 bytes, canonical).

Source: https://github.com/iden3/r1csfile/blob/master/doc/r1cs_bin_format.md
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gpuprover import memory
from gpuprover.curves import CurveParams
from gpuprover.errors import UnsupportedFile
from gpuprover.formats.binfile import BinFile, Source, write_binfile
from gpuprover.formats.files import Pathish
from gpuprover.limbs import Words, first_not_below

HEADER, CONSTRAINTS, LABELS, GATE_LIST, GATE_USES = 1, 2, 3, 4, 5
SECTIONS = {
    HEADER: "header",
    CONSTRAINTS: "constraints",
    LABELS: "wire labels",
    GATE_LIST: "custom gates",
    GATE_USES: "custom gate uses",
}
VERSION = 1

_ROWS = 1 << 14
"""Constraints whose lengths are looked up between two checks."""
_TERMS = 1 << 16
"""Terms that are read or written at once."""


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
        n_wires: the number of wires. Wire 0 is 1; ``n_pub_out`` outputs, ``n_pub_in`` inputs and private
            signals follow.
        n_prv_in: private inputs of the source program, which may exceed the wires: circom drops those that
            no constraint needs.
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
    public = 1 + n_pub_out + n_pub_in
    if n_wires < public:
        header.fail(f"{n_wires} wires, expected at least {public}: the constant and the public signals")
    if GATE_USES in file and file.cursor(GATE_USES).u32("the number of custom gate uses"):
        raise UnsupportedFile(
            file.path,
            file.name(GATE_USES),
            "custom gates, whose constraints are not in the file: a key without them would prove less",
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
    # The matrices, the lengths of the combinations, and a block with its copies.
    return terms * term + constraints * (3 * 8 + 3 * 4) + 8 * min(terms + constraints, _TERMS) * term


def _constraints(
    file: BinFile, curve: CurveParams, count: int, n_wires: int, check: Callable[[], None]
) -> list[SparseRows]:
    part, content = file.name(CONSTRAINTS), file.view(CONSTRAINTS)
    if len(content) % 4 or len(content) < 12 * count:
        file.fail(part, f"{len(content)} bytes cannot hold {count} constraints: truncated?")
    words, stride, limbs = content.view("<u4"), 1 + 2 * curve.scalar.limbs, curve.scalar.limbs
    lengths = _lengths(file, words, stride, count, check)
    matrices = []
    for m in range(3):
        starts = np.zeros(count + 1, dtype=np.int64)
        np.cumsum(lengths[:, m], out=starts[1:])
        nnz = int(starts[-1])
        values = np.empty((nnz, limbs), dtype=np.uint64)
        matrices.append(SparseRows(starts, np.empty(nnz, dtype=np.uint32), values))

    record = np.dtype([("wire", "<u4"), ("value", "<u8", (limbs,))])
    for first, stop in row_blocks([m.starts for m in matrices], _TERMS):
        check()
        begin = 3 * first + stride * sum(int(m.starts[first]) for m in matrices)
        if stop == first + 1:  # perhaps a long one: as it stands
            for matrix in matrices:
                to = slice(int(matrix.starts[first]), int(matrix.starts[stop]))
                end = begin + 1 + stride * (to.stop - to.start)
                mine = words[begin + 1 : end].view(record)
                matrix.wires[to], matrix.values[to] = mine["wire"], mine["value"]
                begin = end
            continue
        is_term, which = _layout(lengths[first:stop], stride)
        terms = words[begin : begin + len(is_term)][is_term].view(record)
        for m, matrix in enumerate(matrices):
            mine = terms[which == m]
            to = slice(int(matrix.starts[first]), int(matrix.starts[stop]))
            matrix.wires[to], matrix.values[to] = mine["wire"], mine["value"]
    for name, matrix in zip("ABC", matrices, strict=True):
        check()
        _check_ranges(file, part, name, matrix, curve, n_wires)
    return matrices


def _lengths(
    file: BinFile, words: NDArray[np.uint32], stride: int, count: int, check: Callable[[], None]
) -> NDArray[np.uint32]:
    """Terms of every combination: uint32[count, 3].

    Where each combination begins is known only after the one before it. A plain loop does it at
    60 ns a combination; all other work is on whole blocks.
    """
    part, end, position = file.name(CONSTRAINTS), len(words), 0
    little = words.data.cast("B").cast("I") if sys.byteorder == "little" else words
    lengths = np.empty((count, 3), dtype=np.uint32)
    for first in range(0, count, _ROWS):
        check()
        found = [0] * (3 * min(_ROWS, count - first))
        for i in range(len(found)):
            if position >= end:
                file.fail(part, f"ends before constraint {first + i // 3} of {count}: truncated?")
            terms = int(little[position])
            found[i] = terms
            position += 1 + stride * terms
        lengths[first : first + _ROWS] = np.array(found, dtype=np.uint32).reshape(-1, 3)
    if position != end:
        found_bytes = (
            "bytes follow the last constraint" if position < end else "the last constraint is cut off"
        )
        file.fail(part, f"{found_bytes}: expected {4 * position} bytes, found {4 * end}")
    return lengths


def row_blocks(
    starts: Sequence[NDArray[np.int64]], size: int, first: int = 0, last: int | None = None
) -> Iterator[tuple[int, int]]:
    """Cuts rows [first, last), or all, into ranges of at most ``size`` rows and terms, or of one row.

    ``starts`` are those of several matrices, whose terms count together.
    """

    def before(row: int) -> int:
        return sum(int(s[row]) for s in starts)

    last = len(starts[0]) - 1 if last is None else last
    while first < last:
        rows = range(first + 1, min(last, first + size) + 1)
        stop = first + max(1, bisect_right(rows, before(first) + size, key=before))
        yield first, stop
        first = stop


def _layout(lengths: NDArray[np.integer], stride: int) -> tuple[NDArray[np.bool_], NDArray[np.uint8]]:
    """For rows with these lengths, uint[rows, 3]: which words belong to terms, and the matrix of each term.

    What is left are the counts, one before each combination.
    """
    counts = lengths.reshape(-1).astype(np.int64)
    sizes = 1 + stride * counts
    is_term = np.ones(int(sizes.sum()), dtype=bool)
    is_term[np.cumsum(sizes) - sizes] = False
    return is_term, np.repeat(np.tile(np.arange(3, dtype=np.uint8), len(lengths)), counts)


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
    size = 4 * 3 * count + (4 + scalar.bytes) * sum(m.nnz for m in r1cs.matrices)
    with write_binfile(path, "r1cs", VERSION, 3) as out:
        with out.section(HEADER, 4 + scalar.bytes + 4 * 4 + 8 + 4) as section:
            section.u32(scalar.bytes)
            section.integer(scalar.modulus, scalar.bytes)
            section.u32(r1cs.n_wires, r1cs.n_pub_out, r1cs.n_pub_in, r1cs.n_prv_in)
            section.u64(r1cs.n_labels)
            section.u32(count)
        with out.section(CONSTRAINTS, size) as section:
            for first, stop in row_blocks([m.starts for m in r1cs.matrices], _TERMS):
                section.write(_constraint_words(r1cs, first, stop))
        with out.section(LABELS, 8 * r1cs.n_wires) as section:
            section.write(labels.astype("<u8", copy=False))


def _constraint_words(r1cs: R1CS, first: int, stop: int) -> NDArray[np.uint32]:
    """The constraints in [first, stop) as u32 words."""
    stride = 1 + 2 * r1cs.curve.scalar.limbs
    lengths = np.stack([np.diff(m.starts[first : stop + 1]) for m in r1cs.matrices], axis=1)
    is_term, which = _layout(lengths, stride)
    terms = np.empty((len(which), stride), dtype="<u4")
    for m, matrix in enumerate(r1cs.matrices):
        rows, mine = which == m, slice(int(matrix.starts[first]), int(matrix.starts[stop]))
        terms[rows, 0] = matrix.wires[mine]
        terms[rows, 1:] = np.ascontiguousarray(matrix.values[mine], dtype="<u8").view("<u4")
    words = np.empty(len(is_term), dtype="<u4")
    words[~is_term] = lengths.ravel()
    words[is_term] = terms.ravel()
    return words
