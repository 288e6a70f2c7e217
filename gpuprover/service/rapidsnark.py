"""The routes of rapidsnark's server, for clients that know those: one proof at a time, with honest statuses.

``POST /input/CIRCUIT`` takes inputs as JSON and answers 202; while its proof is not done, another one is a
409, where rapidsnark would abort the first. ``GET /status`` describes the last one, ``POST /cancel`` ends it.
Shape of the answers: iden3's rapidsnark, ``fullprover``: proof and public signals are JSON within a string.
"""

from __future__ import annotations

import json
from functools import partial
from typing import Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field

from gpuprover.errors import Aborted
from gpuprover.proving import ProofResult
from gpuprover.service.bodies import media_type
from gpuprover.service.models import inputs_text
from gpuprover.service.problems import Problem
from gpuprover.service.results import Record
from gpuprover.service.routes import (
    FEW,
    JSON,
    CallerDep,
    CircuitId,
    ServiceDep,
    admit,
    problems,
    read_json,
    request_body,
)

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


@router.post(
    "/input/{circuit_id}",
    status_code=202,
    summary="Begin a proof",
    response_model_exclude_none=True,
    responses=problems(400, 404, 408, 409, 413, 415, 429, 500, 503),
    openapi_extra=request_body({JSON: {"type": "object"}}),
)
async def rapidsnark_input(
    circuit_id: CircuitId, request: Request, service: ServiceDep, caller: CallerDep
) -> RapidsnarkStatus:
    slot = _slot(request)
    media_type(request, JSON)
    service.refuse_if_draining()
    await service.require_circuit(circuit_id)
    _check_free(slot)
    with service.budget.reserve(caller.tenant) as reservation:
        # Others may have the slot while this body comes.
        body = await read_json(service, request, reservation, caller.tenant)
        inputs = await service.reading(caller.tenant, partial(inputs_text, bare=True), body)
        reservation.shrink(2 * len(body))
        del body
        _check_free(slot)
        slot.taken = True
        try:
            witness = {"inputs": inputs}
            slot.record = await service.submit(circuit_id, witness, reservation, tenant=caller.tenant)
        finally:
            slot.taken = False
    return RapidsnarkStatus(status="busy")


def _check_free(slot: Slot) -> None:
    if slot.busy:
        raise Problem(409, "Busy", "a proof is being made; POST /cancel ends it")


@router.get("/status", summary="How the last proof is", response_model_exclude_none=True)
async def rapidsnark_status(request: Request, service: ServiceDep, caller: CallerDep) -> RapidsnarkStatus:
    slot = _slot(request)
    if slot.busy:
        return RapidsnarkStatus(status="busy")
    if slot.record is None:
        return RapidsnarkStatus(status="ready")
    outcome = slot.record.outcome
    slot.record.fetched = True
    if isinstance(outcome, ProofResult):
        signals = outcome.public_signals
        if len(signals) <= FEW:
            text = json.dumps(signals)
        else:
            text = await service.reading(caller.tenant, json.dumps, signals)
        return RapidsnarkStatus(status="success", proof=json.dumps(outcome.proof), pubData=text)
    if outcome is None or isinstance(outcome, Aborted):
        return RapidsnarkStatus(status="aborted")
    return RapidsnarkStatus(status="failed", error=service.problem(outcome).detail)


@router.post("/cancel", summary="End the proof", response_model_exclude_none=True, responses=problems(409))
async def rapidsnark_cancel(request: Request, service: ServiceDep) -> RapidsnarkStatus:
    record = _slot(request).record
    if record is None or not await service.cancel(record):
        raise Problem(409, "NotBusy", "no proof is being made")
    return RapidsnarkStatus(status="aborted")
