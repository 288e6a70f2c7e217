"""The API, version 1, and what orchestrators and Prometheus ask for."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response, Security
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from gpuprover.caching import keyed_digest
from gpuprover.errors import MalformedFile, ProverError
from gpuprover.formats.json_files import discard, parsed_size_bound
from gpuprover.proving import ProofResult
from gpuprover.service import models
from gpuprover.service.access import Caller, check_site
from gpuprover.service.bodies import Reservation, media_type, read_body
from gpuprover.service.core import Service
from gpuprover.service.models import inputs_text, parse
from gpuprover.service.problems import MEDIA_TYPE, Problem
from gpuprover.service.results import Name, Record
from gpuprover.service.surroundings import current
from gpuprover.settings import PRIORITIES
from gpuprover.version import VERSION

WITNESS, JSON = "application/octet-stream", "application/json"
NDJSON = "application/x-ndjson"
LONGEST_WAIT = 600
"""Seconds that ``Prefer: wait=N`` may ask for; more is as good as that."""
PIECE = 64 << 10
"""Bytes of a piece of a large answer, which a slow reader does not make us hold as a whole."""
BATCH = 64
"""Proofs that are verified together, and answered together; the first answers come after fewer."""
FIRST_BATCH = 8
POINT_BYTES = 600
"""Bytes of a public signal's point as JSON, twice."""
FEW = 1000
"""Public signals that are written in the event loop."""

_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d++)(?!\.)", re.IGNORECASE)
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_LINKS = {
    operation: {"operationId": operation, "parameters": {"proof_id": "$response.body#/id"}}
    for operation in ("get_proof", "cancel_proof")
}
_RETRY = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
_MEANING = {
    400: "The request cannot be understood: its parameters, its body, the witness's file.",
    401: "No bearer token, or none that is accepted.",
    403: "The page of another site asks, and the service has no tokens; or a priority that is not allowed.",
    404: "There is none of that name.",
    408: "The body comes too slowly.",
    409: "Another request has this Idempotency-Key; or the proof has ended, or was cancelled.",
    413: "The body is too large.",
    415: "The body is of a type that is not taken here.",
    422: "The witness does not satisfy the circuit.",
    429: "As many proofs wait as may.",
    500: "A fault of the service, or of a file that it holds.",
    503: "The service is shutting down, or lacks memory or a device.",
    504: "The time limit is reached.",
}

_bearer = HTTPBearer(auto_error=False, description="A line of the service's file of tokens, if it has any.")


def service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def admit(
    request: Request,
    service: Annotated[Service, Depends(service_of)],
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
) -> Caller:
    """Lets requests pass with a token, or where none is needed -> whose they are.

    Raises:
        Problem: 401, 403.
    """
    address = request.client.host if request.client is not None else ""
    if not service.tokens.required:
        check_site(request.scope["headers"], local=service.local)
        return service.caller(address, None)
    if credentials is None or not service.tokens.accept(credentials.credentials):
        raise Problem(
            401, "Unauthorized", "a bearer token is needed", {"WWW-Authenticate": 'Bearer realm="gpuprover"'}
        )
    return service.caller(address, credentials.credentials)


