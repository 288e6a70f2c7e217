"""Jobs: threads, order, cancellation, deadline, progress, timings."""

from __future__ import annotations

import gc
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gpuprover.errors import Cancelled, InvalidInput, OutOfMemory, Timeout
from gpuprover.job import Job, Progress


class Counter:
    """How many calls run, and have run, at once."""

    def __init__(self) -> None:
        self.lock, self.running, self.most, self.calls = threading.Lock(), 0, 0, 0

    def __call__(self, seconds: float) -> float:
        with self.lock:
            self.running += 1
            self.calls += 1
            self.most = max(self.most, self.running)
        time.sleep(seconds)
        with self.lock:
            self.running -= 1
        return seconds


def set_later(event: threading.Event, seconds: float) -> None:
    timer = threading.Timer(seconds, event.set)
    timer.daemon = True
    timer.start()


def wait_for_stop(job: Job) -> None:
    """What a kernel does: works until told to stop."""
    deadline = time.perf_counter() + 10
    while not job.stop[0] and time.perf_counter() < deadline:
        time.sleep(0.001)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_map_keeps_order(threads: int) -> None:
    def slow_first(i: int) -> int:
        time.sleep(0.02 if i == 0 else 0)
        return i * i

    assert Job(threads=threads).map(slow_first, range(20)) == [i * i for i in range(20)]


def test_map_of_nothing() -> None:
    assert Job(threads=2).map(lambda i: i, []) == []


def test_map_takes_an_iterator() -> None:
    def items() -> Iterator[int]:
        yield from (3, 1, 2)

    assert Job(threads=2).map(str, items()) == ["3", "1", "2"]


@pytest.mark.parametrize("threads", [1, 2, 3])  # divisors of 6
def test_threads_are_capped_and_used(threads: int) -> None:
    count, together = Counter(), threading.Barrier(threads, timeout=60)

    def item(seconds: float) -> None:
        together.wait()  # ends only where as many threads come here at once
        count(seconds)

    Job(threads=threads).map(item, [0.02] * 6)
    assert count.calls == 6
    assert count.most <= threads


def test_one_thread_keeps_the_caller_responsive() -> None:
    # Even a single item runs beside the caller, which can cancel it.
    cancel = threading.Event()
    job = Job(threads=1, cancel=cancel)
    set_later(cancel, 0.05)
    with pytest.raises(Cancelled):
        job.map(lambda _: wait_for_stop(job), [0])


def works_on(job: Job, over: Callable[[], bool], polls: Counter) -> Callable[[int], None]:
    """Counts the milliseconds of work after it was over: a busy machine adds none to them."""

    def work(_: int) -> None:
        deadline = time.perf_counter() + 10
        while not job.stop[0] and time.perf_counter() < deadline:
            if over():
                polls(0.0)
            time.sleep(0.001)

    return work


def test_cancel_in_time() -> None:
    """Within 0.2 s of two threads' work."""
    cancel, polls = threading.Event(), Counter()
    job = Job(threads=2, cancel=cancel)
    set_later(cancel, 0.1)
    begun = time.perf_counter()
    with pytest.raises(Cancelled):
        job.map(works_on(job, cancel.is_set, polls), range(100))
    assert time.perf_counter() - begun >= 0.1
    assert polls.calls <= 2 * 200
    assert job.stop[0]


def test_cancel_starts_no_further_item() -> None:
    cancel = threading.Event()
    count = Counter()

    def cancels(seconds: float) -> None:
        count(seconds)
        cancel.set()

    with pytest.raises(Cancelled):
        Job(threads=1, cancel=cancel).map(cancels, [0.0] * 50)
    assert count.calls < 5


def test_cancelled_before_the_start() -> None:
    cancel = threading.Event()
    cancel.set()
    job, count = Job(cancel=cancel), Counter()
    with pytest.raises(Cancelled):
        job.map(count, [0.0])
    assert count.calls == 0
    with pytest.raises(Cancelled), job.phase("work"):
        pytest.fail("the phase was entered")


