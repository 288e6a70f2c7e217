"""The specification: plain integers, the definitions as textbooks give them, nothing optimised.

Every backend is tested against this module, and this module against independent
libraries. It imports the curves' records and nothing else of the project.

Representation. Fq and Fr: ``int`` in [0, p). An extension F[x]/(x² − β) or F[x]/(x³ − β):
a tuple of 2 or 3 elements of F, constant coefficient first. The tower is
Fq2 = Fq[u]/(u² + 1), Fq6 = Fq2[v]/(v³ − ξ), Fq12 = Fq6[w]/(w² − v). Points: affine pairs
of coordinates, ``None`` at infinity.

Sources: Vercauteren, "Optimal pairings" (eprint 2008/096); Groth, "On the size of
pairing-based non-interactive arguments" (eprint 2016/260).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from gpuprover.curves import AffineG1, AffineG2, CurveParams, FieldParams, Group

Element = Any
"""Of Fq an int, of an extension nested tuples."""
Point = Any
"""(x, y) with coordinates in the curve's field, or None."""

# Fields -----------------------------------------------------------------------


class Field(Protocol):
    """What curves need of a field. All arguments and results are reduced elements."""

    zero: Element
    one: Element

    def add(self, a: Element, b: Element) -> Element: ...

    def sub(self, a: Element, b: Element) -> Element: ...

    def neg(self, a: Element) -> Element: ...

    def mul(self, a: Element, b: Element) -> Element: ...

    def inverse(self, a: Element) -> Element:
        """1/a, and 0 for 0."""
        ...

    def embed(self, n: int) -> Element:
        """The integer n as an element."""
        ...


class PrimeField:
    """Z/p."""

    def __init__(self, modulus: int) -> None:
        self.modulus = modulus
        self.zero = 0
        self.one = 1

    def add(self, a: int, b: int) -> int:
        return (a + b) % self.modulus

    def sub(self, a: int, b: int) -> int:
        return (a - b) % self.modulus

    def neg(self, a: int) -> int:
        return -a % self.modulus

    def mul(self, a: int, b: int) -> int:
        return a * b % self.modulus

    def inverse(self, a: int) -> int:
        return pow(a, -1, self.modulus) if a else 0

    def embed(self, n: int) -> int:
        return n % self.modulus


class ComplexField:
    """Fq[u]/(u² + 1), a field as q ≡ 3 (mod 4): real part first."""

    zero = (0, 0)
    one = (1, 0)
    degree = 2

    def __init__(self, base: PrimeField) -> None:
        self.base = base

    def add(self, a: Element, b: Element) -> Element:
        q = self.base.modulus
        return (a[0] + b[0]) % q, (a[1] + b[1]) % q

    def sub(self, a: Element, b: Element) -> Element:
        q = self.base.modulus
        return (a[0] - b[0]) % q, (a[1] - b[1]) % q

    def neg(self, a: Element) -> Element:
        q = self.base.modulus
        return -a[0] % q, -a[1] % q

    def mul(self, a: Element, b: Element) -> Element:
        q = self.base.modulus
        return (a[0] * b[0] - a[1] * b[1]) % q, (a[0] * b[1] + a[1] * b[0]) % q

    def inverse(self, a: Element) -> Element:
        """The conjugate over the norm."""
        q = self.base.modulus
        n = self.base.inverse((a[0] * a[0] + a[1] * a[1]) % q)
        return a[0] * n % q, -a[1] * n % q

    def embed(self, n: int) -> Element:
        return self.base.embed(n), 0


class _Extension:
    """What quadratic and cubic extensions share: addition is by coefficients."""

    degree: int

    def __init__(self, base: Field, non_residue: Element) -> None:
        self.base = base
        self.non_residue = non_residue
        self.zero = (base.zero,) * self.degree
        self.one = (base.one,) + (base.zero,) * (self.degree - 1)

    def add(self, a: Element, b: Element) -> Element:
        return tuple(map(self.base.add, a, b))

    def sub(self, a: Element, b: Element) -> Element:
        return tuple(map(self.base.sub, a, b))

    def neg(self, a: Element) -> Element:
        return tuple(map(self.base.neg, a))

    def embed(self, n: int) -> Element:
        return (self.base.embed(n),) + (self.base.zero,) * (self.degree - 1)


