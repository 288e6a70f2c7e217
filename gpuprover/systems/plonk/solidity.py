"""A Solidity contract that verifies the PLONK proofs of one key, and the arguments of a call to it.

The contract exists for BN254 only (:mod:`gpuprover.systems.ethereum`). It checks

    e(W_ξ + u·W_ξω, −X₂) · e(ξ·W_ξ + uξω·W_ξω + F − E, G2) = 1

with the challenges, F and E of the verifier (:mod:`gpuprover.systems.plonk.verifier`). Its ``verifyProof``
takes the arguments of the contract that snarkjs writes. Solidity has no arrays of length zero: without
public signals it takes a dynamic array in their place, which has to be empty, as the contract for Groth16
does.

Every release of Solidity 0.8 from 0.8.4 on compiles it, with and without optimiser and ``viaIR``: hence one
block of assembly with few variables, without the annotation that only newer ones know. A call takes 245,000
gas at most, and 450 for each public signal; points of the key at infinity make it cheaper.
"""

from __future__ import annotations

from string import Template
from typing import Any

from gpuprover.curves import BN254
from gpuprover.formats.snarkjs_json import g2_to_json, parse_public_signals
from gpuprover.systems.ethereum import (
    ASSEMBLY,
    constants,
    g1_constants,
    g2_constants,
    negated,
    require_bn254,
    require_bn254_proof,
    require_secure,
    words_in_brackets,
)
from gpuprover.systems.plonk.documents import (
    COMMITMENTS,
    EVALUATIONS,
    POINTS,
    parse_proof,
    parse_verification_key,
    proof_to_json,
)