def test_timeout() -> None:
    """Within 0.2 s of two threads' work."""
    job, polls = Job(threads=2, timeout=0.1), Counter()
    job.check()
    end = time.perf_counter() + 0.1
    with pytest.raises(Timeout, match="time limit"):
        job.map(works_on(job, lambda: time.perf_counter() > end, polls), range(4))
    assert polls.calls <= 2 * 200
    with pytest.raises(Timeout):
        job.check()


def test_first_exception_ends_the_run() -> None:
    job = Job(threads=2)
    count = Counter()

    def fails(i: int) -> None:
        if i == 3:
            raise ArithmeticError("item 3")
        count(0.001)

    with pytest.raises(ArithmeticError, match="item 3"):
        job.map(fails, range(1000))
    assert job.stop[0]
    assert count.calls < 20


def test_interrupt_of_the_caller_stops_the_workers() -> None:
    """Ctrl-C reaches the calling thread; here the progress callback raises in its place."""

    def interrupt(progress: Progress) -> None:
        if progress.fraction > 0:
            raise KeyboardInterrupt

    job = Job(threads=2, progress=interrupt)
    finished = Counter()

    def item(i: int) -> None:
        if i:
            wait_for_stop(job)
        finished(0)

    with pytest.raises(KeyboardInterrupt), job.phase("work"):
        job.map(item, range(3), progress=True)
    assert job.stop[0]
    # Nothing runs on after the call: what was started has returned.
    assert finished.calls == 3


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True])
def test_bad_number_of_threads(threads: object) -> None:
    with pytest.raises(InvalidInput, match="threads"):
        Job(threads=threads)  # type: ignore[arg-type]


def test_default_threads_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROVER_THREADS", "3")
    assert Job().threads == 3
    monkeypatch.delenv("PROVER_THREADS")
    assert Job().threads >= 1


def test_progress_and_timings() -> None:
    seen: list[Progress] = []
    job = Job(threads=1, progress=seen.append)
    with job.phase("first"):
        job.map(lambda i: time.sleep(0.01), range(4), progress=True)
    begun = time.perf_counter()
    with job.phase("second"):
        job.report(0.5)
    around = time.perf_counter() - begun
    with job.phase("first"):
        time.sleep(0.02)
    assert list(job.timings) == ["first", "second"]
    assert job.timings["first"] >= 0.05
    assert job.timings["second"] <= around
    assert [p.phase for p in seen] == ["first"] * 6 + ["second"] * 3 + ["first"] * 2
    assert [p.fraction for p in seen] == [0, 0.25, 0.5, 0.75, 1, 1, 0, 0.5, 1, 0, 1]
    elapsed = [p.elapsed for p in seen]
    assert elapsed == sorted(elapsed)
    assert elapsed[0] >= 0


def test_a_failed_phase_is_timed_and_not_reported_as_done() -> None:
    seen: list[Progress] = []
    job = Job(progress=seen.append)
    with pytest.raises(ArithmeticError), job.phase("work"):
        raise ArithmeticError
    assert job.timings.keys() == {"work"}
    assert [p.fraction for p in seen] == [0]


def test_nested_phases() -> None:
    seen: list[Progress] = []
    job = Job(progress=seen.append)
    with job.phase("outer"):
        with job.phase("inner"):
            pass
        job.report(0.5)
    assert [(p.phase, p.fraction) for p in seen] == [
        ("outer", 0), ("inner", 0), ("inner", 1), ("outer", 0.5), ("outer", 1)
    ]  # fmt: skip


def test_parts_of_a_phase() -> None:
    seen: list[Progress] = []
    job = Job(threads=1, progress=seen.append)
    with job.phase("work"):
        for i in range(2):
            with job.subphase(i, 2):
                job.map(lambda i: None, range(1))  # reports nothing
                job.report(0.5)
        with job.phase("other"):
            job.report(0.5)
    assert [p.fraction for p in seen] == [0, 0.25, 0.5, 0.75, 1, 0, 0.5, 1, 1]


