// Intel's matrix unit in plain C++, so that the code that drives it can be run without one: the operation of
// each instruction, from Intel's manual (volume 2, AMX). Included by instruction_sets.cc where
// PLC_AMX_EMULATION names this file.
#include <cassert>
#include <cstdint>
#include <cstring>

namespace amx_emulation {

struct Unit {
  uint16_t column_bytes[16];
  uint8_t rows[16];
  uint8_t tiles[8][16][64];
};
inline thread_local Unit unit;

// Where the processor would fault, this stops too.
inline void load_config(const void* config) {
  const uint8_t palette = *static_cast<const uint8_t*>(config);
  assert(palette == 1);
  std::memcpy(unit.column_bytes, static_cast<const uint8_t*>(config) + 16, sizeof unit.column_bytes);
  std::memcpy(unit.rows, static_cast<const uint8_t*>(config) + 48, sizeof unit.rows);
}
inline void check(int tile) {
  assert(unit.rows[tile] > 0 && unit.rows[tile] <= 16);
  assert(unit.column_bytes[tile] > 0 && unit.column_bytes[tile] <= 64 && unit.column_bytes[tile] % 4 == 0);
}
inline void load(int tile, const void* from, size_t stride) {
  check(tile);
  std::memset(unit.tiles[tile], 0, sizeof unit.tiles[tile]);
  for (int row = 0; row < unit.rows[tile]; ++row)
    std::memcpy(unit.tiles[tile][row], static_cast<const uint8_t*>(from) + row * stride, unit.column_bytes[tile]);
}
inline void store(int tile, void* to, size_t stride) {
  check(tile);
  for (int row = 0; row < unit.rows[tile]; ++row)
    std::memcpy(static_cast<uint8_t*>(to) + row * stride, unit.tiles[tile][row], unit.column_bytes[tile]);
}
inline void zero(int tile) { std::memset(unit.tiles[tile], 0, sizeof unit.tiles[tile]); }
inline void multiply(int total, int left, int right) {
  for (const int tile : {total, left, right}) check(tile);
  assert(unit.rows[left] == unit.rows[total] && unit.rows[right] == unit.column_bytes[left] / 4);
  assert(unit.column_bytes[right] == unit.column_bytes[total]);
  for (int m = 0; m < unit.rows[total]; ++m)
    for (int k = 0; k < unit.column_bytes[left] / 4; ++k)
      for (int n = 0; n < unit.column_bytes[total] / 4; ++n) {
        int32_t sum;
        std::memcpy(&sum, unit.tiles[total][m] + 4 * n, sizeof sum);
        for (int j = 0; j < 4; ++j)
          sum += int8_t(unit.tiles[left][m][4 * k + j]) * int8_t(unit.tiles[right][k][4 * n + j]);
        std::memcpy(unit.tiles[total][m] + 4 * n, &sum, sizeof sum);
      }
}

}  // namespace amx_emulation

#undef _tile_loadconfig
#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbssd
#undef _tile_release
#define _tile_loadconfig(config) amx_emulation::load_config(config)
#define _tile_loadd(tile, from, stride) amx_emulation::load(tile, from, stride)
#define _tile_stored(tile, to, stride) amx_emulation::store(tile, to, stride)
#define _tile_zero(tile) amx_emulation::zero(tile)
#define _tile_dpbssd(total, left, right) amx_emulation::multiply(total, left, right)
#define _tile_release() amx_emulation::unit = {}
