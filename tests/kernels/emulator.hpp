// A GPU's grid on one host thread: included before a kernel file, it gives that file CUDA's built-in names.
//
// Blocks run one after another. In a block every thread is a coroutine that runs until it ends or waits at a
// barrier, so that __syncthreads, __syncwarp, shuffles and votes work as written. Nothing runs at the same time, but
// threads and blocks can be taken in reverse or in random order, and a result that changes with it depends on what
// a device does not promise. Dynamic shared memory starts as garbage in every block.
//
// A barrier that not every live thread reaches would hang a device; here the launch fails (DEADLOCK).
//
// Compiled with -fsanitize=thread, kernels report every access to memory to watch.cpp, which finds races.

#pragma once

// glibc's checked longjmp takes a jump to another stack for a mistake.
#undef _FORTIFY_SOURCE

#include <setjmp.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "watch.hpp"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __constant__ static const
#define __shared__ static
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

struct Index {
    unsigned x, y = 0, z = 0;
};
struct Extent {
    unsigned x, y = 1, z = 1;
};

static Index blockIdx{0}, threadIdx{0};
static Extent gridDim{1}, blockDim{1};
static const int warpSize = 32;

namespace emulator {

constexpr size_t STACK = 256 << 10;
enum Outcome : int { DONE = 0, DEADLOCK = 1, BAD_LAUNCH = 2 };

struct Barrier {
    unsigned arrived = 0, generation = 0;
};

struct Warp {
    Barrier barrier;
    alignas(16) unsigned char slots[32][64];
    bool live[32];
    unsigned arrived_mask = 0;
    // What each lane that has arrived waits for.
    unsigned masks[32];
    // Whether the barrier that its lanes are at orders their accesses: __syncwarp does, shuffles and votes do not.
    bool orders = false;
};

// A coroutine starts by its context and is left and entered by its jump, which makes no system call.
struct Fiber {
    ucontext_t context;
    jmp_buf jump;
    bool started = false;
    std::unique_ptr<char[]> stack{new char[STACK]};
    unsigned thread = 0;
    // What it waits for: the barrier's generation to leave this value.
    const Barrier* waits_for = nullptr;
    unsigned generation = 0;
    bool busy = false;
};

struct Launch {
    void (*kernel)();
    const uint64_t* arguments;
    int count;
};

static jmp_buf scheduler;
static std::vector<std::unique_ptr<Fiber>> fibers;
static Fiber* current = nullptr;
static Launch launch_state;
static std::vector<Warp> warps;
static Barrier block_barrier;
static unsigned next_thread, live_threads;
static std::vector<unsigned> block_order, thread_order;
static uint64_t chance;
static bool by_chance;
static std::vector<unsigned char> shared_bytes;
static unsigned char* shared_start;

// Any order (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014; Fisher and Yates).
template <class T>
UNSEEN inline void shuffle(std::vector<T>& all) {
    for (size_t n = all.size(); n > 1; n--) {
        uint64_t z = chance += 0x9E3779B97F4A7C15;
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
        z = (z ^ z >> 27) * 0x94D049BB133111EB;
        std::swap(all[n - 1], all[(z ^ z >> 31) % n]);
    }
}

UNSEEN inline void put_in_order(std::vector<unsigned>& all, unsigned n, bool reversed) {
    all.resize(n);
    for (unsigned i = 0; i < n; i++) all[i] = reversed ? n - 1 - i : i;
}

// From the scheduler into a coroutine, until that waits or ends.
UNSEEN inline void enter(Fiber* fiber) {
    current = fiber;
    if (_setjmp(scheduler)) return;
    if (fiber->started) _longjmp(fiber->jump, 1);
    fiber->started = true;
    setcontext(&fiber->context);
}

// And back.
UNSEEN inline void leave(Fiber* fiber) {
    if (!_setjmp(fiber->jump)) _longjmp(scheduler, 1);
}

UNSEEN inline void call() {
    const uint64_t* a = launch_state.arguments;
    void (*k)() = launch_state.kernel;
    using u = uint64_t;
    switch (launch_state.count) {
        case 0: k(); break;
        case 1: ((void (*)(u))k)(a[0]); break;
        case 2: ((void (*)(u, u))k)(a[0], a[1]); break;
        case 3: ((void (*)(u, u, u))k)(a[0], a[1], a[2]); break;
        case 4: ((void (*)(u, u, u, u))k)(a[0], a[1], a[2], a[3]); break;
        case 5: ((void (*)(u, u, u, u, u))k)(a[0], a[1], a[2], a[3], a[4]); break;
        case 6: ((void (*)(u, u, u, u, u, u))k)(a[0], a[1], a[2], a[3], a[4], a[5]); break;
        default:
            // The x86-64 and the AArch64 calling conventions pass further words on the stack, whatever their type.
            ((void (*)(u, u, u, u, u, u, u, u, u, u, u, u, u, u, u, u))k)(
                a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12], a[13], a[14], a[15]);
    }
}


