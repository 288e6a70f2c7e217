"""``gpuprover bench service``: arguments in; rows, samples of memory and a picture out."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuprover.errors import EXIT_CANCELLED, EXIT_OK, EXIT_RESOURCES, Cancelled, InvalidInput
from gpuprover.formats.files import open_regular
from gpuprover.job import Job
from gpuprover.settings import seconds, whole_number

from . import drawings, load, pictures
from .engine_command import keys_folder, make_circuit
from .load import MemoryPoint, Started, Target
from .measure import Failed
from .processes import Sampler
from .rows import Row, Rows

if TYPE_CHECKING:
    from gpuprover.cli.context import Context

CIRCUIT = "small"
MEMORY_CLIENTS = 4
MAX_TOKEN = 4096


class _Plan:
    """What one run measures, with every argument checked before any work."""

    def __init__(self, args: Namespace, context: Context) -> None:
        self.args, self.context = args, context
        parts = [part.strip() for part in args.clients.split(",") if part.strip()]
        self.clients = sorted({whole_number(part, "--clients", high=10_000) for part in parts})
        self.seconds = seconds(args.seconds, "--seconds")
        self.burst = whole_number(args.burst, "--burst", low=0, high=10_000)
        self.proofs = whole_number(args.proofs, "--proofs", low=0, high=10_000_000)
        self.log = whole_number(args.log, "--log", low=4, high=26)
        self.output = Path(args.output)
        self.token = None if args.token_file is None else _token(args.token_file)
        if args.url is None:
            if args.circuit is not None or args.witness is not None or args.token_file is not None:
                raise InvalidInput("--circuit, --witness, --token-file: only with --url")
        elif args.circuit is None or args.witness is None:
            raise InvalidInput("--url: expected --circuit NAME and --witness FILE.wtns with it")
        else:
            Target(args.url, args.circuit, b"")  # says what is wrong with it

    @contextmanager
    def target(self, job: Job, log: Path) -> Iterator[tuple[Target, Started | None, Row]]:
        """The service to measure, the process if it is ours, and what rows say of both."""
        args = self.args
        if args.url is not None:
            yield Target(args.url, args.circuit, _read(args.witness), self.token), None, {"url": args.url}
            return
        settings = self.context.settings
        with keys_folder(args.work, self.log) as folder:
            make_circuit(folder, CIRCUIT, self.log, job)
            environment = {
                "PROVER_CIRCUIT_KEYS_PATH": str(folder),
                "PROVER_PRELOAD_CIRCUITS": CIRCUIT,
                "PROVER_THREADS": str(settings.threads),
                "PROVER_DEVICE": settings.device,
            }
            about: Row = {"circuit": f"chain 2^{self.log}", "log": self.log, "curve": "bn254"}
            about |= {"device": settings.device, "threads": settings.threads}
            if settings.memory_limit is not None:
                environment["PROVER_MEMORY_LIMIT"] = str(settings.memory_limit)
                about["memory_limit"] = settings.memory_limit
            with ExitStack() as stack:
                with job.phase("start of the service"):
                    started = stack.enter_context(load.service(environment, log, job))
                yield Target(started.url, CIRCUIT, _read(folder / f"{CIRCUIT}.wtns")), started, about

    def measure(self, rows: Rows, job: Job, log: Path) -> list[MemoryPoint]:
        points: list[MemoryPoint] = []
        with self.target(job, log) as (target, started, about):
            for clients in self.clients:
                with job.phase(f"{clients} clients"):
                    rows.add({**load.measure_level(target, clients, self.seconds, job), **about})
            if self.burst:
                with job.phase(f"{self.burst} clients at once"):
                    rows.add({**load.measure_burst(target, self.burst), **about})
            if self.proofs and started is not None:
                sampler = Sampler()
                sampler.watch("service", started.pid)
                with job.phase(f"{self.proofs:,} proofs"):
                    row, points = load.measure_memory(target, MEMORY_CLIENTS, self.proofs, sampler, job)
                rows.add({**row, **about})
        return points


def _read(path: str | Path) -> bytes:
    file, _ = open_regular(str(path))
    with file:
        return file.read()


def _token(path: str) -> str:
    """The first line of a file."""
    lines = _read(path)[:MAX_TOKEN].decode("ascii", errors="replace").split()
    if not lines or not lines[0].isprintable():
        raise InvalidInput(f"--token-file: {path}: expected a token in its first line")
    return lines[0]


def service(args: Namespace, context: Context) -> int:
    """Throughput, latency, a burst, memory; 0 if every proof was answered."""
    plan = _Plan(args, context)
    try:
        plan.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"--output: {plan.output}: cannot write: {error.strerror}") from None
    rows = Rows(plan.output / "service.jsonl")
    try:
        with context.work("bench service") as limits:
            job = Job(threads=limits["threads"], cancel=limits["cancel"], progress=limits["progress"])
            points = plan.measure(rows, job, plan.output / "service.log")
    except (KeyboardInterrupt, Cancelled):
        context.console.warn(f"interrupted; {len(rows.all)} rows are kept in {rows.path}")
        return EXIT_CANCELLED
    except Failed as failure:
        raise InvalidInput(f"bench service: {failure}") from None
    finally:
        rows.close()
    record = _record(plan, rows, points, context)
    text = "\n".join([*load.tables(rows.all), f"wrote {', '.join(filter(None, record['files']))}"])
    context.console.answer(record, text)
    return EXIT_OK if record["ok"] else EXIT_RESOURCES


def _record(plan: _Plan, rows: Rows, points: list[MemoryPoint], context: Context) -> dict[str, Any]:
    """The answer, once samples and picture are written."""
    files = [str(rows.path)]
    if points:
        files.append(str(plan.output / "service.csv"))
        load.write_points(points, plan.output / "service.csv")
    if pictures.available():
        picture = plan.output / "service.png"
        if drawings.draw_load(rows.all, points, picture):
            files.append(str(picture))
    else:
        context.console.warn(pictures.MISSING)
    lost = sum(row["lost"] for row in rows.all)
    return {"ok": lost == 0, "count": len(rows.all), "lost": lost, "files": files}
