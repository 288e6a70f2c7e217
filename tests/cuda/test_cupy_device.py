"""The device through CuPy, on a stand-in for it, and the registry of devices."""

from __future__ import annotations

import errno
import inspect
import os
import random
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpuprover import devices as registry
from gpuprover import folders
from gpuprover.cuda import compile, cupy_device, gpus, probe
from gpuprover.cuda.compile import CUBIN_VARIABLE
from gpuprover.cuda.cupy_device import CupyDevice
from gpuprover.cuda.device import MAIN, Device, Program
from gpuprover.cuda.source import proving_programs
from gpuprover.curves import BN254, CURVES
from gpuprover.errors import DeviceError, OutOfMemory
from gpuprover.folders import CACHE_VARIABLE
from gpuprover.job import Job
from tests.support import cuda_proofs, fake_cupy
from tests.support.emulator import EmulatedDevice
from tests.support.fake_cupy import Gpu, Machine, Schedule

pytestmark = pytest.mark.kernels_offline
VECTOR = Program(BN254, "vector.cu")
SMALL = Program(BN254, "sparse.cu")
"""The quickest to compile."""


@pytest.fixture(autouse=True)
def nothing_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_lost", {})


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(Gpu(), Gpu())
    machine.install(monkeypatch)
    monkeypatch.setattr(cupy_device, "load_cubin", lambda program, *_: fake_cupy.fake_cubin(program))
    return machine


@pytest.fixture
def device(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> CupyDevice:
    """With buffers so small that every test needs several."""
    monkeypatch.setattr(cupy_device, "CHUNK", 1000)
    monkeypatch.setattr(cupy_device, "MAX_BUFFERS", 3)
    return CupyDevice(0)


# The device -----------------------------------------------------------------------------------------


def test_it_is_what_the_package_asks_of_a_device(device: CupyDevice) -> None:
    """The same methods with the same parameters, in the emulated device too."""
    as_device: Device = device
    for name, method in inspect.getmembers(Device, inspect.isfunction):
        if not name.startswith("_"):
            for implementation in (CupyDevice, EmulatedDevice):
                parameters = inspect.signature(getattr(implementation, name)).parameters
                assert list(parameters) == list(inspect.signature(method).parameters), name
    assert as_device.properties.architecture == "sm_90"
    assert as_device.describe()["cupy"] == "14.2.0"


@pytest.mark.parametrize("size", [1, 999, 1000, 1001, 5500])
def test_arrays_may_change_once_they_are_written(device: CupyDevice, size: int) -> None:
    address = device.allocate(size)
    data = np.frombuffer(random.Random(size).randbytes(size), dtype=np.uint8).copy()
    expected = data.copy()
    device.write(address, data)
    data[:] = 0
    found = np.zeros_like(expected)
    device.read(found, address)
    assert (found == expected).all()


def test_arrays_of_every_kind(device: CupyDevice) -> None:
    records = np.zeros(70, dtype=[("matrix", "<u4"), ("value", "<u8", (4,))])
    records["value"] = np.arange(280).reshape(70, 4)
    unaligned = np.frombuffer(b"x" + bytes(range(160)), dtype=np.uint64, count=20, offset=1)
    for data in (records, unaligned, np.zeros((0, 4), np.uint64), np.arange(6, dtype=np.int32).reshape(2, 3)):
        address = device.allocate(max(1, data.nbytes))
        device.write(address, data)
        found = np.zeros_like(data)
        device.read(found, address)
        assert found.tobytes() == data.tobytes()
    with pytest.raises(ValueError, match="contiguous"):
        device.write(address, np.zeros((4, 4))[:, :2])


def test_pinned_memory_is_bounded_and_used_again(device: CupyDevice, machine: Machine) -> None:
    data = np.arange(20_000, dtype=np.uint64)
    address = device.allocate(data.nbytes)
    for _ in range(3):
        device.write(address, data)
        found = np.zeros_like(data)
        device.read(found, address)
        assert (found == data).all()
    assert machine.pinned == 3 * 1000


@pytest.mark.parametrize("buffers", [0, 1, 2])
def test_little_pinned_memory_or_none(device: CupyDevice, machine: Machine, buffers: int) -> None:
    """Slower, and right; nothing of it is asked for again and again."""
    machine.pinnable = 1000 * buffers
    data = np.frombuffer(random.Random(7).randbytes(9_500), dtype=np.uint8).copy()
    address, expected = device.allocate(len(data)), data.copy()
    for _ in range(2):
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda i: device.write(address + i, data[i : i + 2500]), range(0, 9_500, 2500)))
        data[:] = 0
        found = np.zeros_like(data)
        device.read(found, address)
        assert (found == expected).all()
        data[:] = expected
    assert machine.pinned == 1000 * buffers
    assert machine.calls["hostAlloc"] <= buffers + 3


