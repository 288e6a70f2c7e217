"""A backend that does nothing and counts vectors as they come and go, for a proof's memory on the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from gpuprover.backend import Form
from gpuprover.curves import CurveParams, Group
from gpuprover.demand import Demand, KeyMatrices
from gpuprover.job import Job
from gpuprover.limbs import Words
from gpuprover.polynomial import Coset, Direction, Domain, Order

if TYPE_CHECKING:
    from gpuprover.columns import Formula


class Vector:
    """n elements that are nowhere."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n


class _Lying(Vector):
    """n elements of a key, which take nothing and give nothing back."""


class Bases(NamedTuple):
    group: Group
    size: int

    def __len__(self) -> int:
        return self.size


class Costs(Protocol):
    """Bytes that the operations of a backend take beside the vectors that they return."""

    @property
    def element(self) -> int:
        """An element of a vector."""
        ...

    def transform(self, domain: Domain) -> tuple[int, int]:
        """Tables of transforms on a domain, which stay, and scratch."""
        ...

    def sums(self, groups: Sequence[Group], requests: int, longest: int) -> int:
        """Scratch of multi-scalar multiplications in one call, the longest with so many points."""
        ...


class Rehearsal:
    """See :class:`gpuprover.backend.Backend`; results are zeros or have no contents.

    Attributes:
        arena: bytes of vectors and scratch at the peak.
        tables: bytes of tables.

    Args:
        demand: the proof whose steps are run here.
    """

    name = "rehearsal"

    def __init__(self, demand: Demand, threads: int, costs: Costs) -> None:
        self.curve, self.job = demand.curve, Job(threads=threads)
        self.points: Any = _Points(demand.curve)
        self._bases = {bases.name: Bases(bases.group, bases.size) for bases in demand.bases}
        self._matrices = {matrices.name: matrices for matrices in demand.matrices}
        self.arena = self.tables = 0
        self._costs, self._held = costs, 0
        self._domains: dict[Domain, int] = {}

    def _made(self, *sizes: int) -> list[Vector]:
        self._held += sum(sizes) * self._costs.element
        self.arena = max(self.arena, self._held)
        return [Vector(n) for n in sizes]

    def _scratch(self, size: int) -> None:
        self.arena = max(self.arena, self._held + size)

    # Memory ------------------------------------------------------------------

    def upload(self, values: Words, form: Form = Form.CANONICAL) -> Vector:
        return self._made(len(values))[0]

    def download(self, v: Vector, form: Form = Form.CANONICAL) -> Words:
        self._scratch(len(v) * self._costs.element)
        return np.empty((len(v), self.curve.scalar.limbs), dtype=np.uint64)

    def free(self, *handles: Any) -> None:
        for handle in handles:
            if isinstance(handle, Vector) and not isinstance(handle, _Lying):
                self._held -= handle.n * self._costs.element
                handle.n = 0

    # The key ---------------------------------------------------------------------

    def bases(self, name: str, points: Words) -> Bases:
        return self._bases[name]

    def matrices(self, name: str, *entries: Any) -> KeyMatrices:
        return self._matrices[name]

    def column(self, name: str, values: Words, form: Form) -> Vector:
        # Montgomery words are used where they lie: a mapped key's pages are counted with it.
        return _Lying(len(values)) if form is Form.MONTGOMERY else self._made(len(values))[0]

    # Vectors -----------------------------------------------------------------

    def ntt(
        self,
        v: Vector,
        domain: Domain,
        direction: Direction,
        order: Order = Order.NATURAL_TO_NATURAL,
        coset: Coset | int = Coset.NONE,
    ) -> Vector:
        tables, scratch = self._costs.transform(domain)
        if domain not in self._domains:
            self._domains[domain] = tables
            self.tables += tables
        self._scratch(scratch)
        return v

    def to_coset_in_place(
        self, vectors: Sequence[Vector], domain: Domain, coset: Coset | int
    ) -> Sequence[Vector]:
        for v in vectors:
            self.ntt(v, domain, Direction.FORWARD)
        return vectors

    def add(self, a: Vector, b: Vector) -> Vector:
        return self._made(len(a))[0]

    sub = mul = add

    def multiply_subtract_in_place(self, a: Vector, b: Vector, c: Vector) -> Vector:
        return a

    def scale_powers_in_place(self, v: Vector, factor: int, base: int) -> Vector:
        return v

    def batch_inverse(self, v: Vector) -> Vector:
        return self._made(len(v))[0]

    # Polynomials and columns -----------------------------------------------------

    def evaluate(
        self,
        formula: Formula,
        columns: Mapping[str, Vector],
        challenges: Mapping[str, int] = {},
        step: int = 1,
    ) -> list[Vector]:
        longest = max((len(columns[name]) for name in columns), default=0)
        return self._made(*[longest] * len(formula.results))

    def combine(self, terms: Sequence[Any], length: int | None = None) -> Vector:
        longest = max((len(term.vector) + term.shift for term in terms), default=0)
        return self._made(longest if length is None else length)[0]

    def extend(self, v: Vector, domain: Domain, cosets: Sequence[Coset | int]) -> list[Vector]:
        found = self._made(*[domain.size] * len(cosets))
        for one in found:
            self.ntt(one, domain, Direction.FORWARD)
        return found

    def values_at(self, queries: Sequence[tuple[Vector, int]]) -> list[int]:
        return [0] * len(queries)

    def divide(self, v: Vector, root: int, degree: int = 1) -> tuple[Vector, Vector]:
        quotient, remainder = self._made(max(0, len(v) - degree), degree)
        return quotient, remainder

    def running_product(self, numerators: Vector, denominators: Vector, start: int = 1) -> Vector:
        self._scratch(2 * len(numerators) * self._costs.element)
        return self._made(len(numerators) + 1)[0]

    def powers(self, n: int, base: int, factor: int = 1) -> Vector:
        return self._made(n)[0]

    def gather(self, v: Vector, indices: NDArray[np.uint32]) -> Vector:
        return self._made(len(indices))[0]

    def signals(
        self,
        values: Words,
        left: NDArray[np.uint32],
        right: NDArray[np.uint32],
        left_factors: Words,
        right_factors: Words,
    ) -> Vector:
        return self._made(1 + len(values) + len(left))[0]

    def interleave(self, vectors: Sequence[Vector]) -> Vector:
        return self._made(len(vectors) * max(map(len, vectors), default=0))[0]

    def deinterleave(self, v: Vector, count: int) -> list[Vector]:
        return self._made(*[len(v) // count] * count)

    # Sparse products and sums ------------------------------------------------------

    def spmv(self, m: KeyMatrices, scalars: Words) -> list[Vector]:
        return self._made(*[m.rows] * m.count)

    def msm(self, bases: Bases, scalars: Words | Vector) -> Words:
        return self.msm_many([([bases], scalars)])[0][0]

    def msm_many(
        self,
        requests: Sequence[tuple[Sequence[Bases], Words | Vector]],
        meanwhile: Callable[[], None] = lambda: None,
    ) -> list[list[Words]]:
        meanwhile()
        # A vector's scalars are written in canonical form.
        canonical = sum(len(s) for _, s in requests if isinstance(s, Vector)) * self._costs.element
        groups = list(dict.fromkeys(b.group for bases, _ in requests for b in bases))
        longest = max((len(scalars) for _, scalars in requests), default=0)
        self._scratch(canonical + self._costs.sums(groups, len(requests), longest))
        return [
            [np.zeros(b.group.words(self.curve), dtype=np.uint64) for b in bases] for bases, _ in requests
        ]


class _Points:
    """Operations on single points, which take no memory worth counting."""

    def __init__(self, curve: CurveParams) -> None:
        self._curve = curve

    def linear_combination(self, group: Group, points: Words, scalars: Sequence[int]) -> Words:
        return np.zeros(group.words(self._curve), dtype=np.uint64)


class _VectorsOnly:
    """See :class:`Costs`: elements alone are counted."""

    element = 1

    def transform(self, domain: Domain) -> tuple[int, int]:
        return 0, 0

    def sums(self, groups: Sequence[Group], requests: int, longest: int) -> int:
        return 0


@lru_cache(maxsize=64)
def vectors_of(demand: Demand) -> int:
    """The elements of all vectors that a proof holds at once, at the peak; whatever the device."""
    rehearsal = Rehearsal(demand, 1, _VectorsOnly())
    demand.rehearse(demand, rehearsal)
    return rehearsal.arena
