"""Admission: which of many waiting proofs may start now, and where, so that no device is overcommitted.

A poll visits the flows (tenant, circuit and priority; first in, first out within) by rank, and for the first
proof of each weighs starting now, with what is free, against waiting for a device:

1. Rank: the seconds of proving that its tenant has had, from the least (start-time fair queueing: Goyal, Vin
   and Cheng, SIGCOMM 1996), and among a tenant's flows those that its circuit has had, where each step of
   priority is worth ``PRIORITY_SECONDS``. Who waits rises by a step in that time, up to the highest priority
   of its tenant that waits. So tenants share, whatever priorities they send, and so do circuits of a tenant.
   Who has waited for ``overtaking`` seconds has every second turn, those before the others who were submitted
   first. So a proof waits no longer than that, and then for two turns for each that waited before it, and for
   itself; new tenants, circuits, priorities and proofs, however many, change nothing about it.
2. Device: the earliest predicted end. A flow counts all that wait in it as ahead of it on the device it would
   wait for; so a long one sends some to slower devices that stand idle.
3. Who waits for a device books it: others start there only if they end before, or leave room (EASY
   backfilling: Lifka, JSSPP 1995). So small proofs cannot starve a large one.

A decision costs O(flows · devices · running); nothing depends on how many wait.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from itertools import count
from typing import NamedTuple

from gpuprover.errors import DeviceError, ProverError, QueueFull, Timeout
from gpuprover.scheduler.placement import (
    Degrade,
    DeviceInfo,
    JobShape,
    Placement,
    Times,
    explain,
    nothing_fits,
    propose,
    sift,
)

PRIORITY_SECONDS = 10.0
"""Seconds of waiting after which a proof counts as one priority higher."""
TURN_SECONDS = 0.5
"""A tenant, and a circuit of it, keep their turn for so much proving more than their share: proofs with one
key follow each other."""
OVERTAKING_SECONDS = 60.0
"""Seconds of waiting after which a proof has every second turn."""
IDLE_SHARES = 1024
"""Tenants, and circuits of a tenant, that are remembered while they have nothing to prove."""
LEARNING = 0.3
"""Weight of the latest observation in the factor between a circuit's observed and predicted times."""
LOSSES = 3
"""A proof whose device or worker died under it so often is not tried again."""
LOSSES_ON_GPU = 2
"""Losses after which the CPU takes over a proof whose GPU's worker died, if it may."""


class Outcome(Enum):
    """How a run ended.

    DEVICE_FAILED: the device could not, or what it made is doubted, and the CPU may. LOST: the worker or the
    device died, and nothing is known of the proof.
    """

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    OUT_OF_MEMORY = "out of memory"
    DEVICE_FAILED = "device failed"
    LOST = "lost"


class Verdict(Enum):
    """What becomes of a run's result. Of all runs of a ticket, DELIVER comes for one at most."""

    DELIVER = "deliver"
    RETRY = "retry"
    DISCARD = "discard"


