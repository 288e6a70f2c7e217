"""Midnight's proofs on the emulated device: the CPU's, with everything of a proof on the device."""

from __future__ import annotations

import gc
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import gpuprover
from gpuprover.cuda import residency
from gpuprover.cuda.residency import ArenaPart, ColumnPart, Residency, RowsPart
from gpuprover.curves import BLS12_381, Group
from gpuprover.demand import Budget
from gpuprover.job import Job
from gpuprover.limbs import generator
from gpuprover.systems.midnight import prover
from tests.cuda.test_gates import Counting, extents
from tests.support.cuda_midnight import SEED, expected, key, prove, statement
from tests.support.cuda_proofs import backend_on, device_of, opened
from tests.support.emulator import EmulatedDevice, Faults, WatchedDevice

__all__ = ["extents"]

pytestmark = [pytest.mark.kernels_offline, pytest.mark.usefixtures("quick_sums")]

FAST = "hello"
LAUNCHES, WAITS = 560, 30
"""Of a warm proof of 64 rows, at most."""


@pytest.mark.parametrize(
    "name", [FAST, *(pytest.param(n, marks=pytest.mark.slow) for n in ("increment", "fallible"))]
)
def test_proofs_are_the_cpus(name: str, extents: list[tuple[int, int]]) -> None:
    """In memory that was planned; a key's polynomials and the parameters' points stay on the device."""
    gpu, loaded = opened(reversed=name == FAST), key(name)
    assert prove(name, loaded, gpu) == expected(name)
    assert gpu.leaked == 0
    assert [taken for taken, _ in extents] == [planned for _, planned in extents], "as it was rehearsed"
    kept = Counter(type(entry.kind) for entry in gpu.residents.of(loaded.parts))
    assert kept == {ColumnPart: len(loaded.demand.columns)}
    assert len(points_on(gpu)) == 3
    assert {"evaluate", "product_results", "division_results"} <= set(device_of(gpu).kernels)
    (arena,) = (e for e in gpu.residents.all() if isinstance(e.kind, ArenaPart))
    held = np.empty(arena.kind.size, dtype=np.uint8)
    gpu.device.read(held, arena.block.address)
    assert not held.any(), "nothing of a witness stays"


def points_on(gpu: Residency) -> list[Any]:
    """Where the parameters' points lie: with no key."""
    return [entry for entry in gpu.residents.of(gpu) if isinstance(entry.kind, RowsPart)]


