"""PLONK's and FFLONK's set-up by their rules, one constraint after the other, over plain integers.

Slow and obvious: what the set-up's operations on whole arrays are compared with. Combinations are
dictionaries, signal -> coefficient.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from gpuprover.curves import CurveParams
from gpuprover.formats.r1cs import R1CS, SparseRows
from gpuprover.limbs import ints_to_words, words_to_ints

Terms = list[tuple[int, int]]
"""Signals and coefficients of a combination, as a file lists them."""


@dataclass
class PlainGates:
    """Gates as (a, b, c, qm, ql, qr, qo, qc), additions as (signal, signal, factor, factor)."""

    gates: list[tuple[int, ...]] = field(default_factory=list)
    additions: list[tuple[int, int, int, int]] = field(default_factory=list)


def plain_rows(matrix: SparseRows) -> list[Terms]:
    values, wires = words_to_ints(matrix.values), matrix.wires.tolist()
    bounds = matrix.starts.tolist()
    return [list(zip(wires[i:j], values[i:j], strict=True)) for i, j in pairwise(bounds)]


def plain_gates(r1cs: R1CS, keep_zeros: bool) -> PlainGates:
    """The gates of every public signal and every constraint, in order."""
    r, made = r1cs.curve.r, PlainGates()
    for signal in range(1, r1cs.n_public + 1):
        made.gates.append((signal, 0, 0, 0, 1, 0, 0, 0))

    def cleaned(terms: dict[int, int]) -> dict[int, int]:
        return {s: v for s, v in sorted(terms.items()) if keep_zeros or v}

    def shortened(terms: dict[int, int], most: int) -> tuple[list[tuple[int, int]], int]:
        queue = [(s, v) for s, v in sorted(terms.items()) if s]
        while len(queue) > most:
            (i, u), (j, v) = queue[:2]
            new = r1cs.n_wires + len(made.additions)
            made.gates.append((i, j, new, 0, -u % r, -v % r, 1, 0))
            made.additions.append((i, j, u, v))
            queue = [*queue[2:], (new, 1)]
        return queue + [(0, 0)] * (most - len(queue)), terms.get(0, 0)

    def add_sum(terms: dict[int, int]) -> None:
        (a, b, c), constant = shortened(cleaned(terms), 3)
        made.gates.append((a[0], b[0], c[0], 0, a[1], b[1], c[1], constant))

    def scaled_minus(factor: int, terms: dict[int, int], c: dict[int, int]) -> dict[int, int]:
        signals = terms.keys() | c.keys()
        return {s: (factor * terms.get(s, 0) - c.get(s, 0)) % r for s in signals}

    for rows in zip(*map(plain_rows, r1cs.matrices), strict=True):
        a, b, c = (cleaned(dict(row)) for row in rows)
        if not a or not b:
            add_sum(c)
        elif not any(a.keys()):
            add_sum(scaled_minus(a[0], b, c))
        elif not any(b.keys()):
            add_sum(scaled_minus(b[0], a, c))
        else:
            ((sa, ua),), ka = shortened(a, 1)
            ((sb, ub),), kb = shortened(b, 1)
            ((sc, uc),), kc = shortened(c, 1)
            q = (ua * ub, ua * kb, ka * ub, -uc, ka * kb - kc)
            made.gates.append((sa, sb, sc, *(x % r for x in q)))
    return made


def plain_permutation(maps: Sequence[Sequence[int]], n: int, identity_rows: int) -> list[list[int]]:
    """For each column the places 3·row + column that its rows lead to."""
    leads_to = {place: place for place in range(3 * n)}
    last: dict[int, int] = {}
    first: dict[int, int] = {}
    for row in range(n - identity_rows):
        for column in range(3):
            signal = maps[column][row] if row < len(maps[column]) else 0
            place = 3 * row + column
            leads_to[place] = last.get(signal, place)
            first.setdefault(signal, place)
            last[signal] = place
    for signal, place in first.items():
        leads_to[place] = last[signal]
    return [[leads_to[3 * row + column] for row in range(n)] for column in range(3)]


def r1cs_of(
    curve: CurveParams, n_wires: int, n_public: int, constraints: Sequence[tuple[Terms, Terms, Terms]]
) -> R1CS:
    """A constraint system of these combinations, all public signals outputs."""
    matrices = []
    for m in range(3):
        rows = [constraint[m] for constraint in constraints]
        starts = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        terms = [term for row in rows for term in row]
        values = ints_to_words([v % curve.r for _, v in terms], curve.scalar.limbs)
        matrices.append(SparseRows(starts, np.array([s for s, _ in terms], dtype=np.uint32), values))
    a, b, c = matrices
    return R1CS(curve, n_wires, n_public, 0, n_wires - n_public - 1, n_wires, a, b, c)


def random_constraint(rng: random.Random, n_wires: int, r: int) -> tuple[Terms, Terms, Terms]:
    """Of every kind that the rules tell apart; whether it can be satisfied is nobody's question here."""

    def value() -> int:
        return rng.choice((0, 1, 1, 2, r - 1, rng.randrange(r)))

    def combination(longest: int = 6) -> Terms:
        kind = rng.randrange(8)
        if kind == 0:
            return []
        if kind == 1:
            return [(0, value())]
        terms = [(rng.randrange(n_wires), value()) for _ in range(rng.randrange(1, longest))]
        if kind == 2:
            terms += terms[:1]  # the same signal, and the same coefficient
        if kind == 3:
            terms.sort(reverse=True)
        if kind == 4:
            terms = [(s, 0) for s, _ in terms]
        return terms

    a, b, c = combination(), combination(), combination(rng.choice((3, 12)))
    if rng.randrange(4) == 0:  # terms that cancel: k·B − C has none of them left
        k = rng.choice((1, 2, r - 1))
        a, c = [(0, k)], [(s, k * v) for s, v in dict(b).items()]
        if rng.randrange(2):
            a, b = b, a
    return a, b, c


def random_r1cs(
    curve: CurveParams, rng: random.Random, constraints: int, n_wires: int, n_public: int
) -> R1CS:
    """A constraint system of :func:`random_constraint`."""
    made = [random_constraint(rng, n_wires, curve.r) for _ in range(constraints)]
    return r1cs_of(curve, n_wires, n_public, made)
