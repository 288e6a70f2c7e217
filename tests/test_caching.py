"""Caches: bounds, ages, pins, what is in use, and one maker for many that ask."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gpuprover.caching import Cache, CacheStatistics, keyed_digest
from gpuprover.errors import Cancelled, OutOfMemory, Timeout

WAIT = 30.0


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def kept(cache: Cache[str, bytes], keys: str) -> str:
    """Which of the keys are there; looking changes the order of use."""
    return "".join(key for key in keys if cache.get(key) is not None)


def load(cache: Cache[str, bytes], key: str, size: int = 10) -> bytes:
    return cache.get_or_make(key, lambda: bytes(size), len)


def test_statistics_of_several_caches_add_up() -> None:
    assert CacheStatistics.total([]) == Cache[str, str](0).statistics
    one, other = Cache[str, str](10), Cache[str, str](5)
    one.put("a", "x", 3)
    other.get("a")
    both = CacheStatistics.total(cache.statistics for cache in (one, other))
    assert (both.entries, both.bytes, both.capacity, both.misses) == (1, 3, 15, 1)


def test_what_was_used_longest_ago_goes_first() -> None:
    cache: Cache[str, bytes] = Cache(30)
    for key in "abc":
        load(cache, key)
    load(cache, "a")
    load(cache, "d")
    assert kept(cache, "abcd") == "acd"
    found = cache.statistics
    assert (found.hits, found.misses, found.evictions, found.bytes, found.entries) == (4, 5, 1, 30, 3)
    assert found.as_dict()["capacity"] == 30


def test_a_value_that_is_too_large_drives_nothing_out() -> None:
    cache: Cache[str, bytes] = Cache(30)
    load(cache, "a")
    assert len(load(cache, "huge", 31)) == 31
    assert kept(cache, "a") == "a"
    assert cache.get("huge") is None


def test_a_capacity_of_nothing_keeps_nothing() -> None:
    cache: Cache[str, bytes] = Cache(0)
    load(cache, "a")
    with cache.using("b", lambda: bytes(5), len):
        assert cache.statistics.bytes == 5
    assert cache.statistics.entries == 0


def test_pins_hold_an_entry_and_what_follows_it() -> None:
    cache: Cache[str, bytes] = Cache(20)
    cache.pin("a")
    for key in "abcd":
        load(cache, key)
    assert kept(cache, "abcd") == "ad"
    assert cache.statistics.pinned == 1
    assert cache.shrink(0) == 10
    assert cache.drop("a")
    assert not cache.drop("a")
    load(cache, "a")
    assert cache.shrink(0) == 0, "the pin is the key's, not the entry's"
    cache.unpin("a")
    assert cache.shrink(0) == 10


def test_more_pinned_than_fits_lets_go_when_it_is_unpinned() -> None:
    cache: Cache[str, bytes] = Cache(10)
    for key in "abc":
        cache.pin(key)
        load(cache, key)
    assert cache.statistics.bytes == 30
    cache.unpin("b")
    assert kept(cache, "abc") == "ac"


def test_what_is_in_use_is_not_evicted() -> None:
    cache: Cache[str, bytes] = Cache(20)
    with cache.using("a", lambda: bytes(15), len) as outer:
        for key in "bcd":
            load(cache, key)
        with cache.using("a", lambda: b"another", len) as inner:
            assert inner is outer
        assert cache.shrink(0) == 0
        assert cache.get("a") is outer
    load(cache, "b")
    assert kept(cache, "ab") == "b"


def test_what_is_dropped_in_use_stays_with_its_users_and_is_made_anew_for_others() -> None:
    cache: Cache[str, bytes] = Cache(20)
    with cache.using("a", lambda: b"old", len) as old:
        cache.drop("a")
        assert cache.get_or_make("a", lambda: b"new", len) == b"new"
        assert old == b"old"
    assert cache.get("a") == b"new"
    cache.clear()
    assert cache.get("a") is None
    assert cache.statistics.bytes == 0


def test_entries_expire_pinned_or_not() -> None:
    clock = Clock()
    cache: Cache[str, bytes] = Cache(100, lifetime=10.0, clock=clock)
    cache.pin("a")
    cache.put("a", b"1", 1)
    clock.now = 5.0
    cache.put("b", b"2", 1)
    load(cache, "a")  # use does not make it younger
    clock.now = 10.0
    assert kept(cache, "ab") == "b"
    clock.now = 15.0
    assert cache.statistics.entries == 0
    assert cache.statistics.expired == 2


def test_put_replaces() -> None:
    cache: Cache[str, bytes] = Cache(100)
    cache.put("a", b"1", 40)
    cache.put("a", b"2", 50)
    assert (cache.get("a"), cache.statistics.bytes, cache.statistics.evictions) == (b"2", 50, 0)


class Gate:
    """A maker that waits, and counts."""

    def __init__(self, result: Callable[[], bytes] = lambda: b"made") -> None:
        self.entered, self.open = threading.Event(), threading.Event()
        self.calls = 0
        self._result = result

    def __call__(self) -> bytes:
        self.calls += 1
        self.entered.set()
        assert self.open.wait(WAIT)
        return self._result()


def until_waiting(cache: Cache[str, bytes], count: int) -> None:
    for _ in range(3000):
        if cache.statistics.waits >= count:
            return
        threading.Event().wait(0.01)
    raise AssertionError(f"{cache.statistics.waits} threads wait, expected {count}")


def fail(error: BaseException) -> bytes:
    raise error


@pytest.mark.parametrize("capacity", [100, 0])
def test_a_stampede_makes_once(capacity: int) -> None:
    cache: Cache[str, bytes] = Cache(capacity)
    gate = Gate()
    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(cache.get_or_make, "a", gate, len) for _ in range(16)]
        until_waiting(cache, 15)
        assert load(cache, "b") == bytes(10), "another key is made meanwhile"
        gate.open.set()
        values = [future.result(WAIT) for future in asked]
    assert gate.calls == 1
    assert all(value is values[0] for value in values)
    assert (cache.statistics.misses, cache.statistics.waits) == (2, 15)


def test_those_who_waited_use_the_entry() -> None:
    cache: Cache[str, bytes] = Cache(4)
    gate, used, leave = Gate(), threading.Barrier(4), threading.Event()

    def use() -> None:
        with cache.using("a", gate, len):
            used.wait(WAIT)
            assert leave.wait(WAIT)

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(use) for _ in range(3)]
        until_waiting(cache, 2)
        gate.open.set()
        used.wait(WAIT)
        load(cache, "b", 4)
        assert cache.get("a") == b"made"
        leave.set()
        for future in asked:
            future.result(WAIT)
    assert cache.shrink(0) == 4, "nobody uses it any more"


def test_a_failure_reaches_all_and_is_not_kept() -> None:
    cache: Cache[str, bytes] = Cache(100)
    gate = Gate(lambda: fail(OutOfMemory("no room")))
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(cache.get_or_make, "a", gate, len) for _ in range(8)]
        until_waiting(cache, 7)
        gate.open.set()
        for future in asked:
            with pytest.raises(OutOfMemory, match="no room"):
                future.result(WAIT)
    assert gate.calls == 1
    assert load(cache, "a") == bytes(10)


@pytest.mark.parametrize("error", [Cancelled("by its caller"), Timeout("of its caller"), KeyboardInterrupt()])
def test_the_end_of_one_caller_is_not_the_others(error: BaseException) -> None:
    cache: Cache[str, bytes] = Cache(100)
    first, second = Gate(lambda: fail(error)), Gate()
    second.open.set()
    with ThreadPoolExecutor(5) as pool:
        one = pool.submit(cache.get_or_make, "a", first, len)
        assert first.entered.wait(WAIT)
        others = [pool.submit(cache.get_or_make, "a", second, len) for _ in range(4)]
        until_waiting(cache, 4)
        first.open.set()
        with pytest.raises(type(error)):
            one.result(WAIT)
        assert [future.result(WAIT) for future in others] == [b"made"] * 4
    assert second.calls == 1


def test_a_wait_ends_by_its_own_limits() -> None:
    cache: Cache[str, bytes] = Cache(3)
    gate, cancelled = Gate(), threading.Event()

    def check() -> None:
        if cancelled.is_set():
            raise Cancelled("enough")

    def use() -> None:
        with cache.using("a", gate, len, check=check):
            raise AssertionError("it is not made yet")

    with ThreadPoolExecutor(2) as pool:
        maker = pool.submit(cache.get_or_make, "a", gate, len)
        assert gate.entered.wait(WAIT)
        with pytest.raises(Timeout):
            cache.get_or_make("a", gate, len, timeout=0.01)
        waiter = pool.submit(use)
        until_waiting(cache, 2)
        cancelled.set()
        with pytest.raises(Cancelled):
            waiter.result(WAIT)
        gate.open.set()
        assert maker.result(WAIT) == b"made"
    assert cache.get("a") is None, "four bytes do not fit, and nobody uses them"


def test_what_is_dropped_while_it_is_made_is_not_kept() -> None:
    cache: Cache[str, bytes] = Cache(100)
    gate = Gate(lambda: b"stale")
    with ThreadPoolExecutor(1) as pool:
        maker = pool.submit(cache.get_or_make, "a", gate, len)
        assert gate.entered.wait(WAIT)
        assert not cache.drop("a")
        assert cache.get_or_make("a", lambda: b"fresh", len) == b"fresh"
        gate.open.set()
        assert maker.result(WAIT) == b"stale"
    assert cache.get("a") == b"fresh"


def test_a_maker_that_asks_for_its_own_key_is_told() -> None:
    cache: Cache[str, bytes] = Cache(100)
    with pytest.raises(RuntimeError, match="is asked for"):
        cache.get_or_make("a", lambda: load(cache, "a"), len)
    assert cache.get_or_make("a", lambda: load(cache, "b"), len) == bytes(10)


def test_values_are_freed_without_the_lock() -> None:
    cache: Cache[str, Last] = Cache(1)

    class Last:
        def __del__(self) -> None:
            seen.append(cache.statistics.entries)  # would wait for ever if the lock were held

    seen: list[int] = []
    for step in (lambda: cache.put("b", Last(), 1), lambda: cache.shrink(0), cache.clear):
        cache.put("a", Last(), 1)
        step()
    cache.put("a", Last(), 1)
    cache.drop("a")
    assert len(seen) == 5


def test_threads_at_random(rng: random.Random) -> None:
    """Whatever happens at once, values are their keys' and the sums come out right."""
    cache: Cache[int, tuple[int, int]] = Cache(40)
    seeds = [rng.random() for _ in range(6)]
    making: dict[int, int] = dict.fromkeys(range(12), 0)
    lock = threading.Lock()

    def work(seed: float, dropping: bool) -> None:
        own = random.Random(seed)
        for _ in range(400):
            key = own.randrange(12)

            def make(key: int = key) -> tuple[int, int]:
                with lock:
                    making[key] += 1
                    assert dropping or making[key] == 1, "made twice at once"
                try:
                    if own.random() < 0.1:
                        raise OutOfMemory("by chance")
                    return key, own.randrange(12)
                finally:
                    with lock:
                        making[key] -= 1

            act = own.random()
            try:
                if act < 0.5:
                    assert cache.get_or_make(key, make, lambda v: v[1], timeout=WAIT)[0] == key
                elif act < 0.9:
                    with cache.using(key, make, lambda v: v[1], timeout=WAIT) as value:
                        assert value[0] == key
                elif act < 0.95:
                    cache.shrink(own.randrange(40))
                elif dropping:
                    cache.drop(key)
            except OutOfMemory:
                pass

    for dropping in (False, True):
        with ThreadPoolExecutor(6) as pool:
            for future in [pool.submit(work, seed, dropping) for seed in seeds]:
                future.result(WAIT)
        assert cache.statistics.bytes <= 40
        assert not cache._flights
        assert set(cache._idle) == set(cache._entries), "nothing is in use"
        assert cache.statistics.bytes == sum(entry.size for entry in cache._entries.values())


