"""The engine's dispatcher: admission, degradation, queue, time limits, kept proofs, by simulation."""

from __future__ import annotations

import gc
import logging
import os
import random
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpuprover.engine.dispatch import KEY_CHANGES
from gpuprover.engine.headroom import SAMPLE_SECONDS
from gpuprover.engine.loading import LOAD_LOSSES, PRELOAD_SECONDS
from gpuprover.engine.proof_job import JobState, ProofJob
from gpuprover.errors import (
    Aborted,
    DeviceError,
    InvalidInput,
    MalformedFile,
    OutOfMemory,
    ProofGenerationFailed,
    QueueFull,
    ShuttingDown,
    Timeout,
    UnsatisfiedWitness,
)
from gpuprover.executor import KeyChanged, KeyInfo, Lost
from gpuprover.job import Progress
from gpuprover.memory import MIB
from gpuprover.scheduler import LOSSES
from gpuprover.witness_source import WitnessBytes
from tests.support.engine_stage import GIB, ROOM, Stage, cpu, gpu, result


def replace_file(stage: Stage, circuit: str, text: str) -> None:
    """As a deployment does it: a new file takes the place."""
    path = Path(str(stage.files[circuit].key))
    new = path.with_suffix(".new")
    new.write_text(text)
    os.replace(new, path)


# One job -------------------------------------------------------------------------------------