ServiceDep = Annotated[Service, Depends(service_of)]
CallerDep = Annotated[Caller, Depends(admit)]
CircuitId = Annotated[str, Path(description="Name of a circuit in the folder of keys.")]
ProofId = Annotated[str, Path(description="As the answer to the POST has it.")]
Prefer = Annotated[
    str | None,
    Header(description="`wait=N`: answer with the proof if it is made within N seconds (RFC 7240)."),
]


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For OpenAPI: errors of a route."""
    return {
        status: {
            "description": _MEANING[status],
            "content": {MEDIA_TYPE: {"schema": of("Problem")}},
            **({"headers": _RETRY} if status in (429, 503) else {}),
        }
        for status in statuses
    }


def of(model: str) -> dict[str, Any]:
    """For OpenAPI: the schema of a model."""
    return {"$ref": f"#/components/schemas/{model}"}


def request_body(schemas: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """For OpenAPI: a body that the route reads by itself; schema by media type."""
    content = {kind: {"schema": schema} for kind, schema in schemas.items()}
    return {"requestBody": {"required": True, "content": content}}


open_router = APIRouter(tags=["operations"])
router = APIRouter(prefix="/v1", dependencies=[Depends(admit)], responses=problems(401, 403))


# Proofs ----------------------------------------------------------------------------------------


@router.post(
    "/circuits/{circuit_id}/proofs",
    tags=["proofs"],
    summary="Have a proof made",
    response_model=models.ProofObject,
    responses={
        200: {
            "description": "The proof was made within the seconds that Prefer allows.",
            "headers": {"Location": {"required": True, "schema": {"type": "string"}}},
            "links": _LINKS,
        },
        202: {
            "model": models.ProofObject,
            "description": "It is being made; Location says where its state is.",
            "headers": {"Location": {"required": True, "schema": {"type": "string"}}},
            "links": _LINKS,
        },
        **problems(400, 404, 408, 409, 413, 415, 422, 429, 500, 503, 504),
    },
    openapi_extra=request_body(
        {
            WITNESS: {"type": "string", "format": "binary", "description": "A .wtns, or another system's."},
            JSON: of("ProveRequest"),
        }
    ),
)
async def create_proof(
    circuit_id: CircuitId,
    request: Request,
    service: ServiceDep,
    caller: CallerDep,
    priority: Annotated[
        int,
        Query(
            ge=-PRIORITIES,
            le=PRIORITIES,
            description="Higher ones go first; above `PROVER_PRIORITY_LIMIT` it is a 403.",
        ),
    ] = 0,
    timeout: Annotated[
        float | None,
        Query(gt=0, lt=1e9, allow_inf_nan=False, description="Seconds from now on, waiting included."),
    ] = None,
    prefer: Prefer = None,
    idempotency_key: Annotated[
        str | None,
        Header(description="The same key with the same request is the same proof: for requests sent again."),
    ] = None,
) -> Response:
    """Takes a witness, or inputs of a circuit that has its witness program beside its key.

    Errors that come before the proof is begun, or, with `Prefer`, while the client waits, are the answer's;
    later ones stand in the proof's `error`. A client that closes the connection while it waits, and has given
    no `Idempotency-Key`, cancels the proof: nobody could ask for it any more.
    """
    kind = media_type(request, WITNESS, JSON)
    if idempotency_key is not None and not _KEY.fullmatch(idempotency_key):
        raise Problem(400, "InvalidInput", "Idempotency-Key: expected 1 to 255 printable ASCII characters")
    if priority > caller.priority:
        raise Problem(403, "PriorityTooHigh", f"priority: expected at most {caller.priority} of this client")
    if idempotency_key is None:
        service.refuse_if_draining()
    await service.require_circuit(circuit_id)
    name = None if idempotency_key is None else (caller.owner, idempotency_key)
    terms = {"priority": priority, "timeout": timeout}
    record, repeated = await _take(service, request, circuit_id, kind, terms, caller, name)
    return await _answer(service, record, request, caller, prefer, repeated)


async def _take(
    service: Service,
    request: Request,
    circuit_id: str,
    kind: str,
    terms: dict[str, Any],
    caller: Caller,
    name: Name | None,
) -> tuple[Record, bool]:
    """Reads a body and has its proof begun -> its record, and whether it was there before.

    When this returns, nothing here holds the witness.
    """
    tenant = caller.tenant
    with service.budget.reserve(tenant) as reservation:
        if kind == JSON:
            body = await read_json(service, request, reservation, tenant)
        else:
            body = await read_body(request, service.body_limit, reservation, service.pace)

        async def submit() -> Record:
            witness: bytes | dict[str, bytes] = body
            if kind == JSON:
                witness = {"inputs": await service.reading(tenant, inputs_text, body)}
                reservation.shrink(2 * len(body))
            return await service.submit(circuit_id, witness, reservation, name=name, tenant=tenant, **terms)

        if name is None:
            return await submit(), False
        fingerprint = await service.reading(tenant, keyed_digest, circuit_id, kind, repr(terms), body)
        return await service.submit_once(name, fingerprint, submit)


async def read_json(service: Service, request: Request, reservation: Reservation, tenant: str) -> bytes:
    """A body of JSON; the reservation is for it, for what it is once it is parsed, and for its way to another
    process.

    Raises:
        Problem: as :func:`read_body`; 413 or 429 for what it would be once it is parsed.
    """
    body = await read_body(request, service.json_limit, reservation, service.pace)
    parsed = await service.reading(tenant, parsed_size_bound, body)
    most = service.settings.json_memory << 20
    if parsed > most:
        raise Problem(
            413,
            "BodyTooLarge",
            f"JSON of too many values: they would take up to {parsed} bytes, expected at most {most}",
        )
    reservation.grow(2 * len(body) + parsed)
    return body


async def _answer(
    service: Service, record: Record, request: Request, caller: Caller, prefer: str | None, repeated: bool
) -> Response:
    seconds = _seconds(prefer)
    headers = {"Location": f"/v1/proofs/{record.id}"}
    if seconds is not None:
        headers["Preference-Applied"] = f"wait={seconds}"
    try:
        ended = await service.wait(record, seconds or 0, request)
    except ClientDisconnect:
        if record.name is None and not repeated:
            await service.cancel(record)
        raise
    if ended and isinstance(record.outcome, ProverError):
        record.fetched = True
        problem = service.problem(record.outcome)
        problem.headers |= headers
        problem.more["proof_id"] = record.id
        raise problem
    return await proof_response(service, caller, record, 200 if ended else 202, headers)


def _seconds(prefer: str | None) -> int | None:
    match = _WAIT.search(prefer or "")
    # Of 9 digits at most, as Python refuses to read thousands of them.
    return min(int(match[1].lstrip("0")[:9] or "0"), LONGEST_WAIT) if match else None


class Pieces(Response):
    """A large answer, handed to the connection piece by piece, as its reader takes it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for begin in range(0, len(self.body), PIECE):
            piece = self.body[begin : begin + PIECE]
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def proof_response(
    service: Service, caller: Caller, record: Record, status: int, headers: dict[str, str]
) -> Response:
    result = record.outcome if isinstance(record.outcome, ProofResult) else None
    error = record.outcome if isinstance(record.outcome, ProverError) else None
    record.fetched = record.fetched or record.outcome is not None
    document = models.ProofObject.model_construct(
        id=record.id,
        state=record.state.value,
        circuit_id=record.job.circuit,
        proof=result.proof if result else None,
        public_signals=result.public_signals if result else None,
        device=result.device if result else record.job.device,
        timings=result.timings if result else {},
        error=models.Problem(**service.problem(error).document()) if error else None,
    )
    unknown = {"request_id"} if error is not None and error.role else {"request_id", "role"}
    written = partial(document.model_dump_json, exclude={"error": unknown})
    if result is None or len(result.public_signals) <= FEW:
        return Response(written(), status, headers, JSON)
    if record.written is None or _failed(record.written):
        write = service.reading(caller.tenant, lambda: written().encode())
        record.written = asyncio.create_task(write)
    return Pieces(await asyncio.shield(record.written), status, headers, JSON)


