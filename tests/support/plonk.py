"""Files of PLONK and FFLONK to test with."""

from __future__ import annotations

from tests.support.paths import VECTORS

OWN = VECTORS / "plonk"
"""Keys, witnesses and proofs with fixed blinding by snarkjs 0.7.6, of circuits of our own."""
