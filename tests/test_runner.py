"""One proof where it was placed: keys that stay and change, plans, errors."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

import gpuprover
from gpuprover import runner as module
from gpuprover.curves import BN254, CurveParams
from gpuprover.demand import UNLIMITED, Budget, Demand, MemoryPlan
from gpuprover.devices import open_backend
from gpuprover.errors import (
    Cancelled,
    InvalidInput,
    OutOfMemory,
    ProofGenerationFailed,
    Timeout,
    UnsatisfiedWitness,
    from_record,
    to_record,
)
from gpuprover.executor import KeyChanged, KeyInfo, ProofRequest, budget_of, threads_of
from gpuprover.formats.wtns import read_witness
from gpuprover.job import Job
from gpuprover.runner import Runner
from gpuprover.scheduler import Degrade, DeviceInfo, Placement, choose
from gpuprover.systems.groth16.documents import parse_verification_key
from gpuprover.witness_source import looked_at
from tests.support.paths import VECTORS

SECRET = 20261121


@pytest.fixture
def key(tmp_path: Path) -> str:
    return str(shutil.copy(VECTORS / "chain5.bn254.zkey", tmp_path / "c.zkey"))


def request(info: KeyInfo, witness: Any = None, **options: Any) -> ProofRequest:
    witness = VECTORS / "chain5.bn254.wtns" if witness is None else witness
    return ProofRequest(1, info.path, info.identity, looked_at(witness), **options)


def test_a_proof_is_that_of_the_library(curve: CurveParams) -> None:
    runner, stem = Runner(), VECTORS / f"chain5.{curve.name}"
    info = runner.load(f"{stem}.zkey")
    result = runner.prove(request(info, f"{stem}.wtns"))
    assert result.public_signals == json.loads(Path(f"{stem}.public.json").read_text())
    assert gpuprover.verify(info.verification_key, result.public_signals, result.proof)
    assert (info.curve, info.n_public, result.device) == (curve.name, 2, "cpu")


def test_what_is_known_of_a_key_crosses_processes(key: str) -> None:
    info = Runner().load(key)
    assert KeyInfo.from_json(json.loads(json.dumps(info.to_json()))) == info
    assert parse_verification_key(info.verification_key).digest == info.digest
    chosen = choose("auto", info.shape, [DeviceInfo("cpu", "cpu", threads=2, path="portable")], _times())
    assert chosen.device == "cpu"
    assert chosen.plan == open_backend("cpu", BN254, Job()).plan(gpuprover.load_key(key).demand, UNLIMITED)


def _times() -> Any:
    from gpuprover.calibration import Calibration

    return Calibration()


def test_a_key_is_mapped_once(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []
    monkeypatch.setattr(module, "load_key", lambda path: (loads.append(path), gpuprover.load_key(path))[1])
    runner = Runner()
    info = runner.load(key, pin=True)
    for _ in range(3):
        runner.prove(request(info))
    runner.shrink()
    runner.prove(request(info))
    assert loads == [key]
    runner.unload(key)
    assert runner.keys.statistics.entries == 0
    runner.prove(request(info))
    assert loads == [key, key]


def test_keys_beyond_the_bound_are_let_go(key: str) -> None:
    other = shutil.copy(key, key + "2")
    runner = Runner(key_bytes=os.path.getsize(key))
    runner.load(key)
    runner.load(other)
    assert runner.keys.statistics.entries == 1
    runner.load(key, pin=True)
    runner.load(other, pin=True)
    assert runner.keys.statistics.entries == 2


def test_a_file_that_changed_is_planned_again(key: str, tmp_path: Path) -> None:
    runner = Runner()
    info = runner.load(key, pin=True)
    shutil.copy(VECTORS / "chain5.bls12-381.zkey", tmp_path / "new")
    os.replace(tmp_path / "new", key)
    with pytest.raises(KeyChanged, match=r"c\.zkey: the file has changed"):
        runner.prove(request(info))
    again = runner.load(key)
    assert (again.curve, again.path) == ("bls12-381", key)
    result = runner.prove(request(again, VECTORS / "chain5.bls12-381.wtns"))
    assert gpuprover.verify(again.verification_key, result.public_signals, result.proof)
    assert runner.keys.statistics.entries == 1
    runner.shrink()
    assert runner.keys.statistics.entries == 1, "the pin is the path's"
    assert isinstance(from_record(to_record(KeyChanged("x"))), KeyChanged)


def test_a_key_that_is_missing_or_bad(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no\.zkey: cannot read: No such file"):
        Runner().load(str(tmp_path / "no.zkey"))
    (tmp_path / "bad.zkey").write_bytes(b"zkey")
    with pytest.raises(gpuprover.MalformedFile):
        Runner().load(str(tmp_path / "bad.zkey"))


def test_limits_of_a_run(key: str) -> None:
    runner, cancel = Runner(), threading.Event()
    info = runner.load(key)
    cancel.set()
    with pytest.raises(Cancelled):
        runner.prove(request(info), cancel=cancel)
    with pytest.raises(Timeout):
        runner.prove(request(info, timeout=1e-9))
    with pytest.raises(UnsatisfiedWitness):
        values = read_witness(VECTORS / "chain5.bn254.wtns").values.copy()
        values[-1, 0] ^= 1
        runner.prove(request(info, values))
    phases: list[str] = []
    runner.prove(request(info), progress=lambda p: phases.append(p.phase))
    assert "msm" in phases


def test_an_unexpected_failure_says_nothing_of_the_data(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Runner()
    info = runner.load(key)

    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError(f"value {SECRET}")

    monkeypatch.setattr(module, "prove_placed", broken)
    with pytest.raises(ProofGenerationFailed, match=r"ZeroDivisionError while proving") as caught:
        runner.prove(request(info))
    assert str(SECRET) not in str(caught.value)
    assert caught.value.__cause__ is None
    assert str(SECRET) not in repr(request(info, [1, SECRET]))
    monkeypatch.setattr(module, "prove_placed", lambda *_, **__: bytearray(1 << 62))
    with pytest.raises(OutOfMemory):
        runner.prove(request(info))


class Planning:
    """A backend that knows some plans, and takes the first that a budget allows."""

    def __init__(self, *plans: MemoryPlan) -> None:
        self.plans, self.asked = plans, 0

    def plan(self, demand: Demand, budget: Budget) -> MemoryPlan:
        self.asked += 1
        for plan in self.plans:
            if budget.device is None or plan.key + plan.tables + plan.arena <= budget.device:
                return plan
        raise OutOfMemory("less")


MB = 1 << 20
ALL = MemoryPlan(100 * MB, 300 * MB, 50 * MB, 1)
PLAIN = MemoryPlan(100 * MB, 2 * MB, 40 * MB, 1)
SLICED = MemoryPlan(50 * MB, 2 * MB, 40 * MB, 1)
LEANEST = MemoryPlan(0, 0, 30 * MB, 1)


@pytest.mark.parametrize(
    ("known", "found"),
    [
        ([ALL, PLAIN, SLICED, LEANEST], (ALL, PLAIN, LEANEST)),
        ([ALL, LEANEST], (ALL, LEANEST)),
        ([PLAIN], (PLAIN,)),
        ([LEANEST], (LEANEST,)),
    ],
)
def test_plans_for_a_gpu_go_down(
    known: list[MemoryPlan], found: tuple[MemoryPlan, ...], key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With tables, without, and what needs the least."""
    backend = Planning(*known)
    monkeypatch.setattr(module, "open_backend", lambda *_: backend)
    assert module._plans("cuda:0", gpuprover.load_key(key), Job(threads=1)) == found
    assert backend.asked < 20


