"""Constraint systems: the identities that a circuit's table of columns satisfies, read from their text.

A verifying key's hash covers a debug print of its constraint system, so that the print is a part of the
format; and it says all that a prover needs to know of the circuit's columns. It is parsed, and everything
else is derived from it: no count of columns, lookups or blinding rows stands anywhere else.

In expressions the columns are called A0, A1, … (advice), F0, … (fixed) and I0, I1 (instance). What is
derived follows halo2 ("The halo2 Book", proving system) and its descendant in midnight-proofs 0.7 and 0.8.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.resources import files
from typing import NamedTuple

from gpuprover.columns import Expression, column, constant
from gpuprover.curves import BLS12_381
from gpuprover.errors import UnsupportedFile
from gpuprover.midnight.architecture import BASIC_CHIPS, CHIPS, Architecture
from gpuprover.polynomial import Domain

GENERATOR = 7
"""The generator of the scalar field whose power ω is."""
SMALLEST_DEGREE = 3
_EXTRA_ROWS = 2
"""Blinding rows beyond one for each query: for the opening at x, and for the quotient."""
_RANGE_TABLE = "column_index: 12, rotation: Rotation(0) }] }"
"""The end of the first lookup's text: the table of ranges."""


class Query(NamedTuple):
    """A column at a rotation, as its evaluation stands in proofs.

    Attributes:
        column: the column's name in expressions.
        rotation: rows further on.
    """

    column: str
    rotation: int


class Lookup(NamedTuple):
    """The tuples of ``inputs`` on every usable row are among those of ``tables``."""

    inputs: tuple[Expression, ...]
    tables: tuple[Expression, ...]


class Trash(NamedTuple):
    """``constraints`` vanish where ``selector`` is 1; on other rows a column of its own takes the rest."""

    selector: Expression
    constraints: tuple[Expression, ...]


@dataclass(frozen=True, eq=False)
class ConstraintSystem:
    """The identities of one architecture.

    Attributes:
        text: the print, without the part that depends on the number of rows.
        advice, fixed, instance: numbers of columns.
        gates: expressions that vanish on every row.
        advice_queries, fixed_queries: cells that are evaluated, in the order of proofs.
        permutation: columns with copy constraints, by name, in the order of the argument.
        lookups, trash: arguments in their order.
        degree: of the identities, d: a quotient has d − 1 parts, a set of permuted columns d − 2.
        blinding: rows at the end that a prover fills at random, b.
    """

    text: str
    advice: int
    fixed: int
    instance: int
    gates: tuple[Expression, ...]
    advice_queries: tuple[Query, ...]
    fixed_queries: tuple[Query, ...]
    permutation: tuple[str, ...]
    lookups: tuple[Lookup, ...]
    trash: tuple[Trash, ...]
    degree: int
    blinding: int

    @cached_property
    def sets(self) -> tuple[range, ...]:
        """Places of permuted columns, by the products that they are in."""
        step, count = self.degree - 2, len(self.permutation)
        return tuple(range(i, min(i + step, count)) for i in range(0, count, step))

    def usable(self, k: int) -> int:
        """Rows of a table of 2^k rows that hold values, u: those behind are blinded."""
        return (1 << k) - self.blinding - 1

    def whole_text(self, k: int) -> str:
        """The print that a verifying key of 2^k rows hashes."""
        needed, extended = (1 << k) * (self.degree - 1), k
        while 1 << extended < needed:
            extended += 1
        omega = domain(k).omega
        head = f"PinnedEvaluationDomain {{ k: {k}, extended_k: {extended}, omega: Fq(0x{omega:064x}) }}"
        return head + self.text


def domain(k: int) -> Domain:
    """The 2^k roots of unity that rows stand for."""
    return Domain(BLS12_381.scalar, k, GENERATOR)


def delta_power(i: int) -> int:
    """δ^i, what tells the positions of the i-th permuted column from those of others."""
    r = BLS12_381.r
    return pow(GENERATOR, i << BLS12_381.scalar.two_adicity, r)


@lru_cache(maxsize=32)
def constraint_system(architecture: Architecture) -> ConstraintSystem:
    """The constraint system of an architecture of basic chips.

    Raises:
        UnsupportedFile: other chips, whose identities depend on the size of the range table, too.
    """
    return parse(text_of(architecture))


