"""FFLONK's prover: proofs with known blinding value for value, bad witnesses, memory, the library's calls."""

from __future__ import annotations

import json
import secrets
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpuprover
from gpuprover.circuits import chain_circuit
from gpuprover.curves import BN254
from gpuprover.demand import UNLIMITED, Budget
from gpuprover.devices import open_backend
from gpuprover.errors import InvalidInput, MalformedFile, OutOfMemory, UnsatisfiedWitness, WitnessMismatch
from gpuprover.formats.wtns import Witness, read_witness
from gpuprover.job import Job
from gpuprover.limbs import ints_to_words, words_to_ints
from gpuprover.plonkish.key import Sizes
from gpuprover.systems.fflonk import prover
from gpuprover.systems.fflonk.documents import Evaluations, proof_to_json
from gpuprover.systems.fflonk.key import POWERS, S1, ProvingKey, load_key
from gpuprover.systems.fflonk.rounds import Transcript
from gpuprover.systems.fflonk.verifier import verify
from tests.support.containers import edit, put
from tests.support.plonk import FFLONK, Sample, sample

R = BN254.r


def made(given: Sample, witness: Path, device: str = "cpu", threads: int = 1) -> str:
    """The proof with the sample's blinding, as its file has it."""
    backend = open_backend(device, BN254, Job(threads=threads))
    proof = prover.prove(load_key(given.key), read_witness(witness), backend, given.blinding)
    return json.dumps(proof_to_json(proof, BN254), indent=1)


def ints(given: Sample) -> list[int]:
    return words_to_ints(read_witness(given.witness).values)


def changed(given: Sample, at: int) -> Witness:
    """The witness with one value more by 1."""
    values = ints(given)
    values[at] = (values[at] + 1) % R
    return replace(read_witness(given.witness), values=ints_to_words(values, 4))


# Values of snarkjs's -----------------------------------------------------------------------------


@pytest.mark.both_paths
@pytest.mark.parametrize("backend_name", ["cpu", "portable"], indirect=True)
@pytest.mark.parametrize("name", FFLONK)
def test_own_proofs_byte_for_byte(name: str, backend_name: str) -> None:
    """Circuits without public signals among them, and one that fills its rows."""
    given = sample(name, "fflonk")
    for threads in (1, 3):
        assert made(given, given.witness, backend_name, threads) == given.proof_text


@pytest.mark.slow
@pytest.mark.parametrize("name", FFLONK)
def test_the_reference_makes_the_same_proofs(name: str) -> None:
    given = sample(name, "fflonk")
    assert made(given, given.witness, "reference") == given.proof_text


@pytest.mark.both_paths
@pytest.mark.parametrize("backend_name", ["cpu", "portable"], indirect=True)
@pytest.mark.parametrize("path", ["multiplier2", "poseidon2", "pot14/multiplier2", "pot14/poseidon2"])
def test_proofs_of_snarkjs_byte_for_byte(data_dir: Path, path: str, backend_name: str) -> None:
    fixed, name = data_dir / "plonk" / "fixed" / path, path.rpartition("/")[2]
    given = Sample(fixed.parent, name, "fflonk")
    if not given.key.exists():  # it lies with other tests' data
        (given_key,) = [data_dir / "plonk" / f"{name}.fflonk.zkey"]
        backend = open_backend(backend_name, BN254, Job(threads=2))
        witness = read_witness(data_dir / "groth16" / f"{name}.wtns")
        proof = prover.prove(load_key(given_key), witness, backend, given.blinding)
        assert json.dumps(proof_to_json(proof, BN254), indent=1) == given.proof_text
        return
    assert made(given, data_dir / "groth16" / f"{name}.wtns", backend_name, 2) == given.proof_text


# Blinding ----------------------------------------------------------------------------------------


