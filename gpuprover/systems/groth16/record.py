"""Groth16 as those above it see it. What a proof does not need is imported when it is first asked for."""

from __future__ import annotations

from typing import Any

from gpuprover.backend import Backend
from gpuprover.formats.files import Pathish
from gpuprover.formats.r1cs import R1CS
from gpuprover.systems.groth16 import documents, key, prover, verifier
from gpuprover.systems.groth16.key import ProvingKey
from gpuprover.systems.system import KeyCheck, ProofSystem, SetupResult


def _check_whole_key(
    key: ProvingKey, circuit: Pathish | None, powers: Pathish | None, backend: Backend, budget: int | None
) -> KeyCheck:
    from gpuprover.systems.groth16 import consistency

    return consistency.check_whole_key(key, circuit, powers, backend, budget)


def _setup(circuit: R1CS, powers: Pathish | None, zkey: Pathish, backend: Backend) -> SetupResult:
    from gpuprover.systems.groth16 import setup

    return setup.setup(circuit, powers, zkey, backend)


def _setup_memory(circuit: R1CS, from_powers: bool) -> int:
    from gpuprover.systems.groth16 import setup

    return setup.memory_needed(circuit, from_powers)


def _solidity_verifier(verification_key: Any, allow_insecure: bool) -> str:
    from gpuprover.systems.groth16 import solidity

    return solidity.export_verifier(verification_key, allow_insecure=allow_insecure)


def _solidity_calldata(public: Any, proof: Any, public_source: str, proof_source: str) -> str:
    from gpuprover.systems.groth16 import solidity

    return solidity.export_calldata(public, proof, public_source, proof_source)


SYSTEM = ProofSystem(
    name=documents.NAME,
    host_parts=frozenset({"G2"}),
    load_key=key.load_key,
    read_verification_key=key.read_verification_key,
    parse_verification_key=documents.parse_verification_key,
    check_key=key.ProvingKey.check_header_subgroups,
    check_every_point=prover.check_key_once,
    check_blinding=prover.check_blinding,
    check_witness=prover.check_witness_fits,
    public_signals=prover.public_signals,
    prove=prover.prove,
    checked=prover.checked,
    in_subgroups=prover.in_subgroups,
    write_proof=documents.proof_to_json,
    parse_proof=documents.parse_proof,
    sample_proof=documents.sample_proof,
    verify=verifier.verify,
    verify_documents=verifier.verify_documents,
    describe_key=key.describe,
    check_whole_key=_check_whole_key,
    setup=_setup,
    setup_memory=_setup_memory,
    solidity_verifier=_solidity_verifier,
    solidity_calldata=_solidity_calldata,
    proof_schema=documents.PROOF_SCHEMA,
)
