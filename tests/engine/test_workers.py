"""The prover over worker processes and a verifier process: deaths under load, policies, programs that end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import gpuprover
from gpuprover import Aborted, ProofJob, Prover, create_prover
from gpuprover.circuits import chain_circuit
from gpuprover.systems.groth16.key_warnings import OWN_GAMMA
from tests.support.paths import VECTORS

CHAIN, WITNESS = VECTORS / "chain5.bn254.zkey", VECTORS / "chain5.bn254.wtns"
SETTINGS: dict[str, Any] = {"device": "cpu", "threads": 2, "max_workers": 2, "policy": "lazy"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``chain``, small; ``long``, whose proofs take some tenths of a second, with ``long.wtns``."""
    folder = tmp_path_factory.mktemp("keys")
    chain_circuit(1 << 15).write(folder / "long.r1cs", folder / "long.wtns")
    gpuprover.setup(folder / "long.r1cs", folder / "long.zkey", insecure=True)
    shutil.copy(CHAIN, folder / "chain.zkey")
    return folder


@pytest.fixture
def prover(folder: Path) -> Iterator[Prover]:
    with create_prover(circuit_keys_path=folder, **SETTINGS) as prover:
        yield prover


def wait_until(condition: Callable[[], object], seconds: float = 100.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(condition())


def alive(pid: int) -> bool:
    """Whether a process is there and is more than what its parent has yet to look at."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def holds(circuit: str, prover: Prover, result: gpuprover.ProofResult) -> bool:
    return prover.verify(circuit, result.public_signals, result.proof)


@pytest.mark.parametrize(("proofs", "most"), [(8, 3), pytest.param(16, 6, marks=pytest.mark.slow)])
def test_workers_die_again_and_again_and_every_proof_is_made_once(
    folder: Path, prover: Prover, proofs: int, most: int
) -> None:
    prover.prove("long", folder / "long.wtns")
    answers: list[ProofJob] = []
    jobs = []
    for number in range(proofs):
        circuit, witness = ("long", folder / "long.wtns") if number % 4 else ("chain", WITNESS.read_bytes())
        jobs.append(prover.submit(circuit, witness, timeout=250))
        jobs[-1].add_done_callback(answers.append)
    kills = 0
    while kills < most and wait_until(lambda: prover.get_status().active_jobs or all(j.done() for j in jobs)):
        if all(job.done() for job in jobs):
            break
        busy = [w for w in prover.get_status().workers if w.state == "busy" and w.pid is not None]
        # The third death of one proof ends it.
        if busy and all(job.attempts < 3 for job in jobs if not job.done()):
            with suppress(ProcessLookupError):
                os.kill(busy[kills % len(busy)].pid or 0, signal.SIGKILL)
                kills += 1
        time.sleep(0.3)
    for job in jobs:
        assert holds(job.circuit, prover, job.wait(250))
    assert wait_until(lambda: len(answers) == len(jobs))
    assert sorted(map(id, answers)) == sorted(map(id, jobs))
    status = prover.get_status()
    assert kills >= most // 2
    assert 1 <= status.counters["losses"] <= kills
    assert status.counters["succeeded"] == status.counters["submitted"] == len(jobs) + 1
    assert (status.counters["failed"], status.active_jobs, status.queued_jobs) == (0, 0, 0)
    assert any(job.attempts > 1 for job in jobs)
    # Workers say once a second what they keep; what dead ones had counted stays counted.
    assert wait_until(lambda: prover.get_status().caches["keys"].entries)
    counted = prover.get_status().caches["keys"]
    for worker in prover.get_status().workers:
        os.kill(worker.pid or 0, signal.SIGKILL)
    assert wait_until(lambda: prover.get_status().caches["keys"].entries == 0)
    assert prover.get_status().caches["keys"].misses >= counted.misses > 0


def test_a_folder_that_is_named_from_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its keys are loaded once, wherever the program goes meanwhile."""
    monkeypatch.chdir(folder.parent)
    name = f"{folder.name}/../{folder.name}"
    with create_prover(circuit_keys_path=name, **SETTINGS) as prover:
        for _ in range(3):
            assert holds("chain", prover, prover.prove("chain", WITNESS))
            monkeypatch.chdir(folder)
        status = prover.get_status()
        assert (status.counters["reloads"], status.loaded_circuits) == (0, ("chain",))


def test_a_verifier_that_dies_answers_nevertheless(prover: Prover) -> None:
    proof, public = (
        json.loads((VECTORS / f"chain5.bn254.{n}.json").read_text()) for n in ("proof", "public")
    )
    assert prover.verify("chain", public, proof)
    for _ in range(2):
        assert wait_until(lambda: prover.get_status().verifier.state == "ready")
        os.kill(prover.get_status().verifier.pid or 0, signal.SIGKILL)
        assert prover.verify("chain", public, proof)
        assert not prover.verify("chain", ["7", *public[1:]], proof)
    assert prover.verify_batch("chain", [(public, proof), (public[::-1], proof), ([], {})]) == [
        True,
        public == public[::-1],
        False,
    ]
    assert prover.get_status().verifier.restarts >= 1


def test_closing_ends_what_runs_and_every_process(folder: Path) -> None:
    prover = create_prover(circuit_keys_path=folder, **SETTINGS)
    prover.prove("chain", WITNESS)
    jobs = [prover.submit("long", folder / "long.wtns") for _ in range(30)]
    assert wait_until(lambda: prover.get_status().active_jobs)
    pids = [worker.pid for worker in prover.get_status().workers if worker.pid is not None]
    assert pids
    prover.close(0)
    assert all(job.done() for job in jobs)
    with pytest.raises(Aborted):
        jobs[-1].wait(0)
    assert wait_until(lambda: not any(alive(pid) for pid in pids))


def test_eager_is_warm_and_nobody_proves_in_this_process(folder: Path) -> None:
    """In a process of its own, whose modules are those of the front alone."""
    program = f"""
        import json, sys, gpuprover
        with gpuprover.create_prover(circuit_keys_path={str(folder)!r}, preload_circuits="chain",
                                     threads=2, max_workers=1, device="cpu") as prover:
            prover.wait_ready(250)
            status = prover.get_status()
            assert status.ready and status.loaded_circuits == ("chain",), status
            result = prover.prove("chain", [int(x) for x in {_values()!r}])
            assert prover.verify("chain", result.public_signals, result.proof)
            maps = open("/proc/self/maps").read()
            print(json.dumps({{
                "modules": [m for m in ("numba", "wasmtime", "cupy", "multiprocessing") if m in sys.modules],
                "mapped": ".zkey" in maps,
                "memory": result.memory,
                "pids": [w.pid for w in prover.get_status().workers],
            }}))
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=280
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["modules"] == []
    assert not found["mapped"]
    assert 0 < found["memory"]["before"] <= found["memory"]["peak"]
    assert len(found["pids"]) == 1
    assert not any(alive(pid) for pid in found["pids"])


def _values() -> list[str]:
    from gpuprover.formats.wtns import read_witness
    from gpuprover.limbs import words_to_ints

    return [str(value) for value in words_to_ints(read_witness(WITNESS).values)]


def test_a_node_that_only_verifies_has_one_process_more(folder: Path) -> None:
    proof, public = (
        json.loads((VECTORS / f"chain5.bn254.{n}.json").read_text()) for n in ("proof", "public")
    )
    with create_prover(circuit_keys_path=folder, policy="off") as prover:
        assert prover.verify("chain", public, proof)
        assert wait_until(lambda: prover.get_status().verifier.state == "ready")
        status = prover.get_status()
        assert (status.workers, status.loaded_circuits, status.ready) == ((), (), True)


SCRIPT = """
    import gpuprover, os, sys, time
    prover = gpuprover.create_prover(circuit_keys_path={folder!r}, threads=2, max_workers=1, device="cpu")
    result = prover.prove("chain", {witness!r})
    assert prover.verify("chain", result.public_signals, result.proof)
    while (status := prover.get_status()).verifier.pid is None:
        time.sleep(0.01)
    print(status.workers[0].pid, status.verifier.pid, flush=True)
    jobs = [prover.submit("long", {long!r}) for _ in range(20)]
    {ending}
"""


NOTEBOOK = """if True:
    import ast, asyncio, inspect, sys

    async def kernel(source, names):
        code = compile(source, "<cell>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        found = eval(code, names)
        if inspect.isawaitable(found):
            await found

    asyncio.run(kernel(open(sys.argv[1]).read(), {"__name__": "__main__"}))
"""
"""Runs a cell as notebooks do: within an event loop that runs, where await may stand."""


@pytest.mark.parametrize(
    ("source", "ending", "code"),
    [
        ("file", "", 0),
        ("stdin", "sys.exit(7)", 7),
        ("notebook", "await prover.aprove('chain', {witness!r})", 0),
        ("file", "os.kill(os.getpid(), 9)", -9),
    ],
)
def test_unguarded_programs_leave_no_process(
    folder: Path, tmp_path: Path, source: str, ending: str, code: int
) -> None:
    long = str(folder / "long.wtns")
    program = textwrap.dedent(SCRIPT).format(
        folder=str(folder), witness=str(WITNESS), long=long, ending=ending.format(witness=str(WITNESS))
    )
    script = tmp_path / "script.py"
    script.write_text(program)
    arguments = {"file": [str(script)], "stdin": ["-"], "notebook": ["-c", NOTEBOOK, str(script)]}
    ran = subprocess.run(
        [sys.executable, *arguments[source]],
        input=program if source == "stdin" else None,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ran.returncode == code, ran.stderr
    # But for the log's word on the keys of this folder, which come from a local secret.
    assert all(OWN_GAMMA in line for line in ran.stderr.splitlines()), ran.stderr
    pids = [int(pid) for pid in ran.stdout.split()]
    assert len(pids) == 2
    assert wait_until(lambda: not any(alive(pid) for pid in pids)), "processes are left"
