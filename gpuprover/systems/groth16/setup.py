"""Groth16 setup: from a constraint system to a proving key, streamed to disk.

For every wire s, with L_i the Lagrange polynomials of the domain:

    A_s = Σ a[i,s]·L_i(τ)     B_s, C_s alike
    K_s = (β·A_s + α·B_s + C_s)/γ for the constant and public wires (IC), /δ for the others
    H_i = Z(τ)/δ · (the Lagrange polynomial of the odd coset at its i-th point)(τ)

The domain has a row for every constraint and one for the constant and every public
signal, where A_s = 1: these make A's public part independent (Groth16, section 3.2,
eprint 2016/260; libsnark's remark on malleability). Two ways to the points:

- :func:`setup_from_ptau` combines the points of a ceremony's first phase, with γ = δ = 1,
  and writes byte for byte what ``snarkjs groth16 setup`` writes. Until somebody contributes
  to its second phase, anyone can forge proofs for the key.
- :func:`setup_insecure` draws τ, α, β, γ, δ from the operating system and forgets them. Who
  runs it could have kept them, so such a key is for tests, demos and benchmarks.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuprover.backend import Backend, Form, Vector
from gpuprover.curves import CurveParams, Group
from gpuprover.errors import InvalidInput
from gpuprover.formats import ptau as pt
from gpuprover.formats.files import Pathish
from gpuprover.formats.ptau import PowersOfTau
from gpuprover.formats.r1cs import R1CS, SparseRows, row_blocks
from gpuprover.limbs import (
    Words,
    g1_to_words,
    generator,
    ints_to_words,
    words_to_ints,
)
from gpuprover.polynomial import Domain
from gpuprover.systems.groth16 import key as zk
from gpuprover.systems.groth16.consistency import ceremony_points, check_points, check_powers, log_domain
from gpuprover.systems.groth16.key import KeyPoints, coefficient_dtype
from gpuprover.systems.groth16.key_warnings import INSECURE, NO_CONTRIBUTION
from gpuprover.systems.groth16.key_writer import KeyLayout, KeyWriter, write_zkey
from gpuprover.systems.system import SetupResult

_TERMS = 1 << 16
"""Terms or points handled at once: some MB, and often enough a report of progress."""
_ROW = 1 << 13
"""Terms that a long sum takes as one row."""
BLOCK_BYTES = 80 << 20
"""Memory of a block of points in G2 with its copies, and of a table of multiples."""
_HASH_CHUNK = 1 << 14
"""snarkjs hashes the differences for H in chunks of so many; see :func:`_h_differences`."""


def memory_needed(r1cs: R1CS, ceremony: bool) -> int:
    """Bytes at the peak of a setup, the circuit included, mapped files not; a little more than measured.

    The key goes to disk in blocks. What stays is, for a ceremony, the places of every matrix's terms by
    wire; for a local secret the values of the polynomials at τ.
    """
    curve = r1cs.curve
    scalar, longest = curve.scalar.bytes, max(m.nnz for m in r1cs.matrices)
    n, wires = 1 << log_domain(r1cs), r1cs.n_wires
    if ceremony:
        # A position and a row a term, starts of wires; 32 bytes a term while a matrix is sorted.
        work = 8 * sum(m.nnz for m in r1cs.matrices) + 3 * 8 * wires + 32 * longest
    else:
        # The Lagrange polynomials, three vectors and a copy of the last; the rows of its terms.
        work = (n + 4 * wires) * scalar + 4 * longest
    return r1cs.nbytes + work + BLOCK_BYTES


# From a ceremony ---------------------------------------------------------------


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
            f"{ptau.path}: powers of tau over {ptau.curve.name}, expected {r1cs.curve.name} for {r1cs.source}"
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

    with _KeySections(zkey_path, r1cs, log_n, points, backend) as key:
        key.coefficients()
        split, wires = r1cs.n_public + 1, r1cs.n_wires
        key.points(zk.IC, _combinations(backend, Group.G1, k_sources, k, 0, split))
        h = ptau.lagrange(pt.LAGRANGE_TAU_G1, log_n + 1)[1::2]
        key.points(zk.H, _blocks(h), hashed=_h_differences(ptau, n, backend))
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
    for begin, stop in row_blocks([part.starts for part in parts], _TERMS, first, last):
        if sum(int(part.starts[stop] - part.starts[begin]) for part in parts) > _TERMS:
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
    for start in range(0, count, _TERMS):
        rows = min(_TERMS, count - start)
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


# From a local secret -------------------------------------------------------------


def setup_insecure(r1cs: R1CS, zkey_path: Pathish, backend: Backend) -> SetupResult:
    """Writes a complete proving key from a fresh local secret.

    Raises:
        UnsupportedFile: the circuit needs a larger domain than the curve's scalar field offers.
    """
    curve, log_n = r1cs.curve, log_domain(r1cs)
    r, domain = curve.r, Domain(curve.scalar, log_n)
    alpha, beta, gamma, delta = (1 + secrets.randbelow(r - 1) for _ in range(4))
    tau = _secret_outside_cosets(domain)

    def multiple(group: Group, scalar: int) -> Words:
        return backend.points.linear_combination(group, generator(curve, group)[None], [scalar])

    points = KeyPoints(
        alpha1=multiple(Group.G1, alpha),
        beta1=multiple(Group.G1, beta),
        beta2=multiple(Group.G2, beta),
        gamma2=multiple(Group.G2, gamma),
        delta1=multiple(Group.G1, delta),
        delta2=multiple(Group.G2, delta),
    )
    with _KeySections(zkey_path, r1cs, log_n, points, backend) as key:
        key.coefficients()
        with backend.job.phase("secret polynomials"):
            lagrange = np.empty((domain.size, curve.scalar.limbs), dtype=np.uint64)
            at = 0
            # The circuit's coefficients c are plain integers. Read as Form.DOUBLE_MONTGOMERY they are
            # c·R⁻², and (c·R⁻²)·(L·R²) = c·L: no matrix has to be copied and converted.
            for block in _lagrange_at(backend, domain, 1, tau, 1, Form.DOUBLE_MONTGOMERY):
                lagrange[at : at + len(block)] = block
                at += len(block)
                backend.job.report(at / domain.size / 4)
            vectors = []
            for i, matrix in enumerate(r1cs.matrices):
                vectors.append(_evaluate(backend, matrix, r1cs.n_wires, lagrange))
                backend.job.report((i + 2) / 4)
            a, b, c = vectors
            _add_public_rows(backend, r1cs, a, lagrange)
            del lagrange
        split, wires = r1cs.n_public + 1, r1cs.n_wires
        for section, first, last, divisor in ((zk.IC, 0, split, gamma), (zk.C, split, wires, delta)):
            inverse = pow(divisor, -1, r)
            summands = [(v, factor * inverse % r) for v, factor in ((a, beta), (b, alpha), (c, 1))]
            k = _linear(backend, summands, first, last)
            key.points(section, _multiples(backend, Group.G1, k))
            if section == zk.IC:  # the order of the file
                # The coset's Lagrange polynomials times Z(τ)/(Z(g)·δ): Z(g) = g^n − 1 on all of the coset.
                g = domain.coset_generator
                at_secret, on_coset = (pow(x, domain.size, r) - 1 for x in (tau, g))
                factor = at_secret * pow(on_coset * delta, -1, r) % r
                h = _lagrange_at(backend, domain, g, tau, factor, Form.CANONICAL)
                key.points(zk.H, _multiples(backend, Group.G1, h))
        key.points(zk.A, _multiples(backend, Group.G1, _blocks(a)))
        key.points(zk.B1, _multiples(backend, Group.G1, _blocks(b)))
        key.points(zk.B2, _multiples(backend, Group.G2, _blocks(b)))
        circuit_hash = key.finish()
    return SetupResult(circuit_hash, domain.size, (INSECURE,))


def _secret_outside_cosets(domain: Domain) -> int:
    """A random τ that is neither 0 nor in the domain or its odd coset."""
    r = domain.field.modulus
    while True:
        tau = 1 + secrets.randbelow(r - 1)
        if pow(tau, domain.size, r) not in (1, pow(domain.coset_generator, domain.size, r)):
            return tau


def _lagrange_at(
    backend: Backend, domain: Domain, shift: int, tau: int, factor: int, form: Form
) -> Iterator[Words]:
    """All Lagrange polynomials of the coset shift·⟨ω⟩ at τ, times a factor, in blocks of uint64[n, limbs].

    ℓ_i(τ) = x_i·(τ^n − g^n) / (n·g^n·(τ − x_i)) with x_i = g·ω^i and g the shift.
    """
    r, n, limbs = domain.field.modulus, domain.size, domain.field.limbs
    at_shift = pow(shift, n, r)
    factor = factor * (pow(tau, n, r) - at_shift) * pow(n * at_shift, -1, r) % r
    for start in range(0, n, _TERMS):
        ones = np.tile(ints_to_words([1], limbs), (min(_TERMS, n - start), 1))
        first = shift * pow(domain.omega, start, r) % r
        x = backend.scale_powers_in_place(backend.upload(ones), first, domain.omega)
        constant = backend.scale_powers_in_place(backend.upload(ones), tau, 1)
        distance = backend.sub(constant, x)
        inverse = backend.batch_inverse(distance)
        values = backend.scale_powers_in_place(backend.mul(inverse, x), factor, 1)
        result = backend.download(values, form)
        backend.free(x, constant, distance, inverse, values)
        yield result


def _evaluate(backend: Backend, matrix: SparseRows, wires: int, lagrange: Words) -> Words:
    """Σ value·lagrange[row] of every wire's terms, canonical; ``lagrange`` in Form.DOUBLE_MONTGOMERY."""
    single = np.broadcast_to(np.zeros(1, dtype=np.uint32), matrix.nnz)
    turned = backend.prepare_matrices(
        1, wires, single, matrix.wires, matrix.row_index(), matrix.values, Form.DOUBLE_MONTGOMERY
    )
    (v,) = backend.spmv(turned, lagrange)
    result = backend.download(v)
    backend.free(turned, v)
    return result


