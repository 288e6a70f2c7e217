"""snarkjs's Groth16 documents: verification key, proof, public signals.

Coordinates are decimal strings. A G1 point is [x, y, "1"], a G2 point
[[x0, x1], [y0, y1], ["1", "0"]]; infinity is ["0", "1", "0"] and [["0", "0"], ["1", "0"],
["0", "0"]]. Read are rapidsnark's proofs too, which name no curve, and numbers in place
of strings. Everything is checked to be in range and on its curve; subgroups are left to
the verifier, which has a backend for them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

import numpy as np

from gpuprover.curves import BN254, CURVES, AffineG1, AffineG2, CurveParams, curve_by_name
from gpuprover.errors import MalformedFile, UnsupportedFile, about
from gpuprover.formats.json_files import parse_integer, shown
from gpuprover.formats.key_warnings import key_warnings
from gpuprover.formats.points import on_curve_g1, on_curve_g2
from gpuprover.limbs import Words, g1_to_words, g2_to_words, words_to_g1, words_to_g2

MAX_PUBLIC = 1 << 20
JsonG1 = list[str]
JsonG2 = list[list[str]]


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
    def n_public(self) -> int:
        return len(self.ic) - 1

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences that whoever trusts the key has to read (:mod:`gpuprover.formats.key_warnings`)."""
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

    __hash__ = None  # type: ignore[assignment]


def g1_to_json(point: AffineG1) -> JsonG1:
    if point is None:
        return ["0", "1", "0"]
    return [str(point[0]), str(point[1]), "1"]


def g2_to_json(point: AffineG2) -> JsonG2:
    if point is None:
        return [["0", "0"], ["1", "0"], ["0", "0"]]
    return [[str(c) for c in point[0]], [str(c) for c in point[1]], ["1", "0"]]


def proof_to_json(proof: Proof, curve: CurveParams) -> dict[str, Any]:
    """The document that ``snarkjs groth16 prove`` writes."""
    a, c = words_to_g1(curve, np.stack([proof.a, proof.c]))
    (b,) = words_to_g2(curve, proof.b)
    return {
        "pi_a": g1_to_json(a),
        "pi_b": g2_to_json(b),
        "pi_c": g1_to_json(c),
        "protocol": "groth16",
        "curve": curve.snarkjs_name,
    }


def verification_key_to_json(key: VerificationKey) -> dict[str, Any]:
    """The document that ``snarkjs zkey export verificationkey`` writes, e(α, β) included."""
    from gpuprover.reference import circom_exponent, fq12, pairing, power

    # A part of the document that no verifier needs; the reference's half a second does.
    (alpha1,), (beta2,) = words_to_g1(key.curve, key.alpha1), words_to_g2(key.curve, key.beta2)
    alpha_beta = power(fq12(key.curve), pairing(key.curve, alpha1, beta2), circom_exponent(key.curve))
    document = verification_key_points(key)
    points = document.pop("IC")
    table = [[[str(c) for c in fq2] for fq2 in fq6] for fq6 in alpha_beta]
    return {**document, "vk_alphabeta_12": table, "IC": points}


def verification_key_points(key: VerificationKey) -> dict[str, Any]:
    """The same document without e(α, β), which costs a pairing and no verifier needs."""
    alpha1, *ic = words_to_g1(key.curve, np.concatenate([key.alpha1[None], key.ic]))
    beta2, gamma2, delta2 = words_to_g2(key.curve, np.stack([key.beta2, key.gamma2, key.delta2]))
    return {
        "protocol": "groth16",
        "curve": key.curve.snarkjs_name,
        "nPublic": key.n_public,
        "vk_alpha_1": g1_to_json(alpha1),
        "vk_beta_2": g2_to_json(beta2),
        "vk_gamma_2": g2_to_json(gamma2),
        "vk_delta_2": g2_to_json(delta2),
        "IC": [g1_to_json(point) for point in ic],
    }


