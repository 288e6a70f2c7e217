"""Fiat-Shamir transcripts: a prover's messages in, challenges out.

Three hashes, as three verifiers compute them: Keccak-256 for snarkjs' PLONK and FFLONK, BLAKE2b for
Midnight's PLONK, a Poseidon sponge for kimchi. The two over bytes share their form, :class:`Transcript`. They
take points of G1 as words, uint64[words] or uint64[n, words], affine and Montgomery, infinity all zeros, and
scalars as integers in [0, r). A scalar outside of that range is refused, not reduced: a verifier that
absorbed x + r as x would accept a second form of the same proof. Whether points lie on their curve is the
caller's to check.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import Literal, Protocol

from gpuprover.curves import CurveParams
from gpuprover.devices import keccak256
from gpuprover.formats.compressed import compress_g1
from gpuprover.limbs import Words, words_to_field


class Transcript(Protocol):
    """A prover's messages so far, as a verifier hashes them."""

    curve: CurveParams

    def absorb_scalars(self, *values: int) -> bytes:
        """Integers in [0, r), in order -> the bytes that were absorbed for them.

        Raises:
            ValueError: a value is out of range.
        """
        ...

    def absorb_points(self, points: Words) -> bytes:
        """One point of G1 or several, in order -> the bytes that were absorbed for them."""
        ...

    def challenge(self) -> int:
        """A number in [0, r) that depends on all that was absorbed."""
        ...


def _scalars(curve: CurveParams, values: Sequence[int], order: Literal["big", "little"]) -> list[bytes]:
    for value in values:
        if not 0 <= value < curve.r:
            raise ValueError(f"a scalar is not in [0, r) of {curve.name}")
    return [value.to_bytes(curve.scalar.bytes, order) for value in values]


class Keccak256Transcript:
    """The transcript of snarkjs' PLONK and FFLONK, and of their contracts.

    A challenge is Keccak-256 of the plain concatenation of what was absorbed since the challenge before it,
    as a big-endian integer mod r: each begins with nothing, and a system whose challenge depends on an
    earlier one absorbs that. Scalars are 32 bytes, points their coordinates x and y in the bytes of the base
    field, all big-endian and canonical; infinity is all zeros. There are no labels and no lengths.
    """

    def __init__(self, curve: CurveParams) -> None:
        self.curve = curve
        self._absorbed = bytearray()

    def absorb_scalars(self, *values: int) -> bytes:
        data = b"".join(_scalars(self.curve, values, "big"))
        self._absorbed += data
        return data

    def absorb_points(self, points: Words) -> bytes:
        base = self.curve.base
        coordinates = words_to_field(base, points.reshape(-1, base.limbs))
        data = b"".join(value.to_bytes(base.bytes, "big") for value in coordinates)
        self._absorbed += data
        return data

    def challenge(self) -> int:
        digest = keccak256(bytes(self._absorbed))
        self._absorbed.clear()
        return int.from_bytes(digest, "big") % self.curve.r


class Blake2bTranscript:
    """The transcript of halo2 and its descendants; with the arguments left out, Midnight's.

    One BLAKE2b state with digests of 64 bytes runs through the proof. A message is a byte 1 and the message's
    bytes: a scalar in 32 bytes, little-endian, or a point, compressed (:mod:`gpuprover.formats.compressed`).
    A challenge is a byte 0 and then the digest of the state as it is, little-endian, mod r; the digest itself
    is not absorbed.

    Args:
        key: the state's key, at most 64 bytes. Midnight's is the default.
        person: the state's personalisation, at most 16 bytes: ``b"Halo2-Transcript"``, without a key, in
            halo2 itself. Midnight has none.
    """

    def __init__(
        self, curve: CurveParams, key: bytes = b"Domain separator for transcript", person: bytes = b""
    ) -> None:
        self.curve = curve
        self._state = hashlib.blake2b(digest_size=64, key=key, person=person)

    def absorb_scalars(self, *values: int) -> bytes:
        return self._absorb(_scalars(self.curve, values, "little"))

    def absorb_points(self, points: Words) -> bytes:
        rows = points.reshape(-1, self.curve.g1_words)
        return self._absorb([compress_g1(self.curve, row) for row in rows])

    def _absorb(self, messages: Sequence[bytes]) -> bytes:
        for message in messages:
            self._state.update(b"\x01" + message)
        return b"".join(messages)

    def challenge(self) -> int:
        self._state.update(b"\x00")
        return int.from_bytes(self._state.digest(), "little") % self.curve.r


