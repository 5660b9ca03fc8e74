// finish: the lower triangle of a Gram matrix k [n, n] -> its centred, packed triangle (centre.h).
#include "../kernels.h"
#include "centre.h"
#include "isa.h"

namespace fastcka {
namespace FASTCKA_ISA {

void finish(const FinishArgs& args) {
  for (int64_t i = 0; i < args.n; ++i) {
    const double* row = args.k + i * args.k_stride;
    double* packed = args.packed + packed_start(i, args.estimator);
    for (int64_t j = 0; j < i; ++j) packed[j] = row[j];
    args.diagonal[i] = row[i];
  }
  centre(args.n, args.stats[0], args.estimator, args);
  args.summary[2] = args.stats[2];
  args.summary[3] = args.stats[1];
}

}  // namespace FASTCKA_ISA
}  // namespace fastcka
