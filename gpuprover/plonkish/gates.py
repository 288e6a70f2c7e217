"""Gates of PLONK and FFLONK from a constraint system, as snarkjs's set-ups make them.

A gate (a, b, c) asks qM·a·b + qL·a + qR·b + qO·c + qC = 0 of three signals. The constant is no signal here:
it goes into qC, and signal 0 stands in unused places. A public signal s has the gate (s, 0, 0) with qL = 1. A
constraint A·B = C has one gate, and one more for each internal signal: a sum of two terms, made where a
combination has more terms than its place in the gate. The keys of snarkjs are equal to the order of gates,
internal signals and terms.

All constraints of a block are treated at once, by operations on arrays. A combination's terms are a queue;
each step takes the first two and appends their sum, until ``most`` terms are left. So step j takes the places
2j and 2j + 1 and fills place t + j, where t terms were given: every operand is known before the first step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpuprover.backend import Backend, Form
from gpuprover.formats.r1cs import R1CS, SparseRows, row_blocks
from gpuprover.limbs import Words, field_to_words

SELECTORS = ("qm", "ql", "qr", "qo", "qc")
"""A gate's coefficients: of a·b, of a, of b, of c, and the constant."""
BLOCK_TERMS = 1 << 16
"""Constraints or terms that are treated at once."""

_IN_SUM, _IN_PRODUCT = 3, 1
"""Terms that fit into a gate that only adds; into one factor, or the result, of a product."""
_SIGNALS = 1 << 32


@dataclass(frozen=True)
class Gates:
    """All gates of a circuit in the order of a key's rows, those of the public signals first.

    Attributes:
        a, b, c: uint32[m], the signals of each gate; internal ones come after all others.
        selectors: uint64[m, limbs] for each name of :data:`SELECTORS`, Montgomery.
        left, right: uint32[additions], the signals that each internal signal is a combination of.
        left_factors, right_factors: uint64[additions, limbs], Montgomery.
        wires: the number of signals of the constraint system, the constant included.
        n_public: the number of public signals.
    """

    a: NDArray[np.uint32] = field(repr=False)
    b: NDArray[np.uint32] = field(repr=False)
    c: NDArray[np.uint32] = field(repr=False)
    selectors: dict[str, Words] = field(repr=False)
    left: NDArray[np.uint32] = field(repr=False)
    right: NDArray[np.uint32] = field(repr=False)
    left_factors: Words = field(repr=False)
    right_factors: Words = field(repr=False)
    wires: int
    n_public: int

    @property
    def count(self) -> int:
        """m, the number of gates."""
        return len(self.a)

    @property
    def additions(self) -> int:
        """The number of internal signals."""
        return len(self.left)

    @property
    def n_vars(self) -> int:
        """The number of all signals, internal ones included."""
        return self.wires + self.additions


def gates_of(r1cs: R1CS, keep_zeros: bool, backend: Backend) -> Gates:
    """The gates of a circuit.

    Args:
        keep_zeros: whether a term with the coefficient 0 counts as one, as in PLONK's keys; FFLONK's leave
            such terms out.
    """
    blocks = [_public_gates(r1cs)]
    internal = r1cs.n_wires
    for first, stop in row_blocks([m.starts for m in r1cs.matrices], BLOCK_TERMS):
        block = _gates_of_rows(r1cs, first, stop, internal, keep_zeros, backend)
        internal += len(block.left)
        blocks.append(block)
        backend.job.check()
        backend.job.report(stop / r1cs.n_constraints)
    # Column after column, so that only one of them is there twice.
    columns: list[list[NDArray[Any]]] = [list(column) for column in zip(*blocks, strict=True)]
    del blocks
    joined = _Columns(*(_joined(column) for column in columns))._asdict()
    selectors = {name: joined.pop(name) for name in SELECTORS}
    return Gates(**joined, selectors=selectors, wires=r1cs.n_wires, n_public=r1cs.n_public)