def text_of(architecture: Architecture) -> str:
    """The print of an architecture's constraint system.

    The range lookup stands in it once for each range column.

    Raises:
        UnsupportedFile: see :func:`constraint_system`.
    """
    others = [chip for chip in CHIPS if chip in architecture.chips - BASIC_CHIPS]
    if others:
        raise UnsupportedFile(
            "circuit", "architecture", f"expected jubjub, poseidon and sha2_256 at most, found {others[0]}"
        )
    j, p, s = (int(chip in architecture.chips) for chip in ("jubjub", "poseidon", "sha2_256"))
    one = files("gpuprover.midnight").joinpath("texts", f"j{j}-p{p}-s{s}.txt").read_text("ascii")
    columns = architecture.range_columns
    if not 1 <= columns <= 4:
        raise UnsupportedFile("circuit", "range columns", f"expected 1 to 4, found {columns}")
    start = one.index("lookups: [") + len("lookups: [")
    end = one.index(_RANGE_TABLE, start) + len(_RANGE_TABLE)
    lookup = one[start:end]
    queries = [(query.column, query.rotation) for query in parse(one).advice_queries]
    copies = [
        re.sub(
            r"Advice { query_index: \d+, column_index: 1,",
            f"Advice {{ query_index: {queries.index((f'A{i}', 0))}, column_index: {i},",
            lookup,
        )
        for i in range(1, columns + 1)
    ]
    return one[:start] + ", ".join(copies) + one[end:]


# The text --------------------------------------------------------------------------------------

_TOKEN = re.compile(r'\s*(?:(0x[0-9a-f]+|-?\d+)|("[^"]*")|([A-Za-z_]\w*)|([{}()\[\],:]))')


class _Struct(NamedTuple):
    name: str
    fields: dict[str, object]


class _Call(NamedTuple):
    name: str
    arguments: list[object]


class _Parser:
    """Values of the debug print: lists, tuples, structs, calls, numbers, strings, names."""

    def __init__(self, text: str) -> None:
        self._tokens = self._split(text)
        self._next: str | None = next(self._tokens, None)

    @staticmethod
    def _split(text: str) -> Iterator[str]:
        at = 0
        text = text.rstrip()
        while at < len(text):
            found = _TOKEN.match(text, at)
            if not found:
                raise ValueError(f"constraint system: no token at character {at}")
            yield found[0].strip()
            at = found.end()

    def take(self, wanted: str | None = None) -> str:
        token = self._next
        if token is None or (wanted is not None and token != wanted):
            raise ValueError(f"constraint system: expected {wanted or 'a value'}, found {token or 'its end'}")
        self._next = next(self._tokens, None)
        return token

    def items(self, close: str) -> list[object]:
        found: list[object] = []
        while self._next != close:
            found.append(self.value())
            if self._next != close:
                self.take(",")
        self.take(close)
        return found

    def value(self) -> object:
        token = self.take()
        if token == "[":
            return self.items("]")
        if token == "(":
            return tuple(self.items(")"))
        if token[0] == '"':
            return token[1:-1]
        if token[0].isdigit() or token[0] == "-":
            return int(token, 0)
        if self._next == "(":
            self.take()
            return _Call(token, self.items(")"))
        if self._next == "{":
            self.take()
            fields: dict[str, object] = {}
            while self._next != "}":
                name = self.take()
                self.take(":")
                fields[name] = self.value()
                if self._next != "}":
                    self.take(",")
            self.take("}")
            return _Struct(token, fields)
        return token


