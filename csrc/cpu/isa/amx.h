// The instructions of AMX on tiles of bfloat16. No compiler flag is needed, and so nothing else here can become an
// instruction that an older processor lacks.
#pragma once

#include <cstdint>

namespace effnet::cpu::amx {

constexpr int kTileRows = 16, kTileBytes = 64;

// The memory operand of ldtilecfg.
struct alignas(64) TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64);

// All tiles become zero.
inline void load_config(const TileConfig& config) { asm volatile("ldtilecfg %0" : : "m"(config)); }
inline void release_tiles() { asm volatile("tilerelease"); }

// The compiler knows nothing of tiles: `volatile` keeps these in their order, "memory" keeps what they read and write.
template <int kTile>
inline __attribute__((always_inline)) void load_tile(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(kTile) : "memory");
}

template <int kTile>
inline __attribute__((always_inline)) void store_tile(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(kTile) : "memory");
}

template <int kTile>
inline __attribute__((always_inline)) void zero_tile() {
  asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
}

// sum[m][n] += a[m][2 k] b[k][2 n] + a[m][2 k + 1] b[k][2 n + 1]
template <int kSum, int kA, int kB>
inline __attribute__((always_inline)) void multiply_add_tiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kA), "i"(kB));
}

}  // namespace effnet::cpu::amx
