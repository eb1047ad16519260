// The resolution ladder: sketches by look-up of half bytes, and rows coded in 2 or 4 bits.
//
// Records are as on disk (docs/format.md), in one of the forms of codes.cuh, `stride` bytes from one to the next. Coordinates
// are queries in a head's basis, times the scales that the rows were coded with: [units][group][dim].
//
// layouts[u] of the sketches of unit u: coordinates of 4, 2 and 1 bits, and bytes of a row. Tables have the same number of
// half bytes for all units, those that a unit does not use being of zeros.
//
// sketch_tables    grid (units): what each half byte adds to a head's score, in 8 bits, as the CPU has it.
// scan_sketches_*  grid (units, blocks): scores of the rows of opened clusters.
// score_codes_*    grid (units, blocks): scores of listed keys, centroids or means.
// sum_codes_*      grid (units, splits): weighted sums of listed values, in parts; sum_rows_* of full ones.
// sum_parts        grid (heads), a thread for each element.
#include "codes.cuh"
#include "compat.cuh"
#include "shapes.cuh"

namespace {
using namespace cuk;
constexpr int kSketchBytesMax = 128;  // as many as 16-bit sums hold on the CPU; the totals are taken at the same places

__device__ __forceinline__ float level2(unsigned code) {
  const float level = code == 1 || code == 2 ? 0.4528f : 1.510f;
  return code >= 2 ? level : -level;
}
__device__ __forceinline__ float factor_of_code(unsigned code) {
  const float eighths[8] = {1.0f,       1.0905077f, 1.1892071f, 1.2968396f,
                            1.4142135f, 1.5422108f, 1.6817928f, 1.8340081f};
  return code ? eighths[code & 7] * __uint_as_float((111u + code / 8) << 23) : 0.f;
}
// What half byte `nibble` adds to a score for each of its 16 values. Nothing is fused, so that the tables are those of the CPU to
// the bit: an entry that rounds to another step changes what is known of a row.
__device__ __forceinline__ void entries_of(const float* query, int nibble, int fours, int twos, int ones, float (&entry)[16]) {
  const int of_twos = fours + twos / 2;
  for (int v = 0; v < 16; ++v) {
    float sum = 0.f;
    if (nibble < fours) {
      sum = __fmul_rn(query[nibble], level4(v));
    } else if (nibble < of_twos) {
      const int i = fours + (nibble - fours) * 2;
      sum = __fadd_rn(__fmul_rn(query[i], level2(v & 3)), __fmul_rn(query[i + 1], level2(v >> 2)));
    } else if (nibble < of_twos + ones / 4) {
      const int i = fours + twos + (nibble - of_twos) * 4;
      for (int b = 0; b < 4; ++b) sum = __fadd_rn(sum, __fmul_rn(query[i + b], v >> b & 1 ? 0.7979f : -0.7979f));
    }
    entry[v] = sum;
  }
}

template <int G>
__device__ __forceinline__ void scan_body(const unsigned char* __restrict__ sketches, const uint4* __restrict__ blocks,
                                          const unsigned* __restrict__ starts, const unsigned char* __restrict__ tables,
                                          const float2* __restrict__ scales, const uint4* __restrict__ layouts, int group,
                                          int nibbles, float* __restrict__ scores, float* __restrict__ factors) {
  CUK_DYN_SHARED(unsigned char, table);  // [group][nibbles][16]
  const int unit = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32, bytes = layouts[unit].w;
  const int table_words = group * nibbles * 4;
  const unsigned* from = reinterpret_cast<const unsigned*>(tables + (size_t)unit * table_words * 4);
  for (int i = threadIdx.x; i < table_words; i += kThreads) reinterpret_cast<unsigned*>(table)[i] = from[i];
  __syncthreads();
  for (unsigned b = starts[unit] + blockIdx.y * 4 + warp; b < starts[unit + 1]; b += gridDim.y * 4) {
    const uint4 block = blocks[b];  // where it begins, rows, first row of the results, 0
    const unsigned char* columns = sketches + block.x;
    const bool holds = lane < (int)block.y;
    float total[G];
CUK_UNROLL
    for (int g = 0; g < G; ++g) total[g] = g < group ? scales[unit * group + g].y : 0.f;
    for (int start = 0; start < bytes; start += kSketchBytesMax) {
      unsigned sum[G] = {};
CUK_ROLLED
      for (int at = start; at < min(bytes, start + kSketchBytesMax); ++at) {
        const unsigned byte = holds ? columns[at * block.y + lane] : 0;
CUK_UNROLL
        for (int g = 0; g < G; ++g)
          if (g < group) {
            const unsigned char* mine = table + (g * nibbles + 2 * at) * 16;
            sum[g] += mine[byte & 15] + mine[16 + (byte >> 4)];
          }
      }
CUK_UNROLL
      for (int g = 0; g < G; ++g)
        if (g < group) total[g] = fmaf((float)sum[g], scales[unit * group + g].x, total[g]);
    }
    const float factor = factor_of_code(holds ? columns[bytes * block.y + lane] : 0);
    if (holds) {
      factors[block.z + lane] = factor;
CUK_UNROLL
      for (int g = 0; g < G; ++g)
        if (g < group) scores[(size_t)(block.z + lane) * group + g] = total[g] * factor;
    }
  }
}

template <int L, int G>
__device__ __forceinline__ void score_codes_body(const float* __restrict__ coordinates, const unsigned char* __restrict__ records,
                                                 int form, int stride, const unsigned* __restrict__ rows,
                                                 const unsigned* __restrict__ starts, int group, int dim,
                                                 float* __restrict__ scores) {
  __shared__ float levels[kLevels];
  fill_levels(levels);
  constexpr int kTeams = kThreads / L;
  const int unit = blockIdx.x, team = threadIdx.x / L, lane = threadIdx.x % L;
  const bool holds = lane * 8 < dim;
  float query[G][8];
CUK_UNROLL
  for (int g = 0; g < G; ++g)
CUK_UNROLL
    for (int i = 0; i < 8; ++i)
      query[g][i] = holds && g < group ? coordinates[((size_t)unit * group + g) * dim + lane * 8 + i] : 0.f;
  const unsigned begin = starts[unit], last = starts[unit + 1];
  for (unsigned base = begin + blockIdx.y * kTeams; base < last; base += gridDim.y * kTeams) {
    const unsigned at = base + team, row = at < last ? rows[at] : kEmpty;
    const bool taken = row != kEmpty;
    const unsigned char* record = records + (size_t)(taken ? row : 0) * stride;
    float x[8] = {}, factor = 0.f;
    if (taken) {
      factor = factor_of_record(record, form, dim);
      if (holds) read_codes(record, form, lane, dim, levels, x);
    }
CUK_UNROLL
    for (int g = 0; g < G; ++g) {
      float dot = 0.f;
CUK_UNROLL
      for (int i = 0; i < 8; ++i) dot = fmaf(query[g][i], x[i], dot);
      dot = sum_lanes<L>(dot);
      if (at < last && lane == 0 && g < group) scores[(size_t)at * group + g] = taken ? dot * factor : -CUK_INF;
    }
  }
}

// How rows that are summed are stored.
struct Coded {
  static __device__ __forceinline__ void prepare(float* levels) { fill_levels(levels); }
  static __device__ __forceinline__ float read(const unsigned char* row, int form, int lane, int dim, const float* levels,
                                               float (&x)[8]) {
    read_codes(row, form, lane, dim, levels, x);
    return factor_of_record(row, form, dim);
  }
};
template <typename T>
struct Full {
  static __device__ __forceinline__ void prepare(float*) {}
  static __device__ __forceinline__ float read(const unsigned char* row, int, int lane, int, const float*, float (&x)[8]) {
    widen8<T>(ldg_stream16(row + lane * 16), x);
    return 1.f;
  }
};

template <typename Stored, int L, int G>
__device__ __forceinline__ void sum_body(const float* __restrict__ weights, const unsigned char* __restrict__ stored, int form,
                                         int stride, const unsigned* __restrict__ rows, const unsigned* __restrict__ starts,
                                         int group, int dim, float* __restrict__ parts) {
  CUK_DYN_SHARED(float, shared);  // [teams][G][8 L]
  __shared__ float levels[kLevels];
  Stored::prepare(levels);
  constexpr int kTeams = kThreads / L;
  const int unit = blockIdx.x, team = threadIdx.x / L, lane = threadIdx.x % L;
  const bool holds = lane * 8 < dim;
  float out[G][8];
CUK_UNROLL
  for (int g = 0; g < G; ++g)
CUK_UNROLL
    for (int i = 0; i < 8; ++i) out[g][i] = 0.f;
  const unsigned begin = starts[unit], count = starts[unit + 1] - begin;
  const unsigned span = (count + gridDim.y - 1) / gridDim.y;
  const unsigned first = begin + min(count, blockIdx.y * span), last = begin + min(count, (blockIdx.y + 1) * span);
  for (unsigned at = first + team; at < last; at += kTeams) {
    const unsigned row = rows[at];
    if (row == kEmpty || !holds) continue;
    float x[8];
    const float factor = Stored::read(stored + (size_t)row * stride, form, lane, dim, levels, x);
CUK_UNROLL
    for (int g = 0; g < G; ++g) {
      const float weight = g < group ? weights[(size_t)at * group + g] * factor : 0.f;
CUK_UNROLL
      for (int i = 0; i < 8; ++i) out[g][i] = fmaf(weight, x[i], out[g][i]);
    }
  }
CUK_UNROLL
  for (int g = 0; g < G; ++g)
CUK_UNROLL
    for (int i = 0; i < 8; ++i) shared[(team * G + g) * (L * 8) + lane * 8 + i] = out[g][i];
  __syncthreads();
  const size_t heads = (size_t)gridDim.x * group;
CUK_ROLLED
  for (int e = threadIdx.x; e < group * dim; e += kThreads) {
    const int g = e / dim, d = e % dim;
    float sum = 0.f;
CUK_ROLLED
    for (int t = 0; t < kTeams; ++t) sum += shared[(t * G + g) * (L * 8) + d];
    parts[(blockIdx.y * heads + (size_t)unit * group + g) * dim + d] = sum;
  }
}
}  // namespace

