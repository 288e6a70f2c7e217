"""What differs between the two lines of the network, as data."""

from __future__ import annotations

from dataclasses import dataclass

from gpuprover.midnight.architecture import CHIPS


@dataclass(frozen=True)
class Profile:
    """One line of proofs, keys and circuits.

    Attributes:
        name: ``v6`` or ``v7``, after the verifier keys' version.
        verifier_tag: the tag of verifier keys.
        prover_tag: the tag of prover keys that are written.
        prover_tags: the tags of prover keys that are read.
        circuit_tag: the tag of circuits that are written.
        stdlib_version: the format number in verifier keys.
        chips: chips in the order of the verifier key's booleans.
        states_max_bit_len: whether keys say the range table's size; otherwise it is k − 1.
        range_columns: range columns of this line's circuits.
        compressed_prover_keys: whether prover keys are written compressed.
        instance_first: whether the committed instance column is opened before the advice columns, not after.
        sets_by_size: whether the opening's point sets are ordered by size, not by first appearance.
    """

    name: str
    verifier_tag: str
    prover_tag: str
    prover_tags: tuple[str, ...]
    circuit_tag: str
    stdlib_version: int
    chips: tuple[str, ...]
    states_max_bit_len: bool
    range_columns: int
    compressed_prover_keys: bool
    instance_first: bool
    sets_by_size: bool


V6 = Profile(
    name="v6",
    verifier_tag="verifier-key[v6]",
    prover_tag="prover-key[v7](ir-source[v2])",
    prover_tags=("prover-key[v7](ir-source[v2])", "prover-key[v7](ir-source[v2-generic])"),
    circuit_tag="ir-source[v2]",
    stdlib_version=1,
    chips=tuple(chip for chip in CHIPS if chip not in {"p256", "curve25519"}),
    states_max_bit_len=True,
    range_columns=1,
    compressed_prover_keys=True,
    instance_first=True,
    sets_by_size=False,
)
V7 = Profile(
    name="v7",
    verifier_tag="verifier-key[v7]",
    prover_tag="prover-key[v7](ir-source[v3-generic])",
    prover_tags=("prover-key[v7](ir-source[v3-generic])",),
    circuit_tag="ir-source[v3-generic]",
    stdlib_version=2,
    chips=CHIPS,
    states_max_bit_len=False,
    range_columns=4,
    compressed_prover_keys=False,
    instance_first=False,
    sets_by_size=True,
)
PROFILES = (V6, V7)


def profile_of_verifier_tag(tag: str) -> Profile | None:
    """The line whose verifier keys have this tag; None: no line that there is."""
    return next((profile for profile in PROFILES if profile.verifier_tag == tag), None)


def profile_of_prover_tag(tag: str) -> Profile | None:
    """The line whose prover keys have this tag; None: no line that there is."""
    return next((profile for profile in PROFILES if tag in profile.prover_tags), None)
