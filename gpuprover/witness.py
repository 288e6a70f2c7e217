"""Witness calculation: runs the WASM program that circom 2 makes of a circuit.

The program exports ``init``, ``setInputSignal`` and ``getWitness`` over one shared field
element, and imports four functions for errors and logs. A signal is named by the 64-bit
FNV-1a hash of its name. It computes as soon as its last input is set. Source: circom's
documentation, "Computing the witness", and the programs that circom 2.0 to 2.2 write.

The program is a stranger's: it gets no system interface, one memory and one small table, a stack of 1 MiB
and a bounded number of instructions; its memory and the witness share one limit. Of WebAssembly's proposals
only those are on that circom uses, and reference types, which wasmtime's binding cannot switch off; their
tables are bounded like any other.

A program can end its own run and nothing else. All but small ones are compiled by a process of their own
(:mod:`gpuprover.wasm_compiler`), once. It runs in this process, in a thread of its own: a helper process for
each run would double the time of a small proof or have to be kept, and the ways out that are known need none.
The four imported functions raise nothing and call the program no deeper than once: what goes wrong in them is
kept, and the program stopped through its epoch. (An exception in one would travel through a variable that
wasmtime shares among threads, to a run of somebody else; calls that come back in would end at the native
stack.) The thread's stack has room for the program's and the host's. What stays is trust in wasmtime: an
escape from its sandbox.

Inputs and witness are secret: no message holds a value, and what the circuit logs is dropped. Of a program's
own words only "Error in template NAME line: N" passes, where these words and NAME stand in the program's
file as a whole. A hostile program still chooses which of its names it tells, and numbers of up to six digits:
some hundred bits a run, as it could through its run time. Its author must be trusted that far.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakValueDictionary

import numpy as np

from gpuprover import folders, forks, wasm_compiler
from gpuprover.backend import Backend, Form
from gpuprover.curves import CURVES, CurveParams
from gpuprover.errors import (
    InvalidInput,
    MalformedFile,
    OutOfMemory,
    ProverError,
    Timeout,
    UnsatisfiedWitness,
    UnsupportedFile,
    WitnessMismatch,
    about,
)
from gpuprover.formats.files import Pathish, open_regular
from gpuprover.formats.json_files import MAX_DEPTH
from gpuprover.formats.r1cs import R1CS
from gpuprover.formats.wtns import Witness, check_witness_values
from gpuprover.job import POLL_SECONDS, Job
from gpuprover.limbs import Words, ints_to_words

if TYPE_CHECKING:
    import wasmtime

T = TypeVar("T")

_Signals = Iterator[tuple[str, Any]]
"""Names of signals with what is given for them."""

_STACKS = threading.Lock()
"""The size of new threads' stacks is the process's: set for one start at a time."""
_COMPILING: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
"""By program: held while it is compiled, which nothing can stop. Whoever is out of time leaves that behind,
and who comes next waits for it, or programs that take long would be compiled once for each attempt."""


@forks.in_child
def _in_child() -> None:
    global _STACKS, _COMPILING
    _STACKS, _COMPILING = threading.Lock(), WeakValueDictionary()


DEFAULT_FUEL = 10**11
"""WASM instructions, about: minutes of work; a million constraints take some 10^9."""

_MIB = 1 << 20
_THREAD_STACK = 8 << 20
_TABLE_ELEMENTS = 1 << 12
_MAX_PROGRAM = 256 * _MIB
_KEPT_BYTES = 1024 * _MIB
"""Compiled programs that are kept; beyond, all are made anew."""
_PROGRAMS = folders.Store("wasmtime", largest=_KEPT_BYTES)
_BUFFER_BYTES = 1 << 20
_MAX_BUS_DEPTH = 64
_NAMES_AT_ONCE = 1 << 12
_MAX_NAME = 1 << 10
"""Characters of a signal's name with those of its buses."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_MEMBER = re.compile(r"[.\[]")
_INDICES = re.compile(r"(?<!\])(\[[0-9]+\])+$")
"""Where no bracket ends before: else a line of a thousand of them is searched from each."""
_MAX_SYMBOLS, _MAX_SYMBOL, _MAX_SYMBOL_BYTES = 1 << 16, 1 << 10, 1 << 23

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
_MAX_PROBLEMS = 8
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
        job: cancellation and deadline; phases are the caller's.
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
    file, size = open_regular(wasm)
    with file:
        code = file.read(min(size, _MAX_PROGRAM) + 1)
    if len(code) > _MAX_PROGRAM:
        raise MalformedFile(wasm, "module", f"more than {_MAX_PROGRAM // _MIB} MiB")
    program = _Program(str(wasm), code, fuel or DEFAULT_FUEL, memory_limit)
    return _watched(job, program.interrupt, lambda: program.run(_qualified("", inputs)))


