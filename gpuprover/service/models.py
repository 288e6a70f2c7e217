"""The documents of the API: what OpenAPI says of them, and what answers are checked against."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gpuprover.errors import about
from gpuprover.formats.json_files import parse_json
from gpuprover.service.problems import Problem as ProblemError


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ProveRequest(_Request):
    """Values of a circuit's input signals; the circuit needs its witness program, ``NAME.wasm``."""

    inputs: dict[str, Any] = Field(
        description="By name of the signal: an integer, its decimal or 0x form, or arrays of those.",
        examples=[{"a": "3", "b": ["5", "7"]}],
    )


Signals = Annotated[list[str | int], Field(description="Public signals: decimal strings, or integers.")]
Document = Annotated[
    dict[str, Any], Field(description="A proof as snarkjs writes it: pi_a, pi_b, pi_c, protocol, curve.")
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
    proofs: list[Statement] = Field(min_length=1)


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


class Groth16Proof(BaseModel):
    """snarkjs's document; coordinates are decimal strings."""

    pi_a: list[str]
    pi_b: list[list[str]]
    pi_c: list[str]
    protocol: Literal["groth16"]
    curve: str


class ProofObject(BaseModel):
    """A proof that was asked for."""

    id: str
    state: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    circuit_id: str
    proof: Groth16Proof | None = Field(description="Once it has succeeded.")
    public_signals: list[str] | None = Field(description="Once it has succeeded: decimal strings.")
    device: str | None = Field(description="That makes it, or made it: cpu, cuda:0, ...")
    timings: dict[str, float] = Field(description="Seconds by phase, once it has succeeded.")
    error: Problem | None = Field(description="Why it failed or was cancelled.")


class Circuit(BaseModel):
    id: str
    loaded: bool = Field(description="Whether its key is loaded; the first proof loads it otherwise.")


class CircuitDetails(Circuit):
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
    """A request's body as a model.

    Raises:
        MalformedFile: it is no JSON.
        Problem: 400, it has another shape; no value is shown.
    """
    with about("body"):
        document = parse_json(body, "the body")
    try:
        return model.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = ".".join(str(part)[:40] for part in first["loc"]) or "document"
        raise ProblemError(400, "InvalidInput", f"the body: {where}: {first['msg']}") from None
