// finish: the lower triangle of a Gram matrix k [n, n] -> its centred, packed triangle.
//
// unbiased: u_ij = k_ij - (r_i + r_j)/(n-2) + s/((n-1)(n-2)) for i != j, r and s the row sums and
//           the total of k without its diagonal; packed are the sqrt(2) u_ij with j < i.
// biased:   h_ij = k_ij - (t_i + t_j)/n + T/n^2, t and T with the diagonal; packed are the
//           sqrt(2) h_ij with j < i and the h_ii.
// All in float64, 3 n^2 / 2 values read or written.
#include "../kernels.h"
#include "dot.h"
#include "isa.h"

namespace fastcka {
namespace FASTCKA_ISA {
namespace {

constexpr double kRootTwo = 1.41421356237309504880;

// Row sums without the diagonal; returns the sum of squares without the diagonal.
double sum_rows(const FinishArgs& args) {
  double squares = 0;
  for (int64_t i = 0; i < args.n; ++i) args.row_sums[i] = 0;
  for (int64_t i = 0; i < args.n; ++i) {
    const double* row = args.k + i * args.k_stride;
    double sum = 0, square = 0;
    for (int64_t j = 0; j < i; ++j) {
      sum += row[j];
      square += row[j] * row[j];
      args.row_sums[j] += row[j];
    }
    args.row_sums[i] += sum;
    args.diagonal[i] = row[i];
    squares += 2 * square;
  }
  return squares;
}

// Returns the length that was packed.
int64_t centre_and_pack(const FinishArgs& args) {
  const bool biased = args.estimator == Estimator::biased;
  const double n = double(args.n);
  const double per_row = biased ? 1 / n : 1 / (n - 2);
  double total = 0;
  for (int64_t i = 0; i < args.n; ++i)
    total += args.row_sums[i] + (biased ? args.diagonal[i] : 0.0);
  const double grand = biased ? total / (n * n) : total / ((n - 1) * (n - 2));
  double* packed = args.packed;
  for (int64_t i = 0; i < args.n; ++i) {
    const double* row = args.k + i * args.k_stride;
    const double own = args.row_sums[i] + (biased ? args.diagonal[i] : 0.0);
    for (int64_t j = 0; j < i; ++j) {
      const double other = args.row_sums[j] + (biased ? args.diagonal[j] : 0.0);
      *packed++ = kRootTwo * (row[j] - (own + other) * per_row + grand);
    }
    if (biased) *packed++ = row[i] - 2 * own * per_row + grand;
  }
  return packed - args.packed;
}
}  // namespace

void finish(const FinishArgs& args) {
  const double n = double(args.n);
  const double off_diagonal = sum_rows(args);
  const int64_t length = centre_and_pack(args);
  double centred = 0;
  for (int64_t k = 0; k < length; k += kDotBlock)
    dot_tile<1, 1>(args.packed + k, 0, args.packed + k, 0,
                   length - k < kDotBlock ? length - k : kDotBlock, &centred, 0);
  double diagonal = 0;
  for (int64_t i = 0; i < args.n; ++i) diagonal += args.diagonal[i] * args.diagonal[i];
  // |raw k|^2 to within the cross terms, which the other two bound.
  const double raw = off_diagonal + diagonal + n * n * args.stats[0] * args.stats[0];
  args.summary[0] = centred;
  args.summary[1] = off_diagonal;
  args.summary[2] = args.stats[2];
  args.summary[3] = args.stats[1];
  args.summary[4] = __builtin_sqrt((raw / (n * n)) / (centred / (n * (n - 1))));
}

}  // namespace FASTCKA_ISA
}  // namespace fastcka
