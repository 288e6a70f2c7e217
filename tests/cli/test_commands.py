"""Every command on real files: small circuits of our own, keys and proofs made by the commands themselves."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from gpuprover.bench import calibrate, drawings, load, processes

from gpuprover import calibration, errors, folders
from gpuprover.circuits import CircuitBuilder, chain_circuit
from gpuprover.cli import main
from gpuprover.cpu import image
from gpuprover.curves import BN254, CURVES, CurveParams
from gpuprover.folders import CACHE_VARIABLE
from gpuprover.formats.wtns import read_witness, write_witness
from gpuprover.systems.groth16.key_warnings import OWN_GAMMA
from tests.support.paths import ROOT, TESTS, VECTORS
from tests.support.running import Ran, Run
from tests.test_witness import FOREVER, write_program

STAND_IN = TESTS / "support" / "node_stand_in.py"
SERVICE_STAND_IN = STAND_IN.with_name("service_stand_in.py")


class Files(NamedTuple):
    """Names in one folder."""

    folder: Path

    def __getattr__(self, name: str) -> Path:
        return self.folder / name.replace("_", ".")


@pytest.fixture(scope="session", params=CURVES, ids=lambda c: c.name)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """c.r1cs, c.wtns, c.zkey, p.json, s.json, v.json of a chain of seven steps, for every curve."""
    curve: CurveParams = request.param
    files = Files(tmp_path_factory.mktemp(curve.name))
    chain_circuit(7, curve).write(files.c_r1cs, files.c_wtns)
    for arguments in (
        ["setup", files.c_r1cs, files.c_zkey, "--insecure"],
        ["prove", files.c_zkey, files.c_wtns, files.p_json, files.s_json],
        ["zkey", "export", "verificationkey", files.c_zkey, files.v_json],
    ):
        assert main([str(a) for a in [*arguments, "--quiet"]]) == 0
    return files


@pytest.fixture
def bn254(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    """A fresh copy of the BN254 files, to damage."""
    return _copy(VECTORS, "chain5.bn254", tmp_path)


def _copy(source: Path, stem: str, folder: Path) -> Files:
    names = {"zkey": "c.zkey", "wtns": "c.wtns", "r1cs": "c.r1cs", "ptau": "c.ptau", "vkey.json": "v.json"}
    names |= {"proof.json": "p.json", "public.json": "s.json", "initial.zkey": "initial.zkey"}
    for suffix, name in names.items():
        shutil.copyfile(source / f"{stem}.{suffix}", folder / name)
    return Files(folder)


# What they are for ---------------------------------------------------------------


@pytest.mark.parametrize("group", [[], ["groth16"]], ids=["", "groth16"])
def test_prove_and_verify(run: Run, made: Files, tmp_path: Path, group: list[str]) -> None:
    proof, public = tmp_path / "proof.json", tmp_path / "public.json"
    ran = run(*group, "prove", made.c_zkey, made.c_wtns, proof, public, "--threads", 1, "--json")
    assert ran.code == 0
    answer = json.loads(ran.out)
    assert answer["device"] == "cpu"
    assert {"quotient", "verify"} <= set(answer["timings"])
    assert 0 < answer["memory"]["before"] <= answer["memory"]["peak"]
    assert any("phase" in json.loads(line) for line in ran.err.splitlines())
    assert set(json.loads(proof.read_text())) == {"pi_a", "pi_b", "pi_c", "protocol", "curve"}

    said = f"warning: {made.v_json}: {OWN_GAMMA}\n"  # the key is of an insecure set-up
    assert run(*group, "verify", made.v_json, public, proof) == Ran(0, "OK\n", said)
    signals = json.loads(public.read_text())
    public.write_text(json.dumps([signals[0], str(int(signals[1]) + 1)]))
    assert run(*group, "verify", made.v_json, public, proof) == Ran(1, "INVALID\n", said)
    ran = run(*group, "verify", made.v_json, public, proof, "--json")
    assert (ran.code, json.loads(ran.out)) == (1, {"valid": False, "warnings": [OWN_GAMMA]})
    assert run(*group, "verify", made.v_json, public, proof, "--quiet") == Ran(1, "", said)


def test_prove_warns_of_a_key_that_can_be_forged(run: Run, bn254: Files) -> None:
    for zkey, says in (
        (bn254.c_zkey, "whoever made it can forge"),
        (bn254.initial_zkey, "anyone can forge proofs"),
    ):
        for arguments in (["prove", zkey, bn254.c_wtns, bn254.q_json, bn254.t_json], ["zkey", "info", zkey]):
            ran = run(*arguments, "--quiet")
            assert ran.code == 0
            assert ran.err.startswith(f"warning: {zkey}: this key has no phase-2 contribution")
            assert says in ran.err


def test_setup_from_ptau_is_the_ceremonys_initial_key(run: Run, bn254: Files) -> None:
    for arguments in (
        ["setup", bn254.c_r1cs, bn254.a_zkey, "--ptau", bn254.c_ptau],
        ["groth16", "setup", bn254.c_r1cs, bn254.c_ptau, bn254.a_zkey],
    ):
        ran = run(*arguments)
        assert ran.code == 0
        assert "anyone can forge" in ran.err
        assert bn254.a_zkey.read_bytes() == bn254.initial_zkey.read_bytes()
        bn254.a_zkey.unlink()


def test_insecure_setup_says_so(run: Run, bn254: Files) -> None:
    ran = run("setup", bn254.c_r1cs, bn254.a_zkey, "--insecure", "--json")
    assert ran.code == 0
    answer = json.loads(ran.out)
    assert (answer["constraints"], answer["contributions"]) == (5, 0)
    assert "can forge proofs" in answer["warnings"][0]


def test_wtns_check(run: Run, made: Files, tmp_path: Path) -> None:
    ran = run("wtns", "check", made.c_r1cs, made.c_wtns)
    assert ran == Ran(0, "OK: the witness satisfies all 7 constraints\n", "")
    bad = _unsatisfied(made.c_wtns, tmp_path / "bad.wtns")
    ran = run("wtns", "check", made.c_r1cs, bad)
    assert ran.code == errors.EXIT_INVALID
    assert ran.err.startswith(f"error: UnsatisfiedWitness: {bad}: ")


def _unsatisfied(source: Path, target: Path) -> Path:
    witness = read_witness(source)
    values = np.array(witness.values)
    values[-1, 0] ^= 1
    write_witness(target, witness.curve.scalar, values)
    return target


def test_zkey_info_and_check(run: Run, made: Files) -> None:
    ran = run("zkey", "info", made.c_zkey, "--json")
    answer = json.loads(ran.out)
    assert answer["curve"] == made.folder.name[:-1]
    assert (answer["constraints"], answer["public_signals"], answer["domain_size"]) == (7, 2, 16)
    ran = run("zkey", "info", made.c_zkey)
    assert ran.code == 0
    assert "constraints     7\n" in ran.out
    ran = run("zkey", "check", made.c_zkey)
    assert ran.code == 0
    assert ran.out.startswith("OK, as far as this was checked:\nchecked      every point lies in its group\n")
    assert "not checked  IC and C\n" in ran.out
    assert "0 claimed, not verified" in run("zkey", "info", made.c_zkey).out


def test_zkey_check_names_the_section_and_the_point(run: Run, bn254: Files) -> None:
    from gpuprover.systems.groth16.key import B2
    from tests.support.containers import edit

    def swap_x_and_y(section: bytearray) -> None:
        point = section[3 * 128 : 4 * 128]
        section[3 * 128 : 4 * 128] = point[64:] + point[:64]

    bn254.c_zkey.write_bytes(edit(bn254.c_zkey.read_bytes(), B2, swap_x_and_y))
    ran = run("zkey", "check", bn254.c_zkey)
    assert ran.code == errors.EXIT_BAD_INPUT
    assert f"error: MalformedFile: {bn254.c_zkey}: section 7 (B2 points): point 3 is off the curve" in ran.err


ONES = b"\xff" * 32


@pytest.mark.parametrize(
    ("section", "offset", "value", "kind", "says"),
    [
        (1, 0, b"\3", "UnsupportedFile", "key, found protocol id 3"),
        (2, 4, ONES, "UnsupportedFile", "primes of no known curve"),
        (2, 84, ONES, "MalformedFile", "alpha1"),
        (3, 32, ONES, "MalformedFile", "point 0"),
        (4, 0, ONES[:4], "MalformedFile", "records of 44 bytes"),
        (4, 4, b"\2", "MalformedFile", "record 0: matrix 2, expected below 2"),
        (4, 16, ONES, "MalformedFile", "record 0: value not below the prime"),
        (5, 2 * 64, ONES, "MalformedFile", "point 2"),
        (6, 3 * 64 + 32, b"\1", "MalformedFile", "point 3"),
        (7, 2 * 128 + 96, ONES, "MalformedFile", "point 2"),
        (8, 1 * 64, ONES[:1], "MalformedFile", "point 1"),
        (9, 5 * 64 + 63, b"\x70", "MalformedFile", "point 5"),
        (10, 64, ONES[:4], "MalformedFile", "ends within"),
    ],
)
def test_zkey_check_of_damage_in_every_section(
    run: Run, bn254: Files, section: int, offset: int, value: bytes, kind: str, says: str
) -> None:
    from gpuprover.systems.groth16.key import SECTIONS
    from tests.support.containers import edit, put

    good = bn254.c_zkey.read_bytes()
    assert run("zkey", "check", bn254.c_zkey).code == 0
    bn254.c_zkey.write_bytes(edit(good, section, put(offset, value)))
    ran = run("zkey", "check", bn254.c_zkey, "--json")
    assert ran.code == errors.EXIT_BAD_INPUT
    error = json.loads(ran.out)["error"]
    assert error["kind"] == kind
    assert error["message"].startswith(f"{bn254.c_zkey}: section {section} ({SECTIONS[section]})")
    assert says in error["message"]


def test_exports(run: Run, bn254: Files) -> None:
    assert run("zkey", "export", "verificationkey", bn254.c_zkey, bn254.w_json, "--quiet").code == 0
    assert json.loads(bn254.w_json.read_text()) == json.loads(bn254.v_json.read_text())
    ran = run("zkey", "export", "solidityverifier", bn254.c_zkey, bn254.v_sol)
    assert (ran.code, bn254.v_sol.exists()) == (errors.EXIT_BAD_INPUT, False)
    assert "proofs can be forged for this key, so no contract was written" in ran.err
    allowed = ("--allow-insecure", "--quiet")
    assert run("zkey", "export", "solidityverifier", bn254.c_zkey, bn254.v_sol, *allowed).code == 0
    assert "pragma solidity" in bn254.v_sol.read_text()
    ran = run("zkey", "export", "soliditycalldata", bn254.s_json, bn254.p_json)
    assert ran.code == 0
    a, b, c, signals = json.loads(f"[{ran.out}]")
    assert (len(a), len(b), len(c)) == (2, 2, 2)
    assert [int(s, 16) for s in signals] == [int(s) for s in json.loads(bn254.s_json.read_text())]
    as_json = json.loads(run("zkey", "export", "soliditycalldata", bn254.s_json, bn254.p_json, "--json").out)
    assert as_json["calldata"] + "\n" == ran.out
    assert run("zkey", "export", "soliditycalldata", bn254.s_json, bn254.p_json, "--quiet").out == ran.out


@pytest.fixture
def squares(tmp_path: Path, run: Run) -> Files:
    """c.wasm with input a[2], and the circuit a[0]² = a[1] of its witness; in.json satisfies it."""
    files = Files(tmp_path)
    builder = CircuitBuilder(BN254)
    x, y = builder.public_input(3), builder.public_input(9)
    builder.constrain(x, x, y)
    builder.build().write(files.c_r1cs, files.c_wtns)
    write_program(files.c_wasm)
    files.in_json.write_text(json.dumps({"a": ["3", 9]}))
    assert run("setup", files.c_r1cs, files.c_zkey, "--insecure", "--quiet").code == 0
    return files


def _documented_answers() -> dict[str, set[str]]:
    """README's table of JSON answers: command -> names."""
    text = (ROOT / "README.md").read_text().partition("### JSON answers")[2].partition("\n## ")[0]
    answers = {}
    for row in re.findall(r"^\| (`.*`) \| (.*) \|$", text, re.MULTILINE):
        commands, names = (re.findall(r"`([^`]+)`", cell) for cell in row)
        answers |= {command: set(names) for command in commands}
    return answers


