"""Quotients by X^n − 1: a numerator is evaluated on cosets of n points, where the divisor is constant.

On the coset g·⟨ω⟩ X^n is g^n, so that what an inverse transform makes of a quotient's values there is its
remainder by X^n − g^n. Remainders by several such divisors, and what is known of the highest coefficients,
give the quotient: for t = Σ X^(n·m)·t_m, remainder j is Σ g_j^(n·m)·t_m, a system of as many equations as
there are cosets, the same for all coefficients.

One coset after the other takes the memory of a few vectors, where a single coset of 4n points takes many.
Where even that is too much, a coset is taken in chunks: g·⟨ω⟩ is the union of g·ω^i·⟨ω^c⟩.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from gpuprover.backend import Backend, Term, Vector
from gpuprover.columns import Expression, Formula, Read, compile_formula
from gpuprover.polynomial import Direction, Domain

X = "x"
"""The column of X itself."""
_AT = " at rotation "
_MOST_COSETS = 7


class _Step(NamedTuple):
    """One evaluation.

    Attributes:
        name: the column that it makes.
        formula: what of.
        last: columns that no later step reads.
    """

    name: str
    formula: Formula
    last: tuple[str, ...]


class Numerator:
    """A polynomial that X^n − 1 divides, as steps over columns.

    Args:
        steps: (name of a new column, what it is) in order; an expression may read polynomials at any
            rotation, the column ``x``, and what steps before it made (at rotation 0). The last one is the
            numerator. A step's columns are all there at once, and go after the last step that reads them:
            many short steps take little memory.
    """

    def __init__(self, steps: Sequence[tuple[str, Expression]]) -> None:
        formulas = [(name, compile_formula([expression])) for name, expression in steps]
        self._whole = _steps(formulas)
        # A chunk's rows are not next to each other: a polynomial at ω^t·X is a column of its own there.
        self._chunked = _steps(
            [
                (name, replace(formula, reads=tuple(_own_column(read) for read in formula.reads)))
                for name, formula in formulas
            ]
        )

    @property
    def columns(self) -> frozenset[str]:
        """What the steps read, their own columns included."""
        return frozenset(name for step in self._whole for name in step.formula.columns)

    def quotient(
        self,
        backend: Backend,
        domain: Domain,
        polynomials: Mapping[str, Vector],
        challenges: Mapping[str, int],
        cosets: int,
        *,
        chunks: int = 1,
        top: Vector | None = None,
        extended: Sequence[Mapping[str, Vector]] = (),
    ) -> list[Vector]:
        """The quotient's coefficients, in parts of n: as many vectors as cosets.

        Args:
            domain: that of n elements, n·8 <= 2^two_adicity; n·4 for at most 3 cosets.
            polynomials: coefficients by name, of any lengths.
            cosets: 1 to 7; the quotient has at most cosets·n coefficients, but for those of ``top``.
            chunks: a power of two that divides n: the memory of an evaluation is that of n/chunks rows.
            top: the coefficients from cosets·n on, at most n.
            extended: for each coset the values of polynomials that are known there, by name; they stay.
                They are of no use in chunks.
        """
        if not 1 <= cosets <= _MOST_COSETS:
            raise ValueError(f"{cosets} cosets, expected 1 to {_MOST_COSETS}")
        r, n = backend.curve.r, domain.size
        given = shifts(domain, cosets)
        values = [pow(g, n, r) for g in given]  # of X^n
        remainders = []
        for j, g in enumerate(given):
            known = extended[j] if extended else {}
            with backend.job.subphase(j, cosets):
                numerator = self._on_coset(backend, domain, polynomials, challenges, g, chunks, known)
            backend.ntt(numerator, domain, Direction.INVERSE, coset=g)
            # The division, with what follows, is a factor of the sums below.
            remainders.append(numerator)
        scales = [pow(value - 1, -1, r) for value in values]
        parts = []
        for row in _inverse([[pow(value, m, r) for m in range(cosets)] for value in values], r):
            terms = [
                Term(v, factor * scale % r) for v, factor, scale in zip(remainders, row, scales, strict=True)
            ]
            if top is not None:
                above = sum(f * pow(value, cosets, r) for f, value in zip(row, values, strict=True))
                terms.append(Term(top, -above % r))
            parts.append(backend.combine(terms, n))
        backend.free(*remainders)
        return parts

    def _on_coset(
        self,
        backend: Backend,
        domain: Domain,
        polynomials: Mapping[str, Vector],
        challenges: Mapping[str, int],
        g: int,
        chunks: int,
        known: Mapping[str, Vector],
    ) -> Vector:
        """The numerator's values on g·⟨ω⟩, in natural order."""
        if chunks == 1:
            return _evaluate(self._whole, backend, domain, polynomials, challenges, g, domain.omega, known)
        r = backend.curve.r
        small = Domain(domain.field, domain.log_n - chunks.bit_length() + 1, domain.generator)
        pieces = []
        for i in range(chunks):
            backend.job.check()
            here = g * pow(domain.omega, i, r) % r
            pieces.append(
                _evaluate(self._chunked, backend, small, polynomials, challenges, here, domain.omega, {})
            )
        values = backend.interleave(pieces)
        backend.free(*pieces)
        return values


