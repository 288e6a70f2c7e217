"""Keys, witnesses and proofs of snarkjs's PLONK and FFLONK, with known blinding."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpuprover.curves import BLS12_381, BN254, CurveParams
from tests.support.paths import VECTORS

OWN = VECTORS / "plonk"
"""Small circuits from a random generator."""
PLONK = ("adds", "bls-nopub", "bls-small", "duplicates", "nopub-8gates", "one-gate", "quirks")
FFLONK = ("adds", "duplicates", "nopub-8gates", "one-gate", "quirks")
FASTEST = "duplicates"
"""The circuit that takes the reference backend the least time."""


@dataclass(frozen=True)
class Sample:
    """One circuit's files for one protocol.

    Attributes:
        folder: where they lie.
        name: the circuit.
        protocol: plonk or fflonk.
    """

    folder: Path
    name: str
    protocol: str

    def _file(self, end: str) -> Path:
        return self.folder / f"{self.name}.{self.protocol}.{end}"

    @property
    def key(self) -> Path:
        return self._file("zkey")

    @property
    def witness(self) -> Path:
        return self.folder / f"{self.name}.wtns"

    @property
    def circuit(self) -> Path:
        return self.folder / f"{self.name}.r1cs"

    @property
    def proof_text(self) -> str:
        return self._file("b-fixed.proof.json").read_text()

    @property
    def proof(self) -> dict[str, Any]:
        return json.loads(self.proof_text)

    @property
    def public(self) -> list[str]:
        return json.loads(self._file("public.json").read_text())

    @property
    def verification_key_text(self) -> str:
        return self._file("vkey.json").read_text()

    @property
    def verification_key(self) -> dict[str, Any]:
        return json.loads(self.verification_key_text)

    @property
    def challenges(self) -> dict[str, int]:
        """Every challenge by its name in the specification."""
        document = json.loads(self._file("b-fixed.challenges.json").read_text())
        return {name: int(value) for name, value in document["challenges"].items()}

    @property
    def blinding(self) -> tuple[int, ...]:
        """b1, b2, … of the proof."""
        document = json.loads(self._file("b-fixed.challenges.json").read_text())
        return tuple(int(value) for value in document["blinding"].values())

    @property
    def curve(self) -> CurveParams:
        return BLS12_381 if self.name.startswith("bls") else BN254


def sample(name: str, protocol: str = "plonk") -> Sample:
    """One of the circuits in :data:`OWN`."""
    return Sample(OWN, name, protocol)