def test_threads_write_at_once(device: CupyDevice) -> None:
    data = np.frombuffer(random.Random(5).randbytes(64_000), dtype=np.uint8).copy()
    address = device.allocate(len(data))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: device.write(address + i, data[i : i + 4000]), range(0, len(data), 4000)))
    found = np.zeros_like(data)
    device.read(found, address)
    assert (found == data).all()


def test_a_read_leaves_transfers_alone(device: CupyDevice, machine: Machine) -> None:
    """Where every pinned buffer has a transfer to do, none of them serves another one before that is done."""
    small, large, side = device.allocate(3000), device.allocate(5000), device.new_stream()
    device.fill(large, 9, 5000)
    device.synchronize()
    data = np.arange(3000, dtype=np.uint32).view(np.uint8)[:3000]
    device.write(small, data, side)
    machine.schedule = Schedule.MAIN_FIRST
    found = np.zeros(5000, np.uint8)
    device.read(found, large)
    assert (found == 9).all()
    got = np.zeros(3000, np.uint8)
    device.read(got, small, side)
    assert (got == data).all()


def test_streams_wait_for_each_other_when_told(device: CupyDevice) -> None:
    def second_sees(told: bool) -> int:
        a, b = device.allocate(1), device.allocate(1)
        device.fill(a, 1, 1)
        device.fill(b, 1, 1)
        device.synchronize()
        other = device.new_stream()
        device.fill(a, 7, 1)
        if told:
            device.wait(other, MAIN)
        device.copy(b, a, 1, other)
        out = np.zeros(1, np.uint8)
        device.read(out, b, other)
        return int(out[0])

    assert second_sees(told=True) == 7
    assert second_sees(told=False) == 1, "the stand-in would show a missing wait"


def test_kernels_take_words(device: CupyDevice, machine: Machine) -> None:
    p, limbs = BN254.r, BN254.scalar.limbs
    values = [pow(3, i, p) for i in range(40)]
    words = np.array([[v >> 64 * k & (1 << 64) - 1 for k in range(limbs)] for v in values], dtype=np.uint64)
    address = device.allocate(words.nbytes)
    device.write(address, words)
    # NumPy's integers are words, too, and negative ones: the second range is empty.
    device.launch(VECTOR, "convert", 2, 32, 0, np.int64(address), address, 0, 40)
    device.launch(VECTOR, "convert", 2, 32, 0, address, address, 40, -1)
    found = np.zeros_like(words)
    device.read(found, address)
    integers = [sum(int(word) << 64 * k for k, word in enumerate(row)) for row in found]
    assert integers == [v * BN254.scalar.R % p for v in values]
    assert machine.launches == [("convert", 2, 32, 0)] * 2


def test_large_shared_memory_is_asked_for_once(device: CupyDevice, machine: Machine) -> None:
    address = device.allocate(64)

    def launch(shared: int) -> None:
        device.launch(VECTOR, "convert", 1, 32, 0, address, address, 0, 0, shared=shared)

    for shared in (0, 40 << 10, 48 << 10, 100 << 10, 64 << 10, 100 << 10, 200 << 10):
        launch(shared)
    asked = [(9, 100), (8, 48 << 10), (8, 100 << 10), (8, 200 << 10)]  # the whole cache for it, first
    assert [(attribute, value) for _, attribute, value in machine.attributes] == asked
    assert device.resident_blocks(VECTOR, "convert", 256) == 8
    assert device.resident_blocks(VECTOR, "convert", 256, shared=220 << 10) == 8
    assert machine.attributes[-1][2] == 220 << 10


def test_memory_comes_from_the_device_and_goes_back(device: CupyDevice, machine: Machine) -> None:
    free = device.free_memory()
    address = device.allocate(1 << 20)
    assert device.free_memory() == free - (1 << 20)
    device.fill(address, 0, 1 << 20)
    device.release(address)  # waits for the work: the stand-in refuses otherwise
    assert device.free_memory() == free
    with pytest.raises(OutOfMemory, match="cuda:0: allocate failed"):
        device.allocate(1 << 40)
    assert probe.lost("cuda:0") is None
    device.release(device.allocate(1 << 20))


