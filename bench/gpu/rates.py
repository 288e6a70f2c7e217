"""What a device can do, by ``kernels/rates.cu``: the ceilings against which the other figures are held."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuprover.cuda.device import Address, Device, Program
from gpuprover.cuda.msm_launches import BLOCK
from gpuprover.cuda.msm_plan import WARP, point_bytes
from gpuprover.curves import CurveParams, Group
from gpuprover.limbs import g1_to_words
from gpuprover.reference import g1

from ..rows import SEED, Row, significant, spread

SOURCE = "rates.cu"
THREADS = 256
CHAINS, ROWS, TURNS = 8, 4, 16
"""Those of the source."""
REPEATS = 5
TABLE = 1 << 10
"""Points that sums go through: near the multipliers, so that those are what is measured."""
COPIED = 1 << 30
GATHERED = 1 << 30
"""Bytes; several times what a second-level cache holds."""
WIDE = "wide rows"
"""The rate that shares of the multiplier refer to: products have the same carries."""


class Skipped(Exception):
    """What a case needs is not on this machine; the message is the row's reason."""


@dataclass(frozen=True)
class Rate:
    """``measure`` -> how many of ``unit`` a second, by each run.

    ``of_sums``: it launches, or asks about, kernels of multi-scalar multiplications as well.
    """

    unit: str
    measure: Callable[[_Bench], Iterator[float]]
    every_curve: bool = False
    of_sums: bool = False


