"""What is compiled while the first cases run: cubins that are not there, and the CPU's code."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from gpuprover.cuda.compile import built_folders, file_name, find_cubin, find_nvrtc, program_name, store
from gpuprover.cuda.source import programs
from gpuprover.curves import CURVES

from ..rows import Row
from .cases import CPU_CODE, CUDA_CODE, PROOF_STEPS, RATES_CODE, Case, Need
from .processes import start, stop
from .rates import SOURCE

CARRIED = "kernels/cubins"
"""Where ``make cubins`` puts them, and this program looks first."""
WARM = """
import sys
from gpuprover.cpu.warm import steps
from gpuprover.curves import curve_by_name
for word in sys.argv[1:]:
    curve, step = word.split("/")
    steps(curve_by_name(curve))[step]()
    print(word, flush=True)
"""


class Cubins:
    """Those of one architecture: found, or compiled in the background into the user's cache.

    They are compiled by the NVRTC of a CUDA release, as the device's own are; None: the newest that is there.

    Attributes:
        row: the row of this, once its end is known; its writer takes it.
        complete: whether all are there.
        said: what there is to say at the beginning, in a line.
    """

    def __init__(self, architecture: str, major: int | None, threads: int, log: IO[str]) -> None:
        nvrtc = find_nvrtc(major)
        wanted = [program for curve in CURVES for program in programs(curve)]
        missing = [program for program in wanted if find_cubin(program, architecture, nvrtc) is None]
        others = {
            str(folder)
            for folder in built_folders()
            for program in missing
            if any(folder.glob(f"{program_name(program)}.{architecture}.*.cubin"))
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._begun = time.monotonic()
        self._coming: dict[Need, list[Path]] = {}
        self._row: Row = {"operation": "build cubins", "device": "cuda", "mode": "once", "case": "cubins"}
        self._row |= {"cubins": len(wanted), "compiled": len(missing)}
        self.row: Row | None = None
        self.complete = not missing
        self.said = f"cubins: {len(wanted) - len(missing)} of {len(wanted)} are there"
        if not missing:
            self.row = self._row
            return
        if others:
            self.said += f"; those in {', '.join(sorted(others))} are of other sources"
        else:
            self.said += f"; none came in {CARRIED}"
        self.said += ": the rest is compiled now, which takes minutes of CPU time (make cubins, before)"
        folder = None if nvrtc is None else store(nvrtc).made()
        if nvrtc is None or folder is None:
            why = "NVRTC is missing" if nvrtc is None else "the cache folder cannot be written"
            self.row = {**self._row, "error": f"{len(missing)} cubins are not there, and {why}"}
            return
        for program in missing:
            path = folder / file_name(program, architecture)
            self._coming.setdefault(Need(CUDA_CODE, program.curve.name), []).append(path)
            if program.source == SOURCE:
                self._coming[Need(RATES_CODE, program.curve.name)] = [path]
        command = [sys.executable, "-m", "gpuprover.cuda.build", "--arch", architecture]
        command += ["--output", str(folder), "--jobs", str(threads), "--cuda", str(nvrtc.version[0])]
        self._process = start(command, log)

    def look(self) -> None:
        """Makes the row once all are compiled, or cannot be."""
        if self._process is None or (code := self._process.poll()) is None:
            return
        self._process, self.row = None, self._row
        self.row["seconds"] = round(time.monotonic() - self._begun, 1)
        self.complete = code == 0
        if code:
            self.row["error"] = f"not all kernels could be compiled: exit code {code}, see log.txt"

    def there(self, need: Need) -> bool:
        """Whether they are there, or will not come."""
        return self._process is None or all(path.exists() for path in self._coming.get(need, ()))

    def close(self) -> None:
        if self._process is not None:
            stop(self._process)


class HostCode:
    """The CPU's code, compiled in processes side by side, in the order in which cases need it.

    Attributes:
        complete: whether none of it failed.
    """

    def __init__(self, cases: Iterable[Case], processes: int, log: IO[str]) -> None:
        steps = (each for case in cases for need in case.needs for each in _steps(need))
        waiting = list(dict.fromkeys(steps))
        self.complete = True
        self._running: dict[subprocess.Popen[bytes], list[Need]] = {}
        for i in range(min(processes, len(waiting))):
            share = waiting[i::processes]
            command = [sys.executable, "-c", WARM, *map(_word, share)]
            process = start(command, log, stdout=subprocess.PIPE, bufsize=0)
            assert process.stdout is not None
            os.set_blocking(process.stdout.fileno(), False)
            self._running[process] = share

    def look(self) -> Iterator[str]:
        """Sees what is done, and reports what failed."""
        for process, share in [*self._running.items()]:
            code = process.poll()  # before reading: nothing is written after that
            assert process.stdout is not None
            done = (process.stdout.read() or b"").decode().split("\n")
            share[:] = [need for need in share if _word(need) not in done]
            if code is not None:
                process.stdout.close()
                del self._running[process]
                if share:
                    self.complete = False
                    what = ", ".join(f"{need.curve} {need.step}" for need in share)
                    yield f"the CPU's code was not compiled: {what}: exit code {code}, see log.txt"

    def there(self, need: Need) -> bool:
        """Whether it was compiled, or cannot be."""
        waiting = {each for share in self._running.values() for each in share}
        return waiting.isdisjoint(_steps(need))

    def close(self) -> None:
        for process in self._running:
            stop(process)
            if process.stdout is not None:
                process.stdout.close()


def _word(need: Need) -> str:
    return f"{need.curve}/{need.step}"


def _steps(need: Need) -> Sequence[Need]:
    """The steps of the CPU's code that a need stands for."""
    if need.kind != CPU_CODE:
        return ()
    return [Need(CPU_CODE, need.curve, step) for step in ([need.step] if need.step else PROOF_STEPS)]
