// Finds races of emulated kernels: what -fsanitize=thread calls at every access to memory, in place of the sanitizer's
// own run-time. One library for all programs, as what one has written another reads.
//
// Two accesses of different threads to the same memory, one of them a write, and not both atomic, have to be ordered.
// Within a block, what was before a __syncthreads is ordered with what comes after it; within a warp a __syncwarp does
// that. A shuffle or a vote orders accesses only in the loose mode: on a device it waits for all lanes, but promises
// nothing of their memory. A thread that has ended took part in no later barrier. Blocks of a launch are not ordered;
// launches are, since the device runs them in turn. Whether accesses are ordered does not depend on when they ran, so
// that one run shows the races of all orders that take the same branches.
//
// Besides: reads of memory that nobody has written, and accesses outside of every allocation, among them to memory
// that has been released. Everything is told apart by words of two bytes.

#include <algorithm>
#include <climits>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "watch.hpp"

namespace {

constexpr unsigned GRANULE = 2, PAGE = 1024, SEVERAL = UINT_MAX, MOST_REPORTS = 64;

enum Kind : unsigned { READ, WRITE, ATOMIC };
enum Fault : unsigned { RACE, UNWRITTEN, OUTSIDE };

struct Access {
    Kind kind;
    unsigned block;
    // A thread of the block, or SEVERAL of one warp at the same time.
    unsigned thread, warp;
    // Barriers before it: of the block, of the warp.
    unsigned block_time, warp_time;
    const void* place;
};

// The accesses to a granule, as far as later ones have to be compared with them.
struct Cell {
    uint64_t stamp = 0;
    bool written = false;
    Access write;
    std::vector<Access> others;
};

enum State : unsigned char { NO_MEMORY, NEVER_WRITTEN, WRITTEN };

struct Page {
    Cell cells[PAGE];
    State states[PAGE] = {};
};

// As emulator.py reads it.
struct Report {
    unsigned fault, shared;
    unsigned kind[2], block[2], thread[2];
    const void* place[2];
};

uintptr_t memory_start, memory_end, shared_start, shared_end;
std::vector<std::unique_ptr<Page>> pages;
std::vector<Cell> shared_cells;
std::vector<State> shared_states;
std::vector<Report> reports;
bool strict;
// Whether a thread of a kernel runs, and not the emulator.
bool running;

// Numbers of this launch, and of this block among those of all launches.
uint64_t launch_stamp, block_stamp;
unsigned this_block, this_thread, block_time;
std::vector<unsigned> warp_times;
// The times at which a thread of the block has ended.
struct End {
    unsigned block_time = UINT_MAX, warp_time = UINT_MAX;
};
std::vector<End> ends;

bool ordered(const Access& before, const Access& now) {
    if (before.block != now.block) return false;
    if (before.thread == now.thread) return true;
    const End end = before.thread == SEVERAL ? End{} : ends[before.thread];
    if (before.block_time < now.block_time) return before.block_time < end.block_time;
    return before.warp == now.warp && before.warp_time < now.warp_time && before.warp_time < end.warp_time;
}

void tell(Fault fault, bool shared, const Access& before, const Access& now) {
    for (const Report& r : reports) {
        if (r.fault == fault && r.place[0] == before.place && r.place[1] == now.place) return;
    }
    if (reports.size() == MOST_REPORTS) return;
    reports.push_back({fault, shared, {before.kind, now.kind}, {before.block, now.block}, {before.thread, now.thread},
                       {before.place, now.place}});
}

// Whether `before` need not be kept beside `now`, of the same kind and block.
bool replaced(const Access& before, const Access& now) {
    if (before.block_time < now.block_time) return before.thread == SEVERAL || ordered(before, now);
    return before.warp == now.warp && before.warp_time < now.warp_time && ordered(before, now);
}

// Keeps a read or an atomic. Of those of a warp in this block the last ones are enough, and of all other blocks one:
// whoever writes belongs to another block than that one or than this.
void keep(std::vector<Access>& others, const Access& now) {
    bool kept = false, elsewhere = false;
    size_t count = 0;
    for (Access before : others) {
        if (before.kind == now.kind) {
            if (before.block != now.block) {
                if (elsewhere) continue;
                elsewhere = true;
            } else if (replaced(before, now)) {
                continue;
            } else if (before.warp == now.warp && before.block_time == now.block_time &&
                       before.warp_time == now.warp_time) {
                if (before.thread != now.thread) before.thread = SEVERAL;
                kept = true;
            }
        }
        others[count++] = before;
    }
    others.resize(count);
    if (!kept) others.push_back(now);
}

void compare(Cell& cell, uint64_t stamp, bool shared, const Access& now) {
    if (cell.stamp != stamp) {
        cell.stamp = stamp;
        cell.written = false;
        cell.others.clear();
    }
    if (cell.written && !ordered(cell.write, now)) tell(RACE, shared, cell.write, now);
    for (const Access& before : cell.others) {
        if (before.kind != now.kind && !ordered(before, now)) tell(RACE, shared, before, now);
    }
    if (now.kind == WRITE) {
        cell.written = true;
        cell.write = now;
        cell.others.clear();
    } else {
        keep(cell.others, now);
    }
}

void look(State& state, bool shared, const Access& now) {
    if (state == NO_MEMORY) tell(OUTSIDE, shared, now, now);
    if (state == NEVER_WRITTEN && now.kind != WRITE) tell(UNWRITTEN, shared, now, now);
    if (state == NEVER_WRITTEN && now.kind != READ) state = WRITTEN;
}

void touch(const void* at, size_t size, Kind kind, const void* place) {
    if (!running) return;
    const uintptr_t first = reinterpret_cast<uintptr_t>(at), end = first + size;
    const bool shared = first >= shared_start && first < shared_end;
    if (!shared && (first < memory_start || first >= memory_end)) return;
    const unsigned warp = this_thread / 32;
    const Access now{kind, this_block, this_thread, warp, block_time, warp_times[warp], place};
    const uintptr_t start = shared ? shared_start : memory_start;
    for (uintptr_t k = (first - start) / GRANULE; k < (end - start + GRANULE - 1) / GRANULE; k++) {
        if (shared && k < shared_cells.size()) {
            look(shared_states[k], true, now);
            compare(shared_cells[k], block_stamp, true, now);
        } else if (shared || k / PAGE >= pages.size() || !pages[k / PAGE]) {
            tell(OUTSIDE, shared, now, now);
        } else {
            look(pages[k / PAGE]->states[k % PAGE], false, now);
            compare(pages[k / PAGE]->cells[k % PAGE], launch_stamp, false, now);
        }
    }
}

}  // namespace

