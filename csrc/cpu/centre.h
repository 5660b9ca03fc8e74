// Centring the lower triangle of a Gram matrix k [n, n] where it is packed, row after row.
//
// unbiased: u_ij = k_ij - (r_i + r_j)/(n-2) + s/((n-1)(n-2)) for i != j, r and s the row sums and
//           the total of k without its diagonal; packed are the sqrt(2) u_ij with j < i.
// biased:   h_ij = k_ij - (t_i + t_j)/n + T/n^2, t and T with the diagonal; packed are the
//           sqrt(2) h_ij with j < i and the h_ii.
// All in float64.
#pragma once

#include "../kernels.h"
#include "dot.h"
#include "isa.h"

namespace fastcka {
namespace FASTCKA_ISA {
namespace {

constexpr double kRootTwo = 1.41421356237309504880;

// Entries before those of row i.
inline int64_t packed_start(int64_t i, Estimator estimator) {
  return estimator == Estimator::biased ? i * (i + 1) / 2 : i * (i - 1) / 2;
}

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

// Row sums without the diagonal; returns the sum of squares without the diagonal.
inline double sum_rows(int64_t n, Estimator estimator, const Finished& out) {
  double squares = 0;
  for (int64_t i = 0; i < n; ++i) out.row_sums[i] = 0;
  for (int64_t i = 0; i < n; ++i) {
    const RowSums row = sum_row(out.packed + packed_start(i, estimator), i, out.row_sums);
    out.row_sums[i] += row.sum;
    squares += 2 * row.squares;
  }
  return squares;
}

inline void centre_rows(int64_t count, Estimator estimator, const Finished& out) {
  const double n = double(count);
  const bool biased = estimator == Estimator::biased;
  const double per_row = biased ? 1 / n : 1 / (n - 2);
  double total = 0;
  for (int64_t i = 0; i < count; ++i) total += out.row_sums[i] + (biased ? out.diagonal[i] : 0.0);
  const double grand = biased ? total / (n * n) : total / ((n - 1) * (n - 2));
  for (int64_t i = 0; i < count; ++i) {
    double* packed = out.packed + packed_start(i, estimator);
    const double own = out.row_sums[i] + (biased ? out.diagonal[i] : 0.0);
    for (int64_t j = 0; j < i; ++j) {
      const double other = out.row_sums[j] + (biased ? out.diagonal[j] : 0.0);
      packed[j] = kRootTwo * (packed[j] - (own + other) * per_row + grand);
    }
    if (biased) packed[i] = out.diagonal[i] - 2 * own * per_row + grand;
  }
}

// Centres what lies packed, the entries with j < i and the diagonal beside them, and writes the rest
// of `out` but what its summary takes from the activations. `mean_square`: |c|^2 of the common row c
// that was subtracted from them.
inline void centre(int64_t count, double mean_square, Estimator estimator, const Finished& out) {
  const double n = double(count);
  const double off_diagonal = sum_rows(count, estimator, out);
  centre_rows(count, estimator, out);
  const int64_t length = packed_start(count, estimator);
  double centred = 0;
  for (int64_t start = 0; start < length; start += kDotBlock)
    dot_tile<1, 1>(out.packed + start, 0, out.packed + start, 0,
                   length - start < kDotBlock ? length - start : kDotBlock, &centred, 0);
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
