// Scalars of a multi-scalar multiplication as entries sorted by bucket; phases 1 and 2 of gpuprover/cuda/msm.py.
//
// A scalar s becomes s or r − s, whichever is smaller, and that Σ d_w·2^(cw) with digits −2^(c−1) < d_w <= 2^(c−1).
// Each digit other than 0 is an entry: its bucket is set·2^(c−1) + |d| − 1, where w = row·sets + set, and its value
// row·points + i, for scalar i and rows of so many points, with the sign in the highest bit.
//
// Counting sort, the high bits of the bucket first: a bin is 2^low buckets. Blocks count in shared memory, take
// their places in a bin by one addition to its counter, and then write. The order within a bucket is left open.

#include "field.cuh"
#include "launch.cuh"

enum { CANONICAL, MONTGOMERY };

constexpr u32 SIGN = 1u << 31;

// Adds 1 to a counter in shared memory for every lane that counts, and returns what it held before. The lanes that
// agree with the first one make one addition of it, or a counter that all want would be taken 32 times over.
// All lanes of the warp take part.
DEVICE u32 count_in(u32* counters, u32 which, bool counts) {
    const u32 lane = threadIdx.x % 32, votes = __ballot_sync(WHOLE_WARP, counts);
    if (!votes) return 0;
    const int first = __ffs(static_cast<int>(votes)) - 1;
    const u32 wanted = __shfl_sync(WHOLE_WARP, which, first);
    const bool agrees = counts && which == wanted;
    const u32 same = __ballot_sync(WHOLE_WARP, agrees);
    u32 before = 0;
    if (static_cast<int>(lane) == first) before = atomicAdd(&counters[which], static_cast<u32>(__popc(same)));
    before = __shfl_sync(WHOLE_WARP, before, first) + static_cast<u32>(__popc(same & ((1u << lane) - 1)));
    if (counts && !agrees) before = atomicAdd(&counters[which], 1u);
    return before;
}

// The sum of the values of the threads before this one; total is that of all. Takes 33 words of shared memory.
DEVICE u32 sum_before(u32 value, u32* shared, u32& total) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    u32 sum = value;
    for (u32 delta = 1; delta < 32; delta *= 2) {
        const u32 below = __shfl_up_sync(WHOLE_WARP, sum, delta);
        if (lane >= delta) sum += below;
    }
    if (lane == 31) shared[warp] = sum;
    __syncthreads();
    if (warp == 0) {
        u32 of_warps = lane < warps ? shared[lane] : 0;
        for (u32 delta = 1; delta < 32; delta *= 2) {
            const u32 below = __shfl_up_sync(WHOLE_WARP, of_warps, delta);
            if (lane >= delta) of_warps += below;
        }
        __syncwarp();  // shuffles order no accesses to memory
        shared[lane + 1] = of_warps;
        if (lane == 0) shared[0] = 0;
    }
    __syncthreads();
    const u32 before = shared[warp] + sum - value;
    total = shared[warps];
    __syncthreads();
    return before;
}

DEVICE Fr load_scalar(const u64* scalars, i64 words, i64 form, i64 i) {
    if (form == MONTGOMERY) return reduce(load(reinterpret_cast<const Fr*>(scalars), i) * Fr::bare_one());
    Fr s = Fr::zero();
#pragma unroll
    for (int k = 0; k < Fr::LIMBS / 2; k++) {
        const u64 word = k < words ? scalars[i * words + k] : 0;
        s.limb[2 * k] = static_cast<u32>(word);
        s.limb[2 * k + 1] = static_cast<u32>(word >> 32);
    }
    return s;
}

