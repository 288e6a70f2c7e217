"""What the project wants to reach, as data, and how far rows are from it.

Ratios are times faster than a peer, in CPU time with one thread each, of rows measured side by side. What is
said of a GPU is wall time, and was set for an NVIDIA H200: key on the device, proof verified.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from math import log2
from typing import Any, Literal

from .rows import OURS, Row

Kind = Literal["faster", "seconds", "threads", "growth", "share", "devices"]


@dataclass(frozen=True)
class Target:
    """One goal.

    Attributes:
        name: as the report shows it, and as notes refer to it.
        kind: ``faster``: at least ``goal`` times as fast as ``peer``; ``seconds``: at most ``goal``;
            ``threads``: two threads over one, at least ``goal``; ``growth``: from one size to the next the
            cost grows at most ``goal`` times as n log n does; ``share``: at least this part of the measured
            multiplier; ``devices``: at least ``goal`` times as fast as the CPU on all its threads.
        where: the fields that a row must have.
        dream: what would be better still.
        portable: the goal on the portable path; None where there is none of its own.
        ours: the mode of our rows.
    """

    name: str
    kind: Kind
    goal: float
    where: Mapping[str, Any]
    peer: str = ""
    dream: float | None = None
    portable: float | None = None
    ours: str = "warm"

    @property
    def of_gpu(self) -> bool:
        return self.where.get("device") == "cuda"


def _msm(group: str, log: int, curve: str = "bn254") -> dict[str, Any]:
    return {"operation": f"msm {group}", "curve": curve, "log": log, "scalars": "full width"}


def _ntt(log: int) -> dict[str, Any]:
    return {"operation": "ntt", "curve": "bn254", "log": log, "order": "natural"}


def _cosets(log: int) -> dict[str, Any]:
    return {"operation": "ntt to coset", "curve": "bn254", "log": log}


def _proof(circuit: str, protocol: str = "groth16") -> dict[str, Any]:
    return {"operation": f"{protocol} prove", "curve": "bn254", "circuit": circuit}


def _against_rapidsnark() -> Iterator[Target]:
    rows: list[tuple[str, float, float, dict[str, Any]]] = [
        ("MSM G1 2^16", 4, 8, _msm("G1", 16)),
        ("MSM G1 2^18", 4, 8, _msm("G1", 18)),
        ("MSM G2 2^16", 4, 8, _msm("G2", 16)),
        ("NTT 2^18", 4, 6, _ntt(18)),
        ("NTT 2^20", 4, 6, _ntt(20)),
        # The transforms of a proof: an inverse one, a shift and a forward one.
        ("change of cosets 2^18, two NTTs", 4, 6, _cosets(18)),
        ("change of cosets 2^20, two NTTs", 4, 6, _cosets(20)),
        ("proof, chain 2^18", 4, 8, _proof("chain 2^18")),
        ("proof, four SHA-256 blocks", 3, 6, _proof("sha256_4")),
    ]
    for name, goal, dream, where in rows:
        yield Target(name, "faster", goal, where, peer="rapidsnark", dream=dream, portable=1.0)


def _of_gates() -> Iterator[Target]:
    """PLONK and FFLONK, which nobody else proves with snarkjs's keys: whole processes beside snarkjs's."""
    for protocol, goal, dream in (("plonk", 40, 80), ("fflonk", 30, 60)):
        for circuit in ("poseidon2", "merkle20", "eddsa"):
            name, where = f"{protocol.upper()} proof, {circuit}", _proof(circuit, protocol)
            yield Target(name, "faster", goal, where, peer="snarkjs", dream=dream, ours="cold")
    merkle = {"operation": "plonk setup", "curve": "bn254", "circuit": "merkle20"}
    yield Target("PLONK set-up, merkle20", "faster", 20, merkle, peer="snarkjs", ours="cold")
    for protocol, proof, verification in (("plonk", 1.0, 2e-3), ("fflonk", 3.3, 1.5e-3)):
        name, chain = protocol.upper(), _proof("chain 2^16", protocol)
        yield Target(f"{name} proof, 2^16 gates, key loaded", "seconds", proof, chain)
        where = {"operation": f"{protocol} verify", "curve": "bn254", "batch": 1}
        yield Target(f"{name} verification, BN254", "seconds", verification, where)
        prove = {"operation": f"{protocol} prove"}
        yield Target(f"{name} growth against n log n, chain 2^12 to 2^20", "growth", 1.1, prove)


def _of_gpu() -> Iterator[Target]:
    gpu = {"device": "cuda"}
    seconds: list[tuple[str, float, float, dict[str, Any]]] = [
        ("MSM G1 2^20", 5e-3, 3e-3, _msm("G1", 20)),
        ("MSM G1 2^22", 16e-3, 10e-3, _msm("G1", 22)),
        ("MSM G1 2^24", 55e-3, 35e-3, _msm("G1", 24)),
        ("MSM G1 2^20, BLS12-381", 10e-3, 6e-3, _msm("G1", 20, "bls12-381")),
        ("MSM G2 2^20", 16e-3, 9e-3, _msm("G2", 20)),
        ("NTT 2^20", 0.35e-3, 0.2e-3, _ntt(20)),
        ("NTT 2^24", 6e-3, 4e-3, _ntt(24)),
        ("proof, 2^20 constraints, typical witness", 30e-3, 15e-3, _proof("bits 2^20")),
    ]
    for name, goal, dream, where in seconds:
        yield Target(f"GPU: {name}", "seconds", goal, {**where, **gpu}, dream=dream)
    for name, goal, where in (("MSM G1 2^22", 0.6, _msm("G1", 22)), ("NTT 2^22", 0.5, _ntt(22))):
        yield Target(f"GPU: part of the multiplier, {name}", "share", goal, {**where, **gpu}, dream=0.8)
    typical = {**_proof("bits 2^20"), **gpu}
    yield Target("GPU: that proof over the CPU's on all threads", "devices", 20, typical, dream=50)


TARGETS: tuple[Target, ...] = (
    *_against_rapidsnark(),
    Target(
        "proof, Merkle path of 32 levels",
        "faster",
        15,
        {**_proof("merkle 32"), "mode": "warm"},
        peer="snarkjs-warm",
        portable=1.0,
    ),
    Target("MSM G1 2^14, BLS12-381", "faster", 4, _msm("G1", 14, "bls12-381"), peer="arkworks", portable=1.0),
    Target(
        "verification, BN254",
        "seconds",
        2e-3,
        {"operation": "groth16 verify", "curve": "bn254", "batch": 1},
    ),
    Target(
        "verification, BLS12-381",
        "seconds",
        3e-3,
        {"operation": "groth16 verify", "curve": "bls12-381", "batch": 1},
    ),
    *(
        Target(
            f"each of a batch of 1,000, {name}",
            "seconds",
            0.3e-3,
            {"operation": "groth16 verify", "curve": curve, "batch": 1000},
        )
        for name, curve in (("BN254", "bn254"), ("BLS12-381", "bls12-381"))
    ),
    Target(
        "host's part of a warm proof on a GPU, 2^16, outside launches",
        "seconds",
        1e-3,
        {"operation": "groth16 prove, outside launches", "curve": "bn254", "circuit": "chain 2^16"},
    ),
    Target("two threads over one, whole proofs", "threads", 1.7, {"operation": "groth16 prove"}),
    Target("growth against n log n, chain 2^12 to 2^22", "growth", 1.1, {"operation": "groth16 prove"}),
    *_of_gates(),
    *_of_gpu(),
)
"""Growth is allowed a tenth for noise; between small sizes it is below 1 because of fixed costs."""


@dataclass(frozen=True)
class Outcome:
    """What rows say about a target.

    Attributes:
        variant: which of ours, as :func:`variant_name` writes it.
        value: the measured ratio or seconds.
        low, high: its quartiles, where there are some.
        goal: the target's, or that of the portable path.
        row: the row that the value is from.
    """

    target: Target
    variant: str
    value: float
    goal: float
    low: float | None = None
    high: float | None = None
    detail: str = ""
    row: Row = field(default_factory=dict)

    @property
    def met(self) -> bool:
        return self.share >= 1

    @property
    def share(self) -> float:
        """How much of the goal is reached: 1 or more where it is met."""
        return self._share_of(self.goal)

    @property
    def dreamt(self) -> bool:
        return self.target.dream is not None and self._share_of(self.target.dream) >= 1

    def _share_of(self, goal: float) -> float:
        wants_less = self.target.kind in ("seconds", "growth")
        return goal / self.value if wants_less else self.value / goal


def verdict(outcome: Outcome) -> str:
    """``met``, or by how much it is missed."""
    if outcome.met:
        return "met, dream too" if outcome.dreamt else "met"
    if outcome.target.kind in ("seconds", "growth"):
        return f"missed: {outcome.value / outcome.goal:.2f} times the goal"
    return f"missed by {100 * (1 - outcome.share):.0f} %"


def variant_name(row: Mapping[str, Any]) -> str:
    """``cpu ifma``, ``cpu portable``, ``cuda``; with ``, N threads`` where there may be more than one."""
    name = " ".join(str(row[key]) for key in ("device", "path") if row.get(key))
    threads = row.get("threads", 1) or 1
    return f"{name}, {threads} threads" if threads > 1 else name


def figure(row: Mapping[str, Any]) -> Row:
    """The seconds that count: CPU time of one thread on the CPU, else wall time; {} where there are none.

    One thread's CPU time is its wall time on a machine that nobody shares.
    """
    one = row.get("device", "cpu") == "cpu" and (row.get("threads") or 1) == 1
    first, second = ("cpu", "wall") if one else ("wall", "cpu")
    found: Row = row.get(first) or row.get(second) or {}
    return found


def matches(row: Mapping[str, Any], where: Mapping[str, Any]) -> bool:
    return all(row.get(name) == value for name, value in where.items())


def outcomes(rows: Iterable[Row]) -> dict[str, list[Outcome]]:
    """Target name -> what the newest rows say, an entry for each variant; empty where nothing is known."""
    rows = list(rows)
    evaluate = {
        "faster": _faster,
        "seconds": _seconds,
        "threads": _threads,
        "growth": _growth,
        "share": _share,
        "devices": _devices,
    }
    return {target.name: list(evaluate[target.kind](target, rows)) for target in TARGETS}


def _faster(target: Target, rows: list[Row]) -> Iterator[Outcome]:
    newest: dict[str, Outcome] = {}
    for row in rows:
        if row["implementation"] != target.peer or not matches(row, target.where):
            continue
        for entry in row.get("faster", []):
            ratio = entry.get("cpu") or {}
            other = entry.get("mode") != target.ours
            if other or (entry.get("threads") or 1) != 1 or "median" not in ratio:
                continue
            portable = entry.get("path") == "portable" and target.portable is not None
            newest[variant_name(entry)] = Outcome(
                target,
                variant_name(entry),
                ratio["median"],
                float(target.portable) if portable and target.portable is not None else target.goal,
                ratio.get("q1"),
                ratio.get("q3"),
                row=row,
            )
    yield from newest.values()


def _ours(target: Target, rows: list[Row]) -> list[Row]:
    return [
        row
        for row in rows
        if row["implementation"] == OURS
        and row.get("mode") == "warm"
        and matches(row, target.where)
        and figure(row)
    ]


def _seconds(target: Target, rows: list[Row]) -> Iterator[Outcome]:
    for row in {variant_name(row): row for row in _ours(target, rows)}.values():
        seconds = figure(row)
        yield Outcome(
            target,
            variant_name(row),
            seconds["median_s"],
            target.goal,
            seconds.get("q1_s"),
            seconds.get("q3_s"),
            row=row,
        )


def _share(target: Target, rows: list[Row]) -> Iterator[Outcome]:
    for row in {variant_name(row): row for row in _ours(target, rows) if "share" in row}.values():
        yield Outcome(target, variant_name(row), row["share"], target.goal, row=row)


_SAME = ("run", "operation", "curve", "circuit", "log", "scalars", "order")


def _devices(target: Target, rows: list[Row]) -> Iterator[Outcome]:
    """Against the CPU's row that was measured in turns with it."""
    for row in {variant_name(row): row for row in _ours(target, rows)}.values():
        same = {name: row.get(name) for name in _SAME}
        cpu = [r for r in rows if matches(r, {**same, "device": "cpu", "mode": "warm"}) and "wall" in r]
        if cpu and "wall" in row:
            value = cpu[-1]["wall"]["median_s"] / row["wall"]["median_s"]
            detail = f"against {variant_name(cpu[-1])}"
            yield Outcome(target, variant_name(row), value, target.goal, detail=detail, row=row)


