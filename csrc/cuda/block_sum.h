#pragma once

#include "ptx.h"

namespace fastcka {
namespace cuda {

// The sum over the block, in every thread. `shared` holds one value a thread, a power of two of them.
__device__ inline double block_sum(double value, double* shared) {
  __syncthreads();
  shared[threadIdx.x] = value;
  __syncthreads();
  for (int half = blockDim.x / 2; half > 0; half /= 2) {
    if (int(threadIdx.x) < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    __syncthreads();
  }
  return shared[0];
}

}  // namespace cuda
}  // namespace fastcka
