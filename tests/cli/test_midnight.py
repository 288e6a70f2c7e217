"""gpuprover midnight on real files: what it writes, its exit codes, one line for what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from gpuprover import midnight_api
from gpuprover.errors import EXIT_BAD_INPUT, EXIT_INVALID
from gpuprover.midnight import preimage as preimage_file
from tests.support.paths import VECTORS
from tests.support.running import Ran, Run

FILES = VECTORS / "midnight"
KEYS = (FILES / "hello.prover", FILES / "hello.verifier")
PUBLIC = FILES / "hello.pis.json"


@pytest.fixture(autouse=True)
def parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIDNIGHT_PP", str(FILES))


def refused(ran: Ran, code: int, *parts: str) -> None:
    """One line on stderr that has these parts."""
    assert (ran.code, ran.out, ran.err.count("\n")) == (code, "", 1), ran
    for part in parts:
        assert part in ran.err


def test_a_proof_is_made_and_verified(run: Run, tmp_path: Path) -> None:
    proof = tmp_path / "hello.proof"
    ran = run("midnight", "prove", *KEYS, FILES / "hello.preimage", proof, "--json")
    assert ran.code == 0
    answer = json.loads(ran.out)
    assert (answer["proof"], answer["bytes"]) == (str(proof), 2912)
    assert {"check", "synthesis", "verify"} <= set(answer["timings"])
    data = proof.read_bytes()
    assert data.startswith(b"midnight:proof[v5]:")
    assert len(data) == len((FILES / "hello.official.proof").read_bytes())
    assert run("midnight", "verify", KEYS[1], PUBLIC, proof) == Ran(0, "OK\n", "")
    raw, server = tmp_path / "raw", tmp_path / "server"
    raw.write_bytes(midnight_api.raw_proof(proof))
    assert len(raw.read_bytes()) == 2912
    server.write_bytes(b"midnight:proof-versioned:\x01" + data.removeprefix(b"midnight:proof[v5]:"))
    for other in (raw, server):
        assert run("midnight", "verify", KEYS[1], PUBLIC, other, "--json").answer["valid"] is True
    public = json.loads(PUBLIC.read_text())
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps({"check": [None, 3], "pi": [*public[:-1], "5"]}))
    assert run("midnight", "verify", KEYS[1], wrong, proof) == Ran(EXIT_INVALID, "INVALID\n", "")


@pytest.mark.parametrize("line", ["hello", "t8c"])
def test_official_proofs_hold_and_damaged_ones_do_not(run: Run, tmp_path: Path, line: str) -> None:
    proof = (FILES / f"{line}.official.proof").read_bytes()
    names = (FILES / f"{line}.verifier", FILES / f"{line}.pis.json")
    (tmp_path / "good").write_bytes(proof)
    assert run("midnight", "verify", *names, tmp_path / "good") == Ran(0, "OK\n", "")
    for place in (-1, -2000):
        damaged = bytearray(proof)
        damaged[place] ^= 1
        (tmp_path / "bad").write_bytes(damaged)
        ran = run("midnight", "verify", *names, tmp_path / "bad")
        assert (ran.code, ran.out) == (EXIT_INVALID, "INVALID\n")
    (tmp_path / "short").write_bytes(midnight_api.raw_proof(proof)[:-1])
    ran = run("midnight", "verify", *names, tmp_path / "short")
    assert (ran.code, ran.out, "bytes, found" in ran.err) == (EXIT_INVALID, "INVALID\n", True)


def test_a_binding_input_and_a_raw_proof(run: Run, tmp_path: Path) -> None:
    proof, public = tmp_path / "p", tmp_path / "pis.json"
    command = ("midnight", "prove", *KEYS, FILES / "hello.preimage", "--binding", "77", "--raw", proof)
    assert run(*command, "--quiet") == Ran(0, "", "")
    assert len(proof.read_bytes()) == 2912
    public.write_text(json.dumps(["77", *json.loads(PUBLIC.read_text())[1:]]))
    assert run("midnight", "verify", KEYS[1], public, proof).code == 0
    assert run("midnight", "verify", KEYS[1], PUBLIC, proof).code == EXIT_INVALID
    for binding in ("-1", "x", "1" * 90, str(1 << 255)):
        ran = run(*command[:-3], f"--binding={binding}", tmp_path / "q")
        refused(ran, EXIT_BAD_INPUT, "--binding: expected a whole number below the prime")


def test_an_advice_table_in_place_of_a_preimage(run: Run, tmp_path: Path) -> None:
    proof, table = tmp_path / "p", FILES / "hello.advice.bin.xz"
    command = ("midnight", "prove", *KEYS)
    assert run(*command, proof, "--advice", table, "--public", PUBLIC).code == 0
    assert run("midnight", "verify", KEYS[1], PUBLIC, proof).code == 0
    wrong = tmp_path / "pis.json"
    wrong.write_text(json.dumps([*json.loads(PUBLIC.read_text())[:-1], "5"]))
    ran = run(*command, tmp_path / "q", "--advice", table, "--public", wrong)
    refused(ran, EXIT_INVALID, "UnsatisfiedWitness")
    refused(
        run(*command, tmp_path / "q", "--advice", FILES / "t8c.advice.bin.xz", "--public", PUBLIC),
        EXIT_BAD_INPUT,
        "t8c.advice.bin.xz: expected 8 columns of 64 rows",
    )
    refused(run(*command, tmp_path / "q", "--advice", table), EXIT_BAD_INPUT, "both or neither")
    refused(
        run(*command, "a", tmp_path / "q", "--advice", table, "--public", PUBLIC),
        EXIT_BAD_INPUT,
        "expected PROOF alone",
    )
    assert not (tmp_path / "q").exists()


def test_a_preimage_that_the_circuit_does_not_accept(run: Run, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.preimage"
    preimage = preimage_file.read_preimage((FILES / "hello.preimage").read_bytes())
    values: Any = {**vars(preimage), "inputs": (4242424242,)}
    wrong.write_bytes(preimage_file.write_preimage(type(preimage)(**values)))
    for command in (("prove", *KEYS, wrong, tmp_path / "q"), ("check", FILES / "hello.bzkir", wrong)):
        refused(run("midnight", *command), EXIT_INVALID, "UnsatisfiedWitness")
        silent = run("midnight", *command).err
        shown = run("midnight", *command, "--show-values").err
        assert silent != shown
        assert "expected: Some(" in shown
        assert "Some(" not in silent
    assert not (tmp_path / "q").exists()


def test_check_and_k(run: Run) -> None:
    assert run("midnight", "check", FILES / "hello.bzkir", FILES / "hello.preimage").out.startswith("OK\n")
    answer = run("midnight", "check", FILES / "t8c.zkir", FILES / "t8c.preimage", "--json").answer
    assert answer["groups"] == json.loads((FILES / "t8c.pis.json").read_text())["check"]
    for name, k in (("hello", 6), ("increment", 5), ("t8c", 9), ("compact_is_odd", 8)):
        assert run("midnight", "k", FILES / f"{name}.bzkir") == Ran(0, f"{k}\n", "")
    assert run("midnight", "k", FILES / "hello.zkir", "--json").answer["k"] == 6


@pytest.mark.parametrize("name", ["increment", "fallible"])
def test_keys_are_the_official_ones(run: Run, tmp_path: Path, name: str) -> None:
    prover, verifier = tmp_path / "a.prover", tmp_path / "a.verifier"
    answer = run("midnight", "keygen", FILES / f"{name}.bzkir", prover, verifier, "--json").answer
    for path, kind in ((prover, "prover"), (verifier, "verifier")):
        assert path.read_bytes() == (FILES / f"{name}.{kind}").read_bytes()
        assert answer["bytes"][kind] == path.stat().st_size


@pytest.mark.parametrize("suffix", ["prover", "verifier", "bzkir", "preimage", "official.proof"])
def test_info_of_any_file(run: Run, suffix: str) -> None:
    answer = run("midnight", "info", FILES / f"hello.{suffix}", "--json").answer
    assert answer["ok"]
    assert len(answer) > 3
    assert "123456789" not in json.dumps(answer)
    assert run("midnight", "info", FILES / f"hello.{suffix}").code == 0


def test_parameters(run: Run, tmp_path: Path) -> None:
    assert "k = 6" in run("midnight", "srs", "check", FILES / "bls_midnight_2p6").out
    small = tmp_path / "bls_midnight_2p5"
    assert run("midnight", "srs", "downsize", FILES / "bls_midnight_2p6", small, "--k", "5").code == 0
    assert small.read_bytes() == (FILES / "bls_midnight_2p5").read_bytes()
    small.write_bytes(small.read_bytes()[:-1] + b"\1")
    refused(run("midnight", "srs", "check", small), EXIT_BAD_INPUT, "SHA-256: expected", "bls_midnight_2p5")
    refused(
        run("midnight", "srs", "downsize", FILES / "bls_midnight_2p5", tmp_path / "x", "--k", "6"),
        EXIT_BAD_INPUT,
        "parameters can only become smaller",
    )


def test_what_is_missing_or_does_not_belong_together_is_one_line(run: Run, tmp_path: Path) -> None:
    preimage, proof = FILES / "hello.preimage", tmp_path / "p"
    folder = tmp_path / "empty"
    folder.mkdir()
    digest = next(
        line.split()[0]
        for line in (FILES / "srs-sha256.txt").read_text().splitlines()
        if line.endswith("2p6")
    )
    ran = run("midnight", "prove", *KEYS, preimage, proof, "--srs", folder)
    refused(ran, EXIT_BAD_INPUT, f"{folder}: no bls_midnight_2p6", digest)
    ran = run("midnight", "prove", KEYS[0], FILES / "fallible.verifier", preimage, proof)
    refused(ran, EXIT_BAD_INPUT, "fallible.verifier: it is not the verifier key of", "hello.prover")
    refused(run("midnight", "prove", *KEYS, proof), EXIT_BAD_INPUT, "expected PREIMAGE and PROOF")
    refused(run("midnight", "prove", *KEYS, KEYS[0], proof), EXIT_BAD_INPUT, "hello.prover: ", "preimage")
    refused(run("midnight", "k", KEYS[0]), EXIT_BAD_INPUT, "hello.prover: ")
    refused(run("midnight", "info", Path(__file__)), EXIT_BAD_INPUT, "test_midnight.py: ")
    bad = tmp_path / "pis.json"
    for text, problem in (
        ('{"pi": ["1"], "other": ["2"]}', "expected one list of decimal strings in the object, found 2"),
        ("{}", "found 0"),
        ('["1", "x"]', "signal 1: expected an integer"),
        ('["1"]', "1 signals, expected 12"),
    ):
        bad.write_text(text)
        ran = run("midnight", "verify", KEYS[1], bad, FILES / "hello.official.proof")
        refused(ran, EXIT_BAD_INPUT, problem)
    assert not proof.exists()


def test_larger_parameters_do(run: Run, tmp_path: Path) -> None:
    shutil.copy(FILES / "bls_midnight_2p8", tmp_path)
    command = ("midnight", "prove", *KEYS, FILES / "hello.preimage", tmp_path / "p", "--srs", tmp_path)
    assert run(*command).code == 0
    assert run("midnight", "verify", KEYS[1], PUBLIC, tmp_path / "p", "--srs", tmp_path).code == 0
