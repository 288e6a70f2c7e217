"""A window's bucket sums, eight buckets side by side: AVX-512 IFMA.

Sums are taken in vectors: lane k of a vector of eight points works for one bucket, and its
neighbours for others with equally many entries, so that all eight do the same. A bucket's entries
are cut into chunks of at most ``longest``; chunks sorted by length go eight to a group; a group
of length m is m vectors of bases, gathered once, and then added in place, log2(m) rounds of
pairs. Groups share a round's inversion as far as they fit the second-level cache. Sums of
chunks of one bucket are written out as bases and go through the same again.

Everything lies in one ``room``, in units of a vector of eight affine points, limb by limb:
the table of the bucket sums, then the totals of the reduction, then the segment that is being
summed. Coordinates are those of the isomorphic curve of lanes_memory.py, below 2^bits + p (less
than 2.4p where layout.ranges_hold); infinity is all zeros, and y is zero nowhere else.

Ranges, in p: differences below 5.4, products below 1.3, a third coordinate before its reduction
below 6.5.
"""

from __future__ import annotations

import numpy as np

from gpuprover.cpu.kernels import curve
from gpuprover.cpu.kernels.curve import store_xyzz
from gpuprover.cpu.kernels.field import element_bytes, frame_room, load, load_u32, plain, prefetch, store
from gpuprover.cpu.kernels.jit import inline, jit
from gpuprover.cpu.kernels.lanes import (
    files_x,
    files_y,
    is_prime_field,
    lanes_add,
    lanes_all_zero,
    lanes_inverses,
    lanes_multiple_of_p,
    lanes_one,
    lanes_select,
    lanes_square,
    lanes_sub,
    lanes_sub2_reduced,
    lanes_sub_if,
    lanes_sub_reduced,
    lanes_zero,
)
from gpuprover.cpu.kernels.lanes_memory import (
    copy_word,
    gather_bases,
    load_lanes,
    store_elements,
    store_lanes,
    vector_bytes,
)
from gpuprover.cpu.layout import STOPPED

# Additions -------------------------------------------------------------------------------------


@inline
def _infinities(F, room, i, j):
    """Bits 0 to 7: the lanes where point i is infinity; bits 8 to 15: where point j is."""
    first = lanes_all_zero(load_lanes(F, room, 2 * np.int64(i) + 1))
    return first | lanes_all_zero(load_lanes(F, room, 2 * np.int64(j) + 1)) << 8


@inline
def _denominator(F, room, i, x1, x2, flags):
    """x2 − x1; 2·y1 in lanes that double; 1 in those without an addition."""
    d = lanes_sub(x2, x1, 3)
    if flags:
        y1 = load_lanes(F, room, 2 * np.int64(i) + 1)
        d = lanes_select(flags >> 16, lanes_add(y1, y1), d)
        d = lanes_select(flags | flags >> 8 | flags >> 24, lanes_one(F), d)
    return d


@jit
def _classify(F, room, p, q, n, flags):
    """Tells doublings (bits 16 to 23) and cancellations (bits 24 to 31) from other additions, exactly."""
    for k in range(n):
        i, j = np.int64(p[k]), np.int64(q[k])
        x1, y1 = load_lanes(F, room, 2 * i), load_lanes(F, room, 2 * i + 1)
        x2, y2 = load_lanes(F, room, 2 * j), load_lanes(F, room, 2 * j + 1)
        infinite = _infinities(F, room, i, j)
        one = lanes_one(F)
        same = lanes_multiple_of_p(lanes_sub(x2, x1, 3) * one) & ~(infinite | infinite >> 8) & 0xFF
        doubles = same & lanes_multiple_of_p(lanes_sub(y2, y1, 3) * one) & ~lanes_multiple_of_p(y1 * one)
        flags[k] = infinite | doubles << 16 | (same & ~doubles) << 24


