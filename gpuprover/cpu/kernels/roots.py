"""The kernel of :mod:`gpuprover.cpu.encoded_points`: y from x, many points at once."""

from __future__ import annotations

from gpuprover.cpu.kernels.field import frame_room, load, one, square, store
from gpuprover.cpu.kernels.jit import jit


@jit
def lift(F, points, coefficient, exponent, windows, found, lo, hi):
    """Sets y of affine points to a root of x³ + b, for p ≡ 3 (mod 4); found[i] says whether there is one.

    Args:
        exponent: uint64[words], (p + 1)/4: a square to this power is a root of it.
        windows: of four bits each, that the exponent has.
        found: uint8[≥ hi].
    """
    b = load(F, coefficient, 0)
    powers = frame_room(F, 16)
    for i in range(lo, hi):
        x = load(F, points, 2 * i)
        value = square(x) * x + b
        power = one(F)
        for d in range(16):
            store(powers, d, power)
            power = power * value
        y = one(F)
        for w in range(windows - 1, -1, -1):
            y = square(square(square(square(y))))
            y = y * load(F, powers, (exponent[w >> 4] >> (4 * (w & 15))) & 15)
        store(points, 2 * i + 1, y)
        found[i] = square(y) == value
