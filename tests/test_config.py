"""Settings: which source wins, what is refused, and what containers grant."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuprover.config import (
    CgroupMemory,
    available_cpus,
    cgroup_cpu_quota,
    cgroup_memory,
    cgroup_memory_limit,
    default_threads,
    gpu_memory_limit,
    load_settings,
    seconds,
)
from gpuprover.errors import InvalidInput


def test_arguments_win_over_the_environment_which_wins_over_the_machine() -> None:
    environment = {"PROVER_DEVICE": "CPU", "PROVER_THREADS": " 3 ", "PROVER_MEMORY_LIMIT": ""}
    settings = load_settings({"device": "Cuda", "threads": None}, environment)
    assert (settings.device, settings.threads, settings.memory_limit) == ("cuda", 3, None)
    assert dict(settings.sources) == {
        "device": "argument",
        "threads": "PROVER_THREADS",
        "memory_limit": "machine",
    }


def test_the_machine_gives_what_nobody_sets() -> None:
    settings = load_settings({}, {})
    assert (settings.device, settings.threads, settings.memory_limit) == ("auto", available_cpus(), None)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "", "two", "4097", "９", "1e3", "1" * 30])
def test_bad_threads_are_refused_by_the_name_of_their_source(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"^--threads: expected a whole number from 1 to 4096"):
        load_settings({"threads": text}, {})
    if text:  # an empty variable is as good as none
        with pytest.raises(InvalidInput, match=r"^PROVER_THREADS: expected"):
            load_settings({}, {"PROVER_THREADS": text})


def test_other_bad_values_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"^--memory-limit: expected a whole number from 1 to"):
        load_settings({"memory_limit": "0"}, {})
    with pytest.raises(InvalidInput, match=r"^--device: "):
        load_settings({"device": " "}, {})
    for text in ("0", "-1", "nan", "inf", "soon"):
        with pytest.raises(InvalidInput, match=r"^--timeout: expected a positive number of seconds"):
            seconds(text, "--timeout")
    assert seconds("0.25", "--timeout") == 0.25


def test_default_threads_reads_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROVER_THREADS", "7")
    assert default_threads() == 7


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_cgroup_v2_limits_are_the_tightest_of_all_levels(tmp_path: Path) -> None:
    root, process = tmp_path / "cgroup", tmp_path / "proc"
    _write(process / "cgroup", "0::/pod/container\n")
    _write(root / "pod/container/cpu.max", "max 100000\n")
    _write(root / "pod/cpu.max", "150000 100000\n")
    _write(root / "pod/container/memory.max", "max\n")
    _write(root / "pod/memory.max", "1073741824\n")
    assert cgroup_cpu_quota(root, process) == 1.5
    assert cgroup_memory_limit(root, process) == 1 << 30


def test_cgroup_v1_limits(tmp_path: Path) -> None:
    root, process = tmp_path / "cgroup", tmp_path / "proc"
    _write(process / "cgroup", "4:memory:/box\n2:cpu,cpuacct:/box\n")
    _write(root / "cpu/box/cpu.cfs_quota_us", "200000")
    _write(root / "cpu/box/cpu.cfs_period_us", "100000")
    _write(root / "memory/box/memory.limit_in_bytes", "9223372036854771712")
    _write(root / "memory/memory.limit_in_bytes", "536870912")
    assert cgroup_cpu_quota(root, process) == 2.0
    assert cgroup_memory_limit(root, process) == 512 << 20


def test_what_a_cgroup_holds_is_what_cannot_be_dropped(tmp_path: Path) -> None:
    root, process = tmp_path / "cgroup", tmp_path / "proc"
    _write(process / "cgroup", "0::/pod/container\n")
    _write(root / "pod/container/memory.max", "1000\n")
    _write(root / "pod/container/memory.current", "600\n")
    _write(root / "pod/container/memory.stat", "anon 300\nactive_file 100\ninactive_file 50\n")
    assert cgroup_memory(root, process) == CgroupMemory(limit=1000, used=450)
    _write(root / "pod/memory.max", "1200\n")
    _write(root / "pod/memory.current", "1100\n")
    assert cgroup_memory(root, process) == CgroupMemory(limit=1200, used=1100), "it has the least room"
    assert cgroup_memory_limit(root, process) == 1000


def test_what_a_cgroup_of_the_first_version_holds(tmp_path: Path) -> None:
    root, process = tmp_path / "cgroup", tmp_path / "proc"
    _write(process / "cgroup", "4:memory:/box\n")
    _write(root / "memory/box/memory.limit_in_bytes", "1000")
    _write(root / "memory/box/memory.usage_in_bytes", "500")
    _write(root / "memory/box/memory.stat", "inactive_file 1\ntotal_active_file 20\ntotal_inactive_file 30\n")
    assert cgroup_memory(root, process) == CgroupMemory(limit=1000, used=450)


def test_no_cgroups_no_limits(tmp_path: Path) -> None:
    assert cgroup_memory(tmp_path, tmp_path) is None
    assert cgroup_cpu_quota(tmp_path, tmp_path) is None
    assert cgroup_memory_limit(tmp_path, tmp_path) is None


def test_the_limit_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROVER_GPU_MEMORY_LIMIT", raising=False)
    assert gpu_memory_limit() is None
    monkeypatch.setenv("PROVER_GPU_MEMORY_LIMIT", "512")
    assert gpu_memory_limit() == 512 << 20
    monkeypatch.setenv("PROVER_GPU_MEMORY_LIMIT", "much")
    with pytest.raises(InvalidInput, match="PROVER_GPU_MEMORY_LIMIT"):
        gpu_memory_limit()