def _add_public_rows(backend: Backend, r1cs: R1CS, a: Words, lagrange: Words) -> None:
    """Adds to A's polynomials the rows of the constant and the public signals."""
    count, first = r1cs.n_public + 1, r1cs.n_constraints
    constraints = backend.upload(a[:count])
    rows = backend.upload(lagrange[first : first + count], Form.DOUBLE_MONTGOMERY)
    total = backend.add(constraints, rows)
    a[:count] = backend.download(total)
    backend.free(constraints, rows, total)


def _linear(
    backend: Backend, summands: Sequence[tuple[Words, int]], first: int, last: int
) -> Iterator[Words]:
    """Σ factor·vector of the elements in [first, last), canonical, in blocks."""
    for start in range(first, last, _TERMS):
        stop = min(last, start + _TERMS)
        total: Vector = None
        for words, factor in summands:
            v = backend.scale_powers_in_place(backend.upload(words[start:stop]), factor, 1)
            if total is None:
                total = v
            else:
                previous, total = total, backend.add(total, v)
                backend.free(previous, v)
        result = backend.download(total)
        backend.free(total)
        yield result


def _multiples(backend: Backend, group: Group, scalars: Iterable[Words]) -> Iterator[Words]:
    for block in scalars:
        yield backend.fixed_base_mul(group, generator(backend.curve, group), block)


