"""The grand product that shows copy constraints, and the identities that its polynomial z satisfies.

z(ω⁰) = 1, and from row to row z grows by Π (wire + β·position + γ)/(wire + β·σ(position) + γ), over the three
wires. Wires whose position σ exchanges have equal values, or the product over all rows is not 1, up to a
negligible error over β and γ (eprint 2019/953, section 5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gpuprover.backend import Backend, Term, Vector
from gpuprover.columns import Expression, challenge, column, compile_formula
from gpuprover.plonkish.wires import short
from gpuprover.polynomial import Coset, Direction, Domain

_beta, _gamma = challenge("beta"), challenge("gamma")


def _positions() -> list[Expression]:
    """(wire + β·position + γ) of the three wires; the column ``x`` is X itself."""
    x = column("x")
    a = column("a") + _beta * x + _gamma
    b = column("b") + _beta * challenge("k1") * x + _gamma
    c = column("c") + _beta * challenge("k2") * x + _gamma
    return [a, b, c]


def _permuted() -> list[Expression]:
    """(wire + β·σ + γ) of the three wires."""
    return [column(wire) + _beta * column(s) + _gamma for wire, s in zip("abc", SIGMA, strict=True)]


SIGMA = ("S1", "S2", "S3")
"""Columns of σ, for the wires a, b, c."""


def _product(factors: list[Expression]) -> Expression:
    first, second, third = factors
    return first * second * third


def identity(z: Expression, next_z: Expression) -> Expression:
    """What vanishes on the domain: Π(wire + β·position + γ)·z − Π(wire + β·σ + γ)·z(ωX).

    Columns: a, b, c, x, S1, S2, S3. Challenges: beta, gamma, k1, k2.
    """
    return _product(_positions()) * z - _product(_permuted()) * next_z


_NUMERATOR = compile_formula([_product(_positions())])
_DENOMINATOR = compile_formula([_product(_permuted())])


def grand_product(
    backend: Backend,
    domain: Domain,
    wires: Mapping[str, Vector],
    sigma: Mapping[str, Vector],
    challenges: Mapping[str, int],
) -> Vector:
    """z's values on the domain.

    Args:
        wires: the columns a, b, c on the domain.
        sigma: the coefficients of S1, S2, S3.
        challenges: beta, gamma, k1, k2.
    """
    values = dict(wires)
    for name in SIGMA:
        (values[name],) = backend.extend(sigma[name], domain, [Coset.NONE])
    (denominators,) = backend.evaluate(_DENOMINATOR, values, challenges)
    backend.free(*(values[name] for name in SIGMA))
    x = backend.powers(domain.size, domain.omega)
    (numerators,) = backend.evaluate(_NUMERATOR, {**wires, "x": x}, challenges)
    backend.free(x)
    products = backend.running_product(numerators, denominators)
    backend.free(numerators, denominators)
    # The last element is the first one again where the constraints hold; if they do not, no proof verifies.
    z = backend.combine([Term(products)], domain.size)
    backend.free(products)
    return z


def interpolated(backend: Backend, domain: Domain, values: Vector) -> Vector:
    """The coefficients of a column, in place of its values."""
    return backend.ntt(values, domain, Direction.INVERSE)


def blinded(backend: Backend, domain: Domain, values: Vector, factors: Sequence[int]) -> Vector:
    """The coefficients of the column plus (factors[0] + factors[1]·X + …)·(X^n − 1), which changes no row."""
    coefficients = interpolated(backend, domain, backend.combine([Term(values)]))
    few = short(backend, factors)
    found = backend.combine([Term(coefficients), Term(few, -1), Term(few, 1, domain.size)])
    backend.free(coefficients, few)
    return found
