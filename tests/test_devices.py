"""Names of devices, and the backends behind them."""

from __future__ import annotations

import pytest

from gpuprover.curves import BN254
from gpuprover.devices import device_names, open_backend, resolve_device
from gpuprover.errors import DeviceError, InvalidInput
from gpuprover.job import Job


def test_registry() -> None:
    names = device_names()
    assert names[0] == "auto"
    assert "cpu" in names
    assert "reference" not in names
    assert resolve_device("auto") == "cpu"
    assert resolve_device("reference") == "reference"
    assert open_backend("reference", BN254, Job()).name == "reference"


def test_unknown_devices_are_refused_by_name() -> None:
    for name in ("cuda", "cuda:1"):
        with pytest.raises(DeviceError, match="cuda"):
            resolve_device(name)
    with pytest.raises(InvalidInput, match="'tpu'"):
        resolve_device("tpu")
    with pytest.raises(DeviceError):
        open_backend("cuda", BN254, Job())
