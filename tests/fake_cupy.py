"""Stands in for the parts of CuPy, and of NVML, that the package uses; names and signatures are CuPy's.

Work of streams is put off until somebody waits for it or asks: what a device may do as late as it likes
happens as late as it can, so that memory that is used again too soon, or a missing wait, shows in the data.
Memory is the host's. A module is bytes that name a program; kernels are what tests/emulator.py builds.

tests/test_cuda_device.py compares the names with the real CuPy, where that is installed.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import emulator
from gpuprover.cuda.device import Program

STICKY = 700
MESSAGES = {
    2: "cudaErrorMemoryAllocation: out of memory",
    35: "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version",
    100: "cudaErrorNoDevice: no CUDA-capable device is detected",
    101: "cudaErrorInvalidDevice: invalid device ordinal",
    STICKY: "cudaErrorIllegalAddress: an illegal memory access was encountered",
}


class CUDARuntimeError(RuntimeError):
    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(MESSAGES.get(status, f"cudaError{status}: unknown"))


class CUDADriverError(CUDARuntimeError):
    pass


@dataclass
class Stream:
    """Work that is put off: each entry says whether it could be done."""

    work: deque[Callable[[], bool]] = field(default_factory=deque)

    def run(self) -> bool:
        """Does what can be done now; whether that was all."""
        while self.work and self.work[0]():
            self.work.popleft()
        return not self.work


@dataclass
class Event:
    """Done once its stream has come to it; the first query of each finds it not ready."""

    done: bool = True
    stream: Stream | None = None


@dataclass
class Gpu:
    """One device of a machine."""

    model: str = "NVIDIA H200"
    capability: tuple[int, int] = (9, 0)
    memory: int = 1 << 30
    compute_mode: int = 0


class Machine:
    """The GPUs, and all that was asked of them.

    Attributes:
        used: bytes allocated, and pinned on the host.
        lost: every call fails from now on.
        lazy: a query finds unfinished work this many times before it gets done.
    """

    def __init__(self, *gpus: Gpu) -> None:
        self.gpus = list(gpus) or [Gpu()]
        self.used = self.pinned = 0
        self.lost = False
        self.lazy = 1
        self._patience = 0
        self._lock = threading.RLock()
        self.current = 0
        self.handles: dict[int, Any] = {}
        self.blocks: dict[int, Any] = {}
        self.launches: list[tuple[str, int, int, int]] = []
        self.attributes: list[tuple[int, int]] = []
        self.runtime = self._runtime()
        self.driver = self._driver()

    def install(self, monkeypatch: pytest.MonkeyPatch, version: int = 13000) -> None:
        """Puts itself in the place of ``cupy``, with a driver for the given CUDA."""
        cupy, cuda = ModuleType("cupy"), ModuleType("cupy.cuda")
        cupy.__version__ = "14.2.0"  # type: ignore[attr-defined]
        cupy.cuda = cuda  # type: ignore[attr-defined]
        cuda.runtime, cuda.driver = self.runtime, self.driver  # type: ignore[attr-defined]
        for module in (cupy, cuda):
            monkeypatch.setitem(sys.modules, module.__name__, module)
        self.driver_version = version

    # What every call does ----------------------------------------------------------------

    def _checked(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            with self._lock:
                if self.lost:
                    raise CUDARuntimeError(STICKY)
                return function(*arguments)

        return call

    def _new(self, thing: Any) -> int:
        handle = 1000 + len(self.handles)
        self.handles[handle] = thing
        return handle

    def _query(self, handle: int) -> int:
        with self._lock:
            if self.lost:
                return STICKY
            thing = self.handles[handle]
            stream = thing if isinstance(thing, Stream) else thing.stream
            if not stream.work if isinstance(thing, Stream) else thing.done:
                return 0
            self._patience += 1
            if self._patience > self.lazy:
                self._patience = 0
                assert stream.run(), "the stream waits for work that nobody asked for"
            return 600

    # cupy.cuda.runtime -------------------------------------------------------------------------

    def _runtime(self) -> Any:
        def set_device(index: int) -> None:
            if index >= len(self.gpus):
                raise CUDARuntimeError(101)
            self.current = index

        def device_count() -> int:
            if not self.gpus:
                raise CUDARuntimeError(100)
            return len(self.gpus)

        def properties(index: int) -> dict[str, Any]:
            gpu = self.gpus[index]
            return {
                "name": gpu.model.encode(),
                "major": gpu.capability[0],
                "minor": gpu.capability[1],
                "computeMode": gpu.compute_mode,
                "totalGlobalMem": gpu.memory,
                "multiProcessorCount": 132,
                "maxThreadsPerMultiProcessor": 2048,
                "sharedMemPerBlockOptin": 227 << 10,
            }

        def malloc(size: int) -> int:
            if self.used + size > self.gpus[self.current].memory:
                raise CUDARuntimeError(2)
            block = np.full(size + 256, 0xA5, dtype=np.uint8)
            address = block.ctypes.data + -block.ctypes.data % 256
            self.blocks[address] = block, size
            self.used += size
            return address

        def free(address: int) -> None:
            assert not any(stream.work for stream in self._streams()), "freed under work that is not done"
            self.used -= self.blocks.pop(address)[1]

        def host_alloc(size: int, flags: int) -> int:
            block = np.full(size, 0xA5, dtype=np.uint8)
            self.blocks[block.ctypes.data] = block, size
            self.pinned += size
            return int(block.ctypes.data)

        def memcpy(to: int, start: int, size: int, kind: int, stream: int) -> None:
            self._later(stream, lambda: ctypes.memmove(to, start, size))

        def memset(to: int, value: int, size: int, stream: int) -> None:
            self._later(stream, lambda: ctypes.memset(to, value, size))

        def record(event: int, stream: int) -> None:
            one = self.handles[event] = Event(False, self.handles[stream])
            self._later(stream, lambda: setattr(one, "done", True))

        def stream_wait(stream: int, event: int, flags: int = 0) -> None:
            one = self.handles[event]

            def ready() -> bool:
                return one.done or (one.stream.run() and one.done)

            self.handles[stream].work.append(ready)

        def check_status(status: int) -> None:
            if status:
                raise CUDARuntimeError(status)

        checked = {
            "getDevice": lambda: self.current,
            "setDevice": set_device,
            "getDeviceCount": device_count,
            "getDeviceProperties": properties,
            "deviceGetPCIBusId": lambda index: f"0000:0{index}:00.0",
            "memGetInfo": lambda: (
                self.gpus[self.current].memory - self.used,
                self.gpus[self.current].memory,
            ),
            "malloc": malloc,
            "free": free,
            "hostAlloc": host_alloc,
            "memcpyAsync": memcpy,
            "memsetAsync": memset,
            "streamCreateWithFlags": lambda flags: self._new(Stream()),
            "streamWaitEvent": stream_wait,
            "eventCreateWithFlags": lambda flags: self._new(Event()),
            "eventRecord": record,
            "eventDestroy": lambda event: None,
        }
        return SimpleNamespace(
            **{name: self._checked(function) for name, function in checked.items()},
            CUDARuntimeError=CUDARuntimeError,
            check_status=check_status,
            driverGetVersion=lambda: self.driver_version,
            runtimeGetVersion=lambda: 13020,
            streamQuery=self._query,
            eventQuery=self._query,
            memcpyHostToDevice=1,
            memcpyDeviceToHost=2,
            memcpyDeviceToDevice=3,
            streamNonBlocking=1,
            eventDisableTiming=2,
            hostAllocPortable=1,
        )

    def _streams(self) -> list[Stream]:
        return [thing for thing in self.handles.values() if isinstance(thing, Stream)]

    def _later(self, stream: int, work: Callable[[], object]) -> None:
        def done() -> bool:
            work()
            return True

        self.handles[stream].work.append(done)

    # cupy.cuda.driver ----------------------------------------------------------------------------

    def _driver(self) -> Any:
        def load(image: bytes) -> int:
            if image not in PROGRAMS:
                raise CUDADriverError(200)
            return self._new(PROGRAMS[image])

        def function(module: int, name: str) -> int:
            library = emulator.library(self.handles[module])
            if not hasattr(library, name):
                raise CUDADriverError(500)
            return self._new((self.handles[module], name))

        def launch(
            f: int, gx: int, gy: int, gz: int, bx: int, by: int, bz: int,
            shared: int, stream: int, parameters: int, extra: int,
        ) -> None:  # fmt: skip
            program, name = self.handles[f]
            if not 0 < bx <= 1024 or not 0 < gx < 1 << 31 or shared > self._allowed(f):
                raise CUDADriverError(1)
            # As a driver does, the words are read now; how many there are it knows from the module.
            pointers = (ctypes.c_void_p * 16).from_address(parameters)
            words = (ctypes.c_uint64 * 16)(*(ctypes.c_uint64.from_address(p).value for p in pointers))
            library = emulator.library(program)
            address = ctypes.cast(getattr(library, name), ctypes.c_void_p)
            self.launches.append((name, gx, bx, shared))

            def run() -> None:
                outcome = library.emulate(
                    address, words, 16, ctypes.c_uint(gx), ctypes.c_uint(bx),
                    ctypes.c_size_t(shared), ctypes.c_int(0),
                )  # fmt: skip
                assert outcome == 0

            self._later(stream, run)

        checked = {
            "moduleLoadData": load,
            "moduleGetFunction": function,
            "launchKernel": launch,
            "funcSetAttribute": lambda f, attribute, value: self.attributes.append((f, value)),
            "occupancyMaxActiveBlocksPerMultiprocessor": lambda f, threads, shared: 2048 // threads,
        }
        return SimpleNamespace(
            **{name: self._checked(function) for name, function in checked.items()},
            CUDADriverError=CUDADriverError,
            CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8,
        )

    def _allowed(self, function: int) -> int:
        return max([48 << 10, *(value for f, value in self.attributes if f == function)])


PROGRAMS: dict[bytes, Program] = {}
"""What stands for a cubin -> its program."""


def fake_cubin(program: Program) -> bytes:
    """In place of compiling it."""
    image = repr(program).encode()
    PROGRAMS[image] = program
    return image
