"""The circuit builder, Poseidon, and the circuits: every witness satisfies its circuit and no other does."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gpuprover.backend import Backend
from gpuprover.circuits import (
    Circuit,
    CircuitBuilder,
    bits_circuit,
    chain_circuit,
    merkle_circuit,
    poseidon_circuit,
    poseidon_hash,
    poseidon_params,
)
from gpuprover.curves import BLS12_381, BN254, CURVES, CurveParams
from gpuprover.errors import WitnessMismatch
from gpuprover.formats.r1cs import R1CS, SparseRows, read_r1cs
from gpuprover.formats.wtns import Witness, read_witness
from gpuprover.limbs import ints_to_words, words_to_ints
from gpuprover.witness import check_witness

CIRCUITS: dict[str, Callable[[CurveParams], Circuit]] = {
    "poseidon": poseidon_circuit,
    "merkle": lambda curve: merkle_circuit(2, curve),
    "chain1": lambda curve: chain_circuit(1, curve),
    "chain2": lambda curve: chain_circuit(2, curve),
    "chain": lambda curve: chain_circuit(33, curve),
    "bits4": lambda curve: bits_circuit(4, curve),
    "bits": lambda curve: bits_circuit(35, curve),
}
every_circuit = pytest.mark.parametrize("name", CIRCUITS)


def product(matrix: SparseRows, values: list[int], p: int) -> list[int]:
    coefficients = words_to_ints(matrix.values)
    return [
        sum(coefficients[k] * values[matrix.wires[k]] for k in range(matrix.starts[i], matrix.starts[i + 1]))
        % p
        for i in range(matrix.rows)
    ]


def unsatisfied(r1cs: R1CS, values: list[int]) -> list[int]:
    """The constraints that plain integers say are broken."""
    p = r1cs.curve.r
    a, b, c = (product(m, values, p) for m in r1cs.matrices)
    return [i for i in range(r1cs.n_constraints) if (a[i] * b[i] - c[i]) % p]


@every_circuit
def test_witness_satisfies_the_circuit(name: str, curve: CurveParams) -> None:
    circuit = CIRCUITS[name](curve)
    values = words_to_ints(circuit.witness.values)
    assert values[0] == 1
    assert len(values) == circuit.r1cs.n_wires
    assert unsatisfied(circuit.r1cs, values) == []


@every_circuit
def test_every_wire_is_bound(name: str, curve: CurveParams) -> None:
    """Another value of any one wire breaks a constraint, but for inputs that the circuit leaves free."""
    circuit = CIRCUITS[name](curve)
    values = words_to_ints(circuit.witness.values)
    for wire in range(1, min(len(values), 80)):
        other = list(values)
        other[wire] = (other[wire] + 5) % curve.r
        assert unsatisfied(circuit.r1cs, other), wire


@pytest.mark.parametrize("backend_name", ["cpu"])
@every_circuit
def test_check_witness(name: str, curve: CurveParams, backend: Backend, seed: str) -> None:
    circuit = CIRCUITS[name](curve)
    r1cs, values = circuit.r1cs, words_to_ints(circuit.witness.values)
    assert check_witness(r1cs, circuit.witness, backend) is None
    rng = random.Random(seed)
    for _ in range(5):
        other = list(values)
        other[rng.randrange(1, len(other))] = rng.randrange(curve.r)
        broken = unsatisfied(r1cs, other)
        found = check_witness(r1cs, Witness(curve, ints_to_words(other, curve.scalar.limbs)), backend)
        assert found == (broken[0] if broken else None)


@pytest.mark.parametrize("backend_name", ["reference"])
def test_check_witness_of_another_circuit(curve: CurveParams, backend: Backend) -> None:
    circuit = chain_circuit(5, curve)
    with pytest.raises(WitnessMismatch, match="9 values, expected 8"):
        check_witness(circuit.r1cs, chain_circuit(6, curve).witness, backend)
    other = BN254 if curve is BLS12_381 else BLS12_381
    with pytest.raises(WitnessMismatch, match=f"scalar field of {other.name}, expected that of {curve.name}"):
        check_witness(circuit.r1cs, chain_circuit(5, other).witness, backend)


# Poseidon ------------------------------------------------------------------------


def test_poseidon_is_circomlibs() -> None:
    """Values of circomlib's Poseidon(2), as its own tests state them."""
    expected = 7853200120776062878684798364095072458815029376092732009249414926327459813530
    assert poseidon_hash(BN254.scalar, 1, 2) == expected


@pytest.mark.parametrize("curve", CURVES, ids=lambda c: c.name)
def test_poseidon_circuit_computes_the_hash(curve: CurveParams, rng: random.Random) -> None:
    left, right = rng.randrange(curve.r), rng.randrange(curve.r)
    circuit = poseidon_circuit(curve, left, right)
    assert words_to_ints(circuit.witness.values[1:2]) == [poseidon_hash(curve.scalar, left, right)]
    assert (circuit.r1cs.n_constraints, circuit.r1cs.n_public) == (258, 1)


