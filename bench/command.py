"""``gpuprover bench`` and ``gpuprover bench report``: arguments in, rows, pictures and a report out."""

from __future__ import annotations

import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuprover.api import load_key
from gpuprover.curves import CURVES, CurveParams, curve_by_name
from gpuprover.devices import device_names, open_backend, resolve_device
from gpuprover.errors import EXIT_CANCELLED, EXIT_OK, Cancelled, DeviceError, InvalidInput
from gpuprover.formats.ptau import read_ptau
from gpuprover.formats.r1cs import read_r1cs
from gpuprover.formats.wtns import read_witness
from gpuprover.job import Job
from gpuprover.settings import seconds, whole_number
from gpuprover.systems.system import ProofSystem, names, system_asked_for, system_named

from . import calibrate, pictures
from .host import measure_host
from .measure import Variant
from .operations import measure_operations
from .peers import InnerPeer, named_command, peers_of
from .proofs import Files, ladder, measure_import, measure_proofs, measure_verification, named_files
from .report import read_notes, readme, relative, summary, write_report
from .rows import OURS, ROOT, Row, Rows, default_output, in_checkout, read_rows
from .setups import measure_setups, named_circuit

if TYPE_CHECKING:
    from gpuprover.cli.context import Context

PARTS = ("field", "ntt", "columns", "msm", "prove", "verify", "host", "import")
LOGS, QUICK_LOGS = (12, 14, 16, 18), (10, 12)
MERKLE, QUICK_MERKLE = (32,), ()
ROUNDS, QUICK_ROUNDS = 5, 3
BATCH, QUICK_BATCH = 1000, 100
PEER_LIMIT = 600.0
NOTES = ROOT / "bench" / "notes.md"
"""Read for a report where no other notes are named."""


def _list(text: str | None, default: Sequence[str]) -> list[str]:
    if text is None:
        return list(default)
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(text: str | None, default: Sequence[int], option: str, low: int, high: int) -> list[int]:
    given = _list(text, [str(n) for n in default])
    return sorted({whole_number(part, option, low=low, high=high) for part in given})


def _parts(text: str | None) -> list[str]:
    parts = _list(text, PARTS)
    for part in parts:
        if part not in PARTS:
            raise InvalidInput(f"--only: expected some of {','.join(PARTS)}, found {part[:40]!r}")
    return parts


def _curves(text: str | None, quick: bool) -> list[CurveParams]:
    default = [CURVES[0].name] if quick else [curve.name for curve in CURVES]
    known = [curve.name for curve in CURVES]
    for name in (names := _list(text, default)):
        if name not in known:
            raise InvalidInput(f"--curves: expected some of {','.join(known)}, found {name[:40]!r}")
    return [curve_by_name(name) for name in names]


def _systems(text: str | None, default: Sequence[str]) -> list[ProofSystem]:
    """Those that are named. Raises InvalidInput for one whose keys cannot be made here."""
    found = [system_asked_for(name, "--protocols") for name in _list(text, default)]
    for system in found:
        if not system.sets_up:
            raise InvalidInput(f"--protocols: keys of {system.name} are made from no circuit of circom's")
    return found


def _set_up() -> list[str]:
    return [name for name in names() if system_named(name).sets_up]


def _devices(context: Context, skip: Callable[[Row, str], None]) -> list[str]:
    """The devices to measure: the one that was asked for, else all that open.

    Raises:
        DeviceError, InvalidInput: one was asked for by name and cannot be had.
    """
    asked = context.settings.device
    if asked != "auto":
        resolve_device(asked)
        return [asked]
    found = []
    for name in device_names():
        if name == "auto":
            continue
        try:
            open_backend(name, CURVES[0], Job(threads=1))
        except DeviceError as error:
            skip({"operation": "all", "implementation": OURS, "device": name}, error.message)
        else:
            found.append(name)
    return found


def _variants(devices: Sequence[str], paths: str | None, threads: int) -> list[Variant]:
    """One thread of every device and CPU path; then as many as there may be.

    Raises:
        InvalidInput, DeviceError: no such path, or this CPU lacks what it needs.
    """
    from gpuprover.cpu.path import cpu_path

    variants = []
    for device in devices:
        for name in _list(paths, [cpu_path().name]) if device == "cpu" else [None]:
            variant = Variant(device, name)
            with variant.chosen():
                cpu_path()  # refuses what this machine cannot do
            variants.append(variant)
    if threads > 1:
        variants += [Variant(v.device, v.path, threads) for v in variants if v.device == "cpu"]
    return variants


