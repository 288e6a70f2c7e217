"""Load on a proving service: throughput and latency against concurrency, a burst, memory over many proofs.

Clients are tasks of this process over plain sockets; the service is another process, here or elsewhere.
Loops are closed: a client sends its next proof when it has the answer to the last one. A proof that is
answered with 202 is asked for until it has ended, and all of that is its latency. Refusals (429, 503) are
counted, and the client waits as long as ``Retry-After`` says, up to ``MAX_PAUSE``; what has no answer at all
is *lost*.
"""

from __future__ import annotations

import asyncio
import csv
import json
import resource
import select
import ssl
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from gpuprover.errors import InvalidInput
from gpuprover.job import Job
from gpuprover.memory import MIB

from .gpu.processes import start, stop
from .measure import Failed
from .pictures import format_time
from .processes import Sample, Sampler
from .rows import OURS, Row, significant, spread

READY_SECONDS = 300.0
STOP_SECONDS = 60.0
ANSWER_SECONDS = 120.0
"""For one proof, waiting included; after that it is lost."""
CONNECT_SECONDS = 30.0
WAIT_SECONDS = 30
"""In ``Prefer: wait``."""
MAX_PAUSE = 1.0
POLL_SECONDS, MAX_POLL = 0.1, 2.0
SPARE_DESCRIPTORS = 100
MOST_LOST = 100
"""Lost proofs after which a long run ends: nobody is there."""
LOOK_SECONDS = 1.0
"""Between two looks at the memory of all processes."""
MAX_HEAD = 1 << 16
MAX_BODY = 1 << 24
PROGRAM = (sys.executable, "-m", "gpuprover", "serve")
REFUSALS = (429, 503)
ENDED = ("succeeded", "failed", "cancelled")
LOST = "lost"


# HTTP, as far as it is needed -----------------------------------------------------------


class Answer(NamedTuple):
    """Headers by lower-case names."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        """Its object; {} for anything else."""
        with suppress(ValueError):
            document = json.loads(self.body)
            if isinstance(document, dict):
                return document
        return {}


@dataclass(frozen=True)
class Target:
    """A service, and what is proved there.

    Attributes:
        url: ``http://host:port`` or https, without a path.
        token: bearer token; None for a service that needs none.
        witness: a ``.wtns`` file's bytes.
    """

    url: str
    circuit: str
    witness: bytes = field(repr=False)
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
            raise InvalidInput(f"--url: expected http://HOST:PORT, found {self.url[:80]!r}")

    @property
    def path(self) -> str:
        return f"/v1/circuits/{quote(self.circuit, safe='')}/proofs"


class Connection:
    """One connection of a client, opened when it is needed and again after the service has closed it."""

    def __init__(self, target: Target) -> None:
        parts = urlsplit(target.url)
        self._host = parts.hostname or ""
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self._common = f"Host: {parts.netloc}\r\nUser-Agent: gpuprover-bench\r\n"
        if target.token is not None:
            self._common += f"Authorization: Bearer {target.token}\r\n"
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def open(self) -> None:
        if self._writer is None:
            self._reader, self._writer = await asyncio.wait_for(
                asyncio.open_connection(self._host, self._port, ssl=self._tls, limit=MAX_HEAD),
                CONNECT_SECONDS,
            )

    async def close(self) -> None:
        writer, self._reader, self._writer = self._writer, None, None
        if writer is not None:
            writer.close()
            with suppress(OSError):
                await asyncio.wait_for(writer.wait_closed(), 1.0)

    async def ask(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        """The answer to one request. Whoever gets an exception closes the connection.

        Raises:
            OSError, EOFError, TimeoutError, ValueError: there is none.
        """
        await self.open()
        assert self._reader is not None
        assert self._writer is not None
        lines = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        head = f"{method} {path} HTTP/1.1\r\n{self._common}{lines}Content-Length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode("latin-1") + body)
        await self._writer.drain()
        answer = await self._read(self._reader)
        if answer.headers.get("connection", "").lower() == "close":
            await self.close()
        return answer

    async def _read(self, reader: asyncio.StreamReader) -> Answer:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(head[0].split(" ", 2)[1])
        pairs = (line.partition(":") for line in head[1:] if line)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        if headers.get("transfer-encoding", "").lower() == "chunked":
            return Answer(status, headers, await self._chunks(reader))
        size = int(headers.get("content-length", "0"))
        if not 0 <= size <= MAX_BODY:
            raise ValueError("an answer of that size is none of ours")
        return Answer(status, headers, await reader.readexactly(size))

    async def _chunks(self, reader: asyncio.StreamReader) -> bytes:
        found = b""
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            if size < 0 or len(found) + size > MAX_BODY:
                raise ValueError("an answer of that size is none of ours")
            found += (await reader.readexactly(size + 2))[:-2]
        await reader.readuntil(b"\r\n")
        return found


NO_ANSWER = (OSError, EOFError, asyncio.LimitOverrunError, ValueError, IndexError)


# Clients -------------------------------------------------------------------------------


@dataclass
class Tally:
    """What clients have seen.

    Attributes:
        statuses: answers to POST by status, and those that did not come (``lost``).
        outcomes: accepted proofs by the state that they ended in, and those that were lost.
        latencies: seconds of each proof that succeeded, from the POST to the proof.
        ends: when each of them was there, in seconds of :func:`time.perf_counter`.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)

    @property
    def lost(self) -> int:
        return self.statuses[LOST] + self.outcomes[LOST]


