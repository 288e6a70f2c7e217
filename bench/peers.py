"""Other provers and libraries, run beside ours on the same files and the same numbers.

A peer that is not there is skipped with the reason (:class:`Missing`); one that fails gets a row
with what it said (:class:`~.measure.Failed`). Every answer of a peer is checked.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import gpuprover
from gpuprover.curves import BLS12_381, BN254, CurveParams, Group
from gpuprover.errors import InvalidInput, ProverError
from gpuprover.limbs import Words, words_to_g1, words_to_ints
from gpuprover.systems.system import ProvingKey

from .measure import Failed, Sample, fastest, fill, run_process
from .rows import ROOT

SNARKJS_VARIABLE = "GPUPROVER_SNARKJS"
WARM_SCRIPT = Path(__file__).resolve().parent / "snarkjs_warm.mjs"
BUILT_IN = ("snarkjs", "snarkjs-warm", "arkworks")
START_SECONDS = 120.0


class Missing(Exception):
    """The peer is not there, or does not do this work; the message says how to get it."""


Check = Callable[[], None]
Runner = Callable[[], Sample]


@dataclass(frozen=True)
class Statement:
    """A circuit's files, its key, and a folder for outputs."""

    zkey: Path
    wtns: Path
    key: ProvingKey
    folder: Path

    def verify(self, peer: str, proof: Any, public: Any) -> None:
        """Raises Failed unless the proof holds."""
        try:
            good = gpuprover.verify(self.key.vk, public, proof, threads=1)
        except ProverError as error:
            raise Failed(f"{peer}: its proof cannot be read: {error.message}") from None
        if not good:
            raise Failed(f"{peer}: its proof does not hold")


class CommandPeer:
    """Any prover: a command with {zkey}, {wtns}, {proof} and {public} in it, timed as a whole process.

    {protocol} stands for the proof system's name, if the command needs to know it.
    """

    mode = "cold"

    def __init__(self, name: str, template: str, limit: float) -> None:
        self.name, self._template, self._limit = name, template, limit

    @contextmanager
    def prover(self, statement: Statement, check: Check) -> Iterator[Runner]:
        """What makes one proof and checks it."""
        files = {
            "zkey": statement.zkey,
            "wtns": statement.wtns,
            "proof": statement.folder / f"{self.name}-proof.json",
            "public": statement.folder / f"{self.name}-public.json",
        }
        command = fill(self._template, {**files, "protocol": statement.key.protocol})

        def run() -> Sample:
            for name in ("proof", "public"):
                files[name].unlink(missing_ok=True)
            sample, _ = run_process(command, check=check, limit=self._limit)
            try:
                proof, public = (json.loads(files[name].read_text()) for name in ("proof", "public"))
            except (OSError, ValueError):
                raise Failed(f"{self.name}: wrote no proof that can be read") from None
            statement.verify(self.name, proof, public)
            return sample

        yield run


def find_snarkjs() -> tuple[str, Path]:
    """(node, the folder of the package snarkjs).

    Looked for in ``GPUPROVER_SNARKJS`` (the folder, or its command), then on PATH, then in
    ``node_modules`` here and above, then where ``make setup`` of a checkout puts it.

    Raises:
        Missing: it, or Node.js, is not there.
    """
    own = ROOT / ".node"
    places: list[Path] = []
    named = os.environ.get(SNARKJS_VARIABLE)
    if named:
        places = [Path(named)]
    else:
        on_path = shutil.which("snarkjs")
        places += [Path(on_path)] if on_path else []
        here = Path.cwd()
        places += [folder / "node_modules" / "snarkjs" for folder in (here, *here.parents)]
        places += [own / "node_modules" / "snarkjs"]
    for place in places:
        real = place.resolve()  # the command is a link to PACKAGE/build/cli.cjs
        for folder in (real, *real.parents[:2]):
            if (folder / "build" / "cli.cjs").is_file() and (folder / "build" / "main.cjs").is_file():
                node = shutil.which("node") or shutil.which(str(own / "bin" / "node"))
                if node is None:
                    raise Missing("snarkjs: found, but not Node.js: install it so that `node` is on PATH")
                return node, folder
    where = f"not at {SNARKJS_VARIABLE}={named}" if named else "not found"
    raise Missing(f"snarkjs: {where}: run `npm install snarkjs`, or set {SNARKJS_VARIABLE} to its folder")


