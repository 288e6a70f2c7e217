"""The emulated device itself: CUDA's built-ins do what the programming guide says, and mistakes are seen."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

from gpuprover.cuda.device import Program
from gpuprover.curves import CURVES
from gpuprover.errors import DeviceError, OutOfMemory
from tests.support import emulator
from tests.support.emulator import EmulatedDevice, Faults, WatchedDevice

pytestmark = pytest.mark.kernels_offline
PROGRAM = Program(CURVES[0], "emulator_check.cu")


@pytest.fixture(autouse=True)
def checked_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program of this test, beside those of kernels/."""
    extra = {PROGRAM.source: (emulator.ROOT / "tests/kernels" / PROGRAM.source).read_text()}
    real = emulator.sources
    monkeypatch.setattr(emulator, "sources", lambda curve: {**real(curve), **extra})


@pytest.fixture(params=[False, True], ids=["forward", "reversed"])
def device(request: pytest.FixtureRequest) -> EmulatedDevice:
    return EmulatedDevice(reversed=request.param)


def put(device: EmulatedDevice, array: np.ndarray) -> int:
    address = device.allocate(array.nbytes)
    device.write(address, array)
    return address


def get(device: EmulatedDevice, address: int, like: np.ndarray) -> np.ndarray:
    out = np.empty_like(like)
    device.read(out, address)
    return out


def test_barriers_and_shared_memory(device: EmulatedDevice) -> None:
    a = np.arange(3 * 64, dtype=np.uint64)
    out = device.allocate(24)
    device.launch(PROGRAM, "sum_blocks", 3, 64, put(device, a), out, shared=64 * 8)
    assert (get(device, out, np.zeros(3, np.uint64)) == a.reshape(3, 64).sum(axis=1)).all()


@pytest.mark.parametrize("n", [1, 31, 32, 64, 90])
def test_shuffles_with_some_lanes_gone(device: EmulatedDevice, n: int) -> None:
    a = np.arange(1, n + 1, dtype=np.uint32)
    out = device.allocate(4 * n)
    device.launch(PROGRAM, "scan_warps", 1, 96, put(device, a), out, n)
    expected = np.concatenate([np.cumsum(a[i : i + 32]) for i in range(0, n, 32)])
    assert (get(device, out, a) == expected).all()


