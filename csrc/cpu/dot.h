// The inner product that `finish` and `hsic_pairs` share, so that a layer's product with itself has
// the same bits wherever it is computed.
#pragma once

#include "isa.h"

namespace fastcka {
namespace FASTCKA_ISA {
namespace {

// Terms that are added up before the sum is written out: 32 KiB of one row.
constexpr int64_t kDotBlock = 4096;

// The first `count` < width values, then zeros.
inline Simd<double>::vec first_lanes(const double* x, int64_t count) {
  Simd<double>::vec lanes = {};
#pragma GCC unroll 8
  for (int lane = 0; lane < Simd<double>::width - 1; ++lane)
    if (lane < count) lanes[lane] = x[lane];
  return lanes;
}

// out[i, j] += <a_i, b_j> over `length` terms. Every pair is summed in the same order, whatever the
// shape of the tile.
template <int Rows, int Columns>
void dot_tile(const double* a, int64_t a_stride, const double* b, int64_t b_stride, int64_t length,
              double* out, int64_t out_stride) {
  using vec = typename Simd<double>::vec;
  using unaligned = typename Simd<double>::unaligned;
  constexpr int width = Simd<double>::width;
  vec acc[Rows][Columns] = {};
  int64_t k = 0;
  for (; k + width <= length; k += width) {
    vec right[Columns];
#pragma GCC unroll 4
    for (int j = 0; j < Columns; ++j)
      right[j] = *reinterpret_cast<const unaligned*>(b + j * b_stride + k);
#pragma GCC unroll 4
    for (int i = 0; i < Rows; ++i) {
      const vec left = *reinterpret_cast<const unaligned*>(a + i * a_stride + k);
#pragma GCC unroll 4
      for (int j = 0; j < Columns; ++j) acc[i][j] += left * right[j];
    }
  }
  if (k < length) {
    // As one more vector: compilers vectorise a scalar loop in some tiles and not in others.
    vec right[Columns];
#pragma GCC unroll 4
    for (int j = 0; j < Columns; ++j) right[j] = first_lanes(b + j * b_stride + k, length - k);
#pragma GCC unroll 4
    for (int i = 0; i < Rows; ++i) {
      const vec left = first_lanes(a + i * a_stride + k, length - k);
#pragma GCC unroll 4
      for (int j = 0; j < Columns; ++j) acc[i][j] += left * right[j];
    }
  }
  for (int i = 0; i < Rows; ++i)
    for (int j = 0; j < Columns; ++j) {
      double sum = 0;
      for (int lane = 0; lane < width; ++lane) sum += acc[i][j][lane];
      out[i * out_stride + j] += sum;
    }
}

}  // namespace
}  // namespace FASTCKA_ISA
}  // namespace fastcka
