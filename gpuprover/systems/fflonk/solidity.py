"""A Solidity contract that verifies the FFLONK proofs of one key, and the arguments of a call to it.

It checks

    e(C0 + q₁·C1 + q₂·C2 − (R0(y) + q₁·R1(y) + q₂·R2(y))·G1 − M0·W1 + y·W2, −G2) · e(W2, X₂) = 1

with the challenges and values of the verifier (:mod:`gpuprover.systems.fflonk.verifier`). Its
``verifyProof`` takes the arguments of the contract that snarkjs writes; a circuit without public signals
has one word in their place, which has to be 0.

A proof brings the inverse of a product, ``inv``, and the contract divides by parts of that product alone:
it inverts nothing. Let S0[i] be the eighth roots of ξ, beginning with h0, S1[i] the fourth ones from h1 on,
S2[i] the cube roots from h2 on, S2'[i] those of ξω from h3 on, each times a root of unity the one before.
The factors of the product are

    ξⁿ − 1,   M1 = y⁴ − ξ,   M2 = (y³ − ξ)(y³ − ξω),   n(ξ − ωⁱ) for each public signal, for none as for one,
    8·h0⁶·S0[7i mod 8]·(y − S0[i]),  i < 8,     all together  −8⁸·ξ⁷·(y⁸ − ξ) = −8⁸·ξ⁷·M0,
    4·h1²·S1[3i mod 4]·(y − S1[i]),  i < 4,     −4⁴·ξ³·M1,
    3·h2·(ξ − ξω)·S2[2i mod 3]·(y − S2[i]),  i < 3,         3³·ξ²·(ξ − ξω)³·(y³ − ξ),
    3·h3·(ξω − ξ)·S2'[2i mod 3]·(y − S2'[i]),  i < 3,       3³·(ξω)²·(ξω − ξ)³·(y³ − ξω).

For the product of all S0[i] is −h0⁸ = −ξ, that of all S1[i] is −h1⁴ = −ξ, and those of the cube roots are ξ
and ξω. So the product is K·ξ²⁰·(ξⁿ − 1)·M0·M1²·M2²·∏(ξ − ωⁱ), with a constant K of the key.

Which releases of Solidity compile it, and why it is one block of assembly, is as for PLONK
(:mod:`gpuprover.systems.plonk.solidity`). A call takes some 160,000 gas, and 450 for each public signal.
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
    require_bn254_proof,
    require_secure,
    words_in_brackets,
)
from gpuprover.systems.fflonk.documents import (
    POLYNOMIALS,
    parse_proof,
    parse_verification_key,
    proof_to_json,
)

_CONTRACT = Template("""\
// SPDX-License-Identifier: MIT
pragma solidity >=0.8.4 <0.9.0;

