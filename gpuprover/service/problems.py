"""Errors as answers: which status each has, as RFC 9457's ``application/problem+json``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from gpuprover.errors import ProverError

MEDIA_TYPE = "application/problem+json"

_SENT = frozenset({"witness", "inputs", "proof", "public signals", "body"})
"""Roles of what clients send; files of any other role are the service's own."""

STATUS = {
    "InvalidInput": (400, 500),
    "MalformedFile": (400, 500),
    "UnsupportedFile": (400, 500),
    "WitnessMismatch": (400, 500),
    "UnsatisfiedWitness": (422, 422),
    "CircuitNotFound": (404, 500),
    "QueueFull": (429, 429),
    "OutOfMemory": (503, 503),
    "DeviceError": (503, 503),
    "ProofGenerationFailed": (500, 500),
    "ConnectionLost": (503, 503),
    "ShuttingDown": (503, 503),
    "Timeout": (504, 504),
    "Cancelled": (409, 409),
    "Aborted": (409, 409),
}
"""By kind: where it is about what the client has sent, and where it is about a file of the service's own."""
_WORDS = {
    "DeviceError": "the service has no device that makes the proof now; its log says why",
    "ConnectionLost": "the service's verifier does not answer now; its log says why",
    "ProofGenerationFailed": "the proof could not be made; the log of the service says why",
}
"""Instead of what the error says, which quotes libraries and processes of the machine."""
_OURS = "a fault of the service; its log says where"
RETRY_SECONDS = 5
"""``Retry-After`` of answers that know nothing better."""


class Problem(Exception):
    """An answer that is an error.

    Attributes:
        status: HTTP's status code.
        kind: the name of the error, e.g. ``"QueueFull"``; what clients match on.
        detail: one line; nothing of a witness, no path of this machine.
        headers: headers of the answer.
        more: further members of the document.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(detail)
        self.status, self.kind, self.detail = status, kind, detail
        self.headers = dict(headers or {})
        if status in (429, 503):
            self.headers.setdefault("Retry-After", str(RETRY_SECONDS))
        self.more = more

    def document(self, request_id: str | None = None) -> dict[str, Any]:
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", self.kind)
        return {
            "type": "urn:gpuprover:problem:" + words.lower().replace(" ", "-"),
            "title": words.capitalize(),
            "status": self.status,
            "detail": self.detail,
            "kind": self.kind,
            **({} if request_id is None else {"request_id": request_id}),
            **self.more,
        }

    def body(self, request_id: str | None) -> bytes:
        return json.dumps(self.document(request_id)).encode()


def is_ours(error: ProverError) -> bool:
    """Whether it is about a file of the service's own: over HTTP, whatever has a path and was not sent."""
    return error.path is not None and error.role not in _SENT


def status_of(error: ProverError) -> int:
    """Of an error of the library: by its kind and by whose file it is, never by its text."""
    return STATUS.get(error.kind, (500, 500))[is_ours(error)]


def fault_of(error: ProverError) -> str:
    """Whose fault it is: ``client`` (what it has sent is refused), ``service``, or ``time`` (a client or a
    setting allowed no more of it)."""
    if error.kind == "Timeout":
        return "time"
    return "client" if status_of(error) < 500 else "service"


def problem_of(error: ProverError, **more: Any) -> Problem:
    """The answer to an error of the library; of files of the service it says what they are, not where."""
    status = status_of(error)
    detail = error.told if error.kind in STATUS else _OURS
    detail = _WORDS.get(error.kind, detail)
    if error.kind == "CircuitNotFound" and status == 404:
        detail = f"{detail}; GET /v1/circuits lists them"
    if error.role:
        more.setdefault("role", error.role)
    return Problem(status, error.kind, detail, **more)


def of_status(status: int, headers: Mapping[str, str] | None = None, detail: str = "") -> Problem:
    """For what the framework refuses: unknown paths, methods that a path has not."""
    phrase = HTTPStatus(status).phrase
    kind = "".join(word.capitalize() for word in re.findall("[A-Za-z]+", phrase))
    return Problem(status, kind, detail or phrase, headers)
