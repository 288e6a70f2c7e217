"""Verification for a prover: keys of its circuits, in a process of its own or this one, and kept answers."""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from os import PathLike
from typing import Any, Protocol

from gpuprover import api
from gpuprover.caching import Cache, keyed_digest
from gpuprover.config import EngineSettings
from gpuprover.engine.directory import CircuitDirectory, KnownKey
from gpuprover.errors import CircuitNotFound, InvalidInput, Timeout, about
from gpuprover.formats.files import as_path
from gpuprover.formats.json_files import read_json
from gpuprover.memory import MIB
from gpuprover.systems.system import VerificationKey, parse_verification_key
from gpuprover.verifier.client import VerifierStatus
from gpuprover.verifier.process import VerifierProcess

Signals = Sequence[int | str] | str | PathLike[str]
Document = Mapping[str, Any] | str | PathLike[str]
Statement = tuple[Sequence[int | str], Mapping[str, Any]]

KEYS = 256
"""Verification keys that the verifier holds at most; those used longest ago go first."""
ANSWER_BYTES = 160
"""Bytes of a kept answer."""


class _Verifier(Protocol):
    """A :class:`VerifierProcess` or an :class:`InlineVerifier`; keys go by their digests here."""

    def load(
        self,
        name: str,
        verification_key: dict[str, Any],
        digest: str | None = None,
        *,
        timeout: float | None = None,
    ) -> str: ...

    def unload(self, name: str, *, timeout: float | None = None) -> None: ...

    def verify(
        self,
        name: str,
        public_signals: Sequence[int | str],
        proof: Mapping[str, Any],
        *,
        timeout: float | None = None,
    ) -> bool: ...

    def verify_batch(
        self, name: str, statements: Sequence[Statement], *, timeout: float | None = None
    ) -> list[bool]: ...

    def status(self) -> VerifierStatus: ...

    def close(self) -> None: ...


