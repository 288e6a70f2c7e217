"""Placement of single proofs, and admission by simulation: a clock that jumps, machines that fail."""

from __future__ import annotations

import heapq
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuprover.backend import MemoryPlan
from gpuprover.errors import MAX_MESSAGE, DeviceError, InvalidInput, OutOfMemory, QueueFull, Timeout
from gpuprover.scheduler import (
    TIERS,
    Degrade,
    Device,
    JobShape,
    Outcome,
    Placement,
    Run,
    Scheduler,
    State,
    Ticket,
    Verdict,
    choose,
    place,
    tier_of,
)
from gpuprover.scheduler.admission import LOSSES, PRIORITY_SECONDS

MIB, GIB = 1 << 20, 1 << 30
WORK = "work"


@dataclass(frozen=True)
class FakeTimes:
    """Seconds of a CPU: a part in one thread, the rest shared; of a GPU: launches and a slope."""

    known: bool = True
    gpu: float = 4e-8
    part: float = 0.4
    """Of a proof's time, what its one part takes."""
    launches: float = 0.02

    def seconds(
        self, work: str, device: Device, constraints: int, threads: int, part: str | None = None
    ) -> float:
        assert work == WORK
        share = 1.0 if part is None else self.part
        if device.kind == "cpu":
            return share * (0.002 + 2e-7 * constraints + 5e-6 * constraints / threads)
        return share * (self.launches + self.gpu * constraints)

    def measured(self, work: str, device: Device) -> bool:
        return self.known


