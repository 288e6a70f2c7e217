"""A verifier process of one's own: started when it is needed, started again when it dies."""

from __future__ import annotations

import atexit
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from gpuprover import processes
from gpuprover.errors import CircuitNotFound, InvalidInput, ProverError
from gpuprover.formats.json_files import read_json
from gpuprover.messages import Channel, ConnectionLost
from gpuprover.verifier.client import (
    CALL_SECONDS,
    HEARTBEAT_SECONDS,
    START_SECONDS,
    VerifierClient,
    VerifierStatus,
)

if TYPE_CHECKING:
    from gpuprover.verifier.client import KeyLike

POLICIES = ("eager", "lazy")
CLOSE_SECONDS = 5.0
"""That the process gets to end by itself."""


class VerifierProcess(VerifierClient):
    """A process that verifies, and the calls to it. It loads verification keys, and nothing else of a prover.

    When it dies it is started again, within a second or so, gets its keys anew, and answers what it owed.
    It ends with this object, and with this process however that ends.

    Args:
        policy: ``eager`` starts it now, ``lazy`` when something is to be verified.
        keys: name -> verification key, document, or the path of one.
        threads: verifications at once; default ``PROVER_THREADS`` or the CPUs of this process.
        timeout: seconds for a call that says no other, from the start of the process on if need be.
        heartbeat: seconds of silence after which the process is replaced.
        start: seconds for it to become ready.

    Raises:
        InvalidInput: no such policy.
        MalformedFile, UnsupportedFile: a key is damaged.
    """

    def __init__(
        self,
        policy: str = "eager",
        keys: Mapping[str, KeyLike | str | os.PathLike[str]] | None = None,
        *,
        threads: int | None = None,
        timeout: float = CALL_SECONDS,
        heartbeat: float = HEARTBEAT_SECONDS,
        start: float = START_SECONDS,
    ) -> None:
        if policy not in POLICIES:
            raise InvalidInput(f"verifier: expected {' or '.join(POLICIES)}, found {policy!r:.40}")
        self._prepare(timeout, heartbeat, start)
        self._eager = False  # the keys below travel when it starts
        self._threads = threads
        self._owner = os.getpid()
        self._last_words = ""
        self._child: processes.Child | None = None
        for name, key in (keys or {}).items():
            document: Any = read_json(key) if isinstance(key, str | os.PathLike) else key
            self.load(name, document)
        self._eager = policy == "eager"
        atexit.register(self.close)
        if self._eager:
            with self._changed:
                self._begin()

    _kept = True

    def status(self, *, timeout: float = 5.0) -> VerifierStatus:
        """How the process is. It is neither started nor waited for; between two of them, little is known."""
        if self._pid is not None:
            with suppress(ProverError):
                return super().status(timeout=timeout)
        with self._changed:
            state = "failing" if self._problem is not None else "starting" if self._busy else "idle"
            return VerifierStatus(
                "closed" if self._closing.is_set() else state,
                pid=self._pid,
                restarts=max(0, self._opened - 1),
                problem=None if self._problem is None else self._problem.message,
            )

    def close(self) -> None:
        """Ends the process. Calls that wait get ShuttingDown. May be called again.

        In a process that was forked from the one that started it, it does nothing.
        """
        atexit.unregister(self.close)
        if os.getpid() != self._owner:
            return
        super().close()

    def _which(self, name: str) -> dict[str, Any]:
        which = super()._which(name)
        if "digest" not in which:
            raise CircuitNotFound(f"{name}: no verification key of that name is loaded")
        return which

    def _open(self) -> Channel:
        self._last_words = ""
        ours, theirs = socket.socketpair()
        arguments = ["--fd", str(theirs.fileno()), "--parent", str(os.getpid())]
        if self._threads is not None:
            arguments += ["--threads", str(self._threads)]
        try:
            self._child = processes.spawn("gpuprover.verifier", *arguments, fds=[theirs.fileno()])
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return Channel(ours)

    def _ended(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        # It sees the end of its connection; one that is stopped or busy does not.
        if not (self._closing.is_set() and child.wait(CLOSE_SECONDS)):
            child.kill()
            child.wait(CLOSE_SECONDS)
        self._last_words = child.describe()
        child.close()

    def _explained(self, problem: ProverError) -> ProverError:
        return ConnectionLost(f"the verifier process {self._last_words}") if self._last_words else problem