def test_votes(device: EmulatedDevice) -> None:
    a = np.array([i * i % 7 for i in range(64)], dtype=np.uint32)
    same, odd = device.allocate(256), device.allocate(256)
    device.launch(PROGRAM, "groups", 2, 32, put(device, a), same, odd)
    for i in range(64):
        warp = a[i // 32 * 32 :][:32]
        assert get(device, same, a)[i] == sum(1 << k for k, v in enumerate(warp) if v == a[i])
        assert get(device, odd, a)[i] == sum(1 << k for k, v in enumerate(warp) if v % 2)


def test_parts_of_a_warp_meet_by_themselves(device: EmulatedDevice) -> None:
    a = np.arange(64, dtype=np.uint32)
    out = device.allocate(256)
    device.launch(PROGRAM, "halves", 1, 64, put(device, a), out)
    assert (get(device, out, a) == np.repeat(a.reshape(4, 16).sum(axis=1), 16)).all()


def test_atomics(device: EmulatedDevice) -> None:
    a = np.array([i % 5 for i in range(100)], dtype=np.uint32)
    counters = device.allocate(20)
    device.fill(counters, 0, 20)
    device.launch(PROGRAM, "count", 4, 32, counters, put(device, a), 100)
    assert (get(device, counters, np.zeros(5, np.uint32)) == 20).all()


def test_a_barrier_that_not_all_reach_is_seen(device: EmulatedDevice) -> None:
    with pytest.raises(AssertionError, match="barrier"):
        device.launch(PROGRAM, "hangs", 1, 64)
    a = np.arange(64, dtype=np.uint64)  # and the next launch runs
    out = device.allocate(8)
    device.launch(PROGRAM, "sum_blocks", 1, 64, put(device, a), out, shared=64 * 8)
    assert get(device, out, np.zeros(1, np.uint64))[0] == a.sum()


def test_the_order_of_threads_can_be_turned() -> None:
    results = set()
    for turned in (False, True):
        device = EmulatedDevice(reversed=turned)
        out = device.allocate(4)
        device.launch(PROGRAM, "races", 1, 8, out)
        results.add(int(get(device, out, np.zeros(1, np.uint32))[0]))
    assert len(results) == 2


def test_writes_outside_are_seen(device: EmulatedDevice) -> None:
    out = device.allocate(8)
    with pytest.raises(AssertionError, match="past the end"):
        device.launch(PROGRAM, "writes_past", 1, 1, out, 8)


# A watched device ---------------------------------------------------------------------------------

NOTHING, SHUFFLE, SYNC_WARP, SYNC_THREADS = range(4)


def put_words(device: EmulatedDevice, *words: int) -> int:
    return put(device, np.array(words, np.uint32))


@pytest.mark.parametrize(
    ("threads", "barrier", "races", "loosely"),
    [
        (32, NOTHING, True, True),
        (32, SHUFFLE, True, False),
        (32, SYNC_WARP, False, False),
        (64, SYNC_WARP, True, True),
        (64, SYNC_THREADS, False, False),
    ],
)
def test_races_between_barriers(threads: int, barrier: int, races: bool, loosely: bool, seed: str) -> None:
    for strict, expected in ((True, races), (False, loosely)):
        device = WatchedDevice(strict=strict, seed=seed)
        out = device.allocate(4 * threads)
        with fails("race in shared memory") if expected else nullcontext():
            device.launch(PROGRAM, "neighbours", 1, threads, out, barrier, shared=4 * threads)


def fails(what: str) -> Any:
    return pytest.raises(AssertionError, match=f"{what}.*emulator_check.cu:[0-9]+")


def test_races_between_blocks(seed: str) -> None:
    """Blocks are ordered by nothing, launches are."""
    device = WatchedDevice(seed=seed)
    word, out = device.allocate(4), device.allocate(4 * 64)
    device.launch(PROGRAM, "one_writes", 1, 32, word, out)
    device.launch(PROGRAM, "one_writes", 1, 32, word, out)
    with fails("race in global memory"):
        device.launch(PROGRAM, "one_writes", 2, 32, word, out)
    device.launch(PROGRAM, "half_words", 2, 32, out)


def test_atomics_race_with_what_is_none(seed: str) -> None:
    device = WatchedDevice(seed=seed)
    counter, out = put_words(device, 0), device.allocate(4)
    device.launch(PROGRAM, "counts_and_reads", 1, 64, counter, out, 1)
    with fails("atomic by"):
        device.launch(PROGRAM, "counts_and_reads", 1, 64, counter, out, 0)
    with fails("atomic by"):
        device.launch(PROGRAM, "counts_and_reads", 2, 64, counter, out, 1)


def test_what_has_ended_is_at_no_barrier(seed: str) -> None:
    device = WatchedDevice(seed=seed)
    word, out = put_words(device, 0), device.allocate(4)
    with fails("race in global memory"):
        device.launch(PROGRAM, "writes_and_ends", 1, 64, word, out)


def test_reads_of_what_nobody_wrote_or_has(seed: str) -> None:
    """Never written, a copy of that, past the end, released; in shared memory; and read by the host."""
    device = WatchedDevice(seed=seed)
    out, written, never = device.allocate(4), put_words(device, 1, 2), device.allocate(8)
    device.launch(PROGRAM, "reads_at", 1, 1, written, out, 1)
    for at, index, what in ((never, 0, "global, memory that nobody wrote"), (written, 2, "global, outside")):
        with fails(what):
            device.launch(PROGRAM, "reads_at", 1, 1, at, out, index)
    device.copy(written, never, 8)
    with fails("nobody wrote"):
        device.launch(PROGRAM, "reads_at", 1, 1, written, out, 0)
    with pytest.raises(AssertionError, match="the host reads"):
        get(device, written, np.zeros(1, np.uint32))
    for index, what in ((0, "shared, memory that nobody wrote"), (8, "shared, outside")):
        with fails(what):
            device.launch(PROGRAM, "reads_shared", 1, 1, out, index, shared=32)
    device.release(written)
    with fails("global, outside"):
        device.launch(PROGRAM, "reads_at", 1, 1, written, out, 0)


def test_orders_come_from_the_seed(seed: str) -> None:
    """The same seed gives the same orders of threads and blocks, another one others."""

    def last(seed: str) -> list[int]:
        device, found = WatchedDevice(seed=seed), []
        out = device.allocate(4)
        for _ in range(8):
            with pytest.raises(AssertionError, match="race"):
                device.launch(PROGRAM, "races", 1, 64, out)
            found.append(int(get(device, out, np.zeros(1, np.uint32))[0]))
        return found

    assert last(seed) == last(seed) != last(seed + "'")
    assert len(set(last(seed))) > 2


def test_memory_has_an_end() -> None:
    device = EmulatedDevice(memory=1000)
    first = device.allocate(600)
    with pytest.raises(OutOfMemory):
        device.allocate(600)
    device.release(first)
    device.allocate(1000)
    assert (device.used, device.peak) == (1000, 1000)


def test_faults() -> None:
    device = EmulatedDevice(faults=Faults(allocation=2))
    device.allocate(1)
    with pytest.raises(OutOfMemory):
        device.allocate(1)
    device.allocate(1)
    device = EmulatedDevice(faults=Faults(launch=1))
    out = device.allocate(4)
    with pytest.raises(DeviceError):
        device.launch(PROGRAM, "races", 1, 1, out)
    with pytest.raises(DeviceError):
        device.synchronize()
    device = EmulatedDevice(faults=Faults(lost=1))
    device.allocate(1)
    with pytest.raises(DeviceError):
        device.synchronize()
