"""The host's part of a warm proof on a GPU: a whole proof on a device that does nothing, in CPU time.

A launch is a call of a Python function here; the driver takes some microseconds more for one, which
``make gpu`` measures (``rate launches``). What the host computes while a device works at its sums is a phase
of its own, and no part of the figure.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, cast

from gpuprover.api import load_key
from gpuprover.cuda.backend import CudaBackend
from gpuprover.cuda.device import MAIN, Device, Launch, Program, Properties, Stream
from gpuprover.cuda.rehearsal import Nothing
from gpuprover.cuda.residency import Residency
from gpuprover.demand import UNLIMITED
from gpuprover.devices import open_backend
from gpuprover.formats.wtns import read_witness
from gpuprover.job import Job
from gpuprover.systems.system import system_named

from .measure import Contestant, Sample, measure, timed
from .proofs import Files
from .rows import OURS, Row, Rows

H200 = Properties(
    "NVIDIA H200", "sm_90", multiprocessors=132, threads=2048, shared=227 << 10, memory=139 << 30
)
"""The GPU that plans are made for."""
TIMES, LEAST_SECONDS = 20, 1.0
"""Proofs of a round, of which the fastest counts: so many, or for so long."""
MEANWHILE = "while the device works"


class Model:
    """What a plan asks of a device."""

    name, properties = "nothing", H200

    def resident_blocks(self, program: Program, kernel: str, threads: int, shared: int = 0) -> int:
        return H200.threads // threads


class _Idle(Nothing):
    """Counts its launches."""

    launches = 0

    def launch(self, program: Program, kernel: str, *_: int, **__: int) -> None:
        self.launches += 1

    def run(
        self,
        launches: Sequence[Launch],
        beginnings: Sequence[int],
        stream: Stream = MAIN,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.launches += len(launches)


class _Timed(CudaBackend):
    """Takes the time of what the host does while the device works at sums."""

    meanwhile = 0.0
    """CPU seconds of it."""

    def msm_many(self, requests: Any, meanwhile: Callable[[], None] = lambda: None) -> Any:
        def measured() -> None:
            begun = time.process_time()
            meanwhile()
            self.meanwhile += time.process_time() - begun

        return super().msm_many(requests, measured)


def measure_host(files: Files, rounds: int, rows: Rows, job: Job) -> None:
    """Adds a row of one circuit's warm proof; its key lies on the device, with tables."""
    key, witness = load_key(files.zkey), read_witness(files.wtns)
    system, alone, device = system_named(key.protocol), Job(threads=1), _Idle(cast(Device, Model()))
    backend = _Timed(key.curve, alone, Residency(device), open_backend("cpu", key.curve, alone))

    def prove() -> None:
        system.prove(key, witness, backend, None, UNLIMITED)

    for _ in range(3):  # the second one makes tables, the third has them
        prove()
    before = device.launches
    prove()
    launches = device.launches - before

    def run() -> Sample:
        begun, best, spent = time.perf_counter(), float("inf"), float("inf")
        for _ in range(TIMES):
            backend.meanwhile = 0.0
            sample = timed(prove)
            assert sample.cpu is not None
            best = min(best, sample.cpu - backend.meanwhile)
            spent = min(spent, backend.meanwhile)
            if time.perf_counter() - begun > LEAST_SECONDS:
                break
        return Sample(best, None, phases={MEANWHILE: spent})

    fields: Row = {"operation": f"{key.protocol} prove, host", "implementation": OURS, "mode": "warm"}
    fields |= {"device": device.name, "threads": 1, "curve": key.curve.name, "circuit": files.name}
    fields |= {"constraints": key.constraints, "launches": launches}
    with job.phase(f"host of a GPU, {files.name}, {key.curve.name}"):
        measure([Contestant(files.name, fields, run)], rounds, rows, job)
