"""Poseidon with Midnight's constants: known answers, and the kernel beside the integers."""

from __future__ import annotations

import random

from gpuprover.midnight.poseidon import R, absorbed, constants, permute, poseidon_hash, sponge


def test_constants_of_the_public_generator() -> None:
    """First constant and first entry of the matrix, as the network's circuits hold them."""
    rounds, matrix = constants()
    assert len(rounds) == 68
    assert rounds[0][0] == 0xA59176C702E80BDE6789030868B74DA429EB1495835F5D0118A2E2F65548257
    assert matrix[0][0] == 0x1B8114C381B922FD5D6D241210E2D8A68AD5744053BA9E776118DE4107B51ACE


def test_hash_that_the_network_s_prover_accepted() -> None:
    """The communications commitment of the circuit hello: randomness 777 and its input."""
    found = 38030661579879685330551170003458849540907590461755252261795807109119098397091
    assert poseidon_hash([777, 123456789]) == found


def test_kernel_beside_integers(rng: random.Random) -> None:
    for count in (0, 1, 2, 3, 6, 7):
        values = [rng.choice([0, 1, R - 1, rng.randrange(R)]) for _ in range(count)]
        for capacity in (count, 1 << 64):
            assert sponge(values, capacity) == absorbed(values, capacity), count
    assert poseidon_hash([]) == 0
    assert absorbed([5, 6], 2) == permute((5, 6, 2))
