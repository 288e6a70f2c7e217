"""Checks of whole keys of PLONK and FFLONK: sound keys pass, and no part can be another one."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpuprover.backend import Backend
from gpuprover.circuits import chain_circuit
from gpuprover.curves import BLS12_381, BN254, CurveParams, Group
from gpuprover.devices import open_backend
from gpuprover.errors import InvalidInput, MalformedFile, OutOfMemory
from gpuprover.formats.r1cs import read_r1cs, write_r1cs
from gpuprover.job import Job
from gpuprover.limbs import generator
from gpuprover.plonkish import consistency, setup
from gpuprover.systems.fflonk import consistency as fflonk_consistency
from gpuprover.systems.fflonk import key as fflonk_key
from gpuprover.systems.fflonk import setup as fflonk_setup
from gpuprover.systems.plonk import consistency as plonk_consistency
from gpuprover.systems.plonk import key as plonk_key
from gpuprover.systems.plonk import setup as plonk_setup
from gpuprover.systems.system import KeyCheck
from tests.support.containers import edit, make_ptau, put, unpack
from tests.support.plonk import FFLONK, PLONK, Sample, sample

SAMPLES = [*(sample(name) for name in PLONK), *(sample(name, "fflonk") for name in FFLONK)]
BOTH = pytest.mark.parametrize("protocol", ["plonk", "fflonk"])


@dataclass(frozen=True)
class Modules:
    """One system's modules."""

    key: Any
    setup: Any
    consistency: Any


MODULES = {
    "plonk": Modules(plonk_key, plonk_setup, plonk_consistency),
    "fflonk": Modules(fflonk_key, fflonk_setup, fflonk_consistency),
}


def cpu(curve: CurveParams = BN254) -> Backend:
    return open_backend("cpu", curve, Job(threads=1))


def check(
    protocol: str,
    source: Path | bytes,
    circuit: Path | None = None,
    powers: Path | None = None,
    budget: int | None = None,
) -> KeyCheck:
    modules = MODULES[protocol]
    key = modules.key.load_key(source)
    return modules.consistency.check_whole_key(key, circuit, powers, cpu(key.curve), budget)


@pytest.mark.parametrize("files", SAMPLES, ids=lambda f: f"{f.name}-{f.protocol}")
def test_keys_of_snarkjs_pass(files: Sample) -> None:
    beside = check(files.protocol, files.key, files.circuit)
    assert beside.unchecked == (consistency.POWERS,)
    assert beside.warnings == ()
    assert str(files.circuit) in beside.checked[-1]


@BOTH
def test_keys_by_themselves(protocol: str) -> None:
    alone = check(protocol, sample(NAME, protocol).key)
    assert alone.unchecked == (consistency.CIRCUIT, consistency.POWERS)
    assert alone.warnings == ()
    beside = check(protocol, sample(NAME, protocol).key, sample(NAME, protocol).circuit)
    assert beside.checked[:-1] == alone.checked


@pytest.mark.parametrize("files", SAMPLES[::4], ids=lambda f: f"{f.name}-{f.protocol}")
def test_keys_of_snarkjs_are_of_their_ceremony(files: Sample, data_dir: Path) -> None:
    ptau = data_dir / ("pot11_bls_final.ptau" if files.curve == BLS12_381 else "pot14_final.ptau")
    found = check(files.protocol, files.key, None, ptau)
    assert found.unchecked == (consistency.CIRCUIT,)
    assert found.warnings == ()


@BOTH
def test_other_keys_of_circom_circuits(protocol: str, data_dir: Path) -> None:
    """Of another ceremony than the file."""
    key, circuit = data_dir / "plonk" / f"poseidon2.{protocol}.zkey", data_dir / "groth16" / "poseidon2.r1cs"
    assert check(protocol, key, circuit).unchecked == (consistency.POWERS,)
    with pytest.raises(MalformedFile, match=r"section 2 .*X_2 is not the tau of .*pot14_final"):
        check(protocol, key, circuit, data_dir / "pot14_final.ptau")