async def prove(connection: Connection, target: Target, tally: Tally) -> float:
    """One proof, to its end -> seconds after which the service wants to be asked again."""
    begun = time.perf_counter()
    headers = {"Content-Type": "application/octet-stream", "Prefer": f"wait={WAIT_SECONDS}"}
    try:
        answer = await asyncio.wait_for(
            connection.ask("POST", target.path, target.witness, headers), ANSWER_SECONDS
        )
    except NO_ANSWER:
        tally.statuses[LOST] += 1
        await connection.close()
        return MAX_PAUSE
    tally.statuses[str(answer.status)] += 1
    if answer.status not in (200, 202):
        return _pause(answer) if answer.status in REFUSALS else MAX_PAUSE
    try:
        state = await _follow(connection, answer, begun + ANSWER_SECONDS)
    except NO_ANSWER:
        state = LOST
        await connection.close()
    tally.outcomes[state] += 1
    if state != "succeeded":
        return MAX_PAUSE
    now = time.perf_counter()
    tally.latencies.append(now - begun)
    tally.ends.append(now)
    return 0.0


async def _follow(connection: Connection, answer: Answer, deadline: float) -> str:
    """The state that an accepted proof ends in."""
    location = urlsplit(answer.headers.get("location", "")).path
    pause = POLL_SECONDS
    while True:
        state = str(answer.json().get("state"))
        if state in ENDED:
            return state
        if time.perf_counter() > deadline or not location.startswith("/"):
            return LOST
        await asyncio.sleep(pause)
        pause = min(2 * pause, MAX_POLL)
        answer = await asyncio.wait_for(connection.ask("GET", location), CONNECT_SECONDS)
        if answer.status != 200 and answer.status not in REFUSALS:
            return LOST


def _pause(answer: Answer) -> float:
    with suppress(ValueError):
        return min(MAX_PAUSE, max(0.0, float(answer.headers.get("retry-after", MAX_PAUSE))))
    return MAX_PAUSE


@asynccontextmanager
async def _clients(target: Target, count: int) -> AsyncIterator[list[Connection]]:
    """Connections of so many clients, all open."""
    connections = [Connection(target) for _ in range(count)]
    try:
        await asyncio.gather(*(connection.open() for connection in connections))
        yield connections
    except TimeoutError:
        raise Failed(f"{target.url}: {count} clients are not connected after {CONNECT_SECONDS:g} s") from None
    except OSError as error:
        raise Failed(f"{target.url}: cannot connect {count} clients: {error.strerror or error}") from None
    finally:
        await asyncio.gather(*(connection.close() for connection in connections))


