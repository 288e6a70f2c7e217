"""The kernel of :mod:`gpuprover.cpu.deflate`: matches, and blocks of codes, as miniz chooses them.

All state is in two arrays, so that the kernel asks for no memory: ``words`` of integers, and ``codes`` of
bytes. In these a match is its length less 3 and its distance less 1, a literal is itself.
"""

from __future__ import annotations

import numpy as np

from gpuprover.cpu.kernels.jit import inline, jit

WINDOW, MASK = 1 << 15, (1 << 15) - 1
SHORTEST, LONGEST = 3, 258
CODES = 1 << 16
"""Bytes of codes that a block may have before they are written."""
_FAR = 8 << 10
_LONG = 128
"""Length from which on a match is taken without a look at the next one."""

# Places in ``words``. Positions are kept modulo 2^16, as their chains are.
HASH = 0
NEXT = HASH + WINDOW
COUNTS = NEXT + WINDOW
SIZES = COUNTS + 3 * 288
BITS = SIZES + 3 * 288
KEYS = BITS + 3 * 288
PLACES = KEYS + 288
PACKED = PLACES + 288
LENGTHS = PACKED + 2 * 320
OUT = LENGTHS + 64
"""Of the output: bytes, bits that wait, and how many."""
WORDS = OUT + 3


@inline
def put(words, out, value, count):
    """Writes bits, the lowest first."""
    waiting = words[OUT + 1] | value << words[OUT + 2]
    bits = words[OUT + 2] + count
    while bits >= 8:
        out[words[OUT]] = waiting & 0xFF
        words[OUT] += 1
        waiting >>= 8
        bits -= 8
    words[OUT + 1], words[OUT + 2] = waiting, bits


@inline
def length_symbol(length):
    """(symbol, extra bits, how many) of a match's length."""
    if length == LONGEST:
        return 285, 0, 0
    x = length - SHORTEST
    if x < 8:
        return 257 + x, 0, 0
    extra = 0
    while x >> (extra + 3) != 0:
        extra += 1
    return 257 + 4 * extra + (x >> extra), x & ((1 << extra) - 1), extra


@inline
def distance_symbol(distance):
    """(symbol, extra bits, how many) of a match's distance."""
    x = distance - 1
    if x < 4:
        return x, 0, 0
    extra = 0
    while x >> (extra + 2) != 0:
        extra += 1
    return 2 * extra + (x >> extra), x & ((1 << extra) - 1), extra


@inline
def lay_out_codes(words, table, length):
    """Codes from their lengths: shorter ones first, equal ones in the order of their symbols."""
    for size in range(16):
        words[LENGTHS + size] = 0
    for symbol in range(length):
        words[LENGTHS + words[SIZES + 288 * table + symbol]] += 1
    words[LENGTHS] = 0
    code = 0
    for size in range(1, 16):
        code = (code + words[LENGTHS + size - 1]) << 1
        value = code
        for symbol in range(length):
            if words[SIZES + 288 * table + symbol] == size:
                reverse, rest = 0, value
                for _ in range(size):
                    reverse = reverse << 1 | rest & 1
                    rest >>= 1
                words[BITS + 288 * table + symbol] = reverse
                value += 1


