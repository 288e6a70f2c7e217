"""Demands of proofs on a device, and the memory that they take there.

Plain records, hashable, shared by the proof systems, which write them, the backends, which plan by them, and
the scheduler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

from gpuprover.curves import CurveParams, Group
from gpuprover.polynomial import Domain


class Named(Protocol):
    """A part of a key, or where it lies on a device."""

    @property
    def name(self) -> str: ...


Part = TypeVar("Part", bound=Named)


def named(parts: Iterable[Part], name: str) -> Part:
    """The part of this name. Raises ValueError if there is none."""
    for part in parts:
        if part.name == name:
            return part
    raise ValueError(f"the demand has no part called {name!r}")


class KeyBases(NamedTuple):
    """Points of a key, for multi-scalar multiplications.

    Attributes:
        name: what the proof system calls them, ``B2`` say.
        group: the group that they are in.
        size: the number of points.
        sums: multi-scalar multiplications over them in a proof.
        shared: what all keys that have these very points call them, in one array of the host: a device may
            keep them once for all. Empty for points of one key.
    """

    name: str
    group: Group
    size: int
    sums: int = 1
    shared: str = ""


@dataclass(frozen=True)
class KeyMatrices:
    """Sparse matrices of a key, in one list of entries.

    Attributes:
        name: what the proof system calls them.
        count: the number of matrices.
        rows: the length of a product.
        entries: the number of entries of all matrices.
    """

    name: str
    count: int
    rows: int
    entries: int


class KeyColumn(NamedTuple):
    """A vector of a key.

    Attributes:
        name: what the proof system calls it.
        size: the number of elements.
    """

    name: str
    size: int


@dataclass(frozen=True)
class Demand:
    """All that one proof asks of a device.

    Attributes:
        protocol: the proof system's name.
        curve: the curve of the key.
        witness: the number of the witness's values.
        domains: the domains of transforms.
        bases: the key's points, in the order in which they are prepared.
        matrices: the key's matrices.
        columns: the key's vectors.
        together: names of bases that are multiplied by the same scalars, in one call of ``msm_many``.
        rehearse: the steps of a proof with a key of this shape, on arrays that nobody has written or will
            read. A backend that only counts runs them to learn what a proof takes.
        chunks: into how many parts the prover divides its largest step; what that means is the system's.
        leaner: the demand of the same proof in steps that take less memory and more time, if there are any.
    """

    protocol: str
    curve: CurveParams
    witness: int
    domains: tuple[Domain, ...]
    bases: tuple[KeyBases, ...]
    matrices: tuple[KeyMatrices, ...]
    columns: tuple[KeyColumn, ...]
    together: tuple[tuple[str, ...], ...]
    rehearse: Callable[[Demand, Any], None] = field(repr=False)
    chunks: int = 1
    leaner: Demand | None = None

    @property
    def choices(self) -> Iterator[Demand]:
        """This demand and the leaner ones, one after the other."""
        one: Demand | None = self
        while one is not None:
            yield one
            one = one.leaner

    @property
    def largest_msm(self) -> int:
        """The number of points of the longest multi-scalar multiplication."""
        return max((bases.size for bases in self.bases), default=0)

    @property
    def point_bytes(self) -> int:
        """Bytes of all of the key's points."""
        return sum(8 * bases.group.words(self.curve) * bases.size for bases in self.bases)


class Budget(NamedTuple):
    """Bytes that a proof may take; None: as many as there are.

    Attributes:
        host: bytes of the host's memory, mapped pages of a key not counted.
        device: bytes of a GPU's memory, with the proof's part of its key.
    """

    host: int | None = None
    device: int | None = None


UNLIMITED = Budget()


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that one proof takes beyond the process itself.

    Attributes:
        key: the key's sections where the backend keeps them (mapped pages on a CPU).
        tables: twiddles, precomputed multiples of bases.
        arena: vectors and scratch of one proof, at the peak.
        host: staging on the host (0 on a CPU, where the arena is the host's).
    """

    key: int
    tables: int
    arena: int
    host: int

    @property
    def total(self) -> int:
        return self.key + self.tables + self.arena + self.host
