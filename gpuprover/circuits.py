"""A small builder of constraint systems, and the circuits that demos, tests and benchmarks use.

A builder makes rows ⟨A, w⟩·⟨B, w⟩ = ⟨C, w⟩ and computes the witness as it goes: every
linear combination carries its value. So one pass yields the ``.r1cs`` and the ``.wtns``.

Poseidon's parameters are generated here as its paper says: Grassi, Khovratovich,
Rechberger, Roy, Schofnegger, "Poseidon: A New Hash Function for Zero-Knowledge Proof
Systems" (eprint 2019/458), appendix E for the round constants (Grain LFSR) and section
2.3 for the MDS matrix (Cauchy).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from gpuprover.curves import BN254, CurveParams, FieldParams
from gpuprover.formats.files import Pathish
from gpuprover.formats.r1cs import R1CS, SparseRows, write_r1cs
from gpuprover.formats.wtns import Witness, write_witness
from gpuprover.limbs import Words, ints_to_words


@dataclass(frozen=True)
class Circuit:
    """A constraint system with a witness that satisfies it."""

    r1cs: R1CS
    witness: Witness

    def write(self, r1cs_path: Pathish, wtns_path: Pathish) -> None:
        """Writes both files, each atomically."""
        write_r1cs(r1cs_path, self.r1cs)
        write_witness(wtns_path, self.r1cs.curve.scalar, self.witness.values)


# The builder -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LinearCombination:
    """Σ terms[wire]·wire over a builder's wires, and its value under the witness.

    Supports ``+``, ``-`` and unary ``-`` with combinations and integers, ``*`` with integers.
    """

    terms: dict[int, int]
    value: int
    modulus: int

    def _lift(self, other: LinearCombination | int) -> LinearCombination:
        if isinstance(other, LinearCombination):
            return other
        constant = other % self.modulus
        return LinearCombination({0: constant} if constant else {}, constant, self.modulus)

    def __add__(self, other: LinearCombination | int) -> LinearCombination:
        right, p = self._lift(other), self.modulus
        terms = dict(self.terms)
        for wire, coefficient in right.terms.items():
            terms[wire] = (terms.get(wire, 0) + coefficient) % p
        return LinearCombination(terms, (self.value + right.value) % p, p)

    __radd__ = __add__

    def __neg__(self) -> LinearCombination:
        return self * -1

    def __sub__(self, other: LinearCombination | int) -> LinearCombination:
        return self + self._lift(other) * -1

    def __rsub__(self, other: int) -> LinearCombination:
        return -self + other

    def __mul__(self, factor: int) -> LinearCombination:
        p = self.modulus
        terms = {wire: coefficient * factor % p for wire, coefficient in self.terms.items()}
        return LinearCombination(terms, self.value * factor % p, p)

    __rmul__ = __mul__


class CircuitBuilder:
    """Collects wires, constraints and values; :meth:`build` numbers the wires as circom does."""

    def __init__(self, curve: CurveParams = BN254) -> None:
        self.curve = curve
        self.modulus = curve.r
        self._values = [1]
        self._outputs: list[int] = []
        self._public: list[int] = []
        self._private: list[int] = []
        # By matrix: number of terms of each row; wires and coefficients of all terms.
        self._lengths: tuple[list[int], list[int], list[int]] = ([], [], [])
        self._wires: tuple[list[int], list[int], list[int]] = ([], [], [])
        self._coefficients: tuple[list[int], list[int], list[int]] = ([], [], [])

    def wire(self, value: int) -> LinearCombination:
        """A new wire that no constraint binds yet."""
        self._values.append(value % self.modulus)
        return LinearCombination({len(self._values) - 1: 1}, self._values[-1], self.modulus)

    def constant(self, value: int) -> LinearCombination:
        return LinearCombination({0: value % self.modulus}, value % self.modulus, self.modulus)

    def public_input(self, value: int) -> LinearCombination:
        wire = self.wire(value)
        self._public.extend(wire.terms)
        return wire

    def private_input(self, value: int) -> LinearCombination:
        wire = self.wire(value)
        self._private.extend(wire.terms)
        return wire

    def public_output(self, value: LinearCombination) -> LinearCombination:
        """A public wire constrained to equal a combination."""
        wire = self.wire(value.value)
        self._outputs.extend(wire.terms)
        self.constrain(value, self.constant(1), wire)
        return wire

    def constrain(self, a: LinearCombination, b: LinearCombination, c: LinearCombination) -> None:
        """Adds the row a·b = c. Values that break it are an error of the caller's (ValueError)."""
        if (a.value * b.value - c.value) % self.modulus:
            raise ValueError(f"constraint {len(self._lengths[0])} does not hold for the values given")
        for m, combination in enumerate((a, b, c)):
            terms = {wire: k for wire, k in combination.terms.items() if k}
            self._lengths[m].append(len(terms))
            self._wires[m].extend(terms)
            self._coefficients[m].extend(terms.values())

    def multiply(self, a: LinearCombination, b: LinearCombination) -> LinearCombination:
        """A new wire equal to a·b: one constraint."""
        product = self.wire(a.value * b.value)
        self.constrain(a, b, product)
        return product

    def materialise(self, a: LinearCombination) -> LinearCombination:
        """A new wire equal to a, in place of a long combination: one constraint."""
        return self.multiply(a, self.constant(1))

    def assert_bit(self, a: LinearCombination) -> None:
        """a ∈ {0, 1}: one constraint."""
        self.constrain(a, a, a)

    def assert_equal(self, a: LinearCombination, b: LinearCombination) -> None:
        """a = b: one constraint."""
        self.constrain(a, self.constant(1), b)

    def build(self) -> Circuit:
        """The constraint system and its witness."""
        n = len(self._values)
        named = [0, *self._outputs, *self._public, *self._private]
        is_named = np.zeros(n, dtype=bool)
        is_named[named] = True
        order = np.concatenate([np.array(named, dtype=np.int64), np.flatnonzero(~is_named)])
        number = np.empty(n, dtype=np.uint32)
        number[order] = np.arange(n, dtype=np.uint32)

        limbs = self.curve.scalar.limbs
        a, b, c = (
            SparseRows(
                _starts(lengths), number[np.array(wires, dtype=np.int64)], ints_to_words(values, limbs)
            )
            for lengths, wires, values in zip(self._lengths, self._wires, self._coefficients, strict=True)
        )
        counts = len(self._outputs), len(self._public), len(self._private)
        r1cs = R1CS(self.curve, n, *counts, n, a, b, c)
        return Circuit(r1cs, Witness(self.curve, ints_to_words(self._values, limbs)[order]))


