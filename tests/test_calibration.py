"""Times of devices: defaults, what is kept and read again, damaged files, a calibration from end to end."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from gpuprover.bench import calibrate
from gpuprover.bench.rows import read_rows

from gpuprover import calibration
from gpuprover.calibration import DEFAULTS, Calibration, Entry
from gpuprover.cpu.path import cpu_path
from gpuprover.curves import CURVES, CurveParams, curve_by_name
from gpuprover.errors import InvalidInput
from gpuprover.job import Job
from gpuprover.machine import processor_name
from gpuprover.scheduler import TIERS, DeviceInfo, JobShape, choose, place
from gpuprover.systems import system
from gpuprover.version import VERSION
from tests.support.paths import ROOT
from tests.support.running import Run

RESULTS = ROOT / "bench" / "results"
BN254 = calibration.work_name("groth16", curve_by_name("bn254"))
WORKS = [calibration.work_name("groth16", curve) for curve in CURVES]
GATES = ["plonk bn254", "plonk bls12-381", "fflonk bn254"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A calibration file of this test's own; compiled code stays where it is."""
    monkeypatch.setattr(calibration, "cache_root", lambda: tmp_path)
    return tmp_path


def cpu(threads: int = 2, path: str = "ifma", model: str = "a processor") -> DeviceInfo:
    return DeviceInfo("cpu", "cpu", model, path, threads)


def gpu(model: str = "a GPU") -> DeviceInfo:
    return DeviceInfo("cuda:0", "cuda", model, "sm_90", 0, 80 << 30)


def entry(**changes: Any) -> Entry:
    values = {
        "kind": "cuda",
        "model": "a GPU",
        "path": "sm_90",
        "work": BN254,
        "rows": ((100, 0.001, 0.0), (1000, 0.002, 0.0)),
        "parts": {"G2": ((100, 0.0005, 0.0), (1000, 0.001, 0.0))},
        "version": VERSION,
        "origin": "this test",
    }
    return Entry(**{**values, **changes})


# Tables ---------------------------------------------------------------------------


def test_a_table_is_linear_between_rows_flat_below_and_goes_on_beyond() -> None:
    table = Entry("cpu", "", "", "work", ((100, 1.0, 2.0), (200, 2.0, 6.0), (400, 2.0, 8.0)))
    assert [table.seconds(n, 1) for n in (1, 100, 150, 200, 300, 400, 800)] == [3, 3, 5.5, 8, 9, 10, 14]
    assert [table.seconds(200, threads) for threads in (1, 2, 3)] == [8, 5, 4]
    assert table.seconds(200, 1, "G2") == float("inf")


def test_beyond_the_last_row_nothing_falls() -> None:
    table = Entry("cuda", "", "", "work", ((100, 2.0, 0.0), (200, 1.0, 0.0)))
    assert table.seconds(10_000, 1) == 1.0
    assert Entry("cuda", "", "", "work", ((100, 2.0, 0.0),)).seconds(400, 1) == 8.0


@pytest.mark.parametrize(
    ("one", "many", "threads", "expected"),
    [
        (1.0, 0.5, 2, (0.0, 1.0)),
        (1.0, 0.75, 2, (0.5, 0.5)),
        (1.0, 0.4, 4, (0.2, 0.8)),
        (1.0, 0.2, 2, (0.0, 1.0)),
        (1.0, 1.1, 2, (1.0, 0.0)),
        (1.0, 1.0, 1, (0.0, 1.0)),
    ],
)
def test_what_threads_share(one: float, many: float, threads: int, expected: tuple[float, float]) -> None:
    constraints, alone, shared = calibration.row(10, one, many, threads)
    assert constraints == 10
    assert (alone, shared) == pytest.approx(expected)


# Defaults -------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["ifma", "portable"])
def test_defaults_of_the_cpu_are_the_rows_of_the_benchmark(path: str) -> None:
    """Within what runs differ by; each row against the median of all that were measured."""
    found = 0
    for row in read_rows([RESULTS / "cpu.jsonl"]):
        if (
            row["operation"] == "groth16 prove"
            and (row["implementation"], row["mode"], row.get("path")) == ("gpuprover", "warm", path)
            and row["circuit"].startswith("chain ")
        ):
            work = f"groth16 {row['curve']}"
            predicted = Calibration().seconds(work, cpu(path=path), row["constraints"], row["threads"])
            assert predicted == pytest.approx(row["wall"]["median_s"], rel=0.35)
            found += 1
    assert found >= 8


