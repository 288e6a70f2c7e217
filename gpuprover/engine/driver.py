"""The thread that drives a prover's dispatcher, and how all that belongs to a prover ends."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref

from gpuprover.engine.dispatch import Dispatcher
from gpuprover.engine.verification import Verification
from gpuprover.errors import Aborted, OutOfMemory, ProofGenerationFailed, code_location, shortage
from gpuprover.executor import Executor

log = logging.getLogger("gpuprover.engine")

JOIN_SECONDS = 5.0
"""Seconds for the thread to end when everything is closed."""
STUMBLE_SECONDS = 0.1
"""Seconds after a step that failed for what the system refuses; each pause is longer by so much."""


class Driver:
    """Everything that lives until a prover is closed, and the thread that drives it.

    It does not know the prover, which may be forgotten without being closed.

    Args:
        executor, dispatcher, verification: what lives so long; :meth:`close` ends all three.

    Attributes:
        pid: the process that it belongs to; in another one, which was forked from that, it does nothing.
        problem: what the system refuses the thread now, in words; empty if nothing.
    """

    def __init__(self, executor: Executor, dispatcher: Dispatcher, verification: Verification) -> None:
        self.executor, self.dispatcher, self.verification = executor, dispatcher, verification
        self._thread: threading.Thread | None = None
        self._closing = threading.Lock()
        self._closed = self._abandoned = False
        self.pid = os.getpid()
        self.problem = ""
        _drivers.add(self)

    def run(self) -> None:
        """Starts the thread; it does not keep the interpreter alive.

        Raises:
            OutOfMemory: the system gives no thread.
        """
        thread = threading.Thread(target=self._serve, name="gpuprover-engine", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            raise OutOfMemory("the machine refused a thread for the prover") from None
        self._thread = thread

    def _serve(self) -> None:
        wake, stumbles = self.dispatcher.wake, 0
        while True:
            wake.clear()
            try:
                delay = self.dispatcher.step()
            except Exception as error:
                # Whoever waits is answered, whatever happens here.
                short, stumbles = shortage(error), stumbles + 1
                what = f"{type(error).__name__} in {code_location(error.__traceback__)}"
                if short is not None:
                    if stumbles & (stumbles - 1) == 0:  # the 1st, 2nd, 4th, 8th time
                        log.warning("the engine: %s; it is tried again", what)
                    self.problem = f"the engine: {short.message}"
                    time.sleep(min(STUMBLE_SECONDS * stumbles, 1.0))
                    continue
                log.critical("the engine ends: %s", what)
                self.dispatcher.stop(
                    ProofGenerationFailed(f"{type(error).__name__} in the engine; this is a bug in gpuprover")
                )
                continue
            stumbles, self.problem = 0, ""
            if self._abandoned:
                self.close(0.0)
                return
            if delay is None:
                return
            wake.wait(delay)

    def abandon(self) -> None:
        """Has the thread close everything. Takes no lock: garbage may be collected anywhere."""
        if os.getpid() != self.pid:
            return  # the thread is another process's
        self._abandoned = True
        self.dispatcher.wake.set()

    def close(self, grace: float) -> None:
        """Ends everything, what runs after ``grace`` seconds, and returns then. May be called again."""
        if os.getpid() != self.pid:
            return  # everything there is to end is another process's
        with self._closing:
            if self._closed:
                return
            self._closed = True
            own = threading.current_thread() is self._thread
            dispatcher = self.dispatcher
            dispatcher.abort(Aborted("the prover was closed before the proof began"), running=False)
            if grace > 0 and not own:
                dispatcher.drain(grace)
            dispatcher.stop(Aborted("the prover was closed before the proof was done"))
            self.executor.close(0.0)
            self.verification.close()
            if self._thread is not None and not own:
                self._thread.join(JOIN_SECONDS)


_drivers: weakref.WeakSet[Driver] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Provers that nobody closed: their workers do not outlive the interpreter."""
    for driver in list(_drivers):
        driver.close(0.0)
