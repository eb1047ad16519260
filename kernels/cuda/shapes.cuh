// The shapes that kernels are made for. L lanes share a row, eight elements each: 8 for rows of 64, 16 for 96 and 128, 32
// for 256. G is the number of query heads of a KV head, rounded up to a power of two; the rest are left out at run time.
#pragma once
#define LW_GROUPS(DEFINE, ...) DEFINE(__VA_ARGS__, 1) DEFINE(__VA_ARGS__, 2) DEFINE(__VA_ARGS__, 4) DEFINE(__VA_ARGS__, 8)
#define LW_SHAPES(DEFINE, ...)     \
  LW_GROUPS(DEFINE, __VA_ARGS__, 8)  \
  LW_GROUPS(DEFINE, __VA_ARGS__, 16) \
  LW_GROUPS(DEFINE, __VA_ARGS__, 32)
#define LW_TYPED_SHAPES(DEFINE)       \
  LW_SHAPES(DEFINE, f16, __half)      \
  LW_SHAPES(DEFINE, bf16, __nv_bfloat16)