def test_a_job_from_queue_to_proof(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.executor.prompt = False
    job = stage.submit()
    assert (job.state, job.done(), stage.dispatcher.seats.active) == (JobState.QUEUED, False, 1)
    with pytest.raises(Timeout, match="its job goes on"):
        job.wait(0)
    stage.executor.answer_load()
    stage.step()
    assert (job.state, job.device, job.attempts) == (JobState.RUNNING, "cpu", 1)
    assert stage.dispatcher.seats.active == 0, "what runs has left the queue"
    assert job.placement.startswith("complex (16,384 constraints): cpu, ")
    stage.run_of(job)
    run = stage.run_of(job)
    assert (run.request.threads, run.request.budget, run.request.timeout) == (2, None, 600.0)
    assert run.progress is not None
    run.progress(Progress("msm", 0.5, 1.0))
    assert job.progress == Progress("msm", 0.5, 1.0)
    stage.end(job)
    assert job.wait(0).memory == {"before": 1, "peak": 3, "after": 2}
    assert job.state is JobState.SUCCEEDED
    assert job.submitted <= (job.started or 0) <= (job.finished or 0)
    assert not job.cancel()
    stage.counted(submitted=1, succeeded=1)
    stage.quiet()


def test_nothing_keeps_a_finished_job_or_its_witness(tmp_path: Path) -> None:
    stage = Stage(tmp_path, proof_cache=0)
    job = stage.submit(timeout=1e6)
    witness = stage.run_of(job).request.witness
    stage.end(job)
    gone = weakref.ref(job)
    stage.executor.requests.clear()
    assert job.wait(0)
    del job
    gc.collect()
    assert gone() is None
    assert not [r for r in gc.get_referrers(witness) if isinstance(r, dict) and r.get("witness") is witness]


def test_with_nothing_to_do_nothing_is_done(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    assert stage.dispatcher.step() == SAMPLE_SECONDS
    assert not stage.executor.started
    job = stage.submit(timeout=7.0)
    assert stage.dispatcher.step() == 7.0
    stage.end(job)
    stage.step()
    assert stage.dispatcher.step() > 1.0


def test_time_limits_of_ended_jobs_are_forgotten(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    for _ in range(300):
        stage.end(stage.submit(timeout=1e6))
    assert len(stage.dispatcher._timers) < 80
    late = stage.submit(timeout=1e6)
    stage.after(1e6 + 1)
    assert isinstance(late.error, Timeout)


def test_callbacks_come_once_and_what_they_raise_harms_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage(tmp_path)
    seen: list[ProofJob] = []

    def bad(job: ProofJob) -> None:
        raise ValueError("secret")

    job = stage.submit()
    for callback in (bad, seen.append):
        job.add_done_callback(callback)
    assert seen == []
    stage.end(job)
    stage.step()
    assert seen == [job]
    job.add_done_callback(seen.append)
    assert seen == [job, job]
    assert "secret" not in caplog.text
    assert "ValueError" in caplog.text


# Keys ----------------------------------------------------------------------------------------


def test_a_key_is_loaded_once_and_holds_nobody_else_up(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    ready = stage.submit("b")
    stage.executor.prompt = False
    slow = [stage.submit("a") for _ in range(5)]
    assert len(stage.executor.loads) == 1
    stage.end(ready)
    again = stage.submit("b")
    stage.end(again)
    assert [job.state for job in slow] == [JobState.QUEUED] * 5
    stage.executor.answer_load()
    stage.step()
    for job in slow:
        stage.end(job)
    assert stage.executor.loaded == [stage.files["b"].key, stage.files["a"].key]
    stage.counted(submitted=7, succeeded=7)
    stage.quiet()


def test_a_key_that_cannot_be_loaded_fails_those_who_wait_and_is_tried_again_later(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.executor.prompt = False
    jobs = [stage.submit() for _ in range(2)]
    stage.executor.answer_load(MalformedFile("a.zkey", "header", "truncated"))
    stage.step()
    for job in jobs:
        with pytest.raises(MalformedFile, match="truncated"):
            job.wait(0)
    assert stage.dispatcher.snapshot().problems == ("a: a file: header: truncated",)
    stage.executor.prompt = True
    stage.end(stage.submit())
    assert stage.dispatcher.snapshot().problems == ()
    stage.counted(submitted=3, failed=2, succeeded=1, load_failures=1)
    stage.quiet()


def test_a_load_survives_deaths_but_not_every_one(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.executor.prompt = False
    job = stage.submit()
    for _ in range(LOAD_LOSSES - 1):
        stage.executor.answer_load(Lost("killed by signal 9"))
        assert not stage.executor.loads
        stage.after(2.0)
    stage.executor.answer_load()
    stage.step()
    stage.end(job)
    stage.dispatcher.unload("a")
    assert stage.executor.unloaded == [stage.files["a"].key]
    job = stage.submit()
    for _ in range(LOAD_LOSSES):
        stage.executor.answer_load(Lost("killed by signal 9"))
        stage.after(2.0)
    with pytest.raises(ProofGenerationFailed, match="3 times what loaded its key died: killed by signal 9"):
        job.wait(0)
    stage.counted(submitted=2, succeeded=1, failed=1, losses=2 * LOAD_LOSSES - 1, load_failures=1)
    stage.quiet()


def test_a_circuit_to_preload_is_tried_again_unless_its_file_is_at_fault(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.executor.prompt = False
    stage.dispatcher._preload = (stage.files["a"], stage.files["b"])
    stage.dispatcher.start()
    stage.executor.answer_load(DeviceError("no worker started"))
    stage.executor.answer_load(MalformedFile("b", "header", "damaged"))
    stage.step()
    assert not stage.dispatcher.snapshot().preloaded
    stage.after(PRELOAD_SECONDS + 1)
    assert len(stage.executor.loads) == 1
    stage.executor.answer_load()
    stage.step()
    assert stage.dispatcher.snapshot().loaded == ("a",)
    assert [problem.partition(":")[0] for problem in stage.dispatcher.snapshot().problems] == ["b"]


def test_a_start_that_the_system_refuses_can_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tmp_path)
    start = stage.executor.start

    def refused(changed: Any) -> None:
        raise DeviceError("the machine refused a resource: Too many open files")

    monkeypatch.setattr(stage.executor, "start", refused)
    with pytest.raises(DeviceError, match="Too many open files"):
        stage.submit()
    stage.dispatcher.seats.release()
    monkeypatch.setattr(stage.executor, "start", start)
    job = stage.submit()
    stage.end(job)
    assert job.wait(0).device == "cpu"
    stage.quiet()


def test_a_changed_file_is_another_key_and_old_proofs_end_as_they_began(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    old = stage.submit()
    before = stage.run_of(old).request.identity
    replace_file(stage, "a", "another key")
    new = stage.submit()
    stage.end(old)
    assert stage.run_of(new).request.identity not in (before, None)
    stage.end(new)
    assert len(stage.executor.loaded) == 2
    stage.counted(submitted=2, succeeded=2, reloads=1)
    stage.quiet()


def test_a_file_that_changes_while_a_proof_waits_or_starts_is_planned_anew(tmp_path: Path) -> None:
    stage = Stage(tmp_path, cpu(1))
    first, waits = stage.submit("b"), stage.submit("a")
    replace_file(stage, "a", "another key")
    stage.end(first)
    current = stage.run_of(waits).request.identity
    assert current == stage.executor.info(str(stage.files["a"].key)).identity
    # The worker finds another file than the engine did a moment ago.
    replace_file(stage, "a", "a third key")
    stage.end(waits, KeyChanged("a.zkey: the file has changed"))
    assert stage.run_of(waits).request.identity != current
    stage.end(waits)
    assert waits.state is JobState.SUCCEEDED
    stage.counted(submitted=2, succeeded=2, reloads=2)
    stage.quiet()


def test_a_file_that_keeps_changing_ends_the_proof(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    job = stage.submit()
    for _ in range(KEY_CHANGES + 1):
        stage.end(job, KeyChanged("a.zkey: the file has changed"))
    with pytest.raises(InvalidInput, match="keeps changing"):
        job.wait(0)
    stage.quiet()


def test_a_file_that_is_gone_when_its_proof_starts(tmp_path: Path) -> None:
    stage = Stage(tmp_path, cpu(1))
    first, waits = stage.submit("b"), stage.submit("a")
    os.unlink(str(stage.files["a"].key))
    stage.executor.prompt = False
    stage.end(first)
    stage.executor.answer_load(InvalidInput("a.zkey: cannot read: No such file or directory"))
    stage.step()
    with pytest.raises(InvalidInput, match="No such file"):
        waits.wait(0)
    stage.quiet()


def test_pinned_keys_and_loads_by_hand(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    answers: list[Any] = []
    stage.dispatcher.load(stage.files["a"], False, answers.append)
    stage.step()
    stage.dispatcher.load(stage.files["a"], False, answers.append)
    assert len(stage.executor.loaded) == 1
    stage.executor.prompt = False
    stage.dispatcher.load(stage.files["a"], True, answers.append)
    assert stage.executor.loads[0][1] is True, "it is loaded already, and now it shall stay"
    stage.executor.answer_load(MalformedFile("a.zkey", "header", "truncated"))
    stage.step()
    assert [type(answer).__name__ for answer in answers] == ["KeyInfo", "KeyInfo", "MalformedFile"]


# Failures of runs ----------------------------------------------------------------------------


def test_a_death_is_no_end_unless_it_comes_three_times(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    job, other = stage.submit(), stage.submit("b")
    for attempt in range(1, LOSSES + 1):
        assert (job.state, job.attempts) == (JobState.RUNNING, attempt)
        stage.end(job, Lost("the worker was killed by signal 9"))
    with pytest.raises(ProofGenerationFailed, match="died 3 times, at last so: the worker was killed by"):
        job.wait(0)
    stage.end(other, Lost("the worker was killed by signal 9"))
    stage.end(other)
    assert other.wait(0).warnings == ()
    stage.counted(submitted=2, failed=1, succeeded=1, losses=LOSSES + 1)
    stage.quiet()


def test_the_ladder_down_to_the_cpu(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage(tmp_path, cpu(1, proofs=1), gpu(proofs=1))
    job = stage.submit()
    seen = []
    for _ in range(5):
        request = stage.run_of(job).request
        seen.append((request.device, request.budget is None))
        stage.end(job, OutOfMemory("no room on the device"))
        if len(seen) < 5:
            assert not stage.executor.runs, "it is tried again after two seconds"
            assert job.state is JobState.RUNNING
        stage.after(2.0)
    assert seen == [("cuda:0", True), *[("cuda:0", False)] * 3, ("cpu", True)]
    with pytest.raises(OutOfMemory, match="no room on the device"):
        job.wait(0)
    stage.counted(
        submitted=1, failed=1, retries_alone=1, retries_no_tables=1, retries_chunked=1, retries_on_cpu=1
    )
    steps = [record.event["step"] for record in caplog.records if hasattr(record, "event")]
    assert steps == ["retries_alone", "retries_no_tables", "retries_chunked", "retries_on_cpu"]
    assert all("\n" not in record.getMessage() for record in caplog.records)
    stage.quiet()


def test_a_proof_that_succeeds_on_the_way_down_says_what_happened(tmp_path: Path) -> None:
    stage = Stage(tmp_path, cpu(), gpu())
    job = stage.submit()
    for _ in range(4):
        stage.end(job, OutOfMemory("no room on the device"))
        stage.after(2.0)
    stage.end(job)
    assert job.wait(0).warnings == ("no room on the device; the CPU took over",)
    assert (job.device, job.attempts) == ("cpu", 5)


def test_what_a_proof_out_of_memory_had_stays_reserved_until_it_is_tried_again(tmp_path: Path) -> None:
    stage = Stage(tmp_path, cpu(1))
    job, other = stage.submit("a"), stage.submit("b")
    stage.end(job, OutOfMemory("the machine refused memory"))
    stage.after(1.9)
    assert not stage.executor.runs
    stage.after(0.2)
    assert len(stage.executor.runs) == 1
    for j in (job, other):
        while not j.done():
            stage.end(next(x for x in (job, other) if x.device and not x.done() and _runs(stage, x)))
    stage.counted(submitted=2, succeeded=2, retries_alone=1)
    stage.quiet()


def _runs(stage: Stage, job: ProofJob) -> bool:
    return any(run.progress == job._reported for run in stage.executor.runs)


def test_a_device_that_fails_leaves_the_proof_to_the_cpu(tmp_path: Path) -> None:
    stage = Stage(tmp_path, cpu(), gpu())
    job = stage.submit()
    stage.end(job, DeviceError("cuda:0: an illegal address", path="/secret/place", role="key"))
    assert stage.run_of(job).request.device == "cpu"
    assert "failed elsewhere before: on cpu" in job.placement
    stage.end(job)
    assert job.wait(0).warnings == ("key: cuda:0: an illegal address; the CPU took over",)
    stage.counted(submitted=1, succeeded=1, device_failures=1, retries_on_cpu=1)
    stage.quiet()


@pytest.mark.parametrize("setting", ["auto", "cuda"])
def test_a_circuit_that_was_loaded_without_a_gpu_is_planned_for_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    stage = Stage(tmp_path, cpu(), gpu(problem="it rests"), device=setting)
    real = stage.executor.info

    def info(path: str) -> KeyInfo:
        there = {device.kind for device in stage.executor.offered if not device.problem}
        found = real(path)
        return replace(found, plans={kind: found.plans[kind] for kind in there & fits})

    monkeypatch.setattr(stage.executor, "info", info)
    fits = {"cpu", "cuda"}
    job = stage.submit()
    if setting == "auto":
        stage.end(job)
        assert job.device == "cpu"
    else:
        with pytest.raises(DeviceError, match="it rests"):
            job.wait(0)
    for _ in range(2):
        stage.executor.offer(cpu(), gpu())
        stage.step()
        job = stage.submit()
        stage.end(job)
        assert job.device == "cuda:0"
        stage.executor.offer(cpu(), gpu(problem="it rests again"))
        stage.step()
    assert len(stage.executor.loaded) == 2
    # Nobody asks again and again for a key that the GPU does not hold.
    stage.executor.offer(cpu(), gpu())
    stage.step()
    fits = {"cpu"}
    stage.dispatcher.unload("a")
    for _ in range(2 if setting == "auto" else 0):
        job = stage.submit()
        stage.end(job)
        assert job.device == "cpu"
        assert len(stage.executor.loaded) == 3


def test_a_gpu_whose_process_dies_leaves_the_proof_to_the_cpu_in_the_end(tmp_path: Path) -> None:
    stage = Stage(tmp_path, cpu(), gpu())
    job = stage.submit()
    for _ in range(2):
        assert stage.run_of(job).request.device == "cuda:0"
        stage.end(job, Lost("cuda:0: the process was ended by SIGSEGV: in /secret/place.so"))
    assert stage.run_of(job).request.device == "cpu"
    stage.end(job)
    told = "cuda:0: its process died under the proof; the CPU took over"
    assert job.wait(0).warnings == (told,)
    # After the first death as well, where the GPU is not there any more.
    job = stage.submit()
    stage.executor.offer(cpu(), gpu(problem="it rests"))
    stage.end(job, Lost("cuda:0: the process was ended by SIGKILL"))
    stage.end(job)
    assert job.wait(0).warnings == (told,)
    stage.counted(submitted=2, succeeded=2, losses=3, retries_on_cpu=2)
    stage.quiet()


def test_a_device_that_was_asked_for_by_name_is_not_replaced(tmp_path: Path) -> None:
    stage = Stage(tmp_path, cpu(), gpu(0), gpu(1), device="cuda:1")
    job = stage.submit()
    assert stage.run_of(job).request.device == "cuda:1"
    stage.end(job, DeviceError("cuda:1: an illegal address"))
    with pytest.raises(DeviceError, match="an illegal address"):
        job.wait(0)
    stage.counted(submitted=1, failed=1, device_failures=1)
    stage.quiet()
    for devices, message in (
        ((cpu(),), "is not available"),
        ((cpu(), gpu(problem="no driver")), "no driver"),
    ):
        with pytest.raises(DeviceError, match=message):
            Stage(tmp_path, *devices, device="cuda").submit().wait(0)
    later = Stage(tmp_path, cpu(), gpu(proofs=1), device="cuda")
    running, waits = later.submit(), later.submit()
    later.executor.offer(cpu(), gpu(proofs=1, problem="the driver has gone"))
    later.step()
    with pytest.raises(DeviceError, match="the driver has gone"):
        waits.wait(0)
    later.end(running)
    later.quiet()


def test_errors_of_the_caller_are_delivered_as_they_are(tmp_path: Path) -> None:
    stage = Stage(tmp_path, cpu(), gpu())
    error = UnsatisfiedWitness("the witness does not satisfy the circuit")
    job = stage.submit()
    stage.end(job, error)
    for _ in range(2):
        with pytest.raises(UnsatisfiedWitness) as caught:
            job.wait(0)
        assert caught.value is error
    assert job.error is error
    stage.counted(submitted=1, failed=1)
    stage.quiet()


def test_a_device_that_goes_gives_its_proofs_to_the_others(tmp_path: Path) -> None:
    stage = Stage(tmp_path, cpu(), gpu())
    job = stage.submit()
    stale = stage.run_of(job)
    assert stale.request.device == "cuda:0"
    stage.executor.offer(cpu())
    stage.step()
    assert stale.cancelled
    stage.executor.end(stale, result("cuda:0", 1))
    stage.step()
    assert not job.done(), "what comes from a device that is gone is not taken"
    stage.end(job, result("cpu", 2))
    assert job.wait(0).public_signals == ["2"]
    stage.executor.offer(cpu(), gpu())
    stage.step()
    back = stage.submit()
    assert stage.run_of(back).request.device == "cuda:0"
    stage.end(back)
    stage.quiet()


def test_jobs_wait_until_there_is_a_device(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.executor.offered = []
    job = stage.submit()
    assert not stage.executor.runs
    stage.executor.offer(cpu())
    stage.step()
    stage.end(job)
    assert job.done()
    stage.quiet()


# Time limits and cancellation ----------------------------------------------------------------


@pytest.mark.parametrize("how", ["cancel", "time"])
@pytest.mark.parametrize(
    "stage_of_life", ["loading", "unplaced", "waiting", "running", "retry", "shared", "held"]
)
def test_a_job_can_end_at_every_stage(tmp_path: Path, stage_of_life: str, how: str) -> None:
    stage = Stage(tmp_path, cpu(1), proof_cache=1)
    content, leader = None, None
    if stage_of_life == "loading":
        stage.executor.prompt = False
    elif stage_of_life == "unplaced":
        stage.executor.offered = []
    elif stage_of_life == "waiting":
        leader = stage.submit("b")
    elif stage_of_life == "shared":
        content = b"same"
        leader = stage.submit(content=content)
    elif stage_of_life == "held":
        leader = stage.submit("b")
        stage.executor.offer(cpu(2))
        stage.held = 6 * GIB
    job = stage.submit(timeout=1.5, content=content)
    if stage_of_life == "retry":
        stage.end(job, OutOfMemory("the machine refused memory"))
    if how == "cancel":
        assert job.cancel()
        with pytest.raises(Aborted):
            job.wait(0)
        assert job.state is JobState.CANCELLED
    else:
        stage.after(1.6)
        with pytest.raises(Timeout, match=r"time limit reached after 1\.\d s, "):
            job.wait(0)
    if stage_of_life == "running":
        (run,) = stage.executor.runs
        assert run.cancelled
        waits = stage.submit("b")
        assert len(stage.executor.runs) == 1, "its place is free when it has ended"
        stage.executor.end_cancelled()
        stage.step()
        stage.end(waits)
    stage.held = 0
    stage.executor.prompt = True
    while stage.executor.loads:
        stage.executor.answer_load()
    stage.executor.offer(cpu(1))
    stage.after(10)
    if leader is not None:
        stage.end(leader)
    stage.step()
    assert stage.dispatcher.counters["submitted"] == sum(
        stage.dispatcher.counters[name] for name in ("succeeded", "failed", "cancelled")
    )
    assert stage.dispatcher.counters["timeouts"] == (how == "time")
    stage.quiet()


def test_a_result_that_comes_after_the_answer_changes_nothing(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    jobs = [stage.submit() for _ in range(5)]
    outcomes = (None, Lost("killed"), OutOfMemory("none"), DeviceError("broken"), KeyChanged("changed"))
    for job, outcome in zip(jobs, outcomes, strict=True):
        run = stage.run_of(job) if _runs(stage, job) else None
        job.cancel()
        if run is not None:
            stage.executor.end(run, outcome)
        stage.after(3.0)
        assert job.state is JobState.CANCELLED
    stage.counted(submitted=5, cancelled=5, device_failures=0)
    stage.quiet()


def test_a_cancellation_that_comes_before_the_executor_has_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tmp_path)
    job, prove = ProofJob("a"), stage.executor.prove

    def late(*arguments: Any) -> None:
        assert job.cancel()
        prove(*arguments)

    monkeypatch.setattr(stage.executor, "prove", late)
    stage.dispatcher.entrance.take_seat(False, 1.0)
    stage.dispatcher.submit(job, stage.files["a"], WitnessBytes(b"witness"), 60.0)
    stage.step()
    assert [run.cancelled for run in stage.executor.runs] == [True]
    stage.executor.end_cancelled()
    stage.step()
    assert job.state is JobState.CANCELLED
    stage.quiet()


def test_the_rest_of_the_time_is_the_run_s(tmp_path: Path) -> None:
    stage = Stage(tmp_path, cpu(1))
    first, job = stage.submit("b"), stage.submit("a", timeout=10.0)
    stage.after(4.0)
    stage.end(first)
    assert stage.run_of(job).request.timeout == pytest.approx(6.0)
    stage.end(job)


# The queue -----------------------------------------------------------------------------------


def test_a_full_queue_refuses_and_reads_nothing(tmp_path: Path) -> None:
    stage = Stage(tmp_path, cpu(1), queue_limit=2)
    running, *waiting = [stage.submit() for _ in range(3)]
    with pytest.raises(QueueFull, match="the queue is full: 2 proofs wait"):
        stage.submit("b")
    assert stage.executor.loaded == [stage.files["a"].key]
    stage.end(running)
    left = [*waiting, stage.submit("b")]
    while left:
        job = next(job for job in left if _runs(stage, job))
        stage.end(job)
        left.remove(job)
    stage.counted(submitted=4, succeeded=4, refused=1)
    stage.quiet()


def test_circuits_take_turns_and_priorities_go_first(tmp_path: Path) -> None:
    stage = Stage(tmp_path, cpu(1))
    first = stage.submit("a")
    many = [stage.submit("a") for _ in range(6)]
    few = [stage.submit("b") for _ in range(2)]
    urgent = stage.submit("c", priority=5)
    order: list[ProofJob] = []
    stage.end(first)
    while stage.executor.runs:
        (job,) = (j for j in (*many, *few, urgent) if _runs(stage, j))
        order.append(job)
        stage.now += 1.0
        stage.end(job)
    assert order[0] is urgent
    assert [order.index(job) for job in few] <= [3, 5]
    assert sorted(map(id, order)) == sorted(map(id, (*many, *few, urgent)))
    assert [job for job in order if job in many] == many
    stage.quiet()


# Memory --------------------------------------------------------------------------------------


def test_above_the_watermark_proofs_wait_while_caches_shrink(tmp_path: Path) -> None:
    stage = Stage(tmp_path, cpu(8))
    running = stage.submit("a")
    stage.held = int(0.74 * 8 * GIB)
    job = stage.submit("b")
    assert not _runs(stage, job)
    assert stage.executor.shrinks == 1
    stage.after(2.0)
    assert not _runs(stage, job)
    stage.held = int(0.72 * 8 * GIB)
    stage.after(0.5)
    assert _runs(stage, job)
    for j in (running, job):
        stage.end(j)
    stage.counted(submitted=2, succeeded=2, waits_for_memory=1, shrinks=1)
    stage.quiet()


def test_a_proof_waits_for_memory_for_so_long_and_no_longer(tmp_path: Path) -> None:
    stage = Stage(tmp_path, cpu(8), admission_wait=5.0)
    running = stage.submit("a")
    stage.executor.held = int(0.8 * 8 * GIB)
    job = stage.submit("b")
    stage.after(4.9)
    assert not _runs(stage, job)
    stage.after(0.2)
    assert _runs(stage, job), "it is admitted: by its estimate there is room"
    for j in (running, job):
        stage.end(j)
    stage.quiet()


def test_where_nothing_runs_waiting_is_of_no_use_after_a_shrink(tmp_path: Path) -> None:
    stage = Stage(tmp_path, cpu(8))
    stage.held = int(0.8 * 8 * GIB)
    job = stage.submit("a")
    assert not stage.executor.runs
    stage.after(0.6)
    stage.end(job)
    assert job.done()
    stage.quiet()


def test_no_wait_where_none_is_set(tmp_path: Path) -> None:
    stage = Stage(tmp_path, cpu(8), admission_wait=0)
    running = stage.submit("a")
    stage.held = int(0.8 * 8 * GIB)
    job = stage.submit("b")
    for j in (running, job):
        stage.end(j)
    stage.counted(submitted=2, succeeded=2)
    stage.quiet()


def test_a_proof_that_can_never_fit_is_refused_at_once(tmp_path: Path) -> None:
    stage = Stage(tmp_path, memory_limit=1024)
    stage.executor.arena["a"] = 1024 * MIB - ROOM + 1
    with pytest.raises(OutOfMemory, match="no device can prove it: cpu: needs"):
        stage.submit().wait(0)
    stage.executor.arena["b"] = 1024 * MIB - ROOM
    stage.end(stage.submit("b"))
    stage.counted(submitted=2, failed=1, succeeded=1)
    stage.quiet()


def test_before_a_proof_is_refused_for_what_others_hold_caches_shrink(tmp_path: Path) -> None:
    stage = Stage(tmp_path, memory_limit=1024)
    stage.executor.arena["a"] = 700 * MIB
    stage.end(stage.submit())
    stage.held = 400 * MIB
    helped, refused = stage.submit(), stage.submit()
    assert not stage.executor.runs
    assert stage.executor.shrinks == 1
    stage.held = 100 * MIB
    stage.after(0.6)
    stage.end(helped)
    stage.end(refused)
    stage.held = 400 * MIB
    job = stage.submit()
    stage.after(0.6)
    with pytest.raises(OutOfMemory, match="needs 700 MiB"):
        job.wait(0)
    stage.counted(submitted=4, succeeded=3, failed=1, shrinks=2)
    stage.quiet()


def test_the_sum_of_estimates_stays_below_the_limit(tmp_path: Path) -> None:
    stage = Stage(tmp_path, cpu(16), memory_limit=2048, held=100 * MIB)
    stage.executor.arena["a"] = 400 * MIB
    jobs = [stage.submit() for _ in range(12)]
    assert len(stage.executor.runs) == (2048 * MIB - 100 * MIB - ROOM) // (400 * MIB)
    while stage.executor.runs:
        stage.end(next(job for job in jobs if _runs(stage, job)))
    assert all(job.state is JobState.SUCCEEDED for job in jobs)
    stage.quiet()


def test_a_leak_is_counted_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage(tmp_path, memory_limit=1 << 20, leak_alarm=100)
    stage.end(stage.submit())
    for _ in range(60):
        stage.after(10.0)
        stage.held += 30 * MIB
    stage.counted(submitted=1, succeeded=1, leak_alarms=1)
    assert "memory keeps growing by 1" in caplog.text


# Kept proofs ---------------------------------------------------------------------------------


def test_the_same_witness_is_proved_once(tmp_path: Path) -> None:
    stage = Stage(tmp_path, cpu(8), proof_cache=1, cache_ttl=100)
    first = [stage.submit(content=b"x") for _ in range(3)]
    other = stage.submit(content=b"y")
    assert len(stage.executor.runs) == 2
    stage.end(first[0], result(number=7))
    assert [job.wait(0).public_signals for job in first] == [["7"]] * 3
    stage.end(other)
    again = stage.submit(content=b"x")
    assert again.wait(0).public_signals == ["7"]
    again.wait(0).proof["number"] = "spoilt"
    assert stage.submit(content=b"x").wait(0).proof == {"number": 7}
    assert stage.dispatcher.proofs.statistics.hits == 2
    stage.after(101)
    late = stage.submit(content=b"x")
    assert not late.done()
    stage.end(late)
    stage.counted(submitted=7, succeeded=7, joined=2)
    stage.quiet()


def test_another_key_is_another_proof(tmp_path: Path) -> None:
    stage = Stage(tmp_path, proof_cache=1)
    stage.end(stage.submit(content=b"x"))
    replace_file(stage, "a", "another key")
    job = stage.submit(content=b"x")
    assert not job.done()
    stage.end(job)
    other = stage.submit("b", content=b"x")
    assert not other.done()
    stage.end(other)
    stage.quiet()


def test_a_proof_is_kept_under_the_key_that_it_was_made_with(tmp_path: Path) -> None:
    stage = Stage(tmp_path, cpu(1), proof_cache=16)
    path = Path(str(stage.files["a"].key))
    first, waits = stage.submit("b"), stage.submit("a", content=b"witness")
    old = path.with_suffix(".old")
    os.rename(path, old)
    path.write_text("another key of the same circuit")
    stage.end(first)
    stage.end(waits)
    assert waits.done()
    again = stage.submit("a", content=b"witness")
    assert again.done(), "by the key that is there now"
    os.rename(old, path)
    back = stage.submit("a", content=b"witness")
    assert not back.done(), "no proof was ever made with this key"
    stage.end(back)
    stage.quiet()


def test_jobs_that_share_a_proof_share_a_failure_but_not_a_cancellation(tmp_path: Path) -> None:
    stage = Stage(tmp_path, proof_cache=1)
    jobs = [stage.submit(content=b"x") for _ in range(3)]
    stage.end(jobs[0], UnsatisfiedWitness("no"))
    for job in jobs:
        with pytest.raises(UnsatisfiedWitness):
            job.wait(0)
    jobs = [stage.submit(content=b"x") for _ in range(3)]
    jobs[0].cancel()
    stage.executor.end_cancelled()
    stage.step()
    assert _runs(stage, jobs[1]), "the next one proves now"
    assert not _runs(stage, jobs[2])
    stage.end(jobs[1])
    assert jobs[2].wait(0) == jobs[1].wait(0)
    stage.counted(submitted=6, failed=3, cancelled=1, succeeded=2, joined=5)
    stage.quiet()


def test_observers_are_told_once_of_every_job_that_ends(tmp_path: Path) -> None:
    stage = Stage(tmp_path, cpu(1), gpu())
    order: list[tuple[str, JobState, tuple[str, ...]]] = []

    def fails(job: ProofJob) -> None:
        raise RuntimeError

    stage.dispatcher.observers += [fails, lambda job: order.append(("observer", job.state, job.devices))]
    first, second, third = stage.submit(), stage.submit(), stage.submit()
    first.add_done_callback(lambda job: order.append(("owner", job.state, job.devices)))
    stage.end(first, DeviceError("cuda:0: an illegal address"))
    stage.end(first)
    second.cancel()
    stage.executor.end_cancelled()
    stage.end(third, UnsatisfiedWitness("it does not satisfy the circuit"))
    assert order == [
        ("observer", JobState.SUCCEEDED, ("cuda:0", "cpu")),
        ("owner", JobState.SUCCEEDED, ("cuda:0", "cpu")),
        ("observer", JobState.CANCELLED, second.devices),
        ("observer", JobState.FAILED, third.devices),
    ]


# The end -------------------------------------------------------------------------------------


def test_abort_ends_what_waits_and_lets_run_what_runs(tmp_path: Path) -> None:
    stage = Stage(tmp_path, cpu(1))
    running, waiting = stage.submit(), stage.submit()
    stage.dispatcher.abort(Aborted("closed"), running=False)
    with pytest.raises(Aborted, match="closed"):
        waiting.wait(0)
    with pytest.raises(ShuttingDown):
        stage.submit()
    assert not stage.dispatcher.drain(0)
    stage.end(running)
    assert running.state is JobState.SUCCEEDED
    assert stage.dispatcher.drain(0)
    stage.dispatcher.stop(Aborted("closed"))
    assert stage.dispatcher.step() is None
    stage.counted(submitted=2, succeeded=1, cancelled=1, turned_away=1)
    stage.quiet()


def test_stop_answers_everybody(tmp_path: Path) -> None:
    stage = Stage(tmp_path, cpu(2))
    jobs = [stage.submit() for _ in range(4)]
    stage.executor.prompt = False
    jobs += [stage.submit("b")]
    loads: list[Any] = []
    stage.dispatcher.load(stage.files["c"], False, loads.append)
    stage.dispatcher.stop(Aborted("closed"))
    assert all(job.state is JobState.CANCELLED for job in jobs)
    assert [type(answer).__name__ for answer in loads] == ["Aborted"]
    stage.executor.end_cancelled()
    assert stage.dispatcher.step() is None
    stage.quiet()


# All of it -----------------------------------------------------------------------------------


@pytest.mark.parametrize("trial", range(12))
def test_whatever_happens_every_job_is_answered_once(
    tmp_path: Path, rng: random.Random, trial: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    devices = [
        cpu(rng.choice([1, 2, 8])),
        *(gpu(i, proofs=rng.choice([None, 1, 2])) for i in range(trial % 3)),
    ]
    stage = Stage(tmp_path, *devices, queue_limit=1000, proof_cache=trial % 2, memory_limit=4096)
    for circuit in "abc":
        stage.executor.arena[circuit] = rng.randrange(50, 1200) * MIB
    jobs: list[ProofJob] = []
    answers: list[ProofJob] = []
    gone: set[str] = set()

    def check_limits() -> None:
        requests = [run.request for run in stage.executor.runs if not run.cancelled]
        assert sum(r.threads for r in requests if r.device == "cpu") <= devices[0].threads
        sizes = (stage.executor.arena[Path(r.path).stem] for r in requests if r.device == "cpu")
        assert sum(sizes) <= 4096 * MIB - ROOM

    for _ in range(400):
        dice = rng.random()
        if dice < 0.4:
            content = bytes([rng.randrange(8)]) if trial % 2 else None
            job = stage.submit(
                rng.choice("abc"),
                priority=rng.randrange(-2, 3),
                timeout=rng.choice([0.5, 20.0, 1e5]),
                content=content,
            )
            job.add_done_callback(answers.append)
            jobs.append(job)
        elif dice < 0.75 and stage.executor.runs:
            outcome = rng.choice(
                [None, None, None, Lost("killed"), OutOfMemory("none"), DeviceError("x"), KeyChanged("x")]
            )
            stage.executor.end(rng.choice(stage.executor.runs), outcome)
        elif dice < 0.8 and jobs:
            rng.choice(jobs).cancel()
        elif dice < 0.85:
            stage.executor.prompt = not stage.executor.prompt
        elif dice < 0.88 and stage.executor.loads:
            stage.executor.answer_load(rng.choice([None, Lost("killed"), MalformedFile("a", "b", "c")]))
        elif dice < 0.9:
            replace_file(stage, rng.choice("abc"), f"key {rng.random()}")
        elif dice < 0.92 and len(devices) > 1:
            gone ^= {rng.choice(devices[1:]).name}
            stage.executor.offer(*(device for device in devices if device.name not in gone))
        elif dice < 0.94:
            stage.held = rng.choice([0, 0, 3 * GIB])
        else:
            stage.after(rng.random() * 3)
        if rng.random() < 0.9:
            stage.executor.end_cancelled()
        stage.step()
        check_limits()

    stage.held, stage.executor.prompt = 0, True
    stage.executor.offer(*devices)
    for _ in range(3000):
        while stage.executor.loads:
            stage.executor.answer_load()
        stage.executor.end_cancelled()
        if stage.executor.runs:
            stage.executor.end(stage.executor.runs[0])
        stage.after(0.3)
        if all(job.done() for job in jobs) and not stage.executor.runs:
            break
    assert all(job.done() for job in jobs)
    assert sorted(map(id, answers)) == sorted(map(id, jobs))
    counters = stage.dispatcher.counters
    assert len(jobs) == counters["submitted"]
    assert len(jobs) == counters["succeeded"] + counters["failed"] + counters["cancelled"]
    stage.quiet()