@inline
def make_sizes(words, table, length, limit):
    """Lengths of codes from symbols' counts: least redundancy (Moffat, Katajainen 1995), within the limit."""
    n = 0
    for symbol in range(length):
        words[SIZES + 288 * table + symbol] = 0
        count = words[COUNTS + 288 * table + symbol]
        if count:
            # By count, equal ones in their order.
            at = n
            while at > 0 and words[KEYS + at - 1] > count:
                words[KEYS + at], words[PLACES + at] = words[KEYS + at - 1], words[PLACES + at - 1]
                at -= 1
            words[KEYS + at], words[PLACES + at] = count, symbol
            n += 1
    for i in range(64):
        words[LENGTHS + i] = 0
    if n == 1:
        words[KEYS] = 1
    elif n > 1:
        words[KEYS] += words[KEYS + 1]
        root, leaf = 0, 2
        for new in range(1, n - 1):
            if leaf >= n or words[KEYS + root] < words[KEYS + leaf]:
                words[KEYS + new] = words[KEYS + root]
                words[KEYS + root] = new
                root += 1
            else:
                words[KEYS + new] = words[KEYS + leaf]
                leaf += 1
            if leaf >= n or (root < new and words[KEYS + root] < words[KEYS + leaf]):
                words[KEYS + new] += words[KEYS + root]
                words[KEYS + root] = new
                root += 1
            else:
                words[KEYS + new] += words[KEYS + leaf]
                leaf += 1
        words[KEYS + n - 2] = 0
        for new in range(n - 3, -1, -1):
            words[KEYS + new] = words[KEYS + words[KEYS + new]] + 1
        free, used, depth, root, new = 1, 0, 0, n - 2, n - 1
        while free > 0:
            while root >= 0 and words[KEYS + root] == depth:
                used += 1
                root -= 1
            while free > used:
                words[KEYS + new] = depth
                new -= 1
                free -= 1
            free, used, depth = 2 * used, 0, depth + 1
    for i in range(n):
        words[LENGTHS + min(words[KEYS + i], limit)] += 1
    if n > 1:
        total = 0
        for size in range(1, limit + 1):
            total += words[LENGTHS + size] << (limit - size)
        while total != 1 << limit:
            words[LENGTHS + limit] -= 1
            for size in range(limit - 1, 0, -1):
                if words[LENGTHS + size]:
                    words[LENGTHS + size] -= 1
                    words[LENGTHS + size + 1] += 2
                    break
            total -= 1
    at = n
    for size in range(1, limit + 1):
        for _ in range(words[LENGTHS + size]):
            at -= 1
            words[SIZES + 288 * table + words[PLACES + at]] = size


@inline
def pack_sizes(words, literals, distances):
    """Symbols, and numbers that go with them, for runs of codes' lengths -> how many."""
    n, i, total = 0, 0, literals + distances
    for symbol in range(19):
        words[COUNTS + 2 * 288 + symbol] = 0
    last, run = -1, 0
    while i < total or run > 0:
        if run == 0:
            last = words[SIZES + i] if i < literals else words[SIZES + 288 + i - literals]
            while i < total and last == (
                words[SIZES + i] if i < literals else words[SIZES + 288 + i - literals]
            ):
                run += 1
                i += 1
            # The first length of a run stands for itself; zeros need not.
            some = 0 if last == 0 else 1
        else:
            some = 0
        symbol, value = last, 0
        if some == 0:
            some = min(run, 138 if last == 0 else 6)
            if some < 3:
                some = 1
            elif last != 0:
                symbol, value = 16, some - 3
            elif some <= 10:
                symbol, value = 17, some - 3
            else:
                symbol, value = 18, some - 11
        run -= some
        words[PACKED + 2 * n], words[PACKED + 2 * n + 1] = symbol, value
        words[COUNTS + 2 * 288 + symbol] += 1
        n += 1
    return n


@inline
def make_codes(words, fixed):
    """The codes of a block -> literals, distances, packed lengths: 0 where the block does not bring codes."""
    literals, distances, packed = 286, 30, 0
    words[COUNTS + 256] = 1
    for table in range(3):
        length = 288 if table == 0 else 32 if table == 1 else 19
        if fixed:
            for symbol in range(length):
                size = 5
                if table == 0:
                    size = 8 if symbol < 144 or symbol >= 280 else 9 if symbol < 256 else 7
                words[SIZES + 288 * table + symbol] = size
        else:
            if table == 2:
                while literals > 257 and words[SIZES + literals - 1] == 0:
                    literals -= 1
                while distances > 1 and words[SIZES + 288 + distances - 1] == 0:
                    distances -= 1
                packed = pack_sizes(words, literals, distances)
            make_sizes(words, table, length, 7 if table == 2 else 15)
        lay_out_codes(words, table, length)
    return literals, distances, packed


