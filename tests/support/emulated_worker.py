"""In place of ``gpuprover.workers``: a worker, whose GPUs are emulated and fail as a test says.

The environment variable ``EMULATED`` names a folder. Its file ``gpus`` says what there is, as JSON: name ->
bytes of memory. What else lies there happens from the next call of a device on: ``cuda:0.lost``, every call
fails; ``cuda:0.hangs``, a launch does not end, and is waited for as CUDA is; ``cuda:0.full``, so many
allocations (the file's number) of proofs find no memory; ``cuda:0.slow``, a launch takes so many seconds
more. A worker leaves ``cuda:0.PID``: what it took at most of the device, and how many proofs it ran
at once.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpuprover.cuda import gpus, msm_plan, probe, residency
from gpuprover.cuda.cupy_device import CupyDevice
from gpuprover.cuda.device import Address
from gpuprover.errors import DeviceError, OutOfMemory
from gpuprover.workers.worker import main
from tests.support.emulator import EmulatedDevice

FOLDER = Path(os.environ["EMULATED"])
NOT_READY = 600  # cudaErrorNotReady
TRIED = 8 * gpus.TRY_WORDS
"""Bytes that a worker takes to try its device."""


class Device(EmulatedDevice):
    def _file(self, what: str) -> Path:
        return FOLDER / f"{self.name}.{what}"

    def _call(self) -> None:
        if self._file("lost").exists() and not self._dead:
            self._dead = True
            probe.mark_lost(self.name, "an illegal address")
        super()._call()

    def allocate(self, size: int) -> Address:
        with self._lock:
            full = self._file("full")
            left = int(full.read_text()) if full.exists() else 0
            if left and size > TRIED:
                full.write_text(str(left - 1))
                raise OutOfMemory(f"{self.name}: somebody else has the memory")
            address = super().allocate(size)
            self.tell()
            return address

    def launch(self, *arguments: Any, **options: Any) -> None:
        if self._file("hangs").exists():
            # As for a stream that is never done.
            CupyDevice._wait_until(self, lambda _: NOT_READY, 0)  # type: ignore[arg-type]
        slow = self._file("slow")
        if slow.exists():
            time.sleep(float(slow.read_text()))
        super().launch(*arguments, **options)

    def tell(self) -> None:
        with self._lock:
            written = self._file("new")
            written.write_text(json.dumps({"peak": self.peak, "at_once": at_once[1]}))
            written.replace(self._file(str(os.getpid())))


found = {
    name: probe.FoundGpu(name, f"GPU-{name[5:]}", "emulated", "sm_90", memory, memory)
    for name, memory in json.loads((FOLDER / "gpus").read_text()).items()
}
opened: dict[str, Device] = {}
opening = threading.Lock()
at_once = [0, 0]
"""Proofs that run, and the most that did."""


def open_device(name: str) -> Device:
    failed = probe.lost(name)
    if failed is not None:
        raise DeviceError(f"{name}: not used any more: {failed}")
    with opening:
        if name not in opened:
            opened[name] = Device(name, found[name].total)
            opened[name].synchronize()
        return opened[name]


def choose(*arguments: Any) -> msm_plan.MsmPlan:
    """As tests' fixture ``quick_sums`` has it."""
    return replace(msm_plan.choose_plan(*arguments), tuning=replace(msm_plan.TUNING, block=32))


def begin(self: residency.Residency, *arguments: Any, **options: Any) -> residency.Session:
    session = real_begin(self, *arguments, **options)
    with opening:
        at_once[0] += 1
        at_once[1] = max(at_once)
    opened[self.device.name].tell()
    return session


def end(self: residency.Residency, *arguments: Any) -> None:
    with opening:
        at_once[0] -= 1
    real_end(self, *arguments)


real_begin, real_end = residency.Residency.begin, residency.Residency.end
residency.Residency.begin, residency.Residency.end = begin, end  # type: ignore[method-assign]
msm_plan.MAX_WINDOW = 4
residency.choose_plan = choose
probe._open_nvml = lambda: None
gpus._survey = lambda: probe.Survey(gpus=tuple(found.values()), driver_cuda=(13, 0))  # type: ignore[assignment]
gpus.open_device = open_device

if __name__ == "__main__":
    main(sys.argv[1:])
