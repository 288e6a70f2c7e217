"""How a prover is, for whoever asks."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from gpuprover.caching import CacheStatistics
from gpuprover.executor import WorkerStatus
from gpuprover.verifier.client import VerifierStatus


class CircuitKind(NamedTuple):
    """What a circuit's proofs are.

    Attributes:
        protocol: the proof system's name.
        curve: the curve's name in documents.
    """

    protocol: str
    curve: str


@dataclass(frozen=True)
class ProverStatus:
    """How a prover is, at one moment. Sizes are bytes.

    Attributes:
        ready: it takes proofs, circuits to preload are loaded, nothing keeps it from proving, and the
            verifier can be had where it is needed.
        policy: ``eager``, ``lazy`` or ``off``.
        active_jobs: proofs that run, or are tried again.
        queued_jobs: proofs that wait.
        memory_usage: private memory of this process, of the workers and of the verifier.
        memory_limit: what they stay within.
        loaded_circuits: names, sorted.
        problems: sentences: circuits whose key could not be loaded, workers or a verifier that do not run,
            and why no proof can be made, if none can.
        warnings: sentences: circuits whose keys proofs can be forged for, by name.
        devices: what proofs may be placed on, each with ``running`` proofs.
        pools: GPU memory that each worker on a GPU has taken.
        workers: where proofs run.
        caches: ``keys`` (of all workers), ``proofs`` and ``verifications``.
        counters: by step, from 0 on; see the README.
        verifier: its state.
    """

    ready: bool
    policy: str
    active_jobs: int
    queued_jobs: int
    memory_usage: int
    memory_limit: int
    loaded_circuits: tuple[str, ...]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    devices: tuple[dict[str, Any], ...]
    pools: dict[str, int]
    workers: tuple[WorkerStatus, ...]
    caches: dict[str, CacheStatistics]
    counters: dict[str, int]
    verifier: VerifierStatus

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them."""
        return asdict(self)
