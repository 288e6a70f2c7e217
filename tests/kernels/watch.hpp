// What emulator.hpp tells watch.cpp of a launch; nothing at all without WATCHED, which goes with -fsanitize=thread.

#pragma once

#include <cstddef>

// A function of the emulator, whose own accesses are none of the kernel's.
#define UNSEEN __attribute__((no_sanitize("thread")))

namespace watch {

// Bytes behind a block's shared memory, of which an access there is seen.
constexpr size_t SHARED_MARGIN = 256;

#ifdef WATCHED
// A launch begins, with so much shared memory.
void launch(const void* shared, size_t size);
// A block of it begins.
void block(unsigned block, unsigned threads);
// A thread of the block goes on; it waits at a barrier; it has ended.
void thread(unsigned thread);
void thread_waits();
void thread_ends();
// All threads of the block that have not ended were at a barrier, or all lanes of a warp; `orders` is false where
// they were there for a shuffle or a vote.
void block_barrier();
void warp_barrier(unsigned warp, bool orders);
void atomic(const void* at, size_t size, const void* place);
#else
inline void launch(const void*, size_t) {}
inline void block(unsigned, unsigned) {}
inline void thread(unsigned) {}
inline void thread_waits() {}
inline void thread_ends() {}
inline void block_barrier() {}
inline void warp_barrier(unsigned, bool) {}
inline void atomic(const void*, size_t, const void*) {}
#endif

}  // namespace watch