@inline
def write_codes(words, codes, end, order, literals, distances, packed, out):
    """A block's own codes, if it has any, and what they stand for: in groups of eight behind a byte that says
    which are matches."""
    count = 19
    while count > 4 and words[SIZES + 2 * 288 + order[count - 1]] == 0:
        count -= 1
    step, steps = 0, (1 + count + packed) if packed else 0
    at, flags, left = 0, 0, 0
    while True:
        if step < steps:
            if step == 0:
                value, bits = literals - 257 | (distances - 1) << 5 | (count - 4) << 10, 14
            elif step <= count:
                value, bits = words[SIZES + 2 * 288 + order[step - 1]], 3
            else:
                i = step - 1 - count
                symbol = words[PACKED + 2 * i]
                value, bits = words[BITS + 2 * 288 + symbol], words[SIZES + 2 * 288 + symbol]
                if symbol >= 16:
                    value |= words[PACKED + 2 * i + 1] << bits
                    bits += 2 if symbol == 16 else 3 if symbol == 17 else 7
            step += 1
        elif at >= end:
            break
        else:
            if left == 0:
                flags, left = np.int64(codes[at]), 8
                at += 1
                if at >= end:
                    break
            match = flags & 1
            flags, left = flags >> 1, left - 1
            symbol = np.int64(codes[at])
            at += 1
            if match:
                symbol, extra, more = length_symbol(symbol + SHORTEST)
                value, bits = (
                    words[BITS + symbol] | extra << words[SIZES + symbol],
                    words[SIZES + symbol] + more,
                )
                distance = np.int64(codes[at]) + (np.int64(codes[at + 1]) << 8) + 1
                at += 2
                symbol, extra, more = distance_symbol(distance)
                value |= words[BITS + 288 + symbol] << bits
                bits += words[SIZES + 288 + symbol]
                value |= extra << bits
                bits += more
            else:
                value, bits = words[BITS + symbol], words[SIZES + symbol]
        put(words, out, value, bits)
    put(words, out, words[BITS + 256], words[SIZES + 256])


@inline
def write_block(words, codes, end, data, start, size, ahead, window, last, order, out):
    """A block of ``size`` bytes from ``start``, with codes or, where these are longer, as it is."""
    at, waiting, bits = words[OUT], words[OUT + 1], words[OUT + 2]
    fixed = size < 48
    literals, distances, packed = make_codes(words, fixed)
    put(words, out, (1 if last else 0) | (2 if fixed else 4), 3)
    write_codes(words, codes, end, order, literals, distances, packed, out)
    # The first bit of a block is not counted, as if it belonged to what is before.
    before = at + ((bits + 1) >> 3)
    if size > 32 and words[OUT] - before + 1 >= size and ahead - start <= window:
        words[OUT], words[OUT + 1], words[OUT + 2] = at, waiting, bits
        put(words, out, 1 if last else 0, 3 + ((5 - bits) & 7))
        put(words, out, size & 0xFFFF | (~size & 0xFFFF) << 16, 32)
        for i in range(size):
            out[words[OUT] + i] = data[start + i]
        words[OUT] += size
    if last:
        put(words, out, 0, -words[OUT + 2] & 7)
    for i in range(2 * 288):
        words[COUNTS + i] = 0


