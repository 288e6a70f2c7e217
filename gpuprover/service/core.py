"""What the routes share: a prover behind calls that never block the event loop, proofs by id, state."""

from __future__ import annotations

import asyncio
import contextvars
import hmac
import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from gpuprover.caching import keyed_digest
from gpuprover.config import ServiceSettings
from gpuprover.engine import JobState, ProofJob, Prover, ProverStatus
from gpuprover.errors import Aborted, CircuitNotFound, DeviceError, ProverError, ShuttingDown
from gpuprover.service.access import Caller, Tokens, is_loopback
from gpuprover.service.bodies import MAX_JSON, Budget, Pace, Reservation
from gpuprover.service.metrics import Metrics
from gpuprover.service.problems import Problem, fault_of, problem_of, status_of
from gpuprover.service.results import Attempt, Name, Record, Results
from gpuprover.service.shares import TenantThreads, tenant_of
from gpuprover.version import VERSION

log = logging.getLogger("gpuprover.service")
T = TypeVar("T")
Statement = tuple[list[str | int], dict[str, Any]]
"""Public signals and proof."""

KIB, MIB = 1 << 10, 1 << 20
STATUS_SECONDS = 0.2
"""A status is as old as that at most."""
NAMES_SECONDS = 1.0
HOUSEKEEPING_SECONDS = 1.0
UNREADY_SECONDS = 5.0
"""A worker or a verifier that starts again takes less."""
LONGEST_RETRY = 60
CANCEL_SECONDS = 30.0
"""Until the prover says that a cancelled proof has ended, which it does at once."""
THREADS = 4
"""For calls that take moments."""
READING, VERIFYING, LOADING = (2, 1), (8, 4), (4, 2)
"""Threads for calls that may take longer, and how many of them one tenant has at once. Those that read JSON
hold the interpreter most of the time: more of them would only make the event loop wait for longer."""


MakeMetrics = Callable[[Prover, list[str]], Metrics]
"""From a prover and the routes of its service."""