def _snarkjs_command(limit: float) -> CommandPeer:
    node, folder = find_snarkjs()
    words = [node, str(folder / "build" / "cli.cjs")]
    quoted = " ".join("'" + word.replace("'", "'\\''") + "'" for word in words)
    return CommandPeer(
        "snarkjs", f"{quoted} {{protocol}} prove {{zkey}} {{wtns}} {{proof}} {{public}}", limit
    )


class WarmSnarkjs:
    """snarkjs as a library in one Node.js process with one thread: key read and curve built before."""

    name, mode = "snarkjs-warm", "warm"

    def __init__(self, limit: float) -> None:
        self._node, self._folder = find_snarkjs()
        self._limit = limit

    @contextmanager
    def prover(self, statement: Statement, check: Check) -> Iterator[Runner]:
        command = [self._node, WARM_SCRIPT, self._folder, statement.zkey, statement.wtns]
        command.append(statement.key.protocol)
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        requests, answers = process.stdin, process.stdout

        def run() -> Sample:
            try:
                requests.write(b"prove\n")
                requests.flush()
            except OSError:
                raise Failed(f"{self.name}: Node.js ended") from None
            answer = read_answer(answers, check, max(self._limit, START_SECONDS))
            if "error" in answer:
                raise Failed(f"{self.name}: {answer['error']}")
            statement.verify(self.name, answer["proof"], answer["public"])
            return Sample(answer["cpu_s"], answer["wall_s"])

        try:
            yield run
        finally:
            process.kill()
            process.wait()
            requests.close()
            answers.close()


def read_answer(stream: IO[bytes], check: Check, limit: float) -> dict[str, Any]:
    """One JSON line of a process, while ``check`` may raise."""
    import select

    begun, data = time.perf_counter(), b""
    while not data.endswith(b"\n"):
        ready, _, _ = select.select([stream], [], [], 0.1)
        if ready:
            piece = os.read(stream.fileno(), 1 << 16)
            if not piece:
                raise Failed("Node.js ended without an answer")
            data += piece
        check()
        if time.perf_counter() - begun > limit:
            raise Failed(f"took more than {limit:g} s")
    answer: dict[str, Any] = json.loads(data)
    return answer


ProverPeer = CommandPeer | WarmSnarkjs


class Arkworks:
    """arkworks' multi-scalar multiplication over BLS12-381, through the package py_arkworks_bls12381."""

    name = "arkworks"

    def __init__(self) -> None:
        try:
            import py_arkworks_bls12381 as library
        except ImportError:
            raise Missing("arkworks: run `pip install py_arkworks_bls12381`") from None
        self._library = library
        self.version = metadata.version("py_arkworks_bls12381")

    def takes(self, curve: CurveParams, group: Group, log: int) -> bool:
        """G1 of BLS12-381, up to sizes whose points Python can still hand over."""
        return curve == BLS12_381 and group is Group.G1 and log <= 16

    def msm(self, points: Words, scalars: Words, expected: Words) -> Runner:
        """The points and scalars as arkworks' objects; a result other than ``expected`` fails."""
        size = BLS12_381.base.bytes

        def encoded(point: Any) -> bytes:
            return b"".join(int(x).to_bytes(size, "little") for x in point)

        theirs = self._library.G1Point
        (total,) = words_to_g1(BLS12_381, expected)
        bases = [theirs.from_xy_bytes_unchecked_le(encoded(p)) for p in words_to_g1(BLS12_381, points)]
        factors = [
            self._library.Scalar.from_le_bytes(s.to_bytes(32, "little")) for s in words_to_ints(scalars)
        ]

        def run() -> Sample:
            results: list[Any] = []
            sample = fastest(lambda: results.append(theirs.multiexp_unchecked(bases, factors)))
            if results[-1].to_xy_bytes_le() != encoded(total):
                raise Failed("arkworks: another sum than ours")
            return sample

        return run


