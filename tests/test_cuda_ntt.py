"""Transforms on the emulated device against the definition: every split into passes, order, direction and coset."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
import pytest

from emulator import EmulatedDevice, Faults
from gpuprover import reference
from gpuprover.cuda.device import Address
from gpuprover.cuda.ntt import LEAST_LEVELS, LEVELS, LOG_COMPACT, Transform, scratch_bytes, split, table_bytes
from gpuprover.curves import CurveParams, FieldParams
from gpuprover.errors import DeviceError
from gpuprover.limbs import Words, field_to_words, words_to_field, words_to_ints
from gpuprover.polynomial import Coset, Direction, Domain, Order
from samples import fast_dft, field_edges

pytestmark = pytest.mark.kernels_offline

FORWARD, INVERSE = Direction.FORWARD, Direction.INVERSE
ALL = [*product(Direction, Order, Coset)]


@dataclass(frozen=True)
class Split:
    """Passes, and tiles small enough that a launch has several."""

    levels: tuple[int, ...]
    log_tile: int = 11
    compact: bool = False

    @property
    def log_n(self) -> int:
        return sum(self.levels)


SPLITS = [
    *(Split((n,)) for n in range(9)),
    Split((3, 3), 4),
    Split((6, 3), 7),
    Split((3, 3, 3), 5),
    Split((3, 4, 3), 6, compact=True),
    Split((4, 3, 3), 4),
    Split((5, 5), 6, compact=True),
    Split((3, 8), 8),
    Split((8, 3), 11),
    Split((4, 4, 4), 7),
]


def name(s: Split) -> str:
    return "+".join(map(str, s.levels)) + f" in 2^{s.log_tile}" + (" compact" if s.compact else "")


class OtherCoset(Domain):
    """A domain as a field's largest is: its coset's generator is no root of twice its order."""

    @property
    def coset_generator(self) -> int:  # type: ignore[override]
        return self.field.non_residue**2 % self.field.modulus


def values(field: FieldParams, n: int, rng: random.Random) -> list[int]:
    few = [field.from_montgomery(v % field.modulus) for v in field_edges(field.modulus)] + field_edges(field.modulus)
    return [v % field.modulus for v in rng.sample(few, min(n // 2, len(few)))] + [
        rng.randrange(field.modulus) for _ in range(n - min(n // 2, len(few)))
    ]


def expected(
    domain: Domain, x: list[int], direction: Direction, order: Order, coset: Coset
) -> list[int]:
    """By the definition; x is in natural order, whatever the order of the transform's input."""
    field, p, n = domain.field, domain.field.modulus, domain.size
    g = domain.coset_generator if coset is Coset.ODD else 1
    if direction is FORWARD:
        y = fast_dft(field, x, domain.omega, g)
    else:
        y = fast_dft(field, x, pow(domain.omega, -1, p))
        factor, step = pow(n, -1, p), pow(g, -1, p)
        for i in range(n):
            y[i], factor = y[i] * factor % p, factor * step % p
    return reference.bit_reverse(y) if order is Order.NATURAL_TO_REVERSED else y


def put(device: EmulatedDevice, words: Words) -> Address:
    at = device.allocate(words.nbytes)
    device.write(at, words)
    return at


def get(device: EmulatedDevice, at: int, field: FieldParams, n: int) -> list[int]:
    words = np.empty((n, field.limbs), np.uint64)
    device.read(words, at)
    assert max(words_to_ints(words)) < field.modulus, "an element is not canonical"
    return words_to_field(field, words)


def transform_of(device: EmulatedDevice, domain: Domain, s: Split) -> Transform:
    return Transform(device, device, domain, s.compact, levels=s.levels, log_tile=s.log_tile)


def check_all(device: EmulatedDevice, domain: Domain, s: Split, rng: random.Random) -> None:
    field, n = domain.field, domain.size
    transform = transform_of(device, domain, s)
    x = values(field, n, rng)
    v, scratch = device.allocate(n * field.bytes), device.allocate(scratch_bytes(domain))
    for direction, order, coset in ALL:
        given = reference.bit_reverse(x) if order is Order.REVERSED_TO_NATURAL else x
        device.write(v, field_to_words(field, given))
        natural = order is Order.NATURAL_TO_NATURAL
        at = transform.ntt(v, scratch if natural else None, direction, order, coset)
        assert at == (scratch if natural and n > 1 else v)
        want = expected(domain, x, direction, order, coset)
        assert get(device, at, field, n) == want, (direction, order, coset)
    device.write(v, field_to_words(field, x))
    transform.to_coset([v], Coset.ODD)
    coefficients = expected(domain, x, INVERSE, Order.NATURAL_TO_NATURAL, Coset.NONE)
    on_coset = expected(domain, coefficients, FORWARD, Order.NATURAL_TO_NATURAL, Coset.ODD)
    assert get(device, v, field, n) == on_coset
    transform.to_coset([v], Coset.NONE)
    assert get(device, v, field, n) == on_coset
    transform.close()


@pytest.mark.parametrize("s", SPLITS, ids=name)
def test_transforms(curve: CurveParams, s: Split, rng: random.Random) -> None:
    check_all(EmulatedDevice(), Domain(curve.scalar, s.log_n), s, rng)
