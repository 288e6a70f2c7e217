"""A key's sizes before there is a key."""

from __future__ import annotations

from typing import Any

import pytest

import gpuprover
from gpuprover.curves import BLS12_381, BN254
from gpuprover.demand import UNLIMITED
from gpuprover.devices import open_backend
from gpuprover.formats.r1cs import read_r1cs
from gpuprover.job import Job
from gpuprover.systems.system import system_named
from tests.support.plonk import FFLONK, PLONK, Sample, sample
from tests.support.running import Run

SAMPLES = [*(sample(name) for name in PLONK), *(sample(name, "fflonk") for name in FFLONK)]


@pytest.fixture(scope="module")
def backends() -> dict[Any, Any]:
    return {curve: open_backend("cpu", curve, Job(threads=1)) for curve in (BN254, BLS12_381)}


@pytest.mark.parametrize("of", SAMPLES, ids=lambda s: f"{s.name}-{s.protocol}")
def test_a_circuits_key_has_the_sizes_that_were_told(of: Sample, backends: Any) -> None:
    circuit, key = read_r1cs(of.circuit), gpuprover.load_key(of.key)
    found = system_named(of.protocol).outline(circuit, backends[of.curve])
    assert (found.size, found.constraints) == (of.key.stat().st_size, key.constraints)
    plans = [backends[of.curve].plan(demand, UNLIMITED) for demand in (found.demand, key.demand)]
    assert plans[0] == plans[1]


@pytest.mark.parametrize("of", [SAMPLES[0], SAMPLES[-1]], ids=lambda s: f"{s.name}-{s.protocol}")
def test_estimate_of_a_circuit_is_that_of_its_key(run: Run, of: Sample) -> None:
    given = ["estimate", "--proof-time", 1, "--json"]
    by_circuit = run(*given, "--r1cs", of.circuit, "--protocol", of.protocol).answer
    by_key = run(*given, "--zkey", of.key).answer
    for answer in (by_circuit, by_key):
        answer["memory"][0].pop("basis")
    assert by_circuit == by_key
