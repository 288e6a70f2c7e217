"""ZKIR 3 in rows: what each instruction lays out.

A value is as many cells as its type has: an element one, 32 bytes as many, a point of Jubjub two, a scalar
of Jubjub its 252 bits. Operands are looked up from left to right before an operation; an immediate is a
constant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from gpuprover.errors import UnsupportedFile
from gpuprover.midnight.circuit import curve_map_chip, jubjub_chip, sha256_chip
from gpuprover.midnight.circuit.front_v2 import aligned_bytes
from gpuprover.midnight.circuit.native import NativeOfFour
from gpuprover.midnight.circuit.poseidon_chip import poseidon_hash
from gpuprover.midnight.circuit.table import Cell
from gpuprover.midnight.ir.circuit import BYTES32, NATIVE, POINT, SCALAR, Circuit, Instruction, Operand, step
from gpuprover.midnight.ir.v3 import ENCODED_LENGTHS, check_supported, types_of

Value = Sequence[Cell]
SCALAR_BITS = 252
"""Bits of a scalar of Jubjub."""
_LOW_BYTES = 31


class FrontV3:
    """The instructions of one circuit, on the way into a table.

    Attributes:
        native: the native chip over the table.
        store: the cells of each name.
    """

    def __init__(self, native: NativeOfFour) -> None:
        self.native, self.tape = native, native.tape
        self.store: dict[str, Value] = {}
        self.types: Mapping[str, str] = {}
        self.public: list[Cell] = []
        self.outputs: list[tuple[str, Value]] = []
        self._path, self._part = "circuit", ""

    def lay_out(self, circuit: Circuit) -> None:
        """All of a circuit.

        Raises:
            UnsupportedFile: an operation or a type that cannot be proven here; names the instruction.
        """
        check_supported(circuit)
        self.types, self._path = types_of(circuit), circuit.path
        native = self.native
        for found in circuit.inputs:
            self.store[found.name] = self._assigned(found.type)
        self.public.append(native.assign(self.tape.input()))
        if circuit.do_communications_commitment:
            self.public.append(native.assign(self.tape.input()))
        for index, instruction in enumerate(circuit.instructions):
            self._part = step(index, instruction.op)
            _INSTRUCTIONS[instruction.op](self, instruction)
        if circuit.do_communications_commitment:
            self._commit(circuit)
        native.table.public = self.public

    def _commit(self, circuit: Circuit) -> None:
        rho = self.native.assign(self.tape.input())
        committed = [rho]
        given = [(found.type, self.store[found.name]) for found in circuit.inputs]
        for type_name, value in [*given, *self.outputs]:
            committed += self._encoded(type_name, value)
        found = poseidon_hash(self.native, committed)
        self.native.table.equal_bounded(found, self.public[1])

    def _refuse(self, what: str) -> NoReturn:
        raise UnsupportedFile(self._path, self._part, f"{what} is not supported")

    # Values ------------------------------------------------------------------------------

    def _assigned(self, type_name: str) -> Value:
        """Cells of a value that a statement gives, encoded."""
        tape = self.tape
        raw = [tape.input() for _ in range(ENCODED_LENGTHS[type_name])]
        if type_name == NATIVE:
            return self.native.assign_many(raw)
        if type_name == BYTES32:
            low = [tape.bits(raw[0], 8 * i, 8) for i in range(_LOW_BYTES)]
            return self.native.assign_limbs([*low, raw[1]], 8)
        if type_name == POINT:
            point: Value = jubjub_chip.point_value(self.native, raw[0], raw[1])
            return point
        return self.native.assign_limbs([tape.bits(raw[0], i, 1) for i in range(SCALAR_BITS)], 1)

    def _encoded(self, type_name: str, value: Value) -> Value:
        """The elements that a value is in commitments."""
        if type_name == BYTES32:
            return [self.native.from_bytes(value[:_LOW_BYTES]), value[_LOW_BYTES]]
        if type_name == SCALAR:
            return [self.native.from_bits(value)]
        return value

    def _type(self, operand: Operand) -> str:
        return NATIVE if isinstance(operand, int) else self.types[operand]

    def _value(self, operand: Operand) -> Value:
        if isinstance(operand, int):
            return [self.native.const(operand)]
        return self.store[operand]

    def _one(self, operand: Operand) -> Cell:
        (cell,) = self._value(operand)
        return cell

    def _pair(self, operand: Operand) -> tuple[Cell, Cell]:
        x, y = self._value(operand)
        return x, y

    def _two(self, i: Instruction) -> tuple[Value, Value]:
        a = self._value(i["a"])
        return a, self._value(i["b"])

    # Constraints -------------------------------------------------------------------------

    def _assert(self, i: Instruction) -> None:
        self.native.assert_non_zero(self._one(i["cond"]))

    def _constrain_bits(self, i: Instruction) -> None:
        self.native.to_bits(self._one(i["val"]), i["bits"], canonical=i["bits"] >= 255)

    def _constrain_eq(self, i: Instruction) -> None:
        if self._type(i["a"]) not in (NATIVE, POINT):
            self._refuse(f"an equality of values of type {self._type(i['a'])}")
        for x, y in zip(*self._two(i), strict=True):
            self.native.table.equal_bounded(x, y)

    def _constrain_to_boolean(self, i: Instruction) -> None:
        self.native.to_bit(self._one(i["val"]))

    def _impact(self, i: Instruction) -> None:
        nothing = self.native.const(0)
        on = self.native.to_bit(self._one(i["guard"]))
        for operand in i["inputs"]:
            self.public.append(self.native.select(on, self._one(operand), nothing))

    def _given(self, i: Instruction) -> None:
        self.store[i["output"]] = self._assigned(i["type"])

    def _output(self, i: Instruction) -> None:
        self.outputs += [(self._type(operand), self._value(operand)) for operand in i["vals"]]

    # Values of several types -------------------------------------------------------------

    def _copy(self, i: Instruction) -> None:
        self.store[i["output"]] = self._value(i["val"])

    def _encode(self, i: Instruction) -> None:
        found = self._encoded(self._type(i["input"]), self._value(i["input"]))
        self.store |= {name: [cell] for name, cell in zip(i["outputs"], found, strict=True)}

    def _cond_select(self, i: Instruction) -> None:
        if self._type(i["a"]) not in (NATIVE, POINT):
            self._refuse(f"a choice between values of type {self._type(i['a'])}")
        bit = self.native.to_bit(self._one(i["bit"]))
        pairs = zip(*self._two(i), strict=True)
        self.store[i["output"]] = [self.native.select(bit, x, y) for x, y in pairs]

    def _test_eq(self, i: Instruction) -> None:
        native = self.native
        if self._type(i["a"]) not in (NATIVE, POINT):
            self._refuse(f"a comparison of values of type {self._type(i['a'])}")
        same = [native.is_equal(x, y) for x, y in zip(*self._two(i), strict=True)]
        result = same[0]
        for other in same[1:]:
            result = native.logical_and(result, other)
        self.store[i["output"]] = [native.as_native(result)]

    def _add(self, i: Instruction) -> None:
        kind = self._type(i["a"])
        if kind == SCALAR:
            self._refuse(f"a sum of values of type {kind}")
        a, b = self._two(i)
        if kind == POINT:
            self.store[i["output"]] = jubjub_chip.add(self.native, (a[0], a[1]), (b[0], b[1]))
        else:
            self.store[i["output"]] = [self.native.add(a[0], b[0])]

    def _mul(self, i: Instruction) -> None:
        if self._type(i["a"]) != NATIVE:
            self._refuse(f"a product of values of type {self._type(i['a'])}")
        (a,), (b,) = self._two(i)
        self.store[i["output"]] = [self.native.mul(a, b)]

    def _neg(self, i: Instruction) -> None:
        kind = self._type(i["a"])
        if kind == SCALAR:
            self._refuse(f"a negative of type {kind}")
        value = self._value(i["a"])
        self.store[i["output"]] = [self.native.neg(value[0]), *value[1:]]

    def _inv(self, i: Instruction) -> None:
        if self._type(i["a"]) != NATIVE:
            self._refuse(f"an inverse of type {self._type(i['a'])}")
        self.store[i["output"]] = [self.native.inverse(self._one(i["a"]))]

    # Elements ----------------------------------------------------------------------------

    def _not(self, i: Instruction) -> None:
        bit = self.native.to_bit(self._one(i["a"]))
        self.store[i["output"]] = [self.native.as_native(self.native.logical_not(bit))]

    def _less_than(self, i: Instruction) -> None:
        (a,), (b,) = self._two(i)
        bits = max(i["bits"] + i["bits"] % 2, 4)
        self.store[i["output"]] = [self.native.as_native(self.native.less_than(a, b, bits))]

    def _div_mod_power_of_two(self, i: Instruction) -> None:
        bits = self.native.to_bits(self._one(i["val"]), 255, canonical=True)
        low = self.native.from_bits(bits[: i["bits"]])
        high = self.native.from_bits(bits[i["bits"] :])
        self.store |= dict(zip(i["outputs"], ([high], [low]), strict=True))

    def _reconstitute_field(self, i: Instruction) -> None:
        divisor, modulus = self._one(i["divisor"]), self._one(i["modulus"])
        self.native.assert_less(divisor, 1 << (255 - i["bits"]))
        self.native.assert_less(modulus, 1 << i["bits"])
        self.store[i["output"]] = [self.native.lincomb([(1, modulus), (1 << i["bits"], divisor)])]

    # Bytes -------------------------------------------------------------------------------

    def _into_bytes32(self, i: Instruction) -> None:
        if self._type(i["input"]) != NATIVE:
            self._refuse(f"bytes of type {self._type(i['input'])}")
        self.store[i["output"]] = self.native.to_bytes(self._one(i["input"]), 32)

    def _from_bytes32(self, i: Instruction) -> None:
        if i["type"] != NATIVE:
            self._refuse(f"bytes as type {i['type']}")
        self.store[i["output"]] = [self.native.from_bytes(self._value(i["bytes"]))]

    def _reverse_bytes(self, i: Instruction) -> None:
        self.store[i["output"]] = [*reversed(self._value(i["bytes"]))]

    def _bytes32_into_low_high(self, i: Instruction) -> None:
        value = self._value(i["bytes"])
        high = self.native.as_native(value[_LOW_BYTES], 256)
        low = self.native.from_bytes([*value[:_LOW_BYTES], self.native.const(0)])
        self.store |= dict(zip(i["outputs"], ([low], [high]), strict=True))

    def _bytes32_from_low_high(self, i: Instruction) -> None:
        native = self.native
        low, high = (self._one(operand) for operand in i["inputs"])
        found = native.to_bytes(low, 32)
        native.table.equal(native.as_native(found[_LOW_BYTES], 256), native.const(0))
        self.store[i["output"]] = [*found[:_LOW_BYTES], native.to_byte(high)]

    # Hashes and points -------------------------------------------------------------------

    def _transient_hash(self, i: Instruction) -> None:
        inputs = [self._one(operand) for operand in i["inputs"]]
        self.store[i["output"]] = [poseidon_hash(self.native, inputs)]

    def _persistent_hash(self, i: Instruction) -> None:
        inputs = [self._one(operand) for operand in i["inputs"]]
        data = aligned_bytes(self.native, i["alignment"], inputs)
        self.store[i["output"]] = sha256_chip.sha256(self.native, data)

    def _ec_mul(self, i: Instruction) -> None:
        point, bits = self._pair(i["a"]), self._value(i["scalar"])
        self.store[i["output"]] = jubjub_chip.multiply(self.native, bits, point)

    def _ec_mul_generator(self, i: Instruction) -> None:
        bits = self._value(i["scalar"])
        generator = jubjub_chip.generator(self.native)
        self.store[i["output"]] = jubjub_chip.multiply(self.native, bits, generator)

    def _hash_to_curve(self, i: Instruction) -> None:
        inputs = [self._one(operand) for operand in i["inputs"]]
        self.store[i["output"]] = curve_map_chip.hash_to_curve(self.native, inputs)

    def _into_coordinates(self, i: Instruction) -> None:
        x, y = self._pair(i["point"])
        self.store |= dict(zip(i["outputs"], ([x], [y]), strict=True))

    def _from_coordinates(self, i: Instruction) -> None:
        x, y = (self._one(operand) for operand in i["inputs"])
        self.store[i["output"]] = jubjub_chip.point(self.native, x, y)

    def _unsupported(self, i: Instruction) -> None:
        self._refuse(i.op)


_INSTRUCTIONS: Mapping[str, Callable[[FrontV3, Instruction], None]] = {
    "encode": FrontV3._encode,
    "assert": FrontV3._assert,
    "cond_select": FrontV3._cond_select,
    "constrain_bits": FrontV3._constrain_bits,
    "constrain_eq": FrontV3._constrain_eq,
    "constrain_to_boolean": FrontV3._constrain_to_boolean,
    "copy": FrontV3._copy,
    "impact": FrontV3._impact,
    "ec_mul": FrontV3._ec_mul,
    "ec_mul_generator": FrontV3._ec_mul_generator,
    "hash_to_curve": FrontV3._hash_to_curve,
    "into_coordinates": FrontV3._into_coordinates,
    "from_coordinates": FrontV3._from_coordinates,
    "into_bytes32": FrontV3._into_bytes32,
    "from_bytes32": FrontV3._from_bytes32,
    "reverse_bytes": FrontV3._reverse_bytes,
    "bytes32_into_low_high": FrontV3._bytes32_into_low_high,
    "bytes32_from_low_high": FrontV3._bytes32_from_low_high,
    "div_mod_power_of_two": FrontV3._div_mod_power_of_two,
    "reconstitute_field": FrontV3._reconstitute_field,
    "transient_hash": FrontV3._transient_hash,
    "persistent_hash": FrontV3._persistent_hash,
    "test_eq": FrontV3._test_eq,
    "add": FrontV3._add,
    "mul": FrontV3._mul,
    "neg": FrontV3._neg,
    "inv": FrontV3._inv,
    "not": FrontV3._not,
    "less_than": FrontV3._less_than,
    "jubjub_scalar_from_native": FrontV3._unsupported,
    "public_input": FrontV3._given,
    "private_input": FrontV3._given,
    "output": FrontV3._output,
}
