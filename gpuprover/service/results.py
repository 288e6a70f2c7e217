"""Proofs that were asked for over HTTP: open ones, and for some time those that have ended."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from gpuprover.engine import JobState, ProofJob
from gpuprover.errors import ProverError
from gpuprover.proving import ProofResult
from gpuprover.service.bodies import Reservation

MAX_BYTES = 128 << 20
"""Bytes of all results that are kept."""
RECORD_BYTES = 13_000
"""Bytes of a record with its job, its outcome and a long name: 4.6 to 9.3 KB with a proof of Groth16, and
3.5 KB more with one of PLONK or FFLONK; measured by hand."""
SIGNAL_BYTES = 230
"""Bytes of a decimal string in a list, and in the answer's text, about."""
LATEST = 20
"""Ended proofs that a status shows."""

Name = tuple[str, str]
"""The name of an attempt: whose it is, and its Idempotency-Key."""


@dataclass(eq=False)
class Record:
    """A proof.

    Attributes:
        name: the name under which the same request finds it again; None if it has none.
        outcome: None while it is open.
        ended: set with the outcome.
        tenant: who asked for it.
        fetched: whether anybody has got the outcome.
        written: the answer, where it is a large one: made once, however many want it.
        expires: when it is forgotten, by the store's clock; set once it has ended.
    """

    job: ProofJob
    name: Name | None = None
    tenant: str = ""
    outcome: ProofResult | ProverError | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    fetched: bool = False
    written: asyncio.Task[bytes] | None = None
    expires: float = 0.0
    size: int = 0

    @property
    def id(self) -> str:
        return self.job.id

    @property
    def state(self) -> JobState:
        if self.outcome is None:
            # What the job knows already, its store may learn in a moment: until then it runs.
            return JobState.QUEUED if self.job.state is JobState.QUEUED else JobState.RUNNING
        return self.job.state

    @property
    def seconds(self) -> float | None:
        """On the device, retries included."""
        job = self.job
        if job.started is None:
            return None
        return (job.finished or time.time()) - job.started


@dataclass(eq=False)
class Attempt:
    """A request with an Idempotency-Key: what it asked for, and what came of it."""

    fingerprint: bytes
    made: asyncio.Future[Record]


class Results:
    """The records by id, of one event loop. Ended ones expire by age, number and bytes.

    Args:
        lifetime: seconds that an ended one stays.
        limit: ended ones at most.
    """

    def __init__(
        self,
        lifetime: float,
        limit: int,
        *,
        max_bytes: int = MAX_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lifetime, self._limit, self._max_bytes, self._clock = lifetime, limit, max_bytes, clock
        self._open: dict[str, Record] = {}
        self._ended: OrderedDict[str, Record] = OrderedDict()
        self._bytes = 0
        self._latest: deque[dict[str, Any]] = deque(maxlen=LATEST)
        self.attempts: dict[Name, Attempt] = {}

    def add(
        self, job: ProofJob, reservation: Reservation, name: Name | None = None, tenant: str = ""
    ) -> Record:
        """Watches a job; the reservation is released when it ends."""
        record = Record(job, name, tenant)
        self._open[record.id] = record
        loop = asyncio.get_running_loop()

        def ended(_: ProofJob) -> None:
            # From a thread of the prover.
            with suppress(RuntimeError):  # the loop is closed: nobody asks any more
                loop.call_soon_threadsafe(self._end, record, reservation)

        job.add_done_callback(ended)
        return record

    def _end(self, record: Record, reservation: Reservation) -> None:
        reservation.release()
        try:
            result = record.job.wait(0)
            record.outcome = result
            record.size = RECORD_BYTES + SIGNAL_BYTES * len(result.public_signals)
        except ProverError as error:
            record.outcome = error.with_traceback(None)
            record.size = RECORD_BYTES
        record.expires = self._clock() + self._lifetime
        del self._open[record.id]
        self._ended[record.id] = record
        self._bytes += record.size
        job = record.job
        self._latest.appendleft(
            {
                "id": record.id,
                "circuit_id": job.circuit,
                "protocol": job.protocol,
                "state": job.state.value,
                "device": job.device,
                "seconds": record.seconds,
                "finished": job.finished,
            }
        )
        record.ended.set()
        self.expire()

    def get(self, id: str) -> Record | None:
        self.expire()
        return self._open.get(id) or self._ended.get(id)

    @property
    def open(self) -> list[Record]:
        return list(self._open.values())

    @property
    def latest(self) -> list[dict[str, Any]]:
        """Those that ended last, the last one first: in a few words, which outlive the records."""
        return list(self._latest)

    def __len__(self) -> int:
        """Ended ones that are kept."""
        return len(self._ended)

    def expire(self) -> None:
        now = self._clock()
        while self._ended:
            oldest = next(iter(self._ended.values()))
            full = len(self._ended) > self._limit or self._bytes > self._max_bytes
            if oldest.expires > now and not (full and len(self._ended) > 1):
                return
            del self._ended[oldest.id]
            self._bytes -= oldest.size
            if oldest.name is not None:
                self.attempts.pop(oldest.name, None)
