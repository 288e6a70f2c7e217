"""What proofs take on this machine's devices: measured and kept, or else the figures of other machines.

Seconds are a table over the number of constraints: linear between its rows, flat below the first, beyond the
last along the line through the last two. A row splits them into a part that runs on one thread and a part
that all share. They are of circuits whose witness has values of full width, which is the worst case: most
circuits take less, and alike on every device.

``gpuprover bench --calibrate`` measures and writes ``calibration.json`` into the cache folder, with an entry
for each kind of work on each processor or GPU and code path; one of another version of gpuprover is not used.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from gpuprover.curves import CurveParams
from gpuprover.devices import cpu_path_name, found_gpus, resolve_device
from gpuprover.errors import DeviceError, InvalidInput, ProverError
from gpuprover.folders import cache_root, read_file, write_file
from gpuprover.formats.json_files import dump_json, parse_json
from gpuprover.machine import processor_name
from gpuprover.scheduler import DeviceInfo
from gpuprover.version import VERSION

FORMAT = 1
FILE = "calibration.json"

Row = tuple[int, float, float]
"""Constraints; seconds on one thread; seconds of work that threads share."""


def work_name(protocol: str, curve: CurveParams) -> str:
    """The name under which times of a protocol's proofs over a curve are kept."""
    return f"{protocol} {curve.name}"


def row(constraints: int, one: float, many: float, threads: int) -> Row:
    """From seconds with one thread and with ``threads``."""
    if threads < 2:
        return constraints, 0.0, one
    shared = min(one, max(0.0, (one - many) * threads / (threads - 1)))
    return constraints, one - shared, shared


@dataclass(frozen=True)
class Entry:
    """Times of one kind of work on one kind of processor or GPU.

    Attributes:
        kind, model, path: the fields of :class:`DeviceInfo` that times are kept for.
        work: the kind of work, as :func:`work_name` names it.
        version: gpuprover's version; empty for figures of other machines.
        rows: times of whole proofs, with the key where it is needed; by constraints.
        parts: times of parts of a proof, by name.
        origin: where the figures come from.
    """

    kind: str
    model: str
    path: str
    work: str
    rows: tuple[Row, ...]
    parts: Mapping[str, tuple[Row, ...]] = field(default_factory=dict)
    version: str = ""
    origin: str = ""

    def seconds(self, constraints: int, threads: int, part: str | None = None) -> float:
        """Infinite for a part that nobody measured."""
        rows = self.rows if part is None else self.parts.get(part, ())
        if not rows:
            return float("inf")
        return _at(rows, constraints, 1) + _at(rows, constraints, 2) / threads


def _at(rows: Sequence[Row], constraints: int, column: int) -> float:
    if constraints <= rows[0][0] or len(rows) == 1:
        return rows[0][column] * max(1.0, constraints / rows[0][0] if len(rows) == 1 else 1.0)
    low = min(bisect_right([r[0] for r in rows], constraints), len(rows) - 1) - 1
    (x0, y0), (x1, y1) = ((rows[i][0], rows[i][column]) for i in (low, low + 1))
    value = y0 + (y1 - y0) * (constraints - x0) / (x1 - x0)
    return value if constraints <= x1 else max(y1, value)


# Figures of other machines ----------------------------------------------------------------

_BN254, _BLS12_381 = "groth16 bn254", "groth16 bls12-381"
_CPU = "bench/results/cpu.jsonl, an AMD EPYC (Zen 5)"
_GPU = "a prediction: what another prover publishes for an RTX 4090"
_COSTLIER = 2.25
"""BLS12-381 against BN254 on a GPU: wide multiplications of an addition in G1, 2,884 against 1,284."""
_PORTABLE_BLS12_381 = 4.5
"""The portable path against IFMA: sums in G2 over BLS12-381, of 2^12 to 2^16, in cpu.jsonl."""


def _times(*figures: tuple[int, float, float]) -> tuple[Row, ...]:
    """Rows from (constraints, seconds with one thread, with two)."""
    return tuple(row(n, one, two, 2) for n, one, two in figures)


def _scaled(rows: Iterable[Row], factor: float) -> tuple[Row, ...]:
    return tuple((n, alone * factor, shared * factor) for n, alone, shared in rows)


