"""Sparse matrices on a device: prepared once, multiplied by canonical vectors (``kernels/sparse.cu``).

1. Preparation, on the host: the entries of a matrix are put in the order of their rows, and each row is cut
   into chunks of at most :data:`CHUNK` entries, one for a thread. Within a slice the chunks stand by length,
   so that the threads of a warp end together.
2. Level 0 multiplies: nnz products, and reads of 36 bytes an entry beside those of the vector.
3. Level l + 1 adds the partial sums of level l of rows with more than CHUNK^(l+1) entries, CHUNK at a time.

Entries come in slices, which lie on the device side by side or are sent there one after another, where there
is no room for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuprover.backend import Form
from gpuprover.cuda.allocation import ALIGNMENT, aligned
from gpuprover.cuda.device import Address, Device, Program
from gpuprover.curves import CurveParams
from gpuprover.limbs import Words

CHUNK = 32
"""Entries that one thread adds up: the width of a warp's divergence. A prediction, not measured."""
SLICE = 1 << 22
"""Entries of a slice of which all lie on the device."""
THREADS = 128
CHUNK_BYTES = 12
TO_MONTGOMERY = 0
"""``convert`` of kernels/vector.cu."""

Indices = NDArray[np.uint32]


def partials_bound(entries: int) -> int:
    """No matrices of this many entries have more partial sums: a row of k > CHUNK has at most 2k/CHUNK."""
    return entries // (CHUNK // 2 - 1)


