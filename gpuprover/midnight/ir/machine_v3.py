"""Execution of ZKIR 3. A method ``op_x`` is the operation x; its arguments are the operation's fields.

Types are settled before: a value is an int for an element or a scalar of Jubjub, 32 bytes, or a point.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from gpuprover.midnight import jubjub
from gpuprover.midnight.curve_map import hash_to_curve
from gpuprover.midnight.encoding import Alignment
from gpuprover.midnight.ir.circuit import BYTES32, NATIVE, POINT, SCALAR, Circuit, Operand
from gpuprover.midnight.ir.failure import element_text
from gpuprover.midnight.ir.hashing import CHUNK, aligned_bytes
from gpuprover.midnight.ir.machine import Machine, R
from gpuprover.midnight.ir.v3 import ENCODED_LENGTHS, check_supported, types_of
from gpuprover.midnight.poseidon import poseidon_hash
from gpuprover.midnight.preimage import Preimage

Value = int | bytes | jubjub.Point
_DEFAULTS: dict[str, Value] = {NATIVE: 0, BYTES32: bytes(32), POINT: jubjub.NEUTRAL, SCALAR: 0}
"""What an input that its guard switches off is."""
_MODULI = {NATIVE: R, SCALAR: jubjub.ORDER}


def encode(value: Value) -> tuple[int, ...]:
    """The elements that a value is in transcripts and commitments."""
    if isinstance(value, bytes):
        return int.from_bytes(value[:CHUNK], "little"), value[CHUNK]
    return value if isinstance(value, tuple) else (value,)


def decode(elements: Sequence[int], type_name: str) -> Value | None:
    """The value of a type that elements encode; None: they encode none."""
    if type_name == BYTES32:
        low, high = elements
        if low >> 8 * CHUNK or high >> 8:
            return None
        return low.to_bytes(CHUNK, "little") + bytes([high])
    if type_name == POINT:
        point = elements[0], elements[1]
        return point if jubjub.is_valid(point) else None
    return elements[0] if elements[0] < _MODULI[type_name] else None


class MachineV3(Machine):
    """One run.

    Attributes:
        types: of each name.
        store: the value of each name, once it is there.
        outputs: what the circuit has returned.
    """

    def __init__(self, circuit: Circuit, preimage: Preimage) -> None:
        check_supported(circuit)
        super().__init__(circuit, preimage)
        self.types = types_of(circuit)
        self.store: dict[str, Value] = {}
        self.outputs: list[Value] = []

    def start(self) -> None:
        raw, at = self.preimage.inputs, 0
        for i, found in enumerate(self.circuit.inputs):
            size = ENCODED_LENGTHS[found.type]
            if at + size > len(raw):
                problem = f"Not enough raw inputs: ran out at index {at}"
                self.fail(f"{problem} while decoding input {i}", f'{problem} while decoding "{found.name}"')
            self.store[found.name] = self._decoded(raw[at : at + size], found.type)
            at += size
        if at != len(raw):
            self.fail(f"Expected {at} raw inputs, received {len(raw)}")

    def committed_outputs(self) -> list[int]:
        return [element for value in self.outputs for element in encode(value)]

    def _decoded(self, elements: Sequence[int], type_name: str) -> Value:
        value = decode(elements, type_name)
        if value is None:
            shown = ", ".join(map(element_text, elements))
            self.fail(
                f"Failed to decode a value of {type_name}", f"Failed to decode [{shown}] as {type_name}"
            )
        return value

    # Operands.

    def _value(self, operand: Operand) -> Value:
        return operand if isinstance(operand, int) else self.store[operand]

    def _type(self, operand: Operand) -> str:
        return NATIVE if isinstance(operand, int) else self.types[operand]

    def _int(self, operand: Operand) -> int:
        value = self._value(operand)
        assert isinstance(value, int)
        return value

    def _ints(self, operands: Sequence[Operand]) -> list[int]:
        return [self._int(operand) for operand in operands]

    def _bytes(self, operand: Operand) -> bytes:
        value = self._value(operand)
        assert isinstance(value, bytes)
        return value

    def _point(self, operand: Operand) -> jubjub.Point:
        value = self._value(operand)
        assert isinstance(value, tuple)
        return value

    def _bit(self, operand: Operand) -> bool:
        return self.boolean(self._int(operand))

    # Constraints.

    def op_assert(self, cond: Operand) -> None:
        if not self._bit(cond):
            self.fail("Failed direct assertion")

    def op_constrain_bits(self, val: Operand, bits: int) -> None:
        self.check_bits(self._int(val), bits)

    def op_constrain_eq(self, a: Operand, b: Operand) -> None:
        x, y = self._value(a), self._value(b)
        if x != y:
            shown = [" ".join(map(element_text, encode(value))) for value in (x, y)]
            self.fail("Equality constraint failed", f"Equality constraint failed: {shown[0]} != {shown[1]}")

    def op_constrain_to_boolean(self, val: Operand) -> None:
        self._bit(val)

    # Public inputs, transcripts, outputs.

    def op_impact(self, guard: Operand, inputs: tuple[Operand, ...]) -> None:
        if not self._bit(guard):
            self.public_inputs += [0] * len(inputs)
            self.skips.append(len(inputs))
            return
        self.public_inputs += self._ints(inputs)
        self.declared += len(inputs)
        self.skips.append(None)
        self.compare_declared(len(inputs))

    def _given(self, guard: Operand | None, take: Callable[[int], tuple[int, ...]], type_name: str) -> Value:
        if guard is None or self._bit(guard):
            value = self._decoded(take(ENCODED_LENGTHS[type_name]), type_name)
        else:
            value = _DEFAULTS[type_name]
        self.given += encode(value)
        return value

    def op_public_input(self, guard: Operand | None, type: str, output: str) -> None:
        self.store[output] = self._given(guard, self.take_public, type)

    def op_private_input(self, guard: Operand | None, type: str, output: str) -> None:
        self.store[output] = self._given(guard, self.take_private, type)

    def op_output(self, vals: tuple[Operand, ...]) -> None:
        self.outputs += map(self._value, vals)

    # Values of several types.

    def op_copy(self, val: Operand, output: str) -> None:
        self.store[output] = self._value(val)

    def op_cond_select(self, bit: Operand, a: Operand, b: Operand, output: str) -> None:
        self.store[output] = self._value(a if self._bit(bit) else b)

    def op_test_eq(self, a: Operand, b: Operand, output: str) -> None:
        self.store[output] = int(self._value(a) == self._value(b))

    def op_add(self, a: Operand, b: Operand, output: str) -> None:
        if self._type(a) == POINT:
            self.store[output] = jubjub.add(self._point(a), self._point(b))
        else:
            self.store[output] = (self._int(a) + self._int(b)) % _MODULI[self._type(a)]

    def op_mul(self, a: Operand, b: Operand, output: str) -> None:
        self.store[output] = self._int(a) * self._int(b) % _MODULI[self._type(a)]

    def op_neg(self, a: Operand, output: str) -> None:
        if self._type(a) == POINT:
            self.store[output] = jubjub.negate(self._point(a))
        else:
            self.store[output] = -self._int(a) % _MODULI[self._type(a)]

    def op_inv(self, a: Operand, output: str) -> None:
        value = self._int(a)
        if value == 0:
            self.fail(f"cannot invert zero of type {self._type(a)}")
        self.store[output] = pow(value, -1, _MODULI[self._type(a)])

    def op_encode(self, input: Operand, outputs: tuple[str, ...]) -> None:
        self.store.update(zip(outputs, encode(self._value(input)), strict=True))

    # Elements.

    def op_not(self, a: Operand, output: str) -> None:
        self.store[output] = int(not self._bit(a))

    def op_less_than(self, a: Operand, b: Operand, bits: int, output: str) -> None:
        self.store[output] = self.less_than(self._int(a), self._int(b), bits)

    def op_div_mod_power_of_two(self, val: Operand, bits: int, outputs: tuple[str, ...]) -> None:
        self.store.update(zip(outputs, self.div_mod(self._int(val), bits), strict=True))

    def op_reconstitute_field(self, divisor: Operand, modulus: Operand, bits: int, output: str) -> None:
        self.store[output] = self.reconstitute(self._int(divisor), self._int(modulus), bits)

    def op_jubjub_scalar_from_native(self, native: Operand, output: str) -> None:
        self.store[output] = self._int(native) % jubjub.ORDER

    # Bytes.

    def op_into_bytes32(self, input: Operand, output: str) -> None:
        self.store[output] = self._int(input).to_bytes(32, "little")

    def op_from_bytes32(self, bytes: Operand, type: str, output: str) -> None:
        self.store[output] = int.from_bytes(self._bytes(bytes), "little") % R

    def op_reverse_bytes(self, bytes: Operand, output: str) -> None:
        self.store[output] = self._bytes(bytes)[::-1]

    def op_bytes32_into_low_high(self, bytes: Operand, outputs: tuple[str, str]) -> None:
        self.store.update(zip(outputs, encode(self._bytes(bytes)), strict=True))

    def op_bytes32_from_low_high(self, inputs: tuple[Operand, Operand], output: str) -> None:
        value = decode(self._ints(inputs), BYTES32)
        if value is None:
            self.fail(
                "Bytes32FromLowHigh: low operand must fit in 31 bytes (be less than 2^248) and high operand"
                " must fit in a single byte (be less than 256)"
            )
        self.store[output] = value

    # Points and hashes.

    def op_ec_mul(self, a: Operand, scalar: Operand, output: str) -> None:
        self.store[output] = jubjub.multiply(self._point(a), self._int(scalar))

    def op_ec_mul_generator(self, scalar: Operand, output: str) -> None:
        self.store[output] = jubjub.multiply(jubjub.GENERATOR, self._int(scalar))

    def op_into_coordinates(self, point: Operand, outputs: tuple[str, str]) -> None:
        self.store.update(zip(outputs, self._point(point), strict=True))

    def op_from_coordinates(self, inputs: tuple[Operand, Operand], output: str) -> None:
        x, y = self._ints(inputs)
        if not jubjub.is_valid((x, y)):
            shown = f"({element_text(x)}, {element_text(y)})"
            self.fail("Cannot build a Jubjub point", f"Cannot build a Jubjub point from {shown}")
        self.store[output] = (x, y)

    def op_hash_to_curve(self, inputs: tuple[Operand, ...], output: str) -> None:
        self.store[output] = hash_to_curve(self._ints(inputs))

    def op_transient_hash(self, inputs: tuple[Operand, ...], output: str) -> None:
        self.store[output] = poseidon_hash(self._ints(inputs))

    def op_persistent_hash(self, alignment: Alignment, inputs: tuple[Operand, ...], output: str) -> None:
        values = self._ints(inputs)
        data = aligned_bytes(alignment, values)
        if data is None:
            self.fail_alignment(values)
        self.store[output] = hashlib.sha256(data).digest()
