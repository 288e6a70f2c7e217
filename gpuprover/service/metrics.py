"""What ``GET /metrics`` shows: Prometheus's text format, over one registry of this process.

Two sources. *Events*: the prover reports every job that has ended, the service of requests and of
verifications. *Status*: gauges, and what the engine counts itself, are read when somebody scrapes; a scrape
waits ``STATUS_SECONDS`` for that at most, and shows the last known state then. No worker is asked: what is
counted here survives them all.

:data:`METRICS` is the one table of names; registry and docs/metrics.md (:func:`markdown`) are made from it.
Series whose labels are known in advance exist from the start, at 0. Labels do not grow with what clients
send: a circuit is one of the folder's, of which ``MAX_CIRCUITS`` have a label of their own; others are
``(other)``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from gpuprover.caching import CacheStatistics
from gpuprover.devices import is_gpu
from gpuprover.engine import JobState, ProofJob, ProverStatus
from gpuprover.engine.records import COUNTERS
from gpuprover.engine.status import CircuitKind
from gpuprover.errors import ProverError
from gpuprover.executor import WorkerStatus
from gpuprover.machine import CgroupThrottling, cgroup_throttling
from gpuprover.memory import MIB
from gpuprover.service.problems import STATUS, fault_of
from gpuprover.systems.system import names, system_named
from gpuprover.verifier.client import VerifierStatus

if TYPE_CHECKING:
    from gpuprover.engine import Prover

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STATUS_SECONDS = 0.1
FIRST_SECONDS = 2.0
"""Seconds for the first status, before anybody scrapes."""
CIRCUITS_SECONDS = 10.0
"""Between two looks into the folder of circuits."""
MAX_CIRCUITS = 500
OTHER = "(other)"
"""No circuit can have this name."""

PROOF_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30, 60)
PHASE_BUCKETS = (0.001, 0.0025, 0.01, 0.025, 0.1, 0.25, 1, 2.5, 10, 30)
VERIFICATION_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10)
REQUEST_BUCKETS = (0.001, 0.005, 0.025, 0.1, 0.5, 1, 5, 15, 60)

PHASES = tuple(
    dict.fromkeys(
        (
            *("load key", "check key header", "check key", "compile", "load kernels", "load witness"),
            "calculate witness",
            *(phase for name in names() for phase in system_named(name).phases),
        )
    )
)
"""Phases of proofs of every system that have a label; others are ``(other)``."""
STATUSES = ("1xx", "2xx", "3xx", "4xx", "5xx")
FAULTS = ("client", "service", "time")
KINDS = tuple(sorted(kind for kind in STATUS if kind not in ("Cancelled", "Aborted")))
"""Kinds of errors that proofs end with; others are ``(other)``."""
RUNNING_STATES = ("idle", "busy")
"""States of workers that are ready or prove."""

log = logging.getLogger("gpuprover.service")

Values = Iterable[tuple[Sequence[str], float]]


@dataclass(frozen=True)
class Snapshot:
    """What gauges are read from.

    Attributes:
        time: when it was taken, by :func:`time.monotonic`.
        replaced: workers, by reason, since there are these metrics.
        throttling: what the container's CPU quota has cost; zeros where there is none.
        queue_limit: the prover's setting.
        circuits: how many there are in the folder.
        kinds: proof system and curve, as last known, of the circuits whose key was known once, by name; of
            those that have a label.
        devices: of the status, and those that were there before and are gone.
    """

    time: float
    status: ProverStatus
    replaced: Mapping[str, int]
    throttling: CgroupThrottling
    queue_limit: int
    circuits: int
    kinds: Mapping[str, CircuitKind]
    devices: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class MetricRow:
    """A row of the table.

    Attributes:
        kind: ``counter``, ``gauge`` or ``histogram``.
        buckets: upper bounds in seconds.
        values: (labels, value) of every series, from a snapshot; None for what events feed.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()
    values: Callable[[Snapshot], Values] | None = None


def _one(value: Callable[[Snapshot], float]) -> Callable[[Snapshot], Values]:
    return lambda found: [((), value(found))]


