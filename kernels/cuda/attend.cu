// Attention of the query heads that share a KV head over listed rows, cut into splits, and the merge of partial states.
//
// A unit is one query position and KV head. Rows of unit u are rows[starts[u]..starts[u + 1]]; kEmpty stands for none. Row r
// lies in slot r >> slot_shift of the pool; a slot holds its keys, then its values, 1 << slot_shift rows of each.
//
// attend_*    grid (units, splits): reads keys and values of listed rows.
// estimate_*  the same for summaries: scores are given, `rows` are rows of `pool` (value means), each for counts[row] rows.
// merge_states  grid (heads), a thread for each element: merges partial states.
//
// A partial state is an output and the natural logarithm of its sum of weights; [parts][heads][dim] and [parts][heads], heads
// being units * group. Splits write parts first_part to first_part + splits - 1. An empty one is zeros and minus infinity.
#include "compat.cuh"
#include "shapes.cuh"

namespace {
using namespace cuk;

template <int L, int G>
struct Lanes {
  static constexpr int kTeams = kThreads / L;       // teams of lanes in a block, each with a row
  static constexpr int kUnroll = G == 8 ? 2 : 4;    // rows that a team has under way
};

// What one team has gathered: weights are powers of two against `top`.
template <int G>
struct Gathered {
  float top[G], sum[G], out[G][8];
};

template <int U, int G>
__device__ __forceinline__ void absorb(Gathered<G>& state, float (&score)[U][G], const float (&value)[U][8]) {
CUK_UNROLL
  for (int g = 0; g < G; ++g) {
    float top = state.top[g];
CUK_UNROLL
    for (int u = 0; u < U; ++u) top = fmaxf(top, score[u][g]);
    const float fall = exp2f(state.top[g] - top);
    state.top[g] = top;
    state.sum[g] *= fall;
CUK_UNROLL
    for (int i = 0; i < 8; ++i) state.out[g][i] *= fall;
CUK_UNROLL
    for (int u = 0; u < U; ++u) {
      const float weight = score[u][g] == kNone ? 0.f : exp2f(score[u][g] - top);
      state.sum[g] += weight;
CUK_UNROLL
      for (int i = 0; i < 8; ++i) state.out[g][i] = fmaf(weight, value[u][i], state.out[g][i]);
    }
  }
}

// Merges the teams of a block and writes their partial state. `shared` has teams * G * (2 + 8 L) floats.
template <int L, int G>
__device__ __forceinline__ void finish(const Gathered<G>& state, float* shared, int group, int dim, size_t first_head,
                                       float* __restrict__ part_out, float* __restrict__ part_lse) {
  constexpr int kTeams = Lanes<L, G>::kTeams;
  float* tops = shared;
  float* sums = shared + kTeams * G;
  float* outs = shared + 2 * kTeams * G;
  const int team = threadIdx.x / L, lane = threadIdx.x % L;
CUK_UNROLL
  for (int g = 0; g < G; ++g) {
    if (lane == 0) {
      tops[team * G + g] = state.top[g];
      sums[team * G + g] = state.sum[g];
    }
CUK_UNROLL
    for (int i = 0; i < 8; ++i) outs[(team * G + g) * (L * 8) + lane * 8 + i] = state.out[g][i];
  }
  __syncthreads();
CUK_ROLLED
  for (int e = threadIdx.x; e < group * dim; e += kThreads) {
    const int g = e / dim, d = e % dim;
    float top = kNone;
CUK_ROLLED
    for (int t = 0; t < kTeams; ++t) top = fmaxf(top, tops[t * G + g]);
    float sum = 0.f, out = 0.f;
CUK_ROLLED
    for (int t = 0; t < kTeams; ++t) {
      const float weight = exp2f(tops[t * G + g] - top);
      sum = fmaf(weight, sums[t * G + g], sum);
      out = fmaf(weight, outs[(t * G + g) * (L * 8) + d], out);
    }
    part_out[(first_head + g) * dim + d] = sum > 0.f ? out / sum : 0.f;
    if (d == 0) part_lse[first_head + g] = sum > 0.f ? (top + log2f(sum)) * kLn2 : -CUK_INF;
  }
}

template <typename T, int L, int G>
__device__ __forceinline__ void attend_body(const float* __restrict__ queries, const T* __restrict__ pool,
                                            const unsigned* __restrict__ rows, const unsigned* __restrict__ starts,
                                            int group, int dim, int slot_shift, float softcap, int first_part,
                                            float* __restrict__ part_out, float* __restrict__ part_lse) {
  CUK_DYN_SHARED(float, shared);
  constexpr int kTeams = Lanes<L, G>::kTeams, kUnroll = Lanes<L, G>::kUnroll;
  const int unit = blockIdx.x, team = threadIdx.x / L, lane = threadIdx.x % L;
  const bool holds = lane * 8 < dim;  // rows of 96 leave the last lanes of a team without elements

  float query[G][8];
  Gathered<G> state;
CUK_UNROLL
  for (int g = 0; g < G; ++g) {
    state.top[g] = kNone;
    state.sum[g] = 0.f;
CUK_UNROLL
    for (int i = 0; i < 8; ++i) {
      query[g][i] = holds && g < group ? queries[((size_t)unit * group + g) * dim + lane * 8 + i] : 0.f;
      state.out[g][i] = 0.f;
    }
  }

  const unsigned begin = starts[unit], count = starts[unit + 1] - begin;
  const unsigned span = (count + gridDim.y - 1) / gridDim.y;
  const unsigned first = begin + min(count, blockIdx.y * span), last = begin + min(count, (blockIdx.y + 1) * span);
  const unsigned mask = (1u << slot_shift) - 1;
  for (unsigned base = first; base < last; base += kTeams * kUnroll) {
    uint4 key[kUnroll], wide[kUnroll];
    bool taken[kUnroll];
CUK_UNROLL
    for (int u = 0; u < kUnroll; ++u) {
      const unsigned at = base + u * kTeams + team;
      const unsigned row = at < last ? rows[at] : kEmpty;
      taken[u] = row != kEmpty;
      key[u] = wide[u] = make_uint4(0, 0, 0, 0);
      if (taken[u] && holds) {
        const size_t slot = row >> slot_shift, in_slot = row & mask;
        const T* from = pool + ((slot << (slot_shift + 1)) + in_slot) * dim + lane * 8;
        key[u] = ldg_stream16(from);
        wide[u] = ldg_stream16(from + ((size_t)dim << slot_shift));
      }
    }
    float score[kUnroll][G], value[kUnroll][8];
CUK_UNROLL
    for (int u = 0; u < kUnroll; ++u) {
      float k[8];
      widen8<T>(key[u], k);
      widen8<T>(wide[u], value[u]);
CUK_UNROLL
      for (int g = 0; g < G; ++g) {
        float dot = 0.f;
CUK_UNROLL
        for (int i = 0; i < 8; ++i) dot = fmaf(query[g][i], k[i], dot);
        dot = sum_lanes<L>(dot);
        score[u][g] = taken[u] ? capped(dot, softcap) * kLog2e : kNone;
      }
    }
    absorb<kUnroll, G>(state, score, value);
  }
  const size_t heads = (size_t)gridDim.x * group;
  finish<L, G>(state, shared, group, dim, (first_part + blockIdx.y) * heads + (size_t)unit * group, part_out, part_lse);
}

template <typename T, int L, int G>
__device__ __forceinline__ void estimate_body(const float* __restrict__ scores, const float* __restrict__ counts,
                                              const T* __restrict__ means, const unsigned* __restrict__ rows,
                                              const unsigned* __restrict__ starts, int group, int dim, int first_part,
                                              float* __restrict__ part_out, float* __restrict__ part_lse) {
  CUK_DYN_SHARED(float, shared);
  constexpr int kTeams = Lanes<L, G>::kTeams, kUnroll = Lanes<L, G>::kUnroll;
  const int unit = blockIdx.x, team = threadIdx.x / L, lane = threadIdx.x % L;
  const bool holds = lane * 8 < dim;
  Gathered<G> state;
CUK_UNROLL
  for (int g = 0; g < G; ++g) {
    state.top[g] = kNone;
    state.sum[g] = 0.f;
CUK_UNROLL
    for (int i = 0; i < 8; ++i) state.out[g][i] = 0.f;
  }
  const unsigned begin = starts[unit], count = starts[unit + 1] - begin;
  const unsigned span = (count + gridDim.y - 1) / gridDim.y;
  const unsigned first = begin + min(count, blockIdx.y * span), last = begin + min(count, (blockIdx.y + 1) * span);
  for (unsigned base = first; base < last; base += kTeams * kUnroll) {
    float score[kUnroll][G], value[kUnroll][8];
CUK_UNROLL
    for (int u = 0; u < kUnroll; ++u) {
      const unsigned at = base + u * kTeams + team;
      const unsigned row = at < last ? rows[at] : kEmpty;
      const float rows_of = row != kEmpty ? counts[row] : 0.f;
      uint4 mean = make_uint4(0, 0, 0, 0);
      if (rows_of > 0.f && holds) mean = ldg_stream16(means + (size_t)row * dim + lane * 8);
      widen8<T>(mean, value[u]);
CUK_UNROLL
      for (int g = 0; g < G; ++g) {
        const bool counts_here = rows_of > 0.f && g < group;
        score[u][g] = counts_here ? fmaf(scores[(size_t)at * group + g], kLog2e, log2f(rows_of)) : kNone;
      }
    }
    absorb<kUnroll, G>(state, score, value);
  }
  const size_t heads = (size_t)gridDim.x * group;
  finish<L, G>(state, shared, group, dim, (first_part + blockIdx.y) * heads + (size_t)unit * group, part_out, part_lse);
}
}  // namespace

