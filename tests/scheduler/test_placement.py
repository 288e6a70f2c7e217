"""Placement of single proofs: tiers, what fits, degradation, what a user asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuprover.errors import DeviceError, InvalidInput, OutOfMemory
from gpuprover.scheduler import (
    TIERS,
    Degrade,
    DeviceInfo,
    choose,
    place,
    tier_of,
)
from tests.support.scheduler_stage import GIB, MIB, WORK, FakeTimes, cpu, gpu, plans, shape


@pytest.mark.parametrize(
    ("constraints", "tier"),
    [(1, "simple"), (999, "simple"), (1000, "medium"), (10_000, "medium"), (10_001, "complex")],
)
def test_tiers(constraints: int, tier: str) -> None:
    assert tier_of(constraints).name == tier
    assert [t.name for t in TIERS] == ["simple", "medium", "complex"]


def test_small_proofs_stay_on_the_cpu_and_complex_ones_go_to_the_gpu() -> None:
    devices = [cpu(), gpu()]
    small, large = (place(shape(n), devices, FakeTimes()) for n in (500, 1 << 20))
    assert (small.device, small.threads) == ("cpu", 8)
    assert (large.device, large.threads, large.host_parts) == ("cuda:0", 0, frozenset())
    assert large.plan == plans(1 << 20)["cuda"][0]
    assert small.reason.startswith("simple (500 constraints): cpu, 8 threads, ")
    assert large.reason == (
        "complex (1,048,576 constraints): cuda:0, 2.6 GiB of 80.0 GiB free; "
        "predicted 347 ms against 867 ms on cpu"
    )


def test_a_gpu_that_nobody_measured_takes_nothing_small() -> None:
    quick = FakeTimes(known=False, launches=1e-6)
    devices = [cpu(threads=1), gpu()]
    assert place(shape(8191), devices, quick).device == "cpu"
    assert "measured first" in place(shape(8191), devices, quick).reason
    assert place(shape(8192), devices, quick).device == "cuda:0"
    assert place(shape(8191), devices, replace(quick, known=True)).device == "cuda:0"
    assert place(shape(8191), [gpu()], quick).device == "cuda:0"


def test_what_a_gpu_cannot_hold_comes_down_to_a_smaller_plan_and_then_to_the_cpu() -> None:
    n = 1 << 20
    need = [p.key + p.tables + p.arena for p in plans(n)["cuda"]]
    for memory, step in [(need[0], 0), (need[0] - 1, 1), (need[1], 1), (need[1] - 1, 2), (need[2], 2)]:
        assert place(shape(n), [cpu(), gpu(memory=memory)], FakeTimes()).step == step
    found = place(shape(n), [cpu(), gpu(memory=need[2] - 1)], FakeTimes())
    assert found.device == "cpu"
    assert "not cuda:0: needs" in found.reason


def test_a_broken_gpu_is_told_in_the_reason() -> None:
    found = place(shape(1 << 20), [cpu(), gpu(problem="the driver is too old")], FakeTimes())
    assert found.device == "cpu"
    assert found.reason.endswith("not cuda:0: the driver is too old")


def test_staging_has_to_fit_the_host() -> None:
    n = 1 << 20
    staging = plans(n)["cuda"][0].host
    assert place(shape(n), [cpu(memory=staging), gpu()], FakeTimes()).device == "cuda:0"
    with pytest.raises(OutOfMemory, match="cuda:0: needs 64 MiB of the host, 32 MiB are free"):
        place(shape(n), [cpu(memory=staging - 1), gpu()], FakeTimes())


def test_nothing_fits_is_out_of_memory_with_every_reason() -> None:
    with pytest.raises(OutOfMemory) as caught:
        place(shape(1 << 24), [cpu(memory=GIB), gpu(memory=GIB), gpu(1, problem="is broken")], FakeTimes())
    for reason in ("cpu: needs 3.8 GiB", "cuda:0: needs 1.8 GiB", "cuda:1: is broken"):
        assert reason in caught.value.message
    with pytest.raises(DeviceError, match="is broken"):
        place(shape(1 << 10), [gpu(problem="is broken")], FakeTimes())


def test_the_freest_of_equal_gpus_and_the_faster_of_unequal_ones() -> None:
    devices = [cpu(), gpu(0, 20 * GIB), gpu(1, 60 * GIB), gpu(2, 40 * GIB)]
    assert place(shape(1 << 20), devices, FakeTimes()).device == "cuda:1"
    times = FakeTimes()

    class Unequal:
        measured = times.measured

        def seconds(self, work: str, device: DeviceInfo, *rest: object) -> float:
            return times.seconds(work, device, *rest) / (2 if device.name == "cuda:2" else 1)  # type: ignore[arg-type]

    assert place(shape(1 << 20), devices, Unequal()).device == "cuda:2"


def test_a_part_goes_to_the_host_where_both_are_measured_and_it_pays() -> None:
    n = 1 << 22
    slow_gpu = FakeTimes(gpu=4e-7)
    whole = slow_gpu.seconds(WORK, gpu(), n, 1)
    found = place(shape(n), [cpu(64), gpu()], slow_gpu, loaded=["cuda:0"])
    assert (found.device, found.threads, found.host_parts) == ("cuda:0", 64, frozenset({"G2"}))
    assert found.seconds == pytest.approx(0.6 * whole)
    assert found.host_memory == plans(n)["cuda"][0].host + 240 * n
    assert "G2 on 64 threads of the CPU" in found.reason
    for devices, times in [
        ([cpu(2), gpu()], slow_gpu),
        ([cpu(64, memory=found.host_memory - 1), gpu()], slow_gpu),
        ([cpu(64), gpu()], replace(slow_gpu, known=False)),
    ]:
        assert place(shape(n), devices, times, loaded=["cuda:0"]).host_parts == frozenset()
    alone = place(shape(n, host_parts=frozenset()), [cpu(64), gpu()], slow_gpu, loaded=["cuda:0"])
    assert alone.host_parts == frozenset()


def test_without_a_plan_the_tier_says_what_to_reckon_with() -> None:
    unknown = shape(5000, plans={})
    assert place(unknown, [cpu()], FakeTimes()).own == 4 * GIB
    with pytest.raises(OutOfMemory):
        place(unknown, [cpu(memory=4 * GIB - 1)], FakeTimes())


def test_levels_of_degradation() -> None:
    devices = [cpu(), gpu()]
    steps = [place(shape(1 << 20), devices, FakeTimes(), level=level) for level in Degrade]
    assert [(p.device, p.step) for p in steps] == [*(("cuda:0", i) for i in (0, 0, 1, 2)), ("cpu", 0)]
    assert "out of memory before: no tables" in steps[Degrade.NO_TABLES].reason


def test_choose_takes_what_the_user_asked_for() -> None:
    devices = [cpu(), gpu(0, 20 * GIB), gpu(1, 60 * GIB)]
    names = {
        s: choose(s, shape(1 << 20), devices, FakeTimes()).device for s in ("auto", "cpu", "cuda", "cuda:0")
    }
    assert names == {"auto": "cuda:1", "cpu": "cpu", "cuda": "cuda:1", "cuda:0": "cuda:0"}
    assert choose("cuda", shape(10), devices, FakeTimes(known=False)).device == "cuda:1"
    for tier in TIERS:
        n = min(tier.largest, 1 << 20)
        assert choose("auto", shape(int(n)), [cpu()], FakeTimes(known=False)).device == "cpu"
    with pytest.raises(InvalidInput, match="expected one of auto, cpu, cuda, cuda:0, cuda:1; found 'tpu'"):
        choose("tpu", shape(10), devices, FakeTimes())
    with pytest.raises(DeviceError, match="'cuda' is not available: no driver"):
        choose("cuda", shape(10), [cpu(), gpu(problem="no driver")], FakeTimes())
    with pytest.raises(OutOfMemory):
        choose("cuda", shape(1 << 20), [cpu(), gpu(memory=MIB)], FakeTimes())


def test_a_named_gpu_may_still_use_the_host() -> None:
    found = choose("cuda:0", shape(1 << 22), [cpu(64), gpu()], FakeTimes(gpu=4e-7))
    assert found.host_parts == frozenset({"G2"})


@given(
    constraints=st.integers(1, 1 << 26),
    threads=st.integers(1, 64),
    memories=st.lists(st.integers(0, 200 * GIB), max_size=4),
    host=st.none() | st.integers(0, 1 << 40),
    level=st.sampled_from(Degrade),
    known=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_no_placement_exceeds_a_limit(
    constraints: int, threads: int, memories: list[int], host: int | None, level: Degrade, known: bool
) -> None:
    devices = [cpu(threads, host), *(gpu(i, memory) for i, memory in enumerate(memories))]
    try:
        p = place(shape(constraints), devices, FakeTimes(known=known), level=level)
    except OutOfMemory:
        smallest = plans(constraints)["cuda"][2]
        if level < Degrade.ALONE:
            assert host is not None
            assert host < 240 * constraints
            assert all(m < smallest.key + smallest.arena or host < smallest.host for m in memories)
        return
    (device,) = (d for d in devices if d.name == p.device)
    assert device.memory is None or p.own + p.shared <= device.memory
    assert host is None or p.host_memory <= host
    assert p.threads <= threads
    assert p.plan in plans(constraints)[p.kind]