_CONTRACT = Template("""\
// SPDX-License-Identifier: MIT
pragma solidity >=0.8.4 <0.9.0;

/// @title Verifier of PLONK proofs over BN254 for one circuit with $n_public public signals.
/// @notice Written by gpuprover from the circuit's verification key.
/// @dev A proof shows that its maker knew a witness for these public signals, and nothing else. Whoever sees
/// a valid proof can send it again, from any address: keep what was used by its public signals (a nullifier,
/// say), never by the proof or its hash, and make the sender a public signal where it matters.
contract PlonkVerifier {
    // The prime of coordinates, and that of scalars: public signals and evaluations lie below R.
    uint256 private constant Q = $q;
    uint256 private constant R = $r;

    // The domain: 2^POWER powers of OMEGA. SIZE_INVERSE is 1 / 2^POWER, and K1, K2 set columns apart.
    uint256 private constant POWER = $power;
    uint256 private constant OMEGA = $omega;
    uint256 private constant SIZE_INVERSE = $size_inverse;
    uint256 private constant K1 = $k1;
    uint256 private constant K2 = $k2;

    // Verification key. G2 coordinates stand as EIP-197 wants them: imaginary part first.
$key
    // Places in memory, from the copy of the proof on. A challenge lies where the next hash begins, or on
    // words that were hashed.
    uint256 private constant AT_V = 0x00;
    uint256 private constant AT_U = 0x20;
    uint256 private constant AT_ZH = 0x40;
    uint256 private constant AT_XI_POWER = 0x60;
    uint256 private constant AT_BETA = 0x80;
    uint256 private constant AT_GAMMA = 0xa0;
    uint256 private constant AT_LAGRANGE = 0xc0;
    uint256 private constant AT_ALPHA = 0xe0;
    uint256 private constant AT_INPUTS = 0x100;
    uint256 private constant AT_XI = 0x220;
    uint256 private constant AT_A = 0x240;
    uint256 private constant AT_B = 0x260;
    uint256 private constant AT_C = 0x280;
    uint256 private constant AT_S1 = 0x2a0;
    uint256 private constant AT_S2 = 0x2c0;
    uint256 private constant AT_ZW = 0x2e0;
    uint256 private constant AT_LEFT = 0x300;
    uint256 private constant AT_RIGHT = 0x3c0;

    /// @notice Whether a proof is valid. What cannot be checked gives false, and does not revert.
    /// @dev A number of R or more, or a coordinate of Q or more, gives false, so that each value has one
    /// spelling. A proof that is not valid costs no more gas than a valid one. Too little gas gives false, or
    /// reverts: false is no proof that the statement does not hold. Give some 250,000 gas, and 600 for each
    /// public signal.
    /// @param _proof A, B, C, Z, T1, T2, T3, Wxi, Wxiw, x before y, infinity as zeros; then the evaluations
    /// a, b, c, s1, s2, zw.
    /// @param _pubSignals The public signals, outputs first.$empty
    /// @return valid Whether the proof is valid.
    function verifyProof(
        uint256[24] calldata _proof,
        uint256[$length] calldata _pubSignals
    ) public view returns (bool valid) {
$length_check        assembly {
$functions            // Writes the coordinates of a point.
            function place(at, x, y) {
                mstore(at, x)
                mstore(add(at, 32), y)
            }
            // A factor of the permutation's argument: an evaluation, beta times something, gamma.
            function factor(p, at, multiple) -> sum {
                sum := add(add(mload(add(p, at)), multiple), mload(add(p, AT_GAMMA)))
            }
            // L_1(xi) and the public signals' polynomial at xi; false for a xi in the domain.
            function evaluate_inputs(p, signals) -> done {
                let xi := mload(add(p, AT_XI))
                let zh := xi
                for { let i := 0 } lt(i, POWER) { i := add(i, 1) } { zh := mulmod(zh, zh, R) }
                mstore(add(p, AT_XI_POWER), zh)
                zh := addmod(zh, sub(R, 1), R)
                mstore(add(p, AT_ZH), zh)
                let numerator, denominator := fractions(signals, xi)
                let first := add(xi, sub(R, 1))
                // One inversion, as a power R - 2, of what all fractions are over.
                let input := add(p, AT_LEFT)
                mstore(input, 32)
                mstore(add(input, 32), 32)
                mstore(add(input, 64), 32)
                mstore(add(input, 96), mulmod(first, denominator, R))
                mstore(add(input, 128), sub(R, 2))
                mstore(add(input, 160), R)
                done := and(gt(zh, 0), staticcall(gas(), 5, input, 192, input, 32))
                let scale := mulmod(mulmod(mload(input), SIZE_INVERSE, R), zh, R)
                mstore(add(p, AT_LAGRANGE), mulmod(scale, denominator, R))
                numerator := add(mulmod($first_signal, denominator, R), mulmod(numerator, first, R))
                mstore(add(p, AT_INPUTS), sub(R, mulmod(scale, numerator, R)))
            }
            // Adds the multiples for the gates and for the permutation; value is what has no point.
            function add_constraints(p, proof, sum) -> done, value {
                let point := add(sum, 64)
                done := 1
$selectors                let alpha := mload(add(p, AT_ALPHA))
                let beta := mload(add(p, AT_BETA))
                let x := mulmod(beta, mload(add(p, AT_XI)), R)
                let scalar := mulmod(factor(p, AT_A, x), factor(p, AT_B, mulmod(K1, x, R)), R)
                scalar := mulmod(mulmod(scalar, factor(p, AT_C, mulmod(K2, x, R)), R), alpha, R)
                let first := mulmod(mulmod(alpha, alpha, R), mload(add(p, AT_LAGRANGE)), R)
                calldatacopy(point, add(proof, 192), 64)
                done := and(done, add_multiple(sum, add(add(scalar, first), mload(add(p, AT_U)))))
                scalar := mulmod(beta, mload(add(p, AT_S1)), R)
                scalar := mulmod(factor(p, AT_A, scalar), mulmod(alpha, mload(add(p, AT_ZW)), R), R)
                scalar := mulmod(scalar, factor(p, AT_B, mulmod(beta, mload(add(p, AT_S2)), R)), R)
                place(point, S3_X, S3_Y)
                done := and(done, add_multiple(sum, sub(R, mulmod(scalar, beta, R))))
                value := sub(R, mulmod(scalar, factor(p, AT_C, 0), R))
                value := addmod(add(mload(add(p, AT_INPUTS)), sub(R, first)), value, R)
            }
            // Adds the multiples of the quotient's three parts.
            function add_quotient(p, proof, sum) -> done {
                done := 1
                let scalar := sub(R, mload(add(p, AT_ZH)))
                for { let i := 256 } lt(i, 448) { i := add(i, 64) } {
                    calldatacopy(add(sum, 64), add(proof, i), 64)
                    done := and(done, add_multiple(sum, scalar))
                    scalar := mulmod(scalar, mload(add(p, AT_XI_POWER)), R)
                }
            }
            // Adds the multiples of A, B, C, S1, S2; value is the combination of their evaluations.
            function add_openings(p, proof, sum) -> done, value {
                let point := add(sum, 64)
                let v := mload(add(p, AT_V))
                let scalar := v
                done := 1
                for { let i := 0 } lt(i, 3) { i := add(i, 1) } {
                    calldatacopy(point, add(proof, mul(i, 64)), 64)
                    done := and(done, add_multiple(sum, scalar))
                    value := addmod(value, mulmod(scalar, mload(add(add(p, AT_A), mul(i, 32))), R), R)
                    scalar := mulmod(scalar, v, R)
                }
                place(point, S1_X, S1_Y)
                done := and(done, add_multiple(sum, scalar))
                value := addmod(value, mulmod(scalar, mload(add(p, AT_S1)), R), R)
                scalar := mulmod(scalar, v, R)
                place(point, S2_X, S2_Y)
                done := and(done, add_multiple(sum, scalar))
                value := addmod(value, mulmod(scalar, mload(add(p, AT_S2)), R), R)
            }

            // Behind all that is in use, as the first hash takes them: points of the key, signals, the proof.
            let m := mload(64)
            let p := add(m, $before_proof)
$hashed_key$copied_signals            calldatacopy(p, _proof, 768)
            valid := 1
            for { let i := 0 } lt(i, AT_A) { i := add(i, 64) } { valid := and(valid, is_point(add(p, i))) }
            for { let i := AT_A } lt(i, AT_LEFT) { i := add(i, 32) } {
                valid := and(valid, lt(mload(add(p, i)), R))
            }
            for { let i := 512 } lt(i, $before_proof) { i := add(i, 32) } {
                valid := and(valid, lt(mload(add(m, i)), R))
            }
            if valid {
                mstore(add(p, AT_BETA), challenge(m, $first_hash))
                mstore(add(p, AT_GAMMA), challenge(add(p, AT_BETA), 32))
                mstore(add(p, AT_ALPHA), challenge(add(p, AT_BETA), 128))
                let c := challenge(add(p, AT_ALPHA), 224)
                mstore(add(p, AT_U), challenge(add(p, 448), 128))
                mstore(add(p, AT_XI), c)
                mstore(add(p, AT_V), challenge(add(p, AT_XI), 224))
                valid := evaluate_inputs(p, add(m, 512))
                let sum := add(p, AT_RIGHT)
                place(sum, QC_X, QC_Y)
                let done, value := add_constraints(p, _proof, sum)
                valid := and(valid, done)
                valid := and(valid, add_quotient(p, _proof, sum))
                c := value
                done, value := add_openings(p, _proof, sum)
                valid := and(valid, done)
                place(add(sum, 64), 1, 2)
                value := add(value, mulmod(mload(add(p, AT_U)), mload(add(p, AT_ZW)), R))
                valid := and(valid, add_multiple(sum, add(c, sub(add(R, R), value))))
                // Wxi and Wxiw, on both sides.
                c := mload(add(p, AT_XI))
                calldatacopy(add(sum, 64), add(_proof, 448), 64)
                valid := and(valid, add_multiple(sum, c))
                c := mulmod(mulmod(c, mload(add(p, AT_U)), R), OMEGA, R)
                calldatacopy(add(sum, 64), add(_proof, 512), 64)
                valid := and(valid, add_multiple(sum, c))
                sum := add(p, AT_LEFT)
                calldatacopy(sum, add(_proof, 448), 128)
                valid := and(valid, add_multiple(sum, mload(add(p, AT_U))))
$pairing
                valid := and(valid, staticcall(gas(), 8, sum, 384, sum, 32))
                valid := and(valid, eq(mload(sum), 1))
            }
        }
    }
}
""")

