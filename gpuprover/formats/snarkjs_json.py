"""What snarkjs's documents of all protocols share: points, public signals, names of curves and protocols.

Coordinates are decimal strings. A G1 point is [x, y, "1"], a G2 point
[[x0, x1], [y0, y1], ["1", "0"]]; infinity is ["0", "1", "0"] and [["0", "0"], ["1", "0"],
["0", "0"]]. Numbers in place of strings are read, too. Everything is checked to be in range and on its
curve; subgroups are left to verifiers, which have a backend for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from gpuprover.curves import BN254, PAIRING_CURVES, AffineG1, AffineG2, CurveParams, Group, curve_by_name
from gpuprover.errors import MalformedFile, UnsupportedFile, about
from gpuprover.formats.json_files import parse_integer, shown

MAX_PUBLIC = 1 << 20
JsonG1 = list[str]
JsonG2 = list[list[str]]


def g1_to_json(point: AffineG1) -> JsonG1:
    if point is None:
        return ["0", "1", "0"]
    return [str(point[0]), str(point[1]), "1"]


def g2_to_json(point: AffineG2) -> JsonG2:
    if point is None:
        return [["0", "0"], ["1", "0"], ["0", "0"]]
    return [[str(c) for c in point[0]], [str(c) for c in point[1]], ["1", "0"]]


@about("public signals")
def parse_public_signals(
    document: object,
    curve: CurveParams,
    n_public: int | None = None,
    source: str = "public signals",
    *,
    strict: bool = False,
) -> list[int]:
    """Checks public signals: a list of n_public integers in [0, r).

    ``strict``: they have to be decimal text without leading zeros.

    Raises:
        MalformedFile: no list, a value that is no integer or not below r, another number of them.
    """
    if not isinstance(document, list | tuple):
        raise MalformedFile(source, "document", f"expected a list of integers, found {shown(document)}")
    if n_public is not None and len(document) != n_public:
        raise MalformedFile(source, "document", f"{len(document)} signals, expected {n_public} for this key")
    signals = []
    for i, entry in enumerate(document):
        value = parse_integer(entry)
        if value is None:
            raise MalformedFile(source, f"signal {i}", f"expected an integer, found {shown(entry)}")
        if strict and entry != str(value):
            raise MalformedFile(source, f"signal {i}", _not_strict(entry))
        if value >= curve.r:
            raise MalformedFile(source, f"signal {i}", f"not below the prime of {curve.scalar.name}")
        signals.append(value)
    return signals


class DocumentReader:
    """Picks fields from a document and names the one that is wrong."""

    def __init__(self, document: object, source: str, what: str, strict: bool = False) -> None:
        self.source, self._strict = source, strict
        if not isinstance(document, dict):
            self.fail("document", f"expected {what} (a JSON object), found {shown(document)}")
        self.document: dict[str, Any] = document

    def fail(self, part: str, problem: str) -> NoReturn:
        raise MalformedFile(self.source, part, problem)

    def field(self, name: str) -> Any:
        if name not in self.document:
            self.fail(name, "missing from the document")
        return self.document[name]

    def array(self, name: str) -> Sequence[Any]:
        value = self.field(name)
        if not isinstance(value, list | tuple):
            self.fail(name, f"expected a list, found {shown(value)}")
        return value

    def protocol(self, name: str, *, required: bool) -> None:
        """Raises UnsupportedFile where the document names another protocol."""
        found = self.field("protocol") if required else self.document.get("protocol", name)
        if not isinstance(found, str) or found != name:
            raise UnsupportedFile(self.source, "protocol", f"expected '{name}', found {shown(found)}")

    def curve(self, expected: CurveParams | None) -> CurveParams:
        """The curve that the document names; BN254 or the expected one where it names none."""
        default = expected or BN254
        name = self.document.get("curve", default.snarkjs_name)
        try:
            curve = curve_by_name(name) if isinstance(name, str) else None
        except KeyError:
            curve = None
        if curve is None or (expected is not None and curve != expected):
            known = [expected.snarkjs_name] if expected else [c.snarkjs_name for c in PAIRING_CURVES]
            raise UnsupportedFile(self.source, "curve", f"expected {' or '.join(known)}, found {shown(name)}")
        return curve

    def scalar(self, curve: CurveParams, part: str, value: object) -> int:
        """An integer in [0, r)."""
        number = self._integer(part, value, "an integer")
        if number >= curve.r:
            self.fail(part, f"not below the prime of {curve.scalar.name}")
        return number

    def _integer(self, part: str, value: object, what: str) -> int:
        number = parse_integer(value)
        if number is None:
            self.fail(part, f"expected {what}, found {shown(value)}")
        if self._strict and value != str(number):
            self.fail(part, _not_strict(value))
        return number

    def coordinates(self, curve: CurveParams, part: str, value: object, count: int) -> list[int]:
        if not isinstance(value, list | tuple) or len(value) != count:
            self.fail(part, f"expected a list of {count}, found {_length(value)}")
        result = []
        for entry in value:
            number = self._integer(part, entry, "integers as coordinates")
            if number >= curve.q:
                self.fail(part, f"a coordinate is not below the base prime of {curve.name}")
            result.append(number)
        return result

    def g1(self, curve: CurveParams, part: str, value: object) -> AffineG1:
        """[x, y, 1], [x, y] or infinity [0, 1, 0]."""
        if isinstance(value, list | tuple) and len(value) == 2:
            value = [*value, 1]
        x, y, z = self.coordinates(curve, part, value, 3)
        if z == 0 and (x, y) == (0, 1):
            return None
        if z != 1:
            self.fail(part, "expected affine coordinates: the third has to be 1")
        if not curve.group(Group.G1).on_curve((x, y)):
            self.fail(part, f"the point is not on the curve {curve.name}")
        return x, y

    def g2(self, curve: CurveParams, part: str, value: object) -> AffineG2:
        """[[x0, x1], [y0, y1], [1, 0]], the first two, or infinity [[0, 0], [1, 0], [0, 0]]."""
        if isinstance(value, list | tuple) and len(value) == 2:
            value = [*value, [1, 0]]
        if not isinstance(value, list | tuple) or len(value) != 3:
            self.fail(part, f"expected a list of 3 pairs, found {_length(value)}")
        (x0, x1), (y0, y1), z = (self.coordinates(curve, part, pair, 2) for pair in value)
        if z == [0, 0] and (x0, x1, y0, y1) == (0, 0, 1, 0):
            return None
        if z != [1, 0]:
            self.fail(part, "expected affine coordinates: the third has to be [1, 0]")
        point = (x0, x1), (y0, y1)
        if not curve.group(Group.G2).on_curve(point):
            self.fail(part, f"the point is not on the twist of {curve.name}")
        return point


def _not_strict(value: object) -> str:
    return f"expected decimal text without leading zeros, found {shown(value)}"


def _length(value: object) -> str:
    return f"{len(value)} entries" if isinstance(value, list | tuple) else shown(value)
