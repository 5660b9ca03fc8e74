// finish of many layers on a GPU: see csrc/cpu/finish.cpp for the formulas.
//
// Three launches: row sums, centre and pack (a block a row and layer), summary (a block a layer).
// Every sum is taken in one fixed order, so the same input gives the same bits. float64; a layer
// takes 2 n^2 values read and n^2 / 2 written.
#include "block_sum.h"
#include "launch.h"

namespace fastcka {
namespace cuda {
namespace {

constexpr int kThreads = 128;  // a row is 4 to 2048 values long

__device__ inline double own_sum(const FinishAllArgs& args, int64_t row) {
  const int64_t layer = blockIdx.y;
  const double sum = args.out.row_sums[layer * args.row_sums_stride + row];
  if (args.estimator == Estimator::unbiased) return sum;
  return sum + args.out.diagonal[layer * args.diagonal_stride + row];
}

__global__ void row_sums_kernel(FinishAllArgs args) {
  __shared__ double shared[kThreads];
  const int64_t i = blockIdx.x, layer = blockIdx.y, n = args.n;
  const double* k = args.k + layer * n * n;
  double sum = 0;
  for (int64_t j = threadIdx.x; j < n; j += kThreads)
    if (j != i) sum += j < i ? k[i * n + j] : k[j * n + i];
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) {
    args.out.row_sums[layer * args.row_sums_stride + i] = sum;
    args.out.diagonal[layer * args.diagonal_stride + i] = k[i * n + i];
  }
}

__global__ void centre_and_pack_kernel(FinishAllArgs args) {
  __shared__ double shared[kThreads];
  const bool biased = args.estimator == Estimator::biased;
  const int64_t i = blockIdx.x, layer = blockIdx.y;
  const double n = double(args.n);
  double total = 0;
  for (int64_t j = threadIdx.x; j < args.n; j += kThreads) total += own_sum(args, j);
  total = block_sum(total, shared);
  const double per_row = biased ? 1 / n : 1 / (n - 2);
  const double grand = biased ? total / (n * n) : total / ((n - 1) * (n - 2));
  const double own = own_sum(args, i);
  double* packed =
      args.out.packed + layer * args.packed_stride + (biased ? i * (i + 1) / 2 : i * (i - 1) / 2);
  const double* row = args.k + (layer * args.n + i) * args.n;
  double centred = 0, hollow = 0;
  for (int64_t j = threadIdx.x; j < i; j += kThreads) {
    const double value =
        1.41421356237309504880 * (row[j] - (own + own_sum(args, j)) * per_row + grand);
    packed[j] = value;
    centred += value * value;
    hollow += 2 * row[j] * row[j];
  }
  if (biased && threadIdx.x == 0) {
    packed[i] = row[i] - 2 * own * per_row + grand;
    centred += packed[i] * packed[i];
  }
  centred = block_sum(centred, shared);
  hollow = block_sum(hollow, shared);
  if (threadIdx.x == 0) {
    double* squares = args.squares + 2 * (layer * args.n + i);
    squares[0] = centred;
    squares[1] = hollow;
  }
}

__global__ void summary_kernel(FinishAllArgs args) {
  __shared__ double shared[kThreads];
  const int64_t layer = blockIdx.x;
  const double* squares = args.squares + 2 * layer * args.n;
  const double* diagonals = args.out.diagonal + layer * args.diagonal_stride;
  const double* stats = args.stats + 3 * layer;
  double centred = 0, hollow = 0, diagonal = 0;
  for (int64_t i = threadIdx.x; i < args.n; i += kThreads) {
    centred += squares[2 * i];
    hollow += squares[2 * i + 1];
    diagonal += diagonals[i] * diagonals[i];
  }
  centred = block_sum(centred, shared);
  hollow = block_sum(hollow, shared);
  diagonal = block_sum(diagonal, shared);
  if (threadIdx.x == 0) {
    const double n = double(args.n), common = n * stats[0];
    double* summary = args.out.summary + layer * args.summary_stride;
    summary[0] = centred;
    summary[1] = hollow;
    summary[2] = stats[2];
    summary[3] = stats[1];
    // As a ratio of roots: the square of the raw norm may leave float64 where its root does not.
    summary[4] =
        sqrt(hollow + diagonal + common * common) / n / sqrt(centred / (n * (n - 1)));
  }
}

}  // namespace

void finish(const FinishAllArgs& args, int device, void* stream) {
  const DeviceGuard guard(device, "finish");
  const dim3 rows(unsigned(args.n), unsigned(args.layers));
  launch(row_sums_kernel, rows, kThreads, 0, stream, args);
  launch(centre_and_pack_kernel, rows, kThreads, 0, stream, args);
  launch(summary_kernel, dim3(unsigned(args.layers)), kThreads, 0, stream, args);
  check(cudaGetLastError(), "finish");
}

}  // namespace cuda
}  // namespace fastcka
