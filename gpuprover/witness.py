"""Witness calculation: runs the WASM program that circom 2 makes of a circuit.

The program exports ``init``, ``setInputSignal`` and ``getWitness`` over one shared field
element, and imports four functions for errors and logs. A signal is named by the 64-bit
FNV-1a hash of its name. It computes as soon as its last input is set. Source: circom's
documentation, "Computing the witness", and the programs that circom 2.0 to 2.2 write.

The program is a stranger's: it gets no system interface, a bounded memory and a bounded
number of instructions. Inputs and witness are secret: no message holds a value, and what
the circuit logs is dropped.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from gpuprover.curves import CURVES, CurveParams
from gpuprover.errors import (
    InvalidInput,
    MalformedFile,
    OutOfMemory,
    ProverError,
    Timeout,
    UnsatisfiedWitness,
    UnsupportedFile,
    about,
)
from gpuprover.formats.files import Pathish, open_regular
from gpuprover.formats.wtns import check_witness_values
from gpuprover.job import POLL_SECONDS, Job
from gpuprover.limbs import Words, ints_to_words

if TYPE_CHECKING:
    import wasmtime

T = TypeVar("T")

DEFAULT_FUEL = 10**11
"""WASM instructions, about: minutes of work; a million constraints take some 10^9."""

_STACK_BYTES = 1 << 20
_BUFFER_BYTES = 1 << 20
_MIB = 1 << 20
_MAX_BUS_DEPTH = 64
_INDICES = re.compile(r"(\[\d+\])+$")
_MAX_SYMBOLS, _MAX_SYMBOL = 1 << 16, 1 << 10

# exceptionHandler's codes
_NOT_FOUND, _TOO_MANY, _ALREADY_SET, _ASSERT_FAILED, _NO_MEMORY, _INPUT_INDEX, _ARRAY_INDEX = range(1, 8)

_REQUIRED = (
    "getVersion",
    "init",
    "getRawPrime",
    "getFieldNumLen32",
    "getWitnessSize",
    "getInputSize",
    "getWitness",
    "setInputSignal",
    "readSharedRWMemory",
    "writeSharedRWMemory",
)
_CALLBACKS = ("exceptionHandler", "printErrorMessage", "writeBufferMessage", "showSharedRWMemory")

# Moves many elements a call: a call from Python costs more than the element. The buffer
# holds `words` little-endian 32-bit words an element.
_BRIDGE = f"""
(module
  (import "c" "getWitness" (func $get (param i32)))
  (import "c" "readSharedRWMemory" (func $read (param i32) (result i32)))
  (import "c" "writeSharedRWMemory" (func $write (param i32 i32)))
  (import "c" "setInputSignal" (func $set (param i32 i32 i32)))
  (memory (export "buffer") {_BUFFER_BYTES >> 16} {_BUFFER_BYTES >> 16})
  (func (export "read") (param $words i32) (param $from i32) (param $to i32)
    (local $at i32) (local $j i32)
    (loop $element
      (call $get (local.get $from))
      (local.set $j (i32.const 0))
      (loop $word
        (i32.store (local.get $at) (call $read (local.get $j)))
        (local.set $at (i32.add (local.get $at) (i32.const 4)))
        (local.set $j (i32.add (local.get $j) (i32.const 1)))
        (br_if $word (i32.lt_u (local.get $j) (local.get $words))))
      (local.set $from (i32.add (local.get $from) (i32.const 1)))
      (br_if $element (i32.lt_u (local.get $from) (local.get $to)))))
  (func (export "write")
    (param $words i32) (param $from i32) (param $to i32) (param $high i32) (param $low i32)
    (local $at i32) (local $j i32)
    (loop $element
      (local.set $j (i32.const 0))
      (loop $word
        (call $write (local.get $j) (i32.load (local.get $at)))
        (local.set $at (i32.add (local.get $at) (i32.const 4)))
        (local.set $j (i32.add (local.get $j) (i32.const 1)))
        (br_if $word (i32.lt_u (local.get $j) (local.get $words))))
      (call $set (local.get $high) (local.get $low) (local.get $from))
      (local.set $from (i32.add (local.get $from) (i32.const 1)))
      (br_if $element (i32.lt_u (local.get $from) (local.get $to))))))
