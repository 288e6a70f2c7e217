// What a device can do, for benchmarks to hold the other kernels against: one operation, repeated in registers or
// over memory. What a kernel writes depends on everything it does.

#include "curve.cuh"
#include "launch.cuh"

KERNEL nothing() {}

// Multiplier --------------------------------------------------------------------------------------------------

constexpr int CHAINS = 8;

// CHAINS·rounds wide multiply-adds a thread, in independent chains. A mad.wide of PTX would not do: the assembler
// makes a product and a sum of it, and takes products of constants out of the loop.
KERNEL wide_multiplies(const u64* in, u64* out, i64 rounds) {
    const i64 i = first_index(0);
    const u32 x = static_cast<u32>(in[i]), y = static_cast<u32>(in[i] >> 32);
    u32 low[CHAINS], high[CHAINS];
#pragma unroll
    for (int k = 0; k < CHAINS; k++) {
        low[k] = x + k;
        high[k] = y - k;
    }
#pragma unroll 4
    for (i64 r = 0; r < rounds; r++) {
#pragma unroll
        for (int k = 0; k < CHAINS; k++) {
            low[k] = mad_lo_cc(x, y, low[k]);
            high[k] = madc_hi(x, y, high[k]);
        }
    }
    u64 all = 0;
#pragma unroll
    for (int k = 0; k < CHAINS; k++) all ^= static_cast<u64>(high[k]) << 32 | low[k];
    out[i] = all;
}

constexpr int ROWS = 4, TURNS = 16;

// The same with carries from one to the next, in rows as products of field elements have them: TURNS·ROWS·LIMBS/2
// wide multiply-adds a round. So many, because the assembler moves the sums to other registers at a round's end.
KERNEL wide_rows(const Fq* in, Fq* out, i64 rounds) {
    constexpr int LIMBS = Fq::LIMBS;
    const i64 i = first_index(0);
    const Fq factor = load(in, i);
    Fq sum[ROWS];
#pragma unroll
    for (int k = 0; k < ROWS; k++) {
#pragma unroll
        for (int j = 0; j < LIMBS; j++) sum[k].limb[j] = k * LIMBS + j;
    }
#pragma unroll 1
    for (i64 r = 0; r < rounds; r++) {
#pragma unroll
        for (int turn = 0; turn < TURNS; turn++) {
#pragma unroll
            for (int k = 0; k < ROWS; k++) add_row<LIMBS>(sum[k].limb, factor.limb, 0, factor.limb[k]);
        }
    }
#pragma unroll
    for (int k = 1; k < ROWS; k++) {
#pragma unroll
        for (int j = 0; j < LIMBS; j++) sum[0].limb[j] ^= sum[k].limb[j];
    }
    out[i] = sum[0];  // any words: not reduced
}

// CHAINS·rounds fused multiply-adds in double precision a thread.
KERNEL double_multiplies(const double* in, double* out, i64 rounds) {
    const i64 i = first_index(0);
    const double factor = in[i];
    double sum[CHAINS];
#pragma unroll
    for (int k = 0; k < CHAINS; k++) sum[k] = k;
#pragma unroll 4
    for (i64 r = 0; r < rounds; r++) {
#pragma unroll
        for (int k = 0; k < CHAINS; k++) sum[k] = sum[k] * factor + factor;
    }
    double all = 0;
#pragma unroll
    for (int k = 0; k < CHAINS; k++) all += sum[k];
    out[i] = all;
}

// Fields and points -------------------------------------------------------------------------------------------

// in[i]^(rounds + 1).
template <class F>
DEVICE void power(const F* in, F* out, i64 rounds) {
    const i64 i = first_index(0);
    const F y = load(in, i);
    F x = y;
#pragma unroll 1
    for (i64 r = 0; r < rounds; r++) x = x * y;
    store(out, i, x);
}

// in[i]^(2^rounds).
template <class F>
DEVICE void repeated_square(const F* in, F* out, i64 rounds) {
    const i64 i = first_index(0);
    F x = load(in, i);
#pragma unroll 1
    for (i64 r = 0; r < rounds; r++) x = square(x);
    store(out, i, x);
}

KERNEL products_fq(const Fq* in, Fq* out, i64 rounds) { power(in, out, rounds); }
KERNEL products_fr(const Fr* in, Fr* out, i64 rounds) { power(in, out, rounds); }
KERNEL squares_fq(const Fq* in, Fq* out, i64 rounds) { repeated_square(in, out, rounds); }

// The sum of `rounds` of the count points, thread i's beginning with point i mod count. In G2 a point takes two lanes,
// and is measured by whole sums alone.
KERNEL additions_g1(const Affine<Fq>* points, i64 count, Xyzz<Fq>* out, i64 rounds) {
    const i64 i = first_index(0);
    Xyzz<Fq> sum = Xyzz<Fq>::identity();
    i64 next = i % count;
#pragma unroll 1
    for (i64 r = 0; r < rounds; r++) {
        sum = add_affine(sum, load(points, next));
        next = next + 1 == count ? 0 : next + 1;
    }
    store(out, i, sum);
}

// Memory ------------------------------------------------------------------------------------------------------

// The most that a thread moves at once.
struct alignas(16) Quad {
    u32 word[4];
};

KERNEL copy_quads(const Quad* in, Quad* out, i64 n) {
    for (i64 i = first_index(0); i < n; i += thread_count()) out[i] = in[i];
}

// The exclusive or of the quads of the records index[i], a thread taking whole records as sums of points do.
template <int QUADS>
DEVICE void gather(const Quad* records, const u32* index, Quad* out, i64 n) {
    Quad all = {};
    for (i64 i = first_index(0); i < n; i += thread_count()) {
        const Quad* record = records + static_cast<i64>(index[i]) * QUADS;
        Quad part[QUADS];
#pragma unroll
        for (int k = 0; k < QUADS; k++) part[k] = record[k];
#pragma unroll
        for (int k = 0; k < QUADS; k++) {
#pragma unroll
            for (int j = 0; j < 4; j++) all.word[j] ^= part[k].word[j];
        }
    }
    out[first_index(0)] = all;
}

KERNEL gather_64(const Quad* records, const u32* index, Quad* out, i64 n) { gather<4>(records, index, out, n); }
KERNEL gather_128(const Quad* records, const u32* index, Quad* out, i64 n) { gather<8>(records, index, out, n); }
