// hsic_pairs on a GPU: packed triangles of layers -> their inner products, in float64.
//
// The result is small and the sum long, so blocks share the sum: each takes a run of entries of a
// tile of pairs, and what they leave is added up in their order. A pair is summed in one order that
// only the length decides, so it has the same bits on both sides of the diagonal and in any stack.
#include "launch.h"

namespace fastcka {
namespace cuda {
namespace {

constexpr int kTile = 32;              // pairs aside
constexpr int kStep = 32;              // entries
constexpr int kEach = 4;               // pairs aside of a thread
constexpr int kAside = kTile / kEach;  // threads
constexpr int kThreads = kAside * kAside;
constexpr int kSumThreads = 256;

__global__ void runs_kernel(HsicRunsArgs args) {
  // One more than a row has: threads read a column of it at once.
  __shared__ double a[kTile][kStep + 1], b[kTile][kStep + 1];
  const int64_t row = int64_t(blockIdx.x) * kTile, column = int64_t(blockIdx.y) * kTile;
  const int64_t start = int64_t(blockIdx.z) * args.run;
  const int64_t stop = start + args.run < args.length ? start + args.run : args.length;
  const int own_row = int(threadIdx.x) / kAside, own_column = int(threadIdx.x) % kAside;
  double sums[kEach][kEach] = {};
  for (int64_t first = start; first < stop; first += kStep) {
    __syncthreads();
    for (int place = int(threadIdx.x); place < kTile * kStep; place += kThreads) {
      const int r = place / kStep, c = place % kStep;
      const bool exists = first + c < stop;
      a[r][c] = exists && row + r < args.rows_a ? args.a[(row + r) * args.a_stride + first + c] : 0;
      b[r][c] =
          exists && column + r < args.rows_b ? args.b[(column + r) * args.b_stride + first + c] : 0;
    }
    __syncthreads();
    for (int c = 0; c < kStep; ++c)
#pragma unroll
      for (int i = 0; i < kEach; ++i)
#pragma unroll
        for (int j = 0; j < kEach; ++j)
          sums[i][j] = fma(a[own_row + kAside * i][c], b[own_column + kAside * j][c], sums[i][j]);
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i)
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const int64_t r = row + own_row + kAside * i, c = column + own_column + kAside * j;
      if (r < args.rows_a && c < args.rows_b)
        args.partials[(blockIdx.z * args.rows_a + r) * args.rows_b + c] = sums[i][j];
    }
}

__global__ void sum_kernel(HsicRunsArgs args) {
  const int64_t place = int64_t(blockIdx.x) * kSumThreads + threadIdx.x;
  const int64_t pairs = args.rows_a * args.rows_b;
  if (place >= pairs) return;
  double sum = 0;
  for (int64_t run = 0; run < args.runs; ++run) sum += args.partials[run * pairs + place];
  args.out[place / args.rows_b * args.out_stride + place % args.rows_b] = sum;
}

unsigned parts(int64_t count, int64_t of) { return unsigned((count + of - 1) / of); }

}  // namespace

void hsic_pairs(const HsicRunsArgs& args, int device, void* stream) {
  const DeviceGuard guard(device, "hsic_pairs");
  const dim3 tiles(parts(args.rows_a, kTile), parts(args.rows_b, kTile), unsigned(args.runs));
  launch(runs_kernel, tiles, kThreads, 0, stream, args);
  launch(sum_kernel, dim3(parts(args.rows_a * args.rows_b, kSumThreads)), kSumThreads, 0, stream,
         args);
  check(cudaGetLastError(), "hsic_pairs");
}

}  // namespace cuda
}  // namespace fastcka
