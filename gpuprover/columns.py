"""Formulas over columns: the identities of PLONK-like proof systems, as data that every backend evaluates.

A circuit is a table. Its columns are vectors over the scalar field, and an identity is a polynomial in
cells of one row and of rows near it. A proof system writes its identities once as expressions,
:func:`compile_formula` makes one :class:`Formula` of them for each circuit, and
:meth:`gpuprover.backend.Backend.evaluate` computes all rows::

    a, b, c = (column(name) for name in ("a", "b", "c"))
    gate = column("qL") * a + column("qR") * b + column("qM") * (a * b) + column("qO") * c + column("qC")
    steps = challenge("beta") * column("z", 1) - column("z")
    formula = compile_formula([fold([gate, steps], challenge("alpha"))])

Row i of a result, on n rows, where n is the length of the longest column that the formula reads:

- ``column(name, t)`` is element (i + t·step) mod m of the column's vector, m being its length. A length
  divides n: n itself, less for a column that repeats itself (1/(X^k − 1) on a coset of several k points),
  1 for a constant.
- ``step`` is an argument of the evaluation. Rows follow each other at distance 1 on the domain of the
  circuit and on each coset of it; a domain of factor e times that size, in natural order, holds row i + 1
  at distance e.
- ``challenge(name)`` and integers are the same on all rows; integers of any size and sign are taken mod r.

A formula keeps nothing of how it was written: common parts are computed once, what contains no column is
computed once for all rows by the host, and what no result needs is left out. The formulas of a circuit with
hundreds of gates have thousands of steps; nothing here recurses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import NamedTuple


class Op(IntEnum):
    """What a step does with a and b; the numbers are those of the kernels."""

    ADD = 0
    SUB = 1
    MUL = 2
    STORE = 3
    """In a :class:`Program` only: a is a result."""


# Expressions -----------------------------------------------------------------------------------


class Expression:
    """A polynomial in cells, challenges and integers, built by ``+``, ``-``, ``*`` and ``**``.

    Parts may be shared: an expression is a node of a graph without cycles.

    Attributes:
        op: an inner node's operation; None for a leaf.
        left, right: an inner node's operands.
        leaf: a leaf's cell, challenge or integer.
    """

    __slots__ = ("leaf", "left", "op", "right")

    def __init__(
        self,
        leaf: Read | str | int,
        op: Op | None = None,
        left: Expression | None = None,
        right: Expression | None = None,
    ) -> None:
        self.leaf, self.op, self.left, self.right = leaf, op, left, right

    def __add__(self, other: Expression | int) -> Expression:
        return _node(Op.ADD, self, other)

    def __radd__(self, other: int) -> Expression:
        return _node(Op.ADD, other, self)

    def __sub__(self, other: Expression | int) -> Expression:
        return _node(Op.SUB, self, other)

    def __rsub__(self, other: int) -> Expression:
        return _node(Op.SUB, other, self)

    def __mul__(self, other: Expression | int) -> Expression:
        return _node(Op.MUL, self, other)

    def __rmul__(self, other: int) -> Expression:
        return _node(Op.MUL, other, self)

    def __neg__(self) -> Expression:
        return _node(Op.SUB, 0, self)

    def __pow__(self, exponent: int) -> Expression:
        """The power with a whole exponent >= 0, by squaring."""
        if exponent < 0:
            raise ValueError(f"exponent {exponent}")
        result, base = constant(1), self
        while exponent:
            if exponent & 1:
                result = result * base
            exponent >>= 1
            if exponent:
                base = base * base
        return result


class Read(NamedTuple):
    """A column at a rotation."""

    column: str
    rotation: int


def column(name: str, rotation: int = 0) -> Expression:
    """The column's cell ``rotation`` rows further on (back, if negative), cyclically."""
    return Expression(Read(name, rotation))


def challenge(name: str) -> Expression:
    """A scalar that the evaluation is given: the same on all rows."""
    return Expression(name)


def constant(value: int) -> Expression:
    """An integer; operators take bare ones as well."""
    return Expression(value)


def fold(terms: Iterable[Expression | int], y: Expression) -> Expression:
    """(…(t₀·y + t₁)·y + …) + t_m: the first term has the highest power of y. At least one term."""
    first, *others = (_expression(t) for t in terms)
    for term in others:
        first = first * y + term
    return first


def _expression(x: Expression | int) -> Expression:
    if isinstance(x, Expression):
        return x
    if not isinstance(x, int):
        raise TypeError(f"an expression or an integer, not {type(x).__name__}")
    return Expression(x)


def _node(op: Op, left: Expression | int, right: Expression | int) -> Expression:
    return Expression(0, op, _expression(left), _expression(right))


