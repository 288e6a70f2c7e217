"""The kernels of :mod:`gpuprover.cpu.msm`: phases 1 to 3 and 6."""

from __future__ import annotations

import numpy as np

from gpuprover.cpu.kernels import curve
from gpuprover.cpu.kernels.curve import load_xyzz, store_xyzz
from gpuprover.cpu.kernels.jit import inline, jit


@jit
def bit_lengths(scalars, words, lo, hi, counts, lengths):
    """Histogram of the bit lengths of scalars [lo, hi), and each length."""
    for i in range(lo, hi):
        b = curve.scalar_bits(scalars, words, i)
        counts[b] += 1
        lengths[i] = b


@jit
def recode(scalars, words, lo, hi, offset, out):
    """out[i] = scalars[i] + offset, on words; no overflow by the choice of the windows."""
    for i in range(lo, hi):
        carry = np.uint64(0)
        for k in range(words):
            a = scalars[i * words + k]
            s = a + offset[k]
            c1 = np.uint64(1) if s < a else np.uint64(0)
            t = s + carry
            c2 = np.uint64(1) if t < s else np.uint64(0)
            out[i * words + k] = t
            carry = c1 | c2


@jit
def order_by_top(lengths, lo, hi, tops, position, order):
    """Puts the indices in [lo, hi) of non-zero scalars where ``position`` says, by their highest window.

    ``tops`` gives the window for a bit length; ``position`` the next place for each window.
    """
    for i in range(lo, hi):
        if lengths[i]:
            top = tops[lengths[i]]
            order[position[top]] = i
            position[top] += 1


@inline
def signed_digit(recoded, words, i, shift, c, signed):
    """Digit of scalar i at bit ``shift``; signed digits lie in [−2^(c−1), 2^(c−1)), others in [0, 2^(c−1)].

    Digits are places in tables, so that holds for scalars that are too large as well; their sum is wrong.
    """
    k = shift >> 6
    if k >= words:
        return 0
    b = shift & 63
    v = recoded[i * words + k] >> np.uint64(b)
    if b + c > 64 and k + 1 < words:
        v |= recoded[i * words + k + 1] << np.uint64(64 - b)
    d = np.int64(v & np.uint64((1 << c) - 1))
    return d - (1 << (c - 1)) if signed else min(d, 1 << (c - 1))


@jit
def sort_window(recoded, words, order, lo, hi, shift, c, signed, starts, entries, digits):
    """Entries (index and sign) of order[lo:hi] by bucket |digit| − 1.

    Bucket b ends up in entries[starts[b]:starts[b + 1]].
    """
    buckets = 1 << (c - 1)
    starts[:] = 0
    for k in range(lo, hi):
        d = signed_digit(recoded, words, order[k], shift, c, signed)
        digits[k - lo] = d
        starts[abs(d) + 1] += 1
    starts[1] = 0  # the zeros
    # starts[b + 2] counts bucket b; prefix sums make starts[b + 1] its first place …
    for b in range(1, buckets + 2):
        starts[b] += starts[b - 1]
    for k in range(lo, hi):
        d = np.int64(digits[k - lo])
        if d != 0:
            place = starts[abs(d)]
            entries[place] = np.int64(order[k]) | (d >> 63 & 0x80000000)
            starts[abs(d)] = place + 1
    # … and after placing, starts[b + 1] is the end of bucket b, so starts[b] its beginning.
    starts[0] = 0


@jit
def horner(F, sums, windows, c, parts, out):
    """XYZZ out[0] = Σ 2^(cw)·sums[w·parts + part]."""
    acc = curve.identity(F)
    for w in range(windows - 1, -1, -1):
        for _ in range(c):
            acc = curve.double(F, acc)
        for part in range(parts):
            acc = curve.add(F, acc, load_xyzz(F, sums, w * parts + part))
    store_xyzz(F, out, 0, acc)
