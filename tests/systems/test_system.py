"""The seam between proof systems and what stands above them: a second system goes through all of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import gpuprover
from gpuprover.curves import BLS12_381, BN254
from gpuprover.demand import UNLIMITED
from gpuprover.devices import open_backend
from gpuprover.engine.directory import CircuitDirectory
from gpuprover.formats.binfile import write_binfile
from gpuprover.formats.zkey import PROTOCOL
from gpuprover.job import Job
from gpuprover.runner import Runner
from gpuprover.service.client import Client
from gpuprover.systems import system
from tests.service.test_server import running
from tests.support import toy_system
from tests.support.paths import ROOT, TESTS, VECTORS

KEY, WITNESS, WRONG = "root.root", "root.json", "wrong.json"
ROOT_OF = 5
PLUGIN = str(TESTS / "support" / "toy")
"""A folder on the path of processes, which have the toy system then."""


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "_SYSTEMS", dict(system._SYSTEMS))
    monkeypatch.setattr(system, "_KEY_FILES", dict(system._KEY_FILES))
    toy_system.register()
    monkeypatch.setenv("PYTHONPATH", PLUGIN)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    toy_system.write_key(tmp_path / KEY)
    toy_system.write_witness(tmp_path / WITNESS, ROOT_OF)
    toy_system.write_witness(tmp_path / WRONG, ROOT_OF, ROOT_OF)
    return tmp_path


def forged(proof: Any) -> dict[str, Any]:
    return {**proof, "left": [proof["left"][0], str(int(proof["left"][1]) + 1), "1"]}


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_the_library(toy: None, folder: Path, device: str) -> None:
    key = gpuprover.load_key(folder / KEY)
    assert key.protocol == "toy"
    result = gpuprover.prove(key, folder / WITNESS, device=device)
    assert result.public_signals == [str(ROOT_OF**2)]
    assert result.proof["protocol"] == "toy"
    assert gpuprover.verify(key.verification_key, result.public_signals, result.proof)
    assert not gpuprover.verify(key.verification_key, ["26"], result.proof)
    statements = [(["25"], result.proof), (["26"], result.proof), (["25"], forged(result.proof))]
    assert gpuprover.verify_batch(key.vk, statements) == [True, False, False]  # type: ignore[arg-type]
    with pytest.raises(gpuprover.UnsatisfiedWitness, match="x is not the square of y"):
        gpuprover.prove(folder / KEY, folder / WRONG, device=device)
    assert gpuprover.prove(key, (folder / WITNESS).read_bytes(), device=device).public_signals == ["25"]
    with pytest.raises(gpuprover.WitnessMismatch):
        gpuprover.prove(key, json.dumps([BN254.r, 1]).encode(), device=device)
    with pytest.raises(gpuprover.MalformedFile, match=r"expected \[x, y\]"):
        gpuprover.prove(key, b"1", device=device)


@pytest.mark.parametrize("witness", [[1, 25, 5], {"inputs": {}, "wasm": "a.wasm"}])
def test_it_reads_witnesses_of_its_own_kind_only(toy: None, folder: Path, witness: Any) -> None:
    with pytest.raises(gpuprover.InvalidInput, match="witness: expected a file or its bytes"):
        gpuprover.prove(folder / KEY, witness)
    with pytest.raises(gpuprover.InvalidInput, match="expected at most 100 bytes, found 101"):
        gpuprover.prove(folder / KEY, bytes(101))
    (folder / "long.json").write_bytes(bytes(101))
    with pytest.raises(gpuprover.InvalidInput, match=r"long.json: expected at most 100 bytes, found 101"):
        gpuprover.prove(folder / KEY, folder / "long.json")


def test_parameters_of_keys_that_have_none_within(toy: None, folder: Path) -> None:
    assert gpuprover.load_key(folder / KEY, parameters="somewhere").path == f"{folder / KEY} with somewhere"
    with pytest.raises(gpuprover.InvalidInput, match="parameters: a groth16 key has them within"):
        gpuprover.load_key(VECTORS / "chain5.bn254.zkey", parameters="somewhere")


def test_its_memory_is_planned_by_its_own_steps(toy: None, folder: Path) -> None:
    demand = gpuprover.load_key(folder / KEY).demand
    for name in ("reference", "cpu"):
        plan = open_backend(name, demand.curve, Job(threads=1)).plan(demand, UNLIMITED)
        assert plan.key > 0
        assert plan.arena >= demand.curve.scalar.bytes
    info = Runner().load(str(folder / KEY))
    assert (info.protocol, info.n_vars, info.shape.work) == ("toy", 2, "toy bn254")


def test_a_key_of_no_system_is_refused_by_name(folder: Path) -> None:
    with write_binfile(folder / KEY, "zkey", 1, 1) as out, out.section(PROTOCOL, 4) as section:
        section.u32(99)
    with pytest.raises(
        gpuprover.UnsupportedFile, match=r"expected a groth16 or .* key, found protocol id 99"
    ):
        gpuprover.load_key(folder / KEY)


def test_the_engine_its_workers_and_the_verifier_process(toy: None, folder: Path) -> None:
    settings: dict[str, Any] = {"device": "cpu", "threads": 1, "max_workers": 1, "policy": "lazy"}
    with gpuprover.create_prover(circuit_keys_path=folder, **settings) as prover:
        result = prover.prove("root", folder / WITNESS)
        assert result.proof["protocol"] == "toy"
        assert prover.verify("root", result.public_signals, result.proof)
        assert not prover.verify("root", ["26"], result.proof)
        assert prover.verify_batch("root", [(["25"], result.proof), (["24"], result.proof)]) == [True, False]
        with pytest.raises(gpuprover.UnsatisfiedWitness, match="x is not the square of y"):
            prover.prove("root", folder / WRONG)
        assert prover.prove("root", (folder / WITNESS).read_bytes()).public_signals == ["25"]


def test_a_verification_key_of_its_own_kind_beside_the_key(toy: None, folder: Path) -> None:
    for name in ("both.root", "both.square", "only.square"):
        toy_system.write_key(folder / name)
    toy_system.write_key(folder / "other.root")
    toy_system.write_key(folder / "other.square", BLS12_381)
    directory = CircuitDirectory(folder)
    assert directory.names() == ["both", "only", "other", "root"]
    assert directory.find("both").key == str(folder / "both.root")
    assert directory.find("only").key is None
    assert directory.verification_key(directory.find("only")).curve == "bn128"
    with pytest.raises(gpuprover.MalformedFile, match=r"other.square: .* not the verification key of .*root"):
        directory.verification_key(directory.find("other"))
    shutil.copy(VECTORS / "chain5.bn254.zkey", folder / "both.zkey")
    with pytest.raises(gpuprover.InvalidInput, match=r"'both' is there more than once"):
        directory.find("both")


def test_the_service(toy: None, folder: Path) -> None:
    command = ("-m", "gpuprover", "serve", "--json", "--threads", "1", "--preload-circuits", "root")
    environment = {
        "PROVER_CIRCUIT_KEYS_PATH": str(folder),
        "PROVER_PORT": "0",
        "PROVER_MAX_WORKERS": "0",
        "PROVER_VERIFIER": "inline",
        "PYTHONPATH": PLUGIN,
    }
    with running(*command, **environment) as (_, line), Client(json.loads(line)["url"]) as client:
        found = client.prove("root", str(folder / WITNESS))
        assert found.proof is not None
        assert found.proof["protocol"] == "toy"
        assert client.verify("root", found.public_signals, found.proof)
        assert not client.verify("root", ["26"], found.proof)
        assert client.circuit("root")["protocol"] == "toy"
        assert client.verification_key("root") == gpuprover.load_key(folder / KEY).vk.document
        assert client.status()["latest_proofs"][0]["protocol"] == "toy"


def test_the_command_line(toy: None, folder: Path) -> None:
    def ran(*words: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "gpuprover", *words, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    proof, public, vkey = (str(folder / f"{name}.json") for name in ("proof", "public", "vkey"))
    assert ran("zkey", "info", str(folder / KEY))["protocol"] == "toy"
    ran("zkey", "export", "verificationkey", str(folder / KEY), vkey)
    ran("prove", str(folder / KEY), str(folder / WITNESS), proof, public)
    assert ran("verify", vkey, public, proof)["valid"]


def test_the_registry_is_text(toy: None) -> None:
    assert system.names() == ["groth16", "plonk", "fflonk", "midnight", "toy"]
    assert system.system_named("toy") is toy_system.SYSTEM
    assert system.system_of_document({"protocol": "toy"}).name == "toy"
    for other in ({}, {"protocol": "stark"}, [], None):
        assert system.system_of_document(other).name == "groth16"
    expected = "'groth16' or 'plonk' or 'fflonk' or 'midnight' or 'toy', found \"stark\""
    with pytest.raises(gpuprover.UnsupportedFile, match=f"protocol: expected {expected}"):
        system.parse_verification_key({"protocol": "stark"})
    chain = VECTORS / "chain5.bn254.zkey"
    assert system.system_of_key(chain).name == "groth16"
    with pytest.raises(KeyError):
        system.system_named("stark")