UNSEEN inline void release(Barrier& barrier) {
    barrier.arrived = 0;
    barrier.generation++;
}

UNSEEN inline void release_if_complete() {
    if (!live_threads || block_barrier.arrived != live_threads) return;
    release(block_barrier);
    watch::block_barrier();
}

UNSEEN inline unsigned live_in(const Warp& warp) {
    unsigned mask = 0;
    for (int lane = 0; lane < 32; lane++) mask |= unsigned(warp.live[lane]) << lane;
    return mask;
}

// Lanes that have ended are not waited for, as on a device. A barrier of a part of a warp orders no accesses for
// watch.cpp: no kernel has one.
UNSEEN inline void release_if_complete(Warp& warp, unsigned mask) {
    if ((warp.arrived_mask & mask) != (live_in(warp) & mask)) return;
    const bool whole = (live_in(warp) & ~mask) == 0;
    warp.arrived_mask &= ~mask;
    release(warp.barrier);
    if (whole) watch::warp_barrier(static_cast<unsigned>(&warp - warps.data()), warp.orders);
}

// Coroutines take threads until one of them waits; then another coroutine takes the rest.
UNSEEN inline void fiber_main() {
    Fiber* self = current;
    while (next_thread < blockDim.x) {
        const unsigned i = next_thread++;
        self->thread = thread_order[i];
        threadIdx.x = self->thread;
        watch::thread(self->thread);
        call();
        watch::thread_ends();
        Warp& warp = warps[self->thread / 32];
        warp.live[self->thread % 32] = false;
        for (int lane = 0; lane < 32; lane++) {
            if (warp.arrived_mask >> lane & 1) release_if_complete(warp, warp.masks[lane]);
        }
        live_threads--;
        release_if_complete();
    }
    self->busy = false;
    leave(self);
}

UNSEEN inline void wait_for(const Barrier& barrier, unsigned generation) {
    Fiber* self = current;
    self->waits_for = &barrier;
    self->generation = generation;
    watch::thread_waits();
    leave(self);
    self->waits_for = nullptr;
    threadIdx.x = self->thread;
    watch::thread(self->thread);
}

UNSEEN inline void sync_block() {
    const unsigned generation = block_barrier.generation;
    block_barrier.arrived++;
    release_if_complete();
    if (block_barrier.generation == generation) wait_for(block_barrier, generation);
}

// All live lanes of the mask have to come. Several groups of a warp may wait at once.
UNSEEN inline void sync_warp(unsigned mask, bool orders) {
    const unsigned lane = threadIdx.x % 32;
    Warp& warp = warps[threadIdx.x / 32];
    warp.orders = orders;
    unsigned generation = warp.barrier.generation;
    warp.arrived_mask |= 1u << lane;
    warp.masks[lane] = mask;
    release_if_complete(warp, mask);
    while (warp.arrived_mask >> lane & 1) {
        wait_for(warp.barrier, generation);
        generation = warp.barrier.generation;
    }
}

// What lane `from` has.
template <class T>
UNSEEN inline T exchange(unsigned mask, T value, unsigned from) {
    static_assert(sizeof(T) <= sizeof(Warp::slots[0]), "more than a lane's slot holds");
    Warp& warp = warps[threadIdx.x / 32];
    memcpy(warp.slots[threadIdx.x % 32], &value, sizeof(T));
    sync_warp(mask, false);
    T result;
    memcpy(&result, warp.slots[from % 32], sizeof(T));
    sync_warp(mask, false);
    return result;
}

template <class Predicate>
UNSEEN inline unsigned vote(unsigned mask, uint64_t value, Predicate holds) {
    Warp& warp = warps[threadIdx.x / 32];
    memcpy(warp.slots[threadIdx.x % 32], &value, sizeof(value));
    sync_warp(mask, false);
    unsigned result = 0;
    for (unsigned lane = 0; lane < 32; lane++) {
        uint64_t other;
        memcpy(&other, warp.slots[lane], sizeof(other));
        if (mask >> lane & 1 && warp.live[lane] && holds(other)) result |= 1u << lane;
    }
    sync_warp(mask, false);
    return result;
}

UNSEEN inline bool run_block() {
    const unsigned n = blockDim.x;
    warps.assign((n + 31) / 32, Warp{});
    for (unsigned t = 0; t < n; t++) warps[t / 32].live[t % 32] = true;
    block_barrier = Barrier{};
    next_thread = 0;
    live_threads = n;
    if (by_chance) shuffle(thread_order);
    watch::block(blockIdx.x, n);
    for (size_t i = 0; i < shared_bytes.size(); i++) shared_bytes[i] = static_cast<unsigned char>(0xA5 + i);
    while (live_threads) {
        bool moved = false;
        if (by_chance) shuffle(fibers);
        for (size_t i = 0; i < fibers.size(); i++) {
            Fiber* fiber = fibers[i].get();
            if (!fiber->busy || fiber->waits_for->generation == fiber->generation) continue;
            moved = true;
            enter(fiber);
        }
        if (next_thread < n) {
            Fiber* fiber = nullptr;
            for (auto& candidate : fibers) {
                if (!candidate->busy) fiber = candidate.get();
            }
            if (!fiber) {
                fibers.push_back(std::make_unique<Fiber>());
                fiber = fibers.back().get();
            }
            getcontext(&fiber->context);
            fiber->context.uc_stack.ss_sp = fiber->stack.get();
            fiber->context.uc_stack.ss_size = STACK;
            fiber->context.uc_link = nullptr;
            makecontext(&fiber->context, fiber_main, 0);
            fiber->busy = true;
            fiber->waits_for = nullptr;
            fiber->started = false;
            enter(fiber);
            moved = true;
        }
        if (!moved && live_threads) {
            for (auto& fiber : fibers) fiber->busy = false;
            return false;
        }
    }
    return true;
}

}  // namespace emulator

