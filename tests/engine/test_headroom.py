"""Room in memory: what is measured, who is held back and for how long, shrinks, the leak alarm."""

from __future__ import annotations

import pytest

from gpuprover.engine.headroom import SAMPLE_SECONDS, SETTLE_SECONDS, Headroom
from gpuprover.engine.records import Steps
from gpuprover.engine.timers import Timers
from gpuprover.memory import CODE_BYTES, MIB, LeakAlarm, Watermark

LIMIT = 1000 * MIB


class Room:
    """A headroom over a machine that a test says everything of; the watermark is at a half."""

    def __init__(self, wait: float = 10.0) -> None:
        self.now, self.held, self.looks = 0.0, 0, 0
        self.steps, self.timers = Steps(), Timers(lambda: self.now)
        self.headroom: Headroom[str] = Headroom(
            LIMIT,
            wait,
            lambda: self.held,
            Watermark(LIMIT, 0.5, lambda: None),
            LeakAlarm(60.0, window=50.0),
            self.timers,
            self.look,
            self.steps,
            lambda: self.now,
        )

    def look(self) -> None:
        self.looks += 1

    def after(self, seconds: float) -> None:
        self.now += seconds
        self.timers.run_due()


def test_nobody_is_held_back_below_the_watermark_or_where_nobody_shall_be() -> None:
    room = Room()
    room.held = LIMIT // 2
    assert not room.headroom.hold("a")
    room.held += 1
    assert room.headroom.hold("a")
    impatient = Room(wait=0.0)
    impatient.held = LIMIT
    assert not impatient.headroom.hold("a")
    assert not impatient.headroom.take_shrink()


def test_those_held_back_go_on_in_order_as_soon_as_there_is_room() -> None:
    room = Room()
    room.held = LIMIT
    assert all(room.headroom.hold(who) for who in "abc")
    assert room.headroom.take_shrink()
    assert not room.headroom.take_shrink()
    assert room.steps.counters["shrinks"] == 1, "one shrink serves all of a moment"
    room.headroom.leave("b")
    assert room.headroom.release(running=True) is None
    room.held = 0
    assert [room.headroom.release(True) for _ in range(3)] == ["a", "c", None]
    assert room.headroom.waiting == 0


def test_waiting_ends_where_it_is_of_no_use() -> None:
    room = Room()
    room.held = LIMIT
    room.headroom.hold("a")
    assert room.headroom.release(running=False) is None, "the shrink may free something still"
    room.after(SETTLE_SECONDS)
    assert room.headroom.release(running=True) is None
    assert room.headroom.release(running=False) == "a"


def test_waiting_ends_after_a_while() -> None:
    room = Room(wait=10.0)
    room.held = LIMIT
    room.headroom.hold("a")
    while room.now < 10.0:
        assert room.headroom.release(running=True) is None
        before = room.looks
        room.after(SETTLE_SECONDS)
        assert room.looks == before + 1, "its owner is told to look again"
    assert room.headroom.release(running=True) == "a"
    room.after(SETTLE_SECONDS)
    assert room.looks == before + 1, "nobody waits any more"


def test_room_is_measured_at_rest_alone_unless_somebody_else_counts_it() -> None:
    room = Room()
    room.held = 200 * MIB
    assert room.headroom.measure(None, idle=True)
    assert room.headroom.room == LIMIT - 200 * MIB - CODE_BYTES
    assert not room.headroom.may_grow
    room.held += MIB - 1
    assert not room.headroom.measure(None, idle=True), "it does not change with every page"
    room.held = 900 * MIB
    assert not room.headroom.measure(None, idle=False)
    assert room.headroom.measure(None, idle=True)
    assert room.headroom.room == max(0, 100 * MIB - CODE_BYTES)
    assert room.headroom.may_grow
    assert room.headroom.measure(5 * LIMIT, idle=False)
    assert (room.headroom.room, room.headroom.may_grow) == (5 * LIMIT, False)


def test_growth_raises_the_alarm_once_it_is_watched(caplog: pytest.LogCaptureFixture) -> None:
    room = Room()
    room.timers.run_due()

    def grow() -> None:
        for _ in range(12):
            room.held += 50 * 10**6
            room.after(SAMPLE_SECONDS)

    grow()
    assert not caplog.records
    room.headroom.watch()
    grow()
    assert room.steps.counters["leak_alarms"] == 1
    assert "memory keeps growing by 300 MB a minute" in caplog.text
