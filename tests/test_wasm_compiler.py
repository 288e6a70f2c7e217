"""Programs that take too much of the compiler end their own run and nothing else."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from gpuprover import folders, wasm_compiler, witness_program
from gpuprover.curves import BN254
from gpuprover.errors import MalformedFile, OutOfMemory, ProverError, Timeout
from gpuprover.job import Job
from gpuprover.limbs import words_to_ints
from gpuprover.witness import calculate_witness
from tests.test_witness import write_program

MAGIC = b"\0asm\1\0\0\0"


def leb(n: int) -> bytes:
    out = b""
    while n >= 0x80:
        out, n = out + bytes([n & 0x7F | 0x80]), n >> 7
    return out + bytes([n])


def module(body: bytes) -> bytes:
    """One function without parameters or results."""
    code = b"\0" + body + b"\x0b"
    sections = ((1, b"\1\x60\0\0"), (3, b"\1\0"), (10, b"\1" + leb(len(code)) + code))
    return MAGIC + b"".join(bytes([number]) + leb(len(part)) + part for number, part in sections)


def nested(depth: int) -> bytes:
    """Loops in each other: the compiler's time is the square of their number."""
    return module(b"\x03\x40" * depth + b"\x0b" * depth)


def straight(size: int) -> bytes:
    """One long function: some 250 bytes of memory for each byte."""
    return module(b"\x41\0\x1a" * (size // 3))


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The processes that were started, nothing being kept of compiled code."""
    started: list[Any] = []
    spawn = wasm_compiler.spawn

    def recorded(*arguments: Any, **options: Any) -> Any:
        started.append(spawn(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(wasm_compiler, "spawn", recorded)
    monkeypatch.setattr(witness_program.PROGRAMS, "read_signed", lambda file: None)
    monkeypatch.setattr(witness_program.PROGRAMS, "write_signed", lambda file, data: False)
    return started


def refused(path: Path, code: bytes, **options: Any) -> ProverError:
    path.write_bytes(code)
    with pytest.raises(ProverError) as caught:
        calculate_witness(path, {"a": [1, 2]}, **options)
    assert caught.value.path == (
        None if isinstance(caught.value, Timeout) and "job" in options else str(path)
    )
    return caught.value


def test_a_witness_of_a_program_that_was_compiled_apart(
    tmp_path: Path, children: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_program(tmp_path / "c.wasm", BN254)
    expected = calculate_witness(path, {"a": [1, 2]})[1]
    assert children == []
    monkeypatch.setattr(wasm_compiler, "SMALL", 0)
    found = calculate_witness(path, {"a": [1, 2]})[1]
    assert words_to_ints(found) == words_to_ints(expected)
    assert len(children) == 2  # the program, and what moves its values
    assert [child.status for child in children] == [0, 0]


def test_large_programs_are_kept() -> None:
    """Those of heavy circuits are larger than any other file of compiled code."""
    store = folders.Store(f"test-{os.getpid()}", largest=folders.LARGEST + (1 << 20))
    data = bytes(folders.LARGEST + 1)
    try:
        assert store.write_signed("large", data)
        assert store.read_signed("large") == data
        assert folders.Store(store.name).read_signed("large") is None
    finally:
        store.remove("large")
        if store.folder is not None:
            store.folder.rmdir()
    assert witness_program.PROGRAMS._largest >= witness_program.KEPT_BYTES > folders.LARGEST


def test_a_compilation_ends_with_its_job(tmp_path: Path, children: list[Any]) -> None:
    began = time.monotonic()
    error = refused(tmp_path / "c.wasm", nested(100_000), job=Job(timeout=2.0))
    assert isinstance(error, Timeout)
    assert time.monotonic() - began < 60
    end = time.monotonic() + 60
    while not children[0].ended():
        assert time.monotonic() < end, "the compiler goes on"
        time.sleep(0.05)


def test_a_compilation_has_a_limit_of_its_own(
    tmp_path: Path, children: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wasm_compiler, "CPU_SECONDS", 1)
    monkeypatch.setattr(wasm_compiler, "OWN_BYTES", 8 << 30)
    assert isinstance(refused(tmp_path / "c.wasm", nested(100_000)), Timeout)


def test_memory_that_a_compilation_does_not_get(
    tmp_path: Path, children: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wasm_compiler, "OWN_BYTES", 300 << 20)
    error = refused(tmp_path / "c.wasm", straight(3 << 20), memory_limit=1)
    assert isinstance(error, OutOfMemory)
    assert len(children) == 1


def test_what_is_no_program_is_said_by_whoever_compiles_it(tmp_path: Path, children: list[Any]) -> None:
    error = refused(tmp_path / "c.wasm", MAGIC + b"\xff" * (1 << 15))
    assert isinstance(error, MalformedFile)
    assert "no valid WebAssembly" in error.message
    error = refused(tmp_path / "c.wasm", straight(1 << 15))  # a program, and none of circom's
    assert isinstance(error, MalformedFile)
    assert "not a witness calculator" in error.message
    assert len(children) == 2
