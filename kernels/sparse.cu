// Sparse matrices times a vector over the scalar field.
//
// A row's entries are cut into chunks of at most 32, one thread each, so that a row of a million entries keeps no
// warp waiting. A row of one chunk is done with that; the sums of the chunks of longer rows are partial sums, which
// are added up the same way, 32 at a time, until one is left.

#include "field.cuh"
#include "launch.cuh"

// Entries or partial sums from start to below end. Their sum goes to row `target`, or, where target >= rows, to
// partial sum target − rows.
struct Chunk {
    u32 start, end, target;
};

DEVICE void put(Fr* out, Fr* partials, i64 rows, u32 target, const Fr& sum) {
    if (target < rows) {
        store(out, target, sum);
    } else {
        store(partials, target - rows, sum);
    }
}

// Σ values[i]·w[columns[i]] of every chunk. The values are c·R² and w is canonical, so that the sums are Montgomery.
KERNEL multiply_chunks(const Fr* values, const u32* columns, const Chunk* chunks, i64 n, const Fr* w, Fr* out,
                       Fr* partials, i64 rows) {
    for (i64 k = first_index(0); k < n; k += thread_count()) {
        const Chunk chunk = chunks[k];
        Fr sum = Fr::zero();
#pragma unroll 1
        for (u32 i = chunk.start; i < chunk.end; i++) {
            const Fr value = load(values, i), factor = load(w, columns[i]);
            sum = sum + value * factor;
        }
        put(out, partials, rows, chunk.target, sum);
    }
}

// Σ partials[i] of every chunk. No chunk writes a partial sum that another one of the same launch reads.
KERNEL add_chunks(const Chunk* chunks, i64 n, Fr* out, Fr* partials, i64 rows) {
    for (i64 k = first_index(0); k < n; k += thread_count()) {
        const Chunk chunk = chunks[k];
        Fr sum = Fr::zero();
#pragma unroll 1
        for (u32 i = chunk.start; i < chunk.end; i++) {
            const Fr part = load(partials, i);
            sum = sum + part;
        }
        put(out, partials, rows, chunk.target, sum);
    }
}
