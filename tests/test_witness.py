"""The witness calculator's protocol and sandbox, on a program written by hand.

The program (WAT below) speaks circom 2's protocol for the circuit "out = a, with public
a[2]": its witness is 1, a[0], a[1]. Knobs make it misbehave. Programs that circom itself
wrote are tested in tests/interop.
"""

from __future__ import annotations

import contextlib
import gc
import re
import threading
import time
import tracemalloc
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpuprover import circuit_inputs, witness_program
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
  (import "runtime" "showSharedRWMemory" (func $show))
  {error_import}
  {log_import}
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
  (func (export "{sizes_name}") (param $high i32) (param $low i32) (result i32)
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
  (func (export "{char_name}") (result i32)
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
        "sizes_name": "getInputSignalSize",
        "char_name": "getMessageChar",
        "error_import": '(import "runtime" "printErrorMessage" (func $error_message))',
        "log_import": '(import "runtime" "writeBufferMessage" (func $log))',
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


def test_values_are_written_to_where_the_caller_says(program: Any) -> None:
    asked: list[Any] = []

    def allocate(size: int) -> Any:
        asked.append(np.full(size, 0xA5, dtype=np.uint8))
        return asked[-1]

    _, words = calculate_witness(program(BN254), {"a": [3, 5]}, allocate=allocate)
    assert words_to_ints(words) == [1, 3, 5]
    (memory,) = asked
    assert np.shares_memory(words, memory)
    assert len(memory) == words.nbytes


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
        ({"a": [1, 2], "": 4}, "a signal's name is empty"),
        ({"a": {"": 4}}, "a signal's name is empty"),
        ({"\ud800": 4}, "half a character"),
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


def test_unknown_names_are_refused_after_a_few(program: Any) -> None:
    """None but the first are asked of the program, which answers each in some 70 µs."""
    inputs = {f"k{i}": 1 for i in range(300_000)}
    before = time.thread_time()
    with pytest.raises(InvalidInput, match="k0: the circuit has no such input; k1") as caught:
        calculate_witness(program(), inputs, fuel=100_000)
    assert "k8" not in caught.value.message
    assert time.thread_time() - before < 5


def test_a_missing_signal_is_found_among_many_symbols(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program is asked for thousands of names at a time, and for none that is given."""
    wasm = program()
    lines = [f"{i},{i},0,main.out{i}\n" for i in range(60_000)]
    (wasm.parent / "circuit.sym").write_text("".join(lines) + "1,1,0,main.a[0]\n2,2,0,main.a[1]\n")
    asked = []
    sizes = witness_program.Program._sizes
    monkeypatch.setattr(
        witness_program.Program, "_sizes", lambda self, names: asked.append(len(names)) or sizes(self, names)
    )
    with pytest.raises(InvalidInput, match=r"missing a$"):
        calculate_witness(wasm, {})
    assert len(asked) < 20
    assert sum(asked) == 60_001


def test_lengths_come_from_the_symbol_file_where_the_program_tells_none(program: Any) -> None:
    """As with programs of circom 2.0.3, which would take a third value as the next input's first."""
    wasm = program(sizes_name="other")
    calculate_witness(wasm, {"a": [1, 2]})
    (wasm.parent / "circuit.sym").write_text("1,1,0,main.a[0]\n2,2,0,main.a[1]\n")
    calculate_witness(wasm, {"a": [1, 2]})
    with pytest.raises(InvalidInput, match="a: expected 2 values, found 3"):
        calculate_witness(wasm, {"a": [1, 2, 3]})
    with pytest.raises(InvalidInput, match="b: the circuit has no such input"):
        calculate_witness(wasm, {"a": [1, 2], "b": 1})


def test_deep_nesting_is_refused(program: Any) -> None:
    nested: Any = 1
    for _ in range(2000):
        nested = {"x": nested}
    with pytest.raises(InvalidInput, match="nested"):
        calculate_witness(program(), {"a": nested})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"n" * 100_000: {f"k{i}": 1 for i in range(50_000)}}, "name of more than 1024 characters"),
        ({"n" * 100_000: {f"k{i}": [] for i in range(50_000)}}, "name of more than 1024 characters"),
        ({f"{i}" + "n" * 1_000_000: 1 for i in range(8)}, "name of more than 1024 characters"),
        ({"a": [{"b": []}] * 500_000}, "too many signals without a value"),
        ({"a": {"b": [1] * 500_000 + [{"c": 1}]}}, "a.b[0]: the circuit has no such input"),
    ],
)
def test_inputs_grow_no_larger_than_they_are(program: Any, inputs: Any, message: str) -> None:
    """Each member of a bus repeats the names before its own: 5 MB of them would be 5 GB."""
    wasm = program()
    before = time.thread_time()
    tracemalloc.start()
    try:
        with pytest.raises(InvalidInput, match=re.escape(message)):
            calculate_witness(wasm, inputs)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 128 << 20
    assert time.thread_time() - before < 10


