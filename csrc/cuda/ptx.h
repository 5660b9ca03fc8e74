// The instructions of a GPU that C++ has no words for, each in a function of its own.
//
// tests/native/cuda_emulation.h has the same functions in plain C++: there the kernels run on a CPU.
#pragma once

#include <cstdint>

namespace fastcka {
namespace cuda {

struct half_bits {
  uint16_t bits;
};
struct bfloat_bits {
  uint16_t bits;
};

}  // namespace cuda
}  // namespace fastcka

#ifndef FASTCKA_EMULATE_CUDA

#include <cuda_runtime.h>

namespace fastcka {
namespace cuda {

// --- Values

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(half_bits x) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
  return value;
}
__device__ inline float to_float(bfloat_bits x) { return __uint_as_float(uint32_t(x.bits) << 16); }

// Two values rounded to nearest, the first in the low half of a word.
__device__ inline uint32_t pack(half_bits, float low, float high) {
  uint32_t both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
__device__ inline uint32_t pack(bfloat_bits, float low, float high) {
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
// The nearest value of the 11 bits that a tensor core reads of a float32.
__device__ inline uint32_t to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

// --- Shared memory

__device__ inline char* dynamic_shared() {
  extern __shared__ __align__(1024) char memory[];
  return memory;
}
__device__ inline uint32_t shared_address(const void* place) {
  return uint32_t(__cvta_generic_to_shared(place));
}

// Begins to copy 16 bytes, past the first cache; zeros where they do not exist.
__device__ inline void copy_16(void* to_shared, const void* from, bool exists) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to_shared)),
               "l"(from), "r"(exists ? 16 : 0)
               : "memory");
}
// Ends a group of copies.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most that many of this thread's groups are on their way.
template <int kGroups>
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

// --- Tensor cores, a warp together

// Four matrices of 8 rows of 16 bytes; lane i names the row i % 8 of matrix i / 8. Of each matrix a
// lane gets the word i % 4 of row i / 4.
__device__ inline void load_matrices(uint32_t (&words)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared_address(row))
               : "memory");
}

// sums [16, 8] += a [16, 32 bytes] b [8, 32 bytes]^T: 16 values of 16 bits, or 8 of TF32.
#define FASTCKA_MMA(shape, type)                                                             \
  asm("mma.sync.aligned." shape ".row.col.f32." type "." type                                \
      ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                 \
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])                           \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
__device__ inline void multiply(half_bits, float (&sums)[4], const uint32_t (&a)[4],
                                const uint32_t (&b)[2]) {
  FASTCKA_MMA("m16n8k16", "f16");
}
__device__ inline void multiply(bfloat_bits, float (&sums)[4], const uint32_t (&a)[4],
                                const uint32_t (&b)[2]) {
  FASTCKA_MMA("m16n8k16", "bf16");
}
__device__ inline void multiply(float, float (&sums)[4], const uint32_t (&a)[4],
                                const uint32_t (&b)[2]) {
  FASTCKA_MMA("m16n8k8", "tf32");
}
#undef FASTCKA_MMA

}  // namespace cuda
}  // namespace fastcka

#endif
