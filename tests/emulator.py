"""A device whose kernels run on the host: kernels/ with a C++ compiler and tests/kernels/emulator.hpp.

It implements :class:`gpuprover.cuda.device.Device`, so that everything above it runs as on a GPU: the
backend, whole proofs, and what happens when memory ends or the device fails. What it cannot show: races as
such, speed, and how NVIDIA's compiler reads the sources.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gpuprover.cuda.device import MAIN, Address, Mark, Program, Properties, Stream
from gpuprover.cuda.source import sources
from gpuprover.errors import DeviceError, OutOfMemory

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ROOT / ".cache" / "emulator"
"""Compiled kernels, named by a hash of all that went into them."""
ALIGNMENT = 256
GUARD = 256
"""Bytes before and after every allocation that no kernel may touch."""
GARBAGE = 0xA5


@cache
def compiler() -> str | None:
    return next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


@cache
def library(program: Program) -> ctypes.CDLL:
    """The program built for the host; skips the test where there is no C++ compiler."""
    tool = compiler()
    if tool is None:
        pytest.skip("there is no C++ compiler for the host build of the kernels")
    prelude = (ROOT / "tests/kernels/emulator.hpp").read_text()
    texts = {**sources(program.curve), "emulator.hpp": prelude}
    flags = [
        "-x",
        "c++",
        "-std=c++17",
        "-O2",
        "-g0",
        "-fPIC",
        "-shared",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-unknown-pragmas",
    ]
    flags += ["-Wno-unused-function", "-Wno-cast-function-type", "-fno-gnu-unique"]
    flags += [f"-D{name}={value}" for name, value in program.defines]
    digest = hashlib.sha256(repr((program.source, sorted(texts.items()), flags)).encode()).hexdigest()[:24]
    target = LIBRARIES / f"{Path(program.source).stem}-{program.curve.name}-{digest}.so"
    if not target.exists():
        folder = LIBRARIES / f"{digest}.{os.getpid()}"
        folder.mkdir(parents=True)
        try:
            for name, text in texts.items():
                (folder / name).write_text(text)
            command = [
                tool,
                *flags,
                f"-I{folder}",
                "-include",
                folder / "emulator.hpp",
                folder / program.source,
            ]
            # One definition of the carry flag and of the emulator's state in every library.
            command += ["-fvisibility=default", "-Wl,-Bsymbolic", "-o", folder / "kernels.so"]
            done = subprocess.run(["nice", *command], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            (folder / "kernels.so").replace(target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return ctypes.CDLL(str(target), mode=os.RTLD_LOCAL | os.RTLD_NOW)


@dataclass
class Faults:
    """What goes wrong, counted over the life of a device; None for never.

    Attributes:
        allocation: this allocation, counted from 1, finds no memory.
        launch: this launch fails, and the device with it.
        refused: this launch fails, and others go on.
        lost: after this many calls of any kind, every call fails.
    """

    allocation: int | None = None
    launch: int | None = None
    refused: int | None = None
    lost: int | None = None


@dataclass
class EmulatedDevice:
    """See :class:`gpuprover.cuda.device.Device`.

    Attributes:
        memory: bytes that may be allocated at once.
        reversed: threads and blocks are taken from the last to the first.
    """

    name: str = "cuda:0"
    memory: int = 1 << 30
    reversed: bool = False
    faults: Faults = field(default_factory=Faults)

    def __post_init__(self) -> None:
        self.properties = Properties(
            name="emulated",
            architecture="sm_90",
            multiprocessors=4,
            threads=2048,
            shared=227 << 10,
            memory=self.memory,
        )
        self.used = self.peak = 0
        self.calls = self.allocations = self.launches = 0
        self.kernels: list[str] = []
        self._blocks: dict[int, tuple[NDArray[np.uint8], int]] = {}
        self._streams = 1
        self._dead = False
        self._lock = threading.RLock()

    @property
    def lost(self) -> bool:
        return self._dead

    def _call(self) -> None:
        self.calls += 1
        if self.faults.lost is not None and self.calls > self.faults.lost:
            self._dead = True
        if self._dead:
            raise DeviceError(f"{self.name}: the device is lost")

    # Memory --------------------------------------------------------------------------

    def free_memory(self) -> int:
        with self._lock:
            self._call()
            return self.memory - self.used

    def allocate(self, size: int) -> Address:
        with self._lock:
            self._call()
            self.allocations += 1
            assert size > 0
            if self.allocations == self.faults.allocation or self.used + size > self.memory:
                raise OutOfMemory(f"{self.name}: no room for {size} bytes beside {self.used}")
            block = np.full(size + 2 * GUARD + ALIGNMENT, GARBAGE, dtype=np.uint8)
            start = block.ctypes.data + GUARD
            start += -start % ALIGNMENT
            self._blocks[start] = block, size
            self.used += size
            self.peak = max(self.peak, self.used)
            return Address(start)

    def release(self, address: Address) -> None:
        with self._lock:
            block, size = self._blocks.pop(address)
            self.used -= size
            self._check(block, address, size)

    def _check(self, block: NDArray[np.uint8], address: int, size: int) -> None:
        first = address - block.ctypes.data
        assert (block[:first] == GARBAGE).all(), "a kernel wrote before the start of its memory"
        assert (block[first + size :] == GARBAGE).all(), "a kernel wrote past the end of its memory"

    def _inside(self, address: int, size: int) -> None:
        assert any(
            start <= address and address + size <= start + length
            for start, (_, length) in self._blocks.items()
        ), "a copy reaches outside of the device's memory"

    def write(self, to: int, data: NDArray[Any], stream: Stream = MAIN) -> None:
        with self._lock:
            self._call()
            assert data.flags.c_contiguous
            if data.nbytes:
                self._inside(to, data.nbytes)
                ctypes.memmove(to, data.ctypes.data, data.nbytes)

    def read(self, data: NDArray[Any], start: int, stream: Stream = MAIN) -> None:
        with self._lock:
            self._call()
            assert data.flags.c_contiguous
            if data.nbytes:
                self._inside(start, data.nbytes)
                ctypes.memmove(data.ctypes.data, start, data.nbytes)

    def fill(self, to: int, byte: int, size: int, stream: Stream = MAIN) -> None:
        with self._lock:
            self._call()
            if size:
                self._inside(to, size)
                ctypes.memset(to, byte, size)

    def copy(self, to: int, start: int, size: int, stream: Stream = MAIN) -> None:
        with self._lock:
            self._call()
            if size:
                self._inside(start, size)
                self._inside(to, size)
                assert abs(to - start) >= size, "the ranges overlap"
                ctypes.memmove(to, start, size)

    # Work -----------------------------------------------------------------------------

    def launch(
        self,
        program: Program,
        kernel: str,
        blocks: int,
        threads: int,
        *arguments: int,
        shared: int = 0,
        stream: Stream = MAIN,
    ) -> None:
        with self._lock:
            self._call()
            self.launches += 1
            if self.launches == self.faults.launch:
                self._dead = True
                raise DeviceError(f"{self.name}: launch of {kernel} failed")
            if self.launches == self.faults.refused:
                raise DeviceError(f"{self.name}: launch of {kernel} failed")
            assert 0 < blocks < 1 << 31
            assert 0 < threads <= 1024
            assert 0 <= shared <= self.properties.shared
            assert 0 <= stream < self._streams
            built = library(program)
            words = (ctypes.c_uint64 * len(arguments))(*(int(a) % (1 << 64) for a in arguments))
            emulate = built.emulate
            emulate.restype = ctypes.c_int
            function = ctypes.cast(getattr(built, kernel), ctypes.c_void_p)
            outcome = emulate(
                function, words, len(arguments), ctypes.c_uint(blocks), ctypes.c_uint(threads),
                ctypes.c_size_t(shared), ctypes.c_int(self.reversed),
            )  # fmt: skip
            assert outcome == 0, (
                f"{kernel}: {('', 'some threads wait at a barrier for ever', 'bad launch')[outcome]}"
            )
            self.kernels.append(kernel)
            for address, (block, size) in self._blocks.items():
                self._check(block, address, size)

    def resident_blocks(self, program: Program, kernel: str, threads: int, shared: int = 0) -> int:
        return max(1, min(self.properties.threads // threads, self.properties.shared // max(1, shared)))

    def prepare(self, programs: Sequence[Program], check: Callable[[], None] = lambda: None) -> None:
        for program in programs:
            check()
            library(program)

    def new_stream(self) -> Stream:
        with self._lock:
            self._call()
            self._streams += 1
            return Stream(self._streams - 1)

    def wait(self, stream: Stream, other: Stream) -> None:
        with self._lock:
            self._call()
            assert 0 <= max(stream, other) < self._streams

    def mark(self, stream: Stream = MAIN) -> Mark:
        with self._lock:
            self._call()
            moment = Mark()
            moment.time = time.perf_counter()  # type: ignore[attr-defined]
            return moment

    def seconds(self, start: Mark, end: Mark) -> float:
        with self._lock:
            self._call()
            return end.time - start.time  # type: ignore[attr-defined,no-any-return]

    def synchronize(self) -> None:
        with self._lock:
            self._call()

    def describe(self) -> Mapping[str, Any]:
        return {"name": self.properties.name, "architecture": self.properties.architecture}
