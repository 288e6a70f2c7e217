"""The protocol between provers and the machines they run on.

A prover calls a backend and nothing else. Vectors, matrices and bases are opaque handles
that stay where the backend keeps them; only a few points and, on request, vectors come
back to the host. One backend object serves one curve and one :class:`~gpuprover.job.Job`.

Host data have one layout everywhere: little-endian uint64 words, the bytes that circom's
files hold. Arrays that a backend receives may be read-only and unaligned views of a
mapped file. Points in arrays are affine, Montgomery, infinity all zeros:
uint64[n, g1_words] = (x, y), uint64[n, g2_words] = (x0, x1, y0, y1). A single point is one
such row, uint64[words].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from gpuprover.curves import CurveParams, Group
from gpuprover.demand import Budget, Demand, MemoryPlan
from gpuprover.job import Job
from gpuprover.limbs import Words
from gpuprover.polynomial import Coset, Direction, Domain, Order

if TYPE_CHECKING:
    from gpuprover.columns import Formula

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


class PointMath(Protocol):
    """What the CPU does with points, whatever the device: it is short, or a part of set-up and verification.

    Every method may raise Cancelled or Timeout.
    """

    curve: CurveParams
    job: Job

    def linear_combination(self, group: Group, points: Words, scalars: Sequence[int]) -> Words:
        """Σ scalars[i]·points[i] of a few points, uint64[n, words] -> uint64[words].

        The scalars are integers of any size and sign.
        """
        ...

    def affine(self, group: Group, points: Words) -> Words:
        """A few points (X, Y, ZZ, ZZZ), uint64[n, 2·words] -> (X/ZZ, Y/ZZZ), uint64[n, words].

        Infinity has ZZ = ZZZ = 0.
        """
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

    def suffix_sums(self, points: Words) -> Words:
        """Row i is Σ points[j] over j >= i: affine points of G1, uint64[n, g1_words] -> the same shape.

        For sums whose scalars repeat themselves: Σ s_i·P_i = Σ (s_i − s_{i−1})·S_i, with s_{−1} = 0.
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

    def pairing_check(self, g1: Words, g2: Words, fixed: int = 0) -> bool:
        """Whether every g2[i] is in its subgroup and Π e(g1[i], g2[i]) = 1.

        Affine points on their curves, those of G1 in their subgroup. The last ``fixed`` points of G2 will
        come again: a backend may keep what it computes from them alone.
        """
        ...


class Term(NamedTuple):
    """scalar·X^shift·v, with v the polynomial of these coefficients: see :meth:`Backend.combine`.

    Attributes:
        vector: the coefficients, from the constant one.
        scalar: an integer of any size and sign.
        shift: places by which the coefficients move up; what moves below 0 is left out.
    """

    vector: Vector
    scalar: int = 1
    shift: int = 0


