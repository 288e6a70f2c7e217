"""What goes around Midnight's proofs, and what clients send to a proof server and get from it.

A server answers in one envelope whatever the circuit's line; the ledger has another. A request for a check
or a proof has the preimage, and the circuit with its keys, each as its file; without them it means a circuit
of the network's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from gpuprover.errors import UnsupportedFile, about
from gpuprover.midnight.encoding import SCALAR_TAG, Buffer, Reader, Writer, tagged
from gpuprover.midnight.preimage import Preimage, read_fields, write_fields

LEDGER_TAG = "proof[v5]"
SERVER_TAG = "proof-versioned"
PREIMAGE_TAG = "proof-preimage-versioned"
CHECK_TAG = f"({PREIMAGE_TAG},option(wrapped-ir))"
PROVE_TAG = f"({PREIMAGE_TAG},option(proving-data),option({SCALAR_TAG}))"
CHECKED_TAG = "vec(option(u64))"
_SECOND = 1
"""The discriminant of the second version of proofs and preimages, the one that there is."""
_U64 = 64


@dataclass(frozen=True)
class KeyMaterial:
    """A circuit's files, as a request has them.

    Attributes:
        prover: the prover key's file.
        verifier: the verifier key's file.
        circuit: the ``.bzkir`` file.
    """

    prover: bytes = field(repr=False)
    verifier: bytes = field(repr=False)
    circuit: bytes = field(repr=False)


@dataclass(frozen=True)
class CheckRequest:
    """The body of ``/check``.

    Attributes:
        preimage: what is checked.
        circuit: the ``.bzkir`` file; None: the network's own circuit that the preimage names.
    """

    preimage: Preimage
    circuit: bytes | None = field(repr=False)


@dataclass(frozen=True)
class ProveRequest:
    """The body of ``/prove``.

    Attributes:
        preimage: what is proven.
        material: the circuit's files; None: the network's own circuit that the preimage names.
        binding: replaces the preimage's binding input; None: that stays.
    """

    preimage: Preimage
    material: KeyMaterial | None
    binding: int | None = field(repr=False)


# Proofs ----------------------------------------------------------------------------------------


def write_proof(proof: Buffer) -> bytes:
    """A raw proof in the ledger's envelope."""
    return bytes(Writer(LEDGER_TAG).sized(proof))


def write_proof_reply(proof: Buffer) -> bytes:
    """A raw proof in the envelope of a proof server's answer."""
    return bytes(Writer(SERVER_TAG).byte(_SECOND).sized(proof))


@about("proof")
def read_proof(data: Buffer, path: str = "proof") -> bytes:
    """The raw proof in either envelope.

    Raises:
        MalformedFile, UnsupportedFile: it is in none of them, or of another version.
    """
    tag, reader = tagged(data, [LEDGER_TAG, SERVER_TAG], path)
    if tag == SERVER_TAG:
        _version(reader, "proof")
    proof = bytes(reader.sized("proof"))
    reader.end("proof")
    return proof


# Requests --------------------------------------------------------------------------------------


@about("body")
def read_check_request(data: Buffer, path: str = "request") -> CheckRequest:
    """The body of ``/check``.

    Raises:
        MalformedFile, UnsupportedFile: names the field.
    """
    _, reader = tagged(data, [CHECK_TAG], path)
    _version(reader, "preimage")
    request = CheckRequest(
        read_fields(reader), reader.option(lambda name: bytes(reader.sized(name)), "circuit")
    )
    reader.end("request")
    return request


def write_check_request(request: CheckRequest) -> bytes:
    """Inverse of :func:`read_check_request`."""
    writer = Writer(CHECK_TAG).byte(_SECOND)
    write_fields(writer, request.preimage)
    writer.option(request.circuit, writer.sized)
    return bytes(writer)


@about("body")
def read_prove_request(data: Buffer, path: str = "request") -> ProveRequest:
    """The body of ``/prove``. The files in it are not looked at.

    Raises:
        MalformedFile, UnsupportedFile: names the field.
    """
    _, reader = tagged(data, [PROVE_TAG], path)
    _version(reader, "preimage")

    def material(name: str) -> KeyMaterial:
        return KeyMaterial(*(bytes(reader.sized(part)) for part in ("prover key", "verifier key", "circuit")))

    request = ProveRequest(
        read_fields(reader),
        reader.option(material, "key material"),
        reader.option(reader.scalar, "binding input"),
    )
    reader.end("request")
    return request


def write_prove_request(request: ProveRequest) -> bytes:
    """Inverse of :func:`read_prove_request`."""
    writer = Writer(PROVE_TAG).byte(_SECOND)
    write_fields(writer, request.preimage)
    files = request.material
    writer.option(files, lambda f: writer.sized(f.prover).sized(f.verifier).sized(f.circuit))
    return bytes(writer.option(request.binding, writer.compact))


def _version(reader: Reader, what: str) -> None:
    start, version = reader.at, reader.byte(f"version of the {what}")
    if version != _SECOND:
        raise UnsupportedFile(
            reader.path,
            f"version of the {what}",
            f"expected {_SECOND} ({what}[v2]), found {version}, at byte {start}",
        )


# Answers ---------------------------------------------------------------------------------------


def write_check_reply(skips: Sequence[int | None]) -> bytes:
    """The answer to ``/check``: for each group of public inputs how many were skipped; None: it is active."""
    writer = Writer(CHECKED_TAG)
    return bytes(writer.vector(skips, lambda skip: writer.option(skip, writer.compact)))


@about("body")
def read_check_reply(data: Buffer, path: str = "answer") -> list[int | None]:
    """Inverse of :func:`write_check_reply`.

    Raises:
        MalformedFile, UnsupportedFile: names the field.
    """
    _, reader = tagged(data, [CHECKED_TAG], path)

    def skip(name: str) -> int | None:
        return reader.option(lambda part: reader.compact(part, _U64), name)

    skips = list(reader.vector(skip, "skipped"))
    reader.end("answer")
    return skips
