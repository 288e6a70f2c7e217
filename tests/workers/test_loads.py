"""Loads of keys over workers that answer, do not, or die."""

from __future__ import annotations

import pytest

from gpuprover.demand import MemoryPlan
from gpuprover.errors import DeviceError, MalformedFile, ProverError
from gpuprover.executor import KeyInfo, Lost
from gpuprover.formats.files import identity_of
from gpuprover.workers.loads import LOAD_TRIES, Load, Loads

PLAN = MemoryPlan(1, 2, 3, 4)
DAMAGED = MalformedFile("a.zkey", "header", "truncated")


def info(kind: str) -> KeyInfo:
    return KeyInfo(
        path="a.zkey",
        identity=identity_of("/"),
        protocol="groth16",
        curve="bn254",
        constraints=8,
        n_public=1,
        n_vars=9,
        host_parts=frozenset({"G2"}),
        plans={kind: (PLAN,)},
        verification_key={},
        digest="digest",
        warnings=(),
    )


class Desk:
    """Workers are numbers here; ``there`` says which one there is for a kind of device."""

    def __init__(self, **there: int | None) -> None:
        self.there: dict[str, int | None] = dict(there)
        self.sent: list[tuple[int, int, str, bool]] = []
        self.outcomes: list[KeyInfo | ProverError | Lost] = []
        self.loads: Loads[int] = Loads(lambda *asked: self.sent.append(asked), self.ended)
        self.loads.take("a.zkey", True, lambda _: None)
        self.ask()

    def ended(self, load: Load[int], outcome: KeyInfo | ProverError | Lost) -> None:
        assert (load.path, load.pin) == ("a.zkey", True)
        self.outcomes.append(outcome)

    def ask(self) -> None:
        self.loads.ask(self.there.keys(), self.there.__getitem__)

    def answer(self, worker: int, answer: KeyInfo | ProverError) -> None:
        for asked, number, _, _ in list(self.sent):
            if asked == worker:
                self.loads.answered(worker, number, answer)


def test_a_worker_of_each_kind_is_asked_once_and_their_plans_are_joined() -> None:
    desk = Desk(cpu=1, cuda=2)
    desk.ask()
    assert desk.sent == [(1, 1, "a.zkey", True), (2, 1, "a.zkey", True)]
    assert (desk.loads.busy(1), desk.loads.busy(3)) == (True, False)
    desk.answer(2, info("cuda"))
    desk.answer(2, info("cuda"))
    assert not desk.outcomes
    desk.loads.answered(7, 1, DAMAGED)
    desk.loads.answered(1, 99, DAMAGED)
    desk.answer(1, info("cpu"))
    (found,) = desk.outcomes
    assert isinstance(found, KeyInfo)
    assert found.plans == {"cpu": (PLAN,), "cuda": (PLAN,)}
    assert (len(desk.loads), desk.loads.busy(1)) == (0, False)


def test_one_kind_that_can_prove_is_enough() -> None:
    desk = Desk(cpu=1, cuda=2)
    desk.answer(1, info("cpu"))
    desk.answer(2, DeviceError("no memory"))
    (found,) = desk.outcomes
    assert isinstance(found, KeyInfo)
    desk = Desk(cpu=1, cuda=2)
    desk.answer(2, DeviceError("no memory"))
    desk.answer(1, DAMAGED)
    assert desk.outcomes == [DAMAGED]


def test_who_is_not_there_yet_is_asked_later_and_who_will_not_come_is_not() -> None:
    desk = Desk()
    assert (desk.sent, len(desk.loads)) == ([], 1)
    desk.there = {"cpu": None, "cuda": None}
    desk.ask()
    assert not desk.sent
    desk.there["cpu"] = 1
    desk.ask()
    assert [worker for worker, *_ in desk.sent] == [1]
    desk.answer(1, info("cpu"))
    assert not desk.outcomes, "a worker on the GPU starts still"
    del desk.there["cuda"]
    desk.ask()
    assert [type(outcome) for outcome in desk.outcomes] == [KeyInfo]
    desk = Desk(cuda=None)
    desk.there = {"cpu": 1}
    desk.ask()
    (lost,) = desk.outcomes
    assert isinstance(lost, Lost)
    assert str(lost) == "a.zkey: no worker is left that could load it"


@pytest.mark.parametrize("deaths", [LOAD_TRIES - 1, LOAD_TRIES])
def test_another_worker_is_asked_after_a_death_a_few_times(deaths: int) -> None:
    desk = Desk(cpu=1)
    for worker in range(1, deaths + 1):
        desk.loads.lost(99, Lost("it did not load anything"))
        desk.loads.lost(worker, Lost(f"worker {worker} died"))
        assert not desk.loads.busy(worker)
        desk.there["cpu"] = worker + 1
        desk.ask()
    if deaths < LOAD_TRIES:
        desk.answer(deaths + 1, info("cpu"))
    assert [str(outcome) if isinstance(outcome, Lost) else type(outcome) for outcome in desk.outcomes] == [
        KeyInfo if deaths < LOAD_TRIES else f"worker {LOAD_TRIES} died"
    ]
    assert len(desk.sent) == min(deaths + 1, LOAD_TRIES)


def test_the_end_of_all_loads_is_a_good_one_where_something_was_found() -> None:
    desk = Desk(cpu=1, cuda=2)
    desk.loads.take("a.zkey", True, lambda _: None)
    desk.answer(1, info("cpu"))
    desk.loads.end(DAMAGED)
    assert [type(outcome) for outcome in desk.outcomes] == [KeyInfo, MalformedFile]
    assert not len(desk.loads)
