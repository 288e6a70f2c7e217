"""Made-up times, plans and devices for the tests of the scheduler."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gpuprover.demand import MemoryPlan
from gpuprover.scheduler import (
    DeviceInfo,
    JobShape,
)

MIB, GIB = 1 << 20, 1 << 30
WORK = "work"


@dataclass(frozen=True)
class FakeTimes:
    """Seconds of a CPU: a part in one thread, the rest shared; of a GPU: launches and a slope."""

    known: bool = True
    gpu: float = 4e-8
    part: float = 0.4
    """Of a proof's time, what its one part takes."""
    launches: float = 0.02

    def seconds(
        self, work: str, device: DeviceInfo, constraints: int, threads: int, part: str | None = None
    ) -> float:
        assert work == WORK
        share = 1.0 if part is None else self.part
        if device.kind == "cpu":
            return share * (0.002 + 2e-7 * constraints + 5e-6 * constraints / threads)
        return share * (self.launches + self.gpu * constraints)

    def measured(self, work: str, device: DeviceInfo) -> bool:
        return self.known


def plans(constraints: int) -> dict[str, list[MemoryPlan]]:
    key, arena = 500 * constraints, 200 * constraints
    return {
        "cpu": [MemoryPlan(key, 40 * constraints, arena, 0)],
        "cuda": [
            MemoryPlan(key, 4 * key, arena, 32 * constraints),
            MemoryPlan(key, 0, arena, 32 * constraints),
            MemoryPlan(key // 8, 0, arena // 4, 64 * constraints),
        ],
    }


def shape(constraints: int, **changes: object) -> JobShape:
    return replace(JobShape(WORK, constraints, plans(constraints), frozenset({"G2"})), **changes)


def cpu(threads: int = 8, memory: int | None = 16 * GIB) -> DeviceInfo:
    return DeviceInfo("cpu", "cpu", "processor", "portable", threads, memory)


def gpu(index: int = 0, memory: int = 80 * GIB, problem: str = "") -> DeviceInfo:
    return DeviceInfo(f"cuda:{index}", "cuda", "GPU", "sm_90", 0, memory, problem=problem)
