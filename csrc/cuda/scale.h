// The power of two by which activations are multiplied, and their products divided again.
#pragma once

#include "ptx.h"

namespace fastcka {
namespace cuda {

// It takes the largest sampled value, of these bits, into [1, 2).
__device__ inline float scale_of(int32_t bits) {
  const int32_t exponent = bits >> 23;
  if (bits == 0 || exponent == 255) return 1;
  return __int_as_float((254 - (exponent < 253 ? exponent : 253)) << 23);
}

}  // namespace cuda
}  // namespace fastcka
