"""Midnight's record. Modules that a verifier does not need are imported when they are first asked for."""

from __future__ import annotations

from typing import Any, NoReturn

from gpuprover.curves import BLS12_381
from gpuprover.errors import UnsupportedFile
from gpuprover.systems.midnight import documents, verifier
from gpuprover.systems.system import ProofSystem, late

_PACKAGE = __name__.rpartition(".")[0]


def _describe(key: Any) -> dict[str, Any]:
    """A proving key as JSON."""
    return {
        "protocol": key.protocol,
        "curve": key.curve.name,
        "line": key.key.profile.name,
        "constraints": key.constraints,
        "variables": key.n_vars,
        "domain_size": key.constraints,
        "k": key.key.k,
        "public_signals": key.n_public,
        "chips": sorted(key.vk.key.architecture.chips),
        "max_bit_len": key.key.max_bit_len,
        "instructions": len(key.circuit.instructions),
    }


def _refused(what: str) -> Any:
    """A function of a system's that this one does not have."""

    def refuse(*_: Any) -> NoReturn:
        raise UnsupportedFile(what, "protocol", f"there is none for {documents.NAME} keys")

    return refuse


SYSTEM = ProofSystem(
    name=documents.NAME,
    host_parts=frozenset(),
    load_key=late(f"{_PACKAGE}.key:load_key"),
    read_verification_key=late(f"{_PACKAGE}.key:read_verification_key"),
    parse_verification_key=documents.parse_verification_key,
    check_key=late(f"{_PACKAGE}.prover:check_header"),
    check_every_point=late(f"{_PACKAGE}.prover:check_key_once"),
    check_blinding=late(f"{_PACKAGE}.randomness:check_blinding"),
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
    describe_key=_describe,
    check_whole_key=late(f"{_PACKAGE}.consistency:check_whole_key"),
    setup=_refused("a set-up from a .r1cs"),
    setup_memory=_refused("a set-up from a .r1cs"),
    outline=_refused("an outline of a .r1cs"),
    solidity_verifier=_refused("a contract"),
    solidity_calldata=_refused("a contract"),
    proof_schema=documents.PROOF_SCHEMA,
    curves=(BLS12_381,),
    sets_up=False,
    rows="rows",
    read_curve=late(f"{_PACKAGE}.key:read_curve"),
    read_witness=late(f"{_PACKAGE}.witness:read_witness"),
    parameters_apart=True,
    phases=(
        *("check", "synthesis", "columns", "lookups", "products", "random", "quotient"),
        *("evaluations", "opening", "verify"),
    ),
)
