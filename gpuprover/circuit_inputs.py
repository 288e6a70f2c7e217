"""A circuit's inputs as somebody gives them -> names of signals, as its program knows them, and integers.

Inputs are secret: no message holds a value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from gpuprover.errors import InvalidInput, ProverError
from gpuprover.formats.files import open_regular
from gpuprover.formats.json_files import MAX_DEPTH

Signals = Iterator[tuple[str, Any]]
"""Names of signals with what is given for them."""
MAX_PROBLEMS = 8
"""Signals that one message names."""
_MAX_BUS_DEPTH = 64
_MAX_NAME = 1 << 10
"""Characters of a signal's name with those of its buses."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_MEMBER = re.compile(r"[.\[]")
_INDICES = re.compile(r"(?<!\])(\[[0-9]+\])+$")
"""Where no bracket ends before: else a line of a thousand of them is searched from each."""
_MAX_SYMBOLS, _MAX_SYMBOL, _MAX_SYMBOL_BYTES = 1 << 16, 1 << 10, 1 << 23


def qualified(prefix: str, value: Any, depth: int = 0, buses: _Buses | None = None) -> Signals:
    """Names as the program knows them: ``a``, and for buses ``a.b``, ``a[0].b``.

    ``buses`` tells where in an array they are, if somebody has looked already.
    """
    if depth > _MAX_BUS_DEPTH:
        raise InvalidInput(f"circuit inputs: nested deeper than {_MAX_BUS_DEPTH} objects")
    if len(prefix) > _MAX_NAME:
        # Each member repeats the name of what it stands in.
        raise InvalidInput(f"circuit inputs: a signal's name of more than {_MAX_NAME} characters")
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key == "":
                raise InvalidInput("circuit inputs: a signal's name is empty")
            if not isinstance(key, str):
                raise InvalidInput(f"circuit inputs: a signal's name has to be a text, found {kind_of(key)}")
            if _SURROGATE.search(key):
                raise InvalidInput("circuit inputs: a signal's name holds half a character (a surrogate)")
            yield from qualified(f"{prefix}.{key}" if prefix else key, item, depth + 1)
    elif buses is not None or (_is_list(value) and (buses := _find_buses(value)) is not None):
        for i, item in enumerate(value):
            held, inner = buses.get(i, (item, None))
            if inner is None and not isinstance(held, Mapping):
                yield f"{prefix}[{i}]", held
            else:
                yield from qualified(f"{prefix}[{i}]", held, depth + 1, inner)
    else:
        yield prefix, value


class _Buses(dict[int, "tuple[Any, _Buses | None]"]):
    """Those elements of an array that are buses, or arrays with some in them, by their place."""


def _find_buses(array: Any, depth: int = 0) -> _Buses | None:
    """None without any. Once for nested arrays: a look at each level would take a square of their depth."""
    _check_depth(depth)
    found = _Buses()
    for i, item in enumerate(array):
        if isinstance(item, Mapping):
            found[i] = item, None
        elif _is_list(item) and (inner := _find_buses(item, depth + 1)) is not None:
            found[i] = item, inner
    return found or None


def _check_depth(depth: int) -> None:
    """Of arrays in each other: one that holds itself would never end."""
    if depth > MAX_DEPTH:
        raise InvalidInput(f"circuit inputs: arrays nested deeper than {MAX_DEPTH}")


def _is_list(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _leaves(value: Any) -> Iterator[Any]:
    """The elements of nested arrays, row by row."""
    stack = [iter([value])]
    while stack:
        for item in stack[-1]:
            if _is_list(item):
                _check_depth(len(stack))
                stack.append(iter(item))
                break
            yield item
        else:
            stack.pop()


def integers_of(name: str, value: Any) -> list[int]:
    """The values of one signal. Raises InvalidInput, without the value."""
    if type(value) is int:
        return [value]
    result = []
    for i, item in enumerate(_leaves(value)):
        try:
            result.append(_integer(item))
        except ValueError:
            at = f"[{i}]" if _is_list(value) else ""
            found = kind_of(item)
            raise InvalidInput(
                f"circuit inputs: {name}{at}: expected an integer in decimal or 0x form, found {found}"
            ) from None
    return result


def _integer(item: Any) -> int:
    if isinstance(item, int | np.integer):  # true and false are 1 and 0, as in JavaScript
        return int(item)
    if not isinstance(item, str) or len(item) > 4096 or "_" in item or not item.isascii():
        raise ValueError
    text = item.strip()
    if text[:2].lower() in ("0x", "0o", "0b"):
        return int(text, 0)
    return int(text, 10)


def kind_of(value: Any) -> str:
    """A type's name in JSON's words."""
    if value is None:
        return "null"
    if isinstance(value, str):
        return "a text that is none"
    if isinstance(value, float):
        return "a number with a fraction or exponent"
    if _is_list(value):
        return "an array"
    if isinstance(value, Mapping):
        return "an object"
    return type(value).__name__


def check_sizes(values: Mapping[str, list[int]], sizes: Sequence[int]) -> None:
    """Raises InvalidInput for signals that are unknown or of another length."""
    problems = []
    for (name, integers), size in zip(values.items(), sizes, strict=True):
        if size == 0 and integers:
            problems.append(f"{name}: the circuit has no such input")
        elif size != len(integers):
            problems.append(f"{name}: expected {size} {plural(size)}, found {len(integers)}")
        if len(problems) == MAX_PROBLEMS:
            break
    if problems:
        raise InvalidInput(f"circuit inputs: {'; '.join(problems)}")


def is_given(name: str, values: Mapping[str, object]) -> bool:
    """Whether a signal is among those given, or a member of one."""
    return name in values or any(
        name[: match.start()] in values for match in islice(_MEMBER.finditer(name), 2 * _MAX_BUS_DEPTH)
    )


def plural(n: int) -> str:
    return "value" if n == 1 else "values"


def symbols(wasm: Path, *, whole: bool = False) -> dict[str, int]:
    """The first signals' names and numbers of values, from the .sym file that circom wrote along.

    circom puts NAME.wasm into NAME_js/ and NAME.sym beside that folder, outputs and inputs first. Empty
    without the file, and if ``whole``, where it has more lines than are read.
    """
    for folder in (wasm.parent, wasm.parent.parent):
        try:
            file, _ = open_regular(folder / f"{wasm.stem}.sym")
        except ProverError:
            continue
        with file:
            names: dict[str, int] = {}
            left = _MAX_SYMBOL_BYTES
            for _ in range(_MAX_SYMBOLS):
                line = file.readline(_MAX_SYMBOL)
                if not line:
                    return names
                if (left := left - len(line)) < 0:
                    break
                # number, wire, component, main.name[0][1]
                symbol = line.decode(errors="replace").strip().split(",")[-1]
                name = _INDICES.sub("", symbol.removeprefix("main."))
                names[name] = names.get(name, 0) + 1
            return {} if whole else names
    return {}
