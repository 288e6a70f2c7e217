"""Midnight's proofs beside the network's own prover: ``python -m gpuprover.bench.midnight``.

For each circuit, key and parameters being in memory: a proof from its preimage, verified; a proof's
verification, alone and in a batch. The peer is the prover of the npm package ``@midnight-ntwrk/zkir-v2``,
WASM in Node.js on one thread, which takes circuits of the older line.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gpuprover
from gpuprover import midnight_api
from gpuprover.cpu.path import cpu_path
from gpuprover.curves import BLS12_381
from gpuprover.devices import open_backend
from gpuprover.job import Job
from gpuprover.midnight import envelopes, srs
from gpuprover.systems.midnight.documents import Proof
from gpuprover.systems.midnight.verifier import verify, verify_many

from .measure import Contestant, Failed, Sample, fastest, measure, timed
from .peers import read_answer
from .rows import OURS, Row, Rows

PEER = "midnight-wasm"
SCRIPT = Path(__file__).resolve().parent / "midnight_warm.mjs"
BATCH = 100
WARM_UP = 5
"""Proofs before the first that is measured."""
PEER_SECONDS = 300.0


@contextmanager
def _peer(
    packages: Path, prover: Path, parameters: Path, check: Callable[[bytes], bool], job: Job
) -> Iterator[Callable[[], Sample]]:
    """What makes one proof by the network's own prover."""
    node = shutil.which("node")
    if node is None:
        raise Failed(f"{PEER}: Node.js is not on PATH")
    process = subprocess.Popen(
        [node, str(SCRIPT), str(packages), str(prover), str(parameters)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    requests, answers = process.stdin, process.stdout

    def run() -> Sample:
        requests.write(b"prove\n")
        requests.flush()
        answer = read_answer(answers, job.check, PEER_SECONDS)
        if "error" in answer:
            raise Failed(f"{PEER}: {answer['error']}")
        if not check(envelopes.read_proof(bytes.fromhex(answer["proof"]))):
            raise Failed(f"{PEER}: its proof does not hold")
        return Sample(answer["cpu_s"], answer["wall_s"])

    try:
        yield run
    finally:
        process.kill()
        process.wait()
        requests.close()
        answers.close()


def measure_circuit(
    prover: Path,
    folder: Path,
    packages: Path | None,
    threads: Sequence[int],
    rounds: int,
    rows: Rows,
    job: Job,
) -> None:
    """Adds the rows of one circuit, whose ``.preimage`` stands beside its ``.prover``."""
    key: Any = midnight_api.load_key(prover, parameters=folder)
    preimage = prover.with_suffix(".preimage")
    backend = open_backend("cpu", BLS12_381, Job(threads=1))
    k = key.key.k
    shape: Row = {
        "mode": "warm",
        "curve": BLS12_381.name,
        "circuit": prover.stem,
        "constraints": 1 << k,
        "log": k,
        "line": key.key.profile.name,
    }
    ours: Row = {"implementation": OURS, "device": "cpu", "path": cpu_path().name}
    # As many proofs as it takes until multiples of the parameters' points are there.
    for _ in range(WARM_UP):
        made = midnight_api.prove(key, preimage, threads=1)
    public = [int(x) for x in made.public_signals]
    proof = Proof(bytes.fromhex(made.proof["proof"]))

    def proving(count: int) -> Callable[[], Sample]:
        def run() -> Sample:
            results: list[Any] = []
            sample = timed(lambda: results.append(midnight_api.prove(key, preimage, threads=count)))
            return sample._replace(phases=results[0].timings)

        return run

    contest = [
        Contestant(
            prover.stem, {**shape, "operation": "midnight prove", **ours, "threads": count}, proving(count)
        )
        for count in threads
    ]
    with job.phase(f"midnight prove, {prover.stem}"):
        if packages is not None and key.key.profile.name == "v6":
            parameters = srs.srs_folder(folder) / srs.file_name(k)

            def holds(data: bytes) -> bool:
                return verify(key.vk, public, Proof(data), backend)

            with _peer(packages, prover, parameters, holds, job) as run:
                fields = {**shape, "operation": "midnight prove", "implementation": PEER}
                measure([*contest, Contestant(prover.stem, fields, run)], rounds, rows, job)
        else:
            measure(contest, rounds, rows, job)

    statements = [(key.vk, public, proof)] * BATCH
    verifying = [
        ("midnight verify", lambda: verify(key.vk, public, proof, backend), {}),
        ("midnight verify batch", lambda: verify_many(statements, backend), {"count": BATCH}),
    ]
    with job.phase(f"midnight verify, {prover.stem}"):
        for operation, call, more in verifying:
            fields = {**shape, "operation": operation, **ours, "threads": 1, **more}
            measure([Contestant(prover.stem, fields, lambda call=call: fastest(call))], rounds, rows, job)  # type: ignore[misc]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gpuprover.bench.midnight", description=__doc__)
    parser.add_argument("circuits", nargs="+", type=Path, metavar="CIRCUIT.prover")
    parser.add_argument("--parameters", type=Path, required=True, help="folder of the network's parameters")
    parser.add_argument("--packages", type=Path, help="folder with the peer's node_modules; no peer without")
    parser.add_argument("--threads", default="1", help="our numbers of threads, with commas (1)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, required=True, help="file that rows are added to")
    args = parser.parse_args(arguments)
    rows, job = Rows(args.output), Job(threads=1)
    print(f"gpuprover {gpuprover.__version__}, {cpu_path().name}")
    for prover in args.circuits:
        threads = [int(x) for x in args.threads.split(",")]
        measure_circuit(prover, args.parameters, args.packages, threads, args.rounds, rows, job)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
