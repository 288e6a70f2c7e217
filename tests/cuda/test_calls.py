"""What operations ask of CUDA once they are warm: launches, and nothing that takes the driver long."""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gpuprover.backend import Term
from gpuprover.columns import challenge, column, compile_formula
from gpuprover.cpu.points import CpuPoints
from gpuprover.cuda import backend as backend_module
from gpuprover.cuda import cupy_device, probe
from gpuprover.cuda import residency as residency
from gpuprover.cuda.backend import CudaBackend
from gpuprover.cuda.cupy_device import CupyDevice
from gpuprover.cuda.rehearsal import Nothing
from gpuprover.cuda.residency import Residency
from gpuprover.curves import BN254, Group
from gpuprover.demand import UNLIMITED
from gpuprover.job import Job
from gpuprover.limbs import ints_to_words
from gpuprover.polynomial import Direction, Domain, Order
from gpuprover.systems.groth16.key import load_key
from tests.support import cuda_proofs, fake_cupy
from tests.support.fake_cupy import Machine
from tests.support.samples import point_words, random_logs

pytestmark = pytest.mark.kernels_offline
CURVE = BN254
SLOW = (
    *("malloc", "free", "memGetInfo", "hostAlloc", "moduleLoadData"),
    *("streamQuery", "streamCreateWithFlags", "eventCreateWithFlags"),
)
"""What takes the driver's time, or waits for all of a stream."""
LAUNCHES = {True: 55, False: 54}
"""Of a warm proof, with tables and without: 5 sums with 3 sorts, the products and the quotient."""
HOST_CALLS = 1750
"""Of functions, in Python, C or between them, for a warm proof, beside those while the device works."""
LAUNCHES_ALONE = 5
"""Of products and vectors, which are not in a list of launches."""
ROOM = 2600 << 10
"""Bytes of a pool where the larger key of the tests has short tables."""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, quick_sums: None) -> Machine:
    monkeypatch.setattr(probe, "_lost", {})
    monkeypatch.setattr(cupy_device, "load_cubin", lambda program, *_: fake_cupy.fake_cubin(program))
    monkeypatch.setattr(backend_module, "OnStream", fake_cupy.Told)
    machine = Machine()
    machine.install(monkeypatch)
    return machine


@pytest.fixture
def gpu(machine: Machine) -> Residency:
    return Residency(opened(machine))


def opened(machine: Machine) -> CupyDevice:
    device = CupyDevice(0)
    device.machine = machine  # type: ignore[attr-defined]
    return device


def warm(machine: Machine, call: Callable[[], object], before: int = 1) -> Counter[str]:
    """What the calls after the first ones ask of CUDA; the same each time."""
    for _ in range(before):
        call()
    counts = []
    for _ in range(2):
        machine.calls.clear()
        call()
        counts.append(Counter(machine.calls))
    a, b = ({name: count for name, count in c.items() if name != "eventQuery"} for c in counts)
    assert a == b
    return counts[1]


def nothing_slow(calls: Counter[str]) -> bool:
    return not any(calls[name] for name in SLOW)


@pytest.mark.parametrize("order", Order)
def test_a_transform(machine: Machine, gpu: Residency, order: Order) -> None:
    backend, domain = cuda_proofs.backend_on(gpu, CURVE, Job(threads=1)), Domain(CURVE.scalar, 5)
    v = backend.upload(np.zeros((32, CURVE.scalar.limbs), np.uint64))
    calls = warm(machine, lambda: backend.ntt(v, domain, Direction.FORWARD, order))
    assert nothing_slow(calls)
    assert calls["launchKernel"] == 1
    assert not calls["eventQuery"], "many are asked for without a wait between them"


def test_columns(machine: Machine, gpu: Residency) -> None:
    """A launch for each; two for values, three for a running product: inverses, ratios, products."""
    backend, n = cuda_proofs.backend_on(gpu, CURVE, Job(threads=1)), 32
    a, b = (backend.powers(n, base, 5) for base in (3, 7))
    formula = compile_formula([column("a") * column("b", 1) + challenge("y")])
    operations: dict[str, tuple[int, Callable[[], object]]] = {
        "evaluate": (1, lambda: backend.free(*backend.evaluate(formula, {"a": a, "b": b}, {"y": 3}))),
        "combine": (1, lambda: backend.free(backend.combine([Term(a, 3), Term(b, 4, 2)]))),
        "values": (2, lambda: backend.values_at([(a, 3), (b, 4)])),
        "divide": (1, lambda: backend.free(*backend.divide(a, 9))),
        "running product": (3, lambda: backend.free(backend.running_product(a, b))),
        "gather": (1, lambda: backend.free(backend.gather(a, np.arange(9, dtype=np.uint32)))),
        "interleave": (1, lambda: backend.free(backend.interleave([a, b]))),
    }
    for name, (launches, operation) in operations.items():
        calls = warm(machine, operation, before=20)  # all pinned buffers have been in use
        assert nothing_slow(calls), name
        assert calls["launchKernel"] == launches, name