namespace watch {

void launch(const void* shared, size_t size) {
    launch_stamp++;
    shared_start = reinterpret_cast<uintptr_t>(shared);
    shared_end = shared_start + size + SHARED_MARGIN;
    shared_cells.resize((size + GRANULE - 1) / GRANULE);
    shared_states.resize(shared_cells.size());
}

void block(unsigned block, unsigned threads) {
    block_stamp++;
    this_block = block;
    block_time = 0;
    warp_times.assign((threads + 31) / 32, 0);
    ends.assign(threads, End{});
    std::fill(shared_states.begin(), shared_states.end(), NEVER_WRITTEN);
}

void thread(unsigned thread) {
    this_thread = thread;
    running = true;
}

void thread_waits() { running = false; }

void thread_ends() {
    running = false;
    ends[this_thread] = {block_time, warp_times[this_thread / 32]};
}

void block_barrier() { block_time++; }

void warp_barrier(unsigned warp, bool orders) {
    if (orders || !strict) warp_times[warp]++;
}

void atomic(const void* at, size_t size, const void* place) { touch(at, size, ATOMIC, place); }

}  // namespace watch

// For emulator.py --------------------------------------------------------------------------------------------

extern "C" {

// All memory that a device will ever have; nothing is known of another one any longer.
void watch_memory(uintptr_t start, size_t size, int is_strict) {
    memory_start = start;
    memory_end = start + size;
    strict = is_strict != 0;
    pages.clear();
    pages.resize(size / (GRANULE * PAGE) + 1);
    reports.clear();
}

static State& state_at(uintptr_t at) {
    const uintptr_t k = (at - memory_start) / GRANULE;
    std::unique_ptr<Page>& page = pages[k / PAGE];
    if (!page) page = std::make_unique<Page>();
    return page->states[k % PAGE];
}

// What becomes of [start, start + size): a State. Both are even.
void watch_set(uintptr_t start, size_t size, unsigned state) {
    for (size_t i = 0; i < size; i += GRANULE) state_at(start + i) = static_cast<State>(state);
}

void watch_copy(uintptr_t to, uintptr_t start, size_t size) {
    for (size_t i = 0; i < size; i += GRANULE) state_at(to + i) = state_at(start + i);
}

// Whether all of it was written.
int watch_written(uintptr_t start, size_t size) {
    for (size_t i = 0; i < size; i += GRANULE) {
        if (state_at(start + i) != WRITTEN) return 0;
    }
    return 1;
}

// Moves the reports out; returns their number.
unsigned watch_take(Report* out) {
    std::copy(reports.begin(), reports.end(), out);
    const unsigned count = static_cast<unsigned>(reports.size());
    reports.clear();
    return count;
}

// What the compiler calls ------------------------------------------------------------------------------------

#define HERE __builtin_return_address(0)
#define SIZED(bytes)                                                                     \
    void __tsan_read##bytes(void* at) { touch(at, bytes, READ, HERE); }                  \
    void __tsan_write##bytes(void* at) { touch(at, bytes, WRITE, HERE); }                \
    void __tsan_unaligned_read##bytes(void* at) { touch(at, bytes, READ, HERE); }        \
    void __tsan_unaligned_write##bytes(void* at) { touch(at, bytes, WRITE, HERE); }

SIZED(1)
SIZED(2)
SIZED(4)
SIZED(8)
SIZED(16)

void __tsan_read_range(void* at, size_t size) { touch(at, size, READ, HERE); }
void __tsan_write_range(void* at, size_t size) { touch(at, size, WRITE, HERE); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

}  // extern "C"