@contextmanager
def _work_folder(named: str | None) -> Iterator[Path]:
    if named is not None:
        path = Path(named)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInput(f"--work: {path}: cannot write: {error.strerror}") from None
        yield path
    else:
        with tempfile.TemporaryDirectory(prefix="gpuprover-bench-") as folder:
            yield Path(folder)


class _Plan:
    """What one run measures, with every argument checked before any work."""

    def __init__(self, args: Namespace, context: Context) -> None:
        quick = args.quick
        self.args, self.context = args, context
        self.parts = _parts(args.only)
        self.logs = _numbers(args.logs, QUICK_LOGS if quick else LOGS, "--logs", 4, 26)
        if not self.logs and {"ntt", "columns", "msm", "verify", "host"} & set(self.parts):
            raise InvalidInput("--logs: expected sizes, found none: only prove, field and import do without")
        self.merkle = _numbers(args.merkle, QUICK_MERKLE if quick else MERKLE, "--merkle", 1, 1000)
        self.curves = _curves(args.curves, quick)
        self.systems = _systems(args.protocols, names()[:1])
        rounds = str(QUICK_ROUNDS if quick else ROUNDS) if args.rounds is None else args.rounds
        self.rounds = whole_number(rounds, "--rounds", high=10_000)
        self.batch = QUICK_BATCH if quick else BATCH
        self.limit = PEER_LIMIT if args.peer_limit is None else seconds(args.peer_limit, "--peer-limit")
        self.files = [named_files(text) for text in args.files or ()]
        for files in self.files:
            load_key(files.zkey)
            read_witness(files.wtns)
        self.circuits = [named_circuit(text) for text in args.setup or ()]
        for circuit in self.circuits:
            read_r1cs(circuit.r1cs)
            read_ptau(circuit.ptau)
        self.skips: list[tuple[Row, str]] = []
        self.peers, self.arkworks = peers_of(args.peer or (), self.limit, self._skip_peer)
        self.inner = [
            InnerPeer(*named_command(text, "--peer-inner"), self.limit) for text in args.peer_inner or ()
        ]
        self.variants = _variants(_devices(context, self._skip), args.paths, context.settings.threads)
        self.single = [variant for variant in self.variants if variant.threads == 1]

    def _skip(self, row: Row, reason: str) -> None:
        self.skips.append((row, reason))
        self.context.console.warn(f"skipped: {reason}")

    def _skip_peer(self, name: str, reason: str) -> None:
        self._skip({"operation": "all", "implementation": name}, reason)

    def _kinds(self) -> Iterator[tuple[str, CurveParams]]:
        """Proof systems and curves of proofs."""
        for system in self.systems:
            for curve in self.curves:
                if curve in system.curves:
                    yield system.name, curve

    def run(self, rows: Rows, job: Job, work: Path) -> None:
        for row, reason in self.skips:
            rows.add({**row, "skipped": reason})
        if {"field", "ntt", "columns", "msm"} & set(self.parts):
            for curve in self.curves:
                measure_operations(
                    curve, self.single, self.logs, self.parts, self.rounds, rows, job,
                    arkworks=self.arkworks, inner=self.inner,
                )  # fmt: skip
        if "import" in self.parts:
            measure_import(self.rounds, rows, job)
        first_use = self.args.first_use
        limit = self.context.settings.memory_limit
        for protocol, curve in self._kinds():
            if "verify" in self.parts:
                (smallest,) = ladder(curve, self.logs[:1], (), work, rows, job, protocol=protocol)
                measure_verification(smallest, self.variants, self.rounds, rows, job, self.batch)
            if "host" in self.parts:
                for files in ladder(curve, self.logs, (), work, rows, job, limit, protocol):
                    measure_host(files, self.rounds, rows, job)
            if "prove" in self.parts:
                for files in ladder(curve, self.logs, self.merkle, work, rows, job, limit, protocol):
                    self._prove(files, rows, job, first_use)
                    first_use = False  # once is enough: it compiles everything
        if "prove" in self.parts:
            for files in self.files:
                self._prove(files, rows, job, first_use)

        for circuit in self.circuits:
            measure_setups(
                circuit, self.systems, self.single, self.rounds, rows, job,
                peer="snarkjs" in (self.args.peer or ()), limit=self.limit,
            )  # fmt: skip

    def _prove(self, files: Files, rows: Rows, job: Job, first_use: bool) -> None:
        limit = self.context.settings.memory_limit
        measure_proofs(
            files, self.variants, self.peers, self.rounds, rows, job, memory_limit=limit, first_use=first_use
        )