_IFMA_BLS12_381 = _times(
    (28, 0.005, 0.005),
    (3896, 0.0869, 0.0506),
    (16184, 0.268, 0.157),
    (65336, 0.842, 0.480),
)
_PUBLISHED = (
    (100_000, 0.037, 0.0),
    (400_000, 0.067, 0.0),
    (800_000, 0.100, 0.0),
    (1_600_000, 0.187, 0.0),
    (3_200_000, 0.366, 0.0),
)
_GATES = "bench/results/plonk.jsonl, one thread of a CPU without IFMA"
_GATES_IFMA = f"a prediction: {_GATES}, and Groth16's gain by IFMA"
_GATES_BLS12_381 = f"a prediction: {_GATES}, and what an addition in G1 takes"
_IFMA = 0.25
"""IFMA against the portable path: proofs of Groth16 over BN254, of 2^13 to 2^16, in cpu.jsonl."""
_MULTIPLES_OF_GROTH16 = {"plonk": 2.0, "fflonk": 5.0}
"""Times of Groth16's proofs of as many constraints on a GPU: predictions of kernels/README.md, at 2^20."""


def _of_gates(*figures: tuple[int, float]) -> tuple[Row, ...]:
    """Rows from (gates, seconds with one thread), of which threads share as much as of Groth16's."""
    return _times(*((n, one, 0.55 * one) for n, one in figures))


_PORTABLE_GATES = {
    "plonk": _of_gates((597, 0.241), (1446, 0.360), (3898, 0.578), (12061, 1.71)),
    "fflonk": _of_gates((597, 0.334), (1446, 0.606), (3898, 1.05), (12061, 3.71)),
}


def _entries_of_gates() -> Iterator[Entry]:
    for protocol, rows in _PORTABLE_GATES.items():
        bn254 = f"{protocol} bn254"
        yield Entry("cpu", "", "portable", bn254, rows, origin=_GATES)
        yield Entry("cpu", "", "ifma", bn254, _scaled(rows, _IFMA), origin=_GATES_IFMA)
        published = _scaled(_PUBLISHED, _MULTIPLES_OF_GROTH16[protocol])
        yield Entry("cuda", "", "", bn254, published, origin=f"{_GPU}, and predictions of ours")
    rows, work = _scaled(_PORTABLE_GATES["plonk"], _COSTLIER), "plonk bls12-381"
    yield Entry("cpu", "", "portable", work, rows, origin=_GATES_BLS12_381)
    yield Entry("cpu", "", "ifma", work, _scaled(rows, _IFMA), origin=_GATES_BLS12_381)
    published = _scaled(_PUBLISHED, _MULTIPLES_OF_GROTH16["plonk"] * _COSTLIER)
    yield Entry("cuda", "", "", work, published, origin=f"{_GPU}, and predictions of ours")


DEFAULTS = (
    Entry(
        "cpu",
        "",
        "ifma",
        _BN254,
        _times(
            (28, 0.004, 0.004),
            (3896, 0.0439, 0.0324),
            (16184, 0.0959, 0.0628),
            (65336, 0.335, 0.185),
            (262141, 1.19, 0.620),
            (1048573, 5.00, 2.62),
            (4194301, 20.0, 10.5),
        ),
        origin=_CPU,
    ),
    Entry(
        "cpu",
        "",
        "portable",
        _BN254,
        _times(
            (28, 0.006, 0.006),
            (3896, 0.126, 0.0747),
            (16184, 0.461, 0.236),
            (65336, 1.66, 0.870),
            (262141, 6.05, 3.20),
        ),
        origin=_CPU,
    ),
    Entry("cpu", "", "ifma", _BLS12_381, _IFMA_BLS12_381, origin=_CPU),
    Entry("cpu", "", "portable", _BLS12_381, _scaled(_IFMA_BLS12_381, _PORTABLE_BLS12_381), origin=_CPU),
    Entry("cuda", "", "", _BN254, _PUBLISHED, origin=_GPU),
    Entry("cuda", "", "", _BLS12_381, _scaled(_PUBLISHED, _COSTLIER), origin=_GPU),
    *_entries_of_gates(),
)
"""Entries by kind, path and work, for every model. The CPU's of Groth16: chains of cpu.jsonl, rounded and
smoothed, and a first row from what the phases beside the sums take there."""


# The table ----------------------------------------------------------------------------------


class Calibration:
    """Predicted seconds (:class:`gpuprover.scheduler.Times`), from what is kept and else from the defaults.

    Attributes:
        entries: what is kept of this version.
        problem: why nothing is kept, in words; empty if something is.
    """

    def __init__(self, entries: Iterable[Entry] = (), problem: str = "") -> None:
        self.entries, self.problem = tuple(entries), problem
        self._kept = {(e.kind, e.model, e.path, e.work): e for e in self.entries}
        self._defaults = {(e.kind, e.path, e.work): e for e in DEFAULTS}

    def entry(self, work: str, device: DeviceInfo) -> Entry:
        """The times that stand for this work there."""
        kept = self._kept.get((device.kind, device.model, device.path, work))
        if kept is not None:
            return kept
        path = device.path if device.kind == "cpu" else ""
        found = self._defaults.get((device.kind, path, work))
        if found is not None:
            return found
        # Of a protocol that nobody has measured: another's figures, over the same curve if there are such.
        protocol, curve = _BN254.partition(" ")[0], work.rpartition(" ")[2]
        nearest = self._defaults.get((device.kind, path, f"{protocol} {curve}"))
        nearest = nearest or self._defaults[device.kind, path, _BN254]
        return replace(nearest, work=work, origin=f"{nearest.origin}; of {protocol}, not of this work")

    def seconds(
        self, work: str, device: DeviceInfo, constraints: int, threads: int, part: str | None = None
    ) -> float:
        return self.entry(work, device).seconds(constraints, threads, part)

    def measured(self, work: str, device: DeviceInfo) -> bool:
        return (device.kind, device.model, device.path, work) in self._kept


