// Elements of Fq and Fr in registers: Montgomery form with radix R = 2^(32·LIMBS), in 32-bit limbs, the lowest
// first. In memory that is byte for byte what the CPU keeps in 64-bit words.
//
// Ranges. In memory an element is canonical, in [0, p). In registers it lies in [0, bound): bound is 2p where
// 4p < R, so that a product needs no subtraction at its end, and p otherwise (the scalar field of BLS12-381).
// Every function takes and returns elements in [0, bound) unless it says otherwise; reduce() makes them
// canonical, and store() does so by itself.

#pragma once

#include "curve_constants.cuh"
#include "words.cuh"

// C is FqConstants or FrConstants of curve_constants.cuh.
template <class C>
struct alignas(16) Prime {
    static constexpr int LIMBS = C::LIMBS;

    // Lanes that hold an element together: see fp2_lanes.cuh.
    static constexpr int LANES = 1;

    u32 limb[LIMBS];

    // What decides a branch: with more lanes, their warp goes one way.
    DEVICE static bool every(bool flag) { return flag; }
    DEVICE static bool any(bool flag) { return flag; }

    DEVICE static Prime zero() { return {}; }

    // 1, in Montgomery form.
    DEVICE static Prime one() {
        Prime x;
#pragma unroll
        for (int i = 0; i < LIMBS; i++) x.limb[i] = C::one(i);
        return x;
    }

    // x·r_squared() brings an integer into Montgomery form.
    DEVICE static Prime r_squared() {
        Prime x;
#pragma unroll
        for (int i = 0; i < LIMBS; i++) x.limb[i] = C::r_squared(i);
        return x;
    }

    // x·bare_one() takes x out of Montgomery form.
    DEVICE static Prime bare_one() {
        Prime x = zero();
        x.limb[0] = 1;
        return x;
    }

    DEVICE static Prime modulus() {
        Prime x;
#pragma unroll
        for (int i = 0; i < LIMBS; i++) x.limb[i] = C::modulus(i);
        return x;
    }

    DEVICE static Prime bound() {
        Prime x;
#pragma unroll
        for (int i = 0; i < LIMBS; i++) x.limb[i] = C::bound(i);
        return x;
    }
};

using Fq = Prime<FqConstants>;
using Fr = Prime<FrConstants>;

// Sums ------------------------------------------------------------------------------------------------------

// x where x < m, else x − m; any x and m.
template <class C>
DEVICE Prime<C> subtract_unless_below(const Prime<C>& x, const Prime<C>& m) {
    Prime<C> d;
    d.limb[0] = sub_cc(x.limb[0], m.limb[0]);
#pragma unroll
    for (int i = 1; i < C::LIMBS; i++) d.limb[i] = subc_cc(x.limb[i], m.limb[i]);
    const bool below = subc(0, 0) != 0;
#pragma unroll
    for (int i = 0; i < C::LIMBS; i++) d.limb[i] = below ? x.limb[i] : d.limb[i];
    return d;
}

// [0, bound) -> [0, p).
template <class C>
DEVICE Prime<C> reduce(const Prime<C>& x) {
    if constexpr (C::LAZY) {
        return subtract_unless_below(x, Prime<C>::modulus());
    } else {
        return x;
    }
}

// The sum fits: bound <= R/2.
template <class C>
DEVICE Prime<C> operator+(const Prime<C>& x, const Prime<C>& y) {
    Prime<C> s;
    s.limb[0] = add_cc(x.limb[0], y.limb[0]);
#pragma unroll
    for (int i = 1; i < C::LIMBS - 1; i++) s.limb[i] = addc_cc(x.limb[i], y.limb[i]);
    s.limb[C::LIMBS - 1] = addc(x.limb[C::LIMBS - 1], y.limb[C::LIMBS - 1]);
    return subtract_unless_below(s, Prime<C>::bound());
}

template <class C>
DEVICE Prime<C> operator-(const Prime<C>& x, const Prime<C>& y) {
    Prime<C> d;
    d.limb[0] = sub_cc(x.limb[0], y.limb[0]);
#pragma unroll
    for (int i = 1; i < C::LIMBS; i++) d.limb[i] = subc_cc(x.limb[i], y.limb[i]);
    const u32 mask = subc(0, 0);
    d.limb[0] = add_cc(d.limb[0], C::bound(0) & mask);
#pragma unroll
    for (int i = 1; i < C::LIMBS - 1; i++) d.limb[i] = addc_cc(d.limb[i], C::bound(i) & mask);
    d.limb[C::LIMBS - 1] = addc(d.limb[C::LIMBS - 1], C::bound(C::LIMBS - 1) & mask);
    return d;
}