"""


@about("witness program")
def calculate_witness(
    wasm: Pathish,
    inputs: Mapping[str, Any],
    *,
    job: Job | None = None,
    fuel: int | None = None,
    memory_limit: int | None = None,
) -> tuple[CurveParams, Words]:
    """The witness of a circuit for given inputs, as ``snarkjs wtns calculate`` computes it.

    Args:
        wasm: path of the ``.wasm`` that circom 2 wrote.
        inputs: signal name -> value. A value is an integer, a decimal or 0x/0o/0b string of
            either sign, or arrays of those; arrays of any nesting are read row by row. Values are
            reduced into [0, r); negative ones count from r. Buses are mappings, or names
            with dots.
        job: for cancellation and deadline; phases are the caller's.
        fuel: WASM instructions that may run, about; default :data:`DEFAULT_FUEL`.
        memory_limit: MiB for the program's memory and its witness; default: half of the machine's.

    Returns:
        The curve whose scalar field the circuit is over, and canonical uint64[n_vars, limbs].

    Raises:
        InvalidInput: signals that are missing, unknown, of a wrong length or no integers, by name.
        UnsatisfiedWitness: an assertion or constraint of the circuit failed; with its place in the source.
        MalformedFile: no WASM, or not what circom makes.
        UnsupportedFile: made by circom 1, or for a prime that is none of our curves'.
        OutOfMemory: the memory limit is reached.
        Timeout: the fuel is spent, or the job's deadline reached.
        Cancelled: through the job.
    """
    if not isinstance(inputs, Mapping):
        raise InvalidInput(f"circuit inputs: expected an object of signal names, found {_kind(inputs)}")
    for name, limit in (("fuel", fuel), ("memory_limit", memory_limit)):
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
            raise InvalidInput(f"{name}: expected a whole number of at least 1, found {limit!r}")
    job = job or Job()
    signals = dict(_qualified("", inputs))
    file, _ = open_regular(wasm)
    with file:
        code = file.read()
    program = _Program(str(wasm), code, fuel or DEFAULT_FUEL, memory_limit)
    return _watched(job, program.interrupt, lambda: program.run(signals))


class _Program:
    """One sandboxed instance of a circuit's WASM program."""

    def __init__(self, path: str, code: bytes, fuel: int, memory_limit: int | None) -> None:
        import wasmtime

        self.path, self.code, self.fuel = path, code, fuel
        self.memory_bytes = memory_limit * _MIB if memory_limit else _half_of_memory()
        config = wasmtime.Config()
        config.consume_fuel = True
        config.epoch_interruption = True
        config.max_wasm_stack = _STACK_BYTES
        config.wasm_threads = False
        with suppress(wasmtime.WasmtimeError):  # no writable home: compile each time
            config.cache = True
        self.engine = wasmtime.Engine(config)
        self.messages: list[str] = []
        self.current = ""
        """The signal that is being set."""

    def interrupt(self) -> None:
        """Stops a run in progress; may be called from any thread."""
        self.engine.increment_epoch()

    def run(self, signals: Mapping[str, Any]) -> tuple[CurveParams, Words]:
        import wasmtime

        try:
            self._instantiate()
            curve = self._curve()
            self._call("init", 1)
            self._set_inputs(signals, curve)
            return curve, self._read_witness(curve)
        except wasmtime.Trap as trap:
            raise self._trapped(trap) from None
        except wasmtime.WasmtimeError as error:
            # Newer releases report fuel and epochs as traps, an older one as plain errors.
            raise self._failed(str(error)) from None

    def _instantiate(self) -> None:
        import wasmtime

        try:
            module = wasmtime.Module(self.engine, self.code)
        except wasmtime.WasmtimeError as error:
            raise MalformedFile(self.path, "module", f"no valid WebAssembly: {_first_line(error)}") from None
        exported = {e.name for e in module.exports}
        if "getVersion" not in exported and "getNVars" in exported:
            raise UnsupportedFile(self.path, "exports", "made by circom 1, expected circom 2")
        missing = [name for name in _REQUIRED if name not in exported]
        if missing:
            raise MalformedFile(
                self.path, "exports", f"no {', '.join(missing)}: not a witness calculator of circom 2"
            )
        self.has_sizes = "getInputSignalSize" in exported
        for imported in module.imports:
            if imported.module != "runtime" or imported.name not in _CALLBACKS:
                wanted = f"{imported.module[:40]}.{(imported.name or '')[:40]}"
                raise MalformedFile(self.path, "imports", f"asks for {wanted}, which circom 2 does not use")

        self.store = wasmtime.Store(self.engine)
        self.store.set_fuel(self.fuel)
        self.store.set_epoch_deadline(1)
        self.store.set_limits(memory_size=self.memory_bytes, table_elements=1 << 20, instances=2, memories=3)
        linker = wasmtime.Linker(self.engine)
        none = wasmtime.FuncType([], [])
        code = wasmtime.FuncType([wasmtime.ValType.i32()], [])
        linker.define_func("runtime", "exceptionHandler", code, self._on_exception)
        linker.define_func("runtime", "printErrorMessage", none, self._on_message)
        linker.define_func("runtime", "writeBufferMessage", none, lambda: self._message() and None)
        linker.define_func("runtime", "showSharedRWMemory", none, lambda: None)
        try:
            instance = linker.instantiate(self.store, module)
        except wasmtime.WasmtimeError as error:
            raise self._failed(str(error), part="instantiation") from None
        self.exports = instance.exports(self.store)
        try:
            linker.define_instance(self.store, "c", instance)
            bridge = linker.instantiate(self.store, wasmtime.Module(self.engine, _BRIDGE))
        except wasmtime.WasmtimeError:
            raise MalformedFile(self.path, "exports", "functions of other types than circom 2's") from None
        self.bridge = bridge.exports(self.store)

    def _call(self, name: str, *arguments: int) -> int:
        import wasmtime

        function = self.exports[name]
        try:
            assert isinstance(function, wasmtime.Func)
            result = function(self.store, *arguments)
        except (AssertionError, TypeError):
            raise MalformedFile(
                self.path, "exports", f"{name} is not the function that circom 2 makes"
            ) from None
        return result if isinstance(result, int) else 0

    def _curve(self) -> CurveParams:
        major = self._call("getVersion")
        if major != 2:
            raise UnsupportedFile(self.path, "version", f"circom {major}, expected 2")
        self.words = self._call("getFieldNumLen32")
        if not 1 <= self.words <= 64:
            raise MalformedFile(self.path, "prime", f"{self.words} words of 32 bits")
        self._call("getRawPrime")
        prime = sum((self._call("readSharedRWMemory", j) & 0xFFFFFFFF) << (32 * j) for j in range(self.words))
        for curve in CURVES:
            if curve.r == prime:
                if self.words != 2 * curve.scalar.limbs:
                    raise MalformedFile(self.path, "prime", f"{self.words} words of 32 bits")
                return curve
        known = ", ".join(c.snarkjs_name for c in CURVES)
        raise UnsupportedFile(self.path, "prime", f"of {prime.bit_length()} bits, expected that of {known}")

    # Inputs ------------------------------------------------------------------

    def _set_inputs(self, signals: Mapping[str, Any], curve: CurveParams) -> None:
        values = {name: _integers(name, value) for name, value in signals.items()}
        if self.has_sizes:
            self._check_sizes(values)
        expected, given = self._call("getInputSize"), sum(map(len, values.values()))
        if self.has_sizes and given < expected:
            raise InvalidInput(self._missing(values, expected - given))
        # Only now: the program computes, and may fail an assertion, as soon as the last one is set.
        for name, integers in values.items():
            self._set_signal(name, integers, curve)
        if given < expected:
            raise InvalidInput(self._missing(values, expected - given))

    def _check_sizes(self, values: Mapping[str, list[int]]) -> None:
        problems = []
        for name, integers in values.items():
            size = self._size(name)
            if size == 0 and integers:
                problems.append(f"{name}: the circuit has no such input")
            elif size != len(integers):
                problems.append(f"{name}: expected {size} {_plural(size)}, found {len(integers)}")
        if problems:
            raise InvalidInput(f"circuit inputs: {'; '.join(problems)}")

    def _size(self, name: str) -> int:
        """Values that the input of this name takes; 0 if there is none."""
        return max(0, self._call("getInputSignalSize", *_hash_halves(name)))

    def _set_signal(self, name: str, integers: Sequence[int], curve: CurveParams) -> None:
        self.current = name
        high, low = _hash_halves(name)
        step = self._per_buffer
        for start in range(0, len(integers), step):
            piece = integers[start : start + step]
            words = ints_to_words((v % curve.r for v in piece), curve.scalar.limbs)
            self._buffer.write(self.store, words.tobytes(), 0)
            self._bridge("write", self.words, start, start + len(piece), high, low)

    def _missing(self, values: Mapping[str, object], count: int) -> str:
        """What to say when values are missing: their names are only in circom's .sym file."""
        names: list[str] = []
        for name in _symbols(Path(self.path)) if self.has_sizes else ():
            given = name in values or any(name.startswith((f"{v}.", f"{v}[")) for v in values)
            if not given and self._size(name) > 0:
                names.append(name)
        if names:
            return f"circuit inputs: missing {', '.join(names)}"
        found = f" besides {', '.join(values)}" if values else ""
        advice = "circom's --sym file beside the program would let this message name them"
        return f"circuit inputs: {count} {_plural(count)} missing{found}; {advice}"

    # Witness -----------------------------------------------------------------

    def _read_witness(self, curve: CurveParams) -> Words:
        count = self._call("getWitnessSize") & 0xFFFFFFFF
        if count * curve.scalar.bytes > self.memory_bytes:
            limit = f"the limit of {self.memory_bytes // _MIB} MiB"
            raise OutOfMemory(f"a witness of {count} values exceeds {limit}", path=self.path)
        witness = np.empty((count, curve.scalar.limbs), dtype="<u8")
        step = self._per_buffer
        for start in range(0, count, step):
            end = min(count, start + step)
            self._bridge("read", self.words, start, end)
            data = self._buffer.read(self.store, 0, (end - start) * curve.scalar.bytes)
            witness[start:end] = np.frombuffer(data, dtype="<u8").reshape(end - start, -1)
        check_witness_values(witness, curve, self.path, "computed witness")
        return witness

    @property
    def _per_buffer(self) -> int:
        return _BUFFER_BYTES // (4 * self.words)

    @property
    def _buffer(self) -> wasmtime.Memory:
        memory: wasmtime.Memory = self.bridge["buffer"]  # type: ignore[assignment]
        return memory

    def _bridge(self, name: str, *arguments: int) -> None:
        function: wasmtime.Func = self.bridge[name]  # type: ignore[assignment]
        function(self.store, *(_signed(a) for a in arguments))

    # What the program tells ----------------------------------------------------

    def _on_exception(self, code: int) -> None:
        place = "; ".join(dict.fromkeys(self.messages))
        if code in (_NOT_FOUND, _TOO_MANY, _ALREADY_SET, _INPUT_INDEX):
            problem = {
                _NOT_FOUND: "the circuit has no such input",
                _ALREADY_SET: "set twice",
            }.get(code, "more values than the circuit takes")
            raise InvalidInput(f"circuit inputs: {self.current}: {problem}")
        if code == _ASSERT_FAILED:
            raise UnsatisfiedWitness(
                f"the inputs do not satisfy the circuit: {place or 'an assertion failed'}",
                path=self.path,
                role="inputs",
            )
        if code == _NO_MEMORY:
            raise OutOfMemory("the program ran out of its own memory", path=self.path)
        if code == _ARRAY_INDEX:
            raise UnsatisfiedWitness(
                f"an array index is out of bounds: {place or 'no place given'}", path=self.path, role="inputs"
            )
        raise MalformedFile(self.path, "program", f"it reports the unknown error {code}")

    def _on_message(self) -> None:
        text = self._message().strip()
        if text and len(self.messages) < 20:
            self.messages.append(text)

    def _message(self) -> str:
        if "getMessageChar" not in self.exports:
            return ""
        characters: list[str] = []
        while len(characters) < 1000 and (c := self._call("getMessageChar")):
            characters.append(chr(c) if 32 <= c < 127 else " ")
        return "".join(characters)

    def _trapped(self, trap: wasmtime.Trap) -> ProverError:
        import wasmtime

        code = trap.trap_code
        if code == wasmtime.TrapCode.OUT_OF_FUEL:
            return self._out_of_fuel()
        if code == wasmtime.TrapCode.INTERRUPT:
            return Timeout("interrupted", path=self.path)
        name = code.name.lower().replace("_", " ") if code is not None else _first_line(trap)
        return MalformedFile(self.path, "program", f"it crashed: {name}")

    def _failed(self, text: str, part: str = "program") -> ProverError:
        if "fuel" in text:
            return self._out_of_fuel()
        if "memory" in text and "limit" in text:
            return OutOfMemory(
                f"the program's memory exceeds the limit of {self.memory_bytes // _MIB} MiB", path=self.path
            )
        return MalformedFile(self.path, part, _first_line(text))

    def _out_of_fuel(self) -> Timeout:
        return Timeout(
            f"the limit of {self.fuel} instructions is reached; "
            "if the circuit is as large as that, allow more with --fuel (in Python: fuel)",
            path=self.path,
        )


