// The number-theoretic transform: in place, up to 2^8 points a pass, without a permutation of its own.
//
// Going down (Cooley, Tukey 1965; in this order of twiddles Gentleman, Sande 1966 transposed). A polynomial mod
// x^n − s² is split into its remainders mod x^(n/2) − s and x^(n/2) + s, one level at a time, until the remainders are
// values. At a level of 2^m blocks, block b has the root s = W[b], where
//     W[x] = ω_2N^(bits of x in reverse), ω_2N² = ω, N = 2^log_n, x of log_n bits.
// W does not depend on the level, nor, but for its length, on N. Input is in natural order; value k ends at position
// rev(k). On the coset g·⟨ω⟩ with g = ω_2N the polynomial is reduced mod x^N + 1 instead: that is block 1 of two, and
// block b of 2^m has the root W[2^m + b]. It costs nothing more.
//
// Going up: the transposed steps in the opposite order. As the transform is a symmetric matrix, that takes coefficients
// in reversed order to values in natural order; with W⁻¹ it undoes the way down. W⁻¹[x] = −W[x with all bits below its
// highest one turned].
//
// Where a coset cannot go into the roots (down and inverse, up and forward), coefficient i is multiplied by g^±i at
// the end of the way down, or at the start of the way up: position p holds i = rev(p), and g^i = W[p].
//
// A pass does `levels` levels on tiles. Position = (block, row, s): block has `done` bits, row `levels` bits, s the
// rest; a column is (block, s), and a tile all rows of some consecutive columns. No two tiles share an element, so that
// passes work in place. A tile is in shared memory; a thread takes 8 elements at a time into registers and does up to
// three levels on them, a stage. Twiddles are read where they are needed: but for the last levels of the last pass many
// lanes share each. Of the n/2·log_n products n − 1 have the factor W[0] = 1 and are left out, most of them by whole
// warps: log_n/2 − 1 an element remain, log_n/2 on a coset.

#include "constant.cuh"
#include "launch.cuh"
#include "powers.cuh"

enum { FORWARD, INVERSE };

// A thread's elements, as bits: what fits its registers at two blocks of 256 threads a multiprocessor.
constexpr u32 LOG_OWN = 3;
constexpr int OWN = 1 << LOG_OWN;
constexpr u32 THREADS = 256;

// Tables ----------------------------------------------------------------------------------------------------

// table[x] = Π roots[m] over the bits m of x. With roots[m] = W[2^m], a root of order 2^(m + 2), table[x] = W[x].
KERNEL ntt_table(const Fr* roots, const Fr* minus_inverse_of_p, Constant* table, i64 count) {
    const Fr n = load(minus_inverse_of_p, 0);
    for (i64 x = first_index(0); x < count; x += thread_count()) {
        table[x] = constant_of(product_of_bits(roots, static_cast<u64>(x)), n);
    }
}

// v[i] ← v[i]·Π factors[m] over the bits m of i: powers in natural or in reversed order.
KERNEL ntt_scale(Fr* v, const Fr* factors, i64 count) {
    for (i64 i = first_index(0); i < count; i += thread_count()) {
        store(v, i, load(v, i) * product_of_bits(factors, static_cast<u64>(i)));
    }
}

// x·W[i], or x·W⁻¹[i]; i is not 0. The table holds W up to 2^log_table, which is all that is asked for, unless COMPACT
// is defined: then W at multiples of 2^log_table follows, and W[high + low] = W[high]·W[low] as they share no bit.
DEVICE Fr times_root(const Fr& x, const Constant* table, u32 log_table, u32 i, bool inverse) {
    if (inverse) i ^= (1u << (31 - __clz(static_cast<int>(i)))) - 1;
#ifdef COMPACT
    Fr y = x;
    if (i >> log_table != 0) y = y * Constant(table[(1ll << log_table) + (i >> log_table)]);
    Constant w = table[i & ((1u << log_table) - 1)];
#else
    (void)log_table;
    const Fr& y = x;
    Constant w = table[i];
#endif
    if (inverse) w = -w;
    return y * w;
}

// x/2^k for k in [1, 32]: x + m·p with m such that the lower k bits vanish. Below x/2^k + p, so in the range of x.
DEVICE Fr divide_by_power_of_two(const Fr& x, u32 k) {
    const Fr p = Fr::modulus();
    const u32 m = cancelling<FrConstants>(x.limb[0]) & (~0u >> (32 - k));
    u32 sum[Fr::LIMBS + 1];
    u64 carry = 0;
#pragma unroll
    for (int i = 0; i < Fr::LIMBS; i++) {
        carry += static_cast<u64>(m) * p.limb[i] + x.limb[i];
        sum[i] = static_cast<u32>(carry);
        carry >>= 32;
    }
    sum[Fr::LIMBS] = static_cast<u32>(carry);
    Fr result;
#pragma unroll
    for (int i = 0; i < Fr::LIMBS; i++) {
        result.limb[i] = static_cast<u32>((static_cast<u64>(sum[i + 1]) << 32 | sum[i]) >> k);
    }
    return result;
}