template <class C>
DEVICE Prime<C> operator-(const Prime<C>& x) {
    return Prime<C>::zero() - x;
}

// x + x.
template <class C>
DEVICE Prime<C> twice(const Prime<C>& x) {
    return x + x;
}

// Whether x is 0 or p.
template <class C>
DEVICE bool is_zero(const Prime<C>& x) {
    u32 is_0 = 0, is_p = 0;
#pragma unroll
    for (int i = 0; i < C::LIMBS; i++) {
        is_0 |= x.limb[i];
        is_p |= x.limb[i] ^ C::modulus(i);
    }
    return is_0 == 0 || (C::LAZY && is_p == 0);
}

// x where flag is true, else y.
template <class C>
DEVICE Prime<C> choose(bool flag, const Prime<C>& x, const Prime<C>& y) {
    Prime<C> result;
#pragma unroll
    for (int i = 0; i < C::LIMBS; i++) result.limb[i] = flag ? x.limb[i] : y.limb[i];
    return result;
}

// −x where flag is true, else x; without a branch.
template <class C>
DEVICE Prime<C> negate_if(const Prime<C>& x, bool flag) {
    return choose(flag, -x, x);
}

// Whether x and y are the same element.
template <class C>
DEVICE bool operator==(const Prime<C>& x, const Prime<C>& y) {
    return is_zero(x - y);
}

// Products --------------------------------------------------------------------------------------------------
//
// Word-wise Montgomery (CIOS; Koç, Acar, Kaliski, "Analyzing and Comparing Montgomery Multiplication
// Algorithms", 1996). A product of limbs i and j takes words i + j and i + j + 1, so the products of a row with
// even limbs fill adjacent pairs of words, and those with odd limbs pairs that begin one word later. Each kind
// has its own accumulator, in which one chain of carries runs through the row: the value is
// even + 2^32·odd. After a word of zeros leaves at the bottom the two change names.

// sum += Σ factor[start + 2k]·multiplier·2^(64k). Leaves a carry.
template <int LIMBS>
DEVICE void add_row(u32 (&sum)[LIMBS], const u32 (&factor)[LIMBS], int start, u32 multiplier) {
    sum[0] = mad_lo_cc(factor[start], multiplier, sum[0]);
    sum[1] = madc_hi_cc(factor[start], multiplier, sum[1]);
#pragma unroll
    for (int k = 2; k < LIMBS; k += 2) {
        sum[k] = madc_lo_cc(factor[start + k], multiplier, sum[k]);
        sum[k + 1] = madc_hi_cc(factor[start + k], multiplier, sum[k + 1]);
    }
}

// even + 2^32·odd = factor·multiplier.
template <int LIMBS>
DEVICE void first_rows(u32 (&even)[LIMBS], u32 (&odd)[LIMBS], const u32 (&factor)[LIMBS], u32 multiplier) {
#pragma unroll
    for (int k = 0; k < LIMBS; k += 2) {
        const u64 product = static_cast<u64>(factor[k]) * multiplier;
        even[k] = static_cast<u32>(product);
        even[k + 1] = static_cast<u32>(product >> 32);
        const u64 next = static_cast<u64>(factor[k + 1]) * multiplier;
        odd[k] = static_cast<u32>(next);
        odd[k + 1] = static_cast<u32>(next >> 32);
    }
}

// even + 2^32·odd += factor·multiplier. The sum is below 2^(32·(LIMBS + 1)).
template <int LIMBS>
DEVICE void add_rows(u32 (&even)[LIMBS], u32 (&odd)[LIMBS], const u32 (&factor)[LIMBS], u32 multiplier) {
    add_row(odd, factor, 1, multiplier);
    add_row(even, factor, 0, multiplier);
    odd[LIMBS - 1] = addc(odd[LIMBS - 1], 0);
}

// The multiple of p whose lowest word cancels the given one. Leaves the carry flag alone.
template <class C>
DEVICE u32 cancelling(u32 lowest) {
    if constexpr (C::N0 == ~0u) {
        return negated(lowest);
    } else {
        return lowest * C::N0;
    }
}

// Adds the multiple of p that makes even[0] zero.
template <class C>
DEVICE void clear_lowest(u32 (&even)[C::LIMBS], u32 (&odd)[C::LIMBS]) {
    const Prime<C> p = Prime<C>::modulus();
    add_rows(even, odd, p.limb, cancelling<C>(even[0]));
}

