// Sums of buckets for multi-scalar multiplication: phases 3 to 5 of gpuprover/cuda/msm.py, and the tables of bases.
//
// All lanes of a warp go through the same additions, with points at infinity where one has nothing to add. Points in
// memory: affine ones as files hold them, XYZZ ones not reduced, since nobody but these kernels reads them.

#include "group.cuh"

constexpr u32 NONE = ~0u;
// Threads of a warp.
constexpr u32 WARP = 32 / E::LANES;
// Blocks of 128 lanes that a multiprocessor shall hold, which bounds the registers of a lane: as many as fit without a
// register spilled.
constexpr int ACCUMULATING = Fq::LIMBS == 8 ? 5 - E::LANES : 4 - E::LANES;
constexpr int COMBINING = Fq::LIMBS == 8 ? 5 - E::LANES : 2;

// Buckets ---------------------------------------------------------------------------------------------------

// Thread t of `segments` adds up entries [t·L, (t + 1)·L) of the sorted list, whatever buckets they belong to, with
// L from the number of entries and at least `shortest`. What it has of a bucket goes to sums[bucket] if the bucket
// begins in its segment, else to heads[t]; head_keys[t] is that bucket, or NONE. Empty buckets are not written. With
// `ahead`, a point is asked for while the one before it is added.
KERNEL __launch_bounds__(128, ACCUMULATING)
    accumulate(const Fq* points, const u32* sorted, const u32* starts, i64 buckets, i64 segments, i64 shortest,
               i64 ahead, i64 first_segment, Fq* sums, Fq* heads, u32* head_keys) {
    SHARED_MEMORY(unsigned char, memory);
    SharedPoint<E> sum(memory);
    sum.put(Xyzz<E>::identity());
    const i64 t = first_segment + thread_in_grid();
    const u32 entries = starts[buckets];
    const u32 length = static_cast<u32>(max((entries + segments - 1) / segments, shortest));
    const i64 begin = t * length;
    const bool busy = t < segments && begin < entries;
    if (t < segments && is_first_lane()) head_keys[t] = NONE;
    if (!__any_sync(WHOLE_WARP, busy)) return;

    u32 i = busy ? static_cast<u32>(begin) : 0;
    const u32 end = busy ? min(length, entries - i) + i : 0;
    u32 bucket = busy ? static_cast<u32>(find(starts, buckets, i)) : 0, bucket_end = busy ? starts[bucket + 1] : 0;
    bool began_before = busy && starts[bucket] < i;
    const auto finish_bucket = [&]() {
        put_point(began_before ? heads : sums, began_before ? t : bucket, sum.get());
        if (began_before && is_first_lane()) head_keys[t] = bucket;
    };

    u32 value = busy ? sorted[i] : 0;
    for (u32 k = 0; k < length; k++, i++) {
        const bool active = i < end;
        Affine<E> p{E::zero(), E::zero()};
        if (active) {
            p = negate_if(get_affine<E>(points, value & ~SIGN), (value & SIGN) != 0);
            if (i + 1 < end) {
                value = sorted[i + 1];
                if (ahead) fetch_affine_ahead<E>(points, value & ~SIGN);
            }
            if (i == bucket_end) {
                finish_bucket();
                began_before = false;
                sum.put(Xyzz<E>::identity());
                do {
                    bucket_end = starts[++bucket + 1];
                } while (bucket_end == i);
            }
        }
        add_affine_to(sum, p, active);
    }
    if (busy) finish_bucket();
}

// What follows adds points in memory up, in one kernel for all of it: compilers copy the additions into every kernel
// that has them, and take their time.
enum { MERGE_HEADS, SUM_RUNS, SUM_TREE, FINISH_SETS };

// Adds heads of the same bucket up, within a warp; they lie one after another. The sum goes to sums[bucket], or, where
// the bucket's heads begin in an earlier warp, to next[warp] and next_keys[warp].
DEVICE void merge_heads(Fq* heads, const u32* keys, i64 count, Fq* sums, Fq* next, u32* next_keys) {
    const i64 t = thread_in_grid();
    const u32 lane = threadIdx.x % 32, place = lane / E::LANES;
    const u32 key = t < count ? keys[t] : NONE;
    const bool present = key != NONE;
    const u32 before = __shfl_up_sync(WHOLE_WARP, key, E::LANES);
    // Where runs begin; a run's own beginning is the last one at or below this lane.
    const u32 starts = __ballot_sync(WHOLE_WARP, lane % E::LANES == 0 && (place == 0 || before != key));
    const u32 start = (31 - __clz(static_cast<int>(starts & ((2u << lane) - 1)))) / E::LANES;
    if (lane == 0 && t < count) next_keys[t / WARP] = NONE;
    if (!__any_sync(WHOLE_WARP, present)) return;

    for (u32 distance = 1; distance < WARP; distance *= 2) {
        const u32 other = __shfl_down_sync(WHOLE_WARP, key, distance * E::LANES);
        const bool takes = present && place + distance < WARP && other == key && (place - start) % (2 * distance) == 0;
        if (!__any_sync(WHOLE_WARP, takes)) break;
        add_to<E>(heads, t, heads, t + distance, takes);
        __syncwarp();
    }
    const bool leads = present && place == start;
    const bool continues = leads && place == 0 && t > 0 && keys[t - 1] == key;
    if (continues) {
        put_point(next, t / WARP, get_point<E>(heads, t));
        if (is_first_lane()) next_keys[t / WARP] = key;
    }
    add_to<E>(sums, key, heads, t, leads && !continues);
}

