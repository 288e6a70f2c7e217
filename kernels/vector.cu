// Vectors over the scalar field: pointwise operations, conversions, powers, inverses.
// All elements are Montgomery and canonical unless said otherwise.

#include "field.cuh"
#include "launch.cuh"
#include "powers.cuh"

enum { ADD, SUB, MUL };
enum { TO_MONTGOMERY, FROM_MONTGOMERY };

// out[i] = a[i] ∘ b[i] with ∘ one of ADD, SUB, MUL; out may be a or b.
KERNEL pointwise(i64 operation, const Fr* a, const Fr* b, Fr* out, i64 lo, i64 hi) {
    for (i64 i = first_index(lo); i < hi; i += thread_count()) {
        const Fr x = load(a, i), y = load(b, i);
        store(out, i, operation == ADD ? x + y : operation == SUB ? x - y : x * y);
    }
}

// a[i] = a[i]·b[i] − c[i].
KERNEL multiply_subtract(Fr* a, const Fr* b, const Fr* c, i64 lo, i64 hi) {
    for (i64 i = first_index(lo); i < hi; i += thread_count()) {
        store(a, i, load(a, i) * load(b, i) - load(c, i));
    }
}

// Into Montgomery form or out of it; out may be a.
KERNEL convert(i64 operation, const Fr* a, Fr* out, i64 lo, i64 hi) {
    const Fr factor = operation == TO_MONTGOMERY ? Fr::r_squared() : Fr::bare_one();
    for (i64 i = first_index(lo); i < hi; i += thread_count()) store(out, i, load(a, i) * factor);
}

// v[i] ← v[i]·factor·base^i. The constants are the factor and then base^(2^m) for every bit m that an index of the range
// or the number of threads has.
KERNEL scale_powers(Fr* v, const Fr* constants, i64 lo, i64 hi) {
    const i64 first = first_index(lo);
    if (first >= hi) return;
    const Fr* const powers = constants + 1;
    Fr power = load(constants, 0) * product_of_bits(powers, static_cast<u64>(first));
    const Fr step = product_of_bits(powers, static_cast<u64>(thread_count()));
    for (i64 i = first; i < hi; i += thread_count()) {
        store(v, i, load(v, i) * power);
        power = power * step;
    }
}

// out[i] = 1/a[i], and 0 where a[i] is 0; out is not a. What one thread takes shares one inversion (Montgomery, "Speeding
// the Pollard and Elliptic Curve Methods of Factorization", 1987, section 10.3.1), which costs it the instructions of
// some 90 products, and three products an element: launch fewer threads than there are elements.
KERNEL batch_inverse(const Fr* a, Fr* out, i64 lo, i64 hi) {
    const i64 first = first_index(lo);
    if (first >= hi) return;
    // 1. out[i] is the product of the thread's elements before a[i], zeros left out.
    Fr product = Fr::one();
    for (i64 i = first; i < hi; i += thread_count()) {
        const Fr x = load(a, i);
        store(out, i, product);
        if (!is_zero(x)) product = product * x;
    }
    // 2. Back from the last one, with the inverse of the product of all elements up to a[i].
    Fr inverted = inverse(product);
    for (i64 i = first + (hi - 1 - first) / thread_count() * thread_count(); i >= first; i -= thread_count()) {
        const Fr x = load(a, i), before = load(out, i);
        const bool zero = is_zero(x);
        store(out, i, zero ? Fr::zero() : inverted * before);
        if (!zero) inverted = inverted * x;
    }
}