def test_blinding_is_random_in_the_whole_field(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine numbers below r from the operating system for each proof, and all of it depends on each."""
    given = sample("duplicates", "fflonk")
    key, witness = load_key(given.key), read_witness(given.witness)
    backend = open_backend("cpu", BN254, Job(threads=1))
    bounds: list[int] = []
    draw = secrets.randbelow

    def drawn_below(bound: int) -> int:
        bounds.append(bound)
        return draw(bound)

    monkeypatch.setattr(secrets, "randbelow", drawn_below)
    public = prover.public_signals(key, witness)
    proofs = [prover.prove(key, witness, backend) for _ in range(2)]
    assert bounds == [R] * 18
    assert all(verify(key.vk, public, proof, backend) for proof in proofs)
    drawn = prover.random_blinding()
    proofs += [prover.prove(key, witness, backend, drawn)]
    for i in range(9):
        other = [(b + 1) % R if i == j else b for j, b in enumerate(drawn)]
        proofs.append(prover.prove(key, witness, backend, other))
        assert verify(key.vk, public, proofs[-1], backend)
    for column in zip(*(proof.points for proof in proofs), strict=True):
        # b7 to b9 blind z, which is in C2: C1 has nothing of them.
        assert len({row.tobytes() for row in column}) in (len(proofs), len(proofs) - 3)
    assert len({proof.inv for proof in proofs}) == len(proofs)


@pytest.mark.parametrize("useless", ["xi in the domain", "xi = 0", "y is opened"])
def test_a_useless_challenge_draws_another_blinding(useless: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = sample(FFLONK[0], "fflonk")
    key, witness = load_key(given.key), read_witness(given.witness)
    backend = open_backend("cpu", BN254, Job(threads=1))
    prover.prove(key, witness, backend)  # its steps are rehearsed once
    method = "y" if useless == "y is opened" else "seed"
    real, drawn = getattr(Transcript, method), list[int]()

    def draw(self: Transcript, *arguments: Any) -> int:
        first = {"xi in the domain": 1, "xi = 0": 0, "y is opened": pow(2, 3, R)}[useless]
        drawn.append(first if not drawn else real(self, *arguments))
        return drawn[-1]

    if method == "y":
        monkeypatch.setattr(Transcript, "seed", lambda *_: 2)  # ξ = 2^24, and y^8 is that
    monkeypatch.setattr(Transcript, method, draw)
    proof = prover.prove(key, witness, backend)
    assert len(drawn) == 2
    assert prover.checked(key, witness, prover.public_signals(key, witness), proof, backend) is proof
    drawn.clear()
    with pytest.raises(InvalidInput, match="blinding: it leads to a challenge"):
        prover.prove(key, witness, backend, given.blinding)


def test_fixed_blinding_is_reduced_and_checked() -> None:
    given = sample("duplicates", "fflonk")
    larger = tuple(b + R for b in given.blinding)
    result = gpuprover.prove(given.key, given.witness, blinding=larger, device="cpu")
    assert result.proof == given.proof
    assert result.public_signals == given.public
    for bad in ((1, 2), (1,) * 8, (1,) * 10, (1,) * 8 + (-1,), (1.0,) * 9, ("1",) * 9, 5, ()):
        with pytest.raises(InvalidInput, match="blinding: expected 9 integers of at least 0"):
            gpuprover.prove(given.key, given.witness, blinding=bad)  # type: ignore[arg-type]


# The library ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FFLONK)
def test_proofs_are_verified(name: str) -> None:
    given = sample(name, "fflonk")
    key = gpuprover.load_key(given.key)
    assert key.protocol == "fflonk"
    result = gpuprover.prove(key, given.witness)
    assert result.public_signals == given.public
    assert gpuprover.verify(key.verification_key, given.public, result.proof)
    unverified = gpuprover.prove(key, given.witness, verify=False)
    assert (
        gpuprover.verify_batch(key.vk, [(given.public, p.proof) for p in (result, unverified)]) == [True] * 2
    )


@pytest.mark.parametrize(("name", "at", "gate"), [("quirks", 1, 10), ("quirks", 5, 10), ("one-gate", 1, 0)])
def test_a_wrong_witness_is_refused_by_its_gate(name: str, at: int, gate: int) -> None:
    given = sample(name, "fflonk")
    key = load_key(given.key)
    witness = changed(given, at)
    with pytest.raises(UnsatisfiedWitness, match=f"gate {gate} of {key.constraints} does not hold") as caught:
        gpuprover.prove(key, words_to_ints(witness.values))
    assert str(caught.value).endswith("no proof was made")
    assert not any(str(value) in str(caught.value) for value in ints(given) if value > 1000)
    backend = open_backend("cpu", BN254, Job(threads=1))
    proof = prover.prove(key, witness, backend)
    assert not verify(key.vk, prover.public_signals(key, witness), proof, backend)


def test_a_witness_of_another_circuit_or_field_is_refused() -> None:
    given = sample("quirks", "fflonk")
    key, backend = load_key(given.key), open_backend("cpu", BN254, Job(threads=1))
    other = sample("bls-small")
    for path, problem in ((sample("one-gate").witness, "values, expected"), (other.witness, "the key over")):
        with pytest.raises(WitnessMismatch, match=problem):
            prover.prove(key, read_witness(path), backend)


def test_values_are_the_names_of_the_documents() -> None:
    given = sample("quirks", "fflonk")
    assert [*given.proof["evaluations"]] == [*Evaluations._fields, "inv"]


# Bad keys ------------------------------------------------------------------------------------------


def damaged(given: Sample, section: int, change: Any) -> bytes:
    return edit(given.key.read_bytes(), section, change)


@pytest.mark.parametrize("verified", [True, False])
def test_a_point_off_the_curve_is_named(verified: bool) -> None:
    given = sample("quirks", "fflonk")
    data = damaged(given, POWERS, put(64 * 7, b"\1"))
    witness = given.witness.read_bytes()
    for _ in range(2):
        with pytest.raises(MalformedFile, match=r"section 16 \(powers of tau\): point 7 is off the curve"):
            gpuprover.prove(gpuprover.load_key(data), witness, verify=verified)  # type: ignore[arg-type]


def test_parts_that_do_not_belong_together_are_the_keys_fault() -> None:
    """Another permutation than the commitment's: all gates hold, and the proof does not."""
    given = sample("quirks", "fflonk")
    key = gpuprover.load_key(damaged(given, S1, put(0, b"\1")))  # type: ignore[arg-type]
    with pytest.raises(MalformedFile, match="every gate holds, but the proof does not"):
        gpuprover.prove(key, given.witness)


def test_points_that_changed_after_they_were_checked() -> None:
    given = sample("quirks", "fflonk")
    key, backend = load_key(given.key), open_backend("cpu", BN254, Job(threads=1))
    proof = prover.prove(key, read_witness(given.witness), backend)
    assert prover.in_subgroups(key, proof, backend) is proof
    points = proof.points.copy()
    points[3, 0] ^= np.uint64(1)
    with pytest.raises(MalformedFile, match="they have changed since they were checked"):
        prover.in_subgroups(key, replace(proof, points=points), backend)


def test_a_wire_that_changed_after_it_was_checked() -> None:
    given = sample("quirks", "fflonk")
    key = load_key(given.key)
    wires = key.wiring.maps[1].copy()
    wires[3] = key.sizes.signals
    maps = (key.wiring.maps[0], wires, key.wiring.maps[2])
    changed_key = replace(key, wiring=replace(key.wiring, maps=maps))
    with pytest.raises(MalformedFile, match="has been written to since it was loaded"):
        prover.prove(changed_key, read_witness(given.witness), open_backend("cpu", BN254, Job(threads=1)))


# Memory --------------------------------------------------------------------------------------------


def test_the_plan_bounds_what_a_proof_takes(tmp_path: Path) -> None:
    """Bytes of arrays at the peak, as the allocator counts them; of a key of our own set-up."""
    circuit, r1cs, wtns, zkey = (
        chain_circuit(1000),
        *(tmp_path / f"c.{end}" for end in ("r1cs", "wtns", "zkey")),
    )
    circuit.write(r1cs, wtns)
    gpuprover.setup(r1cs, zkey, protocol="fflonk", insecure=True)
    key, witness = load_key(zkey), read_witness(wtns)
    backend = open_backend("cpu", BN254, Job(threads=1))
    prover.prove(key, witness, backend)
    plan = backend.plan(key.demand, UNLIMITED)
    peaks = []
    for _ in range(2):  # the interpreter's own tables grow now and then
        tracemalloc.start()
        try:
            prover.prove(key, witness, backend)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    peak = min(peaks)
    print(f"planned {plan.tables + plan.arena}, taken {peak}")
    assert peak <= plan.tables + plan.arena
    assert plan.arena < 1.5 * peak, "a plan that is far too large refuses proofs"


def test_memory_is_planned_by_sizes(tmp_path: Path) -> None:
    """Keys of equal sizes have equal demands, and what does not fit is refused before anything is done."""
    given = sample("quirks", "fflonk")
    key = load_key(given.key)
    assert load_key(given.key).demand == key.demand
    assert hash(load_key(given.key).demand) == hash(key.demand)
    assert key.demand.leaner is None
    large = prover.demand(Sizes(1 << 20, 1, 1 << 20, 0, (1 << 20) - 2))
    backend = open_backend("cpu", BN254, Job(threads=1))
    plan = backend.plan(large, UNLIMITED)
    assert plan.key > 9 << 26
    assert plan.tables + plan.arena < 64 << 25
    with pytest.raises(OutOfMemory):
        backend.plan(large, Budget(host=plan.tables + plan.arena - 1))
    assert backend.plan(large, Budget(host=plan.tables + plan.arena)) == plan
    with pytest.raises(OutOfMemory):
        prover.prove(key, read_witness(given.witness), backend, budget=Budget(host=1000))
    reference = open_backend("reference", BN254, Job(threads=1))
    assert reference.plan(key.demand, UNLIMITED).key > 0


def test_a_job_ends_a_proof() -> None:
    given = sample("quirks", "fflonk")
    with pytest.raises(gpuprover.Timeout):
        gpuprover.prove(given.key, given.witness, timeout=1e-9)


def test_the_key_checks_its_points_once() -> None:
    given = sample("one-gate", "fflonk")
    key: ProvingKey = load_key(given.key)
    backend = open_backend("cpu", BN254, Job(threads=1))
    prover.check_header(key, backend)
    for _ in range(2):
        prover.check_key_once(key, backend)
    assert list(backend.job.timings) == ["check key"]
