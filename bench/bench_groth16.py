"""Whole Groth16 proofs, key loaded, against other provers on the same files; and what a user waits for.

    python -m bench.bench_groth16 --chain 16 --files sha=sha.zkey,sha.wtns \\
        --peer 'rapidsnark=prover {zkey} {wtns} {proof} {public}' --output bench/results/groth16.jsonl

Each round runs our proof, then every peer, so that a drift of the machine meets all of
them. Compared is CPU time: of our call with the key loaded, of the peer's whole process.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import gpuprover
from gpuprover.circuits import chain_circuit, merkle_circuit

from .rows import Rows, command_seconds, cpu_seconds, spread


def prove_rows(
    rows: Rows, name: str, zkey: Path, wtns: Path, peers: dict[str, str], args: argparse.Namespace
) -> None:
    """One row for our prover and one for each peer, with the ratio ours / theirs round by round."""
    key = gpuprover.load_key(zkey)
    result = gpuprover.prove(key, wtns, threads=args.threads)
    ours: list[float] = []
    walls: list[float] = []
    theirs: dict[str, list[float]] = {peer: [] for peer in peers}
    with tempfile.TemporaryDirectory() as folder:
        names: dict[str, str] = {
            "zkey": str(zkey),
            "wtns": str(wtns),
            "proof": f"{folder}/proof.json",
            "public": f"{folder}/public.json",
        }
        for _ in range(args.rounds):
            begun = time.perf_counter()
            ours.append(cpu_seconds(lambda: gpuprover.prove(key, wtns, threads=args.threads)))
            walls.append(time.perf_counter() - begun)
            for peer, template in peers.items():
                command = [part.format(**names) for part in shlex.split(template)]
                theirs[peer].append(command_seconds(command)[0])
                proof, public = (json.loads(Path(names[n]).read_text()) for n in ("proof", "public"))
                assert gpuprover.verify(key.vk, public, proof), f"{peer} made a false proof"
    shape = {
        "circuit": name,
        "curve": key.curve.name,
        "constraints": key.constraints,
        "domain": key.domain_size,
    }
    phases = {phase: round(seconds, 4) for phase, seconds in result.timings.items()}
    peak = result.memory["peak"]
    rows.add(
        "groth16 prove",
        **shape,
        threads=args.threads,
        cpu=spread(ours),
        wall=spread(walls),
        phases=phases,
        peak=peak,
    )
    for peer, seconds in theirs.items():
        ratios = [a / b for a, b in zip(ours, seconds, strict=True)]
        rows.add(
            f"groth16 prove, {peer}",
            **shape,
            threads=args.threads,
            cpu=spread(seconds),
            ours_over_theirs=round(statistics.median(ratios), 3),
        )


def waiting_rows(rows: Rows, folder: Path, rounds: int) -> None:
    """Import, one warm command, first use on a new machine, verification."""
    merkle = merkle_circuit(1)
    r1cs, wtns, zkey = folder / "m.r1cs", folder / "m.wtns", folder / "m.zkey"
    merkle.write(r1cs, wtns)
    gpuprover.setup(r1cs, zkey, insecure=True)
    key = gpuprover.load_key(zkey)
    result = gpuprover.prove(key, wtns)

    python = [sys.executable, "-c"]
    empty = [command_seconds([*python, "pass"]) for _ in range(rounds)]
    imported = [command_seconds([*python, "import gpuprover"]) for _ in range(rounds)]
    walls = [b[1] - a[1] for a, b in zip(empty, imported, strict=True)]
    rows.add("import gpuprover", wall=spread(walls))

    vkey = key.verification_key
    gpuprover.verify(vkey, result.public_signals, result.proof)
    seconds = [
        cpu_seconds(lambda: gpuprover.verify(vkey, result.public_signals, result.proof)) for _ in range(20)
    ]
    rows.add("groth16 verify, warm", curve=key.curve.name, public=key.n_public, cpu=spread(seconds))
    many = [(result.public_signals, result.proof)] * 1000
    batch = [cpu_seconds(lambda: gpuprover.verify_batch(vkey, many)) / 1000 for _ in range(3)]
    rows.add("groth16 verify, each of 1000", curve=key.curve.name, public=key.n_public, cpu=spread(batch))

    outputs = [str(folder / "proof.json"), str(folder / "public.json")]
    command = [sys.executable, "-m", "gpuprover", "prove", str(zkey), str(wtns), *outputs]
    runs = [command_seconds(command) for _ in range(rounds)]
    rows.add(
        "command line, small circuit, warm",
        constraints=key.constraints,
        cpu=spread([cpu for cpu, _ in runs]),
        wall=spread([wall for _, wall in runs]),
    )
    cold = command_seconds(command, {"GPUPROVER_CACHE_DIR": str(folder / "cache")})
    rows.add("command line, small circuit, first use", cpu=spread([cold[0]]), wall=spread([cold[1]]))


def setup_rows(rows: Rows, folder: Path, log: int) -> tuple[Path, Path]:
    """An insecure set-up of the chain that fills a domain of 2^log; returns key and witness."""
    r1cs, wtns, zkey = (folder / f"chain{log}.{kind}" for kind in ("r1cs", "wtns", "zkey"))
    chain_circuit((1 << log) - 200).write(r1cs, wtns)
    begun = time.perf_counter()
    seconds = cpu_seconds(lambda: gpuprover.setup(r1cs, zkey, insecure=True))
    wall = time.perf_counter() - begun
    rows.add("setup, insecure", circuit=f"chain 2^{log}", cpu=spread([seconds]), wall=spread([wall]))
    return zkey, wtns


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--chain", type=int, nargs="*", default=[], metavar="LOG", help="chain circuits of 2^LOG"
    )
    parser.add_argument("--files", nargs="*", default=[], metavar="NAME=ZKEY,WTNS", help="keys and witnesses")
    parser.add_argument("--peer", nargs="*", default=[], metavar="NAME=COMMAND", help="other provers")
    parser.add_argument(
        "--threads", type=int, default=1, help="of our prover; a peer's command sees to its own"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--waiting", action="store_true", help="import, command line, first use, verification"
    )
    parser.add_argument("--output", type=Path, help="JSON lines, appended")
    args = parser.parse_args(argv)
    peers = dict(peer.split("=", 1) for peer in args.peer)
    rows = Rows(args.output)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.waiting:
            waiting_rows(rows, folder, args.rounds)
        for log in args.chain:
            zkey, wtns = setup_rows(rows, folder, log)
            prove_rows(rows, f"chain 2^{log}", zkey, wtns, peers, args)
        for entry in args.files:
            circuit, files = entry.split("=", 1)
            zkey_name, wtns_name = files.split(",", 1)
            prove_rows(rows, circuit, Path(zkey_name), Path(wtns_name), peers, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
