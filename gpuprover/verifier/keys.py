"""Verification keys that are ready to verify with: parsed, checked, their machine code loaded.

Nothing of a key is kept on disk. Its lines of β, γ and δ are 50 to 60 KB; to compute them takes 0.1 to 0.2
ms, to map and read them from a file half of that (measured by hand). Start-up waits for machine code.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from gpuprover.errors import MalformedFile, ProverError, UnsupportedFile
from gpuprover.formats import groth16_json

if TYPE_CHECKING:
    from gpuprover.backend import Backend


class LoadedKey:
    """One verification key, and what can be done with it. Any number of threads may.

    To make one costs nothing: :meth:`prepare`, or else what needs the key first, parses and checks it.

    Args:
        document: as snarkjs writes it; e(α, β) may be missing.
        expected: the digest that the key has to have, or None.

    Attributes:
        digest: :func:`gpuprover.formats.groth16_json.digest` of the key; before it is ready, the expected
            one.
        ready: the key is checked, and has its digest.
    """

    def __init__(
        self, document: object, expected: str | None = None, source: str = "verification key"
    ) -> None:
        self._document, self._expected, self._source = document, expected, source
        self.digest = expected or ""
        self.ready = False
        self._key: groth16_json.VerificationKey | None = None
        self._lock = threading.Lock()
        self._problem: ProverError | None = None

    @property
    def key(self) -> groth16_json.VerificationKey:
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
        from gpuprover.groth16 import verifier

        key = groth16_json.parse_verification_key(self._document, self._source)
        digest = groth16_json.digest(key)
        if self._expected is not None and self._expected != digest:
            problem = f"expected {self._expected[:64]}, found {digest}: not the key it should be"
            raise MalformedFile(self._source, "digest", problem, role="verification key")
        # Points of the key itself, which are checked by then; the answer does not matter.
        proof = groth16_json.Proof(key.alpha1, key.beta2, key.alpha1)
        verifier.verify(key, [0] * key.n_public, proof, _backend(key), key_source=self._source)
        self._key, self.digest, self._document = key, digest, None
        self.ready = True

    def verify(self, public: object, proof: object) -> bool:
        """Whether a proof document holds for a list of public signals.

        Raises:
            MalformedFile, UnsupportedFile: as :func:`gpuprover.verify`.
        """
        from gpuprover.groth16 import verifier

        key = self.key
        signals = groth16_json.parse_public_signals(public, key.curve, key.n_public)
        return verifier.verify(key, signals, groth16_json.parse_proof(proof, key.curve), _backend(key))

    def verify_batch(self, statements: list[tuple[object, object]]) -> list[bool]:
        """For each (public signals, proof) whether it holds; a damaged one is False."""
        from gpuprover.groth16 import verifier

        return verifier.verify_documents(self.key, statements, _backend(self.key))

    def describe(self) -> dict[str, Any]:
        """Its digest; once it is ready, also its curve, its number of public signals, and warnings."""
        if not self.ready:
            return {"digest": self.digest}
        return {
            "digest": self.digest,
            "curve": self.key.curve.name,
            "public": self.key.n_public,
            "warnings": list(self.warnings),
        }


def _backend(key: groth16_json.VerificationKey) -> Backend:
    from gpuprover.devices import open_backend
    from gpuprover.job import Job

    # One thread each: the server runs several verifications at once.
    return open_backend("cpu", key.curve, Job(threads=1))
