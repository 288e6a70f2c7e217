"""snarkjs's Groth16 documents: verification key, proof, public signals.

Rapidsnark's proofs, which name no curve, are read, too. How points and signals are written is in
:mod:`gpuprover.formats.snarkjs_json`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from gpuprover.curves import CurveParams
from gpuprover.errors import about
from gpuprover.formats.json_files import shown
from gpuprover.formats.snarkjs_json import (
    MAX_PUBLIC,
    DocumentReader,
    g1_to_json,
    g2_to_json,
)
from gpuprover.limbs import Words, g1_to_words, g2_to_words, words_to_g1, words_to_g2
from gpuprover.systems.groth16.key_warnings import key_warnings

NAME = "groth16"

_TEXTS = {"items": {"type": "string"}, "type": "array"}
PROOF_SCHEMA: dict[str, Any] = {
    "properties": {
        "pi_a": {**_TEXTS, "title": "Pi A"},
        "pi_b": {"items": _TEXTS, "type": "array", "title": "Pi B"},
        "pi_c": {**_TEXTS, "title": "Pi C"},
        "protocol": {"type": "string", "const": NAME, "title": "Protocol"},
        "curve": {"type": "string", "title": "Curve"},
    },
    "type": "object",
    "required": ["pi_a", "pi_b", "pi_c", "protocol", "curve"],
    "title": "Groth16Proof",
    "description": "snarkjs's document; coordinates are decimal strings.",
}
"""JSON Schema of what :func:`proof_to_json` writes."""


@dataclass(frozen=True, eq=False)
class VerificationKey:
    """What a Groth16 verifier needs: points on their curves, uint64[words] (subgroups not checked here).

    Attributes:
        ic: uint64[n_public + 1, g1_words], of the constant wire and of every public signal.
        source: where it came from, for messages; equal keys may differ in it.
    """

    curve: CurveParams
    alpha1: Words
    beta2: Words
    gamma2: Words
    delta2: Words
    ic: Words
    source: str = "verification key"

    @cached_property
    def _points(self) -> bytes:
        return b"".join(p.tobytes() for p in (self.alpha1, self.beta2, self.gamma2, self.delta2, self.ic))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, VerificationKey):
            return NotImplemented
        return self.curve == other.curve and self._points == other._points

    def __hash__(self) -> int:
        return hash(self._points)

    @property
    def protocol(self) -> str:
        return NAME

    @property
    def n_public(self) -> int:
        return len(self.ic) - 1

    @cached_property
    def digest(self) -> str:
        """SHA-256 in hex of the key's values: equal exactly for equal keys, however written."""
        document = json.dumps(self.document, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(document.encode()).hexdigest()

    @cached_property
    def document(self) -> dict[str, Any]:
        """What ``snarkjs zkey export verificationkey`` writes, but for e(α, β), which no verifier needs."""
        alpha1, *ic = words_to_g1(self.curve, np.concatenate([self.alpha1[None], self.ic]))
        beta2, gamma2, delta2 = words_to_g2(self.curve, np.stack([self.beta2, self.gamma2, self.delta2]))
        return {
            "protocol": NAME,
            "curve": self.curve.snarkjs_name,
            "nPublic": self.n_public,
            "vk_alpha_1": g1_to_json(alpha1),
            "vk_beta_2": g2_to_json(beta2),
            "vk_gamma_2": g2_to_json(gamma2),
            "vk_delta_2": g2_to_json(delta2),
            "IC": [g1_to_json(point) for point in ic],
        }

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences that whoever trusts the key has to read: see ``key_warnings``."""
        return key_warnings(
            self.curve,
            alpha1=self.alpha1,
            beta2=self.beta2,
            gamma2=self.gamma2,
            delta2=self.delta2,
            ic=self.ic,
        )


@dataclass(frozen=True, eq=False)
class Proof:
    """A Groth16 proof (A, B, C): points on their curves, uint64[words] (subgroups not checked here)."""

    a: Words
    b: Words
    c: Words

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Proof):
            return NotImplemented
        return all(map(np.array_equal, (self.a, self.b, self.c), (other.a, other.b, other.c)))


def sample_proof(key: VerificationKey) -> Proof:
    """Points of the key in place of a proof's."""
    return Proof(key.alpha1, key.beta2, key.alpha1)


def proof_to_json(proof: Proof, curve: CurveParams) -> dict[str, Any]:
    """The document that ``snarkjs groth16 prove`` writes."""
    a, c = words_to_g1(curve, np.stack([proof.a, proof.c]))
    (b,) = words_to_g2(curve, proof.b)
    return {
        "pi_a": g1_to_json(a),
        "pi_b": g2_to_json(b),
        "pi_c": g1_to_json(c),
        "protocol": NAME,
        "curve": curve.snarkjs_name,
    }


def verification_key_to_json(key: VerificationKey) -> dict[str, Any]:
    """The document that ``snarkjs zkey export verificationkey`` writes, e(α, β) included."""
    from gpuprover.reference import circom_exponent, fq12, pairing, power

    # A part of the document that no verifier needs; the reference's half a second does.
    (alpha1,), (beta2,) = words_to_g1(key.curve, key.alpha1), words_to_g2(key.curve, key.beta2)
    alpha_beta = power(fq12(key.curve), pairing(key.curve, alpha1, beta2), circom_exponent(key.curve))
    document = dict(key.document)
    points = document.pop("IC")
    table = [[[str(c) for c in fq2] for fq2 in fq6] for fq6 in alpha_beta]
    return {**document, "vk_alphabeta_12": table, "IC": points}


@about("verification key")
def parse_verification_key(document: object, source: str = "verification key") -> VerificationKey:
    """Checks a verification key document.

    Raises:
        MalformedFile: a field is missing, out of range or off the curve, or IC and nPublic disagree.
        UnsupportedFile: another protocol or curve.
    """
    reader = DocumentReader(document, source, "a Groth16 verification key")
    reader.protocol(NAME, required=True)
    curve = reader.curve(None)
    ic_entries = reader.array("IC")
    n_public = reader.field("nPublic")
    if not isinstance(n_public, int) or isinstance(n_public, bool) or not 0 <= n_public <= MAX_PUBLIC:
        reader.fail("nPublic", f"expected a whole number, found {shown(n_public)}")
    if len(ic_entries) != n_public + 1:
        reader.fail("IC", f"{len(ic_entries)} points, expected {n_public + 1}: nPublic and one")
    alpha1 = reader.g1(curve, "vk_alpha_1", reader.field("vk_alpha_1"))
    beta2, gamma2, delta2 = (
        reader.g2(curve, name, reader.field(name)) for name in ("vk_beta_2", "vk_gamma_2", "vk_delta_2")
    )
    for name, point in (
        ("vk_alpha_1", alpha1),
        ("vk_beta_2", beta2),
        ("vk_gamma_2", gamma2),
        ("vk_delta_2", delta2),
    ):
        if point is None:
            reader.fail(name, "the point at infinity, which no sound key has")
    ic = [reader.g1(curve, f"IC[{i}]", entry) for i, entry in enumerate(ic_entries)]
    g1, g2 = g1_to_words(curve, [alpha1, *ic]), g2_to_words(curve, [beta2, gamma2, delta2])
    return VerificationKey(curve, g1[0], g2[0], g2[1], g2[2], g1[1:], source)


@about("proof")
def parse_proof(document: object, curve: CurveParams, source: str = "proof", strict: bool = False) -> Proof:
    """Checks a proof document for a curve; ``protocol`` and ``curve`` may be absent.

    ``strict``: coordinates have to be decimal text without leading zeros.

    Raises:
        MalformedFile: a point is missing, out of range or off the curve.
        UnsupportedFile: it says that it is of another protocol or curve.
    """
    reader = DocumentReader(document, source, "a Groth16 proof", strict)
    reader.protocol(NAME, required=False)
    reader.curve(curve)
    a = reader.g1(curve, "pi_a", reader.field("pi_a"))
    b = reader.g2(curve, "pi_b", reader.field("pi_b"))
    c = reader.g1(curve, "pi_c", reader.field("pi_c"))
    g1 = g1_to_words(curve, [a, c])
    return Proof(g1[0], g2_to_words(curve, [b])[0], g1[1])
