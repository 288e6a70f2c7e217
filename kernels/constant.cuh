// Products with elements that are known in advance: constants w with the quotient v = ⌊w·R/p⌋ beside them (Shoup; Harvey,
// "Faster arithmetic for number-theoretic transforms", 2014, section 2). Then x·w − ⌊x·v/R⌋·p is x·w mod p, or p more,
// and of the three products only halves are needed: 99 wide multiplications and 16 narrow ones for eight limbs, in place
// of 128 and 8.
//
// w is the plain integer: x·w stands in whatever form x does.

#pragma once

#include "field.cuh"

struct alignas(16) Constant {
    Fr value, quotient;
};

// R − p.
DEVICE Fr minus_modulus() {
    Fr x;
#pragma unroll
    for (int i = 0; i < Fr::LIMBS; i++) x.limb[i] = ~FrConstants::modulus(i) + (i == 0);  // p is odd
    return x;
}

// sum += a·b·2^(32k), with the carry of the product before it, unless it is the first of a chain. Leaves a carry.
template <int WORDS>
DEVICE void add_product(u32 (&sum)[WORDS], int k, u32 a, u32 b, bool first) {
    sum[k] = first ? mad_lo_cc(a, b, sum[k]) : madc_lo_cc(a, b, sum[k]);
    sum[k + 1] = madc_hi_cc(a, b, sum[k + 1]);
}

// even + 2^32·odd += the words below R of x·y. What passes R is lost.
DEVICE void add_lower_half(u32 (&even)[Fr::LIMBS], u32 (&odd)[Fr::LIMBS], const Fr& x, const Fr& y) {
    constexpr int LAST = Fr::LIMBS - 1;
#pragma unroll
    for (int j = 0; j <= LAST; j++) {
        const int e = j % 2, o = 1 - e;
#pragma unroll
        for (int i = e; i + j < LAST; i += 2) add_product(even, i + j, x.limb[i], y.limb[j], i == e);
#pragma unroll
        for (int i = o; i + j < LAST; i += 2) add_product(odd, i + j - 1, x.limb[i], y.limb[j], i == o);
        // Of limbs i + j = LAST only the lower word.
        if (o + j < LAST) {
            odd[LAST - 1] = madc_lo(x.limb[LAST - j], y.limb[j], odd[LAST - 1]);
        } else {
            odd[LAST - 1] += x.limb[LAST - j] * y.limb[j];
        }
    }
}

// even + 2^32·odd mod R.
DEVICE Fr joined(const u32 (&even)[Fr::LIMBS], const u32 (&odd)[Fr::LIMBS]) {
    Fr sum;
    sum.limb[0] = even[0];
    sum.limb[1] = add_cc(even[1], odd[0]);
#pragma unroll
    for (int k = 2; k < Fr::LIMBS - 1; k++) sum.limb[k] = addc_cc(even[k], odd[k - 1]);
    sum.limb[Fr::LIMBS - 1] = addc(even[Fr::LIMBS - 1], odd[Fr::LIMBS - 2]);
    return sum;
}

// sum += Σ x[i]·y·2^(32(i − shift)) over i = first, first + 2, … below `end`. Leaves a carry.
template <int WORDS>
DEVICE void add_chain(u32 (&sum)[WORDS], const Fr& x, int first, int end, u32 y, int shift) {
#pragma unroll
    for (int i = first; i < end; i += 2) add_product(sum, i - shift, x.limb[i], y, i == first);
}

// ⌊x·y/R⌋, or 1 less: products of limbs i + j < LIMBS − 2 are left out, which are below LIMBS·2^-32·R together.
DEVICE Fr upper_half(const Fr& x, const Fr& y) {
    constexpr int LIMBS = Fr::LIMBS, FIRST = LIMBS - 2;
    // Words from FIRST on; those of odd lie one higher.
    u32 even[LIMBS + 2] = {}, odd[LIMBS + 2] = {};
    // Carries of rows go to q at its end. Among the rows each would be the lower half of a pair of words, whose upper one
    // the multiplier would set to 0.
    u32 carry[LIMBS] = {};
#pragma unroll
    for (int j = 0; j < LIMBS; j++) {
        const int least = FIRST > j ? FIRST - j : 0;
        // Chain of even limbs: ends where the chain before it of the same words did, but for the first one.
        add_chain(j % 2 ? odd : even, x, least + least % 2, LIMBS, y.limb[j], FIRST + j % 2 - j);
        if (j > 0) carry[j] = addc(0, 0);
        // Chain of odd limbs: ends in words that nothing was added to, and leaves no carry.
        add_chain(j % 2 ? even : odd, x, least + 1 - least % 2, LIMBS, y.limb[j], FIRST + 1 - j % 2 - j);
    }
    Fr q;
    add_cc(even[1], odd[0]);
#pragma unroll
    for (int k = 0; k < LIMBS - 1; k++) q.limb[k] = addc_cc(even[k + 2], odd[k + 1]);
    q.limb[LIMBS - 1] = addc(even[LIMBS + 1], odd[LIMBS]);
    q.limb[1] = add_cc(q.limb[1], carry[1]);
#pragma unroll
    for (int k = 2; k < LIMBS - 1; k++) q.limb[k] = addc_cc(q.limb[k], carry[k]);
    q.limb[LIMBS - 1] = addc(q.limb[LIMBS - 1], carry[LIMBS - 1]);
    return q;
}

// x·w in the range of x: below (1 + x/R + 2^-28)·p before bounded().
DEVICE Fr operator*(const Fr& x, const Constant& w) {
    constexpr int LIMBS = Fr::LIMBS;
    const Fr q = upper_half(x, w.quotient), minus_p = minus_modulus();
    u32 even[LIMBS] = {}, odd[LIMBS] = {};
    add_lower_half(even, odd, x, w.value);
    add_lower_half(even, odd, q, minus_p);
    return bounded(joined(even, odd));
}

// The constant of w in Montgomery form. As R·w = v·p + (R·w mod p), v is the canonical R·w times −1/p, which is to be
// given, mod R.
DEVICE Constant constant_of(const Fr& w, const Fr& minus_inverse_of_p) {
    constexpr int LIMBS = Fr::LIMBS;
    const Fr canonical = reduce(w);
    u32 even[LIMBS] = {}, odd[LIMBS] = {};
    add_lower_half(even, odd, canonical, minus_inverse_of_p);
    return {reduce(w * Fr::bare_one()), joined(even, odd)};
}

// The constant of −w; w is not 0. As v is rounded down, and R·w/p no integer, its limbs are turned.
DEVICE Constant operator-(const Constant& w) {
    const Fr p = Fr::modulus();
    Constant result;
    result.value.limb[0] = sub_cc(p.limb[0], w.value.limb[0]);
#pragma unroll
    for (int i = 1; i < Fr::LIMBS - 1; i++) result.value.limb[i] = subc_cc(p.limb[i], w.value.limb[i]);
    result.value.limb[Fr::LIMBS - 1] = subc(p.limb[Fr::LIMBS - 1], w.value.limb[Fr::LIMBS - 1]);
#pragma unroll
    for (int i = 0; i < Fr::LIMBS; i++) result.quotient.limb[i] = ~w.quotient.limb[i];
    return result;
}
