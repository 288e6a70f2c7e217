"""What verifiers of PLONK and FFLONK share: Lagrange polynomials at a point, statements from documents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from gpuprover.curves import CurveParams
from gpuprover.errors import MalformedFile, UnsupportedFile
from gpuprover.formats.snarkjs_json import parse_public_signals

Proof = TypeVar("Proof")


def outside(source: str, role: str, part: str) -> MalformedFile:
    """The error for a point outside its subgroup."""
    return MalformedFile(source, part, "the point is outside the subgroup of order r", role=role)


def vanishing_at(xi: int, n: int, r: int) -> int:
    """ξ^n − 1, 0 exactly where ξ is in the domain."""
    return (pow(xi, n, r) - 1) % r


def public_part(xi: int, zh: int, n: int, omega: int, public: Sequence[int], r: int) -> tuple[int, int]:
    """L_1(ξ) and PI(ξ) = −Σ public[i]·L_{i+1}(ξ), for a ξ with zh = ξ^n − 1 ≠ 0.

    L_{i+1}(ξ) = ω^i·(ξ^n − 1)/(n·(ξ − ω^i)); all are had with one inversion.
    """
    count = max(1, len(public))
    points = [1] * count
    for i in range(1, count):
        points[i] = points[i - 1] * omega % r
    # Products of the differences before each, then their inverses on the way back.
    before, product = [], n % r
    for point in points:
        before.append(product)
        product = product * (xi - point) % r
    inverse = pow(product, -1, r)
    lagrange = [0] * count
    for i in reversed(range(count)):
        # before[i]·inverse is 1/(ξ − ω^i), and n has its part in the first product only.
        lagrange[i] = points[i] * before[i] * inverse % r
        inverse = inverse * (xi - points[i]) % r
    # What is left is 1/n.
    factor = zh * inverse % r
    first = lagrange[0] * factor % r
    total = sum(x * value for x, value in zip(public, lagrange, strict=False)) * factor
    return first, -total % r


def parsed(
    curve: CurveParams,
    n_public: int,
    statements: Sequence[tuple[object, object]],
    parse_proof: Callable[[object, CurveParams], Proof],
) -> Iterator[tuple[int, tuple[list[int], Proof]]]:
    """(index, (public signals, proof)) of those pairs of documents that are not damaged."""
    for i, (signals, document) in enumerate(statements):
        try:
            public = parse_public_signals(signals, curve, n_public)
            yield i, (public, parse_proof(document, curve))
        except (MalformedFile, UnsupportedFile):
            continue
