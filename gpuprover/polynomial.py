"""Evaluation domains, and the conventions of a transform as types instead of booleans."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cached_property

from gpuprover.curves import FieldParams


class Direction(Enum):
    FORWARD = "forward"
    """Coefficients to evaluations: y[j] = Σ x[i]·ω^(ij)."""
    INVERSE = "inverse"
    """Evaluations to coefficients, 1/n included."""


class Order(Enum):
    """Index order of a transform's input and output: natural, or bit-reversed."""

    NATURAL_TO_NATURAL = "nn"
    NATURAL_TO_REVERSED = "nr"
    REVERSED_TO_NATURAL = "rn"


class Coset(Enum):
    """The set on which polynomials are evaluated."""

    NONE = "none"
    """The subgroup ⟨ω⟩ of order n."""
    ODD = "odd"
    """g·⟨ω⟩ with g the domain's ``coset_generator``; used by Groth16's quotient."""


@dataclass(frozen=True)
class Domain:
    """The 2^log_n-th roots of unity of ``field``.

    Raises:
        ValueError: log_n exceeds the field's two-adicity.
    """

    field: FieldParams
    log_n: int

    def __post_init__(self) -> None:
        if not 0 <= self.log_n <= self.field.two_adicity:
            self.field.root_of_unity(self.log_n)  # raises

    @property
    def size(self) -> int:
        return 1 << self.log_n

    @cached_property
    def omega(self) -> int:
        return self.field.root_of_unity(self.log_n)

    @cached_property
    def coset_generator(self) -> int:
        """A square root of ω, or the squared non-residue on the field's largest domain.

        The choice is circom's: the H points of a ``.zkey`` were made for it.
        """
        if self.log_n < self.field.two_adicity:
            return self.field.root_of_unity(self.log_n + 1)
        return self.field.non_residue**2 % self.field.modulus