// Levels ----------------------------------------------------------------------------------------------------
//
// The elements of a thread differ in three bits of their index. A level takes pairs that differ in the highest and
// turns the bits, so that the next level finds its own there: register (c, b, a) is element (a, c, b). In this way one
// piece of code, and half the instructions, serves every level. Level i of a stage has the roots of blocks
// (block << i) + the i bits of the levels before, which the turning has brought to the bottom.

// (a, b) -> (a + w·b, a − w·b).
DEVICE void level_down(Fr (&x)[OWN], const Constant* table, u32 log_table, u32 block, u32 mask, bool inverse) {
    Fr y[OWN];
#pragma unroll
    for (int e = 0; e < OWN / 2; e++) {
        const u32 index = block + (static_cast<u32>(e) & mask);
        Fr b = x[e + OWN / 2];
        if (index != 0) b = times_root(b, table, log_table, index, inverse);
        y[2 * e] = x[e] + b;
        y[2 * e + 1] = x[e] - b;
    }
#pragma unroll
    for (int e = 0; e < OWN; e++) x[e] = y[e];
}

// (a, b) -> (a + b, w·(a − b)), after turning the bits back.
DEVICE void level_up(Fr (&x)[OWN], const Constant* table, u32 log_table, u32 block, u32 mask, bool inverse) {
    Fr y[OWN];
#pragma unroll
    for (int e = 0; e < OWN / 2; e++) {
        const u32 index = block + (static_cast<u32>(e) & mask);
        y[e] = x[2 * e] + x[2 * e + 1];
        Fr b = x[2 * e] - x[2 * e + 1];
        if (index != 0) b = times_root(b, table, log_table, index, inverse);
        y[e + OWN / 2] = b;
    }
#pragma unroll
    for (int e = 0; e < OWN; e++) x[e] = y[e];
}

DEVICE void reduce_all(Fr (&x)[OWN]) {
#pragma unroll
    for (int m = 0; m < OWN; m++) x[m] = reduce(x[m]);
}

// Tiles -----------------------------------------------------------------------------------------------------
//
// Where an element lies, in global and in shared memory, is a function of its index that only moves bits and adds them
// mod 2. What a thread needs of such a function are one value and a difference for each bit of its own.

DEVICE constexpr int lowest_bit(int k) { return k & 1 ? 0 : 1 + lowest_bit(k >> 1); }

// values[k] for k of BITS bits: first, with the differences of the bits that are set in k.
template <int BITS, class Difference>
DEVICE void spread(u32 (&values)[1 << BITS], u32 first, Difference difference) {
    u32 differences[BITS];
#pragma unroll
    for (int bit = 0; bit < BITS; bit++) differences[bit] = difference(bit);
    values[0] = first;
#pragma unroll
    for (int k = 1; k < 1 << BITS; k++) values[k] = values[k & (k - 1)] ^ differences[lowest_bit(k)];
}

// The lowest n bits of x, which has no others, in reverse.
DEVICE u32 reversed(u32 x, u32 n) { return n == 0 ? 0 : __brev(x) >> (32 - n); }

// Which elements of a vector a tile holds, and where. In a tile an element's index is (row, column), or, where rows
// are neighbours in the vector, (column, row): neighbouring lanes then have neighbouring roots.
struct Pass {
    u32 log_n, done, levels, log_stride;
    u32 log_size, log_columns, first_column;
    u32 row_shift, column_shift;
    // In shared memory the bits of an index from these on turn its lowest ones.
    u32 turns, also_turns, turned;
    // Column k is block rev(k), so that neighbouring columns are neighbours in a result in natural order.
    bool natural;

    DEVICE u32 row_of(u32 index) const { return index >> row_shift & ((1u << levels) - 1); }
    DEVICE u32 column_of(u32 index) const { return index >> column_shift & ((1u << log_columns) - 1); }

    // The block of a column; vectors of fewer elements than a tile leave columns empty, which have none.
    DEVICE u32 block(u32 column) const {
        const u32 b = column >> log_stride & ((1u << done) - 1);
        return natural ? reversed(b, done) : b;
    }

