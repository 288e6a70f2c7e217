"""Forked processes: what another thread held or was making at that moment keeps nobody waiting there."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import gpuprover
from gpuprover import forks
from gpuprover.caching import Cache
from gpuprover.cpu import multiples, ntt, ntt_lanes
from gpuprover.cuda import gpus, probe
from gpuprover.errors import Aborted
from gpuprover.job import Job
from gpuprover.systems.groth16 import verifier
from tests.support.paths import VECTORS

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")

STEM = str(VECTORS / "chain5.bn254")
PATIENCE = 60.0
"""Seconds for a child on a busy machine."""


def start(work: Callable[[], object]) -> int:
    """A child that runs ``work`` and ends: with 0, or with 1 after a traceback."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def end(pid: int) -> int | None:
    """Its exit code; None if it had to be killed."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


@contextmanager
def held(lock: Any) -> Iterator[None]:
    """Another thread has the lock."""
    taken, done = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            taken.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait()
    try:
        yield
    finally:
        done.set()
        thread.join()


def prove() -> None:
    key = gpuprover.load_key(f"{STEM}.zkey")
    result = gpuprover.prove(key, f"{STEM}.wtns", threads=2)
    assert gpuprover.verify(key.vk, result.public_signals, result.proof)


@pytest.mark.parametrize(
    "name", ["multiples", "multiples of a key", "twiddles", "twiddles in lanes", "verifier", "devices"]
)
def test_a_child_proves_whatever_lock_was_held(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiples, "FREE", 0)
    prove()
    key = gpuprover.load_key(f"{STEM}.zkey")
    gpuprover.prove(key, f"{STEM}.wtns", threads=1)
    lock = {
        "multiples": lambda: multiples._guard,
        "multiples of a key": lambda: multiples._kept[id(key)].lock,
        "twiddles": lambda: ntt._table_lock,
        "twiddles in lanes": lambda: ntt_lanes._lock,
        "verifier": lambda: verifier._keys._lock,
        "devices": lambda: gpus._lock,
    }[name]()

    def work() -> None:
        ntt._tables.clear()
        ntt_lanes._tables.clear()
        with gpus._lock:
            pass
        gpuprover.prove(key, f"{STEM}.wtns", threads=2)
        prove()

    with held(lock):
        child = start(work)
    assert end(child) == 0


def test_a_cache_is_empty_in_a_child() -> None:
    """What another thread was making there is never made; what is in use there is never given back."""
    cache = Cache[str, int](10)
    cache.put("kept", 1, 5)
    making, done = threading.Event(), threading.Event()

    def make() -> int:
        making.set()
        done.wait()
        return 7

    thread = threading.Thread(target=lambda: cache.get_or_make("slow", make, lambda _: 1))
    thread.start()
    making.wait()

    def work() -> None:
        assert cache.get_or_make("slow", lambda: 8, lambda _: 1, timeout=PATIENCE) == 8
        assert cache.get("kept") is None
        assert cache.statistics.bytes == 1

    with held(cache._lock):
        child = start(work)
    assert end(child) == 0
    pid = -1
    try:
        with cache.using("inner", lambda: 3, lambda _: 1):
            pid = os.fork()
        if pid == 0:  # has left the block like its parent
            os._exit(0 if cache.get("inner") is None else 1)
    finally:
        if pid == 0:
            os._exit(1)
    assert end(pid) == 0
    done.set()
    thread.join()
    assert cache.get("kept") == 1
    assert cache.get("slow") == 7


def test_places_are_free_in_a_child() -> None:
    limit = gpuprover.BackpressureController(1)

    def work() -> None:
        limit.acquire(timeout=PATIENCE)
        limit.release()

    with held(limit):
        child = start(work)
    assert end(child) == 0
    # The forking thread's own place is given back there as well, and no other.
    limit.acquire()
    pid = os.fork()
    if pid == 0:
        limit.release()
        try:
            limit.release()
        except gpuprover.InvalidInput:
            os._exit(0)
        os._exit(1)
    assert end(pid) == 0
    limit.release()


@pytest.mark.parametrize("threads", [1, 2])
def test_a_run_does_not_go_on_in_a_child(threads: int) -> None:
    """A callback that forks comes back in both processes; the child has none of the run's threads."""
    parent, children = os.getpid(), list[int]()

    def progress(progress: Any) -> None:
        if progress.phase == "msm" and not children:
            children.append(os.fork())

    try:
        gpuprover.prove(f"{STEM}.zkey", f"{STEM}.wtns", progress=progress, threads=threads)
    except Aborted:
        assert os.getpid() != parent
        os._exit(0)
    finally:
        if os.getpid() != parent:
            os._exit(1)
    assert end(children[0]) == 0


def test_a_fork_waits_for_what_must_not_be_cut_in_two() -> None:
    """A compiler at work in another thread has locks of its own, which nobody could make anew."""
    from numba.core.compiler_lock import global_compiler_lock

    prove()
    for lock in (forks.settled, global_compiler_lock):
        _fork_while_held(lock)


def _fork_while_held(lock: Any) -> None:
    free, children = threading.Event(), list[int]()

    def work() -> None:
        with lock:
            pass

    def fork() -> None:
        children.append(start(work))
        free.set()

    with held(lock):
        thread = threading.Thread(target=fork)
        thread.start()
        assert not free.wait(0.2)
    thread.join(PATIENCE)
    assert end(children[0]) == 0


def test_a_gpu_is_of_no_use_in_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_seen", {"cuda:0"})
    monkeypatch.setattr(probe, "_lost", {})

    def work() -> None:
        with pytest.raises(gpuprover.DeviceError, match="forked"):
            gpus.open_device("cuda:0")

    assert end(start(work)) == 0
    assert probe.lost("cuda:0") is None


def test_what_is_gone_is_forgotten() -> None:
    caches = [Cache[int, int](1) for _ in range(50)]
    names = [(id(cache), "_begin") for cache in caches]
    assert all(name in forks._methods for name in names)
    dead = weakref.ref(caches[-1])
    caches.clear()
    gc.collect()
    assert dead() is None
    assert not any(name in forks._methods for name in names)


def test_generations() -> None:
    before, job = forks.generation(), Job()

    def work() -> None:
        assert forks.generation() == before + 1
        with pytest.raises(Aborted):
            job.check()
        Job().check()
        assert end(start(lambda: None)) == 0

    assert end(start(work)) == 0
    assert forks.generation() == before
    job.check()