class State(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"


@dataclass(eq=False)
class Ticket:
    """A proof that was submitted; ``level`` and ``losses`` say what has happened to it."""

    id: int
    tenant: str
    circuit: str
    shape: JobShape
    priority: int
    submitted: float
    deadline: float | None
    state: State = State.WAITING
    level: Degrade = Degrade.NONE
    losses: int = 0


class _Need(NamedTuple):
    """What a run takes of one device. ``proof``: it is the device that proves, not the host beside it."""

    circuit: str
    threads: int
    own: int
    shared: int
    proof: bool
    alone: bool


@dataclass(frozen=True, eq=False)
class Assignment:
    """A ticket's proof, started.

    Attributes:
        evicted: circuits whose keys leave the device's memory first.
        ends: predicted, neighbours on a GPU included.
    """

    ticket: Ticket
    placement: Placement
    evicted: tuple[str, ...]
    started: float
    ends: float
    needs: Mapping[str, _Need]


class Decisions(NamedTuple):
    """Runs to start, and tickets that end without one, each with its error."""

    starts: list[Assignment]
    refused: list[tuple[Ticket, ProverError]]


class _Load:
    """What of a device is taken, and the keys in its memory: circuit -> (bytes, runs), last used last."""

    def __init__(self, device: DeviceInfo) -> None:
        self.device = device
        self.threads = self.own = self.pinned = self.proofs = 0
        self.alone = False
        self.keys: dict[str, tuple[int, int]] = {}

    def copy(self) -> _Load:
        other = _Load(self.device)
        other.__dict__ |= {**self.__dict__, "keys": dict(self.keys)}
        return other

    def fits(self, need: _Need) -> bool:
        most = 1 if self.alone or need.alone else self.device.proofs
        if need.proof and most is not None and self.proofs >= most:
            return False
        held, runs = self.keys.get(need.circuit, (0, 0))
        memory = self.own + need.own + self.pinned + max(0, need.shared - (held if runs else 0))
        return self.threads + need.threads <= self.device.threads and (
            self.device.memory is None or memory <= self.device.memory
        )

    def add(self, need: _Need) -> None:
        self.threads += need.threads
        self.own += need.own
        self.proofs += need.proof
        self.alone |= need.alone
        if need.shared:
            held, runs = self.keys.pop(need.circuit, (0, 0))
            size = max(need.shared, held) if runs else need.shared
            self.pinned += size - (held if runs else 0)
            self.keys[need.circuit] = size, runs + 1

    def remove(self, need: _Need) -> None:
        self.threads -= need.threads
        self.own -= need.own
        self.proofs -= need.proof
        self.alone &= not need.alone
        if need.shared:
            held, runs = self.keys.pop(need.circuit)
            self.pinned -= held if runs == 1 else 0
            self.keys[need.circuit] = held, runs - 1

    @property
    def held(self) -> int:
        """Bytes of all keys."""
        return sum(size for size, _ in self.keys.values())

    def evict(self) -> tuple[str, ...]:
        """Drops keys that no run uses, oldest first, until the rest fits; all of them for a proof alone."""
        idle = [circuit for circuit, (_, runs) in self.keys.items() if not runs]
        over = self.own + self.held - (self.device.memory or 0)
        gone = []
        for circuit in idle if self.device.memory is not None or self.alone else ():
            if over <= 0 and not self.alone:
                break
            over -= self.keys.pop(circuit)[0]
            gone.append(circuit)
        return tuple(gone)


class _Key(NamedTuple):
    """What names a flow."""

    tenant: str
    circuit: str
    priority: int


class _Flow:
    """Waiting proofs of one tenant, circuit and priority, by submission: a retried one has its old place."""

    def __init__(self) -> None:
        self.waiting = 0
        self._heap: list[tuple[float, int, Ticket]] = []

    def add(self, ticket: Ticket) -> None:
        self.waiting += 1
        heapq.heappush(self._heap, (ticket.submitted, ticket.id, ticket))

    def remove(self, ticket: Ticket) -> None:
        """Its state is another already; only the first is taken out at once."""
        self.waiting -= 1
        if self._heap[0][2] is ticket:
            heapq.heappop(self._heap)

    def first(self) -> Ticket:
        while self._heap[0][2].state is not State.WAITING:
            heapq.heappop(self._heap)
        return self._heap[0][2]


class _Shares:
    """Seconds of proving that each of several has had, by start-time fair queueing."""

    def __init__(self) -> None:
        self._had: dict[str, float] = {}
        self._virtual = 0.0

    def __getitem__(self, name: str) -> float:
        return self._had[name]

    def enter(self, name: str) -> None:
        """Who comes anew has no credit for the time before."""
        self._had[name] = max(self._virtual, self._had.get(name, 0.0))

    def serve(self, name: str, seconds: float) -> None:
        self._virtual = max(self._virtual, self._had[name])
        self._had[name] += seconds

    def forget(self, busy: Collection[str]) -> None:
        """Bounds what is kept: anybody may come under new names."""
        if len(self._had) > len(busy) + IDLE_SHARES:
            self._had = {name: had for name, had in self._had.items() if name in busy}


class _Booking(NamedTuple):
    """From ``when`` on a device is promised; ``load`` is what will be taken of it then, with the promise."""

    when: float
    load: _Load


class _Option(NamedTuple):
    """A way to run a proof, the best first: to start it now, or, with bookings, to wait."""

    end: float
    taken: float
    order: int
    placement: Placement
    needs: dict[str, _Need]
    bookings: dict[str, _Booking] | None


class Scheduler:
    """Holds what waits and what runs. Not for several threads at once.

    Args:
        devices: the CPU, and what there is beside it.
        times: predictions, which observed times correct by circuit and device.
        clock: seconds that never go backwards.
        limit: tickets that may wait.
        overtaking: seconds for which others that came later may go before one that waits.

    Attributes:
        waiting: how many do.
    """

    def __init__(
        self,
        devices: Iterable[DeviceInfo],
        times: Times,
        clock: Callable[[], float],
        *,
        limit: int = 1024,
        overtaking: float = OVERTAKING_SECONDS,
    ) -> None:
        self._loads = {device.name: _Load(device) for device in devices}
        self._host = next((load for load in self._loads.values() if load.device.kind == "cpu"), None)
        self._times, self._clock, self._limit, self._overtaking = times, clock, limit, overtaking
        self._ids, self.waiting = count(), 0
        self._flows: dict[_Key, _Flow] = {}
        self._runs: dict[int, Assignment] = {}
        self._refused: list[tuple[Ticket, ProverError]] = []
        self._deadlines: list[tuple[float, int, Ticket]] = []
        self._factors: dict[tuple[str, str], float] = {}
        # Fair queueing: what tenants have had, what the circuits of each have, and whose the last start was.
        self._tenants = _Shares()
        self._circuits: dict[str, _Shares] = {}
        self._turn: tuple[str, str] | None = None
        # Whether the last start was no turn of those that have waited too long.
        self._overtaken = True

    # What callers use ----------------------------------------------------------------

    def submit(
        self,
        shape: JobShape,
        *,
        circuit: str,
        priority: int = 0,
        deadline: float | None = None,
        tenant: str = "",
        since: float | None = None,
    ) -> Ticket:
        """Queues a proof.

        Args:
            priority: higher ones go first among those of its tenant.
            deadline: on the clock, until when it may wait.
            tenant: whose it is; tenants share.
            since: the time from which it has waited; now by default.

        Raises:
            QueueFull: too many wait.
            OutOfMemory, DeviceError: no device could ever take it.
        """
        if self.waiting >= self._limit:
            raise QueueFull(f"the queue is full: {self.waiting} proofs wait")
        submitted = self._clock() if since is None else since
        ticket = Ticket(next(self._ids), tenant, circuit, shape, priority, submitted, deadline)
        self._candidates(ticket)
        self._enqueue(ticket)
        if deadline is not None:
            heapq.heappush(self._deadlines, (deadline, ticket.id, ticket))
        return ticket

    def poll(self) -> Decisions:
        """What may start now. To be called after every other call, and at :attr:`wakeup`."""
        now = self._clock()
        while self._deadlines and self._deadlines[0][0] <= now:
            ticket = heapq.heappop(self._deadlines)[2]
            if ticket.state is State.WAITING:
                self._refuse(ticket, Timeout(f"no device became free in {now - ticket.submitted:.1f} s"))
        starts: list[Assignment] = []
        booked: dict[str, _Booking] = {}
        backlog: dict[str, float] = defaultdict(float)
        tops: dict[str, int] = {}
        for key in self._flows:
            tops[key.tenant] = max(key.priority, tops.get(key.tenant, key.priority))
        ranked = [(self._rank(key, now, tops), key) for key in self._flows]
        heapq.heapify(ranked)
        late = [(t.submitted, t.id, key) for key in self._flows if self._late(t := self._first(key), now)]
        heapq.heapify(late)
        # Flows whose first has to wait for a device: they have booked it.
        seen: set[_Key] = set()
        while ranked:
            if late and self._overtaken:
                key = heapq.heappop(late)[2]
            else:
                rank, key = heapq.heappop(ranked)
                if key in self._flows and key not in seen and rank < (now_at := self._rank(key, now, tops)):
                    # Others of its tenant or circuit were started meanwhile.
                    heapq.heappush(ranked, (now_at, key))
                    continue
            if key in seen or key not in self._flows:
                continue
            ticket = self._first(key)
            was_late = self._late(ticket, now)
            try:
                run = self._decide(ticket, self._flows[key].waiting, now, booked, backlog)
            except ProverError as error:  # a device is gone, or has less memory, since it was submitted
                self._refuse(ticket, error)
            else:
                if run is None:
                    seen.add(key)
                    continue
                starts.append(run)
                self._overtaken = not was_late
            if key in self._flows:
                heapq.heappush(ranked, (self._rank(key, now, tops), key))
                if self._late(first := self._first(key), now):
                    heapq.heappush(late, (first.submitted, first.id, key))
        refused, self._refused = self._refused, []
        return Decisions(starts, refused)

    @property
    def wakeup(self) -> float | None:
        """When the first of those that wait has waited long enough."""
        while self._deadlines and self._deadlines[0][2].state is not State.WAITING:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def finished(self, run: Assignment, outcome: Outcome) -> Verdict:
        """Ends a run. After RETRY its ticket waits again; DELIVER and DISCARD are final."""
        ticket = run.ticket
        if self._runs.get(ticket.id) is not run:
            return Verdict.DISCARD
        self._end(run)
        if outcome is Outcome.SUCCEEDED:
            key = ticket.circuit, run.placement.device
            loading = run.placement.loading
            seen = (self._clock() - run.started - loading) / (run.ends - run.started - loading)
            before = self._factors.get(key)
            seen = max(seen, 0.1)  # a key came sooner than predicted: that says little about proofs
            self._factors[key] = seen if before is None else before * (1 + LEARNING * (seen - 1))
        if ticket.state is State.CANCELLED:
            return Verdict.DISCARD
        if outcome is Outcome.OUT_OF_MEMORY:
            again = self._degrade(ticket, run.placement)
        elif outcome is Outcome.DEVICE_FAILED:
            again = self._to_cpu(ticket, run.placement)
        else:
            again = outcome is Outcome.LOST and self._survives(ticket)
            if again and ticket.losses >= LOSSES_ON_GPU:
                self._to_cpu(ticket, run.placement)
        if again:
            self._enqueue(ticket)
            return Verdict.RETRY
        ticket.state = State.DONE
        return Verdict.DELIVER

    def cancel(self, ticket: Ticket) -> bool:
        """Whether it was still open. What runs keeps its place until :meth:`finished`, which discards it."""
        if ticket.state is State.WAITING:
            self._leave(ticket, State.CANCELLED)
        elif ticket.state is State.RUNNING:
            ticket.state = State.CANCELLED
        else:
            return False
        return True

    def update(self, device: DeviceInfo) -> None:
        """A device that came, came back, or has other limits now."""
        if device.name in self._loads:
            self._loads[device.name].device = device
        else:
            load = self._loads[device.name] = _Load(device)
            if self._host is None and device.kind == "cpu":
                self._host = load

    def device_lost(self, name: str) -> list[Assignment]:
        """Takes a device out until :meth:`update`. The runs returned are void: their tickets wait again."""
        load = self._loads[name]
        void = [run for run in self._runs.values() if name in run.needs]
        for run in void:
            self._end(run)
            if run.ticket.state is not State.RUNNING:
                continue
            if self._survives(run.ticket):
                self._enqueue(run.ticket)
            else:
                run.ticket.state = State.DONE
                error = DeviceError(f"{run.ticket.shape}: {LOSSES} times the device or worker died under it")
                self._refused.append((run.ticket, error))
        load.device, load.keys = replace(load.device, problem="it was lost"), {}
        return void

    @property
    def running(self) -> list[Assignment]:
        return list(self._runs.values())

    # Tickets -------------------------------------------------------------------------

    def _enqueue(self, ticket: Ticket) -> None:
        ticket.state = State.WAITING
        key = _Key(ticket.tenant, ticket.circuit, ticket.priority)
        if key not in self._flows:
            self._flows[key] = _Flow()
            self._forget()
            self._tenants.enter(ticket.tenant)
            self._circuits.setdefault(ticket.tenant, _Shares()).enter(ticket.circuit)
        self._flows[key].add(ticket)
        self.waiting += 1

    def _forget(self) -> None:
        """What tenants and circuits that have not come for long have had."""
        if len(self._circuits) <= len(self._flows) + IDLE_SHARES and len(self._factors) <= IDLE_SHARES:
            return
        busy: dict[str, set[str]] = defaultdict(set)
        for key in self._flows:
            busy[key.tenant].add(key.circuit)
        self._tenants.forget(busy)
        self._circuits = {name: shares for name, shares in self._circuits.items() if name in busy}
        for name, shares in self._circuits.items():
            shares.forget(busy[name])
        self._factors = {}

    def _leave(self, ticket: Ticket, state: State) -> None:
        """Takes a ticket that waits out of the queue."""
        ticket.state = state
        key = _Key(ticket.tenant, ticket.circuit, ticket.priority)
        self._flows[key].remove(ticket)
        self.waiting -= 1
        if not self._flows[key].waiting:
            del self._flows[key]

    def _refuse(self, ticket: Ticket, error: ProverError) -> None:
        self._leave(ticket, State.DONE)
        self._refused.append((ticket, error))

    def _first(self, key: _Key) -> Ticket:
        return self._flows[key].first()

    def _late(self, ticket: Ticket, now: float) -> bool:
        """Whether it has waited so long that it has every second turn."""
        return now - ticket.submitted >= self._overtaking

    def _rank(self, key: _Key, now: float, tops: Mapping[str, int]) -> tuple[float, float, float, int]:
        tenant, circuit, priority = key
        first = self._first(key)
        risen = min((now - first.submitted) / PRIORITY_SECONDS, tops[tenant] - priority)
        theirs = self._tenants[tenant] - (TURN_SECONDS if self._turn and tenant == self._turn[0] else 0.0)
        had = self._circuits[tenant][circuit] - (TURN_SECONDS if (tenant, circuit) == self._turn else 0.0)
        return theirs, had - (priority + risen) * PRIORITY_SECONDS, first.submitted, first.id

    def _survives(self, ticket: Ticket) -> bool:
        ticket.losses += 1
        return ticket.losses < LOSSES

    def _degrade(self, ticket: Ticket, placement: Placement) -> bool:
        """The ticket's next level; False if nothing is left to do without."""
        plans = ticket.shape.plans_for(placement.kind)
        if ticket.level < Degrade.ALONE:
            ticket.level = Degrade.ALONE
        elif ticket.level is Degrade.ON_CPU:
            return False
        elif placement.step + 1 < min(len(plans), 3):
            ticket.level = Degrade(Degrade.NO_TABLES + placement.step)
        else:
            return self._to_cpu(ticket, placement)
        return True

    def _to_cpu(self, ticket: Ticket, placement: Placement) -> bool:
        """Whether the CPU can take a proof over from another device."""
        if placement.kind == "cpu" or not ticket.shape.plans_for("cpu") or self._host is None:
            return False
        ticket.level = Degrade.ON_CPU
        return True

    # Decisions -----------------------------------------------------------------------

    def _decide(
        self, ticket: Ticket, depth: int, now: float, booked: dict[str, _Booking], backlog: dict[str, float]
    ) -> Assignment | None:
        """Starts a proof where it is predicted to end first, unless that is where it has to wait.

        ``depth`` proofs of its flow wait; of those that were looked at before and wait, ``booked`` has the
        devices' next turns, ``backlog`` the seconds.
        """
        found, out = self._candidates(ticket)
        kinds = Counter(p.kind for p in found)
        options = []
        for i, usual in enumerate(found):
            load = self._loads[usual.device]
            taken = float(load.own + load.held - (load.device.memory or 0))
            start = self._start_now(ticket, usual, now, booked)
            if start is not None:
                options.append(_Option(self._end_of(start[0], now), taken, i, *start, None))
            needs = self._needs(ticket, usual)
            if start is None or not self._fits(needs):
                bookings = self._ready(needs, now, booked)
                when = max(booking.when for booking in bookings.values())
                queue = self._cost(usual) * depth / kinds[usual.kind] - usual.seconds
                end = self._end_of(usual, when) + backlog[usual.device] + max(0.0, queue)
                options.append(_Option(end, taken, i, usual, needs, bookings))
        best = min(options, key=lambda option: option[:3])
        if best.bookings is None:
            others = [p for p in found if p.device != best.placement.device]
            return self._start(ticket, best, now, booked, others, out)
        backlog[best.placement.device] += self._cost(best.placement) * depth
        for name, booking in best.bookings.items():
            booked.setdefault(name, booking)
        return None

    def _candidates(self, ticket: Ticket) -> tuple[list[Placement], list[str]]:
        """For each device the placement that the proof would wait for; why the other devices are none."""
        devices = [load.device for load in self._loads.values()]
        proposals = [self._predict(ticket, device, self._useful(ticket.shape, device)) for device in devices]
        found, out = sift(ticket.shape, devices, self._times, proposals)
        if not found:
            raise nothing_fits(ticket.shape, devices, out)
        return found, out

    def _predict(self, ticket: Ticket, device: DeviceInfo, threads: int) -> Placement | str:
        """A proposal whose seconds know the circuit, and whether the key is there."""
        host = self._host.device if self._host is not None else None
        load = self._loads[device.name]
        found = propose(
            ticket.shape,
            device,
            self._times,
            threads=threads,
            host=host,
            level=ticket.level,
            loaded=ticket.circuit in load.keys,
        )
        if isinstance(found, str):
            return found
        factor = self._factors.get((ticket.circuit, device.name), 1.0)
        return replace(found, seconds=(found.seconds - found.loading) * factor + found.loading)

    def _cost(self, p: Placement) -> float:
        """Seconds of the whole device that a proof takes."""
        return p.seconds * (p.threads / self._loads[p.device].device.threads if p.kind == "cpu" else 1)

    def _end_of(self, p: Placement, start: float) -> float:
        """When a proof ends; neighbours on a GPU take turns with it as long as both run."""
        end = start + p.seconds
        if p.kind != "cpu":
            for run in self._runs.values():
                if run.placement.device == p.device:
                    end += min(p.seconds, run.placement.seconds, max(0.0, run.ends - start))
        return end

    def _useful(self, shape: JobShape, device: DeviceInfo) -> int:
        """Threads that are busy for half of the time at least; none for a GPU, which waits for none."""
        threads = min(device.threads, 1)
        one = self._times.seconds(shape.work, device, shape.constraints, 1)
        while threads < device.threads:
            more = min(2 * threads, device.threads)
            if self._times.seconds(shape.work, device, shape.constraints, more) * more > 2 * one:
                break
            threads = more
        return threads

    def _start_now(
        self, ticket: Ticket, usual: Placement, now: float, booked: Mapping[str, _Booking]
    ) -> tuple[Placement, dict[str, _Need]] | None:
        """The placement on the same device with what is free of it, if that may be had."""
        load = self._loads[usual.device]
        if usual.kind == "cpu":
            # A share of the threads for each that could have one.
            share = -(-load.device.threads // (load.proofs + self.waiting))
            tries = [min(usual.threads, share, load.device.threads - load.threads)]
        else:
            tries = [self._host.device.threads - self._host.threads, 0] if self._host is not None else [0]
        for threads in tries:
            if usual.kind == "cpu" and threads < 1:
                break
            found = self._predict(ticket, load.device, threads)
            if isinstance(found, str):
                break
            needs = self._needs(ticket, found)
            end = self._end_of(found, now)
            late = [name for name in needs if name in booked and end > booked[name].when]
            if self._fits(needs) and all(booked[name].load.fits(needs[name]) for name in late):
                return found, needs
        return None

    def _needs(self, ticket: Ticket, p: Placement) -> dict[str, _Need]:
        alone, circuit = p.level >= Degrade.ALONE, ticket.circuit
        threads = p.threads if p.kind == "cpu" else 0
        needs = {p.device: _Need(circuit, threads, p.own, p.shared, True, alone)}
        if p.kind != "cpu" and self._host is not None and (p.threads or p.host_memory):
            host = self._host.device.name
            needs[host] = _Need(circuit, p.threads, p.host_memory, 0, False, False)
        return needs

    def _fits(self, needs: Mapping[str, _Need]) -> bool:
        return all(self._loads[name].fits(need) for name, need in needs.items())

    def _ready(
        self, needs: Mapping[str, _Need], now: float, booked: Mapping[str, _Booking]
    ) -> dict[str, _Booking]:
        """When each device will have room if runs end as predicted, and what will be taken of it then."""
        found = {}
        for name, need in needs.items():
            when, load = booked[name].when if name in booked else now, self._loads[name].copy()
            for run in sorted((r for r in self._runs.values() if name in r.needs), key=lambda r: r.ends):
                if load.fits(need):
                    break
                load.remove(run.needs[name])
                when = max(when, run.ends)
            load.add(need)
            found[name] = _Booking(when, load)
        return found

    def _start(
        self,
        ticket: Ticket,
        option: _Option,
        now: float,
        booked: Mapping[str, _Booking],
        others: list[Placement],
        out: list[str],
    ) -> Assignment:
        placement, needs = option.placement, option.needs
        load = self._loads[placement.device]
        if load.device.memory is None:
            left = load.device
        else:
            left = replace(load.device, memory=load.device.memory - load.own - load.pinned)
        placement = replace(placement, reason=explain(ticket.shape, left, placement, others, out))
        cost = self._cost(placement)
        for name, need in needs.items():
            self._loads[name].add(need)
            if name in booked and option.end > booked[name].when:
                booked[name].load.add(need)
        run = Assignment(ticket, placement, load.evict(), now, option.end, needs)
        self._runs[ticket.id] = run
        self._leave(ticket, State.RUNNING)
        self._turn = ticket.tenant, ticket.circuit
        self._tenants.serve(ticket.tenant, cost)
        self._circuits[ticket.tenant].serve(ticket.circuit, cost)
        return run

    def _end(self, run: Assignment) -> None:
        del self._runs[run.ticket.id]
        for name, need in run.needs.items():
            self._loads[name].remove(need)
