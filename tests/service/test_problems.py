"""What clients of the service are told of errors: a status by kind and whose file it is, and no path ever."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import gpuprover
from gpuprover import errors
from gpuprover.config import load_engine_settings
from gpuprover.engine import Prover
from gpuprover.errors import (
    CircuitNotFound,
    InvalidInput,
    MalformedFile,
    ProverError,
    UnsupportedFile,
    WitnessMismatch,
)
from gpuprover.service.client import Client
from gpuprover.service.problems import STATUS, fault_of, problem_of, status_of
from tests.support.service_stage import CHAIN, SECONDS, Executor, Stage, stage
from tests.test_errors import kinds, sample
from tests.test_witness import FAILED_ASSERT, write_program

VECTORS = CHAIN.parent
WITNESS = Path(f"{CHAIN}.wtns").read_bytes()
PUBLIC = [cls for cls in kinds() if cls.__name__ in gpuprover.__all__ and cls.__name__ != "ServiceError"]
FOLDERS = (".", "circuit", "keys", "a", "input", "a folder with spaces", "witness", "/")
"""Names that occur in messages, as relative paths; ``/`` stands for the folder's absolute path."""


def answer(found: Stage, path: str, **options: Any) -> dict[str, Any]:
    response = found.client.post(path, headers={"Prefer": "wait=60", **options.pop("headers", {})}, **options)
    document: dict[str, Any] = response.json()
    assert response.headers["content-type"] == "application/problem+json" or response.status_code < 400, (
        response.text
    )
    return document


def send(found: Stage, witness: bytes, circuit: str = "chain") -> dict[str, Any]:
    headers = {"Content-Type": "application/octet-stream"}
    return answer(found, f"/v1/circuits/{circuit}/proofs", content=witness, headers=headers)


def inputs(found: Stage, given: dict[str, Any], circuit: str = "chain") -> dict[str, Any]:
    return answer(found, f"/v1/circuits/{circuit}/proofs", json={"inputs": given})


@pytest.fixture
def moved(tmp_path: Path) -> Iterator[Path]:
    """A current folder of its own."""
    before = os.getcwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)


