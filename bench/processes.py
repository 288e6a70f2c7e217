"""Memory of an engine's processes over time, by role, and what each of its policies costs.

A :class:`Sampler` looks at processes from outside, through ``/proc`` and NVML: every process of a node is the
node's program or a descendant of it, and its command line says its role. :func:`measure` starts a node for
each policy, makes it prove and verify, and adds a row for each; samples go to CSV files and pictures.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gpuprover import memory
from gpuprover.errors import ProverError
from gpuprover.job import Job
from gpuprover.messages import Channel
from gpuprover.verifier.process import VerifierProcess

from .gpu.processes import start, stop
from .measure import Failed
from .rows import OURS, Row, Rows, significant

INTERVAL = 0.1
"""Seconds between two looks at all processes."""
SETTLE = 1.0
"""Seconds after which memory counts as what is kept."""
ANSWER_SECONDS = 900.0
"""For one answer of a node: a thousand verifications, or proofs that compile first."""
CLOSE_SECONDS = 30.0
POLICIES = ("eager", "lazy", "off")
PROGRAM = ("-m", "gpuprover.bench.node")
"""What a node runs."""
MAIN, PROVER, VERIFIER, OTHER = "main", "prover", "verifier", "other"
_PROC = Path("/proc")


# Looking at processes ------------------------------------------------------------------


class Sample(NamedTuple):
    """One process at one time; bytes, None where the system does not tell.

    ``time`` is in seconds from the sampler's start, ``role`` ``main``, ``prover``, ``verifier`` or ``other``;
    for the other names see :class:`gpuprover.memory.MemoryUsage`. ``peak`` is the process's largest ``rss``,
    ``gpu`` what it holds of all GPUs.
    """

    time: float
    node: str
    role: str
    pid: int
    rss: int
    pss: int | None
    private: int | None
    peak: int | None
    gpu: int | None

    @property
    def held(self) -> int:
        """PSS, or RSS where only that is known."""
        return self.rss if self.pss is None else self.pss


def _parents() -> dict[int, int]:
    """Every process of the system -> its parent."""
    found = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            with suppress(OSError, ValueError, IndexError):
                # The name stands in parentheses and may hold anything.
                found[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    return found


def family(root: int) -> list[int]:
    """A process and its descendants, the root first; empty if there is none."""
    parents = _parents()
    found = [root] if root in parents else []
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def role_of(pid: int) -> str:
    """What a descendant of a node's program is for, by its command line."""
    words: list[bytes] = []
    with suppress(OSError):
        words = (_PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
    for word in words:
        if word.startswith(b"gpuprover.workers"):
            return PROVER
        if word.startswith(b"gpuprover.verifier"):
            return VERIFIER
    return OTHER


def gpu_bytes() -> dict[int, int]:
    """Process -> bytes that it holds of all GPUs, as NVML sees it; empty where there is none."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # whatever its library raises where there is no driver
        return {}
    found: dict[int, int] = {}
    with suppress(Exception):
        for i in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(i)
            for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
                found[process.pid] = found.get(process.pid, 0) + (process.usedGpuMemory or 0)
    return found


class Sampler:
    """Samples the processes of nodes until it is left; a context manager.

    Args:
        interval: seconds between two looks.

    Attributes:
        samples: all of them, by time.
        events: (time, node, what happened), as :meth:`event` was told.
    """

    def __init__(self, interval: float = INTERVAL) -> None:
        self.samples: list[Sample] = []
        self.events: list[tuple[float, str, str]] = []
        self._interval = interval
        self._roots: dict[str, int] = {}
        self._roles: dict[int, str] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._begun = time.perf_counter()
        self._gpu = bool(gpu_bytes())
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def watch(self, node: str, pid: int) -> None:
        """From now on ``pid`` and its descendants are the processes of a node."""
        with self._lock:
            self._roots[node] = pid

    def event(self, node: str, what: str) -> None:
        self.events.append((time.perf_counter() - self._begun, node, what))

    def look(self) -> list[Sample]:
        """One look at all processes, which is kept too."""
        with self._lock:
            roots = dict(self._roots)
        now, gpu = time.perf_counter() - self._begun, gpu_bytes() if self._gpu else {}
        found = []
        for node, root in roots.items():
            for pid in family(root):
                usage = memory.usage_of(pid)
                if usage is None:
                    continue  # ended meanwhile
                role = MAIN if pid == root else self._role(pid)
                found.append(
                    Sample(
                        round(now, 3), node, role, pid, usage.rss, usage.pss, usage.private,
                        memory.peak_of(pid), gpu.get(pid, 0) if self._gpu else None,
                    )
                )  # fmt: skip
        with self._lock:
            self.samples += found
        return found

    def _role(self, pid: int) -> str:
        """A process that is about to end has no command line any more."""
        if self._roles.get(pid, OTHER) == OTHER:
            # Perhaps it has not become its program yet.
            self._roles[pid] = role_of(pid)
        return self._roles[pid]

    def _run(self) -> None:
        while not self._ended.wait(self._interval):
            self.look()


def write_csv(samples: Iterable[Sample], path: Path) -> None:
    """A line for each sample, under the names of :class:`Sample`; what is not known is empty."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(Sample._fields)
        writer.writerows(samples)


def by_role(samples: Iterable[Sample]) -> dict[str, Row]:
    """Role -> its processes, sums of their bytes (rss, pss, private, gpu), the largest peak of one."""
    found: dict[str, Row] = {}
    for sample in samples:
        row = found.setdefault(sample.role, {"processes": 0})
        row["processes"] += 1
        for name in ("rss", "pss", "private", "gpu"):
            value = getattr(sample, name)
            if value is not None:
                row[name] = row.get(name, 0) + value
        if sample.peak is not None:
            row["peak"] = max(row.get("peak", 0), sample.peak)
    return found


_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+\s*(.*)$")


def mapped(pid: int, path: Path) -> int | None:
    """Bytes of PSS that a process has of the mappings of one file; None where that may not be seen."""
    total, inside, name = 0, False, str(path.resolve())
    try:
        lines = (_PROC / str(pid) / "smaps").read_text(errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        if found := _MAPPING.match(line):
            inside = found[1] == name
        elif inside and line.startswith("Pss:"):
            total += int(line.split()[1]) * 1024
    return total


# Nodes ------------------------------------------------------------------------------


class Node:
    """A program with one engine (:mod:`gpuprover.bench.node`) and a channel to it; a context manager.

    Args:
        name: the node's name in messages.
        settings: arguments of ``create_prover``.
        log: where the program and what it starts write their messages.
        sampler: watches it from its first moment.
        environment: variables beside ours.

    Attributes:
        ready: seconds from its start until its engine was ready.
        proofs, verified, valid: counts of what it has done.

    Raises:
        Failed: it does not get ready.
    """

    def __init__(
        self,
        name: str,
        settings: Mapping[str, Any],
        log: Path,
        sampler: Sampler,
        *,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self._sampler, self._log = name, sampler, log
        self.proofs = self.verified = self.valid = 0
        ours, theirs = socket.socketpair()
        begun = time.perf_counter()
        with theirs, log.open("a") as errors:
            descriptor = theirs.fileno()
            self._process = start(
                [sys.executable, *PROGRAM, str(descriptor), json.dumps(settings)],
                errors,
                environment,
                pass_fds=(descriptor,),
            )
        self._channel = Channel(ours)
        sampler.watch(name, self._process.pid)
        try:
            if not self._receive()["ready"]:
                raise Failed(f"{name}: its engine did not get ready; see {log}")
        except BaseException:
            self._end()
            raise
        self.ready = time.perf_counter() - begun
        sampler.event(name, "ready")

    def __enter__(self) -> Node:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            with suppress(ProverError, subprocess.TimeoutExpired):
                self._channel.send({"do": "close"}, timeout=1.0)
                self._process.wait(CLOSE_SECONDS)
        self._end()

    def _end(self) -> None:
        self._channel.close()
        stop(self._process)

    def _receive(self) -> dict[str, Any]:
        try:
            answer, _ = self._channel.receive(ANSWER_SECONDS)
        except ProverError as error:
            said = self._log.read_text(errors="replace").strip()[-300:]
            raise Failed(
                f"{self.name}: {error.message}: {' '.join(said.split()) or 'said nothing'}"
            ) from None
        return answer

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to one request. Raises Failed for an answer that is an error."""
        self.send(**request)
        return self.answer()

    def send(self, **request: Any) -> None:
        """A request whose answer is fetched later, by :meth:`answer`."""
        self._channel.send(request, timeout=ANSWER_SECONDS)

    def answer(self) -> dict[str, Any]:
        """The answer to the oldest request without one. Raises Failed for one that is an error."""
        answer = self._receive()
        if "error" in answer:
            raise Failed(f"{self.name}: {answer['error']}")
        if "proof" in answer:
            self.proofs += len(answer["seconds"])
        if "valid" in answer:
            self.verified += len(answer["seconds"])
            self.valid += answer["valid"]
        return answer


# Policies ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What is measured of each policy.

    Attributes:
        keys: folder with the circuit's key; its witness is beside it.
        circuit: its name there; ``large`` is what rows call it.
        large: the circuit in words, such as ``chain 2^18``.
        workers, threads: the engine's settings.
        proofs: proofs in turn, after the first one and after ``workers`` at once.
        verifications: how often one proof is verified, one after the other.
        memory_limit: MiB for the engine; None for no limit.
    """

    keys: Path
    circuit: str
    large: str
    workers: int
    threads: int
    proofs: int
    verifications: int
    memory_limit: int | None = None
    policies: Collection[str] = POLICIES

    @property
    def zkey(self) -> Path:
        return self.keys / f"{self.circuit}.zkey"

    @property
    def witness(self) -> Path:
        return self.keys / f"{self.circuit}.wtns"

    def settings(self, policy: str) -> dict[str, Any]:
        return {
            "circuit_keys_path": str(self.keys),
            "memory_limit": self.memory_limit,
            "threads": self.threads,
            "preload_circuits": [self.circuit] if policy == "eager" else [],
            "policy": policy,
            "min_workers": self.workers if policy == "eager" else 0,
            "max_workers": self.workers,
            "verifier": "process",
        }


class Watched(NamedTuple):
    """Samples and events of one or more samplers, for a CSV file and a picture."""

    samples: list[Sample]
    events: list[tuple[float, str, str]]


def evict(paths: Iterable[Path]) -> None:
    """Asks the system to forget what it keeps of files in memory; what a process has mapped stays."""
    for path in paths:
        for file in path.rglob("*") if path.is_dir() else [path]:
            if file.is_file():
                with suppress(OSError), file.open("rb") as opened:
                    os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def _started_as(how: str, plan: Plan) -> Iterator[dict[str, str]]:
    """The environment of a start: ``warm``, ``cold`` (files not in memory) or ``first use`` (compiles)."""
    if how == "first use":
        folder = plan.keys / "first-use-cache"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield {"GPUPROVER_CACHE_DIR": str(folder)}
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return
    if how == "cold":
        import numba
        import numpy

        from gpuprover.folders import cache_root

        libraries = [Path(str(module.__file__)).parent for module in (numpy, numba)]
        evict([plan.zkey, plan.witness, cache_root(), *libraries])
    yield {}


def measure(
    plan: Plan, starts: Sequence[str], rows: Rows, job: Job, log: Path, statement: Mapping[str, Any]
) -> Watched:
    """A row for each policy and way to start it; samples of those that start warm.

    Args:
        starts: some of ``warm``, ``cold``, ``first use``; the others only start, prove and verify once.
        statement: a ``proof`` of the circuit and its ``public_signals``, for nodes that prove nothing.
    """
    watched = Watched([], [])
    todo = [(policy, how) for how in starts for policy in POLICIES if policy in plan.policies]
    with job.phase("policies"):
        for i, (policy, how) in enumerate(todo):
            job.check()
            with Sampler() as sampler:
                row: Row = {
                    "operation": "processes",
                    "implementation": OURS,
                    "mode": policy,
                    "start": how,
                    "circuit": plan.large,
                    "key_bytes": plan.zkey.stat().st_size,
                    "workers": plan.workers,
                    "threads": plan.threads,
                }
                try:
                    with (
                        _started_as(how, plan) as environment,
                        Node(policy, plan.settings(policy), log, sampler, environment=environment) as node,
                    ):  # fmt: skip
                        row |= _run(node, plan, policy, sampler, statement, whole=how == "warm")
                except Failed as failure:
                    row["error"] = str(failure)
                rows.add(row)
            if how == "warm":
                watched.samples.extend(sampler.samples)
                watched.events.extend(sampler.events)
            job.report((i + 1) / len(todo))
    return watched


def _run(
    node: Node, plan: Plan, policy: str, sampler: Sampler, statement: Mapping[str, Any], *, whole: bool
) -> Row:
    """What one node did and held."""
    row: Row = {"ready_s": significant(node.ready)}
    row["before"] = by_role(settled(sampler))
    shown = {"circuit": plan.circuit, **{name: statement[name] for name in ("proof", "public_signals")}}
    if policy != "off":
        asked = {"do": "prove", "circuit": plan.circuit, "witness": str(plan.witness)}
        sampler.event(node.name, "first proof")
        row["first_proof_s"] = significant(node.ask(**asked)["seconds"][0])
        if whole:
            sampler.event(node.name, "proofs")
            # As many at once as there are workers, so that each of them has the key.
            node.ask(**asked, count=plan.workers, at_once=True)
            row["next_proof_s"] = _median(node.ask(**asked, count=plan.proofs)["seconds"])
            row["proofs"] = node.proofs
            row["proven"] = by_role(settled(sampler))
    sampler.event(node.name, "first verification")
    answer = node.ask(do="verify", **shown)
    row["first_verification_s"] = significant(answer["seconds"][0])
    if whole:
        row["verified_once"] = by_role(settled(sampler))
        sampler.event(node.name, "verifications")
        answer = node.ask(do="verify", count=plan.verifications, **shown)
        row["verification_s"] = _median(answer["seconds"])
    row["verifications"] = node.verified
    if node.valid != node.verified:
        raise Failed(f"{node.name}: {node.verified - node.valid} of {node.verified} verifications said no")
    row["after"] = by_role(settled(sampler))
    return row


def _median(values: Sequence[float]) -> float:
    return significant(statistics.median(values))


def settled(sampler: Sampler) -> list[Sample]:
    """A look at all processes when nothing has happened for a moment."""
    time.sleep(SETTLE)
    return sampler.look()


def measure_verifier(
    plan: Plan, starts: Sequence[str], rows: Rows, job: Job, statement: Mapping[str, Any]
) -> None:
    """A row of a verifier process for each way to start it: until it is ready, verifications, after a kill.

    ``recovery_s`` is the time of a verification that is asked for right after SIGKILL. Memory is as the
    process itself tells it.
    """
    key = plan.keys / f"{plan.circuit}.vkey.json"
    with job.phase("verifier"):
        for i, how in enumerate(starts):
            job.check()
            row: Row = {
                "operation": "verifier",
                "implementation": OURS,
                "mode": "eager",
                "start": how,
                "circuit": plan.large,
                "threads": plan.threads,
            }
            try:
                with _started_as(how, plan) as environment, _environment(environment):
                    row |= _verifier(plan, key, statement)
            except (Failed, ProverError) as failure:
                row["error"] = str(failure)
            rows.add(row)
            job.report((i + 1) / len(starts))


def _verifier(plan: Plan, key: Path, statement: Mapping[str, Any]) -> Row:
    begun = time.perf_counter()
    with VerifierProcess("eager", {plan.circuit: key}, threads=plan.threads) as verifier:

        def verify() -> float:
            asked = time.perf_counter()
            if not verifier.verify(
                plan.circuit, statement["public_signals"], statement["proof"], timeout=ANSWER_SECONDS
            ):
                raise Failed("verifier: a proof does not hold")
            return time.perf_counter() - asked

        while verifier.status().state != "ready":
            if time.perf_counter() - begun > ANSWER_SECONDS:
                raise Failed("verifier: it did not get ready")
            time.sleep(0.005)
        row: Row = {"ready_s": significant(time.perf_counter() - begun)}
        row["first_verification_s"] = significant(verify())
        row["verification_s"] = _median([verify() for _ in range(plan.verifications)])
        row["verifications"] = plan.verifications + 1
        status = verifier.status()
        row["after"] = {VERIFIER: {"processes": 1, **status.memory}}
        if status.pid is not None:
            os.kill(status.pid, signal.SIGKILL)
            row["recovery_s"] = significant(verify())
    return row


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """What processes that start in the block find in their environment beside ours."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def measure_copies(plan: Plan, small: str, rows: Rows, job: Job, log: Path) -> None:
    """A row of how many copies of the large key all workers together hold.

    ``copies`` counts the PSS of its mapped pages. ``copies_in_all`` counts all that the workers' PSS grows by
    from proofs of a ``small`` circuit, after which all machine code is there, to proofs with the large one:
    mapped pages, tables, memory that malloc keeps.
    """
    row: Row = {
        "operation": "key copies",
        "implementation": OURS,
        "mode": "eager",
        "circuit": plan.large,
        "key_bytes": plan.zkey.stat().st_size,
        "workers": plan.workers,
        "threads": plan.threads,
    }
    settings = {**plan.settings("eager"), "preload_circuits": [small]}
    with job.phase("key copies"), Sampler() as sampler:
        try:
            with Node("copies", settings, log, sampler) as node:
                held = []
                for circuit in (small, plan.circuit):
                    witness = str(plan.keys / f"{circuit}.wtns")
                    # More than workers: none of them stays without one.
                    node.ask(
                        do="prove", circuit=circuit, witness=witness, count=3 * plan.workers, at_once=True
                    )
                    held.append(by_role(settled(sampler))[PROVER])
                shares = [mapped(pid, plan.zkey) for pid in family(node.pid) if role_of(pid) == PROVER]
                known = [share for share in shares if share is not None]
                row["proving"], size = len(shares), row["key_bytes"]
                if known:
                    row["copies"] = significant(sum(known) / size)
                if "pss" in held[0] and held[0]["processes"] == held[1]["processes"]:
                    row["copies_in_all"] = significant((held[1]["pss"] - held[0]["pss"]) / size)
                row["before"], row["after"] = ({PROVER: figures} for figures in held)
        except (Failed, KeyError) as failure:
            row["error"] = f"no workers: {failure}" if isinstance(failure, KeyError) else str(failure)
    rows.add(row)
