"""Why a statement does not hold: where, in words without values, and on request as the network words it."""

from __future__ import annotations

from gpuprover.errors import UnsatisfiedWitness
from gpuprover.midnight.ir.circuit import step


class FailedCheck(UnsatisfiedWitness):
    """A circuit that a preimage does not satisfy.

    Attributes:
        index: the instruction that failed; None: what stands before or after all of them.
        op: its operation; empty where there is none.
        official: what the network's own code says, with values of the witness; secret as these are.
    """

    index: int | None = None
    op: str = ""
    official: str = ""

    def __init__(self, reason: str, official: str = "", index: int | None = None, op: str = "") -> None:
        part = "" if index is None else step(index, op)
        super().__init__(reason, role="witness", part=part)
        self.index, self.op, self.official = index, op, official or reason

    @property
    def kind(self) -> str:
        """The kind of its parent: who gets only a record of it knows no more than the message."""
        return UnsatisfiedWitness.__name__


def explain(failure: UnsatisfiedWitness, values: bool = False) -> str:
    """One line for whoever owns the preimage: the instruction and what is wrong there.

    Args:
        values: whether the line may hold values of the witness; it is the network's own text then, where
            there is one.
    """
    official = failure.official if isinstance(failure, FailedCheck) else ""
    reason = official if values and official else failure.problem
    return f"{failure.part}: {reason}" if failure.part else reason


def element_text(value: int) -> str:
    """An element as the network's texts have it: hexadecimal of its bytes, little-endian, and - for 0."""
    return value.to_bytes((value.bit_length() + 7) // 8, "little").hex() or "-"
