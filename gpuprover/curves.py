"""The curves, once: every constant is derived from these few records and asserted.

A record holds what a paper gives for a curve: the moduli, the coefficients, the
generators and, of a curve with a pairing, the seed of the family. Montgomery constants,
roots of unity, Frobenius coefficients, cofactors and loop counts are computed from it, so
CPU, CUDA and reference code cannot disagree.

Sources: BN254 ("alt_bn128") as in EIP-196/197; BLS12-381 as in
draft-irtf-cfrg-pairing-friendly-curves-11, section 4.2.1; roots of unity as circom's
ecosystem fixes them: powers of the smallest quadratic non-residue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from math import isqrt
from typing import Any, Literal

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


class Group(Enum):
    """The two groups of a pairing; a curve without one has G1 alone."""

    G1 = "G1"
    G2 = "G2"

    def words(self, curve: CurveParams) -> int:
        """uint64 words of an affine point in memory."""
        return curve.group(self).words

    def generator(self, curve: CurveParams) -> AffinePoint:
        """A point of order r."""
        return curve.group(self).generator


@dataclass(frozen=True)
class GroupParams:
    """A subgroup of order r of a curve E: y² = x³ + b over Fq (degree 1) or Fq2 = Fq[u]/(u² + 1) (degree 2).

    Attributes:
        name: ``G1`` or ``G2``.
        base: Fq.
        degree: the degree over Fq of the field of the coordinates.
        b: the coefficient, ``degree`` integers.
        generator: a point of order r.
        cofactor: #E/r.
    """

    name: str
    base: FieldParams
    degree: Literal[1, 2]
    b: tuple[int, ...]
    generator: AffinePoint
    cofactor: int

    @property
    def words(self) -> int:
        """uint64 words of an affine point in memory: x, y, in degree 2 x0, x1, y0, y1."""
        return 2 * self.degree * self.base.limbs

    def coordinates(self, point: AffinePoint) -> tuple[int, ...]:
        """A point as 2·degree integers in the order of memory; infinity is all zeros."""
        if point is None:
            return (0,) * (2 * self.degree)
        x: Any
        y: Any
        x, y = point
        return (x, y) if self.degree == 1 else (*x, *y)

    def point(self, coordinates: Sequence[int]) -> AffinePoint:
        """Inverse of :meth:`coordinates`."""
        if not any(coordinates):
            return None
        if self.degree == 1:
            x, y = coordinates
            return x, y
        x0, x1, y0, y1 = coordinates
        return (x0, x1), (y0, y1)

    def on_curve(self, point: AffinePoint) -> bool:
        """Whether y² = x³ + b; infinity is on every curve. Coordinates in [0, q)."""
        if point is None:
            return True
        q, flat = self.base.modulus, self.coordinates(point)
        if self.degree == 1:
            x, y = flat
            return (y * y - x * x * x - self.b[0]) % q == 0
        X, Y = flat[:2], flat[2:]
        y2, x3 = _fq2_product(Y, Y, q), _fq2_product(_fq2_product(X, X, q), X, q)
        return all((y2[i] - x3[i] - self.b[i]) % q == 0 for i in (0, 1))


def _fq2_product(a: Sequence[int], b: Sequence[int], q: int) -> tuple[int, int]:
    return (a[0] * b[0] - a[1] * b[1]) % q, (a[0] * b[1] + a[1] * b[0]) % q


@dataclass(frozen=True)
class PairingParams:
    """The optimal ate pairing of a curve E: y² = x³ + b over Fq of embedding degree 12, with a sextic twist.

    Fq2 = Fq[u]/(u² + 1), which asks for q ≡ 3 (mod 4), Fq6 = Fq2[v]/(v³ − ξ), Fq12 = Fq6[w]/(w² − v), with
    ξ = xi[0] + xi[1]·u. The twist is y² = x³ + b/ξ (D) or y² = x³ + b·ξ (M).

    Attributes:
        family: the polynomials in the seed that q and r are values of.
        twist: the kind of the twist.
        seed: x of the family.
        xi: ξ.
        g2: a point of order r on the twist.
    """

    family: Literal["BN", "BLS12"]
    twist: Literal["D", "M"]
    seed: int
    xi: tuple[int, int]
    g2: tuple[tuple[int, int], tuple[int, int]]

    @property
    def trace(self) -> int:
        """t of Frobenius over Fq, by the family's polynomial: #E(Fq) = q + 1 − t."""
        return 6 * self.seed**2 + 1 if self.family == "BN" else self.seed + 1

    @property
    def loop_count(self) -> int:
        """The optimal-ate Miller loop's scalar (may be negative)."""
        return 6 * self.seed + 2 if self.family == "BN" else self.seed