@inline
def _prefetch_bases(F, bases, indices):
    """Asks for the bases of eight indices. They need not begin where a cache line does."""
    size = 2 * element_bytes(F)
    for lane in range(8):
        at = bases + (load_u32(indices + 4 * lane) & 0x7FFFFFFF) * size
        for line in range(0, size, 64):
            prefetch(at + line)
        prefetch(at + size - 1)


@inline
def _add_one(F, room, p, q, out, k, prefix, flags, inverse_here, inverse_next):
    """The second half of one addition of any kind in :func:`add_vectors`; -> the two inverses, swapped."""
    i, j = np.int64(p[k]), np.int64(q[k])
    x1, y1 = load_lanes(F, room, 2 * i), load_lanes(F, room, 2 * i + 1)
    x2, y2 = load_lanes(F, room, 2 * j), load_lanes(F, room, 2 * j + 1)
    kinds = flags[k]
    d = _denominator(F, room, i, x1, x2, kinds)
    t = load_lanes(F, prefix, k) * inverse_here
    rise = lanes_sub(y2, y1, 3)
    if kinds >> 16:
        xx = lanes_square(x1)
        rise = lanes_select(kinds >> 16, lanes_add(lanes_add(xx, xx), xx), rise)
    slope = rise * t
    x3 = lanes_sub2_reduced(lanes_square(slope), x1, x2)
    y3 = lanes_sub_reduced(lanes_sub(x1, x3, 3) * slope, y1)
    if kinds:
        x3 = lanes_select(kinds, x2, lanes_select(kinds >> 8, x1, x3))
        y3 = lanes_select(kinds, y2, lanes_select(kinds >> 8, y1, y3))
        x3 = lanes_select(kinds >> 24, lanes_zero(F), x3)
        y3 = lanes_select(kinds >> 24, lanes_zero(F), y3)
    store_lanes(room, 2 * np.int64(out[k]), x3)
    store_lanes(room, 2 * np.int64(out[k]) + 1, y3)
    return inverse_next, d * inverse_here


@jit
def add_vectors(F, room, p, q, out, n, prefix, flags, bases, soon, ahead):
    """room[out[k]] = room[p[k]] + room[q[k]] for k < n, eight additions each, with one inversion.

    All sums are as if of the points before the call if no out[k] is a p[j] or q[j] with j < k.
    ``prefix`` has room for n elements in lanes, ``flags`` is int64[n]. Meanwhile the bases of the first
    ``ahead`` vectors of indices at ``soon`` are fetched from memory, as far as n goes.
    """
    u = lanes_one(F)
    v = lanes_one(F)
    exact = False
    while True:
        # Two running products in turns, so that one's latency hides behind the other.
        u, v = lanes_one(F), lanes_one(F)
        for k in range(n):
            i, j = np.int64(p[k]), np.int64(q[k])
            if not exact:
                flags[k] = _infinities(F, room, i, j)
            d = _denominator(F, room, i, load_lanes(F, room, 2 * i), load_lanes(F, room, 2 * j), flags[k])
            store_lanes(prefix, k, u)
            u, v = v, d * u
            if k < ahead:
                _prefetch_bases(F, bases, soon + 32 * k)
        s, t, failed = lanes_inverses(F, u, v)
        if not failed or exact:
            break
        # Somewhere x1 = x2: rare enough to look for it only now.
        _classify(F, room, p, q, n, flags)
        exact = True
    u, v = s, t
    k = n - 1
    while k >= 0:
        if is_prime_field(F) and k > 0 and flags[k] | flags[k - 1] == 0:
            # Two at a time: one addition is a chain of products, too long to hide behind the next. In
            # Fq2 a product has more than one chain.
            i, j = 2 * np.int64(p[k]), 2 * np.int64(q[k])
            g, h = 2 * np.int64(p[k - 1]), 2 * np.int64(q[k - 1])
            x1, x2 = load_lanes(F, room, i), load_lanes(F, room, j)
            x3, x4 = load_lanes(F, room, g), load_lanes(F, room, h)
            t1, t2 = load_lanes(F, prefix, k) * v, load_lanes(F, prefix, k - 1) * u
            v, u = lanes_sub(x2, x1, 3) * v, lanes_sub(x4, x3, 3) * u
            y1, y3 = load_lanes(F, room, i + 1), load_lanes(F, room, g + 1)
            t1 = lanes_sub(load_lanes(F, room, j + 1), y1, 3) * t1
            t2 = lanes_sub(load_lanes(F, room, h + 1), y3, 3) * t2
            s1, s2 = lanes_square(t1), lanes_square(t2)
            x5, x6 = lanes_sub2_reduced(s1, x1, x2), lanes_sub2_reduced(s2, x3, x4)
            s1, s2 = lanes_sub(x1, x5, 3) * t1, lanes_sub(x3, x6, 3) * t2
            i, j = 2 * np.int64(out[k]), 2 * np.int64(out[k - 1])
            store_lanes(room, i, x5)
            store_lanes(room, i + 1, lanes_sub_reduced(s1, y1))
            store_lanes(room, j, x6)
            store_lanes(room, j + 1, lanes_sub_reduced(s2, y3))
            k -= 2
        else:
            v, u = _add_one(F, room, p, q, out, k, prefix, flags, v, u)
            k -= 1


