// What systems of PLONK's kind do with columns and polynomials beside transforms: formulas over rows, sums of vectors,
// values at points, division by X^m − β, running products. A polynomial is its coefficients, from the constant one.
// All elements are Montgomery and canonical; what a kernel writes is no argument of it unless it says so.

#include "field.cuh"
#include "launch.cuh"
#include "powers.cuh"

// Formulas --------------------------------------------------------------------------------------------------
//
// A straight program for a machine with a few registers, run for each row. All threads are at the same instruction, so
// that its branches are uniform and its operands' kinds as well; a product takes ten times what its decoding does.

enum { ADD, SUB, MUL, STORE };

// target ← a ∘ b. Operands are numbered through: reads, then scalars, then registers. STORE: result `target` is a.
struct alignas(16) Instruction {
    u32 operation, target, a, b;
};

// A column at a rotation: on row i the element (i + offset) mod length; offset < length.
struct alignas(16) Read {
    const Fr* column;
    u32 length, offset;
};

// Registers lie in halves of 16 bytes, thread beside thread: neighbouring lanes meet every bank once in shared memory,
// and whole lines in global memory.
struct alignas(16) Half {
    u32 limb[Fr::LIMBS / 2];
};

struct Registers {
    Half* halves;
    i64 threads, thread;

    DEVICE Fr get(i64 which) const {
        const Half lower = halves[2 * which * threads + thread], upper = halves[(2 * which + 1) * threads + thread];
        Fr x;
#pragma unroll
        for (int i = 0; i < Fr::LIMBS / 2; i++) {
            x.limb[i] = lower.limb[i];
            x.limb[Fr::LIMBS / 2 + i] = upper.limb[i];
        }
        return x;
    }

    DEVICE void put(i64 which, const Fr& x) const {
        Half lower, upper;
#pragma unroll
        for (int i = 0; i < Fr::LIMBS / 2; i++) {
            lower.limb[i] = x.limb[i];
            upper.limb[i] = x.limb[Fr::LIMBS / 2 + i];
        }
        halves[2 * which * threads + thread] = lower;
        halves[(2 * which + 1) * threads + thread] = upper;
    }
};

struct Formula {
    const Instruction* program;
    const Read* reads;
    const Fr* scalars;
    Fr* const* results;
    i64 instructions, read_count, scalar_count, rows;

    DEVICE Fr operand(const Registers& registers, i64 which, i64 row) const {
        if (which < read_count) {
            const Read read = reads[which];
            u32 at = read.length == rows ? static_cast<u32>(row) : static_cast<u32>(row) % read.length;
            // Both are below the length, which is below 2^31.
            at += read.offset;
            if (at >= read.length) at -= read.length;
            return load(read.column, at);
        }
        which -= read_count;
        return which < scalar_count ? load(scalars, which) : registers.get(which - scalar_count);
    }

    DEVICE void run(const Registers& registers) const {
        for (i64 row = first_index(0); row < rows; row += thread_count()) {
#pragma unroll 1
            for (i64 k = 0; k < instructions; k++) {
                const Instruction now = program[k];
                const Fr x = operand(registers, now.a, row);
                if (now.operation == STORE) {
                    store(results[now.target], row, x);
                    continue;
                }
                const Fr y = operand(registers, now.b, row);
                if (now.operation == MUL) {
                    registers.put(now.target, x * y);
                } else {
                    registers.put(now.target, now.operation == ADD ? x + y : x - y);
                }
            }
        }
    }
};

// The results of a formula on all rows, with registers in shared memory: Fr::LIMBS·4 bytes for each and a thread.
KERNEL evaluate(const Instruction* program, const Read* reads, const Fr* scalars, Fr* const* results, i64 instructions,
                i64 read_count, i64 scalar_count, i64 rows) {
    SHARED_MEMORY(Half, halves);
    const Formula formula{program, reads, scalars, results, instructions, read_count, scalar_count, rows};
    formula.run({halves, static_cast<i64>(blockDim.x), static_cast<i64>(threadIdx.x)});
}

// The same with registers in global memory, for programs with too many of them.
KERNEL evaluate_large(const Instruction* program, const Read* reads, const Fr* scalars, Fr* const* results,
                      i64 instructions, i64 read_count, i64 scalar_count, i64 rows, Half* halves) {
    const Formula formula{program, reads, scalars, results, instructions, read_count, scalar_count, rows};
    formula.run({halves, thread_count(), first_index(0)});
}

// Sums and places ---------------------------------------------------------------------------------------------

// A vector whose element i stands for that of X^(i + shift).
struct alignas(16) Term {
    const Fr* v;
    i64 length, shift, unused;
};

