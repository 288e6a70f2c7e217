"""``gpuprover bench processes``, ``network`` and ``fill``: arguments in; rows, samples, pictures out."""

from __future__ import annotations

import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gpuprover
from gpuprover.circuits import chain_circuit
from gpuprover.errors import EXIT_CANCELLED, EXIT_OK, Cancelled, InvalidInput, ProofGenerationFailed
from gpuprover.formats.json_files import write_json
from gpuprover.job import Job
from gpuprover.settings import MAX_THREADS, whole_number

from . import documents, drawings, pictures
from . import network as small_network
from .measure import Failed
from .processes import POLICIES, Plan, Sample, measure, measure_copies, measure_verifier, write_csv
from .proofs import CHAIN_ROOM
from .rows import Row, Rows, read_rows

if TYPE_CHECKING:
    from gpuprover.cli.context import Context

SMALL_LOG = 6
"""Log2 of the size of the circuit with which workers get all their machine code."""
LARGE, SMALL = "large", "small"


def make_circuit(folder: Path, name: str, log: int, job: Job) -> None:
    """NAME.zkey, .wtns and .vkey.json of a chain that fills a domain of 2^log, unless they are there."""
    r1cs, wtns, zkey = (folder / f"{name}.{kind}" for kind in ("r1cs", "wtns", "zkey"))
    vkey = folder / f"{name}.vkey.json"
    if all(path.exists() for path in (wtns, zkey, vkey)):
        return
    with job.phase(f"set-up, chain 2^{log}"):
        chain_circuit((1 << log) - min(CHAIN_ROOM, 1 << log >> 3)).write(r1cs, wtns)
        gpuprover.setup(r1cs, zkey, insecure=True, device="cpu", threads=job.threads)
        write_json(str(vkey), gpuprover.load_key(zkey).verification_key)
        r1cs.unlink()


@contextmanager
def keys_folder(named: str | None, log: int) -> Iterator[Path]:
    """A folder for keys of circuits up to 2^log: one of its own for each size."""
    if named is None:
        with tempfile.TemporaryDirectory(prefix="gpuprover-bench-") as folder:
            yield Path(folder)
        return
    path = Path(named) / f"engine-{log}"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"--work: {path}: cannot write: {error.strerror}") from None
    yield path


def _measured(
    stem: str,
    args: Namespace,
    context: Context,
    work: Callable[[Path, Rows, Job, Path], Any],
    tables: Sequence[str],
) -> int:
    """Runs ``work`` with a folder of keys, rows, a job and a log; writes samples, a picture, the answer."""
    output = Path(args.output)
    log = whole_number(args.log, "--log", low=4, high=26)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"--output: {output}: cannot write: {error.strerror}") from None
    rows = Rows(output / f"{stem}.jsonl")
    try:
        with keys_folder(args.work, log) as keys, context.work(f"bench {stem}") as limits:
            job = Job(threads=limits["threads"], cancel=limits["cancel"], progress=limits["progress"])
            make_circuit(keys, LARGE, log, job)
            make_circuit(keys, SMALL, min(log, SMALL_LOG), job)
            watched = work(keys, rows, job, output / f"{stem}.log")
    except (KeyboardInterrupt, Cancelled):
        context.console.warn(f"interrupted; {len(rows.all)} rows are kept in {rows.path}")
        return EXIT_CANCELLED
    except Failed as failure:
        raise ProofGenerationFailed(f"bench {stem}: {failure}") from None
    finally:
        rows.close()
    samples: list[Sample] = watched.samples
    write_csv(samples, output / f"{stem}.csv")
    picture = None
    if not pictures.available():
        context.console.warn(pictures.MISSING)
    elif samples:
        picture = output / f"{stem}.png"
        title, together = _TITLES[stem].format(log=log), stem == "network"
        drawings.draw_memory(samples, watched.events, title, picture, together=together)
    failed = [str(row["error"]) for row in rows.all if "error" in row]
    for reason in failed:
        context.console.warn(reason)
    record = {
        "ok": not failed,
        "rows": str(rows.path),
        "count": len(rows.all),
        "samples": str(output / f"{stem}.csv"),
        "picture": None if picture is None else str(picture),
        "errors": failed,
    }
    text = "\n\n".join("\n".join(documents.TABLES[name](rows.all)) for name in tables)
    context.console.answer(record, f"{text}\n\nwrote {rows.path}, {record['samples']}, {record['picture']}")
    return EXIT_OK


_TITLES = {
    "processes": "One engine, chain 2^{log}: memory by process, for each policy",
    "network": "A small network, chain 2^{log}: memory by process",
}


def processes(args: Namespace, context: Context) -> int:
    """Each policy, started warm and cold; how many copies of a key the workers hold."""
    policies = (
        POLICIES if args.policies is None else [p.strip() for p in args.policies.split(",") if p.strip()]
    )
    for policy in policies:
        if policy not in POLICIES:
            raise InvalidInput(f"--policies: expected some of {','.join(POLICIES)}, found {policy[:40]!r}")
    workers = whole_number(args.workers, "--workers", high=64)
    proofs = whole_number(args.proofs, "--proofs", high=10_000)
    verifications = whole_number(args.verifications, "--verifications", high=1_000_000)
    threads = whole_number(str(context.settings.threads), "--threads", high=MAX_THREADS)
    # Cold first: whatever comes later finds files in memory.
    starts = [*(["first use"] if args.first_use else []), "cold", "warm"]

    def work(keys: Path, rows: Rows, job: Job, log: Path) -> Any:
        name = f"chain 2^{args.log}"
        limit = context.settings.memory_limit
        plan = Plan(keys, LARGE, name, workers, threads, proofs, verifications, limit, policies)
        with job.phase("a proof to verify"):
            made = gpuprover.prove(plan.zkey, plan.witness, device="cpu", threads=threads)
        statement: Row = {"proof": made.proof, "public_signals": made.public_signals}
        watched = measure(plan, starts, rows, job, log, statement)
        measure_verifier(plan, starts, rows, job, statement)
        if "eager" in policies:
            measure_copies(plan, SMALL, rows, job, log)
        return watched

    return _measured("processes", args, context, work, ("policies", "verifier", "roles", "goals"))


def network(args: Namespace, context: Context) -> int:
    """The small network, for some rounds."""
    rounds = whole_number(args.rounds, "--rounds", high=10_000)

    def work(keys: Path, rows: Rows, job: Job, log: Path) -> Any:
        shape = small_network.Shape(keys, LARGE, f"chain 2^{args.log}", rounds, context.settings.threads)
        return small_network.run(shape, rows, job, log)

    return _measured("network", args, context, work, ("network",))


def fill(args: Namespace, context: Context) -> int:
    """Puts tables of rows into documents."""
    rows = read_rows([Path(name) for name in args.rows])
    if not rows:
        raise InvalidInput(f"{', '.join(args.rows)}: no rows")
    for name in args.documents:
        documents.fill(Path(name), rows)
    context.console.answer(
        {"ok": True, "documents": args.documents, "count": len(rows)},
        f"filled {', '.join(args.documents)} from {len(rows):,} rows",
    )
    return EXIT_OK
