"""The compiled Poseidon sponge beside plain integers, over fields and parameters of every kind."""

from __future__ import annotations

import random

import pytest

from gpuprover import devices
from gpuprover.curves import CURVES, CurveParams
from gpuprover.limbs import field_to_words, ints_to_words, words_to_ints


def in_integers(p: int, state: list[int], values: list[int], constants: list[int], full: int) -> list[int]:
    rounds = len(constants) // 3 - 3
    matrix = [constants[3 * rounds + 3 * i :][:3] for i in range(3)]
    for start in range(0, len(values), 2):
        pair = [*values[start : start + 2], 0, 0]
        state = [(a + b) % p for a, b in zip(state, (*pair[:2], 0), strict=True)]
        for i in range(rounds):
            state = [(a + b) % p for a, b in zip(state, constants[3 * i : 3 * i + 3], strict=True)]
            whole = min(i, rounds - 1 - i) < full // 2
            state = [pow(a, 5, p) if whole or place == 2 else a for place, a in enumerate(state)]
            state = [sum(m * a for m, a in zip(row, state, strict=True)) % p for row in matrix]
    return state


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.name)
@pytest.mark.parametrize(
    ("full", "rounds", "count"), [(2, 2, 1), (2, 3, 2), (4, 9, 5), (8, 68, 3), (8, 68, 0)]
)
def test_sponge_beside_integers(
    curve: CurveParams, full: int, rounds: int, count: int, rng: random.Random
) -> None:
    p = curve.r
    edges = [0, 1, p - 1]

    def drawn(n: int) -> list[int]:
        return [rng.choice([*edges, rng.randrange(p)]) for _ in range(n)]

    state, values, constants = drawn(3), drawn(count), drawn(3 * rounds + 9)
    words = ints_to_words(state, 4)
    out = devices.poseidon_sponge(
        curve, words, ints_to_words(values, 4), field_to_words(curve.scalar, constants), full
    )
    assert words_to_ints(out) == in_integers(p, state, values, constants, full)
    assert words_to_ints(words) == state, "the state that was given stays"
