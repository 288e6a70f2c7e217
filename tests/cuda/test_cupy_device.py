"""GPUs without one: CuPy's stand-in for the device, NVRTC for the cubins, made-up machines for the survey."""

from __future__ import annotations

import errno
import inspect
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpuprover import calibration, folders
from gpuprover import devices as registry
from gpuprover.cuda import build, compile, cupy_device, gpus, probe
from gpuprover.cuda.compile import CUBIN_VARIABLE, Nvrtc, find_nvrtc
from gpuprover.cuda.cupy_device import CupyDevice
from gpuprover.cuda.device import MAIN, Device, Program
from gpuprover.cuda.source import VARIANTS, programs, proving_programs
from gpuprover.curves import BN254, CURVES, CurveParams
from gpuprover.errors import DeviceError, InvalidInput, OutOfMemory
from gpuprover.folders import CACHE_VARIABLE
from gpuprover.job import Job
from tests.support import cuda_proofs, fake_cupy
from tests.support.emulator import EmulatedDevice
from tests.support.fake_cupy import Gpu, Machine, Schedule
from tests.support.paths import ROOT

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


# Cubins --------------------------------------------------------------------------------------------------


@pytest.fixture
def nvrtc() -> Nvrtc:
    found = find_nvrtc(13)
    if found is None:
        pytest.skip("the NVRTC tests need nvidia-cuda-nvrtc (pip install 'gpuprover[test]')")
    return found


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.delenv(CUBIN_VARIABLE, raising=False)
    return tmp_path / "cache"


def test_every_kernel_file_is_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    two = (("GROUP", "1"),), (("GROUP", "2"),)
    monkeypatch.setitem(VARIANTS, "vector.cu", two)
    found = [program for curve in CURVES for program in programs(curve)]
    assert {program.source for program in found} == {path.name for path in (ROOT / "kernels").glob("*.cu")}
    assert {program.defines for program in found if program.source == "vector.cu"} == set(two)
    assert len({compile.program_name(program) for program in found}) == len(found)
    assert set(VARIANTS) <= {program.source for program in found}


def test_a_cubin_is_compiled_once(nvrtc: Nvrtc, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cubin = compile.load_cubin(SMALL, "sm_90", nvrtc)
    assert cubin.startswith(b"\x7fELF")
    (path,) = cache.rglob("*.cubin")
    assert path.parent.name == "cubin-nvrtc{}.{}".format(*nvrtc.version)

    def refuse(*_: object) -> bytes:
        raise AssertionError("compiled again")

    with monkeypatch.context() as patch:
        patch.setattr(compile, "compile_program", refuse)
        assert compile.load_cubin(SMALL, "sm_90", nvrtc) == cubin
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1], whole[:500] + bytes([whole[500] ^ 1]) + whole[501:]):
        path.write_bytes(damaged)
        assert compile.load_cubin(SMALL, "sm_90", nvrtc) == cubin
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_names_change_with_all_that_goes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def name(program: Program = VECTOR, architecture: str = "sm_90") -> str:
        return compile.file_name(program, architecture)

    original = compile.sources
    plain = name()
    assert name(Program(CURVES[1], "vector.cu")) != plain
    assert name(Program(BN254, "vector.cu", (("GROUP", "2"),))) != plain
    assert name(architecture="sm_80") != plain

    def edited(file: str) -> Callable[[CurveParams], dict[str, str]]:
        return lambda curve: {**original(curve), file: "// edited"}

    for file, changes in (("field.cuh", True), ("vector.cu", True), ("other.cu", False)):
        monkeypatch.setattr(compile, "sources", edited(file))
        assert (name() != plain) is changes, file