@inline
def longest_match(words, data, at, window, longest, length, probes):
    """Distance and length of the longest of the nearest matches; 0 and ``length`` if none is longer."""
    found, place = 0, at & MASK
    if longest <= length:
        return found, length
    while True:
        probes -= 1
        if probes == 0:
            return found, length
        there, distance = False, 0
        for _ in range(3):
            before = words[NEXT + place]
            distance = (at - before) & 0xFFFF
            if before == 0 or distance > window:
                return found, length
            place = before & MASK
            q = at - distance
            if data[q + length] == data[at + length] and data[q + length - 1] == data[at + length - 1]:
                there = True
                break
        if not there:
            continue
        if distance == 0:
            return found, length
        q, same = at - distance, 0
        while same < longest and data[q + same] == data[at + same]:
            same += 1
        if same > length:
            found, length = distance, same
            if length == longest:
                return found, length


@jit
def deflate(data, words, codes, order, probes, fewer, out):
    """Writes a deflated stream, and returns its bytes.

    Args:
        data: uint8[n]; out: uint8, with room for the most that there may be.
        words: int64[WORDS] of zeros; codes: uint8[CODES + 64].
        order: int64[19], of lengths of the codes' codes.
        probes, fewer: how many matches are looked at, in threes; fewer where one of 32 bytes is there.
    """
    n = len(data)
    at, filled, window = 0, 0, 0
    start, size = 0, 0
    flags_at, end, left = 0, 1, 8
    codes[0] = 0
    saved, saved_distance, saved_literal = 0, 0, 0
    while True:
        if at < n:
            # What lies ahead is in the chains.
            ahead = min(at + LONGEST, n)
            while filled < ahead:
                if filled >= 2:
                    p = filled - 2
                    value = np.int64(data[p]) << 10 ^ np.int64(data[p + 1]) << 5 ^ np.int64(data[filled])
                    value &= WINDOW - 1
                    words[NEXT + (p & MASK)] = words[HASH + value]
                    words[HASH + value] = p & 0xFFFF
                filled += 1
            window = min(window, WINDOW - (ahead - at))
            length = saved if saved else SHORTEST - 1
            distance, length = longest_match(
                words, data, at, window, ahead - at, length, fewer if length >= 32 else probes
            )
            if (length == SHORTEST and distance >= _FAR) or (at & MASK) == distance:
                distance, length = 0, 0
            move, take_length, take_distance, literal = 1, 0, 0, -1
            if saved:
                if length > saved:
                    literal = saved_literal
                    if length >= _LONG:
                        take_length, take_distance, move, saved = length, distance, length, 0
                    else:
                        saved, saved_distance, saved_literal = length, distance, np.int64(data[at])
                else:
                    take_length, take_distance, move, saved = saved, saved_distance, saved - 1, 0
            elif distance == 0:
                literal = np.int64(data[at])
            elif length >= _LONG:
                take_length, take_distance, move = length, distance, length
            else:
                saved, saved_distance, saved_literal = length, distance, np.int64(data[at])
            for match in range(2):
                if (take_length == 0) if match else (literal < 0):
                    continue
                codes[end] = take_length - SHORTEST if match else literal
                end += 1
                if match:
                    codes[end] = (take_distance - 1) & 0xFF
                    codes[end + 1] = (take_distance - 1) >> 8
                    end += 2
                    words[COUNTS + length_symbol(take_length)[0]] += 1
                    words[COUNTS + 288 + distance_symbol(take_distance)[0]] += 1
                else:
                    words[COUNTS + literal] += 1
                size += take_length if match else 1
                codes[flags_at] = codes[flags_at] >> 1 | match << 7
                left -= 1
                if left == 0:
                    left, flags_at = 8, end
                    codes[end] = 0
                    end += 1
            at += move
            window = min(window + move, WINDOW)
        full = end > CODES - 8 or (size > 31 * 1024 and (end * 115) >> 7 >= size)
        if full or at >= n:
            last = not full
            codes[flags_at] = codes[flags_at] >> left
            write_block(words, codes, end - (left == 8), data, start, size, at, window, last, order, out)
            if last:
                return words[OUT]
            start, size = start + size, 0
            flags_at, end, left = 0, 1, 8
            codes[0] = 0
