"""Fourier transforms of points of G1: what turns powers of a secret into Lagrange polynomials at it.

Cooley and Tukey's transform, decimated in time, of affine points: in each of log n steps half of the points
are multiplied by roots of unity, and sums and differences are taken. Almost all work is in the multiples. A
curve of the BLS12 family has an endomorphism that is a multiplication by −x², x its seed, so that a multiple
by a scalar of 255 bits is a sum of two by 128 bits, which share their doublings (Gallant, Lambert, Vanstone,
"Faster point multiplication on elliptic curves with efficient endomorphisms", 2001).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gpuprover.cpu.compiled import Kernels
from gpuprover.cpu.endomorphisms import g1_endomorphism
from gpuprover.cpu.layout import COMBINED, COMBINED_WIDTH, Field
from gpuprover.curves import CurveParams
from gpuprover.job import Job
from gpuprover.limbs import Words, address, field_to_words, ints_to_words

_kernels, _curve = Kernels("point_transform"), Kernels("curve")

BLOCK = 256
"""Points that a thread takes at once: they share inversions."""
_HALF_WORDS = 2


def transform_points(curve: CurveParams, points: Words, root: int, factor: int, job: Job) -> Words:
    """See :func:`gpuprover.devices.transform_points`."""
    n, r = len(points), curve.r
    log_n = n.bit_length() - 1
    if n == 0 or n & (n - 1) or pow(root, n, r) != 1 or (n > 1 and pow(root, n // 2, r) != r - 1):
        raise ValueError("expected 2^k points and a root of unity of that order")
    order = np.zeros(1, dtype=np.int64)
    for _ in range(log_n):
        order = np.concatenate([2 * order, 2 * order + 1])
    found = np.array(points, dtype=np.uint64, order="C")
    work = _Work(curve)

    def scale(bounds: tuple[int, int]) -> None:
        lo, hi = bounds
        halves = np.tile(_halves(curve, [factor]), (hi - lo, 1, 1))
        found[lo:hi] = work.multiples(found[lo:hi], halves, job)

    if factor % r != 1:
        job.map(scale, _blocks(n), progress=True)
    found = found[order]
    for level in range(log_n):
        half = 1 << level
        step, factors = pow(root, n // (2 * half), r), [1]
        for _ in range(half - 1):
            factors.append(factors[-1] * step % r)
        halves = _halves(curve, factors)

        def butterflies(bounds: tuple[int, int], half: int = half, halves: Words = halves) -> None:
            lo, hi = bounds
            numbers = np.arange(lo, hi)
            places = numbers % half
            upper = np.ascontiguousarray(found[2 * half * (numbers // half) + places + half])
            others = work.multiples(upper, halves[places], job) if half > 1 else upper
            work.add(found, others, half, lo, hi)

        job.map(butterflies, _blocks(n // 2), progress=True)
    return found


def _blocks(n: int) -> list[tuple[int, int]]:
    return [(lo, min(lo + BLOCK, n)) for lo in range(0, n, BLOCK)]


def _halves(curve: CurveParams, scalars: list[int]) -> Words:
    """k0 and k1 with k = k0 + k1·x²: uint64[n, 2, 2]."""
    square = curve.pairing.seed**2
    flat = [part for k in scalars for part in reversed(divmod(k % curve.r, square))]
    return ints_to_words(flat, _HALF_WORDS).reshape(-1, 2, _HALF_WORDS)


class _Work:
    """What both kernels are given besides points."""

    def __init__(self, curve: CurveParams) -> None:
        self._field = Field(curve.base)
        self._words = curve.g1_words
        self._beta = field_to_words(curve.base, [g1_endomorphism(curve)])

    def multiples(self, points: Words, halves: Words, job: Job) -> Words:
        """Affine points uint64[n, words] times scalars in halves -> affine."""
        F, n, words = self._field, len(points), self._words
        points, halves = np.ascontiguousarray(points), np.ascontiguousarray(halves)
        table = np.empty(((COMBINED + 1) * n, words), dtype=np.uint64)
        digits = np.empty((2 * n, 64 * _HALF_WORDS + COMBINED_WIDTH + 1), dtype=np.int8)
        prefix, wide = np.empty((n, words), dtype=np.uint64), np.empty((n, 2 * words), dtype=np.uint64)
        indices, kinds = _indices(n), np.empty(n, dtype=np.uint8)
        _kernels.multiples(
            F, address(points), halves.reshape(-1), address(self._beta), n, address(table), digits,
            *indices, address(prefix), kinds, address(wide), job.stop,
        )  # fmt: skip
        found = np.empty((n, words), dtype=np.uint64)
        _curve.normalise(F, address(wide), address(found), address(prefix), n)
        return found

    def add(self, points: Words, others: Words, half: int, lo: int, hi: int) -> None:
        """The butterflies [lo, hi), in place."""
        n = hi - lo
        prefix = np.empty((n, self._words), dtype=np.uint64)
        _kernels.butterflies(
            self._field, address(points), address(others), half, lo, hi,
            *_indices(n), address(prefix), np.empty(n, dtype=np.uint8),
        )  # fmt: skip


def _indices(n: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    return np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.int64)
