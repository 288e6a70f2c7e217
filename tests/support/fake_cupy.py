"""Stands in for the parts of CuPy, and of NVML, that the package uses; names and signatures are CuPy's.

Work of streams is done when a :class:`Schedule` says so, within what streams and events promise: as late as
it can be, each kind of stream before the other, or at random. Memory that is used again too soon, or a
missing wait, shows in the data of one of them. A copy or a kernel is done whole: what two of them do to each
other while both run does not show. Memory is the host's. A module is bytes that name a program; kernels are
what tests/support/emulator.py builds.

tests/cuda/test_cupy_device.py compares the names with the real CuPy, where that is installed.
"""

from __future__ import annotations

import ctypes
import random
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpuprover.cuda.device import OnStream, Program
from tests.support import emulator

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


class Schedule(Enum):
    """When a stream does what it was asked for."""

    LATE = "nothing before somebody waits for it"
    SIDES_FIRST = "side streams at once, the main one late"
    MAIN_FIRST = "the main stream at once, side streams late"
    RANDOM = "a few things of any stream, now and then"


@dataclass(eq=False)
class Event:
    """A place in a stream, once it has been recorded; done when the stream has come to it."""

    done: bool = True
    stream: Stream | None = None
    time: float = 0.0


@dataclass
class Work:
    """What a stream does next, the event that it waits for before, and whether that is a kernel or a copy."""

    do: Callable[[], object]
    needs: Event | None = None
    real: bool = False

    @property
    def ready(self) -> bool:
        return self.needs is None or self.needs.done


@dataclass(eq=False)
class Stream:
    """Work in order; ``main`` are the first stream of a device, and those that :class:`Told` tells of."""

    main: bool
    eager: float = 0
    work: deque[Work] = field(default_factory=deque)

    def step(self) -> bool:
        """Does the first thing, if it can be done now."""
        if not self.work or not self.work[0].ready:
            return False
        self.work.popleft().do()
        return True

    def force(self, until: Event | None = None) -> None:
        """Does all, or what stands before an event; others are made to do what that waits for."""
        while self.work and not (until is not None and until.done):
            needs = self.work[0].needs
            if needs is not None and not needs.done:
                assert needs.stream is not None
                needs.stream.force(needs)
            assert self.step(), "the stream waits for work that nobody asked for"


@dataclass
class Gpu:
    """One device of a machine."""

    model: str = "NVIDIA H200"
    capability: tuple[int, int] = (9, 0)
    memory: int = 1 << 30
    compute_mode: int = 0
    bus: str = ""