def path() -> Path:
    """Where calibrations are kept."""
    return cache_root() / FILE


def load(warn: Callable[[str], None] | None = None) -> Calibration:
    """What is kept; a file that is damaged, or others may write, counts as none, and ``warn`` is told."""
    file = path()
    try:
        entries = _parse(parse_json(read_file(file), str(file)))
    except FileNotFoundError:
        return Calibration(problem="nothing is measured on this machine: run `gpuprover bench --calibrate`")
    except (ProverError, OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        why = error.message if isinstance(error, ProverError) else "it is damaged"
        if isinstance(error, OSError):
            why = error.strerror or str(error)
        problem = f"{file}: not used: {why}; run `gpuprover bench --calibrate`"
        if warn is not None:
            warn(problem)
        return Calibration(problem=problem)
    current = [entry for entry in entries if entry.version == VERSION]
    old = f"{file}: measured with another version: run `gpuprover bench --calibrate`"
    return Calibration(current, "" if current else old)


def keep(entries: Iterable[Entry]) -> Path:
    """Adds entries to the file, in place of those of the same work and device.

    Raises:
        InvalidInput: it cannot be written.
    """
    kept = {(e.kind, e.model, e.path, e.work): e for e in (*load().entries, *entries)}
    file = path()
    document = {"format": FORMAT, "entries": [asdict(entry) for entry in kept.values()]}
    try:
        write_file(file, dump_json(document))
    except OSError as error:
        raise InvalidInput(f"{file}: cannot be written: {error.strerror or error}") from None
    return file


def _parse(document: Any) -> list[Entry]:
    """Raises one of what :func:`load` catches for anything that :func:`keep` would not write."""
    if document["format"] != FORMAT:
        raise ValueError

    def rows(values: Any) -> tuple[Row, ...]:
        found = tuple((int(n), float(alone), float(shared)) for n, alone, shared in values)
        if not found or any(not (0 <= x < 1e9 and 0 <= y < 1e9) for _, x, y in found):
            raise ValueError
        if found[0][0] < 1 or any(a[0] >= b[0] for a, b in pairwise(found)):
            raise ValueError
        return found

    return [
        Entry(
            kind=str(e["kind"]),
            model=str(e["model"]),
            path=str(e["path"]),
            work=str(e["work"]),
            rows=rows(e["rows"]),
            parts={str(name): rows(values) for name, values in e["parts"].items()},
            version=str(e["version"]),
            origin=str(e["origin"]),
        )
        for e in document["entries"]
    ]


# The machine ----------------------------------------------------------------------------------


def devices(threads: int, memory: int | None = None) -> list[DeviceInfo]:
    """The CPU, with what it may use, and the GPUs; those that cannot be used with the reason."""
    found = [DeviceInfo("cpu", "cpu", processor_name(), cpu_path_name(), threads, memory)]
    for gpu in found_gpus():
        problem = "; ".join(filter(None, (gpu.problem, gpu.advice)))
        free = gpu.total if gpu.free is None else gpu.free
        record = DeviceInfo(
            gpu.name, "cuda", gpu.model, gpu.architecture, memory=free, problem=problem, uuid=gpu.uuid
        )
        found.append(record)
    if len(found) == 1:
        try:
            resolve_device("cuda")
        except DeviceError as error:
            found.append(DeviceInfo("cuda", "cuda", problem=error.message))
    return found


def _figure(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


def describe(calibration: Calibration, machine: Sequence[DeviceInfo], works: Sequence[str]) -> list[str]:
    """A line for each device and work: from when on it is the fastest, and where its times come from."""
    lines = [calibration.problem] if calibration.problem else []
    for device in machine:
        for work in () if device.problem else works:
            entry = calibration.entry(work, device)
            times = ", ".join(
                f"2^{log} {_figure(entry.seconds(1 << log, max(1, device.threads)))}"
                for log in (10, 13, 16, 20)
            )
            lines.append(f"{device.name}, {work}: {times} ({entry.origin})")
    return lines