def shifts(domain: Domain, cosets: int) -> list[int]:
    """The g of the cosets g·⟨ω⟩: X^n is a root of unity of order 4 or 8 there, but never 1."""
    root = domain.root_of_unity(domain.log_n + (2 if cosets < 4 else 3))
    return [pow(root, j + 1, domain.field.modulus) for j in range(cosets)]


def _steps(formulas: Sequence[tuple[str, Formula]]) -> list[_Step]:
    last: dict[str, int] = {}
    for i, (_, formula) in enumerate(formulas):
        last.update(dict.fromkeys(formula.columns, i))
    return [
        _Step(name, formula, tuple(c for c in formula.columns if last[c] == i))
        for i, (name, formula) in enumerate(formulas)
    ]


def _own_column(read: Read) -> Read:
    return Read(f"{read.column}{_AT}{read.rotation}", 0) if read.rotation else read


def _evaluate(
    steps: Sequence[_Step],
    backend: Backend,
    domain: Domain,
    polynomials: Mapping[str, Vector],
    challenges: Mapping[str, int],
    g: int,
    omega: int,
    known: Mapping[str, Vector],
) -> Vector:
    """The last step's column on g·⟨ω'⟩, with the domain's ω'; ``omega`` is that of the circuit's rows."""
    r = domain.field.modulus
    there: dict[str, Vector] = {}
    for step in steps:
        for name in step.formula.columns:
            if name in there:
                continue
            if name in known:
                there[name] = known[name]
            elif name == X:
                there[name] = backend.powers(domain.size, domain.omega, g)
            else:
                polynomial, _, rotation = name.partition(_AT)
                here = g * pow(omega, int(rotation or 0), r) % r
                (there[name],) = backend.extend(polynomials[polynomial], domain, [here])
        columns = {name: there[name] for name in step.formula.columns}
        (there[step.name],) = backend.evaluate(step.formula, columns, challenges)
        gone = {name: there.pop(name) for name in step.last}
        backend.free(*(v for name, v in gone.items() if name not in known))
    return there[steps[-1].name]


def _inverse(matrix: list[list[int]], modulus: int) -> list[list[int]]:
    """The inverse of a small matrix mod a prime; Gauss and Jordan."""
    n = len(matrix)
    rows = [[*row, *(int(i == j) for j in range(n))] for i, row in enumerate(matrix)]
    for i in range(n):
        pivot = next(k for k in range(i, n) if rows[k][i] % modulus)
        rows[i], rows[pivot] = rows[pivot], rows[i]
        factor = pow(rows[i][i], -1, modulus)
        rows[i] = [x * factor % modulus for x in rows[i]]
        for k in range(n):
            if k != i:
                f = rows[k][i]
                rows[k] = [(x - f * y) % modulus for x, y in zip(rows[k], rows[i], strict=True)]
    return [row[n:] for row in rows]