class _Bench:
    """A device, a curve, and the time that a measurement has to take to be worth something."""

    def __init__(self, device: Device, curve: CurveParams, enough: float, folder: Path) -> None:
        self.device, self.curve, self.enough, self.folder = device, curve, enough, folder
        self.program = Program(curve, SOURCE)
        self.rng = np.random.default_rng(SEED)
        self.notes: Row = {}

    @property
    def small(self) -> bool:
        """Whether this is a rehearsal."""
        return self.enough == 0

    def size(self, bytes_: int) -> int:
        """Of a buffer, at most an eighth of what is free."""
        return 1 << 14 if self.small else min(bytes_, self.device.free_memory() // 8)

    @contextmanager
    def memory(self, *parts: NDArray[Any] | int) -> Iterator[list[Address]]:
        """Device memory: copies of arrays, or so many bytes."""
        taken: list[Address] = []
        try:
            for part in parts:
                taken.append(self.device.allocate(part if isinstance(part, int) else part.nbytes))
                if not isinstance(part, int):
                    self.device.write(taken[-1], part)
            yield taken
        finally:
            for address in taken:
                self.device.release(address)

    def timed(self, call: Callable[[], None]) -> float:
        """Seconds until the device has done what the call asks for."""
        self.device.synchronize()
        begun = time.perf_counter()
        call()
        self.device.synchronize()
        return time.perf_counter() - begun

    def runs(self, call: Callable[[int], None], amount: float, begin: int = 4) -> Iterator[float]:
        """``amount``·n over the seconds of call(n), for an n that takes long enough."""
        n, seconds = begin, self.timed(lambda: call(begin))
        while seconds < self.enough and n < 1 << 30:
            n *= max(2, min(64, int(1.2 * self.enough / max(seconds, 1e-6))))
            seconds = self.timed(partial(call, n))
        for _ in range(REPEATS):
            yield amount * n / self.timed(partial(call, n))

    def grid(self, kernel: str) -> int:
        """Blocks that fill the device once."""
        return self.device.properties.multiprocessors * self.device.resident_blocks(
            self.program, kernel, THREADS
        )


def _in_registers(
    kernel: str,
    each: Callable[[CurveParams], int],
    words: Callable[[CurveParams], int],
    latency: bool = False,
) -> Callable[[_Bench], Iterator[float]]:
    """A kernel (in, out, rounds) whose threads do ``each`` operations a round on ``words`` words of 64 bits.

    With ``latency``, one warp alone on the device: a second over the rate is what one operation takes.
    """

    def measure(bench: _Bench) -> Iterator[float]:
        blocks, threads = (1, 32) if latency else (bench.grid(kernel), 32 if bench.small else THREADS)
        n, size = blocks * threads, words(bench.curve)
        data = bench.rng.integers(0, 1 << 63, (n, size), dtype=np.uint64)
        data[:, -1] >>= np.uint64(6)  # below either prime
        with bench.memory(data, 8 * n * size) as (given, out):

            def call(rounds: int) -> None:
                bench.device.launch(bench.program, kernel, blocks, threads, given, out, rounds)

            yield from bench.runs(call, each(bench.curve) * (1 if latency else n))

    return measure


def _additions(bench: _Bench) -> Iterator[float]:
    """At the occupancy of the kernel that does them in multi-scalar multiplications, or nearly."""
    curve, words, device = bench.curve, bench.curve.g1_words, bench.device
    points: list[Any] = [curve.g1]
    for _ in range(16 if bench.small else TABLE - 1):
        points.append(g1(curve).add(points[-1], curve.g1))
    kernel, threads = "additions_g1", 32 if bench.small else BLOCK
    each = min(
        device.resident_blocks(sums_program(curve, Group.G1), "accumulate", BLOCK, accumulator_bytes(curve)),
        device.resident_blocks(bench.program, kernel, BLOCK),
    )
    blocks = device.properties.multiprocessors * each
    bench.notes["warps"] = each * BLOCK // WARP
    with bench.memory(g1_to_words(curve, points), 16 * words * blocks * threads) as (given, out):

        def call(rounds: int) -> None:
            device.launch(bench.program, kernel, blocks, threads, given, len(points), out, rounds)

        yield from bench.runs(call, blocks * threads)


def sums_program(curve: CurveParams, group: Group) -> Program:
    return Program(curve, "msm.cu", (("GROUP", group.name[1]),))


def accumulator_bytes(curve: CurveParams) -> int:
    """Shared memory of a block of ``accumulate`` in G1: an XYZZ point a lane."""
    return BLOCK * 2 * point_bytes(curve, Group.G1)


def _copy(bench: _Bench) -> Iterator[float]:
    """Bytes that are read and as many that are written."""
    size = bench.size(COPIED)
    with bench.memory(size, size) as (one, other):
        bench.device.fill(one, 1, size)
        yield from bench.runs(_times(lambda: bench.device.copy(other, one, size)), 2 * size, 1)


def _copy_quads(bench: _Bench) -> Iterator[float]:
    """The same by a kernel of ours."""
    size, blocks = bench.size(COPIED), 2 * bench.grid("copy_quads")
    with bench.memory(size, size) as (one, other):
        bench.device.fill(one, 1, size)

        def copy() -> None:
            bench.device.launch(bench.program, "copy_quads", blocks, THREADS, one, other, size // 16)

        yield from bench.runs(_times(copy), 2 * size, 1)


def _gather(record: int) -> Callable[[_Bench], Iterator[float]]:
    """Bytes of records taken in random order; those of the order itself do not count."""

    def measure(bench: _Bench) -> Iterator[float]:
        size = bench.size(GATHERED)
        count, kernel = size // record, f"gather_{record}"
        order = bench.rng.integers(0, count, count, dtype=np.uint32)
        blocks = bench.grid(kernel)
        with bench.memory(size, order, 16 * blocks * THREADS) as (records, index, out):
            bench.device.fill(records, 1, size)

            def gather() -> None:
                bench.device.launch(bench.program, kernel, blocks, THREADS, records, index, out, count)

            yield from bench.runs(_times(gather), count * record, 1)

    return measure


def _launches(bench: _Bench, *, waiting: bool) -> Iterator[float]:
    def launch() -> None:
        bench.device.launch(bench.program, "nothing", 1, 32)
        if waiting:
            bench.device.synchronize()

    yield from bench.runs(_times(launch), 1)


def _times(action: Callable[[], None]) -> Callable[[int], None]:
    def call(times: int) -> None:
        for _ in range(times):
            action()

    return call


def _host_to_device(bench: _Bench) -> Iterator[float]:
    size = bench.size(COPIED >> 2)
    data = bench.rng.integers(0, 255, size, dtype=np.uint8)
    with bench.memory(size) as (to,):
        yield from bench.runs(_times(lambda: bench.device.write(to, data)), size, 1)


def _pinned_to_device(bench: _Bench) -> Iterator[float]:
    """The bus alone: straight from pinned memory, where a write goes through buffers of ours."""
    try:
        from cupy.cuda import runtime
    except ImportError:
        raise Skipped("pinned memory comes from CuPy, which is not here") from None
    size, index = bench.size(COPIED >> 2), int(bench.device.name.partition(":")[2])
    with bench.memory(size) as (to,), ExitStack() as stack:
        try:
            before = runtime.getDevice()
            runtime.setDevice(index)
            stack.callback(runtime.setDevice, before)
            start = runtime.hostAlloc(size, runtime.hostAllocPortable)
            stack.callback(runtime.freeHost, start)
            stream = runtime.streamCreateWithFlags(runtime.streamNonBlocking)
            stack.callback(runtime.streamDestroy, stream)
        except RuntimeError as error:  # CuPy's, where there is no driver
            raise Skipped(f"no pinned memory: {error}") from None
        ctypes.memset(start, 1, size)

        def copy(times: int) -> None:
            for _ in range(times):
                runtime.memcpyAsync(to, start, size, runtime.memcpyHostToDevice, stream)
            runtime.streamSynchronize(stream)

        yield from bench.runs(copy, size, 1)


def _file_to_device(bench: _Bench) -> Iterator[float]:
    """From a mapped file whose pages are in memory, as a key's are."""
    size = bench.size(COPIED >> 2)
    path = bench.folder / "mapped"
    bench.rng.integers(0, 255, size, dtype=np.uint8).tofile(path)
    try:
        data = np.memmap(path, np.uint8, "r")
        with bench.memory(size) as (to,):
            yield from bench.runs(_times(lambda: bench.device.write(to, data)), size, 1)
    finally:
        path.unlink()


def _device_to_host(bench: _Bench) -> Iterator[float]:
    size = bench.size(COPIED >> 2)
    data = np.ones(size, np.uint8)
    with bench.memory(size) as (start,):
        bench.device.fill(start, 1, size)
        yield from bench.runs(_times(lambda: bench.device.read(data, start)), size, 1)


def _one(_: CurveParams) -> int:
    return 1


def _fq(curve: CurveParams) -> int:
    return curve.base.limbs


def _fr(curve: CurveParams) -> int:
    return curve.scalar.limbs


RATES: dict[str, Rate] = {
    "wide multiplies": Rate("IMAD.WIDE", _in_registers("wide_multiplies", lambda _: CHAINS, _one)),
    WIDE: Rate("IMAD.WIDE", _in_registers("wide_rows", lambda c: TURNS * ROWS * c.base.limbs, _fq)),
    "double multiplies": Rate("DFMA", _in_registers("double_multiplies", lambda _: CHAINS, _one)),
    "products Fq": Rate("products", _in_registers("products_fq", _one, _fq), True),
    "squares Fq": Rate("squares", _in_registers("squares_fq", _one, _fq), True),
    "products Fr": Rate("products", _in_registers("products_fr", _one, _fr), True),
    "products Fq, one warp": Rate("products in turn", _in_registers("products_fq", _one, _fq, True), True),
    "additions G1": Rate("mixed additions", _additions, True, of_sums=True),
    "copy": Rate("bytes", _copy),
    "copy by a kernel": Rate("bytes", _copy_quads),
    "gather 64 bytes": Rate("bytes", _gather(64)),
    "gather 128 bytes": Rate("bytes", _gather(128)),
    "launches": Rate("launches", partial(_launches, waiting=False)),
    "launches, each awaited": Rate("launches", partial(_launches, waiting=True)),
    "host to device": Rate("bytes", _host_to_device),
    "pinned host to device": Rate("bytes", _pinned_to_device),
    "mapped file to device": Rate("bytes", _file_to_device),
    "device to host": Rate("bytes", _device_to_host),
}


def clock() -> Row:
    """What the GPU's multiprocessors run at, just after work; nothing where NVML does not tell."""
    try:
        import pynvml
    except ImportError:
        return {}
    with suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        if pynvml.nvmlDeviceGetCount() == 1:
            handle = pynvml.nvmlDeviceGetHandleByIndex(0)
            return {"clock_mhz": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)}
    return {}


def measure(device: Device, curve: CurveParams, name: str, seconds: float, folder: Path) -> Row:
    """The fields of a rate's row."""
    rate = RATES[name]
    bench = _Bench(device, curve, seconds, folder)
    values = list(rate.measure(bench))
    row: Row = {"operation": f"rate {name}", "unit": rate.unit, "mode": "warm", **bench.notes, **clock()}
    if rate.every_curve:
        row["curve"] = curve.name
    figures = spread([1 / value for value in values])
    return {**row, "per_second": significant(1 / figures["median_s"]), "wall": figures}
