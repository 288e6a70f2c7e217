"""Groth16 setup from the points of a ceremony's first phase, with γ = δ = 1; formulas in :mod:`.setup`.

It writes byte for byte what ``snarkjs groth16 setup`` writes. Until somebody contributes to its second phase,
anyone can forge proofs for the key.

The file has τ^i, α·τ^i and β·τ^i in Lagrange form, so that each point of the key is a short sum of them: over
the terms of one wire, for which the matrices are turned from rows to wires first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuprover.backend import Backend
from gpuprover.curves import CurveParams, Group
from gpuprover.errors import InvalidInput
from gpuprover.formats import ptau as pt
from gpuprover.formats.files import Pathish
from gpuprover.formats.ptau import PowersOfTau
from gpuprover.formats.r1cs import R1CS, SparseRows, row_blocks
from gpuprover.limbs import Words, g1_to_words, generator, ints_to_words, words_to_ints
from gpuprover.systems.groth16 import key as zk
from gpuprover.systems.groth16.consistency import ceremony_points, check_points, check_powers, log_domain
from gpuprover.systems.groth16.key import KeyPoints
from gpuprover.systems.groth16.key_warnings import NO_CONTRIBUTION
from gpuprover.systems.groth16.key_writer import BLOCK_TERMS, KeySections, in_blocks
from gpuprover.systems.system import SetupResult

_ROW = 1 << 13
"""Terms that a long sum takes as one row."""
_HASH_CHUNK = 1 << 14
"""snarkjs hashes the differences for H in chunks of so many; see :func:`_h_differences`."""


def setup_from_ptau(r1cs: R1CS, ptau: PowersOfTau, zkey_path: Pathish, backend: Backend) -> SetupResult:
    """Writes the initial proving key of a circuit over a prepared powers-of-tau file.

    Raises:
        InvalidInput: the file is too small, not prepared for phase 2, or of another curve.
        UnsupportedFile: the circuit needs a larger domain than the curve's scalar field offers.
        MalformedFile: a point that the circuit uses is out of range, off its curve or its subgroup, or the
            points are not of one τ, one α and one β.
    """
    if ptau.curve != r1cs.curve:
        raise InvalidInput(
            f"powers of tau over {ptau.curve.name}, expected {r1cs.curve.name}",
            path=ptau.path,
            more=f"for {r1cs.source}",
        )
    log_n = log_domain(r1cs)
    ptau.require(log_n, r1cs.source)
    n = 1 << log_n
    # γ and δ stay the generators until phase 2.
    alpha1, beta1, beta2 = ceremony_points(ptau)
    g1, g2 = (generator(r1cs.curve, group) for group in Group)
    points = KeyPoints(alpha1, beta1, beta2, g2, g1, g2)
    check_points(ptau, log_n, backend)
    warnings = check_powers(ptau, log_n, backend)
    with backend.job.phase("wires"):
        a, b, c = (
            _by_wire(r1cs, matrix, public)
            for matrix, public in ((r1cs.a, r1cs.n_public + 1), (r1cs.b, 0), (r1cs.c, 0))
        )
    tau1, tau2, alpha, beta = ptau.lagrange_bases(log_n)
    k, k_sources = (a, b, c), (beta, alpha, tau1)

    with KeySections(zkey_path, r1cs, log_n, points, backend) as key:
        key.coefficients()
        split, wires = r1cs.n_public + 1, r1cs.n_wires
        key.points(zk.IC, _combinations(backend, Group.G1, k_sources, k, 0, split))
        h = ptau.lagrange(pt.LAGRANGE_TAU_G1, log_n + 1)[1::2]
        key.points(zk.H, in_blocks(h), hashed=_h_differences(ptau, n, backend))
        key.points(zk.C, _combinations(backend, Group.G1, k_sources, k, split, wires))
        key.points(zk.A, _combinations(backend, Group.G1, (tau1,), (a,), 0, wires))
        key.points(zk.B1, _combinations(backend, Group.G1, (tau1,), (b,), 0, wires))
        key.points(zk.B2, _combinations(backend, Group.G2, (tau2,), (b,), 0, wires))
        circuit_hash = key.finish()
    return SetupResult(circuit_hash, n, (NO_CONTRIBUTION, *warnings))


def _combinations(
    backend: Backend, group: Group, sources: Sequence[Words], parts: Sequence[_ByWire], first: int, last: int
) -> Iterator[Words]:
    """Points Σ value·point of the wires in [first, last), a block at a time.

    Each part has its source, whose points the part's rows number.
    """
    for begin, stop in row_blocks([part.starts for part in parts], BLOCK_TERMS, first, last):
        if sum(int(part.starts[stop] - part.starts[begin]) for part in parts) > BLOCK_TERMS:
            yield _long_combination(backend, group, sources, parts, begin)
            continue
        blocks = [part.block(begin, stop) for part in parts]
        if len(parts) == 1:
            (terms,), points = blocks, sources[0]
        else:
            points = np.concatenate([s[b.wires] for s, b in zip(sources, blocks, strict=True)])
            terms = _join(*_numbered(blocks))
        yield backend.points.sparse_combination(group, points, terms.starts, terms.wires, terms.values)


def _long_combination(
    backend: Backend, group: Group, sources: Sequence[Words], parts: Sequence[_ByWire], wire: int
) -> Words:
    """The same for one wire of too many terms for a block, as the constant often is: a sum of sums."""
    sums = []
    for source, part in zip(sources, parts, strict=True):
        for terms in part.pieces(wire):
            sums.append(
                backend.points.sparse_combination(group, source, terms.starts, terms.wires, terms.values)
            )
            backend.job.check()
    points = np.concatenate(sums)
    whole = np.array([0, len(points)], dtype=np.int64)
    ones = np.tile(ints_to_words([1], backend.curve.scalar.limbs), (len(points), 1))
    return backend.points.sparse_combination(
        group, points, whole, np.arange(len(points), dtype=np.uint32), ones
    )


def _numbered(blocks: Sequence[SparseRows]) -> Iterator[SparseRows]:
    """The same terms, with running numbers for rows."""
    count = 0
    for block in blocks:
        numbers = np.arange(count, count + block.nnz, dtype=np.uint32)
        yield SparseRows(block.starts, numbers, block.values)
        count += block.nnz


def _h_differences(ptau: PowersOfTau, n: int, backend: Backend) -> Iterator[Words]:
    """τ^(i+n) − τ^i in G1 for i < n − 1: what the circuit hash takes in place of H.

    From 2^15 on snarkjs's last chunk is not shortened and takes one point more, i = n − 1. With a
    file of exactly the circuit's power, τ^(2n−1) is not in it: snarkjs then reads the bytes of the
    next section as if they were a point. The hash stands in the key, so that is repeated here.
    """
    curve, tau = ptau.curve, ptau.points(pt.TAU_G1)
    minus_one = ints_to_words([1, curve.r - 1], curve.scalar.limbs)
    count = min(n - 1, len(tau) - n)
    for start in range(0, count, BLOCK_TERMS):
        rows = min(BLOCK_TERMS, count - start)
        points = np.concatenate([tau[start + n : start + n + rows], tau[start : start + rows]])
        columns = np.arange(2 * rows, dtype=np.uint32).reshape(2, rows).T.ravel()
        starts = np.arange(0, 2 * rows + 1, 2, dtype=np.int64)
        yield backend.points.sparse_combination(
            Group.G1, points, starts, columns, np.tile(minus_one, (rows, 1))
        )
    if n - 1 > _HASH_CHUNK:
        size = 8 * curve.g1_words
        raw = ptau.bytes_from(pt.TAU_G1, (2 * n - 1) * size, size).tobytes().ljust(size, b"\0")
        found = np.frombuffer(raw, dtype="<u8").reshape(1, -1)
        yield _formal_difference(curve, found, tau[n - 1 : n])


def _formal_difference(curve: CurveParams, left: Words, right: Words) -> Words:
    """left − right for a left that is no point and whose coordinates may exceed q.

    The sum formula is the usual one ("madd-2007-bl", as snarkjs's wasmcurves has it). Sums and
    differences of unreduced words are corrected by q once, not modulo q; that shows in the result.
    """
    q, field = curve.q, curve.base
    size = 1 << (64 * field.limbs)

    def add(a: int, b: int) -> int:
        total = a + b
        return (total - q if total >= q else total) % size

    def sub(a: int, b: int) -> int:
        return (a - b if a >= b else a - b + q) % size

    def mul(a: int, b: int) -> int:
        product = a * b
        reduced = (product + product * -pow(q, -1, size) % size * q) // size
        return reduced - q if reduced >= q else reduced

    (x1, y1), (x2, y2) = (words_to_ints(w.reshape(2, -1)) for w in (left, right))
    y2 = sub(0, y2)
    h, dy = sub(x2, x1), sub(y2, y1)
    i = add(hh := mul(h, h), hh)
    i = add(i, i)
    j, slope, v = mul(h, i), add(dy, dy), mul(x1, i)
    x3 = sub(sub(mul(slope, slope), j), add(v, v))
    y1_j = mul(y1, j)
    y3 = sub(mul(sub(v, x3), slope), add(y1_j, y1_j))
    x, y, inverse_z = (field.from_montgomery(w % q) for w in (x3, y3, add(h, h)))
    inverse_z = pow(inverse_z, -1, q) if inverse_z else 0
    return g1_to_words(curve, [(x * inverse_z**2 % q, y * inverse_z**3 % q)])


@dataclass(frozen=True)
class _ByWire:
    """A matrix turned: wire s has the terms at ``order[starts[s]:starts[s + 1]]`` of it, in ``rows`` of it.

    The first ``public`` wires have one term more each, 1 in a row of their own behind the matrix's.
    """

    matrix: SparseRows
    starts: NDArray[np.int64]
    order: NDArray[np.unsignedinteger[Any]]
    rows: NDArray[np.uint32]
    public: int

    def block(self, first: int, last: int) -> SparseRows:
        """The terms of the wires in [first, last); their ``wires`` are the matrix's rows."""
        begin, end = int(self.starts[first]), int(self.starts[last])
        values = self.matrix.values[self.order[begin:end]]
        terms = SparseRows(self.starts[first : last + 1] - begin, self.rows[begin:end], values)
        return terms if first >= self.public else _join(terms, self._public_rows(first, last))

    def pieces(self, wire: int) -> Iterator[SparseRows]:
        """The terms of one wire, a block at a time, each cut into rows that can be summed side by side."""
        begin, end = int(self.starts[wire]), int(self.starts[wire + 1])
        for at in range(begin, end, BLOCK_TERMS):
            stop = min(end, at + BLOCK_TERMS)
            starts = np.append(np.arange(0, stop - at, _ROW), stop - at)
            yield SparseRows(starts, self.rows[at:stop], self.matrix.values[self.order[at:stop]])
        if wire < self.public:
            yield self._public_rows(wire, wire + 1)

    def _public_rows(self, first: int, last: int) -> SparseRows:
        starts = np.minimum(np.arange(first, last + 1, dtype=np.int64), self.public) - first
        count = int(starts[-1])
        rows = np.arange(count, dtype=np.uint32) + np.uint32(self.matrix.rows + first)
        ones = np.zeros((count, self.matrix.values.shape[1]), dtype=np.uint64)
        ones[:, 0] = 1
        return SparseRows(starts, rows, ones)


def _by_wire(r1cs: R1CS, matrix: SparseRows, public: int) -> _ByWire:
    starts = np.zeros(r1cs.n_wires + 1, dtype=np.int64)
    np.cumsum(np.bincount(matrix.wires, minlength=r1cs.n_wires), out=starts[1:])
    order = np.argsort(matrix.wires, kind="stable").astype(np.min_scalar_type(matrix.nnz), copy=False)
    return _ByWire(matrix, starts, order, matrix.row_index()[order], public)


def _join(*parts: SparseRows) -> SparseRows:
    """Row i has the terms of every part's row i, in the order of the parts."""
    starts = sum((p.starts for p in parts[1:]), start=parts[0].starts)
    wires = np.empty(int(starts[-1]), dtype=np.uint32)
    values = np.empty((len(wires), parts[0].values.shape[1]), dtype=np.uint64)
    free = starts[:-1].copy()
    for part in parts:
        lengths = np.diff(part.starts)
        to = np.arange(part.nnz) + np.repeat(free - part.starts[:-1], lengths)
        wires[to], values[to] = part.wires, part.values
        free += lengths
    return SparseRows(starts, wires, values)
