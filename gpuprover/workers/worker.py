"""A worker: makes proofs in its process, and tells its supervisor what becomes of them.

The main thread receives; each proof and each loading of a key has a thread of its own, and one more tells
every second that the worker lives. Nothing is written to disk but compiled code.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any, NoReturn

from gpuprover import calibration, folders, memory
from gpuprover.curves import curve_by_name
from gpuprover.devices import is_gpu, resolve_device, try_device, warm_up
from gpuprover.errors import DeviceError, OutOfMemory, ProofGenerationFailed, ProverError, shortage, to_record
from gpuprover.executor import KeyInfo
from gpuprover.job import Job, Progress
from gpuprover.memory import memory_usage
from gpuprover.messages import Channel
from gpuprover.processes import harden, is_dumpable
from gpuprover.runner import Runner
from gpuprover.scheduler import DeviceInfo
from gpuprover.version import VERSION
from gpuprover.workers.wire import result_to_json, unpack

ALIVE_SECONDS = 1.0
PROGRESS_SECONDS = 0.1
"""Between reports of one phase."""
LAST_SECONDS = 1.0
"""For proofs on a GPU to end that nobody waits for any more: its memory is wiped then."""

REST_SECONDS = 2.0
"""Without a proof, after which memory that malloc has kept for the next one goes back."""

Message = dict[str, Any]


def main(arguments: Sequence[str]) -> NoReturn:
    descriptor, parent = (int(argument) for argument in arguments)
    harden(parent)
    os.set_inheritable(descriptor, False)
    worker = Worker(Channel(socket.socket(fileno=descriptor), max_fds=1))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # In a thread: the handler may interrupt the main thread while that holds a lock.
    signal.signal(signal.SIGTERM, lambda *_: _thread(worker.stop))
    with folders.warnings_to(worker.warn):
        worker.run()


def _thread(target: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=target, args=arguments, daemon=True).start()


class Worker:
    """Serves one supervisor until it asks to stop, or is gone."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._lock = threading.Condition()
        self._running: dict[int, threading.Event] = {}
        self._ended: float | None = None
        self._stopping = False
        self._device, self._threads, self._warm = "cpu", 1, False
        self._runner: Runner | None = None
        self._warmed: set[str] = set()

    def run(self) -> NoReturn:
        try:
            message, _ = self._channel.receive()
            _thread(self._tell)
            self._start(message)
            while True:
                self._handle(*self._channel.receive())
        except ProverError:
            self._end()  # the supervisor is gone, or says what no supervisor would

    def _end(self) -> NoReturn:
        """Ends the process at once, but for a moment in which what runs can stop."""
        with self._lock:
            for event in self._running.values():
                event.set()
            if is_gpu(self._device):
                self._lock.wait_for(lambda: not self._running, LAST_SECONDS)
        os._exit(0)

    def stop(self) -> None:
        """Ends the process when what runs has ended; what comes from now on is refused."""
        with self._lock:
            if self._stopping:
                return
            self._stopping = True
        self._send({"type": "stopping"})
        with self._lock:
            self._lock.wait_for(lambda: not self._running)
        os._exit(0)

    def warn(self, text: str) -> None:
        """Has the supervisor tell it: nobody sees what this process writes."""
        self._send({"type": "warning", "text": text})

    def _send(self, message: Message) -> None:
        """Nobody to send to is what the main thread notices."""
        try:
            self._channel.send(message)
        except ProverError:
            return

    # Start --------------------------------------------------------------------------------

    def _start(self, message: Message) -> None:
        """Everything that takes time before the first proof, then ``hello``."""
        assert message["type"] == "start"
        self._device, self._threads, self._warm = message["device"], message["threads"], message["warm"]
        try:
            record, others = self._survey(message["survey"])
            self._runner = Runner(message["key_bytes"], (self._device,))
            for path in message["pinned"]:
                try:
                    self._load(path, True)
                except ProverError:
                    continue  # whoever proves with it is told why
        except Exception as error:
            # No witness has come yet: the text may be told.
            failure = error if isinstance(error, ProverError) else _failure(error)
            self._send({"type": "failed", "error": to_record(failure)})
            os._exit(1)
        # What is there now stays: the collector need not look at it again, nor touch its pages.
        gc.collect()
        gc.freeze()
        self._send(
            {
                "type": "hello",
                "version": VERSION,
                "device": asdict(record),
                "devices": None if others is None else [asdict(device) for device in others],
                "hardened": not is_dumpable() and resource.getrlimit(resource.RLIMIT_CORE) == (0, 0),
                "memory": memory_usage().as_dict(),
            }
        )

    def _survey(self, survey: bool) -> tuple[DeviceInfo, list[DeviceInfo] | None]:
        """This worker's device, ready, and all of the machine, if asked for."""
        if not is_gpu(self._device):
            from gpuprover.devices import cpu_path_name, use_images
            from gpuprover.machine import processor_name

            self._progress("import", 0.0)
            use_images()
            own = DeviceInfo("cpu", "cpu", processor_name(), cpu_path_name())
            return own, calibration.devices(1) if survey else None
        self._progress(f"open {self._device}", 0.0)
        resolve_device(self._device)
        room = try_device(self._device)
        found = {device.name: device for device in calibration.devices(1)}
        return replace(found[self._device], memory=room), None

    def _progress(self, phase: str, fraction: float) -> None:
        self._send({"type": "starting", "phase": phase, "fraction": fraction})

    def _tell(self) -> None:
        """Says every second that this process lives, and what it holds."""
        while True:
            time.sleep(ALIVE_SECONDS)
            self._rest()
            runner = self._runner
            keys = None if runner is None else runner.keys.statistics.as_dict()
            alive = {"type": "alive", "memory": memory_usage().as_dict(), "cpu": time.process_time()}
            self._send({**alive, "keys": keys})

    def _rest(self) -> None:
        """Hands back what the last proof has left, once nothing has come for a while."""
        with self._lock:
            ended, busy = self._ended, bool(self._running)
            if busy or ended is None or time.monotonic() < ended + REST_SECONDS:
                return
            self._ended = None
        memory.trim()

    # Messages -----------------------------------------------------------------------------

    def _handle(self, message: Message, fds: list[int]) -> None:
        kind = message["type"]
        if kind == "prove":
            self._begin(message, fds)
        elif kind == "cancel":
            with self._lock:
                event = self._running.get(message["id"])
            if event is not None:
                event.set()
        elif kind == "load":
            try:
                _thread(self._answer_load, message)
            except RuntimeError as error:
                self._send({"type": "loaded", "id": message["id"], "error": to_record(_failure(error))})
        elif kind == "unload":
            assert self._runner is not None
            self._runner.unload(message["path"])
        elif kind == "shrink":
            with suppress(RuntimeError):  # no thread for it: it is asked again
                _thread(self._shrink)
        elif kind == "stop":
            try:
                _thread(self.stop)
            except RuntimeError:
                self.stop()

    def _shrink(self) -> None:
        assert self._runner is not None
        self._runner.shrink()
        memory.trim()

    def _answer_load(self, message: Message) -> None:
        answer: Message
        try:
            answer = {"key": self._load(message["path"], message["pin"]).to_json()}
        except ProverError as error:
            answer = {"error": to_record(error)}
        except Exception as error:
            answer = {"error": to_record(_failure(error))}
        self._send({"type": "loaded", "id": message["id"], **answer})

    def _load(self, path: str, pin: bool) -> KeyInfo:
        assert self._runner is not None
        reported = 0.0

        def report(progress: Progress) -> None:
            nonlocal reported
            if progress.elapsed - reported >= PROGRESS_SECONDS:
                reported = progress.elapsed
                self._progress(progress.phase, progress.fraction)

        job = Job(threads=self._threads, progress=report)
        info = self._runner.load(path, pin=pin, job=job)
        if pin and self._warm and info.curve not in self._warmed:
            warm_up(self._device, curve_by_name(info.curve), job)
            self._warmed.add(info.curve)
        return info

    # Proofs -------------------------------------------------------------------------------

    def _begin(self, message: Message, fds: list[int]) -> None:
        number = message["request"]["id"]
        cancelled = threading.Event()
        with self._lock:
            refused = self._stopping
            if not refused:
                self._running[number] = cancelled
        if refused:
            for descriptor in fds:
                os.close(descriptor)
            self._send({"type": "refused", "id": number})
            return
        try:
            _thread(self._prove, number, message, fds, cancelled)
        except RuntimeError:
            self._done(
                number, {"error": to_record(OutOfMemory("the machine refused a thread for the proof"))}
            )

    def _prove(self, number: int, message: Message, fds: list[int], cancelled: threading.Event) -> None:
        self._done(number, self._proof(number, message, fds, cancelled))

    def _done(self, number: int, answer: Message) -> None:
        self._send({"type": "done", "id": number, **answer})
        with self._lock:
            del self._running[number]
            self._ended = time.monotonic()
            self._lock.notify_all()

    def _proof(self, number: int, message: Message, fds: list[int], cancelled: threading.Event) -> Message:
        """The answer to a request. It has an unexpected exception's kind alone: texts may hold secrets."""
        assert self._runner is not None
        try:
            request = unpack(message, fds)
            result = self._runner.prove(request, cancel=cancelled, progress=self._reporter(number))
            return {"result": result_to_json(result)}
        except ProverError as error:
            return {"error": to_record(error)}
        except Exception as error:
            problem = f"{type(error).__name__} in a worker; this is a bug in gpuprover"
            return {"error": to_record(shortage(error) or ProofGenerationFailed(problem))}

    def _reporter(self, number: int) -> Callable[[Progress], None]:
        last: tuple[str, float] = ("", 0.0)

        def report(progress: Progress) -> None:
            nonlocal last
            if progress.phase == last[0] and progress.elapsed - last[1] < PROGRESS_SECONDS:
                return
            last = progress.phase, progress.elapsed
            self._send({"type": "progress", "id": number, **progress._asdict()})

        return report


def _failure(error: Exception) -> ProverError:
    short = shortage(error)
    if short is not None:
        return short
    where = f"{sys.executable}: " if isinstance(error, ImportError) else ""
    return DeviceError(f"{type(error).__name__} as it started", more=f"({where}{error})")


__all__ = ["Worker", "main"]
