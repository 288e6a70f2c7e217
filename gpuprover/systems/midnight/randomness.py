"""Uniform scalars for blinding, by the vector.

A proof hides its witness by rows and coefficients that nobody else knows: the rows behind the usable ones of
advice columns, permuted lookups and products, and the polynomial R.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

import numpy as np

from gpuprover.curves import BLS12_381
from gpuprover.errors import InvalidInput
from gpuprover.limbs import Words, ints_to_words

_SEED_BYTES = 32
_LIMBS = BLS12_381.scalar.limbs
_TOP = np.uint64(BLS12_381.r >> 64 * (_LIMBS - 1))
_MASK = np.uint64((1 << (BLS12_381.r.bit_length() - 64 * (_LIMBS - 1))) - 1)


class Randomness:
    """A source of scalars, uniform in [0, r).

    Args:
        seed: None: the operating system's randomness. Bytes make the same scalars each time, in the order of
            the calls, for tests: a proof that is made so hides nothing from who knows them.
    """

    def __init__(self, seed: bytes | None = None) -> None:
        self._bytes: Callable[[int], bytes] = os.urandom
        if seed is not None:
            self._counter, self._seed = 0, seed
            self._bytes = self._expanded

    def _expanded(self, count: int) -> bytes:
        self._counter += 1
        return hashlib.shake_256(self._counter.to_bytes(8, "little") + self._seed).digest(count)

    def scalars(self, count: int) -> Words:
        """Canonical uint64[count, limbs]."""
        found = np.empty((count, _LIMBS), dtype=np.uint64)
        have = 0
        while have < count:
            # Numbers of as many bits as r has, of which those below r are kept: nine of ten.
            wanted = count - have + (count - have) // 8 + 8
            drawn = np.frombuffer(self._bytes(8 * _LIMBS * wanted), dtype="<u8").reshape(-1, _LIMBS).copy()
            drawn[:, -1] &= _MASK
            good = drawn[:, -1] < _TOP
            for i in np.flatnonzero(drawn[:, -1] == _TOP):
                good[i] = int.from_bytes(drawn[i].tobytes(), "little") < BLS12_381.r
            kept = drawn[good][: count - have]
            found[have : have + len(kept)] = kept
            have += len(kept)
        return found


class NoRandomness(Randomness):
    """Ones, for a rehearsal."""

    def scalars(self, count: int) -> Words:
        return np.broadcast_to(ints_to_words([1], _LIMBS), (count, _LIMBS))


def check_blinding(blinding: object) -> bytes:
    """A seed for :class:`Randomness` as a caller gives it. Raises InvalidInput."""
    if isinstance(blinding, bytes) and len(blinding) == _SEED_BYTES:
        return blinding
    raise InvalidInput(f"blinding: expected a seed of {_SEED_BYTES} bytes, for tests")
