"""Whole proofs on the emulated device: the CPU's, byte for byte, with everything of a proof on the device."""

from __future__ import annotations

import gc
import random
import threading
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import gpuprover
from gpuprover.backend import Backend, Form
from gpuprover.cpu.backend import CpuBackend
from gpuprover.cuda import backend as backend_module
from gpuprover.cuda import residency as gpu_module
from gpuprover.cuda.allocation import Block
from gpuprover.cuda.device import MAIN, Stream
from gpuprover.cuda.residency import Residency
from gpuprover.curves import BN254, CURVES, CurveParams, Group
from gpuprover.demand import UNLIMITED, Budget, Demand, KeyColumn
from gpuprover.formats.wtns import Witness
from gpuprover.job import Job
from gpuprover.limbs import Words, field_to_words, ints_to_words, words_to_ints
from gpuprover.systems.groth16 import prover
from gpuprover.systems.groth16.key import load_key
from tests.support.containers import edit, put
from tests.support.cuda_proofs import (
    BLINDING,
    backend_on,
    chain_key,
    chain_witness,
    device_of,
    expected,
    larger,
    opened,
    prove,
)
from tests.support.emulator import EmulatedDevice
from tests.support.samples import curve_point, field_edges, generator, row

pytestmark = [pytest.mark.kernels_offline, pytest.mark.usefixtures("quick_sums")]


class Watched(EmulatedDevice):
    """Counts the bytes that cross the bus."""

    written = read_back = 0

    def write(self, to: int, data: NDArray[Any], stream: Stream = MAIN) -> None:
        self.written += data.nbytes
        super().write(to, data, stream)

    def read(self, data: NDArray[Any], start: int, stream: Stream = MAIN) -> None:
        self.read_back += data.nbytes
        super().read(data, start, stream)


@pytest.mark.parametrize("reversed", [False, True], ids=["forward", "reversed"])
def test_proofs_are_the_cpus(curve: CurveParams, reversed: bool) -> None:
    gpu, key = opened(reversed=reversed), chain_key(curve)
    for _ in range(3):  # the first one brings the key, the second may make tables of it
        assert prove(key, chain_witness(curve), gpu) == expected(curve)
    assert gpu.leaked == 0
    assert {"multiply_chunks", "ntt_middle", "multiply_subtract", "accumulate"} <= set(device_of(gpu).kernels)


