// The fields and curves of kernels/ on a host, for tests/kernels/test_offline.py: plain functions over arrays.

#include "curve.cuh"

// out[8i ...]: the test's RESULTS. Neither operands nor results are reduced.
template <class E>
static void operations(const E* a, const E* b, E* out, unsigned char* flags, i64 n) {
    for (i64 i = 0; i < n; i++) {
        const E x = a[i], y = b[i];
        const E results[] = {x + y, x - y, x * y, -x, square(x), twice(x), negate_if(x, i % 2 == 1), reduce(x)};
        for (int k = 0; k < 8; k++) out[8 * i + k] = results[k];
        flags[i] = (x == y) | is_zero(x) << 1;
    }
}

template <class E>
static void inverses(const E* a, E* out, i64 n) {
    for (i64 i = 0; i < n; i++) out[i] = inverse(a[i]);
}

// p with another representative than ZZ = 1.
template <class E>
static Xyzz<E> scaled(const Affine<E>& p, const E& z) {
    const Xyzz<E> t = from_affine(p);
    const E zz = square(z), zzz = zz * z;
    return {t.x * zz, t.y * zzz, t.zz * zz, t.zzz * zzz};
}

// out[6k ...]: p + q of two representatives, p + q with q affine twice over, 2p, ±p and ±q, the latter affine.
template <class E>
static void group_law(const Affine<E>* p, const Affine<E>* q, const E* z, Xyzz<E>* out, i64 n) {
    for (i64 k = 0; k < n; k++) {
        const Affine<E> p1 = load(p, k), q1 = load(q, k);
        const Xyzz<E> p2 = scaled(p1, z[0]), q2 = scaled(q1, z[1]);
        const bool negative = k % 2 == 1;
        store(out, 6 * k, add(p2, q2));
        store(out, 6 * k + 1, add_affine(p2, q1));
        store(out, 6 * k + 2, add_affine(from_affine(p1), q1));
        store(out, 6 * k + 3, doubled(load(out, 6 * k)));
        store(out, 6 * k + 4, negate_if(p2, negative));
        store(out, 6 * k + 5, from_affine(negate_if(q1, negative)));
    }
}

// out[i] = a[i]·b[i] + c[i]·d[i].
template <class E>
static void sums_of_products(const E* a, const E* b, const E* c, const E* d, E* out, i64 n) {
    for (i64 i = 0; i < n; i++) out[i] = sum_of_products(a[i], b[i], c[i], d[i]);
}

extern "C" void sums_of_products_fq(const Fq* a, const Fq* b, const Fq* c, const Fq* d, Fq* out, i64 n) {
    sums_of_products(a, b, c, d, out, n);
}

extern "C" void sums_of_products_fq2(const Fq2* a, const Fq2* b, const Fq2* c, const Fq2* d, Fq2* out, i64 n) {
    sums_of_products(a, b, c, d, out, n);
}

#define FIELD(E, name)                                                                                              \
    extern "C" void operations_##name(const E* a, const E* b, E* out, unsigned char* flags, i64 n) {                \
        operations(a, b, out, flags, n);                                                                            \
    }                                                                                                               \
    extern "C" void inverses_##name(const E* a, E* out, i64 n) { inverses(a, out, n); }

FIELD(Fq, fq)
FIELD(Fr, fr)
FIELD(Fq2, fq2)

extern "C" void group_law_g1(const Affine<Fq>* p, const Affine<Fq>* q, const Fq* z, Xyzz<Fq>* out, i64 n) {
    group_law(p, q, z, out, n);
}

extern "C" void group_law_g2(const Affine<Fq2>* p, const Affine<Fq2>* q, const Fq2* z, Xyzz<Fq2>* out, i64 n) {
    group_law(p, q, z, out, n);
}
