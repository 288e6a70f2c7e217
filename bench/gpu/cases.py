"""What ``make gpu`` measures, in its order, with the seconds that each case is predicted to take.

The order: a few rates, then figures of every operation at two sizes, within a minute; tests; the tools that
look for wrong accesses and races, at the smallest sizes; then everything else, what takes minutes last.

Predictions decide whether a case is still begun and when it counts as hanging. They are guesses for 16 CPUs
until rows of a GPU are there; what the cases of a kind took so far corrects them (:func:`corrected`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, NamedTuple

from gpuprover.curves import CURVES, CurveParams

from ..operations import FULL_WIDTH
from .rates import RATES, WIDE

ZERO_ONE, SKEWED = "0 and 1", "half equal"
CURVE_COST = {"bn254": 1.0, "bls12-381": 2.2}
GROUP_COST = {"G1": 1.0, "G2": 3.0}
"""Against BN254's G1, by multiplications: what predictions are scaled with."""
EARLY_TOOLS, LATE_TOOLS = ("memcheck", "racecheck"), ("synccheck",)
PROFILED = {"accumulate": "msm", "ntt_down": "ntt", "scatter_bins": "msm"}
"""Kernel that is profiled -> the operation that launches it."""
CHAIN, BITS = "chain", "bits"
"""Circuits: a witness of full width, and one of zeros and ones as most are."""
OF_GATES = {"plonk": 20e-6, "fflonk": 30e-6}
"""Systems whose circuits are gates -> seconds for each of a case, most of them the set-up's; over BN254."""
TUNINGS: dict[str, dict[str, Any]] = {
    **{f"{k} rounds of pairs": {"rounds": k} for k in (1, 2, 3)},
    "points ahead": {"ahead": True},
    "runs 2^14": {"runs": 1 << 14},
    "runs 2^16": {"runs": 1 << 16},
    "tile 4096": {"tile": 4096},
    "tile 16384": {"tile": 16384},
    "block 128": {"block": 128},
}
"""Name -> fields of :class:`gpuprover.cuda.msm_plan.Tuning` that sums are measured with, too."""
FIRST_RATES = ("wide multiplies", WIDE, "products Fq", "additions G1", "copy", "host to device")

TESTS_SECONDS = 120
"""The tests are cut off after so long; the last case goes on with what they left."""
TOOL_SECONDS = 60
REST = "tests, the rest"

RATES_CODE, CUDA_CODE, CPU_CODE = "rates", "cuda", "cpu"
"""Kinds of compiled code: the kernels of rates, all kernels, a step of the CPU's."""
CPU_STEPS = (
    "vectors", "sums G1", "combinations G1", "sums G2", "combinations G2", "pairings", "checks G1",
    "checks G2", "columns", "hash", "sponge", "multiples of Edwards points", "tapes", "encoded points",
    "compression",
)  # fmt: skip
"""Of :func:`gpuprover.cpu.warm.steps`, in the order in which they are wanted."""
PROOF_STEPS = CPU_STEPS[: CPU_STEPS.index("columns")]
"""Those that a Groth16 proof needs."""
CPU_OF = {
    "ntt": ("vectors",),
    "msm G1": ("sums G1", "combinations G1"),
    "msm G2": ("sums G2", "combinations G2"),
    "proof of gates": ("", "columns", "hash"),
}
"""Operation -> steps that checking it needs; any other needs those of a proof."""


class Need(NamedTuple):
    """Compiled code that a case needs. Of the CPU's the step is named; none stands for all."""

    kind: str
    curve: str
    step: str = ""


@dataclass(frozen=True, eq=False)
class Case:
    """One measurement: done once all its rows are written.

    Attributes:
        name: unique, and the same in every version.
        kind: who does it: a function of :mod:`.measures`, or ``tests``, ``sanitizer``, ``profile`` of
            :mod:`.checks`.
        seconds: predicted.
        arguments: the function's arguments.
        least: seconds that are worth beginning with, where what is done is kept although the rest is not.
        most: seconds after which it is cut off, whatever was predicted.
        needs: what has to be compiled before it begins.
    """

    name: str
    kind: str
    seconds: float
    arguments: Mapping[str, Any] = field(default_factory=dict)
    least: float = inf
    most: float = inf
    needs: tuple[Need, ...] = ()


@dataclass(frozen=True)
class Logs:
    """Logarithms of sizes, by operation; ``proofs`` are Groth16's, ``gates`` those of :data:`OF_GATES`."""

    ntt: tuple[int, ...] = ()
    g1: tuple[int, ...] = ()
    g2: tuple[int, ...] = ()
    proofs: tuple[int, ...] = ()
    gates: tuple[int, ...] = ()