def test_arrays_around_buses_are_looked_at_once(program: Any) -> None:
    """And not once for each level, which took a minute for 500,000 values in 62 arrays."""
    looked = 0

    class Array(list[Any]):
        def __iter__(self) -> Any:
            nonlocal looked
            looked += 1
            return super().__iter__()

    value: Any = Array([1, 2, {"b": 1}])
    for _ in range(61):
        value = Array([value])
    with pytest.raises(InvalidInput, match="no such input"):
        calculate_witness(program(), {"a": value})
    assert looked <= 3 * 62


@pytest.mark.parametrize("mapping", [False, True])
def test_an_array_that_holds_itself_is_refused(program: Any, mapping: bool) -> None:
    value: list[Any] = [{"b": 1}] if mapping else [1]
    value.append(value)
    with pytest.raises(InvalidInput, match="nested deeper"):
        calculate_witness(program(), {"a": value})


@pytest.mark.parametrize("inputs", [{"\ud800": 1}, {"a": {"\udfff": 1}}, {"a": [{"x\udc80": 1}]}])
def test_half_of_a_surrogate_pair_names_no_signal(program: Any, inputs: Any) -> None:
    """JSON has a spelling for it, UTF-8 and with it a signal's hash none."""
    with pytest.raises(InvalidInput, match="surrogate"):
        calculate_witness(program(), inputs)


@pytest.mark.parametrize("name", ["main." + "[0]" * 330 + "x", "main." + "a." * 500, "main." + "[" * 1000])
def test_symbol_files_of_long_lines_are_read_in_no_time(program: Any, name: str) -> None:
    """A kilobyte of indices took 7 ms a line."""
    wasm = program()
    (wasm.parent / "circuit.sym").write_text(f"1,1,0,{name}\n" * 65_000)
    with pytest.raises(InvalidInput, match="2 values missing"):
        calculate_witness(wasm, {})  # in a thread of its own
    before = time.thread_time()
    circuit_inputs.symbols(wasm)
    assert time.thread_time() - before < 10


def test_a_failed_assertion_tells_its_place(program: Any) -> None:
    with pytest.raises(UnsatisfiedWitness, match="Error in template Add_0 line: 7"):
        calculate_witness(program(compute=FAILED_ASSERT), {"a": [1, 2]})


def test_programs_that_print_nothing_are_asked_for_the_place(program: Any) -> None:
    """Before circom 2.0.7 a message was to be asked for after the exception."""
    wasm = program(
        error_import="(func $error_message)",
        message=escaped(b"Error in template Add_0 line: 7\0"),
        compute="(call $fail (i32.const 4))",
        log_import="(func $log)",
    )
    with pytest.raises(UnsatisfiedWitness, match="Error in template Add_0 line: 7"):
        calculate_witness(wasm, {"a": [1, 2]})


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (b"123456789", ""),
        (b"Error in template Add_0 line: 12345678", "Error in template Add_0"),
        (b"Error in template Add_0 line: 12 because of 99", "Error in template Add_0 line: 12"),
        (b"value 99 Error in function f line: 3", "Error in function f line: 3"),
        (b"Error in template a-b line: 3", "Error in template a"),
    ],
)
def test_of_a_program_s_words_only_circom_s_pattern_passes(program: Any, message: bytes, told: str) -> None:
    """It is a stranger's, and knows the inputs."""
    text = escaped(b"log line\0" + message + b"\0")
    with pytest.raises(UnsatisfiedWitness) as caught:
        calculate_witness(program(message=text, compute=FAILED_ASSERT), {"a": [1, 2]})
    assert caught.value.message.endswith("do not satisfy the circuit: " + (told or "an assertion failed"))