class InlineVerifier:
    """Verifies in the calling thread, with no process: for small programs and tests."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._keys: dict[str, VerificationKey] = {}

    def load(
        self,
        name: str,
        verification_key: dict[str, Any],
        digest: str | None = None,
        *,
        timeout: float | None = None,
    ) -> str:
        self._keys[name] = parse_verification_key(verification_key)
        return name

    def unload(self, name: str, *, timeout: float | None = None) -> None:
        self._keys.pop(name, None)

    def _key(self, name: str) -> VerificationKey:
        key = self._keys.get(name)
        if key is None:
            raise CircuitNotFound(f"{name}: no verification key of that name is loaded")
        return key

    def verify(
        self,
        name: str,
        public_signals: Sequence[int | str],
        proof: Mapping[str, Any],
        *,
        timeout: float | None = None,
    ) -> bool:
        return api.verify(self._key(name), public_signals, proof, threads=self._threads)

    def verify_batch(
        self, name: str, statements: Sequence[Statement], *, timeout: float | None = None
    ) -> list[bool]:
        return api.verify_batch(self._key(name), statements, threads=self._threads)

    def status(self) -> VerifierStatus:
        return VerifierStatus("inline", threads=self._threads)

    def close(self) -> None:
        self._keys.clear()


class Verification:
    """A prover's ``verify`` and ``verify_batch``. For any thread.

    Attributes:
        answers: kept, by keyed digests of key, public signals and proof.
    """

    def __init__(self, settings: EngineSettings, directory: CircuitDirectory) -> None:
        self._directory = directory
        self._verifier: _Verifier
        if settings.verifier == "inline":
            self._verifier = InlineVerifier(settings.threads)
        else:
            eager = settings.policy in ("eager", "off")
            self._verifier = VerifierProcess(
                "eager" if eager else "lazy",
                threads=settings.threads,
                timeout=settings.verification_timeout,
                heartbeat=settings.heartbeat_timeout,
                start=settings.init_timeout,
            )
        self.answers: Cache[bytes, bool] = Cache(
            settings.verification_cache * MIB, lifetime=settings.cache_ttl
        )
        self._timeout = settings.verification_timeout
        self._keeps = settings.verification_cache > 0
        self._lock = threading.Lock()
        self._held: OrderedDict[str, None] = OrderedDict()

    def key(self, circuit: str) -> KnownKey:
        """The verification key of a circuit, as its files say now.

        Raises:
            CircuitNotFound, InvalidInput, MalformedFile, UnsupportedFile: see :class:`CircuitDirectory`.
        """
        return self._directory.verification_key(self._directory.find(circuit))

    def verify(self, circuit: str, signals: Signals, proof: Document, timeout: float | None) -> bool:
        """Whether a proof holds.

        Args:
            timeout: seconds, default ``verification_timeout``; whatever happens to the verifier, an answer or
                a typed error comes by then.
        """
        end = self._end(timeout)
        key = self.key(circuit)
        public, document = _document(signals, "public signals"), _document(proof, "proof")

        def ask() -> bool:
            self._hold(key, end)
            return self._verifier.verify(key.digest, public, document, timeout=_left(end))

        if not self._keeps:
            return ask()
        name = _name(key, public, document)
        if name is None:
            return ask()  # which says what is wrong with it
        return self.answers.get_or_make(name, ask, lambda _: ANSWER_BYTES, timeout=_left(end))

    def verify_batch(
        self, circuit: str, statements: Sequence[Statement], timeout: float | None
    ) -> list[bool]:
        """As :meth:`verify`, for each; the time is for each part of some hundred."""
        key, todo = self.key(circuit), list(statements)
        names = [_name(key, *statement) for statement in todo] if self._keeps else [None] * len(todo)
        known = [None if name is None else self.answers.get(name) for name in names]
        left = [i for i, answer in enumerate(known) if answer is None]
        if left:
            self._hold(key, self._end(timeout))
            found = self._verifier.verify_batch(key.digest, [todo[i] for i in left], timeout=timeout)
            for i, answer in zip(left, found, strict=True):
                known[i], name = answer, names[i]
                if name is not None:
                    self.answers.put(name, answer, ANSWER_BYTES)
        return [answer is True for answer in known]

    def _end(self, timeout: float | None) -> float:
        return time.monotonic() + (self._timeout if timeout is None else timeout)

    def _hold(self, key: KnownKey, end: float) -> None:
        """Has the verifier hold a key, which it gets again after a restart."""
        # Others may wait in here for a verifier that does not come.
        if not self._lock.acquire(timeout=_left(end)):
            raise Timeout("the verifier did not take a key in time")
        try:
            if key.digest in self._held:
                self._held.move_to_end(key.digest)
                return
            self._verifier.load(key.digest, key.document, key.digest, timeout=_left(end))
            self._held[key.digest] = None
            while len(self._held) > KEYS:
                old, _ = self._held.popitem(last=False)
                with suppress(CircuitNotFound):
                    self._verifier.unload(old, timeout=_left(end))
        finally:
            self._lock.release()

    def status(self) -> VerifierStatus:
        return self._verifier.status()

    def close(self) -> None:
        self._verifier.close()


def _left(end: float) -> float:
    return max(0.001, end - time.monotonic())


def _document(source: Any, role: str) -> Any:
    if isinstance(source, str | PathLike):
        with about(role):
            return read_json(as_path(source, role))
    if not isinstance(source, Sequence | Mapping) or isinstance(source, bytes):
        raise InvalidInput(f"{role}: expected a document or a path, found {type(source).__name__}")
    return source


def _name(key: KnownKey, signals: Any, proof: Any) -> bytes | None:
    """The name under which an answer is kept; None for documents that are not JSON."""
    try:
        written = json.dumps([signals, proof], sort_keys=True)
    except (TypeError, ValueError, RecursionError):
        return None
    return keyed_digest(key.digest, written)
