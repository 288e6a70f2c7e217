"""Architectures of circuits: which chips' columns and identities a circuit has."""

from __future__ import annotations

from typing import NamedTuple

CHIPS = (
    "jubjub",
    "poseidon",
    "sha2_256",
    "sha2_512",
    "keccak_256",
    "sha3_256",
    "blake2b",
    "secp256k1",
    "p256",
    "bls12_381",
    "curve25519",
    "base64",
    "automaton",
)
"""Chips by name, in the order of keys of the newer line."""
BASIC_CHIPS = frozenset({"jubjub", "poseidon", "sha2_256"})
"""Chips that can be proven here."""


class Architecture(NamedTuple):
    """A circuit's columns and identities, as its verifier key names them.

    Attributes:
        chips: names from :data:`CHIPS`.
        range_columns: advice columns with a range lookup.
    """

    chips: frozenset[str]
    range_columns: int
