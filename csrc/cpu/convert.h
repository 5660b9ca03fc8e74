// Reading 16-, 32- and 64-bit values as the type that is accumulated, and rounding to an operand.
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

inline float as_float(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}

inline uint32_t as_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// Exact for every half, subnormals included, also where the processor flushes float32 subnormals.
inline float widen(half_bits h) {
  const uint32_t sign = uint32_t(h.bits & 0x8000u) << 16;
  const uint32_t shifted = uint32_t(h.bits & 0x7fffu) << 13;
  const float normal = as_float(shifted + (112u << 23));
  const float subnormal = as_float(shifted + (113u << 23)) - as_float(113u << 23);
  const float special = as_float(shifted | 0x7f800000u);
  const float magnitude =
      shifted < (1u << 23) ? subnormal : (shifted < (31u << 23) ? normal : special);
  return as_float(as_bits(magnitude) | sign);
}
inline float widen(bfloat_bits b) { return as_float(uint32_t(b.bits) << 16); }
inline float widen(float x) { return x; }
inline double widen(double x) { return x; }

// dst[i] = scale * src[i].
template <class In, class T>
inline void load_row(const In* src, T* dst, int64_t count, T scale) {
  for (int64_t i = 0; i < count; ++i) dst[i] = scale * T(widen(src[i]));
}

#if defined(__F16C__)
inline void load_row(const half_bits* src, float* dst, int64_t count, float scale) {
  int64_t i = 0;
  const __m256 scales = _mm256_set1_ps(scale);
  for (; i + 8 <= count; i += 8) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(src + i));
    _mm256_storeu_ps(dst + i, _mm256_mul_ps(_mm256_cvtph_ps(halves), scales));
  }
  for (; i < count; ++i) dst[i] = scale * widen(src[i]);
}
#endif

// To the nearest half, ties to even. The caller has scaled the values: none overflows.
inline float round_to_half(float x) {
  const uint32_t bits = as_bits(x);
  const uint32_t sign = bits & 0x80000000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude >= 0x7f800000u) return x;
  const uint32_t normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u)) & ~0x1fffu;
  // Below 2^-14 halves lie 2^-24 apart, as float32 values in [0.5, 1) do.
  const float subnormal = (as_float(magnitude) + 0.5f) - 0.5f;
  return as_float((magnitude < (113u << 23) ? as_bits(subnormal) : normal) | sign);
}

// To the nearest bfloat, ties to even.
inline float round_to_bfloat(float x) {
  const uint32_t bits = as_bits(x);
  if ((bits & 0x7fffffffu) >= 0x7f800000u) return x;
  return as_float((bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u);
}

}  // namespace
}  // namespace FASTCKA_ISA
}  // namespace fastcka
