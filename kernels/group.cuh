// The group that a program is compiled for, GROUP being 1 or 2. A point of G2 lies in two neighbouring lanes, so that
// a "thread" of these kernels is a thread or a pair of them.

#pragma once

#include "curve.cuh"
#include "launch.cuh"

#ifndef GROUP
#define GROUP 1
#endif

#if GROUP == 1
using E = Fq;
#else
#include "fp2_lanes.cuh"
using E = Fq2Lane;
#endif

#include "points.cuh"

// Of an entry: its point counts with the other sign.
constexpr u32 SIGN = 1u << 31;

// Of the lanes that hold a point together, the one that writes what they both know.
DEVICE bool is_first_lane() { return threadIdx.x % E::LANES == 0; }

DEVICE u32 thread_in_block() { return threadIdx.x / E::LANES; }
DEVICE i64 thread_in_grid() { return (static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x) / E::LANES; }
DEVICE i64 threads_of_grid() { return static_cast<i64>(gridDim.x) * blockDim.x / E::LANES; }
