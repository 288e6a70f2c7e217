"""The routes of Midnight's proof server, with its bodies and statuses.

Differences, all of which its clients take: errors say what is wrong; statuses 500 and 503, which midnight-js
answers by trying again, are kept for what may succeed then; a check does not wait behind proofs; a client
that goes away cancels its proof. ``/prove-tx``, which has long been deprecated, is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import ClientDisconnect

from gpuprover.errors import ProverError, UnsatisfiedWitness
from gpuprover.midnight.envelopes import (
    read_check_request,
    read_prove_request,
    write_check_reply,
    write_proof_reply,
)
from gpuprover.midnight.ir.files import read_circuit
from gpuprover.proving import ProofResult
from gpuprover.service import page
from gpuprover.service.access import Caller
from gpuprover.service.bodies import read_body
from gpuprover.service.core import Service
from gpuprover.service.midnight.proof_server import ProofServer, sent
from gpuprover.service.problems import Problem
from gpuprover.service.routes import service_of
from gpuprover.service.surroundings import KIND
from gpuprover.version import VERSION

BINARY = "application/octet-stream"
LARGEST_K = 25
"""Of the published parameters."""
UNLIMITED = 1_000_000
"""A ``queue_limit`` that stands for none: memory is what bounds the queue then."""
MARGIN_SECONDS = 60.0
"""Beyond a proof's own time limit, after which the engine has ended it."""

_STATUS = {
    **dict.fromkeys(("InvalidInput", "MalformedFile", "UnsupportedFile", "WitnessMismatch"), 400),
    **dict.fromkeys(("UnsatisfiedWitness", "CircuitNotFound"), 400),
    "OutOfMemory": 507,
    "ProofGenerationFailed": 502,
}
"""Kinds of errors that have another status here, as clients would try again what ends in the same way: keys
come from them, and parameters that are missing are missing a second later."""


class _Route(APIRoute):
    """Answers errors as text, as these clients show it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            service = service_of(request)
            try:
                return await handle(request)
            except Problem as problem:
                return refusal(request, problem)
            except RequestValidationError:
                return refusal(request, Problem(404, "NotFound", "Not Found"))
            except ProverError as error:
                service.tell(error)
                told = service.problem(error)
                told.status = _STATUS.get(error.kind, told.status)
                return refusal(request, told)

        return answer


def refusal(request: Request, problem: Problem) -> Response:
    """An error as text, of one line."""
    request.scope[KIND] = problem.kind
    return PlainTextResponse(problem.detail, problem.status, problem.headers)


_bearer = HTTPBearer(auto_error=False)


async def admit(
    request: Request,
    service: Annotated[Service, Depends(service_of)],
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
) -> Caller:
    """Lets requests pass with a token, or where none is needed, from pages of any site -> whose they are.

    Raises:
        Problem: 401.
    """
    address = request.client.host if request.client is not None else ""
    if not service.tokens.required:
        return service.caller(address, None)
    if credentials is None or not service.tokens.accept(credentials.credentials):
        headers = {"WWW-Authenticate": 'Bearer realm="gpuprover"'}
        raise Problem(401, "Unauthorized", "a bearer token is needed", headers)
    return service.caller(address, credentials.credentials)


def _server(request: Request) -> ProofServer:
    server: ProofServer = request.app.state.midnight
    return server


ServiceDep = Annotated[Service, Depends(service_of)]
ServerDep = Annotated[ProofServer, Depends(_server)]
CallerDep = Annotated[Caller, Depends(admit)]

router = APIRouter(include_in_schema=False, route_class=_Route)

METHODS = {
    **dict.fromkeys(("/", "/health", "/version", "/proof-versions", "/ready", "/fetch-params/{k}"), "GET"),
    **dict.fromkeys(("/k", "/check", "/prove", "/prove-tx"), "POST"),
}
"""Path -> the method that it has."""


# State -----------------------------------------------------------------------------------------


def _timestamp() -> str:
    """The time now, as the network's own server writes it."""
    now = datetime.now(UTC)
    fraction = f"{now.microsecond:06d}".rstrip("0") or "0"
    return f"{now:%Y-%m-%d %H:%M:%S}.{fraction} +00:00:00"


@router.get("/health")
async def midnight_health() -> Response:
    return JSONResponse({"status": "ok", "timestamp": _timestamp()})


@router.get("/")
async def midnight_root(request: Request) -> Response:
    """The status page for browsers, and for programs as ``/health``."""
    if "text/html" in request.headers.get("accept", ""):
        return await page.status_page()
    return await midnight_health()


