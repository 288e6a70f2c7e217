"""FFLONK's set-up: the bytes of snarkjs, keys that prove, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuprover.backend import Backend
from gpuprover.circuits import bits_circuit, chain_circuit
from gpuprover.curves import BLS12_381, BN254
from gpuprover.demand import UNLIMITED
from gpuprover.devices import open_backend
from gpuprover.errors import InvalidInput, UnsupportedFile
from gpuprover.formats.r1cs import read_r1cs
from gpuprover.job import Job
from gpuprover.plonkish import key_writer
from gpuprover.systems.fflonk.key import load_key
from gpuprover.systems.fflonk.record import SYSTEM
from gpuprover.systems.fflonk.setup import constants_for, setup
from tests.support.plonk import FFLONK, sample
from tests.support.plonk_reference import r1cs_of
from tests.support.plonk_setup import use_powers


@pytest.fixture
def cpu() -> Backend:
    return open_backend("cpu", BN254, Job(threads=2))


@pytest.mark.parametrize("name", FFLONK)
def test_keys_over_the_powers_of_tau_in_them(
    name: str, cpu: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte for byte what snarkjs wrote."""
    files, path = sample(name, "fflonk"), tmp_path / "k.zkey"
    key = load_key(files.key)
    use_powers(key.powers, key.vk.tau_g2, monkeypatch)
    result = setup(read_r1cs(files.circuit), None, path, cpu)
    assert path.read_bytes() == files.key.read_bytes()
    assert (result.circuit_hash, result.domain_size) == (b"", key.domain_size)


@pytest.mark.parametrize("block", [1, 3])
def test_blocks_do_not_show(
    cpu: Backend, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_writer, "_BLOCK", block)
    test_keys_over_the_powers_of_tau_in_them("nopub-8gates", cpu, tmp_path, monkeypatch)


@pytest.mark.parametrize("name", FFLONK)
def test_keys_from_ceremonies(name: str, cpu: Backend, data_dir: Path, tmp_path: Path) -> None:
    """Byte for byte ``snarkjs fflonk setup`` with the same two files."""
    files, path = sample(name, "fflonk"), tmp_path / "k.zkey"
    setup(read_r1cs(files.circuit), data_dir / "pot14_final.ptau", path, cpu)
    assert path.read_bytes() == files.key.read_bytes()


@pytest.mark.parametrize("name", ["multiplier2", "poseidon2"])
def test_keys_of_circom_circuits(name: str, cpu: Backend, data_dir: Path, tmp_path: Path) -> None:
    path, expected = tmp_path / "k.zkey", data_dir / "plonk" / "fixed" / "pot14" / f"{name}.fflonk.zkey"
    setup(read_r1cs(data_dir / "groth16" / f"{name}.r1cs"), data_dir / "pot14_final.ptau", path, cpu)
    assert path.read_bytes() == expected.read_bytes()


def test_constants() -> None:
    """Roots of the orders that they are said to be of, for every domain."""
    for power in range(3, 27):
        assert constants_for(power).bad_root(power) is None


@pytest.mark.parametrize("make", [lambda: chain_circuit(9), lambda: bits_circuit(8)])
def test_insecure_keys_prove(cpu: Backend, make: object, tmp_path: Path) -> None:
    circuit, system = make(), SYSTEM  # type: ignore[operator]
    result = setup(circuit.r1cs, None, tmp_path / "k.zkey", cpu)
    assert "whoever made it can forge proofs" in result.warnings[0]
    key = system.load_key(tmp_path / "k.zkey")
    proof = system.prove(key, circuit.witness, cpu, None, UNLIMITED)
    public = system.public_signals(key, circuit.witness)
    assert system.verify(key.vk, public, proof, cpu, "key", "proof")
    assert not system.verify(key.vk, [x + 1 for x in public], proof, cpu, "key", "proof")


def test_a_key_without_gates(cpu: Backend, tmp_path: Path) -> None:
    setup(r1cs_of(BN254, 1, 0, []), None, tmp_path / "k.zkey", cpu)
    key = load_key(tmp_path / "k.zkey")
    assert (key.domain_size, key.constraints, key.n_public) == (8, 0, 0)


def test_other_curves_are_refused_by_name(tmp_path: Path) -> None:
    backend = open_backend("cpu", BLS12_381, Job(threads=1))
    with pytest.raises(UnsupportedFile, match="a circuit over bls12-381: FFLONK is over BN254 only"):
        setup(chain_circuit(3, BLS12_381).r1cs, None, tmp_path / "k.zkey", backend)
    assert list(tmp_path.iterdir()) == []


def test_a_ceremony_three_powers_above_the_domain(cpu: Backend, data_dir: Path, tmp_path: Path) -> None:
    """2,046 gates are the most for power 14."""
    ptau, path = data_dir / "pot14_final.ptau", tmp_path / "k.zkey"
    with pytest.raises(InvalidInput, match=r"power 14 is too small for .*, which needs power >= 15"):
        setup(chain_circuit(2046).r1cs, ptau, path, cpu)
    assert list(tmp_path.iterdir()) == []
