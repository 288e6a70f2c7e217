"""A device whose kernels run on the host: kernels/ with a C++ compiler and tests/kernels/emulator.hpp.

It implements :class:`gpuprover.cuda.device.Device`, so that everything above it runs as on a GPU: the
backend, whole proofs, and what happens when memory ends or the device fails. :class:`WatchedDevice` shows
races besides. What neither can show: speed, and how NVIDIA's compiler reads the sources.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import random
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

from gpuprover.cuda.device import MAIN, Address, Launch, Mark, Program, Properties, Stream, launch_each
from gpuprover.cuda.source import sources
from gpuprover.errors import DeviceError, OutOfMemory
from tests.support.paths import ROOT

LIBRARIES = ROOT / ".cache" / "emulator"
"""Compiled kernels, named by a hash of all that went into them."""
ALIGNMENT = 256
GUARD = 256
"""Bytes before and after every allocation that no kernel may touch."""
GARBAGE = 0xA5


@cache
def compiler() -> str | None:
    return next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


def _built(
    stem: str, texts: Mapping[str, str], source: str, flags: Sequence[str], linked: Sequence[Path] = ()
) -> Path:
    """A shared library of ``source``, one of the ``texts``, that is kept; skips without a C++ compiler."""
    tool = compiler()
    if tool is None:
        pytest.skip("there is no C++ compiler for the host build of the kernels")
    every = ["-std=c++17", "-O2", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    every += ["-Wno-unused-function", "-Wno-cast-function-type", "-fno-gnu-unique", "-fvisibility=default"]
    parts = (source, sorted(texts.items()), every, flags, linked)
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:24]
    target = LIBRARIES / f"{stem}-{digest}.so"
    if not target.exists():
        folder = LIBRARIES / f"{digest}.{os.getpid()}"
        folder.mkdir(parents=True)
        try:
            for name, text in texts.items():
                (folder / name).write_text(text)
            for command in (
                [*every, *flags, "-c", "-I.", "-o", "built.o", "-x", "c++", source],
                # By itself, or a sanitizer's run-time would be linked. One definition of the carry flag and
                # of the emulator's state in every library.
                ["-shared", "-Wl,-Bsymbolic", "-o", "built.so", "built.o", *linked],
            ):
                done = subprocess.run(["nice", tool, *command], capture_output=True, text=True, cwd=folder)
                assert done.returncode == 0, done.stderr
            (folder / "built.so").replace(target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return target


def _texts(*names: str) -> dict[str, str]:
    return {name: (ROOT / "tests/kernels" / name).read_text() for name in names}


@cache
def watcher() -> Path:
    """The library that watched programs call at every access to memory."""
    return _built("watch", _texts("watch.hpp", "watch.cpp"), "watch.cpp", ["-DWATCHED"])


@cache
def library(program: Program, watched: bool = False) -> ctypes.CDLL:
    """The program built for the host; skips the test where there is no C++ compiler."""
    flags = ["-include", "emulator.hpp", *(f"-D{k}={v}" for k, v in program.defines)]
    # Loops stay as they are: nobody would see what memset and memcpy do in their place.
    flags += (
        ["-DWATCHED", "-fsanitize=thread", "-g1", "-fno-tree-loop-distribute-patterns"]
        if watched
        else ["-g0"]
    )
    texts = {**sources(program.curve), **_texts("emulator.hpp", "watch.hpp")}
    stem = f"{Path(program.source).stem}-{program.curve.name}"
    path = _built(stem, texts, program.source, flags, [watcher()] if watched else [])
    return ctypes.CDLL(str(path), mode=os.RTLD_LOCAL | os.RTLD_NOW)


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
            block = self._room(size + 2 * GUARD + ALIGNMENT)
            block[:] = GARBAGE
            start = block.ctypes.data + GUARD
            start += -start % ALIGNMENT
            self._blocks[start] = block, size
            self.used += size
            self.peak = max(self.peak, self.used)
            return Address(start)

    def _room(self, size: int) -> NDArray[np.uint8]:
        return np.empty(size, np.uint8)

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

    def pinned(self, size: int) -> NDArray[np.uint8] | None:
        return None

    def is_pinned(self, data: NDArray[Any]) -> bool:
        return False

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
            built = self._library(program)
            words = (ctypes.c_uint64 * len(arguments))(*(int(a) % (1 << 64) for a in arguments))
            emulate = built.emulate
            emulate.restype = ctypes.c_int
            function = ctypes.cast(getattr(built, kernel), ctypes.c_void_p)
            outcome = emulate(
                function, words, len(arguments), ctypes.c_uint(blocks), ctypes.c_uint(threads),
                ctypes.c_size_t(shared), ctypes.c_uint64(self._order()),
            )  # fmt: skip
            assert outcome == 0, (
                f"{kernel}: {('', 'some threads wait at a barrier for ever', 'bad launch')[outcome]}"
            )
            self.kernels.append(kernel)
            for address, (block, size) in self._blocks.items():
                self._check(block, address, size)

    def run(
        self,
        launches: Sequence[Launch],
        beginnings: Sequence[int],
        stream: Stream = MAIN,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        launch_each(self, launches, beginnings, stream, check)

    def _library(self, program: Program) -> ctypes.CDLL:
        return library(program)

    def _order(self) -> int:
        """As in tests/kernels/emulator.hpp."""
        return int(self.reversed)

    def resident_blocks(self, program: Program, kernel: str, threads: int, shared: int = 0) -> int:
        return max(1, min(self.properties.threads // threads, self.properties.shared // max(1, shared)))

    def prepare(self, programs: Sequence[Program], check: Callable[[], None] = lambda: None) -> None:
        for program in programs:
            check()
            self._library(program)

    def new_stream(self) -> Stream:
        with self._lock:
            self._call()
            self._streams += 1
            return Stream(self._streams - 1)

    def wait(self, stream: Stream, other: Stream | Mark) -> None:
        with self._lock:
            self._call()
            assert 0 <= stream < self._streams
            assert isinstance(other, Mark) or 0 <= other < self._streams

    def mark(self, stream: Stream = MAIN) -> Mark:
        with self._lock:
            self._call()
            moment = Mark()
            moment.time = time.perf_counter()  # type: ignore[attr-defined]
            return moment

    def reached(self, mark: Mark) -> bool:
        with self._lock:
            self._call()
            return True

    def seconds(self, start: Mark, end: Mark) -> float:
        with self._lock:
            self._call()
            return end.time - start.time  # type: ignore[attr-defined,no-any-return]

    def synchronize(self) -> None:
        with self._lock:
            self._call()

    def describe(self) -> Mapping[str, Any]:
        return {"name": self.properties.name, "architecture": self.properties.architecture}


class _Report(ctypes.Structure):
    """As in tests/kernels/watch.cpp."""

    _fields_ = (
        ("fault", ctypes.c_uint),
        ("shared", ctypes.c_uint),
        ("kind", ctypes.c_uint * 2),
        ("block", ctypes.c_uint * 2),
        ("thread", ctypes.c_uint * 2),
        ("place", ctypes.c_uint64 * 2),
    )


MOST_REPORTS = 64
KINDS = ("read", "write", "atomic")
RACE, UNWRITTEN, OUTSIDE = range(3)
NO_MEMORY, NEVER_WRITTEN, WRITTEN = range(3)
SEVERAL = (1 << 32) - 1


@dataclass
class WatchedDevice(EmulatedDevice):
    """Fails at a launch whose kernel has a race, reads what nobody wrote, or leaves its memory.

    See tests/kernels/watch.cpp. Only the latest such device may be used. Its memory is never used again.

    Attributes:
        memory: bytes that may be allocated in all.
        strict: a shuffle or a vote orders no accesses to memory.
        seed: of a random order of threads and blocks in every launch; None: ``reversed`` decides.
    """

    memory: int = 1 << 28
    strict: bool = True
    seed: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._watch = ctypes.CDLL(str(watcher()))
        self._arena: NDArray[np.uint8] = np.empty(self.memory, np.uint8)
        self._end = 0
        self._chance = random.Random(self.seed)
        start = ctypes.c_uint64(self._arena.ctypes.data)
        self._watch.watch_memory(start, ctypes.c_size_t(self.memory), ctypes.c_int(self.strict))

    def _set(self, start: int, size: int, state: int) -> None:
        self._watch.watch_set(ctypes.c_uint64(start), ctypes.c_size_t(size), ctypes.c_uint(state))

    def _room(self, size: int) -> NDArray[np.uint8]:
        start, self._end = self._end, self._end + size + size % 2
        assert self._end <= self.memory, "a watched device uses no memory twice; give it more"
        return self._arena[start : self._end]

    def allocate(self, size: int) -> Address:
        with self._lock:
            address = super().allocate(size)
            self._set(address, size, NEVER_WRITTEN)
            return address

    def release(self, address: Address) -> None:
        with self._lock:
            self._set(address, self._blocks[address][1], NO_MEMORY)
            super().release(address)

    def write(self, to: int, data: NDArray[Any], stream: Stream = MAIN) -> None:
        with self._lock:
            super().write(to, data, stream)
            self._set(to, data.nbytes, WRITTEN)

    def read(self, data: NDArray[Any], start: int, stream: Stream = MAIN) -> None:
        with self._lock:
            super().read(data, start, stream)
            size = ctypes.c_size_t(data.nbytes)
            assert self._watch.watch_written(ctypes.c_uint64(start), size), "the host reads what nobody wrote"

    def fill(self, to: int, byte: int, size: int, stream: Stream = MAIN) -> None:
        with self._lock:
            super().fill(to, byte, size, stream)
            self._set(to, size, WRITTEN)

    def copy(self, to: int, start: int, size: int, stream: Stream = MAIN) -> None:
        with self._lock:
            super().copy(to, start, size, stream)
            self._watch.watch_copy(ctypes.c_uint64(to), ctypes.c_uint64(start), ctypes.c_size_t(size))

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
            super().launch(program, kernel, blocks, threads, *arguments, shared=shared, stream=stream)
            reports = (_Report * MOST_REPORTS)()
            count = self._watch.watch_take(reports)
            found = [_told(self._library(program), report) for report in reports[:count]]
            assert not found, "\n".join([f"{kernel}: {len(found)} found", *found])

    def _library(self, program: Program) -> ctypes.CDLL:
        return library(program, watched=True)

    def _order(self) -> int:
        return super()._order() if self.seed is None else self._chance.randrange(2, 1 << 64)


def _told(built: ctypes.CDLL, report: _Report) -> str:
    """A report in a line: what, where in the sources, by whom."""
    memory = "shared" if report.shared else "global"
    accesses = []
    for i in range(2):
        thread = "several threads" if report.thread[i] == SEVERAL else f"thread {report.thread[i]}"
        at = _line(built, report.place[i])
        accesses.append(f"{KINDS[report.kind[i]]} by {thread} of block {report.block[i]} at {at}")
    if report.fault == RACE:
        return f"race in {memory} memory: {accesses[0]}; {accesses[1]}"
    what = "memory that nobody wrote" if report.fault == UNWRITTEN else "outside of all allocations"
    return f"{memory}, {what}: {accesses[1]}"


def _line(built: ctypes.CDLL, place: int) -> str:
    """Where a return address lies: ``points.cuh:30 in msm.cu:62``, the inner line first."""
    with open("/proc/self/maps") as maps:
        start = min(int(line.split("-", 1)[0], 16) for line in maps if line.rstrip().endswith(built._name))
    tool = shutil.which("addr2line")
    if tool is None:
        return f"{place - start:#x}"
    command = [tool, "-i", "-e", built._name, f"{place - 1 - start:#x}"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    return " in ".join(Path(line.split(" ", 1)[0]).name for line in lines if line)
