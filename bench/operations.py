"""Multiplications, transforms, columns and multi-scalar multiplications, on every device through its backend.

The scalars' kinds show what a witness's shape costs: zeros and ones, small values, and a skew that
breaks bucket methods which share the work by buckets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from gpuprover.backend import Backend
from gpuprover.columns import column, compile_formula
from gpuprover.curves import CurveParams, Group
from gpuprover.devices import open_backend
from gpuprover.job import Job
from gpuprover.limbs import Words, generator
from gpuprover.polynomial import Coset, Direction, Domain, Order

from .measure import Contestant, Failed, Sample, Variant, fastest, measure
from .peers import Arkworks, InnerPeer, Missing
from .rows import OURS, SEED, Row, Rows

Call = Callable[[], Any]

FULL_WIDTH = "full width"
LOG_FIELD = 14
"""Field multiplications are timed on vectors of 2^14: three of them fit a second-level cache of 2 MiB."""


def full_width(curve: CurveParams, n: int, rng: np.random.Generator) -> Words:
    """Scalars below r, uniform but for the values above the last multiple of the top word."""
    words = rng.integers(0, 1 << 64, (n, curve.scalar.limbs), dtype=np.uint64)
    top = curve.r >> 64 * (curve.scalar.limbs - 1)
    words[:, -1] = rng.integers(0, top, n, dtype=np.uint64)
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


KINDS: dict[str, Callable[[CurveParams, int, np.random.Generator], Words]] = {
    FULL_WIDTH: full_width,
    "32 bits": _below(32),
    "0 and 1": _below(1),
    "half equal": _half_equal,
}

ORDERS = {"natural": Order.NATURAL_TO_NATURAL, "reversed": Order.NATURAL_TO_REVERSED}
"""Orders of a forward transform's output."""


CELLS = ("qL", "a", "qR", "b", "qM", "qO", "c", "qC")
_qL, _a, _qR, _b, _qM, _qO, _c, _qC = map(column, CELLS)
GATE = compile_formula([_qL * _a + _qR * _b + _qM * (_a * _b) + _qO * _c + _qC])
"""PLONK's gate: five products and four sums over eight columns."""
POINT = 3**150
"""Where polynomials are evaluated, below r."""
COLUMNS = ("gate", "running product", "division", "value")
"""What is measured of columns: GATE on all rows, a grand product, by X − POINT, at POINT."""


def _ours(case: str, fields: Row, variant: Variant, call: Call) -> Contestant:
    def run() -> Sample:
        with variant.chosen():
            return fastest(call)

    return Contestant(case, {"implementation": OURS, "mode": "warm", **variant.fields, **fields}, run)


