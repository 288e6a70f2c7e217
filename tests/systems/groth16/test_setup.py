"""Groth16 setup: the bytes of snarkjs, keys that are sound by definition, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import gpuprover
from gpuprover import memory, reference
from gpuprover.backend import Backend
from gpuprover.circuits import Circuit, CircuitBuilder, bits_circuit, chain_circuit, poseidon_circuit
from gpuprover.curves import BLS12_381, BN254, CurveParams, Group, curve_by_name
from gpuprover.devices import open_backend
from gpuprover.errors import Cancelled, InvalidInput, MalformedFile, OutOfMemory, UnsupportedFile
from gpuprover.formats import ptau as pt
from gpuprover.formats.ptau import read_ptau
from gpuprover.formats.r1cs import _reading_bytes, read_r1cs
from gpuprover.job import Job
from gpuprover.limbs import g1_to_words, g2_to_words, words_to_ints
from gpuprover.systems.groth16 import from_ptau, from_secret, key_writer
from gpuprover.systems.groth16 import key as zkey
from gpuprover.systems.groth16.from_ptau import setup_from_ptau
from gpuprover.systems.groth16.from_secret import setup_insecure
from gpuprover.systems.groth16.key import ProvingKey, load_key
from gpuprover.systems.groth16.setup import memory_needed
from tests.support.containers import edit, make_ptau, put, reference_key, unpack
from tests.support.paths import ROOT, VECTORS
from tests.support.samples import plain


@pytest.fixture
def cpu() -> Backend:
    return open_backend("cpu", BN254, Job(threads=2))


def vector(curve: CurveParams, suffix: str) -> Path:
    return VECTORS / f"chain5.{curve.name}.{suffix}"


def assert_proves(key: ProvingKey, circuit: Circuit, backend: Backend) -> None:
    """The reference prover's proof verifies; a proof of other public signals does not."""
    plain, values = reference_key(key), words_to_ints(circuit.witness.values)
    proof = reference.groth16_prove(plain, values, 123, 456)
    G1 = reference.g1(key.curve)

    def holds(public: list[int]) -> bool:
        x = G1.msm(plain.ic, (1, *public))
        left = [G1.neg(proof.a), plain.alpha_1, x, proof.c]
        right = [proof.b, plain.beta_2, plain.gamma_2, plain.delta_2]
        return backend.points.pairing_check(g1_to_words(key.curve, left), g2_to_words(key.curve, right))

    public = values[1 : key.n_public + 1]
    assert holds(public)
    for i in range(len(public)):
        assert not holds([p + (i == j) for j, p in enumerate(public)])


@pytest.mark.long_in_integers
def test_ceremony_key_is_the_vector(backend: Backend, tmp_path: Path) -> None:
    """Which is, byte for byte, what snarkjs writes."""
    curve = backend.curve
    r1cs, ptau = read_r1cs(vector(curve, "r1cs")), read_ptau(vector(curve, "ptau"))
    result = setup_from_ptau(r1cs, ptau, tmp_path / "k.zkey", backend)
    assert (tmp_path / "k.zkey").read_bytes() == vector(curve, "initial.zkey").read_bytes()
    key = load_key(tmp_path / "k.zkey")
    assert result.circuit_hash == key.circuit_hash
    assert "anyone can forge proofs" in result.warnings[0]
    assert list(tmp_path.iterdir()) == [tmp_path / "k.zkey"]


