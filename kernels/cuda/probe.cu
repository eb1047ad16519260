// Probing: scores of a KV head's query heads against its centroids, and the softmax over them.
//
// Clusters of unit u are numbered starts[u]..starts[u + 1] in scores, shares and gains.
//
// score_rows_*    grid (units, blocks): scores[entry][group] of listed rows: centroids stored as rows, or full keys. Minus
//                 infinity where an entry stands for none.
// softmax_parts   grid (units, blocks): of each block its largest score and its sum of weights, per head.
// softmax_shares  grid (units, blocks): each cluster's softmax share summed over the group, and the log-sum-exp per head.
// select_top      grid (units): the clusters with the largest shares, and the next ones.
// select_above    grid (units): those whose number lies above a threshold, and above how many of two others.
//
// Lists are in rising order, whatever the threads do.
#include "block.cuh"
#include "compat.cuh"
#include "shapes.cuh"

namespace {
using namespace cuk;

template <typename T, int L, int G>
__device__ __forceinline__ void score_body(const float* __restrict__ queries, const T* __restrict__ rows,
                                           const unsigned* __restrict__ list, const unsigned* __restrict__ starts,
                                           int group, int dim, float softcap, float* __restrict__ scores) {
  constexpr int kTeams = kThreads / L;
  const int unit = blockIdx.x, team = threadIdx.x / L, lane = threadIdx.x % L;
  const bool holds = lane * 8 < dim;
  float query[G][8];
CUK_UNROLL
  for (int g = 0; g < G; ++g)
CUK_UNROLL
    for (int i = 0; i < 8; ++i)
      query[g][i] = holds && g < group ? queries[((size_t)unit * group + g) * dim + lane * 8 + i] : 0.f;
  const unsigned begin = starts[unit], last = starts[unit + 1];
  for (unsigned base = begin + blockIdx.y * kTeams; base < last; base += gridDim.y * kTeams) {
    const unsigned at = base + team, row = at < last ? list[at] : kEmpty;
    const bool taken = row != kEmpty;
    uint4 raw = make_uint4(0, 0, 0, 0);
    if (taken && holds) raw = ldg_stream16(rows + (size_t)row * dim + lane * 8);
    float x[8];
    widen8<T>(raw, x);
CUK_UNROLL
    for (int g = 0; g < G; ++g) {
      float dot = 0.f;
CUK_UNROLL
      for (int i = 0; i < 8; ++i) dot = fmaf(query[g][i], x[i], dot);
      dot = sum_lanes<L>(dot);
      if (at < last && lane == 0 && g < group)
        scores[(size_t)at * group + g] = taken ? capped(dot, softcap) : -CUK_INF;
    }
  }
}

// How many of the numbers are at least `least`. They are not negative, so that their bits order as they do.
__device__ __forceinline__ unsigned count_from(const float* numbers, unsigned count, unsigned least, unsigned* shared) {
  unsigned mine = 0;
  for (unsigned i = threadIdx.x; i < count; i += kThreads) mine += __float_as_uint(numbers[i]) >= least;
CUK_UNROLL
  for (int step = 16; step > 0; step >>= 1) mine += __shfl_xor_sync(kAll, mine, step);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = mine;
  __syncthreads();
  unsigned total = 0;
CUK_UNROLL
  for (int w = 0; w < kThreads / 32; ++w) total += shared[w];
  __syncthreads();
  return total;
}

// Bits of the `wanted`th largest number, counted from 1.
__device__ __forceinline__ unsigned nth_largest(const float* numbers, unsigned count, unsigned wanted, unsigned* shared) {
  unsigned bits = 0;
  for (int bit = 31; bit >= 0; --bit) {
    const unsigned trial = bits | 1u << bit;
    if (count_from(numbers, count, trial, shared) >= wanted) bits = trial;
  }
  return bits;
}
}  // namespace

