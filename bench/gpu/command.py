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
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import IO

import gpuprover
from gpuprover.errors import EXIT_INVALID, EXIT_OK, EXIT_RESOURCES, InvalidInput, ProverError
from gpuprover.machine import available_cpus
from gpuprover.settings import seconds

from .. import pictures
from ..measure import Failed
from ..rows import OURS, ROOT, Row, Rows, read_rows
from ..targets import matches
from .cases import REST, SIZES, Case, corrected, plan
from .checks import TEST_LIMIT, run_profiler, run_sanitizer, run_tests
from .preparing import Cubins, HostCode
from .processes import Late, NoDevice, Worker
from .rates import WIDE, Skipped

DEADLINE = 540.0
RESERVE = 4.0
"""Seconds that are kept to end in: what runs then is cut off."""
PATIENCE = 4.0
"""A case may take so many times what is predicted, or the seconds of ``--patience``; then it has failed."""
COMPILE_LIMIT = 120.0
"""Seconds more where code is compiled on the way, since it was not in advance."""
OPEN_LIMIT = 60.0
SHORT = 5.0
"""A case that is predicted to take less may run while an earlier one waits for compiled code."""
SHARDS = 8
"""The most shards of the tests: each is a process with a context on the GPU, for which they do not wait."""
POLL_SECONDS = 0.02
EXIT_STOPPED = 128 + signal.SIGTERM
SMI = (
    "pstate,clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu,ecc.mode.current,"
    "mig.mode.current"
)


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


