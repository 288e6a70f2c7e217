"""The witness calculator's protocol and sandbox, on a program written by hand.

The program (WAT below) speaks circom 2's protocol for the circuit "out = a, with public
a[2]": its witness is 1, a[0], a[1]. Knobs make it misbehave. Programs that circom itself
wrote are tested in tests/interop.
"""

from __future__ import annotations

import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpuprover.curves import BLS12_381, BN254, CurveParams
from gpuprover.errors import (
    Cancelled,
    InvalidInput,
    MalformedFile,
    OutOfMemory,
    ProverError,
    Timeout,
    UnsatisfiedWitness,
    UnsupportedFile,
)
from gpuprover.job import Job
from gpuprover.limbs import words_to_ints
from gpuprover.witness import calculate_witness

wasmtime = pytest.importorskip("wasmtime")

SHARED, PRIME, VALUES, MESSAGE = 0, 64, 128, 512

TEMPLATE = """
(module
  (import "runtime" "exceptionHandler" (func $fail (param i32)))
  (import "runtime" "printErrorMessage" (func $error_message))
  (import "runtime" "writeBufferMessage" (func $log))
  (import "runtime" "showSharedRWMemory" (func $show))
  {extra_import}
  (memory {pages})
  {functions}
  (data (i32.const {prime_at}) "{prime}")
  (data (i32.const {values_at}) "{first_value}")
  (data (i32.const {message_at}) "{message}")
  (global $next (mut i32) (i32.const {message_at}))
  (global $left (mut i32) (i32.const 2))
  (func (export "getVersion") (result i32) (i32.const {version}))
  (func (export "getFieldNumLen32") (result i32) (i32.const {words}))
  (func (export "getWitnessSize") (result i32) (i32.const {witness_size}))
  (func (export "getInputSize") (result i32) (i32.const 2))
  (func (export "getInputSignalSize") (param $high i32) (param $low i32) (result i32)
    (select (i32.const 2) (i32.const -1) (call $known (local.get $high) (local.get $low))))
  (func $known (param $high i32) (param $low i32) (result i32)
    (i32.and (i32.eq (local.get $high) (i32.const {high})) (i32.eq (local.get $low) (i32.const {low}))))
  (func (export "init") (param i32))
  (func (export "getRawPrime") (memory.copy (i32.const 0) (i32.const {prime_at}) (i32.const {bytes})))
  (func (export "readSharedRWMemory") (param i32) (result i32)
    (i32.load (i32.shl (local.get 0) (i32.const 2))))
  (func (export "writeSharedRWMemory") (param i32 i32)
    (i32.store (i32.shl (local.get 0) (i32.const 2)) (local.get 1)))
  (func (export "{set_name}") (param $high i32) (param $low i32) (param $i i32)
    (if (i32.eqz (call $known (local.get $high) (local.get $low))) (then (call $fail (i32.const 1))))
    (memory.copy
      (i32.add (i32.const {values_at}) (i32.mul (i32.const {bytes}) (i32.add (i32.const 1) (local.get $i))))
      (i32.const 0) (i32.const {bytes}))
    (global.set $left (i32.sub (global.get $left) (i32.const 1)))
    (if (i32.eqz (global.get $left)) (then (call $log) (call $show) {compute})))
  (func (export "getWitness") (param i32)
    (memory.copy (i32.const 0)
      (i32.add (i32.const {values_at}) (i32.mul (i32.const {bytes}) (local.get 0)))
      (i32.const {bytes})))
  (func (export "getMessageChar") (result i32)
    (global.set $next (i32.add (global.get $next) (i32.const 1)))
    (i32.load8_u (i32.sub (global.get $next) (i32.const 1))))
)
"""

FOREVER = "(loop $again (br $again))"
FAILED_ASSERT = "(call $error_message) (call $fail (i32.const 4))"


def escaped(data: bytes) -> str:
    return "".join(f"\\{b:02x}" for b in data)


def fnv(name: str) -> int:
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = ((h ^ byte) * 0x100000001B3) % 2**64
    return h