// tables: [units][group][nibbles][16]; scales: [units][group] pairs of (step, sum of the least entries). A thread a half byte.
CUK_KERNEL void __launch_bounds__(cuk::kThreads) sketch_tables(const float* coordinates, const uint4* layouts, int group,
                                                               int dim, int nibbles, unsigned char* tables, float2* scales) {
  __shared__ float widths[cuk::kThreads / 32];
  __shared__ float leasts[cuk::kThreads];
  const int unit = blockIdx.x, fours = layouts[unit].x, twos = layouts[unit].y, ones = layouts[unit].z;
  for (int g = 0; g < group; ++g) {
    const size_t head = (size_t)unit * group + g;
    const float* query = coordinates + head * dim;
    float widest = 0.f, least_sum = 0.f;
    for (int base = 0; base < nibbles; base += cuk::kThreads) {
      const int nibble = base + threadIdx.x;
      float entry[16], least = 0.f, most = 0.f;
      if (nibble < nibbles) {
        entries_of(query, nibble, fours, twos, ones, entry);
        least = most = entry[0];
        for (int v = 1; v < 16; ++v) {
          least = fminf(least, entry[v]);
          most = fmaxf(most, entry[v]);
        }
      }
      leasts[threadIdx.x] = least;
      widest = fmaxf(widest, most - least);
      __syncthreads();
      // One after the other, as the CPU sums them.
      for (int i = 0; i < min(cuk::kThreads, nibbles - base); ++i) least_sum += leasts[i];
      __syncthreads();
    }
CUK_UNROLL
    for (int step = 16; step > 0; step >>= 1) widest = fmaxf(widest, __shfl_xor_sync(cuk::kAll, widest, step));
    if (threadIdx.x % 32 == 0) widths[threadIdx.x / 32] = widest;
    __syncthreads();
    for (int w = 0; w < cuk::kThreads / 32; ++w) widest = fmaxf(widest, widths[w]);
    __syncthreads();
    const float step = widest / 255.f, per_step = step > 0.f ? 1.f / step : 0.f;
    for (int nibble = threadIdx.x; nibble < nibbles; nibble += cuk::kThreads) {
      float entry[16];
      entries_of(query, nibble, fours, twos, ones, entry);
      float least = entry[0];
      for (int v = 1; v < 16; ++v) least = fminf(least, entry[v]);
      for (int v = 0; v < 16; ++v)
        tables[(head * nibbles + nibble) * 16 + v] = (unsigned char)fminf(255.f, roundf((entry[v] - least) * per_step));
    }
    if (threadIdx.x == 0) scales[head] = make_float2(step, least_sum);
  }
}
CUK_REGISTER(sketch_tables)

