"""Whole proofs on a ladder of circuits: key loaded, and as a process of their own; verification."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import gpuprover
from gpuprover.circuits import Circuit, chain_circuit, merkle_circuit
from gpuprover.curves import CurveParams
from gpuprover.errors import InvalidInput
from gpuprover.job import Job

from .measure import Contestant, Sample, Variant, fastest, measure, run_process, timed
from .peers import ProverPeer, Statement, python_command
from .rows import OURS, Row, Rows, spread

CHAIN_ROOM = 200
"""Constraints short of a power of two, or an eighth of it: rows for public signals still fit the domain."""
BATCH = 1000
GROTH16 = "groth16"
"""The protocol of rows and files that name none."""


@dataclass(frozen=True)
class Files:
    """A circuit by the name that rows carry, its key and a witness."""

    name: str
    zkey: Path
    wtns: Path


def named_files(text: str) -> Files:
    """NAME=ZKEY,WTNS. Raises InvalidInput for anything else."""
    name, _, files = text.partition("=")
    zkey, comma, wtns = files.partition(",")
    if not (name.strip() and zkey and comma and wtns):
        raise InvalidInput(f"--files: expected NAME=ZKEY,WTNS, found {text[:80]!r}")
    return Files(name.strip(), Path(zkey), Path(wtns))


def ladder(
    curve: CurveParams,
    logs: Sequence[int],
    merkle: Sequence[int],
    work: Path,
    rows: Rows,
    job: Job,
    memory_limit: int | None = None,
    protocol: str = GROTH16,
) -> Iterator[Files]:
    """Chain circuits that fill Groth16's domain of 2^log, and Merkle paths.

    Keys are made once for each folder.
    """
    limit: Row = {} if memory_limit is None else {"memory_limit": memory_limit}
    makers: list[tuple[str, str, Callable[[], Circuit]]] = [
        (
            f"chain 2^{log}",
            f"chain_{log}",
            lambda log=log: chain_circuit((1 << log) - min(CHAIN_ROOM, 1 << log >> 3), curve),  # type: ignore[misc]
        )
        for log in logs
    ]
    makers += [
        (f"merkle {n}", f"merkle_{n}", lambda n=n: merkle_circuit(n, curve))  # type: ignore[misc]
        for n in merkle
    ]
    for name, stem, make in makers:
        kind = curve.name if protocol == GROTH16 else f"{curve.name}.{protocol}"
        r1cs, wtns, zkey = (work / f"{stem}.{kind}.{end}" for end in ("r1cs", "wtns", "zkey"))
        if not (wtns.exists() and zkey.exists()):
            with job.phase(f"set-up, {name}, {kind}"):
                make().write(r1cs, wtns)
                sample = timed(
                    lambda: gpuprover.setup(
                        r1cs,  # noqa: B023
                        zkey,  # noqa: B023
                        protocol=protocol,
                        insecure=True,
                        threads=job.threads,
                        memory_limit=memory_limit,
                    )
                )
                r1cs.unlink()
            assert sample.cpu is not None
            assert sample.wall is not None
            row: Row = {"operation": "setup", "implementation": OURS, "mode": "once", "device": "cpu"}
            row |= {"circuit": name, "curve": curve.name, "threads": job.threads, **limit}
            row |= {} if protocol == GROTH16 else {"protocol": protocol}
            rows.add({**row, "cpu": spread([sample.cpu]), "wall": spread([sample.wall])})
        yield Files(name, zkey, wtns)


def measure_proofs(
    files: Files,
    variants: Sequence[Variant],
    peers: Sequence[ProverPeer],
    rounds: int,
    rows: Rows,
    job: Job,
    *,
    memory_limit: int | None = None,
    first_use: bool = False,
) -> None:
    """Adds rows of a circuit's proofs, warm and cold, by each of ours and each peer."""
    key = gpuprover.load_key(files.zkey)
    shape: Row = {
        "operation": f"{key.protocol} prove",
        "curve": key.curve.name,
        "circuit": files.name,
        "constraints": key.constraints,
        "domain": key.demand.domains[0].size,
    }
    limit: Row = {} if memory_limit is None else {"memory_limit": memory_limit}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        statement = Statement(files.zkey, files.wtns, key, folder)
        contest = [
            Contestant(
                files.name,
                {**shape, "implementation": OURS, "mode": mode, **variant.fields, **limit},
                run(statement, variant, memory_limit, job),
            )
            for mode, run in (("warm", _warm), ("cold", _cold))
            for variant in variants
            if mode == "warm" or variant.threads == 1
        ]
        for peer in peers:
            run = stack.enter_context(peer.prover(statement, job.check))
            fields = {**shape, "implementation": peer.name, "mode": peer.mode}
            contest.append(Contestant(files.name, fields, run))
        with job.phase(f"{key.protocol} prove, {files.name}, {key.curve.name}"):
            measure(contest, rounds, rows, job)
        if first_use:
            _first_uses(statement, variants, shape, rows, job)


