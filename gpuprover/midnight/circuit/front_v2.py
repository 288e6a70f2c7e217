"""ZKIR 2.0 in rows: what each instruction lays out."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gpuprover.midnight.circuit import curve_map_chip, jubjub_chip, sha256_chip
from gpuprover.midnight.circuit.native import Native
from gpuprover.midnight.circuit.poseidon_chip import poseidon_hash
from gpuprover.midnight.circuit.table import Cell
from gpuprover.midnight.encoding import Alignment, Atom
from gpuprover.midnight.ir.circuit import Circuit, Instruction


class FrontV2:
    """The instructions of one circuit, on the way into a table.

    Attributes:
        native: the native chip over the table.
        memory: cells of the circuit's memory.
    """

    def __init__(self, native: Native) -> None:
        self.native, self.tape = native, native.tape
        self.memory: list[Cell] = []
        self.public: list[Cell] = []
        self.outputs: list[Cell] = []

    def lay_out(self, circuit: Circuit) -> None:
        """All of a circuit."""
        native = self.native
        inputs = native.assign_many([self.tape.input() for _ in circuit.inputs])
        self.memory += inputs
        self.public.append(native.assign(self.tape.input()))
        if circuit.do_communications_commitment:
            self.public.append(native.assign(self.tape.input()))
        for instruction in circuit.instructions:
            _INSTRUCTIONS[instruction.op](self, instruction)
        if circuit.do_communications_commitment:
            rho = native.assign(self.tape.input())
            found = poseidon_hash(native, [rho, *inputs, *self.outputs])
            native.table.equal_bounded(found, self.public[1])
        native.table.public = self.public

    def at(self, place: int) -> Cell:
        return self.memory[place]

    def push(self, *cells: Cell) -> None:
        self.memory += cells

    # Instructions ------------------------------------------------------------------------

    def _assert(self, i: Instruction) -> None:
        self.native.assert_non_zero(self.at(i["cond"]))

    def _cond_select(self, i: Instruction) -> None:
        off = self.native.is_zero(self.at(i["bit"]))
        self.push(self.native.select(off, self.at(i["b"]), self.at(i["a"])))

    def _constrain_bits(self, i: Instruction) -> None:
        self.native.to_bits(self.at(i["var"]), i["bits"], canonical=i["bits"] >= 255)

    def _constrain_eq(self, i: Instruction) -> None:
        self.native.table.equal_bounded(self.at(i["a"]), self.at(i["b"]))

    def _constrain_to_boolean(self, i: Instruction) -> None:
        self.native.to_bit(self.at(i["var"]))

    def _copy(self, i: Instruction) -> None:
        self.push(self.at(i["var"]))

    def _declare_pub_input(self, i: Instruction) -> None:
        self.public.append(self.at(i["var"]))

    def _pi_skip(self, i: Instruction) -> None:
        pass

    def _output(self, i: Instruction) -> None:
        self.outputs.append(self.at(i["var"]))

    def _load_imm(self, i: Instruction) -> None:
        self.push(self.native.const(i["imm"]))

    def _transient_hash(self, i: Instruction) -> None:
        self.push(poseidon_hash(self.native, [self.at(x) for x in i["inputs"]]))

    def _test_eq(self, i: Instruction) -> None:
        self.push(self.native.as_native(self.native.is_equal(self.at(i["a"]), self.at(i["b"]))))

    def _add(self, i: Instruction) -> None:
        self.push(self.native.add(self.at(i["a"]), self.at(i["b"])))

    def _mul(self, i: Instruction) -> None:
        self.push(self.native.mul(self.at(i["a"]), self.at(i["b"])))

    def _neg(self, i: Instruction) -> None:
        self.push(self.native.neg(self.at(i["a"])))

    def _not(self, i: Instruction) -> None:
        self.push(self.native.as_native(self.native.is_zero(self.at(i["a"]))))

    def _less_than(self, i: Instruction) -> None:
        bits = max(i["bits"] + i["bits"] % 2, 4)
        found = self.native.less_than(self.at(i["a"]), self.at(i["b"]), bits)
        self.push(self.native.as_native(found))

    def _witness(self, i: Instruction) -> None:
        native, v = self.native, self.native.assign(self.tape.input())
        if i["guard"] is not None:
            z = native.is_zero(v)
            b = native.to_bit(self.at(i["guard"]))
            either = native.as_native(native.logical_or(z, b))
            native.assert_non_zero(either)
        self.push(v)

    def _div_mod_power_of_two(self, i: Instruction) -> None:
        bits = self.native.to_bits(self.at(i["var"]), 255, canonical=True)
        low = self.native.from_bits(bits[: i["bits"]])
        high = self.native.from_bits(bits[i["bits"] :])
        self.push(high, low)

    def _reconstitute_field(self, i: Instruction) -> None:
        divisor = self.native.to_bits(self.at(i["divisor"]), 255 - i["bits"], canonical=True)
        modulus = self.native.to_bits(self.at(i["modulus"]), i["bits"], canonical=True)
        self.push(self.native.from_bits([*modulus, *divisor]))

    def _ec_add(self, i: Instruction) -> None:
        p = jubjub_chip.point(self.native, self.at(i["a_x"]), self.at(i["a_y"]))
        q = jubjub_chip.point(self.native, self.at(i["b_x"]), self.at(i["b_y"]))
        self.push(*jubjub_chip.add(self.native, p, q))

    def _ec_mul(self, i: Instruction) -> None:
        p = jubjub_chip.point(self.native, self.at(i["a_x"]), self.at(i["a_y"]))
        bits = self.native.to_bits(self.at(i["scalar"]), 255, canonical=True)
        self.push(*jubjub_chip.multiply(self.native, bits, p))

    def _ec_mul_generator(self, i: Instruction) -> None:
        g = jubjub_chip.generator(self.native)
        bits = self.native.to_bits(self.at(i["scalar"]), 255, canonical=True)
        self.push(*jubjub_chip.multiply(self.native, bits, g))

    def _hash_to_curve(self, i: Instruction) -> None:
        self.push(*curve_map_chip.hash_to_curve(self.native, [self.at(x) for x in i["inputs"]]))

    def _persistent_hash(self, i: Instruction) -> None:
        native = self.native
        data = aligned_bytes(native, i["alignment"], [self.at(x) for x in i["inputs"]])
        digest = sha256_chip.sha256(native, data)
        high = native.as_native(digest[31], 256)
        total = native.as_native(digest[0], 256)
        parts = []
        for j in range(1, 31):
            byte = native.as_native(digest[j], 256)
            parts.append(native.mulc(byte, 1 << 8 * j))
        for part in parts:
            total = native.add(total, part)
        self.push(high, total)


def aligned_bytes(native: Native, alignment: Alignment, inputs: list[Cell]) -> list[Cell]:
    """The bytes of values of an alignment, and the rows that count its atoms."""
    data: list[Cell] = []
    left = [*inputs]
    count = native.const(0)
    for atom in alignment:
        # Other kinds cannot be hashed, and no circuit with one is read.
        assert isinstance(atom, Atom)
        if atom.kind == "field":
            data += native.to_bytes(left.pop(0), 32)
        else:
            whole, stray = divmod(atom.length, 31)
            aside = native.to_bytes(left.pop(0), stray) if stray else []
            chunks, left = left[:whole], left[whole:]
            for chunk in reversed(chunks):
                data += native.to_bytes(chunk, 31)
            data += aside
        count = native.addc(count, 1)
    return data


_INSTRUCTIONS: Mapping[str, Callable[[FrontV2, Instruction], None]] = {
    "assert": FrontV2._assert,
    "cond_select": FrontV2._cond_select,
    "constrain_bits": FrontV2._constrain_bits,
    "constrain_eq": FrontV2._constrain_eq,
    "constrain_to_boolean": FrontV2._constrain_to_boolean,
    "copy": FrontV2._copy,
    "declare_pub_input": FrontV2._declare_pub_input,
    "pi_skip": FrontV2._pi_skip,
    "ec_add": FrontV2._ec_add,
    "ec_mul": FrontV2._ec_mul,
    "ec_mul_generator": FrontV2._ec_mul_generator,
    "hash_to_curve": FrontV2._hash_to_curve,
    "load_imm": FrontV2._load_imm,
    "div_mod_power_of_two": FrontV2._div_mod_power_of_two,
    "reconstitute_field": FrontV2._reconstitute_field,
    "output": FrontV2._output,
    "transient_hash": FrontV2._transient_hash,
    "persistent_hash": FrontV2._persistent_hash,
    "test_eq": FrontV2._test_eq,
    "add": FrontV2._add,
    "mul": FrontV2._mul,
    "neg": FrontV2._neg,
    "not": FrontV2._not,
    "less_than": FrontV2._less_than,
    "public_input": FrontV2._witness,
    "private_input": FrontV2._witness,
}
