"""A second proof system, of a few lines: knowledge of a square root, without blinding and so without secrecy.

The witness is x and y with x = y²; x is public. Its file is JSON, and the key's is no ``.zkey``: keys and
witnesses are of kinds of their own. The key is the generators, named ``left`` and ``right``. The proof is
y·G1 and y·G2, and holds where e(y·G1, y·G2) = e(x·G1, G2). Whatever stands above the proof systems knows
this one by its record alone, too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gpuprover.backend import Backend
from gpuprover.curves import BN254, CurveParams, Group, curve_by_name
from gpuprover.demand import Budget, Demand, KeyBases
from gpuprover.errors import InvalidInput, MalformedFile, UnsatisfiedWitness, UnsupportedFile, WitnessMismatch
from gpuprover.formats.binfile import Source
from gpuprover.formats.snarkjs_json import (
    DocumentReader,
    g1_to_json,
    g2_to_json,
    parse_public_signals,
)
from gpuprover.formats.wtns import Allocate
from gpuprover.job import Job
from gpuprover.limbs import (
    Words,
    g1_to_words,
    g2_to_words,
    generator,
    ints_to_words,
    negative,
    words_to_g1,
    words_to_g2,
)
from gpuprover.systems import system
from gpuprover.systems.system import KeyFile, ProofSystem
from gpuprover.witness_source import WitnessSource

NAME = "toy"
KEYS = KeyFile(b"toy key of ", ".root", ".square")


@dataclass(frozen=True)
class VerificationKey:
    curve: CurveParams
    source: str = "verification key"
    protocol = NAME
    n_public = 1
    warnings = ()

    @property
    def document(self) -> dict[str, Any]:
        return {"protocol": NAME, "curve": self.curve.snarkjs_name, "nPublic": 1}

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.document, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class ProvingKey:
    path: str
    curve: CurveParams
    size: int
    protocol = NAME
    constraints, n_public, n_vars = 1, 1, 2
    warnings = ()

    @property
    def vk(self) -> VerificationKey:
        return VerificationKey(self.curve)

    @property
    def verification_key(self) -> dict[str, Any]:
        return self.vk.document

    @cached_property
    def demand(self) -> Demand:
        bases = (KeyBases("left", Group.G1, 1), KeyBases("right", Group.G2, 1))
        return Demand(NAME, self.curve, 1, (), bases, (), (), (("left", "right"),), rehearse)


@dataclass(frozen=True)
class Proof:
    left: Words
    right: Words


@dataclass(frozen=True)
class Witness:
    x: int
    y: int
    source: str
    nbytes = 64


def write_key(path: Path, curve: CurveParams = BN254) -> None:
    path.write_bytes(KEYS.leading + curve.name.encode())


def write_witness(path: Path, y: int, x: int | None = None, curve: CurveParams = BN254) -> None:
    path.write_text(json.dumps([y * y % curve.r if x is None else x, y]))


def load_key(source: Source, parameters: object = None) -> ProvingKey:
    assert isinstance(source, str | Path)
    data = Path(source).read_bytes()
    curve = curve_by_name(data.removeprefix(KEYS.leading).decode())
    return ProvingKey(f"{source} with {parameters}" if parameters else str(source), curve, len(data))


def read_witness(
    key: ProvingKey, source: WitnessSource, job: Job, memory_limit: int | None, allocate: Allocate
) -> Witness:
    content, name = source.content_of(100, job)
    try:
        x, y = json.loads(content)
    except (TypeError, ValueError):
        raise MalformedFile(name, "", "expected [x, y]", role="witness") from None
    return Witness(x, y, name)


def sums(curve: CurveParams, y: Words, backend: Backend) -> list[Words]:
    parts = {"left": Group.G1, "right": Group.G2}
    bases = [backend.bases(name, generator(curve, group)[None]) for name, group in parts.items()]
    ((left, right),) = backend.msm_many([(bases, y)])
    backend.free(*bases)
    return [left, right]


def rehearse(demand: Demand, backend: Backend) -> None:
    sums(demand.curve, np.empty((demand.witness, demand.curve.scalar.limbs), dtype=np.uint64), backend)


def prove(key: ProvingKey, witness: Witness, backend: Backend, blinding: Any, budget: Budget) -> Proof:
    with backend.session(key.demand, key, budget), backend.job.phase("msm"):
        return Proof(*sums(key.curve, ints_to_words([witness.y], key.curve.scalar.limbs), backend))


def check_witness(key: ProvingKey, witness: Witness) -> None:
    if not 0 <= max(witness.x, witness.y) < key.curve.r:
        raise WitnessMismatch("expected values of the key's field", path=witness.source, role="witness")


def verify(
    key: VerificationKey,
    public: Sequence[int],
    proof: Proof,
    backend: Backend,
    key_source: str = "",
    proof_source: str = "proof",
) -> bool:
    points, g1 = backend.points, generator(key.curve, Group.G1)
    if points.first_bad_point(Group.G1, proof.left[None]) >= 0:
        raise MalformedFile(proof_source, "left", "outside the subgroup of order r", role="proof")
    x = points.linear_combination(Group.G1, g1[None], public)
    sides = np.stack([proof.left, negative(key.curve, x)])
    return points.pairing_check(sides, np.stack([proof.right, generator(key.curve, Group.G2)]))


def checked(
    key: ProvingKey, witness: Witness, public: Sequence[int], proof: Proof, backend: Backend
) -> Proof:
    if verify(key.vk, public, proof, backend):
        return proof
    raise UnsatisfiedWitness("x is not the square of y", path=witness.source, role="witness")


def verify_documents(
    key: VerificationKey, statements: Sequence[tuple[object, object]], backend: Backend
) -> list[bool]:
    found = []
    for signals, document in statements:
        try:
            public = parse_public_signals(signals, key.curve, 1)
            found.append(verify(key, public, parse_proof(document, key.curve), backend))
        except (MalformedFile, UnsupportedFile):
            found.append(False)
    return found


def write_proof(proof: Proof, curve: CurveParams) -> dict[str, Any]:
    (left,), (right,) = words_to_g1(curve, proof.left), words_to_g2(curve, proof.right)
    return {
        "left": g1_to_json(left),
        "right": g2_to_json(right),
        "protocol": NAME,
        "curve": curve.snarkjs_name,
    }


def parse_proof(document: object, curve: CurveParams, source: str = "proof", strict: bool = False) -> Proof:
    reader = DocumentReader(document, source, "a toy proof", strict)
    reader.protocol(NAME, required=False)
    reader.curve(curve)
    left = reader.g1(curve, "left", reader.field("left"))
    right = reader.g2(curve, "right", reader.field("right"))
    return Proof(g1_to_words(curve, [left])[0], g2_to_words(curve, [right])[0])


def parse_verification_key(document: object, source: str = "verification key") -> VerificationKey:
    reader = DocumentReader(document, source, "a toy verification key")
    reader.protocol(NAME, required=True)
    return VerificationKey(reader.curve(None), source)


def _absent(*_: Any) -> Any:
    raise InvalidInput("toy: there is no such thing")


SYSTEM = ProofSystem(
    name=NAME,
    host_parts=(),
    load_key=load_key,
    read_verification_key=lambda source, parameters=None: load_key(source, parameters).vk,
    parse_verification_key=parse_verification_key,
    check_key=lambda key, backend: None,
    check_every_point=lambda key, backend: None,
    check_blinding=_absent,
    check_witness=check_witness,
    public_signals=lambda key, witness: [witness.x],
    prove=prove,
    checked=checked,
    in_subgroups=lambda key, proof, backend: proof,
    write_proof=write_proof,
    parse_proof=parse_proof,
    sample_proof=lambda key: Proof(generator(key.curve, Group.G1), generator(key.curve, Group.G2)),
    verify=verify,
    verify_documents=verify_documents,
    describe_key=lambda key: {
        "protocol": NAME,
        "curve": key.curve.name,
        "constraints": 1,
        "variables": 2,
        "public_signals": 1,
        "domain_size": 1,
    },
    check_whole_key=_absent,
    setup=_absent,
    setup_memory=_absent,
    outline=_absent,
    solidity_verifier=_absent,
    solidity_calldata=_absent,
    read_curve=lambda source: load_key(source).curve,
    read_witness=read_witness,
    parameters_apart=True,
)


def register() -> None:
    """One line in each of the two tables."""
    system._SYSTEMS[NAME] = f"{__name__}:SYSTEM"
    system._KEY_FILES[NAME] = KEYS