# Damage -------------------------------------------------------------------------------------


def number(protocol: str, name: str) -> int:
    """The section of a polynomial, or of what has a constant of that name."""
    module = MODULES[protocol].key
    for section, names in module.POLYNOMIALS.items():
        if name in names:
            return section
    return getattr(module, name)


SCALAR = 32
NAME = "quirks"
"""Three public signals; n = 128 with 62 additions in PLONK, n = 64 in FFLONK."""


def domain_size(protocol: str) -> int:
    return MODULES[protocol].key.load_key(sample(NAME, protocol).key).domain_size


def offset(protocol: str, name: str) -> int:
    """Where a polynomial begins in its section."""
    names = MODULES[protocol].key.POLYNOMIALS[number(protocol, name)]
    return names.index(name) * 5 * domain_size(protocol) * SCALAR


@BOTH
@pytest.mark.parametrize("name", ["Qm", "Ql", "Qr", "Qo", "Qc", "S1", "S2", "S3"])
def test_values_and_coefficients(protocol: str, name: str) -> None:
    """A coefficient, a value on the domain, and a value beside it: each is another one."""
    data, n = sample(NAME, protocol).key.read_bytes(), domain_size(protocol)
    section, start = number(protocol, name), offset(protocol, name)
    with pytest.raises(
        MalformedFile, match=rf"section {section} .*value 0 of {name} is not that of the coeff"
    ):
        check(protocol, edit(data, section, put(start + 3 * SCALAR, b"\x05" * 8)))
    for value in (0, 4 * 17, 4 * n - 1):
        at = start + (n + value) * SCALAR
        with pytest.raises(MalformedFile, match=rf"section {section} .*value {value} of {name} is not that"):
            check(protocol, edit(data, section, put(at, b"\x05" * 8)))


def exchanged(protocol: str, data: bytes, first: str, second: str) -> bytes:
    """The key with two polynomials in each other's places."""
    size = 5 * domain_size(protocol) * SCALAR
    places = [(number(protocol, name), offset(protocol, name)) for name in (first, second)]
    content = dict(unpack(data)[2])
    whole = [content[section][at : at + size] for section, at in places]
    for (section, at), polynomial in zip(places, reversed(whole), strict=True):
        data = edit(data, section, put(at, polynomial))
    return data


@BOTH
def test_polynomials_in_the_place_of_others(protocol: str) -> None:
    """They are whole polynomials: what follows from the wires, or the commitment, tells."""
    files = sample(NAME, protocol)
    data = files.key.read_bytes()
    with pytest.raises(MalformedFile, match=r"S1 at row \d+ is not that of the wires in sections 4 to 6"):
        check(protocol, exchanged(protocol, data, "S1", "S2"))
    with pytest.raises(MalformedFile, match="gate 0 is not that of a public signal"):
        check(protocol, exchanged(protocol, data, "Ql", "Qc"))
    other = exchanged(protocol, data, "Qm", "Qc")
    section = number(protocol, "Qm")
    with pytest.raises(
        MalformedFile, match=rf"section {section} .*Qm of gate \d+ is not that of the circuit"
    ):
        check(protocol, other, files.circuit)
    if protocol == "plonk":
        with pytest.raises(MalformedFile, match=r"section 2 .*Qm is not the commitment to section 7"):
            check(protocol, other)
    else:
        with pytest.raises(
            MalformedFile, match=r"section 17 .*coefficient 3 is not that of sections 7 to 14"
        ):
            check(protocol, other)


