"""A secret that a verifier shares with its clients, and how both show over TCP that they know it.

Client and verifier each choose a nonce and prove the secret under both nonces; the keys of the two directions
follow from the same values, and tag every later message with its number (:class:`gpuprover.messages.Seal`).
So nobody on the way can answer, ask, change, repeat or leave out anything; what is said can still be read. A
verifier with a secret
answers nobody without, and a client with one takes no answer before the proof: neither side can be talked out
of it.

=============  ==========================================================================================
client         ``{"id": 0, "op": "authenticate", "nonce"}``
verifier       ``{"id": 0, "result": {"nonce", "proof"}}``
client         ``{"id": 0, "op": "authenticate", "proof"}``; from here on all that is sent has tags
verifier       ``{"id": 0, "result": {}}``
=============  ==========================================================================================

Nonces and proofs are 32 bytes in hexadecimal; a proof is HMAC-SHA256 of its sender's role and both nonces.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from contextlib import suppress
from typing import Any

from gpuprover.errors import InvalidInput, ProverError, Timeout, from_record
from gpuprover.messages import AccessDenied, BrokenMessage, Channel, Seal

NONCE_BYTES = 32
FEWEST_BYTES, MOST_BYTES = 32, 4096
"""The least and the most bytes of a secret. A listener on the way can try guesses, so that a secret has
to be one that nobody guesses."""


def read_secret(path: str | os.PathLike[str]) -> bytes:
    """The secret in a file, without white space at its ends.

    Raises:
        InvalidInput: the file cannot be read, is a link, belongs to somebody else than this user or root, can
            be read or written by others, or holds less than 32 bytes.
    """
    where = os.fspath(path)
    try:
        descriptor = os.open(where, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{where}: secret: cannot be read: {getattr(error, 'strerror', error)}") from None
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise InvalidInput(f"{where}: secret: expected a file")
        if info.st_uid not in (0, os.geteuid()):
            raise InvalidInput(
                f"{where}: secret: a file of user {info.st_uid}, expected one of this user or root"
            )
        if info.st_mode & 0o077:
            raise InvalidInput(f"{where}: secret: others may use the file, expected mode 0600")
        secret = os.read(descriptor, MOST_BYTES + 1).strip()
    except OSError as error:
        raise InvalidInput(f"{where}: secret: cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)
    if not FEWEST_BYTES <= len(secret) <= MOST_BYTES:
        raise InvalidInput(f"{where}: secret: {len(secret)} bytes, expected {FEWEST_BYTES} to {MOST_BYTES}")
    return secret


class Handshake:
    """What follows from a secret and both nonces."""

    def __init__(self, secret: bytes, client_nonce: bytes, verifier_nonce: bytes) -> None:
        self._secret, self._nonces = secret, client_nonce + verifier_nonce

    def _derived(self, role: bytes) -> bytes:
        return hmac.new(self._secret, b"gpuprover verifier 1 " + role + self._nonces, hashlib.sha256).digest()

    def proof(self, role: str) -> str:
        """Of the ``client`` or of the ``verifier``."""
        return self._derived(b"proof of the " + role.encode()).hex()

    def proves(self, role: str, proof: object) -> bool:
        expected = self.proof(role).encode()
        return isinstance(proof, str) and hmac.compare_digest(expected, proof.encode("utf-8", "replace"))

    def seal(self, role: str) -> Seal:
        """The tags of what this role sends."""
        return Seal(self._derived(b"messages of the " + role.encode()))


def nonce() -> bytes:
    return secrets.token_bytes(NONCE_BYTES)


def parse_nonce(value: object) -> bytes | None:
    """A nonce as messages carry it; None for anything else."""
    found = b""
    if isinstance(value, str) and len(value) == 2 * NONCE_BYTES and value.isascii():
        with suppress(ValueError):
            found = bytes.fromhex(value)
    return found if len(found) == NONCE_BYTES else None


def authenticate(channel: Channel, secret: bytes, timeout: float) -> None:
    """The client's side, at the start of a connection.

    Raises:
        AccessDenied: the other side does not know the secret, or wants none.
        ConnectionLost, Timeout: it does not answer.
        QueueFull: it has no place.
    """
    ours = nonce()
    try:
        channel.send({"id": 0, "op": "authenticate", "nonce": ours.hex()}, timeout=timeout)
        answer, _ = channel.receive(timeout)
    except BrokenMessage as error:
        raise AccessDenied(f"the verifier does not authenticate itself: {error.told}") from None
    except Timeout:
        raise Timeout("the verifier does not authenticate itself in time") from None
    result: dict[str, Any] = answer["result"] if isinstance(answer.get("result"), dict) else {}
    theirs = parse_nonce(result.get("nonce"))
    if theirs is None:
        raise _refusal(answer.get("error"))
    handshake = Handshake(secret, ours, theirs)
    if not handshake.proves("verifier", result.get("proof")):
        raise AccessDenied("the verifier does not know the secret that this client has")
    channel.send({"id": 0, "op": "authenticate", "proof": handshake.proof("client")}, timeout=timeout)
    channel.secure(handshake.seal("client"), handshake.seal("verifier"))
    try:
        answer, _ = channel.receive(timeout)
    except BrokenMessage as error:
        raise AccessDenied(f"the verifier does not authenticate itself: {error.told}") from None
    if answer.get("result") != {}:
        raise _refusal(answer.get("error"))


def _refusal(record: object) -> ProverError:
    error = from_record(record)
    if error.kind in ("QueueFull", "ShuttingDown"):
        return error
    return AccessDenied(f"the verifier does not authenticate itself: {error.told[:200]}")