@dataclass(frozen=True)
class Poseidon:
    """A Poseidon permutation: Grassi et al., "Poseidon: a new hash function", eprint 2019/458.

    A round of the paper adds constants, takes powers, and multiplies by a matrix. In a full round every
    element is raised to the power, in a partial one a single element. Half of the full rounds come first,
    then the partial ones, then the other full rounds.

    Attributes:
        modulus: the prime.
        rate: elements that a sponge adds to, or gives, between permutations; the first ones of the state.
        power: the S-box's exponent, prime to modulus − 1.
        full_rounds: an even number where there are partial rounds.
        partial_rounds: their number.
        matrix: row i makes element i; its size is the width of the state.
        constants: a row for each round, in the order in which they are added.
        constants_last: whether a round ends with its constants in place of beginning with them, as kimchi's
            do.
        partial_element: index of the element that partial rounds raise.

    Raises:
        ValueError: sizes or values do not fit together.
    """

    modulus: int
    rate: int
    power: int
    full_rounds: int
    partial_rounds: int
    matrix: tuple[tuple[int, ...], ...]
    constants: tuple[tuple[int, ...], ...]
    constants_last: bool = False
    partial_element: int = 0

    def __post_init__(self) -> None:
        width = len(self.matrix)
        if not 0 < self.rate < width:
            raise ValueError(f"Poseidon: expected a rate in [1, {width - 1}], found {self.rate}")
        if len(self.constants) != self.full_rounds + self.partial_rounds:
            raise ValueError(
                f"Poseidon: expected constants of {self.full_rounds + self.partial_rounds} rounds, "
                f"found {len(self.constants)}"
            )
        if self.partial_rounds and self.full_rounds % 2:
            raise ValueError("Poseidon: full rounds before and after the partial ones are equally many")
        if not 0 <= self.partial_element < width:
            raise ValueError(f"Poseidon: expected a partial element below {width}")
        if gcd(self.power, self.modulus - 1) != 1:
            raise ValueError(f"Poseidon: x^{self.power} is not a permutation of this field")
        for row in (*self.matrix, *self.constants):
            if len(row) != width or not all(0 <= value < self.modulus for value in row):
                raise ValueError(f"Poseidon: expected rows of {width} elements of the field")

    def permute(self, state: Sequence[int]) -> list[int]:
        """Elements of the field, as many as the state's width -> the permuted state. 1 ms at a width of 3."""
        p, first = self.modulus, self.full_rounds // 2
        values = [*state]
        for i, constants in enumerate(self.constants):
            if not self.constants_last:
                values = [x + c for x, c in zip(values, constants, strict=True)]
            if first <= i < first + self.partial_rounds:
                values[self.partial_element] = pow(values[self.partial_element], self.power, p)
            else:
                values = [pow(x, self.power, p) for x in values]
            added = constants if self.constants_last else (0,) * len(values)
            values = [
                (sum(m * x for m, x in zip(row, values, strict=True)) + c) % p
                for row, c in zip(self.matrix, added, strict=True)
            ]
        return values


class PoseidonSponge:
    """A sponge over field elements: what is absorbed is added to the state's first ``rate`` elements.

    Absorbing permutes before an element for which there is no place left; the first squeeze after absorbing
    permutes, and so does every ``rate``-th squeeze. There is no padding: [x] and [x, 0] have the same digest,
    and who absorbs lists of any length says the length, in what is absorbed or in the initial state.

    Args:
        poseidon: the permutation.
        state: the initial state; zeros by default. Midnight's hash of n elements begins with (0, 0, n).
    """

    def __init__(self, poseidon: Poseidon, state: Sequence[int] | None = None) -> None:
        self._poseidon = poseidon
        self._state = [0] * len(poseidon.matrix) if state is None else [*state]
        if len(self._state) != len(poseidon.matrix):
            raise ValueError(f"Poseidon: expected a state of {len(poseidon.matrix)} elements")
        self._at = 0
        self._squeezing = False

    def copy(self) -> PoseidonSponge:
        """A sponge that goes on from here by itself; kimchi's digests are squeezed from one."""
        other = PoseidonSponge(self._poseidon, self._state)
        other._at, other._squeezing = self._at, self._squeezing
        return other

    def absorb(self, *values: int) -> None:
        """Integers in [0, modulus), in order.

        Raises:
            ValueError: a value is out of range.
        """
        p = self._poseidon.modulus
        for value in values:
            if not 0 <= value < p:
                raise ValueError("an absorbed value is not an element of the field")
            if self._squeezing:
                self._at, self._squeezing = 0, False
            elif self._at == self._poseidon.rate:
                self._permute()
            self._state[self._at] = (self._state[self._at] + value) % p
            self._at += 1

    def squeeze(self) -> int:
        """The next element, in [0, modulus)."""
        if not self._squeezing or self._at == self._poseidon.rate:
            self._permute()
            self._squeezing = True
        self._at += 1
        return self._state[self._at - 1]

    def _permute(self) -> None:
        self._state = self._poseidon.permute(self._state)
        self._at = 0
