"""The protocol between provers and the machines they run on.

A prover calls a backend and nothing else. Vectors, matrices and bases are opaque handles
that stay where the backend keeps them; only a few points and, on request, vectors come
back to the host. One backend object serves one curve and one :class:`~gpuprover.job.Job`.

Host data have one layout everywhere: little-endian uint64 words, the bytes that circom's
files hold. Arrays that a backend receives may be read-only and unaligned views of a
mapped file. Points in arrays are affine, Montgomery, infinity all zeros:
uint64[n, g1_words] = (x, y), uint64[n, g2_words] = (x0, x1, y0, y1). Single points on the
host are plain integers (:data:`~gpuprover.curves.AffineG1`, ``AffineG2``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from enum import Enum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gpuprover.curves import AffinePoint as HostPoint
from gpuprover.curves import CurveParams, Group
from gpuprover.demand import KeyHeader, MemoryPlan
from gpuprover.job import Job
from gpuprover.limbs import Words
from gpuprover.polynomial import Coset, Direction, Domain, Order

Vector = Any
"""Handle: a vector over the scalar field, in Montgomery form where it lies."""
Matrices = Any
"""Handle: sparse matrices over the scalar field."""
Bases = Any
"""Handle: points prepared for multi-scalar multiplication."""


class Form(Enum):
    """How a field element stands in words."""

    CANONICAL = "canonical"
    """The integer itself, in [0, r)."""
    MONTGOMERY = "montgomery"
    """x·R mod r with R = 2^(64·limbs)."""
    DOUBLE_MONTGOMERY = "double-montgomery"
    """x·R² mod r, as coefficients stand in a ``.zkey``: times a canonical value, it gives Montgomery form."""


class Backend(Protocol):
    """What a prover may ask of a device. All n×n pointwise operations need equal lengths.

    Every method may raise Cancelled, Timeout, OutOfMemory or DeviceError. Methods that
    return a Vector return a new handle, except those named ``*_in_place`` (and ``ntt``),
    which overwrite and return their first argument.
    """

    name: str
    curve: CurveParams
    job: Job

    # Memory ------------------------------------------------------------------

    def upload(self, values: Words, form: Form = Form.CANONICAL) -> Vector:
        """uint64[n, limbs] of values in [0, r), in the given form -> Vector."""
        ...

    def download(self, v: Vector, form: Form = Form.CANONICAL) -> Words:
        """Vector -> fresh uint64[n, limbs] in the given form."""
        ...

    def free(self, *handles: Vector | Matrices | Bases) -> None:
        """Gives the handles' memory back; using one afterwards is an error of the caller."""
        ...

    def plan(self, header: KeyHeader, budget: int | None) -> MemoryPlan:
        """The memory of one proof with a key of this shape.

        ``budget`` bounds, in bytes, what the backend allocates: tables, arena and staging, and
        the key where it is copied. Pages of a mapped key do not count: they can be dropped.

        Raises:
            OutOfMemory: it cannot be done within the budget.
        """
        ...

    def proof(self, header: KeyHeader, owner: object) -> AbstractContextManager[None]:
        """The memory of one proof with a key of this shape, from its first handle to its last.

        A device takes it on entry and gives it back at the end, however that comes; vectors made within
        are dead then. Host arrays that are handed in do not change meanwhile. Bases and matrices are the
        ``owner``'s, who has them prepared in the same order for every proof: a device may keep them for the
        next one, as long as the owner lives.

        Raises:
            OutOfMemory: on entry; see :meth:`plan`.
        """
        ...

    # Vectors -----------------------------------------------------------------

    def ntt(
        self,
        v: Vector,
        domain: Domain,
        direction: Direction,
        order: Order = Order.NATURAL_TO_NATURAL,
        coset: Coset = Coset.NONE,
    ) -> Vector:
        """Transforms v (length domain.size) in place.

        FORWARD on a coset g·⟨ω⟩ evaluates at g·ω^j; INVERSE from a coset undoes that.
        """
        ...

    def add(self, a: Vector, b: Vector) -> Vector: ...

    def sub(self, a: Vector, b: Vector) -> Vector: ...

    def mul(self, a: Vector, b: Vector) -> Vector: ...

    def multiply_subtract_in_place(self, a: Vector, b: Vector, c: Vector) -> Vector:
        """a ← a·b − c, pointwise: the numerator of Groth16's quotient."""
        ...

    def scale_powers_in_place(self, v: Vector, factor: int, base: int) -> Vector:
        """v[i] ← v[i]·factor·base^i, natural order; factor and base are integers in [0, r)."""
        ...

    def batch_inverse(self, v: Vector) -> Vector:
        """1/v[i], and 0 where v[i] = 0."""
        ...

    def to_coset_in_place(self, vectors: Sequence[Vector], domain: Domain, coset: Coset) -> Sequence[Vector]:
        """Evaluations on ⟨ω⟩ -> evaluations of the same polynomials on the coset; both in natural order."""
        ...

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
        """``count`` sparse matrices of ``rows`` rows from one list of entries (matrix, row, column, value).

        Repeated entries add up. The arrays may be strided views of a file's records, and are not copied if
        that can be. They may change: indices are looked at again when they are used.

        Raises:
            IndexError: an index is out of range; :meth:`spmv` raises it, too.
        """
        ...

    def spmv(self, m: Matrices, scalars: Words) -> list[Vector]:
        """Each matrix times canonical scalars uint64[columns, limbs] -> Vectors of length rows.

        Raises:
            IndexError: an entry has a matrix, row or column that is not there.
        """
        ...

    # Points ----------------------------------------------------------------------

    def prepare_bases(self, group: Group, points: Words, budget: int | None = None) -> Bases:
        """Affine points, for many multiplications with other scalars.

        ``budget`` bounds the bytes spent on precomputed multiples; None leaves it to the backend.
        """
        ...

    def msm(self, bases: Bases, scalars: Words | Vector) -> HostPoint:
        """Σ scalars[i]·bases[i].

        ``scalars`` is a Vector, or canonical uint64[n, limbs]; n = len(bases).
        Small ones may have fewer limbs.
        """
        ...

    def msm_many(
        self,
        requests: Sequence[tuple[Sequence[Bases], Words | Vector]],
        meanwhile: Callable[[], None] = lambda: None,
    ) -> list[list[HostPoint]]:
        """For each request, the same scalars against several bases of equal length.

        Scalars of a request are recoded once, and all requests share the device's threads. ``meanwhile`` is
        called once: while a device works by itself, if there is one.
        """
        ...

    def linear_combination(
        self, group: Group, points: Sequence[HostPoint], scalars: Sequence[int]
    ) -> HostPoint:
        """Σ scalars[i]·points[i] of a few host points; integers of any size and sign."""
        ...

    def fixed_base_mul(self, group: Group, point: HostPoint, scalars: Words | Vector) -> Words:
        """scalars[i]·point for all i -> affine uint64[n, words]."""
        ...

    def sparse_combination(
        self,
        group: Group,
        points: Words,
        starts: NDArray[np.int64],
        columns: NDArray[np.uint32],
        values: Words,
    ) -> Words:
        """Row i of the result is Σ values[k]·points[columns[k]] for k in [starts[i], starts[i+1]).

        ``values`` are canonical uint64[nnz, limbs]; the result is affine uint64[rows, words].
        """
        ...

    def canonical_coordinates(self, points: Words) -> Words:
        """Affine points, G1 or G2, out of Montgomery form: fresh words of the same shape."""
        ...

    def first_bad_point(self, group: Group, points: Words) -> int:
        """Index of the first point off the curve, outside the subgroup or with a coordinate >= q; −1 if none.

        Infinity is good.
        """
        ...

    # Pairings ----------------------------------------------------------------------

    def pairing_check(self, g1: Words, g2: Words, fixed: int = 0) -> bool:
        """Whether every g2[i] is in its subgroup and Π e(g1[i], g2[i]) = 1.

        Affine points on their curves, those of G1 in their subgroup. The last ``fixed`` points of G2 will
        come again: a backend may keep what it computes from them alone.
        """
        ...