// Divides by 2^32 and adds factor·multiplier. What was even in clear_lowest() comes as odd: on entry the value
// is odd + 2^32·even with odd[0] = 0, and odd[1] has been added to even[0], whose carry this takes. The sum is
// below 2^(32·(LIMBS + 1)).
template <int LIMBS>
DEVICE void add_shifted_rows(u32 (&even)[LIMBS], u32 (&odd)[LIMBS], const u32 (&factor)[LIMBS], u32 multiplier) {
#pragma unroll
    for (int k = 0; k < LIMBS - 2; k += 2) {
        odd[k] = madc_lo_cc(factor[k + 1], multiplier, odd[k + 2]);
        odd[k + 1] = madc_hi_cc(factor[k + 1], multiplier, odd[k + 3]);
    }
    odd[LIMBS - 2] = madc_lo_cc(factor[LIMBS - 1], multiplier, 0);
    odd[LIMBS - 1] = madc_hi(factor[LIMBS - 1], multiplier, 0);
    add_row(even, factor, 0, multiplier);
    odd[LIMBS - 1] = addc(odd[LIMBS - 1], 0);
}

// The value over 2^32, after clear_lowest(even, odd); below R.
template <class C>
DEVICE Prime<C> shifted_sum(const u32 (&even)[C::LIMBS], const u32 (&odd)[C::LIMBS]) {
    Prime<C> result;
    result.limb[0] = add_cc(odd[0], even[1]);
#pragma unroll
    for (int i = 1; i < C::LIMBS - 1; i++) result.limb[i] = addc_cc(odd[i], even[i + 1]);
    result.limb[C::LIMBS - 1] = addc(odd[C::LIMBS - 1], 0);
    return result;
}

// [0, 2p) -> [0, bound): what a product ends with.
template <class C>
DEVICE Prime<C> bounded(const Prime<C>& x) {
    if constexpr (C::LAZY) {
        return x;
    } else {
        return subtract_unless_below(x, Prime<C>::modulus());
    }
}

// x·y/R mod p: in [0, p + x·y/R), so in [0, 2p). Before the shift of a row the value is below 2^32·(x + p),
// which LIMBS + 1 words hold, as x + p < R.
template <class C>
DEVICE Prime<C> operator*(const Prime<C>& x, const Prime<C>& y) {
    constexpr int LIMBS = C::LIMBS;
    static_assert(LIMBS % 2 == 0, "limbs come in pairs");
    u32 even[LIMBS], odd[LIMBS];
    first_rows(even, odd, x.limb, y.limb[0]);
    clear_lowest<C>(even, odd);
#pragma unroll
    for (int i = 1; i < LIMBS; i += 2) {
        odd[0] = add_cc(odd[0], even[1]);
        add_shifted_rows(odd, even, x.limb, y.limb[i]);
        clear_lowest<C>(odd, even);
        if (i + 1 < LIMBS) {
            even[0] = add_cc(even[0], odd[1]);
            add_shifted_rows(even, odd, x.limb, y.limb[i + 1]);
            clear_lowest<C>(even, odd);
        }
    }
    return bounded(shifted_sum<C>(odd, even));
}

// Whether k·p < R, judged by the highest limb.
template <class C>
DEVICE constexpr bool fits(u64 k) {
    return k * (C::modulus(C::LIMBS - 1) + 1ull) <= 1ull << 32;
}

// (a·b + c·d)/R mod p with one reduction in place of two: LIMBS² fewer wide multiplications than two products.
// Before the shift of a row the value is below 2^32·(a + c + p), and the sum ends below (8p/R + 1)·p.
template <class C>
DEVICE Prime<C> sum_of_products(const Prime<C>& a, const Prime<C>& b, const Prime<C>& c, const Prime<C>& d) {
    constexpr int LIMBS = C::LIMBS;
    static_assert(C::LAZY && fits<C>(5), "a + c + p is below R");
    u32 even[LIMBS], odd[LIMBS];
    first_rows(even, odd, a.limb, b.limb[0]);
    add_rows(even, odd, c.limb, d.limb[0]);
    clear_lowest<C>(even, odd);
#pragma unroll
    for (int i = 1; i < LIMBS; i += 2) {
        odd[0] = add_cc(odd[0], even[1]);
        add_shifted_rows(odd, even, a.limb, b.limb[i]);
        add_rows(odd, even, c.limb, d.limb[i]);
        clear_lowest<C>(odd, even);
        if (i + 1 < LIMBS) {
            even[0] = add_cc(even[0], odd[1]);
            add_shifted_rows(even, odd, a.limb, b.limb[i + 1]);
            add_rows(even, odd, c.limb, d.limb[i + 1]);
            clear_lowest<C>(even, odd);
        }
    }
    const Prime<C> sum = shifted_sum<C>(odd, even);
    if constexpr (fits<C>(8)) {
        return sum;
    } else {
        return subtract_unless_below(sum, Prime<C>::bound());
    }
}