def plans(constraints: int) -> dict[str, list[MemoryPlan]]:
    key, arena = 500 * constraints, 200 * constraints
    return {
        "cpu": [MemoryPlan(key, 40 * constraints, arena, 0)],
        "cuda": [
            MemoryPlan(key, 4 * key, arena, 32 * constraints),
            MemoryPlan(key, 0, arena, 32 * constraints),
            MemoryPlan(key // 8, 0, arena // 4, 64 * constraints),
        ],
    }


def shape(constraints: int, **changes: object) -> JobShape:
    return replace(JobShape(WORK, constraints, plans(constraints), ("G2",)), **changes)


def cpu(threads: int = 8, memory: int | None = 16 * GIB) -> Device:
    return Device("cpu", "cpu", "processor", "portable", threads, memory)


def gpu(index: int = 0, memory: int = 80 * GIB, problem: str = "") -> Device:
    return Device(f"cuda:{index}", "cuda", "GPU", "sm_90", 0, memory, problem)


# Placement ------------------------------------------------------------------------


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
    assert (large.device, large.threads, large.host_groups) == ("cuda:0", 0, frozenset())
    assert large.plan == plans(1 << 20)["cuda"][0]
    assert small.reason.startswith("simple (500 constraints): cpu, 8 threads, ")
    assert large.reason == (
        "complex (1,048,576 constraints): cuda:0, 2.6 GiB of 80.0 GiB free; "
        "predicted 61.9 ms against 867 ms on cpu"
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

        def seconds(self, work: str, device: Device, *rest: object) -> float:
            return times.seconds(work, device, *rest) / (2 if device.name == "cuda:2" else 1)  # type: ignore[arg-type]

    assert place(shape(1 << 20), devices, Unequal()).device == "cuda:2"


def test_a_part_goes_to_the_host_where_both_are_measured_and_it_pays() -> None:
    n = 1 << 22
    slow_gpu = FakeTimes(gpu=4e-7)
    whole = slow_gpu.seconds(WORK, gpu(), n, 1)
    found = place(shape(n), [cpu(64), gpu()], slow_gpu)
    assert (found.device, found.threads, found.host_groups) == ("cuda:0", 64, frozenset({"G2"}))
    assert found.seconds == pytest.approx(0.6 * whole)
    assert found.host_memory == plans(n)["cuda"][0].host + 240 * n
    assert "G2 on 64 threads of the CPU" in found.reason
    for devices, times in [
        ([cpu(2), gpu()], slow_gpu),
        ([cpu(64, memory=found.host_memory - 1), gpu()], slow_gpu),
        ([cpu(64), gpu()], replace(slow_gpu, known=False)),
    ]:
        assert place(shape(n), devices, times).host_groups == frozenset()
    assert place(shape(n, parts=()), [cpu(64), gpu()], slow_gpu).host_groups == frozenset()


def test_without_a_plan_the_tier_says_what_to_reckon_with() -> None:
    unknown = shape(5000, plans={})
    assert place(unknown, [cpu()], FakeTimes()).own == 4 * GIB
    with pytest.raises(OutOfMemory):
        place(unknown, [cpu(memory=4 * GIB - 1)], FakeTimes())


def test_levels_of_degradation() -> None:
    devices = [cpu(), gpu()]
    steps = [place(shape(1 << 20), devices, FakeTimes(), level) for level in Degrade]
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
    assert found.host_groups == frozenset({"G2"})


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
        p = place(shape(constraints), devices, FakeTimes(known=known), level)
    except OutOfMemory as error:
        assert len(error.message) <= MAX_MESSAGE
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


# Admission: a simulation ------------------------------------------------------------


@dataclass
class Machine:
    """Runs what the scheduler starts, on a clock that jumps from event to event, and checks every step.

    What is taken of each device is added up here anew, from placements alone.
    """

    devices: Sequence[Device]
    times: FakeTimes = field(default_factory=FakeTimes)
    duration: Callable[[Run], float] = lambda run: run.placement.seconds
    outcome: Callable[[Run], Outcome] = lambda run: Outcome.SUCCEEDED
    limit: int = 10_000
    check: bool = True

    def __post_init__(self) -> None:
        self.now = 0.0
        self.scheduler = Scheduler(self.devices, self.times, lambda: self.now, limit=self.limit)
        self.records = {d.name: d for d in self.devices}
        self.tickets: list[Ticket] = []
        self.ended: dict[Ticket, str] = {}
        self.begun: dict[Ticket, float] = {}
        self.delivered: dict[Ticket, float] = {}
        self.active: list[Run] = []
        self.keys: dict[str, dict[str, int]] = defaultdict(dict)
        self.runs: list[Run] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    def at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), action))

    def submit(self, shape: JobShape, circuit: str = "c", **options: object) -> Ticket:
        ticket = self.scheduler.submit(shape, circuit=circuit, **options)  # type: ignore[arg-type]
        self.tickets.append(ticket)
        return ticket

    def later(self, when: float, shape: JobShape, circuit: str = "c", **options: object) -> None:
        self.at(when, lambda: self.submit(shape, circuit, **options) and None)

    def end(self, ticket: Ticket, how: str) -> None:
        assert ticket not in self.ended, "delivered twice"
        self.ended[ticket] = how

    def lose(self, name: str) -> None:
        void = self.scheduler.device_lost(name)
        assert {run for run in self.active if name in run.needs} == set(void)
        self.active = [run for run in self.active if run not in void]
        self.records[name] = replace(self.records[name], problem="lost")
        self.keys[name].clear()

    def come_back(self, device: Device) -> None:
        self.records[device.name] = device
        self.scheduler.update(device)

    def cancel(self, ticket: Ticket) -> None:
        if self.scheduler.cancel(ticket):
            self.end(ticket, "cancelled")

    def _finish(self, run: Run) -> None:
        stale = run not in self.active
        if not stale:
            self.active.remove(run)
        outcome = self.outcome(run)
        verdict = self.scheduler.finished(run, outcome)
        assert verdict is Verdict.DISCARD or not stale
        if verdict is Verdict.DELIVER:
            self.end(run.ticket, outcome.value)
            self.delivered[run.ticket] = self.now
        elif verdict is Verdict.DISCARD:
            assert stale or self.ended[run.ticket] == "cancelled"
        else:
            assert outcome in (Outcome.OUT_OF_MEMORY, Outcome.LOST)

    def _begin(self, run: Run) -> None:
        assert run.ticket not in self.ended
        assert not any(other.ticket is run.ticket for other in self.active)
        flow = (run.ticket.circuit, run.ticket.priority)
        assert not any(
            t.state is State.WAITING and t.id < run.ticket.id and (t.circuit, t.priority) == flow
            for t in self.tickets
        ), "first in, first out within a flow"
        p = run.placement
        assert not self.records[p.device].problem
        held = self.keys[p.device]
        for circuit in run.evicted:
            assert not any(
                r.ticket.circuit == circuit and r.placement.device == p.device for r in self.active
            )
            del held[circuit]
        if p.shared:
            used = any(
                r.ticket.circuit == run.ticket.circuit and r.placement.device == p.device for r in self.active
            )
            held[run.ticket.circuit] = max(p.shared, held.get(run.ticket.circuit, 0) if used else 0)
        self.active.append(run)
        self.runs.append(run)
        self.begun.setdefault(run.ticket, self.now)
        self.at(self.now + self.duration(run), lambda: self._finish(run))
        if self.check:
            self._check_limits()

    def _check_limits(self) -> None:
        for name, device in self.records.items():
            here = [r.placement for r in self.active if r.placement.device == name]
            beside = [r.placement for r in self.active if device.kind == "cpu" and r.placement.kind != "cpu"]
            threads = sum(p.threads for p in [*here, *beside] if device.kind == "cpu")
            assert threads <= device.threads
            memory = (
                sum(p.own for p in here) + sum(p.host_memory for p in beside) + sum(self.keys[name].values())
            )
            assert device.memory is None or memory <= device.memory
            if any(p.level >= Degrade.ALONE for p in here):
                assert len(here) == 1

    def idle(self) -> list[Device]:
        taken = {name for run in self.active for name in run.needs}
        return [d for d in self.records.values() if d.name not in taken and not d.problem]

    def poll(self) -> None:
        decisions = self.scheduler.poll()
        for run in decisions.starts:
            self._begin(run)
        for ticket, error in decisions.refused:
            assert isinstance(error, Timeout | OutOfMemory | DeviceError)
            self.end(ticket, error.kind)
        if self.check:
            open_ = [t for t in self.tickets if t not in self.ended]
            running = {run.ticket for run in self.active}
            assert {t for t in open_ if t.state is State.RUNNING} <= running
            assert all(t.state in (State.WAITING, State.RUNNING) for t in open_)
            assert self.scheduler.waiting == sum(t.state is State.WAITING for t in open_)
            if self.scheduler.waiting and not any(d.problem for d in self.records.values()):
                assert len(self.idle()) < len(self.records), "all is idle, and something waits"

    def run(self) -> None:
        while True:
            wakeup = self.scheduler.wakeup
            if wakeup is not None:
                self.at(max(self.now, wakeup), lambda: None)
            if not self._events:
                break
            self.now, _, action = heapq.heappop(self._events)
            action()
            self.poll()
        assert not self.scheduler.running
        assert all(t in self.ended for t in self.tickets), "a proof was lost"


