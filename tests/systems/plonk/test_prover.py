"""PLONK's prover: snarkjs's proofs, value for value, on every backend; and what it refuses."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpuprover
from gpuprover.curves import BLS12_381, BN254
from gpuprover.demand import UNLIMITED, Budget
from gpuprover.devices import open_backend
from gpuprover.errors import (
    InvalidInput,
    MalformedFile,
    OutOfMemory,
    ProofGenerationFailed,
    UnsatisfiedWitness,
    WitnessMismatch,
)
from gpuprover.formats.wtns import Witness, read_witness
from gpuprover.job import Job
from gpuprover.limbs import ints_to_words
from gpuprover.plonkish.diagnosis import broken_gate
from gpuprover.plonkish.key import Sizes
from gpuprover.rehearsal import vectors_of
from gpuprover.systems.plonk import prover
from gpuprover.systems.plonk.documents import proof_to_json
from gpuprover.systems.plonk.key import ProvingKey, load_key
from tests.support.plonk import FASTEST, PLONK, Sample, sample

pytestmark = [pytest.mark.filterwarnings("ignore::gpuprover.InsecureBlindingWarning")]


def proved(given: Sample, backend: str = "cpu", chunks: int | None = None, threads: int = 2) -> Any:
    """The proof with the known blinding; ``chunks`` names a leaner demand."""
    key, witness = load_key(given.key), read_witness(given.witness)
    opened = open_backend(backend, key.curve, Job(threads=threads))
    if chunks is not None:
        key.__dict__["demand"] = next(d for d in key.demand.choices if d.chunks == chunks)
    proof = prover.prove(key, witness, opened, given.blinding)
    public = prover.public_signals(key, witness)
    assert prover.checked(key, witness, public, proof, opened) is proof
    return proof_to_json(proof, key.curve)


@pytest.mark.both_paths
@pytest.mark.parametrize("backend_name", ["cpu", "portable"], indirect=True)
@pytest.mark.parametrize("name", PLONK)
def test_proofs_of_snarkjs(name: str, backend_name: str) -> None:
    """Blinding, and so every challenge and value, are those of the file."""
    given = sample(name)
    assert json.dumps(proved(given, backend_name), indent=1) == given.proof_text


@pytest.mark.parametrize(
    "name", [name if name == FASTEST else pytest.param(name, marks=pytest.mark.slow) for name in PLONK]
)
def test_the_reference_makes_the_same_proofs(name: str) -> None:
    given = sample(name)
    assert proved(given, "reference") == given.proof


def test_proofs_of_a_larger_circuit(data_dir: Path) -> None:
    """n = 2^14, 1660 additions; poseidon2 of another set-up."""
    folder, witnesses = data_dir / "plonk" / "fixed", data_dir / "groth16"
    for stem, witness in (("merkle20", "merkle20"), ("pot14/poseidon2", "poseidon2")):
        path = folder / stem
        given = Sample(path.parent, path.name, "plonk")
        result = gpuprover.prove(
            given.key, witnesses / f"{witness}.wtns", blinding=given.blinding, device="cpu"
        )
        assert result.proof == given.proof
        assert result.public_signals == given.public


@pytest.mark.parametrize("name", ["adds", "bls-nopub", "quirks"])
def test_steps_in_chunks_make_the_same_proof(name: str) -> None:
    given = sample(name)
    chunks = [demand.chunks for demand in load_key(given.key).demand.choices]
    assert chunks[:2] == [1, 4]
    for count in chunks[1:]:
        assert proved(given, chunks=count) == given.proof


def test_a_limit_on_memory_chooses_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    given = sample("adds")
    key, witness = load_key(given.key), read_witness(given.witness)
    backend = open_backend("reference", key.curve, Job())  # with a few rows only vectors count
    monkeypatch.setattr(type(backend), "msm_many", lambda self, requests: [[key.powers[0]]] * len(requests))
    needs = [backend.plan(replace(d, leaner=None), UNLIMITED).total for d in key.demand.choices]
    used: list[int] = []
    rounds = prover.rounds

    def noted(*arguments: Any) -> Any:
        if arguments[-2] is backend:  # and not a rehearsal
            used.append(arguments[-1])
        return rounds(*arguments)

    monkeypatch.setattr(prover, "rounds", noted)
    for need in needs:
        prover.prove(key, witness, backend, given.blinding, Budget(host=need))
    assert used == [demand.chunks for demand in key.demand.choices] == [1, 4]
    with pytest.raises(OutOfMemory, match="needs"):
        prover.prove(key, witness, backend, given.blinding, Budget(host=needs[-1] - 1))


@pytest.mark.parametrize("log_n", [18, 20])
def test_memory_of_large_circuits(log_n: int) -> None:
    """Beside the witness and the mapped key: 14 vectors of n, or 11, and what sums and transforms take."""
    n = 1 << log_n
    demand = prover.demand(BN254, Sizes(n, 1, n, n // 8, n))
    backend = open_backend("cpu", BN254, Job(threads=1))
    for choice, vectors in zip(demand.choices, (14, 11), strict=True):
        assert vectors_of(choice) < vectors * n + 100
        plan = backend.plan(replace(choice, leaner=None), UNLIMITED)
        beside = plan.arena + plan.tables - demand.witness * 32 - vectors * n * 32
        assert beside < (48 << 20), (choice.chunks, beside)


def test_a_proof_takes_what_was_planned(data_dir: Path) -> None:
    """The peak of what vectors and scratch take is what the rehearsal counts, with n = 2^10."""
    given = Sample(data_dir / "plonk" / "fixed" / "pot14", "poseidon2", "plonk")
    witness = read_witness(data_dir / "groth16" / "poseidon2.wtns")
    backend = open_backend("cpu", BN254, Job(threads=1))
    prover.prove(load_key(given.key), witness, backend)  # kernels and tables are there
    for choice in load_key(given.key).demand.choices:
        key = load_key(given.key)  # multiples are kept of none
        plan = backend.plan(replace(choice, leaner=None), UNLIMITED)
        key.__dict__["demand"] = replace(choice, leaner=None)
        peaks = []
        for _ in range(2):  # the interpreter's own tables grow now and then
            tracemalloc.start()
            try:
                prover.prove(key, witness, backend)
                peaks.append(tracemalloc.get_traced_memory()[1])
            finally:
                tracemalloc.stop()
        planned, peak = plan.arena - witness.values.nbytes, min(peaks)
        assert 0.7 * planned < peak < planned + (1 << 18), choice.chunks


def test_blinding_is_random_and_full(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = prover.random_blinding(BN254)
    assert len(set(drawn)) == len(drawn) == prover.BLINDING
    given = sample(FASTEST)
    proofs = [gpuprover.prove(given.key, given.witness, device="cpu").proof for _ in range(2)]
    for name in ("A", "B", "C", "Z", "T1", "T2", "T3", "Wxi", "Wxiw", "eval_a", "eval_zw"):
        assert proofs[0][name] != proofs[1][name]
    for proof in proofs:
        assert gpuprover.verify(given.verification_key, given.public, proof)


def test_every_blinding_scalar_counts() -> None:
    """And takes part where the protocol says."""
    given = sample(FASTEST)
    key, witness = load_key(given.key), read_witness(given.witness)
    backend = open_backend("cpu", key.curve, Job(threads=1))
    first = {0: "A", 1: "A", 2: "B", 3: "B", 4: "C", 5: "C", 6: "Z", 7: "Z", 8: "Z", 9: "T1", 10: "T2"}
    order = ["A", "B", "C", "Z", "T1", "T2", "T3"]
    for i, name in first.items():
        blinding = [*given.blinding]
        blinding[i] += BN254.r - 1  # also not reduced
        document = proof_to_json(prover.prove(key, witness, backend, blinding), key.curve)
        changed = [point for point in order if document[point] != given.proof[point]]
        assert changed[0] == name


@pytest.mark.parametrize("blinding", [(), (1,) * 10, (1,) * 12, (1,) * 10 + (-1,), (1,) * 10 + (1.0,), 5])
def test_blinding_of_another_form(blinding: object) -> None:
    given = sample(FASTEST)
    with pytest.raises(InvalidInput, match="blinding: expected 11 integers"):
        gpuprover.prove(given.key, given.witness, blinding=blinding, device="cpu")


def test_a_challenge_in_the_domain_draws_another_blinding(monkeypatch: pytest.MonkeyPatch) -> None:
    given = sample(FASTEST)
    key, witness = load_key(given.key), read_witness(given.witness)
    backend, real = open_backend("cpu", key.curve, Job(threads=1)), prover.linearisation
    prover.prove(key, witness, backend)  # its steps are rehearsed once
    bad = 1

    def linearisation(vk: Any, drawn: Any, *rest: Any) -> Any:
        nonlocal bad
        bad -= 1
        return real(
            vk, drawn._replace(xi=vk.curve.scalar.root_of_unity(vk.power)) if bad >= 0 else drawn, *rest
        )

    monkeypatch.setattr(prover, "linearisation", linearisation)
    proof = prover.prove(key, witness, backend)
    assert bad == -1
    assert prover.checked(key, witness, prover.public_signals(key, witness), proof, backend) is proof
    bad = 1
    with pytest.raises(InvalidInput, match="blinding: it leads to a challenge that is a root of unity"):
        prover.prove(key, witness, backend, given.blinding)
    bad = 3
    with pytest.raises(ProofGenerationFailed, match="3 useless challenges"):
        prover.prove(key, witness, backend)


def changed_witness(given: Sample, index: int) -> Witness:
    witness = read_witness(given.witness)
    values = np.array(witness.values)
    values[index] = ints_to_words([4711], witness.curve.scalar.limbs)[0]
    return Witness(witness.curve, values, "changed.wtns")


def test_witnesses_that_do_not_satisfy() -> None:
    """The gate is named, and it is the first one."""
    given = sample("quirks")
    key = load_key(given.key)
    backend, found = open_backend("cpu", BN254, Job(threads=1)), []
    for index in range(1, key.n_vars):
        witness = changed_witness(given, index)
        public = prover.public_signals(key, witness)
        row = broken_gate(key.wiring, key.polynomials, witness.values, public, backend)
        if row is None:
            continue  # a signal in no gate
        found.append(row)
        proof = prover.prove(key, witness, backend, given.blinding)
        with pytest.raises(UnsatisfiedWitness, match=f"gate {row} of 69 does not hold") as caught:
            prover.checked(key, witness, public, proof, backend)
        assert (caught.value.path, caught.value.role) == ("changed.wtns", "witness")
    assert len(found) > key.n_vars // 2
    honest = read_witness(given.witness)
    public = prover.public_signals(key, honest)
    assert broken_gate(key.wiring, key.polynomials, honest.values, public, backend) is None


def test_keys_whose_parts_do_not_belong_together() -> None:
    given = sample("quirks")
    key, witness = load_key(given.key), read_witness(given.witness)
    other = {**key.polynomials, "S1": key.polynomials["S2"]}
    mixed = replace(key, polynomials=other)
    backend = open_backend("cpu", BN254, Job(threads=1))
    proof = prover.prove(mixed, witness, backend, given.blinding)
    public = prover.public_signals(key, witness)
    with pytest.raises(MalformedFile, match="every gate holds") as caught:
        prover.checked(mixed, witness, public, proof, backend)
    assert caught.value.role == "key"


def with_bad_power(key: ProvingKey, index: int) -> ProvingKey:
    powers = np.array(key.powers)
    powers[index, 0] ^= np.uint64(1)
    return replace(key, powers=powers)


def test_bad_points_of_a_key_are_named() -> None:
    given = sample(FASTEST)
    key, witness = with_bad_power(load_key(given.key), 5), read_witness(given.witness)
    backend = open_backend("cpu", BN254, Job(threads=1))
    message = r"section 14 \(powers of tau\): point 5 is off the curve"
    with pytest.raises(MalformedFile, match=message):
        prover.check_key_once(key, backend)
    proof = prover.prove(key, witness, backend, given.blinding)
    with pytest.raises(MalformedFile, match=message):
        prover.checked(key, witness, prover.public_signals(key, witness), proof, backend)
    commitments = {**key.commitments, "S2": key.powers[5]}
    with pytest.raises(MalformedFile, match=r"section 2 \(PLONK header\): S2 is off the curve"):
        prover.check_header(replace(key, commitments=commitments), backend)


def test_unverified_proofs_rest_on_a_sound_key() -> None:
    given = sample(FASTEST)
    result = gpuprover.prove(given.key, given.witness, verify=False, device="cpu")
    assert gpuprover.verify(given.verification_key, result.public_signals, result.proof)


def test_witnesses_of_other_circuits() -> None:
    given = sample("quirks")
    with pytest.raises(WitnessMismatch, match=r"values, expected 11 for the circuit"):
        gpuprover.prove(given.key, sample("adds").witness, device="cpu")
    with pytest.raises(WitnessMismatch, match=f"over {BLS12_381.scalar.name}"):
        gpuprover.prove(given.key, sample("bls-small").witness, device="cpu")
