// The lower triangle of a Gram matrix k [n, n] -> its centred, packed triangle.
//
// unbiased: u_ij = k_ij - (r_i + r_j)/(n-2) + s/((n-1)(n-2)) for i != j, r and s the row sums and
//           the total of k without its diagonal; packed are the sqrt(2) u_ij with j < i.
// biased:   h_ij = k_ij - (t_i + t_j)/n + T/n^2, t and T with the diagonal; packed are the
//           sqrt(2) h_ij with j < i and the h_ii.
// All in float64, within the packed triangle.
#pragma once

#include "../kernels.h"
#include "dot.h"
#include "isa.h"

namespace fastcka {
namespace FASTCKA_ISA {
namespace {

constexpr double kRootTwo = 1.41421356237309504880;

struct RowSums {
  double sum, squares;
};

// Sums of a row's entries and of their squares; adds the entries to `columns`.
inline RowSums sum_row(const double* row, int64_t count, double* columns) {
  using unaligned = typename Simd<double>::unaligned;
  constexpr int width = Simd<double>::width;
  typename Simd<double>::vec sums = {}, squares = {};
  int64_t j = 0;
  for (; j + width <= count; j += width) {
    const typename Simd<double>::vec k = *reinterpret_cast<const unaligned*>(row + j);
    sums += k;
    squares += k * k;
    *reinterpret_cast<unaligned*>(columns + j) += k;
  }
  RowSums total = {0, 0};
  for (int lane = 0; lane < width; ++lane) {
    total.sum += sums[lane];
    total.squares += squares[lane];
  }
  for (; j < count; ++j) {
    total.sum += row[j];
    total.squares += row[j] * row[j];
    columns[j] += row[j];
  }
  return total;
}

// Packs the triangle as it is, with its diagonal and the row sums without it; returns the sum of
// squares without the diagonal. `k.row(i, count, out)` writes the first entries of a row.
template <class Matrix>
double pack(const Matrix& k, int64_t n, bool biased, const Finished& out) {
  double squares = 0;
  for (int64_t i = 0; i < n; ++i) out.row_sums[i] = 0;
  double* packed = out.packed;
  for (int64_t i = 0; i < n; ++i) {
    k.row(i, i, packed);
    out.diagonal[i] = k.diagonal(i);
    const RowSums row = sum_row(packed, i, out.row_sums);
    out.row_sums[i] += row.sum;
    squares += 2 * row.squares;
    packed += i;
    if (biased) *packed++ = out.diagonal[i];
  }
  return squares;
}

// Returns the length of the packed triangle.
inline int64_t centre_packed(int64_t count, bool biased, const Finished& out) {
  const double n = double(count);
  const double per_row = biased ? 1 / n : 1 / (n - 2);
  double total = 0;
  for (int64_t i = 0; i < count; ++i) total += out.row_sums[i] + (biased ? out.diagonal[i] : 0.0);
  const double grand = biased ? total / (n * n) : total / ((n - 1) * (n - 2));
  double* packed = out.packed;
  for (int64_t i = 0; i < count; ++i) {
    const double own = out.row_sums[i] + (biased ? out.diagonal[i] : 0.0);
    for (int64_t j = 0; j < i; ++j) {
      const double other = out.row_sums[j] + (biased ? out.diagonal[j] : 0.0);
      packed[j] = kRootTwo * (packed[j] - (own + other) * per_row + grand);
    }
    packed += i;
    if (biased) {
      *packed = *packed - 2 * own * per_row + grand;
      ++packed;
    }
  }
  return packed - out.packed;
}

// All of `out` but what its summary takes from the activations. `mean_square`: |c|^2 of the common
// row c that was subtracted from them.
template <class Matrix>
void centre(const Matrix& k, int64_t count, double mean_square, Estimator estimator,
            const Finished& out) {
  const double n = double(count);
  const bool biased = estimator == Estimator::biased;
  const double off_diagonal = pack(k, count, biased, out);
  const int64_t length = centre_packed(count, biased, out);
  double centred = 0;
  for (int64_t k = 0; k < length; k += kDotBlock)
    dot_tile<1, 1>(out.packed + k, 0, out.packed + k, 0,
                   length - k < kDotBlock ? length - k : kDotBlock, &centred, 0);
  double diagonal = 0;
  for (int64_t i = 0; i < count; ++i) diagonal += out.diagonal[i] * out.diagonal[i];
  // |raw k|^2 to within the cross terms, which the other two bound.
  const double raw = off_diagonal + diagonal + n * n * mean_square * mean_square;
  out.summary[0] = centred;
  out.summary[1] = off_diagonal;
  out.summary[4] = __builtin_sqrt((raw / (n * n)) / (centred / (n * (n - 1))));
}

}  // namespace
}  // namespace FASTCKA_ISA
}  // namespace fastcka