// sum += Σ limb[i]·limb[j] over j = first, first + 2, …, where the first product takes sum[at] and the next word.
template <int LIMBS>
DEVICE void add_products_above(u32 (&sum)[2 * LIMBS], int at, const u32 (&limb)[LIMBS], int i, int first) {
    if (first >= LIMBS) return;
    sum[at] = mad_lo_cc(limb[i], limb[first], sum[at]);
    sum[at + 1] = madc_hi_cc(limb[i], limb[first], sum[at + 1]);
#pragma unroll
    for (int j = first + 2; j < LIMBS; j += 2) {
        sum[at + j - first] = madc_lo_cc(limb[i], limb[j], sum[at + j - first]);
        sum[at + j - first + 1] = madc_hi_cc(limb[i], limb[j], sum[at + j - first + 1]);
    }
    // The last product leaves a carry only where the row before ended at the same place; LIMBS is even.
    if (first % 2 == 0) {
        const int end = at + LIMBS - first;
        sum[end] = addc(sum[end], 0);
    }
}

// even/R mod p, for even in [0, R): in [0, p]. What even holds afterwards is of no use.
template <class C>
DEVICE Prime<C> divide_by_radix(u32 (&even)[C::LIMBS]) {
    const Prime<C> p = Prime<C>::modulus();
    u32 odd[C::LIMBS] = {};
    clear_lowest<C>(even, odd);
#pragma unroll
    for (int i = 1; i < C::LIMBS; i += 2) {
        odd[0] = add_cc(odd[0], even[1]);
        add_shifted_rows(odd, even, p.limb, cancelling<C>(odd[0]));
        if (i + 1 < C::LIMBS) {
            even[0] = add_cc(even[0], odd[1]);
            add_shifted_rows(even, odd, p.limb, cancelling<C>(even[0]));
        }
    }
    return shifted_sum<C>(odd, even);
}

// x²/R mod p, in the range of x·x. A product of two limbs that differ occurs twice and is computed once, which
// leaves 100 of BN254's 128 wide multiplications. The square is computed whole, then its lower half divided by R.
template <class C>
DEVICE Prime<C> square(const Prime<C>& x) {
    constexpr int LIMBS = C::LIMBS;
    // 1. Products of limbs i < j, those with i + j even and odd apart; words of odd lie one higher.
    u32 even[2 * LIMBS] = {}, odd[2 * LIMBS] = {};
#pragma unroll
    for (int i = 0; i < LIMBS - 1; i++) {
        add_products_above<LIMBS>(odd, 2 * i, x.limb, i, i + 1);
        add_products_above<LIMBS>(even, 2 * i + 2, x.limb, i, i + 2);
    }
    // 2. Their sum, and twice that.
    u32 word[2 * LIMBS];
    word[0] = 0;
    word[1] = odd[0];
    word[2] = add_cc(even[2], odd[1]);
#pragma unroll
    for (int k = 3; k < 2 * LIMBS; k++) word[k] = addc_cc(even[k], odd[k - 1]);
    word[1] = add_cc(word[1], word[1]);
#pragma unroll
    for (int k = 2; k < 2 * LIMBS; k++) word[k] = addc_cc(word[k], word[k]);
    // 3. The squares of limbs.
    word[0] = mad_lo_cc(x.limb[0], x.limb[0], word[0]);
    word[1] = madc_hi_cc(x.limb[0], x.limb[0], word[1]);
#pragma unroll
    for (int i = 1; i < LIMBS; i++) {
        word[2 * i] = madc_lo_cc(x.limb[i], x.limb[i], word[2 * i]);
        word[2 * i + 1] = madc_hi_cc(x.limb[i], x.limb[i], word[2 * i + 1]);
    }
    // 4. (lower half)/R + upper half, below 2p as in a product.
    u32 lower[LIMBS];
#pragma unroll
    for (int i = 0; i < LIMBS; i++) lower[i] = word[i];
    Prime<C> result = divide_by_radix<C>(lower);
    result.limb[0] = add_cc(result.limb[0], word[LIMBS]);
#pragma unroll
    for (int i = 1; i < LIMBS; i++) result.limb[i] = addc_cc(result.limb[i], word[LIMBS + i]);
    return bounded(result);
}