class QuadraticExtension(_Extension):
    """base[x]/(x² − non_residue)."""

    degree = 2

    def mul(self, a: Element, b: Element) -> Element:
        F, β = self.base, self.non_residue
        (a0, a1), (b0, b1) = a, b
        return (
            F.add(F.mul(a0, b0), F.mul(β, F.mul(a1, b1))),
            F.add(F.mul(a0, b1), F.mul(a1, b0)),
        )

    def inverse(self, a: Element) -> Element:
        """(a0 − a1·x)/(a0² − β·a1²)."""
        F, β = self.base, self.non_residue
        a0, a1 = a
        norm = F.sub(F.mul(a0, a0), F.mul(β, F.mul(a1, a1)))
        n = F.inverse(norm)
        return F.mul(a0, n), F.neg(F.mul(a1, n))


class CubicExtension(_Extension):
    """base[x]/(x³ − non_residue)."""

    degree = 3

    def mul(self, a: Element, b: Element) -> Element:
        F, β = self.base, self.non_residue
        (a0, a1, a2), (b0, b1, b2) = a, b
        x3 = F.add(F.mul(a1, b2), F.mul(a2, b1))
        x4 = F.mul(a2, b2)
        return (
            F.add(F.mul(a0, b0), F.mul(β, x3)),
            F.add(F.add(F.mul(a0, b1), F.mul(a1, b0)), F.mul(β, x4)),
            F.add(F.add(F.mul(a0, b2), F.mul(a2, b0)), F.mul(a1, b1)),
        )

    def inverse(self, a: Element) -> Element:
        """The adjugate's first column over the norm: a·(t0 + t1·x + t2·x²) lies in the base."""
        F, β = self.base, self.non_residue
        a0, a1, a2 = a
        t0 = F.sub(F.mul(a0, a0), F.mul(β, F.mul(a1, a2)))
        t1 = F.sub(F.mul(β, F.mul(a2, a2)), F.mul(a0, a1))
        t2 = F.sub(F.mul(a1, a1), F.mul(a0, a2))
        norm = F.add(F.mul(a0, t0), F.mul(β, F.add(F.mul(a1, t2), F.mul(a2, t1))))
        n = F.inverse(norm)
        return F.mul(t0, n), F.mul(t1, n), F.mul(t2, n)


def power(field: Field, a: Element, exponent: int) -> Element:
    """a^exponent by squaring; exponent may be negative."""
    if exponent < 0:
        return power(field, field.inverse(a), -exponent)
    result = field.one
    for bit in bin(exponent)[2:]:
        result = field.mul(result, result)
        if bit == "1":
            result = field.mul(result, a)
    return result


@lru_cache
def fq(curve: CurveParams) -> PrimeField:
    return PrimeField(curve.q)


@lru_cache
def fq2(curve: CurveParams) -> ComplexField:
    return ComplexField(fq(curve))


@lru_cache
def fq6(curve: CurveParams) -> CubicExtension:
    return CubicExtension(fq2(curve), curve.pairing.xi)


@lru_cache
def fq12(curve: CurveParams) -> QuadraticExtension:
    F = fq6(curve)
    v = (F.base.zero, F.base.one, F.base.zero)
    return QuadraticExtension(F, v)


# Curves -----------------------------------------------------------------------


