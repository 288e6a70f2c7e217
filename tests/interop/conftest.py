"""The oracles: snarkjs as a server, circom2, a cache of what they make.

What snarkjs and circom2 make of our sources is kept in .node/cache, keyed by everything it
depends on. Proofs, witnesses and checks are made live in every run.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from gpuprover.curves import CURVES, CurveParams

HERE = Path(__file__).resolve().parent
NODE = HERE.parents[1] / ".node"
CACHE = NODE / "cache"
PTAU_POWER = 6


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.interop)


class OracleError(Exception):
    """What was called threw."""


class NodeServer:
    """A Node.js process that answers a line with a line."""

    def __init__(self, *arguments: Path | str) -> None:
        self.process = subprocess.Popen(
            [NODE / "bin" / "node", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=NODE,
        )

    def ask(self, request: dict[str, Any]) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if "error" in answer:
            raise OracleError(answer["error"])
        return answer["result"]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


class Oracle(NodeServer):
    """snarkjs's library functions."""

    def __init__(self) -> None:
        super().__init__(HERE / "oracle.mjs", NODE)

    def __call__(self, call: str, *args: Any) -> Any:
        """``oracle("groth16.verify", vkey, public, proof)``; paths go as text."""
        return self.ask({"call": call, "args": [str(a) if isinstance(a, Path) else a for a in args]})


class MidnightClients(NodeServer):
    """Midnight's own clients of a proof server (``midnight_clients.mjs``)."""

    def __init__(self) -> None:
        super().__init__("--input-type=module", "-e", (HERE / "midnight_clients.mjs").read_text())

    def __call__(self, call: str, url: str, client: str, **more: Any) -> Any:
        return self.ask({"call": call, "url": url, "client": client, **more})


@pytest.fixture(scope="session")
def node() -> Path:
    """The node executable, once its packages are installed."""
    if not (NODE / "installed").exists():
        pytest.skip("Node.js packages are not installed: make setup installs them")
    return NODE / "bin" / "node"


@pytest.fixture(scope="session")
def oracle(node: Path) -> Iterator[Oracle]:
    server = Oracle()
    yield server
    server.close()


@pytest.fixture(scope="session")
def snarkjs(node: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command line of snarkjs."""

    def run(*args: object) -> subprocess.CompletedProcess[str]:
        command = [node, NODE / "node_modules/snarkjs/build/cli.cjs", *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    return run


def cached(name: str, key: bytes, make: Callable[[Path], None]) -> Path:
    """The folder of this name and key, made once; safe when several processes ask at once."""
    digest = hashlib.sha256((HERE / "package-lock.json").read_bytes() + key).hexdigest()[:16]
    folder = CACHE / f"{name}-{digest}"
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=CACHE))
        try:
            make(temporary)
            os.rename(temporary, folder)
        except OSError:
            if not folder.exists():  # else another process was first
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


@dataclass(frozen=True)
class Compiled:
    """What circom2 made of a circuit."""

    r1cs: Path
    wasm: Path


@dataclass(frozen=True)
class Statement:
    """A Midnight circuit of line 0.7 with a preimage that satisfies it.

    Attributes:
        stem: what stands before ``.prover``, ``.verifier``, ``.bzkir`` and ``.preimage`` in the files' paths.
        srs: parameters of the circuit's size.
        binding: replaces the preimage's binding input.
    """

    stem: Path
    srs: Path
    binding: int | None = None

    def file(self, suffix: str) -> Path:
        return self.stem.with_name(f"{self.stem.name}.{suffix}")


class Judge:
    """The verifier of Midnight's ledger, within its prover (``midnight_judge.mjs``)."""

    def _run(self, statement: Statement, made: Path, judged: Path | None) -> tuple[str, str]:
        job = {
            **{name: str(statement.file(name)) for name in ("prover", "verifier", "bzkir", "preimage")},
            "srs": str(statement.srs),
            "binding": None if statement.binding is None else str(statement.binding),
            "made": str(made),
            "judged": None if judged is None else str(judged),
        }
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(job, file)
            file.flush()
            command = [NODE / "bin" / "node", HERE / "midnight_judge.mjs", NODE, file.name]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout.splitlines()[-1])
        return answer["verdict"], answer["why"]

    def made(self, statement: Statement) -> bytes:
        """The raw proof that the ledger's prover makes, always the same."""

        def make(folder: Path) -> None:
            verdict, why = self._run(statement, folder / "proof", None)
            assert verdict == "made", why

        digest = hashlib.sha256((HERE / "midnight_judge.mjs").read_bytes())
        digest.update(f"{statement.binding}".encode())
        for name in ("prover", "verifier", "bzkir", "preimage"):
            digest.update(hashlib.sha256(statement.file(name).read_bytes()).digest())
        self._made = cached(f"midnight-{statement.stem.name}", digest.digest(), make) / "proof"
        return self._made.read_bytes()

    def accepts(self, statement: Statement, proof: bytes) -> bool:
        """Whether a raw proof, of the length that proofs of this circuit have, proves the statement."""
        assert len(proof) == len(self.made(statement))
        with tempfile.NamedTemporaryFile() as file:
            file.write(proof)
            file.flush()
            verdict, why = self._run(statement, self._made, Path(file.name))
        assert verdict in ("accepted", "rejected"), why
        return verdict == "accepted"


