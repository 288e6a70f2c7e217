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

// A kernel over the half-open range [lo, hi) serves any grid: each thread takes every n-th element from its first on,
// n being the number of threads.
DEVICE i64 first_index(i64 lo) { return lo + static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x; }
DEVICE i64 thread_count() { return static_cast<i64>(gridDim.x) * blockDim.x; }
