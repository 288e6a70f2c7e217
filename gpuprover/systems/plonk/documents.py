"""snarkjs's PLONK documents: verification key and proof.

How points and public signals are written is in :mod:`gpuprover.formats.snarkjs_json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from gpuprover.curves import CurveParams, Group
from gpuprover.errors import about
from gpuprover.formats.snarkjs_json import DocumentReader, g2_to_json
from gpuprover.limbs import Words, generator, words_to_g2
from gpuprover.plonkish import documents as shared

NAME = "plonk"
SELECTORS = ("Qm", "Ql", "Qr", "Qo", "Qc")
COMMITMENTS = (*SELECTORS, "S1", "S2", "S3")
"""A key's polynomials, in the order in which a transcript takes their commitments."""
POINTS = ("A", "B", "C", "Z", "T1", "T2", "T3", "Wxi", "Wxiw")
EVALUATIONS = ("eval_a", "eval_b", "eval_c", "eval_s1", "eval_s2", "eval_zw")

_TEXTS = {"items": {"type": "string"}, "type": "array"}
PROOF_SCHEMA: dict[str, Any] = {
    "properties": {
        **{name: {**_TEXTS, "title": name} for name in POINTS},
        **{name: {"type": "string", "title": name} for name in EVALUATIONS},
        "protocol": {"type": "string", "const": NAME, "title": "Protocol"},
        "curve": {"type": "string", "title": "Curve"},
    },
    "type": "object",
    "required": [*POINTS, *EVALUATIONS, "protocol", "curve"],
    "title": "PlonkProof",
    "description": "snarkjs's document; coordinates and evaluations are decimal strings.",
}
"""JSON Schema of what :func:`proof_to_json` writes."""


@dataclass(frozen=True, eq=False)
class VerificationKey:
    """What a PLONK verifier needs: points on their curves, uint64[words] (subgroups not checked here).

    Attributes:
        power: log₂ of the domain size.
        k1, k2: what tells the positions of the wires b and c from those of a.
        commitments: those of the key's polynomials, by :data:`COMMITMENTS`.
        tau_g2: τ·G2, which snarkjs calls X_2.
        source: where it came from, for messages; equal keys may differ in it.
    """

    curve: CurveParams
    n_public: int
    power: int
    k1: int
    k2: int
    commitments: Mapping[str, Words] = field(repr=False)
    tau_g2: Words = field(repr=False)
    source: str = "verification key"

    @cached_property
    def _values(self) -> tuple[object, ...]:
        points = b"".join(self.commitments[name].tobytes() for name in COMMITMENTS) + self.tau_g2.tobytes()
        return self.curve, self.n_public, self.power, self.k1, self.k2, points

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, VerificationKey):
            return NotImplemented
        return self._values == other._values

    def __hash__(self) -> int:
        return hash(self._values)

    @property
    def protocol(self) -> str:
        return NAME

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences that whoever trusts the key has to read."""
        return shared.key_warnings(self.curve, self.tau_g2)

    @cached_property
    def digest(self) -> str:
        """SHA-256 in hex of the key's values: equal exactly for equal keys, however written."""
        return shared.digest(self.document)

    @cached_property
    def document(self) -> dict[str, Any]:
        """What ``snarkjs zkey export verificationkey`` writes."""
        (tau_g2,) = words_to_g2(self.curve, self.tau_g2)
        return {
            "protocol": NAME,
            "curve": self.curve.snarkjs_name,
            "nPublic": self.n_public,
            "power": self.power,
            "k1": str(self.k1),
            "k2": str(self.k2),
            **shared.points_to_json(self.curve, {name: self.commitments[name] for name in COMMITMENTS}),
            "X_2": g2_to_json(tau_g2),
            "w": str(self.curve.scalar.root_of_unity(self.power)),
        }


@dataclass(frozen=True, eq=False)
class Proof:
    """A PLONK proof.

    Attributes:
        points: uint64[9, g1_words], in the order of :data:`POINTS`, on their curve.
        evaluations: integers in [0, r), in the order of :data:`EVALUATIONS`.
    """

    points: Words
    evaluations: tuple[int, ...]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Proof):
            return NotImplemented
        return self.evaluations == other.evaluations and np.array_equal(self.points, other.points)

    def point(self, name: str) -> Words:
        """A point by its name in :data:`POINTS`."""
        row: Words = self.points[POINTS.index(name)]
        return row


def sample_proof(key: VerificationKey) -> Proof:
    """The generator in place of a proof's points."""
    return Proof(np.tile(generator(key.curve, Group.G1), (len(POINTS), 1)), (1,) * len(EVALUATIONS))


def proof_to_json(proof: Proof, curve: CurveParams) -> dict[str, Any]:
    """The document that ``snarkjs plonk prove`` writes."""
    return {
        **shared.points_to_json(curve, dict(zip(POINTS, proof.points, strict=True))),
        **{name: str(value) for name, value in zip(EVALUATIONS, proof.evaluations, strict=True)},
        "protocol": NAME,
        "curve": curve.snarkjs_name,
    }


@about("verification key")
def parse_verification_key(document: object, source: str = "verification key") -> VerificationKey:
    """Checks a verification key document.

    Raises:
        MalformedFile: a field is missing, out of range or off the curve.
        UnsupportedFile: another protocol or curve.
    """
    reader = DocumentReader(document, source, "a PLONK verification key")
    reader.protocol(NAME, required=True)
    curve = reader.curve(None)
    n_public, power = shared.read_sizes(reader, curve)
    k1, k2 = shared.read_shifts(reader, curve, power)
    shared.read_root(reader, curve, power)
    commitments = shared.read_points(reader, curve, COMMITMENTS)
    tau_g2 = shared.read_tau(reader, curve)
    return VerificationKey(curve, n_public, power, k1, k2, commitments, tau_g2, source)


@about("proof")
def parse_proof(document: object, curve: CurveParams, source: str = "proof", strict: bool = False) -> Proof:
    """Checks a proof document for a curve; ``protocol`` and ``curve`` may be absent.

    ``strict``: numbers have to be decimal text without leading zeros.

    Raises:
        MalformedFile: a point or value is missing, out of range or off the curve.
        UnsupportedFile: it says that it is of another protocol or curve.
    """
    reader = DocumentReader(document, source, "a PLONK proof", strict)
    reader.protocol(NAME, required=False)
    reader.curve(curve)
    points = shared.read_points(reader, curve, POINTS)
    evaluations = tuple(shared.read_scalar(reader, curve, name) for name in EVALUATIONS)
    return Proof(np.stack([points[name] for name in POINTS]), evaluations)