def most_gates(r1cs: R1CS) -> tuple[int, int]:
    """Gates and internal signals of which the circuit has no more. Terms of one signal count separately."""
    # A sum has the terms of two combinations at most, and more free places than a product.
    additions = sum(int(np.maximum(_lengths(m) - 1, 0).sum()) for m in r1cs.matrices)
    return r1cs.n_public + r1cs.n_constraints + additions, additions


def _lengths(matrix: SparseRows) -> NDArray[np.int64]:
    """Terms of each row that are not on the constant."""
    before = np.zeros(matrix.nnz + 1, dtype=np.int64)
    np.cumsum(matrix.wires != 0, out=before[1:])
    lengths: NDArray[np.int64] = np.diff(before[matrix.starts])
    return lengths


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """The parts in one array; the list is emptied."""
    whole = np.concatenate(parts)
    parts.clear()
    return whole


class _Columns(NamedTuple):
    """Gates and internal signals of some rows: arrays as those of :class:`Gates`."""

    a: NDArray[np.uint32]
    b: NDArray[np.uint32]
    c: NDArray[np.uint32]
    qm: Words
    ql: Words
    qr: Words
    qo: Words
    qc: Words
    left: NDArray[np.uint32]
    right: NDArray[np.uint32]
    left_factors: Words
    right_factors: Words


def _columns(gates: int, additions: int, limbs: int) -> _Columns:
    """Columns of zeros."""

    def signals(rows: int, count: int) -> list[Any]:
        return [np.zeros(rows, dtype=np.uint32) for _ in range(count)]

    def values(rows: int, count: int) -> list[Any]:
        return [np.zeros((rows, limbs), dtype=np.uint64) for _ in range(count)]

    return _Columns(*signals(gates, 3), *values(gates, 5), *signals(additions, 2), *values(additions, 2))


def _public_gates(r1cs: R1CS) -> _Columns:
    columns = _columns(r1cs.n_public, 0, r1cs.curve.scalar.limbs)
    columns.a[:] = np.arange(1, r1cs.n_public + 1)
    columns.ql[:] = field_to_words(r1cs.curve.scalar, [1])
    return columns


def _gates_of_rows(
    r1cs: R1CS, first: int, stop: int, internal: int, keep_zeros: bool, backend: Backend
) -> _Columns:
    """The gates of the constraints in [first, stop); internal signals count from ``internal``."""
    fr, rows = _Arithmetic(backend), stop - first
    parts = [_terms(matrix, first, stop, fr, keep_zeros) for matrix in r1cs.matrices]
    constants = [_constants(part, rows, fr.limbs) for part in parts]
    filled = [np.bincount(part.rows, minlength=rows) > 0 for part in parts[:2]]
    parts = [part.where(part.signals > 0) for part in parts]
    varying = [np.bincount(part.rows, minlength=rows) > 0 for part in parts[:2]]

    empty = ~(filled[0] & filled[1])  # C = 0, one side of the product being nothing
    product = varying[0] & varying[1]
    sum_of_two = ~(empty | product)  # A or B is a constant, by which the other one is multiplied
    ka, kb, kc = constants
    constant = fr.sub(fr.mul(ka, kb), kc)
    constant[empty] = kc[empty]

    # Three combinations for each row: the factors and the result of a product, or a sum alone.
    a, b, c = parts
    scaled = [
        part.where(~empty[part.rows]).times(other, sum_of_two, fr) for part, other in ((a, kb), (b, ka))
    ]
    slots = [part.numbered(np.where(product[part.rows], slot, 0)) for slot, part in enumerate(scaled)]
    c = c.negated(sum_of_two, fr)
    slots.append(c.numbered(np.where(product[c.rows], 2, 0)))
    terms = _merged(slots, fr)
    if not keep_zeros:
        terms = terms.where(terms.values.any(axis=1))
    most = np.ones((rows, 3), dtype=np.int64) * _IN_PRODUCT
    most[~product, 0] = _IN_SUM
    queues = _Queues(terms, most.ravel(), internal, fr)

    before = np.cumsum(queues.additions.reshape(rows, 3).sum(axis=1))  # of a row and those before it
    made = _columns(rows + queues.total, queues.total, fr.limbs)
    # A gate for each internal signal, a row's own before that row's last.
    combination, step = queues.steps()
    at = np.arange(queues.total) + combination // 3
    for signals, factors, q, place in (
        (made.left, made.left_factors, made.ql, 0),
        (made.right, made.right_factors, made.qr, 1),
    ):
        signals[:], factors[:] = queues.entries(combination, 2 * step + place)
        q[at] = fr.negative(factors)
    made.a[at], made.b[at] = made.left, made.right
    made.c[at], made.qo[at] = internal + np.arange(queues.total), fr.one
    # The row's own gate, of what is left in its queues.
    at = np.arange(rows) + before
    of_row = 3 * np.arange(rows)
    left = []
    for slot, column in enumerate((made.a, made.b, made.c)):
        where = np.where(product, of_row + slot, of_row), np.where(product, 0, slot)
        column[at], factors = queues.left_over(*where)
        left.append(factors)
    ua, ub, uc = left
    made.qc[at] = constant
    for q, in_product, in_sum in (
        (made.qm, fr.mul(ua, ub), np.zeros_like(ua)),
        (made.ql, fr.mul(ua, kb), ua),
        (made.qr, fr.mul(ka, ub), ub),
        (made.qo, fr.negative(uc), uc),
    ):
        q[at] = np.where(product[:, None], in_product, in_sum)
    return made


