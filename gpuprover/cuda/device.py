"""A device as the backend sees it: memory as addresses, kernels by name, work in the order of streams.

:class:`Device` is all that the rest of this package asks of CUDA. One implementation launches through
CuPy; the tests have another that runs the same kernels on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import add, itemgetter
from typing import Any, NamedTuple, NewType, Protocol

import numpy as np
from numpy.typing import NDArray

from gpuprover.curves import CurveParams

Address = NewType("Address", int)
"""The address of a byte in a device's memory; what a device allocates is aligned to 256 bytes."""
Stream = NewType("Stream", int)
"""Work of one stream happens in the order in which it was asked for; stream 0 is always there."""
MAIN = Stream(0)
"""The device's; a proof has another in its place (:class:`OnStream`)."""


class Mark:
    """A moment of a stream, by the device's clock; see :meth:`Device.mark`."""


@dataclass(frozen=True)
class Program:
    """A file of ``kernels/`` compiled for a curve.

    Attributes:
        source: the file's name, such as ``msm.cu``.
        defines: macros that choose among a file's variants, such as ``("GROUP", "2")``.
    """

    curve: CurveParams
    source: str
    defines: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Properties:
    """What a device is.

    Attributes:
        name: as the driver calls it, such as ``NVIDIA H200``.
        architecture: ``sm_90``, say.
        multiprocessors: how many.
        threads: the most that one multiprocessor holds.
        shared: bytes of shared memory that one block may take.
        memory: bytes of device memory.
    """

    name: str
    architecture: str
    multiprocessors: int
    threads: int
    shared: int
    memory: int


NUMBERS = 0
"""The region of arguments that are no addresses; it begins at 0."""


class At(NamedTuple):
    """An argument that is an address: so many bytes after the beginning of a region, which has a number."""

    region: int
    offset: int = 0


class Launch(NamedTuple):
    """A launch that has yet to be told where its memory lies; made by :func:`launch`.

    Attributes:
        program, kernel, blocks, threads, shared: as :meth:`Device.launch` takes them.
        regions: picks the beginning of each argument's region from the list of all.
        offsets: what is added to it, for each argument.
    """

    program: Program
    kernel: str
    blocks: int
    threads: int
    shared: int
    regions: itemgetter[Any]
    offsets: tuple[int, ...]

    def arguments(self, beginnings: Sequence[int]) -> Iterable[int]:
        """The kernel's arguments, with the regions where they are."""
        return map(add, self.offsets, self.regions(beginnings))


def launch(
    program: Program, kernel: str, blocks: int, threads: int, *arguments: int | At, shared: int = 0
) -> Launch:
    """A launch of a kernel with two arguments or more."""
    at = [a if isinstance(a, At) else At(NUMBERS, a) for a in arguments]
    regions = itemgetter(*(region for region, _ in at))
    return Launch(program, kernel, blocks, threads, shared, regions, tuple(offset for _, offset in at))


class Allocator(Protocol):
    """Where device memory comes from."""

    def allocate(self, size: int) -> Address:
        """``size`` bytes, at least 1, with arbitrary contents.

        Raises:
            OutOfMemory: there is not that much.
        """
        ...

    def release(self, address: Address) -> None:
        """Gives back what :meth:`allocate` returned; the main stream of who works there may still have work
        for it."""
        ...