class _Program:
    """One sandboxed instance of a circuit's WASM program."""

    def __init__(self, path: str, code: bytes, fuel: int, memory_limit: int | None) -> None:
        self.path, self.code, self.fuel = path, code, fuel
        self.memory_bytes = memory_limit * _MIB if memory_limit else _half_of_memory()
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

    def run(self, signals: _Signals) -> tuple[CurveParams, Words]:
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
            files = _PROGRAMS.files()
            if sum(files.values()) + len(machine_code) > _KEPT_BYTES:
                for name in files:
                    _PROGRAMS.remove(name)
            _PROGRAMS.write_signed(file, machine_code)
        return module

    def _kept(self, file: str) -> wasmtime.Module | None:
        import wasmtime

        kept = _PROGRAMS.read_signed(file)
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

    def _set_inputs(self, signals: _Signals, curve: CurveParams) -> None:
        expected = self._call("getInputSize")
        sizes = self._symbol_sizes() if not self.has_sizes else None
        values: dict[str, list[int]] = {}
        # Name by name until something is wrong, so that a million unknown ones cost no more than a few.
        while some := dict(islice(signals, _MAX_PROBLEMS if not values else _NAMES_AT_ONCE)):
            integers = {name: _integers(name, value) for name, value in some.items()}
            if self.has_sizes:
                _check_sizes(integers, self._sizes(list(integers)))
            elif sizes:
                _check_sizes(integers, [sizes.get(name, 0) for name in integers])
            values |= integers
            if sum(not v for v in integers.values()) > _MAX_EMPTY:
                raise InvalidInput("circuit inputs: too many signals without a value")
        given = sum(map(len, values.values()))
        if self.has_sizes and given < expected:
            raise InvalidInput(self._missing(values, expected - given))
        # Only now: the program computes, and may fail an assertion, as soon as the last one is set.
        for name, integers_of in values.items():
            self._set_signal(name, integers_of, curve)
        if given < expected:
            raise InvalidInput(self._missing(values, expected - given))

    def _symbol_sizes(self) -> dict[str, int]:
        """Values of the signals of the main component, from circom's .sym file; empty without a whole one."""
        return _symbols(Path(self.path), whole=True)

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
        asked = (name for name in self._symbol_names() if not _is_given(name, values))
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
        return f"circuit inputs: {count} {_plural(count)} missing{found}; {advice}"

    def _symbol_names(self) -> Iterator[str]:
        return iter(_symbols(Path(self.path))) if self.has_sizes else iter(())

    # Witness -----------------------------------------------------------------

    def _read_witness(self, curve: CurveParams) -> Words:
        count = self._call("getWitnessSize") & 0xFFFFFFFF
        if count * curve.scalar.bytes + self._memory_in_use() > self.memory_bytes:
            limit = f"the limit of {self.memory_bytes // _MIB} MiB"
            raise OutOfMemory(f"a witness of {count} values exceeds {limit}", path=self.path)
        if self.shows_memory:
            self._limit_memory(self.memory_bytes - count * curve.scalar.bytes)
        witness = np.empty((count, curve.scalar.limbs), dtype="<u8")
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
                f"the program's memory exceeds the limit of {self.memory_bytes // _MIB} MiB", path=self.path
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
    try:
        with _STACKS:
            before = threading.stack_size(_THREAD_STACK)
            try:
                thread.start()
            finally:
                threading.stack_size(before)
    except RuntimeError:
        raise OutOfMemory("the machine refused a thread for the witness program") from None
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


