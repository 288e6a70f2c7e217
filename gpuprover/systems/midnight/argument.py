"""What prover and verifier share of an architecture: the order of commitments, evaluations and openings, the
identities, and the sets of points at which polynomials are opened.

Everything follows from the constraint system and the line's :class:`~gpuprover.midnight.profile.Profile`.
Polynomials have names: A0, F0 (columns), I0, I1 (instance), S0 (the permutation σ, by place), P0 (products
of the permutation, by set), L0z, L0a, L0t (a lookup's product, permuted inputs and permuted table), T0
(trash), R (random), h (the quotient).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

from gpuprover.columns import Expression, Formula, Read, challenge, column, compile_formula, constant, fold
from gpuprover.midnight.architecture import Architecture
from gpuprover.midnight.constraint_system import ConstraintSystem, Query, constraint_system, delta_power
from gpuprover.midnight.profile import Profile

COMMITTED_INSTANCE, PUBLIC_INSTANCE = "I0", "I1"
"""The instance column that the ledger leaves empty, and that of the public inputs."""
QUOTIENT, RANDOM = "h", "R"


class PointSet(NamedTuple):
    """Polynomials that are opened at the same points.

    Attributes:
        rotations: the points x·ω^t, by t, in the order in which the opening counts them.
        polynomials: names, in the order of the powers of x1.
    """

    rotations: tuple[int, ...]
    polynomials: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Argument:
    """The shape of all proofs of one architecture in one line of the network.

    Attributes:
        profile: the line.
        system: the constraint system.
    """

    profile: Profile
    system: ConstraintSystem

    @property
    def last(self) -> int:
        """The rotation from row 0 to the last usable row and one more: −(b + 1)."""
        return -(self.system.blinding + 1)

    @property
    def limbs(self) -> int:
        """Parts of the quotient, of n − 1 coefficients each."""
        return self.system.degree - 1

    # Names ---------------------------------------------------------------------------------

    @cached_property
    def advice(self) -> tuple[str, ...]:
        return tuple(f"A{i}" for i in range(self.system.advice))

    @cached_property
    def fixed(self) -> tuple[str, ...]:
        return tuple(f"F{i}" for i in range(self.system.fixed))

    @cached_property
    def sigma(self) -> tuple[str, ...]:
        return tuple(f"S{i}" for i in range(len(self.system.permutation)))

    @cached_property
    def products(self) -> tuple[str, ...]:
        return tuple(f"P{i}" for i in range(len(self.system.sets)))

    @cached_property
    def trash(self) -> tuple[str, ...]:
        return tuple(f"T{i}" for i in range(len(self.system.trash)))

    @property
    def lookups(self) -> range:
        return range(len(self.system.lookups))

    @cached_property
    def quotients(self) -> tuple[str, ...]:
        return tuple(f"{QUOTIENT}{i}" for i in range(self.limbs))

    @cached_property
    def committed(self) -> tuple[str, ...]:
        """What a proof has commitments of before its evaluations, in order."""
        permuted = (f"L{i}{part}" for i in self.lookups for part in "at")
        products = (f"L{i}z" for i in self.lookups)
        return (*self.advice, *permuted, *self.products, *products, *self.trash, RANDOM, *self.quotients)

    @cached_property
    def evaluated(self) -> tuple[Query, ...]:
        """What a proof has evaluations of, in order."""
        found = [Query(COMMITTED_INSTANCE, 0), *self.system.advice_queries, *self.system.fixed_queries]
        found += [Query(RANDOM, 0), *(Query(name, 0) for name in self.sigma)]
        for name in self.products:
            found += [Query(name, 0), Query(name, 1)]
            if name != self.products[-1]:
                found.append(Query(name, self.last))
        for i in self.lookups:
            found += [Query(f"L{i}z", 0), Query(f"L{i}z", 1)]
            found += [Query(f"L{i}a", 0), Query(f"L{i}a", -1), Query(f"L{i}t", 0)]
        return (*found, *(Query(name, 0) for name in self.trash))

    # Openings ------------------------------------------------------------------------------

    @cached_property
    def opened(self) -> tuple[Query, ...]:
        """What is opened, in the order that numbers points and polynomials."""
        return tuple(self._opened())

    def _opened(self) -> Iterator[Query]:
        instance = Query(COMMITTED_INSTANCE, 0)
        if self.profile.instance_first:
            yield instance
        yield from self.system.advice_queries
        if not self.profile.instance_first:
            yield instance
        for name in self.products:
            yield from (Query(name, 0), Query(name, 1))
        for name in reversed(self.products[:-1]):
            yield Query(name, self.last)
        for i in self.lookups:
            yield from (Query(f"L{i}z", 0), Query(f"L{i}a", 0), Query(f"L{i}t", 0))
            yield from (Query(f"L{i}a", -1), Query(f"L{i}z", 1))
        yield from (Query(name, 0) for name in self.trash)
        yield from self.system.fixed_queries
        yield from (Query(name, 0) for name in (*self.sigma, QUOTIENT, RANDOM))

    @cached_property
    def sets(self) -> tuple[PointSet, ...]:
        """The point sets: by first appearance, or by size and then by first appearance."""
        points: dict[int, int] = {}
        of: dict[str, list[int]] = {}
        for name, rotation in self.opened:
            points.setdefault(rotation, len(points))
            if rotation in of.setdefault(name, []):
                raise ValueError(f"{name} is opened twice at rotation {rotation}")
            of[name].append(rotation)
        sets: dict[tuple[int, ...], list[str]] = {}
        for name, rotations in of.items():
            sets.setdefault(tuple(sorted(rotations, key=points.__getitem__)), []).append(name)
        found = [PointSet(rotations, tuple(names)) for rotations, names in sets.items()]
        if self.profile.sets_by_size:
            found.sort(key=lambda s: len(s.rotations))
        return tuple(found)

    # Identities ----------------------------------------------------------------------------

    def product_terms(self, places: range) -> tuple[list[Expression], list[Expression]]:
        """Factors (v + β·δ^j·X + γ) and (v + β·σ_j + γ) of the permuted columns at these places."""
        beta, gamma, x = challenge("beta"), challenge("gamma"), column("x")
        values = [_cell(self.system.permutation[j]) for j in places]
        positions = [v + beta * delta_power(j) * x + gamma for j, v in zip(places, values, strict=True)]
        permuted = [v + beta * column(f"S{j}") + gamma for j, v in zip(places, values, strict=True)]
        return positions, permuted

    def compressed(self, i: int) -> tuple[Expression, Expression]:
        """A lookup's inputs and table, folded by θ."""
        lookup, theta = self.system.lookups[i], challenge("theta")
        return fold(lookup.inputs, theta), fold(lookup.tables, theta)

    def table_columns(self, i: int) -> tuple[str, ...]:
        """A lookup's table as names of fixed columns; () if it is made of other expressions, too."""
        leaves = [table.leaf for table in self.system.lookups[i].tables if table.op is None]
        names = tuple(
            x.column for x in leaves if isinstance(x, Read) and x.column[0] == "F" and not x.rotation
        )
        return names if len(names) == len(self.system.lookups[i].tables) else ()

    def identities(self) -> list[tuple[str, list[Expression]]]:
        """What vanishes on every row, in the order of the powers of y, with what each part is about.

        Further columns: x (X itself), l_0, l_last (Lagrange polynomials of row 0 and row u), active (1 on
        the rows before u).
        """
        first, last, active = column("l_0"), column("l_last"), column("active")
        beta, gamma = challenge("beta"), challenge("gamma")
        found = [("gates", list(self.system.gates))]

        z = [column(name) for name in self.products]
        before = [column(name, self.last) for name in self.products]
        edges = [first * (1 - z[0]), last * (z[-1] * z[-1] - z[-1])]
        edges += [first * (z[s] - before[s - 1]) for s in range(1, len(z))]
        found.append(("permutation", edges))
        for s, places in enumerate(self.system.sets):
            positions, permuted = self.product_terms(places)
            step = _product(column(self.products[s], 1), permuted) - _product(z[s], positions)
            found.append(("permutation", [active * step]))

        for i in self.lookups:
            inputs, table = self.compressed(i)
            product, next_ = column(f"L{i}z"), column(f"L{i}z", 1)
            a, t, previous = column(f"L{i}a"), column(f"L{i}t"), column(f"L{i}a", -1)
            step = next_ * (a + beta) * (t + gamma) - product * (inputs + beta) * (table + gamma)
            found.append(
                (
                    f"lookup {i}",
                    [
                        first * (1 - product),
                        last * (product * product - product),
                        active * step,
                        first * (a - t),
                        active * (a - t) * (a - previous),
                    ],
                )
            )
        for i, trash in enumerate(self.system.trash):
            rest = fold(trash.constraints, challenge("trash")) - (1 - trash.selector) * column(f"T{i}")
            found.append((f"trash {i}", [rest]))
        return found

    @cached_property
    def numerator(self) -> Formula:
        """All identities, folded by y."""
        terms = [term for _, terms in self.identities() for term in terms]
        return compile_formula([fold(terms, challenge("y"))])


def _cell(name: str) -> Expression:
    """A permuted column at rotation 0; the empty instance column is 0."""
    return constant(0) if name == COMMITTED_INSTANCE else column(name)


def _product(first: Expression, factors: list[Expression]) -> Expression:
    for factor in factors:
        first = first * factor
    return first


@lru_cache(maxsize=32)
def argument(profile: Profile, architecture: Architecture) -> Argument:
    """The argument of an architecture. Raises UnsupportedFile for one that there is no text of."""
    return Argument(profile, constraint_system(architecture))
