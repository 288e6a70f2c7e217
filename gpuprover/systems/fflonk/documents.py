"""snarkjs's FFLONK documents: verification key and proof.

How points and public signals are written is in :mod:`gpuprover.formats.snarkjs_json`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from gpuprover.curves import BN254, CurveParams
from gpuprover.errors import UnsupportedFile, about
from gpuprover.formats.json_files import shown
from gpuprover.formats.snarkjs_json import DocumentReader, g2_to_json
from gpuprover.limbs import Words, g1_to_words, words_to_g2
from gpuprover.plonkish import documents as shared
from gpuprover.polynomial import Domain

NAME = "fflonk"
CURVE = BN254
"""The only curve: snarkjs has cube roots of unity for no other."""
OTHER_CURVE = "FFLONK is over BN254 only"
RESERVED = 2
"""Rows at the end of the domain that are no gates: a, b and c are blinded there."""
POLYNOMIALS = ("C1", "C2", "W1", "W2")


class Evaluations(NamedTuple):
    """A proof's values, integers in [0, r), in the order in which they are hashed and written.

    Those of the key's polynomials, of a, b, c and z are at ξ; zw, t1w and t2w are z, T1 and T2 at ξω.
    """

    ql: int
    qr: int
    qm: int
    qo: int
    qc: int
    s1: int
    s2: int
    s3: int
    a: int
    b: int
    c: int
    z: int
    zw: int
    t1w: int
    t2w: int


_TEXT = {"type": "string"}
_POINT = {"items": _TEXT, "type": "array"}


def _object(fields: dict[str, Any], title: str) -> dict[str, Any]:
    return {"properties": fields, "type": "object", "required": [*fields], "title": title}


PROOF_SCHEMA: dict[str, Any] = {
    **_object(
        {
            "polynomials": _object({name: {**_POINT, "title": name} for name in POLYNOMIALS}, "Polynomials"),
            "evaluations": _object(
                {name: {**_TEXT, "title": name} for name in (*Evaluations._fields, "inv")}, "Evaluations"
            ),
            "protocol": {"type": "string", "const": NAME, "title": "Protocol"},
            "curve": {"type": "string", "title": "Curve"},
        },
        "FflonkProof",
    ),
    "description": "snarkjs's document; coordinates and evaluations are decimal strings.",
}
"""JSON Schema of what :func:`proof_to_json` writes."""


class Constants(NamedTuple):
    """The numbers of the field that a key names.

    Attributes:
        k1, k2: factors that tell the columns b and c from a in the permutation.
        w3, w4, w8: a third, fourth and eighth root of unity.
        wr: a third root of the domain's ω.
    """

    k1: int
    k2: int
    w3: int
    w4: int
    w8: int
    wr: int

    def bad_root(self, power: int) -> tuple[str, str] | None:
        """The root that is none, for a domain of 2^power elements: (name, what was expected); else None."""
        fr, r = CURVE.scalar, CURVE.r
        if self.w3 == 1 or pow(self.w3, 3, r) != 1:
            return "w3", "expected a third root of unity that is not 1"
        for name, root, log in (("w4", self.w4, 2), ("w8", self.w8, 3)):
            if root != fr.root_of_unity(log):
                return name, f"expected snarkjs's root of unity of order {1 << log}"
        if pow(self.wr, 3, r) != fr.root_of_unity(power):
            return "wr", "expected a third root of the domain's root of unity"
        return None


@dataclass(frozen=True, eq=False)
class VerificationKey:
    """What an FFLONK verifier needs: points on their curves, uint64[words] (subgroups not checked here).

    Attributes:
        power: log₂ of the domain's size.
        constants: numbers that fit together.
        tau_g2: τ·G2, which snarkjs calls X_2.
        c0: the commitment to the key's eight polynomials.
        source: where it came from, for messages; equal keys may differ in it.
    """

    n_public: int
    power: int
    constants: Constants
    tau_g2: Words
    c0: Words
    source: str = "verification key"

    @cached_property
    def _values(self) -> tuple[object, ...]:
        return self.n_public, self.power, self.constants, self.tau_g2.tobytes(), self.c0.tobytes()

    def __eq__(self, other: object) -> bool:
        return self._values == other._values if isinstance(other, VerificationKey) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._values)

    @property
    def protocol(self) -> str:
        return NAME

    @property
    def curve(self) -> CurveParams:
        return CURVE

    @cached_property
    def domain(self) -> Domain:
        return Domain(CURVE.scalar, self.power)

    @cached_property
    def digest(self) -> str:
        """SHA-256 in hex of the key's values: equal exactly for equal keys, however written."""
        return shared.digest(self.document)

    @cached_property
    def document(self) -> dict[str, Any]:
        """What ``snarkjs zkey export verificationkey`` writes."""
        k = self.constants
        (tau_g2,) = words_to_g2(CURVE, self.tau_g2)
        return {
            "protocol": NAME,
            "curve": CURVE.snarkjs_name,
            "nPublic": self.n_public,
            "power": self.power,
            "k1": str(k.k1),
            "k2": str(k.k2),
            "w": str(self.domain.omega),
            "w3": str(k.w3),
            "w4": str(k.w4),
            "w8": str(k.w8),
            "wr": str(k.wr),
            "X_2": g2_to_json(tau_g2),
            **shared.points_to_json(CURVE, {"C0": self.c0}),
        }

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences that whoever trusts the key has to read."""
        return shared.key_warnings(CURVE, self.tau_g2)


@dataclass(frozen=True, eq=False)
class Proof:
    """An FFLONK proof: points on the curve and values in [0, r).

    Attributes:
        points: the commitments C1, C2, W1, W2, uint64[4, g1_words].
        evaluations: what the committed polynomials are at ξ and ξω.
        inv: one over what a verifier divides by, for contracts.
    """

    points: Words
    evaluations: Evaluations
    inv: int

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Proof):
            return NotImplemented
        values = (self.evaluations, self.inv) == (other.evaluations, other.inv)
        return values and np.array_equal(self.points, other.points)


def proof_to_json(proof: Proof, curve: CurveParams) -> dict[str, Any]:
    """The document that ``snarkjs fflonk prove`` writes."""
    return {
        "polynomials": shared.points_to_json(curve, dict(zip(POLYNOMIALS, proof.points, strict=True))),
        "evaluations": {
            **{name: str(value) for name, value in proof.evaluations._asdict().items()},
            "inv": str(proof.inv),
        },
        "protocol": NAME,
        "curve": curve.snarkjs_name,
    }


@about("verification key")
def parse_verification_key(document: object, source: str = "verification key") -> VerificationKey:
    """Checks a verification key document.

    Raises:
        MalformedFile: a field is missing, out of range, off the curve, or does not fit to the others.
        UnsupportedFile: another protocol or curve.
    """
    reader = DocumentReader(document, source, "an FFLONK verification key")
    reader.protocol(NAME, required=True)
    if reader.curve(None) != CURVE:
        raise UnsupportedFile(source, "curve", OTHER_CURVE)
    n_public, power = shared.read_sizes(reader, CURVE)
    if n_public > (1 << power) - RESERVED:
        reader.fail(
            "nPublic", f"{n_public} public signals on 2^{power} rows, {RESERVED} of which are blinding"
        )
    shared.read_root(reader, CURVE, power)
    roots = (shared.read_scalar(reader, CURVE, name) for name in ("w3", "w4", "w8", "wr"))
    constants = Constants(*shared.read_shifts(reader, CURVE, power), *roots)
    problem = constants.bad_root(power)
    if problem:
        reader.fail(*problem)
    tau_g2 = shared.read_tau(reader, CURVE)
    c0 = shared.read_points(reader, CURVE, ["C0"])["C0"]
    if not c0.any():
        reader.fail("C0", "the point at infinity, which no sound key has")
    return VerificationKey(n_public, power, constants, tau_g2, c0, source)


@about("proof")
def parse_proof(document: object, curve: CurveParams, source: str = "proof", strict: bool = False) -> Proof:
    """Checks a proof document for a curve; ``protocol`` and ``curve`` may be absent.

    ``strict``: numbers have to be decimal text without leading zeros.

    Raises:
        MalformedFile: a point or a value is missing, out of range or off the curve.
        UnsupportedFile: it says that it is of another protocol or curve.
    """
    reader = DocumentReader(document, source, "an FFLONK proof", strict)
    reader.protocol(NAME, required=False)
    reader.curve(curve)
    points = [reader.g1(curve, *_entry(reader, "polynomials", name)) for name in POLYNOMIALS]
    names = (*Evaluations._fields, "inv")
    *values, inv = (reader.scalar(curve, *_entry(reader, "evaluations", name)) for name in names)
    return Proof(g1_to_words(curve, points), Evaluations(*values), inv)


def _entry(reader: DocumentReader, group: str, name: str) -> tuple[str, Any]:
    """(part, value) of a field of an object in the document."""
    fields = reader.field(group)
    if not isinstance(fields, dict):
        reader.fail(group, f"expected an object, found {shown(fields)}")
    if name not in fields:
        reader.fail(f"{group}.{name}", "missing from the document")
    return f"{group}.{name}", fields[name]
