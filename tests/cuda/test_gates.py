"""PLONK and FFLONK on the emulated device: snarkjs's proofs, with everything of a proof on the device."""

from __future__ import annotations

import gc
import random
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

import gpuprover
from gpuprover.cpu.backend import CpuBackend
from gpuprover.cuda import residency
from gpuprover.cuda.rehearsal import Nothing
from gpuprover.cuda.residency import ArenaPart, ColumnPart, Residency, RowsPart
from gpuprover.curves import BN254
from gpuprover.demand import Budget
from gpuprover.devices import open_backend
from gpuprover.formats.wtns import Witness
from gpuprover.job import Job
from gpuprover.limbs import field_to_words, ints_to_words
from gpuprover.systems.system import ProvingKey
from tests.support import cuda_plonk
from tests.support.cuda_plonk import CHAINED, SAMPLES, SYSTEMS, prove
from tests.support.cuda_proofs import backend_on, device_of, opened
from tests.support.emulator import EmulatedDevice, Faults, WatchedDevice
from tests.support.plonk import Sample, sample
from tests.test_proving import one_gpu

pytestmark = [pytest.mark.kernels_offline, pytest.mark.usefixtures("quick_sums")]

PROTOCOLS = {"plonk": sample("one-gate"), "fflonk": sample("one-gate", "fflonk")}
LAUNCHES = {"plonk": 270, "fflonk": 230}
"""Of a warm proof of eight rows, at most."""
WAITS = {"plonk": 14, "fflonk": 9}
"""Times that a warm proof's host waits for the device, at most."""
GROWTH = 60
"""Launches and waits that a proof of 8 or 16 times as many rows has beside, at most: passes of transforms, of
scans, of reductions."""


def slow_but(*fast: Sample) -> list[Any]:
    return [
        pytest.param(one, id=f"{one.protocol} {one.name}", marks=[] if one in fast else [pytest.mark.slow])
        for one in SAMPLES
    ]


