"""Proof systems side by side: every way to prove and to verify takes each of them by looking at its files."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import gpuprover
from gpuprover.circuits import CircuitBuilder
from gpuprover.curves import BN254
from gpuprover.demand import UNLIMITED
from gpuprover.devices import open_backend
from gpuprover.errors import EXIT_BAD_INPUT, EXIT_INVALID
from gpuprover.executor import ProofRequest
from gpuprover.formats.wtns import read_witness, write_witness
from gpuprover.job import Job
from gpuprover.runner import Runner
from gpuprover.service.client import Client
from gpuprover.systems import system
from gpuprover.verifier.process import VerifierProcess
from gpuprover.witness_source import looked_at
from tests.service.test_server import running
from tests.support.paths import ROOT, VECTORS
from tests.support.plonk import Sample, sample
from tests.support.running import Ran, Run
from tests.test_witness import write_program

PROTOCOLS = ["plonk", "fflonk"]
SAMPLES = [
    *(sample(name) for name in ("adds", "nopub-8gates", "bls-small")),
    *(sample(name, "fflonk") for name in ("adds", "nopub-8gates")),
]
EACH = [sample("adds", protocol) for protocol in PROTOCOLS]
IDS = [f"{s.name}-{s.protocol}" for s in SAMPLES]


def raised(signals: list[str]) -> list[str]:
    """Other public signals."""
    return [*signals[:-1], str(int(signals[-1]) + 1)]


def changed(proof: Any) -> Any:
    """The proof with its first integer raised by one: most likely off the curve."""
    proof = json.loads(json.dumps(proof))
    points = proof.get("polynomials", proof)
    first = next(iter(points))
    points[first][1] = str(int(points[first][1]) + 1)
    return proof


def unsatisfied(of: Sample, folder: Path) -> Path:
    witness = read_witness(of.witness)
    values = np.array(witness.values)
    values[-1, 0] ^= 1
    write_witness(folder / "wrong.wtns", witness.curve.scalar, values)
    return folder / "wrong.wtns"


def write_squares(folder: Path, name: str) -> None:
    """A circuit of two public inputs a[0]² = a[1], and its witness program."""
    builder = CircuitBuilder(BN254)
    x, y = builder.public_input(3), builder.public_input(9)
    builder.constrain(x, x, y)
    builder.build().write(folder / f"{name}.r1cs", folder / f"{name}.wtns")
    write_program(folder / f"{name}.wasm")


# The library -----------------------------------------------------------------------


@pytest.mark.parametrize("of", SAMPLES, ids=IDS)
def test_the_library(of: Sample, tmp_path: Path) -> None:
    key = gpuprover.load_key(of.key)
    assert (key.protocol, key.verification_key) == (of.protocol, of.verification_key)
    result = gpuprover.prove(key, of.witness)
    assert result.public_signals == of.public
    assert result.proof != of.proof  # another blinding
    assert result.proof.keys() == of.proof.keys()
    for vkey in (key.vk, key.verification_key):
        assert gpuprover.verify(vkey, of.public, result.proof)
    theirs = of.proof
    statements = [(of.public, result.proof), (of.public, theirs), (of.public, changed(theirs))]
    assert gpuprover.verify_batch(key.vk, statements) == [True, True, False]
    if of.public:
        assert not gpuprover.verify(key.vk, raised(of.public), result.proof)
    with pytest.raises(gpuprover.UnsatisfiedWitness):
        gpuprover.prove(key, unsatisfied(of, tmp_path))
    assert set(system.system_named(of.protocol).phases) <= set(result.timings)


@pytest.mark.parametrize("of", EACH, ids=PROTOCOLS)
def test_fixed_blinding_has_as_many_numbers_as_the_system_draws(of: Sample) -> None:
    made = gpuprover.prove(of.key, of.witness, blinding=of.blinding)
    assert json.dumps(made.proof, indent=1) == of.proof_text
    with pytest.raises(gpuprover.InvalidInput, match=str(len(of.blinding))):
        gpuprover.prove(of.key, of.witness, blinding=(1, 2))


@pytest.mark.parametrize("protocol", ["stark", "", None, 2])
def test_a_set_up_for_an_unknown_system_is_refused(protocol: Any, tmp_path: Path) -> None:
    with pytest.raises(gpuprover.InvalidInput, match="protocol: expected one of groth16, plonk"):
        gpuprover.setup(SAMPLES[0].circuit, tmp_path / "a.zkey", protocol=protocol, insecure=True)
    assert not list(tmp_path.iterdir())


def test_plans_on_the_cpu_go_down_to_the_leanest_demand() -> None:
    of, runner = sample("adds"), Runner()
    *_, leanest = gpuprover.load_key(of.key).demand.choices
    info = runner.load(str(of.key), job=Job(threads=2))
    plans = info.plans["cpu"]
    assert leanest.chunks > 1
    assert [plan.total for plan in plans] == sorted({plan.total for plan in plans}, reverse=True)
    assert plans[-1] == open_backend("cpu", BN254, Job(threads=1)).plan(leanest, UNLIMITED)
    need = plans[-1].tables + plans[-1].arena
    request = ProofRequest(1, info.path, info.identity, looked_at(of.witness), threads=1, budget=need)
    made = runner.prove(request)
    assert gpuprover.verify(of.verification_key, made.public_signals, made.proof)
    with pytest.raises(gpuprover.OutOfMemory):
        runner.prove(replace(request, budget=need - 1))


# The command line --------------------------------------------------------------------


@pytest.mark.parametrize("of", [SAMPLES[1], *EACH], ids=["nopub-8gates", *PROTOCOLS])
def test_the_command_line(run: Run, of: Sample, tmp_path: Path) -> None:
    proof, public, vkey = (tmp_path / f"{name}.json" for name in ("proof", "public", "vkey"))
    assert run("zkey", "export", "verificationkey", of.key, vkey, "--quiet") == Ran(0, "", "")
    assert vkey.read_text() == of.verification_key_text
    for group in ([], [of.protocol]):
        assert run(*group, "prove", of.key, of.witness, proof, public, "--quiet").code == 0
        assert public.read_text() == (json.dumps(of.public, indent=1) if of.public else "[\n]")
        assert run(*group, "verify", vkey, public, proof, "--strict") == Ran(0, "OK\n", "")
        if of.public:
            public.write_text(json.dumps(raised(of.public)))
            assert run(*group, "verify", vkey, public, proof) == Ran(EXIT_INVALID, "INVALID\n", "")
        proof.unlink()
    ran = run(of.protocol, "prove", of.key, unsatisfied(of, tmp_path), proof, public)
    assert (ran.code, proof.exists()) == (EXIT_INVALID, False)
    assert "UnsatisfiedWitness" in ran.err


@pytest.mark.parametrize("of", EACH, ids=PROTOCOLS)
def test_what_commands_say_of_a_key(run: Run, of: Sample) -> None:
    answer = run("zkey", "info", of.key, "--json").answer
    key = gpuprover.load_key(of.key)
    assert (answer["protocol"], answer["curve"]) == (of.protocol, "bn254")
    assert (answer["constraints"], answer["public_signals"]) == (key.constraints, len(of.public))
    text = run("zkey", "info", of.key).out
    assert f"protocol        {of.protocol}\n" in text
    assert f"gates           {key.constraints}\n" in text
    assert "contributions" not in text
    answer = run("estimate", "--proof-time", 1, "--zkey", of.key, "--json").answer
    (memory,) = answer["memory"]
    assert (answer["work"], answer["key_bytes"]) == (f"{of.protocol} bn254", of.key.stat().st_size)
    assert 0 < memory["key"] < answer["key_bytes"] / 2, "most of a key is read by no proof"
    profiled = run("profile", of.key, of.witness, "--proofs", 1, "--threads", 1, "--json").answer
    assert set(system.system_named(of.protocol).phases) <= set(profiled["phases"])
    assert profiled["key_read"] == memory["key"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_from_a_circuit_to_a_proof_from_inputs(run: Run, protocol: str, tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("c.r1cs", "c.wtns", "c.wasm", "c.zkey", "in.json", "v.json")}
    outputs = [tmp_path / "proof.json", tmp_path / "public.json"]
    write_squares(tmp_path, "c")
    files["in.json"].write_text(json.dumps({"a": ["3", 9]}))

    made = run("setup", files["c.r1cs"], files["c.zkey"], "--protocol", protocol, "--insecure", "--json")
    assert made.code == 0, made.err
    assert (made.answer["protocol"], made.answer["public_signals"]) == (protocol, 2)
    assert "forge" in made.answer["warnings"][0]
    checked = run("zkey", "check", files["c.zkey"], "--json")
    assert checked.code == 0, checked.err
    assert checked.answer["r1cs"] == str(files["c.r1cs"])
    inputs = (files["in.json"], files["c.wasm"], files["c.zkey"])
    for group in ([], [protocol]):
        assert run(*group, "fullprove", *inputs, *outputs, "--quiet").code == 0
        assert json.loads(outputs[1].read_text()) == ["3", "9"]
        run("zkey", "export", "verificationkey", files["c.zkey"], files["v.json"])
        assert run(*group, "verify", files["v.json"], outputs[1], outputs[0]).code == 0
        outputs[0].unlink()
    files["in.json"].write_text(json.dumps({"a": [3, 8]}))
    assert run("fullprove", *inputs, *outputs).code == EXIT_INVALID
    assert not outputs[0].exists()


@pytest.mark.parametrize("of", EACH, ids=PROTOCOLS)
def test_exports_for_ethereum(run: Run, of: Sample, tmp_path: Path) -> None:
    contract, public = tmp_path / "verifier.sol", tmp_path / "public.json"
    assert run("zkey", "export", "solidityverifier", of.key, contract, "--quiet").code == 0
    assert f"contract {of.protocol.capitalize()}Verifier" in contract.read_text()
    public.write_text(json.dumps(of.public))
    ran = run("zkey", "export", "soliditycalldata", public, _written(of, tmp_path, "proof"))
    assert ran.code == 0
    words = [int(word, 16) for word in re.findall("0x[0-9a-f]{64}", ran.out)]
    assert len(words) == 24 + len(of.public)
    assert [str(word) for word in words[24:]] == of.public


def test_a_worker_takes_keys_of_all_systems(tmp_path: Path) -> None:
    wanted = {of.protocol: (of.key, of.witness) for of in EACH}
    wanted["groth16"] = (VECTORS / "chain5.bn254.zkey", VECTORS / "chain5.bn254.wtns")
    jobs = "".join(
        f"prove --zkey '{key}' --witness '{witness}' --proof '{tmp_path}/{name}' --public '{tmp_path}/s'\n"
        for name, (key, witness) in wanted.items()
    )
    command = [sys.executable, "-m", "gpuprover", "worker", "--threads", "1"]
    done = subprocess.run(command, input=jobs, capture_output=True, text=True, timeout=100, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["ok"] for line in done.stdout.splitlines()] == [True] * len(wanted)
    for name in wanted:
        assert json.loads((tmp_path / name).read_text())["protocol"] == name


def test_fflonk_is_over_one_curve(run: Run, tmp_path: Path) -> None:
    circuit = sample("bls-small").circuit
    ran = run("setup", circuit, tmp_path / "c.zkey", "--protocol", "fflonk", "--insecure")
    assert (ran.code, (tmp_path / "c.zkey").exists()) == (EXIT_BAD_INPUT, False)
    assert "bls12-381" in ran.err
    given = ["estimate", "--proof-time", 1, "--protocol", "fflonk"]
    for arguments in (["--constraints", 5, "--curve", "bls12-381"], ["--r1cs", circuit]):
        ran = run(*given, *arguments)
        assert ran.code == EXIT_BAD_INPUT
        assert "fflonk is over bn254, not over bls12-381" in ran.err


def test_commands_of_one_system_refuse_the_files_of_another(run: Run, tmp_path: Path) -> None:
    outputs = [tmp_path / "p.json", tmp_path / "s.json"]
    chain = VECTORS / "chain5.bn254"
    theirs = {
        "groth16": (f"{chain}.zkey", f"{chain}.wtns", f"{chain}.vkey.json", f"{chain}.proof.json"),
        **{
            of.protocol: (of.key, of.witness, _written(of, tmp_path), _written(of, tmp_path, "proof"))
            for of in EACH
        },
    }
    for name in theirs:
        for other, (key, witness, vkey, proof) in theirs.items():
            if other == name:
                continue
            ran = run(name, "prove", key, witness, *outputs)
            assert ran.code == EXIT_BAD_INPUT
            assert f"section 1 (protocol): expected a {name} key, found a {other} key" in ran.err
            ran = run(name, "verify", vkey, f"{chain}.public.json", proof)
            assert ran.code == EXIT_BAD_INPUT
            assert f"{vkey}: protocol: expected '{name}', found \"{other}\"" in ran.err
            ran = run("verify", theirs[name][2], f"{chain}.public.json", proof)
            assert ran.code == EXIT_BAD_INPUT
    assert not any(path.exists() for path in outputs)


def _written(of: Sample, folder: Path, what: str = "verification_key") -> Path:
    path = folder / f"{of.protocol}.{what}.json"
    path.write_text(json.dumps(getattr(of, what)))
    return path


def test_names_of_systems_are_those_of_the_commands() -> None:
    from gpuprover.cli.parser import PROTOCOLS as GROUPS

    # Midnight's commands take other files.
    assert [*GROUPS, "midnight"] == system.names()


# Engine, verifier, service ---------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One circuit of each system, called as the system is."""
    shutil.copyfile(VECTORS / "chain5.bn254.zkey", tmp_path / "groth16.zkey")
    for protocol in PROTOCOLS:
        shutil.copyfile(sample("adds", protocol).key, tmp_path / f"{protocol}.zkey")
    return tmp_path