class Model(RuleBasedStateMachine):
    """Against a list that is searched each time."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.cache: Cache[int, int] = Cache(20, lifetime=8.0, clock=self.clock)
        self.kept: list[tuple[int, int, float]] = []  # key, size, expiry: used longest ago first
        self.pins: set[int] = set()
        self.users: list[int] = []

    def fit(self, limit: int = 20) -> None:
        while sum(size for _, size, _ in self.kept) > limit:
            free = [item for item in self.kept if item[0] not in self.pins]
            if not free:
                break
            self.kept.remove(free[0])

    @rule(key=st.integers(0, 5), size=st.integers(0, 24))
    def use(self, key: int, size: int) -> None:
        found = [item for item in self.kept if item[0] == key]
        assert self.cache.get_or_make(key, lambda: size, int) == (found[0][1] if found else size)
        if found:
            self.kept.remove(found[0])
            self.kept.append(found[0])
        elif size <= 20 or key in self.pins:
            self.kept.append((key, size, self.clock.now + 8.0))
            self.fit()

    @rule(key=st.integers(0, 5))
    def pin(self, key: int) -> None:
        self.cache.pin(key)
        self.pins.add(key)

    @rule(key=st.integers(0, 5))
    def drop(self, key: int) -> None:
        assert self.cache.drop(key) == any(item[0] == key for item in self.kept)
        self.kept = [item for item in self.kept if item[0] != key]

    @rule(limit=st.integers(0, 20))
    def shrink(self, limit: int) -> None:
        self.cache.shrink(limit)
        self.fit(limit)

    @rule(seconds=st.floats(0, 5))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds
        self.kept = [item for item in self.kept if item[2] > self.clock.now]

    @invariant()
    def agree(self) -> None:
        found = self.cache.statistics
        assert found.bytes == sum(size for _, size, _ in self.kept)
        assert set(self.cache._entries) == {key for key, _, _ in self.kept}


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_digests_stand_for_their_parts() -> None:
    words = np.arange(8, dtype=np.uint64).reshape(2, 4)
    assert keyed_digest("a", words, 3, None) == keyed_digest("a", words.copy(), 3, None)
    assert keyed_digest(words) == keyed_digest(words.tobytes())
    different = [
        ("ab", "c"), ("a", "bc"), ("abc",), (b"abc",), ("abc", ""), (1,), ("1",), (True,), (None,),
        ("None",), (), (words[:0],), ("", words[:0]),
    ]  # fmt: skip
    digests = {keyed_digest(*parts) for parts in different}
    assert len(digests) == len(different)
    assert {len(digest) for digest in digests} == {32}


def test_digests_of_another_process_differ() -> None:
    program = "from gpuprover.caching import keyed_digest; print(keyed_digest(b'witness').hex())"
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert len(other.strip()) == 64
    assert other.strip() != keyed_digest(b"witness").hex()
