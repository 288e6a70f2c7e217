"""How sums are shared among threads: the real tasks, on simulated threads."""

from __future__ import annotations

import heapq

import numpy as np
import pytest

from gpuprover.cpu.layout import Field
from gpuprover.cpu.msm import Points, Sum, top_window
from gpuprover.cpu.path import path_named
from gpuprover.curves import BN254
from gpuprover.job import Job


def costs(n: int, threads: int, path: str) -> list[float]:
    """The costs of all tasks of a Groth16 proof's five sums of n full-width scalars, as a job orders them."""
    rng = np.random.default_rng(7)
    fields = [Field(BN254.base), Field(BN254.base, 2)]
    chosen = path_named(path, "of this test")
    g1, g2 = (Points(F, np.zeros((n, 2 * F.words), dtype=np.uint64), chosen) for F in fields)
    job, found = Job(threads=threads), []
    for bases in ([g1, g1, g2], [g1], [g1]):
        scalars = rng.integers(0, 1 << 64, (n, 4), dtype=np.uint64) >> np.uint64([0, 0, 0, 4])
        found += [task.cost for task in Sum(bases, scalars, job).tasks]
    return sorted(found, reverse=True)


def makespan(tasks: list[float], threads: int) -> float:
    """When the last of the tasks ends, each taken by the thread that is free first."""
    free = [0.0] * threads
    for cost in tasks:
        heapq.heappush(free, heapq.heappop(free) + cost)
    return max(free)


@pytest.mark.parametrize("path", ["ifma", "portable"])
@pytest.mark.parametrize("log", [14, 16, 18])
def test_work_split_is_near_linear(log: int, path: str) -> None:
    """Against one thread with the split that is best for it: what parts and small windows cost counts."""
    one = makespan(costs(1 << log, 1, path), 1)
    for threads, least in ((2, 0.97), (4, 0.95), (8, 0.9), (16, 0.8), (32, 0.7), (64, 0.65)):
        assert one / makespan(costs(1 << log, threads, path), threads) >= least * threads


def test_skewed_scalars_are_split_too() -> None:
    """Scalars of one bit have one window, which several threads share."""
    F, n = Field(BN254.base), 1 << 16
    points = Points(F, np.zeros((n, 2 * F.words), dtype=np.uint64), path_named("ifma", "of this test"))
    scalars = np.zeros((n, 4), dtype=np.uint64)
    scalars[:, 0] = 1
    one, eight = ([t.cost for t in Sum([points], scalars, Job(threads=k)).tasks] for k in (1, 8))
    assert len(one) == 1
    assert makespan(one, 1) > 3 * makespan(eight, 8)


def test_top_window_holds_every_digit() -> None:
    """The smallest and the largest scalar of each length, recoded by hand, have no digit above it."""
    for c in range(2, 17):
        windows = -(-255 // c)
        offset = sum(1 << (c * w + c - 1) for w in range(windows - 1))
        for bits in range(1, 255):
            for scalar in (1 << (bits - 1), (1 << bits) - 1):
                top = top_window(bits, c, windows)
                for w in range(top + 1, windows):
                    digit = (scalar + offset) >> (c * w) & ((1 << c) - 1)
                    assert digit == (1 << (c - 1) if w < windows - 1 else 0)