class Service:
    """One prover behind HTTP. Everything but the prover belongs to one event loop.

    Attributes:
        metrics: what is told of requests and verifications; the application sets it.
    """

    metrics: Metrics

    def __init__(self, prover: Prover, settings: ServiceSettings) -> None:
        self.prover, self.settings = prover, settings
        self.tokens = Tokens(settings.tokens_file)
        self.local = is_loopback(settings.host)
        self.results = Results(settings.result_ttl, settings.result_limit)
        self.budget = Budget(settings.body_memory * MIB, settings.tenant_share)
        self.body_limit = settings.body_limit * MIB
        self.json_limit = min(self.body_limit, MAX_JSON)
        self.pace = Pace(settings.pause_limit, settings.least_rate * KIB)
        self.draining = False
        self._unready_since: float | None = -math.inf
        self._started = time.monotonic()
        self._seconds = 1.0
        """Of a proof, about."""
        prover.share_queue(settings.tenant_share)
        self._brief = ThreadPoolExecutor(THREADS, thread_name_prefix="gpuprover-http")
        self._reading = TenantThreads(*READING, "gpuprover-http-read")
        self._verifying = TenantThreads(*VERIFYING, "gpuprover-http-verify")
        self._loading = TenantThreads(*LOADING, "gpuprover-http-load")
        self._submissions: set[asyncio.Task[Record]] = set()
        """Proofs that are on their way to the queue."""
        self._rendering: asyncio.Task[bytes] | None = None
        self._status: asyncio.Task[ProverStatus] | None = None
        self._status_at = self._names_at = -math.inf
        self._names: frozenset[str] = frozenset()
        self._listing: asyncio.Task[None] | None = None
        self._housekeeping: asyncio.Task[None] | None = None

    # Life ------------------------------------------------------------------------------

    async def start(self) -> None:
        self._housekeeping = asyncio.create_task(self._keep_house())

    async def stop(self) -> None:
        if self._housekeeping is not None:
            self._housekeeping.cancel()
            await asyncio.wait([self._housekeeping])
        self._brief.shutdown(wait=False, cancel_futures=True)
        for pool in (self._reading, self._verifying, self._loading):
            pool.shutdown()

    async def _keep_house(self) -> None:
        while True:
            self.results.expire()
            try:
                await self.ready()
            except ProverError as error:
                log.warning("no status: %s", error.message)
            await asyncio.sleep(HOUSEKEEPING_SECONDS)

    # Calls that may block --------------------------------------------------------------

    async def briefly(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """In a thread: files, the prover's locks. What a client's data make slow is for :meth:`reading`."""
        context = contextvars.copy_context()
        call = partial(context.run, function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._brief, call)

    async def reading(self, tenant: str, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """In a thread: JSON, hashes, large answers."""
        return await self._reading.call(tenant, function, *args, **kwargs)

    @property
    def busy_reading(self) -> bool:
        return self._reading.running > 0

    async def verify(
        self, tenant: str, circuit: str, statements: list[Statement], *, single: bool = False
    ) -> list[bool]:
        """For each statement whether it holds; a damaged one is False, or, if it is ``single``, an error."""

        def verify() -> list[bool]:
            if single:
                return [self.prover.verify(circuit, *statements[0])]
            return self.prover.verify_batch(circuit, statements)

        begun = time.perf_counter()
        try:
            found = await self._verifying.call(tenant, verify)
        except ProverError:
            self.metrics.not_verified(len(statements))
            raise
        self.metrics.verified(sum(found), len(found) - sum(found), time.perf_counter() - begun)
        return found

    async def loading(self, tenant: str, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        return await self._loading.call(tenant, function, *args, **kwargs)

    # State -----------------------------------------------------------------------------

    async def status(self) -> ProverStatus:
        """The prover's, asked for once however many want it."""
        now = time.monotonic()
        if self._status is None or (self._status.done() and now - self._status_at > STATUS_SECONDS):
            self._status_at = now
            self._status = asyncio.create_task(self.briefly(self.prover.get_status))
        return await asyncio.shield(self._status)

    async def rendered(self) -> bytes:
        """Metrics, made once for all that ask meanwhile."""
        if self._rendering is None or self._rendering.done():
            self._rendering = asyncio.create_task(self.briefly(self.metrics.render))
        return await asyncio.shield(self._rendering)

    async def ready(self) -> bool:
        """False before preload is done, while draining, and where nothing can be proved or verified for
        longer than :data:`UNREADY_SECONDS`. Workers that start again change nothing: the queue takes proofs
        meanwhile."""
        if self.draining:
            return False
        if (await self.status()).ready:
            self._unready_since = None
            return True
        if self._unready_since is None:
            self._unready_since = time.monotonic()
        return time.monotonic() - self._unready_since < UNREADY_SECONDS

    async def state(self) -> dict[str, Any]:
        """The document of ``/v1/status``."""
        status = (await self.status()).as_dict()
        try:
            there = len(await self.circuits())
            problem = "" if there else "there are no circuits in the folder of keys"
        except ProverError as error:
            there, problem = 0, error.told
        problems = [*([problem] if problem else []), *status["problems"]]
        return {
            **status,
            "problems": problems,
            "circuits": there,
            "ready": await self.ready(),
            "draining": self.draining,
            "version": VERSION,
            "uptime": time.monotonic() - self._started,
            "queue_limit": self.prover.settings.queue_limit,
            "results": len(self.results),
            "body_bytes": self.budget.used,
            "latest_proofs": self.results.latest,
        }

    async def circuits(self) -> frozenset[str]:
        """Names, looked up a moment ago: once for all who ask meanwhile."""
        if self._listing is None or self._listing.done():
            if time.monotonic() - self._names_at <= NAMES_SECONDS:
                return self._names
            self._listing = asyncio.create_task(self._list())
        await asyncio.shield(self._listing)
        return self._names

    async def _list(self) -> None:
        try:
            self._names = frozenset(await self.briefly(self.prover.circuits))
        except DeviceError:
            if not self._names:
                raise
            # What was there is there, as far as anybody can see without a descriptor.
        self._names_at = time.monotonic()

    async def require_circuit(self, circuit: str) -> None:
        """Raises CircuitNotFound.

        A name that is not known is looked for by itself. Were the folder read for it, everybody would wait
        while somebody asks for names that are none.
        """
        fresh = time.monotonic() - self._names_at <= NAMES_SECONDS
        if (fresh and circuit in self._names) or await self.briefly(self.prover.has_circuit, circuit):
            return
        # Read once a second at most; a folder that cannot be read is another error.
        if circuit not in await self.circuits():
            raise CircuitNotFound(f"circuit {circuit[:80]!r}: there is none of that name")

    def caller(self, address: str, token: str | None) -> Caller:
        """Who asks, from an address, with a token that was accepted or none."""
        if token is None:
            return Caller("", tenant_of(address), self.settings.priority_limit)
        owner, limit = keyed_digest(token).hex(), self.tokens.priority(token)
        return Caller(owner, owner, self.settings.priority_limit if limit is None else limit)

    def problem(self, error: ProverError) -> Problem:
        """What the client is told of an error."""
        if isinstance(error, Aborted) and self.draining:
            error = ShuttingDown("the service is shutting down; the proof was not made")
        headers = {"Retry-After": str(self.retry_after())} if error.kind == "QueueFull" else None
        return problem_of(error, headers=headers)

    def tell(self, error: ProverError) -> None:
        """Logs what a client is not told in full: a fault of the service's own, with the file it is about."""
        if status_of(error) >= 500 and not isinstance(error, ShuttingDown):
            event = {"kind": error.kind, "role": error.role or None}
            log.warning("%s: %s", error.kind, error.message, extra={"event": event})

    def _tell_end(self, job: ProofJob) -> None:
        """One line for each proof that has ended; of its witness it says nothing."""
        error, finished = job.error, job.finished or time.time()
        began = job.started or finished
        failed = job.state is JobState.FAILED
        outcome = job.state.value
        if failed and error is not None and fault_of(error) == "client":
            failed, outcome = False, "rejected"
        event = {
            "job": job.id,
            "circuit": job.circuit,
            "protocol": job.protocol,
            "outcome": outcome,
            "kind": error.kind if error is not None else None,
            "role": error.role or None if error is not None else None,
            # What is wrong with what a client has sent, the client is told.
            "why": error.message if error is not None and failed else None,
            "device": job.device,
            "attempts": job.attempts,
            "waited": round(max(0.0, began - job.submitted), 6),
            "proven": round(max(0.0, finished - began), 6),
        }
        level = logging.WARNING if failed else logging.INFO
        log.log(level, "proof %s of circuit %s %s", job.id, job.circuit, outcome, extra={"event": event})

    def retry_after(self) -> int:
        """Seconds until a place in the queue may be free."""
        return max(1, min(LONGEST_RETRY, math.ceil(self._seconds)))

    def refuse_if_draining(self) -> None:
        if self.draining:
            raise Problem(503, "ShuttingDown", "the service is shutting down and takes no more proofs")

    # Proofs ----------------------------------------------------------------------------

    async def submit(
        self,
        circuit: str,
        witness: bytes | dict[str, bytes],
        reservation: Reservation,
        *,
        priority: int = 0,
        timeout: float | None = None,
        name: Name | None = None,
        tenant: str = "",
    ) -> Record:
        """Hands a witness, and the reservation, to the prover; a client that goes away changes nothing.

        Raises:
            ProverError: it is not taken; QueueFull, where as many proofs wait as may, or of this tenant.
            Problem: 503, the service is shutting down.
        """
        self.refuse_if_draining()

        async def submit() -> Record:
            job = await self.briefly(
                self.prover.submit,
                circuit,
                witness,
                timeout=timeout,
                priority=priority,
                queue="refuse",
                # One tenant that may have all is no tenant: a proxy, for all of its clients.
                tenant=tenant if self.settings.tenant_share < 1 else "",
            )
            reservation.hand_on()
            job.add_done_callback(self._learn)
            event = {"job": job.id, "circuit": circuit}
            log.info("proof %s of circuit %s was submitted", job.id, circuit, extra={"event": event})
            # In this context, so that the line has the request's id.
            context = contextvars.copy_context()
            job.add_done_callback(lambda ended: context.run(self._tell_end, ended))
            return self.results.add(job, reservation, name, tenant)

        submission = asyncio.create_task(submit())
        self._submissions.add(submission)
        submission.add_done_callback(self._submissions.discard)
        return await asyncio.shield(submission)

    async def submit_once(
        self, name: Name, fingerprint: bytes, submit: Callable[[], Any]
    ) -> tuple[Record, bool]:
        """``await submit()``, or what an earlier request of the same name has made -> whether it was that.

        Raises:
            Problem: 409, the earlier request was another one.
        """
        known = self.results.attempts.get(name)
        if known is not None:
            if not hmac.compare_digest(known.fingerprint, fingerprint):
                raise Problem(
                    409, "IdempotencyConflict", "another request with this Idempotency-Key came before"
                )
            return await asyncio.shield(known.made), True
        made: asyncio.Future[Record] = asyncio.get_running_loop().create_future()
        self.results.attempts[name] = Attempt(fingerprint, made)
        try:
            record: Record = await submit()
        except BaseException as error:
            # Nothing was made: whoever comes next under this name tries anew.
            del self.results.attempts[name]
            refused = isinstance(error, ProverError | Problem)
            made.set_exception(error if refused else Problem(503, "Aborted", "the first request broke off"))
            made.exception()
            raise
        made.set_result(record)
        return record, False

    def _learn(self, job: ProofJob) -> None:
        if job.state is JobState.SUCCEEDED and job.started is not None and job.finished is not None:
            self._seconds += 0.2 * (job.finished - job.started - self._seconds)

    async def wait(self, record: Record, seconds: float, request: Request) -> bool:
        """Whether the proof has ended within so many seconds.

        Raises:
            ClientDisconnect: the client does not wait any more.
        """
        if record.outcome is not None or seconds <= 0:
            return record.outcome is not None
        ended, gone = asyncio.create_task(record.ended.wait()), asyncio.create_task(_gone(request))
        try:
            await asyncio.wait({ended, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done() and gone.done():
                raise ClientDisconnect()
            return record.outcome is not None
        finally:
            for task in (ended, gone):
                task.cancel()

    async def cancel(self, record: Record) -> bool:
        """Whether it was still open."""
        if not await self.briefly(record.job.cancel):
            return False
        async with asyncio.timeout(CANCEL_SECONDS):
            await record.ended.wait()
        return True


async def _gone(request: Request) -> None:
    """Returns when the client closes the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