// Calls use(bucket, value, whether there is such a digit) for the digits of scalar i, by all lanes of a warp together.
template <class Use>
DEVICE void visit_digits(const u64* scalars, i64 words, i64 form, i64 i, i64 n, i64 points, i64 c, i64 windows, i64 sets,
                         Use use) {
    const u32 mask = (1u << c) - 1, half = 1u << (c - 1);
    Fr s = i < n ? load_scalar(scalars, words, form, i) : Fr::zero();
    Fr t;
    t.limb[0] = sub_cc(Fr::modulus().limb[0], s.limb[0]);
#pragma unroll
    for (int k = 1; k < Fr::LIMBS; k++) t.limb[k] = subc_cc(Fr::modulus().limb[k], s.limb[k]);
    sub_cc(t.limb[0], s.limb[0]);
#pragma unroll
    for (int k = 1; k < Fr::LIMBS; k++) subc_cc(t.limb[k], s.limb[k]);
    const bool negated = subc(0, 0) != 0;
#pragma unroll
    for (int k = 0; k < Fr::LIMBS; k++) s.limb[k] = negated ? t.limb[k] : s.limb[k];

    u32 carry = 0, row = static_cast<u32>(i);
    i64 set = 0;
    for (i64 w = 0; w < windows; w++) {
        u32 rest = carry;
#pragma unroll
        for (int k = 0; k < Fr::LIMBS; k++) rest |= s.limb[k];
        if (!__any_sync(WHOLE_WARP, rest != 0)) break;
        const u32 digit = (s.limb[0] & mask) + carry;
        carry = digit > half;
        const u32 size = carry ? mask + 1 - digit : digit;
        use(static_cast<u32>(set) * half + size - 1, row | (negated != (carry != 0) ? SIGN : 0), size != 0);
#pragma unroll
        for (int k = 0; k < Fr::LIMBS - 1; k++) s.limb[k] = s.limb[k] >> c | s.limb[k + 1] << (32 - c);
        s.limb[Fr::LIMBS - 1] >>= c;
        if (++set == sets) {
            set = 0;
            row += static_cast<u32>(points);
        }
    }
}

// Entries of each bin among `share` scalars a block: added to counts[bins], and what was there before to
// places[block][bin]. Shared memory: bins words.
KERNEL count_bins(const u64* scalars, i64 words, i64 form, i64 n, i64 points, i64 share, i64 c, i64 windows, i64 sets,
                  i64 low, i64 bins, u32* counts, u32* places) {
    SHARED_MEMORY(u32, counters);
    for (i64 k = threadIdx.x; k < bins; k += blockDim.x) counters[k] = 0;
    __syncthreads();
    const i64 start = blockIdx.x * share;
    for (i64 k = 0; k < share; k += blockDim.x) {
        visit_digits(scalars, words, form, start + k + threadIdx.x, n, points, c, windows, sets,
                     [&](u32 bucket, u32, bool any) { count_in(counters, bucket >> low, any); });
    }
    __syncthreads();
    for (i64 k = threadIdx.x; k < bins; k += blockDim.x) {
        places[blockIdx.x * bins + k] = counters[k] ? atomicAdd(&counts[k], counters[k]) : 0;
    }
}

// Where bins begin, and the tiles of at most `tile` entries that they are cut into: starts[bins + 1],
// tiles[bins + 1]. One block; shared memory: 33 words.
KERNEL place_bins(const u32* counts, i64 bins, i64 tile, u32* starts, u32* tiles) {
    SHARED_MEMORY(u32, shared);
    u32 entries = 0, cut = 0;
    for (i64 k = 0; k < bins; k += blockDim.x) {
        const i64 bin = k + threadIdx.x;
        const u32 count = bin < bins ? counts[bin] : 0;
        u32 total, total_cut;
        const u32 start = sum_before(count, shared, total);
        const u32 first = sum_before(static_cast<u32>((count + tile - 1) / tile), shared, total_cut);
        if (bin < bins) {
            starts[bin] = entries + start;
            tiles[bin] = cut + first;
        }
        entries += total;
        cut += total_cut;
    }
    if (threadIdx.x == 0) {
        starts[bins] = entries;
        tiles[bins] = cut;
    }
}

