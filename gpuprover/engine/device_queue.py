"""Jobs whose keys are loaded, until the scheduler starts them on a device.

The scheduler learns here which devices there are, and what proofs may take of the host's memory. A proof that
does not fit the limit, and might if the processes held as little as they once did, is tried again after a
shrink before it is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from gpuprover.engine.headroom import SETTLE_SECONDS, Headroom
from gpuprover.engine.offer import Offer
from gpuprover.engine.records import Work
from gpuprover.engine.timers import Timers
from gpuprover.errors import DeviceError, OutOfMemory, ProverError
from gpuprover.executor import KeyInfo
from gpuprover.scheduler import Assignment, DeviceInfo, Scheduler

log = logging.getLogger("gpuprover.engine")


class DeviceQueue:
    """The jobs that wait for a device, and those that run on one.

    Not for several threads at once: its owner has the lock.

    Args:
        offer: the devices that may be used.
        scheduler: decides which job starts where.
        headroom: the room on the host.
        timers: the owner's timers.
        idle: whether nothing runs.
        lose: forgets the run of a job whose device is gone.
        again: takes a job that may be placed now, as if its key had just come.
        end: gives a job that cannot be placed its answer.

    Attributes:
        due: :meth:`poll` has something to decide.
    """

    def __init__(
        self,
        offer: Offer,
        scheduler: Scheduler,
        headroom: Headroom[Work],
        timers: Timers,
        idle: Callable[[], bool],
        lose: Callable[[Work], None],
        again: Callable[[Work], None],
        end: Callable[[Work, ProverError], None],
    ) -> None:
        self._offer, self._scheduler, self._headroom, self._timers = offer, scheduler, headroom, timers
        self._idle, self._lose, self._again, self._end = idle, lose, again, end
        self.due = False
        # Jobs that the scheduler has, and those without any device yet.
        self._tickets: dict[int, Work] = {}
        self._unplaced: list[Work] = []

    def __len__(self) -> int:
        """The number of jobs that wait for a device, or run on one."""
        return len(self._tickets) + len(self._unplaced)

    # Jobs ------------------------------------------------------------------------------

    def submit(self, work: Work, info: KeyInfo) -> None:
        """Takes a job whose key is loaded."""
        if not self._offer.devices:
            self._unplaced.append(work)
            return
        self._measure()
        try:
            ticket = self._scheduler.submit(
                self._offer.shape(info),
                circuit=work.circuit.label,
                priority=work.job.priority,
                tenant=work.tenant,
                since=work.submitted,
            )
        except ProverError as error:
            self._unplaceable(work, error)
            return
        work.ticket, self._tickets[ticket.id] = ticket, work
        self.due = True

    def forget(self, work: Work) -> None:
        """Drops the ticket of a job that the scheduler has done with, if it has one."""
        if work.ticket is not None:
            del self._tickets[work.ticket.id]
            work.ticket = None

    def leave(self, work: Work) -> None:
        """Has a job wait no more, if it does."""
        if work in self._unplaced:
            self._unplaced.remove(work)
        if work.ticket is not None:
            self._scheduler.cancel(work.ticket)
            self.due = True

    def poll(self) -> list[tuple[Work, Assignment]]:
        """The runs to begin now. A job that no device takes any more is tried again later, or ends."""
        self.due = False
        if self._scheduler.waiting:
            self._measure()
        starts, refused = self._scheduler.poll()
        for ticket, error in refused:
            self._unplaceable(self._tickets[ticket.id], error)
        return [(self._tickets[run.ticket.id], run) for run in starts]

    def _unplaceable(self, work: Work, error: ProverError) -> None:
        """No device could take a job, as things are."""
        self.forget(work)
        assert work.info is not None
        try:
            self._offer.shape(work.info)
        except DeviceError as problem:
            error = problem
        if isinstance(error, OutOfMemory) and not work.shrunk and self._headroom.may_grow:
            work.shrunk = True
            self._headroom.shrink_soon()
            self._timers.after(SETTLE_SECONDS, partial(self._again, work))
            return
        self._end(work, error)

    # Devices and memory ----------------------------------------------------------------

    def update(self, offered: list[DeviceInfo]) -> None:
        """Takes what an executor offers now."""
        gone, changed = self._offer.update(offered)
        for name in gone:
            log.warning("%s is gone", name)
            self.due = True
            for run in self._scheduler.device_lost(name):
                work = self._tickets.get(run.ticket.id)
                if work is not None:
                    self._lose(work)
        self._measure()
        for device in changed:
            self._tell(device)
        if self._offer.devices:
            unplaced, self._unplaced = self._unplaced, []
            for work in unplaced:
                self._again(work)

    def _measure(self) -> None:
        """Tells the scheduler what proofs may take of the host."""
        host = self._offer.host
        if host is not None and self._headroom.measure(host.memory, idle=self._idle()):
            self._tell(host)

    def _tell(self, device: DeviceInfo) -> None:
        known = replace(device, memory=self._headroom.room) if device.kind == "cpu" else device
        self._scheduler.update(known)
        self.due = True