def parse(text: str) -> ConstraintSystem:
    """A constraint system from its print, without the part of the evaluation domain.

    Raises:
        ValueError: it is no such print.
    """
    parser = _Parser(text)
    pinned = parser.value()
    if not isinstance(pinned, _Struct) or parser._next is not None:
        raise ValueError("constraint system: expected PinnedConstraintSystem { … } and nothing else")
    f: dict[str, object] = pinned.fields
    reader = _Expressions()
    gates = tuple(reader.expressions(f["gates"]))
    lookups = tuple(
        Lookup(
            tuple(reader.expressions(a.fields["input_expressions"])),
            tuple(reader.expressions(a.fields["table_expressions"])),
        )
        for a in _structs(f["lookups"])
    )
    trash = tuple(
        Trash(
            reader.expression(a.fields["selector"]),
            tuple(reader.expressions(a.fields["constraint_expressions"])),
        )
        for a in _structs(f["trashcans"])
    )
    (permuted,) = _structs([f["permutation"]])
    advice_queries = tuple(_queries(f["advice_queries"]))
    per_column = Counter(query.column for query in advice_queries)
    instance_queries = tuple(_queries(f["instance_queries"]))
    if any(query.rotation for query in instance_queries):
        raise ValueError("constraint system: an instance column at a rotation")
    return ConstraintSystem(
        text=text,
        advice=_number(f["num_advice_columns"]),
        fixed=_number(f["num_fixed_columns"]),
        instance=_number(f["num_instance_columns"]),
        gates=gates,
        advice_queries=advice_queries,
        fixed_queries=tuple(_queries(f["fixed_queries"])),
        permutation=tuple(_column(c) for c in _structs(permuted.fields["columns"])),
        lookups=lookups,
        trash=trash,
        degree=_degree(reader, gates, lookups, trash),
        blinding=max(3, *per_column.values()) + len(trash) + _EXTRA_ROWS,
    )


def _degree(
    reader: _Expressions,
    gates: tuple[Expression, ...],
    lookups: tuple[Lookup, ...],
    trash: tuple[Trash, ...],
) -> int:
    degrees = [SMALLEST_DEGREE, *(reader.degree(gate) for gate in gates)]
    for inputs, tables in lookups:
        both = (max(1, *(reader.degree(e) for e in part)) for part in (inputs, tables))
        degrees.append(max(4, 2 + sum(both)))
    for _, constraints in trash:
        degrees.append(max(2, *(reader.degree(e) for e in constraints)))
    return max(degrees)


def _number(value: object) -> int:
    if not isinstance(value, int):
        raise ValueError("constraint system: expected a number")
    return value


def _structs(value: object) -> list[_Struct]:
    if not isinstance(value, list) or not all(isinstance(item, _Struct) for item in value):
        raise ValueError("constraint system: expected a list of structs")
    return value


def _column(struct: _Struct) -> str:
    return f"{str(struct.fields['column_type'])[0]}{struct.fields['index']}"


def _queries(value: object) -> Iterator[Query]:
    if not isinstance(value, list):
        raise ValueError("constraint system: expected a list of queries")
    for where, rotation in value:
        yield Query(_column(where), rotation.arguments[0])


class _Expressions:
    """Expressions with their degrees. Prints of one subtree give one expression."""

    def __init__(self) -> None:
        self._degrees: dict[int, tuple[Expression, int]] = {}

    def degree(self, expression: Expression) -> int:
        return self._degrees[id(expression)][1]

    def expressions(self, value: object) -> list[Expression]:
        if not isinstance(value, list):
            raise ValueError("constraint system: expected a list of expressions")
        return [self.expression(item) for item in value]

    def expression(self, value: object) -> Expression:
        found, degree = self._made(value)
        self._degrees[id(found)] = found, degree
        return found

    def _made(self, value: object) -> tuple[Expression, int]:
        if isinstance(value, _Struct) and value.name in ("Advice", "Fixed", "Instance"):
            (rotation,) = _call(value.fields["rotation"], "Rotation")
            return column(f"{value.name[0]}{value.fields['column_index']}", _number(rotation)), 1
        if isinstance(value, _Call):
            arguments = value.arguments
            if value.name == "Constant":
                return constant(_scalar(arguments[0])), 0
            first, degree = self._made(arguments[0])
            if value.name == "Negated":
                return -first, degree
            if value.name == "Scaled":
                return first * _scalar(arguments[1]), degree
            second, other = self._made(arguments[1])
            if value.name == "Sum":
                return first + second, max(degree, other)
            if value.name == "Product":
                return first * second, degree + other
        raise ValueError("constraint system: expected an expression")


def _call(value: object, name: str) -> list[object]:
    if not isinstance(value, _Call) or value.name != name:
        raise ValueError(f"constraint system: expected {name}(…)")
    return value.arguments


def _scalar(value: object) -> int:
    return _number(_call(value, "Fq")[0])
