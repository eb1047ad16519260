// What kernels are written against: the only header they may include.
//  * NVRTC or nvcc               -> the CUDA headers and inline PTX
//  * g++ or clang++ with -DCUEMU -> cuemu.h, which runs the same source on the host
// Inline PTX stands here and nowhere else.
#pragma once
#ifdef CUEMU
#include "cuemu.h"
#define CUK_UNROLL
#define CUK_ROLLED
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define CUK_KERNEL extern "C" __global__
#define CUK_REGISTER(name)
#define CUK_UNROLL _Pragma("unroll")
#define CUK_ROLLED _Pragma("unroll 1")
#define CUK_DYN_SHARED(T, name) extern __shared__ __align__(16) T name[]

namespace cuk {
// A load of 16 bytes that are read once: they do not displace what L1 holds.
__device__ __forceinline__ uint4 ldg_stream16(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}
}  // namespace cuk
#endif

// ---- the same on both sides
#define CUK_INF (__int_as_float(0x7f800000))  // NVRTC has no <math.h>
namespace cuk {
constexpr int kThreads = 128;                // of every block, unless a kernel says something else
constexpr unsigned kAll = 0xffffffffu;       // every lane of a warp
constexpr unsigned kEmpty = 0xffffffffu;     // an entry of a list that stands for no row
constexpr float kNone = -1e30f;              // below every score: finite, so that differences are
constexpr float kLog2e = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

template <typename T> struct Pair;  // two elements in 4 bytes
template <> struct Pair<__half> {
  static __device__ __forceinline__ float2 widen(unsigned u) {
    __half2 h;
    memcpy(&h, &u, 4);
    return __half22float2(h);
  }
};
template <> struct Pair<__nv_bfloat16> {
  static __device__ __forceinline__ float2 widen(unsigned u) {
    __nv_bfloat162 h;
    memcpy(&h, &u, 4);
    return __bfloat1622float2(h);
  }
};
// Eight elements in 16 bytes.
template <typename T>
__device__ __forceinline__ void widen8(const uint4& v, float (&f)[8]) {
  const float2 a = Pair<T>::widen(v.x), b = Pair<T>::widen(v.y), c = Pair<T>::widen(v.z), d = Pair<T>::widen(v.w);
  f[0] = a.x; f[1] = a.y; f[2] = b.x; f[3] = b.y;
  f[4] = c.x; f[5] = c.y; f[6] = d.x; f[7] = d.y;
}
// Sum over L neighbouring lanes, the same bits in each of them.
template <int L>
__device__ __forceinline__ float sum_lanes(float x) {
CUK_UNROLL
  for (int step = L / 2; step > 0; step >>= 1) x += __shfl_xor_sync(kAll, x, step);
  return x;
}
__device__ __forceinline__ float capped(float score, float softcap) {
  // tanh by one exponential, off by 2^-21 of the cap at most; tanhf would be inlined dozens of times.
  if (softcap <= 0.f) return score;
  return softcap * (1.f - __fdividef(2.f, 1.f + exp2f(score * (2.f * kLog2e / softcap))));
}
}  // namespace cuk