# Formulas --------------------------------------------------------------------------------------


class Step(NamedTuple):
    """a ∘ b, of two values."""

    op: Op
    a: int
    b: int


class Instruction(NamedTuple):
    """A step whose value has a register.

    Attributes:
        target: the register that receives a ∘ b; of STORE, the number of the result that a is.
        a, b: operands: a read, a scalar or a register, see :class:`Program`. b is a again with STORE.
    """

    op: Op
    target: int
    a: int
    b: int


@dataclass(frozen=True)
class Program:
    """The steps of a formula for a machine with registers, each of which holds a value of every row at hand.

    Operands are numbered through: first the formula's reads, then its scalars, then the registers. A target
    may be the register of an operand of the same instruction.
    """

    registers: int
    instructions: tuple[Instruction, ...]


@dataclass(frozen=True)
class Formula:
    """Polynomials over columns, as a straight list of steps. Hashable: backends keep what they make of it.

    Values are numbered through: the reads, then the scalars, then the steps, each of which has operands with
    smaller numbers.

    Attributes:
        reads: the cells, each once.
        scalars: integers, names of challenges, and steps over earlier scalars, by their place among them:
            what is the same on all rows.
        steps: what is to be computed for each row.
        results: the values that are asked for.
    """

    reads: tuple[Read, ...]
    scalars: tuple[int | str | Step, ...]
    steps: tuple[Step, ...]
    results: tuple[int, ...]

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The columns' names, each once, in order of first use."""
        return tuple(dict.fromkeys(read.column for read in self.reads))

    @cached_property
    def challenges(self) -> tuple[str, ...]:
        """The challenges' names, each once."""
        return tuple(s for s in self.scalars if isinstance(s, str))

    @cached_property
    def program(self) -> Program:
        """The steps with registers; a result is stored as soon as it is there."""
        first = len(self.reads) + len(self.scalars)
        wanted: dict[int, list[int]] = {}
        for i, value in enumerate(self.results):
            wanted.setdefault(value, []).append(i)
        # Lines are steps and stores, in order; the steps' operands and those of stores are values.
        lines: list[tuple[Op, int, int, int]] = []  # (op, value or result, a, b)

        def store(value: int) -> None:
            lines.extend((Op.STORE, i, value, value) for i in wanted.get(value, ()))

        for value in range(first):
            store(value)
        for i, (op, a, b) in enumerate(self.steps):
            lines.append((op, first + i, a, b))
            store(first + i)
        made = [value if op is not Op.STORE else None for op, value, _, _ in lines]
        uses = [[v for v in (a, b) if v >= first] for _, _, a, b in lines]
        registers, count = allocate(made, uses)
        at = {v: first + r for v, r in registers.items()}
        instructions = tuple(
            Instruction(op, v if op is Op.STORE else registers[v], at.get(a, a), at.get(b, b))
            for op, v, a, b in lines
        )
        return Program(count, instructions)

    def scalar_values(self, challenges: Mapping[str, int], modulus: int) -> list[int]:
        """The scalars for these challenges, in [0, modulus).

        Raises:
            ValueError: a challenge is missing; the message names it.
        """
        values: list[int] = []
        for scalar in self.scalars:
            if isinstance(scalar, Step):
                value = _computed(scalar.op, values[scalar.a], values[scalar.b])
            elif isinstance(scalar, str):
                if scalar not in challenges:
                    raise ValueError(f"a formula asks for the challenge {scalar!r}, which is not given")
                value = challenges[scalar]
            else:
                value = scalar
            values.append(value % modulus)
        return values

    def rows(self, lengths: Mapping[str, int]) -> int:
        """How many rows an evaluation over columns of these lengths has: those of the longest that is read.

        Raises:
            ValueError: a column is missing, its length does not divide the number of rows, or none is read.
        """
        for name in self.columns:
            if name not in lengths:
                raise ValueError(f"a formula asks for the column {name!r}, which is not given")
        if not self.columns:
            raise ValueError("a formula that reads no column has no rows")
        n = max(lengths[name] for name in self.columns)
        for name in self.columns:
            if n and (not lengths[name] or n % lengths[name]):
                raise ValueError(f"column {name!r}: a length of {lengths[name]} does not divide {n} rows")
        return n


def allocate(made: Sequence[int | None], uses: Sequence[Sequence[int]]) -> tuple[dict[int, int], int]:
    """Registers for values, each free again after its last use -> (value -> register, how many registers).

    Args:
        made: the value that each line makes, or None; no value twice.
        uses: the values that each line takes, made by earlier lines. The line's own value may have the
            register of one that is used for the last time.
    """
    last = {value: line for line, values in enumerate(uses) for value in values}
    registers: dict[int, int] = {}
    free: list[int] = []
    count = 0
    for line, value in enumerate(made):
        free += [registers[v] for v in dict.fromkeys(uses[line]) if last[v] == line]
        if value is None:
            continue
        if not free:
            free.append(count)
            count += 1
        registers[value] = free.pop()
        if value not in last:
            free.append(registers[value])
    return registers, count


