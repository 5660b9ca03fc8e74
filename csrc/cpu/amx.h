// Products of pairs of bfloats in the tile registers of AMX, 16 x 16 sums at a time.
#pragma once

#include "panel.h"
#include "tile.h"

namespace fastcka {
namespace FASTCKA_ISA {
namespace {

#if defined(__AMX_BF16__)
constexpr bool kTiles = true;

// Pairs that one instruction adds up: a tile is 16 rows of them.
constexpr int64_t kTilePairs = 16;

// All eight tiles: 16 rows of 64 bytes.
struct TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileShapes) == 64, "what the instruction reads");

inline void add_tile(const float* tile, double* sums, int64_t stride) {
  for (int64_t i = 0; i < kPanel; ++i)
    for (int64_t j = 0; j < kPanel; ++j) sums[i * stride + j] += double(tile[i * kPanel + j]);
}

// One panel by one or three panels over `depth` pairs. a: [16, kBlock / 2], a row after the other;
// b: panels [depth, 16], `b_stride` apart.
template <int Panels>
void multiply_tiles(const uint32_t* a, const uint32_t* b, int64_t b_stride, int64_t depth,
                    double* sums, int64_t stride) {
  constexpr int64_t most = kDepth / 2;
  constexpr int64_t a_bytes = kBlock / 2 * 4, b_bytes = kPanel * 4;
  alignas(64) float tile[kPanel * kPanel];
  for (int64_t first = 0; first < depth; first += most) {
    const int64_t last = depth - first < most ? depth : first + most;
    _tile_zero(0);
    if constexpr (Panels == 3) {
      _tile_zero(1);
      _tile_zero(2);
    }
    for (int64_t k = first; k < last; k += kTilePairs) {
      _tile_loadd(3, a + k, a_bytes);
      _tile_loadd(4, b + k * kPanel, b_bytes);
      _tile_dpbf16ps(0, 3, 4);
      if constexpr (Panels == 3) {
        _tile_loadd(5, b + b_stride + k * kPanel, b_bytes);
        _tile_dpbf16ps(1, 3, 5);
        _tile_loadd(6, b + 2 * b_stride + k * kPanel, b_bytes);
        _tile_dpbf16ps(2, 3, 6);
      }
    }
    _tile_stored(0, tile, b_bytes);
    add_tile(tile, sums, stride);
    if constexpr (Panels == 3) {
      _tile_stored(1, tile, b_bytes);
      add_tile(tile, sums + kPanel, stride);
      _tile_stored(2, tile, b_bytes);
      add_tile(tile, sums + 2 * kPanel, stride);
    }
  }
}

// As add_triangle of tile.h. rows: [panel_count * 16, kBlock / 2] pairs; panels: the same, packed;
// both are zero from `depth` to the next multiple of 16.
inline void add_triangle(const uint32_t* rows, const uint32_t* panels, int64_t panel_count,
                         int64_t depth, double* sums, int64_t stride) {
  constexpr int64_t panel_stride = kBlock / 2 * kPanel;
  // A constant: some versions of GCC take the instruction to read no more than its first 8 bytes,
  // and would not write the others of a local one. Nor do they see that tiles read memory.
  static constexpr TileShapes shapes;
  _tile_loadconfig(&shapes);
  asm volatile("" ::: "memory");
  for (int64_t row = 0; row < panel_count; ++row) {
    const uint32_t* a = rows + row * panel_stride;
    double* out = sums + row * kPanel * stride;
    int64_t column = 0;
    for (; column + 3 <= row + 1; column += 3)
      multiply_tiles<3>(a, panels + column * panel_stride, panel_stride, depth,
                        out + column * kPanel, stride);
    for (; column <= row; ++column)
      multiply_tiles<1>(a, panels + column * panel_stride, panel_stride, depth,
                        out + column * kPanel, stride);
  }
  _tile_release();
}
#else
constexpr bool kTiles = false;
#endif

}  // namespace
}  // namespace FASTCKA_ISA
}  // namespace fastcka
