"""Execution of ZKIR 2.0. A method ``op_x`` is the operation x; its arguments are the operation's fields."""

from __future__ import annotations

import hashlib

from gpuprover.midnight import jubjub
from gpuprover.midnight.curve_map import hash_to_curve
from gpuprover.midnight.encoding import Alignment
from gpuprover.midnight.ir.circuit import Circuit
from gpuprover.midnight.ir.failure import element_text
from gpuprover.midnight.ir.hashing import CHUNK, aligned_bytes
from gpuprover.midnight.ir.machine import Machine, R
from gpuprover.midnight.poseidon import poseidon_hash
from gpuprover.midnight.preimage import Preimage


class MachineV2(Machine):
    """One run.

    Attributes:
        memory: elements below r; it grows.
        outputs: what the circuit has returned.
    """

    def __init__(self, circuit: Circuit, preimage: Preimage) -> None:
        super().__init__(circuit, preimage)
        self.memory = list(preimage.inputs)
        self.outputs: list[int] = []

    def start(self) -> None:
        expected, found = len(self.circuit.inputs), len(self.preimage.inputs)
        if expected != found:
            self.fail(f"Expected {expected} inputs, received {found}")

    def committed_outputs(self) -> list[int]:
        return self.outputs

    def _push(self, *values: int) -> None:
        self.memory += values

    def _bit(self, place: int) -> bool:
        return self.boolean(self.memory[place])

    def _active(self, guard: int | None) -> bool:
        return guard is None or self._bit(guard)

    def _point(self, x: int, y: int) -> jubjub.Point:
        point = self.memory[x], self.memory[y]
        if not jubjub.is_valid(point):
            shown = ", ".join(map(element_text, point))
            self.fail("Elliptic curve point not on curve", f"Elliptic curve point not on curve: ({shown})")
        return point

    # Constraints.

    def op_assert(self, cond: int) -> None:
        if not self._bit(cond):
            self.fail("Failed direct assertion")

    def op_constrain_bits(self, var: int, bits: int) -> None:
        self.check_bits(self.memory[var], bits)

    def op_constrain_eq(self, a: int, b: int) -> None:
        x, y = self.memory[a], self.memory[b]
        if x != y:
            self.fail(
                "Failed equality constraint",
                f"Failed equality constraint: {element_text(x)} != {element_text(y)}",
            )

    def op_constrain_to_boolean(self, var: int) -> None:
        self._bit(var)

    # Public inputs, transcripts, outputs.

    def op_declare_pub_input(self, var: int) -> None:
        self.public_inputs.append(self.memory[var])
        self.declared += 1

    def op_pi_skip(self, guard: int | None, count: int) -> None:
        active = self._active(guard)
        if count > self.declared:
            self.fail(f"a group of {count} public inputs, of which {self.declared} were declared")
        if active:
            self.compare_declared(count)
        else:
            self.declared -= count
        self.skips.append(None if active else count)

    def op_public_input(self, guard: int | None) -> None:
        value = self.take_public(1)[0] if self._active(guard) else 0
        self.given.append(value)
        self._push(value)

    def op_private_input(self, guard: int | None) -> None:
        value = self.take_private(1)[0] if self._active(guard) else 0
        self.given.append(value)
        self._push(value)

    def op_output(self, var: int) -> None:
        self.outputs.append(self.memory[var])

    # Elements.

    def op_load_imm(self, imm: int) -> None:
        self._push(imm)

    def op_copy(self, var: int) -> None:
        self._push(self.memory[var])

    def op_cond_select(self, bit: int, a: int, b: int) -> None:
        self._push(self.memory[a if self._bit(bit) else b])

    def op_add(self, a: int, b: int) -> None:
        self._push((self.memory[a] + self.memory[b]) % R)

    def op_mul(self, a: int, b: int) -> None:
        self._push(self.memory[a] * self.memory[b] % R)

    def op_neg(self, a: int) -> None:
        self._push(-self.memory[a] % R)

    def op_not(self, a: int) -> None:
        self._push(int(not self._bit(a)))

    def op_test_eq(self, a: int, b: int) -> None:
        self._push(int(self.memory[a] == self.memory[b]))

    def op_less_than(self, a: int, b: int, bits: int) -> None:
        self._push(self.less_than(self.memory[a], self.memory[b], bits))

    def op_div_mod_power_of_two(self, var: int, bits: int) -> None:
        self._push(*self.div_mod(self.memory[var], bits))

    def op_reconstitute_field(self, divisor: int, modulus: int, bits: int) -> None:
        self._push(self.reconstitute(self.memory[divisor], self.memory[modulus], bits))

    # Points and hashes.

    def op_ec_add(self, a_x: int, a_y: int, b_x: int, b_y: int) -> None:
        self._push(*jubjub.add(self._point(a_x, a_y), self._point(b_x, b_y)))

    def op_ec_mul(self, a_x: int, a_y: int, scalar: int) -> None:
        self._push(*jubjub.multiply(self._point(a_x, a_y), self.memory[scalar] % jubjub.ORDER))

    def op_ec_mul_generator(self, scalar: int) -> None:
        self._push(*jubjub.multiply(jubjub.GENERATOR, self.memory[scalar] % jubjub.ORDER))

    def op_hash_to_curve(self, inputs: tuple[int, ...]) -> None:
        self._push(*hash_to_curve([self.memory[place] for place in inputs]))

    def op_transient_hash(self, inputs: tuple[int, ...]) -> None:
        self._push(poseidon_hash([self.memory[place] for place in inputs]))

    def op_persistent_hash(self, alignment: Alignment, inputs: tuple[int, ...]) -> None:
        values = [self.memory[place] for place in inputs]
        data = aligned_bytes(alignment, values)
        if data is None:
            self.fail_alignment(values)
        digest = hashlib.sha256(data).digest()
        self._push(digest[CHUNK], int.from_bytes(digest[:CHUNK], "little"))
