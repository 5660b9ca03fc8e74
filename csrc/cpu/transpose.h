// Turning 4x4 blocks of rows into columns, in registers.
#pragma once

#include "isa.h"

namespace fastcka {
namespace FASTCKA_ISA {
namespace {

template <size_t Bytes>
struct Integer;
template <>
struct Integer<4> {
  typedef int32_t type;
};
template <>
struct Integer<8> {
  typedef int64_t type;
};

#if defined(__clang__)
#define FASTCKA_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else  // GCC has the former since version 12, this one since 4.7
#define FASTCKA_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (lanes){__VA_ARGS__})
#endif

// out[j * out_stride + i] = in[i * in_stride + j] for i, j < 4.
template <class T>
inline void transpose_4x4(const T* in, int64_t in_stride, T* out, int64_t out_stride) {
  typedef T four __attribute__((vector_size(4 * sizeof(T)), may_alias, aligned(sizeof(T))));
#if !defined(__clang__)
  typedef typename Integer<sizeof(T)>::type lanes __attribute__((vector_size(4 * sizeof(T))));
#endif
  const four a = *reinterpret_cast<const four*>(in);
  const four b = *reinterpret_cast<const four*>(in + in_stride);
  const four c = *reinterpret_cast<const four*>(in + 2 * in_stride);
  const four d = *reinterpret_cast<const four*>(in + 3 * in_stride);
  const four ab_low = FASTCKA_SHUFFLE(a, b, 0, 4, 1, 5);
  const four ab_high = FASTCKA_SHUFFLE(a, b, 2, 6, 3, 7);
  const four cd_low = FASTCKA_SHUFFLE(c, d, 0, 4, 1, 5);
  const four cd_high = FASTCKA_SHUFFLE(c, d, 2, 6, 3, 7);
  *reinterpret_cast<four*>(out) = FASTCKA_SHUFFLE(ab_low, cd_low, 0, 1, 4, 5);
  *reinterpret_cast<four*>(out + out_stride) = FASTCKA_SHUFFLE(ab_low, cd_low, 2, 3, 6, 7);
  *reinterpret_cast<four*>(out + 2 * out_stride) = FASTCKA_SHUFFLE(ab_high, cd_high, 0, 1, 4, 5);
  *reinterpret_cast<four*>(out + 3 * out_stride) = FASTCKA_SHUFFLE(ab_high, cd_high, 2, 3, 6, 7);
}

#undef FASTCKA_SHUFFLE

}  // namespace
}  // namespace FASTCKA_ISA
}  // namespace fastcka
