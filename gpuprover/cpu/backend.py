"""The CPU backend: numpy memory, Numba kernels, threads of the job."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpuprover.backend import Form, Term
from gpuprover.cpu import combine, layout, msm, multiples, ntt
from gpuprover.cpu.compiled import Kernels
from gpuprover.cpu.layout import LANES, Field, power_blocks
from gpuprover.cpu.msm import Points
from gpuprover.cpu.path import CpuPath, path_for
from gpuprover.cpu.points import SMALLEST_PIECE, CpuPoints, own
from gpuprover.curves import CurveParams, Group
from gpuprover.demand import Budget, Demand, MemoryPlan, named
from gpuprover.errors import OutOfMemory
from gpuprover.job import Job
from gpuprover.limbs import (
    Words,
    address,
    field_to_words,
)
from gpuprover.polynomial import Coset, Direction, Domain, Order
from gpuprover.rehearsal import Rehearsal

if TYPE_CHECKING:
    from gpuprover.columns import Formula
    from gpuprover.cpu.columns import Columns

_curve, _vector, _vector_lanes = Kernels("curve"), Kernels("vector"), Kernels("vector_lanes")
_DOUBLED = 64
"""Points below which doublings are not shared among threads."""


@dataclass
class CpuVector:
    """Montgomery words uint64[n, limbs], contiguous; a key's column may lie unaligned in a mapped file."""

    words: Words

    def __len__(self) -> int:
        return len(self.words)

    @property
    def address(self) -> int:
        return address(self.words)


@dataclass
class CpuMatrices:
    """Entries of several sparse matrices; values as c·R², ``stride`` bytes apart."""

    count: int
    rows: int
    matrix_index: NDArray[np.uint32]
    row_index: NDArray[np.uint32]
    column_index: NDArray[np.uint32]
    values: Words
    stride: int


class _Costs(NamedTuple):
    """See :class:`gpuprover.rehearsal.Costs`."""

    curve: CurveParams
    threads: int
    path: CpuPath

    @property
    def element(self) -> int:
        return self.curve.scalar.bytes

    def transform(self, domain: Domain) -> tuple[int, int]:
        return ntt.coset_bytes(domain, self.path, self.threads)

    def sums(self, groups: Sequence[Group], requests: int, longest: int) -> int:
        # What requests hold at once, and the sorted entries of each thread.
        fields = [Field(self.curve.base, self.curve.group(group).degree) for group in groups]
        at_once = 1 if self.threads == 1 else requests
        request = msm.request_bytes(longest, self.element)
        return at_once * request + self.threads * msm.workspace_bytes(self.path, fields, longest)


@lru_cache(maxsize=64)
def _planned(demand: Demand, costs: _Costs) -> MemoryPlan:
    rehearsal = Rehearsal(demand, costs.threads, costs)
    demand.rehearse(demand, rehearsal)
    key = (
        demand.point_bytes
        + sum(matrices.entries for matrices in demand.matrices) * (12 + costs.element)
        + sum(column.size for column in demand.columns) * costs.element
    )
    # The witness is held by whoever asks for the proof.
    arena = demand.witness * costs.element + rehearsal.arena
    return MemoryPlan(key=key, tables=rehearsal.tables, arena=arena, host=0)


