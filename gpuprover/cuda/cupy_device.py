"""A GPU through CuPy's bindings of CUDA's runtime and driver.

Memory comes straight from ``cudaMalloc``: the backend keeps a pool of its own with a hard limit, and a pool
under it would hold what that one has given back. Streams do not wait for the process's default stream, nor it
for them. Kernels come as cubins from :mod:`gpuprover.cuda.compile`.

Nothing is created before the first :class:`CupyDevice`. Its methods may be called from any thread, and leave
the thread's current device as it was.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import wraps
from operator import add
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from gpuprover.cuda import probe, source
from gpuprover.cuda.build import build
from gpuprover.cuda.compile import find_cubin, find_nvrtc, load_cubin, program_name, store
from gpuprover.cuda.device import MAIN, Address, Launch, Mark, Program, Properties, Stream
from gpuprover.cuda.pinned import PinnedPool
from gpuprover.errors import DeviceError, OutOfMemory
from gpuprover.limbs import address
from gpuprover.machine import available_cpus

P = ParamSpec("P")
R = TypeVar("R")

OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation and CUDA_ERROR_OUT_OF_MEMORY
NOT_READY = 600  # cudaErrorNotReady
STATIC_SHARED = 40 << 10
"""Bytes of dynamic shared memory that a kernel gets without asking: what the system reserves in a block, and
what the kernel itself declares, count towards the 48 KiB that CUDA has for that."""
ALL_SHARED = 100
"""Percent of a multiprocessor's cache, for kernels whose blocks have more shared memory than that."""
MAX_ARGUMENTS = 64

# Predictions, to be replaced by rows of a benchmark on a GPU.
CHUNK = 4 << 20
"""Bytes of a pinned buffer."""
MAX_BUFFERS = 8
SPIN_SECONDS = 200e-6
NAP_SECONDS = 50e-6
NAP_SHARE = 1 / 64
LONGEST_NAP = 0.01
"""Waiting asks again and again at first, then in steps that are a share of what it has waited. Who waits for
ever takes so little of the CPU that it is not seen to compute."""


class _Buffer(NamedTuple):
    """Pinned memory on the host, and the event after its last transfer."""

    address: int
    bytes: NDArray[np.uint8]
    event: int


class _Moment(Mark):
    """An event that goes back to its device."""

    __slots__ = ("_events", "event")

    def __init__(self, event: int, events: deque[int]) -> None:
        self.event, self._events = event, events

    def __del__(self) -> None:
        self._events.append(self.event)


class _Function:
    """A loaded kernel, and the dynamic shared memory that it was allowed so far."""

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.shared = STATIC_SHARED


class _Words(threading.local):
    """A thread's kernel arguments, and the pointers to them that a launch takes."""

    def __init__(self) -> None:
        self.values = (ctypes.c_uint64 * MAX_ARGUMENTS)()
        start = ctypes.addressof(self.values)
        self._pointers = (ctypes.c_void_p * MAX_ARGUMENTS)(*range(start, start + 8 * MAX_ARGUMENTS, 8))
        self.pointers = ctypes.addressof(self._pointers)


def _on_device(
    method: Callable[Concatenate[CupyDevice, P], R],
) -> Callable[Concatenate[CupyDevice, P], R]:
    """Makes the device current for a method, and CUDA's errors ours."""

    @wraps(method)
    def call(self: CupyDevice, /, *args: P.args, **kwargs: P.kwargs) -> R:
        runtime = self._runtime
        if (problem := probe.lost(self.name)) is not None:
            raise DeviceError(f"{self.name}: not used any more: {problem}")
        try:
            before = runtime.getDevice()
            runtime.setDevice(self._index)
            try:
                return method(self, *args, **kwargs)
            finally:
                if before != self._index:
                    runtime.setDevice(before)
        except RuntimeError as error:  # CuPy's errors of runtime and driver are such
            raise self._failure(error, method.__name__) from None

    return call