@pytest.mark.parametrize("memory", [1 << 30, 3 << 20])
def test_multiples_of_a_point(
    curve: CurveParams, group: Group, memory: int, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In threads that share an inversion, in blocks, from host and device; the CPU's, word for word."""
    monkeypatch.setattr(backend_module, "FEWEST_MULTIPLES", 1)
    monkeypatch.setattr(backend_module, "MOST_MULTIPLES", 50)
    scalars = [*field_edges(curve.r), *(rng.randrange(curve.r) for _ in range(45))]
    words = ints_to_words(scalars, curve.scalar.limbs)
    gpu = opened(memory=memory, reversed=memory == 1 << 30)
    backend, cpu = backend_on(gpu, curve, Job()), CpuBackend(curve, Job())
    for point in (generator(curve, group), curve_point(curve, group, rng), None):
        base = row(curve, group, point)
        expected = cpu.fixed_base_mul(group, base, words)
        assert np.array_equal(backend.fixed_base_mul(group, base, words), expected)
        v = backend.upload(words)
        assert np.array_equal(backend.fixed_base_mul(group, base, v), expected)
        backend.free(v)
    assert "multiply_fixed" in device_of(gpu).kernels
    assert gpu.pool.used == 0


def test_few_multiples_are_the_cpus(curve: CurveParams) -> None:
    gpu = opened()
    words = ints_to_words([1, 2, 3], curve.scalar.limbs)
    base = row(curve, Group.G1, curve.g1)
    found = backend_on(gpu, curve, Job()).fixed_base_mul(Group.G1, base, words)
    assert np.array_equal(found, CpuBackend(curve, Job()).fixed_base_mul(Group.G1, base, words))
    assert not device_of(gpu).kernels


@pytest.mark.parametrize("false", [False, True])
def test_nothing_of_a_witness_stays(curve: CurveParams, false: bool) -> None:
    """Neither of a good one nor of one that does not satisfy the circuit."""
    gpu, key, witness = opened(), chain_key(curve), chain_witness(curve)
    values = witness.values.copy()
    values[-1, 0] ^= np.uint64(false)
    with suppress(gpuprover.UnsatisfiedWitness):
        prove(key, Witness(curve, values), gpu)
    (arena,) = (e for e in gpu.residents.all() if isinstance(e.kind, gpu_module.ArenaPart))
    held = np.empty(arena.kind.size, dtype=np.uint8)
    gpu.device.read(held, arena.block.address)
    assert len(held) > values.nbytes
    assert not held.any()


def test_a_larger_proof() -> None:
    data, witness = larger(BN254)
    gpu, key = opened(), load_key(data)
    for _ in range(2):
        assert prove(key, witness, gpu) == expected(data)
    assert gpu.leaked == 0


def test_only_the_witness_and_the_sums_cross_the_bus() -> None:
    data, witness = larger(BN254)
    device, key = Watched(), load_key(data)
    gpu = Residency(device)
    for _ in range(3):
        device.written = device.read_back = 0
        prove(key, witness, gpu)
    assert witness.values.nbytes <= device.written < witness.values.nbytes + 1024
    assert device.read_back < 128 << 10


def test_several_threads_send_a_large_witness(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte once, whatever the number of rows."""
    senders: set[int] = set()

    class Noting(Watched):
        def write(self, to: int, data: NDArray[Any], stream: Stream = MAIN) -> None:
            senders.add(threading.get_ident())
            super().write(to, data, stream)

    monkeypatch.setattr(backend_module, "SENT", 256)
    device = Noting()
    backend = backend_on(Residency(device), BN254, Job(threads=3))
    for n in (1, 15, 16, 17, 101):
        words = np.arange(4 * n, dtype=np.uint64).reshape(n, 4)
        device.written = 0
        block = backend._send(words)
        found = np.empty_like(words)
        device.read(found, block.address)
        assert (found == words).all()
        assert device.written == words.nbytes
    assert threading.get_ident() in senders
    assert len(senders) > 1


def test_a_false_witness_is_refused(curve: CurveParams) -> None:
    key, good = chain_key(curve), chain_witness(curve)
    values = good.values.copy()
    values[3, 0] ^= 1
    witness, backend = Witness(curve, values), backend_on(opened(), curve, Job(threads=1))
    for given in (witness, good):  # and the next proof is right
        proof, public = prover.prove(key, given, backend, BLINDING), prover.public_signals(key, given)
        if given is good:
            assert prover.checked(key, given, public, proof, backend) == expected(curve)
        else:
            with pytest.raises(gpuprover.UnsatisfiedWitness):
                prover.checked(key, given, public, proof, backend)


@pytest.mark.parametrize(("section", "name"), [(5, "A points"), (7, "B2 points"), (9, "H points")])
def test_a_bad_point_of_a_key_is_named(section: int, name: str) -> None:
    curve = BN254
    data = bytearray()
    size = 128 if section == 7 else 64
    whole = (gpuprover_vectors() / f"chain5.{curve.name}.zkey").read_bytes()
    edit(whole, section, lambda content: data.extend(content))
    key = load_key(edit(whole, section, put(3 * size, bytes([data[3 * size] ^ 1]))))
    backend = backend_on(opened(), curve, Job(threads=1))
    proof = prover.prove(key, chain_witness(curve), backend)
    with pytest.raises(gpuprover.MalformedFile, match=rf"{name}.*point 3"):
        witness = chain_witness(curve)
        prover.checked(key, witness, prover.public_signals(key, witness), proof, backend)


def gpuprover_vectors() -> Any:
    from tests.support.cuda_proofs import VECTORS

    return VECTORS


# Keys that stay -------------------------------------------------------------------------


def test_a_key_stays_as_long_as_it_lives() -> None:
    curve = BN254
    gpu, key = opened(), chain_key(curve)
    prove(key, chain_witness(curve), gpu)
    entries = {entry.kind: entry.block.address for entry in gpu.residents.of(key)}
    assert entries
    assert gpu.pool.used == sum(entry.size for entry in gpu.residents.all())
    for _ in range(2):
        allocations = device_of(gpu).allocations
        prove(key, chain_witness(curve), gpu)
    assert device_of(gpu).allocations == allocations
    assert device_of(gpu).kernels.count("ntt_table") == 1
    del key
    gc.collect()
    kept = {type(entry.kind).__name__ for entry in gpu.residents.all()}
    assert kept == {"TwiddlesPart", "ArenaPart"}
    gpu.residents.clear()
    assert gpu.pool.used == device_of(gpu).used == 0


def test_keys_of_both_curves_take_turns() -> None:
    gpu = opened()
    keys = {curve: chain_key(curve) for curve in CURVES}
    for _ in range(2):
        for curve, key in keys.items():
            assert prove(key, chain_witness(curve), gpu) == expected(curve)
    assert gpu.leaked == 0


def test_proofs_in_several_threads(curve: CurveParams) -> None:
    """Of one key and of others, each with its own arena."""
    gpu = opened()
    keys = [chain_key(curve) for _ in range(2)]
    found: list[Any] = []

    def run(i: int) -> None:
        try:
            for _ in range(2):
                found.append(prove(keys[i % 2], chain_witness(curve), gpu))
        except BaseException as error:
            found.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected(curve)] * 8
    assert gpu.leaked == 0
    assert all(entry.pins == 0 for entry in gpu.residents.all())


def test_sums_on_the_host_meanwhile(curve: CurveParams) -> None:
    gpu, key = opened(), chain_key(curve)
    for groups in (["G2"], ["G1"], ["G1", "G2"]):
        device_of(gpu).kernels.clear()
        assert prove(key, chain_witness(curve), gpu, host_parts=groups) == expected(curve)
        assert ("accumulate" in device_of(gpu).kernels) is (len(groups) == 1)
    assert gpu.leaked == 0


# Memory -----------------------------------------------------------------------------------


def test_the_arena_is_as_large_as_planned(monkeypatch: pytest.MonkeyPatch, curve: CurveParams) -> None:
    """The rehearsal takes what the proof takes."""
    gpu, key = opened(), chain_key(curve)
    extents: list[tuple[int, int]] = []
    real = Residency.end
    monkeypatch.setattr(
        Residency,
        "end",
        lambda self, s, done: (extents.append((s.arena.extent, s.arena.size)), real(self, s, done)),
    )
    for _ in range(2):
        prove(key, chain_witness(curve), gpu)
    assert all(extent == size for extent, size in extents)


def least(demand: Demand, gpu: Residency) -> int:
    """The smallest budget that a plan accepts, by bisection."""
    backend = backend_on(gpu, demand.curve, Job(threads=1))

    def fits(budget: int) -> bool:
        try:
            backend.plan(demand, Budget(device=budget))
        except gpuprover.OutOfMemory:
            return False
        return True

    lo, hi = 0, 1 << 30
    while hi - lo > 1:
        middle = (lo + hi) // 2
        lo, hi = (lo, middle) if fits(middle) else (middle, hi)
    return hi


def test_columns_are_sent_where_they_do_not_fit(curve: CurveParams) -> None:
    """Of several that are used one after another, one at a time."""
    n, names, gpu = 64, "pqrs", opened()
    values = field_to_words(curve.scalar, range(n))

    def squares(values: Words, backend: Backend) -> list[Words]:
        results = []
        for name in names:
            column = backend.column(name, values, Form.MONTGOMERY)
            found = backend.mul(column, column)
            results.append(backend.download(found))
            backend.free(column, found)
        return results

    def rehearse(demand: Demand, backend: Backend) -> None:
        squares(np.broadcast_to(np.uint64(0), values.shape), backend)

    demand = Demand("test", curve, 0, (), (), (), tuple(KeyColumn(name, n) for name in names), (), rehearse)
    backend, key = backend_on(gpu, curve, Job(threads=1)), chain_key(curve)
    for budget, resident in ((None, True), (least(demand, gpu), False)):
        with backend.session(demand, key, Budget(device=budget)):
            assert backend._session is not None
            assert {part.resident for part in backend._session.layout.columns} == {resident}
            for found in squares(values, backend):
                assert words_to_ints(found) == [x * x for x in range(n)]
    assert gpu.leaked == 0


@pytest.mark.parametrize("steps", [3, pytest.param(40, marks=pytest.mark.slow)])
def test_less_and_less_memory(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Down to the least there is the same proof; below, the exception; the limit is never passed."""
    monkeypatch.setattr(gpu_module, "SHORTEST_SLICE", 32)
    data, witness = larger(BN254)
    ample = opened()
    for _ in range(2):
        key = load_key(data)
        prove(key, witness, ample)
    bottom = least(load_key(data).demand, opened())
    top = ample.pool.peak
    layouts = set()
    for limit in np.linspace(top, bottom, steps).astype(int).tolist():
        gpu, key = opened(limit=limit), load_key(data)
        for _ in range(2):
            assert prove(key, witness, gpu) == expected(data), limit
            assert gpu.pool.peak <= limit
            assert device_of(gpu).peak <= limit
            layouts.add(frozenset(entry.kind for entry in gpu.residents.all()))
        assert gpu.leaked == 0
    assert len(layouts) > 3 or steps < 10
    for limit in (bottom - 1, bottom // 2, 1):
        gpu, key = opened(limit=limit), load_key(data)
        with pytest.raises(gpuprover.OutOfMemory, match=r"^cuda:0: .* needs \d+ MiB .* \d+ MiB are left$"):
            prove(key, witness, gpu)
        del key
        gc.collect()
        gpu.residents.clear()
        assert gpu.pool.used == device_of(gpu).used == 0


def test_a_budget_bounds_one_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device with ample memory; its key does without tables however often it comes."""
    monkeypatch.setattr(gpu_module, "SHORTEST_SLICE", 32)
    data, witness = larger(BN254)
    budget = least(load_key(data).demand, opened())
    gpu, key = opened(), load_key(data)
    for _ in range(2):
        assert prove(key, witness, gpu, budget=budget) == expected(data)
    assert gpu.pool.peak <= budget
    with pytest.raises(gpuprover.OutOfMemory):
        prove(key, witness, gpu, budget=budget - 1)
    assert prove(key, witness, gpu) == expected(data)
    assert gpu.pool.peak > budget


def test_tables_of_a_key_that_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made at its second proof, in memory that nobody holds; they go before another key's bases do."""
    monkeypatch.setattr(gpu_module, "SHORTEST_TABLE", 1)
    data, witness = larger(BN254)
    probe, key = opened(), load_key(data)
    prove(key, witness, probe)
    gpu = opened(limit=probe.pool.peak * 2)
    made: list[int] = []
    for again in range(4):
        assert prove(key, witness, gpu) == expected(data)
        kinds = [entry.kind for entry in gpu.residents.of(key)]
        depths = {kind.plan.depth for kind in kinds if gpu_module.has_multiples(kind)}
        assert bool(depths) is bool(again)
        made.append(device_of(gpu).kernels.count("multiply_row"))
    assert made[0] == 0 < made[1] == made[2] == made[3], "tables are made once"
    assert min(depths) > 1
    other = load_key(data)
    assert prove(other, witness, gpu) == expected(data)
    assert gpu.pool.peak <= gpu.pool.limit
    assert prove(key, witness, gpu) == expected(data)
    assert gpu.leaked == 0


def test_other_keys_give_way() -> None:
    """Two keys where there is room for little more than one."""
    data, witness = larger(BN254)
    probe = opened()
    key = load_key(data)
    prove(key, witness, probe)
    gpu = opened(limit=probe.pool.peak + probe.pool.peak // 8)
    keys = [load_key(data), load_key(data)]
    for _ in range(2):
        for key in keys:
            assert prove(key, witness, gpu) == expected(data)
            assert gpu.residents.of(key)
    assert gpu.pool.peak <= gpu.pool.limit


def test_a_proof_leaves_others_their_memory() -> None:
    """What another proof uses is not taken; there is an exception instead."""
    curve = BN254
    gpu, key, other = opened(), chain_key(curve), chain_key(curve)
    backend = backend_on(gpu, curve, Job(threads=1))
    with backend.session(key.demand, key, UNLIMITED):
        device_of(gpu).memory = device_of(gpu).used
        with pytest.raises(gpuprover.OutOfMemory):
            prove(other, chain_witness(curve), gpu)
        with (
            pytest.raises(ValueError, match="one proof at a time"),
            backend.session(key.demand, key, UNLIMITED),
        ):
            pass
    device_of(gpu).memory = 1 << 30
    assert prove(other, chain_witness(curve), gpu) == expected(curve)


def test_another_process_takes_memory() -> None:
    """What is free is asked of the device, each time."""
    data, witness = larger(BN254)
    gpu, key = opened(), load_key(data)
    prove(key, witness, gpu)
    taken = Block(gpu.pool, 1)
    taken.free()
    device_of(gpu).allocate(gpu.device.free_memory() - (1 << 16))
    assert prove(key, witness, gpu) == expected(data)
    gpu.residents.clear()
    device_of(gpu).allocate(gpu.device.free_memory() - (1 << 12))
    with pytest.raises(gpuprover.OutOfMemory):
        prove(key, witness, gpu)