class Backend(Protocol):
    """What a prover may ask of a device. All n×n pointwise operations need equal lengths.

    Every method may raise Cancelled, Timeout, OutOfMemory or DeviceError. Methods that
    return a Vector return a new handle, except those named ``*_in_place`` (and ``ntt``),
    which overwrite and return their first argument.
    """

    name: str
    curve: CurveParams
    job: Job
    points: PointMath

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

    def plan(self, demand: Demand, budget: Budget) -> MemoryPlan:
        """The memory of one proof; nothing is taken. Pages of a mapped key do not count: they can be dropped.

        Where the demand does not fit, a leaner one that it names is planned.

        Raises:
            OutOfMemory: it cannot be done within the budget.
        """
        ...

    # The proof's key -------------------------------------------------------------

    def session(self, demand: Demand, owner: object, budget: Budget) -> AbstractContextManager[Demand]:
        """The memory of one proof, from its first handle to its last; within, the demand that it is for.

        That is the demand that was given, or one of the leaner ones that it names: the steps are that one's.

        A device takes it on entry and gives it back at the end, however that comes; vectors made within
        are dead then. Host arrays that are handed in do not change meanwhile. The parts of the key are the
        ``owner``'s: a device may keep them for the next proof, as long as the owner lives.

        Raises:
            OutOfMemory: on entry; see :meth:`plan`.
            ValueError: a session of this backend is open.
        """
        ...

    def bases(self, name: str, points: Words) -> Bases:
        """The demand's bases of this name, whose points these are; within a session."""
        ...

    def matrices(
        self,
        name: str,
        matrix_index: NDArray[np.uint32],
        row_index: NDArray[np.uint32],
        column_index: NDArray[np.uint32],
        values: Words,
        form: Form,
    ) -> Matrices:
        """The demand's matrices of this name, as :meth:`prepare_matrices`; within a session."""
        ...

    def column(self, name: str, values: Words, form: Form) -> Vector:
        """The demand's column of this name, as :meth:`upload`; within a session. It is not written to."""
        ...

    # Vectors -----------------------------------------------------------------

    def ntt(
        self,
        v: Vector,
        domain: Domain,
        direction: Direction,
        order: Order = Order.NATURAL_TO_NATURAL,
        coset: Coset | int = Coset.NONE,
    ) -> Vector:
        """Transforms v (length domain.size) in place.

        FORWARD on a coset g·⟨ω⟩ evaluates at g·ω^j; INVERSE from a coset undoes that. An integer names g
        itself, in [1, r).
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

    # Polynomials and columns -----------------------------------------------------
    #
    # What systems of PLONK's kind ask for, beside transforms. A polynomial is the vector of its
    # coefficients, from the constant one; a column is the vector of its values on a domain. Every
    # method leaves its arguments as they are, and returns new vectors.

    def evaluate(
        self,
        formula: Formula,
        columns: Mapping[str, Vector],
        challenges: Mapping[str, int] = {},
        step: int = 1,
    ) -> list[Vector]:
        """The formula's results on all rows: see :mod:`gpuprover.columns` for what a row is.

        Quotients' numerators, factors of grand products, folded lookups, products of two vectors, a rotated
        column: the hot loop of every such system. ``columns`` may hold more than the formula reads; ``step``
        >= 1 is the distance of the circuit's rows in them.

        Raises:
            ValueError: a column or challenge is missing, or a column's length does not divide the rows.
        """
        ...

    def combine(self, terms: Sequence[Term], length: int | None = None) -> Vector:
        """Σ scalar·X^shift·v as ``length`` coefficients: by default as many as the longest term has.

        Higher ones are left out, and missing ones are 0. So this adds polynomials of several lengths with
        powers of a challenge (all openings), pads, cuts, joins and shifts vectors, subtracts a value from a
        constant coefficient, multiplies a short blinding polynomial by X^n − 1, and reduces a polynomial mod
        X^n − c (terms shifted down by multiples of n).

        Raises:
            ValueError: no term and no length.
        """
        ...

    def extend(self, v: Vector, domain: Domain, cosets: Sequence[Coset | int]) -> list[Vector]:
        """The polynomial's values on each coset of the domain, in natural order.

        v may have fewer coefficients than the domain has elements (a column on a larger domain), or more (a
        blinded column on cosets of its own domain): it is evaluated as it is.
        """
        ...

    def values_at(self, queries: Sequence[tuple[Vector, int]]) -> list[int]:
        """v(x) for each polynomial v and integer x in [0, r) -> integers in [0, r): what a proof says."""
        ...

    def divide(self, v: Vector, root: int, degree: int = 1) -> tuple[Vector, Vector]:
        """v = quotient·(X^degree − root) + remainder -> (quotient, remainder).

        ``degree`` >= 1. The quotient has len(v) − degree coefficients (at least 0), the remainder ``degree``,
        and with degree 1 it is v(root). Openings divide by X − x (several times for several points), FFLONK's
        by X^8 − ξ and X^4 − ξ; with degree n and root 1 it is the division by what vanishes on a domain.
        """
        ...

    def running_product(self, numerators: Vector, denominators: Vector, start: int = 1) -> Vector:
        """z of n + 1 elements: z[0] = start, z[i+1] = z[i]·numerators[i]/denominators[i]; 1/0 counts as 0.

        Permutation and lookup arguments: the last element is 1 where one holds as a whole. ``start`` in
        [0, r): halo2's chunks go on from each other.
        """
        ...

    def powers(self, n: int, base: int, factor: int = 1) -> Vector:
        """factor·base^i for i in [0, n): the column X on ⟨ω⟩ or on a coset, or 1, y, y², …"""
        ...

    def gather(self, v: Vector, indices: NDArray[np.uint32]) -> Vector:
        """v[indices[i]]: wires of gates from a witness, rows in the order of a lookup's permutation.

        Raises:
            IndexError: an index is len(v) or more.
        """
        ...

    def signals(
        self,
        values: Words,
        left: NDArray[np.uint32],
        right: NDArray[np.uint32],
        left_factors: Words,
        right_factors: Words,
    ) -> Vector:
        """0, then canonical values, and then combinations, each of two elements x that come before it.

        Combination i is left_factors[i]·x[left[i]] + right_factors[i]·x[right[i]], with Montgomery factors,
        uint64[m, limbs]. So a circuit's witness becomes what the wires of its gates can carry: 0 is that of a
        wire that is not used, and long sums have values of their own for parts of them. The arrays may be
        strided views of a file's records, and may change: an index is looked at when it is used.

        Raises:
            IndexError: an index is not that of an element before its own.
        """
        ...

    def interleave(self, vectors: Sequence[Vector]) -> Vector:
        """Element i·k + j is vectors[j][i], k being their number; shorter ones end with zeros.

        FFLONK's Σ X^j·P_j(X^k); and the values on k cosets g·ω_kn^j·⟨ω_n⟩ as those on g·⟨ω_kn⟩.
        """
        ...

    def deinterleave(self, v: Vector, count: int) -> list[Vector]:
        """The ``count`` vectors v[j], v[j + count], …: undoes :meth:`interleave` of equal lengths.

        Raises:
            ValueError: count does not divide v's length.
        """
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
        """Affine points that are nobody's key, for multiplications with other scalars.

        ``budget`` bounds the bytes spent on precomputed multiples; None leaves it to the backend.
        """
        ...

    def msm(self, bases: Bases, scalars: Words | Vector) -> Words:
        """Σ scalars[i]·bases[i], uint64[words].

        ``scalars`` is a Vector, or canonical uint64[n, limbs]; n <= len(bases), and further bases take no
        part: the points of one SRS serve polynomials of any degree below their number. Small ones may have
        fewer limbs.

        Raises:
            ValueError: more scalars than bases.
        """
        ...

    def msm_many(
        self,
        requests: Sequence[tuple[Sequence[Bases], Words | Vector]],
        meanwhile: Callable[[], None] = lambda: None,
    ) -> list[list[Words]]:
        """For each request, the same scalars against several bases, as :meth:`msm`.

        Several polynomials against one SRS are several requests with the same bases, of any lengths. Scalars
        of a request are recoded once, and all requests share the device's threads. ``meanwhile`` is
        called once: while a device works by itself, if there is one.
        """
        ...

    def fixed_base_mul(self, group: Group, point: Words, scalars: Words | Vector) -> Words:
        """scalars[i]·point for all i -> affine uint64[n, words]."""
        ...