class EllipticCurve:
    """The group E: y² = x³ + b over ``field``; ``order`` is the prime order r of its subgroup."""

    def __init__(self, field: Field, b: Element, order: int) -> None:
        self.field, self.b, self.order = field, b, order

    def on_curve(self, P: Point) -> bool:
        if P is None:
            return True
        F = self.field
        x, y = P
        return bool(F.mul(y, y) == F.add(F.mul(F.mul(x, x), x), self.b))

    def in_subgroup(self, P: Point) -> bool:
        """Whether P lies on the curve and r·P = 0."""
        return self.on_curve(P) and self.scalar_mul(P, self.order) is None

    def neg(self, P: Point) -> Point:
        return None if P is None else (P[0], self.field.neg(P[1]))

    def slope(self, P: Point, Q: Point) -> Element:
        """λ of the line through P and Q, the tangent where P = Q; None if it is vertical."""
        F = self.field
        (x1, y1), (x2, y2) = P, Q
        if x1 != x2:
            return F.mul(F.sub(y2, y1), F.inverse(F.sub(x2, x1)))
        if y1 != y2 or y1 == F.zero:
            return None
        return F.mul(F.mul(F.embed(3), F.mul(x1, x1)), F.inverse(F.add(y1, y1)))

    def add(self, P: Point, Q: Point) -> Point:
        if P is None:
            return Q
        if Q is None:
            return P
        λ = self.slope(P, Q)
        if λ is None:
            return None
        F = self.field
        x = F.sub(F.sub(F.mul(λ, λ), P[0]), Q[0])
        return x, F.sub(F.mul(λ, F.sub(P[0], x)), P[1])

    def scalar_mul(self, P: Point, k: int) -> Point:
        """k·P for any integer k; k is not reduced, so that P may have any order."""
        if k < 0:
            return self.scalar_mul(self.neg(P), -k)
        result = None
        for bit in bin(k)[2:]:
            result = self.add(result, result)
            if bit == "1":
                result = self.add(result, P)
        return result

    def msm(self, points: Sequence[Point], scalars: Sequence[int]) -> Point:
        """Σ scalars[i]·points[i]."""
        total = None
        for P, k in zip(points, scalars, strict=True):
            total = self.add(total, self.scalar_mul(P, k))
        return total


@lru_cache
def group(curve: CurveParams, which: Group) -> EllipticCurve:
    """One of the curve's groups; its points are those of :class:`gpuprover.curves.GroupParams`."""
    params = curve.group(which)
    if params.degree == 1:
        return EllipticCurve(fq(curve), params.b[0], curve.r)
    return EllipticCurve(fq2(curve), params.b, curve.r)


def g1(curve: CurveParams) -> EllipticCurve:
    """E over Fq; its points are :data:`~gpuprover.curves.AffineG1`."""
    return group(curve, Group.G1)


def g2(curve: CurveParams) -> EllipticCurve:
    """The sextic twist over Fq2; its points are :data:`~gpuprover.curves.AffineG2`."""
    return group(curve, Group.G2)


# Polynomials --------------------------------------------------------------------


def dft(field: FieldParams, x: Sequence[int], omega: int, shift: int = 1) -> list[int]:
    """Coefficients to evaluations: y[j] = Σ x[i]·(shift·ω^j)^i, where ω has order len(x)."""
    p, n = field.modulus, len(x)
    powers = [pow(omega, i, p) for i in range(n)]
    shifted = [c * pow(shift, i, p) % p for i, c in enumerate(x)]
    return [sum(c * powers[i * j % n] for i, c in enumerate(shifted)) % p for j in range(n)]


def inverse_dft(field: FieldParams, y: Sequence[int], omega: int, shift: int = 1) -> list[int]:
    """Evaluations at shift·ω^j to coefficients: undoes :func:`dft`."""
    p, n = field.modulus, len(y)
    scaled = dft(field, y, pow(omega, -1, p))
    return [c * pow(n * pow(shift, i, p), -1, p) % p for i, c in enumerate(scaled)]


def bit_reverse(x: Sequence[Any]) -> list[Any]:
    """x of length 2^k with index i moved to the k-bit reversal of i."""
    bits = len(x).bit_length() - 1
    return [x[int(f"{i:0{bits}b}"[::-1], 2) if bits else 0] for i in range(len(x))]


