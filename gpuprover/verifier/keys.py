"""Verification keys that are ready to verify with: parsed, checked, their machine code loaded.

Nothing of a key is kept on disk. Lines of a Groth16 key's points in G2, β, γ and δ, are 50 to 60 KB; to
compute them takes 0.1 to 0.2 ms, to map and read them from a file half of that (measured by hand). Start-up
waits for machine code.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from gpuprover.errors import MalformedFile, ProverError, UnsupportedFile
from gpuprover.formats.snarkjs_json import parse_public_signals
from gpuprover.systems import system as systems
from gpuprover.systems.system import VerificationKey

if TYPE_CHECKING:
    from gpuprover.backend import Backend


class LoadedKey:
    """One verification key, and what can be done with it. Any number of threads may.

    To make one costs nothing: :meth:`prepare`, or else what needs the key first, parses and checks it.

    Args:
        document: the key's document, as snarkjs writes it; e(α, β) may be missing.
        expected: the digest that the key has to have, or None.

    Attributes:
        digest: the key's digest; before it is ready, the expected one.
        ready: the key is checked, and has its digest.
    """

    def __init__(
        self, document: object, expected: str | None = None, source: str = "verification key"
    ) -> None:
        self._document, self._expected, self._source = document, expected, source
        self.digest = expected or ""
        self.ready = False
        self._key: VerificationKey | None = None
        self._lock = threading.Lock()
        self._problem: ProverError | None = None

    @property
    def key(self) -> VerificationKey:
        """The key, checked.

        Raises:
            MalformedFile, UnsupportedFile: as :meth:`prepare`.
        """
        self.prepare()
        assert self._key is not None
        return self._key

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences that whoever trusts its answers has to read: proofs can be forged for such a key.

        Raises:
            MalformedFile, UnsupportedFile: as :meth:`prepare`.
        """
        return self.key.warnings

    def prepare(self) -> None:
        """Parses the key, checks the points' subgroups and verifies something, once: what follows is as fast
        as it gets.

        Raises:
            MalformedFile, UnsupportedFile: the document is damaged, has another digest than expected, or a
                point is outside its subgroup; again at every further call.
        """
        with self._lock:
            if self._problem is None and not self.ready:
                try:
                    self._check()
                except (MalformedFile, UnsupportedFile) as error:
                    self._problem, self._document = error, None
        if self._problem is not None:
            raise self._problem

    def _check(self) -> None:
        key = systems.parse_verification_key(self._document, self._source)
        digest = key.digest
        if self._expected is not None and self._expected != digest:
            problem = f"expected {self._expected[:64]}, found {digest}: not the key it should be"
            raise MalformedFile(self._source, "digest", problem, role="verification key")
        system = systems.system_named(key.protocol)
        # The answer does not matter.
        system.verify(key, [0] * key.n_public, system.sample_proof(key), _backend(key), self._source, "proof")
        self._key, self.digest, self._document = key, digest, None
        self.ready = True

    def verify(self, public: object, proof: object) -> bool:
        """Whether a proof document holds for a list of public signals.

        Raises:
            MalformedFile, UnsupportedFile: as :func:`gpuprover.verify`.
        """
        key = self.key
        system = systems.system_named(key.protocol)
        signals = parse_public_signals(public, key.curve, key.n_public)
        parsed = system.parse_proof(proof, key.curve, "proof", False)
        return system.verify(key, signals, parsed, _backend(key), key.source, "proof")

    def verify_batch(self, statements: list[tuple[object, object]]) -> list[bool]:
        """For each (public signals, proof) whether it holds; a damaged one is False."""
        system = systems.system_named(self.key.protocol)
        return system.verify_documents(self.key, statements, _backend(self.key))

    def describe(self) -> dict[str, Any]:
        """Its digest; once it is ready, also its curve, its number of public signals, and warnings."""
        if not self.ready:
            return {"digest": self.digest}
        return {
            "digest": self.digest,
            "protocol": self.key.protocol,
            "curve": self.key.curve.name,
            "public": self.key.n_public,
            "warnings": list(self.warnings),
        }


def _backend(key: VerificationKey) -> Backend:
    from gpuprover.devices import open_backend
    from gpuprover.job import Job

    # One thread each: the server runs several verifications at once.
    return open_backend("cpu", key.curve, Job(threads=1))
