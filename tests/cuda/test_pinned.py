"""Page-locked memory: bounded, used again, and never with what somebody else left there."""

from __future__ import annotations

import gc
import random
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpuprover.cuda import cupy_device, gpus, probe
from gpuprover.cuda.cupy_device import CupyDevice
from gpuprover.cuda.pinned import UNIT, PinnedPool
from gpuprover.cuda.probe import FoundGpu, Survey
from gpuprover.curves import BN254
from gpuprover.devices import host_memory
from gpuprover.errors import DeviceError, MalformedFile
from gpuprover.formats.wtns import read_witness
from gpuprover.job import Job
from gpuprover.limbs import address, words_to_ints
from gpuprover.proving import Placed, ProofResult, make_proof
from gpuprover.witness_source import looked_at
from tests.support import fake_cupy
from tests.support.fake_cupy import Gpu, Machine, Schedule
from tests.support.paths import VECTORS
from tests.test_witness import write_program

WITNESS = VECTORS / "chain5.bn254.wtns"


class Host:
    """Memory that can be pinned, so many bytes of it."""

    def __init__(self, pinnable: int = 1 << 40) -> None:
        self.pinnable, self.pinned = pinnable, 0
        self.blocks: dict[int, np.ndarray] = {}

    def allocate(self, size: int) -> int | None:
        if self.pinned + size > self.pinnable:
            return None
        block = np.zeros(size, np.uint8)
        self.pinned += size
        self.blocks[address(block)] = block
        return address(block)

    def free(self, start: int) -> None:
        self.pinned -= len(self.blocks.pop(start))


def pool_of(host: Host, limit: int = 1 << 40) -> PinnedPool:
    return PinnedPool(host.allocate, host.free, limit)


def test_nothing_is_left_when_the_last_view_goes() -> None:
    host = Host()
    pool = pool_of(host)
    array = pool.take(100)
    assert array is not None
    assert len(array) == 100
    start, words = address(array), array[:96].view(np.uint64).reshape(3, 4)
    array[:] = 7
    view = words[1:]
    view.flags.writeable = False
    del array, words
    gc.collect()
    (block,) = host.blocks.values()
    assert (block[:100] == 7).all(), "somebody refers to it"
    assert pool.holder(start, 100) is not None
    del view
    assert not block.any()
    assert pool.holder(start, 100) is None


def test_memory_is_used_again_and_no_more_than_the_limit_is_pinned() -> None:
    host = Host()
    pool = pool_of(host, 4 * UNIT)
    for _ in range(3):
        arrays = [pool.take(2 * UNIT - 5) for _ in range(3)]
        assert [a is None for a in arrays] == [False, False, True]
        assert pool.held == host.pinned == 4 * UNIT
        del arrays
    assert len(host.blocks) == 2
    large = pool.take(4 * UNIT)  # for which the others are given up
    assert large is not None
    assert host.pinned == pool.held == 4 * UNIT
    assert pool.take(1) is None
    assert pool_of(Host(pinnable=0)).take(1) is None
    host.pinnable = 4 * UNIT
    again = pool_of(host)
    assert again.take(1) is None, "what another one holds"


def test_ranges_of_memory() -> None:
    pool = pool_of(Host())
    a, b = pool.take(1000), pool.take(UNIT)
    assert a is not None
    assert b is not None
    for array in (a, b):
        start = address(array)
        assert pool.holder(start, len(array)) is pool.holder(start + 10, 20) is not None
        assert pool.holder(start, len(array) + 1) is None
        assert pool.holder(start - 1, 2) is None
    assert pool.holder(address(np.zeros(8)), 8) is None


def test_many_threads(rng: random.Random) -> None:
    """Each finds zeros, and what it wrote itself."""
    pool, sizes = pool_of(Host(), 40 * UNIT), [rng.choice((1, 100, UNIT, 3 * UNIT)) for _ in range(400)]

    def use(size: int) -> bool:
        array = pool.take(size)
        if array is None:
            return True
        clean = not array.any()
        array[:] = size % 251
        return clean and bool((array == size % 251).all())

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(use, sizes))
    assert pool.held <= 40 * UNIT


# The device ---------------------------------------------------------------------------------------


@pytest.fixture(params=[Schedule.LATE, Schedule.RANDOM], ids=lambda s: s.name.lower())
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(probe, "_lost", {})
    monkeypatch.setattr(cupy_device, "CHUNK", 1000)
    machine = Machine(Gpu(), schedule=request.param)
    machine.install(monkeypatch)
    return machine


def filled(device: CupyDevice, size: int) -> np.ndarray:
    array = device.pinned(size)
    assert array is not None
    array[:] = np.frombuffer(random.Random(size).randbytes(size), np.uint8)
    assert device.is_pinned(array)
    return array


def test_it_is_sent_from_where_it_lies(machine: Machine) -> None:
    device = CupyDevice(0)
    array = filled(device, 5500)
    expected, at = array.copy(), device.allocate(5500)
    machine.calls.clear()
    device.write(at, array[:5000])
    device.write(at + 5000, array[5000:])
    assert machine.calls["memcpyAsync"] == 2
    assert not machine.calls["hostAlloc"], "no buffers in between"
    found = np.zeros_like(array)
    device.read(found, at)
    assert (found == expected).all()
    assert not device.is_pinned(expected)


