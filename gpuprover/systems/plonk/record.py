"""PLONK's record. Modules that a verifier does not need are imported when they are first asked for."""

from __future__ import annotations

from gpuprover.systems.plonk import documents, verifier
from gpuprover.systems.system import ProofSystem, late

_PACKAGE = __name__.rpartition(".")[0]

SYSTEM = ProofSystem(
    name=documents.NAME,
    host_parts=frozenset(),
    load_key=late(f"{_PACKAGE}.key:load_key"),
    read_verification_key=late(f"{_PACKAGE}.key:read_verification_key"),
    parse_verification_key=documents.parse_verification_key,
    check_key=late(f"{_PACKAGE}.prover:check_header"),
    check_every_point=late(f"{_PACKAGE}.prover:check_key_once"),
    check_blinding=late(f"{_PACKAGE}.prover:check_blinding"),
    check_witness=late(f"{_PACKAGE}.prover:check_witness_fits"),
    public_signals=late(f"{_PACKAGE}.prover:public_signals"),
    prove=late(f"{_PACKAGE}.prover:prove"),
    checked=late(f"{_PACKAGE}.prover:checked"),
    in_subgroups=late(f"{_PACKAGE}.prover:in_subgroups"),
    write_proof=documents.proof_to_json,
    parse_proof=documents.parse_proof,
    sample_proof=documents.sample_proof,
    verify=verifier.verify,
    verify_documents=verifier.verify_documents,
    describe_key=late("gpuprover.plonkish.key:describe"),
    check_whole_key=late(f"{_PACKAGE}.consistency:check_whole_key"),
    setup=late(f"{_PACKAGE}.setup:setup"),
    setup_memory=late(f"{_PACKAGE}.setup:memory_needed"),
    solidity_verifier=late(f"{_PACKAGE}.solidity:export_verifier"),
    solidity_calldata=late(f"{_PACKAGE}.solidity:export_calldata"),
    outline=late(f"{_PACKAGE}.setup:outline"),
    proof_schema=documents.PROOF_SCHEMA,
    rows="gates",
    phases=("wires", *(f"round {i}" for i in range(1, 6)), "verify"),
)
