"""Processes that do not outlive this one, and the one that cases run in."""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import gpuprover
from gpuprover.errors import MAX_MESSAGE

from ..measure import Failed

ROOT = Path(gpuprover.__file__).resolve().parents[1]
PACKAGE = __name__.rpartition(".")[0]
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def start(
    command: Sequence[str], log: IO[str], environment: Mapping[str, str] | None = None, **options: Any
) -> subprocess.Popen[bytes]:
    """A process with its own group, that finds this package as we did and ends with us."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        command,
        **{"stdin": subprocess.DEVNULL, "stdout": log, **options},
        stderr=log,
        env={**os.environ, "PYTHONPATH": path, **(environment or {})},
        start_new_session=True,
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,
    )


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends it and what it started."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Late(Exception):
    """A case ran out of the time that it was given."""


class NoDevice(Exception):
    """There is no device; the message says why."""


class Worker:
    """Runs cases in a process that is started when it is needed, and again after the device failed."""

    def __init__(self, folder: Path, threads: int, log: IO[str], prefix: Sequence[str] = ()) -> None:
        self._command = [*prefix, sys.executable, "-m", f"{PACKAGE}.worker", str(folder), str(threads)]
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, request: Mapping[str, Any], limit: float) -> dict[str, Any]:
        """The answer to a case.

        Raises:
            Failed: the case failed; the message is its reason.
            Late: it took more than ``limit`` seconds.
            NoDevice: there is no device to run it on.
        """
        if self._process is None:
            self._process = start(
                self._command, self._log, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
            )
        good = False
        try:
            answer = self._exchange(self._process, request, limit)
            good = "error" not in answer or "good" in answer
        finally:
            if not good:
                self.close()
        if answer.get("device") is False:
            raise NoDevice(answer["error"])
        if "error" in answer:
            raise Failed(" ".join(answer["error"].split())[:MAX_MESSAGE])
        return answer

    def _exchange(
        self, process: subprocess.Popen[bytes], request: Mapping[str, Any], limit: float
    ) -> dict[str, Any]:
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps(request).encode() + b"\n")
        end, text = time.monotonic() + limit, b""
        while not text.endswith(b"\n"):
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise Late
            part = os.read(process.stdout.fileno(), 1 << 16)
            if not part:
                code = process.wait()
                raise Failed(
                    f"the process died: {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"
                )
            text += part
        answer: dict[str, Any] = json.loads(text)
        return answer

    def finish(self, limit: float) -> None:
        """Lets the process end by itself, as tools that watch it need. Raises Late."""
        assert self._process is not None
        self._exchange(self._process, {"kind": "end"}, limit)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.1, limit))

    def close(self) -> None:
        """Ends it at once."""
        if self._process is not None:
            process, self._process = self._process, None
            stop(process)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