@router.get("/version")
async def midnight_version() -> Response:
    return PlainTextResponse(VERSION)


@router.get("/proof-versions")
async def midnight_proof_versions() -> Response:
    return PlainTextResponse('["V2"]')


@router.get("/ready")
async def midnight_ready(service: ServiceDep, server: ServerDep) -> Response:
    """503 before the first proof was made, while the queue is full, and while nothing can be proved."""
    status, limit = await service.status(), service.prover.settings.queue_limit
    ready = not server.problem and await service.ready() and status.queued_jobs < limit
    document = {
        "status": "ok" if ready else "busy",
        "jobsProcessing": status.active_jobs,
        "jobsPending": status.queued_jobs,
        "jobCapacity": 0 if limit >= UNLIMITED else limit,
        "timestamp": _timestamp(),
        **({"problem": server.problem} if server.problem else {}),
    }
    return JSONResponse(document, 200 if ready else 503)


@router.get("/fetch-params/{k}")
async def midnight_fetch_params(k: int, service: ServiceDep, server: ServerDep) -> Response:
    """Whether there are parameters for circuits of 2^k rows; nothing is fetched."""
    if not 0 <= k <= LARGEST_K:
        raise Problem(404 if not 0 <= k < 256 else 400, "InvalidInput", f"k={k} out of range")
    try:
        await service.briefly(server.require_parameters, k)
    except ProverError as error:
        raise Problem(404, error.kind, error.told) from None
    return PlainTextResponse("success")


MOST_K = 20
"""Logarithm of the rows of circuits whose size is told: to lay out more takes minutes and gigabytes."""


# Work ------------------------------------------------------------------------------------------


@router.post("/k")
async def midnight_k(request: Request, service: ServiceDep, caller: CallerDep) -> Response:
    """The size of a circuit, as a power of two, in decimal."""
    with service.budget.reserve(caller.tenant) as reservation:
        body = await read_body(request, service.body_limit, reservation, service.pace)

        def size() -> int:
            from gpuprover.midnight.circuit.keygen import size_of

            with sent():
                return int(size_of(read_circuit(body), MOST_K).k)

        # The circuit is laid out: checks need not wait for that.
        return PlainTextResponse(str(await service.loading(caller.tenant, size)))


@router.post("/check")
async def midnight_check(
    request: Request, service: ServiceDep, server: ServerDep, caller: CallerDep
) -> Response:
    with service.budget.reserve(caller.tenant) as reservation:
        body = await read_body(request, service.body_limit, reservation, service.pace)

        def check() -> bytes:
            asked = read_check_request(body)
            return write_check_reply(server.check(asked.preimage, asked.circuit))

        return Response(await service.reading(caller.tenant, check), media_type=BINARY)


@router.post("/prove")
async def midnight_prove(
    request: Request, service: ServiceDep, server: ServerDep, caller: CallerDep
) -> Response:
    """A client that closes the connection cancels the proof: there is no other way to it."""
    service.refuse_if_draining()
    with service.budget.reserve(caller.tenant) as reservation:
        body = await read_body(request, service.body_limit, reservation, service.pace)
        asked = await service.reading(caller.tenant, read_prove_request, body)
        preimage, binding = asked.preimage, asked.binding
        key = await service.reading(caller.tenant, server.stored, preimage, asked.material)
        # From here on memory is held for the preimage alone.
        del body, asked
        record = await server.submit(key, preimage, binding, reservation, caller.tenant)
    try:
        ended = await service.wait(record, service.prover.settings.job_timeout + MARGIN_SECONDS, request)
    except ClientDisconnect:
        await service.cancel(record)
        raise
    record.fetched = True
    outcome = record.outcome
    if isinstance(outcome, ProofResult):
        return Response(write_proof_reply(bytes.fromhex(outcome.proof["proof"])), media_type=BINARY)
    if not ended or outcome is None:
        raise Problem(504, "Timeout", "the time limit is reached")
    if isinstance(outcome, UnsatisfiedWitness) and server.values:
        # Values do not come back from where the proof was made.
        await service.reading(caller.tenant, server.check, preimage, key.circuit)
    raise outcome


@router.post("/prove-tx")
async def midnight_prove_tx(caller: CallerDep) -> Response:
    raise Problem(
        501, "NotImplemented", "/prove-tx is deprecated and not offered: clients prove by /check and /prove"
    )