_EMPTY = " The circuit has none: the array has to be empty."
_LENGTH_CHECK = "        if (_pubSignals.length != 0) return false;\n"
_SCALARS = {
    "Qm": "mulmod(mload(add(p, AT_A)), mload(add(p, AT_B)), R)",
    "Ql": "mload(add(p, AT_A))",
    "Qr": "mload(add(p, AT_B))",
    "Qo": "mload(add(p, AT_C))",
}


def export_verifier(verification_key: dict[str, Any], allow_insecure: bool = False) -> str:
    """The source of a contract ``PlonkVerifier`` for a key, Solidity 0.8.4 or newer.

    Args:
        verification_key: snarkjs's document.
        allow_insecure: write it too for a key for which proofs can be forged, as far as its points show.

    Raises:
        MalformedFile: the document is damaged.
        UnsupportedFile: a curve without precompiles, or another protocol.
        InvalidInput: an insecure key.
    """
    parsed = parse_verification_key(verification_key)
    require_bn254(parsed.curve is BN254, "verification key")
    require_secure(parsed.warnings, allow_insecure)
    key, n_public = parsed.document, parsed.n_public
    points = {name: g1_constants(name.upper(), key[name]) for name in COMMITMENTS}
    g2 = g2_constants("G2", g2_to_json(BN254.g2))
    key_g2 = negated(g2_constants("NEG_X2", key["X_2"]))
    in_g1 = {name: value for point in points.values() for name, value in point.items()}
    return _CONTRACT.substitute(
        n_public=n_public,
        q=BN254.q,
        r=BN254.r,
        power=key["power"],
        omega=key["w"],
        size_inverse=pow(1 << key["power"], -1, BN254.r),
        k1=key["k1"],
        k2=key["k2"],
        key=constants(in_g1 | key_g2 | g2),
        empty="" if n_public else _EMPTY,
        length=n_public or "",
        length_check="" if n_public else _LENGTH_CHECK,
        functions=Template(ASSEMBLY).substitute(signals_size=32 * n_public),
        first_signal="mload(signals)" if n_public else "0",
        selectors="".join(
            f"                place(point, {x}, {y})\n"
            f"                done := and(done, add_multiple(sum, {scalar}))\n"
            for name, scalar in _SCALARS.items()
            for x, y in [points[name]]
            if any(points[name].values())  # else infinity, of which all multiples are
        ),
        before_proof=512 + 32 * n_public,
        first_hash=512 + 32 * n_public + 192,
        hashed_key="".join(f"            mstore(add(m, {32 * i}), {name})\n" for i, name in enumerate(in_g1)),
        copied_signals=f"            calldatacopy(add(m, 512), _pubSignals, {32 * n_public})\n"
        if n_public
        else "",
        pairing="\n".join(
            f"                mstore(add(sum, {offset + 32 * i}), {name})"
            for offset, names in ((64, key_g2), (256, g2))
            for i, name in enumerate(names)
        ),
    )


def export_calldata(
    public_signals: Any, proof: Any, public_source: str = "public signals", proof_source: str = "proof"
) -> str:
    """The arguments of ``verifyProof`` as ``snarkjs zkey export soliditycalldata`` prints them.

    Two lists of words in quotes, with nothing between them.

    Raises:
        MalformedFile: a document is damaged.
        UnsupportedFile: a proof over a curve without precompiles, or of another protocol.
    """
    require_bn254_proof(proof, proof_source)
    document = proof_to_json(parse_proof(proof, BN254, proof_source), BN254)
    signals = parse_public_signals(public_signals, BN254, source=public_source)
    coordinates = [x for name in POINTS for x in g1_constants(name, document[name]).values()]
    words = [*coordinates, *(int(document[name]) for name in EVALUATIONS)]
    return words_in_brackets(words, '"', ", ") + words_in_brackets(signals, '"')
