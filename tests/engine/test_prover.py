"""The prover with real proofs in this process: witnesses, tasks, cancellation, changed files, ways to end."""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpuprover
from gpuprover import (
    Aborted,
    CircuitNotFound,
    DeviceError,
    InvalidInput,
    MalformedFile,
    OutOfMemory,
    ProofJob,
    Prover,
    QueueFull,
    ShuttingDown,
    Timeout,
    UnsatisfiedWitness,
    acreate_prover,
    create_prover,
)
from gpuprover.circuits import CircuitBuilder, chain_circuit
from gpuprover.config import load_engine_settings
from gpuprover.engine.driver import _drivers
from gpuprover.engine.local import LocalExecutor
from gpuprover.formats.wtns import read_witness, witness_bytes
from gpuprover.limbs import words_to_ints
from gpuprover.systems.groth16.key_warnings import OWN_GAMMA
from gpuprover.verifier import client
from tests.support.engine_stage import FakeExecutor, FakeTimes, cpu, gpu
from tests.support.paths import VECTORS
from tests.test_witness import write_program

CHAIN, WITNESS = VECTORS / "chain5.bn254.zkey", VECTORS / "chain5.bn254.wtns"
SETTINGS: dict[str, Any] = {"max_workers": 0, "verifier": "inline", "threads": 2, "device": "cpu"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    keys = tmp_path / "keys"
    keys.mkdir()
    shutil.copy(CHAIN, keys / "chain.zkey")
    shutil.copy(VECTORS / "chain5.bls12-381.zkey", keys / "other.zkey")
    return keys


@pytest.fixture
def prover(folder: Path) -> Iterator[Prover]:
    with create_prover(circuit_keys_path=folder, **SETTINGS) as prover:
        yield prover


def holds(circuit: str, prover: Prover, result: gpuprover.ProofResult) -> bool:
    return prover.verify(circuit, result.public_signals, result.proof)


# Proofs --------------------------------------------------------------------------------------


def test_every_form_of_a_witness(prover: Prover) -> None:
    values = read_witness(WITNESS).values
    for witness in (
        WITNESS,
        str(WITNESS),
        WITNESS.read_bytes(),
        values,
        words_to_ints(values),
        tuple(words_to_ints(values)),
    ):
        result = prover.prove("chain", witness)
        assert holds("chain", prover, result)
        assert result.public_signals == json.loads((VECTORS / "chain5.bn254.public.json").read_text())
        assert result.device == "cpu"
        assert set(result.memory) == {"before", "peak", "after"}
    assert witness_bytes(read_witness(WITNESS).curve.scalar, values) == WITNESS.read_bytes()


@pytest.mark.parametrize(
    ("witness", "error", "message"),
    [
        ("nowhere.wtns", InvalidInput, "nowhere.wtns: cannot read"),
        (b"not a witness", MalformedFile, "expected a file that starts with 'wtns'"),
        ([1, -1, 2], InvalidInput, "expected integers from 0"),
        ([1, "secret-7f3a"], InvalidInput, "expected integers from 0"),
        (7, InvalidInput, "expected integers from 0"),
        ({"inputs": {}}, InvalidInput, "has no program beside its key"),
        ({"input": {}}, InvalidInput, r"expected \{'inputs'"),
        ([1, 2, 3], gpuprover.WitnessMismatch, "values"),
    ],
)
def test_witnesses_that_cannot_be_used(prover: Prover, witness: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        prover.prove("chain", witness)
    assert "secret-7f3a" not in str(caught.value)
    assert prover.get_status().queued_jobs == 0
    assert prover._dispatcher.seats.active == 0


def test_a_witness_that_does_not_satisfy_the_circuit(prover: Prover) -> None:
    values = words_to_ints(read_witness(WITNESS).values)
    values[-1] += 1
    job = prover.submit("chain", values)
    with pytest.raises(UnsatisfiedWitness):
        job.wait(250)
    assert (job.state, job.error is not None) == ("failed", True)


def test_inputs_need_only_themselves_where_the_program_lies_beside_the_key(
    folder: Path, tmp_path: Path, prover: Prover
) -> None:
    builder = CircuitBuilder()
    square, root = builder.public_input(49), builder.private_input(7)
    builder.constrain(root, root, square)
    builder.build().write(tmp_path / "square.r1cs", tmp_path / "square.wtns")
    gpuprover.setup(tmp_path / "square.r1cs", folder / "square.zkey", insecure=True)
    with pytest.raises(InvalidInput, match="no program"):
        prover.prove("square", {"inputs": {"a": [49, 7]}})
    write_program(folder / "square.wasm")
    for witness in (
        {"inputs": {"a": [49, 7]}},
        {"inputs": {"a": ["49", "0x7"]}, "fuel": 10**8},
        {"inputs": {"a": [49, -7]}, "wasm": folder / "square.wasm"},
        {"inputs": b'{"a": [49, "7"]}', "fuel": 10**8},
    ):
        result = prover.prove("square", witness)
        assert result.public_signals == ["49"]
        assert holds("square", prover, result)
    with pytest.raises(UnsatisfiedWitness):
        prover.prove("square", {"inputs": {"a": [49, 8]}})
    with pytest.raises(InvalidInput, match="b: the circuit has no such input"):
        prover.prove("square", {"inputs": {"a": [49, 7], "b": 1}})
    for text in (b"{", b"\xff", b'{"a": 1, "a": 2}', b'{"a": NaN}'):
        with pytest.raises(MalformedFile, match="circuit inputs: document"):
            prover.prove("square", {"inputs": text})
    with pytest.raises(InvalidInput, match="an object of signal names"):
        prover.prove("square", {"inputs": b"[49, 7]"})


def test_arguments_that_cannot_be_used(prover: Prover) -> None:
    for options, message in [
        ({"timeout": 0}, "timeout"),
        ({"timeout": True}, "timeout"),
        ({"timeout": "soon"}, "timeout"),
        ({"priority": 1.5}, "priority"),
        ({"priority": 1001}, "priority"),
        ({"queue": "jump"}, "queue"),
        ({"queue": np.zeros(3)}, "queue"),
    ]:
        with pytest.raises(InvalidInput, match=f"^{message}: expected"):
            prover.submit("chain", WITNESS, **options)  # type: ignore[arg-type]
    with pytest.raises(CircuitNotFound, match="where there is chain, other"):
        prover.prove("mint", WITNESS)
    with pytest.raises(InvalidInput, match="memory_limt: no such setting; is memory_limit meant"):
        create_prover(memory_limt=5)
    assert prover._dispatcher.seats.active == 0
    assert prover.get_status().counters["submitted"] == 0


def test_many_threads_and_two_circuits(prover: Prover) -> None:
    results: list[bool] = []

    def work(circuit: str, name: str) -> None:
        for _ in range(3):
            result = prover.prove(circuit, VECTORS / f"chain5.{name}.wtns")
            results.append(holds(circuit, prover, result))

    pairs = [("chain", "bn254"), ("other", "bls12-381")] * 3
    threads = [threading.Thread(target=work, args=pair) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(250)
    assert results == [True] * 18
    status = prover.get_status()
    assert (status.active_jobs, status.queued_jobs) == (0, 0)
    assert status.loaded_circuits == ("chain", "other")
    assert status.counters["succeeded"] == status.counters["submitted"] == 18
    assert status.workers[0].proofs == 18


def test_a_limit_that_nothing_fits(folder: Path) -> None:
    with create_prover(circuit_keys_path=folder, memory_limit=1, **SETTINGS) as prover:
        with pytest.raises(OutOfMemory, match="no device can prove it: cpu: needs"):
            prover.prove("chain", WITNESS)
        with pytest.raises(OutOfMemory):
            prover.prove("chain", WITNESS, timeout=250)


def test_kept_proofs_hold_no_witness(folder: Path) -> None:
    with create_prover(circuit_keys_path=folder, proof_cache=1, verification_cache=1, **SETTINGS) as prover:
        first = prover.prove("chain", WITNESS)
        assert prover.prove("chain", WITNESS.read_bytes()).proof == first.proof
        assert prover.prove("chain", words_to_ints(read_witness(WITNESS).values)).proof == first.proof
        for _ in range(3):
            assert holds("chain", prover, first)
            assert prover.verify_batch("chain", [(first.public_signals, first.proof)] * 2) == [True, True]
        wrong = [str(int(first.public_signals[0]) + 1), *first.public_signals[1:]]
        assert not prover.verify("chain", wrong, first.proof)
        assert not prover.verify("chain", wrong, first.proof)
        caches = prover.get_status().caches
        assert (caches["proofs"].hits, caches["proofs"].entries) == (2, 1)
        assert caches["verifications"].entries == 2
        assert caches["verifications"].hits == 9
        assert all(len(key) == 32 for key in prover._dispatcher.proofs._entries)


# Tasks ---------------------------------------------------------------------------------------


def test_tasks_prove_and_the_loop_goes_on(prover: Prover) -> None:
    async def main() -> float:
        longest, ticks = 0.0, 0

        async def tick() -> None:
            nonlocal longest, ticks
            while True:
                before = time.thread_time()
                await asyncio.sleep(0.005)
                longest, ticks = max(longest, time.thread_time() - before), ticks + 1

        watch = asyncio.create_task(tick())
        results = await asyncio.gather(
            *(prover.aprove("chain", read_witness(WITNESS).values) for _ in range(6))
        )
        assert await prover.averify("chain", results[0].public_signals, results[0].proof)
        pairs = [(r.public_signals, r.proof) for r in results]
        assert await prover.averify_batch("chain", pairs) == [True] * 6
        watch.cancel()
        assert ticks > 5
        return longest

    prover.prove("chain", WITNESS)
    assert asyncio.run(main()) < 0.5, "seconds of the loop's own work in one go"


def test_a_cancelled_task_cancels_its_proof(prover: Prover) -> None:
    async def main() -> None:
        blocker = await prover.asubmit("chain", WITNESS)
        await blocker
        jobs = [await prover.asubmit("chain", WITNESS) for _ in range(4)]
        task = asyncio.create_task(prover.aprove("other", VECTORS / "chain5.bls12-381.wtns"))
        for _ in range(10):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for job in jobs:
            await job

    asyncio.run(main())
    assert prover.drain(250)
    counters = prover.get_status().counters
    assert counters["succeeded"] + counters["cancelled"] == counters["submitted"]
    assert counters["failed"] == 0
    assert prover._dispatcher.seats.active == 0


def test_a_task_that_waits_for_a_place_gives_it_up(folder: Path) -> None:
    async def main(prover: Prover) -> None:
        prover._dispatcher.seats.acquire()
        waiting = asyncio.create_task(prover.aprove("chain", WITNESS))
        with pytest.raises(QueueFull):
            await prover.aprove("chain", WITNESS, queue="refuse")
        with pytest.raises(Timeout, match="the queue is full: 1 proofs wait, and none of them began"):
            await prover.aprove("chain", WITNESS, timeout=0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        prover._dispatcher.seats.release()
        assert holds("chain", prover, await prover.aprove("chain", WITNESS, queue="refuse"))

    with create_prover(circuit_keys_path=folder, queue_limit=1, **SETTINGS) as prover:
        asyncio.run(main(prover))
        assert prover.get_status().counters["refused"] == 1


# Long proofs ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A circuit whose proofs take some tenths of a second, and its witness."""
    folder = tmp_path_factory.mktemp("long")
    chain_circuit(1 << 15).write(folder / "long.r1cs", folder / "long.wtns")
    gpuprover.setup(folder / "long.r1cs", folder / "long.zkey", insecure=True)
    shutil.copy(CHAIN, folder / "chain.zkey")
    return folder


def test_a_proof_that_runs_ends_soon_after_its_cancellation(long_keys: Path) -> None:
    with create_prover(circuit_keys_path=long_keys, **SETTINGS) as prover:
        prover.prove("long", long_keys / "long.wtns")
        for _ in range(20):
            seen: list[gpuprover.Progress] = []
            job = prover.submit("long", long_keys / "long.wtns", progress=seen.append)
            assert wait_until(lambda job=job, seen=seen: seen or job.done())
            before = time.process_time()
            if job.cancel():
                break
        else:
            pytest.fail("every proof was over before it could be cancelled")
        with pytest.raises(Aborted, match="cancelled by its caller"):
            job.wait(0)
        assert wait_until(lambda: not prover.get_status().workers[0].jobs)
        # Of two threads, in CPU time, which other programs do not add to.
        assert time.process_time() - before < 2 * 1.0
        assert holds("long", prover, prover.prove("long", long_keys / "long.wtns"))
        counters = prover.get_status().counters
        assert counters["cancelled"] == 1


def test_a_time_limit_ends_a_proof_that_runs(long_keys: Path) -> None:
    with create_prover(circuit_keys_path=long_keys, **SETTINGS) as prover:
        prover.prove("chain", WITNESS)
        with pytest.raises(Timeout, match="time limit reached after"):
            prover.prove("long", long_keys / "long.wtns", timeout=0.01)
        assert wait_until(lambda: not prover.get_status().workers[0].jobs)


def test_small_proofs_are_not_starved_by_long_ones(long_keys: Path) -> None:
    with create_prover(circuit_keys_path=long_keys, **SETTINGS | {"threads": 1}) as prover:
        prover.prove("long", long_keys / "long.wtns")
        prover.prove("chain", WITNESS)
        long = [prover.submit("long", long_keys / "long.wtns") for _ in range(20)]
        small = [prover.submit("chain", WITNESS) for _ in range(3)]
        for job in small:
            job.wait(250)
        assert sum(job.done() for job in long) < 12
        for job in long:
            job.cancel()


# Changes -------------------------------------------------------------------------------------


def exchange(source: Path, target: Path) -> None:
    shutil.copy(source, target.with_suffix(".new"))
    os.replace(target.with_suffix(".new"), target)


def test_a_changed_file_is_used_without_a_restart(prover: Prover, folder: Path) -> None:
    first = prover.prove("chain", WITNESS)
    exchange(VECTORS / "chain5.bls12-381.zkey", folder / "chain.zkey")
    with pytest.raises(gpuprover.WitnessMismatch):
        prover.prove("chain", WITNESS)
    second = prover.prove("chain", VECTORS / "chain5.bls12-381.wtns")
    assert holds("chain", prover, second)
    exchange(CHAIN, folder / "chain.zkey")
    assert holds("chain", prover, first)
    assert holds("chain", prover, prover.prove("chain", WITNESS))
    assert prover.get_status().counters["reloads"] == 2


def test_files_change_while_proofs_are_made(prover: Prover, folder: Path) -> None:
    prover.prove("chain", WITNESS)
    stop = threading.Event()

    def change() -> None:
        while not stop.wait(0.05):
            exchange(CHAIN, folder / "chain.zkey")

    changer = threading.Thread(target=change)
    changer.start()
    try:
        jobs = [prover.submit("chain", WITNESS) for _ in range(30)]
        outcomes = []
        for job in jobs:
            try:
                outcomes.append(job.wait(250).device)
            except InvalidInput as error:
                outcomes.append(error.kind)
    finally:
        stop.set()
        changer.join()
    assert set(outcomes) <= {"cpu", "KeyChanged"}
    assert outcomes.count("cpu") >= 25
    assert prover.get_status().counters["reloads"] >= 1


def test_a_verification_key_that_does_not_fit_is_said_at_the_first_proof(
    prover: Prover, folder: Path
) -> None:
    shutil.copy(VECTORS / "chain5.bls12-381.vkey.json", folder / "chain.vkey.json")
    with pytest.raises(MalformedFile, match="it is not the verification key of"):
        prover.prove("chain", WITNESS)
    assert "chain: " in prover.get_status().problems[0]
    shutil.copy(VECTORS / "chain5.bn254.vkey.json", folder / "chain.vkey.json")
    assert holds("chain", prover, prover.prove("chain", WITNESS))
    assert prover.get_status().problems == ()


def test_circuits_come_and_go(prover: Prover, folder: Path) -> None:
    assert prover.circuits() == ["chain", "other"]
    info = prover.load("chain", pin=True)
    assert (info.curve, info.n_public, info.constraints) == ("bn254", 2, 5)
    assert prover.get_status().loaded_circuits == ("chain",)
    assert prover.verification_key("chain")["nPublic"] == prover.known_key("chain").n_public == 2
    assert prover.unload("chain")
    assert not prover.unload("chain")
    assert prover.get_status().loaded_circuits == ()
    shutil.copy(CHAIN, folder / "third.zkey")
    assert "third" not in prover.known_circuits()
    job = prover.submit("third", WITNESS)
    assert holds("third", prover, job.wait())
    assert job.protocol == "groth16"
    assert prover.known_circuits()["third"] == ("groth16", "bn128")
    with pytest.raises(CircuitNotFound):
        prover.load("mint")


# Policies and ends ---------------------------------------------------------------------------


def test_eager_is_ready_when_its_circuits_are(folder: Path) -> None:
    with create_prover(circuit_keys_path=folder, preload_circuits=["chain", "other"], **SETTINGS) as prover:
        assert prover.settings.policy == "eager"
        status = prover.get_status()
        assert status.ready
        assert status.loaded_circuits == ("chain", "other")
        assert json.loads(json.dumps(status.as_dict()))["counters"]["submitted"] == 0
    with pytest.raises(CircuitNotFound, match="mint"):
        create_prover(circuit_keys_path=folder, preload_circuits=["chain", "mint"], **SETTINGS)
    (folder / "other.zkey").write_bytes(b"damaged")
    before = threads_of_ours()
    with pytest.raises(MalformedFile, match="expected a zkey file"):
        create_prover(circuit_keys_path=folder, preload_circuits="chain,other", **SETTINGS)
    assert wait_until(lambda: threads_of_ours() == before), "what could not be made is closed"
    with create_prover(
        circuit_keys_path=folder, preload_circuits="chain,other", wait=False, **SETTINGS
    ) as prover:
        with pytest.raises(MalformedFile, match="expected a zkey file"):
            prover.wait_ready(250)
        assert not prover.get_status().ready
        assert prover.get_status().problems[0].startswith("other: ")
        assert holds("chain", prover, prover.prove("chain", WITNESS))
        exchange(VECTORS / "chain5.bls12-381.zkey", folder / "other.zkey")
        prover.load("other")
        prover.wait_ready(250)


def test_tasks_make_a_prover_and_leave_none_behind(folder: Path) -> None:
    before = threads_of_ours()

    async def make() -> None:
        async with await acreate_prover(
            circuit_keys_path=folder, preload_circuits="chain", **SETTINGS
        ) as prover:
            assert prover.get_status().loaded_circuits == ("chain",)
            assert holds("chain", prover, await prover.aprove("chain", WITNESS))
        with pytest.raises(CircuitNotFound):
            await acreate_prover(circuit_keys_path=folder, preload_circuits="mint", **SETTINGS)
        (folder / "other.zkey").write_bytes(b"damaged")
        with pytest.raises(MalformedFile):
            await acreate_prover(circuit_keys_path=folder, preload_circuits="other", **SETTINGS)

    asyncio.run(make())
    assert wait_until(lambda: threads_of_ours() == before), threads_of_ours()


def test_a_prover_that_does_not_get_ready_is_told_in_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalExecutor, "load", lambda *_: None)
    before = threads_of_ours()
    begun = time.monotonic()
    with pytest.raises(Timeout, match="the prover is not ready after"):
        create_prover(circuit_keys_path=folder, preload_circuits="chain", load_timeout=0.2, **SETTINGS)
    assert time.monotonic() - begun < 100

    async def cancelled() -> None:
        task = asyncio.ensure_future(
            acreate_prover(circuit_keys_path=folder, preload_circuits="chain", **SETTINGS)
        )
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(asyncio.wait_for(cancelled(), 100))
    gc.collect()
    assert wait_until(lambda: threads_of_ours() == before), threads_of_ours()


def test_what_keeps_it_from_proving_is_told_by_readiness_and_status(folder: Path) -> None:
    executor = FakeExecutor(cpu())
    settings = load_engine_settings({"circuit_keys_path": folder, "policy": "eager", **SETTINGS})
    with Prover(settings, executor=executor, times=FakeTimes()) as prover:
        prover.wait_ready(100)
        assert (prover.get_status().ready, prover.get_status().problems) == (True, ())
        executor.problem = "cpu-0: no process could be started: Too many open files"
        assert (prover.get_status().ready, prover.get_status().problems) == (False, (executor.problem,))
        with pytest.raises(Timeout):
            prover.wait_ready(0.1)
        executor.problem = ""
        assert prover.get_status().ready
        executor.offer(cpu(problem="no worker starts"))
        assert wait_until(lambda: not prover.get_status().ready)
        with pytest.raises(DeviceError, match="no worker starts"):
            prover.wait_ready(100)


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:0"])
def test_the_cpu_is_ready_for_a_gpu_that_was_not_asked_for_by_name(folder: Path, device: str) -> None:
    executor = FakeExecutor(cpu(), gpu())
    given = {**SETTINGS, "circuit_keys_path": folder, "policy": "eager", "device": device}
    with Prover(load_engine_settings(given), executor=executor, times=FakeTimes()) as prover:
        assert wait_until(lambda: prover.get_status().ready)
        executor.offer(cpu(), gpu(problem="it was lost"))
        assert wait_until(lambda: prover.get_status().devices[1]["problem"])
        assert prover.get_status().ready is (device == "auto")
        if device != "auto":
            with pytest.raises(DeviceError, match="it was lost"):
                prover.wait_ready(100)
        executor.offer(cpu(), gpu())
        assert wait_until(lambda: prover.get_status().ready)


def test_the_engine_outlives_what_the_system_refuses_it(
    prover: Prover, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, refusals = prover._dispatcher.step, iter(range(6))

    def step() -> float | None:
        if next(refusals, None) is not None:
            raise OSError(errno.EMFILE, "Too many open files")
        return real()

    monkeypatch.setattr(prover._dispatcher, "step", step)
    job = prover.submit("chain", WITNESS)
    assert wait_until(lambda: not prover.get_status().ready)
    assert prover.get_status().problems == (
        "the engine: the machine refused a resource: Too many open files",
    )
    assert job.wait(100).proof
    assert prover.get_status().ready
    assert sum("tried again" in line for line in caplog.messages) == 3


def test_a_task_without_a_thread_for_it_gives_its_place_back(
    prover: Prover, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "to_thread", refuse)
        for tenant in ("", "one"):
            with pytest.raises(OutOfMemory, match="refused a thread"):
                asyncio.run(prover.asubmit("chain", WITNESS, tenant=tenant))
    assert (prover._dispatcher.seats.active, prover._dispatcher.seats.tenants) == (0, 0)
    assert asyncio.run(prover.aprove("chain", WITNESS)).proof


def test_a_share_of_the_queue_bounds_tenants_who_do_not_wait(folder: Path) -> None:
    with create_prover(circuit_keys_path=folder, queue_limit=4, tenant_queue_limit=4, **SETTINGS) as prover:
        for wrong in (0, -1, 1.01, float("nan"), True, "0.5", None):
            with pytest.raises(InvalidInput, match="share: expected a number above 0, at most 1, found"):
                prover.share_queue(wrong)  # type: ignore[arg-type]
        prover.share_queue(0.5)
        seats = prover._dispatcher.seats
        for _ in range(2):
            seats.acquire(0, "greedy")
        with pytest.raises(QueueFull, match=r"^as many proofs of this client wait as may$"):
            prover.submit("chain", WITNESS, tenant="greedy", queue="refuse")
        assert prover.get_status().counters["refused"] == 1
        assert prover.prove("chain", WITNESS, tenant="greedy").proof, "who waits has its limit alone"
        assert prover.prove("chain", WITNESS, tenant="other", queue="refuse").proof
        prover.share_queue(1)
        assert prover.prove("chain", WITNESS, tenant="greedy", queue="refuse").proof
        for _ in range(2):
            seats.release("greedy")


def test_tenants_have_places_of_their_own(folder: Path) -> None:
    with create_prover(circuit_keys_path=folder, queue_limit=4, tenant_queue_limit=2, **SETTINGS) as prover:
        places = prover._dispatcher.seats
        for _ in range(2):
            places.acquire(0, "greedy")
        with pytest.raises(QueueFull, match="full for this client: 2 of its proofs wait"):
            prover.submit("chain", WITNESS, queue="refuse", tenant="greedy")
        with pytest.raises(
            Timeout, match="full for this client: 2 of its proofs wait, and none of them began"
        ):
            prover.submit("chain", WITNESS, timeout=0.05, tenant="greedy")
        assert holds("chain", prover, prover.prove("chain", WITNESS, queue="refuse", tenant="modest"))
        assert holds("chain", prover, asyncio.run(prover.aprove("chain", WITNESS, tenant="modest")))
        assert holds("chain", prover, prover.prove("chain", WITNESS, queue="refuse"))
        assert (places.active, places.tenants) == (2, 1), "who has nothing there is forgotten"
        for _ in range(2):
            places.release("greedy")
        with pytest.raises(InvalidInput, match="tenant: expected a text"):
            prover.submit("chain", WITNESS, tenant="t" * 257)
        assert (places.active, places.tenants) == (0, 0)
        assert prover.get_status().counters["refused"] == 1


FORKED = """
    import asyncio, faulthandler, os, sys, time
    import gpuprover
    settings = dict(device="cpu", threads=1, **{settings!r})
    circuit = dict(circuit_keys_path={folder!r}, preload_circuits="chain")
    with gpuprover.create_prover(**circuit, **settings) as prover:
        result = prover.prove("chain", {witness!r})
        # Open for ever where proofs are made in this process, whose compiled code may hold locks at a fork.
        job = prover.submit("chain", {witness!r}) if {own!r} else gpuprover.ProofJob("chain")
        held = prover._dispatcher._lock, job._lock, prover._dispatcher.wake._cond, job._ended._cond
        for lock in held:  # as they may be when another thread has them
            lock.acquire()
        pid = os.fork()
        if pid == 0:
            faulthandler.dump_traceback_later(60, exit=True)
            public, proof = result.public_signals, result.proof
            statement = [(public, proof)]
            calls = dict(
                prove=lambda: prover.prove("chain", {witness!r}, timeout=5),
                aprove=lambda: asyncio.run(prover.aprove("chain", {witness!r}, timeout=5)),
                submit=lambda: prover.submit("chain", {witness!r}, timeout=5),
                asubmit=lambda: asyncio.run(prover.asubmit("chain", {witness!r}, timeout=5)),
                verify=lambda: prover.verify("chain", public, proof, timeout=5),
                verify_batch=lambda: prover.verify_batch("chain", statement, timeout=5),
                averify=lambda: asyncio.run(prover.averify("chain", public, proof, timeout=5)),
                averify_batch=lambda: asyncio.run(prover.averify_batch("chain", statement, timeout=5)),
                verification_key=lambda: prover.verification_key("chain"),
                known_key=lambda: prover.known_key("chain"),
                known_circuits=prover.known_circuits,
                circuits=prover.circuits,
                has_circuit=lambda: prover.has_circuit("chain"),
                look_in=lambda: prover.look_in({folder!r}),
                load=lambda: prover.load("chain", timeout=5),
                unload=lambda: prover.unload("chain"),
                observe=lambda: prover.observe(print),
                share_queue=lambda: prover.share_queue(0.5),
                get_status=prover.get_status,
                wait_ready=lambda: prover.wait_ready(5),
                drain=lambda: prover.drain(5),
                wait=lambda: job.wait(5),
                cancel=job.cancel,
                add_done_callback=lambda: job.add_done_callback(print),
                remove_done_callback=lambda: job.remove_done_callback(print),
            )
            methods = [n for owner in (gpuprover.Prover, gpuprover.ProofJob) for n in vars(owner)]
            public_methods = set(n for n in methods if n[0] != "_")
            untried = public_methods - set(calls) - {{"close", "aclose", "done"}}
            assert not untried, untried
            for name, call in calls.items():
                try:
                    call()
                except gpuprover.ShuttingDown as error:
                    assert "forked" in error.message and str(os.getppid()) in error.message
                else:
                    raise AssertionError(name)
            prover.close()
            asyncio.run(prover.aclose())
            if {own!r}:
                with gpuprover.create_prover(**circuit, **settings) as other:
                    assert other.prove("chain", {witness!r}).proof
            sys.exit(5)
        _, status = os.waitpid(pid, 0)
        for lock in held:
            lock.release()
        assert os.waitstatus_to_exitcode(status) == 5, status
        if {own!r}:
            job.wait(100)
        assert prover.verify("chain", result.public_signals, prover.prove("chain", {witness!r}).proof)
    print("whole")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_forked_process_is_told_that_the_prover_is_not_its_own(
    folder: Path, tmp_path: Path, workers: int
) -> None:
    """Its end, by the interpreter's usual way, touches nothing of the other's either."""
    settings = {"max_workers": workers, "verifier": "process" if workers else "inline"}
    program = textwrap.dedent(FORKED).format(
        folder=str(folder), witness=str(WITNESS), settings=settings, own=workers > 0
    )
    found = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-"],
        input=program,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert (found.returncode, found.stdout) == (0, "whole\n"), found.stderr
    # Nothing but the words on what the key is worth.
    assert all(line.startswith("circuit ") for line in found.stderr.splitlines())


def test_lazy_starts_with_the_first_proof(folder: Path) -> None:
    with create_prover(
        circuit_keys_path=folder, policy="lazy", preload_circuits="other", **SETTINGS
    ) as prover:
        assert (prover.get_status().ready, prover.get_status().workers) == (True, ())
        prover.prove("chain", WITNESS)
        assert len(prover.get_status().workers) == 1
        assert prover.load("other").curve == "bls12-381"


def test_a_node_that_only_verifies_starts_no_prover(folder: Path) -> None:
    proof, public = (
        json.loads((VECTORS / f"chain5.bn254.{n}.json").read_text()) for n in ("proof", "public")
    )
    before = threading.active_count()
    with create_prover(circuit_keys_path=folder, policy="off", preload_circuits="mint", **SETTINGS) as prover:
        assert prover.verify("chain", public, proof)
        assert not prover.verify("chain", [*public[:-1], "7"], proof)
        for call in (prover.prove, prover.submit):
            with pytest.raises(InvalidInput, match="only verifies"):
                call("chain", WITNESS)
        with pytest.raises(InvalidInput, match="only verifies"):
            prover.load("chain")
        status = prover.get_status()
        assert (status.ready, status.workers, status.loaded_circuits) == (True, (), ())
        assert threading.active_count() == before
        (folder / "only.vkey.json").write_text((VECTORS / "chain5.bn254.vkey.json").read_text())
        assert prover.verify(
            "only", VECTORS / "chain5.bn254.public.json", VECTORS / "chain5.bn254.proof.json"
        )


def test_a_verifier_that_cannot_be_had_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By status and readiness, and to callers by their deadline, also those who wait for another's key."""
    proof, public = (
        json.loads((VECTORS / f"chain5.bn254.{n}.json").read_text()) for n in ("proof", "public")
    )
    pair = socket.socketpair

    def none_left() -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(client, "FIRST_DELAY", 0.01)
    settings = {**SETTINGS, "verifier": "process", "policy": "off"}
    with create_prover(circuit_keys_path=folder, **settings) as prover:
        assert prover.verify("chain", public, proof)
        monkeypatch.setattr(socket, "socketpair", none_left)
        pid = prover.get_status().verifier.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(DeviceError, match="Too many open files"):
            prover.verify("chain", public, proof)
        status = prover.get_status()
        assert not status.ready
        assert any("Too many open files" in problem for problem in status.problems)
        monkeypatch.setattr(socket, "socketpair", pair)
        assert prover.verify("chain", public, proof)
        until = time.monotonic() + 20
        while not prover.get_status().ready:
            assert time.monotonic() < until
            time.sleep(0.02)
        verification = prover._verification
        with verification._lock, pytest.raises(Timeout, match="in time"):
            verification.verify("chain", public, proof, 0.05)


def test_drained_and_closed(folder: Path) -> None:
    prover = create_prover(circuit_keys_path=folder, **SETTINGS)
    jobs = [prover.submit("chain", WITNESS) for _ in range(5)]
    assert prover.drain(250)
    assert [job.state for job in jobs] == ["succeeded"] * 5
    assert not prover.get_status().ready
    with pytest.raises(ShuttingDown):
        prover.submit("chain", WITNESS)
    prover.close()
    prover.close()
    for call in (lambda: prover.prove("chain", WITNESS), lambda: prover.load("chain")):
        with pytest.raises(ShuttingDown):
            call()
    with pytest.raises(ShuttingDown):
        prover.wait_ready(1)


def threads_of_ours() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith("gpuprover")]


def wait_until(condition: Any, seconds: float = 100.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return bool(condition())


def test_close_aborts_what_waits(folder: Path) -> None:
    prover = create_prover(circuit_keys_path=folder, **SETTINGS)
    jobs = [prover.submit("chain", WITNESS) for _ in range(40)]
    waiters: list[str] = []

    def wait(job: ProofJob) -> None:
        try:
            job.wait()
            waiters.append("proved")
        except Aborted:
            waiters.append("aborted")

    threads = [threading.Thread(target=wait, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    prover.close()
    for thread in threads:
        thread.join(100)
    assert len(waiters) == 40
    assert "aborted" in waiters
    assert all(job.state in ("succeeded", "cancelled") for job in jobs)
    assert wait_until(lambda: not threads_of_ours()), threads_of_ours()


def test_who_waits_for_a_place_is_told_when_the_prover_is_closed(folder: Path) -> None:
    prover = create_prover(circuit_keys_path=folder, queue_limit=1, **SETTINGS)
    outcomes: list[str] = []

    def work() -> None:
        try:
            prover.prove("chain", WITNESS)
            outcomes.append("proved")
        except (Aborted, ShuttingDown) as error:
            outcomes.append(error.kind)

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    prover.close(0)
    for thread in threads:
        thread.join(100)
    assert len(outcomes) == 12


def test_a_forgotten_prover_closes_itself_but_not_under_its_jobs(folder: Path) -> None:
    job = create_prover(circuit_keys_path=folder, **SETTINGS).submit("chain", WITNESS)
    assert job.wait(250).device == "cpu"
    del job
    assert wait_until(lambda: not threads_of_ours()), threads_of_ours()
    assert all(engine._closed for engine in _drivers)


def test_a_callback_may_close_the_prover(folder: Path) -> None:
    prover = create_prover(circuit_keys_path=folder, **SETTINGS)
    jobs = [prover.submit("chain", WITNESS) for _ in range(10)]
    jobs[0].add_done_callback(lambda job: prover.close())
    for job in jobs:
        assert wait_until(job.done)
    assert wait_until(lambda: not threads_of_ours()), threads_of_ours()


PROGRAM = """
    import gpuprover, sys
    settings = dict(max_workers=0, verifier="inline", device="cpu")
    prover = gpuprover.create_prover(circuit_keys_path={folder!r}, **settings)
    job = prover.submit("chain", {witness!r})
    print(job.wait(250).device, flush=True)
    jobs = [prover.submit("chain", {witness!r}) for _ in range(50)]
    {ending}
"""


@pytest.mark.parametrize(
    ("source", "ending", "code"),
    [
        ("file", "", 0),
        ("stdin", "", 0),
        ("stdin", "sys.exit(7)", 7),
        ("file", "raise ValueError('of the caller')", 1),
        ("file", "del prover", 0),
        ("file", "import threading; threading.Thread(target=jobs[-1].wait).start()", 0),
    ],
)
def test_programs_end(folder: Path, tmp_path: Path, source: str, ending: str, code: int) -> None:
    """An unguarded script, or one from standard input, ends soon whatever it does at its end."""
    program = textwrap.dedent(PROGRAM).format(folder=str(folder), witness=str(WITNESS), ending=ending)
    script = tmp_path / "script.py"
    script.write_text(program)
    found = subprocess.run(
        [sys.executable, *([str(script)] if source == "file" else ["-"])],
        input=program if source == "stdin" else None,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert found.stdout == "cpu\n"
    assert found.returncode == code, found.stderr
    if code == 0 and "Thread" not in ending:
        # But for the log's word on the keys of this folder, which come from a local secret.
        said = [f"circuit {name}: {OWN_GAMMA}" for name in ("chain", "other")]
        assert found.stderr.splitlines() == said


# Arguments --------------------------------------------------------------------------------------

NO_TIMES: list[Any] = ["5", b"5", [], {}, 1j, float("nan"), True]


def test_witnesses_of_every_kind_of_bytes(folder: Path) -> None:
    content = bytearray(WITNESS.read_bytes())
    with create_prover(circuit_keys_path=folder, **SETTINGS) as prover:
        want = prover.prove("chain", WITNESS).public_signals
        assert prover.prove("chain", content).public_signals == want
        job = prover.submit("chain", memoryview(content))
        content[-32:] = bytes(32)  # no longer the prover's
        assert job.wait().public_signals == want


class NoPath:
    def __fspath__(self) -> Any:
        return 7


@pytest.mark.parametrize("source", [5, b"x", "/nowhere/x.json", NoPath()])
def test_a_document_is_called_what_it_is(folder: Path, source: Any) -> None:
    with create_prover(circuit_keys_path=folder, **SETTINGS | {"policy": "off"}) as prover:
        with pytest.raises(InvalidInput) as signals:
            prover.verify("chain", source, {})
        with pytest.raises(InvalidInput) as proof:
            prover.verify("chain", [], source)
    assert (signals.value.role or signals.value.message).startswith("public signals")
    assert (proof.value.role or proof.value.message).startswith("proof")


@pytest.mark.parametrize("value", NO_TIMES)
def test_times_that_are_none(folder: Path, value: Any) -> None:
    prover = create_prover(circuit_keys_path=folder, **SETTINGS)
    try:
        result = prover.prove("chain", WITNESS)
        calls: list[Callable[[], object]] = [
            lambda: prover.verify("chain", result.public_signals, result.proof, timeout=value),
            lambda: prover.verify_batch("chain", [], timeout=value),
            lambda: prover.load("chain", timeout=value),
            lambda: prover.wait_ready(value),
            lambda: prover.submit("chain", WITNESS).wait(value),
            lambda: prover.close(value),  # which leaves nothing half closed
            lambda: prover.drain(value),
        ]
        for call in calls:
            with pytest.raises(InvalidInput):
                call()
            prover.prove("chain", WITNESS)
    finally:
        prover.close()
    assert prover._driver._thread is not None
    assert not prover._driver._thread.is_alive()


@pytest.mark.parametrize("forever", [float("inf"), 10**400])
def test_times_without_an_end(folder: Path, forever: Any) -> None:
    with create_prover(circuit_keys_path=folder, **SETTINGS) as prover:
        prover.wait_ready(forever)
        result = prover.submit("chain", WITNESS).wait(forever)
        statement = result.public_signals, result.proof
        assert prover.verify("chain", *statement, timeout=forever)
        assert prover.verify_batch("chain", [statement], timeout=forever) == [True]
        prover.load("chain", timeout=forever)
        assert prover.drain(forever)


def test_odd_arguments_of_methods(folder: Path) -> None:
    odd: list[Any] = [5, 1.5, [], b"", object(), {1}]
    with create_prover(circuit_keys_path=folder, **SETTINGS) as prover:
        for value in odd:
            calls: list[Callable[[], object]] = [
                lambda value=value: prover.load("chain", pin=value),
                lambda value=value: prover.unload(value),
                lambda value=value: prover.observe(value),
                lambda value=value: prover.prove("chain", {"inputs": {}, "wasm": value}),
                lambda value=value: prover.verify_batch("chain", [value]),
            ]
            for call in calls:
                with pytest.raises(gpuprover.ProverError):
                    call()
        with pytest.raises(InvalidInput):
            prover.verify_batch("chain", 5)  # type: ignore[arg-type]
        prover.prove("chain", WITNESS)
