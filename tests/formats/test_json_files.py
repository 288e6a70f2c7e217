"""Documents that are parsed in slices: the same values and refusals as in one piece, within bounds."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from gpuprover.errors import MalformedFile
from gpuprover.formats import json_files
from gpuprover.formats.json_files import discard, parse_json, shown

TEXTS = ["a", "", 'x"y\\,', "é😀", "[{,]}", "\\", "\n,"]


def value(rng: random.Random, depth: int) -> Any:
    choice = rng.random()
    if depth <= 0 or choice < 0.45:
        return rng.choice([1, -3, 1.5, True, None, 10**30, *TEXTS])
    if choice < 0.75:
        return [value(rng, depth - 1) for _ in range(rng.randrange(5))]
    return {f"{rng.choice(TEXTS)}{i}": value(rng, depth - 1) for i in range(rng.randrange(4))}


def damaged(rng: random.Random, data: bytes) -> bytes:
    at, choice = rng.randrange(len(data) + 1), rng.random()
    if choice < 0.4:
        return data[:at] + data[at + 1 :]
    if choice < 0.8:
        marks = (b",", b"]", b"[", b"{", b"}", b'"', b"\\", b" ", b":", b"1", b"\xff")
        return data[:at] + rng.choice(marks) + data[at:]
    return data[:at]


def in_one_piece(data: bytes) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("twice")
        return dict(pairs)

    return json.loads(data.decode("utf-8-sig"), object_pairs_hook=unique)


@pytest.mark.parametrize("length", [1, 3, 16, 40])
def test_slices_give_what_one_piece_gives(
    length: int, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Good and damaged documents, cut wherever there is a comma."""
    monkeypatch.setattr(json_files, "_SLICE", length)
    accepted = 0
    for _ in range(500):
        document = value(rng, 5)
        data = json.dumps(document, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 1])).encode()
        for _ in range(rng.randrange(3)):
            data = damaged(rng, data)
        try:
            expected = repr(in_one_piece(data))
        except ValueError:
            with pytest.raises(MalformedFile):
                parse_json(data, "document")
            continue
        assert repr(parse_json(data, "document")) == expected, data
        accepted += 1
    assert 150 < accepted < 450


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[1,\n2,\n é]", "Expecting value at line 3, column 2"),
        ('["é", "é" 1]', "Expecting ',' delimiter at line 1, column 11"),
        ('{"a": 1, "b": 2}, ', "Extra data at line 1, column 17"),
        ("[1, 2,]", "at line 1, column 7"),
        ('{"a": [1, 2}, "c": 1}', "Expecting ',' delimiter at line 1, column 12"),
        ('{"a": 1, "b": 2, "a": 3}', 'the name "a" stands twice'),
        ("[,1,1]", "Expecting value"),
        ('{,"a": 1}', "Expecting property name"),
        ('[1, "\udcff"]', "surrogate"),
        (b'[1, "\xff"]', "byte 5 is not UTF-8"),
        ("[1, -" + "9" * 400 + "]", "a number of 401 digits"),
        ("[1, 1." + "9" * 400 + "]", "a number of 402 characters"),
        ("[1, NaN]", "NaN is not JSON"),
        ("[1, " + "[" * 300 + "]" * 300 + "]", "nested too deeply"),
    ],
)
def test_what_is_wrong_is_found_in_its_place(
    text: bytes | str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_files, "_SLICE", 4)
    with pytest.raises(MalformedFile, match="document:") as caught:
        parse_json(text, "document")
    assert problem in caught.value.message


@pytest.mark.parametrize("unit", [b"[],", b"1.5,", b'"ab",', b'{"a":0},', b'"\\u0100",', b"[[[1]]],"])
def test_no_call_of_the_scanner_gets_much(unit: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds the interpreter for as long as it runs."""
    longest = 0
    loads = json.loads

    def watched(text: str, **hooks: Any) -> Any:
        nonlocal longest
        longest = max(longest, len(text))
        return loads(text, **hooks)

    monkeypatch.setattr(json_files.json, "loads", watched)
    values = parse_json(b"[" + unit * (600_000 // len(unit)) + b"1]", "document")
    assert len(values) == 600_000 // len(unit) + 1
    assert 10_000 < longest <= (1 << 17) + 2 * json_files.MAX_DEPTH


def test_a_name_twice_in_different_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_files, "_SLICE", 64)
    names = ",".join(f'"n{i}":{i}' for i in range(100))
    assert len(parse_json("{" + names + "}", "document")) == 100
    with pytest.raises(MalformedFile, match='the name "n3" stands twice'):
        parse_json("{" + names + ',"n3":1}', "document")


def test_values_containers_and_names_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "[" + "[1,2]," * 1000 + "0]"
    assert len(parse_json(text, "document", max_values=3002, max_containers=1001)) == 1001
    with pytest.raises(MalformedFile, match="more than 3001 values"):
        parse_json(text, "document", max_values=3001)
    with pytest.raises(MalformedFile, match="more than 1000 arrays and objects"):
        parse_json(text, "document", max_containers=1000)
    monkeypatch.setattr(json_files, "_SLICE", 64)
    monkeypatch.setattr(json_files, "MAX_NAMES", 50)
    with pytest.raises(MalformedFile, match="more than 50 names"):
        parse_json("{" + ",".join(f'"{i}":0' for i in range(60)) + "}", "document")


def test_a_long_text_is_one_value_and_an_endless_one_is_refused() -> None:
    text = "x" * 1_500_000
    assert parse_json(json.dumps([1, text, 2]), "document") == [1, text, 2]
    with pytest.raises(MalformedFile, match="without a comma"):
        parse_json(b'["' + b"x" * (3 << 20) + b'"]', "document")


def test_documents_are_taken_apart() -> None:
    inner = [[0] * 100] * 100
    document = [inner, {str(i): [i] * 100 for i in range(5000)}, *range(10_000)]
    discard(document)
    assert document == []
    assert inner == []
    discard(5)


def test_long_numbers_are_not_shown() -> None:
    for number in (10**5000, -(10**5000)):
        assert shown(number) == "an integer of 16610 bits"
