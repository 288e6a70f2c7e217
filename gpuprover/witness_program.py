"""A circuit's witness program in its sandbox: see :mod:`gpuprover.witness`."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np

from gpuprover import folders, forks, wasm_compiler
from gpuprover.circuit_inputs import (
    MAX_PROBLEMS,
    Signals,
    check_sizes,
    integers_of,
    is_given,
    plural,
    symbols,
)
from gpuprover.curves import CURVES, CurveParams
from gpuprover.errors import (
    InvalidInput,
    MalformedFile,
    OutOfMemory,
    ProverError,
    Timeout,
    UnsatisfiedWitness,
    UnsupportedFile,
)
from gpuprover.formats.wtns import Allocate, check_witness_values
from gpuprover.limbs import Words, ints_to_words

if TYPE_CHECKING:
    import wasmtime

_COMPILING: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
"""By program: held while it is compiled, which nothing can stop. Whoever is out of time leaves that behind,
and who comes next waits for it, or programs that take long would be compiled once for each attempt."""


@forks.in_child
def _in_child() -> None:
    global _COMPILING
    _COMPILING = WeakValueDictionary()


MIB = 1 << 20
_TABLE_ELEMENTS = 1 << 12
KEPT_BYTES = 1024 * MIB
"""Compiled programs that are kept; beyond, all are made anew."""
PROGRAMS = folders.Store("wasmtime", largest=KEPT_BYTES)
_BUFFER_BYTES = 1 << 20
_NAMES_AT_ONCE = 1 << 12

_IMPORTS, _EXPORTS = 2, 7
"""Numbers of sections."""
_MAX_ENTRIES = 256
"""circom's programs have some six imports and twenty exports."""
_MAX_SECTIONS = 1 << 12
"""The most sections of a program, custom ones included; circom's have a dozen."""

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
_PLACE = re.compile(
    r"(Error in (?:template|function) [A-Za-z_$][A-Za-z0-9_$]{0,99})(?: line: ([0-9]{1,6}))?(?![0-9])"
)
_MAX_PLACES = 8
_MAX_EMPTY = 1024
_CALLBACKS = ("exceptionHandler", "printErrorMessage", "writeBufferMessage", "showSharedRWMemory")

# Moves many elements a call: a call from Python costs more than the element. The buffer
# holds `words` little-endian 32-bit words an element.
_BRIDGE = f"""
(module
  (SIZES_IMPORT)
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
      (br_if $element (i32.lt_u (local.get $from) (local.get $to)))))
  (SIZES))
"""
# Halves of names' hashes, high and low, become the sizes of the signals of these names, 8 bytes apart.
_SIZES_IMPORT = '(import "c" "getInputSignalSize" (func $size (param i32 i32) (result i32)))'
_SIZES = """
  (func (export "sizes") (param $count i32)
    (local $at i32)
    (loop $name
      (i32.store (local.get $at)
        (call $size (i32.load (local.get $at)) (i32.load offset=4 (local.get $at))))
      (local.set $at (i32.add (local.get $at) (i32.const 8)))
      (br_if $name (i32.lt_u (local.get $at) (i32.shl (local.get $count) (i32.const 3))))))
"""


