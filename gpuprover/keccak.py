"""Keccak-256, the hash of Ethereum and of snarkjs' transcripts.

SHA3-256 differs in the padding only, and Python's ``hashlib`` has no other: ``sha3_256`` of the same bytes is
another digest. Source: Bertoni, Daemen, Peeters, Van Assche, "The Keccak reference", version 3.0, 2011.

The function here is the specification: a block of 136 bytes takes it more than half a millisecond. The CPU's
kernel, :func:`gpuprover.devices.keccak256`, takes the constants from here.
"""

from __future__ import annotations

from itertools import accumulate

RATE = 136
"""Bytes absorbed before each permutation: a state of 200 without a capacity of 2·32."""
KECCAK, SHA3 = 0x01, 0x06
"""Paddings: the suffix of a message and the first 1 of pad10*1, in one byte."""
_MASK = (1 << 64) - 1
_ROUNDS = 24


def keccak256(data: bytes, padding: int = KECCAK) -> bytes:
    """The digest of ``data``: 32 bytes. With the padding SHA3 it is SHA3-256."""
    padded = pad(data, padding)
    state = [0] * 25
    for start in range(0, len(padded), RATE):
        for lane in range(RATE // 8):
            at = start + 8 * lane
            state[lane] ^= int.from_bytes(padded[at : at + 8], "little")
        _permute(state)
    return b"".join(lane.to_bytes(8, "little") for lane in state[:4])


def pad(data: bytes, padding: int = KECCAK) -> bytearray:
    """The bytes that are absorbed for ``data``: whole blocks, at least one."""
    padded = bytearray(data)
    padded += bytes(RATE - len(data) % RATE)
    padded[len(data)] ^= padding
    padded[-1] ^= 0x80
    return padded


def _round_constants() -> list[int]:
    """Bit 2^j − 1 of round i is bit 7i + j of the sequence of the register x⁸ + x⁶ + x⁵ + x⁴ + 1."""
    bits, register = [], 1
    for _ in range(7 * _ROUNDS):
        bits.append(register & 1)
        register <<= 1
        if register >> 8:
            register ^= 0x171
    return [sum(bits[7 * i + j] << (1 << j) - 1 for j in range(7)) for i in range(_ROUNDS)]


def _steps() -> list[tuple[int, int]]:
    """ρ and π together: lane B[k] is lane ``source`` turned by ``shift`` bits; k = x + 5y."""
    steps, (x, y) = [(0, 0)] * 25, (1, 0)
    for shift in accumulate(range(1, 25)):
        source = x + 5 * y
        x, y = y, (2 * x + 3 * y) % 5
        steps[x + 5 * y] = source, shift % 64
    return steps


CONSTANTS = _round_constants()
"""ι: the constant of each round."""
STEPS = _steps()
"""Source and shift of each lane, 0 to 24, in ρ and π."""


def _permute(a: list[int]) -> None:
    """Keccak-f[1600] on 25 lanes of 64 bits, in place; lane x + 5y is A[x, y]."""
    for constant in CONSTANTS:
        c = [a[x] ^ a[x + 5] ^ a[x + 10] ^ a[x + 15] ^ a[x + 20] for x in range(5)]
        d = [c[x - 1] ^ (c[(x + 1) % 5] << 1 & _MASK | c[(x + 1) % 5] >> 63) for x in range(5)]
        b = []
        for source, shift in STEPS:
            lane = a[source] ^ d[source % 5]
            b.append(lane << shift & _MASK | lane >> 64 - shift)
        for y in range(0, 25, 5):
            b0, b1, b2, b3, b4 = b[y : y + 5]
            a[y : y + 5] = (b0 ^ ~b1 & b2, b1 ^ ~b2 & b3, b2 ^ ~b3 & b4, b3 ^ ~b4 & b0, b4 ^ ~b0 & b1)
        a[0] ^= constant
