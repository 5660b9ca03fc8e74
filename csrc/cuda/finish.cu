// finish of many layers on a GPU: see csrc/cpu/finish.cpp for the formulas.
//
// Three launches: row sums, centre and pack (a block a row and layer), summary (a block a layer).
// Every sum is taken in one fixed order, so the same input gives the same bits. float64; a layer
// takes 2 n^2 values read and n^2 / 2 written.
//
// A Gram matrix of rows less some common row is as good as one of rows less their mean: its entries
// are k_ij - m_i - m_j + m, with m_i and m the means of its rows and of all, and its rows sum to 0,
// the diagonal included.
#include "block_sum.h"
#include "launch.h"

namespace fastcka {
namespace cuda {
namespace {

constexpr int kThreads = 128;  // a row is 4 to 2048 values long

// A row of the whole symmetric matrix that is finished.
struct Row {
  double mean;  // what its entries lose, so that the matrix is around the mean: 0 where it is
  double diagonal, hollow;  // hollow: its sum without the diagonal

  // mean_of_all: of all entries of k; read where k is of rows less another common row.
  __device__ Row(const FinishAllArgs& args, int64_t row, double mean_of_all) : mean(0) {
    const double* sums = args.sums + 2 * (int64_t(blockIdx.y) * args.n + row);
    hollow = sums[0];
    diagonal = sums[1];
    if (args.pivoted) {
      mean = (hollow + diagonal) / double(args.n);
      diagonal = diagonal - 2 * mean + mean_of_all;
      hollow = -diagonal;
    }
  }
  // Of the entries that the estimator takes.
  __device__ double sum(bool biased) const { return biased ? hollow + diagonal : hollow; }
};

__global__ void row_sums_kernel(FinishAllArgs args) {
  __shared__ double shared[kThreads];
  const int64_t i = blockIdx.x, layer = blockIdx.y, n = args.n;
  const double* k = args.k + layer * n * n;
  double sum = 0;
  for (int64_t j = threadIdx.x; j < n; j += kThreads)
    if (j != i) sum += j < i ? k[i * n + j] : k[j * n + i];
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) {
    double* sums = args.sums + 2 * (layer * n + i);
    sums[0] = sum;
    sums[1] = k[i * n + i];
  }
}

__global__ void centre_and_pack_kernel(FinishAllArgs args) {
  __shared__ double shared[kThreads];
  const bool biased = args.estimator == Estimator::biased;
  const int64_t i = blockIdx.x, layer = blockIdx.y;
  const double n = double(args.n);
  double mean = 0, total = 0;
  if (args.pivoted) {
    for (int64_t j = threadIdx.x; j < args.n; j += kThreads) mean += Row(args, j, 0).mean;
    mean = block_sum(mean, shared) / n;
  }
  for (int64_t j = threadIdx.x; j < args.n; j += kThreads) total += Row(args, j, mean).sum(biased);
  total = block_sum(total, shared);
  const double per_row = biased ? 1 / n : 1 / (n - 2);
  const double grand = biased ? total / (n * n) : total / ((n - 1) * (n - 2));
  const Row own(args, i, mean);
  double* packed =
      args.out.packed + layer * args.packed_stride + (biased ? i * (i + 1) / 2 : i * (i - 1) / 2);
  const double* row = args.k + (layer * args.n + i) * args.n;
  double centred = 0, hollow = 0;
  for (int64_t j = threadIdx.x; j < i; j += kThreads) {
    const Row other(args, j, mean);
    const double entry = row[j] - own.mean - other.mean + mean;
    const double sums = (own.sum(biased) + other.sum(biased)) * per_row;
    const double value = 1.41421356237309504880 * (entry - sums + grand);
    packed[j] = value;
    centred += value * value;
    hollow += 2 * entry * entry;
  }
  if (biased && threadIdx.x == 0) {
    packed[i] = own.diagonal - 2 * own.sum(biased) * per_row + grand;
    centred += packed[i] * packed[i];
  }
  centred = block_sum(centred, shared);
  hollow = block_sum(hollow, shared);
  if (threadIdx.x == 0) {
    double* squares = args.squares + 2 * (layer * args.n + i);
    squares[0] = centred;
    squares[1] = hollow;
    args.out.row_sums[layer * args.row_sums_stride + i] = own.hollow;
    args.out.diagonal[layer * args.diagonal_stride + i] = own.diagonal;
  }
}

__global__ void summary_kernel(FinishAllArgs args) {
  __shared__ double shared[kThreads];
  const int64_t layer = blockIdx.x;
  const double* squares = args.squares + 2 * layer * args.n;
  const double* diagonals = args.out.diagonal + layer * args.diagonal_stride;
  const double* stats = args.stats + layer * args.blocks;
  double centred = 0, hollow = 0, diagonal = 0, spread = 0, norm = 0;
  for (int64_t i = threadIdx.x; i < args.n; i += kThreads) {
    centred += squares[2 * i];
    hollow += squares[2 * i + 1];
    diagonal += diagonals[i] * diagonals[i];
    spread += diagonals[i];
  }
  centred = block_sum(centred, shared);
  hollow = block_sum(hollow, shared);
  diagonal = block_sum(diagonal, shared);
  if (args.pivoted) {
    for (int64_t i = threadIdx.x; i < args.blocks; i += kThreads) norm += stats[i];
    norm = block_sum(norm, shared);
    spread = block_sum(spread, shared);
  }
  if (threadIdx.x == 0) {
    const double n = double(args.n);
    double whole = n * norm;
    if (!(whole > spread)) whole = spread;  // the norms are those of few rows; NaN where it is
    double common = whole - spread;
    if (!args.pivoted) {
      common = n * stats[0];
      whole = stats[1];
      spread = stats[2];
    }
    double* summary = args.out.summary + layer * args.summary_stride;
    summary[0] = centred;
    summary[1] = hollow;
    summary[2] = spread;
    summary[3] = whole;
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