def _qualified(prefix: str, value: Any, depth: int = 0, buses: _Buses | None = None) -> _Signals:
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
                raise InvalidInput(f"circuit inputs: a signal's name has to be a text, found {_kind(key)}")
            if _SURROGATE.search(key):
                raise InvalidInput("circuit inputs: a signal's name holds half a character (a surrogate)")
            yield from _qualified(f"{prefix}.{key}" if prefix else key, item, depth + 1)
    elif buses is not None or (_is_list(value) and (buses := _find_buses(value)) is not None):
        for i, item in enumerate(value):
            held, inner = buses.get(i, (item, None))
            if inner is None and not isinstance(held, Mapping):
                yield f"{prefix}[{i}]", held
            else:
                yield from _qualified(f"{prefix}[{i}]", held, depth + 1, inner)
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


def _integers(name: str, value: Any) -> list[int]:
    """The values of one signal. Raises InvalidInput, without the value."""
    if type(value) is int:
        return [value]
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


def _check_sizes(values: Mapping[str, list[int]], sizes: Sequence[int]) -> None:
    """Raises InvalidInput for signals that are unknown or of another length."""
    problems = []
    for (name, integers), size in zip(values.items(), sizes, strict=True):
        if size == 0 and integers:
            problems.append(f"{name}: the circuit has no such input")
        elif size != len(integers):
            problems.append(f"{name}: expected {size} {_plural(size)}, found {len(integers)}")
        if len(problems) == _MAX_PROBLEMS:
            break
    if problems:
        raise InvalidInput(f"circuit inputs: {'; '.join(problems)}")


def _is_given(name: str, values: Mapping[str, object]) -> bool:
    """Whether a signal is among those given, or a member of one."""
    return name in values or any(
        name[: match.start()] in values for match in islice(_MEMBER.finditer(name), 2 * _MAX_BUS_DEPTH)
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


def _plural(n: int) -> str:
    return "value" if n == 1 else "values"


def _first_line(text: object) -> str:
    return str(text).strip().split("\n")[0][:200]


def _half_of_memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, OSError, ValueError):
        return 4096 * _MIB


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


def _symbols(wasm: Path, *, whole: bool = False) -> dict[str, int]:
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


def check_witness(r1cs: R1CS, witness: Witness, backend: Backend) -> int | None:
    """The first constraint that the witness does not satisfy, or None if it satisfies all.

    Raises:
        WitnessMismatch: another field, or another number of wires.
    """
    if witness.curve != r1cs.curve:
        raise WitnessMismatch(
            f"values over the scalar field of {witness.curve.name}, expected that of {r1cs.curve.name}",
            path=witness.source,
            role="witness",
            more=f"for {r1cs.source}",
        )
    if len(witness) != r1cs.n_wires:
        raise WitnessMismatch(
            f"{len(witness)} values, expected {r1cs.n_wires}, the wires",
            path=witness.source,
            role="witness",
            more=f"of {r1cs.source}",
        )
    if r1cs.n_constraints == 0:
        return None
    products = []
    for m in r1cs.matrices:
        single = np.zeros(m.nnz, dtype=np.uint32)
        matrix = backend.prepare_matrices(1, m.rows, single, m.row_index(), m.wires, m.values, Form.CANONICAL)
        products += backend.spmv(matrix, witness.values)
        backend.free(matrix)
    a, b, c = products
    difference = backend.multiply_subtract_in_place(a, b, c)
    wrong = backend.download(difference, Form.MONTGOMERY).any(axis=1)
    backend.free(a, b, c)
    return int(np.argmax(wrong)) if wrong.any() else None