class _Operations:
    """The data of one curve at its largest size, which smaller sizes take the start of, and its cases."""

    def __init__(self, curve: CurveParams, variants: Sequence[Variant], logs: Sequence[int]) -> None:
        self.curve, self.variants, self.logs = curve, variants, logs
        self.backends: dict[Variant, Backend] = {}
        for variant in variants:
            with variant.chosen():
                self.backends[variant] = open_backend(variant.device, curve, Job(threads=variant.threads))
        self._rng = np.random.default_rng(SEED)

    def _contest(self, operation: str, fields: Row, calls: Mapping[Variant, Call]) -> list[Contestant]:
        shape = {"operation": operation, "curve": self.curve.name, **fields}
        case = repr(sorted(shape.items(), key=str))
        return [_ours(case, shape, variant, call) for variant, call in calls.items()]

    def field(self) -> Iterator[list[Contestant]]:
        n = 1 << LOG_FIELD
        words = full_width(self.curve, n, self._rng)
        vectors = {v: b.upload(words) for v, b in self.backends.items()}
        calls = {v: partial(b.mul, vectors[v], vectors[v]) for v, b in self.backends.items()}
        yield self._contest("field mul", {"log": LOG_FIELD, "count": n}, calls)

    def ntt(self) -> Iterator[list[Contestant]]:
        values = full_width(self.curve, 1 << max(self.logs), self._rng)
        for log in self.logs:
            domain = Domain(self.curve.scalar, log)
            x = {v: b.upload(values[: domain.size]) for v, b in self.backends.items()}
            for name, order in ORDERS.items():
                forward = (domain, Direction.FORWARD, order)
                calls = {v: partial(b.ntt, x[v], *forward) for v, b in self.backends.items()}
                yield self._contest("ntt", {"log": log, "order": name}, calls)
            # From evaluations on one coset to those on another: an inverse and a forward transform.
            shift = (domain, Coset.ODD)
            calls = {v: partial(b.to_coset_in_place, [x[v]], *shift) for v, b in self.backends.items()}
            yield self._contest("ntt to coset", {"log": log}, calls)

    def columns(self) -> Iterator[list[Contestant]]:
        most = max(self.logs)
        values = [full_width(self.curve, 1 << most, self._rng) for _ in CELLS]
        for log in self.logs:
            n = 1 << log
            cells = {
                v: {name: b.upload(words[:n]) for name, words in zip(CELLS, values, strict=True)}
                for v, b in self.backends.items()
            }
            cases: dict[str, dict[Variant, Call]] = {name: {} for name in COLUMNS}
            for v, b in self.backends.items():
                x, y = cells[v]["a"], cells[v]["b"]
                calls: tuple[Call, ...] = (
                    partial(b.evaluate, GATE, cells[v]),
                    partial(b.running_product, x, y),
                    partial(b.divide, x, POINT),
                    partial(b.values_at, [(x, POINT)]),
                )
                for name, call in zip(COLUMNS, calls, strict=True):
                    cases[name][v] = call
            for name in COLUMNS:
                yield self._contest(f"columns {name}", {"log": log, "count": n}, cases[name])

    def msm(self, arkworks: Arkworks | None) -> Iterator[list[Contestant]]:
        largest = 1 << max(self.logs)
        kinds = {name: make(self.curve, largest, self._rng) for name, make in KINDS.items()}
        maker = next(iter(self.backends.values()))
        for group in Group:
            scalars = full_width(self.curve, largest, self._rng)
            points = maker.fixed_base_mul(group, generator(self.curve, group), scalars)
            for log in self.logs:
                bases = {v: b.prepare_bases(group, points[: 1 << log]) for v, b in self.backends.items()}
                for kind, words in kinds.items():
                    scalars = words[: 1 << log]
                    calls = {v: partial(b.msm, bases[v], scalars) for v, b in self.backends.items()}
                    contest = self._contest(f"msm {group.value}", {"log": log, "scalars": kind}, calls)
                    if arkworks is not None and kind == FULL_WIDTH and arkworks.takes(self.curve, group, log):
                        run = arkworks.msm(points[: 1 << log], scalars, calls[self.variants[0]]())
                        contest.append(_beside(contest[0], Arkworks.name, run))
                    yield contest


_SHAPE = ("operation", "curve", "log", "order", "scalars")


def _like_peers(fields: Row) -> tuple[object, ...]:
    """What an inner peer's line has to name to be the same work as a row of ours."""
    return (
        str(fields["operation"]).lower(),
        fields["curve"],
        fields["log"],
        fields.get("scalars", FULL_WIDTH),
        fields.get("order", "natural"),
    )


def measure_operations(
    curve: CurveParams,
    variants: Sequence[Variant],
    logs: Sequence[int],
    only: Sequence[str],
    rounds: int,
    rows: Rows,
    job: Job,
    *,
    arkworks: Arkworks | None = None,
    inner: Sequence[InnerPeer] = (),
) -> None:
    """Adds rows of the operations named in ``only`` (``field``, ``ntt``, ``columns``, ``msm``)."""
    work = _Operations(curve, variants, logs)
    makers: dict[str, tuple[int, Callable[[], Iterator[list[Contestant]]]]]
    makers = {
        "field": (1, work.field),
        "ntt": ((len(ORDERS) + 1) * len(logs), work.ntt),
        "columns": (len(COLUMNS) * len(logs), work.columns),
        "msm": (len(Group) * len(KINDS) * len(logs), partial(work.msm, arkworks)),
    }
    for name in (name for name in makers if name in only):
        count, make = makers[name]
        with job.phase(f"{name}, {curve.name}"):
            for i, contest in enumerate(make()):
                contest += _inner_contestants(contest[0], inner, job)
                with job.subphase(i, count):
                    measure(contest, rounds, rows, job)


def _beside(ours: Contestant, name: str, run: Callable[[], Sample]) -> Contestant:
    """A peer that does the same work as ``ours``."""
    shape = {key: value for key, value in ours.fields.items() if key in _SHAPE}
    return Contestant(ours.case, {"implementation": name, "mode": "warm", **shape}, run)


def _inner_contestants(ours: Contestant, peers: Sequence[InnerPeer], job: Job) -> Iterator[Contestant]:
    """Those of the peers that measure what ``ours`` does."""
    for peer in peers:
        contestant = _beside(ours, peer.name, _never)
        try:
            contestant.run = peer.runner(_like_peers(ours.fields), job.check)
        except Missing:
            continue
        except Failed as failure:
            contestant.failure = str(failure)
        yield contestant


def _never() -> Sample:
    raise AssertionError("a contestant that has failed does not run")