def test_one_engine_for_keys_of_all_systems(folder: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"device": "cpu", "threads": 1, "max_workers": 1, "policy": "lazy"}
    with gpuprover.create_prover(circuit_keys_path=folder, **settings) as prover:
        jobs = {name: prover.submit(name, sample("adds", name).witness) for name in PROTOCOLS}
        jobs["groth16"] = prover.submit("groth16", VECTORS / "chain5.bn254.wtns")
        for name, job in jobs.items():
            result = job.wait(100)
            assert (result.proof["protocol"], job.protocol) == (name, name)
            assert prover.verify(name, result.public_signals, result.proof)
            wrong = raised(result.public_signals)
            assert not prover.verify(name, wrong, result.proof)
            statements = [(result.public_signals, result.proof), (wrong, result.proof)]
            assert prover.verify_batch(name, statements) == [True, False]
        for name in PROTOCOLS:
            of = sample("adds", name)
            with pytest.raises(gpuprover.UnsatisfiedWitness):
                prover.prove(name, unsatisfied(of, tmp_path))
            with pytest.raises(gpuprover.UnsupportedFile, match="protocol: expected 'groth16'"):
                prover.verify("groth16", ["1", "2"], of.proof)


def test_a_verifier_process_holds_keys_of_all_systems() -> None:
    with VerifierProcess("lazy", threads=1) as verifier:
        for of in SAMPLES:
            digest = gpuprover.load_key(of.key).vk.digest
            assert verifier.load(name := f"{of.protocol} {of.name}", of.verification_key, digest) == digest
            assert verifier.verify(name, of.public, of.proof)
            statements = [(of.public, of.proof)] * 2 + [(of.public, changed(of.proof))]
            assert verifier.verify_batch(name, statements) == [True, True, False]


