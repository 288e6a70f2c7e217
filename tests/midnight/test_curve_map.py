"""Field elements to points of Jubjub: an official answer, roots, and inputs at which a divisor is 0."""

from __future__ import annotations

import random

from gpuprover.midnight import curve_map, jubjub
from gpuprover.midnight.curve_map import R, hash_to_curve, is_square, map_to_curve, square_root


def test_point_that_the_network_s_verifier_accepted() -> None:
    """Two public inputs of a circuit that hashes 5 and the element below."""
    x = 34218917089545743043004002170898117313241961181865100154640429800437168056639
    assert hash_to_curve([5, x]) == (
        43595999124532237279239545451351570659801508513426625907271585950596932095761,
        46713658062574685120778837894110600815431483912346936826537079663764699992827,
    )


def test_roots(rng: random.Random) -> None:
    values = [0, 1, 4, R - 1, *(pow(rng.randrange(R), 2, R) for _ in range(20))]
    for v in values:
        assert is_square(v)
        assert pow(square_root(v), 2, R) == v
        assert v == 0 or not is_square(7 * v % R)


def test_every_input_gives_a_point_of_the_subgroup(rng: random.Random) -> None:
    """Also where 1 − C1·u² or 1 + C1·u² is 0, as far as such u exist."""
    inputs = [0, 1, R - 1, *(rng.randrange(R) for _ in range(6))]
    inverse = pow(curve_map.C1, -1, R)
    inputs += [square_root(v) for v in (inverse, -inverse % R) if is_square(v)]
    assert len(inputs) > 9
    for u in inputs:
        assert jubjub.is_valid(map_to_curve(u)), u
    for count in (0, 1, 3):
        assert jubjub.is_valid(hash_to_curve([7] * count))