def test_json_answers_are_documented(
    run: Run, bn254: Files, squares: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "LOGS", (3,))
    monkeypatch.setattr(calibration, "path", lambda: tmp_path / "calibration.json")
    monkeypatch.setattr(processes, "PROGRAM", [str(STAND_IN)])
    monkeypatch.setattr(processes, "SETTLE", 0.0)
    monkeypatch.setattr(processes, "evict", list)
    monkeypatch.setattr(drawings, "draw_memory", lambda *_, **__: None)
    monkeypatch.setattr(drawings, "draw_load", lambda *_: False)
    monkeypatch.setattr(load, "PROGRAM", [sys.executable, str(SERVICE_STAND_IN)])
    c, q = bn254, squares
    engine = ["--log", "4", "--threads", "1", "--output", str(tmp_path), "--work", str(tmp_path)]
    document = tmp_path / "document.md"
    document.write_text("<!-- rows: network -->\n<!-- end -->\n")
    calls: dict[str, list[object]] = {
        "prove": [c.c_zkey, c.c_wtns, c.q_json, c.t_json],
        "fullprove": [q.in_json, q.c_wasm, q.c_zkey, q.p_json, q.s_json],
        "verify": [c.v_json, c.s_json, c.p_json],
        "setup": [c.c_r1cs, c.a_zkey, "--insecure"],
        "wtns calculate": [q.c_wasm, q.in_json, q.w_wtns],
        "wtns check": [c.c_r1cs, c.c_wtns],
        "zkey info": [c.c_zkey],
        "zkey check": [c.c_zkey],
        "zkey verify": [VECTORS / "chain5.bn254.r1cs", c.c_ptau, c.initial_zkey],
        "zkey export verificationkey": [c.c_zkey, c.w_json],
        "zkey export solidityverifier": [c.c_zkey, c.v_sol, "--allow-insecure"],
        "zkey export soliditycalldata": [c.s_json, c.p_json],
        "estimate": ["--proof-time", "15"],
        "profile": [c.c_zkey, c.c_wtns, "--proofs", "1"],
        "bench": ["--only", "field", "--curves", "bn254", "--rounds", "1", "--output", c.b_jsonl],
        "bench --calibrate": ["--curves", "bn254", "--threads", "1", "--device", "cpu"],
        "bench report": [c.b_jsonl, "--output", c.b_html],
        "bench processes": [*engine, "--policies", "off", "--verifications", "1"],
        "bench network": [*engine, "--rounds", "1"],
        "bench service": [*engine, "--clients", "1", "--seconds", "0.1", "--burst", "0", "--proofs", "0"],
        "bench fill": [document, "--rows", c.b_jsonl],
        "config": [],
        "doctor": [],
        "warmup": ["--curve", "bn254"],
    }
    documented = _documented_answers()
    documented.pop("verifier")  # it runs until it is stopped: tests/verifier/test_process.py
    assert documented.keys() == calls.keys()
    for command, names in documented.items():
        assert run(*command.split(), *calls[command], "--json").answer.keys() == names, command