@pytest.mark.parametrize("curve", CURVES, ids=lambda c: c.name)
def test_poseidon_parameters_are_sound(curve: CurveParams) -> None:
    params, p = poseidon_params(curve.scalar), curve.r
    constants = [k for row in params.constants for k in row]
    assert len(constants) == len(set(constants)) == 65 * 3
    assert all(0 < k < p for k in constants)
    # MDS: every square submatrix is invertible; x⁵ is a permutation.
    m = params.mds
    assert all(x for row in m for x in row)
    for i in range(3):
        for j in range(3):
            (a, b), (c, d) = ([m[r][k] for k in range(3) if k != j] for r in range(3) if r != i)
            assert (a * d - b * c) % p
    assert sum(m[0][j] * (m[1][j - 2] * m[2][j - 1] - m[1][j - 1] * m[2][j - 2]) for j in range(3)) % p
    assert (p - 1) % 5


def test_merkle_root_by_hand() -> None:
    circuit = merkle_circuit(3, leaf=42)
    values = words_to_ints(circuit.witness.values)
    assert (circuit.r1cs.n_pub_out, circuit.r1cs.n_pub_in, circuit.r1cs.n_prv_in) == (1, 0, 7)
    root, node, siblings, position = values[1], values[2], values[3:6], values[6:9]
    assert node == 42
    assert set(position) <= {0, 1}
    for sibling, on_right in zip(siblings, position, strict=True):
        pair = (sibling, node) if on_right else (node, sibling)
        node = poseidon_hash(BN254.scalar, *pair)
    assert node == root


def test_merkle_is_of_thousands_of_constraints() -> None:
    assert merkle_circuit(20).r1cs.n_constraints == 20 * 259 + 1


# The others ----------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 100])
def test_chain(n: int, curve: CurveParams) -> None:
    circuit = chain_circuit(n, curve, x=5, y=7)
    s = 35
    for i in range(n - 1):
        s = (s * s + i) % curve.r
    assert circuit.r1cs.n_constraints == n
    assert words_to_ints(circuit.witness.values[:4]) == [1, s, 5, 7]
    assert (circuit.r1cs.n_pub_out, circuit.r1cs.n_pub_in, circuit.r1cs.n_prv_in) == (1, 1, 1)


@pytest.mark.parametrize("n", [4, 5, 100, 101])
def test_bits(n: int, curve: CurveParams) -> None:
    circuit = bits_circuit(n, curve, seed=n)
    values = words_to_ints(circuit.witness.values)
    assert circuit.r1cs.n_constraints == n
    assert set(values[2:]) <= {0, 1}
    assert values[1] == sum(values[2 + n // 2 :])


def test_sizes_that_make_no_circuit() -> None:
    with pytest.raises(ValueError):
        chain_circuit(0)
    with pytest.raises(ValueError):
        bits_circuit(3)


def test_builder_arithmetic(curve: CurveParams) -> None:
    builder = CircuitBuilder(curve)
    x, y = builder.private_input(10), builder.public_input(-3)
    combination = 2 * x - y * 5 + 7 - (1 - x)
    assert combination.value == 2 * 10 + 15 + 7 - (1 - 10)
    builder.assert_equal(combination, builder.constant(51))
    builder.assert_bit(x - 9)
    product_wire = builder.multiply(x, y)
    builder.public_output(product_wire + 1)
    circuit = builder.build()
    values = words_to_ints(circuit.witness.values)
    assert values == [1, curve.r - 29, curve.r - 3, 10, curve.r - 30]
    assert unsatisfied(circuit.r1cs, values) == []
    assert circuit.r1cs.n_constraints == 4


def test_builder_refuses_what_does_not_hold() -> None:
    builder = CircuitBuilder()
    x = builder.private_input(2)
    with pytest.raises(ValueError, match="constraint 0 does not hold"):
        builder.assert_bit(x)
    with pytest.raises(ValueError, match="does not hold"):
        builder.assert_equal(x, builder.constant(3))


@every_circuit
def test_files(name: str, curve: CurveParams, tmp_path: Path) -> None:
    circuit = CIRCUITS[name](curve)
    circuit.write(tmp_path / "c.r1cs", tmp_path / "c.wtns")
    r1cs, witness = read_r1cs(tmp_path / "c.r1cs"), read_witness(tmp_path / "c.wtns")
    np.testing.assert_array_equal(witness.values, circuit.witness.values)
    assert unsatisfied(r1cs, words_to_ints(witness.values)) == []
    assert (r1cs.n_public, r1cs.n_constraints) == (circuit.r1cs.n_public, circuit.r1cs.n_constraints)
