"""A GPU's memory: the pool's limit, first fit in an arena, entries that stay and when they go."""

from __future__ import annotations

import gc
import random
from typing import Any

import pytest

from gpuprover.cuda.allocation import ALIGNMENT, SHARE, Arena, Block, Pool, Residents
from gpuprover.cuda.device import Address
from gpuprover.errors import DeviceError, OutOfMemory
from tests.support.emulator import EmulatedDevice, Faults

pytestmark = pytest.mark.kernels_offline
MIB = 1 << 20


class Owner:
    """Whatever can be referred to weakly."""


# The pool ---------------------------------------------------------------------------


def test_the_limit_is_hard() -> None:
    pool = Pool(EmulatedDevice(memory=100 * MIB), limit=10 * MIB)
    held = [pool.allocate(MIB) for _ in range(10)]
    assert (pool.used, pool.peak, pool.available) == (10 * MIB, 10 * MIB, 0)
    with pytest.raises(OutOfMemory, match=r"^cuda:0: .* needs 1 MiB of device memory, 0 MiB are left$"):
        pool.allocate(1)
    for address in held:
        pool.release(address)
    assert (pool.used, pool.peak, pool.available) == (0, 10 * MIB, 10 * MIB)


def test_without_a_limit_a_share_of_what_is_free() -> None:
    device = EmulatedDevice(memory=100 * MIB)
    pool = Pool(device)
    assert pool.limit == int(SHARE * 100 * MIB)
    other = device.allocate(40 * MIB)  # another process
    assert pool.limit == int(SHARE * 60 * MIB)
    pool.allocate(20 * MIB)
    assert pool.available == int(SHARE * 40 * MIB)
    device.release(other)
    assert pool.limit == 20 * MIB + int(SHARE * 80 * MIB)
    # A limit above what is free does not help.
    assert Pool(device, limit=1 << 40).available == int(SHARE * 80 * MIB)


def test_blocks_come_back() -> None:
    pool = Pool(EmulatedDevice())
    block = Block(pool, 1000)
    assert pool.used == 1024
    block.free()
    block.free()
    assert pool.used == 0
    with pytest.raises(ValueError, match="given back"):
        _ = block.address
    kept: list[Any] = [Block(pool, 10)]
    kept.append(kept)  # only the garbage collector finds this
    del kept
    gc.collect()
    pool.collect()
    assert pool.used == 0