class CupyDevice:
    """See :class:`gpuprover.cuda.device.Device`.

    ``write`` may run in several threads at once, for disjoint ranges: each copies through a pinned buffer of
    its own. Where the system pins fewer than MAX_BUFFERS of them, those serve; where it pins none, CUDA
    copies through memory of its own, more slowly.
    """

    def __init__(self, index: int) -> None:
        """Opens CUDA's device ``index``, which creates its context.

        Raises:
            DeviceError: there is no such device, no driver, or no CuPy.
        """
        self.name = f"cuda:{index}"
        self._index = index
        try:
            from cupy import __version__
            from cupy.cuda import driver, runtime
        except ImportError as error:
            raise DeviceError(f"{self.name}: CuPy cannot be imported: {error}") from None
        self._runtime: Any = runtime
        self._driver: Any = driver
        self._cupy = __version__
        self._streams: list[int] = []
        self._functions: dict[tuple[Any, ...], _Function] = {}
        self._modules: dict[str, int] = {}
        self._resident: dict[tuple[Any, ...], int] = {}
        self._words = _Words()
        self._events: deque[int] = deque()
        self._waits: deque[int] = deque()
        self._free: deque[_Buffer] = deque()
        self._buffers, self._most = 0, MAX_BUFFERS
        self._returned = threading.Condition()
        self._pinned = PinnedPool(self._host_alloc, self._host_free)
        self._sending: deque[tuple[int, object]] = deque()
        self._lock = threading.RLock()
        self._start()

    @_on_device
    def _start(self) -> None:
        found = self._runtime.getDeviceProperties(self._index)
        self.properties = Properties(
            name=found["name"].decode(errors="replace"),
            architecture=f"sm_{found['major']}{found['minor']}",
            multiprocessors=found["multiProcessorCount"],
            threads=found["maxThreadsPerMultiProcessor"],
            shared=found["sharedMemPerBlockOptin"],
            memory=found["totalGlobalMem"],
        )
        self._nvrtc = find_nvrtc(self._runtime.runtimeGetVersion() // 1000)
        self._add_stream()

    def _failure(self, error: RuntimeError, doing: str) -> DeviceError | OutOfMemory:
        """Our exception for CUDA's; a device that does not recover is given up."""
        problem = f"{doing.strip('_')} failed: {error}"
        if getattr(error, "status", None) == OUT_OF_MEMORY:
            return OutOfMemory(f"{self.name}: {problem}")
        # After a fault in a kernel every further call fails, until the process ends.
        if self._streams and self._runtime.streamQuery(self._streams[MAIN]) not in (0, NOT_READY):
            probe.mark_lost(self.name, problem)
            self._sending.clear()
        return DeviceError(f"{self.name}: {problem}")

    @property
    def lost(self) -> bool:
        return probe.lost(self.name) is not None

    # Memory --------------------------------------------------------------------------

    @_on_device
    def free_memory(self) -> int:
        return int(self._runtime.memGetInfo()[0])

    @_on_device
    def allocate(self, size: int) -> Address:
        return Address(self._runtime.malloc(size))

    def release(self, address: Address) -> None:
        if not self.lost:  # else it went with the context
            self._release(address)

    @_on_device
    def _release(self, address: Address) -> None:
        self._wait_for_streams()
        self._runtime.free(address)

    @_on_device
    def write(self, to: int, data: NDArray[Any], stream: Stream = MAIN) -> None:
        runtime, handle, source = self._runtime, self._streams[stream], _bytes(data)
        kind, holder = runtime.memcpyHostToDevice, self._pinned.holder(address(source), len(source))
        if holder is not None and len(source):
            runtime.memcpyAsync(to, address(source), len(source), kind, handle)
            self._sending.append((self._recorded(handle), holder))
            return
        for start in range(0, len(source), CHUNK):
            part = source[start : start + CHUNK]
            buffer = self._take()
            if buffer is None:
                runtime.memcpyAsync(to + start, part.ctypes.data, len(part), kind, handle)
                self._wait_until(runtime.streamQuery, handle)
                continue
            try:
                buffer.bytes[: len(part)] = part
                runtime.memcpyAsync(to + start, buffer.address, len(part), kind, handle)
                runtime.eventRecord(buffer.event, handle)
            finally:
                self._give_back(buffer)

    def pinned(self, size: int) -> NDArray[np.uint8] | None:
        return None if self.lost else self._pinned.take(size)

    def is_pinned(self, data: NDArray[Any]) -> bool:
        return self._pinned.holder(address(data), data.nbytes) is not None

    @_on_device
    def read(self, data: NDArray[Any], start: int, stream: Stream = MAIN) -> None:
        runtime, handle, target = self._runtime, self._streams[stream], _bytes(data)
        kind = runtime.memcpyDeviceToHost
        first = self._take()
        if first is None:
            if len(target):
                runtime.memcpyAsync(target.ctypes.data, start, len(target), kind, handle)
            self._wait_until(runtime.streamQuery, handle)
            self._let_go()
            return
        buffers = [first]
        flying: deque[tuple[_Buffer, NDArray[np.uint8]]] = deque()
        try:
            # One transfer runs while the one before it is copied out; without waiting for the second buffer.
            if len(target) > CHUNK and (second := self._spare(idle=True)) is not None:
                buffers.append(second)
            for i, offset in enumerate(range(0, len(target), CHUNK)):
                if len(flying) == len(buffers):
                    self._land(*flying.popleft())
                buffer, part = buffers[i % len(buffers)], target[offset : offset + CHUNK]
                runtime.memcpyAsync(buffer.address, start + offset, len(part), kind, handle)
                runtime.eventRecord(buffer.event, handle)
                flying.append((buffer, part))
            while flying:
                self._land(*flying.popleft())
        finally:
            for buffer in buffers:
                self._give_back(buffer)
        self._let_go()

    def _land(self, buffer: _Buffer, part: NDArray[np.uint8]) -> None:
        self._wait_until(self._runtime.eventQuery, buffer.event)
        part[:] = buffer.bytes[: len(part)]

    @_on_device
    def fill(self, to: int, byte: int, size: int, stream: Stream = MAIN) -> None:
        self._runtime.memsetAsync(to, byte, size, self._streams[stream])

    @_on_device
    def copy(self, to: int, start: int, size: int, stream: Stream = MAIN) -> None:
        kind = self._runtime.memcpyDeviceToDevice
        self._runtime.memcpyAsync(to, start, size, kind, self._streams[stream])

    # Pinned memory ---------------------------------------------------------------------

    @_on_device
    def _host_alloc(self, size: int) -> int | None:
        runtime = self._runtime
        try:
            return int(runtime.hostAlloc(size, runtime.hostAllocPortable))
        except RuntimeError as error:
            if getattr(error, "status", None) != OUT_OF_MEMORY:
                raise
            return None

    @_on_device
    def _host_free(self, start: int) -> None:
        self._runtime.freeHost(start)

    def _recorded(self, handle: int) -> int:
        """An event after what a stream was asked for so far; it goes back to the waits."""
        runtime = self._runtime
        try:
            event = self._waits.popleft()
        except IndexError:
            event = runtime.eventCreateWithFlags(runtime.eventDisableTiming)
        runtime.eventRecord(event, handle)
        return int(event)

    def _let_go(self) -> None:
        """Forgets the pinned memory that has been sent, the oldest first."""
        with suppress(IndexError):  # there is nothing more
            while True:
                event, holder = self._sending.popleft()
                if self._runtime.eventQuery(event) != 0:
                    self._sending.appendleft((event, holder))
                    return
                self._waits.append(event)

    # Buffers that data go through which lie elsewhere

    def _take(self) -> _Buffer | None:
        """A buffer that nothing uses any more; None where there is no pinned memory."""
        with self._returned:
            while (buffer := self._spare()) is None:
                if not self._most:
                    return None
                self._returned.wait()
        self._wait_until(self._runtime.eventQuery, buffer.event)
        return buffer

    def _spare(self, idle: bool = False) -> _Buffer | None:
        """The buffer that was given back first, or a new one rather than one whose transfer still runs.

        Where there can be no new one, such a one after all; with ``idle``, none then.
        """
        runtime = self._runtime
        with self._returned:
            full = self._buffers >= self._most
            if self._free and ((full and not idle) or runtime.eventQuery(self._free[0].event) == 0):
                return self._free.popleft()
            if full:
                return None
            try:
                address = runtime.hostAlloc(CHUNK, runtime.hostAllocPortable)
            except RuntimeError as error:
                if getattr(error, "status", None) != OUT_OF_MEMORY:
                    raise
                self._most = self._buffers
                return self._spare(idle)
            self._buffers += 1
            memory = (ctypes.c_ubyte * CHUNK).from_address(address)
            event = runtime.eventCreateWithFlags(runtime.eventDisableTiming)
            return _Buffer(address, np.ctypeslib.as_array(memory), event)

    def _give_back(self, buffer: _Buffer) -> None:
        with self._returned:
            self._free.append(buffer)
            self._returned.notify()

    # Work -----------------------------------------------------------------------------

    @_on_device
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
        function = self._function(program, kernel, shared)
        words = self._words
        words.values[: len(arguments)] = list(map(int, arguments))
        self._driver.launchKernel(
            function, blocks, 1, 1, threads, 1, 1, shared, self._streams[stream], words.pointers, 0
        )

    @_on_device
    def run(
        self,
        launches: Sequence[Launch],
        beginnings: Sequence[int],
        stream: Stream = MAIN,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        words, handle, ask = self._words, self._streams[stream], self._driver.launchKernel
        values, pointers = words.values, words.pointers
        for program, kernel, blocks, threads, shared, regions, offsets in launches:
            check()
            function = self._function(program, kernel, shared)
            values[: len(offsets)] = list(map(add, offsets, regions(beginnings)))
            ask(function, blocks, 1, 1, threads, 1, 1, shared, handle, pointers, 0)

    def resident_blocks(self, program: Program, kernel: str, threads: int, shared: int = 0) -> int:
        key = program.curve.name, program.source, program.defines, kernel, threads, shared
        found = self._resident.get(key)
        return self._occupancy(key, program, kernel, threads, shared) if found is None else found

    @_on_device
    def _occupancy(
        self, key: tuple[Any, ...], program: Program, kernel: str, threads: int, shared: int
    ) -> int:
        """What a multiprocessor holds, kept under the key."""
        function = self._function(program, kernel, shared)
        blocks = self._driver.occupancyMaxActiveBlocksPerMultiprocessor(function, threads, shared)
        return self._resident.setdefault(key, max(1, int(blocks)))

    def _function(self, program: Program, kernel: str, shared: int) -> int:
        """The kernel's handle, loaded at its first use and allowed ``shared`` bytes."""
        driver = self._driver
        key = (program.curve.name, program.source, program.defines, kernel)
        function = self._functions.get(key)
        if function is None:
            handle = driver.moduleGetFunction(self._module(program), kernel)
            function = self._functions.setdefault(key, _Function(handle))
        if shared > function.shared:
            attribute = driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            if function.shared == STATIC_SHARED:
                carveout = driver.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT
                driver.funcSetAttribute(function.handle, carveout, ALL_SHARED)
            driver.funcSetAttribute(function.handle, attribute, shared)
            function.shared = shared
        return function.handle

    def _module(self, program: Program) -> int:
        name = program_name(program)
        with self._lock:
            if name not in self._modules:
                cubin = load_cubin(program, self.properties.architecture, self._nvrtc)
                self._modules[name] = self._driver.moduleLoadData(cubin)
            return self._modules[name]

    @_on_device
    def prepare(self, programs: Sequence[Program], check: Callable[[], None] = lambda: None) -> None:
        architecture, nvrtc = self.properties.architecture, self._nvrtc
        listed = {p for curve in {p.curve for p in programs} for p in source.programs(curve)}
        missing = [p for p in programs if p in listed and find_cubin(p, architecture, nvrtc) is None]
        if len(missing) > 1 and nvrtc is not None and (folder := store(nvrtc).made()) is not None:
            units = [(program, architecture) for program in missing]
            with suppress(DeviceError):  # no room for them, say: what is missing is compiled below
                build(units, folder, nvrtc, processes=available_cpus(), check=check)
        problems: list[DeviceError] = []
        for program in missing:
            check()
            # What nobody keeps is compiled here and loaded, or it would be compiled again.
            if find_cubin(program, architecture, nvrtc) is None:
                try:
                    self._module(program)
                except DeviceError as error:
                    problems.append(error)
        if problems and len(problems) == len(programs):
            raise problems[0]

    @_on_device
    def new_stream(self) -> Stream:
        return self._add_stream()

    def _add_stream(self) -> Stream:
        runtime = self._runtime
        with self._lock:
            self._streams.append(runtime.streamCreateWithFlags(runtime.streamNonBlocking))
            return Stream(len(self._streams) - 1)

    @_on_device
    def wait(self, stream: Stream, other: Stream | Mark) -> None:
        runtime = self._runtime
        if isinstance(other, Mark):
            assert isinstance(other, _Moment)
            runtime.streamWaitEvent(self._streams[stream], other.event)
            return
        event = self._recorded(self._streams[other])
        try:
            runtime.streamWaitEvent(self._streams[stream], event)
        finally:
            # Who waits already waits for the event as it was recorded then.
            self._waits.append(event)

    @_on_device
    def mark(self, stream: Stream = MAIN) -> Mark:
        runtime = self._runtime
        try:
            event = self._events.popleft()
        except IndexError:
            event = runtime.eventCreate()
        moment = _Moment(event, self._events)
        runtime.eventRecord(event, self._streams[stream])
        return moment

    @_on_device
    def reached(self, mark: Mark) -> bool:
        assert isinstance(mark, _Moment)
        status = self._runtime.eventQuery(mark.event)
        if status != NOT_READY:
            self._runtime.check_status(status)
        return bool(status != NOT_READY)

    @_on_device
    def seconds(self, start: Mark, end: Mark) -> float:
        assert isinstance(start, _Moment)
        assert isinstance(end, _Moment)
        for moment in (start, end):
            self._wait_until(self._runtime.eventQuery, moment.event)
        return float(self._runtime.eventElapsedTime(start.event, end.event)) / 1e3

    @_on_device
    def synchronize(self) -> None:
        self._wait_for_streams()
        self._let_go()

    def _wait_for_streams(self) -> None:
        for handle in tuple(self._streams):
            self._wait_until(self._runtime.streamQuery, handle)

    def _wait_until(self, query: Callable[[int], int], handle: int) -> None:
        """Until a stream or an event is done. Ctrl-C works meanwhile: CUDA's own waiting would block it."""
        begun = time.perf_counter()
        while (status := query(handle)) == NOT_READY:
            waited = time.perf_counter() - begun
            if waited > SPIN_SECONDS:
                time.sleep(min(max(NAP_SECONDS, NAP_SHARE * waited), LONGEST_NAP))
        self._runtime.check_status(status)

    @_on_device
    def describe(self) -> Mapping[str, Any]:
        runtime = self._runtime
        return {
            "name": self.properties.name,
            "architecture": self.properties.architecture,
            "multiprocessors": self.properties.multiprocessors,
            "memory": self.properties.memory,
            "driver_cuda": runtime.driverGetVersion(),
            "runtime": runtime.runtimeGetVersion(),
            "cupy": self._cupy,
            "nvrtc": None if self._nvrtc is None else "{}.{}".format(*self._nvrtc.version),
        }


def _bytes(data: NDArray[Any]) -> NDArray[np.uint8]:
    """An array's memory, without a copy."""
    if not data.flags.c_contiguous:
        raise ValueError("expected a C-contiguous array")
    return data.reshape(-1).view(np.uint8)