def smi() -> list[str]:
    """What ``nvidia-smi`` says of clocks, power and modes, a line a GPU; nothing where it is not."""
    command = ["nvidia-smi", f"--query-gpu={SMI}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


class _Run:
    def __init__(self, args: Namespace, log: IO[str], resources: ExitStack) -> None:
        self.args, self.log = args, log
        self.begun = time.monotonic()
        self.sizes = SIZES[args.sizes]
        self.plan = {case.name: case for case in plan(self.sizes)}
        self.folder, self.work = Path(args.output).resolve(), Path(args.work).resolve()
        self.threads = available_cpus()
        self.tree = tree()
        self.failed = self.left = 0
        self.worker = Worker(self.work, self.threads, log)
        resources.callback(self.worker.close)
        self.resources = resources
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
        self.rows.add({**found, "smi": smi(), "case": "environment", "implementation": OURS, "mode": "once"})
        self.say(f"{found.get('name')}, driver {found.get('driver')}, sources {self.tree}")
        same = {**origin, "gpu": found.get("name")}
        self.known = [row for row in self.known if matches(row, same)]
        return True

    def prepare(self, todo: Sequence[Case]) -> None:
        """Begins to compile what is not there."""
        others = max(1, self.threads - 1)  # one for the process that launches
        found = self.environment
        release = found["runtime"] // 1000 if "runtime" in found else None
        self.cubins = Cubins(str(found["architecture"]), release, others, self.log)
        self.resources.callback(self.cubins.close)
        self.say(self.cubins.said)
        self.host = HostCode(todo, others, self.log)
        self.resources.callback(self.host.close)

    def look(self) -> None:
        """Looks after what is compiled meanwhile."""
        for failure in self.host.look():
            self.say(failure)
        self.cubins.look()
        row, self.cubins.row = self.cubins.row, None
        if row and ("error" in row or not any(r.get("case") == row["case"] for r in self.known)):
            self.add({"implementation": OURS, **row})

    def ready(self, case: Case) -> bool:
        return all(self.cubins.there(need) and self.host.there(need) for need in case.needs)

    # Cases ------------------------------------------------------------------------------------

    def add(self, *rows: Row) -> None:
        self.rows.add(*rows)
        for row in rows:
            if "error" in row:
                self.failed += 1
            self.say(f"{row['case']}: {_brief(row)}")

    def todo(self) -> Iterator[Case]:
        done = {
            row.get("case")
            for row in self.known
            if not row.get("left") and not (self.args.again and "error" in row)
        }
        wanted = [text.strip() for text in self.args.only.split(",") if text.strip()]
        if "tests" in done and not self.tests_left():
            done.add(REST)
        for case in self.plan.values():
            if case.name not in done and (not wanted or any(text in case.name for text in wanted)):
                yield case

    def took(self) -> list[tuple[Case, float]]:
        """What was measured so far, with its seconds; not what failed, or was passed over."""
        rows = (row for row in (*self.known, *self.rows.all) if "took_s" in row)
        took = {row["case"]: row["took_s"] for row in rows if not {"error", "skipped"} & row.keys()}
        return [(self.plan[name], took[name]) for name in took.keys() & self.plan.keys()]

    def fitting(self, todo: Sequence[Case]) -> list[Case]:
        """What may be begun: what fits; in the end that which nearly does, rather than nothing."""
        took, remaining = self.took(), self.remaining
        left = {case: corrected(case, took) for case in todo}
        near = min(todo, key=left.__getitem__, default=None)
        fits = [case for case in todo if min(left[case], case.least) <= remaining]
        return fits or ([near] if near is not None and left[near] <= 2 * remaining else [])

    def chosen(self, fitting: Sequence[Case]) -> Case | None:
        """The first of them, or a short one while that one waits for code; None where none can begin yet."""
        if self.ready(fitting[0]):
            return fitting[0]
        short = (case for case in fitting if case.seconds <= SHORT)
        return next(filter(self.ready, short), None)

    def everything(self) -> int:
        """Runs what fits -> the exit code."""
        if not self.open():
            return EXIT_RESOURCES
        todo = list(self.todo())
        if todo:
            self.prepare(todo)
        while todo:
            self.look()
            fitting = self.fitting(todo)
            if not fitting:
                break
            case = self.chosen(fitting)
            if case is None:
                time.sleep(POLL_SECONDS)
                continue
            todo.remove(case)
            if case.name == REST and not self.tests_left():
                continue
            try:
                self.add(*self.measured(case))
            except Late:
                self.left += 1
        self.left += len(todo)
        if self.left:
            self.say(f"{self.left} cases are left for another call")
        self.say(f"rows in {self.folder / 'rows.jsonl'}")
        return EXIT_INVALID if self.failed else EXIT_OK

    def tests_left(self) -> int:
        """How many tests the last run of them left."""
        rows = [row for row in (*self.known, *self.rows.all) if row["operation"] == "tests"]
        return int(rows[-1].get("left", 0)) if rows else 0

    def limit(self, case: Case) -> float:
        """Seconds after which a case counts as hanging; tests see to that one by one."""
        if case.kind == "tests":
            return case.most
        limit = max(float(self.args.patience), PATIENCE * corrected(case, self.took()))
        complete = self.cubins.complete and self.host.complete
        return min(case.most, limit + (0.0 if complete else COMPILE_LIMIT))

    def measured(self, case: Case) -> list[Row]:
        """The rows of a case, of its failure, too. Raises Late at the deadline."""
        limit, predicted = self.limit(case), corrected(case, self.took())
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
        took: Row = {"case": case.name, "predicted_s": round(predicted, 1)}
        took["took_s"] = round(time.monotonic() - begun, 2)
        return [{"implementation": OURS, "device": "cuda", **row, **took} for row in rows]

    def _rows(self, case: Case, limit: float) -> list[Row]:
        if case.kind == "tests":
            self.worker.close()  # the tests want the GPU's memory
            options = ["-k", self.args.tests] if self.args.tests else []
            shards = max(1, min(SHARDS, self.threads // 2))
            file = self.folder / f"tests-{self.tree}.jsonl"
            patience, again = float(self.args.patience), self.args.again
            return [run_tests(file, shards, limit, self.log, options, patience=patience, again=again)]
        if case.kind == "sanitizer":
            self.worker.close()
            return [run_sanitizer(case.arguments["tool"], self.sizes, self.work, self.log, limit)]
        if case.kind == "profile":
            self.worker.close()
            return [run_profiler(**case.arguments, folder=self.work, log=self.log, limit=limit)]
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
    parts += [
        f"{row[name]} {name}" for name in ("passed", "skipped", "left", "compiled", "found") if name in row
    ]
    return " ".join(
        [*parts, f"({row['took_s']} s, predicted {row['predicted_s']})" if "took_s" in row else ""]
    )


def _arguments(argv: Sequence[str] | None) -> Namespace:
    parser = ArgumentParser(prog="python -m gpuprover.bench.gpu", description=__doc__.splitlines()[0])
    option = parser.add_argument
    option("--deadline", default=str(DEADLINE), metavar="S", help="seconds until everything has ended (540)")
    option("--output", default="gpu-out", metavar="DIR", help="rows, outcomes of the tests, a log")
    option("--work", default=".cache/gpu", metavar="DIR", help="keys and witnesses, kept for other calls")
    option("--resume", action="append", default=[], metavar="FILE.jsonl", help="more rows of what is done")
    option("--only", default="", metavar="TEXT,TEXT", help="cases whose names contain one of these")
    option("--again", action="store_true", help="measure again what has failed")
    option("--tests", default="", metavar="EXPRESSION", help="as pytest's -k")
    option("--patience", default=str(TEST_LIMIT), metavar="S", help="no case and no test hangs before (20)")
    option("--sizes", default="full", choices=SIZES, help="tiny: a rehearsal")
    args = parser.parse_args(argv)
    args.deadline = seconds(args.deadline, "--deadline")
    args.patience = seconds(args.patience, "--patience")
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
