"""The curves, once: every constant is derived from these few records and asserted.

A record holds what a paper gives for a curve: the moduli, the coefficients, the
generators and the seed of the family. Montgomery constants, roots of unity, Frobenius
coefficients, cofactors and loop counts are computed from it, so CPU, CUDA and
reference code cannot disagree.

Sources: BN254 ("alt_bn128") as in EIP-196/197; BLS12-381 as in
draft-irtf-cfrg-pairing-friendly-curves-11, section 4.2.1; roots of unity as circom's
ecosystem fixes them: powers of the smallest quadratic non-residue.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Literal

WORD_BITS = 64

AffineG1 = tuple[int, int] | None
AffineG2 = tuple[tuple[int, int], tuple[int, int]] | None
"""Points of documents and of the reference: coordinates as plain integers in [0, q); None is infinity."""
AffinePoint = AffineG1 | AffineG2


@dataclass(frozen=True)
class FieldParams:
    """A prime field and its Montgomery form with radix R = 2^(64·limbs)."""

    name: str
    modulus: int

    @cached_property
    def bits(self) -> int:
        return self.modulus.bit_length()

    @cached_property
    def limbs(self) -> int:
        """64-bit words of an element."""
        return -(-self.bits // WORD_BITS)

    @cached_property
    def bytes(self) -> int:
        return 8 * self.limbs

    @cached_property
    def R(self) -> int:
        return (1 << (WORD_BITS * self.limbs)) % self.modulus

    @cached_property
    def R_inverse(self) -> int:
        return pow(self.R, -1, self.modulus)

    @cached_property
    def n0(self) -> int:
        """−p⁻¹ mod 2^64, the word-wise Montgomery factor."""
        return -pow(self.modulus, -1, 1 << WORD_BITS) % (1 << WORD_BITS)

    @cached_property
    def two_adicity(self) -> int:
        m = self.modulus - 1
        return (m & -m).bit_length() - 1

    @cached_property
    def non_residue(self) -> int:
        """The smallest quadratic non-residue, counted from 2."""
        g = 2
        while pow(g, (self.modulus - 1) // 2, self.modulus) == 1:
            g += 1
        return g

    def root_of_unity(self, log_n: int) -> int:
        """The primitive 2^log_n-th root that circom's files are made with.

        Raises:
            ValueError: log_n exceeds the field's two-adicity.
        """
        if not 0 <= log_n <= self.two_adicity:
            raise ValueError(f"{self.name} has roots of unity up to 2^{self.two_adicity}, not 2^{log_n}")
        top = pow(self.non_residue, (self.modulus - 1) >> self.two_adicity, self.modulus)
        return pow(top, 1 << (self.two_adicity - log_n), self.modulus)

    def to_montgomery(self, x: int) -> int:
        return x * self.R % self.modulus

    def from_montgomery(self, x: int) -> int:
        return x * self.R_inverse % self.modulus


@dataclass(frozen=True)
class CurveParams:
    """A pairing-friendly curve E: y² = x³ + b over Fq, and its sextic twist over Fq2.

    Fq2 = Fq[u]/(u² + 1), Fq6 = Fq2[v]/(v³ − ξ), Fq12 = Fq6[w]/(w² − v), with
    ξ = xi[0] + xi[1]·u. The twist is y² = x³ + b/ξ (D) or y² = x³ + b·ξ (M).
    """

    name: str
    snarkjs_name: str
    family: Literal["BN", "BLS12"]
    twist: Literal["D", "M"]
    seed: int
    base: FieldParams
    scalar: FieldParams
    b: int
    xi: tuple[int, int]
    g1: tuple[int, int]
    g2: tuple[tuple[int, int], tuple[int, int]]

    @property
    def q(self) -> int:
        return self.base.modulus

    @property
    def r(self) -> int:
        return self.scalar.modulus

    @cached_property
    def b_twist(self) -> tuple[int, int]:
        """The twist's constant coefficient, in Fq2."""
        q, (x0, x1) = self.q, self.xi
        if self.twist == "M":
            return self.b * x0 % q, self.b * x1 % q
        inverse_norm = pow(x0 * x0 + x1 * x1, -1, q)
        return self.b * x0 * inverse_norm % q, -self.b * x1 * inverse_norm % q

    @cached_property
    def trace(self) -> int:
        """t of Frobenius over Fq: #E(Fq) = q + 1 − t."""
        x = self.seed
        return 6 * x * x + 1 if self.family == "BN" else x + 1

    @cached_property
    def cofactor_g1(self) -> int:
        order = self.q + 1 - self.trace
        assert order % self.r == 0
        return order // self.r

    @cached_property
    def loop_count(self) -> int:
        """The optimal-ate Miller loop's scalar (may be negative)."""
        return 6 * self.seed + 2 if self.family == "BN" else self.seed

    @cached_property
    def g1_words(self) -> int:
        """uint64 words of an affine G1 point in memory: x, y."""
        return 2 * self.base.limbs

    @cached_property
    def g2_words(self) -> int:
        """uint64 words of an affine G2 point in memory: x0, x1, y0, y1."""
        return 4 * self.base.limbs


