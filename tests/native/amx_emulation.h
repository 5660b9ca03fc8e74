// The tile registers of AMX in plain C++, for processors that have none: the driver is compiled with
// this before all else. Products are added up as floats, in the order of the features.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace amx_emulation {

struct Tile {
  unsigned char bytes[16][64];
};
inline Tile& tile(int number) {
  static thread_local Tile tiles[8];
  return tiles[number];
}
// As the processor reads it: palette, first row, 14 of nothing, bytes of a row and rows of each tile.
struct Config {
  uint8_t palette = 0, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
inline Config& config() {
  static thread_local Config loaded;
  return loaded;
}
inline void load_config(const void* from) { std::memcpy(&config(), from, 64); }
// Nothing moves where nothing was configured.
inline void load(int number, const void* from, int64_t stride) {
  for (int i = 0; config().palette == 1 && i < config().rows[number]; ++i)
    std::memcpy(tile(number).bytes[i], static_cast<const char*>(from) + i * stride,
                config().row_bytes[number]);
}
inline void store(int number, void* to, int64_t stride) {
  for (int i = 0; config().palette == 1 && i < config().rows[number]; ++i)
    std::memcpy(static_cast<char*>(to) + i * stride, tile(number).bytes[i],
                config().row_bytes[number]);
}
inline float value(uint16_t bfloat) {
  const uint32_t bits = uint32_t(bfloat) << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
// c[m][n] += sum over k of a[m][k] b[k / 2][2 n + k % 2], k < 32.
inline void multiply_add(int c, int a, int b) {
  for (int m = 0; m < 16; ++m)
    for (int n = 0; n < 16; ++n) {
      float sum;
      std::memcpy(&sum, tile(c).bytes[m] + 4 * n, 4);
      for (int k = 0; k < 32; ++k) {
        uint16_t left, right;
        std::memcpy(&left, tile(a).bytes[m] + 2 * k, 2);
        std::memcpy(&right, tile(b).bytes[k / 2] + 4 * n + 2 * (k % 2), 2);
        sum += value(left) * value(right);
      }
      std::memcpy(tile(c).bytes[m] + 4 * n, &sum, 4);
    }
}

}  // namespace amx_emulation

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig(from) amx_emulation::load_config(from)
#define _tile_release() (amx_emulation::config() = amx_emulation::Config{})
#define _tile_zero(t) (amx_emulation::tile(t) = amx_emulation::Tile{})
#define _tile_loadd(t, from, stride) amx_emulation::load(t, from, stride)
#define _tile_stored(t, to, stride) amx_emulation::store(t, to, stride)
#define _tile_dpbf16ps(c, a, b) amx_emulation::multiply_add(c, a, b)
