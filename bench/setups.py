"""Set-ups of keys from a circuit and powers of tau, as whole processes, beside snarkjs's, byte for byte."""

from __future__ import annotations

import filecmp
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gpuprover.errors import InvalidInput
from gpuprover.formats.r1cs import read_r1cs
from gpuprover.job import Job
from gpuprover.systems.system import ProofSystem

from .measure import Contestant, Failed, Sample, Variant, measure, run_process
from .peers import Missing, find_snarkjs, python_command
from .rows import OURS, Row, Rows


@dataclass(frozen=True)
class Circuit:
    """A circuit by the name that rows carry, and powers of tau that are large enough for it."""

    name: str
    r1cs: Path
    ptau: Path


def named_circuit(text: str) -> Circuit:
    """NAME=R1CS,PTAU. Raises InvalidInput for anything else."""
    name, _, files = text.partition("=")
    r1cs, comma, ptau = files.partition(",")
    if not (name.strip() and r1cs and comma and ptau):
        raise InvalidInput(f"--setup: expected NAME=R1CS,PTAU, found {text[:80]!r}")
    return Circuit(name.strip(), Path(r1cs), Path(ptau))


def measure_setups(
    circuit: Circuit,
    systems: Sequence[ProofSystem],
    variants: Sequence[Variant],
    rounds: int,
    rows: Rows,
    job: Job,
    *,
    peer: bool,
    limit: float,
) -> None:
    """Adds rows of a circuit's set-up by each system, of ours on one thread and of snarkjs if it is a peer.

    Keys that differ in a byte are a failure of the peer's row.
    """
    r1cs = read_r1cs(circuit.r1cs)
    for system in systems:
        if r1cs.curve not in system.curves:
            continue
        shape: Row = {
            "operation": f"{system.name} setup",
            "mode": "cold",
            "curve": r1cs.curve.name,
            "circuit": circuit.name,
            "constraints": r1cs.n_constraints,
        }
        files = [str(circuit.r1cs), str(circuit.ptau)]
        with tempfile.TemporaryDirectory() as folder:
            ours, theirs = Path(folder, "ours.zkey"), Path(folder, "theirs.zkey")
            contest = [
                Contestant(
                    circuit.name,
                    {**shape, "implementation": OURS, **variant.fields},
                    _ours([system.name, "setup", *files, str(ours)], variant, job),
                )
                for variant in variants
                if variant.device == "cpu" and variant.threads == 1
            ]
            if peer:
                with suppress(Missing):  # which is told where peers are chosen
                    node, package = find_snarkjs()
                    command = [node, str(package / "build" / "cli.cjs"), system.name, "setup", *files]
                    fields = {**shape, "implementation": "snarkjs"}
                    run = _theirs([*command, str(theirs)], ours, theirs, limit, job)
                    contest.append(Contestant(circuit.name, fields, run))
            with job.phase(f"{system.name} setup, {circuit.name}"):
                measure(contest, rounds, rows, job)


def _ours(arguments: Sequence[str], variant: Variant, job: Job) -> Callable[[], Sample]:
    command = [*python_command(), *arguments, "--quiet", "--threads", "1"]
    return lambda: run_process(command, check=job.check, environment=variant.environment)[0]


def _theirs(command: Sequence[str], ours: Path, theirs: Path, limit: float, job: Job) -> Callable[[], Sample]:
    def run() -> Sample:
        sample, _ = run_process(command, check=job.check, limit=limit)
        if ours.exists() and not filecmp.cmp(ours, theirs, shallow=False):
            raise Failed("snarkjs: another key than ours")
        return sample

    return run
