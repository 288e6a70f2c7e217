"""The kernels of :mod:`gpuprover.cpu.buckets`: sums of sorted entries, and the reduction of the buckets."""

from __future__ import annotations

import numpy as np

from gpuprover.cpu.kernels import curve
from gpuprover.cpu.kernels.curve import add_pairs, copy_point, is_infinity, store_xyzz
from gpuprover.cpu.kernels.field import element_bytes, load, prefetch, store, zero
from gpuprover.cpu.kernels.jit import jit
from gpuprover.cpu.layout import STOPPED


@jit
def accumulate(F, bases, starts, entries, buckets, room, kinds, key, p_index, q_index, out_index, stop):
    """Adds the sorted entries into affine buckets; bucket b has those in [starts[b], starts[b + 1]).

    ``room`` holds three segments' points; ``kinds`` is as long as a segment.
    """
    segment = len(kinds)
    size = segment * 2 * element_bytes(F)
    first, second, prefix = room, room + size, room + 2 * size
    total = starts[len(starts) - 2]
    bucket = 0
    position = 0
    while position < total:
        if stop[0] != 0:
            return STOPPED
        m = min(segment, total - position)
        # Round 0 gathers from the bases: all lines are asked for before the first is used.
        for i in range(m):
            at = bases + np.int64(entries[position + i] & np.uint32(0x7FFFFFFF)) * 2 * element_bytes(F)
            for line in range(0, 2 * element_bytes(F), 64):
                prefetch(at + line)
        out, pairs, i = 0, 0, 0
        more = False
        while i < m:
            while position + i >= starts[bucket + 1]:
                bucket += 1
            key[out] = bucket
            more |= out > 0 and key[out - 1] == bucket
            if i + 1 < m and position + i + 1 < starts[bucket + 1]:
                p_index[pairs] = entries[position + i]
                q_index[pairs] = entries[position + i + 1]
                out_index[pairs] = out
                pairs += 1
                i += 2
            else:
                copy_point(F, bases, np.int64(entries[position + i]), first, out)
                i += 1
            out += 1
        add_pairs(F, bases, p_index, bases, q_index, first, out_index, pairs, prefix, kinds)
        position += m
        # Further rounds pair what stands side by side.
        source, target = first, second
        m = out
        while more:
            out, pairs, i = 0, 0, 0
            more = False
            while i < m:
                k = key[i]
                if i + 1 < m and key[i + 1] == k:
                    p_index[pairs] = i
                    q_index[pairs] = i + 1
                    out_index[pairs] = out
                    pairs += 1
                    i += 2
                else:
                    copy_point(F, source, i, target, out)
                    i += 1
                key[out] = k
                more |= out > 0 and key[out - 1] == k
                out += 1
            add_pairs(F, source, p_index, source, q_index, target, out_index, pairs, prefix, kinds)
            source, target = target, source
            m = out
        # A bucket may have begun in an earlier segment.
        pairs = 0
        for i in range(m):
            b = key[i]
            if is_infinity(F, buckets, b):
                copy_point(F, source, i, buckets, b)
            else:
                p_index[pairs], q_index[pairs], out_index[pairs] = b, i, b
                pairs += 1
        if pairs > 0:
            add_pairs(F, buckets, p_index, source, q_index, buckets, out_index, pairs, prefix, kinds)
    return 0


@jit
def reduce(F, room, count, strands, kinds, p_index, q_index, out_index, out, stop):
    """XYZZ out[0] = Σ (b + 1)·bucket[b] for b < count = strands·length.

    Strand k holds buckets [k·length, (k + 1)·length): ``run`` is their sum so far, from the
    top down, and ``total`` the sum of all values of ``run``, which is Σ (j + 1)·bucket. A step
    adds a bucket to every run and the previous run to every total, in one batch.
    ``room`` holds runs, totals and prefixes (4·strands points), then the buckets.
    """
    length = count // strands
    prefix = room + 4 * strands * element_bytes(F)
    base = 4 * strands
    for k in range(strands):
        copy_point(F, room, base + k * length + length - 1, room, k)
        store(room, 2 * (strands + k), zero(F))
        store(room, 2 * (strands + k) + 1, zero(F))
    for k in range(strands):
        p_index[strands + k], q_index[strands + k], out_index[strands + k] = strands + k, k, strands + k
    for j in range(length - 2, -1, -1):
        if stop[0] != 0:
            return STOPPED
        for k in range(strands):
            p_index[k], q_index[k], out_index[k] = k, base + k * length + j, k
        add_pairs(F, room, p_index, room, q_index, room, out_index, 2 * strands, prefix, kinds)
    total = curve.identity(F)
    run = curve.identity(F)
    weighted = curve.identity(F)
    for k in range(strands - 1, -1, -1):
        x, y = load(F, room, 2 * k), load(F, room, 2 * k + 1)
        # The last run has not been added to its total yet.
        total = curve.add_affine(F, total, x, y)
        x_total, y_total = load(F, room, 2 * (strands + k)), load(F, room, 2 * (strands + k) + 1)
        total = curve.add_affine(F, total, x_total, y_total)
        if k > 0:
            run = curve.add_affine(F, run, x, y)
            weighted = curve.add(F, weighted, run)
    steps = length
    while steps > 1:
        weighted = curve.double(F, weighted)
        steps >>= 1
    store_xyzz(F, out, 0, curve.add(F, total, weighted))
    return 0
