// Vectors over the scalar field: pointwise operations and conversions.
//
// Kernels work on the half-open range [lo, hi), whatever the grid: each thread takes every n-th element, n being
// the number of threads. All elements are Montgomery and canonical unless said otherwise.

#include "field.cuh"

enum { ADD, SUB, MUL };
enum { TO_MONTGOMERY, FROM_MONTGOMERY };

DEVICE i64 first_index(i64 lo) { return lo + static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x; }
DEVICE i64 thread_count() { return static_cast<i64>(gridDim.x) * blockDim.x; }

// out[i] = a[i] ∘ b[i] with ∘ one of ADD, SUB, MUL; out may be a or b.
extern "C" __global__ void pointwise(int operation, const Fr* a, const Fr* b, Fr* out, i64 lo, i64 hi) {
    for (i64 i = first_index(lo); i < hi; i += thread_count()) {
        const Fr x = load(a, i), y = load(b, i);
        store(out, i, operation == ADD ? x + y : operation == SUB ? x - y : x * y);
    }
}

// a[i] = a[i]·b[i] − c[i].
extern "C" __global__ void multiply_subtract(Fr* a, const Fr* b, const Fr* c, i64 lo, i64 hi) {
    for (i64 i = first_index(lo); i < hi; i += thread_count()) {
        store(a, i, load(a, i) * load(b, i) - load(c, i));
    }
}

// Into Montgomery form or out of it; out may be a.
extern "C" __global__ void convert(int operation, const Fr* a, Fr* out, i64 lo, i64 hi) {
    const Fr factor = operation == TO_MONTGOMERY ? Fr::r_squared() : Fr::bare_one();
    for (i64 i = first_index(lo); i < hi; i += thread_count()) store(out, i, load(a, i) * factor);
}
