"""Measuring side by side: every round runs all contestants, so that a drift of the machine meets all of them.

The first round is a warm-up and does not count. Python's garbage collection is off while anything is timed.
"""

from __future__ import annotations

import gc
import json
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from gpuprover.errors import DeviceError, OutOfMemory
from gpuprover.job import Job

from .rows import OURS, Row, Rows, spread, times_faster

LAUNCHER = Path(__file__).resolve().parent / "launch.py"
REPEATS, REPEAT_SECONDS = 5, 0.25
"""Within a round a short operation repeats, at most so often and so long; the fastest counts."""
ENOUGH_SECONDS, ENOUGH_ROUNDS = 60.0, 3
"""A contestant that has used this time sits out further rounds once it has this many."""


class Failed(Exception):
    """A contestant could not be measured; the message is the row's reason."""


class Sample(NamedTuple):
    """Seconds of one run; bytes at the peak and seconds by phase where they are known."""

    cpu: float | None
    wall: float | None
    peak: int | None = None
    phases: Mapping[str, float] | None = None


def timed(call: Callable[[], object]) -> Sample:
    """One call in this process; CPU time is that of all threads."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        return Sample(time.process_time() - cpu, time.perf_counter() - wall)
    finally:
        if collecting:
            gc.enable()


def fastest(call: Callable[[], object]) -> Sample:
    """The fastest of a few repeats of a short call, in CPU time and in wall time."""
    samples = [timed(call)]
    begun = time.perf_counter()
    while len(samples) < REPEATS and time.perf_counter() - begun < REPEAT_SECONDS:
        samples.append(timed(call))
    return Sample(min(s.cpu for s in samples if s.cpu is not None), min(s.wall for s in samples if s.wall))


def run_process(
    command: Sequence[str],
    *,
    check: Callable[[], None],
    limit: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> tuple[Sample, str]:
    """A whole process and its children, and what it printed; ``check`` may raise to end it.

    Raises:
        Failed: it cannot be started, ends with an error, or takes more than ``limit`` seconds.
    """
    name = Path(command[0]).name
    with tempfile.TemporaryDirectory() as folder:
        out, errors = Path(folder, "out"), Path(folder, "errors")
        launcher = [sys.executable, "-I", "-S", str(LAUNCHER), str(out), str(errors), *command]
        process = subprocess.Popen(
            launcher,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        begun = time.perf_counter()
        try:
            while True:
                try:
                    answer, _ = process.communicate(timeout=0.1)
                    break
                except subprocess.TimeoutExpired:
                    check()
                    if limit is not None and time.perf_counter() - begun > limit:
                        raise Failed(f"{name}: took more than {limit:g} s") from None
        finally:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        record = json.loads(answer or b'{"problem": "ended without an answer"}')
        if "problem" in record:
            raise Failed(f"{name}: cannot be run: {record['problem']}")
        text = out.read_text(errors="replace")
        if record["code"]:
            said = without_places(errors.read_text(errors="replace").strip() or text.strip())[-200:]
            raise Failed(f"{name}: exit code {record['code']}: {' '.join(said.split()) or 'said nothing'}")
        return Sample(record["cpu"], record["wall"], record["peak"]), text


def without_places(text: str) -> str:
    """The text with the last part of each absolute path: rows are for other machines, too."""
    return re.sub(r"(?<![\w.])(?:/[\w.+@-]+)+/([\w.+@-]+)", r"\1", text)


def fill(template: str, names: Mapping[str, object]) -> list[str]:
    """A command's words with {name} replaced; other braces stay."""
    words = shlex.split(template)
    for name, value in names.items():
        words = [word.replace("{" + name + "}", str(value)) for word in words]
    return words