def test_a_template_s_name_has_to_stand_in_the_program(program: Any) -> None:
    """Made up at run time, it could be an input's digits."""
    change = f"(i32.store8 (i32.const {MESSAGE + 27}) (i32.const 0x42)) {FAILED_ASSERT}"
    with pytest.raises(UnsatisfiedWitness, match=r"circuit: an assertion failed$"):
        calculate_witness(program(compute=change), {"a": [1, 2]})


@pytest.mark.parametrize(
    "functions",
    [
        '(func (export "getMessageChar") (result i32) (call $error_message) (i32.const 65))',
        '(func (export "getMessageChar") (result i32) (call $log) (i32.const 65))',
        '(func (export "getMessageChar") (result i32) (call $fail (i32.const 4)) (i32.const 65))',
        '(func (export "getMessageChar") (result i32) (unreachable))',
        '(func (export "getMessageChar") (result i32) (loop $again (br $again)) (i32.const 65))',
        '(func (export "getMessageChar") (result i64) (i64.const 65))',
        '(global (export "getMessageChar") i32 (i32.const 1))',
        "(func $down (param i32) (call $error_message) (call $down (local.get 0)))"
        '(func (export "getMessageChar") (result i32) (call $down (i32.const 0)) (i32.const 65))',
    ],
)
def test_a_program_that_calls_back_ends_no_more_than_its_run(program: Any, functions: str) -> None:
    wasm = program(char_name="other", functions=functions, compute=FAILED_ASSERT)
    with pytest.raises((UnsatisfiedWitness, MalformedFile, Timeout)):
        calculate_witness(wasm, {"a": [1, 2]}, fuel=10**6, memory_limit=64)


def test_failures_of_programs_side_by_side_stay_apart(program: Any, tmp_path: Path) -> None:
    """None travels through what wasmtime shares among threads."""
    fails = write_program(tmp_path / "fails.wasm", compute=FAILED_ASSERT)
    traps = write_program(tmp_path / "traps.wasm", compute="(unreachable)")
    kinds: dict[str, set[type]] = {"fails": set(), "traps": set()}

    def run(name: str, wasm: Path) -> None:
        for _ in range(15):
            try:
                calculate_witness(wasm, {"a": [1, 2]}, memory_limit=64)
            except ProverError as error:
                kinds[name].add(type(error))

    threads = [threading.Thread(target=run, args=one) for one in (("fails", fails), ("traps", traps)) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kinds == {"fails": {UnsatisfiedWitness}, "traps": {MalformedFile}}


@pytest.mark.parametrize(
    "functions",
    [
        "(table $t 1048576 funcref)",
        "(table $t 1 funcref) (table $u 1 funcref)",
        "(table $t 1 externref) (table $u 1 externref)",
        "(memory $b 1)",
        "(func $wide (drop (v128.const i32x4 1 1 1 1)))",
        "(func $tail (return_call $tail))",
        "(tag $e) (func $thrown (throw $e))",
        "(type $s (struct (field i32)))",
        "(func $two (result i32 i32) (i32.const 1) (i32.const 2))",
        "(type $f (func)) (func $typed (param (ref null $f)))",
    ],
)
def test_what_circom_does_not_use_is_off(program: Any, functions: str) -> None:
    with pytest.raises(MalformedFile):
        calculate_witness(program(functions=functions), {"a": [1, 2]})


def test_memory_and_witness_share_the_limit(program: Any) -> None:
    """40 MiB of memory, and a witness of 30 MiB that would fit by itself."""
    size = 30 * (1 << 20) // 32
    for export in ('(export "memory" (memory 0))', ""):
        wasm = program(pages=640, witness_size=size, functions=export)
        with pytest.raises(OutOfMemory, match="limit of 64 MiB"):
            calculate_witness(wasm, {"a": [1, 2]}, memory_limit=64)


def test_a_small_stack_for_threads_is_not_the_program_s(program: Any) -> None:
    wasm = program(compute="(call $recurse)", functions="(func $recurse (call $recurse))")
    before = threading.stack_size(256 << 10)
    try:
        with pytest.raises(MalformedFile, match="stack"):
            calculate_witness(wasm, {"a": [1, 2]})
        assert threading.stack_size() == 256 << 10
    finally:
        threading.stack_size(before)


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


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"functions": "".join(f'(export "e{i}" (memory 0))' for i in range(20_000))}, "exports: 200"),
        (
            {"extra_import": '(import "runtime" "showSharedRWMemory" (func))' * 20_000},
            "imports: 20004, expected at most 256",
        ),
    ],
    ids=["exports", "imports"],
)
def test_a_program_of_many_names_is_refused_at_once(program: Any, knobs: Any, message: str) -> None:
    """wasmtime's binding took a minute and more for 100,000 of them."""
    wasm = program(**knobs)
    before = time.process_time()
    with pytest.raises(MalformedFile, match=message):
        calculate_witness(wasm, {"a": [1, 2]})
    assert time.process_time() - before < 5


