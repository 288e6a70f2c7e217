"""KZG polynomial commitments.

A commitment to p is [p] = p(τ)·G1, a sum over the powers of τ that a set-up left behind. That p(x) = v is
shown by π = [(p − v)/(X − x)], and seen from e(π, τ·G2) = e([p] − v·G1 + x·π, G2). Source: Kate, Zaverucha,
Goldberg, "Constant-size commitments to polynomials and their applications", 2010.

Prover's side: vectors of coefficients and bases are handles of one backend; handles that are given stay, and
those that are returned are the caller's to free. Verifier's side: points as words and :class:`PointMath`.
Points of G1 are affine and Montgomery, uint64[words], infinity all zeros.

Several polynomials at several points are made of the same pieces, in two ways:

- PLONK opens Σ v^i·p_i at one point and another polynomial at a second one: two of :class:`Opening`.
- FFLONK and Midnight's PLONK give each polynomial p_j a set of points on which Z_j vanishes, and r_j, of
  lower degree than Z_j, equals p_j. They commit to f = Σ y^j·(p_j − r_j)/Z_j (:func:`quotient_of_sets`), and
  open one combination of f and the p_j at a point that is drawn then (Boneh, Drake, Fisch, Gabizon, eprint
  2020/081). What they combine differs; a verifier has the values of r_j and Z_j at that point from
  :func:`interpolate`, :func:`value` and :func:`vanishing`.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from gpuprover.backend import Backend, Bases, PointMath, Term, Vector
from gpuprover.curves import Group
from gpuprover.limbs import Words, generator, negative

WEIGHT_BITS = 127
"""Bits of the random weights in a batch: a false opening passes with odds of at most 2^−127."""


class Factor(NamedTuple):
    """X^degree − root; with degree 1, X − root."""

    degree: int
    root: int


# Prover ----------------------------------------------------------------------------------------


class Request(NamedTuple):
    """An opening of Σ weights[i]·polynomials[i] at a point, to be proved.

    Attributes:
        polynomials: vectors of coefficients, of any lengths.
        weights: integers of any size and sign.
        point: in [0, r).
    """

    polynomials: Sequence[Vector]
    weights: Sequence[int]
    point: int


def commit(backend: Backend, srs: Bases, polynomials: Sequence[Vector]) -> Words:
    """Commitments to vectors of any lengths up to the SRS's -> uint64[n, words]; all in one call of the
    backend.

    ``srs`` are the points τ^i·G1, for vectors of coefficients; or the commitments of a domain's Lagrange
    polynomials, for vectors of values on that domain.
    """
    sums = backend.msm_many([([srs], p) for p in polynomials])
    words = Group.G1.words(backend.curve)
    return np.array([found[0] for found in sums], dtype=np.uint64).reshape(-1, words)


def prove(backend: Backend, srs: Bases, requests: Sequence[Request]) -> Words:
    """The proofs π of openings -> uint64[n, words], in the order of the requests; the sums in one call."""
    quotients = []
    for polynomials, weights, point in requests:
        folded = backend.combine([Term(p, w) for p, w in zip(polynomials, weights, strict=True)])
        quotients.append(divide(backend, folded, [Factor(1, point)]))
        backend.free(folded)
    proofs = commit(backend, srs, quotients)
    backend.free(*quotients)
    return proofs


def divide(backend: Backend, polynomial: Vector, factors: Sequence[Factor]) -> Vector:
    """The quotient of a polynomial by a product of factors; what remains is dropped.

    For factors that vanish on the points of an opening that is (p − r)/Z, whatever the opened values are.
    """
    quotient = polynomial
    for degree, root in factors:
        before = quotient
        quotient, remainder = backend.divide(before, root, degree)
        backend.free(remainder)
        if before is not polynomial:
            backend.free(before)
    return quotient if factors else backend.combine([Term(polynomial)])


def quotient_of_sets(
    backend: Backend, polynomials: Sequence[Vector], sets: Sequence[Sequence[Factor]], challenge: int
) -> Vector:
    """f = Σ challenge^j·(p_j − r_j)/Z_j, with Z_j the product of the factors of set j."""
    parts = [divide(backend, p, factors) for p, factors in zip(polynomials, sets, strict=True)]
    weights = powers(challenge, len(parts), backend.curve.r)
    f = backend.combine([Term(part, weight) for part, weight in zip(parts, weights, strict=True)])
    backend.free(*parts)
    return f


# Verifier --------------------------------------------------------------------------------------


class Opening(NamedTuple):
    """The claim that Σ weights[i]·p_i has a value at a point.

    Attributes:
        commitments: commitments to the p_i, uint64[n, words].
        weights: integers of any size and sign.
        point: in [0, r).
        value: in [0, r).
        proof: π, uint64[words].
    """

    commitments: Words
    weights: Sequence[int]
    point: int
    value: int
    proof: Words


def check(points: PointMath, tau_g2: Words, openings: Iterable[Opening]) -> bool:
    """Whether all openings hold for τ·G2, uint64[words], by two sums in G1 and one product of two pairings.

    Several openings are weighted by random numbers: a false one passes with odds of at most 2^−127 (Bellare,
    Garay, Rabin, "Fast batch verification for modular exponentiation and digital signatures", 1998, small
    exponents test).

    Whether commitments and proofs lie on the curve and in the subgroup of order r is the caller's to check
    (:meth:`PointMath.first_bad_point`), and so with τ·G2: of other points the answer says nothing.

    Raises:
        ValueError: an opening has not as many weights as commitments.
    """
    curve = points.curve
    r, g1 = curve.r, generator(curve, Group.G1)
    proofs: list[Words] = []
    proof_weights: list[int] = []
    rows: list[Words] = [g1.reshape(1, -1)]
    # e(Σ ρ·π, τ·G2) = e(Σ ρ·([p] + x·π) − (Σ ρ·v)·G1, G2), the left side with its sign turned.
    weights, values, at_points = [0], 0, []
    for commitments, factors, point, opened, proof in openings:
        if len(factors) != len(commitments):
            raise ValueError(f"{len(commitments)} commitments and {len(factors)} weights")
        # One opening alone has nothing that it could cancel out with.
        rho = secrets.randbits(WEIGHT_BITS) + 1 if proofs else 1
        proofs.append(proof.reshape(1, -1))
        proof_weights.append(rho)
        at_points.append(rho * point % r)
        rows.append(commitments.reshape(-1, len(g1)))
        weights += [rho * factor % r for factor in factors]
        values += rho * opened
    if not proofs:
        return True
    weights[0] = -values % r
    # Weights that are not negative have half as many bits, and a single one is 1.
    total = proofs[0].reshape(-1)
    if len(proofs) > 1:
        total = points.linear_combination(Group.G1, np.concatenate(proofs), proof_weights)
    left = negative(curve, total)
    right = points.linear_combination(Group.G1, np.concatenate([*rows, *proofs]), [*weights, *at_points])
    g2 = np.stack([tau_g2, generator(curve, Group.G2)])
    return points.pairing_check(np.stack([left, right]), g2, fixed=len(g2))


def check_each(points: PointMath, tau_g2: Words, claims: Sequence[Sequence[Opening]]) -> list[bool]:
    """For each group of openings, those of one proof say, whether all of them hold.

    Groups are checked together, and where one fails in halves: where all hold, as by :func:`check`.
    """
    if not claims:
        return []
    points.job.check()
    if check(points, tau_g2, (opening for group in claims for opening in group)):
        return [True] * len(claims)
    if len(claims) == 1:
        return [False]
    middle = len(claims) // 2
    return check_each(points, tau_g2, claims[:middle]) + check_each(points, tau_g2, claims[middle:])


# Small polynomials in integers -----------------------------------------------------------------
#
# What a verifier computes, and a prover on the side: a few values, no vectors.


def powers(base: int, count: int, modulus: int) -> list[int]:
    """1, base, base², … mod the modulus: ``count`` of them."""
    found = [1] * min(count, 1)
    while len(found) < count:
        found.append(found[-1] * base % modulus)
    return found


def value(coefficients: Sequence[int], x: int, modulus: int) -> int:
    """Σ coefficients[i]·x^i mod the modulus, in [0, modulus)."""
    total = 0
    for coefficient in reversed(coefficients):
        total = (total * x + coefficient) % modulus
    return total


def vanishing(factors: Iterable[Factor], x: int, modulus: int) -> int:
    """The product of the factors at x, in [0, modulus)."""
    product = 1
    for degree, root in factors:
        product = product * (pow(x, degree, modulus) - root) % modulus
    return product


def interpolate(points: Sequence[int], values: Sequence[int], modulus: int) -> list[int]:
    """The coefficients of the polynomial of degree < n that has these values at n points, which differ mod p.

    Newton's form: n² products and n inversions; for openings at a few points.

    Raises:
        ValueError: two points are equal.
    """
    coefficients: list[int] = []
    node = [1]  # Π (X − points[j]) over the points so far
    for x, y in zip(points, values, strict=True):
        at_x = value(node, x, modulus)
        if not at_x:
            raise ValueError("an interpolation at two equal points")
        factor = (y - value(coefficients, x, modulus)) * pow(at_x, -1, modulus) % modulus
        coefficients = [(a + factor * b) % modulus for a, b in zip([*coefficients, 0], node, strict=True)]
        node = [(a - x * b) % modulus for a, b in zip([0, *node], [*node, 0], strict=True)]
    return coefficients
