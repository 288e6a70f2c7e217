"""What a proof asks of a device, and the memory that it takes there."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KeyHeader:
    """What :meth:`Backend.plan` needs to know of a key; sizes in elements.

    ``g1_points`` and ``g2_points`` count all bases of the key, ``largest_msm`` the longest
    single multi-scalar multiplication.
    """

    domain_size: int
    n_vars: int
    n_public: int
    n_coefficients: int
    g1_points: int
    g2_points: int
    largest_msm: int


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
