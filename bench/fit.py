"""Fits the cost model that chooses the windows of a multi-scalar multiplication to the machine it runs on.

    python -m bench.fit --logs 12,14,16,18 --output bench/results/windows.jsonl

Times sums of full-width scalars with every window near the model's choice, on one thread. The time of one
with W windows of c bits and n points is A·(W·n·(1 + entry) + W·(2^(c−1)·bucket + window)), A the time of an
affine addition: ``Costs`` of gpuprover/cpu/buckets.py. Rows hold the times, and how much longer the model's
choice takes than the best window; a last row holds the least-squares fit of A·(1 + entry), A·bucket and
A·window, each equation divided by its time.

Rows of ``msm …, multiples`` show whether to keep multiples 2^(jb/k)·P, j < k, of every base P: with them, n
scalars of b bits are k·n scalars of b/k bits, in so many fewer windows. That is timed as it would be, with
other points in their place. On the machines measured it gains a third on 2^12 points and loses on many, whose
multiples no cache holds. Rows of ``groth16 prove, multiples`` are of whole proofs with what gpuprover/cpu/
multiples.py keeps, and of the first such proof, which makes it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

import gpuprover
from gpuprover.cpu import msm, multiples
from gpuprover.cpu.backend import CpuBackend
from gpuprover.cpu.path import cpu_path
from gpuprover.curves import CurveParams, Group, curve_by_name
from gpuprover.job import Job
from gpuprover.limbs import generator

from .measure import timed
from .operations import full_width
from .proofs import ladder
from .rows import SEED, Rows

MULTIPLES = (1, 2, 4, 8)
NEAR = 2
"""Windows that many bits from the model's choice are measured too."""


def windows_of(curve: CurveParams, group: Group, logs: Sequence[int], rounds: int, rows: Rows) -> None:
    """Adds a row for each size, and one for the fit."""
    job = Job(threads=1)
    backend, rng = CpuBackend(curve, job), np.random.default_rng(SEED)
    n = 1 << max(logs)
    points = backend.fixed_base_mul(group, generator(curve, group), full_width(curve, n, rng))
    scalars = full_width(curve, n, rng)
    bits = curve.scalar.bits
    name = {"curve": curve.name, "path": backend.path.name}
    equations, times = [], []
    for log in logs:
        bases = backend.prepare_bases(group, points[: 1 << log])
        some, chosen = scalars[: 1 << log], msm.Sum([bases], scalars[: 1 << log], job).split
        seconds: dict[int, list[float]] = {
            c: [] for c in range(max(2, chosen.c - NEAR), min(msm.MAX_WINDOW, chosen.c + NEAR) + 1)
        }
        for turn in range(rounds + 1):
            for c, samples in seconds.items():
                sample = timed(partial(msm.msm, [([bases], some)], job, msm.Split(c, 1)))
                if turn and sample.cpu is not None:
                    samples.append(sample.cpu)
        best = {c: min(samples) for c, samples in seconds.items()}
        over_best = round(best[chosen.c] / min(best.values()), 3)
        shown = {str(c): round(s, 6) for c, s in best.items()}
        row = {"operation": f"msm {group.value}, windows", **name, "log": log, "chosen": chosen.c}
        rows.add({**row, "over_best": over_best, "seconds": shown})
        print(f"{group.value} 2^{log}: window {chosen.c}, {over_best} of the best's time; {shown}")
        for c, s in best.items():
            windows = msm.Split(c, 1).windows(bits)
            equations.append([windows * (1 << log) / s, windows * (1 << (c - 1)) / s, windows / s])
            times.append(1.0)
    fit = np.linalg.lstsq(np.array(equations), np.array(times), rcond=None)[0]
    entry, bucket, window = (float(x) for x in fit)
    figures = {
        "entry_ns": round(entry * 1e9, 2),
        "bucket_ns": round(bucket * 1e9, 2),
        "window_ns": round(window * 1e9),
        "bucket_over_entry": round(bucket / entry, 2),
        "window_over_entry": round(window / entry),
    }
    rows.add({"operation": f"msm {group.value}, fitted costs", **name, **figures})
    print(f"{group.value}: {figures}")


def multiples_of(curve: CurveParams, logs: Sequence[int], rounds: int, rows: Rows) -> None:
    """Adds a row for each size."""
    job = Job(threads=1)
    backend, rng = CpuBackend(curve, job), np.random.default_rng(SEED)
    n = MULTIPLES[-1] << max(logs)
    points = backend.fixed_base_mul(Group.G1, generator(curve, Group.G1), full_width(curve, n, rng))
    for log in logs:
        calls = {}
        for k in MULTIPLES:
            bits, words = -(-curve.scalar.bits // k), full_width(curve, k << log, rng)
            for i in range(words.shape[1]):
                words[:, i] &= np.uint64((1 << min(64, max(0, bits - 64 * i))) - 1)
            calls[k] = partial(msm.msm, [([backend.prepare_bases(Group.G1, points[: k << log])], words)], job)
        best = dict.fromkeys(MULTIPLES, float("inf"))
        for _ in range(rounds + 1):
            for k, call in calls.items():
                best[k] = min(best[k], timed(call).cpu or 0.0)
        shown = {str(k): round(s, 6) for k, s in best.items()}
        row = {"operation": "msm G1, multiples", "curve": curve.name, "path": backend.path.name}
        rows.add({**row, "log": log, "seconds": shown})
        print(f"G1 2^{log}, seconds by multiples kept: {shown}")


def proofs_with_multiples(curve: CurveParams, rounds: int, rows: Rows) -> None:
    """Adds a row for each circuit: a proof without and with kept multiples, and the proof that makes them."""
    free = multiples.FREE
    with tempfile.TemporaryDirectory() as folder:
        job = Job(threads=1)
        for files in ladder(curve, [12, 14], [32], Path(folder), Rows(Path(folder) / "rows.jsonl"), job):
            key = gpuprover.load_key(files.zkey)
            best = {"without": float("inf"), "with": float("inf")}
            first = 0.0
            for turn in range(rounds + 1):
                for name, uses in (("without", 1 << 60), ("with", 0)):
                    multiples.FREE = uses
                    seconds = timed(lambda: gpuprover.prove(key, files.wtns, threads=1)).cpu or 0.0  # noqa: B023
                    if turn:
                        best[name] = min(best[name], seconds)
                    elif name == "with":
                        first = seconds
            row = {"operation": "groth16 prove, multiples", "curve": curve.name, "circuit": files.name}
            shown = {**{name: round(s, 6) for name, s in best.items()}, "first with": round(first, 6)}
            rows.add({**row, "path": cpu_path().name, "seconds": shown})
            print(f"{files.name}: {shown}")
    multiples.FREE = free


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--curve", default="bn254")
    parser.add_argument("--logs", default="12,14,16,18", help="log2 of the numbers of points")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, required=True, help="JSON lines, appended")
    args = parser.parse_args(argv)
    rows, logs = Rows(args.output), [int(x) for x in args.logs.split(",")]
    for group in Group:
        windows_of(
            curve_by_name(args.curve), group, [int(x) for x in args.logs.split(",")], args.rounds, rows
        )
    multiples_of(curve_by_name(args.curve), logs, args.rounds, rows)
    proofs_with_multiples(curve_by_name(args.curve), args.rounds, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
