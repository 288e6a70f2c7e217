"""Errors as answers: which status each has, as RFC 9457's ``application/problem+json``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from gpuprover.errors import ProverError

MEDIA_TYPE = "application/problem+json"

_STATUS = {
    "InvalidInput": 400,
    "MalformedFile": 400,
    "UnsupportedFile": 400,
    "WitnessMismatch": 400,
    "UnsatisfiedWitness": 422,
    "CircuitNotFound": 404,
    "QueueFull": 429,
    "OutOfMemory": 503,
    "DeviceError": 503,
    "ConnectionLost": 503,
    "ShuttingDown": 503,
    "Timeout": 504,
    "Cancelled": 409,
    "Aborted": 409,
}
RETRY_SECONDS = 5
"""``Retry-After`` of answers that know nothing better."""


class Problem(Exception):
    """An answer that is an error.

    Attributes:
        status: of HTTP.
        kind: the name of the error, e.g. ``"QueueFull"``; what clients match on.
        detail: one line; nothing of a witness, no path of this machine.
        headers: of the answer.
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


def problem_of(error: ProverError, folder: str, **more: Any) -> Problem:
    """The answer to an error of the library.

    Args:
        folder: of the circuits; its path is nobody's business, and an error in a file of it is not the
            client's fault.
    """
    status = _STATUS.get(error.kind, 500)
    detail = error.message
    if error.kind == "CircuitNotFound":
        detail = re.sub(r": not in .*", ": there is none of that name; GET /v1/circuits lists them", detail)
    elif folder in detail and status == 400:
        status = 500
    detail = detail.replace(folder + "/", "").replace(folder, "the folder of circuits")
    return Problem(status, error.kind, detail, **more)


def of_status(status: int, headers: Mapping[str, str] | None = None, detail: str = "") -> Problem:
    """For what the framework refuses: unknown paths, methods that a path has not."""
    phrase = HTTPStatus(status).phrase
    kind = "".join(word.capitalize() for word in re.findall("[A-Za-z]+", phrase))
    return Problem(status, kind, detail or phrase, headers)
