"""estimate: the formula, and by measured times."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpuprover import calibration, sizing
from gpuprover.calibration import Calibration, Entry
from gpuprover.curves import curve_by_name
from gpuprover.demand import MemoryPlan
from gpuprover.scheduler import TIERS, DeviceInfo
from gpuprover.settings import WORKER_BYTES
from gpuprover.sizing import Choice, Machine, plan_memory, tier_memory
from gpuprover.version import VERSION
from tests.support.paths import VECTORS
from tests.support.running import Run

BN254 = calibration.work_name("groth16", curve_by_name("bn254"))
GIB, MIB = 1 << 30, 1 << 20
CPU = DeviceInfo("cpu", "cpu", "a processor", "ifma", 4)
GPU = DeviceInfo("cuda:0", "cuda", "a GPU", "sm_90", 0, 80 * GIB)
HOST = Machine(cpus=4, siblings=1, cache=32 * MIB, memory=64 * GIB)


def times(cpu: tuple[tuple[int, float, float], ...], gpu: tuple[tuple[int, float, float], ...] = ()) -> Any:
    """A calibration of these rows: constraints, seconds on one thread, seconds that threads share."""
    kept = [Entry("cpu", CPU.model, CPU.path, BN254, cpu, version=VERSION, origin="this test")]
    if gpu:
        kept.append(Entry("cuda", GPU.model, GPU.path, BN254, gpu, version=VERSION, origin="too"))
    return Calibration(kept)


def measured(rows: Any, constraints: int = 1000, cores: int = 4, **changes: Any) -> sizing.Estimate:
    given = {
        "devices": [CPU],
        "at_once": None,
        "memory": [plan_memory(PLAN, 0.73)],
        "machine": HOST,
    }
    given |= changes
    return sizing.measured(rows, BN254, constraints=constraints, cores=cores, **given)


PLAN = MemoryPlan(key=100 * MIB, tables=MIB, arena=9 * MIB, host=0)


# The formula ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cores", "each", "seconds", "expected"),
    [(8, 2, 15.0, 960.0), (8, 1, 15.0, 1920.0), (4, 4, 1.0, 3600.0), (8, 16, 15.0, 120.0)],
)
def test_the_formula_divides_by_what_it_calls_proofs_per_core(
    cores: int, each: int, seconds: float, expected: float
) -> None:
    assert sizing.by_formula(cores, each, seconds) == pytest.approx(expected)


def test_the_command_gives_what_guides_give(run: Run) -> None:
    answer = run("estimate", "--cores", 8, "--proofs-per-core", 2, "--proof-time", 15, "--json").answer
    assert answer["ok"] is True
    assert (answer["proofs_per_hour"], answer["proofs_at_once"], answer["cores_per_proof"]) == (960.0, 4, 2)
    # Four at once, by the tiers that people know.
    assert [m["proof"] for m in answer["memory"]] == [
        [GIB // 2, GIB],
        [GIB, 4 * GIB],
        [4 * GIB, 16 * GIB],
    ]
    assert [m["total"] for m in answer["memory"]] == [
        [2 * GIB, 4 * GIB],
        [4 * GIB, 16 * GIB],
        [16 * GIB, 64 * GIB],
    ]
    told = " ".join(answer["cautions"])
    for part in ("divides", "not make 3,840", "at most 1,920", "672 an hour", "GPU", "bandwidth", "small"):
        assert part in told


def test_the_same_option_has_an_honest_name(run: Run) -> None:
    given = ("estimate", "--cores", 8, "--proof-time", 15, "--json", "--constraints", 5000)
    honest = run(*given, "--cores-per-proof", 2).answer
    assert honest == run(*given, "--proofs-per-core", 2).answer
    assert [m["proof"] for m in honest["memory"]] == [[GIB, 4 * GIB]]


def test_cores_that_are_left_over_and_proofs_larger_than_the_machine_are_told() -> None:
    memory = [tier_memory(TIERS[0], 0.73)]
    seven = sizing.estimate(7, 2, 10.0, memory, HOST)
    assert seven.per_hour == pytest.approx(1260)
    assert any("1 core of 7 is left over" in text and "1,080 an hour" in text for text in seven.cautions)
    small = sizing.estimate(2, 8, 10.0, memory, HOST)
    assert small.at_once == 1
    assert any("occupies 8 cores takes longer on 2" in text for text in small.cautions)


def test_memory_that_is_missing_is_told() -> None:
    memory = [tier_memory(TIERS[2], 0.73).times(32)]
    (text,) = [
        t for t in sizing.estimate(8, 1, 10.0, memory, HOST).cautions if t.startswith("memory, not cores")
    ]
    assert "32 proofs at once need 128.0 GiB, there are 64.0 GiB: enough for 16" in text
    roomy = sizing.estimate(8, 1, 10.0, memory, replace(HOST, memory=1 << 45)).cautions
    assert not any(t.startswith("memory, not cores") for t in roomy)


def test_a_key_is_counted_once_and_each_proof_and_process_for_itself() -> None:
    memory = plan_memory(PLAN, 0.73).times(3)
    assert memory.total == (100 * MIB + 3 * (10 * MIB + WORKER_BYTES),) * 2
    # The limit is without the mapped key, and new proofs wait above the watermark.
    assert memory.limit_mib * MIB * 0.73 == pytest.approx(memory.total[1] - 100 * MIB, rel=0.01)


def test_a_circuit_is_planned_for_as_its_key(run: Run) -> None:
    circuit, key = VECTORS / "chain5.bn254.r1cs", VECTORS / "chain5.bn254.initial.zkey"
    by_circuit = run("estimate", "--proof-time", 1, "--r1cs", circuit, "--json").answer
    by_key = run("estimate", "--proof-time", 1, "--zkey", key, "--json").answer
    assert by_circuit["key_bytes"] == by_key["key_bytes"] == key.stat().st_size
    for answer in (by_circuit, by_key):
        (memory,) = answer["memory"]
        assert memory.pop("basis") in ("this key's plan", "the plan of this circuit's key")
    assert by_circuit == by_key
    assert (by_key["work"], by_key["constraints"]) == ("groth16 bn254", 5)
    text = run("estimate", "--proof-time", 1, "--r1cs", circuit).out
    assert "groth16 bn254, 5 constraints" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "expected --proof-time SECONDS, or --measured"),
        (["--measured"], "--constraints N, --r1cs"),
        (["--measured", "--constraints", "5", "--proof-time", "1"], "expected no --proof-time"),
        (["--proof-time", "0"], "positive number of seconds"),
        (["--proof-time", "1", "--cores", "0"], "--cores"),
        (["--proof-time", "1", "--proofs-per-core", "x"], "--cores-per-proof"),
        (["--proof-time", "1", "--constraints", "5", "--zkey", "x"], "found more"),
        (["--proof-time", "1", "--r1cs", "y", "--zkey", "x"], "found more"),
        (["--proof-time", "1", "--protocol", "groth16", "--zkey", "x"], "expected no --protocol"),
        (["--proof-time", "1", "--protocol", "stark"], "--protocol: expected one of groth16"),
        (["--measured", "--constraints", "5", "--curve", "p256"], "--curve: expected one of bn254"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(run: Run, arguments: list[str], said: str) -> None:
    ran = run("estimate", *arguments)
    assert ran.code == 2
    assert said in ran.err


# By measured times ----------------------------------------------------------------


def test_a_part_on_one_thread_makes_proofs_side_by_side_better() -> None:
    # 1 s alone, 4 s shared: 5 s with one thread, 2 s with four.
    found = measured(times(((1000, 1.0, 4.0),)))
    assert [(c.at_once, c.threads, c.seconds) for c in found.choices] == [
        (4, 1, 5.0),
        (2, 2, 3.0),
        (1, 4, 2.0),
    ]
    assert found.per_hour == found.choices[0].per_hour == pytest.approx(2880)
    # The time of one proof alone, divided by cores as the formula does.
    assert found.choices[0].formula == pytest.approx(7200)
    (text,) = [t for t in found.cautions if "on one thread" in t]
    assert "1 s of a proof" in text
    assert "2.5 times as fast, not 4 times" in text
    assert "7,200 an hour; 4 proofs side by side make 2,880" in text


def test_shared_work_alone_is_told_to_nobody() -> None:
    found = measured(times(((10, 0.0, 0.01), (1000, 0.0, 4.0))))
    assert not any("on one thread" in t or "whatever the circuit's size" in t for t in found.cautions)


def test_each_caution_of_measured_times_has_its_cause() -> None:
    rows = ((10, 0.0, 2.0), (1000, 0.0, 4.0))
    plain = measured(times(rows)).cautions
    assert any("whatever the circuit's size" in t and "2 s of 4 s" in t for t in plain)
    assert any("share memory bandwidth" in t and "40 MiB" in t for t in plain)
    told = {
        "share memory bandwidth": replace(HOST, cache=GIB),
        "CPUs share each core": replace(HOST, siblings=2),
        "extrapolated": replace(HOST, cpus=2),
    }
    for part, machine in told.items():
        assert any(part in t for t in plain) != any(
            part in t for t in measured(times(rows), machine=machine).cautions
        )
    assert not any("calibrate" in t for t in plain)
    assert any("run `gpuprover bench --calibrate`" in t for t in measured(Calibration()).cautions)


def test_a_gpu_is_a_choice_of_its_own() -> None:
    found = measured(times(((1000, 0.0, 4.0),), ((1000, 0.1, 0.0),)), devices=[CPU, GPU])
    assert found.choices[0] == Choice("cuda:0", 1, 0, 0.1, 36_000.0, 36_000.0)
    (text,) = [t for t in found.cautions if "knows no GPU" in t]
    assert "100 ms on cuda:0, 1 s on 4 cores" in text


def test_proofs_at_once_that_were_asked_for_are_the_only_choice(run: Run) -> None:
    answer = run(
        "estimate", "--measured", "--constraints", 60_000, "--cores", 4, "--cores-per-proof", 2, "--json"
    ).answer
    assert [(c["at_once"], c["threads"]) for c in answer["choices"] if c["device"] == "cpu"] == [(2, 2)]
    assert answer["origin"]


def test_a_key_gives_size_curve_and_memory(run: Run) -> None:
    zkey = VECTORS / "chain5.bls12-381.zkey"
    answer = run("estimate", "--measured", "--zkey", zkey, "--threads", 2, "--json").answer
    (memory,) = answer["memory"]
    assert 0 < memory["key"] < answer["key_bytes"] == zkey.stat().st_size
    assert 0 < memory["proof"][0] < 64 * MIB
    text = run("estimate", "--measured", "--zkey", zkey, "--threads", 2).out
    assert "by the formula" in text
    assert "this key's plan" in text


def test_the_machine_is_read_from_the_system(tmp_path: Path) -> None:
    cache = tmp_path / "cpu0" / "cache"
    for level, size in ((1, "32K"), (2, "1024K"), (3, "33M")):
        (cache / f"index{level}").mkdir(parents=True)
        (cache / f"index{level}" / "level").write_text(f"{level}\n")
        (cache / f"index{level}" / "size").write_text(f"{size}\n")
    (tmp_path / "cpu0" / "topology").mkdir()
    (tmp_path / "cpu0" / "topology" / "thread_siblings_list").write_text("0,4\n")
    found = sizing.machine(tmp_path)
    assert (found.siblings, found.cache) == (2, 33 * MIB)
    assert found.memory > 0
    bare = sizing.machine(tmp_path / "absent")
    assert (bare.siblings, bare.cache) == (1, 0)
