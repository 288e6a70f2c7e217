"""The CUDA backend on a GPU against the CPU's, at sizes that the emulated device cannot do.

What is small and has edges is in the shared suites, which take the backend ``cuda``, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpuprover.bench.operations import KINDS, full_width

import gpuprover
from gpuprover.backend import Backend, Form
from gpuprover.circuits import Circuit, bits_circuit, chain_circuit, merkle_circuit
from gpuprover.curves import BLS12_381, BN254, CurveParams, Group
from gpuprover.devices import open_backend
from gpuprover.errors import DeviceError
from gpuprover.job import Job
from gpuprover.limbs import Words, generator
from gpuprover.polynomial import Coset, Direction, Domain, Order
from gpuprover.systems.midnight import prover as midnight
from tests.support import cuda_midnight
from tests.support.cuda_plonk import SAMPLES
from tests.support.plonk import Sample

pytestmark = pytest.mark.gpu
CUDA = "cuda"
SEED = 20240613


def opened(device: str, curve: CurveParams) -> Backend:
    try:
        return open_backend(device, curve, Job())
    except DeviceError as error:
        pytest.skip(error.message)


@pytest.fixture
def cuda(curve: CurveParams) -> Backend:
    return opened(CUDA, curve)


@pytest.fixture
def cpu(curve: CurveParams, cuda: Backend) -> Backend:
    return opened("cpu", curve)


@pytest.fixture
def numbers() -> np.random.Generator:
    return np.random.default_rng(SEED)


# Transforms ----------------------------------------------------------------------------------

TRANSFORMS = [*product(Direction, Order, (Coset.NONE, Coset.ODD))]


@pytest.mark.parametrize("log", [*range(1, 21), 22])
def test_transforms(
    log: int, curve: CurveParams, cuda: Backend, cpu: Backend, numbers: np.random.Generator
) -> None:
    """All kinds where it is quick; beyond, the two that proofs use."""
    domain = Domain(curve.scalar, log)
    words = full_width(curve, domain.size, numbers)
    for how in TRANSFORMS if log <= 16 else [TRANSFORMS[0], TRANSFORMS[-1]]:
        a, b = (backend.ntt(backend.upload(words), domain, *how) for backend in (cuda, cpu))
        assert np.array_equal(cuda.download(a), cpu.download(b)), how
        cuda.free(a)


@pytest.mark.parametrize("log", [1, 7, 12, 17, 20])
def test_changes_of_cosets(
    log: int, curve: CurveParams, cuda: Backend, cpu: Backend, numbers: np.random.Generator
) -> None:
    domain = Domain(curve.scalar, log)
    words = full_width(curve, domain.size, numbers)
    a, b = (backend.to_coset_in_place(backend.upload(words), domain, Coset.ODD) for backend in (cuda, cpu))
    assert np.array_equal(cuda.download(a), cpu.download(b))
    cuda.free(a)


# Multi-scalar multiplications ------------------------------------------------------------------


@pytest.fixture
def points(cpu: Backend, curve: CurveParams, group: Group, numbers: np.random.Generator) -> Words:
    return cpu.fixed_base_mul(group, generator(curve, group), full_width(curve, 1 << 16, numbers))


@pytest.mark.parametrize("n", [1, 31, 33, 1000, 1 << 12, (1 << 14) + 1, 1 << 16])
def test_sums(
    n: int,
    curve: CurveParams,
    group: Group,
    cuda: Backend,
    cpu: Backend,
    points: Words,
    numbers: np.random.Generator,
) -> None:
    """Every kind of scalars; equal points and infinity among them."""
    bases = points[:n].copy()
    bases[n // 2] = 0
    bases[n // 3 :: 7] = bases[n // 3]
    ours, theirs = cuda.prepare_bases(group, bases), cpu.prepare_bases(group, bases)
    multiples = cuda.prepare_bases(group, bases, 1 << 30)
    for kind, make in KINDS.items():
        scalars = make(curve, n, numbers)
        expected = cpu.msm(theirs, scalars)
        assert np.array_equal(cuda.msm(ours, scalars), expected), kind
        vector = cuda.upload(scalars)
        assert np.array_equal(cuda.msm(ours, vector), expected), f"{kind}, on the device"
        assert np.array_equal(cuda.msm(multiples, vector), expected), f"{kind}, with tables"
        cuda.free(vector)
    cuda.free(ours, multiples)


@pytest.mark.parametrize("rounds", [1, 3])
def test_sums_in_pairs(
    rounds: int,
    curve: CurveParams,
    group: Group,
    cuda: Backend,
    cpu: Backend,
    points: Words,
    numbers: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With rounds of affine additions before the accumulation."""
    from gpuprover.cuda import msm_plan, residency

    def choose(*given: Any) -> msm_plan.MsmPlan:
        plan = msm_plan.choose_plan(*given)
        return replace(plan, tuning=replace(plan.tuning, rounds=rounds))

    monkeypatch.setattr(residency, "choose_plan", choose)
    residency._choose.cache_clear()
    try:
        bases = points.copy()
        bases[::5] = bases[5]
        bases[3::7] = 0
        ours, theirs = cuda.prepare_bases(group, bases), cpu.prepare_bases(group, bases)
        for kind, make in KINDS.items():
            scalars = make(curve, len(bases), numbers)
            assert np.array_equal(cuda.msm(ours, scalars), cpu.msm(theirs, scalars)), kind
        cuda.free(ours)
    finally:
        residency._choose.cache_clear()


