// Fq2 = Fq[u]/(u² + 1) with an element in two neighbouring lanes of a warp: the even lane holds the real part, the odd
// one the other. What one lane cannot hold of a point of G2 without spilling, two lanes can, and the product of two
// elements takes the same number of wide multiplications as by Karatsuba in one lane: each lane sums two products
// under one reduction.
//
// All lanes of a warp execute these functions together: what decides a branch around them is the same in the whole
// warp. Ranges as in field.cuh, coefficient by coefficient.

#pragma once

#include "curve.cuh"
#include "launch.cuh"

struct Fq2Lane {
    // Lanes that hold an element together.
    static constexpr int LANES = 2;

    Fq own;

    DEVICE static bool is_real() { return threadIdx.x % 2 == 0; }
    DEVICE static Fq2Lane zero() { return {Fq::zero()}; }
    DEVICE static Fq2Lane one() {
        Fq x = Fq::one();
#pragma unroll
        for (int i = 0; i < Fq::LIMBS; i++) x.limb[i] = is_real() ? x.limb[i] : 0;
        return {x};
    }

    // Whether a flag is set in all lanes, or in any.
    DEVICE static bool every(bool flag) { return __all_sync(WHOLE_WARP, flag); }
    DEVICE static bool any(bool flag) { return __any_sync(WHOLE_WARP, flag); }
};

DEVICE Fq part_of(const Fq2Lane& x) { return x.own; }

// What the other lane holds.
DEVICE Fq other(const Fq2Lane& x) { return exchanged(x.own); }

DEVICE Fq2Lane choose(bool flag, const Fq2Lane& x, const Fq2Lane& y) { return {choose(flag, x.own, y.own)}; }

DEVICE Fq2Lane reduce(const Fq2Lane& x) { return {reduce(x.own)}; }
DEVICE Fq2Lane operator+(const Fq2Lane& x, const Fq2Lane& y) { return {x.own + y.own}; }
DEVICE Fq2Lane operator-(const Fq2Lane& x, const Fq2Lane& y) { return {x.own - y.own}; }
DEVICE Fq2Lane operator-(const Fq2Lane& x) { return {-x.own}; }
DEVICE Fq2Lane twice(const Fq2Lane& x) { return {twice(x.own)}; }
DEVICE Fq2Lane negate_if(const Fq2Lane& x, bool flag) { return {negate_if(x.own, flag)}; }

// Whether both lanes set the flag.
DEVICE bool both(bool flag) { return (__ballot_sync(WHOLE_WARP, flag) >> (threadIdx.x % 32 & ~1u) & 3) == 3; }

DEVICE bool is_zero(const Fq2Lane& x) { return both(is_zero(x.own)); }

// Real: x0·y0 − x1·y1; the other: x1·y0 + x0·y1, where y1 is the lane's own in the one and the other's in the other.
DEVICE Fq2Lane operator*(const Fq2Lane& x, const Fq2Lane& y) {
    const bool real = Fq2Lane::is_real();
    const Fq x_other = other(x), y_other = other(y);
    return {sum_of_products(choose(real, x.own, x_other), y.own, choose(real, -x_other, x.own), y_other)};
}

DEVICE Fq2Lane sum_of_products(const Fq2Lane& a, const Fq2Lane& b, const Fq2Lane& c, const Fq2Lane& d) {
    return a * b + c * d;
}

// Real: (x0 + x1)·(x0 − x1); the other: 2·x0·x1.
DEVICE Fq2Lane square(const Fq2Lane& x) {
    const bool real = Fq2Lane::is_real();
    const Fq x_other = other(x);
    return {(x_other + choose(real, x.own, x_other)) * (x.own - choose(real, x_other, Fq::zero()))};
}

// 1/x, and 0 for 0: the conjugate over the norm.
DEVICE Fq2Lane inverse(const Fq2Lane& x) {
    const Fq x_other = other(x);
    const Fq t = inverse(square(x.own) + square(x_other));
    return {negate_if(x.own * t, !Fq2Lane::is_real())};
}

// The shorter way to the answer of the one in curve.cuh.
DEVICE bool is_infinity(const Affine<Fq2Lane>& p) { return both(is_zero(p.x.own) && is_zero(p.y.own)); }
