"""A worker pool whose processes are threads of the test, and whose system calls fail as a test says."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest

from gpuprover.errors import DeviceError, ProverError
from gpuprover.messages import Channel

MEMORY = {"rss": 50 << 20, "external": 20 << 20}
PROOF = {
    "proof": {},
    "public_signals": [],
    "timings": {},
    "memory": {"before": 0, "peak": 0, "after": 0},
    "warnings": [],
}


class Faults:
    """Calls of the system, counted; those that a test says fail."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch, self._lock = patch, threading.Lock()
        self.error: BaseException = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        self.calls = self.failed = 0
        self._next = range(0)
        self.thread: str | None = None
        """Only calls of this thread count."""

    def fail_next(self, number: int) -> None:
        """So many calls from now on fail, and those after them do not."""
        with self._lock:
            self._next = range(self.calls + 1, self.calls + 1 + number)

    def watch(self, owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            if self.thread is None or threading.current_thread().name == self.thread:
                with self._lock:
                    self.calls += 1
                    fails = self.calls in self._next
                    self.failed += fails
                if fails:
                    raise self.error
            return real(*arguments, **options)

        self._patch.setattr(owner, name, call)


class ThreadChild:
    """Stands for a process: a thread that speaks a worker's messages."""

    pids = iter(range(1 << 22, 1 << 23))

    def __init__(self, descriptor: int) -> None:
        self.pid = next(self.pids)
        self._channel = Channel(socket.socket(fileno=os.dup(descriptor)), max_fds=1)
        self._ended = threading.Event()
        self._code: int | None = None
        self.thread = threading.Thread(target=self._serve, name="stub", daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        with suppress(ProverError):
            start, _ = self._channel.receive()
            own = {"name": start["device"], "kind": "cpu"}
            devices = [own] if start["survey"] else None
            self._say(type="hello", version="", device=own, devices=devices, hardened=True, memory=MEMORY)
            while True:
                message, descriptors = self._channel.receive()
                for descriptor in descriptors:
                    os.close(descriptor)
                if message["type"] == "stop":
                    break
                if message["type"] == "prove":
                    number = message["request"]["id"]
                    self._say(type="done", id=number, result={**PROOF, "device": start["device"]})
        self._end(0)

    def _say(self, **message: Any) -> None:
        self._channel.send(message)

    def _end(self, code: int) -> None:
        self._code = self._code if self._ended.is_set() else code
        self._ended.set()
        self._channel.close()

    @property
    def killed(self) -> bool:
        return self._code == -signal.SIGKILL

    def kill(self) -> None:
        self._end(-signal.SIGKILL)

    def ended(self) -> bool:
        return self._ended.is_set()

    def wait(self, timeout: float) -> bool:
        return self._ended.wait(timeout)

    def describe(self) -> str:
        return f"ended with {self._code}"

    def trim(self) -> None: ...

    def close(self) -> None: ...


def spawn_thread(_: str, *arguments: str, fds: Sequence[int] = (), **options: Any) -> ThreadChild:
    try:
        return ThreadChild(int(arguments[0]))
    except OSError as error:
        raise DeviceError(f"no stub: {error.strerror}") from None
