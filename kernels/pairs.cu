// Affine additions in pairs, which halve the points of every bucket before accumulate of msm.cu adds up what is left:
// a variant of phase 3 of gpuprover/cuda/msm.py.
//
// A sum of affine points takes two products, a square and a division; divisions share inversions at three products each
// (Montgomery's trick). That is five products and a square, where an XYZZ point + an affine one takes six, two and a
// sum of two products.
//
// Lists. List 0 holds the entries of digits.cu, list k + 1 the sums of pairs of list k, as affine points that are not
// reduced. Bucket b has ⌈count/2^k⌉ points in list k, from first_k(b) on:
//     first_0(b) = starts[b], first_(k+1)(b) = ⌊(first_k(b) + b)/2⌋.
// As ⌊(u + v)/2⌋ >= ⌊u/2⌋ + ⌊v/2⌋, the next bucket begins behind its last point, and nobody has to add counts up. What
// is left between them, less than a place a bucket in each list, is infinity.

#include "group.cuh"

// Lanes of a block, which share an inversion in each lane of its first warp.
constexpr int PAIRING = 256;
constexpr int RESIDENT = Fq::LIMBS == 8 ? 2 : 1;

struct List {
    const u32* starts;
    u32 number;

    // Entries and buckets together are fewer than 2^32.
    DEVICE u32 first(u32 bucket) const {
        u32 at = starts[bucket];
#pragma unroll 1
        for (u32 k = 0; k < number; k++) at = (at + bucket) >> 1;
        return at;
    }

    DEVICE u32 count(u32 bucket) const {
        const u32 entries = starts[bucket + 1] - starts[bucket];
        return (entries >> number) + ((entries & ((1u << number) - 1)) != 0);
    }

