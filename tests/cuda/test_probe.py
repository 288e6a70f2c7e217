"""The survey of GPUs, on made-up machines: what there is, and why none can be used."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpuprover import calibration
from gpuprover import devices as registry
from gpuprover.cuda import gpus, probe
from gpuprover.errors import DeviceError, InvalidInput
from tests.support import fake_cupy
from tests.support.fake_cupy import Gpu, Machine
from tests.support.paths import ROOT

pytestmark = pytest.mark.kernels_offline


@pytest.fixture(autouse=True)
def nothing_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_lost", {})


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