class Machine:
    """The GPUs, and all that was asked of them.

    Attributes:
        used: bytes allocated, and ``pinned`` on the host.
        pinnable: bytes of the host that can be pinned.
        timed: events that were made for their times.
        lost: every call fails from now on.
        threads: whether several ask at once, so that one adds to the work that another has waited for.
        lazy: a query finds unfinished work this many times before it gets done.
        calls: how often each function was called.
        beside: kernels and copies that side streams were asked for.
        together: main streams that had kernels or copies before them at the same time.
    """

    def __init__(self, *gpus: Gpu, schedule: Schedule = Schedule.LATE, seed: int = 0) -> None:
        self.gpus = list(gpus) or [Gpu()]
        self.schedule, self._rng = schedule, random.Random(seed)
        self.calls: Counter[str] = Counter()
        self.beside: Counter[str] = Counter()
        self.used = self.pinned = self.timed = self.together = 0
        self.lost = self.threads = False
        self.lazy = 1
        self.pinnable = 1 << 40
        self._patience, self._handle = 0, 1000
        self._started: frozenset[int] = frozenset()
        self._lock = threading.RLock()
        self.current = 0
        self.handles: dict[int, Any] = {}
        self.blocks: dict[int, Any] = {}
        self.launches: list[tuple[str, int, int, int]] = []
        self.attributes: list[tuple[int, int, int]] = []
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

    def _checked(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            with self._lock:
                self.calls[name] += 1
                if self.lost:
                    raise CUDARuntimeError(STICKY)
                return function(*arguments)

        return call

    def _new(self, thing: Any) -> int:
        self._handle += 8
        self.handles[self._handle] = thing
        return self._handle

    def _query(self, handle: int) -> int:
        with self._lock:
            if self.lost:
                return STICKY
            self._advance()
            thing = self.handles[handle]
            if not thing.work if isinstance(thing, Stream) else thing.done:
                return 0
            self._patience += 1
            if self._patience > self.lazy:
                self._patience = 0
                if isinstance(thing, Stream):
                    thing.force()
                else:
                    thing.stream.force(thing)
            return 600

    def _advance(self) -> None:
        """Does what the schedule has done by now."""
        streams = self._streams()
        if self.schedule is Schedule.RANDOM:
            # Each stream has its moods, and keeps one for a while.
            for stream in self._rng.sample(streams, len(streams)):
                if self._rng.random() < 0.1:
                    stream.eager = self._rng.choice((0, 0, 0.3, 0.6, 1))
                while self._rng.random() < stream.eager and stream.step():
                    pass
        elif self.schedule is not Schedule.LATE:
            first = [s for s in streams if s.main is (self.schedule is Schedule.MAIN_FIRST)]
            while sum(stream.step() for stream in first):
                pass

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
            # CUDA waits for all work by itself, where Ctrl-C does not reach it; nobody here relies on that.
            busy = any(stream.work for stream in self._streams())
            assert not busy or self.threads, "freed under work that is not done"
            for stream in self._streams():
                stream.force()
            self.used -= self.blocks.pop(address)[1]

        def host_alloc(size: int, flags: int) -> int:
            if self.pinned + size > self.pinnable:
                raise CUDARuntimeError(2)
            block = np.full(size, 0xA5, dtype=np.uint8)
            self.blocks[block.ctypes.data] = block, size
            self.pinned += size
            return int(block.ctypes.data)

        def free_host(address: int) -> None:
            self.pinned -= self.blocks.pop(address)[1]

        def memcpy(to: int, start: int, size: int, kind: int, stream: int) -> None:
            self._later(stream, f"copy {kind}", lambda: ctypes.memmove(to, start, size))

        def memset(to: int, value: int, size: int, stream: int) -> None:
            self._later(stream, "fill", lambda: ctypes.memset(to, value, size))

        def new_stream(flags: int) -> int:
            first, self._started = self.current not in self._started, self._started | {self.current}
            return self._new(Stream(first))

        def new_event(*flags: int) -> int:
            self.timed += not flags
            return self._new(Event())

        def record(event: int, stream: int) -> None:
            # Who waits for the event as it was recorded before does not wait for this.
            one = self.handles[event] = Event(False, self.handles[stream])

            def happen() -> None:
                one.done, one.time = True, time.perf_counter()

            self._later(stream, None, happen)

        def stream_wait(stream: int, event: int, flags: int = 0) -> None:
            self.handles[stream].work.append(Work(lambda: None, self.handles[event]))
            self._advance()

        def elapsed(start: int, end: int) -> float:
            if not (self.handles[start].done and self.handles[end].done):
                raise CUDARuntimeError(600)
            return 1e3 * (self.handles[end].time - self.handles[start].time)

        def check_status(status: int) -> None:
            if status:
                raise CUDARuntimeError(status)

        checked = {
            "getDevice": lambda: self.current,
            "setDevice": set_device,
            "getDeviceCount": device_count,
            "getDeviceProperties": properties,
            "deviceGetPCIBusId": lambda index: self.gpus[index].bus or f"0000:0{index}:00.0",
            "memGetInfo": lambda: (
                self.gpus[self.current].memory - self.used,
                self.gpus[self.current].memory,
            ),
            "malloc": malloc,
            "free": free,
            "hostAlloc": host_alloc,
            "freeHost": free_host,
            "memcpyAsync": memcpy,
            "memsetAsync": memset,
            "streamCreateWithFlags": new_stream,
            "streamWaitEvent": stream_wait,
            "eventCreate": new_event,
            "eventCreateWithFlags": new_event,
            "eventRecord": record,
            "eventDestroy": lambda event: self.handles.pop(event) and None,
            "eventElapsedTime": elapsed,
        }
        return SimpleNamespace(
            **{name: self._checked(name, function) for name, function in checked.items()},
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

    def _later(self, stream: int, what: str | None, work: Callable[[], object]) -> None:
        one = self.handles[stream]
        if what is not None and not one.main:
            self.beside[what] += 1
        one.work.append(Work(work, real=what not in (None, "fill")))
        self.together = max(self.together, self.busy)
        self._advance()

    @property
    def busy(self) -> int:
        """Main streams that have kernels or copies before them."""
        return sum(s.main and any(w.real for w in s.work) for s in self._streams())

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

            self._later(stream, name, run)

        checked = {
            "moduleLoadData": load,
            "moduleGetFunction": function,
            "launchKernel": launch,
            "funcSetAttribute": lambda f, attribute, value: self.attributes.append((f, attribute, value)),
            "occupancyMaxActiveBlocksPerMultiprocessor": lambda f, threads, shared: 2048 // threads,
        }
        return SimpleNamespace(
            **{name: self._checked(name, function) for name, function in checked.items()},
            CUDADriverError=CUDADriverError,
            CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8,
            CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT=9,
        )

    def _allowed(self, function: int) -> int:
        asked = (value for f, attribute, value in self.attributes if (f, attribute) == (function, 8))
        # A little less than CUDA's 48 KiB: what it reserves in each block counts, too.
        return max([47 << 10, *asked])


class Told(OnStream):
    """Tells the machine of a :class:`CupyDevice`, its attribute ``machine``, which streams are main ones."""

    def __init__(self, device: Any, main: Any) -> None:
        super().__init__(device, main)
        device.machine.handles[device._streams[main]].main = True


PROGRAMS: dict[bytes, Program] = {}
"""What stands for a cubin -> its program."""


def fake_cubin(program: Program) -> bytes:
    """In place of compiling it."""
    image = repr(program).encode()
    PROGRAMS[image] = program
    return image