    // The last bucket of `buckets` that begins at a place or before it.
    DEVICE u32 bucket_at(u32 buckets, u32 place) const {
        u32 low = 0, high = buckets - 1;
        while (low < high) {
            const u32 middle = (low + high + 1) / 2;
            if (first(middle) <= place) {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        return low;
    }
};

// Where the points of a pair lie in a list: the first two of the `count` points from `first` on, one, or none if it is
// 0 or less.
struct Pair {
    u32 first;
    i64 count;
};

// Goes from one place of a list to its neighbours, and says which points of the list before belong there.
class Walk {
    List from, to;
    u32 bucket, begin, end, source, sources;

    DEVICE void enter(u32 next) {
        bucket = next;
        begin = to.first(bucket);
        end = to.first(bucket + 1);
        source = from.first(bucket);
        sources = from.count(bucket);
    }

public:
    DEVICE Walk(const List& from, const List& to, u32 buckets, u32 place) : from(from), to(to) {
        enter(to.bucket_at(buckets, place));
    }

    DEVICE Pair at(u32 place) {
#pragma unroll 1
        while (place < begin || place >= end) enter(place < begin ? bucket - 1 : bucket + 1);
        const u32 before = 2 * (place - begin);
        return {source + before, static_cast<i64>(sources) - before};
    }
};

// Points of a list, or of a table by entries.
struct Source {
    const Fq* points;
    const u32* entries;

    DEVICE u32 entry(u32 i) const { return entries != nullptr ? entries[i] : i; }
    DEVICE E x(u32 i) const { return get<E>(points, 2 * static_cast<i64>(entry(i) & ~SIGN)); }
    DEVICE Affine<E> point(u32 i) const {
        const u32 e = entry(i);
        return negate_if(get_affine<E>(points, e & ~SIGN), (e & SIGN) != 0);
    }
};

// What p + q is, with what it is divided by.
enum : u32 { INFINITY_, FIRST, SECOND, SUM, DOUBLE };

struct Addition {
    Affine<E> p, q;
    E divisor;
    u32 kind;
};

// All lanes of a warp call this together. WHOLE: p and q are loaded, not only as much of them as tells the divisor.
template <bool WHOLE>
DEVICE Addition addition_of(const Source& source, const Pair& pair) {
    Addition a{{E::zero(), E::zero()}, {E::zero(), E::zero()}, E::zero(), SUM};
    const auto load_whole = [&]() {
        if (pair.count > 0) a.p = source.point(pair.first);
        if (pair.count > 1) a.q = source.point(pair.first + 1);
    };
    if (WHOLE) {
        load_whole();
    } else {
        if (pair.count > 0) a.p.x = source.x(pair.first);
        if (pair.count > 1) a.q.x = source.x(pair.first + 1);
    }
    a.divisor = a.q.x - a.p.x;
    const bool is_special = is_zero(a.p.x) | is_zero(a.q.x) | is_zero(a.divisor);
    if (E::any(is_special)) {
        if (!WHOLE) load_whole();
        const bool no_p = is_infinity(a.p), no_q = is_infinity(a.q);
        const bool same = is_zero(a.divisor), opposite = is_zero(a.p.y + a.q.y);
        if (no_p) {
            a.kind = no_q ? INFINITY_ : SECOND;
        } else if (no_q) {
            a.kind = FIRST;
        } else if (same) {
            a.kind = opposite ? INFINITY_ : DOUBLE;
        }
        a.divisor = choose(a.kind == SUM, a.divisor, choose(a.kind == DOUBLE, twice(a.p.y), E::one()));
    }
    return a;
}

// p + q, with 1/divisor.
DEVICE Affine<E> added(const Addition& a, const E& inverted) {
    E numerator = a.q.y - a.p.y;
    if (E::any(a.kind == DOUBLE)) {
        const E xx = square(a.p.x);
        numerator = choose(a.kind == DOUBLE, twice(xx) + xx, numerator);
    }
    const E slope = numerator * inverted;
    const E x = square(slope) - a.p.x - a.q.x;
    const E y = slope * (a.p.x - x) - a.p.y;
    if (a.kind >= SUM) return {x, y};
    if (a.kind == INFINITY_) return {E::zero(), E::zero()};
    return a.kind == FIRST ? a.p : a.q;
}

// The inverses of one element of each of the block's threads; none is 0. Each lane of the first warp inverts the product
// of those that all warps have in that lane. Shared memory: two elements a thread.
DEVICE E inverted_in_block(const E& own, unsigned char* memory) {
    SharedPoint<E> here(memory);
    here.put(0, own);
    __syncthreads();
    const u32 warps = blockDim.x / 32;
    if (threadIdx.x < 32) {
        E product = E::one();
        for (u32 w = 0; w < warps; w++) {
            SharedPoint<E> there(memory, 32 * w + threadIdx.x);
            there.put(1, product);
            product = product * there.get(0);
        }
        product = inverse(product);
        for (u32 w = warps; w-- > 0;) {
            SharedPoint<E> there(memory, 32 * w + threadIdx.x);
            const E element = there.get(0);
            there.put(0, product * there.get(1));
            product = product * element;
        }
    }
    __syncthreads();
    return here.get(0);
}

// List round + 1 from list `round`, or from entries if they are not null. `threads` take equally many places; this launch
// has those from first_thread on. Shared memory: two elements a thread.
KERNEL __launch_bounds__(PAIRING, RESIDENT)
    add_pairs(const Fq* points, const u32* entries, const u32* starts, i64 buckets, i64 round, i64 threads,
              i64 first_thread, Fq* out) {
    SHARED_MEMORY(unsigned char, memory);
    const List from{starts, static_cast<u32>(round)}, to{starts, static_cast<u32>(round) + 1};
    const Source source{points, entries};
    const u32 places = to.first(static_cast<u32>(buckets)), share = static_cast<u32>((places + threads - 1) / threads);
    const i64 first_of_block = first_thread + static_cast<i64>(blockIdx.x) * blockDim.x / E::LANES;
    if (first_of_block * share >= places) return;
    const i64 begin = (first_thread + thread_in_grid()) * share;
    const u32 first = static_cast<u32>(min(begin, static_cast<i64>(places)));
    const u32 mine = min(share, places - first);

    // 1. In the place of a sum stands the product of the divisors before it.
    Walk walk(from, to, static_cast<u32>(buckets), first);
    E product = E::one();
#pragma unroll 1
    for (u32 k = 0; k < share; k++) {
        const bool active = k < mine;
        const Pair pair = active ? walk.at(first + k) : Pair{0, 0};
        const Addition a = addition_of<false>(source, pair);
        if (active) put(out, 2 * static_cast<i64>(first + k), product);
        product = product * a.divisor;
    }
    // 2. Back from the last one, with the inverse of the product of all divisors up to this one.
    E inverted = inverted_in_block(product, memory);
#pragma unroll 1
    for (u32 k = share; k-- > 0;) {
        const bool active = k < mine;
        const i64 place = first + k;
        const Pair pair = active ? walk.at(first + k) : Pair{0, 0};
        const Addition a = addition_of<true>(source, pair);
        E before = E::zero();
        if (active) before = get<E>(out, 2 * place);
        const Affine<E> sum = added(a, inverted * before);
        inverted = inverted * a.divisor;
        if (active) {
            put(out, 2 * place, sum.x);
            put(out, 2 * place + 1, sum.y);
        }
    }
}

// List `round` as accumulate of msm.cu takes one: where buckets begin, and which point stands where.
KERNEL list_pairs(const u32* starts, i64 buckets, i64 round, u32* list_starts, u32* list) {
    const List from{starts, static_cast<u32>(round)};
    for (i64 i = first_index(0); i <= buckets; i += thread_count()) list_starts[i] = from.first(static_cast<u32>(i));
    const u32 places = from.first(static_cast<u32>(buckets));
    for (i64 i = first_index(0); i < places; i += thread_count()) list[i] = static_cast<u32>(i);
}