// Σ k·B_k over a set's buckets is found in three steps.
//
// 1. Thread t takes the `run` buckets from t·run on: plain[t] = Σ B, weighted[t] = Σ (1, 2, … run)·B.
DEVICE void sum_runs(const Fq* sums, const u32* starts, i64 runs, i64 run, Fq* plain, Fq* weighted) {
    const i64 t = thread_in_grid();
    const bool active = t < runs;
    if (active) {
        put_point(plain, t, Xyzz<E>::identity());
        put_point(weighted, t, Xyzz<E>::identity());
    }
    for (i64 k = run - 1; k >= 0; k--) {
        const i64 bucket = t * run + k;
        add_to<E>(plain, t, sums, bucket, active && starts[bucket] != starts[bucket + 1]);
        add_to<E>(weighted, t, plain, t, active);
    }
}

// 2. Sums of trees, in place, for arrays whose length is a power of 2. With x = plain, step s adds x[j + 2^s] to
// x[j] for the multiples j of 2^(s+1), and likewise x[j + 2^s + 2^k] to x[j + 2^k] for k < s. In the end x[0] is the
// sum of all, and x[2^k] that of the points whose index has bit k. Of `weighted`, the sum of all.
// One launch takes the steps with 2^s in [stride, stride·span), stride = 2^bits. A block of 32 threads takes, of a
// span, the x[j], the x[j + 2^k] for one k, or the weighted[j].
DEVICE void sum_tree(Fq* plain, Fq* weighted, u32 bits, u32 span) {
    const u32 kinds = bits + 2, kind = blockIdx.x % kinds, weights = kinds - 1;
    Fq* const x = kind == weights ? weighted : plain;
    const i64 origin = (static_cast<i64>(blockIdx.x / kinds * span) << bits) +
                       (kind == 0 || kind == weights ? 0 : 1ll << (kind - 1));
    u32 offsets = 1;
    for (u32 distance = 1; distance < span; distance *= 2) {
        const u32 tasks = span / (2 * distance) * offsets;
        for (u32 first = 0; first < tasks; first += 32) {
            const u32 task = first + thread_in_block(), which = task % offsets;
            const u32 j = task / offsets * 2 * distance + (which ? 1u << (which - 1) : 0);
            add_to<E>(x, origin + (static_cast<i64>(j) << bits), x, origin + (static_cast<i64>(j + distance) << bits),
                      task < tasks);
        }
        __syncthreads();
        if (kind == 0) offsets++;
    }
}

// 3. Of a set, run·Σ 2^k·x[2^k] + weighted[0], canonical. A block of 32 threads a set; a tree whose step s doubles
// 2^s times.
DEVICE void finish_sets(Fq* plain, Fq* weighted, i64 runs, i64 run, Fq* out) {
    Fq* const x = plain + blockIdx.x * runs * 4 * E::LANES;
    Fq* const sum = weighted + blockIdx.x * runs * 4 * E::LANES;
    u32 bits = 0, doublings = 0;
    while (runs >> bits > 1) bits++;
    while (run >> doublings > 1) doublings++;
    const u32 k = thread_in_block();
    for (u32 distance = 1; distance < bits; distance *= 2) {
        double_at<E>(x, 1ll << k, k % (2 * distance) == distance && k < bits, distance);
        __syncthreads();
        // What a thread changes is its own until the next barrier.
        add_to<E>(x, 1ll << k, x, 1ll << (k + distance), k % (2 * distance) == 0 && k + distance < bits);
    }
    const bool leads = k == 0;
    double_at<E>(x, 1, leads && bits > 0, doublings);
    add_to<E>(sum, 0, x, 1, leads && bits > 0);
    if (leads) {
        const Xyzz<E> p = get_point<E>(sum, 0);
        put_point(out, blockIdx.x, Xyzz<E>{reduce(p.x), reduce(p.y), reduce(p.zz), reduce(p.zzz)});
    }
}

