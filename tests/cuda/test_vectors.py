"""Kernels over vectors with more to them than one operation an element, on the emulated device."""

from __future__ import annotations

import random

import numpy as np
import pytest

from gpuprover.cuda.device import Program
from gpuprover.curves import CurveParams
from gpuprover.limbs import Words, field_to_words, words_to_field, words_to_ints
from tests.support.emulator import EmulatedDevice
from tests.support.samples import field_edges

pytestmark = pytest.mark.kernels_offline

N = 90
BLOCKS, THREADS = 3, 5
RANGES = [(0, 0), (0, 1), (0, 15), (7, 8), (3, 19), (2, 89), (0, N)]
"""Below, at and above a multiple of the grid's 15 threads."""


class Vectors:
    """Vectors on a device; every launch has BLOCKS × THREADS threads."""

    def __init__(self, curve: CurveParams, backwards: bool) -> None:
        self.field = curve.scalar
        self.device = EmulatedDevice(reversed=backwards)
        self.program = Program(curve, "vector.cu")

    def put(self, values: list[int]) -> int:
        words = field_to_words(self.field, values)
        at = self.device.allocate(words.nbytes)
        self.device.write(at, words)
        return at

    def get(self, at: int) -> list[int]:
        words: Words = np.empty((N, self.field.limbs), np.uint64)
        self.device.read(words, at)
        assert max(words_to_ints(words)) < self.field.modulus, "an element is not canonical"
        return words_to_field(self.field, words)

    def launch(self, kernel: str, *arguments: int) -> None:
        self.device.launch(self.program, kernel, BLOCKS, THREADS, *arguments)


@pytest.fixture(params=[False, True], ids=["forward", "reversed"])
def vectors(curve: CurveParams, request: pytest.FixtureRequest) -> Vectors:
    return Vectors(curve, request.param)


@pytest.mark.parametrize(("lo", "hi"), RANGES)
def test_scale_powers(vectors: Vectors, lo: int, hi: int, rng: random.Random) -> None:
    p = vectors.field.modulus
    v = [*field_edges(p), *(rng.randrange(p) for _ in range(N - len(field_edges(p))))]
    for factor, base in [(rng.randrange(p), rng.randrange(p)), (1, p - 1), (p - 1, 1), (5, 0), (0, 5)]:
        bits = max(hi, BLOCKS * THREADS).bit_length()
        constants = vectors.put([factor, *(pow(base, 1 << m, p) for m in range(bits))])
        at = vectors.put(v)
        vectors.launch("scale_powers", at, constants, lo, hi)
        want = [x * factor * pow(base, i, p) % p if lo <= i < hi else x for i, x in enumerate(v)]
        assert vectors.get(at) == want, (factor, base)


@pytest.mark.parametrize(("lo", "hi"), RANGES)
def test_batch_inverse(vectors: Vectors, lo: int, hi: int, rng: random.Random) -> None:
    p = vectors.field.modulus
    some = [*field_edges(p), *(rng.randrange(1, p) for _ in range(N - len(field_edges(p))))]
    # A thread with zeros first, last and in a row; and one with nothing but zeros.
    zeros = [0 if i // 15 in (0, 3, 4, 5) or i % 15 == 2 else x for i, x in enumerate(some)]
    for a in (some, zeros, [0] * N, [1] * N, [p - 1] * N):
        before = [rng.randrange(p) for _ in range(N)]
        source, out = vectors.put(a), vectors.put(before)
        vectors.launch("batch_inverse", source, out, lo, hi)
        want = [pow(x, -1, p) if x else 0 for x in a]
        assert vectors.get(out) == [*before[:lo], *want[lo:hi], *before[hi:]]
        assert vectors.get(source) == a
