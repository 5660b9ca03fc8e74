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
// a b + c of two values each, rounded once.
__device__ inline uint32_t multiply_add(half_bits, uint32_t a, uint32_t b, uint32_t c) {
  uint32_t both;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(both) : "r"(a), "r"(b), "r"(c));
  return both;
}
__device__ inline uint32_t multiply_add(bfloat_bits, uint32_t a, uint32_t b, uint32_t c) {
  uint32_t both;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(both) : "r"(a), "r"(b), "r"(c));
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

// --- Tensor cores of sm_90a, four warps together
//
// They read shared memory on their own: what threads wrote there is fenced off for them, and results
// are there when they have been waited for.

__device__ inline void show_to_tensor_cores() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
// Before products go to registers that have been written to.
__device__ inline void begin_products() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ inline void end_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
__device__ inline void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}

// sums [64, columns] += a [64, 16] b [columns, 16]^T, of matrices as products_sm90.cu describes them.
#define FASTCKA_TEN(t)                                                                     \
  "%" #t "0, %" #t "1, %" #t "2, %" #t "3, %" #t "4, %" #t "5, %" #t "6, %" #t "7, %" #t   \
  "8, %" #t "9, "
#define FASTCKA_4(i) "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3])
#define FASTCKA_16(i) FASTCKA_4(i), FASTCKA_4(i + 4), FASTCKA_4(i + 8), FASTCKA_4(i + 12)
#define FASTCKA_32(i) FASTCKA_16(i), FASTCKA_16(i + 16)
#define FASTCKA_64(i) FASTCKA_32(i), FASTCKA_32(i + 32)
#define FASTCKA_WGMMA(Op, type, columns, registers, descriptors, ...)                      \
  __device__ inline void multiply_group(Op, float(&sums)[columns / 2], uint64_t a,         \
                                        uint64_t b) {                                      \
    asm volatile("{.reg .pred added; setp.eq.u32 added, 0, 0; "                            \
                 "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." type "." type     \
                 " {" registers "}, " descriptors ", added, 1, 1, 0, 0;}"                  \
                 : __VA_ARGS__                                                             \
                 : "l"(a), "l"(b));                                                        \
  }
#define FASTCKA_WGMMAS(Op, type)                                                           \
  FASTCKA_WGMMA(Op, type, 64, FASTCKA_TEN() FASTCKA_TEN(1) FASTCKA_TEN(2) "%30, %31",      \
                "%32, %33", FASTCKA_32(0))                                                 \
  FASTCKA_WGMMA(Op, type, 128,                                                             \
                FASTCKA_TEN() FASTCKA_TEN(1) FASTCKA_TEN(2) FASTCKA_TEN(3) FASTCKA_TEN(4)  \
                    FASTCKA_TEN(5) "%60, %61, %62, %63",                                   \
                "%64, %65", FASTCKA_64(0))                                                 \
  FASTCKA_WGMMA(Op, type, 192,                                                             \
                FASTCKA_TEN() FASTCKA_TEN(1) FASTCKA_TEN(2) FASTCKA_TEN(3) FASTCKA_TEN(4)  \
                    FASTCKA_TEN(5) FASTCKA_TEN(6) FASTCKA_TEN(7) FASTCKA_TEN(8)            \
                        "%90, %91, %92, %93, %94, %95",                                    \
                "%96, %97", FASTCKA_64(0), FASTCKA_32(64))                                 \
  FASTCKA_WGMMA(Op, type, 256,                                                             \
                FASTCKA_TEN() FASTCKA_TEN(1) FASTCKA_TEN(2) FASTCKA_TEN(3) FASTCKA_TEN(4)  \
                    FASTCKA_TEN(5) FASTCKA_TEN(6) FASTCKA_TEN(7) FASTCKA_TEN(8)            \
                        FASTCKA_TEN(9) FASTCKA_TEN(10) FASTCKA_TEN(11)                     \
                            "%120, %121, %122, %123, %124, %125, %126, %127",              \
                "%128, %129", FASTCKA_64(0), FASTCKA_64(64))
FASTCKA_WGMMAS(half_bits, "f16")
FASTCKA_WGMMAS(bfloat_bits, "bf16")
#undef FASTCKA_WGMMAS
#undef FASTCKA_WGMMA
#undef FASTCKA_64
#undef FASTCKA_32
#undef FASTCKA_16
#undef FASTCKA_4
#undef FASTCKA_TEN

}  // namespace cuda
}  // namespace fastcka

#endif