// out[i] = Σ scalars[k]·(element of term k at X^i), for i < n.
KERNEL combine(const Term* terms, const Fr* scalars, i64 count, Fr* out, i64 n) {
    for (i64 i = first_index(0); i < n; i += thread_count()) {
        Fr sum = Fr::zero();
#pragma unroll 1
        for (i64 k = 0; k < count; k++) {
            const Term term = terms[k];
            const i64 at = i - term.shift;
            if (0 <= at && at < term.length) sum = sum + load(scalars, k) * load(term.v, at);
        }
        store(out, i, sum);
    }
}

// out[i] = factor·base^i. The constants are as those of scale_powers in vector.cu: the factor and then base^(2^m).
KERNEL powers(Fr* out, const Fr* constants, i64 n) {
    const i64 first = first_index(0);
    if (first >= n) return;
    Fr power = load(constants, 0) * product_of_bits(constants + 1, static_cast<u64>(first));
    const Fr step = product_of_bits(constants + 1, static_cast<u64>(thread_count()));
    for (i64 i = first; i < n; i += thread_count()) {
        store(out, i, power);
        power = power * step;
    }
}

// v[i] ← v[i]·Π factors[m] over the bits m of i: powers of one element in an order of its exponents' bits.
KERNEL scale_by_bits(Fr* v, const Fr* factors, i64 n) {
    for (i64 i = first_index(0); i < n; i += thread_count()) {
        store(v, i, load(v, i) * product_of_bits(factors, static_cast<u64>(i)));
    }
}

// out[i] = v[indices[i]], for indices below `length`; *outside counts the others, which give 0.
KERNEL gather(const Fr* v, i64 length, const u32* indices, Fr* out, i64 n, u32* outside) {
    for (i64 i = first_index(0); i < n; i += thread_count()) {
        const i64 at = indices[i];
        if (at >= length) atomicAdd(outside, 1u);
        store(out, i, at < length ? load(v, at) : Fr::zero());
    }
}

// out[i] = Σ v[i + j·n]·g^(i + j·n), for i < n = 2^log_n: transformed, these are the polynomial's values on g·⟨ω⟩ for
// a domain of n elements. squares[m] = g^(2^m), for the bits of n and of the number of threads.
KERNEL fold_onto_coset(const Fr* v, i64 length, const Fr* squares, i64 log_n, Fr* out) {
    const i64 n = 1ll << log_n, first = first_index(0);
    if (first >= n) return;
    Fr power = product_of_bits(squares, static_cast<u64>(first));
    const Fr step = product_of_bits(squares, static_cast<u64>(thread_count()));
    for (i64 i = first; i < n; i += thread_count()) {
        Fr sum = Fr::zero();
        if (i < length) {
            i64 k = i + (length - 1 - i) / n * n;
            sum = load(v, k);
#pragma unroll 1
            for (k -= n; k >= i; k -= n) sum = sum * load(squares, log_n) + load(v, k);
        }
        store(out, i, sum * power);
        power = power * step;
    }
}

// Elements that are sums of two others before them, values[known + i] = a·values[x] + b·values[y], from records of
// `stride` bytes with x, y (u32) and a, b (Montgomery, any words) at the given places, multiples of 4 and of 8. A pass
// makes those whose two elements are there; `made` says of which records that is so, and made_now after the pass. If
// `missing` is given, it counts what is not made by then: because it is a later pass's, or an index is not that of an
// element before its own.
KERNEL combine_signals(Fr* values, i64 known, const unsigned char* records, i64 stride, i64 x_at, i64 y_at, i64 a_at,
                       i64 b_at, i64 count, const unsigned short* made, unsigned short* made_now, u32* missing) {
    const auto factor = [](const unsigned char* at) {
        Fr f;
#pragma unroll
        for (int k = 0; k < Fr::LIMBS / 2; k++) {
            const u64 word = reinterpret_cast<const u64*>(at)[k];
            f.limb[2 * k] = static_cast<u32>(word);
            f.limb[2 * k + 1] = static_cast<u32>(word >> 32);
        }
        return f;
    };
    for (i64 i = first_index(0); i < count; i += thread_count()) {
        const auto is_there = [=](i64 at) { return at < known || (at < known + i && made[at - known]); };
        bool done = made[i];
        if (!done) {
            const unsigned char* const record = records + i * stride;
            const i64 x = *reinterpret_cast<const u32*>(record + x_at);
            const i64 y = *reinterpret_cast<const u32*>(record + y_at);
            done = is_there(x) && is_there(y);
            if (done) {
                const Fr left = factor(record + a_at) * load(values, x);
                store(values, known + i, left + factor(record + b_at) * load(values, y));
            }
        }
        made_now[i] = done;
        if (missing && !done) atomicAdd(missing, 1u);
    }
}