@BOTH
def test_header_points(protocol: str) -> None:
    """Good points, but others."""
    files = sample(NAME, protocol)
    data, g1, g2 = files.key.read_bytes(), generator(BN254, Group.G1), generator(BN254, Group.G2)
    header = len(dict(unpack(data)[2])[2])
    commitments, tau = (
        (header - 8 * 64 - 128, header - 128) if protocol == "plonk" else (header - 64, header - 192)
    )
    names = ["Qm", "Ql", "Qr"] if protocol == "plonk" else ["C0"]
    for i, name in enumerate(names):
        with pytest.raises(MalformedFile, match=rf"section 2 .*{name} is not the commitment to section"):
            check(protocol, edit(data, 2, put(commitments + 64 * i, g1.tobytes())))
    with pytest.raises(MalformedFile, match="not the powers of one tau, that of the point in G2"):
        check(protocol, edit(data, 2, put(tau, g2.tobytes())))


@BOTH
def test_powers_of_tau(protocol: str) -> None:
    data = sample(NAME, protocol).key.read_bytes()
    section = number(protocol, "POWERS")
    points = np.frombuffer(dict(unpack(data)[2])[section], dtype="<u8").reshape(-1, 8)
    last = len(points) - 1
    for at, value, problem in (
        (last, b"\1", f"point {last} is off the curve"),
        (last, points[last - 1].tobytes(), "not the powers of one tau"),
        (2, bytes(64), "not the powers of one tau"),
    ):
        with pytest.raises(MalformedFile, match=rf"section {section} .*{problem}"):
            check(protocol, edit(data, section, put(64 * at, value)))


@BOTH
def test_lagrange_polynomials(protocol: str) -> None:
    data, n = sample(NAME, protocol).key.read_bytes(), domain_size(protocol)
    section = number(protocol, "LAGRANGE")
    for polynomial in (0, 2):
        for scalar in (0, n - 1, n, 5 * n - 1):
            at = (5 * n * polynomial + scalar) * SCALAR
            with pytest.raises(
                MalformedFile, match=rf"section {section} .*scalar {scalar} of polynomial {polynomial} is not"
            ):
                check(protocol, edit(data, section, put(at, b"\x05" * 8)))


@BOTH
def test_wires(protocol: str) -> None:
    files = sample(NAME, protocol)
    data, modules = files.key.read_bytes(), MODULES[protocol]
    key = modules.key.load_key(files.key)
    row = key.n_public + 1
    for section in (4, 5, 6):
        wire = int(key.wiring.maps[section - 4][row])
        other = put(4 * row, struct.pack("<I", 1 if wire != 1 else 2))
        with pytest.raises(MalformedFile, match=r"S1 at row \d+ is not that of the wires|has no gate of its"):
            check(protocol, edit(data, section, other))
        with pytest.raises(
            MalformedFile, match=rf"section {section} .*wire [ABC] of gate {row} is not that of"
        ):
            check(protocol, edit(data, section, other), files.circuit)


@BOTH
def test_additions(protocol: str) -> None:
    """By themselves they belong to gates; beside the circuit they are its own."""
    files = sample("adds", protocol)
    data, records = files.key.read_bytes(), 72
    left, right, left_factor, right_factor = 5 * records + np.array([0, 4, 8, 40])
    for at, value, problem in (
        (left, b"\3", "section 3 .*record 5 has no gate of its two signals"),
        (right, b"\3", "section 3 .*record 5 has no gate of its two signals"),
        (left_factor, b"\3", r"Ql of gate \d+ is not that of addition 5 in section 3"),
        (right_factor, b"\3", r"Qr of gate \d+ is not that of addition 5 in section 3"),
    ):
        damaged = edit(data, 3, put(int(at), value))
        assert damaged != data
        with pytest.raises(MalformedFile, match=problem):
            check(protocol, damaged)
        with pytest.raises(MalformedFile, match=r"section 3 .*record 5 is not that of"):
            check(protocol, damaged, files.circuit)