@dataclass(frozen=True)
class CurveParams:
    """A curve E: y² = x³ + b over Fq with a subgroup of prime order r, and its pairing if it has one.

    Attributes:
        name: the curve's name.
        snarkjs_name: the name that snarkjs's documents have for it; empty where snarkjs has none.
        base: Fq.
        scalar: Fr.
        b: the coefficient.
        g1: a point of order r.
        ate: its optimal ate pairing; None for a curve without a pairing.
    """

    name: str
    snarkjs_name: str
    base: FieldParams
    scalar: FieldParams
    b: int
    g1: tuple[int, int]
    ate: PairingParams | None = None

    def __post_init__(self) -> None:
        _assert_record(self)

    @property
    def q(self) -> int:
        return self.base.modulus

    @property
    def r(self) -> int:
        return self.scalar.modulus

    @property
    def pairing(self) -> PairingParams:
        """The parameters of the pairing.

        Raises:
            ValueError: the curve has none.
        """
        if self.ate is None:
            raise ValueError(f"{self.name} has no pairing")
        return self.ate

    @cached_property
    def cofactor(self) -> int:
        """#E(Fq)/r: the one multiple of r within Hasse's bounds, q + 1 ± 2√q, which r exceeds by far."""
        return (self.q + 1 + self.r // 2) // self.r

    @cached_property
    def trace(self) -> int:
        """t of Frobenius over Fq: #E(Fq) = q + 1 − t."""
        return self.q + 1 - self.cofactor * self.r

    # Groups ----------------------------------------------------------------------

    @cached_property
    def groups(self) -> dict[Group, GroupParams]:
        """The curve's groups of order r: G1, and G2 where there is a pairing."""
        found = {Group.G1: GroupParams("G1", self.base, 1, (self.b,), self.g1, self.cofactor)}
        if self.ate is not None:
            order = _twist_order(self.q, self.trace, self.r)
            twist = GroupParams("G2", self.base, 2, self._twisted_b(self.ate), self.ate.g2, order // self.r)
            found[Group.G2] = twist
        return found

    def group(self, group: Group) -> GroupParams:
        """The curve over Fq, or its twist.

        Raises:
            ValueError: there is no twist, since the curve has no pairing.
        """
        found = self.groups.get(group)
        if found is None:
            raise ValueError(f"{self.name} has no {group.value}: it has no pairing")
        return found

    def _twisted_b(self, ate: PairingParams) -> tuple[int, int]:
        """b·ξ or b/ξ."""
        q, (x0, x1) = self.q, ate.xi
        if ate.twist == "M":
            return self.b * x0 % q, self.b * x1 % q
        inverse_norm = pow(x0 * x0 + x1 * x1, -1, q)
        return self.b * x0 * inverse_norm % q, -self.b * x1 * inverse_norm % q

    @property
    def g2(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """G2's generator."""
        return self.pairing.g2

    @property
    def g1_words(self) -> int:
        """uint64 words of an affine G1 point in memory: x, y."""
        return self.group(Group.G1).words

    @property
    def g2_words(self) -> int:
        """uint64 words of an affine G2 point in memory: x0, x1, y0, y1."""
        return self.group(Group.G2).words


def _twist_order(q: int, t: int, r: int) -> int:
    """#E′(Fq2) of the sextic twist whose order r divides, for E over Fq with trace t.

    Over Fq2 E has the trace t2 = t² − 2q, and its sextic twists have ±t2 and (±t2 ± 3f)/2, 3f² = 4q² − t2².
    F. Hess, N. Smart, F. Vercauteren, "The Eta pairing revisited" (2006).
    """
    t2 = t * t - 2 * q
    f = isqrt((4 * q * q - t2 * t2) // 3)
    orders = [q * q + 1 - (a * t2 + b * 3 * f) // 2 for a in (1, -1) for b in (1, -1)]
    (order,) = [n for n in orders if n % r == 0]
    return order


def _assert_record(curve: CurveParams) -> None:
    q, r, name = curve.q, curve.r, curve.name
    # Carry-free Montgomery multiplication needs a spare top bit in every field.
    for field in (curve.base, curve.scalar):
        assert field.bits < WORD_BITS * field.limbs, f"{field.name}: no spare bit in the top word"
    assert r * r > 16 * q, f"{name}: r does not settle the curve's order"
    assert curve.trace**2 <= 4 * q, f"{name}: no curve over Fq has a multiple of r points"
    if curve.ate is not None:
        assert q % 4 == 3, f"{name}: u² = −1 needs q ≡ 3 (mod 4)"
        assert curve.trace == curve.ate.trace, f"{name}: not of its family"
    for group in curve.groups.values():
        assert group.on_curve(group.generator), f"{name}: the generator of {group.name} is off the curve"


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

# Above each record: the curve's equation, twist, tower and seed, and its security level. That is the cost of
# discrete logarithms in Fq12 by A. Guillevic, S. Singh, "On the alpha value of polynomials in the tower
# number field sieve algorithm" (2019, IACR ePrint 2019/885); in the groups they cost √r, more in both cases.

# BN254: y² = x³ + 3 over Fq of 254 bits, of order r of 254 bits.
# Twist: y² = x³ + 3/ξ over Fq2 (D).
# Tower: Fq2 = Fq[u]/(u² + 1), Fq6 = Fq2[v]/(v³ − ξ), Fq12 = Fq6[w]/(w² − v), ξ = 9 + u.
# Barreto–Naehrig with x = 4965661367192848881: q = 36x⁴ + 36x³ + 24x² + 6x + 1, r = q − 6x².
# Optimal ate loop: 6x + 2, and two lines more.
# Security: about 103 bits; q¹² has 3,044 bits.
BN254 = CurveParams(
    name="bn254",
    snarkjs_name="bn128",
    base=FieldParams("bn254.fq", _BN_Q),
    scalar=FieldParams("bn254.fr", _BN_R),
    b=3,
    g1=(1, 2),
    ate=PairingParams(
        family="BN",
        twist="D",
        seed=_BN_SEED,
        xi=(9, 1),
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
    ),
)

# BLS12-381: y² = x³ + 4 over Fq of 381 bits, of order h·r, r of 255 bits, h = (x − 1)²/3.
# Twist: y² = x³ + 4ξ over Fq2 (M).
# Tower: as above, ξ = 1 + u.
# Barreto–Lynn–Scott of embedding degree 12 with x = −0xd201000000010000: r = x⁴ − x² + 1, q = h·r + x.
# Optimal ate loop: x.
# Security: about 126 bits; q¹² has 4,569 bits.
BLS12_381 = CurveParams(
    name="bls12-381",
    snarkjs_name="bls12381",
    base=FieldParams("bls12-381.fq", _BLS_Q),
    scalar=FieldParams("bls12-381.fr", _BLS_R),
    b=4,
    g1=(
        0x17F1D3A73197D7942695638C4FA9AC0FC3688C4F9774B905A14E3A3F171BAC586C55E83FF97A1AEFFB3AF00ADB22C6BB,
        0x08B3F481E3AAA0F1A09E30ED741D8AE4FCF5E095D5D00AF600DB18CB2C04B3EDD03CC744A2888AE40CAA232946C5E7E1,
    ),
    ate=PairingParams(
        family="BLS12",
        twist="M",
        seed=_BLS_SEED,
        xi=(1, 1),
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
    ),
)

CURVES: tuple[CurveParams, ...] = (BN254, BLS12_381)
PAIRING_CURVES = tuple(curve for curve in CURVES if curve.ate is not None)
"""Those that a protocol with a pairing, Groth16 for one, can run over."""


def curve_by_name(name: str) -> CurveParams:
    """The curve called ``name`` here or in snarkjs. Raises KeyError."""
    for curve in CURVES:
        if name and name.lower() in (curve.name, curve.snarkjs_name, curve.name.replace("-", "_")):
            return curve
    raise KeyError(name)
