"""A prover whose workers are real processes with emulated GPUs, see ``emulated_worker``."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gpuprover import Prover, processes
from gpuprover.config import load_engine_settings
from gpuprover.scheduler import DeviceInfo
from gpuprover.workers import PoolSettings, WorkerPool, slots
from tests.support.paths import ROOT

SECONDS = 120


@dataclass(frozen=True)
class Times:
    """GPUs are faster by far, whatever the part of a proof, for circuits of so many constraints or more.

    For others they are slower by far.
    """

    gpu: float = 1.0
    worthwhile: int = 0

    def seconds(
        self, work: str, device: DeviceInfo, constraints: int, threads: int, part: str | None = None
    ) -> float:
        whole = 1e6 if (device.kind == "cpu") is (constraints >= self.worthwhile) else self.gpu
        return whole if part is None else whole / 10

    def measured(self, work: str, device: DeviceInfo) -> bool:
        return True


@dataclass
class Machine:
    """What the emulated devices do, and what they have done."""

    folder: Path
    pids: set[int] = field(default_factory=set)

    def set(self, device: str, what: str, value: object = "") -> None:
        written = self.folder / "new"
        written.write_text(str(value))
        written.replace(self.folder / f"{device}.{what}")

    def unset(self, device: str, what: str) -> None:
        (self.folder / f"{device}.{what}").unlink()

    def seen(self, device: str) -> list[dict[str, int]]:
        """What each process that had the device has told."""
        files = [path for path in self.folder.glob(f"{device}.*") if path.suffix[1:].isdigit()]
        return [json.loads(path.read_text()) for path in files]

    @contextmanager
    def prover(
        self,
        keys: Path,
        device: str = "auto",
        pool_settings: dict[str, Any] | None = None,
        times: Times | None = None,
        **settings: Any,
    ) -> Iterator[Prover]:
        """On all GPUs, or the one of that name; when it is closed no process is left."""
        given = {"circuit_keys_path": str(keys), "threads": 2, "max_workers": 1, "verifier": "inline"}
        loaded = load_engine_settings({**given, "device": device, **settings}, {})
        quick = {"backoff": (0.01, 2.0, 0.1, 0.1), "threads": 2, **(pool_settings or {})}
        gpus = None if device in ("auto", "cuda") else (device,)
        executor = WorkerPool(PoolSettings(gpus=gpus, **quick))
        prover = Prover(loaded, executor=executor, times=times or Times())
        prover.wait_ready(SECONDS)
        try:
            yield prover
        finally:
            prover.close(0.0)
            assert executor.workers() == []
            assert not [pid for pid in self.pids if Path(f"/proc/{pid}").exists()], "children are reaped"


def eventually(condition: Callable[[], Any], seconds: float = SECONDS) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.01)
    assert found
    return found


def machine(folder: Path, patch: pytest.MonkeyPatch, gpus: dict[str, int]) -> Machine:
    """With these GPUs: name -> bytes."""
    (folder / "gpus").write_text(json.dumps(gpus))
    on = Machine(folder)

    def spawn(_: str, *arguments: str, **options: Any) -> processes.Child:
        child = processes.spawn("tests.support.emulated_worker", *arguments, **options)
        on.pids.add(child.pid)
        return child

    patch.setenv("PYTHONPATH", str(ROOT))
    patch.setenv("EMULATED", str(folder))
    patch.setattr(slots, "spawn", spawn)
    return on


__all__ = ["SECONDS", "Machine", "Times", "eventually", "machine"]
