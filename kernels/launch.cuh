// What a kernel needs to know of its launch. Every kernel parameter is a word of eight bytes, a pointer or an i64, so
// that a launch is a name and a list of words. Grids and blocks have one dimension.

#pragma once

#include "words.cuh"

#define KERNEL extern "C" __global__ void

// The block's dynamic shared memory, aligned to 16 bytes, as an array of T.
#ifdef __CUDA_ARCH__
#define SHARED_MEMORY(T, name)                                      \
    extern __shared__ __align__(16) unsigned char shared_memory[];  \
    T* const name = reinterpret_cast<T*>(shared_memory)
#else
#define SHARED_MEMORY(T, name) T* const name = reinterpret_cast<T*>(emulator::shared_start)
#endif

constexpr u32 WHOLE_WARP = ~0u;

// What the neighbouring lane, the index with its lowest bit turned, has for x; a type made of 32-bit words. All lanes
// of the warp take part.
template <class T>
DEVICE T exchanged(const T& x) {
#ifdef __CUDA_ARCH__
    T result;
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(T) / sizeof(u32)); i++) {
        reinterpret_cast<u32*>(&result)[i] = __shfl_xor_sync(WHOLE_WARP, reinterpret_cast<const u32*>(&x)[i], 1);
    }
    return result;
#else
    return emulator::exchange(WHOLE_WARP, x, threadIdx.x % 32 ^ 1u);
#endif
}

// Asks for what lies at p to be brought near, for a later load; changes nothing.
DEVICE void fetch_ahead(const void* p) {
#ifdef __CUDA_ARCH__
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
#else
    (void)p;
#endif
}

// A kernel over the half-open range [lo, hi) serves any grid: each thread takes every n-th element from its first on,
// n being the number of threads.
DEVICE i64 first_index(i64 lo) { return lo + static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x; }
DEVICE i64 thread_count() { return static_cast<i64>(gridDim.x) * blockDim.x; }

// The last i with starts[i] <= at, for values in ascending order from starts[0] = 0 to starts[count].
DEVICE i64 find(const u32* starts, i64 count, u32 at) {
    i64 low = 0, high = count;
    while (low < high) {
        const i64 middle = (low + high + 1) / 2;
        if (starts[middle] <= at) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return low;
}
