"""Midnight's circuits beside circom's: the library, a prover with its processes, the service."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import gpuprover
from gpuprover.midnight.preimage import read_preimage, write_preimage
from gpuprover.runner import Runner
from gpuprover.service.client import Client
from gpuprover.systems import system
from tests.service.test_server import running
from tests.support.paths import VECTORS

FILES = VECTORS / "midnight"
KEY, PREIMAGE = FILES / "hello.prover", FILES / "hello.preimage"
PUBLIC = json.loads((FILES / "hello.pis.json").read_text())


@pytest.fixture(autouse=True)
def parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIDNIGHT_PP", str(FILES))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("hello.prover", "hello.verifier", "increment.prover"):
        shutil.copy(FILES / name, tmp_path)
    shutil.copy(FILES / "t8c.verifier", tmp_path)
    shutil.copy(VECTORS / "chain5.bn254.zkey", tmp_path / "chain.zkey")
    return tmp_path


def wrong_preimage() -> bytes:
    """One that the circuit does not accept."""
    return write_preimage(replace(read_preimage(PREIMAGE.read_bytes()), inputs=(4242424242,)))


def raised(signals: list[str]) -> list[str]:
    return [*signals[:-1], str(int(signals[-1]) + 1)]


def test_the_library() -> None:
    key = gpuprover.load_key(KEY)
    assert (key.protocol, key.curve.name, key.n_public) == ("midnight", "bls12-381", len(PUBLIC))
    result = gpuprover.prove(key, PREIMAGE)
    assert result.public_signals == PUBLIC
    assert result.proof.keys() == {"protocol", "curve", "proof"}
    assert set(system.system_named("midnight").phases) <= set(result.timings)
    again = gpuprover.prove(key, PREIMAGE.read_bytes(), threads=1)
    assert again.proof != result.proof
    assert gpuprover.verify(key.verification_key, PUBLIC, result.proof)
    assert not gpuprover.verify(key.verification_key, raised(PUBLIC), result.proof)
    document = json.loads(json.dumps(key.verification_key))
    statements: list[Any] = [
        (PUBLIC, result.proof),
        (raised(PUBLIC), result.proof),
        (PUBLIC, {"proof": "00"}),
    ]
    assert gpuprover.verify_batch(document, statements) == [True, False, False]
    assert gpuprover.verify(FILES / "hello.verifier", PUBLIC, result.proof)
    verifier = system.read_verification_key(FILES / "hello.verifier")
    assert verifier.digest == key.vk.digest


def test_witnesses_of_another_kind_are_refused() -> None:
    key = gpuprover.load_key(KEY)
    for witness in ([1, 2], {"inputs": {}, "wasm": "a.wasm"}):
        with pytest.raises(gpuprover.InvalidInput, match="witness: expected a file or its bytes"):
            gpuprover.prove(key, witness)
    with pytest.raises(gpuprover.MalformedFile, match=r"chain5.bn254.wtns: .*midnight:proof-preimage"):
        gpuprover.prove(key, VECTORS / "chain5.bn254.wtns")
    with pytest.raises(gpuprover.MalformedFile, match="midnight:proof-preimage"):
        gpuprover.prove(key, b"")
    with pytest.raises(gpuprover.MalformedFile, match=r"hello\.preimage: "):
        gpuprover.prove(VECTORS / "chain5.bn254.zkey", PREIMAGE)


def test_a_failed_check_says_where_and_no_values() -> None:
    with pytest.raises(gpuprover.UnsatisfiedWitness, match="instruction") as caught:
        gpuprover.prove(KEY, wrong_preimage())
    assert caught.value.kind == "UnsatisfiedWitness"
    assert "Some(" in caught.value.official  # type: ignore[attr-defined]
    assert "Some(" not in caught.value.message


def test_plans_for_the_engine() -> None:
    info = Runner().load(str(KEY))
    assert (info.protocol, info.constraints, info.n_public) == ("midnight", 64, len(PUBLIC))
    assert info.verification_key["verifier"] == (FILES / "hello.verifier").read_bytes().hex()
    assert all(plan.total > 0 for plan in info.plans["cpu"])


def test_a_prover_its_workers_and_the_verifier_process(folder: Path) -> None:
    settings: dict[str, Any] = {"device": "cpu", "threads": 1, "max_workers": 1, "policy": "lazy"}
    with gpuprover.create_prover(circuit_keys_path=folder, proof_cache=8, **settings) as prover:
        assert prover.circuits() == ["chain", "hello", "increment", "t8c"]
        result = prover.prove("hello", PREIMAGE)
        assert result.public_signals == PUBLIC
        assert prover.verify("hello", PUBLIC, result.proof)
        assert not prover.verify("hello", raised(PUBLIC), result.proof)
        pairs: list[Any] = [(PUBLIC, result.proof), (raised(PUBLIC), result.proof)]
        assert prover.verify_batch("hello", pairs) == [True, False]
        jobs = [prover.submit("increment", (FILES / "increment.preimage").read_bytes()) for _ in range(2)]
        made = [job.wait(100) for job in jobs]
        assert made[0].public_signals == json.loads((FILES / "increment.pis.json").read_text())
        assert prover.prove("chain", VECTORS / "chain5.bn254.wtns").proof["protocol"] == "groth16"
        with pytest.raises(gpuprover.UnsatisfiedWitness, match="instruction") as caught:
            prover.prove("hello", wrong_preimage())
        assert "Some(" not in str(caught.value)
        with pytest.raises(gpuprover.CircuitNotFound, match="'t8c' can be verified only"):
            prover.prove("t8c", PREIMAGE)
        proof = {"protocol": "midnight", "proof": (FILES / "t8c.official.proof").read_bytes()[-3440:].hex()}
        public = json.loads((FILES / "t8c.pis.json").read_text())["pi"]
        assert prover.verify("t8c", public, proof)


def test_the_service(folder: Path) -> None:
    command = ("-m", "gpuprover", "serve", "--json", "--threads", "1", "--preload-circuits", "hello")
    environment = {
        "PROVER_CIRCUIT_KEYS_PATH": str(folder),
        "PROVER_PORT": "0",
        "PROVER_MAX_WORKERS": "0",
        "PROVER_VERIFIER": "inline",
        "MIDNIGHT_PP": str(FILES),
    }
    with running(*command, **environment) as (_, line), Client(json.loads(line)["url"]) as client:
        found = client.prove("hello", str(PREIMAGE))
        assert found.proof is not None
        assert found.proof["protocol"] == "midnight"
        assert found.public_signals == PUBLIC
        assert client.verify("hello", PUBLIC, found.proof)
        assert not client.verify("hello", raised(PUBLIC), found.proof)
        key = client.verification_key("hello")
        assert gpuprover.verify(key, PUBLIC, found.proof)
        with pytest.raises(gpuprover.UnsatisfiedWitness, match="instruction"):
            client.prove("hello", wrong_preimage())