@pytest.mark.slow
def test_keys_share_the_points_of_their_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while both prove; with tables, as the points come again; and they outlive the keys."""
    monkeypatch.setattr(residency, "SHORTEST_TABLE", 1)
    gpu, first, second = opened(), key(FAST), key("fallible")
    assert prove(FAST, first, gpu) == expected(FAST)
    assert not any(residency.has_multiples(entry.kind) for entry in points_on(gpu))
    backend = backend_on(gpu, BLS12_381, Job(threads=1))
    with backend.session(first.demand, first.parts, Budget()):
        held = points_on(gpu)
        assert all(entry.pins == 1 for entry in held)
        assert prove("fallible", second, gpu) == expected("fallible")
        assert points_on(gpu) == held, "what another proof uses is not made a second time"
    assert prove("fallible", second, gpu) == expected("fallible")
    assert prove(FAST, first, gpu) == expected(FAST)
    tables = points_on(gpu)
    assert len(tables) == 3
    assert all(residency.has_multiples(entry.kind) for entry in tables)
    assert gpu.leaked == 0
    del first, second, backend
    gc.collect()
    gpu.residents.all()
    assert points_on(gpu) == tables


def test_other_parameters_share_nothing() -> None:
    loaded = key(FAST)
    other = prover.demand(replace(loaded.vk, s_g2=generator(BLS12_381, Group.G2)))
    assert not {b.shared for b in loaded.demand.bases} & {b.shared for b in other.bases}
    assert loaded.demand.bases == key("fallible").demand.bases


@pytest.mark.slow
def test_less_and_less_memory(extents: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Points and polynomials are sent, and cosets taken in chunks; below the least there is an exception."""
    monkeypatch.setattr(residency, "SHORTEST_SLICE", 32)
    ample, loaded = opened(), key(FAST)
    assert prove(FAST, loaded, ample) == expected(FAST)
    demand, hi, lo = loaded.demand, ample.pool.peak, 0
    backend = backend_on(opened(), BLS12_381, Job(threads=1))
    while hi - lo > 256:
        middle = (lo + hi) // 2
        try:
            backend.plan(demand, Budget(device=middle))
        except gpuprover.OutOfMemory:
            lo = middle
        else:
            hi = middle
    chunks = set()
    for limit in np.linspace(ample.pool.peak, hi, 4).astype(int).tolist():
        gpu, loaded = opened(limit=limit), key(FAST)
        assert prove(FAST, loaded, gpu) == expected(FAST), limit
        assert gpu.pool.peak <= limit
        assert device_of(gpu).peak <= limit
        assert gpu.leaked == 0
        with backend_on(gpu, BLS12_381, Job(threads=1)).session(
            loaded.demand, loaded.parts, Budget()
        ) as chosen:
            chunks.add(chosen.chunks)
    assert len(chunks) > 1
    assert all(taken == planned for taken, planned in extents if taken), "as it was rehearsed"
    gpu, loaded = opened(limit=lo // 2), key(FAST)
    with pytest.raises(gpuprover.OutOfMemory, match=r"^cuda:0: .* needs \d+ MiB"):
        prove(FAST, loaded, gpu)
    del loaded
    gc.collect()
    gpu.residents.clear()
    assert gpu.pool.used == device_of(gpu).used == 0


@pytest.mark.slow
def test_tables_of_a_key_that_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residency, "SHORTEST_TABLE", 1)
    gpu, loaded = opened(), key(FAST)
    for _ in range(3):
        assert prove(FAST, loaded, gpu) == expected(FAST)
    assert all(residency.has_multiples(entry.kind) for entry in points_on(gpu))
    assert gpu.leaked == 0


@pytest.mark.slow
def test_no_race_in_whole_proofs(seed: str) -> None:
    """What one launch leaves for another, on a device that sees races and memory that nobody wrote."""
    assert prove(FAST, key(FAST), Residency(WatchedDevice(seed=seed))) == expected(FAST)


@pytest.mark.slow
def test_a_launch_that_fails_leaves_the_device_as_it_was() -> None:
    loaded, probe = key(FAST), opened()
    prove(FAST, loaded, probe)
    launches = device_of(probe).launches
    for refused in (1, launches // 2, launches):
        gpu = Residency(EmulatedDevice(faults=Faults(refused=refused)))
        with pytest.raises(gpuprover.DeviceError):
            prove(FAST, loaded, gpu)
        assert all(entry.pins == 0 for entry in gpu.residents.all())
        assert prove(FAST, loaded, gpu) == expected(FAST)
        assert gpu.leaked == 0


def host_work(name: str) -> Counter[str]:
    """Launches, waits and bytes sent of a warm proof."""
    device, loaded, given = Counting(), key(name), statement(name)
    gpu = Residency(device)

    def once() -> None:
        backend: Any = backend_on(gpu, BLS12_381, Job(threads=1))
        with backend.session(loaded.demand, loaded.parts, Budget()) as demand:
            prover.rounds(
                loaded.parts,
                given.advice,
                given.public,
                prover.Randomness(SEED),
                backend,
                demand.chunks,
                lambda *pair: pair,  # nothing that could be looked up comes from a device that does nothing
            )

    for _ in range(3):
        once()
    device.asked.clear()
    once()
    return device.asked


def test_what_the_host_does_for_a_warm_proof() -> None:
    """It launches and waits, and sends the table once for its sums and once for its polynomials."""
    asked, advice = host_work(FAST), statement(FAST).advice
    print(asked)
    assert asked["launch"] <= LAUNCHES
    assert asked["wait"] <= WAITS
    # Beside the table: what orders of lookups send back, random rows, and constants of launches.
    rows = advice.nbytes // len(advice)
    assert asked["bytes"] < 2 * advice.nbytes + 12 * rows + 200 * asked["launch"]