/// @title Verifier of FFLONK proofs over BN254 for one circuit with $n_public public signals.
/// @notice Written by gpuprover from the circuit's verification key.
/// @dev A proof shows that its maker knew a witness for these public signals, and nothing else. Whoever sees
/// a valid proof can send it again, from any address: keep what was used by its public signals (a nullifier,
/// say), never by the proof or its hash, and make the sender a public signal where it matters.
contract FflonkVerifier {
    // The prime of coordinates, and that of scalars: public signals and evaluations lie below R.
    uint256 private constant Q = $q;
    uint256 private constant R = $r;

    // The domain: 2^POWER powers of OMEGA. SIZE_INVERSE is 1 / 2^POWER, SHIFT_INVERSE is 1 / (OMEGA - 1), and
    // K1, K2 set columns apart.
    uint256 private constant POWER = $power;
    uint256 private constant OMEGA = $omega;
    uint256 private constant SIZE_INVERSE = $size_inverse;
    uint256 private constant SHIFT_INVERSE = $shift_inverse;
    uint256 private constant K1 = $k1;
    uint256 private constant K2 = $k2;
    // What the product whose inverse a proof brings has besides xi, zh, m0, m1, m2 and the signals' factors.
    uint256 private constant PRODUCT = $product;

    // Verification key. G2 coordinates stand as EIP-197 wants them: imaginary part first.
$key
    // Places in memory, from the copy of the proof on. Challenges lie on words that were hashed.
    uint256 private constant AT_BETA = 0x00;
    uint256 private constant AT_GAMMA = 0x20;
    uint256 private constant AT_ALPHA = 0x60;
    uint256 private constant AT_Y = 0x80;
    uint256 private constant AT_XI = 0xa0;
    uint256 private constant AT_Y_CUBED = 0xc0;
    uint256 private constant AT_SEED = 0xe0;
    uint256 private constant AT_QL = 0x100;
    uint256 private constant AT_QR = 0x120;
    uint256 private constant AT_QM = 0x140;
    uint256 private constant AT_QO = 0x160;
    uint256 private constant AT_QC = 0x180;
    uint256 private constant AT_S1 = 0x1a0;
    uint256 private constant AT_S2 = 0x1c0;
    uint256 private constant AT_S3 = 0x1e0;
    uint256 private constant AT_A = 0x200;
    uint256 private constant AT_B = 0x220;
    uint256 private constant AT_C = 0x240;
    uint256 private constant AT_Z = 0x260;
    uint256 private constant AT_ZW = 0x280;
    uint256 private constant AT_T1W = 0x2a0;
    uint256 private constant AT_T2W = 0x2c0;
    uint256 private constant AT_INV = 0x2e0;
    // The sum of points, where the pairs for the pairing come to lie; then values.
    uint256 private constant AT_SUM = 0x300;
    uint256 private constant AT_M0 = 0x480;
    uint256 private constant AT_M1 = 0x4a0;
    uint256 private constant AT_M2 = 0x4c0;
    uint256 private constant AT_ZH = 0x4e0;
    uint256 private constant AT_INPUTS = 0x500;
    uint256 private constant AT_FIRST = 0x520;
    uint256 private constant AT_DENOMINATOR = 0x540;
    uint256 private constant AT_XI_INVERSE = 0x560;
    uint256 private constant AT_T0 = 0x580;
    uint256 private constant AT_T1 = 0x5a0;
    uint256 private constant AT_T2 = 0x5c0;
    uint256 private constant AT_Q1 = 0x5e0;
    uint256 private constant AT_Q2 = 0x600;

    /// @notice Whether a proof is valid. What cannot be checked gives false, and does not revert.
    /// @dev A number of R or more, or a coordinate of Q or more, gives false, so that each value has one
    /// spelling. A proof that is not valid costs no more gas than a valid one. Too little gas gives false, or
    /// reverts: false is no proof that the statement does not hold. Give some 165,000 gas, and 600 for each
    /// public signal.
    /// @param proof C1, C2, W1, W2, x before y, infinity as zeros; then the evaluations ql, qr, qm, qo, qc,
    /// s1, s2, s3, a, b, c, z, zw, t1w, t2w, and inv.
    /// @param pubSignals The public signals, outputs first.$none
    /// @return valid Whether the proof is valid.
    function verifyProof(
        bytes32[24] calldata proof,
        uint256[$length] calldata pubSignals
    ) public view returns (bool valid) {
        assembly {
$functions            // A factor of the permutation's argument: an evaluation, beta times something, gamma.
            function factor(p, at, multiple) -> sum {
                sum := add(add(mload(add(p, at)), multiple), mload(add(p, AT_GAMMA)))
            }
            // The challenges that follow from xi and y, and m0, m1, m2, zh.
            function evaluate_powers(p) {
                let xi := mload(add(p, AT_SEED))
                xi := mulmod(mulmod(xi, xi, R), xi, R)
                xi := mulmod(xi, xi, R)
                xi := mulmod(xi, xi, R)
                xi := mulmod(xi, xi, R)
                mstore(add(p, AT_XI), xi)
                let y := mload(add(p, AT_Y))
                let power := mulmod(y, y, R)
                y := mulmod(power, y, R)
                mstore(add(p, AT_Y_CUBED), y)
                power := mulmod(power, power, R)
                mstore(add(p, AT_M1), add(power, sub(R, xi)))
                mstore(add(p, AT_M0), add(mulmod(power, power, R), sub(R, xi)))
                power := add(y, sub(R, mulmod(xi, OMEGA, R)))
                mstore(add(p, AT_M2), mulmod(add(y, sub(R, xi)), power, R))
                power := xi
                for { let i := 0 } lt(i, POWER) { i := add(i, 1) } { power := mulmod(power, power, R) }
                mstore(add(p, AT_ZH), add(power, sub(R, 1)))
            }
            // The denominator of Lagrange's polynomials at xi; numerators of the first, and of the signals'.
            function evaluate_inputs(p, signals) {
                let xi := mload(add(p, AT_XI))
                let numerator, denominator := fractions(signals, xi)
                let first := add(xi, sub(R, 1))
                mstore(add(p, AT_DENOMINATOR), mulmod(first, denominator, R))
                mstore(add(p, AT_FIRST), denominator)
                numerator := add(mulmod($first_signal, denominator, R), mulmod(numerator, first, R))
                mstore(add(p, AT_INPUTS), numerator)
            }
            // Whether inv is the inverse of the product. Divides by parts of it: zh, m1, m2 become their
            // inverses, the numerators L_1(xi) / zh and the signals' polynomial at xi, over zh.
            function invert(p) -> yes {
                let xi := mload(add(p, AT_XI))
                let m1 := mload(add(p, AT_M1))
                let m2 := mload(add(p, AT_M2))
                let left := mulmod(m1, m2, R)
                let right := mulmod(xi, mload(add(p, AT_ZH)), R)
                // 1 / (m1 * m2 * xi * zh * denominator): the product has xi 20 times, m1 and m2 twice.
                let inverse := mulmod(xi, xi, R)
                inverse := mulmod(inverse, inverse, R)
                inverse := mulmod(inverse, inverse, R)
                inverse := mulmod(mulmod(inverse, xi, R), inverse, R)
                inverse := mulmod(mulmod(inverse, xi, R), mulmod(left, xi, R), R)
                inverse := mulmod(mulmod(inverse, PRODUCT, R), mload(add(p, AT_M0)), R)
                inverse := mulmod(inverse, mload(add(p, AT_INV)), R)
                let x := mulmod(inverse, mulmod(left, right, R), R)
                yes := eq(mulmod(x, mload(add(p, AT_DENOMINATOR)), R), 1)
                inverse := mulmod(inverse, mload(add(p, AT_DENOMINATOR)), R)
                x := mulmod(x, SIZE_INVERSE, R)
                mstore(add(p, AT_FIRST), mulmod(x, mload(add(p, AT_FIRST)), R))
                mstore(add(p, AT_INPUTS), sub(R, mulmod(x, mload(add(p, AT_INPUTS)), R)))
                x := mulmod(inverse, right, R)
                mstore(add(p, AT_M1), mulmod(x, m2, R))
                mstore(add(p, AT_M2), mulmod(x, m1, R))
                x := mulmod(inverse, left, R)
                mstore(add(p, AT_XI_INVERSE), mulmod(x, mload(add(p, AT_ZH)), R))
                mstore(add(p, AT_ZH), mulmod(x, xi, R))
            }
            // T0, T1 and T2 at xi, which a proof does not bring.
            function evaluate_quotients(p) {
                let beta := mload(add(p, AT_BETA))
                let x := mulmod(beta, mload(add(p, AT_XI)), R)
                let t := mulmod(factor(p, AT_A, x), mload(add(p, AT_Z)), R)
                t := mulmod(t, factor(p, AT_B, mulmod(K1, x, R)), R)
                t := mulmod(t, factor(p, AT_C, mulmod(K2, x, R)), R)
                x := mulmod(beta, mload(add(p, AT_S1)), R)
                x := mulmod(factor(p, AT_A, x), mload(add(p, AT_ZW)), R)
                x := mulmod(x, factor(p, AT_B, mulmod(beta, mload(add(p, AT_S2)), R)), R)
                x := mulmod(x, factor(p, AT_C, mulmod(beta, mload(add(p, AT_S3)), R)), R)
                mstore(add(p, AT_T2), mulmod(add(t, sub(R, x)), mload(add(p, AT_ZH)), R))
                t := add(mload(add(p, AT_Z)), sub(R, 1))
                mstore(add(p, AT_T1), mulmod(t, mload(add(p, AT_FIRST)), R))
                t := mulmod(mload(add(p, AT_A)), mload(add(p, AT_B)), R)
                t := add(mulmod(t, mload(add(p, AT_QM)), R), mload(add(p, AT_QC)))
                t := add(t, mulmod(mload(add(p, AT_QL)), mload(add(p, AT_A)), R))
                t := add(t, mulmod(mload(add(p, AT_QR)), mload(add(p, AT_B)), R))
                t := add(t, mulmod(mload(add(p, AT_QO)), mload(add(p, AT_C)), R))
                t := mulmod(t, mload(add(p, AT_ZH)), R)
                mstore(add(p, AT_T0), add(t, mload(add(p, AT_INPUTS))))
            }
            // The next step of a polynomial's evaluation at y: value * y + coefficient.
            function step(p, at, value) -> sum {
                sum := add(mulmod(value, mload(add(p, AT_Y)), R), mload(add(p, at)))
            }
            // R2(y): a line in y^3 through what z, T1 and T2 make of their values at xi, and at xi * OMEGA.
            function evaluate_last(p) -> value {
                value := step(p, AT_T1, mload(add(p, AT_T2)))
                value := step(p, AT_Z, value)
                let x := step(p, AT_T1W, mload(add(p, AT_T2W)))
                x := step(p, AT_ZW, x)
                x := mulmod(add(x, sub(add(R, R), value)), mload(add(p, AT_XI_INVERSE)), R)
                x := mulmod(x, SHIFT_INVERSE, R)
                let distance := add(mload(add(p, AT_Y_CUBED)), sub(R, mload(add(p, AT_XI))))
                value := add(value, mulmod(x, distance, R))
            }
            // R0(y) + q1 * R1(y) + q2 * R2(y).
            function evaluate_remainders(p) -> value {
                value := step(p, AT_C, mload(add(p, AT_T0)))
                value := step(p, AT_B, value)
                value := step(p, AT_A, value)
                value := mulmod(value, mload(add(p, AT_Q1)), R)
                value := add(value, mulmod(evaluate_last(p), mload(add(p, AT_Q2)), R))
                let x := step(p, AT_S2, mload(add(p, AT_S3)))
                x := step(p, AT_S1, x)
                x := step(p, AT_QC, x)
                x := step(p, AT_QM, x)
                x := step(p, AT_QO, x)
                x := step(p, AT_QR, x)
                x := step(p, AT_QL, x)
                value := addmod(value, x, R)
            }

            // Behind all that is in use, as the first hash takes them: C0, signals, the proof.
            let m := mload(64)
            let p := add(m, $before_proof)
            mstore(m, C0_X)
            mstore(add(m, 32), C0_Y)
$copied_signals            calldatacopy(p, proof, 768)
            valid := $valid
            for { let i := 0 } lt(i, AT_QL) { i := add(i, 64) } { valid := and(valid, is_point(add(p, i))) }
            for { let i := AT_QL } lt(i, AT_SUM) { i := add(i, 32) } {
                valid := and(valid, lt(mload(add(p, i)), R))
            }
            for { let i := 64 } lt(i, $before_proof) { i := add(i, 32) } {
                valid := and(valid, lt(mload(add(m, i)), R))
            }
            if valid {
                mstore(add(p, AT_BETA), challenge(m, $first_hash))
                mstore(add(p, AT_GAMMA), challenge(add(p, AT_BETA), 32))
                mstore(add(p, AT_SEED), challenge(add(p, AT_GAMMA), 96))
                mstore(add(p, AT_ALPHA), challenge(add(p, AT_SEED), 512))
                mstore(add(p, AT_Y), challenge(add(p, AT_ALPHA), 96))
                evaluate_powers(p)
                evaluate_inputs(p, add(m, 64))
                valid := invert(p)
                evaluate_quotients(p)
                let c := mulmod(mload(add(p, AT_ALPHA)), mload(add(p, AT_M0)), R)
                mstore(add(p, AT_Q1), mulmod(c, mload(add(p, AT_M1)), R))
                c := mulmod(c, mload(add(p, AT_ALPHA)), R)
                mstore(add(p, AT_Q2), mulmod(c, mload(add(p, AT_M2)), R))
                c := evaluate_remainders(p)
                let sum := add(p, AT_SUM)
                mstore(sum, C0_X)
                mstore(add(sum, 32), C0_Y)
                calldatacopy(add(sum, 64), proof, 64)
                valid := and(valid, add_multiple(sum, mload(add(p, AT_Q1))))
                calldatacopy(add(sum, 64), add(proof, 64), 64)
                valid := and(valid, add_multiple(sum, mload(add(p, AT_Q2))))
                mstore(add(sum, 64), 1)
                mstore(add(sum, 96), 2)
                valid := and(valid, add_multiple(sum, sub(R, c)))
                calldatacopy(add(sum, 64), add(proof, 128), 64)
                valid := and(valid, add_multiple(sum, sub(add(R, R), mload(add(p, AT_M0)))))
                calldatacopy(add(sum, 64), add(proof, 192), 64)
                valid := and(valid, add_multiple(sum, mload(add(p, AT_Y))))
                calldatacopy(add(sum, 192), add(proof, 192), 64)
$pairing
                valid := and(valid, staticcall(gas(), 8, sum, 384, sum, 32))
                valid := and(valid, eq(mload(sum), 1))
            }
        }
    }
}
""")

_NONE = " The circuit has none: the one word has to be 0."


def export_verifier(verification_key: dict[str, Any], allow_insecure: bool = False) -> str:
    """The source of a contract ``FflonkVerifier`` for a key, Solidity 0.8.4 or newer.

    Args:
        verification_key: snarkjs's document.
        allow_insecure: write it too for a key for which proofs can be forged, as far as its points show.

    Raises:
        MalformedFile: the document is damaged.
        UnsupportedFile: another curve than BN254, or another protocol.
        InvalidInput: an insecure key.
    """
    parsed = parse_verification_key(verification_key)
    require_secure(parsed.warnings, allow_insecure)
    key, n_public = parsed.document, parsed.n_public
    in_g1 = g1_constants("C0", key["C0"])
    key_g2 = g2_constants("X2", key["X_2"])
    g2 = negated(g2_constants("NEG_G2", g2_to_json(BN254.g2)))
    before_proof = 64 + 32 * n_public
    return _CONTRACT.substitute(
        n_public=n_public,
        q=BN254.q,
        r=BN254.r,
        power=key["power"],
        omega=key["w"],
        size_inverse=pow(1 << key["power"], -1, BN254.r),
        shift_inverse=pow(int(key["w"]) - 1, -1, BN254.r),
        k1=key["k1"],
        k2=key["k2"],
        product=_product(int(key["w"]), 1 << key["power"], n_public),
        key=constants(in_g1 | key_g2 | g2),
        none="" if n_public else _NONE,
        length=max(1, n_public),
        functions=Template(ASSEMBLY).substitute(signals_size=32 * n_public),
        first_signal="mload(signals)" if n_public else "0",
        before_proof=before_proof,
        first_hash=before_proof + 64,
        copied_signals=f"            calldatacopy(add(m, 64), pubSignals, {32 * n_public})\n"
        if n_public
        else "",
        valid="1" if n_public else "iszero(calldataload(pubSignals))",
        pairing="\n".join(
            f"                mstore(add(sum, {offset + 32 * i}), {name})"
            for offset, names in ((64, g2), (256, key_g2))
            for i, name in enumerate(names)
        ),
    )


def _product(omega: int, n: int, n_public: int) -> int:
    """What the product has besides ξ²⁰·(ξⁿ − 1)·M0·M1²·M2²·∏(ξ − ωⁱ), in [0, r)."""
    r = BN254.r
    return -(8**8) * 4**4 * 3**6 * omega**2 * pow(omega - 1, 6, r) * pow(n, max(1, n_public), r) % r


def export_calldata(
    public_signals: Any, proof: Any, public_source: str = "public signals", proof_source: str = "proof"
) -> str:
    """The arguments of ``verifyProof`` as ``snarkjs zkey export soliditycalldata`` prints them.

    Without public signals the second list is empty, as snarkjs has it, where the contract takes one 0.

    Raises:
        MalformedFile: a document is damaged.
        UnsupportedFile: another curve than BN254, or another protocol.
    """
    require_bn254_proof(proof, proof_source)
    document = proof_to_json(parse_proof(proof, BN254, proof_source), BN254)
    signals = parse_public_signals(public_signals, BN254, source=public_source)
    points = [g1_constants(name, document["polynomials"][name]) for name in POLYNOMIALS]
    words = [x for point in points for x in point.values()] + [*map(int, document["evaluations"].values())]
    return f"{words_in_brackets(words, after_first=', ')},{words_in_brackets(signals)}"