// Runs a kernel whose parameters are all words of eight bytes. Blocks and threads come in their order (0), from the
// last to the first (1), or, by any other `order`, in a random one that it is the seed of.
extern "C" UNSEEN int emulate(void (*kernel)(), const uint64_t* arguments, int count, unsigned blocks, unsigned threads,
                       size_t shared, uint64_t order) {
    using namespace emulator;
    if (!blocks || !threads || threads > 1024 || count > 16) return BAD_LAUNCH;
    uint64_t padded[16] = {};
    memcpy(padded, arguments, sizeof(uint64_t) * static_cast<size_t>(count));
    launch_state = {kernel, padded, count};
    by_chance = order > 1;
    chance = order;
    put_in_order(block_order, blocks, order == 1);
    put_in_order(thread_order, threads, order == 1);
    if (by_chance) shuffle(block_order);
    gridDim.x = blocks;
    blockDim.x = threads;
    shared_bytes.resize(shared + 256 + watch::SHARED_MARGIN);
    shared_start = shared_bytes.data() + (256 - reinterpret_cast<uintptr_t>(shared_bytes.data()) % 256) % 256;
    watch::launch(shared_start, shared);
    for (const unsigned block : block_order) {
        blockIdx.x = block;
        if (!run_block()) return DEADLOCK;
    }
    return DONE;
}

// CUDA's functions -------------------------------------------------------------------------------------------

inline void __syncthreads() { emulator::sync_block(); }
inline void __syncwarp(unsigned mask = 0xFFFFFFFFu) { emulator::sync_warp(mask, true); }
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T>
inline T __shfl_sync(unsigned mask, T value, int from, int width = 32) {
    const unsigned lane = threadIdx.x % 32;
    return emulator::exchange(mask, value, lane / width * width + static_cast<unsigned>(from) % width);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const unsigned lane = threadIdx.x % 32;
    return emulator::exchange(mask, value, lane % width < delta ? lane : lane - delta);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const unsigned lane = threadIdx.x % 32;
    return emulator::exchange(mask, value, lane % width + delta >= static_cast<unsigned>(width) ? lane : lane + delta);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int other, int = 32) {
    return emulator::exchange(mask, value, (threadIdx.x % 32) ^ static_cast<unsigned>(other));
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
    return emulator::vote(mask, predicate != 0, [](uint64_t v) { return v != 0; });
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
template <class T>
inline unsigned __match_any_sync(unsigned mask, T value) {
    const uint64_t mine = static_cast<uint64_t>(value);
    return emulator::vote(mask, mine, [mine](uint64_t v) { return v == mine; });
}

// One thread runs at a time, so that plain code is atomic.
template <class T, class V>
UNSEEN __attribute__((noinline)) T atomicAdd(T* at, V value) {
    watch::atomic(at, sizeof(T), __builtin_return_address(0));
    const T old = *at;
    *at = static_cast<T>(old + static_cast<T>(value));
    return old;
}
template <class T, class V>
UNSEEN __attribute__((noinline)) T atomicMax(T* at, V value) {
    watch::atomic(at, sizeof(T), __builtin_return_address(0));
    const T old = *at;
    if (static_cast<T>(value) > old) *at = static_cast<T>(value);
    return old;
}
template <class T, class V>
UNSEEN __attribute__((noinline)) T atomicExch(T* at, V value) {
    watch::atomic(at, sizeof(T), __builtin_return_address(0));
    const T old = *at;
    *at = static_cast<T>(value);
    return old;
}
template <class T, class V>
UNSEEN __attribute__((noinline)) T atomicOr(T* at, V value) {
    watch::atomic(at, sizeof(T), __builtin_return_address(0));
    const T old = *at;
    *at = old | static_cast<T>(value);
    return old;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __brev(unsigned x) {
    unsigned result = 0;
    for (int i = 0; i < 32; i++) result |= (x >> i & 1) << (31 - i);
    return result;
}
template <class T>
inline T __ldg(const T* at) {
    return *at;
}
template <class T>
inline T min(T a, T b) {
    return b < a ? b : a;
}
template <class T>
inline T max(T a, T b) {
    return a < b ? b : a;
}
