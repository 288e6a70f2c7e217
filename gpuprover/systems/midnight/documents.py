"""Midnight's verification keys and proofs.

A proof is bytes without a header: compressed points and scalars, in the order in which a transcript takes
them (:class:`~gpuprover.systems.midnight.argument.Argument`). Around it the network has envelopes
(:mod:`gpuprover.midnight.envelopes`); in JSON it is written in hexadecimal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np

from gpuprover.curves import BLS12_381, CurveParams, Group
from gpuprover.errors import MalformedFile, UnsupportedFile, about
from gpuprover.formats.compressed import compress_g1
from gpuprover.formats.json_files import shown
from gpuprover.limbs import Words, generator, words_to_g1
from gpuprover.midnight.keys import VerifierKey, read_verifier_key, write_verifier_key
from gpuprover.midnight.points import BadPoint, read_compressed
from gpuprover.midnight.srs import S_G2, g2_from_bytes, g2_to_bytes
from gpuprover.systems.midnight.argument import Argument, argument

NAME = "midnight"
PROOF_SCHEMA: dict[str, Any] = {
    "properties": {
        "protocol": {"type": "string", "const": NAME, "title": "Protocol"},
        "curve": {"type": "string", "title": "Curve"},
        "proof": {"type": "string", "title": "Proof", "description": "the raw proof's bytes in hexadecimal"},
    },
    "type": "object",
    "required": ["protocol", "curve", "proof"],
    "title": "MidnightProof",
    "description": "A proof of Midnight's, without an envelope.",
}
"""JSON Schema of what :func:`proof_to_json` writes."""

_POINT_BYTES, _SCALAR_BYTES = 48, 32
_HASH_PERSON = b"Halo2-Verify-Key"
_KEY_VERSION = 3


@dataclass(frozen=True, eq=False)
class VerificationKey:
    """What a verifier needs: a ``.verifier`` file, and s·G2 of the parameters that it was made from.

    Attributes:
        key: the file's content.
        s_g2: uint64[g2_words], on its curve.
    """

    key: VerifierKey
    s_g2: Words = field(default_factory=lambda: S_G2, repr=False)

    @property
    def protocol(self) -> str:
        return NAME

    @property
    def curve(self) -> CurveParams:
        return BLS12_381

    @property
    def n_public(self) -> int:
        return self.key.n_public

    @property
    def source(self) -> str:
        return self.key.source

    @property
    def published(self) -> bool:
        """Whether the parameters are the network's."""
        return np.array_equal(self.s_g2, S_G2)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences that whoever trusts the key has to read."""
        if self.published:
            return ()
        return (
            "the key was not made from the network's parameters: who made them may know their secret, and "
            "with it prove anything",
        )

    @cached_property
    def argument(self) -> Argument:
        return argument(self.key.profile, self.key.architecture)

    @cached_property
    def commitments(self) -> Mapping[str, Words]:
        """Commitments of fixed columns and of σ, by name."""
        names = (*self.argument.fixed, *self.argument.sigma)
        points = np.concatenate([self.key.fixed, self.key.permutation])
        return dict(zip(names, points, strict=True))

    @cached_property
    def transcript_hash(self) -> int:
        """What a transcript begins with: BLAKE2b of the commitments and of the constraint system's text."""
        state = hashlib.blake2b(digest_size=64, person=_HASH_PERSON)
        state.update(bytes([_KEY_VERSION, self.key.k]))
        for points in (self.key.fixed, self.key.permutation):
            state.update(len(points).to_bytes(4, "little"))
            for point in words_to_g1(BLS12_381, points):
                state.update(_uncompressed(point))
        state.update(self.argument.system.whole_text(self.key.k).encode("ascii"))
        return int.from_bytes(state.digest(), "little") % BLS12_381.r

    @cached_property
    def _values(self) -> tuple[bytes, bytes]:
        return write_verifier_key(self.key), self.s_g2.tobytes()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, VerificationKey):
            return NotImplemented
        return self._values == other._values

    def __hash__(self) -> int:
        return hash(self._values)

    @cached_property
    def digest(self) -> str:
        """SHA-256 in hex of the key's values."""
        return hashlib.sha256(b"".join(self._values)).hexdigest()

    @cached_property
    def document(self) -> dict[str, Any]:
        return {
            "protocol": NAME,
            "curve": BLS12_381.snarkjs_name,
            "nPublic": self.n_public,
            "verifier": self._values[0].hex(),
            "s_g2": g2_to_bytes(self.s_g2).hex(),
        }


def _uncompressed(point: Any) -> bytes:
    if point is None:
        return bytes([0x40]) + bytes(95)
    return b"".join(x.to_bytes(_POINT_BYTES, "big") for x in point)


@dataclass(frozen=True, eq=False)
class Proof:
    """A raw proof. Whether it fits a key is seen when it is verified with one.

    Attributes:
        data: the bytes.
    """

    data: bytes

    def __eq__(self, other: object) -> bool:
        return self.data == other.data if isinstance(other, Proof) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.data)


@dataclass(frozen=True)
class Parts:
    """A proof taken apart.

    Attributes:
        commitments: points by name, uint64[g1_words]: those before the evaluations, then f and π.
        evaluations: in the order of :attr:`Argument.evaluated`.
        folded: q_j(x3) of each point set.
    """

    commitments: Mapping[str, Words]
    evaluations: tuple[int, ...]
    folded: tuple[int, ...]


