"""The documents of the API: what OpenAPI says of them, and what answers are checked against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gpuprover.errors import about
from gpuprover.formats.json_files import discard, parse_json
from gpuprover.service.problems import Problem as ProblemError

MAX_BATCH = 10_000
"""Proofs in one request."""
MAX_VALUES, MAX_CONTAINERS = 1 << 19, 1 << 18
"""Values in one request, arrays and objects among them."""
MAX_PROOF = 256
"""Values in one proof; one of PLONK has 44."""


class _Request(BaseModel):
    """Says what a body looks like; :func:`parse` checks it. Pydantic would collect errors of every element,
    in hundreds of times the memory of the body."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ProveRequest(_Request):
    """Values of a circuit's input signals; the circuit needs its witness program, ``NAME.wasm``."""

    inputs: dict[str, Any] = Field(
        description="By name of the signal: an integer, its decimal or 0x form, or arrays of those.",
        examples=[{"a": "3", "b": ["5", "7"]}],
    )


Signals = Annotated[list[str | int], Field(description="Public signals: decimal strings, or integers.")]
Document = Annotated[
    dict[str, Any], Field(description="A proof as snarkjs writes it, and as answers have it.")
]


class Statement(_Request):
    """A proof, and what it shows."""

    public_signals: Signals
    proof: Document


class VerifyRequest(Statement):
    """A proof, and the circuit that it is of."""

    circuit_id: str


class VerifyBatchRequest(_Request):
    """Proofs of one circuit."""

    circuit_id: str
    proofs: list[Statement] = Field(min_length=1, max_length=MAX_BATCH)


class Problem(BaseModel):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    kind: str = Field(description="What programs match on: QueueFull, UnsatisfiedWitness, ...")
    role: str | None = Field(
        default=None,
        description="What it is about, where that is known: witness, proof, key, witness program, ...",
    )
    request_id: str | None = None


class ProofObject(BaseModel):
    """A proof that was asked for."""

    id: str
    state: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    circuit_id: str
    proof: dict[str, Any] | None = Field(description="Once it has succeeded.")
    public_signals: list[str] | None = Field(description="Once it has succeeded: decimal strings.")
    device: str | None = Field(description="That makes it, or made it: cpu, cuda:0, ...")
    timings: dict[str, float] = Field(description="Seconds by phase, once it has succeeded.")
    error: Problem | None = Field(description="Why it failed or was cancelled.")


class Circuit(BaseModel):
    id: str
    loaded: bool = Field(description="Whether its key is loaded; the first proof loads it otherwise.")


class CircuitDetails(Circuit):
    protocol: str = Field(description="The proof system, as snarkjs calls it.")
    curve: str = Field(description="bn128 or bls12381, as snarkjs calls them.")
    public_signals: int = Field(description="How many a proof has.")


class Circuits(BaseModel):
    circuits: list[Circuit]


class Verdict(BaseModel):
    valid: bool


class BatchVerdict(BaseModel):
    """A line of the answer: of the proof at ``index``, or with ``error`` the last one."""

    index: int | None = None
    valid: bool | None = None
    error: Problem | None = None


class Health(BaseModel):
    status: str


class Version(BaseModel):
    name: Literal["gpuprover"]
    version: str
    api: Literal["v1"]


class LatestProof(BaseModel):
    id: str
    circuit_id: str
    protocol: str | None = Field(description="The proof system; null if the key could not be loaded.")
    state: str
    device: str | None
    seconds: float | None
    finished: float | None = Field(description="Seconds since the epoch.")


class Status(BaseModel):
    """The service, and the status of its prover (see ``Prover.get_status()``); sizes are bytes."""

    model_config = ConfigDict(extra="allow")

    ready: bool
    draining: bool
    version: str
    uptime: float = Field(description="Seconds.")
    results: int = Field(description="Ended proofs whose result can be fetched.")
    body_bytes: int = Field(description="Of requests that are open, and of witnesses that wait.")
    latest_proofs: list[LatestProof]
    active_jobs: int
    queued_jobs: int
    memory_usage: int
    memory_limit: int
    loaded_circuits: list[str]


BESIDES: tuple[type[BaseModel], ...] = (
    ProveRequest,
    VerifyRequest,
    VerifyBatchRequest,
    BatchVerdict,
    Problem,
)
"""Models that no route names as its response; OpenAPI gets them besides."""


