"""PLONK's set-up: the bytes of snarkjs, keys that prove, and what is refused."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpuprover import memory
from gpuprover.backend import Backend
from gpuprover.circuits import Circuit, bits_circuit, chain_circuit
from gpuprover.curves import BN254
from gpuprover.demand import UNLIMITED
from gpuprover.devices import open_backend
from gpuprover.errors import InvalidInput, UnsupportedFile
from gpuprover.formats.r1cs import read_r1cs
from gpuprover.job import Job
from gpuprover.systems.plonk.key import load_key
from gpuprover.systems.plonk.setup import setup
from gpuprover.systems.system import system_named
from tests.support.paths import ROOT
from tests.support.plonk import PLONK, sample
from tests.support.plonk_reference import r1cs_of
from tests.support.plonk_setup import use_powers

ONLY_CPU = pytest.mark.parametrize("backend_name", ["cpu"])


def cpu(curve: object = BN254) -> Backend:
    return open_backend("cpu", curve, Job(threads=2))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", PLONK)
def test_keys_over_the_powers_of_tau_in_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte for byte what snarkjs wrote."""
    files, path = sample(name), tmp_path / "k.zkey"
    key = load_key(files.key)
    use_powers(key.powers, key.tau_g2, monkeypatch)
    result = setup(read_r1cs(files.circuit), None, path, cpu(files.curve))
    assert path.read_bytes() == files.key.read_bytes()
    assert (result.circuit_hash, result.domain_size) == (b"", key.domain_size)


@pytest.mark.parametrize("name", PLONK)
def test_keys_from_ceremonies(name: str, data_dir: Path, tmp_path: Path) -> None:
    """Byte for byte ``snarkjs plonk setup`` with the same two files."""
    files, path = sample(name), tmp_path / "k.zkey"
    ptau = data_dir / ("pot11_bls_final.ptau" if name.startswith("bls") else "pot14_final.ptau")
    result = setup(read_r1cs(files.circuit), ptau, path, cpu(files.curve))
    assert path.read_bytes() == files.key.read_bytes()
    assert result.warnings == ()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["multiplier2", "poseidon2", "merkle20"])
def test_keys_of_circom_circuits(name: str, data_dir: Path, tmp_path: Path) -> None:
    fixed, path = data_dir / "plonk" / "fixed", tmp_path / "k.zkey"
    expected = (fixed if name == "merkle20" else fixed / "pot14") / f"{name}.plonk.zkey"
    setup(read_r1cs(data_dir / "groth16" / f"{name}.r1cs"), data_dir / "pot14_final.ptau", path, cpu())
    digests = [hashlib.sha256(file.read_bytes()).digest() for file in (path, expected)]
    assert digests[0] == digests[1]


@pytest.mark.slow
@pytest.mark.parametrize("curve", [BN254], ids=["bn254"])
def test_on_every_backend(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, files = tmp_path / "k.zkey", sample("one-gate")
    key = load_key(files.key)
    use_powers(key.powers, key.tau_g2, monkeypatch)
    setup(read_r1cs(files.circuit), None, path, backend)
    assert path.read_bytes() == files.key.read_bytes()


def assert_proves(key_path: Path, circuit: Circuit, backend: Backend) -> None:
    """A proof verifies, and does not for other public signals."""
    system = system_named("plonk")
    key = system.load_key(key_path)
    system.check_witness(key, circuit.witness)
    proof = system.prove(key, circuit.witness, backend, None, UNLIMITED)
    public = system.public_signals(key, circuit.witness)
    assert system.verify(key.vk, public, proof, backend, "key", "proof")
    for i in range(len(public)):
        other = [(x + (i == j)) % key.curve.r for j, x in enumerate(public)]
        assert not system.verify(key.vk, other, proof, backend, "key", "proof")


@ONLY_CPU
@pytest.mark.parametrize("make", [lambda c: chain_circuit(9, c), lambda c: bits_circuit(8, c)])
def test_insecure_keys_prove(backend: Backend, make: object, tmp_path: Path) -> None:
    circuit = make(backend.curve)  # type: ignore[operator]
    result = setup(circuit.r1cs, None, tmp_path / "k.zkey", backend)
    assert "whoever made it can forge proofs" in result.warnings[0]
    assert_proves(tmp_path / "k.zkey", circuit, backend)


@ONLY_CPU
def test_two_insecure_keys_differ(backend: Backend, tmp_path: Path) -> None:
    r1cs = chain_circuit(3, backend.curve).r1cs
    keys = []
    for name in "ab":
        setup(r1cs, None, tmp_path / name, backend)
        keys.append(load_key(tmp_path / name))
    one, two = keys
    assert one.tau_g2.tobytes() != two.tau_g2.tobytes()
    assert one.powers[1].tobytes() != two.powers[1].tobytes()
    assert one.polynomials["S1"].tobytes() == two.polynomials["S1"].tobytes()


def test_refusals(data_dir: Path, tmp_path: Path) -> None:
    """In one line, and no file is left behind."""
    path, ptau = tmp_path / "k.zkey", data_dir / "pot14_final.ptau"
    with pytest.raises(UnsupportedFile, match=r"section 2 .*neither constraints nor public signals"):
        setup(r1cs_of(BN254, 1, 0, []), ptau, path, cpu())
    with pytest.raises(InvalidInput, match=r"power 14 is too small for .*, which needs power >= 15"):
        setup(chain_circuit((1 << 14) + 1).r1cs, ptau, path, cpu())
    with pytest.raises(InvalidInput, match="powers of tau over bls12-381, expected bn254"):
        setup(chain_circuit(3).r1cs, data_dir / "pot11_bls_final.ptau", path, cpu())
    assert list(tmp_path.iterdir()) == []


_GROWTH = """
import sys, threading
import gpuprover
from gpuprover import memory

protocol, r1cs, zkey = sys.argv[1:]
before, seen, done = memory.resident_anonymous(), [0], threading.Event()

def watch():
    while not done.wait(0.001):
        seen.append(memory.resident_anonymous())

thread = threading.Thread(target=watch)
thread.start()
gpuprover.setup(r1cs, zkey, protocol=protocol, insecure=True, threads=2)
done.set()
thread.join()
print(max(seen) - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.parametrize("protocol", ["plonk", "fflonk"])
def test_estimated_memory(protocol: str, tmp_path: Path) -> None:
    """A set-up takes what it is said to need, which is less than its key, and not much less than that."""
    r1cs, zkey = tmp_path / "c.r1cs", tmp_path / "k.zkey"
    chain_circuit(120_000).write(r1cs, tmp_path / "c.wtns")
    command = [sys.executable, "-c", _GROWTH, protocol, str(r1cs), str(zkey)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, check=True, capture_output=True, text=True, timeout=200, env=environment)
    grown = int(ran.stdout)
    need = memory.CODE_BYTES + system_named(protocol).setup_memory(read_r1cs(r1cs), False)
    print(f"{grown >> 20} MiB of {need >> 20} MiB, key {zkey.stat().st_size >> 20} MiB")
    assert need / 2 < grown <= need < zkey.stat().st_size
