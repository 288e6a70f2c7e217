"""Fields, transforms and multi-scalar multiplications: one row each.

    python -m bench.bench_arithmetic --logs 14 16 --output bench/results/arithmetic.jsonl

The scalars' kinds show what a witness's shape costs: zeros and ones, small values, and the
skews that break bucket methods (all equal, half equal, one bit set).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from gpuprover.backend import Group, open_backend
from gpuprover.curves import CURVES, CurveParams, curve_by_name
from gpuprover.job import Job
from gpuprover.limbs import Words, ints_to_words
from gpuprover.polynomial import Direction, Domain, Order

from .rows import Rows, cpu_seconds, spread

SEED = 20240613


def full_width(curve: CurveParams, n: int, rng: np.random.Generator) -> Words:
    """Scalars of all but the top two bits of r."""
    words = rng.integers(0, 1 << 64, (n, curve.scalar.limbs), dtype=np.uint64)
    words[:, -1] &= np.uint64((1 << (curve.scalar.bits - 2 - 64 * (curve.scalar.limbs - 1))) - 1)
    return words


def _below(bits: int) -> Callable[[CurveParams, int, np.random.Generator], Words]:
    def make(curve: CurveParams, n: int, rng: np.random.Generator) -> Words:
        words = np.zeros((n, curve.scalar.limbs), dtype=np.uint64)
        words[:, 0] = rng.integers(0, 1 << bits, n, dtype=np.uint64)
        return words

    return make


def _half_equal(curve: CurveParams, n: int, rng: np.random.Generator) -> Words:
    words = full_width(curve, n, rng)
    words[::2] = words[0]
    return words


def _one_bit(curve: CurveParams, n: int, rng: np.random.Generator) -> Words:
    return ints_to_words((1 << int(b) for b in rng.integers(0, curve.scalar.bits - 1, n)), curve.scalar.limbs)


KINDS: dict[str, Callable[[CurveParams, int, np.random.Generator], Words]] = {
    "full width": full_width,
    "0 and 1": _below(1),
    "32 bits": _below(32),
    "all equal": lambda curve, n, rng: np.tile(full_width(curve, 1, rng), (n, 1)),
    "half equal": _half_equal,
    "one bit set": _one_bit,
}


def ntt_rows(rows: Rows, curve: CurveParams, log: int, threads: int, rounds: int) -> None:
    backend = open_backend("cpu", curve, Job(threads=threads))
    domain = Domain(curve.scalar, log)
    v = backend.upload(full_width(curve, domain.size, np.random.default_rng(SEED)))
    orders = {Direction.FORWARD: Order.NATURAL_TO_REVERSED, Direction.INVERSE: Order.REVERSED_TO_NATURAL}
    seconds: dict[Direction, list[float]] = {direction: [] for direction in orders}
    for _ in range(rounds + 1):
        for direction, order in orders.items():
            seconds[direction].append(cpu_seconds(lambda d=direction, o=order: backend.ntt(v, domain, d, o)))  # type: ignore[misc]
    for direction in orders:
        rows.add(
            f"ntt {direction.value}",
            curve=curve.name,
            log=log,
            threads=threads,
            cpu=spread(seconds[direction][1:]),
        )


def msm_rows(rows: Rows, curve: CurveParams, group: Group, log: int, threads: int, rounds: int) -> None:
    rng = np.random.default_rng(SEED)
    backend = open_backend("cpu", curve, Job(threads=threads))
    n = 1 << log
    generator = curve.g1 if group is Group.G1 else curve.g2
    bases = backend.prepare_bases(group, backend.fixed_base_mul(group, generator, full_width(curve, n, rng)))
    for kind, make in KINDS.items():
        scalars = make(curve, n, rng)
        seconds = [cpu_seconds(lambda s=scalars: backend.msm(bases, s)) for _ in range(rounds + 1)]  # type: ignore[misc]
        rows.add(
            f"msm {group.value}",
            curve=curve.name,
            log=log,
            scalars=kind,
            threads=threads,
            cpu=spread(seconds[1:]),
        )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--curves", nargs="*", default=[c.name for c in CURVES])
    parser.add_argument("--logs", type=int, nargs="*", default=[14, 16])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSON lines, appended")
    args = parser.parse_args(argv)
    rows = Rows(args.output)
    for curve in map(curve_by_name, args.curves):
        for log in args.logs:
            ntt_rows(rows, curve, log, args.threads, args.rounds)
            for group in Group:
                msm_rows(rows, curve, group, log, args.threads, args.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
