// Rows in 2 or 4 bits an element, as they lie on disk (docs/format.md): everything that knows their layout.
#pragma once
#include "compat.cuh"

namespace cuk {
// How codes lie in a record: two elements a byte, then the factor; or the factor, then a plane of upper bits and one of lower
// bits, of which the first may be read alone.
constexpr int kPairs = 0, kHalf = 1, kWhole = 2;
constexpr int kLevels = 20;  // 16 of 4 bits, then 4 of their upper two

__device__ __forceinline__ float level4(unsigned code) {
  const float levels[8] = {0.1284f, 0.3881f, 0.6568f, 0.9424f, 1.2562f, 1.6181f, 2.0690f, 2.7326f};
  const float level = levels[(code & 8 ? code : ~code) & 7];
  return code & 8 ? level : -level;
}
__device__ __forceinline__ float half_level4(unsigned upper) {
  const float level = upper == 1 || upper == 2 ? 0.49679186f : 1.6052287f;
  return upper >= 2 ? level : -level;
}
__device__ __forceinline__ void fill_levels(float* levels) {
  if (threadIdx.x < kLevels) levels[threadIdx.x] = threadIdx.x < 16 ? level4(threadIdx.x) : half_level4(threadIdx.x - 16);
  __syncthreads();
}
__device__ __forceinline__ unsigned two_bytes(const unsigned char* p) {
  return *reinterpret_cast<const unsigned short*>(p);  // records are even in length, and so are planes
}
__device__ __forceinline__ float half_of(unsigned bits) { return Pair<__half>::widen(bits).x; }

// Eight elements of a record, from element 8 * lane on.
__device__ __forceinline__ void read_codes(const unsigned char* record, int form, int lane, int dim, const float* levels,
                                           float (&x)[8]) {
  if (form == kPairs) {
    const unsigned codes = two_bytes(record + lane * 4) | two_bytes(record + lane * 4 + 2) << 16;
CUK_UNROLL
    for (int i = 0; i < 8; ++i) x[i] = levels[codes >> (4 * i) & 15];
  } else {
    const unsigned upper = two_bytes(record + 2 + lane * 2);
    const unsigned lower = form == kWhole ? two_bytes(record + 2 + dim / 4 + lane * 2) : 0;
    const float* of_form = form == kWhole ? levels : levels + 16;
    const unsigned step = form == kWhole ? 4 : 1;
CUK_UNROLL
    for (int i = 0; i < 8; ++i) x[i] = of_form[(upper >> (2 * i) & 3) * step + (lower >> (2 * i) & 3)];
  }
}
// What all levels of a record are multiplied with.
__device__ __forceinline__ float factor_of_record(const unsigned char* record, int form, int dim) {
  return half_of(two_bytes(form == kPairs ? record + dim / 2 : record));
}
}  // namespace cuk
