"""The lives of workers, over processes that a test plays: starts, silence, ends, successors, resting GPUs."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from gpuprover.errors import DeviceError
from gpuprover.memory import MIB
from gpuprover.messages import Channel
from gpuprover.scheduler import DeviceInfo
from gpuprover.settings import WORKER_BYTES
from gpuprover.workers import slots as module
from gpuprover.workers.found import FoundDevices
from gpuprover.workers.records import PoolSettings, Slot, Worker, status_of
from gpuprover.workers.slots import DEVICE_TRIES, EXIT_SECONDS, GRAIN, START_TRIES, Slots
from gpuprover.workers.troubles import Troubles

CPU, GPU = DeviceInfo("cpu", "cpu"), DeviceInfo("cuda:0", "cuda")
EXACT = {"backoff": (1.0, 2.0, 8.0, 0.0), "rest": (60.0, 2.0, 600.0, 0.0), "heartbeat_timeout": 1e9}


class FakeChild:
    """A process that ends when it is killed."""

    def __init__(self, pid: int) -> None:
        self.pid, self.killed, self.gone = pid, False, False

    def kill(self) -> None:
        self.killed = self.gone = True

    def wait(self, timeout: float) -> bool:
        return self.gone

    def ended(self) -> bool:
        return self.gone

    def close(self) -> None:
        assert self.gone

    def trim(self) -> None:
        pass


class House:
    """Slots, and the other end of each worker's socket."""

    def __init__(self, patch: pytest.MonkeyPatch, **settings: Any) -> None:
        patch.setattr(module, "spawn", self.spawn)
        self.refused: Exception | None = None
        self.pids = count(1)
        self.listening: list[Worker] = []
        self.lost: list[tuple[str, str]] = []
        self.pinned = {"b.zkey", "a.zkey"}
        self.theirs: list[socket.socket] = []
        self.settings = PoolSettings(**{"threads": 2, "gpus": None, **EXACT, **settings})
        self.found = FoundDevices(self.settings)
        self.troubles = Troubles()
        self.slots = Slots(
            self.settings,
            self.found,
            self.troubles,
            lambda: self.pinned,
            self.listening.append,
            lambda worker, why: self.lost.append((worker.slot.name, why)),
        )

    def spawn(self, module: str, *arguments: str, fds: Any) -> Any:
        if self.refused is not None:
            raise self.refused
        self.theirs.append(socket.socket(fileno=socket.dup(fds[0])))
        return FakeChild(next(self.pids))

    def resize(self, now: float, waiting: int = 0, loading: bool = False, busy: bool = False) -> None:
        self.slots.resize(waiting, loading, lambda worker: busy, now)

    def told(self, number: int = -1) -> list[dict[str, Any]]:
        """What a worker was told, by its turn."""
        messages, channel = [], Channel(self.theirs[number])
        while True:
            try:
                messages.append(channel.receive(0)[0])
            except Exception:
                return messages

    def ready(self, worker: Worker | None, now: float, *others: DeviceInfo) -> Worker:
        """A worker says hello."""
        assert worker is not None
        own = CPU if worker.slot.device == "cpu" else GPU
        worker.ready, worker.idle_since, worker.heard, worker.moved = True, now, now, now
        self.found.found(worker.slot.device, own, list(others))
        worker.slot.failures = worker.slot.faults = 0
        worker.slot.problem = ""
        return worker

    def start(self) -> Worker:
        """The first CPU worker, ready; the machine is known."""
        self.resize(0.0)
        (slot,) = self.slots
        return self.ready(slot.worker, 0.0, CPU)

    def slot(self, name: str) -> Slot:
        (slot,) = [slot for slot in self.slots if slot.name == name]
        return slot


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    houses: list[House] = []

    def make(**settings: Any) -> House:
        houses.append(House(monkeypatch, **settings))
        return houses[-1]

    yield make
    for each in houses:
        each.slots.end("the test is over")
        assert (list(each.slots), each.slots.left) == ([], False)
        for end in each.theirs:
            end.close()


def test_a_worker_is_told_what_it_needs_at_its_start(house: Any) -> None:
    home = house(key_cache=3, warm=True)
    worker = home.start()
    assert home.listening == [worker]
    (start,) = home.told()
    assert start == {
        "type": "start",
        "device": "cpu",
        "threads": 2,
        "key_bytes": 3 * MIB,
        "pinned": ["a.zkey", "b.zkey"],
        "warm": True,
        "survey": True,
    }
    assert worker.pins == home.pinned
    assert status_of(worker.slot).state == "idle"