OPENING, PROOF = "f", "pi"
"""Names of the commitment to the openings' quotient, and of the last point."""


def proof_bytes(shape: Argument) -> int:
    """The length of a raw proof."""
    points = len(shape.committed) + 2
    return _POINT_BYTES * points + _SCALAR_BYTES * (len(shape.evaluated) + len(shape.sets))


def take_apart(shape: Argument, data: bytes) -> Parts:
    """The parts of a raw proof.

    Raises:
        ValueError: another length, a point that is not on the curve, a scalar that is not below r; in a few
            words.
    """
    if len(data) != proof_bytes(shape):
        raise ValueError(f"expected {proof_bytes(shape)} bytes, found {len(data)}")
    # Points, evaluations, f, values of the point sets, π.
    sizes = (
        _POINT_BYTES * len(shape.committed),
        _SCALAR_BYTES * len(shape.evaluated),
        _POINT_BYTES,
        _SCALAR_BYTES * len(shape.sets),
        _POINT_BYTES,
    )
    ends = [*accumulate(sizes)]
    first, evaluations, f, folded, last = (
        data[end - size : end] for size, end in zip(sizes, ends, strict=True)
    )
    names = (*shape.committed, OPENING, PROOF)
    try:
        words = read_compressed(first + f + last)
    except BadPoint as error:
        raise ValueError(f"{names[error.index]}: {error}") from None
    return Parts(
        dict(zip(names, words, strict=True)),
        _scalars(evaluations, [f"{q.column} at rotation {q.rotation}" for q in shape.evaluated]),
        _scalars(folded, [f"q{j}" for j in range(len(shape.sets))]),
    )


def _scalars(data: bytes, names: Sequence[str]) -> tuple[int, ...]:
    found = []
    for i, name in enumerate(names):
        value = int.from_bytes(data[i * _SCALAR_BYTES : (i + 1) * _SCALAR_BYTES], "little")
        if value >= BLS12_381.r:
            raise ValueError(f"{name}: a scalar is not below the prime of {BLS12_381.scalar.name}")
        found.append(value)
    return tuple(found)


def sample_proof(key: VerificationKey) -> Proof:
    """The generator in place of a proof's points, 1 in place of its scalars."""
    shape = key.argument
    point = compress_g1(BLS12_381, generator(BLS12_381, Group.G1))
    scalar = (1).to_bytes(_SCALAR_BYTES, "little")
    data = point * len(shape.committed) + scalar * len(shape.evaluated)
    return Proof(data + point + scalar * len(shape.sets) + point)


def proof_to_json(proof: Proof, curve: CurveParams) -> dict[str, Any]:
    return {"protocol": NAME, "curve": curve.snarkjs_name, "proof": proof.data.hex()}


@about("verification key")
def parse_verification_key(document: object, source: str = "verification key") -> VerificationKey:
    """A verification key from its document.

    Raises:
        MalformedFile, UnsupportedFile: a field is missing or wrong, or its file is; names it.
    """
    fields = _fields(document, source, "a Midnight verification key")
    key = read_verifier_key(_hex(fields, "verifier", source), source)
    stated = fields.get("nPublic", key.n_public)
    if type(stated) is not int or stated != key.n_public:
        raise MalformedFile(
            source, "nPublic", f"expected {key.n_public} as the key says, found {shown(stated)}"
        )
    s_g2 = S_G2
    if "s_g2" in fields:
        try:
            s_g2 = g2_from_bytes(_hex(fields, "s_g2", source))
        except ValueError as error:
            raise MalformedFile(source, "s_g2", str(error)) from None
    return VerificationKey(key, s_g2)


@about("proof")
def parse_proof(document: object, curve: CurveParams, source: str = "proof", strict: bool = False) -> Proof:
    """A proof from its document; what the bytes mean depends on a key.

    Raises:
        MalformedFile, UnsupportedFile: a field is missing or wrong; names it.
    """
    return Proof(_hex(_fields(document, source, "a Midnight proof"), "proof", source))


def _fields(document: object, source: str, what: str) -> Mapping[str, Any]:
    if not isinstance(document, Mapping):
        raise MalformedFile(source, "document", f"expected {what} as a JSON object, found {shown(document)}")
    protocol, curve = document.get("protocol", NAME), document.get("curve", BLS12_381.snarkjs_name)
    if protocol != NAME:
        raise UnsupportedFile(source, "protocol", f"expected '{NAME}', found {shown(protocol)}")
    if curve != BLS12_381.snarkjs_name:
        raise UnsupportedFile(source, "curve", f"expected '{BLS12_381.snarkjs_name}', found {shown(curve)}")
    return document


def _hex(fields: Mapping[str, Any], name: str, source: str) -> bytes:
    value = fields.get(name)
    if not isinstance(value, str):
        raise MalformedFile(source, name, f"expected bytes in hexadecimal, found {shown(value)}")
    try:
        return bytes.fromhex(value)
    except ValueError:
        raise MalformedFile(source, name, "expected bytes in hexadecimal, found other characters") from None


def evaluations_by_query(shape: Argument, parts: Sequence[int]) -> dict[tuple[str, int], int]:
    """(polynomial, rotation) -> its evaluation."""
    return {(q.column, q.rotation): value for q, value in zip(shape.evaluated, parts, strict=True)}
