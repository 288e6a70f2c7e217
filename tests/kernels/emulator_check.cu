// Kernels that use each of the emulator's built-ins once, for tests/support/test_emulator.py.

#include "field.cuh"
#include "launch.cuh"

// out[i] = the sum of the block's a, by a tree in shared memory.
KERNEL sum_blocks(const u64* a, u64* out) {
    SHARED_MEMORY(u64, sums);
    sums[threadIdx.x] = a[blockIdx.x * blockDim.x + threadIdx.x];
    __syncthreads();
    for (u32 half = blockDim.x / 2; half; half /= 2) {
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) out[blockIdx.x] = sums[0];
}

// Prefix sums within warps; only the first n threads take part.
KERNEL scan_warps(const u32* a, u32* out, i64 n) {
    const i64 i = first_index(0);
    if (i >= n) return;
    const u32 mask = n - i / 32 * 32 >= 32 ? WHOLE_WARP : (1u << (n % 32)) - 1;
    u32 sum = a[i];
    for (u32 delta = 1; delta < 32; delta *= 2) {
        const u32 other = __shfl_up_sync(mask, sum, delta);
        if (threadIdx.x % 32 >= delta) sum += other;
    }
    out[i] = sum;
}

// Groups of equal values in a warp, and votes.
KERNEL groups(const u32* a, u32* same, u32* odd) {
    const i64 i = first_index(0);
    same[i] = __match_any_sync(WHOLE_WARP, a[i]);
    odd[i] = __ballot_sync(WHOLE_WARP, a[i] % 2);
}

// Each half of a warp sums by itself.
KERNEL halves(const u32* a, u32* out) {
    const i64 i = first_index(0);
    const u32 mask = threadIdx.x % 32 < 16 ? 0xFFFF : 0xFFFF0000;
    u32 sum = a[i];
    for (int distance = 8; distance; distance /= 2) sum += __shfl_xor_sync(mask, sum, distance);
    out[i] = sum;
}

KERNEL count(u32* counters, const u32* a, i64 n) {
    const i64 i = first_index(0);
    if (i < n) atomicAdd(&counters[a[i]], 1u);
}

// One thread waits for its warp, the others for the block.
KERNEL hangs() {
    if (threadIdx.x == 7) {
        __syncwarp();
    } else {
        __syncthreads();
    }
}

// Depends on the order of threads.
KERNEL races(u32* out) { *out = threadIdx.x; }

enum { NOTHING, SHUFFLE, SYNC_WARP, SYNC_THREADS };

// Each thread reads what its neighbour in the block has written to shared memory.
KERNEL neighbours(u32* out, i64 barrier) {
    SHARED_MEMORY(u32, shared);
    shared[threadIdx.x] = threadIdx.x;
    if (barrier == SHUFFLE) __shfl_sync(WHOLE_WARP, 0, 0);
    if (barrier == SYNC_WARP) __syncwarp();
    if (barrier == SYNC_THREADS) __syncthreads();
    out[first_index(0)] = shared[(threadIdx.x + 1) % blockDim.x];
}

// Half words, each of another thread.
KERNEL half_words(unsigned short* out) { out[first_index(0)] = 1; }

// The first thread of each block writes, and all read.
KERNEL one_writes(u32* word, u32* out) {
    if (threadIdx.x == 0) *word = 1;
    __syncthreads();
    out[first_index(0)] = *word;
}

// Threads add atomically, and one reads.
KERNEL counts_and_reads(u32* counter, u32* out, i64 barrier) {
    atomicAdd(counter, 1u);
    if (barrier) __syncthreads();
    if (threadIdx.x == 0) *out = *counter;
}

// A thread writes and ends, and another one reads after a barrier that the first has not seen.
KERNEL writes_and_ends(u32* word, u32* out) {
    if (threadIdx.x == 0) {
        *word = 1;
        return;
    }
    __syncthreads();
    if (threadIdx.x == 1) *out = *word;
}

KERNEL reads_at(const u32* in, u32* out, i64 index) { *out = in[index]; }
KERNEL reads_shared(u32* out, i64 index) {
    SHARED_MEMORY(u32, shared);
    *out = shared[index];
}

KERNEL writes_past(unsigned char* out, i64 size) { out[size] = 1; }