@pytest.mark.parametrize("protocol", ["plonk", "fflonk"])
def test_defaults_of_gates_are_the_rows_of_the_benchmark(protocol: str) -> None:
    found = 0
    for row in read_rows([RESULTS / "plonk.jsonl"]):
        ours = row["operation"] == f"{protocol} prove" and row["implementation"] == "gpuprover"
        if ours and (row["mode"], row["path"], row["threads"]) == ("warm", "portable", 1):
            work = f"{protocol} {row['curve']}"
            predicted = Calibration().seconds(work, cpu(path="portable"), row["constraints"], 1)
            assert predicted == pytest.approx(row["wall"]["median_s"], rel=0.1)
            found += 1
    assert found >= 4


def test_defaults_cover_every_curve_path_and_device_and_grow() -> None:
    for device in (cpu(), cpu(path="portable"), gpu()):
        for work in WORKS + GATES:
            assert "not of this work" not in Calibration().entry(work, device).origin
            table = [Calibration().seconds(work, device, 1 << log, 1) for log in range(27)]
            assert table[0] > 0
            assert table == sorted(table)
            assert not Calibration().measured(work, device)
            assert Calibration().entry(work, device).origin


@pytest.mark.parametrize("threads", [1, 2, 16, 64])
@pytest.mark.parametrize("path", ["ifma", "portable"])
@pytest.mark.parametrize("work", WORKS + GATES)
def test_by_default_small_proofs_stay_and_large_ones_go_to_a_gpu(threads: int, path: str, work: str) -> None:
    def where(constraints: int, *others: DeviceInfo) -> str:
        shape = JobShape(work, constraints)
        return choose("auto", shape, [cpu(threads, path), *others], Calibration()).device

    assert [where(n, gpu()) for n in (10, 999, 8191)] == ["cpu"] * 3
    assert where(1 << 20, gpu()) == "cuda:0"
    sizes = [where(1 << log, gpu()) for log in range(24)]
    assert sizes == sorted(sizes), "one crossover"
    for tier in TIERS:
        assert where(int(min(tier.largest, 1 << 22))) == "cpu"


# What is kept ----------------------------------------------------------------------


def test_what_is_kept_is_read_again_and_counts_for_its_device_alone(own_cache: Path) -> None:
    assert "bench --calibrate" in calibration.load().problem
    file = calibration.keep([entry()])
    assert file == own_cache / "calibration.json"
    found = calibration.load()
    assert found.entries == (entry(),)
    assert found.problem == ""
    assert found.seconds(BN254, gpu(), 550, 1) == pytest.approx(0.0015)
    assert found.seconds(BN254, gpu(), 550, 1, "G2") == pytest.approx(0.00075)
    assert found.measured(BN254, gpu())
    for other in (gpu("another GPU"), cpu()):
        assert not found.measured(BN254, other)
    assert not found.measured(WORKS[1], gpu())


def test_a_measured_gpu_gets_small_proofs_too() -> None:
    calibration.keep([entry()])
    assert place(JobShape(BN254, 999), [cpu(), gpu()], Calibration()).device == "cpu"
    assert place(JobShape(BN254, 999), [cpu(), gpu()], calibration.load()).device == "cuda:0"


def test_entries_replace_those_of_the_same_work_and_device() -> None:
    calibration.keep([entry(), entry(work=WORKS[1])])
    calibration.keep([entry(origin="again"), entry(model="another GPU")])
    assert [(e.model, e.work, e.origin) for e in calibration.load().entries] == [
        ("a GPU", BN254, "again"),
        ("a GPU", WORKS[1], "this test"),
        ("another GPU", BN254, "this test"),
    ]


def test_entries_of_another_version_do_not_count() -> None:
    calibration.keep([entry(version="0.0.1")])
    found = calibration.load()
    assert not found.entries
    assert "another version" in found.problem