// Element i of out is element i/count of term i mod count, and 0 after its end.
KERNEL interleave(const Term* terms, i64 count, Fr* out, i64 n) {
    for (i64 i = first_index(0); i < n; i += thread_count()) {
        const Term term = terms[i % count];
        const i64 at = i / count;
        store(out, i, at < term.length ? load(term.v, at) : Fr::zero());
    }
}

// outs[j][i] = v[i·count + j]: what interleave does, undone.
KERNEL deinterleave(const Fr* v, Fr* const* outs, i64 count, i64 n) {
    for (i64 i = first_index(0); i < n; i += thread_count()) store(outs[i % count], i / count, load(v, i));
}

// Values at points ----------------------------------------------------------------------------------------------
//
// Thread t of T takes the coefficients t, t + T, … by Horner's rule in x^T. Then v(x) = Σ x^t·(its sum), and such a sum
// is folded in halves: those of neighbours by x, of pairs of them by x², and so on; first in blocks, then over them.

// out[i] = the sum of all threads' `sum`·g^thread, with powers[s] = g^(2^s). Blocks of a power of two threads.
DEVICE void store_folded(Fr* out, i64 i, const Fr& sum, const Fr* powers) {
    SHARED_MEMORY(Fr, sums);
    store(sums, threadIdx.x, sum);
    for (u32 s = 0; blockDim.x >> s > 1; s++) {
        __syncthreads();
        if (threadIdx.x < blockDim.x >> (s + 1)) {
            const u32 at = threadIdx.x << (s + 1);
            store(sums, at, load(sums, at) + load(powers, s) * load(sums, at + (1u << s)));
        }
    }
    if (threadIdx.x == 0) store(out, i, load(sums, 0));
}

// 2^log_blocks blocks for each query, a polynomial and its point's powers x^(2^m), `bits` of them; the last one is
// that of all threads of a query.
KERNEL values_by_blocks(const Term* queries, const Fr* powers, i64 bits, i64 log_blocks, Fr* partials) {
    const i64 query = blockIdx.x >> log_blocks, block = blockIdx.x & ((1u << log_blocks) - 1);
    const Term polynomial = queries[query];
    const Fr* const x = powers + query * bits;
    const i64 threads = static_cast<i64>(blockDim.x) << log_blocks;
    const i64 first = block * blockDim.x + threadIdx.x;
    const Fr step = load(x, bits - 1);
    Fr sum = Fr::zero();
    if (first < polynomial.length) {
        for (i64 i = first + (polynomial.length - 1 - first) / threads * threads; i >= first; i -= threads) {
            sum = sum * step + load(polynomial.v, i);
        }
    }
    store_folded(partials, blockIdx.x, sum, x);
}

// A block of 2^log_blocks threads for each query; the first `skipped` powers were those within blocks.
KERNEL values_of_blocks(const Fr* partials, const Fr* powers, i64 bits, i64 skipped, Fr* out) {
    const i64 query = blockIdx.x;
    const Fr part = load(partials, query * blockDim.x + threadIdx.x);
    store_folded(out, query, part, powers + query * bits + skipped);
}

// Scans -----------------------------------------------------------------------------------------------------------
//
// A vector in rows of `width` elements; each column is a chain y[p] = x[p] ∘ y[p − 1] over its rows, from the last row
// to the first one (DIVISION) or from the first to the last (PRODUCT). With x ∘ y = x + β·y the chains of a
// polynomial's coefficients hold its quotient by X^width − β, and then the remainder: synthetic division.
//
// A tile is `groups`·`share` rows; a block has a tile of up to blockDim columns, and a thread `share` rows of one of them.
// First each tile's own result at its end is made (totals), then the same scan runs over these, which are rows of
// `width` elements as well, and last each tile is scanned from what the one before it ends with: two to three products an
// element and two passes over the vector.

struct Division {
    static constexpr bool BACKWARDS = true;
    const Fr* constants;  // β, and then β^(share·2^s)

    DEVICE Fr start() const { return Fr::zero(); }
    DEVICE Fr next(const Fr& x, const Fr& y) const { return x + load(constants, 0) * y; }

    // What `near` ends with if it starts from `far`; 2^s groups lie between their ends.
    DEVICE Fr join(const Fr& near, const Fr& far, i64 s) const { return near + load(constants, 1 + s) * far; }
};

