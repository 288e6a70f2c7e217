"""Uniform scalars."""

from __future__ import annotations

import pytest

from gpuprover.curves import BLS12_381
from gpuprover.errors import InvalidInput
from gpuprover.limbs import words_to_ints
from gpuprover.systems.midnight.randomness import Randomness, check_blinding


def test_scalars_are_below_the_prime_and_spread() -> None:
    values = words_to_ints(Randomness().scalars(4000))
    assert max(values) < BLS12_381.r
    assert len(set(values)) == len(values)
    # The mean of 4000 uniform values is within 10 standard deviations, r/√(12·4000) each.
    assert abs(sum(values) // 4000 - BLS12_381.r // 2) < 10 * BLS12_381.r // 219
    tops = {value >> 245 for value in values}
    assert len(tops) > 700


def test_a_seed_gives_the_same_scalars_again() -> None:
    first, second = Randomness(b"1" * 32), Randomness(b"1" * 32)
    one = first.scalars(9)
    assert (one == second.scalars(9)).all()
    assert not (one == first.scalars(9)).all()
    assert not (one == Randomness(b"2" * 32).scalars(9)).all()
    assert Randomness().scalars(0).shape == (0, 4)


@pytest.mark.parametrize("blinding", [b"short", "1" * 32, 5, (1, 2)])
def test_other_seeds_are_refused(blinding: object) -> None:
    with pytest.raises(InvalidInput, match="32 bytes"):
        check_blinding(blinding)
