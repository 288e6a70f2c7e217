"""A Solidity contract that verifies the proofs of one key, and the arguments of a call to it.

The contract uses the precompiles of EIP-196 (addition and multiplication in G1) and
EIP-197 (pairing), so it exists for BN254 only. It checks

    e(A, B) · e(α, −β) · e(Σ inputᵢ·ICᵢ, −γ) · e(C, −δ) = 1.

Its ``verifyProof`` takes the arguments of the contract that snarkjs writes. Every release of
Solidity 0.8 from 0.8.4 on compiles it, with and without optimiser and ``viaIR``: hence one block
of assembly with few variables, without the annotation that only newer ones know.
"""

from __future__ import annotations

from typing import Any

from gpuprover.curves import BN254
from gpuprover.formats.snarkjs_json import parse_public_signals
from gpuprover.limbs import Words, words_to_field
from gpuprover.systems.ethereum import (
    require_bn254,
    require_bn254_proof,
    require_secure,
    words_in_brackets,
)
from gpuprover.systems.groth16.documents import parse_proof, parse_verification_key

_CONTRACT = """\
// SPDX-License-Identifier: MIT
pragma solidity >=0.8.4 <0.9.0;

/// @title Verifier of Groth16 proofs over BN254 for one circuit with {n_public} public signals.
/// @notice Written by gpuprover from the circuit's verification key.
/// @dev A proof shows that its maker knew a witness for these public signals, and nothing else. Whoever sees
/// a valid proof can make other valid proofs of the same signals from it, and can send it again, from any
/// address: keep what was used by its public signals (a nullifier, say), never by the proof or its hash, and
/// make the sender a public signal where it matters.
contract Groth16Verifier {{
    // Order of the groups: public signals lie below it.
    uint256 private constant R = {r};

    // Verification key. G2 coordinates stand as EIP-197 wants them: imaginary part first.
    uint256 private constant ALPHA_X = {alpha_x};
    uint256 private constant ALPHA_Y = {alpha_y};
{g2_constants}
    // The points of the constant 1 and of every public signal: 32 bytes x, 32 bytes y.
    bytes private constant IC =
{ic};

    /// @notice Whether a proof is valid. What cannot be checked gives false, and does not revert.
    /// @dev A signal of R or more gives false, so that each value has one spelling. So do points that are off
    /// their curves, for which a precompile takes all gas that it was given, 63 of 64 parts of what is left;
    /// and so does too little gas: false is no proof that the statement does not hold. Give some 200,000 gas,
    /// and 7,000 for each public signal.
    /// @param a The proof's A.
    /// @param b The proof's B, imaginary parts first.
    /// @param c The proof's C.
    /// @param input The public signals, outputs first.
    /// @return valid Whether the proof is valid.
    function verifyProof(
        uint256[2] calldata a,
        uint256[2][2] calldata b,
        uint256[2] calldata c,
        uint256[{length}] calldata input
    ) public view returns (bool valid) {{
{length_check}        bytes memory ic = IC;
        assembly {{
            // Behind all that is in use: four pairs of a point in G1 and one in G2, six words each.
            let pairs := mload(64)
            // The sum of IC[0] and input[i] * IC[i + 1] grows in the third pair; a term comes behind it.
            mstore(add(pairs, 384), mload(add(ic, 32)))
            mstore(add(pairs, 416), mload(add(ic, 64)))
            valid := 1
{sum}            if valid {{
                calldatacopy(pairs, a, 64)
                calldatacopy(add(pairs, 64), b, 128)
                calldatacopy(add(pairs, 576), c, 64)
{key_points}
                valid := staticcall(gas(), 8, pairs, 768, pairs, 32)
                valid := and(valid, eq(mload(pairs), 1))
            }}
        }}
    }}
}}
"""

_SUM = """\
            for {{ let i := 0 }} and(valid, lt(i, {n_public})) {{ i := add(i, 1) }} {{
                let point := add(ic, add(96, mul(64, i)))
                mstore(add(pairs, 448), mload(point))
                mstore(add(pairs, 480), mload(add(point, 32)))
                calldatacopy(add(pairs, 512), add(input, mul(32, i)), 32)
                valid := lt(mload(add(pairs, 512)), R)
                valid := and(valid, staticcall(gas(), 7, add(pairs, 448), 96, add(pairs, 448), 64))
                valid := and(valid, staticcall(gas(), 6, add(pairs, 384), 128, add(pairs, 384), 64))
            }}
"""

