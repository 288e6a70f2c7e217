"""The supervisor of workers outlives what the system refuses: each call that may fail, in its turn."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from fault_stage import Faults, ThreadChild, spawn_thread
from gpuprover import memory, messages
from gpuprover.api import ProofResult
from gpuprover.errors import ProverError
from gpuprover.runner import Lost, ProofRequest, identity_of
from gpuprover.workers import PoolSettings, WorkerPool, pool

SECONDS = 100
SUPERVISOR = "gpuprover-workers"
QUICK = {"backoff": (0.005, 2.0, 0.05, 0.1), "gpus": ()}


class Asking:
    """Asks a pool for proofs, and keeps what it answers."""

    def __init__(self, executor: WorkerPool) -> None:
        self.pool, self._number = executor, 0

    def send(self, timeout: float | None = 60) -> Callable[[], ProofResult | ProverError | Lost]:
        self._number += 1
        answers: list[ProofResult | ProverError | Lost] = []
        answered = threading.Event()

        def done(_: ProofRequest, answer: ProofResult | ProverError | Lost) -> None:
            answers.append(answer)
            answered.set()

        request = ProofRequest(self._number, "/any", identity_of("/"), b"witness", timeout=timeout)
        self.pool.prove(request, done)

        def answer() -> ProofResult | ProverError | Lost:
            assert answered.wait(SECONDS), "no answer"
            assert len(answers) == 1
            return answers[0]

        return answer

    def proved(self) -> bool:
        """Whether a proof is made, as an engine asks for it: again after a loss."""
        return any(isinstance(self.send()(), ProofResult) for _ in range(10))


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    monkeypatch.setattr(pool, "spawn", spawn_thread)
    monkeypatch.setattr(pool, "STUMBLE_SECONDS", (0.001, 2.0, 0.01, 0.1))
    return Faults(monkeypatch)


@contextmanager
def running(**settings: Any) -> Iterator[Asking]:
    own = WorkerPool(PoolSettings(**{"threads": 2, **QUICK, **settings}))
    own.start(lambda: None)
    try:
        yield Asking(own)
    finally:
        own.close(1)
        assert own.workers() == []


def eventually(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + SECONDS
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.002)
    assert found
    return found


CALLS: dict[str, tuple[Any, str]] = {
    "socketpair": (socket, "socketpair"),
    "spawn": (pool, "spawn"),
    "memfd_create": (os, "memfd_create"),
    "write": (os, "write"),
    "close": (os, "close"),
    "send": (socket.socket, "sendmsg"),
    "receive": (messages.Channel, "_read_some"),
    "register": (pool.selectors.EpollSelector, "register"),
    "unregister": (pool.selectors.EpollSelector, "unregister"),
    "select": (pool.selectors.EpollSelector, "select"),
    "reap": (ThreadChild, "wait"),
    "kill": (ThreadChild, "kill"),
    "memory": (memory, "resident_anonymous"),
    "status": (pool, "status_of"),
}
ERRORS: dict[str, BaseException] = {
    "EMFILE": OSError(errno.EMFILE, "Too many open files"),
    "ENOMEM": OSError(errno.ENOMEM, "Cannot allocate memory"),
    "EAGAIN": BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
    "ENOSPC": OSError(errno.ENOSPC, "No space left on device"),
    "EPERM": PermissionError(errno.EPERM, "Operation not permitted"),
    "memory": MemoryError(),
    "a bug": KeyError("what nobody expected"),
}


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("call", CALLS)
def test_whatever_call_fails_proofs_are_answered_and_the_pool_serves_again(
    faults: Faults, call: str, kind: str
) -> None:
    owner, name = CALLS[call]
    faults.watch(owner, name)
    faults.error, faults.thread = ERRORS[kind], SUPERVISOR
    if call in ("memfd_create", "write"):
        faults.thread = threading.current_thread().name
    with running(max_proofs=2) as asking:
        assert asking.proved()
        for width in (1, 5):
            for turn in range(3):
                faults.fail_next(width)
                assert isinstance(asking.send()(), ProofResult | ProverError | Lost)
                if turn == 1:
                    for place in list(asking.pool._places):
                        if place.worker is not None:
                            place.worker.child._end(-9)  # type: ignore[attr-defined]
        faults.fail_next(0)
        assert asking.proved()
        eventually(lambda: not asking.pool.problem)
        assert asking.pool._thread is not None
        assert asking.pool._thread.is_alive()
    assert faults.failed > 0, "nothing failed: the test tests nothing"