def _counted(name: str) -> Callable[[Snapshot], Values]:
    return _one(lambda found: found.status.counters[name])


def _by_device(value: Callable[[dict[str, Any]], float]) -> Callable[[Snapshot], Values]:
    return lambda found: [((device["name"],), value(device)) for device in found.devices]


def _by_cache(name: str) -> Callable[[Snapshot], Values]:
    return lambda found: [((cache,), getattr(kept, name)) for cache, kept in found.status.caches.items()]


def _retries(found: Snapshot) -> Values:
    for step in ("alone", "no_tables", "chunked", "on_cpu"):
        yield (step,), found.status.counters[f"retries_{step}"]
    yield ("lost",), found.status.counters["losses"]


def _pool_limits(found: Snapshot) -> Values:
    for device in found.devices:
        if is_gpu(device["name"]):
            yield (device["name"],), device["memory"] or 0


def _pools(found: Snapshot) -> Values:
    """Of every GPU; of several workers on one, the sum."""
    used = {device["name"]: 0 for device in found.devices if is_gpu(device["name"])}
    for worker in found.status.workers:
        if worker.device in used:
            used[worker.device] += found.status.pools.get(worker.name, 0)
    return [((device,), amount) for device, amount in used.items()]


METRICS: tuple[MetricRow, ...] = (
    MetricRow(
        "proof_generation_duration_seconds",
        "histogram",
        ("circuit_id",),
        "Time from a proof's start on a device to its result, self-verification included",
        PROOF_BUCKETS,
    ),
    MetricRow(
        "proofs_generated_total",
        "counter",
        ("circuit_id", "status"),
        "Proofs that ended, by `status` (success, error); cancelled ones are not counted",
    ),
    MetricRow(
        "prover_failed_proofs_total",
        "counter",
        ("circuit_id", "fault"),
        "Those with status error, by `fault`: client (what it has sent was refused), service, time (what a "
        "client or a setting allowed was over)",
    ),
    MetricRow(
        "prover_proof_errors_total",
        "counter",
        ("kind",),
        "The same by the `kind` of the error, as answers have it",
    ),
    MetricRow(
        "prover_phase_duration_seconds",
        "histogram",
        ("phase",),
        "Time of each phase of a proof, by the names in the field `timings` of an answer",
        PHASE_BUCKETS,
    ),
    MetricRow(
        "prover_ready",
        "gauge",
        (),
        "1 while `/readyz` answers 200",
        values=_one(lambda found: found.status.ready),
    ),
    MetricRow(
        "prover_circuits",
        "gauge",
        (),
        "Circuits in the folder of keys; 0 as well while it cannot be read",
        values=_one(lambda found: found.circuits),
    ),
    MetricRow(
        "prover_circuit_info",
        "gauge",
        ("circuit_id", "protocol", "curve"),
        "1 for each circuit whose key is known; proof system and curve as in `/v1/circuits/{id}`",
        values=lambda found: [((name, *kind), 1) for name, kind in found.kinds.items()],
    ),
    MetricRow(
        "prover_queued_tasks",
        "gauge",
        (),
        "Proofs that wait",
        values=_one(lambda found: found.status.queued_jobs),
    ),
    MetricRow(
        "prover_running_tasks",
        "gauge",
        ("device",),
        "Proofs that run",
        values=_by_device(lambda device: device["running"]),
    ),
    MetricRow(
        "prover_queue_limit",
        "gauge",
        (),
        "Proofs that may wait (`PROVER_QUEUE_LIMIT`)",
        values=_one(lambda found: found.queue_limit),
    ),
    MetricRow(
        "prover_refused_tasks_total",
        "counter",
        ("reason",),
        "Proofs that were not accepted, by `reason` (queue_full, draining)",
        values=lambda found: [
            (("queue_full",), found.status.counters["refused"]),
            (("draining",), found.status.counters["turned_away"]),
        ],
    ),
    MetricRow(
        "prover_timeouts_total",
        "counter",
        (),
        "Proofs whose time was over while they waited or ran",
        values=_counted("timeouts"),
    ),
    MetricRow(
        "prover_active_workers",
        "gauge",
        (),
        "Worker processes that are ready or prove",
        values=_one(lambda found: sum(worker.state in RUNNING_STATES for worker in found.status.workers)),
    ),
    MetricRow(
        "prover_worker_restarts_total",
        "counter",
        ("reason",),
        "Workers that were replaced, by `reason` (died, silent, recycled)",
        values=lambda found: [((reason,), count) for reason, count in found.replaced.items()],
    ),
    MetricRow(
        "prover_memory_usage_bytes",
        "gauge",
        (),
        "Memory of the service's processes that counts against the limit: mapped keys aside, "
        "shared pages once",
        values=_one(lambda found: found.status.memory_usage),
    ),
    MetricRow(
        "prover_memory_limit_bytes",
        "gauge",
        (),
        "What they stay within (`PROVER_MEMORY_LIMIT`)",
        values=_one(lambda found: found.status.memory_limit),
    ),
    MetricRow(
        "prover_memory_leak_alarms_total",
        "counter",
        (),
        "Times that memory grew without proofs that explain it",
        values=_counted("leak_alarms"),
    ),
    MetricRow(
        "prover_memory_waits_total",
        "counter",
        (),
        "Proofs that were held back while memory was above the watermark",
        values=_counted("waits_for_memory"),
    ),
    MetricRow(
        "prover_device_usable",
        "gauge",
        ("device",),
        "1 while the device takes proofs, 0 once it is barred or lost",
        values=_by_device(lambda device: not device["problem"]),
    ),
    MetricRow(
        "prover_gpu_pool_used_bytes",
        "gauge",
        ("device",),
        "Bytes taken from a GPU's pool: keys, tables, the running proofs' arenas",
        values=_pools,
    ),
    MetricRow(
        "prover_gpu_pool_limit_bytes",
        "gauge",
        ("device",),
        "Bytes that the pool may take (`PROVER_GPU_MEMORY_LIMIT`)",
        values=_pool_limits,
    ),
    MetricRow(
        "prover_cache_hits_total",
        "counter",
        ("cache",),
        "Look-ups that found an entry, by `cache` (keys: of all workers, proofs, verifications)",
        values=_by_cache("hits"),
    ),
    MetricRow(
        "prover_cache_misses_total",
        "counter",
        ("cache",),
        "Look-ups that found none",
        values=_by_cache("misses"),
    ),
    MetricRow(
        "prover_cache_bytes",
        "gauge",
        ("cache",),
        "Bytes of the entries",
        values=_by_cache("bytes"),
    ),
    MetricRow(
        "prover_retries_total",
        "counter",
        ("step",),
        "Proofs tried again, by `step` (alone, no_tables, chunked: after running out of memory; on_cpu: "
        "after that, or because a GPU failed; lost: with their worker)",
        values=_retries,
    ),
    MetricRow(
        "prover_fallbacks_total",
        "counter",
        ("device",),
        "Proofs that the CPU took over from `device`, whatever the reason",
    ),
    MetricRow(
        "prover_device_failures_total",
        "counter",
        (),
        "Proofs under which a GPU failed",
        values=_counted("device_failures"),
    ),
    MetricRow(
        "prover_key_reloads_total",
        "counter",
        (),
        "Keys loaded anew because their file had changed",
        values=_counted("reloads"),
    ),
    MetricRow(
        "prover_key_load_failures_total",
        "counter",
        (),
        "Keys that could not be loaded",
        values=_counted("load_failures"),
    ),
    MetricRow(
        "prover_verifications_total",
        "counter",
        ("result",),
        "Proofs that were verified for clients, by `result` (valid, invalid, error)",
    ),
    MetricRow(
        "prover_verification_duration_seconds",
        "histogram",
        (),
        "Time of a verification, or of a batch of them",
        VERIFICATION_BUCKETS,
    ),
    MetricRow(
        "prover_verifier_restarts_total",
        "counter",
        (),
        "Verifier processes that were replaced",
        values=_one(lambda found: found.status.verifier.restarts),
    ),
    MetricRow(
        "prover_verifier_up",
        "gauge",
        (),
        "0 while the verifier process cannot be had",
        values=_one(lambda found: found.status.verifier.problem is None),
    ),
    MetricRow(
        "prover_http_requests_total",
        "counter",
        ("route", "status"),
        "Answers, by `route` (method and template of the path) and class of `status` (2xx, 4xx, ...)",
    ),
    MetricRow(
        "prover_http_request_duration_seconds",
        "histogram",
        ("route",),
        "Time from a request to the start of its answer",
        REQUEST_BUCKETS,
    ),
    MetricRow(
        "prover_cgroup_periods_total",
        "counter",
        (),
        "Periods of the container's CPU quota in which it ran (`nr_periods`)",
        values=_one(lambda found: found.throttling.periods),
    ),
    MetricRow(
        "prover_cgroup_throttled_periods_total",
        "counter",
        (),
        "Periods in which it was throttled (`nr_throttled`)",
        values=_one(lambda found: found.throttling.throttled),
    ),
    MetricRow(
        "prover_cgroup_throttled_seconds_total",
        "counter",
        (),
        "Time for which its threads were throttled",
        values=_one(lambda found: found.throttling.seconds),
    ),
    MetricRow(
        "prover_status_age_seconds",
        "gauge",
        (),
        "Age of the state that the gauges show; above a second the prover does not answer",
        values=_one(lambda found: max(0.0, time.monotonic() - found.time)),
    ),
)
"""Names are for ever: dashboards of others use them."""