# What both share -------------------------------------------------------------------


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
        for at in range(begin, end, _TERMS):
            stop = min(end, at + _TERMS)
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


def _blocks(rows: Words) -> Iterator[Words]:
    for start in range(0, len(rows), _TERMS):
        yield rows[start : start + _TERMS]


def _uncompressed(backend: Backend, group: Group, points: Words) -> bytes:
    """Points as the ecosystem hashes them: canonical big-endian coordinates, of Fq2 the second part first."""
    width = 8 * backend.curve.base.limbs * backend.curve.group(group).degree
    canonical = backend.points.canonical_coordinates(points).astype("<u8", copy=False)
    return canonical.view(np.uint8).reshape(-1, width)[:, ::-1].tobytes()


class _KeySections:
    """Writes a key's sections and hashes what snarkjs's circuit hash covers, in its order."""

    def __init__(self, path: Pathish, r1cs: R1CS, log_n: int, points: KeyPoints, backend: Backend) -> None:
        self._r1cs, self._backend, self._curve = r1cs, backend, r1cs.curve
        coefficients = r1cs.a.nnz + r1cs.b.nnz + r1cs.n_public + 1
        self._layout = KeyLayout(self._curve, r1cs.n_wires, r1cs.n_public, 1 << log_n, coefficients)
        self._open = write_zkey(path, self._layout, points)
        self._hash = blake2b(digest_size=64)
        for g1, g2 in (
            ((points.alpha1, points.beta1), (points.beta2, points.gamma2)),
            ((points.delta1,), (points.delta2,)),
        ):
            self._hash.update(_uncompressed(backend, Group.G1, np.stack(g1)))
            self._hash.update(_uncompressed(backend, Group.G2, np.stack(g2)))

    def __enter__(self) -> _KeySections:
        self._writer: KeyWriter = self._open.__enter__()
        return self

    def __exit__(self, *exception: Any) -> bool | None:
        return self._open.__exit__(*exception)

    def points(self, section: int, blocks: Iterable[Words], hashed: Iterable[Words] | None = None) -> None:
        """A section of points; ``hashed`` stand for them in the circuit hash."""
        group = Group.G2 if section == zk.B2 else Group.G1
        words = group.words(self._curve)
        count = self._layout.section_bytes(section) // (8 * words)
        self._hash.update((count - 1 if section == zk.H else count).to_bytes(4, "big"))

        def watched(done: int = 0) -> Iterator[Words]:
            for block in blocks:
                yield block
                if hashed is None:
                    self._hash.update(_uncompressed(self._backend, group, block))
                done += len(block)
                self._backend.job.check()
                self._backend.job.report(done / count)

        with self._backend.job.phase(zk.SECTIONS[section]):
            self._writer.points(section, watched())
            for block in hashed or ():
                self._hash.update(_uncompressed(self._backend, group, block))
                self._backend.job.check()

    def coefficients(self) -> None:
        with self._backend.job.phase(zk.SECTIONS[zk.COEFFICIENTS]):
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

        for first, stop in row_blocks([a.starts, b.starts], _TERMS):
            if stop == first + 1:  # perhaps a long one
                for index, matrix in enumerate((a, b)):
                    begin, end = int(matrix.starts[first]), int(matrix.starts[stop])
                    for at in range(begin, end, _TERMS):
                        block = np.empty(min(_TERMS, end - at), dtype=record)
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