def compile_formula(results: Sequence[Expression | int]) -> Formula:
    """One formula with a result for each of the expressions, in their order."""
    return _Compiler().formula([_expression(x) for x in results])


def _computed(op: Op, x: int, y: int) -> int:
    return x + y if op is Op.ADD else x - y if op is Op.SUB else x * y


class _Compiler:
    """Numbers equal values once.

    Values are numbered in the order in which they are met, of whatever kind; :meth:`formula` sorts them.
    """

    def __init__(self) -> None:
        self.keys: list[Read | str | int | Step] = []
        self.numbers: dict[tuple[type, object], int] = {}
        self.uniform: list[bool] = []
        self.done: dict[int, int] = {}
        """The values of expressions by identity; they live as long as the results."""

    def formula(self, results: Sequence[Expression]) -> Formula:
        wanted = [self._value(x) for x in results]
        needed = [False] * len(self.keys)
        for value in wanted:
            needed[value] = True
        for value in reversed(range(len(self.keys))):
            key = self.keys[value]
            if needed[value] and isinstance(key, Step):
                needed[key.a] = needed[key.b] = True
        kept = [value for value in range(len(self.keys)) if needed[value]]
        reads = [v for v in kept if isinstance(self.keys[v], Read)]
        scalars = [v for v in kept if self.uniform[v]]
        steps = [v for v in kept if isinstance(self.keys[v], Step) and not self.uniform[v]]
        place = {v: i for i, v in enumerate([*reads, *scalars, *steps])}
        among_scalars = {v: i for i, v in enumerate(scalars)}

        def renumbered(v: int, places: Mapping[int, int]) -> int | str | Step:
            key = self.keys[v]
            assert not isinstance(key, Read)
            return Step(key.op, places[key.a], places[key.b]) if isinstance(key, Step) else key

        return Formula(
            reads=tuple(k for v in reads if isinstance(k := self.keys[v], Read)),
            scalars=tuple(renumbered(v, among_scalars) for v in scalars),
            steps=tuple(s for v in steps if isinstance(s := renumbered(v, place), Step)),
            results=tuple(place[v] for v in wanted),
        )

    def _value(self, root: Expression) -> int:
        """The number of an expression's value: operands first, the left one before the right one."""
        done = self.done
        todo = [root]
        while todo:
            node = todo[-1]
            if id(node) in done:
                todo.pop()
                continue
            if node.op is None:
                done[id(node)] = self._number(node.leaf)
                continue
            assert node.left is not None
            assert node.right is not None
            missing = [x for x in (node.right, node.left) if id(x) not in done]
            if missing:
                todo += missing
                continue
            done[id(node)] = self._step(node.op, done[id(node.left)], done[id(node.right)])
        return done[id(root)]

    def _number(self, key: Read | str | int | Step) -> int:
        named = type(key), key
        if named not in self.numbers:
            self.numbers[named] = len(self.keys)
            self.keys.append(key)
            self.uniform.append(
                self.uniform[key.a] and self.uniform[key.b]
                if isinstance(key, Step)
                else not isinstance(key, Read)
            )
        return self.numbers[named]

    def _step(self, op: Op, a: int, b: int) -> int:
        """A step, or what it comes to: with 0 and 1, with two integers, with what is negated."""
        x, y = self.keys[a], self.keys[b]
        if type(x) is int and type(y) is int:
            return self._number(_computed(op, x, y))
        match op:
            case Op.ADD:
                if x == 0:
                    return b
                if y == 0:
                    return a
                if (positive := self._negated(b)) is not None:
                    return self._step(Op.SUB, a, positive)
                if (positive := self._negated(a)) is not None:
                    return self._step(Op.SUB, b, positive)
            case Op.SUB:
                if y == 0:
                    return a
                if (positive := self._negated(b)) is not None:
                    return self._step(Op.ADD, a, positive)
            case Op.MUL:
                for one, other in ((x, b), (y, a)):
                    if one == 1:
                        return other
                    if one == 0:
                        return self._number(0)
        if op is not Op.SUB and a > b:
            a, b = b, a
        return self._number(Step(op, a, b))

    def _negated(self, value: int) -> int | None:
        """The v of a value 0 − v."""
        key = self.keys[value]
        return key.b if isinstance(key, Step) and key.op is Op.SUB and self.keys[key.a] == 0 else None
