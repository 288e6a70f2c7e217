"""Verification keys that are ready to verify with: parsed, checked, their machine code loaded.

Nothing of a key is kept on disk. Its lines of β, γ and δ are 50 to 60 KB; to compute them takes 0.1 to 0.2
ms, to map and read them from a file half of that (measured by hand). Start-up waits for machine code.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from gpuprover.errors import MalformedFile, ProverError
from gpuprover.formats import groth16_json

if TYPE_CHECKING:
    from gpuprover.backend import Backend


class LoadedKey:
    """One verification key, and what can be done with it. Any number of threads may.

    Args:
        document: as snarkjs writes it; e(α, β) may be missing.
        expected: the digest that the key has to have, or None.

    Attributes:
        digest: :func:`gpuprover.formats.groth16_json.digest` of the key.
        warnings: sentences that whoever trusts its answers has to read: proofs can be forged for such a key.

    Raises:
        MalformedFile, UnsupportedFile: the document is damaged, or has another digest than expected.
    """

    def __init__(
        self, document: object, expected: str | None = None, source: str = "verification key"
    ) -> None:
        self.key = groth16_json.parse_verification_key(document, source)
        self.digest = groth16_json.digest(self.key)
        self.warnings = self.key.warnings
        self._source = source
        if expected is not None and expected != self.digest:
            raise MalformedFile(
                source, "digest", f"expected {expected[:64]}, found {self.digest}: not the key it should be"
            )
        self._lock = threading.Lock()
        self._prepared = False
        self._problem: ProverError | None = None

    def prepare(self) -> None:
        """Checks the points' subgroups and verifies something, once: what follows is as fast as it gets.

        Raises:
            MalformedFile: a point is outside its subgroup; again at every further call.
        """
        from gpuprover.groth16 import verifier

        with self._lock:
            if not self._prepared:
                key = self.key
                # Points of the key itself, which are checked by then; the answer does not matter.
                proof = groth16_json.Proof(key.alpha1, key.beta2, key.alpha1)
                try:
                    verifier.verify(key, [0] * key.n_public, proof, self._backend(), key_source=self._source)
                except MalformedFile as error:
                    self._problem = error
                self._prepared = True
        if self._problem is not None:
            raise self._problem

    def verify(self, public: object, proof: object) -> bool:
        """Whether a proof document holds for a list of public signals.

        Raises:
            MalformedFile, UnsupportedFile: as :func:`gpuprover.verify`.
        """
        from gpuprover.groth16 import verifier

        self.prepare()
        curve = self.key.curve
        signals = groth16_json.parse_public_signals(public, curve, self.key.n_public)
        return verifier.verify(self.key, signals, groth16_json.parse_proof(proof, curve), self._backend())

    def verify_batch(self, statements: list[tuple[object, object]]) -> list[bool]:
        """For each (public signals, proof) whether it holds; a damaged one is False."""
        from gpuprover.groth16 import verifier

        self.prepare()
        return verifier.verify_documents(self.key, statements, self._backend())

    def describe(self) -> dict[str, Any]:
        return {
            "digest": self.digest,
            "curve": self.key.curve.name,
            "public": self.key.n_public,
            "warnings": list(self.warnings),
        }

    def _backend(self) -> Backend:
        from gpuprover.backend import open_backend
        from gpuprover.job import Job

        # One thread each: the server runs several verifications at once.
        return open_backend("cpu", self.key.curve, Job(threads=1))
