"""Records that the engine's modules hand to each other: circuits, jobs on their way, counters."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from gpuprover.engine.directory import CircuitFiles
from gpuprover.engine.proof_job import ProofJob
from gpuprover.engine.timers import Timer
from gpuprover.errors import OutOfMemory, ProverError
from gpuprover.executor import KeyInfo
from gpuprover.scheduler import Assignment, DeviceInfo, Ticket
from gpuprover.witness_source import WitnessSource

log = logging.getLogger("gpuprover.engine")

COUNTERS = (
    "submitted",
    "succeeded",
    "failed",
    "cancelled",
    "refused",
    "turned_away",
    "timeouts",
    "retries_alone",
    "retries_no_tables",
    "retries_chunked",
    "retries_on_cpu",
    "device_failures",
    "losses",
    "reloads",
    "load_failures",
    "joined",
    "waits_for_memory",
    "shrinks",
    "leak_alarms",
)
"""Steps that are counted, from 0 on. A proof that the CPU takes over counts in ``retries_on_cpu``, for any
reason; ``refused`` are those that found the queue full, ``turned_away`` those that found the prover shutting
down; ``joined`` those that share a proof that was being made for another job."""

CircuitLoaded = Callable[["KeyInfo | ProverError"], None]
"""The end of a circuit's load, called once; it must return soon."""


class Steps:
    """Steps of jobs and circuits: counted, and logged where they are not the usual way.

    Attributes:
        counters: name, of :data:`COUNTERS` -> how often.
    """

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter(dict.fromkeys(COUNTERS, 0))

    def tell(self, step: str, why: str, circuit: str, job: str | None = None) -> None:
        """Counts a step and logs it, in one line, with nothing of a witness.

        Args:
            step: one of :data:`COUNTERS`.
            why: the reason, in words.
            circuit, job: the circuit's name, and the id of the job that it happened to, if it was one.
        """
        self.counters[step] += 1
        event = {"step": step, "circuit": circuit, "job": job, "why": why}
        level = logging.INFO if step == "reloads" else logging.WARNING
        where = f"circuit {circuit}, job {job}" if job else f"circuit {circuit}"
        log.log(level, "%s: %s: %s", step, where, why, extra={"event": event})


@dataclass(eq=False)
class Circuit:
    """A circuit that somebody has asked for; :class:`gpuprover.engine.loading.Loading` makes and changes it.

    Attributes:
        files: the circuit's files, as whoever asked last found them.
        info: what is known of the key; None where it is not loaded.
        loading: its load goes on.
        pinned: its key stays until it is unloaded.
        preloaded: it is one of those that are loaded at the start.
        generation: loads of the key that have ended well.
        kinds: kinds of devices that could be used when it was loaded.
        losses: workers lost during this load, so far.
        problem: why its last load failed; None if it did not.
        waiting: job that waits for the load -> the callback for its end.
    """

    name: str
    files: CircuitFiles
    info: KeyInfo | None = None
    loading: bool = False
    pinned: bool = False
    preloaded: bool = False
    generation: int = 0
    kinds: frozenset[str] = frozenset()
    losses: int = 0
    problem: ProverError | None = None
    waiting: dict[object, CircuitLoaded] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The scheduler's name for it: a key that was loaded again is another circuit's there."""
        return f"{self.name}#{self.generation}"


@dataclass(eq=False)
class Work:
    """An open job, and its run, if there is one now.

    Attributes:
        witness: what goes to the executor; None when the job has ended. Secret.
        submitted: when it came; by the dispatcher's clock.
        deadline: when it has to be done, by that clock.
        content: a keyed digest of the witness, where proofs are kept.
        tenant: whose seat in the queue it has.
        queued: it has that seat still.
        info: what its ticket is made with.
        ticket: the scheduler's, while that has it.
        limit: the timer of the deadline.
        run: the scheduler's, from its start until its resources are given back.
        request_id: the executor's number for the run.
        launched: the run was handed to the executor; before, it is held back.
        problem: why the run came to no proof, while it keeps its resources for a moment before the next one.
        replans: runs that ended because the key's file had changed.
        shrunk: memory was given up for it once.
        died: which GPU's process died under it, in words, if it has not run elsewhere since.
        warnings: sentences for its result.
    """

    job: ProofJob
    circuit: Circuit
    witness: WitnessSource | None = field(repr=False)
    submitted: float
    deadline: float
    content: bytes | None = None
    tenant: str = field(default="", repr=False)
    queued: bool = True
    info: KeyInfo | None = None
    ticket: Ticket | None = None
    limit: Timer | None = None
    run: Assignment | None = None
    request_id: int = 0
    launched: bool = False
    problem: OutOfMemory | None = None
    replans: int = 0
    shrunk: bool = False
    died: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Snapshot:
    """The dispatcher at one moment, as a status needs it.

    Attributes:
        accepting: it takes jobs.
        started: its executor was started.
        preloaded: all circuits to preload are loaded.
        running, queued: jobs that run, or are tried again; and that wait.
        loaded: names of circuits, sorted.
        problems: sentences about circuits whose key could not be loaded, and was not since; without paths.
        failures: errors of those to preload among them.
        devices: each with the proofs that run there.
        held: bytes that count against the limit.
        counters: step -> how often.
    """

    accepting: bool
    started: bool
    preloaded: bool
    running: int
    queued: int
    loaded: tuple[str, ...]
    problems: tuple[str, ...]
    failures: tuple[ProverError, ...]
    devices: tuple[tuple[DeviceInfo, int], ...]
    held: int
    counters: dict[str, int]
