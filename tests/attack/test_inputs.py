"""Attacks by inputs, files and witness programs that take too long for every run of the tests."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpuprover.errors import MalformedFile, ProverError
from gpuprover.formats.json_files import discard, parse_json, parsed_size_bound
from gpuprover.witness import calculate_witness
from tests.test_witness import write_program

pytestmark = pytest.mark.slow

pytest.importorskip("wasmtime")

MIB = 1 << 20
BODY = {"max_values": 1 << 22, "max_containers": 1 << 20}
"""What a service lets one body hold."""


class Stalls:
    """The longest time for which this process's interpreter did not come to a thread that waits for it.

    Measured against the CPU time of the whole process: on a busy machine nobody runs for longer.
    """

    def __init__(self) -> None:
        self.longest = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        last = time.process_time()
        while not self._stop.wait(0.001):
            now = time.process_time()
            self.longest = max(self.longest, now - last)
            last = now

    def __enter__(self) -> Stalls:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


@pytest.mark.parametrize(
    "unit",
    [b"[],", b"{},", b"1.5,", b'"a",', b"1000,", b'"ab":0,', b'"\\u0100\\n",', b'"' + b"7" * 77 + b'",'],
    ids=["lists", "objects", "fractions", "short", "numbers", "names", "escapes", "decimals"],
)
def test_a_body_of_32_mib_leaves_the_interpreter_to_others(unit: bytes) -> None:
    """Its bound is found, it is parsed or refused, and forgotten."""
    head, tail = (b"{", b'"z":1}') if b":" in unit else (b"[", b"1]")
    if b":" in unit:
        body = head + b",".join(b'"%x":0' % i for i in range(32 * MIB // 11)) + b"}"
    else:
        body = head + unit * (32 * MIB // len(unit)) + tail
    with Stalls() as stalls:
        assert parsed_size_bound(body) > len(body)
        try:
            document = parse_json(body, "the body", **BODY)
        except MalformedFile as error:
            refusal = error.problem
        else:
            refusal = ""
            discard(document)
    assert not refusal or "more than" in refusal
    assert stalls.longest < 0.25, f"{stalls.longest:.3f} s"


@pytest.mark.parametrize("count", [100_000, 300_000])
def test_unknown_names_take_a_moment(tmp_path: Path, count: int) -> None:
    wasm = write_program(tmp_path / "circuit.wasm")
    before = time.process_time()
    text = ("{" + ",".join(f'"k{i}":1' for i in range(count)) + "}").encode()
    with pytest.raises(ProverError, match="no such input"):
        calculate_witness(wasm, parse_json(text, "inputs"))
    assert time.process_time() - before < 5


def flipped(rng: random.Random, code: bytes) -> bytes:
    changed = bytearray(code)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(8, len(changed))
        choice = rng.random()
        if choice < 0.5:
            changed[at] ^= 1 << rng.randrange(8)
        elif choice < 0.8:
            changed[at] = rng.choice((0x00, 0x01, 0x0B, 0x10, 0x1A, 0x20, 0x21, 0x40, 0x41, 0x7F, 0xFF))
        elif choice < 0.9:
            del changed[at : at + rng.randrange(1, 9)]
        else:
            other = rng.randrange(8, len(changed))
            changed[at:at] = changed[other : other + rng.randrange(1, 30)]
    return bytes(changed)


def run(path: Path, inputs: Any) -> bool:
    message = ""
    try:
        calculate_witness(path, inputs, fuel=10**6, memory_limit=64)
    except ProverError as error:
        message = error.message
    assert message.isprintable()
    return not message


@pytest.mark.parametrize("source", ["assertion", "logs", "recursion"])
def test_mutated_programs_end_in_typed_errors(tmp_path: Path, rng: random.Random, source: str) -> None:
    """400 damaged programs each: an error with a kind, or a witness; never a crash, a hang or much memory."""
    knobs: dict[str, Callable[[], dict[str, str]]] = {
        "assertion": lambda: {"compute": "(call $error_message) (call $fail (i32.const 4))"},
        "logs": lambda: {"compute": "(call $log) (call $show) (call $error_message)"},
        "recursion": lambda: {
            "compute": "(call $down (i32.const 900))",
            "functions": "(func $down (param i32) (if (local.get 0) (then (call $error_message)"
            "(call $down (i32.sub (local.get 0) (i32.const 1))))))",
        },
    }
    path = tmp_path / "circuit.wasm"
    code = write_program(path, **knobs[source]()).read_bytes()
    refused = 0
    for _ in range(400):
        path.write_bytes(flipped(rng, code))
        refused += not run(path, {"a": [1, 2]})
    assert refused > 100


def test_mutated_programs_of_circom_end_in_typed_errors(
    tmp_path: Path, rng: random.Random, data_dir: Path
) -> None:
    """Where a program that circom wrote lies beside the other tools' files."""
    programs = sorted((data_dir.parent / "cases").glob("*/*.wasm"))
    if not programs:
        pytest.skip("no program of circom")
    path = tmp_path / "circuit.wasm"
    refused = 0
    for _ in range(120):
        code = rng.choice(programs).read_bytes()
        path.write_bytes(flipped(rng, code))
        refused += not run(path, {"a": 3, "b": 4})
    assert refused > 30