@pytest.mark.parametrize("group", [[], ["groth16"]], ids=["", "groth16"])
def test_fullprove(run: Run, squares: Files, group: list[str]) -> None:
    outputs = [squares.p_json, squares.s_json]
    ran = run(*group, "fullprove", squares.in_json, squares.c_wasm, squares.c_zkey, *outputs)
    assert ran.code == 0, ran.err
    assert json.loads(squares.s_json.read_text()) == ["3", "9"]
    run("zkey", "export", "verificationkey", squares.c_zkey, squares.v_json)
    assert run("verify", squares.v_json, squares.s_json, squares.p_json).code == 0


def test_wtns_calculate(run: Run, squares: Files) -> None:
    ran = run("wtns", "calculate", squares.c_wasm, squares.in_json, squares.w_wtns)
    assert ran == Ran(0, f"wrote {squares.w_wtns} (3 values, bn254)\n", "")
    assert squares.w_wtns.read_bytes() == squares.c_wtns.read_bytes()
    assert squares.w_wtns.stat().st_mode & 0o077 == 0, "a witness is its owner's alone"


@pytest.mark.parametrize(
    ("inputs", "kind", "code", "says"),
    [
        ({"a": [3, 8]}, "UnsatisfiedWitness", 1, ""),
        ({"a": [3]}, "InvalidInput", 2, "a: expected 2 values, found 1"),
        ({"b": [3, 9]}, "InvalidInput", 2, "b"),
        ([3, 9], "InvalidInput", 2, ""),
        ({"a": [3, "1234567890123 secret"]}, "InvalidInput", 2, "a[1]: expected an integer"),
    ],
)
def test_fullprove_with_bad_inputs(
    run: Run, squares: Files, inputs: Any, kind: str, code: int, says: str
) -> None:
    squares.in_json.write_text(json.dumps(inputs))
    outputs = [squares.p_json, squares.s_json]
    ran = run("fullprove", squares.in_json, squares.c_wasm, squares.c_zkey, *outputs)
    assert (ran.code, ran.out) == (code, "")
    named = squares.in_json if kind == "InvalidInput" else squares.c_wasm
    error = ran.err.splitlines()[-1]
    assert error.startswith(f"error: {kind}: {named}: ")
    assert says in error
    assert "1234567890123" not in ran.err
    if kind != "InvalidInput":
        return
    calculated = run("wtns", "calculate", squares.c_wasm, squares.in_json, squares.w_wtns)
    assert (calculated.code, calculated.err) == (code, error + "\n")
    assert not squares.w_wtns.exists()
    assert not any(path.exists() for path in outputs)