def digest(key: VerificationKey) -> str:
    """SHA-256 in hex of a verification key's values: equal exactly for equal keys, however written."""
    document = json.dumps(verification_key_points(key), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(document.encode()).hexdigest()


@about("verification key")
def parse_verification_key(document: object, source: str = "verification key") -> VerificationKey:
    """Checks a verification key document.

    Raises:
        MalformedFile: a field is missing, out of range or off the curve, or IC and nPublic disagree.
        UnsupportedFile: another protocol or curve.
    """
    reader = _Reader(document, source, "a Groth16 verification key")
    reader.protocol(required=True)
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
def parse_proof(
    document: object, curve: CurveParams, source: str = "proof", *, strict: bool = False
) -> Proof:
    """Checks a proof document for a curve; ``protocol`` and ``curve`` may be absent.

    ``strict``: coordinates have to be decimal text without leading zeros.

    Raises:
        MalformedFile: a point is missing, out of range or off the curve.
        UnsupportedFile: it says that it is of another protocol or curve.
    """
    reader = _Reader(document, source, "a Groth16 proof", strict)
    reader.protocol(required=False)
    reader.curve(curve)
    a = reader.g1(curve, "pi_a", reader.field("pi_a"))
    b = reader.g2(curve, "pi_b", reader.field("pi_b"))
    c = reader.g1(curve, "pi_c", reader.field("pi_c"))
    g1 = g1_to_words(curve, [a, c])
    return Proof(g1[0], g2_to_words(curve, [b])[0], g1[1])


@about("public signals")
def parse_public_signals(
    document: object,
    curve: CurveParams,
    n_public: int | None = None,
    source: str = "public signals",
    *,
    strict: bool = False,
) -> list[int]:
    """Checks public signals: a list of n_public integers in [0, r).

    ``strict``: they have to be decimal text without leading zeros.

    Raises:
        MalformedFile: no list, a value that is no integer or not below r, another number of them.
    """
    if not isinstance(document, list | tuple):
        raise MalformedFile(source, "document", f"expected a list of integers, found {shown(document)}")
    if n_public is not None and len(document) != n_public:
        raise MalformedFile(source, "document", f"{len(document)} signals, expected {n_public} for this key")
    signals = []
    for i, entry in enumerate(document):
        value = parse_integer(entry)
        if value is None:
            raise MalformedFile(source, f"signal {i}", f"expected an integer, found {shown(entry)}")
        if strict and entry != str(value):
            raise MalformedFile(source, f"signal {i}", _not_strict(entry))
        if value >= curve.r:
            raise MalformedFile(source, f"signal {i}", f"not below the prime of {curve.scalar.name}")
        signals.append(value)
    return signals


class _Reader:
    """Picks fields from a document and names the one that is wrong."""

    def __init__(self, document: object, source: str, what: str, strict: bool = False) -> None:
        self.source, self._strict = source, strict
        if not isinstance(document, dict):
            self.fail("document", f"expected {what} (a JSON object), found {shown(document)}")
        self.document: dict[str, Any] = document

    def fail(self, part: str, problem: str) -> NoReturn:
        raise MalformedFile(self.source, part, problem)

    def field(self, name: str) -> Any:
        if name not in self.document:
            self.fail(name, "missing from the document")
        return self.document[name]

    def array(self, name: str) -> Sequence[Any]:
        value = self.field(name)
        if not isinstance(value, list | tuple):
            self.fail(name, f"expected a list, found {shown(value)}")
        return value

    def protocol(self, *, required: bool) -> None:
        found = self.field("protocol") if required else self.document.get("protocol", "groth16")
        if not isinstance(found, str) or found != "groth16":
            raise UnsupportedFile(self.source, "protocol", f"expected 'groth16', found {shown(found)}")

    def curve(self, expected: CurveParams | None) -> CurveParams:
        """The curve that the document names; BN254 or the expected one where it names none."""
        default = expected or BN254
        name = self.document.get("curve", default.snarkjs_name)
        try:
            curve = curve_by_name(name) if isinstance(name, str) else None
        except KeyError:
            curve = None
        if curve is None or (expected is not None and curve != expected):
            known = [expected.snarkjs_name] if expected else [c.snarkjs_name for c in CURVES]
            raise UnsupportedFile(self.source, "curve", f"expected {' or '.join(known)}, found {shown(name)}")
        return curve

    def coordinates(self, curve: CurveParams, part: str, value: object, count: int) -> list[int]:
        if not isinstance(value, list | tuple) or len(value) != count:
            self.fail(part, f"expected a list of {count}, found {_length(value)}")
        result = []
        for entry in value:
            number = parse_integer(entry)
            if number is None:
                self.fail(part, f"expected integers as coordinates, found {shown(entry)}")
            if self._strict and entry != str(number):
                self.fail(part, _not_strict(entry))
            if number >= curve.q:
                self.fail(part, f"a coordinate is not below the base prime of {curve.name}")
            result.append(number)
        return result

    def g1(self, curve: CurveParams, part: str, value: object) -> AffineG1:
        """[x, y, 1], [x, y] or infinity [0, 1, 0]."""
        if isinstance(value, list | tuple) and len(value) == 2:
            value = [*value, 1]
        x, y, z = self.coordinates(curve, part, value, 3)
        if z == 0 and (x, y) == (0, 1):
            return None
        if z != 1:
            self.fail(part, "expected affine coordinates: the third has to be 1")
        if not on_curve_g1(curve, (x, y)):
            self.fail(part, f"the point is not on the curve {curve.name}")
        return x, y

    def g2(self, curve: CurveParams, part: str, value: object) -> AffineG2:
        """[[x0, x1], [y0, y1], [1, 0]], the first two, or infinity [[0, 0], [1, 0], [0, 0]]."""
        if isinstance(value, list | tuple) and len(value) == 2:
            value = [*value, [1, 0]]
        if not isinstance(value, list | tuple) or len(value) != 3:
            self.fail(part, f"expected a list of 3 pairs, found {_length(value)}")
        (x0, x1), (y0, y1), z = (self.coordinates(curve, part, pair, 2) for pair in value)
        if z == [0, 0] and (x0, x1, y0, y1) == (0, 0, 1, 0):
            return None
        if z != [1, 0]:
            self.fail(part, "expected affine coordinates: the third has to be [1, 0]")
        point = (x0, x1), (y0, y1)
        if not on_curve_g2(curve, point):
            self.fail(part, f"the point is not on the twist of {curve.name}")
        return point


def _not_strict(value: object) -> str:
    return f"expected decimal text without leading zeros, found {shown(value)}"


def _length(value: object) -> str:
    return f"{len(value)} entries" if isinstance(value, list | tuple) else shown(value)
