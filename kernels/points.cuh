// Sums of points that lie in memory, in one lane each or in two (fp2_lanes.cuh). All lanes of a warp call these
// functions together, each says whether it has something to do. XYZZ points are stored as they stand in registers,
// not reduced.

#pragma once

#include "curve.cuh"
#include "launch.cuh"

#define FUNCTION static __device__ __noinline__

// What this lane has of an element.
DEVICE Fq part_of(const Fq& x) { return x; }

// Coordinate i of an array, this lane's part.
template <class E>
DEVICE E get(const Fq* a, i64 i) {
    return {a[E::LANES * i + threadIdx.x % E::LANES]};
}

template <class E>
DEVICE void put(Fq* a, i64 i, const E& x) {
    a[E::LANES * i + threadIdx.x % E::LANES] = part_of(x);
}

// Point i of an array of affine ones.
template <class E>
DEVICE Affine<E> get_affine(const Fq* points, i64 i) {
    return {get<E>(points, 2 * i), get<E>(points, 2 * i + 1)};
}

// Asks for this lane's part of such a point.
template <class E>
DEVICE void fetch_affine_ahead(const Fq* points, i64 i) {
    fetch_ahead(points + 2 * i * E::LANES + threadIdx.x % E::LANES);
    fetch_ahead(points + (2 * i + 1) * E::LANES + threadIdx.x % E::LANES);
}

// Point i of an array of XYZZ ones.
template <class E>
DEVICE Xyzz<E> get_point(const Fq* points, i64 i) {
    return {get<E>(points, 4 * i), get<E>(points, 4 * i + 1), get<E>(points, 4 * i + 2), get<E>(points, 4 * i + 3)};
}

template <class E>
DEVICE void put_point(Fq* points, i64 i, const Xyzz<E>& p) {
    put(points, 4 * i, p.x);
    put(points, 4 * i + 1, p.y);
    put(points, 4 * i + 2, p.zz);
    put(points, 4 * i + 3, p.zzz);
}

// A point of each of the block's threads in shared memory: words of 16 bytes, those of neighbouring threads side by
// side.
template <class E>
class SharedPoint {
    struct alignas(16) Part {
        u32 word[4];
    };
    static constexpr int PARTS = Fq::LIMBS / 4;

    Part* parts;

public:
    // Of the block's thread `lane`.
    DEVICE explicit SharedPoint(unsigned char* memory, u32 lane = threadIdx.x)
        : parts(reinterpret_cast<Part*>(memory) + lane) {}

    // Coordinate k: X, Y, ZZ or ZZZ.
    DEVICE E get(int k) const {
        Fq x;
#pragma unroll
        for (int i = 0; i < PARTS; i++) {
            const Part part = parts[(k * PARTS + i) * blockDim.x];
#pragma unroll
            for (int j = 0; j < 4; j++) x.limb[4 * i + j] = part.word[j];
        }
        return {x};
    }

    DEVICE void put(int k, const E& element) {
        const Fq x = part_of(element);
#pragma unroll
        for (int i = 0; i < PARTS; i++) {
            const u32(&w)[Fq::LIMBS] = x.limb;
            parts[(k * PARTS + i) * blockDim.x] = {{w[4 * i], w[4 * i + 1], w[4 * i + 2], w[4 * i + 3]}};
        }
    }

    DEVICE void put(const Xyzz<E>& p) { put(0, p.x), put(1, p.y), put(2, p.zz), put(3, p.zzz); }
    DEVICE Xyzz<E> get() const { return {get(0), get(1), get(2), get(3)}; }
};

// p += q where `active`. Coordinates of p are read when they are due, so that few registers are taken.
template <class E>
DEVICE void add_affine_to(SharedPoint<E> p, const Affine<E>& q, bool active) {
    const bool none = is_infinity(q) | !active;
    const E zz = p.get(2);
    const bool first = is_zero(zz);
    if (E::every(none)) return;
    if (!E::every(first)) {
        const E d = q.x * zz - p.get(0), r = q.y * p.get(3) - p.get(1);
        bool equal = is_zero(d);
        if (E::any(equal)) equal = is_zero(r) & equal & !none & !first;
        const bool done = !none && !first && !equal;
        const E dd = square(d);
        const E ddd = d * dd;
        const E new_zz = p.get(2) * dd;
        if (done) p.put(2, new_zz);
        const E v = p.get(0) * dd;
        const E new_zzz = p.get(3) * ddd;
        if (done) p.put(3, new_zzz);
        const E x = square(r) - ddd - twice(v);
        if (done) p.put(0, x);
        const E y = sum_of_products(r, v - x, -p.get(1), ddd);
        if (done) p.put(1, y);
        if (E::any(equal)) {
            const Xyzz<E> twofold = double_affine(q);
            if (equal) p.put(twofold);
        }
    }
    if (first && !none) p.put(Xyzz<E>{q.x, q.y, E::one(), E::one()});
}

// p[i] = 2^times·p[i].
template <class E>
FUNCTION void double_at(Fq* p, i64 i, bool active, i64 times) {
    Xyzz<E> point = Xyzz<E>::identity();
    if (active) point = get_point<E>(p, i);
    for (i64 k = 0; k < times; k++) point = doubled(point);
    if (active) put_point(p, i, point);
}

// p[i] += q[j].
template <class E>
FUNCTION void add_to(Fq* p, i64 i, const Fq* q, i64 j, bool active) {
    E zz1 = E::zero(), zz2 = E::zero();
    if (active) zz1 = get<E>(p, 4 * i + 2), zz2 = get<E>(q, 4 * j + 2);
    const bool first = is_zero(zz1), none = is_zero(zz2);
    if (E::every(none)) return;
    if (!E::every(first)) {
        const auto of = [active](const Fq* a, i64 k) {
            E x = E::zero();
            if (active) x = get<E>(a, k);
            return x;
        };
        const E u = of(p, 4 * i) * zz2;
        const E d = of(q, 4 * j) * zz1 - u;
        const E s = of(p, 4 * i + 1) * of(q, 4 * j + 3);
        const E r = of(q, 4 * j + 1) * of(p, 4 * i + 3) - s;
        bool equal = is_zero(d);
        if (E::any(equal)) equal = is_zero(r) & equal & !none & !first;
        const bool done = !none && !first && !equal;
        const E dd = square(d);
        const E ddd = d * dd;
        const E zz = of(p, 4 * i + 2) * of(q, 4 * j + 2) * dd;
        if (done) put(p, 4 * i + 2, zz);
        const E v = u * dd;
        const E zzz = of(p, 4 * i + 3) * of(q, 4 * j + 3) * ddd;
        if (done) put(p, 4 * i + 3, zzz);
        const E x = square(r) - ddd - twice(v);
        if (done) put(p, 4 * i, x);
        const E y = sum_of_products(r, v - x, -s, ddd);
        if (done) put(p, 4 * i + 1, y);
        if (E::any(equal)) double_at<E>(p, i, equal, 1);
    }
    if (first && !none) put_point(p, i, get_point<E>(q, j));
}
