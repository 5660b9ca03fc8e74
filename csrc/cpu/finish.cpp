// finish: the lower triangle of a Gram matrix k [n, n] -> its centred, packed triangle (centre.h).
#include "../kernels.h"
#include "centre.h"
#include "isa.h"

namespace fastcka {
namespace FASTCKA_ISA {
namespace {

struct Matrix {
  const double* k;
  int64_t stride;
  void row(int64_t i, int64_t count, double* out) const {
    for (int64_t j = 0; j < count; ++j) out[j] = k[i * stride + j];
  }
  double diagonal(int64_t i) const { return k[i * stride + i]; }
};
}  // namespace

void finish(const FinishArgs& args) {
  centre(Matrix{args.k, args.k_stride}, args.n, args.stats[0], args.estimator, args);
  args.summary[2] = args.stats[2];
  args.summary[3] = args.stats[1];
}

}  // namespace FASTCKA_ISA
}  // namespace fastcka
