"""Formulas: what compiling keeps of expressions, and that registers hold what they should."""

from __future__ import annotations

import random

import pytest

from gpuprover.columns import (
    Formula,
    Op,
    Read,
    allocate,
    challenge,
    column,
    compile_formula,
    constant,
    fold,
)

P = 2**61 - 1
A, B = column("a"), column("b")


def run(formula: Formula, cells: dict[Read, int], challenges: dict[str, int]) -> list[int]:
    """One row of the formula's program, on registers that hold nothing at first."""
    operands: list[int | None] = [cells[read] for read in formula.reads]
    operands += formula.scalar_values(challenges, P)
    first = len(operands)
    operands += [None] * formula.program.registers
    results: dict[int, int] = {}
    for op, target, a, b in formula.program.instructions:
        x, y = operands[a], operands[b]
        assert x is not None
        assert y is not None
        if op is Op.STORE:
            assert target not in results
            results[target] = x
        else:
            operands[first + target] = (x + y if op is Op.ADD else x - y if op is Op.SUB else x * y) % P
    return [results[i] for i in range(len(formula.results))]


def test_common_parts_are_computed_once() -> None:
    again = column("a") + column("b")
    formula = compile_formula([(A + B) * again, (column("b") + column("a")) * 3])
    assert [step.op for step in formula.steps] == [Op.ADD, Op.MUL, Op.MUL]
    assert formula.reads == (Read("a", 0), Read("b", 0))
    assert formula.columns == ("a", "b")


def test_what_has_no_column_is_no_step() -> None:
    alpha, beta = challenge("alpha"), challenge("beta")
    formula = compile_formula([(alpha * beta + 2 * alpha**3) * A])
    (step,) = formula.steps
    assert (step.op, {step.a, step.b}) == (Op.MUL, {0, len(formula.scalars)})
    assert formula.challenges == ("alpha", "beta")
    assert formula.scalar_values({"alpha": 5, "beta": 7, "more": 1}, P)[-1] == 5 * 7 + 2 * 125


@pytest.mark.parametrize(
    ("expression", "steps"),
    [
        (A + 0, 0),
        (0 + A, 0),
        (A - 0, 0),
        (1 * A, 0),
        (A * 1, 0),
        (A * 0, 0),
        (A**1, 0),
        (A**0, 0),
        (0 - (-A), 0),
        (A + -B, 1),
        (-A + B, 1),
        (A - -B, 1),
        (constant(2) * 3 * A, 1),
        (A**2, 1),
        (A**5, 3),
    ],
)
def test_neutral_operands_cost_nothing(expression: object, steps: int) -> None:
    formula = compile_formula([expression, A])  # type: ignore[list-item]
    assert len(formula.steps) == steps
    a, b = 1234, 987654321
    x = {Read("a", 0): a, Read("b", 0): b}
    names: dict[str, int] = {}
    assert run(formula, {read: x[read] for read in formula.reads}, names)[1] == a


def test_formulas_are_values() -> None:
    one, other = (compile_formula([fold([column("a"), B, 3], challenge("y"))]) for _ in range(2))
    assert one is not other
    assert one == other
    assert hash(one) == hash(other)
    assert one != compile_formula([fold([A, B, 4], challenge("y"))])


def test_fold_gives_the_first_term_the_highest_power() -> None:
    formula = compile_formula([fold([A, B, 5], challenge("y"))])
    cells = {Read("a", 0): 11, Read("b", 0): 13}
    assert run(formula, cells, {"y": 100}) == [11 * 100**2 + 13 * 100 + 5]


def test_a_long_sum_takes_few_registers_and_no_recursion() -> None:
    h = A * B
    for t in range(5000):
        h = h * challenge("y") + column("a", t) * column("b", -t)
    formula = compile_formula([h])
    assert formula.program.registers <= 2
    assert len(formula.steps) == 1 + 3 * 5000 - 1
    assert hash(formula) == hash(formula)


def test_registers_keep_what_is_needed(rng: random.Random) -> None:
    """Random programs on registers, against their expressions' values; many results, some of them twice."""
    for _ in range(60):
        cells = {Read(name, t): rng.randrange(P) for name in "abc" for t in (-1, 0, 2)}
        challenges = {name: rng.randrange(P) for name in ("x", "y")}
        made = [(column(*read), value) for read, value in cells.items()]
        made += [(challenge(name), value) for name, value in challenges.items()]
        made += [(constant(v), v) for v in (0, 1, -1, 2**70)]
        for _ in range(rng.randrange(1, 60)):
            (x, u), (y, v) = rng.choice(made), rng.choice(made[-12:])
            made.append(rng.choice([(x + y, u + v), (x - y, u - v), (x * y, u * v)]))
        chosen = [rng.choice(made[-8:]) for _ in range(rng.randrange(1, 5))] + [made[0], made[-1]]
        formula = compile_formula([expression for expression, _ in chosen])
        assert run(formula, cells, challenges) == [value % P for _, value in chosen]


def test_a_register_is_free_after_its_last_use() -> None:
    registers, count = allocate([0, 1, 2, 3, None], [[], [0], [1, 1], [], [2, 3]])
    assert count == 2
    assert registers == {0: 0, 1: 0, 2: 0, 3: 1}


def test_errors_name_what_is_missing() -> None:
    formula = compile_formula([A * column("b", 1) + challenge("y")])
    with pytest.raises(ValueError, match="'y'"):
        formula.scalar_values({}, P)
    with pytest.raises(ValueError, match="'b'"):
        formula.rows({"a": 8})
    with pytest.raises(ValueError, match=r"'b'.*3.*8"):
        formula.rows({"a": 8, "b": 3})
    with pytest.raises(ValueError, match="'b'"):
        formula.rows({"a": 8, "b": 0})
    assert formula.rows({"a": 8, "b": 2, "unused": 3}) == 8
    assert formula.rows({"a": 0, "b": 0}) == 0
    with pytest.raises(ValueError, match="no column"):
        compile_formula([challenge("y")]).rows({})
    with pytest.raises(ValueError, match="exponent"):
        A**-1
    with pytest.raises(TypeError, match="float"):
        A * 1.5  # type: ignore[operator]