class Program:
    """One sandboxed instance of a circuit's WASM program."""

    def __init__(
        self, path: str, code: bytes, fuel: int, memory_limit: int | None, allocate: Allocate
    ) -> None:
        self.path, self.code, self.fuel, self.allocate = path, code, fuel, allocate
        self.memory_bytes = memory_limit * MIB if memory_limit else _half_of_memory()
        self.limited = _address_space_is_limited()
        self.engine = wasm_compiler.engine(self.limited)
        self.interrupted = False
        self.places: list[str] = []
        self.failure: ProverError | None = None
        """What went wrong first in a function that the program called."""
        self.in_callback = False
        self.current = ""
        """The signal that is being set."""

    def interrupt(self) -> None:
        """Stops a run in progress, or that is to come; may be called from any thread."""
        self.interrupted = True
        self.engine.increment_epoch()

    def run(self, signals: Signals) -> tuple[CurveParams, Words]:
        import wasmtime

        try:
            self._instantiate()
            curve = self._curve()
            self._call("init", 1)
            self._set_inputs(signals, curve)
            return curve, self._read_witness(curve)
        except wasmtime.Trap as trap:
            raise self.failure or self._trapped(trap) from None
        except wasmtime.WasmtimeError as error:
            # Newer releases report fuel and epochs as traps, an older one as plain errors.
            raise self.failure or self._failed(str(error)) from None
        except MemoryError:
            raise OutOfMemory("the machine refused memory for the program", path=self.path) from None
        finally:
            # wasmtime holds what the program may call, and that holds this: nothing would ever be freed.
            for held in ("store", "exports", "bridge"):
                self.__dict__.pop(held, None)
            self.failure = None  # its traceback knows the store, too

    def _instantiate(self) -> None:
        import wasmtime

        if not self.code.startswith(b"\0asm"):
            # wasmtime would take it for WebAssembly's text, and find out what that is.
            raise MalformedFile(self.path, "module", "no WebAssembly")
        for section, what in ((_IMPORTS, "imports"), (_EXPORTS, "exports")):
            if (count := _entries(self.code, section)) > _MAX_ENTRIES:
                # wasmtime's binding takes a millisecond for each.
                raise MalformedFile(self.path, what, f"{count}, expected at most {_MAX_ENTRIES}")
        try:
            module = self._compiled(self.code)
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
        self.tells_places = any(i.name == "printErrorMessage" for i in module.imports)
        # A memory that cannot be looked at counts in full.
        self.shows_memory = any(isinstance(e.type, wasmtime.MemoryType) for e in module.exports)
        for imported in module.imports:
            if imported.module != "runtime" or imported.name not in _CALLBACKS:
                wanted = f"{imported.module[:40]}.{(imported.name or '')[:40]}"
                raise MalformedFile(self.path, "imports", f"asks for {wanted}, which circom 2 does not use")

        self.store = wasmtime.Store(self.engine)
        self.store.set_fuel(self.fuel)
        self.store.set_epoch_deadline(1)
        self._check_interrupted()  # an epoch that has ended before ends nothing
        self._limit_memory(self.memory_bytes if self.shows_memory else self.memory_bytes // 2)
        linker = wasmtime.Linker(self.engine)
        none = wasmtime.FuncType([], [])
        code = wasmtime.FuncType([wasmtime.ValType.i32()], [])
        linker.define_func("runtime", "exceptionHandler", code, self._guarded(self._on_exception))
        linker.define_func("runtime", "printErrorMessage", none, self._guarded(self._on_message))
        linker.define_func("runtime", "writeBufferMessage", none, self._guarded(self._on_log))
        linker.define_func("runtime", "showSharedRWMemory", none, lambda: None)
        try:
            instance = linker.instantiate(self.store, module)
        except wasmtime.WasmtimeError as error:
            raise self.failure or self._failed(str(error), part="instantiation") from None
        self.exports = instance.exports(self.store)
        try:
            linker.define_instance(self.store, "c", instance)
            parts = (_SIZES_IMPORT, _SIZES) if self.has_sizes else ("", "")
            text = _BRIDGE.replace("(SIZES_IMPORT)", parts[0]).replace("(SIZES)", parts[1])
            bridge = linker.instantiate(self.store, self._compiled(text))
        except wasmtime.WasmtimeError as error:
            if _of_memory(str(error)):
                raise self._failed(str(error), part="instantiation") from None
            raise MalformedFile(self.path, "exports", "functions of other types than circom 2's") from None
        self.bridge = bridge.exports(self.store)

    def _compiled(self, program: bytes | str) -> wasmtime.Module:
        """A module, compiled now or before.

        wasmtime runs machine code as it finds it, after a look whether it is of this release, these settings
        and this CPU's features: so what is kept is signed.
        """
        import wasmtime

        content = program if isinstance(program, bytes) else program.encode()
        kind = "limited" if self.limited else "program"
        file = f"{hashlib.sha256(content).hexdigest()[:32]}.{kind}"
        if (module := self._kept(file)) is not None:
            return module
        with _COMPILING.setdefault(file, threading.Lock()):
            self._check_interrupted()
            if (module := self._kept(file)) is not None:
                return module
            if len(content) <= wasm_compiler.SMALL:
                module = wasmtime.Module(self.engine, program)
                machine_code = bytes(module.serialize())
            else:
                machine_code = wasm_compiler.compile_apart(
                    content, self.path, self.limited, self.memory_bytes, self._check_interrupted
                )
                module = wasmtime.Module.deserialize(self.engine, machine_code)
            files = PROGRAMS.files()
            if sum(files.values()) + len(machine_code) > KEPT_BYTES:
                for name in files:
                    PROGRAMS.remove(name)
            PROGRAMS.write_signed(file, machine_code)
        return module

    def _kept(self, file: str) -> wasmtime.Module | None:
        import wasmtime

        kept = PROGRAMS.read_signed(file)
        if kept is not None:
            with suppress(wasmtime.WasmtimeError):
                return wasmtime.Module.deserialize(self.engine, kept)
        return None

    def _check_interrupted(self) -> None:
        if self.interrupted:
            raise Timeout("interrupted", path=self.path)

    def _limit_memory(self, size: int) -> None:
        """Bytes that the program's memory may grow to. Two instances: it, and the bridge with a buffer."""
        self.store.set_limits(
            memory_size=size, table_elements=_TABLE_ELEMENTS, instances=2, tables=1, memories=2
        )

    def _call(self, name: str, *arguments: int) -> int:
        import wasmtime

        function = self.exports[name]
        try:
            assert isinstance(function, wasmtime.Func)
            result = function(self.store, *arguments)
            self._check_failure()
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

    def _set_inputs(self, signals: Signals, curve: CurveParams) -> None:
        expected = self._call("getInputSize")
        sizes = self._symbol_sizes() if not self.has_sizes else None
        values: dict[str, list[int]] = {}
        # Name by name until something is wrong, so that a million unknown ones cost no more than a few.
        while some := dict(islice(signals, MAX_PROBLEMS if not values else _NAMES_AT_ONCE)):
            integers = {name: integers_of(name, value) for name, value in some.items()}
            if self.has_sizes:
                check_sizes(integers, self._sizes(list(integers)))
            elif sizes:
                check_sizes(integers, [sizes.get(name, 0) for name in integers])
            values |= integers
            if sum(not v for v in integers.values()) > _MAX_EMPTY:
                raise InvalidInput("circuit inputs: too many signals without a value")
        given = sum(map(len, values.values()))
        if self.has_sizes and given < expected:
            raise InvalidInput(self._missing(values, expected - given))
        # Only now: the program computes, and may fail an assertion, as soon as the last one is set.
        for name, numbers in values.items():
            self._set_signal(name, numbers, curve)
        if given < expected:
            raise InvalidInput(self._missing(values, expected - given))

    def _symbol_sizes(self) -> dict[str, int]:
        """Values of the signals of the main component, from circom's .sym file; empty without a whole one."""
        return symbols(Path(self.path), whole=True)

    def _sizes(self, names: Sequence[str]) -> list[int]:
        """Values that the inputs of these names take; 0 where there is none."""
        sizes: list[int] = []
        for start in range(0, len(names), _NAMES_AT_ONCE):
            some = names[start : start + _NAMES_AT_ONCE]
            halves = np.array([_hash_halves(name) for name in some], dtype="<i4")
            self._buffer.write(self.store, halves.tobytes(), 0)
            self._bridge("sizes", len(some))
            found = np.frombuffer(self._buffer.read(self.store, 0, 8 * len(some)), dtype="<i4")
            sizes += np.maximum(found[::2], 0).tolist()
        return sizes

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
        asked = (name for name in self._symbol_names() if not is_given(name, values))
        left = count
        while left > 0 and (some := list(islice(asked, _NAMES_AT_ONCE))):
            for name, size in zip(some, self._sizes(some), strict=True):
                if size > 0 and left > 0:
                    names.append(name)
                    left -= size
        if names:
            more = f" and {len(names) - 20} more" if len(names) > 20 else ""
            return f"circuit inputs: missing {', '.join(names[:20])}{more}"
        found = f" besides {', '.join(islice(values, 20))}" if values else ""
        advice = "circom's --sym file beside the program would let this message name them"
        return f"circuit inputs: {count} {plural(count)} missing{found}; {advice}"

    def _symbol_names(self) -> Iterator[str]:
        return iter(symbols(Path(self.path))) if self.has_sizes else iter(())

    # Witness -----------------------------------------------------------------

    def _read_witness(self, curve: CurveParams) -> Words:
        count = self._call("getWitnessSize") & 0xFFFFFFFF
        if count * curve.scalar.bytes + self._memory_in_use() > self.memory_bytes:
            limit = f"the limit of {self.memory_bytes // MIB} MiB"
            raise OutOfMemory(f"a witness of {count} values exceeds {limit}", path=self.path)
        if self.shows_memory:
            self._limit_memory(self.memory_bytes - count * curve.scalar.bytes)
        # Counts of 0 are refused below.
        room = self.allocate(max(1, count) * curve.scalar.bytes)
        witness = room.view("<u8").reshape(-1, curve.scalar.limbs)[:count]
        step = self._per_buffer
        for start in range(0, count, step):
            end = min(count, start + step)
            self._bridge("read", self.words, start, end)
            data = self._buffer.read(self.store, 0, (end - start) * curve.scalar.bytes)
            witness[start:end] = np.frombuffer(data, dtype="<u8").reshape(end - start, -1)
        check_witness_values(witness, curve, self.path, "computed witness")
        return witness

    def _memory_in_use(self) -> int:
        import wasmtime

        if not self.shows_memory:
            return self.memory_bytes // 2
        memories = (m for m in self.exports.values() if isinstance(m, wasmtime.Memory))
        return max((m.data_len(self.store) for m in memories), default=0)

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
        self._check_failure()

    # What the program tells ----------------------------------------------------

    def _guarded(self, told: Callable[..., None]) -> Callable[..., None]:
        """A function that the program may call at any time, also while it answers one of ours."""

        def callback(*arguments: Any) -> None:
            import wasmtime

            if self.in_callback or self.failure is not None:
                return
            self.in_callback = True
            try:
                told(*arguments)
            except ProverError as error:
                self._stop(error)
            except wasmtime.Trap as trap:
                self._stop(self._trapped(trap))
            except wasmtime.WasmtimeError as error:
                self._stop(self._failed(str(error)))
            except BaseException as error:
                self._stop(MalformedFile(self.path, "program", f"{type(error).__name__} in what it calls"))
            finally:
                self.in_callback = False

        return callback

    def _stop(self, failure: ProverError) -> None:
        """Ends the run with this failure, at the program's next loop or call."""
        self.failure = failure
        self.interrupt()

    def _check_failure(self) -> None:
        if self.failure is not None and not self.in_callback:
            raise self.failure

    def _on_exception(self, code: int) -> None:
        if not self.tells_places:  # before circom 2.0.7 the message is to be asked for
            self._on_message()
        place = "; ".join(dict.fromkeys(self.places))
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
        raise MalformedFile(self.path, "program", "it reports an unknown error")

    def _on_message(self) -> None:
        for match in _PLACE.finditer(self._message()):
            if len(self.places) < _MAX_PLACES and match[1].encode() in self.code:
                self.places.append(match[0])

    def _on_log(self) -> None:
        self._message()

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
                f"the program's memory exceeds the limit of {self.memory_bytes // MIB} MiB", path=self.path
            )
        if _of_memory(text):
            return OutOfMemory("the machine refused memory for the program", path=self.path)
        return MalformedFile(self.path, part, _first_line(text))

    def _out_of_fuel(self) -> Timeout:
        return Timeout(
            f"the limit of {self.fuel} instructions is reached; "
            "if the circuit is as large as that, allow more with --fuel (in Python: fuel)",
            path=self.path,
        )