@dataclass(frozen=True)
class Variant:
    """One of ours: a device, the CPU's path on it, the most threads."""

    device: str
    path: str | None
    threads: int = 1

    @property
    def fields(self) -> Row:
        return {"device": self.device, "path": self.path, "threads": self.threads}

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to take this path: nothing for the one that it takes anyway.

        Images of compiled kernels, which a process starts with, are kept apart for paths that are forced.
        """
        from gpuprover.cpu.path import cpu_path

        return {} if self.path in (None, cpu_path().name) else {"PROVER_CPU_PATH": str(self.path)}

    @contextmanager
    def chosen(self) -> Iterator[None]:
        """The block runs on this path."""
        before = {name: os.environ.get(name) for name in self.environment}
        os.environ.update(self.environment)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


@dataclass
class Contestant:
    """One of those measured side by side: the fields of its row, and what runs it once.

    ``case`` names what is computed: peers are compared with ours of the same case.
    """

    case: str
    fields: Row
    run: Callable[[], Sample]
    samples: list[Sample | None] = field(default_factory=list)
    failure: str | None = None
    used: float = 0.0

    @property
    def name(self) -> str:
        return str(self.fields["implementation"])

    def round(self, counts: bool) -> None:
        """Runs once; a round that is sat out leaves None, so that rounds stay aligned."""
        done = sum(s is not None for s in self.samples)
        if self.failure is not None or (self.used > ENOUGH_SECONDS and done >= ENOUGH_ROUNDS):
            self.samples.append(None)
            return
        begun = time.perf_counter()
        try:
            sample = self.run()
        except (Failed, DeviceError, OutOfMemory) as failure:
            self.failure = str(failure)
            return
        self.used += time.perf_counter() - begun
        if counts:
            self.samples.append(sample)

    def seconds(self, kind: str) -> list[float]:
        return [getattr(s, kind) for s in self.samples if s is not None and getattr(s, kind) is not None]


def measure(contestants: Sequence[Contestant], rounds: int, rows: Rows, job: Job) -> None:
    """Runs all contestants ``rounds`` times after a warm-up, and adds a row for each that has figures.

    Reports progress in the job's current phase. What an interruption leaves unfinished gets its rows too,
    with the rounds that are done.
    """
    total = (rounds + 1) * len(contestants)
    try:
        for i in range(rounds + 1):
            for k, contestant in enumerate(contestants):
                job.check()
                contestant.round(counts=i > 0)
                job.report((i * len(contestants) + k + 1) / total)
    finally:
        for contestant in contestants:
            row = _row(contestant, contestants)
            if row is not None:
                rows.add(row)


def _row(contestant: Contestant, all_: Sequence[Contestant]) -> Row | None:
    samples = [s for s in contestant.samples if s is not None]
    row = dict(contestant.fields)
    if contestant.failure is not None:
        row["error"] = contestant.failure
    elif not samples:
        return None
    for kind in ("cpu", "wall"):
        if seconds := contestant.seconds(kind):
            row[kind] = spread(seconds)
    # What one element takes; the seconds above are of the whole call.
    if (count := row.pop("count", None)) and samples:
        row["each_ns"] = {kind: round(row[kind]["median_s"] / count * 1e9, 3) for kind in ("cpu", "wall")}
    phases = [s.phases for s in samples if s.phases]
    if phases:
        names = list(dict.fromkeys(name for p in phases for name in p))
        row["phases"] = {n: round(statistics.median(p.get(n, 0.0) for p in phases), 6) for n in names}
    if peaks := [s.peak for s in samples if s.peak]:
        row["peak"] = int(statistics.median(peaks))
    if contestant.name != OURS and samples:
        row["faster"] = list(_faster(contestant, all_))
    return row


def _faster(peer: Contestant, all_: Sequence[Contestant]) -> Iterator[Row]:
    """How many times faster each of ours was in the rounds that both ran."""
    for ours in all_:
        if ours.case != peer.case or ours.name != OURS:
            continue
        both = [(a, b) for a, b in zip(ours.samples, peer.samples, strict=False) if a and b]
        ratios: Row = {}
        for kind in ("cpu", "wall"):
            pairs = [(getattr(a, kind), getattr(b, kind)) for a, b in both]
            pairs = [(a, b) for a, b in pairs if a is not None and b is not None]
            if pairs:
                ratios[kind] = times_faster([a for a, _ in pairs], [b for _, b in pairs])
        if ratios:
            named = ("device", "path", "threads", "mode")
            yield {**{name: ours.fields.get(name) for name in named}, **ratios}
