// What one instruction set offers. Each file that includes this is compiled once per set, with that
// set's flags and FASTCKA_ISA naming it, into a namespace of its own. Nothing of the standard
// library is used there: an inline function that the linker merged could carry instructions that
// the machine lacks into code that runs everywhere.
#pragma once

#include <cstddef>
#include <cstdint>

#ifndef FASTCKA_ISA
#error "compile with -DFASTCKA_ISA=base|avx2|avx512|avx512bf16|amx"
#endif

namespace fastcka {
namespace FASTCKA_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kAccumulators = 16;  // of 32 registers; the rest hold operands
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kAccumulators = 12;  // of 16
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16;
constexpr int kAccumulators = 16;  // of 32
#else
constexpr int kVectorBytes = 16;   // SSE2
constexpr int kAccumulators = 8;   // of 16
#endif

template <class T>
struct Simd {
  static constexpr int width = kVectorBytes / int(sizeof(T));
  // may_alias: a vector is read from and written to plain arrays of T.
  typedef T vec __attribute__((vector_size(kVectorBytes), may_alias));
  typedef T unaligned
      __attribute__((vector_size(kVectorBytes), may_alias, aligned(alignof(T))));
  typedef uint32_t bits __attribute__((vector_size(kVectorBytes)));
};

}  // namespace
}  // namespace FASTCKA_ISA
}  // namespace fastcka