// Inverses --------------------------------------------------------------------------------------------------
//
// Division steps (Bernstein, Yang, "Fast constant-time gcd computation and modular inversion", 2019, sections 8 and 11).
// From f = p, g = x they go to f = ±1, g = 0; here they are done on the lowest words, STEPS at a time, and then as a
// matrix on all of f and g, and mod p on d and e, which keep f = d·x and g = e·x. That takes a quarter of the
// instructions of x^(p − 2), and few of the multiplier's. Numbers are in limbs of 30 bits, the highest with the sign.

constexpr int STEPS = 30;
constexpr i64 LIMB_MASK = (1 << STEPS) - 1;

template <class C>
struct Signed {
    // Room for 64·p and a sign. After 37 matrices, which are enough for 381 bits, d and e are below 38·p.
    static constexpr int LIMBS = (32 * C::LIMBS + STEPS - 1) / STEPS;

    int limb[LIMBS];
};

// Limb i of p.
template <class C>
DEVICE constexpr int modulus_limb(int i) {
    const int word = STEPS * i / 32, shift = STEPS * i % 32;
    const u64 above = word + 1 < C::LIMBS ? C::modulus(word + 1) : 0;
    return static_cast<int>((above << 32 | C::modulus(word)) >> shift & LIMB_MASK);
}

template <class C>
DEVICE Signed<C> to_signed(const Prime<C>& x) {
    Signed<C> s;
#pragma unroll
    for (int i = 0; i < Signed<C>::LIMBS; i++) {
        const int word = STEPS * i / 32, shift = STEPS * i % 32;
        const u64 above = word + 1 < C::LIMBS ? x.limb[word + 1] : 0;
        s.limb[i] = static_cast<int>((above << 32 | x.limb[word]) >> shift & LIMB_MASK);
    }
    return s;
}

// The words of a number in [0, R).
template <class C>
DEVICE Prime<C> to_words(const Signed<C>& s) {
    Prime<C> x;
#pragma unroll
    for (int i = 0; i < C::LIMBS; i++) {
        const int limb = 32 * i / STEPS, shift = 32 * i % STEPS;
        u64 word = static_cast<u64>(s.limb[limb]) >> shift;
        if (limb + 1 < Signed<C>::LIMBS) word |= static_cast<u64>(s.limb[limb + 1]) << (STEPS - shift);
        if (limb + 2 < Signed<C>::LIMBS) word |= static_cast<u64>(s.limb[limb + 2]) << (2 * STEPS - shift);
        x.limb[i] = static_cast<u32>(word);
    }
    return x;
}

// 2^STEPS times what STEPS division steps do: f ← u·f + v·g, g ← q·f + r·g, with |u| + |v|, |q| + |r| <= 2^STEPS.
struct Steps {
    int u, v, q, r;
};

DEVICE Steps division_steps(int& delta, u32 f, u32 g) {
    Steps t{1, 0, 0, 1};
#pragma unroll 6
    for (int k = 0; k < STEPS; k++) {
        const bool odd = g & 1, turns = odd && delta > 0;
        const u32 old_f = f;
        const int old_u = t.u, old_v = t.v;
        f = turns ? g : f;
        t.u = turns ? t.q : t.u;
        t.v = turns ? t.r : t.v;
        // g − f where they turn, else g + f where g is odd.
        const u32 other_f = turns ? 0 - old_f : odd ? old_f : 0;
        const int other_u = turns ? -old_u : odd ? old_u : 0, other_v = turns ? -old_v : odd ? old_v : 0;
        g = (g + other_f) >> 1;
        t.q += other_u;
        t.r += other_v;
        t.u *= 2;
        t.v *= 2;
        delta = (turns ? -delta : delta) + 1;
    }
    return t;
}