# Pairing ------------------------------------------------------------------------


@lru_cache
def _over_fq12(curve: CurveParams) -> EllipticCurve:
    return EllipticCurve(fq12(curve), fq12(curve).embed(curve.b), curve.r)


def _lift(curve: CurveParams, a: tuple[int, int]) -> Element:
    """An element of Fq2 as one of Fq12."""
    zero = fq2(curve).zero
    return (a, zero, zero), fq6(curve).zero


def untwist(curve: CurveParams, Q: AffineG2) -> Point:
    """The twist's point on E over Fq12: (x·w², y·w³) for a D-twist, (x/w², y/w³) for an M-twist."""
    if Q is None:
        return None
    F = fq12(curve)
    w = (fq6(curve).zero, fq6(curve).one)
    sign = 1 if curve.pairing.twist == "D" else -1
    x, y = _lift(curve, Q[0]), _lift(curve, Q[1])
    return F.mul(x, power(F, w, 2 * sign)), F.mul(y, power(F, w, 3 * sign))


def miller_loop(curve: CurveParams, P: AffineG1, Q: AffineG2) -> Element:
    """The optimal ate pairing before its final exponentiation; 1 where P or Q is infinity.

    f_{t,Q}(P) with t the curve's loop count; for BN curves times the lines through
    (t·Q, π(Q)) and (t·Q + π(Q), −π²(Q)), π the q-power Frobenius. Vertical lines are left
    out: they lie in a proper subfield, and the final exponentiation sends them to 1.
    """
    F, E = fq12(curve), _over_fq12(curve)
    if P is None or Q is None:
        return F.one
    x, y = F.embed(P[0]), F.embed(P[1])
    base = untwist(curve, Q)

    def line(A: Point, B: Point) -> Element:
        """Through A and B, at P: y − y_A − λ·(x − x_A)."""
        λ = E.slope(A, B)
        if λ is None:
            return F.one
        return F.sub(F.sub(y, A[1]), F.mul(λ, F.sub(x, A[0])))

    f, T = F.one, base
    for bit in bin(abs(curve.pairing.loop_count))[3:]:
        f = F.mul(F.mul(f, f), line(T, T))
        T = E.add(T, T)
        if bit == "1":
            f = F.mul(f, line(T, base))
            T = E.add(T, base)
    if curve.pairing.loop_count < 0:
        # f_{−t} = 1/f_t up to vertical lines.
        f, T = F.inverse(f), E.neg(T)
    if curve.pairing.family == "BN":
        first = tuple(power(F, c, curve.q) for c in base)
        second = E.neg(tuple(power(F, c, curve.q) for c in first))
        f = F.mul(f, line(T, first))
        T = E.add(T, first)
        f = F.mul(f, line(T, second))
    return f


def final_exponentiation(curve: CurveParams, f: Element) -> Element:
    """f^((q¹² − 1)/r), no multiple of it."""
    exponent, remainder = divmod(curve.q**12 - 1, curve.r)
    assert remainder == 0
    return power(fq12(curve), f, exponent)


def pairing(curve: CurveParams, P: AffineG1, Q: AffineG2) -> Element:
    """e(P, Q) in the subgroup of order r of Fq12, for P and Q of order r or infinity."""
    return final_exponentiation(curve, miller_loop(curve, P, Q))


def pairing_check(curve: CurveParams, g1: Sequence[AffineG1], g2: Sequence[AffineG2]) -> bool:
    """Whether Π e(g1[i], g2[i]) = 1."""
    F = fq12(curve)
    f = F.one
    for P, Q in zip(g1, g2, strict=True):
        f = F.mul(f, miller_loop(curve, P, Q))
    return bool(final_exponentiation(curve, f) == F.one)