def test_there_are_as_many_workers_as_there_is_work_for(house: Any) -> None:
    home = house(max_workers=3, idle_timeout=10.0)
    home.start()
    home.resize(1.0, waiting=1)
    assert [slot.name for slot in home.slots] == ["cpu-0"], "it is free"
    home.slot("cpu-0").worker.runs[1] = None
    home.resize(1.0, waiting=9)
    assert [slot.name for slot in home.slots] == ["cpu-0", "cpu-1", "cpu-2"]
    for name in ("cpu-1", "cpu-2"):
        home.ready(home.slot(name).worker, 5.0)
    home.resize(15.0)
    assert not any(slot.closing for slot in home.slots), "they may be wanted again"
    home.resize(15.1, busy=True)
    assert not any(slot.closing for slot in home.slots), "they load something"
    home.resize(15.1)
    assert [slot.name for slot in home.slots if slot.closing] == ["cpu-1", "cpu-2"]
    assert [message["type"] for message in home.told()] == ["start", "stop"]
    home.slots.look(15.1 + EXIT_SECONDS)
    assert [slot.name for slot in home.slots] == ["cpu-0"]
    assert home.lost == [("cpu-1", "it did not end"), ("cpu-2", "it did not end")]


def test_without_a_minimum_a_worker_comes_for_a_key_too(house: Any) -> None:
    home = house(min_workers=0, idle_timeout=1.0, gpus=())
    home.resize(0.0)
    (slot,) = home.slots
    worker = home.ready(slot.worker, 0.0)
    home.resize(1.1)
    home.slots.gone(worker, "it ended", 1.2)
    assert list(home.slots) == []
    home.resize(2.0)
    assert list(home.slots) == []
    home.resize(2.0, loading=True)
    assert len(list(home.slots)) == 1


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"heard": -10.1}, "it was silent for 10 s"),
        ({"ready": False, "moved": -20.1}, "its start did not go on for 20 s"),
        ({"runs": {1: None}, "moved": -30.1}, "it neither computed nor reported anything for 30 s"),
        ({"stopping": True, "leave": 0.0}, "it did not end"),
        ({"moved": -1000.0, "idle_since": -1000.0}, ""),
        ({"ready": False, "heard": -1000.0}, ""),
    ],
)
def test_a_worker_that_does_not_go_on_is_ended(house: Any, change: dict[str, Any], why: str) -> None:
    home = house(heartbeat_timeout=10.0, init_timeout=20.0, stall_timeout=30.0)
    worker = home.start()
    for name, value in change.items():
        setattr(worker, name, value)
    home.slots.look(0.0)
    assert home.lost == ([("cpu-0", why)] if why else [])
    slot = home.slot("cpu-0")
    assert (slot.worker is worker) == (not why)
    if why:
        assert worker.child.killed
        assert (slot.restarts, slot.silent) == ((0, 0) if "stopping" in change else (1, 1))


def test_delays_between_starts_grow_until_a_proof_is_made(house: Any) -> None:
    home, now, starts = house(), 0.0, list[float]()
    worker = home.start()
    for _ in range(5):
        home.slots.fail(worker, "it died", now)
        starts.append(home.slot("cpu-0").again - now)
        home.slots.look(now)
        assert home.slot("cpu-0").worker is None
        now = home.slot("cpu-0").again
        home.slots.look(now)
        worker = home.ready(home.slot("cpu-0").worker, now)
    assert starts == [1.0, 2.0, 4.0, 8.0, 8.0]
    home.slots.proved(worker.slot)
    home.slots.fail(worker, "it died", now)
    assert home.slot("cpu-0").again == now + 1.0
    home.slots.fail(worker, "it is not there any more", now)
    assert home.slot("cpu-0").restarts == 6


def test_a_worn_worker_works_until_its_successor_is_ready(house: Any) -> None:
    home = house()
    first = home.start()
    first.wear = "it has made 500 proofs"
    home.slots.look(1.0)
    slot = home.slot("cpu-0")
    assert (slot.worker, first.open, slot.successor is not None) == (first, True, True)
    home.slots.look(2.0)
    assert len(home.theirs) == 2, "one successor is enough"
    second = home.ready(slot.successor, 2.0)
    home.slots.look(3.0)
    assert first.stopping
    home.slots.gone(first, "the process ended", 3.5)
    assert (slot.worker, slot.successor) == (second, None)
    assert (slot.recycled, slot.restarts) == (1, 0)


def test_a_worn_worker_on_a_gpu_ends_before_its_successor_starts(house: Any) -> None:
    home = house()
    home.ready(home.start(), 0.0, CPU, GPU)
    home.resize(0.0)
    slot = home.slot("cuda:0")
    worker = home.ready(slot.worker, 0.0)
    worker.wear = "it holds much"
    home.slots.look(1.0)
    assert (worker.stopping, slot.successor, len(home.theirs)) == (True, None, 2)
    home.slots.gone(worker, "the process ended", 1.5)
    home.slots.look(1.5)
    assert slot.worker not in (None, worker)


