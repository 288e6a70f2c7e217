"""The CPU backend: numpy memory, Numba kernels, threads of the job."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from gpuprover.backend import Form, Group, HostPoint, KeyHeader, MemoryPlan
from gpuprover.cpu import combine, curve, membership, msm, ntt, pairing, vector
from gpuprover.cpu.field import Field
from gpuprover.cpu.msm import Points, address
from gpuprover.cpu.path import cpu_path
from gpuprover.curves import AffineG1, AffineG2, CurveParams
from gpuprover.errors import OutOfMemory
from gpuprover.job import Job
from gpuprover.limbs import (
    Words,
    field_to_words,
    g1_to_words,
    g2_to_words,
    ints_to_words,
    words_to_g1,
    words_to_g2,
)
from gpuprover.polynomial import Coset, Direction, Domain, Order

SMALLEST_PIECE = 1 << 12
"""Elements below which a pointwise operation is not shared among threads."""


@dataclass
class CpuVector:
    """Montgomery words uint64[n, limbs], aligned and contiguous."""

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


def _own(words: Words) -> Words:
    """The same words, aligned, contiguous and writable; copied only if they are not."""
    return np.require(words, dtype=np.uint64, requirements=["C", "A", "W"])


class CpuBackend:
    """Implements :class:`gpuprover.backend.Backend` with the kernels of this package."""

    name = "cpu"

    def __init__(self, curve: CurveParams, job: Job) -> None:
        self.curve, self.job = curve, job
        self.path = cpu_path()
        self._scalar = Field(curve.scalar)
        self._coordinates = {Group.G1: Field(curve.base), Group.G2: Field(curve.base, 2)}
        self._fixed: tuple[object, combine.FixedBase | None] = None, None

    # Memory ------------------------------------------------------------------------

    def upload(self, values: Words, form: Form = Form.CANONICAL) -> CpuVector:
        words = np.array(values, dtype=np.uint64, order="C")
        if form is Form.CANONICAL:
            self._convert(vector.TO_MONTGOMERY, words, words)
        elif form is Form.DOUBLE_MONTGOMERY:
            self._convert(vector.FROM_MONTGOMERY, words, words)
        return CpuVector(words)

    def download(self, v: CpuVector, form: Form = Form.CANONICAL) -> Words:
        if form is Form.MONTGOMERY:
            return v.words.copy()
        out = np.empty_like(v.words)
        self._convert(
            vector.FROM_MONTGOMERY if form is Form.CANONICAL else vector.TO_MONTGOMERY, v.words, out
        )
        return out

    def free(self, *handles: object) -> None:
        for handle in handles:
            if isinstance(handle, CpuVector):
                handle.words = np.empty((0, self.curve.scalar.limbs), dtype=np.uint64)

    def plan(self, header: KeyHeader, budget: int | None) -> MemoryPlan:
        scalar, base = self.curve.scalar.bytes, self.curve.base.bytes
        key = (2 * header.g1_points + 4 * header.g2_points) * base + header.n_coefficients * (12 + scalar)
        domain = Domain(self.curve.scalar, header.domain_size.bit_length() - 1)
        tables, copy = ntt.coset_bytes(domain, self.path.name)
        # Quotient: three vectors, a working copy of one, and the witness; afterwards one vector, its
        # canonical and recoded forms, and the sorted entries of each thread.
        quotient = 3 * header.domain_size * scalar + copy
        workspace = self.job.threads * msm.workspace_bytes(self.curve.g2_words, header.largest_msm)
        sums = (
            header.domain_size * scalar + 2 * header.largest_msm * scalar + 6 * header.largest_msm + workspace
        )
        arena = header.n_vars * scalar + max(quotient, sums)
        plan = MemoryPlan(key=key, tables=tables, arena=arena, host=0)
        if budget is not None and plan.tables + plan.arena > budget:
            need = -(-(plan.tables + plan.arena) // (1 << 20))
            raise OutOfMemory(
                f"memory limit: a proof with this key needs {need} MiB beside the mapped key, "
                f"the limit leaves {max(0, budget) >> 20} MiB"
            )
        return plan

    # Vectors -------------------------------------------------------------------------

    def _ranges(self, n: int) -> list[tuple[int, int]]:
        return self.job.ranges(n, smallest=SMALLEST_PIECE)

    def _convert(self, operation: int, source: Words, out: Words) -> None:
        F, a, o = self._scalar, address(source), address(out)
        self.job.map(lambda r: vector.convert(F, operation, a, o, r[0], r[1]), self._ranges(len(source)))

    def _pointwise(self, operation: int, a: CpuVector, b: CpuVector) -> CpuVector:
        if len(a) != len(b):
            raise ValueError(f"vectors of lengths {len(a)} and {len(b)}")
        out = CpuVector(np.empty_like(a.words))
        F, pa, pb, po = self._scalar, a.address, b.address, out.address
        self.job.map(lambda r: vector.pointwise(F, operation, pa, pb, po, r[0], r[1]), self._ranges(len(a)))
        return out

    def add(self, a: CpuVector, b: CpuVector) -> CpuVector:
        return self._pointwise(vector.ADD, a, b)

    def sub(self, a: CpuVector, b: CpuVector) -> CpuVector:
        return self._pointwise(vector.SUB, a, b)

    def mul(self, a: CpuVector, b: CpuVector) -> CpuVector:
        return self._pointwise(vector.MUL, a, b)

    def multiply_subtract_in_place(self, a: CpuVector, b: CpuVector, c: CpuVector) -> CpuVector:
        if not len(a) == len(b) == len(c):
            raise ValueError(f"vectors of lengths {len(a)}, {len(b)} and {len(c)}")
        F, pa, pb, pc = self._scalar, a.address, b.address, c.address
        self.job.map(lambda r: vector.multiply_subtract(F, pa, pb, pc, r[0], r[1]), self._ranges(len(a)))
        return a

    def scale_powers_in_place(self, v: CpuVector, factor: int, base: int) -> CpuVector:
        constants = field_to_words(self.curve.scalar, [factor, base])
        F, a, c = self._scalar, v.address, address(constants)
        self.job.map(lambda r: vector.scale_powers(F, a, c, r[0], r[1]), self._ranges(len(v)))
        return v

    def batch_inverse(self, v: CpuVector) -> CpuVector:
        out = CpuVector(np.empty_like(v.words))
        F, a, o = self._scalar, v.address, out.address
        self.job.map(lambda r: vector.batch_inverse(F, a, o, r[0], r[1]), self._ranges(len(v)))
        return out

    def ntt(
        self,
        v: CpuVector,
        domain: Domain,
        direction: Direction,
        order: Order = Order.NATURAL_TO_NATURAL,
        coset: Coset = Coset.NONE,
    ) -> CpuVector:
        if len(v) != domain.size:
            raise ValueError(f"a vector of length {len(v)} on a domain of {domain.size}")
        ntt.ntt(v.words, domain, direction, order, coset, self.job)
        return v

    def to_coset_in_place(self, v: CpuVector, domain: Domain, coset: Coset) -> CpuVector:
        if len(v) != domain.size:
            raise ValueError(f"a vector of length {len(v)} on a domain of {domain.size}")
        ntt.to_coset(v.words, domain, coset, self.job, self.path.name)
        return v

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
                self._convert(vector.TO_MONTGOMERY, words, words)
        elif len(words) and (words.strides[1] != 8 or words.strides[0] <= 0):
            words = np.ascontiguousarray(words)
        stride = words.strides[0] if len(words) else 8 * self.curve.scalar.limbs
        return CpuMatrices(count, rows, matrix_index, row_index, column_index, words, stride)

    def spmv(self, m: CpuMatrices, scalars: Words) -> list[CpuVector]:
        scalars = _own(scalars)
        outs = [
            CpuVector(np.zeros((m.rows, self.curve.scalar.limbs), dtype=np.uint64)) for _ in range(m.count)
        ]
        F, n = self._scalar, len(m.values)
        # Every task reads the indices of all entries, and multiplies those of its matrix and rows.
        pieces = -(-self.job.threads // m.count)
        bounds = [m.rows * i // pieces for i in range(pieces + 1)]
        tasks = [(k, lo, hi) for k in range(m.count) for lo, hi in pairwise(bounds)]
        values, source = address(m.values), address(scalars)

        def run(task: tuple[int, int, int]) -> None:
            k, lo, hi = task
            vector.spmv(
                F, k, address(m.matrix_index), m.matrix_index.strides[0],
                address(m.row_index), m.row_index.strides[0],
                address(m.column_index), m.column_index.strides[0], values, m.stride, source, outs[k].address,
                n, lo, hi, self.job.stop,
            )  # fmt: skip

        if n:
            self.job.map(run, tasks)
        return outs

    # Points ------------------------------------------------------------------------------

    def _encode(self, group: Group, points: Sequence[HostPoint]) -> Words:
        return (g1_to_words if group is Group.G1 else g2_to_words)(self.curve, points)  # type: ignore[arg-type]

    def _decode(self, group: Group, words: Words) -> HostPoint:
        return words_to_g1(self.curve, words)[0] if group is Group.G1 else words_to_g2(self.curve, words)[0]

    def _canonical(self, scalars: Words | CpuVector) -> Words:
        return self.download(scalars) if isinstance(scalars, CpuVector) else _own(scalars)

    def prepare_bases(self, group: Group, points: Words, budget: int | None = None) -> Points:
        if len(points) and not points.flags.c_contiguous:
            points = np.ascontiguousarray(points)
        return Points.of(self._coordinates[group], points, self.path.name)

    def msm(self, bases: Points, scalars: Words | CpuVector) -> HostPoint:
        return self.msm_many([bases], scalars)[0]

    def msm_many(self, bases: Sequence[Points], scalars: Words | CpuVector) -> list[HostPoint]:
        for b in bases:
            if len(b) != len(scalars):
                raise ValueError(f"{len(b)} bases and {len(scalars)} scalars")
        results = msm.msm(bases, self._canonical(scalars), self.job)
        groups = [Group.G1 if b.field.degree == 1 else Group.G2 for b in bases]
        return [self._decode(g, r) for g, r in zip(groups, results, strict=True)]

    def linear_combination(
        self, group: Group, points: Sequence[HostPoint], scalars: Sequence[int]
    ) -> HostPoint:
        if len(points) != len(scalars):
            raise ValueError(f"{len(points)} points and {len(scalars)} scalars")
        F = self._coordinates[group]
        words = self._encode(group, points)
        limbs = self.curve.scalar.limbs
        reduced = ints_to_words([s % self.curve.r for s in scalars], limbs).reshape(-1)
        room = np.zeros((7, F.words), dtype=np.uint64)
        result = np.zeros(2 * F.words, dtype=np.uint64)
        curve.linear_combination(F, address(words), reduced, limbs, len(points), address(room))
        curve.normalise(F, address(room), address(result), address(room[4:]), 1)
        return self._decode(group, result)

    def fixed_base_mul(self, group: Group, point: HostPoint, scalars: Words | CpuVector) -> Words:
        bits = self.curve.r.bit_length()
        c = combine.fixed_base_window(len(scalars), bits)
        known, base = self._fixed
        # A set-up asks for the same point's multiples block after block.
        if base is None or known != (group, point) or base.c < c:
            F, words = self._coordinates[group], self._encode(group, [point])
            base = combine.fixed_base(F, words, c, bits, self.path.name, self.job)
            self._fixed = (group, point), base
        return combine.fixed_base_mul(base, self._canonical(scalars), self.job)

    def sparse_combination(
        self,
        group: Group,
        points: Words,
        starts: NDArray[np.int64],
        columns: NDArray[np.uint32],
        values: Words,
    ) -> Words:
        bases = self.prepare_bases(group, points)
        return combine.sparse_combination(bases, starts, columns, values, self.curve.r, self.job)

    def canonical_coordinates(self, points: Words) -> Words:
        source, out = _own(points), np.empty(points.shape, dtype=np.uint64)
        F, a, o = self._coordinates[Group.G1], address(source), address(out)
        ranges = self._ranges(points.size // self.curve.base.limbs)
        self.job.map(lambda r: vector.convert(F, vector.FROM_MONTGOMERY, a, o, r[0], r[1]), ranges)
        return out

    def first_bad_point(self, group: Group, points: Words) -> int:
        if not points.flags.c_contiguous:
            points = np.ascontiguousarray(points)
        F = self._coordinates[group]
        c = self.curve
        coefficient = field_to_words(c.base, [c.b] if group is Group.G1 else c.b_twist)
        start = address(points)

        def on_curve(r: tuple[int, int]) -> int:
            return curve.first_off_curve(F, start, address(coefficient), r[0], r[1])

        bad = self._first_bad(on_curve, len(points))
        # The subgroup test is for points of the curve.
        end = len(points) if bad < 0 else bad
        if end < membership.WORTHWHILE or (group is Group.G1 and c.cofactor_g1 == 1):
            check = pairing.subgroup_check(c, group, F, start, self.job.stop)
        else:
            check = membership.subgroup_check_in_step(c, group, self.prepare_bases(group, points), self.job)
        outside = self._first_bad(check, end)
        return bad if outside < 0 else outside

    def _first_bad(self, check: Callable[[tuple[int, int]], int], n: int) -> int:
        block = combine.PRODUCTS
        found = self.job.map(check, [(lo, min(lo + block, n)) for lo in range(0, n, block)], progress=True)
        return min((i for i in found if i >= 0), default=-1)

    # Pairings --------------------------------------------------------------------------------

    def pairing_check(self, g1: Sequence[AffineG1], g2: Sequence[AffineG2]) -> bool:
        if len(g1) != len(g2):
            raise ValueError(f"{len(g1)} points of G1 and {len(g2)} of G2")
        return pairing.pairing_check(self.curve, g1_to_words(self.curve, g1), g2_to_words(self.curve, g2))