// (a, b) ← matrix·(a, b)/2^STEPS, after that has been made divisible by adding multiples of p, if MODULO.
template <bool MODULO, class C>
DEVICE void apply(const Steps& t, Signed<C>& a, Signed<C>& b) {
    i64 sum_a = static_cast<i64>(t.u) * a.limb[0] + static_cast<i64>(t.v) * b.limb[0];
    i64 sum_b = static_cast<i64>(t.q) * a.limb[0] + static_cast<i64>(t.r) * b.limb[0];
    int of_a = 0, of_b = 0;
    if (MODULO) {
        of_a = static_cast<int>(static_cast<u32>(sum_a) * C::N0 & LIMB_MASK);
        of_b = static_cast<int>(static_cast<u32>(sum_b) * C::N0 & LIMB_MASK);
        sum_a += static_cast<i64>(of_a) * modulus_limb<C>(0);
        sum_b += static_cast<i64>(of_b) * modulus_limb<C>(0);
    }
#pragma unroll
    for (int i = 1; i < Signed<C>::LIMBS; i++) {
        sum_a >>= STEPS;
        sum_b >>= STEPS;
        sum_a += static_cast<i64>(t.u) * a.limb[i] + static_cast<i64>(t.v) * b.limb[i];
        sum_b += static_cast<i64>(t.q) * a.limb[i] + static_cast<i64>(t.r) * b.limb[i];
        if (MODULO) {
            sum_a += static_cast<i64>(of_a) * modulus_limb<C>(i);
            sum_b += static_cast<i64>(of_b) * modulus_limb<C>(i);
        }
        a.limb[i - 1] = static_cast<int>(sum_a & LIMB_MASK);
        b.limb[i - 1] = static_cast<int>(sum_b & LIMB_MASK);
    }
    a.limb[Signed<C>::LIMBS - 1] = static_cast<int>(sum_a >> STEPS);
    b.limb[Signed<C>::LIMBS - 1] = static_cast<int>(sum_b >> STEPS);
}

// a·x − m·p with factors below 2^30.
template <class C>
DEVICE Signed<C> combined(int a, const Signed<C>& x, int m) {
    Signed<C> result;
    i64 sum = 0;
#pragma unroll
    for (int i = 0; i < Signed<C>::LIMBS; i++) {
        sum += static_cast<i64>(a) * x.limb[i] - static_cast<i64>(m) * modulus_limb<C>(i);
        result.limb[i] = static_cast<int>(i + 1 < Signed<C>::LIMBS ? sum & LIMB_MASK : sum);
        sum >>= STEPS;
    }
    return result;
}

// 1/x, and 0 for 0. Who needs many inverses shares one.
template <class C>
DEVICE Prime<C> inverse(const Prime<C>& x) {
    constexpr int LAST = Signed<C>::LIMBS - 1;
    // e = R², as x is R times what is to be inverted, and the result, too.
    Signed<C> f = to_signed(Prime<C>::modulus()), g = to_signed(reduce(x));
    Signed<C> d = to_signed(Prime<C>::zero()), e = to_signed(Prime<C>::r_squared());
    int delta = 1;
#pragma unroll 1
    for (;;) {
        int rest = 0;
#pragma unroll
        for (int i = 0; i <= LAST; i++) rest |= g.limb[i];
        if (rest == 0) break;
        const u32 low_f = static_cast<u32>(f.limb[0]) | static_cast<u32>(f.limb[1]) << STEPS;
        const u32 low_g = static_cast<u32>(g.limb[0]) | static_cast<u32>(g.limb[1]) << STEPS;
        const Steps t = division_steps(delta, low_f, low_g);
        apply<false>(t, f, g);
        apply<true>(t, d, e);
    }
    // ±d to [0, p), by its quotient from the highest limbs: that or one less, or one more.
    const int sign = f.limb[LAST] < 0 ? -1 : 1;
    const i64 high = sign * (d.limb[LAST] * (LIMB_MASK + 1) + d.limb[LAST - 1]);
    constexpr i64 high_p = modulus_limb<C>(LAST) * (LIMB_MASK + 1) + modulus_limb<C>(LAST - 1);
    d = combined(sign, d, static_cast<int>(high / high_p) - (high < 0));
    d = combined(1, d, d.limb[LAST] < 0 ? -1 : 0);
    return subtract_unless_below(to_words(d), Prime<C>::modulus());
}

// Memory ----------------------------------------------------------------------------------------------------
//
// Elements in memory are aligned to 16 bytes, so that a device moves them in words of 128 bits.

// Element i of an array; canonical if the array is.
template <class C>
DEVICE Prime<C> load(const Prime<C>* a, i64 i) {
    return a[i];
}

// Writes element i of an array; canonical.
template <class C>
DEVICE void store(Prime<C>* a, i64 i, const Prime<C>& x) {
    a[i] = reduce(x);
}
