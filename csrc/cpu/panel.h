// A block of features of all rows -> panels of 16 rows, centred, a feature after the other.
//
// A packed panel serves a tile as the broadcast operand and as the vector operand.
#pragma once

#include "../kernels.h"
#include "convert.h"
#include "isa.h"
#include "transpose.h"

namespace fastcka {
namespace FASTCKA_ISA {
namespace {

// Rows that are packed together: the unit in which the triangle is cut.
constexpr int kPanel = 16;
// Features of a block: each row is read in pieces of this length, and the packed block stays in the
// second-level cache while its triangle is multiplied.
constexpr int64_t kBlock = 512;
// Rows of the block lie this far apart: pieces at a power of two would fight for a few cache lines.
constexpr int64_t kRowStride = kBlock + 16;

inline int64_t padded(int64_t n) { return (n + kPanel - 1) / kPanel * kPanel; }

template <class T>
inline typename Simd<T>::vec& at(T* x) {
  return *reinterpret_cast<typename Simd<T>::vec*>(x);
}

template <class T>
inline T largest_lane(typename Simd<T>::vec x) {
  T largest = 0;
  for (int lane = 0; lane < Simd<T>::width; ++lane) largest = x[lane] > largest ? x[lane] : largest;
  return largest;
}

// Where each lane of `x` is larger, its magnitude; a NaN never is.
template <class T>
inline typename Simd<T>::vec larger(typename Simd<T>::vec largest, typename Simd<T>::vec x) {
  const typename Simd<T>::vec magnitude = x < 0 ? -x : x;
  return magnitude > largest ? magnitude : largest;
}

// As many values as a vector holds, of which only `count` may be read; then zeros.
template <class In, class T>
inline typename Simd<T>::vec read(const In* x, int64_t count, T scale) {
  if (count >= Simd<T>::width) return scale * load(x);
  In values[Simd<T>::width] = {};
  for (int64_t lane = 0; lane < count; ++lane) values[lane] = x[lane];
  return scale * load(values);
}

// Reads `Count` rows of x and adds their differences to the first row of the block to `sums`;
// prefetches as many from `next`. Returns the largest magnitudes.
template <class In, class T, int Count>
inline typename Simd<T>::vec read_rows(const In* x, int64_t x_stride, const In* next, int64_t depth,
                                       T scale, T* first_row, T* rows, T* sums,
                                       typename Simd<T>::vec largest) {
  using vec = typename Simd<T>::vec;
  for (int64_t k = 0; k < depth; k += Simd<T>::width) {
    const vec reference = at(first_row + k);
    vec sum = at(sums + k);
#pragma GCC unroll 4
    for (int i = 0; i < Count; ++i) {
      __builtin_prefetch(next + i * x_stride + k);
      const vec value = read(x + i * x_stride + k, depth - k, scale);
      at(rows + i * kRowStride + k) = value;
      largest = larger<T>(largest, value);
      sum += value - reference;
    }
    at(sums + k) = sum;
  }
  return largest;
}

// Features [first, first + depth) of all rows of x, times `scale` -> rows [padded(n), kRowStride],
// and their mean [kBlock]; both are filled up with zeros to whole vectors, and the rows beyond n
// are the mean. Returns the largest magnitudes.
template <class In, class T>
typename Simd<T>::vec read_block(const GramInput& args, int64_t first, int64_t depth, T scale,
                                 T* rows, T* mean, typename Simd<T>::vec largest) {
  using vec = typename Simd<T>::vec;
  constexpr int width = Simd<T>::width;
  const int64_t n = args.n, stride = args.row_stride;
  const In* x = static_cast<const In*>(args.x) + first;
  // Around the first row, so that the mean of equal rows is that row to the last bit.
  for (int64_t k = 0; k < depth; k += width) {
    at(rows + k) = read(x + k, depth - k, scale);
    largest = larger<T>(largest, at(rows + k));
    at(mean + k) = vec{};
  }
  int64_t i = 1;
  for (; i + 4 <= n; i += 4)
    largest = read_rows<In, T, 4>(x + i * stride, stride, x + (i + 8 <= n ? i + 4 : 0) * stride,
                                  depth, scale, rows, rows + i * kRowStride, mean, largest);
  for (; i < n; ++i)
    largest = read_rows<In, T, 1>(x + i * stride, stride, x, depth, scale, rows,
                                  rows + i * kRowStride, mean, largest);
  for (int64_t k = 0; k < depth; k += width) at(mean + k) = at(rows + k) + at(mean + k) / T(n);
  for (; i < padded(n); ++i)
    for (int64_t k = 0; k < depth; k += width) at(rows + i * kRowStride + k) = at(mean + k);
  return largest;
}

template <class T>
double square_of(const T* x, int64_t depth) {
  constexpr int width = Simd<T>::width;
  double squares[width] = {};
  for (int64_t k = 0; k < depth; k += width)
#pragma GCC unroll 16
    for (int lane = 0; lane < width; ++lane) squares[lane] += double(x[k + lane]) * double(x[k + lane]);
  double sum = 0;
  for (double square : squares) sum += square;
  return sum;
}

inline Simd<float>::vec rounded(Simd<float>::vec x, Operand operand) {
  if (operand == Operand::f16) return round_to_half(x);
  if (operand == Operand::bf16) return round_to_bfloat(x);
  return x;
}
// float64 values are multiplied as they are.
inline Simd<double>::vec rounded(Simd<double>::vec x, Operand) { return x; }

// rows [16, kRowStride] less their mean -> panel [depth, 16].
template <class T>
void pack_panel(T* rows, T* mean, int64_t depth, Operand operand, T* panel) {
  using vec = typename Simd<T>::vec;
  constexpr int width = Simd<T>::width;
  for (int64_t k = 0; k < depth; k += width) {
    const vec centre = at(mean + k);
    for (int top = 0; top < kPanel; top += width) {
      vec block[width];
#pragma GCC unroll 16
      for (int i = 0; i < width; ++i)
        block[i] = rounded(at(rows + (top + i) * kRowStride + k) - centre, operand);
      transpose<T>(block);
#pragma GCC unroll 16
      for (int i = 0; i < width; ++i) at(panel + (k + i) * kPanel + top) = block[i];
    }
  }
}

}  // namespace
}  // namespace FASTCKA_ISA
}  // namespace fastcka