class InnerPeer:
    """Another implementation's loops: a command that prints JSON lines of what it measured.

    A line is ``{"operation": "msm g1", "log": 16, "cpu_s": 0.25}``, with ``wall_s`` if it likes, and
    ``curve``, ``scalars`` and ``order`` where they are not BN254, full width and natural. The command
    may hold {operation}, {log} and {curve}: then it runs in turns with ours, case by case. Else one run
    a round serves all cases, and only the first of them alternates with ours.
    """

    def __init__(self, name: str, template: str, limit: float) -> None:
        self.name, self._template, self._limit = name, template, limit
        self._each = any(name in template for name in ("{operation}", "{log}", "{curve}"))
        self._rounds: list[dict[tuple[object, ...], Sample]] = []
        self._refused: str | None = None

    def _measured(self, case: tuple[object, ...], check: Check) -> dict[tuple[object, ...], Sample]:
        operation, curve, log, *_ = case
        names = {"operation": operation, "log": log, "curve": curve}
        _, text = run_process(fill(self._template, names), check=check, limit=self._limit)
        found: dict[tuple[object, ...], Sample] = {}
        for line in text.splitlines():
            try:
                record = json.loads(line)
                key = (
                    str(record["operation"]).lower(),
                    record.get("curve", BN254.name),
                    int(record["log"]),
                    record.get("scalars", "full width"),
                    record.get("order", "natural"),
                )
                cpu, wall = record.get("cpu_s"), record.get("wall_s")
                if cpu or wall:
                    found[key] = Sample(cpu, wall)
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # what it prints for people
        return found

    def runner(self, case: tuple[object, ...], check: Check) -> Runner:
        """What measures this case once more.

        Raises:
            Missing: the command does not measure it, or has failed for all cases before.
            Failed: the command failed.
        """
        if self._refused is not None:
            raise Missing(self._refused)
        try:
            first = self._round(0, case, check)
        except Failed as failure:
            self._refused = None if self._each else str(failure)
            raise
        if case not in first:
            raise Missing(f"{self.name}: does not measure {case[0]} 2^{case[2]} on {case[1]}")
        rounds = iter(range(1 << 30))

        def run() -> Sample:
            measured = self._round(next(rounds), case, check)
            if case not in measured:
                raise Failed(f"{self.name}: no figure for {case[0]} 2^{case[2]}")
            return measured[case]

        return run

    def _round(self, i: int, case: tuple[object, ...], check: Check) -> dict[tuple[object, ...], Sample]:
        if self._each:
            return self._measured(case, check)
        while len(self._rounds) <= i:
            self._rounds.append(self._measured(case, check))
        return self._rounds[i]


def peers_of(
    specifications: Sequence[str], limit: float, skipped: Callable[[str, str], None]
) -> tuple[list[ProverPeer], Arkworks | None]:
    """The peers that ``--peer`` asks for; those that are not there are told to ``skipped``(name, reason).

    Raises:
        InvalidInput: neither NAME=COMMAND nor a built-in name.
    """
    provers: list[ProverPeer] = []
    arkworks: Arkworks | None = None
    for text in specifications:
        name, equals, _ = text.partition("=")
        if not equals and name not in BUILT_IN:
            raise InvalidInput(
                f"--peer: expected NAME=COMMAND or one of {', '.join(BUILT_IN)}, found {text!r}"
            )
        try:
            if equals:
                provers.append(CommandPeer(*named_command(text, "--peer"), limit))
            elif name == "snarkjs":
                provers.append(_snarkjs_command(limit))
            elif name == "snarkjs-warm":
                provers.append(WarmSnarkjs(limit))
            else:
                arkworks = Arkworks()
        except Missing as missing:
            skipped(name, str(missing))
    return provers, arkworks


def named_command(text: str, option: str) -> tuple[str, str]:
    """NAME=COMMAND. Raises InvalidInput for anything else."""
    name, _, command = text.partition("=")
    try:
        usable = bool(name.strip()) and "/" not in name and bool(fill(command, {}))
    except ValueError:  # an open quote
        usable = False
    if not usable or name.strip() == "gpuprover":
        raise InvalidInput(f"{option}: expected NAME=COMMAND, found {text[:80]!r}")
    return name.strip(), command


def python_command() -> list[str]:
    """Our command line in a process of its own."""
    return [sys.executable, "-m", "gpuprover"]