def test_cubins_built_before_need_no_compiler(
    nvrtc: Nvrtc, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DeviceError, match=r"sparse\.cu: no cubin for sm_90.*pip install"):
        compile.load_cubin(SMALL, "sm_90", None)
    folder = tmp_path / "built"
    done: list[str] = []
    units = [(Program(curve, "sparse.cu"), "sm_90") for curve in CURVES]
    folder.mkdir()
    planted = tmp_path / "cwd"
    planted.mkdir()
    (planted / "argparse.py").write_text("raise SystemExit('imported from the current folder')")
    monkeypatch.chdir(planted)
    build.build(units, folder, nvrtc, processes=2, done=lambda name, seconds: done.append(name))
    assert sorted(done) == sorted(path.name for path in folder.iterdir())
    monkeypatch.setenv(CUBIN_VARIABLE, str(folder))
    assert compile.load_cubin(SMALL, "sm_90", None) == compile.compile_program(SMALL, "sm_90", nvrtc)
    build.build(units, folder, nvrtc, done=lambda *_: pytest.fail("built again"))


@pytest.mark.parametrize("where", ["the folder", "the file", "what it is in", "the cache"])
def test_cubins_that_others_could_have_written_are_not_loaded(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """One line says which, and what is made anew is taken."""
    compiler: Any = SimpleNamespace(version=(13, 0))
    monkeypatch.setattr(compile, "compile_program", lambda *_: b"compiled")
    monkeypatch.setattr(folders, "_told", set())
    folder = tmp_path / "above" / "built"
    if where == "the cache":
        folder = cache / compile.store(compiler).name
    else:
        monkeypatch.setenv(CUBIN_VARIABLE, str(folder))
    folder.mkdir(parents=True)
    path = folder / compile.file_name(SMALL, "sm_90")
    compile.write_cubin(path, b"planted")
    told: list[str] = []
    with folders.warnings_to(told.append):
        assert compile.load_cubin(SMALL, "sm_90", compiler) == b"planted"
        spoilt = {"the folder": folder, "the file": path, "what it is in": folder.parent, "the cache": path}[
            where
        ]
        spoilt.chmod(0o777)
        assert compile.load_cubin(SMALL, "sm_90", compiler) == b"compiled"
        assert compile.load_cubin(SMALL, "sm_90", compiler) == b"compiled"
    assert told == [f"compiled code is not used: {spoilt} may be written by others (mode 0777): chmod go-w"]


def test_others_may_read_what_is_built_and_not_write_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        compile.write_cubin(tmp_path / "x.cubin", b"cubin")
    finally:
        os.umask(before)
    assert (tmp_path / "x.cubin").stat().st_mode & 0o777 == 0o644


def test_no_room_for_cubins_is_no_failure(
    device: CupyDevice, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be built side by side is compiled one by one, and kept by nobody."""

    def full(*_: object, **__: object) -> None:
        raise DeviceError("vector.cu: No space left on device")

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cupy_device, "build", full)
    monkeypatch.setattr(folders, "_replace", refuse)
    monkeypatch.setattr(folders, "_told", set())
    monkeypatch.setattr(cupy_device, "load_cubin", compile.load_cubin)
    monkeypatch.setattr(compile, "compile_program", lambda program, *_: fake_cupy.fake_cubin(program))
    monkeypatch.setattr(compile, "package_folder", lambda: cache / "nothing")
    monkeypatch.setattr(device, "_nvrtc", SimpleNamespace(version=(13, 0)))
    told: list[str] = []
    with folders.warnings_to(told.append):
        device.prepare([Program(curve, "vector.cu") for curve in CURVES])
    assert len(device._modules) == 2
    (text,) = told
    assert str(cache) in text
    assert "No space left" in text


def test_a_build_can_be_stopped(nvrtc: Nvrtc, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    calls = []

    def check() -> None:
        calls.append(0)
        if len(calls) == 3:
            raise Stop

    with pytest.raises(Stop):
        build.build([(SMALL, "sm_90")], tmp_path, nvrtc, check=check)
    assert not list(tmp_path.iterdir())


def test_what_does_not_compile_is_told(nvrtc: Nvrtc) -> None:
    with pytest.raises(DeviceError, match=r"NVRTC: bad\.cu for sm_90: .*bad\.cu\(1\): error"):
        nvrtc.compile("int x = y;", "bad.cu", {}, "sm_90")
    with pytest.raises(DeviceError, match="sm_13"):
        nvrtc.compile("", "empty.cu", {}, "sm_13")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--arch", "sm_13"], 2, "--arch: expected some of sm_75, "),
        (["--arch", "sm_90", "--only", "x"], 2, "--only: expected one of msm.bn254.GROUP-2, "),
        (["--arch", "sm_90", "--jobs", "0"], 2, "--jobs: expected a whole number"),
        (["--arch", "sm_90", "--cuda", "11"], 3, "NVRTC is missing"),
        (["--arch", "sm_90", "--output", "/proc/none"], 2, "/proc/none: "),
        (["--arch", "sm_90", "--only", "sparse.bn254"], 0, ""),
    ],
)
def test_the_command(
    nvrtc: Nvrtc,
    arguments: list[str],
    code: int,
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert build.main(["--output", str(tmp_path), *arguments]) == code
    out, err = capsys.readouterr()
    assert says in err
    assert (out == f"1 cubins in {tmp_path}\n") is (code == 0)


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


# The survey ----------------------------------------------------------------------------------------------


class NVMLError(Exception):
    pass


def fake_nvml(free: dict[str, int], instances: dict[str, dict[str, int]] | None = None) -> Any:
    """The functions of pynvml that the survey calls. Handles are places on the bus, or names of instances.

    ``instances``: of GPUs in MIG mode, by place on the bus: name -> bytes that are free.
    """
    divided = instances or {}
    mig = {f"MIG-{name}": size for own in divided.values() for name, size in own.items()}
    parents = {f"MIG-{name}": bus for bus, own in divided.items() for name in own}

    def found(name: str) -> str:
        if name not in free and name not in mig:
            raise NVMLError(name)
        return name

    # The first places are empty.
    def instance(handle: str, i: int) -> str:
        return found(["", "", *(f"MIG-{name}" for name in divided[handle]), "", "", "", "", ""][i])

    def parent(handle: str) -> str:
        if handle not in parents:
            raise NVMLError(handle)
        return parents[handle]

    return SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlSystemGetDriverVersion=lambda: b"580.159.03",
        nvmlDeviceGetCount=lambda: len(free),
        nvmlDeviceGetHandleByIndex=list(free).__getitem__,
        nvmlDeviceGetHandleByPciBusId=found,
        nvmlDeviceGetHandleByUUID=found,
        nvmlDeviceGetUUID=lambda handle: handle if handle in mig else f"GPU-of-{handle}",
        nvmlDeviceGetMigMode=lambda handle: (int(handle in divided), 0),
        nvmlDeviceGetMaxMigDeviceCount=lambda handle: 7,
        nvmlDeviceGetMigDeviceHandleByIndex=instance,
        nvmlDeviceGetDeviceHandleFromMigDeviceHandle=parent,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(free={**free, **mig}[handle]),
    )


class World:
    """A made-up machine to look at; by default all is well."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.machine = Machine(Gpu(), Gpu("NVIDIA A100", (8, 0)))
        self.driver: int | None = 13000
        self.packages = {"cupy-cuda13x": "14.2.0"}
        self.nvrtc: Any = SimpleNamespace(version=(13, 0), architectures=lambda: ["sm_80", "sm_90"])
        self.built: list[Path] = []
        self.nvml: Any = fake_nvml({"0000:00:00.0": 1 << 30, "0000:01:00.0": 2 << 30})
        self.uuids: dict[int, str] = {}
        """As CUDA knows them."""
        self._patch = monkeypatch

    def survey(self) -> probe.Survey:
        patch = self._patch
        self.machine.install(patch, self.driver or 0)
        patch.setitem(sys.modules, "pynvml", self.nvml)
        patch.setattr(probe, "driver_cuda", lambda: self.driver)
        patch.setattr(probe, "_cuda_uuid", self.uuids.get)
        patch.setattr(probe, "_version", self.packages.get)
        patch.setattr(probe, "find_nvrtc", lambda major: self.nvrtc)
        patch.setattr(probe, "built_folders", lambda: self.built)
        return probe.survey()

    def refusal(self) -> str:
        """Why ``--device cuda`` is refused."""
        found = self.survey()
        self._patch.setattr(gpus, "_survey", lambda: found)
        with pytest.raises(DeviceError) as caught:
            registry.resolve_device("cuda")
        return caught.value.message.removeprefix("device 'cuda' is not available: ")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return World(monkeypatch)


def test_what_there_is(world: World) -> None:
    found = world.survey()
    assert (found.driver, found.driver_cuda, found.cupy, found.nvrtc) == (
        "580.159.03",
        (13, 0),
        "14.2.0",
        (13, 0),
    )
    assert found.problem is None
    assert [(g.name, g.model, g.architecture, g.total, g.free) for g in found.gpus] == [
        ("cuda:0", "NVIDIA H200", "sm_90", 1 << 30, 1 << 30),
        ("cuda:1", "NVIDIA A100", "sm_80", 1 << 30, 2 << 30),
    ]
    assert all(gpu.usable for gpu in found.gpus)
    assert not world.machine.handles, "looking takes no context, no stream, no memory"
    assert not world.machine.blocks


def test_the_freest_is_taken(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    found = world.survey()
    monkeypatch.setattr(gpus, "_survey", lambda: found)
    assert registry.resolve_device("cuda") == "cuda:1"
    assert registry.resolve_device("cuda:0") == "cuda:0"
    with pytest.raises(DeviceError, match=r"'cuda:2' is not available: found cuda:0 \(NVIDIA H200\), cuda:1"):
        registry.resolve_device("cuda:2")
    for name in ("cuda:", "cuda:x", "cuda:00", "cuda:-1", "cuda:²"):
        with pytest.raises(InvalidInput, match="expected cuda or cuda:0, say"):
            registry.resolve_device(name)
    registry.distrust("cuda:1", "it broke")
    assert registry.resolve_device("cuda") == "cuda:0"
    with pytest.raises(DeviceError, match=r"it failed earlier in this process: it broke; start the program"):
        registry.resolve_device("cuda:1")
    registry.distrust("cuda:0", "broken, too")
    with pytest.raises(DeviceError, match="broken, too"):
        registry.resolve_device("cuda")
    assert "broken, too" in (registry.refused_gpu() or "")


def test_memory_is_unknown_without_nvml(world: World) -> None:
    world.nvml = None
    found = world.survey()
    assert found.driver is None
    assert [(gpu.free, gpu.uuid, gpu.usable) for gpu in found.gpus] == [(None, "", True)] * 2


FIRST, OTHER = "0000:00:00.0", "0000:01:00.0"


@pytest.mark.parametrize(
    ("visible", "known", "seen"),
    [
        (None, None, "MIG-a"),
        (None, "b", "MIG-b"),
        ("0", None, "MIG-a"),
        ("0", "b", "MIG-b"),
        ("MIG-b", None, "MIG-b"),
        (" MIG-b ", None, "MIG-b"),
        ("MIG-b,MIG-a", None, "MIG-b"),
        ("MIG-elsewhere,MIG-b", None, "MIG-b"),
        ("GPU-of-0000:00:00.0,MIG-b", None, "MIG-b"),
        ("MIG-unknown", None, "MIG-a"),
        ("MIG-a", "b", "MIG-b"),
        ("MIG-a", "unknown", "MIG-a"),
    ],
)
def test_an_instance_of_a_divided_gpu(
    world: World, monkeypatch: pytest.MonkeyPatch, visible: str | None, known: str | None, seen: str
) -> None:
    """CUDA and NVML agree on the place of the whole GPU; name and free memory are the instance's."""
    world.machine.gpus = world.machine.gpus[:1]
    free = {"MIG-a": 10, "MIG-b": 20}
    world.nvml = fake_nvml({FIRST: 100, OTHER: 200}, {FIRST: {"a": 10, "b": 20}, OTHER: {"elsewhere": 30}})
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if known is not None:
        world.uuids[0] = known
    found = world.survey()
    monkeypatch.setattr(gpus, "_survey", lambda: found)
    (gpu,) = gpus.gpus()
    assert (gpu.uuid, gpu.free) == (seen, free[seen])
    _, device = calibration.devices(1)
    assert (device.name, device.uuid, device.memory) == ("cuda:0", seen, free[seen])


def test_the_memory_of_a_whole_gpu_is_no_instance_s(world: World) -> None:
    """Where NVML shows no instance, or more than CUDA, memory is what CUDA says."""
    world.machine.gpus = world.machine.gpus[:1]
    total = 1 << 30
    world.nvml = fake_nvml({FIRST: 1 << 40}, {FIRST: {}})
    (gpu,) = world.survey().gpus
    assert (gpu.uuid, gpu.total, gpu.free) == ("", total, None)
    world.machine.gpus = [Gpu("NVIDIA H200 MIG 1g.18gb")]
    world.uuids[0] = "a"
    (gpu,) = world.survey().gpus
    assert (gpu.uuid, gpu.free) == ("MIG-a", None)
    world.nvml = fake_nvml({FIRST: 1 << 40}, {FIRST: {"a": 1 << 39}})
    (gpu,) = world.survey().gpus
    assert (gpu.uuid, gpu.free) == ("MIG-a", total)


def test_gpus_in_another_order_than_nvml_s(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA_VISIBLE_DEVICES picks one by its name: it is the first then, and NVML knows it by its place."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"GPU-of-{OTHER}")
    world.machine.gpus = [Gpu(bus=OTHER)]
    world.nvml = fake_nvml({FIRST: 100, OTHER: 200})
    (gpu,) = world.survey().gpus
    assert (gpu.name, gpu.uuid, gpu.free) == ("cuda:0", f"GPU-of-{OTHER}", 200)
    world.nvml, world.uuids[0] = None, "its-own"
    (gpu,) = world.survey().gpus
    assert (gpu.uuid, gpu.free) == ("GPU-its-own", None)


def test_the_driver_says_what_a_gpu_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "01020304-0506-0708-090a-0b0c0d0e0f10"

    def get_uuid(target: Any, device: Any) -> int:
        target._obj[:] = range(1, 17)
        return 0 if device.value == 3 else 101

    def get(target: Any, index: Any) -> int:
        target._obj.value = index.value + 1
        return 0

    library = SimpleNamespace(cuInit=lambda flags: 0, cuDeviceGet=get, cuDeviceGetUuid_v2=get_uuid)
    monkeypatch.setattr(probe.ctypes, "CDLL", lambda _: library)
    assert probe._cuda_uuid(2) == name
    assert probe._cuda_uuid(1) is None
    del library.cuDeviceGetUuid_v2
    assert probe._cuda_uuid(2) is None


def no_driver(world: World) -> None:
    world.driver = None


def old_driver(world: World) -> None:
    world.driver = 11040


def driver_of_cuda_12(world: World) -> None:
    world.driver = 12040


def no_cupy(world: World) -> None:
    world.packages = {}


def no_cupy_and_cuda_12(world: World) -> None:
    world.packages, world.driver = {}, 12080


def two_cupys(world: World) -> None:
    world.packages["cupy-cuda12x"] = "14.2.0"


def no_nvrtc(world: World) -> None:
    world.nvrtc = None


def too_new(world: World) -> None:
    world.machine.gpus = [Gpu(capability=(15, 0))]


def turing_under_13(world: World) -> None:
    world.machine.gpus = [Gpu(capability=(7, 0))]


def pascal(world: World) -> None:
    world.machine.gpus = [Gpu(capability=(6, 1))]


def prohibited(world: World) -> None:
    world.machine.gpus = [Gpu(compute_mode=2)]


def none_visible(world: World) -> None:
    world.machine.gpus = []


def undivided(world: World) -> None:
    world.machine.gpus = []
    world.nvml = fake_nvml({FIRST: 1}, {FIRST: {}})


def broken(world: World) -> None:
    world.machine.lost = True


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        (no_driver, "no NVIDIA driver on this machine; on a machine with an NVIDIA GPU, install driver 580"),
        (old_driver, "the NVIDIA driver is too old: it runs CUDA 11.4 at most; install driver 525 or newer"),
        (
            driver_of_cuda_12,
            "CuPy is made for CUDA 13, the driver runs CUDA 12.4 at most; pip uninstall -y cupy-cuda13x, "
            "then pip install 'gpuprover[cuda12]'; or update the driver to 580 or newer",
        ),
        (no_cupy, "CuPy is not installed; pip install 'gpuprover[cuda13]'"),
        (no_cupy_and_cuda_12, "CuPy is not installed; pip install 'gpuprover[cuda12]'"),
        (
            two_cupys,
            "cupy-cuda13x and cupy-cuda12x are installed, and overwrite each other; pip uninstall -y",
        ),
        (no_nvrtc, "NVRTC, which compiles the kernels, is missing; pip install 'gpuprover[cuda13]'"),
        (too_new, "does not compile for sm_150; pip install --upgrade 'gpuprover[cuda13]'"),
        (turing_under_13, "does not compile for sm_70; pip install 'gpuprover[cuda12]'"),
        (pascal, "its compute capability is 6.1, 7.0 or newer is needed"),
        (prohibited, "its compute mode is 'prohibited'; nvidia-smi -c DEFAULT"),
        (none_visible, "the driver reports no GPU; see `nvidia-smi`"),
        (undivided, "the GPU is in MIG mode and has no instance for this process; make one: nvidia-smi mig"),
        (broken, "CUDA does not start: cudaErrorIllegalAddress"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_why_no_gpu_can_be_used(world: World, trouble: Callable[[World], None], says: str) -> None:
    trouble(world)
    refusal = world.refusal()
    assert says in refusal
    # Worth a line where a GPU is there and not used, and none on a machine without.
    assert (registry.refused_gpu() is None) is (trouble is no_driver)


def test_hidden_gpus(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    world.machine.gpus = []
    assert "CUDA_VISIBLE_DEVICES='7' shows no GPU to this process; unset it" in world.refusal()


def test_a_container_without_the_driver_library(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_KERNEL_DRIVER", tmp_path)
    world.driver = None
    assert "start it with --gpus all" in world.refusal()


def test_a_broken_cupy(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def install(*_: object) -> None:
        for name in ("cupy", "cupy.cuda"):
            monkeypatch.setitem(sys.modules, name, None)

    monkeypatch.setattr(world.machine, "install", install)
    refusal = world.refusal()
    assert "CuPy cannot be imported: import of cupy.cuda halted" in refusal
    assert "--force-reinstall" in refusal


def test_built_cubins_do_without_nvrtc(world: World, tmp_path: Path) -> None:
    no_nvrtc(world)
    (tmp_path / "vector.bn254.sm_80.0123.cubin").touch()
    world.built = [tmp_path]
    assert [gpu.usable for gpu in world.survey().gpus] == [False, True]


def test_one_bad_gpu_beside_a_good_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    real = world.machine.runtime.getDeviceProperties

    def properties(index: int) -> Any:
        if index == 0:
            raise fake_cupy.CUDARuntimeError(999)
        return real(index)

    world.machine.runtime.getDeviceProperties = properties
    bad, good = world.survey().gpus
    assert (bad.usable, good.usable) == (False, True)
    assert "does not answer" in (bad.problem or "")


def test_the_real_nvml_has_what_the_stand_in_has() -> None:
    pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    assert not [name for name in vars(fake_nvml({})) if not hasattr(pynvml, name)]


def test_the_survey_of_this_very_machine() -> None:
    """In a process of its own, with whatever is installed here: an answer, no exception, no context."""
    program = "from gpuprover.cuda.probe import survey; s = survey(); print(bool(s.gpus) or s.problem)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip()
    assert done.stderr == ""


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
    gpu = cuda_proofs.Gpu(device)
    assert cuda_proofs.prove(key, witness, gpu) == cuda_proofs.expected(BN254)
    assert len(machine.launches) > 20
    listed = {compile.program_name(program) for program in proving_programs(BN254)}
    assert set(device._modules) <= listed
