"""Formulas in lanes, on integers in place of lanes: ranges hold for the largest values, on any CPU."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pytest

from gpuprover.columns import Op, challenge, column, compile_formula, constant, fold
from gpuprover.cpu.columns_lanes import steps
from gpuprover.cpu.layout import CARRIED, LOAD, LOOSE, SCALE, SETTLED
from gpuprover.curves import CurveParams, FieldParams

RADIX = 1 << 260


@dataclass
class Lane:
    """One lane: the number that the limbs make, and a bound of their size."""

    number: int
    limb: int

    @property
    def is_carried(self) -> bool:
        return self.limb < 1 << 52


def carried(x: Lane) -> Lane:
    assert x.limb < 1 << 63
    assert 0 <= x.number < RADIX
    return Lane(x.number, (1 << 52) - 1)


def times(x: Lane, y: Lane, p: int) -> Lane:
    """A product in Montgomery form, as kernels/loose.py states it."""
    assert y.is_carried
    product = carried(x).number * y.number
    m = product * -pow(p, -1, RADIX) % RADIX
    return Lane((product + m * p) // RADIX, (1 << 57) - 1)


def settled(x: Lane, p: int) -> Lane:
    q = ((carried(x).number >> 208) * (RADIX // p)) >> 52
    return carried(Lane(x.number - q * p, 1 << 54))


def run(field: FieldParams, formula: Any, cells: list[int], challenges: dict[str, int]) -> list[int]:
    """One row, from Montgomery words to Montgomery words."""
    p = field.modulus
    prepared = steps(formula, field)
    values = formula.scalar_values(challenges, p)
    radix = {False: field.R, True: RADIX % p}
    lanes: list[Lane | None] = []
    for i, in_lanes in prepared.scalars:
        lanes.append(Lane(-i * p if i < 0 else values[i] * radix[in_lanes] % p, (1 << 52) - 1))
    lanes += [None] * prepared.registers
    results = [-1] * len(formula.results)
    for operation, target, *operands, level in prepared.code.tolist():
        if operation == LOAD:
            lanes[target] = Lane(cells[operands[0]], (1 << 52) - 1)
            continue
        a, b, c = (lanes[i] for i in operands)
        assert a is not None
        if operation == Op.STORE:
            number = settled(a, p).number
            assert number < 2 * p
            results[target] = number % p
            continue
        assert b is not None
        if operation == Op.MUL:
            x = times(Lane(16 * a.number, 16 * a.limb), b, p)
        elif operation == SCALE:
            x = times(a, b, p)
        elif operation == Op.ADD:
            x = Lane(a.number + b.number, a.limb + b.limb)
        else:
            assert c is not None
            assert operation == Op.SUB
            assert b.number <= c.number
            assert c.number % p == 0
            x = Lane(a.number - b.number + c.number, a.limb + b.limb + c.limb)
        assert x.limb < 1 << 62
        assert 0 <= x.number < RADIX
        if level == SETTLED:
            x = settled(x, p)
            assert x.number < 1.35 * p
        elif level == CARRIED:
            x = carried(x)
        else:
            assert level == LOOSE
        lanes[target] = x
    return results


def grown(rng: random.Random, size: int) -> Any:
    """A random expression whose values would grow, were they not looked after."""
    made = [column("a"), column("b"), column("c", 1), challenge("y"), constant(3)]
    while len(made) < size:
        x, y = rng.choice(made[-3:]), rng.choice(made)
        made.append(rng.choice([x + y, y + x, x - y, y - x, x * y, x * x, x * y - y]))
    return made[-1]


@pytest.mark.parametrize("largest", [True, False])
def test_ranges_hold(curve: CurveParams, rng: random.Random, largest: bool) -> None:
    field, p = curve.scalar, curve.r
    a, b, y = column("a"), column("b"), challenge("y")
    gates = [(a - b) * (b + t) - a * y for t in range(40)]
    expressions = [
        [sum([a] * 500, b), 0 - sum([a * b] * 90, b)],
        [(a + a + a) * (b + b + b) * (a - b), (a - b) ** 13],
        [fold(gates, y)],
        [sum([column("a", t) * y for t in range(5)], a) * sum([column("b", t) * y for t in range(5)], 0 * a)],
        [sum([column("a", t) * y for t in range(n)], 0 * a) ** 2 for n in range(2, 9)],
        *([grown(rng, rng.choice([8, 30, 200])) for _ in range(3)] for _ in range(30)),
    ]
    for chosen in expressions:
        formula = compile_formula(chosen)
        words = [p - 1 if largest else rng.choice([0, 1, p - 1, rng.randrange(p)]) for _ in formula.reads]
        challenges = {"y": p - 1 if largest else rng.randrange(p)}
        plain = [w * field.R_inverse % p for w in words]
        values = [*plain, *formula.scalar_values(challenges, p)]
        for op, i, j in formula.steps:
            u, v = values[i], values[j]
            values.append((u + v if op is Op.ADD else u - v if op is Op.SUB else u * v) % p)
        want = [values[result] * field.R % p for result in formula.results]
        assert run(field, formula, words, challenges) == want


def test_a_gate_needs_no_reductions(curve: CurveParams) -> None:
    """Products of columns, and Horner's rule with a challenge, stay small by themselves."""
    a, b, c = (column(name) for name in "abc")
    gate = column("qL") * a + column("qR") * b + column("qM") * (a * b) + column("qO") * c + column("qC")
    gates = [column(f"s{i}") * gate for i in range(9)]
    for results in ([gate], [fold([column(f"q{i}") * a * b for i in range(9)], challenge("y"))], gates):
        code = steps(compile_formula(results), curve.scalar).code
        assert SETTLED not in code[:, 5]


def test_columns_are_loaded_again_only_after_a_while(curve: CurveParams) -> None:
    a, b = column("a"), column("a", 1)
    near = steps(compile_formula([a * b + a, b * b - a, a]), curve.scalar)
    assert (near.code[:, 0] == LOAD).sum() == 2
    cells = [column(f"c{i}") for i in range(100)]
    far = steps(compile_formula([fold([*cells, *(x * x for x in cells)], challenge("y"))]), curve.scalar)
    assert (far.code[:, 0] == LOAD).sum() == 200
    assert far.registers <= 3
