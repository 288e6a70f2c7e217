"""Long attacks on what may change or be cut in two under a proof: memory that others write to, and forks."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpuprover
from gpuprover.backend import Form
from gpuprover.circuits import chain_circuit
from gpuprover.cpu import multiples
from gpuprover.cpu.backend import CpuBackend
from gpuprover.curves import CurveParams, Group
from gpuprover.job import Job
from gpuprover.limbs import generator, ints_to_words
from tests.support.samples import point_words
from tests.test_changing_data import path
from tests.test_forks import end, start

__all__ = ["path"]

pytestmark = pytest.mark.slow

SECONDS = 5.0
FORKS = 25


@pytest.mark.parametrize("warm", [True, False])
def test_many_forks_while_others_prove(tmp_path: Path, warm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Children of a process whose other threads prove, and make multiples of a key's points, all the time."""
    chain_circuit(20).write(tmp_path / "c.r1cs", tmp_path / "c.wtns")
    gpuprover.setup(tmp_path / "c.r1cs", tmp_path / "c.zkey", insecure=True)
    witness, stop = tmp_path / "c.wtns", threading.Event()
    kept = gpuprover.load_key(tmp_path / "c.zkey")
    if not warm:
        monkeypatch.setattr(multiples, "FREE", 1)

    def prove(threads: int) -> None:
        key = kept if warm else gpuprover.load_key(tmp_path / "c.zkey")
        for _ in range(2):
            result = gpuprover.prove(key, witness, threads=threads)
        assert gpuprover.verify(key.vk, result.public_signals, result.proof)

    def loop() -> None:
        while not stop.is_set():
            prove(2)

    prove(1)
    others = [threading.Thread(target=loop) for _ in range(2)]
    for thread in others:
        thread.start()
    try:
        codes: list[int | None] = []
        for i in range(FORKS):
            codes.append(end(start(partial(prove, 1 + i % 2))))
            time.sleep(random.random() * 0.02)
    finally:
        stop.set()
        for thread in others:
            thread.join()
    assert codes == [0] * FORKS


def _scribble(arrays: list[np.ndarray[Any, Any]], seed: int) -> tuple[threading.Event, threading.Thread]:
    """A thread that overwrites arrays with anything, as long as nobody stops it."""
    stop, rng = threading.Event(), np.random.default_rng(seed)

    def loop() -> None:
        while not stop.is_set():
            for array in arrays:
                flat = array.reshape(-1).view(np.uint32)
                flat[:] = rng.integers(0, 1 << 32, flat.size, dtype=np.uint32)
                flat[: flat.size // 2] = rng.integers(0, 100, flat.size // 2, dtype=np.uint32)
                if rng.random() < 0.3:
                    flat[:] = 0xFFFFFFFF

    thread = threading.Thread(target=loop)
    thread.start()
    return stop, thread


@pytest.mark.parametrize("threads", [1, 2])
def test_kernels_stay_in_their_arrays_while_others_write(curve: CurveParams, path: str, threads: int) -> None:
    """Scalars, indices, values and points that change all the time: results are anything, or an error."""
    limbs, n = curve.scalar.limbs, 3000
    scalars, values = (ints_to_words([k] * n, limbs) for k in (5, 7))
    indices = [np.zeros(n, dtype=np.uint32) for _ in range(3)]
    points = point_words(curve, Group.G1, [1 + k % 99 for k in range(n)])
    twins = point_words(curve, Group.G2, [1 + k % 99 for k in range(300)])
    stop, thread = _scribble([scalars, values, points, twins, *indices], 3)
    ends = {"result": 0, "error": 0}

    def works(job: Job) -> list[Callable[[], object]]:
        backend = CpuBackend(curve, job)
        matrices = backend.prepare_matrices(2, 700, *indices, values, Form.DOUBLE_MONTGOMERY)
        g1, g2 = (backend.prepare_bases(group, p) for group, p in ((Group.G1, points), (Group.G2, twins)))
        starts = np.arange(0, n + 1, 2)
        return [
            lambda: backend.msm(g1, scalars),
            lambda: backend.msm(g2, scalars[:300]),
            lambda: backend.spmv(matrices, scalars[:90]),
            lambda: backend.fixed_base_mul(Group.G1, generator(curve, Group.G1), scalars),
            lambda: backend.points.sparse_combination(Group.G1, points, starts, indices[0], scalars),
            lambda: backend.points.first_bad_point(Group.G1, points),
            lambda: backend.points.first_bad_point(Group.G2, twins),
        ]

    try:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            job = Job(threads=threads)
            for work in works(job):
                job.resume()
                try:
                    work()
                    ends["result"] += 1
                except (IndexError, gpuprover.InvalidInput):
                    ends["error"] += 1
    finally:
        stop.set()
        thread.join()
    assert min(ends.values()) > 0


def test_proofs_of_a_key_that_somebody_writes_to(tmp_path: Path, path: str) -> None:
    """Bits that flip in a mapped key while proofs are made with it: true proofs or typed errors."""
    chain_circuit(400).write(tmp_path / "c.r1cs", tmp_path / "c.wtns")
    gpuprover.setup(tmp_path / "c.r1cs", tmp_path / "c.zkey", insecure=True)
    key, rng, stop = gpuprover.load_key(tmp_path / "c.zkey"), random.Random(4), threading.Event()
    good = gpuprover.load_key((tmp_path / "c.zkey").read_bytes())
    size = (tmp_path / "c.zkey").stat().st_size

    def loop() -> None:
        with (tmp_path / "c.zkey").open("r+b", buffering=0) as file:
            while not stop.is_set():
                at, length = rng.randrange(size - 8), rng.choice((1, 4, 8))
                file.seek(at)
                before = file.read(length)
                file.seek(at)
                file.write(rng.randbytes(length))
                time.sleep(0.0005)
                file.seek(at)
                file.write(before)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            try:
                result = gpuprover.prove(key, tmp_path / "c.wtns", threads=2)
                assert gpuprover.verify(good.vk, result.public_signals, result.proof)
            except gpuprover.ProverError:
                continue
    finally:
        stop.set()
        thread.join()
    # What was written has been taken back.
    result = gpuprover.prove(tmp_path / "c.zkey", tmp_path / "c.wtns")
    assert gpuprover.verify(good.vk, result.public_signals, result.proof)
