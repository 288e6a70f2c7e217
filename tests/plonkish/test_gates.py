"""Gates from constraint systems, beside the same rules over plain integers."""

from __future__ import annotations

import random

import numpy as np
import pytest

from gpuprover.backend import Backend
from gpuprover.circuits import bits_circuit, chain_circuit, poseidon_circuit
from gpuprover.curves import CurveParams
from gpuprover.formats.r1cs import R1CS
from gpuprover.limbs import words_to_field
from gpuprover.plonkish import gates
from gpuprover.plonkish.gates import Gates, gates_of, most_gates
from tests.support.plonk_reference import PlainGates, Terms, plain_gates, r1cs_of, random_r1cs

KEEP = pytest.mark.parametrize("keep_zeros", [True, False], ids=["plonk", "fflonk"])
ONLY_CPU = pytest.mark.parametrize("backend_name", ["cpu"])


def plain(made: Gates, curve: CurveParams) -> PlainGates:
    signals = [column.tolist() for column in (made.a, made.b, made.c)]
    q = [words_to_field(curve.scalar, made.selectors[name]) for name in gates.SELECTORS]
    factors = [words_to_field(curve.scalar, f) for f in (made.left_factors, made.right_factors)]
    additions = zip(made.left.tolist(), made.right.tolist(), *factors, strict=True)
    return PlainGates(list(zip(*signals, *q, strict=True)), list(additions))


def assert_gates(r1cs: R1CS, keep_zeros: bool, backend: Backend) -> Gates:
    made, expected = gates_of(r1cs, keep_zeros, backend), plain_gates(r1cs, keep_zeros)
    assert plain(made, r1cs.curve) == expected
    assert (made.count, made.additions) == (len(expected.gates), len(expected.additions))
    assert (made.n_vars, made.n_public) == (r1cs.n_wires + len(expected.additions), r1cs.n_public)
    most, additions = most_gates(r1cs)
    assert most >= made.count
    assert additions >= made.additions
    return made


@KEEP
@pytest.mark.parametrize("backend_name", ["reference", "cpu"])
def test_random_constraints(backend: Backend, rng: random.Random, keep_zeros: bool) -> None:
    for constraints in (1, 7, 60):
        r1cs = random_r1cs(backend.curve, rng, constraints, rng.choice((4, 20)), rng.randrange(3))
        assert_gates(r1cs, keep_zeros, backend)


@KEEP
@ONLY_CPU
@pytest.mark.parametrize("block", [1, 5, 64])
def test_blocks_do_not_show(
    backend: Backend, rng: random.Random, keep_zeros: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gates, "BLOCK_TERMS", block)
    assert_gates(random_r1cs(backend.curve, rng, 40, 9, 2), keep_zeros, backend)


@KEEP
@ONLY_CPU
def test_circuits_of_every_kind(backend: Backend, keep_zeros: bool) -> None:
    for circuit in (
        chain_circuit(9, backend.curve),
        bits_circuit(8, backend.curve),
        poseidon_circuit(backend.curve),
    ):
        assert_gates(circuit.r1cs, keep_zeros, backend)