def some_devices(rng: random.Random) -> list[Device]:
    host = cpu(rng.choice([1, 2, 4, 16, 64]), rng.choice([None, 8 * GIB, 64 * GIB]))
    return [host, *(gpu(i, rng.choice([2, 8, 24, 80]) * GIB) for i in range(rng.randrange(5)))]


def some_shapes(rng: random.Random, number: int) -> dict[str, JobShape]:
    """Circuits of all tiers, all of which fit the smallest machine."""
    return {f"c{i}": shape(int(10 ** rng.uniform(1.5, 6.5))) for i in range(number)}


@pytest.mark.parametrize("trial", range(12))
def test_random_arrivals_failures_cancellations_and_losses(rng: random.Random, trial: int) -> None:
    devices = some_devices(rng)
    shapes = some_shapes(rng, rng.randrange(1, 8))
    slow = {(c, d.kind): rng.uniform(0.3, 3) for c in shapes for d in devices}

    def outcome(run: Run) -> Outcome:
        weights = [90, 4, 4, 2]
        return rng.choices(list(Outcome), weights)[0]

    def duration(run: Run) -> float:
        seconds = FakeTimes().seconds(
            WORK,
            replace(devices[0], kind=run.placement.kind),
            run.ticket.shape.constraints,
            max(1, run.placement.threads),
        )
        return seconds * slow[run.ticket.circuit, run.placement.kind] * rng.uniform(0.5, 2)

    machine = Machine(devices, duration=duration, outcome=outcome)
    when = 0.0
    for _ in range(150):
        when += rng.expovariate(20)
        circuit = rng.choice(list(shapes))
        deadline = when + rng.uniform(0, 20) if rng.random() < 0.2 else None
        machine.later(when, shapes[circuit], circuit, priority=rng.choice([0, 0, 0, 1, 5]), deadline=deadline)
    for _ in range(20):
        machine.at(
            rng.uniform(0, when),
            lambda: machine.cancel(rng.choice(machine.tickets or [None])) if machine.tickets else None,
        )
    for device in devices[1:]:
        if rng.random() < 0.7:
            lost = rng.uniform(0, when)
            machine.at(lost, lambda name=device.name: machine.lose(name))
            if rng.random() < 0.5:
                machine.at(lost + rng.uniform(0.1, 5), lambda device=device: machine.come_back(device))
    machine.run()
    assert len(machine.ended) == 150
