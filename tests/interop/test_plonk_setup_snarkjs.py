"""Set-ups of PLONK and FFLONK against snarkjs: keys of random circuits, byte for byte."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from gpuprover.backend import Backend
from gpuprover.curves import BLS12_381, BN254, CurveParams
from gpuprover.devices import open_backend
from gpuprover.formats.r1cs import read_r1cs, write_r1cs
from gpuprover.job import Job
from gpuprover.systems.fflonk import setup as fflonk
from gpuprover.systems.plonk import setup as plonk
from tests.interop.conftest import Oracle, cached
from tests.support.containers import make_ptau
from tests.support.plonk_reference import random_r1cs

POWER = 9


@pytest.fixture(scope="module")
def wide_ptau(oracle: Oracle) -> Callable[[Backend], Path]:
    """Powers of tau for 2^9 rows in PLONK, for 2^6 in FFLONK."""

    def make(backend: Backend) -> Path:
        def write(folder: Path) -> None:
            (folder / "p.ptau").write_bytes(make_ptau(backend.curve, POWER, 1111, 2222, 3333, backend))

        return cached(f"ptau-{backend.curve.name}-known", str(POWER).encode(), write) / "p.ptau"

    return make


@pytest.mark.parametrize("curve", [BN254, BLS12_381], ids=lambda c: c.name)
def test_keys_of_random_circuits(
    curve: CurveParams,
    oracle: Oracle,
    wide_ptau: Callable[[Backend], Path],
    rng: random.Random,
    tmp_path: Path,
) -> None:
    backend = open_backend("cpu", curve, Job(threads=1))
    ptau, circuit = wide_ptau(backend), tmp_path / "random.r1cs"
    systems = {"plonk": plonk.setup, "fflonk": fflonk.setup} if curve == BN254 else {"plonk": plonk.setup}
    for constraints, wires, public in ((1, 3, 0), (3, 6, 2), (9, 40, 5)):
        write_r1cs(circuit, random_r1cs(curve, rng, constraints, wires, public))
        for name, setup in systems.items():
            theirs, ours = tmp_path / "theirs.zkey", tmp_path / "ours.zkey"
            oracle(f"{name}.setup", circuit, ptau, theirs)
            setup(read_r1cs(circuit), ptau, ours, backend)
            assert ours.read_bytes() == theirs.read_bytes(), (name, constraints, wires, public)


def test_fflonk_key_without_gates(
    oracle: Oracle, wide_ptau: Callable[[Backend], Path], rng: random.Random, tmp_path: Path
) -> None:
    backend = open_backend("cpu", BN254, Job(threads=1))
    circuit = tmp_path / "none.r1cs"
    write_r1cs(circuit, random_r1cs(BN254, rng, 0, 3, 0))
    theirs, ours = tmp_path / "theirs.zkey", tmp_path / "ours.zkey"
    oracle("fflonk.setup", circuit, wide_ptau(backend), theirs)
    fflonk.setup(read_r1cs(circuit), wide_ptau(backend), ours, backend)
    assert ours.read_bytes() == theirs.read_bytes()
