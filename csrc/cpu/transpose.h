// Turning square blocks of rows into columns, in registers.
#pragma once

#include "isa.h"

namespace fastcka {
namespace FASTCKA_ISA {
namespace {

template <size_t Bytes>
struct Integer;
template <>
struct Integer<4> {
  typedef int32_t type;
};
template <>
struct Integer<8> {
  typedef int64_t type;
};

template <int... Lane>
struct Lanes {};
template <int Count>
struct LanesOf;
template <>
struct LanesOf<2> {
  typedef Lanes<0, 1> type;
};
template <>
struct LanesOf<4> {
  typedef Lanes<0, 1, 2, 3> type;
};
template <>
struct LanesOf<8> {
  typedef Lanes<0, 1, 2, 3, 4, 5, 6, 7> type;
};
template <>
struct LanesOf<16> {
  typedef Lanes<0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15> type;
};

// Rows i and i + Distance hold 2x2 blocks of Distance lanes; the two off the diagonal change places.
template <class T, int Distance, int... Lane>
inline void swap_blocks(typename Simd<T>::vec& top, typename Simd<T>::vec& bottom, Lanes<Lane...>) {
  constexpr int width = Simd<T>::width;
  const typename Simd<T>::vec a = top, b = bottom;
#if defined(__clang__)
  top = __builtin_shufflevector(a, b, (Lane & Distance ? width + Lane - Distance : Lane)...);
  bottom = __builtin_shufflevector(a, b, (Lane & Distance ? width + Lane : Lane + Distance)...);
#else  // GCC has the former since version 12, this one since 4.7
  typedef typename Integer<sizeof(T)>::type lanes __attribute__((vector_size(kVectorBytes)));
  top = __builtin_shuffle(a, b, (lanes){(Lane & Distance ? width + Lane - Distance : Lane)...});
  bottom = __builtin_shuffle(a, b, (lanes){(Lane & Distance ? width + Lane : Lane + Distance)...});
#endif
}

template <class T, int Distance>
struct Transpose {
  static inline void blocks(typename Simd<T>::vec* rows) {
    constexpr int width = Simd<T>::width;
#pragma GCC unroll 16
    for (int i = 0; i < width; ++i)
      if (!(i & Distance))
        swap_blocks<T, Distance>(rows[i], rows[i + Distance], typename LanesOf<width>::type());
    Transpose<T, Distance / 2>::blocks(rows);
  }
};
template <class T>
struct Transpose<T, 0> {
  static inline void blocks(typename Simd<T>::vec*) {}
};

// rows[i][j] = rows[j][i], as many rows as a vector has lanes.
template <class T>
inline void transpose(typename Simd<T>::vec* rows) {
  Transpose<T, Simd<T>::width / 2>::blocks(rows);
}

}  // namespace
}  // namespace FASTCKA_ISA
}  // namespace fastcka