// Blocks of a multiprocessor: without a number the assembler spills for the sake of more of them.
#define LW_SUMMING(G) (G == 8 ? 4 : G == 4 ? 6 : 8)
#define DEFINE_SCAN(NAME, G)                                                                                           \
  CUK_KERNEL void __launch_bounds__(cuk::kThreads, 8) scan_##NAME##_g##G(                                                \
      const unsigned char* sketches, const uint4* blocks, const unsigned* starts, const unsigned char* tables,        \
      const float2* scales, const uint4* layouts, int group, int nibbles, float* scores, float* factors) {            \
    scan_body<G>(sketches, blocks, starts, tables, scales, layouts, group, nibbles, scores, factors);                 \
  }                                                                                                                    \
  CUK_REGISTER(scan_##NAME##_g##G)
#define DEFINE_SCORE_CODES(NAME, L, G)                                                                                 \
  CUK_KERNEL void __launch_bounds__(cuk::kThreads) score_##NAME##_l##L##_g##G(                                        \
      const float* coordinates, const unsigned char* records, int form, int stride, const unsigned* rows,             \
      const unsigned* starts, int group, int dim, float* scores) {                                                    \
    score_codes_body<L, G>(coordinates, records, form, stride, rows, starts, group, dim, scores);                     \
  }                                                                                                                    \
  CUK_REGISTER(score_##NAME##_l##L##_g##G)
#define DEFINE_SUM_CODES(NAME, L, G)                                                                                   \
  CUK_KERNEL void __launch_bounds__(cuk::kThreads, LW_SUMMING(G)) sum_##NAME##_l##L##_g##G(                           \
      const float* weights, const unsigned char* records, int form, int stride, const unsigned* rows,                 \
      const unsigned* starts, int group, int dim, float* parts) {                                                     \
    sum_body<Coded, L, G>(weights, records, form, stride, rows, starts, group, dim, parts);                           \
  }                                                                                                                    \
  CUK_REGISTER(sum_##NAME##_l##L##_g##G)
#define DEFINE_SUM_ROWS(NAME, T, L, G)                                                                                 \
  CUK_KERNEL void __launch_bounds__(cuk::kThreads, LW_SUMMING(G)) sum_rows_##NAME##_l##L##_g##G(                      \
      const float* weights, const T* stored, int form, int stride, const unsigned* rows, const unsigned* starts,      \
      int group, int dim, float* parts) {                                                                              \
    sum_body<Full<T>, L, G>(weights, reinterpret_cast<const unsigned char*>(stored), form, stride, rows, starts,      \
                            group, dim, parts);                                                                        \
  }                                                                                                                    \
  CUK_REGISTER(sum_rows_##NAME##_l##L##_g##G)
LW_GROUPS(DEFINE_SCAN, sketches)
LW_SHAPES(DEFINE_SCORE_CODES, codes)
LW_SHAPES(DEFINE_SUM_CODES, codes)
LW_TYPED_SHAPES(DEFINE_SUM_ROWS)

CUK_KERNEL void __launch_bounds__(256) sum_parts(const float* parts, int count, float* out) {
  const size_t heads = gridDim.x, at = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
  float sum = 0.f;
  for (int p = 0; p < count; ++p) sum += parts[p * heads * blockDim.x + at];
  out[at] = sum;
}
CUK_REGISTER(sum_parts)