_CPU: dict[str, Any] = {"name": "cpu", "kind": "cpu", "memory": None, "running": 0, "problem": ""}
_GONE: dict[str, Any] = {"running": 0, "problem": "it is gone"}


def _nothing(prover: Prover) -> ProverStatus:
    """The state of a prover that has not answered yet: it has done nothing, and is not known to be ready."""
    empty = CacheStatistics.total(())
    return ProverStatus(
        ready=False,
        policy="",
        active_jobs=0,
        queued_jobs=0,
        memory_usage=0,
        memory_limit=prover.settings.memory_limit * MIB,
        loaded_circuits=(),
        problems=(),
        warnings=(),
        devices=(),
        pools={},
        workers=(),
        caches=dict.fromkeys(("keys", "proofs", "verifications"), empty),
        counters=dict.fromkeys(COUNTERS, 0),
        verifier=VerifierStatus("starting"),
    )


class Metrics:
    """The metrics of one prover. For any thread.

    Args:
        prover: observed from now on.
        routes: methods with templates of paths, ``"GET /v1/status"``; requests of others are ``(other)``.
        throttling: what the container's quota has cost.
    """

    CONTENT_TYPE = CONTENT_TYPE

    def __init__(
        self,
        prover: Prover,
        routes: Iterable[str] = (),
        throttling: Callable[[], CgroupThrottling | None] = cgroup_throttling,
    ) -> None:
        self._prover, self._throttling = prover, throttling
        self._routes = frozenset(routes) | {OTHER}
        self._lock = threading.Lock()
        self._circuits: tuple[str, ...] = ()
        self._looked = float("-inf")
        self._reading: threading.Event | None = None
        self._replaced = Counts(died=0, silent=0, recycled=0)
        self._seen: dict[tuple[str, str], int] = {}
        self._known: dict[str, dict[str, Any]] = {"cpu": _CPU}
        self._kinds: dict[str, CircuitKind] = {}
        self._met = False
        self._there = 0
        events = [row for row in METRICS if row.values is None]
        self._counters = {
            row.name: Counter(row.name, row.help, row.labels, registry=None)
            for row in events
            if row.kind == "counter"
        }
        self._histograms = {
            row.name: Histogram(row.name, row.help, row.labels, buckets=row.buckets, registry=None)
            for row in events
            if row.kind == "histogram"
        }
        self._registry = CollectorRegistry()
        self._registry.register(self)
        for phase in (*PHASES, OTHER):
            self._histograms["prover_phase_duration_seconds"].labels(phase)
        for result in ("valid", "invalid", "error"):
            self._counters["prover_verifications_total"].labels(result)
        for route in sorted(self._routes):
            self._histograms["prover_http_request_duration_seconds"].labels(route)
            for status in STATUSES:
                self._counters["prover_http_requests_total"].labels(route, status)
        for kind in (*KINDS, OTHER):
            self._counters["prover_proof_errors_total"].labels(kind)
        self._look()
        # What is shown until the prover has answered once: no scrape lacks a series.
        self._snapshot = self._taken(_nothing(prover))
        self._refresh(FIRST_SECONDS)
        prover.observe(self._ended)

    # Events ----------------------------------------------------------------------------

    def answered(self, route: str, status: int, seconds: float) -> None:
        """A request of a route was answered after so many seconds; status 0, not at all, is a 5xx."""
        route = route if route in self._routes else OTHER
        label = f"{status // 100}xx"
        label = label if label in STATUSES else STATUSES[-1]
        self._counters["prover_http_requests_total"].labels(route, label).inc()
        self._histograms["prover_http_request_duration_seconds"].labels(route).observe(seconds)

    def verified(self, valid: int, invalid: int, seconds: float) -> None:
        """One verification, or a batch, took so many seconds."""
        for result, count in (("valid", valid), ("invalid", invalid)):
            self._counters["prover_verifications_total"].labels(result).inc(count)
        self._histograms["prover_verification_duration_seconds"].observe(seconds)

    def not_verified(self, count: int = 1) -> None:
        """So many proofs could not be verified: their documents are damaged, or the verifier failed."""
        self._counters["prover_verifications_total"].labels("error").inc(count)

    def _ended(self, job: ProofJob) -> None:
        if job.state is JobState.CANCELLED:
            return
        circuit, succeeded = self._label(job.circuit), job.state is JobState.SUCCEEDED
        status = "success" if succeeded else "error"
        self._counters["proofs_generated_total"].labels(circuit, status).inc()
        if job.error is not None:
            self._counters["prover_failed_proofs_total"].labels(circuit, fault_of(job.error)).inc()
            kind = job.error.kind if job.error.kind in KINDS else OTHER
            self._counters["prover_proof_errors_total"].labels(kind).inc()
        if job.devices and not is_gpu(job.devices[-1]):
            for device in list(filter(is_gpu, job.devices))[-1:]:
                self._counters["prover_fallbacks_total"].labels(device).inc()
        if not succeeded or job.started is None or job.finished is None:
            return  # a kept proof, or another job's, has not run
        # The system's clock may have been set meanwhile.
        seconds = max(0.0, job.finished - job.started)
        self._histograms["proof_generation_duration_seconds"].labels(circuit).observe(seconds)
        for name, spent in job.wait(0).timings.items():
            phase = name if name in PHASES else "compile" if name.startswith("compile ") else OTHER
            self._histograms["prover_phase_duration_seconds"].labels(phase).observe(spent)

    def _label(self, circuit: str) -> str:
        if circuit not in self._circuits and len(self._circuits) < MAX_CIRCUITS:
            self._look()  # jobs are of circuits that are there: it is new
        return circuit if circuit in self._circuits else OTHER

    # Status ----------------------------------------------------------------------------

    def _look(self) -> None:
        """Gives circuits of the folder their labels. One that is gone keeps its own, with its counts."""
        try:
            names = self._prover.circuits()
        except ProverError as error:
            log.warning("metrics: %s", error.message)
            names = []
        with self._lock:
            new = [name for name in names if name not in self._circuits]
            new = new[: MAX_CIRCUITS - len(self._circuits)]
            self._circuits += tuple(new)
            self._there = len(names)
            self._looked = time.monotonic()
            for name in (*new, OTHER):
                self._histograms["proof_generation_duration_seconds"].labels(name)
                for status in ("success", "error"):
                    self._counters["proofs_generated_total"].labels(name, status)
                for fault in FAULTS:
                    self._counters["prover_failed_proofs_total"].labels(name, fault)

    def _read(self, ended: threading.Event) -> None:
        try:
            if time.monotonic() > self._looked + CIRCUITS_SECONDS:
                self._look()
            status = self._prover.get_status()
            for device in status.devices:
                if is_gpu(device["name"]):
                    self._counters["prover_fallbacks_total"].labels(device["name"])
            self._count_replaced(status.workers)
            self._snapshot = self._taken(status)
        except Exception as error:
            log.warning("metrics: the prover's status cannot be read: %s", type(error).__name__)
        finally:
            with self._lock:
                self._reading = None
            ended.set()

    def _taken(self, status: ProverStatus) -> Snapshot:
        now = {device["name"]: device for device in status.devices}
        self._met = self._met or bool(now)
        if self._met:  # until the prover has looked for devices there are none
            gone = {name: {**device, **_GONE} for name, device in self._known.items() if name not in now}
            self._known = {**gone, **now}
        known = self._prover.known_circuits()
        self._kinds |= {name: known[name] for name in self._circuits if name in known}
        return Snapshot(
            time=time.monotonic(),
            status=status,
            replaced=dict(self._replaced),
            throttling=self._throttling() or CgroupThrottling(0, 0, 0.0),
            queue_limit=self._prover.settings.queue_limit,
            circuits=self._there,
            kinds=dict(self._kinds),
            devices=tuple(self._known.values()),
        )

    def _count_replaced(self, workers: Iterable[WorkerStatus]) -> None:
        """Adds up what places count, which is forgotten with a place."""
        before, self._seen = self._seen, {}
        for worker in workers:
            died = worker.restarts - worker.silent
            for reason, now in (("died", died), ("silent", worker.silent), ("recycled", worker.recycled)):
                last = before.get((worker.name, reason), 0)
                self._replaced[reason] += now - last if now >= last else now
                self._seen[worker.name, reason] = now

    def _refresh(self, seconds: float = STATUS_SECONDS) -> Snapshot:
        """The state now, or after so many seconds the last one that is known.

        Reading takes locks and looks into /proc: it has a thread, of which there is one at most.
        """
        with self._lock:
            ended = self._reading
            if ended is None:
                ended = threading.Event()
                try:
                    threading.Thread(
                        target=self._read, args=(ended,), name="gpuprover-metrics", daemon=True
                    ).start()
                except RuntimeError:  # the system gives no more threads
                    return self._snapshot
                self._reading = ended
        ended.wait(seconds)
        return self._snapshot

    # The registry's side ---------------------------------------------------------------

    def collect(self) -> Iterator[Metric]:
        """All metrics, for the registry; without the times of creation that its client would add."""
        found = self._refresh()
        for row in METRICS:
            if row.values is None:
                source = self._counters.get(row.name) or self._histograms[row.name]
                (family,) = source.collect()
                family.samples = [s for s in family.samples if not s.name.endswith("_created")]
            else:
                make = CounterMetricFamily if row.kind == "counter" else GaugeMetricFamily
                family = make(row.name, row.help, labels=row.labels)
                for labels, value in row.values(found):
                    family.add_metric(labels, float(value))
            yield family

    def describe(self) -> Iterator[Metric]:
        """Nothing is read to register."""
        return iter(())

    def render(self) -> bytes:
        """The text of ``GET /metrics``, of :data:`CONTENT_TYPE`. Returns within 100 ms or so."""
        return generate_latest(self._registry)


def markdown() -> str:
    """The tables of docs/metrics.md: metrics, and buckets of the histograms."""
    lines = ["| name | type | labels | help |", "| --- | --- | --- | --- |"]
    for row in METRICS:
        labels = ", ".join(f"`{label}`" for label in row.labels)
        lines.append(f"| `{row.name}` | {row.kind} | {labels or ''} | {row.help} |".replace("|  |", "| |"))
    return "\n".join(lines) + "\n"


def buckets_markdown() -> str:
    lines = ["| histogram | buckets, seconds |", "| --- | --- |"]
    lines += [
        f"| `{row.name}` | {', '.join(f'{b:g}' for b in row.buckets)} |" for row in METRICS if row.buckets
    ]
    return "\n".join(lines) + "\n"
