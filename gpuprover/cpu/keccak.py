"""Keccak-256 by a kernel: about a microsecond for a block of 136 bytes, and several for the call."""

from __future__ import annotations

import numpy as np

from gpuprover import keccak
from gpuprover.cpu.compiled import Kernels

_kernels = Kernels("keccak")
_CONSTANTS = np.array(keccak.CONSTANTS, dtype=np.uint64)
_STEPS = np.array(keccak.STEPS, dtype=np.uint64)


def keccak256(data: bytes) -> bytes:
    """The digest of ``data``: 32 bytes. See :func:`gpuprover.keccak.keccak256`."""
    # One array of states and blocks: a call takes longer to describe each array than to permute.
    words = np.frombuffer(bytearray(8 * 50) + keccak.pad(data), dtype=np.uint64)
    _kernels.absorb(words, keccak.RATE // 8, _CONSTANTS, _STEPS)
    return words[:4].tobytes()