# Words of the pairs that are the key's own, from a word on.
_KEY_POINTS = {
    6: ("ALPHA_X", "ALPHA_Y"),
    8: ("NEG_BETA_X1", "NEG_BETA_X0", "NEG_BETA_Y1", "NEG_BETA_Y0"),
    14: ("NEG_GAMMA_X1", "NEG_GAMMA_X0", "NEG_GAMMA_Y1", "NEG_GAMMA_Y0"),
    20: ("NEG_DELTA_X1", "NEG_DELTA_X0", "NEG_DELTA_Y1", "NEG_DELTA_Y0"),
}

_LENGTH_CHECK = "        if (input.length != 0) return false;\n"


def export_verifier(verification_key: dict[str, Any], allow_insecure: bool = False) -> str:
    """The source of a contract ``Groth16Verifier`` for a key, Solidity 0.8.4 or newer.

    A contract may have 24,576 bytes of code, which suffices for some 350 public signals.

    Args:
        verification_key: snarkjs's document.
        allow_insecure: write it too for a key for which proofs can be forged, as far as its points show.

    Raises:
        MalformedFile: the document is damaged.
        UnsupportedFile: a curve without precompiles, or another protocol.
        InvalidInput: an insecure key (:mod:`gpuprover.systems.groth16.key_warnings`).
    """
    key = parse_verification_key(verification_key)
    require_bn254(key.curve is BN254, "verification key")
    require_secure(key.warnings, allow_insecure)
    alpha_x, alpha_y = _coordinates(key.alpha1)
    return _CONTRACT.format(
        n_public=key.n_public,
        r=BN254.r,
        alpha_x=alpha_x,
        alpha_y=alpha_y,
        g2_constants="".join(
            _negated_constants(name, point)
            for name, point in (("BETA", key.beta2), ("GAMMA", key.gamma2), ("DELTA", key.delta2))
        ),
        key_points="\n".join(
            f"                mstore(add(pairs, {32 * (first + i)}), {name})"
            for first, names in _KEY_POINTS.items()
            for i, name in enumerate(names)
        ),
        ic="\n".join(f'        hex"{_ic_bytes(point).hex()}"' for point in key.ic),
        sum=_SUM.format(n_public=key.n_public) if key.n_public else "",
        # Solidity has no arrays of length zero: a dynamic one, which then has to be empty.
        length=key.n_public or "",
        length_check="" if key.n_public else _LENGTH_CHECK,
    )


def export_calldata(
    public_signals: Any, proof: Any, public_source: str = "public signals", proof_source: str = "proof"
) -> str:
    """The arguments of ``verifyProof`` as ``snarkjs zkey export soliditycalldata`` prints them.

    Raises:
        MalformedFile: a document is damaged.
        UnsupportedFile: a proof over a curve without precompiles, or of another protocol.
    """
    require_bn254_proof(proof, proof_source)
    parsed = parse_proof(proof, BN254, proof_source)
    signals = parse_public_signals(public_signals, BN254, source=public_source)
    x0, x1, y0, y1 = _coordinates(parsed.b)
    a, c = (_pair(*_coordinates(point)) for point in (parsed.a, parsed.c))
    b = f"[{_pair(x1, x0)},{_pair(y1, y0)}]"
    inputs = words_in_brackets(signals, '"')
    return f"{a},{b},{c},{inputs}"


def _coordinates(point: Words) -> list[int]:
    """Coordinates of a point uint64[words]; those of infinity are 0, as EIP-196 writes it."""
    return words_to_field(BN254.base, point.reshape(-1, BN254.base.limbs))


def _negated_constants(name: str, point: Words) -> str:
    x0, x1, y0, y1 = _coordinates(point)
    coordinates = {"X1": x1, "X0": x0, "Y1": -y1 % BN254.q, "Y0": -y0 % BN254.q}
    return "".join(
        f"    uint256 private constant NEG_{name}_{part} = {value};\n" for part, value in coordinates.items()
    )


def _ic_bytes(point: Words) -> bytes:
    return b"".join(x.to_bytes(32, "big") for x in _coordinates(point))


def _pair(first: int, second: int) -> str:
    return words_in_brackets((first, second), '"', ", ")