def _warm(statement: Statement, variant: Variant, memory_limit: int | None, job: Job) -> Callable[[], Sample]:
    """The key is loaded; the witness is read and the proof checked in every run."""

    def run() -> Sample:
        results: list[gpuprover.ProofResult] = []
        with variant.chosen():
            sample = timed(
                lambda: results.append(
                    gpuprover.prove(
                        statement.key,
                        statement.wtns,
                        device=variant.device,
                        threads=variant.threads,
                        memory_limit=memory_limit,
                    )
                )
            )
        return sample._replace(phases=results[0].timings)

    return run


def _command(statement: Statement, variant: Variant, memory_limit: int | None) -> list[str]:
    files = [
        statement.zkey,
        statement.wtns,
        statement.folder / "proof.json",
        statement.folder / "public.json",
    ]
    options = ["--quiet", "--device", variant.device, "--threads", str(variant.threads)]
    if memory_limit is not None:
        options += ["--memory-limit", str(memory_limit)]
    return [*python_command(), "prove", *map(str, files), *options]


def _cold(statement: Statement, variant: Variant, memory_limit: int | None, job: Job) -> Callable[[], Sample]:
    """Our command line, compiled before: a new process, the key loaded, both files written."""
    command = _command(statement, variant, memory_limit)
    return lambda: run_process(command, check=job.check, environment=variant.environment)[0]


def _first_uses(statement: Statement, variants: Sequence[Variant], shape: Row, rows: Rows, job: Job) -> None:
    """One sample for each: with a new folder for compiled code, everything is compiled first."""
    for variant in variants:
        if variant.threads > 1:
            continue
        with job.phase("first use"), tempfile.TemporaryDirectory() as cache:
            environment = {**variant.environment, "GPUPROVER_CACHE_DIR": cache}
            command = _command(statement, variant, None)
            sample, _ = run_process(command, check=job.check, environment=environment)
        assert sample.cpu is not None
        assert sample.wall is not None
        row = {**shape, "implementation": OURS, "mode": "first use", **variant.fields, "peak": sample.peak}
        rows.add({**row, "cpu": spread([sample.cpu]), "wall": spread([sample.wall])})


def measure_verification(
    files: Files, variants: Sequence[Variant], rounds: int, rows: Rows, job: Job, batch: int = BATCH
) -> None:
    """Adds rows of one proof, and of each of a batch of one key; on the CPU, which always verifies."""
    key = gpuprover.load_key(files.zkey)
    result = gpuprover.prove(key, files.wtns)
    vkey, one = key.verification_key, (result.public_signals, result.proof)

    def single(variant: Variant) -> Callable[[], Sample]:
        def run() -> Sample:
            with variant.chosen():
                return fastest(lambda: gpuprover.verify(vkey, *one, threads=1))

        return run

    def many(variant: Variant) -> Callable[[], Sample]:
        def run() -> Sample:
            with variant.chosen():
                s = timed(lambda: gpuprover.verify_batch(vkey, [one] * batch, threads=1))
            assert s.cpu is not None
            assert s.wall is not None
            return Sample(s.cpu / batch, s.wall / batch)

        return run

    contest = [
        Contestant(
            f"verify {size}",
            {
                "operation": f"{key.protocol} verify",
                "implementation": OURS,
                "mode": "warm",
                "curve": key.curve.name,
                "public": key.n_public,
                "batch": size,
                **variant.fields,
            },
            run(variant),
        )
        for size, run in ((1, single), (batch, many))
        for variant in variants
        if variant.threads == 1 and variant.device == "cpu"
    ]
    with job.phase(f"verify, {key.curve.name}"):
        measure(contest, rounds, rows, job)


def measure_import(rounds: int, rows: Rows, job: Job) -> None:
    """Adds a row of ``import gpuprover`` over an empty Python, in wall time and in CPU time."""
    python = [sys.executable, "-c"]

    def run() -> Sample:
        empty, _ = run_process([*python, "pass"], check=job.check)
        full, _ = run_process([*python, "import gpuprover"], check=job.check)
        cpu, wall = (full.cpu or 0) - (empty.cpu or 0), (full.wall or 0) - (empty.wall or 0)
        return Sample(max(1e-6, cpu), max(1e-6, wall), full.peak)

    fields = {"operation": "import gpuprover", "implementation": OURS, "mode": "cold", "device": "cpu"}
    with job.phase("import"):
        measure([Contestant("import", fields, run)], rounds, rows, job)
