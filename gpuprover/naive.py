"""The backend ``reference``: every method by its definition, over :mod:`gpuprover.reference`.

Its handles are lists of Python integers and host points, so it needs no compiler and no
device. It passes the suite that every backend passes, which shows that the protocol is
enough; a proof of a few constraints made with it can be followed with a debugger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise, zip_longest
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gpuprover import reference
from gpuprover.backend import Form, Term
from gpuprover.columns import Formula, Op
from gpuprover.curves import AffinePoint, CurveParams, Group
from gpuprover.demand import Budget, Demand, MemoryPlan, named
from gpuprover.errors import OutOfMemory
from gpuprover.job import Job
from gpuprover.limbs import (
    Words,
    field_to_words,
    ints_to_words,
    points_to_words,
    words_to_field,
    words_to_g1,
    words_to_g2,
    words_to_ints,
    words_to_points,
)
from gpuprover.polynomial import Coset, Direction, Domain, Order
from gpuprover.rehearsal import Rehearsal

Vector: TypeAlias = list[int]
"""Canonical integers in [0, r)."""


INTEGER = TUPLE = 72
"""Bytes that CPython takes: 8 for a list's slot, about 64 for an integer of this size or a small tuple."""


class Matrices(NamedTuple):
    matrices: int
    rows: int
    entries: list[tuple[int, int, int, int]]
    """(matrix, row, column, value)."""


class Bases(NamedTuple):
    group: Group
    points: list[AffinePoint]


class NaivePoints:
    """See :class:`gpuprover.backend.PointMath`."""

    def __init__(self, curve: CurveParams, job: Job) -> None:
        self.curve, self.job = curve, job

    def linear_combination(self, group: Group, points: Words, scalars: Sequence[int]) -> Words:
        total = self.sum(group, words_to_points(self.curve, group, points), scalars)
        return points_to_words(self.curve, group, [total]).reshape(-1)

    def affine(self, group: Group, points: Words) -> Words:
        F, base = self._group(group).field, self.curve.base
        flat: list[Any] = words_to_field(base, points.reshape(-1, base.limbs))
        if group is Group.G2:
            flat = [*zip(flat[::2], flat[1::2], strict=True)]
        rows: list[Any] = []
        for x, y, zz, zzz in zip(*(flat[k::4] for k in range(4)), strict=True):
            rows.append(None if zzz == F.zero else (F.mul(x, F.inverse(zz)), F.mul(y, F.inverse(zzz))))
        return points_to_words(self.curve, group, rows)

    def sparse_combination(
        self,
        group: Group,
        points: Words,
        starts: NDArray[np.int64],
        columns: NDArray[np.uint32],
        values: Words,
    ) -> Words:
        given = words_to_points(self.curve, group, points)
        factors, chosen, bounds = words_to_ints(values), columns.tolist(), starts.tolist()
        rows: list[AffinePoint] = []
        for begin, end in pairwise(bounds):
            terms = [given[column] for column in chosen[begin:end]]
            rows.append(self.sum(group, terms, factors[begin:end]))
        return points_to_words(self.curve, group, rows)

    def suffix_sums(self, points: Words) -> Words:
        group, total, sums = self._group(Group.G1), None, []
        for point in reversed(words_to_g1(self.curve, points)):
            self.job.check()
            total = group.add(total, point)
            sums.append(total)
        return points_to_words(self.curve, Group.G1, sums[::-1])

    def canonical_coordinates(self, points: Words) -> Words:
        base = self.curve.base
        values = words_to_field(base, points.reshape(-1, base.limbs))
        return ints_to_words(values, base.limbs).reshape(points.shape)

    def first_bad_point(self, group: Group, points: Words) -> int:
        curve = self._group(group)
        limbs = self.curve.base.limbs
        for i, P in enumerate(words_to_points(self.curve, group, points)):
            self.job.check()
            coordinates = words_to_ints(points[i].reshape(-1, limbs))
            if max(coordinates) >= self.curve.q or not curve.in_subgroup(P):
                return i
        return -1

    def pairing_check(self, g1: Words, g2: Words, fixed: int = 0) -> bool:
        self.job.check()
        if self.first_bad_point(Group.G2, g2) >= 0:
            return False
        return reference.pairing_check(self.curve, words_to_g1(self.curve, g1), words_to_g2(self.curve, g2))

    def _group(self, group: Group) -> reference.EllipticCurve:
        return reference.group(self.curve, group)

    def sum(self, group: Group, points: Sequence[AffinePoint], scalars: Sequence[int]) -> AffinePoint:
        """Σ scalars[i]·points[i], looking at the job's limits before every product."""
        curve = self._group(group)
        total: AffinePoint = None
        for P, k in zip(points, scalars, strict=True):
            self.job.check()
            total = curve.add(total, curve.scalar_mul(P, k))
        return total