def circom_exponent(curve: CurveParams) -> int:
    """k such that snarkjs's pairing is e(P, Q)^k, e being :func:`pairing`.

    Its final exponentiations raise to multiples of (q¹² − 1)/r that cost less:
    k = 2x(6x² + 3x + 1) for BN (Fuentes-Castañeda et al., "Faster hashing to G2", 2011),
    k = 3 for BLS12 (Hayashida et al., eprint 2020/875). Only ``vk_alphabeta_12`` of a
    verification key shows it; products that are 1 stay 1.
    """
    x = curve.pairing.seed
    return 2 * x * (6 * x * x + 3 * x + 1) if curve.pairing.family == "BN" else 3


# Groth16 ------------------------------------------------------------------------


class Groth16Key(NamedTuple):
    """A proving key as circom's files hold it; names as in snarkjs, points on the host.

    ``matrix_a``, ``matrix_b``: entries (row, column, value). ``h[j]`` belongs to the
    quotient's evaluation at g·ω^j, g² = ω; the constant value of the vanishing polynomial
    there is part of it. ``c`` starts at the first private wire.
    """

    curve: CurveParams
    log_n: int
    n_public: int
    matrix_a: Sequence[tuple[int, int, int]]
    matrix_b: Sequence[tuple[int, int, int]]
    alpha_1: AffineG1
    beta_1: AffineG1
    beta_2: AffineG2
    gamma_2: AffineG2
    delta_1: AffineG1
    delta_2: AffineG2
    ic: Sequence[AffineG1]
    a: Sequence[AffineG1]
    b1: Sequence[AffineG1]
    b2: Sequence[AffineG2]
    c: Sequence[AffineG1]
    h: Sequence[AffineG1]


class Groth16Proof(NamedTuple):
    a: AffineG1
    b: AffineG2
    c: AffineG1


def groth16_quotient(key: Groth16Key, witness: Sequence[int]) -> list[int]:
    """(A·B − C) at g·ω^j, with C the polynomial that equals A·B on the domain."""
    field = key.curve.scalar
    p, n = field.modulus, 1 << key.log_n
    omega, g = field.root_of_unity(key.log_n), field.root_of_unity(key.log_n + 1)
    a, b = [0] * n, [0] * n
    for vector, matrix in ((a, key.matrix_a), (b, key.matrix_b)):
        for row, column, value in matrix:
            vector[row] = (vector[row] + value * witness[column]) % p
    c = [x * y % p for x, y in zip(a, b, strict=True)]
    a, b, c = (dft(field, inverse_dft(field, v, omega), omega, shift=g) for v in (a, b, c))
    return [(x * y - z) % p for x, y, z in zip(a, b, c, strict=True)]


def groth16_prove(key: Groth16Key, witness: Sequence[int], r: int, s: int) -> Groth16Proof:
    """The proof with blinding (r, s); witness[0] = 1, then public, then private wires."""
    G1, G2 = g1(key.curve), g2(key.curve)
    A = G1.add(G1.add(key.alpha_1, G1.msm(key.a, witness)), G1.scalar_mul(key.delta_1, r))
    B = G2.add(G2.add(key.beta_2, G2.msm(key.b2, witness)), G2.scalar_mul(key.delta_2, s))
    B1 = G1.add(G1.add(key.beta_1, G1.msm(key.b1, witness)), G1.scalar_mul(key.delta_1, s))
    C = G1.msm(key.c, witness[key.n_public + 1 :])
    C = G1.add(C, G1.msm(key.h, groth16_quotient(key, witness)))
    C = G1.add(C, G1.msm((A, B1, key.delta_1), (s, r, -r * s)))
    return Groth16Proof(A, B, C)


def groth16_verify(key: Groth16Key, public: Sequence[int], proof: Groth16Proof) -> bool:
    """e(A, B) = e(α, β)·e(Σ public[i]·ic[i], γ)·e(C, δ), ic[0] with factor 1."""
    G1 = g1(key.curve)
    x = G1.msm(key.ic, (1, *public))
    left = (G1.neg(proof.a), key.alpha_1, x, proof.c)
    return pairing_check(key.curve, left, (proof.b, key.beta_2, key.gamma_2, key.delta_2))
