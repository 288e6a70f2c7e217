"""Evaluation domains, and the conventions of a transform as types instead of booleans."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cached_property, lru_cache

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
    """The set on which polynomials are evaluated; an integer g in its place stands for g·⟨ω⟩."""

    NONE = "none"
    """The subgroup ⟨ω⟩ of order n."""
    ODD = "odd"
    """g·⟨ω⟩ with g the domain's ``coset_generator``; used by Groth16's quotient."""


@dataclass(frozen=True)
class Domain:
    """The 2^log_n-th roots of unity of ``field``, with the ω that a proof system's files are made for.

    Attributes:
        field: the field.
        log_n: log₂ of the number of roots.
        generator: a quadratic non-residue γ: ω is a power of γ^((p−1)/2^s), with s the field's two-adicity.
            circom takes the smallest one, as does None; halo2 takes 7 for the scalars of BN254 and BLS12-381.

    Raises:
        ValueError: log_n exceeds the field's two-adicity, or the generator is a square.
    """

    field: FieldParams
    log_n: int
    generator: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.log_n <= self.field.two_adicity:
            self.field.root_of_unity(self.log_n)  # raises
        if self.generator is not None:
            _top_root(self.field, self.generator)  # raises

    @property
    def size(self) -> int:
        return 1 << self.log_n

    @property
    def family(self) -> int:
        """The 2^s-th root of unity, of which all ω of this generator are powers: tables go by it."""
        return _top_root(self.field, self.generator)

    def root_of_unity(self, log_n: int) -> int:
        """The ω of the domain of 2^log_n elements of this generator."""
        return pow(self.family, 1 << (self.field.two_adicity - log_n), self.field.modulus)

    @cached_property
    def omega(self) -> int:
        return self.root_of_unity(self.log_n)

    @cached_property
    def coset_generator(self) -> int:
        """A square root of ω, or the squared non-residue on the field's largest domain.

        The choice is circom's: the H points of a ``.zkey`` were made for it.
        """
        if self.log_n < self.field.two_adicity:
            return self.root_of_unity(self.log_n + 1)
        return self.field.non_residue**2 % self.field.modulus

    def shift(self, coset: Coset | int) -> int:
        """The g of the coset g·⟨ω⟩.

        Raises:
            ValueError: an integer that is 0 mod p.
        """
        if isinstance(coset, Coset):
            return 1 if coset is Coset.NONE else self.coset_generator
        if coset % self.field.modulus == 0:
            raise ValueError("0 is in no coset of the roots of unity")
        return coset % self.field.modulus


@lru_cache(maxsize=64)
def _top_root(field: FieldParams, generator: int | None) -> int:
    p = field.modulus
    if generator is not None and pow(generator, (p - 1) // 2, p) != p - 1:
        raise ValueError(f"generator {generator} is not a quadratic non-residue of {field.name}")
    return pow(generator or field.non_residue, (p - 1) >> field.two_adicity, p)