def test_plans_for_a_cpu_go_down_to_one_thread(key: str) -> None:
    loaded = gpuprover.load_key(key)
    best, lean = module._plans("cpu", loaded, Job(threads=2))
    assert lean == open_backend("cpu", BN254, Job(threads=1)).plan(loaded.demand, UNLIMITED)
    assert lean.total < best.total
    assert module._plans("cpu", loaded, Job(threads=1)) == (lean,)


def test_a_lean_proof_is_made_within_its_plan(key: str) -> None:
    runner = Runner()
    info = runner.load(key, job=Job(threads=2))
    lean = info.plans["cpu"][-1]
    need = lean.tables + lean.arena
    assert runner.prove(request(info, budget=need)).device == "cpu"
    with pytest.raises(OutOfMemory):
        runner.prove(request(info, budget=need - 1))


def test_the_budget_of_a_placement(key: str) -> None:
    plan = Runner().load(key).plans["cpu"][0]

    def placed(kind: str, level: Degrade, step: int = 0, threads: int = 2) -> Placement:
        return Placement("cuda:0", kind, threads, plan, step, frozenset(), 0, 1.0, 0.0, level)

    assert budget_of(placed("cpu", Degrade.ALONE)) is None
    assert threads_of(placed("cpu", Degrade.ALONE)) == 2
    assert budget_of(placed("cpu", Degrade.NO_TABLES, 1)) == plan.tables + plan.arena
    assert threads_of(placed("cpu", Degrade.NO_TABLES, 1)) == 1
    assert threads_of(placed("cuda", Degrade.NO_TABLES, 1)) == 2
    assert threads_of(placed("cuda", Degrade.NONE, threads=0)) == 1
    assert budget_of(placed("cuda", Degrade.NONE)) is None
    assert budget_of(placed("cuda", Degrade.NO_TABLES)) == plan.key + plan.tables + plan.arena
