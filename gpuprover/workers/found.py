"""The machine's devices, as workers have found them, and which of them proofs can be placed on."""

from __future__ import annotations

from dataclasses import replace

from gpuprover.errors import DeviceError
from gpuprover.scheduler import DeviceInfo
from gpuprover.workers.records import PoolSettings

SURVEYS = 2
"""Workers that may look for GPUs; if they die of it, there are none."""


class FoundDevices:
    """The CPU and GPUs that workers have found, each by its name.

    Attributes:
        surveys: workers that may look for GPUs still; 0 when it is known which there are.
    """

    def __init__(self, settings: PoolSettings) -> None:
        self._settings = settings
        self._machine: dict[str, DeviceInfo] = {}
        self._broken: dict[str, DeviceError] = {}
        self.surveys = 0 if settings.gpus == () else SURVEYS

    @property
    def known(self) -> bool:
        """Whether it is known which devices there are."""
        return bool(self._machine) and not self.surveys

    def found(self, name: str, own: DeviceInfo, others: list[DeviceInfo]) -> bool:
        """Takes what a worker that is ready says: its own device, and, if it has looked, all of the machine.

        Args:
            name: the device that the worker was started for.

        Returns:
            whether it has looked, and found a GPU that can be used.
        """
        self._broken.pop(name, None)
        self._machine[name] = own
        if not others:
            return False
        self.surveys = 0
        gpus = [device for device in others if device.kind != own.kind]
        for gpu in gpus:
            self._machine.setdefault(gpu.name, gpu)
        return any(not gpu.problem for gpu in gpus)

    def kind(self, name: str) -> str:
        """The kind of a device that was found."""
        return self._machine[name].kind

    def give_up(self, name: str, error: DeviceError) -> None:
        """Has proofs for a device fail, until a worker for it is ready."""
        self._broken[name] = error

    def rest(self, name: str, problem: str) -> None:
        """Takes a device for one that has a problem, until a worker for it is ready."""
        self._machine[name] = replace(self._machine[name], problem=problem)

    @property
    def failure(self) -> DeviceError | None:
        """Why a device was given up, if nothing can be placed anywhere; else None."""
        return next(iter(self._broken.values()), None) if not self.usable() else None

    def problem_of(self, name: str) -> DeviceError | None:
        """Why nothing can run on a device, now and soon; None where it can, or where it is not known yet."""
        if name in self._broken:
            return self._broken[name]
        if not self.known or any(usable.name == name for usable in self.usable()):
            return None
        known = self._machine.get(name)
        problem = known.problem if known is not None else ""
        return DeviceError(f"device {name!r}: {problem or 'there are no workers for it'}")

    def usable(self) -> list[DeviceInfo]:
        """Devices that proofs can be placed on."""
        return [
            device
            for name, device in self._machine.items()
            if self.known and not device.problem and name not in self._broken and self._chosen(device)
        ]

    def offered(self, room: int | None) -> list[DeviceInfo]:
        """The devices that an executor offers: those that were chosen, with their problems and memory.

        Args:
            room: bytes that proofs may take of the host.
        """
        if not self.known:
            return [DeviceInfo("cpu", "cpu", problem=error.told) for error in self._broken.values()]
        return [self._offer(device, room) for device in self._machine.values() if self._chosen(device)]

    def _chosen(self, device: DeviceInfo) -> bool:
        gpus = self._settings.gpus
        return device.kind == "cpu" or gpus is None or device.name in gpus

    def _offer(self, device: DeviceInfo, room: int | None) -> DeviceInfo:
        settings = self._settings
        if device.name in self._broken:
            device = replace(device, problem=self._broken[device.name].told)
        if device.kind == "cpu":
            return replace(device, threads=settings.threads, memory=room, proofs=settings.max_workers)
        return replace(device, proofs=settings.gpu_proofs)
