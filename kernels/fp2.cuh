// Fq2 = Fq[u]/(u² + 1), the real part first. Ranges as in field.cuh, coefficient by coefficient.

#pragma once

#include "field.cuh"

template <class F>
struct Complex {
    F c0, c1;
    DEVICE static Complex zero() { return {F::zero(), F::zero()}; }
    DEVICE static Complex one() { return {F::one(), F::zero()}; }
};

using Fq2 = Complex<Fq>;

// [0, bound) -> [0, p).
template <class F>
DEVICE Complex<F> reduce(const Complex<F>& x) {
    return {reduce(x.c0), reduce(x.c1)};
}

template <class F>
DEVICE Complex<F> operator+(const Complex<F>& x, const Complex<F>& y) {
    return {x.c0 + y.c0, x.c1 + y.c1};
}

template <class F>
DEVICE Complex<F> operator-(const Complex<F>& x, const Complex<F>& y) {
    return {x.c0 - y.c0, x.c1 - y.c1};
}

template <class F>
DEVICE Complex<F> operator-(const Complex<F>& x) {
    return {-x.c0, -x.c1};
}

template <class F>
DEVICE Complex<F> twice(const Complex<F>& x) {
    return {twice(x.c0), twice(x.c1)};
}

// −x where flag is true, else x; without a branch.
template <class F>
DEVICE Complex<F> negate_if(const Complex<F>& x, bool flag) {
    return {negate_if(x.c0, flag), negate_if(x.c1, flag)};
}

template <class F>
DEVICE bool is_zero(const Complex<F>& x) {
    return is_zero(x.c0) && is_zero(x.c1);
}

template <class F>
DEVICE bool operator==(const Complex<F>& x, const Complex<F>& y) {
    return x.c0 == y.c0 && x.c1 == y.c1;
}

// Karatsuba's three products.
template <class F>
DEVICE Complex<F> operator*(const Complex<F>& x, const Complex<F>& y) {
    const F real = x.c0 * y.c0, imaginary = x.c1 * y.c1;
    return {real - imaginary, (x.c0 + x.c1) * (y.c0 + y.c1) - real - imaginary};
}

template <class F>
DEVICE Complex<F> sum_of_products(const Complex<F>& a, const Complex<F>& b, const Complex<F>& c, const Complex<F>& d) {
    return a * b + c * d;
}

// (c0 + c1)·(c0 − c1) + 2·c0·c1·u.
template <class F>
DEVICE Complex<F> square(const Complex<F>& x) {
    return {(x.c0 + x.c1) * (x.c0 - x.c1), twice(x.c0 * x.c1)};
}

// 1/x, and 0 for 0: the conjugate over the norm.
template <class F>
DEVICE Complex<F> inverse(const Complex<F>& x) {
    const F t = inverse(square(x.c0) + square(x.c1));
    return {x.c0 * t, -(x.c1 * t)};
}
