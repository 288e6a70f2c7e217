// Vectors over the scalar field: pointwise operations and conversions.
// All elements are Montgomery and canonical unless said otherwise.

#include "field.cuh"
#include "launch.cuh"

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