def _starts(lengths: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    starts = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


# Poseidon ----------------------------------------------------------------------

FULL_ROUNDS, PARTIAL_ROUNDS, WIDTH = 8, 57, 3
"""For two inputs, S-box x⁵ and 128 bits of security over fields of 254 or 255 bits."""


@dataclass(frozen=True)
class PoseidonParams:
    """Round constants, ``WIDTH`` for each round, and the MDS matrix by rows."""

    constants: tuple[tuple[int, ...], ...]
    mds: tuple[tuple[int, ...], ...]


def _grain_bits(field: FieldParams) -> Iterator[int]:
    """The self-shrinking Grain LFSR that Poseidon's constants are drawn from."""
    state = 0
    # Prime field, S-box x^α, field size, width, rounds; then ones up to 80 bits.
    for value, width in (
        (1, 2),
        (0, 4),
        (field.bits, 12),
        (WIDTH, 12),
        (FULL_ROUNDS, 10),
        (PARTIAL_ROUNDS, 10),
    ):
        state = state << width | value
    state = state << 30 | (1 << 30) - 1
    bits = [state >> (79 - i) & 1 for i in range(80)]

    def step() -> int:
        new = bits[62] ^ bits[51] ^ bits[38] ^ bits[23] ^ bits[13] ^ bits[0]
        bits.append(new)
        del bits[0]
        return new

    for _ in range(160):
        step()
    while True:
        keep, bit = step(), step()
        if keep:
            yield bit


@lru_cache
def poseidon_params(field: FieldParams) -> PoseidonParams:
    """Generates the parameters for a field; for BN254 they are circomlib's."""
    stream = _grain_bits(field)

    def draw() -> int:
        value = 0
        for _ in range(field.bits):
            value = value << 1 | next(stream)
        return value

    def below_modulus() -> int:
        while (value := draw()) >= field.modulus:
            pass
        return value

    rounds = FULL_ROUNDS + PARTIAL_ROUNDS
    constants = tuple(tuple(below_modulus() for _ in range(WIDTH)) for _ in range(rounds))
    xs, ys = ([draw() % field.modulus for _ in range(WIDTH)] for _ in range(2))
    mds = tuple(tuple(pow(x + y, -1, field.modulus) for y in ys) for x in xs)
    return PoseidonParams(constants, mds)


def _is_full(index: int) -> bool:
    return not FULL_ROUNDS // 2 <= index < FULL_ROUNDS // 2 + PARTIAL_ROUNDS


def poseidon_hash(field: FieldParams, left: int, right: int) -> int:
    """Poseidon of two field elements, in plain integers."""
    p, params = field.modulus, poseidon_params(field)
    state = [0, left % p, right % p]
    for i, constants in enumerate(params.constants):
        state = [(s + k) % p for s, k in zip(state, constants, strict=True)]
        state = [pow(s, 5, p) if j == 0 or _is_full(i) else s for j, s in enumerate(state)]
        state = [sum(m * s for m, s in zip(row, state, strict=True)) % p for row in params.mds]
    return state[0]


def poseidon(builder: CircuitBuilder, left: LinearCombination, right: LinearCombination) -> LinearCombination:
    """Poseidon of two combinations as 257 constraints: three for each S-box, and 14 that keep rows short.

    In partial rounds two lanes meet no S-box, so that their combinations grow by a term a round.
    Wires of their own every eight rounds leave less than a third of the terms.
    """
    params = poseidon_params(builder.curve.scalar)
    state = [builder.constant(0), left, right]
    for i, constants in enumerate(params.constants):
        state = [s + k for s, k in zip(state, constants, strict=True)]
        if not _is_full(i) and (i - FULL_ROUNDS // 2) % 8 == 7:
            state[1:] = [builder.materialise(lane) for lane in state[1:]]
        for j in range(WIDTH if _is_full(i) else 1):
            square = builder.multiply(state[j], state[j])
            state[j] = builder.multiply(builder.multiply(square, square), state[j])
        a, b, c = state
        state = [a * k0 + b * k1 + c * k2 for k0, k1, k2 in params.mds]
    return state[0]


# Circuits ----------------------------------------------------------------------


def poseidon_circuit(curve: CurveParams = BN254, left: int = 1, right: int = 2) -> Circuit:
    """Knowledge of two numbers whose Poseidon hash is the public output."""
    builder = CircuitBuilder(curve)
    inputs = builder.private_input(left), builder.private_input(right)
    builder.public_output(poseidon(builder, *inputs))
    return builder.build()


def merkle_circuit(depth: int = 20, curve: CurveParams = BN254, *, leaf: int | None = None) -> Circuit:
    """Membership in a Poseidon Merkle tree: a leaf and a path, both secret, lead to the public root.

    259 constraints a level. Leaf, siblings and position are random where not given.
    """
    p = curve.r
    builder = CircuitBuilder(curve)
    node = builder.private_input(secrets.randbelow(p) if leaf is None else leaf)
    siblings = [builder.private_input(secrets.randbelow(p)) for _ in range(depth)]
    position = [builder.private_input(secrets.randbits(1)) for _ in range(depth)]
    for sibling, on_right in zip(siblings, position, strict=True):
        builder.assert_bit(on_right)
        # Swapped where the node is the right child: both stay combinations of one product.
        swap = builder.multiply(on_right, sibling - node)
        node = poseidon(builder, node + swap, sibling - swap)
    builder.public_output(node)
    return builder.build()


def chain_circuit(constraints: int, curve: CurveParams = BN254, *, x: int = 3, y: int = 11) -> Circuit:
    """s[0] = x·y, s[i+1] = s[i]² + i; x and the last s are public. Its witness is full-width.

    ``constraints`` >= 1 is exact. Wires: 1, the last s, x, y, s[0], s[1], …
    """
    if constraints < 1:
        raise ValueError("a chain has at least one constraint")
    n, p, field = constraints, curve.r, curve.scalar
    s = [x * y % p]
    for i in range(n - 1):
        s.append((s[-1] * s[-1] + i) % p)

    wire = np.arange(3, 3 + n, dtype=np.uint32) + 1  # of s[0], s[1], …
    wire[n - 1] = 1
    one = ints_to_words([1], field.limbs)
    left, right = wire - 1, wire - 1
    left[1:], right[1:] = wire[:-1], wire[:-1]
    left[0], right[0] = 2, 3
    each = np.arange(n + 1, dtype=np.int64)
    a = SparseRows(each, left, np.repeat(one, n, axis=0))
    b = SparseRows(each, right, np.repeat(one, n, axis=0))
    # Row i + 1 is s[i]·s[i] = s[i+1] − i·1; rows 0 and 1 have no constant.
    constant = np.zeros((n, 2), dtype=bool)
    constant[:, 0] = True
    constant[2:, 1] = True
    wires = np.zeros((n, 2), dtype=np.uint32)
    wires[:, 0] = wire
    values = np.empty((n, 2, field.limbs), dtype=np.uint64)
    values[:, 0] = one
    values[2:, 1] = ints_to_words((p - i for i in range(1, n - 1)), field.limbs)
    c = SparseRows(_starts(constant.sum(axis=1)), wires[constant], values[constant])

    r1cs = R1CS(curve, n + 3, 1, 1, 1, n + 3, a, b, c)
    witness = ints_to_words([1, s[-1], x % p, y % p, *s[:-1]], field.limbs)
    return Circuit(r1cs, Witness(curve, witness))


def bits_circuit(constraints: int, curve: CurveParams = BN254, *, seed: int | None = None) -> Circuit:
    """Bits, the exclusive or of neighbours, and the public count of its ones: a witness of zeros and ones.

    ``constraints`` >= 4 is exact: half of them bits, one for the count. Like a circuit for SHA-256,
    the sort of witness for which multi-scalar multiplication has to be cheap.
    """
    if constraints < 4:
        raise ValueError("a bits circuit has at least four constraints")
    p, field = curve.r, curve.scalar
    bits = constraints // 2
    pairs = constraints - bits - 1
    bit_values = np.random.default_rng(seed).integers(0, 2, bits, dtype=np.uint8)
    xor_values = bit_values[:pairs] ^ np.roll(bit_values, -1)[:pairs]

    # Wires: 1, count, the bits, their exclusive ors.
    bit = np.arange(2, 2 + bits, dtype=np.uint32)
    following = np.roll(bit, -1)[:pairs]
    xor = np.arange(2 + bits, 2 + bits + pairs, dtype=np.uint32)
    one, two, minus_one = (ints_to_words([v % p], field.limbs)[0] for v in (1, 2, -1))

    def rows(*blocks: tuple[list[NDArray[np.uint32]], list[Words]]) -> SparseRows:
        """Blocks of rows, each of k columns of wires with k coefficients."""
        lengths = np.concatenate([np.full(len(wires[0]), len(wires), dtype=np.int64) for wires, _ in blocks])
        flat = [np.stack(wires, axis=1).ravel() for wires, _ in blocks]
        values = [np.tile(np.stack(factors), (len(wires[0]), 1)) for wires, factors in blocks]
        return SparseRows(_starts(lengths), np.concatenate(flat), np.concatenate(values))

    head, constant = bit[:pairs], np.zeros(1, dtype=np.uint32)
    # b·b = b;  2b·b′ = b + b′ − x;  Σx · 1 = count.
    a = rows(([bit], [one]), ([head], [two]), ([xor[i : i + 1] for i in range(pairs)], [one] * pairs))
    b = rows(([bit], [one]), ([following], [one]), ([constant], [one]))
    count_wire = np.ones(1, dtype=np.uint32)
    c = rows(([bit], [one]), ([head, following, xor], [one, one, minus_one]), ([count_wire], [one]))

    n_wires = 2 + bits + pairs
    witness = np.zeros((n_wires, field.limbs), dtype=np.uint64)
    witness[0, 0], witness[1, 0] = 1, int(xor_values.sum())
    witness[2:, 0] = np.concatenate([bit_values, xor_values])
    return Circuit(R1CS(curve, n_wires, 1, 0, bits, n_wires, a, b, c), Witness(curve, witness))
