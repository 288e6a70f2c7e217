"""Memory as the system counts it, the alarm for leaks, and the mark from which on proofs wait."""

from __future__ import annotations

import gc
import json
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest

import gpuprover
from gpuprover import memory
from gpuprover.machine import CgroupMemory
from gpuprover.memory import MB, MIB, LeakAlarm, Watermark, memory_usage, trim, usage_of

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
PIECE = 48 * MIB


def test_memory_usage_is_public() -> None:
    found = gpuprover.memory_usage().as_dict()
    assert list(found) == ["rss", "pss", "private", "external", "heap_used", "heap_total", "gpu_pool"]
    assert found["rss"] > MIB
    assert found["gpu_pool"] == 0


@linux
def test_the_parts_agree_with_each_other() -> None:
    found = memory_usage()
    assert found.pss is not None
    assert found.private is not None
    assert found.external is not None
    assert 0 < found.private <= found.pss <= found.rss * 1.05
    assert 0 < found.external < found.rss


@linux
def test_an_array_is_seen_and_gone_again() -> None:
    trim()  # or the array lies in what earlier tests have left
    before = memory_usage()
    array = np.ones(PIECE, dtype=np.uint8)
    during = memory_usage()
    assert during.rss - before.rss > PIECE * 0.9
    assert during.private is not None
    assert before.private is not None
    assert during.private - before.private > PIECE * 0.9
    if during.heap_used is not None and before.heap_used is not None and during.heap_total is not None:
        assert PIECE <= during.heap_used - before.heap_used < PIECE * 1.2
        assert during.heap_total >= during.heap_used
    del array
    after = memory_usage()
    assert after.rss < during.rss - PIECE * 0.9
    if after.heap_used is not None and during.heap_used is not None:
        assert after.heap_used < during.heap_used - PIECE * 0.9


@linux
def test_a_mapped_file_is_external(tmp_path: object) -> None:
    path = os.path.join(str(tmp_path), "mapped")
    with open(path, "wb") as file:
        file.write(bytes(PIECE))
    before = memory_usage()
    mapped = np.memmap(path, dtype=np.uint8, mode="r")
    assert int(mapped[::4096].sum()) == 0
    during = memory_usage()
    assert during.external is not None
    assert before.external is not None
    assert during.external - before.external > PIECE * 0.9
    if during.heap_used is not None and before.heap_used is not None:
        assert during.heap_used - before.heap_used < PIECE / 2