def test_c0_of_fflonk() -> None:
    data = sample(NAME, "fflonk").key.read_bytes()
    for at in (0, 8 * 64 - 1):
        with pytest.raises(
            MalformedFile, match=rf"section 17 .*coefficient {at} is not that of sections 7 to 14"
        ):
            check("fflonk", edit(data, 17, put(SCALAR * at, b"\x05" * 8)))
    with pytest.raises(MalformedFile, match=r"section 17 .*256 coefficients, expected more"):
        check("fflonk", edit(data, 17, lambda content: content[: len(content) // 2]))


# Other files ----------------------------------------------------------------------------------


@BOTH
def test_other_circuits(protocol: str, tmp_path: Path) -> None:
    key = sample(NAME, protocol).key
    with pytest.raises(MalformedFile, match=r"section 2 .*variables, expected \d+ for .*adds.r1cs"):
        check(protocol, key, sample("adds", protocol).circuit)
    with pytest.raises(InvalidInput, match="over bls12-381, expected bn254"):
        check(protocol, key, sample("bls-small").circuit)
    # One coefficient is another one.
    circuit = read_r1cs(sample(NAME).circuit)
    (terms,) = np.nonzero(circuit.c.values.any(axis=1) & (circuit.c.wires > 0))
    circuit.c.values[terms[-1]] = [17, 0, 0, 0]
    write_r1cs(tmp_path / "other.r1cs", circuit)
    with pytest.raises(MalformedFile, match=r"(gate|record) \d+ is not that of"):
        check(protocol, key, tmp_path / "other.r1cs")


@BOTH
@pytest.mark.parametrize("tau", [1111, -3], ids=["small", "small and negative"])
def test_own_keys(protocol: str, tau: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a file of known secrets; then from the same secret. The check finds small ones."""
    backend, modules, circuit = cpu(), MODULES[protocol], chain_circuit(3).r1cs
    write_r1cs(tmp_path / "c.r1cs", circuit)
    monkeypatch.setattr(setup.secrets, "randbelow", lambda bound: tau % BN254.r - 1)
    modules.setup.setup(circuit, None, tmp_path / "secret.zkey", backend)
    found = check(protocol, tmp_path / "secret.zkey", tmp_path / "c.r1cs")
    assert found.warnings == (consistency.KNOWN_TAU,)
    if tau > 0:
        (tmp_path / "p.ptau").write_bytes(make_ptau(BN254, 6, tau, 2222, 3333, backend))
        modules.setup.setup(circuit, tmp_path / "p.ptau", tmp_path / "ceremony.zkey", backend)
        assert (tmp_path / "ceremony.zkey").read_bytes() == (tmp_path / "secret.zkey").read_bytes()
        found = check(protocol, tmp_path / "secret.zkey", tmp_path / "c.r1cs", tmp_path / "p.ptau")
        assert found.unchecked == ()
        assert any("names no contribution" in warning for warning in found.warnings)


@BOTH
def test_keys_from_secrets_pass(protocol: str, tmp_path: Path) -> None:
    modules, circuit = MODULES[protocol], chain_circuit(20).r1cs
    write_r1cs(tmp_path / "c.r1cs", circuit)
    modules.setup.setup(circuit, None, tmp_path / "k.zkey", cpu())
    assert check(protocol, tmp_path / "k.zkey", tmp_path / "c.r1cs").warnings == ()


@BOTH
def test_a_ceremony_of_fewer_powers(protocol: str, tmp_path: Path) -> None:
    (tmp_path / "p.ptau").write_bytes(make_ptau(BN254, 4, 1111, 2222, 3333, cpu()))
    with pytest.raises(InvalidInput, match=r"31 powers of tau, expected at least \d+ for"):
        check(protocol, sample(NAME, protocol).key, None, tmp_path / "p.ptau")


@BOTH
def test_memory(protocol: str) -> None:
    files = sample(NAME, protocol)
    with pytest.raises(OutOfMemory, match=r"checking .*quirks.*zkey needs \d+ MiB, the limit leaves 20"):
        check(protocol, files.key, budget=20 << 20)
    check(protocol, files.key, files.circuit, budget=100 << 20)