#define DEFINE_SCORE(NAME, T, L, G)                                                                                   \
  CUK_KERNEL void __launch_bounds__(cuk::kThreads) score_rows_##NAME##_l##L##_g##G(                                   \
      const float* queries, const T* rows, const unsigned* list, const unsigned* starts, int group, int dim,          \
      float softcap, float* scores) {                                                                                 \
    score_body<T, L, G>(queries, rows, list, starts, group, dim, softcap, scores);                                    \
  }                                                                                                                   \
  CUK_REGISTER(score_rows_##NAME##_l##L##_g##G)
LW_TYPED_SHAPES(DEFINE_SCORE)

// parts: [units][blocks][group] pairs of (largest score, sum of weights against it).
CUK_KERNEL void __launch_bounds__(cuk::kThreads) softmax_parts(const float* scores, const unsigned* starts, int group,
                                                               float2* parts) {
  __shared__ float shared[cuk::kThreads / 32];
  const unsigned unit = blockIdx.x, begin = starts[unit], count = starts[unit + 1] - begin;
  const unsigned span = (count + gridDim.y - 1) / gridDim.y;
  const unsigned first = min(count, blockIdx.y * span), last = min(count, first + span);
  for (int g = 0; g < group; ++g) {
    float top = cuk::kNone, sum = 0.f;
    for (unsigned c = first + threadIdx.x; c < last; c += cuk::kThreads) top = fmaxf(top, scores[(size_t)(begin + c) * group + g]);
    top = over_block<true>(top, shared);
    for (unsigned c = first + threadIdx.x; c < last; c += cuk::kThreads)
      sum += exp2f((scores[(size_t)(begin + c) * group + g] - top) * cuk::kLog2e);
    sum = over_block<false>(sum, shared);
    if (threadIdx.x == 0) parts[((size_t)unit * gridDim.y + blockIdx.y) * group + g] = make_float2(top, sum);
  }
}
CUK_REGISTER(softmax_parts)

CUK_KERNEL void __launch_bounds__(cuk::kThreads) softmax_shares(const float* scores, const unsigned* starts,
                                                                const float2* parts, int group, float* shares, float* lse) {
  __shared__ float tops[8], inverses[8];
  const unsigned unit = blockIdx.x, begin = starts[unit], count = starts[unit + 1] - begin;
  if ((int)threadIdx.x < group) {
    const float2* mine = parts + (size_t)unit * gridDim.y * group + threadIdx.x;
    float top = cuk::kNone, sum = 0.f;
    for (unsigned b = 0; b < gridDim.y; ++b) top = fmaxf(top, mine[b * group].x);
    for (unsigned b = 0; b < gridDim.y; ++b) sum += mine[b * group].y * exp2f((mine[b * group].x - top) * cuk::kLog2e);
    tops[threadIdx.x] = top;
    inverses[threadIdx.x] = sum > 0.f ? 1.f / sum : 0.f;
    if (blockIdx.y == 0) lse[unit * group + threadIdx.x] = sum > 0.f ? top + logf(sum) : -CUK_INF;
  }
  __syncthreads();
  for (unsigned c = blockIdx.y * cuk::kThreads + threadIdx.x; c < count; c += gridDim.y * cuk::kThreads) {
    float share = 0.f;
    for (int g = 0; g < group; ++g)
      share += exp2f((scores[(size_t)(begin + c) * group + g] - tops[g]) * cuk::kLog2e) * inverses[g];
    shares[begin + c] = share;
  }
}
CUK_REGISTER(softmax_shares)

// The `reads` clusters with the largest shares, then the `estimates` next ones, or as many as there are; of equal shares
// those with the smaller numbers. Both lists hold numbers within the unit: of reads at unit * reads, of estimates at
// unit * estimates, filled up with kEmpty.
CUK_KERNEL void __launch_bounds__(cuk::kThreads) select_top(const float* shares, const unsigned* starts, unsigned reads,
                                                            unsigned estimates, unsigned* read, unsigned* estimated) {
  __shared__ unsigned shared[cuk::kThreads / 32];
  const unsigned unit = blockIdx.x, begin = starts[unit], count = starts[unit + 1] - begin;
  const float* mine = shares + begin;
  const unsigned zone = min(count, reads + estimates), top = min(count, reads);
  const unsigned top_bits = top ? nth_largest(mine, count, top, shared) : cuk::kEmpty;
  const unsigned zone_bits = zone ? nth_largest(mine, count, zone, shared) : cuk::kEmpty;
  const unsigned over_top = top ? count_from(mine, count, top_bits + 1, shared) : 0;
  const unsigned over_zone = zone ? count_from(mine, count, zone_bits + 1, shared) : 0;
  unsigned read_count = 0, estimated_count = 0, top_ties = 0, zone_ties = 0;
  for (unsigned base = 0; base < count; base += cuk::kThreads) {
    const unsigned c = base + threadIdx.x;
    const unsigned bits = c < count ? __float_as_uint(mine[c]) : 0;
    unsigned total;
    const bool ties_top = c < count && top && bits == top_bits, ties_zone = c < count && zone && bits == zone_bits;
    const unsigned top_rank = top_ties + rank_in_block(ties_top, shared, total);
    top_ties += total;
    const unsigned zone_rank = zone_ties + rank_in_block(ties_zone, shared, total);
    zone_ties += total;
    const bool in_top = c < count && top && (bits > top_bits || (ties_top && over_top + top_rank < top));
    const bool in_zone = c < count && zone && (bits > zone_bits || (ties_zone && over_zone + zone_rank < zone));
    const unsigned at_read = read_count + rank_in_block(in_top, shared, total);
    read_count += total;
    if (in_top) read[unit * reads + at_read] = c;
    const bool next = in_zone && !in_top;
    const unsigned at_estimated = estimated_count + rank_in_block(next, shared, total);
    estimated_count += total;
    if (next) estimated[unit * estimates + at_estimated] = c;
  }
  for (unsigned i = read_count + threadIdx.x; i < reads; i += cuk::kThreads) read[unit * reads + i] = cuk::kEmpty;
  for (unsigned i = estimated_count + threadIdx.x; i < estimates; i += cuk::kThreads) estimated[unit * estimates + i] = cuk::kEmpty;
}
CUK_REGISTER(select_top)

// Numbers within the unit of the gains above the first of three rising thresholds, each with how many of the others its gain is
// above in its upper two bits. A list begins at starts[unit]; counts[unit] says how long it is.
CUK_KERNEL void __launch_bounds__(cuk::kThreads) select_above(const float* gains, const unsigned* starts, float first,
                                                              float second, float third, unsigned* above, unsigned* counts) {
  __shared__ unsigned shared[cuk::kThreads / 32];
  const unsigned unit = blockIdx.x, begin = starts[unit], count = starts[unit + 1] - begin;
  unsigned taken = 0;
  for (unsigned base = 0; base < count; base += cuk::kThreads) {
    const unsigned c = base + threadIdx.x;
    const float gain = c < count ? gains[begin + c] : 0.f;
    unsigned total;
    const bool is_above = c < count && gain > first;
    const unsigned at = taken + rank_in_block(is_above, shared, total);
    taken += total;
    const unsigned level = (gain > second) + (gain > third);
    if (is_above) above[begin + at] = level << 30 | c;
  }
  if (threadIdx.x == 0) counts[unit] = taken;
}
CUK_REGISTER(select_above)