class _Costs:
    """See :class:`gpuprover.rehearsal.Costs`."""

    element = INTEGER

    def transform(self, domain: Domain) -> tuple[int, int]:
        return 0, 3 * domain.size * INTEGER

    def sums(self, groups: Sequence[Group], requests: int, longest: int) -> int:
        return 0


class NaiveBackend:
    """See :class:`gpuprover.backend.Backend` for what the methods mean."""

    name = "reference"

    def __init__(self, curve: CurveParams, job: Job) -> None:
        self.curve = curve
        self.job = job
        self.points = NaivePoints(curve, job)
        self._session: Demand | None = None
        self._fr = reference.PrimeField(curve.r)

    # Memory ------------------------------------------------------------------

    def upload(self, values: Words, form: Form = Form.CANONICAL) -> Vector:
        fr = self.curve.scalar
        match form:
            case Form.CANONICAL:
                return words_to_ints(values)
            case Form.MONTGOMERY:
                return words_to_field(fr, values)
            case Form.DOUBLE_MONTGOMERY:
                return [fr.from_montgomery(x) for x in words_to_field(fr, values)]

    def download(self, v: Vector, form: Form = Form.CANONICAL) -> Words:
        fr = self.curve.scalar
        match form:
            case Form.CANONICAL:
                return ints_to_words(v, fr.limbs)
            case Form.MONTGOMERY:
                return field_to_words(fr, v)
            case Form.DOUBLE_MONTGOMERY:
                return field_to_words(fr, [fr.to_montgomery(x) for x in v])

    def free(self, *handles: Vector | Matrices | Bases) -> None:
        for handle in handles:
            match handle:
                case Matrices(entries=entries):
                    entries.clear()
                case Bases(points=points):
                    points.clear()
                case _:
                    handle.clear()

    def plan(self, demand: Demand, budget: Budget) -> MemoryPlan:
        return self._chosen(demand, budget)[1]

    def _chosen(self, demand: Demand, budget: Budget) -> tuple[Demand, MemoryPlan]:
        """The first of the demand's choices that fits, and its plan. Raises OutOfMemory."""
        for choice in demand.choices:
            plan = self._plan(choice)
            if budget.host is None or plan.total <= budget.host:
                return choice, plan
        raise OutOfMemory(f"the reference backend needs {plan.total} bytes for this key, not {budget.host}")

    def _plan(self, demand: Demand) -> MemoryPlan:
        rehearsal = Rehearsal(demand, self.job.threads, _Costs())
        demand.rehearse(demand, rehearsal)
        key = 0
        for bases in demand.bases:
            coordinates = 2 * demand.curve.group(bases.group).degree
            key += bases.size * (coordinates * INTEGER + (coordinates - 1) * TUPLE)
        key += sum(matrices.entries for matrices in demand.matrices) * (4 * INTEGER + TUPLE)
        key += sum(column.size for column in demand.columns) * INTEGER
        return MemoryPlan(key=key, tables=0, arena=demand.witness * INTEGER + rehearsal.arena, host=0)

    # The proof's key -------------------------------------------------------------

    @contextmanager
    def session(self, demand: Demand, owner: object, budget: Budget) -> Iterator[Demand]:
        if self._session is not None:
            raise ValueError("a backend makes one proof at a time")
        self._session, _ = self._chosen(demand, budget)
        try:
            yield self._session
        finally:
            self._session = None

    @property
    def _demand(self) -> Demand:
        if self._session is None:
            raise ValueError("no session is open")
        return self._session

    def bases(self, name: str, points: Words) -> Bases:
        part = named(self._demand.bases, name)
        return self.prepare_bases(part.group, points)

    def matrices(
        self,
        name: str,
        matrix_index: NDArray[np.uint32],
        row_index: NDArray[np.uint32],
        column_index: NDArray[np.uint32],
        values: Words,
        form: Form,
    ) -> Matrices:
        part = named(self._demand.matrices, name)
        return self.prepare_matrices(
            part.count, part.rows, matrix_index, row_index, column_index, values, form
        )

    def column(self, name: str, values: Words, form: Form) -> Vector:
        named(self._demand.columns, name)
        return self.upload(values, form)

    # Vectors -----------------------------------------------------------------

    def ntt(
        self,
        v: Vector,
        domain: Domain,
        direction: Direction,
        order: Order = Order.NATURAL_TO_NATURAL,
        coset: Coset | int = Coset.NONE,
    ) -> Vector:
        self.job.check()
        shift = domain.shift(coset)
        x = reference.bit_reverse(v) if order is Order.REVERSED_TO_NATURAL else v
        transform = reference.dft if direction is Direction.FORWARD else reference.inverse_dft
        y = transform(domain.field, x, domain.omega, shift)
        v[:] = reference.bit_reverse(y) if order is Order.NATURAL_TO_REVERSED else y
        return v

    def add(self, a: Vector, b: Vector) -> Vector:
        self.job.check()
        return [self._fr.add(x, y) for x, y in zip(a, b, strict=True)]

    def sub(self, a: Vector, b: Vector) -> Vector:
        self.job.check()
        return [self._fr.sub(x, y) for x, y in zip(a, b, strict=True)]

    def mul(self, a: Vector, b: Vector) -> Vector:
        self.job.check()
        return [self._fr.mul(x, y) for x, y in zip(a, b, strict=True)]

    def multiply_subtract_in_place(self, a: Vector, b: Vector, c: Vector) -> Vector:
        a[:] = self.sub(self.mul(a, b), c)
        return a

    def scale_powers_in_place(self, v: Vector, factor: int, base: int) -> Vector:
        self.job.check()
        r = self.curve.r
        v[:] = [x * factor * pow(base, i, r) % r for i, x in enumerate(v)]
        return v

    def batch_inverse(self, v: Vector) -> Vector:
        self.job.check()
        return [self._fr.inverse(x) for x in v]

    def to_coset_in_place(self, vectors: Sequence[Vector], domain: Domain, coset: Coset) -> Sequence[Vector]:
        for v in vectors:
            self.ntt(v, domain, Direction.INVERSE)
            self.ntt(v, domain, Direction.FORWARD, coset=coset)
        return vectors

    # Polynomials and columns -----------------------------------------------------

    def evaluate(
        self,
        formula: Formula,
        columns: Mapping[str, Vector],
        challenges: Mapping[str, int] = {},
        step: int = 1,
    ) -> list[Vector]:
        self.job.check()
        n = formula.rows({name: len(v) for name, v in columns.items()})
        scalars = formula.scalar_values(challenges, self.curve.r)
        operations = {Op.ADD: self._fr.add, Op.SUB: self._fr.sub, Op.MUL: self._fr.mul}
        results: list[Vector] = [[] for _ in formula.results]
        for i in range(n):
            values = [
                columns[name][(i + rotation * step) % len(columns[name])] for name, rotation in formula.reads
            ]
            values += scalars
            for op, a, b in formula.steps:
                values.append(operations[op](values[a], values[b]))
            for result, value in zip(results, formula.results, strict=True):
                result.append(values[value])
        return results

    def combine(self, terms: Sequence[Term], length: int | None = None) -> Vector:
        self.job.check()
        if length is None:
            if not terms:
                raise ValueError("a sum of no terms has no length")
            length = max(max(0, len(v) + shift) for v, _, shift in terms)
        out = [0] * length
        for v, scalar, shift in terms:
            for i in range(max(0, -shift), min(len(v), length - shift)):
                out[i + shift] = (out[i + shift] + scalar * v[i]) % self.curve.r
        return out

    def extend(self, v: Vector, domain: Domain, cosets: Sequence[Coset | int]) -> list[Vector]:
        self.job.check()
        n, r = domain.size, self.curve.r
        results = []
        for g in map(domain.shift, cosets):
            # On the coset X^n is g^n.
            folded = [0] * n
            for i, x in enumerate(v):
                folded[i % n] = (folded[i % n] + x * pow(g, i - i % n, r)) % r
            results.append(reference.dft(domain.field, folded, domain.omega, g))
        return results

    def values_at(self, queries: Sequence[tuple[Vector, int]]) -> list[int]:
        self.job.check()
        r = self.curve.r
        return [sum(c * pow(x, i, r) for i, c in enumerate(v)) % r for v, x in queries]

    def divide(self, v: Vector, root: int, degree: int = 1) -> tuple[Vector, Vector]:
        self.job.check()
        rest = v + [0] * (degree - len(v))
        for i in reversed(range(degree, len(rest))):
            rest[i - degree] = (rest[i - degree] + root * rest[i]) % self.curve.r
        return rest[degree:], rest[:degree]

    def running_product(self, numerators: Vector, denominators: Vector, start: int = 1) -> Vector:
        self.job.check()
        if len(numerators) != len(denominators):
            raise ValueError(f"vectors of lengths {len(numerators)} and {len(denominators)}")
        z = [start]
        for a, b in zip(numerators, denominators, strict=True):
            z.append(z[-1] * a * self._fr.inverse(b) % self.curve.r)
        return z

    def powers(self, n: int, base: int, factor: int = 1) -> Vector:
        return self.scale_powers_in_place([1] * n, factor, base)

    def gather(self, v: Vector, indices: NDArray[np.uint32]) -> Vector:
        self.job.check()
        return [v[i] for i in indices.tolist()]

    def signals(
        self,
        values: Words,
        left: NDArray[np.uint32],
        right: NDArray[np.uint32],
        left_factors: Words,
        right_factors: Words,
    ) -> Vector:
        self.job.check()
        x = [0, *words_to_ints(values)]
        form = Form.MONTGOMERY
        factors = zip(self.upload(left_factors, form), self.upload(right_factors, form), strict=True)
        for i, j, (f, g) in zip(left.tolist(), right.tolist(), factors, strict=True):
            x.append((f * x[i] + g * x[j]) % self.curve.r)
        return x

    def interleave(self, vectors: Sequence[Vector]) -> Vector:
        self.job.check()
        return [x for row in zip_longest(*vectors, fillvalue=0) for x in row]

    def deinterleave(self, v: Vector, count: int) -> list[Vector]:
        self.job.check()
        if len(v) % count:
            raise ValueError(f"a vector of length {len(v)} in {count} parts")
        return [v[j::count] for j in range(count)]

    # Sparse products -----------------------------------------------------------

    def prepare_matrices(
        self,
        count: int,
        rows: int,
        matrix_index: NDArray[np.uint32],
        row_index: NDArray[np.uint32],
        column_index: NDArray[np.uint32],
        values: Words,
        form: Form,
    ) -> Matrices:
        indices = matrix_index.tolist(), row_index.tolist(), column_index.tolist()
        return Matrices(count, rows, list(zip(*indices, self.upload(values, form), strict=True)))

    def spmv(self, m: Matrices, scalars: Words) -> list[Vector]:
        self.job.check()
        s = words_to_ints(scalars)
        products = [[0] * m.rows for _ in range(m.matrices)]
        for matrix, row, column, value in m.entries:
            v = products[matrix]
            v[row] = self._fr.add(v[row], self._fr.mul(value, s[column]))
        return products

    # Points ----------------------------------------------------------------------

    def prepare_bases(self, group: Group, points: Words, budget: int | None = None) -> Bases:
        return Bases(group, words_to_points(self.curve, group, points))

    def msm(self, bases: Bases, scalars: Words | Vector) -> Words:
        integers = self._integers(scalars)
        if len(integers) > len(bases.points):
            raise ValueError(f"{len(bases.points)} bases and {len(integers)} scalars")
        total = self.points.sum(bases.group, bases.points[: len(integers)], integers)
        return points_to_words(self.curve, bases.group, [total]).reshape(-1)

    def msm_many(
        self,
        requests: Sequence[tuple[Sequence[Bases], Words | Vector]],
        meanwhile: Callable[[], None] = lambda: None,
    ) -> list[list[Words]]:
        meanwhile()
        return [[self.msm(b, scalars) for b in bases] for bases, scalars in requests]

    def fixed_base_mul(self, group: Group, point: Words, scalars: Words | Vector) -> Words:
        points = words_to_points(self.curve, group, point)
        multiples = [self.points.sum(group, points, [k]) for k in self._integers(scalars)]
        return points_to_words(self.curve, group, multiples)

    @staticmethod
    def _integers(scalars: Words | Vector) -> Sequence[int]:
        return words_to_ints(scalars) if isinstance(scalars, np.ndarray) else scalars
