"""A witness as it is given, looked at once: what it is, how it waits and travels, and what is never told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import ChainMap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpuprover.curves import BLS12_381, BN254, CurveParams
from gpuprover.errors import InvalidInput, MalformedFile
from gpuprover.formats.wtns import ordinary, read_witness, witness_bytes
from gpuprover.job import Job
from gpuprover.limbs import ints_to_words, words_to_ints
from gpuprover.witness_source import (
    InputsForm,
    WitnessBytes,
    WitnessFile,
    WitnessInputs,
    WitnessSource,
    WitnessValues,
    looked_at,
    unpacked,
)
from tests.support.paths import VECTORS

STEM = VECTORS / "chain5.bn254"
WTNS = Path(f"{STEM}.wtns")
SECRET = 987_654_321
ABSENT = object()


def bn254() -> CurveParams:
    return BN254


def asked_for() -> CurveParams:
    raise AssertionError("the curve of a witness that says it itself")


def travelled(source: WitnessSource) -> WitnessSource:
    """What comes out at the other end."""
    message, pieces = source.packed()
    data = [memoryview(b"".join(bytes(piece) for piece in pieces))] if pieces is not None else []
    return unpacked(json.loads(json.dumps(message)), data)


def values_of(source: WitnessSource, curve: CurveParams = BN254) -> list[int]:
    return words_to_ints(source.load(curve, Job(threads=1), None, ordinary).values)


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ("w.wtns", WitnessFile),
        (Path("w.wtns"), WitnessFile),
        (b"wtns", WitnessBytes),
        (bytearray(b"wtns"), WitnessBytes),
        (memoryview(b"wtns"), WitnessBytes),
        ([1, 2], WitnessValues),
        ((1, 2), WitnessValues),
        (range(3), WitnessValues),
        (np.zeros((2, 4), dtype=np.uint64), WitnessValues),
        (7, WitnessValues),
        ({"inputs": {}, "wasm": "c.wasm"}, WitnessInputs),
        (ChainMap({"inputs": {}}, {"wasm": Path("c.wasm")}), WitnessInputs),
    ],
)
def test_each_form_is_one_kind(given: Any, kind: type) -> None:
    assert type(looked_at(given)) is kind


@pytest.mark.parametrize("curve", [BN254, BLS12_381], ids=lambda c: c.name)
def test_every_kind_has_the_same_values_wherever_it_has_been(curve: CurveParams) -> None:
    path = VECTORS / f"chain5.{curve.name}.wtns"
    words = read_witness(path).values
    expected = words_to_ints(words)
    for given in (path, str(path), path.read_bytes(), bytearray(path.read_bytes()), words, expected):
        source = looked_at(given)
        waiting = source.owned(lambda: curve, True)
        for form in (source, travelled(source), waiting, travelled(waiting)):
            assert values_of(form, curve) == expected
        assert isinstance(waiting, WitnessBytes)
        assert waiting.content == path.read_bytes() == witness_bytes(curve.scalar, words)


@pytest.mark.parametrize(
    "source",
    [
        WitnessFile(os.path.abspath("w.wtns")),
        WitnessBytes(b""),
        WitnessBytes(b"wtns"),
        WitnessInputs({"a": [1, "0x2", [-3]]}, os.path.abspath("c.wasm"), 5),
        WitnessInputs(b"", os.path.abspath("c.wasm")),
        WitnessInputs(b'{"a": 1}', None, 7),
    ],
)
def test_a_travelled_witness_is_the_same(source: WitnessSource) -> None:
    assert travelled(source) == source


def test_what_waits_is_not_its_callers_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.wtns").write_bytes(WTNS.read_bytes())
    buffer, words = bytearray(WTNS.read_bytes()), read_witness(WTNS).values.copy()
    monkeypatch.chdir(tmp_path)
    path, read = (looked_at("w.wtns").owned(asked_for, content) for content in (False, True))
    content, values = looked_at(buffer).owned(asked_for, False), looked_at(words).owned(bn254, False)
    inputs = looked_at({"inputs": {}, "wasm": "c.wasm"}).owned(asked_for, False)
    monkeypatch.chdir("/")
    buffer[:], words[:] = bytes(len(buffer)), 0
    assert path == WitnessFile(str(tmp_path / "w.wtns"))
    assert inputs == WitnessInputs({}, str(tmp_path / "c.wasm"))
    (tmp_path / "w.wtns").write_bytes(b"")
    expected = words_to_ints(read_witness(WTNS).values)
    assert [values_of(source) for source in (read, content, values)] == [expected] * 3


def test_a_digest_stands_for_a_content(tmp_path: Path) -> None:
    program, other = tmp_path / "c.wasm", tmp_path / "d.wasm"
    program.write_bytes(b"1")
    other.write_bytes(b"22")

    def inputs(inputs: Any, wasm: Path = program, **fuel: Any) -> bytes | None:
        return looked_at({"inputs": inputs, "wasm": wasm, **fuel}).digest()

    content = WTNS.read_bytes()
    same = [looked_at(given).owned(bn254, True).digest() for given in (WTNS, content, bytearray(content))]
    assert same[0] is not None
    assert len(set(same)) == 1
    several = {
        *same,
        WitnessBytes(content + b"\0").digest(),
        inputs({"a": 1, "b": 2}),
        inputs({"a": 1}),
        inputs({"a": 1}, fuel=5),
        inputs({"a": 1}, other),
        inputs(b'{"a": 1}'),
    }
    assert None not in several
    assert len(several) == 7
    assert inputs({"b": 2, "a": 1}) in several
    assert looked_at(WTNS).digest() is None, "its content is not known yet"
    assert inputs({"a": {1}}) is None
    with pytest.raises(InvalidInput, match=r"no\.wasm") as caught:
        inputs({}, tmp_path / "no.wasm")
    assert caught.value.role == "witness program"


@pytest.mark.parametrize(
    ("form", "expected", "wasm", "fuel"),
    [
        (InputsForm.LIBRARY, "{'inputs': {...}, 'wasm': path}, and perhaps 'fuel'", "c.wasm", 5),
        (InputsForm.ENGINE, "{'inputs': {...}}, and perhaps 'wasm' and 'fuel'", "c.wasm", 5),
        (
            InputsForm.SERVICE,
            "{'inputs': {...}}; the service has the witness program",
            ABSENT,
            ABSENT,
        ),
    ],
)
def test_inputs_come_with_what_they_need(form: InputsForm, expected: str, wasm: Any, fuel: Any) -> None:
    whole = {"inputs": {"a": 1}, "wasm": wasm, "fuel": fuel}
    whole = {name: value for name, value in whole.items() if value is not ABSENT}
    found = looked_at(whole, form)
    assert found == WitnessInputs({"a": 1}, whole.get("wasm"), whole.get("fuel"))
    without = [name for name in whole if name in form.required]
    refused = [{n: v for n, v in whole.items() if n != name} for name in without]
    refused += [{**whole, name: 1} for name in {"wasm", "fuel", "more"} - set(whole)]
    for given in refused:
        with pytest.raises(InvalidInput) as caught:
            looked_at(given, form)
        assert caught.value.message == f"witness: expected {expected}"


def test_a_circuits_program_stands_in_for_one_that_is_not_given() -> None:
    def look(given: dict[str, Any], program: str | None) -> WitnessSource:
        return looked_at(given, InputsForm.ENGINE, circuit="adder", program=program)

    assert look({"inputs": {}}, "keys/c.wasm") == WitnessInputs({}, "keys/c.wasm")
    assert look({"inputs": {}, "wasm": "my.wasm"}, "keys/c.wasm") == WitnessInputs({}, "my.wasm")
    for given, program in (({"inputs": {}}, None), ({"inputs": {}, "wasm": None}, "keys/c.wasm")):
        with pytest.raises(InvalidInput) as caught:
            look(given, program)
        assert caught.value.message == "witness: circuit 'adder' has no program beside its key to run"
    with pytest.raises(InvalidInput, match="witness program: expected a file path, found int"):
        look({"inputs": {}, "wasm": 7}, None)
    with pytest.raises(InvalidInput, match=r"witness: expected \{'inputs': \{...\}, 'wasm': path\}"):
        values_of(WitnessInputs({}, None))


@pytest.mark.parametrize(
    "given",
    [
        [1, f"{SECRET}"],
        [1, -SECRET],
        [1, SECRET << 256],
        [1, float(SECRET)],
        SECRET,
        np.full((2, 3), SECRET, dtype=np.uint64),
        np.full((2, 4), SECRET, dtype=np.float64),
    ],
    ids=["text", "negative", "large", "float", "number", "limbs", "floats"],
)
def test_values_that_are_none_are_refused_wherever_they_go(given: Any) -> None:
    source = looked_at(given)
    shape = isinstance(given, np.ndarray)
    whose = r"uint64\[n, 4\], found" if shape else "integers from 0 to below the prime of bn254.fr$"
    for use in (lambda: values_of(source), lambda: source.owned(bn254, False)):
        with pytest.raises(InvalidInput, match=f"witness: expected {whose}") as caught:
            use()
        assert str(SECRET) not in str(caught.value)
    with pytest.raises(
        InvalidInput, match=r"witness: expected (uint64|integers from 0 to below the field's)"
    ):
        source.packed()


def test_values_that_are_no_witness() -> None:
    for given, message in (
        ([], "witness: values: no values, expected at least wire 0, which is 1"),
        ([2, SECRET], "witness: values: value 0 has to be 1, the constant wire"),
        ([1, BN254.r], "witness: values: value 1 is not below the prime of bn254.fr"),
    ):
        with pytest.raises(MalformedFile) as caught:
            values_of(looked_at(given))
        assert (caught.value.message, caught.value.role) == (message, "witness")


def test_inputs_that_are_no_json_cannot_travel() -> None:
    for broken in ({"a": {1}}, {"a": object()}, {"a": b"1"}, {b"a": 1}):
        with pytest.raises(InvalidInput, match="witness: inputs: expected integers, as numbers or text"):
            WitnessInputs(broken, "c.wasm").packed()
    with pytest.raises(InvalidInput, match="witness: inputs"):
        WitnessInputs({}, "c.wasm", object()).packed()


def test_no_repr_tells_a_value() -> None:
    secret = str(SECRET)
    for given in (secret.encode(), [1, SECRET], {"inputs": {"a": SECRET}, "wasm": "c.wasm"}):
        source = looked_at(given)
        assert secret not in f"{source!r}{source}{[source]}"
    inputs = WitnessInputs({"a": SECRET}, "c.wasm", 5)
    assert secret not in repr(replace(inputs, fuel=6))
    assert secret not in repr(inputs.packed()[0])


def test_values_are_copied_to_where_the_loader_says() -> None:
    asked: list[int] = []

    def allocate(size: int) -> Any:
        asked.append(size)
        return ordinary(size)

    words = ints_to_words([1, 2, 3], 4)
    for given in (words, [1, 2, 3], witness_bytes(BN254.scalar, words)):
        found = looked_at(given).load(BN254, Job(threads=1), None, allocate)
        assert words_to_ints(found.values) == [1, 2, 3]
        assert not np.shares_memory(found.values, words)
        assert not found.values.flags.writeable
    assert asked == [96] * 3


def test_a_look_needs_no_numpy() -> None:
    program = (
        "import sys; from gpuprover.witness_source import InputsForm, looked_at; "
        "looked_at({'inputs': {'a': 1}}, InputsForm.SERVICE), looked_at(b'wtns'), looked_at('w.wtns'); "
        "print('numpy' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
