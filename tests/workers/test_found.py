"""Devices as workers find them: when they are known, which can be used, what an executor says of them."""

from __future__ import annotations

from dataclasses import replace

from gpuprover.errors import DeviceError
from gpuprover.scheduler import DeviceInfo
from gpuprover.workers.found import SURVEYS, FoundDevices
from gpuprover.workers.records import PoolSettings

CPU = DeviceInfo("cpu", "cpu", "processor")
GPU = DeviceInfo("cuda:0", "cuda", "GPU", memory=1 << 30)
BAD = DeviceInfo("cuda:1", "cuda", "GPU", problem="no driver")
SETTINGS = PoolSettings(threads=8, max_workers=3, gpu_proofs=2)


def names(devices: list[DeviceInfo]) -> list[str]:
    return [device.name for device in devices]


def test_nothing_is_known_before_a_worker_has_looked() -> None:
    found = FoundDevices(SETTINGS)
    assert (found.known, found.usable(), found.offered(7), found.failure) == (False, [], [], None)
    assert found.problem_of("cuda:0") is None
    assert not found.found("cpu", CPU, [])
    assert not found.known, "it has not looked for GPUs"
    assert found.found("cpu", CPU, [CPU, GPU, BAD])
    assert (found.known, names(found.usable())) == (True, ["cpu", "cuda:0"])
    assert found.offered(7) == [
        replace(CPU, threads=8, memory=7, proofs=3),
        replace(GPU, proofs=2),
        replace(BAD, proofs=2),
    ]
    assert (found.kind("cpu"), found.kind("cuda:0")) == ("cpu", "cuda")


def test_where_everybody_dies_of_looking_there_are_no_gpus() -> None:
    found = FoundDevices(SETTINGS)
    found.surveys -= SURVEYS
    found.found("cpu", CPU, [])
    assert (found.known, names(found.usable())) == (True, ["cpu"])
    assert not FoundDevices(replace(SETTINGS, gpus=())).surveys


def test_problems_come_and_go() -> None:
    found = FoundDevices(SETTINGS)
    found.found("cpu", CPU, [CPU, GPU, BAD])
    assert [str(found.problem_of(name)) for name in ("cpu", "cuda:0", "cuda:1", "cuda:2")] == [
        "None",
        "None",
        "device 'cuda:1': no driver",
        "device 'cuda:2': there are no workers for it",
    ]
    found.rest("cuda:0", "it hung")
    assert names(found.usable()) == ["cpu"]
    found.found("cuda:0", GPU, [])
    assert names(found.usable()) == ["cpu", "cuda:0"]
    error = DeviceError("no worker started", more="in /secret")
    found.give_up("cuda:0", error)
    assert (names(found.usable()), found.problem_of("cuda:0")) == (["cpu"], error)
    assert found.failure is None, "there is the CPU"
    assert [device.problem for device in found.offered(None)] == ["", "no worker started", "no driver"]
    found.give_up("cpu", error)
    assert found.failure is error
    found.found("cpu", CPU, [])
    assert (found.problem_of("cpu"), found.failure) == (None, None)


def test_before_anything_is_known_the_cpu_has_the_problem() -> None:
    found = FoundDevices(SETTINGS)
    found.give_up("cpu", DeviceError("no worker started"))
    assert found.offered(None) == [DeviceInfo("cpu", "cpu", problem="no worker started")]


def test_only_gpus_that_were_chosen_are_used() -> None:
    for gpus, usable in ((None, ["cpu", "cuda:0"]), ((), ["cpu"]), (("cuda:1",), ["cpu"])):
        found = FoundDevices(replace(SETTINGS, gpus=gpus))
        found.found("cpu", CPU, [CPU, GPU, BAD])
        assert names(found.usable()) == usable
        assert ("cuda:1" in names(found.offered(None))) == (gpus is None or "cuda:1" in gpus)
