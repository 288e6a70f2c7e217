"""Requests and results as messages. The bytes of a witness travel beside them, in memory without a name."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from typing import Any

import numpy as np

from gpuprover.curves import CURVES
from gpuprover.errors import InvalidInput, OutOfMemory
from gpuprover.executor import ProofRequest
from gpuprover.formats.files import Identity
from gpuprover.limbs import ints_to_words
from gpuprover.processes import private_file
from gpuprover.proving import ProofResult
from gpuprover.witness_source import WitnessLike

(_LIMBS,) = {curve.scalar.limbs for curve in CURVES}
"""Limbs of every curve's scalars; the key says which curve's they are."""


class Parcel:
    """A request as a message, and the descriptor that goes with it. To be closed."""

    def __init__(self, request: ProofRequest) -> None:
        """
        Raises:
            InvalidInput: the witness is none.
            DeviceError: no memory for it.
        """
        kind, pieces = _pack(request.witness)
        document = {f.name: getattr(request, f.name) for f in fields(request) if f.name != "witness"}
        document["path"] = os.path.abspath(request.path)
        document["host_parts"] = sorted(request.host_parts)
        self.message: dict[str, Any] = {"type": "prove", "request": document, "witness": kind}
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
    return ProofRequest(witness=_unpack(message["witness"], data), **document)


def _map(descriptor: int) -> memoryview:
    size = os.fstat(descriptor).st_size
    try:
        return memoryview(mmap.mmap(descriptor, size, prot=mmap.PROT_READ) if size else b"")
    except OSError:
        raise OutOfMemory(f"the machine refused {size} bytes for the witness") from None


def _pack(witness: WitnessLike) -> tuple[dict[str, Any], list[bytes | bytearray | memoryview] | None]:
    """A witness as a message describes it, and its bytes, if it has any to send."""
    if isinstance(witness, str | os.PathLike):
        return {"path": os.path.abspath(os.fsdecode(os.fspath(witness)))}, None
    if isinstance(witness, bytes | bytearray | memoryview):
        view = memoryview(witness)
        return {"bytes": "wtns"}, [view if view.c_contiguous else bytes(view)]
    if isinstance(witness, Mapping):
        return _pack_inputs(witness)
    if isinstance(witness, np.ndarray) and witness.ndim == 2:
        if witness.dtype != np.uint64:
            raise InvalidInput(f"witness: expected uint64[n, {_LIMBS}], found {witness.dtype}")
        return {"bytes": "words", "limbs": witness.shape[1]}, [np.ascontiguousarray(witness).data]
    try:
        words = ints_to_words((int(v) for v in witness), _LIMBS)
    except (TypeError, ValueError, OverflowError):
        raise InvalidInput("witness: expected integers from 0 to below the field's prime") from None
    return {"bytes": "words", "limbs": _LIMBS}, [words.data]


def _unpack(kind: Mapping[str, Any], data: Sequence[memoryview]) -> WitnessLike:
    if "path" in kind:
        return str(kind["path"])
    (content,) = data
    if kind["bytes"] == "wtns":
        return content
    if kind["bytes"] == "inputs":
        document: dict[str, Any] = json.loads(bytes(content))
        return document
    if kind["bytes"] == "text":
        return {**kind["rest"], "inputs": bytes(content)}
    return np.frombuffer(content, dtype=np.uint64).reshape(-1, kind["limbs"])


def _pack_inputs(witness: Mapping[str, Any]) -> tuple[dict[str, Any], list[bytes | bytearray | memoryview]]:
    """``{"inputs", "wasm", "fuel"}``; what else stands there the worker refuses."""
    document = dict(witness)
    if isinstance(document.get("wasm"), str | os.PathLike):
        document["wasm"] = os.path.abspath(os.fsdecode(os.fspath(document["wasm"])))
    if isinstance(document.get("inputs"), bytes):
        text = document.pop("inputs")
        return {"bytes": "text", "rest": json.loads(_dumps(document))}, [text]
    return {"bytes": "inputs"}, [_dumps(document)]


def _dumps(document: dict[str, Any]) -> bytes:
    def plain(value: object) -> object:
        if isinstance(value, np.ndarray | np.integer):
            return value.tolist()
        raise TypeError

    try:
        return json.dumps(document, default=plain).encode()
    except (TypeError, ValueError, RecursionError):
        raise InvalidInput(
            "witness: inputs: expected integers, as numbers or text, and lists of them"
        ) from None


def result_to_json(result: ProofResult) -> dict[str, Any]:
    return asdict(result)


def result_from_json(document: Mapping[str, Any]) -> ProofResult:
    return ProofResult(**{**document, "warnings": tuple(document["warnings"])})


__all__ = ["Parcel", "result_from_json", "result_to_json", "unpack"]
