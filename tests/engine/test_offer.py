"""Devices on offer: which may be used, what the scheduler is told of them, and plans for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gpuprover.engine.offer import Offer
from gpuprover.errors import DeviceError
from tests.support.engine_stage import FakeExecutor, cpu, gpu

BAD = gpu(1, problem="no driver")


def test_devices_are_told_when_they_change_and_when_they_are_gone() -> None:
    offer = Offer("auto")
    assert (offer.host, offer.kinds) == (None, frozenset())
    assert offer.update([cpu(), gpu(), BAD]) == (set(), [cpu(), gpu()]), "what never worked is not placed on"
    assert list(offer.devices) == ["cpu", "cuda:0", "cuda:1"]
    assert offer.kinds == {"cpu", "cuda"}
    assert offer.update([cpu(), gpu(), BAD]) == (set(), [])
    broken = gpu(problem="it fell off the bus")
    assert offer.update([cpu(8), broken, BAD]) == (set(), [cpu(8), broken])
    assert (offer.kinds, offer.host) == ({"cpu"}, cpu(8))
    assert offer.update([cpu(8), replace(BAD, problem="")]) == ({"cuda:0"}, [replace(BAD, problem="")])
    assert offer.update([cpu(8), gpu(), gpu(1)]) == (set(), [gpu()])


@pytest.mark.parametrize(
    ("setting", "usable"),
    [
        ("auto", ["cpu", "cuda:0", "cuda:1"]),
        ("cpu", ["cpu"]),
        ("cuda", ["cpu", "cuda:0", "cuda:1"]),
        ("cuda:1", ["cpu", "cuda:1"]),
    ],
)
def test_settings_choose_among_devices(setting: str, usable: list[str]) -> None:
    offer = Offer(setting)
    offer.update([cpu(), gpu(), gpu(1)])
    assert list(offer.devices) == usable, "the host is there always: its memory bounds what runs beside it"


def test_plans_are_those_for_what_may_prove(tmp_path: Path) -> None:
    path = tmp_path / "a.zkey"
    path.write_text("key")
    info = FakeExecutor().info(str(path))
    found = {}
    for setting in ("auto", "cpu", "cuda", "cuda:0"):
        offer = Offer(setting)
        offer.update([cpu(), gpu(), BAD])
        found[setting] = sorted(offer.shape(info).plans)
    assert found == {"auto": ["cpu", "cuda"], "cpu": ["cpu"], "cuda": ["cuda"], "cuda:0": ["cuda"]}
    offer = Offer("cuda:1")
    offer.update([cpu(), gpu(), BAD])
    with pytest.raises(DeviceError, match="no driver"):
        offer.shape(info)
    with pytest.raises(DeviceError, match="device 'cuda:7' is not available to the prover"):
        Offer("cuda:7").shape(info)