def write_program(path: Path, curve: CurveParams = BN254, prime: int | None = None, **knobs: Any) -> Path:
    """Compiles :data:`TEMPLATE`, the knobs in place of its defaults."""
    size = curve.scalar.bytes
    values = {
        "prime": escaped((prime or curve.r).to_bytes(size, "little")),
        "first_value": escaped((1).to_bytes(size, "little")),
        "message": escaped(b"log line\0Error in template Add_0 line: 7\0"),
        "high": fnv("a") >> 32,
        "low": fnv("a") & 0xFFFFFFFF,
        "bytes": size,
        "words": size // 4,
        "prime_at": PRIME,
        "values_at": VALUES,
        "message_at": MESSAGE,
        "version": 2,
        "pages": 1,
        "witness_size": 3,
        "set_name": "setInputSignal",
        "extra_import": "",
        "compute": "",
        "functions": "",
    }
    path.write_bytes(wasmtime.wat2wasm(TEMPLATE.format(**{**values, **knobs})))
    return path


@pytest.fixture
def program(tmp_path: Path) -> Any:
    return partial(write_program, tmp_path / "circuit.wasm")


@pytest.mark.parametrize("curve", [BN254, BLS12_381], ids=lambda c: c.name)
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([3, 5], [3, 5]),
        (["3", "0x1F"], [3, 31]),
        ([True, "0b11"], [1, 3]),
        ([-1, "-2"], [-1, -2]),
        ([[2**300], [7]], [2**300, 7]),
        (np.array([4, 9], dtype=np.uint64), [4, 9]),
    ],
)
def test_values_are_reduced_and_returned(
    program: Any, curve: CurveParams, given: Any, expected: list[int]
) -> None:
    found, words = calculate_witness(program(curve), {"a": given})
    assert found is curve
    assert words.dtype == np.uint64
    assert words_to_ints(words) == [1, *(v % curve.r for v in expected)]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "2 values missing"),
        ({"a": [1]}, "a: expected 2 values, found 1"),
        ({"a": [1, 2, 3]}, "a: expected 2 values, found 3"),
        ({"a": [1, 2], "b": 3}, "b: the circuit has no such input"),
        ({"a": {"x": [1, 2]}}, "a.x: the circuit has no such input"),
        ({"a": [{"x": 1}, {"x": 2}]}, "a[1].x: the circuit has no such input"),
        ({"a": [1, "secret"]}, "a[1]: expected an integer"),
        ({"a": [1, 2.5]}, "a[1]: expected an integer"),
        ({"a": [1, None]}, "a[1]: expected an integer"),
        ({"a": [1, "9" * 5000]}, "a[1]: expected an integer"),
        ({"a": [1, "1_0"]}, "a[1]: expected an integer"),
        ({3: [1, 2]}, "name has to be a text"),
        ([1, 2], "expected an object"),
    ],
)
def test_wrong_inputs_are_named_without_their_values(program: Any, inputs: Any, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        calculate_witness(program(), inputs)
    assert message in caught.value.message
    assert "secret" not in caught.value.message
    assert "999" not in caught.value.message


def test_missing_signals_are_named_from_the_symbol_file(program: Any) -> None:
    wasm = program()
    (wasm.parent / "circuit.sym").write_text(
        "1,1,0,main.a[0]\n2,2,0,main.a[1]\n3,-1,0,main.t\n4,-1,1,main.c.x\n"
    )
    with pytest.raises(InvalidInput, match=r"missing a$"):
        calculate_witness(wasm, {})


def test_deep_nesting_is_refused(program: Any) -> None:
    nested: Any = 1
    for _ in range(2000):
        nested = {"x": nested}
    with pytest.raises(InvalidInput, match="nested"):
        calculate_witness(program(), {"a": nested})


def test_a_failed_assertion_tells_its_place(program: Any) -> None:
    with pytest.raises(UnsatisfiedWitness, match="Error in template Add_0 line: 7"):
        calculate_witness(program(compute=FAILED_ASSERT), {"a": [1, 2]})


@pytest.mark.parametrize(
    ("knobs", "error", "message"),
    [
        ({"version": 1}, UnsupportedFile, "version"),
        ({"prime": 2**255 - 19}, UnsupportedFile, "prime"),
        ({"set_name": "other"}, MalformedFile, "no setInputSignal"),
        ({"words": 4}, UnsupportedFile, "prime"),
        ({"words": 1000}, MalformedFile, "prime"),
        ({"first_value": ""}, MalformedFile, "value 0 has to be 1"),
        ({"compute": "(call $fail (i32.const 99))"}, MalformedFile, "unknown error"),
        ({"compute": "(call $fail (i32.const 5))"}, OutOfMemory, "memory"),
        ({"compute": "(unreachable)"}, MalformedFile, "unreachable"),
        ({"compute": "(drop (i32.load (i32.const -1)))"}, MalformedFile, "memory out of bounds"),
        ({"witness_size": -1}, OutOfMemory, "4294967295 values"),
        ({"witness_size": 30000}, MalformedFile, "crashed"),
        ({"extra_import": '(import "wasi_snapshot_preview1" "fd_write" (func))'}, MalformedFile, "fd_write"),
        ({"extra_import": '(import "env" "memory2" (global i32))'}, MalformedFile, "env.memory2"),
        ({"compute": FOREVER}, Timeout, "instructions"),
        (
            {"compute": "(call $recurse)", "functions": "(func $recurse (call $recurse))"},
            MalformedFile,
            "stack",
        ),
    ],
)
def test_a_misbehaving_program_is_contained(
    program: Any, knobs: Any, error: type[ProverError], message: str
) -> None:
    with pytest.raises(error) as caught:
        calculate_witness(program(**knobs), {"a": [1, 2]}, fuel=10**7, memory_limit=64)
    assert message in caught.value.message


def test_functions_of_other_types_are_refused(program: Any) -> None:
    wasm = program()
    broken = wasmtime.wat2wasm(
        "(module "
        + "".join(
            f'(func (export "{name}") (param i64) (result i64) (local.get 0))'
            for name in (
                "getVersion init getRawPrime getFieldNumLen32 getWitnessSize getInputSize getWitness "
                "setInputSignal readSharedRWMemory writeSharedRWMemory"
            ).split()
        )
        + ")"
    )
    wasm.write_bytes(broken)
    with pytest.raises(MalformedFile, match="exports"):
        calculate_witness(wasm, {"a": [1, 2]})


def test_memory_limit(program: Any) -> None:
    with pytest.raises(OutOfMemory, match="limit of 2 MiB"):
        calculate_witness(program(pages=100), {"a": [1, 2]}, memory_limit=2)


@pytest.mark.parametrize("content", [b"", b"\0asm", b"\0asm\1\0\0\0", b"not wasm at all"])
def test_no_wasm(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.wasm"
    path.write_bytes(content)
    with pytest.raises(MalformedFile, match=r"x\.wasm"):
        calculate_witness(path, {})


def test_truncated_and_flipped_programs_give_typed_errors(program: Any) -> None:
    wasm = program()
    data = wasm.read_bytes()
    seed = 20261120
    print(f"seed {seed}")
    random = np.random.default_rng(seed)
    failures = 0
    for _ in range(60):
        damaged = bytearray(data)
        damaged[random.integers(len(data))] ^= 1 << int(random.integers(8))
        if random.integers(2):
            del damaged[int(random.integers(len(data))) :]
        wasm.write_bytes(damaged)
        try:
            calculate_witness(wasm, {"a": [1, 2]}, fuel=10**6, memory_limit=64)
        except ProverError:
            failures += 1
    assert failures > 20


@pytest.mark.parametrize("reason", ["cancel", "deadline"])
def test_a_running_program_stops(program: Any, reason: str) -> None:
    wasm = program(compute=FOREVER)
    event = threading.Event()
    threading.Timer(0.5, event.set).start()
    job = Job(cancel=event) if reason == "cancel" else Job(timeout=0.5)
    before = time.perf_counter()
    with pytest.raises(Cancelled if reason == "cancel" else Timeout):
        calculate_witness(wasm, {"a": [1, 2]}, job=job, fuel=10**14)
    assert time.perf_counter() - before < 3
    deadline = time.perf_counter() + 5
    while any(t.name == "gpuprover-witness" for t in threading.enumerate()):
        assert time.perf_counter() < deadline, "the program still runs"
        time.sleep(0.01)


def test_arguments() -> None:
    with pytest.raises(InvalidInput, match="fuel"):
        calculate_witness("x.wasm", {}, fuel=0)
    with pytest.raises(InvalidInput, match=r"missing\.wasm"):
        calculate_witness("/nowhere/missing.wasm", {})
