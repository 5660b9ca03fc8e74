// multiply_adds: as many independent multiply-adds as the registers hold, again and again: what the
// multiplication of matrices can reach on this processor at best. For the benchmarks.
#include "../kernels.h"
#include "isa.h"

namespace fastcka {
namespace FASTCKA_ISA {

double multiply_adds(int64_t rounds, int threads, float* out) {
  using vec = Simd<float>::vec;
#pragma omp parallel for schedule(static, 1) num_threads(threads) if (threads > 1)
  for (int t = 0; t < threads; ++t) {
    // Values that the compiler cannot know: it would compute the sums beforehand.
    const vec factor = vec{} + out[t];
    vec acc[kAccumulators];
#pragma GCC unroll 16
    for (int i = 0; i < kAccumulators; ++i) acc[i] = factor * float(i);
    for (int64_t round = 0; round < rounds; ++round)
#pragma GCC unroll 16
      for (int i = 0; i < kAccumulators; ++i) acc[i] = acc[i] * factor + factor;
    vec sum = {};
#pragma GCC unroll 16
    for (int i = 0; i < kAccumulators; ++i) sum += acc[i];
    out[t] = sum[0];
  }
  return 2.0 * double(rounds) * kAccumulators * Simd<float>::width * threads;
}

}  // namespace FASTCKA_ISA
}  // namespace fastcka