struct Product {
    static constexpr bool BACKWARDS = false;

    DEVICE Fr start() const { return Fr::one(); }
    DEVICE Fr next(const Fr& x, const Fr& y) const { return x * y; }
    DEVICE Fr join(const Fr& near, const Fr& far, i64) const { return near * far; }
};

template <class Operation>
struct Scan {
    const Operation operation;
    const Fr* const v;
    const i64 n, width, share, columns;
    // The vector's rows and tiles; the block's groups and its tile; the thread's group in it, and its column.
    const i64 rows, groups, tiles, tile, group, column;

    DEVICE Scan(const Operation& operation, const Fr* v, i64 n, i64 width, i64 share, i64 columns)
        : operation(operation),
          v(v),
          n(n),
          width(width),
          share(share),
          columns(columns),
          rows((n + width - 1) / width),
          groups(blockDim.x / columns),
          tiles((rows + groups * share - 1) / (groups * share)),
          tile(blockIdx.x % tiles),
          group(threadIdx.x / columns),
          column(blockIdx.x / tiles * columns + threadIdx.x % columns) {}

    // Where the thread's element k is in the vector; not below n if there is none.
    DEVICE i64 at(i64 k) const {
        const i64 place = (tile * groups + group) * share + k;
        if (place >= rows || column >= width) return n;
        return (Operation::BACKWARDS ? rows - 1 - place : place) * width + column;
    }

    // Where the total of a tile is in their vector, whose rows are in the same order.
    DEVICE i64 total_at(i64 which) const {
        return (Operation::BACKWARDS ? tiles - 1 - which : which) * width + column;
    }

    // What the thread's chain holds before its first row, the tile's holding `before`. results[] then has what each
    // thread's chain holds after its last row.
    DEVICE Fr carry(Fr* results, const Fr& before) const {
        Fr y = group == 0 ? before : operation.start();
#pragma unroll 1
        for (i64 k = 0; k < share; k++) {
            const i64 i = at(k);
            if (i < n) y = operation.next(load(v, i), y);
        }
        store(results, threadIdx.x, y);
        __syncthreads();
#pragma unroll 1
        for (i64 s = 0; 1ll << s < groups; s++) {
            const bool joins = group >= 1ll << s;
            if (joins) y = operation.join(y, load(results, threadIdx.x - (columns << s)), s);
            __syncthreads();
            if (joins) store(results, threadIdx.x, y);
            __syncthreads();
        }
        return group == 0 ? before : load(results, threadIdx.x - columns);
    }

    DEVICE void totals(Fr* out) const {
        SHARED_MEMORY(Fr, results);
        carry(results, operation.start());
        if (group == groups - 1 && column < width) store(out, total_at(tile), load(results, threadIdx.x));
    }

    // `carries` are the scanned totals, which a single tile needs none of; put(i, y) takes the results, and may write
    // them to the vector itself.
    template <class Put>
    DEVICE void results(const Fr* carries, const Fr& start, Put put) const {
        SHARED_MEMORY(Fr, shared);
        Fr y = start;
        if (tile > 0 && column < width) y = load(carries, total_at(tile - 1));
        y = carry(shared, y);
#pragma unroll 1
        for (i64 k = 0; k < share; k++) {
            const i64 i = at(k);
            if (i >= n) continue;
            y = operation.next(load(v, i), y);
            put(i, y);
        }
    }
};

KERNEL division_totals(const Fr* v, i64 n, i64 width, i64 share, i64 columns, const Fr* constants, Fr* out) {
    Scan<Division>({constants}, v, n, width, share, columns).totals(out);
}

// The first `width` results are the remainder, the others the quotient; both may lie in v, one after the other.
KERNEL division_results(const Fr* v, i64 n, i64 width, i64 share, i64 columns, const Fr* constants, const Fr* carries,
                        Fr* remainder, Fr* quotient) {
    Scan<Division>({constants}, v, n, width, share, columns).results(carries, Fr::zero(), [&](i64 i, const Fr& y) {
        store(i < width ? remainder + i : quotient + (i - width), 0, y);
    });
}

KERNEL product_totals(const Fr* v, i64 n, i64 share, Fr* out) { Scan<Product>({}, v, n, 1, share, 1).totals(out); }

// out[i] = start·v[0]·…·v[i]; out may be v.
KERNEL product_results(const Fr* v, i64 n, i64 share, const Fr* start, const Fr* carries, Fr* out) {
    Scan<Product>({}, v, n, 1, share, 1).results(carries, load(start, 0), [&](i64 i, const Fr& y) { store(out, i, y); });
}