@pytest.fixture
def extents(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(bytes that were taken, bytes that were planned) of each proof's arena."""
    found: list[tuple[int, int]] = []
    real = Residency.end

    def end(self: Residency, session: Any, done: bool) -> None:
        found.append((session.arena.extent, session.arena.size))
        real(self, session, done)

    monkeypatch.setattr(Residency, "end", end)
    return found


@pytest.mark.parametrize("which", slow_but(*PROTOCOLS.values()))
def test_proofs_are_snarkjs(which: Sample, extents: list[tuple[int, int]]) -> None:
    """In memory that was planned; a key's polynomials and powers of tau stay on the device."""
    gpu, key = opened(reversed=which.name == "adds"), cuda_plonk.key(which)
    for _ in range(2):
        assert prove(which, key, gpu) == which.proof
    assert gpu.leaked == 0
    assert [taken for taken, _ in extents] == [planned for _, planned in extents], "as it was rehearsed"
    kept = Counter(type(entry.kind) for entry in gpu.residents.of(key))
    assert kept == {ColumnPart: len(key.demand.columns), RowsPart: 1}
    assert {"gather", "evaluate", "product_results", "division_results"} <= set(device_of(gpu).kernels)
    allocations = device_of(gpu).allocations
    with suppress(gpuprover.UnsatisfiedWitness):
        values = cuda_plonk.witness(which).values.copy()
        values[-1, 0] ^= 1
        SYSTEMS[which.protocol].prove(
            key, Witness(key.curve, values), backend_on(gpu, key.curve), which.blinding, Budget()
        )
    assert device_of(gpu).allocations == allocations, "a warm proof allocates nothing"
    (arena,) = (e for e in gpu.residents.all() if isinstance(e.kind, ArenaPart))
    held = np.empty(arena.kind.size, dtype=np.uint8)
    gpu.device.read(held, arena.block.address)
    assert not held.any(), "nothing of a witness stays"


@pytest.mark.slow
@pytest.mark.parametrize("which", CHAINED, ids=lambda which: which.protocol)
def test_less_and_less_memory(
    which: Sample, extents: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Points and polynomials are sent, and cosets taken in chunks; below the least there is an exception."""
    monkeypatch.setattr(residency, "SHORTEST_SLICE", 32)
    ample = opened()
    for _ in range(2):
        key = cuda_plonk.key(which)
        assert prove(which, key, ample) == which.proof
    demand, hi, lo = key.demand, ample.pool.peak, 0
    backend = backend_on(opened(), key.curve, Job(threads=1))
    while hi - lo > 256:
        middle = (lo + hi) // 2
        try:
            backend.plan(demand, Budget(device=middle))
        except gpuprover.OutOfMemory:
            lo = middle
        else:
            hi = middle
    chunks, layouts = set(), set()
    for limit in np.linspace(ample.pool.peak, hi, 8).astype(int).tolist():
        gpu, key = opened(limit=limit), cuda_plonk.key(which)
        assert prove(which, key, gpu) == which.proof, limit
        assert gpu.pool.peak <= limit
        assert device_of(gpu).peak <= limit
        assert gpu.leaked == 0
        layouts.add(frozenset(entry.kind for entry in gpu.residents.all()))
        with backend_on(gpu, key.curve, Job(threads=1)).session(key.demand, key, Budget()) as chosen:
            chunks.add(chosen.chunks)
    assert len(layouts) > 1
    assert len(chunks) > 1 or demand.leaner is None
    assert all(taken == planned for taken, planned in extents if taken), "as it was rehearsed"
    gpu, key = opened(limit=lo // 2), cuda_plonk.key(which)
    with pytest.raises(gpuprover.OutOfMemory, match=r"^cuda:0: .* needs \d+ MiB"):
        prove(which, key, gpu)
    del key
    gc.collect()
    gpu.residents.clear()
    assert gpu.pool.used == device_of(gpu).used == 0


@pytest.mark.slow
@pytest.mark.parametrize("which", CHAINED, ids=lambda which: which.protocol)
def test_tables_of_a_key_that_comes_again(which: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residency, "SHORTEST_TABLE", 1)
    gpu, key = opened(), cuda_plonk.key(which)
    for _ in range(3):
        assert prove(which, key, gpu) == which.proof
    assert any(residency.has_multiples(entry.kind) for entry in gpu.residents.of(key))
    assert gpu.leaked == 0


@pytest.mark.slow
@pytest.mark.parametrize("which", CHAINED, ids=lambda which: which.protocol)
def test_no_race_in_whole_proofs(which: Sample, seed: str) -> None:
    """What one launch leaves for another, on a device that sees races and memory that nobody wrote."""
    device = WatchedDevice(seed=seed)
    assert prove(which, cuda_plonk.key(which), Residency(device)) == which.proof


@pytest.mark.slow
@pytest.mark.parametrize("which", CHAINED, ids=lambda which: which.protocol)
def test_a_launch_that_fails_leaves_the_device_as_it_was(which: Sample) -> None:
    """Whichever launch it is; and the next proof is right."""
    key = cuda_plonk.key(which)
    probe = opened()
    prove(which, key, probe)
    launches = device_of(probe).launches
    for refused in (1, launches // 3, 2 * launches // 3, launches):
        gpu = Residency(EmulatedDevice(faults=Faults(refused=refused)))
        with pytest.raises(gpuprover.DeviceError):
            prove(which, key, gpu)
        assert all(entry.pins == 0 for entry in gpu.residents.all())
        assert prove(which, key, gpu) == which.proof
        assert gpu.leaked == 0


@pytest.mark.slow
@pytest.mark.parametrize("which", CHAINED, ids=lambda which: which.protocol)
def test_the_cpu_takes_over(which: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a device that is lost in a proof; one that is not makes the same proof."""
    probe = opened()
    prove(which, cuda_plonk.key(which), probe)
    launches = device_of(probe).launches
    for lost in (1, launches // 2, launches - 1, launches + 1):
        device = EmulatedDevice(faults=Faults(launch=lost))
        one_gpu(monkeypatch, lambda device=device: device)
        result = gpuprover.prove(which.key, which.witness, blinding=which.blinding)
        assert result.proof == which.proof
        assert result.device == ("cpu" if lost <= launches else "cuda:0")
        assert any("the CPU took over" in warning for warning in result.warnings) is (lost <= launches)


def test_records_of_any_shape(rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a file's records in any order, and arrays of their own; what the CPU makes of them."""
    field, known, count = BN254.scalar, 4, 6
    words = ints_to_words([rng.randrange(field.modulus) for _ in range(known)], field.limbs)
    index = [[*(rng.randrange(known) for _ in range(count - 1)), known + k] for k in range(2)]
    factors = [field_to_words(field, [rng.randrange(field.modulus) for _ in range(count)]) for _ in range(2)]
    arrays = dict(zip("xyab", [*np.array(index, np.uint32), *factors], strict=True))
    kinds = {"x": "<u4", "y": "<u4", "a": ("<u8", field.limbs), "b": ("<u8", field.limbs), "z": "<u4"}
    backend, cpu = backend_on(opened(), BN254, Job(threads=1)), open_backend("cpu", BN254, Job(threads=1))
    expected = cpu.download(cpu.signals(words, *arrays.values()))
    monkeypatch.setattr(CpuBackend, "signals", None)
    for order in ("", "xyab", "abxy", "azbyxz"):
        given = arrays
        if order:
            fields = [(f"{name}{i}" if name == "z" else name, kinds[name]) for i, name in enumerate(order)]
            records = np.zeros(count, np.dtype(fields))
            for name, array in arrays.items():
                records[name] = array
            given = {name: records[name] for name in arrays}
        assert np.array_equal(backend.download(backend.signals(words, *given.values())), expected), order


# What the host does -------------------------------------------------------------------------------


class Counting(Nothing):
    """A device that does nothing, and counts what it is asked for."""

    def __init__(self) -> None:
        super().__init__(opened().device)
        self.asked: Counter[str] = Counter()

    def launch(self, *arguments: Any, **options: Any) -> None:
        self.asked["launch"] += 1

    def run(self, launches: Any, *arguments: Any, **options: Any) -> None:
        self.asked["launch"] += len(launches)

    def read(self, data: Any, *arguments: Any, **options: Any) -> None:
        self.asked["wait"] += 1
        super().read(data, *arguments, **options)

    def write(self, to: int, data: Any, *arguments: Any, **options: Any) -> None:
        self.asked["bytes"] += data.nbytes


@pytest.fixture
def uncollected() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def host_work(which: Sample) -> tuple[Counter[str], ProvingKey]:
    """Launches, waits, bytes sent and calls of functions in a warm proof."""
    device, key = Counting(), cuda_plonk.key(which)
    system, gpu = SYSTEMS[which.protocol], Residency(device)

    def once() -> None:
        backend = backend_on(gpu, key.curve, Job(threads=1))
        system.prove(key, cuda_plonk.witness(which), backend, which.blinding, Budget())

    for _ in range(3):
        once()
    device.asked.clear()
    once()
    found = Counter(device.asked)
    calls: Counter[str] = Counter()
    sys.setprofile(lambda frame, event, argument: calls.update([event]))
    try:
        once()
    finally:
        sys.setprofile(None)
    found["calls"] = calls["call"] + calls["c_call"]
    return found, key


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_the_host_does_for_a_warm_proof(protocol: str, uncollected: None) -> None:
    """Launches and waits; no arithmetic that grows with the circuit; and only what is new is sent."""
    small, _ = host_work(PROTOCOLS[protocol])
    large, key = host_work(sample("quirks", protocol))
    print(small, large)
    assert small["launch"] <= LAUNCHES[protocol]
    assert small["wait"] <= WAITS[protocol]
    for name in ("launch", "wait"):
        assert large[name] <= small[name] + GROWTH
    # Values are computed by the device, each of which would be a few calls here.
    rows = key.demand.domains[0].size
    assert rows >= 64
    assert large["calls"] < small["calls"] + 40 * GROWTH
    constants = 200 * small["launch"]
    assert large["bytes"] < constants + 12 * rows + 80 * rows
