"""Requests and results as messages. The bytes of a witness travel beside them, in memory without a name."""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from typing import Any

from gpuprover.errors import OutOfMemory
from gpuprover.executor import ProofRequest
from gpuprover.formats.files import Identity
from gpuprover.processes import private_file
from gpuprover.proving import ProofResult
from gpuprover.witness_source import unpacked


class Parcel:
    """A request as a message, and the descriptor that goes with it. To be closed."""

    def __init__(self, request: ProofRequest) -> None:
        """
        Raises:
            InvalidInput: the witness is none.
            DeviceError: no memory for it.
        """
        witness, pieces = request.witness.packed()
        document = {f.name: getattr(request, f.name) for f in fields(request) if f.name != "witness"}
        document["path"] = os.path.abspath(request.path)
        document["host_parts"] = sorted(request.host_parts)
        self.message: dict[str, Any] = {"type": "prove", "request": document, "witness": witness}
        self.fds: list[int] = [] if pieces is None else [private_file(pieces)]

    def close(self) -> None:
        descriptors, self.fds = self.fds, []
        for descriptor in descriptors:
            with suppress(OSError):  # it is gone in any case
                os.close(descriptor)


def unpack(message: Mapping[str, Any], fds: Sequence[int]) -> ProofRequest:
    """The request of a message and its descriptors, which are closed. What the witness is in is mapped.

    Raises:
        OutOfMemory: the system does not map it.
    """
    try:
        data = [_map(descriptor) for descriptor in fds]
    finally:
        for descriptor in fds:
            os.close(descriptor)
    document = dict(message["request"])
    document["identity"] = Identity(*document["identity"])
    document["host_parts"] = frozenset(document["host_parts"])
    return ProofRequest(witness=unpacked(message["witness"], data), **document)


def _map(descriptor: int) -> memoryview:
    size = os.fstat(descriptor).st_size
    try:
        return memoryview(mmap.mmap(descriptor, size, prot=mmap.PROT_READ) if size else b"")
    except OSError:
        raise OutOfMemory(f"the machine refused {size} bytes for the witness") from None


def result_to_json(result: ProofResult) -> dict[str, Any]:
    return asdict(result)


def result_from_json(document: Mapping[str, Any]) -> ProofResult:
    return ProofResult(**{**document, "warnings": tuple(document["warnings"])})


__all__ = ["Parcel", "result_from_json", "result_to_json", "unpack"]
