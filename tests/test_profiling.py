"""profile: each piece of advice from figures that trigger it, and the profile of a real proof."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpuprover import profiling
from gpuprover.job import Job
from gpuprover.machine import cgroup_throttled
from gpuprover.profiling import Observed, Prediction, advise
from gpuprover.profiling import ProfiledRun as Proof
from tests.support.paths import VECTORS
from tests.support.running import Run

GIB, MIB = 1 << 30, 1 << 20


def proof(seconds: float = 1.0, **changes: Any) -> Proof:
    given = {"cpu": 2 * seconds, "phases": {"msm": 0.9 * seconds}, "before": MIB, "peak": GIB, "after": MIB}
    return Proof(**{"seconds": seconds, **given, **changes})


GOOD = Observed(
    constraints=100_000,
    key_bytes=100 * MIB,
    key_read=100 * MIB,
    touch=0.01,
    touch_again=0.01,
    touch_read=0,
    first=proof(1.5),
    warm=(proof(), proof(), proof()),
    single=proof(1.9, cpu=1.9),
    device="cpu",
    threads=2,
    cpus=2,
    quota=None,
    host_cpus=2,
    path="ifma",
    ifma=True,
    compiled=0,
    plan=50 * MIB,
    plan_within=50 * MIB,
    container=None,
    predictions=(Prediction("cpu", 1.0, True), Prediction("cuda", 0.0, False, "no driver")),
)


def test_nothing_is_said_where_nothing_is_wrong() -> None:
    assert advise(GOOD) == []


def three(**changes: Any) -> tuple[Proof, ...]:
    return (proof(**changes),) * 3


@pytest.mark.parametrize(
    ("changes", "about", "said"),
    [
        (
            {"warm": three(throttled=0.4), "quota": 1.5},
            "cpu",
            "quota of 1.5 CPUs held each proof up for 400 ms",
        ),
        ({"threads": 8}, "threads", "8 threads on 2 CPUs wait for each other: --threads 2"),
        ({"single": proof(1.05)}, "threads", "hardly faster than with one (1 s against 1.05 s)"),
        ({"single": proof(1.15), "threads": 2}, "threads", "make 2 proofs side by side with --threads 1"),
        ({"cpus": 8, "host_cpus": 8}, "threads", "2 of 8 CPUs are used: --threads 8"),
        ({"warm": three(others=1.0)}, "cpu", "used 1.0 of 2 CPUs meanwhile: 2 threads had 1.0"),
        ({"path": "portable"}, "cpu", "although this CPU has AVX-512 IFMA: unset PROVER_CPU_PATH"),
        ({"path": "portable", "ifma": False}, "cpu", "this CPU lacks AVX-512 IFMA"),
        (
            {"predictions": (Prediction("cpu", 1.0, True), Prediction("cuda:0", 0.05, True))},
            "device",
            "on cuda:0 this proof is predicted to take 50 ms instead of 1 s: --device cuda:0",
        ),
        (
            {"predictions": (Prediction("cpu", 1.0, True), Prediction("cuda:0", 0.05, False))},
            "device",
            "nobody has measured it here",
        ),
        (
            {"predictions": (Prediction("cpu", 1.0, True), Prediction("cuda:0", 0.0, False, "no CuPy"))},
            "device",
            "cuda:0 cannot be used: no CuPy",
        ),
        (
            {"predictions": (Prediction("cpu", 0.5, False),)},
            "device",
            "run `gpuprover bench --calibrate` once",
        ),
        ({"plan_within": 20 * MIB}, "memory", "works in 20 MiB instead of 50 MiB"),
        ({"warm": three(swapped=64 * MIB)}, "memory", "64 MiB of this process are in swap"),
        ({"warm": three(major_faults=900, read_bytes=90 * MIB)}, "memory", "reads 90 MiB of the key"),
        ({"container": GIB + GIB // 20}, "memory", "holds 1.0 GiB of the 1.0 GiB that the container"),
        ({"touch": 4.0, "touch_read": 100 * MIB}, "key", "from the disk in 4 s (26 MB a second)"),
        ({"compiled": 40, "first": proof(50.0)}, "cache", "cost 49 s: run `gpuprover warmup`"),
        ({"first": proof(3.0)}, "start", "takes 2 s longer, to load the compiler"),
        ({"compiled": None}, "cache", "no folder for compiled code is writable"),
        ({"warm": three(phases={"msm": 0.2, "verify": 0.7})}, "size", "70% of a proof"),
    ],
)
def test_each_rule_speaks_up_alone(changes: dict[str, Any], about: str, said: str) -> None:
    (advice,) = advise(replace(GOOD, **changes))
    assert advice.about == about
    assert said in advice.text


@pytest.mark.parametrize(
    "changes",
    [
        {"warm": three(throttled=0.01), "quota": 1.5},
        {"threads": 8, "device": "cuda:0", "single": None, "predictions": ()},
        {"single": None},
        {"warm": three(others=1.0), "host_cpus": 64},
        {"path": "portable", "device": "cuda:0", "predictions": ()},
        {"predictions": (Prediction("cpu", 1.0, True), Prediction("cuda:0", 0.95, True))},
        {"warm": three(read_bytes=90 * MIB)},
        {"container": 2 * GIB},
        # Read from the page cache, or read from the disk and fast.
        {"touch": 4.0},
        {"touch": 0.1, "touch_read": 100 * MIB},
        {"first": proof(1.9)},
    ],
)
def test_rules_are_silent_beside_their_cause(changes: dict[str, Any]) -> None:
    assert advise(replace(GOOD, **changes)) == []


def test_every_rule_has_a_case_here() -> None:
    (mark,) = [m for m in test_each_rule_speaks_up_alone.pytestmark if m.name == "parametrize"]
    spoke = {
        rule.__name__
        for changes, *_ in mark.args[1]
        for rule in profiling.RULES
        if rule(replace(GOOD, **changes)) is not None
    }
    assert spoke == {rule.__name__ for rule in profiling.RULES}


def test_phases_name_what_is_in_none() -> None:
    seen = replace(
        GOOD, first=proof(2.0, phases={"msm": 1.5}), warm=three(phases={"msm": 0.7, "verify": 0.1})
    )
    assert seen.phases["msm"] == (1.5, 0.7)
    assert seen.phases["verify"] == (0.0, 0.1)
    assert seen.phases["other"] == pytest.approx((0.5, 0.2))


@pytest.mark.parametrize(
    ("line", "text", "expected"),
    [
        ("0::/job", "nr_throttled 3\nthrottled_usec 1500000\n", 1.5),
        ("3:cpu,cpuacct:/job", "throttled_time 2500000000\n", 2.5),
        ("0::/job", "usage_usec 5\n", 0.0),
    ],
)
def test_throttling_is_read_from_the_control_group(
    tmp_path: Path, line: str, text: str, expected: float
) -> None:
    process, root = tmp_path / "self", tmp_path / "cgroup"
    process.mkdir()
    (process / "cgroup").write_text(line + "\n")
    folder = root / ("job" if line.startswith("0") else "cpu,cpuacct/job")
    folder.mkdir(parents=True)
    (folder / "cpu.stat").write_text(text)
    if not line.startswith("0"):
        (root / "cpu").symlink_to(root / "cpu,cpuacct")
    assert cgroup_throttled(root, process) == expected


def test_a_profile_is_told_drawn_and_answered(run: Run, tmp_path: Path) -> None:
    zkey, wtns = VECTORS / "chain5.bn254.zkey", VECTORS / "chain5.bn254.wtns"
    picture = tmp_path / "profile.svg"
    answer = run("profile", zkey, wtns, "--proofs", 2, "--threads", 2, "--json", "--output", picture).answer
    assert len(answer["warm"]) == 2
    assert answer["single"]["seconds"] > 0
    assert {"msm", "quotient", "verify", "other"} <= answer["phases"].keys()
    assert answer["first"]["peak"] >= answer["first"]["before"] > MIB
    assert answer["picture"] == str(picture)
    assert {entry["about"] for entry in answer["advice"]} <= {
        "threads",
        "cpu",
        "device",
        "key",
        "memory",
        "cache",
        "start",
        "size",
    }
    assert "first proof" in picture.read_text()
    # Sixteen constraints: a proof is what any circuit takes.
    text = run("profile", zkey, wtns, "--proofs", 1, "--threads", 1).out
    assert "msm" in text
    assert "▇" in text
    assert "peak memory" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--output", "x.gif"], "expected FILE.png or FILE.svg"),
        (["--proofs", "0"], "--proofs"),
        (["--output", "/no/such/folder/x.png"], "does not exist"),
    ],
)
def test_a_profile_that_cannot_be_is_refused_at_once(run: Run, arguments: list[str], said: str) -> None:
    ran = run("profile", VECTORS / "chain5.bn254.zkey", VECTORS / "chain5.bn254.wtns", *arguments)
    assert ran.code == 2
    assert said in ran.err


def test_a_picture_without_matplotlib_is_refused_before_any_work(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from gpuprover.bench import pictures

    monkeypatch.setattr(pictures, "available", lambda: False)
    arguments = (VECTORS / "chain5.bn254.zkey", VECTORS / "chain5.bn254.wtns", "--output", tmp_path / "x.png")
    ran = run("profile", *arguments, "--json")
    assert ran.code == 2
    assert "need matplotlib" in json.loads(ran.out)["error"]["message"]
    assert not (tmp_path / "x.png").exists()


def test_touching_a_key_stops_when_it_is_told_to(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(bytes(1 << 20))
    assert profiling.touch_pages(str(file), Job()) > 0
