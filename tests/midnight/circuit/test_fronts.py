"""Instructions of both versions of ZKIR in rows: what they push, and statements whose rows do not hold."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from gpuprover.curves import BLS12_381
from gpuprover.errors import UnsupportedFile
from gpuprover.limbs import words_to_ints
from gpuprover.midnight import jubjub
from gpuprover.midnight.circuit import synthesis
from gpuprover.midnight.circuit.front_v2 import FrontV2
from gpuprover.midnight.circuit.front_v3 import FrontV3
from gpuprover.midnight.circuit.native import Native, NativeOfFour
from gpuprover.midnight.circuit.synthesis import choose, layout_of, smallest_k, synthesise
from gpuprover.midnight.circuit.table import PUBLIC, Cell
from gpuprover.midnight.ir.circuit import Circuit
from gpuprover.midnight.poseidon import poseidon_hash
from tests.support.midnight_table import Laid
from tests.support.zkir import NATIVE, circuit_v2, circuit_v3, op

R = BLS12_381.r
BINDING = 31337
Program = list[dict[str, Any]]


def laid_v2(
    inputs: int, *instructions: dict[str, Any], chips: Sequence[str] = (), committed: bool = False
) -> Laid:
    """The cells of interest are those that instructions push."""

    def build(native: Native) -> Sequence[Cell]:
        front = FrontV2(native)
        front.lay_out(circuit_v2(inputs, *instructions, committed=committed))
        return front.memory[inputs:]

    return Laid(chips, build)


def laid_v3(types: dict[str, str], *instructions: dict[str, Any], chips: Sequence[str] = ()) -> Laid:
    """The cells of interest are those of the name %z, if there is one."""

    def build(native: Native) -> Sequence[Cell]:
        assert isinstance(native, NativeOfFour)
        front = FrontV3(native)
        front.lay_out(circuit_v3(types, *instructions))
        return front.store.get("%z", [])

    return Laid(chips, build, newer=True)


def holds(circuit: Laid, inputs: Sequence[int]) -> bool:
    return not circuit.violations(circuit.table(circuit.values(inputs)))


def public(circuit: Laid, inputs: Sequence[int]) -> list[int]:
    """What the public inputs are tied to."""
    advice = circuit.table(circuit.values(inputs))
    fixed = circuit.layout.fixed
    found = []
    for column, row, target, _ in circuit.layout.copies:
        if target == PUBLIC:
            words = (advice if column[0] == "A" else fixed)[int(column[1:])]
            found += words_to_ints(words[row : row + 1])
    return found


PUSHED: dict[str, tuple[int, Program, list[tuple[tuple[int, ...], list[int]]]]] = {
    "add": (2, [op("add", a=0, b=1)], [((R - 1, 3), [2])]),
    "mul": (2, [op("mul", a=0, b=1)], [((R - 1, 3), [R - 3])]),
    "neg": (1, [op("neg", a=0)], [((0,), [0]), ((1,), [R - 1])]),
    "not": (1, [op("not", a=0)], [((0,), [1]), ((1,), [0]), ((7,), [0])]),
    "copy": (1, [op("copy", var=0)], [((9,), [9])]),
    "load_imm": (0, [op("load_imm", imm="-02")], [((), [R - 2])]),
    "cond_select": (3, [op("cond_select", bit=0, a=1, b=2)], [((1, 5, 6), [5]), ((0, 5, 6), [6])]),
    "test_eq": (2, [op("test_eq", a=0, b=1)], [((4, 4), [1]), ((4, 5), [0]), ((0, 0), [1])]),
    "less_than": (2, [op("less_than", a=0, b=1, bits=7)], [((3, 127), [1]), ((127, 3), [0]), ((3, 3), [0])]),
    "div_mod": (
        1,
        [op("div_mod_power_of_two", var=0, bits=20)],
        [((R - 1,), [(R - 1) >> 20, (R - 1) % (1 << 20)]), ((5,), [0, 5])],
    ),
    "div_mod by one": (1, [op("div_mod_power_of_two", var=0, bits=0)], [((R - 1,), [R - 1, 0])]),
    "reconstitute": (
        2,
        [op("reconstitute_field", divisor=0, modulus=1, bits=20)],
        [(((R - 1) >> 20, (R - 1) % (1 << 20)), [R - 1]), ((0, 9), [9])],
    ),
}


@pytest.mark.parametrize("name", PUSHED)
def test_results_of_the_older_line(name: str) -> None:
    inputs, program, cases = PUSHED[name]
    circuit = laid_v2(inputs, *program)
    for values, expected in cases:
        assert circuit.results([*values, BINDING]) == expected
        assert holds(circuit, [*values, BINDING])
        assert public(circuit, [*values, BINDING]) == [BINDING]


REFUSED: dict[str, tuple[int, Program, list[tuple[int, ...]], list[tuple[int, ...]]]] = {
    "assert": (1, [op("assert", cond=0)], [(1,)], [(0,)]),
    "constrain_eq": (2, [op("constrain_eq", a=0, b=1)], [(3, 3)], [(3, 4)]),
    "constrain_to_boolean": (1, [op("constrain_to_boolean", var=0)], [(0,), (1,)], [(2,), (R - 1,)]),
    "constrain_bits": (1, [op("constrain_bits", var=0, bits=8)], [(0,), (255,)], [(256,), (R - 1,)]),
    "less_than": (2, [op("less_than", a=0, b=1, bits=8)], [(255, 1)], [(256, 1), (1, 256)]),
    "reconstitute": (
        2,
        [op("reconstitute_field", divisor=0, modulus=1, bits=200)],
        [((1 << 55) - 1, 7)],
        [(1 << 55, 7), (7, 1 << 200)],
    ),
    "guard": (1, [op("private_input", guard=0)], [(1, 9), (1, 0), (0, 0)], [(0, 9)]),
    "no guard": (1, [op("public_input", guard=None)], [(0, 9)], []),
}


@pytest.mark.parametrize("name", REFUSED)
def test_constraints_of_the_older_line(name: str) -> None:
    inputs, program, good, bad = REFUSED[name]
    circuit = laid_v2(inputs, *program)
    for values in (*good, *bad):
        assert holds(circuit, [*values[:inputs], BINDING, *values[inputs:]]) == (values in good), values


def test_public_inputs_and_the_commitment_of_the_older_line() -> None:
    program = [
        op("declare_pub_input", var=1),
        op("add", a=0, b=1),
        op("declare_pub_input", var=2),
        op("pi_skip", guard=None, count=2),
        op("output", var=2),
    ]
    circuit = laid_v2(2, *program, chips=["poseidon"], committed=True)
    commitment = poseidon_hash([777, 3, 4, 7])
    inputs = [3, 4, BINDING, commitment, 777]
    assert public(circuit, inputs) == [BINDING, commitment, 4, 7]
    assert holds(circuit, inputs)
    assert not holds(circuit, [3, 4, BINDING, commitment, 778])
    assert not holds(circuit, [3, 4, BINDING, commitment + 1, 777])


A, B = {"%a": NATIVE}, {"%a": NATIVE, "%b": NATIVE}
PUSHED_V3: dict[str, tuple[dict[str, str], Program, list[tuple[tuple[int, ...], list[int]]]]] = {
    "add": (B, [op("add", a="%a", b="%b", output="%z")], [((R - 1, 3), [2])]),
    "add nothing": (A, [op("add", a="%a", b="0x00", output="%z")], [((R - 1,), [R - 1])]),
    "mul": (A, [op("mul", a="%a", b="-0x03", output="%z")], [((R - 1,), [3])]),
    "neg": (A, [op("neg", a="%a", output="%z")], [((1,), [R - 1]), ((0,), [0])]),
    "inv": (A, [op("inv", a="%a", output="%z")], [((2,), [(R + 1) // 2])]),
    "not": (A, [op("not", a="%a", output="%z")], [((0,), [1]), ((1,), [0])]),
    "cond_select": (
        B,
        [op("cond_select", bit="%a", a="%b", b="0x2a", output="%z")],
        [((1, 5), [5]), ((0, 5), [42])],
    ),
    "test_eq": (B, [op("test_eq", a="%a", b="%b", output="%z")], [((4, 4), [1]), ((4, 5), [0])]),
    "less_than": (
        B,
        [op("less_than", a="%a", b="%b", bits=9, output="%z")],
        [((3, 511), [1]), ((511, 3), [0])],
    ),
    "div_mod": (
        A,
        [op("div_mod_power_of_two", val="%a", bits=20, outputs=["%z", "%l"])],
        [((R - 1,), [(R - 1) >> 20])],
    ),
    "reconstitute": (
        B,
        [op("reconstitute_field", divisor="%a", modulus="%b", bits=20, output="%z")],
        [((3, 9), [(3 << 20) + 9])],
    ),
    "bytes and back": (
        A,
        [
            op("into_bytes32", input="%a", output="%x"),
            op("reverse_bytes", bytes="%x", output="%y"),
            op("from_bytes32", bytes="%y", kind=NATIVE, output="%z"),
        ],
        [((R - 1,), [int.from_bytes((R - 1).to_bytes(32, "little"), "big") % R]), ((1,), [(1 << 248) % R])],
    ),
    "halves of bytes": (
        {"%a": "Bytes<32>"},
        [
            op("bytes32_into_low_high", bytes="%a", outputs=["%l", "%h"]),
            op("bytes32_from_low_high", inputs=["%l", "%h"], output="%y"),
            op("from_bytes32", bytes="%y", kind=NATIVE, output="%z"),
        ],
        [((7 << 240, 200), [((7 << 240) + (200 << 248)) % R])],
    ),
}


@pytest.mark.parametrize("name", PUSHED_V3)
def test_results_of_the_newer_line(name: str) -> None:
    types, program, cases = PUSHED_V3[name]
    circuit = laid_v3(types, *program)
    for values, expected in cases:
        assert circuit.results([*values, BINDING]) == expected
        assert holds(circuit, [*values, BINDING])


REFUSED_V3: dict[str, tuple[dict[str, str], Program, list[tuple[int, ...]], list[tuple[int, ...]]]] = {
    "assert": (A, [op("assert", cond="%a")], [(1,)], [(0,)]),
    "constrain_eq": (A, [op("constrain_eq", a="%a", b="0x03")], [(3,)], [(4,)]),
    "constrain_bits": (A, [op("constrain_bits", val="%a", bits=9)], [(511,)], [(512,), (R - 1,)]),
    "constrain_to_boolean": (A, [op("constrain_to_boolean", val="%a")], [(0,), (1,)], [(2,)]),
    "a guard is a bit": (A, [op("impact", guard="%a", inputs=["0x05"])], [(0,), (1,)], [(2,)]),
    "inverse of nothing": (A, [op("inv", a="%a", output="%z")], [(3,)], [(0,)]),
    "a byte": ({"%a": "Bytes<32>"}, [], [((1 << 248) - 1, 255)], [(0, 256)]),
    "a high byte": (
        B,
        [op("bytes32_from_low_high", inputs=["%a", "%b"], output="%z")],
        [((1 << 248) - 1, 255)],
        [(1 << 248, 1), (0, 256)],
    ),
}


@pytest.mark.parametrize("name", REFUSED_V3)
def test_constraints_of_the_newer_line(name: str) -> None:
    types, program, good, bad = REFUSED_V3[name]
    circuit = laid_v3(types, *program)
    for values in (*good, *bad):
        assert holds(circuit, [*values, BINDING]) == (values in good), values


def test_impacts_that_are_off_declare_nothing_but_zeros() -> None:
    circuit = laid_v3(
        B, op("impact", guard="%a", inputs=["%b", "0x07"]), op("impact", guard="0x01", inputs=["%b"])
    )
    assert public(circuit, [1, 5, BINDING]) == [BINDING, 5, 7, 5]
    assert public(circuit, [0, 5, BINDING]) == [BINDING, 0, 0, 5]


def test_points_of_the_newer_line(rng: random.Random) -> None:
    p = jubjub.multiply(jubjub.GENERATOR, rng.randrange(jubjub.ORDER))
    circuit = laid_v3(
        {"%p": "Point<Jubjub>"},
        op("add", a="%p", b="%p", output="%d"),
        op("neg", a="%d", output="%z"),
        chips=["jubjub"],
    )
    assert circuit.results([*p, BINDING]) == [*jubjub.negate(jubjub.add(p, p))]
    assert holds(circuit, [*p, BINDING])
    assert not holds(circuit, [p[0], p[1] + 1, BINDING])


# Sizes ------------------------------------------------------------------------------------------


def less_than_circuit(count: int, version: int = 2) -> Circuit:
    if version == 2:
        return circuit_v2(2, *[op("less_than", a=0, b=1, bits=250)] * count)
    steps = [op("less_than", a="%a", b="%b", bits=250, output=f"%{i}") for i in range(count)]
    return circuit_v3(B, *steps)


def slowly_chosen(circuit: Circuit) -> tuple[int, int]:
    """The rule as it stands: every length is tried that the rows leave room for."""
    tried = []
    for bits in range(8, 25):
        table = synthesise(circuit, bits)
        tried.append((smallest_k(table), bits))
        if table.rows < 1 << (bits + 1):
            break
    k, bits = min(tried)
    return (k, bits) if circuit.version[0] == 2 else (k, k - 1)


@pytest.mark.parametrize(
    ("version", "count", "expected"),
    [(2, 1, (9, 8)), (2, 20, (10, 8)), (2, 28, (10, 9)), (2, 40, (11, 8)), (3, 2, (9, 8)), (3, 60, (10, 9))],
)
def test_the_size_is_the_first_of_the_smallest(version: int, count: int, expected: tuple[int, int]) -> None:
    """28 comparisons fit 2^10 rows with limbs of 9 bits, and not with those of 8."""
    circuit = less_than_circuit(count, version)
    assert choose(circuit) == slowly_chosen(circuit) == expected


def test_sizes_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    circuit = less_than_circuit(2)
    expected = choose(circuit)
    monkeypatch.setattr(synthesis, "synthesise", None)
    assert choose(circuit) == expected


def test_circuits_of_more_rows_than_were_meant_are_refused() -> None:
    circuit = less_than_circuit(20)
    assert smallest_k(synthesise(circuit, 8, 10)) == 10
    fresh, known = less_than_circuit(21), less_than_circuit(19)
    assert choose(less_than_circuit(27), 10) == (10, 9), "with the shortest limbs it takes more rows"
    assert choose(known, 10) == (10, 8)
    for lay_out in (
        lambda: synthesise(circuit, 8, 9),
        lambda: layout_of(circuit, 9, 8),
        lambda: choose(fresh, 9),
        lambda: choose(known, 9),
    ):
        with pytest.raises(
            UnsupportedFile, match=r"circuit: circuit: expected at most 2\^9 rows, found more"
        ):
            lay_out()
