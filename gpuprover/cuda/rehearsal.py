"""A device that does nothing, for the memory that a piece of work takes: its allocations are only counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuprover.cuda.device import MAIN, Address, Device, Launch, Mark, Program, Stream


class Nothing:
    """See :class:`gpuprover.cuda.device.Device`. Reads give zeros; memory has no end.

    Args:
        real: the device whose properties count.
    """

    def __init__(self, real: Device) -> None:
        self.name, self.properties = real.name, real.properties
        self._real, self._next = real, 1 << 62

    @property
    def lost(self) -> bool:
        return False

    def free_memory(self) -> int:
        return 1 << 60

    def allocate(self, size: int) -> Address:
        self._next += -(-size // 256) * 256
        return Address(self._next)

    def release(self, address: Address) -> None:
        pass

    def write(self, to: int, data: NDArray[Any], stream: Stream = MAIN) -> None:
        pass

    def pinned(self, size: int) -> NDArray[np.uint8] | None:
        return None

    def is_pinned(self, data: NDArray[Any]) -> bool:
        return False

    def read(self, data: NDArray[Any], start: int, stream: Stream = MAIN) -> None:
        data[...] = 0

    def fill(self, to: int, byte: int, size: int, stream: Stream = MAIN) -> None:
        pass

    def copy(self, to: int, start: int, size: int, stream: Stream = MAIN) -> None:
        pass

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
        pass

    def run(
        self,
        launches: Sequence[Launch],
        beginnings: Sequence[int],
        stream: Stream = MAIN,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        pass

    def resident_blocks(self, program: Program, kernel: str, threads: int, shared: int = 0) -> int:
        return self._real.resident_blocks(program, kernel, threads, shared)

    def prepare(self, programs: Sequence[Program], check: Callable[[], None] = lambda: None) -> None:
        pass

    def new_stream(self) -> Stream:
        return Stream(1)

    def wait(self, stream: Stream, other: Stream | Mark) -> None:
        pass

    def mark(self, stream: Stream = MAIN) -> Mark:
        return Mark()

    def reached(self, mark: Mark) -> bool:
        return True

    def seconds(self, start: Mark, end: Mark) -> float:
        return 0.0

    def synchronize(self) -> None:
        pass

    def describe(self) -> Mapping[str, Any]:
        return self._real.describe()
