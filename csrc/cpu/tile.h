// Products of packed panels: all tiles on and below the diagonal of panels.
#pragma once

#include "isa.h"
#include "panel.h"

namespace fastcka {
namespace FASTCKA_ISA {
namespace {

// Features that are added up in the accumulator before the sum goes on in float64.
constexpr int64_t kDepth = 256;

// What a packed element is: a feature here, a pair of them in pairs.h.
template <class T>
struct Element {
  typedef T sum;  // the type in which products are added up
  static constexpr int features = 1;
  static inline void multiply_add(typename Simd<sum>::vec& acc, T left,
                                  typename Simd<T>::vec right) {
    acc += left * right;
  }
};

// Adds a tile of `Rows` by 16 * Panels products over `depth` elements to the float64 triangle.
// a: [depth, 16], from the tile's first row in its panel on; b: `Panels` panels, `b_stride` apart.
template <class T, int Rows, int Panels>
void tile(const T* a, const T* b, int64_t b_stride, int64_t depth, double* sums, int64_t stride) {
  using vec = typename Simd<T>::vec;
  using sum = typename Element<T>::sum;
  constexpr int width = Simd<T>::width;
  constexpr int per_panel = kPanel / width;
  constexpr int columns = Panels * per_panel;
  typename Simd<sum>::vec acc[Rows][columns] = {};
  for (int64_t k = 0; k < depth; ++k) {
    vec right[columns];
#pragma GCC unroll 8
    for (int j = 0; j < columns; ++j)
      right[j] = *reinterpret_cast<const vec*>(b + (j / per_panel) * b_stride + k * kPanel +
                                               (j % per_panel) * width);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const T left = a[k * kPanel + i];
#pragma GCC unroll 8
      for (int j = 0; j < columns; ++j) Element<T>::multiply_add(acc[i][j], left, right[j]);
    }
  }
  // Through memory: compilers turn whole rows into float64, but not lanes of a register.
  sum row[columns * width];
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
    __builtin_memcpy(row, acc[i], sizeof(row));
    for (int j = 0; j < columns * width; ++j) sums[i * stride + j] += double(row[j]);
  }
}

// Rows of a tile that is `Panels` panels wide: as many as the accumulators hold.
template <class T, int Panels>
constexpr int height() {
  const int rows = kAccumulators / (Panels * kPanel / Simd<T>::width);
  return rows < 1 ? 1 : rows > kPanel ? kPanel : rows;
}

// The rows of one panel by `Panels` panels.
template <class T, int Panels>
void add_tiles(const T* a, const T* b, int64_t b_stride, int64_t depth, double* sums,
               int64_t stride) {
  constexpr int rows = height<T, Panels>(), rest = kPanel % rows;
  constexpr int64_t most = kDepth / Element<T>::features;
  for (int64_t k = 0; k < depth; k += most) {
    const int64_t count = depth - k < most ? depth - k : most;
    const T* left = a + k * kPanel;
    const T* right = b + k * kPanel;
    for (int i = 0; i + rows <= kPanel; i += rows)
      tile<T, rows, Panels>(left + i, right, b_stride, count, sums + i * stride, stride);
    if constexpr (rest > 0)
      tile<T, rest, Panels>(left + kPanel - rest, right, b_stride, count,
                                       sums + (kPanel - rest) * stride, stride);
  }
}

// panels: [panel_count, kBlock / features, 16].
template <class T>
void add_triangle(const T* panels, int64_t panel_count, int64_t depth, double* sums,
                  int64_t stride) {
  constexpr int wide = height<T, 2>() >= 8 ? 2 : 1;
  const int64_t panel_stride = kBlock / Element<T>::features * kPanel;
  for (int64_t row = 0; row < panel_count; ++row) {
    const T* a = panels + row * panel_stride;
    double* out = sums + row * kPanel * stride;
    int64_t column = 0;
    for (; column + wide <= row + 1; column += wide)
      add_tiles<T, wide>(a, panels + column * panel_stride, panel_stride, depth,
                         out + column * kPanel, stride);
    for (; column <= row; ++column)
      add_tiles<T, 1>(a, panels + column * panel_stride, panel_stride, depth,
                      out + column * kPanel, stride);
  }
}

}  // namespace
}  // namespace FASTCKA_ISA
}  // namespace fastcka
