"""The host's part of a warm proof on a GPU: a whole proof on a device that does nothing, in CPU time.

A launch is a call of a Python function here; the driver takes some microseconds more for one, which
``make gpu`` measures (``rate launches``). What the host computes while a device works at its sums is a phase
of its own, and no part of the figure. A second row has what is left without the operations that are launches:
their plans, addresses and tables, in Python, run while the device works at those before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
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
MEANWHILE, LAUNCHES = "while the device works", "operations as launches"
OPERATIONS = (
    "upload download ntt to_coset_in_place add sub mul multiply_subtract_in_place scale_powers_in_place"
    " batch_inverse evaluate combine extend values_at divide running_product powers gather signals interleave"
    " deinterleave spmv start_sums"
).split()
"""The backend's methods whose work is launches."""


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
    """Takes the time of operations as launches, and of what the host does while the device works at sums.

    Attributes:
        meanwhile, launches: CPU seconds of these.
    """

    meanwhile = launches = 0.0

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._within = False
        for name in OPERATIONS:
            setattr(self, name, self._measured(getattr(self, name)))

    def _measured(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*arguments: Any, **named: Any) -> Any:
            if self._within:
                return operation(*arguments, **named)
            begun, self._within = time.process_time(), True
            try:
                return operation(*arguments, **named)
            finally:
                self._within = False
                self.launches += time.process_time() - begun

        return measured

    def msm_many(self, requests: Any, meanwhile: Callable[[], None] = lambda: None) -> Any:
        def measured() -> None:
            begun = time.process_time()
            meanwhile()
            self.meanwhile += time.process_time() - begun

        return super().msm_many(requests, measured)


def measure_host(files: Files, rounds: int, rows: Rows, job: Job) -> None:
    """Adds rows of one circuit's warm proof; its key lies on the device, with tables."""
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

    fields: Row = {"implementation": OURS, "mode": "warm", "device": device.name, "threads": 1}
    fields |= {"curve": key.curve.name, "circuit": files.name, "constraints": key.constraints}
    fields |= {"launches": launches}

    def run(outside: bool) -> Sample:
        begun, best = time.perf_counter(), Sample(float("inf"), None)
        for _ in range(TIMES):
            backend.meanwhile = backend.launches = 0.0
            spent = (timed(prove).cpu or 0.0) - backend.meanwhile
            phases = {MEANWHILE: backend.meanwhile, LAUNCHES: backend.launches}
            if outside:
                spent -= backend.launches
            best = min(best, Sample(spent, None, phases=phases), key=lambda sample: sample.cpu or 0.0)
            if time.perf_counter() - begun > LEAST_SECONDS:
                break
        return best

    contestants = [
        Contestant(
            what, {"operation": f"{key.protocol} prove, {what}", **fields}, partial(run, what != "host")
        )
        for what in ("host", "outside launches")
    ]
    with job.phase(f"host of a GPU, {files.name}, {key.curve.name}"):
        measure(contestants, rounds, rows, job)