def parse(model: type[_Request], body: bytes) -> Any:
    """A request's body as a model. The first thing that is wrong with it ends the work.

    Raises:
        MalformedFile: it is no JSON.
        Problem: 400, it has another shape; 413, it has too many proofs; no value is shown.
    """
    document = read(body)
    try:
        return _CHECKS[model](document, "document")
    except ProblemError:
        discard(document)
        raise


def inputs_text(body: bytes, *, bare: bool = False) -> bytes:
    """The JSON text of the inputs in a :class:`ProveRequest`, or of a body that is them (``bare``).

    The process that proves parses it: here the values are looked at, and freed a few at a time. Written anew
    they would hold the interpreter, and with it the event loop, for as long as 32 MiB take.

    Raises:
        MalformedFile: it is no JSON.
        Problem: 400, it has another shape.
    """
    document = read(body)
    try:
        if bare:
            if type(document) is not dict:
                raise ProblemError(400, "InvalidInput", "the body: expected an object of signal names")
            return body
        (inputs,) = _members(document, "document", ProveRequest)
        _object(inputs, "inputs")
    finally:
        discard(document)
    # The one name in it decodes to six letters, of which no escape has a colon.
    return body[body.index(b":") + 1 : body.rindex(b"}")]


def read(body: bytes) -> Any:
    """The values of a body's JSON.

    Raises:
        MalformedFile: it is none, or has too many values.
    """
    with about("body"):
        return parse_json(body, "the body", max_values=MAX_VALUES, max_containers=MAX_CONTAINERS)


def _wrong(where: str, expected: str) -> ProblemError:
    return ProblemError(400, "InvalidInput", f"the body: {where}: expected {expected}")


def _members(document: Any, where: str, model: type[_Request]) -> list[Any]:
    """The values of an object that has the fields of a model, in their order, and no others."""
    if type(document) is not dict:
        raise _wrong(where, "an object")
    names = list(model.model_fields)
    for name in names:
        if name not in document:
            raise _wrong(where, f"an object with the name {name!r}")
    if len(document) > len(names):
        unknown = next(name for name in document if name not in names)
        raise _wrong(where, f"no name but {', '.join(names)}, found {unknown[:40]!r}")
    return [document[name] for name in names]


def _object(value: Any, where: str) -> dict[str, Any]:
    if type(value) is not dict:
        raise _wrong(where, "an object")
    return value


def _proof(value: Any, where: str) -> dict[str, Any]:
    pending: list[Any] = [_object(value, where)]
    count = 0
    while pending:
        inner = pending.pop()
        count += len(inner)
        if count > MAX_PROOF:
            raise _wrong(where, f"a proof of at most {MAX_PROOF} values")
        values = inner if type(inner) is list else inner.values()
        pending += [one for one in values if type(one) is list or type(one) is dict]
    return value  # type: ignore[no-any-return]


def _text(value: Any, where: str) -> str:
    if type(value) is not str:
        raise _wrong(where, "a string")
    return value


def _signals(value: Any, where: str) -> list[str | int]:
    if type(value) is not list:
        raise _wrong(where, "a list of public signals")
    for i, signal in enumerate(value):
        if type(signal) is not str and type(signal) is not int:
            raise _wrong(f"{where}.{i}", "a decimal string or an integer")
    return value


def _statement(document: Any, where: str) -> Statement:
    signals, proof = _members(document, where, Statement)
    return Statement.model_construct(
        public_signals=_signals(signals, f"{where}.public_signals"), proof=_proof(proof, f"{where}.proof")
    )


def _verify(document: Any, where: str) -> VerifyRequest:
    signals, proof, circuit = _members(document, where, VerifyRequest)
    return VerifyRequest.model_construct(
        public_signals=_signals(signals, "public_signals"),
        proof=_proof(proof, "proof"),
        circuit_id=_text(circuit, "circuit_id"),
    )


def _verify_batch(document: Any, where: str) -> VerifyBatchRequest:
    circuit, proofs = _members(document, where, VerifyBatchRequest)
    circuit_id = _text(circuit, "circuit_id")
    if type(proofs) is not list or not proofs:
        raise _wrong("proofs", "a list of at least one proof")
    if len(proofs) > MAX_BATCH:
        raise ProblemError(413, "BodyTooLarge", f"{len(proofs)} proofs, expected at most {MAX_BATCH}")
    statements = [_statement(proof, f"proofs.{i}") for i, proof in enumerate(proofs)]
    return VerifyBatchRequest.model_construct(circuit_id=circuit_id, proofs=statements)


_CHECKS: dict[type[_Request], Callable[[Any, str], Any]] = {
    VerifyRequest: _verify,
    VerifyBatchRequest: _verify_batch,
}