def test_one_service_for_keys_of_all_systems(folder: Path) -> None:
    write_squares(folder, "squares")
    gpuprover.setup(folder / "squares.r1cs", folder / "squares.zkey", protocol="plonk", insecure=True)
    command = ("-m", "gpuprover", "serve", "--json", "--threads", "1")
    environment = {
        "PROVER_CIRCUIT_KEYS_PATH": str(folder),
        "PROVER_PORT": "0",
        "PROVER_MAX_WORKERS": "0",
        "PROVER_VERIFIER": "inline",
        "PROVER_RAPIDSNARK": "on",
    }
    with running(*command, **environment) as (_, line), Client(json.loads(line)["url"]) as client:
        for name in PROTOCOLS:
            of = sample("adds", name)
            found = client.prove(name, str(of.witness))
            assert found.proof is not None
            assert (found.proof["protocol"], found.public_signals) == (name, of.public)
            assert client.verify(name, of.public, found.proof)
            assert client.verify(name, of.public, of.proof)
            statements = [(of.public, of.proof), (raised(of.public), of.proof)]
            assert list(client.verify_batch(name, statements)) == [True, False]
            assert client.circuit(name)["protocol"] == name
            assert client.verification_key(name) == of.verification_key
            assert client.status()["latest_proofs"][0]["protocol"] == name
            with pytest.raises(gpuprover.UnsupportedFile):
                client.verify("groth16", ["1", "2"], of.proof)
        found = client.prove("groth16", str(VECTORS / "chain5.bn254.wtns"))
        assert found.proof is not None
        assert found.proof["protocol"] == "groth16"
        with httpx.Client(base_url=json.loads(line)["url"], timeout=30) as http:
            assert http.post("/input/squares", json={"a": ["3", 9]}).status_code == 202
            while (answer := http.get("/status").json())["status"] == "busy":
                time.sleep(0.02)
            assert answer["pubData"] == '["3", "9"]'
            made = json.loads(answer["proof"])
            assert made["protocol"] == "plonk"
            assert client.verify("squares", ["3", "9"], made)