def _threads(target: Target, rows: list[Row]) -> Iterator[Outcome]:
    """The largest circuit for which one run has both; small ones leave nothing to share."""
    newest: dict[tuple[Any, ...], dict[int, Row]] = {}
    for row in _ours(target, rows):
        if row.get("threads") in (1, 2) and "wall" in row and row.get("constraints", 0) > 1 << 14:
            case = tuple(row.get(key) for key in ("run", "device", "path", "curve", "circuit"))
            newest.setdefault(case, {})[row["threads"]] = row
    best: dict[str, Outcome] = {}
    for pair in newest.values():
        if len(pair) < 2:
            continue
        one, two = pair[1], pair[2]
        name = variant_name(one)
        held = best.get(name)
        if held is not None and held.row.get("constraints", 0) > one.get("constraints", 0):
            continue
        value = one["wall"]["median_s"] / two["wall"]["median_s"]
        best[name] = Outcome(
            target, name, value, target.goal, detail=f"{one['circuit']}, {one['curve']}", row=one
        )
    yield from best.values()


def chain_log(row: Mapping[str, Any]) -> int | None:
    """The logarithm in the name of a chain circuit."""
    name = str(row.get("circuit", ""))
    digits = name.removeprefix("chain 2^")
    return int(digits) if name.startswith("chain 2^") and digits.isdigit() else None


