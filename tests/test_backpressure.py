"""A bound on what runs at once: order, cancellation, several event loops, and no place that gets lost."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

import gpuprover
from gpuprover.backpressure import BackpressureController, room
from gpuprover.errors import InvalidInput, Timeout

WAIT = 30.0


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def idle(limit: BackpressureController) -> bool:
    return (limit.active, limit.waiting) == (0, 0)


def test_it_is_public() -> None:
    assert gpuprover.BackpressureController is BackpressureController


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "2", None])
def test_bad_counts_are_refused(count: object) -> None:
    with pytest.raises(InvalidInput, match="max_concurrent: expected a whole number"):
        BackpressureController(count)  # type: ignore[arg-type]


def test_a_release_too_many_is_refused() -> None:
    limit = BackpressureController(2)
    with pytest.raises(InvalidInput, match="nothing is acquired"):
        limit.release()
    with limit:
        assert limit.active == 1
    with pytest.raises(InvalidInput):
        limit.release()
    limit.acquire()
    limit.acquire()
    assert (limit.active, limit.max_concurrent) == (2, 2)


def test_run_returns_and_raises_what_the_function_does() -> None:
    limit = BackpressureController(1)
    assert limit.run(divmod, 7, 2) == (3, 1)
    assert limit.run(int, "ff", base=16) == 255
    with pytest.raises(ZeroDivisionError):
        limit.run(divmod, 7, 0)

    async def half(n: int) -> int:
        assert limit.active == 1
        return n // (n - 8)

    assert asyncio.run(limit.arun(half, 9)) == 9
    with pytest.raises(ZeroDivisionError):
        asyncio.run(limit.arun(half, 8))
    assert idle(limit)


def test_timeouts() -> None:
    limit = BackpressureController(1)

    async def wait() -> None:
        with pytest.raises(Timeout):
            await limit.aacquire(timeout=0.01)
        with pytest.raises(Timeout):
            await limit.aacquire(timeout=0)

    with limit:
        for timeout in (0, 0.01):
            with pytest.raises(Timeout, match="no place became free"):
                limit.acquire(timeout)
        asyncio.run(wait())
        assert (limit.active, limit.waiting) == (1, 0)
    limit.acquire(0)
    limit.release()
    assert idle(limit)


def test_threads_and_tasks_of_two_loops_come_in_one_order() -> None:
    limit = BackpressureController(1)
    order: list[int] = []
    loops = [asyncio.new_event_loop() for _ in range(2)]
    drivers = [threading.Thread(target=loop.run_forever) for loop in loops]
    for driver in drivers:
        driver.start()

    async def task(i: int) -> None:
        async with limit:
            order.append(i)

    def thread(i: int) -> None:
        with limit:
            order.append(i)

    limit.acquire()
    try:
        with ThreadPoolExecutor(30) as pool:
            for i in range(30):
                if i % 3 == 2:
                    pool.submit(thread, i)
                else:
                    asyncio.run_coroutine_threadsafe(task(i), loops[i % 3])
                until(lambda i=i: limit.waiting == i + 1)  # type: ignore[misc]
            limit.release()
            until(lambda: idle(limit))
    finally:
        for loop, driver in zip(loops, drivers, strict=True):
            loop.call_soon_threadsafe(loop.stop)
            driver.join(WAIT)
            loop.close()
    assert order == list(range(30))


def test_a_cancelled_task_leaves_the_queue() -> None:
    limit = BackpressureController(1)

    async def main() -> None:
        await limit.aacquire()
        tasks = [asyncio.create_task(limit.aacquire()) for _ in range(3)]
        await asyncio.sleep(0)
        assert limit.waiting == 3
        tasks[0].cancel()
        tasks[1].cancel()
        await asyncio.gather(*tasks[:2], return_exceptions=True)
        assert limit.waiting == 1
        limit.release()
        await asyncio.wait_for(tasks[2], WAIT)
        limit.release()

    asyncio.run(main())
    assert idle(limit)


def test_a_task_cancelled_after_its_turn_came_passes_it_on() -> None:
    limit = BackpressureController(1)

    async def main() -> None:
        await limit.aacquire()
        first, second = (asyncio.create_task(limit.aacquire()) for _ in range(2))
        await asyncio.sleep(0)
        limit.release()  # the first's, who has not run since
        first.cancel()
        await asyncio.wait_for(second, WAIT)
        assert first.cancelled()
        assert (limit.active, limit.waiting) == (1, 0)
        limit.release()

    asyncio.run(main())
    assert idle(limit)


def test_an_interrupted_thread_passes_its_turn_on(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = BackpressureController(1)

    class Interrupted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            limit.release()  # its turn comes, and then Ctrl-C
            raise KeyboardInterrupt

    limit.acquire()
    with monkeypatch.context() as patch:
        patch.setattr(threading, "Event", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            limit.acquire()
    assert idle(limit)


def test_a_loop_that_was_closed_loses_no_place() -> None:
    limit = BackpressureController(1)
    limit.acquire()
    loop = asyncio.new_event_loop()
    task = loop.create_task(limit.aacquire())
    loop.run_until_complete(asyncio.sleep(0.01))
    assert limit.waiting == 1
    loop.close()
    with ThreadPoolExecutor(1) as pool:
        behind = pool.submit(limit.acquire, WAIT)
        until(lambda: limit.waiting == 2)
        limit.release()
        behind.result(WAIT)
    limit.release()
    assert idle(limit)
    assert not task.done()
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    task.get_coro().close()  # type: ignore[union-attr]


@pytest.mark.parametrize("count", [1, 3])
def test_no_place_is_lost_and_none_is_given_twice(count: int, rng: random.Random) -> None:
    """Threads and loops at random, with timeouts, cancellations and releases from elsewhere."""
    limit = BackpressureController(count)
    inside, most, lock = 0, 0, threading.Lock()
    seeds = [rng.random() for _ in range(7)]

    def enter() -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
            assert inside <= count

    def leave() -> None:
        nonlocal inside
        with lock:
            inside -= 1
        limit.release()

    def threads(seed: float) -> None:
        own = random.Random(seed)
        for _ in range(150):
            try:
                limit.acquire(own.choice([None, 0, 0.001, 1]))
            except Timeout:
                continue
            enter()
            time.sleep(own.choice([0, 0.0002]))
            if own.random() < 0.2:
                helper = threading.Thread(target=leave)
                helper.start()
                helper.join(WAIT)
            else:
                leave()

    def tasks(seed: float) -> None:
        own = random.Random(seed)

        async def one() -> None:
            try:
                await limit.aacquire(own.choice([None, 0, 0.001, 1]))
            except Timeout:
                return
            enter()
            try:
                await asyncio.sleep(own.choice([0, 0.0002]))
            finally:
                leave()

        async def main() -> None:
            started = []
            for _ in range(150):
                started.append(asyncio.create_task(one()))
                if own.random() < 0.5:
                    await asyncio.sleep(0)
                if own.random() < 0.4:
                    own.choice(started).cancel()
            outcomes = await asyncio.wait_for(asyncio.gather(*started, return_exceptions=True), WAIT)
            assert all(o is None or isinstance(o, asyncio.CancelledError) for o in outcomes), outcomes

        asyncio.run(main())

    with ThreadPoolExecutor(len(seeds)) as pool:
        work = [pool.submit(threads if i < 4 else tasks, seed) for i, seed in enumerate(seeds)]
        for future in work:
            future.result(2 * WAIT)
    assert idle(limit)
    assert most == count


def test_n_greedy_tenants_have_equal_shares_and_leave_one() -> None:
    assert room(100, 0, 0.5) == 50
    assert [room(free, own, 1.0) for free, own in ((100, 0), (1, 99), (0, 100))] == [100, 1, 0]
    assert [room(1, 0, 0.5), room(0, 0, 0.5), room(1, 1, 0.5)] == [1, 0, 0]
    for tenants in (1, 2, 3, 7):
        used = [0] * tenants
        for i in range(2000):
            free = 2000 - sum(used)
            used[i % tenants] += min(1, room(free, used[i % tenants], 0.5))
        assert max(used) - min(used) <= 1
        assert abs(2000 - sum(used) - 2000 // (tenants + 1)) <= tenants