@pytest.mark.parametrize("own", [True, False])
def test_what_cannot_start_is_told_to_callers(house: Any, own: bool) -> None:
    """Soon, where it is a worker's own fault; after a while, where something else is in the way."""
    home = house(worker_wait=100.0)
    home.resize(0.0)
    slot, now, tries = home.slot("cpu-0"), 0.0, 0
    while home.found.problem_of("cpu") is None:
        tries += 1
        assert tries < 40
        worker = slot.worker
        assert worker is not None
        if own:
            worker.failed = True
        else:
            worker.child.kill()
        home.slots.fail(worker, "libfoo is missing", now)
        now = slot.again
        home.slots.look(now)
    problem = home.found.problem_of("cpu")
    assert isinstance(problem, DeviceError)
    assert problem.message == f"cpu: {tries} times in a row no worker started because libfoo is missing"
    assert (tries == START_TRIES) if own else (now > 100.0)
    home.ready(slot.worker, now)
    assert home.found.problem_of("cpu") is None, "it goes on, and heals"


def test_what_the_system_refuses_leaves_nothing_behind(house: Any, caplog: pytest.LogCaptureFixture) -> None:
    home = house()
    home.refused = OSError(24, "Too many open files")
    home.resize(0.0)
    slot = home.slot("cpu-0")
    assert (slot.worker, home.listening, home.theirs) == (None, [], [])
    assert slot.problem == "no process could be started: the machine refused a resource: Too many open files"
    assert caplog.record_tuples == [("gpuprover.workers", logging.WARNING, f"cpu-0: {slot.problem}")]
    home.refused = None
    home.slots.look(slot.again)
    assert slot.worker is not None


def test_a_gpu_that_fails_under_several_processes_rests(house: Any) -> None:
    home, now = house(), 0.0
    home.ready(home.start(), 0.0, CPU, GPU)
    home.resize(now)
    slot = home.slot("cuda:0")
    for number in range(1, DEVICE_TRIES + 1):
        worker = home.ready(slot.worker, now)
        worker.runs[1] = None
        home.slots.device_failed(worker, "an illegal address", now)
        home.slots.device_failed(worker, "an illegal address", now)
        assert slot.device_failures == number, "proofs beside each other tell of one failure"
        home.slots.gone(worker, "the process ended", now)
        if number < DEVICE_TRIES:
            assert slot.again - now < 10.0
            home.slots.look(slot.again)
            now = slot.again
    assert slot.again - now == 60.0
    now = slot.again
    assert str(home.found.problem_of("cuda:0")) == "device 'cuda:0': an illegal address"
    home.slots.look(now)
    worker = home.ready(slot.worker, now)
    assert home.found.problem_of("cuda:0") is None, "one process tries it"
    home.slots.device_failed(worker, "an illegal address", now)
    assert slot.again - now == 120.0, "it rests at once, and longer"
    home.slots.proved(slot)
    assert slot.device_failures == 0
    home.slots.closing = True
    worker.failed_device = False
    home.slots.device_failed(worker, "it ends", now)
    assert slot.device_failures == 0, "at the end that is no failure"


def test_a_worker_that_takes_no_messages_is_at_fault(house: Any) -> None:
    home = house()
    worker = home.start()
    home.theirs[0].close()
    home.slots.send(worker, {"type": "shrink"})
    assert (worker.open, worker.fault) == (False, "it takes no messages")
    home.slots.look(0.0)
    assert home.lost == [("cpu-0", "it takes no messages")]


def test_room_is_what_processes_leave_of_the_limit(house: Any) -> None:
    home = house(max_workers=2, memory_limit=8192)
    worker = home.start()
    limit, own = 8192 * MIB, 100 * MIB
    assert home.slots.room(own) == (limit - own - 2 * WORKER_BYTES) // GRAIN * GRAIN, "one may come still"
    worker.at_rest = 1000 * MIB
    assert home.slots.room(own) == (limit - own - 1000 * MIB - WORKER_BYTES) // GRAIN * GRAIN
    worker.at_rest = 2 * limit
    assert home.slots.room(own) == 0
    assert house().slots.room(own) is None


def test_at_the_end_workers_may_finish_and_nothing_new_starts(house: Any) -> None:
    home = house(max_workers=2)
    busy = home.start()
    busy.runs[1] = None
    home.resize(0.0, waiting=1)
    assert home.slot("cpu-1").worker is not None, "it starts"
    home.slots.close(1.0)
    assert (busy.stopping, busy.leave) == (True, None)
    home.slots.look(1.0)
    assert home.lost == [("cpu-1", "it did not end")]
    home.resize(2.0, waiting=5)
    assert [slot.name for slot in home.slots] == ["cpu-0"]
    home.slots.gone(busy, "the process ended", 3.0)
    assert not home.slots.left