def _watched(job: Job, interrupt: Callable[[], None], work: Callable[[], T]) -> T:
    """``work()`` in a thread of its own, while this one watches the job's cancellation and deadline.

    Compilation cannot be interrupted: the thread is then left to end by itself.
    """
    results: list[T] = []
    failures: list[BaseException] = []

    def target() -> None:
        try:
            results.append(work())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=target, name="gpuprover-witness", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            job.check()
            thread.join(POLL_SECONDS)
    except BaseException:
        interrupt()
        thread.join(POLL_SECONDS)
        raise
    if failures:
        raise failures[0]
    return results[0]


def _qualified(prefix: str, value: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Names as the program knows them: ``a``, and for buses ``a.b``, ``a[0].b``."""
    if depth > _MAX_BUS_DEPTH:
        raise InvalidInput(f"circuit inputs: nested deeper than {_MAX_BUS_DEPTH} objects")
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str) or not key:
                raise InvalidInput(f"circuit inputs: a signal's name has to be a text, found {_kind(key)}")
            yield from _qualified(f"{prefix}.{key}" if prefix else key, item, depth + 1)
    elif _is_list(value) and any(isinstance(item, Mapping) for item in _leaves(value)):
        for i, item in enumerate(value):
            yield from _qualified(f"{prefix}[{i}]", item, depth + 1)
    else:
        yield prefix, value


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes)


def _leaves(value: Any) -> Iterator[Any]:
    """The elements of nested arrays, row by row."""
    stack = [iter([value])]
    while stack:
        for item in stack[-1]:
            if _is_list(item):
                stack.append(iter(item))
                break
            yield item
        else:
            stack.pop()


def _integers(name: str, value: Any) -> list[int]:
    """The values of one signal. Raises InvalidInput, without the value."""
    result = []
    for i, item in enumerate(_leaves(value)):
        try:
            result.append(_integer(item))
        except ValueError:
            at = f"[{i}]" if _is_list(value) else ""
            raise InvalidInput(
                f"circuit inputs: {name}{at}: expected an integer in decimal or 0x form, found {_kind(item)}"
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


def _kind(value: Any) -> str:
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


def _hash_halves(name: str) -> tuple[int, int]:
    """FNV-1a of a signal's name -> (high, low) as signed 32-bit integers."""
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = (h ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return _signed(h >> 32), _signed(h & 0xFFFFFFFF)


def _signed(x: int) -> int:
    return x - (1 << 32) if x >= 1 << 31 else x


def _plural(n: int) -> str:
    return "value" if n == 1 else "values"


def _first_line(text: object) -> str:
    return str(text).strip().split("\n")[0][:200]


def _half_of_memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, OSError, ValueError):
        return 4096 * _MIB


def _symbols(wasm: Path) -> list[str]:
    """The first signals' names, from the .sym file that circom wrote along; none without it.

    circom puts NAME.wasm into NAME_js/ and NAME.sym beside that folder, outputs and inputs first.
    """
    for folder in (wasm.parent, wasm.parent.parent):
        try:
            file, _ = open_regular(folder / f"{wasm.stem}.sym")
        except ProverError:
            continue
        with file:
            names: dict[str, None] = {}
            for line in islice(file, _MAX_SYMBOLS):
                # number, wire, component, main.name[0][1]
                name = line[:_MAX_SYMBOL].decode(errors="replace").strip().split(",")[-1]
                names[_INDICES.sub("", name.removeprefix("main."))] = None
            return list(names)
    return []
