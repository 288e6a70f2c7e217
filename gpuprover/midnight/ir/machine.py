"""What the machines of both versions share: transcripts, public inputs, and checks of elements.

A machine executes a circuit on integers. It is what Midnight's own code calls a check: every constraint is
looked at where its instruction stands, the transcripts have to be used up, and the commitment to inputs and
outputs has to be right.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from gpuprover.curves import BLS12_381
from gpuprover.midnight.ir.circuit import Circuit
from gpuprover.midnight.ir.failure import FailedCheck, element_text
from gpuprover.midnight.poseidon import poseidon_hash
from gpuprover.midnight.preimage import Preimage

R = BLS12_381.r
FIELD_BITS, STORED_BITS = 255, 248
"""Bits of r, and bits of which every pattern is an element."""


@dataclass(frozen=True)
class Execution:
    """A circuit's run on a preimage that satisfies it. Its values are secret but for the public inputs.

    Attributes:
        public_inputs: of the statement, in their order; elements below r.
        skips: for each group of declared public inputs None, or how many they are where the group is skipped.
        inputs: the values that the circuit's table is given, in the order in which it asks for them: inputs,
            binding input, the commitment where there is one, what each instruction for public and private
            input gets, the commitment's randomness. All are elements below r; typed values are encoded.
    """

    public_inputs: list[int]
    skips: list[int | None]
    inputs: list[int] = field(repr=False)


class Machine(ABC):
    """One run.

    Attributes:
        index, op: the instruction that runs, for messages.
        public_inputs, skips, given: as :class:`Execution` has them, so far.
        declared: public inputs that were compared with the transcript.
    """

    def __init__(self, circuit: Circuit, preimage: Preimage) -> None:
        self.circuit, self.preimage = circuit, preimage
        self.index: int | None = None
        self.op = ""
        self.public_inputs = [preimage.binding_input]
        self.skips: list[int | None] = []
        self.given = [*preimage.inputs, preimage.binding_input]
        self.declared = 0
        self._public_outputs_used = self._private_used = 0

    # What versions differ in.

    @abstractmethod
    def start(self) -> None:
        """Takes the inputs."""

    @abstractmethod
    def committed_outputs(self) -> list[int]:
        """The outputs, encoded."""

    # The run.

    def run(self) -> Execution:
        """Raises FailedCheck."""
        self.start()
        commitment = self._commitment() if self.circuit.do_communications_commitment else None
        if commitment is not None:
            self.public_inputs.append(commitment[0])
            self.given.append(commitment[0])
        steps = {
            instruction.op: getattr(self, f"op_{instruction.op}") for instruction in self.circuit.instructions
        }
        for index, instruction in enumerate(self.circuit.instructions):
            self.index, self.op = index, instruction.op
            steps[instruction.op](**instruction.fields)
        self.index, self.op = None, ""
        self._check_transcripts()
        if commitment is not None:
            value, randomness = commitment
            if poseidon_hash([randomness, *self.preimage.inputs, *self.committed_outputs()]) != value:
                self.fail("Communications commitment mismatch")
            self.given.append(randomness)
        return Execution(self.public_inputs, self.skips, self.given)

    def fail(self, reason: str, official: str = "") -> NoReturn:
        """Raises FailedCheck for the instruction that runs."""
        raise FailedCheck(reason, official, self.index, self.op)

    def _commitment(self) -> tuple[int, int]:
        found = self.preimage.communications_commitment
        if found is None:
            self.fail("Expected communications commitment")
        return found

    def _check_transcripts(self) -> None:
        found = self.preimage
        for name, given, used in (
            ("public transcript inputs", found.public_transcript_inputs, self.declared),
            ("public transcript outputs", found.public_transcript_outputs, self._public_outputs_used),
            ("private transcript outputs", found.private_transcript, self._private_used),
        ):
            if len(given) != used:
                self.fail(
                    f"Transcripts not fully consumed: {used} of {len(given)} {name} were used",
                    "Transcripts not fully consumed",
                )

    # Transcripts.

    def take_public(self, count: int) -> tuple[int, ...]:
        """The next elements of the public transcript's outputs."""
        found = self._next(
            self.preimage.public_transcript_outputs, self._public_outputs_used, count, "public"
        )
        self._public_outputs_used += count
        return found

    def take_private(self, count: int) -> tuple[int, ...]:
        """The next elements of the private transcript."""
        found = self._next(self.preimage.private_transcript, self._private_used, count, "private")
        self._private_used += count
        return found

    def _next(self, transcript: Sequence[int], used: int, count: int, name: str) -> tuple[int, ...]:
        if used + count > len(transcript):
            self.fail(f"Ran out of {name} transcript outputs")
        return tuple(transcript[used : used + count])

    def compare_declared(self, count: int) -> None:
        """The last ``count`` public inputs have to be the last of those that the transcript declares."""
        expected = self.preimage.public_transcript_inputs
        for i in range(count):
            at = self.declared - count + i
            computed = self.public_inputs[len(self.public_inputs) - count + i]
            if at >= len(expected) or expected[at] != computed:
                shown = f"Some({element_text(expected[at])})" if at < len(expected) else "None"
                self.fail(
                    f"Public transcript input mismatch for input {at}",
                    f"Public transcript input mismatch for input {at}; expected: {shown}, computed:"
                    f" Some({element_text(computed)})",
                )

    # Elements.

    def boolean(self, value: int) -> bool:
        """An element that has to be 0 or 1."""
        if value > 1:
            self.fail("Expected boolean", f"Expected boolean, found: {element_text(value)}")
        return value == 1

    def check_bits(self, value: int, bits: int) -> None:
        """An element that has to be below 2^bits."""
        if bits >= FIELD_BITS:
            self.fail("Excessive bit bound")
        if value >> bits:
            self.fail(
                f"Bit bound failed: a value is not {bits}-bit",
                f"Bit bound failed: {element_text(value)} is not {bits}-bit",
            )

    def div_mod(self, value: int, bits: int) -> tuple[int, int]:
        """Quotient and rest of a division by 2^bits."""
        if bits > STORED_BITS:
            self.fail("Excessive bit count")
        return value >> bits, value & ((1 << bits) - 1)

    def reconstitute(self, divisor: int, modulus: int, bits: int) -> int:
        """divisor·2^bits + modulus, which has to be below r."""
        if bits > STORED_BITS:
            self.fail("Excessive bit count")
        self.check_bits(modulus, bits)
        self.check_bits(divisor, FIELD_BITS - bits)
        value = divisor << bits | modulus
        if value >= R:
            self.fail("Reconstituted element overflows field")
        return value

    def less_than(self, a: int, b: int, bits: int) -> int:
        """1 if a < b, both below 2^bits."""
        self.check_bits(a, bits)
        self.check_bits(b, bits)
        return int(a < b)

    def fail_alignment(self, values: Sequence[int]) -> NoReturn:
        """Elements that are more than their alignment lets them be."""
        shown = ", ".join(map(element_text, values))
        self.fail("Inputs did not match alignment", f"Inputs did not match alignment (inputs: [{shown}])")