def test_fuel_of_a_witness_program(run: Run, squares: Files) -> None:
    arguments = ["wtns", "calculate", squares.c_wasm, squares.in_json, squares.w_wtns]
    write_program(squares.c_wasm, compute=FOREVER)
    proofs = [squares.c_zkey, squares.p_json, squares.s_json]
    for command in (arguments, ["fullprove", squares.in_json, squares.c_wasm, *proofs]):
        ran = run(*command, "--fuel", 10**6)
        assert ran.code == errors.EXIT_RESOURCES
        assert f"error: Timeout: {squares.c_wasm}: the limit of 1000000 instructions is reached" in ran.err
        assert "--fuel" in ran.err
        assert run(*command, "--fuel", "0").code == errors.EXIT_BAD_INPUT
    assert not squares.w_wtns.exists()
    write_program(squares.c_wasm)
    assert run(*arguments, "--fuel", 10**6, "--quiet").code == 0


def test_doctor(run: Run) -> None:
    answer = json.loads(run("doctor", "--json", "--threads", 1).out)
    assert {"python", "cpu", "memory", "gpu", "device", "placement", "cache", "packages"} <= set(answer)
    assert (answer["cpu"]["threads"], answer["cpu"]["threads_from"]) == (1, "argument")
    assert answer["device"]["used"] == "cpu"
    assert answer["device"]["known"]["cuda"].startswith("refused: device 'cuda'")
    assert answer["gpu"]["found"] or answer["gpu"]["why"]
    assert any(line.startswith("cpu, groth16 bn254: 2^10 ") for line in answer["placement"]["times"])
    assert not [name for name, part in answer.items() if "problem" in part]
    ran = run("doctor", "--device", "cuda")
    assert ran.code == 0, "a doctor reports, it does not refuse"
    assert "cuda (from the command line) -> refused" in ran.out


