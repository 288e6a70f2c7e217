"""Devices that an executor offers to prove on, as far as the prover's settings let them be used."""

from __future__ import annotations

from dataclasses import replace

from gpuprover.devices import is_gpu
from gpuprover.errors import DeviceError
from gpuprover.executor import KeyInfo
from gpuprover.scheduler import DeviceInfo, JobShape


class Offer:
    """Devices to prove on now, and those that the scheduler knows.

    Args:
        setting: the prover's ``device``: ``auto``, ``cpu``, ``cuda``, ``cuda:N``.

    Attributes:
        devices: those that may be used, by name; empty until known.
    """

    def __init__(self, setting: str) -> None:
        self._setting = setting
        self.devices: dict[str, DeviceInfo] = {}
        self._told: set[str] = set()

    def update(self, offered: list[DeviceInfo]) -> tuple[set[str], list[DeviceInfo]]:
        """Takes what an executor offers now.

        Returns:
            names of the devices that are gone, and the devices that are new or have changed, as the scheduler
            is to be told.
        """
        setting, before = self._setting, self.devices
        usable = [d for d in offered if d.kind == "cpu" or setting in ("auto", d.kind, d.name)]
        self.devices = {device.name: device for device in usable}
        gone = self._told - self.devices.keys()
        self._told -= gone
        # What cannot be used anyway need not be told with every placement.
        told = [d for d in usable if d.name in self._told or not (d.problem and setting == "auto")]
        changed = [device for device in told if before.get(device.name) != device]
        self._told |= {device.name for device in changed}
        return gone, changed

    @property
    def kinds(self) -> frozenset[str]:
        """Kinds of devices that can be used."""
        return frozenset(device.kind for device in self.devices.values() if not device.problem)

    @property
    def host(self) -> DeviceInfo | None:
        """The CPU; None until it is known."""
        return next((device for device in self.devices.values() if device.kind == "cpu"), None)

    def shape(self, info: KeyInfo) -> JobShape:
        """A proof's size as the scheduler takes it, with the plans for what the setting lets prove.

        Raises:
            DeviceError: that cannot be used.
        """
        shape, setting = info.shape, self._setting
        if setting == "auto":
            return shape
        asked = [device for device in self.devices.values() if setting in (device.kind, device.name)]
        plans = {kind: plans for kind, plans in shape.plans.items() if is_gpu(kind) == is_gpu(setting)}
        if not plans or all(device.problem for device in asked):
            problem = asked[0].problem if asked else ""
            raise DeviceError(problem or f"device {setting!r} is not available to the prover")
        return replace(shape, plans=plans)
