"""What containers and the machine grant: memory and processors."""

from __future__ import annotations

from pathlib import Path

from gpuprover.machine import (
    CgroupMemory,
    CgroupThrottling,
    cgroup_cpu_quota,
    cgroup_memory,
    cgroup_memory_limit,
    cgroup_throttling,
    machine_memory,
)


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
    _write(root / "pod/container/cpu.stat", "nr_periods 9\nnr_throttled 9\nthrottled_usec 9\n")
    assert cgroup_throttling(root, process) is None, "that group has no quota"
    _write(root / "pod/cpu.stat", "usage_usec 7\nnr_periods 40\nnr_throttled 3\nthrottled_usec 2500000\n")
    assert cgroup_throttling(root, process) == CgroupThrottling(40, 3, 2.5)


def test_cgroup_v1_limits(tmp_path: Path) -> None:
    root, process = tmp_path / "cgroup", tmp_path / "proc"
    _write(process / "cgroup", "4:memory:/box\n2:cpu,cpuacct:/box\n")
    _write(root / "cpu/box/cpu.cfs_quota_us", "200000")
    _write(root / "cpu/box/cpu.cfs_period_us", "100000")
    _write(root / "memory/box/memory.limit_in_bytes", "9223372036854771712")
    _write(root / "memory/memory.limit_in_bytes", "536870912")
    assert cgroup_cpu_quota(root, process) == 2.0
    _write(root / "cpu/box/cpu.stat", "nr_periods 40\nnr_throttled 3\nthrottled_time 2500000000\n")
    assert cgroup_throttling(root, process) == CgroupThrottling(40, 3, 2.5)
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
    assert cgroup_throttling(tmp_path, tmp_path) is None
    assert cgroup_memory_limit(tmp_path, tmp_path) is None


def test_the_machines_memory() -> None:
    total, available = machine_memory()
    assert total is not None
    assert total > 64 << 20
    assert available is None or 0 < available <= total