class _Arithmetic:
    """Arithmetic on words: uint64[n, limbs], Montgomery."""

    def __init__(self, backend: Backend) -> None:
        self._backend, self.limbs = backend, backend.curve.scalar.limbs
        self.one = field_to_words(backend.curve.scalar, [1])

    def montgomery(self, values: Words) -> Words:
        """Canonical values in Montgomery form."""
        if not len(values):
            return np.zeros((0, self.limbs), dtype=np.uint64)
        v = self._backend.upload(values)
        words = self._backend.download(v, Form.MONTGOMERY)
        self._backend.free(v)
        return words

    def mul(self, a: Words, b: Words) -> Words:
        return self._of_two(self._backend.mul, a, b)

    def add(self, a: Words, b: Words) -> Words:
        return self._of_two(self._backend.add, a, b)

    def sub(self, a: Words, b: Words) -> Words:
        return self._of_two(self._backend.sub, a, b)

    def negative(self, a: Words) -> Words:
        return self.sub(np.zeros_like(a), a)

    def _of_two(self, operation: Callable[[Any, Any], Any], a: Words, b: Words) -> Words:
        if not len(a):
            return a
        x, y = (self._backend.upload(words, Form.MONTGOMERY) for words in (a, b))
        z = operation(x, y)
        words = self._backend.download(z, Form.MONTGOMERY)
        self._backend.free(x, y, z)
        return words


@dataclass(frozen=True)
class _Terms:
    """Terms of numbered combinations, in ascending order, no two of one combination and one signal.

    Attributes:
        keys: int64[n], the combination's number times 2^32, plus the signal.
        values: uint64[n, limbs], Montgomery.
    """

    keys: NDArray[np.int64]
    values: Words

    @property
    def rows(self) -> NDArray[np.int64]:
        """The combinations' numbers."""
        return self.keys // _SIGNALS

    @property
    def signals(self) -> NDArray[np.int64]:
        return self.keys % _SIGNALS

    def where(self, kept: Any) -> _Terms:
        """Those terms for which bool[n] says so."""
        return self if kept.all() else _Terms(self.keys[kept], self.values[kept])

    def times(self, factors: Words, rows: NDArray[np.bool_], fr: _Arithmetic) -> _Terms:
        """The values of these rows times the row's factor."""
        return self._changed(rows, lambda values, of: fr.mul(values, factors[of]))

    def negated(self, rows: NDArray[np.bool_], fr: _Arithmetic) -> _Terms:
        """The values of these rows negated."""
        return self._changed(rows, lambda values, of: fr.negative(values))

    def _changed(
        self, rows: NDArray[np.bool_], change: Callable[[Words, NDArray[np.int64]], Words]
    ) -> _Terms:
        of = self.rows
        mine = rows[of]
        if not mine.any():
            return self
        values = self.values.copy()
        values[mine] = change(values[mine], of[mine])
        return _Terms(self.keys, values)

    def numbered(self, slots: NDArray[np.int64]) -> _Terms:
        """The same terms in combinations 3·row + slot."""
        return _Terms((3 * self.rows + slots) * _SIGNALS + self.signals, self.values)