DAMAGE = {
    "empty": "",
    "no JSON": "{",
    "a list": "[]",
    "another format": '{"format": 2, "entries": []}',
    "no entries": '{"format": 1}',
    **{
        name: json.dumps({"format": 1, "entries": [{**vars(entry()), **change}]})
        for name, change in {
            "rows that fall": {"rows": [[10, 1, 1], [5, 1, 1]]},
            "no rows": {"rows": []},
            "negative seconds": {"rows": [[10, -1, 1]]},
            "endless seconds": {"rows": [[10, 1e300, 1]]},
            "half a row": {"rows": [[10, 1]]},
            "words": {"rows": "words"},
            "no parts": {"parts": None},
        }.items()
    },
}


@pytest.mark.parametrize("text", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_told_and_counts_as_none(own_cache: Path, text: str) -> None:
    (own_cache / "calibration.json").write_text(text)
    told: list[str] = []
    found = calibration.load(told.append)
    assert not found.entries
    assert told == [found.problem]
    assert str(own_cache) in found.problem
    assert found.seconds(BN254, cpu(), 1000, 1) == Calibration().seconds(BN254, cpu(), 1000, 1)
    calibration.keep([entry()])
    assert calibration.load().entries == (entry(),)


def test_a_file_that_others_could_have_written_counts_as_none(own_cache: Path) -> None:
    file = calibration.keep([entry()])
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    for path, mode in ((file, 0o602), (own_cache, 0o777)):
        before = path.stat().st_mode
        path.chmod(mode)
        found = calibration.load()
        assert not found.entries
        assert f"{path} may be written by others" in found.problem
        path.chmod(before)
        assert calibration.load().entries == (entry(),)
    file.unlink()
    os.mkfifo(file, 0o600)
    assert "is no regular file" in calibration.load().problem, "and nobody waits for a writer"
    own_cache.chmod(0o777)
    with pytest.raises(
        InvalidInput, match=r"calibration\.json: cannot be written: .* may be written by others"
    ):
        calibration.keep([entry()])


def test_every_default_could_be_kept() -> None:
    calibration.keep([Entry(**{**vars(e), "version": VERSION}) for e in DEFAULTS])
    assert [e.rows for e in calibration.load().entries] == [e.rows for e in DEFAULTS]


# This machine -----------------------------------------------------------------------


def test_the_devices_of_this_machine() -> None:
    first, *others = calibration.devices(3, 1 << 30)
    assert first == DeviceInfo("cpu", "cpu", processor_name(), cpu_path().name, 3, 1 << 30)
    assert others
    assert all(d.kind == "cuda" for d in others)


def test_calibration_measures_growing_sizes_until_time_is_up(tmp_path: Path, curve: CurveParams) -> None:
    machine = [d for d in calibration.devices(2) if d.kind == "cpu"]
    groth16, logs = system.system_named("groth16"), (3, 5, 6)
    (found,) = calibrate.measure(groth16, curve, machine, Job(threads=2), tmp_path, 60.0, pytest.fail, logs)
    assert (found.work, found.model, found.path) == (
        calibration.work_name("groth16", curve),
        processor_name(),
        cpu_path().name,
    )
    assert [n for n, _, _ in found.rows] == [7, 28, 56]
    for rows in (found.rows, found.parts["G2"]):
        assert all(alone + shared > 0 for _, alone, shared in rows)
    (short,) = calibrate.measure(groth16, curve, machine, Job(threads=1), tmp_path, 1e-9, pytest.fail, logs)
    assert [n for n, _, _ in short.rows] == [7]


def test_the_command_keeps_what_it_measured(
    run: Run, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "LOGS", (3,))
    ran = run("bench", "--calibrate", "--curves", "bn254", "--threads", "2", "--device", "cpu", "--json")
    assert ran.code == 0
    record = json.loads(ran.out)
    assert record["calibration"] == str(own_cache / "calibration.json")
    works = [
        calibration.work_name(name, curve_by_name("bn254"))
        for name in system.names()
        if system.system_named(name).sets_up
    ]
    assert [line.split(":")[0] for line in record["times"]] == [f"cpu, {work}" for work in works]
    kept, cpu = calibration.load(), calibration.devices(2)[0]
    for work in works:
        assert kept.measured(work, cpu)
        assert kept.entry(work, cpu).parts.keys() == system.system_named(work.split()[0]).host_parts