def test_no_report_outside_a_phase() -> None:
    seen: list[Progress] = []
    Job(progress=seen.append).report(0.5)
    assert seen == []


def test_what_is_brief_runs_in_the_calling_thread() -> None:
    here, cancel = threading.current_thread(), threading.Event()

    def thread(_: object) -> threading.Thread:
        return threading.current_thread()

    alone, two = Job(threads=1, cancel=cancel, timeout=60), Job(threads=2, cancel=cancel)
    assert alone.map(thread, range(3), brief=True) == [here] * 3
    assert here not in alone.map(thread, range(3)), "somebody has to watch for the cancellation"
    assert two.map(thread, [0], brief=True) == [here]
    assert here not in two.map(thread, range(2), brief=True)
    for job in (alone, two):
        assert job.map(thread, job.ranges(100, smallest=100)) == [here]
        assert here not in job.map(thread, job.ranges(10**6, smallest=100))
        assert here not in job.map(thread, job.ranges(1)), "of what costs nobody knows how much"


def test_brief_items_end_between_each_other() -> None:
    cancel, count, seen = threading.Event(), Counter(), list[Progress]()
    job = Job(threads=1, cancel=cancel, progress=seen.append)

    def cancels(i: int) -> None:
        count(0.0)
        if i == 2:
            cancel.set()

    with job.phase("work"):
        job.map(lambda _: None, range(2), progress=True, brief=True)
    assert [p.fraction for p in seen] == [0, 0.5, 1, 1]
    with pytest.raises(Cancelled):
        job.map(cancels, range(50), brief=True)
    assert count.calls == 3
    assert job.stop[0]


@pytest.mark.parametrize("threads", [1, 2])
def test_exceptions_in_the_calling_thread_are_the_same(threads: int) -> None:
    with pytest.raises(ZeroDivisionError):
        Job(threads=threads, timeout=9).map(lambda i: 1 // i, [0], brief=True)


@pytest.mark.parametrize(
    ("n", "threads", "smallest"), [(0, 4, 1), (1, 4, 1), (10, 3, 1), (10, 4, 4), (7, 2, 100)]
)
def test_ranges_cover_everything_once(n: int, threads: int, smallest: int) -> None:
    ranges = Job(threads=threads).ranges(n, smallest=smallest)
    assert [i for lo, hi in ranges for i in range(lo, hi)] == list(range(n))
    assert 1 <= len(ranges) <= threads
    sizes = [hi - lo for lo, hi in ranges]
    assert max(sizes) - min(sizes) <= 1
    assert len(ranges) == 1 or min(sizes) >= smallest


def test_a_thread_that_the_machine_refuses_is_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(OutOfMemory, match="thread"):
        Job(threads=2).map(lambda i: i, range(4))


@pytest.mark.parametrize("timeout", [-1, math.nan, "5", True, pytest.param(10**5000, id="huge")])
def test_a_time_limit_that_is_none(timeout: Any) -> None:
    with pytest.raises(InvalidInput, match="timeout"):
        Job(timeout=timeout)
    Job(timeout=math.inf).check()


def test_a_cancelled_run_has_no_other_error_behind_it() -> None:
    """Whoever keeps the error without its traceback keeps no frame of the job's."""
    cancel, begun = threading.Event(), threading.Event()
    job = Job(threads=2, cancel=cancel)

    def work(_: int) -> None:
        begun.set()
        cancel.set()
        while not job.stop[0]:
            time.sleep(0.001)

    with pytest.raises(Cancelled) as caught:
        job.map(work, range(2))
    assert begun.is_set()
    assert caught.value.__context__ is None


def test_an_error_keeps_no_job_until_a_collection() -> None:
    """A job's threads end with it, also where several of its items have failed."""
    both = threading.Barrier(2)

    def fail(i: int) -> None:
        both.wait(60)
        raise ValueError(i)

    job = Job(threads=2)
    alive = weakref.ref(job)
    gc.collect()
    gc.disable()
    try:
        try:
            job.map(fail, range(2))
        except ValueError:
            del job
        assert alive() is None
    finally:
        gc.enable()
