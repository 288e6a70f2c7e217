"""A prover with real workers under exhaustion and kills: it waits, says so, and goes on."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support.paths import VECTORS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="limits descriptors, and kills by /proc"),
]

CHAIN, WITNESS = VECTORS / "chain5.bn254.zkey", VECTORS / "chain5.bn254.wtns"

HEAD = """
    import os, resource, signal, sys, threading, time
    import gpuprover

    SECONDS = 200

    def until(condition):
        end = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < end, prover.get_status()
            time.sleep(0.02)

    def workers():
        return [w.pid for w in prover.get_status().workers if w.pid is not None]

    def kill():
        for pid in workers():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    settings = dict(circuit_keys_path={folder!r}, preload_circuits="chain", device="cpu", threads=2)
    prover = gpuprover.create_prover(max_workers=2, job_timeout=SECONDS, **settings)
    assert prover.get_status().ready
    content = open({witness!r}, "rb").read()
"""

EXHAUSTED = """
    for turn in range(2):
        kept = []
        soft = len(os.listdir("/proc/self/fd")) + 40
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, soft if turn else 4096))
        try:
            while True:
                kept.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        kill()
        until(lambda: not prover.get_status().ready)
        status = prover.get_status()
        assert any("Too many open files" in line for line in status.problems), status.problems
        jobs = [prover.submit("chain", {witness!r}) for _ in range(8)]
        # Their bytes need descriptors, and the first ones that are handed over have none.
        short = [prover.submit("chain", content, priority=9) for _ in range(3)]
        time.sleep(3)
        assert not any(job.done() for job in jobs), [job.error for job in jobs]
        for descriptor in kept:
            os.close(descriptor)
        for job in jobs:
            assert prover.verify("chain", job.wait(SECONDS).public_signals, job.wait(0).proof)
        for job in short:
            try:
                assert job.wait(SECONDS).proof
            except (gpuprover.DeviceError, gpuprover.OutOfMemory) as error:
                assert "bug" not in error.message
        until(lambda: prover.get_status().ready)
        assert prover.get_status().problems == ()
    prover.close()
    print("whole")
"""

STORM = """
    over = threading.Event()

    def storm():
        while not over.is_set():
            kill()
            time.sleep(0.1)

    killer = threading.Thread(target=storm)
    killer.start()
    until(lambda: not prover.get_status().ready)
    jobs = [prover.submit("chain", content if i % 2 else {witness!r}) for i in range(20)]
    impatient = prover.submit("chain", content, timeout=1)
    time.sleep(15)
    states = [job.state for job in jobs]
    over.set()
    killer.join()
    ended = [job for job in jobs if job.state == "failed"]
    assert not ended, [job.error for job in ended]
    for job in jobs:
        assert prover.verify("chain", job.wait(SECONDS).public_signals, job.wait(0).proof)
    until(lambda: prover.get_status().ready)
    try:
        impatient.wait(SECONDS)
    except gpuprover.Timeout:
        pass
    prover.close()
    print("whole")
"""


@pytest.mark.parametrize("program", [EXHAUSTED, STORM], ids=["no descriptors", "kill storm"])
def test_proofs_wait_while_no_worker_can_start(program: str, tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    folder.mkdir()
    shutil.copy(CHAIN, folder / "chain.zkey")
    source = textwrap.dedent(HEAD + program).format(folder=str(folder), witness=str(WITNESS))
    found = subprocess.run([sys.executable, "-"], input=source, capture_output=True, text=True, timeout=500)
    assert (found.returncode, found.stdout) == (0, "whole\n"), found.stderr
    # A line or two for each death, and not one for each try.
    assert len(found.stderr.splitlines()) < 400