def test_sums_do_not_change_from_run_to_run(
    curve: CurveParams, group: Group, cuda: Backend, points: Words, numbers: np.random.Generator
) -> None:
    """What races would show by."""
    bases, scalars = cuda.prepare_bases(group, points), full_width(curve, len(points), numbers)
    assert len({cuda.msm(bases, scalars).tobytes() for _ in range(12)}) == 1
    cuda.free(bases)


def test_multiples_of_a_point(
    curve: CurveParams, group: Group, cuda: Backend, cpu: Backend, numbers: np.random.Generator
) -> None:
    """As many as a set-up asks for at a time, and a remainder."""
    scalars = full_width(curve, 50_001, numbers)
    scalars[:3] = 0
    scalars[1, 0], scalars[2, -1] = 1, 1
    base = generator(curve, group)
    assert np.array_equal(cuda.fixed_base_mul(group, base, scalars), cpu.fixed_base_mul(group, base, scalars))


# Sparse products -----------------------------------------------------------------------------


@pytest.mark.parametrize("longest", [4, 50_000])
def test_sparse_products(
    longest: int, curve: CurveParams, cuda: Backend, cpu: Backend, numbers: np.random.Generator
) -> None:
    """Two matrices of short rows, some empty; and with one row that is much longer than the others."""
    rows, columns, count = 1 << 14, 5000, 60_000
    row = numbers.integers(0, rows, count, dtype=np.uint32)
    row[:longest] = 77
    where = (
        numbers.integers(0, 2, count, dtype=np.uint32),
        row,
        numbers.integers(0, columns, count, dtype=np.uint32),
    )
    values, scalars = (full_width(curve, n, numbers) for n in (count, columns))
    results = []
    for backend in (cuda, cpu):
        matrices = backend.prepare_matrices(2, rows, *where, values, Form.DOUBLE_MONTGOMERY)
        results.append([backend.download(v) for v in backend.spmv(matrices, scalars)])
    for ours, theirs in zip(*results, strict=True):
        assert np.array_equal(ours, theirs)


# Proofs ----------------------------------------------------------------------------------------

CIRCUITS: dict[str, Callable[[CurveParams], Circuit]] = {
    "one constraint": lambda curve: chain_circuit(1, curve),
    "chain": lambda curve: chain_circuit(5000, curve),
    "bits": lambda curve: bits_circuit(20_000, curve, seed=SEED),
    "merkle": lambda curve: merkle_circuit(5, curve),
}


