"""The lives of workers: how they start, when their silence is their end, who comes after them.

A slot has one worker at a time, beside its successor while that starts. A worker that has made many proofs or
holds much memory is replaced after its successor is ready; on a GPU, whose memory the two would share, before
that starts. What died is started again after growing delays. A GPU that fails under several processes in a
row rests, and one process tries it from time to time.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import count
from typing import Any

from gpuprover.errors import DeviceError, ProverError, code_location, shortage
from gpuprover.memory import MIB
from gpuprover.messages import Channel
from gpuprover.processes import Backoff, Child, spawn
from gpuprover.settings import WORKER_BYTES
from gpuprover.workers.found import FoundDevices
from gpuprover.workers.records import PoolSettings, Slot, Worker
from gpuprover.workers.troubles import Troubles, log

START_TRIES = 4
"""Failed starts in a row, by faults of the workers' own, after which callers get an error; starting goes on.
What the system refuses and what kills workers may pass: there callers get it later (``worker_wait``)."""
DEVICE_TRIES = 3
"""Processes in a row that may end by a failure of their GPU, fail to start it, or die or hang with proofs on
it, before it rests."""
STEADY_SECONDS = 10.0
"""A worker that has lived so long, or made a proof, has started well: its next start is not delayed."""
EXIT_SECONDS = 5.0
"""Seconds for a worker that has nothing to do to end."""
REAP_SECONDS = 0.2
"""Seconds that are waited for a killed process at once; then it is looked after in each step."""
KILLED_SECONDS = 10.0
"""Seconds for a killed process to be gone, after which it is left to the system: gigabytes take moments."""
GRAIN = 16 << 20
"""Bytes to a multiple of which memory for proofs is reported: it does not change with every page."""


class Slots:
    """The slots of a pool, and the processes in them. For the supervisor's thread alone.

    Args:
        settings: the pool's settings.
        found: the machine's devices.
        troubles: the record of what goes wrong.
        pinned: paths of the keys that every worker keeps.
        listen: called with each new worker, whose socket is to be listened to; may raise OSError.
        lost: called with each worker that is gone, and why; what it was doing is the caller's to end.

    Attributes:
        closing: no worker is started any more, and no failure of a GPU is counted.
    """

    def __init__(
        self,
        settings: PoolSettings,
        found: FoundDevices,
        troubles: Troubles,
        pinned: Callable[[], Iterable[str]],
        listen: Callable[[Worker], None],
        lost: Callable[[Worker, str], None],
    ) -> None:
        self._settings, self._found, self._troubles = settings, found, troubles
        self._pinned, self._listen, self._lost = pinned, listen, lost
        self._slots: list[Slot] = []
        self._dying: list[tuple[Child, float]] = []
        self.closing = False

    def __iter__(self) -> Iterator[Slot]:
        return iter(list(self._slots))

    def workers(self) -> list[Worker]:
        """All processes, successors among them."""
        return [worker for slot in self._slots for worker in slot.workers()]

    @property
    def left(self) -> bool:
        """Whether a slot, or a process that was killed, is there still."""
        return bool(self._slots or self._dying)

    def room(self, own: int) -> int | None:
        """Bytes of the memory limit that processes do not take for themselves; None without a limit.

        Args:
            own: bytes that this process holds.
        """
        settings = self._settings
        if settings.memory_limit is None:
            return None
        mine = [slot.worker for slot in self._slots if slot.worker is not None]
        taken = sum(max(worker.at_rest, WORKER_BYTES) for worker in mine)
        missing = settings.max_workers - sum(worker.slot.device == "cpu" for worker in mine)
        room = settings.memory_limit * MIB - own - taken - max(0, missing) * WORKER_BYTES
        return max(0, room // GRAIN * GRAIN)

    # How many ---------------------------------------------------------------------------------

    def resize(self, waiting: int, loading: bool, busy: Callable[[Worker], bool], now: float) -> None:
        """Has as many CPU workers as there is work for, and one for each GPU.

        Args:
            waiting: requests that wait for a CPU worker.
            loading: there are keys to load.
            busy: whether a worker has something to do besides proofs.
        """
        if self.closing:
            return
        settings = self._settings
        for device in self._found.usable():
            if device.kind != "cpu" and all(slot.device != device.name for slot in self._slots):
                self._add(device.name, device.name, now)
        mine = [slot for slot in self._slots if slot.device == "cpu" and not slot.closing]
        work = waiting + (loading and not mine)
        free = sum(1 for slot in mine if slot.worker is None or not slot.worker.runs)
        least = settings.min_workers if self._found.known else max(1, settings.min_workers)
        for _ in range(min(settings.max_workers, max(least, len(mine) + work - free)) - len(mine)):
            names = {slot.name for slot in self._slots}
            self._add(next(name for i in count() if (name := f"cpu-{i}") not in names), "cpu", now)
        for slot in reversed(mine[least:]):
            worker = slot.worker
            if worker is None and slot.failures and not work:
                self._slots.remove(slot)
                continue
            if worker is None or work or not worker.open or worker.runs or busy(worker):
                continue
            if now - worker.idle_since > settings.idle_timeout:
                self._close(slot, now)

    def _add(self, name: str, device: str, now: float) -> None:
        slot = Slot(name, device, Backoff(*self._settings.backoff), Backoff(*self._settings.rest))
        self._slots.append(slot)
        self._tend(slot, now)

    def _close(self, slot: Slot, now: float) -> None:
        slot.closing = True
        for worker in slot.workers():
            self.stop(worker, now)

    def close(self, now: float) -> None:
        """Has every worker end when its proofs have."""
        self.closing = True
        for slot in list(self._slots):
            self._close(slot, now)
            if not slot.workers():
                self._slots.remove(slot)

    def end(self, why: str) -> None:
        """Ends every process at once, and waits for each."""
        for worker in self.workers():
            with suppress(Exception):
                self._bury(worker, why)
        for child, _ in self._dying:
            with suppress(Exception):
                child.wait(KILLED_SECONDS)
                child.close()
        self._slots, self._dying = [], []

    # Start ------------------------------------------------------------------------------------

    def _tend(self, slot: Slot, now: float) -> None:
        """Starts what a slot needs."""
        if slot.closing or slot.again > now:
            return
        worker = slot.worker
        if worker is None:
            slot.worker = self._begin(slot, now)
        elif worker.wear and worker.open and slot.successor is None:
            log.info("%s: process %d is replaced: %s", slot.name, worker.child.pid, worker.wear)
            if slot.device == "cpu":
                slot.successor = self._begin(slot, now)
            else:  # what it holds of the GPU its successor would have to do without
                self.stop(worker, now)
        elif slot.successor is not None and slot.successor.ready:
            self.stop(worker, now)

    def _begin(self, slot: Slot, now: float) -> Worker | None:
        """Starts a process for a slot; None if the system does not."""
        with ExitStack() as opened:
            try:
                mine, theirs = socket.socketpair()
                opened.enter_context(mine)
                with theirs:
                    number = theirs.fileno()
                    child = spawn("gpuprover.workers", str(number), str(os.getpid()), fds=[number])
                opened.callback(self._end_process, child)
                pinned = set(self._pinned())
                worker = Worker(slot, child, Channel(mine), mine, now, now, now, now, pinned)
                self._listen(worker)
            except Exception as error:
                known = error if isinstance(error, ProverError) else shortage(error)
                what = f"{type(error).__name__} in {code_location(error.__traceback__)}"
                why, told = (known.message, known.told) if known else (what, what)
                why = f"no process could be started: {why}"
                self._failed_to_start(slot, why, f"no process could be started: {told}", now)
                self._troubles.tell(logging.WARNING, slot.name, f"{slot.name}: {why}")
                return None
            opened.pop_all()
        worker.surveys = slot.name == "cpu-0" and self._found.surveys > 0
        settings = self._settings
        start = {
            "type": "start",
            "device": slot.device,
            "threads": settings.threads,
            "key_bytes": settings.key_cache * MIB,
            "pinned": sorted(pinned),
            "warm": settings.warm,
            "survey": worker.surveys,
        }
        self.send(worker, start)
        return worker

    def _failed_to_start(self, slot: Slot, why: str, told: str, now: float, own: bool = False) -> None:
        """``told``: as for :meth:`gone`; ``own``: by a fault of the worker's own, which would fail again."""
        slot.failing = slot.failing if slot.failures else now
        slot.failures += 1
        slot.faults = slot.faults + 1 if own else 0
        slot.problem, slot.again = told, max(slot.again, now + slot.backoff.next())
        ready = any(worker.ready for worker in self.workers() if worker.slot.device == slot.device)
        if own and slot.device != "cpu":
            self._count_failure(slot, told, now)
        hopeless = slot.faults >= START_TRIES or now - slot.failing >= self._settings.worker_wait
        if hopeless and not ready:
            problem = f"{slot.device}: {slot.failures} times in a row no worker started"
            self._found.give_up(slot.device, DeviceError(problem, more=f"because {why}"))

    def proved(self, slot: Slot) -> None:
        """Forgets past failures: a proof was made there."""
        slot.device_failures = 0
        slot.backoff.reset()
        slot.rest.reset()

    # Messages ---------------------------------------------------------------------------------

    def send(self, worker: Worker, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Without waiting: a worker that has left its messages lying is at fault, and killed soon."""
        try:
            worker.channel.send(message, fds, timeout=0)
        except Exception as error:
            if not isinstance(error, ProverError):
                self._troubles.stumble("a message to a worker", error)
            worker.fault = worker.fault or "it takes no messages"
            worker.stopping, worker.leave = True, 0.0

    def stop(self, worker: Worker, now: float) -> None:
        """Asks a worker to end when its runs have."""
        if worker.stopping:
            return
        worker.stopping = True
        if not worker.ready:
            worker.leave = now
            return
        if not worker.runs:
            worker.leave = now + EXIT_SECONDS
        self.send(worker, {"type": "stop"})

    # Silence and end --------------------------------------------------------------------------

    def look(self, now: float) -> None:
        """Does what is due because time has passed: ends who is silent, starts what is needed, reaps."""
        for worker in self.workers():
            why = self._overdue(worker, now)
            if why:
                worker.fault = worker.fault or ("" if worker.stopping else why)
                worker.slot.silent += worker.slot.worker is worker and not worker.stopping
                self.gone(worker, why, now)
            elif worker.ready and now - worker.born > STEADY_SECONDS:
                worker.slot.backoff.reset()
        for slot in list(self._slots):
            self._tend(slot, now)
        self._reap(now)

    def times(self, now: float) -> list[float]:
        """When :meth:`look` has something to do."""
        times = [worker.leave for worker in self.workers() if worker.leave is not None]
        times += [slot.again for slot in self._slots if slot.worker is None]
        return [*times, now + REAP_SECONDS] if self._dying else times

    def trim(self) -> None:
        """Lets go of what processes wrote that nobody will read."""
        for worker in self.workers():
            worker.child.trim()

    def _overdue(self, worker: Worker, now: float) -> str:
        """Why a worker has to be killed, if it has."""
        settings = self._settings
        if worker.leave is not None and worker.leave <= now:
            return worker.fault or "it did not end"
        if worker.ready and now - worker.heard > settings.heartbeat_timeout:
            return f"it was silent for {settings.heartbeat_timeout:g} s"
        if not worker.ready and now - worker.moved > settings.init_timeout:
            return f"its start did not go on for {settings.init_timeout:g} s"
        if worker.runs and now - worker.moved > settings.stall_timeout:
            return f"it neither computed nor reported anything for {settings.stall_timeout:g} s"
        return ""

    def fail(self, worker: Worker, why: str, now: float) -> None:
        """Ends a worker that is at fault, if it is there still."""
        if worker in worker.slot.workers():
            worker.fault = worker.fault or why
            self.gone(worker, worker.fault, now)

    def gone(self, worker: Worker, why: str, now: float, told: str = "") -> None:
        """A process has ended, or has to. Its slot goes on with its successor, or with a new one.

        Args:
            told: why, for a status, which strangers may read; else as ``why`` says.
        """
        slot, was_worker = worker.slot, worker.slot.worker is worker
        if not worker.stopping or worker.fault:
            told = worker.told or worker.fault or told or why
            why = worker.fault or why
            line = f"{slot.name}: process {worker.child.pid}: {why}"
            self._troubles.tell(logging.WARNING, slot.name, line)
            slot.restarts += was_worker
            if worker.ready:
                slot.problem = slot.problem if slot.again > now else told
                slot.again = max(slot.again, now + slot.backoff.next())
            else:
                self._found.surveys -= worker.surveys
                own = worker.failed or not worker.child.killed
                self._failed_to_start(slot, why, told, now, own=own)
        elif was_worker:
            slot.recycled += bool(worker.wear)
        if worker.runs:
            self.device_failed(worker, told or why, now)
        self._bury(worker, why)
        if slot.closing and not slot.workers():
            self._slots.remove(slot)

    def device_failed(self, worker: Worker, told: str, now: float) -> None:
        """Counts a failure of a worker's device. Sticky CUDA errors end with the process: another gets the
        device, a few times.

        Then the device rests, and after that one process tries it: if it starts, the device is used again,
        and rests at once, and longer, if it fails again before a proof is made.
        """
        # Proofs that ran there beside each other report one failure.
        if worker.failed_device or worker.slot.device == "cpu" or self.closing:
            return
        worker.failed_device = True
        self._count_failure(worker.slot, told, now)

    def _count_failure(self, slot: Slot, told: str, now: float) -> None:
        slot.device_failures += 1
        if slot.device_failures >= DEVICE_TRIES:
            seconds = slot.rest.next()
            slot.again, slot.problem = now + seconds, told
            self._found.rest(slot.device, told)
            self._troubles.tell(
                logging.ERROR,
                f"{slot.name} rests",
                f"{slot.name}: it failed under {slot.device_failures} processes in a row, and is tried "
                f"again in {seconds:.0f} s: {told}",
            )

    def _bury(self, worker: Worker, why: str) -> None:
        """Ends a process, if it has not ended, and whatever it was doing."""
        slot = worker.slot
        if slot.worker is worker:
            slot.worker, slot.successor = slot.successor, None
        else:
            slot.successor = None
        try:
            self._lost(worker, why)
        finally:
            self._end_process(worker.child, worker.channel)

    def _end_process(self, child: Child, channel: Channel | None = None) -> None:
        """Kills it; what does not go at once is looked after in each step, for a while."""
        try:
            if channel is not None:
                channel.close()
            child.kill()
            if child.wait(REAP_SECONDS):
                child.close()
                return
        except Exception as error:
            self._troubles.stumble("the end of a process", error)
        self._dying.append((child, time.monotonic() + KILLED_SECONDS))

    def _reap(self, now: float) -> None:
        """Forgets killed processes that have ended, and those that do not."""
        left = []
        for child, until in self._dying:
            try:
                if not child.ended() and until > now:
                    child.kill()
                    left.append((child, until))
                    continue
                child.close()
            except Exception as error:
                self._troubles.stumble("the end of a process", error)
                left += [(child, until)] if until > now else []
        self._dying = left