@dataclass(frozen=True)
class Sizes:
    """What is measured when.

    Attributes:
        first: cases of the first curve, before the tests.
        then: cases of the first curve, after them.
        others: cases of other curves; their G2 comes at the very end.
        last: cases of the first curve, after everything but that.
        scalars: logarithms of multi-scalar multiplications with other scalars than full-width ones.
        sanitizer: logarithms of a transform, a multiplication, a proof.
        profiled: logarithm of what the profiler looks at.
        cpu: the CPU runs beside the GPU up to here.
        rounds: rounds of a measurement.
        distinct: logarithm of the number of different points; longer sums repeat them.
        rate_seconds: a rate's kernel runs at least so long.
    """

    first: Logs
    then: Logs
    others: Logs
    last: Logs
    scalars: tuple[int, ...]
    sanitizer: tuple[int, int, int]
    profiled: int
    cpu: int
    rounds: int
    distinct: int
    rate_seconds: float


SIZES = {
    "full": Sizes(
        first=Logs(ntt=(16, 20), g1=(16, 20), g2=(18, 20), proofs=(16, 20)),
        then=Logs(ntt=(18, 22, 24), g1=(18, 22, 24), g2=(16, 22, 24), proofs=(18, 22), gates=(16, 18, 20)),
        others=Logs(
            ntt=(16, 18, 20, 22, 24), g1=(16, 18, 20, 22, 24), g2=(16, 18, 20, 22, 24), proofs=(16, 18, 20),
            gates=(16, 18),
        ),
        last=Logs(ntt=(26,), g1=(26,), proofs=(24,)),
        scalars=(20,), sanitizer=(10, 10, 8), profiled=20, cpu=20, rounds=5, distinct=16, rate_seconds=0.03,
    ),
    "tiny": Sizes(
        first=Logs(ntt=(4,), g1=(4,), g2=(4,), proofs=(3,)),
        then=Logs(ntt=(5,), g1=(5,), g2=(5,), gates=(3,)),
        others=Logs(ntt=(4, 5), g1=(4, 5), g2=(4, 5), proofs=(3,)),
        last=Logs(ntt=(6,), g1=(6,)),
        scalars=(4,), sanitizer=(4, 4, 3), profiled=4, cpu=4, rounds=1, distinct=3, rate_seconds=0.0,
    ),
}  # fmt: skip


def plan(sizes: Sizes) -> Iterator[Case]:
    """All cases; names do not depend on the plan that they are part of."""
    first, second = CURVES[0], CURVES[1:]
    rates = {case.name: case for case in _rates(sizes)}
    early = [rates.pop(_rate_name(name, first)) for name in FIRST_RATES]
    yield from early
    yield from _operations(sizes, first, sizes.first)
    needs = tuple(need for curve in CURVES for need in _needs(curve))
    yield Case("tests", "tests", TESTS_SECONDS * 0.8, least=30, most=TESTS_SECONDS, needs=needs)
    for tool in EARLY_TOOLS:
        yield _tool(tool)
    yield from _other_sums(sizes, first)
    yield from _tunings(sizes, first)
    yield from _operations(sizes, first, sizes.then)
    yield from rates.values()
    for kernel, operation in PROFILED.items():
        words = {"kernel": kernel, "operation": operation, "size": sizes.profiled}
        needs = _needs(first, "ntt" if operation == "ntt" else "msm G1")
        yield Case(f"profile {kernel}", "profile", 20, words, most=TOOL_SECONDS, needs=needs)
    for curve in second:
        yield from _operations(sizes, curve, replace(sizes.others, g2=()))
        yield from _other_sums(sizes, curve)
    for tool in LATE_TOOLS:
        yield _tool(tool)
    yield from _operations(sizes, first, sizes.last)
    for curve in second:
        yield from _operations(sizes, curve, Logs(g2=sizes.others.g2))
    yield Case(REST, "tests", 60, least=30, needs=tuple(n for c in CURVES for n in _needs(c)))


def corrected(case: Case, done: Iterable[tuple[Case, float]]) -> float:
    """Seconds that ``case`` will take, by what cases of its kind took, as (case, seconds)."""
    same = [(other.seconds, took) for other, took in done if other.kind == case.kind]
    if not same or case.most < inf:
        return case.seconds
    factor = sum(took for _, took in same) / sum(predicted for predicted, _ in same)
    return case.seconds * min(4.0, max(0.25, factor))


