// Values rounded to bfloats: an instruction multiplies two features of a row at once and adds both
// products up as floats.
#pragma once

#include "amx.h"
#include "panel.h"
#include "tile.h"

#if defined(__AVX512BF16__)

namespace fastcka {
namespace FASTCKA_ISA {
namespace {

template <>
struct Element<uint32_t> {
  typedef float sum;
  static constexpr int features = 2;
  static inline void multiply_add(Simd<float>::vec& acc, uint32_t left, Simd<uint32_t>::vec right) {
    acc = Simd<float>::vec(
        _mm512_dpbf16_ps(__m512(acc), __m512bh(_mm512_set1_epi32(int(left))), __m512bh(right)));
  }
};

// rows [16, kRowStride] less their mean -> panel [depth / 2, 16] of pairs, an odd number of vectors
// filled up with zeros; `flat` [16, kBlock / 2] takes them as they are before transposition.
inline void pack_pairs(float* rows, float* mean, int64_t depth, uint32_t* panel, uint32_t* flat) {
  using vec = Simd<float>::vec;
  constexpr int width = Simd<float>::width;
  for (int64_t k = 0; k < depth; k += 2 * width) {
    vec block[width];
#pragma GCC unroll 16
    for (int i = 0; i < width; ++i) {
      float* row = rows + i * kRowStride + k;
      const vec first = at(row) - at(mean + k);
      const vec second = k + width < depth ? at(row + width) - at(mean + k + width) : vec{};
      block[i] = vec(_mm512_cvtne2ps_pbh(__m512(second), __m512(first)));
      if (kTiles) at(flat + i * (kBlock / 2) + k / 2) = Simd<uint32_t>::vec(block[i]);
    }
    transpose<float>(block);
#pragma GCC unroll 16
    for (int i = 0; i < width; ++i)
      at(panel + (k / 2 + i) * kPanel) = Simd<uint32_t>::vec(block[i]);
  }
}

// All tiles on and below the diagonal, of packed panels and of the same pairs in `flat` rows.
inline void add_pairs(const uint32_t* flat, const uint32_t* panels, int64_t panel_count,
                      int64_t depth, double* sums, int64_t stride) {
#if defined(__AMX_BF16__)
  add_triangle(flat, panels, panel_count, depth, sums, stride);
#else
  (void)flat;
  add_triangle(panels, panel_count, depth, sums, stride);
#endif
}

}  // namespace
}  // namespace FASTCKA_ISA
}  // namespace fastcka

#endif