def _of_memory(text: str) -> bool:
    """Whether wasmtime says that the system refused memory."""
    return any(word in text.lower() for word in ("mmap", "allocate", "reserve", "out of memory"))


def _address_space_is_limited() -> bool:
    try:
        import resource
    except ImportError:  # another system than Unix
        return False
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def _hash_halves(name: str) -> tuple[int, int]:
    """FNV-1a of a signal's name -> (high, low) as signed 32-bit integers."""
    h = 0xCBF29CE484222325
    for byte in name.encode("utf-8", "surrogatepass"):
        h = (h ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return _signed(h >> 32), _signed(h & 0xFFFFFFFF)


def _signed(x: int) -> int:
    return x - (1 << 32) if x >= 1 << 31 else x


def _first_line(text: object) -> str:
    return str(text).strip().split("\n")[0][:200]


def _half_of_memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, OSError, ValueError):
        return 4096 * MIB


def _entries(code: bytes, section: int) -> int:
    """How many a section of a program says that it has; 0 without the section, or where it is damaged."""
    at = 8
    for _ in range(_MAX_SECTIONS):
        if at >= len(code):
            break
        number = code[at]
        size, start = _unsigned(code, at + 1)
        if number == section:
            return _unsigned(code, start)[0]
        at = start + size
    else:
        return 1 << 32  # who has so many hides something
    return 0


def _unsigned(code: bytes, at: int) -> tuple[int, int]:
    """A number in WebAssembly's form, 7 bits a byte, and where it ends."""
    value = 0
    for i, byte in enumerate(code[at : at + 5]):
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, at + i + 1
    return value, len(code)
