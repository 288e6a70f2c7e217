// The group law of y² = x³ + b (a = 0), once for G1 (over Fq) and G2 (over Fq2).
//
// In memory a point is affine, x then y, and infinity is all zeros. In registers a point is XYZZ: (X, Y, ZZ, ZZZ)
// with x = X/ZZ, y = Y/ZZZ, ZZ³ = ZZZ², and ZZ = 0 for infinity (EFD, "XYZZ coordinates for short Weierstrass
// curves": add-2008-s, madd-2008-s, dbl-2008-s-1, mdbl-2008-s-1). The curves have no point with y = 0.
//
// Every function is complete: equal points, opposite points and infinity are right. Ranges as in field.cuh.

#pragma once

#include "fp2.cuh"

// E is Fq or Fq2.
template <class E>
struct Affine {
    E x, y;
};

template <class E>
struct Xyzz {
    E x, y, zz, zzz;

    // Infinity.
    DEVICE static Xyzz identity() { return {E::zero(), E::zero(), E::zero(), E::zero()}; }
};

template <class E>
DEVICE bool is_infinity(const Affine<E>& p) {
    return is_zero(p.x) && is_zero(p.y);
}

template <class E>
DEVICE bool is_infinity(const Xyzz<E>& p) {
    return is_zero(p.zz);
}

// −p where flag is true, else p; without a branch.
template <class E>
DEVICE Affine<E> negate_if(const Affine<E>& p, bool flag) {
    return {p.x, negate_if(p.y, flag)};
}

template <class E>
DEVICE Xyzz<E> negate_if(const Xyzz<E>& p, bool flag) {
    return {p.x, negate_if(p.y, flag), p.zz, p.zzz};
}

template <class E>
DEVICE Xyzz<E> from_affine(const Affine<E>& p) {
    if (is_infinity(p)) return Xyzz<E>::identity();
    return {p.x, p.y, E::one(), E::one()};
}

// 2p for a point that is not infinity: seven products.
template <class E>
DEVICE Xyzz<E> double_affine(const Affine<E>& p) {
    const E u = twice(p.y);
    const E v = square(u);
    const E w = u * v;
    const E s = p.x * v;
    const E xx = square(p.x);
    const E m = twice(xx) + xx;
    const E x = square(m) - twice(s);
    return {x, sum_of_products(m, s - x, w, -p.y), v, w};
}

// 2p: nine products. ("double" is a word of the language.)
template <class E>
DEVICE Xyzz<E> doubled(const Xyzz<E>& p) {
    const Xyzz<E> t = double_affine(Affine<E>{p.x, p.y});
    return {t.x, t.y, t.zz * p.zz, t.zzz * p.zzz};
}

// p + q: fourteen products.
template <class E>
DEVICE Xyzz<E> add(const Xyzz<E>& p, const Xyzz<E>& q) {
    if (is_infinity(p)) return q;
    if (is_infinity(q)) return p;
    const E u1 = p.x * q.zz, s1 = p.y * q.zzz;
    const E d = q.x * p.zz - u1, r = q.y * p.zzz - s1;
    if (is_zero(d)) return is_zero(r) ? doubled(p) : Xyzz<E>::identity();
    const E dd = square(d);
    const E ddd = d * dd;
    const E v = u1 * dd;
    const E x = square(r) - ddd - twice(v);
    return {x, sum_of_products(r, v - x, -s1, ddd), p.zz * q.zz * dd, p.zzz * q.zzz * ddd};
}

// p + q: ten products.
template <class E>
DEVICE Xyzz<E> add_affine(const Xyzz<E>& p, const Affine<E>& q) {
    if (is_infinity(q)) return p;
    if (is_infinity(p)) return {q.x, q.y, E::one(), E::one()};
    const E d = q.x * p.zz - p.x, r = q.y * p.zzz - p.y;
    if (is_zero(d)) return is_zero(r) ? double_affine(q) : Xyzz<E>::identity();
    const E dd = square(d);
    const E ddd = d * dd;
    const E v = p.x * dd;
    const E x = square(r) - ddd - twice(v);
    return {x, sum_of_products(r, v - x, -p.y, ddd), p.zz * dd, p.zzz * ddd};
}

// Points in memory: affine ones as files hold them, XYZZ ones as four elements. What is stored is canonical.

template <class E>
DEVICE Affine<E> load(const Affine<E>* points, i64 i) {
    return points[i];
}

template <class E>
DEVICE void store(Affine<E>* points, i64 i, const Affine<E>& p) {
    points[i] = {reduce(p.x), reduce(p.y)};
}

template <class E>
DEVICE Xyzz<E> load(const Xyzz<E>* points, i64 i) {
    return points[i];
}

template <class E>
DEVICE void store(Xyzz<E>* points, i64 i, const Xyzz<E>& p) {
    points[i] = {reduce(p.x), reduce(p.y), reduce(p.zz), reduce(p.zzz)};
}
