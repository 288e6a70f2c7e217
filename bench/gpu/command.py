"""The order of ``make gpu``: what is done already, what fits the time that is left, and a row for each case.

Rows of an earlier call with the same sources on the same kind of GPU are not measured again. A case that is
cut off by the deadline, or not begun because of it, leaves no row and is left for the next call.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType
from typing import IO

import gpuprover
from gpuprover.config import available_cpus, seconds
from gpuprover.curves import CURVES
from gpuprover.errors import EXIT_INVALID, EXIT_OK, EXIT_RESOURCES, InvalidInput, ProverError

from .. import pictures
from ..measure import Failed
from ..rows import OURS, ROOT, Row, Rows, read_rows
from ..targets import matches
from .cases import SIZES, Case, plan
from .checks import run_sanitizer, run_tests
from .processes import Late, NoDevice, Worker, start, stop
from .rates import WIDE, Skipped

DEADLINE = 540.0
RESERVE = 4.0
"""Seconds that are kept to end in: what runs then is cut off."""
PATIENCE, LEAST_LIMIT = 5.0, 60.0
"""A case may take so many times what is predicted, or so many seconds; then it hangs, and has failed."""
OPEN_LIMIT = 120.0
SHARDS = 8
"""Of the tests, at most: each is a process with a context on the GPU, which is not what they wait for."""
EXIT_STOPPED = 128 + signal.SIGTERM
CUBINS = "GPUPROVER_CUBIN_DIR"
WARM = """
import sys
from gpuprover.cpu.warm import compile_curve
from gpuprover.curves import curve_by_name
from gpuprover.job import Job
compile_curve(curve_by_name(sys.argv[1]), Job(threads=1))
"""


class Stopped(BaseException):
    """SIGTERM: all that is written is on the disk."""


def tree() -> str:
    """A hash of the sources that the measurements depend on; a commit tells less, and a copy has none."""
    package = Path(gpuprover.__file__).parent
    folders = ((package, "*.py"), (ROOT / "kernels", "*.cu*"), (ROOT / "bench" / "gpu", "*.py"))
    digest = hashlib.sha256()
    for folder, pattern in folders:
        for path in sorted(folder.rglob(pattern)):
            if path.suffix != ".cubin":
                digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def _mend(path: Path) -> None:
    """Cuts off a last line that a killed process did not finish."""
    if path.exists():
        data = path.read_bytes()
        if data and not data.endswith(b"\n"):
            os.truncate(path, data.rfind(b"\n") + 1)


class _Run:
    def __init__(self, args: Namespace, log: IO[str], resources: ExitStack) -> None:
        self.args, self.log = args, log
        self.begun = time.monotonic()
        self.sizes = SIZES[args.sizes]
        self.folder, self.work = Path(args.output).resolve(), Path(args.work).resolve()
        self.threads = available_cpus()
        self.tree = tree()
        self.failed = self.left = 0
        self.worker = Worker(self.work, self.threads, log)
        resources.callback(self.worker.close)
        self.resources = resources
        self.warming: list[subprocess.Popen[bytes]] = []
        self.known: list[Row] = []
        self.rows: Rows

    @property
    def remaining(self) -> float:
        return float(self.args.deadline) - RESERVE - (time.monotonic() - self.begun)

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.begun:6.1f} s  {text}", flush=True)

    # The machine ------------------------------------------------------------------------------

    def open(self) -> bool:
        """Begins the file of rows with the environment; False where there is no device."""
        path = self.folder / "rows.jsonl"
        _mend(path)
        self.known = read_rows([p for p in (path, *map(Path, self.args.resume)) if p.exists()])
        request: Row = {"kind": "environment", "arguments": {}, "multiplier": None}
        origin: Row = {"tree": self.tree, "sizes": self.args.sizes}
        try:
            (found,) = self.worker.ask(request, min(OPEN_LIMIT, self.remaining))["rows"]
        except (NoDevice, Failed, Late) as failure:
            reason = str(failure) or f"the device does not answer within {OPEN_LIMIT:.0f} s"
            self.rows = Rows(path, origin)
            self.rows.add(
                {"operation": "environment", "implementation": OURS, "device": "cuda", "error": reason}
            )
            print(f"make gpu: {reason}", file=sys.stderr)
            return False
        self.rows = Rows(path, {**origin, **{k: v for k, v in _origin(found).items() if v is not None}})
        self.environment = found
        self.rows.add({**found, "case": "environment", "implementation": OURS, "mode": "once"})
        self.say(f"{found.get('name')}, driver {found.get('driver')}, sources {self.tree}")
        same = {**origin, "gpu": found.get("name")}
        self.known = [row for row in self.known if matches(row, same)]
        return True

    def warm(self) -> None:
        """Compiles the CPU's code in the background: tests, proofs and ratios need it."""
        for curve in CURVES:
            self.warming.append(start([sys.executable, "-c", WARM, curve.name], self.log))
            self.resources.callback(stop, self.warming[-1])

    def warmed(self) -> None:
        """Waits for that. Raises Late."""
        while self.warming:
            with suppress(subprocess.TimeoutExpired):
                code = self.warming[-1].wait(max(0.1, self.remaining))
                self.warming.pop()
                if code:
                    self.say(
                        f"the CPU's code could not be compiled in advance: exit code {code}, see log.txt"
                    )
            if self.warming and self.remaining <= 0:
                raise Late

    def build(self) -> None:
        """Cubins of all programs: those that were built before, or made now by all CPUs."""
        from gpuprover.cuda.compile import find_cubin, find_nvrtc
        from gpuprover.cuda.source import programs

        folder = os.environ.setdefault(CUBINS, str(self.work / "cubins"))
        architecture, nvrtc = str(self.environment["architecture"]), find_nvrtc()
        wanted = [program for curve in CURVES for program in programs(curve)]
        missing = [program for program in wanted if find_cubin(program, architecture, nvrtc) is None]
        row: Row = {"operation": "build cubins", "implementation": OURS, "device": "cuda", "mode": "once"}
        row |= {"case": "cubins", "cubins": len(wanted), "compiled": len(missing)}
        if missing:
            begun = time.monotonic()
            command = [sys.executable, "-m", "gpuprover.cuda.build", "--arch", architecture]
            command += ["--output", folder, "--jobs", str(self.threads)]
            process = start(command, self.log)
            try:
                code = process.wait(max(0.1, self.remaining))
            finally:
                stop(process)
            row["seconds"] = round(time.monotonic() - begun, 1)
            if code:
                row["error"] = f"not all kernels could be compiled: exit code {code}, see log.txt"
        if row.get("error") or not any(r.get("case") == "cubins" for r in self.known):
            self.add(row)

    # Cases ------------------------------------------------------------------------------------

    def add(self, *rows: Row) -> None:
        self.rows.add(*rows)
        for row in rows:
            if "error" in row:
                self.failed += 1
            self.say(f"{row['case']}: {_brief(row)}")

    def todo(self) -> Iterator[Case]:
        done = {row.get("case") for row in self.known if not (self.args.again and "error" in row)}
        wanted = [text.strip() for text in self.args.only.split(",") if text.strip()]
        for case in plan(self.sizes):
            if case.name not in done and (not wanted or any(text in case.name for text in wanted)):
                yield case

    def everything(self) -> int:
        """Runs what fits -> the exit code."""
        if not self.open():
            return EXIT_RESOURCES
        self.build()
        todo = list(self.todo())
        if any(case.kind != "rate" for case in todo):
            self.warm()
        for case in todo:
            if case.kind != "rate":
                with suppress(Late):
                    self.warmed()
            if min(case.seconds, case.least) > self.remaining:
                self.left += 1
                continue
            try:
                self.add(*self.measured(case))
            except Late:
                self.left += 1
        if self.left:
            self.say(f"{self.left} cases are left for another call")
        self.say(f"rows in {self.folder / 'rows.jsonl'}")
        return EXIT_INVALID if self.failed else EXIT_OK

    def measured(self, case: Case) -> list[Row]:
        """The rows of a case, of its failure, too. Raises Late at the deadline."""
        limit = max(LEAST_LIMIT, PATIENCE * case.seconds)
        begun = time.monotonic()
        try:
            rows = self._rows(case, min(limit, self.remaining))
        except Skipped as reason:
            rows = [{"operation": case.name, "skipped": str(reason)}]
        except (Failed, NoDevice) as failure:
            rows = [{"operation": case.name, "error": str(failure)}]
        except Late:
            if self.remaining <= 1:
                raise
            rows = [{"operation": case.name, "error": f"took more than {limit:.0f} s"}]
        took: Row = {"case": case.name, "predicted_s": round(case.seconds, 1)}
        took["took_s"] = round(time.monotonic() - begun, 2)
        return [{"implementation": OURS, "device": "cuda", **row, **took} for row in rows]

    def _rows(self, case: Case, limit: float) -> list[Row]:
        if case.kind == "tests":
            self.worker.close()  # the tests want the GPU's memory
            options = ["-k", self.args.tests] if self.args.tests else []
            shards = max(1, min(SHARDS, self.threads // 2))
            file = self.folder / f"tests-{self.tree}.jsonl"
            return [run_tests(file, shards, limit, self.log, options)]
        if case.kind == "sanitizer":
            self.worker.close()
            return [run_sanitizer(case.arguments["tool"], self.sizes, self.work, self.log, limit)]
        request = {"kind": case.kind, "arguments": dict(case.arguments), "multiplier": self.multiplier()}
        answer = self.worker.ask(request, limit)
        if "skipped" in answer:
            raise Skipped(answer["skipped"])
        rows: list[Row] = answer["rows"]
        return rows

    def multiplier(self) -> float | None:
        """Wide multiplications a second, from the newest row."""
        rates = [
            float(row["per_second"])
            for row in (*self.known, *self.rows.all)
            if row["operation"] == f"rate {WIDE}" and "per_second" in row
        ]
        return rates[-1] if rates else None


def _origin(found: Row) -> Row:
    """What every row says about the device."""
    return {"gpu": found.get("name"), "driver": found.get("driver"), "cupy": found.get("cupy"),
            "nvrtc": found.get("nvrtc")}  # fmt: skip


def _brief(row: Row) -> str:
    if reason := row.get("error") or row.get("skipped"):
        return str(reason)
    parts = [str(row.get("device", ""))]
    if "per_second" in row:
        parts.append(f"{row['per_second']:.3g} {row['unit']} a second")
    elif "wall" in row:
        parts.append(pictures.format_time(row["wall"]["median_s"]))
    if "share" in row:
        parts.append(f"{100 * row['share']:.0f} % of the multiplier")
    parts += [f"{row[name]} {name}" for name in ("passed", "skipped", "compiled", "found") if name in row]
    return " ".join(
        [*parts, f"({row['took_s']} s, predicted {row['predicted_s']})" if "took_s" in row else ""]
    )


def _arguments(argv: Sequence[str] | None) -> Namespace:
    parser = ArgumentParser(prog="python -m gpuprover.bench.gpu", description=__doc__.splitlines()[0])
    option = parser.add_argument
    option("--deadline", default=str(DEADLINE), metavar="S", help="seconds until everything has ended (540)")
    option("--output", default="gpu-out", metavar="DIR", help="rows, outcomes of the tests, a log")
    option(
        "--work", default=".cache/gpu", metavar="DIR", help="keys, witnesses and cubins, kept for other calls"
    )
    option("--resume", action="append", default=[], metavar="FILE.jsonl", help="more rows of what is done")
    option("--only", default="", metavar="TEXT,TEXT", help="cases whose names contain one of these")
    option("--again", action="store_true", help="measure again what has failed")
    option("--tests", default="", metavar="EXPRESSION", help="as pytest's -k")
    option("--sizes", default="full", choices=SIZES, help="tiny: a rehearsal")
    args = parser.parse_args(argv)
    args.deadline = seconds(args.deadline, "--deadline")
    return args


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped


def main(argv: Sequence[str] | None = None) -> int:
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        args = _arguments(argv)
        for folder in (args.output, args.work):
            Path(folder).mkdir(parents=True, exist_ok=True)
        with ExitStack() as resources:
            log = resources.enter_context((Path(args.output) / "log.txt").open("a"))
            return _Run(args, log, resources).everything()
    except (Stopped, KeyboardInterrupt):
        print("make gpu: stopped; the rows so far are kept", file=sys.stderr)
        return EXIT_STOPPED
    except ProverError as error:
        print(f"make gpu: {error.message}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"make gpu: {error.filename or args.output}: {error.strerror or error}", file=sys.stderr)
        return InvalidInput.exit_code
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
