"""The CPU takes over from a GPU that fails, and nothing else is retried.

The GPU is an emulated device that fails on demand. Its backend computes on the CPU and asks the device before
every step, so that a fault can be put at any step of a proof.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import gpuprover
import gpuprover.cuda.backend
import gpuprover.cuda.residency
from gpuprover import calibration, cuda, scheduler
from gpuprover.circuits import Circuit, chain_circuit
from gpuprover.cpu.backend import CpuBackend
from gpuprover.cuda import gpus, probe
from gpuprover.cuda.allocation import Pool
from gpuprover.cuda.probe import FoundGpu, Survey
from gpuprover.curves import BN254
from gpuprover.devices import open_backend
from gpuprover.errors import Cancelled, DeviceError, OutOfMemory, Timeout, UnsatisfiedWitness
from gpuprover.job import Job
from gpuprover.systems.groth16 import prover
from tests.support.emulator import EmulatedDevice, Faults
from tests.support.paths import VECTORS
from tests.support.running import Run

pytestmark = pytest.mark.kernels_offline
BLINDING = (7, 11)
H200 = FoundGpu("cuda:0", "an-id", "NVIDIA H200", "sm_90", 1 << 30, 1 << 30)


class Steps:
    """The CPU's backend as that of a device: every method first waits for the device."""

    def __init__(self, gpu: Any, hosts: CpuBackend) -> None:
        self._gpu, self._host = gpu, hosts
        self.name = gpu.device.name

    def __getattr__(self, name: str) -> Any:
        thing = getattr(self._host, name)
        if not callable(thing):
            return thing

        def step(*arguments: Any, **options: Any) -> Any:
            self._gpu.before(name)
            return self._gpu.after(name, thing(*arguments, **options))

        return step


@dataclass
class FakeGpu:
    """What happens on the device: ``before`` and ``after`` may be replaced."""

    device: EmulatedDevice

    def __post_init__(self) -> None:
        self.steps: list[str] = []
        self.pool = Pool(self.device)
        self.trouble: Callable[[str], None] = lambda name: None
        self.after: Callable[[str, Any], Any] = lambda name, result: result

    def before(self, name: str) -> None:
        self.steps.append(name)
        self.device.synchronize()
        self.trouble(name)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """A machine with one GPU, which every circuit is worth."""
    gpu = FakeGpu(EmulatedDevice())
    one_gpu(monkeypatch, lambda: gpu.device)
    monkeypatch.setattr(cuda.residency, "Residency", lambda device, limit: gpu)
    monkeypatch.setattr(
        cuda.backend,
        "CudaBackend",
        lambda curve, job, gpu, host, host_parts: Steps(gpu, CpuBackend(curve, job)),
    )
    return gpu


def one_gpu(monkeypatch: pytest.MonkeyPatch, device: Callable[[], EmulatedDevice]) -> None:
    monkeypatch.setattr(gpus, "_shared", {})
    monkeypatch.setattr(gpus, "_loaded", {})
    monkeypatch.setattr(gpus, "open_device", lambda name: device())
    monkeypatch.setattr(gpus, "proving_programs", lambda curve: [])
    monkeypatch.setattr(gpus, "_survey", lambda: Survey(gpus=(H200,), driver_cuda=(13, 0)))
    monkeypatch.setattr(probe, "_lost", {})
    faster(monkeypatch, "cuda")
    # Of small circuits nobody expects to be on a GPU.
    monkeypatch.setattr(scheduler, "tier_of", lambda constraints: scheduler.TIERS[-1])


@dataclass(frozen=True)
class Known:
    """Times of a machine on which one kind of device is faster, whatever the circuit."""

    kind: str
    part: float = 0.0

    def seconds(
        self, work: str, device: scheduler.DeviceInfo, constraints: int, threads: int, part: str | None = None
    ) -> float:
        return self.part if part is not None else 1.0 if device.kind == self.kind else 2.0

    def measured(self, work: str, device: scheduler.DeviceInfo) -> bool:
        return True