    // Where an element lies in a vector; at or after its end if the column is empty.
    DEVICE u32 position(u32 row, u32 column) const {
        const u32 s = column & ((1u << log_stride) - 1);
        return column >> (done + log_stride) << log_n | block(column) << log_stride << levels | row << log_stride | s;
    }

    // The same in a result in natural order.
    DEVICE u32 natural_position(u32 row, u32 column) const {
        return column >> done << log_n | reversed(row, levels) << done | (column & ((1u << done) - 1));
    }

    // The index of the m-th element of the tile in the order in which elements lie in the vector.
    DEVICE u32 in_order(u32 m) const {
        if (row_shift == 0 || log_stride >= log_columns) return m;
        const u32 s = m & ((1u << log_stride) - 1);
        const u32 row = m >> log_stride & ((1u << levels) - 1);
        return row << row_shift | m >> (levels + log_stride) << log_stride | s;
    }

    // The same in a result in natural order, for whole runs of columns.
    DEVICE u32 in_natural_order(u32 m) const {
        return m >> log_columns << row_shift | (m & ((1u << log_columns) - 1)) << column_shift;
    }

    // Where an element lies in shared memory. Lanes that take 8 elements whose indices differ in three neighbouring
    // bits, one each, or the halves of 4, meet every bank once.
    DEVICE u32 place(u32 index) const { return index ^ ((index >> turns ^ index >> also_turns) & turned); }
};

// Shared memory holds halves of 16 bytes, the lower ones of all elements before the upper ones.
struct alignas(16) Half {
    u32 limb[Fr::LIMBS / 2];
};

struct Tile {
    Half* halves;
    u32 log_size;

    // The upper halves begin in the middle of the banks: neighbouring lanes that move the halves of 4 elements meet
    // all banks.
    DEVICE u32 upper() const { return (1u << log_size) + 4; }

    DEVICE Fr get(u32 at) const {
        const Half lower = halves[at], higher = halves[upper() + at];
        Fr x;
#pragma unroll
        for (int i = 0; i < Fr::LIMBS / 2; i++) {
            x.limb[i] = lower.limb[i];
            x.limb[Fr::LIMBS / 2 + i] = higher.limb[i];
        }
        return x;
    }

    DEVICE void put(u32 at, const Fr& x) const {
        Half lower, higher;
#pragma unroll
        for (int i = 0; i < Fr::LIMBS / 2; i++) {
            lower.limb[i] = x.limb[i];
            higher.limb[i] = x.limb[Fr::LIMBS / 2 + i];
        }
        halves[at] = lower;
        halves[upper() + at] = higher;
    }
};

// The places of a thread's elements `start` + (e << shift), register by register after `turns` levels down.
DEVICE void places_of(u32 (&at)[OWN], const Pass& pass, u32 start, u32 shift, u32 turns) {
    spread<LOG_OWN>(at, pass.place(start), [&](u32 bit) {
        const u32 turned = bit + LOG_OWN - turns;
        return pass.place(1u << (shift + (turned < LOG_OWN ? turned : turned - LOG_OWN)));
    });
}

// Each thread moves halves of 16 elements, lower or upper ones: neighbouring lanes move those of one element.
constexpr int LOG_MOVED = LOG_OWN + 1;
constexpr int MOVED = 1 << LOG_MOVED;

// Bit `bit` of what a thread counts, as the number of an element in the tile.
DEVICE u32 moved_bit(int bit) { return (blockDim.x >> 1) << bit; }

DEVICE void load_tile(const Pass& pass, const Tile& tile, const Fr* v) {
    const u32 half = threadIdx.x & 1, first = pass.in_order(threadIdx.x >> 1), end = ~0u >> (32 - pass.log_n);
    u32 positions[MOVED], places[MOVED];
    spread<LOG_MOVED>(positions, pass.position(pass.row_of(first), pass.first_column | pass.column_of(first)),
                      [&](int bit) {
                          const u32 index = pass.in_order(moved_bit(bit));
                          return pass.position(pass.row_of(index), pass.column_of(index));
                      });
    const Half* const source = reinterpret_cast<const Half*>(v) + half;
    Half moved[MOVED];
#pragma unroll
    for (int k = 0; k < MOVED; k++) moved[k] = positions[k] <= end ? source[2ull * positions[k]] : Half{};
    spread<LOG_MOVED>(places, pass.place(first), [&](int bit) { return pass.place(pass.in_order(moved_bit(bit))); });
    Half* const target = tile.halves + half * tile.upper();
#pragma unroll
    for (int k = 0; k < MOVED; k++) target[places[k]] = moved[k];
}