class CpuBackend:
    """Implements :class:`gpuprover.backend.Backend` with the kernels of this package."""

    name = "cpu"

    def __init__(self, curve: CurveParams, job: Job) -> None:
        self.curve, self.job = curve, job
        self.path = path_for(curve)
        self.points = CpuPoints(curve, job)
        self._scalar = Field(curve.scalar)
        self._lanes = self.path.vectors(curve.scalar)
        self._coordinates = {name: Field(curve.base, group.degree) for name, group in curve.groups.items()}
        self._fixed: tuple[object, combine.FixedBase | None] = None, None
        self._session: Demand | None = None
        self._costs = _Costs(curve, job.threads, self.path)
        self._kept: multiples.Kept | None = None

    @cached_property
    def _columns(self) -> Columns:
        """Imported when first used: a Groth16 proof starts without."""
        from gpuprover.cpu.columns import Columns

        return Columns(self.curve.scalar, self._lanes, self.job)

    # Memory ------------------------------------------------------------------------

    def upload(self, values: Words, form: Form = Form.CANONICAL) -> CpuVector:
        words = np.array(values, dtype=np.uint64, order="C")
        if form is Form.CANONICAL:
            self._convert(layout.TO_MONTGOMERY, words, words)
        elif form is Form.DOUBLE_MONTGOMERY:
            self._convert(layout.FROM_MONTGOMERY, words, words)
        return CpuVector(words)

    def download(self, v: CpuVector, form: Form = Form.CANONICAL) -> Words:
        if form is Form.MONTGOMERY:
            return v.words.copy()
        out = np.empty_like(v.words)
        self._convert(
            layout.FROM_MONTGOMERY if form is Form.CANONICAL else layout.TO_MONTGOMERY, v.words, out
        )
        return out

    def free(self, *handles: object) -> None:
        for handle in handles:
            if isinstance(handle, CpuVector):
                handle.words = np.empty((0, self.curve.scalar.limbs), dtype=np.uint64)

    def plan(self, demand: Demand, budget: Budget) -> MemoryPlan:
        return self._chosen(demand, budget)[1]

    def _chosen(self, demand: Demand, budget: Budget) -> tuple[Demand, MemoryPlan]:
        """The first of the demand's choices that fits, and its plan. Raises OutOfMemory."""
        room = budget.host
        for choice in demand.choices:
            plan = _planned(choice, self._costs)
            if room is None or plan.tables + plan.arena <= room:
                return choice, plan
        need = -(-(plan.tables + plan.arena) // (1 << 20))
        raise OutOfMemory(
            f"memory limit: a proof with this key needs {need} MiB beside the mapped key, "
            f"the limit leaves {max(0, room or 0) >> 20} MiB"
        )

    # The proof's key -------------------------------------------------------------------

    @contextmanager
    def session(self, demand: Demand, owner: object, budget: Budget) -> Iterator[Demand]:
        if self._session is not None:
            raise ValueError("a backend makes one proof at a time")
        (demand, plan), kept = self._chosen(demand, budget), multiples.kept_for(owner)
        # Multiples of the key's points are made only from what is left: they are not in the plan. What is
        # kept already counts as memory of the process, not as room to be found.
        spare = None if budget.host is None else budget.host - plan.tables - plan.arena
        need = multiples.parts(demand.largest_msm) * demand.point_bytes
        fits = bool(kept.tables) or spare is None or need <= spare
        if demand.largest_msm <= multiples.LARGEST and fits:
            self._kept = kept
        self._session = demand
        try:
            yield demand
        finally:
            self._session = self._kept = None

    def bases(self, name: str, points: Words) -> Points:
        wanted, kept = named(self._demand.bases, name), self._kept
        if kept is not None and wanted.shared:
            kept = multiples.kept_for(points, wanted.sums)
        if kept is None or kept.sums * (1 if wanted.shared else wanted.sums) <= multiples.free(len(points)):
            return self.prepare_bases(wanted.group, points)
        words = kept.table(wanted.group, points, self.with_multiples)
        return Points(self._coordinates[wanted.group], words, self.path, multiples.parts(len(points)))

    def matrices(
        self,
        name: str,
        matrix_index: NDArray[np.uint32],
        row_index: NDArray[np.uint32],
        column_index: NDArray[np.uint32],
        values: Words,
        form: Form,
    ) -> CpuMatrices:
        part = named(self._demand.matrices, name)
        return self.prepare_matrices(
            part.count, part.rows, matrix_index, row_index, column_index, values, form
        )

    def column(self, name: str, values: Words, form: Form) -> CpuVector:
        named(self._demand.columns, name)
        if form is Form.MONTGOMERY and values.flags.c_contiguous:
            return CpuVector(values)
        return self.upload(values, form)

    @property
    def _demand(self) -> Demand:
        if self._session is None:
            raise ValueError("no session is open")
        return self._session

    # Vectors -------------------------------------------------------------------------

    def _each(
        self, n: int, portable: Callable[[int, int], object], in_lanes: Callable[[int, int], object]
    ) -> None:
        """Runs a kernel on ranges of [0, n); with lanes, one on blocks of eight, the other on the rest."""
        blocks = n // LANES if self._lanes is not None else 0
        if blocks:
            pieces = self.job.ranges(blocks, smallest=SMALLEST_PIECE // LANES)
            self.job.map(lambda r: in_lanes(r[0], r[1]), pieces)
        rest = LANES * blocks
        if rest < n:
            pieces = self.job.ranges(n - rest, smallest=SMALLEST_PIECE)
            self.job.map(lambda r: portable(rest + r[0], rest + r[1]), pieces)

    def _convert(self, operation: int, source: Words, out: Words) -> None:
        F, L, a, o = self._scalar, self._lanes, address(source), address(out)
        p = self.curve.scalar
        factor = power_blocks(p, p.R if operation == layout.TO_MONTGOMERY else p.R_inverse, 1)
        self._each(
            len(source),
            lambda lo, hi: _vector.convert(F, operation, a, o, lo, hi),
            lambda lo, hi: _vector_lanes.scale(L, a, o, address(factor), False, lo, hi),
        )

    def _pointwise(self, operation: int, a: CpuVector, b: CpuVector) -> CpuVector:
        if len(a) != len(b):
            raise ValueError(f"vectors of lengths {len(a)} and {len(b)}")
        out = CpuVector(np.empty_like(a.words))
        F, L, pa, pb, po = self._scalar, self._lanes, a.address, b.address, out.address
        self._each(
            len(a),
            lambda lo, hi: _vector.pointwise(F, operation, pa, pb, po, lo, hi),
            lambda lo, hi: _vector_lanes.pointwise(L, operation, pa, pb, pa, po, lo, hi),
        )
        return out

    def add(self, a: CpuVector, b: CpuVector) -> CpuVector:
        return self._pointwise(layout.ADD, a, b)

    def sub(self, a: CpuVector, b: CpuVector) -> CpuVector:
        return self._pointwise(layout.SUB, a, b)

    def mul(self, a: CpuVector, b: CpuVector) -> CpuVector:
        return self._pointwise(layout.MUL, a, b)

    def multiply_subtract_in_place(self, a: CpuVector, b: CpuVector, c: CpuVector) -> CpuVector:
        if not len(a) == len(b) == len(c):
            raise ValueError(f"vectors of lengths {len(a)}, {len(b)} and {len(c)}")
        F, L, pa, pb, pc = self._scalar, self._lanes, a.address, b.address, c.address
        operation = layout.MULTIPLY_SUBTRACT
        self._each(
            len(a),
            lambda lo, hi: _vector.multiply_subtract(F, pa, pb, pc, lo, hi),
            lambda lo, hi: _vector_lanes.pointwise(L, operation, pa, pb, pc, pa, lo, hi),
        )
        return a

    def scale_powers_in_place(self, v: CpuVector, factor: int, base: int) -> CpuVector:
        F, L, a = self._scalar, self._lanes, v.address
        constants = field_to_words(self.curve.scalar, [factor, base])
        c, powers = address(constants), power_blocks(self.curve.scalar, factor, base)
        self._each(
            len(v),
            lambda lo, hi: _vector.scale_powers(F, a, c, lo, hi),
            lambda lo, hi: _vector_lanes.scale(L, a, a, address(powers), base != 1, lo, hi),
        )
        return v

    def batch_inverse(self, v: CpuVector) -> CpuVector:
        out = CpuVector(np.empty_like(v.words))
        F, L, a, o = self._scalar, self._lanes, v.address, out.address
        factor = power_blocks(self.curve.scalar, pow(2, -8, self.curve.r), 1)

        def in_lanes(lo: int, hi: int) -> None:
            _vector_lanes.batch_inverse(L, a, o, address(factor), lo, hi)

        self._each(len(v), lambda lo, hi: _vector.batch_inverse(F, a, o, lo, hi), in_lanes)
        return out

    def ntt(
        self,
        v: CpuVector,
        domain: Domain,
        direction: Direction,
        order: Order = Order.NATURAL_TO_NATURAL,
        coset: Coset | int = Coset.NONE,
    ) -> CpuVector:
        if len(v) != domain.size:
            raise ValueError(f"a vector of length {len(v)} on a domain of {domain.size}")
        ntt.ntt(v.words, domain, direction, order, coset, self.job, self.path)
        return v

    def to_coset_in_place(
        self, vectors: Sequence[CpuVector], domain: Domain, coset: Coset
    ) -> Sequence[CpuVector]:
        for i, v in enumerate(vectors):
            if len(v) != domain.size:
                raise ValueError(f"a vector of length {len(v)} on a domain of {domain.size}")
            with self.job.subphase(i, len(vectors)):
                ntt.to_coset(v.words, domain, coset, self.job, self.path)
        return vectors

    # Polynomials and columns -------------------------------------------------------------

    def evaluate(
        self,
        formula: Formula,
        columns: Mapping[str, CpuVector],
        challenges: Mapping[str, int] = {},
        step: int = 1,
    ) -> list[CpuVector]:
        n = formula.rows({name: len(v) for name, v in columns.items()})
        scalars = formula.scalar_values(challenges, self.curve.r)
        reads = [(columns[name].words, t * step) for name, t in formula.reads]
        shape = (n, self.curve.scalar.limbs)
        outs = [np.empty(shape, dtype=np.uint64) for _ in formula.results]
        self._columns.evaluate(formula, reads, scalars, outs)
        return [CpuVector(out) for out in outs]

    def combine(self, terms: Sequence[Term], length: int | None = None) -> CpuVector:
        if length is None:
            if not terms:
                raise ValueError("a sum of no terms has no length")
            length = max(max(0, len(v) + shift) for v, _, shift in terms)
        parts = [(v.words, scalar, shift) for v, scalar, shift in terms]
        return CpuVector(self._columns.combine(parts, length))

    def extend(self, v: CpuVector, domain: Domain, cosets: Sequence[Coset | int]) -> list[CpuVector]:
        n, r = domain.size, self.curve.r
        results = []
        for i, g in enumerate(map(domain.shift, cosets)):
            # On the coset X^n is g^n.
            folded = [Term(v, pow(g, at, r), -at) for at in range(0, max(1, len(v)), n)]
            with self.job.subphase(i, len(cosets)):
                results.append(self.ntt(self.combine(folded, n), domain, Direction.FORWARD, coset=g))
        return results

    def values_at(self, queries: Sequence[tuple[CpuVector, int]]) -> list[int]:
        return self._columns.values_at([(v.words, x) for v, x in queries])

    def divide(self, v: CpuVector, root: int, degree: int = 1) -> tuple[CpuVector, CpuVector]:
        quotient = CpuVector(self._columns.divide(v.words, root, degree))
        return quotient, self.combine([Term(v), Term(quotient, root)], degree)

    def running_product(self, numerators: CpuVector, denominators: CpuVector, start: int = 1) -> CpuVector:
        if len(numerators) != len(denominators):
            raise ValueError(f"vectors of lengths {len(numerators)} and {len(denominators)}")
        return CpuVector(self._columns.running_product(numerators.words, denominators.words, start))

    def powers(self, n: int, base: int, factor: int = 1) -> CpuVector:
        ones = CpuVector(np.tile(field_to_words(self.curve.scalar, [1]), (n, 1)))
        return self.scale_powers_in_place(ones, factor, base)

    def gather(self, v: CpuVector, indices: NDArray[np.uint32]) -> CpuVector:
        out = CpuVector(np.empty((len(indices), self.curve.scalar.limbs), dtype=np.uint64))

        def take(r: tuple[int, int]) -> None:
            piece = indices[r[0] : r[1]]
            if len(piece) and piece.max() >= len(v):
                raise IndexError("an index outside of its vector")
            # Clipped, so that indices which somebody changes meanwhile lead nowhere else.
            np.take(v.words, piece, axis=0, out=out.words[r[0] : r[1]], mode="clip")

        self.job.map(take, self.job.ranges(len(indices), smallest=SMALLEST_PIECE))
        return out

    def signals(
        self,
        values: Words,
        left: NDArray[np.uint32],
        right: NDArray[np.uint32],
        left_factors: Words,
        right_factors: Words,
    ) -> CpuVector:
        known, count = 1 + len(values), len(left)
        words = np.empty((known + count, self.curve.scalar.limbs), dtype=np.uint64)
        words[0], words[1:known] = 0, values
        self._convert(layout.TO_MONTGOMERY, words, words)
        if left_factors.strides != right_factors.strides:
            left_factors, right_factors = map(np.ascontiguousarray, (left_factors, right_factors))
        if count:
            _vector.append_combinations(
                self._scalar, address(words), known, address(left), left.strides[0], address(right),
                right.strides[0], address(left_factors), address(right_factors), left_factors.strides[0],
                count, self.job.stop,
            )  # fmt: skip
        return CpuVector(words)

    def interleave(self, vectors: Sequence[CpuVector]) -> CpuVector:
        self.job.check()
        count, n = len(vectors), max(map(len, vectors))
        out = np.zeros((n * count, self.curve.scalar.limbs), dtype=np.uint64)
        for j, v in enumerate(vectors):
            out[j : len(v) * count : count] = v.words
        return CpuVector(out)

    def deinterleave(self, v: CpuVector, count: int) -> list[CpuVector]:
        self.job.check()
        if len(v) % count:
            raise ValueError(f"a vector of length {len(v)} in {count} parts")
        return [CpuVector(v.words[j::count].copy()) for j in range(count)]

    # Sparse products -------------------------------------------------------------------

    def prepare_matrices(
        self,
        count: int,
        rows: int,
        matrix_index: NDArray[np.uint32],
        row_index: NDArray[np.uint32],
        column_index: NDArray[np.uint32],
        values: Words,
        form: Form,
    ) -> CpuMatrices:
        words = values
        if form is not Form.DOUBLE_MONTGOMERY:
            words = np.array(values, dtype=np.uint64, order="C")
            for _ in range(2 if form is Form.CANONICAL else 1):
                self._convert(layout.TO_MONTGOMERY, words, words)
        elif len(words) and (words.strides[1] != 8 or words.strides[0] <= 0):
            words = np.ascontiguousarray(words)
        stride = words.strides[0] if len(words) else 8 * self.curve.scalar.limbs
        return CpuMatrices(count, rows, matrix_index, row_index, column_index, words, stride)

    def spmv(self, m: CpuMatrices, scalars: Words) -> list[CpuVector]:
        scalars = own(scalars)
        limbs = self.curve.scalar.limbs
        outs = [CpuVector(np.zeros((m.rows, limbs), dtype=np.uint64)) for _ in range(m.count)]
        if len(m.values) and not self._spmv_in_order(m, scalars, outs):
            for out in outs:
                out.words[:] = 0
            # Every task reads the rows of all entries, and multiplies those of its own.
            bounds = [m.rows * i // self.job.threads for i in range(self.job.threads + 1)]
            n = len(m.values)
            self.job.map(
                lambda rows: self._spmv_part(m, scalars, outs, False, (0, n), rows), list(pairwise(bounds))
            )
        return outs

    def _spmv_in_order(self, m: CpuMatrices, scalars: Words, outs: list[CpuVector]) -> bool:
        """Shares the entries out by place; False, with the work half done, if their rows are not in order."""
        n, rows = len(m.values), m.row_index
        cuts, firsts = [0], [0]
        for i in range(1, self.job.threads):
            cut = max(cuts[-1], n * i // self.job.threads)
            # On to the first entry of a row: that row and all further ones are another task's.
            while cut < n:
                (changes,) = np.nonzero(rows[cut : cut + 1024] != rows[max(0, cut - 1)])
                cut += int(changes[0]) if len(changes) else 1024
                if len(changes):
                    break
            cuts.append(min(cut, n))
            firsts.append(int(rows[cut]) if cut < n else m.rows)
        firsts.append(m.rows)
        if firsts != sorted(firsts):
            return False
        tasks = list(zip(pairwise([*cuts, n]), pairwise(firsts), strict=True))
        return all(self.job.map(lambda t: self._spmv_part(m, scalars, outs, True, *t), tasks))

    def _spmv_part(
        self,
        m: CpuMatrices,
        scalars: Words,
        outs: list[CpuVector],
        strict: bool,
        entries: tuple[int, int],
        rows: tuple[int, int],
    ) -> bool:
        """One task's share of a product: see :func:`gpuprover.cpu.kernels.vector.spmv`."""
        starts = np.array([out.address for out in outs], dtype=np.int64)
        arrays = (
            starts, address(m.matrix_index), m.matrix_index.strides[0],
            address(m.row_index), m.row_index.strides[0],
            address(m.column_index), m.column_index.strides[0], address(m.values), m.stride, address(scalars),
            len(scalars), m.rows,
        )  # fmt: skip
        bounds = (strict, *entries, *rows, self.job.stop)
        if self._lanes is None:
            return bool(_vector.spmv(self._scalar, *arrays, *bounds))
        waiting = np.zeros((3, LANES), dtype=np.int64)
        products = np.empty((LANES, self._scalar.words), dtype=np.uint64)
        return bool(_vector_lanes.spmv(self._lanes, *arrays, waiting, address(products), *bounds))

    # Points ------------------------------------------------------------------------------

    def _canonical(self, scalars: Words | CpuVector) -> Words:
        return self.download(scalars) if isinstance(scalars, CpuVector) else own(scalars)

    def prepare_bases(self, group: Group, points: Words, budget: int | None = None) -> Points:
        if len(points) and not points.flags.c_contiguous:
            points = np.ascontiguousarray(points)
        return Points(self._coordinates[group], points, self.path)

    def with_multiples(self, group: Group, points: Words) -> Words:
        """Points uint64[n, words] -> with m − 1 multiples behind each; see :mod:`gpuprover.cpu.multiples`."""
        n, F = len(points), self._coordinates[group]
        count = multiples.parts(n)
        out = np.empty((n, count, points.shape[1]), dtype=np.uint64)
        current = own(points)

        def double(r: tuple[int, int]) -> None:
            indices = np.arange(*r, dtype=np.int64)
            scratch = np.empty((len(indices), F.words), dtype=np.uint64)
            kinds = np.empty(len(indices), dtype=np.uint8)
            at = address(doubled)
            for _ in range(64 * self.curve.scalar.limbs // count):
                _curve.add_pairs(
                    F, at, indices, at, indices, at, indices, len(indices), address(scratch), kinds
                )

        for j in range(count):
            out[:, j] = current
            if j < count - 1:
                doubled = current.copy()
                self.job.map(double, self.job.ranges(n, smallest=_DOUBLED))
                current = doubled
        return out.reshape(n * count, points.shape[1])

    def msm(self, bases: Points, scalars: Words | CpuVector) -> Words:
        return self.msm_many([([bases], scalars)])[0][0]

    def msm_many(
        self,
        requests: Sequence[tuple[Sequence[Points], Words | CpuVector]],
        meanwhile: Callable[[], None] = lambda: None,
    ) -> list[list[Words]]:
        meanwhile()
        for bases, scalars in requests:
            for b in bases:
                if len(b) < len(scalars):
                    raise ValueError(f"{len(b)} bases and {len(scalars)} scalars")
        needed = [([b.first(len(scalars)) for b in bases], scalars) for bases, scalars in requests]
        return msm.msm([(bases, self._recut(bases, scalars)) for bases, scalars in needed], self.job)

    def _recut(self, bases: Sequence[Points], scalars: Words | CpuVector) -> Words:
        """Canonical scalars, one for every point that the bases' words hold."""
        words = self._canonical(scalars)
        return multiples.in_parts(words, bases[0].parts) if bases and bases[0].parts > 1 else words

    def fixed_base_mul(self, group: Group, point: Words, scalars: Words | CpuVector) -> Words:
        bits = self.curve.r.bit_length()
        c = combine.fixed_base_window(len(scalars), bits)
        known, base = self._fixed
        asked = group, point.tobytes()
        # A set-up asks for the same point's multiples block after block.
        if base is None or known != asked or base.c < c:
            F = self._coordinates[group]
            base = combine.fixed_base(F, own(point.reshape(1, -1)), c, bits, self.path, self.job)
            self._fixed = asked, base
        return combine.fixed_base_mul(base, self._canonical(scalars), self.job)