def faster(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(calibration, "load", lambda: Known(kind))


@dataclass(frozen=True)
class Made:
    circuit: Circuit
    r1cs: Path
    zkey: Path
    wtns: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("chain")
    made = Made(chain_circuit(100), folder / "c.r1cs", folder / "c.zkey", folder / "c.wtns")
    made.circuit.write(made.r1cs, made.wtns)
    gpuprover.setup(made.r1cs, made.zkey, insecure=True, device="cpu")
    return made


@pytest.fixture(scope="module")
def expected(made: Made) -> Any:
    return gpuprover.prove(made.zkey, made.wtns, blinding=BLINDING, device="cpu").proof


def test_a_good_gpu_proves(gpu: FakeGpu, made: Made, expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for device in ("auto", "cuda", "cuda:0"):
        result = gpuprover.prove(made.zkey, made.wtns, blinding=BLINDING, device=device)
        assert (result.device, result.proof) == ("cuda:0", expected)
        assert not any("cuda" in warning for warning in result.warnings)
    faster(monkeypatch, "cpu")
    assert gpuprover.prove(made.zkey, made.wtns).device == "cpu"


def test_a_part_that_the_cpu_does_meanwhile(
    gpu: FakeGpu, made: Made, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where both were measured and it is predicted to pay."""
    seen = []

    def opened(curve: Any, job: Any, gpu: Any, host: Any, host_parts: Any) -> Steps:
        seen.append(set(host_parts))
        return Steps(gpu, CpuBackend(curve, job))

    monkeypatch.setattr(cuda.backend, "CudaBackend", opened)
    monkeypatch.setattr(calibration, "load", lambda: Known("cuda", part=0.5))
    assert gpuprover.prove(made.zkey, made.wtns, blinding=BLINDING).proof == expected
    assert gpuprover.prove(made.zkey, made.wtns, blinding=BLINDING, device="cuda").proof == expected
    assert seen == [{"G2"}, set()]


def steps_of_a_proof(gpu: FakeGpu, made: Made) -> int:
    calls = gpu.device.calls
    gpuprover.prove(made.zkey, made.wtns, device="cuda")
    return gpu.device.calls - calls


def test_the_cpu_takes_over_at_every_step(gpu: FakeGpu, made: Made, expected: Any) -> None:
    steps = steps_of_a_proof(gpu, made)
    assert steps > 10
    for step in range(steps):
        gpu.device = EmulatedDevice(faults=Faults(lost=step))
        result = gpuprover.prove(made.zkey, made.wtns, blinding=BLINDING)
        assert (result.device, result.proof) == ("cpu", expected)
        assert result.warnings[-1] == "cuda:0: the device is lost; the CPU took over"
        assert "msm" in result.timings


def test_the_cpu_takes_over_where_memory_ends(gpu: FakeGpu, made: Made, expected: Any) -> None:
    def full(name: str) -> None:
        if name == "msm_many":
            raise OutOfMemory("cuda:0: no room for 5 bytes")

    gpu.trouble = full
    result = gpuprover.prove(made.zkey, made.wtns, blinding=BLINDING)
    assert (result.device, result.proof) == ("cpu", expected)
    assert result.warnings[-1] == "cuda:0: no room for 5 bytes; the CPU took over"
    assert probe.lost("cuda:0") is None
    gpu.trouble = lambda name: None
    assert gpuprover.prove(made.zkey, made.wtns).device == "cuda:0"
    gpu.trouble = full
    with pytest.raises(OutOfMemory, match="no room for 5 bytes"):
        gpuprover.prove(made.zkey, made.wtns, device="cuda")


def test_a_gpu_that_was_asked_for_is_not_replaced(gpu: FakeGpu, made: Made) -> None:
    for device in ("cuda", "cuda:0"):
        gpu.device = EmulatedDevice(faults=Faults(lost=3))
        with pytest.raises(DeviceError, match="cuda:0: the device is lost"):
            gpuprover.prove(made.zkey, made.wtns, device=device)


def test_each_run_draws_its_own_blinding(gpu: FakeGpu, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[int, int]] = []
    real = prover.random_blinding

    def draw(key: Any) -> tuple[int, int]:
        drawn.append(real(key))
        return drawn[-1]

    def fail(name: str) -> None:
        if name == "msm_many":
            raise DeviceError("cuda:0: broken")

    gpu.trouble = fail
    monkeypatch.setattr(prover, "random_blinding", draw)
    assert gpuprover.prove(made.zkey, made.wtns).device == "cpu"
    assert len(set(drawn)) == 2


def test_kernels_run_again_after_a_failure_among_threads(
    gpu: FakeGpu, made: Made, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure within Job.map tells all kernels to stop; those of the CPU must not hear it."""
    jobs: list[Any] = []
    opened: Any = cuda.backend.CudaBackend

    def fail(name: str) -> None:
        if name == "msm_many":
            jobs[-1].map(lambda i: gpu.device.launch(None, "", 0, 0) if i else None, range(4))  # type: ignore[arg-type]

    def watched(curve: Any, job: Any, *others: Any) -> Any:
        jobs.append(job)
        return opened(curve, job, *others)

    monkeypatch.setattr(cuda.backend, "CudaBackend", watched)
    gpu.trouble = fail
    gpu.device = EmulatedDevice(faults=Faults(launch=1))
    result = gpuprover.prove(made.zkey, made.wtns, blinding=BLINDING, threads=2)
    assert (result.device, result.proof) == ("cpu", expected)


# A GPU that computes wrongly ---------------------------------------------------------------------------


def wrong_sums(name: str, result: Any) -> Any:
    if name == "msm_many":
        (a, b1, b2), *rest = result
        return [[b1, a, b2], *rest]
    return result


def test_a_wrong_proof_of_a_gpu_is_not_the_witness_fault(gpu: FakeGpu, made: Made, expected: Any) -> None:
    gpu.after = wrong_sums
    result = gpuprover.prove(made.zkey, made.wtns, blinding=BLINDING)
    assert (result.device, result.proof) == ("cpu", expected)
    assert (
        result.warnings[-1] == "cuda:0: it made a wrong proof from a good key and witness; the CPU took over"
    )
    # It is not asked again, and whoever insists on it is told why.
    gpu.steps.clear()
    again = gpuprover.prove(made.zkey, made.wtns)
    assert again.device == "cpu"
    assert not gpu.steps
    assert "it made a wrong proof" in again.warnings[-1]
    with pytest.raises(DeviceError, match="it failed earlier in this process: cuda:0: it made a wrong proof"):
        gpuprover.prove(made.zkey, made.wtns, device="cuda")


def test_a_wrong_proof_of_a_gpu_that_was_asked_for(gpu: FakeGpu, made: Made) -> None:
    gpu.after = wrong_sums
    with pytest.raises(DeviceError, match="cuda:0: it made a wrong proof from a good key and witness"):
        gpuprover.prove(made.zkey, made.wtns, device="cuda")


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_bad_witness_is_the_witness_fault(gpu: FakeGpu, made: Made, device: str) -> None:
    values = np.array(made.circuit.witness.values)
    values[5, 0] ^= np.uint64(1)
    with pytest.raises(UnsatisfiedWitness):
        gpuprover.prove(made.zkey, values, device=device)
    assert probe.lost("cuda:0") is None


def test_a_gpu_that_does_not_start(
    gpu: FakeGpu, made: Made, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str) -> EmulatedDevice:
        raise DeviceError(f"{name}: start failed")

    monkeypatch.setattr(gpus, "open_device", refuse)
    result = gpuprover.prove(made.zkey, made.wtns, blinding=BLINDING)
    assert (result.device, result.proof) == ("cpu", expected)
    assert result.warnings[-1] == "cuda:0: start failed; the CPU took over"


# The real backend --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        ({"faults": Faults(lost=3)}, "the device is lost"),
        ({"faults": Faults(lost=60)}, "the device is lost"),
        ({"faults": Faults(launch=1)}, "launch of"),
        ({"faults": Faults(launch=9)}, "launch of"),
        ({"faults": Faults(allocation=1)}, None),
        ({"memory": 5000}, "cuda:0"),
        ({}, None),
    ],
)
def test_the_backend_on_a_device_that_fails(
    monkeypatch: pytest.MonkeyPatch, trouble: dict[str, Any], says: str | None
) -> None:
    device = EmulatedDevice(**trouble)
    one_gpu(monkeypatch, lambda: device)
    result = gpuprover.prove(VECTORS / "chain5.bn254.zkey", VECTORS / "chain5.bn254.wtns", blinding=BLINDING)
    assert result.proof == json.loads((VECTORS / "chain5.bn254.proof.json").read_text())
    assert result.device == ("cuda:0" if says is None else "cpu")
    told = [warning for warning in result.warnings if "the CPU took over" in warning]
    assert len(told) == (says is not None)
    assert all(str(says) in line for line in told)


def test_a_key_that_the_gpu_makes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device = EmulatedDevice()
    one_gpu(monkeypatch, lambda: device)
    monkeypatch.setattr(cuda.backend, "FEWEST_MULTIPLES", 1)
    chain_circuit(12).write(tmp_path / "c.r1cs", tmp_path / "c.wtns")
    gpuprover.setup(tmp_path / "c.r1cs", tmp_path / "c.zkey", insecure=True, device="cuda")
    assert "multiply_fixed" in device.kernels
    assert gpuprover.prove(tmp_path / "c.zkey", tmp_path / "c.wtns", device="cpu").proof


def test_the_limit_on_a_gpu_reaches_its_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    device = EmulatedDevice()
    one_gpu(monkeypatch, lambda: device)
    monkeypatch.setenv("PROVER_GPU_MEMORY_LIMIT", "3")
    open_backend("cuda:0", BN254, Job())
    pool = gpus._shared["cuda:0"].pool
    assert pool.limit == 3 << 20
    before = gpuprover.memory_usage().gpu_pool or 0
    pool.allocate(1 << 20)
    assert gpuprover.memory_usage().gpu_pool == before + (1 << 20)


# What is not retried --------------------------------------------------------------------------------------


def test_a_cancelled_proof_is_over(gpu: FakeGpu, made: Made) -> None:
    cancel = threading.Event()

    def fail(name: str) -> None:
        if name == "msm_many":
            cancel.set()
            raise DeviceError("cuda:0: broken")

    gpu.trouble = fail
    with pytest.raises(Cancelled):
        gpuprover.prove(made.zkey, made.wtns, cancel=cancel)


def test_the_deadline_goes_on(gpu: FakeGpu, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("gpuprover.job.time", SimpleNamespace(perf_counter=lambda: now[0]))

    def slow(name: str) -> None:
        if name == "msm_many":
            now[0] += 5
            raise DeviceError("cuda:0: broken")

    gpu.trouble = slow
    with pytest.raises(Timeout, match=r"after 5\.0 s"):
        gpuprover.prove(made.zkey, made.wtns, timeout=4)
    result = gpuprover.prove(made.zkey, made.wtns, timeout=6)
    assert result.device == "cpu"
    assert result.timings["msm"] >= 5, "what the device took counts"


def test_bad_input_is_not_retried(gpu: FakeGpu, made: Made) -> None:
    with pytest.raises(gpuprover.WitnessMismatch):
        gpuprover.prove(made.zkey, [1, 2, 3])
    assert not gpu.steps


# GPUs that cannot be used -----------------------------------------------------------------------------------


def test_a_gpu_that_is_not_used_is_told(gpu: FakeGpu, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    why = Survey(driver_cuda=(13, 0), problem="CuPy is not installed", advice="install it")
    monkeypatch.setattr(gpus, "_survey", lambda: why)
    result = gpuprover.prove(made.zkey, made.wtns)
    assert result.device == "cpu"
    assert result.warnings[-1] == (
        "device 'cuda' is not available: CuPy is not installed; install it; the CPU proves instead"
    )
    monkeypatch.setattr(gpus, "_survey", lambda: Survey(problem="no driver"))
    assert not any("cuda" in warning for warning in gpuprover.prove(made.zkey, made.wtns).warnings)


# Set-up, command line -------------------------------------------------------------------------------


def test_a_setup_is_the_cpu_s_unless_a_gpu_is_asked_for(gpu: FakeGpu, made: Made, tmp_path: Path) -> None:
    gpuprover.setup(made.r1cs, tmp_path / "c.zkey", insecure=True)
    assert not gpu.steps
    assert gpuprover.prove(tmp_path / "c.zkey", made.wtns, device="cpu").proof
    gpuprover.setup(made.r1cs, tmp_path / "good.zkey", insecure=True, device="cuda")
    assert gpu.steps
    gpu.device = EmulatedDevice(faults=Faults(lost=2))
    with pytest.raises(DeviceError, match="lost"):
        gpuprover.setup(made.r1cs, tmp_path / "none.zkey", insecure=True, device="cuda")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.zkey", "good.zkey"]


def test_the_command_line_shows_one_line(gpu: FakeGpu, made: Made, tmp_path: Path, run: Run) -> None:
    outputs = [tmp_path / "proof.json", tmp_path / "public.json"]
    gpu.device = EmulatedDevice(faults=Faults(lost=5))
    ran = run("prove", made.zkey, made.wtns, *outputs)
    assert ran.code == 0
    lines = [line for line in ran.err.splitlines() if "cuda" in line]
    assert lines == ["warning: cuda:0: the device is lost; the CPU took over"]
    ran = run("prove", made.zkey, made.wtns, *outputs, "--json")
    assert ran.answer["device"] == "cpu"
    assert ran.answer["warnings"][-1] == "cuda:0: the device is lost; the CPU took over"
    assert sum("warning" in json.loads(line) for line in ran.err.splitlines()) == 2
    ran = run("prove", made.zkey, made.wtns, *outputs, "--device", "cuda")
    assert ran.code == 3
    assert ran.err.splitlines()[-1] == "error: DeviceError: cuda:0: the device is lost"


def test_the_doctor_shows_the_gpus(gpu: FakeGpu, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Survey(
        gpus=(H200, FoundGpu("cuda:1", "", "Old", "sm_61", 1, None, "it is old", "buy one")),
        driver="580.159.03",
        driver_cuda=(13, 0),
        cupy="14.2.0",
        nvrtc=(13, 0),
    )
    monkeypatch.setattr(probe, "survey", lambda: found)
    monkeypatch.setattr(gpus, "_survey", lambda: found)
    monkeypatch.setattr(calibration, "load", calibration.Calibration)
    out = run("doctor").out
    assert "cuda:0, groth16 bn254: 2^10 " in out
    assert "cuda:0: NVIDIA H200, sm_90, 1.0 GiB (1.0 GiB free)" in out
    assert "cuda:1: Old, not usable: it is old; buy one" in out
    assert "driver 580.159.03 for CUDA 13.0, CuPy 14.2.0, NVRTC 13.0" in out
    assert "cuda: cuda:0" in out
    answer = run("doctor", "--json", "--device", "cuda:0", "--check").answer
    assert answer["problems"] == []
    assert [gpu["usable"] for gpu in answer["gpu"]["found"]] == [True, False]
    ran = run("doctor", "--device", "cuda:1", "--check", "--quiet")
    assert (ran.code, ran.out) == (3, "")
    assert "warning: this cannot prove: device 'cuda:1' is not available: it is old; buy one" in ran.err
    assert run("doctor", "--device", "cuda:1").code == 0