async def closed_loop(
    target: Target,
    clients: int,
    more: Callable[[Tally, float], bool],
    *,
    tick: Callable[[Tally], None] | None = None,
) -> tuple[Tally, float]:
    """Clients that prove one after the other, as long as there is ``more(tally, seconds since the begin)``.

    ``tick`` is called in a thread, at the begin, every ``LOOK_SECONDS`` and at the end.

    Returns:
        what they saw, and when they began.
    """
    tally = Tally()
    begun = 0.0

    async def client(connection: Connection) -> None:
        while more(tally, time.perf_counter() - begun):
            pause = await prove(connection, target, tally)
            if pause:
                await asyncio.sleep(pause)

    async def watch(tick: Callable[[Tally], None]) -> None:
        while True:
            await asyncio.to_thread(tick, tally)
            await asyncio.sleep(LOOK_SECONDS)

    async with _clients(target, clients) as connections:
        begun = time.perf_counter()
        watcher = None if tick is None else asyncio.ensure_future(watch(tick))
        try:
            await asyncio.gather(*(client(connection) for connection in connections))
        finally:
            if watcher is not None:
                watcher.cancel()
                with suppress(asyncio.CancelledError):
                    await watcher
    if tick is not None:
        await asyncio.to_thread(tick, tally)
    return tally, begun


async def _burst(target: Target, clients: int) -> tuple[Tally, float]:
    """One request of each client, all at the same time."""
    tally = Tally()
    async with _clients(target, clients) as connections:
        begun = time.perf_counter()
        await asyncio.gather(*(prove(connection, target, tally) for connection in connections))
        return tally, time.perf_counter() - begun


# Measurements --------------------------------------------------------------------------


def measure_level(target: Target, clients: int, seconds: float, job: Job) -> Row:
    """Throughput and latency with so many clients, over so many seconds after one proof of each."""

    def more(tally: Tally, passed: float) -> bool:
        job.check()
        return passed < seconds

    asyncio.run(_burst(target, clients))
    tally, begun = asyncio.run(closed_loop(target, clients, more))
    # The last proof of each client ends after the time.
    within = sum(moment <= begun + seconds for moment in tally.ends)
    return {
        **_row("service load", target, clients, tally),
        "seconds": seconds,
        "throughput": significant(within / seconds),
    }


def measure_burst(target: Target, clients: int) -> Row:
    """What becomes of one request of each client, all at once."""
    allow_descriptors(clients)
    tally, seconds = asyncio.run(_burst(target, clients))
    return {**_row("service burst", target, clients, tally), "seconds": significant(seconds)}


