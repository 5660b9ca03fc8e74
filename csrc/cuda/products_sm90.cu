// The products of 256 rows with each other, by wgmma: every activation is read once.
//
// It has never run on a GPU, only where tests/native/cuda_emulation.h plays one, so it is taken by
// name alone. What a step reads, and how, is in products.h; the tensor cores multiply it where it
// lies while the threads centre the next step.
#include "products.h"

namespace fastcka {
namespace cuda {
namespace {

// Two strips of 64 rows of the triangle, each with all rows up to its own last, by four warps: the
// first with the last, the second with the third, which is as much work.
template <class Tile, int kFirst, int kSecond>
struct StripSums {
  using Op = typename Tile::Op;
  static constexpr bool kWholePieces = true;  // reading value by value takes registers
  float first[32 * (kFirst + 1)], second[32 * (kSecond + 1)];

  __device__ void clear() {
#pragma unroll
    for (float& sum : first) sum = 0;
#pragma unroll
    for (float& sum : second) sum = 0;
  }
  // Before copies are asked for: they need not have come.
  __device__ void written() { show_to_tensor_cores(); }
  // Whoever meets the others here has done with the buffer of the step before.
  __device__ void before_barrier() { wait_for_products(); }
  __device__ void add(const char* buffer) {
    const uint64_t all = matrix_at(buffer);
    constexpr uint64_t kStrip = 64 * Tile::kRowBytes / 16;  // as descriptors count: 16 bytes
    begin_products();
#pragma unroll
    for (uint64_t slab = 0; slab < Tile::kRowBytes / 32; ++slab) {
      const uint64_t features = all + 2 * slab;
      multiply_group(Op{}, first, features + kFirst * kStrip, features);
      multiply_group(Op{}, second, features + kSecond * kStrip, features);
    }
    end_products();
  }
  __device__ void keep(float* slot, bool again) {
    wait_for_products();
    keep_strip<kFirst>(first, slot, again);
    keep_strip<kSecond>(second, slot, again);
  }

  // What wgmma is told of a matrix in shared memory: rows of 128 bytes, the next 8 of them 1,024
  // bytes on, pieces of 16 bytes exchanged as `swizzled` does it in multiples of 1,024.
  __device__ static uint64_t matrix_at(const void* place) {
    constexpr uint64_t kSwizzled = 1, kEightRows = 1024 / 16;
    return (shared_address(place) & 0x3ffff) / 16 | kEightRows << 32 | kSwizzled << 62;
  }

  // The slot holds three squares: of the first 128 rows, of the others with them, of the others.
  template <int kStrip, int kCount>
  __device__ static void keep_strip(const float (&sums)[kCount], float* slot, bool again) {
    const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) % 128 / 32;
    float* own = slot + (16 * warp + lane / 4) * 128 + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < kCount; i += 2) {
      const int row = 64 * kStrip + i / 2 % 2 * 8, column = i / 4 * 8;  // of the first thread
      const int square = row / 128 + column / 128;
      keep_two(own + (square * 128 + row % 128) * 128 + column % 128, sums + i, again);
    }
  }
};

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1) triangle_kernel(ProductsArgs args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(FASTCKA_EMULATE_CUDA)
  if (threadIdx.x < 128)
    add_segments<Tile, StripSums<Tile, 0, 3>>(args, 3 * 128 * 128);
  else
    add_segments<Tile, StripSums<Tile, 1, 2>>(args, 3 * 128 * 128);
#else
  __trap();  // compiled for other GPUs than `products_sm90` launches it on
#endif
}

template <class T>
void launch_triangle(const ProductsArgs& args, void* stream) {
  using Triangle = Tile<T, T, 128, 128, 4>;
  launch_products<Triangle>(triangle_kernel<Triangle>, args, stream);
}

}  // namespace

void products_sm90(const ProductsArgs& args, int device, void* stream) {
  if (args.piece == 1)
    throw std::runtime_error("products by wgmma are those of rows of whole pieces of 16 bytes");
  int major = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "gram");
  if (major != 9)
    throw std::runtime_error("products by wgmma need a GPU of compute capability 9.0");
  if (args.dtype == Dtype::f16 && args.operand == Operand::f16)
    return launch_triangle<half_bits>(args, stream);
  if (args.dtype == Dtype::bf16 && args.operand == Operand::bf16)
    return launch_triangle<bfloat_bits>(args, stream);
  throw std::runtime_error("products by wgmma are those of 16-bit activations as they are");
}

}  // namespace cuda
}  // namespace fastcka