def test_the_current_device_stays_what_it_was(machine: Machine) -> None:
    first, second = CupyDevice(0), CupyDevice(1)
    machine.current = 0
    second.allocate(10)
    assert machine.current == 0
    with pytest.raises(OutOfMemory):
        second.allocate(1 << 40)
    assert machine.current == 0
    first.synchronize()


def test_a_device_that_fails_is_given_up(device: CupyDevice, machine: Machine) -> None:
    address = device.allocate(10)
    machine.lost = True
    with pytest.raises(DeviceError, match="cuda:0: synchronize failed: cudaErrorIllegalAddress"):
        device.synchronize()
    machine.lost = False
    calls: list[Callable[[], object]] = [
        device.synchronize,
        lambda: device.allocate(1),
        lambda: device.launch(VECTOR, "convert", 1, 1),
        lambda: gpus.open_device("cuda:0"),
    ]
    for call in calls:
        with pytest.raises(DeviceError, match="not used any more"):
            call()
    device.release(address)  # whoever cleans up is not disturbed
    assert probe.lost("cuda:1") is None


def test_other_errors_leave_the_device_usable(device: CupyDevice) -> None:
    with pytest.raises(DeviceError, match="launch failed"):
        device.launch(VECTOR, "no_such_kernel", 1, 1)
    with pytest.raises(DeviceError, match="launch failed"):
        device.launch(VECTOR, "convert", 1, 2000, 0, 0, 0, 0)
    device.synchronize()


def test_a_device_that_is_not_there(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match="cuda:7: start failed: cudaErrorInvalidDevice"):
        CupyDevice(7)
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(DeviceError, match="CuPy cannot be imported"):
        CupyDevice(0)