def _failed(task: asyncio.Task[bytes]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


@router.get(
    "/proofs/{proof_id}",
    tags=["proofs"],
    summary="A proof, or how far it is",
    response_model=models.ProofObject,
    responses=problems(400, 404),
)
async def get_proof(
    proof_id: ProofId, request: Request, service: ServiceDep, caller: CallerDep, prefer: Prefer = None
) -> Response:
    """Results are kept for a while (`PROVER_RESULT_TTL`, `PROVER_RESULT_LIMIT`); then this is a 404."""
    record, seconds = _record(service, proof_id), _seconds(prefer)
    await service.wait(record, seconds or 0, request)
    headers = {} if record.outcome is not None else {"Retry-After": "1"}
    if seconds is not None:
        headers["Preference-Applied"] = f"wait={seconds}"
    return await proof_response(service, caller, record, 200, headers)


@router.delete(
    "/proofs/{proof_id}",
    tags=["proofs"],
    summary="Cancel a proof",
    response_model=models.ProofObject,
    responses=problems(404, 409),
)
async def cancel_proof(proof_id: ProofId, service: ServiceDep, caller: CallerDep) -> Response:
    """One that was cancelled before is answered in the same way; one that has ended otherwise is a 409."""
    record = _record(service, proof_id)
    if not await service.cancel(record) and record.state.value != "cancelled":
        raise Problem(409, "AlreadyEnded", f"the proof has ended: {record.state.value}")
    return await proof_response(service, caller, record, 200, {})


def _record(service: Service, proof_id: str) -> Record:
    record = service.results.get(proof_id)
    if record is None:
        raise Problem(404, "ProofNotFound", "there is no proof of that id, or it was kept for long enough")
    return record


# Circuits --------------------------------------------------------------------------------------


@router.get("/circuits", tags=["circuits"], summary="All circuits", responses=problems(500))
async def list_circuits(service: ServiceDep) -> models.Circuits:
    loaded = set((await service.status()).loaded_circuits)
    names = sorted(await service.circuits())
    return models.Circuits(circuits=[models.Circuit(id=name, loaded=name in loaded) for name in names])


async def _details(service: Service, circuit_id: str, loaded: bool | None = None) -> models.CircuitDetails:
    await service.require_circuit(circuit_id)
    key = await service.briefly(service.prover.known_key, circuit_id)
    if loaded is None:
        loaded = circuit_id in (await service.status()).loaded_circuits
    return models.CircuitDetails(
        id=circuit_id,
        loaded=loaded,
        protocol=key.protocol,
        curve=key.curve,
        public_signals=key.n_public,
    )


@router.get("/circuits/{circuit_id}", tags=["circuits"], summary="A circuit", responses=problems(404, 500))
async def get_circuit(circuit_id: CircuitId, service: ServiceDep) -> models.CircuitDetails:
    return await _details(service, circuit_id)


@router.get(
    "/circuits/{circuit_id}/verification-key",
    tags=["circuits"],
    summary="Its verification key, as snarkjs reads it",
    response_model=dict[str, Any],
    responses=problems(404, 429, 500),
)
async def get_verification_key(circuit_id: CircuitId, service: ServiceDep, caller: CallerDep) -> Response:
    """Without `vk_alphabeta_12`, which no verifier needs."""
    await service.require_circuit(circuit_id)
    key = await service.briefly(service.prover.known_key, circuit_id)
    if key.n_public <= FEW:
        return JSONResponse(key.document)
    with service.budget.reserve(caller.tenant) as reservation:
        reservation.grow(POINT_BYTES * key.n_public)
        text = await service.reading(caller.tenant, _written, key.document)
        reservation.hand_on()

    async def pieces() -> AsyncIterator[bytes]:
        for begin in range(0, len(text), PIECE):
            yield text[begin : begin + PIECE]

    return _Streamed(pieces(), reservation, JSON)


def _written(key: dict[str, Any]) -> bytes:
    """JSON of a verification key, point by point of its lists: all at once would hold the interpreter."""

    def text(value: Any) -> str:
        return f"[{', '.join(map(json.dumps, value))}]" if isinstance(value, list) else json.dumps(value)

    members = ", ".join(f"{json.dumps(name)}: {text(value)}" for name, value in key.items())
    return f"{{{members}}}".encode()


@router.post(
    "/circuits/{circuit_id}/load",
    tags=["circuits"],
    summary="Load its key, and keep it loaded",
    responses=problems(400, 404, 500, 503, 504),
)
async def load_circuit(
    circuit_id: CircuitId,
    service: ServiceDep,
    caller: CallerDep,
    timeout: Annotated[float, Query(gt=0, le=3600, allow_inf_nan=False, description="Seconds.")] = 60.0,
) -> models.CircuitDetails:
    """After a 504 the load goes on."""
    service.refuse_if_draining()
    await service.require_circuit(circuit_id)
    await service.loading(caller.tenant, service.prover.load, circuit_id, pin=True, timeout=timeout)
    return await _details(service, circuit_id, loaded=True)


@router.post(
    "/circuits/{circuit_id}/unload",
    tags=["circuits"],
    summary="Let its key go; the next proof loads it again",
    responses=problems(404, 500),
)
async def unload_circuit(circuit_id: CircuitId, service: ServiceDep) -> models.CircuitDetails:
    await service.require_circuit(circuit_id)
    await service.briefly(service.prover.unload, circuit_id)
    return await _details(service, circuit_id, loaded=False)


# Verification ----------------------------------------------------------------------------------


async def _asked(
    service: Service,
    request: Request,
    model: type[models._Request],
    reservation: Reservation,
    tenant: str,
) -> Any:
    media_type(request, JSON)
    body = await read_json(service, request, reservation, tenant)
    return await service.reading(tenant, parse, model, body)


@router.post(
    "/verify",
    tags=["verification"],
    summary="Verify a proof",
    responses=problems(400, 404, 408, 413, 415, 429, 500, 503, 504),
    openapi_extra=request_body({JSON: of("VerifyRequest")}),
)
async def verify(request: Request, service: ServiceDep, caller: CallerDep) -> models.Verdict:
    """A damaged proof is a 400; one that does not hold is answered with `"valid": false`."""
    tenant = caller.tenant
    with service.budget.reserve(tenant) as reservation:
        asked: models.VerifyRequest = await _asked(
            service, request, models.VerifyRequest, reservation, tenant
        )
        await service.require_circuit(asked.circuit_id)
        key = await service.briefly(service.prover.known_key, asked.circuit_id)
        if len(asked.public_signals) != key.n_public:
            # Here, as they would travel to the verifier first.
            found = f"{len(asked.public_signals)} of them, expected {key.n_public} for this key"
            await service.reading(tenant, discard, asked.public_signals)
            service.metrics.not_verified(1)
            raise MalformedFile("public signals", "document", found, role="public signals")
        statements = [(asked.public_signals, asked.proof)]
        (valid,) = await service.verify(tenant, asked.circuit_id, statements, single=True)
        return models.Verdict(valid=valid)


@router.post(
    "/verify/batch",
    tags=["verification"],
    summary="Verify many proofs of one circuit",
    response_class=Response,
    responses={
        200: {
            "description": "A line of JSON for each proof, in their order, as they are verified.",
            "content": {NDJSON: {"schema": of("BatchVerdict")}},
        },
        **problems(400, 404, 408, 413, 415, 429, 500, 503, 504),
    },
    openapi_extra=request_body({JSON: of("VerifyBatchRequest")}),
)
async def verify_batch(request: Request, service: ServiceDep, caller: CallerDep) -> Response:
    """A damaged proof does not hold. What goes wrong after the first line is the last line, as `error`."""
    tenant = caller.tenant
    with service.budget.reserve(tenant) as reservation:
        asked: models.VerifyBatchRequest = await _asked(
            service, request, models.VerifyBatchRequest, reservation, tenant
        )
        await service.require_circuit(asked.circuit_id)
        key = await service.briefly(service.prover.known_key, asked.circuit_id)
        # Of those that are too many, one is enough for the verifier to see it.
        most = key.n_public + 1
        statements = [(one.public_signals[:most], one.proof) for one in asked.proofs]
        circuit = asked.circuit_id
        del asked

        async def lines(begin: int, end: int) -> bytes:
            found = await service.verify(tenant, circuit, statements[begin:end])
            return b"".join(
                json.dumps({"index": begin + i, "valid": valid}).encode() + b"\n"
                for i, valid in enumerate(found)
            )

        # Before the answer begins: what is wrong with all of them is still an error with a status of its own.
        first = await lines(0, FIRST_BATCH)
        reservation.hand_on()

    async def answer() -> AsyncIterator[bytes]:
        try:
            yield first
            for begin in range(FIRST_BATCH, len(statements), BATCH):
                yield await lines(begin, begin + BATCH)
        except ProverError as error:
            service.tell(error)
            context = current.get()
            problem = service.problem(error).document(context.request_id if context else None)
            yield json.dumps({"error": problem}).encode() + b"\n"

    return _Streamed(answer(), reservation, NDJSON)


class _Streamed(StreamingResponse):
    """Pieces, and the reservation of what they are made of, which ends with them or with the client."""

    def __init__(self, pieces: AsyncIterator[bytes], reservation: Reservation, media_type: str) -> None:
        super().__init__(pieces, media_type=media_type)
        self._reservation = reservation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._reservation.release()


# State -----------------------------------------------------------------------------------------


@router.get("/status", tags=["operations"], summary="Queue, workers, devices, memory")
async def status(service: ServiceDep) -> models.Status:
    return models.Status(**await service.state())


@open_router.get("/healthz", summary="Whether the process answers")
async def healthz() -> models.Health:
    return models.Health(status="ok")


@open_router.get(
    "/readyz",
    summary="Whether it takes proofs",
    response_model=models.Health,
    responses={503: {"model": models.Health, "description": "Before preload is done, or while draining."}},
)
async def readyz(service: ServiceDep) -> Response:
    """Stays 200 while workers start again: the queue takes proofs meanwhile."""
    ready = await service.ready()
    words = "ready" if ready else "draining" if service.draining else "starting"
    return JSONResponse({"status": words}, 200 if ready else 503)


@open_router.get("/version", summary="What answers")
async def version() -> models.Version:
    return models.Version(name="gpuprover", version=VERSION, api="v1")


@open_router.get(
    "/metrics",
    summary="For Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(service: ServiceDep) -> Response:
    text = await service.rendered()
    return Response(text, headers={"Content-Type": service.metrics.CONTENT_TYPE})
