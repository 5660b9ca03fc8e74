// gram of many layers at once: sample a common row, multiply, add up, centre.
//
// Every sum is taken in one fixed order, so the same input gives the same bits.
#include "block_sum.h"
#include "launch.h"
#include "scale.h"

namespace fastcka {
namespace cuda {

void products_f16(const ProductsArgs& args, void* stream);
void products_bf16(const ProductsArgs& args, void* stream);
void products_f32(const ProductsArgs& args, void* stream);
void products_sm90(const ProductsArgs& args, int device, void* stream);

namespace {

constexpr int kThreads = 256;
constexpr int kRowThreads = 128;  // a row is 4 to 2048 values long

template <class T>
__global__ void sample_kernel(SampleArgs args) {
  __shared__ double shared[kThreads];
  const Layer layer = args.layers[blockIdx.y];
  const T* x = static_cast<const T*>(args.base) + layer.distance * args.piece;
  const int64_t stride = layer.stride * args.piece, features = layer.features * args.piece;
  const int64_t padded = (features + args.padding - 1) / args.padding * args.padding;
  const int64_t begin = int64_t(blockIdx.x) * args.block;
  const int64_t stop = begin + args.block < padded ? begin + args.block : padded;
  float largest = 0;
  double squares = 0;
  for (int64_t column = begin + threadIdx.x; column < stop; column += kThreads) {
    float pivot = 0;
    if (column < features) {
      // Around the first row, so that the pivot of equal rows is that row to the last bit.
      const float first = to_float(x[column]);
      float sum = 0;
      for (int64_t r = 0; r < args.rows; ++r) {
        const float value = to_float(x[r * args.n / args.rows * stride + column]);
        sum += value - first;
        largest = fmaxf(largest, fabsf(value));
        squares += double(value) * double(value);
      }
      pivot = first + sum / float(args.rows);
    }
    args.pivots[layer.pivot * 16 + column] = pivot;
  }
  // Bits of positive numbers are ordered as the numbers are.
  if (largest > 0) atomicMax(args.largest + blockIdx.y, __float_as_int(largest));
  squares = block_sum(squares, shared);
  if (threadIdx.x == 0)
    args.norms[int64_t(blockIdx.y) * args.blocks + blockIdx.x] = squares / double(args.rows);
}

__global__ void add_up_kernel(AddUpArgs args) {
  const Work work = args.works[blockIdx.x];
  const int64_t products = int64_t(gridDim.y) * kThreads, size = args.rows * args.columns;
  const int64_t place = int64_t(blockIdx.y) * kThreads + threadIdx.x;
  // A triangle's first block of rows with itself, its second with the first, and with itself.
  const int64_t part = place / size, within = place % size;
  const bool first = args.kind == TileKind::triangle && part < 2;
  const int64_t row = (part > 0 ? work.row_b : work.row_a) + within / args.columns;
  const int64_t column = (first ? work.row_a : work.row_b) + within % args.columns;
  if (row >= args.n || column > row) return;
  double sum = 0;
  for (int64_t slot = work.first; slot < work.last; ++slot)
    sum += double(args.partials[slot * products + place]);
  const double scale = double(scale_of(args.largest[work.layer]));
  args.k[(work.layer * args.n + row) * args.n + column] = sum / scale / scale;
}

// Of the whole symmetric matrix, of which only the lower triangle is there.
__global__ void row_means_kernel(RecentreArgs args) {
  __shared__ double shared[kRowThreads];
  const int64_t i = blockIdx.x, n = args.n;
  const double* k = args.k + blockIdx.y * n * n;
  double sum = 0;
  for (int64_t j = threadIdx.x; j < n; j += kRowThreads)
    sum += j <= i ? k[i * n + j] : k[j * n + i];
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) args.means[blockIdx.y * n + i] = sum / double(n);
}

__global__ void recentre_kernel(RecentreArgs args) {
  __shared__ double shared[kRowThreads];
  const int64_t i = blockIdx.x, n = args.n;
  const double* means = args.means + blockIdx.y * n;
  double sum = 0;
  for (int64_t j = threadIdx.x; j < n; j += kRowThreads) sum += means[j];
  const double mean = block_sum(sum, shared) / double(n);
  double* row = args.k + (blockIdx.y * n + i) * n;
  for (int64_t j = threadIdx.x; j <= i; j += kRowThreads)
    row[j] = row[j] - means[i] - means[j] + mean;
}

}  // namespace

void sample(const SampleArgs& args, int device, void* stream) {
  const DeviceGuard guard(device, "gram");
  const dim3 blocks(unsigned(args.blocks), unsigned(args.count));
  switch (args.dtype) {
    case Dtype::f16: launch(sample_kernel<half_bits>, blocks, kThreads, 0, stream, args); break;
    case Dtype::bf16: launch(sample_kernel<bfloat_bits>, blocks, kThreads, 0, stream, args); break;
    case Dtype::f32: launch(sample_kernel<float>, blocks, kThreads, 0, stream, args); break;
    case Dtype::f64: throw std::runtime_error("float64 activations have no pivot");
  }
  check(cudaGetLastError(), "gram");
}

void products(const ProductsArgs& args, int device, void* stream) {
  const DeviceGuard guard(device, "gram");
  if (args.kind == TileKind::triangle) {
    products_sm90(args, device, stream);
    return check(cudaGetLastError(), "gram");
  }
  switch (args.operand) {
    case Operand::f16: products_f16(args, stream); break;
    case Operand::bf16: products_bf16(args, stream); break;
    case Operand::as_accumulated: products_f32(args, stream); break;
  }
  check(cudaGetLastError(), "gram");
}

void add_up(const AddUpArgs& args, int device, void* stream) {
  const DeviceGuard guard(device, "gram");
  const int64_t products = args.rows * args.columns * (args.kind == TileKind::triangle ? 3 : 1);
  // Works are many and a grid takes 65,535 of anything but its first.
  const dim3 blocks(unsigned(args.count), unsigned(products / kThreads));
  launch(add_up_kernel, blocks, kThreads, 0, stream, args);
  check(cudaGetLastError(), "gram");
}

void recentre(const RecentreArgs& args, int device, void* stream) {
  const DeviceGuard guard(device, "gram");
  const dim3 blocks(unsigned(args.n), unsigned(args.layers));
  launch(row_means_kernel, blocks, kRowThreads, 0, stream, args);
  launch(recentre_kernel, blocks, kRowThreads, 0, stream, args);
  check(cudaGetLastError(), "gram");
}

}  // namespace cuda
}  // namespace fastcka