class Device(Allocator, Protocol):
    """One GPU.

    Launches and copies return before they are done; :meth:`synchronize` waits, and so does :meth:`read`.
    Any method may raise DeviceError, for this work or for earlier work of any stream. Some of them are final:
    the device is then :attr:`lost`, and every later call raises.

    Attributes:
        name: ``cuda:0``, say.
    """

    name: str
    properties: Properties

    @property
    def lost(self) -> bool:
        """Whether this process can do nothing with the device any more."""
        ...

    # Memory --------------------------------------------------------------------------

    def free_memory(self) -> int:
        """Bytes that could still be allocated, as far as the driver knows."""
        ...

    def allocate(self, size: int) -> Address:
        """``size`` bytes with arbitrary contents.

        Raises:
            OutOfMemory: the device has not that much.
        """
        ...

    def release(self, address: Address) -> None:
        """Gives back what :meth:`allocate` returned, after the work that was asked for so far."""
        ...

    def write(self, to: int, data: NDArray[Any], stream: Stream = MAIN) -> None:
        """Copies a C-contiguous array to the device; the array may be changed once this returns.

        An array in memory of :meth:`pinned` has to stay as it is until the stream has sent it.
        """
        ...

    def pinned(self, size: int) -> NDArray[np.uint8] | None:
        """``size`` bytes of the host's memory, at least 1, from which :meth:`write` sends without a copy.

        They are overwritten once nobody refers to them. None where there is no such memory.
        """
        ...

    def is_pinned(self, data: NDArray[Any]) -> bool:
        """Whether a C-contiguous array lies in memory of :meth:`pinned`."""
        ...

    def read(self, data: NDArray[Any], start: int, stream: Stream = MAIN) -> None:
        """Fills a C-contiguous array from the device, after the stream's earlier work."""
        ...

    def fill(self, to: int, byte: int, size: int, stream: Stream = MAIN) -> None:
        """Sets ``size`` bytes."""
        ...

    def copy(self, to: int, start: int, size: int, stream: Stream = MAIN) -> None:
        """Copies ``size`` bytes within the device; the ranges do not overlap."""
        ...

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
        """Runs ``kernel`` on ``blocks`` blocks of ``threads`` threads.

        Every argument is a word of eight bytes: an address or an integer.
        """
        ...

    def run(
        self,
        launches: Sequence[Launch],
        beginnings: Sequence[int],
        stream: Stream = MAIN,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Launches in a row, with regions that begin where ``beginnings`` says, by their numbers.

        ``check`` is called before each; an exception of its ends it.
        """
        ...

    def resident_blocks(self, program: Program, kernel: str, threads: int, shared: int = 0) -> int:
        """How many blocks of a kernel one multiprocessor holds at once; at least 1."""
        ...

    def prepare(self, programs: Sequence[Program], check: Callable[[], None] = lambda: None) -> None:
        """Compiles what was not built before; programs are loaded at their first launch.

        ``check`` is called now and then; an exception of its ends it.

        Raises:
            DeviceError: none of the programs can be had. Where only some cannot, their launches will tell.
        """
        ...

    def new_stream(self) -> Stream: ...

    def wait(self, stream: Stream, other: Stream | Mark) -> None:
        """Work that ``stream`` is asked for from now on starts after what ``other`` was asked for so far.

        Or after a moment of any stream.
        """
        ...

    def mark(self, stream: Stream = MAIN) -> Mark:
        """The moment at which the stream will have done what it was asked for so far."""
        ...

    def reached(self, mark: Mark) -> bool:
        """Whether its stream has come to a moment; without waiting."""
        ...

    def seconds(self, start: Mark, end: Mark) -> float:
        """From one moment to another, to about a microsecond; waits for both."""
        ...

    def synchronize(self) -> None:
        """Waits for all streams."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """For people and rows of benchmarks: name, driver, versions."""
        ...


def launch_each(
    device: Device,
    launches: Sequence[Launch],
    beginnings: Sequence[int],
    stream: Stream = MAIN,
    check: Callable[[], None] = lambda: None,
) -> None:
    """:meth:`Device.run` by :meth:`Device.launch`."""
    for one in launches:
        check()
        sizes = one.blocks, one.threads
        arguments = one.arguments(beginnings)
        device.launch(one.program, one.kernel, *sizes, *arguments, shared=one.shared, stream=stream)


class OnStream:
    """A device whose main stream is another of its streams: what is asked of MAIN is asked of that one.

    Args:
        device: the device itself.
        main: the stream.
    """

    def __init__(self, device: Device, main: Stream) -> None:
        self.name, self.properties = device.name, device.properties
        self._device, self._main = device, main

    @property
    def lost(self) -> bool:
        return self._device.lost

    def free_memory(self) -> int:
        return self._device.free_memory()

    def allocate(self, size: int) -> Address:
        return self._device.allocate(size)

    def release(self, address: Address) -> None:
        self._device.release(address)

    def write(self, to: int, data: NDArray[Any], stream: Stream = MAIN) -> None:
        self._device.write(to, data, stream or self._main)

    def pinned(self, size: int) -> NDArray[np.uint8] | None:
        return self._device.pinned(size)

    def is_pinned(self, data: NDArray[Any]) -> bool:
        return self._device.is_pinned(data)

    def read(self, data: NDArray[Any], start: int, stream: Stream = MAIN) -> None:
        self._device.read(data, start, stream or self._main)

    def fill(self, to: int, byte: int, size: int, stream: Stream = MAIN) -> None:
        self._device.fill(to, byte, size, stream or self._main)

    def copy(self, to: int, start: int, size: int, stream: Stream = MAIN) -> None:
        self._device.copy(to, start, size, stream or self._main)

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
        self._device.launch(
            program, kernel, blocks, threads, *arguments, shared=shared, stream=stream or self._main
        )

    def run(
        self,
        launches: Sequence[Launch],
        beginnings: Sequence[int],
        stream: Stream = MAIN,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._device.run(launches, beginnings, stream or self._main, check)

    def resident_blocks(self, program: Program, kernel: str, threads: int, shared: int = 0) -> int:
        return self._device.resident_blocks(program, kernel, threads, shared)

    def prepare(self, programs: Sequence[Program], check: Callable[[], None] = lambda: None) -> None:
        self._device.prepare(programs, check)

    def new_stream(self) -> Stream:
        return self._device.new_stream()

    def wait(self, stream: Stream, other: Stream | Mark) -> None:
        self._device.wait(stream or self._main, other or self._main)

    def mark(self, stream: Stream = MAIN) -> Mark:
        return self._device.mark(stream or self._main)

    def reached(self, mark: Mark) -> bool:
        return self._device.reached(mark)

    def seconds(self, start: Mark, end: Mark) -> float:
        return self._device.seconds(start, end)

    def synchronize(self) -> None:
        self._device.synchronize()

    def describe(self) -> Mapping[str, Any]:
        return self._device.describe()
