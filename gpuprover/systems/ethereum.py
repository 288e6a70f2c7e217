"""What contracts of all proof systems share: the curve that Ethereum computes on, numbers, assembly.

Ethereum has precompiled contracts for BN254 alone: addition and multiplication in G1 (EIP-196), at the
addresses 6 and 7, and the pairing (EIP-197), at 8. They refuse coordinates of q or more and points that are
not on their curve, and take all gas that they were given for that: so contracts look first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gpuprover.curves import BN254
from gpuprover.errors import InvalidInput, UnsupportedFile

ASSEMBLY = """\
            // Whether two words of memory are a point: below Q, and on the curve or zero, which is infinity.
            function is_point(at) -> yes {
                let x := mload(at)
                let y := mload(add(at, 32))
                yes := eq(mulmod(y, y, Q), addmod(mulmod(mulmod(x, x, Q), x, Q), 3, Q))
                yes := and(and(lt(x, Q), lt(y, Q)), or(yes, iszero(or(x, y))))
            }
            // A challenge: the hash of words of memory, below R.
            function challenge(at, size) -> c {
                c := mod(keccak256(at, size), R)
            }
            // Adds to the point at sum the multiple of the point behind it.
            function add_multiple(sum, scalar) -> done {
                let point := add(sum, 64)
                mstore(add(sum, 128), scalar)
                done := staticcall(gas(), 7, point, 96, point, 64)
                done := and(done, staticcall(gas(), 6, sum, 128, sum, 64))
            }
            // The sum of signal[i] * OMEGA^i / (xi - OMEGA^i), i > 0, as a fraction. Its denominator is the
            // product of all xi - OMEGA^i, i > 0.
            function fractions(signals, xi) -> numerator, denominator {
                denominator := 1
                let w := 1
                for { let i := 32 } lt(i, $signals_size) { i := add(i, 32) } {
                    w := mulmod(w, OMEGA, R)
                    let d := add(xi, sub(R, w))
                    numerator := mulmod(numerator, d, R)
                    let term := mulmod(mload(add(signals, i)), mulmod(w, denominator, R), R)
                    numerator := add(numerator, term)
                    denominator := mulmod(denominator, d, R)
                }
            }
"""
"""Functions in Yul for the contracts of PLONK and FFLONK.

``$signals_size`` stands for the bytes of all public signals. Sums are not reduced before they are multiplied:
five numbers of at most R stay below 2^256.
"""


def require_bn254(is_bn254: bool, source: str) -> None:
    """Raises UnsupportedFile for a key or a proof over another curve."""
    if not is_bn254:
        raise UnsupportedFile(source, "curve", "Ethereum verifies proofs over bn128 (BN254) only")


def require_bn254_proof(proof: Any, source: str) -> None:
    """Raises UnsupportedFile for a proof's document that names another curve; one that names none passes."""
    curve = proof.get("curve", BN254.snarkjs_name) if isinstance(proof, dict) else BN254.snarkjs_name
    require_bn254(curve in (BN254.snarkjs_name, BN254.name), source)


def require_secure(warnings: tuple[str, ...], allow_insecure: bool) -> None:
    """Raises InvalidInput for a key of which there are warnings, unless insecure ones are allowed."""
    if warnings and not allow_insecure:
        raise InvalidInput(
            f"no contract for an insecure key, unless insecure ones are allowed: {warnings[0]}"
        )


def word(value: int, quote: str = "") -> str:
    """A word of a call in 64 hexadecimal digits."""
    return f"{quote}0x{value:064x}{quote}"


def words_in_brackets(values: Iterable[int], quote: str = "", after_first: str = ",") -> str:
    """A list of words, with commas between them.

    Args:
        quote: what stands before and behind each word.
        after_first: what stands between the first and the second: snarkjs has a blank there in some lists.
    """
    return f"[{','.join(word(value, quote) for value in values).replace(',', after_first, 1)}]"


def constants(values: dict[str, int]) -> str:
    """Declarations of a contract's constants, a line each."""
    return "".join(f"    uint256 private constant {name} = {value};\n" for name, value in values.items())


def g1_constants(name: str, point: list[str]) -> dict[str, int]:
    """The coordinates of a document's point of G1; those of infinity are 0, as EIP-196 has it."""
    x, y, z = map(int, point)
    return {f"{name}_X": x * z, f"{name}_Y": y * z}


def g2_constants(name: str, point: list[list[str]]) -> dict[str, int]:
    """The coordinates of a document's point of G2, imaginary parts first, as EIP-197 has it."""
    (x0, x1), (y0, y1), _ = ([int(part) for part in pair] for pair in point)
    return {f"{name}_X1": x1, f"{name}_X0": x0, f"{name}_Y1": y1, f"{name}_Y0": y0}


def negated(point: dict[str, int]) -> dict[str, int]:
    """The constants of a point's negative, under the same names."""
    return {name: -value % BN254.q if "_Y" in name else value for name, value in point.items()}
