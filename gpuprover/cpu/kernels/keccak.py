"""The kernel of :mod:`gpuprover.cpu.keccak`: Keccak-f[1600], as :mod:`gpuprover.keccak` has it."""

from __future__ import annotations

import numpy as np

from gpuprover.cpu.kernels.jit import inline, jit

_ONE, _LAST, _BITS = np.uint64(1), np.uint64(63), np.uint64(64)


@inline
def turn(lane, shift):
    """The lane turned left by 0 to 63 bits."""
    return lane << shift | lane >> (_BITS - shift & _LAST)


@jit
def absorb(words, rate, constants, steps):
    """Adds blocks to the state, one after the other, and permutes it after each.

    Args:
        words: uint64[50 + n·rate]: the state, whose lane x + 5y is A[x, y]; room for another; the blocks.
        rate: lanes of a block.
        constants: uint64[24], of the rounds.
        steps: uint64[25, 2], source and shift of each lane.
    """
    a, b = words[:25], words[25:50]
    for i in range(50, len(words)):
        a[(i - 50) % rate] ^= words[i]
        if (i - 49) % rate:
            continue
        for constant in range(len(constants)):
            for x in range(5):
                b[x] = a[x] ^ a[x + 5] ^ a[x + 10] ^ a[x + 15] ^ a[x + 20]
            for x in range(5):
                d = b[(x + 4) % 5] ^ turn(b[(x + 1) % 5], _ONE)
                for y in range(0, 25, 5):
                    a[x + y] ^= d
            for i in range(25):
                b[i] = turn(a[np.int64(steps[i, 0])], steps[i, 1])
            for y in range(0, 25, 5):
                for x in range(5):
                    a[y + x] = b[y + x] ^ ~b[y + (x + 1) % 5] & b[y + (x + 2) % 5]
            a[0] ^= constants[constant]