def fill(folder: Path) -> None:
    """Circuits that are sound, and one for each way not to be."""
    folder.mkdir(parents=True, exist_ok=True)
    key, vkey = Path(f"{CHAIN}.zkey").read_bytes(), Path(f"{CHAIN}.vkey.json").read_bytes()
    other = json.loads(vkey)
    other["IC"][0], other["IC"][1] = other["IC"][1], other["IC"][0]
    files = {
        "chain.zkey": key,
        "chain.vkey.json": vkey,
        "bare.zkey": key,
        "cut.zkey": key[:700],
        "none.zkey": b"no key at all",
        "checked.vkey.json": vkey,
        "damaged.vkey.json": b'{"protocol": "groth16"',
        "odd.vkey.json": vkey.replace(b'"groth16"', b'"marlin"'),
        "apart.zkey": key,
        "apart.vkey.json": json.dumps(other).encode(),
        "twice.zkey": key,
        "twice/circuit.zkey": key,
        "crash.zkey": key,
        "crash.wasm": b"\0asm\1\0\0\0",
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    write_program(folder / "chain.wasm")
    shutil.copy(folder / "chain.zkey", folder / "unmet.zkey")
    write_program(folder / "unmet.wasm", compute=FAILED_ASSERT)


PROOF = json.loads(Path(f"{CHAIN}.proof.json").read_text())
SIGNALS = json.loads(Path(f"{CHAIN}.public.json").read_text())


def verify(circuit: str, **changes: Any) -> Callable[[Stage], dict[str, Any]]:
    body = {"circuit_id": circuit, "public_signals": SIGNALS, "proof": PROOF, **changes}
    return lambda found: answer(found, "/v1/verify", json=body)


CASES: dict[str, tuple[Callable[[Stage], dict[str, Any]], int, str, str | None]] = {
    # what the client sends is no good
    "short": (lambda s: send(s, b"wtns"), 400, "MalformedFile", "witness"),
    "other": (
        lambda s: send(s, (VECTORS / "chain5.bls12-381.wtns").read_bytes()),
        *(400, "WitnessMismatch", "witness"),
    ),
    "wrong": (
        lambda s: send(s, WITNESS[:-32] + bytes([WITNESS[-32] ^ 1]) + WITNESS[-31:]),
        *(422, "UnsatisfiedWitness", "witness"),
    ),
    "too few": (lambda s: inputs(s, {"a": [1, 2]}), 400, "WitnessMismatch", "witness"),
    "unknown": (lambda s: inputs(s, {"a": [1, 2], "keys": 1}), 400, "InvalidInput", None),
    "no number": (lambda s: inputs(s, {"a": [1, "x"]}), 400, "InvalidInput", None),
    "unmet": (lambda s: inputs(s, {"a": [1, 2]}, "unmet"), 422, "UnsatisfiedWitness", "inputs"),
    "no program": (lambda s: inputs(s, {"a": 1}, "bare"), 400, "InvalidInput", None),
    "no JSON": (
        lambda s: answer(
            s, "/v1/verify", content=b'{"circuit_id": ', headers={"Content-Type": "application/json"}
        ),
        *(400, "MalformedFile", "body"),
    ),
    "no proof": (verify("chain", proof={}), 400, "MalformedFile", "proof"),
    "signals": (verify("chain", public_signals=["1"] * 9), 400, "MalformedFile", "public signals"),
    "unknown circuit": (lambda s: send(s, WITNESS, "mint"), 404, "CircuitNotFound", None),
    "only checked": (lambda s: send(s, WITNESS, "checked"), 404, "CircuitNotFound", None),
    # what the service has is no good
    "cut": (lambda s: send(s, WITNESS, "cut"), 500, "MalformedFile", "key"),
    "none": (lambda s: send(s, WITNESS, "none"), 500, "MalformedFile", "key"),
    "load": (lambda s: answer(s, "/v1/circuits/cut/load"), 500, "MalformedFile", "key"),
    "damaged": (verify("damaged"), 500, "MalformedFile", "verification key"),
    "odd": (verify("odd"), 500, "UnsupportedFile", "verification key"),
    "apart": (verify("apart"), 500, "MalformedFile", "verification key"),
    "twice": (lambda s: send(s, WITNESS, "twice"), 500, "InvalidInput", "circuits"),
    "crash": (lambda s: inputs(s, {"a": 1}, "crash"), 500, "MalformedFile", "witness program"),
}


def no_path(told: str, folder: Path, given: str) -> None:
    """No file's name, and no folder's, relative or not."""
    for place in (str(folder.resolve()), str(folder.resolve().parent), "./"):
        assert place not in told, told
    assert not re.search(r"[\w-]+\.(zkey|wasm|vkey|json|wtns)", told), told
    assert f"{given}/" not in told or given in (".", "/"), told


@pytest.mark.parametrize(
    ("given", "processes"),
    [
        *((name, False) for name in (".", "keys")),
        *(pytest.param(name, False, marks=pytest.mark.slow) for name in FOLDERS[1:] if name != "keys"),
        pytest.param("keys", True, marks=pytest.mark.slow),
    ],
)
def test_every_error_on_its_way_through_the_engine(given: str, processes: bool, moved: Path) -> None:
    name = str(moved / "absolute") if given == "/" else given
    folder = Path(name)
    fill(folder)
    settings: dict[str, Any] = {"memory_limit": 4096, "threads": 1, "device": "cpu"}
    settings |= {"verifier": "process"} if processes else {"verifier": "inline", "max_workers": 0}
    prover = Prover(load_engine_settings({"circuit_keys_path": name, **settings}, {}))
    with stage(moved, prover=prover, settings={"rapidsnark": True}) as found:
        for case, (ask, status, kind, role) in CASES.items():
            document = ask(found)
            told = json.dumps(document)
            shown = (document.get("status"), document["kind"], document.get("role"))
            assert shown == (status, kind, role), f"{case}: {told}"
            no_path(told, folder, given)
        assert inputs(found, {"a": [1, 2], "keys": 1})["detail"] == (
            "circuit inputs: keys: the circuit has no such input"
        )
        assert "Error in template Add_0 line: 7" in inputs(found, {"a": [1, 2]}, "unmet")["detail"]
        # The same of a proof that failed while nobody waited, of rapidsnark's routes, and of the status.
        headers = {"Content-Type": "application/octet-stream"}
        late = found.client.post("/v1/circuits/cut/proofs", content=WITNESS, headers=headers)
        shown = found.get(late.headers["location"], headers={"Prefer": "wait=60"}).json()
        assert (shown["error"]["status"], shown["error"]["role"]) == (500, "key")
        begun = found.client.post("/input/crash", json={"a": 1})
        assert begun.status_code == 202
        until(lambda: found.get("/status").json()["status"] != "busy")
        failed = found.get("/status").json()
        assert failed["status"] == "failed"
        assert failed["error"].startswith("witness program: ")
        status = found.get("/v1/status").json()
        assert any("cut: key: " in problem for problem in status["problems"])
        batch = {"circuit_id": "apart", "proofs": [{"public_signals": SIGNALS, "proof": PROOF}]}
        broken = answer(found, "/v1/verify/batch", json=batch)
        for told in (shown, failed, status, broken):
            no_path(json.dumps(told), folder, given)
        with Client(found.url) as client:
            with pytest.raises(MalformedFile) as caught:
                client.prove("cut", WITNESS)
            assert caught.value.role == "key"
            no_path(str(caught.value), folder, given)
            with pytest.raises(CircuitNotFound):
                client.prove("mint", WITNESS)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


# Every kind, by itself -----------------------------------------------------------------------------


class Failing(Executor):
    """Ends each proof with what a test says."""

    outcome: ProverError

    def prove(self, request: Any, done: Any, progress: Any = None) -> None:
        with self.lock:
            super(Executor, self).prove(request, done, progress)
            self.runs.pop()
        done(request, errors.from_record(errors.to_record(self.outcome)))


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with stage(tmp_path_factory.mktemp("keys") / "keys", executor=Failing(), retry_delay=0.0) as found:
        yield found


@pytest.mark.parametrize("cls", PUBLIC, ids=lambda cls: cls.__name__)
def test_no_kind_tells_where_files_lie(cls: type[ProverError], failing: Stage) -> None:
    place = "/srv/secret place/keys/chain.zkey"
    executor = failing.executor
    assert isinstance(executor, Failing)
    for role in ("", "key", "witness program", "verification key", "circuits", "witness"):
        error = executor.outcome = sample(cls, path=place, role=role, more=f"because of {place}.cfg")
        assert place in error.message
        response = failing.post(wait=SECONDS)
        told = response.text + str(response.headers)
        assert "secret" not in told
        assert "chain.zkey" not in told
        ours = role != "witness"
        assert response.status_code == STATUS[cls.__name__][ours] == status_of(error), told
        assert response.json()["kind"] == error.kind


def test_the_status_follows_from_kind_and_role_alone() -> None:
    for role in ("witness", "inputs", "proof", "public signals", "body"):
        assert status_of(MalformedFile("x", "header", "truncated", role=role)) == 400
    for role in ("key", "witness program", "verification key", "circuits", "circuit", ""):
        for cls in (MalformedFile, UnsupportedFile):
            assert status_of(cls("x", "header", "truncated", role=role)) == 500
    assert status_of(InvalidInput("timeout: expected a number")) == 400
    assert status_of(InvalidInput("cannot read", path="/keys/c.zkey")) == 500
    # Text decides nothing, whatever it holds.
    mismatch = WitnessMismatch("the witness has 3 values, /keys/c.zkey wants 5", path="x", role="witness")
    assert status_of(mismatch) == 400
    assert (fault_of(mismatch), fault_of(errors.Timeout("x")), fault_of(errors.OutOfMemory("x"))) == (
        *("client", "time"),
        "service",
    )
    unreadable = problem_of(CircuitNotFound("cannot read", path="/k", role="circuits"))
    assert (unreadable.status, unreadable.detail) == (500, "circuits: cannot read")


# No error is made with a path in its words ----------------------------------------------------------

REACHED = (
    *("api.py", "proving.py", "runner.py", "executor.py", "witness.py", "witness_source.py", "devices.py"),
    *("backend.py", "job.py", "memory.py"),
)
PACKAGES = ("engine", "formats", "systems", "service", "verifier", "workers", "cpu")
OWN = {"serve.py", "address.py", "__main__.py", "arguments.py", "access.py", "bake.py"}
"""Of the command lines of services and of the remote client: what they say, their owner reads."""
PATHLIKE = re.compile(
    r"\b(path|paths|source|folder|_folder|zkey|wasm|vkey|file|target|filename|executable|stderr|message)\b"
)
OFFLINE = {"r1cs.py", "ptau.py"}
"""Of set-ups, which no service makes."""


def constructions() -> Iterator[tuple[str, ast.Call]]:
    names = {cls.__name__ for cls in kinds()}
    root = Path(gpuprover.__file__).parent
    files = [root / name for name in REACHED]
    files += [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    for path in files:
        if path.name in OWN | OFFLINE or path.name == "setup.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
                yield f"{path.relative_to(root)}:{node.lineno}", node


def words_of(call: ast.Call) -> list[ast.expr]:
    """What strangers are told: part and problem."""
    assert isinstance(call.func, ast.Name)
    positional = call.args[1:] if call.func.id in ("MalformedFile", "UnsupportedFile") else call.args
    return [*positional, *(word.value for word in call.keywords if word.arg in ("part", "problem"))]


def test_no_error_is_made_with_a_path_in_its_words() -> None:
    found = list(constructions())
    assert len(found) > 100
    bad = []
    for where, call in found:
        for words in words_of(call):
            parts = [node.value for node in ast.walk(words) if isinstance(node, ast.FormattedValue)]
            texts = [ast.unparse(part) for part in parts]
            bad += [f"{where}: {t}" for t in texts if PATHLIKE.search(t) and not t.startswith("type(")]
    assert bad == [], "give it as `path` or `more`"