def run(args: Namespace, context: Context) -> int:
    """Measures, and writes rows, pictures and a report; with ``--calibrate``, times for placement alone."""
    if args.calibrate:
        curves, systems = _curves(args.curves, quick=False), _systems(args.protocols, _set_up())
        return calibrate.run(args, context, curves, systems)
    output = Path(args.output) if args.output else default_output()
    if output.suffix != ".jsonl":
        raise InvalidInput(f"--output: expected a file named *.jsonl, found {str(output)!r}")
    plan = _Plan(args, context)
    begun = time.perf_counter()
    rows = Rows(output)
    try:
        with _work_folder(args.work) as work, context.work("bench") as limits:
            job = Job(threads=limits["threads"], cancel=limits["cancel"], progress=limits["progress"])
            plan.run(rows, job, work)
    except (KeyboardInterrupt, Cancelled):
        context.console.warn(f"interrupted; {len(rows.all)} rows are kept in {output}")
        return EXIT_CANCELLED
    finally:
        rows.close()
    # Of all that the file holds: earlier runs may have written to it.
    report, found = _report(read_rows([output]), output.with_suffix(".html"), context, None)
    record = {
        "ok": True,
        "rows": str(output),
        "count": len(rows.all),
        "report": str(report),
        "pictures": [str(picture.path) for picture in found],
        "skipped": [reason for _, reason in plan.skips],
        "targets": _target_records(rows.all),
        "seconds": round(time.perf_counter() - begun, 3),
    }
    context.console.answer(record, _text(rows.all, output, report))
    return EXIT_OK


def report(args: Namespace, context: Context) -> int:
    """Rebuilds report and pictures from rows."""
    sources = [Path(name) for name in args.rows]
    rows = read_rows(sources)
    if not rows:
        raise InvalidInput(f"{', '.join(map(str, sources))}: no rows")
    output = Path(args.output)
    if output.suffix != ".html":
        raise InvalidInput(f"--output: expected a file named *.html, found {str(output)!r}")
    _, found = _report(rows, output, context, args.notes)
    if args.readme:
        folder = relative(output.parent, Path.cwd())
        context.console.data(readme(rows, "" if folder == "." else folder, output.stem, sources))
        return EXIT_OK
    record = {
        "ok": True,
        "report": str(output),
        "pictures": [str(picture.path) for picture in found],
        "count": len(rows),
        "targets": _target_records(rows),
    }
    context.console.answer(record, f"wrote {output} ({len(rows):,} rows, {len(found)} pictures)")
    return EXIT_OK


def _report(
    rows: Sequence[Row], path: Path, context: Context, notes: str | None
) -> tuple[Path, list[pictures.Picture]]:
    if not pictures.available():
        context.console.warn(pictures.MISSING)
    named = Path(notes) if notes else NOTES if in_checkout() and NOTES.exists() else None
    return path, write_report(rows, path, read_notes(named) if named else {})


def _target_records(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [
        {"target": name, "ours": variant, "measured": value, "outcome": verdict}
        for name, variant, value, verdict in summary(rows)
    ]


def _text(rows: Sequence[Row], output: Path, report: Path) -> str:
    """Rows in short, for people."""
    lines = []
    for row in rows:
        what = ", ".join(
            str(x)
            for x in (
                row["operation"],
                row.get("circuit"),
                f"2^{row['log']}" if "log" in row else None,
                row.get("scalars"),
                row.get("order"),
                f"each of {row['batch']}" if row.get("batch", 1) != 1 else None,
                row.get("curve"),
            )
            if x
        )
        who = " ".join(
            str(x)
            for x in (
                row["implementation"] if row["implementation"] != OURS else row.get("device"),
                row.get("path"),
                f"{row['threads']} threads" if row.get("threads", 1) > 1 else None,
                row.get("mode"),
            )
            if x
        )
        lines.append(f"{what:<44}  {who:<24}  {_figures(row)}".rstrip())
    for name, variant, value, verdict in summary(rows):
        lines.append(f"target: {name} ({variant}): {value}: {verdict}")
    return "\n".join([*lines, f"wrote {output} and {report}"])


def _figures(row: Row) -> str:
    if reason := row.get("skipped") or row.get("error"):
        return f"no figures: {reason}"
    parts = [
        f"{kind} {pictures.format_time(row[kind]['median_s'])}" for kind in ("cpu", "wall") if kind in row
    ]
    for entry in row.get("faster", []):
        ratio = entry.get("cpu") or entry.get("wall")
        if entry.get("mode") == "warm" and entry.get("threads") == 1:
            ours = entry.get("path") or entry.get("device")
            parts.append(f"ours is {ratio['median']:.3g} times faster ({ours})")
    return ", ".join(parts)
