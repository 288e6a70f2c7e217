"""What a file of Midnight's is, in a few words and numbers: of any kind, and without a witness's values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from gpuprover.errors import MalformedFile, UnsupportedFile
from gpuprover.midnight import envelopes
from gpuprover.midnight.architecture import CHIPS, Architecture
from gpuprover.midnight.encoding import Buffer, tag_of
from gpuprover.midnight.keys import read_prover_key, read_verifier_key
from gpuprover.midnight.preimage import TAG as PREIMAGE_TAG
from gpuprover.midnight.preimage import Preimage, read_preimage
from gpuprover.midnight.profile import PROFILES
from gpuprover.midnight.srs import file_bytes, file_name, parse_srs

_HEAD = 4


def describe(data: Buffer, path: str) -> dict[str, Any]:
    """The kind of a file and its numbers, for JSON; its SHA-256 too, unless it has a witness.

    Args:
        data: a key, a circuit, a preimage, a proof in an envelope, a request's body, or parameters.

    Raises:
        MalformedFile, UnsupportedFile: it is none of these, or damaged.
    """
    tag = tag_of(data)
    about: dict[str, Any] = {"bytes": len(data)}
    # A witness may be guessed by the hash of its file.
    if tag not in _SECRET:
        about["sha256"] = hashlib.sha256(data).hexdigest()
    if tag is not None:
        about["tag"] = tag
        for known, kind, read in _KINDS:
            if tag == known:
                return {"kind": kind, **about, **read(data, path)}
        raise UnsupportedFile(path, "tag", f"no kind of file with the tag '{tag[:80]}' is known")
    if _is_srs(data):
        return {"kind": "parameters", **about, **_srs(data, path)}
    if _is_json(data):
        return {"kind": "circuit", **about, **_circuit(data, path)}
    raise MalformedFile(path, "tag", "expected a file that begins with 'midnight:', a circuit or parameters")


def _is_srs(data: Buffer) -> bool:
    k = int.from_bytes(data[:_HEAD], "little")
    return len(data) > _HEAD and k < 64 and len(data) == file_bytes(k)


def _is_json(data: Buffer) -> bool:
    try:
        return isinstance(json.loads(bytes(data)), dict)
    except (ValueError, RecursionError):
        return False


def _chips(architecture: Architecture) -> list[str]:
    return [chip for chip in CHIPS if chip in architecture.chips]


def _verifier_key(data: Buffer, path: str) -> dict[str, Any]:
    key = read_verifier_key(data, path)
    return {
        "line": key.profile.name,
        "chips": _chips(key.architecture),
        "range_columns": key.architecture.range_columns,
        "max_bit_len": key.max_bit_len,
        "k": key.k,
        "public_inputs": key.n_public,
        "fixed_columns": len(key.fixed),
        "permuted_columns": len(key.permutation),
    }


def _prover_key(data: Buffer, path: str) -> dict[str, Any]:
    key = read_prover_key(data, path)
    return {
        "line": key.profile.name,
        "max_bit_len": key.max_bit_len,
        "k": key.k,
        "fixed_columns": len(key.fixed),
        "permuted_columns": len(key.permutation),
        "column_bytes": key.fixed.nbytes + key.permutation.nbytes,
        "circuit": {
            "bytes": len(key.circuit),
            "sha256": hashlib.sha256(key.circuit).hexdigest(),
            **_circuit(key.circuit, path),
        },
    }


def _circuit(data: Buffer, path: str) -> dict[str, Any]:
    # The front ends of circuits are larger than all else here, and most files are no circuits.
    from gpuprover.midnight.ir.files import read_circuit

    circuit = read_circuit(data, path)
    return {
        "version": list(circuit.version),
        "inputs": len(circuit.inputs),
        "instructions": len(circuit.instructions),
        "communications_commitment": circuit.do_communications_commitment,
    }


def _values(preimage: Preimage) -> dict[str, Any]:
    return {
        "key_location": preimage.key_location,
        "inputs": len(preimage.inputs),
        "private_transcript": len(preimage.private_transcript),
        "public_transcript_inputs": len(preimage.public_transcript_inputs),
        "public_transcript_outputs": len(preimage.public_transcript_outputs),
        "communications_commitment": preimage.communications_commitment is not None,
    }


def _preimage(data: Buffer, path: str) -> dict[str, Any]:
    return _values(read_preimage(data, path))


def _proof(data: Buffer, path: str) -> dict[str, Any]:
    return {"proof_bytes": len(envelopes.read_proof(data, path))}


def _check_request(data: Buffer, path: str) -> dict[str, Any]:
    request = envelopes.read_check_request(data, path)
    circuit = request.circuit
    return {
        "preimage": _values(request.preimage),
        "circuit": None if circuit is None else describe(circuit, path),
    }


def _prove_request(data: Buffer, path: str) -> dict[str, Any]:
    request = envelopes.read_prove_request(data, path)
    found: dict[str, Any] = {"preimage": _values(request.preimage)}
    if request.material is not None:
        for name, part in (
            ("prover", request.material.prover),
            ("verifier", request.material.verifier),
            ("circuit", request.material.circuit),
        ):
            found[name] = describe(part, path)
    found["replaces_binding_input"] = request.binding is not None
    return found


def _check_reply(data: Buffer, path: str) -> dict[str, Any]:
    return {"skipped": envelopes.read_check_reply(data, path)}


def _srs(data: Buffer, path: str) -> dict[str, Any]:
    srs = parse_srs(data, path)
    return {"k": srs.k, "name": file_name(srs.k), "published": srs.published}


_Read = Callable[[Buffer, str], dict[str, Any]]
_KINDS: tuple[tuple[str, str, _Read], ...] = (
    *((profile.verifier_tag, "verifier key", _verifier_key) for profile in PROFILES),
    *((tag, "prover key", _prover_key) for profile in PROFILES for tag in profile.prover_tags),
    *(
        (tag.partition("(")[2].removesuffix(")"), "circuit", _circuit)
        for profile in PROFILES
        for tag in profile.prover_tags
    ),
    (PREIMAGE_TAG, "preimage", _preimage),
    (envelopes.LEDGER_TAG, "proof", _proof),
    (envelopes.SERVER_TAG, "proof", _proof),
    (envelopes.CHECK_TAG, "request for a check", _check_request),
    (envelopes.PROVE_TAG, "request for a proof", _prove_request),
    (envelopes.CHECKED_TAG, "answer to a check", _check_reply),
)
"""(tag, kind, what is said of it)."""
_SECRET = frozenset({PREIMAGE_TAG, envelopes.CHECK_TAG, envelopes.PROVE_TAG})
"""Tags of files with a witness."""