def _growth(target: Target, rows: list[Row]) -> Iterator[Outcome]:
    """The worst step between neighbouring sizes of chain circuits, on the machine of the newest row."""
    sizes: dict[tuple[str, Any], dict[int, Row]] = {}
    newest: dict[str, tuple[str, Any]] = {}
    for row in _ours(target, rows):
        log = chain_log(row)
        if log is not None and log >= 12 and row.get("curve") == "bn254" and (row.get("threads") or 1) == 1:
            newest[variant_name(row)] = machine = (variant_name(row), row.get("processor"))
            sizes.setdefault(machine, {})[log] = row
    for name, machine in newest.items():
        worst: Outcome | None = None
        for (small, a), (large, b) in pairwise(sorted(sizes[machine].items())):
            cost = figure(b)["median_s"] / figure(a)["median_s"]
            value = cost / (2.0 ** (large - small) * large / small)
            if worst is None or value > worst.value:
                worst = Outcome(
                    target, name, value, target.goal, detail=f"worst step: 2^{small} to 2^{large}", row=b
                )
        if worst is not None:
            yield worst


def n_log_n(anchor: tuple[float, float], sizes: Iterable[float]) -> list[float]:
    """The guide line through (n, seconds): seconds that grow as n log n."""
    n0, seconds = anchor
    return [seconds * n * log2(n) / (n0 * log2(n0)) for n in sizes]
