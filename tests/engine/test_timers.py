"""Timers of the engine: order, cancellation, and that what is cancelled is let go."""

from __future__ import annotations

import gc
import random
import weakref

import pytest

from gpuprover.engine.timers import SPARE, Timers


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_actions_happen_when_they_are_due_and_once(rng: random.Random) -> None:
    clock, seen = Clock(), list[tuple[float, int]]()
    timers = Timers(clock)
    times = [rng.randrange(50) for _ in range(200)]
    for i, seconds in enumerate(times):
        timers.after(seconds, lambda i=i, s=seconds: seen.append((s, i)))  # type: ignore[misc]
    assert timers.left() == min(times)
    for _ in range(60):
        timers.run_due()
        assert all(clock.now >= 100 + seconds for seconds, _ in seen)
        left = timers.left()
        assert left is None or left > 0
        clock.now += 1
    assert seen == sorted((s, i) for i, s in enumerate(times)), "ties in the order they were made"
    assert (timers.left(), len(timers)) == (None, 0)


def test_what_an_action_adds_and_is_due_happens_too() -> None:
    timers, seen = Timers(Clock()), list[str]()
    timers.after(0, lambda: timers.after(0, lambda: seen.append("second")) and seen.append("first"))
    timers.run_due()
    assert seen == ["first", "second"]


def test_an_action_that_raises_keeps_no_other_one_from_happening() -> None:
    timers, seen = Timers(Clock()), list[int]()
    timers.after(0, lambda: seen.append(1 // 0))
    timers.after(0, lambda: seen.append(2))
    with pytest.raises(ZeroDivisionError):
        timers.run_due()
    timers.run_due()
    assert seen == [2]


def test_a_cancelled_action_never_happens_and_is_let_go_at_once() -> None:
    class Witness:
        def use(self) -> None:
            raise AssertionError("it was cancelled")

    clock, witness = Clock(), Witness()
    timers, gone = Timers(clock), weakref.ref(witness)
    timer = timers.after(5, witness.use)
    del witness
    timer.cancel()
    timer.cancel()
    gc.collect()
    assert gone() is None
    assert timers.left() is None
    clock.now += 10
    timers.run_due()


def test_cancelled_ones_do_not_pile_up(rng: random.Random) -> None:
    timers, seen, live = Timers(Clock()), list[int](), list[int]()
    for i in range(1000):
        timer = timers.after(0, lambda i=i: seen.append(i))  # type: ignore[misc]
        if rng.random() < 0.9:
            timer.cancel()
        else:
            live.append(i)
        assert len(timers) <= 2 * (len(live) + SPARE) + 2
    timers.run_due()
    assert seen == live