@pytest.mark.parametrize("group", Group)
def test_a_sum(machine: Machine, gpu: Residency, group: Group, rng: random.Random) -> None:
    backend, n = cuda_proofs.backend_on(gpu, CURVE, Job(threads=1)), 24
    scalars = ints_to_words([rng.randrange(CURVE.r) for _ in range(n)], CURVE.scalar.limbs)
    bases = backend.prepare_bases(group, point_words(CURVE, group, random_logs(rng, n)))
    v = backend.upload(scalars)
    assert nothing_slow(warm(machine, lambda: backend.msm(bases, v)))
    assert nothing_slow(warm(machine, lambda: backend.msm(bases, scalars)))
    for handle in (v, bases):
        backend.free(handle)
    assert gpu.pool.used == 0
    assert gpu.pool.kept == machine.used
    gpu.residents.clear()
    assert machine.used == 0


@pytest.mark.parametrize("tables", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_proof(machine: Machine, tables: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residency, "SHORTEST_TABLE", 1 if tables else 1 << 30)
    monkeypatch.setattr(residency, "SETTLED_SECONDS", 1e6)
    data, witness = cuda_proofs.larger(CURVE)
    gpu, key = Residency(opened(machine), ROOM), load_key(data)
    calls = warm(machine, lambda: cuda_proofs.prove(key, witness, gpu), before=2)
    assert any(map(residency.has_multiples, (e.kind for e in gpu.residents.of(key)))) is tables
    assert nothing_slow(calls)
    assert calls["launchKernel"] == LAUNCHES[tables]
    machine.beside.clear()
    busy: list[bool] = []
    real = CpuPoints.linear_combination

    def combine(self: CpuPoints, *arguments: Any) -> Any:
        busy.append(machine.busy > 0)
        return real(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CpuPoints, "linear_combination", combine)
        cuda_proofs.prove(key, witness, gpu)
    # Where a sum has several sets of buckets, these are added up in between.
    settled = gpu.residents.noted(key)
    assert settled is not None
    assert len(busy) == 6 + sum(len(s.names) for s in settled.layout.sums if s.plan.sets > 1)
    here, after = busy[:3], busy[-3:]
    assert here + after == [True] * 3 + [False] * 3, "multiples of points are made while the device works"
    # The sorts of C and H, the sum in G2, and the reductions of all five.
    assert [machine.beside[kernel] for kernel in ("scatter_buckets", "accumulate")] == [2, 1]
    assert machine.beside["combine"] == sum(
        kernel == "combine" for kernel, *_ in machine.launches[-LAUNCHES[tables] :]
    )
    # Where there is little memory, one after another.
    machine.beside.clear()
    cuda_proofs.prove(load_key(data), witness, Residency(gpu.device, gpu.pool.used - (200 << 10)))
    assert [machine.beside[kernel] for kernel in ("scatter_buckets", "accumulate")] == [0, 1]


def test_what_the_host_does_for_a_warm_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of functions, which do not become more with the circuit's size, and no arithmetic for tables."""
    monkeypatch.setattr(residency, "SHORTEST_TABLE", 1)
    data, witness = cuda_proofs.larger(CURVE)
    gpu, key = Residency(Nothing(cuda_proofs.opened().device)), load_key(data)
    for _ in range(3):
        cuda_proofs.prove(key, witness, gpu)

    def refuse(*_: object) -> int:
        raise AssertionError("a root of unity is taken")

    monkeypatch.setattr(Domain, "root_of_unity", refuse)
    calls, asked = Counter[str](), Counter[str]()
    real = CudaBackend.msm_many

    def msm_many(self: CudaBackend, requests: Any, meanwhile: Callable[[], None]) -> Any:
        def uncounted() -> None:
            count = sys.getprofile()
            sys.setprofile(None)
            meanwhile()
            sys.setprofile(count)

        return real(self, requests, uncounted)

    monkeypatch.setattr(CudaBackend, "msm_many", msm_many)
    sys.setprofile(lambda frame, event, argument: calls.update([event]))
    try:
        cuda_proofs.prove(key, witness, gpu)
    finally:
        sys.setprofile(None)
    assert calls["call"] + calls["c_call"] < HOST_CALLS, calls
    for name in ("run", "launch"):
        monkeypatch.setattr(Nothing, name, lambda *_, name=name, **__: asked.update([name]))
    cuda_proofs.prove(key, witness, gpu)
    # A sort each for w, w without its public part and h; two lists for each sum; one for the quotient.
    assert (asked["run"], asked["launch"]) == (3 + 2 * 5 + 1, LAUNCHES_ALONE)


def test_what_was_settled_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that could have no tables gets them when it can; not at once, and not never."""
    key = load_key(cuda_proofs.larger(CURVE)[0])
    gpu = Residency(Nothing(cuda_proofs.opened().device))
    backend = cuda_proofs.backend_on(gpu, CURVE, Job(threads=1))

    def has_tables() -> bool:
        with backend.session(key.demand, key, UNLIMITED):
            assert backend._session is not None
            return any(map(residency.has_multiples, backend._session.layout.resident()))

    for _ in range(3):  # of a circuit that is too small for them
        assert not has_tables()
        monkeypatch.setattr(residency, "SHORTEST_TABLE", 1 if gpu.residents.noted(key) else 1 << 10)
    later = residency.time.monotonic() + residency.SETTLED_SECONDS
    monkeypatch.setattr(residency.time, "monotonic", lambda: later)
    assert has_tables()
