"""Compilation of strangers' WebAssembly: in a process of its own, which may take too long or die.

wasmtime's compiler has no limit of its own: one long function takes some 250 bytes for each of its bytes,
loops in each other the square of their depth in time, and where the system refuses it memory it ends the
process. So all but small programs are compiled by ``python -m gpuprover.wasm_compiler``, under limits on CPU
time and address space; machine code comes back. A start costs a quarter of a second, once for each program
where compiled code is kept.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from gpuprover.errors import OutOfMemory, Timeout
from gpuprover.processes import harden, private_file, spawn

if TYPE_CHECKING:
    import wasmtime

STACK_BYTES = 1 << 20
"""Bytes of a program's stack."""
SMALL = 1 << 14
"""Bytes of a program that is compiled here: the worst one known takes a second and 60 MiB."""
CPU_SECONDS = 300
OWN_BYTES = 2 << 30
"""Bytes of addresses for Python, wasmtime and the stacks of its threads; they are not all used."""
MAX_CODE = 1 << 30
"""Bytes of machine code."""
_POLL_SECONDS = 0.05
_UNUSED_PROPOSALS = (
    # In this order: what builds upon another goes first.
    "component_model",
    "component_model_implements",
    "component_model_map",
    "stack_switching",
    "exceptions",
    "gc",
    "function_references",
    "tail_call",
    "threads",
    "memory64",
    "multi_memory",
    "multi_value",
    "relaxed_simd",
    "simd",
    "wide_arithmetic",
    "custom_page_sizes",
)
"""circom 2.0 to 2.2 write WebAssembly's first version, and memory.copy and memory.fill at most."""
_GOOD, _BAD = b"+", b"-"


def engine(limited: bool) -> wasmtime.Engine:
    """An engine for strangers' programs: fuel, epochs, a bounded stack, nothing that circom does not use.

    Args:
        limited: addresses are few: bounds are checked in place of 4 GiB of addresses around each memory.
    """
    import wasmtime

    config = wasmtime.Config()
    config.consume_fuel = True
    config.epoch_interruption = True
    config.max_wasm_stack = STACK_BYTES
    for proposal in _UNUSED_PROPOSALS:
        with suppress(AttributeError, wasmtime.WasmtimeError):  # an older or newer release
            setattr(config, f"wasm_{proposal}", False)
    if limited:
        with suppress(AttributeError, wasmtime.WasmtimeError):
            config.memory_reservation = 0
            config.memory_reservation_for_growth = 0
            config.memory_guard_size = 0
    return wasmtime.Engine(config)


def compile_apart(code: bytes, path: str, limited: bool, memory: int, check: Callable[[], None]) -> bytes:
    """Machine code of a program, for :func:`engine` with the same ``limited``.

    Args:
        path: the program's file, for messages.
        memory: bytes that its compilation may take, beside :data:`OWN_BYTES`.
        check: called every now and then; what it raises ends the compilation.

    Raises:
        wasmtime.WasmtimeError: it is no valid program.
        Timeout: :data:`CPU_SECONDS` are over.
        OutOfMemory: it takes more memory than it may, or than there is.
        DeviceError: the system starts no process.
    """
    source = private_file([code])
    try:
        target = private_file()
        try:
            arguments = [source, target, os.getpid(), int(limited), memory + OWN_BYTES, CPU_SECONDS]
            child = spawn("gpuprover.wasm_compiler", *map(str, arguments), fds=[source, target])
            try:
                while not child.wait(_POLL_SECONDS):
                    check()
            finally:
                if not child.ended():
                    child.kill()
                    child.wait(60)
                status = child.status
                child.close()
            return _answer(target, status, path)
        finally:
            os.close(target)
    finally:
        os.close(source)


def _answer(target: int, status: int | None, path: str) -> bytes:
    import wasmtime

    answer = _content(target)
    if status == 0 and answer[:1] == _GOOD:
        return answer[1:]
    if status == 0 and answer[:1] == _BAD:
        raise wasmtime.WasmtimeError(answer[1:].decode("utf-8", "replace"))
    if status == -signal.SIGXCPU:
        raise Timeout(f"it is not compiled after {CPU_SECONDS} s of CPU time", path=path)
    raise OutOfMemory("the machine refused memory for its compilation", path=path)


def _content(descriptor: int) -> bytes:
    size = os.fstat(descriptor).st_size
    content = bytearray()
    while len(content) < size and (piece := os.pread(descriptor, 1 << 26, len(content))):
        content += piece
    return bytes(content)


def main(arguments: list[str]) -> None:
    source, target, parent, limited, memory, seconds = map(int, arguments)
    harden(parent)
    for kind, limit in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, MAX_CODE),
    ):
        hard = resource.getrlimit(kind)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (limit, hard))
    import wasmtime

    try:
        answer = _GOOD + bytes(wasmtime.Module(engine(bool(limited)), _content(source)).serialize())
    except wasmtime.WasmtimeError as error:
        answer = _BAD + str(error).splitlines()[0][:1000].encode() if str(error) else _BAD
    view = memoryview(answer)
    while view:
        view = view[os.write(target, view[: 1 << 26]) :]


if __name__ == "__main__":
    main(sys.argv[1:])