def allow_descriptors(connections: int) -> None:
    """Lets this process have so many connections, as far as it may decide that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + SPARE_DESCRIPTORS
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class MemoryPoint(NamedTuple):
    """A sample of a process, and how many proofs had been made by then."""

    proofs: int
    sample: Sample


def measure_memory(
    target: Target, clients: int, proofs: int, sampler: Sampler, job: Job
) -> tuple[Row, list[MemoryPoint]]:
    """Memory of the processes that ``sampler`` watches, over so many proofs."""
    points: list[MemoryPoint] = []

    def more(tally: Tally, passed: float) -> bool:
        job.check()
        job.report(min(1.0, len(tally.ends) / proofs))
        return len(tally.ends) < proofs and tally.lost <= MOST_LOST

    def look(tally: Tally) -> None:
        made = len(tally.ends)
        points.extend(MemoryPoint(made, sample) for sample in sampler.look())

    tally, begun = asyncio.run(closed_loop(target, clients, more, tick=look))
    took = (max(tally.ends) if tally.ends else time.perf_counter()) - begun
    row = {
        **_row("service memory", target, clients, tally),
        "seconds": significant(took),
        "throughput": significant(len(tally.ends) / took),
        **growth(points),
    }
    return row, points


def growth(points: Sequence[MemoryPoint]) -> Row:
    """How much more the processes hold in the last fifth of the proofs than in the second one, in bytes.

    The first fifth is left out: code is compiled and loaded, caches fill. Medians, since workers come and go.
    """
    looks: dict[tuple[float, int], dict[str, int]] = {}
    for made, sample in points:
        held = looks.setdefault((sample.time, made), {})
        held[sample.role] = held.get(sample.role, 0) + sample.held
    most = max((made for _, made in looks), default=0)
    early = [held for (_, made), held in looks.items() if most / 5 < made <= 2 * most / 5]
    late = [held for (_, made), held in looks.items() if 4 * most / 5 < made]
    if not early or not late:
        return {}

    def medians(found: Sequence[Mapping[str, int]]) -> dict[str, int]:
        roles = sorted({role for held in found for role in held})
        by_role = {role: int(statistics.median(held.get(role, 0) for held in found)) for role in roles}
        return {**by_role, "all": int(statistics.median(sum(held.values()) for held in found))}

    first, last = medians(early), medians(late)
    more = last["all"] - first["all"]
    return {
        "memory": {"early": first, "late": last, "peak": max(sum(held.values()) for held in looks.values())},
        "growth": more,
        "growth_per_1000_proofs": round(more / (0.6 * most) * 1000),
    }


def _row(operation: str, target: Target, clients: int, tally: Tally) -> Row:
    row: Row = {
        "operation": operation,
        "implementation": OURS,
        "circuit": target.circuit,
        "clients": clients,
        "proofs": len(tally.latencies),
        "statuses": dict(sorted(tally.statuses.items())),
        "outcomes": dict(sorted(tally.outcomes.items())),
        "lost": tally.lost,
    }
    if tally.latencies:
        row["latency"] = {**spread(tally.latencies), "p99_s": significant(percentile(tally.latencies, 99))}
        del row["latency"]["rounds"]
    return row


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that is no less than so many of a hundred (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -int(-len(ordered) * percent // 100) - 1)]


# The service ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Started:
    """A service that this process has started."""

    url: str
    pid: int


@contextmanager
def service(settings: Mapping[str, str], log: Path, job: Job) -> Iterator[Started]:
    """``gpuprover serve`` on a free port, ready; ended with SIGTERM.

    Args:
        settings: ``PROVER_*`` variables.
        log: gets its standard error.

    Raises:
        Failed: it does not start, or does not end as it should.
    """
    command = [*PROGRAM, "--host", "127.0.0.1", "--port", "0", "--json"]
    with log.open("a") as errors:
        process = start(command, errors, settings, stdout=subprocess.PIPE)
    end = time.perf_counter() + READY_SECONDS

    def check() -> None:
        job.check()
        if process.poll() is not None:
            said = " ".join(log.read_text(errors="replace")[-300:].split())
            raise Failed(f"gpuprover serve ended with exit code {process.returncode}: {said}")
        if time.perf_counter() > end:
            raise Failed(f"gpuprover serve is not ready after {READY_SECONDS:g} s; see {log}")

    try:
        assert process.stdout is not None
        while not select.select([process.stdout], [], [], POLL_SECONDS)[0]:
            check()
        first = process.stdout.readline()
        if not first:
            process.wait(STOP_SECONDS)
            check()
        url = str(Answer(200, {}, first).json().get("url"))
        asyncio.run(_ready(Target(url, "", b""), check))
        yield Started(url, process.pid)
        process.terminate()
        if process.wait(STOP_SECONDS) != 0:
            raise Failed(f"gpuprover serve ended with exit code {process.returncode}; see {log}")
    except subprocess.TimeoutExpired:
        raise Failed(f"gpuprover serve does not end; see {log}") from None
    finally:
        stop(process)
        if process.stdout is not None:
            process.stdout.close()


async def _ready(target: Target, check: Callable[[], None]) -> None:
    """Waits for 200 of ``/readyz``."""
    connection = Connection(target)
    try:
        while True:
            with suppress(*NO_ANSWER):
                answer = await asyncio.wait_for(connection.ask("GET", "/readyz"), CONNECT_SECONDS)
                if answer.status == 200:
                    return
            check()
            await asyncio.sleep(POLL_SECONDS)
    finally:
        await connection.close()


def write_points(points: Sequence[MemoryPoint], path: Path) -> None:
    """A line for each process and look: proofs made by then, and the fields of :class:`Sample`."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("proofs", *Sample._fields))
        writer.writerows((point.proofs, *point.sample) for point in points)


def tables(rows: Sequence[Row]) -> list[str]:
    """Rows in short, for people."""
    lines = []
    for row in rows:
        latency = row.get("latency", {})
        figures = [
            f"{row['throughput']:g} proofs/s" if "throughput" in row else f"{row['proofs']} proofs",
            f"p50 {format_time(latency['median_s'])}, p99 {format_time(latency['p99_s'])}" if latency else "",
            ", ".join(f"{status}: {count}" for status, count in row["statuses"].items()),
            f"{row['growth'] / MIB:+.1f} MiB" if "growth" in row else "",
        ]
        what = f"{row['operation'].removeprefix('service ')}, {row['clients']} clients"
        lines.append(f"{what:<24}  " + "; ".join(filter(None, figures)))
    return lines