@pytest.mark.parametrize("backend_name", ["cpu"])
@pytest.mark.parametrize("block", [1, 7, 1 << 16])
def test_blocks_do_not_show(
    backend: Backend, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files are streamed in blocks of terms; their size changes nothing."""
    for module in (key_writer, from_ptau):
        monkeypatch.setattr(module, "BLOCK_TERMS", block)
    curve = backend.curve
    r1cs, ptau = read_r1cs(vector(curve, "r1cs")), read_ptau(vector(curve, "ptau"))
    setup_from_ptau(r1cs, ptau, tmp_path / "k.zkey", backend)
    assert (tmp_path / "k.zkey").read_bytes() == vector(curve, "initial.zkey").read_bytes()


def no_public(curve: CurveParams) -> Circuit:
    builder = CircuitBuilder(curve)
    x = builder.private_input(3)
    builder.assert_equal(builder.multiply(x, x), builder.constant(9))
    return builder.build()


def unused_and_repeated(curve: CurveParams) -> Circuit:
    """Wires in no constraint, a public input in none, rows with empty combinations."""
    builder = CircuitBuilder(curve)
    builder.public_input(17)
    builder.private_input(4)
    x = builder.private_input(5)
    builder.constrain(builder.constant(0), x, builder.constant(0))
    builder.public_output(builder.multiply(x * 2, x - 1))
    return builder.build()


CASES: dict[str, Callable[[CurveParams], Circuit]] = {
    "one constraint": lambda curve: chain_circuit(1, curve),
    "chain": lambda curve: chain_circuit(9, curve),
    "bits": lambda curve: bits_circuit(8, curve),
    "no public signals": no_public,
    "unused wires": unused_and_repeated,
}


@pytest.mark.parametrize("backend_name", ["cpu"])
@pytest.mark.parametrize("name", CASES)
def test_insecure_keys_prove(backend: Backend, name: str, tmp_path: Path) -> None:
    circuit = CASES[name](backend.curve)
    result = setup_insecure(circuit.r1cs, tmp_path / "k.zkey", backend)
    key = load_key(tmp_path / "k.zkey")
    assert (key.n_vars, key.n_public) == (circuit.r1cs.n_wires, circuit.r1cs.n_public)
    assert key.constraints == circuit.r1cs.n_constraints
    assert key.contributions == 0
    assert key.circuit_hash == result.circuit_hash
    assert "can forge proofs" in result.warnings[0]
    key.check_points(backend)
    assert_proves(key, circuit, backend)


@pytest.mark.long_in_integers
@pytest.mark.parametrize("backend_name", ["reference"])
def test_insecure_key_by_the_reference(backend: Backend, tmp_path: Path) -> None:
    circuit = chain_circuit(2, backend.curve)
    setup_insecure(circuit.r1cs, tmp_path / "k.zkey", backend)
    assert_proves(load_key(tmp_path / "k.zkey"), circuit, backend)


@pytest.mark.parametrize("backend_name", ["cpu"])
@pytest.mark.parametrize("name", CASES)
def test_ceremony_keys_prove(backend: Backend, name: str, tmp_path: Path) -> None:
    circuit = CASES[name](backend.curve)
    (tmp_path / "p.ptau").write_bytes(make_ptau(backend.curve, 4, 1111, 2222, 3333, backend))
    setup_from_ptau(circuit.r1cs, read_ptau(tmp_path / "p.ptau"), tmp_path / "k.zkey", backend)
    key = load_key(tmp_path / "k.zkey")
    assert plain(key.curve, Group.G2, key.header.delta2) == key.curve.g2
    assert_proves(key, circuit, backend)


@pytest.mark.parametrize("backend_name", ["cpu"])
def test_both_ways_agree(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a ceremony's secrets and γ = δ = 1, the direct evaluation gives the combined points."""
    curve = backend.curve
    secrets = iter([2222, 3333, 1, 1, 1111])  # α, β, γ, δ, τ
    monkeypatch.setattr(from_secret.secrets, "randbelow", lambda _: next(secrets) - 1)
    circuit = poseidon_circuit(curve)
    setup_insecure(circuit.r1cs, tmp_path / "direct.zkey", backend)
    (tmp_path / "p.ptau").write_bytes(make_ptau(curve, 10, 1111, 2222, 3333, backend))
    setup_from_ptau(circuit.r1cs, read_ptau(tmp_path / "p.ptau"), tmp_path / "combined.zkey", backend)
    direct, combined = (unpack((tmp_path / f"{n}.zkey").read_bytes())[2] for n in ("direct", "combined"))
    # All but the hash: a power above the circuit's, so that H lacks no term.
    assert direct[:-1] == combined[:-1]
    assert direct[-1] != combined[-1]


@pytest.mark.parametrize("backend_name", ["cpu"])
def test_two_insecure_keys_differ_everywhere(backend: Backend, tmp_path: Path) -> None:
    r1cs = chain_circuit(3, backend.curve).r1cs
    keys = []
    for name in "ab":
        setup_insecure(r1cs, tmp_path / name, backend)
        keys.append(load_key(tmp_path / name))
    one, two = keys
    for field in ("alpha1", "beta1", "beta2", "gamma2", "delta1", "delta2"):
        assert not np.array_equal(getattr(one.header, field), getattr(two.header, field))
    assert plain(one.curve, Group.G1, one.header.delta1) != one.curve.g1
    assert not np.array_equal(one.h, two.h)


@pytest.mark.parametrize("name", ["multiplier2", "poseidon2", "merkle20"])
def test_sections_of_snarkjs_keys(name: str, data_dir: Path, tmp_path: Path, cpu: Backend) -> None:
    """Keys over another ceremony: the coefficients are equal, and every section's size."""
    folder = data_dir / "groth16"
    circuit, ptau = read_r1cs(folder / f"{name}.r1cs"), read_ptau(data_dir / "pot14_final.ptau")
    setup_from_ptau(circuit, ptau, tmp_path / "k.zkey", cpu)
    ours = dict(unpack((tmp_path / "k.zkey").read_bytes())[2])
    theirs = dict(unpack((folder / f"{name}.groth16.zkey").read_bytes())[2])
    assert ours[zkey.COEFFICIENTS] == theirs[zkey.COEFFICIENTS]
    for section in range(zkey.PROTOCOL, zkey.CONTRIBUTIONS):
        assert len(ours[section]) == len(theirs[section]), zkey.SECTIONS[section]


# Memory ---------------------------------------------------------------------------

_GROWTH = """
import sys, threading
import gpuprover
from gpuprover import memory

r1cs, zkey, ptau, limit = sys.argv[1:]
before, seen, done = memory.resident_anonymous(), [0], threading.Event()

def watch():
    while not done.wait(0.001):
        seen.append(memory.resident_anonymous())

thread = threading.Thread(target=watch)
thread.start()
gpuprover.setup(r1cs, zkey, ptau=ptau or None, insecure=not ptau, threads=2, memory_limit=int(limit) or None)
done.set()
thread.join()
print(max(seen) - before)
"""


def _grown(r1cs: Path, zkey: Path, ptau: str = "", limit: int = 0) -> int:
    """Anonymous memory that a process's set-up takes at its peak."""
    command = [sys.executable, "-c", _GROWTH, str(r1cs), str(zkey), ptau, str(limit)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, check=True, capture_output=True, text=True, timeout=200, env=environment)
    return int(ran.stdout)


def _needs(r1cs: Path, ceremony: bool) -> int:
    circuit = read_r1cs(r1cs)
    reading = _reading_bytes(r1cs.stat().st_size, circuit.n_constraints, circuit.curve)
    return memory.CODE_BYTES + max(reading, memory_needed(circuit, ceremony))


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.parametrize("kind", ["bn254", pytest.param("bls12-381", marks=pytest.mark.slow), "ceremony"])
def test_estimated_memory(tmp_path: Path, request: pytest.FixtureRequest, kind: str) -> None:
    """What a setup is said to need is what a whole process takes, and not much more."""
    if kind == "ceremony":
        data = request.getfixturevalue("data_dir")
        r1cs, ptau = data / "groth16" / "merkle20.r1cs", str(data / "pot14_final.ptau")
    else:
        r1cs, ptau = tmp_path / "c.r1cs", ""
        chain_circuit(65_000, curve_by_name(kind)).write(r1cs, tmp_path / "c.wtns")
    grown, need = _grown(r1cs, tmp_path / "k.zkey", ptau), _needs(r1cs, bool(ptau))
    print(f"{grown >> 20} MiB of {need >> 20} MiB")
    assert need / 3 < grown <= need


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_the_key_is_streamed(tmp_path: Path) -> None:
    """Under the limit that a set-up asks for, memory grows as the circuit and five vectors do.

    That is little more than half of what the key grows by.
    """
    memories, keys = [], []
    for log in (16, 18):
        r1cs, zkey = tmp_path / f"{log}.r1cs", tmp_path / f"{log}.zkey"
        circuit = chain_circuit((1 << log) - 3, BLS12_381)
        circuit.write(r1cs, tmp_path / "c.wtns")
        base = 40  # MiB of Python and NumPy, at most
        memories.append(_grown(r1cs, zkey, limit=base + (_needs(r1cs, False) >> 20)))
        keys.append(zkey.stat().st_size)
    grown, key = memories[1] - memories[0], keys[1] - keys[0]
    print(f"memory {grown >> 20} MiB, key {key >> 20} MiB")
    vectors = 5 * 32 * 3 << 16
    assert grown < circuit.r1cs.nbytes * 3 // 4 + vectors + (4 << 20)
    assert grown < 0.6 * key


@pytest.mark.parametrize("ptau", [None, vector(BN254, "ptau")], ids=["insecure", "ceremony"])
def test_memory_limit(tmp_path: Path, ptau: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
    circuit = vector(BN254, "r1cs")
    phases: list[str] = []

    def setup(limit: int) -> None:
        gpuprover.setup(
            circuit,
            tmp_path / "k.zkey",
            ptau=ptau,
            insecure=ptau is None,
            memory_limit=limit,
            progress=lambda p: phases.append(p.phase),
        )

    with pytest.raises(OutOfMemory, match=r"^memory limit: reading .*\.r1cs needs 1 MiB, the limit leaves 0"):
        setup(1)
    # Enough to read the circuit, not for the blocks of the setup.
    monkeypatch.setattr(memory, "resident_anonymous", lambda: 0)
    with pytest.raises(OutOfMemory, match=r"^memory limit: the set-up for .*\.r1cs needs \d+ MiB"):
        setup((memory.CODE_BYTES >> 20) + 10)
    assert set(phases) == {"read circuit"}
    assert list(tmp_path.iterdir()) == []
    setup((memory.CODE_BYTES >> 20) + 100)
    assert (tmp_path / "k.zkey").exists()
    for limit in (0, -1, 1.5, True):
        with pytest.raises(InvalidInput, match="memory_limit"):
            setup(limit)  # type: ignore[arg-type]


# Refusals ------------------------------------------------------------------------


def test_small_or_foreign_ceremonies(cpu: Backend, tmp_path: Path) -> None:
    big = chain_circuit(6).r1cs
    with pytest.raises(InvalidInput, match=r"power 3 is too small for .*, which needs power >= 4"):
        setup_from_ptau(big, read_ptau(vector(BN254, "ptau")), tmp_path / "k", cpu)
    with pytest.raises(InvalidInput, match="powers of tau over bls12-381, expected bn254"):
        setup_from_ptau(big, read_ptau(vector(BLS12_381, "ptau")), tmp_path / "k", cpu)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("section", "point"),
    [
        (pt.TAU_G1, 9),
        (pt.ALPHA_TAU_G1, 0),
        (pt.BETA_TAU_G1, 0),
        (pt.BETA_G2, 0),
        (pt.LAGRANGE_TAU_G1, 8),
        (pt.LAGRANGE_TAU_G1, 18),
        (pt.LAGRANGE_TAU_G2, 14),
        (pt.LAGRANGE_ALPHA_TAU_G1, 7),
        (pt.LAGRANGE_BETA_TAU_G1, 10),
    ],
)
def test_damaged_ceremony_points_are_named(cpu: Backend, section: int, point: int, tmp_path: Path) -> None:
    size = 8 * (BN254.g2_words if section in pt.IN_G2 else BN254.g1_words)
    data = edit(vector(BN254, "ptau").read_bytes(), section, put(point * size, b"\x55"))
    circuit = read_r1cs(vector(BN254, "r1cs"))
    with pytest.raises(
        MalformedFile, match=rf"section {section} \([\w ]+\): point {point}(:| is off the curve)"
    ):
        setup_from_ptau(circuit, read_ptau(data), tmp_path / "k.zkey", cpu)
    assert list(tmp_path.iterdir()) == []


def test_a_domain_that_the_field_lacks(cpu: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    r1cs = chain_circuit(3).r1cs
    monkeypatch.setitem(r1cs.curve.scalar.__dict__, "two_adicity", 3)
    with pytest.raises(UnsupportedFile, match=r"needs a domain of 2\^3, expected at most 2\^2"):
        setup_insecure(r1cs, tmp_path / "k", cpu)


def test_cancelled_setup_leaves_nothing(tmp_path: Path) -> None:
    import threading

    class After:
        """Set from the n-th look on."""

        def __init__(self, looks: int) -> None:
            self.looks = looks

        def is_set(self) -> bool:
            self.looks -= 1
            return self.looks < 0

    (tmp_path / "k.zkey").write_bytes(b"old")
    event = threading.Event()
    event.set()
    for cancel in (event, After(3), After(20)):
        backend = open_backend("cpu", BN254, Job(threads=1, cancel=cancel))
        with pytest.raises(Cancelled):
            setup_insecure(chain_circuit(5).r1cs, tmp_path / "k.zkey", backend)
        assert (tmp_path / "k.zkey").read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [tmp_path / "k.zkey"]


def test_reading_a_circuit_is_cancelled_too(tmp_path: Path) -> None:
    """Also between the reports of progress: a large circuit takes a while to read."""
    chain_circuit(1 << 16).write(tmp_path / "c.r1cs", tmp_path / "c.wtns")
    looks = 0

    def check() -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            raise Cancelled("now")

    with pytest.raises(Cancelled):
        read_r1cs(tmp_path / "c.r1cs", check=check)
    assert looks == 3


def test_progress_names_the_sections(tmp_path: Path) -> None:
    seen = []
    job = Job(threads=1, progress=seen.append)
    setup_insecure(chain_circuit(5).r1cs, tmp_path / "k.zkey", open_backend("cpu", BN254, job))
    assert [p.phase for p in seen if p.fraction == 1.0]
    assert {"coefficients", "IC points", "A points", "B2 points", "H points"} <= set(job.timings)
    assert all(0 <= p.fraction <= 1 for p in seen)
