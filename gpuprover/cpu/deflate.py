"""Deflated data as the Rust library miniz_oxide writes them, byte for byte.

Any deflated stream is read alike; but files that other programs name by their hash have to be written as
these programs write them, and zlib makes other choices of matches and blocks. Source: miniz by R. Geldreich,
and RFC 1951 for the format.
"""

from __future__ import annotations

import numpy as np

from gpuprover.cpu.compiled import Kernels

_kernels = Kernels("deflate")

PROBES = 128
"""Matches that are looked at on level 6."""
WORDS, CODES = 70_000, (1 << 16) + 64
"""Room for the kernel's state."""
_ORDER = np.array([16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15], dtype=np.int64)


def deflate(data: bytes | bytearray | memoryview) -> bytes:
    """See :func:`gpuprover.devices.deflate`."""
    content = np.frombuffer(bytearray(data), dtype=np.uint8)
    # At most 48 bits for a match of three bytes, 15 for one byte, and 600 bytes for the codes of 31 KiB.
    out = np.empty(2 * len(content) + len(content) // 16 + 4096, dtype=np.uint8)
    words, codes = np.zeros(WORDS, dtype=np.int64), np.zeros(CODES, dtype=np.uint8)
    probes, fewer = 1 + (PROBES + 2) // 3, 1 + (PROBES // 4 + 2) // 3
    size: int = _kernels.deflate(content, words, codes, _ORDER, probes, fewer, out)
    return out[:size].tobytes()
