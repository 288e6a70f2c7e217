"""Deflated streams: any data come back. tests/midnight/test_keys.py compares official files byte for byte."""

from __future__ import annotations

import random
import zlib

import numpy as np
import pytest

from gpuprover.cpu import deflate as module
from gpuprover.cpu.deflate import deflate
from gpuprover.cpu.kernels import deflate as kernel


def restored(data: bytes) -> bytes:
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    found = stream.decompress(deflate(data))
    assert stream.eof
    assert not stream.unused_data
    return found


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"a",
        b"ab" * 23,
        b"abc" * 16,
        bytes(47),
        bytes(48),
        bytes(258),
        bytes(300_000),
        bytes(range(256)) * 300,
        b"abcd" + bytes(40_000) + b"abcd",
        b"x" * 31_800 + bytes(range(256)),
    ],
    ids=lambda data: f"{len(data)} bytes",
)
def test_data_come_back(data: bytes) -> None:
    assert restored(data) == data


@pytest.mark.parametrize("alphabet", [1, 2, 3, 17, 256])
@pytest.mark.parametrize("size", [100, 33_000, 140_000])
def test_random_data_come_back(alphabet: int, size: int, rng: random.Random) -> None:
    data = bytes(rng.choices(range(alphabet), k=size))
    assert restored(data) == data


def test_data_of_copies_come_back(rng: random.Random) -> None:
    """Pieces of what was there, near and far, over more than 2^16 bytes, where positions begin anew."""
    data = bytearray(rng.randbytes(500))
    while len(data) < 250_000:
        if rng.random() < 0.2:
            data += rng.randbytes(rng.randrange(1, 60))
        else:
            start = len(data) - rng.randrange(1, min(len(data), 40_000))
            data += data[start : start + rng.choice([3, 4, 5, 30, 130, 258, 300])]
    assert restored(bytes(data)) == data
    assert len(deflate(data)) < 1.1 * len(zlib.compress(data, 6))


def test_counts_that_ask_for_long_codes() -> None:
    """Fibonacci's numbers of bytes: codes of least redundancy would have more than 15 bits."""
    counts = [1, 1]
    while sum(counts) < 50_000:
        counts.append(counts[-1] + counts[-2])
    data = [i for i, count in enumerate(counts) for _ in range(count)]
    random.Random(1).shuffle(data)
    assert restored(bytes(data)) == bytes(data)


def test_random_data_are_stored() -> None:
    data = random.Random(5).randbytes(100_000)
    assert len(deflate(data)) < len(data) + 40


def test_room_for_the_state() -> None:
    assert module.WORDS >= kernel.WORDS
    assert module.CODES >= kernel.CODES + 8
    assert deflate(memoryview(np.zeros(9, dtype=np.uint8))) == deflate(bytes(9))