class Group(Enum):
    """The two groups of a pairing."""

    G1 = "G1"
    G2 = "G2"

    def words(self, curve: CurveParams) -> int:
        """uint64 words of an affine point in memory."""
        return curve.g1_words if self is Group.G1 else curve.g2_words

    def generator(self, curve: CurveParams) -> AffinePoint:
        return curve.g1 if self is Group.G1 else curve.g2


def _bn_polynomials(x: int) -> tuple[int, int]:
    q = 36 * x**4 + 36 * x**3 + 24 * x**2 + 6 * x + 1
    r = 36 * x**4 + 36 * x**3 + 18 * x**2 + 6 * x + 1
    return q, r


def _bls12_polynomials(x: int) -> tuple[int, int]:
    r = x**4 - x**2 + 1
    q = (x - 1) ** 2 * r // 3 + x
    return q, r


_BN_SEED = 4965661367192848881
_BLS_SEED = -0xD201000000010000
_BN_Q, _BN_R = _bn_polynomials(_BN_SEED)
_BLS_Q, _BLS_R = _bls12_polynomials(_BLS_SEED)

BN254 = CurveParams(
    name="bn254",
    snarkjs_name="bn128",
    family="BN",
    twist="D",
    seed=_BN_SEED,
    base=FieldParams("bn254.fq", _BN_Q),
    scalar=FieldParams("bn254.fr", _BN_R),
    b=3,
    xi=(9, 1),
    g1=(1, 2),
    g2=(
        (
            10857046999023057135944570762232829481370756359578518086990519993285655852781,
            11559732032986387107991004021392285783925812861821192530917403151452391805634,
        ),
        (
            8495653923123431417604973247489272438418190587263600148770280649306958101930,
            4082367875863433681332203403145435568316851327593401208105741076214120093531,
        ),
    ),
)

BLS12_381 = CurveParams(
    name="bls12-381",
    snarkjs_name="bls12381",
    family="BLS12",
    twist="M",
    seed=_BLS_SEED,
    base=FieldParams("bls12-381.fq", _BLS_Q),
    scalar=FieldParams("bls12-381.fr", _BLS_R),
    b=4,
    xi=(1, 1),
    g1=(
        0x17F1D3A73197D7942695638C4FA9AC0FC3688C4F9774B905A14E3A3F171BAC586C55E83FF97A1AEFFB3AF00ADB22C6BB,
        0x08B3F481E3AAA0F1A09E30ED741D8AE4FCF5E095D5D00AF600DB18CB2C04B3EDD03CC744A2888AE40CAA232946C5E7E1,
    ),
    g2=(
        (
            0x024AA2B2F08F0A91260805272DC51051C6E47AD4FA403B02B4510B647AE3D1770BAC0326A805BBEFD48056C8C121BDB8,
            0x13E02B6052719F607DACD3A088274F65596BD0D09920B61AB5DA61BBDC7F5049334CF11213945D57E5AC7D055D042B7E,
        ),
        (
            0x0CE5D527727D6E118CC9CDC6DA2E351AADFD9BAA8CBDD3A76D429A695160D12C923AC9CC3BACA289E193548608B82801,
            0x0606C4A02EA734CC32ACD2B02BC28B99CB3E287E85A763AF267492AB572E99AB3F370D275CEC1DA1AAA9075FF05F79BE,
        ),
    ),
)

CURVES: tuple[CurveParams, ...] = (BN254, BLS12_381)


def curve_by_name(name: str) -> CurveParams:
    """The curve called ``name`` here or in snarkjs. Raises KeyError."""
    for curve in CURVES:
        if name.lower() in (curve.name, curve.snarkjs_name, curve.name.replace("-", "_")):
            return curve
    raise KeyError(name)


def _assert_record(curve: CurveParams) -> None:
    q = curve.q
    x, y = curve.g1
    assert (y * y - x * x * x - curve.b) % q == 0, f"{curve.name}: G1 generator off the curve"

    def mul(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
        return (a[0] * b[0] - a[1] * b[1]) % q, (a[0] * b[1] + a[1] * b[0]) % q

    X, Y = curve.g2
    y2, x3, bt = mul(Y, Y), mul(mul(X, X), X), curve.b_twist
    assert all((y2[i] - x3[i] - bt[i]) % q == 0 for i in (0, 1)), f"{curve.name}: G2 generator off the twist"
    assert q % 4 == 3, "u² = −1 needs q ≡ 3 (mod 4)"
    # Carry-free Montgomery multiplication needs a spare top bit in every field.
    for field in (curve.base, curve.scalar):
        assert field.bits < WORD_BITS * field.limbs, f"{field.name}: no spare bit in the top word"


for _curve in CURVES:
    _assert_record(_curve)