@linux
def test_another_process() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", "x = bytearray(b'1') * (48 << 20); print(1, flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"1\n"
    found = usage_of(child.pid)
    child.communicate(b"\n", timeout=30)
    assert found is not None
    assert found.rss > PIECE
    assert found.private is None or found.private > PIECE
    assert (found.heap_used, found.gpu_pool) == (None, None)
    assert usage_of(child.pid) is None


def test_pools_are_counted_while_they_live() -> None:
    class Pool:
        used = 5

    pool = Pool()
    memory.count_pool(pool)
    memory.count_pool(pool)
    pool.used = 7
    assert memory_usage().gpu_pool == 7
    del pool
    gc.collect()
    assert memory_usage().gpu_pool == 0


NOT_DUMPABLE = """
import ctypes, json, os, sys
from gpuprover import memory
memory.memory_usage(), memory.peak()  # imports what they need, while it may be read
if os.geteuid() == 0:
    os.setgid(65534), os.setuid(65534)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # as a process is that never was root
if sys.argv[1] == "prepared":
    memory.prepare(), memory.prepare()
ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
peak = lambda: memory.peak() >> 20
before, piece = peak(), bytearray(b"1") * (96 << 20)
with_it = peak()
del piece
memory.reset_peak()
print(json.dumps([before, with_it, peak(), memory.memory_usage().as_dict()]))
"""


@linux
@pytest.mark.parametrize("how", ["prepared", "unprepared"])
def test_peaks_of_a_process_that_is_not_dumpable(how: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", NOT_DUMPABLE, how], capture_output=True, text=True, timeout=60, cwd="/"
    )
    assert ran.returncode == 0, ran.stderr
    before, with_it, after, found = json.loads(ran.stdout)
    assert with_it >= before + 90
    # Without a descriptor from before the peak cannot be reset, and stays an upper bound.
    assert after < before + 40 if how == "prepared" else after > with_it - 20
    assert found["pss"] > 0, "of itself it may see everything"


@linux
def test_trim_hands_back_what_malloc_keeps() -> None:
    if memory_usage().heap_total is None:
        pytest.skip("no glibc")
    # Pieces below malloc's threshold for mapping, of which the last one holds the others' room.
    pieces = [np.ones(60_000, dtype=np.uint8) for _ in range(1000)]
    last = pieces[-1]
    pieces.clear()
    held = memory.resident_anonymous()
    freed = memory.trim()
    assert last[0] == 1
    assert freed > 30 * MB
    assert memory.resident_anonymous() < held - 30 * MB


def test_trim_collects_cycles() -> None:
    cycle: list[object] = [np.ones(PIECE, dtype=np.uint8)]
    cycle.append(cycle)
    gc.disable()
    try:
        del cycle
        assert memory.trim() > PIECE * 0.9
    finally:
        gc.enable()


def alarms(
    amount: Callable[[float], float], *, minutes: float = 60, every: float = 5, limit: float = 100
) -> list[float]:
    """Minutes at which a process that holds ``amount(minute)`` MB is found leaking."""
    alarm, found = LeakAlarm(limit), []
    for i in range(int(minutes * 60 / every)):
        minute = i * every / 60
        if alarm.feed(1000 + i * every, int(amount(minute) * MB)) is not None:
            found.append(minute)
    assert alarm.alarms == len(found)
    return found


def proofs(minute: float) -> float:
    """Proofs of 20 seconds, with pauses, that take 2 GB."""
    return 2000 if math.fmod(minute * 60, 30) < 20 else 0


def test_a_leak_alarms_once() -> None:
    (minute,) = alarms(lambda minute: 150 * minute)
    assert 5 <= minute <= 6.5
    assert alarms(lambda minute: 99 * minute) == []
    assert len(alarms(lambda minute: 99 * minute, limit=90)) == 1


def test_a_leak_is_seen_among_proofs() -> None:
    assert alarms(proofs) == []
    assert len(alarms(lambda minute: proofs(minute) + 130 * minute)) == 1


def test_a_key_that_is_loaded_is_no_leak() -> None:
    assert alarms(lambda minute: 500 + 3000 * (minute > 10) + 2000 * (minute > 30)) == []
    assert alarms(lambda minute: min(1000 * minute, 1500)) == [], "warming up takes a minute or two"


def test_it_arms_again_after_the_leak_has_stopped() -> None:
    def twice(minute: float) -> float:
        return 200 * (min(minute, 15) + max(0.0, minute - 40))

    first, second = alarms(twice)
    assert first < 10
    assert 44 < second < 50


def test_the_alarm_under_noise(rng: random.Random) -> None:
    assert alarms(lambda minute: 1000 + rng.uniform(0, 800)) == []
    assert len(alarms(lambda minute: 200 * minute + rng.uniform(0, 300))) == 1


def test_gaps_and_a_clock_that_starts_anywhere() -> None:
    alarm = LeakAlarm(100, window=50)
    for second in [0, 10, 20, 30, 200, 210, 220, 230, 240]:
        assert alarm.feed(second, second * 10 * MB) is None, "no whole window without a gap"
    assert alarm.feed(250, 2500 * MB) == pytest.approx(600)
    assert alarm.rate == pytest.approx(600)


def test_the_watermark() -> None:
    mark = Watermark(1000, 0.73, lambda: None)
    assert [mark.excess(held) for held in (0, 730, 731, 1000)] == [0, 0, 1, 270]
    assert Watermark(None, 0.73, lambda: None).excess(1 << 60) == 0


def test_the_container_decides_where_it_is_tighter() -> None:
    group = CgroupMemory(limit=1000, used=700)
    assert Watermark(10_000, 0.73, lambda: group).excess(100) == 0
    group = CgroupMemory(limit=1000, used=800)
    assert Watermark(10_000, 0.73, lambda: group).excess(100) == 70
    assert Watermark(None, 0.5, lambda: group).excess(0) == 300


def test_usage_is_quick() -> None:
    begun = time.thread_time()
    for _ in range(20):
        memory_usage()
    assert time.thread_time() - begun < 2