DEVICE void store_tile(const Pass& pass, const Tile& tile, Fr* v) {
    const auto index_of = [&](u32 m) { return pass.natural ? pass.in_natural_order(m) : pass.in_order(m); };
    const auto position = [&](u32 row, u32 column) {
        return pass.natural ? pass.natural_position(row, column) : pass.position(row, column);
    };
    const u32 half = threadIdx.x & 1, first = index_of(threadIdx.x >> 1), end = ~0u >> (32 - pass.log_n);
    u32 positions[MOVED], places[MOVED];
    spread<LOG_MOVED>(positions, position(pass.row_of(first), pass.first_column | pass.column_of(first)),
                      [&](int bit) {
                          const u32 index = index_of(moved_bit(bit));
                          return position(pass.row_of(index), pass.column_of(index));
                      });
    spread<LOG_MOVED>(places, pass.place(first), [&](int bit) { return pass.place(index_of(moved_bit(bit))); });
    const Half* const source = tile.halves + half * tile.upper();
    Half* const target = reinterpret_cast<Half*>(v) + half;
    Half moved[MOVED];
#pragma unroll
    for (int k = 0; k < MOVED; k++) moved[k] = source[places[k]];
#pragma unroll
    for (int k = 0; k < MOVED; k++) {
        if (positions[k] <= end) target[2ull * positions[k]] = moved[k];
    }
}

// What is done with the coefficients, at the lowest level.
struct Scaling {
    bool powers, inverse;  // times g^±i, i being the coefficient's index
    u32 halvings;
};

template <bool DOWN, bool UP>
DEVICE void transform(const Pass& pass, const Fr* v, Fr* out, const Constant* table, u32 log_table, bool down_inverse,
                      bool up_inverse, bool coset, const Scaling& scaling) {
    SHARED_MEMORY(Half, halves);
    const Tile tile{halves, pass.log_size};
    load_tile(pass, tile, v);
    // All stages have three levels but the first one down, whose other bits are those of the next stage.
    const u32 stages = (pass.levels + LOG_OWN - 1) / LOG_OWN;
    const u32 last_step = UP ? 2 * stages - 2 : stages - 1;
#pragma unroll 1
    for (u32 step = DOWN ? 0 : stages - 1; step <= last_step; step++) {
        const u32 stage = step < stages ? step : 2 * stages - 2 - step;
        const u32 first_levels = pass.levels - LOG_OWN * (stages - 1);
        const u32 above = stage == 0 ? 0 : first_levels + LOG_OWN * (stage - 1);
        const u32 count = stage == 0 ? first_levels : LOG_OWN;
        const u32 shift = pass.row_shift + pass.levels - LOG_OWN - above;
        const u32 start = threadIdx.x >> shift << (shift + LOG_OWN) | (threadIdx.x & ((1u << shift) - 1));
        const u32 row = pass.row_of(start), block = pass.block(pass.first_column | pass.column_of(start));
        // The blocks of this stage's first level; with a leading 1 they are those of the coset.
        const u32 prefix = block << above | row >> (pass.levels - above) | (coset ? 1u << (pass.done + above) : 0);
        Fr x[OWN];
        u32 at[OWN];
        __syncthreads();
        if (DOWN && step < stages) {
            places_of(at, pass, start, shift, 0);
#pragma unroll
            for (int m = 0; m < OWN; m++) x[m] = tile.get(at[m]);
#pragma unroll 1
            for (u32 i = 0; i < count; i++) {
                level_down(x, table, log_table, prefix << i, (1u << i) - 1, down_inverse);
            }
            if (!UP && step == last_step) reduce_all(x);
            places_of(at, pass, start, shift, count);
#pragma unroll
            for (int m = 0; m < OWN; m++) tile.put(at[m], x[m]);
        }
        if (step == stages - 1 && (scaling.powers || scaling.halvings)) {
            // A thread's own elements: no barrier is needed before or after.
#pragma unroll 1
            for (u32 m = 0; m < OWN; m++) {
                const u32 index = start + (m << shift), place = pass.place(index);
                const u32 position = block << pass.levels | pass.row_of(index);
                Fr y = tile.get(place);
                if (scaling.powers && position != 0) y = times_root(y, table, log_table, position, scaling.inverse);
                if (scaling.halvings) y = divide_by_power_of_two(y, scaling.halvings);
                tile.put(place, reduce(y));
            }
        }
        if (UP && step >= stages - 1) {
            places_of(at, pass, start, shift, count);
#pragma unroll
            for (int m = 0; m < OWN; m++) x[m] = tile.get(at[m]);
#pragma unroll 1
            for (u32 i = count; i-- > 0;) {
                level_up(x, table, log_table, prefix << i, (1u << i) - 1, up_inverse);
            }
            if (step == last_step) reduce_all(x);
            places_of(at, pass, start, shift, 0);
#pragma unroll
            for (int m = 0; m < OWN; m++) tile.put(at[m], x[m]);
        }
    }
    __syncthreads();
    store_tile(pass, tile, out);
}

