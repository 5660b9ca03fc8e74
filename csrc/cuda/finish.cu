// finish on a GPU: see csrc/cpu/finish.cpp for the formulas.
//
// Three launches on the caller's stream, no allocation, no synchronisation: row sums (a block a
// row), centre and pack (a block a row), summary (one block). Every sum is taken in one fixed order,
// so the same input gives the same bits. float64; 2 n^2 values read, n^2 / 2 written.
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "../kernels.h"

namespace fastcka {
namespace cuda {
namespace {

constexpr int kRowThreads = 128;      // a row is 64 to 2048 values long
constexpr int kSummaryThreads = 1024;  // one block has to hide the latency of n^2 / 2 reads alone

// The sum over the block, in every thread. `shared` holds one value a thread.
__device__ double block_sum(double value, double* shared) {
  __syncthreads();
  shared[threadIdx.x] = value;
  __syncthreads();
  for (int half = blockDim.x / 2; half > 0; half /= 2) {
    if (int(threadIdx.x) < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    __syncthreads();
  }
  return shared[0];
}

__global__ void row_sums_kernel(FinishArgs args) {
  __shared__ double shared[kRowThreads];
  const int64_t i = blockIdx.x;
  double sum = 0;
  for (int64_t j = threadIdx.x; j < args.n; j += blockDim.x)
    if (j != i) sum += j < i ? args.k[i * args.k_stride + j] : args.k[j * args.k_stride + i];
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) {
    args.row_sums[i] = sum;
    args.diagonal[i] = args.k[i * args.k_stride + i];
  }
}

__global__ void centre_and_pack_kernel(FinishArgs args) {
  __shared__ double shared[kRowThreads];
  const bool biased = args.estimator == Estimator::biased;
  const int64_t i = blockIdx.x;
  const double n = double(args.n);
  double total = 0;
  for (int64_t j = threadIdx.x; j < args.n; j += blockDim.x)
    total += args.row_sums[j] + (biased ? args.diagonal[j] : 0.0);
  total = block_sum(total, shared);
  const double per_row = biased ? 1 / n : 1 / (n - 2);
  const double grand = biased ? total / (n * n) : total / ((n - 1) * (n - 2));
  const double own = args.row_sums[i] + (biased ? args.diagonal[i] : 0.0);
  double* packed = args.packed + (biased ? i * (i + 1) / 2 : i * (i - 1) / 2);
  const double* row = args.k + i * args.k_stride;
  for (int64_t j = threadIdx.x; j < i; j += blockDim.x) {
    const double other = args.row_sums[j] + (biased ? args.diagonal[j] : 0.0);
    packed[j] = 1.41421356237309504880 * (row[j] - (own + other) * per_row + grand);
  }
  if (biased && threadIdx.x == 0) packed[i] = row[i] - 2 * own * per_row + grand;
}

__global__ void summary_kernel(FinishArgs args) {
  __shared__ double shared[kSummaryThreads];
  const int64_t n = args.n;
  const int64_t length = args.estimator == Estimator::biased ? n * (n + 1) / 2 : n * (n - 1) / 2;
  double centred = 0, off_diagonal = 0, diagonal = 0;
  for (int64_t k = threadIdx.x; k < length; k += blockDim.x)
    centred += args.packed[k] * args.packed[k];
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = threadIdx.x; j < i; j += blockDim.x)
      off_diagonal += 2 * args.k[i * args.k_stride + j] * args.k[i * args.k_stride + j];
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x)
    diagonal += args.diagonal[i] * args.diagonal[i];
  centred = block_sum(centred, shared);
  off_diagonal = block_sum(off_diagonal, shared);
  diagonal = block_sum(diagonal, shared);
  if (threadIdx.x == 0) {
    const double size = double(n);
    const double raw =
        off_diagonal + diagonal + size * size * args.stats[0] * args.stats[0];
    args.summary[0] = centred;
    args.summary[1] = off_diagonal;
    args.summary[2] = args.stats[2];
    args.summary[3] = args.stats[1];
    args.summary[4] = sqrt((raw / (size * size)) / (centred / (size * (size - 1))));
  }
}

void check(cudaError_t status) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string("finish on the GPU failed: ") +
                             cudaGetErrorString(status));
}

// Makes `device` current while it lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&previous_));
    check(cudaSetDevice(device));
  }
  ~DeviceGuard() { cudaSetDevice(previous_); }

 private:
  int previous_ = 0;
};

}  // namespace

void finish(const FinishArgs& args, int device, void* stream_handle) {
  const DeviceGuard guard(device);
  cudaGetLastError();  // an older error of somebody else is not ours to report
  auto* stream = static_cast<cudaStream_t>(stream_handle);
  const unsigned rows = unsigned(args.n);
  row_sums_kernel<<<rows, kRowThreads, 0, stream>>>(args);
  centre_and_pack_kernel<<<rows, kRowThreads, 0, stream>>>(args);
  summary_kernel<<<1, kSummaryThreads, 0, stream>>>(args);
  check(cudaGetLastError());
}

}  // namespace cuda
}  // namespace fastcka