def _needs(curve: CurveParams, operation: str = "") -> tuple[Need, ...]:
    host = [Need(CPU_CODE, curve.name, step) for step in CPU_OF.get(operation, ("",))]
    return Need(CUDA_CODE, curve.name), *host


def _rate_name(name: str, curve: CurveParams) -> str:
    return f"rate {name} {curve.name}" if RATES[name].every_curve else f"rate {name}"


def _rates(sizes: Sizes) -> Iterator[Case]:
    for curve in CURVES:
        for name, rate in RATES.items():
            if rate.every_curve or curve is CURVES[0]:
                words = {"name": name, "curve": curve.name, "seconds": sizes.rate_seconds}
                needs = (Need(CUDA_CODE if rate.of_sums else RATES_CODE, curve.name),)
                yield Case(_rate_name(name, curve), "rate", 1.5, words, needs=needs)


def _tool(name: str) -> Case:
    words = {"tool": name}
    return Case(f"sanitizer {name}", "sanitizer", 30, words, most=TOOL_SECONDS, needs=_needs(CURVES[0]))


def _operations(sizes: Sizes, curve: CurveParams, logs: Logs) -> Iterator[Case]:
    for log in logs.ntt:
        yield _ntt(sizes, curve, log)
    for log in logs.g1:
        yield _msm(sizes, curve, "G1", log)
    for log in logs.g2:
        yield _msm(sizes, curve, "G2", log)
    for log in logs.proofs:
        for circuit in (BITS, CHAIN):
            yield _proof(sizes, curve, circuit, log)
    for log in logs.gates:
        for protocol in OF_GATES:
            # snarkjs's FFLONK is of one curve.
            if protocol != "fflonk" or curve is CURVES[0]:
                yield _proof_of_gates(sizes, curve, protocol, log)


def _other_sums(sizes: Sizes, curve: CurveParams) -> Iterator[Case]:
    for log in sizes.scalars:
        for kind in (ZERO_ONE, SKEWED):
            yield _msm(sizes, curve, "G1", log, kind)
        yield _msm(sizes, curve, "G1", log, tables=False)


def _tunings(sizes: Sizes, curve: CurveParams) -> Iterator[Case]:
    for log in sizes.scalars:
        for name, changes in TUNINGS.items():
            for group in ("G1", "G2") if "rounds" in changes else ("G1",):
                yield _msm(sizes, curve, group, log, tuning=name)


def _ntt(sizes: Sizes, curve: CurveParams, log: int) -> Case:
    words = {"curve": curve.name, "log": log, "rounds": sizes.rounds, "cpu": log <= sizes.cpu}
    return Case(f"ntt {curve.name} 2^{log}", "ntt", 1.5 + 2e-7 * 2.0**log, words, needs=_needs(curve, "ntt"))


def _msm(
    sizes: Sizes,
    curve: CurveParams,
    group: str,
    log: int,
    scalars: str = FULL_WIDTH,
    tables: bool = True,
    tuning: str = "",
) -> Case:
    words: dict[str, Any] = {"curve": curve.name, "group": group, "log": log, "scalars": scalars}
    words |= {"rounds": sizes.rounds, "distinct": sizes.distinct}
    words["cpu"] = tables and not tuning and log <= sizes.cpu - (2 if group == "G2" else 0)
    words |= {"tables": tables, "tuning": tuning}
    seconds = 2.5 + 6e-7 * CURVE_COST[curve.name] * GROUP_COST[group] * 2.0**log
    name = f"msm {group} {curve.name} 2^{log}"
    name += f", {tuning}" if tuning else f" {scalars}" if tables else ", no tables"
    return Case(name, "msm", seconds, words, needs=_needs(curve, f"msm {group}"))


def _proof(sizes: Sizes, curve: CurveParams, circuit: str, log: int) -> Case:
    words = {"curve": curve.name, "circuit": circuit, "log": log, "rounds": sizes.rounds}
    words["cpu"] = log <= sizes.cpu
    seconds = 4 + 7e-6 * CURVE_COST[curve.name] * 2.0**log
    return Case(f"proof {circuit} {curve.name} 2^{log}", "proof", seconds, words, needs=_needs(curve))


def _proof_of_gates(sizes: Sizes, curve: CurveParams, protocol: str, log: int) -> Case:
    words = {"curve": curve.name, "circuit": CHAIN, "log": log, "rounds": sizes.rounds, "protocol": protocol}
    words["cpu"] = log <= sizes.cpu
    seconds = 4 + OF_GATES[protocol] * CURVE_COST[curve.name] * 2.0**log
    name = f"proof {protocol} {curve.name} 2^{log}"
    return Case(name, "proof", seconds, words, needs=_needs(curve, "proof of gates"))