def test_many_sections_hide_nothing(program: Any) -> None:
    wasm = program()
    code = wasm.read_bytes()
    wasm.write_bytes(code[:8] + b"\0\2\1x" * 5000 + code[8:])
    with pytest.raises(MalformedFile, match="expected at most"):
        calculate_witness(wasm, {"a": [1, 2]})


def test_memory_that_python_lacks_is_a_typed_error(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise MemoryError

    wasm = program()
    monkeypatch.setattr(witness_program.Program, "_compiled", refuse)
    with pytest.raises(OutOfMemory, match="refused memory"):
        calculate_witness(wasm, {"a": [1, 2]})


@pytest.mark.parametrize("compute", ["", FAILED_ASSERT, "(unreachable)", "(call $log)"])
def test_nothing_is_left_of_a_run(program: Any, compute: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that holds functions that hold the store is found by no garbage collector: 0.2 MiB a proof."""
    runs = []
    made = witness_program.Program.__init__

    def watched(self: Any, *arguments: Any) -> None:
        runs.append(weakref.ref(self))
        made(self, *arguments)

    monkeypatch.setattr(witness_program.Program, "__init__", watched)
    wasm = program(compute=compute)
    for _ in range(3):
        with contextlib.suppress(ProverError):
            calculate_witness(wasm, {"a": [1, 2]})
    gc.collect()
    assert [run() for run in runs] == [None] * 3


def test_memory_limit(program: Any) -> None:
    with pytest.raises(OutOfMemory, match="limit of 2 MiB"):
        calculate_witness(program(pages=100), {"a": [1, 2]}, memory_limit=2)


@pytest.mark.parametrize("content", [b"", b"\0asm", b"\0asm\1\0\0\0", b"not wasm at all", b"(module)"])
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
    # The program's own thread: a busy machine gives it no more than it takes.
    before = time.process_time()
    with pytest.raises(Cancelled if reason == "cancel" else Timeout):
        calculate_witness(wasm, {"a": [1, 2]}, job=job, fuel=10**14)
    assert time.process_time() - before < 3
    deadline = time.perf_counter() + 60
    while any(t.name == "gpuprover-witness" for t in threading.enumerate()):
        assert time.perf_counter() < deadline, "the program still runs"
        time.sleep(0.01)


def test_whoever_is_out_of_time_while_it_compiles_leaves_nothing_running(
    program: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program does not run afterwards, and is not compiled again beside."""
    wasm = program(compute=FOREVER)
    monkeypatch.setattr(witness_program.PROGRAMS, "read_signed", lambda file: None)  # nor was it before
    compiling, go_on, compiled = threading.Event(), threading.Event(), []
    module = wasmtime.Module

    def slow(engine: Any, code: Any) -> Any:
        if isinstance(code, bytes):
            compiled.append(code)
            compiling.set()
            go_on.wait(30)
        return module(engine, code)

    slow.deserialize = module.deserialize  # type: ignore[attr-defined]
    monkeypatch.setattr(wasmtime, "Module", slow)
    for _ in range(3):
        with pytest.raises(Timeout):
            calculate_witness(wasm, {"a": [1, 2]}, job=Job(timeout=0.3))
    left = [t for t in threading.enumerate() if t.name == "gpuprover-witness"]
    assert len(left) == 3
    assert len(compiled) == 1
    go_on.set()
    for thread in left:
        thread.join(10)
        assert not thread.is_alive()


def test_arguments() -> None:
    with pytest.raises(InvalidInput, match="fuel"):
        calculate_witness("x.wasm", {}, fuel=0)
    with pytest.raises(InvalidInput, match=r"missing\.wasm"):
        calculate_witness("/nowhere/missing.wasm", {})
