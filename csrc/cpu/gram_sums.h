// What `gram` and `gram_finish` share: the products that the threads have added up, each its own.
#pragma once

#include "../kernels.h"
#include "isa.h"

namespace fastcka {
namespace FASTCKA_ISA {

// All parts of the threads together take at most this, or one part does.
constexpr size_t kLargestWorkspace = size_t(512) << 20;

struct GramSums {
  const char* first;    // [stride, stride] float64, the lower triangle
  size_t part_bytes;    // from there to the next thread's
  int parts;
  int64_t stride;
  double unscale;       // x was divided by it
  double mean_square;   // |c|^2, c the mean row of x

  // out[j] = k[i, j] for j < count <= i + 1.
  void row(int64_t i, int64_t count, double* out) const {
    for (int64_t j = 0; j < count; ++j) out[j] = of(0)[i * stride + j];
    for (int t = 1; t < parts; ++t)
      for (int64_t j = 0; j < count; ++j) out[j] += of(t)[i * stride + j];
    // Multiplied by twice: its square may leave float64's range where the results do not.
    for (int64_t j = 0; j < count; ++j) out[j] = out[j] * unscale * unscale;
  }
  double diagonal(int64_t i) const {
    double sum = of(0)[i * stride + i];
    for (int t = 1; t < parts; ++t) sum += of(t)[i * stride + i];
    return sum * unscale * unscale;
  }

  // Few entries are added up sooner than threads are woken.
  bool worth_sharing(int64_t n) const { return parts > 1 && n >= 128; }

 private:
  const double* of(int part) const {
    return reinterpret_cast<const double*>(first + size_t(part) * part_bytes);
  }
};

size_t gram_workspace(int64_t n, int64_t p, Dtype dtype, int threads);
GramSums gram_sums(const GramInput& input);

}  // namespace FASTCKA_ISA
}  // namespace fastcka