def test_doctor_says_which_folder_is_not_used_and_why(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is passed over with one warning; what serves instead is named."""
    folder, temporary = tmp_path / "cache", tmp_path / "tmp"
    for path, mode in ((folder, 0o777), (temporary, 0o700)):
        path.mkdir()
        path.chmod(mode)
    monkeypatch.setenv(CACHE_VARIABLE, str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(folders, "_told", set())
    ran = run("doctor", "--json", "--threads", 1)
    found = json.loads(ran.out)["cache"]
    why = f"{folder} may be written by others (mode 0777): chmod go-w"
    assert found["passed_over"] == [why]
    assert found["folder"].startswith(str(temporary))
    assert found["writable"]
    (line,) = ran.err.splitlines()
    instead = f"compiled code is kept in {folders.places().writable}"
    assert json.loads(line) == {"warning": f"a folder is not used: {why}; {instead}"}
    ran = run("doctor")
    assert why in ran.out
    assert ran.err == ""
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    folders._places.cache_clear()
    ran = run("doctor", "--check")
    assert ran.code == errors.EXIT_RESOURCES
    assert "no folder for compiled code can be used" in ran.err
    assert why in ran.out
    folders._places.cache_clear()


def test_doctor_goes_on_where_something_fails(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpuprover.cli import doctor

    def broken() -> dict[str, Any]:
        raise RuntimeError("no idea")

    monkeypatch.setattr(doctor, "_gpu", broken)
    ran = run("doctor")
    assert ran.code == 0
    assert "gpu        problem: RuntimeError: no idea" in ran.out


def test_warmup(run: Run) -> None:
    ran = run("warmup", "--curve", "bn254", "--json")
    assert ran.code == 0
    answer = json.loads(ran.out)
    assert answer["seconds"] > 0
    assert answer["cache"]["files"] > 0
    assert image.machine() is None or "bn254" in answer["cache"]["images"]
    ran = run("warmup", "--curve", "secp256k1")
    assert ran.code == errors.EXIT_BAD_INPUT
    assert "--curve: expected one of bn254, bls12-381" in ran.err


def test_worker_proves(made: Files, tmp_path: Path) -> None:
    job = f"prove --zkey '{made.c_zkey}' --witness '{made.c_wtns}' --public s.json --device CPU"
    jobs = [f"{job} --proof {i}.json" for i in (1, 2)]
    bad = _unsatisfied(made.c_wtns, tmp_path / "bad.wtns")
    jobs.insert(1, f"prove --zkey {made.c_zkey} --witness {bad} --proof bad.json --public bad.json")
    ran = subprocess.run(
        [sys.executable, "-m", "gpuprover", "worker"],
        input="\n".join(jobs),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    first, refused, second = map(json.loads, ran.stdout.splitlines())
    assert (first["ok"], first["key_loaded"], second["ok"], second["key_loaded"]) == (True, False, True, True)
    assert refused["ok"] is False
    assert refused["error"]["kind"] in ("UnsatisfiedWitness", "InvalidInput")
    assert {p.name for p in tmp_path.iterdir()} == {"1.json", "2.json", "s.json", "bad.wtns"}
    for name in ("1.json", "2.json"):
        assert main(["verify", *map(str, (made.v_json, tmp_path / "s.json", tmp_path / name))]) == 0


# What they refuse ------------------------------------------------------------------


def _damaged(path: Path, damage: str) -> None:
    data = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        flipped = bytes([data[0] ^ 0x20]) + data[1:]
        content = {
            "empty": b"",
            "truncated": data[: len(data) * 2 // 3],
            "magic": flipped,
            "longer": data + b"x",
        }
        path.write_bytes(content[damage])


COMMANDS: dict[str, list[str]] = {
    "c.zkey": ["prove c.zkey c.wtns q.json t.json", "zkey info c.zkey", "zkey check c.zkey"],
    "c.wtns": ["prove c.zkey c.wtns q.json t.json", "wtns check c.r1cs c.wtns"],
    "c.r1cs": ["setup c.r1cs a.zkey --insecure", "wtns check c.r1cs c.wtns"],
    "c.ptau": ["setup c.r1cs a.zkey --ptau c.ptau"],
    "v.json": ["verify v.json s.json p.json"],
    "s.json": ["verify v.json s.json p.json", "zkey export soliditycalldata s.json p.json"],
    "p.json": ["verify v.json s.json p.json", "zkey export soliditycalldata s.json p.json"],
}


@pytest.mark.parametrize("damage", ["missing", "folder", "empty", "truncated", "magic", "longer"])
@pytest.mark.parametrize("name", COMMANDS)
def test_damaged_files_are_named(
    run: Run, bn254: Files, monkeypatch: pytest.MonkeyPatch, name: str, damage: str
) -> None:
    monkeypatch.chdir(bn254.folder)
    _damaged(bn254.folder / name, damage)
    before = sorted(bn254.folder.rglob("*"))
    for line in COMMANDS[name]:
        ran = run(*line.split(), "--quiet")
        assert ran.code == errors.EXIT_BAD_INPUT, line
        assert ran.out == ""
        error = ran.err.splitlines()[-1]
        assert error.startswith(
            ("error: MalformedFile: ", "error: UnsupportedFile: ", "error: InvalidInput: ")
        )
        assert name in error
        assert sorted(bn254.folder.rglob("*")) == before


def test_another_circuits_witness(run: Run, bn254: Files) -> None:
    chain_circuit(6).write(bn254.b_r1cs, bn254.b_wtns)
    for arguments in (
        ["prove", bn254.c_zkey, bn254.b_wtns, bn254.q_json, bn254.t_json],
        ["wtns", "check", bn254.c_r1cs, bn254.b_wtns],
        ["prove", bn254.c_zkey, VECTORS / "chain5.bls12-381.wtns", bn254.q_json, bn254.t_json],
    ):
        ran = run(*arguments)
        assert ran.code == errors.EXIT_BAD_INPUT
        assert "error: WitnessMismatch: " in ran.err
    assert not bn254.q_json.exists()


def test_an_unsatisfied_witness_leaves_no_proof(run: Run, made: Files, tmp_path: Path) -> None:
    bad = _unsatisfied(made.c_wtns, tmp_path / "bad.wtns")
    outputs = [tmp_path / "p.json", tmp_path / "s.json"]
    ran = run("prove", made.c_zkey, bad, *outputs)
    assert ran.code == errors.EXIT_INVALID
    assert "error: UnsatisfiedWitness: " in ran.err
    assert not any(path.exists() for path in outputs)
    # Who times the proving gets a proof that does not verify.
    assert run("prove", made.c_zkey, bad, *outputs, "--no-verify", "--quiet").code == 0
    assert run("verify", made.v_json, outputs[1], outputs[0]).code == errors.EXIT_INVALID


def test_limits(run: Run, bn254: Files) -> None:
    arguments = ["prove", bn254.c_zkey, bn254.c_wtns, bn254.q_json, bn254.t_json, "--quiet"]
    ran = run(*arguments, "--memory-limit", 1)
    assert ran.code == errors.EXIT_RESOURCES
    assert "error: OutOfMemory: " in ran.err
    ran = run(*arguments, "--timeout", "0.000001")
    assert ran.code == errors.EXIT_RESOURCES
    assert "error: Timeout: " in ran.err
    assert not bn254.q_json.exists()


def test_calldata_of_a_curve_without_precompiles_is_refused(run: Run) -> None:
    stem = "chain5.bls12-381"
    ran = run(
        "zkey", "export", "soliditycalldata", VECTORS / f"{stem}.public.json", VECTORS / f"{stem}.proof.json"
    )
    assert ran.code == errors.EXIT_BAD_INPUT
    assert f"{stem}.proof.json" in ran.err


# Whole processes -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "phase"),
    [
        ("setup c.r1cs a.zkey --insecure", "read circuit"),
        ("setup c.r1cs a.zkey --insecure", "A points"),
        ("prove c.zkey c.wtns p.json s.json --threads 1", "msm"),
    ],
)
def test_ctrl_c_in_the_middle_of_the_work(tmp_path: Path, run: Run, line: str, phase: str) -> None:
    files = Files(tmp_path)
    chain_circuit(1 << 16).write(files.c_r1cs, files.c_wtns)
    if line.startswith("prove"):
        assert run("setup", files.c_r1cs, files.c_zkey, "--insecure", "--quiet").code == 0
    before = sorted(tmp_path.iterdir())
    child = subprocess.Popen(
        [sys.executable, "-m", "gpuprover", *line.split(), "--json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stderr is not None
    while f'"phase": "{phase}"' not in (told := child.stderr.readline()):
        assert told, "the phase never began"
    time.sleep(0.1)
    begun = time.monotonic()
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert child.returncode == errors.EXIT_CANCELLED, err
    assert time.monotonic() - begun < 10
    assert json.loads(out)["error"] == {
        "kind": "Cancelled",
        "message": "interrupted; no output was written",
        "exit_code": 130,
    }
    assert "Traceback" not in err
    assert "Exception" not in err
    assert sorted(tmp_path.iterdir()) == before


def test_a_full_disk(bn254: Files) -> None:
    """A limit on the size of files stands in for it: the system refuses the bytes beyond."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    before = sorted(bn254.folder.iterdir())
    ran = subprocess.run(
        [sys.executable, "-m", "gpuprover", "prove", bn254.c_zkey, bn254.c_wtns, bn254.q_json, bn254.t_json],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ran.returncode == errors.EXIT_RESOURCES, ran.stderr
    assert f"error: DeviceError: {bn254.q_json}: " in ran.stderr
    assert "Traceback" not in ran.stderr
    assert sorted(bn254.folder.iterdir()) == before
