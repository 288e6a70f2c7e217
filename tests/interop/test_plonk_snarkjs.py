"""PLONK and FFLONK against snarkjs in both directions: set-ups, keys, proofs, command lines."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import gpuprover
from gpuprover.curves import BLS12_381, BN254, CurveParams
from tests.interop.conftest import OracleError
from tests.support.random_circuits import random_circuit

CASES = [
    ("plonk", "multiplier", BN254),
    ("plonk", "nopublic", BN254),
    ("plonk", "multiplier", BLS12_381),
    ("plonk", "nopublic", BLS12_381),
    ("fflonk", "single", BN254),
    ("fflonk", "nopublic", BN254),
]
"""As large as the powers of tau allow: FFLONK needs nine times as many as the circuit has rows."""
SLOW = [CASES[3], CASES[5]]
KINDS = [("plonk", BN254), ("plonk", BLS12_381), ("fflonk", BN254)]


@dataclass(frozen=True)
class Made:
    """A circuit with its keys; ``theirs`` is snarkjs's, ``ours`` gpuprover's."""

    protocol: str
    circuit: Path
    witness: Path
    ours: Path
    theirs: Path
    public: bool

    def snarkjs_proves(self) -> bool:
        """PLONK's prover of snarkjs 0.7.6 fails where nothing is public."""
        return self.public or self.protocol != "plonk"


@pytest.fixture(scope="session")
def make(
    make_case: Callable[[str, CurveParams], Any], oracle: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str, CurveParams], Made]:
    @cache
    def made(protocol: str, name: str, curve: CurveParams) -> Made:
        case, folder = make_case(name, curve), tmp_path_factory.mktemp(protocol)
        return _made(
            protocol, case.compiled.r1cs, case.witness, case.ptau, folder, name != "nopublic", oracle
        )

    return made


def _made(protocol: str, r1cs: Path, wtns: Path, ptau: Path, folder: Path, public: bool, oracle: Any) -> Made:
    ours, theirs = folder / "ours.zkey", folder / "theirs.zkey"
    gpuprover.setup(r1cs, ours, protocol=protocol, ptau=ptau)
    oracle(f"{protocol}.setup", r1cs, ptau, theirs)
    return Made(protocol, r1cs, wtns, ours, theirs, public)


@pytest.fixture(
    params=[pytest.param(p, marks=[pytest.mark.slow] * (p in SLOW)) for p in CASES],
    ids=lambda p: f"{p[0]}-{p[1]}-{p[2].name}",
)
def made(request: pytest.FixtureRequest, make: Callable[[str, str, CurveParams], Made]) -> Made:
    return make(*request.param)


def test_set_up_and_verification_key_are_snarkjs_s(made: Made, oracle: Any) -> None:
    assert made.ours.read_bytes() == made.theirs.read_bytes()
    key = gpuprover.load_key(made.ours)
    assert json.loads(json.dumps(key.verification_key)) == oracle("zKey.exportVerificationKey", made.theirs)


def test_proofs_verify_in_both_directions(made: Made, oracle: Any) -> None:
    _both_directions(made, oracle)


def _both_directions(made: Made, oracle: Any) -> None:
    key = gpuprover.load_key(made.theirs)
    vkey, verify = key.verification_key, f"{made.protocol}.verify"
    result = gpuprover.prove(key, made.witness)
    assert gpuprover.verify(vkey, result.public_signals, result.proof)
    assert oracle(verify, vkey, result.public_signals, result.proof) is True
    other = [*result.public_signals[:-1], "5"]
    if made.public:
        assert oracle(verify, vkey, other, result.proof) is False
        assert not gpuprover.verify(vkey, other, result.proof)
    if not made.snarkjs_proves():
        with pytest.raises(OracleError):
            oracle(f"{made.protocol}.prove", made.theirs, made.witness)
        return
    theirs = oracle(f"{made.protocol}.prove", made.theirs, made.witness)
    assert theirs["publicSignals"] == result.public_signals
    assert theirs["proof"].keys() == result.proof.keys()
    assert gpuprover.verify(vkey, theirs["publicSignals"], theirs["proof"])
    if made.public:
        assert not gpuprover.verify(vkey, other, theirs["proof"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "made", [CASES[0], CASES[1], CASES[4]], indirect=True, ids=["plonk", "plonk-nopublic", "fflonk"]
)
def test_command_lines(made: Made, make_case: Any, snarkjs: Callable[..., Any], tmp_path: Path) -> None:
    """The files of the one command line are the arguments of the other, and look alike."""

    def ours(*args: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "gpuprover", *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    proof, public, vkey, theirs = (tmp_path / f"{n}.json" for n in ("proof", "public", "vkey", "theirs"))
    name, ptau = made.protocol, make_case("single", BN254).ptau
    for command in (
        ("setup", made.circuit, ptau, tmp_path / "again.zkey"),
        ("prove", made.theirs, made.witness, proof, public),
    ):
        done = ours(name, *command)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "again.zkey").read_bytes() == made.theirs.read_bytes()
    assert ours("zkey", "export", "verificationkey", made.ours, vkey).returncode == 0
    snarkjs("zkey", "export", "verificationkey", made.theirs, theirs)
    assert vkey.read_text() == theirs.read_text()
    assert snarkjs(name, "verify", vkey, public, proof).returncode == 0

    said = public.read_text()
    if made.snarkjs_proves():
        snarkjs(name, "prove", made.theirs, made.witness, proof, public)
        assert public.read_text() == said
        keys = list(json.loads(proof.read_text()))
        assert ours(name, "verify", vkey, public, proof).returncode == 0
        again = tmp_path / "again.json"
        assert ours("prove", made.theirs, made.witness, again, public).returncode == 0
        assert list(json.loads(again.read_text())) == keys
    if made.public:
        public.write_text(json.dumps([*json.loads(said)[:-1], "5"]))
        assert ours(name, "verify", vkey, public, proof).returncode == 1
        assert snarkjs(name, "verify", vkey, public, proof).returncode == 1


def test_random_circuits(oracle: Any, ptau: Any, rng: random.Random, tmp_path: Path) -> None:
    """Few constraints, which fit the small powers of tau."""
    _random(oracle, "plonk", BN254, 4, ptau(BN254), rng, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("protocol", "curve"), KINDS, ids=lambda p: getattr(p, "name", p))
def test_many_random_circuits(
    protocol: str, curve: CurveParams, oracle: Any, data_dir: Path, rng: random.Random, tmp_path: Path
) -> None:
    ptau = data_dir / {BN254: "pot14_final.ptau", BLS12_381: "pot11_bls_final.ptau"}[curve]
    for i, constraints in enumerate((1, 5, 20, 60, 100)):
        folder = tmp_path / str(i)
        folder.mkdir()
        _random(oracle, protocol, curve, constraints, ptau, rng, folder)


def _random(
    oracle: Any, protocol: str, curve: CurveParams, constraints: int, ptau: Path, rng: Any, folder: Path
) -> None:
    public, r1cs, wtns = rng.randrange(1, 4), folder / "c.r1cs", folder / "c.wtns"
    random_circuit(rng, curve, constraints, public).write(r1cs, wtns)
    made = _made(protocol, r1cs, wtns, ptau, folder, True, oracle)
    assert made.ours.read_bytes() == made.theirs.read_bytes()
    _both_directions(made, oracle)