def resident_bytes(curve: CurveParams, count: int, rows: int, entries: int, size: int = SLICE) -> int:
    """Device memory for all slices, of ``size`` entries, of any such matrices; at most."""
    chunks = entries // CHUNK + min(entries, count * rows) + partials_bound(entries)
    # A slice ends with a whole chunk; sums of sums have their own, of chunks alone.
    pieces = 4 * (entries // (size - CHUNK + 1) + count) + 8 * count
    return entries * (curve.scalar.bytes + 4) + chunks * CHUNK_BYTES + pieces * ALIGNMENT


def slice_bytes(curve: CurveParams, entries: int) -> int:
    """Device memory for one slice of at most this many entries, or for a level's chunks."""
    return aligned(entries * curve.scalar.bytes) + aligned(entries * 4) + aligned(entries * CHUNK_BYTES)


def staging_bytes(curve: CurveParams, entries: int) -> int:
    """Host memory for the preparation of any matrices: places and rows of all entries, and one slice."""
    return entries * 64 + min(entries, SLICE) * (curve.scalar.bytes + 4 + CHUNK_BYTES)


@dataclass(frozen=True)
class MatricesShape:
    """What memory a product takes depends on: stands in for matrices where a proof is rehearsed."""

    count: int
    rows: int
    partials: int
    entries: int
    placed: bool

    def multiply(self, *arguments: object) -> None:
        """Takes no memory of its own."""


@dataclass(frozen=True)
class _Matrix:
    """One matrix.

    Attributes:
        places: indices of its entries, row by row, in the arrays it came from.
        in_order: whether places ascend.
        levels: chunks of entries, then of partial sums: uint32[n, 3] of (start, end, target), ascending.
    """

    places: Indices
    in_order: bool
    levels: list[Indices]


def _cut(targets: Indices, lengths: NDArray[np.int64], rows: int, first_partial: int) -> tuple[Indices, Any]:
    """Chunks of runs of items: run i is the next lengths[i] items, and its sum goes to targets[i].

    Returns them with the mask of runs of several chunks, whose sums become partial sums: ``first_partial``
    and on.
    """
    ends = np.cumsum(lengths)
    starts = ends - lengths
    pieces = -(-lengths // CHUNK)
    several = pieces > 1
    if not several.any():
        return np.stack([starts, ends, targets], axis=1).astype(np.uint32), several
    chunks = np.empty((int(pieces.sum()), 3), dtype=np.uint32)
    first = np.cumsum(pieces) - pieces
    chunks[first, 0], chunks[first, 1], chunks[first, 2] = starts, ends, targets
    # All chunks of the long runs, which are few.
    pieces, first, starts, ends = pieces[several], first[several], starts[several], ends[several]
    number = np.arange(int(pieces.sum())) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    places, start = np.repeat(first, pieces) + number, np.repeat(starts, pieces) + CHUNK * number
    chunks[places, 0] = start
    chunks[places, 1] = np.minimum(start + CHUNK, np.repeat(ends, pieces))
    chunks[places, 2] = rows + first_partial + np.arange(len(places))
    return chunks, several


def _analyse(places: Indices, row_index: Indices, rows: int, first_partial: int) -> tuple[_Matrix, int]:
    """The chunks of a matrix whose entries stand at ``places``, and the number of partial sums so far."""
    row = row_index[places]  # a copy: what is looked at is what is used
    if len(row) and int(row.max()) >= rows:
        raise IndexError("a matrix has an entry below its last row")
    in_order = bool((row[1:] >= row[:-1]).all())
    if not in_order:
        order = np.argsort(row, kind="stable")
        places, row = places[order], row[order]
    starts = np.flatnonzero(row[1:] != row[:-1]) + 1
    starts = np.concatenate([np.zeros(min(1, len(row)), starts.dtype), starts])
    targets, lengths = row[starts], np.diff(np.append(starts, len(row)))
    levels: list[Indices] = []
    base = 0
    while len(targets):
        chunks, several = _cut(targets, lengths, rows, first_partial)
        if levels:
            chunks[:, :2] += base
        levels.append(chunks)
        base = first_partial
        lengths = -(-lengths[several] // CHUNK)
        targets = targets[several]
        first_partial += int(lengths.sum())
    return _Matrix(places, in_order, levels), first_partial


def _by_length(chunks: Indices) -> Indices:
    """Long chunks first, for threads that end together."""
    length = (chunks[:, 1] - chunks[:, 0]).astype(np.uint8)
    return np.ascontiguousarray(chunks[np.argsort(CHUNK - length, kind="stable")])


@dataclass(frozen=True)
class _Placed:
    """A launch over what lies on the device."""

    matrix: int
    level: int
    values: int
    columns: int
    chunks: int
    n: int
    width: int
    """Columns that its entries need."""


class SparseMatrices:
    """``count`` matrices of ``rows`` rows, from one list of entries.

    Attributes:
        count, rows: the shape; columns are whatever the vector has.
        partials: partial sums that :meth:`multiply` needs room for.
        entries: the number of entries of a slice.
    """

    def __init__(
        self,
        device: Device,
        curve: CurveParams,
        count: int,
        rows: int,
        matrix_index: Indices,
        row_index: Indices,
        column_index: Indices,
        values: Words,
        form: Form,
        *,
        entries: int = SLICE,
    ) -> None:
        assert entries >= CHUNK
        self.count, self.rows, self.entries = count, rows, entries
        self._device, self._curve = device, curve
        self._column_index, self._values = column_index, values
        self._conversions = {Form.DOUBLE_MONTGOMERY: 0, Form.MONTGOMERY: 1, Form.CANONICAL: 2}[form]
        self._program, self._vector = Program(curve, "sparse.cu"), Program(curve, "vector.cu")
        self._matrices: list[_Matrix] = []
        self._placed: list[_Placed] | None = None
        self.partials = 0
        found = 0
        for k in range(count):
            places = np.flatnonzero(matrix_index == k).astype(np.uint32)
            found += len(places)
            matrix, self.partials = _analyse(places, row_index, rows, self.partials)
            self._matrices.append(matrix)
        if found != len(matrix_index):
            raise IndexError("an entry of a matrix that is not there")

    def on(self, device: Device) -> SparseMatrices:
        """The same matrices for work on another main stream of the device."""
        other = copy(self)
        other._device = device
        return other

    @property
    def placed(self) -> bool:
        """Whether the slices lie on the device."""
        return self._placed is not None

    # Slices ------------------------------------------------------------------------------

    def _slices(self) -> Iterator[tuple[int, int, NDArray[Any], Indices, Indices]]:
        """(matrix, level, values, columns, chunks) of all launches, in order: level 0 first."""
        for k, matrix in enumerate(self._matrices):
            chunks = matrix.levels[0] if matrix.levels else np.empty((0, 3), np.uint32)
            first = 0
            while first < len(chunks):
                begin = int(chunks[first, 0])
                last = int(np.searchsorted(chunks[:, 1], begin + self.entries, side="right"))
                part = chunks[first:last].copy()
                places = matrix.places[begin : int(part[-1, 1])]
                part[:, :2] -= begin
                values, columns = self._values, self._column_index
                chosen: Any = places
                if matrix.in_order:
                    # A mask of a range is several times as fast as places.
                    lo, hi = int(places[0]), int(places[-1]) + 1
                    values, columns = values[lo:hi], columns[lo:hi]
                    chosen = np.zeros(hi - lo, dtype=bool)
                    chosen[places - lo] = True
                yield (
                    k,
                    0,
                    np.ascontiguousarray(values[chosen], dtype=np.uint64),
                    np.ascontiguousarray(columns[chosen], dtype=np.uint32),
                    _by_length(part),
                )
                first = last
        empty = np.empty(0, np.uint32)
        for k, matrix in enumerate(self._matrices):
            for level in range(1, len(matrix.levels)):
                chunks = matrix.levels[level]
                for first in range(0, len(chunks), self.entries):
                    yield k, level, empty, empty, _by_length(chunks[first : first + self.entries])

    def _send(self, to: int, item: tuple[int, int, NDArray[Any], Indices, Indices]) -> tuple[_Placed, int]:
        """One slice to the device -> where it lies, and the first byte after it."""
        k, level, values, columns, chunks = item
        at = [to]
        for array in (values, columns, chunks):
            self._device.write(at[-1], array)
            at.append(at[-1] + aligned(array.nbytes))
        for _ in range(self._conversions if len(values) else 0):
            self._launch(self._vector, "convert", len(values), TO_MONTGOMERY, at[0], at[0], 0, len(values))
        width = int(columns.max()) + 1 if len(columns) else 0
        return _Placed(k, level, at[0], at[1], at[2], len(chunks), width), at[3]

    def place(self, to: Address, check: Callable[[], None]) -> int:
        """Sends all slices to a range of :func:`resident_bytes`, and lets go of the host's arrays.

        Returns the bytes that are used. ``check`` is called between slices.
        """
        placed, end = [], int(to)
        for item in self._slices():
            check()
            slice_, end = self._send(end, item)
            placed.append(slice_)
        self._placed = placed
        self._matrices.clear()
        self._values, self._column_index = np.empty((0, 0), np.uint64), np.empty(0, np.uint32)
        return end - to

    # Products ----------------------------------------------------------------------------

    def multiply(
        self,
        scalars: Address,
        width: int,
        outs: Sequence[Address],
        partials: Address | None,
        staging: Address | None,
        check: Callable[[], None],
    ) -> None:
        """outs[k] ← matrix k times the ``width`` canonical values at ``scalars``; Montgomery, ``rows`` each.

        ``partials`` has room for that many elements, and ``staging`` for a slice (:func:`slice_bytes`) where
        the slices have not been placed. ``check`` is called between launches.

        Raises:
            IndexError: an entry's column is not below ``width``.
        """
        size = self.rows * self._curve.scalar.bytes
        for out in outs:
            self._device.fill(out, 0, size)
        if self._placed is not None:
            for slice_ in self._placed:
                check()
                self._run(slice_, scalars, width, outs, partials)
            return
        assert staging is not None
        for item in self._slices():
            check()
            self._run(self._send(staging, item)[0], scalars, width, outs, partials)

    def _run(self, s: _Placed, scalars: int, width: int, outs: Sequence[int], partials: int | None) -> None:
        if s.width > width:
            raise IndexError("a matrix has an entry beside its last column")
        sums = partials or 0
        if s.level == 0:
            arrays = s.values, s.columns, s.chunks
            self._launch(
                self._program, "multiply_chunks", s.n, *arrays, s.n, scalars, outs[s.matrix], sums, self.rows
            )
        else:
            self._launch(self._program, "add_chunks", s.n, s.chunks, s.n, outs[s.matrix], sums, self.rows)

    def _launch(self, program: Program, kernel: str, n: int, *arguments: int) -> None:
        self._device.launch(program, kernel, -(-n // THREADS), THREADS, *arguments)
