// Reading 16-, 32- and 64-bit values as vectors of the type that is accumulated, and rounding to an
// operand.
#pragma once

#include "isa.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace fastcka {
namespace FASTCKA_ISA {
namespace {

struct half_bits {
  uint16_t bits;
};
struct bfloat_bits {
  uint16_t bits;
};

// As many values as a vector holds, from an address of any alignment.
inline Simd<float>::vec load(const float* x) {
  return *reinterpret_cast<const Simd<float>::unaligned*>(x);
}
inline Simd<double>::vec load(const double* x) {
  return *reinterpret_cast<const Simd<double>::unaligned*>(x);
}
inline Simd<float>::bits load_16(const void* x) {
  typedef uint16_t half_vec
      __attribute__((vector_size(kVectorBytes / 2), may_alias, aligned(2)));
  return __builtin_convertvector(*static_cast<const half_vec*>(x), Simd<float>::bits);
}
inline Simd<float>::vec load(const bfloat_bits* x) { return Simd<float>::vec(load_16(x) << 16); }
#if defined(__AVX512F__)
inline Simd<float>::vec load(const half_bits* x) {
  // Masked with all lanes: GCC takes the plain one for a read of an undefined register.
  return Simd<float>::vec(
      _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x))));
}
#elif defined(__AVX2__)
inline Simd<float>::vec load(const half_bits* x) {
  return Simd<float>::vec(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x))));
}
#else
// Exact for every half, subnormals included, also where the processor flushes float32 subnormals.
inline Simd<float>::vec load(const half_bits* x) {
  using vec = Simd<float>::vec;
  const Simd<float>::bits half = load_16(x);
  const Simd<float>::bits shifted = (half & 0x7fffu) << 13;
  const vec least = vec(Simd<float>::bits{} + (113u << 23));
  const vec subnormal = vec(shifted + (113u << 23)) - least;
  const Simd<float>::bits normal = shifted + (112u << 23);
  const Simd<float>::bits special = shifted | 0x7f800000u;
  const Simd<float>::bits large = shifted < (31u << 23) ? normal : special;
  const Simd<float>::bits magnitude =
      shifted < (1u << 23) ? Simd<float>::bits(subnormal) : large;
  return vec(magnitude | (half & 0x8000u) << 16);
}
#endif

// To the nearest half, ties to even. The caller has scaled the values: none overflows.
inline Simd<float>::vec round_to_half(Simd<float>::vec x) {
  const Simd<float>::bits bits = Simd<float>::bits(x);
  const Simd<float>::bits sign = bits & 0x80000000u, magnitude = bits & 0x7fffffffu;
  const Simd<float>::bits normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u)) & ~0x1fffu;
  // Below 2^-14 halves lie 2^-24 apart, as float32 values in [0.5, 1) do.
  const Simd<float>::vec subnormal = (Simd<float>::vec(magnitude) + 0.5f) - 0.5f;
  const Simd<float>::bits finite = magnitude < (113u << 23) ? Simd<float>::bits(subnormal) : normal;
  return Simd<float>::vec(sign | (magnitude < 0x7f800000u ? finite : magnitude));
}

// To the nearest bfloat, ties to even.
inline Simd<float>::vec round_to_bfloat(Simd<float>::vec x) {
  const Simd<float>::bits bits = Simd<float>::bits(x);
  const Simd<float>::bits nearest = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
  return Simd<float>::vec((bits & 0x7fffffffu) < 0x7f800000u ? nearest : bits);
}

}  // namespace
}  // namespace FASTCKA_ISA
}  // namespace fastcka