// a and b are arrays of points that a step changes, c those that it reads or writes besides.
KERNEL __launch_bounds__(128, COMBINING)
    combine(i64 step, Fq* a, Fq* b, Fq* c, const u32* index, u32* keys, i64 count, i64 size) {
    switch (step) {
        case MERGE_HEADS: merge_heads(a, index, count, b, c, keys); break;
        case SUM_RUNS: sum_runs(c, index, count, size, a, b); break;
        case SUM_TREE: sum_tree(a, b, static_cast<u32>(count), static_cast<u32>(size)); break;
        case FINISH_SETS: finish_sets(a, b, count, size, c); break;
    }
}

// Tables ----------------------------------------------------------------------------------------------------

// out[i] = make(i, true) for i in [lo, hi), affine and canonical; all lanes call make together. A thread takes up to
// `share` points, and inverts the product of their ZZZ (Montgomery's trick). scratch: 3 coordinates a point and as many
// as share·threads.
template <class Make>
DEVICE void put_affine(Fq* out, i64 lo, i64 hi, i64 share, Fq* scratch, Make make) {
    const i64 t = thread_in_grid(), threads = threads_of_grid();
    if (!__any_sync(WHOLE_WARP, lo + t < hi)) return;
    E product = E::one();
    for (i64 k = 0; k < share; k++) {
        const i64 i = lo + k * threads + t, at = 3 * (k * threads + t);
        const bool active = i < hi;
        const Xyzz<E> p = make(i, active);
        const bool infinite = is_infinity(p);
        if (active) {
            put(out, 2 * i, p.x);
            put(out, 2 * i + 1, p.y);
            put(scratch, at, p.zz);
            put(scratch, at + 1, p.zzz);
            put(scratch, at + 2, product);
        }
        const E longer = product * p.zzz;
        if (!infinite) product = longer;
    }
    E inverted = inverse(product);
    for (i64 k = share - 1; k >= 0; k--) {
        const i64 i = lo + k * threads + t, at = 3 * (k * threads + t);
        const bool active = i < hi;
        E x = E::zero(), y = E::zero(), zz = E::zero(), zzz = E::zero(), before = E::zero();
        if (active) {
            x = get<E>(out, 2 * i);
            y = get<E>(out, 2 * i + 1);
            zz = get<E>(scratch, at);
            zzz = get<E>(scratch, at + 1);
            before = get<E>(scratch, at + 2);
        }
        const bool infinite = is_zero(zz);
        const E by_zzz = inverted * before;
        const E by_z = zz * by_zzz;
        x = x * square(by_z);
        y = y * by_zzz;
        const E shorter = inverted * zzz;
        if (!infinite) inverted = shorter;
        if (active) {
            put(out, 2 * i, infinite ? E::zero() : reduce(x));
            put(out, 2 * i + 1, infinite ? E::zero() : reduce(y));
        }
    }
}

// next[i] = 2^doublings·row[i] for i in [lo, hi); share and scratch as above.
KERNEL __launch_bounds__(128) multiply_row(const Fq* row, Fq* next, i64 lo, i64 hi, i64 doublings, i64 share,
                                           Fq* scratch) {
    put_affine(next, lo, hi, share, scratch, [&](i64 i, bool active) {
        Affine<E> base{E::zero(), E::zero()};
        if (active) base = get_affine<E>(row, i);
        Xyzz<E> p = from_affine(base);
        for (i64 d = 0; d < doublings; d++) p = doubled(p);
        return p;
    });
}

// Multiples of one point: out[i] = s·P for the canonical scalar s of `words` 64-bit words at scalars[i·words], with
// table[255·w + d − 1] = d·2^(8w)·P for the bytes w of a scalar; share and scratch as above.
KERNEL __launch_bounds__(128, 2) multiply_fixed(const Fq* table, const u64* scalars, i64 words, Fq* out, i64 lo, i64 hi,
                                                i64 share, Fq* scratch) {
    SHARED_MEMORY(unsigned char, memory);
    SharedPoint<E> sum(memory);
    put_affine(out, lo, hi, share, scratch, [&](i64 i, bool active) {
        sum.put(Xyzz<E>::identity());
        for (i64 w = 0; w < 8 * words; w++) {
            const u32 d = active ? static_cast<u32>(scalars[i * words + w / 8] >> (w % 8 * 8)) & 255 : 0;
            Affine<E> p{E::zero(), E::zero()};
            if (d != 0) p = get_affine<E>(table, 255 * w + d - 1);
            add_affine_to(sum, p, d != 0);
        }
        return sum.get();
    });
}