// Launches --------------------------------------------------------------------------------------------------
//
// Blocks of N/2^log_size tiles for each of up to three vectors, one after the other. A block has an eighth of a
// tile's size in threads and (2·size + 4)·16 bytes of shared memory.

DEVICE Pass pass_of_block(i64 log_n, i64 done, i64 levels) {
    Pass pass;
    pass.log_n = static_cast<u32>(log_n);
    pass.done = static_cast<u32>(done);
    pass.levels = static_cast<u32>(levels);
    pass.log_stride = pass.log_n - pass.done - pass.levels;
    pass.log_size = LOG_OWN + 31 - __clz(static_cast<int>(blockDim.x));
    pass.log_columns = pass.log_size - pass.levels;
    const u32 log_tiles = pass.log_n > pass.log_size ? pass.log_n - pass.log_size : 0;
    pass.first_column = (blockIdx.x & ((1u << log_tiles) - 1)) << pass.log_columns;
    // Fewer rows than a thread has elements leave it some columns.
    const bool rows_last = pass.log_stride == 0 && pass.levels >= LOG_OWN;
    pass.row_shift = rows_last ? 0 : pass.log_columns;
    pass.column_shift = rows_last ? pass.levels : 0;
    pass.turns = rows_last ? LOG_OWN : pass.log_columns;
    pass.also_turns = rows_last ? pass.levels : 31;
    pass.turned = rows_last ? 7 : ((1u << pass.log_columns) - 1) & 7;
    pass.natural = false;
    return pass;
}

DEVICE Fr* vector_of_block(const Pass& pass, Fr* a, Fr* b, Fr* c) {
    const u32 which = blockIdx.x >> (pass.log_n > pass.log_size ? pass.log_n - pass.log_size : 0);
    return which == 0 ? a : which == 1 ? b : c;
}

// Levels [done, done + levels) down: natural order to reversed. If `natural` is not null, this is the last pass, and
// its results go there instead, in natural order.
KERNEL __launch_bounds__(THREADS, 2)
    ntt_down(Fr* a, Fr* b, Fr* c, Fr* natural, const Constant* table, i64 log_table, i64 log_n, i64 done, i64 levels,
             i64 direction, i64 coset) {
    Pass pass = pass_of_block(log_n, done, levels);
    const bool inverse = direction == INVERSE, last = pass.log_stride == 0;
    pass.natural = natural != nullptr;
    Fr* const v = vector_of_block(pass, a, b, c);
    const Scaling scaling{coset && inverse && last, true, inverse && last ? pass.log_n : 0};
    transform<true, false>(pass, v, natural != nullptr ? natural : v, table, static_cast<u32>(log_table), inverse,
                           false, coset && !inverse, scaling);
}

// Levels [done, done + levels) up, of which those with the most blocks come first: reversed order to natural.
KERNEL __launch_bounds__(THREADS, 2)
    ntt_up(Fr* a, Fr* b, Fr* c, const Constant* table, i64 log_table, i64 log_n, i64 done, i64 levels, i64 direction,
           i64 coset) {
    const Pass pass = pass_of_block(log_n, done, levels);
    const bool inverse = direction == INVERSE, first = pass.log_stride == 0;
    Fr* const v = vector_of_block(pass, a, b, c);
    const Scaling scaling{coset && !inverse && first, false, inverse && first ? pass.log_n : 0};
    transform<false, true>(pass, v, v, table, static_cast<u32>(log_table), false, inverse, coset && inverse, scaling);
}

// The last `levels` levels down, inverse, and the same levels up again, forward on the coset.
KERNEL __launch_bounds__(THREADS, 2)
    ntt_middle(Fr* a, Fr* b, Fr* c, const Constant* table, i64 log_table, i64 log_n, i64 levels) {
    const Pass pass = pass_of_block(log_n, log_n - levels, levels);
    Fr* const v = vector_of_block(pass, a, b, c);
    const Scaling scaling{true, false, pass.log_n};
    transform<true, true>(pass, v, v, table, static_cast<u32>(log_table), true, false, false, scaling);
}