# Buckets ---------------------------------------------------------------------------------------


@jit
def cut_into_chunks(
    runs, first, longest, count, slot, by_length, chunk_bucket, chunk_first, chunk_length, again, again_first
):
    """Cuts runs of entries into chunks of at most ``longest``, and sorts these by length, the longest first.

    Run k is the bucket runs[k] with the entries first[k] … first[k + 1] − 1. Runs that are cut are
    listed in ``again``, with the places of their chunks' sums, from ``slot`` on, in ``again_first``.
    ``by_length`` is scratch, longest + 2 elements. -> (chunks, runs cut).
    """
    for length in range(longest + 2):
        by_length[length] = 0
    for k in range(count):
        m = np.int64(first[k + 1]) - np.int64(first[k])
        if m:
            pieces = (m + longest - 1) // longest
            extra = m % pieces
            by_length[m // pieces] += pieces - extra
            by_length[m // pieces + 1] += extra
    place = 0
    for length in range(longest + 1, -1, -1):
        number = by_length[length]
        by_length[length] = place
        place += number
    cut = 0
    for k in range(count):
        begin = np.int64(first[k])
        m = np.int64(first[k + 1]) - begin
        if not m:
            continue
        pieces = (m + longest - 1) // longest
        if pieces > 1:
            again[cut] = runs[k]
            again_first[cut] = slot
            cut += 1
        extra = m % pieces
        for piece in range(pieces):
            length = m // pieces + (1 if piece < extra else 0)
            at = by_length[length]
            by_length[length] = at + 1
            chunk_first[at] = begin
            chunk_length[at] = length
            if pieces == 1:
                chunk_bucket[at] = runs[k]
            else:
                chunk_bucket[at] = slot | 0x80000000
                slot += 1
            begin += length
    again_first[cut] = slot
    return place, cut


@inline
def _copy_lane(F, room, source, source_lane, target, target_lane):
    """One lane of a vector of points to a lane of another."""
    vector = 2 * vector_bytes(F)
    a, b = room + source * vector + 8 * source_lane, room + target * vector + 8 * target_lane
    for at in range(0, vector, 64):
        copy_word(a + at, b + at)


@inline
def write_bases(F, room, position, scratch):
    """The eight points of a vector as canonical words in the files' form: eight x, then eight y."""
    x = lanes_sub_if(load_lanes(F, room, 2 * position) * files_x(F), 1)
    y = lanes_sub_if(load_lanes(F, room, 2 * position + 1) * files_y(F), 1)
    store_elements(plain(F), scratch, x)
    store_elements(plain(F), scratch + 8 * element_bytes(F), y)


@inline
def _fill(entries, chunks, chunk_first, chunk_length, capacity, index, lengths, half, c):
    """Lists the entries of chunks from c on, eight chunks to a group, until one half of ``index`` is full.

    -> (groups, vectors); lengths[half][g] is how many vectors group g has.
    """
    groups, vectors = 0, 0
    while c < chunks and vectors + chunk_length[c] <= capacity:
        m = np.int64(chunk_length[c])
        for lane in range(8):
            have = 0
            if c + lane < chunks:
                have = np.int64(chunk_length[c + lane])
                start = np.int64(chunk_first[c + lane])
                for t in range(have):
                    index[half, vectors + t, lane] = entries[start + t]
            for t in range(have, m):
                index[half, vectors + t, lane] = 0xFFFFFFFF
        lengths[half, groups] = m
        vectors += m
        groups += 1
        c += 8
    return groups, vectors


@jit
def sum_chunks(
    F, bases, entries, chunks, chunk_bucket, chunk_first, chunk_length,
    room, table_bits, groups_bits, segment, capacity, prefix, flags, p, q, index, lengths, sums, stop,
):  # fmt: skip
    """Adds every chunk's entries up, into the table or, where bit 31 of the bucket is set, into ``sums``.

    ``sums`` gets points in the files' form, at the place that the other bits say: of chunks of a bucket that
    was cut. It may be ``bases``, if no chunk's sum takes the place of another one's entry.
    ``entries`` are indices of ``bases`` with a sign in bit 31. The table has 2^table_bits buckets, of
    which bucket b is strand b >> (table_bits − groups_bits − 3): one of 8·2^groups_bits. The segment
    is ``capacity`` vectors from place ``segment`` of the room on. ``index`` is uint32[2, >= capacity, 8]:
    the indices of this segment, and of the next, whose bases are fetched while this one is summed.
    """
    G = plain(F)
    scratch = frame_room(F, 16)
    length_bits = table_bits - groups_bits - 3
    c, half = 0, 0
    groups, vectors = _fill(entries, chunks, chunk_first, chunk_length, capacity, index, lengths, 0, 0)
    for t in range(vectors):
        _prefetch_bases(F, bases, index.ctypes.data + 32 * t)
    while c < chunks:
        if stop[0] != 0:
            return STOPPED
        begin = c
        c += 8 * groups
        next_groups, next_vectors = _fill(
            entries, chunks, chunk_first, chunk_length, capacity, index, lengths, 1 - half, c
        )
        here = index.ctypes.data + 32 * index.shape[1] * half
        soon = index.ctypes.data + 32 * index.shape[1] * (1 - half)
        for t in range(vectors):
            x, y = gather_bases(F, bases, here + 32 * t)
            store_lanes(room, 2 * (segment + t), x)
            store_lanes(room, 2 * (segment + t) + 1, y)
        fetched = 0
        # Rounds: what is left of a group lies ``stride`` vectors apart.
        stride = 1
        while stride < lengths[half, 0]:
            n = 0
            at = segment
            for g in range(groups):
                m = np.int64(lengths[half, g])
                for t in range(0, m - stride, 2 * stride):
                    p[n] = at + t
                    q[n] = at + t + stride
                    n += 1
                at += m
            ahead = next_vectors - fetched
            add_vectors(F, room, p, q, p, n, prefix, flags, bases, soon + 32 * fetched, ahead)
            fetched += min(n, ahead)
            stride *= 2
        for t in range(fetched, next_vectors):
            _prefetch_bases(F, bases, soon + 32 * t)
        at = segment
        for g in range(groups):
            written = False
            for lane in range(min(8, chunks - begin - 8 * g)):
                bucket = np.int64(chunk_bucket[begin + 8 * g + lane])
                if bucket & 0x80000000:
                    if not written:
                        write_bases(F, room, at, scratch)
                        written = True
                    place = bucket & 0x7FFFFFFF
                    store(sums, 2 * place, load(G, scratch, lane))
                    store(sums, 2 * place + 1, load(G, scratch, 8 + lane))
                else:
                    strand = bucket >> length_bits
                    step = bucket & ((1 << length_bits) - 1)
                    _copy_lane(F, room, at, lane, (step << groups_bits) + (strand >> 3), strand & 7)
            at += np.int64(lengths[half, g])
        half, groups, vectors = 1 - half, next_groups, next_vectors
    return 0


@inline
def _copy_vector(F, room, source, target):
    store_lanes(room, 2 * target, load_lanes(F, room, 2 * source))
    store_lanes(room, 2 * target + 1, load_lanes(F, room, 2 * source + 1))


@jit
def reduce_buckets(F, room, table_bits, groups_bits, prefix, flags, p, q, o, out, stop):
    """XYZZ out[0] = Σ (b + 1)·bucket[b] over the table, which it overwrites.

    A strand is 2^length_bits consecutive buckets. From its top down, buckets become sums of all
    from there on, and the strand's total is the sum of these: one batch adds them in all strands.
    Strand s, with the sum R_s and the total T_s, contributes T_s + length·s·R_s. As s = 8·group + lane,
    Σ group·R is summed in the same way over the groups, in lanes; the eight lanes remain.
    The totals lie behind the table, and behind them Σ group·R.
    """
    G = plain(F)
    groups = 1 << groups_bits
    length_bits = table_bits - groups_bits - 3
    length = 1 << length_bits
    totals = length * groups
    weighted = totals + groups
    for g in range(groups):
        _copy_vector(F, room, (length - 1) * groups + g, totals + g)
    for step in range(length - 2, -1, -1):
        if stop[0] != 0:
            return STOPPED
        for g in range(groups):
            here = step * groups + g
            p[g], q[g], o[g] = here, here + groups, here
            # One step behind: a total takes what the step before has made.
            p[groups + g], q[groups + g], o[groups + g] = totals + g, here + groups, totals + g
        n = groups if step == length - 2 else 2 * groups
        add_vectors(F, room, p, q, o, n, prefix, flags, 0, 0, 0)
    store_lanes(room, 2 * weighted, lanes_zero(F))
    store_lanes(room, 2 * weighted + 1, lanes_zero(F))
    for g in range(groups - 1, 0, -1):
        p[0], q[0], o[0] = g - 1, g, g - 1
        p[1], q[1], o[1] = totals + g - 1, totals + g, totals + g - 1
        p[2], q[2], o[2] = weighted, g, weighted
        add_vectors(F, room, p, q, o, 3, prefix, flags, 0, 0, 0)
    scratch = frame_room(F, 48)
    size = element_bytes(F)
    write_bases(F, room, 0, scratch)
    write_bases(F, room, totals, scratch + 16 * size)
    write_bases(F, room, weighted, scratch + 32 * size)
    total = curve.identity(G)
    run = curve.identity(G)
    sums = curve.identity(G)
    for lane in range(7, -1, -1):
        total = curve.add_affine(G, total, load(G, scratch, 16 + lane), load(G, scratch, 24 + lane))
        run = curve.add_affine(G, run, load(G, scratch, lane), load(G, scratch, 8 + lane))
        if lane > 0:
            sums = curve.add(G, sums, run)
    if length > 1:
        # The last sums have not been added to their totals yet.
        total = curve.add(G, total, run)
    by_group = curve.identity(G)
    for lane in range(8):
        by_group = curve.add_affine(G, by_group, load(G, scratch, 32 + lane), load(G, scratch, 40 + lane))
    for _ in range(3):
        by_group = curve.double(G, by_group)
    sums = curve.add(G, sums, by_group)
    for _ in range(length_bits):
        sums = curve.double(G, sums)
    store_xyzz(G, out, 0, curve.add(G, total, sums))
    return 0