@pytest.fixture(scope="session")
def judge(node: Path) -> Judge:
    return Judge()


@pytest.fixture(scope="session")
def clients(node: Path) -> Iterator[MidnightClients]:
    server = MidnightClients()
    yield server
    server.close()


@pytest.fixture(scope="session")
def compile_circuit(node: Path) -> Callable[..., Compiled]:
    """circom2, with --sym for messages that name signals; further options as they come."""

    def compile(name: str, curve: CurveParams, *more: str) -> Compiled:
        source = HERE / "circuits" / f"{name}.circom"

        def make(folder: Path) -> None:
            # circom2 reads and writes below the current folder only.
            shutil.copyfile(source, folder / source.name)
            options = ["--r1cs", "--wasm", "--sym", "--prime", curve.snarkjs_name, *more]
            command = [node, NODE / "node_modules/circom2/cli.js", source.name, *options]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
            assert (folder / f"{name}_js" / f"{name}.wasm").exists(), done.stdout + done.stderr

        key = source.read_bytes() + " ".join([curve.name, *more]).encode()
        folder = cached(f"{name}-{curve.name}", key, make)
        return Compiled(folder / f"{name}.r1cs", folder / f"{name}_js" / f"{name}.wasm")

    return compile


@pytest.fixture(scope="session")
def ptau(oracle: Oracle) -> Callable[[CurveParams], Path]:
    """Powers of tau for 2^6 constraints, with one contribution, prepared for phase 2."""

    def make_ptau(curve: CurveParams) -> Path:
        def make(folder: Path) -> None:
            first, second, last = (folder / f"{i}.ptau" for i in range(3))
            oracle("powersOfTau.newAccumulator", curve.snarkjs_name, PTAU_POWER, first)
            oracle("powersOfTau.contribute", first, second, "tests", "no secret at all")
            oracle("powersOfTau.preparePhase2", second, last)
            first.unlink()
            second.unlink()

        return cached(f"ptau-{curve.name}", str(PTAU_POWER).encode(), make) / "2.ptau"

    return make_ptau


@dataclass(frozen=True)
class Case:
    """A circuit over a curve, with inputs that satisfy it.

    Attributes:
        witness: path of the .wtns that snarkjs calculated.
        snarkjs_key: path of the key that snarkjs made from the powers of tau.
        contributed_key: the same after a contribution by snarkjs.
    """

    name: str
    curve: CurveParams
    inputs: dict[str, Any]
    compiled: Compiled
    witness: Path
    ptau: Path
    snarkjs_key: Path
    contributed_key: Path


INPUTS: dict[str, dict[str, Any]] = {
    "multiplier": {"factors": [3, "0x10", -5, 7, 2**80], "pairs": [[11, 13], ["17", 19]], "scale": 23},
    "bits": {"value": str(0b1011_0000_0000_0000_0000_0000_0001)},
    "nopublic": {"a": 5, "b": 3, "c": 75},
    "single": {"a": 6, "b": -7},
}


ALL = [(name, curve) for curve in CURVES for name in INPUTS]


@pytest.fixture(scope="session")
def make_case(
    tmp_path_factory: pytest.TempPathFactory,
    oracle: Oracle,
    compile_circuit: Callable[[str, CurveParams], Compiled],
    ptau: Callable[[CurveParams], Path],
) -> Callable[[str, CurveParams], Case]:
    """The files of one case, made once a session."""

    @cache
    def make(name: str, curve: CurveParams) -> Case:
        compiled, powers, folder = compile_circuit(name, curve), ptau(curve), tmp_path_factory.mktemp(name)
        witness, key, contributed = folder / "snarkjs.wtns", folder / "0.zkey", folder / "1.zkey"
        # snarkjs reads JSON's large numbers as floats; as text they are exact.
        oracle("wtns.calculate", as_text(INPUTS[name]), compiled.wasm, witness)
        oracle("zKey.newZKey", compiled.r1cs, powers, key)
        oracle("zKey.contribute", key, contributed, "tests", "no secret at all")
        return Case(name, curve, INPUTS[name], compiled, witness, powers, key, contributed)

    return make


@pytest.fixture(params=ALL, ids=lambda p: f"{p[0]}-{p[1].name}")
def case(request: pytest.FixtureRequest, make_case: Callable[[str, CurveParams], Case]) -> Case:
    """Every circuit over every curve; a test that wants fewer parametrizes it indirectly."""
    return make_case(*request.param)


def as_text(value: Any) -> Any:
    """Integers as decimal text, all the way down."""
    if isinstance(value, dict):
        return {k: as_text(v) for k, v in value.items()}
    if isinstance(value, list):
        return [as_text(v) for v in value]
    return str(value)