@pytest.mark.parametrize("name", CIRCUITS)
def test_proofs_are_the_cpus_byte_for_byte(
    name: str, curve: CurveParams, cuda: Backend, tmp_path: Path
) -> None:
    """Under one blinding; several of one key, because tables are made after the first."""
    r1cs, wtns, zkey = (tmp_path / f"circuit.{kind}" for kind in ("r1cs", "wtns", "zkey"))
    CIRCUITS[name](curve).write(r1cs, wtns)
    gpuprover.setup(r1cs, zkey, insecure=True)
    key = gpuprover.load_key(zkey)
    expected = gpuprover.prove(key, wtns, device="cpu", blinding=(3, 5))
    for _ in range(4):
        found = gpuprover.prove(key, wtns, device=CUDA, blinding=(3, 5))
        assert found.device.startswith(CUDA)
        assert (found.proof, found.public_signals) == (expected.proof, expected.public_signals)
    free = gpuprover.prove(key, wtns, device=CUDA)
    assert free.proof != expected.proof
    assert gpuprover.verify(key.verification_key, free.public_signals, free.proof)


@pytest.mark.parametrize(
    ("protocol", "curve"),
    [("plonk", BN254), ("plonk", BLS12_381), ("fflonk", BN254)],
    ids=["plonk-bn254", "plonk-bls12-381", "fflonk-bn254"],
)
@pytest.mark.parametrize("name", CIRCUITS)
def test_proofs_of_gates_are_the_cpus_byte_for_byte(
    name: str, protocol: str, curve: CurveParams, tmp_path: Path
) -> None:
    """The first proof brings the key, and the second may make tables."""
    opened(CUDA, curve)
    r1cs, wtns, zkey = (tmp_path / f"circuit.{kind}" for kind in ("r1cs", "wtns", "zkey"))
    CIRCUITS[name](curve).write(r1cs, wtns)
    gpuprover.setup(r1cs, zkey, protocol=protocol, insecure=True)
    key, blinding = gpuprover.load_key(zkey), tuple(range(3, 14 if protocol == "plonk" else 12))
    expected = gpuprover.prove(key, wtns, device="cpu", blinding=blinding)
    for _ in range(4):
        found = gpuprover.prove(key, wtns, device=CUDA, blinding=blinding)
        assert found.device.startswith(CUDA)
        assert (found.proof, found.public_signals) == (expected.proof, expected.public_signals)


@pytest.mark.parametrize("which", SAMPLES, ids=lambda which: f"{which.protocol} {which.name}")
def test_snarkjs_proofs_of_gates(which: Sample) -> None:
    opened(CUDA, which.curve)
    for _ in range(2):
        found = gpuprover.prove(which.key, which.witness, device=CUDA, blinding=which.blinding)
        assert found.proof == which.proof


@pytest.mark.parametrize("name", ["hello", "increment", "fallible"])
def test_proofs_of_midnight(name: str) -> None:
    gpu = opened(CUDA, BLS12_381)
    key, statement = cuda_midnight.key(name), cuda_midnight.statement(name)
    for _ in range(2):
        proof = midnight.prove(key, statement, gpu, cuda_midnight.SEED)
        assert proof.data == cuda_midnight.expected(name)


def test_keys_in_turns(curve: CurveParams, cuda: Backend, tmp_path: Path) -> None:
    keys = []
    for i, constraints in enumerate((300, 3000, 301)):
        r1cs, wtns, zkey = (tmp_path / f"{i}.{kind}" for kind in ("r1cs", "wtns", "zkey"))
        chain_circuit(constraints, curve, x=7 + i).write(r1cs, wtns)
        gpuprover.setup(r1cs, zkey, insecure=True)
        key = gpuprover.load_key(zkey)
        keys.append((key, wtns, gpuprover.prove(key, wtns, device="cpu", blinding=(1, i)).proof))
    for _ in range(3):
        for i, (key, wtns, expected) in enumerate(keys):
            assert gpuprover.prove(key, wtns, device=CUDA, blinding=(1, i)).proof == expected