def test_memory_stays_until_it_has_been_sent(machine: Machine) -> None:
    """Nobody refers to it any more but the device, which then lets it go."""
    device = CupyDevice(0)
    for _ in range(3):
        array = filled(device, 3000)
        expected, start, at = array.copy(), address(array), device.allocate(3000)
        device.write(at, array)
        del array
        found = np.zeros_like(expected)
        device.read(found, at)
        assert (found == expected).all()
        assert not machine.blocks[start][0][:3000].any()
        assert device.pinned(1 + UNIT) is not None
    assert device._pinned.held == 3 * UNIT


def test_a_device_that_is_lost_keeps_nothing(machine: Machine) -> None:
    device = CupyDevice(0)
    array, at = filled(device, 3000), device.allocate(3000)
    device.write(at, array)
    machine.lost = True
    with pytest.raises(DeviceError):
        device.read(np.zeros(3000, np.uint8), at)
    assert array.any(), "the CPU goes on with it"
    start = address(array)
    del array
    assert not machine.blocks[start][0][:3000].any()
    assert device.pinned(10) is None


def test_without_memory_that_can_be_pinned(machine: Machine) -> None:
    machine.pinnable = 0
    assert CupyDevice(0).pinned(10) is None


def test_the_stand_in_knows_what_is_asked() -> None:
    assert {"hostAlloc", "freeHost"} <= vars(fake_cupy.Machine().runtime).keys()


# A proof --------------------------------------------------------------------------------------------


@pytest.fixture
def opened(machine: Machine, monkeypatch: pytest.MonkeyPatch, quick_sums: None) -> CupyDevice:
    """The GPU ``cuda:0`` of this process, which has it open."""
    monkeypatch.setattr(cupy_device, "load_cubin", lambda program, *_: fake_cupy.fake_cubin(program))
    found = FoundGpu("cuda:0", "an-id", "NVIDIA H200", "sm_90", 1 << 30, 1 << 30)
    monkeypatch.setattr(gpus, "_survey", lambda: Survey(gpus=(found,), driver_cuda=(13, 0)))
    monkeypatch.setattr(gpus, "_shared", {})
    monkeypatch.setattr(gpus, "_loaded", {})
    monkeypatch.setattr(gpus, "proving_programs", lambda curve: [])
    device = CupyDevice(0)
    monkeypatch.setattr(gpus, "_open", {"cuda:0": device})
    return device


def proof(device: str, witness: Any = WITNESS, takeover: bool = True) -> ProofResult:
    key, placed = VECTORS / "chain5.bn254.zkey", Placed("cuda:0", takeover=takeover)
    source = looked_at(witness)
    return make_proof(key, source, Job(threads=1), lambda *_: placed, device=device, memory_limit=None)


def nothing_left(device: CupyDevice, machine: Machine) -> bool:
    """Whether the only pinned memory of witnesses is nobody's, with zeros where one lay."""
    pool, size = device._pinned, read_witness(WITNESS).values.nbytes
    (start,) = pool._starts or [start for starts in pool._free.values() for start in starts]
    return pool.holder(start, 1) is None and not machine.blocks[start][0][:size].any()


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:0"])
def test_a_witness_lies_there_while_it_is_proved(
    opened: CupyDevice, machine: Machine, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    real = CupyDevice.write

    def write(self: CupyDevice, to: int, data: Any, *stream: Any) -> None:
        seen.append(self.is_pinned(data))
        real(self, to, data, *stream)

    monkeypatch.setattr(CupyDevice, "write", write)
    words = read_witness(WITNESS).values
    for witness in (WITNESS, words, words_to_ints(words)):
        seen.clear()
        result = proof(device, witness)
        assert result.device == "cuda:0"
        assert seen.count(True) == 1, "it is sent once"
        assert nothing_left(opened, machine)
    assert opened._pinned.held == UNIT, "the same memory for all"


def test_a_computed_witness_lies_there_from_the_start(
    opened: CupyDevice, machine: Machine, tmp_path: Path
) -> None:
    given = {"inputs": {"a": [3, 5]}, "wasm": write_program(tmp_path / "circuit.wasm")}
    found = looked_at(given).load(BN254, Job(threads=1), None, partial(host_memory, "cuda:0"))
    assert words_to_ints(found.values) == [1, 3, 5]
    assert opened.is_pinned(found.values)


def test_the_cpu_takes_over_from_the_same_memory(opened: CupyDevice, machine: Machine) -> None:
    real = machine.driver.launchKernel
    machine.driver.launchKernel = lambda *given: setattr(machine, "lost", True) or real(*given)
    assert proof("auto").device == "cpu"
    assert nothing_left(opened, machine)


def test_a_proof_for_the_cpu_pins_nothing(opened: CupyDevice, machine: Machine) -> None:
    machine.pinnable = 0
    assert proof("cuda:0").device == "cuda:0", "ordinary memory serves, too"
    machine.pinnable = 1 << 30
    assert gpus.pinned("cuda:1", 5) is None, "that one is not open"
    assert not opened.is_pinned(host_memory("cpu", 5))
    assert opened.is_pinned(host_memory("auto", 5))


def test_what_is_no_witness_leaves_nothing(opened: CupyDevice, machine: Machine) -> None:
    data = bytearray((WITNESS).read_bytes())
    data[-1] = 0xFF  # the last value is too large
    with pytest.raises(MalformedFile):
        proof("cuda:0", bytes(data))
    assert nothing_left(opened, machine)