// Writes the entries that count_bins() counted to their bins: of the bucket, the low bits are left to tell.
KERNEL scatter_bins(const u64* scalars, i64 words, i64 form, i64 n, i64 points, i64 share, i64 c, i64 windows, i64 sets,
                    i64 low, i64 bins, const u32* starts, const u32* places, unsigned short* keys, u32* values) {
    SHARED_MEMORY(u32, counters);
    for (i64 k = threadIdx.x; k < bins; k += blockDim.x) {
        counters[k] = starts[k] + places[blockIdx.x * bins + k];
    }
    __syncthreads();
    const u32 mask = (1u << low) - 1;
    const i64 start = blockIdx.x * share;
    for (i64 k = 0; k < share; k += blockDim.x) {
        visit_digits(scalars, words, form, start + k + threadIdx.x, n, points, c, windows, sets,
                     [&](u32 bucket, u32 value, bool any) {
                         const u32 place = count_in(counters, bucket >> low, any);
                         if (any) {
                             keys[place] = static_cast<unsigned short>(bucket & mask);
                             values[place] = value;
                         }
                     });
    }
}

// A tile's bin and entries; false where the grid has more blocks than there are tiles.
DEVICE bool find_tile(const u32* starts, const u32* tiles, i64 bins, i64 tile, i64& bin, i64& lo, i64& hi) {
    if (blockIdx.x >= tiles[bins]) return false;
    bin = find(tiles, bins, blockIdx.x);
    lo = starts[bin] + (blockIdx.x - tiles[bin]) * tile;
    hi = min(lo + tile, static_cast<i64>(starts[bin + 1]));
    return true;
}

// Entries of each bucket in a tile: added to counts[bin << low | key], and what was there before to
// places[tile][key]. Shared memory: 2^low words.
KERNEL count_buckets(const unsigned short* keys, const u32* starts, const u32* tiles, i64 bins, i64 tile, i64 low,
                     u32* counts, u32* places) {
    SHARED_MEMORY(u32, counters);
    i64 bin, lo, hi;
    if (!find_tile(starts, tiles, bins, tile, bin, lo, hi)) return;
    const i64 width = 1ll << low;
    for (i64 k = threadIdx.x; k < width; k += blockDim.x) counters[k] = 0;
    __syncthreads();
    for (i64 k = lo; k < hi; k += blockDim.x) {
        const i64 i = k + threadIdx.x;
        count_in(counters, i < hi ? keys[i] : 0, i < hi);
    }
    __syncthreads();
    for (i64 k = threadIdx.x; k < width; k += blockDim.x) {
        places[blockIdx.x * width + k] = counters[k] ? atomicAdd(&counts[bin * width + k], counters[k]) : 0;
    }
}

// Where buckets begin, in place of their counts; one block a bin, and counts[buckets] for the end. Shared memory:
// 33 words.
KERNEL place_buckets(const u32* starts, i64 bins, i64 low, u32* counts) {
    SHARED_MEMORY(u32, shared);
    const i64 width = 1ll << low;
    u32 entries = starts[blockIdx.x];
    for (i64 k = 0; k < width; k += blockDim.x) {
        const i64 key = k + threadIdx.x;
        u32* const at = &counts[blockIdx.x * width + key];
        u32 total;
        const u32 start = sum_before(key < width ? *at : 0, shared, total);
        if (key < width) *at = entries + start;
        entries += total;
    }
    if (blockIdx.x == bins - 1 && threadIdx.x == 0) counts[bins * width] = entries;
}

// Writes the values of the entries in the order of buckets.
KERNEL scatter_buckets(const unsigned short* keys, const u32* values, const u32* starts, const u32* tiles, i64 bins,
                       i64 tile, i64 low, const u32* buckets, const u32* places, u32* sorted) {
    SHARED_MEMORY(u32, counters);
    i64 bin, lo, hi;
    if (!find_tile(starts, tiles, bins, tile, bin, lo, hi)) return;
    const i64 width = 1ll << low;
    for (i64 k = threadIdx.x; k < width; k += blockDim.x) {
        counters[k] = buckets[bin * width + k] + places[blockIdx.x * width + k];
    }
    __syncthreads();
    for (i64 k = lo; k < hi; k += blockDim.x) {
        const i64 i = k + threadIdx.x;
        const u32 place = count_in(counters, i < hi ? keys[i] : 0, i < hi);
        if (i < hi) sorted[place] = values[i];
    }
}
