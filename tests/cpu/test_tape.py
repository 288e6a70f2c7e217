"""The compiled machine of tapes beside what their operations mean, and codes that it refuses to run."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest

from gpuprover import devices
from gpuprover.cpu import layout
from gpuprover.curves import BLS12_381
from gpuprover.limbs import ints_to_words, words_to_ints
from gpuprover.midnight import jubjub
from gpuprover.midnight.circuit.tape import Op, R, Tape, run_reference, square_root, tables

EDGES = [0, 1, 2, R - 1, R - 2, (1 << 64) - 1, 1 << 64, (1 << 128) - 1, 1 << 254, (R - 1) // 2, (R + 1) // 2]


def run(tape: Tape, inputs: list[int], code: list[int] | None = None) -> list[int]:
    values = np.zeros((tape.size, 4), dtype=np.uint64)
    for number, element in [*tape.constants, *zip(tape.inputs, inputs, strict=True)]:
        values[number] = ints_to_words([element], 4)
    words = np.array(tape.code if code is None else code, dtype=np.int64)
    devices.run_tape(BLS12_381, words, ints_to_words(tape.pool, 4), tables(), values)
    return words_to_ints(values)


def element(rng: random.Random) -> int:
    return rng.choice([rng.choice(EDGES), rng.randrange(R), rng.randrange(1 << rng.randrange(1, 255))]) % R


def sizes(rng: random.Random, total: int, largest: int) -> list[int]:
    found: list[int] = []
    while rng.randrange(12) and sum(found) < total:
        found.append(rng.randint(0, min(largest, total - sum(found))))
    return found


def random_tape(rng: random.Random, length: int) -> tuple[Tape, list[int]]:
    tape = Tape()
    inputs = [element(rng) for _ in range(8)]
    for _ in inputs:
        tape.input()
    for e in EDGES:
        tape.constant(e)

    def any_() -> int:
        return rng.randrange(tape.size)

    def term() -> tuple[int, int]:
        return element(rng), any_()

    operations: list[Callable[[], object]] = [
        lambda: tape.combine([term() for _ in range(rng.randrange(6))], element(rng)),
        lambda: tape.gate(term(), term(), term(), element(rng), element(rng), element(rng)),
        lambda: tape.inverse(any_(), element(rng)),
        lambda: tape.nonzero(any_()),
        lambda: tape.less(any_(), any_()),
        lambda: tape.bits(any_(), rng.randrange(256), rng.randrange(256)),
        lambda: tape.select(any_(), any_(), any_()),
        lambda: tape.square_root(any_()),
        lambda: tape.is_square(any_()),
        lambda: tape.decompose(any_(), sizes(rng, 256, 64)),
        lambda: tape.word_sum([(any_(), rng.randrange(128)) for _ in range(rng.randrange(8))]),
        lambda: tape.halves(any_()),
        lambda: tape.spread_limbs(any_(), sizes(rng, 64, 32)),
        lambda: tape.constant(element(rng)),
    ]
    for i in range(length):
        operations[i % len(operations)]()
    tape.poseidon(any_(), any_(), any_())
    return tape, inputs


def test_operations_are_numbered_as_the_kernel_has_them() -> None:
    assert {op.name: int(op) for op in Op} == {op.name: getattr(layout, op.name) for op in Op}
    assert len(tables()) == layout.EIGHTH + 1


def test_random_tapes(rng: random.Random) -> None:
    for _ in range(20):
        tape, inputs = random_tape(rng, 140)
        assert run(tape, inputs) == run_reference(tape, inputs)


def test_values_of_many_bits_in_one_limb_each(rng: random.Random) -> None:
    tape = Tape()
    x = tape.input()
    bits, rests = tape.decompose(x, [1] * 255)
    value = rng.randrange(R)
    found = run(tape, [value])
    assert [found[bit] for bit in bits] == [value >> i & 1 for i in range(255)]
    assert [found[rest] for rest in rests] == [value >> i << i for i in range(255)]


def test_roots(rng: random.Random) -> None:
    tape = Tape()
    x = tape.input()
    root, square = tape.square_root(x), tape.is_square(x)
    for value in (0, 1, 4, 7, R - 1, *(rng.randrange(R) for _ in range(20))):
        found = run(tape, [value])
        assert found[root] == square_root(value)
        assert found[square] == (1 if value == 0 or found[root] else 0)
        assert not found[square] or found[root] ** 2 % R == value


def points(rng: random.Random) -> list[jubjub.Point]:
    """Of the subgroup, and of the curve outside of it."""
    inside = [jubjub.multiply(jubjub.GENERATOR, rng.randrange(jubjub.ORDER)) for _ in range(2)]
    halves = (0, R - 1), (pow(-1, (R - 1) // 2, R), 0)
    outside = [p for p in halves if jubjub.on_curve(p)]
    assert outside
    return [jubjub.NEUTRAL, jubjub.GENERATOR, *inside, *outside, jubjub.add(inside[0], outside[0])]


def test_sums_and_eighths_of_points(rng: random.Random) -> None:
    tape = Tape()
    x, y, u, v = (tape.input() for _ in range(4))
    tape.jubjub_add((x, y), (u, v))
    tape.jubjub_eighth((x, y))
    found = points(rng)
    for p in found:
        for q in (*found, p, jubjub.negate(p)):
            inputs = [*p, *q]
            assert run(tape, inputs) == run_reference(tape, inputs)


@pytest.mark.parametrize("count", [0, 1, 4, 252, 256])
def test_multiples_of_points(count: int, rng: random.Random) -> None:
    tape = Tape()
    u, v, *bits = (tape.input() for _ in range(count + 2))
    first = tape.jubjub_multiply((u, v), bits)
    for p in points(rng)[:: 1 if count < 10 else 3]:
        scalar = rng.choice([0, 1, (1 << count) - 1, rng.randrange(1 << count)]) % (1 << count)
        inputs = [*p, *(int(b) for b in f"{scalar:0{count}b}"[:count])]
        found = run(tape, inputs)
        assert found == run_reference(tape, inputs)
        if count:
            assert tuple(found[first + 6 * count - 4 :][:2]) == jubjub.multiply(p, scalar)


BAD_PLACES = (-1, -(1 << 63), 1 << 40, 1 << 62, (1 << 63) - 1)


def test_no_word_of_a_code_leads_outside(rng: random.Random) -> None:
    """Whatever one word is changed to, the code is refused, or runs within its arrays."""
    tape, inputs = random_tape(rng, 28)
    p = tape.constant(0), tape.constant(1)
    tape.jubjub_add(p, p)
    tape.jubjub_eighth(p)
    tape.jubjub_multiply(p, [p[0], p[1]])
    refused = 0
    for at in range(len(tape.code)):
        for word in BAD_PLACES:
            code = [*tape.code]
            code[at] = word
            with pytest.raises(IndexError):
                run(tape, inputs, code)
        for word in (0, 1, 3, 16, 17, 64, 255, 300, tape.size - 1, tape.size, len(tape.pool)):
            code = [*tape.code]
            code[at] = word
            try:
                run(tape, inputs, code)
            except IndexError:
                refused += 1
    assert refused > len(tape.code)
    for length in range(1, len(tape.code)):
        code = [*tape.code[:length]]
        try:
            run(tape, inputs, code)
        except IndexError:
            refused += 1
    assert run(tape, inputs) == run_reference(tape, inputs)


def test_what_comes_later_is_not_read() -> None:
    tape = Tape()
    x = tape.input()
    y = tape.nonzero(x)
    assert [*tape.code] == [Op.NONZERO, y, x]
    with pytest.raises(IndexError):
        run(tape, [1], [Op.NONZERO, y, y])


def test_scalars_are_of_256_bits_at_most() -> None:
    tape = Tape()
    u, v = tape.input(), tape.input()
    tape.jubjub_multiply((u, v), [u] * 257)
    with pytest.raises(IndexError):
        run(tape, [0, 1])


def test_tables_are_whole() -> None:
    with pytest.raises(ValueError, match="tables of 218 elements"):
        devices.run_tape(
            BLS12_381,
            np.zeros(0, dtype=np.int64),
            ints_to_words([1], 4),
            tables()[:-1],
            np.zeros((1, 4), dtype=np.uint64),
        )
