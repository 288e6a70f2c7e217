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

from gpuprover import ProofJob, Prover, setup
from gpuprover.circuits import chain_circuit
from gpuprover.errors import Aborted, DeviceError, ProverError
from gpuprover.workers import slots
from tests.support.gpu_stage import SECONDS, Machine, Times, eventually, machine
from tests.support.paths import VECTORS
from tests.support.service_stage import stage

pytestmark = pytest.mark.kernels_offline
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


@pytest.mark.parametrize("tries", [1, pytest.param(slots.DEVICE_TRIES, marks=pytest.mark.slow)])
def test_a_service_loses_its_gpu_under_load_and_gets_it_back(
    keys: Path, gpus: Callable[..., Machine], tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over HTTP. Ready all the while; who asked for nothing but proofs gets them, with a warning."""
    monkeypatch.setattr(slots, "DEVICE_TRIES", tries)
    on = gpus(1 << 30)
    rest = {"rest": (1.0, 2.0, 4.0, 0.0)}
    with on.prover(keys, pool_settings=rest) as prover, stage(keys, prover=prover) as service:
        load = Load(prover)
        load.ask(3)
        assert load.on() == ["cuda:0"] * 3
        assert on.seen("cuda:0")[0]["at_once"] > 1, "proofs ran beside each other"
        assert on.seen("cuda:0")[0]["peak"] <= prover.get_status().devices[1]["memory"]
        assert prover.get_status().counters["retries_alone"] == 0
        on.set("cuda:0", "lost")
        # Every new process fails to start the device, until it is there again.
        load.ask(1)
        answer = service.post(WITNESS.read_bytes(), wait=SECONDS)
        assert answer.status_code == 200, answer.text
        assert answer.json()["device"] == "cpu"
        assert load.on()[3:] == ["cpu"]
        eventually(lambda: problem_of(prover))
        assert service.get("/readyz").status_code == 200
        status = service.get("/v1/status").json()
        assert any(line.startswith("cuda:0: ") for line in status["problems"])
        assert 'prover_device_usable{device="cuda:0"} 0.0' in service.get("/metrics").text
        # A circuit that is loaded meanwhile is planned for on the GPU when that is there.
        load.ask(1, "other")
        assert load.on()[-1] == "cpu"
        on.unset("cuda:0", "lost")
        eventually(lambda: not problem_of(prover))
        load.ask(1, "other")
        assert load.on()[-1] == "cuda:0"


@pytest.mark.slow
def test_small_circuits_are_proved_on_the_cpu_and_large_ones_on_the_gpu(
    keys: Path, gpus: Callable[..., Machine]
) -> None:
    """By the times that are known of both devices; by call and over HTTP."""
    r1cs, wtns = keys.parent / "large.r1cs", keys.parent / "large.wtns"
    chain_circuit(30).write(r1cs, wtns)
    setup(r1cs, keys / "large.zkey", insecure=True)
    on = gpus(1 << 30)
    with on.prover(keys, times=Times(worthwhile=20)) as prover, stage(keys, prover=prover) as service:
        witnesses = {"chain": WITNESS.read_bytes(), "large": wtns.read_bytes()}
        places = {"chain": "cpu", "large": "cuda:0"}
        for _ in range(3):  # one of each at a time: more of them would go where a device stands idle
            jobs = {name: prover.submit(name, witnesses[name]) for name in places}
            for name, job in jobs.items():
                result = job.wait(SECONDS)
                assert prover.verify(name, result.public_signals, result.proof)
                assert result.device == places[name]
                assert "took over" not in " ".join(result.warnings)
        for name, device in places.items():
            answer = service.post(witnesses[name], name, wait=SECONDS)
            assert answer.status_code == 200, answer.text
            assert answer.json()["device"] == device
        on.set("cuda:0", "lost")
        assert prover.prove("large", witnesses["large"]).device == "cpu", "the CPU takes over"
        assert prover.prove("chain", witnesses["chain"]).device == "cpu"


@pytest.mark.slow
def test_who_asks_for_a_gpu_by_name_gets_it_or_an_error(keys: Path, gpus: Callable[..., Machine]) -> None:
    on = gpus(1 << 30)
    rest = {"rest": (2.0, 2.0, 4.0, 0.0)}
    with on.prover(keys, "cuda:0", pool_settings=rest) as prover:
        load = Load(prover)
        load.ask(2)
        assert load.on() == ["cuda:0"] * 2
        on.set("cuda:0", "lost")
        load.ask(6)
        errors = load.errors()
        assert errors[:2] == [None] * 2
        assert {type(error) for error in errors[2:]} == {DeviceError}
        eventually(lambda: problem_of(prover))
        assert not prover.get_status().ready, "the CPU is no substitute"
        on.unset("cuda:0", "lost")
        eventually(lambda: prover.get_status().ready)
        assert prover.prove("chain", WITNESS).device == "cuda:0"


@pytest.mark.slow
def test_two_gpus_have_a_process_each_and_one_stands_in_for_the_other(
    keys: Path, gpus: Callable[..., Machine]
) -> None:
    on = gpus(1 << 30, 1 << 30)
    with on.prover(keys) as prover:
        load = Load(prover)
        load.ask(6)
        load.ask(6, "other")
        assert set(load.on()) == {"cuda:0", "cuda:1"}
        pids = {process_of(prover, device, "idle") for device in ("cuda:0", "cuda:1")}
        assert len(pids) == 2
        on.set("cuda:1", "lost")
        load.ask(6)
        assert load.on()[12:].count("cuda:1") == 0
        assert problem_of(prover, "cuda:0") == ""


@pytest.mark.slow
@pytest.mark.parametrize("end", ["killed", "hangs"])
def test_the_process_of_a_gpu_dies_or_hangs_under_load(
    keys: Path, gpus: Callable[..., Machine], end: str
) -> None:
    on = gpus(1 << 30)
    with on.prover(keys, pool_settings={"stall_timeout": 3.0, "rest": (1000.0, 1.0, 1000.0, 0.0)}) as prover:
        load = Load(prover)
        on.set("cuda:0", "slow", 0.05)
        load.ask(5)
        pid = process_of(prover)
        if end == "killed":
            os.kill(pid, signal.SIGKILL)
        else:
            on.set("cuda:0", "hangs")
            eventually(lambda: not Path(f"/proc/{pid}").exists())
            on.unset("cuda:0", "hangs")
        assert set(load.on()) == {"cuda:0"}
        assert problem_of(prover) == ""
        # Again and again: the CPU takes over, and the GPU rests.
        on.set("cuda:0", "hangs")
        load.ask(2)
        assert load.on()[5:] == ["cpu"] * 2
        load.ask(2)
        assert load.on()[7:] == ["cpu"] * 2
        eventually(lambda: problem_of(prover))
        assert prover.get_status().ready


@pytest.mark.slow
def test_memory_that_ends_under_load_loses_nothing(keys: Path, gpus: Callable[..., Machine]) -> None:
    on = gpus(1 << 30)
    with on.prover(keys, retry_delay=0.01) as prover:
        load = Load(prover)
        load.ask(1)
        assert load.on() == ["cuda:0"]
        arena = on.seen("cuda:0")[0]["peak"]
        # The pool gives up what it kept, or a proof goes a step down the ladder.
        for allocations in (1, 3, 30):
            on.set("cuda:0", "full", allocations)
            load.ask(2)
            load.ask(2, "other")
            load.on()
            for circuit in ("chain", "other"):
                prover.unload(circuit)
        counters = prover.get_status().counters
        assert counters["device_failures"] == counters["losses"] == counters["failed"] == 0
    # All the way down the ladder, and back.
    on.set("cuda:0", "full", 10**6)
    with on.prover(keys, retry_delay=0.01) as prover:
        load = Load(prover)
        load.ask(3)
        assert load.on() == ["cpu"] * 3
        counters = prover.get_status().counters
        assert counters["retries_alone"] == counters["retries_on_cpu"] == 3
        assert problem_of(prover) == ""
        on.unset("cuda:0", "full")
        load.ask(2)
        assert load.on()[3:] == ["cuda:0"] * 2
    (on.folder / "gpus").write_text(f'{{"cuda:0": {3 * arena}}}')
    for path in on.folder.glob("cuda:0.*"):
        path.unlink()
    with on.prover(keys) as prover:
        load = Load(prover)
        load.ask(6)
        load.ask(6, "other")
        assert load.on() == ["cuda:0"] * 12
        (seen,) = on.seen("cuda:0")
        assert seen["peak"] <= prover.get_status().devices[1]["memory"] <= 3 * arena


@pytest.mark.slow
@pytest.mark.parametrize("how", ["drained", "closed"])
def test_a_prover_ends_while_kernels_run(keys: Path, gpus: Callable[..., Machine], how: str) -> None:
    on = gpus(1 << 30)
    with on.prover(keys) as prover:
        load = Load(prover)
        on.set("cuda:0", "slow", 0.02)
        load.ask(4)
        process_of(prover)
        if how == "drained":
            assert prover.drain(SECONDS)
            assert load.on() == ["cuda:0"] * 4
            return
        on.set("cuda:0", "hangs")
        begun = time.monotonic()
        prover.close(1.0)
        assert time.monotonic() - begun < 30
        assert {type(job.error) for job in load.jobs if job.error is not None} <= {Aborted}
        assert all(job.done() for job in load.jobs)