def _terms(matrix: SparseRows, first: int, stop: int, fr: _Arithmetic, keep_zeros: bool) -> _Terms:
    """The terms of a matrix's rows, which count from 0. Of terms of one signal the last one holds."""
    mine = slice(int(matrix.starts[first]), int(matrix.starts[stop]))
    keys = np.repeat(np.arange(stop - first) * _SIGNALS, np.diff(matrix.starts[first : stop + 1]))
    keys += matrix.wires[mine]
    values = fr.montgomery(matrix.values[mine])
    if (keys[1:] <= keys[:-1]).any():
        order = np.argsort(keys, kind="stable")
        order = order[np.append(np.diff(keys[order]) > 0, True)]
        keys, values = keys[order], values[order]
    terms = _Terms(keys, values)
    return terms if keep_zeros else terms.where(values.any(axis=1))


def _constants(terms: _Terms, rows: int, limbs: int) -> Words:
    """The coefficient of signal 0 in each row."""
    found = np.zeros((rows, limbs), dtype=np.uint64)
    constant = terms.signals == 0
    found[terms.rows[constant]] = terms.values[constant]
    return found


def _merged(parts: list[_Terms], fr: _Arithmetic) -> _Terms:
    """All terms in order; two of one combination and one signal are added."""
    keys = np.concatenate([part.keys for part in parts])
    order = np.argsort(keys, kind="stable")
    keys, values = keys[order], np.concatenate([part.values for part in parts])[order]
    (again,) = np.nonzero(keys[1:] == keys[:-1])
    if len(again):
        values[again] = fr.add(values[again], values[again + 1])
        keys, values = (np.delete(array, again + 1, axis=0) for array in (keys, values))
    return _Terms(keys, values)


class _Queues:
    """Combinations, each shortened to the terms that have a place in its gate.

    Attributes:
        additions: int64[n], the internal signals of each combination.
        total: their sum.
    """

    def __init__(self, terms: _Terms, most: NDArray[np.int64], internal: int, fr: _Arithmetic) -> None:
        self._lengths = np.bincount(terms.rows, minlength=len(most))
        self._starts = np.cumsum(self._lengths) - self._lengths
        # One term more, which stands for none.
        self._signals = np.append(terms.signals, 0)
        self._values = np.append(terms.values, np.zeros((1, fr.limbs), dtype=np.uint64), axis=0)
        self._most, self._one = most, fr.one
        self.additions = np.maximum(self._lengths - most, 0)
        self.total = int(self.additions.sum())
        self._internal = internal + np.cumsum(self.additions) - self.additions

    def steps(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of each internal signal: the combination, and the step of its queue."""
        combination = np.repeat(np.arange(len(self.additions)), self.additions)
        before = np.cumsum(self.additions) - self.additions
        return combination, np.arange(self.total) - before[combination]

    def entries(
        self, combination: NDArray[np.int64], place: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], Words]:
        """Signals and coefficients at places of queues: a term, or an internal signal."""
        length = self._lengths[combination]
        given = place < length
        at = np.where(given, self._starts[combination] + place, len(self._signals) - 1)
        signals = np.where(given, self._signals[at], self._internal[combination] + place - length)
        return signals, np.where(given[:, None], self._values[at], self._one)

    def left_over(
        self, combination: NDArray[np.int64], place: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], Words]:
        """Signals and coefficients at places of what is left of queues; signal 0 with 0 at free places."""
        signals, values = self.entries(combination, 2 * self.additions[combination] + place)
        free = place >= np.minimum(self._lengths, self._most)[combination]
        signals[free], values[free] = 0, 0
        return signals, values
