"""Setup from 2^15 rows on: snarkjs's circuit hash takes a point more, which may lie outside the section."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import gpuprover
from gpuprover.circuits import chain_circuit
from gpuprover.curves import CURVES, CurveParams
from gpuprover.devices import open_backend
from gpuprover.job import Job
from tests.support.containers import make_ptau


@pytest.mark.slow
@pytest.mark.parametrize("power", [15, 16])
@pytest.mark.parametrize("curve", CURVES, ids=lambda c: c.name)
def test_equal_bytes(curve: CurveParams, power: int, oracle: Any, tmp_path: Path) -> None:
    r1cs, wtns, ptau, ours, theirs = (tmp_path / f"f.{s}" for s in ("r1cs", "wtns", "ptau", "ours", "theirs"))
    chain_circuit(20_000, curve).write(r1cs, wtns)
    ptau.write_bytes(make_ptau(curve, power, 123, 456, 789, open_backend("cpu", curve, Job())))
    gpuprover.setup(r1cs, ours, ptau=ptau)
    oracle("zKey.newZKey", r1cs, ptau, theirs)
    assert ours.read_bytes() == theirs.read_bytes()
