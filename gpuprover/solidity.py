"""A Solidity contract that verifies the proofs of one key, and the arguments of a call to it.

The contract uses the precompiles of EIP-196 (addition and multiplication in G1) and
EIP-197 (pairing), so it exists for BN254 only. It checks

    e(A, B) · e(α, −β) · e(Σ inputᵢ·ICᵢ, −γ) · e(C, −δ) = 1.

Its ``verifyProof`` takes the arguments of the contract that snarkjs writes.
"""

from __future__ import annotations

from typing import Any

from gpuprover.curves import BN254, AffineG1, AffineG2
from gpuprover.errors import UnsupportedFile
from gpuprover.formats.groth16_json import parse_proof, parse_public_signals, parse_verification_key

_CONTRACT = """\
// SPDX-License-Identifier: MIT
pragma solidity >=0.8.4 <0.9.0;

/// @title Verifier of Groth16 proofs over BN254 for one circuit with {n_public} public signals.
/// @notice Written by gpuprover from the circuit's verification key.
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

    /// @param a The proof's A.
    /// @param b The proof's B, imaginary parts first.
    /// @param c The proof's C.
    /// @param input The public signals, outputs first.
    /// @return Whether the proof is valid. Wrong points and signals out of range give false.
    function verifyProof(
        uint256[2] calldata a,
        uint256[2][2] calldata b,
        uint256[2] calldata c,
        uint256[{length}] calldata input
    ) public view returns (bool) {{
{length_check}        (bool done, uint256 x, uint256 y) = combine(input);
        if (!done) return false;

        // Four pairs of a G1 and a G2 point: six words each.
        uint256[24] memory pairs = [
            a[0], a[1], b[0][0], b[0][1], b[1][0], b[1][1],
            ALPHA_X, ALPHA_Y, NEG_BETA_X1, NEG_BETA_X0, NEG_BETA_Y1, NEG_BETA_Y0,
            x, y, NEG_GAMMA_X1, NEG_GAMMA_X0, NEG_GAMMA_Y1, NEG_GAMMA_Y0,
            c[0], c[1], NEG_DELTA_X1, NEG_DELTA_X0, NEG_DELTA_Y1, NEG_DELTA_Y0
        ];
        uint256[1] memory product;
        assembly ("memory-safe") {{
            done := staticcall(gas(), 8, pairs, 768, product, 32)
        }}
        return done && product[0] == 1;
    }}

    /// The sum of IC[0] and input[i] * IC[i + 1]; false if a signal is out of range.
    function combine(uint256[{length}] calldata input) private view returns (bool, uint256, uint256) {{
        bytes memory ic = IC;
        // The sum; a point and its scalar, then the product in the point's place.
        uint256[5] memory t;
        bool done = true;
        assembly ("memory-safe") {{
            mstore(t, mload(add(ic, 32)))
            mstore(add(t, 32), mload(add(ic, 64)))
        }}
        for (uint256 i = 0; i < {n_public}; ++i) {{
            uint256 signal = input[i];
            if (signal >= R) return (false, 0, 0);
            assembly ("memory-safe") {{
                let point := add(ic, add(96, mul(64, i)))
                let product := add(t, 64)
                mstore(product, mload(point))
                mstore(add(t, 96), mload(add(point, 32)))
                mstore(add(t, 128), signal)
                done := and(done, staticcall(gas(), 7, product, 96, product, 64))
                done := and(done, staticcall(gas(), 6, t, 128, t, 64))
            }}
        }}
        return (done, t[0], t[1]);
    }}
}}
"""

_LENGTH_CHECK = "        if (input.length != 0) return false;\n"


def export_verifier(verification_key: dict[str, Any]) -> str:
    """The source of a contract ``Groth16Verifier`` for a key, Solidity 0.8.4 or newer.

    A contract may have 24,576 bytes of code, which suffices for some 350 public signals.

    Args:
        verification_key: snarkjs's document.

    Raises:
        MalformedFile: the document is damaged.
        UnsupportedFile: a curve without precompiles, or another protocol.
    """
    key = parse_verification_key(verification_key)
    _require_bn254(key.curve is BN254, "verification key")
    alpha_x, alpha_y = key.alpha1 or (0, 0)
    return _CONTRACT.format(
        n_public=key.n_public,
        r=BN254.r,
        alpha_x=alpha_x,
        alpha_y=alpha_y,
        g2_constants="".join(
            _negated_constants(name, point)
            for name, point in (("BETA", key.beta2), ("GAMMA", key.gamma2), ("DELTA", key.delta2))
        ),
        ic="\n".join(f'        hex"{_ic_bytes(point).hex()}"' for point in key.ic),
        # Solidity has no arrays of length zero: a dynamic one, which then has to be empty.
        length=key.n_public or "",
        length_check="" if key.n_public else _LENGTH_CHECK,
    )


def export_calldata(public_signals: Any, proof: Any) -> str:
    """The arguments of ``verifyProof`` as ``snarkjs zkey export soliditycalldata`` prints them.

    Raises:
        MalformedFile: a document is damaged.
        UnsupportedFile: a proof over a curve without precompiles, or of another protocol.
    """
    curve = proof.get("curve", BN254.snarkjs_name) if isinstance(proof, dict) else BN254.snarkjs_name
    _require_bn254(curve in (BN254.snarkjs_name, BN254.name), "proof")
    parsed = parse_proof(proof, BN254)
    signals = parse_public_signals(public_signals, BN254)
    (x0, x1), (y0, y1) = parsed.b or ((0, 0), (0, 0))
    a, c = (_pair(point or (0, 0)) for point in (parsed.a, parsed.c))
    b = f"[{_pair((x1, x0))},{_pair((y1, y0))}]"
    return f"{a},{b},{c},[{','.join(map(_word, signals))}]"


def _require_bn254(is_bn254: bool, source: str) -> None:
    if not is_bn254:
        raise UnsupportedFile(source, "curve", "Ethereum verifies proofs over bn128 (BN254) only")


def _negated_constants(name: str, point: AffineG2) -> str:
    (x0, x1), (y0, y1) = point or ((0, 0), (0, 0))
    coordinates = {"X1": x1, "X0": x0, "Y1": -y1 % BN254.q, "Y0": -y0 % BN254.q}
    return "".join(
        f"    uint256 private constant NEG_{name}_{part} = {value};\n" for part, value in coordinates.items()
    )


def _ic_bytes(point: AffineG1) -> bytes:
    x, y = point or (0, 0)  # infinity, as EIP-196 writes it
    return x.to_bytes(32, "big") + y.to_bytes(32, "big")


def _word(value: int) -> str:
    return f'"0x{value:064x}"'


def _pair(values: tuple[int, int]) -> str:
    return f"[{_word(values[0])}, {_word(values[1])}]"
