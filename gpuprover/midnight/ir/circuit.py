"""A circuit in ZKIR: instructions and what they are given, the same for both versions of the language."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

NATIVE = "Scalar<BLS12-381>"
BYTES32 = "Bytes<32>"
POINT = "Point<Jubjub>"
SCALAR = "Scalar<Jubjub>"

Operand = str | int
"""A value of ZKIR 3: a name, which begins with %, or an immediate element below r."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One step of a circuit.

    Attributes:
        op: the operation's name.
        fields: its operands by their names, as the tables of :mod:`.v2` and :mod:`.v3` list them. A place in
            ZKIR 2.0's memory is an int, a value of ZKIR 3 an :data:`Operand`, a new name a str, an absent
            option None; lists are tuples.
    """

    op: str
    fields: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]


class Input(NamedTuple):
    """A value that the circuit starts with.

    Attributes:
        name: its name; empty in ZKIR 2.0, where inputs are the first places of the memory.
        type: its type, by the name that JSON has for it.
    """

    name: str
    type: str


@dataclass(frozen=True)
class Circuit:
    """A circuit as a file describes it.

    Attributes:
        version: major and minor version of the language.
        inputs: what it starts with.
        outputs: types of what it returns; empty in ZKIR 2.0, which has no signature.
        do_communications_commitment: whether inputs and outputs are committed to in a public input.
        instructions: its steps.
        path: the file's name, for messages.
    """

    version: tuple[int, int]
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    do_communications_commitment: bool
    instructions: tuple[Instruction, ...]
    path: str = field(default="circuit", compare=False)


def step(index: int, op: str) -> str:
    """How messages name an instruction."""
    return f"instruction {index} ({op})"
