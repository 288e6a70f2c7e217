"""The kernels of :mod:`gpuprover.cpu.combine`: tables, digits, and terms sorted by their factors."""

from __future__ import annotations

import numpy as np

from gpuprover.cpu.kernels import curve
from gpuprover.cpu.kernels.curve import store_xyzz
from gpuprover.cpu.kernels.field import load
from gpuprover.cpu.kernels.jit import inline, jit
from gpuprover.cpu.kernels.msm import signed_digit
from gpuprover.cpu.layout import OUTSIDE


@jit
def table(F, point, c, w, out):
    """XYZZ out[d − 1] = d·2^(cw)·point for d in [1, 2^(c−1)]."""
    base = curve.from_affine(F, load(F, point, 0), load(F, point, 1))
    for _ in range(c * w):
        base = curve.double(F, base)
    multiple = base
    for d in range(1 << (c - 1)):
        store_xyzz(F, out, d, multiple)
        multiple = curve.add(F, multiple, base)


@jit
def digits(recoded, words, lo, hi, c, out):
    """out[w, i − lo] = digit w of scalar i, for i in [lo, hi); far slower with the loops swapped."""
    for w in range(len(out)):
        for i in range(lo, hi):
            # The top digit has no sign.
            out[w, i - lo] = signed_digit(recoded, words, i, c * w, c, w < len(out) - 1)


@jit
def entries(digits, half, starts, entries):
    """Row i gets what sums up to a multiple: the entry of a table for each of its non-zero digits."""
    windows, rows = digits.shape
    n = 0
    for i in range(rows):
        starts[i] = n
        for w in range(windows):
            d = np.int64(digits[w, i])
            minus = d >> 63
            # Written in any case, and kept if the digit is not 0: which it is, no branch can foresee.
            entries[n] = (w * half + (d ^ minus) - minus - 1) | (minus & 0x80000000)
            n += np.int64(d != 0)
    starts[rows] = n


@inline
def _equals(values, words, k, value, low):
    """Whether values[k] is ``low`` + 2^64·(the words of ``value`` above its lowest)."""
    same = values[k * words] == low
    for j in range(1, words):
        same &= values[k * words + j] == value[j]
    return same


@inline
def _negative(modulus, values, words, k, out, o):
    """out[o] = modulus − values[k], for a value in [0, modulus]."""
    borrow = np.uint64(0)
    for j in range(words):
        v = values[k * words + j]
        d = modulus[j] - v
        out[o * words + j] = d - borrow
        borrow = np.uint64(1) if v > modulus[j] or d < borrow else np.uint64(0)


@jit
def split(columns, points, values, modulus, nothing, words, starts, lo, hi, unit_starts, units, other_starts,
           others, factors, bits):  # fmt: skip
    """Sorts the terms of rows [lo, hi) into those by ±1 and other ones; terms by zero drop out.

    ``units`` and ``others`` get columns with their signs, ``factors`` the other terms' positive factors,
    the shorter ones, and ``bits`` their lengths. ``nothing`` is zero, in words, and the modulus is odd.
    Returns how many ``others`` there are, or :data:`OUTSIDE` where a column is not below ``points``.
    """
    one, other = 0, 0
    minus = np.uint32(0x80000000)
    for i in range(lo, hi):
        unit_starts[i - lo], other_starts[i - lo] = one, other
        for k in range(starts[i], starts[i + 1]):
            column = columns[k]
            if column >= points:
                return OUTSIDE
            if _equals(values, words, k, nothing, np.uint64(1)):
                units[one] = column
                one += 1
            elif _equals(values, words, k, modulus, modulus[0] - np.uint64(1)):
                units[one] = column | minus
                one += 1
            elif not _equals(values, words, k, nothing, np.uint64(0)):
                _negative(modulus, values, words, k, factors, other)
                positive = curve.scalar_bits(values, words, k)
                negative = curve.scalar_bits(factors, words, other)
                others[other] = column | minus
                if positive <= negative:
                    others[other] = column
                    for j in range(words):
                        factors[other * words + j] = values[k * words + j]
                bits[other] = min(positive, negative)
                other += 1
    unit_starts[hi - lo], other_starts[hi - lo] = one, other
    return other
