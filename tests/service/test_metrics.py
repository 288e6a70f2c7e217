"""What /metrics shows: against the table, of a real prover, of workers that die, and when nothing answers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gpuprover.config import load_engine_settings
from gpuprover.cpu.bake import BakeError
from gpuprover.engine import Prover, ProverStatus, create_prover
from gpuprover.engine.records import COUNTERS
from gpuprover.engine.status import CircuitKind
from gpuprover.errors import (
    CircuitNotFound,
    MalformedFile,
    OutOfMemory,
    ProverError,
    QueueFull,
    ShuttingDown,
    Timeout,
    UnsatisfiedWitness,
)
from gpuprover.executor import WorkerStatus
from gpuprover.machine import CgroupThrottling
from gpuprover.service import metrics
from gpuprover.service.metrics import METRICS, OTHER, PHASES, Metrics
from gpuprover.workers import PoolSettings, WorkerPool
from tests.support.deployment import tool
from tests.support.paths import ROOT, VECTORS

PAGE = ROOT / "docs" / "metrics.md"

Labels = dict[str, str]


def samples(text: bytes) -> dict[str, list[tuple[Labels, float]]]:
    found: dict[str, list[tuple[Labels, float]]] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def value(source: Metrics, name: str, **labels: str) -> float:
    (one,) = [v for found, v in samples(source.render())[name] if found == labels]
    return one


def eventually(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Observers are called a moment after a job's owner is woken."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


PER_GPU = {row.name.removesuffix("_total") for row in METRICS if "gpu" in row.name or "fallbacks" in row.name}
"""Families without a sample where there is no GPU."""


def without_samples(source: Metrics) -> set[str]:
    families = {f.name: f for f in text_string_to_metric_families(source.render().decode())}
    assert list(families) == [row.name.removesuffix("_total") for row in METRICS]
    return {name for name, family in families.items() if not family.samples}


def make_circuits(folder: Path, *names: str) -> None:
    for name in names:
        for kind in ("zkey", "vkey.json"):
            shutil.copy(VECTORS / f"chain5.bn254.{kind}", folder / f"{name}.{kind}")


@pytest.fixture
def prover(tmp_path: Path) -> Iterator[Prover]:
    make_circuits(tmp_path, "five", "idle")
    with create_prover(
        circuit_keys_path=tmp_path,
        device="cpu",
        policy="eager",
        threads=1,
        max_workers=0,
        verifier="inline",
        memory_limit=4096,
        queue_limit=1,
        proof_cache=16,
    ) as made:
        made.wait_ready(60)
        yield made


def no_quota() -> CgroupThrottling | None:
    return None


WITNESS = (VECTORS / "chain5.bn254.wtns").read_bytes()


# The table --------------------------------------------------------------------------


def test_names_types_and_labels_are_those_of_the_table(prover: Prover) -> None:
    text = Metrics(prover, ["GET /v1/status"]).render()
    shown = {f.name: f for f in text_string_to_metric_families(text.decode())}
    assert list(shown) == [row.name.removesuffix("_total") for row in METRICS]
    for row in METRICS:
        family = shown[row.name.removesuffix("_total")]
        assert (family.type, family.documentation) == (row.kind, row.help)
        for sample in family.samples:
            assert set(sample.labels) == {*row.labels, *(["le"] if sample.name.endswith("_bucket") else [])}
            assert row.kind != "counter" or sample.value == 0, "counters begin at 0"
    empty = {name for name, family in shown.items() if not family.samples}
    assert empty == PER_GPU, "others begin before anything happens"


def test_the_names_that_users_expect() -> None:
    rows = {row.name: row for row in METRICS}
    assert rows["proof_generation_duration_seconds"].labels == ("circuit_id",)
    assert {1, 5, 10, 15, 30, 60} <= set(rows["proof_generation_duration_seconds"].buckets)
    assert rows["proofs_generated_total"].labels == ("circuit_id", "status")
    for name in ("prover_memory_usage_bytes", "prover_active_workers", "prover_queued_tasks"):
        assert rows[name].kind == "gauge"
    assert rows["prover_worker_restarts_total"].kind == "counter"


def test_the_page_has_the_tables_of_the_registry() -> None:
    page = PAGE.read_text()
    for table in (metrics.markdown(), metrics.buckets_markdown()):
        assert table in page, f"docs/metrics.md: expected\n{table}"


def test_every_counter_of_the_engine_is_shown_or_known_by_another_name(prover: Prover) -> None:
    elsewhere = {"submitted", "succeeded", "failed", "cancelled", "joined", "shrinks"}
    base = prover.get_status()
    assert set(base.counters) == set(COUNTERS)
    for name in set(COUNTERS) - elsewhere:
        fake = Fake(replace(base, counters={**base.counters, name: 41}))
        assert b" 41.0\n" in fake.metrics().render(), name


def test_promtool_finds_nothing_to_say(prover: Prover) -> None:
    text = Metrics(prover, ["GET /v1/status"]).render()
    ran = subprocess.run(
        [tool("promtool"), "check", "metrics"], input=text, capture_output=True, timeout=30, check=False
    )
    assert (ran.returncode, ran.stdout + ran.stderr) == (0, b"")


# Of a real prover -------------------------------------------------------------------


def test_proofs_are_counted_and_timed(prover: Prover) -> None:
    source = Metrics(prover)
    for name in ("five", "idle", OTHER):
        assert value(source, "proofs_generated_total", circuit_id=name, status="success") == 0
        assert value(source, "proof_generation_duration_seconds_count", circuit_id=name) == 0
    result = prover.prove("five", WITNESS)
    broken = bytearray(WITNESS)
    broken[-32] ^= 1
    with pytest.raises(UnsatisfiedWitness):
        prover.prove("five", bytes(broken))
    prover.prove("five", WITNESS)  # is kept: it counts, and has run no more

    def count(status: str) -> float:
        return value(source, "proofs_generated_total", circuit_id="five", status=status)

    eventually(lambda: (count("success"), count("error")) == (2, 1))
    assert value(source, "proofs_generated_total", circuit_id="idle", status="success") == 0
    assert value(source, "proof_generation_duration_seconds_count", circuit_id="five") == 1
    assert value(source, "proof_generation_duration_seconds_sum", circuit_id="five") > 0
    assert set(result.timings) <= set(PHASES)
    for phase, seconds in result.timings.items():
        assert value(source, "prover_phase_duration_seconds_count", phase=phase) == 1
        assert value(source, "prover_phase_duration_seconds_sum", phase=phase) == pytest.approx(seconds)
    assert value(source, "prover_cache_hits_total", cache="proofs") == 1
    assert value(source, "prover_ready") == 1
    assert value(source, "prover_active_workers") == 1
    assert value(source, "prover_device_usable", device="cpu") == 1
    assert value(source, "prover_memory_limit_bytes") == 4096 << 20
    assert value(source, "prover_queue_limit") == 1
    assert 0 <= value(source, "prover_status_age_seconds") < 60


def test_refusals_have_reasons_and_cancelled_proofs_do_not_count(prover: Prover) -> None:
    source = Metrics(prover)
    prover._dispatcher.seats.acquire(0)  # as a proof that waits has
    with pytest.raises(QueueFull):
        prover.submit("five", WITNESS, queue="refuse")
    prover._dispatcher.seats.release()
    job = prover.submit("five", WITNESS)
    job.cancel()
    prover.drain(10)
    with pytest.raises(ShuttingDown):
        prover.submit("five", WITNESS)
    assert value(source, "prover_refused_tasks_total", reason="queue_full") == 1
    assert value(source, "prover_refused_tasks_total", reason="draining") == 1
    assert value(source, "prover_ready") == 0
    found = samples(source.render())["proofs_generated_total"]
    assert sum(count for _, count in found) == (job.state.value == "succeeded")


def test_a_circuit_that_comes_later_gets_its_label(prover: Prover) -> None:
    source = Metrics(prover)
    make_circuits(Path(prover.settings.circuit_keys_path), "new")
    prover.prove("new", WITNESS)
    eventually(lambda: value(source, "proofs_generated_total", circuit_id="new", status="success") == 1)


def test_circuits_say_their_proof_system(prover: Prover) -> None:
    source = Metrics(prover)

    def kinds() -> dict[str, tuple[str, str]]:
        shown = samples(source.render())["prover_circuit_info"]
        assert {value for _, value in shown} == {1}
        return {labels["circuit_id"]: (labels["protocol"], labels["curve"]) for labels, _ in shown}

    groth16 = ("groth16", "bn128")
    assert kinds() == {"five": groth16, "idle": groth16}, "keys are read at the start"
    folder = Path(prover.settings.circuit_keys_path)
    shutil.copy(VECTORS / "chain5.bls12-381.zkey", folder / "new.zkey")
    source._look()
    assert "new" not in kinds(), "nobody has read its key"
    prover.load("new")
    assert kinds() == {"five": groth16, "idle": groth16, "new": ("groth16", "bls12381")}
    prover.unload("new")
    assert kinds()["new"] == ("groth16", "bls12381"), "what is known stays"
    shutil.copy(VECTORS / "chain5.bn254.zkey", folder / "new.zkey")
    prover.verification_key("new")
    assert kinds() == dict.fromkeys(("five", "idle", "new"), groth16), "the file is another one"


def test_workers_that_die_and_those_that_are_recycled(tmp_path: Path) -> None:
    make_circuits(tmp_path, "five")
    settings = load_engine_settings(
        {"circuit_keys_path": tmp_path, "device": "cpu", "threads": 1, "verifier": "inline"}
    )
    pool = WorkerPool(PoolSettings(threads=1, max_workers=1, max_proofs_per_worker=2, gpus=()))
    with Prover(settings, executor=pool) as prover:
        source = Metrics(prover)

        def replaced(reason: str) -> float:
            return value(source, "prover_worker_restarts_total", reason=reason)

        prover.prove("five", WITNESS)
        assert (replaced("died"), replaced("recycled")) == (0, 0)
        (one,) = prover.get_status().workers
        assert one.pid is not None
        os.kill(one.pid, signal.SIGKILL)
        for _ in range(2):
            prover.prove("five", WITNESS)
        eventually(lambda: replaced("recycled") >= 1, 60)
        assert replaced("died") == 1
        assert value(source, "prover_device_usable", device="cpu") == 1


# Of states that do not come about by themselves ----------------------------------------


class Fake:
    """Stands for a prover; its state is what a test says."""

    def __init__(self, status: ProverStatus | None, circuits: tuple[str, ...] = ()) -> None:
        self.status, self.names = status, circuits
        self.settings = SimpleNamespace(queue_limit=9, memory_limit=4096)
        self.hang = threading.Event()
        self.hang.set()
        self.asked = 0
        self.kinds: dict[str, CircuitKind] = {}
        self.ended: Callable[[Any], None] = lambda job: None

    def metrics(self, *routes: str, throttling: Any = no_quota) -> Metrics:
        return Metrics(cast(Prover, self), routes, throttling)

    def observe(self, callback: Callable[[Any], None]) -> None:
        self.ended = callback

    def circuits(self) -> list[str]:
        return list(self.names)

    def known_circuits(self) -> dict[str, CircuitKind]:
        return dict(self.kinds)

    def get_status(self) -> ProverStatus:
        self.asked += 1
        assert self.hang.wait(30)
        if self.status is None:
            raise RuntimeError
        return self.status


@pytest.fixture
def fake(prover: Prover) -> Fake:
    made = Fake(prover.get_status(), ("five",))
    made.kinds = {"five": CircuitKind("groth16", "bn128")}
    return made


def job_of(circuit: str, *devices: str, state: str = "failed", error: ProverError | None = None) -> Any:
    return SimpleNamespace(
        circuit=circuit, state=state, devices=devices, started=1.0, finished=2.0, error=error
    )


def worker(name: str, device: str = "cpu", **fields: Any) -> WorkerStatus:
    given = {"state": "idle", "restarts": 0, "silent": 0, "recycled": 0, **fields}
    return WorkerStatus(name=name, pid=1, device=device, jobs=(), proofs=0, memory=None, **given)


def test_workers_that_were_replaced_stay_counted(fake: Fake) -> None:
    source = fake.metrics()

    def set_workers(*workers: WorkerStatus) -> None:
        assert fake.status is not None
        fake.status = replace(fake.status, workers=workers)

    def counts() -> tuple[float, ...]:
        found = samples(source.render())["prover_worker_restarts_total"]
        return tuple(count for _, count in found)

    assert counts() == (0, 0, 0)
    set_workers(worker("cpu-0", restarts=3, silent=1, recycled=4), worker("cpu-1", restarts=2))
    assert counts() == (4, 1, 4)
    set_workers(worker("cpu-0", restarts=4, silent=1, recycled=4))
    assert counts() == (5, 1, 4), "the place of cpu-1 was given up"
    set_workers(worker("cpu-0", restarts=1, state="starting"), worker("cpu-1", restarts=1, state="busy"))
    assert counts() == (7, 1, 4), "both began anew"
    assert value(source, "prover_active_workers") == 1


def test_gpus(fake: Fake) -> None:
    assert fake.status is not None
    gpu = (
        {**fake.status.devices[0], "name": "cuda:0", "kind": "cuda", "memory": 70, "running": 2}
        if (fake.status.devices)
        else {"name": "cuda:0", "kind": "cuda", "memory": 70, "running": 2}
    )
    gpu["problem"] = ""
    lost = {**gpu, "name": "cuda:1", "memory": None, "problem": "gone", "running": 0}
    fake.status = replace(
        fake.status, devices=(gpu, lost), workers=(worker("gpu-a", "cuda:0"),), pools={"gpu-a": 50}
    )
    source = fake.metrics()
    assert value(source, "prover_gpu_pool_used_bytes", device="cuda:0") == 50
    assert value(source, "prover_gpu_pool_limit_bytes", device="cuda:0") == 70
    assert value(source, "prover_gpu_pool_limit_bytes", device="cuda:1") == 0
    assert value(source, "prover_device_usable", device="cuda:1") == 0
    assert value(source, "prover_running_tasks", device="cuda:0") == 2
    assert value(source, "prover_fallbacks_total", device="cuda:0") == 0
    fake.ended(job_of("five", "cuda:0", "cuda:0", "cpu"))
    fake.ended(job_of("five", "cpu", "cpu"))
    fake.ended(job_of("five", "cuda:0"))
    assert value(source, "prover_fallbacks_total", device="cuda:0") == 1
    assert value(source, "prover_fallbacks_total", device="cuda:1") == 0


def test_labels_do_not_grow_with_what_strangers_send(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MAX_CIRCUITS", 3)
    source = fake.metrics("POST /v1/verify")
    for i in range(20):
        fake.ended(job_of(f"made-up-{i}"))
        source.answered(f"GET /made/up/{i}", 404, 0.1)
    fake.names = tuple(f"c{i}" for i in range(9))
    for name in fake.names:
        fake.ended(job_of(name))
    found = samples(source.render())
    circuits = {labels["circuit_id"] for labels, _ in found["proofs_generated_total"]}
    assert circuits == {"five", "c0", "c1", OTHER}
    assert value(source, "proofs_generated_total", circuit_id=OTHER, status="error") == 27
    assert {labels["route"] for labels, _ in found["prover_http_requests_total"]} == {
        "POST /v1/verify",
        OTHER,
    }
    assert value(source, "prover_http_requests_total", route=OTHER, status="4xx") == 20
    fake.kinds = {name: CircuitKind("groth16", "bn128") for name in ("five", *fake.names, "made-up-1")}
    known = {labels["circuit_id"] for labels, _ in samples(source.render())["prover_circuit_info"]}
    assert known == {"five", "c0", "c1"}, "those that have a label of their own"


def test_requests_and_verifications(fake: Fake) -> None:
    source = fake.metrics("POST /v1/verify")
    source.answered("POST /v1/verify", 200, 0.02)
    source.answered("POST /v1/verify", 503, 0.02)
    source.answered("POST /v1/verify", 0, 0.02)
    source.verified(2, 1, 0.5)
    source.not_verified()
    route = "POST /v1/verify"
    assert value(source, "prover_http_requests_total", route=route, status="2xx") == 1
    assert value(source, "prover_http_requests_total", route=route, status="5xx") == 2
    assert value(source, "prover_http_request_duration_seconds_count", route=route) == 3
    assert [n for _, n in samples(source.render())["prover_verifications_total"]] == [2, 1, 1]
    assert value(source, "prover_verification_duration_seconds_sum") == 0.5


def test_the_quota_of_the_container(fake: Fake) -> None:
    source = fake.metrics(throttling=lambda: CgroupThrottling(40, 3, 2.5))
    assert value(source, "prover_cgroup_periods_total") == 40
    assert value(source, "prover_cgroup_throttled_periods_total") == 3
    assert value(source, "prover_cgroup_throttled_seconds_total") == 2.5


def test_a_prover_that_does_not_answer_holds_up_no_scrape(fake: Fake) -> None:
    source = fake.metrics()
    assert value(source, "prover_queue_limit") == 9
    fake.hang.clear()
    before = threading.active_count()
    for _ in range(5):
        assert value(source, "prover_queue_limit") == 9, "the last state that is known"
    assert fake.asked == 3, "nobody else is asked while one does not answer"
    assert threading.active_count() == before + 1
    first = value(source, "prover_status_age_seconds")
    assert value(source, "prover_status_age_seconds") > first
    fake.hang.set()
    eventually(lambda: threading.active_count() == before)
    assert value(source, "prover_status_age_seconds") < first


def test_a_scrape_before_anything_is_known(fake: Fake) -> None:
    fake.status = None
    source = fake.metrics()
    text = source.render().decode()
    assert 'proofs_generated_total{circuit_id="five",status="success"} 0.0' in text
    assert without_samples(source) == PER_GPU
    assert value(source, "prover_ready") == 0
    assert value(source, "prover_device_usable", device="cpu") == 1, "nothing is known to be wrong with it"


def test_the_first_scrape_lacks_nothing_however_slow_the_prover_is(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fake.status is not None
    fake.status = replace(fake.status, queued_jobs=7)
    answer = fake.get_status
    monkeypatch.setattr(fake, "get_status", lambda: (time.sleep(0.25), answer())[1])
    source = fake.metrics()
    assert without_samples(source) == PER_GPU
    assert value(source, "prover_queued_tasks") == 7, "the state was read before the first scrape"
    # One that never answers: a second or so passes before the service starts, and then nothing is missing.
    monkeypatch.setattr(metrics, "FIRST_SECONDS", 0.05)
    monkeypatch.setattr(fake, "get_status", answer)
    fake.hang.clear()
    source = fake.metrics()
    assert without_samples(source) == PER_GPU
    first = value(source, "prover_status_age_seconds")
    assert value(source, "prover_memory_limit_bytes") == 4096 << 20
    assert value(source, "prover_queued_tasks") == 0
    assert 0 < first < value(source, "prover_status_age_seconds")
    fake.hang.set()


def test_whose_fault_a_failure_is(fake: Fake) -> None:
    source = fake.metrics()
    assert value(source, "prover_failed_proofs_total", circuit_id="five", fault="client") == 0
    for error in [
        UnsatisfiedWitness("no", path="<.wtns bytes>", role="witness"),
        MalformedFile("<.wtns bytes>", "header", "truncated", role="witness"),
        MalformedFile("/keys/five.zkey", "header", "truncated", role="key"),
        OutOfMemory("too large"),
        Timeout("too late"),
        BakeError("of a kind of its own"),
    ]:
        fake.ended(job_of("five", error=error))
    counts = {
        fault: value(source, "prover_failed_proofs_total", circuit_id="five", fault=fault)
        for fault in ("client", "service", "time")
    }
    assert counts == {"client": 2, "service": 3, "time": 1}
    assert value(source, "proofs_generated_total", circuit_id="five", status="error") == 6
    kinds = {labels["kind"]: n for labels, n in samples(source.render())["prover_proof_errors_total"]}
    assert {kind: n for kind, n in kinds.items() if n} == {
        "UnsatisfiedWitness": 1,
        "MalformedFile": 2,
        "OutOfMemory": 1,
        "Timeout": 1,
        OTHER: 1,
    }


def test_devices_that_are_gone_and_circuits_that_are_not_there(fake: Fake) -> None:
    assert fake.status is not None
    before = fake.status
    fake.status = replace(before, devices=({"name": "cuda:0", "memory": 5, "problem": "", "running": 1},))
    source = fake.metrics()
    assert value(source, "prover_device_usable", device="cuda:0") == 1
    assert value(source, "prover_device_usable", device="cpu") == 0, "it is not among the devices"
    fake.status, fake.names = replace(before, devices=()), ()
    assert value(source, "prover_device_usable", device="cuda:0") == 0
    assert value(source, "prover_running_tasks", device="cuda:0") == 0
    assert value(source, "prover_circuits") == 1
    source._looked = float("-inf")
    assert value(source, "prover_circuits") == 0


def test_a_folder_that_cannot_be_read_is_no_reason_to_fail(
    fake: Fake, caplog: pytest.LogCaptureFixture
) -> None:
    def gone() -> list[str]:
        raise CircuitNotFound("circuit-keys: cannot read the folder of circuits")

    fake.circuits = gone  # type: ignore[method-assign]
    source = fake.metrics()
    fake.ended(job_of("five"))
    assert value(source, "proofs_generated_total", circuit_id=OTHER, status="error") == 1
    assert "cannot read the folder" in caplog.text


def test_registries_are_apart(fake: Fake) -> None:
    one, two = fake.metrics(), fake.metrics()
    one.answered("x", 200, 1.0)
    assert value(one, "prover_http_requests_total", route=OTHER, status="2xx") == 1
    assert value(two, "prover_http_requests_total", route=OTHER, status="2xx") == 0
