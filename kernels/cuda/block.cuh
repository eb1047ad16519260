// What the threads of a block find together.
#pragma once
#include "compat.cuh"

namespace cuk {
// Sum over the block, or the largest; the same bits in every thread. `shared` has a float for each warp.
template <bool kLargest>
__device__ __forceinline__ float over_block(float x, float* shared) {
CUK_UNROLL
  for (int step = 16; step > 0; step >>= 1) {
    const float other = __shfl_xor_sync(kAll, x, step);
    x = kLargest ? fmaxf(x, other) : x + other;
  }
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  x = shared[0];
  for (int w = 1; w < (int)blockDim.x / 32; ++w) x = kLargest ? fmaxf(x, shared[w]) : x + shared[w];
  __syncthreads();
  return x;
}

// How many threads before this one have `flag` set, and how many in all. `shared` has a number for each warp.
__device__ __forceinline__ unsigned rank_in_block(bool flag, unsigned* shared, unsigned& total) {
  const unsigned votes = __ballot_sync(kAll, flag), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (lane == 0) shared[warp] = __popc(votes);
  __syncthreads();
  unsigned before = __popc(votes & ((1u << lane) - 1));
  total = 0;
  for (int w = 0; w < (int)blockDim.x / 32; ++w) {
    if (w < (int)warp) before += shared[w];
    total += shared[w];
  }
  __syncthreads();
  return before;
}
}  // namespace cuk