// Blocks of a multiprocessor, from which the assembler takes how many registers it may use without spilling any.
#define LW_RESIDENT(G) (G == 8 ? 2 : G == 4 ? 3 : 5)
#define DEFINE_ATTEND(NAME, T, L, G)                                                                                   \
  CUK_KERNEL void __launch_bounds__(cuk::kThreads, LW_RESIDENT(G)) attend_##NAME##_l##L##_g##G(                                       \
      const float* queries, const T* pool, const unsigned* rows, const unsigned* starts, int group, int dim,          \
      int slot_shift, float softcap, int first_part, float* part_out, float* part_lse) {                              \
    attend_body<T, L, G>(queries, pool, rows, starts, group, dim, slot_shift, softcap, first_part, part_out, part_lse); \
  }                                                                                                                    \
  CUK_REGISTER(attend_##NAME##_l##L##_g##G)
#define DEFINE_ESTIMATE(NAME, T, L, G)                                                                                 \
  CUK_KERNEL void __launch_bounds__(cuk::kThreads, LW_RESIDENT(G)) estimate_##NAME##_l##L##_g##G(                                     \
      const float* scores, const float* counts, const T* means, const unsigned* rows, const unsigned* starts,         \
      int group, int dim, int first_part, float* part_out, float* part_lse) {                                         \
    estimate_body<T, L, G>(scores, counts, means, rows, starts, group, dim, first_part, part_out, part_lse);          \
  }                                                                                                                    \
  CUK_REGISTER(estimate_##NAME##_l##L##_g##G)

LW_TYPED_SHAPES(DEFINE_ATTEND)
LW_TYPED_SHAPES(DEFINE_ESTIMATE)

CUK_KERNEL void __launch_bounds__(256) merge_states(const float* part_out, const float* part_lse, int parts, float* out,
                                                    float* lse) {
  const int head = blockIdx.x, heads = gridDim.x, dim = blockDim.x, d = threadIdx.x;
  float top = -CUK_INF;
CUK_ROLLED
  for (int p = 0; p < parts; ++p) top = fmaxf(top, part_lse[(size_t)p * heads + head]);
  float sum = 0.f, total = 0.f;
  if (top > -CUK_INF) {
CUK_ROLLED
    for (int p = 0; p < parts; ++p) {
      const size_t at = (size_t)p * heads + head;
      const float weight = exp2f((part_lse[at] - top) * cuk::kLog2e);
      sum += weight;
      total = fmaf(weight, part_out[at * dim + d], total);
    }
  }
  out[(size_t)head * dim + d] = sum > 0.f ? total / sum : 0.f;
  if (d == 0) lse[head] = sum > 0.f ? top + logf(sum) : -CUK_INF;
}
CUK_REGISTER(merge_states)