@ONLY_CPU
def test_by_hand(backend: Backend) -> None:
    """Gates that were worked out with pencil and paper, of each rule one."""
    curve, minus_one = backend.curve, backend.curve.r - 1
    r = curve.r

    def gates(
        a: Terms, b: Terms, c: Terms, keep_zeros: bool = True
    ) -> tuple[list[tuple[int, ...]], list[tuple[int, int, int, int]]]:
        r1cs = r1cs_of(curve, 9, 0, [(a, b, c)])
        made = plain(gates_of(r1cs, keep_zeros, backend), curve)
        assert plain_gates(r1cs, keep_zeros) == made
        return made.gates, made.additions

    # A product: each combination shortened to one term, A's sums first.
    assert gates([(1, 2), (2, 3)], [(0, 5), (3, 4)], [(4, 6), (5, 7)]) == (
        [(1, 2, 9, 0, r - 2, r - 3, 1, 0), (4, 5, 10, 0, r - 6, r - 7, 1, 0), (9, 3, 10, 4, 5, 0, r - 1, 0)],
        [(1, 2, 2, 3), (4, 5, 6, 7)],
    )
    # A sum, which is C as it is: in ascending order the first two terms, then the next two.
    assert gates([], [], [(5, 50), (1, 10), (3, 30), (0, 7), (2, 20), (4, 40)]) == (
        [
            (1, 2, 9, 0, r - 10, r - 20, 1, 0),
            (3, 4, 10, 0, r - 30, r - 40, 1, 0),
            (5, 9, 10, 0, 50, 1, 1, 7),
        ],
        [(1, 2, 10, 20), (3, 4, 30, 40)],
    )
    # A or B is a constant, or both are, or there is nothing at all.
    assert gates([(0, 3)], [(1, 2)], [(2, 1)])[0] == [(1, 2, 0, 0, 6, minus_one, 0, 0)]
    assert gates([(1, 2)], [(0, 3)], [(0, 4)])[0] == [(1, 0, 0, 0, 6, 0, 0, r - 4)]
    assert gates([(0, 2)], [(0, 3)], [(0, 7)])[0] == [(0, 0, 0, 0, 0, 0, 0, minus_one)]
    assert gates([], [], [])[0] == [(0, 0, 0, 0, 0, 0, 0, 0)]
    # Of a signal that is given twice the last coefficient holds.
    assert gates([], [], [(1, 5), (1, 8)])[0] == [(1, 0, 0, 0, 8, 0, 0, 0)]
    # A term that cancels stays a term, or goes.
    cancels: tuple[Terms, Terms, Terms] = [(0, 1)], [(1, 4), (2, 5)], [(1, 4)]
    assert gates(*cancels)[0] == [(1, 2, 0, 0, 0, 5, 0, 0)]
    assert gates(*cancels, keep_zeros=False)[0] == [(2, 0, 0, 0, 5, 0, 0, 0)]
    # So does one that is given as 0, on a signal or on the constant.
    assert gates([(1, 0)], [(2, 1)], [(3, 1)])[0] == [(1, 2, 3, 0, 0, 0, minus_one, 0)]
    assert gates([(1, 0)], [(2, 1)], [(3, 1)], keep_zeros=False)[0] == [(3, 0, 0, 0, 1, 0, 0, 0)]
    assert gates([(0, 0)], [(2, 1)], [(3, 1)])[0] == [(2, 3, 0, 0, 0, minus_one, 0, 0)]
    assert gates([(0, 0)], [(2, 1)], [(3, 1)], keep_zeros=False)[0] == [(3, 0, 0, 0, 1, 0, 0, 0)]


@ONLY_CPU
def test_no_constraints(backend: Backend) -> None:
    made = gates_of(r1cs_of(backend.curve, 3, 2, []), True, backend)
    assert plain(made, backend.curve).gates == [(1, 0, 0, 0, 1, 0, 0, 0), (2, 0, 0, 0, 1, 0, 0, 0)]
    none = gates_of(r1cs_of(backend.curve, 1, 0, []), True, backend)
    assert (none.count, none.additions, none.n_vars) == (0, 0, 1)
    assert none.selectors["qm"].shape == (0, backend.curve.scalar.limbs)


@ONLY_CPU
def test_one_long_combination(backend: Backend) -> None:
    """Longer than a block; the sums of sums form a tree as deep as the logarithm of its length."""
    n = gates.BLOCK_TERMS + 1000
    terms: Terms = [(i, i) for i in range(1, n + 1)]
    made = gates_of(r1cs_of(backend.curve, n + 1, 0, [([(1, 1)], [(1, 1)], terms)]), True, backend)
    assert made.additions == n - 1
    assert (made.left[:2].tolist(), made.right[:2].tolist()) == ([1, 3], [2, 4])
    depth = np.zeros(made.n_vars, dtype=np.int64)
    for i, (x, y) in enumerate(zip(made.left.tolist(), made.right.tolist(), strict=True)):
        assert max(x, y) < n + 1 + i
        depth[n + 1 + i] = 1 + max(depth[x], depth[y])
    assert depth.max() == (n - 1).bit_length()
