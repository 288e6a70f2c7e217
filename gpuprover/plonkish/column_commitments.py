"""Commitments to a set-up's columns, from their values and the Lagrange points of a powers-of-tau file.

The sum Σ v_i·[L_i] over a column's values is the commitment to its polynomial. It takes less than the sum
over coefficients, all of which are of full size:

- Selectors have few values. Points of equal values are added first, which takes an addition a row.
- S1, S2 and S3 have α·ω^i in many rows i, for one α each: unused rows, to begin with. Those of α·X are taken
  away, and α·[X] is added in the end.

Nothing is asked of the Lagrange points. Instead one random combination of all columns is committed to by
coefficients too: commitments of the subgroup that agree with it are right, but for odds of 2^−128.
"""

from __future__ import annotations

import secrets

import numpy as np
from numpy.typing import NDArray

from gpuprover.backend import Backend, Form, Term, Vector
from gpuprover.commitments.powers import WEIGHT_BITS, Sums
from gpuprover.curves import Group
from gpuprover.limbs import Words, field_to_words, words_to_field
from gpuprover.plonkish.setup import Powers
from gpuprover.polynomial import Domain

_ROWS_OF_A_VALUE = 16
"""Rows that there are at least for each value, on average, where points of equal values are added first."""


class ColumnCommitments:
    """Commitments to columns of one domain, by name."""

    def __init__(self, powers: Powers, domain: Domain, backend: Backend) -> None:
        self._powers, self._domain, self._backend = powers, domain, backend
        self._lagrange = powers.lagrange(domain.log_n)
        self._commitments: dict[str, Words] = {}
        self._weights: list[int] = []
        self._folded: Vector | None = None

    def add(self, name: str, coefficients: Vector, values: Words) -> None:
        """Commits to a column; values are Montgomery uint64[n, limbs]."""
        if self._lagrange is None:
            self._commitments[name] = self._powers.commit(coefficients)
            return
        self._commitments[name] = self._commit(values, self._lagrange)
        self._weights.append(1 + secrets.randbits(WEIGHT_BITS))
        before = [] if self._folded is None else [self._folded]
        terms = [Term(coefficients, self._weights[-1]), *map(Term, before)]
        self._folded = self._backend.combine(terms)
        self._backend.free(*before)

    def finish(self) -> dict[str, Words]:
        """All commitments, uint64[g1_words].

        Raises:
            MalformedFile: the Lagrange points are not those of the powers of τ.
        """
        if self._folded is not None:
            points, math = np.stack([*self._commitments.values()]), self._backend.points
            expected = self._powers.commit(self._folded)
            self._backend.free(self._folded)
            # Outside the subgroup a combination would say nothing.
            if math.first_bad_point(Group.G1, points) >= 0 or not np.array_equal(
                math.linear_combination(Group.G1, points, self._weights), expected
            ):
                self._powers.refuse_lagrange()
        return self._commitments

    def _commit(self, values: Words, points: Words) -> Words:
        distinct = _distinct(values)
        if distinct is not None and len(distinct[0]) * _ROWS_OF_A_VALUE <= len(values):
            return self._of_few_values(values, points, *distinct)
        backend, omega, r = self._backend, self._domain.omega, self._backend.curve.r
        v = backend.upload(values, Form.MONTGOMERY)
        backend.scale_powers_in_place(v, 1, pow(omega, -1, r))
        factors = backend.download(v, Form.MONTGOMERY)
        backend.free(v)
        common = _most_common(factors)
        (alpha,) = words_to_field(backend.curve.scalar, common[None])
        v = backend.upload(factors, Form.MONTGOMERY)
        alphas = backend.powers(len(values), 1, alpha)
        rest = backend.sub(v, alphas)
        backend.scale_powers_in_place(rest, 1, omega)
        scalars = backend.download(rest)
        backend.free(v, alphas, rest)
        (rows,) = np.nonzero(scalars.any(axis=1))
        x = backend.upload(field_to_words(backend.curve.scalar, [alpha]), Form.MONTGOMERY)
        parts = [Sums(backend).sum(Group.G1, points[rows], scalars[rows]), self._powers.commit(x, 1)]
        backend.free(x)
        return backend.points.linear_combination(Group.G1, np.stack(parts), [1, 1])

    def _of_few_values(
        self, values: Words, points: Words, first: NDArray[np.intp], which: NDArray[np.intp]
    ) -> Words:
        """Σ values[i]·points[i]; row i has the value of row first[which[i]]."""
        backend, curve = self._backend, self._backend.curve
        v = backend.upload(values[first], Form.MONTGOMERY)
        scalars = backend.download(v)
        backend.free(v)
        order = np.argsort(which, kind="stable").astype(np.uint32)
        starts = np.append(0, np.cumsum(np.bincount(which, minlength=len(first))))
        one = np.zeros((1, curve.scalar.limbs), dtype=np.uint64)
        one[0, 0] = 1
        kept = [i for i in range(len(first)) if scalars[i].any()]
        if not kept:
            return np.zeros(curve.g1_words, dtype=np.uint64)
        columns = np.concatenate([order[starts[i] : starts[i + 1]] for i in kept])
        lengths = [int(starts[i + 1] - starts[i]) for i in kept]
        sums = backend.points.sparse_combination(
            Group.G1,
            points,
            np.append(0, np.cumsum(lengths)),
            columns,
            np.broadcast_to(one, (len(columns), one.shape[1])),
        )
        return Sums(backend).sum(Group.G1, sums, scalars[kept])


def _distinct(values: Words) -> tuple[NDArray[np.intp], NDArray[np.intp]] | None:
    """A row of each value, and for each row the number of its value; None if first words do not tell all."""
    _, first, which = np.unique(values[:, 0], return_index=True, return_inverse=True)
    return (first, which) if np.array_equal(values[first][which], values) else None


def _most_common(values: Words) -> Words:
    """A value that is frequent: the most frequent one, but where first words of several are the same."""
    _, first, count = np.unique(values[:, 0], return_index=True, return_counts=True)
    found: Words = values[first[np.argmax(count)]]
    return found
