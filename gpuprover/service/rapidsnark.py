"""The routes of rapidsnark's server, for clients that know those: one proof at a time, with honest statuses.

``POST /input/CIRCUIT`` takes inputs as JSON and answers 202; while its proof is not done, another one is a
409, where rapidsnark would abort the first. ``GET /status`` tells of the last one, ``POST /cancel`` ends it.
Shape of the answers: iden3's rapidsnark, ``fullprover``: proof and public signals are JSON within a string.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field

from gpuprover.api import ProofResult
from gpuprover.errors import Aborted, about
from gpuprover.formats.json_files import parse_json
from gpuprover.service.bodies import JSON_FACTOR, media_type, read_body
from gpuprover.service.problems import Problem
from gpuprover.service.results import Record
from gpuprover.service.routes import JSON, CircuitId, ServiceDep, admit, problems, request_body

router = APIRouter(tags=["rapidsnark"], dependencies=[Depends(admit)], responses=problems(401, 403))


class RapidsnarkStatus(BaseModel):
    """Of the last proof that was asked for under these routes."""

    status: Literal["ready", "busy", "success", "failed", "aborted"]
    error: str | None = None
    proof: str | None = Field(default=None, description="JSON, once more as a string.")
    pubData: str | None = Field(default=None, description="JSON, once more as a string.")


class Slot:
    """The proof that these routes are about."""

    def __init__(self) -> None:
        self.record: Record | None = None
        self.taken = False

    @property
    def busy(self) -> bool:
        return self.taken or (self.record is not None and self.record.outcome is None)


def _slot(request: Request) -> Slot:
    slot: Slot = request.app.state.slot
    return slot


def _parse(body: bytes) -> dict[str, Any]:
    with about("body"):
        inputs = parse_json(body, "the body")
    if not isinstance(inputs, dict):
        raise Problem(400, "InvalidInput", "the body: expected an object of signal names")
    return inputs


@router.post(
    "/input/{circuit_id}",
    status_code=202,
    summary="Begin a proof",
    response_model_exclude_none=True,
    responses=problems(400, 404, 408, 409, 413, 415, 429, 500, 503),
    openapi_extra=request_body({JSON: {"type": "object"}}),
)
async def rapidsnark_input(circuit_id: CircuitId, request: Request, service: ServiceDep) -> RapidsnarkStatus:
    slot = _slot(request)
    media_type(request, JSON)
    service.refuse_if_draining()
    await service.require_circuit(circuit_id)
    if slot.busy:
        raise Problem(409, "Busy", "a proof is being made; POST /cancel ends it")
    slot.taken = True
    try:
        with service.budget.reserve() as reservation:
            body = await read_body(request, service.json_limit, reservation, JSON_FACTOR)
            inputs = await service.briefly(_parse, body)
            slot.record = await service.submit(circuit_id, {"inputs": inputs}, reservation)
    finally:
        slot.taken = False
    return RapidsnarkStatus(status="busy")


@router.get("/status", summary="How the last proof is", response_model_exclude_none=True)
async def rapidsnark_status(request: Request, service: ServiceDep) -> RapidsnarkStatus:
    slot = _slot(request)
    if slot.busy:
        return RapidsnarkStatus(status="busy")
    if slot.record is None:
        return RapidsnarkStatus(status="ready")
    outcome = slot.record.outcome
    slot.record.fetched = True
    if isinstance(outcome, ProofResult):
        return RapidsnarkStatus(
            status="success", proof=json.dumps(outcome.proof), pubData=json.dumps(outcome.public_signals)
        )
    if outcome is None or isinstance(outcome, Aborted):
        return RapidsnarkStatus(status="aborted")
    return RapidsnarkStatus(status="failed", error=service.problem(outcome).detail)


@router.post("/cancel", summary="End the proof", response_model_exclude_none=True, responses=problems(409))
async def rapidsnark_cancel(request: Request, service: ServiceDep) -> RapidsnarkStatus:
    record = _slot(request).record
    if record is None or not await service.cancel(record):
        raise Problem(409, "NotBusy", "no proof is being made")
    return RapidsnarkStatus(status="aborted")
