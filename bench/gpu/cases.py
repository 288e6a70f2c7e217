"""What ``make gpu`` measures, in its order, with the seconds that each case is predicted to take.

The predictions are guesses until rows of a GPU are there; they decide no more than whether a case is begun.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any

from gpuprover.curves import CURVES, CurveParams

from ..operations import FULL_WIDTH
from .rates import RATES

ZERO_ONE, SKEWED = "0 and 1", "half equal"
CURVE_COST = {"bn254": 1.0, "bls12-381": 2.2}
GROUP_COST = {"G1": 1.0, "G2": 3.0}
"""Against BN254's G1, by multiplications: what predictions are scaled with."""
TOOLS = ("memcheck", "racecheck", "synccheck")
CHAIN, BITS = "chain", "bits"
"""Circuits: a witness of full width, and one of zeros and ones as most are."""


@dataclass(frozen=True)
class Case:
    """One measurement: done once all its rows are written.

    Attributes:
        name: unique, and the same in every version.
        kind: who does it: a function of :mod:`.measures`, or ``tests`` and ``sanitizer`` of :mod:`.checks`.
        seconds: predicted.
        arguments: of that function.
        least: seconds that are worth beginning with, where what is done is kept although the rest is not.
    """

    name: str
    kind: str
    seconds: float
    arguments: Mapping[str, Any] = field(default_factory=dict)
    least: float = inf


@dataclass(frozen=True)
class Sizes:
    """Logarithms of sizes: those that come first, and larger ones afterwards; the last sizes come last."""

    ntt: tuple[int, ...]
    msm: tuple[int, ...]
    scalars: tuple[int, ...]
    """Multi-scalar multiplications with other scalars than full-width ones."""
    proofs: tuple[int, ...]
    later_ntt: tuple[int, ...]
    later_msm: tuple[int, ...]
    later_proofs: tuple[int, ...]
    last: tuple[int, ...]
    sanitizer: tuple[int, int, int]
    """Transform, multiplication, proof."""
    cpu: int
    """The CPU runs beside the GPU up to here."""
    rounds: int
    distinct: int
    """Logarithm of the number of different points; longer sums repeat them."""
    rate_seconds: float
    """A rate's kernel runs at least so long."""


SIZES = {
    "full": Sizes(
        ntt=(16, 18, 20, 22), msm=(16, 18, 20, 22), scalars=(20,), proofs=(16, 18, 20), later_ntt=(24,),
        later_msm=(24,), later_proofs=(22, 24), last=(26,), sanitizer=(10, 10, 8), cpu=22, rounds=5,
        distinct=16, rate_seconds=0.03,
    ),
    "tiny": Sizes(
        ntt=(4,), msm=(4,), scalars=(4,), proofs=(3,), later_ntt=(5,), later_msm=(5,), later_proofs=(),
        last=(6,), sanitizer=(4, 4, 3), cpu=4, rounds=1, distinct=3, rate_seconds=0.0,
    ),
}  # fmt: skip


def plan(sizes: Sizes) -> Iterator[Case]:
    """All cases; names do not depend on the plan that they are part of."""
    first, second = CURVES[0], CURVES[1:]
    yield from _rates(sizes)
    yield Case("tests", "tests", 150, least=30)
    for curve in (first, *second):
        for log in sizes.ntt:
            yield _ntt(sizes, curve, log)
        for log in sizes.msm:
            yield _msm(sizes, curve, "G1", log)
        if curve is first:
            for log in sizes.msm:
                yield _msm(sizes, curve, "G2", log)
        for log in sizes.scalars:
            for kind in (ZERO_ONE, SKEWED):
                yield _msm(sizes, curve, "G1", log, kind)
            yield _msm(sizes, curve, "G1", log, tables=False)
        for log in sizes.proofs:
            for circuit in (BITS, CHAIN):
                yield _proof(sizes, curve, circuit, log)
    for curve in (first, *second):
        for log in sizes.later_ntt:
            yield _ntt(sizes, curve, log)
        for log in sizes.later_msm:
            yield _msm(sizes, curve, "G1", log)
            if curve is first:
                yield _msm(sizes, curve, "G2", log)
    for log in sizes.later_proofs:
        for circuit in (BITS, CHAIN):
            yield _proof(sizes, first, circuit, log)
    for tool in TOOLS:
        yield Case(f"sanitizer {tool}", "sanitizer", 60, {"tool": tool})
    for log in sizes.last:
        yield _ntt(sizes, first, log)
        yield _msm(sizes, first, "G1", log)
    for curve in second:
        for log in (*sizes.msm, *sizes.later_msm):
            yield _msm(sizes, curve, "G2", log)


def _rates(sizes: Sizes) -> Iterator[Case]:
    for curve in CURVES:
        for name, rate in RATES.items():
            if rate.every_curve or curve is CURVES[0]:
                words = {"name": name, "curve": curve.name, "seconds": sizes.rate_seconds}
                full = f"rate {name} {curve.name}" if rate.every_curve else f"rate {name}"
                yield Case(full, "rate", 2, words)


def _ntt(sizes: Sizes, curve: CurveParams, log: int) -> Case:
    words = {"curve": curve.name, "log": log, "rounds": sizes.rounds, "cpu": log <= sizes.cpu}
    return Case(f"ntt {curve.name} 2^{log}", "ntt", 2 + 6e-7 * 2.0**log, words)


def _msm(
    sizes: Sizes, curve: CurveParams, group: str, log: int, scalars: str = FULL_WIDTH, tables: bool = True
) -> Case:
    words: dict[str, Any] = {"curve": curve.name, "group": group, "log": log, "scalars": scalars}
    words |= {"rounds": sizes.rounds, "distinct": sizes.distinct}
    words["cpu"] = tables and log <= sizes.cpu - (2 if group == "G2" else 0)
    words["tables"] = tables
    seconds = 2 + 2e-6 * CURVE_COST[curve.name] * GROUP_COST[group] * 2.0**log
    name = f"msm {group} {curve.name} 2^{log} {scalars}" + ("" if tables else " without tables")
    return Case(name, "msm", seconds, words)


def _proof(sizes: Sizes, curve: CurveParams, circuit: str, log: int) -> Case:
    words = {"curve": curve.name, "circuit": circuit, "log": log, "rounds": sizes.rounds}
    words["cpu"] = log <= sizes.cpu
    seconds = 6 + 1.6e-5 * CURVE_COST[curve.name] * 2.0**log
    return Case(f"proof {circuit} {curve.name} 2^{log}", "proof", seconds, words)
