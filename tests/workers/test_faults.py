"""The supervisor of workers outlives what the system refuses: each call that may fail, in its turn."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gpuprover import memory, messages, runner
from gpuprover.errors import DeviceError, OutOfMemory, ProverError, Timeout, shortage
from gpuprover.executor import Lost, ProofRequest
from gpuprover.formats.files import identity_of
from gpuprover.proving import ProofResult
from gpuprover.runner import Runner
from gpuprover.witness_source import WitnessBytes
from gpuprover.workers import PoolSettings, WorkerPool, pool, slots, troubles, worker
from tests.support.fault_stage import Faults, ThreadChild, spawn_thread
from tests.support.paths import VECTORS

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

        request = ProofRequest(
            self._number, "/any", identity_of("/"), WitnessBytes(b"witness"), timeout=timeout
        )
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
    monkeypatch.setattr(slots, "spawn", spawn_thread)
    monkeypatch.setattr(pool, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(troubles, "STUMBLE_SECONDS", (0.001, 2.0, 0.01, 0.1))
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
    "spawn": (slots, "spawn"),
    "memfd_create": (os, "memfd_create"),
    "write": (os, "write"),
    "close": (os, "close"),
    "send": (socket.socket, "sendmsg"),
    "receive": (messages.Channel, "_read_some"),
    "register": (pool.selectors.EpollSelector, "register"),
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


QUICK_KINDS = ("EMFILE", "a bug")


@pytest.mark.parametrize(
    "kind", [kind if kind in QUICK_KINDS else pytest.param(kind, marks=pytest.mark.slow) for kind in ERRORS]
)
@pytest.mark.parametrize("call", CALLS)
def test_whatever_call_fails_proofs_are_answered_and_the_pool_serves_again(
    faults: Faults, call: str, kind: str
) -> None:
    owner, name = CALLS[call]
    faults.watch(owner, name)
    faults.error, faults.thread = ERRORS[kind], SUPERVISOR
    if call in ("memfd_create", "write"):
        faults.thread = threading.current_thread().name
    with running(max_proofs_per_worker=2) as asking:
        assert asking.proved()
        for width in (1, 5):
            for turn in range(3):
                faults.fail_next(width)
                assert isinstance(asking.send()(), ProofResult | ProverError | Lost)
                if turn == 1:
                    for slot in list(asking.pool._slots):
                        if slot.worker is not None:
                            slot.worker.child._end(-9)  # type: ignore[attr-defined]
        faults.fail_next(0)
        eventually(asking.proved)
        eventually(lambda: not asking.pool.problem)
        assert asking.pool._thread is not None
        assert asking.pool._thread.is_alive()
    assert faults.failed > 0, "nothing failed: the test tests nothing"


def test_exhaustion_is_told_and_ends_when_it_ends(
    faults: Faults, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No descriptors for long: proofs wait, the log has a line or two, the status a reason."""
    exhausted = threading.Event()
    real = socket.socketpair

    def socketpair() -> Any:
        if exhausted.is_set():
            raise OSError(errno.EMFILE, "Too many open files")
        return real()

    monkeypatch.setattr(pool.socket, "socketpair", socketpair)
    with running() as asking:
        assert asking.proved()
        assert asking.pool.problem == ""
        exhausted.set()
        (slot,) = asking.pool._slots
        assert slot.worker is not None
        slot.worker.child._end(-9)  # type: ignore[attr-defined]
        answers = [asking.send() for _ in range(5)]
        eventually(lambda: slot.failures > 10)
        assert asking.pool.problem == (
            "cpu-0: no process could be started: the machine refused a resource: Too many open files"
        )
        (status,) = asking.pool.workers()
        assert (status.state, status.problem in asking.pool.problem) == ("waiting", True)
        assert sum("no process could be started" in line for line in caplog.messages) <= 1
        exhausted.clear()
        assert [type(answer()) for answer in answers] == [ProofResult] * 5
        assert asking.pool.problem == ""


def test_proofs_wait_for_workers_that_are_killed_until_the_set_time_is_over(
    faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers die before they are ready, and go on dying."""
    storm = threading.Event()

    class Mortal(ThreadChild):
        def _serve(self) -> None:
            if storm.is_set():
                self.kill()
            else:
                super()._serve()

    monkeypatch.setattr("tests.support.fault_stage.ThreadChild", Mortal)
    with running() as asking:
        assert asking.proved()
        storm.set()
        (slot,) = asking.pool._slots
        assert slot.worker is not None
        slot.worker.child.kill()
        eventually(lambda: slot.failures > 2 * slots.START_TRIES)
        patient, hurried = asking.send(), asking.send(timeout=0.05)
        answer = hurried()
        assert isinstance(answer, Timeout)
        assert "before a worker was ready" in answer.message
        assert asking.pool.problem.startswith("cpu-0: ")
        eventually(lambda: slot.failures > 4 * slots.START_TRIES)
        storm.clear()
        assert isinstance(patient(), ProofResult)
    storm.set()
    with running(worker_wait=0.2) as asking:
        answer = asking.send()()
        assert isinstance(answer, DeviceError)
        assert "in a row no worker started" in answer.message
        storm.clear()
        eventually(asking.proved)


def test_a_pool_that_cannot_start_says_so_and_starts_later(faults: Faults) -> None:
    faults.watch(socket, "socketpair")
    faults.fail_next(1)
    own = WorkerPool(PoolSettings(threads=2, gpus=()))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(DeviceError, match="Too many open files"):
        own.start(lambda: None)
    assert len(os.listdir("/proc/self/fd")) <= before
    own.start(lambda: None)
    assert Asking(own).proved()
    own.close(1)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.EMFILE, "x"), DeviceError),
        (OSError(errno.ENOSPC, "x"), DeviceError),
        (OSError(errno.ENOMEM, "x"), OutOfMemory),
        (OSError(errno.EIO, "x", "/secret"), DeviceError),
        (MemoryError(), OutOfMemory),
        (RuntimeError("can't start new thread"), OutOfMemory),
    ],
)
def test_what_the_system_refuses_a_proof_is_no_bug(
    error: Exception, kind: type[ProverError], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise error

    short = shortage(error)
    assert type(short) is kind
    assert "secret" not in short.message
    # Where a proof is made, in a worker and in this process.
    monkeypatch.setattr(runner, "prove_placed", refuse)
    path = VECTORS / "chain5.bn254.zkey"
    request = ProofRequest(1, str(path), identity_of(str(path)), WitnessBytes(b"witness"))
    with pytest.raises(kind) as caught:
        Runner().prove(request)
    assert "bug" not in caught.value.message
    assert str(path) in caught.value.message
    assert str(path) not in caught.value.told
    ours, theirs = socket.socketpair()
    served = worker.Worker(messages.Channel(theirs))
    served._runner = Runner()
    monkeypatch.setattr(worker, "unpack", refuse)
    answer = served._proof(1, {}, [], threading.Event())
    assert answer["error"]["kind"] == kind.__name__
    assert "bug" not in answer["error"]["message"]
    ours.close()
    theirs.close()
