"""The service on GPUs: worker processes with emulated devices behind the engine, and what happens to them."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from gpu_stage import MIB, SECONDS, Machine, eventually, machine
from gpuprover import ProofJob, Prover
from gpuprover.errors import Aborted, DeviceError, ProofGenerationFailed, ProverError
from service_stage import stage

pytestmark = pytest.mark.kernels_offline
VECTORS = Path(__file__).parent / "vectors"
WITNESS = VECTORS / "chain5.bn254.wtns"
TENANTS = ("ann", "bob", "cyn")


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    folder = tmp_path / "keys"
    folder.mkdir()
    for name in ("chain", "other"):
        shutil.copy(VECTORS / "chain5.bn254.zkey", folder / f"{name}.zkey")
    return folder


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Machine]]:
    """Makes a machine with GPUs of so many bytes."""
    folder = tmp_path / "emulated"
    folder.mkdir()

    def make(*memory: int) -> Machine:
        return machine(folder, monkeypatch, {f"cuda:{i}": size for i, size in enumerate(memory)})

    return make


class Load:
    """Proofs of several tenants, and their answers."""

    def __init__(self, prover: Prover) -> None:
        self.prover, self.jobs = prover, list[ProofJob]()
        self.answers: list[ProofJob] = []

    def ask(self, number: int, circuit: str = "chain") -> None:
        for _ in range(number):
            tenant = TENANTS[len(self.jobs) % len(TENANTS)]
            job = self.prover.submit(circuit, WITNESS.read_bytes(), tenant=tenant, timeout=SECONDS)
            self.jobs.append(job)
            job.add_done_callback(self.answers.append)

    def on(self) -> list[str]:
        """Waits for all: each has one answer, a proof that holds -> where they were made."""
        for job in self.jobs:
            result = job.wait(SECONDS)
            assert self.prover.verify(job.circuit, result.public_signals, result.proof)
            taken_over = any(device != "cpu" for device in job.devices) and result.device == "cpu"
            assert any("the CPU took over" in warning for warning in result.warnings) is taken_over
        self.once()
        return [job.wait(0).device for job in self.jobs]

    def errors(self) -> list[ProverError | None]:
        """Waits for all, which may fail -> what with."""
        for job in self.jobs:
            with suppress(ProverError):
                job.wait(SECONDS)
        self.once()
        return [job.error for job in self.jobs]

    def once(self) -> None:
        eventually(lambda: len(self.answers) == len(self.jobs))
        assert sorted(map(id, self.answers)) == sorted(map(id, self.jobs))
        status = self.prover.get_status()
        assert (status.active_jobs, status.queued_jobs) == (0, 0)


def problem_of(prover: Prover, device: str = "cuda:0") -> str:
    (found,) = [d["problem"] for d in prover.get_status().devices if d["name"] == device]
    return str(found)


def process_of(prover: Prover, device: str = "cuda:0", state: str = "busy") -> int:
    def found() -> list[int | None]:
        return [w.pid for w in prover.get_status().workers if (w.device, w.state) == (device, state)]

    pid: int = eventually(found)[0]
    return pid


def test_a_service_loses_its_gpu_under_load_and_gets_it_back(
    keys: Path, gpus: Callable[..., Machine]
) -> None:
    """Over HTTP. Ready all the while; who asked for nothing but proofs gets them, with a warning."""
    on = gpus(1 << 30)
    rest = {"rest": (1.0, 2.0, 4.0, 0.0)}
    with on.prover(keys, pool_settings=rest) as prover, stage(keys, prover=prover) as service:
        load = Load(prover)
        load.ask(4)
        assert load.on() == ["cuda:0"] * 4
        assert on.seen("cuda:0")[0]["at_once"] > 1, "proofs ran beside each other"
        assert on.seen("cuda:0")[0]["peak"] <= prover.get_status().devices[1]["memory"]
        assert prover.get_status().counters["retries_alone"] == 0
        on.set("cuda:0", "lost")
        # Every new process fails to start the device, until it is there again.
        load.ask(3)
        answer = service.post(WITNESS.read_bytes(), wait=SECONDS)
        assert answer.status_code == 200, answer.text
        assert answer.json()["device"] == "cpu"
        assert load.on()[4:] == ["cpu"] * 3
        eventually(lambda: problem_of(prover))
        assert service.get("/readyz").status_code == 200
        status = service.get("/v1/status").json()
        assert any(line.startswith("cuda:0: ") for line in status["problems"])
        assert 'prover_device_usable{device="cuda:0"} 0.0' in service.get("/metrics").text
        on.unset("cuda:0", "lost")
        eventually(lambda: not problem_of(prover))
        load.ask(1)
        assert load.on()[-1] == "cuda:0"