def test_what_is_released_serves_the_next_allocation_of_its_size() -> None:
    device = EmulatedDevice()
    pool = Pool(device, limit=10 * MIB)
    a, b = pool.allocate(MIB), pool.allocate(MIB // 8)
    pool.release(a)
    pool.release(b)
    assert (pool.used, pool.kept, pool.held, pool.available) == (0, device.used, device.used, 10 * MIB)
    calls = device.calls
    assert (pool.allocate(MIB - 1), pool.allocate(MIB // 8)) == (a, b)
    assert device.calls == calls, "the device is asked for nothing"
    assert pool.kept == 0


def test_what_nobody_asks_for_again_goes() -> None:
    """Before other sizes are refused, before entries are given up, and when it has become much."""
    pool, kept = residents(8 * MIB)
    device, owner = pool.device, Owner()
    device.memory = 20 * MIB  # type: ignore[attr-defined]
    kept.unpin(kept.add(owner, "a", MIB, False))
    for address in [pool.allocate(MIB // 2) for _ in range(2)]:
        pool.release(address)
    assert pool.kept == MIB
    pool.release(pool.allocate(7 * MIB))  # not beside what is kept
    assert (pool.kept, device.used) == (7 * MIB, 8 * MIB)  # type: ignore[attr-defined]
    assert kept.of(owner)
    pool.release(pool.allocate(MIB))
    assert pool.kept == MIB, "more than a quarter of the limit is not kept for long"
    assert pool.trim()
    assert not pool.trim()
    assert device.used == MIB  # type: ignore[attr-defined]
    pool.release(pool.allocate(MIB))
    kept.clear()
    assert (pool.held, device.used) == (0, 0)  # type: ignore[attr-defined]


def test_blocks_swap() -> None:
    pool = Pool(EmulatedDevice())
    a, b = Block(pool, 10), Block(pool, 10)
    first, second = a.address, b.address
    a.swap(b)
    assert (a.address, b.address) == (second, first)
    a.free()
    assert b.address == first
    b.free()
    assert pool.used == 0


def test_a_device_without_memory_and_a_lost_one() -> None:
    pool = Pool(EmulatedDevice(faults=Faults(allocation=1)))
    with pytest.raises(OutOfMemory):
        pool.allocate(1)
    address = pool.allocate(1)
    assert pool.used == ALIGNMENT
    pool.device.faults.lost = 0  # type: ignore[attr-defined]
    with pytest.raises(DeviceError):
        pool.allocate(1)
    pool.release(address)
    assert pool.held == 0


# The arena --------------------------------------------------------------------------


def test_first_fit() -> None:
    arena = Arena(1 << 20, 4096)
    a, b, c = (arena.allocate(n) for n in (1, 257, 1024))
    assert [x - (1 << 20) for x in (a, b, c)] == [0, 256, 768]
    arena.release(b)
    assert arena.allocate(600) - (1 << 20) == 1792  # the gap has 512
    assert arena.allocate(512) == b
    assert (arena.extent, arena.held) == (1792 + 768, 1792 + 768)
    with pytest.raises(OutOfMemory, match="arena"):
        arena.allocate(4096 - 2560 + 1)
    arena.allocate(4096 - 2560)
    assert arena.close() == 4096
    arena.release(c)  # too late, and no harm
    with pytest.raises(OutOfMemory):
        arena.allocate(1)


def test_an_arena_hands_nothing_out_twice(rng: random.Random) -> None:
    """At random, against a list of intervals."""
    arena, size = Arena(512, 64 << 10), 64 << 10
    live: dict[Address, int] = {}
    refused = 0
    for _ in range(3000):
        if live and rng.random() < 0.5:
            address = rng.choice(list(live))
            (arena.release if rng.random() < 0.5 else arena.discard)(address)
            del live[address]
            continue
        n = rng.choice((1, 256, 300, 5000, rng.randrange(1, 9000)))
        whole = -(-n // ALIGNMENT) * ALIGNMENT
        taken = sorted((at - 512, at - 512 + k) for at, k in live.items())
        ends = [0, *(end for _, end in taken)]
        starts = [*(start for start, _ in taken), size]
        fits = [end for end, start in zip(ends, starts, strict=True) if start - end >= whole]
        try:
            address = arena.allocate(n)
        except OutOfMemory:
            refused += 1
            assert not fits
            continue
        assert address - 512 == fits[0]
        live[address] = whole
    assert refused
    for address in live:
        arena.release(address)
    assert arena.close() == 0


# What stays -------------------------------------------------------------------------


def residents(memory: int = 100 * MIB) -> tuple[Pool, Residents]:
    pool = Pool(EmulatedDevice(memory=memory), limit=memory)
    kept = Residents(pool)
    pool.reclaim = kept.reclaim
    return pool, kept


def test_entries_live_as_long_as_their_owner() -> None:
    pool, kept = residents()
    one, two = Owner(), Owner()
    for owner in (one, two):
        for kind in "ab":
            entry = kept.add(owner, kind, MIB, False)
            kept.unpin(entry)
    assert [entry.kind for entry in kept.of(one)] == ["a", "b"]
    assert pool.used == 4 * MIB
    del one, owner
    gc.collect()
    assert len(kept.all()) == 2
    assert pool.used == 2 * MIB
    assert len(kept.of(two)) == 2
    kept.clear()
    assert pool.used == 0


def test_another_owner_with_the_same_id() -> None:
    pool, kept = residents()
    for _ in range(50):  # CPython gives the place of a dead object to the next one
        owner = Owner()
        assert kept.of(owner) == []
        kept.unpin(kept.add(owner, "a", 90 * MIB, False))
        del owner
    kept.all()
    assert pool.used == 0


def test_tables_go_first_then_what_was_used_longest_ago() -> None:
    pool, kept = residents(10 * MIB)
    pool.device.memory = 20 * MIB  # type: ignore[attr-defined]
    owner = Owner()
    plain, table, pinned, late = (
        kept.add(owner, kind, 2 * MIB, kind == "table") for kind in ("plain", "table", "pinned", "late")
    )
    for entry in (plain, table, late):
        kept.unpin(entry)
    kept.pin(plain)  # used again, after "late"
    kept.unpin(plain)

    def left() -> list[Any]:
        return [entry.kind for entry in kept.of(owner)]

    pool.allocate(2 * MIB)
    assert left() == ["plain", "table", "pinned", "late"]
    pool.allocate(1)
    assert left() == ["plain", "pinned", "late"]
    pool.allocate(2 * MIB)
    assert left() == ["plain", "pinned"]
    with pytest.raises(OutOfMemory):
        pool.allocate(4 * MIB)
    assert left() == ["pinned"]
    assert pinned.block.address
    assert pool.peak <= 10 * MIB


def test_what_the_device_refuses_is_asked_for_again() -> None:
    pool, kept = residents()
    owner = Owner()
    kept.unpin(kept.add(owner, "a", MIB, False))
    pool.device.faults.allocation = 2  # type: ignore[attr-defined]
    pool.allocate(MIB)
    assert kept.of(owner) == []