def test_programs_are_compiled_side_by_side(
    device: CupyDevice, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    built: list[Any] = []
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(cupy_device, "build", lambda units, *_, **__: built.extend(units))
    monkeypatch.setattr(
        cupy_device, "find_cubin", lambda program, *_: b"a cubin" if (program, "sm_90") in built else None
    )
    monkeypatch.setattr(device, "_nvrtc", SimpleNamespace(version=(13, 0)))
    both = [Program(curve, "vector.cu") for curve in CURVES]
    device.prepare(both)
    assert built == [(program, "sm_90") for program in both]
    assert not device._modules, "a program is loaded when it is first launched"


def test_one_program_that_cannot_be_had_hides_no_other(
    device: CupyDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(program: Program, *_: object) -> bytes:
        if program == SMALL:
            raise DeviceError("sparse.cu: does not compile")
        return fake_cupy.fake_cubin(program)

    monkeypatch.setattr(cupy_device, "load_cubin", load)
    monkeypatch.setattr(cupy_device, "find_cubin", lambda *_: None)
    monkeypatch.setattr(device, "_nvrtc", None)
    device.prepare([SMALL, VECTOR])
    device.launch(VECTOR, "convert", 1, 32, 0, 0, 0, 0, 0)
    with pytest.raises(DeviceError, match="does not compile"):
        device.launch(SMALL, "add_chunks", 1, 32)
    with pytest.raises(DeviceError, match="does not compile"):
        device.prepare([SMALL])
    monkeypatch.setattr(cupy_device, "find_cubin", lambda *_: b"not even a cubin")
    device.prepare([SMALL])
    device.synchronize()


def test_no_room_for_cubins_is_no_failure(
    device: CupyDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be built side by side is compiled one by one, and kept by nobody."""

    def full(*_: object, **__: object) -> None:
        raise DeviceError("vector.cu: No space left on device")

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.delenv(CUBIN_VARIABLE, raising=False)
    monkeypatch.setattr(cupy_device, "build", full)
    monkeypatch.setattr(folders, "_replace", refuse)
    monkeypatch.setattr(folders, "_told", set())
    monkeypatch.setattr(cupy_device, "load_cubin", compile.load_cubin)
    monkeypatch.setattr(compile, "compile_program", lambda program, *_: fake_cupy.fake_cubin(program))
    monkeypatch.setattr(compile, "package_folder", lambda: tmp_path / "nothing")
    monkeypatch.setattr(device, "_nvrtc", SimpleNamespace(version=(13, 0)))
    told: list[str] = []
    with folders.warnings_to(told.append):
        device.prepare([Program(curve, "vector.cu") for curve in CURVES])
    assert len(device._modules) == 2
    (text,) = told
    assert str(tmp_path / "cache") in text
    assert "No space left" in text


def test_moments_of_streams(device: CupyDevice, machine: Machine) -> None:
    """Times by the device's clock; events are used again."""
    address, side = device.allocate(1 << 20), device.new_stream()
    for _ in range(3):
        marks = [device.mark(), device.mark(side)]
        device.fill(address, 1, 1 << 20)
        device.wait(side, MAIN)
        marks += [device.mark(), device.mark(side)]
        assert 0 < device.seconds(marks[0], marks[2]) < 10
        assert 0 < device.seconds(marks[1], marks[3]) < 10
        del marks
    assert machine.timed == 4


def test_the_real_cupy_has_what_the_stand_in_has() -> None:
    pytest.importorskip("cupy", reason="CuPy is not installed")
    from cupy.cuda import driver, runtime

    machine = Machine()
    for real, fake in ((runtime, machine.runtime), (driver, machine.driver)):
        for name, thing in vars(fake).items():
            assert hasattr(real, name), name
            if isinstance(thing, int):
                assert getattr(real, name) == thing, name
    launch = re.search(r"launchKernel\((.*)\)", driver.launchKernel.__doc__)
    assert launch is not None
    assert launch[1].count(",") == 10
    assert issubclass(runtime.CUDARuntimeError, RuntimeError)
    assert issubclass(driver.CUDADriverError, RuntimeError)
    assert runtime.CUDARuntimeError(2).status == cupy_device.OUT_OF_MEMORY
    assert "NotReady" in str(runtime.CUDARuntimeError(cupy_device.NOT_READY))
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError:
        count = 0
    if not count:
        with pytest.raises(DeviceError, match="cuda:0: start failed"):
            CupyDevice(0)


# Waiting --------------------------------------------------------------------------------------------------


class Clock:
    """In place of the module ``time``: a nap takes what it takes, and a moment more."""

    def __init__(self) -> None:
        self.now = 0.0
        self.naps: list[float] = []

    def perf_counter(self) -> float:
        self.now += 1e-6
        return self.now

    def sleep(self, seconds: float) -> None:
        self.naps.append(self.now)
        self.now += seconds + 60e-6


def test_waiting_is_exact_and_who_waits_for_ever_takes_no_cpu(
    device: CupyDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A supervisor takes a process that hangs for dead, since it does not compute."""
    for seconds in (1e-4, 1e-3, 0.01, 0.1, 10.0):
        clock = Clock()
        monkeypatch.setattr(cupy_device, "time", clock)

        def query(_: int, clock: Clock = clock, seconds: float = seconds) -> int:
            return cupy_device.NOT_READY if clock.now < seconds else 0

        device._wait_until(query, 0)
        assert clock.now - seconds < seconds / 50 + 120e-6
    assert sum(nap > 9 for nap in clock.naps) < 200


# The registry ----------------------------------------------------------------------------------------------


def test_a_device_is_opened_once(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_open", {})
    assert gpus.open_device("cuda:1") is gpus.open_device("cuda:1")
    assert gpus.open_device("cuda:0").name == "cuda:0"


def test_backends_of_a_device_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_shared", {})
    monkeypatch.setattr(gpus, "_loaded", {})
    monkeypatch.setattr(gpus, "resolve", lambda name: name)
    monkeypatch.setattr(gpus, "proving_programs", lambda curve: [SMALL])
    prepared: list[Program] = []
    monkeypatch.setattr(EmulatedDevice, "prepare", lambda self, programs, check: prepared.extend(programs))
    emulated = {name: EmulatedDevice(name) for name in ("cuda:0", "cuda:1")}
    monkeypatch.setattr(gpus, "open_device", emulated.__getitem__)
    opened: list[Any] = [registry.open_backend(f"cuda:{i}", BN254, Job()) for i in (0, 0, 1)]
    assert prepared == [SMALL] * 2, "once for each device"
    assert opened[0]._gpu is opened[1]._gpu
    assert [one.name for one in opened] == ["cuda:0", "cuda:0", "cuda:1"]


def test_a_whole_proof(device: CupyDevice, machine: Machine) -> None:
    """All that the backend asks of a device, on one that does it as late as it may; BN254."""
    key, witness = cuda_proofs.chain_key(BN254), cuda_proofs.chain_witness(BN254)
    gpu = cuda_proofs.Residency(device)
    assert cuda_proofs.prove(key, witness, gpu) == cuda_proofs.expected(BN254)
    assert len(machine.launches) > 20
    listed = {compile.program_name(program) for program in proving_programs(BN254)}
    assert set(device._modules) <= listed
